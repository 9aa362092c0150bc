//! What a killed, cut or stopped `replicate` leaves behind, and that the next one goes on from there: nothing lost, nothing
//! doubled, nothing reordered.

mod common;

use common::job::binary;
use df2redis::lab::client::Client;
use df2redis::lab::encode::owner;
use df2redis::lab::flow::Faults;
use df2redis::lab::journal;
use df2redis::lab::master::MasterOptions;
use df2redis::lab::recordings::recording;
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::{self, Options, Stage, Tool, wait_for};
use df2redis::redis::slot::slot;
use std::sync::Arc;
use std::time::Duration;

/// A stage whose first flow goes on with these records at the end of its journal.
fn stage_with(records: &[&[&str]]) -> Stage {
    let mut recording = recording("follow-plain").unwrap();
    for record in records {
        recording.flows[0].extend_from_slice(&journal::command(record));
        recording.meta.replica_offset_at_end[0] += 1;
    }
    let server = Arc::new(Server::start_kind(ServerKind::Redis7, ServerOptions::default()).unwrap());
    let times = (Duration::from_millis(50), Duration::from_millis(1500));
    Stage::of(binary(), recording, server, ServerKind::Redis7, times, MasterOptions::default()).unwrap()
}

/// On one server a record and its position are one transaction, so nothing is executed twice there, and an error reply is
/// never explained by a restart or a lost connection: the target was written to by somebody else.
#[test]
fn an_error_behind_a_lost_connection_is_not_swallowed() {
    for (record, foreign, says) in [
        (&["HSET", "torture:hash", "f", "v"][..], "SET torture:hash foreign", "WRONGTYPE"),
        (&["LSET", "torture:list", "3", "v"], "RPUSH torture:list foreign", "out of range"),
        (&["XADD", "torture:stream", "5-1", "f", "v"], "XADD torture:stream 9-1 f foreign", "equal or smaller"),
    ] {
        for kill in [false, true] {
            let stage = stage_with(&[record, &["INCR", "torture:count"]]);
            let mut tool = stage.start(&[]).unwrap();
            wait_stable(&stage, &mut tool);
            let mut client = stage.server.client().unwrap();
            client.run(foreign).unwrap();
            if kill {
                tool.kill();
                tool = stage.start(&[]).unwrap();
            } else {
                assert!(kill_lanes(&mut client) > 0);
            }
            let code = tool.wait();
            assert!(code.is_some_and(|code| code != 0 && code != 130), "{code:?}: {}", tool.said());
            assert!(tool.said().contains(says), "{}", tool.said());
            // Others of its transaction were executed, and the position with them: nothing goes on from there.
            assert_eq!(client.run("HGET df2redis:checkpoint phase").unwrap().text(), None);
            let mut again = stage.start(&[]).unwrap();
            let code = again.wait();
            assert!(code.is_some_and(|code| code != 0 && code != 130) || !stage.is_stable(), "{}", again.said());
        }
    }
}

/// Ends the data connections at the target; returns how many there were.
fn kill_lanes(client: &mut Client) -> usize {
    let list = client.run("CLIENT LIST").unwrap().text().unwrap();
    let lanes = list.lines().filter(|line| line.contains("name=df2redis-lane"));
    let ids = lanes.filter_map(|line| line.split(' ').find_map(|field| field.strip_prefix("id=")));
    ids.map(|id| client.run(&format!("CLIENT KILL ID {id}")).unwrap()).count()
}

/// A session that goes on by a partial sync has no full sync at whose end held expiries would be given back.
#[test]
fn a_near_expiry_is_set_after_a_restart() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let at = (now + 1_800_000).to_string();
    let stage = stage_with(&[&["SET", "torture:session", "v", "PXAT", &at]]);
    let mut tool = stage.start(&[]).unwrap();
    wait_stable(&stage, &mut tool);
    tool.kill();
    let mut tool = stage.start(&[]).unwrap();
    stage.reach_end(&mut tool).unwrap();
    let mut client = stage.server.client().unwrap();
    assert_eq!(client.run("PEXPIRETIME torture:session").unwrap().int().unwrap().to_string(), at);
}

