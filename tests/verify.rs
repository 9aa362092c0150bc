//! `verify` between real servers: planted differences of every kind are found completely, and nothing else, while both
//! sides are written to; it goes on after a kill, keeps its rate and its memory, and repairs.

mod common;

use common::{Run, Running, program, server, start};
use df2redis::lab::client::{Client, Reply, encode};
use df2redis::lab::servers::{Server, ServerKind};
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

type Args = Vec<Vec<u8>>;

fn args(parts: &[&str]) -> Args {
    parts.iter().map(|part| part.as_bytes().to_vec()).collect()
}

fn words(line: &str) -> Args {
    line.split(' ').map(|word| word.as_bytes().to_vec()).collect()
}

/// Sends all, and expects no error.
#[track_caller]
fn send(client: &mut Client, commands: &[Args]) {
    for chunk in commands.chunks(500) {
        let mut bytes = Vec::new();
        chunk.iter().for_each(|command| encode(command, &mut bytes));
        client.send(&bytes).unwrap();
        for command in chunk {
            if let Reply::Error(error) = client.reply().unwrap() {
                panic!("{}: {error}", String::from_utf8_lossy(&command.join(&b' ')));
            }
        }
    }
}

#[track_caller]
fn run_line(client: &mut Client, line: &str) {
    send(client, &[words(line)]);
}

fn verify_command(source: u16, target: u16, more: &[&str]) -> Command {
    let (source, target) = (format!("redis://127.0.0.1:{source}"), format!("redis://127.0.0.1:{target}"));
    let mut command = program(&["verify", "--source", &source, "--target", &target, "--output", "json"]);
    command.args(["--progress", "off"]);
    if !more.contains(&"--lag-max") {
        command.args(["--lag-max", "1s"]);
    }
    if !more.contains(&"--rate") {
        command.args(["--rate", "off"]);
    }
    command.args(more);
    command
}

/// The difference lines and the summary of a run.
fn told(run: &Run) -> (Vec<Value>, Value) {
    let mut lines: Vec<Value> = run
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}\n{}", run.stderr)))
        .collect();
    let summary = lines.pop().unwrap_or_else(|| panic!("no output\n{}", run.stderr));
    (lines, summary)
}

fn verify(source: &Server, target: &Server, more: &[&str]) -> (Run, Vec<Value>, Value) {
    let run = finish(start(verify_command(source.port(), target.port(), more)));
    let (lines, summary) = told(&run);
    (run, lines, summary)
}

fn finish(running: Running) -> Run {
    running.wait_for(Duration::from_secs(180))
}

/// `db key kind` of each line.
fn found(lines: &[Value]) -> BTreeSet<String> {
    let one =
        |line: &Value| format!("{} {} {}", line["db"], line["key"].as_str().unwrap(), line["kind"].as_str().unwrap());
    let set: BTreeSet<String> = lines.iter().map(one).collect();
    assert_eq!(set.len(), lines.len(), "a key was told twice: {lines:#?}");
    set
}

fn where_of<'a>(lines: &'a [Value], key: &str) -> &'a str {
    lines.iter().find(|line| line["key"] == key).unwrap_or_else(|| panic!("{key}"))["where"].as_str().unwrap_or("")
}

const EXPIRY_MS: &str = "4102444800000";

