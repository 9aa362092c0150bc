//! Walks every recorded stream to its last byte and compares what was decoded with what the master held.
//!
//! Then the same streams, cut and damaged: a typed error or a different value, never a panic, and never a success on a
//! truncated snapshot.

mod common;
mod truth;
mod walk;

use common::captures::{Capture, captures};
use df2redis::dragonfly::Reason;
use df2redis::dragonfly::owner::{OwnerRule, Verdict};
use df2redis::dragonfly::stream::Limits;
use df2redis::ids::FlowId;
use walk::{Walk, walk_flow};

const LIMITS: Limits = Limits {
    whole_bytes_max: 64 << 10,
    run_bytes_max: 16 << 10,
    atom_bytes_max: 64 << 20,
    key_bytes_max: 1 << 20,
    open_objects_max: 64,
};
/// So small that nearly everything is cut.
const SMALL: Limits = Limits { whole_bytes_max: 100, run_bytes_max: 64, ..LIMITS };

/// Seeded pieces of 1..=max bytes.
fn pieces(mut seed: u64, max: u64) -> impl FnMut() -> usize {
    move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (1 + seed % max) as usize
    }
}

fn check_positions(capture: &Capture, flow: usize, bytes: &[u8], walked: &Walk) {
    let meta = capture.meta();
    let name = format!("{} flow {flow}", capture.name);
    let token = walked.token.expect("EOF was reached");
    assert_eq!(meta["flows"][flow]["eof_token"].as_str().unwrap().as_bytes(), token, "{name}: token");
    let eof_at = meta["flows"][flow]["eof_at"].as_u64().unwrap();
    assert_eq!(walked.snapshot_bytes, eof_at + 40, "{name}: end of the snapshot");
    assert_eq!(walked.snapshot_bytes + walked.journal_bytes, bytes.len() as u64, "{name}: last byte");
    let counter = meta["replica_offset_at_end"][flow].as_u64().unwrap();
    assert_eq!(walked.counter.expect("JOURNAL_OFFSET came").0, counter, "{name}: counter");
}

fn walk_capture(capture: &Capture) -> Vec<Walk> {
    let mut walks = Vec::new();
    for (flow, bytes) in capture.flows().iter().enumerate() {
        let walked = walk_flow(flow, bytes, LIMITS, || usize::MAX).unwrap_or_else(|e| panic!("{}: {e}", capture.name));
        check_positions(capture, flow, bytes, &walked);
        let pieced = walk_flow(flow, bytes, SMALL, pieces(1 + flow as u64, 30_000)).unwrap();
        check_positions(capture, flow, bytes, &pieced);
        // The same keys in the same state, however the stream and the values were cut.
        assert!(walked.keys == pieced.keys, "{} flow {flow}: pieces change the keys", capture.name);
        assert_eq!(walked.journal, pieced.journal);
        walks.push(walked);
    }
    walks
}

#[test]
fn follow_captures_walk_to_the_last_byte() {
    for capture in captures().iter().filter(|capture| capture.name.starts_with("follow-")) {
        let records: usize = walk_capture(capture).iter().map(|walk| walk.journal.len()).sum();
        assert!(records > 100, "{}: {records} journal records", capture.name);
    }
}

#[test]
fn live_captures_walk_to_the_last_byte() {
    for capture in captures().iter().filter(|capture| capture.name.starts_with("live-")) {
        let walks = walk_capture(capture);
        assert!(walks.iter().map(|walk| walk.blob_records).sum::<usize>() > 0, "{}", capture.name);
    }
}

#[test]
fn snapshots_hold_what_the_master_held() {
    for capture in captures().iter().filter(|capture| capture.name.starts_with("snapshot-")) {
        let walks = walk_capture(capture);
        let wrong = truth::compare(&capture.truth(), walks.iter().flat_map(|walk| &walk.keys));
        assert!(wrong.is_empty(), "{}: {} wrong: {:#?}", capture.name, wrong.len(), &wrong[..wrong.len().min(10)]);
    }
}

