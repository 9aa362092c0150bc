//! `verify` beyond plain servers at rest: over TLS, beside a job that holds expiries back, from a live source that is
//! followed, and against a cluster.

#[path = "common/certs.rs"]
mod certs;
mod common;

use certs::Certs;
use common::{Run, program, server, server_with, start};
use df2redis::convert::near::SHIFT_MS;
use df2redis::lab::LabError;
use df2redis::lab::client::{Address, Client, Reply};
use df2redis::lab::cluster::Cluster;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions, Object, Value as Data, Workload, WorkloadOptions, world};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::servers::{Server, ServerKind};
use df2redis::lab::torture::{Tool, wait_for};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

/// A run that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(200);

/// Compares `source` with `target`, given as URLs.
fn verify(source: &str, target: &str, more: &[String]) -> Run {
    let mut command = program(&["verify", "--source", source, "--target", target, "--output", "json"]);
    command.args(["--progress", "off", "--rate", "off", "--on-unsupported", "skip", "--connect-timeout", "60s"]);
    if !more.iter().any(|arg| arg == "--lag-max") {
        command.args(["--lag-max", "1s"]);
    }
    command.args(more);
    start(command).wait_for(PATIENCE)
}

/// The lines of a run, but for the summary, which is the last.
#[track_caller]
fn lines(run: &Run) -> Vec<Value> {
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}\n{}", run.stderr));
    let mut lines: Vec<Value> = run.stdout.lines().map(parse).collect();
    lines.pop().unwrap_or_else(|| panic!("no output\n{}", run.stderr));
    lines
}

/// `key kind` of each line.
#[track_caller]
fn found(run: &Run) -> BTreeSet<String> {
    let lines = lines(run);
    let name = |line: &Value, field: &str| line[field].as_str().unwrap_or_default().to_owned();
    let found: BTreeSet<String> = lines.iter().map(|l| format!("{} {}", name(l, "key"), name(l, "kind"))).collect();
    assert_eq!(found.len(), lines.len(), "a key was told twice: {lines:#?}");
    found
}

#[track_caller]
fn expect_found(run: &Run, wanted: &[&str]) {
    let wanted: BTreeSet<String> = wanted.iter().map(|text| text.to_string()).collect();
    assert_eq!(found(run), wanted, "{:#?}\n{}", lines(run), run.stderr);
    run.expect_code(if wanted.is_empty() { 0 } else { 10 });
}

#[track_caller]
fn run_all(client: &mut Client, commands: &[&str]) {
    for command in commands {
        client.run(command).unwrap_or_else(|error| panic!("{command}: {error}"));
    }
}

fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| arg.to_string()).collect()
}

/// A redis-server with a TLS port that wants a certificate from its clients.
fn tls_server(certs: &Certs) -> Option<(Server, u16)> {
    server_with(ServerKind::Redis7, certs.server("server")).map(|server| {
        let port = server.tls_port();
        (server, port)
    })
}

/// Values of any size come through whole on both sides, and a repair goes the same way; whoever is not trusted is not read.
#[test]
fn both_sides_are_read_over_tls() {
    let certs = Certs::new();
    let (Some((source, source_port)), Some((target, target_port))) = (tls_server(&certs), tls_server(&certs)) else {
        eprintln!("skipped: no redis-server that speaks TLS");
        return;
    };
    let script = "for i=1,30000 do local v=string.rep(i,9) redis.call('HSET','H','f'..i,v) redis.call('SET','s'..i%4000,v) end \
                  redis.call('SET','S',string.rep('x',5000000)) return 1";
    for server in [&source, &target] {
        server.client().unwrap().ask(&["EVAL", script, "0"]).unwrap();
    }
    let urls = (format!("rediss://127.0.0.1:{source_port}"), format!("rediss://127.0.0.1:{target_port}"));
    let both = |more: &[&str]| [certs.to_side("source", "ca"), certs.to_side("target", "ca"), strings(more)].concat();
    expect_found(&verify(&urls.0, &urls.1, &both(&[])), &[]);

    run_all(&mut target.client().unwrap(), &["HSET H f29999 other", "SETRANGE S 4999999 y", "DEL s7", "SET new v"]);
    let wanted = ["H value", "S value", "s7 missing", "new extra"];
    expect_found(&verify(&urls.0, &urls.1, &both(&[])), &wanted);
    let run = verify(&urls.0, &urls.1, &both(&["--repair", "mirror"]));
    assert_eq!((run.code(), found(&run).len()), (0, wanted.len()), "{}", run.stderr);
    expect_found(&verify(&urls.0, &urls.1, &both(&[])), &[]);

    // One side alone; and without the trust, or what the server asks for.
    let plain_source = format!("redis://127.0.0.1:{}", source.port());
    expect_found(&verify(&plain_source, &urls.1, &certs.to_side("target", "ca")), &[]);
    let ca_only = vec!["--target-tls-ca".into(), certs.path("ca.pem")];
    for (source, args, code, text) in [
        (&urls.0, [certs.to_side("source", "other-ca"), ca_only.clone()].concat(), 4, "--source-tls-ca"),
        (&plain_source, certs.to_side("target", "other-ca"), 5, "--target-tls-ca"),
        (&plain_source, ca_only, 5, "certificate"),
        (&format!("redis://127.0.0.1:{source_port}"), certs.to_side("target", "ca"), 4, "rediss://"),
    ] {
        let run = verify(source, &urls.1, &args);
        assert_eq!(run.code(), code, "{}", run.stderr);
        assert!(run.stderr.contains(text), "{}", run.stderr);
    }
}

