//! Recorded commands over several slots of a cluster, one by one: the cluster ends with what one server makes of the same
//! commands, and nothing of the tool's own is left behind. What cannot be carried out is refused by name, what has lost its
//! operands is listed. (Kills between the parts of such a record: `cluster_order`.)

mod common;

use common::{Contents, FlowBytes, Hand, contents, migrate, noise, server_with, whole_contents};
use df2redis::lab::LabError;
use df2redis::lab::answers::{ClusterPorts, TargetIdentity};
use df2redis::lab::cluster::Cluster;
use df2redis::lab::encode::{string, types};
use df2redis::lab::script::{ScriptOptions, ScriptedTarget};
use df2redis::lab::servers::{Server, ServerKind, ServerOptions, find_module, find_server};
use df2redis::redis::slot::{slot, tag};
use std::collections::BTreeSet;

/// What the commands work on. Names of one letter lie in different slots.
const BEFORE: &[&str] = &[
    "ZADD a 1 x 2.5 y 0.1 z 1e300 w",
    "ZADD b 10 y 0.2 z 7 v",
    "ZADD c 3 y 4 u",
    "SADD s y z new",
    "RPUSH l gamma Alpha beta alpha",
    "RPUSH m 10 9 8 7 6",
    "GEOADD g 13.361389 38.115556 Palermo 15.087269 37.502669 Catania 2.349014 48.864716 Paris",
    "SET t text PXAT 99999999999999",
    "HSET h f v",
    "XADD x 5-1 f v",
    "XADD x 6-1 f w",
    "XGROUP CREATE x readers 5-1",
    "XCLAIM x readers ann 0 6-1 TIME 1700000000000 RETRYCOUNT 3 FORCE JUSTID LASTID 6-1",
];

/// Each over several slots; the last key of each is its own.
const COMMANDS: &[&str] = &[
    "ZUNIONSTORE d1 3 a b c",
    "ZUNIONSTORE d2 3 a s none WEIGHTS 2 3 4 AGGREGATE MAX",
    "ZINTERSTORE d3 2 a b",
    "ZINTERSTORE d4 3 a b a AGGREGATE MIN",
    "ZDIFFSTORE d5 3 a b c",
    "ZUNIONSTORE a 2 a b",
    "ZINTERSTORE gone 2 none nothing",
    "ZRANGESTORE d6 a 1 -1",
    "ZRANGESTORE d7 a +inf (1 BYSCORE REV LIMIT 0 2",
    "ZRANGESTORE d8 none 0 -1",
    "SORT l ALPHA STORE d9",
    "SORT l ALPHA DESC LIMIT 1 2 STORE d10",
    "SORT m STORE d11",
    "SORT s BY nosort ALPHA STORE d12",
    "SORT none STORE t2",
    "GEORADIUS g 15 37 200 km STORE d13",
    "GEORADIUS g 15 37 2000 km ASC COUNT 2 STOREDIST d14",
    "GEORADIUSBYMEMBER g Paris 2000 mi STOREDIST d15",
    "LMPOP 3 none m l LEFT",
    "LMPOP 2 none m RIGHT COUNT 2",
    "LMPOP 2 none nothing LEFT",
    "BLMPOP 0 2 d9 m LEFT COUNT 100",
    "ZMPOP 3 none c b MIN",
    "ZMPOP 2 none b MAX COUNT 100",
    "LMOVE l m RIGHT LEFT",
    "BLMOVE m d16 LEFT RIGHT 0",
    "RPOPLPUSH l d17",
    "BRPOPLPUSH m d18 0",
    "RENAME t t3",
    "RENAMENX h h2",
    "RENAME x x2",
    "MSET p 1 q 2 r 3",
    "DEL p r none",
];

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

/// A cluster and a server of the same kind, or why the test skips.
fn servers(kind: ServerKind, options: ServerOptions) -> Option<(Cluster, Server)> {
    let cluster = match find_server(kind).and_then(|binary| Cluster::start(&binary, 3, false, options.clone())) {
        Err(LabError::NoServer { what, .. }) => {
            eprintln!("skipped: no {what} here");
            return None;
        }
        cluster => cluster.unwrap(),
    };
    Some((cluster, server_with(kind, options)?))
}

