//! Access and modules: secrets that show nowhere, users with few rights, JSON, scripts and search indexes.

mod common;

use common::job::{self, until};
use common::*;
use df2redis::lab::answers::{ClusterPorts, TargetIdentity};
use df2redis::lab::client::Client;
use df2redis::lab::encode::{self as enc, types};
use df2redis::lab::flow::Faults;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::script::{ErrorRule, ScriptOptions, ScriptedTarget};
use df2redis::lab::servers::{ServerKind, ServerOptions, find_module};
use df2redis::lab::torture::{Tool, compare, wait_for};
use std::collections::BTreeMap;
use std::time::Duration;

const SOURCE_SECRET: &str = "s0urce-s3cret-Zq";
const TARGET_SECRET: &str = "t4rget-s3cret-Yp";

fn some_keys() -> Vec<FlowBytes> {
    let mut flow = FlowBytes::new();
    (0..200).for_each(|i| _ = flow.string(format!("k{i}").as_bytes(), &noise(i + 1, 500)));
    flow.journal(0, &["INCR", "n"]);
    vec![flow]
}

#[test]
fn secrets_work_and_show_nowhere() {
    let options = ServerOptions::default().config("requirepass", TARGET_SECRET);
    let Some(server) = server_with(ServerKind::Redis7, options) else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    std::fs::write(&file, format!("{SOURCE_SECRET}\n")).unwrap();
    let report_dir = dir.path().join("report");
    for from_file in [true, false] {
        let faults = Faults::default().slow(100_000);
        let master = Hand::new(some_keys()).start_with(MasterOptions {
            user: Some("replicator".into()),
            password: Some(SOURCE_SECRET.into()),
            faults,
            ..MasterOptions::default()
        });
        let mut more = vec!["--log", "trace", "--on-existing", "flush", "--report", report_dir.to_str().unwrap()];
        if from_file {
            more.extend_from_slice(&["--source-password-file", file.to_str().unwrap()]);
        }
        let mut command = migrate_command(master.port(), server.port(), &more);
        command.env("DF2REDIS_TARGET_PASSWORD", TARGET_SECRET).env("DF2REDIS_SOURCE_USER", "replicator");
        if !from_file {
            command.env("DF2REDIS_SOURCE_PASSWORD", SOURCE_SECRET);
        }
        let running = start(command);
        std::thread::sleep(Duration::from_millis(300));
        let cmdline = std::fs::read_to_string(format!("/proc/{}/cmdline", running.pid())).unwrap();
        assert!(!cmdline.is_empty(), "it has ended already");
        let run = running.wait();
        run.expect_code(0);
        let mut shown =
            vec![("cmdline".to_owned(), cmdline), ("report".into(), run.stdout), ("log".into(), run.stderr)];
        shown.extend(files(&report_dir));
        for (place, text) in shown {
            for secret in [SOURCE_SECRET, TARGET_SECRET, "replicator"] {
                assert!(!text.contains(secret), "{secret} in {place}");
            }
        }
    }
}

fn files(dir: &std::path::Path) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.push((
                path.display().to_string(),
                String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned(),
            ));
        }
    }
    all
}

#[test]
fn wrong_and_missing_passwords() {
    let options = ServerOptions::default().config("requirepass", TARGET_SECRET);
    let Some(server) = server_with(ServerKind::Redis7, options) else { return };
    let secured = || {
        let options = MasterOptions { password: Some(SOURCE_SECRET.into()), ..MasterOptions::default() };
        Hand::new(some_keys()).start_with(options)
    };
    for (source, target, code, text) in [
        (Some(SOURCE_SECRET), None, 5, "NOAUTH"),
        (Some(SOURCE_SECRET), Some("wrong-1"), 5, "WRONGPASS"),
        (None, Some(TARGET_SECRET), 4, "wants a password"),
        (Some("wrong-2"), Some(TARGET_SECRET), 4, "refuses user name or password"),
    ] {
        let master = secured();
        let mut command = migrate_command(master.port(), server.port(), &[]);
        source.map(|secret| command.env("DF2REDIS_SOURCE_PASSWORD", secret));
        target.map(|secret| command.env("DF2REDIS_TARGET_PASSWORD", secret));
        let run = start(command).wait();
        run.expect_code(code).expect_text(text);
        for secret in [source, target].into_iter().flatten() {
            assert!(!run.stderr.contains(secret) && !run.stdout.contains(secret));
        }
    }
}

