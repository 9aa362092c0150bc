//! The target fails in every way that it can while it is being loaded, and the end is the truth, or an error that says
//! what to do. A real server stands behind a proxy that cuts; the source is made by hand, so that the truth is known.

mod common;

use common::job::seeds;
use common::*;
use df2redis::lab::answers::{ClusterPorts, TargetIdentity};
use df2redis::lab::encode::{self, types};
use df2redis::lab::flow::Faults;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::{Master, MasterOptions};
use df2redis::lab::proxy::{Faulty, Leg, Proxy};
use df2redis::lab::recordings;
use df2redis::lab::replay::Replay;
use df2redis::lab::script::{ErrorRule, Hostile, HostileRule, ScriptOptions, ScriptedTarget};
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::wait_for;
use std::time::Duration;

/// Four flows full of what must not be applied twice: long lists (chunked RPUSH), counters, APPENDs and RPUSHes in
/// journal blobs, in several databases, among many blind writes. Returns what must be there in the end.
fn touchy_source() -> (Vec<FlowBytes>, Contents) {
    let mut flows = vec![FlowBytes::new(); 4];
    let mut truth = Contents::new();
    let mut put = |db: u32, key: &str, kind: &str, values: Vec<Vec<u8>>| {
        truth.insert((db, key.as_bytes().to_vec()), (kind.to_owned(), values));
    };
    for (f, flow) in flows.iter_mut().enumerate() {
        for round in 0..6u32 {
            let db = [0, 3, 0, 15, 7, 3][round as usize];
            flow.db(db);
            for i in 0..60 {
                let (key, value) = (format!("s:{f}:{round}:{i}"), noise(i + 1, 20 + (i as usize % 7) * 30));
                flow.string(key.as_bytes(), &value);
                put(db, &key, "string", vec![value]);
            }
            let (key, elements) = (format!("l:{f}:{round}"), texts(&format!("e{f}{round}"), 4000));
            flow.list(key.as_bytes(), &elements, 100);
            flow.journal(db, &["RPUSH", &key, "tail-1"]).journal(db, &["LPUSH", &key, "head"]);
            let mut all = vec![b"head".to_vec()];
            all.extend(elements);
            all.push(b"tail-1".to_vec());
            put(db, &key, "list", all);
            let (counter, log) = (format!("n:{f}:{round}"), format!("a:{f}:{round}"));
            flow.string(counter.as_bytes(), b"40").string(log.as_bytes(), b"");
            let other = 12;
            let mut text = Vec::new();
            for i in 0..25 {
                flow.journal(db, &["INCR", &counter]).journal(db, &["APPEND", &log, &format!("<{i}>")]);
                flow.journal(other, &["RPUSH", &format!("q:{f}:{round}"), &i.to_string()]);
                text.extend_from_slice(format!("<{i}>").as_bytes());
            }
            put(db, &counter, "string", vec![b"65".to_vec()]);
            put(db, &log, "string", vec![text]);
            let queue = (0..25).map(|i: u32| i.to_string().into_bytes()).collect();
            put(other, &format!("q:{f}:{round}"), "list", queue);
        }
        let big = noise(f as u64 + 77, 300_000);
        flow.db(1).string(format!("big:{f}").as_bytes(), &big);
        put(1, &format!("big:{f}"), "string", vec![big]);
        flow.late_journal(3, &["INCRBY", &format!("late:{f}"), "5"]);
        put(3, &format!("late:{f}"), "string", vec![b"5".to_vec()]);
    }
    (flows, truth)
}

/// Lists go by RPUSH, not by RESTORE; batches are small, so that cuts fall everywhere.
const CHUNKED: &[&str] = &["--restore-bytes-max", "1KiB", "--batch-bytes", "8KiB"];

#[track_caller]
fn assert_truth(server: &Server, truth: &Contents, what: &str) {
    let mut client = server.client().unwrap();
    let found = contents(&mut client);
    for (place, value) in truth {
        let held = found.get(place);
        assert!(
            held == Some(value),
            "{what}: {:?} is wrong: {} instead of {} values",
            (place.0, String::from_utf8_lossy(&place.1)),
            held.map_or(0, |h| h.1.len()),
            value.1.len()
        );
    }
    let more: Vec<_> =
        found.keys().filter(|k| !truth.contains_key(*k)).map(|k| (k.0, String::from_utf8_lossy(&k.1))).collect();
    assert!(more.is_empty(), "{what}: left behind: {more:?}");
}

