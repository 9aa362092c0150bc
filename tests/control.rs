//! The control socket of a running `replicate`: what it tells, what it changes, and whom and what it refuses.

use df2redis::lab::master::MasterOptions;
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::{Stage, Tool, tool_binary, wait_for};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

static TOOL: LazyLock<PathBuf> = LazyLock::new(|| tool_binary(env!("CARGO_BIN_EXE_df2redis")));

/// A source whose journal takes `stable_ms`, a target, and where the socket will be.
fn stage(stable_ms: u64) -> (Stage, PathBuf) {
    let server = Arc::new(Server::start_kind(ServerKind::Redis7, ServerOptions::default()).unwrap());
    let times = (Duration::from_millis(50), Duration::from_millis(stable_ms));
    let stage = Stage::new(&TOOL, "follow-lz4", server, ServerKind::Redis7, times, MasterOptions::default()).unwrap();
    let path = stage.dir.join("job.sock");
    (stage, path)
}

fn start(stage: &Stage, path: &Path) -> Tool {
    stage.start(&["--control", path.to_str().unwrap(), "--log", "info"]).unwrap()
}

fn control(path: &Path, args: &[&str]) -> Output {
    Command::new(&*TOOL).args(args).args(["--control", path.to_str().unwrap()]).output().unwrap()
}

fn status(path: &Path) -> Option<Value> {
    let output = control(path, &["status", "--output", "json"]);
    let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
    Some(answer["status"].clone())
}

