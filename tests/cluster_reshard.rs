//! Every slot of a cluster with replicas moves to another node, once in the full sync and once while the journal is followed. The
//! source writes all the time; the full sync does not end before the move has. The nodes say that they redirected.

mod common;

use common::Stopped;
use common::clustered::Clustered;
use common::job::{binary, until};
use df2redis::lab::LabError;
use df2redis::lab::cluster::Cluster;
use df2redis::lab::flow::{Faults, Gate};
use df2redis::lab::generate::Spec;
use df2redis::lab::live::LiveOptions;
use df2redis::lab::live::stage::{LiveStage, StageOptions};
use df2redis::lab::live::target::{Mover, Target};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::{self, Tool, wait_for};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Moves all slots, and then some of those that the tool writes to key by key, until a node has answered `ASK`. Nobody but the
/// tool must ask the nodes for keys meanwhile.
fn move_all(cluster: &Arc<Cluster>) {
    cluster.forget_redirects().unwrap();
    assert_eq!(cluster.reshard(1).unwrap(), 16384);
    let mover = Mover::start(cluster.clone(), 1);
    let met = wait_for(|| matches!(cluster.redirects().unwrap(), (1.., 1..)).then_some(()));
    mover.stop().unwrap();
    assert!(met.is_some(), "redirects: {:?}", cluster.redirects().unwrap());
}

fn servers(kind: ServerKind) -> Option<(Arc<Cluster>, Arc<Server>)> {
    let started = Cluster::start_kind(kind, 3, true).and_then(|cluster| {
        let judge = Server::start_kind(kind, ServerOptions::default())?;
        Ok((Arc::new(cluster), Arc::new(judge)))
    });
    match started {
        Err(LabError::NoServer { what, .. }) => {
            eprintln!("skipped: no {what} here");
            None
        }
        started => Some(started.unwrap()),
    }
}

fn every_slot_moves(kind: ServerKind) {
    let Some((cluster, judge)) = servers(kind) else { return };
    let gate = Gate::default();
    let options = StageOptions {
        workload_rate: 100,
        full_sync_gate: Some(gate.clone()),
        tool_args: ["--log", "info"].map(String::from).to_vec(),
        ..StageOptions::new(7)
    };
    let target = Target::Cluster { cluster: cluster.clone(), judge };
    let stage = LiveStage::new(binary(), target.clone(), kind, options).unwrap();
    let mut tool = stage.start().unwrap();
    let begun = wait_for(|| (cluster.keys().unwrap().len() > 50).then_some(()));
    assert!(begun.is_some(), "the full sync does not begin:\n{}", tool.said());
    move_all(&cluster);
    assert_eq!(tool.ended(), None, "{}", tool.said());
    assert!(!target.is_stable(), "the full sync was over");
    gate.open();
    stage.wait_stable(&mut tool).unwrap();

    move_all(&cluster);
    followed_from_here(&stage, &mut tool);
    let summary = stage.finish(tool).unwrap_or_else(|why| panic!("{kind:?}: {why}"));
    assert_eq!((summary.registrations, summary.partial_syncs), (1, 0), "{summary:?}");
}

/// The journal is still followed behind the last move.
fn followed_from_here(stage: &LiveStage, tool: &mut Tool) {
    let behind: Vec<u64> = stage.live.world().next_lsns().iter().map(|lsn| lsn + 10).collect();
    let is_past =
        |acks: Vec<Option<u64>>| acks.iter().zip(&behind).all(|(ack, lsn)| ack.is_some_and(|ack| ack >= *lsn));
    let followed = wait_for(|| is_past(stage.live.master()?.acks()).then_some(()));
    assert!(followed.is_some(), "{:?} of {behind:?}\n{}", stage.live.master().unwrap().acks(), tool.said());
    assert_eq!(tool.ended(), None, "{}", tool.said());
}

/// Thirds of the slots move at once: the nodes block what is written to them for a moment, and then say MOVED, never ASK.
fn runs_move_at_once(cluster: &Cluster, turn: usize) {
    cluster.forget_redirects().unwrap();
    let ends = [0, 5461, 10922, 16384];
    for third in 0..3 {
        let (first, last) = (ends[third] as u16, (ends[third + 1] - 1) as u16);
        let (from, to) = ((third + turn) % 3, (third + turn + 1) % 3);
        // In parts, so that no node is ever without slots.
        let middle = first + (last - first) / 2;
        cluster.wait_agreed().unwrap();
        cluster.move_atomically((first, middle), from, to).unwrap();
    }
    cluster.wait_agreed().unwrap();
    for third in 0..3 {
        let (first, last) = (ends[third] as u16, (ends[third + 1] - 1) as u16);
        let (from, to) = ((third + turn) % 3, (third + turn + 1) % 3);
        cluster.move_atomically((first + (last - first) / 2 + 1, last), from, to).unwrap();
        cluster.wait_agreed().unwrap();
    }
    let met = wait_for(|| (cluster.redirects().unwrap().0 > 0).then_some(()));
    assert!(met.is_some(), "nobody was sent elsewhere");
    assert_eq!(cluster.redirects().unwrap().1, 0, "slots that move at once know no ASK");
}

