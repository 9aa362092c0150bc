//! Seeded runs of `replicate` into a real cluster from a source that is written to all the time, with faults, and with slots that
//! move key by key meanwhile: the cluster ends equal to the source's own data. The writers use every kind of command, most
//! of them not to be applied twice, on keys of which several lie in one slot. `DF2REDIS_SEEDS=100` runs more seeds than the
//! few that fit into CI.

mod common;

use common::job::{binary, seeds};
use df2redis::lab::cluster::Cluster;
use df2redis::lab::live::stage::{self, Fault, RunSummary, StageOptions};
use df2redis::lab::live::target::Target;
use df2redis::lab::servers::{Server, ServerKind, ServerOptions, find_server};
use std::sync::Arc;

/// Over all seeds, what the options say has really happened.
fn runs(kind: ServerKind, replicas: bool, few: u64, options: impl Fn(u64) -> StageOptions) {
    // Replicas take over when they are told to, never in the middle of a slot's move at the node that gives it.
    let nodes = ServerOptions { patient_nodes: true, ..ServerOptions::default() };
    let cluster = find_server(kind).and_then(|binary| Cluster::start(&binary, 3, replicas, nodes));
    let started = cluster.and_then(|cluster| {
        let judge = Arc::new(Server::start_kind(kind, ServerOptions::default())?);
        Ok(Target::Cluster { cluster: Arc::new(cluster), judge })
    });
    let target = match started {
        Ok(target) => target,
        Err(df2redis::lab::LabError::NoServer { what, .. }) => return eprintln!("skipped: no {what} here"),
        Err(error) => panic!("{error}"),
    };
    let mut all = RunSummary::default();
    for seed in seeds(few) {
        match stage::run(binary(), target.clone(), kind, options(seed)) {
            Ok(summary) => {
                eprintln!("seed {seed}: {summary:?}");
                all += summary;
            }
            Err(reason) => panic!("seed {seed} into {kind:?}: {reason}"),
        }
    }
    let of = options(seeds(few).start);
    let has = |fault: Fault| of.faults.contains(&fault);
    assert!(all.slots_moved > 0 || !of.slots_move, "no slot moved: {all:?}");
    assert!(all.keys_lost > 0 || !of.keys_lost, "no key was lost: {all:?}");
    assert!(all.fail_overs > 0 || !has(Fault::FailOver), "no replica took over: {all:?}");
    assert!(all.kills() + all.fail_overs + all.other_faults > 0 && all.commands > 0, "nothing happened: {all:?}");
}

fn options(seed: u64, faults: &[Fault]) -> StageOptions {
    // An unoptimized tool on a busy machine follows a cluster slowly: records over several slots hold the flow.
    StageOptions { faults: faults.to_vec(), workload_rate: 1000, ..StageOptions::new(seed) }
}

#[test]
fn faults_lose_and_double_nothing() {
    runs(ServerKind::Redis7, false, 2, |seed| StageOptions { flush_every: 3000, ..options(seed, &Fault::HARMLESS) });
}

#[test]
fn kills_while_slots_move_lose_and_double_nothing() {
    runs(ServerKind::Redis7, false, 2, |seed| StageOptions { slots_move: true, ..options(seed, &[Fault::Kill]) });
}

#[test]
fn faults_while_slots_move_lose_and_double_nothing() {
    runs(ServerKind::Valkey9, false, 2, |seed| StageOptions { slots_move: true, ..options(seed, &Fault::HARMLESS) });
}

#[test]
fn replicas_that_take_over_lose_and_double_nothing() {
    runs(ServerKind::Redis7, true, 2, |seed| options(seed, &[Fault::FailOver, Fault::Kill]));
}

/// In the middle of a slot's move the replica of the node that takes it takes over, or that of a third one.
#[test]
fn replicas_that_take_over_while_slots_move_lose_and_double_nothing() {
    for kind in [ServerKind::Redis7, ServerKind::Valkey9] {
        runs(kind, true, 2, |seed| StageOptions {
            slots_move: true,
            faults_count: 6,
            ..options(seed, &[Fault::FailOver, Fault::FailOver, Fault::Kill])
        });
    }
}

/// What the nodes lose behind the tool's back is there again as soon as the source renews it, also where it is put together out of
/// commands that must not be applied twice.
#[test]
fn keys_that_nodes_lose_come_back() {
    runs(ServerKind::Redis7, false, 1, |seed| StageOptions {
        keys_lost: true,
        tool_args: ["--restore-bytes-max", "0"].map(String::from).to_vec(),
        ..options(seed, &Fault::HARMLESS)
    });
}

#[test]
fn keys_that_nodes_lose_while_slots_move_come_back() {
    runs(ServerKind::Valkey9, false, 1, |seed| StageOptions {
        slots_move: true,
        keys_lost: true,
        ..options(seed, &Fault::HARMLESS)
    });
}

#[test]
fn keys_that_nodes_lose_while_replicas_take_over_come_back() {
    runs(ServerKind::Redis7, true, 1, |seed| StageOptions {
        keys_lost: true,
        ..options(seed, &[Fault::FailOver, Fault::Kill, Fault::KillLanes])
    });
}
