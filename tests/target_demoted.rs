//! A target of one server that another one replaced for a while: cut off, it goes on acknowledging; made the other's replica it copies
//! that one's data, and what it had acknowledged since is gone, though it is the same process; then it is the master again.

mod common;

use common::job::{binary, run, stop, until};
use common::{FlowBytes, Hand, migrate_command, noise, server_with, start};
use df2redis::lab::client::Client;
use df2redis::lab::encode::owner;
use df2redis::lab::flow::Faults;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::{Tool, compare, is_stable, wait_for};
use std::time::Duration;

#[track_caller]
fn wait(what: &str, mut look: impl FnMut() -> bool) {
    assert!(wait_for(|| look().then_some(())).is_some(), "{what}");
}

fn follow(replica: &mut Client, primary: &Server) {
    replica.run(&format!("REPLICAOF 127.0.0.1 {}", primary.port())).unwrap();
}

fn is_linked(client: &mut Client) -> bool {
    client.info("master_link_status").is_ok_and(|status| status.as_deref() == Some("up"))
}

/// A server and its replica, in step.
fn pair() -> Option<[Server; 2]> {
    let options = || ServerOptions::default().config("repl-diskless-sync-delay", "0");
    let (primary, replica) = (server_with(ServerKind::Redis7, options())?, server_with(ServerKind::Redis7, options())?);
    let mut client = replica.client().unwrap();
    follow(&mut client, &primary);
    wait("the replica is not linked", || is_linked(&mut client));
    let mut client = primary.client().unwrap();
    wait("the replica is not in step", || {
        client.info("slave0").is_ok_and(|info| info.is_some_and(|info| info.contains("state=online")))
    });
    Some([primary, replica])
}

fn keys(client: &mut Client) -> i64 {
    client.run("DBSIZE").unwrap().int().unwrap()
}

/// The server becomes the other's replica, copies its data, refuses the job's writes, and is promoted again. `closes`: as Sentinel does
/// it, which closes the clients' connections.
fn heal(server: &Server, other: &Server, closes: bool) {
    let mut client = server.client().unwrap();
    follow(&mut client, other);
    if closes {
        client.run("CLIENT KILL TYPE normal SKIPME yes").unwrap();
    } else {
        wait("nothing is refused", || server.errors_of("READONLY").unwrap() > 0);
    }
    wait("it does not copy the other's data", || is_linked(&mut client));
    client.run("REPLICAOF NO ONE").unwrap();
}

/// A key of this family that comes on this flow of two.
fn key_on_flow(family: &str, flow: usize) -> String {
    (0..).map(|i| format!("{family}:{i}")).find(|key| owner(key.as_bytes(), 2) == flow).unwrap()
}

/// What it acknowledged in between is not there, and nothing brings it again.
#[test]
fn a_full_sync_does_not_outlive_its_target_as_a_replica() {
    for closes in [false, true] {
        let Some([target, other]) = pair() else { return };
        let mut flow = FlowBytes::new();
        (0..1500).for_each(|i| _ = flow.string(format!("s:{i}").as_bytes(), &noise(i + 1, 600)));
        let master = Hand::new(vec![flow]).faulty(Faults::default().slow(100_000));
        let more = ["--batch-bytes", "8KiB", "--window-bytes", "64KiB"];
        let mut running = start(migrate_command(master.port(), target.port(), &more));
        let (mut of_target, mut of_other) = (target.client().unwrap(), other.client().unwrap());
        wait("nothing is loaded", || keys(&mut of_target) > 50);
        of_other.run("REPLICAOF NO ONE").unwrap();
        let had = keys(&mut of_other);
        wait("nothing more is loaded", || keys(&mut of_target) > had + 50);
        assert!(running.is_running(), "it ended before");
        heal(&target, &other, closes);
        running.wait().expect_code(5).expect_text("replica");
    }
}

