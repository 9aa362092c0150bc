//! A slow or absent target never stops the source: journals go into memory and the spool, and from there to the target in
//! order; past the cap the source is let go, what was read is applied, and the rest is asked for.
//!
//! The master's own account says what was read: it counts the bytes that its writes gave to the kernel, and a stopped
//! target with 64 MiB of memory at the tool leaves room for no more than a fraction of what is sent here.

mod common;

use common::job::binary;
use common::{FlowBytes, Hand, Stopped, contents, migrate_command, noise, start};
use df2redis::lab::flow::Faults;
use df2redis::lab::journal;
use df2redis::lab::master::MasterOptions;
use df2redis::lab::proxy::{Faulty, Proxy};
use df2redis::lab::recordings::{Recording, recording};
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::{Stage, Tool, wait_for};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// Appends `count` pairs of records to the first flow's journal: a number to a list, and a long value.
fn flood(mut recording: Recording, count: usize) -> Recording {
    let pad: String = noise(7, 1500).iter().map(|byte| char::from(b'a' + byte % 26)).collect();
    for i in 0..count {
        let (number, key) = (i.to_string(), format!("spool:pad:{}", i % 50));
        recording.flows[0].extend_from_slice(&journal::command(&["RPUSH", "spool:list", &number]));
        recording.flows[0].extend_from_slice(&journal::command(&["SET", &key, &pad]));
    }
    recording.meta.replica_offset_at_end[0] += 2 * count as u64;
    recording
}

fn stage(recording: Recording, binary: &Path, stable: Duration, faults: Faults) -> Stage {
    let server = Arc::new(Server::start_kind(ServerKind::Redis7, ServerOptions::default()).unwrap());
    let times = (Duration::from_millis(50), stable);
    let options = MasterOptions { faults, ..MasterOptions::default() };
    Stage::of(binary, recording, server, ServerKind::Redis7, times, options).unwrap()
}

/// Waits until the checkpoint is good: from then on a restart goes on from it.
#[track_caller]
fn wait_stable(stage: &Stage, tool: &mut Tool) {
    let reached = wait_for(|| {
        assert_eq!(tool.ended(), None, "{}", tool.said());
        stage.is_stable().then_some(())
    });
    assert!(reached.is_some(), "no good checkpoint:\n{}", tool.said());
}

/// Waits until the source got rid of all bytes of a flow.
#[track_caller]
fn wait_sent(stage: &Stage, tool: &mut Tool, flow: usize, bytes: u64) {
    let sent = wait_for(|| {
        assert_eq!(tool.ended(), None, "{}", tool.said());
        stage.master.sent_bytes().get(flow).is_some_and(|sent| *sent >= bytes).then_some(())
    });
    assert!(sent.is_some(), "{:?} of {bytes} bytes sent:\n{}", stage.master.sent_bytes(), tool.said());
}

/// The list holds every number once, in order.
#[track_caller]
fn check_list(stage: &Stage, count: usize) {
    let mut client = stage.server.client().unwrap();
    let reply = client.run("LRANGE spool:list 0 -1").unwrap();
    let found: Vec<String> = reply.array().unwrap().iter().map(|item| item.text().unwrap()).collect();
    assert_eq!(found.len(), count);
    let wrong = found.iter().enumerate().find(|(i, text)| i.to_string() != **text);
    assert_eq!(wrong, None);
}

fn report(dir: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(dir.join("report.json")).unwrap()).unwrap()
}

