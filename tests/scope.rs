//! Filters, prefix rewriting and database maps, end to end on a real server: snapshot, journal blobs and stable journal.

mod common;

use common::clustered::{Clustered, key_on, node_of};
use common::job::{self, until};
use common::*;
use df2redis::lab::LabError;
use df2redis::lab::client::Client;
use df2redis::lab::cluster::Cluster;
use df2redis::lab::encode;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::{Tool, compare};
use std::time::{Duration, Instant};

/// Strings, a list and a hash in databases 0, 1 and 2, and records over all of them.
fn source() -> FlowBytes {
    let mut flow = FlowBytes::new();
    for db in 0..3 {
        flow.db(db);
        for key in ["user:1", "user:2", "tmp:1", "other"] {
            flow.string(key.as_bytes(), format!("{db}{key}").as_bytes());
        }
        flow.list(b"user:list", &texts("e", 40), 10).list(b"tmp:list", &texts("e", 40), 10);
    }
    flow.journal(0, &["MSET", "user:1", "new", "tmp:1", "new"]).journal(0, &["DEL", "other", "user:2"]);
    flow.journal(1, &["RPUSH", "user:list", "last"]).journal(1, &["RENAME", "user:1", "tmp:moved"]);
    flow.late_journal(0, &["SET", "user:late", "v"]).late_journal(2, &["SET", "tmp:late", "v"]);
    flow
}

fn names(server: &Server) -> Vec<String> {
    let found = contents(&mut server.client().unwrap());
    let shown = found.iter().filter(|((_, key), _)| !key.starts_with(b"df2redis:"));
    shown.map(|((db, key), _)| format!("{db}/{}", String::from_utf8_lossy(key))).collect()
}

#[test]
fn key_filters_hold_for_snapshot_and_journal_and_are_counted() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let master = Hand::new(vec![source()]).holds(0, b"user:1").start();
    let run = migrate(master.port(), server.port(), &["--include-key", "user:*", "--exclude-db", "2"]);
    run.expect_code(0);
    assert_eq!(names(&server), ["0/user:1", "0/user:late", "0/user:list", "1/user:2", "1/user:list"]);
    let mut client = server.client().unwrap();
    assert_eq!(client.run("GET user:1").unwrap().text().unwrap(), "new");
    client.run("SELECT 1").unwrap();
    assert_eq!(client.run("LLEN user:list").unwrap().int(), Some(41));
    let filtered = &run.report["filtered"];
    assert_eq!((&filtered["keys"]["key"], &filtered["keys"]["db"]), (&6.into(), &6.into()), "{filtered}");
    assert_eq!((&filtered["records"]["db"], &filtered["records_changed"]["key"]), (&1.into(), &3.into()), "{filtered}");
}

#[test]
fn type_filters_leave_no_old_value_behind() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut flow = FlowBytes::new();
    flow.list(b"l", &texts("e", 5), 5).list(b"m", &texts("e", 5), 5).string(b"s", b"v").string(b"t", b"v");
    // l becomes a string at the source; m is replaced by the string t.
    flow.journal(0, &["SET", "l", "v"]).journal(0, &["RENAME", "t", "m"]).journal(0, &["RPUSH", "n", "1"]);
    flow.journal(0, &["APPEND", "s", "w"]);
    let master = Hand::new(vec![flow]).start();
    let run = migrate(master.port(), server.port(), &["--exclude-type", "string"]);
    run.expect_code(0);
    assert_eq!(names(&server), ["0/n"]);
    let filtered = &run.report["filtered"];
    assert_eq!(filtered["keys"]["type"], 2);
    // Left out is APPEND; the SET deletes the list.
    assert_eq!(
        (&filtered["records"]["type"], &filtered["records_changed"]["type"]),
        (&1.into(), &1.into()),
        "{filtered}"
    );
    migrate(master.port(), server.port(), &["--exclude-type", "string", "--on-existing", "replace"]).expect_code(2);
}

/// A JSON.SET with NX is recorded although a string is there, and does nothing.
#[test]
fn regression_a_document_that_was_not_set_deletes_no_string() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut flow = FlowBytes::new();
    flow.string(b"s", b"v").string(b"t", b"v");
    flow.journal(0, &["JSON.SET", "s", "$", "{}", "nx"]).journal(0, &["JSON.SET", "t", "$", "{}", "XX"]);
    let run = migrate(Hand::new(vec![flow]).start().port(), server.port(), &["--exclude-type", "json"]);
    run.expect_code(0);
    assert_eq!(names(&server), ["0/s"]);
}

