//! Every recorded stream of a real Dragonfly, migrated by the program itself into real servers, ends at what that
//! Dragonfly held; and what the target cannot hold is exactly what the run's own report lists.
//!
//! Recordings whose journal goes on after the snapshot are brought to their end here by translating that journal with
//! the converter (what `replicate` will do), so that the snapshot part is checked against the same truth.

use df2redis::lab::LabError;
use df2redis::lab::flow::{Faults, Pieces};
use df2redis::lab::master::{Master, MasterOptions};
use df2redis::lab::recordings::{self, Recording};
use df2redis::lab::replay::Replay;
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::tool_binary;
use df2redis::lab::{client::Client, truth};
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::{Command, Output};

/// What a migration left behind.
struct Run {
    output: Output,
    report: Value,
}

impl Run {
    fn code(&self) -> i32 {
        self.output.status.code().unwrap_or(-1)
    }

    fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    /// (db, key) of everything that the report lists as not carried over.
    fn not_carried(&self) -> BTreeSet<(u64, String)> {
        let listed = self.report["not_carried"]["listed"].as_array().cloned().unwrap_or_default();
        listed
            .iter()
            .map(|item| (item["db"].as_u64().unwrap(), item["key"].as_str().unwrap_or_default().to_string()))
            .collect()
    }
}

fn migrate(source_port: u16, target_port: u16, more: &[&str]) -> Run {
    let output = Command::new(tool_binary(env!("CARGO_BIN_EXE_df2redis")))
        .args(["migrate", "--source", &format!("dragonfly://127.0.0.1:{source_port}")])
        .args(["--target", &format!("redis://127.0.0.1:{target_port}"), "--output", "json", "--memory", "128MiB"])
        .args(more)
        .output()
        .unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    Run { output, report }
}

/// Starts a server of this kind, or says why the test skips.
fn server(kind: ServerKind) -> Option<Server> {
    match Server::start_kind(kind, ServerOptions::default()) {
        Err(error @ LabError::NoServer { .. }) => {
            eprintln!("skipped: {kind:?} cannot be started here: {error}");
            None
        }
        server => Some(server.unwrap()),
    }
}

fn replay(recording: Recording, faults: Faults) -> Master {
    Replay::start(recording, MasterOptions { faults, ..MasterOptions::default() }).unwrap()
}

/// What a target of this kind cannot hold of a recording, by the recording's own truth.
struct Limits {
    json: bool,
    field_expiry: bool,
}

impl Limits {
    fn of(server: &Server) -> Self {
        let mut client = server.client().unwrap();
        let knows = |client: &mut Client, name: &str| {
            client
                .ask(&["COMMAND", "INFO", name])
                .unwrap()
                .array()
                .is_some_and(|rows| rows.iter().any(|r| r.array().is_some()))
        };
        Self { json: knows(&mut client, "JSON.SET"), field_expiry: knows(&mut client, "HPEXPIREAT") }
    }

    fn compare_args(&self) -> Vec<&'static str> {
        let mut args = vec!["--skip-types", if self.json { "opaque" } else { "json,opaque" }];
        if !self.field_expiry {
            args.push("--no-field-ttl");
        }
        args
    }

    /// (db, key) that the report must list, and no other.
    fn not_held(&self, recording: &Recording) -> BTreeSet<(u64, String)> {
        recording
            .truth
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .filter(|row| {
                row.get("opaque").is_some()
                    || (row["type"] == "json" && !self.json)
                    || row.get("members_with_ttl").is_some()
                    || (row.get("fields_with_ttl").is_some() && !self.field_expiry)
            })
            .map(|row| (row["db"].as_u64().unwrap(), key_text(&row["key"])))
            .collect()
    }
}

/// A key of truth.jsonl as the report writes it.
fn key_text(key: &Value) -> String {
    match key {
        Value::String(text) => df2redis::report::numbers::printable(text.as_bytes()),
        other => {
            let bytes = truth::bytes_of(other).unwrap();
            df2redis::report::numbers::printable(&bytes)
        }
    }
}

