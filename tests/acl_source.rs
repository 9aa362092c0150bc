//! The least permissions that a user needs at the source, as README.md lists them: with them everything works, and each that is
//! left out is named, or what it is for is visibly not done. The source is simulated, and refuses as Dragonfly does.

mod common;
mod in_step;

use common::grants::*;
use common::job;
use common::{Run, migrate_command, program, server, start};
use df2redis::lab::generate::{Generator, Spec, verify::verify};
use df2redis::lab::live::LiveOptions;
use df2redis::lab::master::{Master, MasterOptions};
use df2redis::lab::recordings::recording;
use df2redis::lab::replay::Replay;
use df2redis::lab::servers::{Server, ServerKind};
use df2redis::lab::torture::{Tool, wait_for};
use in_step::{InStep, report};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

#[test]
fn readme_lists_the_same() {
    let readme = include_str!("../README.md");
    for line in [SOURCE_ACL, SOURCE_ACL_FETCH, SOURCE_ACL_CUTOVER, SOURCE_ACL_CONFIG, SOURCE_ACL_VERIFY] {
        assert!(readme.lines().any(|of| of.split("      # ").next() == Some(line)), "{line}");
    }
}

/// The line without one of its grants.
fn without(line: &str, missing: &str) -> String {
    let left = line.replace(&format!(" +{missing}"), "");
    assert!(left.len() < line.len(), "{missing} is not in {line}");
    left
}

fn by_the_user(command: &mut Command) -> &mut Command {
    command.env("DF2REDIS_SOURCE_USER", "df2redis").env("DF2REDIS_SOURCE_PASSWORD", "secret")
}

fn spec() -> Spec {
    Spec {
        flows_count: 2,
        databases: vec![0, 5],
        expire_fraction: 0.2,
        journal_ratio: 0.5,
        omitted_deletes_count: 2,
        ..Spec::of("string:60B=50,list:5x8=5,hash:5x8=5,set:20x9=5,zset:5x8=5,stream:20x6=2").unwrap()
    }
}

fn migrate_with(server: &Server, lines: &[&str]) -> (Run, Master) {
    server.client().unwrap().run("FLUSHALL").unwrap();
    let (master, model) = Generator::start(spec(), MasterOptions::of_user(lines)).unwrap();
    let mut command = migrate_command(master.port(), server.port(), &["--cores", "1"]);
    by_the_user(&mut command);
    let run = start(command).wait();
    if run.code() == 0 {
        let verdict = verify(&spec(), &model, &mut server.client().unwrap(), u64::MAX).unwrap();
        assert!(verdict.is_same(), "{verdict:?}");
    }
    assert_eq!(master.violations(), []);
    (run, master)
}

#[test]
fn the_listed_permissions_suffice_for_a_full_sync_and_each_is_needed() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let (run, master) = migrate_with(&server, &[SOURCE_ACL]);
    run.expect_code(0);
    assert!(run.report["clock_skew"]["source_ms"].is_i64(), "{}", run.report["clock_skew"]);
    // It was refused nothing but what it asks for a warning.
    let others: Vec<String> =
        master.requests().into_iter().filter(|asked| !asked.starts_with("CONFIG GET") && asked != "AUTH").collect();
    let is_granted = |asked: &String| {
        let name = asked.split(' ').next().unwrap_or_default().to_uppercase();
        SOURCE_ACL.split(' ').any(|grant| grant == format!("+{name}"))
    };
    assert!(others.iter().all(is_granted), "{others:?}");

    for (missing, named) in [
        ("PING", "PING"),
        ("REPLCONF", "REPLCONF listening-port"),
        ("DFLY", "DFLY FLOW"),
        ("SELECT", "SELECT"),
        ("EXISTS", "EXISTS"),
    ] {
        let (run, _) = migrate_with(&server, &[&without(SOURCE_ACL, missing)]);
        run.expect_code(4).expect_text(&format!("the source's user may not run {named} (NOPERM"));
    }
    // A run knows less, and says so.
    let (run, _) = migrate_with(&server, &[&without(SOURCE_ACL, "TIME")]);
    run.expect_code(0);
    assert_eq!(run.report["clock_skew"]["source_ms"], Value::Null);
    assert!(run.stderr.contains("a user lacks the permission for TIME"), "{}", run.stderr);
}

