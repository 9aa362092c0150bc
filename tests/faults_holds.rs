//! A target that refuses for a while, for every reason that it can have: the tool holds, tries again, and ends at the truth;
//! nothing is skipped, nothing is applied twice, nothing behind a refused command comes before it.

mod common;

use common::job::status;
use common::refusals::{REFUSALS, To};
use common::*;
use df2redis::lab::client::Client;
use df2redis::lab::encode;
use df2redis::lab::flow::Faults;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::script::{ErrorRule, ScriptOptions, ScriptedTarget};
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::{Tool, compare, is_stable, wait_for};
use std::time::{Duration, Instant};

/// Strings, long lists in chunks, counters and logs in journal blobs. Returns what must be there in the end.
fn source() -> (FlowBytes, Contents) {
    let (mut flow, mut truth) = (FlowBytes::new(), Contents::new());
    let mut put = |db: u32, key: &str, kind: &str, values: Vec<Vec<u8>>| {
        truth.insert((db, key.as_bytes().to_vec()), (kind.to_owned(), values));
    };
    for round in 0..8u32 {
        let db = [0, 3, 0, 5][round as usize % 4];
        flow.db(db);
        for i in 0..100 {
            let (key, value) = (format!("s:{round}:{i}"), noise(i + 1, 600));
            flow.string(key.as_bytes(), &value);
            put(db, &key, "string", vec![value]);
        }
        let (key, elements) = (format!("l:{round}"), texts("e", 3000));
        flow.list(key.as_bytes(), &elements, 100);
        put(db, &key, "list", elements);
        let (counter, log) = (format!("n:{round}"), format!("a:{round}"));
        let mut text = Vec::new();
        for i in 0..20 {
            flow.journal(db, &["INCR", &counter]).journal(db, &["APPEND", &log, &format!("<{i}>")]);
            text.extend_from_slice(format!("<{i}>").as_bytes());
        }
        put(db, &counter, "string", vec![b"20".to_vec()]);
        put(db, &log, "string", vec![text]);
    }
    (flow, truth)
}

const SMALL: &[&str] = &["--restore-bytes-max", "1KiB", "--batch-bytes", "8KiB", "--window-bytes", "64KiB"];

#[track_caller]
fn assert_truth(server: &Server, truth: &Contents) {
    let found = contents(&mut server.client().unwrap());
    let wrong: Vec<String> = truth
        .iter()
        .filter(|(place, value)| found.get(*place) != Some(*value))
        .map(|((db, key), _)| format!("{db}/{}", String::from_utf8_lossy(key)))
        .collect();
    assert!(wrong.is_empty(), "wrong or missing: {wrong:?}");
    assert_eq!(found.len(), truth.len());
}

/// The server refuses, in the middle of a load, with this word, what `refuse` sets, and takes it again after `restore`.
fn refused_for_a_while(code: &str, refuse: &[&[&str]], restore: &[&[&str]], more: &[&str]) {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let (flow, truth) = source();
    let master = Hand::new(vec![flow]).faulty(Faults::default().slow(400_000));
    let mut args = SMALL.to_vec();
    args.extend_from_slice(more);
    let mut running = start(migrate_command(master.port(), server.port(), &args));
    let mut client = server.client().unwrap();
    wait_for_keys(&mut client, 50);
    refuse.iter().for_each(|line| drop(client.ask(line).unwrap()));
    let met = wait_for(|| (!running.is_running() || server.errors_of(code).unwrap() > 0).then_some(()));
    assert!(met.is_some(), "nothing was refused by {code}");
    std::thread::sleep(Duration::from_millis(1500));
    assert!(running.is_running(), "it gave up at once");
    restore.iter().for_each(|line| drop(client.ask(line).unwrap()));
    let run = running.wait();
    run.expect_code(0);
    let counters = &run.report["counters"];
    assert!(counters["holds"].as_u64().unwrap() > 0, "{}", run.stdout);
    assert!(counters["held_ms"].as_u64().unwrap() >= 1000, "{}", run.stdout);
    assert_truth(&server, &truth);
}

