//! Servers that are not as they should be: clocks an hour off, a target that was restarted with its data or without, silence,
//! no room for a client, no room for a long string, and a source whose answers lie.

mod common;

use common::job::{binary, until};
use common::{DEADLINE, FlowBytes, Hand, contents, migrate, migrate_command, noise, server, server_with, start};
use df2redis::lab::flow::Faults;
use df2redis::lab::generate::Spec;
use df2redis::lab::journal;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::{Master, MasterOptions, Scripted};
use df2redis::lab::recordings::recording;
use df2redis::lab::replay::Replay;
use df2redis::lab::script::{Hostile, HostileRule, ScriptOptions, ScriptedTarget};
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::{Tool, compare, is_stable, wait_for};
use std::net::TcpListener;
use std::time::SystemTime;

const HOUR_S: i64 = 3600;

fn one_key() -> Vec<FlowBytes> {
    let mut flow = FlowBytes::new();
    flow.string(b"k", b"v");
    vec![flow]
}

/// The answer to TIME of a clock that is so far from this machine's.
fn time(off_s: i64) -> Vec<u8> {
    let now_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64 + off_s;
    format!("*2\r\n$10\r\n{now_s}\r\n$1\r\n0\r\n").into_bytes()
}

fn source_with(request: &str, reply: Vec<u8>) -> Master {
    let scripted = vec![Scripted { request: request.into(), reply, times: u32::MAX }];
    Hand::new(one_key()).start_with(MasterOptions { scripted, ..MasterOptions::default() })
}

#[test]
fn clocks_an_hour_apart_are_refused_before_anything_is_written() {
    for (source_off_s, target_off_s, apart) in
        [(HOUR_S, 0, true), (-HOUR_S, 0, true), (0, HOUR_S, true), (HOUR_S, HOUR_S, false)]
    {
        let case = format!("source {source_off_s:+} s, target {target_off_s:+} s");
        let rule = HostileRule { command: "TIME".into(), key: None, what: Hostile::Instead(time(target_off_s)) };
        let options = ScriptOptions { hostile: Some(rule), ..ScriptOptions::default() };
        let target = ScriptedTarget::start(options).unwrap();
        let master = source_with("TIME", time(source_off_s));
        // Whole seconds are told, and the machine may be slow.
        let run = migrate(master.port(), target.port(), &["--clock-skew-max", "1m"]);
        if apart {
            run.expect_code(3).expect_text("the clocks of source and target are 3").expect_text("--clock-skew-max");
            assert!(run.stdout.contains("nothing was written"), "{case}: {}", run.stdout);
            assert!(target.received_of("SET").iter().all(|set| set.contains(&b"df2redis:probe".to_vec())), "{case}");
            let allowed = migrate(master.port(), target.port(), &["--clock-skew-max", "2h"]);
            assert_eq!(allowed.code(), 0, "{case}: {}", allowed.message());
        } else {
            assert_eq!(run.code(), 0, "{case}: {}", run.message());
        }
    }
}

/// A target that keeps each write, or none, over a restart.
fn target(keeps: bool) -> Option<Server> {
    let options = ServerOptions::default();
    let options = match keeps {
        true => options.config("appendonly", "yes").config("appendfsync", "always"),
        false => options,
    };
    server_with(ServerKind::Redis7, options)
}

fn live() -> Live {
    let spec = Spec { flows_count: 2, ..Spec::of("string:60B=20,list:6x9=5").unwrap() };
    Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap()
}

fn count_on(live: &Live, times: usize) {
    for _ in 0..times {
        for key in ["a", "b", "c", "d"] {
            live.world().run(0, &[b"INCR".to_vec(), format!("count:{key}").into_bytes()]);
        }
    }
}

fn follow(port: u16, server: &Server) -> Tool {
    Tool::start(binary(), port, server.port(), &server.dir().join("tool.log"), &["--log", "info"]).unwrap()
}

#[test]
fn a_target_restarted_with_its_data_is_followed_on() {
    let Some(mut server) = target(true) else { return };
    let live = live();
    let mut tool = follow(live.port(), &server);
    until(&mut tool, "stable", || is_stable(&server));
    for _ in 0..3 {
        count_on(&live, 50);
        server.restart().unwrap();
        count_on(&live, 50);
        until(&mut tool, "acknowledged", || live.is_acknowledged());
    }
    assert!(tool.said().contains("restarted with its data"), "{}", tool.said());
    tool.signal("INT");
    assert_eq!(tool.wait(), Some(130), "{}", tool.said());
    let truth = server.dir().join("truth.jsonl");
    live.write_truth(&truth).unwrap();
    compare(&server, ServerKind::Redis7, &truth).unwrap_or_else(|text| panic!("{text}\n{}", tool.said()));
    assert_eq!(server.client().unwrap().run("GET count:a").unwrap().text().as_deref(), Some("300"));
}

