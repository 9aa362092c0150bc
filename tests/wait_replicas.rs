//! `--wait-replicas`: no position is told of what the target's replicas have not confirmed, so whoever takes over lacks nothing
//! below it; the job holds meanwhile, says so, and goes on.

mod common;

use common::{Contents, FlowBytes, Hand, contents, migrate, migrate_command, server_with, start};
use df2redis::lab::LabError;
use df2redis::lab::client::Client;
use df2redis::lab::cluster::Cluster;
use df2redis::lab::encode::owner;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::proxy::{Faulty, Proxy};
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::{Tool, compare, tool_binary, wait_for};
use df2redis::redis::slot::slot;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::LazyLock;
use std::time::Duration;

static TOOL: LazyLock<PathBuf> = LazyLock::new(|| tool_binary(env!("CARGO_BIN_EXE_df2redis")));

/// A server and its replica, in step.
fn pair(kind: ServerKind) -> Option<[Server; 2]> {
    let options = || ServerOptions::default().config("repl-diskless-sync-delay", "0");
    let (primary, replica) = (server_with(kind, options())?, server_with(kind, options())?);
    let mut client = replica.client().unwrap();
    client.run(&format!("REPLICAOF 127.0.0.1 {}", primary.port())).unwrap();
    let linked = wait_for(|| (client.info("master_link_status").ok()?.as_deref() == Some("up")).then_some(()));
    assert!(linked.is_some(), "the replica is not linked");
    let mut client = primary.client().unwrap();
    let online = wait_for(|| client.info("slave0").ok()??.contains("state=online").then_some(()));
    assert!(online.is_some(), "the replica is not in step");
    Some([primary, replica])
}

/// Sends a signal to a server: STOP, CONT.
fn signal(server: &Server, name: &str) {
    Command::new("kill").args([&format!("-{name}"), &server.pid().unwrap().to_string()]).status().unwrap();
}

fn run(live: &Live, line: &str) {
    let args: Vec<Vec<u8>> = line.split(' ').map(|word| word.as_bytes().to_vec()).collect();
    live.world().run(0, &args);
}

#[track_caller]
fn until(tool: &mut Tool, what: &str, mut done: impl FnMut() -> bool) {
    let reached = wait_for(|| {
        assert_eq!(tool.ended(), None, "{}", tool.said());
        done().then_some(())
    });
    assert!(reached.is_some(), "{what}:\n{}", tool.said());
}

/// A job from a live source, with its control socket.
struct Job {
    live: Live,
    tool: Tool,
    dir: tempfile::TempDir,
}

impl Job {
    fn start(live: Live, target_port: u16, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (log, socket, report) =
            (dir.path().join("tool.log"), dir.path().join("job.sock"), dir.path().join("report"));
        let mut args = vec!["--control", socket.to_str().unwrap(), "--report", report.to_str().unwrap()];
        args.extend_from_slice(&["--log", "info"]);
        args.extend_from_slice(more);
        let tool = Tool::start(&TOOL, live.port(), target_port, &log, &args).unwrap();
        Self { live, tool, dir }
    }

    fn ask(&self, args: &[&str]) -> Output {
        let socket = self.dir.path().join("job.sock");
        Command::new(&*TOOL).args(args).args(["--output", "json", "--control"]).arg(socket).output().unwrap()
    }

    fn status(&self) -> serde_json::Value {
        let answer: serde_json::Value = serde_json::from_slice(&self.ask(&["status"]).stdout).unwrap_or_default();
        answer["status"].clone()
    }

    #[track_caller]
    fn wait_acknowledged(&mut self) {
        let Self { live, tool, .. } = self;
        until(tool, "not acknowledged", || live.is_acknowledged());
    }

    #[track_caller]
    fn wait_held(&mut self) {
        let reached = wait_for(|| {
            assert_eq!(self.tool.ended(), None, "{}", self.tool.said());
            self.status()["throttle"]["reasons"].to_string().contains("0 of 1 replicas").then_some(())
        });
        assert!(reached.is_some(), "status does not say why: {}\n{}", self.status(), self.tool.said());
    }

