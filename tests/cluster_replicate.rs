//! `replicate` into real clusters: a journal of commands that must not be applied twice, many of them over several slots, while
//! the tool is killed, slots move and primaries fail over. A stand-alone server that gets the same commands is the judge.

mod common;

use common::{Contents, server, whole_contents};
use df2redis::lab::LabError;
use df2redis::lab::cluster::Cluster;
use df2redis::lab::encode as enc;
use df2redis::lab::flow::Gate;
use df2redis::lab::journal;
use df2redis::lab::master::{Master, MasterOptions};
use df2redis::lab::recordings::{Recording, recording};
use df2redis::lab::replay::Replay;
use df2redis::lab::rng::Rng;
use df2redis::lab::servers::{Server, ServerKind};
use df2redis::lab::torture::{Tool, wait_for};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Keys of each family and flow.
const KEYS: u64 = 40;

/// One record of flow `flow`. Each family of keys has one type, so that no record meets another one.
fn record(rng: &mut Rng, flow: usize, number: u64) -> Vec<String> {
    let mut key = |family: &str| format!("t{flow}:{family}:{}", rng.below(KEYS));
    let (n, other) = (number.to_string(), number % 7);
    let words: Vec<String> = match number % 31 {
        0..=3 => vec!["INCR".into(), key("count")],
        4 => vec!["DECRBY".into(), key("count"), "3".into()],
        5..=6 => vec!["APPEND".into(), key("text"), format!("{other}.")],
        7..=8 => vec!["RPUSH".into(), key("list"), n, "x".into()],
        9 => vec!["LPOP".into(), key("list")],
        10 => vec!["HSET".into(), key("hash"), format!("f{other}"), n],
        11 => vec!["HINCRBY".into(), key("numbers"), format!("f{other}"), "2".into()],
        12 => vec!["SADD".into(), key("set"), format!("m{}", number % 37)],
        13 => vec!["SREM".into(), key("set"), format!("m{}", number % 29)],
        14 => vec!["ZINCRBY".into(), key("zset"), "1".into(), format!("m{other}")],
        15 => vec!["SET".into(), key("plain"), n],
        16 => vec!["MSET".into(), key("plain"), n.clone(), key("plain"), n.clone(), key("plain"), n],
        17 => vec!["DEL".into(), key("plain"), key("text"), key("list")],
        18 => vec!["RENAME".into(), key("count"), key("count")],
        19 => vec!["RENAME".into(), key("text"), key("text")],
        20 => vec!["RPOPLPUSH".into(), key("list"), key("list")],
        21 => vec!["LMOVE".into(), key("list"), key("list"), "LEFT".into(), "RIGHT".into()],
        22 => vec!["SORT".into(), key("set"), "ALPHA".into(), "STORE".into(), key("sorted")],
        // Blind: without the marks that records over several slots leave, nothing would tell that they changed what was read.
        23 => vec!["ZADD".into(), key("zset"), format!("{}", number % 50), format!("z{}", number % 41)],
        24 => vec!["ZUNIONSTORE".into(), key("zset"), "2".into(), key("zset"), key("zset")],
        25 => words_of("ZINTERSTORE", [key("sum"), "3".into(), key("zset"), key("zset"), key("zset")], "WEIGHTS 1 2 3"),
        26 => words_of("ZDIFFSTORE", [key("sum"), "2".into(), key("zset"), key("zset")], ""),
        27 => words_of("ZRANGESTORE", [key("zset"), key("sum")], "(3 +inf BYSCORE"),
        28 => words_of("LMPOP", ["3".into(), key("list"), key("list"), key("list")], "RIGHT COUNT 2"),
        29 => words_of("ZMPOP", ["2".into(), key("zset"), key("zset")], "MIN"),
        _ if number.is_multiple_of(2) => {
            vec!["GEOADD".into(), key("geo"), other.to_string(), "1".into(), format!("m{other}")]
        }
        _ => words_of("GEORADIUS", [key("geo")], &format!("3 1 350 km STOREDIST {}", key("dist"))),
    };
    words
}

/// One record, which the judge has executed: a source records no RENAME of a key that it does not have.
fn executed(rng: &mut Rng, flow: usize, number: u64, judge: &Server) -> Vec<String> {
    let mut words = record(rng, flow, number);
    let is_missing = || judge.client().unwrap().ask(&["EXISTS", &words[1]]).unwrap().int() == Some(0);
    match words[0].as_str() {
        // The source stores nothing then, and records it; the judge would delete.
        "SORT" | "GEORADIUS" if is_missing() => return words,
        "RENAME" if is_missing() => words = vec!["INCR".into(), format!("t{flow}:count:0")],
        _ => {}
    }
    tell(judge, &words);
    words
}