/// Settings by which the tool is that user.
fn settings_of_the_user(dir: &Path) -> PathBuf {
    let [password, config] = ["password", "least.toml"].map(|name| dir.join(name));
    std::fs::write(&password, "secret").unwrap();
    let settings = format!("source-user = \"df2redis\"\nsource-password-file = \"{}\"\n", password.display());
    std::fs::write(&config, settings).unwrap();
    config
}

/// A job in step with a source that grants these lines.
fn in_step(lines: &[&str], live: LiveOptions, more: &[&str]) -> Option<(InStep, tempfile::TempDir)> {
    let dir = tempfile::tempdir().unwrap();
    let config = settings_of_the_user(dir.path());
    let args = [&["--config", config.to_str().unwrap()], more].concat();
    let scene = InStep::with_source(ServerKind::Redis7, &args, live, MasterOptions::of_user(lines))?;
    Some((scene, dir))
}

#[test]
fn the_listed_permissions_suffice_to_follow_a_journal_and_to_fetch_and_each_is_needed() {
    for missing in [None, Some("DUMP"), Some("PEXPIRETIME")] {
        let fetch = missing.map_or(SOURCE_ACL_FETCH.to_owned(), |missing| without(SOURCE_ACL_FETCH, missing));
        let dir = tempfile::tempdir().unwrap();
        let more = ["--report", dir.path().to_str().unwrap()];
        let Some((mut scene, _config)) = in_step(&[SOURCE_ACL, &fetch], LiveOptions::default(), &more) else { return };
        let mut target = scene.target();
        job::run(&scene.live, "RPUSH x new");
        scene.wait_acknowledged();
        assert_eq!(target.run("DEL x").unwrap().int(), Some(1));
        job::run(&scene.live, "RENAME x y");
        let listed = || std::fs::read_to_string(dir.path().join("not-carried.jsonl")).unwrap_or_default();
        match missing {
            None => {
                let fetched = wait_for(|| (target.run("LLEN y").unwrap().int() == Some(1)).then_some(()));
                assert!(fetched.is_some(), "{}", scene.tool.said());
                // Of a flush, and of a source that is to be asked first whether it is a master still.
                job::run(&scene.live, "FLUSHALL");
                job::run(&scene.live, "SET after v");
                scene.wait_acknowledged();
                // And a lost session.
                scene.live.master().unwrap().cut_all();
                job::run(&scene.live, "SET later v");
                scene.stops_equal();
                assert!(!scene.tool.said().contains("NOPERM"), "{}", scene.tool.said());
                assert!(!listed().contains("doubtful"), "{}", listed());
            }
            Some(missing) => {
                scene.wait_acknowledged();
                scene.tool.signal("INT");
                assert_eq!(scene.tool.wait(), Some(130), "{}", scene.tool.said());
                let said = scene.tool.said();
                let why = said.split_once(&format!("the source answered {missing} with")).map(|(_, why)| why);
                assert!(why.is_some_and(|why| why.contains("NOPERM")), "{missing}: {said}");
                assert!(listed().contains("doubtful-Vanished"), "{missing}: {}", listed());
            }
        }
        assert_eq!(scene.live.master().unwrap().violations(), []);
    }
}

/// They hold every kind of record, and a flush.
#[test]
fn the_listed_permissions_suffice_to_follow_recordings() {
    let dir = tempfile::tempdir().unwrap();
    let config = settings_of_the_user(dir.path());
    for name in ["follow-lz4", "follow-flushall"] {
        let Some(server) = server(ServerKind::Redis7) else { return };
        let recording = recording(name).unwrap();
        let wanted: Vec<_> = recording.meta.replica_offset_at_end.iter().copied().map(Some).collect();
        let master = Replay::start(recording, MasterOptions::of_user(&[SOURCE_ACL, SOURCE_ACL_FETCH])).unwrap();
        let args = ["--config", config.to_str().unwrap(), "--control", "off"];
        let mut tool =
            Tool::start(job::binary(), master.port(), server.port(), &dir.path().join("log"), &args).unwrap();
        job::until(&mut tool, name, || master.acks() == wanted);
        job::stop(&mut tool);
        assert!(!tool.said().contains("NOPERM"), "{name}: {}", tool.said());
    }
}

