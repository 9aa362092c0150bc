//! One node of a cluster that refuses for a while, for every reason that it can have: the others go on, nothing behind what
//! was refused is applied, no position passes it, and the end is what the source holds, also where the tool is killed meanwhile.

mod common;
mod in_cluster;

use common::Stopped;
use common::clustered::{Clustered, key_on, node_of};
use common::job::{self, stop, until};
use df2redis::lab::client::Client;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::LiveOptions;
use df2redis::lab::servers::{ServerKind, ServerOptions};
use df2redis::lab::torture::Tool;
use df2redis::redis::slot::slot;
use in_cluster::InCluster;
use std::ops::Deref;
use std::path::PathBuf;

struct World(Clustered);

impl Deref for World {
    type Target = Clustered;

    fn deref(&self) -> &Clustered {
        &self.0
    }
}

impl World {
    fn new(mix: &str, options: LiveOptions) -> Option<Self> {
        // So that a file name can be set at which a dump fails.
        let nodes = ServerOptions::default().config("enable-protected-configs", "yes");
        let spec = Spec { seed: 9, flows_count: 2, ..Spec::of(mix).unwrap() };
        Clustered::new(false, nodes, spec, options).map(Self)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    fn start(&self) -> Tool {
        self.start_with(&[])
    }

    fn start_with(&self, more: &[&str]) -> Tool {
        let (socket, report) = (self.socket(), self.dir.path().join("report"));
        let args = ["--control", socket.to_str().unwrap(), "--report", report.to_str().unwrap()];
        self.start_by(0, &[&args, more].concat())
    }

    /// What holds the job back, as `df2redis status` says it.
    fn reasons(&self) -> String {
        job::reasons(&self.socket())
    }

    /// As `Clustered::finish`; and the report counts what was waited for.
    #[track_caller]
    fn finish(&self, tool: Tool) {
        self.0.finish(tool);
        let report = std::fs::read_to_string(self.dir.path().join("report/report.json")).unwrap();
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        assert!(report["counters"]["holds"].as_u64().unwrap() > 0, "{report:#}");
    }

    /// While `refuse` holds on a node and until `restore`: the others go on, nothing of what that node refused is passed by.
    #[track_caller]
    fn refused_for_a_while(&self, tool: &mut Tool, node: usize, code: &str, refuse: &[&str], restore: &[&str]) {
        self.wait_applied(tool);
        let mut client = self.client(node);
        let [list, number, text] = ["list", "n", "text"].map(|family| key_on(node, &format!("{code}{node}-{family}")));
        refuse.iter().for_each(|line| drop(client.run(line).unwrap()));
        self.run(&format!("SET {text} first"));
        self.run(&format!("RPUSH {list} a"));
        for i in 0..50 {
            self.run(&format!("INCR {number}"));
            self.run(&format!("RPUSH {list} {i}"));
            (0..3).for_each(|other| self.run(&format!("INCR {}", key_on(other, &format!("{code}{node}-other")))));
        }
        self.run(&format!("SET {text} second"));
        let others = (0..3).filter(|other| *other != node);
        for other in others {
            let (key, mut client) = (key_on(other, &format!("{code}{node}-other")), self.client(other));
            until(tool, "the others do not go on", || {
                client.run(&format!("GET {key}")).unwrap().text().as_deref() == Some("50")
            });
        }
        until(tool, "it does not say why", || self.reasons().contains(code));
        // Positions stand still before what was refused: the source still has it for the next start.
        assert!(!self.live.is_acknowledged(), "{}", tool.said());
        for key in [&list, &number, &text] {
            assert_eq!(client.run(&format!("EXISTS {key}")).unwrap().int(), Some(0), "{code}: {key}");
        }
        restore.iter().for_each(|line| drop(client.run(line).unwrap()));
        self.wait_applied(tool);
    }
}

/// While a node does nothing for the tool, as `refuse` makes it, and until `restore`, on a connection that was there before:
/// it is named with `code`, and nothing of what is meant for it is passed by.
#[track_caller]
fn cut_off_for_a_while(world: &World, tool: &mut Tool, node: usize, code: &str, refuse: &[&str], restore: &[&str]) {
    world.wait_applied(tool);
    let mut client = world.client(node);
    let word = code.split(' ').next().unwrap();
    let [list, number] = ["list", "n"].map(|family| key_on(node, &format!("{word}{node}-{family}")));
    refuse.iter().for_each(|line| drop(client.run(line).unwrap()));
    for i in 0..50 {
        world.run(&format!("INCR {number}"));
        world.run(&format!("RPUSH {list} {i}"));
        (0..3).for_each(|other| world.run(&format!("INCR {}", key_on(other, &format!("{word}{node}-other")))));
    }
    until(tool, "it does not say why", || {
        std::fs::read_to_string(world.log()).unwrap_or_default().contains(code) || world.reasons().contains(code)
    });
    assert!(!world.live.is_acknowledged(), "{}", tool.said());
    restore.iter().for_each(|line| drop(client.run(line).unwrap()));
    world.wait_applied(tool);
}

/// Connections that are made again must log in again, and may find no room.
#[test]
fn a_node_that_takes_no_connection_is_named_and_waited_for() {
    let Some(world) = World::new("string:60B=30", LiveOptions::default()) else { return };
    let mut tool = world.start();
    const KILL: &str = "CLIENT KILL TYPE normal SKIPME yes";
    let locked = ["CONFIG SET requirepass x", KILL];
    cut_off_for_a_while(&world, &mut tool, 1, "NOAUTH", &locked, &["ACL SETUSER default nopass"]);
    let few = ["CONFIG SET maxclients 1", KILL];
    cut_off_for_a_while(&world, &mut tool, 2, "max number of clients", &few, &["CONFIG SET maxclients 1000"]);
    world.0.finish(tool);
}

/// The password is changed at one node, and its connections are closed, as whoever rolls a new one out does.
#[test]
fn a_node_with_another_password_is_named_and_waited_for() {
    let Some(world) = World::new("string:60B=30", LiveOptions::default()) else { return };
    let [password, config] = ["password", "config.toml"].map(|name| world.dir.path().join(name));
    std::fs::write(&password, "first").unwrap();
    let user = format!("target-user = \"mover\"\ntarget-password-file = \"{}\"\n", password.display());
    std::fs::write(&config, user).unwrap();
    (0..3).for_each(|node| drop(world.client(node).run("ACL SETUSER mover on >first ~* &* +@all").unwrap()));
    let mut tool = world.start_with(&["--config", config.to_str().unwrap()]);
    let changed = ["ACL SETUSER mover >second <first", "CLIENT KILL USER mover"];
    let words = "answered AUTH with \"WRONGPASS\"";
    cut_off_for_a_while(&world, &mut tool, 1, words, &changed, &["ACL SETUSER mover >first <second"]);
    world.0.finish(tool);
}

/// Its address is somebody else's now, or its password another one; the job's cluster is known, and has no need of it.
#[test]
fn a_named_node_that_lets_nobody_in_is_passed_by() {
    let spec = Spec { seed: 9, flows_count: 2, ..Spec::of("string:60B=30").unwrap() };
    let Some(world) = Clustered::new(true, ServerOptions::default(), spec, LiveOptions::default()) else { return };
    let replica = 3;
    let mut tool = world.start_by(replica, &["--retry-max", "10s"]);
    world.wait_applied(&mut tool);
    let mut client = world.client(replica);
    client.run("CONFIG SET requirepass other").unwrap();
    client.run("CLIENT KILL TYPE normal SKIPME yes").unwrap();
    let partials = world.live.partial_count();
    world.live.master().unwrap().cut_all();
    (0..3).for_each(|node| world.run(&format!("INCR {}", key_on(node, "n"))));
    until(&mut tool, "no session is begun anew", || world.live.partial_count() > partials);
    // Another control connection.
    world.run("FLUSHALL");
    (0..3).for_each(|node| world.run(&format!("INCR {}", key_on(node, "n"))));
    world.wait_applied(&mut tool);
    job::stop(&mut tool);
    client.run("ACL SETUSER default nopass").unwrap();
    world.compare(&tool);
}

/// The source goes, too, with the workers' connections or without: a session that begins meanwhile waits as one does that runs.
#[test]
fn a_session_that_begins_while_a_node_has_another_password_waits() {
    for lanes_stay in [true, false] {
        let Some(world) = World::new("string:60B=30", LiveOptions::default()) else { return };
        let config = world.least_user("");
        let mut tool = world.start_with(&["--config", config.to_str().unwrap()]);
        world.wait_applied(&mut tool);
        let mut client = world.client(1);
        client.run("ACL SETUSER df2redis >second <secret").unwrap();
        if !lanes_stay {
            client.run("CLIENT KILL USER df2redis").unwrap();
        }
        let registrations = world.live.registrations_count();
        world.live.master().unwrap().cut_all();
        // It is told every 5 seconds.
        until(&mut tool, "it does not say why", || {
            let said = std::fs::read_to_string(world.log()).unwrap_or_default();
            let gone = said.find("the source is gone");
            gone.is_some_and(|at| said[at..].contains("holding") && said[at..].contains("WRONGPASS"))
        });
        assert_eq!(world.live.registrations_count(), registrations, "{}", tool.said());
        (0..5).for_each(|_| world.run(&format!("INCR {}", key_on(1, "n"))));
        assert!(!world.live.is_acknowledged());
        client.run("ACL SETUSER df2redis >secret <second").unwrap();
        world.wait_applied(&mut tool);
        assert_eq!(world.live.partial_count(), 1, "{}", tool.said());
        world.0.finish(tool);
    }
}

/// A script that does not end by itself: every command but few is refused.
#[test]
fn a_node_that_is_busy_with_a_script_is_waited_for() {
    let Some(world) = World::new("string:60B=30", LiveOptions::default()) else { return };
    let mut tool = world.start();
    for node in 0..3 {
        world.wait_applied(&mut tool);
        let (mut admin, mut endless) = (world.client(node), world.client(node));
        admin.run("CONFIG SET busy-reply-threshold 50").unwrap();
        let script = std::thread::spawn(move || drop(endless.ask(&["EVAL", "while true do end", "0"])));
        until(&mut tool, "no script runs", || admin.run("PING").is_err());
        let number = key_on(node, &format!("busy{node}"));
        (0..50).for_each(|_| world.run(&format!("INCR {number}")));
        until(&mut tool, "it does not say why", || world.reasons().contains("BUSY"));
        assert!(!world.live.is_acknowledged(), "{}", tool.said());
        admin.run("SCRIPT KILL").unwrap();
        script.join().unwrap();
        world.wait_applied(&mut tool);
        assert_eq!(admin.run(&format!("GET {number}")).unwrap().text().as_deref(), Some("50"));
    }
    world.finish(tool);
}

/// How often a node answered so, whoever asked.
fn errors(world: &World, node: usize, class: &str) -> u64 {
    let stats = world.client(node).ask(&["INFO", "errorstats"]).unwrap().text().unwrap();
    let of = format!("errorstat_{class}:count=");
    stats.lines().find_map(|line| line.trim_end().strip_prefix(&of)?.parse().ok()).unwrap_or(0)
}

/// Its owner gives a slot up (`cluster-require-full-coverage` is on): it answers CLUSTERDOWN to everything, and the others still
/// send everybody to it.
#[test]
fn a_node_that_says_that_the_cluster_is_down_is_named_and_waited_for() {
    let Some(world) = World::new("string:60B=30", LiveOptions::default()) else { return };
    let mut tool = world.start();
    for node in 0..3 {
        world.wait_applied(&mut tool);
        let [list, number] = ["list", "n"].map(|family| key_on(node, &format!("down{node}-{family}")));
        let slot = slot(number.as_bytes());
        let mut client = world.client(node);
        client.run("CONFIG RESETSTAT").unwrap();
        client.run(&format!("CLUSTER DELSLOTS {slot}")).unwrap();
        for i in 0..50 {
            world.run(&format!("INCR {number}"));
            world.run(&format!("RPUSH {list} {i}"));
        }
        until(&mut tool, "it was not told so", || errors(&world, node, "CLUSTERDOWN") > 0);
        let place = format!("127.0.0.1:{}", world.cluster.nodes[node].port());
        until(&mut tool, "it does not say why", || {
            let reasons = world.reasons();
            reasons.contains("CLUSTERDOWN") && reasons.contains(&place)
        });
        assert!(!world.live.is_acknowledged(), "{}", tool.said());
        client.run(&format!("CLUSTER ADDSLOTS {slot}")).unwrap();
        world.wait_applied(&mut tool);
        until(&mut tool, "it still says so", || !world.reasons().contains("CLUSTERDOWN"));
        assert_eq!(client.run(&format!("GET {number}")).unwrap().text().as_deref(), Some("50"));
    }
    world.0.finish(tool);
}

/// A primary without a replica stands still until the others call it failed: they answer CLUSTERDOWN then.
#[test]
fn a_cluster_that_is_down_for_want_of_a_primary_is_waited_for() {
    let Some(world) = World::new("string:60B=30", LiveOptions::default()) else { return };
    for node in 0..3 {
        world.client(node).run("CONFIG SET cluster-node-timeout 2000").unwrap();
    }
    let mut tool = world.start();
    world.wait_applied(&mut tool);
    (0..3).for_each(|node| drop(world.client(node).run("CONFIG RESETSTAT").unwrap()));
    let numbers = [0, 1, 2].map(|node| key_on(node, "want"));
    let stopped = Stopped::new(&world.cluster.nodes[1]);
    let state = |node: usize| world.client(node).run("CLUSTER INFO").unwrap().text().unwrap();
    until(&mut tool, "nobody calls it failed", || {
        [0, 2].iter().all(|node| state(*node).contains("cluster_state:fail"))
    });
    for _ in 0..50 {
        numbers.iter().for_each(|number| world.run(&format!("INCR {number}")));
    }
    until(&mut tool, "it was not told so", || errors(&world, 0, "CLUSTERDOWN") + errors(&world, 2, "CLUSTERDOWN") > 0);
    let place = format!("127.0.0.1:{}", world.cluster.nodes[1].port());
    // Whatever it needs first: the one that is away, or one that says so.
    until(&mut tool, "it does not say why", || {
        let reasons = world.reasons();
        reasons.contains(&place) || reasons.contains("CLUSTERDOWN")
    });
    assert!(!world.live.is_acknowledged(), "{}", tool.said());
    drop(stopped);
    world.wait_applied(&mut tool);
    for (node, number) in numbers.iter().enumerate() {
        assert_eq!(world.client(node).run(&format!("GET {number}")).unwrap().text().as_deref(), Some("50"));
    }
    world.0.finish(tool);
}

const FULL: [&[&str]; 2] = [&["CONFIG SET maxmemory 1"], &["CONFIG SET maxmemory 0"]];

#[test]
fn a_node_without_memory_is_waited_for_while_the_others_go_on() {
    let Some(world) = World::new("string:60B=30", LiveOptions::default()) else { return };
    let mut tool = world.start();
    for node in 0..3 {
        world.refused_for_a_while(&mut tool, node, "OOM", FULL[0], FULL[1]);
    }
    world.finish(tool);
}

#[test]
fn every_refusal_of_a_node_is_waited_for() {
    let Some(world) = World::new("string:60B=30", LiveOptions::default()) else { return };
    let mut tool = world.start();
    // A dump that cannot take its place.
    let blocked = world.cluster.nodes[1].dir().join("blocked.rdb/x");
    std::fs::create_dir_all(&blocked).unwrap();
    world.wait_applied(&mut tool);
    let mut client = world.client(1);
    client.run("CONFIG SET dbfilename blocked.rdb").unwrap();
    client.ask(&["CONFIG", "SET", "save", "3600 100000"]).unwrap();
    client.run("BGSAVE").unwrap();
    until(&mut tool, "the dump does not fail", || {
        client.info("rdb_last_bgsave_status").unwrap().as_deref() == Some("err")
    });
    world.refused_for_a_while(&mut tool, 1, "MISCONF", &[], &["CONFIG SET stop-writes-on-bgsave-error no"]);
    let few = ["CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"];
    world.refused_for_a_while(&mut tool, 2, "NOREPLICAS", &few[..1], &few[1..]);
    let denied = ["ACL SETUSER default -set -rpush -incr", "ACL SETUSER default +@all"];
    world.refused_for_a_while(&mut tool, 0, "NOPERM", &denied[..1], &denied[1..]);
    world.finish(tool);
}

/// Killed while it holds, the tool begins where nothing was passed.
#[test]
fn a_kill_while_a_node_refuses_loses_and_doubles_nothing() {
    let Some(world) = World::new("string:60B=30", LiveOptions::default()) else { return };
    let mut tool = world.start();
    world.wait_applied(&mut tool);
    let checkpoint = node_of("df2redis:checkpoint");
    for node in 0..3 {
        let mut client = world.client(node);
        client.run(FULL[0][0]).unwrap();
        for i in 0..40 {
            for other in 0..3 {
                world.run(&format!("RPUSH {} {i}", key_on(other, "list")));
                world.run(&format!("APPEND {} <{i}>", key_on(other, "text")));
            }
        }
        until(&mut tool, "it does not hold", || tool_said_holding(&world));
        tool.kill();
        // A node without memory takes no checkpoint of a start either.
        if node == checkpoint {
            client.run(FULL[1][0]).unwrap();
        }
        tool = world.start();
        if node != checkpoint {
            until(&mut tool, "it does not hold again", || tool_said_holding(&world));
            client.run(FULL[1][0]).unwrap();
        }
        world.wait_applied(&mut tool);
    }
    world.0.finish(tool);
}

fn tool_said_holding(world: &World) -> bool {
    // A start finds it before anything is written.
    ["the target refuses: holding", "holding: the target cannot yet"].into_iter().any(|words| tool_said(world, words))
}

fn tool_said(world: &World, words: &str) -> bool {
    std::fs::read_to_string(world.log()).unwrap_or_default().contains(words)
}

/// In the full sync, with lists in pieces that must come in their order.
#[test]
fn a_node_without_memory_is_waited_for_in_the_full_sync() {
    let options = LiveOptions { snapshot_bytes_per_s: Some(400_000), ..LiveOptions::default() };
    let Some(world) = World::new("string:200B=3000,list:3000x200=3", options) else { return };
    let mut tool = world.start();
    let mut clients: Vec<Client> = (0..3).map(|node| world.client(node)).collect();
    let mut keys = |node: usize| clients[node].run("DBSIZE").unwrap().int().unwrap();
    until(&mut tool, "nothing arrives", || keys(1) > 50);
    let mut client = world.client(1);
    client.run(FULL[0][0]).unwrap();
    until(&mut tool, "it does not hold", || world.reasons().contains("OOM"));
    let (before, others) = (keys(1), keys(0) + keys(2));
    until(&mut tool, "the others do not go on", || keys(0) + keys(2) > others + 50);
    assert_eq!(keys(1), before);
    client.run(FULL[1][0]).unwrap();
    world.finish(tool);
}

/// A session, or a new process, that begins while nobody has a slot (a replica is about to take over) waits for it.
#[test]
fn a_session_that_begins_while_a_slot_has_no_node_waits_for_one() {
    let Some(world) = World::new("string:60B=30", LiveOptions::default()) else { return };
    let mut tool = world.start();
    world.wait_applied(&mut tool);
    let slot = slot(key_on(1, "n").as_bytes());
    let lose = || {
        // Whoever has it first, so that nobody else hears of it again.
        [1, 0, 2]
            .into_iter()
            .for_each(|node| drop(world.client(node).run(&format!("CLUSTER DELSLOTS {slot}")).unwrap()));
    };
    let found = || {
        world.client(1).run(&format!("CLUSTER ADDSLOTS {slot}")).unwrap();
        world.run(&format!("INCR {}", key_on(1, "n")));
    };
    let registrations = world.live.registrations_count();
    lose();
    world.live.master().unwrap().cut_all();
    until(&mut tool, "it does not wait", || tool_said(&world, &format!("nobody has {slot}")));
    assert_eq!(world.live.registrations_count(), registrations, "{}", tool.said());
    found();
    world.wait_applied(&mut tool);
    stop(&mut tool);
    lose();
    let mut tool = world.start();
    until(&mut tool, "it does not wait", || tool_said(&world, "does not serve all slots: waiting"));
    found();
    world.0.finish(tool);
    assert_eq!((world.live.registrations_count(), world.live.partial_count()), (3, 2));
}

/// What a lost connection had sent was executed, and the node does not say so: that is no "no".
#[test]
fn a_node_that_refuses_to_say_what_was_applied_is_asked_until_it_says() {
    let Some(mut world) = InCluster::with(ServerKind::Redis7, &[]) else { return };
    let at = (0..3).find(|node| *node != node_of("df2redis:checkpoint")).unwrap();
    let [number, list] = ["n", "list"].map(|family| key_on(at, family));
    let run = |world: &InCluster, line: &str| common::job::run(&world.live, line);
    let mut node = world.cluster.nodes[at].client().unwrap();
    run(&world, &format!("INCR {number}"));
    world.wait_acknowledged();
    world.proxies[at].set_replies_paused(true);
    (0..5).for_each(|i| {
        run(&world, &format!("INCR {number}"));
        run(&world, &format!("RPUSH {list} {i}"));
    });
    // At least one transaction was executed, and nobody has heard of it.
    world.wait_at_target(&format!("EXISTS {list}"), |answer| answer.int() == Some(1));
    let refused = |node: &mut Client| {
        let text = node.run("INFO errorstats").unwrap().text().unwrap();
        text.lines().find_map(|line| line.strip_prefix("errorstat_NOPERM:count=")?.trim_end().parse().ok()).unwrap_or(0)
    };
    let before: u64 = refused(&mut node);
    node.run("ACL SETUSER default -get").unwrap();
    world.proxies[at].drop_all();
    world.proxies[at].set_replies_paused(false);
    until(&mut world.tool, "it does not ask", || refused(&mut node) > before);
    assert!(!world.live.is_acknowledged());
    node.run("ACL SETUSER default +get").unwrap();
    world.stops_equal();
}