/// What a job that lags writes later than it is, is read as it is meant.
#[test]
fn held_expiries_are_no_differences() {
    for (kind, fields_expire) in [(ServerKind::Redis7, false), (ServerKind::Redis8, true), (ServerKind::Valkey9, true)]
    {
        let (Some(source), Some(target)) = (server(kind), server(kind)) else { continue };
        let urls = [&source, &target].map(|server| format!("redis://127.0.0.1:{}", server.port()));
        let (mut at_source, mut at_target) = (source.client().unwrap(), target.client().unwrap());
        let near = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
        let near = near + 3_600_000;
        let held = near + SHIFT_MS;
        let set = |at: i64, wrong: i64| {
            vec![
                format!("SET held v PXAT {at}"),
                format!("SET wrong v PXAT {}", at + wrong),
                "RPUSH list a b".into(),
                format!("PEXPIREAT list {at}"),
                "HSET hash f 1 g 2".into(),
                "SET never v".into(),
            ]
        };
        let mut wanted = vec!["wrong expiry"];
        let (mut source_lines, mut target_lines) = (set(near, 0), set(held, 20_000));
        if fields_expire {
            source_lines.push(format!("HPEXPIREAT hash {near} FIELDS 1 f"));
            target_lines.push(format!("HPEXPIREAT hash {held} FIELDS 1 f"));
            source_lines.extend(["HSET bad f 1".into(), format!("HPEXPIREAT bad {near} FIELDS 1 f")]);
            target_lines.extend(["HSET bad f 1".into(), format!("HPEXPIREAT bad {} FIELDS 1 f", held - 20_000)]);
            wanted.push("bad field_expiry");
        }
        run_all(&mut at_source, &source_lines.iter().map(String::as_str).collect::<Vec<_>>());
        run_all(&mut at_target, &target_lines.iter().map(String::as_str).collect::<Vec<_>>());
        let run = verify(&urls[0], &urls[1], &[]);
        expect_found(&run, &wanted);
        // Told as it is meant.
        let line = lines(&run).into_iter().find(|line| line["key"] == "wrong").unwrap();
        assert_eq!(line["target"], (near + 20_000).to_string());
        // A source that has such an expiry means it.
        run_all(&mut at_source, &[&format!("SET far v PXAT {held}")]);
        run_all(&mut at_target, &[&format!("SET far v PXAT {held}")]);
        expect_found(&verify(&urls[0], &urls[1], &[]), &wanted);
    }
}

/// Keys to begin with, small and large.
const MIX: &str = "string:60B=300,string:200KiB=3,int=100,list:6x9=60,list:900x20=3,set:8x9=60,intset:20x7=20,set:900x9=3,hash:6x9=60,\
                   hash:900x12=3,zset:6x9=60,zset:900x9=3,stream:12x6=25,stream:900x5=3";

fn live(databases: Vec<u32>) -> Live {
    let spec = Spec { seed: 21, flows_count: 3, databases, expire_fraction: 0.2, ..Spec::of(MIX).unwrap() };
    Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap()
}