    #[track_caller]
    fn stop(&mut self) -> serde_json::Value {
        self.tool.signal("INT");
        assert_eq!(self.tool.wait(), Some(130), "{}", self.tool.said());
        let report = std::fs::read_to_string(self.dir.path().join("report/report.json")).unwrap();
        serde_json::from_str(&report).unwrap()
    }

    #[track_caller]
    fn assert_equal(&self, server: &Server) {
        self.assert_equal_to(server, ServerKind::Redis7);
    }

    #[track_caller]
    fn assert_equal_to(&self, server: &Server, kind: ServerKind) {
        let truth = self.dir.path().join("truth.jsonl");
        self.live.write_truth(&truth).unwrap();
        compare(server, kind, &truth).unwrap_or_else(|text| panic!("{text}\n{}", self.tool.said()));
    }

    /// By flow: the largest LSN that was acknowledged so far.
    fn acknowledged(&self) -> Vec<u64> {
        let mut last = vec![0; 2];
        for ack in self.live.master().unwrap().acks_log() {
            last[ack.flow] = ack.lsn.max(last[ack.flow]);
        }
        last
    }
}

fn live() -> Live {
    let spec = Spec { seed: 3, flows_count: 2, ..Spec::of("string:60B=50,list:6x9=10").unwrap() };
    Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap()
}