/// A string that was written by a record, deleted without one (wire 2.10), and is of a type that is left out now.
#[test]
fn regression_a_string_that_became_what_is_left_out_is_gone() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut flow = FlowBytes::new();
    flow.journal(0, &["MSET", "l", "v", "m", "v"]).journal(0, &["RPUSH", "l", "e"]).journal(0, &["LPUSHX", "m", "e"]);
    let master = Hand::new(vec![flow]).holds(0, b"l").holds(0, b"m").start();
    for more in [&["--exclude-type", "list"][..], &["--exclude-type", "list", "--rewrite-prefix", "l=k"]] {
        server.client().unwrap().run("FLUSHALL").unwrap();
        migrate(master.port(), server.port(), more).expect_code(0);
        assert_eq!(names(&server), ["0/m"], "{more:?}");
    }
}

/// Nor is one in doubt that is left out itself.
#[test]
fn regression_strings_that_are_left_out_are_not_asked_for() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut flow = FlowBytes::new();
    for line in ["SETNX k 1", "GETSET m 1", "APPEND k x", "SETRANGE m 0 x", "RPUSH l e"] {
        flow.journal(0, &line.split(' ').collect::<Vec<_>>());
    }
    let run = migrate(Hand::new(vec![flow]).start().port(), server.port(), &["--exclude-type", "string"]);
    run.expect_code(0);
    assert_eq!(names(&server), ["0/l"]);
    let listed = &run.report["not_carried"];
    assert!(listed["counts"]["doubtful-PerhapsDeleted/verify"].is_null(), "{listed}");
}

/// They are recorded also where there was nothing to read, and then nothing was stored.
#[test]
fn regression_what_may_have_stored_nothing_deletes_nothing_under_a_type_filter() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut flow = FlowBytes::new();
    flow.string(b"d", b"v").string(b"e", b"v");
    for line in ["SORT none STORE d", "GEORADIUS none 15 37 200 km STORE e"] {
        flow.journal(0, &line.split(' ').collect::<Vec<_>>());
    }
    let run = migrate(Hand::new(vec![flow]).start().port(), server.port(), &["--exclude-type", "list,zset"]);
    run.expect_code(0);
    assert_eq!(names(&server), ["0/d", "0/e"]);
    assert_eq!(run.report["not_carried"]["counts"]["doubtful-Truncated/verify"], 2, "{}", run.report["not_carried"]);
}

#[test]
fn a_value_from_outside_of_the_filter_is_refused_by_name() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut flow = FlowBytes::new();
    flow.string(b"tmp:1", b"v").journal(0, &["RENAME", "tmp:1", "user:1"]);
    let master = Hand::new(vec![flow]).start();
    let run = migrate(master.port(), server.port(), &["--include-prefix", "user:"]);
    run.expect_code(3).expect_text("RENAME").expect_text("user:1").expect_text("wider filter");
}

#[test]
fn prefixes_are_rewritten_and_collisions_refused() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let master = Hand::new(vec![source()]).start();
    let args = ["--include-db", "1", "--rewrite-prefix", "user:=u/", "--rewrite-prefix", "tmp:=t,"];
    let run = migrate(master.port(), server.port(), &args);
    run.expect_code(0);
    assert_eq!(names(&server), ["1/other", "1/t,1", "1/t,list", "1/t,moved", "1/u/2", "1/u/list"]);
    assert_eq!(run.report["filtered"]["keys_renamed"], 5);
    // `other` would keep its name, which begins as the rewritten ones do.
    let run = migrate(master.port(), server.port(), &["--rewrite-prefix", "user:=ot", "--on-existing", "flush"]);
    run.expect_code(3).expect_text("\"other\"").expect_text("one name");
}

