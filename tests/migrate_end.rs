//! The end of `migrate`, when everything was acknowledged: keys are asked for at the source and deleted, replicas are waited for. A node
//! that has lost meanwhile what it had acknowledged ends the run with an error, and so does the lease once it is another's.

mod common;

use common::clustered::{key_on, node_of};
use common::{FlowBytes, Hand, Run, Running, Stopped, migrate_command, server_with, start};
use df2redis::lab::LabError;
use df2redis::lab::client::Client;
use df2redis::lab::cluster::Cluster;
use df2redis::lab::flow::{Faults, Gate};
use df2redis::lab::master::{Master, MasterOptions};
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::wait_for;
use df2redis::redis::slot::slot;

/// The node that loses something, and its replica.
const NODE: usize = 1;
const REPLICA: usize = 4;
/// For so many keys the source is asked at once.
const ASKED_AT_ONCE: usize = 256;

/// A cluster, or why the test skips.
fn cluster(replicas: bool) -> Option<Cluster> {
    match Cluster::start_kind(ServerKind::Redis7, 3, replicas) {
        Err(LabError::NoServer { what, .. }) => {
            eprintln!("skipped: no {what} here");
            None
        }
        cluster => Some(cluster.unwrap()),
    }
}

fn options(gate: &Gate) -> MasterOptions {
    let faults = Faults { full_sync_gate: Some(gate.clone()), ..Faults::default() };
    MasterOptions { faults, ..MasterOptions::default() }
}

fn has_key(server: &Server, key: &str) -> bool {
    server.client().unwrap().ask(&["EXISTS", key]).unwrap().int() == Some(1)
}

/// A `migrate` whose snapshot, this key on each node, was written, and does not end before the gate is open.
fn begin(cluster: &Cluster, master: &Master, more: &[&str]) -> Running {
    let running = start(migrate_command(master.port(), cluster.port(), more));
    let written = wait_for(|| (0..3).all(|node| has_key(&cluster.nodes[node], &key_on(node, "k"))).then_some(()));
    assert!(written.is_some(), "the load does not begin");
    running
}

fn snapshot() -> FlowBytes {
    let mut flow = FlowBytes::new();
    (0..3).for_each(|node| _ = flow.string(key_on(node, "k").as_bytes(), b"v"));
    flow
}

/// A replica hears of nothing that its primary, this node, writes from now on.
fn let_the_replica_lag(cluster: &Cluster, node: usize) {
    let (mut primary, mut replica) = (cluster.nodes[node].client().unwrap(), cluster.nodes[3 + node].client().unwrap());
    primary.run("ACL SETUSER default -psync -sync").unwrap();
    primary.run("CLIENT KILL TYPE replica").unwrap();
    let lags = wait_for(|| (replica.info("master_link_status").ok()?.as_deref() == Some("down")).then_some(()));
    assert!(lags.is_some(), "the replica is still linked");
}

/// By force; its primary lives, follows it, and throws away what it has more.
fn take_over(cluster: &Cluster) {
    cluster.nodes[REPLICA].client().unwrap().run("CLUSTER FAILOVER TAKEOVER").unwrap();
    let took_over = wait_for(|| {
        let primaries = cluster.primaries();
        (primaries.contains(&REPLICA) && !primaries.contains(&NODE)).then_some(())
    });
    assert!(took_over.is_some(), "no replica took over");
    cluster.wait_ok().unwrap();
}

/// How often it was asked for its replicas.
fn waits(server: &Server) -> Option<u64> {
    let stats = server.client().ok()?.ask(&["INFO", "commandstats"]).ok()?.text()?;
    let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_wait:calls="))?;
    line.split(',').next()?.parse().ok()
}

#[track_caller]
fn wait_until_replicas_are_asked_for(running: &mut Running, server: &Server) {
    let asked = wait_for(|| {
        assert!(running.is_running(), "it does not wait for replicas");
        waits(server).filter(|count| *count > 0)
    });
    assert!(asked.is_some(), "replicas are not asked for");
}

#[track_caller]
fn wait_until_asked(running: &mut Running, master: &Master, keys: usize) {
    let asked = wait_for(|| {
        assert!(running.is_running(), "it does not ask the source for keys");
        let requests = master.requests();
        (requests.iter().filter(|line| line.starts_with("EXISTS ")).count() >= keys).then_some(())
    });
    assert!(asked.is_some(), "the source is not asked for {keys} keys");
}

