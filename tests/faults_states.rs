//! Real servers in states in which they refuse: one that cannot save its data, one that loads it. Each is waited for without a storm
//! of tries and named with the server's own words, nothing is skipped, and the end is what the source holds.

mod common;

use common::job::{binary, reasons, until};
use common::{Contents, FlowBytes, Hand, contents, migrate_command, noise, server_with, start, texts};
use df2redis::lab::client::Client;
use df2redis::lab::flow::Faults;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::proxy::{Faulty, Proxy};
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::{Tool, compare, is_stable, wait_for};
use std::path::PathBuf;
use std::time::Instant;

/// Waits for something of a server.
#[track_caller]
fn expect(what: &str, mut look: impl FnMut() -> bool) {
    assert!(wait_for(|| look().then_some(())).is_some(), "{what}");
}

/// How often a server gave an error of this class.
fn errors(client: &mut Client, class: &str) -> u64 {
    let stats = client.ask(&["INFO", "errorstats"]).unwrap().text().unwrap();
    let of = format!("errorstat_{class}:count=");
    stats.lines().find_map(|line| line.trim_end().strip_prefix(&of)?.parse().ok()).unwrap_or(0)
}

/// A server that saves whenever something was written a second ago, and takes no write when it could not.
fn saving() -> Option<Server> {
    let options = ServerOptions::default().config("enable-protected-configs", "yes");
    server_with(ServerKind::Redis7, options.config("stop-writes-on-bgsave-error", "yes"))
}

/// Its directory is gone, as a disk that was taken away.
struct NoDisk {
    client: Client,
    good: PathBuf,
}

impl NoDisk {
    fn new(server: &Server) -> Self {
        let (mut client, gone) = (server.client().unwrap(), server.dir().join("gone"));
        std::fs::create_dir(&gone).unwrap();
        client.ask(&["CONFIG", "SET", "dir", gone.to_str().unwrap()]).unwrap();
        std::fs::remove_dir(&gone).unwrap();
        client.ask(&["CONFIG", "SET", "save", "1 1"]).unwrap();
        client.run("CONFIG RESETSTAT").unwrap();
        Self { client, good: server.dir().to_owned() }
    }

    fn state(&mut self) -> Option<String> {
        self.client.info("rdb_last_bgsave_status").unwrap()
    }

    /// Waits until a save has failed, and a write was refused for it.
    #[track_caller]
    fn wait_refused(&mut self) {
        expect("no save fails", || self.state().as_deref() == Some("err"));
        expect("no write is refused", || errors(&mut self.client, "MISCONF") > 0);
    }

    /// The server saves by itself some seconds later, and takes writes from then on.
    fn mend(mut self) {
        let good = self.good.to_str().unwrap();
        self.client.ask(&["CONFIG", "SET", "dir", good]).unwrap();
    }
}

const MISCONF: &str = "MISCONF Redis is configured to save RDB snapshots";

fn live() -> Live {
    // A server that loads looks at its connections behind each KiB.
    let spec = Spec { flows_count: 2, ..Spec::of("string:2000B=20,list:6x9=5").unwrap() };
    Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap()
}

fn count_on(live: &Live, times: usize) {
    for _ in 0..times {
        for key in ["a", "b", "c", "d"] {
            live.world().run(0, &[b"INCR".to_vec(), format!("count:{key}").into_bytes()]);
        }
    }
}

fn socket(server: &Server) -> PathBuf {
    server.dir().join("control.sock")
}

fn follow(live: &Live, server: &Server, more: &[&str]) -> Tool {
    let socket = socket(server);
    let args = [&["--log", "info", "--control", socket.to_str().unwrap()], more].concat();
    Tool::start(binary(), live.port(), server.port(), &server.dir().join("tool.log"), &args).unwrap()
}

/// Everything is acknowledged; the tool ends, and the server holds what the source holds.
#[track_caller]
fn finish(live: &Live, server: &Server, mut tool: Tool) {
    until(&mut tool, "acknowledged", || live.is_acknowledged());
    tool.signal("INT");
    assert_eq!(tool.wait(), Some(130), "{}", tool.said());
    let truth = server.dir().join("truth.jsonl");
    live.write_truth(&truth).unwrap();
    compare(server, ServerKind::Redis7, &truth).unwrap_or_else(|text| panic!("{text}\n{}", tool.said()));
}

