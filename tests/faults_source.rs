//! What a source may say that is strange, large, stale or broken, through the whole program into a real server.

mod common;

use common::*;
use df2redis::lab::encode::{self as enc, BlobCodec, types};
use df2redis::lab::flow::Faults;
use df2redis::lab::live::world::now_ms;
use df2redis::lab::master::{MasterOptions, Scripted};
use df2redis::lab::recordings;
use df2redis::lab::replay::Replay;
use df2redis::lab::servers::ServerKind;
use std::time::Duration;

fn hyll(mark: u8, len: usize) -> Vec<u8> {
    let mut value = b"HYLL\x01\0\0\0\0\0\0\0\0\0\0\x80".to_vec();
    value.resize(len, mark);
    value
}

/// A key that hashes to `flow` of 3 (with `tag`: by its tag).
fn key_on(flow: usize, prefix: &str, tag: bool) -> Vec<u8> {
    (0..)
        .map(|i: u32| {
            if tag {
                (format!("{{t{i}}}{prefix}"), format!("t{i}"))
            } else {
                (format!("{prefix}{i}"), format!("{prefix}{i}"))
            }
        })
        .find(|(_, hashed)| enc::owner(hashed.as_bytes(), 3) == flow)
        .map(|(key, _)| key.into_bytes())
        .unwrap()
}

/// Three flows with plain keys by the rule, among them tagged ones.
fn by_rule(tag: bool) -> Vec<FlowBytes> {
    let mut flows = vec![FlowBytes::new(); 3];
    for i in 0..300 {
        let key = if tag { format!("{{g{i}}}:k") } else { format!("k{{{}}}{i}", i % 7) };
        let hashed = if tag { format!("g{i}") } else { key.clone() };
        flows[enc::owner(hashed.as_bytes(), 3)].string(key.as_bytes(), b"plain");
    }
    flows
}

#[test]
fn strays_are_dropped_in_both_orders() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut client = server.client().unwrap();
    for (tag, late, len, more) in [
        (false, 0, 3000, &["--cores", "1"][..]),
        (false, 1, 12304, &["--cores", "1", "--restore-bytes-max", "256"]),
        (true, 0, 12304, &["--cores", "2"]),
        (true, 1, 300, &["--cores", "2", "--rx-chunk", "16KiB"]),
    ] {
        client.run("FLUSHALL").unwrap();
        let mut flows = by_rule(tag);
        let (overwritten, deleted, journaled) =
            (key_on(0, "over", tag), key_on(0, "gone", tag), key_on(0, "journal", tag));
        // The truth is on flow 0; 1 and 2 hold stale copies of what was overwritten or deleted since.
        flows[0].string(&overwritten, b"the truth").string(&journaled, &hyll(1, len));
        for flow in [1, 2] {
            flows[flow].string(&overwritten, &hyll(9, len)).string(&deleted, &hyll(9, len));
            flows[flow].journal(0, &[b"SET".to_vec(), journaled.clone(), hyll(9, len)]);
        }
        let faults = (0..3)
            .filter(|flow| (*flow == 0) == (late == 0))
            .fold(Faults::default(), |faults, flow| faults.stall(flow, 9, Duration::from_millis(400)));
        let master = Hand::new(flows).faulty(faults);
        migrate(master.port(), server.port(), more).expect_code(0);
        let get =
            |client: &mut df2redis::lab::client::Client, key: &[u8]| client.ask(&[b"GET".as_slice(), key]).unwrap();
        assert_eq!(get(&mut client, &overwritten).bytes(), Some(&b"the truth"[..]), "tag {tag}, late {late}");
        assert_eq!(get(&mut client, &journaled).bytes(), Some(&hyll(1, len)[..]), "tag {tag}, late {late}");
        assert_eq!(get(&mut client, &deleted).bytes(), None, "tag {tag}, late {late}");
        assert_eq!(client.run("DBSIZE").unwrap().int(), Some(302));
    }
}