/// Whether a source that came back holds anything is not known without INFO, so the target, which does, is not emptied for it.
#[test]
fn without_info_nothing_is_emptied_for_another_full_sync() {
    for (lines, code) in [(SOURCE_ACL.to_owned(), None), (without(SOURCE_ACL, "INFO"), Some(4))] {
        let more = ["--on-lost-position", "resync"];
        let Some((mut scene, _config)) = in_step(&[&lines], LiveOptions::default(), &more) else { return };
        scene.live.restart().unwrap();
        match code {
            None => {
                job::run(&scene.live, "SET after v");
                scene.stops_equal();
            }
            Some(_) => {
                assert_eq!(scene.tool.wait(), code, "{}", scene.tool.said());
                assert!(scene.tool.said().contains("may not be asked (INFO)"), "{}", scene.tool.said());
                scene.assert_equal();
            }
        }
    }
}

/// Taken away while the job runs: the source drops the replica without a word. What the next one is told is named, and waited for.
#[test]
fn a_permission_that_is_taken_away_is_named() {
    let Some((mut scene, _config)) = in_step(&[SOURCE_ACL], LiveOptions::default(), &[]) else { return };
    let set_rights = |scene: &InStep, line: &str| scene.live.master().unwrap().set_rights(&[line]);
    set_rights(&scene, &without(SOURCE_ACL, "REPLCONF"));
    job::run(&scene.live, "SET a v");
    let named = wait_for(|| scene.tool.said().contains("may not run REPLCONF").then_some(()));
    assert!(named.is_some(), "{}", scene.tool.said());
    set_rights(&scene, SOURCE_ACL);
    scene.stops_equal();
    assert_eq!(scene.live.partial_count(), 1);
}

#[test]
fn the_listed_permissions_suffice_for_a_cutover_and_each_is_needed() {
    let refused = "CLIENT PAUSE";
    for (lines, verify_by, code) in [
        (&[SOURCE_ACL][..], "count", 9),
        (&[SOURCE_ACL, SOURCE_ACL_CUTOVER], "count", 0),
        (&[SOURCE_ACL, SOURCE_ACL_CUTOVER, SOURCE_ACL_VERIFY], "full", 0),
    ] {
        let Some((mut scene, _config)) = in_step(lines, LiveOptions::default(), &[]) else { return };
        for (args, code) in [(&["--rehearse", "2"][..], code), (&["--execute", "--verify", verify_by], code)] {
            let output = scene.ask(&[&["cutover", "--budget", "20s"], args].concat());
            let said = report(&output).to_string();
            assert_eq!(output.status.code(), Some(code), "{lines:?} {args:?}: {said}\n{}", scene.tool.said());
            assert_eq!(said.contains(refused) && said.contains("NOPERM"), code != 0, "{lines:?} {args:?}: {said}");
        }
        match code {
            0 => {
                assert_eq!(scene.tool.wait(), Some(0), "{}", scene.tool.said());
                scene.assert_equal();
            }
            _ => scene.stops_equal(),
        }
    }
}

/// There is no fence, so it takes no `+CLIENT`.
#[test]
fn a_takeover_needs_no_more_than_replicating() {
    let Some((mut scene, _config)) = in_step(&[SOURCE_ACL], LiveOptions::default(), &[]) else { return };
    let output = scene.ask(&["cutover", "--execute", "--takeover", "--budget", "20s"]);
    assert_eq!(output.status.code(), Some(0), "{}\n{}", report(&output), scene.tool.said());
    assert_eq!(scene.tool.wait(), Some(0), "{}", scene.tool.said());
}

