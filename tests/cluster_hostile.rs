//! A node of a cluster that sends what no honest one does: in the full sync, in the stable journal, in redirects, and when it is asked
//! who has which slot. Each time the run ends with an error that says what came and from which node, or goes on by what the other
//! nodes say; no position passes what was not executed.

mod common;

use common::hostile::malformed;
use common::{FlowBytes, Hand, Run, Running, migrate_command, program, start};
use df2redis::lab::answers::{ClusterPorts, TargetIdentity};
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::script::{ErrorRule, Hostile, HostileRule, ScriptOptions, ScriptedTarget};
use df2redis::lab::torture::wait_for;
use df2redis::redis::slot::slot;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
/// Little memory, little patience.
const ARGS: [&str; 8] = ["--memory", "32MiB", "--cores", "1", "--connect-timeout", "1s", "--retry-max", "2s"];

/// A key on one of two nodes.
fn key_on(node: usize, family: &str) -> String {
    let is_there = |key: &String| usize::from(slot(key.as_bytes()).0) / 8192 == node;
    (0..).map(|i| format!("{family}{i}")).find(is_there).unwrap()
}

fn hostile(command: &str, key: &str, what: Hostile) -> HostileRule {
    HostileRule { command: command.into(), key: Some(key.as_bytes().to_vec()), what }
}

fn errors(command: &str, key: &str, reply: &str, times: u64) -> Vec<ErrorRule> {
    vec![ErrorRule { key: Some(key.as_bytes().to_vec()), times, ..ErrorRule::every(command, reply) }]
}

/// Two nodes, the first one honest; the tool is told of the first.
fn nodes(hostile: Option<HostileRule>, errors: Vec<ErrorRule>) -> [ScriptedTarget; 2] {
    let ports = ClusterPorts::default();
    let start = |hostile, errors| {
        let identity = TargetIdentity::default().in_cluster(&ports);
        ScriptedTarget::start(ScriptOptions { identity, hostile, errors, ..ScriptOptions::default() }).unwrap()
    };
    let nodes = [start(None, Vec::new()), start(hostile, errors)];
    ports.lock().unwrap().extend(nodes.iter().map(ScriptedTarget::port));
    nodes
}

/// A full sync of keys on both nodes, many of them after `key`, which is among them.
fn migrate(nodes: &[ScriptedTarget; 2], key: &str) -> Run {
    let mut flow = FlowBytes::new();
    (0..40).for_each(|i| _ = flow.string(format!("before{i}").as_bytes(), b"v"));
    flow.string(key.as_bytes(), b"v");
    (0..40).for_each(|i| _ = flow.string(format!("behind{i}").as_bytes(), b"v"));
    let master = Hand::new(vec![flow]).start();
    start(migrate_command(master.port(), nodes[0].port(), &ARGS)).wait_for(PATIENCE)
}

/// It failed, for the target's sake, in bounded memory.
#[track_caller]
fn is_told(run: &Run, case: &str, texts: &[&str]) {
    assert_eq!(run.code(), 5, "{case}: {}\n{}", run.message(), run.stderr);
    for text in texts {
        assert!(run.message().contains(text), "{case}: no \"{text}\" in: {}\n{}", run.message(), run.stderr);
    }
    assert!(!run.stderr.contains("panicked"), "{case}: {}", run.stderr);
    let rss = run.report["rss_bytes_peak"].as_u64().unwrap();
    assert!(rss < (32 + 64) << 20, "{case}: {rss} bytes");
}

/// A `replicate` of a live source that is in step with two nodes.
struct Following {
    nodes: [ScriptedTarget; 2],
    live: Live,
    /// `None`: it has ended.
    running: Option<Running>,
}

