//! Global commands of the journal (FLUSHALL, FLUSHDB, slots given away) at a target that allows little, or refuses for a while:
//! each is executed once, with the positions behind it, and the job goes on.

mod common;

use common::clustered::Clustered;
use common::grants::{TARGET_ACL, TARGET_ACL_REPLICATE};
use common::job::{binary, run, stop, until};
use common::{FlowBytes, Hand, server, server_with};
use df2redis::lab::encode;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::script::{ErrorRule, ScriptOptions, ScriptedTarget};
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::{Tool, compare, is_stable};

fn spec() -> Spec {
    Spec { flows_count: 2, ..Spec::of("string:60B=20").unwrap() }
}

/// In a database that the target does not have, and of slots in which it keeps nothing but what it deletes one by one.
const NOTHING_TO_DO: [(u32, &str); 2] = [(5, "FLUSHDB"), (0, "DFLYCLUSTER FLUSHSLOTS 0 8191")];

fn run_in(live: &Live, db: u32, line: &str) {
    live.world().run(db, &line.split(' ').map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>());
}

/// A live source, and the tool in step with it as the user that README.md describes.
struct LeastUser {
    live: Live,
    server: Server,
    tool: Tool,
}

impl LeastUser {
    fn start(server: Server) -> Self {
        let mut admin = server.client().unwrap();
        [TARGET_ACL, TARGET_ACL_REPLICATE].iter().for_each(|line| drop(admin.run(line).unwrap()));
        let live = Live::start(spec(), LiveOptions::default(), MasterOptions::default()).unwrap();
        let [password, config] = ["password", "least.toml"].map(|name| server.dir().join(name));
        std::fs::write(&password, "secret").unwrap();
        let settings = format!("target-user = \"df2redis\"\ntarget-password-file = \"{}\"\n", password.display());
        std::fs::write(&config, settings).unwrap();
        let args = ["--config", config.to_str().unwrap(), "--control", "off", "--retry-max", "30s"];
        let log = server.dir().join("tool.log");
        let tool = Tool::start(binary(), live.port(), server.port(), &log, &args).unwrap();
        let mut this = Self { live, server, tool };
        until(&mut this.tool, "stable", || is_stable(&this.server));
        this
    }

    /// The job has gone on, and ends with what the source holds.
    fn finish(mut self) {
        run(&self.live, "SET last 1");
        until(&mut self.tool, "it does not go on", || self.live.is_acknowledged());
        stop(&mut self.tool);
        assert!(!self.tool.said().contains("NOPERM"), "{}", self.tool.said());
        let truth = self.server.dir().join("truth.jsonl");
        self.live.write_truth(&truth).unwrap();
        compare(&self.server, ServerKind::Redis7, &truth).unwrap_or_else(|why| panic!("{why}\n{}", self.tool.said()));
    }
}

#[test]
fn what_deletes_nothing_at_a_server_needs_no_grant() {
    let options = ServerOptions::default().config("databases", "2");
    let Some(server) = server_with(ServerKind::Redis7, options) else { return };
    let mut job = LeastUser::start(server);
    for (db, line) in NOTHING_TO_DO {
        run_in(&job.live, db, line);
        until(&mut job.tool, line, || job.live.is_acknowledged());
    }
    job.finish();
}

#[test]
fn what_deletes_nothing_at_a_cluster_needs_no_grant() {
    let Some(world) = Clustered::new(false, ServerOptions::default(), spec(), LiveOptions::default()) else { return };
    let config = world.least_user("");
    let mut tool = world.start_by(0, &["--config", config.to_str().unwrap(), "--retry-max", "30s"]);
    world.wait_applied(&mut tool);
    for (db, line) in NOTHING_TO_DO {
        run_in(&world.live, db, line);
        world.wait_applied(&mut tool);
    }
    world.finish(tool);
}

/// Refused in the middle of its transaction, which is then begun anew.
#[test]
fn a_flush_that_is_refused_for_a_while_is_waited_for_by_the_least_user() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut job = LeastUser::start(server);
    let mut admin = job.server.client().unwrap();
    for (refuse, restore) in [
        ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"),
        ("ACL SETUSER df2redis -flushall", "ACL SETUSER df2redis +flushall"),
    ] {
        run(&job.live, "SET before 1");
        until(&mut job.tool, "before", || job.live.is_acknowledged());
        admin.run("CONFIG RESETSTAT").unwrap();
        admin.run(refuse).unwrap();
        run(&job.live, "FLUSHALL");
        until(&mut job.tool, refuse, || {
            let stats = admin.info("cmdstat_flushall").unwrap().unwrap_or_default();
            let refused =
                stats.split_once("rejected_calls=").and_then(|(_, rest)| rest.split(',').next()?.parse().ok());
            refused.is_some_and(|refused: u64| refused >= 3)
        });
        admin.run(restore).unwrap();
        until(&mut job.tool, "the flush is not executed", || job.live.is_acknowledged());
    }
    job.finish();
}

/// Follows a source that records one FLUSHALL, and nothing else, into a target with this rule.
#[track_caller]
fn flushes_once_under(rule: ErrorRule) {
    let told = format!("{rule:?}");
    let mut flow = FlowBytes::new();
    flow.string(b"first", b"v");
    encode::journal_command(&mut flow.stable, 0, 7, &["FLUSHALL"]);
    let master = Hand::new(vec![flow]).start();
    let target = ScriptedTarget::start(ScriptOptions { errors: vec![rule], ..Default::default() }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let args = ["--control", "off", "--retry-max", "30s"];
    let mut tool = Tool::start(binary(), master.port(), target.port(), &dir.path().join("tool.log"), &args).unwrap();
    let is_executed = |words: &[&str]| {
        let is = |request: &[Vec<u8>]| words.iter().all(|word| request.iter().any(|of| of == word.as_bytes()));
        target.received().iter().filter(|received| received.executed && is(&received.request)).count()
    };
    // The snapshot ends at 100.
    until(&mut tool, &told, || is_executed(&["HSET", "phase", "stable", "lsn:0", "101"]) > 0);
    assert_eq!(is_executed(&["FLUSHALL"]), 1, "{told}: {}", tool.said());
    stop(&mut tool);
    assert_eq!(is_executed(&["FLUSHALL"]), 1, "{told}: {}", tool.said());
}

#[test]
fn a_flush_is_executed_once_whatever_refuses_it() {
    let read_only = "-READONLY You can't write against a read only replica.";
    flushes_once_under(ErrorRule { times: 2, ..ErrorRule::every("FLUSHALL", read_only) });
    flushes_once_under(ErrorRule { times: 2, ..ErrorRule::every("FLUSHALL", "-NOPERM this user has no permissions") });
}

/// At the end of any transaction, that of the flush among them.
#[test]
fn a_flush_is_executed_once_where_its_end_is_refused() {
    let at_exec = "-EXECABORT Transaction discarded because of: READONLY You can't write against a read only replica.";
    (1..5).for_each(|after| flushes_once_under(ErrorRule { after, times: 2, ..ErrorRule::every("EXEC", at_exec) }));
}
