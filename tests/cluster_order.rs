//! Order within a slot of a cluster while it is being moved and the tool is killed: commands that must not be applied twice, on
//! keys of one slot of which some are at the old node, some at the new one. The source itself says what must be there.

mod common;

use common::Stopped;
use common::clustered::{Clustered, node_of};
use common::job::until;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::LiveOptions;
use df2redis::lab::rng::Rng;
use df2redis::lab::servers::ServerOptions;
use df2redis::lab::torture::{Tool, wait_for};
use df2redis::redis::slot::slot;
use std::ops::Deref;
use std::time::Duration;

/// Records are sent together that come within this time, so that they share a batch.
const TOGETHER: Duration = Duration::from_millis(300);

struct World(Clustered);

impl Deref for World {
    type Target = Clustered;

    fn deref(&self) -> &Clustered {
        &self.0
    }
}

impl World {
    fn new(together: Duration) -> Option<Self> {
        let spec = Spec { seed: 5, flows_count: 1, ..Spec::of("string:60B=5").unwrap() };
        let options = LiveOptions { dispatch_after: Some(together), ..LiveOptions::default() };
        Clustered::new(false, ServerOptions::default(), spec, options).map(Self)
    }

    fn start(&self) -> Tool {
        self.start_by(0, &["--log", "debug"])
    }

    /// Errors of this kind that a node has answered.
    fn errors(&self, node: usize, code: &str) -> u64 {
        let text = self.cluster.nodes[node].client().unwrap().run("INFO errorstats").unwrap().text().unwrap();
        let prefix = format!("errorstat_{code}:count=");
        text.lines().find_map(|line| line.strip_prefix(&prefix)?.trim_end().parse().ok()).unwrap_or(0)
    }

    /// Begins to move the slot of `{tag}`: these keys are at the new node then, all others still at the old one.
    fn begin_move(&self, slot: u16, (from, to): (usize, usize), keys: &[&str]) {
        let (mut old, mut new) = (self.cluster.nodes[from].client().unwrap(), self.cluster.nodes[to].client().unwrap());
        new.run(&format!("CLUSTER SETSLOT {slot} IMPORTING {}", self.cluster.id(from))).unwrap();
        old.run(&format!("CLUSTER SETSLOT {slot} MIGRATING {}", self.cluster.id(to))).unwrap();
        for key in keys {
            old.run(&format!("MIGRATE 127.0.0.1 {} {key} 0 10000", self.cluster.nodes[to].port())).unwrap();
        }
    }
}

/// `{tag}` of a slot that is not at the node of the checkpoint, its slot, its node and another one, none of them the checkpoint's.
fn place() -> (String, u16, usize, usize) {
    let checkpoint = node_of("df2redis:checkpoint");
    let tag = (0..).map(|i| format!("t{i}")).find(|tag| node_of(tag) != checkpoint).unwrap();
    let number = slot(tag.as_bytes()).0;
    let from = node_of(&tag);
    let to = (0..3).find(|node| *node != from && *node != checkpoint).unwrap();
    (format!("{{{tag}}}"), number, from, to)
}

/// The node still has one key and executes what comes for it; another key is at the new node already.
fn half_moved(world: &World, tool: &mut Tool) -> (String, u16, usize, usize) {
    let (tag, slot, from, to) = place();
    for key in ["a", "b"] {
        world.run(&format!("RPUSH {tag}:{key} begin"));
    }
    world.run(&format!("SET {tag}:n 5"));
    world.run(&format!("SET {tag}:text old"));
    world.wait_applied(tool);
    world.begin_move(slot, (from, to), &[&format!("{tag}:b"), &format!("{tag}:text")]);
    world.run(&format!("SET {tag}:text new"));
    world.run(&format!("RPUSH {tag}:b second"));
    world.run(&format!("RPUSH {tag}:a third"));
    world.run(&format!("INCR {tag}:n"));
    // The batch is answered, and what was sent elsewhere was tried there, where the marker is not yet.
    until(tool, "nothing was sent elsewhere", || world.errors(from, "ASK") > 0 && world.errors(to, "TRYAGAIN") > 0);
    (tag, slot, from, to)
}

