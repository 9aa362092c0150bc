//! The least permissions that `migrate` needs at the target, as README.md lists them: with them everything works, and
//! without any single one something does not. The target is a real redis-server; the source is simulated.

#[path = "common/grants.rs"]
mod grants;

use df2redis::lab::LabError;
use df2redis::lab::cluster::Cluster;
use df2redis::lab::flow::Faults;
use df2redis::lab::generate::{Generator, Spec, verify::verify};
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::recordings::recording;
use df2redis::lab::replay::Replay;
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::{compare, tool_binary};
use grants::*;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

#[test]
fn readme_lists_the_same() {
    let readme = include_str!("../README.md");
    assert!(readme.contains(TARGET_ACL) && readme.contains(TARGET_ACL_FLUSH) && readme.contains(TARGET_ACL_SKIP));
    assert!(
        readme.contains(TARGET_ACL_WAIT)
            && readme.contains(TARGET_ACL_REPLICATE)
            && readme.contains(TARGET_ACL_CLUSTER)
    );
    assert!(readme.contains(TARGET_ACL_HOLD) && readme.contains(TARGET_ACL_CLAIM));
}

fn spec() -> Spec {
    Spec {
        flows_count: 2,
        chunk_bytes: 700,
        databases: vec![0, 5],
        expire_fraction: 0.2,
        journal_ratio: 0.5,
        omitted_deletes_count: 2,
        ..Spec::of(
            "string:100B=200,string:9MiB=1,int=30,list:5x8=10,list:50000x20=1,set:200x9=5,set:20000x20=1,intset:50x1000=5,\
             hash:5x8=20,hash:20000x30=1,zset:5x8=10,zset:20000x12=1,stream:250x6=6,stream:0x0=1",
        )
        .unwrap()
    }
}

fn start(source_port: u16, server: &Server, more: &[&str]) -> Child {
    start_job("migrate", source_port, server, more)
}

fn start_job(job: &str, source_port: u16, server: &Server, more: &[&str]) -> Child {
    start_at(job, source_port, server.port(), more)
}

