//! Two jobs into one target: the second one is refused, and the first one goes on. What a killed job leaves behind holds nobody
//! up on its own machine, and another machine only for as long as a lease lives. Losing it is the end of a job; a target that
//! cannot be told to renew it is not.

mod common;

use common::job::{binary, until};
use common::{Contents, FlowBytes, Hand, Run, Stopped, contents, migrate, migrate_command, noise, server, start};
use df2redis::lab::client::Client;
use df2redis::lab::cluster::Cluster;
use df2redis::lab::flow::Faults;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::{Master, MasterOptions};
use df2redis::lab::servers::{Server, ServerKind};
use df2redis::lab::torture::{Tool, is_stable, wait_for};
use std::path::Path;
use std::time::{Duration, Instant};

const LEASE: &str = "df2redis:lease";
/// A lease of a machine that cannot be looked at.
const ELSEWHERE: &str = r#"{"id":"1","host":"elsewhere","boot":"b","pid_namespace":"p","pid":7,"started_ticks":1,"job":"migrate","source":"s:1","since_unix_s":1}"#;

/// A source of so many keys whose names begin with this.
fn flow(prefix: &str, keys: u64) -> (FlowBytes, Contents) {
    let (mut flow, mut truth) = (FlowBytes::new(), Contents::new());
    for i in 0..keys {
        let (key, value) = (format!("{prefix}:{i}").into_bytes(), noise(i + 1, 400));
        flow.string(&key, &value);
        truth.insert((0, key), ("string".into(), vec![value]));
    }
    (flow, truth)
}

/// It takes about two seconds to send its snapshot.
fn slow_source(prefix: &str) -> (Master, Contents) {
    let (flow, truth) = flow(prefix, 1000);
    (Hand::new(vec![flow]).faulty(Faults::default().slow(200_000)), truth)
}

/// A live source of a few keys.
fn live(prefix: &str) -> Live {
    let spec = Spec { flows_count: 2, ..Spec::of("string:60B=20").unwrap() };
    let live = Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap();
    say(&live, &format!("SET {prefix}:begin 1"));
    live
}

fn say(live: &Live, line: &str) {
    live.world().run(0, &line.split(' ').map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>());
}

/// The program as another user, or as another job at the same two servers, would start it: without the control socket, which
/// refuses a second start on the same machine.
fn follow(live: &Live, port: u16, dir: &Path, name: &str, more: &[&str]) -> Tool {
    let mut args = vec!["--log", "info", "--control", "off", "--cores", "1"];
    args.extend_from_slice(more);
    Tool::start(binary(), live.port(), port, &dir.join(name), &args).unwrap()
}

/// Waits until a value written at the source now is at the target.
#[track_caller]
fn follows(live: &Live, tool: &mut Tool, client: &mut Client, key: &str) {
    say(live, &format!("SET {key} 1"));
    until(tool, key, || client.ask(&["EXISTS", key]).unwrap().int() == Some(1));
}

#[track_caller]
fn is_refused(run: &Run, by: u32) {
    run.expect_code(3).expect_text("another df2redis writes to this target").expect_text(&format!("process {by} "));
    assert!(run.stdout.contains("nothing was written"), "{}", run.stdout);
}

fn has_key(server: &Server, key: &str) -> bool {
    server.client().unwrap().ask(&["EXISTS", key]).unwrap().int() == Some(1)
}

#[track_caller]
fn wait_for_key(server: &Server, key: &str) {
    assert!(wait_for(|| has_key(server, key).then_some(())).is_some(), "{key} does not come");
}

#[test]
fn a_second_start_is_refused_and_the_first_one_goes_on() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let (master, truth) = slow_source("a");
    let (other, _) = flow("b", 10);
    let other = Hand::new(vec![other]).start();
    let first = start(migrate_command(master.port(), server.port(), &[]));
    wait_for_key(&server, LEASE);
    for existing in ["refuse", "flush", "replace"] {
        is_refused(&migrate(other.port(), server.port(), &["--on-existing", existing]), first.pid());
    }
    let again = migrate(master.port(), server.port(), &["--on-existing", "replace", "--control", "off"]);
    is_refused(&again, first.pid());
    first.wait().expect_code(0);
    // Nothing of the tool's own is left, the lease neither.
    assert!(contents(&mut server.client().unwrap()) == truth);
}