fn with_cuts(plan: impl Fn(u64) -> Faulty + Send + Sync + 'static, seed: u64, more: &[&str]) {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let (flows, truth) = touchy_source();
    let master = Hand::new(flows).start();
    let proxy = Proxy::start(server.port(), plan).unwrap();
    let mut args = CHUNKED.to_vec();
    args.extend_from_slice(more);
    let run = migrate(master.port(), proxy.port(), &args);
    run.expect_code(0);
    assert_truth(&server, &truth, &format!("seed {seed}"));
    assert_eq!(master.violations(), [], "seed {seed}");
    assert!(proxy.cuts_count() > 0, "seed {seed}: nothing was cut");
}

fn draw(seed: u64, n: u64, below: u64) -> u64 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n.wrapping_mul(0xd1b5_4a32_d192_ed03) ^ 0x1234_5678_9abc;
    x ^= x >> 31;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 29;
    x % below
}

#[test]
fn requests_cut_anywhere_end_at_the_truth() {
    for seed in seeds(6) {
        // Connection 0 is the control plane's.
        with_cuts(
            move |n| match n {
                1..=24 => Faulty::cut_requests(draw(seed, n, 120_000)),
                _ => Faulty::default(),
            },
            seed,
            &["--cores", "2", "--connections", if seed % 2 == 0 { "2" } else { "1" }],
        );
    }
}

#[test]
fn replies_lost_anywhere_end_at_the_truth() {
    for seed in seeds(6) {
        with_cuts(
            move |n| match n {
                1..=24 => Faulty::cut_replies(300 + draw(seed, n, 4_000)),
                _ => Faulty::default(),
            },
            seed,
            &[],
        );
    }
}

/// Twice in a row before the first reply: the second resume starts from a state that the first one made.
#[test]
fn a_connection_lost_again_before_its_first_reply() {
    for seed in seeds(6) {
        with_cuts(
            move |n| match n {
                0 => Faulty::default(),
                n if n < 40 && n % 3 != 0 => Faulty::cut_replies(draw(seed, n, 300) + 1),
                n if n < 40 => Faulty::cut_requests(20_000 + draw(seed, n, 200_000)),
                _ => Faulty::default(),
            },
            seed,
            &["--cores", "1", "--connections", "1"],
        );
    }
}

#[test]
fn replies_in_single_bytes_and_requests_in_small_pieces() {
    let leg = |piece| Leg { piece_bytes: Some(piece), ..Leg::default() };
    with_cuts(
        move |n| match n {
            0 => Faulty { to_client: Leg { cut_after_bytes: None, ..leg(4096) }, ..Faulty::default() },
            1 => Faulty::cut_requests(50_000),
            _ => Faulty { to_server: leg(1000), to_client: leg(3) },
        },
        0,
        &[],
    );
}

/// The server itself ends our connections while they load.
#[test]
fn client_kill_while_loading() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let (flows, truth) = touchy_source();
    let master = Hand::new(flows).faulty(Faults::default().slow(400_000));
    let running = start(migrate_command(master.port(), server.port(), CHUNKED));
    let mut client = server.client().unwrap();
    // Before the first write nothing is tried again.
    let until = std::time::Instant::now() + DEADLINE;
    while client.run("EXISTS s:0:0:0").unwrap().int() != Some(1) {
        assert!(std::time::Instant::now() < until, "nothing is written");
        std::thread::sleep(Duration::from_millis(5));
    }
    for _ in 0..25 {
        std::thread::sleep(Duration::from_millis(60));
        client.ask(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).unwrap();
    }
    let run = running.wait();
    // The control connections were hit as well.
    run.expect_code(0);
    assert!(run.report["counters"]["reconnects"].as_u64().unwrap() > 0, "no connection was lost: {}", run.stdout);
    assert_truth(&server, &truth, "client kill");
}