fn position(client: &mut Client, flow: u32) -> u64 {
    let text = client.ask(&["HGET", "df2redis:checkpoint", &format!("lsn:{flow}")]).unwrap().text();
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[test]
fn a_replica_that_stands_still_holds_the_positions() {
    for kind in [ServerKind::Redis7, ServerKind::Valkey9] {
        let Some([mut primary, replica]) = pair(kind) else { continue };
        let mut job = Job::start(live(), primary.port(), &["--wait-replicas", "1:300ms"]);
        run(&job.live, "SET begin v");
        job.wait_acknowledged();
        let mut client = primary.client().unwrap();
        signal(&replica, "STOP");
        let acknowledged = job.acknowledged();
        for i in 0..200 {
            run(&job.live, &format!("INCR n:{}", i % 7));
            run(&job.live, &format!("RPUSH list:{} {i}", i % 5));
        }
        job.wait_held();
        // While it holds nothing more goes to the target, and the source is told of nothing.
        let applied = [0, 1].map(|flow| position(&mut client, flow));
        for i in 0..200 {
            run(&job.live, &format!("INCR n:{}", i % 7));
        }
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!([0, 1].map(|flow| position(&mut client, flow)), applied);
        assert_eq!(job.acknowledged(), acknowledged, "{}", job.tool.said());
        assert_eq!(job.status()["in_step"], false, "{}", job.status());
        signal(&replica, "CONT");
        job.wait_acknowledged();
        let keys = client.run("KEYS df2redis:replicas*").unwrap();
        assert_eq!(keys.array().unwrap().len(), 0);
        // What was acknowledged is at the replica, with the position.
        primary.kill();
        let mut client = replica.client().unwrap();
        client.run("REPLICAOF NO ONE").unwrap();
        for (flow, lsn) in job.live.world().next_lsns().into_iter().enumerate() {
            assert_eq!(position(&mut client, flow as u32), lsn);
        }
        if kind == ServerKind::Redis7 {
            job.assert_equal(&replica);
        }
    }
}

/// From the first position on: the checkpoint is not called good before the replica has the snapshot.
#[test]
fn a_replica_that_stands_still_in_the_full_sync_is_waited_for() {
    let Some([primary, replica]) = pair(ServerKind::Redis7) else { return };
    signal(&replica, "STOP");
    let mut job = Job::start(live(), primary.port(), &["--wait-replicas", "1:200ms"]);
    job.wait_held();
    let mut client = primary.client().unwrap();
    assert_eq!(client.run("HGET df2redis:checkpoint phase").unwrap().text().as_deref(), Some("full"));
    signal(&replica, "CONT");
    until(&mut job.tool, "the checkpoint is not called good", || {
        client.run("HGET df2redis:checkpoint phase").unwrap().text().as_deref() == Some("stable")
    });
    let reached = wait_for(|| (job.status()["in_step"] == true).then_some(()));
    assert!(reached.is_some(), "{}\n{}", job.status(), job.tool.said());
    // The flows stand before the flush until the replica has it, too; meanwhile the job goes on saying where it stands.
    signal(&replica, "STOP");
    run(&job.live, "FLUSHALL");
    run(&job.live, "SET after v");
    let mut said: Vec<u64> = Vec::new();
    let answered = wait_for(|| {
        let status = job.status();
        let is_held = status["flows"].as_array().unwrap().iter().all(|flow| flow["state"] == "at barrier");
        said.extend(status["elapsed_ms"].as_u64().filter(|_| is_held));
        (said.last()? > &(said.first()? + 1000)).then_some(())
    });
    assert!(answered.is_some(), "{said:?}\n{}", job.tool.said());
    signal(&replica, "CONT");
    job.wait_acknowledged();
    let report = job.stop();
    assert!(report["counters"]["holds"].as_u64().unwrap() > 0, "{report}");
    job.assert_equal(&primary);
    assert_eq!(replica.client().unwrap().run("GET after").unwrap().text().as_deref(), Some("v"));
}

#[test]
fn a_target_without_replicas_is_refused_at_the_start() {
    let Some(server) = server_with(ServerKind::Redis7, ServerOptions::default()) else { return };
    let mut flow = FlowBytes::new();
    flow.string(b"k", b"v");
    let master = Hand::new(vec![flow]).start();
    let run = migrate(master.port(), server.port(), &["--wait-replicas", "1"]);
    run.expect_code(3).expect_text("has 0 replicas in step").expect_text("--wait-replicas");
    assert_eq!(server.client().unwrap().run("DBSIZE").unwrap().int(), Some(0));
}

#[test]
fn a_migration_ends_when_the_replica_has_everything() {
    let Some([primary, replica]) = pair(ServerKind::Redis7) else { return };
    let mut flow = FlowBytes::new();
    let mut truth = Contents::new();
    for i in 0..500 {
        let key = format!("k:{i}");
        flow.string(key.as_bytes(), b"v");
        truth.insert((0, key.into_bytes()), ("string".to_owned(), vec![b"v".to_vec()]));
    }
    let master = Hand::new(vec![flow]).start();
    signal(&replica, "STOP");
    let mut running = start(migrate_command(master.port(), primary.port(), &["--wait-replicas", "1:200ms"]));
    let mut client = primary.client().unwrap();
    assert!(wait_for(|| (client.run("EXISTS k:499").ok()?.int() == Some(1)).then_some(())).is_some());
    std::thread::sleep(Duration::from_millis(1000));
    assert!(running.is_running(), "it did not wait");
    signal(&replica, "CONT");
    running.wait().expect_code(0);
    // Of the tool's own keys none is left, at the replica either.
    assert_eq!(contents(&mut replica.client().unwrap()), truth);
    signal(&replica, "STOP");
    let more = ["--wait-replicas", "1:200ms", "--retry-max", "2s", "--on-existing", "replace"];
    let run = migrate(master.port(), primary.port(), &more);
    run.expect_code(5).expect_text("0 of 1 replicas have confirmed").expect_text("--retry-max");
}

#[test]
fn a_hold_for_replicas_ends_with_the_limit() {
    let Some([primary, replica]) = pair(ServerKind::Redis7) else { return };
    let mut job = Job::start(live(), primary.port(), &["--wait-replicas", "1:200ms", "--retry-max", "2s"]);
    run(&job.live, "SET begin v");
    job.wait_acknowledged();
    signal(&replica, "STOP");
    run(&job.live, "SET k v");
    assert_eq!(job.tool.wait(), Some(5), "{}", job.tool.said());
    assert!(job.tool.said().contains("0 of 1 replicas have confirmed"), "{}", job.tool.said());
    assert!(!job.live.is_acknowledged());
}

#[test]
fn a_cutover_hands_over_only_what_the_replica_has() {
    let Some([primary, replica]) = pair(ServerKind::Redis7) else { return };
    let mut job = Job::start(live(), primary.port(), &["--wait-replicas", "1:200ms"]);
    until(&mut job.tool, "not in step", || {
        let socket = job.dir.path().join("job.sock");
        let args = ["status", "--output", "json", "--control", socket.to_str().unwrap()];
        let output = Command::new(&*TOOL).args(args).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains("\"in_step\":true")
    });
    run(&job.live, "SET before v");
    job.wait_acknowledged();
    signal(&replica, "STOP");
    // Before the fence, and then not before it is let go.
    run(&job.live, "SET late v");
    let missed = job.ask(&["cutover", "--execute", "--budget", "2s", "--wait", "2s"]);
    assert_eq!(missed.status.code(), Some(9), "{missed:?}\n{}", job.tool.said());
    assert_eq!(job.tool.ended(), None);
    signal(&replica, "CONT");
    job.wait_acknowledged();
    let done = job.ask(&["cutover", "--execute", "--budget", "60s", "--wait", "60s"]);
    assert_eq!(done.status.code(), Some(0), "{done:?}\n{}", job.tool.said());
    assert_eq!(job.tool.wait(), Some(0), "{}", job.tool.said());
    assert_eq!(replica.client().unwrap().run("GET late").unwrap().text().as_deref(), Some("v"));
    job.assert_equal(&primary);
}

/// What a name in front of one server makes of a failover: the old one is killed, the heir has the address.
fn take_over(proxy: &Proxy, primary: &mut Server, heir: &Server) {
    primary.kill();
    heir.client().unwrap().run("REPLICAOF NO ONE").unwrap();
    proxy.set_server(heir.port());
    proxy.drop_all();
}

fn write_some(live: &Live, from: u64) {
    for n in from..from + 60 {
        run(live, &format!("INCR n:{}", n % 7));
        run(live, &format!("RPUSH list:{} {n}", n % 5));
        run(live, &format!("APPEND text:{} <{n}>", n % 3));
    }
}

/// Whoever takes over the address of one server holds data and position of one moment, and with `--wait-replicas` no earlier one than
/// what was acknowledged.
#[test]
fn the_replica_behind_one_address_takes_over() {
    for kind in [ServerKind::Redis7, ServerKind::Valkey9] {
        let Some([mut primary, heir]) = pair(kind) else { continue };
        let proxy = Proxy::start(primary.port(), |_| Faulty::default()).unwrap();
        let mut job = Job::start(live(), proxy.port(), &["--wait-replicas", "1:300ms"]);
        write_some(&job.live, 0);
        job.wait_acknowledged();
        let resumable = wait_for(|| (job.status()["resumable"] == true).then_some(()));
        assert!(resumable.is_some(), "{}\n{}", job.status(), job.tool.said());
        let (before, partials) = (job.live.master().unwrap().requests().len(), job.live.partial_count());
        write_some(&job.live, 60);
        let acknowledged = job.acknowledged();
        take_over(&proxy, &mut primary, &heir);
        write_some(&job.live, 120);
        let Some(third) = server_with(kind, ServerOptions::default()) else { return };
        third.client().unwrap().run(&format!("REPLICAOF 127.0.0.1 {}", heir.port())).unwrap();
        job.wait_acknowledged();
        assert!(job.live.partial_count() > partials, "{}", job.tool.said());
        for (flow, lsn) in asked_from(&job, before) {
            assert!(lsn >= acknowledged[flow], "flow {flow}: {lsn} of {acknowledged:?}\n{}", job.tool.said());
        }
        job.stop();
        job.assert_equal_to(&heir, kind);
    }
}

/// Without it the heir may lag: the job goes on from where that one stands, by a partial sync.
#[test]
fn a_replica_behind_one_address_that_lags_takes_over() {
    for kind in [ServerKind::Redis7, ServerKind::Valkey9] {
        let Some([mut primary, heir]) = pair(kind) else { continue };
        let proxy = Proxy::start(primary.port(), |_| Faulty::default()).unwrap();
        let mut job = Job::start(live(), proxy.port(), &[]);
        write_some(&job.live, 0);
        job.wait_acknowledged();
        let resumable = wait_for(|| (job.status()["resumable"] == true).then_some(()));
        assert!(resumable.is_some(), "{}\n{}", job.status(), job.tool.said());
        let (mut of_primary, mut of_heir) = (primary.client().unwrap(), heir.client().unwrap());
        let at = |client: &mut Client| [0, 1].map(|flow| position(client, flow));
        let met = wait_for(|| (at(&mut of_primary) == at(&mut of_heir)).then_some(()));
        assert!(met.is_some(), "the replica does not come so far");
        // It can no longer log in.
        of_heir.run("CONFIG SET masteruser nobody").unwrap();
        of_heir.run("CONFIG SET masterauth x").unwrap();
        of_primary.run("CLIENT KILL TYPE replica").unwrap();
        until(&mut job.tool, "the replica is still linked", || {
            of_heir.info("master_link_status").unwrap().as_deref() == Some("down")
        });
        write_some(&job.live, 60);
        job.wait_acknowledged();
        let (lags, acknowledged) = (at(&mut of_heir), job.acknowledged());
        assert!(lags.iter().zip(&acknowledged).any(|(lags, acked)| lags < acked), "{lags:?} of {acknowledged:?}");
        let (before, partials) = (job.live.master().unwrap().requests().len(), job.live.partial_count());
        take_over(&proxy, &mut primary, &heir);
        write_some(&job.live, 120);
        until(&mut job.tool, "no session is begun anew", || job.live.partial_count() > partials);
        job.wait_acknowledged();
        let asked = asked_from(&job, before);
        assert!(asked.iter().any(|(flow, lsn)| *lsn == lags[*flow]), "{asked:?} of {lags:?}\n{}", job.tool.said());
        job.stop();
        job.assert_equal_to(&heir, kind);
    }
}

/// The LSNs from which flows asked to go on, in the registrations behind the first `before` requests.
fn asked_from(job: &Job, before: usize) -> Vec<(usize, u64)> {
    let requests = job.live.master().unwrap().requests();
    let flows = requests.iter().skip(before).map(|line| line.split(' ').collect::<Vec<_>>());
    let of = |words: Vec<&str>| match words.as_slice() {
        ["DFLY", "FLOW", _, _, flow, lsn] => Some((flow.parse().ok()?, lsn.parse().ok()?)),
        _ => None,
    };
    flows.filter_map(of).collect()
}

fn node_of(key: &str) -> usize {
    usize::from(slot(key.as_bytes()).0) * 3 / 16384
}

/// A key of this family on a node.
fn key_on(node: usize, family: &str) -> String {
    (0..).map(|i| format!("{family}:{i}")).find(|key| node_of(key) == node).unwrap()
}

/// Two keys of one flow, on these nodes: a record over two slots is written of them.
fn pair_on(from: usize, to: usize, n: u64) -> [String; 2] {
    let first = (0..).map(|i| format!("from:{n}:{i}")).find(|key| node_of(key) == from).unwrap();
    let flow = owner(first.as_bytes(), 2);
    let second = (0..).map(|i| format!("to:{n}:{i}"));
    [first, second.into_iter().find(|key| node_of(key) == to && owner(key.as_bytes(), 2) == flow).unwrap()]
}

struct OnCluster {
    cluster: Cluster,
    job: Job,
    written: u64,
}

impl OnCluster {
    fn start(more: &[&str]) -> Option<Self> {
        let cluster = match Cluster::start_kind(ServerKind::Redis7, 3, true) {
            Err(LabError::NoServer { what, .. }) => {
                eprintln!("skipped: no {what} here");
                return None;
            }
            cluster => cluster.unwrap(),
        };
        // Every primary knows its replica.
        for node in &cluster.nodes[..3] {
            let mut client = node.client().unwrap();
            let online = wait_for(|| client.info("slave0").ok()??.contains("state=online").then_some(()));
            assert!(online.is_some(), "a replica is not in step");
        }
        let job = Job::start(live(), cluster.port(), more);
        Some(Self { cluster, job, written: 0 })
    }

    fn write(&mut self, rounds: u64) {
        for _ in 0..rounds {
            self.written += 1;
            let n = self.written;
            for node in 0..3 {
                run(&self.job.live, &format!("INCR {}", key_on(node, "n")));
                run(&self.job.live, &format!("RPUSH {} {n}", key_on(node, "list")));
                run(&self.job.live, &format!("APPEND {} <{n}>", key_on(node, "text")));
            }
            let [from, to] = pair_on(n as usize % 3, (n as usize + 1) % 3, n);
            run(&self.job.live, &format!("SET {from} {n}"));
            run(&self.job.live, &format!("RENAME {from} {to}"));
        }
    }

    /// The replica of a node gets nothing any more: it can no longer log in.
    #[track_caller]
    fn cut_off(&mut self, node: usize) -> Client {
        let (mut primary, mut replica) =
            (self.cluster.nodes[node].client().unwrap(), self.cluster.nodes[3 + node].client().unwrap());
        replica.run("CONFIG SET masteruser nobody").unwrap();
        replica.run("CONFIG SET masterauth x").unwrap();
        primary.run("CLIENT KILL TYPE replica").unwrap();
        until(&mut self.job.tool, "the replica is still linked", || {
            replica.info("master_link_status").unwrap().as_deref() == Some("down")
        });
        replica
    }

    #[track_caller]
    fn assert_equal(&self) {
        let Some(plain) = server_with(ServerKind::Redis7, ServerOptions::default()) else { return };
        self.cluster.gather(&plain).unwrap();
        self.job.assert_equal(&plain);
    }

    /// Everything is acknowledged, and the checkpoint is good: a session that ends is followed by another one.
    #[track_caller]
    fn wait_acknowledged(&mut self) {
        self.job.wait_acknowledged();
        let resumable = wait_for(|| (self.job.status()["resumable"] == true).then_some(()));
        assert!(resumable.is_some(), "{}\n{}", self.job.status(), self.job.tool.said());
    }
}

/// SIGKILL of primaries under load, one after the other, each one's replica taking over: the job goes on from no position below what it
/// had acknowledged, and with nothing lost.
#[test]
fn what_was_acknowledged_outlives_the_primaries_of_a_cluster() {
    let Some(mut world) = OnCluster::start(&["--wait-replicas", "1"]) else { return };
    world.write(10);
    world.wait_acknowledged();
    for node in [0, 2] {
        let before = world.job.live.master().unwrap().requests().len();
        let partials = world.job.live.partial_count();
        world.write(30);
        let acknowledged = world.job.acknowledged();
        world.cluster.kill(node);
        world.write(30);
        let (live, tool) = (&world.job.live, &mut world.job.tool);
        until(tool, "no session is begun anew", || live.partial_count() > partials);
        // Who takes over has no replica, so the job holds until the primary comes back as that one.
        world.cluster.nodes[node].restart().unwrap();
        world.cluster.wait_ok().unwrap();
        world.wait_acknowledged();
        let asked = asked_from(&world.job, before);
        assert!(!asked.is_empty(), "{:?}", world.job.live.master().unwrap().requests());
        for (flow, lsn) in asked {
            assert!(lsn >= acknowledged[flow], "flow {flow}: {lsn} of {acknowledged:?}\n{}", world.job.tool.said());
        }
    }
    world.job.stop();
    world.assert_equal();
}

/// The worst case: the replica that takes over has nothing of the last records, one over two nodes among them.
#[test]
fn a_replica_that_lagged_behind_takes_over_and_nothing_told_is_lost() {
    let Some(mut world) = OnCluster::start(&["--wait-replicas", "1:300ms"]) else { return };
    world.write(10);
    world.wait_acknowledged();
    let node = 1;
    let mut replica = world.cut_off(node);
    let acknowledged = world.job.acknowledged();
    let before = world.job.live.master().unwrap().requests().len();
    // A value is moved to the node first: its old place must not be emptied before the replica has it.
    let [from, to] = pair_on(0, node, 1_000_000);
    run(&world.job.live, &format!("SET {from} precious"));
    run(&world.job.live, &format!("RENAME {from} {to}"));
    let (tool, cluster) = (&mut world.job.tool, &world.cluster);
    until(tool, "the value does not come", || {
        cluster.nodes[node].client().unwrap().ask(&["EXISTS", &to]).unwrap().int() == Some(1)
    });
    world.write(30);
    std::thread::sleep(Duration::from_secs(2));
    world.job.wait_held();
    let mut first = world.cluster.nodes[0].client().unwrap();
    assert_eq!(first.ask(&["EXISTS", &from]).unwrap().int(), Some(1), "{}", world.job.tool.said());
    assert_eq!(world.job.acknowledged(), acknowledged, "{}", world.job.tool.said());
    world.cluster.kill(node);
    // Who takes over has no replica: the primary comes back as that one.
    let heir = 3 + node;
    until(&mut world.job.tool, "nobody takes over", || replica.info("role").unwrap().as_deref() == Some("master"));
    world.cluster.nodes[node].restart().unwrap();
    world.write(10);
    world.wait_acknowledged();
    for (flow, lsn) in asked_from(&world.job, before) {
        assert!(lsn >= acknowledged[flow], "flow {flow}: {lsn} of {acknowledged:?}\n{}", world.job.tool.said());
    }
    assert!(world.cluster.primaries().contains(&heir));
    world.job.stop();
    world.assert_equal();
}

/// A position from before a flush that is still on its way when it is executed would come behind the one behind it.
#[test]
fn a_flush_waits_until_the_positions_before_it_are_told() {
    let Some(mut world) = OnCluster::start(&["--wait-replicas", "1:300ms"]) else { return };
    world.write(10);
    world.wait_acknowledged();
    let node = 1;
    signal(&world.cluster.nodes[3 + node], "STOP");
    world.write(1);
    run(&world.job.live, "FLUSHALL");
    world.job.wait_held();
    std::thread::sleep(Duration::from_secs(1));
    let count = world.cluster.nodes[0].client().unwrap().ask(&["EXISTS", &key_on(0, "n")]).unwrap().int();
    assert_eq!(count, Some(1), "{}", world.job.tool.said());
    signal(&world.cluster.nodes[3 + node], "CONT");
    world.write(5);
    world.wait_acknowledged();
    world.job.stop();
    world.assert_equal();
}

/// An heir confirms what it holds, which is nothing of a flush that its primary alone had executed; and one that has the checkpoint
/// must know that a flush was under way.
#[test]
fn a_flush_that_an_heir_lacks_is_executed_again() {
    let Some(mut world) = OnCluster::start(&["--wait-replicas", "1:300ms"]) else { return };
    for node in [node_of("df2redis:checkpoint"), 0] {
        let mut heir = world.cluster.nodes[3 + node].client().unwrap();
        heir.run("CONFIG SET repl-diskless-sync-delay 0").unwrap();
        world.write(10);
        world.wait_acknowledged();
        world.cut_off(node);
        let (partials, said) = (world.job.live.partial_count(), world.job.tool.said().len());
        run(&world.job.live, "FLUSHALL");
        world.job.wait_held();
        let other = world.cluster.nodes[2].client().unwrap().run(&format!("EXISTS {}", key_on(2, "n"))).unwrap().int();
        assert_eq!(other, Some(i64::from(node != 0)), "{}", world.job.tool.said());
        heir.run("CLUSTER FAILOVER TAKEOVER").unwrap();
        let (tool, live) = (&mut world.job.tool, &world.job.live);
        until(tool, "no session is begun anew", || live.partial_count() > partials);
        let said = tool.said().split_off(said);
        let until_ended = said.split("phase=\"connect\"").next().unwrap();
        assert!(until_ended.contains("executing it once") && !until_ended.contains("in step"), "{said}");
        world.write(5);
        world.wait_acknowledged();
    }
    world.job.stop();
    world.assert_equal();
}
