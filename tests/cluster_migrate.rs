//! Full syncs into real clusters: everything that a generated source holds arrives, also while slots move and primaries
//! fail over; what is no part of the cluster is never talked to.

mod common;

use common::{FlowBytes, Hand, Run, migrate, migrate_command, server, start, texts};
use df2redis::lab::LabError;
use df2redis::lab::answers::{ClusterPorts, TargetIdentity};
use df2redis::lab::client::Client;
use df2redis::lab::cluster::Cluster;
use df2redis::lab::flow::{Faults, Gate};
use df2redis::lab::generate::{Compression, Generator, Model, Release, Spec};
use df2redis::lab::master::{Master, MasterOptions};
use df2redis::lab::script::{ErrorRule, ScriptOptions, ScriptedTarget};
use df2redis::lab::servers::ServerKind;
use df2redis::lab::torture::wait_for;
use df2redis::lab::truth;
use std::sync::Arc;
use std::time::Duration;

const MIX: &str = "string:100B=3000,string:3000B=100,string:200KiB=10,int=500,list:5x8=100,list:500x20=20,list:20x9000=3,\
                   set:9x9=100,set:200x9=20,intset:50x1000=20,hash:20x8=100,hash:500x30=20,zset:20x8=100,zset:500x30=20,\
                   stream:20x8=20,stream:500x30=5,stream:0x0=4";

fn spec(seed: u64) -> Spec {
    Spec {
        seed,
        flows_count: 3,
        compression: Compression::Lz4,
        chunk_bytes: 4 << 10,
        expire_fraction: 0.2,
        expired_fraction: 0.02,
        journal_ratio: 0.5,
        strays_count: 4,
        omitted_deletes_count: 3,
        early_writes_count: 5,
        release: Release::New,
        ..Spec::of(MIX).unwrap()
    }
}

/// A cluster, or why the test skips.
fn cluster(kind: ServerKind, replicas: bool) -> Option<Cluster> {
    match Cluster::start_kind(kind, 3, replicas) {
        Err(LabError::NoServer { what, .. }) => {
            eprintln!("skipped: no {what} here");
            None
        }
        cluster => Some(cluster.unwrap()),
    }
}

/// The cluster holds what the model says and nothing else.
fn check(cluster: &Cluster, kind: ServerKind, model: &Model, stderr: &str) {
    let own: Vec<_> = cluster.keys().unwrap().into_iter().filter(|key| key.starts_with(b"df2redis:")).collect();
    assert!(own.is_empty(), "left behind: {} keys of the tool's own\n{stderr}", own.len());
    let Some(plain) = server(kind) else { return };
    cluster.gather(&plain).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let truth_file = dir.path().join("truth.jsonl");
    model.write_truth(&truth_file).unwrap();
    // MIGRATE hands a time to live on, not a time: a move of a slot delays expiries. What is held back is 139 years late.
    if let Err(differences) =
        truth::compare(plain.port(), &truth_file, &["--skip-types", "json,opaque", "--slack-ms", "20000"])
    {
        panic!("{kind:?}:\n{differences}\n{stderr}");
    }
}

fn all_arrives(kind: ServerKind, more: &[&str]) {
    let Some(cluster) = cluster(kind, false) else { return };
    let (master, model) = Generator::start(spec(1), MasterOptions::default()).unwrap();
    let mut args = vec!["--on-unsupported", "skip"];
    args.extend_from_slice(more);
    let run = migrate(master.port(), cluster.port(), &args);
    run.expect_code(0);
    assert_eq!(master.violations(), []);
    check(&cluster, kind, &model, &run.stderr);
    assert_eq!(run.report["targets"].as_array().map(Vec::len), Some(3));
}

#[test]
fn everything_arrives_in_redis_7() {
    all_arrives(ServerKind::Redis7, &[]);
}

#[test]
fn everything_arrives_in_valkey_9() {
    all_arrives(ServerKind::Valkey9, &[]);
}

#[test]
fn everything_arrives_by_commands_and_in_tiny_buffers() {
    let tiny = ["--restore-bytes-max", "64", "--rx-chunk", "64KiB", "--batch-bytes", "4KiB", "--borrow-bytes", "64"];
    all_arrives(ServerKind::Redis7, &tiny);
}