#[test]
fn a_target_that_was_restarted_is_refused() {
    let Some(mut server) = server(ServerKind::Redis7) else { return };
    let (flows, _) = touchy_source();
    let master = Hand::new(flows).faulty(Faults::default().slow(300_000));
    let running = start(migrate_command(master.port(), server.port(), CHUNKED));
    std::thread::sleep(Duration::from_millis(700));
    server.restart().unwrap();
    running.wait().expect_code(5).expect_text("restarted");
}

#[test]
fn a_target_that_is_gone_ends_the_run_after_the_connect_timeout() {
    let Some(mut server) = server(ServerKind::Redis7) else { return };
    let (flows, _) = touchy_source();
    let master = Hand::new(flows).faulty(Faults::default().slow(300_000));
    let mut args = CHUNKED.to_vec();
    args.extend_from_slice(&["--retry-max", "2s"]);
    let running = start(migrate_command(master.port(), server.port(), &args));
    std::thread::sleep(Duration::from_millis(600));
    server.kill();
    let run = running.wait_for(Duration::from_secs(15));
    run.expect_code(5).expect_text("could not be made again");
    assert!(run.report["outcome"]["target_state"].to_string().contains("part of the source's data"), "{}", run.stdout);
}

#[test]
fn a_full_target_is_named_with_command_and_key() {
    let options = ServerOptions::default().config("maxmemory", "4mb").config("maxmemory-policy", "noeviction");
    let Some(server) = server_with(ServerKind::Redis7, options) else { return };
    let mut flow = FlowBytes::new();
    (0..2000).for_each(|i| _ = flow.string(format!("key:{i}").as_bytes(), &noise(i + 1, 4000)));
    let master = Hand::new(vec![flow]).start();
    let run = migrate(master.port(), server.port(), &["--retry-max", "1s"]);
    run.expect_code(5).expect_text("OOM").expect_text("SET key:").expect_text("maxmemory");
}

/// A command refused inside of MULTI is named itself, not only the EXEC that fails after it. An aborted group frees memory, so
/// a later one would be executed if it were under way; it is not.
#[test]
fn a_full_target_is_named_inside_of_a_group() {
    let options = ServerOptions::default().config("maxmemory", "4mb").config("maxmemory-policy", "noeviction");
    let Some(server) = server_with(ServerKind::Redis7, options) else { return };
    let mut flow = FlowBytes::new();
    (0..3000).for_each(|_| _ = flow.journal(0, &[b"RPUSH".as_slice(), b"q", &noise(9, 4000)]));
    let master = Hand::new(vec![flow]).start();
    let run = migrate(master.port(), server.port(), &["--retry-max", "1s"]);
    run.expect_code(5).expect_text("OOM").expect_text("RPUSH q");
}

/// Those that are waited out are in `refusals`.
#[test]
fn errors_of_a_scripted_target() {
    let mut flow = FlowBytes::new();
    (0..50).for_each(|i| _ = flow.string(format!("k{i}").as_bytes(), b"v"));
    for (rule, code, texts) in [
        (ErrorRule::every("INFO", "-NOAUTH Authentication required."), 5, ["NOAUTH", "INFO"]),
        (ErrorRule::every("SET", "-ERR something new"), 5, ["something new", "SET k"]),
    ] {
        let reply = rule.reply.clone();
        let target = ScriptedTarget::start(ScriptOptions { errors: vec![rule], ..Default::default() }).unwrap();
        let master = Hand::new(vec![flow.clone()]).start();
        let run = migrate(master.port(), target.port(), &["--retry-max", "1s"]);
        assert_eq!(run.code(), code, "{reply}: {}", run.message());
        for text in texts {
            assert!(run.message().contains(text), "{reply}: no {text} in {}", run.message());
        }
    }
}