/// A user of the target without a right that every job needs: named before anything is written, or flushed.
#[test]
fn a_missing_permission_is_named() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut admin = server.client().unwrap();
    for (rights, text) in [
        (&["+@all", "-set"][..], r"\'set\'"),
        (&["+@all", "-info"], r"\'info\'"),
        (&["+@all", "-restore"], r"\'restore\'"),
        (&["+@all", "-pexpireat"], r"\'pexpireat\'"),
        (&["+@all", "-multi"], r"\'multi\'"),
        (&["+@all", "-exec"], r"\'exec\'"),
        (&["+@all", "-flushall"], r"\'flushall\'"),
    ] {
        admin.run("FLUSHALL").unwrap();
        admin.run("SET foreign 1").unwrap();
        let mut rule = vec!["ACL", "SETUSER", "loader", "reset", "on", ">pw-of-loader", "~*", "&*"];
        rule.extend_from_slice(rights);
        assert_eq!(admin.ask(&rule).unwrap().text().unwrap(), "OK");
        let master = Hand::new(some_keys()).start();
        let mut command = migrate_command(master.port(), server.port(), &["--on-existing", "flush"]);
        command.env("DF2REDIS_TARGET_USER", "loader").env("DF2REDIS_TARGET_PASSWORD", "pw-of-loader");
        start(command).wait().expect_code(5).expect_text("NOPERM").expect_text(text);
        assert_eq!(admin.run("DBSIZE").unwrap().int(), Some(1), "something was flushed or written without {rights:?}");
        assert_eq!(admin.run("GET foreign").unwrap().text().unwrap(), "1");
    }
}

/// A password is changed while the job runs, and the source goes at the same time: whoever changed it is waited for, as long as
/// `--retry-max`. At a start it is the end.
#[test]
fn a_session_that_begins_while_the_password_is_another_waits() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut admin = server.client().unwrap();
    admin.run("ACL SETUSER mover on >first ~* &* +@all").unwrap();
    let live =
        Live::start(Spec::of("string:60B=20").unwrap(), LiveOptions::default(), MasterOptions::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let [password, config, log] = ["password", "config.toml", "log"].map(|name| dir.path().join(name));
    std::fs::write(&password, "first").unwrap();
    let user = format!("target-user = \"mover\"\ntarget-password-file = \"{}\"\n", password.display());
    std::fs::write(&config, user).unwrap();
    let start = |more: &[&str]| {
        let args = [&["--config", config.to_str().unwrap()], more].concat();
        Tool::start(job::binary(), live.port(), server.port(), &log, &args).unwrap()
    };
    let applied = |tool: &mut Tool| {
        let mut client = server.client().unwrap();
        until(tool, "not applied", || {
            let phase = client.ask(&["HGET", "df2redis:checkpoint", "phase"]).unwrap().text();
            live.is_acknowledged() && phase.as_deref() == Some("stable")
        });
    };
    let mut tool = start(&[]);
    let lock_out = |admin: &mut Client| {
        admin.run("ACL SETUSER mover >second <first").unwrap();
        admin.run("CLIENT KILL USER mover").unwrap();
        live.master().unwrap().cut_all();
    };
    let let_in = |admin: &mut Client| drop(admin.run("ACL SETUSER mover >first <second").unwrap());
    applied(&mut tool);
    lock_out(&mut admin);
    until(&mut tool, "it does not say why", || {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        said.find("the target cannot be reached: trying again").is_some_and(|at| said[at..].contains("WRONGPASS"))
    });
    (0..5).for_each(|_| job::run(&live, "INCR n"));
    assert!(!live.is_acknowledged());
    let_in(&mut admin);
    applied(&mut tool);
    assert_eq!(live.partial_count(), 1, "{}", tool.said());
    job::stop(&mut tool);
    let truth = dir.path().join("truth.jsonl");
    live.write_truth(&truth).unwrap();
    compare(&server, ServerKind::Redis7, &truth).unwrap_or_else(|text| panic!("{text}\n{}", tool.said()));

    let mut tool = start(&["--retry-max", "2s"]);
    applied(&mut tool);
    lock_out(&mut admin);
    assert_eq!(tool.wait(), Some(5), "{}", tool.said());
    assert!(tool.said().contains("WRONGPASS"), "{}", tool.said());
    let began = std::time::Instant::now();
    let mut tool = start(&[]);
    assert_eq!(tool.wait(), Some(5), "{}", tool.said());
    assert!(tool.said().contains("WRONGPASS") && began.elapsed() < Duration::from_secs(60), "{}", tool.said());
}