/// Keys of every type and size, the same on every server.
fn everything(fields_expire: bool) -> Vec<Args> {
    let mut all = Vec::new();
    for i in 0..300 {
        all.push(words(&format!("SET s:{i} value-{i}")));
        all.push(words(&format!("HSET h:{i} f {i} g x{i} h 1.5")));
    }
    for i in 0..40 {
        all.push(words(&format!("SET t:{i} v PXAT {EXPIRY_MS}")));
        all.push(words(&format!("RPUSH l:{i} a b c {i}")));
        all.push(words(&format!("SADD i:{i} 1 2 3 {i}")));
        all.push(words(&format!("SADD m:{i} a b c x{i}")));
        all.push(words(&format!("ZADD z:{i} 0.30000000000000004 a 2 b -inf c 1e300 d{i}")));
        all.push(words(&format!("PFADD p:{i} a b c {i}")));
        all.push(words(&format!("XADD x:{i} 5-1 f v{i} g w")));
        all.push(words(&format!("XADD x:{i} 5-2 f v")));
        all.push(words(&format!("XADD x:{i} 6-0 f v")));
        all.push(words(&format!("XGROUP CREATE x:{i} grp 0")));
        all.push(words(&format!("XREADGROUP GROUP grp alice COUNT 2 STREAMS x:{i} >")));
        if fields_expire {
            all.push(words(&format!("HSET e:{i} f 1 g 2")));
            all.push(words(&format!("HPEXPIREAT e:{i} {EXPIRY_MS} FIELDS 1 f")));
        }
    }
    all.push(args(&["SET", "big string", &"x".repeat(3_000_000)]));
    for i in 0..60 {
        let each = |f: &dyn Fn(usize) -> String| (i * 50..i * 50 + 50).map(f).collect::<Vec<_>>().join(" ");
        all.push(words(&format!("RPUSH L {}", each(&|n| format!("element-{n}")))));
        all.push(words(&format!("SADD M {}", each(&|n| format!("member-{n}")))));
        all.push(words(&format!("HSET H {}", each(&|n| format!("field-{n} value-{n}")))));
        all.push(words(&format!(
            "ZADD Z {}",
            each(&|n| format!("{}.1 member-{n}", n as f64 / 7.0).replace(".1 ", " "))
        )));
    }
    for n in 0..2000 {
        all.push(words(&format!("XADD X 7-{n} f {n}", n = n + 1)));
    }
    all.push(words("XGROUP CREATE X grp 0"));
    all.push(words("XREADGROUP GROUP grp alice COUNT 1500 STREAMS X >"));
    all.push(words("SELECT 3"));
    for i in 0..50 {
        all.push(words(&format!("SET three:{i} {i}")));
    }
    all.push(words("SELECT 0"));
    all
}

/// What is changed at the target, and what must be told: key, kind, place.
fn plants(fields_expire: bool) -> Vec<(&'static str, &'static str, &'static str, &'static str)> {
    let mut plants = vec![
        ("SET s:7 value-8", "s:7", "value", "byte 6"),
        ("DEL s:8", "s:8", "missing", ""),
        ("SET extra x", "extra", "extra", ""),
        ("RPUSH s:9 x", "s:9", "type", ""),
        ("PEXPIREAT t:1 4102444802000", "t:1", "expiry", ""),
        ("PERSIST t:2", "t:2", "expiry", ""),
        ("PEXPIREAT s:10 4102444800000", "s:10", "expiry", ""),
        ("LSET l:1 1 B", "l:1", "value", "index 1"),
        ("RPUSH l:2 more", "l:2", "value", "index 4"),
        ("SREM i:1 2", "i:1", "value", "member 2"),
        ("SADD m:1 y", "m:1", "value", "member y"),
        ("HSET h:3 g y", "h:3", "value", "field g"),
        ("HDEL h:4 f", "h:4", "value", "field f"),
        ("ZADD z:1 0.3 a", "z:1", "value", "member a"),
        ("ZINCRBY z:2 1 b", "z:2", "value", "member b"),
        ("PFADD p:1 other", "p:1", "value", ""),
        ("XDEL x:1 5-2", "x:1", "value", "entry 5-2"),
        ("XADD x:2 9-9 f v", "x:2", "value", "entry 9-9"),
        ("XGROUP SETID x:3 grp 0", "x:3", "group", "last-delivered-id"),
        ("XACK x:4 grp 5-1", "x:4", "group", "pending in group grp: 5-1"),
        ("XCLAIM x:5 grp bob 0 5-1 JUSTID", "x:5", "group", "bob"),
        ("XGROUP DESTROY x:6 grp", "x:6", "group", "grp"),
        ("XGROUP CREATECONSUMER x:7 grp carol", "x:7", "group", "carol"),
        ("XCLAIM x:8 grp alice 0 5-1 RETRYCOUNT 7 JUSTID", "x:8", "group", "5-1"),
        ("SETRANGE bigstring 0 x", "bigstring", "extra", ""),
        ("LSET L 2500 x", "L", "value", "index 2500"),
        ("SREM M member-2000", "M", "value", "member member-2000"),
        ("HSET H field-1234 x", "H", "value", "field field-1234"),
        ("ZADD Z 3 member-2999", "Z", "value", "member member-2999"),
        ("XACK X grp 7-1400", "X", "group", "7-1400"),
    ];
    if fields_expire {
        plants.push(("HPEXPIREAT e:1 4102444802000 FIELDS 1 f", "e:1", "field_expiry", "field f"));
        plants.push(("HPERSIST e:2 FIELDS 1 f", "e:2", "field_expiry", "field f"));
        plants.push(("HPEXPIREAT H 4102444800000 FIELDS 1 field-5", "H", "value", "field field-1234"));
    }
    plants
}