/// Keys that the target held before, and records that name them beside others: what is left of a record is applied.
#[test]
fn what_the_target_held_before_is_left_as_it_is() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let fill = || {
        let mut client = server.client().unwrap();
        let lines =
            ["FLUSHALL", "SET taken own", "RPUSH takenl own", "SET taken2 own", "SET taken3 7", "ZADD takenz 1 own"];
        lines.iter().for_each(|line| drop(client.run(line).unwrap()));
        client.run("SELECT 1").unwrap();
        client.run("SET moved own").unwrap();
    };
    let source = |records: &[&str]| {
        let mut flow = FlowBytes::new();
        for key in ["taken", "free", "gone", "ren", "moved"] {
            flow.string(key.as_bytes(), b"v");
        }
        flow.list(b"l", &texts("e", 3), 10).list(b"takenl", &texts("e", 3), 10);
        for record in records {
            flow.journal(0, &record.split(' ').collect::<Vec<_>>());
        }
        // Of what MSET wrote `taken` is deleted without a record.
        Hand::new(vec![flow]).holds(0, b"fresh").start()
    };
    fill();
    let records = [
        "MSET taken 1 fresh 2",
        "DEL taken gone",
        "RENAME ren taken2",
        "INCR taken3",
        "LMOVE l takenl LEFT RIGHT",
        "ZADD z 1 x",
        "ZUNIONSTORE takenz 1 z",
        "MSET taken 1 taken3 2",
    ];
    let skip = ["--on-existing", "skip"];
    migrate(source(&records).port(), server.port(), &skip).expect_code(0);
    let found: Vec<String> = contents(&mut server.client().unwrap())
        .into_iter()
        .map(|((db, key), (_, values))| {
            format!("{db}/{}={}", String::from_utf8_lossy(&key), String::from_utf8_lossy(&values.join(&b' ')))
        })
        .collect();
    let wanted = [
        "0/free=v",
        "0/fresh=2",
        "0/l=e-0000001 e-0000002",
        "0/moved=v",
        "0/taken=own",
        "0/taken2=own",
        "0/taken3=7",
        "0/takenl=own",
        "0/takenz=own 1",
        "0/z=x 1",
        "1/moved=own",
    ];
    assert_eq!(found, wanted);
    // What needs the value of such a key cannot be had; nor is it known of a key whether it was moved onto one.
    for record in [
        "RENAME taken free",
        "LMOVE takenl l LEFT LEFT",
        "ZUNIONSTORE z2 2 takenz z",
        "SORT takenl ALPHA STORE l",
        "MOVE moved 1",
    ] {
        fill();
        let run = migrate(source(&[record]).port(), server.port(), &skip);
        run.expect_code(3).expect_text(record.split(' ').next().unwrap()).expect_text("--on-existing skip leaves");
    }
}

/// All values come by RESTORE with REPLACE, so no honest server says this, whatever stands there: it is no refusal to be waited out.
#[test]
fn a_key_that_is_taken_all_the_same_ends_the_run_by_name() {
    let busy = "-BUSYKEY Target key name already exists.";
    for ports in [None, Some(ClusterPorts::default())] {
        let mut flow = FlowBytes::new();
        for key in ["l0", "l1", "l2", "l3", "l4"] {
            flow.list(key.as_bytes(), &texts("e", 5), 10);
        }
        let rule = ErrorRule { key: Some(b"l2".to_vec()), ..ErrorRule::every("RESTORE", busy) };
        let start = |errors| {
            let identity = TargetIdentity::default();
            let identity = ports.iter().fold(identity, |identity, ports| identity.in_cluster(ports));
            ScriptedTarget::start(ScriptOptions { identity, errors, ..Default::default() }).unwrap()
        };
        // Slot of `l2`: on the second half of the slots or the first one.
        let nodes = [start(vec![rule.clone()]), start(vec![rule])];
        ports.iter().for_each(|ports| ports.lock().unwrap().extend(nodes.iter().map(ScriptedTarget::port)));
        let run = migrate(Hand::new(vec![flow]).start().port(), nodes[0].port(), &["--retry-max", "30s"]);
        run.expect_code(5).expect_text("BUSYKEY").expect_text("RESTORE l2");
        let told = nodes.iter().flat_map(|node| node.received_of("RESTORE")).filter(|of| of[1].starts_with(b"l"));
        let mut told: Vec<_> = told.collect();
        assert!(told.iter().all(|of| of.contains(&b"REPLACE".to_vec())), "{told:?}");
        told.retain(|of| of[1] == b"l2");
        assert_eq!(told.len(), 1, "it was sent again");
        let at = nodes.iter().find(|node| node.received_of("RESTORE").iter().any(|of| of[1] == b"l2")).unwrap();
        run.expect_text(&at.address().to_string());
        assert!(run.elapsed < Duration::from_secs(20), "it was waited for: {:?}", run.elapsed);
    }
}