const ARGS: [&str; 4] = ["--on-unsupported", "skip", "--log", "info"];

/// A load in the middle of which `disturb` does its work: it does not end before. `None`: no such server here.
fn disturbed(
    kind: ServerKind,
    replicas: bool,
    seed: u64,
    disturb: impl FnOnce(&mut Cluster),
) -> Option<(Cluster, Master, Arc<Model>, Run)> {
    let mut cluster = cluster(kind, replicas)?;
    cluster.forget_redirects().unwrap();
    let gate = Gate::default();
    let faults = Faults { full_sync_gate: Some(gate.clone()), ..Faults::default().slow(30_000) };
    let (master, model) = Generator::start(spec(seed), MasterOptions { faults, ..MasterOptions::default() }).unwrap();
    let mut tool = start(migrate_command(master.port(), cluster.port(), &ARGS));
    let begun = wait_for(|| (cluster.keys().unwrap().len() > 50).then_some(()));
    assert!(begun.is_some() && tool.is_running(), "the load does not begin");
    disturb(&mut cluster);
    gate.open();
    let run = tool.wait_for(Duration::from_secs(240));
    cluster.wait_ok().unwrap();
    Some((cluster, master, model, run))
}

/// It arrives all the same.
fn arrives_disturbed(kind: ServerKind, replicas: bool, seed: u64, disturb: impl FnOnce(&mut Cluster)) -> Option<Run> {
    let (cluster, _master, model, run) = disturbed(kind, replicas, seed, disturb)?;
    run.expect_code(0);
    check(&cluster, kind, &model, &run.stderr);
    assert!(cluster.redirects().unwrap().0 > 0, "nobody was sent elsewhere:\n{}", run.stderr);
    Some(run)
}

#[test]
fn slots_move_during_a_full_sync() {
    arrives_disturbed(ServerKind::Redis7, false, 2, |cluster| assert!(cluster.reshard(7).unwrap() > 0));
}

#[test]
fn slots_move_during_a_full_sync_into_valkey_9() {
    arrives_disturbed(ServerKind::Valkey9, false, 3, |cluster| assert!(cluster.reshard(11).unwrap() > 0));
}

/// `CLUSTER FAILOVER` waits for the replica: nothing is lost.
#[test]
fn replicas_are_handed_over_to_during_a_full_sync() {
    for kind in [ServerKind::Redis7, ServerKind::Valkey9] {
        // One that is handed back before anybody has looked is not told from one that may lack something.
        let hand_over = |cluster: &mut Cluster| [3, 4, 5].into_iter().for_each(|node| cluster.fail_over(node).unwrap());
        let Some(run) = arrives_disturbed(kind, true, 4, hand_over) else { continue };
        assert!(run.stderr.contains("with everything that its primary had"), "{}", run.stderr);
    }
}

/// The replica of a node that died takes over, without what that may have acknowledged just before: nothing says what, and the
/// run ends.
#[test]
fn a_primary_that_dies_in_a_full_sync_ends_the_run() {
    for kind in [ServerKind::Redis7, ServerKind::Valkey9] {
        let ended = disturbed(kind, true, 5, |cluster| {
            cluster.kill(1);
            until_primary(cluster, 4);
        });
        let Some((cluster, master, model, run)) = ended else { continue };
        run.expect_code(5)
            .expect_text("took over from")
            .expect_text("in the full sync")
            .expect_text("--on-existing flush");
        let again = [&ARGS[..], &["--on-existing", "flush"]].concat();
        let run = migrate(master.port(), cluster.port(), &again);
        run.expect_code(0);
        check(&cluster, kind, &model, &run.stderr);
    }
}

/// A replica takes over by force that has not heard of the last writes. Its primary lives, and follows it: that is no sign.
#[test]
fn a_replica_that_lags_and_takes_over_by_force_ends_the_run() {
    let ended = disturbed(ServerKind::Redis7, true, 6, |cluster| {
        let (mut primary, mut replica) = (cluster.nodes[1].client().unwrap(), cluster.nodes[4].client().unwrap());
        primary.run("ACL SETUSER default -psync -sync").unwrap();
        primary.run("CLIENT KILL TYPE replica").unwrap();
        let keys = |client: &mut Client| client.run("DBSIZE").unwrap().int().unwrap();
        let lags = wait_for(|| (keys(&mut primary) > keys(&mut replica)).then_some(()));
        assert!(lags.is_some(), "nothing is written");
        replica.run("CLUSTER FAILOVER TAKEOVER").unwrap();
        until_primary(cluster, 4);
    });
    let Some((.., run)) = ended else { return };
    run.expect_code(5).expect_text("took over from").expect_text("--on-existing flush");
}

