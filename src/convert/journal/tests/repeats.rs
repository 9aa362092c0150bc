//! Whether Blind commands are: repeated on real servers, at random and along known counterexamples.

use super::super::*;
use super::server::{Server, binaries};
use super::support::*;

/// What the classes promise (header of `table.rs`): a run of Blind commands applied twice ends as applied once.
#[test]
fn blind_runs_may_be_repeated() {
    const COMMON: &[&str] = &[
        "DEL k",
        "DEL l k",
        "PEXPIREAT k 4000000001000",
        "PERSIST k",
        "RENAME k l",
        "RENAME l k",
        "SORT k ALPHA STORE l",
    ];
    const FAMILIES: &[&[&str]] = &[
        &[
            "SET k v",
            "SET k v PXAT 4000000000000",
            "SET k w KEEPTTL",
            "SETNX k n",
            "GETSET k g",
            "GETDEL k",
            "MSET k m l m",
            "SETRANGE k 3 xy",
            "SETBIT k 9 1",
            "SETBIT k 9 0",
            "BITFIELD k SET u8 0 7",
            "APPEND k a",
            "INCR k",
            "PREPEND k p",
            "SADD k a",
            "SREM k a",
            "PFADD k a b",
            "PFADD k c",
        ],
        &[
            "HSET k a 1",
            "HSET k a 2 b 2",
            "HSETNX k b 9",
            "HDEL k a",
            "HDEL k b",
            "HINCRBY k a 1",
            "SET k v",
            "HSETEX k 1000 a 3",
            "HSETEX k NX 1000 c 4",
            "HEXPIRE k 1000 FIELDS 1 a",
            "HEXPIRE k 0 FIELDS 1 b",
        ],
        &["SADD k a", "SADD k b c", "SREM k a", "SREM k b c", "SREM k b", "RPUSH k a"],
        &[
            "ZADD k 1 a",
            "ZADD k 2 a 3 b",
            "ZADD k NX 7 a",
            "ZADD k GT 5 a",
            "ZREM k a",
            "ZREMRANGEBYSCORE k 0 2",
            "ZPOPMIN k",
            "GEOADD k 1 2 a",
            "SADD k a",
        ],
        &[
            "RPUSH k a b",
            "LSET k 0 x",
            "LSET k -1 y",
            "LTRIM k 0 1",
            "LTRIM k 1 -1",
            "LPOP k",
            "LREM k 0 a",
            "LINSERT k BEFORE a z",
        ],
        &[
            "XADD k 5-1 f v",
            "XADD k MINID 6-0 6-1 f v",
            "XADD k MAXLEN 0 7-1 f v",
            "XTRIM k MAXLEN 0",
            "XTRIM k MINID 6-0",
            "XDEL k 5-1",
            "XDEL k 7-1",
        ],
    ];
    // Those of the header, and their likes.
    const COUNTEREXAMPLES: &[&str] = &[
        "SADD k a b, PEXPIREAT k 4000000001000, SREM k a, SADD k a, SREM k b",
        "HSET k a 1 b 1, PEXPIREAT k 4000000001000, HDEL k a, HSET k a 1, HDEL k b",
        "ZADD k 1 a 1 b, PEXPIREAT k 4000000001000, ZREM k a, ZADD k 1 a, ZREM k b",
        "ZADD k 9 a, PEXPIREAT k 4000000001000, ZREMRANGEBYSCORE k 0 5, ZADD k 3 a",
        "XADD k 5-1 f v, XTRIM k MAXLEN 0, XADD k 6-1 f v",
        "XADD k 5-1 f v, XTRIM k MINID 9-0, XADD k 7-1 f v",
        "XADD k 5-1 f v, XDEL k 6-1, XADD k 6-1 f v",
        "RPUSH k a b c, LSET k -1 x, LTRIM k 0 1",
        "SET k 1, RENAME k l, SET k 2",
        "SET k v, SETNX k n, RENAME k l",
        "PFADD k a b, SETBIT k 9 1",
    ];
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut pick = move |count: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random >> 33).unwrap() % count
    };
    for binary in binaries() {
        let mut server = Server::start(&binary);
        let capabilities = server.capabilities();
        let mut translator = JournalTranslator::new(FlowId(0), Arc::new(capabilities), Arc::new(skip_all()), 1 << 20);
        for line in COUNTEREXAMPLES {
            let records: Vec<&str> = line.split(", ").collect();
            check_repeats(&mut server, &mut translator, &records);
            (0..4).for_each(|_| check_gaps(&mut server, &mut translator, &records, &mut pick));
        }
        for round in 0..90 {
            let family = FAMILIES[round % FAMILIES.len()];
            let mut next = || match pick(4) {
                0 => COMMON[pick(COMMON.len())],
                _ => family[pick(family.len())],
            };
            let records: Vec<&str> = std::iter::repeat_with(&mut next).take(30).collect();
            check_repeats(&mut server, &mut translator, &records);
            check_gaps(&mut server, &mut translator, &records, &mut pick);
        }
    }
}