impl Following {
    fn new(hostile: Option<HostileRule>, errors: Vec<ErrorRule>) -> Self {
        let nodes = nodes(hostile, errors);
        let spec = Spec { seed: 5, flows_count: 1, ..Spec::of("string:60B=5").unwrap() };
        let live = Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap();
        let source = format!("dragonfly://127.0.0.1:{}", live.port());
        let target = format!("redis://127.0.0.1:{}", nodes[0].port());
        let mut command = program(&["replicate", "--source", &source, "--target", &target, "--output", "json"]);
        command.args(["--progress", "off", "--log", "info"]).args(ARGS);
        let mut this = Self { nodes, live, running: Some(start(command)) };
        let followed = wait_for(|| {
            assert!(this.is_running(), "it ended before it followed");
            this.live.is_acknowledged().then_some(())
        });
        assert!(followed.is_some(), "it does not follow");
        this
    }

    fn is_running(&mut self) -> bool {
        self.running.as_mut().is_some_and(Running::is_running)
    }

    fn run(&self, line: &str) {
        let args: Vec<Vec<u8>> = line.split(' ').map(|word| word.as_bytes().to_vec()).collect();
        self.live.world().run(0, &args);
    }

    fn next_lsn(&self) -> u64 {
        self.live.world().next_lsns()[0]
    }

    /// The furthest position that was written to a node, or acknowledged to the source.
    fn position(&self) -> u64 {
        let number = |text: &[u8]| -> u64 {
            let text = String::from_utf8_lossy(text).into_owned();
            text.rsplit(':').next().unwrap().parse().unwrap_or_else(|_| panic!("{text} is no position"))
        };
        let mut furthest = self.live.master().unwrap().acks()[0].unwrap_or(0);
        for received in self.nodes.iter().flat_map(|node| node.received()) {
            let of = |key: &[u8]| received.request.get(1).is_some_and(|name| name.starts_with(key));
            match received.request[0].as_slice() {
                b"HSET" if of(b"df2redis:checkpoint") => {
                    let pairs = received.request[2..].chunks_exact(2).filter(|pair| pair[0].starts_with(b"lsn:"));
                    pairs.for_each(|pair| furthest = furthest.max(number(&pair[1])));
                }
                b"SET" if of(b"df2redis:p:") => furthest = furthest.max(number(&received.request[2])),
                _ => {}
            }
        }
        furthest
    }

    /// Writes a key of the second node, and one of the first behind it, and waits for the end. Returns the LSN of the first one.
    fn ends_behind(mut self, line: &str) -> (Run, u64, u64) {
        let lsn = self.next_lsn();
        self.run(line);
        self.run(&format!("INCR {}", key_on(0, "more")));
        let run = self.running.take().unwrap().wait_for(PATIENCE);
        (run, lsn, self.position())
    }
}

#[test]
fn malformed_replies_in_the_full_sync() {
    let key = key_on(1, "k");
    for (case, what, said) in malformed() {
        let nodes = nodes(Some(hostile("SET", &key, what)), Vec::new());
        is_told(&migrate(&nodes, &key), case, &[said, &nodes[1].address().to_string()]);
    }
}

#[test]
fn other_answers_in_the_full_sync() {
    let key = key_on(1, "k");
    for (case, what, said) in [
        ("one too many", Hostile::Behind(b"+OK\r\n".to_vec()), "nobody asked for"),
        ("half an answer", Hostile::Last(b"$100\r\nhalf".to_vec()), "closed the connection"),
        ("endless numbers", Hostile::Endless(b"*1048576\r\n".to_vec(), b":1\r\n".to_vec()), "nobody asked for"),
        ("endless text", Hostile::Endless(b"$536870912\r\n".to_vec(), b"x".to_vec()), "not followed by CR LF"),
    ] {
        let nodes = nodes(Some(hostile("SET", &key, what)), Vec::new());
        is_told(&migrate(&nodes, &key), case, &[said, &nodes[1].address().to_string()]);
    }
}

#[test]
fn malformed_replies_in_the_stable_journal() {
    let key = key_on(1, "trigger");
    for (case, what, said) in malformed() {
        let following = Following::new(Some(hostile("SET", &key, what)), Vec::new());
        let address = following.nodes[1].address().to_string();
        let (run, lsn, position) = following.ends_behind(&format!("SET {key} 1"));
        is_told(&run, case, &[said, &address]);
        assert!(position <= lsn, "{case}: {position} passes {lsn}");
    }
}