#[test]
fn databases_are_mapped_and_what_has_no_place_is_refused() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut flow = FlowBytes::new();
    flow.db(0).string(b"a", b"0").db(20).string(b"b", b"9").journal(20, &["MOVE", "b", "0"]);
    let master = Hand::new(vec![flow]).start();
    let run = migrate(master.port(), server.port(), &[]);
    run.expect_code(3).expect_text("database 20").expect_text("only 16");
    // Nothing may land in another database before the refusal.
    assert!(!names(&server).iter().any(|name| name.ends_with("/b")));
    let run = migrate(master.port(), server.port(), &["--db-map", "20:0", "--on-existing", "flush"]);
    run.expect_code(3).expect_text("--db-merge");
    migrate(master.port(), server.port(), &["--db-map", "0:3,20:1", "--on-existing", "flush"]).expect_code(0);
    assert_eq!(names(&server), ["3/a", "3/b"]);
}

/// A `replicate` in the background.
fn replicate(source_port: u16, target_port: u16, more: &[&str]) -> Running {
    let (source, target) = (format!("dragonfly://127.0.0.1:{source_port}"), format!("redis://127.0.0.1:{target_port}"));
    let mut command = program(&["replicate", "--source", &source, "--target", &target, "--output", "json"]);
    command.args(["--memory", "128MiB", "--progress", "off"]).args(more);
    start(command)
}

fn wait_for_key(server: &Server, db: u32, key: &str) {
    let until = Instant::now() + Duration::from_secs(40);
    let mut client = server.client().unwrap();
    client.ask(&["SELECT", &db.to_string()]).unwrap();
    while client.ask(&["EXISTS", key]).unwrap().int() != Some(1) {
        assert!(Instant::now() < until, "{key} does not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn stable(flow: &mut FlowBytes, records: &[&[&str]]) {
    records.iter().for_each(|record| encode::journal_command(&mut flow.stable, 0, 0, record));
}

#[test]
fn the_stable_journal_obeys_the_same_filters() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut flow = FlowBytes::new();
    flow.string(b"user:1", b"5").string(b"tmp:1", b"5");
    stable(
        &mut flow,
        &[
            &["INCR", "user:1"],
            &["INCR", "tmp:1"],
            &["MSET", "user:2", "a", "tmp:2", "b"],
            &["RENAME", "user:2", "user:3"],
            &["LMOVE", "user:none", "tmp:none", "LEFT", "LEFT"],
        ],
    );
    encode::journal_command(&mut flow.stable, 2, 0, &["SET", "user:elsewhere", "v"]);
    stable(&mut flow, &[&["SET", "user:end", "v"]]);
    let master = Hand::new(vec![flow]).start();
    let filter = ["--include-prefix", "user:", "--rewrite-prefix", "user:=u:", "--exclude-db", "2"];
    let running = replicate(master.port(), server.port(), &filter);
    wait_for_key(&server, 0, "u:end");
    let mut client = server.client().unwrap();
    let until = Instant::now() + Duration::from_secs(40);
    while client.run("HGET df2redis:checkpoint phase").unwrap().text().as_deref() != Some("stable") {
        assert!(Instant::now() < until, "the checkpoint does not become good");
        std::thread::sleep(Duration::from_millis(20));
    }
    running.signal("INT");
    let run = running.wait();
    run.expect_code(130);
    assert_eq!(names(&server), ["0/u:1", "0/u:3", "0/u:end"]);
    // Left out: INCR tmp:1, and the SET in database 2; of MSET and LMOVE a part was done. Renamed is the key of the snapshot.
    let filtered = &run.report["filtered"];
    assert_eq!(filtered["keys"], serde_json::json!({"key": 1}), "{filtered}");
    assert_eq!(filtered["records"], serde_json::json!({"key": 1, "db": 1}), "{filtered}");
    assert_eq!((&filtered["records_changed"]["key"], &filtered["keys_renamed"]), (&2.into(), &1.into()), "{filtered}");
    assert_eq!(server.client().unwrap().run("GET u:1").unwrap().text().unwrap(), "6");
    // Another filter would leave holes: the checkpoint knows.
    let run = replicate(master.port(), server.port(), &["--include-prefix", "tmp:"]).wait();
    run.expect_code(3).expect_text("other filters");
}

#[test]
fn a_refused_record_is_named_with_its_lsn() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut flow = FlowBytes::new();
    stable(&mut flow, &[&["SET", "user:1", "v"], &["SET", "tmp:1", "v"], &["RENAME", "tmp:1", "user:1"]]);
    let master = Hand::new(vec![flow]).start();
    let run = replicate(master.port(), server.port(), &["--include-prefix", "user:"]).wait();
    run.expect_code(3).expect_text("RENAME").expect_text("LSN 102");
}

