//! What can be said of the live source alone: who waits, what is recorded, what is answered.

use super::*;
use crate::lab::client::{Address, Client, Reply};

fn live(mix: &str, flows_count: usize) -> Live {
    let spec = Spec { flows_count, databases: vec![0, 3], ..Spec::of(mix).unwrap() };
    Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap()
}

fn client(live: &Live) -> Client {
    Client::connect(&Address::Tcp("127.0.0.1".into(), live.port())).unwrap()
}

#[track_caller]
fn same(client: &mut Client, commands: &[(&str, &str)]) {
    for (command, wanted) in commands {
        let reply = match client.ask(&command.split(' ').collect::<Vec<_>>()).unwrap() {
            Reply::Array(replies) => {
                replies.iter().map(|r| r.text().unwrap_or_else(|| format!("{r:?}"))).collect::<Vec<_>>().join(" ")
            }
            Reply::Error(text) => text,
            Reply::Int(n) => n.to_string(),
            Reply::Nil => "nil".to_owned(),
            other => other.text().unwrap(),
        };
        assert_eq!(reply, *wanted, "{command}");
    }
}

#[test]
fn commands_do_what_redis_does() {
    let live = live("string:10B=1", 3);
    let mut client = client(&live);
    same(
        &mut client,
        &[
            ("SET a 5 PX 100000", "OK"),
            ("INCR a", "6"),
            ("TTL a", "100"),
            ("SET a x NX", "nil"),
            ("SET a x XX GET", "6"),
            ("INCR a", "ERR value is not an integer or out of range"),
            ("APPEND a yz", "3"),
            ("SETRANGE a 4 !", "5"),
            ("GETRANGE a 0 2", "xyz"),
            ("LPUSH a 1", "WRONGTYPE Operation against a key holding the wrong kind of value"),
            ("RPUSH l a b c b", "4"),
            ("LREM l -1 b", "1"),
            ("LRANGE l 0 -1", "a b c"),
            ("LINSERT l BEFORE c x", "4"),
            ("LTRIM l 1 -2", "OK"),
            ("LRANGE l 0 -1", "b x"),
            ("LMOVE l m LEFT LEFT", "b"),
            ("LPOP l 5", "x"),
            ("EXISTS l m", "1"),
            ("SADD s 3 1 2", "3"),
            ("SMEMBERS s", "1 2 3"),
            ("SMOVE s t 2", "1"),
            ("SDIFFSTORE u s t", "2"),
            ("HSET h f 1 g 2", "2"),
            ("HINCRBY h f 4", "5"),
            ("SET d 0.2", "OK"),
            ("INCRBYFLOAT d 0.1", "0.30000000000000004"),
            ("INCRBYFLOAT d -0.30000000000000004", "0"),
            ("INCRBYFLOAT d -1e-7", "-1e-7"),
            ("INCRBYFLOAT d 1.5e21", "1.5e+21"),
            ("INCRBYFLOAT d -1.499e21", "1000000000000000000"),
            ("DEL d", "1"),
            ("HINCRBYFLOAT h f 0.000001", "5.000001"),
            ("HSET h f 5", "0"),
            ("HGETALL h", "f 5 g 2"),
            ("ZADD z 1 a 2.5 b 3 c", "3"),
            ("ZADD z GT CH 1 b 9 a", "1"),
            ("ZRANGE z 0 -1 WITHSCORES", "b 2.5 c 3 a 9"),
            ("ZREMRANGEBYSCORE z (2.5 3", "1"),
            ("ZADD y 1 a 2 b 3 d", "3"),
            ("ZUNIONSTORE v 2 z y WEIGHTS 1 10", "3"),
            ("ZRANGE v 0 -1 WITHSCORES", "a 19 b 22.5 d 30"),
            ("ZINTERSTORE v 2 z y AGGREGATE MIN", "2"),
            ("ZRANGE v 0 -1 WITHSCORES", "a 1 b 2"),
            ("ZDIFFSTORE v 2 y z", "1"),
            ("ZRANGE v 0 -1 WITHSCORES", "d 3"),
            ("ZRANGESTORE v y 1 -1", "2"),
            ("ZMPOP 3 none v y MAX COUNT 2", "2"),
            ("EXISTS v y", "1"),
            ("RPUSH q c a b", "3"),
            ("SORT q ALPHA DESC LIMIT 1 5 STORE r", "2"),
            ("LRANGE r 0 -1", "b a"),
            ("LMPOP 2 none r RIGHT", "1"),
            ("LRANGE r 0 -1", "b"),
            ("XADD x 5-1 f v", "5-1"),
            ("XADD x 5-1 f v", "ERR The ID specified in XADD is equal or smaller than the target stream top item"),
            ("XGROUP CREATE x g 0", "OK"),
            (
                "XREADGROUP GROUP g c STREAMS x >",
                "Array([Bulk([120]), Array([Array([Bulk([53, 45, 49]), Array([Bulk([102]), Bulk([118])])])])])",
            ),
            ("XACK x g 5-1", "1"),
            ("RENAME h h2", "OK"),
            ("TYPE h2", "hash"),
            ("DBSIZE", "11"),
            ("PEXPIREAT h2 1", "1"),
            ("EXISTS h2", "0"),
            ("PTTL h2", "-2"),
            ("NOSUCH k", "ERR unknown command 'nosuch'"),
            ("MULTI", "OK"),
            ("SET q 1", "QUEUED"),
            ("INCR q", "QUEUED"),
            ("EXEC", "OK Int(2)"),
            ("SELECT 3", "OK"),
            ("FLUSHDB", "OK"),
            ("DBSIZE", "0"),
        ],
    );
    let offsets = client.run("DFLY REPLICAOFFSET").unwrap();
    let offsets: Vec<u64> = offsets.array().unwrap().iter().map(|n| n.int().unwrap() as u64).collect();
    assert_eq!(offsets, live.world().next_lsns());
    assert!(offsets.iter().all(|lsn| *lsn > 5), "{offsets:?}");
    let info = client.run("INFO REPLICATION").unwrap().text().unwrap();
    assert!(info.contains("role:master\r\nconnected_slaves:0"), "{info}");
}