/// It answers LOADING for a while, and then lacks what came behind its last dump.
#[test]
fn a_target_that_loads_an_older_dump_is_waited_for_and_caught_up() {
    let Some(mut server) = server_with(ServerKind::Redis7, ServerOptions::default().slow_to_load()) else { return };
    let live = live();
    let mut tool = follow(live.port(), &server);
    until(&mut tool, "stable", || is_stable(&server));
    count_on(&live, 50);
    for i in 0..20 {
        live.world().run(0, &[b"SET".to_vec(), format!("large:{i}").into_bytes(), vec![b'x'; 2000]]);
    }
    until(&mut tool, "acknowledged", || live.is_acknowledged());
    server.client().unwrap().run("SAVE").unwrap();
    count_on(&live, 50);
    until(&mut tool, "acknowledged", || live.is_acknowledged());
    server.restart().unwrap();
    assert!(server.refused_calls().unwrap() > 0, "nothing was asked while it loaded");
    count_on(&live, 50);
    until(&mut tool, "acknowledged", || live.is_acknowledged());
    tool.signal("INT");
    assert_eq!(tool.wait(), Some(130), "{}", tool.said());
    let truth = server.dir().join("truth.jsonl");
    live.write_truth(&truth).unwrap();
    compare(&server, ServerKind::Redis7, &truth).unwrap_or_else(|text| panic!("{text}\n{}", tool.said()));
    assert_eq!(server.client().unwrap().run("GET count:a").unwrap().text().as_deref(), Some("150"));
}

/// Longer than anybody waits. Nothing was read that could be applied, so one signal is enough.
#[test]
fn a_stop_is_heard_while_a_restarted_target_loads() {
    let Some(mut server) = server_with(ServerKind::Redis7, ServerOptions::default().slow_to_load()) else { return };
    let live = live();
    let mut tool = follow(live.port(), &server);
    until(&mut tool, "stable", || is_stable(&server));
    for i in 0..3000 {
        live.world().run(0, &[b"SET".to_vec(), format!("large:{i}").into_bytes(), vec![b'x'; 2000]]);
    }
    until(&mut tool, "acknowledged", || live.is_acknowledged());
    server.client().unwrap().run("SAVE").unwrap();
    server.begin_restart().unwrap();
    let log = server.dir().join("tool.log");
    let holds = || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("holding: the target cannot yet"));
    until(&mut tool, "it is not waited for", holds);
    tool.signal("INT");
    assert_eq!(tool.wait(), Some(130), "{}", tool.said());
    let answer = server.client().unwrap().run("GET large:0");
    assert!(answer.is_err() || format!("{answer:?}").contains("LOADING"), "{answer:?}");
}

#[test]
fn a_target_restarted_without_its_data_ends_the_run() {
    let Some(mut server) = target(false) else { return };
    let live = live();
    let mut tool = follow(live.port(), &server);
    until(&mut tool, "stable", || is_stable(&server));
    count_on(&live, 50);
    server.restart().unwrap();
    count_on(&live, 50);
    assert_eq!(tool.wait(), Some(5), "{}", tool.said());
    assert!(tool.said().contains("restarted") && tool.said().contains("no good checkpoint"), "{}", tool.said());
    assert_eq!(server.client().unwrap().run("KEYS count:*").unwrap().array().map(<[_]>::len), Some(0));
}

/// What a full sync had written, and was answered for, may be missing: nothing tells.
#[test]
fn a_target_restarted_in_the_full_sync_ends_the_run() {
    for keeps in [true, false] {
        let Some(mut server) = target(keeps) else { return };
        let mut flow = FlowBytes::new();
        (0..2000).for_each(|i| _ = flow.string(format!("k:{i}").as_bytes(), &noise(i + 1, 400)));
        let master = Hand::new(vec![flow]).faulty(Faults::default().slow(200_000));
        let mut tool = follow(master.port(), &server);
        let mut client = server.client().unwrap();
        until(&mut tool, "the full sync", || client.run("EXISTS k:10").unwrap().int() == Some(1));
        server.restart().unwrap();
        assert_eq!(tool.wait(), Some(5), "keeps {keeps}: {}", tool.said());
        assert!(tool.said().contains("restarted"), "keeps {keeps}: {}", tool.said());
        assert!(!is_stable(&server));
    }
}