#[track_caller]
fn done(path: &Path, args: &[&str]) -> String {
    let output = control(path, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn wait_phase(path: &Path, tool: &mut Tool, phases: &[&str]) -> Value {
    let found = wait_for(|| {
        assert_eq!(tool.ended(), None, "{}", tool.said());
        status(path).filter(|status| phases.iter().any(|phase| status["phase"] == *phase))
    });
    found.unwrap_or_else(|| panic!("never in {phases:?}:\n{}", tool.said()))
}

#[test]
fn a_status_tells_phase_lag_and_knobs() {
    let (stage, path) = stage(300);
    let mut tool = start(&stage, &path);
    let status = wait_phase(&path, &mut tool, &["in step"]);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(status["command"], "replicate");
    assert_eq!(status["pid"], tool.pid());
    assert_eq!(status["lag"]["entries"], 0, "{status}");
    let flows = status["flows"].as_array().unwrap();
    assert!(
        flows.iter().all(|flow| flow["source_lsn"].is_u64() && flow["applied_lsn"] == flow["source_lsn"]),
        "{status}"
    );
    let knobs: Vec<_> = status["knobs"].as_array().unwrap().iter().map(|knob| knob["key"].as_str().unwrap()).collect();
    for key in ["batch-bytes", "window-bytes", "rate-bytes", "rate-entries", "log", "progress-interval"] {
        assert!(knobs.contains(&key), "{knobs:?}");
    }
    let text = done(&path, &["status"]);
    assert!(text.contains("phase: in step") && text.contains("lag: 0 entries"), "{text}");
    // A watch ends with its job.
    let mut watch = Command::new(&*TOOL)
        .args(["status", "--watch", "--control", path.to_str().unwrap()])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // It watches from its first word on; a job that has gone before that is an error.
    let mut shown = std::io::BufReader::new(watch.stdout.take().unwrap());
    let mut first = String::new();
    std::io::BufRead::read_line(&mut shown, &mut first).unwrap();
    let shown = std::thread::spawn(move || std::io::copy(&mut shown, &mut std::io::sink()));
    assert!(done(&path, &["stop"]).contains("stopping"));
    assert_eq!(tool.wait(), Some(130), "{}", tool.said());
    assert!(watch.wait().unwrap().success());
    shown.join().unwrap().unwrap();
    assert!(!path.exists(), "the socket goes away with the job");
    let gone = control(&path, &["status"]);
    assert_eq!(gone.status.code(), Some(3), "{}", String::from_utf8_lossy(&gone.stderr));
    stage.compare().unwrap();
}

#[test]
fn a_paused_job_sends_nothing_and_loses_nothing() {
    let (stage, path) = stage(1500);
    let mut tool = start(&stage, &path);
    wait_phase(&path, &mut tool, &["catching up", "in step"]);
    assert!(done(&path, &["pause"]).contains("paused"));
    let applied = || {
        let status = status(&path).unwrap();
        let flows = status["flows"].as_array().unwrap().clone();
        flows.iter().map(|flow| flow["applied_lsn"].as_u64().unwrap_or(0)).collect::<Vec<_>>()
    };
    // The first sample of the workers tells the flows.
    wait_for(|| status(&path).filter(|status| !status["flows"].as_array().unwrap().is_empty())).unwrap();
    // What was decoded before the pause is still answered.
    std::thread::sleep(Duration::from_millis(300));
    let before = applied();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(applied(), before);
    let paused = status(&path).unwrap();
    assert_eq!(paused["throttle"]["paused"], true);
    assert!(paused["throttle"]["reasons"][0].as_str().unwrap().contains("paused"), "{paused}");
    done(&path, &["resume"]);
    stage.finish(tool).unwrap();
}

#[test]
fn limits_slow_a_job_down_and_end_when_lifted() {
    let (stage, path) = stage(100);
    let mut tool = start(&stage, &path);
    wait_for(|| status(&path)).unwrap();
    done(&path, &["throttle", "100entries/s"]);
    assert_eq!(status(&path).unwrap()["throttle"]["entries_per_s"], 100);
    let commands = |status: &Value| status["commands"].as_u64().unwrap();
    let before = commands(&status(&path).unwrap());
    std::thread::sleep(Duration::from_millis(3000));
    let after = commands(&status(&path).unwrap());
    // The whole is some thousand commands; a step of each flow may go beyond the limit.
    assert!(after - before < 2000 && tool.ended().is_none(), "{before} {after}");
    done(
        &path,
        &["set", "rate-entries=off", "rate-bytes=1GiB", "batch-bytes=16KiB", "window-bytes=64KiB", "log=debug"],
    );
    let knobs = status(&path).unwrap()["knobs"].to_string();
    assert!(knobs.contains("16384") && knobs.contains("65536") && knobs.contains("debug"), "{knobs}");
    for bad in ["memory=1GiB", "batch-bytes=1MiB", "log=loud", "rate-bytes=0"] {
        let output = control(&path, &["set", bad]);
        assert_eq!(output.status.code(), Some(3), "{bad}");
        assert!(!output.stderr.is_empty());
    }
    stage.finish(tool).unwrap();
}

#[test]
fn the_same_job_is_not_started_twice() {
    let (stage, path) = stage(1000);
    let mut tool = start(&stage, &path);
    wait_phase(&path, &mut tool, &["catching up", "in step"]);
    let log = stage.dir.join("second.log");
    let (source, target) = (stage.master.port(), stage.server.port());
    let args = ["--control", path.to_str().unwrap()];
    let mut second = Tool::start(&TOOL, source, target, &log, &args).unwrap();
    assert_eq!(second.wait(), Some(3), "{}", second.said());
    assert!(status(&path).is_some(), "the first one's socket is still there");
    // Killed, it leaves its socket behind; the next one takes its place.
    tool.kill();
    assert!(path.exists());
    let mut tool = start(&stage, &path);
    wait_phase(&path, &mut tool, &["catching up", "in step"]);
    stage.finish(tool).unwrap();
}

#[test]
fn bad_requests_are_answered_and_harm_nothing() {
    let (stage, path) = stage(200);
    let mut tool = start(&stage, &path);
    wait_phase(&path, &mut tool, &["catching up", "in step"]);
    let mut stream = BufReader::new(UnixStream::connect(&path).unwrap());
    let mut ask = |line: &[u8]| {
        stream.get_mut().write_all(line).unwrap();
        let mut answer = String::new();
        stream.read_line(&mut answer).unwrap();
        serde_json::from_str::<Value>(&answer).unwrap()
    };
    for line in [&b"\n"[..], b"{}\n", b"\xff\x00\n", b"[[[[[[\n", b"{\"do\":\"stop\",\"now\":true}\n"] {
        let answer = ask(line);
        assert_eq!((&answer["ok"], &answer["protocol"]), (&Value::Bool(false), &1.into()), "{answer}");
    }
    assert_eq!(ask(b"{\"do\":\"status\"}\n")["ok"], true);
    // Too long a line, and peers that come and say nothing.
    let mut long = UnixStream::connect(&path).unwrap();
    let _ = long.write_all(&vec![b'x'; 20_000]);
    let mut answer = String::new();
    let _ = BufReader::new(long).read_line(&mut answer);
    assert!(answer.is_empty() || answer.contains("16384"), "{answer}");
    let silent: Vec<_> = (0..40).map(|_| UnixStream::connect(&path).unwrap()).collect();
    drop(silent);
    wait_for(|| status(&path)).unwrap();
    stage.finish(tool).unwrap();
}

#[test]
fn a_job_is_found_by_its_servers_and_a_migration_answers_too() {
    let (stage, _) = stage(100);
    let runtime = stage.dir.join("run");
    std::fs::create_dir(&runtime).unwrap();
    let (source, target) = (
        format!("dragonfly://127.0.0.1:{}", stage.master.port()),
        format!("redis://127.0.0.1:{}", stage.server.port()),
    );
    let mut job = Command::new(&*TOOL)
        .args(["replicate", "--source", &source, "--target", &target, "--memory", "64MiB", "--progress", "off"])
        .args(["--on-unsupported", "skip"])
        .env("XDG_RUNTIME_DIR", &runtime)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let ask = |args: &[&str]| Command::new(&*TOOL).args(args).env("XDG_RUNTIME_DIR", &runtime).output().unwrap();
    wait_for(|| ask(&["status", "--source", &source, "--target", &target]).status.success().then_some(())).unwrap();
    assert!(ask(&["status"]).status.success(), "the only job there is");
    assert!(ask(&["stop"]).status.success());
    assert_eq!(job.wait().unwrap().code(), Some(130));
    let none = ask(&["status"]);
    assert_eq!(none.status.code(), Some(2), "{}", String::from_utf8_lossy(&none.stderr));
}