#[test]
fn a_second_replicate_is_refused_and_the_first_one_goes_on() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let (live, mut client) = (live("a"), server.client().unwrap());
    let mut first = follow(&live, server.port(), server.dir(), "first", &[]);
    until(&mut first, "stable", || is_stable(&server));
    let mut second = follow(&live, server.port(), server.dir(), "second", &[]);
    assert_eq!(second.wait(), Some(3), "{}", second.said());
    assert!(second.said().contains(&format!("process {} ", first.pid())), "{}", second.said());
    follows(&live, &mut first, &mut client, "later");
    first.signal("INT");
    assert_eq!(first.wait(), Some(130), "{}", first.said());
    assert!(!has_key(&server, LEASE));
}

/// The rest of the lease need not be waited for: its process can be seen to be gone.
#[test]
fn a_killed_job_is_followed_at_once_on_its_machine() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let (live, mut client) = (live("a"), server.client().unwrap());
    let mut tool = follow(&live, server.port(), server.dir(), "first", &[]);
    until(&mut tool, "stable", || is_stable(&server));
    tool.kill();
    assert!(client.run(&format!("PEXPIRE {LEASE} 1000000")).unwrap().int() == Some(1), "it is left behind");
    let mut tool = follow(&live, server.port(), server.dir(), "second", &[]);
    follows(&live, &mut tool, &mut client, "later");
    assert!(tool.said().contains("its lease is taken over"), "{}", tool.said());
    let left = client.run(&format!("PTTL {LEASE}")).unwrap().int().unwrap();
    assert!((1..=15_000).contains(&left), "{left}");
}

/// And it counts as no key: the target is as empty as it was.
#[test]
fn a_lease_from_elsewhere_is_waited_for_until_it_ends() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let (flow, truth) = flow("a", 100);
    let master = Hand::new(vec![flow]).start();
    server.client().unwrap().ask(&["SET", LEASE, ELSEWHERE, "PX", "4000"]).unwrap();
    let run = migrate(master.port(), server.port(), &[]);
    run.expect_code(0);
    assert!(run.stderr.contains("waiting for its lease to end") && run.stderr.contains("elsewhere"), "{}", run.stderr);
    assert!(contents(&mut server.client().unwrap()) == truth);
}

#[test]
fn a_lease_from_elsewhere_that_is_renewed_is_refused() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let (flow, _) = flow("a", 100);
    let master = Hand::new(vec![flow]).start();
    let mut client = server.client().unwrap();
    client.ask(&["SET", LEASE, ELSEWHERE, "PX", "10000"]).unwrap();
    let mut running = start(migrate_command(master.port(), server.port(), &[]));
    while running.is_running() {
        client.ask(&["PEXPIRE", LEASE, "10000"]).unwrap();
        std::thread::sleep(Duration::from_millis(300));
    }
    running.wait().expect_code(3).expect_text("host elsewhere");
    assert_eq!(client.run("DBSIZE").unwrap().int(), Some(1), "nothing was written");
}

#[test]
fn an_interrupt_ends_the_waiting() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let (live, mut client) = (live("a"), server.client().unwrap());
    client.ask(&["SET", LEASE, ELSEWHERE]).unwrap();
    let mut tool = follow(&live, server.port(), server.dir(), "tool", &[]);
    let log = server.dir().join("tool");
    until(&mut tool, "waits", || std::fs::read_to_string(&log).unwrap().contains("waiting for its lease"));
    tool.signal("INT");
    assert_eq!(tool.wait(), Some(130), "{}", tool.said());
}

