//! A live source, the tool, and a target behind a proxy that is in step with it: what tests of a running `replicate` stand on.
#![allow(dead_code)] // no test file uses all of it

use df2redis::lab::LabError;
use df2redis::lab::client::{Address, Client};
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::proxy::{Faulty, Leg, Proxy};
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::{Tool, compare, tool_binary, wait_for};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

pub static TOOL: LazyLock<PathBuf> = LazyLock::new(|| tool_binary(env!("CARGO_BIN_EXE_df2redis")));

/// A live source, with a target behind a proxy that is in step with it.
pub struct InStep {
    pub live: Live,
    pub server: Server,
    pub kind: ServerKind,
    pub proxy: Proxy,
    pub source_proxy: Proxy,
    /// New connections of the tool to the source get no answer.
    pub source_stalls: Arc<AtomicBool>,
    pub tool: Tool,
    pub dir: tempfile::TempDir,
}

impl InStep {
    /// `None`: no such server here.
    pub fn with(kind: ServerKind, more: &[&str]) -> Option<Self> {
        Self::with_source(kind, more, LiveOptions::default(), MasterOptions::default())
    }

    pub fn with_source(kind: ServerKind, more: &[&str], live: LiveOptions, source: MasterOptions) -> Option<Self> {
        let server = match Server::start_kind(kind, ServerOptions::default()) {
            Ok(server) => server,
            Err(error @ LabError::NoServer { .. }) => {
                eprintln!("skipped: {error}");
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let spec = Spec::of("string:10B=20").unwrap();
        let live = Live::start(spec, live, source).unwrap();
        let proxy = Proxy::start(server.port(), |_| Faulty::default()).unwrap();
        let source_stalls = Arc::new(AtomicBool::new(false));
        let stalls = source_stalls.clone();
        let silence = Leg { pause_after: Some((0, Duration::from_secs(3600))), ..Leg::default() };
        let plan = move |_| match stalls.load(Ordering::Acquire) {
            true => Faulty { to_client: silence, ..Faulty::default() },
            false => Faulty::default(),
        };
        let source_proxy = Proxy::start(live.port(), plan).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let tool = start(&source_proxy, &proxy, dir.path(), more);
        let mut this = Self { live, server, kind, proxy, source_proxy, source_stalls, tool, dir };
        this.wait(|status| status["in_step"] == true);
        Some(this)
    }

    pub fn again(&mut self, more: &[&str]) {
        self.tool = start(&self.source_proxy, &self.proxy, self.dir.path(), more);
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("job.sock")
    }

    pub fn ask(&self, args: &[&str]) -> Output {
        let socket = self.socket();
        Command::new(&*TOOL).args(args).args(["--output", "json", "--control"]).arg(socket).output().unwrap()
    }

    /// Begins such a command and does not wait for it.
    pub fn begin(&self, args: &[&str]) -> Child {
        let mut command = Command::new(&*TOOL);
        command.args(args).args(["--output", "json", "--control"]).arg(self.socket());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// A hook that says that it was called, and ends with `code` once it is told to go on.
    pub fn hook(&self, name: &str, code: i32) -> String {
        let path = self.dir.path().join(name);
        write_hook(&path, code);
        path.to_str().unwrap().to_owned()
    }

    /// Waits until the hook is called.
    pub fn wait_called(&mut self, name: &str) {
        let called = self.dir.path().join(format!("{name}.called"));
        let reached = wait_for(|| called.exists().then_some(()));
        assert!(reached.is_some(), "{name} was not called\n{}", self.tool.said());
    }

    pub fn let_go_on(&self, name: &str) {
        std::fs::write(self.dir.path().join(format!("{name}.go-on")), "").unwrap();
    }

    pub fn wait(&mut self, is: impl Fn(&Value) -> bool) {
        let reached = wait_for(|| {
            assert_eq!(self.tool.ended(), None, "{}", self.tool.said());
            let answer: Value = serde_json::from_slice(&self.ask(&["status"]).stdout).ok()?;
            is(&answer["status"]).then_some(())
        });
        assert!(reached.is_some(), "{}", self.tool.said());
    }

    pub fn source(&self) -> Client {
        Client::connect(&Address::Tcp("127.0.0.1".into(), self.live.port())).unwrap()
    }

    pub fn target(&self) -> Client {
        self.server.client().unwrap()
    }

    pub fn wait_acknowledged(&mut self) {
        let reached = wait_for(|| {
            assert_eq!(self.tool.ended(), None, "{}", self.tool.said());
            self.live.is_acknowledged().then_some(())
        });
        assert!(reached.is_some(), "{}", self.tool.said());
    }

    /// Stops the tool: the target is as the source is, expiries of keys and fields included.
    pub fn stops_equal(&mut self) {
        self.wait_acknowledged();
        self.tool.signal("INT");
        assert_eq!(self.tool.wait(), Some(130), "{}", self.tool.said());
        self.assert_equal();
    }

    pub fn assert_equal(&self) {
        let truth = self.dir.path().join("truth.jsonl");
        self.live.write_truth(&truth).unwrap();
        compare(&self.server, self.kind, &truth).unwrap_or_else(|why| panic!("{why}\n{}", self.tool.said()));
    }
}

fn start(source: &Proxy, proxy: &Proxy, dir: &Path, more: &[&str]) -> Tool {
    let socket = dir.join("job.sock");
    let args = [&["--control", socket.to_str().unwrap(), "--log", "info"], more].concat();
    Tool::start(&TOOL, source.port(), proxy.port(), &dir.join("tool.log"), &args).unwrap()
}

/// See [`InStep::hook`]; before there is one.
pub fn write_hook(path: &Path, code: i32) {
    let text = format!("#!/bin/sh\ntouch $0.called; while [ ! -e $0.go-on ]; do sleep 0.02; done\nexit {code}\n");
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// The last line of a cutover's answer.
pub fn report(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let last: Value = text.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
    last["cutover"]["ended"].clone()
}