#[test]
fn a_flushdb_of_a_mapped_database_empties_the_right_one() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut flow = FlowBytes::new();
    flow.db(0).string(b"a", b"0").db(1).string(b"b", b"1").db(2).string(b"c", b"2");
    encode::journal_command(&mut flow.stable, 1, 7, &["FLUSHDB"]);
    encode::journal_command(&mut flow.stable, 2, 8, &["FLUSHDB"]);
    stable(&mut flow, &[&["SET", "end", "v"]]);
    let master = Hand::new(vec![flow]).start();
    let running = replicate(master.port(), server.port(), &["--db-map", "1:2,2:1", "--exclude-db", "2"]);
    wait_for_key(&server, 0, "end");
    running.signal("INT");
    running.wait().expect_code(130);
    assert_eq!(names(&server), ["0/a", "0/end"]);
}

/// Keys of database 0, for servers with few.
fn names_of(client: &mut Client) -> Vec<String> {
    let keys = client.run("KEYS *").unwrap();
    let mut names: Vec<String> = keys.array().unwrap().iter().map(|key| key.text().unwrap()).collect();
    names.retain(|name| !name.starts_with("df2redis:"));
    names.sort();
    names
}

fn cluster(kind: ServerKind) -> Option<Cluster> {
    match Cluster::start_kind(kind, 3, false) {
        Err(LabError::NoServer { what, .. }) => {
            eprintln!("skipped: no {what} here");
            None
        }
        cluster => Some(cluster.unwrap()),
    }
}

/// Keys of a database of the source, a FLUSHDB of another one, and the sign that it was passed.
fn flushed(held: u32, empty: u32) -> FlowBytes {
    let mut flow = FlowBytes::new();
    flow.db(held).string(b"a", b"v").string(b"b", b"v").string(b"c", b"v");
    encode::journal_command(&mut flow.stable, empty, 7, &["FLUSHDB"]);
    encode::journal_command(&mut flow.stable, held, 0, &["SET", "end", "v"]);
    flow
}

#[test]
fn a_flushdb_of_a_mapped_database_that_a_cluster_has_no_place_for_empties_nothing() {
    let Some(cluster) = cluster(ServerKind::Redis7) else { return };
    // A number that is another one's at the target, and one that is nobody's.
    for (held, empty, more) in [(0, 5, &[][..]), (3, 5, &["--db-map", "3:0"]), (3, 0, &["--db-map", "3:0"])] {
        cluster.nodes.iter().for_each(|node| drop(node.client().unwrap().run("FLUSHALL").unwrap()));
        let master = Hand::new(vec![flushed(held, empty)]).start();
        let mut running = replicate(master.port(), cluster.port(), more);
        let until = Instant::now() + Duration::from_secs(40);
        while !cluster.keys().unwrap().iter().any(|key| key == b"end") {
            assert!(running.is_running() && Instant::now() < until, "the record behind the flush does not come");
            std::thread::sleep(Duration::from_millis(20));
        }
        running.signal("INT");
        running.wait().expect_code(130);
        let mut keys = cluster.keys().unwrap();
        keys.retain(|key| !key.starts_with(b"df2redis:"));
        keys.sort();
        assert_eq!(keys, [&b"a"[..], b"b", b"c", b"end"], "{held} {empty}");
    }
}

#[test]
fn a_flushdb_of_a_database_that_a_server_does_not_have_empties_nothing() {
    let Some(server) = server_with(ServerKind::Redis7, ServerOptions::default().config("databases", "2")) else {
        return;
    };
    // Nobody may ask how many it has.
    server.client().unwrap().run("ACL SETUSER blind on >blind ~* &* +@all -config").unwrap();
    for blind in [false, true] {
        let master = Hand::new(vec![flushed(0, 5)]).start();
        let (source, target) =
            (format!("dragonfly://127.0.0.1:{}", master.port()), format!("redis://127.0.0.1:{}", server.port()));
        let mut command = program(&["replicate", "--source", &source, "--target", &target, "--output", "json"]);
        command.args(["--memory", "128MiB", "--progress", "off"]);
        if blind {
            command.env("DF2REDIS_TARGET_USER", "blind").env("DF2REDIS_TARGET_PASSWORD", "blind");
        }
        let running = start(command);
        wait_for_key(&server, 0, "end");
        running.signal("INT");
        running.wait().expect_code(130);
        let mut client = server.client().unwrap();
        assert_eq!(names_of(&mut client), ["a", "b", "c", "end"], "{blind}");
        client.run("FLUSHALL").unwrap();
    }
}