fn words_of<const N: usize>(name: &str, keys: [String; N], rest: &str) -> Vec<String> {
    let rest = rest.split(' ').filter(|word| !word.is_empty()).map(str::to_owned);
    std::iter::once(name.to_owned()).chain(keys).chain(rest).collect()
}

/// A cluster, a source whose journal goes on for `stable_ms`, and what must be there in the end. The last tenth of the journal comes
/// only when all faults were done.
struct Stage {
    cluster: Cluster,
    master: Master,
    gate: Gate,
    judge: Contents,
    wanted: Vec<Option<u64>>,
    dir: tempfile::TempDir,
}

impl Stage {
    fn new(kind: ServerKind, records: u64, stable_ms: u64) -> Option<Self> {
        Self::of(kind, true, records, stable_ms)
    }

    fn of(kind: ServerKind, replicas: bool, records: u64, stable_ms: u64) -> Option<Self> {
        let cluster = match Cluster::start_kind(kind, 3, replicas) {
            Err(LabError::NoServer { what, .. }) => {
                eprintln!("skipped: no {what} here");
                return None;
            }
            cluster => cluster.unwrap(),
        };
        let plain = server(kind)?;
        let mut recording = recording("follow-flushall").unwrap();
        let mut rng = Rng::new(7);
        for flow in 0..recording.flows.len() {
            begin_flow(&mut recording, flow, &mut rng, &plain);
        }
        // All flows meet at a flush in the middle.
        for part in 0..2 {
            for flow in 0..recording.flows.len() {
                for number in 0..records / 2 {
                    let words = executed(&mut rng, flow, number, &plain);
                    recording.flows[flow].extend_from_slice(&journal::command(&text(&words)));
                }
                recording.meta.replica_offset_at_end[flow] += records / 2;
                if part == 0 {
                    enc::journal_command(&mut recording.flows[flow], 0, 77, &["FLUSHALL"]);
                    recording.meta.replica_offset_at_end[flow] += 1;
                }
            }
            if part == 0 {
                tell(&plain, &["FLUSHALL".to_string()]);
            }
        }
        let wanted = recording.meta.replica_offset_at_end.iter().copied().map(Some).collect();
        let mut replay = Replay::new(recording).unwrap();
        (replay.snapshot_time, replay.stable_time) =
            (Some(Duration::from_millis(100)), Some(Duration::from_millis(stable_ms)));
        let gate = Gate::default();
        replay.journal_gate = Some(gate.clone());
        let master = Master::start(Arc::new(replay), MasterOptions::default()).unwrap();
        let judge = own(whole_contents(&mut plain.client().unwrap()));
        Some(Self { cluster, master, gate, judge, wanted, dir: tempfile::tempdir().unwrap() })
    }

    fn start(&self) -> Tool {
        let port = self.cluster.primaries().first().map_or(0, |at| self.cluster.nodes[*at].port());
        let log = self.dir.path().join("tool.log");
        let binary = common::job::binary();
        Tool::start(binary, self.master.port(), port, &log, &["--log", "info"]).unwrap()
    }

    /// Waits until the journal is being applied.
    fn wait_stable(&self, tool: &mut Tool) {
        let reached = wait_for(|| {
            assert_eq!(tool.ended(), None, "{}", tool.said());
            let is_stable = |at: usize| {
                let mut client = self.cluster.nodes[at].client().ok()?;
                // A node that has not the slot says so.
                (client.ask(&["HGET", "df2redis:checkpoint", "phase"]).ok()?.text()? == "stable").then_some(())
            };
            self.cluster.primaries().into_iter().find_map(is_stable)
        });
        assert!(reached.is_some(), "the journal does not begin:\n{}", tool.said());
    }

    /// It was sent elsewhere by nodes that have given slots away.
    #[track_caller]
    fn met_redirects(&self, tool: &mut Tool) {
        let met = wait_for(|| (self.cluster.redirects().unwrap().0 > 0).then_some(()));
        assert!(met.is_some() && tool.ended().is_none(), "nobody was sent elsewhere\n{}", tool.said());
    }

    /// It has begun a session anew, for a replica that took over.
    #[track_caller]
    fn met_takeover(&self, tool: &mut Tool, partials: u64) {
        let met = wait_for(|| (self.master.partial_count() > partials).then_some(()));
        assert!(met.is_some() && tool.ended().is_none(), "no session was begun anew\n{}", tool.said());
    }