#[test]
fn other_answers_in_the_stable_journal() {
    let key = key_on(1, "trigger");
    let (set, incr) = (format!("SET {key} 1"), format!("INCR {key}"));
    let ok = b"+OK\r\n".to_vec();
    for (case, what, command, line, said) in [
        ("one too many", Hostile::Behind(ok.clone()), "SET", &set, "nobody asked for"),
        ("half an answer", Hostile::Last(b"$100\r\nhalf".to_vec()), "SET", &set, "closed the connection"),
        ("one too many in a transaction", Hostile::Behind(ok.clone()), "INCR", &incr, "answered EXEC"),
        ("garbage in a transaction", Hostile::Instead(b"*1\r\n".repeat(20)), "INCR", &incr, "nested deeper"),
    ] {
        let following = Following::new(Some(hostile(command, &key, what)), Vec::new());
        let address = following.nodes[1].address().to_string();
        let (run, lsn, position) = following.ends_behind(line);
        is_told(&run, case, &[said, &address]);
        assert!(position <= lsn, "{case}: {position} passes {lsn}");
    }
}

/// Of every transaction: the first one is that of the key.
#[test]
fn answers_to_exec_that_are_none() {
    let key = key_on(1, "trigger");
    for (case, what) in [
        ("of nothing", b"*0\r\n".to_vec()),
        ("no array", b"+OK\r\n".to_vec()),
        ("too many", b"*3\r\n:1\r\n+OK\r\n+OK\r\n".to_vec()),
    ] {
        let rule = HostileRule { command: "EXEC".into(), key: None, what: Hostile::Instead(what) };
        let following = Following::new(Some(rule), Vec::new());
        let address = following.nodes[1].address().to_string();
        let (run, lsn, position) = following.ends_behind(&format!("INCR {key}"));
        is_told(&run, case, &["answered EXEC", "--on-existing flush", &address]);
        assert!(position <= lsn, "{case}: {position} passes {lsn}");
    }
}

/// What a record over several slots reads is written elsewhere, or deleted: an answer of another type is not taken for "there is nothing".
#[test]
fn answers_of_other_types_over_several_slots() {
    let (from, to) = (key_on(1, "from"), key_on(0, "to"));
    let rename = ["RENAME", &from, &to];
    let lmove = ["LMOVE", &from, &to, "LEFT", "LEFT"];
    let union = ["ZUNIONSTORE", &to, "2", &from, &to];
    let pop = ["LMPOP", "2", &from, &to, "LEFT"];
    for (record, command, reply) in [
        (&rename[..], "DUMP", ":1\r\n"),
        (&rename, "DUMP", "+OK\r\n"),
        (&rename, "DUMP", "*0\r\n"),
        (&rename, "PEXPIRETIME", "$1\r\nx\r\n"),
        (&rename, "PEXPIRETIME", "$-1\r\n"),
        (&union, "DUMP", "*1\r\n$-1\r\n"),
        (&lmove, "LINDEX", ":7\r\n"),
        (&lmove, "LINDEX", "*0\r\n"),
        (&pop, "PTTL", "+OK\r\n"),
    ] {
        let case = format!("{} answered with {}", command, reply.escape_debug());
        let following = Following::new(Some(hostile(command, &from, Hostile::Instead(reply.into()))), Vec::new());
        let lsn = following.next_lsn();
        following.live.world().record(0, record, 0);
        let mut following = following;
        following.run(&format!("INCR {}", key_on(0, "more")));
        let run = following.running.take().unwrap().wait_for(PATIENCE);
        is_told(&run, &case, &[command, record[0]]);
        for node in &following.nodes {
            let taken = ["DEL", "LPOP", "RESTORE", "LPUSH"].iter().flat_map(|name| node.received_of(name));
            let taken: Vec<_> = taken.filter(|of| of[1] == from.as_bytes() || of[1] == to.as_bytes()).collect();
            assert!(taken.is_empty(), "{case}: {taken:?}");
        }
        let position = following.position();
        assert!(position <= lsn, "{case}: {position} passes {lsn}");
    }
}

