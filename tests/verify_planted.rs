//! Differences of every kind, planted at the target by a seed while both sides are written to: `verify` finds each of them, by
//! its kind, and nothing else. Into one server, and into a cluster.

use df2redis::lab::LabError;
use df2redis::lab::client::{Address, Client, Reply};
use df2redis::lab::cluster::Cluster;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions, Workload, WorkloadOptions};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::rng::Rng;
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::{Tool, tool_binary, wait_for};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

static TOOL: LazyLock<PathBuf> = LazyLock::new(|| tool_binary(env!("CARGO_BIN_EXE_df2redis")));

/// What makes a key at the source (`K`: the key), what makes it another one at the target, and how that is told.
const KINDS: [(&[&str], &[&str], &str); 22] = [
    (&["SET K right"], &["SET K wrong"], "value"),
    (&["SET K v"], &["DEL K"], "missing"),
    (&[], &["SET K v"], "extra"),
    (&["RPUSH K a"], &["DEL K", "SADD K a"], "type"),
    (&["SET K v PX 5000000"], &["PEXPIRE K 90000000"], "expiry"),
    (&["SET K v PX 5000000"], &["PERSIST K"], "expiry"),
    (&["SET K v"], &["PEXPIRE K 90000000"], "expiry"),
    (&["HSET K f 1 g 2", "HEXPIRE K 5000 FIELDS 1 f"], &["HPERSIST K FIELDS 1 f"], "field_expiry"),
    (&["HSET K f 1 g 2", "HEXPIRE K 5000 FIELDS 1 f"], &["HEXPIRE K 9000 FIELDS 1 f"], "field_expiry"),
    (&["HSET K f 1 g 2"], &["HEXPIRE K 9000 FIELDS 1 g"], "field_expiry"),
    (&["HSET K f 1 g 2"], &["HSET K g 3"], "value"),
    (&["HSET K f 1 g 2"], &["HDEL K g"], "value"),
    (&["ZADD K 0.1 m 2 n"], &["ZADD K 0.10000000000000002 m"], "value"),
    (&["ZADD K 0.1 m 2 n"], &["ZREM K n"], "value"),
    // The same elements in another order.
    (&["RPUSH K a b c"], &["LSET K 0 b", "LSET K 1 a"], "value"),
    (&["SADD K a b"], &["SREM K b"], "value"),
    (&["XADD K 1-1 f v", "XADD K 2-1 f v"], &["XDEL K 1-1"], "value"),
    (&["XADD K 1-1 f v", "XGROUP CREATE K g 0"], &["XGROUP DESTROY K g"], "group"),
    (&["XADD K 1-1 f v", "XGROUP CREATE K g 0"], &["XGROUP SETID K g 1-1"], "group"),
    (&["XADD K 1-1 f v", "XGROUP CREATE K g 0", "XREADGROUP GROUP g c STREAMS K >"], &["XACK K g 1-1"], "group"),
    (
        &["XADD K 1-1 f v", "XGROUP CREATE K g 0", "XREADGROUP GROUP g c STREAMS K >"],
        &["XCLAIM K g other 0 1-1"],
        "group",
    ),
    (&["SET K v"], &["APPEND K \u{fc}"], "value"),
];

/// `K` stands for the key.
fn named(command: &str, key: &str) -> String {
    command.split(' ').map(|word| if word == "K" { key } else { word }).collect::<Vec<_>>().join(" ")
}

fn run(client: &mut Client, command: &str) -> Reply {
    let reply = client.ask(&command.split(' ').collect::<Vec<_>>()).unwrap();
    assert!(!matches!(&reply, Reply::Error(text) if !text.starts_with("MOVED")), "{command}: {reply:?}");
    reply
}