/// The same in the stable journal, when the value is queued and when it is executed: no position passes it.
#[test]
fn a_key_that_is_taken_in_the_journal_is_passed_by_no_position() {
    let busy = "-BUSYKEY Target key name already exists.";
    let executed = format!("*2\r\n{busy}\r\n:1\r\n").into_bytes();
    for (in_exec, in_cluster) in [(false, false), (true, false), (false, true)] {
        let errors = match in_exec {
            true => Vec::new(),
            false => vec![ErrorRule { key: Some(b"copy".to_vec()), ..ErrorRule::every("RESTORE", busy) }],
        };
        let hostile = HostileRule { command: "EXEC".into(), key: None, what: Hostile::Instead(executed.clone()) };
        let ports = ClusterPorts::default();
        let identity = match in_cluster {
            true => TargetIdentity::default().in_cluster(&ports),
            false => TargetIdentity::default(),
        };
        let hostile = in_exec.then_some(hostile);
        let target = ScriptedTarget::start(ScriptOptions { identity, errors, hostile, ..Default::default() }).unwrap();
        ports.lock().unwrap().push(target.port());
        let spec = Spec { flows_count: 1, ..Spec::of("list:5x8=3").unwrap() };
        let live = Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap();
        let (source, url) =
            (format!("dragonfly://127.0.0.1:{}", live.port()), format!("redis://127.0.0.1:{}", target.port()));
        let mut command = program(&["replicate", "--source", &source, "--target", &url, "--output", "json"]);
        command.args(["--memory", "64MiB", "--progress", "off", "--cores", "1", "--connections", "1"]);
        let mut running = start(command);
        let in_step = wait_for(|| {
            assert!(running.is_running(), "it ended");
            live.is_acknowledged().then_some(())
        });
        assert!(in_step.is_some(), "it does not follow");
        let lsn = live.world().next_lsns()[0];
        live.world().run(0, &["RPUSH", "list", "a"].map(|word| word.as_bytes().to_vec()));
        // The first record is sent by itself.
        let run = match in_exec {
            true => running.wait(),
            false => {
                live.world().run(0, &["COPY", "list", "copy"].map(|word| word.as_bytes().to_vec()));
                running.wait()
            }
        };
        let texts = if in_exec { ["RPUSH list", "--on-existing flush"] } else { ["RESTORE copy", "wrong value"] };
        run.expect_code(5).expect_text("BUSYKEY").expect_text(texts[0]).expect_text(texts[1]);
        run.expect_text(&target.address().to_string());
        let received = target.received();
        let sets = received.iter().filter(|of| of.request[0] == b"HSET" && of.executed);
        let lsns = sets.flat_map(|of| of.request[2..].chunks_exact(2)).filter(|pair| pair[0].starts_with(b"lsn:"));
        let furthest = lsns.map(|pair| String::from_utf8_lossy(&pair[1]).parse::<u64>().unwrap()).max().unwrap_or(0);
        match in_exec {
            // What it stands in has been executed, with the position: nothing goes on from there.
            true => {
                assert!(received.iter().any(|of| of.request[0] == b"HDEL" && of.request.contains(&b"phase".to_vec())))
            }
            false => assert!(furthest <= lsn + 1, "{furthest} passes {}", lsn + 1),
        }
        assert!(live.master().unwrap().acks()[0] <= Some(lsn + 1));
    }
}