/// As a source has them that was itself loaded from a target of this tool.
#[test]
fn keys_with_the_tools_own_names_are_left_out_and_counted() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut flow = FlowBytes::new();
    flow.string(b"a", b"1")
        .string(b"b", b"1")
        .string(b"c", b"1")
        .string(b"df2redis", b"1")
        .string(b"x:df2redis:y", b"1");
    flow.string(b"df2redis:m:{tag}:0", b"0123456789abcdef:99").list(b"df2redis:checkpoint", &texts("e", 400), 10);
    flow.journal(0, &["SET", "df2redis:lease", "v"]).journal(0, &["DEL", "b", "df2redis:checkpoint"]);
    flow.journal(0, &["RENAME", "c", "df2redis:c"]).journal(0, &["SET", "value", "df2redis:v"]);
    let master = Hand::new(vec![flow]).start();
    let all = |server: &Server| {
        let found = contents(&mut server.client().unwrap());
        found.keys().map(|(_, key)| String::from_utf8_lossy(key).into_owned()).collect::<Vec<_>>()
    };
    let run = migrate(master.port(), server.port(), &[]);
    run.expect_code(0);
    assert_eq!(all(&server), ["a", "df2redis", "value", "x:df2redis:y"]);
    let filtered = &run.report["filtered"];
    let of = |what: &str| filtered[what]["own-name"].as_u64();
    assert_eq!((of("keys"), of("records"), of("records_changed")), (Some(2), Some(1), Some(2)), "{filtered}");
    assert_eq!(run.stderr.matches("a key of the source is left out").count(), 1, "{}", run.stderr);
    assert!(run.stderr.contains("key=df2redis:m:{tag}:0"), "{}", run.stderr);
    // Under other names they are carried, and what comes to have such a name is not.
    let rules = ["--rewrite-prefix", "df2redis:=old:", "--rewrite-prefix", "x:=", "--exclude-key", "df2redis"];
    let run = migrate(master.port(), server.port(), &[&rules[..], &["--on-existing", "flush"]].concat());
    run.expect_code(2);
    let rules = ["--rewrite-prefix", "df2redis:=old:", "--on-existing", "flush"];
    migrate(master.port(), server.port(), &rules).expect_code(0);
    assert_eq!(all(&server), ["a", "df2redis", "old:c", "old:lease", "old:m:{tag}:0", "value", "x:df2redis:y"]);
    let rules = ["--rewrite-prefix", "x:df2redis=df2redis", "--exclude-key", "df2redis", "--on-existing", "flush"];
    let run = migrate(master.port(), server.port(), &rules);
    run.expect_code(0);
    assert_eq!(all(&server), ["a", "value"]);
    assert_eq!(run.report["filtered"]["keys"]["own-name"], 3);
    let run = migrate(master.port(), server.port(), &["--rewrite-prefix", "x:=df2redis:x", "--on-existing", "flush"]);
    run.expect_code(2);
    assert!(run.stderr.contains("names of the tool's own"), "{}", run.stderr);
}

#[test]
fn a_value_from_a_key_with_the_tools_own_name_is_refused_by_name() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut flow = FlowBytes::new();
    stable(&mut flow, &[&["SET", "a", "v"], &["SET", "df2redis:x", "v"], &["RENAME", "df2redis:x", "a"]]);
    let master = Hand::new(vec![flow]).start();
    let run = replicate(master.port(), server.port(), &[]).wait();
    run.expect_code(3).expect_text("RENAME").expect_text("LSN 102").expect_text("tool's own keys");
}

