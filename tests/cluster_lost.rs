//! A node of a cluster that has lost what it had acknowledged: restarted with an older dump, or replaced by a replica that lacks the
//! last moments, while the tool runs and while it does not. The tool goes on from the positions that the nodes keep, and the end
//! is what the source holds; where that cannot be proven it says so, by node, key and LSN.

mod common;

use common::clustered::{Clustered, key_on, node_of};
use common::job::{self, until};
use df2redis::lab::client::Client;
use df2redis::lab::encode::owner;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::LiveOptions;
use df2redis::lab::servers::ServerOptions;
use df2redis::lab::torture::{Tool, wait_for};
use df2redis::redis::own_slots::OwnSlots;
use df2redis::redis::slot::slot;
use std::cell::Cell;
use std::ops::Deref;
use std::process::Command;

struct World {
    /// The node that loses something.
    node: usize,
    inner: Clustered,
    written: Cell<u64>,
}

/// The node that has the checkpoint, and another one.
fn nodes() -> [usize; 2] {
    let with_checkpoint = node_of("df2redis:checkpoint");
    [with_checkpoint, (with_checkpoint + 1) % 3]
}

impl Deref for World {
    type Target = Clustered;

    fn deref(&self) -> &Clustered {
        &self.inner
    }
}

/// The same of the source's flow that has another key.
fn key_beside(other: &str, node: usize, family: &str) -> String {
    let flow = owner(other.as_bytes(), 2);
    let mut keys = (0..).map(|i| format!("{family}:{i}"));
    keys.find(|key| node_of(key) == node && owner(key.as_bytes(), 2) == flow).unwrap()
}

impl World {
    fn new(node: usize, replicas: bool) -> Option<Self> {
        Self::with(node, replicas, ServerOptions::default())
    }

    fn with(node: usize, replicas: bool, options: ServerOptions) -> Option<Self> {
        let spec = Spec { seed: 3, flows_count: 2, ..Spec::of("string:60B=50,list:6x9=10").unwrap() };
        let inner = Clustered::new(replicas, options, spec, LiveOptions::default())?;
        Some(Self { node, inner, written: Cell::new(0) })
    }

    /// By a node that is there all the time.
    fn start(&self) -> Tool {
        self.start_by((self.node + 1) % 3, &["--log", "info"])
    }

    /// Records on keys of all nodes, none over several slots.
    fn write(&self, rounds: u64) {
        for _ in 0..rounds {
            let n = self.written.replace(self.written.get() + 1);
            for node in 0..3 {
                let of = |family: &str| key_on(node, family);
                self.run(&format!("INCR {}", of("n")));
                self.run(&format!("RPUSH {} {n}", of("list")));
                self.run(&format!("APPEND {} <{n}>", of("text")));
                self.run(&format!("HSET {} f{} {n}", of("hash"), n % 5));
                self.run(&format!("SET {} {n}", of(&format!("s{}", n % 7))));
                self.run(&format!("XADD {} {}-1 n {n}", of("stream"), n + 1));
                if n.is_multiple_of(9) {
                    self.run(&format!("DEL {} {}", of("text"), of("hash")));
                }
            }
        }
    }

    /// What the node holds now is what it comes back with.
    fn save(&self) {
        self.client(self.node).run("SAVE").unwrap();
    }

    fn restart(&mut self) {
        self.inner.cluster.nodes[self.node].kill();
        self.inner.cluster.nodes[self.node].restart().unwrap();
        self.cluster.wait_ok().unwrap();
    }

    fn said(&self, words: &str) -> bool {
        std::fs::read_to_string(self.log()).unwrap_or_default().contains(words)
    }

    fn field(&self, field: &str) -> Option<String> {
        let node = node_of("df2redis:checkpoint");
        self.client(node).ask(&["HGET", "df2redis:checkpoint", field]).unwrap().text()
    }
}