/// Whoever sees that another one holds the target stops; what it had applied is in its checkpoint.
#[test]
fn a_lost_lease_stops_the_job() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let (live, mut client) = (live("a"), server.client().unwrap());
    let mut tool = follow(&live, server.port(), server.dir(), "first", &[]);
    until(&mut tool, "stable", || is_stable(&server));
    client.ask(&["SET", LEASE, ELSEWHERE]).unwrap();
    assert_eq!(tool.wait(), Some(5), "{}", tool.said());
    assert!(tool.said().contains("another df2redis writes to it now"), "{}", tool.said());
    assert_eq!(client.ask(&["GET", LEASE]).unwrap().text().as_deref(), Some(ELSEWHERE), "it is left as it is");
    client.run(&format!("DEL {LEASE}")).unwrap();
    let mut tool = follow(&live, server.port(), server.dir(), "second", &[]);
    follows(&live, &mut tool, &mut client, "later");
    assert_eq!(live.registrations_count(), 2);
    assert!(live.partial_count() > 0, "it went on from its checkpoint");
}

#[test]
fn a_lost_lease_stops_a_full_sync() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let (flow, _) = flow("a", 1000);
    let master = Hand::new(vec![flow]).faulty(Faults::default().slow(20_000));
    let running = start(migrate_command(master.port(), server.port(), &[]));
    wait_for_key(&server, "a:1");
    server.client().unwrap().ask(&["SET", LEASE, ELSEWHERE]).unwrap();
    running.wait().expect_code(5).expect_text("another df2redis writes to it now").expect_text("host elsewhere");
    assert!(has_key(&server, LEASE));
}

/// A target that stands still for longer than a lease lives, and one that somebody emptied, lose no job.
#[test]
fn a_lease_that_ended_is_taken_again() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let (live, mut client) = (live("a"), server.client().unwrap());
    let mut tool = follow(&live, server.port(), server.dir(), "tool", &[]);
    until(&mut tool, "stable", || is_stable(&server));
    let stopped = Stopped::new(&server);
    std::thread::sleep(Duration::from_secs(17));
    drop(stopped);
    follows(&live, &mut tool, &mut client, "later");
    until(&mut tool, "a lease", || has_key(&server, LEASE));
    client.run(&format!("DEL {LEASE}")).unwrap();
    until(&mut tool, "a lease", || has_key(&server, LEASE));
    follows(&live, &mut tool, &mut client, "last");
}

/// A flush at the source deletes the lease too: it is there again in the same moment.
#[test]
fn a_flush_does_not_open_the_target() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let (live, mut client) = (live("a"), server.client().unwrap());
    let mut tool = follow(&live, server.port(), server.dir(), "tool", &[]);
    until(&mut tool, "stable", || is_stable(&server));
    for (round, flush) in ["FLUSHALL", "FLUSHDB", "FLUSHALL"].into_iter().enumerate() {
        let key = format!("before:{round}");
        follows(&live, &mut tool, &mut client, &key);
        say(&live, flush);
        let until = Instant::now() + Duration::from_secs(120);
        loop {
            // Both are asked at one moment.
            let both = "return {redis.call('EXISTS',KEYS[1]),redis.call('EXISTS',KEYS[2])}";
            let both = client.ask(&["EVAL", both, "2", &key, LEASE]).unwrap();
            let both: Vec<_> = both.array().unwrap().iter().map(|reply| reply.int().unwrap()).collect();
            assert_eq!(both[1], 1, "{flush}: the lease is gone");
            if both[0] == 0 {
                break;
            }
            assert!(Instant::now() < until, "{flush} is not executed: {}", tool.said());
        }
    }
}

/// `--on-existing flush` empties the target when the lease is taken already.
#[test]
fn a_flush_before_the_start_keeps_the_lease() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let (master, truth) = slow_source("a");
    server.client().unwrap().run("SET mine 1").unwrap();
    let running = start(migrate_command(master.port(), server.port(), &["--on-existing", "flush"]));
    wait_for_key(&server, "a:1");
    assert!(has_key(&server, LEASE));
    running.wait().expect_code(0);
    assert!(contents(&mut server.client().unwrap()) == truth);
}