fn snapshot_recordings() -> Vec<String> {
    recordings::recording_names().unwrap().into_iter().filter(|name| name.starts_with("snapshot-")).collect()
}

/// Migrates one snapshot recording and checks values and report.
fn check_snapshot(name: &str, kind: ServerKind, faults: Faults, more: &[&str]) {
    let Some(server) = server(kind) else { return };
    let recording = recordings::recording(name).unwrap();
    let limits = Limits::of(&server);
    let expected = limits.not_held(&recording);
    let dir = tempfile::tempdir().unwrap();
    let truth_file = recording.write_truth(dir.path()).unwrap();
    let master = replay(recording, faults);
    let mut args = vec!["--on-unsupported", "skip"];
    args.extend_from_slice(more);
    let run = migrate(master.address().port(), server.port(), &args);
    assert_eq!(run.code(), 0, "{name} into {kind:?}: {}", run.stderr());
    assert_eq!(master.violations(), [], "{name} into {kind:?}");
    if let Err(differences) = truth::compare(server.port(), &truth_file, &limits.compare_args()) {
        panic!("{name} into {kind:?}:\n{differences}\n{}", run.stderr());
    }
    assert_eq!(run.not_carried(), expected, "{name} into {kind:?}: what the report lists");
}

#[test]
fn snapshots_into_redis_7_0() {
    for name in snapshot_recordings() {
        check_snapshot(&name, ServerKind::Redis7, Faults::default(), &[]);
    }
}

#[test]
fn snapshots_into_redis_8() {
    for name in snapshot_recordings() {
        check_snapshot(&name, ServerKind::Redis8, Faults::default(), &[]);
    }
}

#[test]
fn snapshots_into_valkey_8() {
    for name in snapshot_recordings() {
        check_snapshot(&name, ServerKind::Valkey8, Faults::default(), &[]);
    }
}

#[test]
fn snapshots_into_valkey_9() {
    for name in snapshot_recordings() {
        check_snapshot(&name, ServerKind::Valkey9, Faults::default(), &[]);
    }
}

#[test]
fn snapshots_in_pieces() {
    for (name, pieces) in [
        ("snapshot-lz4", Pieces::Seeded { max: 700, seed: 1 }),
        ("snapshot-small-chunks", Pieces::Fixed(97)),
        ("snapshot-plain-untagged", Pieces::Seeded { max: 5000, seed: 2 }),
        ("snapshot-lzf", Pieces::Seeded { max: 300, seed: 3 }),
    ] {
        check_snapshot(name, ServerKind::Redis7, Faults::default().pieces(pieces), &["--cores", "1"]);
    }
}

#[test]
fn snapshots_in_single_bytes() {
    let mut faults = Faults::default().pieces(Pieces::Fixed(1));
    faults.pieces_edge_bytes = Some(20_000);
    check_snapshot("snapshot-small-chunks", ServerKind::Redis7, faults.clone(), &[]);
    check_snapshot("snapshot-zstd", ServerKind::Redis7, faults, &[]);
}

/// Small chunks and tiny thresholds: every value takes the split, borrowed and chunked paths.
#[test]
fn snapshots_with_tiny_buffers() {
    for name in ["snapshot-lz4", "snapshot-plain-untagged"] {
        check_snapshot(
            name,
            ServerKind::Redis7,
            Faults::default(),
            &["--rx-chunk", "64KiB", "--restore-bytes-max", "256", "--borrow-bytes", "64", "--batch-bytes", "4KiB"],
        );
    }
}

#[test]
fn every_ring_mode_carries_the_same_data() {
    for more in [
        &["--read", "recv", "--registered-buffers", "off"][..],
        &["--taskrun", "coop"],
        &["--taskrun", "interrupt", "--link", "off"],
        &["--write", "sendmsg-zc", "--zero-copy-bytes", "1KiB"],
        &["--huge-pages", "off", "--connections", "1", "--cores", "1"],
    ] {
        check_snapshot("snapshot-lz4", ServerKind::Redis7, Faults::default(), more);
    }
}