fn client_of(live: &Live) -> Client {
    Client::connect(&Address::Tcp("127.0.0.1".into(), live.port())).unwrap()
}

/// Writers of all commands on the keys that the source began with.
fn writers(live: &Live) -> Workload {
    Workload::start(live.world(), live.spec(), WorkloadOptions { rate: Some(300), ..WorkloadOptions::default() })
}

fn urls(source: u16, target: u16) -> (String, String) {
    (format!("dragonfly://127.0.0.1:{source}"), format!("redis://127.0.0.1:{target}"))
}

/// Keys of ours at the source, one to a difference; the workload does not know them.
const OWN: [&str; 14] = [
    "SET own:value v",
    "SET own:missing v",
    "SET own:type v",
    "SET own:expiry v PXAT 4102444800000",
    "SET own:never v",
    "RPUSH own:list a b c",
    "SADD own:set a b c",
    "HSET own:hash f 1 g 2",
    "ZADD own:zset 0.1 a 2 b",
    "XADD own:stream 5-1 f v",
    "XADD own:stream 5-2 f v",
    "XGROUP CREATE own:stream grp 0",
    "XADD own:entry 5-1 f v",
    "SET own:right v",
];

/// What is done to the target, with the key and the kind of difference that it makes.
const PLANTS: [(&str, &str, &str); 11] = [
    ("APPEND own:value w", "own:value", "value"),
    ("DEL own:missing", "own:missing", "missing"),
    ("DEL own:type", "", ""),
    ("RPUSH own:type v", "own:type", "type"),
    ("PEXPIREAT own:expiry 4102444860000", "own:expiry", "expiry"),
    ("PEXPIREAT own:never 4102444860000", "own:never", "expiry"),
    ("LSET own:list 2 d", "own:list", "value"),
    ("SADD own:set d", "own:set", "value"),
    ("HSET own:hash f 2", "own:hash", "value"),
    ("ZADD own:zset 0.10000000000000002 a", "own:zset", "value"),
    ("XGROUP SETID own:stream grp 5-1", "own:stream", "group"),
];

fn planted() -> Vec<String> {
    PLANTS.iter().filter(|(_, key, _)| !key.is_empty()).map(|(_, key, kind)| format!("{key} {kind}")).collect()
}

/// Until the target has what the client wrote last.
fn wait_for_key(tool: &mut Tool, mut has: impl FnMut() -> bool) {
    let found = wait_for(|| (has() || tool.ended().is_some()).then_some(()));
    assert!(found.is_some() && tool.ended().is_none(), "{:?}: {}", tool.ended(), tool.said());
}

fn stop(tool: &mut Tool) {
    tool.signal("INT");
    assert_eq!(tool.wait(), Some(130), "{}", tool.said());
}

/// A source that is written to and followed is found equal; what is planted is found, and nothing else; and repaired when the
/// job is over.
#[test]
fn a_followed_dragonfly_is_compared_and_repaired() {
    let Some(target) = server(ServerKind::Redis7) else { return };
    let live = live(vec![0, 2]);
    let mut workload = writers(&live);
    let tool = common::job::binary();
    let mut tool = Tool::start(tool, live.port(), target.port(), &target.dir().join("tool.log"), &[]).unwrap();
    run_all(&mut client_of(&live), &OWN);
    let mut client = target.client().unwrap();
    wait_for_key(&mut tool, || client.run("EXISTS own:right").unwrap() == Reply::Int(1));
    let (source_url, target_url) = urls(live.port(), target.port());
    let compare = |more: &[&str]| {
        verify(&source_url, &target_url, &[&strings(&["--lag-max", "3s"]), &strings(more)[..]].concat())
    };

    let before = workload.done();
    expect_found(&compare(&[]), &[]);
    run_all(&mut client, &PLANTS.map(|(command, ..)| command));
    let (wanted, extra) = (planted(), ["extra in the second extra"]);
    run_all(&mut client, &["SELECT 2"]);
    client.ask(&["SET", "extra in the second", "v"]).unwrap();
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).chain(extra).collect();
    expect_found(&compare(&[]), &wanted);
    assert!(workload.done() > before + 100, "the writers wrote {}", workload.done() - before);

    // Not beside the job, nor before its position is gone.
    let refused = |run: Run, text: &str| {
        run.expect_code(3);
        assert!(run.stderr.contains(text), "{}", run.stderr);
    };
    refused(compare(&["--repair", "mirror", "--control", "off"]), "is connected to the target");
    workload.stop();
    let until = wait_for(|| live.is_acknowledged().then_some(()));
    assert!(until.is_some(), "{}", tool.said());
    stop(&mut tool);
    refused(compare(&["--repair", "mirror"]), "df2redis:checkpoint");
    run_all(&mut target.client().unwrap(), &["DEL df2redis:checkpoint"]);
    let run = compare(&["--repair", "mirror"]);
    assert_eq!((run.code(), found(&run).len()), (0, wanted.len()), "{:#?}\n{}", lines(&run), run.stderr);
    expect_found(&compare(&[]), &[]);
    expect_found(&compare(&["--mode", "count"]), &[]);
}