#[test]
fn nothing_is_dropped_where_no_rule_fits() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut flows = vec![FlowBytes::new(); 3];
    for i in 0..300 {
        flows[i % 3].string(format!("k{i}").as_bytes(), b"plain");
        flows[i % 3].string(format!("h{i}").as_bytes(), &hyll(3, 100));
    }
    let master = Hand::new(flows).start();
    migrate(master.port(), server.port(), &[]).expect_code(0);
    assert_eq!(server.client().unwrap().run("DBSIZE").unwrap().int(), Some(600));
}

#[test]
fn suspects_are_asked_for_at_the_source() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut flow = FlowBytes::new();
    flow.journal(0, &["MSET", "gone", "1", "kept", "2"]).journal(5, &["SETNX", "gone-too", "3"]);
    // A baseline that comes later settles it: the source held it then.
    flow.journal(0, &["MSET", "settled", "1"]).string(b"settled", b"2");
    let master = Hand::new(vec![flow]).holds(0, b"kept").start();
    let run = migrate(master.port(), server.port(), &[]);
    run.expect_code(0);
    let found: Vec<_> = contents(&mut server.client().unwrap())
        .into_keys()
        .map(|(db, key)| (db, String::from_utf8(key).unwrap()))
        .collect();
    assert_eq!(found, [(0, "kept".into()), (0, "settled".into())]);
    assert_eq!(run.report["suspects"]["asked"], 3, "{}", run.report["suspects"]);
    assert_eq!(run.report["suspects"]["removed"], 2, "{}", run.report["suspects"]);
}

/// What releases before 1.40 record of a GETEX without options, before 1.41 of a GAT with 0, and before 1.35 of a SPOP of nothing.
#[test]
fn regression_a_read_that_is_recorded_as_an_expiry_deletes_nothing() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let now_ms = now_ms();
    let now = now_ms.to_string();
    let mut flow = FlowBytes::new();
    flow.string(b"read", b"1").string(b"expired", b"2").string_until(b"persisted", b"3", Some(now_ms + 3_000_000));
    flow.journal(0, &["PEXPIREAT", "read", &now]).journal(0, &["PEXPIREAT", "persisted", "0"]);
    // A short one, that has passed.
    flow.journal(0, &["PEXPIREAT", "expired", &now]);
    flow.journal(0, &["SREM", "none"]).journal(0, &["PFCOUNT", "none"]);
    let master = Hand::new(vec![flow]).holds(0, b"read").holds(0, b"persisted").release("df-v1.34.0").start();
    migrate(master.port(), server.port(), &[]).expect_code(0);
    let mut client = server.client().unwrap();
    let found: Vec<_> = contents(&mut client).into_keys().map(|(_, key)| key).collect();
    assert_eq!(found, [b"persisted".to_vec(), b"read".to_vec()]);
    assert_eq!(client.run("PTTL persisted").unwrap().int(), Some(-1));
    assert_eq!(client.run("PTTL read").unwrap().int(), Some(-1));
}

/// What another process does not hold, the one that was copied may have held.
#[test]
fn suspects_are_not_deleted_on_another_processs_word() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut flow = FlowBytes::new();
    flow.journal(0, &["MSET", "gone", "1", "kept", "2"]);
    // Whoever connects after the registration finds a process that holds nothing.
    let options = MasterOptions { new_id_after: Some(1), ..MasterOptions::default() };
    let master = Hand::new(vec![flow]).start_with(options);
    let run = migrate(master.port(), server.port(), &[]);
    assert_ne!(run.code(), 0, "{}", run.message());
    run.expect_text("restarted, or failed over");
    assert!(!master.requests().iter().any(|asked| asked.starts_with("EXISTS")), "{:?}", master.requests());
    let found: Vec<_> = contents(&mut server.client().unwrap()).into_keys().map(|(_, key)| key).collect();
    assert_eq!(found, [b"gone".to_vec(), b"kept".to_vec()]);
}