/// Redirects that say nothing.
fn redirects() -> Vec<String> {
    let texts = [
        "MOVED",
        "MOVED ",
        "MOVED 99999 x",
        "MOVED 1 [::1",
        "MOVED 1 ]:1",
        "MOVED -1 127.0.0.1:1",
        "MOVED 1 127.0.0.1",
        "MOVED 1 127.0.0.1:",
        "MOVED 1 127.0.0.1:0",
        "MOVED 5 1.2.3.4:65536",
        "MOVED 99999999999999999999 127.0.0.1:1",
        "MOVED 1  127.0.0.1:1",
        "ASK",
        "ASK 5 1.2.3.4:99999999",
        "ASK 16384 127.0.0.1:1",
        "ASK 1 :",
        "ASK x 127.0.0.1:1",
        "ASK 1 \u{1b}[2J",
    ];
    texts.map(|text| format!("-{text}")).to_vec()
}

/// They say that the command was not executed: it is executed once the node knows better, and nothing of its key before it.
#[test]
fn malformed_redirects_are_asked_again() {
    let key = |at: usize| key_on(1, &format!("trigger{at}:"));
    // Once to the worker, and once to who settles it.
    let rules = redirects().iter().enumerate().flat_map(|(at, text)| errors("INCR", &key(at), text, 2)).collect();
    let mut following = Following::new(None, rules);
    for at in 0..redirects().len() {
        following.run(&format!("INCR {}", key(at)));
        following.run(&format!("APPEND {} x", key(at)));
    }
    let applied = wait_for(|| {
        assert!(following.is_running(), "it ended");
        following.live.is_acknowledged().then_some(())
    });
    assert!(applied.is_some(), "it does not go on");
    let received = following.nodes[1].received();
    for (at, text) in redirects().iter().enumerate() {
        let key = key(at);
        let of_key = |name: &[u8]| name == b"INCR" || name == b"APPEND";
        let of: Vec<_> =
            received.iter().filter(|of| of_key(&of.request[0]) && of.request[1] == key.as_bytes()).collect();
        let executed: Vec<&[u8]> = of.iter().filter(|of| of.executed).map(|of| of.request[0].as_slice()).collect();
        assert_eq!(executed, [&b"INCR"[..], b"APPEND"], "{text}");
        assert_eq!(of.iter().filter(|of| of.request[0] == b"INCR").count(), 3, "{text}");
    }
    assert!(received.iter().all(|of| of.request[0] != b"ASKING"));
    let running = following.running.take().unwrap();
    running.signal("INT");
    running.wait().expect_code(130);
}

#[test]
fn malformed_redirects_without_end_end_the_run() {
    let key = key_on(1, "trigger");
    for text in ["-MOVED", "-MOVED 99999 x", "-ASK 5 1.2.3.4:99999999", "-MOVED 1 [::1"] {
        let following = Following::new(None, errors("INCR", &key, text, u64::MAX));
        let address = following.nodes[1].address().to_string();
        let (run, lsn, position) = following.ends_behind(&format!("INCR {key}"));
        is_told(&run, text, &[&text[1..], "--retry-max", &address]);
        assert!(position <= lsn, "{text}: {position} passes {lsn}");
    }
}

fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

/// An answer to CLUSTER SHARDS: the slots of each shard, and the port of its node.
fn shards(of: &[(&str, u16)]) -> Vec<u8> {
    let node = |port: u16| {
        let texts = [
            ("id", format!("{port:040}")),
            ("endpoint", "127.0.0.1".into()),
            ("role", "master".into()),
            ("health", "online".into()),
        ];
        let texts: String = texts.iter().map(|(name, value)| bulk(name) + &bulk(value)).collect();
        format!("*10\r\n{texts}{}:{port}\r\n", bulk("port"))
    };
    let shard =
        |(slots, port): &(&str, u16)| format!("*4\r\n{}{slots}{}*1\r\n{}", bulk("slots"), bulk("nodes"), node(*port));
    format!("*{}\r\n{}", of.len(), of.iter().map(shard).collect::<String>()).into_bytes()
}

