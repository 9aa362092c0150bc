//! Keys and fields that the source renewed never vanish because the target is late (wire 6.34): near expiries held back and
//! put right, also by the process after a killed one; Valkey's import mode; vanished keys fetched again.

use df2redis::convert::near::SHIFT_MS;
use df2redis::lab::LabError;
use df2redis::lab::client::Client;
use df2redis::lab::journal;
use df2redis::lab::master::MasterOptions;
use df2redis::lab::proxy::{Faulty, Leg, Proxy};
use df2redis::lab::recordings::{Recording, recording};
use df2redis::lab::rng::Rng;
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::{Stage, Tool, tool_binary, wait_for};
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

mod in_step;

use in_step::InStep;

fn now_ms() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64
}

type Records = Vec<Vec<String>>;

fn record(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

/// A stage whose first flow goes on with these records at the end of its journal, which takes `stable_ms`. `None`: no such
/// server here.
fn stage_on(kind: ServerKind, records: &Records, stable_ms: u64) -> Option<Stage> {
    stage_of(recording("follow-plain").unwrap(), kind, records, stable_ms)
}

fn stage_of(mut recording: Recording, kind: ServerKind, records: &Records, stable_ms: u64) -> Option<Stage> {
    let server = match Server::start_kind(kind, ServerOptions::default()) {
        Ok(server) => Arc::new(server),
        Err(error @ LabError::NoServer { .. }) => {
            eprintln!("skipped: {error}");
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    for record in records {
        let args: Vec<&str> = record.iter().map(String::as_str).collect();
        recording.flows[0].extend_from_slice(&journal::command(&args));
        recording.meta.replica_offset_at_end[0] += 1;
    }
    let times = (Duration::from_millis(50), Duration::from_millis(stable_ms));
    let tool = tool_binary(env!("CARGO_BIN_EXE_df2redis"));
    Some(Stage::of(&tool, recording, server, kind, times, MasterOptions::default()).unwrap())
}

/// Starts the tool with a report, lets it reach the end and stops it: the report's section on expiries.
fn run(stage: &Stage) -> Value {
    let dir = stage.dir.join("report");
    let mut tool = stage.start(&["--report", dir.to_str().unwrap()]).unwrap();
    end(stage, &mut tool)
}

fn end(stage: &Stage, tool: &mut Tool) -> Value {
    stage.reach_end(tool).unwrap();
    let text = std::fs::read_to_string(stage.dir.join("report").join("report.json")).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    report["expiries"].clone()
}

fn text(client: &mut Client, command: &str) -> Option<String> {
    client.run(command).unwrap().text()
}

fn int(client: &mut Client, command: &str) -> i64 {
    client.run(command).unwrap().int().unwrap()
}

/// Records as they come when the target is a second late: every first expiry is past when it is applied.
fn late_records(later: i64) -> Records {
    let past = now_ms() - 1000;
    [
        format!("SET x:session v PXAT {past}"),
        "APPEND x:session w".into(),
        format!("PEXPIREAT x:session {later}"),
        "RPUSH x:list a".into(),
        format!("PEXPIREAT x:list {past}"),
        "RPUSH x:list b".into(),
        "PERSIST x:list".into(),
        format!("SET x:old v PXAT {past}"),
        "RENAME x:old x:new".into(),
        format!("PEXPIREAT x:new {later}"),
        // Expired at the source without a record so far, and with one.
        format!("SET x:gone v PXAT {past}"),
        format!("SET x:deleted v PXAT {past}"),
        "DEL x:deleted".into(),
    ]
    .iter()
    .map(|line| record(line))
    .collect()
}

fn assert_late_records(client: &mut Client, later: i64) {
    assert_eq!(text(client, "GET x:session").as_deref(), Some("vw"));
    assert_eq!(int(client, "PEXPIRETIME x:session"), later);
    assert_eq!((int(client, "LLEN x:list"), int(client, "PEXPIRETIME x:list")), (2, -1));
    assert_eq!((text(client, "GET x:new").as_deref(), int(client, "PEXPIRETIME x:new")), (Some("v"), later));
    assert_eq!(int(client, "EXISTS x:gone x:deleted x:old"), 0);
}

#[test]
fn a_key_renewed_in_the_journal_never_vanishes() {
    for later_ms in [3_000_000, 20_000_000] {
        let later = now_ms() + later_ms;
        let Some(stage) = stage_on(ServerKind::Redis7, &late_records(later), 500) else { return };
        let expiries = run(&stage);
        assert_late_records(&mut stage.server.client().unwrap(), later);
        assert!(expiries["held"].as_u64() >= Some(5), "{expiries}");
        assert!(expiries["passed_at_release"].as_u64() >= Some(1), "{expiries}");
        assert_eq!((&expiries["import_mode"], &expiries["fetched_again"]), (&false.into(), &0.into()));
    }
}

/// Times to live from 1 to 500 ms, renewed again and again, applied seconds late.
#[test]
fn a_storm_of_short_lives_and_renewals_ends_right() {
    let (mut rng, begin, later) = (Rng::new(48), now_ms(), now_ms() + 4_000_000);
    let mut records = Records::new();
    for round in 0..6 {
        for key in 0..60 {
            let at = begin + 100 * round + 1 + rng.below(500) as i64;
            records.push(match round {
                0 => record(&format!("SET x:{key} v PXAT {at}")),
                _ => record(&format!("PEXPIREAT x:{key} {at}")),
            });
            records.push(record(&format!("APPEND x:{key} {round}")));
        }
    }
    for key in 0..60 {
        let renewed = key % 2 == 0;
        records.push(record(&if renewed { format!("PEXPIREAT x:{key} {later}") } else { format!("DEL x:{key}") }));
    }
    let Some(stage) = stage_on(ServerKind::Redis7, &records, 3000) else { return };
    run(&stage);
    let mut client = stage.server.client().unwrap();
    for key in 0..60 {
        let value = text(&mut client, &format!("GET x:{key}"));
        assert_eq!(value.as_deref(), (key % 2 == 0).then_some("v012345"), "{key}");
        let expected = if key % 2 == 0 { later } else { -2 };
        assert_eq!(int(&mut client, &format!("PEXPIRETIME x:{key}")), expected, "{key}");
    }
}

#[test]
fn a_field_renewed_in_the_journal_never_vanishes() {
    for kind in [ServerKind::Redis8, ServerKind::Valkey9] {
        let (past, later) = (now_ms() - 1000, now_ms() + 5_000_000);
        let records: Records = [
            "HSET x:h kept 1 renewed 2 gone 3 plain 4 grown 5".into(),
            format!("HGETEX x:h PXAT {past} FIELDS 4 kept renewed gone grown"),
            "HINCRBY x:h kept 10".into(),
            "HGETEX x:h PERSIST FIELDS 1 kept".into(),
            format!("HGETEX x:h PXAT {later} FIELDS 1 renewed"),
            // Later than the true expiry, which is shifted.
            "HEXPIRE x:h 5000 GT FIELDS 1 grown".into(),
            format!("HSETEX x:s PXAT {past} FIELDS 1 f v"),
        ]
        .iter()
        .map(|line: &String| record(line))
        .collect();
        let Some(stage) = stage_on(kind, &records, 500) else { continue };
        run(&stage);
        let mut client = stage.server.client().unwrap();
        // Valkey's active expiry takes a moment once its import mode has ended.
        wait_for(|| (int(&mut client, "HLEN x:h") == 4 && int(&mut client, "EXISTS x:s") == 0).then_some(()));
        assert_eq!((int(&mut client, "HLEN x:h"), int(&mut client, "EXISTS x:s")), (4, 0), "{kind:?}");
        assert_eq!(text(&mut client, "HGET x:h kept").as_deref(), Some("11"));
        let times = client.run("HPEXPIRETIME x:h FIELDS 4 kept renewed plain grown").unwrap();
        let times: Vec<i64> = times.array().unwrap().iter().map(|time| time.int().unwrap()).collect();
        assert_eq!(times[..3], [-1, later, -1], "{kind:?}");
        assert!((now_ms()..now_ms() + 5_000_000).contains(&times[3]), "{kind:?}: {times:?}");
    }
}

/// The process dies while expiries are held: they stand at the target, and the next process puts them right.
#[test]
fn held_expiries_survive_a_kill() {
    for kind in [ServerKind::Redis7, ServerKind::Redis8] {
        let (past, later) = (now_ms() - 1000, now_ms() + 3_000_000);
        let mut records: Records = vec![
            record(&format!("SET x:session v PXAT {past}")),
            record(&format!("SET x:gone v PXAT {past}")),
            record(&format!("SET x:near v PXAT {later}")),
            record("HSET x:h g 2"),
            // Not by HGETEX: a process that dies before the answer to a renewal fetches the key, which this source cannot give.
            record(&format!("HSETEX x:h PXAT {past} FIELDS 1 f 1")),
        ];
        // What comes in between takes seconds, so that a machine that stands still for some does not bring the end before the kill.
        let filler = format!("SET x:filler {}", "v".repeat(1000));
        records.extend((0..2000).flat_map(|_| [record("INCR x:count"), record(&filler)]));
        records.push(record("APPEND x:session w"));
        records.push(record(&format!("PEXPIREAT x:session {later}")));
        let Some(stage) = stage_on(kind, &records, 8000) else { continue };
        let mut client = stage.server.client().unwrap();
        let mut tool = stage.start(&[]).unwrap();
        let begun = wait_for(|| {
            assert_eq!(tool.ended(), None, "{}", tool.said());
            (stage.is_stable() && int(&mut client, "EXISTS x:count") == 1).then_some(())
        });
        assert!(begun.is_some(), "{}", tool.said());
        tool.kill();
        for key in ["session", "gone"] {
            assert_eq!(int(&mut client, &format!("PEXPIRETIME x:{key}")), past + SHIFT_MS, "{key}");
        }
        let expiries = run(&stage);
        assert_eq!(text(&mut client, "GET x:session").as_deref(), Some("vw"));
        assert_eq!(int(&mut client, "PEXPIRETIME x:session"), later);
        assert_eq!((int(&mut client, "EXISTS x:gone"), int(&mut client, "PEXPIRETIME x:near")), (0, later));
        assert_eq!(text(&mut client, "GET x:count").as_deref(), Some("2000"));
        if kind == ServerKind::Redis8 {
            assert_eq!(int(&mut client, "HLEN x:h"), 1);
        }
        assert!(expiries["put_right_by_sweep"].as_u64() >= Some(1), "{expiries}");
        assert_eq!(text(&mut client, "HGET df2redis:checkpoint held").as_deref(), Some("0"));
    }
}

#[test]
fn import_mode_is_used_and_ended() {
    for kind in [ServerKind::Valkey8, ServerKind::Valkey9] {
        let later = now_ms() + 3_000_000;
        let Some(stage) = stage_on(kind, &late_records(later), 2500) else { continue };
        let mut client = stage.server.client().unwrap();
        let mode = |client: &mut Client| client.run("CONFIG GET import-mode").unwrap().array().unwrap()[1].text();
        let mut tool = stage.start(&[]).unwrap();
        let begun = wait_for(|| {
            assert_eq!(tool.ended(), None, "{}", tool.said());
            stage.is_stable().then_some(())
        });
        assert!(begun.is_some(), "{}", tool.said());
        assert_eq!(mode(&mut client).as_deref(), Some("yes"));
        tool.kill();
        // The next process knows that it was this job that turned it on.
        assert_eq!(mode(&mut client).as_deref(), Some("yes"));
        let expiries = run(&stage);
        assert_eq!(mode(&mut client).as_deref(), Some("no"));
        assert_eq!((&expiries["import_mode"], &expiries["held"]), (&true.into(), &0.into()));
        assert_late_records(&mut client, later);
        assert_eq!(int(&mut client, "EXISTS df2redis:import-mode"), 0);
    }
}

/// What empties the target takes the mark with it, which says whose the mode is; a killed job's next process must know.
/// A mode that could not be turned off is not taken for another's by the next job.
#[test]
fn import_mode_that_could_not_be_ended_is_ended_by_the_next_job() {
    let Some(stage) = stage_on(ServerKind::Valkey9, &Records::new(), 500) else { return };
    let mut client = stage.server.client().unwrap();
    let mode = |client: &mut Client| client.run("CONFIG GET import-mode").unwrap().array().unwrap()[1].text().unwrap();
    let dir = stage.dir.join("report");
    let mut tool = stage.start(&["--report", dir.to_str().unwrap()]).unwrap();
    assert!(wait_for(|| (mode(&mut client) == "yes").then_some(())).is_some(), "{}", tool.said());
    client.run("ACL SETUSER default -config|set").unwrap();
    assert_eq!(end(&stage, &mut tool)["import_mode"], true);
    assert!(tool.said().contains("import mode could not be turned off"), "{}", tool.said());
    assert_eq!((mode(&mut client).as_str(), int(&mut client, "EXISTS df2redis:import-mode")), ("yes", 1));
    client.run("ACL SETUSER default +config|set").unwrap();
    assert_eq!(run(&stage)["import_mode"], true);
    assert_eq!((mode(&mut client).as_str(), int(&mut client, "EXISTS df2redis:import-mode")), ("no", 0));
}

#[test]
fn import_mode_is_ended_though_the_target_was_emptied() {
    for empties in ["FLUSHDB", "FLUSHALL", "--on-existing"] {
        let Some(mut scene) = InStep::with(ServerKind::Valkey9, &[]) else { return };
        let mut target = scene.target();
        if !empties.starts_with('-') {
            scene.source().run(empties).unwrap();
            scene.wait_acknowledged();
            assert_eq!(int(&mut target, "EXISTS df2redis:import-mode"), 1, "{empties}");
        }
        scene.tool.kill();
        scene.again(if empties.starts_with('-') { &["--on-existing", "flush"] } else { &[] });
        scene.wait(|status| status["in_step"] == true);
        scene.stops_equal();
        let mode = target.run("CONFIG GET import-mode").unwrap().array().unwrap()[1].text();
        assert_eq!(mode.as_deref(), Some("no"), "{empties}");
        assert_eq!(int(&mut target, "EXISTS df2redis:import-mode"), 0, "{empties}");
    }
}

/// A stage whose target loses keys that the source still has: the records of the first flow end with a DEL that the source
/// did not do, and what it did afterwards.
fn stage_of_losses(keys: &[&str], later: i64) -> Option<Stage> {
    stage_on(ServerKind::Redis7, &losses(keys, later), 500)
}

fn losses(keys: &[&str], later: i64) -> Records {
    let lose = |key: &&str| {
        let lines = [format!("DEL {key}"), format!("PEXPIREAT {key} {later}"), format!("PERSIST {key}")];
        lines.map(|line| record(&line))
    };
    keys.iter().flat_map(lose).collect()
}

/// Seeds 80 and 181 of `cutover_generated` found it: the loss was told while another flow was still in the full sync, and
/// nobody fetched the key (nor did a cutover ever come to its end).
#[test]
fn regression_a_key_lost_while_another_flow_is_in_the_full_sync_is_fetched_again() {
    const REPLY_TO_FLOW_BYTES: u64 = "*2\r\n+FULL\r\n+\r\n".len() as u64 + 40;
    // Nothing but our records follows the snapshot.
    let mut recording = recording("follow-plain").unwrap();
    for flow in 0..2 {
        let end = recording.snapshot_bytes(flow);
        recording.flows[flow].truncate(end);
        recording.meta.replica_offset_at_end[flow] = 1;
    }
    let snapshot = recording.snapshot_bytes(1) as u64;
    let records = losses(&["x:none"], now_ms() + 9_000_000);
    let Some(stage) = stage_of(recording, ServerKind::Redis7, &records, 100) else { return };
    // The fourth connection is that of the second flow; its last bytes are on their way for long.
    let pause =
        Leg { pause_after: Some((REPLY_TO_FLOW_BYTES + snapshot - 20, Duration::from_secs(2))), ..Leg::default() };
    let plan = move |n| if n == 3 { Faulty { to_client: pause, ..Faulty::default() } } else { Faulty::default() };
    let proxy = Proxy::start(stage.master.port(), plan).unwrap();
    let (dir, binary) = (stage.dir.join("report"), tool_binary(env!("CARGO_BIN_EXE_df2redis")));
    let more = ["--report", dir.to_str().unwrap()];
    let mut tool = Tool::start(&binary, proxy.port(), stage.server.port(), &stage.dir.join("tool.log"), &more).unwrap();
    let expiries = end(&stage, &mut tool);
    assert!(expiries["fetched_again"].as_u64() >= Some(1), "{expiries}");
}

#[test]
fn a_vanished_key_is_fetched_again() {
    let recording = recording("follow-plain").unwrap();
    let truth = recording.truth_map().unwrap();
    let journals: Vec<&[u8]> = (0..2).map(|flow| &recording.flows[flow][recording.snapshot_bytes(flow)..]).collect();
    let of_type = |type_name: &str| {
        let mut names: Vec<&str> = truth
            .iter()
            .filter(|((db, _), row)| {
                *db == 0 && row.type_name == type_name && row.expire_at_ms < 0 && row.value().is_some()
            })
            .filter_map(|((_, key), _)| std::str::from_utf8(key).ok())
            .filter(|key| !key.contains([' ', '{']) && key.is_ascii())
            .filter(|key| journals.iter().all(|journal| memchr::memmem::find(journal, key.as_bytes()).is_none()))
            .collect();
        names.sort();
        names
    };
    let (strings, lists) = (of_type("string"), of_type("list"));
    let mut lost: Vec<&str> = strings.iter().copied().take(5).collect();
    assert!(lost.len() == 5 && !lists.is_empty());
    // One that the source does not have either, and one that the simulation cannot give.
    lost.extend(["x:none", lists[0]]);
    let Some(stage) = stage_of_losses(&lost, now_ms() + 9_000_000) else { return };
    let expiries = run(&stage);
    // A key whose second command answers later than the first was settled is fetched twice.
    assert!(expiries["fetched_again"].as_u64() >= Some(6) && expiries["not_fetched"].as_u64() >= Some(1), "{expiries}");
    let mut client = stage.server.client().unwrap();
    for key in &lost[..5] {
        let row = &truth[&(0, key.as_bytes().to_vec())];
        let value = client.ask(&["GET", key]).unwrap().bytes().map(<[u8]>::to_vec);
        assert_eq!(value, row.value().unwrap().into_iter().next(), "{key}");
        assert_eq!(client.ask(&["PEXPIRETIME", key]).unwrap().int(), Some(-1));
    }
    assert_eq!(int(&mut client, "EXISTS x:none"), 0);
    let listed = std::fs::read_to_string(stage.dir.join("report").join("not-carried.jsonl")).unwrap();
    assert!(listed.lines().any(|line| line.contains(lists[0]) && line.contains("doubtful-Vanished")), "{listed}");
}

/// What took the place of another key at the source must not leave that one at the target.
#[test]
fn what_is_renamed_from_a_vanished_key_is_fetched_by_its_new_name() {
    let Some(mut scene) = InStep::with(ServerKind::Redis7, &[]) else { return };
    let (mut source, mut target) = (scene.source(), scene.target());
    for i in 0..8 {
        source.run(&format!("RPUSH x:{i} new")).unwrap();
        source.run(&format!("RPUSH y:{i} old")).unwrap();
    }
    scene.wait_acknowledged();
    for i in 0..8 {
        assert_eq!(int(&mut target, &format!("DEL x:{i}")), 1);
        source.run(&format!("RENAME x:{i} y:{i}")).unwrap();
    }
    for i in 0..8 {
        let mut is_new = || text(&mut target, &format!("LINDEX y:{i} 0")).as_deref() == Some("new");
        assert!(wait_for(|| is_new().then_some(())).is_some(), "y:{i}: {}", scene.tool.said());
    }
    scene.stops_equal();
}

/// A mode that the operator turned on stays on; one that the user may not turn on is done without.
#[test]
fn import_mode_of_others_is_left_alone() {
    let later = now_ms() + 3_000_000;
    let Some(stage) = stage_on(ServerKind::Valkey9, &late_records(later), 500) else { return };
    let mut client = stage.server.client().unwrap();
    client.run("CONFIG SET import-mode yes").unwrap();
    assert_eq!(run(&stage)["import_mode"], true);
    let mode = client.run("CONFIG GET import-mode").unwrap().array().unwrap()[1].text();
    assert_eq!(mode.as_deref(), Some("yes"));

    let Some(stage) = stage_on(ServerKind::Valkey9, &late_records(later), 500) else { return };
    let mut client = stage.server.client().unwrap();
    client.run("ACL SETUSER default -config|set -client|import-source").unwrap();
    let expiries = run(&stage);
    assert_eq!(expiries["import_mode"], false);
    assert!(expiries["held"].as_u64() >= Some(5), "{expiries}");
    assert_late_records(&mut client, later);
}

/// In import mode the target evicts nothing, so one that is to evict is not put into it.
#[test]
fn an_evicting_target_is_not_put_into_import_mode() {
    let later = now_ms() + 3_000_000;
    let Some(stage) = stage_on(ServerKind::Valkey8, &late_records(later), 500) else { return };
    let mut client = stage.server.client().unwrap();
    client.run("CONFIG SET maxmemory 1gb maxmemory-policy allkeys-lru").unwrap();
    assert_eq!(run(&stage)["import_mode"], false);
    assert_late_records(&mut client, later);
}

/// Why the target does not hear of a renewal in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Absence {
    TargetStalls,
    Killed,
    StoppedToGoOn,
}

/// Longer than the least horizon: what is held by that alone would be lost.
const LIFE_MS: u64 = 12_500;

/// In step, expiries are told; they pass while nobody tells the target that the source has built on their keys and then
/// renewed them. What was built must not begin anew.
fn expiries_pass_during(absence: Absence, kind: ServerKind) {
    let more: &[&str] = if absence == Absence::StoppedToGoOn { &["--expiries-at-stop", "hold"] } else { &[] };
    let Some(mut scene) = InStep::with(kind, more) else { return };
    let (mut source, mut target) = (scene.source(), scene.target());
    let begun = std::time::Instant::now();
    for line in
        ["SET x:text v", "SET x:count 5", "RPUSH x:list a", "HSET x:hash f 1", "SET x:gone v", "HSET x:fields f 1 g 2"]
    {
        source.run(line).unwrap();
    }
    for key in ["text", "count", "list", "hash", "gone"] {
        source.run(&format!("PEXPIRE x:{key} {LIFE_MS}")).unwrap();
    }
    if kind == ServerKind::Redis8 {
        source.run(&format!("HEXPIRE x:fields {} FIELDS 1 f", LIFE_MS / 1000)).unwrap();
    }
    scene.wait_acknowledged();
    let imports = kind == ServerKind::Valkey9;
    assert!(imports || int(&mut target, "PTTL x:gone") > 1 << 41, "not held: {}", scene.tool.said());
    match absence {
        Absence::TargetStalls => scene.proxy.set_paused(true),
        Absence::Killed => scene.tool.kill(),
        Absence::StoppedToGoOn => {
            scene.tool.signal("TERM");
            assert_eq!(scene.tool.wait(), Some(130), "{}", scene.tool.said());
        }
    }
    let until = |ms: u64| std::thread::sleep(Duration::from_millis(ms).saturating_sub(begun.elapsed()));
    until(LIFE_MS - 2_500);
    for line in ["APPEND x:text w", "INCR x:count", "RPUSH x:list b", "HSET x:hash g 2", "HINCRBY x:fields f 4"] {
        source.run(line).unwrap();
    }
    for key in ["text", "count", "list"] {
        source.run(&format!("PEXPIRE x:{key} 5000000")).unwrap();
    }
    source.run("PERSIST x:hash").unwrap();
    if kind == ServerKind::Redis8 {
        source.run("HEXPIRE x:fields 5000 FIELDS 1 f").unwrap();
    }
    assert_eq!(text(&mut source, "GET x:text").as_deref(), Some("vw"), "this machine is too slow");
    until(LIFE_MS + 300);
    match absence {
        Absence::TargetStalls => scene.proxy.set_paused(false),
        Absence::Killed | Absence::StoppedToGoOn => scene.again(&[]),
    }
    scene.stops_equal();
    assert_eq!(text(&mut target, "GET x:text").as_deref(), Some("vw"));
    assert_eq!((text(&mut target, "GET x:count").as_deref(), int(&mut target, "LLEN x:list")), (Some("6"), 2));
    assert_eq!((int(&mut target, "HLEN x:hash"), int(&mut target, "PTTL x:hash")), (2, -1));
    assert_eq!(text(&mut target, "HGET x:fields f").as_deref(), Some("5"));
    assert_eq!(int(&mut target, "EXISTS x:gone"), 0);
}

#[test]
fn what_is_renewed_while_the_target_stalls_never_begins_anew() {
    expiries_pass_during(Absence::TargetStalls, ServerKind::Redis7);
}

#[test]
fn what_is_renewed_while_the_tool_is_dead_never_begins_anew() {
    expiries_pass_during(Absence::Killed, ServerKind::Redis8);
}

#[test]
fn what_is_renewed_while_the_tool_is_stopped_never_begins_anew_if_told_to_hold() {
    expiries_pass_during(Absence::StoppedToGoOn, ServerKind::Redis8);
}

/// In import mode nothing is held, and the target would let it expire as soon as the mode ends.
#[test]
fn what_is_renewed_while_the_tool_is_stopped_never_begins_anew_in_import_mode() {
    expiries_pass_during(Absence::StoppedToGoOn, ServerKind::Valkey9);
}

/// A target that refuses for too long ends the job, and the next one goes on.
#[test]
fn import_mode_outlives_an_end_from_which_a_start_goes_on() {
    let Some(mut scene) = InStep::with(ServerKind::Valkey9, &["--retry-max", "1s"]) else { return };
    let (mut source, mut target) = (scene.source(), scene.target());
    let mode = |target: &mut Client| target.run("CONFIG GET import-mode").unwrap().array().unwrap()[1].text().unwrap();
    source.run("SET x:text v").unwrap();
    scene.wait_acknowledged();
    target.run("ACL SETUSER default -append").unwrap();
    source.run("APPEND x:text w").unwrap();
    assert_eq!(scene.tool.wait(), Some(5), "{}", scene.tool.said());
    assert_eq!((mode(&mut target).as_str(), int(&mut target, "EXISTS df2redis:import-mode")), ("yes", 1));
    target.run("ACL SETUSER default +append").unwrap();
    scene.again(&[]);
    scene.wait(|status| status["in_step"] == true);
    scene.stops_equal();
    assert_eq!((mode(&mut target).as_str(), int(&mut target, "EXISTS df2redis:import-mode")), ("no", 0));
}

/// Why the answer that a key is gone led to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unheard {
    /// It was lost with the connection.
    Cut,
    /// The tool died before it came.
    Killed,
    /// The tool died before the key was fetched.
    KilledWhileFetching,
}

/// A target that answers a renewal with 0 has lost the key, which is fetched again: also if nobody heard the answer, or the
/// tool died before the key was fetched.
fn a_lost_key_is_not_forgotten(unheard: Unheard) {
    let Some(mut scene) = InStep::with(ServerKind::Redis7, &[]) else { return };
    let (mut source, mut target) = (scene.source(), scene.target());
    for line in ["SET x:text v", "SET x:count 5", "RPUSH x:list a"] {
        source.run(line).unwrap();
    }
    scene.wait_acknowledged();
    let position = |target: &mut Client| target.run("HGETALL df2redis:checkpoint").unwrap();
    target.run("DEL x:text x:count").unwrap();
    let before = position(&mut target);
    if unheard == Unheard::KilledWhileFetching {
        // Then an answer is waited for that does not come.
        scene.source_stalls.store(true, Ordering::Release);
    } else {
        scene.proxy.set_replies_paused(true);
    }
    source.run("PEXPIRE x:text 5000000").unwrap();
    let executed = wait_for(|| (position(&mut target) != before).then_some(()));
    assert!(executed.is_some(), "{}", scene.tool.said());
    match unheard {
        Unheard::Cut => {
            scene.proxy.drop_all();
            scene.proxy.set_replies_paused(false);
        }
        Unheard::Killed => {
            scene.tool.kill();
            scene.proxy.set_replies_paused(false);
            scene.again(&[]);
        }
        Unheard::KilledWhileFetching => {
            // The next transaction passes.
            let told = wait_for(|| scene.tool.said().contains("the target lost a key").then_some(()));
            assert!(told.is_some(), "{}", scene.tool.said());
            source.run("PEXPIRE x:list 4000000").unwrap();
            scene.wait_acknowledged();
            scene.tool.kill();
            scene.source_stalls.store(false, Ordering::Release);
            scene.again(&[]);
        }
    }
    let fetched = wait_for(|| (text(&mut target, "GET x:text").as_deref() == Some("v")).then_some(()));
    assert!(fetched.is_some(), "{}", scene.tool.said());
    // That one was lost without an answer that tells.
    source.run("SET x:count 6").unwrap();
    scene.stops_equal();
    let fields = position(&mut target);
    let fields: Vec<_> = fields.array().unwrap().iter().map(|field| field.text().unwrap()).collect();
    let names =
        |pair: &&[String]| pair[0].starts_with("lost:") || pair[0].starts_with("watched:") && !pair[1].is_empty();
    assert_eq!(fields.chunks(2).filter(names).count(), 0, "{fields:?}");
}

/// GETEX PERSIST is recorded of keys without an expiry, too: the target's 0 did not tell them from lost ones, and each was fetched.
#[test]
fn a_key_that_had_no_expiry_is_not_taken_for_a_lost_one() {
    let Some(mut scene) = InStep::with(ServerKind::Redis7, &[]) else { return };
    let (mut source, mut target) = (scene.source(), scene.target());
    for line in ["SET x:plain v", "SET x:lost v", "SET x:expires v PX 5000000"] {
        source.run(line).unwrap();
    }
    scene.wait_acknowledged();
    target.run("DEL x:lost").unwrap();
    for key in ["x:plain", "x:lost", "x:expires"] {
        source.run(&format!("GETEX {key} PERSIST")).unwrap();
    }
    let fetched = wait_for(|| (text(&mut target, "GET x:lost").as_deref() == Some("v")).then_some(()));
    assert!(fetched.is_some(), "{}", scene.tool.said());
    scene.stops_equal();
    let said = scene.tool.said();
    assert_eq!(said.matches("the target lost a key").count(), 1, "{said}");
    assert!(said.contains("key=x:lost"), "{said}");
}

/// A key is asked for by its name at the source, and written under the one at the target.
#[test]
fn lost_keys_with_other_names_are_fetched_again() {
    let scope = ["--rewrite-prefix", "p:=q:", "--exclude-prefix", "no:", "--db-map", "0:3", "--db-map", "3:0"];
    let Some(mut scene) = InStep::with(ServerKind::Redis7, &scope) else { return };
    let (mut source, mut target) = (scene.source(), scene.target());
    target.run("SELECT 3").unwrap();
    for key in ["p:list", "list"] {
        source.run(&format!("RPUSH {key} a b")).unwrap();
    }
    scene.wait_acknowledged();
    target.run("DEL q:list list").unwrap();
    for key in ["p:list", "list"] {
        source.run(&format!("PEXPIRE {key} 5000000")).unwrap();
        source.run(&format!("RPUSH {key} c")).unwrap();
    }
    for key in ["q:list", "list"] {
        let fetched = wait_for(|| (int(&mut target, &format!("LLEN {key}")) == 3).then_some(()));
        assert!(fetched.is_some(), "{key}: {}", scene.tool.said());
    }
    scene.wait_acknowledged();
    assert_eq!(int(&mut target, "EXISTS p:list"), 0);
}

/// The names of lost keys lie in database 0, whatever theirs is.
#[test]
fn lost_keys_of_other_databases_outlive_a_flush() {
    let Some(mut scene) = InStep::with(ServerKind::Redis7, &[]) else { return };
    let (mut source, mut target) = (scene.source(), scene.target());
    source.run("SELECT 1").unwrap();
    target.run("SELECT 1").unwrap();
    source.run("SET x:text v").unwrap();
    scene.wait_acknowledged();
    target.run("DEL x:text").unwrap();
    target.run("SELECT 0").unwrap();
    scene.source_stalls.store(true, Ordering::Release);
    let connections = scene.source_proxy.accepted_count();
    source.run("PEXPIRE x:text 5000000").unwrap();
    let mut remembers = || {
        let fields = target.run("HKEYS df2redis:checkpoint").unwrap();
        fields.array().unwrap().iter().any(|field| field.text().unwrap().ends_with(":1:x:text"))
    };
    // It is being asked for, and no answer comes. Whether the source is a master still, which is asked before a flush, it says.
    let told = wait_for(|| (remembers() && scene.source_proxy.accepted_count() > connections).then_some(()));
    assert!(told.is_some(), "{}", scene.tool.said());
    scene.source_stalls.store(false, Ordering::Release);
    for (db, remembered) in [(0, true), (1, false)] {
        source.run(&format!("SELECT {db}")).unwrap();
        source.run("FLUSHDB").unwrap();
        scene.wait_acknowledged();
        assert_eq!(remembers(), remembered, "{db}");
    }
}

#[test]
fn a_lost_key_whose_answer_was_cut_off_is_fetched_again() {
    a_lost_key_is_not_forgotten(Unheard::Cut);
}

#[test]
fn a_lost_key_whose_answer_never_came_before_a_kill_is_fetched_again() {
    a_lost_key_is_not_forgotten(Unheard::Killed);
}

#[test]
fn a_lost_key_that_was_not_fetched_before_a_kill_is_fetched_by_the_next_process() {
    a_lost_key_is_not_forgotten(Unheard::KilledWhileFetching);
}

/// Before the fence everything is put right but what is near; after a rollback the horizon is as it was, and all is held
/// again.
#[test]
fn a_cutover_puts_right_what_is_held_before_its_fence() {
    let Some(mut scene) = InStep::with(ServerKind::Redis7, &[]) else { return };
    let (mut source, mut target) = (scene.source(), scene.target());
    for i in 0..200 {
        source.run(&format!("SET x:{i} v PX {}", 600_000 + i)).unwrap();
    }
    scene.wait_acknowledged();
    // Half of them have no names in the next process.
    scene.tool.kill();
    let veto = scene.dir.path().join("veto");
    std::fs::write(&veto, "#!/bin/sh\n[ -e \"$0.not\" ]\n").unwrap();
    std::fs::set_permissions(&veto, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    scene.again(&["--hook-before-fence", veto.to_str().unwrap()]);
    scene.wait(|status| status["in_step"] == true);
    for i in 200..400 {
        source.run(&format!("SET x:{i} v PX {}", 600_000 + i)).unwrap();
    }
    scene.wait(|status| status["expiries_held"].as_u64() >= Some(200));
    scene.wait_acknowledged();
    let is_held = |target: &mut Client, key: &str| int(target, &format!("PTTL {key}")) > 1 << 41;
    assert!(is_held(&mut target, "x:0") && is_held(&mut target, "x:399"));
    let vetoed = scene.ask(&["cutover", "--execute", "--verify", "none"]);
    assert_eq!(vetoed.status.code(), Some(9), "{vetoed:?}");
    // Those that an earlier process held have got their names by looking at every key.
    let again = wait_for(|| (0..400).all(|i| is_held(&mut target, &format!("x:{i}"))).then_some(()));
    assert!(again.is_some(), "{}", scene.tool.said());
    let fences =
        scene.live.master().unwrap().requests().iter().filter(|asked| asked.starts_with("CLIENT PAUSE")).count();
    assert_eq!(fences, 0);
    source.run("SET x:later v PX 600000").unwrap();
    scene.wait_acknowledged();
    assert!(is_held(&mut target, "x:later"));
    std::fs::write(scene.dir.path().join("veto.not"), "").unwrap();
    let done = scene.ask(&["cutover", "--execute"]);
    assert_eq!(done.status.code(), Some(0), "{done:?}\n{}", scene.tool.said());
    assert_eq!(scene.tool.wait(), Some(0));
    scene.assert_equal();
}