#[test]
fn a_stopped_target_never_stops_the_source() {
    const PAIRS: usize = 30_000;
    let recording = flood(recording("follow-plain").unwrap(), PAIRS);
    let all = recording.flows[0].len() as u64;
    let stage = stage(recording, binary(), Duration::from_secs(3), Faults::default());
    let dir = stage.dir.join("report");
    let mut tool = stage.start(&["--report", dir.to_str().unwrap()]).unwrap();
    wait_stable(&stage, &mut tool);
    let stopped = Stopped::new(&stage.server);
    // The source has got rid of everything, although the target took nothing.
    wait_sent(&stage, &mut tool, 0, all);
    // And is told each second how far the target is.
    let acks = stage.master.acks_count();
    let more = wait_for(|| {
        let now = stage.master.acks_count();
        now.iter().zip(&acks).all(|(now, before)| *now >= before + 2).then_some(())
    });
    assert!(more.is_some(), "{acks:?} {:?}", stage.master.acks_count());
    assert!(!stage.is_at_end());
    drop(stopped);
    stage.reach_end(&mut tool).unwrap();
    check_list(&stage, PAIRS);
    let report = report(&dir);
    let counters = &report["counters"];
    assert!(counters["spool_bytes_written"].as_u64() > Some(10 << 20), "{counters}");
    assert_eq!(
        (&counters["spool_bytes_written"], &counters["spool_bytes"]),
        (&counters["spool_bytes_read"], &0.into())
    );
    // Debug builds on a busy machine are slow; what is measured here is that nobody waited for the target.
    assert!(report["source_unread_ms_max"].as_u64() < Some(2000), "{}", report["source_unread_ms_max"]);
    assert!(report["rss_bytes_peak"].as_u64() <= Some(128 << 20), "{}", report["rss_bytes_peak"]);
}

#[test]
fn a_flow_is_read_on_while_it_stands_before_a_barrier() {
    const PAIRS: usize = 15_000;
    let recording = flood(recording("follow-flushall").unwrap(), PAIRS);
    let all = recording.flows[0].len() as u64;
    let lagging = recording.snapshot_bytes(1) as u64 + 1;
    let faults = Faults::default().stall(1, lagging, Duration::from_secs(10));
    let stage = stage(recording, binary(), Duration::from_secs(1), faults);
    let mut tool = stage.start(&[]).unwrap();
    wait_sent(&stage, &mut tool, 0, all);
    assert!(stage.master.sent_bytes()[1] <= lagging, "the flow that lags had come to the flush by then");
    stage.reach_end(&mut tool).unwrap();
    check_list(&stage, PAIRS);
}

/// Nothing goes beyond the cap: the source is let go, what was read is applied, and the rest is asked for.
fn let_go(stage: &Stage, mut tool: Tool, pairs: usize, words: &[&str]) {
    wait_stable(stage, &mut tool);
    let stopped = Stopped::new(&stage.server);
    wait_let_go(stage, &mut tool);
    drop(stopped);
    has_let_go(stage, tool, pairs, words);
}

/// Waits until the source has lost its replica.
fn wait_let_go(stage: &Stage, tool: &mut Tool) {
    let gone = wait_for(|| {
        assert_eq!(tool.ended(), None, "{}", tool.said());
        (stage.master.replicas_count() == 0).then_some(())
    });
    assert!(gone.is_some(), "{}", tool.said());
}

fn has_let_go(stage: &Stage, mut tool: Tool, pairs: usize, words: &[&str]) {
    stage.reach_end(&mut tool).unwrap();
    let said = tool.said();
    for word in words.iter().chain(&["is not being read", "let go"]) {
        assert!(said.contains(word), "no \"{word}\" in\n{said}");
    }
    assert!(stage.master.partial_count() >= 1);
    check_list(stage, pairs);
}

#[test]
fn past_the_cap_the_source_is_let_go() {
    const PAIRS: usize = 30_000;
    let recording = flood(recording("follow-plain").unwrap(), PAIRS);
    let stage = stage(recording, binary(), Duration::from_secs(3), Faults::default());
    let dir = stage.dir.join("report");
    let tool = stage.start(&["--spool-max", "4MiB", "--report", dir.to_str().unwrap()]).unwrap();
    let_go(&stage, tool, PAIRS, &["cap of 4.0 MiB"]);
    let report = report(&dir);
    assert!(report["source_unread_ms_max"].as_u64() < Some(15_000), "well under the source's own limit");
    assert!(report["counters"]["spool_bytes_max"].as_u64() <= Some(4 << 20));
    assert!(report["source_gone"]["count"].as_u64() >= Some(1), "{}", report["source_gone"]);
}

