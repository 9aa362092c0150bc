//! Every slot of a cluster with replicas moves to another node, once in the full sync and once while the journal is followed. The
//! source writes all the time; the full sync does not end before the move has. The nodes say that they redirected.

mod common;

use common::job::binary;
use df2redis::lab::LabError;
use df2redis::lab::cluster::Cluster;
use df2redis::lab::flow::Gate;
use df2redis::lab::live::stage::{LiveStage, StageOptions};
use df2redis::lab::live::target::{Mover, Target};
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::wait_for;
use std::sync::Arc;

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

fn every_slot_moves(kind: ServerKind) {
    let started = Cluster::start_kind(kind, 3, true).and_then(|cluster| {
        let judge = Server::start_kind(kind, ServerOptions::default())?;
        Ok((Arc::new(cluster), Arc::new(judge)))
    });
    let (cluster, judge) = match started {
        Err(LabError::NoServer { what, .. }) => return eprintln!("skipped: no {what} here"),
        started => started.unwrap(),
    };
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
    // The journal is still followed behind the last move.
    let behind: Vec<u64> = stage.live.world().next_lsns().iter().map(|lsn| lsn + 10).collect();
    let is_past =
        |acks: Vec<Option<u64>>| acks.iter().zip(&behind).all(|(ack, lsn)| ack.is_some_and(|ack| ack >= *lsn));
    let followed = wait_for(|| is_past(stage.live.master()?.acks()).then_some(()));
    assert!(followed.is_some(), "{:?} of {behind:?}\n{}", stage.live.master().unwrap().acks(), tool.said());
    let summary = stage.finish(tool).unwrap_or_else(|why| panic!("{kind:?}: {why}"));
    assert_eq!((summary.registrations, summary.partial_syncs), (1, 0), "{summary:?}");
}

#[test]
fn every_slot_of_redis_7_moves_in_the_full_sync_and_behind_it() {
    every_slot_moves(ServerKind::Redis7);
}

#[test]
fn every_slot_of_valkey_9_moves_in_the_full_sync_and_behind_it() {
    every_slot_moves(ServerKind::Valkey9);
}