fn flushed_source() -> Hand {
    let mut first = vec![FlowBytes::new(), FlowBytes::new()];
    for flow in &mut first {
        (0..3000).for_each(|i| _ = flow.string(format!("old{i}").as_bytes(), &noise(i + 1, 200)));
    }
    first[0].journal(0, &["FLUSHALL"]);
    let mut second = vec![FlowBytes::new(), FlowBytes::new()];
    second[0].string(b"new", b"1").journal(0, &["INCR", "new"]);
    second[1].list(b"list", &texts("x", 500), 50);
    Hand::new(first).then(second)
}

#[test]
fn a_flush_during_the_full_sync_begins_it_anew() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    for _ in 0..5 {
        server.client().unwrap().run("FLUSHALL").unwrap();
        let master = flushed_source().start();
        let run = migrate(master.port(), server.port(), &["--cores", "2", "--restore-bytes-max", "1KiB"]);
        run.expect_code(0);
        assert_eq!(master.registrations_count(), 2);
        assert_eq!(master.violations(), []);
        let found = contents(&mut server.client().unwrap());
        let keys: Vec<_> = found.keys().map(|(_, key)| String::from_utf8_lossy(key).into_owned()).collect();
        assert_eq!(keys, ["list", "new"]);
        assert_eq!(found[&(0, b"new".to_vec())].1, [b"2".to_vec()]);
        assert_eq!(found[&(0, b"list".to_vec())].1.len(), 500);
    }
}

#[test]
fn a_flush_is_refused_where_the_target_holds_other_keys() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut client = server.client().unwrap();
    client.run("SET mine 1").unwrap();
    let master = flushed_source().start();
    let run = migrate(master.port(), server.port(), &["--on-existing", "replace"]);
    run.expect_code(4).expect_text("FLUSHALL").expect_text("keys of its own");
    assert_eq!(client.run("GET mine").unwrap().text().unwrap(), "1");
}

/// Sixteen databases, several split objects open at once, and between their chunks whole keys, blobs and journal.
#[test]
fn interleaved_chunks_in_all_databases() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut flow = FlowBytes::new();
    let lists: Vec<Vec<Vec<u8>>> = (0..16).map(|db| texts(&format!("d{db}"), 600)).collect();
    let mut bodies: Vec<Vec<Vec<u8>>> = Vec::new();
    for (db, elements) in lists.iter().enumerate() {
        flow.db(db as u32);
        // First chunks: head, count and one node; the rest follows in later chunks.
        let mut pieces: Vec<Vec<u8>> = Vec::new();
        for (n, node) in elements.chunks(100).enumerate() {
            let mut piece = Vec::new();
            if n == 0 {
                enc::key_head(&mut piece, enc::Attributes::default(), types::LIST_NODES, b"split", false);
                enc::packed(&mut piece, 6);
            }
            let mut body = Vec::new();
            list_body(&mut body, node, 100);
            piece.extend_from_slice(&body[1..]);
            pieces.push(piece);
        }
        enc::tagged_chunk(&mut flow.snapshot, 100 + db as u32, &pieces.remove(0));
        bodies.push(pieces);
    }
    for round in 0..5 {
        for (db, pieces) in bodies.iter().enumerate() {
            let mut chunk = Vec::new();
            enc::tagged_chunk(&mut chunk, 100 + db as u32, &pieces[round]);
            if (db + round) % 3 == 0 {
                enc::compressed_blob(&mut flow.snapshot, BlobCodec::Lz4, &chunk).unwrap();
            } else {
                flow.snapshot.extend_from_slice(&chunk);
            }
            flow.db((15 - db) as u32).string(format!("r{round}").as_bytes(), b"whole");
            flow.journal((db as u32 + 3) % 16, &["INCR", "count"]);
        }
    }
    for more in [&["--restore-bytes-max", "256"][..], &["--restore-bytes-max", "1MiB"]] {
        let mut client = server.client().unwrap();
        client.run("FLUSHALL").unwrap();
        let master = Hand::new(vec![flow.clone()]).start();
        migrate(master.port(), server.port(), more).expect_code(0);
        let found = contents(&mut client);
        assert_eq!(found.len(), 16 * 7);
        for db in 0..16u32 {
            assert!(found[&(db, b"split".to_vec())].1 == lists[db as usize], "db {db}");
            assert_eq!(found[&(db, b"count".to_vec())].1, [b"5".to_vec()]);
        }
    }
}

