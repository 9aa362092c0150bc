//! Clusters whose nodes are not simply where they say that they are: they announce names, or names that only `--target-nat` knows, other
//! ports, no host at all, IPv6 addresses; and those of before Redis 7, which know no CLUSTER SHARDS. Each is filled, followed while its
//! slots move, and compared; every node is reached by what it announces, as the operator maps it, and nobody else is.

#[path = "common/certs.rs"]
mod certs;
mod common;

use certs::Certs;
use common::clustered::{Clustered, key_on};
use common::job::{self, binary, until};
use common::{program, start};
use df2redis::lab::LabError;
use df2redis::lab::answers::{ClusterPorts, TargetIdentity};
use df2redis::lab::client::Reply;
use df2redis::lab::cluster::Cluster;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::stage::{LiveStage, StageOptions};
use df2redis::lab::live::target::Target;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::script::{ErrorRule, ScriptOptions, ScriptedTarget};
use df2redis::lab::servers::{Server, ServerKind, ServerOptions, find_server};
use df2redis::lab::torture::{Tool, wait_for};
use df2redis::redis::slot::slot;
use std::net::TcpListener;
use std::sync::Arc;

const LOCALHOST: [&str; 3] = ["127.0.0.1"; 3];

/// Three primaries at these addresses. `None`: no such server here.
fn cluster_at(kind: ServerKind, hosts: &[&str], options: &ServerOptions) -> Option<Cluster> {
    match find_server(kind).and_then(|binary| Cluster::start_at(&binary, hosts, options)) {
        Ok(cluster) => Some(cluster),
        Err(LabError::NoServer { what, .. }) => {
            eprintln!("skipped: no {what} here");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Settings of each node, in words.
fn set(cluster: &Cluster, settings: impl Fn(usize) -> String) {
    for (at, node) in cluster.nodes.iter().enumerate() {
        node.client().unwrap().run(&format!("CONFIG SET {}", settings(at))).unwrap();
    }
}

/// Waits until every node has heard this of every node, as CLUSTER NODES writes it.
fn until_heard(cluster: &Cluster, of: impl Fn(usize) -> String) {
    let texts: Vec<String> = (0..cluster.nodes.len()).map(of).collect();
    let heard = wait_for(|| {
        let views =
            cluster.nodes.iter().map(|node| node.client().unwrap().run("CLUSTER NODES").unwrap().text().unwrap());
        views.into_iter().all(|view| texts.iter().all(|text| view.contains(text))).then_some(())
    });
    assert!(heard.is_some(), "{texts:?}");
}

fn name(node: usize) -> String {
    format!("node-{node}.invalid")
}

/// Each node announces a name that nobody can resolve.
fn announce_names(cluster: &Cluster) {
    set(cluster, |at| format!("cluster-announce-hostname {} cluster-preferred-endpoint-type hostname", name(at)));
    until_heard(cluster, |at| format!(",{}", name(at)));
}

/// Where the names are.
fn names_mapped(cluster: &Cluster) -> Vec<String> {
    let rule = |(at, node): (usize, &Server)| ["--target-nat".into(), format!("{}={}", name(at), node.host())];
    cluster.nodes.iter().enumerate().flat_map(rule).collect()
}

fn url(node: &Server) -> String {
    let host = node.host();
    if host.contains(':') {
        format!("redis://[{host}]:{}", node.port())
    } else {
        format!("redis://{host}:{}", node.port())
    }
}

/// The cluster is filled and followed while its slots move all the time and connections are lost, and is equal in the end.
#[track_caller]
fn fills_and_follows(kind: ServerKind, cluster: Arc<Cluster>, more: &[String]) {
    // Redis 6.2 cannot tell what truth.py asks for.
    let judge_kind = if kind == ServerKind::Redis6 { ServerKind::Redis7 } else { kind };
    let judge = Arc::new(Server::start_kind(judge_kind, ServerOptions::default()).unwrap());
    let at = Target::Cluster { cluster: cluster.clone(), judge };
    // Unless it is said otherwise, by its second node.
    let named = if more.iter().any(|arg| arg == "--target") {
        Vec::new()
    } else {
        vec!["--target".into(), url(&cluster.nodes[1])]
    };
    let tool_args = [&named, more].concat();
    let pops_of_one_key = kind == ServerKind::Redis6;
    let options =
        StageOptions { slots_move: true, workload_rate: 300, tool_args, pops_of_one_key, ..StageOptions::new(7) };
    cluster.forget_redirects().unwrap();
    let stage = LiveStage::new(binary(), at.clone(), judge_kind, options).unwrap();
    let mut tool = stage.start().unwrap();
    stage.wait_stable(&mut tool).unwrap_or_else(|why| panic!("{kind:?}: {why}"));
    until(&mut tool, "no redirects", || {
        let (moved, asked) = cluster.redirects().unwrap();
        moved > 0 && asked > 0
    });
    assert!(at.kill_lanes().unwrap() > 0);
    let summary = stage.finish(tool).unwrap_or_else(|why| panic!("{kind:?}: {why}"));
    assert!(summary.slots_moved > 0 && summary.registrations == 1, "{summary:?}");
}

/// `verify` reaches the same nodes: it finds nothing, and then the key that is changed behind its back.
#[track_caller]
fn compares(world: &Clustered, more: &[String]) {
    let (source, target) = (format!("dragonfly://127.0.0.1:{}", world.live.port()), url(&world.cluster.nodes[0]));
    let key = key_on(1, "planted");
    let verify = || {
        let mut command = program(&["verify", "--source", &source, "--target", &target, "--output", "json"]);
        command.args(["--progress", "off", "--rate", "off", "--lag-max", "1s"]).args(more);
        start(command).wait()
    };
    verify().expect_code(0);
    at_owner(&world.cluster, &["SET", &key, "v"]);
    let run = verify();
    run.expect_code(10);
    assert!(run.stdout.contains(&key), "{}", run.stdout);
}

/// The answer of the node that has the command's slot.
fn at_owner(cluster: &Cluster, command: &[&str]) -> Reply {
    let mut answers = cluster.nodes.iter().map(|node| node.client().unwrap().ask(command).unwrap());
    answers.find(|answer| !matches!(answer, Reply::Error(text) if text.starts_with("MOVED"))).unwrap()
}

/// The cluster, emptied, and a source.
fn world(cluster: Cluster) -> Clustered {
    cluster.nodes.iter().for_each(|node| drop(node.client().unwrap().run("FLUSHALL").unwrap()));
    let spec = Spec { seed: 5, flows_count: 2, ..Spec::of("string:60B=50,list:6x9=10").unwrap() };
    let live = Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap();
    // Which judges in the end: Redis 6.2 cannot.
    Clustered { kind: ServerKind::Redis7, cluster, live, dir: tempfile::tempdir().unwrap() }
}

/// A key is written that is asked for where its slot moves to, and nowhere else yet: there it is found.
#[track_caller]
fn follows_an_ask(world: &Clustered, tool: &mut Tool, from: usize, to: usize) {
    let first = key_on(from, "moving");
    let (second, number) = (format!("{{{first}}}:2"), slot(first.as_bytes()).0);
    world.run(&format!("SET {first} 1"));
    world.wait_applied(tool);
    world.cluster.wait_agreed().unwrap();
    world.cluster.half_move_slot(number, from, to).unwrap();
    world.cluster.forget_redirects().unwrap();
    world.run(&format!("SET {second} 2"));
    world.wait_applied(tool);
    assert!(world.cluster.redirects().unwrap().1 > 0, "nothing was asked for elsewhere");
    let there = world.client(to).run(&format!("CLUSTER GETKEYSINSLOT {number} 100")).unwrap();
    let there: Vec<_> = there.array().unwrap().iter().filter_map(Reply::text).collect();
    assert!(there.contains(&second), "{there:?}");
    world.cluster.move_slot(number, from, to).unwrap();
    world.run(&format!("APPEND {first} x"));
}

/// The cluster is filled and followed, an ASK too, and compared.
#[track_caller]
fn follows_and_compares(cluster: Cluster, more: &[String]) {
    let world = world(cluster);
    let mut tool = follow(&world, more);
    world.wait_applied(&mut tool);
    follows_an_ask(&world, &mut tool, 0, 2);
    world.wait_applied(&mut tool);
    job::stop(&mut tool);
    compares(&world, more);
}

fn follow(world: &Clustered, more: &[String]) -> Tool {
    let target = url(&world.cluster.nodes[0]);
    let args: Vec<&str> =
        ["--target", &target, "--log", "info"].into_iter().chain(more.iter().map(String::as_str)).collect();
    Tool::start(binary(), world.live.port(), 0, &world.log(), &args).unwrap()
}

/// A cluster that announces names, and the map.
fn named(kind: ServerKind) -> Option<(Cluster, Vec<String>)> {
    let cluster = cluster_at(kind, &LOCALHOST, &ServerOptions::default())?;
    announce_names(&cluster);
    let nat = names_mapped(&cluster);
    Some((cluster, nat))
}

#[test]
fn nodes_are_reached_by_the_names_that_they_announce() {
    let Some((cluster, nat)) = named(ServerKind::Redis7) else { return };
    fills_and_follows(ServerKind::Redis7, Arc::new(cluster), &nat);
}

#[test]
fn nodes_of_valkey_are_reached_by_the_names_that_they_announce() {
    let Some((cluster, nat)) = named(ServerKind::Valkey9) else { return };
    fills_and_follows(ServerKind::Valkey9, Arc::new(cluster), &nat);
}

#[test]
fn redirects_to_names_are_followed() {
    let Some((cluster, nat)) = named(ServerKind::Redis7) else { return };
    follows_and_compares(cluster, &nat);
}

#[test]
fn a_name_that_resolves_needs_no_map() {
    let Some(cluster) = cluster_at(ServerKind::Redis7, &LOCALHOST, &ServerOptions::default()) else { return };
    set(&cluster, |_| "cluster-announce-hostname localhost cluster-preferred-endpoint-type hostname".into());
    until_heard(&cluster, |at| format!(":{}@{},localhost", cluster.nodes[at].port(), bus_port(&cluster.nodes[at])));
    follows_and_compares(cluster, &[]);
}

fn bus_port(node: &Server) -> u16 {
    let answer = node.client().unwrap().run("CONFIG GET cluster-port").unwrap();
    answer.array().unwrap()[1].text().unwrap().parse().unwrap()
}

#[test]
fn a_name_that_does_not_resolve_is_told() {
    let Some(cluster) = cluster_at(ServerKind::Redis7, &LOCALHOST, &ServerOptions::default()) else { return };
    announce_names(&cluster);
    let world = world(cluster);
    let mut tool = follow(&world, &["--retry-max".into(), "1s".into()]);
    assert_eq!(tool.wait(), Some(5), "{}", tool.said());
    assert!(tool.said().contains("the name node-0.invalid cannot be resolved"), "{}", tool.said());
}

/// Every node is another address of this machine, so that the asked one's is not the others'.
#[test]
fn a_node_without_a_name_is_reached_by_its_address() {
    let hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.3"];
    let Some(cluster) = cluster_at(ServerKind::Redis7, &hosts, &ServerOptions::default()) else { return };
    // The third one is called "?".
    set(&cluster, |at| match at {
        2 => "cluster-preferred-endpoint-type hostname".into(),
        _ => format!("cluster-preferred-endpoint-type hostname cluster-announce-hostname {}", name(at)),
    });
    until_heard(&cluster, |at| if at == 2 { String::new() } else { format!(",{}", name(at)) });
    let nat = names_mapped(&cluster);
    follows_and_compares(cluster, &nat);
}

/// A cluster whose nodes tell no host.
fn without_hosts(kind: ServerKind) -> Option<Cluster> {
    let cluster = cluster_at(kind, &LOCALHOST, &ServerOptions::default())?;
    set(&cluster, |_| "cluster-preferred-endpoint-type unknown-endpoint".into());
    Some(cluster)
}

#[test]
fn a_host_that_is_not_told_is_the_one_that_was_asked() {
    let Some(cluster) = without_hosts(ServerKind::Redis7) else { return };
    fills_and_follows(ServerKind::Redis7, Arc::new(cluster), &[]);
}

fn follow_redirects_without_a_host(kind: ServerKind) {
    let Some(cluster) = without_hosts(kind) else { return };
    let answer = cluster.nodes[0].client().unwrap().ask(&["GET", &key_on(1, "k")]).unwrap();
    let moved = format!(" :{}", cluster.nodes[1].port());
    assert!(matches!(&answer, Reply::Error(text) if text.ends_with(&moved)), "{answer:?}");
    follows_and_compares(cluster, &[]);
}

#[test]
fn redirects_without_a_host_are_followed() {
    follow_redirects_without_a_host(ServerKind::Redis7);
}

#[test]
fn redirects_of_valkey_without_a_host_are_followed() {
    follow_redirects_without_a_host(ServerKind::Valkey9);
}

#[test]
fn slots_without_a_host_are_followed() {
    let Some(cluster) = without_hosts(ServerKind::Redis7) else { return };
    deny_shards(&cluster);
    follows_and_compares(cluster, &[]);
}

/// Then who has what is learnt from CLUSTER SLOTS.
fn deny_shards(cluster: &Cluster) {
    for node in &cluster.nodes {
        node.client().unwrap().run("ACL SETUSER default -cluster|shards").unwrap();
    }
}

/// Redis 6.2, or what acts as if it were.
fn without_shards(kind: ServerKind) -> Option<Cluster> {
    let cluster = cluster_at(kind, &LOCALHOST, &ServerOptions::default())?;
    let denied = match kind {
        ServerKind::Redis6 => "ERR Unknown subcommand",
        _ => {
            deny_shards(&cluster);
            "NOPERM"
        }
    };
    let answer = cluster.nodes[0].client().unwrap().ask(&["CLUSTER", "SHARDS"]).unwrap();
    assert!(matches!(&answer, Reply::Error(text) if text.starts_with(denied)), "{answer:?}");
    Some(cluster)
}

#[test]
fn a_cluster_of_redis_6_is_filled_and_followed() {
    let Some(cluster) = without_shards(ServerKind::Redis6) else { return };
    fills_and_follows(ServerKind::Redis6, Arc::new(cluster), &[]);
}

/// CLUSTER SLOTS does not name such a node before it has its first slot.
fn follow_to_a_node_without_slots(kind: ServerKind) {
    let Some(cluster) = without_shards(kind) else { return };
    let mut world = world(cluster);
    let mut tool = follow(&world, &[]);
    world.wait_applied(&mut tool);
    let node = world.cluster.join().unwrap();
    if kind != ServerKind::Redis6 {
        deny_shards(&world.cluster);
    }
    follows_an_ask(&world, &mut tool, 0, node);
    world.finish(tool);
    compares(&world, &[]);
}

#[test]
fn redis_6_moves_a_slot_to_a_node_without_slots() {
    follow_to_a_node_without_slots(ServerKind::Redis6);
}

#[test]
fn a_slot_that_moves_to_a_node_without_slots_is_followed_there() {
    follow_to_a_node_without_slots(ServerKind::Redis7);
}

/// Whoever takes an announced address for where a node is knocks here.
struct Traps(Vec<TcpListener>);

impl Traps {
    fn new() -> Self {
        let trap = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        };
        Self((0..3).map(|_| trap()).collect())
    }

    fn port(&self, node: usize) -> u16 {
        self.0[node].local_addr().unwrap().port()
    }

    #[track_caller]
    fn are_untouched(&self) {
        for trap in &self.0 {
            assert!(trap.accept().is_err(), "an address that is mapped, or none of the cluster's, was connected to");
        }
    }
}

#[test]
fn announced_ports_are_mapped_and_never_connected_to() {
    let Some(cluster) = cluster_at(ServerKind::Redis7, &LOCALHOST, &ServerOptions::default()) else { return };
    let traps = Traps::new();
    set(&cluster, |at| format!("cluster-announce-port {}", traps.port(at)));
    until_heard(&cluster, |at| format!("127.0.0.1:{}@", traps.port(at)));
    let rule = |(at, node): (usize, &Server)| {
        ["--target-nat".into(), format!("127.0.0.1:{}=127.0.0.1:{}", traps.port(at), node.port())]
    };
    let nat: Vec<String> = cluster.nodes.iter().enumerate().flat_map(rule).collect();
    follows_and_compares(cluster, &nat);
    traps.are_untouched();
}

/// Two make-believe nodes at addresses that nobody can reach (RFC 5737), and the tool, which is in step.
struct Scripted {
    nodes: [ScriptedTarget; 2],
    live: Live,
    tool: Tool,
    _dir: tempfile::TempDir,
}

impl Scripted {
    /// The first node answers with `error`, in which `{other}` is where the second one announces to be.
    fn new(error: ErrorRule, more: &[&str]) -> Self {
        let (ports, hosts) = (ClusterPorts::default(), ["198.51.100.1", "198.51.100.2"]);
        let announced = hosts.iter().map(|host| host.to_string()).collect();
        let identity = TargetIdentity { announced, ..TargetIdentity::default() }.in_cluster(&ports);
        let start = |errors| {
            let identity = identity.clone();
            ScriptedTarget::start(ScriptOptions { identity, errors, ..ScriptOptions::default() }).unwrap()
        };
        let second = start(Vec::new());
        let reply = error.reply.replace("{other}", &format!("{}:{}", hosts[1], second.port()));
        let first = start(vec![ErrorRule { reply, ..error }]);
        ports.lock().unwrap().extend([first.port(), second.port()]);
        let spec = Spec { seed: 5, flows_count: 1, ..Spec::of("string:60B=5").unwrap() };
        let live = Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let nat = hosts.map(|host| format!("{host}=127.0.0.1"));
        let args = [&["--target-nat", &nat[0], "--target-nat", &nat[1]], more].concat();
        let tool = Tool::start(binary(), live.port(), first.port(), &dir.path().join("log"), &args).unwrap();
        let mut this = Self { nodes: [first, second], live, tool, _dir: dir };
        until(&mut this.tool, "not in step", || this.live.is_acknowledged());
        this
    }
}

/// A key on the first of two nodes, and a node that sends it elsewhere so many times.
fn sends_elsewhere(reply: &str, times: u64) -> (String, ErrorRule) {
    let key = (0..).map(|i| format!("k{i}")).find(|key| slot(key.as_bytes()).0 < 8192).unwrap();
    let reply = reply.replace("{slot}", &slot(key.as_bytes()).to_string());
    let rule = ErrorRule { key: Some(key.as_bytes().to_vec()), times, ..ErrorRule::every("SET", &reply) };
    (key, rule)
}

#[test]
fn redirects_go_through_the_map() {
    // Once to the worker, once to who settles what the worker left.
    for reply in ["-ASK {slot} {other}", "-MOVED {slot} {other}"] {
        let (key, rule) = sends_elsewhere(reply, 2);
        let mut world = Scripted::new(rule, &[]);
        job::run(&world.live, &format!("SET {key} 1"));
        until(&mut world.tool, "not applied", || world.live.is_acknowledged());
        let set = world.nodes[1].received_of("SET").into_iter().filter(|set| set[1] == key.as_bytes());
        assert_eq!(set.count(), 1, "{reply}: {}", world.tool.said());
    }
}

#[test]
fn a_rule_makes_nobody_a_node_of_the_cluster() {
    let traps = Traps::new();
    let nat = format!("203.0.113.9=127.0.0.1:{}", traps.port(0)).replace("9=", "9:7000=");
    for reply in ["-ASK {slot} 203.0.113.9:7000", "-MOVED {slot} 203.0.113.9:7000"] {
        let (key, rule) = sends_elsewhere(reply, u64::MAX);
        let mut world = Scripted::new(rule, &["--target-nat", &nat]);
        job::run(&world.live, &format!("SET {key} 1"));
        assert_eq!(world.tool.wait(), Some(5), "{}", world.tool.said());
        assert!(world.tool.said().contains("no node of the cluster"), "{}", world.tool.said());
        assert!(!world.live.is_acknowledged());
    }
    traps.are_untouched();
}

#[test]
fn two_nodes_at_one_address_are_refused() {
    let Some(cluster) = cluster_at(ServerKind::Redis7, &LOCALHOST, &ServerOptions::default()) else { return };
    announce_names(&cluster);
    let gate = format!("{}:{}", name(0), cluster.nodes[0].port());
    let to = cluster.nodes[1].port();
    let mut nat = names_mapped(&cluster);
    nat.extend(["--target-nat".into(), format!("{gate}=127.0.0.1:{to}")]);
    let live =
        Live::start(Spec::of("string:60B=5").unwrap(), LiveOptions::default(), MasterOptions::default()).unwrap();
    let nat: Vec<&str> = nat.iter().map(String::as_str).collect();
    let run = common::migrate(live.port(), cluster.nodes[2].port(), &nat);
    run.expect_code(3).expect_text(&gate).expect_text(&name(1)).expect_text("--target-nat");
    assert_eq!(cluster.keys().unwrap().len(), 0);
}

fn has_ipv6() -> bool {
    let has = TcpListener::bind("[::1]:0").is_ok();
    if !has {
        eprintln!("skipped: this machine has no IPv6 loopback address (::1)");
    }
    has
}

/// Their redirects have no brackets.
fn at_ipv6(kind: ServerKind) -> Option<Cluster> {
    if !has_ipv6() {
        return None;
    }
    let cluster = cluster_at(kind, &["::1"; 3], &ServerOptions::default())?;
    let answer = cluster.nodes[0].client().unwrap().ask(&["GET", &key_on(1, "k")]).unwrap();
    let moved = format!(" ::1:{}", cluster.nodes[1].port());
    assert!(matches!(&answer, Reply::Error(text) if text.ends_with(&moved)), "{answer:?}");
    Some(cluster)
}

#[test]
fn a_cluster_at_ipv6_addresses_is_filled_and_followed() {
    let Some(cluster) = at_ipv6(ServerKind::Redis7) else { return };
    fills_and_follows(ServerKind::Redis7, Arc::new(cluster), &[]);
}

#[test]
fn redirects_to_ipv6_addresses_are_followed() {
    let Some(cluster) = at_ipv6(ServerKind::Redis7) else { return };
    follows_and_compares(cluster, &[]);
}

#[test]
fn redirects_of_valkey_to_ipv6_addresses_are_followed() {
    let Some(cluster) = at_ipv6(ServerKind::Valkey9) else { return };
    follows_and_compares(cluster, &[]);
}

#[test]
fn both_sides_at_ipv6_addresses() {
    if !has_ipv6() {
        return;
    }
    let Some(server) = common::server_with(ServerKind::Redis7, ServerOptions::default().at("::1")) else { return };
    let listen = MasterOptions { listen: "[::1]:0".into(), ..MasterOptions::default() };
    let live = Live::start(Spec::of("string:60B=50").unwrap(), LiveOptions::default(), listen).unwrap();
    let (source, target) = (format!("dragonfly://[::1]:{}", live.port()), url(&server));
    for job in ["migrate", "verify"] {
        let mut command = program(&[job, "--source", &source, "--target", &target, "--output", "json"]);
        command.args(["--progress", "off"]);
        let run = start(command).wait();
        run.expect_code(0);
        if job == "migrate" {
            assert_eq!(run.report["targets"][0]["address"], format!("[::1]:{}", server.port()));
        }
    }
    assert_eq!(server.client().unwrap().run("DBSIZE").unwrap().int(), Some(50));
}

/// What a node was told since the last call, but for what the tests tell it. TLS that was refused tells it nothing.
fn heard(node: &Server) -> Vec<String> {
    let mut client = node.client().unwrap();
    let stats = client.ask(&["INFO", "commandstats"]).unwrap().text().unwrap();
    client.run("CONFIG RESETSTAT").unwrap();
    let names = stats.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.split(':').next().map(str::to_owned));
    names
        .filter(|name| !["info", "ping", "config|resetstat", "config|set", "dbsize"].contains(&name.as_str()))
        .collect()
}

/// Each node's certificate bears nothing but the name that it announces, which leads to 127.0.0.1 by the map.
#[test]
fn certificates_must_bear_the_announced_names() {
    let certs = Certs::new();
    let cluster = match find_server(ServerKind::Redis7).and_then(|it| Cluster::start(&it, 3, false, certs.node())) {
        Ok(cluster) => cluster,
        Err(error @ (LabError::NoServer { .. } | LabError::ServerStart { .. })) => {
            return eprintln!("skipped: no server that speaks TLS here: {error}");
        }
        Err(error) => panic!("{error}"),
    };
    announce_names(&cluster);
    for node in 0..3 {
        // The first one is named by the operator, too.
        let names = [name(node), "localhost".into()];
        certs.another(&format!("node-{node}"), &names[..if node == 0 { 2 } else { 1 }]);
    }
    let show = |node: usize, of: usize| {
        let (cert, key) = (certs.path(&format!("node-{of}.pem")), certs.path(&format!("node-{of}.key")));
        cluster.nodes[node]
            .client()
            .unwrap()
            .run(&format!("CONFIG SET tls-cert-file {cert} tls-key-file {key}"))
            .unwrap();
    };
    (0..3).for_each(|node| show(node, node));
    let target = format!("rediss://localhost:{}", cluster.nodes[0].tls_port());
    let more = [names_mapped(&cluster), certs.to_target(), vec!["--target".into(), target]].concat();
    // Another node's certificate is none.
    show(1, 2);
    heard(&cluster.nodes[1]);
    let live =
        Live::start(Spec::of("string:60B=5").unwrap(), LiveOptions::default(), MasterOptions::default()).unwrap();
    let source = format!("dragonfly://127.0.0.1:{}", live.port());
    for job in ["migrate", "replicate", "verify"] {
        let mut command = program(&[job, "--source", &source, "--output", "json"]);
        command.args(["--progress", "off", "--connect-timeout", "2s"]).args(&more);
        if job != "verify" {
            command.args(["--retry-max", "1s"]);
        }
        let run = start(command).wait();
        run.expect_code(5).expect_text(&name(1)).expect_text(&name(2));
        assert_eq!(heard(&cluster.nodes[1]), [""; 0], "{job}");
    }
    show(1, 1);
    fills_and_follows(ServerKind::Redis7, Arc::new(cluster), &more);
}