fn source(lines: &[&str]) -> FlowBytes {
    let mut flow = FlowBytes::new();
    for line in lines {
        flow.journal(0, &words(line));
    }
    flow
}

/// Without the blocking forms' wait, as a client of one server.
fn tell(server: &Server, line: &str) {
    let mut client = server.client().unwrap();
    let reply = client.run(line);
    assert!(reply.is_ok(), "{line}: {reply:?}");
}

#[test]
fn every_command_comes_to_what_one_server_makes_of_it() {
    for kind in [ServerKind::Redis7, ServerKind::Valkey9] {
        let Some((cluster, judge)) = servers(kind, ServerOptions::default()) else { continue };
        let names: BTreeSet<u16> = "abcslmgthx".chars().map(|name| slot(name.to_string().as_bytes()).0).collect();
        assert_eq!(names.len(), 10, "two names in one slot");
        let lines: Vec<&str> = BEFORE.iter().chain(COMMANDS).copied().collect();
        lines.iter().for_each(|line| tell(&judge, line));
        let wanted: Contents = whole_contents(&mut judge.client().unwrap());
        // What MSET writes in a full sync may have been deleted silently: the source is asked.
        let master = Hand::new(vec![source(&lines)]).holds(0, b"q").start();
        let run = migrate(master.port(), cluster.port(), &[]);
        run.expect_code(0);
        cluster.gather(&judge).unwrap();
        let found = whole_contents(&mut judge.client().unwrap());
        for (key, value) in &wanted {
            assert_eq!(found.get(key), Some(value), "{kind:?} {}\n{}", key.1.escape_ascii(), run.stderr);
        }
        let more: Vec<String> =
            found.keys().filter(|key| !wanted.contains_key(key)).map(|key| key.1.escape_ascii().to_string()).collect();
        assert!(more.is_empty(), "{kind:?}: left behind: {more:?}");
        let expiry = judge.client().unwrap().run("PEXPIRETIME t3").unwrap().int();
        assert_eq!(expiry, Some(99_999_999_999_999));
    }
}

#[test]
fn count_min_sketches_are_merged_from_other_slots() {
    let module = match find_module("redisbloom.so") {
        Ok(module) => module,
        Err(error) => return eprintln!("skipped: {error}"),
    };
    let options = ServerOptions::default().module(module);
    let Some((cluster, judge)) = servers(ServerKind::Redis7, options) else { return };
    let lines = [
        "CMS.INITBYDIM d 2000 5",
        "CMS.INITBYDIM e 2000 5",
        "CMS.INITBYDIM f 2000 5",
        "CMS.INCRBY d x 100",
        "CMS.INCRBY e x 5 y 7",
        "CMS.INCRBY f x 1 z 3",
        "CMS.MERGE d 2 e f WEIGHTS 2 10",
        "CMS.MERGE f 2 f d",
        "CMS.INCRBY e y 1",
    ];
    lines.iter().for_each(|line| tell(&judge, line));
    let run = migrate(Hand::new(vec![source(&lines)]).start().port(), cluster.port(), &[]);
    run.expect_code(0);
    let mut keys = cluster.keys().unwrap();
    keys.sort();
    assert_eq!(keys, [b"d", b"e", b"f"]);
    for key in ["d", "e", "f"] {
        let question = format!("CMS.QUERY {key} x y z");
        let wanted = judge.client().unwrap().run(&question).unwrap();
        let node = usize::from(slot(key.as_bytes()).0) * 3 / 16384;
        assert_eq!(cluster.nodes[node].client().unwrap().run(&question).unwrap(), wanted, "{key}");
    }
}

