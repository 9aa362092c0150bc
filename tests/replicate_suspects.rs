//! Keys that the source may have deleted silently while the sync ran (wire 2.10): so many that asking for them takes long, while the
//! job hears what else happens; and such as are written again.

mod common;

use common::job::{self, binary, until};
use common::{FlowBytes, Hand, migrate, server};
use df2redis::lab::flow::{Faults, Gate};
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::proxy::{Faulty, Leg, Proxy};
use df2redis::lab::servers::{Server, ServerKind};
use df2redis::lab::torture::{Tool, compare, is_stable};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const KEYS: usize = 20_000;
/// What new connections to the source bring of its answers, a second: for all keys they need more than a minute.
const REPLY_BYTES_PER_S: u64 = 1000;

/// A job that is asking for so many keys, of which the answers come slowly.
struct Slow {
    server: Server,
    live: Live,
    proxy: Proxy,
    tool: Tool,
}

impl Slow {
    fn new(keys: usize) -> Option<Self> {
        let server = server(ServerKind::Redis7)?;
        let gate = Gate::default();
        let options = MasterOptions {
            faults: Faults { full_sync_gate: Some(gate.clone()), ..Faults::default() },
            ..MasterOptions::default()
        };
        let spec = Spec { omitted_deletes_count: keys, flows_count: 1, ..Spec::of("string:60B=20").unwrap() };
        let live = Live::start(spec, LiveOptions::default(), options).unwrap();
        let is_slow = Arc::new(AtomicBool::new(false));
        let slow = is_slow.clone();
        let plan = move |_| match slow.load(Ordering::Acquire) {
            true => Faulty { to_client: Leg { rate: Some(REPLY_BYTES_PER_S), ..Leg::default() }, ..Faulty::default() },
            false => Faulty::default(),
        };
        let proxy = Proxy::start(live.port(), plan).unwrap();
        let log = server.dir().join("tool.log");
        let mut tool = Tool::start(binary(), proxy.port(), server.port(), &log, &["--log", "info"]).unwrap();
        until(&mut tool, "no full sync", || tool_said(&log, "phase=\"full sync\""));
        let connections = proxy.accepted_count();
        is_slow.store(true, Ordering::Release);
        gate.open();
        until(&mut tool, "nothing is asked for", || proxy.accepted_count() > connections);
        is_slow.store(false, Ordering::Release);
        Some(Self { server, live, proxy, tool })
    }
}

#[test]
fn a_job_that_asks_for_many_keys_is_stopped_at_once() {
    let Some(Slow { mut tool, proxy: _proxy, live: _live, server: _server }) = Slow::new(KEYS) else { return };
    tool.signal("INT");
    tool.signal("INT");
    assert_eq!(tool.wait(), Some(130), "{}", tool.said());
}

/// Of some the source says that it has them; what it has was written while it was asked, or is about to be.
#[test]
fn regression_what_is_written_anew_while_the_source_is_asked_is_what_it_has() {
    let Some(Slow { server, live, proxy: _proxy, mut tool }) = Slow::new(2000) else { return };
    let write_anew = |from: usize| {
        for i in (from..2000).step_by(10) {
            job::run(&live, &format!("INCR silent:{i}"));
            job::run(&live, &format!("RPUSH silent:{} e", i + 2));
            job::run(&live, &format!("APPEND silent:{} e", i + 4));
            job::run(&live, &format!("SETNX silent:{} e", i + 6));
        }
    };
    write_anew(0);
    std::thread::sleep(Duration::from_secs(2));
    assert!(!is_stable(&server), "the source was asked already");
    write_anew(1);
    until(&mut tool, "not stable", || is_stable(&server));
    until(&mut tool, "not acknowledged", || live.is_acknowledged());
    let truth = server.dir().join("truth.jsonl");
    live.write_truth(&truth).unwrap();
    until(&mut tool, "not equal", || compare(&server, ServerKind::Redis7, &truth).is_ok());
    job::stop(&mut tool);
}

fn tool_said(log: &std::path::Path, words: &str) -> bool {
    std::fs::read_to_string(log).unwrap_or_default().contains(words)
}

