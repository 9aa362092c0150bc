//! The target's permissions that only some records, releases and states of a cluster need: each is enough with the rest of what README.md
//! lists, and left out it is named, or what it is for is visibly not done. What every job needs is left out in `acl.rs`.

mod common;

use common::clustered::Clustered;
use common::grants::*;
use common::job::{binary, run, stop, until};
use common::{FlowBytes, Hand, Run, migrate_command, program, server, server_with, start};
use df2redis::lab::client::Client;
use df2redis::lab::cluster::Cluster;
use df2redis::lab::encode as enc;
use df2redis::lab::generate::{Generator, Spec};
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::{Master, MasterOptions};
use df2redis::lab::servers::{Server, ServerKind, ServerOptions, find_module};
use df2redis::lab::torture::{Tool, compare};
use df2redis::redis::slot::slot;
use std::time::{SystemTime, UNIX_EPOCH};

#[test]
fn readme_lists_the_same() {
    let readme = include_str!("../README.md");
    for line in [TARGET_ACL_IMPORT, TARGET_ACL_VERIFY, TARGET_ACL_VERIFY_CLUSTER, TARGET_ACL_REPAIR] {
        assert!(readme.lines().any(|of| of.split("      # ").next() == Some(line)), "{line}");
    }
}

/// The user anew, with what these lines grant, but for `missing`.
fn grant(admin: &mut Client, lines: &[&str], missing: &[&str]) {
    admin.run("ACL DELUSER df2redis").unwrap();
    lines.iter().for_each(|line| drop(admin.run(line).unwrap()));
    for name in missing {
        assert_eq!(
            admin.run(&format!("ACL SETUSER df2redis -{name}")).unwrap().text().as_deref(),
            Some("OK"),
            "{name}"
        );
    }
}

/// A migration by that user. A refusal is not waited for.
fn migrate_from(master: &Master, port: u16, more: &[&str]) -> Run {
    let mut command = migrate_command(master.port(), port, &[&["--retry-max", "1s", "--cores", "1"], more].concat());
    command.env("DF2REDIS_TARGET_USER", "df2redis").env("DF2REDIS_TARGET_PASSWORD", "secret");
    start(command).wait()
}

fn flow_of(records: &[&str]) -> FlowBytes {
    let mut flow = FlowBytes::new();
    for record in records {
        flow.late_journal(0, &record.split(' ').collect::<Vec<_>>());
    }
    flow
}

/// Refused as what it is, by name; of what a script may not call Redis before 7.2 tells no name.
#[track_caller]
fn assert_named(run: &Run, missing: &str) {
    run.expect_code(5);
    let said = run.stderr.to_lowercase();
    let is_named = (said.contains("noperm") || said.contains("acl failure in script")) && said.contains(missing);
    let is_told = said.contains("the user executing the script can") && said.contains("lacks a permission (readme.md");
    assert!(is_named || is_told, "without {missing}: {}", run.stderr);
}

#[test]
fn each_permission_that_only_some_records_need_is_named() {
    for (kind, missing, records) in [
        (ServerKind::Redis6, "sort", &["RPUSH list b a", "SORT list ALPHA STORE sorted"][..]),
        (ServerKind::Redis7, "sort", &["RPUSH list b a", "SORT list ALPHA STORE sorted"]),
        (ServerKind::Redis8, "sort", &["RPUSH list b a", "SORT list ALPHA STORE sorted"]),
        (ServerKind::Redis8, "hexists", &["HSETEX h FNX EX 1000 FIELDS 1 f v"]),
        (ServerKind::Redis7, "script|load", &[]),
    ] {
        let Some(server) = server(kind) else { continue };
        let mut admin = server.client().unwrap();
        let mut flow = flow_of(records);
        enc::aux(&mut flow.snapshot, "lua", b"return 1");
        let hand = || Hand::new(vec![flow.clone()]).start();
        let of_6 = TARGET_ACL.replace("+command|list", "+command");
        let lines = match kind {
            ServerKind::Redis6 => &[&*of_6][..],
            ServerKind::Redis8 => &[TARGET_ACL, TARGET_ACL_FIELDS],
            _ => &[TARGET_ACL],
        };
        grant(&mut admin, lines, &[]);
        migrate_from(&hand(), server.port(), &[]).expect_code(0);
        admin.run("FLUSHALL").unwrap();
        grant(&mut admin, lines, &[missing]);
        assert_named(&migrate_from(&hand(), server.port(), &[]), missing);
    }
}