#[test]
fn refuses_the_first_key_that_the_target_cannot_hold() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let master = replay(recordings::recording("snapshot-lz4").unwrap(), Faults::default());
    let run = migrate(master.address().port(), server.port(), &[]);
    assert_eq!(run.code(), 3, "{}", run.stderr());
    assert!(run.stderr().contains("--on-unsupported"), "{}", run.stderr());
}

#[test]
fn refuses_a_target_that_holds_keys_unless_told_what_to_do() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut client = server.client().unwrap();
    client.ask(&["SET", "mine", "1"]).unwrap();
    let recording = recordings::recording("snapshot-small-chunks").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let truth_file = recording.write_truth(dir.path()).unwrap();
    let master = replay(recording, Faults::default());
    let port = master.address().port();
    let run = migrate(port, server.port(), &["--on-unsupported", "skip"]);
    assert_eq!(run.code(), 3, "{}", run.stderr());
    assert_eq!(client.ask(&["DBSIZE"]).unwrap().int(), Some(1), "nothing was written");

    let run = migrate(port, server.port(), &["--on-unsupported", "skip", "--on-existing", "replace"]);
    assert_eq!(run.code(), 0, "{}", run.stderr());
    assert_eq!(client.ask(&["GET", "mine"]).unwrap().bytes(), Some(&b"1"[..]), "replace leaves other keys");

    let run = migrate(port, server.port(), &["--on-unsupported", "skip", "--on-existing", "flush"]);
    assert_eq!(run.code(), 0, "{}", run.stderr());
    let limits = Limits::of(&server);
    truth::compare(server.port(), &truth_file, &limits.compare_args()).unwrap();
}

/// `--on-existing skip`: keys that the target holds stay as they are.
#[test]
fn leaves_existing_keys_alone_when_told_to() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let recording = recordings::recording("snapshot-small-chunks").unwrap();
    let keys: Vec<String> = recording
        .truth
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|row| row["db"] == 0 && row["key"].is_string())
        .map(|row| row["key"].as_str().unwrap().to_string())
        .collect();
    let mut client = server.client().unwrap();
    for key in &keys {
        client.ask(&["SET", key, "mine"]).unwrap();
    }
    let master = replay(recording, Faults::default());
    let run = migrate(master.address().port(), server.port(), &["--on-unsupported", "skip", "--on-existing", "skip"]);
    assert_eq!(run.code(), 0, "{}", run.stderr());
    for key in &keys {
        assert_eq!(client.ask(&["GET", key]).unwrap().bytes(), Some(&b"mine"[..]), "{key}");
    }
}

/// A cut anywhere is an error of the source, never a success.
#[test]
fn a_truncated_stream_is_never_a_success() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let recording = recordings::recording("snapshot-small-chunks").unwrap();
    let bytes = recording.flows[1].len() as u64;
    for offset in [0, 5, 9, 100, bytes / 2, bytes - 49, bytes - 41, bytes - 40, bytes - 1] {
        let faults = Faults::default().cut_at(1, offset);
        let master = replay(recordings::recording("snapshot-small-chunks").unwrap(), faults);
        let run =
            migrate(master.address().port(), server.port(), &["--on-unsupported", "skip", "--on-existing", "flush"]);
        assert_eq!(run.code(), 4, "cut at {offset}: {}", run.stderr());
        // What is named is a matter of time: a master that loses one connection closes all of them.
    }
}

#[test]
fn a_garbled_token_is_refused() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let recording = recordings::recording("snapshot-small-chunks").unwrap();
    let at = recording.flows[0].len() as u64 - 10;
    let master = replay(recording, Faults::default().garble(0, at, 0x01));
    let run = migrate(master.address().port(), server.port(), &["--on-unsupported", "skip"]);
    assert_eq!(run.code(), 6, "{}", run.stderr());
    assert!(run.stderr().contains("token"), "{}", run.stderr());
}