/// Closing each connection at the same command is no network's fault: the run ends and says so.
#[test]
fn a_target_that_closes_every_connection_is_given_up() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let (flows, _) = touchy_source();
    let master = Hand::new(flows).start();
    let proxy =
        Proxy::start(server.port(), |n| if n == 0 { Faulty::default() } else { Faulty::cut_requests(400) }).unwrap();
    let mut args = CHUNKED.to_vec();
    args.extend_from_slice(&["--retry-max", "3s"]);
    migrate(master.port(), proxy.port(), &args).expect_code(5);
}

/// A slow target slows the snapshot; nothing times out, and every flow goes on.
#[test]
fn a_slow_target_only_takes_longer() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut flows = vec![FlowBytes::new(); 3];
    for (f, flow) in flows.iter_mut().enumerate() {
        (0..400).for_each(|i| _ = flow.string(format!("k:{f}:{i}").as_bytes(), &noise(i + 1, 1000)));
    }
    let master = Hand::new(flows).start();
    let proxy =
        Proxy::start(server.port(), |n| if n == 0 { Faulty::default() } else { Faulty::slow(400_000) }).unwrap();
    let run =
        migrate(master.port(), proxy.port(), &["--window-bytes", "64KiB", "--cores", "1", "--connect-timeout", "1s"]);
    run.expect_code(0);
    assert!(run.elapsed > Duration::from_millis(800), "{:?}", run.elapsed);
    assert_eq!(server.client().unwrap().run("DBSIZE").unwrap().int(), Some(1200));
}

/// One flow stands still; the others go on meanwhile, and the end is right.
#[test]
fn one_stalled_flow_does_not_hold_the_others() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let (flows, truth) = touchy_source();
    let bytes = flows[1].snapshot.len() as u64;
    let faults = Faults::default().stall(1, bytes / 2, Duration::from_millis(2500));
    let master = Hand::new(flows).faulty(faults);
    let running = start(migrate_command(master.port(), server.port(), &["--cores", "1", "--connections", "1"]));
    std::thread::sleep(Duration::from_millis(1800));
    let sent = master.sent_bytes();
    assert!(sent[0] > bytes / 2 && sent[2] > bytes * 9 / 10 && sent[3] > bytes * 9 / 10, "{sent:?} of {bytes}");
    let mut client = server.client().unwrap();
    assert_eq!(client.run("EXISTS l:3:0").unwrap().int(), Some(1));
    running.wait().expect_code(0);
    assert_truth(&server, &truth, "stall");
}

/// The same in the middle of a value longer than a chunk, which is collected on the heap.
#[test]
fn a_flow_stalled_inside_a_long_value_does_not_hold_the_others() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let element = noise(5, 1_500_000);
    let mut flows = Vec::new();
    for f in 0..3 {
        let mut flow = FlowBytes::new();
        flow.object(types::HASH, format!("h{f}").as_bytes(), |out| {
            encode::packed(out, 1);
            encode::string(out, b"field", false);
            encode::string(out, &element, false);
        });
        (0..100).for_each(|i| _ = flow.string(format!("k:{f}:{i}").as_bytes(), b"v"));
        flows.push(flow);
    }
    let master = Hand::new(flows).faulty(Faults::default().stall(0, 700_000, Duration::from_millis(2500)));
    let running = start(migrate_command(master.port(), server.port(), &["--cores", "1"]));
    std::thread::sleep(Duration::from_millis(1800));
    let mut client = server.client().unwrap();
    assert_eq!(client.run("EXISTS k:1:99 k:2:99 h1 h2").unwrap().int(), Some(4), "flows 1 and 2 are through");
    running.wait().expect_code(0);
    assert_eq!(client.ask(&["HSTRLEN", "h0", "field"]).unwrap().int(), Some(1_500_000));
}

#[test]
fn an_interrupt_ends_the_run_and_says_what_the_target_holds() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    for signal in ["INT", "TERM"] {
        server.client().unwrap().run("FLUSHALL").unwrap();
        let (flows, _) = touchy_source();
        let master: Master = Hand::new(flows).faulty(Faults::default().slow(200_000));
        let running = start(migrate_command(master.port(), server.port(), CHUNKED));
        std::thread::sleep(Duration::from_millis(900));
        running.signal(signal);
        let run = running.wait_for(Duration::from_secs(8));
        run.expect_code(130);
        let state = run.report["outcome"]["target_state"].as_str().unwrap_or_default().to_owned();
        assert!(state.contains("part of the source's data") && state.contains("df2redis:"), "{state}\n{}", run.stdout);
    }
}