/// Without scripts a lease is renewed and given back by other means; taking over has to wait.
#[test]
fn a_user_without_scripts_holds_its_lease() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut client = server.client().unwrap();
    client.run("ACL SETUSER default -eval").unwrap();
    let live = live("a");
    let mut tool = follow(&live, server.port(), server.dir(), "first", &[]);
    until(&mut tool, "stable", || is_stable(&server));
    let mut left = || client.run(&format!("PTTL {LEASE}")).unwrap().int().unwrap();
    let mut before = left();
    until(&mut tool, "it is renewed", || {
        let now = left();
        let renewed = now > before;
        before = now;
        renewed
    });
    tool.signal("INT");
    assert_eq!(tool.wait(), Some(130), "{}", tool.said());
    assert!(!has_key(&server, LEASE), "it is given back");
    let mut tool = follow(&live, server.port(), server.dir(), "second", &[]);
    until(&mut tool, "a lease", || has_key(&server, LEASE));
    tool.kill();
    client.run(&format!("PEXPIRE {LEASE} 3000")).unwrap();
    let mut tool = follow(&live, server.port(), server.dir(), "third", &[]);
    follows(&live, &mut tool, &mut client, "later");
    assert!(tool.said().contains("waiting for its lease to end"), "{}", tool.said());
}

const SHARED: [&str; 4] = ["--shared-target", "on", "--on-existing", "replace"];

#[test]
fn jobs_that_say_so_share_a_target() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut client = server.client().unwrap();
    let (a, b) = (live("a"), live("b"));
    let mut first = follow(&a, server.port(), server.dir(), "first", &SHARED);
    let mut second = follow(&b, server.port(), server.dir(), "second", &SHARED);
    follows(&a, &mut first, &mut client, "a:later");
    follows(&b, &mut second, &mut client, "b:later");
    until(&mut first, "two checkpoints", || {
        client.run("KEYS df2redis:checkpoint:*").unwrap().array().unwrap().len() == 2
    });
    let phase = |client: &mut Client| {
        let keys = client.run("KEYS df2redis:checkpoint:*").unwrap();
        let keys = keys.array().unwrap().iter().map(|key| key.text().unwrap()).collect::<Vec<_>>();
        keys.iter().all(|key| client.ask(&["HGET", key, "phase"]).unwrap().text().as_deref() == Some("stable"))
    };
    until(&mut first, "stable", || phase(&mut client));

    // The same job again, and a job that wants to be alone.
    let mut again = follow(&a, server.port(), server.dir(), "again", &SHARED);
    assert_eq!(again.wait(), Some(3), "{}", again.said());
    assert!(again.said().contains(&format!("process {} ", first.pid())), "{}", again.said());
    let (alone, _) = slow_source("c");
    migrate(alone.port(), server.port(), &["--on-existing", "flush"]).expect_code(3).expect_text("--shared-target on");

    // A restart of one ends no connection of the other, and goes on from its own checkpoint.
    first.kill();
    let mut first = follow(&a, server.port(), server.dir(), "third", &SHARED);
    follows(&a, &mut first, &mut client, "a:after");
    follows(&b, &mut second, &mut client, "b:after");
    assert_eq!((a.registrations_count(), b.registrations_count()), (2, 1));
    assert!(!second.said().contains("connection"), "{}", second.said());
    // A flush at one source must not delete what the other one wrote.
    say(&a, "FLUSHALL");
    assert_eq!(first.wait(), Some(3), "{}", first.said());
    follows(&b, &mut second, &mut client, "b:last");
    assert!(has_key(&server, "b:begin"));
}

#[test]
fn a_job_that_shares_is_refused_beside_one_that_does_not() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let (master, truth) = slow_source("a");
    let first = start(migrate_command(master.port(), server.port(), &[]));
    wait_for_key(&server, LEASE);
    let (other, _) = flow("b", 10);
    let other = Hand::new(vec![other]).start();
    is_refused(&migrate(other.port(), server.port(), &SHARED), first.pid());
    first.wait().expect_code(0);
    assert!(contents(&mut server.client().unwrap()) == truth);
}