/// The same, and its primary is restarted before it has copied everything from its heir: it goes on from the position of its dump, which
/// the heir knows. So nothing but its being another process tells that it had more.
#[test]
fn a_primary_that_was_restarted_proves_nothing_of_its_heir() {
    let ended = disturbed(ServerKind::Redis7, true, 6, |cluster| {
        let (mut primary, mut replica) = (cluster.nodes[1].client().unwrap(), cluster.nodes[4].client().unwrap());
        primary.run("SAVE").unwrap();
        let keys = |client: &mut Client| client.run("DBSIZE").unwrap().int().unwrap();
        // The dump's position is one that the replica comes to.
        let reached = |client: &mut Client| client.info("master_repl_offset").unwrap()?.parse::<u64>().ok();
        let saved = reached(&mut primary);
        let has_it = wait_for(|| (reached(&mut replica) >= saved).then_some(()));
        assert!(has_it.is_some(), "the replica gets nothing");
        for node in [&mut primary, &mut replica] {
            node.run("ACL SETUSER default -psync -sync").unwrap();
        }
        primary.run("CLIENT KILL TYPE replica").unwrap();
        let lags = wait_for(|| (keys(&mut primary) > keys(&mut replica)).then_some(()));
        assert!(lags.is_some(), "nothing is written");
        replica.run("CLUSTER FAILOVER TAKEOVER").unwrap();
        let follows = wait_for(|| (primary.info("role").unwrap().as_deref() == Some("slave")).then_some(()));
        assert!(follows.is_some(), "it does not become a replica");
        cluster.nodes[1].kill();
        replica.run("ACL SETUSER default +psync").unwrap();
        cluster.nodes[1].restart().unwrap();
        until_primary(cluster, 4);
    });
    let Some((.., run)) = ended else { return };
    run.expect_code(5).expect_text("took over from").expect_text("--on-existing flush");
}

/// A node that has just taken over, with everything, and comes back with an older dump. Nobody connected to it as to a primary before.
#[test]
fn an_heir_that_was_restarted_ends_the_run() {
    let Some(mut cluster) = cluster(ServerKind::Redis7, true) else { return };
    let gate = Gate::default();
    let mut flow = FlowBytes::new();
    for key in texts("key", 300) {
        flow.string(&key, b"v");
    }
    let faults = Faults { full_sync_gate: Some(gate.clone()), ..Faults::default() };
    let master = Hand::new(vec![flow]).faulty(faults);
    let (old, heir) = (1, 4);
    cluster.nodes[heir].client().unwrap().run("SAVE").unwrap();
    let mut tool = start(migrate_command(master.port(), cluster.port(), &["--log", "info"]));
    let all = wait_for(|| {
        let keys = cluster.keys().unwrap();
        (keys.iter().filter(|key| !key.starts_with(b"df2redis:")).count() == 300).then_some(())
    });
    assert!(all.is_some() && tool.is_running(), "the load does not come to its end");
    let asks = |what: &str| {
        let clients = cluster.nodes[heir].client().unwrap().run("CLIENT LIST").unwrap().text().unwrap();
        clients.lines().any(|client| client.contains("name=df2redis-control") && client.contains(what))
    };
    assert!(wait_for(|| asks("cmd=info").then_some(())).is_some() && tool.is_running(), "replicas are not asked");
    // Nobody is to take over again.
    cluster.nodes[old].client().unwrap().run("CONFIG SET cluster-replica-no-failover yes").unwrap();
    cluster.fail_over(heir).unwrap();
    assert!(
        wait_for(|| asks("cmd=cluster").then_some(())).is_some() && tool.is_running(),
        "it is not known as primary"
    );
    cluster.nodes[heir].kill();
    cluster.nodes[heir].restart().unwrap();
    cluster.wait_ok().unwrap();
    gate.open();
    tool.wait_for(Duration::from_secs(120)).expect_code(5).expect_text("was restarted");
}

