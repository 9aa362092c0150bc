//! A primary of a cluster that stands still (a paused machine, a hung disk) until its replica has taken over, and then goes on: for
//! a moment it still thinks that it is a primary, executes what waited in its sockets and says so. All of that is thrown away when it
//! becomes the replica of its heir. So what it acknowledged then counts for nothing, whenever it was heard of.

mod common;

use common::clustered::{Clustered, key_on, node_of};
use common::job::until;
use common::{FlowBytes, Hand, Running, Stopped, migrate_command, start};
use df2redis::lab::LabError;
use df2redis::lab::cluster::Cluster;
use df2redis::lab::flow::{Faults, Gate};
use df2redis::lab::generate::{Generator, Spec};
use df2redis::lab::live::LiveOptions;
use df2redis::lab::master::{Master, MasterOptions};
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::{Tool, wait_for};
use std::cell::Cell;
use std::time::Duration;

const KINDS: [ServerKind; 2] = [ServerKind::Redis7, ServerKind::Valkey9];

/// Bytes that a server's clients have sent and that it has not read. (Of its cluster bus, on another port, nothing.)
fn unread(server: &Server) -> u64 {
    let local = format!(":{:04X}", server.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let of = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // Established; "transmit:receive" in hexadecimal.
        let waits = words.get(1)?.ends_with(&local) && *words.get(3)? == "01";
        u64::from_str_radix(words.get(4)?.split_once(':')?.1, 16).ok().filter(|_| waits)
    };
    table.lines().filter_map(of).sum()
}

/// Its replica, three places on, has taken over, and every other node knows.
fn heir_is_known(cluster: &Cluster, node: usize) -> bool {
    let heir = cluster.id(3 + node);
    (0..6).filter(|at| *at != node).all(|at| {
        let view = cluster.nodes[at].client().unwrap().run("CLUSTER NODES").unwrap().text().unwrap();
        let line = view.lines().find(|line| line.starts_with(heir));
        line.is_some_and(|line| line.contains("master") && line.contains('-') && !line.ends_with("connected"))
    })
}

fn is_replica(cluster: &Cluster, node: usize) -> bool {
    let client = cluster.nodes[node].client();
    client.and_then(|mut client| client.info("role")).is_ok_and(|role| role.as_deref() == Some("slave"))
}

struct World {
    inner: Clustered,
    node: usize,
    written: Cell<u64>,
}

impl World {
    fn new(kind: ServerKind, node: usize) -> Option<Self> {
        let spec = Spec { seed: 3, flows_count: 2, ..Spec::of("string:60B=50,list:6x9=10").unwrap() };
        let inner = Clustered::of(kind, true, ServerOptions::default(), spec, LiveOptions::default())?;
        Some(Self { inner, node, written: Cell::new(0) })
    }

    fn write(&self, rounds: u64) {
        for _ in 0..rounds {
            let n = self.written.replace(self.written.get() + 1);
            (0..3).for_each(|node| self.write_at(node, n));
        }
    }

    fn write_at(&self, node: usize, n: u64) {
        let of = |family: &str| key_on(node, family);
        self.inner.run(&format!("INCR {}", of("n")));
        self.inner.run(&format!("RPUSH {} {n}", of("list")));
        self.inner.run(&format!("APPEND {} <{n}>", of("text")));
        self.inner.run(&format!("SET {} {n}", of(&format!("s{}", n % 7))));
        self.inner.run(&format!("XADD {} {}-1 n {n}", of("stream"), n + 1));
    }

    /// The node stands still with records of the source in its sockets, until its replica is primary.
    #[track_caller]
    fn freeze(&self, tool: &mut Tool) -> Stopped {
        let frozen = Stopped::new(&self.inner.cluster.nodes[self.node]);
        self.write(5);
        until(tool, "nothing is sent to the node that stands still", || {
            unread(&self.inner.cluster.nodes[self.node]) > 0
        });
        until(tool, "nobody takes over", || heir_is_known(&self.inner.cluster, self.node));
        assert!(unread(&self.inner.cluster.nodes[self.node]) > 0, "it was not sent anything in vain");
        frozen
    }

    #[track_caller]
    fn thaw(&self, frozen: Stopped, tool: &mut Tool) {
        drop(frozen);
        until(tool, "it does not become a replica", || is_replica(&self.inner.cluster, self.node));
    }
}

/// What it thawed with is in the journal, and writers go on.
fn thaws(kind: ServerKind, node: usize, by: usize) {
    let Some(world) = World::new(kind, node) else { return };
    let mut tool = world.inner.start_by(by, &["--log", "info"]);
    world.write(20);
    world.inner.wait_applied(&mut tool);
    let partials = world.inner.live.partial_count();
    let frozen = world.freeze(&mut tool);
    world.write(20);
    world.thaw(frozen, &mut tool);
    world.write(20);
    world.inner.wait_applied(&mut tool);
    assert!(world.inner.live.partial_count() > partials, "no session was begun anew\n{}", tool.said());
    world.inner.finish(tool);
}

#[test]
fn a_primary_that_thaws_behind_its_heir_is_not_believed() {
    let with_checkpoint = node_of("df2redis:checkpoint");
    for kind in KINDS {
        for node in [with_checkpoint, (with_checkpoint + 1) % 3] {
            thaws(kind, node, (node + 1) % 3);
        }
    }
}

/// The node that the tool was given is the one.
#[test]
fn the_named_node_thaws_behind_its_heir() {
    let node = (node_of("df2redis:checkpoint") + 1) % 3;
    thaws(ServerKind::Redis7, node, node);
}