/// Without them a claim is not decided as at the source, and the report says so.
#[test]
fn each_permission_to_decide_claims_is_needed() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut admin = server.client().unwrap();
    let records = ["XADD s 1-1 f v", "XGROUP CREATE s g 0", "XCLAIM s g c 5 1-1 FORCE", "XAUTOCLAIM s g c 5 0"];
    for missing in [&[][..], &["time"], &["xpending"], &["xrange"]] {
        admin.run("FLUSHALL").unwrap();
        grant(&mut admin, &[TARGET_ACL, TARGET_ACL_CLAIM], missing);
        let run = migrate_from(&Hand::new(vec![flow_of(&records)]).start(), server.port(), &[]);
        run.expect_code(0);
        let counts = run.report["not_carried"]["counts"].to_string();
        assert_eq!(counts.contains("doubtful-IdleTime"), !missing.is_empty(), "without {missing:?}: {counts}");
    }
}

/// Without it a limit of the target is not known, and met.
#[test]
fn a_limit_of_strings_is_only_known_with_config_get() {
    let options = ServerOptions::default().config("proto-max-bulk-len", "1mb");
    let Some(server) = server_with(ServerKind::Redis7, options) else { return };
    let mut admin = server.client().unwrap();
    let mut flow = FlowBytes::new();
    flow.string(b"long", &common::noise(1, 2 << 20));
    for (missing, code) in [(&[][..], 0), (&["config|get"], 5)] {
        grant(&mut admin, &[TARGET_ACL, "ACL SETUSER df2redis +config|get"], missing);
        let run = migrate_from(&Hand::new(vec![flow.clone()]).start(), server.port(), &["--on-unsupported", "skip"]);
        run.expect_code(code);
        let is_left_out = run.report["not_carried"]["counts"]["large-string/skip"] == 1;
        assert_eq!(is_left_out, missing.is_empty(), "{}", run.message());
    }
}

#[test]
fn each_permission_for_documents_is_needed() {
    let Ok(module) = find_module("rejson.so") else { return };
    let Some(server) = server_with(ServerKind::Redis7, ServerOptions::default().module(module)) else { return };
    let mut admin = server.client().unwrap();
    const DOCUMENTS: &str = "ACL SETUSER df2redis +json.set +json.del +exists";
    let records = ["JSON.SET doc $ {\"a\":1}", "JSON.DEL doc $.a", "JSON.SET doc $ {\"b\":2} XX"];
    for (missing, count) in [(None, 3), (Some("json.set"), 1), (Some("json.del"), 2), (Some("exists"), 3)] {
        admin.run("FLUSHALL").unwrap();
        grant(&mut admin, &[TARGET_ACL, DOCUMENTS], missing.as_slice());
        let run = migrate_from(&Hand::new(vec![flow_of(&records[..count])]).start(), server.port(), &[]);
        match missing {
            Some(missing) => assert_named(&run, missing),
            None => {
                run.expect_code(0);
                assert_eq!(admin.run("JSON.GET doc").unwrap().text().as_deref(), Some("{\"b\":2}"));
            }
        }
    }
}

/// Redis 6.2 has no `COMMAND LIST`, and no PEXPIRETIME.
#[test]
fn the_listed_permissions_suffice_for_redis_6() {
    let Some(server) = server(ServerKind::Redis6) else { return };
    let mut admin = server.client().unwrap();
    let acl = TARGET_ACL.replace("+command|list", "+command");
    let hold = TARGET_ACL_HOLD.replace(" +pexpiretime", "");
    let spec = Spec {
        databases: vec![0, 5],
        journal_ratio: 0.5,
        ..Spec::of("string:60B=50,list:5x8=5,hash:5x8=5,set:20x9=5,zset:5x8=5").unwrap()
    };
    let (master, _) = Generator::start(spec.clone(), MasterOptions::default()).unwrap();
    grant(&mut admin, &[&acl, &hold], &[]);
    let run = migrate_from(&master, server.port(), &[]);
    run.expect_code(0);
    assert!(!run.stderr.contains("NOPERM"), "{}", run.stderr);

    admin.run("FLUSHALL").unwrap();
    grant(&mut admin, &[&acl, &hold], &["command"]);
    assert_named(&migrate_from(&master, server.port(), &[]), "command");

    // Near expiries are only held with all that the script asks.
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    let mut flow = FlowBytes::new();
    flow.string_until(b"k", b"v", Some(now_ms + 600_000));
    for missing in [None, Some("pttl"), Some("time"), Some("type"), Some("scan")] {
        admin.run("FLUSHALL").unwrap();
        grant(&mut admin, &[&acl, &hold], missing.as_slice());
        let run = migrate_from(&Hand::new(vec![flow.clone()]).start(), server.port(), &[]);
        run.expect_code(0);
        let held = run.report["expiries"]["held"].as_u64();
        assert_eq!(held >= Some(1), missing.is_none(), "without {missing:?}: {}", run.report["expiries"]);
    }
}