#[track_caller]
fn is_told(run: &Run, cluster: &Cluster, text: &str) {
    let keys: Vec<String> = cluster.keys().unwrap().iter().map(|key| key.escape_ascii().to_string()).collect();
    assert_eq!(run.code(), 5, "{}\n{}\nthe target holds {keys:?}", run.message(), run.stderr);
    run.expect_text(text).expect_text("--on-existing flush");
}

/// Its replica never confirms: who takes over instead confirms what is shorter.
#[test]
fn a_replica_that_lags_and_takes_over_while_it_is_waited_for() {
    let Some(cluster) = cluster(true) else { return };
    let (gate, mut flow) = (Gate::default(), snapshot());
    (0..3).for_each(|node| _ = flow.late_journal(0, &["SET", &key_on(node, "late"), "v"]));
    let master = Hand::new(vec![flow]).start_with(options(&gate));
    let mut running = begin(&cluster, &master, &["--wait-replicas", "1:200ms"]);
    cluster.nodes[NODE].client().unwrap().run("CONFIG RESETSTAT").unwrap();
    let_the_replica_lag(&cluster, NODE);
    gate.open();
    wait_until_replicas_are_asked_for(&mut running, &cluster.nodes[NODE]);
    take_over(&cluster);
    is_told(&running.wait(), &cluster, "took over from");
}

/// While one node's replica is waited for, another node hands over to its own, and a third gives a slot away.
#[test]
fn nodes_that_hand_over_everything_while_replicas_are_waited_for() {
    let Some(cluster) = cluster(true) else { return };
    let (gate, mut flow) = (Gate::default(), snapshot());
    (0..3).for_each(|node| _ = flow.late_journal(0, &["SET", &key_on(node, "late"), "v"]));
    let master = Hand::new(vec![flow]).start_with(options(&gate));
    let mut running = begin(&cluster, &master, &["--wait-replicas", "1:200ms"]);
    cluster.nodes[0].client().unwrap().run("CONFIG RESETSTAT").unwrap();
    let_the_replica_lag(&cluster, 0);
    gate.open();
    wait_until_replicas_are_asked_for(&mut running, &cluster.nodes[0]);
    cluster.fail_over(REPLICA).unwrap();
    cluster.wait_agreed().unwrap();
    cluster.move_slot(slot(key_on(2, "late").as_bytes()).0, 2, REPLICA).unwrap();
    assert!(running.is_running(), "it did not wait");
    // A replica that came in by SYNC would confirm nothing.
    cluster.nodes[0].client().unwrap().run("ACL SETUSER default +psync").unwrap();
    running.wait().expect_code(0);
    assert_eq!(cluster.keys().unwrap().len(), 6);
}

/// With nothing on it but what was acknowledged long before.
#[test]
fn a_primary_that_is_restarted_empty_while_the_source_is_asked() {
    let Some(mut cluster) = cluster(false) else { return };
    let (gate, answers, mut flow) = (Gate::default(), Gate::default(), snapshot());
    flow.journal(0, &["MSET", &key_on(0, "silent"), "v"]);
    let master = Hand::new(vec![flow]).silent_behind(0, &answers).start_with(options(&gate));
    let mut running = begin(&cluster, &master, &[]);
    gate.open();
    wait_until_asked(&mut running, &master, 1);
    cluster.nodes[NODE].restart().unwrap();
    cluster.wait_ok().unwrap();
    answers.open();
    is_told(&running.wait(), &cluster, "restarted during the run");
}