fn start_at(job: &str, source_port: u16, target_port: u16, more: &[&str]) -> Child {
    Command::new(tool_binary(env!("CARGO_BIN_EXE_df2redis")))
        .args([job, "--source", &format!("dragonfly://127.0.0.1:{source_port}")])
        .args(["--target", &format!("redis://127.0.0.1:{target_port}"), "--memory", "64MiB", "--cores", "1"])
        .args(["--output", "json", "--retry-max", "10s"])
        .args(more)
        .env("DF2REDIS_TARGET_USER", "df2redis")
        .env("DF2REDIS_TARGET_PASSWORD", "secret")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Migrates once; the target is emptied before.
fn migrate(server: &Server, more: &[&str]) -> Output {
    server.client().unwrap().run("FLUSHALL").unwrap();
    let (master, _) = Generator::start(spec(), MasterOptions::default()).unwrap();
    start(master.port(), server, more).wait_with_output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn server() -> Option<Server> {
    server_of(ServerKind::Redis7)
}

fn server_of(kind: ServerKind) -> Option<Server> {
    match Server::start_kind(kind, ServerOptions::default()) {
        Err(error @ LabError::NoServer { .. }) => {
            eprintln!("skipped: {error}");
            None
        }
        server => Some(server.unwrap()),
    }
}

#[test]
fn the_listed_permissions_suffice_and_each_is_needed() {
    let Some(server) = server() else { return };
    let mut admin = server.client().unwrap();
    admin.run(TARGET_ACL).unwrap();
    let (master, model) = Generator::start(spec(), MasterOptions::default()).unwrap();
    let output = start(master.port(), &server, &[]).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let verdict = verify(&spec(), &model, &mut server.client().unwrap(), u64::MAX).unwrap();
    assert!(verdict.is_same(), "{verdict:?}");

    // Client connections are only looked after when one is lost, and scripts only where the source has some.
    for grant in ["+@write", "+restore", "+select", "+info", "+command|list", "+multi", "+exec"] {
        admin.run(TARGET_ACL).unwrap();
        admin.run(&format!("ACL SETUSER df2redis -{}", &grant[1..])).unwrap();
        let output = migrate(&server, &[]);
        assert_eq!(output.status.code(), Some(5), "without {grant}: {}", stderr(&output));
        assert!(stderr(&output).contains("NOPERM"), "without {grant}: {}", stderr(&output));
    }
}

#[test]
fn other_ways_with_existing_keys_need_one_more() {
    let Some(server) = server() else { return };
    let mut admin = server.client().unwrap();
    for (setting, grant) in [("flush", TARGET_ACL_FLUSH), ("skip", TARGET_ACL_SKIP)] {
        let run = |admin: &mut df2redis::lab::client::Client| {
            admin.run("FLUSHALL").unwrap();
            admin.run("SET mine 1").unwrap();
            let (master, _) = Generator::start(spec(), MasterOptions::default()).unwrap();
            start(master.port(), &server, &["--on-existing", setting]).wait_with_output().unwrap()
        };
        admin.run("ACL DELUSER df2redis").unwrap();
        admin.run(TARGET_ACL).unwrap();
        let output = run(&mut admin);
        assert_eq!(output.status.code(), Some(5), "{setting}: {}", stderr(&output));
        admin.run(grant).unwrap();
        let output = run(&mut admin);
        assert_eq!(output.status.code(), Some(0), "{setting}: {}", stderr(&output));
    }
}

/// The recorded journal holds every kind of write command.
#[test]
fn the_listed_permissions_suffice_to_follow_a_journal() {
    let Some(server) = server() else { return };
    let mut admin = server.client().unwrap();
    admin.run(TARGET_ACL).unwrap();
    admin.run(TARGET_ACL_REPLICATE).unwrap();
    for name in ["follow-lz4", "follow-flushall"] {
        admin.run("FLUSHALL").unwrap();
        let recording = recording(name).unwrap();
        let wanted: Vec<_> = recording.meta.replica_offset_at_end.iter().copied().map(Some).collect();
        let master = Replay::start(recording, MasterOptions::default()).unwrap();
        let mut child = start_job("replicate", master.port(), &server, &["--on-unsupported", "skip"]);
        let until = Instant::now() + Duration::from_secs(30);
        while master.acks() != wanted && Instant::now() < until && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(20));
        }
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{name}: {}", stderr(&output));
        assert_eq!(master.acks(), wanted, "{name}: {}", stderr(&output));
    }
}

/// Without some it does not begin, others are missed, and held for as long as it is waited, where there is something to do with them.
#[test]
fn each_permission_to_follow_a_journal_is_needed() {
    let Some(server) = server() else { return };
    let mut admin = server.client().unwrap();
    for (missing, record) in [
        ("client|setname", None),
        ("client|list", None),
        // Either is enough for a checkpoint that is not very long.
        ("hgetall -hscan", None),
        ("flushall", Some("FLUSHALL")),
        ("flushdb", Some("FLUSHDB")),
    ] {
        admin.run("FLUSHALL").unwrap();
        admin.run(TARGET_ACL).unwrap();
        admin.run(TARGET_ACL_REPLICATE).unwrap();
        admin.run(&format!("ACL SETUSER df2redis -{missing}")).unwrap();
        let live =
            Live::start(Spec::of("string:60B=20").unwrap(), LiveOptions::default(), MasterOptions::default()).unwrap();
        let mut child = start_at("replicate", live.port(), server.port(), &[]);
        if let Some(record) = record {
            let until = Instant::now() + Duration::from_secs(60);
            while admin.run("HGET df2redis:checkpoint phase").unwrap().text().as_deref() != Some("stable") {
                let ended = child.try_wait().unwrap();
                assert!(Instant::now() < until && ended.is_none(), "without {missing}: it does not follow");
                std::thread::sleep(Duration::from_millis(20));
            }
            say(&live, record);
        }
        let output = end_within(child, Duration::from_secs(100));
        assert_eq!(output.status.code(), Some(5), "without {missing}: {}", stderr(&output));
        let said = stderr(&output);
        let (command, _) = missing.split_once(['|', ' ']).unwrap_or((missing, ""));
        assert!(said.contains("NOPERM") && said.to_lowercase().contains(command), "without {missing}: {said}");
    }
}