#[test]
fn a_primary_that_comes_back_with_an_older_dump_is_caught_up() {
    nodes().into_iter().for_each(caught_up_by_the_running_tool);
}

#[track_caller]
fn caught_up_by_the_running_tool(node: usize) {
    let Some(mut world) = World::new(node, false) else { return };
    let mut tool = world.start();
    world.write(20);
    world.wait_applied(&mut tool);
    world.save();
    world.write(40);
    world.wait_applied(&mut tool);
    let partials = world.live.partial_count();
    world.restart();
    world.write(20);
    world.finish(tool);
    assert!(world.live.partial_count() > partials, "the session was not begun anew");
}

/// For a while it answers LOADING.
#[test]
fn a_primary_that_loads_its_older_dump_is_waited_for() {
    let node = nodes()[1];
    let Some(mut world) = World::with(node, false, ServerOptions::default().slow_to_load()) else { return };
    let mut tool = world.start();
    world.write(20);
    (0..20).for_each(|i| world.run(&format!("SET {} {}", key_on(node, &format!("large{i}")), "x".repeat(2000))));
    world.wait_applied(&mut tool);
    world.save();
    world.write(40);
    world.wait_applied(&mut tool);
    world.restart();
    assert!(world.cluster.nodes[node].refused_calls().unwrap() > 0, "nothing was asked while it loaded");
    world.write(20);
    world.finish(tool);
}

/// The machine of two primaries comes back, one of them much later.
#[test]
fn primaries_that_come_back_one_after_the_other_are_waited_for() {
    let [node, other] = nodes();
    let Some(mut world) = World::new(node, false) else { return };
    let mut tool = world.start_by(3 - node - other, &["--log", "info"]);
    world.write(20);
    world.wait_applied(&mut tool);
    for node in [node, other] {
        world.client(node).run("SAVE").unwrap();
    }
    world.write(20);
    world.wait_applied(&mut tool);
    for node in [node, other] {
        world.inner.cluster.kill(node);
    }
    world.write(20);
    world.inner.cluster.nodes[node].restart().unwrap();
    until(&mut tool, "it does not say what it waits for", || world.said("holding: the target cannot yet"));
    world.inner.cluster.nodes[other].restart().unwrap();
    world.cluster.wait_ok().unwrap();
    world.write(20);
    world.finish(tool);
}

#[test]
fn what_a_node_has_lost_while_the_tool_was_away_is_noticed() {
    nodes().into_iter().for_each(caught_up_by_the_next_start);
}

#[track_caller]
fn caught_up_by_the_next_start(node: usize) {
    let Some(mut world) = World::new(node, false) else { return };
    for kills in [true, false] {
        let mut tool = world.start();
        world.write(20);
        world.wait_applied(&mut tool);
        world.save();
        world.write(40);
        world.wait_applied(&mut tool);
        if kills {
            tool.kill();
        } else {
            tool.signal("INT");
            assert_eq!(tool.wait(), Some(130), "{}", tool.said());
        }
        world.restart();
        world.write(20);
    }
    world.finish(world.start());
}

#[test]
fn a_node_without_its_data_is_named() {
    let Some(mut world) = World::new(nodes()[1], false) else { return };
    let mut tool = world.start();
    world.write(20);
    world.wait_applied(&mut tool);
    until(&mut tool, "no homes are named", || world.field("homes:0").is_some());
    tool.kill();
    let dump = world.cluster.nodes[world.node].dir().join("dump.rdb");
    let _ = std::fs::remove_file(dump);
    world.restart();
    let mut tool = world.start();
    assert_eq!(tool.wait(), Some(8), "{}", tool.said());
    let id = world.cluster.id(world.node);
    assert!(tool.said().contains(&format!("node {id} of the cluster has slot")), "{}", tool.said());
}