#[test]
fn sharing_needs_a_word_about_existing_keys() {
    for existing in ["refuse", "flush"] {
        let run = migrate(1, 2, &["--shared-target", "on", "--on-existing", existing]);
        assert_eq!(run.code(), 2, "{}", run.stderr);
        assert!(run.stderr.contains("shared-target"), "{}", run.stderr);
    }
}

fn cluster() -> Option<Cluster> {
    match Cluster::start_kind(ServerKind::Redis7, 3, false) {
        Err(error @ df2redis::lab::LabError::NoServer { .. }) => {
            eprintln!("skipped: {error}");
            None
        }
        cluster => Some(cluster.unwrap()),
    }
}

fn is_in_cluster(cluster: &Cluster, begin: &str) -> bool {
    cluster.keys().unwrap().iter().any(|key| key.starts_with(begin.as_bytes()))
}

/// By whichever node the cluster is named.
#[test]
fn a_cluster_has_one_lease() {
    let Some(cluster) = cluster() else { return };
    let dir = tempfile::tempdir().unwrap();
    let live = live("a");
    let port = |node: usize| cluster.nodes[node].port();
    let mut first = follow(&live, port(0), dir.path(), "first", &[]);
    until(&mut first, "a lease", || is_in_cluster(&cluster, LEASE));
    for node in 0..3 {
        let (other, _) = flow("b", 10);
        let other = Hand::new(vec![other]).start();
        is_refused(&migrate(other.port(), port(node), &["--on-existing", "flush"]), first.pid());
    }
    say(&live, "SET later 1");
    until(&mut first, "later", || is_in_cluster(&cluster, "later"));
    // A flush opens it to nobody.
    say(&live, "FLUSHALL");
    until(&mut first, "flush", || !is_in_cluster(&cluster, "later"));
    let (other, _) = flow("b", 10);
    let other = Hand::new(vec![other]).start();
    is_refused(&migrate(other.port(), port(1), &["--on-existing", "replace"]), first.pid());
    first.kill();
    let mut second = follow(&live, port(2), dir.path(), "second", &[]);
    say(&live, "SET after 1");
    until(&mut second, "after", || is_in_cluster(&cluster, "after"));
    assert!(second.said().contains("its lease is taken over"), "{}", second.said());
    second.signal("INT");
    assert_eq!(second.wait(), Some(130), "{}", second.said());
    assert!(!is_in_cluster(&cluster, LEASE));
}

#[test]
fn jobs_that_say_so_share_a_cluster() {
    let Some(cluster) = cluster() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (live("a"), live("b"));
    let mut first = follow(&a, cluster.port(), dir.path(), "first", &SHARED);
    let mut second = follow(&b, cluster.port(), dir.path(), "second", &SHARED);
    // Guarded commands in one slot: their markers must not be each other's.
    until(&mut first, "a marker of each", || {
        say(&a, "INCR {x}a");
        say(&b, "INCR {x}b");
        cluster.keys().unwrap().iter().filter(|key| key.starts_with(b"df2redis:m:")).count() == 2
    });
    // Before it is, the next start has nothing to go on from.
    until(&mut first, "a good checkpoint of each", || {
        let keys = cluster.keys().unwrap();
        let is_stable = |key: &Vec<u8>| {
            let phase = |node: &Server| node.client().unwrap().ask(&[b"HGET".as_slice(), key, b"phase"]).unwrap();
            cluster.nodes.iter().any(|node| phase(node).text().as_deref() == Some("stable"))
        };
        keys.iter().filter(|key| key.starts_with(b"df2redis:checkpoint:") && is_stable(key)).count() == 2
    });
    first.kill();
    let mut first = follow(&a, cluster.port(), dir.path(), "third", &SHARED);
    say(&a, "SET a:after 1");
    until(&mut first, "a:after", || is_in_cluster(&cluster, "a:after"));
    say(&b, "SET b:after 1");
    until(&mut second, "b:after", || is_in_cluster(&cluster, "b:after"));
    assert_eq!((a.registrations_count(), b.registrations_count()), (2, 1));
}
