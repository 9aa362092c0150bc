//! A target that sends what no honest one does: at the preflight, in the full sync, in the stable journal. Each time the run
//! ends with an error that says what came and where, in bounded time and memory, and nothing is called done.

mod common;

use common::hostile::malformed;
use common::{FlowBytes, Hand, Run, migrate_command, program, start};
use df2redis::lab::answers::{ClusterPorts, TargetIdentity};
use df2redis::lab::flow::Faults;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::script::{Hostile, HostileRule, ScriptOptions, ScriptedTarget};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);
/// Little memory, little patience.
const ARGS: [&str; 10] =
    ["--memory", "32MiB", "--cores", "1", "--connect-timeout", "1s", "--retry-max", "2s", "--connections", "1"];

fn target(command: &str, key: Option<&str>, what: Hostile, identity: TargetIdentity) -> ScriptedTarget {
    let rule = HostileRule { command: command.into(), key: key.map(|key| key.as_bytes().to_vec()), what };
    ScriptedTarget::start(ScriptOptions { hostile: Some(rule), identity, ..ScriptOptions::default() }).unwrap()
}

fn migrate(port: u16) -> Run {
    migrate_with(port, Faults::default())
}

fn migrate_with(port: u16, faults: Faults) -> Run {
    let mut flow = FlowBytes::new();
    (0..50).for_each(|i| _ = flow.string(format!("k{i}").as_bytes(), b"v"));
    let master = Hand::new(vec![flow]).faulty(faults);
    start(migrate_command(master.port(), port, &ARGS)).wait_for(PATIENCE)
}

/// It failed, for the target's sake, in bounded memory.
#[track_caller]
fn is_told(run: &Run, case: &str, code: i32, texts: &[&str]) {
    assert_eq!(run.code(), code, "{case}: {}\n{}", run.message(), run.stderr);
    for text in texts {
        assert!(run.message().contains(text), "{case}: no \"{text}\" in: {}", run.message());
    }
    let rss = run.report["rss_bytes_peak"].as_u64().unwrap();
    assert!(rss < (32 + 64) << 20, "{case}: {rss} bytes");
}

#[test]
fn malformed_replies_at_the_preflight() {
    for command in ["INFO", "COMMAND", "EVAL"] {
        for (case, what, said) in malformed() {
            let target = target(command, None, what, TargetIdentity::default());
            let case = format!("{command}: {case}");
            let run = migrate(target.port());
            is_told(&run, &case, 5, &[said, command, &format!("127.0.0.1:{}", target.port())]);
            assert!(run.stdout.contains("nothing was written"), "{case}: {}", run.stdout);
        }
    }
}

#[test]
fn endless_answers_at_the_preflight() {
    let element = [&b"$64\r\n"[..], &b"x".repeat(64), b"\r\n"].concat();
    for (case, what, said) in [
        ("arrays", Hostile::Endless(b"*1048577\r\n".to_vec(), b":1\r\n".to_vec()), "announces a length"),
        ("elements", Hostile::Endless(b"*1048576\r\n".to_vec(), element), "longer than"),
        ("a text", Hostile::Endless(b"$16777216\r\n".to_vec(), b"x".to_vec()), "not followed by CR LF"),
        ("one byte after the other", Hostile::Slowly(b"+".repeat(1000), Duration::from_millis(100)), "no answer"),
        ("silence", Hostile::Nothing, "no answer"),
        ("half an answer", Hostile::Last(b"$100\r\nhalf".to_vec()), "closed the connection"),
    ] {
        let target = target("COMMAND", None, what, TargetIdentity::default());
        let run = migrate(target.port());
        is_told(&run, case, 5, &[said, "COMMAND"]);
        assert!(run.stdout.contains("nothing was written"), "{case}: {}", run.stdout);
    }
}