/// `at_target`: asks whichever node has the key.
fn planted_are_found(seed: u64, target_port: u16, log: &Path, mut at_target: impl FnMut(&str) -> Reply) {
    let live =
        Live::start(Spec::of("string:10B=100,hash:6x9=20").unwrap(), LiveOptions::default(), MasterOptions::default())
            .unwrap();
    let mut source = Client::connect(&Address::Tcp("127.0.0.1".into(), live.port())).unwrap();
    let mut rng = Rng::new(seed);
    // Each kind once, and some drawn, in any order; as many stay as they are.
    let mut kinds: Vec<usize> =
        (0..KINDS.len()).chain((0..18).map(|_| rng.below(KINDS.len() as u64) as usize)).collect();
    kinds.sort_by_cached_key(|_| rng.next_u64());
    let keys: Vec<(String, usize, bool)> = kinds
        .iter()
        .enumerate()
        .flat_map(|(i, kind)| [(format!("p:{i}"), *kind, true), (format!("q:{i}"), *kind, false)])
        .collect();
    for (key, kind, _) in &keys {
        KINDS[*kind].0.iter().for_each(|command| drop(run(&mut source, &named(command, key))));
    }
    let options = WorkloadOptions { rate: Some(1000), seed, ..WorkloadOptions::default() };
    let mut workload = Workload::start(live.world(), live.spec(), options);
    let mut tool = Tool::start(&TOOL, live.port(), target_port, log, &["--control", "off"]).unwrap();
    let mut wait_at_target = |command: &str, is: &Reply| {
        let there = wait_for(|| {
            assert_eq!(tool.ended(), None, "{}", tool.said());
            (at_target(command) == *is).then_some(())
        });
        assert!(there.is_some(), "{command}: {}", tool.said());
    };
    // In the full sync keys come in any order.
    wait_at_target("HGET df2redis:checkpoint phase", &Reply::Bulk(b"stable".to_vec()));
    run(&mut source, "SET last v");
    wait_at_target("EXISTS last", &Reply::Int(1));
    let mut wanted = Vec::new();
    for (key, kind, is_planted) in &keys {
        if *is_planted {
            KINDS[*kind].1.iter().for_each(|command| drop(at_target(&named(command, key))));
            wanted.push(format!("{key} {}", KINDS[*kind].2));
        }
    }
    let before = workload.done();
    let (from, to) = (format!("dragonfly://127.0.0.1:{}", live.port()), format!("redis://127.0.0.1:{target_port}"));
    let output =
        Command::new(&*TOOL).args(["verify", "--source", &from, "--target", &to, "--lag-max", "4s"]).output().unwrap();
    assert!(workload.done() > before, "nobody wrote meanwhile");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut found: Vec<String> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|line| format!("{} {}", line["key"].as_str().unwrap(), line["kind"].as_str().unwrap()))
        .collect();
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted, "seed {seed}\n{text}\n{}", tool.said());
    assert_eq!(output.status.code(), Some(10));
    workload.stop();
    tool.signal("INT");
    assert_eq!(tool.wait(), Some(130), "{}", tool.said());
}

#[test]
fn each_planted_difference_is_found_and_nothing_else() {
    for (seed, kind) in [(1, ServerKind::Redis8), (2, ServerKind::Valkey9)] {
        let server = match Server::start_kind(kind, ServerOptions::default()) {
            Err(LabError::NoServer { what, .. }) => {
                eprintln!("skipped: no {what} here");
                continue;
            }
            server => server.unwrap(),
        };
        let mut client = server.client().unwrap();
        planted_are_found(seed, server.port(), &server.dir().join("tool.log"), |command| run(&mut client, command));
    }
}

#[test]
fn each_planted_difference_is_found_in_a_cluster() {
    let cluster = match Cluster::start_kind(ServerKind::Redis8, 3, false) {
        Err(LabError::NoServer { what, .. }) => {
            eprintln!("skipped: no {what} here");
            return;
        }
        cluster => cluster.unwrap(),
    };
    let mut clients: Vec<Client> = cluster.nodes.iter().map(|node| node.client().unwrap()).collect();
    let dir = tempfile::tempdir().unwrap();
    planted_are_found(3, cluster.port(), &dir.path().join("tool.log"), |command| {
        let mut replies = clients.iter_mut().map(|client| run(client, command));
        replies.find(|reply| !matches!(reply, Reply::Error(_))).unwrap()
    });
}