/// One that does not end fails the test.
fn end_within(mut child: Child, time: Duration) -> Output {
    let until = Instant::now() + time;
    while child.try_wait().unwrap().is_none() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().ok();
    child.wait_with_output().unwrap()
}

/// What only records over several slots need.
#[test]
fn each_permission_for_records_over_several_slots_is_needed() {
    let Some(cluster) = cluster(&[]) else { return };
    for (missing, record) in [
        ("dump", Some("RENAME from to")),
        ("lindex", Some("LMOVE list other LEFT RIGHT")),
        ("pttl", Some("LMPOP 2 nothing list LEFT")),
        ("mget", None),
    ] {
        cluster.nodes.iter().for_each(|node| drop(node.client().unwrap().run("FLUSHALL").unwrap()));
        let without = format!("ACL SETUSER df2redis -{missing}");
        grant(&cluster, &[TARGET_ACL, TARGET_ACL_REPLICATE, TARGET_ACL_CLUSTER, &without]);
        let live = Live::start(
            Spec { flows_count: 1, ..Spec::of("string:60B=20").unwrap() },
            LiveOptions::default(),
            MasterOptions::default(),
        )
        .unwrap();
        say(&live, "SET from v");
        say(&live, "RPUSH list a b");
        let mut child = start_at("replicate", live.port(), cluster.port(), &[]);
        let is_stable = |node: &Server| {
            let phase = node.client().unwrap().ask(&["HGET", "df2redis:checkpoint", "phase"]).unwrap();
            phase.text().as_deref() == Some("stable")
        };
        let until = Instant::now() + Duration::from_secs(60);
        while !cluster.nodes.iter().any(is_stable) {
            let ended = child.try_wait().unwrap();
            assert!(Instant::now() < until && ended.is_none(), "without {missing}: it does not follow");
            std::thread::sleep(Duration::from_millis(20));
        }
        match record {
            Some(record) => say(&live, record),
            // The next one reads the markers.
            None => {
                child.kill().unwrap();
                child.wait().unwrap();
                child = start_at("replicate", live.port(), cluster.port(), &[]);
            }
        }
        let output = end_within(child, Duration::from_secs(100));
        assert_eq!(output.status.code(), Some(5), "without {missing}: {}", stderr(&output));
        let said = stderr(&output);
        assert!(said.contains("NOPERM") && said.to_lowercase().contains(missing), "without {missing}: {said}");
    }
}

