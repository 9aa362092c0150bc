//! `df2redis cutover` into a cluster of three primaries: with each comparison, and rolled back by a difference; and what the target
//! lacks behind the switch, from where there is no way back, is told.

mod common;

use common::clustered::{Clustered, key_on, node_of};
use common::job::{self, until};
use df2redis::lab::LabError;
use df2redis::lab::client::{Address, Client, Reply};
use df2redis::lab::cluster::Cluster;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::servers::{ServerKind, ServerOptions};
use df2redis::lab::torture::{Tool, tool_binary, wait_for};
use df2redis::redis::slot::slot;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;

static TOOL: LazyLock<PathBuf> = LazyLock::new(|| tool_binary(env!("CARGO_BIN_EXE_df2redis")));

fn report(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let last: Value = text.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
    last["cutover"]["ended"].clone()
}

#[test]
fn a_cutover_into_a_cluster_compares_and_hands_over() {
    let cluster = match Cluster::start_kind(ServerKind::Redis7, 3, false) {
        Err(LabError::NoServer { what, .. }) => {
            eprintln!("skipped: no {what} here");
            return;
        }
        cluster => cluster.unwrap(),
    };
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("job.sock");
    let ask = |args: &[&str]| {
        Command::new(&*TOOL).args(args).args(["--output", "json", "--control"]).arg(&socket).output().unwrap()
    };
    for verify in ["count", "sample", "full", "none"] {
        for node in &cluster.nodes {
            node.client().unwrap().run("FLUSHALL").unwrap();
        }
        let live = Live::start(
            Spec::of("string:10B=200,hash:6x9=30").unwrap(),
            LiveOptions::default(),
            MasterOptions::default(),
        )
        .unwrap();
        let args = ["--control", socket.to_str().unwrap(), "--log", "info"];
        let log = dir.path().join("tool.log");
        let mut tool = Tool::start(&TOOL, live.port(), cluster.port(), &log, &args).unwrap();
        let in_step = wait_for(|| {
            assert_eq!(tool.ended(), None, "{}", tool.said());
            let answer: Value = serde_json::from_slice(&ask(&["status"]).stdout).ok()?;
            (answer["status"]["in_step"] == true).then_some(())
        });
        assert!(in_step.is_some(), "{}", tool.said());
        let mut source = Client::connect(&Address::Tcp("127.0.0.1".into(), live.port())).unwrap();
        for i in 0..100 {
            source.run(&format!("INCR x:{i}")).unwrap();
            source.run(&format!("SET y:{i} v PX 600000")).unwrap();
        }
        assert!(wait_for(|| live.is_acknowledged().then_some(())).is_some(), "{}", tool.said());
        let plan = ask(&["cutover", "--verify", verify]);
        assert_eq!(plan.status.code(), Some(0), "{plan:?}");
        let more: &[&str] = if verify == "sample" { &["--sample", "100%"] } else { &[] };
        let execute = || ask(&[&["cutover", "--execute", "--budget", "300s", "--verify", verify], more].concat());
        let extra = |command: &str| {
            let words: Vec<&str> = command.split(" ").collect();
            let told = cluster.nodes.iter().map(|node| node.client().unwrap().ask(&words).unwrap());
            assert_eq!(told.filter(|reply| !matches!(reply, Reply::Error(_))).count(), 1);
        };
        if verify != "none" {
            extra("SET planted v");
            let wrong = execute();
            assert_eq!(wrong.status.code(), Some(10), "{verify}: {wrong:?}\n{}", tool.said());
            assert_eq!(report(&wrong)["differences"][0]["key"], "planted");
            extra("DEL planted");
        }
        let done = execute();
        assert_eq!(done.status.code(), Some(0), "{verify}: {done:?}\n{}", tool.said());
        assert_eq!(tool.wait(), Some(0), "{}", tool.said());
        let keys = cluster.keys().unwrap();
        let own = keys.iter().filter(|key| key.starts_with(b"df2redis:")).count();
        assert_eq!((own, keys.len()), (0, 430), "{verify}");
    }
}

/// A job in step, and a cutover by `DFLY TAKEOVER` whose hook waits until it is let go on: the source is gone by then.
struct TakenOver {
    world: Clustered,
    tool: Tool,
    socket: PathBuf,
}