/// Before the first write, too: the source does not answer.
#[test]
fn an_interrupt_while_connecting() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let running = start(migrate_command(port, server.port(), &["--connect-timeout", "30s"]));
    std::thread::sleep(Duration::from_millis(500));
    running.signal("INT");
    let run = running.wait_for(Duration::from_secs(5));
    run.expect_code(130);
    assert!(run.stdout.contains("nothing was written"), "{}", run.stdout);
}

#[test]
fn no_target_at_all() {
    let master = Hand::new(vec![FlowBytes::new()]).start();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    migrate(master.port(), free, &["--connect-timeout", "1s"]).expect_code(5).expect_text("cannot connect");
}

/// Recorded streams with journal blobs: what many lost connections leave behind is what none leaves behind.
#[test]
fn recordings_under_cuts_end_where_they_end_without() {
    let options = || ServerOptions::default().config("enable-debug-command", "yes");
    let Some(server) = server_with(ServerKind::Redis7, options()) else { return };
    let mut client = server.client().unwrap();
    for name in ["follow-plain", "follow-lz4", "live-lz4", "snapshot-small-chunks"] {
        let recording = recordings::recording(name).unwrap();
        let mut digests = Vec::new();
        for seed in 0..4u64 {
            let master = Replay::start(recording.clone(), MasterOptions::default()).unwrap();
            let proxy = Proxy::start(server.port(), move |n| match n {
                1..=30 if seed > 0 && n % 2 == 0 => Faulty::cut_requests(draw(seed, n, 900_000)),
                1..=30 if seed > 0 => Faulty::cut_replies(200 + draw(seed, n, 20_000)),
                _ => Faulty::default(),
            })
            .unwrap();
            let mut args = vec!["--on-unsupported", "skip", "--on-existing", "flush"];
            args.extend_from_slice(if seed == 0 { &[] } else { CHUNKED });
            migrate(master.port(), proxy.port(), &args).expect_code(0);
            assert!(seed == 0 || proxy.cuts_count() > 0);
            let left = client.run("KEYS df2redis:*").unwrap();
            let left: Vec<_> = left.array().unwrap().iter().filter_map(|key| key.text()).collect();
            // Where the connection was cut over which it is given back, it ends by itself.
            assert!(left.iter().all(|key| key == "df2redis:lease"), "{left:?}");
            client.run("DEL df2redis:lease").unwrap();
            digests.push(client.run("DEBUG DIGEST").unwrap().text().unwrap());
        }
        assert!(digests.iter().all(|digest| *digest == digests[0]), "{name}: {digests:?}");
    }
}

/// A server that is busy ends no connection: what the lost one holds would be executed behind what comes now.
#[test]
fn a_lost_connection_is_ended_before_another_one_is_used() {
    let (flows, _) = touchy_source();
    let reply = "-BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.";
    let busy = ErrorRule { key: Some(b"KILL".to_vec()), times: 3, ..ErrorRule::every("CLIENT", reply) };
    let target = ScriptedTarget::start(ScriptOptions { errors: vec![busy], ..ScriptOptions::default() }).unwrap();
    // Connection 0 is the control plane's.
    let cut = |n| if n == 1 { Faulty::cut_requests(5_000) } else { Faulty::default() };
    let proxy = Proxy::start(target.port(), cut).unwrap();
    let master = Hand::new(flows).start();
    let run = migrate(master.port(), proxy.port(), &["--cores", "1", "--connections", "1"]);
    run.expect_code(0);
    assert_eq!(proxy.cuts_count(), 1);
    let received = target.received();
    let kills = received.iter().filter(|of| of.request[0] == b"CLIENT" && of.request[1] == b"KILL");
    assert_eq!(kills.map(|of| of.executed).collect::<Vec<_>>(), [false, false, false, true], "{}", run.stderr);
}