/// A stage on a server of its own; the journal takes `stable_ms`.
fn stage(name: &str, stable_ms: u64, options: MasterOptions) -> Stage {
    let server = Arc::new(Server::start_kind(ServerKind::Redis7, ServerOptions::default()).unwrap());
    let times = (Duration::from_millis(50), Duration::from_millis(stable_ms));
    Stage::new(binary(), name, server, ServerKind::Redis7, times, options).unwrap()
}

/// Waits until some records of the stable part were acknowledged at the target, after the checkpoint became good.
fn wait_stable(stage: &Stage, tool: &mut Tool) {
    let reached = wait_for(|| {
        assert_eq!(tool.ended(), None, "{}", tool.said());
        stage.is_stable().then_some(())
    });
    assert!(reached.is_some(), "no good checkpoint:\n{}", tool.said());
    std::thread::sleep(Duration::from_millis(150));
}

#[track_caller]
fn finish(stage: &Stage, tool: Tool) {
    if let Err(reason) = stage.finish(tool) {
        panic!("{}: {reason}", stage.name);
    }
}

#[test]
fn twelve_kills_end_equal() {
    let options = Options { kills: 12, kills_per_run_max: 5, ..Options::new(binary()) };
    match torture::run(&options, |line| eprintln!("{line}")) {
        Ok(summary) => assert!(summary.kills >= 12 && summary.partial_syncs > 0, "{summary:?}"),
        Err(error) => panic!("{error}"),
    }
}