/// The checkpoint found there is of the same moment as the data, so the job goes on from that.
#[test]
fn the_journal_goes_on_from_the_checkpoint_that_was_copied() {
    for closes in [false, true] {
        let Some([target, other]) = pair() else { return };
        let spec = Spec { seed: 3, flows_count: 2, ..Spec::of("string:60B=50,list:6x9=10").unwrap() };
        let live = Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut tool = Tool::start(binary(), live.port(), target.port(), &dir.path().join("tool.log"), &[]).unwrap();
        until(&mut tool, "not stable", || is_stable(&target) && is_stable(&other));
        let mut n = 0;
        let mut write_some = || {
            for _ in 0..60 {
                n += 1;
                run(&live, &format!("INCR n:{}", n % 7));
                run(&live, &format!("RPUSH list:{} {n}", n % 5));
            }
        };
        write_some();
        until(&mut tool, "not acknowledged", || live.is_acknowledged());
        other.client().unwrap().run("REPLICAOF NO ONE").unwrap();
        // These the other one lacks.
        write_some();
        until(&mut tool, "not acknowledged", || live.is_acknowledged());
        std::thread::scope(|scope| {
            let healing = scope.spawn(|| heal(&target, &other, closes));
            let mut client = target.client().unwrap();
            until(&mut tool, "it is no replica", || {
                healing.is_finished() || client.info("role").is_ok_and(|role| role.as_deref() == Some("slave"))
            });
            write_some();
        });
        until(&mut tool, "not acknowledged", || live.is_acknowledged());
        stop(&mut tool);
        let truth = dir.path().join("truth.jsonl");
        live.write_truth(&truth).unwrap();
        compare(&target, ServerKind::Redis7, &truth).unwrap_or_else(|text| panic!("{text}\n{}", tool.said()));
    }
}

/// Only one flow has anything to write while the target is a replica, so only its connection is refused. The other's would go on writing, into
/// what was copied, and move the position that was copied over what is missing.
#[test]
fn a_connection_that_was_idle_meanwhile_is_made_anew_as_well() {
    let Some([target, other]) = pair() else { return };
    let spec = Spec { seed: 3, flows_count: 2, ..Spec::of("string:60B=50").unwrap() };
    let live = Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut tool =
        Tool::start(binary(), live.port(), target.port(), &dir.path().join("tool.log"), &["--cores", "2"]).unwrap();
    until(&mut tool, "not stable", || is_stable(&target) && is_stable(&other));
    let (busy, idle) = (key_on_flow("busy", 0), key_on_flow("idle", 1));
    let write = |key: &str, field: &str| run(&live, &format!("HSET {key} {field} v"));
    [&busy, &idle].into_iter().for_each(|key| write(key, "both"));
    until(&mut tool, "not acknowledged", || live.is_acknowledged());
    let mut of_other = other.client().unwrap();
    until(&mut tool, "the replica lags", || {
        [&busy, &idle]
            .iter()
            .all(|key| of_other.run(&format!("EXISTS {key}")).is_ok_and(|found| found.int() == Some(1)))
    });
    of_other.run("REPLICAOF NO ONE").unwrap();
    // These the other one lacks.
    [&busy, &idle].into_iter().for_each(|key| write(key, "lacks"));
    until(&mut tool, "not acknowledged", || live.is_acknowledged());
    let mut of_target = target.client().unwrap();
    follow(&mut of_target, &other);
    write(&busy, "refused");
    until(&mut tool, "nothing is refused", || target.errors_of("READONLY").unwrap() > 0);
    until(&mut tool, "it does not copy the other's data", || is_linked(&mut of_target));
    // The pauses between two tries to connect have grown by then.
    std::thread::sleep(Duration::from_secs(5));
    of_target.run("REPLICAOF NO ONE").unwrap();
    write(&idle, "behind");
    until(&mut tool, "not acknowledged", || live.is_acknowledged());
    stop(&mut tool);
    let truth = dir.path().join("truth.jsonl");
    live.write_truth(&truth).unwrap();
    compare(&target, ServerKind::Redis7, &truth).unwrap_or_else(|text| panic!("{text}\n{}", tool.said()));
}