/// Lengths at each border between two ways, for each way of a value to be long.
#[test]
fn lengths_at_every_threshold() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut lengths: Vec<usize> = [64usize, 1024, 2048, 16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10]
        .iter()
        .flat_map(|base| (base - 16)..=(base + 3))
        .collect();
    lengths.extend([(1 << 20) - 1, 1 << 20, (1 << 20) + 1, (4 << 20) - 1, 4 << 20, (4 << 20) + 1]);
    let bytes = noise(3, 5 << 20);
    let mut flow = FlowBytes::new();
    for (i, len) in lengths.iter().enumerate() {
        flow.string(format!("s{i}").as_bytes(), &bytes[..*len]);
        if *len <= 300_000 {
            flow.object(types::HASH, format!("h{i}").as_bytes(), |out| {
                enc::packed(out, 2);
                [b"f".as_slice(), &bytes[..*len], b"g", b"v"].iter().for_each(|text| enc::string(out, text, false));
            });
            flow.list(format!("l{i}").as_bytes(), &[bytes[..*len].to_vec(), b"end".to_vec()], 1);
        }
    }
    for more in [
        &["--rx-chunk", "64KiB"][..],
        &["--rx-chunk", "256KiB", "--restore-bytes-max", "64KiB"],
        &["--rx-chunk", "4KiB"],
    ] {
        let mut client = server.client().unwrap();
        client.run("FLUSHALL").unwrap();
        let master = Hand::new(vec![flow.clone()]).start();
        migrate(master.port(), server.port(), more).expect_code(0);
        for (i, len) in lengths.iter().enumerate() {
            let reply = client.ask(&["GET", &format!("s{i}")]).unwrap();
            assert!(reply.bytes() == Some(&bytes[..*len]), "string of {len}, {more:?}");
            if *len <= 300_000 {
                let reply = client.ask(&["HGET", &format!("h{i}"), "f"]).unwrap();
                assert!(reply.bytes() == Some(&bytes[..*len]), "field of {len}, {more:?}");
                let reply = client.ask(&["LINDEX", &format!("l{i}"), "0"]).unwrap();
                assert!(reply.bytes() == Some(&bytes[..*len]), "element of {len}, {more:?}");
            }
        }
    }
}

#[test]
fn huge_values() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let (string, json, field) = (noise(1, 40 << 20), vec![b'7'; 20 << 20], noise(2, 10 << 20));
    let elements = texts("element", 1_000_000);
    let mut flows = vec![FlowBytes::new(), FlowBytes::new()];
    flows[0].string(b"string", &string).list(b"list", &elements, 300);
    flows[1].object(types::JSON, b"json", |out| enc::string(out, &json, false));
    flows[1].object(types::HASH, b"hash", |out| {
        enc::packed(out, 1);
        enc::string(out, b"f", false);
        enc::string(out, &field, false);
    });
    let master = Hand::new(flows).start();
    let run = migrate(
        master.port(),
        server.port(),
        &["--memory", "256MiB", "--cores", "1", "--on-unsupported", "json=string"],
    );
    run.expect_code(0);
    let mut client = server.client().unwrap();
    assert!(client.run("GET string").unwrap().bytes() == Some(&string));
    assert!(client.run("GET json").unwrap().bytes() == Some(&json));
    assert!(client.ask(&["HGET", "hash", "f"]).unwrap().bytes() == Some(&field));
    let list = client.run("LRANGE list 0 -1").unwrap();
    let list = list.array().unwrap();
    assert!(list.len() == elements.len() && list.iter().zip(&elements).all(|(got, right)| got.bytes() == Some(right)));
    let rss = run.report["rss_bytes_peak"].as_u64().unwrap();
    assert!(rss < 300 << 20, "{rss}");
}

