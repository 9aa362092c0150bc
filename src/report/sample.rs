//! A small run with something in every field, for this room's golden tests.

use super::counters::{CpuSample, FlowSample, WorkerStats};
use super::document::{NotCarried, NotCarriedList, Outcome, RingFeature, RunInputs, ServerInfo, Suspects, TypeRow};
use super::latency::{Latency, LatencySeries, Recorder};
use std::collections::BTreeMap;
use std::time::Duration;

pub(crate) fn sample_inputs(outcome: Outcome) -> RunInputs {
    let mut recorder = Recorder::new();
    for (latency, ns, count) in [
        (Latency::ApplyLag, 150_000, 9_990),
        (Latency::ApplyLag, 2_500_000, 10),
        (Latency::Service, 90_000, 320),
        (Latency::Residence, 400_000, 64),
    ] {
        recorder.record(latency, 0, ns, count);
    }
    let mut latencies = LatencySeries::new();
    latencies.add(&recorder.take_interval());
    let flow = |flow, keys| FlowSample {
        flow,
        keys,
        state: "complete",
        bytes_in: keys * 120,
        read_lsn: 0,
        unread_ns_max: 3_000_000,
        ..Default::default()
    };
    let mut not_carried = NotCarriedList::default();
    not_carried.push(&NotCarried {
        db: 0,
        key: b"doc:\xff1".to_vec(),
        kind: "json".into(),
        action: "skip".into(),
        reason: "the target has no JSON module".into(),
    });
    let row = |name: &str, read, written, expired, elements, bytes| TypeRow {
        type_name: name.into(),
        keys_read: read,
        keys_written: written,
        keys_expired: expired,
        keys_skipped: BTreeMap::new(),
        elements,
        bytes,
    };
    let mut json = row("json", 1, 0, 0, 1, 50);
    json.keys_skipped.insert("unsupported".into(), 1);
    RunInputs {
        kernel: "6.18.0".into(),
        ring_features: vec![
            RingFeature { name: "defer-taskrun".into(), used: true, note: None },
            RingFeature { name: "sendmsg-zc".into(), used: false, note: Some("not asked for".into()) },
        ],
        source: ServerInfo {
            address: "127.0.0.1:6380".into(),
            make: "dragonfly".into(),
            version: "1.34.0".into(),
            flows: 2,
        },
        targets: vec![ServerInfo {
            address: "127.0.0.1:6379".into(),
            make: "redis".into(),
            version: "7.0.15".into(),
            flows: 0,
        }],
        phases: [("connect", 12), ("full sync", 960), ("draining", 28)]
            .map(|(name, ms)| (name.to_string(), Duration::from_millis(ms)))
            .to_vec(),
        elapsed: Duration::from_millis(1000),
        transfer: Duration::from_millis(960),
        started_unix_ms: 1_700_000_000_000,
        types: vec![row("string", 9_000, 8_990, 10, 9_000, 900_000), row("hash", 999, 999, 0, 19_980, 400_000), json],
        not_carried,
        journal_commands: BTreeMap::from([("SET".into(), 3), ("INCR".into(), 1)]),
        search_indexes: vec!["idx:products".into()],
        scripts_loaded: 1,
        suspects: Suspects { asked: 4, removed: 1 },
        totals: WorkerStats {
            keys: 10_000,
            journal_entries: 4,
            strays_dropped: 2,
            bytes_in: 1_300_000,
            bytes_out: 1_500_000,
            bytes_replies: 50_000,
            batches: 320,
            batch_bytes: 1_500_000,
            batch_bytes_max: 32_768,
            chains: 100,
            pipeline_depth_sum: 40_000,
            pipeline_depth_max: 900,
            commands: 10_003,
            replies: 10_003,
            enters: 800,
            flows: vec![flow(0, 5_100), flow(1, 4_900)],
            ..Default::default()
        },
        latencies,
        cpu_tool: Some(CpuSample { user: Duration::from_millis(20), system: Duration::from_millis(40) }),
        cpu_target: Some(CpuSample { user: Duration::from_millis(80), system: Duration::from_millis(60) }),
        rss_bytes_peak: Some(200 << 20),
        ..RunInputs::empty(
            "migrate",
            outcome,
            serde_json::json!({"memory_bytes": 268435456, "source": {"password": "(set)"}}),
        )
    }
}