/// A source and a target, both empty.
fn empty_pair() -> Option<(Live, Server)> {
    let target = server(ServerKind::Redis8).or_else(|| server(ServerKind::Valkey9))?;
    let live = Live::start(Spec::of("string:1B=1").unwrap(), LiveOptions::default(), MasterOptions::default()).unwrap();
    run_all(&mut client_of(&live), &["FLUSHALL"]);
    Some((live, target))
}

/// A Dragonfly tells field expiries in milliseconds, and keeps whole seconds: what a client set is up to a second later.
#[test]
fn a_dragonflys_field_expiries_are_whole_seconds() {
    let Some((live, target)) = empty_pair() else { return };
    let (mut at_source, mut at_target) = (client_of(&live), target.client().unwrap());
    run_all(
        &mut at_source,
        &["HSET near f 1", "HSET far f 1", "HEXPIRE near 5000 FIELDS 1 f", "HEXPIRE far 5000 FIELDS 1 f"],
    );
    let at = at_source.run("HPEXPIRETIME near FIELDS 1 f").unwrap().array().unwrap()[0].int().unwrap();
    assert_eq!(at % 1000, 0);
    let lines =
        [format!("HPEXPIREAT near {} FIELDS 1 f", at + 900), format!("HPEXPIREAT far {} FIELDS 1 f", at + 2900)];
    run_all(&mut at_target, &["HSET near f 1", "HSET far f 1", &lines[0], &lines[1]]);
    let (source_url, target_url) = urls(live.port(), target.port());
    let run = verify(&source_url, &target_url, &strings(&["--expiry-tolerance", "1ms"]));
    expect_found(&run, &["far field_expiry"]);
}

/// A Dragonfly goes on showing a hash or set whose members have all expired; the target rightly has none.
#[test]
fn collections_whose_members_all_expired_are_not_missing() {
    let Some((live, target)) = empty_pair() else { return };
    let mut at_source = client_of(&live);
    let lines = ["HSET gone:hash f 1 g 2", "HEXPIRE gone:hash 1 FIELDS 2 f g"];
    run_all(&mut at_source, &lines);
    run_all(&mut at_source, &["HSET some:hash f 1 g 2", "HEXPIRE some:hash 1 FIELDS 1 f", "SADD some:set a"]);
    live.world().begin_with(0, b"gone:set", Object::new(Data::Set(BTreeSet::new())));
    // Not by a client: it would delete the hash by looking.
    let is_hollow = || live.world().look(|data| data.get(0, b"gone:hash").unwrap().value.is_hollow(world::now_ms()));
    assert!(wait_for(|| is_hollow().then_some(())).is_some());
    for (key, type_name) in [("gone:hash", "hash"), ("gone:set", "set")] {
        assert_eq!(at_source.run(&format!("TYPE {key}")).unwrap().text().as_deref(), Some(type_name));
    }
    let (source_url, target_url) = urls(live.port(), target.port());
    // Numbers are no better: 4 at the source and none at the target.
    let counted = verify(&source_url, &target_url, &strings(&["--mode", "count"]));
    expect_found(&counted, &["some:hash missing", "some:set missing"]);
    expect_found(&verify(&source_url, &target_url, &[]), &["some:hash missing", "some:set missing"]);
}