    /// Lets the tool come to the end, and compares.
    #[track_caller]
    fn finish(&self, mut tool: Tool) {
        assert_ne!(self.master.acks(), self.wanted, "the journal was over");
        self.gate.open();
        let until = Instant::now() + Duration::from_secs(120);
        while self.master.acks() != self.wanted {
            assert_eq!(tool.ended(), None, "{}", tool.said());
            let acks = self.master.acks();
            assert!(Instant::now() < until, "acknowledged {acks:?} of {:?}:\n{}", self.wanted, tool.said());
            std::thread::sleep(Duration::from_millis(10));
        }
        tool.signal("INT");
        assert_eq!(tool.wait(), Some(130), "{}", tool.said());
        assert_eq!(self.master.violations(), []);
        self.cluster.wait_ok().unwrap();
        let plain = server(ServerKind::Valkey9).or_else(|| server(ServerKind::Redis7)).unwrap();
        self.cluster.gather(&plain).unwrap();
        let found = own(whole_contents(&mut plain.client().unwrap()));
        let differs: Vec<String> = self
            .judge
            .iter()
            .filter(|(key, value)| found.get(key) != Some(value))
            .map(|(key, value)| format!("{key:?}: {:?} instead of {value:?}", found.get(key)))
            .chain(found.keys().filter(|key| !self.judge.contains_key(key)).map(|key| format!("{key:?} is too many")))
            .collect();
        assert!(
            differs.is_empty(),
            "{} keys differ:\n{}\n{}",
            differs.len(),
            differs[..differs.len().min(10)].join("\n"),
            tool.said()
        );
        assert!(self.judge.len() > 100);
    }
}