impl World {
    /// Slots in which this node keeps positions, as the checkpoint names them.
    fn homes(&self, node: usize) -> Vec<u16> {
        let named = self.field("homes:0").unwrap();
        let slots = named.split(':').next().unwrap().split(',').map(|slot| slot.parse::<u16>().unwrap());
        let nodes = self.client(node).run("CLUSTER NODES").unwrap().text().unwrap();
        let own = OwnSlots::parse(nodes.as_bytes()).unwrap();
        slots.filter(|slot| own.runs.iter().any(|(first, last)| (first.0..=last.0).contains(slot))).collect()
    }

    /// A tool that was killed when more had been applied than the node's dump holds.
    fn killed_ahead_of_the_dump(&self) {
        let mut tool = self.start();
        self.write(20);
        self.wait_applied(&mut tool);
        until(&mut tool, "nothing is named", || self.field("homes:0").is_some() && self.field("nodes").is_some());
        self.save();
        self.write(40);
        self.wait_applied(&mut tool);
        tool.kill();
    }
}

/// The slots with its positions were moved away before it lost something.
#[test]
fn a_restarted_node_that_has_no_position_any_more_is_named() {
    let Some(mut world) = World::new(nodes()[1], false) else { return };
    world.killed_ahead_of_the_dump();
    let move_homes = |world: &World| {
        let homes = world.homes(world.node);
        assert_eq!(homes.len(), 4);
        for slot in homes {
            world.cluster.move_slot(slot, world.node, (world.node + 1) % 3).unwrap();
        }
        world.cluster.wait_agreed().unwrap();
    };
    move_homes(&world);
    // As long as it is the same process it has lost nothing.
    let mut tool = world.start();
    until(&mut tool, "no new homes", || {
        world.write(1);
        world.homes(world.node).len() == 4
    });
    tool.kill();
    move_homes(&world);
    world.restart();
    let mut tool = world.start();
    assert_eq!(tool.wait(), Some(8), "{}", tool.said());
    let id = world.cluster.id(world.node);
    assert!(tool.said().contains(&format!("node {id} of the cluster was restarted")), "{}", tool.said());
}

/// A slot with newer positions was moved to it behind its loss.
#[test]
fn a_position_that_came_from_another_node_hides_no_loss() {
    let Some(mut world) = World::new(nodes()[1], false) else { return };
    world.killed_ahead_of_the_dump();
    world.restart();
    let other = (world.node + 1) % 3;
    world.cluster.move_slot(world.homes(other)[1], other, world.node).unwrap();
    world.cluster.wait_agreed().unwrap();
    world.write(20);
    world.finish(world.start());
}

/// A slot in which positions were kept until homes were chosen anew is given to a node that joins while the tool is away.
#[test]
fn a_position_that_is_written_no_more_is_no_loss() {
    let Some(mut world) = World::new(nodes()[1], false) else { return };
    let (node, other) = (world.node, (world.node + 1) % 3);
    let mut tool = world.start();
    world.write(20);
    world.wait_applied(&mut tool);
    until(&mut tool, "nothing is named", || world.field("homes:0").is_some());
    let before = world.homes(node);
    // All later ones take other places then; and of one that is written to each worker hears.
    let first = (16384 * node / 3) as u16;
    let mut moved: Vec<u16> = (first..first + 10).collect();
    moved.extend(["n", "list", "text", "hash", "stream"].map(|family| slot(key_on(node, family).as_bytes()).0));
    moved.sort_unstable();
    moved.dedup();
    moved.retain(|slot| !before.contains(slot));
    for slot in moved {
        world.cluster.move_slot(slot, node, other).unwrap();
        world.cluster.wait_agreed().unwrap();
    }
    let is_named = |slot: u16| {
        let named = ["homes:0", "homes:1"].map(|field| world.field(field).unwrap_or_default());
        named.iter().any(|named| named.split([',', ':']).any(|word| word == slot.to_string()))
    };
    until(&mut tool, "no new homes", || {
        world.write(1);
        before.iter().all(|slot| !is_named(*slot))
    });
    world.write(20);
    world.wait_applied(&mut tool);
    tool.kill();
    let joined = world.inner.cluster.join().unwrap();
    world.cluster.wait_agreed().unwrap();
    world.cluster.move_slot(before[1], node, joined).unwrap();
    world.cluster.wait_agreed().unwrap();
    let tool = world.start();
    world.write(5);
    world.finish(tool);
    assert!(!world.said("a node lacks what it had acknowledged"));
    assert!(world.said("holds no position: compare with verify"));
}