/// A record of thousands of long arguments is one command, and one vector of the kernel takes 1024 parts.
#[test]
fn a_journal_record_of_very_many_long_arguments() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut args = vec![b"RPUSH".to_vec(), b"list".to_vec()];
    args.extend((0..3000).map(|i| noise(i + 1, 2500)));
    let mut flow = FlowBytes::new();
    flow.journal(0, &args).string(b"after", b"1");
    let master = Hand::new(vec![flow]).start();
    migrate(master.port(), server.port(), &[]).expect_code(0);
    let mut client = server.client().unwrap();
    let list = client.run("LRANGE list 0 -1").unwrap();
    assert!(list.array().unwrap().iter().zip(&args[2..]).all(|(got, right)| got.bytes() == Some(right)));
    assert_eq!(list.array().unwrap().len(), 3000);
}

/// Little memory, eight flows on one worker, and each in the middle of something long: no deadlock, bounded memory.
#[test]
fn little_memory_and_many_flows() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let mut flows = Vec::new();
    for f in 0..8u64 {
        let mut flow = FlowBytes::new();
        for round in 0..3u64 {
            flow.string(format!("s:{f}:{round}").as_bytes(), &noise(f * 10 + round + 1, 3_000_000));
            // Half compressible, so that the frame is long and its content has values longer than a chunk.
            let mut content = Vec::new();
            for i in 0..2u64 {
                let mut value = noise(f + round + i + 1, 300_000);
                value.extend_from_slice(&[b'z'; 200_000]);
                enc::key_head(
                    &mut content,
                    enc::Attributes::default(),
                    types::HASH,
                    format!("h:{f}:{round}:{i}").as_bytes(),
                    false,
                );
                enc::packed(&mut content, 1);
                enc::string(&mut content, b"f", false);
                enc::string(&mut content, &value, false);
            }
            enc::compressed_blob(&mut flow.snapshot, BlobCodec::Lz4, &content).unwrap();
            flow.object(types::HASH, format!("j:{f}:{round}").as_bytes(), |out| {
                enc::packed(out, 1);
                enc::string(out, b"f", false);
                enc::string(out, &noise(f + 5, 700_000), false);
            });
        }
        flows.push(flow);
    }
    for more in [&["--connections", "2"][..], &["--connections", "1", "--rx-chunk", "64KiB", "--window-bytes", "64KiB"]]
    {
        let mut client = server.client().unwrap();
        client.run("FLUSHALL").unwrap();
        let master = Hand::new(flows.clone()).start();
        let mut args = vec!["--memory", "32MiB", "--cores", "1"];
        args.extend_from_slice(more);
        let run = migrate(master.port(), server.port(), &args);
        run.expect_code(0);
        assert_eq!(client.run("DBSIZE").unwrap().int(), Some(8 * 3 * 4));
        for f in 0..8u64 {
            let value = client.ask(&["GET", &format!("s:{f}:2")]).unwrap();
            assert!(value.bytes() == Some(&noise(f * 10 + 3, 3_000_000)), "flow {f}");
            assert_eq!(client.ask(&["HSTRLEN", &format!("h:{f}:1:1"), "f"]).unwrap().int(), Some(500_000));
        }
        let rss = run.report["rss_bytes_peak"].as_u64().unwrap();
        assert!(rss < 96 << 20, "{rss} bytes with --memory 32MiB");
    }
}