/// Nobody can carry them out: as into one server they are listed, and the run goes on.
#[test]
fn what_lost_its_operands_is_listed() {
    let Some((cluster, _)) = servers(ServerKind::Redis7, ServerOptions::default()) else { return };
    let lines = [
        "ZUNIONSTORE d1 a b",
        "ZINTERSTORE d2",
        "ZDIFFSTORE a d3",
        "ZRANGESTORE d4 a",
        "LMPOP l m",
        "ZMPOP b c",
        "SORT STORE d5",
        "GEORADIUS d6",
        "CMS.MERGE d7 e",
    ];
    let lines: Vec<&str> = BEFORE.iter().chain(&lines).copied().collect();
    for more in [&[][..], &["--exclude-key", "zzz"], &["--exclude-key", "[ae]"], &["--db-map", "1:2"]] {
        cluster.nodes.iter().for_each(|node| drop(node.client().unwrap().run("FLUSHALL").unwrap()));
        let more = [more, &["--on-unsupported", "filters=skip"]].concat();
        let run = migrate(Hand::new(vec![source(&lines)]).start().port(), cluster.port(), &more);
        run.expect_code(0);
        let listed = serde_json::to_string(&run.report).unwrap();
        let outside: &[&str] = if more.contains(&"[ae]") { &["a", "e"] } else { &[] };
        for key in ["d1", "d2", "d3", "d4", "d5", "d6", "d7", "l", "m", "b", "c"] {
            assert!(listed.contains(&format!("\"key\":\"{key}\"")), "{more:?}: {key} is not listed in {listed}");
        }
        for key in outside {
            assert!(!listed.contains(&format!("\"key\":\"{key}\"")), "{more:?}: {key} is listed in {listed}");
        }
        assert!(listed.contains("doubtful-Truncated"), "{listed}");
    }
}

/// A key that is read, and not changed, may be sent by the snapshot behind the record.
#[test]
fn what_was_stored_in_a_full_sync_is_listed() {
    let Some((cluster, one)) = servers(ServerKind::Redis7, ServerOptions::default()) else { return };
    for port in [cluster.port(), one.port()] {
        let mut flow = source(&BEFORE[..1]);
        flow.journal(0, &words("ZUNIONSTORE d 2 a b")).journal(0, &words("ZRANGESTORE e b 0 -1"));
        flow.journal(0, &words("SORT b STORE f")).journal(0, &words("RENAME a g")).journal(0, &words("ZADD b 1 x"));
        let run = migrate(Hand::new(vec![flow]).start().port(), port, &[]);
        run.expect_code(0);
        let listed = serde_json::to_string(&run.report["not_carried"]).unwrap();
        assert_eq!(run.report["not_carried"]["counts"]["doubtful-EarlyRead/verify"], 3, "{listed}");
        for key in ["d", "e", "f"] {
            assert!(listed.contains(&format!("\"key\":\"{key}\"")), "{key} is not listed in {listed}");
        }
    }
}