/// A `replicate` by the least user, in step with a live source.
struct LeastUser {
    live: Live,
    server: Server,
    tool: Tool,
}

impl LeastUser {
    fn start(server: Server) -> Self {
        let live =
            Live::start(Spec::of("string:60B=20").unwrap(), LiveOptions::default(), MasterOptions::default()).unwrap();
        let [password, config, socket] = ["password", "least.toml", "job.sock"].map(|name| server.dir().join(name));
        std::fs::write(&password, "secret").unwrap();
        let settings = format!("target-user = \"df2redis\"\ntarget-password-file = \"{}\"\n", password.display());
        std::fs::write(&config, settings).unwrap();
        let args = ["--config", config.to_str().unwrap(), "--control", socket.to_str().unwrap(), "--retry-max", "2s"];
        let tool = Tool::start(binary(), live.port(), server.port(), &server.dir().join("log"), &args).unwrap();
        let mut this = Self { live, server, tool };
        until(&mut this.tool, "in step", || {
            let socket = this.server.dir().join("job.sock");
            let status = program(&["status", "--output", "json", "--control", socket.to_str().unwrap()]).output();
            String::from_utf8_lossy(&status.unwrap().stdout).contains("\"in_step\":true")
        });
        this
    }

    #[track_caller]
    fn assert_equal(&self, kind: ServerKind) {
        let truth = self.server.dir().join("truth.jsonl");
        self.live.write_truth(&truth).unwrap();
        compare(&self.server, kind, &truth).unwrap_or_else(|why| panic!("{why}\n{}", self.tool.said()));
    }
}

/// Without them expiries are held back instead; without `+config|get` alone it is not known who turned the mode on.
#[test]
fn each_permission_for_import_mode_is_needed() {
    const LINES: [&str; 4] = [TARGET_ACL, TARGET_ACL_REPLICATE, TARGET_ACL_HOLD, TARGET_ACL_IMPORT];
    for (missing, was_on, during, after) in [
        (None, "no", "yes", "no"),
        (None, "yes", "yes", "yes"),
        (Some("config|get"), "yes", "yes", "no"),
        (Some("config|set"), "no", "no", "no"),
        (Some("client|import-source"), "no", "no", "no"),
    ] {
        let Some(server) = server(ServerKind::Valkey9) else { return };
        let mut admin = server.client().unwrap();
        let mode =
            |admin: &mut Client| admin.run("CONFIG GET import-mode").unwrap().array().unwrap()[1].text().unwrap();
        admin.run(&format!("CONFIG SET import-mode {was_on}")).unwrap();
        grant(&mut admin, &[&LINES[..], &[TARGET_ACL_FIELDS]].concat(), missing.as_slice());
        let mut job = LeastUser::start(server);
        assert_eq!(mode(&mut admin), during, "without {missing:?}");
        run(&job.live, "SET soon v PX 600000");
        until(&mut job.tool, "applied", || job.live.is_acknowledged());
        stop(&mut job.tool);
        assert_eq!(mode(&mut admin), after, "without {missing:?}: {}", job.tool.said());
        let warned = job.tool.said().contains("+client|import-source are needed");
        assert_eq!(warned, during == "no", "without {missing:?}: {}", job.tool.said());
        job.assert_equal(ServerKind::Valkey9);
    }
}