#[test]
fn scans_page_through_everything() {
    let live = live("string:10B=300,hash:500x8=1,set:500x8=1,zset:500x8=1", 2);
    live.world().expire();
    let mut client = client(&live);
    for db in [0, 3] {
        client.run(&format!("SELECT {db}")).unwrap();
        let mut keys = std::collections::BTreeSet::new();
        let mut cursor = "0".to_owned();
        loop {
            let page = client.run(&format!("SCAN {cursor} COUNT 7")).unwrap();
            let page = page.array().unwrap();
            keys.extend(page[1].array().unwrap().iter().map(|key| key.text().unwrap()));
            cursor = page[0].text().unwrap();
            if cursor == "0" {
                break;
            }
        }
        assert_eq!(keys.len() as i64, client.run("DBSIZE").unwrap().int().unwrap());
        for (scan, prefix) in [("HSCAN", "hash:"), ("SSCAN", "set:"), ("ZSCAN", "zset:")] {
            let Some(key) = keys.iter().find(|key| key.starts_with(prefix)) else { continue };
            let (mut cursor, mut found) = ("0".to_owned(), 0);
            loop {
                let page = client.run(&format!("{scan} {key} {cursor} COUNT 9")).unwrap();
                found += page.array().unwrap()[1].array().unwrap().len();
                cursor = page.array().unwrap()[0].text().unwrap();
                if cursor == "0" {
                    break;
                }
            }
            assert_eq!(found, if scan == "SSCAN" { 500 } else { 1000 }, "{scan}");
        }
    }
}

#[test]
fn a_pause_holds_writes_and_ends_by_itself() {
    let live = live("string:10B=1", 1);
    let (mut client, mut admin) = (client(&live), client(&live));
    let started = std::time::Instant::now();
    assert_eq!(admin.run("CLIENT PAUSE 300 WRITE").unwrap().text().unwrap(), "OK");
    let before = live.world().next_lsns();
    assert_eq!(client.run("GET nothing").unwrap(), Reply::Nil);
    assert!(live.world().is_held());
    assert_eq!(live.world().next_lsns(), before);
    assert_eq!(client.run("SET k v").unwrap().text().unwrap(), "OK");
    assert!(started.elapsed() >= Duration::from_millis(300));
    assert_ne!(live.world().next_lsns(), before);
    // Ended before its time.
    admin.run("CLIENT PAUSE 60000 WRITE").unwrap();
    let writing = std::thread::spawn(move || client.run("SET k w").unwrap().text());
    admin.run("CLIENT UNPAUSE").unwrap();
    assert_eq!(writing.join().unwrap().unwrap(), "OK");
}

#[test]
fn expired_keys_are_deleted_with_a_record() {
    let live = live("string:10B=1", 1);
    let mut client = client(&live);
    client.run("SET k v PX 30").unwrap();
    let before = live.world().next_lsns()[0];
    let until = std::time::Instant::now() + Duration::from_secs(20);
    while live.world().next_lsns()[0] == before {
        assert!(std::time::Instant::now() < until);
        std::thread::sleep(Duration::from_millis(5));
    }
    let taken = live.world().take(0, before, 1, Duration::ZERO).unwrap();
    assert!(taken.bytes.ends_with(b"\x03DEL\x01k"), "{:?}", taken.bytes);
    assert_eq!(client.run("EXISTS k").unwrap().int(), Some(0));
}