/// The positions, markers and lease of the running job are not the source's to write, nor to delete.
#[test]
fn a_source_with_keys_of_the_tools_names_overwrites_none_of_its_own() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let spec = Spec { flows_count: 2, ..Spec::of("string:60B=20").unwrap() };
    let live = Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap();
    let say = |line: &str| job::run(&live, line);
    say("HSET df2redis:checkpoint master other flows 7 phase full owned 0 lsn:0 1 lsn:1 1");
    say("SET df2redis:lease other");
    let log = server.dir().join("tool.log");
    let mut client = server.client().unwrap();
    let start = || Tool::start(job::binary(), live.port(), server.port(), &log, &[]).unwrap();
    let mut stable = |tool: &mut Tool| {
        until(tool, "it is not in step", || {
            let phase = client.ask(&["HGET", "df2redis:checkpoint", "phase"]).unwrap().text();
            live.is_acknowledged() && phase.as_deref() == Some("stable")
        });
    };
    let mut tool = start();
    stable(&mut tool);
    (0..40).for_each(|n| say(&format!("INCR n{n}")));
    say("HSET df2redis:checkpoint lsn:0 1 lsn:1 1");
    say("SET df2redis:lease another");
    stable(&mut tool);
    let said = tool.said();
    tool.kill();
    let mut tool = start();
    (0..40).for_each(|n| say(&format!("INCR n{n}")));
    say("DEL df2redis:checkpoint df2redis:lease");
    stable(&mut tool);
    job::stop(&mut tool);
    assert_eq!((live.registrations_count(), live.partial_count()), (2, 1), "{}", tool.said());
    let truth = server.dir().join("truth.jsonl");
    live.write_truth(&truth).unwrap();
    compare(&server, ServerKind::Redis7, &truth).unwrap_or_else(|text| panic!("{text}\n{}", tool.said()));
    assert!(said.contains("a key of the source is left out"), "{said}");
}

/// The same of the marker of a slot, which says what is not to be applied again.
#[test]
fn a_source_with_a_marker_of_a_cluster_loses_nothing() {
    let spec = Spec { flows_count: 1, ..Spec::of("string:60B=20").unwrap() };
    let Some(world) = Clustered::new(false, ServerOptions::default(), spec, LiveOptions::default()) else { return };
    let at = (0..3).find(|node| *node != node_of("df2redis:checkpoint")).unwrap();
    let number = key_on(at, "n");
    let mut tool = world.start_by(0, &[]);
    world.wait_applied(&mut tool);
    world.run(&format!("INCR {number}"));
    world.wait_applied(&mut tool);
    let mut node = world.client(at);
    let mut text = |line: &str| node.run(line).unwrap();
    let found = text("KEYS df2redis:m:*");
    let marker = found.array().unwrap()[0].text().unwrap();
    let value = text(&format!("GET {marker}")).text().unwrap();
    let (tag, lsn) = value.split_once(':').unwrap();
    let later = lsn.parse::<u64>().unwrap() + 1000;
    world.run(&format!("SET {marker} {tag}:{later}"));
    world.wait_applied(&mut tool);
    tool.kill();
    let mut tool = world.start_by(0, &[]);
    (0..5).for_each(|_| world.run(&format!("INCR {number}")));
    world.run(&format!("DEL {marker}"));
    world.wait_applied(&mut tool);
    world.finish(tool);
}

/// A snapshot with a FLUSHDB of database 5 in the middle, and one behind it.
fn flushed_elsewhere() -> FlowBytes {
    let mut flow = flushed(0, 5);
    flow.journal(5, &["FLUSHDB"]).string(b"d", b"v").late_journal(5, &["FLUSHDB"]);
    flow
}

#[test]
fn a_flushdb_of_a_database_that_is_not_carried_voids_no_full_sync() {
    let Some(small) = server_with(ServerKind::Redis7, ServerOptions::default().config("databases", "2")) else {
        return;
    };
    for more in [&[][..], &["--exclude-db", "5"], &["--include-db", "0", "--on-existing", "replace"]] {
        let replaces = more.contains(&"replace");
        let mut client = small.client().unwrap();
        client.run("FLUSHALL").unwrap();
        if replaces {
            client.run("SET own v").unwrap();
        }
        let master = Hand::new(vec![flushed_elsewhere()]).start();
        migrate(master.port(), small.port(), more).expect_code(0);
        let wanted: &[&str] = if replaces { &["a", "b", "c", "d", "own"] } else { &["a", "b", "c", "d"] };
        assert_eq!(names_of(&mut client), wanted, "{more:?}");
        assert_eq!(master.registrations_count(), 1, "the sync was begun anew: {more:?}");
    }
}