/// A target that goes on, but too slowly, is no excuse to park the source's writers again and again.
#[test]
fn past_the_cap_a_crawling_target_is_as_a_stopped_one() {
    const PAIRS: usize = 40_000;
    let recording = flood(recording("follow-plain").unwrap(), PAIRS);
    let stage = stage(recording, binary(), Duration::from_secs(3), Faults::default());
    let mut tool = stage.start(&["--spool-max", "4MiB"]).unwrap();
    wait_stable(&stage, &mut tool);
    let gone = wait_for(|| {
        assert_eq!(tool.ended(), None, "{}", tool.said());
        let stopped = Stopped::new(&stage.server);
        std::thread::sleep(Duration::from_millis(500));
        drop(stopped);
        std::thread::sleep(Duration::from_millis(20));
        assert!(!stage.is_at_end(), "{}", tool.said());
        tool.said().contains("let go").then_some(())
    });
    assert!(gone.is_some(), "{}", tool.said());
    has_let_go(&stage, tool, PAIRS, &["cap of 4.0 MiB"]);
}

/// What was cut off in the middle is not applied and not counted; all before it is.
#[test]
fn a_record_that_was_cut_off_is_asked_for_again() {
    const PAIRS: usize = 3_000;
    let recording = flood(recording("follow-plain").unwrap(), PAIRS);
    let flows = recording.flows.len();
    let sizes: Vec<u64> = recording.flows.iter().map(|flow| flow.len() as u64).collect();
    // Inside of the last value. The stall lets the other flows come to their ends before.
    let cut = sizes[0] - 700;
    let mut faults = Faults::default().cut_at(0, cut).stall(0, cut - 1, Duration::from_secs(4));
    faults.registrations_max = Some(1);
    let server = Arc::new(Server::start_kind(ServerKind::Redis7, ServerOptions::default()).unwrap());
    let options = MasterOptions { faults, backlog_records: Some(1), ..MasterOptions::default() };
    let times = (Duration::from_millis(50), Duration::from_millis(1500));
    let stage = Stage::of(binary(), recording, server, ServerKind::Redis7, times, options).unwrap();
    let mut tool = stage.start(&[]).unwrap();
    wait_stable(&stage, &mut tool);
    let stopped = Stopped::new(&stage.server);
    (1..flows).for_each(|flow| wait_sent(&stage, &mut tool, flow, sizes[flow]));
    wait_let_go(&stage, &mut tool);
    drop(stopped);
    stage.reach_end(&mut tool).unwrap();
    check_list(&stage, PAIRS);
    assert_eq!((stage.master.registrations_count(), stage.master.partial_count()), (2, 1), "{}", tool.said());
}

/// The tool under a limit of file sizes: what a full disk does, without one.
fn limited(dir: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join("limited");
    let text = format!("#!/bin/sh\nexec prlimit --fsize={} {} \"$@\"\n", 8 << 20, binary().display());
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    path
}

#[test]
fn a_file_that_cannot_grow_is_as_the_cap() {
    const PAIRS: usize = 30_000;
    if !Command::new("prlimit").arg("--version").output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no prlimit here");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let limited = limited(dir.path());
    let recording = flood(recording("follow-plain").unwrap(), PAIRS);
    let stage = stage(recording, binary(), Duration::from_secs(3), Faults::default());
    let log = stage.dir.join("tool.log");
    let tool = Tool::start(&limited, stage.master.port(), stage.server.port(), &log, &[]).unwrap();
    let_go(&stage, tool, PAIRS, &["writing to the spool", "File too large"]);
}