/// A value that another node has given away and the node has lost is nowhere any more.
#[test]
fn a_value_that_was_moved_to_the_node_and_lost_there_is_named() {
    let Some(mut world) = World::new(nodes()[1], false) else { return };
    let mut tool = world.start();
    world.write(5);
    world.wait_applied(&mut tool);
    world.save();
    // Of one flow: else the source records a DEL and a RESTORE.
    let from = key_on((world.node + 1) % 3, "n");
    let to = key_beside(&from, world.node, "moved");
    world.run(&format!("RENAME {from} {to}"));
    world.wait_applied(&mut tool);
    world.restart();
    assert_eq!(tool.wait(), Some(8), "{}", tool.said());
    assert!(tool.said().contains(&format!("the node that has the key \"{to}\" has lost")), "{}", tool.said());
}

/// What was stored there cannot be stored again: what it was made of, at another node, is another one now.
#[test]
fn a_value_that_was_made_of_another_nodes_and_lost_is_named() {
    let Some(mut world) = World::new(nodes()[1], false) else { return };
    let mut tool = world.start();
    let from = key_on((world.node + 1) % 3, "scores");
    let to = key_beside(&from, world.node, "made");
    world.run(&format!("ZADD {from} 1 a 2 b"));
    world.write(5);
    world.wait_applied(&mut tool);
    world.save();
    world.run(&format!("ZRANGESTORE {to} {from} 0 -1"));
    world.run(&format!("ZADD {from} 3 c"));
    world.wait_applied(&mut tool);
    world.restart();
    assert_eq!(tool.wait(), Some(8), "{}", tool.said());
    assert!(tool.said().contains(&format!("the node that has the key \"{to}\" has lost")), "{}", tool.said());
}

/// What was taken off the first key that was there is taken off again, where that key is known; else it is named.
#[test]
fn elements_that_are_back_at_a_node_with_an_older_dump_are_taken_off_again() {
    for known in [true, false] {
        let Some(mut world) = World::new(nodes()[1], false) else { return };
        let mut tool = world.start();
        let other = key_on((world.node + 1) % 3, "queue");
        let lost = key_beside(&other, world.node, "queue");
        let keys = if known { format!("{lost} {other}") } else { format!("{other} {lost}") };
        world.run(&format!("RPUSH {lost} 1 2 3"));
        world.write(5);
        world.wait_applied(&mut tool);
        world.save();
        world.run(&format!("LMPOP 2 {keys} LEFT"));
        world.run(&format!("RPUSH {other} 4 5"));
        world.wait_applied(&mut tool);
        world.restart();
        if known {
            world.write(5);
            world.finish(tool);
        } else {
            assert_eq!(tool.wait(), Some(8), "{}", tool.said());
            assert!(tool.said().contains(&format!("the node that has the key \"{lost}\" has lost")), "{}", tool.said());
        }
    }
}

/// As replication is asynchronous, a replica that takes over may lack what its primary had acknowledged.
#[test]
fn what_a_replica_lacks_that_takes_over_is_caught_up() {
    let Some(mut world) = World::new(nodes()[1], true) else { return };
    let mut tool = world.start();
    world.write(20);
    world.wait_applied(&mut tool);
    // The replica can no longer log in.
    let (mut primary, mut replica) = (world.client(world.node), world.client(3 + world.node));
    replica.run("CONFIG SET masteruser nobody").unwrap();
    replica.run("CONFIG SET masterauth x").unwrap();
    primary.run("CLIENT KILL TYPE replica").unwrap();
    until(&mut tool, "the replica is still linked", || {
        replica.info("master_link_status").unwrap().as_deref() == Some("down")
    });
    world.write(40);
    world.wait_applied(&mut tool);
    world.inner.cluster.kill(world.node);
    world.write(20);
    world.finish(tool);
    assert!(world.cluster.primaries().contains(&(3 + world.node)));
}