/// Three primaries are compared as one target, while the job writes to them.
#[test]
fn a_cluster_is_compared() {
    let cluster = match Cluster::start_kind(ServerKind::Redis7, 3, false) {
        Err(LabError::NoServer { what, .. }) => {
            eprintln!("skipped: no {what} here");
            return;
        }
        cluster => cluster.unwrap(),
    };
    let live = live(vec![0]);
    let mut workload = writers(&live);
    let dir = tempfile::tempdir().unwrap();
    let tool = common::job::binary();
    let mut tool = Tool::start(tool, live.port(), cluster.port(), &dir.path().join("tool.log"), &[]).unwrap();
    run_all(&mut client_of(&live), &OWN);
    // At whichever node has its slot.
    let at_owner = |command: &str| {
        let replies =
            cluster.nodes.iter().map(|node| node.client().unwrap().ask(&command.split(' ').collect::<Vec<_>>()));
        let mut answers = replies
            .map(|reply| reply.unwrap())
            .filter(|reply| !matches!(reply, Reply::Error(e) if e.starts_with("MOVED")));
        answers.next().unwrap_or_else(|| panic!("{command}: nobody has its slot"))
    };
    wait_for_key(&mut tool, || at_owner("EXISTS own:right") == Reply::Int(1));
    let (source_url, target_url) = urls(live.port(), cluster.port());
    let compare = |more: &[&str]| {
        verify(&source_url, &target_url, &[&strings(&["--lag-max", "3s"]), &strings(more)[..]].concat())
    };

    expect_found(&compare(&[]), &[]);
    let plant = || {
        for (command, ..) in PLANTS {
            let reply = at_owner(command);
            assert!(!matches!(reply, Reply::Error(_)), "{command}: {reply:?}");
        }
    };
    plant();
    for i in 0..20 {
        at_owner(&format!("SET extra:{i} v"));
    }
    let extra: Vec<String> = (0..20).map(|i| format!("extra:{i} extra")).collect();
    let extra: Vec<&str> = extra.iter().map(String::as_str).collect();
    let planted = planted();
    let wanted: Vec<&str> = planted.iter().map(String::as_str).chain(extra.iter().copied()).collect();
    expect_found(&compare(&[]), &wanted);
    // Slots that move are followed.
    assert!(cluster.reshard(37).unwrap() > 0);
    expect_found(&compare(&[]), &wanted);
    workload.stop();
    // The job copies what is missing or wrong, and leaves what is the target's own.
    expect_found(&compare(&["--repair", "copy"]), &wanted);
    expect_found(&compare(&[]), &extra);
    plant();
    assert!(wait_for(|| live.is_acknowledged().then_some(())).is_some(), "{}", tool.said());
    stop(&mut tool);
    let run = compare(&["--repair", "mirror"]);
    run.expect_code(3);
    assert!(run.stderr.contains("df2redis:checkpoint"), "{}", run.stderr);
    at_owner("DEL df2redis:checkpoint");
    // With so little memory large values are put together beside their keys, in the same slot.
    let text = "x".repeat(3 << 20);
    client_of(&live).ask(&["SET", "large", &text]).unwrap();
    client_of(&live).run("RPUSH large:list a b c").unwrap();
    let run = compare(&["--repair", "mirror", "--memory", "16MiB"]);
    assert_eq!((run.code(), found(&run).len()), (0, wanted.len() + 2), "{:#?}\n{}", lines(&run), run.stderr);
    expect_found(&compare(&[]), &[]);
    assert_eq!(at_owner("STRLEN large"), Reply::Int(text.len() as i64));
}