/// Writes to the source, and the same a little later to the target, until it is stopped.
struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<u64>>,
}

impl Writers {
    fn start(source: &Server, target: &Server, lag: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = mpsc::channel::<(Instant, Args)>();
        let (mut source, mut target) = (source.client().unwrap(), target.client().unwrap());
        let stopped = Arc::clone(&stop);
        let writer = std::thread::spawn(move || {
            let mut n = 0u64;
            while !stopped.load(Ordering::Relaxed) {
                n += 1;
                let i = n * 7919 % 400;
                let command = match n % 12 {
                    0 => format!("SET w:s:{i} {n}"),
                    1 => format!("INCR w:n:{}", i % 5),
                    2 => format!("HSET w:h:{i} f{} {n}", i % 7),
                    3 => format!("DEL w:s:{i}"),
                    4 => format!("ZINCRBY w:z 1.5 m{i}"),
                    5 => format!("RPUSH w:l:{} {n}", i % 50),
                    6 => format!("SADD w:m:{} {n}", i % 50),
                    7 => format!("XADD w:x:{} {n}-1 f {n}", i % 30),
                    8 => format!("SET w:s:{i} {n} PX {}", 50 + i * 10),
                    9 => format!("LPOP w:l:{}", i % 50),
                    // Inside of large values, too.
                    10 => format!("HSET w:H f{} {n}", n % 1000),
                    _ => format!("DEL w:h:{i}"),
                };
                let mut command = words(&command);
                if command[0] == b"SET" && command.len() == 5 {
                    // As a job sends it: absolute.
                    let now =
                        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
                    let px: u64 = String::from_utf8_lossy(&command[4]).parse().unwrap();
                    (command[3], command[4]) = (b"PXAT".to_vec(), (now + px).to_string().into_bytes());
                }
                send(&mut source, std::slice::from_ref(&command));
                sender.send((Instant::now() + lag, command)).unwrap();
                std::thread::sleep(Duration::from_micros(500));
            }
            n
        });
        let follower = std::thread::spawn(move || {
            let mut n = 0;
            while let Ok((due, command)) = receiver.recv() {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                send(&mut target, std::slice::from_ref(&command));
                n += 1;
            }
            n
        });
        Self { stop, threads: vec![writer, follower] }
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().unwrap()).min().unwrap()
    }
}