/// Of a server, and of one node of a cluster.
#[test]
fn waiting_for_replicas_needs_one_more() {
    let Some(server) = server() else { return };
    let Some(replica) = self::server() else { return };
    let (mut admin, mut follower) = (server.client().unwrap(), replica.client().unwrap());
    follower.run(&format!("REPLICAOF 127.0.0.1 {}", server.port())).unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while !admin.info("slave0").unwrap().is_some_and(|fields| fields.contains("state=online")) {
        assert!(Instant::now() < until, "the replica is not in step");
        std::thread::sleep(Duration::from_millis(20));
    }
    admin.run(TARGET_ACL).unwrap();
    let output = migrate(&server, &["--wait-replicas", "1"]);
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    assert!(stderr(&output).contains("NOPERM") && stderr(&output).contains("wait"), "{}", stderr(&output));
    assert_eq!(admin.run("DBSIZE").unwrap().int(), Some(0));
    admin.run(TARGET_ACL_WAIT).unwrap();
    let output = migrate(&server, &["--wait-replicas", "1"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(follower.run("DBSIZE").unwrap().int(), admin.run("DBSIZE").unwrap().int());

    let Some(cluster) = cluster(&[TARGET_ACL, TARGET_ACL_CLUSTER, TARGET_ACL_WAIT]) else { return };
    cluster.nodes[2].client().unwrap().run("ACL SETUSER df2redis -wait").unwrap();
    let (master, _) = Generator::start(Spec { databases: vec![0], ..spec() }, MasterOptions::default()).unwrap();
    let run = |count: &str| {
        let waits = ["--wait-replicas", count];
        start_at("migrate", master.port(), cluster.port(), &waits).wait_with_output().unwrap()
    };
    // It has no replicas either, which is said of the nodes in front of that one.
    let output = run("1");
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    cluster.nodes[..2].iter().for_each(|node| drop(node.client().unwrap().run("ACL SETUSER df2redis -wait").unwrap()));
    let output = run("1");
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    assert!(stderr(&output).contains("NOPERM"), "{}", stderr(&output));
}

/// After a lost connection: what it may still hold must never be executed, so its end has to be sure.
#[test]
fn going_on_after_a_lost_connection_needs_client_kill() {
    let Some(server) = server() else { return };
    for (missing, code) in [(None, 0), (Some("client|kill"), 5), (Some("client|id"), 5), (Some("get"), 5)] {
        let mut admin = server.client().unwrap();
        admin.run("FLUSHALL").unwrap();
        admin.run("ACL DELUSER df2redis").unwrap();
        admin.run(TARGET_ACL).unwrap();
        if let Some(name) = missing {
            admin.run(&format!("ACL SETUSER df2redis -{name}")).unwrap();
        }
        let options = MasterOptions { faults: Faults::default().slow(4 << 20), ..MasterOptions::default() };
        let (master, model) = Generator::start(spec(), options).unwrap();
        let child = start(master.port(), &server, &["--connections", "1"]);
        let until = Instant::now() + Duration::from_secs(20);
        while admin.run("DBSIZE").unwrap().int() < Some(100) {
            assert!(Instant::now() < until, "nothing is written");
            std::thread::sleep(Duration::from_millis(5));
        }
        let killed = admin.run("CLIENT KILL USER df2redis").unwrap().int();
        assert!(killed > Some(0));
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "without {missing:?}: {}", stderr(&output));
        match missing {
            None => {
                let verdict = verify(&spec(), &model, &mut server.client().unwrap(), u64::MAX).unwrap();
                assert!(verdict.is_same(), "{verdict:?}");
            }
            Some(_) => assert!(stderr(&output).contains("permission") || stderr(&output).contains("NOPERM")),
        }
    }
}

/// With them a script adds as the source does; without, the target adds by itself.
#[test]
fn sums_of_floats_need_eval_and_hget() {
    for (missing, sum) in [(None, "0.30000000000000004"), (Some("hget"), "0.3"), (Some("eval"), "0.3")] {
        // Its own: what a killed job had sent may still arrive.
        let Some(server) = server() else { return };
        let mut admin = server.client().unwrap();
        for line in [TARGET_ACL, TARGET_ACL_REPLICATE] {
            admin.run(line).unwrap();
        }
        if let Some(name) = missing {
            admin.run(&format!("ACL SETUSER df2redis -{name}")).unwrap();
        }
        // One flow: its records are applied in their order, the last one last.
        let spec = Spec { flows_count: 1, ..Spec::of("string:1B=1").unwrap() };
        let live = Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap();
        let words = |line: &str| line.split(' ').map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>();
        live.world().run(0, &words("SET begin v"));
        let mut child = start_job("replicate", live.port(), &server, &[]);
        let until = Instant::now() + Duration::from_secs(60);
        // The full sync runs, so what is new from here on comes as records, not as values.
        while admin.run("EXISTS begin").unwrap().int() != Some(1) {
            assert!(
                Instant::now() < until && child.try_wait().unwrap().is_none(),
                "without {missing:?}: it does not follow"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        for line in ["INCRBYFLOAT k 0.1", "HINCRBYFLOAT h f 0.1"].repeat(3).into_iter().chain(["SET end v"]) {
            live.world().run(0, &words(line));
        }
        while admin.run("EXISTS end").unwrap().int() != Some(1) {
            assert!(
                Instant::now() < until && child.try_wait().unwrap().is_none(),
                "without {missing:?}: it does not apply"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        for question in ["GET k", "HGET h f"] {
            assert_eq!(admin.run(question).unwrap().text().as_deref(), Some(sum), "{question} without {missing:?}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// A cluster on each of whose nodes the user has these permissions.
fn cluster(lines: &[&str]) -> Option<Cluster> {
    match Cluster::start_kind(ServerKind::Redis7, 3, false) {
        Err(error @ LabError::NoServer { .. }) => {
            eprintln!("skipped: {error}");
            None
        }
        cluster => {
            let cluster = cluster.unwrap();
            grant(&cluster, lines);
            Some(cluster)
        }
    }
}

fn grant(cluster: &Cluster, lines: &[&str]) {
    for node in &cluster.nodes {
        let mut admin = node.client().unwrap();
        admin.run("ACL DELUSER df2redis").unwrap();
        lines.iter().for_each(|line| drop(admin.run(line).unwrap()));
    }
}

#[test]
fn the_listed_permissions_suffice_for_a_full_sync_into_a_cluster() {
    let Some(cluster) = cluster(&[TARGET_ACL, TARGET_ACL_CLUSTER]) else { return };
    let spec = Spec { databases: vec![0], ..spec() };
    let run = |more: &[&str]| {
        let (master, model) = Generator::start(spec.clone(), MasterOptions::default()).unwrap();
        (start_at("migrate", master.port(), cluster.port(), more).wait_with_output().unwrap(), model)
    };
    let (output, model) = run(&[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let Some(plain) = server() else { return };
    cluster.gather(&plain).unwrap();
    let verdict = verify(&spec, &model, &mut plain.client().unwrap(), u64::MAX).unwrap();
    assert!(verdict.is_same(), "{verdict:?}");
    for (setting, more) in [("flush", TARGET_ACL_FLUSH), ("skip", TARGET_ACL_SKIP)] {
        grant(&cluster, &[TARGET_ACL, TARGET_ACL_CLUSTER, more]);
        let (output, _) = run(&["--on-existing", setting]);
        assert_eq!(output.status.code(), Some(0), "{setting}: {}", stderr(&output));
    }
    // What every full sync into a cluster does; the rest only where slots move or records span them.
    for missing in ["dbsize", "client|setname"] {
        let without = format!("ACL SETUSER df2redis -{missing}");
        grant(&cluster, &[TARGET_ACL, TARGET_ACL_CLUSTER, TARGET_ACL_FLUSH, &without]);
        let (output, _) = run(&["--on-existing", "flush"]);
        assert_eq!(output.status.code(), Some(5), "without {missing}: {}", stderr(&output));
        assert!(stderr(&output).contains(missing), "without {missing}: {}", stderr(&output));
    }
}

/// A journal whose records span slots, a flush, a kill and a restart, slots that move.
#[test]
fn the_listed_permissions_suffice_to_follow_a_journal_into_a_cluster() {
    let Some(cluster) = cluster(&[TARGET_ACL, TARGET_ACL_REPLICATE, TARGET_ACL_CLUSTER]) else { return };
    let spec =
        Spec { flows_count: 2, ..Spec::of("string:60B=50,list:5x8=5,hash:5x8=5,set:20x9=5,zset:5x8=5").unwrap() };
    let live = Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap();
    let say =
        |line: &str| live.world().run(0, &line.split(' ').map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>());
    let has = |key: &str| cluster.keys().unwrap().iter().any(|held| held == key.as_bytes());
    let wait_for = |child: &mut Child, key: &str| {
        let until = Instant::now() + Duration::from_secs(120);
        while !has(key) {
            assert!(Instant::now() < until && child.try_wait().unwrap().is_none(), "{key} does not come");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let records = |round: &str| {
        for i in 0..20 {
            for line in [
                format!("RPUSH list:{i} a b"),
                format!("RPOPLPUSH list:{i} other:{i}"),
                format!("LMOVE list:{i} other:{i} LEFT RIGHT"),
                format!("SET text:{i} v PX 10000000"),
                format!("APPEND text:{i} w"),
                format!("RENAME text:{i} renamed:{i}"),
                format!("MSET m:{i} 1 n:{i} 2 o:{i} 3"),
                format!("INCRBYFLOAT float:{i} 0.1"),
                format!("SADD set:{i} 1 2 3"),
                format!("DEL m:{i} n:{i} nothing:{i}"),
                format!("SINTERSTORE inter:{i} set:{i} set:{i}"),
            ] {
                say(&line);
            }
        }
        say(&format!("SET {round} 1"));
    };
    let mut child = start_at("replicate", live.port(), cluster.port(), &[]);
    wait_for(&mut child, "df2redis:checkpoint");
    records("first");
    wait_for(&mut child, "first");
    say("FLUSHALL");
    records("flushed");
    wait_for(&mut child, "flushed");
    child.kill().unwrap();
    child.wait().unwrap();
    records("away");
    let mut child = start_at("replicate", live.port(), cluster.port(), &[]);
    wait_for(&mut child, "away");
    // The slots are shared out in thirds.
    let slot = df2redis::redis::slot::slot(b"list:1").0;
    let owner = (0..3).find(|node| usize::from(slot) < 16384 * (node + 1) / 3).unwrap();
    cluster.move_slot(slot, owner, (owner + 1) % 3).unwrap();
    records("moved");
    wait_for(&mut child, "moved");
    let until = Instant::now() + Duration::from_secs(120);
    while !live.is_acknowledged() {
        assert!(Instant::now() < until, "not everything is acknowledged");
        std::thread::sleep(Duration::from_millis(20));
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(!stderr(&output).contains("NOPERM"), "{}", stderr(&output));
    let Some(plain) = server() else { return };
    cluster.gather(&plain).unwrap();
    let truth = plain.dir().join("truth.jsonl");
    live.write_truth(&truth).unwrap();
    compare(&plain, ServerKind::Redis7, &truth).unwrap_or_else(|text| panic!("{text}\n{}", stderr(&output)));
}

/// README.md: beyond what replicating takes, `+scan` and `+get`, and to compare values what `verify` needs.
#[test]
fn the_listed_permissions_suffice_for_a_cutover_into_a_cluster() {
    const READS: &str = "ACL SETUSER df2redis +@read +info +select";
    let Some(cluster) = cluster(&[]) else { return };
    for (compares, more) in [("none", TARGET_ACL_SKIP), ("count", READS), ("sample", READS), ("full", READS)] {
        let flushed = cluster.nodes.iter().map(|node| node.client().unwrap().run("FLUSHALL").unwrap());
        assert_eq!(flushed.count(), 3);
        grant(&cluster, &[TARGET_ACL, TARGET_ACL_REPLICATE, TARGET_ACL_CLUSTER, more]);
        let spec = Spec { flows_count: 2, ..Spec::of("string:60B=50,hash:5x8=20").unwrap() };
        let live = Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("job.sock");
        let socket = socket.to_str().unwrap();
        let mut child = start_at("replicate", live.port(), cluster.port(), &["--control", socket]);
        let ask = |args: &[&str]| {
            let mut asking = Command::new(tool_binary(env!("CARGO_BIN_EXE_df2redis")));
            asking.args(args).args(["--output", "json", "--control", socket]).output().unwrap()
        };
        let until = Instant::now() + Duration::from_secs(120);
        while !String::from_utf8_lossy(&ask(&["status"]).stdout).contains("\"in_step\":true") {
            assert!(Instant::now() < until && child.try_wait().unwrap().is_none(), "{compares}: it is not in step");
            std::thread::sleep(Duration::from_millis(20));
        }
        let done = ask(&["cutover", "--execute", "--budget", "300s", "--verify", compares, "--sample", "100%"]);
        let output = child.wait_with_output().unwrap();
        assert_eq!(done.status.code(), Some(0), "{compares}: {done:?}\n{}", stderr(&output));
        assert_eq!(output.status.code(), Some(0), "{compares}: {}", stderr(&output));
        assert!(!stderr(&output).contains("NOPERM"), "{compares}: {}", stderr(&output));
        let keys = cluster.keys().unwrap();
        assert_eq!(
            (keys.iter().filter(|key| key.starts_with(b"df2redis:")).count(), keys.len()),
            (0, 70),
            "{compares}"
        );
    }
}

/// A live source with keys and fields that expire in ten minutes; one hash has more fields than are asked for at once.
fn expiring(snapshot_bytes_per_s: u64) -> Live {
    let live = Live::start(
        Spec { flows_count: 2, ..Spec::of("string:60B=400,hash:5x8=5").unwrap() },
        LiveOptions { snapshot_bytes_per_s: Some(snapshot_bytes_per_s), ..LiveOptions::default() },
        MasterOptions::default(),
    )
    .unwrap();
    let fields: Vec<String> = (0..600).map(|n| format!("f{n}")).collect();
    let pairs: String = fields.iter().map(|field| format!(" {field} v")).collect();
    say(&live, &format!("HSET large{pairs}"));
    say(&live, &format!("HEXPIRE large 600 FIELDS 600 {}", fields.join(" ")));
    for n in 0..20 {
        say(&live, &format!("HSET small{n} f 1 g 2"));
        say(&live, &format!("HEXPIRE small{n} 600 FIELDS 1 f"));
        say(&live, &format!("SET text{n} v PX 600000"));
    }
    live
}

fn say(live: &Live, line: &str) {
    live.world().run(0, &line.split(' ').map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>());
}

#[track_caller]
fn assert_equal(live: &Live, server: &Server, kind: ServerKind, output: &Output) {
    let truth = server.dir().join("truth.jsonl");
    live.write_truth(&truth).unwrap();
    compare(server, kind, &truth).unwrap_or_else(|text| panic!("{text}\n{}", stderr(output)));
}

/// What a hash that came whole has of near expiries is put right by going through all keys. Without a grant nothing is held at all.
#[test]
fn the_listed_permissions_suffice_to_hold_expiries_of_fields_and_each_is_needed() {
    for kind in [ServerKind::Redis8, ServerKind::Valkey9] {
        let Some(server) = server_of(kind) else { continue };
        let mut admin = server.client().unwrap();
        // PEXPIRETIME tells what PTTL and TIME do elsewhere.
        for missing in
            [None, Some("scan"), Some("hscan"), Some("hkeys"), Some("hlen"), Some("type"), Some("pexpiretime")]
                .into_iter()
                .chain([Some("hpexpiretime")])
        {
            admin.run("FLUSHALL").unwrap();
            admin.run("ACL DELUSER df2redis").unwrap();
            for line in [TARGET_ACL, TARGET_ACL_HOLD, TARGET_ACL_FIELDS] {
                admin.run(line).unwrap();
            }
            if let Some(name) = missing {
                admin.run(&format!("ACL SETUSER df2redis -{name}")).unwrap();
            }
            let live = expiring(60_000);
            let output = start(live.port(), &server, &[]).wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{kind:?} without {missing:?}: {}", stderr(&output));
            assert_equal(&live, &server, kind, &output);
            let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            let put_right = report["expiries"]["put_right_by_sweep"].as_u64();
            assert_eq!(put_right >= Some(600), missing.is_none(), "{kind:?} without {missing:?}: {report:#}");
        }
    }
}

/// A grant that is taken away when expiries are held already: they are not passed by.
#[test]
fn a_hash_that_cannot_be_gone_through_is_told() {
    let Some(server) = server_of(ServerKind::Redis8) else { return };
    let mut admin = server.client().unwrap();
    for line in [TARGET_ACL, TARGET_ACL_HOLD, TARGET_ACL_FIELDS] {
        admin.run(line).unwrap();
    }
    let live = expiring(10_000);
    let mut child = start(live.port(), &server, &[]);
    let until = Instant::now() + Duration::from_secs(60);
    while admin.run("DBSIZE").unwrap().int() == Some(0) {
        assert!(Instant::now() < until && child.try_wait().unwrap().is_none(), "nothing is written");
        std::thread::sleep(Duration::from_millis(5));
    }
    admin.run("ACL SETUSER df2redis -hscan").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    assert!(stderr(&output).contains("HSCAN") && stderr(&output).contains("NOPERM"), "{}", stderr(&output));
}

/// Into a server and into a cluster: held while the job runs, right when it has ended.
#[test]
fn the_listed_permissions_suffice_to_hold_expiries_of_a_journal() {
    let Some(plain) = server() else { return };
    let Some(cluster) = cluster(&[TARGET_ACL, TARGET_ACL_REPLICATE, TARGET_ACL_CLUSTER, TARGET_ACL_HOLD]) else {
        return;
    };
    let mut admin = plain.client().unwrap();
    for in_cluster in [false, true] {
        for line in [TARGET_ACL, TARGET_ACL_REPLICATE, TARGET_ACL_HOLD] {
            admin.run(line).unwrap();
        }
        let spec = Spec { flows_count: 2, ..Spec::of("string:60B=50").unwrap() };
        let live = Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap();
        say(&live, "SET early v PX 600000");
        let port = if in_cluster { cluster.port() } else { plain.port() };
        let mut child = start_at("replicate", live.port(), port, &[]);
        let mut time_left = |key: &str| match in_cluster {
            false => admin.run(&format!("PTTL {key}")).unwrap().int(),
            true => cluster
                .nodes
                .iter()
                .filter_map(|node| node.client().unwrap().run(&format!("PTTL {key}")).ok()?.int())
                .max(),
        };
        let mut wait_held = |child: &mut Child, key: &str| {
            let until = Instant::now() + Duration::from_secs(60);
            // 139 years late.
            while time_left(key) < Some(1 << 41) {
                assert!(
                    Instant::now() < until && child.try_wait().unwrap().is_none(),
                    "{key} is not held: {:?}",
                    time_left(key)
                );
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        wait_held(&mut child, "early");
        (0..20).for_each(|n| say(&live, &format!("SET text{n} v PX 600000")));
        (0..20).for_each(|n| wait_held(&mut child, &format!("text{n}")));
        let until = Instant::now() + Duration::from_secs(60);
        while !live.is_acknowledged() {
            assert!(Instant::now() < until, "not everything is acknowledged");
            std::thread::sleep(Duration::from_millis(20));
        }
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
        assert!(!stderr(&output).contains("NOPERM"), "{}", stderr(&output));
        if in_cluster {
            cluster.gather(&plain).unwrap();
        }
        assert_equal(&live, &plain, ServerKind::Redis7, &output);
        plain.client().unwrap().run("FLUSHALL").unwrap();
    }
}
