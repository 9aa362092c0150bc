//! Seeded runs of `replicate` from a source that is written to all the time, with faults: the target ends equal to the
//! source's own data. `DF2REDIS_SEEDS=100` runs more seeds than the few that fit into CI.

mod common;

use common::job::{binary, seeds};
use df2redis::lab::LabError;
use df2redis::lab::client::{Address, Client};
use df2redis::lab::live::stage::{self, Fault, LiveStage, StageOptions};
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::wait_for;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn runs(kind: ServerKind, few: u64, options: impl Fn(u64) -> StageOptions) {
    let server = match Server::start_kind(kind, ServerOptions::default()) {
        Ok(server) => Arc::new(server),
        Err(error @ LabError::NoServer { .. }) => {
            eprintln!("skipped: {kind:?} cannot be started here: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    for seed in seeds(few) {
        match stage::run(binary(), server.clone(), kind, options(seed)) {
            Ok(summary) => eprintln!("seed {seed}: {summary:?}"),
            Err(reason) => panic!("seed {seed} into {kind:?}: {reason}"),
        }
    }
}

#[test]
fn without_faults() {
    runs(ServerKind::Redis7, 3, |seed| StageOptions { faults_count: 0, ..StageOptions::new(seed) });
}

#[test]
fn faults_that_lose_no_position() {
    runs(ServerKind::Redis7, 6, |seed| StageOptions { flush_every: 4000, ..StageOptions::new(seed) });
}

#[test]
fn lost_positions_are_resynced() {
    runs(ServerKind::Redis7, 3, |seed| StageOptions {
        faults: vec![Fault::RestartSource, Fault::Kill],
        faults_count: 3,
        never_partial: if seed % 2 == 0 { vec![seed as usize] } else { Vec::new() },
        tool_args: ["--on-lost-position", "resync"].map(str::to_owned).to_vec(),
        ..StageOptions::new(seed)
    });
}

/// A source that goes away in the middle of the first full sync is synced with again when it is back, by the same process.
#[test]
fn a_source_lost_inside_the_full_sync_is_synced_again() {
    for (seed, fault) in [(21, Fault::RestartSource), (22, Fault::CutFlow), (23, Fault::CutAll)] {
        let server = Arc::new(Server::start_kind(ServerKind::Redis7, ServerOptions::default()).unwrap());
        let mut stage = LiveStage::new(binary(), server.clone(), ServerKind::Redis7, StageOptions::new(seed)).unwrap();
        let mut tool = stage.start().unwrap();
        let mut target = server.client().unwrap();
        for losses in 1..=2 {
            // Something of this registration is at the target already, and not all.
            let halfway = wait_for(|| {
                let begun =
                    stage.live.master().is_some_and(|master| master.sent_bytes().iter().any(|sent| *sent > 4000));
                let keys = target.run("DBSIZE").unwrap().int().unwrap();
                assert_eq!(tool.ended(), None, "{}", tool.said());
                (begun && keys > 5 && stage.live.registrations_count() >= losses).then_some(())
            });
            assert!(halfway.is_some(), "{}", tool.said());
            // A key that the second snapshot does not have.
            target.run("SET stale:of:the:first:attempt 1").unwrap();
            stage.do_fault(fault, &mut tool).unwrap();
            let again = wait_for(|| (stage.live.registrations_count() > losses).then_some(()));
            assert!(again.is_some(), "{}", tool.said());
        }
        assert!(tool.said().contains("beginning anew when it is back"), "{}", tool.said());
        let summary = stage.finish(tool).unwrap_or_else(|reason| panic!("{fault:?}: {reason}"));
        assert!(summary.registrations >= 3 && summary.partial_syncs == 0, "{summary:?}");
    }
}

/// Before 1.35 a partial sync comes in blobs, behind DFLY SYNC: each record is applied once there, too.
#[test]
fn partial_syncs_in_blobs_lose_and_double_nothing() {
    runs(ServerKind::Redis7, 4, |seed| StageOptions {
        faults: vec![Fault::CutAll, Fault::Kill, Fault::CutFlow],
        faults_count: 6,
        partial_by_sync: true,
        flush_every: if seed % 2 == 0 { 300 } else { 0 },
        ..StageOptions::new(200 + seed)
    });
}

/// Cut and killed again while the blobs come: the position of the checkpoint goes on from inside of them.
#[test]
fn a_partial_sync_in_blobs_is_granted_and_counted() {
    let server = Arc::new(Server::start_kind(ServerKind::Redis7, ServerOptions::default()).unwrap());
    let options = StageOptions { partial_by_sync: true, ..StageOptions::new(31) };
    let mut stage = LiveStage::new(binary(), server, ServerKind::Redis7, options).unwrap();
    let mut tool = stage.start().unwrap();
    stage.wait_stable(&mut tool).unwrap();
    for (round, pause_ms) in [300, 0, 20, 60, 100].into_iter().enumerate() {
        let registrations = stage.live.registrations_count();
        std::thread::sleep(std::time::Duration::from_millis(pause_ms));
        stage.do_fault(if round % 2 == 0 { Fault::CutAll } else { Fault::Kill }, &mut tool).unwrap();
        let again = wait_for(|| (stage.live.registrations_count() > registrations).then_some(()));
        assert!(again.is_some() && tool.ended().is_none(), "{}", tool.said());
    }
    let summary = stage.finish(tool).unwrap_or_else(|reason| panic!("{reason}"));
    assert!(summary.partial_syncs >= 2, "{summary:?}");
}

#[test]
fn a_record_left_out_of_the_blobs_is_a_lost_position() {
    let server = Arc::new(Server::start_kind(ServerKind::Redis7, ServerOptions::default()).unwrap());
    let options = StageOptions { partial_by_sync: true, blob_left_out: true, ..StageOptions::new(32) };
    let mut stage = LiveStage::new(binary(), server.clone(), ServerKind::Redis7, options).unwrap();
    let mut tool = stage.start().unwrap();
    stage.wait_stable(&mut tool).unwrap();
    stage.do_fault(Fault::CutAll, &mut tool).unwrap();
    assert_eq!(tool.wait(), Some(8), "{}", tool.said());
    assert!(tool.said().contains("was counted over the records of the partial sync"), "{}", tool.said());
}

/// What else the target holds is worth more than a new full sync.
#[test]
fn a_target_with_keys_of_its_own_is_not_emptied_for_another_full_sync() {
    let server = Arc::new(Server::start_kind(ServerKind::Redis7, ServerOptions::default()).unwrap());
    let tool_args = ["--on-existing", "replace"].map(str::to_owned).to_vec();
    let options = StageOptions { tool_args, ..StageOptions::new(24) };
    let mut stage = LiveStage::new(binary(), server.clone(), ServerKind::Redis7, options).unwrap();
    let mut target = server.client().unwrap();
    target.run("SET of:its:own 1").unwrap();
    let mut tool = stage.start().unwrap();
    assert!(wait_for(|| (target.run("DBSIZE").unwrap().int().unwrap() > 5).then_some(())).is_some(), "{}", tool.said());
    stage.do_fault(Fault::CutAll, &mut tool).unwrap();
    assert_eq!(tool.wait(), Some(4), "{}", tool.said());
    assert_eq!(target.run("GET of:its:own").unwrap().text().unwrap(), "1");
    assert_eq!(stage.live.registrations_count(), 1);
}

#[test]
fn barriers_in_any_order() {
    runs(ServerKind::Redis7, 2, |seed| StageOptions {
        faults_count: 2,
        flush_every: 200,
        workload_rate: 1500,
        ..StageOptions::new(seed)
    });
}

#[test]
fn into_valkey_9_and_redis_8() {
    for kind in [ServerKind::Valkey9, ServerKind::Redis8] {
        runs(kind, 1, StageOptions::new);
    }
}

/// Full sync and journal, with faults, into the oldest release that is carried into.
#[test]
fn into_redis_6() {
    runs(ServerKind::Redis6, 1, |seed| StageOptions { pops_of_one_key: true, ..StageOptions::new(seed) });
}

/// What ordinary clients write is replicated; a pause drains; a takeover waits for the target and ends the source.
#[test]
fn real_writers_a_pause_and_a_takeover() {
    let server = Arc::new(Server::start_kind(ServerKind::Redis7, ServerOptions::default()).unwrap());
    let options = StageOptions { workload_rate: 300, ..StageOptions::new(7) };
    let stage = LiveStage::new(binary(), server.clone(), ServerKind::Redis7, options).unwrap();
    let mut tool = stage.start().unwrap();
    stage.wait_stable(&mut tool).unwrap();
    let address = Address::Tcp("127.0.0.1".into(), stage.live.port());
    let stop = Arc::<AtomicBool>::default();
    let writers: Vec<_> = (0..3)
        .map(|writer| {
            let (address, stop) = (address.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut client = Client::connect(&address).unwrap();
                let mut acknowledged = 0;
                while !stop.load(Ordering::Acquire) {
                    // The source dies by the takeover: only what it acknowledged counts.
                    match client.run(&format!("INCR writer:{writer}")) {
                        Ok(reply) => acknowledged = reply.int().unwrap(),
                        Err(_) => break,
                    }
                }
                acknowledged
            })
        })
        .collect();
    let mut admin = Client::connect(&address).unwrap();
    let offsets = |admin: &mut Client| admin.run("DFLY REPLICAOFFSET").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    admin.run("CLIENT PAUSE 60000 WRITE").unwrap();
    let held = offsets(&mut admin);
    assert!(wait_for(|| stage.live.is_acknowledged().then_some(())).is_some(), "{}", tool.said());
    assert_eq!(offsets(&mut admin), held);
    let info = admin.run("INFO REPLICATION").unwrap().text().unwrap();
    assert!(info.contains("connected_slaves:1") && info.contains("state=stable_sync,lag=0"), "{info}");
    admin.run("CLIENT UNPAUSE").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(admin.run("DFLY TAKEOVER 60 SYNC1").unwrap().text().unwrap(), "OK");
    stop.store(true, Ordering::Release);
    let mut target = server.client().unwrap();
    for (writer, thread) in writers.into_iter().enumerate() {
        let acknowledged = thread.join().unwrap();
        let held = target.run(&format!("GET writer:{writer}")).unwrap().text().unwrap();
        assert!(acknowledged > 0 && held == acknowledged.to_string(), "{held} of {acknowledged}");
    }
    assert!(stage.live.master().unwrap().is_stopped());
}