/// What was executed at the old node must not make the next start skip what the new one has not executed.
#[test]
fn a_kill_while_a_slot_moves_loses_nothing() {
    let Some(world) = World::new(TOGETHER) else { return };
    let mut tool = world.start();
    world.wait_applied(&mut tool);
    let (_, slot, from, to) = half_moved(&world, &mut tool);
    tool.kill();
    world.cluster.move_slot(slot, from, to).unwrap();
    world.finish(world.start());
}

/// What is executed late must not lower the marker of what was executed before.
#[test]
fn a_kill_behind_a_slot_that_has_moved_doubles_nothing() {
    let Some(world) = World::new(TOGETHER) else { return };
    let mut tool = world.start();
    world.wait_applied(&mut tool);
    let (tag, slot, from, to) = half_moved(&world, &mut tool);
    // The position does not move on meanwhile.
    let stopped = Stopped::new(&world.cluster.nodes[3 - from - to]);
    world.cluster.move_slot(slot, from, to).unwrap();
    let mut client = world.cluster.nodes[to].client().unwrap();
    let executed = wait_for(|| (client.ask(&["LLEN", &format!("{tag}:b")]).ok()?.int()? == 2).then_some(()));
    tool.kill();
    assert!(executed.is_some(), "{}", tool.said());
    drop(stopped);
    world.cluster.wait_ok().unwrap();
    world.finish(world.start());
}

/// The same without a plan: a slot moves to and fro, key by key, while its keys change and the tool is killed.
#[test]
fn kills_at_any_time_while_a_slot_moves_to_and_fro() {
    let Some(world) = World::new(Duration::from_millis(2)) else { return };
    let mut tool = world.start();
    world.wait_applied(&mut tool);
    let (tag, slot, first, second) = place();
    let mut rng = Rng::new(11);
    let mut number = 0u64;
    let mut write = |count: u64| {
        for _ in 0..count {
            number += 1;
            let mut key = |family: &str| format!("{tag}:{family}{}", rng.below(4));
            world.run(&match number % 7 {
                0 => format!("SET {} {number}", key("text")),
                1 => format!("APPEND {} .{number}", key("text")),
                2 | 3 => format!("RPUSH {} {number}", key("list")),
                4 => format!("LPOP {}", key("list")),
                5 => format!("DEL {} {}", key("text"), key("list")),
                _ => format!("INCR {}", key("n")),
            });
        }
    };
    write(50);
    world.wait_applied(&mut tool);
    let mut ends = (first, second);
    for round in 0..6 {
        write(20);
        world.begin_move(slot, ends, &[]);
        let mut old = world.cluster.nodes[ends.0].client().unwrap();
        let port = world.cluster.nodes[ends.1].port();
        let mut kills = 0;
        loop {
            write(10);
            let keys = old.run(&format!("CLUSTER GETKEYSINSLOT {slot} 1")).unwrap();
            let Some(key) = keys.array().unwrap().first().and_then(|key| key.text()) else { break };
            old.run(&format!("MIGRATE 127.0.0.1 {port} {key} 0 10000")).unwrap();
            std::thread::sleep(Duration::from_millis(5 + 7 * (round + kills) % 30));
            if kills < 3 {
                kills += 1;
                tool.kill();
                tool = world.start();
            }
        }
        write(10);
        world.cluster.move_slot(slot, ends.0, ends.1).unwrap();
        world.cluster.wait_agreed().unwrap();
        // A start waits for the markers of a slot that is on the move.
        world.wait_applied(&mut tool);
        ends = (ends.1, ends.0);
    }
    write(30);
    world.finish(tool);
}
