//! Databases, filters and other names into a real cluster, in the snapshot, its journal and the stable journal: what is carried lies in
//! the slot of its name at the target, what is left out is counted, and what cannot be carried is refused by name before it is written,
//! and before anything is where the source tells of it.

mod common;

use common::clustered::node_of;
use common::job::{self, until};
use common::{Contents, FlowBytes, Hand, Run, Running, contents, migrate, program, server, start, texts};
use df2redis::lab::LabError;
use df2redis::lab::client::{Client, Reply};
use df2redis::lab::cluster::Cluster;
use df2redis::lab::encode as enc;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::{Master, MasterOptions, Scripted};
use df2redis::lab::servers::{Server, ServerKind};
use df2redis::lab::torture::{Tool, wait_for};
use df2redis::redis::slot::slot;
use std::collections::BTreeSet;

/// Where a cluster keeps the checkpoint.
const CHECKPOINT: &str = "df2redis:checkpoint";

/// A cluster of three, and a server that is told what the source is told, for comparison.
struct Scene {
    cluster: Cluster,
    judge: Server,
}

impl Scene {
    /// `None`: no such server here.
    fn new() -> Option<Self> {
        let cluster = match Cluster::start_kind(ServerKind::Redis7, 3, false) {
            Err(LabError::NoServer { what, .. }) => {
                eprintln!("skipped: no {what} here");
                return None;
            }
            cluster => cluster.unwrap(),
        };
        Some(Self { cluster, judge: server(ServerKind::Redis7)? })
    }

    fn client_of(&self, key: &str) -> Client {
        self.cluster.nodes[node_of(key)].client().unwrap()
    }

    fn ask(&self, args: &[&str]) -> Reply {
        self.client_of(args[1]).ask(args).unwrap()
    }

    /// Nothing is left, at the judge either.
    fn empty(&self) {
        let nodes = self.cluster.nodes.iter().chain([&self.judge]);
        nodes.for_each(|node| drop(node.client().unwrap().run("FLUSHALL").unwrap()));
    }

    fn keys(&self) -> Vec<String> {
        let keys = self.cluster.keys().unwrap();
        let mut keys: Vec<String> = keys.iter().map(|key| key.escape_ascii().to_string()).collect();
        keys.sort();
        keys
    }

    /// The same without the tool's own.
    fn data(&self) -> Vec<String> {
        self.keys().into_iter().filter(|key| !key.starts_with("df2redis:")).collect()
    }

    /// How often each node was written to since its start.
    fn changes(&self) -> Vec<String> {
        let of = |node: &Server| node.client().unwrap().info("rdb_changes_since_last_save").unwrap().unwrap();
        self.cluster.nodes.iter().map(of).collect()
    }

    /// What the judge holds, of that what `place` names, by that name.
    fn wanted(&self, place: impl Fn(&str, &str) -> Option<String>) -> Contents {
        let held = contents(&mut self.judge.client().unwrap());
        let named = held.into_iter().filter_map(|((_, key), value)| {
            let name = place(std::str::from_utf8(&key).unwrap(), &value.0)?;
            Some(((0, name.into_bytes()), value))
        });
        named.collect()
    }

    /// The cluster holds that, and nothing else but the tool's own keys. (The judge holds it then, too.)
    #[track_caller]
    fn holds(&self, wanted: &Contents, said: &str) {
        self.cluster.gather(&self.judge).unwrap();
        let mut found = contents(&mut self.judge.client().unwrap());
        found.retain(|(_, key), _| !key.starts_with(b"df2redis:"));
        let name = |key: &Vec<u8>| key.escape_ascii().to_string();
        for ((_, key), value) in wanted {
            assert_eq!(found.get(&(0, key.clone())), Some(value), "{}\n{said}", name(key));
        }
        let more: Vec<String> =
            found.keys().filter(|place| !wanted.contains_key(*place)).map(|(_, key)| name(key)).collect();
        assert!(more.is_empty(), "too many: {more:?}\n{said}");
    }

    fn checkpoint(&self, field: &str) -> Option<String> {
        self.ask(&["HGET", CHECKPOINT, field]).text()
    }

