//! Slots that are open, MIGRATING at one node and IMPORTING at another, for as long as somebody leaves them so: what does not lie in
//! them goes on.

mod common;

use common::clustered::{Clustered, key_on, node_of};
use common::job::until;
use df2redis::lab::encode::owner;
use df2redis::lab::flow::{Faults, Gate};
use df2redis::lab::generate::Spec;
use df2redis::lab::live::LiveOptions;
use df2redis::lab::master::MasterOptions;
use df2redis::lab::servers::{ServerKind, ServerOptions};
use df2redis::redis::slot::slot;
use std::time::Duration;

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

/// One worker waits for a slot, the other one carries out records over several of other slots.
#[test]
fn a_worker_that_waits_for_its_slot_stops_no_other_one() {
    let Some(world) = world(2) else { return };
    let of = |flow: usize, node: usize, family: &str| {
        let mut keys = (0..).map(|i| format!("{family}:{i}"));
        keys.find(|key| node_of(key) == node && owner(key.as_bytes(), 2) == flow).unwrap()
    };
    let mut tool = world.start_by(1, &["--cores", "2", "--log", "info"]);
    let number = of(0, 0, "n");
    world.wait_applied(&mut tool);
    world.run(&format!("INCR {number}"));
    world.wait_applied(&mut tool);
    // The marker of its flow has moved, the number has not: the next INCR belongs to neither end.
    let moving = slot(number.as_bytes()).0;
    open(&world, moving, 0, 1);
    let keys = world.client(0).run(&format!("CLUSTER GETKEYSINSLOT {moving} 100")).unwrap();
    let marker = keys.array().unwrap().iter().filter_map(|key| key.text()).find(|key| key.starts_with("df2redis:m:"));
    let (port, marker) = (world.cluster.nodes[1].port().to_string(), marker.unwrap());
    let moved = world.client(0).ask(&["MIGRATE", "127.0.0.1", &port, &marker, "0", "5000"]).unwrap();
    assert_eq!(moved.text().as_deref(), Some("OK"));
    world.cluster.forget_redirects().unwrap();
    world.run(&format!("INCR {number}"));
    until(&mut tool, "no worker is held", || world.cluster.redirects().unwrap().1 > 0);
    let (from, to) = (of(1, 0, "from"), of(1, 2, "to"));
    for round in 0..5 {
        world.run(&format!("SET {from} {round}"));
        world.run(&format!("RENAME {from} {to}"));
        let wanted = world.live.world().next_lsns()[1];
        until(&mut tool, "the other worker stands still", || world.live.master().unwrap().acks()[1] == Some(wanted));
    }
    let said = || world.client(0).ask(&["GET", &number]).unwrap().text();
    assert_eq!(said().as_deref(), Some("1"), "nobody waited");
    assert!(!world.live.is_acknowledged());
    world.cluster.move_slot(moving, 0, 1).unwrap();
    world.cluster.wait_agreed().unwrap();
    world.finish(tool);
}

/// Two moments in which the checkpoint cannot be read, further apart than `--retry-max`, are no reason to give up: in between it could.
#[test]
fn moments_in_which_the_checkpoint_cannot_be_called_good_are_counted_one_by_one() {
    let spec = Spec { seed: 4, flows_count: 1, ..Spec::of("string:60B=1").unwrap() };
    let gate = Gate::default();
    let source = MasterOptions {
        faults: Faults { full_sync_gate: Some(gate.clone()), ..Faults::default() },
        ..MasterOptions::default()
    };
    let nodes = ServerOptions::default();
    let Some(world) = Clustered::from(ServerKind::Redis7, false, nodes, spec, LiveOptions::default(), source) else {
        return;
    };
    let checkpoint = node_of("df2redis:checkpoint");
    let only =
        world.live.world().look(|data| data.iter().map(|(_, key, _)| String::from_utf8(key.clone()).unwrap()).next());
    let idle = (0..3).find(|node| *node != checkpoint && *node != node_of(only.as_deref().unwrap())).unwrap();
    let mut tool = world.start_by(checkpoint, &["--log", "info", "--retry-max", "2s"]);
    let mut client = world.client(checkpoint);
    let mut field = |field: &str| client.ask(&["HGET", "df2redis:checkpoint", field]).unwrap().text();
    until(&mut tool, "no full sync", || {
        field("phase").as_deref() == Some("full") && world.live.registrations_count() == 1
    });
    // Its positions are not answered, so that no homes are named.
    world.client(idle).run("CLIENT PAUSE 30000 WRITE").unwrap();
    gate.open();
    until(&mut tool, "the snapshot is not applied", || field("lsn:0").is_some());
    let mut admin = world.client(checkpoint);
    let words = "the checkpoint cannot be called good yet";
    for times in 1..=2 {
        admin.run("ACL SETUSER default -hscan -hgetall").unwrap();
        until(&mut tool, "it does not say so", || {
            std::fs::read_to_string(world.log()).unwrap_or_default().matches(words).count() >= times
        });
        admin.run("ACL SETUSER default +hscan +hgetall").unwrap();
        if times == 1 {
            std::thread::sleep(Duration::from_millis(2500));
        }
    }
    assert_eq!((field("phase").as_deref(), field("homes:0")), (Some("full"), None), "{}", tool.said());
    world.client(idle).run("CLIENT UNPAUSE").unwrap();
    world.run(&format!("SET {} 1", key_on(0, "k")));
    world.finish(tool);
}