fn planted(source_kind: ServerKind, target_kind: ServerKind, fields_expire: bool) {
    let (Some(source), Some(target)) = (server(source_kind), server(target_kind)) else { return };
    let label = format!("{source_kind:?} -> {target_kind:?}");
    let (mut at_source, mut at_target) = (source.client().unwrap(), target.client().unwrap());
    send(&mut at_source, &everything(fields_expire));
    send(&mut at_target, &everything(fields_expire));
    // Forms that differ without a difference.
    run_line(&mut at_target, "PFCOUNT p:3");
    run_line(&mut at_target, "XINFO STREAM x:9");
    // Ours.
    run_line(&mut at_target, "SET df2redis:marker:x:0:0 5");

    let writers = Writers::start(&source, &target, Duration::from_millis(30));
    let (run, lines, summary) = verify(&source, &target, &[]);
    assert_eq!(run.code(), 0, "{label}: {lines:#?}\n{}", run.stderr);
    assert_eq!(lines, Vec::<Value>::new(), "{label}");
    assert!(summary["keys_compared"].as_u64().unwrap() > 900, "{summary}");

    run_line(&mut at_target, "SELECT 3");
    run_line(&mut at_target, "SET three:5 six");
    run_line(&mut at_target, "SELECT 0");
    run_line(&mut at_target, "DEL s:9");
    let plants = plants(fields_expire);
    plants.iter().for_each(|(command, ..)| run_line(&mut at_target, command));
    send(&mut at_target, &[args(&["SETRANGE", "big string", "2000000", "y"])]);
    let mut expected: BTreeSet<String> = plants.iter().map(|(_, key, kind, _)| format!("0 {key} {kind}")).collect();
    expected.insert("3 three:5 value".into());
    expected.insert("0 big string value".into());

    let (run, lines, summary) = verify(&source, &target, &[]);
    let written = writers.end();
    assert!(written > 100, "{label}: the writers wrote {written}");
    assert_eq!(run.code(), 10, "{label}: {}", run.stderr);
    assert_eq!(found(&lines), expected, "{label}: {lines:#?}");
    for (_, key, kind, place) in &plants {
        assert!(where_of(&lines, key).contains(place), "{label}: {key} {kind}: {lines:#?}");
    }
    assert_eq!(where_of(&lines, "big string"), "byte 2000000", "{label}");
    assert_eq!(summary["outcome"]["class"], "differs", "{label}");
    assert_eq!(summary["differing"]["missing"], 1, "{label}: {summary}");

    repaired(&label, &source, &target, expected.len() as u64);
}

/// What differs is repaired, and then nothing does.
fn repaired(label: &str, source: &Server, target: &Server, count: u64) {
    let (run, lines, summary) = verify(source, target, &["--repair", "mirror"]);
    assert_eq!(run.code(), 0, "{label}: {lines:#?}\n{}", run.stderr);
    assert_eq!(summary["repaired"].as_u64(), Some(count), "{label}: {lines:#?}");
    assert!(lines.iter().all(|line| line["repaired"] == true), "{label}: {lines:#?}");
    let (run, lines, _) = verify(source, target, &[]);
    assert_eq!(run.code(), 0, "{label}: {lines:#?}\n{}", run.stderr);
    let (run, ..) = verify(source, target, &["--mode", "count"]);
    assert_eq!(run.code(), 0, "{label}: {}", run.stderr);
}

#[test]
fn planted_differences_are_found_and_repaired_redis_7() {
    planted(ServerKind::Redis7, ServerKind::Redis7, false);
}

#[test]
fn planted_differences_are_found_and_repaired_redis_8() {
    planted(ServerKind::Redis8, ServerKind::Redis8, true);
}

#[test]
fn planted_differences_are_found_and_repaired_valkey_9() {
    planted(ServerKind::Redis8, ServerKind::Valkey9, true);
}

/// A client's memory as the kernel counts it, in KiB.
fn peak_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

/// Runs with samples of its memory.
fn verify_watched(source: &Server, target: &Server, more: &[&str]) -> (Run, u64) {
    let mut running = start(verify_command(source.port(), target.port(), more));
    let mut peak = 0;
    while running.is_running() {
        peak = peak_kib(running.pid()).unwrap_or(peak);
        std::thread::sleep(Duration::from_millis(10));
    }
    (finish(running), peak)
}