/// Applies the records in order; after each one, what came since the last Guarded command is applied again.
fn check_repeats(server: &mut Server, translator: &mut JournalTranslator, records: &[&str]) {
    server.ask("FLUSHALL");
    let mut run: Vec<(&str, Vec<u8>)> = Vec::new();
    for record in records {
        let mut sent = Sent::default();
        translator.command(DbIndex(0), 0, &split(record), 1_900_000_000_000, &mut Shown, &mut sent).unwrap();
        for (meta, bytes) in sent.commands {
            // A record is in the journal because it succeeded.
            let applied = !server.send(&bytes).starts_with('-');
            match meta.class {
                _ if !applied => {}
                Class::Blind | Class::Ordered => run.push((record, bytes)),
                Class::Guarded => run.clear(),
            }
        }
        if run.is_empty() {
            continue;
        }
        let once = state(server);
        for (_, bytes) in &run {
            server.send(bytes);
        }
        let names: Vec<_> = run.iter().map(|(record, _)| record).collect();
        assert_eq!(once, state(server), "repeated: {names:?}");
    }
}

/// A node of a cluster may execute some of a run and some not: all that stands behind the first one on its keys is executed again
/// then (`engine::again`), and the end is the same. An XADD is sent like a Guarded command there.
fn check_gaps(
    server: &mut Server,
    translator: &mut JournalTranslator,
    records: &[&str],
    mut pick: impl FnMut(usize) -> usize,
) {
    server.ask("FLUSHALL");
    let mut before: Vec<Vec<u8>> = Vec::new();
    let mut run: Vec<Vec<u8>> = Vec::new();
    for record in records {
        let mut sent = Sent::default();
        translator.command(DbIndex(0), 0, &split(record), 1_900_000_000_000, &mut Shown, &mut sent).unwrap();
        for (meta, bytes) in sent.commands {
            match meta.class {
                _ if server.send(&bytes).starts_with('-') => {}
                Class::Blind => run.push(bytes),
                Class::Ordered | Class::Guarded => {
                    before.append(&mut run);
                    before.push(bytes);
                }
            }
        }
        if run.len() < 2 {
            continue;
        }
        let whole = state(server);
        server.ask("FLUSHALL");
        before.iter().for_each(|bytes| drop(server.send(bytes)));
        let mut missed: Vec<Vec<u8>> = Vec::new();
        let mut again: Vec<&Vec<u8>> = Vec::new();
        let shown: Vec<_> = run.iter().map(|bytes| String::from_utf8_lossy(bytes).replace("\r\n", " ")).collect();
        for bytes in &run {
            let strings = strings(bytes);
            let strings: Vec<&[u8]> = strings.iter().map(Vec::as_slice).collect();
            let keys: Vec<Vec<u8>> = keys_of(&strings).map(<[u8]>::to_vec).collect();
            let executed = pick(3) > 0;
            if executed {
                server.send(bytes);
            }
            if !executed || keys.iter().any(|key| missed.contains(key)) {
                missed.extend(keys);
                again.push(bytes);
            }
        }
        again.iter().for_each(|bytes| drop(server.send(bytes)));
        assert_eq!(whole, state(server), "with gaps: {shown:?}");
    }
}

/// Type, value and expiry of the two keys.
fn state(server: &mut Server) -> Vec<String> {
    let mut state = Vec::new();
    for key in ["k", "l"] {
        let question = match server.ask(&format!("TYPE {key}")).as_str() {
            "string" => "GET",
            "hash" => "HGETALL",
            "set" => "SMEMBERS",
            "zset" => "ZRANGE 0 -1 WITHSCORES",
            "list" => "LRANGE 0 -1",
            "stream" => "XRANGE - +",
            _ => continue,
        };
        let (name, rest) = question.split_once(' ').unwrap_or((question, ""));
        let mut reply = server.ask(format!("{name} {key} {rest}").trim());
        if matches!(name, "HGETALL" | "SMEMBERS") {
            let words: Vec<&str> = reply.split(' ').collect();
            let mut groups: Vec<String> =
                words.chunks(if name == "HGETALL" { 2 } else { 1 }).map(|group| group.join("=")).collect();
            groups.sort();
            reply = groups.join(" ");
        }
        let expiry = server.ask(&format!("PEXPIRETIME {key}"));
        let fields = server.ask(&format!("HPEXPIRETIME {key} FIELDS 3 a b c"));
        state.push(format!("{key} {name} {reply} at {expiry} fields {fields}"));
    }
    state
}