/// The filters, names and databases of the job are those of the comparison: what it left out or put elsewhere is no difference.
#[test]
fn the_scope_of_the_job_is_that_of_the_comparison() {
    let Some(target) = server(ServerKind::Redis7) else { return };
    let live = live(vec![0, 2]);
    let mut at_source = client_of(&live);
    run_all(&mut at_source, &OWN);
    run_all(
        &mut at_source,
        &["SET tmp:1 v", "SET left v", "SELECT 1", "SET own:one v", "SET own:two v", "SELECT 5", "SET own:five v"],
    );
    let scope = strings(&[
        "--exclude-prefix",
        "tmp:",
        "--rewrite-prefix",
        "own:=moved:",
        "--db-map",
        "1:7",
        "--exclude-db",
        "5",
    ]);
    let scope = [scope, strings(&["--exclude-type", "list"])].concat();
    let more: Vec<&str> = scope.iter().map(String::as_str).collect();
    let tool = common::job::binary();
    let mut tool = Tool::start(tool, live.port(), target.port(), &target.dir().join("tool.log"), &more).unwrap();
    run_all(&mut at_source, &["SELECT 0", "SET own:last v"]);
    let mut client = target.client().unwrap();
    wait_for_key(&mut tool, || client.run("EXISTS moved:last").unwrap() == Reply::Int(1));
    let (source_url, target_url) = urls(live.port(), target.port());
    let compare = |more: &[&str]| verify(&source_url, &target_url, &[&scope[..], &strings(more)[..]].concat());

    let run = compare(&[]);
    expect_found(&run, &[]);
    // Without the scope they differ.
    assert_eq!(verify(&source_url, &target_url, &[]).code(), 10);

    // What no carried key could be is the target's own.
    run_all(
        &mut client,
        &[
            "SET own:3 v",
            "SET tmp:2 v",
            "RPUSH more:list v",
            "RPUSH left2 v",
            "SELECT 5",
            "SET x v",
            "SELECT 1",
            "SET x v",
        ],
    );
    expect_found(&compare(&[]), &[]);
    run_all(
        &mut client,
        &["SELECT 0", "SET moved:value w", "DEL moved:missing", "SET moved:new v", "SET other v", "DEL left"],
    );
    run_all(&mut client, &["HSET moved:hash f 2", "XGROUP SETID moved:stream grp 5-1", "ZADD moved:zset 3 b"]);
    run_all(&mut client, &["SELECT 7", "SET moved:one w", "DEL moved:two", "SET moved:three v"]);
    let wanted = [
        "own:value value",
        "own:missing missing",
        "own:new extra",
        "other extra",
        "left missing",
        "own:hash value",
        "own:stream group",
        "own:zset value",
        "own:one value",
        "own:two missing",
        "own:three extra",
    ];
    expect_found(&compare(&[]), &wanted);
    for (args, text) in [(&["--mode", "count"][..], "filters by key or type"), (&["--db-merge", "on"], "merged")] {
        let run = compare(args);
        run.expect_code(2);
        assert!(run.stderr.contains(text), "{}", run.stderr);
    }
    // The job knows the names.
    expect_found(&compare(&["--repair", "copy"]), &wanted);
    expect_found(&compare(&[]), &["own:new extra", "other extra", "own:three extra"]);
    stop(&mut tool);
}

/// Databases are counted where they went, and repaired there.
#[test]
fn mapped_databases_are_counted_and_repaired() {
    let (Some(source), Some(target)) = (server(ServerKind::Redis7), server(ServerKind::Redis7)) else { return };
    run_all(&mut source.client().unwrap(), &["SET a v", "SELECT 1", "SET b v", "RPUSH c 1 2", "SELECT 2", "SET d v"]);
    run_all(
        &mut target.client().unwrap(),
        &["SET a v", "SELECT 7", "SET b w", "SET e v", "SELECT 2", "SET mine v", "SET own v"],
    );
    let urls = [&source, &target].map(|server| format!("redis://127.0.0.1:{}", server.port()));
    let compare = |more: &[&str]| {
        let scope = ["--db-map", "1:7", "--exclude-db", "2"];
        verify(&urls[0], &urls[1], &[&strings(&scope)[..], &strings(more)[..]].concat())
    };
    expect_found(&compare(&["--mode", "count"]), &[]);
    expect_found(&compare(&[]), &["b value", "c missing", "e extra"]);
    let run = compare(&["--repair", "mirror"]);
    assert_eq!((run.code(), found(&run).len()), (0, 3), "{}", run.stderr);
    expect_found(&compare(&[]), &[]);
    let mut client = target.client().unwrap();
    run_all(&mut client, &["SELECT 7"]);
    assert_eq!(client.run("GET b").unwrap().text().as_deref(), Some("v"));
    assert_eq!((client.run("LLEN c").unwrap(), client.run("DBSIZE").unwrap()), (Reply::Int(2), Reply::Int(2)));
    run_all(&mut client, &["DEL c"]);
    compare(&["--mode", "count"]).expect_code(10);
}