#[test]
fn a_key_at_the_limit_and_one_beyond() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let longest = noise(4, 32 << 10);
    let mut flow = FlowBytes::new();
    flow.string(&longest, b"v").object(types::SET, &longest[1..], |out| {
        enc::packed(out, 1);
        enc::string(out, b"m", false);
    });
    let master = Hand::new(vec![flow]).start();
    migrate(master.port(), server.port(), &["--rx-chunk", "64KiB"]).expect_code(0);
    assert_eq!(server.client().unwrap().ask(&[b"GET".as_slice(), &longest]).unwrap().bytes(), Some(&b"v"[..]));

    let mut flow = FlowBytes::new();
    flow.string(&noise(4, (32 << 10) + 1), b"v");
    let master = Hand::new(vec![flow]).start();
    let run = migrate(master.port(), server.port(), &["--rx-chunk", "64KiB", "--on-existing", "flush"]);
    run.expect_code(3).expect_text("32768").expect_text("longest key").expect_text("--rx-chunk");
}

#[test]
fn what_a_source_answers_in_place_of_the_right_thing() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    for (request, reply, code, text) in [
        ("INFO", "-NOAUTH Authentication required.\r\n", 4, "password"),
        ("REPLCONF CAPA DRAGONFLY", "+OK\r\n", 3, "no Dragonfly"),
        ("REPLCONF LISTENING-PORT", "-ERR Replicating a replica is unsupported\r\n", 3, "connect to its master"),
        (
            "REPLCONF LISTENING-PORT",
            "-NOPERM default has no ACL permissions\r\n",
            4,
            "may not run REPLCONF listening-port",
        ),
        ("REPLCONF", "-ERR Cannot execute restricted command (admin only)\r\n", 4, "admin port"),
        ("DFLY FLOW", "-LOADING Dragonfly is loading the dataset in memory\r\n", 4, "loading its data set"),
        ("DFLY FLOW", "-ERR bad master id\r\n", 4, "restarted in between"),
        ("DFLY FLOW", "*2\r\n+PARTIAL\r\n+0123456789012345678901234567890123456789\r\n", 4, "partial"),
        ("DFLY SYNC", "-ERR Can not execute during SHUTTING_DOWN\r\n", 4, "shutting down"),
        ("DFLY STARTSTABLE", "-ERR syncid not found\r\n", 4, ""),
        ("REPLCONF CAPA DRAGONFLY", "*3\r\n+x\r\n+SYNC1\r\n:2\r\n", 4, "registration cannot be used"),
        (
            "REPLCONF CAPA DRAGONFLY",
            "*3\r\n+0123456789012345678901234567890123456789\r\n+SYNC1\r\n:65535\r\n",
            4,
            "registration cannot be used",
        ),
        ("REPLCONF CAPA DRAGONFLY", "*99999999\r\n", 4, ""),
        ("REPLCONF CAPA DRAGONFLY", "$2000000000\r\nabc", 4, ""),
        ("DFLY FLOW", "", 4, "closed the connection"),
    ] {
        let scripted = vec![Scripted { request: request.into(), reply: reply.as_bytes().to_vec(), times: u32::MAX }];
        let mut flow = FlowBytes::new();
        flow.string(b"k", b"v");
        let master = Hand::new(vec![flow]).start_with(MasterOptions { scripted, ..MasterOptions::default() });
        let run = migrate(master.port(), server.port(), &["--on-existing", "flush", "--connect-timeout", "2s"]);
        assert_eq!(run.code(), code, "{request} -> {reply:?}: {}", run.message());
        assert!(run.message().contains(text), "{request} -> {reply:?}: {}", run.message());
        assert_eq!(master.violations(), [], "{request} -> {reply:?}");
    }
}

#[test]
fn a_redis_is_no_source() {
    let (Some(source), Some(target)) = (server(ServerKind::Redis7), server(ServerKind::Redis7)) else { return };
    migrate(source.port(), target.port(), &[]).expect_code(3).expect_text("no Dragonfly");
}