/// The same seed draws the same commands, and every kind of command succeeds now and then.
#[test]
fn seeded_writers_write_everything() {
    let spec = Spec {
        flows_count: 2,
        databases: vec![0, 1],
        ..Spec::of("string:9B=20,int=20,list:9x9=20,set:9x9=20").unwrap()
    };
    let options = WorkloadOptions { rate: None, commands_max: Some(30_000), flush_every: 9000, ..Default::default() };
    let world = Arc::new(World::new(2, "x".into(), false));
    let workload = Workload::start(world.clone(), &spec, options);
    while !workload.is_finished() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut names = std::collections::BTreeMap::<String, u64>::new();
    for flow in 0..2 {
        let journal = world.take(flow, 1, usize::MAX, Duration::ZERO).unwrap();
        assert_eq!(journal.next_lsn, world.next_lsns()[flow]);
        let starts = crate::lab::journal::entry_starts(&journal.bytes).unwrap();
        assert_eq!(starts.len() as u64, journal.next_lsn - 1);
        for start in starts {
            // SELECT db, COMMAND; then numbers of one to five bytes, of which the name's length is the last before a letter.
            let letters = journal.bytes[start + 3..].iter().skip_while(|b| !b.is_ascii_uppercase());
            let letters: String = letters.take_while(|b| b.is_ascii_uppercase()).map(|b| *b as char).collect();
            *names.entry(letters).or_default() += 1;
        }
    }
    for name in [
        "SET", "MSET", "APPEND", "INCR", "RESTORE", "SREM", "XADD", "XCLAIM", "XGROUP", "RENAME", "FLUSHDB", "ZADD",
        "MOVE",
    ] {
        assert!(names.contains_key(name), "{name} in {names:?}");
    }
}

/// Before 1.35 a partial sync goes through DFLY SYNC: blobs from the LSN on, then JOURNAL_OFFSET and the token.
#[test]
fn old_releases_grant_partial_syncs_by_sync() {
    use std::io::{BufRead, BufReader, Read, Write};
    let spec =
        Spec { flows_count: 1, release: crate::lab::generate::Release::Old, ..Spec::of("string:10B=1").unwrap() };
    let live = Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap();
    (0..5).for_each(|i| drop(live.world().run(0, &[b"SET".to_vec(), b"k".to_vec(), vec![b'0' + i]])));
    let connect = || BufReader::new(std::net::TcpStream::connect(("127.0.0.1", live.port())).unwrap());
    let ask = |wire: &mut BufReader<std::net::TcpStream>, line: &str, lines: usize| -> Vec<String> {
        wire.get_mut().write_all(format!("{line}\r\n").as_bytes()).unwrap();
        wire.by_ref().lines().take(lines).map(Result::unwrap).collect()
    };
    let (mut main, mut flow) = (connect(), connect());
    let capa = ask(&mut main, "REPLCONF capa dragonfly", 5);
    ask(&mut main, "REPLCONF CLIENT-ID me", 1);
    let opened = ask(&mut flow, &format!("DFLY FLOW {} {} 0 4", &capa[1][1..], &capa[2][1..]), 3);
    assert_eq!(opened[1], "+PARTIAL");
    assert_eq!(ask(&mut main, &format!("DFLY STARTSTABLE {}", &capa[2][1..]), 1), ["-ERR invalid state"]);
    assert_eq!(ask(&mut main, &format!("DFLY SYNC {}", &capa[2][1..]), 1), ["+OK"]);
    let mut got = Vec::new();
    let end = [0xc8, 0, 0, 0, 0, 0, 0, 0, 0];
    while !got.ends_with(&end) {
        let bytes = flow.fill_buf().unwrap().to_vec();
        assert!(!bytes.is_empty());
        flow.consume(bytes.len());
        got.extend(bytes);
    }
    assert!(got.starts_with(b"REDIS0009"));
    assert_eq!(memchr::memmem::find_iter(&got, b"\x03SET\x01k").count(), 2);
    assert_eq!(ask(&mut main, &format!("DFLY STARTSTABLE {}", &capa[2][1..]), 1), ["+OK"]);
    let mut tail = vec![0; 9 + 9 + 40];
    flow.read_exact(&mut tail).unwrap();
    assert_eq!(tail[..9], [0xd3, 6, 0, 0, 0, 0, 0, 0, 0]);
    assert!(tail.ends_with(&opened[2].as_bytes()[1..]));
    live.world().run(0, &[b"INCR".to_vec(), b"n".to_vec()]);
    let mut record = vec![0; 13];
    flow.read_exact(&mut record).unwrap();
    assert!(record.starts_with(&[6, 0, 10]), "{record:?}");
    assert_eq!(live.master().unwrap().violations(), []);
}

#[test]
fn floats_are_written_as_dragonfly_does() {
    for (value, text) in [
        (0.1 + 0.2, "0.30000000000000004"),
        (10.5, "10.5"),
        (-3.0, "-3"),
        (1e20, "100000000000000000000"),
        (1e21, "1e+21"),
        (1.5e-7, "1.5e-7"),
        (-1e-6, "-0.000001"),
        (0.05, "0.05"),
        (123456.0, "123456"),
        // .2 and .3 are as near: the even one.
        (1_024_570_247_051_402.0 + 0.25, "1024570247051402.2"),
        (-1_024_570_247_051_402.0 - 0.75, "-1024570247051402.8"),
        (f64::MAX, "1.7976931348623157e+308"),
        (5e-324, "5e-324"),
    ] {
        assert_eq!(String::from_utf8(super::exec::float_text(value)).unwrap(), text);
    }
}