    /// A `replicate` of what a hand-made source sends, until `last` is at the target and the checkpoint is good; then it is interrupted.
    #[track_caller]
    fn follow(&self, master: &Master, last: &str, more: &[&str]) -> Run {
        let mut running = self.replicate(master.port(), more);
        let reached = wait_for(|| {
            assert!(running.is_running(), "it ended before {last}");
            let is_there = self.ask(&["EXISTS", last]).int() == Some(1);
            (is_there && self.checkpoint("phase").as_deref() == Some("stable")).then_some(())
        });
        assert!(reached.is_some(), "{last} does not come");
        running.signal("INT");
        let run = running.wait();
        run.expect_code(130);
        run
    }

    fn replicate(&self, source_port: u16, more: &[&str]) -> Running {
        let (source, target) =
            (format!("dragonfly://127.0.0.1:{source_port}"), format!("redis://127.0.0.1:{}", self.cluster.port()));
        let mut command = program(&["replicate", "--source", &source, "--target", &target, "--output", "json"]);
        command.args(["--memory", "128MiB", "--progress", "off"]).args(more);
        start(command)
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

/// A record of the stable journal, or one among the snapshot.
fn record_in(flow: &mut FlowBytes, stable: bool, record: &[impl AsRef<[u8]>]) {
    if stable {
        enc::journal_command(&mut flow.stable, 0, 0, record);
    } else {
        flow.journal(0, record);
    }
}

#[track_caller]
fn tell(server: &Server, db: u32, line: &str) {
    let mut client = server.client().unwrap();
    client.ask(&["SELECT", &db.to_string()]).unwrap();
    let reply = client.run(line);
    assert!(reply.is_ok(), "{line}: {reply:?}");
}

fn live(options: MasterOptions) -> Live {
    let spec = Spec { seed: 3, flows_count: 1, ..Spec::of("string:20B=5").unwrap() };
    Live::start(spec, LiveOptions::default(), options).unwrap()
}

fn run(live: &Live, db: u32, line: &str) {
    let args: Vec<Vec<u8>> = line.split(' ').map(|word| word.as_bytes().to_vec()).collect();
    live.world().run(db, &args);
}

/// Its user has no right to INFO.
fn silent() -> MasterOptions {
    let reply = b"-NOPERM: replicator has no ACL permissions\r\n".to_vec();
    let info = Scripted { request: "INFO".into(), reply, times: u32::MAX };
    MasterOptions { scripted: vec![info], ..MasterOptions::default() }
}

/// Not one write: the lease is not taken either.
#[test]
fn databases_that_the_source_tells_of_are_refused_before_the_first_write() {
    let Some(scene) = Scene::new() else { return };
    let live = live(MasterOptions::default());
    run(&live, 3, "SET in3 v");
    let before = scene.changes();
    for (args, text) in [
        (&[][..], "only database 0"),
        (&["--db-map", "0:3,3:0"], "only database 0"),
        (&["--db-map", "3:0"], "--db-merge on"),
        (&["--db-map", "3:1", "--exclude-db", "0"], "only database 0"),
    ] {
        let runs = [migrate(live.port(), scene.cluster.port(), args), scene.replicate(live.port(), args).wait()];
        for run in runs {
            run.expect_code(3).expect_text("database").expect_text("3").expect_text(text);
            assert!(run.stdout.contains("nothing was written"), "{args:?}: {}", run.stdout);
            assert_eq!(scene.keys(), [""; 0], "{args:?}");
        }
    }
    // Nothing was written and deleted again.
    assert_eq!(scene.changes(), before);
    let run = migrate(live.port(), scene.cluster.port(), &["--db-map", "3:0,0:0"]);
    run.expect_code(2).expect_text("--db-merge on");
    assert_eq!(scene.changes(), before);
}

#[test]
fn databases_are_mapped_and_merged_on_request() {
    let Some(scene) = Scene::new() else { return };
    let live = live(MasterOptions::default());
    for key in 0..20 {
        run(&live, 3, &format!("SET in3:{key} v"));
        run(&live, 0, &format!("SET in0:{key} v"));
    }
    let first: Vec<String> = (0..20).map(|key| format!("in3:{key}")).collect();
    for args in [&["--db-map", "3:0", "--exclude-db", "0"][..], &["--db-map", "3:0", "--include-db", "3"]] {
        let run = migrate(live.port(), scene.cluster.port(), args);
        run.expect_code(0);
        let mut found = scene.keys();
        found.sort_by_key(|key| key["in3:".len()..].parse::<u32>().unwrap());
        assert_eq!(found, first, "{args:?}");
        assert_eq!(run.report["filtered"]["keys"]["db"], 25);
        scene.empty();
    }
    migrate(live.port(), scene.cluster.port(), &["--db-map", "3:0", "--db-merge", "on"]).expect_code(0);
    assert_eq!(scene.keys().len(), 45);
}

/// At the first key, which is named; of its database nothing is there.
#[test]
fn databases_that_the_source_does_not_tell_of_are_refused_at_the_first_key() {
    let Some(scene) = Scene::new() else { return };
    let live = live(silent());
    for key in 0..50 {
        run(&live, 3, &format!("SET in3:{key} v"));
    }
    for args in [&[][..], &["--db-map", "3:0"], &["--db-map", "0:3,3:0"]] {
        for run in [migrate(live.port(), scene.cluster.port(), args), scene.replicate(live.port(), args).wait()] {
            run.expect_code(3).expect_text("the key \"");
            // Of the two databases that go into one, whichever comes second is refused.
            let of: BTreeSet<&str> =
                ["in3:", "string:"].into_iter().filter(|of| scene.data().iter().any(|key| key.contains(of))).collect();
            assert!(of.len() < 2 && (!args.is_empty() || !of.contains("in3:")), "{args:?}: {:?}", scene.data());
            scene.empty();
        }
    }
}

/// A good checkpoint, and everything is acknowledged.
#[track_caller]
fn wait_applied(scene: &Scene, live: &Live, tool: &mut Tool) {
    until(tool, "not applied", || live.is_acknowledged() && scene.checkpoint("phase").as_deref() == Some("stable"));
}

fn start_tool(scene: &Scene, live: &Live, dir: &tempfile::TempDir, more: &[&str]) -> Tool {
    let log = dir.path().join("tool.log");
    Tool::start(job::binary(), live.port(), scene.cluster.port(), &log, more).unwrap()
}

/// Not at the start, but when it is in step: with the record's LSN, which no position passes.
#[test]
fn a_database_that_comes_later_is_refused_at_its_first_record() {
    let Some(scene) = Scene::new() else { return };
    for (line, key) in
        [("SET late v", "late"), ("RPUSH late a b", "late"), ("MSET late 1 other 2", "late"), ("MOVE here 3", "here")]
    {
        let (live, dir) = (live(MasterOptions::default()), tempfile::tempdir().unwrap());
        let mut tool = start_tool(&scene, &live, &dir, &[]);
        run(&live, 0, "SET here v");
        wait_applied(&scene, &live, &mut tool);
        let lsn = live.world().next_lsns()[0];
        run(&live, if line.starts_with("MOVE") { 0 } else { 3 }, line);
        run(&live, 0, "SET behind v");
        assert_eq!(tool.wait(), Some(3), "{line}: {}", tool.said());
        let said = tool.said();
        for text in ["database 3", "only database 0", &format!("LSN {lsn}"), &format!("\"{key}\"")] {
            assert!(said.contains(text), "{line}: no {text} in {said}");
        }
        assert!(scene.data().contains(&"here".to_string()), "{line}");
        for key in ["late", "other", "behind"] {
            assert!(!scene.data().contains(&key.to_string()), "{line}: {key}");
        }
        let reached: u64 = scene.checkpoint("lsn:0").unwrap().parse().unwrap();
        assert!(reached <= lsn && live.master().unwrap().acks()[0] <= Some(lsn), "{line}: {reached} of {lsn}");
        scene.empty();
    }
}

/// The one database of a cluster answers to any FLUSHDB: one of a database that is not carried must not come to it.
#[test]
fn a_flush_of_another_database_deletes_nothing() {
    let Some(scene) = Scene::new() else { return };
    for (args, harmless, kept) in [(&[][..], vec![3, 5], 0), (&["--db-map", "3:0", "--exclude-db", "0"], vec![0, 5], 3)]
    {
        let (live, dir) = (live(MasterOptions::default()), tempfile::tempdir().unwrap());
        if kept == 3 {
            run(&live, 3, "SET first v");
        }
        let mut tool = start_tool(&scene, &live, &dir, args);
        wait_applied(&scene, &live, &mut tool);
        let before = scene.data();
        assert!(!before.is_empty());
        for db in harmless {
            run(&live, db, "FLUSHDB");
            run(&live, kept, &format!("SET behind{db} v"));
            wait_applied(&scene, &live, &mut tool);
            let mut wanted = [&before[..], &[format!("behind{db}")]].concat();
            wanted.sort();
            let found: Vec<String> = scene.data().into_iter().filter(|key| wanted.contains(key)).collect();
            assert_eq!(found, wanted, "FLUSHDB in {db}, {args:?}: {}", tool.said());
        }
        run(&live, kept, "FLUSHDB");
        run(&live, kept, "SET last v");
        wait_applied(&scene, &live, &mut tool);
        assert_eq!(scene.data(), ["last"], "{args:?}");
        job::stop(&mut tool);
        scene.empty();
    }
}

/// Two databases with keys of the same names; one of them is carried.
#[test]
fn a_mapped_database_is_followed_over_several_slots() {
    let Some(scene) = Scene::new() else { return };
    let (live, dir) = (live(MasterOptions::default()), tempfile::tempdir().unwrap());
    let both = |line: &str| {
        run(&live, 3, line);
        tell(&scene.judge, 3, line);
        // The other one has other values.
        run(&live, 0, &line.replace("-v", "-w"));
    };
    for line in ["SET a 1-v", "RPUSH l a-v b-v c-v", "HSET h f 1-v", "ZADD z 1 x-v"] {
        both(line);
    }
    let mut tool = start_tool(&scene, &live, &dir, &["--db-map", "3:0", "--exclude-db", "0"]);
    wait_applied(&scene, &live, &mut tool);
    for line in [
        "RENAME a a2",
        "MSET m1 1-v m2 2-v m3 3-v",
        "DEL m2 none",
        "INCR n",
        "LMOVE l l2 LEFT RIGHT",
        "RENAME h h2",
        "ZUNIONSTORE z2 2 z none",
        "SORT l ALPHA STORE l3",
        "APPEND a2 -v",
        "SET t 1-v PXAT 99999999999999",
        "RENAME t t2",
    ] {
        both(line);
    }
    wait_applied(&scene, &live, &mut tool);
    // The target loses a key: its new name is asked for where it is, not in database 0.
    for key in ["a2", "lost"] {
        assert_eq!(scene.ask(&["DEL", key]).int(), Some(i64::from(key == "a2")));
    }
    both("RENAME a2 lost");
    until(&mut tool, "it is not fetched", || scene.ask(&["GET", "lost"]).text().as_deref() == Some("1-v-v"));
    wait_applied(&scene, &live, &mut tool);
    job::stop(&mut tool);
    assert_eq!(scene.ask(&["PEXPIRETIME", "t2"]).int(), Some(99_999_999_999_999));
    let wanted = scene.wanted(|key, _| Some(key.to_string()));
    assert!(wanted.len() > 10);
    scene.holds(&wanted, &tool.said());
}

/// Records on keys in scope (`in:`) and out of it (`out:`, and `in:` with `:no` at the end). What becomes of each: ' ' it is applied, '~' another
/// comes in its place, '-' it is left out.
const RECORDS: &[(char, &str)] = &[
    (' ', "SET in:a 1"),
    ('-', "SET out:a 1"),
    ('-', "SET in:a:no 1"),
    ('~', "MSET in:b 1 out:b 2 in:c 3 in:d:no 4 in:d 5"),
    ('-', "MSET out:b 1 in:c:no 2"),
    (' ', "MSET in:x 1 in:y 2"),
    ('~', "DEL in:x out:x in:none in:y"),
    (' ', "DEL in:c in:none"),
    (' ', "INCR in:d"),
    (' ', "SET in:t text PXAT 99999999999999"),
    (' ', "RENAME in:t in:t2"),
    (' ', "RENAMENX in:b in:b2"),
    ('~', "RENAME in:snap out:snap"),
    ('~', "RENAMENX in:snap2 in:snap2:no"),
    ('-', "RENAME out:a out:a2"),
    (' ', "RPUSH in:l a b c d e f g h i j k"),
    ('-', "RPUSH out:l x"),
    (' ', "LMOVE in:l in:m LEFT RIGHT"),
    ('~', "LMOVE in:l out:l LEFT LEFT"),
    ('~', "LMOVE in:l in:l:no RIGHT LEFT"),
    ('~', "RPOPLPUSH in:l out:l"),
    ('-', "LMOVE out:l out:m LEFT LEFT"),
    (' ', "BLMOVE in:l in:n RIGHT LEFT 0"),
    ('~', "BLMOVE in:l out:l LEFT RIGHT 0"),
    (' ', "BRPOPLPUSH in:l in:m 0"),
    ('~', "BRPOPLPUSH in:l out:m 0"),
    (' ', "LMPOP 2 in:none in:l LEFT COUNT 2"),
    (' ', "ZADD in:za 1 x 2 y 3.5 z"),
    (' ', "ZADD in:zb 10 x 20 w"),
    (' ', "SADD in:set y q"),
    ('-', "ZADD out:zb 7 x"),
    (' ', "ZUNIONSTORE in:zu 3 in:za in:zb in:set WEIGHTS 1 2 3"),
    (' ', "ZINTERSTORE in:zi 2 in:za in:zb"),
    (' ', "ZDIFFSTORE in:zd 2 in:za in:zb"),
    ('-', "ZUNIONSTORE out:zu 2 in:za out:zb"),
    ('-', "ZINTERSTORE in:zi:no 2 in:za in:zb"),
    (' ', "ZRANGESTORE in:zr in:za 1 -1"),
    ('-', "ZRANGESTORE out:zr in:za 0 -1"),
    (' ', "ZMPOP 2 in:none in:zb MIN"),
    (' ', "SORT in:set ALPHA DESC STORE in:sorted"),
    ('-', "SORT in:set ALPHA STORE out:sorted"),
    ('-', "SORT out:l ALPHA STORE out:sorted"),
    (' ', "GEOADD in:geo 13.361389 38.115556 Palermo 15.087269 37.502669 Catania"),
    (' ', "GEORADIUS in:geo 15 37 200 km STORE in:near"),
    (' ', "GEORADIUSBYMEMBER in:geo Palermo 200 km STOREDIST in:dist"),
    ('-', "GEORADIUS in:geo 15 37 200 km STORE out:near"),
    (' ', "HSET in:h f 1"),
    (' ', "HINCRBY in:h f 2"),
    ('-', "HSET out:h f 1"),
    (' ', "RENAME in:h in:h2"),
    (' ', "SET in:last v"),
];

/// In the place of `in:` stands `old`; at the target `new` stands there.
struct Rewritten {
    old: &'static str,
    new: &'static str,
}

impl Rewritten {
    fn records(&self) -> Vec<(char, String)> {
        RECORDS.iter().map(|(what, line)| (*what, line.replace("in:", self.old))).collect()
    }

    fn place(&self, key: &str) -> Option<String> {
        let rest = key.strip_prefix(self.old)?;
        (!key.ends_with(":no")).then(|| format!("{}{rest}", self.new))
    }

    /// The snapshot, told to the judge, too.
    fn snapshot(&self, judge: &Server) -> FlowBytes {
        let mut flow = FlowBytes::new();
        for key in
            ["in:snap", "in:snap2", "in:snap3", "out:snap4", "in:snap:no"].map(|key| key.replace("in:", self.old))
        {
            flow.string(key.as_bytes(), b"v");
            tell(judge, 0, &format!("SET {key} v"));
        }
        let list = format!("{}list", self.old);
        flow.list(list.as_bytes(), &texts("e", 30), 10);
        texts("e", 30)
            .iter()
            .for_each(|text| tell(judge, 0, &format!("RPUSH {list} {}", String::from_utf8_lossy(text))));
        flow
    }

    /// RESTORE records, as of COPY: in scope and out of it.
    fn copies(&self) -> Vec<(char, Vec<Vec<u8>>)> {
        let mut body = Vec::new();
        enc::raw_string(&mut body, b"copied");
        let payload = enc::dump_payload(enc::types::STRING, &body, 9);
        let copy = |to: String| -> Vec<Vec<u8>> {
            let words: [&[u8]; 6] = [b"RESTORE", to.as_bytes(), b"0", &payload, b"REPLACE", b"ABSTTL"];
            words.map(<[u8]>::to_vec).to_vec()
        };
        vec![(' ', copy(format!("{}copy", self.old))), ('-', copy("out:copy".into()))]
    }

    /// Snapshot and journal, in both phases.
    fn carried_over(&self, is_spread: impl Fn(&BTreeSet<u16>, &BTreeSet<u16>) -> bool) {
        let Some(scene) = Scene::new() else { return };
        let records = self.records();
        let (rule, glob) = (format!("{}={}", self.old, self.new), format!("{}*", self.old));
        for stable in [false, true] {
            let scope = if stable { ["--include-key", &glob] } else { ["--include-prefix", self.old] };
            let args = [&scope[..], &["--exclude-key", "*:no", "--rewrite-prefix", &rule]].concat();
            scene.empty();
            let mut flow = self.snapshot(&scene.judge);
            let mut all = self.copies();
            all.extend(
                records
                    .iter()
                    .map(|(what, line)| (*what, words(line).iter().map(|word| word.as_bytes().to_vec()).collect())),
            );
            for (_, record) in &all {
                record_in(&mut flow, stable, record);
                let told = scene.judge.client().unwrap().ask(record).unwrap();
                assert!(!matches!(told, Reply::Error(_)), "{:?}: {told:?}", record[0].escape_ascii().to_string());
            }
            let wanted = scene.wanted(|key, _| self.place(key));
            assert!(wanted.len() > 20, "{wanted:?}");
            // What MSET writes in a full sync may have been deleted silently: the source is asked, by its own names.
            let held = contents(&mut scene.judge.client().unwrap());
            let master = held.keys().fold(Hand::new(vec![flow]), |hand, (_, key)| hand.holds(0, key)).start();
            let run = match stable {
                true => scene.follow(&master, &format!("{}last", self.new), &args),
                false => migrate(master.port(), scene.cluster.port(), &args),
            };
            if !stable {
                run.expect_code(0);
                assert_eq!(scene.keys(), scene.data(), "something of the tool's own is left");
            }
            let expiry = scene.ask(&["PEXPIRETIME", &format!("{}t2", self.new)]).int();
            assert_eq!(expiry, Some(99_999_999_999_999), "{}", run.stderr);
            scene.holds(&wanted, &run.stderr);
            let filtered = &run.report["filtered"];
            let count = |what: char| all.iter().filter(|(of, _)| *of == what).count();
            assert_eq!(filtered["records"]["key"], count('-'), "{filtered}");
            assert_eq!(filtered["records_changed"]["key"], count('~'), "{filtered}");
            assert_eq!((&filtered["keys"]["key"], &filtered["keys_renamed"]), (&2.into(), &4.into()), "{filtered}");
        }
        let slots = |old: bool| -> BTreeSet<u16> {
            let keys = RECORDS.iter().flat_map(|(_, line)| words(line)).filter(|word| word.starts_with("in:"));
            let names = keys.map(|key| key.replace("in:", if old { self.old } else { self.new }));
            names.map(|key| slot(key.as_bytes()).0).collect()
        };
        assert!(is_spread(&slots(true), &slots(false)));
    }
}

#[test]
fn what_is_in_scope_goes_to_the_slots_of_its_other_names() {
    Rewritten { old: "in:", new: "new:" }
        .carried_over(|old, new| old.len() > 20 && new.len() > 20 && old.is_disjoint(new));
}

/// Commands of one slot at the source's names are commands over several at the target.
#[test]
fn what_lay_in_one_slot_is_spread_by_its_other_names() {
    Rewritten { old: "{t}:", new: "new:" }.carried_over(|old, new| old.len() == 1 && new.len() > 20);
}

#[test]
fn what_lay_in_several_slots_comes_to_one_by_its_other_names() {
    Rewritten { old: "in:", new: "{n}:" }.carried_over(|old, new| old.len() > 20 && new.len() == 1);
}

/// Records that give a key in scope what one out of it held.
const INTO_SCOPE: &[(&str, &str)] = &[
    ("RENAME out:k in:k", "in:k"),
    ("RENAMENX out:k in:k", "in:k"),
    ("LMOVE out:l in:l LEFT LEFT", "in:l"),
    ("RPOPLPUSH out:l in:l", "in:l"),
    ("BLMOVE out:l in:l LEFT RIGHT 0", "in:l"),
    ("ZUNIONSTORE in:d 2 in:a out:b", "in:d"),
    ("ZINTERSTORE in:d 2 out:a in:b", "in:d"),
    ("ZDIFFSTORE in:d 2 out:a out:b", "in:d"),
    ("ZRANGESTORE in:d out:a 0 -1", "in:d"),
    ("SORT out:s ALPHA STORE in:d", "out:s"),
    ("SORT in:s BY w_* STORE in:d", "in:s"),
    ("GEORADIUS out:g 15 37 200 km STORE in:d", "in:d"),
    ("LMPOP 2 in:l out:l LEFT", "in:l"),
    ("ZMPOP 2 out:z in:z MIN", "out:z"),
    ("CMS.MERGE in:d 2 in:e out:e", "in:d"),
];

const SCOPE: [&str; 4] = ["--include-prefix", "in:", "--rewrite-prefix", "in:=new:"];

fn refused_run(run: &Run, line: &str, key: &str, more: &str) {
    assert_eq!(run.code(), 3, "{line}: {}\n{}", run.message(), run.stderr);
    for text in [words(line)[0], &format!("\"{key}\""), "remedy", more] {
        assert!(run.message().contains(text), "{line}: no {text} in: {}", run.message());
    }
}

#[test]
fn what_comes_into_scope_is_refused_by_name() {
    let Some(scene) = Scene::new() else { return };
    for (line, key) in INTO_SCOPE {
        let mut flow = FlowBytes::new();
        flow.string(b"in:ok", b"v").journal(0, &words(line)).journal(0, &["SET", "in:behind", "v"]);
        let run = migrate(Hand::new(vec![flow]).start().port(), scene.cluster.port(), &SCOPE);
        refused_run(&run, line, key, "");
        let found = scene.data();
        assert!(found.is_empty() || found == ["new:ok"], "{line}: {found:?}");
        scene.empty();
    }
}

/// With the LSN in the stable journal, and no position passes it.
#[test]
fn what_comes_into_scope_later_is_refused_by_name_and_lsn() {
    let Some(scene) = Scene::new() else { return };
    for (line, key) in INTO_SCOPE.iter().step_by(3) {
        let mut flow = FlowBytes::new();
        flow.string(b"in:ok", b"v");
        for record in ["SET in:one v", "SET out:two v", line, "SET in:behind v"] {
            enc::journal_command(&mut flow.stable, 0, 0, &words(record));
        }
        let master = Hand::new(vec![flow]).start();
        let run = scene.replicate(master.port(), &SCOPE).wait();
        refused_run(&run, line, key, "LSN 102");
        let found = scene.data();
        assert!(found.iter().all(|key| ["new:ok", "new:one"].contains(&key.as_str())), "{line}: {found:?}");
        let reached = scene.checkpoint("lsn:0").map_or(0, |lsn| lsn.parse::<u64>().unwrap());
        assert!(reached <= 102 && master.acks()[0] <= Some(102), "{line}: {reached}");
        scene.empty();
    }
}

/// A name that is not rewritten, and begins as those that are.
#[test]
fn names_that_could_be_one_are_refused_in_the_journal_too() {
    let Some(scene) = Scene::new() else { return };
    for line in ["SET new:k v", "RENAME in:a new:k", "MSET in:b 1 new:k 2", "ZUNIONSTORE new:k 2 in:a in:b"] {
        let mut flow = FlowBytes::new();
        flow.string(b"in:ok", b"v").journal(0, &words(line));
        let run =
            migrate(Hand::new(vec![flow]).start().port(), scene.cluster.port(), &["--rewrite-prefix", "in:=new:"]);
        run.expect_code(3).expect_text("\"new:k\"").expect_text("one name");
        assert!(!scene.data().contains(&"new:k".to_string()), "{line}");
        scene.empty();
    }
}

/// Over several slots, too: what takes the place of a key is gone if it is left out.
#[test]
fn types_are_left_out_over_several_slots() {
    let Some(scene) = Scene::new() else { return };
    let before = ["SET s v", "SET s2 v", "SET s3 v", "RPUSH l a b c", "RPUSH m a", "RPUSH m2 x", "RPUSH m3 x"];
    let records = [
        (' ', "RENAME s m"),
        (' ', "RENAME s2 fresh"),
        (' ', "RENAME m2 s3"),
        ('~', "SET m3 v"),
        ('~', "MSET p 1 l2 2"),
        ('-', "INCR n"),
        ('-', "APPEND s3x v"),
        (' ', "RPUSH l2x 1 2"),
        (' ', "LMOVE l l3 LEFT RIGHT"),
        (' ', "ZADD a 1 x 2 y"),
        (' ', "SADD b x"),
        (' ', "ZUNIONSTORE d 2 a b"),
        (' ', "SORT b ALPHA STORE d2"),
        (' ', "HSET h f v"),
        (' ', "RENAME h h2"),
        (' ', "RPUSH last v"),
    ];
    for stable in [false, true] {
        let args = if stable { ["--include-type", "list,set,zset,hash"] } else { ["--exclude-type", "string"] };
        scene.empty();
        let mut flow = FlowBytes::new();
        for line in before {
            tell(&scene.judge, 0, line);
            match words(line).as_slice() {
                ["SET", key, value] => flow.string(key.as_bytes(), value.as_bytes()),
                [_, key, elements @ ..] => {
                    let elements: Vec<Vec<u8>> = elements.iter().map(|text| text.as_bytes().to_vec()).collect();
                    flow.list(key.as_bytes(), &elements, 10)
                }
                _ => unreachable!(),
            };
        }
        for (_, line) in records {
            tell(&scene.judge, 0, line);
            record_in(&mut flow, stable, &words(line));
        }
        let wanted = scene.wanted(|key, kind| (kind != "string").then(|| key.to_string()));
        let held = contents(&mut scene.judge.client().unwrap());
        let master = held.keys().fold(Hand::new(vec![flow]), |hand, (_, key)| hand.holds(0, key)).start();
        let run = match stable {
            true => scene.follow(&master, "last", &args),
            false => migrate(master.port(), scene.cluster.port(), &args),
        };
        assert!(stable || run.code() == 0, "{}\n{}", run.message(), run.stderr);
        scene.holds(&wanted, &run.stderr);
        let filtered = &run.report["filtered"];
        let count = |what: char| records.iter().filter(|(of, _)| *of == what).count();
        assert_eq!(filtered["records"]["type"], count('-'), "{filtered}");
        assert_eq!(filtered["records_changed"]["type"], count('~'), "{filtered}");
        assert_eq!(filtered["keys"]["type"], 3, "{filtered}");
    }
}

/// Keys that the cluster held before are told by their names there. (One server: `faults_target`.)
#[test]
fn what_the_cluster_held_before_is_kept_or_replaced() {
    let Some(scene) = Scene::new() else { return };
    let source = || {
        let mut flow = FlowBytes::new();
        flow.string(b"in:taken", b"v").string(b"in:free", b"v").string(b"in:gone", b"v").string(b"in:ren", b"v");
        for line in ["MSET in:taken 1 in:fresh 2", "DEL in:taken in:gone", "RENAME in:ren in:taken2", "INCR in:taken3"]
        {
            flow.journal(0, &words(line));
        }
        // Of what MSET wrote `in:taken` is deleted.
        Hand::new(vec![flow]).holds(0, b"in:fresh").start()
    };
    let rule = ["--rewrite-prefix", "in:=new:"];
    for (policy, wanted) in [
        ("refuse", &["new:other=own", "new:taken=own", "new:taken2=own", "new:taken3=7"][..]),
        ("skip", &["new:free=v", "new:fresh=2", "new:other=own", "new:taken=own", "new:taken2=own", "new:taken3=7"]),
        ("replace", &["new:free=v", "new:fresh=2", "new:other=own", "new:taken2=v", "new:taken3=8"]),
    ] {
        scene.empty();
        for pair in ["new:other own", "new:taken own", "new:taken2 own", "new:taken3 7"] {
            let (key, value) = pair.split_once(' ').unwrap();
            scene.ask(&["SET", key, value]);
        }
        let run = migrate(source().port(), scene.cluster.port(), &[&rule[..], &["--on-existing", policy]].concat());
        run.expect_code(if policy == "refuse" { 3 } else { 0 });
        let value = |key: &String| format!("{key}={}", scene.ask(&["GET", key]).text().unwrap());
        assert_eq!(scene.keys().iter().map(value).collect::<Vec<_>>(), wanted, "{policy}: {}", run.stderr);
    }
}
