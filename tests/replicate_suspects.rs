//! Keys that the source may have deleted silently while the sync ran (wire 2.10), so many that asking for them takes long: the job
//! hears what else happens.

mod common;

use common::job::{self, binary, until};
use common::server;
use df2redis::lab::flow::{Faults, Gate};
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::proxy::{Faulty, Leg, Proxy};
use df2redis::lab::servers::ServerKind;
use df2redis::lab::torture::Tool;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const KEYS: usize = 20_000;
/// What new connections to the source bring of its answers, a second: for all keys they need more than a minute.
const REPLY_BYTES_PER_S: u64 = 1000;

#[test]
fn a_job_that_asks_for_many_keys_is_stopped_at_once() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let gate = Gate::default();
    let options = MasterOptions {
        faults: Faults { full_sync_gate: Some(gate.clone()), ..Faults::default() },
        ..MasterOptions::default()
    };
    let spec = Spec { omitted_deletes_count: KEYS, flows_count: 1, ..Spec::of("string:60B=20").unwrap() };
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
    tool.signal("INT");
    tool.signal("INT");
    assert_eq!(tool.wait(), Some(130), "{}", tool.said());
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
    for i in 0..200 {
        let args = ["MSET".to_string(), format!("kept:{i}"), "v".to_string()].map(String::into_bytes);
        live.world().run(0, &args);
    }
    gate.open();
    let mut client = server.client().unwrap();
    let mut count = |pattern: &str| client.ask(&["KEYS", pattern]).unwrap().array().unwrap_or_default().len();
    until(&mut tool, "not all are deleted", || (count("silent:*"), count("kept:*")) == (0, 200));
    job::stop(&mut tool);
    let report = std::fs::read_to_string(report.join("report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["suspects"]["removed"], 1200, "{}", report["suspects"]);
    assert!(report["suspects"]["asked"].as_u64() > Some(1200), "{}", report["suspects"]);
}
