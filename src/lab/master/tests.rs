//! A raw socket client walks through the handshake, rightly and wrongly.

use super::*;
use crate::lab::flow::Pieces;
use crate::lab::recordings::{Recording, recording};
use crate::lab::replay::Replay;
use std::io::{BufRead, BufReader, Read, Write};

struct Raw {
    stream: BufReader<TcpStream>,
}

impl Raw {
    fn open(master: &Master) -> Self {
        Self { stream: BufReader::new(TcpStream::connect(master.address()).unwrap()) }
    }

    fn send(&mut self, line: &str) {
        self.stream.get_mut().write_all(format!("{line}\r\n").as_bytes()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn ask(&mut self, line: &str) -> String {
        self.send(line);
        self.line()
    }

    fn capa(&mut self) -> Vec<String> {
        assert_eq!(self.ask("REPLCONF capa dragonfly"), "*5");
        (0..5).map(|_| self.line()[1..].to_owned()).collect()
    }
}

/// Opens all flows of a new registration; returns main connection, sync id, flows.
fn register(master: &Master, auth: Option<&str>) -> (Raw, String, Vec<Raw>) {
    let connect = || {
        let mut raw = Raw::open(master);
        if let Some(auth) = auth {
            assert_eq!(raw.ask("PING"), "-NOAUTH Authentication required.");
            assert_eq!(raw.ask(auth), "+OK");
        }
        raw
    };
    let mut main = connect();
    assert_eq!(main.ask("PING"), "+PONG");
    assert_eq!(main.ask("REPLCONF listening-port 0"), "+OK");
    assert_eq!(main.ask("REPLCONF ip-address 127.0.0.1"), "+OK");
    assert_eq!(main.ask("REPLCONF capa eof capa psync2"), "+OK");
    let capa = main.capa();
    assert_eq!(main.ask("REPLCONF CLIENT-ID 0123456789012345678901234567890123456789"), "+OK");
    assert_eq!(main.ask("REPLCONF CLIENT-VERSION 4"), "+OK");
    let flows = (0..capa[2].parse().unwrap())
        .map(|i| {
            let mut flow = connect();
            assert_eq!(flow.ask(&format!("DFLY FLOW {} {} {i}", capa[0], capa[1])), "*2");
            assert_eq!(flow.line(), "+FULL");
            assert_eq!(flow.line()[1..], master.shared.identity.eof_tokens[i]);
            flow
        })
        .collect();
    (main, capa[1].clone(), flows)
}

fn start(recording: &Recording, options: MasterOptions) -> Master {
    Replay::start(recording.clone(), options).unwrap()
}

#[test]
fn serves_exact_bytes_at_the_right_phases() {
    let recording = recording("follow-lz4").unwrap();
    let pieces =
        Faults { pieces_edge_bytes: Some(2000), ..Faults::default().pieces(Pieces::Seeded { max: 7, seed: 3 }) };
    for faults in [Faults::default(), pieces] {
        let auth =
            MasterOptions { user: Some("me".into()), password: Some("it's".into()), faults, ..Default::default() };
        let master = start(&recording, auth);
        let (mut main, sync_id, mut flows) = register(&master, Some("AUTH me it's"));
        assert_eq!(main.ask(&format!("DFLY SYNC {sync_id}")), "+OK");
        for (i, flow) in flows.iter_mut().enumerate() {
            let mut bytes = vec![0; recording.meta.bytes_before_startstable[i] as usize];
            flow.stream.read_exact(&mut bytes).unwrap();
            assert!(recording.flows[i].starts_with(&bytes));
        }
        main.send(&format!("DFLY STARTSTABLE {sync_id}"));
        for (i, flow) in flows.iter_mut().enumerate() {
            let before = recording.meta.bytes_before_startstable[i] as usize;
            let mut bytes = vec![0; recording.flows[i].len() - before];
            flow.stream.read_exact(&mut bytes).unwrap();
            assert!(recording.flows[i][before..] == bytes);
        }
        assert_eq!(main.line(), "+OK");
        flows[1].send("REPLCONF ACK 17");
        assert_eq!(main.ask("DFLY REPLICAOFFSET"), "*3");
        while master.acks()[1] != Some(17) {
            std::thread::yield_now();
        }
        assert_eq!(master.violations(), []);
        // Any connection lost ends the registration.
        drop(flows.pop());
        for flow in &mut flows {
            assert_eq!(flow.stream.read(&mut [0]).unwrap_or(0), 0);
        }
        (0..3).for_each(|_| drop(main.line()));
        assert_eq!(main.ask(&format!("DFLY STARTSTABLE {sync_id}")), "-ERR syncid not found");
    }
}

#[test]
fn answers_plain_commands_from_the_truth() {
    let master = start(&recording("snapshot-lz4").unwrap(), MasterOptions::default());
    let mut raw = Raw::open(&master);
    assert_eq!(raw.ask("EXISTS geo bits nothing"), ":2");
    assert_eq!(raw.ask("TYPE geo"), "+zset");
    assert_eq!(raw.ask("SELECT 1"), "+OK");
    assert_eq!(raw.ask("EXISTS geo"), ":0");
    assert_eq!(raw.ask("GET nothing"), "$-1");
    assert!(raw.ask("INFO server")[1..].parse::<usize>().unwrap() > 100);
}

#[test]
fn misuse_is_kept() {
    let recording = recording("snapshot-lzf").unwrap();
    // Flow 1 stalls before its FULLSYNC_END until the end of the test.
    let faults = Faults::default().stall(1, 1000, std::time::Duration::from_secs(60));
    let master = start(&recording, MasterOptions { faults, ..Default::default() });
    let mut early = Raw::open(&master);
    early.send("REPLCONF CLIENT-VERSION 4");
    assert_eq!(early.line(), "");
    let mut main = Raw::open(&master);
    let capa = main.capa();
    assert_eq!(main.ask(&format!("DFLY STARTSTABLE {}", capa[1])), "-ERR invalid state");
    assert_eq!(main.ask(&format!("DFLY SYNC {}", capa[1])), "-ERR invalid state");
    assert_eq!(main.ask("DFLY SYNC 7"), "-ERR bad sync id");
    assert_eq!(main.ask("DFLY SYNC SYNC99"), "-ERR syncid not found");
    assert_eq!(main.ask(&format!("DFLY FLOW nobody {} 0", capa[1])), "-ERR bad master id");
    let (mut main, sync_id, mut flows) = register(&master, None);
    assert_eq!(main.ask(&format!("DFLY SYNC {sync_id}")), "+OK");
    flows[0].send("PING");
    let mut all = vec![0; recording.meta.bytes_before_startstable[0] as usize];
    flows[0].stream.read_exact(&mut all).unwrap();
    main.send(&format!("DFLY STARTSTABLE {sync_id}"));
    let wanted = [
        Violation::VersionBeforeCapa,
        Violation::StableBeforeSync,
        Violation::SyncBeforeFlows { open: 0, flows_count: 2 },
        Violation::NoAckOnFlow { flow: 0, request: "PING".into() },
        Violation::StableBeforeFullSyncEnd { flow: 1 },
    ];
    while master.violations().len() < wanted.len() {
        std::thread::yield_now();
    }
    drop(flows);
    assert_eq!(main.line(), "-ERR syncid not found");
    // The last two come from two threads, in either order.
    let violations = master.violations();
    assert!(violations.len() == wanted.len() && wanted.iter().all(|v| violations.contains(v)), "{violations:?}");
}

#[test]
fn scripted_replies_and_stop() {
    let scripted = vec![Scripted { request: "DFLY SYNC".into(), reply: b"-LOADING wait\r\n".to_vec(), times: 1 }];
    let mut master = start(&recording("snapshot-lzf").unwrap(), MasterOptions { scripted, ..Default::default() });
    let (mut main, sync_id, _flows) = register(&master, None);
    assert_eq!(main.ask(&format!("DFLY SYNC {sync_id}")), "-LOADING wait");
    assert_eq!(main.ask(&format!("DFLY SYNC {sync_id}")), "+OK");
    master.stop();
    assert_eq!(main.line(), "");
    assert!(TcpStream::connect(master.address()).is_err());
}