/// An answer to CLUSTER SLOTS: the first and the last slot of each row, and the port of its node.
fn slots(of: &[(&str, &str, &str)]) -> Vec<u8> {
    let row = |(first, last, port): &(&str, &str, &str)| {
        format!("*3\r\n:{first}\r\n:{last}\r\n*3\r\n{}:{port}\r\n{}", bulk("127.0.0.1"), bulk(&format!("{port:0>40}")))
    };
    format!("*{}\r\n{}", of.len(), of.iter().map(row).collect::<String>()).into_bytes()
}

/// What a node says of the slots, and what is said of that.
fn lies_in_shards() -> Vec<(&'static str, Hostile, &'static str)> {
    let is = |of: &[(&str, u16)]| Hostile::Instead(shards(of));
    vec![
        ("negative slots", is(&[("*2\r\n:-1\r\n:16383\r\n", 1)]), "a range of slots"),
        ("slots beyond", is(&[("*2\r\n:0\r\n:4611686018427387904\r\n", 1)]), "a range of slots"),
        ("a slot of 2^64", is(&[("*2\r\n:0\r\n:18446744073709551616\r\n", 1)]), "CLUSTER"),
        ("an odd number of slots", is(&[("*3\r\n:0\r\n:16383\r\n:5\r\n", 1)]), "a range of slots"),
        ("slots that are texts", is(&[("*2\r\n$1\r\n0\r\n$5\r\n16383\r\n", 1)]), "a range of slots"),
        ("a range backwards", is(&[("*2\r\n:9\r\n:3\r\n", 1)]), "ends before it begins"),
        ("two owners", is(&[("*2\r\n:0\r\n:9000\r\n", 1), ("*2\r\n:9000\r\n:16383\r\n", 2)]), "two owners"),
        ("the same range twice", is(&[("*4\r\n:0\r\n:16383\r\n:0\r\n:16383\r\n", 1)]), "two owners"),
        ("a negative count of slots", is(&[("*-2\r\n", 1)]), "announces a length"),
        (
            "ranges without end",
            Hostile::Endless(
                format!("*1\r\n*4\r\n{}*1048570\r\n", bulk("slots")).into_bytes(),
                b":0\r\n:16383\r\n".to_vec(),
            ),
            "CLUSTER",
        ),
        (
            "shards without end",
            Hostile::Endless(b"*1048570\r\n".to_vec(), shards(&[("*0\r\n", 1)])[4..].to_vec()),
            "CLUSTER",
        ),
    ]
}

fn lies_in_slots() -> Vec<(&'static str, Hostile, &'static str)> {
    let is = |of: &[(&str, &str, &str)]| Hostile::Instead(slots(of));
    vec![
        ("negative slots", is(&[("-1", "16383", "1")]), "a range of slots"),
        ("slots beyond", is(&[("0", "16384", "1")]), "a range of slots"),
        ("a slot of 2^63", is(&[("0", "9223372036854775807", "1")]), "a range of slots"),
        ("a range backwards", is(&[("9", "3", "1")]), "ends before it begins"),
        ("two owners", is(&[("0", "9000", "1"), ("9000", "16383", "2")]), "two owners"),
        ("a row without slots", Hostile::Instead(b"*1\r\n*1\r\n:0\r\n".to_vec()), "has no slots"),
        ("a node without a port", Hostile::Instead(b"*1\r\n*3\r\n:0\r\n:16383\r\n*1\r\n+h\r\n".to_vec()), "no address"),
        ("no array", Hostile::Instead(b":1\r\n".to_vec()), "it is no array"),
        ("a map", Hostile::Instead(b"%1\r\n+a\r\n:1\r\n".to_vec()), "no RESP2 type"),
        ("nested without end", Hostile::Endless(b"*1\r\n".to_vec(), b"*1\r\n".to_vec()), "nested"),
        (
            "rows without end",
            Hostile::Endless(b"*1048570\r\n".to_vec(), slots(&[("0", "16383", "1")])[4..].to_vec()),
            "CLUSTER",
        ),
    ]
}