/// Else every later reply would be taken for the one to the request before.
#[test]
fn answers_that_nobody_asked_for_at_the_preflight() {
    for command in ["INFO", "COMMAND", "EVAL", "SET"] {
        for bytes in [&b"+OK\r\n"[..], b":0\r\n", b"$-1\r\n", b">1\r\n+x\r\n"] {
            let target = target(command, None, Hostile::Behind(bytes.to_vec()), TargetIdentity::default());
            let case = format!("{command}: {}", bytes.escape_ascii());
            is_told(&migrate(target.port()), &case, 5, &["nobody asked for"]);
        }
    }
}

#[test]
fn malformed_replies_in_the_full_sync() {
    for (case, what, said) in malformed() {
        let target = target("SET", Some("k30"), what, TargetIdentity::default());
        is_told(&migrate(target.port()), case, 5, &[said, "node 0"]);
    }
}

#[test]
fn other_answers_in_the_full_sync() {
    for (case, what, said) in [
        ("one too many", Hostile::Behind(b"+OK\r\n".to_vec()), "nobody asked for"),
        ("half an answer", Hostile::Last(b"$100\r\nhalf".to_vec()), "closes each connection"),
        ("endless numbers", Hostile::Endless(b"*1048576\r\n".to_vec(), b":1\r\n".to_vec()), "nobody asked for"),
        ("endless text", Hostile::Endless(b"$536870912\r\n".to_vec(), b"x".to_vec()), "not followed by CR LF"),
    ] {
        let target = target("SET", Some("k30"), what, TargetIdentity::default());
        let run = migrate(target.port());
        is_told(&run, case, 5, &[said]);
    }
    // While nothing is under way.
    let what = Hostile::Later(b"+OK\r\n".to_vec(), Duration::from_millis(1));
    let target = target("SET", Some("k30"), what, TargetIdentity::default());
    is_told(&migrate_with(target.port(), Faults::default().slow(500)), "later", 5, &["nobody asked for"]);
}

/// It is as if the last one were missing: that request is sent again.
#[test]
fn a_reply_too_few_in_the_full_sync_is_a_lost_connection() {
    let target = target("SET", Some("k30"), Hostile::Nothing, TargetIdentity::default());
    let run = migrate(target.port());
    run.expect_code(0);
    assert!(run.stderr.contains("the target answered nothing for too long"), "{}", run.stderr);
    let sent = target.received_of("SET");
    assert!((0..50).all(|i| sent.iter().any(|set| set[1] == format!("k{i}").into_bytes())));
}

/// `replicate` of a live source, in the stable journal when the key `trigger` is written.
fn follow(what: Hostile, command: &str, key: Option<&str>) -> Run {
    let target = target(command, key, what, TargetIdentity::default());
    let live = Live::start(
        Spec { flows_count: 1, ..Spec::of("string:60B=20").unwrap() },
        LiveOptions::default(),
        MasterOptions::default(),
    )
    .unwrap();
    let (source, address) =
        (format!("dragonfly://127.0.0.1:{}", live.port()), format!("redis://127.0.0.1:{}", target.port()));
    let mut command = program(&["replicate", "--source", &source, "--target", &address, "--output", "json"]);
    command.args(["--progress", "off"]).args(ARGS);
    let running = start(command);
    let until = Instant::now() + PATIENCE;
    while !target.received_of("HSET").iter().any(|set| set.contains(&b"stable".to_vec())) {
        assert!(Instant::now() < until, "it does not follow");
        std::thread::sleep(Duration::from_millis(5));
    }
    live.world().run(0, &[b"SET".to_vec(), b"trigger".to_vec(), b"1".to_vec()]);
    live.world().run(0, &[b"INCR".to_vec(), b"more".to_vec()]);
    running.wait_for(PATIENCE)
}

#[test]
fn malformed_replies_in_the_stable_journal() {
    for (case, what, said) in malformed() {
        is_told(&follow(what, "SET", Some("trigger")), case, 5, &[said, "node 0"]);
    }
}