/// The same while the source is written to.
#[test]
fn kills_under_a_mixed_workload_end_equal() {
    let recordings = vec![torture::GENERATED.to_owned()];
    let options = Options { kills: 6, seed: 300, recordings, kills_per_run_max: 3, ..Options::new(binary()) };
    torture::run(&options, |line| eprintln!("{line}")).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn kills_into_valkey_9_end_equal() {
    let options = Options { kills: 3, seed: 77, kinds: vec![ServerKind::Valkey9], ..Options::new(binary()) };
    match torture::run(&options, |line| eprintln!("{line}")) {
        Err(error) if error.to_string().contains("no Valkey9") => eprintln!("skipped: {error}"),
        result => drop(result.unwrap_or_else(|error| panic!("{error}"))),
    }
}

#[test]
fn kills_around_the_flush_barrier_end_equal() {
    let recordings = vec!["follow-flushall".to_owned()];
    let options = Options { kills: 6, seed: 500, recordings, kills_per_run_max: 6, ..Options::new(binary()) };
    torture::run(&options, |line| eprintln!("{line}")).unwrap_or_else(|error| panic!("{error}"));
}

/// A cut in the stable part: the tool goes on by a partial sync, in the same process.
#[test]
fn a_cut_source_connection_goes_on_by_partial_sync() {
    for name in ["follow-lz4", "follow-plain"] {
        let loaded = recording(name).unwrap();
        let stable = loaded.flows[1].len() as u64 - loaded.snapshot_bytes(1) as u64;
        let cut = loaded.snapshot_bytes(1) as u64 + stable / 2;
        let faults = Faults { registrations_max: Some(1), ..Faults::default().cut_at(1, cut) };
        let stage = stage(name, 600, MasterOptions { faults, ..MasterOptions::default() });
        let tool = stage.start(&[]).unwrap();
        finish(&stage, tool);
        assert_eq!((stage.master.registrations_count(), stage.master.partial_count()), (2, 1), "{name}");
    }
}

/// A stream that ends with another token than was promised is no loss of the source, and another full sync no way back.
#[test]
fn a_wrong_token_ends_the_run_at_once() {
    let last = recording("follow-plain").unwrap().snapshot_bytes(0) as u64 - 1;
    let faults = Faults::default().garble(0, last, 1);
    let stage = stage("follow-plain", 600, MasterOptions { faults, ..MasterOptions::default() });
    let mut tool = stage.start(&[]).unwrap();
    assert_eq!(tool.wait(), Some(6), "{}", tool.said());
    assert!(tool.said().contains("the token at the end of the full sync"), "{}", tool.said());
    assert_eq!(stage.master.registrations_count(), 1);
}

/// What is written behind it is applied when every flow has come to it, and what is in these slots is gone then.
#[test]
fn slots_that_the_source_gives_away_are_a_barrier() {
    let slot_of = |key: &str| slot(key.as_bytes()).0;
    let names = || (0..).map(|i| format!("x:{i}")).filter(|key| owner(key.as_bytes(), 2) == 0);
    let mut given = names().filter(|key| slot_of(key) < 8192);
    let (gone, back) = (given.next().unwrap(), given.next().unwrap());
    let kept = names().find(|key| slot_of(key) >= 8192).unwrap();
    let mut recording = recording("follow-plain").unwrap();
    let flush = ["DFLYCLUSTER", "FLUSHSLOTS", "0", "8191"];
    let of_flow: [&[&[&str]]; 2] = [
        &[
            &["SET", &gone, "v"],
            &["SET", &back, "old"],
            &["SET", &kept, "v"],
            &flush,
            &["APPEND", &back, "new"],
            &["APPEND", &kept, "w"],
        ],
        &[&flush],
    ];
    for (flow, records) in of_flow.into_iter().enumerate() {
        for record in records {
            recording.flows[flow].extend_from_slice(&journal::command(record));
            recording.meta.replica_offset_at_end[flow] += 1;
        }
    }
    let server = Arc::new(Server::start_kind(ServerKind::Redis7, ServerOptions::default()).unwrap());
    let times = (Duration::from_millis(50), Duration::from_millis(800));
    let stage = Stage::of(binary(), recording, server, ServerKind::Redis7, times, MasterOptions::default()).unwrap();
    let mut tool = stage.start(&[]).unwrap();
    stage.reach_end(&mut tool).unwrap();
    let mut client = stage.server.client().unwrap();
    let mut get = |key: &str| client.ask(&["GET", key]).unwrap().text();
    assert_eq!((get(&gone), get(&back)), (None, Some("new".into())));
    assert_eq!(get(&kept).as_deref(), Some("vw"));
    client.run("SELECT 0").unwrap();
    let left = client.run("KEYS *").unwrap();
    let left: Vec<_> = left.array().unwrap().iter().map(|key| key.bytes().unwrap().to_vec()).collect();
    let given_away = |key: &&Vec<u8>| slot(key).0 < 8192 && !key.starts_with(b"df2redis:");
    assert_eq!(left.iter().filter(given_away).count(), 1, "all of these slots but what was written since");
}

/// All connections at once, again and again.
#[test]
fn a_network_that_fails_often_loses_nothing() {
    let stage = stage("follow-lz4", 2500, MasterOptions::default());
    let mut tool = stage.start(&[]).unwrap();
    wait_stable(&stage, &mut tool);
    for _ in 0..3 {
        stage.master.cut_all();
        std::thread::sleep(Duration::from_millis(700));
    }
    finish(&stage, tool);
    assert!(stage.master.partial_count() >= 3);
}

#[test]
fn a_backlog_too_short_is_a_lost_position() {
    let options = MasterOptions { backlog_records: Some(10), ..MasterOptions::default() };
    // No key of it is to be asked for: a recording says from the first that it stands at its end, and the checkpoint would be good only there.
    let stage = stage("follow-plain", 3000, options);
    let mut tool = stage.start(&[]).unwrap();
    wait_stable(&stage, &mut tool);
    tool.kill();
    let mut tool = stage.start(&[]).unwrap();
    assert_eq!(tool.wait(), Some(8), "{}", tool.said());
    let said = tool.said();
    assert!(said.contains("backlog") && said.contains("wanted, the source is at 347;"), "{said}");
    assert!(said.contains("--on-lost-position resync"), "{said}");
    let tool = stage.start(&["--on-lost-position", "resync"]).unwrap();
    finish(&stage, tool);
}

#[test]
fn another_master_id_is_a_lost_position() {
    let stage = stage("follow-plain", 3000, MasterOptions { new_id_after: Some(1), ..MasterOptions::default() });
    let mut tool = stage.start(&[]).unwrap();
    wait_stable(&stage, &mut tool);
    // In the same process: the source was restarted.
    stage.master.cut_all();
    assert_eq!(tool.wait(), Some(8), "{}", tool.said());
    assert!(tool.said().contains("another process"), "{}", tool.said());
    let mut tool = stage.start(&[]).unwrap();
    assert_eq!(tool.wait(), Some(8), "{}", tool.said());
    let tool = stage.start(&["--on-lost-position", "resync"]).unwrap();
    finish(&stage, tool);
}

#[test]
fn mixed_answers_are_a_lost_position() {
    let stage = stage("follow-lz4", 3000, MasterOptions { never_partial: vec![1], ..MasterOptions::default() });
    let mut tool = stage.start(&[]).unwrap();
    wait_stable(&stage, &mut tool);
    tool.kill();
    let mut tool = stage.start(&[]).unwrap();
    assert_eq!(tool.wait(), Some(8), "{}", tool.said());
    assert!(tool.said().contains("flow 1:") && !tool.said().contains("flow 0:"), "{}", tool.said());
    let tool = stage.start(&["--on-lost-position", "resync"]).unwrap();
    finish(&stage, tool);
}

#[test]
fn a_stopped_run_is_resumable() {
    for signal in ["INT", "TERM"] {
        let stage = stage("follow-lz4", 2000, MasterOptions::default());
        let mut tool = stage.start(&[]).unwrap();
        wait_stable(&stage, &mut tool);
        tool.signal(signal);
        assert_eq!(tool.wait(), Some(130), "{}", tool.said());
        let registrations = stage.master.registrations_count();
        let tool = stage.start(&[]).unwrap();
        finish(&stage, tool);
        assert_eq!(stage.master.registrations_count(), registrations + 1);
        assert_eq!(stage.master.partial_count(), 1);
    }
}

#[test]
fn a_second_signal_stops_at_once_and_loses_nothing() {
    let stage = stage("follow-lz4", 2000, MasterOptions::default());
    let mut tool = stage.start(&[]).unwrap();
    wait_stable(&stage, &mut tool);
    tool.signal("TERM");
    tool.signal("TERM");
    assert_eq!(tool.wait(), Some(130), "{}", tool.said());
    let tool = stage.start(&[]).unwrap();
    finish(&stage, tool);
    assert_eq!(stage.master.partial_count(), 1);
}

/// The target ends the data connections again and again while the journal comes in.
#[test]
fn killed_target_connections_lose_and_double_nothing() {
    for name in ["follow-lz4", "follow-plain"] {
        let stage = stage(name, 1500, MasterOptions::default());
        let mut tool = stage.start(&[]).unwrap();
        wait_stable(&stage, &mut tool);
        let mut client = stage.server.client().unwrap();
        let mut killed = 0;
        for _ in 0..6 {
            killed += kill_lanes(&mut client);
            std::thread::sleep(Duration::from_millis(150));
        }
        assert!(killed >= 4, "{killed}");
        finish(&stage, tool);
    }
}

/// The control connection is idle most of the time, so a target with a `timeout` closes it; the flush comes later.
#[test]
fn a_closed_control_connection_does_not_stop_a_barrier() {
    let stage = stage("follow-flushall", 2500, MasterOptions::default());
    let mut tool = stage.start(&[]).unwrap();
    wait_stable(&stage, &mut tool);
    let mut client = stage.server.client().unwrap();
    let list = client.run("CLIENT LIST").unwrap().text().unwrap();
    let own = client.run("CLIENT ID").unwrap().int().unwrap().to_string();
    for line in list.lines().filter(|line| !line.contains("name=df2redis-lane")) {
        let id = line.split(' ').find_map(|field| field.strip_prefix("id=")).unwrap();
        if id != own {
            client.run(&format!("CLIENT KILL ID {id}")).unwrap();
        }
    }
    finish(&stage, tool);
}