/// It has taken over, and the others know.
fn until_primary(cluster: &Cluster, node: usize) {
    let took_over = wait_for(|| cluster.primaries().contains(&node).then_some(()));
    assert!(took_over.is_some(), "no replica took over");
    cluster.wait_ok().unwrap();
}

#[test]
fn databases_that_a_cluster_has_not_are_refused_at_the_first_key() {
    let Some(cluster) = cluster(ServerKind::Redis7, false) else { return };
    let mut flow = FlowBytes::new();
    flow.string(b"a", b"1").db(3).string(b"b", b"2");
    let master = Hand::new(vec![flow]).start();
    let run = migrate(master.port(), cluster.port(), &[]);
    run.expect_code(3).expect_text("database 3");
}

#[test]
fn a_target_that_holds_keys_is_refused_and_emptied_on_request() {
    let Some(cluster) = cluster(ServerKind::Redis7, false) else { return };
    for (node, key) in [(0, "bar"), (2, "foo")] {
        cluster.nodes[node].client().unwrap().run(&format!("SET {key} old")).unwrap();
    }
    let mut flow = FlowBytes::new();
    for key in texts("key", 100) {
        flow.string(&key, b"v");
    }
    let master = Hand::new(vec![flow]).start();
    migrate(master.port(), cluster.port(), &[]).expect_code(3).expect_text("holds 2 keys");
    migrate(master.port(), cluster.port(), &["--on-existing", "flush"]).expect_code(0);
    assert_eq!(cluster.keys().unwrap().len(), 100);
}

/// A node that sends a client elsewhere: only where the cluster's own nodes are is followed.
#[test]
fn a_redirect_out_of_the_cluster_is_not_followed() {
    let outside = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    outside.set_nonblocking(true).unwrap();
    let elsewhere = outside.local_addr().unwrap();
    for reply in [format!("-MOVED 12182 {elsewhere}"), format!("-ASK 12182 {elsewhere}")] {
        let ports = ClusterPorts::default();
        let options = ScriptOptions {
            identity: TargetIdentity {
                password: Some("secret".into()),
                ..TargetIdentity::default().in_cluster(&ports)
            },
            errors: vec![ErrorRule { key: Some(b"foo".to_vec()), ..ErrorRule::every("SET", &reply) }],
            ..ScriptOptions::default()
        };
        let target = ScriptedTarget::start(options).unwrap();
        ports.lock().unwrap().push(target.port());
        let mut flow = FlowBytes::new();
        flow.string(b"a", b"1").string(b"foo", b"2").string(b"b", b"3");
        let master = Hand::new(vec![flow]).start();
        let mut command = migrate_command(master.port(), target.port(), &[]);
        command.env("DF2REDIS_TARGET_PASSWORD", "secret");
        let run = start(command).wait();
        run.expect_code(5).expect_text("no node of the cluster").expect_text(&elsewhere.to_string());
        assert!(outside.accept().is_err(), "an address outside of the cluster was connected to");
    }
}

/// What stands before a record over several slots in the open batch gets its number later than the record was read.
#[test]
fn a_value_that_was_just_changed_is_moved_to_another_slot() {
    let Some(cluster) = cluster(ServerKind::Redis7, false) else { return };
    let mut flow = FlowBytes::new();
    for n in 0..20 {
        let (from, to) = (format!("from{n}"), format!("to{n}"));
        flow.string(from.as_bytes(), b"1").journal(0, &["INCR", &from]).journal(0, &["RENAME", &from, &to]);
        flow.journal(0, &["INCR", &to]);
    }
    let master = Hand::new(vec![flow]).start();
    migrate(master.port(), cluster.port(), &[]).expect_code(0);
    let mut keys = cluster.keys().unwrap();
    keys.sort();
    let mut wanted: Vec<Vec<u8>> = (0..20).map(|n| format!("to{n}").into_bytes()).collect();
    wanted.sort();
    assert_eq!(keys, wanted);
    for key in keys {
        let key = String::from_utf8(key).unwrap();
        let found = (0..3).find_map(|at| cluster.nodes[at].client().ok()?.ask(&["GET", &key]).ok()?.text());
        assert_eq!(found.as_deref(), Some("3"), "{key}");
    }
}