fn count(server: &Server) -> Option<String> {
    server.client().unwrap().run("GET count:a").unwrap().text()
}

/// Strings, long lists in pieces, counters and logs: what must be there in the end, too.
fn source() -> (FlowBytes, Contents) {
    let (mut flow, mut truth) = (FlowBytes::new(), Contents::new());
    let mut put = |key: &str, kind: &str, values: Vec<Vec<u8>>| {
        truth.insert((0, key.as_bytes().to_vec()), (kind.to_owned(), values));
    };
    for round in 0..6u64 {
        for i in 0..60 {
            let (key, value) = (format!("s:{round}:{i}"), noise(i + 1, 1500));
            flow.string(key.as_bytes(), &value);
            put(&key, "string", vec![value]);
        }
        let (key, elements) = (format!("l:{round}"), texts("e", 3000));
        flow.list(key.as_bytes(), &elements, 100);
        put(&key, "list", elements);
        let (counter, log) = (format!("n:{round}"), format!("a:{round}"));
        let mut text = Vec::new();
        for i in 0..20 {
            flow.journal(0, &["INCR", &counter]).journal(0, &["APPEND", &log, &format!("<{i}>")]);
            text.extend_from_slice(format!("<{i}>").as_bytes());
        }
        put(&counter, "string", vec![b"20".to_vec()]);
        put(&log, "string", vec![text]);
    }
    (flow, truth)
}

const SLOW: u64 = 120_000;
const SMALL: [&str; 6] = ["--restore-bytes-max", "1KiB", "--batch-bytes", "8KiB", "--window-bytes", "64KiB"];

#[test]
fn a_server_that_cannot_save_is_waited_for_in_the_full_sync() {
    let Some(server) = saving() else { return };
    let (flow, truth) = source();
    let master = Hand::new(vec![flow]).faulty(Faults::default().slow(SLOW));
    let socket = socket(&server);
    let args = [&SMALL[..], &["--control", socket.to_str().unwrap()]].concat();
    let mut running = start(migrate_command(master.port(), server.port(), &args));
    let mut client = server.client().unwrap();
    expect("nothing is loaded", || client.run("DBSIZE").unwrap().int().unwrap() > 30);
    let mut disk = NoDisk::new(&server);
    disk.wait_refused();
    expect("it does not say why", || reasons(&socket).contains(MISCONF));
    assert!(running.is_running(), "it gave up");
    disk.mend();
    let run = running.wait();
    run.expect_code(0);
    assert!(run.report["counters"]["holds"].as_u64().unwrap() > 0, "{}", run.stdout);
    assert!(contents(&mut client) == truth, "what was refused is missing, or came twice");
}

#[test]
fn a_server_that_cannot_save_is_waited_for_in_the_journal() {
    let Some(server) = saving() else { return };
    let live = live();
    let mut tool = follow(&live, &server, &[]);
    until(&mut tool, "stable", || is_stable(&server));
    count_on(&live, 50);
    until(&mut tool, "acknowledged", || live.is_acknowledged());
    let mut disk = NoDisk::new(&server);
    // The tool's own writes (its lease) have a save fail, too.
    expect("no save fails", || disk.state().as_deref() == Some("err"));
    let before = count(&server);
    count_on(&live, 50);
    disk.wait_refused();
    until(&mut tool, "it does not say why", || reasons(&socket(&server)).contains(MISCONF));
    assert!(tool.said().contains(MISCONF), "{}", tool.said());
    // Positions stand still before what was refused.
    assert!(!live.is_acknowledged());
    assert_eq!((count(&server), before.as_deref()), (before.clone(), Some("50")));
    disk.mend();
    until(&mut tool, "acknowledged", || live.is_acknowledged());
    assert_eq!(count(&server).as_deref(), Some("100"));
    until(&mut tool, "it still says so", || !reasons(&socket(&server)).contains("MISCONF"));
    finish(&live, &server, tool);
}