impl World {
    /// The node's replica lacks the last forty rounds.
    #[track_caller]
    fn let_the_replica_lag(&self, tool: &mut Tool) {
        self.write(20);
        self.wait_applied(tool);
        // It can no longer log in.
        let (mut primary, mut replica) = (self.client(self.node), self.client(3 + self.node));
        primary.run("ACL SETUSER default -psync -sync").unwrap();
        primary.run("CLIENT KILL TYPE replica").unwrap();
        until(tool, "the replica is still linked", || {
            replica.info("master_link_status").unwrap().as_deref() == Some("down")
        });
        self.write(40);
        self.wait_applied(tool);
        let reached = |client: &mut Client| client.info("master_repl_offset").unwrap().unwrap().parse::<u64>().unwrap();
        assert!(reached(&mut replica) < reached(&mut primary), "the replica does not lag");
    }

    /// By force, with a primary that lives, and throws away what it has more when it follows its heir.
    #[track_caller]
    fn take_over(&self, tool: &mut Tool) {
        self.client(3 + self.node).run("CLUSTER FAILOVER TAKEOVER").unwrap();
        until(tool, "nobody takes over", || {
            let primaries = self.cluster.primaries();
            primaries.contains(&(3 + self.node)) && !primaries.contains(&self.node)
        });
    }

    /// Once a session was begun that knows what is missing: before, all seems to be there.
    #[track_caller]
    fn finish_anew(&self, mut tool: Tool, partials: u64) {
        until(&mut tool, "no session is begun anew", || self.live.partial_count() > partials);
        self.finish(tool);
    }
}

#[test]
fn what_a_replica_lacks_that_takes_over_by_force_is_caught_up() {
    for node in nodes() {
        let Some(world) = World::new(node, true) else { return };
        let mut tool = world.start();
        world.let_the_replica_lag(&mut tool);
        let partials = world.live.partial_count();
        world.take_over(&mut tool);
        world.write(20);
        world.wait_applied(&mut tool);
        assert!(world.live.partial_count() > partials, "the session was not begun anew\n{}", tool.said());
        world.finish(tool);
    }
}

/// The same where the source is not written to any more: what the heir lacks is brought without any record that would be sent there.
#[test]
fn what_an_heir_lacks_is_brought_while_nothing_is_written() {
    let Some(world) = World::new(nodes()[1], true) else { return };
    let mut tool = world.start();
    world.let_the_replica_lag(&mut tool);
    world.take_over(&mut tool);
    let mut heir = world.client(3 + world.node);
    let count = key_on(world.node, "n");
    until(&mut tool, "the heir does not get it", || {
        heir.ask(&["GET", &count]).unwrap().text().as_deref() == Some("60")
    });
    world.finish(tool);
}

/// Told to stop before the nodes were looked at again: it does not end as if all were there.
#[test]
fn a_stop_behind_a_takeover_passes_nothing_over() {
    let Some(world) = World::new(nodes()[1], true) else { return };
    let mut tool = world.start();
    world.let_the_replica_lag(&mut tool);
    let partials = world.live.partial_count();
    world.take_over(&mut tool);
    tool.signal("INT");
    match tool.wait() {
        Some(5) => {
            assert!(tool.said().contains("took over from"), "{}", tool.said());
            world.finish_anew(world.start(), partials);
        }
        // They were looked at just then.
        code => {
            assert_eq!(code, Some(130), "{}", tool.said());
            world.compare(&tool);
        }
    }
}