impl TakenOver {
    fn new(replicas: bool) -> Option<Self> {
        let spec = Spec { seed: 5, flows_count: 2, ..Spec::of("string:60B=20").unwrap() };
        let world = Clustered::new(replicas, ServerOptions::default(), spec, LiveOptions::default())?;
        let socket = world.dir.path().join("job.sock");
        let more = ["--log", "info", "--retry-max", "4s", "--control", socket.to_str().unwrap()];
        let mut tool = world.start_by(0, &more);
        until(&mut tool, "not in step", || {
            let status =
                Command::new(job::binary()).args(["status", "--output", "json", "--control"]).arg(&socket).output();
            String::from_utf8_lossy(&status.unwrap().stdout).contains("\"in_step\":true")
        });
        Some(Self { world, tool, socket })
    }

    /// Returns when the hook is called.
    #[track_caller]
    fn begin(&mut self) -> Child {
        let dir = self.world.dir.path();
        let hook = dir.join("switch");
        let text = format!("#!/bin/sh\ncd {}\n: > called\nwhile [ ! -e go-on ]; do sleep 0.05; done\n", dir.display());
        std::fs::write(&hook, text).unwrap();
        std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
        let args =
            ["cutover", "--execute", "--takeover", "--verify", "none", "--budget", "60s", "--hook-timeout", "60s"];
        let mut command = Command::new(job::binary());
        command.args(args).arg("--hook").arg(&hook).args(["--output", "json", "--control"]).arg(&self.socket);
        let cutover = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let called = dir.join("called");
        until(&mut self.tool, "the hook is not called", || called.exists());
        cutover
    }

    /// It is handed over, and whoever asked hears that something may be missing.
    #[track_caller]
    fn ends_lacking(mut self, cutover: Child, what: &str) {
        std::fs::write(self.world.dir.path().join("go-on"), "").unwrap();
        let done = cutover.wait_with_output().unwrap();
        assert_eq!(done.status.code(), Some(5), "{done:?}\n{}", self.tool.said());
        let report = report(&done);
        assert_eq!((&report["outcome"], &report["lacks"]), (&"handed-over".into(), &true.into()), "{report}");
        assert!(report["message"].as_str().unwrap_or_default().contains(what), "{report}");
        assert_eq!(self.tool.wait(), Some(5), "{}", self.tool.said());
        // The checkpoint is gone, and clients write there.
        let said = self.tool.said();
        assert!(said.contains("it has the traffic") && !said.contains("run the same command again"), "{said}");
    }
}

/// A replica takes over by force while the traffic is being switched, and lacks what its primary had acknowledged.
#[test]
fn what_an_heir_lacks_behind_the_switch_is_told() {
    let Some(mut scene) = TakenOver::new(true) else { return };
    let (world, tool) = (&scene.world, &mut scene.tool);
    let (mut primary, mut replica) = (world.client(1), world.client(4));
    primary.run("ACL SETUSER default -psync -sync").unwrap();
    primary.run("CLIENT KILL TYPE replica").unwrap();
    until(tool, "the replica is still linked", || {
        replica.info("master_link_status").unwrap().as_deref() == Some("down")
    });
    (0..20).for_each(|_| world.run(&format!("INCR {}", key_on(1, "n"))));
    world.wait_applied(tool);
    let cutover = scene.begin();
    replica.run("CLUSTER FAILOVER TAKEOVER").unwrap();
    until(&mut scene.tool, "nobody takes over", || scene.world.cluster.primaries() == [0, 2, 4]);
    scene.ends_lacking(cutover, "took over");
}

/// No later job could put them right: the source is gone.
#[test]
fn expiries_that_stay_late_behind_the_switch_are_told() {
    let Some(mut scene) = TakenOver::new(false) else { return };
    let world = &scene.world;
    world.run("SET {restless} v PX 20000");
    world.wait_applied(&mut scene.tool);
    let (number, from) = (slot(b"restless").0, node_of("{restless}"));
    let to = (from + 1) % 3;
    assert!(world.client(from).run("PTTL {restless}").unwrap().int() > Some(1 << 40), "not held");
    world.client(to).run(&format!("CLUSTER SETSLOT {number} IMPORTING {}", world.cluster.id(from))).unwrap();
    world.client(from).run(&format!("CLUSTER SETSLOT {number} MIGRATING {}", world.cluster.id(to))).unwrap();
    let cutover = scene.begin();
    scene.ends_lacking(cutover, "139 years late");
}