fn text(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// Snapshot of one flow, with records over several slots in the middle of it.
fn begin_flow(recording: &mut Recording, flow: usize, rng: &mut Rng, plain: &Server) {
    let mut bytes = Vec::new();
    enc::header(&mut bytes);
    for number in 0..KEYS {
        for (family, value) in [("count", "17"), ("text", "begin"), ("plain", "p")] {
            let key = format!("t{flow}:{family}:{number}");
            enc::key_head(&mut bytes, enc::Attributes::default(), enc::types::STRING, key.as_bytes(), false);
            enc::string(&mut bytes, value.as_bytes(), false);
            tell(plain, &["SET".into(), key, value.into()]);
        }
    }
    for number in 0..200 {
        let mut entry = Vec::new();
        enc::journal_command(&mut entry, 0, 0, &executed(rng, flow, number, plain));
        if number % 3 == 0 {
            enc::journal_command(&mut entry, 0, 0, &executed(rng, flow, number + 1, plain));
        }
        enc::journal_blob(&mut bytes, &entry);
    }
    enc::full_sync_end(&mut bytes);
    recording.meta.bytes_before_startstable[flow] = bytes.len() as u64;
    enc::journal_offset(&mut bytes, 100);
    enc::eof(&mut bytes);
    recording.meta.flows[flow].eof_at = bytes.len() as u64;
    bytes.extend_from_slice(recording.meta.flows[flow].eof_token.as_bytes());
    recording.meta.replica_offset_at_end[flow] = 100;
    recording.flows[flow] = bytes;
}

/// Only the keys of the test's own records. Two kinds of servers write the same score in different texts.
fn own(mut contents: Contents) -> Contents {
    contents.retain(|(_, key), _| key.starts_with(b"t") && key.get(2) == Some(&b':'));
    for (_, values) in contents.values_mut().filter(|(kind, _)| kind == "zset") {
        for score in values.iter_mut().skip(1).step_by(2) {
            let number: f64 = std::str::from_utf8(score).unwrap().parse().unwrap();
            *score = format!("{number:?}").into_bytes();
        }
    }
    contents
}

fn tell(server: &Server, words: &[String]) {
    thread_local! {
        static CLIENT: std::cell::RefCell<Option<(u16, df2redis::lab::client::Client)>> = const { std::cell::RefCell::new(None) };
    }
    CLIENT.with_borrow_mut(|client| {
        if client.as_ref().is_none_or(|(port, _)| *port != server.port()) {
            *client = Some((server.port(), server.client().unwrap()));
        }
        // A RENAME of a key that is not there is refused, which is right.
        client.as_mut().unwrap().1.ask(words).unwrap();
    });
}

#[test]
fn a_journal_is_followed() {
    for kind in [ServerKind::Redis7, ServerKind::Valkey9] {
        let Some(stage) = Stage::new(kind, 3000, 1000) else { continue };
        let tool = stage.start();
        stage.finish(tool);
    }
}

#[test]
fn kills_of_the_tool_double_nothing() {
    let Some(stage) = Stage::new(ServerKind::Redis7, 6000, 6000) else { return };
    let mut tool = stage.start();
    for pause in [300, 50, 700, 150] {
        stage.wait_stable(&mut tool);
        std::thread::sleep(Duration::from_millis(pause));
        tool.kill();
        tool = stage.start();
    }
    stage.finish(tool);
    assert!(stage.master.partial_count() >= 1);
}

#[test]
fn lost_connections_double_nothing() {
    let Some(stage) = Stage::new(ServerKind::Redis7, 6000, 4000) else { return };
    let mut tool = stage.start();
    stage.wait_stable(&mut tool);
    let mut killed = 0;
    for _ in 0..8 {
        for at in stage.cluster.primaries() {
            let mut client = stage.cluster.nodes[at].client().unwrap();
            let list = client.run("CLIENT LIST").unwrap().text().unwrap();
            for line in list.lines().filter(|line| line.contains("name=df2redis-lane")) {
                let id = line.split(' ').find_map(|field| field.strip_prefix("id=")).unwrap();
                client.run(&format!("CLIENT KILL ID {id}")).unwrap();
                killed += 1;
            }
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(killed >= 6, "{killed}");
    stage.finish(tool);
}

#[test]
fn slots_move_while_the_journal_is_followed() {
    for kind in [ServerKind::Redis7, ServerKind::Valkey9] {
        let Some(stage) = Stage::of(kind, false, 6000, 6000) else { continue };
        let mut tool = stage.start();
        stage.wait_stable(&mut tool);
        stage.cluster.forget_redirects().unwrap();
        stage.cluster.reshard(8).unwrap();
        stage.met_redirects(&mut tool);
        stage.finish(tool);
    }
}

#[test]
fn replicas_take_over_while_the_journal_is_followed() {
    for kind in [ServerKind::Redis7, ServerKind::Valkey9] {
        let Some(stage) = Stage::new(kind, 6000, 6000) else { continue };
        let mut tool = stage.start();
        stage.wait_stable(&mut tool);
        let partials = stage.master.partial_count();
        for replica in [3, 4, 5, 0] {
            stage.cluster.fail_over(replica).unwrap();
            std::thread::sleep(Duration::from_millis(300));
        }
        stage.met_takeover(&mut tool, partials);
        stage.finish(tool);
    }
}

#[test]
fn a_killed_primary_is_replaced() {
    // The first node is the one that the tool was given.
    for (kind, node) in [(ServerKind::Redis7, 0), (ServerKind::Valkey9, 1)] {
        let Some(mut stage) = Stage::new(kind, 6000, 5000) else { continue };
        let mut tool = stage.start();
        stage.wait_stable(&mut tool);
        let partials = stage.master.partial_count();
        stage.cluster.kill(node);
        stage.met_takeover(&mut tool, partials);
        assert!(stage.cluster.primaries().contains(&(3 + node)));
        stage.finish(tool);
    }
}

/// Every slot moves to the next node.
#[test]
fn a_full_reshard_while_the_journal_is_followed() {
    let Some(stage) = Stage::of(ServerKind::Redis7, false, 8000, 15_000) else { return };
    let mut tool = stage.start();
    stage.wait_stable(&mut tool);
    stage.cluster.forget_redirects().unwrap();
    assert_eq!(stage.cluster.reshard(1).unwrap(), 16384);
    stage.met_redirects(&mut tool);
    stage.finish(tool);
}

/// A node without a replica stands still: the cluster is down. The tool waits, says so, and goes on.
#[test]
fn a_cluster_that_is_down_for_a_while_is_waited_for() {
    let Some(stage) = Stage::of(ServerKind::Redis7, false, 4000, 3000) else { return };
    let mut tool = stage.start();
    stage.wait_stable(&mut tool);
    let pid = stage.cluster.nodes[1].pid().unwrap().to_string();
    let signal = |name: &str| std::process::Command::new("kill").args([name, &pid]).status().unwrap();
    signal("-STOP");
    let alarm = wait_for(|| tool.said().contains("holding: the target cannot yet").then_some(()));
    signal("-CONT");
    assert!(alarm.is_some(), "{}", tool.said());
    stage.finish(tool);
}