/// All of them are asked for where nobody stops it, and those that are gone at the source are deleted.
#[test]
fn every_key_that_is_gone_is_deleted() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let gate = Gate::default();
    let options = MasterOptions {
        faults: Faults { full_sync_gate: Some(gate.clone()), ..Faults::default() },
        ..MasterOptions::default()
    };
    let spec = Spec { omitted_deletes_count: 600, flows_count: 2, ..Spec::of("string:60B=20").unwrap() };
    let live = Live::start(spec, LiveOptions::default(), options).unwrap();
    let log = server.dir().join("tool.log");
    let report = server.dir().join("report");
    let args = ["--log", "info", "--cores", "2", "--report", report.to_str().unwrap()];
    let mut tool = Tool::start(binary(), live.port(), server.port(), &log, &args).unwrap();
    until(&mut tool, "no full sync", || tool_said(&log, "phase=\"full sync\""));
    // Now its snapshot has begun: what is written from here on has no baseline.
    let mut client = server.client().unwrap();
    until(&mut tool, "nothing is loaded", || client.run("DBSIZE").unwrap().int() > Some(5));
    for i in 0..200 {
        let args = ["MSET".to_string(), format!("kept:{i}"), "v".to_string()].map(String::into_bytes);
        live.world().run(0, &args);
    }
    gate.open();
    let mut count = |pattern: &str| client.ask(&["KEYS", pattern]).unwrap().array().unwrap_or_default().len();
    until(&mut tool, "not all are deleted", || (count("silent:*"), count("kept:*")) == (0, 200));
    job::stop(&mut tool);
    let report = std::fs::read_to_string(report.join("report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["suspects"]["removed"], 1200, "{}", report["suspects"]);
    assert!(report["suspects"]["asked"].as_u64() > Some(1200), "{}", report["suspects"]);
}

/// Keys that were written by a record, deleted without one and written anew, with what the source holds of them now. None has a
/// baseline: the bucket was sent when they were not there.
const WRITTEN_ANEW: &[(&[&str], &[&str])] = &[
    (&["SETNX k:lock first", "SETNX k:lock second"], &["GET k:lock = second"]),
    (&["MSET k:l v", "RPUSH k:l e"], &["LRANGE k:l 0 -1 = e"]),
    (&["GETSET k:h v", "HSET k:h f e"], &["HGET k:h f = e"]),
    (&["MSET k:x v", "XADD k:x 1-1 f v"], &["XLEN k:x = 1"]),
    (&["MSET k:text v", "INCR k:text"], &["GET k:text = 1"]),
    (&["MSET k:a v", "MSET k:b x", "RENAMENX k:a k:b"], &["GET k:b = v", "EXISTS k:a = 0"]),
    // A STICK says of a key neither that it is there nor that it is not.
    (&["MSET k:gone v", "STICK k:gone"], &["EXISTS k:gone = 0"]),
];

/// The source has 1 in k:n and k:m2: deleted without a record before something was added.
const ADDED_TO: [&str; 6] =
    ["MSET k:n 5 k:m 5 k:other 5", "INCR k:n", "PERSIST k:n", "PERSIST k:other", "APPEND k:m 1", "RENAME k:m k:m2"];

fn flow_of(records: &[&str]) -> FlowBytes {
    let mut flow = FlowBytes::new();
    for record in records {
        flow.journal(0, &record.split(' ').collect::<Vec<_>>());
    }
    flow
}

#[test]
fn regression_what_was_deleted_silently_and_written_anew_is_what_the_source_has() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut client = server.client().unwrap();
    for (more, prefix) in [(&[][..], "k:"), (&["--rewrite-prefix", "k:=t:"], "t:")] {
        client.run("FLUSHALL").unwrap();
        let records: Vec<&str> = WRITTEN_ANEW.iter().flat_map(|(records, _)| records.iter().copied()).collect();
        let hand = Hand::new(vec![flow_of(&records)]);
        let hand = ["lock", "l", "h", "x", "text", "b"]
            .iter()
            .fold(hand, |hand, key| hand.holds(0, format!("k:{key}").as_bytes()));
        let run = migrate(hand.start().port(), server.port(), more);
        run.expect_code(0);
        for (question, wanted) in
            WRITTEN_ANEW.iter().flat_map(|(_, told)| told.iter()).filter_map(|told| told.split_once(" = "))
        {
            let reply = client.run(&question.replace("k:", prefix)).unwrap();
            let found = reply.int().map(|number| number.to_string()).or_else(|| reply.text());
            let found = found.or_else(|| reply.array()?.first()?.text());
            assert_eq!(found.as_deref(), Some(wanted), "{question} {more:?}");
        }
        assert_eq!(run.report["not_carried"]["counts"], serde_json::json!({}));
    }
}

/// Of what adds to a string nobody can tell to what it added.
#[test]
fn regression_a_string_that_was_added_to_is_listed_and_fetched() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut client = server.client().unwrap();
    let flow = flow_of(&ADDED_TO);
    let hand = || Hand::new(vec![flow.clone()]).holds_string(0, b"k:n", b"1").holds_string(0, b"k:m2", b"1");
    let run = migrate(hand().start().port(), server.port(), &[]);
    run.expect_code(0);
    assert_eq!(client.run("GET k:n").unwrap().text().as_deref(), Some("6"));
    let listed = &run.report["not_carried"]["counts"];
    assert_eq!(listed["doubtful-PerhapsDeleted/verify"], 2, "{listed}");

    client.run("FLUSHALL").unwrap();
    let master = hand().start();
    let log = server.dir().join("tool.log");
    let mut tool = Tool::start(binary(), master.port(), server.port(), &log, &["--log", "info"]).unwrap();
    let mut holds = |key: &str| client.ask(&["GET", key]).unwrap().text();
    until(&mut tool, "not fetched", || (holds("k:n"), holds("k:m2")) == (Some("1".into()), Some("1".into())));
    job::stop(&mut tool);
    assert_eq!(holds("k:other").as_deref(), Some("5"));
}