#[test]
fn keys_stand_on_their_owners_and_strays_are_found() {
    let mut strays = Vec::new();
    for capture in captures().iter().filter(|capture| !capture.name.starts_with("live-")) {
        let flows = capture.flows();
        let rule = OwnerRule::new(flows.len() as u32);
        for (flow, bytes) in flows.iter().enumerate() {
            let flow_id = FlowId(flow as u32);
            let walked = walk_flow(flow, bytes, LIMITS, || usize::MAX).unwrap();
            for ((_, name), key) in &walked.keys {
                let is_hyll = key.value.bytes.starts_with(b"HYLL");
                rule.observe(flow_id, name, is_hyll);
                assert_eq!(rule.verdict(flow_id, name), Verdict::Own, "{}: {name:?}", capture.name);
            }
            // Only keys of commands whose first argument is a key.
            let sets = walked.journal.iter().filter(|(_, args)| args[0] == b"SET");
            strays.extend(sets.filter(|(_, args)| rule.verdict(flow_id, &args[1]) == Verdict::Stray).map(
                |(_, args)| {
                    assert!(args[2].starts_with(b"HYLL"));
                    (capture.name.clone(), args[1].clone())
                },
            ));
        }
        assert_eq!(rule.strays_in_doubt(), 0);
    }
    let expected = ["follow-lz4", "follow-plain"].map(|name| (name.to_owned(), b"j:hll2".to_vec()));
    assert_eq!(strays, expected);
}

/// Short flows that hold compressed blobs, many chunks, and a journal.
fn short_flows() -> Vec<(String, Vec<u8>)> {
    let wanted = [("snapshot-small-chunks", 1), ("follow-lz4", 1), ("follow-flushall", 1)];
    let all = captures();
    let find = |name: &str| all.iter().find(|capture| capture.name == name).expect("the recording is there");
    wanted.iter().map(|&(name, flow)| (format!("{name} flow {flow}"), find(name).flows().swap_remove(flow))).collect()
}

/// How many times the usual number of seeded changes is tried (`DF2REDIS_BAD_INPUT_ROUNDS`).
fn rounds() -> usize {
    std::env::var("DF2REDIS_BAD_INPUT_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

#[test]
fn truncated_snapshots_are_errors() {
    for (name, bytes) in short_flows() {
        let snapshot_bytes = walk_flow(0, &bytes, LIMITS, || usize::MAX).unwrap().snapshot_bytes as usize;
        // Every prefix of the beginning, every prefix of the end, and seeded ones between.
        let mut between = pieces(7, snapshot_bytes as u64 - 1);
        let seeded = (0..80 * rounds()).map(|_| between());
        let lengths = (0..1500).chain(seeded).chain(snapshot_bytes - 60..snapshot_bytes);
        for (i, len) in lengths.enumerate() {
            let limits = if i % 2 == 0 { LIMITS } else { SMALL };
            match walk_flow(0, &bytes[..len], limits, || usize::MAX) {
                Ok(_) => panic!("{name}: success on the first {len} bytes"),
                Err(error) => {
                    assert!(
                        matches!(error.reason, Reason::Truncated { .. } | Reason::ClosedBeforeEof),
                        "{name}: {len}: {error}"
                    );
                }
            }
        }
    }
}

/// The beginning of a flow as a stream of its own, with a proper end: the shortest from `bytes_min` on that leaves no object
/// open.
fn slice(bytes: &[u8], bytes_min: usize) -> Vec<u8> {
    let end = [&[0xc8, 0, 0, 0, 0, 0, 0, 0, 0][..], &[0xd3, 1, 0, 0, 0, 0, 0, 0, 0], &[0xff; 1], &[0; 8], &[b'a'; 40]];
    let journal =
        [0x06, 0x00, 0x0a, 0x00, 0x01, 0x03, 0x05, 0x03, 0x53, 0x45, 0x54, 0x01, 0x6b, 0x01, 0x76, 0x0f, 0x01];
    let mut cut = bytes_min;
    loop {
        cut = walk::border(bytes, cut, LIMITS);
        let short = [&bytes[..cut], &end.concat(), &journal].concat();
        match walk_flow(0, &short, LIMITS, || usize::MAX) {
            Ok(_) => return short,
            Err(error) => assert!(matches!(error.reason, Reason::EofWithOpenObjects { .. }), "{error}"),
        }
        cut += 1;
    }
}

#[test]
fn changed_bytes_are_errors_or_other_values() {
    let (mut errors, mut other) = (0, 0);
    for (name, bytes) in short_flows() {
        let short = slice(&bytes, if name.contains("chunks") { 6000 } else { 100 });
        let mut random = pieces(99, u64::MAX);
        for i in 0..700 * rounds() {
            // Now and then in the whole flow.
            let mut damaged = if i % 70 == 0 { bytes.clone() } else { short.clone() };
            let at = random() % damaged.len();
            damaged[at] ^= 1 + (random() % 255) as u8;
            let limits = if i % 3 == 0 { SMALL } else { LIMITS };
            match walk_flow(0, &damaged, limits, || usize::MAX) {
                Ok(_) => other += 1,
                Err(error) => {
                    assert!(error.to_string().starts_with("flow 0, offset "), "{name}: {error}");
                    errors += 1;
                }
            }
        }
    }
    assert!(errors > 100 && other > 100, "{errors} errors, {other} other values");
}