/// A cutover removes the tool's keys, for which it goes through all.
#[test]
fn a_cutover_needs_scan() {
    for missing in [None, Some("scan")] {
        let Some(server) = server(ServerKind::Redis7) else { return };
        grant(&mut server.client().unwrap(), &[TARGET_ACL, TARGET_ACL_REPLICATE], missing.as_slice());
        let mut job = LeastUser::start(server);
        let socket = job.server.dir().join("job.sock");
        let args =
            ["cutover", "--execute", "--budget", "20s", "--output", "json", "--control", socket.to_str().unwrap()];
        let output = program(&args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        match missing {
            None => {
                assert_eq!((output.status.code(), job.tool.wait()), (Some(0), Some(0)), "{said}\n{}", job.tool.said());
                let own = job.server.client().unwrap().run("KEYS df2redis:*").unwrap();
                assert_eq!(own.array().map(|keys| keys.len()), Some(0), "{own:?}");
            }
            Some(_) => {
                assert_eq!(output.status.code(), Some(9), "{said}");
                assert!(
                    said.contains("SCAN") && said.contains("NOPERM") && said.contains("Nothing was fenced"),
                    "{said}"
                );
                stop(&mut job.tool);
            }
        }
        job.assert_equal(ServerKind::Redis7);
    }
}

/// How the nodes are found.
#[test]
fn each_permission_to_find_a_clusters_nodes_is_needed() {
    for (kind, cases) in [
        (
            ServerKind::Redis7,
            &[
                (&["cluster|shards", "cluster|slots"][..], "+cluster|slots"),
                // What older releases are asked is as good.
                (&["cluster|shards"], ""),
                (&["cluster|info"], "+cluster|info"),
            ][..],
        ),
        (
            ServerKind::Redis6,
            &[(&[], ""), (&["cluster|slots"], "+cluster|slots"), (&["cluster|nodes"], "+cluster|nodes")],
        ),
    ] {
        let Ok(cluster) = Cluster::start_kind(kind, 3, false) else { continue };
        for (missing, named) in cases {
            let lines = [TARGET_ACL, TARGET_ACL_CLUSTER].map(|line| {
                let line = match kind {
                    ServerKind::Redis6 => line.replace("+command|list", "+command").replace(" +pexpiretime", ""),
                    _ => line.to_owned(),
                };
                // Redis 6.2 takes no single subcommand away.
                missing.iter().fold(line, |line, missing| line.replace(&format!(" +{missing}"), ""))
            });
            for node in &cluster.nodes {
                let mut admin = node.client().unwrap();
                admin.run("FLUSHALL").unwrap();
                grant(&mut admin, &lines.each_ref().map(String::as_str), &[]);
            }
            let mut flow = FlowBytes::new();
            (0..20).for_each(|n| _ = flow.string(format!("k{n}").as_bytes(), b"v"));
            let run = migrate_from(&Hand::new(vec![flow]).start(), cluster.port(), &[]);
            match *named {
                "" => {
                    run.expect_code(0);
                    assert_eq!(cluster.keys().unwrap().len(), 20, "{kind:?} without {missing:?}");
                }
                named => _ = run.expect_code(5).expect_text("NOPERM").expect_text(named),
            }
        }
    }
}

/// What only a slot on the move, a key that brings its expiry into another slot, and a start after a kill need.
#[test]
fn each_permission_that_a_cluster_needs_now_and_then_is_needed() {
    let spec = Spec { flows_count: 1, ..Spec::of("string:10B=20").unwrap() };
    let Some(world) = Clustered::new(false, ServerOptions::default(), spec, LiveOptions::default()) else { return };
    let more = TARGET_ACL_HOLD.replace("ACL SETUSER df2redis ", "");
    let start = |missing: &str| {
        let config = world.least_user(&format!("{more}{missing}"));
        world.start_by(0, &["--config", config.to_str().unwrap(), "--retry-max", "2s"])
    };
    let end = |tool: &mut Tool, named: &str| {
        assert_eq!(tool.wait(), Some(5), "{named}: {}", tool.said());
        assert!(tool.said().contains("NOPERM") && tool.said().contains(named), "{named}: {}", tool.said());
    };
    let mut tool = start("");
    world.run("SET from v PX 600000");
    world.run("SET other v PX 600000");
    world.wait_applied(&mut tool);
    tool.kill();
    end(&mut start(" -client|list"), "client|list");
    // What the killed one held back is looked for.
    let mut tool = start(" -cluster|nodes");
    until(&mut tool, "not named", || tool_said(&world).contains("the target's user needs +cluster|nodes"));
    tool.signal("INT");
    assert_eq!(tool.wait(), Some(5), "{}", tool.said());

    let (slot, from) = (slot(b"t").0, common::clustered::node_of("t"));
    let mut tool = start(" -asking");
    world.run("RENAME from to");
    world.run("SET {t}a 1");
    world.wait_applied(&mut tool);
    world.cluster.half_move_slot(slot, from, (from + 1) % 3).unwrap();
    world.run("SET {t}b 1");
    end(&mut tool, "ASKING");
    let mut tool = start("");
    world.wait_applied(&mut tool);
    world.cluster.move_slot(slot, from, (from + 1) % 3).unwrap();
    world.finish(tool);
}

fn tool_said(world: &Clustered) -> String {
    std::fs::read_to_string(world.log()).unwrap_or_default()
}

/// A comparison of a source that holds every type, by the least user.
fn compare_with(live: &Live, port: u16, more: &[&str]) -> Run {
    let (source, target) = (format!("dragonfly://127.0.0.1:{}", live.port()), format!("redis://127.0.0.1:{port}"));
    let mut command = program(&["verify", "--source", &source, "--target", &target, "--lag-max", "200ms"]);
    command.args(more).env("DF2REDIS_TARGET_USER", "df2redis").env("DF2REDIS_TARGET_PASSWORD", "secret");
    start(command).wait()
}

fn every_type() -> Live {
    let spec = Spec::of("string:60B=20,list:5x8=5,hash:5x8=5,set:20x9=5,zset:5x8=5,stream:20x6=2").unwrap();
    Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap()
}

#[test]
fn each_permission_to_compare_and_repair_is_needed() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut admin = server.client().unwrap();
    let live = every_type();
    live.world().run(3, &["SET", "other", "v"].map(|word| word.as_bytes().to_vec()));
    grant(&mut admin, &[TARGET_ACL], &[]);
    let mut command = migrate_command(live.port(), server.port(), &[]);
    command.env("DF2REDIS_TARGET_USER", "df2redis").env("DF2REDIS_TARGET_PASSWORD", "secret");
    start(command).wait().expect_code(0);
    for (missing, named) in [("", ""), (" +@read", "NOPERM"), (" +info", "INFO"), (" +select", "SELECT 3")] {
        grant(&mut admin, &[&TARGET_ACL_VERIFY.replace(missing, "")], &[]);
        let run = compare_with(&live, server.port(), &[]);
        let said = &run.stderr;
        match missing {
            "" => _ = run.expect_code(0),
            _ => assert!(run.code() == 5 && said.contains(named) && said.contains("NOPERM"), "{missing}: {said}"),
        }
    }
    for (missing, code) in [(&["client|list"][..], 5), (&[], 0)] {
        grant(&mut admin, &[TARGET_ACL, TARGET_ACL_VERIFY, TARGET_ACL_REPAIR], missing);
        run(&live, "SET text v");
        let run = compare_with(&live, server.port(), &["--repair", "copy"]);
        run.expect_code(code);
        assert_eq!(run.stderr.contains("client|list"), code != 0, "{}", run.stderr);
        assert_eq!(admin.run("GET text").unwrap().text().as_deref() == Some("v"), code == 0);
    }
}

#[test]
fn each_permission_to_compare_with_a_cluster_is_needed() {
    let Ok(cluster) = Cluster::start_kind(ServerKind::Redis7, 3, false) else { return };
    let live = every_type();
    run(&live, "SET {t} v");
    migrate_command(live.port(), cluster.port(), &[]).output().unwrap();
    for (missing, code) in [("", 0), ("cluster|slots", 5), ("cluster|nodes", 5), ("asking", 5)] {
        if missing == "asking" {
            let (slot, from) = (slot(b"t").0, common::clustered::node_of("t"));
            cluster.half_move_slot(slot, from, (from + 1) % 3).unwrap();
        }
        for node in &cluster.nodes {
            let missing: Vec<&str> = missing.split_whitespace().collect();
            grant(&mut node.client().unwrap(), &[TARGET_ACL_VERIFY, TARGET_ACL_VERIFY_CLUSTER], &missing);
        }
        let run = compare_with(&live, cluster.port(), &[]);
        run.expect_code(code);
        assert!(run.stderr.contains(missing), "{missing}: {}", run.stderr);
        assert_eq!(run.stderr.contains("NOPERM"), code != 0, "{missing}: {}", run.stderr);
    }
}
