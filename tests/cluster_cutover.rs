//! `df2redis cutover` into a cluster of three primaries: with each comparison, and rolled back by a difference.

use df2redis::lab::LabError;
use df2redis::lab::client::{Address, Client, Reply};
use df2redis::lab::cluster::Cluster;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::servers::ServerKind;
use df2redis::lab::torture::{Tool, wait_for};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

const TOOL: &str = env!("CARGO_BIN_EXE_df2redis");

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
        Command::new(TOOL).args(args).args(["--output", "json", "--control"]).arg(&socket).output().unwrap()
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
        let mut tool = Tool::start(Path::new(TOOL), live.port(), cluster.port(), &log, &args).unwrap();
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
