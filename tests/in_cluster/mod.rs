//! A live source, the tool, and a cluster behind proxies that is in step with it: what tests of a running `replicate` into a
//! cluster stand on.
#![allow(dead_code)] // no test file uses all of it

use df2redis::lab::LabError;
use df2redis::lab::client::{Address, Client, Reply};
use df2redis::lab::cluster::Cluster;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::target::Target;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::proxy::{Faulty, Leg, Proxy};
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::{Tool, tool_binary, wait_for};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

pub static TOOL: LazyLock<PathBuf> = LazyLock::new(|| tool_binary(env!("CARGO_BIN_EXE_df2redis")));

/// A live source, with a cluster of three primaries that is in step with it.
pub struct InCluster {
    pub live: Live,
    pub kind: ServerKind,
    pub cluster: Arc<Cluster>,
    judge: Arc<Server>,
    /// One in front of each node.
    pub proxies: Vec<Proxy>,
    pub source_proxy: Proxy,
    /// New connections of the tool to the source get no answer.
    pub source_stalls: Arc<AtomicBool>,
    pub tool: Tool,
    pub dir: tempfile::TempDir,
    more: Vec<String>,
}

impl InCluster {
    /// `None`: no such server here.
    pub fn with(kind: ServerKind, more: &[&str]) -> Option<Self> {
        let started = Cluster::start_kind(kind, 3, false).and_then(|cluster| {
            let judge = Server::start_kind(kind, ServerOptions::default())?;
            Ok((Arc::new(cluster), Arc::new(judge)))
        });
        let (cluster, judge) = match started {
            Err(LabError::NoServer { what, .. }) => {
                eprintln!("skipped: no {what} here");
                return None;
            }
            started => started.unwrap(),
        };
        let live =
            Live::start(Spec::of("string:10B=20").unwrap(), LiveOptions::default(), MasterOptions::default()).unwrap();
        let proxies: Vec<Proxy> =
            cluster.nodes.iter().map(|node| Proxy::start(node.port(), |_| Faulty::default()).unwrap()).collect();
        let source_stalls = Arc::new(AtomicBool::new(false));
        let stalls = source_stalls.clone();
        let silence = Leg { pause_after: Some((0, Duration::from_secs(3600))), ..Leg::default() };
        let plan = move |_| match stalls.load(Ordering::Acquire) {
            true => Faulty { to_client: silence, ..Faulty::default() },
            false => Faulty::default(),
        };
        let source_proxy = Proxy::start(live.port(), plan).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut args: Vec<String> = more.iter().map(|arg| arg.to_string()).collect();
        for (node, proxy) in cluster.nodes.iter().zip(&proxies) {
            args.push("--target-nat".into());
            args.push(format!("127.0.0.1:{}=127.0.0.1:{}", node.port(), proxy.port()));
        }
        let tool = start(&source_proxy, &proxies[0], dir.path(), &args);
        let mut this = Self { live, kind, cluster, judge, proxies, source_proxy, source_stalls, tool, dir, more: args };
        this.wait(|status| status["in_step"] == true);
        Some(this)
    }

    pub fn again(&mut self) {
        self.tool = start(&self.source_proxy, &self.proxies[0], self.dir.path(), &self.more);
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("job.sock")
    }

    pub fn ask(&self, args: &[&str]) -> Output {
        let socket = self.socket();
        Command::new(&*TOOL).args(args).args(["--output", "json", "--control"]).arg(socket).output().unwrap()
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

    /// The answer of the node that has the command's slot.
    pub fn at_target(&self, command: &str) -> Reply {
        let words: Vec<&str> = command.split(' ').collect();
        let mut answers = self.cluster.nodes.iter().map(|node| node.client().unwrap().ask(&words).unwrap());
        answers.find(|answer| !matches!(answer, Reply::Error(text) if text.starts_with("MOVED"))).unwrap()
    }

    /// Whether something comes to be so at the target.
    #[track_caller]
    pub fn wait_at_target(&mut self, command: &str, is: impl Fn(&Reply) -> bool) {
        let reached = wait_for(|| {
            assert_eq!(self.tool.ended(), None, "{}", self.tool.said());
            is(&self.at_target(command)).then_some(())
        });
        assert!(reached.is_some(), "{command}: {:?}\n{}", self.at_target(command), self.tool.said());
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
        let truth = self.dir.path().join("truth.jsonl");
        self.live.write_truth(&truth).unwrap();
        let target = Target::Cluster { cluster: self.cluster.clone(), judge: self.judge.clone() };
        target.compare(self.kind, &truth).unwrap_or_else(|why| panic!("{why}\n{}", self.tool.said()));
    }
}

fn start(source: &Proxy, proxy: &Proxy, dir: &Path, more: &[String]) -> Tool {
    let socket = dir.join("job.sock");
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let args = [&["--control", socket.to_str().unwrap(), "--log", "info"], &more[..]].concat();
    Tool::start(&TOOL, source.port(), proxy.port(), &dir.join("tool.log"), &args).unwrap()
}