#[test]
fn large_collections_are_compared_in_little_memory() {
    let (Some(source), Some(target)) = (server(ServerKind::Redis7), server(ServerKind::Redis7)) else { return };
    for server in [&source, &target] {
        let mut client = server.client().unwrap();
        // 150,000 elements and some 20 MiB in each: whole replies would take several times the bound.
        let script = "for i=1,150000 do local v=string.rep(i,16) redis.call('HSET','H','f'..i,v) \
                      redis.call('ZADD','Z',i/7,'member-'..v) redis.call('RPUSH','L',v) redis.call('SADD','M',v) end \
                      redis.call('SET','S',string.rep('x',30000000)) return 1";
        assert_eq!(client.ask(&["EVAL", script, "0"]).unwrap(), Reply::Int(1));
    }
    let mut client = target.client().unwrap();
    run_line(&mut client, "HSET H f149999 x");
    run_line(&mut client, "ZADD Z 1 new");
    run_line(&mut client, "LSET L 149998 x");
    run_line(&mut client, "SADD M new");
    run_line(&mut client, "SETRANGE S 29999999 y");
    let (run, peak) = verify_watched(&source, &target, &["--memory", "16MiB", "--lag-max", "300ms"]);
    let (lines, _) = told(&run);
    let all = ["H value", "L value", "M value", "S value", "Z value"];
    assert_eq!(found(&lines), all.iter().map(|key| format!("0 {key}")).collect(), "{lines:#?}\n{}", run.stderr);
    for (key, place) in [
        ("H", "field f149999"),
        ("Z", "member new"),
        ("L", "index 149998"),
        ("M", "member new"),
        ("S", "byte 29999999"),
    ] {
        assert_eq!(where_of(&lines, key), place, "{lines:#?}");
    }
    assert!(peak > 0 && peak < 48 * 1024, "{peak} KiB");
}

#[test]
fn a_killed_comparison_goes_on_and_finds_everything_once_or_more() {
    let (Some(source), Some(target)) = (server(ServerKind::Redis7), server(ServerKind::Redis7)) else { return };
    for server in [&source, &target] {
        let commands: Vec<Args> = (0..20_000).map(|i| words(&format!("SET k:{i} {i}"))).collect();
        send(&mut server.client().unwrap(), &commands);
    }
    let mut client = target.client().unwrap();
    let mut expected = BTreeSet::new();
    for i in (0..20_000).step_by(1000) {
        run_line(&mut client, &format!("SET k:{i} wrong"));
        run_line(&mut client, &format!("SET extra:{i} x"));
        expected.insert(format!("0 k:{i} value"));
        expected.insert(format!("0 extra:{i} extra"));
    }
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state.json");
    let state_arg = state.display().to_string();
    let more = ["--resume", &state_arg, "--lag-max", "300ms", "--rate", "8000"];
    let mut told_so_far = BTreeSet::new();
    let mut walked = 0;
    // Killed twice without warning, once asked to stop.
    for signal in ["KILL", "TERM", "KILL"] {
        let mut running = start(verify_command(source.port(), target.port(), &more));
        let position = || -> u64 {
            let text = std::fs::read(&state).unwrap_or_default();
            let saved: Value = serde_json::from_slice(&text).unwrap_or_default();
            saved["counts"]["keys_walked"].as_u64().unwrap_or(0)
        };
        let begun = Instant::now();
        while running.is_running() && position() < walked + 3000 {
            assert!(begun.elapsed() < Duration::from_secs(100), "no progress in the state file");
            std::thread::sleep(Duration::from_millis(10));
        }
        running.signal(signal);
        let run = finish(running);
        assert!(run.code() == -1 || run.code() == 130, "{signal}: {}", run.stderr);
        walked = position();
        // A line may be cut by the kill; the summary is none of a key.
        let lines = run.stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let lines: Vec<Value> = lines.filter(|line| line["key"].is_string()).collect();
        told_so_far.extend(found(&lines));
    }
    assert!(walked >= 9000, "{walked}");
    // For another comparison it is of no use.
    let (run, ..) = verify(&source, &target, &["--resume", &state_arg, "--mode", "sample"]);
    assert_eq!(run.code(), 3, "{}", run.stderr);
    assert!(run.stderr.contains("its mode is full"), "{}", run.stderr);

    let (run, lines, summary) = verify(&source, &target, &more);
    assert_eq!(run.code(), 10, "{}", run.stderr);
    assert_eq!(summary["resumed"], true);
    assert_eq!(summary["keys_compared"], 20_000, "each key is compared once: {summary}");
    told_so_far.extend(found(&lines));
    assert_eq!(told_so_far, expected);
    assert!(!state.exists(), "the state is removed at the end");
}

