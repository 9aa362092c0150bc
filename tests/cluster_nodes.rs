//! Nodes that join a cluster and leave it while the tool follows, also the one that the operator named.

mod common;

use common::clustered::{Clustered, key_on};
use common::job::until;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::LiveOptions;
use df2redis::lab::servers::ServerOptions;
use df2redis::redis::slot::slot;

/// Keys that are written to; `move_to` has their slots moved.
const KEYS: usize = 12;

fn world() -> Option<Clustered> {
    let spec = Spec { seed: 5, flows_count: 2, ..Spec::of("string:60B=50,list:6x9=10").unwrap() };
    // Else a node turns into a replica as soon as it hears that its last slot is another's, in the middle of giving it away.
    let nodes = ServerOptions::default().config("cluster-allow-replica-migration", "no");
    Clustered::new(false, nodes, spec, LiveOptions::default())
}

fn key(i: usize) -> String {
    key_on(i % 3, &format!("k{i}"))
}

/// The slots of the keys go from the nodes of the beginning to `node`, or back.
fn move_slots(world: &Clustered, node: usize, back: bool) {
    for i in 0..KEYS {
        let (from, to) = if back { (node, i % 3) } else { (i % 3, node) };
        world.cluster.wait_agreed().unwrap();
        world.cluster.move_slot(slot(key(i).as_bytes()).0, from, to).unwrap();
    }
}

fn write(world: &Clustered, rounds: usize) {
    for i in 0..rounds * KEYS {
        world.run(&format!("RPUSH {} {i}", key(i % KEYS)));
    }
}

#[test]
fn a_node_that_joins_and_leaves_is_written_to_as_long_as_it_has_slots() {
    let Some(mut world) = world() else { return };
    let mut tool = world.start_by(0, &["--log", "info"]);
    write(&world, 5);
    world.wait_applied(&mut tool);
    let node = world.cluster.join().unwrap();
    move_slots(&world, node, false);
    write(&world, 5);
    world.wait_applied(&mut tool);
    let mut client = world.client(node);
    let last = format!("LINDEX {} -1", key(1));
    assert_eq!(client.run(&last).unwrap().text(), Some((4 * KEYS + 1).to_string()));
    move_slots(&world, node, true);
    write(&world, 5);
    world.wait_applied(&mut tool);
    drop(world.cluster.leave().unwrap());
    write(&world, 5);
    world.wait_applied(&mut tool);
    // Its lanes are lost once, not with each record for which the workers are held.
    let mut client = world.client(1);
    let mut asked = || {
        let stats = client.ask(&["INFO", "commandstats"]).unwrap().text().unwrap();
        let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_cluster|shards:calls="));
        calls.and_then(|calls| calls.split(',').next()?.parse::<u64>().ok()).unwrap_or_default()
    };
    let before = asked();
    for i in 0..50 {
        world.run(&format!("SET {} {i}", key_on(0, "from")));
        world.run(&format!("RENAME {} {}", key_on(0, "from"), key_on(1, "to")));
    }
    world.wait_applied(&mut tool);
    assert!(asked() < before + 25, "{} -> {}", before, asked());
    world.finish(tool);
}

#[test]
fn the_named_node_may_leave() {
    let Some(mut world) = world() else { return };
    let node = world.cluster.join().unwrap();
    move_slots(&world, node, false);
    let mut tool = world.start_by(node, &["--log", "info"]);
    write(&world, 5);
    world.wait_applied(&mut tool);
    move_slots(&world, node, true);
    write(&world, 5);
    world.wait_applied(&mut tool);
    // It still answers, and knows nobody.
    let left = world.cluster.leave().unwrap();
    let registrations = world.live.registrations_count();
    world.live.master().unwrap().cut_all();
    until(&mut tool, "no session began", || world.live.registrations_count() > registrations);
    write(&world, 5);
    world.wait_applied(&mut tool);
    world.run("FLUSHALL");
    write(&world, 5);
    world.finish(tool);
    assert!(left.is_some_and(|left| left.client().unwrap().run("DBSIZE").unwrap().int() == Some(0)));
}