#[test]
fn a_short_timeout_is_only_told_with_config() {
    for (lines, told) in [(&[SOURCE_ACL][..], false), (&[SOURCE_ACL, SOURCE_ACL_CONFIG], true)] {
        let live = LiveOptions { replication_timeout_ms: Some(5000), ..LiveOptions::default() };
        let Some((mut scene, _config)) = in_step(lines, live, &[]) else { return };
        scene.stops_equal();
        assert_eq!(scene.tool.said().contains("replication_timeout"), told, "{}", scene.tool.said());
    }
}

/// Every type of value, in two databases; and what each grant is for is missed without it.
#[test]
fn the_listed_permissions_suffice_to_compare_and_each_is_needed() {
    let lines = [SOURCE_ACL, SOURCE_ACL_VERIFY];
    let Some((mut scene, _config)) = in_step(&lines, LiveOptions::default(), &[]) else { return };
    for line in [
        "RPUSH list a b",
        "SADD set a b",
        "HSET hash f v",
        "ZADD zset 1 a",
        "XADD stream 5-1 f v",
        "XGROUP CREATE stream g 0",
        "SET expires v PX 10000000",
    ] {
        job::run(&scene.live, line);
    }
    scene.live.world().run(3, &["SET", "other", "v"].map(|word| word.as_bytes().to_vec()));
    scene.stops_equal();
    let compare = |more: &[&str]| {
        let (source, target) = (
            format!("dragonfly://127.0.0.1:{}", scene.live.port()),
            format!("redis://127.0.0.1:{}", scene.server.port()),
        );
        let mut command = program(&["verify", "--source", &source, "--target", &target, "--output", "json"]);
        by_the_user(command.args(["--lag-max", "200ms"]).args(more));
        let run = start(command).wait_for(Duration::from_secs(60));
        (run.code(), run.stdout + &run.stderr)
    };
    let master = scene.live.master().unwrap();
    master.set_rights(&[SOURCE_ACL_VERIFY]);
    for mode in ["full", "count", "sample"] {
        let (code, said) = compare(&["--mode", mode]);
        assert_eq!(code, 0, "{mode}: {said}");
        assert!(!said.contains("NOPERM"), "{mode}: {said}");
    }
    for (missing, mode, code, named) in [
        ("@READ", "full", 4, "TYPE or the expiry of a key was answered with \"NOPERM"),
        ("SCAN", "full", 4, "SCAN was answered with \"NOPERM"),
        ("INFO", "full", 4, "INFO was answered with \"NOPERM"),
        ("SELECT", "full", 4, "SELECT 3 was answered with \"NOPERM"),
        ("DBSIZE", "count", 4, "DBSIZE was answered with \"NOPERM"),
        // Dragonfly does not name the command.
        ("XINFO", "full", 3, "answered a read with \"NOPERM df2redis has no ACL permissions\"; see README.md"),
    ] {
        master.set_rights(&[&without(SOURCE_ACL_VERIFY, missing)]);
        let (code_found, said) = compare(&["--mode", mode]);
        assert_eq!(code_found, code, "without {missing}: {said}");
        assert!(said.replace("\\\"", "\"").contains(named), "without {missing}: {said}");
    }
    // A repair has the whole value from there, once the job is over for good.
    scene.target().run("DEL df2redis:checkpoint").unwrap();
    for (missing, code) in [(Some("DUMP"), 10), (None, 0)] {
        let line = missing.map_or(SOURCE_ACL_VERIFY.to_owned(), |missing| without(SOURCE_ACL_VERIFY, missing));
        master.set_rights(&[&line]);
        scene.target().run("HSET hash f other").unwrap();
        let (code_found, said) = compare(&["--mode", "full", "--repair", "copy"]);
        assert_eq!(code_found, code, "without {missing:?}: {said}");
        assert_eq!(
            said.contains(r#"DUMP was answered with \"NOPERM"#),
            missing.is_some(),
            "without {missing:?}: {said}"
        );
        let value = scene.target().run("HGET hash f").unwrap().text();
        assert_eq!(value.as_deref() == Some("v"), missing.is_none(), "without {missing:?}: {said}");
    }
}