/// Nothing is handed over that the heir lacks, also where nothing is compared.
#[test]
fn a_cutover_behind_a_takeover_hands_over_nothing_that_is_missing() {
    let Some(world) = World::new(nodes()[1], true) else { return };
    let socket = world.dir.path().join("job.sock");
    let socket = socket.to_str().unwrap();
    let mut tool = world.start_by((world.node + 1) % 3, &["--log", "info", "--control", socket]);
    let ask = |args: &[&str]| {
        Command::new(job::binary()).args(args).args(["--output", "json", "--control", socket]).output().unwrap()
    };
    world.let_the_replica_lag(&mut tool);
    until(&mut tool, "not in step", || String::from_utf8_lossy(&ask(&["status"]).stdout).contains("\"in_step\":true"));
    let partials = world.live.partial_count();
    world.take_over(&mut tool);
    let ended = ask(&["cutover", "--execute", "--verify", "none", "--budget", "60s", "--wait", "60s"]);
    match ended.status.code() {
        Some(9) => world.finish_anew(tool, partials),
        // They were looked at just then, and it was waited for what was missing.
        code => {
            assert_eq!(code, Some(0), "{ended:?}\n{}", tool.said());
            assert_eq!(tool.wait(), Some(0), "{}", tool.said());
            world.compare(&tool);
        }
    }
}

/// The positions of the nodes go with a flush, and no next start takes that for a loss.
#[test]
fn a_flush_is_no_loss() {
    let Some(world) = World::new(nodes()[1], false) else { return };
    let mut tool = world.start();
    for _ in 0..3 {
        world.write(10);
        world.wait_applied(&mut tool);
        until(&mut tool, "no homes are named", || world.field("homes:0").is_some());
        world.run("FLUSHALL");
        let flushed = wait_for(|| {
            world.client(world.node).ask(&["EXISTS", &key_on(world.node, "n")]).ok()?.int().filter(|n| *n == 0)
        });
        assert!(flushed.is_some(), "{}", tool.said());
        tool.kill();
        tool = world.start();
    }
    world.write(10);
    world.finish(tool);
}

/// A flush that is executed once more, for a node that has lost it, takes what the others had written behind it, and their markers.
#[test]
fn what_stands_behind_a_flush_that_is_executed_again_is_applied_again() {
    nodes().into_iter().for_each(flushed_again);
}

#[track_caller]
fn flushed_again(node: usize) {
    let Some(mut world) = World::new(node, false) else { return };
    let mut tool = world.start();
    world.write(20);
    world.wait_applied(&mut tool);
    until(&mut tool, "no homes are named", || world.field("homes:0").is_some());
    world.save();
    world.run("FLUSHALL");
    world.write(40);
    world.wait_applied(&mut tool);
    world.restart();
    world.write(1);
    world.finish(tool);
}

/// Slots that the source gives away, one of which moves between the target's nodes just then.
#[test]
fn slots_that_are_given_away_are_emptied_where_they_are() {
    let spec = Spec { flows_count: 1, ..Spec::of("string:10B=20").unwrap() };
    let Some(world) = Clustered::new(false, ServerOptions::default(), spec, LiveOptions::default()) else { return };
    let key = key_on(0, "k");
    let (tag, slot) = (format!("{{{key}}}"), df2redis::redis::slot::slot(key.as_bytes()).0);
    let mut tool = world.start_by(1, &[]);
    (0..4).for_each(|i| world.run(&format!("SET {tag}:{i} v")));
    world.run(&format!("SET {} v", key_on(2, "kept")));
    world.wait_applied(&mut tool);
    let (mut from, mut to) = (world.client(0), world.client(1));
    to.run(&format!("CLUSTER SETSLOT {slot} IMPORTING {}", world.cluster.id(0))).unwrap();
    from.run(&format!("CLUSTER SETSLOT {slot} MIGRATING {}", world.cluster.id(1))).unwrap();
    let (port, keys) = (world.cluster.nodes[1].port().to_string(), [format!("{tag}:0"), format!("{tag}:1")]);
    let moved = from.ask(&["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS", &keys[0], &keys[1]]).unwrap();
    assert_eq!(moved.text().as_deref(), Some("OK"));
    let flush = ["DFLYCLUSTER", "FLUSHSLOTS", &slot.to_string(), &slot.to_string()];
    world.live.world().record(0, &flush, 7);
    world.wait_applied(&mut tool);
    let left = || world.cluster.keys().unwrap().into_iter().filter(|key| key.starts_with(tag.as_bytes())).count();
    assert_eq!(left(), 0, "{}", tool.said());
    assert_eq!(world.client(2).ask(&["GET", &key_on(2, "kept")]).unwrap().text().as_deref(), Some("v"));
    job::stop(&mut tool);
}