/// A move that is called off: the node that was to take the slots stands still meanwhile.
fn a_move_is_called_off(cluster: &Cluster, slots: (u16, u16), from: usize, to: usize) {
    let frozen = Stopped::new(&cluster.nodes[to]);
    cluster.begin_atomic_move(slots, from, to).unwrap();
    let mut client = cluster.nodes[from].client().unwrap();
    client.run("CLUSTER CANCELSLOTMIGRATIONS").unwrap();
    drop(frozen);
    assert_eq!(cluster.atomic_move_state(from).unwrap(), "cancelled");
}

/// Valkey 9's `CLUSTER MIGRATESLOTS`: positions of the nodes travel with their slots, in one piece. (No pending entries of which the
/// stream has none any more: it drops them.)
#[test]
fn slots_of_valkey_9_move_at_once_in_the_full_sync_and_behind_it() {
    let gate = Gate::default();
    let mix = "string:60B=300,string:3000B=20,list:6x9=40,set:8x9=40,hash:6x9=40,zset:6x9=40";
    let spec = Spec { seed: 8, flows_count: 2, ..Spec::of(mix).unwrap() };
    let faults = Faults { full_sync_gate: Some(gate.clone()), ..Faults::default() };
    let (options, source) = (ServerOptions::default(), MasterOptions { faults, ..MasterOptions::default() });
    let Some(world) = Clustered::from(ServerKind::Valkey9, false, options, spec, LiveOptions::default(), source) else {
        return;
    };
    let cluster = &world.cluster;
    let mut tool = world.start_by(0, &["--log", "info"]);
    let begun = wait_for(|| (cluster.keys().unwrap().len() > 50).then_some(()));
    assert!(begun.is_some(), "the full sync does not begin:\n{}", tool.said());
    let is_stable = || cluster.primaries().into_iter().any(|at| torture::is_stable(&cluster.nodes[at]));
    let written = while_written(&world, 0, || {
        runs_move_at_once(cluster, 0);
        assert!(tool.ended().is_none() && !is_stable(), "the full sync was over\n{}", tool.said());
        gate.open();
        until(&mut tool, "no good checkpoint", is_stable);
        runs_move_at_once(cluster, 1);
        // The first third is at the third node now.
        a_move_is_called_off(cluster, (0, 2000), 2, 0);
        let behind = world.live.world().next_lsns();
        let acks = || world.live.master().unwrap().acks();
        let is_past = || acks().iter().zip(&behind).all(|(ack, lsn)| ack.is_some_and(|ack| ack > *lsn));
        until(&mut tool, "the journal is not followed", is_past);
    });
    assert!(written > 10, "{written}");
    // Its markers and positions move while it is away, too.
    let partials = world.live.partial_count();
    tool.kill();
    for (slots, from, to) in [((0, 1999), 2, 1), ((6000, 7999), 0, 1), ((11000, 12999), 1, 2)] {
        cluster.move_atomically(slots, from, to).unwrap();
        cluster.wait_agreed().unwrap();
    }
    let mut tool = world.start_by(0, &["--log", "info"]);
    while_written(&world, written, || {
        until(&mut tool, "no session is begun", || world.live.partial_count() > partials)
    });
    world.finish(tool);
}

/// Writes keys of all slots as long as something else is done, the `from`-th round first: most commands must not be applied twice, some are over two slots. How
/// many rounds there were then.
fn while_written(world: &Clustered, from: u64, meanwhile: impl FnOnce()) -> u64 {
    let stop = AtomicBool::new(false);
    let mut count = 0;
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut n = from;
            while !stop.load(Ordering::Acquire) {
                n += 1;
                let key = n % 97;
                world.run(&format!("INCR n:{key}"));
                world.run(&format!("RPUSH l:{key} {n}"));
                world.run(&format!("APPEND t:{key} <{n}>"));
                world.run(&format!("HINCRBY h:{key} f{} 3", n % 5));
                world.run(&format!("XADD x:{key} {n}-1 n {n}"));
                world.run(&format!("SET p:{n} {n}"));
                world.run(&format!("RENAME p:{n} q:{key}"));
                std::thread::sleep(Duration::from_millis(20));
            }
            n
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(meanwhile));
        stop.store(true, Ordering::Release);
        count = writer.join().unwrap();
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    count
}

#[test]
fn every_slot_of_redis_7_moves_in_the_full_sync_and_behind_it() {
    every_slot_moves(ServerKind::Redis7);
}

#[test]
fn every_slot_of_valkey_9_moves_in_the_full_sync_and_behind_it() {
    every_slot_moves(ServerKind::Valkey9);
}
