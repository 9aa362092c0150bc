//! Slots that are open, MIGRATING at one node and IMPORTING at another, for as long as somebody leaves them so: what does not lie in
//! them goes on.

mod common;

use common::clustered::{Clustered, key_on, node_of};
use common::job::until;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::LiveOptions;
use df2redis::lab::servers::ServerOptions;
use df2redis::redis::slot::slot;

fn world(flows_count: usize) -> Option<Clustered> {
    let spec = Spec { seed: 4, flows_count, ..Spec::of("string:60B=30").unwrap() };
    Clustered::new(false, ServerOptions::default(), spec, LiveOptions::default())
}

/// The slot is MIGRATING at the one and IMPORTING at the other; no key of it has moved.
fn open(world: &Clustered, slot: u16, from: usize, to: usize) {
    let (from_id, to_id) = (world.cluster.id(from), world.cluster.id(to));
    world.client(to).run(&format!("CLUSTER SETSLOT {slot} IMPORTING {from_id}")).unwrap();
    world.client(from).run(&format!("CLUSTER SETSLOT {slot} MIGRATING {to_id}")).unwrap();
}

/// A resharding was cut off before the job began; nobody writes to its slots.
#[test]
fn positions_in_an_open_slot_hold_nobody() {
    let Some(world) = world(2) else { return };
    // The first two of a node, and some where positions may be kept.
    let opened: Vec<u16> = (0..2).chain(681..686).collect();
    opened.iter().for_each(|slot| open(&world, *slot, 0, 1));
    world.cluster.forget_redirects().unwrap();
    let key = |node: usize, family: &str| {
        let mut keys = (0..).map(|i| format!("{family}:{i}"));
        keys.find(|key| node_of(key) == node && !opened.contains(&slot(key.as_bytes()).0)).unwrap()
    };
    let mut tool = world.start_by(1, &["--cores", "1", "--log", "info"]);
    for round in 0..20 {
        (0..3).for_each(|node| world.run(&format!("RPUSH {} {round}", key(node, "list"))));
        (0..3).for_each(|node| world.run(&format!("SET {} {round}", key(node, "text"))));
        world.wait_applied(&mut tool);
    }
    // What was sent there once is not sent there again.
    let (_, asks) = world.cluster.redirects().unwrap();
    assert!((1..30).contains(&asks), "{asks}");
    opened.iter().for_each(|slot| world.cluster.move_slot(*slot, 0, 1).unwrap());
    world.cluster.wait_agreed().unwrap();
    world.finish(tool);
}

/// What is read of a slot at the start is read of one that has none of its keys, or some of them, at either end.
#[test]
fn a_session_begins_though_slots_are_open() {
    let Some(world) = world(1) else { return };
    let mut tool = world.start_by(1, &["--log", "info"]);
    world.run(&format!("RPUSH {} 1", key_on(0, "list")));
    world.wait_applied(&mut tool);
    let field = |field: &str| {
        let mut client = world.client(node_of("df2redis:checkpoint"));
        client.ask(&["HGET", "df2redis:checkpoint", field]).unwrap().text()
    };
    until(&mut tool, "no homes are named", || field("homes:0").is_some());
    let homes = field("homes:0").unwrap();
    let home: u16 = homes.split(',').next().unwrap().parse().unwrap();
    assert!(home < 5000, "one of the first node: {homes}");
    let registrations = world.live.registrations_count();
    for slot in [home, 3000] {
        open(&world, slot, 0, 1);
    }
    world.live.master().unwrap().cut_all();
    until(&mut tool, "no session begins", || world.live.registrations_count() > registrations);
    world.run(&format!("RPUSH {} 2", key_on(0, "list")));
    world.wait_applied(&mut tool);
    for slot in [home, 3000] {
        world.cluster.move_slot(slot, 0, 1).unwrap();
    }
    world.cluster.wait_agreed().unwrap();
    world.finish(tool);
    assert!(world.live.partial_count() > 0);
}
