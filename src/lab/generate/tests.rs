//! What can be said of a generated stream without a decoder: it is the same each time, every key is on its owner's flow,
//! and it is fast. That its content is right, the tests of the whole tool say.

use super::*;
use crate::lab::encode::owner;
use crate::lab::flow::Faults;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

/// Walks through the handshake and reads every flow to its end (the token); returns main and flow connections too.
fn fetch(master: &Master) -> Vec<Vec<u8>> {
    let connect = || BufReader::new(TcpStream::connect(master.address()).unwrap());
    let mut main = connect();
    let ask = |wire: &mut BufReader<TcpStream>, line: &str, lines: usize| -> Vec<String> {
        wire.get_mut().write_all(format!("{line}\r\n").as_bytes()).unwrap();
        wire.lines().take(lines).map(|line| line.unwrap()[1..].to_owned()).collect()
    };
    let capa = ask(&mut main, "REPLCONF capa dragonfly", 1);
    let elements = capa[0].parse().unwrap();
    let capa: Vec<String> = main.by_ref().lines().take(elements).map(|line| line.unwrap()[1..].to_owned()).collect();
    ask(&mut main, "REPLCONF CLIENT-ID me", 1);
    let flows: Vec<_> = (0..capa[2].parse().unwrap())
        .map(|i: usize| {
            let mut wire = connect();
            let token = ask(&mut wire, &format!("DFLY FLOW {} {} {i}", capa[0], capa[1]), 3)[2].clone();
            (wire, token)
        })
        .collect();
    ask(&mut main, &format!("DFLY SYNC {}", capa[1]), 1);
    let flows_count = flows.len();
    let (quiet, when_quiet) = std::sync::mpsc::channel();
    let threads: Vec<_> = flows
        .into_iter()
        .map(|(mut wire, token)| {
            let quiet = quiet.clone();
            std::thread::spawn(move || {
                let mut got = Vec::new();
                let mut waiting = true;
                while !got.ends_with(token.as_bytes()) {
                    let bytes = wire.fill_buf().unwrap();
                    assert!(!bytes.is_empty());
                    got.extend_from_slice(bytes);
                    let count = bytes.len();
                    wire.consume(count);
                    // Plain or compressed: nothing more comes before STARTSTABLE.
                    wire.get_ref().set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
                    if waiting && wire.buffer().is_empty() && wire.fill_buf().is_err() {
                        waiting = false;
                        quiet.send(()).unwrap();
                        wire.get_ref().set_read_timeout(None).unwrap();
                    }
                }
                (got, wire)
            })
        })
        .collect();
    drop(quiet);
    (0..flows_count).for_each(|_| when_quiet.recv().unwrap());
    ask(&mut main, &format!("DFLY STARTSTABLE {}", capa[1]), 1);
    threads.into_iter().map(|thread| thread.join().unwrap().0).collect()
}

fn everything(compression: Compression) -> Spec {
    Spec {
        flows_count: 3,
        compression,
        chunk_bytes: 700,
        databases: vec![0, 5],
        expire_fraction: 0.2,
        expired_fraction: 0.1,
        sticky_fraction: 0.3,
        journal_ratio: 0.5,
        strays_count: 4,
        omitted_deletes_count: 2,
        early_writes_count: 2,
        ..Spec::of(
            "string:100B=50,string:3000B=5,int=30,json:200B=10,list:5x8=10,list:500x20=3,set:0x1=2,set:200x9=5,\
             intset:50x1000=5,hash:5x8=20,hash:300x30=4,zset:5x8=10,zset:200x12=4,stream:250x6=6,stream:0x0=1,\
             hashttl:100x8=4,setttl:100x8=4,bloom=1,cms=1,topk=1,cuckoo=1",
        )
        .unwrap()
    }
}

#[test]
fn the_same_each_time() {
    for compression in [Compression::None, Compression::Lz4] {
        let (master, model) = Generator::start(everything(compression), MasterOptions::default()).unwrap();
        let first = fetch(&master);
        let counts = [model.keys_count(0), model.keys_count(5)];
        assert!(first.iter().all(|bytes| bytes.starts_with(b"REDIS0009") && bytes.len() > 10_000));
        assert!(fetch(&master) == first);
        assert_eq!(counts, [model.keys_count(0), model.keys_count(5)]);
        assert_eq!(master.violations(), []);
    }
}

#[test]
fn keys_stand_on_their_owners_flow() {
    let spec = Spec { flows_count: 3, ..Spec::of("string:30B=300,list:10x10=50").unwrap() };
    for fast in [false, true] {
        let spec = Spec { fast, ..spec.clone() };
        let (master, model) = Generator::start(spec.clone(), MasterOptions::default()).unwrap();
        let flows = fetch(&master);
        for entry in model::entries(&spec) {
            for (flow, bytes) in flows.iter().enumerate() {
                let found = memchr::memmem::find_iter(bytes, &entry.key).count();
                assert_eq!(found, usize::from(owner(&entry.key, 3) == flow), "{entry:?}");
            }
        }
        assert_eq!(model.keys_count(0), 350);
    }
}

#[test]
fn cuts_reach_generated_flows() {
    let spec = Spec { flows_count: 1, ..Spec::of("string:1KiB=1000").unwrap() };
    let options = MasterOptions { faults: Faults::default().cut_at(0, 5000), ..Default::default() };
    let (master, _) = Generator::start(spec, options).unwrap();
    let thread = std::thread::spawn(move || fetch(&master));
    assert!(thread.join().is_err());
}

#[test]
fn rows_are_truth_rows() {
    let spec = everything(Compression::None);
    let model = Model::new(Arc::new(spec.clone()));
    let path = std::env::temp_dir().join(format!("df2redis-rows-{}", std::process::id()));
    model.write_truth(&path).unwrap();
    let rows = crate::lab::truth::parse_truth(&std::fs::read_to_string(&path).unwrap()).unwrap();
    std::fs::remove_file(&path).unwrap();
    let alive = model::entries(&spec).filter(entry::Entry::is_alive).count();
    assert_eq!(rows.len(), alive);
    assert_eq!(model.keys_count(0) + model.keys_count(5), alive as u64);
    assert!(alive < spec.keys_count() as usize);
}

#[test]
#[ignore = "a measurement: cargo test --release --lib generate -- --ignored --nocapture"]
fn speed() {
    for mix in ["string:100B=20000000", "string:1KiB=4000000", "string:1MiB=4000", "hash:20x8=5000000"] {
        let spec = Spec { flows_count: 1, fast: true, ..Spec::of(mix).unwrap() };
        let count = spec.keys_count() as f64;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut reader = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 20];
            let mut total = 0;
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                total += count;
            }
            total as f64
        });
        let cpu = crate::lab::cpu::ThreadCpu::current();
        let before = cpu.nanos().unwrap();
        let mut out =
            crate::lab::flow::FlowWriter::new(stream, 0, 1, None, &Faults::default(), Arc::default()).unwrap();
        let mut feed = Generator::new(spec).open(0);
        feed.snapshot(&mut out).unwrap();
        feed.finish(&mut out).unwrap();
        drop(out);
        let seconds = (cpu.nanos().unwrap() - before) as f64 / 1e9;
        let bytes = thread.join().unwrap();
        println!("{mix}: {:.2} GB/s, {:.1} M keys/s of CPU", bytes / seconds / 1e9, count / seconds / 1e6);
    }
}