/// At the start: from the node that the operator named. (More of CLUSTER SHARDS: `faults_hostile`.)
#[test]
fn lies_about_slots_at_the_start() {
    let identity = || TargetIdentity::default().in_cluster(&ClusterPorts::default());
    let unknown = || errors("CLUSTER", "SHARDS", "-ERR unknown subcommand 'SHARDS'", u64::MAX);
    let of_shards = lies_in_shards().into_iter().map(|lie| (lie, "SHARDS", Vec::new()));
    let of_slots = lies_in_slots().into_iter().map(|lie| (lie, "SLOTS", unknown()));
    for ((case, what, said), question, errors) in of_shards.chain(of_slots) {
        let options = ScriptOptions {
            identity: identity(),
            hostile: Some(hostile("CLUSTER", question, what)),
            errors,
            ..ScriptOptions::default()
        };
        let target = ScriptedTarget::start(options).unwrap();
        let mut flow = FlowBytes::new();
        flow.string(b"k", b"v");
        let run = start(migrate_command(Hand::new(vec![flow]).start().port(), target.port(), &ARGS)).wait_for(PATIENCE);
        let case = format!("{question}: {case}");
        is_told(&run, &case, &[said, &target.address().to_string()]);
        assert!(run.stdout.contains("nothing was written"), "{case}: {}", run.stdout);
    }
}

/// In the middle: what the other node says counts.
#[test]
fn lies_about_slots_in_the_middle_are_not_believed() {
    let key = key_on(0, "trigger");
    let all = lies_in_shards().into_iter().filter(|(_, what, _)| !matches!(what, Hostile::Endless(..)));
    for (case, what, _) in all {
        let ports = ClusterPorts::default();
        let identity = TargetIdentity::default().in_cluster(&ports);
        let errors = errors("INCR", &key, "-TRYAGAIN Multiple keys request during rehashing of slot", 3);
        let honest = ScriptOptions { identity: identity.clone(), errors, ..ScriptOptions::default() };
        let lying =
            ScriptOptions { identity, hostile: Some(hostile("CLUSTER", "SHARDS", what)), ..ScriptOptions::default() };
        let nodes = [ScriptedTarget::start(honest).unwrap(), ScriptedTarget::start(lying).unwrap()];
        ports.lock().unwrap().extend(nodes.iter().map(ScriptedTarget::port));
        let mut flow = FlowBytes::new();
        (0..20).for_each(|i| _ = flow.string(format!("k{i}").as_bytes(), b"v"));
        flow.journal(0, &["INCR", &key]).journal(0, &["APPEND", &key, "x"]);
        let run =
            start(migrate_command(Hand::new(vec![flow]).start().port(), nodes[0].port(), &ARGS)).wait_for(PATIENCE);
        assert_eq!(run.code(), 0, "{case}: {}\n{}", run.message(), run.stderr);
        let asked = nodes[1].received_of("CLUSTER").iter().filter(|words| words[1] == b"SHARDS").count();
        assert!(asked > 0, "{case}: the node was not asked");
        let executed =
            |name: &[u8]| nodes[0].received().iter().filter(|of| of.executed && of.request[0] == name).count();
        assert_eq!((executed(b"INCR"), executed(b"APPEND")), (1, 1), "{case}: {}", run.stderr);
        let keys = nodes.iter().flat_map(|node| node.received_of("SET")).filter(|set| set[1].starts_with(b"k")).count();
        assert!(keys >= 20, "{case}: {keys}");
    }
}