/// Commands that end early at the source, for there is nothing to read, or not what they read, and are recorded all the same where
/// their keys lie on one shard: what they would have stored into is left alone, and no run ends.
#[test]
fn regression_what_did_nothing_at_the_source_does_nothing() {
    let lines = [
        "SORT none STORE da",
        "SORT none BY nosort STORE db",
        "SORT l STORE dc",
        "SORT h STORE dd",
        "GEORADIUS none 15 37 200 km STORE de",
        "GEORADIUS h 15 37 200 km STORE df",
        "GEORADIUSBYMEMBER none Palermo 200 km STOREDIST dg",
        "GEORADIUSBYMEMBER g Nowhere 200 km STORE dh",
        "ZUNIONSTORE di 2 a t",
        "ZINTERSTORE dj 2 a t",
        "ZDIFFSTORE dk 2 a t",
        "ZRANGESTORE dm l 0 -1",
        "LMPOP 2 none t LEFT",
        // Refused, and recorded on one shard, too.
        "XSETID none 9-9",
        "XSETID t 9-9",
        "XSETID x 3-1",
        "ZINCRBY i -inf m",
        "ZADD i INCR -inf m",
        "ZMPOP 1 t MIN",
        // Passes over what is no sorted set.
        "ZMPOP 3 none t p MIN",
        // What is there and gives nothing deletes, there as here.
        "GEORADIUS g 100 80 1 km STORE dn",
        "SORT l ALPHA LIMIT 9 1 STORE do",
    ];
    let before = [
        "RPUSH l gamma beta",
        "HSET h f v",
        "GEOADD g 13 38 Palermo",
        "ZADD a 1 b",
        "SET t text",
        "XADD x 5-1 f v",
        "ZADD i inf m",
        "ZADD p 1 m",
    ];
    let stored = || ('a'..='o').filter(|letter| *letter != 'l').map(|letter| format!("d{letter}"));
    for kind in [ServerKind::Redis7, ServerKind::Valkey9] {
        let Some((cluster, one)) = servers(kind, ServerOptions::default()) else { continue };
        // Over several slots, and in one.
        for (port, tag) in [(one.port(), ""), (cluster.port(), ""), (cluster.port(), "{k}")] {
            let named = |line: &str| -> String {
                let is_key =
                    |word: &str| "lhgatxip".contains(word) || word == "none" || stored().any(|key| key == word);
                let named = |word: &str| if is_key(word) { format!("{tag}{word}") } else { word.to_owned() };
                line.split(' ').map(named).collect::<Vec<_>>().join(" ")
            };
            let there = stored().map(|key| format!("RPUSH {key} kept")).chain(before.map(str::to_owned));
            let lines: Vec<String> = there.chain(lines.map(str::to_owned)).map(|line| named(&line)).collect();
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            let run = migrate(Hand::new(vec![source(&lines)]).start().port(), port, &["--on-existing", "flush"]);
            run.expect_code(0);
            if port == cluster.port() {
                cluster.gather(&one).unwrap();
            }
            let left = contents(&mut one.client().unwrap());
            let left: BTreeSet<&[u8]> = left.keys().map(|(_, key)| key.as_slice()).collect();
            let gone: Vec<String> = stored().filter(|key| !left.contains(named(key).as_bytes())).collect();
            assert_eq!(gone, ["dn", "do"], "{kind:?} {tag}\n{}", run.stderr);
            for (key, is_there) in [("t", true), ("i", true), ("p", false)] {
                assert_eq!(left.contains(named(key).as_bytes()), is_there, "{kind:?} {tag} {key}");
            }
        }
    }
}

/// A value that is left out takes the place of one that is not, also if it only was one server, or one slot.
#[test]
fn a_key_renamed_over_another_is_gone_where_its_value_is_left_out() {
    let Some((cluster, one)) = servers(ServerKind::Redis7, ServerOptions::default()) else { return };
    for port in [one.port(), cluster.port()] {
        let mut flow = FlowBytes::new();
        for key in ["j", "{k2}j", "{k4}j"] {
            flow.object(types::JSON, key.as_bytes(), |out| string(out, b"[1]", false));
        }
        for key in ["k", "k2", "k3", "k5", "k6"] {
            flow.string(key.as_bytes(), b"old");
        }
        for line in ["RENAME j k", "RENAME {k2}j k2", "RENAMENX {k4}j k4", "RENAME k3 k5", "RENAME k6 k6"] {
            flow.journal(0, &words(line));
        }
        let master = Hand::new(vec![flow]).start();
        let run = migrate(master.port(), port, &["--on-unsupported", "json=skip"]);
        run.expect_code(0);
        if port == cluster.port() {
            cluster.gather(&one).unwrap();
        }
        let left: Vec<String> = contents(&mut one.client().unwrap())
            .into_iter()
            .map(|((_, key), _)| key.escape_ascii().to_string())
            .filter(|key| !key.starts_with("df2redis:"))
            .collect();
        assert_eq!(left, ["k5", "k6"], "{}", run.stderr);
        let listed = serde_json::to_string(&run.report["not_carried"]).unwrap();
        let counts = &run.report["not_carried"]["counts"];
        assert_eq!((&counts["doubtful-Renamed/verify"], &counts["json/skip"]), (&3.into(), &3.into()), "{listed}");
        for key in ["k", "k2", "k4"] {
            assert!(listed.contains(&format!("\"key\":\"{key}\"")), "{key} is not listed in {listed}");
        }
    }
}

