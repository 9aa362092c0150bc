//! Recordings with a stable part: `replicate` follows the journal of a real Dragonfly to its end, and the target then
//! holds what that Dragonfly held.

use df2redis::lab::LabError;
use df2redis::lab::master::MasterOptions;
use df2redis::lab::recordings;
use df2redis::lab::replay::Replay;
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::tool_binary;
use df2redis::lab::truth;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A replicate process; killed when dropped.
struct Tool {
    child: Child,
}

impl Tool {
    fn start(source_port: u16, target_port: u16, more: &[&str]) -> Self {
        let child = Command::new(tool_binary(env!("CARGO_BIN_EXE_df2redis")))
            .args(["replicate", "--source", &format!("dragonfly://127.0.0.1:{source_port}")])
            .args(["--target", &format!("redis://127.0.0.1:{target_port}"), "--memory", "128MiB", "--progress", "off"])
            .args(["--output", "json", "--on-unsupported", "skip"])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child }
    }

    fn interrupt(&self) {
        Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap();
    }

    /// Waits for the end. Panics after 20 s.
    fn wait(mut self) -> (i32, String, String) {
        let until = Instant::now() + Duration::from_secs(20);
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "the tool does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut output = (String::new(), String::new());
        use std::io::Read;
        self.child.stdout.take().unwrap().read_to_string(&mut output.0).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut output.1).unwrap();
        (self.child.wait().unwrap().code().unwrap_or(-1), output.0, output.1)
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn check(name: &str, kind: ServerKind) {
    let server = match Server::start_kind(kind, ServerOptions::default()) {
        Ok(server) => server,
        Err(error @ LabError::NoServer { .. }) => {
            eprintln!("skipped: {kind:?} cannot be started here: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let recording = recordings::recording(name).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let truth_file = recording.write_truth(dir.path()).unwrap();
    let wanted: Vec<_> = recording.meta.replica_offset_at_end.iter().copied().map(Some).collect();
    let master = Replay::start(recording, MasterOptions::default()).unwrap();
    let tool = Tool::start(master.address().port(), server.port(), &[]);
    // The source hears how far the target has come through the ACKs alone.
    let until = Instant::now() + Duration::from_secs(20);
    while master.acks() != wanted {
        assert!(Instant::now() < until, "{name} into {kind:?}: acknowledged {:?} of {wanted:?}", master.acks());
        std::thread::sleep(Duration::from_millis(20));
    }
    tool.interrupt();
    let (code, _, stderr) = tool.wait();
    assert_eq!(code, 130, "{name} into {kind:?}: {stderr}");
    assert_eq!(master.violations(), [], "{name} into {kind:?}");
    let mut args = vec!["--skip-types", "json,opaque", "--ignore", "df2redis:"];
    if kind == ServerKind::Redis7 {
        args.push("--no-field-ttl");
    }
    if let Err(differences) = truth::compare(server.port(), &truth_file, &args) {
        panic!("{name} into {kind:?}:\n{differences}\n{stderr}");
    }
}

#[test]
fn follows_recordings_into_redis_7_0() {
    for name in recordings::recording_names().unwrap() {
        check(&name, ServerKind::Redis7);
    }
}

#[test]
fn follows_recordings_into_redis_8() {
    for name in ["follow-lz4", "follow-plain", "follow-flushall", "live-lz4"] {
        check(name, ServerKind::Redis8);
    }
}

#[test]
fn follows_recordings_into_valkey_9() {
    for name in ["follow-lz4", "follow-plain", "follow-flushall", "live-lz4"] {
        check(name, ServerKind::Valkey9);
    }
}