/// Bytes changed or cut anywhere: an error that says so, or where the format cannot tell, a success; never a panic, a hang
/// or memory beyond the bound.
fn garbled(name: &str) {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let count = std::env::var("DF2REDIS_TEST_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(14u64);
    for seed in 0..count {
        let recording = recordings::recording(name).unwrap();
        let draw = |salt: u64, below: u64| {
            let bytes: [u8; 8] = noise(seed * 97 + salt + 1, 400)[392..].try_into().unwrap();
            u64::from_le_bytes(bytes) % below.max(1)
        };
        let flow = draw(1, recording.flows.len() as u64) as usize;
        let len = recording.snapshot_bytes(flow) as u64;
        // Half of the places near the front, where lengths and heads are dense.
        let at = if seed % 2 == 0 { draw(2, len) } else { draw(3, 4000.min(len)) };
        let faults = match seed % 3 {
            0 => Faults::default().cut_at(flow as u32, at),
            _ => Faults::default().garble(flow as u32, at, draw(4, 255) as u8 + 1),
        };
        let what = format!("{name}, seed {seed}: {:?}", faults.at);
        let options = MasterOptions { faults, ..MasterOptions::default() };
        let master = Replay::start(recording, options).unwrap();
        let args = ["--on-unsupported", "skip", "--on-existing", "flush", "--memory", "64MiB"];
        let run = start(migrate_command(master.port(), server.port(), &args)).wait_for(Duration::from_secs(20));
        assert!([0, 3, 4, 5, 6].contains(&run.code()), "{what}: exit {}: {}", run.code(), run.stderr);
        assert!(seed % 3 != 0 || run.code() == 4, "{what}: a cut is an error of the source: {}", run.stderr);
        let rss = run.report["rss_bytes_peak"].as_u64().unwrap();
        assert!(rss < 160 << 20, "{what}: {rss} bytes");
    }
}

#[test]
fn garbled_lz4() {
    garbled("snapshot-lz4");
}

#[test]
fn garbled_zstd() {
    garbled("snapshot-zstd");
}

#[test]
fn garbled_lzf() {
    garbled("snapshot-lzf");
}

#[test]
fn garbled_plain() {
    garbled("snapshot-plain-untagged");
}

#[test]
fn garbled_small_chunks() {
    garbled("snapshot-small-chunks");
}

#[test]
fn garbled_journal() {
    garbled("follow-plain");
}

/// A session that is renewed while the sync runs, its old expiry long past when the renewal is applied (wire 6.34).
#[test]
fn a_key_renewed_during_the_sync_never_vanishes() {
    let Some(server) = server(ServerKind::Redis7) else { return };
    let soon = (std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64) - 500;
    let (soon, later) = (soon.to_string(), (soon + 3_600_000 * 5).to_string());
    let mut flow = FlowBytes::new();
    flow.journal(0, &["SET", "session", "v", "PXAT", &soon]).journal(0, &["APPEND", "session", "w"]);
    flow.journal(0, &["SET", "kept", "v", "PXAT", &soon]).journal(0, &["PERSIST", "kept"]);
    flow.journal(0, &["SET", "moved", "v", "PXAT", &soon]).journal(0, &["RENAME", "moved", "renamed"]);
    flow.journal(0, &["SET", "expired", "v", "PXAT", &soon]);
    flow.journal(0, &["PEXPIREAT", "session", &later]).journal(0, &["PEXPIREAT", "renamed", &later]);
    let master = Hand::new(vec![flow]).start();
    let run = migrate(master.port(), server.port(), &[]);
    run.expect_code(0);
    let mut client = server.client().unwrap();
    let found: Vec<_> = contents(&mut client).into_keys().map(|(_, key)| String::from_utf8(key).unwrap()).collect();
    assert_eq!(found, ["kept", "renamed", "session"]);
    assert_eq!(client.run("GET session").unwrap().bytes(), Some(&b"vw"[..]));
    for (key, at) in [("session", later.parse().unwrap()), ("renamed", later.parse().unwrap()), ("kept", -1)] {
        assert_eq!(client.ask(&["PEXPIRETIME", key]).unwrap().int(), Some(at), "{key}");
    }
    assert_eq!(run.report["expiries"]["held"], 4, "{}", run.report["expiries"]);
    assert_eq!(run.report["expiries"]["passed_at_release"], 1, "{}", run.report["expiries"]);
}