#[test]
fn without_a_spool_memory_must_do_and_the_source_is_let_go_too() {
    let recording = flood(recording("follow-plain").unwrap(), 30_000);
    let stage = stage(recording, binary(), Duration::from_secs(3), Faults::default());
    let tool = stage.start(&["--spool", "none"]).unwrap();
    let_go(&stage, tool, 30_000, &["--spool none"]);
}

#[test]
fn a_spool_that_cannot_be_is_refused_before_anything_is_begun() {
    let recording = recording("follow-plain").unwrap();
    let stage = stage(recording, binary(), Duration::from_secs(1), Faults::default());
    let mut tool = stage.start(&["--spool", "/nowhere/at/all"]).unwrap();
    assert_eq!(tool.wait(), Some(3), "{}", tool.said());
    assert!(tool.said().contains("/nowhere/at/all") && tool.said().contains("--spool none"), "{}", tool.said());
    assert_eq!(stage.master.registrations_count(), 0);
}

/// A snapshot of two flows, 48 MiB in all.
fn snapshot() -> Vec<FlowBytes> {
    let mut flows = vec![FlowBytes::new(), FlowBytes::new()];
    for (i, flow) in flows.iter_mut().enumerate() {
        for key in 0..1500 {
            flow.string(format!("key:{i}:{key}").as_bytes(), &noise(key * 2 + i as u64, 16 << 10));
        }
    }
    flows
}

/// A migration whose target is paused as soon as the snapshot has begun; `meanwhile` sees what the source has sent.
fn paused_migration(more: &[&str], meanwhile: impl FnOnce(&dyn Fn() -> u64, u64)) {
    let flows = snapshot();
    let all: u64 = flows.iter().map(|flow| flow.snapshot.len() as u64).sum();
    let expected = 2 * 1500;
    let master = Hand::new(flows).faulty(Faults::default().slow(30 << 20));
    let server = Server::start_kind(ServerKind::Redis7, ServerOptions::default()).unwrap();
    let proxy = Proxy::start(server.port(), |_| Faulty::default()).unwrap();
    let mut running = start(migrate_command(master.port(), proxy.port(), &[&["--memory", "64MiB"], more].concat()));
    let sent = || master.sent_bytes().iter().sum::<u64>();
    assert!(wait_for(|| (sent() > 0).then_some(())).is_some());
    proxy.set_paused(true);
    meanwhile(&sent, all);
    assert!(running.is_running());
    proxy.set_paused(false);
    let run = running.wait();
    run.expect_code(0);
    let held = contents(&mut server.client().unwrap());
    assert_eq!(held.len(), expected);
    for ((_, key), (_, value)) in &held {
        let text = String::from_utf8(key.clone()).unwrap();
        let mut numbers = text.split(':').skip(1).map(|n| n.parse::<u64>().unwrap());
        let (flow, number) = (numbers.next().unwrap(), numbers.next().unwrap());
        assert!(value[0] == noise(number * 2 + flow, 16 << 10), "{text}");
    }
}

#[test]
fn source_first_takes_the_whole_snapshot_from_a_source_whose_target_is_away() {
    paused_migration(&["--source-first", "on"], |sent, all| {
        assert!(wait_for(|| (sent() >= all).then_some(())).is_some(), "{} of {all} bytes sent", sent());
    });
}

#[test]
fn a_snapshot_whose_target_is_away_goes_on_drop_by_drop() {
    paused_migration(&[], |sent, all| {
        // Until every buffer on the way is full.
        let mut before = sent();
        for _ in 0..100 {
            std::thread::sleep(Duration::from_millis(300));
            let now = sent();
            if now - before < 2 << 20 {
                break;
            }
            before = now;
        }
        let full = sent();
        let moved = wait_for(|| (sent() > full + (1 << 20)).then_some(()));
        assert!(moved.is_some() && full < all, "{full}, now {} of {all} bytes sent", sent());
    });
}