fn wait_for_keys(client: &mut Client, count: i64) {
    let until = Instant::now() + Duration::from_secs(40);
    while client.run("DBSIZE").unwrap().int().unwrap() < count {
        assert!(Instant::now() < until, "nothing is loaded");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn out_of_memory_holds_until_memory_frees() {
    refused_for_a_while("OOM", &[&["CONFIG", "SET", "maxmemory", "1mb"]], &[&["CONFIG", "SET", "maxmemory", "0"]], &[]);
}

#[test]
fn a_server_without_enough_replicas_is_waited_for() {
    refused_for_a_while(
        "NOREPLICAS",
        &[&["CONFIG", "SET", "min-replicas-to-write", "1"]],
        &[&["CONFIG", "SET", "min-replicas-to-write", "0"]],
        &[],
    );
}

#[test]
fn a_read_only_server_is_waited_for() {
    refused_for_a_while("READONLY", &[&["REPLICAOF", "127.0.0.1", "1"]], &[&["REPLICAOF", "NO", "ONE"]], &[]);
}

#[test]
fn access_taken_away_and_given_back() {
    refused_for_a_while(
        "NOPERM",
        &[&["ACL", "SETUSER", "default", "-set", "-rpush", "-append"]],
        &[&["ACL", "SETUSER", "default", "+@all"]],
        &[],
    );
}

/// In the middle of what is under way without transactions: so many refusals, then the right answers; what was refused comes again,
/// in order. (One command alone is refused in `refusals`.)
#[test]
fn refusals_of_a_scripted_target_are_sent_again_in_order() {
    for reply in REFUSALS.iter().filter(|of| of.to != To::Login).map(|of| of.answer("SET")) {
        let mut flow = FlowBytes::new();
        (0..40).for_each(|i| _ = flow.string(format!("k{i:02}").as_bytes(), b"v"));
        let rule = ErrorRule { command: "SET".into(), key: None, reply: reply.clone(), after: 7, times: 60 };
        let target = ScriptedTarget::start(ScriptOptions { errors: vec![rule], ..Default::default() }).unwrap();
        let master = Hand::new(vec![flow]).start();
        let run = migrate(master.port(), target.port(), &["--retry-max", "30s"]);
        assert_eq!(run.code(), 0, "{reply}: {}", run.message());
        let sent: Vec<Vec<u8>> = target.received_of("SET").into_iter().map(|request| request[1].clone()).collect();
        // The last time that each key was sent, all stand in their order.
        let last = |key: &Vec<u8>| sent.iter().rposition(|other| other == key).unwrap();
        let keys: Vec<Vec<u8>> = (0..40).map(|i| format!("k{i:02}").into_bytes()).collect();
        assert!(keys.windows(2).all(|pair| last(&pair[0]) < last(&pair[1])), "{reply}");
        assert!(sent.iter().filter(|key| **key == keys[0]).count() == 1, "{reply}: what was executed came again");
    }
}

/// The control plane's own write waits, too.
#[test]
fn a_checkpoint_that_cannot_be_called_good_yet_is_tried_again() {
    let reply = "-OOM command not allowed when used memory > 'maxmemory'.";
    // After the one that begins it, and that of the flow's first position.
    let key = Some(b"df2redis:checkpoint".to_vec());
    let rule = ErrorRule { command: "HSET".into(), key, reply: reply.into(), after: 2, times: 2 };
    let target = ScriptedTarget::start(ScriptOptions { errors: vec![rule], ..Default::default() }).unwrap();
    let mut flow = FlowBytes::new();
    flow.string(b"first", b"v");
    let master = Hand::new(vec![flow]).start();
    let (source, target_url) =
        (format!("dragonfly://127.0.0.1:{}", master.port()), format!("redis://127.0.0.1:{}", target.port()));
    let mut command = program(&["replicate", "--source", &source, "--target", &target_url, "--output", "json"]);
    command.args(["--memory", "128MiB", "--progress", "off"]);
    let mut running = start(command);
    let is_mark = |set: &Vec<Vec<u8>>| set.contains(&b"stable".to_vec());
    let until = Instant::now() + Duration::from_secs(120);
    while target.received_of("HSET").iter().filter(|set| is_mark(set)).count() < 3 {
        assert!(Instant::now() < until && running.is_running(), "{:?}", target.received_of("HSET"));
        std::thread::sleep(Duration::from_millis(10));
    }
    running.signal("INT");
    running.wait().expect_code(130);
}

/// In the stable journal a batch is one transaction: what is refused in it leaves no part of it behind, and no position.
#[test]
fn the_stable_journal_holds_and_goes_on() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut flow = FlowBytes::new();
    flow.string(b"first", b"v");
    for i in 0..3000 {
        encode::journal_command(&mut flow.stable, 0, 0, &[b"RPUSH".as_slice(), b"q", i.to_string().as_bytes()]);
        encode::journal_command(&mut flow.stable, 0, 0, &[b"SET".as_slice(), b"last", i.to_string().as_bytes()]);
        encode::journal_command(&mut flow.stable, 0, 0, &[b"INCR".as_slice(), b"n"]);
    }
    let total = flow.stable.len() as u64;
    let master = Hand::new(vec![flow]).faulty(Faults::default().slow(total / 4));
    let (source, target) =
        (format!("dragonfly://127.0.0.1:{}", master.port()), format!("redis://127.0.0.1:{}", server.port()));
    let mut command = program(&["replicate", "--source", &source, "--target", &target, "--output", "json"]);
    command.args(["--memory", "128MiB", "--progress", "off", "--batch-bytes", "4KiB", "--window-bytes", "64KiB"]);
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("job.sock");
    command.arg("--control").arg(&socket);
    let mut running = start(command);
    let mut client = server.client().unwrap();
    for _ in 0..3 {
        let from = client.run("LLEN q").unwrap().int().unwrap_or(0);
        let until = Instant::now() + Duration::from_secs(40);
        while client.run("LLEN q").unwrap().int().unwrap_or(0) <= from {
            assert!(Instant::now() < until, "the journal is not applied");
            std::thread::sleep(Duration::from_millis(10));
        }
        client.run("CONFIG SET maxmemory 1mb").unwrap();
        let told = wait_for(|| {
            let status = status(&socket);
            (!running.is_running() || status["flows"][0]["state"] == "held by the target").then_some(status)
        });
        let reasons = told.unwrap_or_default()["throttle"]["reasons"].to_string();
        assert!(reasons.contains("OOM"), "status does not say what holds: {reasons}");
        std::thread::sleep(Duration::from_millis(400));
        if !running.is_running() {
            panic!("it gave up: {}", running.wait().stderr);
        }
        client.run("CONFIG SET maxmemory 0").unwrap();
    }
    let until = Instant::now() + Duration::from_secs(40);
    while client.run("GET n").unwrap().text().unwrap_or_default() != "3000" {
        assert!(Instant::now() < until && running.is_running(), "{:?}", client.run("GET n"));
        std::thread::sleep(Duration::from_millis(20));
    }
    running.signal("INT");
    let run = running.wait();
    run.expect_code(130);
    let counters = &run.report["counters"];
    assert!(counters["holds"].as_u64().unwrap() > 0 && counters["held_ms"].as_u64().unwrap() >= 1000, "{counters}");
    let list: Vec<String> = (0..3000).map(|i| i.to_string()).collect();
    let found = client.run("LRANGE q 0 -1").unwrap();
    let found: Vec<String> = found.array().unwrap().iter().map(|item| item.text().unwrap()).collect();
    assert_eq!(found, list);
}

/// Makes the server hold this much in a database, and leaves it no room for more.
fn fill(server: &Server, db: u32) {
    let mut client = server.client().unwrap();
    client.run(&format!("SELECT {db}")).unwrap();
    client.run("CONFIG SET maxmemory 0").unwrap();
    client.ask(&[b"SET".as_slice(), b"filler", &vec![b'x'; 32 << 20]]).unwrap();
    client.run("CONFIG SET maxmemory 16mb").unwrap();
    assert!(client.run("SET more v").is_err(), "it has room");
}

/// Nothing can be written before what takes the room is deleted, not even the lease.
#[test]
fn a_full_target_is_emptied_before_the_start() {
    for kind in [ServerKind::Redis6, ServerKind::Redis7, ServerKind::Valkey9] {
        let Some(server) = server(kind) else { continue };
        let mut flow = FlowBytes::new();
        flow.string(b"k", b"v");
        let master = Hand::new(vec![flow]).start();
        fill(&server, 0);
        migrate(master.port(), server.port(), &["--on-existing", "flush", "--retry-max", "10s"]).expect_code(0);
        let truth = Contents::from([((0, b"k".to_vec()), ("string".to_owned(), vec![b"v".to_vec()]))]);
        assert_truth(&server, &truth);
        // What another job holds is not emptied for want of room.
        let mut client = server.client().unwrap();
        client.run("SET df2redis:lease another's").unwrap();
        fill(&server, 0);
        let run = migrate(master.port(), server.port(), &["--on-existing", "flush", "--retry-max", "1s"]);
        run.expect_code(5).expect_text("OOM");
        assert_eq!(client.run("EXISTS filler k df2redis:lease").unwrap().int(), Some(3));
    }
}

/// A full server refuses to queue a FLUSHALL in a transaction.
#[test]
fn a_full_target_is_emptied_as_the_source_is() {
    for kind in [ServerKind::Redis6, ServerKind::Redis7, ServerKind::Valkey9] {
        let Some(server) = server(kind) else { continue };
        let spec = Spec { flows_count: 2, ..Spec::of("string:60B=20").unwrap() };
        let live = Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap();
        let say = |db: u32, line: &str| {
            live.world().run(db, &line.split(' ').map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>());
        };
        let args = ["--control", "off", "--retry-max", "10s"];
        let log = server.dir().join("tool.log");
        let mut tool = Tool::start(job::binary(), live.port(), server.port(), &log, &args).unwrap();
        job::until(&mut tool, "stable", || is_stable(&server));
        let mut client = server.client().unwrap();
        say(5, "SET other v");
        for (db, line) in [(5, "FLUSHDB"), (0, "FLUSHALL")] {
            fill(&server, db);
            say(db, line);
            job::until(&mut tool, line, || live.is_acknowledged());
            assert_eq!(client.run("EXISTS df2redis:lease df2redis:checkpoint").unwrap().int(), Some(2), "{line}");
        }
        say(0, "SET last v");
        job::until(&mut tool, "not applied", || live.is_acknowledged());
        job::stop(&mut tool);
        let truth = server.dir().join("truth.jsonl");
        live.write_truth(&truth).unwrap();
        compare(&server, kind, &truth).unwrap_or_else(|why| panic!("{kind:?}: {why}\n{}", tool.said()));
    }
}

#[test]
fn maxclients_and_a_loading_server_at_the_start_are_waited_for() {
    let options = ServerOptions::default().config("maxclients", "2");
    let Some(server) = server_with(ServerKind::Redis7, options) else { return };
    let mut flow = FlowBytes::new();
    flow.string(b"k", b"v");
    let master = Hand::new(vec![flow]).start();
    let mut client = server.client().unwrap();
    let second = server.client().unwrap();
    let mut running = start(migrate_command(master.port(), server.port(), &[]));
    std::thread::sleep(Duration::from_millis(700));
    assert!(running.is_running(), "it gave up at once");
    client.run("CONFIG SET maxclients 100").unwrap();
    drop(second);
    running.wait().expect_code(0);
    assert_eq!(client.run("GET k").unwrap().text().unwrap(), "v");
}

/// There is room for the connections that look at the target, and not for those of the workers.
#[test]
fn maxclients_is_waited_for_when_the_workers_connect() {
    for (job, places, password) in [("migrate", 2, false), ("migrate", 2, true), ("replicate", 3, false)] {
        let options = ServerOptions::default().config("maxclients", &places.to_string());
        let Some(server) = server_with(ServerKind::Redis7, options) else { return };
        let mut client = server.client().unwrap();
        client.run("ACL SETUSER mover on >secret ~* +@all").unwrap();
        let flow = |key: &str| FlowBytes::new().string(key.as_bytes(), b"v").clone();
        let master = Hand::new(vec![flow("a"), flow("b")]).start();
        let (source, target) =
            (format!("dragonfly://127.0.0.1:{}", master.port()), format!("redis://127.0.0.1:{}", server.port()));
        let mut command = program(&[job, "--source", &source, "--target", &target, "--output", "json"]);
        command.args(["--memory", "128MiB", "--progress", "off", "--cores", "1", "--connections", "2"]);
        if password {
            command.env("DF2REDIS_TARGET_USER", "mover").env("DF2REDIS_TARGET_PASSWORD", "secret");
        }
        let mut running = start(command);
        let mut rejected = || client.info("rejected_connections").unwrap().unwrap().parse::<u64>().unwrap();
        let met = wait_for(|| (!running.is_running() || rejected() >= 3).then_some(()));
        assert!(met.is_some(), "{job}: nothing was refused");
        client.run("CONFIG SET maxclients 100").unwrap();
        if job == "replicate" {
            let stable = wait_for(|| (!running.is_running() || is_stable(&server)).then_some(()));
            assert!(stable.is_some(), "it does not follow");
            running.signal("INT");
        }
        running.wait().expect_code(if job == "replicate" { 130 } else { 0 });
        assert_eq!(client.run("EXISTS a b").unwrap().int(), Some(2), "{job}");
    }
}