/// A kill has left a copy in pages, whose name a later record's copy gets.
#[test]
fn a_copy_that_a_kill_has_left_is_replaced() {
    let Some((cluster, _)) = servers(ServerKind::Redis7, ServerOptions::default()) else { return };
    let home = slot(b"d");
    let left = format!("df2redis:t:{{{}}}:0:0", tag(home));
    let told = cluster.nodes.iter().filter(|node| node.client().unwrap().run(&format!("SET {left} v")).is_ok());
    assert_eq!(told.count(), 1);
    let master = Hand::new(vec![source(&["RPUSH l b a", "SORT l ALPHA STORE d"])]).start();
    migrate(master.port(), cluster.port(), &["--on-existing", "replace"]).expect_code(0);
    let mut keys = cluster.keys().unwrap();
    keys.sort();
    assert_eq!(keys, [&b"d"[..], b"l"]);
}

/// Patterns name keys that the record does not: no node of a cluster reads them.
#[test]
fn patterns_over_several_slots_are_refused_by_name() {
    let ports = ClusterPorts::default();
    let identity = TargetIdentity::default().in_cluster(&ports);
    let target = ScriptedTarget::start(ScriptOptions { identity, ..ScriptOptions::default() }).unwrap();
    ports.lock().unwrap().push(target.port());
    for line in ["SORT src BY w_* STORE dst", "SORT src GET # GET v_* STORE dst"] {
        let run = migrate(Hand::new(vec![source(&[line])]).start().port(), target.port(), &[]);
        run.expect_code(3)
            .expect_text("the recorded command SORT on the key \"src\", over several slots")
            .expect_text("by a pattern");
    }
    assert!(target.received_of("SORT").is_empty() && target.received_of("DUMP").is_empty());
}

/// More than 16 MiB do not pass through a control connection at once: such values are copied in pages.
#[test]
fn values_too_long_for_one_answer_go_to_other_slots() {
    for kind in [ServerKind::Redis7, ServerKind::Redis8] {
        let Some((cluster, plain)) = servers(kind, ServerOptions::default()) else { continue };
        let expires = kind == ServerKind::Redis8;
        let texts: Vec<Vec<u8>> = (0..60).map(|n| noise(2 * n + 1, 300 << 10)).collect();
        let mut flow = FlowBytes::new();
        let until = b"99999999999999";
        flow.list(b"l", &texts, 8).string(b"t", &texts.concat());
        for (n, text) in texts.iter().enumerate() {
            let n = n.to_string();
            flow.journal(0, &[b"ZADD", &b"z"[..], n.as_bytes(), text]).journal(0, &[b"SADD", &b"s"[..], text]);
            flow.journal(0, &[b"HSET", &b"h"[..], n.as_bytes(), text]);
        }
        if expires {
            flow.journal(0, &words("HEXPIRE h 90000 FIELDS 1 7"));
        }
        flow.journal(0, &[b"PEXPIREAT", &b"l"[..], until]);
        for line in
            ["RENAME l l2", "RENAME t t2", "RENAME h h2", "ZUNIONSTORE u 3 z s none WEIGHTS 2 100 1", "RENAME z z2"]
        {
            flow.journal(0, &words(line));
        }
        let run = migrate(Hand::new(vec![flow]).start().port(), cluster.port(), &[]);
        run.expect_code(0);
        let mut keys = cluster.keys().unwrap();
        keys.sort();
        assert_eq!(keys, [&b"h2"[..], b"l2", b"s", b"t2", b"u", b"z2"]);
        cluster.gather(&plain).unwrap();
        let mut client = plain.client().unwrap();
        let found = contents(&mut client);
        let of = |key: &str| &found[&(0, key.as_bytes().to_vec())].1;
        assert!(*of("l2") == texts && *of("t2") == [texts.concat()] && of("s").len() == 60, "{kind:?}");
        let scores = |of: &dyn Fn(usize) -> usize| -> Vec<Vec<u8>> {
            let pairs = texts.iter().enumerate().map(|(n, text)| [text.clone(), of(n).to_string().into_bytes()]);
            pairs.flatten().collect()
        };
        let shown = |key: &str| -> Vec<String> {
            of(key)
                .iter()
                .map(|text| text.iter().take(6).copied().collect::<Vec<u8>>().escape_ascii().to_string())
                .collect()
        };
        assert!(*of("z2") == scores(&|n| n), "{kind:?} {:?}", shown("z2"));
        assert!(*of("u") == scores(&|n| 2 * n + 100), "{kind:?} {:?}", shown("u"));
        let mut fields: Vec<_> =
            texts.iter().enumerate().map(|(n, text)| [n.to_string().into_bytes(), text.clone()]).collect();
        fields.sort();
        assert!(*of("h2") == fields.concat(), "{kind:?}");
        assert_eq!(client.run("PEXPIRETIME l2").unwrap().int(), Some(99_999_999_999_999));
        if expires {
            let times = client.run("HPEXPIRETIME h2 FIELDS 2 7 8").unwrap();
            let times: Vec<i64> = times.array().unwrap().iter().map(|time| time.int().unwrap()).collect();
            assert!(times[0] > 0 && times[1] == -1, "{times:?}");
        }
    }
}