#[test]
fn a_flushdb_of_a_database_that_is_not_carried_is_passed_beside_keys_of_the_targets_own() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    server.client().unwrap().run("SET own v").unwrap();
    let master = Hand::new(vec![flushed(0, 5)]).start();
    let more = ["--exclude-db", "5", "--on-existing", "replace"];
    let running = replicate(master.port(), server.port(), &more);
    wait_for_key(&server, 0, "end");
    running.signal("INT");
    running.wait().expect_code(130);
    assert_eq!(names(&server), ["0/a", "0/b", "0/c", "0/end", "0/own"]);
    // One that is carried would take the target's own with it.
    server.client().unwrap().run("FLUSHALL").unwrap();
    server.client().unwrap().run("SET own v").unwrap();
    let run = replicate(master.port(), server.port(), &["--on-existing", "replace"]).wait();
    run.expect_code(3).expect_text("held keys of its own");
    assert_eq!(server.client().unwrap().run("EXISTS own").unwrap().int(), Some(1));
}

/// Of two flows that go on from positions before and behind such a record, one never comes to it.
#[test]
fn a_flush_of_what_is_not_carried_is_waited_for_by_no_flow() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let master = Hand::new(vec![flushed(0, 5), FlowBytes::new()]).start();
    let running = replicate(master.port(), server.port(), &["--exclude-db", "5"]);
    wait_for_key(&server, 0, "end");
    running.signal("INT");
    running.wait().expect_code(130);
}

/// A source gives slots of its database 0 away: they are deleted where that is at the target, and nowhere else.
#[test]
fn slots_are_given_away_where_their_database_is() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    for (more, wanted) in [
        (&[][..], &["0/end", "1/b"][..]),
        (&["--db-map", "0:2,1:0"], &["0/b", "2/end"]),
        (&["--exclude-db", "0", "--db-map", "1:0"], &["0/b", "0/end1"]),
    ] {
        server.client().unwrap().run("FLUSHALL").unwrap();
        let mut flow = FlowBytes::new();
        flow.db(0).string(b"a", b"v").db(1).string(b"b", b"v");
        encode::journal_command(&mut flow.stable, 0, 7, &["DFLYCLUSTER", "FLUSHSLOTS", "0", "16383"]);
        encode::journal_command(&mut flow.stable, 0, 0, &["SET", "end", "v"]);
        if more.contains(&"--exclude-db") {
            encode::journal_command(&mut flow.stable, 1, 0, &["SET", "end1", "v"]);
        }
        let master = Hand::new(vec![flow]).start();
        let running = replicate(master.port(), server.port(), more);
        let (db, end) = wanted.iter().find_map(|name| name.split_once("/end")).unwrap();
        wait_for_key(&server, db.parse().unwrap(), &format!("end{end}"));
        running.signal("INT");
        running.wait().expect_code(130);
        assert_eq!(names(&server), wanted, "{more:?}");
    }
}

/// Whoever has one database, or two, is not sent what would need more, nor a cluster what no node of it does.
#[test]
fn what_has_no_place_at_the_target_is_refused_with_its_lsn() {
    let few = server_with(ServerKind::Redis7, ServerOptions::default().config("databases", "2"));
    let clusters = [cluster(ServerKind::Redis7), cluster(ServerKind::Valkey9)];
    let records: [&[&str]; 3] = [
        &["MOVE", "k{l}", "3"],
        &["SORT", "k{l}", "BY", "w_*", "STORE", "d{l}"],
        &["SORT", "k{l}", "GET", "{l}*", "STORE", "d{l}"],
    ];
    let ports = few.iter().map(|server| (server.port(), 1));
    for (port, count) in ports.chain(clusters.iter().flatten().map(|cluster| (cluster.port(), 3))) {
        for record in &records[..count] {
            let mut flow = FlowBytes::new();
            stable(&mut flow, &[&["RPUSH", "k{l}", "1"], record]);
            let master = Hand::new(vec![flow]).start();
            let run = replicate(master.port(), port, &["--on-existing", "flush"]).wait();
            run.expect_code(3).expect_text(record[0]).expect_text("k{l}").expect_text("LSN 101");
        }
    }
}
