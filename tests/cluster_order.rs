//! Order within a slot of a cluster while it is being moved and the tool is killed: commands that must not be applied twice, on
//! keys of one slot of which some are at the old node, some at the new one; and records over several slots, killed between
//! their parts and behind them. The source itself says what must be there. The tool may do no more at the nodes than README.md lists.

mod common;

use common::Stopped;
use common::clustered::{Clustered, node_of};
use common::job::until;
use df2redis::lab::client::Reply;
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
        let spec = Spec { seed: 5, flows_count: 1, ..Spec::of("string:60B=5,json:60B=30").unwrap() };
        let options = LiveOptions { dispatch_after: Some(together), ..LiveOptions::default() };
        Clustered::new(false, ServerOptions::default(), spec, options).map(Self)
    }

    fn start(&self) -> Tool {
        self.start_with("")
    }

    /// With more permissions than every job needs.
    fn start_with(&self, more: &str) -> Tool {
        let config = self.least_user(more);
        self.start_by(0, &["--log", "debug", "--on-unsupported", "skip", "--config", config.to_str().unwrap()])
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

/// A hash tag of each node, that of the checkpoint first.
fn tags() -> [String; 3] {
    let checkpoint = node_of("df2redis:checkpoint");
    let of = |node: usize| (0..).map(|i| format!("{{n{i}}}")).find(|tag| node_of(tag) == node);
    [0, 1, 2].map(|n| of((checkpoint + n) % 3).unwrap())
}

impl World {
    /// Asks the node of the command's first key.
    fn ask(&self, line: &str) -> Option<String> {
        let key = line.split(' ').nth(1)?;
        let reply = self.cluster.nodes[node_of(key)].client().ok()?.run(line).ok()?;
        reply.text().or_else(|| reply.int().map(|number| number.to_string()))
    }
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
    // The batch is answered, and what was sent elsewhere waits for the marker.
    until(tool, "nothing was sent elsewhere", || world.errors(from, "ASK") > 1);
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

/// A MIGRATE that failed halfway has left the marker at both nodes. What is executed at the new one is not to be covered by a marker
/// over which the old one's is moved then.
#[test]
fn a_marker_that_was_copied_doubles_nothing() {
    half_a_migrate_undoes_nothing(true);
}

/// The same with the key, whose marker has been moved.
#[test]
fn a_key_that_was_copied_loses_nothing() {
    half_a_migrate_undoes_nothing(false);
}

#[track_caller]
fn half_a_migrate_undoes_nothing(copies_marker: bool) {
    let Some(world) = World::new(TOGETHER) else { return };
    let mut tool = world.start();
    world.wait_applied(&mut tool);
    let (tag, slot, from, to) = place();
    world.run(&format!("RPUSH {tag}:a begin"));
    world.run(&format!("RPUSH {tag}:b begin"));
    world.wait_applied(&mut tool);
    let key = format!("{tag}:b");
    world.begin_move(slot, (from, to), &[]);
    let (mut old, mut new) = (world.client(from), world.client(to));
    let keys = old.run(&format!("CLUSTER GETKEYSINSLOT {slot} 10")).unwrap();
    let names: Vec<String> = keys.array().unwrap().iter().filter_map(|key| key.text()).collect();
    let marker = names.iter().find(|name| name.starts_with("df2redis:m:")).unwrap();
    let port = world.cluster.nodes[to].port();
    let (moved, copied) = if copies_marker { (&key, marker) } else { (marker, &key) };
    old.run(&format!("MIGRATE 127.0.0.1 {port} {moved} 0 10000")).unwrap();
    old.run(&format!("MIGRATE 127.0.0.1 {port} {copied} 0 10000 COPY")).unwrap();
    // The position does not move on meanwhile.
    let stopped = Stopped::new(&world.cluster.nodes[3 - from - to]);
    let asks = world.errors(from, "ASK");
    world.run(&format!("RPUSH {tag}:b second"));
    until(&mut tool, "nothing was sent elsewhere", || {
        new.run("ASKING").unwrap();
        let executed = new.ask(&["LLEN", &format!("{tag}:b")]).ok().and_then(|reply| reply.int()) == Some(2);
        executed || world.errors(from, "ASK") > asks + 3
    });
    tool.kill();
    old.run(&format!("MIGRATE 127.0.0.1 {port} {copied} 0 10000 REPLACE")).unwrap();
    drop(stopped);
    world.cluster.wait_ok().unwrap();
    world.cluster.move_slot(slot, from, to).unwrap();
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

/// The first part of a record is done, the other one, at a node that takes no writes, is not.
#[test]
fn a_kill_between_the_parts_of_a_record_over_several_slots() {
    let Some(world) = World::new(TOGETHER) else { return };
    let [c, p, q] = tags();
    let mut tool = world.start();
    for line in [
        format!("ZADD {q}a 1 x 2 y"),
        format!("ZADD {c}b 5 y 7 z"),
        format!("RPUSH {p}one 1"),
        format!("RPUSH {p}two 1 2"),
        format!("RPUSH {c}more 1 2"),
        format!("RPUSH {q}l gamma alpha beta"),
        format!("SET {q}t 1"),
        format!("ZADD {p}z 1 x 2 y"),
    ] {
        world.run(&line);
    }
    for (record, question, wanted) in [
        (format!("ZUNIONSTORE {p}d 3 {q}a {c}b {q}a"), format!("ZCARD {p}d"), "3"),
        (format!("ZRANGESTORE {p}r {q}a 0 0"), format!("ZCARD {p}r"), "1"),
        // What is left must not be taken: of the list, or of the next one.
        (format!("LMPOP 3 {q}none {p}two {c}more LEFT"), format!("LLEN {p}two"), "1"),
        (format!("LMPOP 3 {q}none {p}one {c}more LEFT"), format!("LLEN {p}one"), "0"),
        (format!("ZMPOP 2 {q}none {p}z MAX"), format!("ZCARD {p}z"), "1"),
        (format!("SORT {q}l ALPHA STORE {p}s"), format!("LLEN {p}s"), "3"),
        (format!("LMOVE {q}l {p}m LEFT RIGHT"), format!("LLEN {p}m"), "1"),
        (format!("RENAME {q}t {p}u"), format!("EXISTS {p}u"), "1"),
    ] {
        // Nothing is under way then, the position either.
        world.wait_applied(&mut tool);
        std::thread::sleep(Duration::from_millis(500));
        let mut paused = world.cluster.nodes[node_of(&q)].client().unwrap();
        paused.run("CLIENT PAUSE 60000 WRITE").unwrap();
        world.run(&record);
        until(&mut tool, &record, || world.ask(&question).as_deref() == Some(wanted));
        // The tool asks the other node for the rest now, and dies.
        std::thread::sleep(Duration::from_millis(100));
        assert!(!world.live.is_acknowledged(), "{record} did not wait for the node that takes no writes");
        tool.kill();
        std::thread::sleep(Duration::from_millis(200));
        paused.run("CLIENT UNPAUSE").unwrap();
        tool = world.start();
        world.run(&format!("ZADD {q}a 9 {}", record.len()));
    }
    world.finish(tool);
}

/// Records that were done meet again what was written behind them. It must not be taken for what they had read.
#[test]
fn what_a_record_has_read_may_change_behind_it_before_a_kill() {
    let Some(world) = World::new(TOGETHER) else { return };
    let [_, p, q] = tags();
    let node_q = node_of(&q);
    // In a slot with nothing else, whose marker would say more than this record's.
    let alone = (0..).map(|i| format!("alone{i}")).find(|key| node_of(key) == node_q).unwrap();
    let mut tool = world.start();
    for line in [
        format!("ZADD {p}own 1 x"),
        format!("ZADD {q}a 1 x 2 y"),
        format!("RPUSH {p}list 1 2"),
        format!("ZADD {p}z 1 x 2 y 3 z"),
        format!("ZADD {alone} 1 x"),
        format!("SET {q}t 1"),
    ] {
        world.run(&line);
    }
    world.wait_applied(&mut tool);
    // A document is left out, so that the target has nothing to rename.
    let documents = world.live.world().look(|data| {
        let keys = data.iter().filter(|(_, _, object)| object.value.type_name() == "ReJSON-RL").map(|(_, key, _)| key);
        keys.map(|key| String::from_utf8(key.clone()).unwrap()).collect::<Vec<_>>()
    });
    let document = documents.iter().find(|key| node_of(key) == node_q).unwrap();
    let position = world.ask("HGET df2redis:checkpoint lsn:0").unwrap();
    for line in [
        format!("ZUNIONSTORE {p}d 2 {p}own {q}a"),
        format!("ZADD {q}a 5 later"),
        // The second key is not even looked at.
        format!("ZMPOP 2 {p}z {alone} MIN"),
        format!("LMPOP 2 {q}nothing {q}neither RIGHT"),
        format!("LMPOP 2 {p}nothing {q}nothing RIGHT"),
        format!("RENAME {q}t {p}u"),
        format!("SET {q}t later"),
        format!("RENAME {document} {p}document"),
        format!("SET {document} later"),
        format!("RPUSH {q}nothing later"),
        // Its marker stands for all before it.
        format!("INCR {p}n"),
        format!("SET {q}end 1"),
    ] {
        world.run(&line);
    }
    until(&mut tool, "the last record", || world.ask(&format!("GET {q}end")).is_some());
    world.wait_applied(&mut tool);
    tool.kill();
    // As if it had been killed before the position was written.
    world.ask(&format!("HSET df2redis:checkpoint lsn:0 {position}")).unwrap();
    world.run(&format!("SET {q}end 2"));
    world.finish(world.start());
    assert_eq!(world.ask(&format!("EXISTS {p}document")).as_deref(), Some("0"));
}

/// A part of a copy that is made in pages, outside of any transaction, is no beginning of the next one.
#[test]
fn a_kill_while_a_long_value_goes_to_another_slot() {
    let Some(world) = World::new(TOGETHER) else { return };
    let [_, p, q] = tags();
    let mut tool = world.start_with("+@read");
    for n in 0..60 {
        let value = common::noise(2 * n + 1, 300 << 10);
        world.live.world().run(0, &[b"RPUSH".to_vec(), format!("{q}long").into_bytes(), value]);
    }
    world.wait_applied(&mut tool);
    let mut client = world.client(node_of(&p));
    let mut copies = || match client.run("KEYS df2redis:t:*").unwrap() {
        Reply::Array(keys) => keys.len(),
        other => panic!("{other:?}"),
    };
    world.run(&format!("RENAME {q}long {p}longer"));
    until(&mut tool, "no copy is begun", || copies() == 1);
    tool.kill();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(copies(), 1, "it was over before the kill");
    world.run(&format!("RPUSH {p}longer end"));
    world.finish(world.start_with("+@read"));
    assert_eq!(copies(), 0);
}