/// The tool goes on with the heir while it stands still, and it thaws into that.
#[test]
fn a_primary_that_thaws_late_does_no_harm() {
    let with_checkpoint = node_of("df2redis:checkpoint");
    for (kind, node, by) in [(KINDS[0], with_checkpoint, 1), (KINDS[1], (with_checkpoint + 1) % 3, 0)] {
        let Some(world) = World::new(kind, node) else { return };
        // Named is the one that stands still, too: the others are known.
        let mut tool = world.inner.start_by((node + by) % 3, &["--log", "info", "--connect-timeout", "2s"]);
        world.write(20);
        world.inner.wait_applied(&mut tool);
        let partials = world.inner.live.partial_count();
        let frozen = world.freeze(&mut tool);
        world.write(20);
        until(&mut tool, "no session is begun anew", || world.inner.live.partial_count() > partials);
        until(&mut tool, "it does not go on with the heir", || world.inner.live.is_acknowledged());
        world.write(20);
        world.thaw(frozen, &mut tool);
        world.write(20);
        world.inner.finish(tool);
    }
}

/// Nothing is written behind what it had in its sockets: nobody but the tool can find out.
#[test]
fn what_a_thawed_primary_acknowledged_last_is_not_believed() {
    for kind in KINDS {
        let node = (node_of("df2redis:checkpoint") + 1) % 3;
        let Some(world) = World::new(kind, node) else { return };
        let mut tool = world.inner.start_by((node + 1) % 3, &["--log", "info"]);
        world.write(20);
        world.inner.wait_applied(&mut tool);
        let frozen = world.freeze(&mut tool);
        world.thaw(frozen, &mut tool);
        // What it said may be all that was missing. The heir comes to have it all the same.
        let count = |at: usize| world.inner.client(at).ask(&["GET", &key_on(node, "n")]).unwrap().text();
        until(&mut tool, "the heir does not get it", || count(3 + node).as_deref() == Some("25"));
        world.inner.finish(tool);
    }
}

/// In the full sync nothing tells what is missing: the run ends.
#[test]
fn a_primary_that_thaws_in_a_full_sync_leaves_no_wrong_copy() {
    for kind in KINDS {
        let Some(cluster) = cluster(kind) else { continue };
        let gate = Gate::default();
        let slow = Faults { full_sync_gate: Some(gate.clone()), ..Faults::default().slow(30_000) };
        let spec = Spec { seed: 8, flows_count: 2, ..Spec::of("string:100B=2000,list:5x8=50,hash:20x8=50").unwrap() };
        let (master, _) = Generator::start(spec, MasterOptions { faults: slow, ..MasterOptions::default() }).unwrap();
        let tool = thawed(&cluster, &master, 50, || {});
        gate.open();
        tool.wait_for(Duration::from_secs(120))
            .expect_code(5)
            .expect_text("took over from")
            .expect_text("--on-existing flush");
    }
}

/// The same where nothing is written to it any more: it said that it has executed the last of all commands, and has not.
#[test]
fn a_primary_that_thaws_at_the_end_of_a_full_sync_leaves_no_wrong_copy() {
    for kind in KINDS {
        let Some(cluster) = cluster(kind) else { continue };
        let gate = Gate::default();
        let mut flow = FlowBytes::new();
        for i in 0..300 {
            flow.string(format!("k:{i}").as_bytes(), b"v");
        }
        for i in 0..8 {
            flow.late_journal(0, &["SET", &key_on(1, &format!("late{i}")), "v"]);
        }
        let master = Hand::new(vec![flow]).faulty(Faults { full_sync_gate: Some(gate.clone()), ..Faults::default() });
        let run = thawed(&cluster, &master, 300, || gate.open()).wait_for(Duration::from_secs(120));
        cluster.wait_ok().unwrap();
        let keys = cluster.keys().unwrap().into_iter().filter(|key| !key.starts_with(b"df2redis:")).count();
        assert!(
            run.code() != 0 || keys == 308,
            "{kind:?}: a copy of {keys} of 308 keys is called done:\n{}",
            run.stderr
        );
        run.expect_code(5).expect_text("took over from").expect_text("--on-existing flush");
    }
}

fn cluster(kind: ServerKind) -> Option<Cluster> {
    match Cluster::start_kind(kind, 3, true) {
        Err(LabError::NoServer { what, .. }) => {
            eprintln!("skipped: no {what} here");
            None
        }
        cluster => Some(cluster.unwrap()),
    }
}

/// A load of which, once so many keys are there, a part waits in the sockets of a node that stands still, and is let go when its
/// heir has taken over.
fn thawed(cluster: &Cluster, master: &Master, keys: usize, frozen: impl FnOnce()) -> Running {
    let node = 1;
    let mut tool = start(migrate_command(master.port(), cluster.port(), &["--log", "info"]));
    let begun = wait_for(|| (cluster.keys().unwrap().len() >= keys).then_some(()));
    assert!(begun.is_some() && tool.is_running(), "the load does not begin");
    let stopped = Stopped::new(&cluster.nodes[node]);
    frozen();
    assert!(wait_for(|| (unread(&cluster.nodes[node]) > 0).then_some(())).is_some(), "nothing is sent to it");
    assert!(wait_for(|| heir_is_known(cluster, node).then_some(())).is_some(), "nobody takes over");
    assert!(tool.is_running() && unread(&cluster.nodes[node]) > 0, "it was not sent anything in vain");
    drop(stopped);
    assert!(wait_for(|| is_replica(cluster, node).then_some(())).is_some(), "it does not become a replica");
    tool
}