#[test]
fn the_rate_is_kept_and_samples_are_a_part() {
    let (Some(source), Some(target)) = (server(ServerKind::Redis7), server(ServerKind::Redis7)) else { return };
    for server in [&source, &target] {
        let commands: Vec<Args> = (0..4000).map(|i| words(&format!("SET k:{i} {i}"))).collect();
        send(&mut server.client().unwrap(), &commands);
    }
    // Compared at the source, then looked for there: 8000 reads.
    let (run, _, summary) = verify(&source, &target, &["--rate", "4000"]);
    assert_eq!(run.code(), 0, "{}", run.stderr);
    assert!(summary["seconds"].as_f64().unwrap() > 1.7, "{summary}");
    let (_, _, summary) = verify(&source, &target, &["--rate", "100KiB"]);
    let bytes = summary["bytes_from_source"].as_f64().unwrap();
    assert!(summary["seconds"].as_f64().unwrap() > 0.8 * (bytes / 102_400.0 - 0.2), "{summary}");

    let sampled = |size: &str, seed: &str| {
        let more = ["--mode", "sample", "--sample", size, "--sample-seed", seed];
        let (run, _, summary) = verify(&source, &target, &more);
        assert_eq!(run.code(), 0, "{}", run.stderr);
        summary["keys_compared"].as_u64().unwrap()
    };
    assert!((300..500).contains(&sampled("10%", "1")));
    assert!((900..1100).contains(&sampled("1000", "2")));
    run_line(&mut target.client().unwrap(), "DEL k:5 k:6");
    let (run, lines, summary) = verify(&source, &target, &["--mode", "count"]);
    assert_eq!(run.code(), 10, "{}", run.stderr);
    let told: Vec<_> = lines.iter().map(|line| (line["key"].as_str(), line["kind"].as_str())).collect();
    assert_eq!(told.len(), 2, "{lines:?}");
    assert!(
        told.contains(&(Some("k:5"), Some("missing"))) && told.contains(&(Some("k:6"), Some("missing"))),
        "{told:?}"
    );
    assert_eq!(summary["databases_by_name"], 1);
}