/// Accepts, and says nothing.
#[test]
fn a_silent_server_is_given_up_after_the_connect_timeout() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let (address, args) = (format!("127.0.0.1:{port}"), ["--connect-timeout", "1s"]);
    let master = Hand::new(one_key()).start();
    let run = migrate(master.port(), port, &args);
    run.expect_code(5).expect_text(&format!("no answer from {address} to INFO within 1s")).expect_text("TLS");
    let Some(server) = server(ServerKind::Redis7) else { return };
    let run = migrate(port, server.port(), &args);
    run.expect_code(4).expect_text(&format!("no answer from {address} to")).expect_text("within 1s");
    assert!(run.stdout.contains("nothing was written"), "{}", run.stdout);
}

/// A connection that is lost while the target has no room for another is made again when it has.
#[test]
fn a_full_target_has_room_again() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut flow = FlowBytes::new();
    let count = 1500;
    (0..count).for_each(|i| {
        _ = flow.journal(0, &["RPUSH", "q", &i.to_string()]).string(format!("k:{i}").as_bytes(), &noise(i, 200))
    });
    let master = Hand::new(vec![flow]).faulty(Faults::default().slow(150_000));
    let mut running = start(migrate_command(master.port(), server.port(), &["--cores", "1"]));
    let mut client = server.client().unwrap();
    assert!(wait_for(|| (client.run("EXISTS k:100").unwrap().int() == Some(1)).then_some(())).is_some());
    // Only this client stays.
    client.run("CONFIG SET maxclients 1").unwrap();
    client.run("CLIENT KILL TYPE normal SKIPME yes").unwrap();
    let before = client.info("rejected_connections").unwrap();
    assert!(wait_for(|| (client.info("rejected_connections").unwrap() != before).then_some(())).is_some());
    assert!(running.is_running(), "it gave up at once");
    client.run("CONFIG SET maxclients 100").unwrap();
    running.wait_for(2 * DEADLINE).expect_code(0);
    let queue = client.run("LRANGE q 0 -1").unwrap();
    let queue: Vec<_> = queue.array().unwrap().iter().map(|item| item.text().unwrap()).collect();
    assert_eq!(queue, (0..count).map(|i| i.to_string()).collect::<Vec<_>>());
}

#[test]
fn a_string_beyond_proto_max_bulk_len_is_refused_by_name_or_left_out() {
    let options = ServerOptions::default().config("proto-max-bulk-len", "1mb");
    let Some(server) = server_with(ServerKind::Redis7, options) else { return };
    let mut flow = FlowBytes::new();
    flow.string(b"fits", &noise(1, 1_000_000)).string(b"long", &noise(2, 2 << 20)).string(b"after", b"v");
    let master = Hand::new(vec![flow]).start();
    let run = migrate(master.port(), server.port(), &[]);
    run.expect_code(3).expect_text("long").expect_text("proto-max-bulk-len").expect_text("large-string");
    let more = ["--on-existing", "flush", "--on-unsupported", "large-string=skip"];
    let run = migrate(master.port(), server.port(), &more);
    run.expect_code(0);
    assert!(run.stdout.contains("large-string"), "{}", run.stdout);
    let held: Vec<_> = contents(&mut server.client().unwrap()).into_keys().map(|(_, key)| key).collect();
    assert_eq!(held, [b"after".to_vec(), b"fits".to_vec()]);
}