#[test]
fn other_answers_in_the_stable_journal() {
    let ok = b"+OK\r\n".to_vec();
    for (case, what, command, key, said) in [
        ("one too many", Hostile::Behind(ok.clone()), "SET", Some("trigger"), "answered EXEC"),
        (
            "one too many, later",
            Hostile::Later(ok.clone(), Duration::from_millis(300)),
            "EXEC",
            None,
            "nobody asked for",
        ),
        ("an EXEC of nothing", Hostile::Instead(b"*0\r\n".to_vec()), "EXEC", None, "answered EXEC"),
        ("an EXEC that is no array", Hostile::Instead(ok), "EXEC", None, "answered EXEC"),
    ] {
        let run = follow(what, command, key);
        is_told(&run, case, 5, &[said]);
    }
}

/// CLUSTER SHARDS that lie, by the words of one shard each.
#[test]
fn lies_about_a_cluster() {
    let shard = |slots: &str, host: &str, port: &str| {
        let text = |text: &str| format!("${}\r\n{text}\r\n", text.len());
        let node: String = [("id", host), ("endpoint", host), ("role", "master"), ("health", "online")]
            .iter()
            .map(|(name, value)| text(name) + &text(value))
            .collect();
        format!("*4\r\n{}{slots}{}*1\r\n*10\r\n{node}{}{port}", text("slots"), text("nodes"), text("port"))
    };
    let whole = "*2\r\n:0\r\n:16383\r\n";
    let of = |shards: &[String]| format!("*{}\r\n{}", shards.len(), shards.concat()).into_bytes();
    let endless_ranges = format!("*1\r\n*4\r\n$5\r\nslots\r\n*1048570\r\n{}", ":0\r\n:16383\r\n".repeat(10));
    let many: Vec<String> = (0..5000).map(|i| shard("*0\r\n", &format!("h{i}"), ":1\r\n")).collect();
    let ranges = format!("*{}\r\n{}", 200_000, ":0\r\n".repeat(200_000));
    for (case, what, said) in [
        (
            "two owners",
            Hostile::Instead(of(&[shard(whole, "127.0.0.1", ":1\r\n"), shard("*2\r\n:7\r\n:7\r\n", "b", ":1\r\n")])),
            "a slot has two owners",
        ),
        ("a billion ranges", Hostile::Instead(of(&[shard("*1000000000\r\n", "h", ":1\r\n")])), "announces a length"),
        (
            "ranges without an end",
            Hostile::Endless(endless_ranges.into_bytes(), b":0\r\n:16383\r\n".to_vec()),
            "CLUSTER",
        ),
        ("200,000 slots", Hostile::Instead(of(&[shard(&ranges, "h", ":1\r\n")])), "a slot has two owners"),
        ("5000 nodes", Hostile::Instead(of(&many)), "too many nodes"),
        ("a slot beyond", Hostile::Instead(of(&[shard("*2\r\n:0\r\n:16384\r\n", "h", ":1\r\n")])), "a range of slots"),
        ("a host with spaces", Hostile::Instead(of(&[shard(whole, "a host", ":1\r\n")])), "a host that is none"),
        ("a host with CR LF", Hostile::Instead(of(&[shard(whole, "a\r\nb", ":1\r\n")])), "a host that is none"),
        ("no port", Hostile::Instead(of(&[shard(whole, "127.0.0.1", ":70000\r\n")])), "does not serve all slots"),
        ("no array", Hostile::Instead(b"+OK\r\n".to_vec()), "it is no array"),
    ] {
        let identity = TargetIdentity::redis("7.0.15").in_cluster(&ClusterPorts::default());
        let target = target("CLUSTER", Some("SHARDS"), what, identity);
        let run = migrate(target.port());
        let code = if said.contains("does not serve") { 3 } else { 5 };
        is_told(&run, case, code, &[said]);
        assert!(run.stdout.contains("nothing was written"), "{case}: {}", run.stdout);
    }
}