/// Of a key that was too long a kill leaves the copy in pages. When the record is carried out again the key may be gone.
#[test]
fn what_a_kill_has_left_of_a_copy_is_not_read_for_a_key_that_is_gone() {
    let Some((cluster, _)) = servers(ServerKind::Redis7, ServerOptions::default()) else { return };
    let home =
        |key: &str| (slot(key.as_bytes()), cluster.nodes[usize::from(slot(key.as_bytes()).0) * 3 / 16384].client());
    let plant = |key: &str, number: usize, value: &[&str]| {
        let (slot, client) = home(key);
        let name = format!("df2redis:t:{{{}}}:0:{number}", tag(slot));
        let args = [&[value[0], &name], &value[1..]].concat();
        assert_ne!(client.unwrap().ask(&args).unwrap().int(), None);
        name
    };
    let left = [plant("d", 1, &["ZADD", "5", "old"]), plant("to", 0, &["RPUSH", "old"])];
    let mut flow = source(&["ZADD a 1 x", "ZUNIONSTORE d 2 a none", "RENAME none to"]);
    flow.string(b"last", b"v");
    let master = Hand::new(vec![flow]).start();
    migrate(master.port(), cluster.port(), &["--on-existing", "replace"]).expect_code(0);
    let members = home("d").1.unwrap().run("ZRANGE d 0 -1").unwrap();
    let members: Vec<String> = members.array().unwrap().iter().map(|member| member.text().unwrap()).collect();
    assert_eq!(members, ["x"]);
    let keys = cluster.keys().unwrap();
    assert!(!keys.iter().any(|key| left.iter().any(|name| name.as_bytes() == key)), "{keys:?}");
}

/// A stream cannot be taken to pieces and put together again as it was. That is said at once.
#[test]
fn long_streams_are_refused_by_name() {
    let Some((cluster, _)) = servers(ServerKind::Redis7, ServerOptions::default()) else { return };
    let mut flow = FlowBytes::new();
    for n in 1..60 {
        flow.journal(0, &[b"XADD", &b"x"[..], format!("{n}-1").as_bytes(), b"f", &noise(n, 300 << 10)]);
    }
    flow.journal(0, &["RENAME", "x", "x2"]);
    let run = migrate(Hand::new(vec![flow]).start().port(), cluster.port(), &[]);
    run.expect_code(3).expect_text("RENAME on the key \"x\"").expect_text("a stream, is too long");
}
