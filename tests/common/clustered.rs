//! A live source and a cluster of three that follows it.

use super::grants::{TARGET_ACL, TARGET_ACL_CLUSTER, TARGET_ACL_REPLICATE};
use super::job::{self, until};
use super::server;
use df2redis::lab::LabError;
use df2redis::lab::client::Client;
use df2redis::lab::cluster::Cluster;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::servers::{ServerKind, ServerOptions, find_server};
use df2redis::lab::torture::{Tool, compare};
use df2redis::redis::slot::slot;
use std::path::PathBuf;

pub struct Clustered {
    pub kind: ServerKind,
    pub cluster: Cluster,
    pub live: Live,
    pub dir: tempfile::TempDir,
}

/// The primary that has the slot of a key at the start.
pub fn node_of(key: &str) -> usize {
    usize::from(slot(key.as_bytes()).0) * 3 / 16384
}

/// A key of this family on a node.
pub fn key_on(node: usize, family: &str) -> String {
    (0..).map(|i| format!("{family}:{i}")).find(|key| node_of(key) == node).unwrap()
}

impl Clustered {
    /// `None`: no such server here.
    pub fn new(replicas: bool, nodes: ServerOptions, spec: Spec, live: LiveOptions) -> Option<Self> {
        Self::of(ServerKind::Redis7, replicas, nodes, spec, live)
    }

    pub fn of(kind: ServerKind, replicas: bool, nodes: ServerOptions, spec: Spec, live: LiveOptions) -> Option<Self> {
        Self::from(kind, replicas, nodes, spec, live, MasterOptions::default())
    }

    /// From a source that suffers this.
    pub fn from(
        kind: ServerKind,
        replicas: bool,
        nodes: ServerOptions,
        spec: Spec,
        live: LiveOptions,
        source: MasterOptions,
    ) -> Option<Self> {
        let cluster = match find_server(kind).and_then(|it| Cluster::start(&it, 3, replicas, nodes)) {
            Err(LabError::NoServer { what, .. }) => {
                eprintln!("skipped: no {what} here");
                return None;
            }
            cluster => cluster.unwrap(),
        };
        let live = Live::start(spec, live, source).unwrap();
        Some(Self { kind, cluster, live, dir: tempfile::tempdir().unwrap() })
    }

    /// On every node a user who may do what README.md lists, and `more`. Returns the settings file by which the tool is that user.
    pub fn least_user(&self, more: &str) -> PathBuf {
        let more = format!("ACL SETUSER df2redis {more}");
        for node in &self.cluster.nodes {
            let mut admin = node.client().unwrap();
            for line in [TARGET_ACL, TARGET_ACL_REPLICATE, TARGET_ACL_CLUSTER, more.trim_end()] {
                admin.run(line).unwrap();
            }
        }
        let [password, config] = ["password", "least.toml"].map(|name| self.dir.path().join(name));
        std::fs::write(&password, "secret").unwrap();
        let settings = format!("target-user = \"df2redis\"\ntarget-password-file = \"{}\"\n", password.display());
        std::fs::write(&config, settings).unwrap();
        config
    }

    /// Starts the tool by this node.
    pub fn start_by(&self, node: usize, more: &[&str]) -> Tool {
        let port = self.cluster.nodes[node].port();
        Tool::start(job::binary(), self.live.port(), port, &self.log(), more).unwrap()
    }

    pub fn log(&self) -> PathBuf {
        self.dir.path().join("tool.log")
    }

    pub fn client(&self, node: usize) -> Client {
        self.cluster.nodes[node].client().unwrap()
    }

    pub fn run(&self, line: &str) {
        job::run(&self.live, line);
    }

    /// The source's records are applied, and the checkpoint is good.
    #[track_caller]
    pub fn wait_applied(&self, tool: &mut Tool) {
        let phase = |at: usize| {
            let mut client = self.cluster.nodes[at].client().ok()?;
            client.ask(&["HGET", "df2redis:checkpoint", "phase"]).ok()?.text()
        };
        until(tool, "not applied", || {
            let is_good = |at: usize| phase(at).as_deref() == Some("stable");
            self.live.is_acknowledged() && self.cluster.primaries().into_iter().any(is_good)
        });
    }

    /// Waits until everything is acknowledged, stops the tool and compares every key.
    #[track_caller]
    pub fn finish(&self, mut tool: Tool) {
        self.wait_applied(&mut tool);
        job::stop(&mut tool);
        self.compare(&tool);
    }

    /// Every key with the source's.
    #[track_caller]
    pub fn compare(&self, tool: &Tool) {
        self.cluster.wait_ok().unwrap();
        let Some(plain) = server(self.kind) else { return };
        self.cluster.gather(&plain).unwrap();
        let truth = self.dir.path().join("truth.jsonl");
        self.live.write_truth(&truth).unwrap();
        compare(&plain, self.kind, &truth).unwrap_or_else(|text| panic!("{text}\n{}", tool.said()));
    }
}