#[test]
fn a_repair_beside_a_job_is_refused() {
    let (Some(source), Some(target)) = (server(ServerKind::Redis7), server(ServerKind::Redis7)) else { return };
    run_line(&mut source.client().unwrap(), "SET k v");
    let mut client = target.client().unwrap();
    let refused = |why: &str| {
        let (run, lines, _) = verify(&source, &target, &["--repair", "copy"]);
        assert_eq!(run.code(), 3, "{}", run.stderr);
        assert!(lines.is_empty() && run.stderr.contains(why), "{}", run.stderr);
    };
    run_line(&mut client, "CLIENT SETNAME df2redis-lane");
    refused("job is connected to the target");
    run_line(&mut client, "CLIENT SETNAME other");
    run_line(&mut client, "HSET df2redis:checkpoint master x");
    refused("df2redis:checkpoint");
    run_line(&mut client, "DEL df2redis:checkpoint");
    // Of a job that shares the target with others.
    run_line(&mut client, "HSET df2redis:checkpoint:0123456789abcdef master x");
    refused("one with a tag behind it");
    run_line(&mut client, "DEL df2redis:checkpoint:0123456789abcdef");
    // What only the target has stays, unless it is to mirror the source.
    run_line(&mut client, "SET extra v");
    let (run, lines, _) = verify(&source, &target, &["--repair", "copy", "--lag-max", "200ms"]);
    assert_eq!(run.code(), 10, "{}", run.stderr);
    assert_eq!(found(&lines), BTreeSet::from(["0 k value".replace("value", "missing"), "0 extra extra".into()]));
    assert_eq!(client.run("GET k").unwrap().text().unwrap(), "v");
    let (run, ..) = verify(&source, &target, &["--repair", "mirror", "--lag-max", "200ms"]);
    assert_eq!(run.code(), 0, "{}", run.stderr);
    assert_eq!(client.run("EXISTS extra").unwrap(), Reply::Int(0));
}

#[test]
fn a_server_that_is_not_there_has_its_class() {
    let Some(target) = server(ServerKind::Redis7) else { return };
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let run = finish(start(verify_command(free, target.port(), &[])));
    assert_eq!(run.code(), 4, "{}", run.stderr);
    let run = finish(start(verify_command(target.port(), free, &[])));
    assert_eq!(run.code(), 5, "{}", run.stderr);
}

/// README.md, "Permissions".
#[test]
fn reading_is_all_that_is_needed() {
    let (Some(source), Some(target)) = (server(ServerKind::Redis7), server(ServerKind::Redis7)) else { return };
    for server in [&source, &target] {
        let mut client = server.client().unwrap();
        send(&mut client, &everything(false));
        run_line(&mut client, "ACL SETUSER df2redis on >secret ~* +@read +info +select");
    }
    run_line(&mut target.client().unwrap(), "SET s:1 x");
    let mut command = verify_command(source.port(), target.port(), &["--lag-max", "200ms"]);
    for side in ["SOURCE", "TARGET"] {
        command.env(format!("DF2REDIS_{side}_USER"), "df2redis").env(format!("DF2REDIS_{side}_PASSWORD"), "secret");
    }
    let run = finish(start(command));
    assert_eq!(run.code(), 10, "{}", run.stderr);
    assert_eq!(found(&told(&run).0), BTreeSet::from(["0 s:1 value".to_string()]));
    assert!(!run.stdout.contains("secret") && !run.stderr.contains("secret"));

    let mut command = verify_command(source.port(), target.port(), &[]);
    command.env("DF2REDIS_SOURCE_USER", "df2redis").env("DF2REDIS_SOURCE_PASSWORD", "wrong");
    let run = finish(start(command));
    assert_eq!(run.code(), 4, "{}", run.stderr);
    assert!(run.stderr.contains("check user and password"), "{}", run.stderr);
}

/// Those of the tool at the target are no keys of the source, and those that a source has are never carried.
#[test]
fn keys_with_the_tools_own_names_are_not_compared() {
    let (Some(source), Some(target)) = (server(ServerKind::Redis7), server(ServerKind::Redis7)) else { return };
    let (mut from, mut to) = (source.client().unwrap(), target.client().unwrap());
    for line in ["SET a 1", "SET df2redis:lease x", "HSET df2redis:checkpoint lsn:0 7", "SET df2redis:m:{x}:0 j:3"] {
        run_line(&mut from, line);
    }
    run_line(&mut to, "SET a 1");
    run_line(&mut to, "HSET df2redis:checkpoint lsn:0 9");
    for mode in ["full", "count"] {
        let run = start(verify_command(source.port(), target.port(), &["--mode", mode])).wait();
        run.expect_code(0);
    }
    run_line(&mut to, "SET a 2");
    start(verify_command(source.port(), target.port(), &[])).wait().expect_code(10);
}