/// A node that keeps no position yet could come back with a dump from the middle of the snapshot, and nothing would tell.
#[test]
fn the_checkpoint_is_called_good_only_when_every_node_keeps_positions() {
    let Some(world) = World::new(nodes()[1], false) else { return };
    let all_but_positions = "ACL SETUSER default resetkeys ~[^d]* ~d[^f]* ~df2redis:[^p]* ~df2redis:p[^:]*";
    world.client(world.node).run(all_but_positions).unwrap();
    let mut tool = world.start();
    let refuses = wait_for(|| tool.said().contains("NOPERM").then_some(()));
    assert!(refuses.is_some(), "{}", tool.said());
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!((world.field("phase").as_deref(), world.field("homes:0")), (Some("full"), None), "{}", tool.said());
    world.client(world.node).run("ACL SETUSER default allkeys").unwrap();
    world.write(5);
    world.wait_applied(&mut tool);
    assert!(world.field("homes:0").is_some() && world.field("homes:1").is_some());
    world.finish(tool);
}

/// Where the checkpoint already is at the node that its slot moves to, that one must not be emptied first.
#[test]
fn a_flush_while_the_checkpoint_moves_leaves_it() {
    let [node, other] = nodes();
    let Some(world) = World::new(other, false) else { return };
    let mut tool = world.start();
    world.write(10);
    world.wait_applied(&mut tool);
    until(&mut tool, "no homes are named", || world.field("homes:0").is_some());
    let moving = slot(b"df2redis:checkpoint").0;
    world.cluster.half_move_slot(moving, node, other).unwrap();
    world.run("FLUSHALL");
    std::thread::sleep(std::time::Duration::from_secs(1));
    tool.kill();
    world.cluster.move_slot(moving, node, other).unwrap();
    world.cluster.wait_agreed().unwrap();
    let phase = world.client(other).run("HGET df2redis:checkpoint phase").unwrap().text();
    assert_eq!(phase.as_deref(), Some("stable"), "{}", tool.said());
    let tool = world.start();
    world.write(10);
    world.finish(tool);
}

/// An order to empty the target that was cut off half-way: the checkpoint still says that the rest is the job's own.
#[test]
fn the_node_with_the_checkpoint_is_emptied_last() {
    let [with_checkpoint, other] = nodes();
    let Some(world) = World::new(other, false) else { return };
    let mut tool = world.start();
    world.write(5);
    world.wait_applied(&mut tool);
    tool.kill();
    for node in (0..3).filter(|node| *node != with_checkpoint) {
        world.client(node).run("ACL SETUSER default -flushall").unwrap();
        let mut tool = world.start_by(0, &["--on-existing", "flush"]);
        assert_ne!(tool.wait(), Some(0));
        assert!(tool.said().contains("NOPERM"), "{}", tool.said());
        assert_eq!(world.field("owned").as_deref(), Some("1"), "{}", tool.said());
        world.client(node).run("ACL SETUSER default +flushall").unwrap();
    }
    let tool = world.start_by(0, &["--on-existing", "flush"]);
    world.write(5);
    world.finish(tool);
}