/// Tries that are no storm while a server loads for so long: pauses grow to half a second and to two, on each of a few connections.
fn tries_max(begun: Instant) -> u64 {
    60 + 16 * begun.elapsed().as_secs()
}

/// How often each command was called; refused ones are not counted.
struct Calls(String);

impl Calls {
    fn of(server: &Server) -> Self {
        Self(server.client().unwrap().ask(&["INFO", "commandstats"]).unwrap().text().unwrap())
    }

    fn count(&self, name: &str) -> u64 {
        let of = format!("cmdstat_{name}:calls=");
        self.0.lines().find_map(|line| line.strip_prefix(&of)?.split(',').next()?.parse().ok()).unwrap_or(0)
    }
}

#[test]
fn a_server_that_loads_at_the_start_is_waited_for_without_a_storm() {
    let options = ServerOptions::default().slow_to_load();
    let Some(mut server) = server_with(ServerKind::Redis7, options) else { return };
    let mut client = server.client().unwrap();
    (0..100).for_each(|i| drop(client.run(&format!("SET own:{i} {}", "x".repeat(1000))).unwrap()));
    client.run("SAVE").unwrap();
    let live = live();
    let (socket, log, port) = (socket(&server), server.dir().join("tool.log"), server.port());
    let begun = Instant::now();
    server.kill();
    let mut tool = std::thread::scope(|scope| {
        let loading = scope.spawn(|| server.restart().unwrap());
        // It takes connections as soon as it loads.
        expect("it does not listen", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        let args = ["--log", "info", "--on-existing", "replace", "--control", socket.to_str().unwrap()];
        let tool = Tool::start(binary(), live.port(), port, &log, &args).unwrap();
        loading.join().unwrap();
        tool
    });
    let refused = server.refused_calls().unwrap();
    let calls = Calls::of(&server);
    assert!(refused > 0, "nothing was asked while it loaded: {}", tool.said());
    assert!(refused.max(calls.count("info")) <= tries_max(begun), "a storm: {refused}\n{}", calls.0);
    until(&mut tool, "stable", || is_stable(&server));
    assert!(tool.said().contains("LOADING") || tool.said().contains("still loading"), "{}", tool.said());
    count_on(&live, 50);
    until(&mut tool, "acknowledged", || live.is_acknowledged());
    assert_eq!(count(&server).as_deref(), Some("50"));
    let mut client = server.client().unwrap();
    (0..100).for_each(|i| drop(client.run(&format!("DEL own:{i}")).unwrap()));
    finish(&live, &server, tool);
}

/// The same process loads anew what it holds (`DEBUG RELOAD`), for about so long.
fn reload(server: &Server, ms: i64) -> std::thread::JoinHandle<()> {
    let mut client = server.client().unwrap();
    let keys = client.run("DBSIZE").unwrap().int().unwrap().max(1);
    client.run(&format!("CONFIG SET key-load-delay {}", ms * 1000 / keys)).unwrap();
    client.run("CONFIG RESETSTAT").unwrap();
    std::thread::spawn(move || drop(client.ask(&["DEBUG", "RELOAD"]).unwrap()))
}

/// It answers LOADING in the middle of a sync, and has everything afterwards.
fn reloading() -> Option<Server> {
    let options = ServerOptions::default().slow_to_load().config("enable-debug-command", "yes");
    server_with(ServerKind::Redis7, options)
}

#[test]
fn a_server_that_loads_in_the_middle_of_the_full_sync_is_waited_for() {
    let Some(server) = reloading() else { return };
    let (flow, truth) = source();
    let master = Hand::new(vec![flow]).faulty(Faults::default().slow(SLOW));
    let socket = socket(&server);
    let args = [&SMALL[..], &["--control", socket.to_str().unwrap()]].concat();
    let mut running = start(migrate_command(master.port(), server.port(), &args));
    let mut client = server.client().unwrap();
    expect("nothing is loaded", || client.run("DBSIZE").unwrap().int().unwrap() > 30);
    let begun = Instant::now();
    let loading = reload(&server, 3000);
    expect("it does not say why", || reasons(&socket).contains("LOADING"));
    assert!(running.is_running(), "it gave up");
    loading.join().unwrap();
    let refused = server.refused_calls().unwrap();
    // Those of the window that was under way, too.
    assert!((1..=tries_max(begun) + 300).contains(&refused), "{refused}");
    let run = running.wait();
    run.expect_code(0);
    assert!(run.report["counters"]["holds"].as_u64().unwrap() > 0, "{}", run.stdout);
    assert!(contents(&mut client) == truth, "what was refused is missing, or came twice");
}

#[test]
fn a_server_that_loads_in_the_middle_of_the_journal_is_waited_for() {
    let Some(server) = reloading() else { return };
    let live = live();
    let mut tool = follow(&live, &server, &[]);
    until(&mut tool, "stable", || is_stable(&server));
    for round in 1..=3 {
        count_on(&live, 50);
        until(&mut tool, "acknowledged", || live.is_acknowledged());
        let begun = Instant::now();
        let loading = reload(&server, 5000);
        // Its answer to this one comes while it loads.
        expect("it does not load", || server.client().unwrap().run("GET count:a").is_err());
        count_on(&live, 50);
        until(&mut tool, "it does not say why", || reasons(&socket(&server)).contains("LOADING"));
        assert!(!live.is_acknowledged());
        loading.join().unwrap();
        let calls = Calls::of(&server);
        // A try is a transaction, of which each command is refused; MULTI is not.
        assert!(server.refused_calls().unwrap() > 0, "{}", tool.said());
        let tries = calls.count("multi").max(calls.count("info"));
        assert!((1..=tries_max(begun)).contains(&tries), "a storm: {tries}\n{}\n{}", calls.0, tool.said());
        eprintln!("{tries} tries in {:?}", begun.elapsed());
        until(&mut tool, "acknowledged", || live.is_acknowledged());
        assert_eq!(count(&server), Some((100 * round).to_string()));
    }
    finish(&live, &server, tool);
}

/// Between two sessions, where the checkpoint is written, or read: nothing was read of the source that could be applied, so one
/// signal is enough.
#[test]
fn a_stop_is_heard_between_two_sessions() {
    let Some(server) = reloading() else { return };
    let live = live();
    let proxy = Proxy::start(live.port(), |_| Faulty::default()).unwrap();
    let log = server.dir().join("tool.log");
    let mut client = server.client().unwrap();
    for i in 0..1500 {
        live.world().run(0, &[b"SET".to_vec(), format!("large:{i}").into_bytes(), vec![b'x'; 2000]]);
    }
    let is_refused = |client: &mut Client, command: &str| {
        let stats = client.ask(&["INFO", "commandstats"]).unwrap().text().unwrap();
        let line = stats.lines().find(|line| line.starts_with(&format!("cmdstat_{command}:")));
        line.is_some_and(|line| !line.contains("rejected_calls=0"))
    };
    for command in ["hset", "hgetall"] {
        let mut tool = Tool::start(binary(), proxy.port(), server.port(), &log, &[]).unwrap();
        live.world().run(0, &[b"INCR".to_vec(), b"count:a".to_vec()]);
        until(&mut tool, "stable", || is_stable(&server) && live.is_acknowledged());
        client.run("CONFIG RESETSTAT").unwrap();
        if command == "hset" {
            client.run("CONFIG SET min-replicas-to-write 1").unwrap();
        } else {
            // Longer than anybody waits.
            drop(reload(&server, 120_000));
            expect("it does not load", || server.client().unwrap().run("GET count:a").is_err());
        }
        proxy.drop_all();
        until(&mut tool, "nothing is refused", || is_refused(&mut client, command));
        tool.signal("INT");
        assert_eq!(tool.wait(), Some(130), "{command}: {}", tool.said());
        client.run("CONFIG SET min-replicas-to-write 0").unwrap();
    }
    assert!(client.run("GET count:a").is_err(), "it has loaded");
}