#[test]
fn json_scripts_and_indexes() {
    let mut flow = FlowBytes::new();
    enc::aux(&mut flow.snapshot, "lua", b"return 1");
    // Dragonfly runs Lua 5.4, the targets 5.1, which has no such operator.
    enc::aux(&mut flow.snapshot, "lua", b"return 7 // 2");
    enc::aux(&mut flow.snapshot, "search-index", b"idx:shop ON HASH PREFIX 1 p: SCHEMA t TEXT");
    flow.object(types::JSON, b"doc", |out| enc::string(out, br#"{"a":[1,2,{"b":"c"}]}"#, false));
    // A document that is a number arrives in the integer form.
    flow.object(types::JSON, b"number", |out| enc::string(out, b"123", false));
    let flows = vec![flow];

    let Some(plain) = server(ServerKind::Redis7) else { return };
    let master = Hand::new(flows.clone()).start();
    let run = migrate(master.port(), plain.port(), &["--on-unsupported", "json=string"]);
    run.expect_code(0);
    let mut client = plain.client().unwrap();
    assert_eq!(client.run("GET doc").unwrap().text().unwrap(), r#"{"a":[1,2,{"b":"c"}]}"#);
    assert_eq!(client.run("GET number").unwrap().text().unwrap(), "123");
    let exists = client.run("SCRIPT EXISTS e0e1f9fabfc9d4800c877a703b823ac0578ff8db").unwrap();
    assert_eq!(exists.array().unwrap()[0].int(), Some(1));
    let listed = run.report["not_carried"]["listed"].as_array().unwrap();
    let script = listed.iter().find(|row| row["kind"] == "script").unwrap_or_else(|| panic!("{}", run.stdout));
    assert_eq!(script["key"], "return 7 // 2");
    assert!(script["reason"].as_str().unwrap().contains("compil"), "{script}");
    // Dragonfly answers TIME with integers.
    assert!(run.report["clock_skew"]["source_ms"].is_i64(), "{}", run.report["clock_skew"]);
    assert_eq!(run.report["search_indexes_not_carried"][0], "idx:shop", "{}", run.stdout);

    let Ok(module) = find_module("rejson.so") else { return };
    let Some(server) = server_with(ServerKind::Redis7, ServerOptions::default().module(module)) else { return };
    let master = Hand::new(flows).start();
    migrate(master.port(), server.port(), &[]).expect_code(0);
    let mut client = server.client().unwrap();
    assert_eq!(client.run("JSON.GET doc").unwrap().text().unwrap(), r#"{"a":[1,2,{"b":"c"}]}"#);
    assert_eq!(client.run("JSON.GET number").unwrap().text().unwrap(), "123");
}

/// How a scripted target was logged in to: by connection, how often, and how often it was told `SET key`.
fn logins(target: &ScriptedTarget, key: &str) -> BTreeMap<u64, (usize, usize)> {
    let mut by_connection = BTreeMap::new();
    for received in target.received() {
        let (logins, sets): &mut (usize, usize) = by_connection.entry(received.connection).or_default();
        *logins += usize::from(received.request[0] == b"AUTH");
        *sets += usize::from(received.request[0] == b"SET" && received.request[1] == key.as_bytes());
    }
    by_connection
}

/// Keys of a scripted target (two of them: a cluster), of which `key` is refused so often as the rules say; with the secret in its environment.
fn refused(rules: &[(&str, &str, u64)], in_cluster: bool, more: &[&str]) -> (Run, [ScriptedTarget; 2]) {
    let ports = ClusterPorts::default();
    let errors: Vec<ErrorRule> = rules
        .iter()
        .map(|(key, reply, times)| ErrorRule {
            key: Some(key.as_bytes().to_vec()),
            times: *times,
            ..ErrorRule::every("SET", reply)
        })
        .collect();
    let start_target = || {
        let identity = TargetIdentity { password: Some(TARGET_SECRET.into()), ..TargetIdentity::default() };
        let identity = if in_cluster { identity.in_cluster(&ports) } else { identity };
        ScriptedTarget::start(ScriptOptions { identity, errors: errors.clone(), ..Default::default() }).unwrap()
    };
    let nodes = [start_target(), start_target()];
    ports.lock().unwrap().extend(nodes.iter().map(ScriptedTarget::port));
    let mut flow = FlowBytes::new();
    (0..60).for_each(|i| _ = flow.string(format!("k{i}").as_bytes(), b"v"));
    flow.late_journal(0, &["SET", "late", "v"]);
    // It comes when the first refusal is over.
    let pause = Duration::from_secs(if rules.len() > 1 { 2 } else { 0 });
    let faults = Faults::default().stall(0, flow.snapshot.len() as u64 + 5, pause);
    let args = [&["--log", "trace", "--cores", "1", "--connections", "1"], more].concat();
    let master = Hand::new(vec![flow]).faulty(faults);
    let mut command = migrate_command(master.port(), nodes[0].port(), &args);
    command.env("DF2REDIS_TARGET_PASSWORD", TARGET_SECRET);
    let run = start(command).wait();
    for text in [&run.stdout, &run.stderr] {
        assert!(!text.contains(TARGET_SECRET), "the secret shows");
    }
    (run, nodes)
}

/// Access was refused in the middle: it logs in once more, on another connection, and holds there until it is taken.
#[test]
fn a_refusal_of_access_is_followed_by_one_login() {
    let (run, [without, _]) = refused(&[], false, &[]);
    run.expect_code(0);
    for reply in [
        "-NOAUTH Authentication required.",
        "-WRONGPASS invalid username-password pair",
        "-NOPERM this user has no permissions",
    ] {
        let (run, [target, _]) = refused(&[("k20", reply, 3), ("late", reply, 2)], false, &[]);
        run.expect_code(0);
        assert_eq!(run.report["counters"]["holds"], 2, "{reply}: {}", run.stderr);
        let (before, after) = (logins(&without, "k20"), logins(&target, "k20"));
        // Each connection logs in once, as it is made.
        assert!(after.values().all(|(logins, _)| *logins == 1), "{reply}: {after:?}");
        assert_eq!(after.len(), before.len() + 2, "{reply}: one more for each refusal: {after:?}");
        let sets = |of: &BTreeMap<u64, (usize, usize)>| {
            of.values().map(|(_, sets)| *sets).filter(|sets| *sets > 0).collect::<Vec<_>>()
        };
        // The one that was refused, and the one after the login: again and again, and then it is taken.
        assert_eq!(sets(&after), [1, 3], "{reply}: {after:?}");
        assert_eq!(sets(&logins(&target, "late")), [1, 2], "{reply}");
        assert!((0..60).all(|i| target.received_of("SET").iter().any(|set| set[1] == format!("k{i}").into_bytes())));
    }
}

#[test]
fn a_refusal_of_access_without_end_is_followed_by_one_login() {
    for in_cluster in [false, true] {
        let reply = "-NOAUTH Authentication required.";
        let (run, nodes) = refused(&[("k20", reply, u64::MAX)], in_cluster, &["--retry-max", "2s"]);
        run.expect_code(5).expect_text("NOAUTH").expect_text("--retry-max");
        let node = nodes.iter().find(|node| logins(node, "k20").values().any(|(_, sets)| *sets > 0)).unwrap();
        run.expect_text(&node.address().to_string());
        let told: Vec<(usize, usize)> = logins(node, "k20").into_values().filter(|(_, sets)| *sets > 0).collect();
        // It goes on by the connection that was made then.
        assert!(told.len() == 2 && told[0].1 == 1 && told[1].1 > 1, "{told:?}");
        assert!(logins(node, "k20").values().all(|(logins, _)| *logins <= 1), "{told:?}");
    }
}

/// In a cluster, too, where the worker connects to the nodes to settle it.
#[test]
fn a_refusal_of_access_by_a_node_is_followed_by_one_login() {
    let reply = "-NOAUTH Authentication required.";
    let (run, without) = refused(&[], true, &[]);
    run.expect_code(0);
    let (run, nodes) = refused(&[("k20", reply, 4)], true, &[]);
    run.expect_code(0);
    let at = nodes.iter().position(|node| logins(node, "k20").values().any(|(_, sets)| *sets > 0)).unwrap();
    for place in [0, 1] {
        let (before, after) = (logins(&without[place], "k20"), logins(&nodes[place], "k20"));
        assert!(after.values().all(|(logins, _)| *logins == 1), "{after:?}");
        // The worker that settles it asks each node, on connections of its own; at this one its lane is made again, too.
        assert_eq!(after.len(), before.len() + if place == at { 2 } else { 1 }, "{before:?} {after:?}\n{}", run.stderr);
    }
    let told: Vec<usize> =
        logins(&nodes[at], "k20").into_values().map(|(_, sets)| sets).filter(|sets| *sets > 0).collect();
    assert_eq!(told, [1, 4]);
}

/// In the stable journal, where a batch is one transaction.
#[test]
fn a_refusal_of_access_in_the_journal_is_followed_by_one_login() {
    let reply = "-NOAUTH Authentication required.";
    for in_cluster in [false, true] {
        let ports = ClusterPorts::default();
        let identity = TargetIdentity { password: Some(TARGET_SECRET.into()), ..TargetIdentity::default() };
        let identity = if in_cluster { identity.in_cluster(&ports) } else { identity };
        let rule = ErrorRule { key: Some(b"late".to_vec()), times: 3, ..ErrorRule::every("SET", reply) };
        let options = ScriptOptions { identity, errors: vec![rule], ..Default::default() };
        let target = ScriptedTarget::start(options).unwrap();
        ports.lock().unwrap().push(target.port());
        let mut flow = FlowBytes::new();
        flow.string(b"first", b"v");
        for record in [&["SET", "late", "v"], &["SET", "behind", "v"]] {
            enc::journal_command(&mut flow.stable, 0, 0, record);
        }
        let master = Hand::new(vec![flow]).start();
        let source = format!("dragonfly://127.0.0.1:{}", master.port());
        let url = format!("redis://127.0.0.1:{}", target.port());
        let mut command = program(&["replicate", "--source", &source, "--target", &url, "--output", "json"]);
        command.args([
            "--memory",
            "64MiB",
            "--progress",
            "off",
            "--cores",
            "1",
            "--connections",
            "1",
            "--log",
            "trace",
        ]);
        command.env("DF2REDIS_TARGET_PASSWORD", TARGET_SECRET);
        let mut running = start(command);
        let applied = wait_for(|| {
            assert!(running.is_running(), "it ended");
            let received = target.received();
            let is_done =
                |key: &[u8]| received.iter().any(|of| of.executed && of.request[0] == b"SET" && of.request[1] == key);
            (is_done(b"late") && is_done(b"behind")).then_some(())
        });
        assert!(applied.is_some(), "{:?}", logins(&target, "late"));
        running.signal("INT");
        let run = running.wait();
        run.expect_code(130);
        let by_connection = logins(&target, "late");
        assert!(by_connection.values().all(|(logins, _)| *logins == 1), "{by_connection:?}");
        let sets: Vec<usize> = by_connection.into_values().map(|(_, sets)| sets).filter(|sets| *sets > 0).collect();
        assert_eq!(sets, [1, 3], "{in_cluster}");
        assert!(run.stderr.contains("logging in again") && !run.stderr.contains(TARGET_SECRET));
        assert!(!run.stdout.contains(TARGET_SECRET));
        let executed: Vec<Vec<u8>> = target
            .received()
            .iter()
            .filter(|of| of.executed && of.request[0] == b"SET")
            .map(|of| of.request[1].clone())
            .collect();
        let place = |key: &[u8]| executed.iter().position(|of| of == key);
        // What has no key in common may pass it on a cluster's node.
        assert!(in_cluster || place(b"late") < place(b"behind"), "{executed:?}");
    }
}