#[test]
fn a_source_whose_answers_lie() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let registration = |flows: &str| format!("*3\r\n+{:040}\r\n+SYNC1\r\n{flows}\r\n", 1).into_bytes();
    let long = |mark: &str| [mark.as_bytes(), &b"x".repeat(20 << 20)].concat();
    for (request, reply, code, text) in [
        ("REPLCONF CAPA DRAGONFLY", registration(":0"), 4, "registration cannot be used"),
        ("REPLCONF CAPA DRAGONFLY", registration(":-1"), 4, "registration cannot be used"),
        ("REPLCONF CAPA DRAGONFLY", registration(":4294967297"), 4, "registration cannot be used"),
        ("REPLCONF CAPA DRAGONFLY", registration(":65535"), 4, "registration cannot be used"),
        ("REPLCONF CAPA DRAGONFLY", registration("$1\r\n1"), 4, "registration cannot be used"),
        ("REPLCONF CAPA DRAGONFLY", b"*2147483648\r\n".to_vec(), 4, "no RESP2 reply"),
        ("REPLCONF CAPA DRAGONFLY", long("+"), 4, "no RESP2 reply"),
        ("REPLCONF CAPA DRAGONFLY", long("$1073741824\r\n"), 4, "no RESP2 reply"),
        ("REPLCONF CAPA DRAGONFLY", b"*1\r\n".repeat(10_000), 4, "no RESP2 reply"),
        ("INFO", long("$1073741824\r\n"), 4, "no RESP2 reply"),
        ("DFLY FLOW", long("-"), 4, "no RESP2 reply"),
        ("DFLY FLOW", b"*-5\r\n".to_vec(), 4, "no RESP2 reply"),
        ("DFLY SYNC", long("+"), 4, "no RESP2 reply"),
    ] {
        let shown = String::from_utf8_lossy(&reply[..reply.len().min(60)]).into_owned();
        let master = source_with(request, reply);
        let args = ["--on-existing", "flush", "--connect-timeout", "5s", "--memory", "32MiB", "--cores", "1"];
        let run = migrate(master.port(), server.port(), &args);
        assert_eq!(run.code(), code, "{request} -> {shown:?}: {}", run.message());
        assert!(run.message().contains(text), "{request} -> {shown:?}: {}", run.message());
        let rss = run.report["rss_bytes_peak"].as_u64().unwrap();
        assert!(rss < (32 + 64) << 20, "{request} -> {shown:?}: {rss} bytes");
    }
}

/// An LSN marker that goes back, or ahead: a record was counted twice, or is missing.
#[test]
fn a_journal_whose_positions_go_back_ends_the_run() {
    for off in [-1i64, 1, -1000] {
        let Some(server) = server(ServerKind::Redis7) else { return };
        let mut recording = recording("follow-plain").unwrap();
        let next = recording.meta.replica_offset_at_end[0];
        let flow = &mut recording.flows[0];
        flow.extend_from_slice(&journal::command(&["SET", "last", "1"]));
        // The marker tells the LSN of the record before it.
        flow.extend_from_slice(&journal::marker(next.saturating_add_signed(off)));
        flow.extend_from_slice(&journal::command(&["SET", "behind", "1"]));
        let master = Replay::start(recording, MasterOptions::default()).unwrap();
        let mut tool = follow(master.port(), &server);
        assert_eq!(tool.wait(), Some(8), "{off}: {}", tool.said());
        assert!(tool.said().contains("the source says that its last record was LSN"), "{off}: {}", tool.said());
        let mut client = server.client().unwrap();
        assert_eq!(client.run("EXISTS behind").unwrap().int(), Some(0), "{off}");
    }
}

/// A key that a record of the full sync wrote, and that the source deleted without recording it: it goes, also where the session
/// ends before the target is in step for the first time.
#[test]
fn what_the_source_deleted_silently_goes_whatever_ends_the_session() {
    for ends in [Ends::Never, Ends::Killed, Ends::SourceLost] {
        let Some(server) = target(true) else { return };
        let spec = Spec { flows_count: 2, omitted_deletes_count: 3, ..Spec::of("string:60B=20").unwrap() };
        let live = Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap();
        let mut tool = follow(live.port(), &server);
        until(&mut tool, "stable", || is_stable(&server));
        match ends {
            Ends::Never => {}
            Ends::Killed => {
                tool.kill();
                tool = follow(live.port(), &server);
            }
            Ends::SourceLost => live.master().unwrap().cut_all(),
        }
        count_on(&live, 5);
        let mut client = server.client().unwrap();
        until(&mut tool, "some are left", || {
            let left = client.run("KEYS silent:*").unwrap();
            live.is_acknowledged() && left.array().unwrap().is_empty()
        });
        // Nor are their names.
        until(&mut tool, "they are remembered for ever", || {
            let fields = client.run("HKEYS df2redis:checkpoint").unwrap();
            !fields.array().unwrap().iter().any(|field| field.text().unwrap().starts_with("lost:"))
        });
        tool.signal("INT");
        assert_eq!(tool.wait(), Some(130), "{}", tool.said());
        let truth = server.dir().join("truth.jsonl");
        live.write_truth(&truth).unwrap();
        compare(&server, ServerKind::Redis7, &truth).unwrap_or_else(|text| panic!("{text}\n{}", tool.said()));
    }
}

#[derive(Clone, Copy)]
enum Ends {
    Never,
    Killed,
    SourceLost,
}