/// A `migrate` that is asking the source for keys. Deletions that the primary has acknowledged, and its replica has not heard of,
/// are lost by `then`.
fn with_deletions_that_are_lost(then: impl FnOnce(&Cluster, &Running), told: &str) {
    let Some(cluster) = cluster(true) else { return };
    let (gate, answers, mut flow) = (Gate::default(), Gate::default(), snapshot());
    let silent: Vec<String> = (0..2 * ASKED_AT_ONCE).map(|i| format!("silent:{i}")).collect();
    silent.iter().for_each(|key| _ = flow.journal(0, &["MSET", key, "v"]));
    let master = Hand::new(vec![flow]).silent_behind(ASKED_AT_ONCE, &answers).start_with(options(&gate));
    let mut running = begin(&cluster, &master, &[]);
    let on_node = silent.iter().filter(|key| node_of(key) == NODE).count() as i64;
    let mut replica = cluster.nodes[REPLICA].client().unwrap();
    let has_all = wait_for(|| (replica.run("DBSIZE").ok()?.int()? > on_node).then_some(()));
    assert!(has_all.is_some(), "the replica does not have the keys");
    let_the_replica_lag(&cluster, NODE);
    gate.open();
    wait_until_asked(&mut running, &master, ASKED_AT_ONCE + 1);
    then(&cluster, &running);
    answers.open();
    is_told(&running.wait(), &cluster, told);
}

#[test]
fn a_replica_that_lags_and_takes_over_while_the_source_is_asked() {
    with_deletions_that_are_lost(|cluster, _| take_over(cluster), "took over from");
}

/// Nobody looks meanwhile, and behind it every node is in its place.
#[test]
fn a_replica_that_lags_takes_over_and_hands_back_between_two_looks() {
    let there_and_back = |cluster: &Cluster, running: &Running| {
        running.signal("STOP");
        take_over(cluster);
        cluster.fail_over(NODE).unwrap();
        cluster.wait_agreed().unwrap();
        running.signal("CONT");
    };
    with_deletions_that_are_lost(there_and_back, "was a replica during the run");
}

fn single() -> Option<Server> {
    server_with(ServerKind::Redis7, ServerOptions::default().config("repl-diskless-sync-delay", "0"))
}

/// Linked, and fed by it.
fn let_follow(replica: &Server, primary: &Server) {
    replica.client().unwrap().run(&format!("REPLICAOF 127.0.0.1 {}", primary.port())).unwrap();
    let (mut of_primary, mut of_replica) = (primary.client().unwrap(), replica.client().unwrap());
    let is_fed = |client: &mut Client| Some(client.info("slave0").ok()??.contains("state=online"));
    let is_linked = |client: &mut Client| Some(client.info("master_link_status").ok()?? == "up");
    let is_in_step = || (is_fed(&mut of_primary)? && is_linked(&mut of_replica)?).then_some(());
    assert!(wait_for(is_in_step).is_some(), "the replica is not in step");
}

/// A `migrate` into one server that waits for its replica, which stands still, and `goes_on` behind that. Waiting for replicas may take minutes; it ends as
/// it must after what `meanwhile` does.
fn while_a_replica_is_waited_for(goes_on: bool, meanwhile: impl FnOnce(&Server), told: &str) {
    let (Some(primary), Some(replica)) = (single(), single()) else { return };
    let_follow(&replica, &primary);
    let gate = Gate::default();
    let master = Hand::new(vec![snapshot()]).start_with(options(&gate));
    let mut running = start(migrate_command(master.port(), primary.port(), &["--wait-replicas", "1:200ms"]));
    assert!(wait_for(|| has_key(&primary, &key_on(0, "k")).then_some(())).is_some(), "the load does not begin");
    let stopped = Stopped::new(&replica);
    primary.client().unwrap().run("CONFIG RESETSTAT").unwrap();
    gate.open();
    wait_until_replicas_are_asked_for(&mut running, &primary);
    meanwhile(&primary);
    let _stopped = Some(stopped).filter(|_| !goes_on);
    running.wait().expect_code(5).expect_text(told);
}

#[test]
fn a_lease_that_is_lost_while_replicas_are_waited_for() {
    let take = |primary: &Server| _ = primary.client().unwrap().run("SET df2redis:lease another").unwrap();
    while_a_replica_is_waited_for(false, take, "another df2redis writes to it now");
}

/// Its replica confirms what it copied in between, and then holds as little.
#[test]
fn a_target_that_copies_another_server_while_replicas_are_waited_for() {
    let Some(other) = single() else { return };
    let copy = |primary: &Server| {
        let_follow(primary, &other);
        primary.client().unwrap().run("REPLICAOF NO ONE").unwrap();
    };
    while_a_replica_is_waited_for(true, copy, "was a replica");
}
