//! What each record becomes, by target.

use super::super::*;
use super::support::*;

/// Translates `line` for `target` under `policy`; the commands, or the outcome in angle brackets.
fn shown(target: &str, policy: &Policy, line: &str) -> String {
    let (result, sent) = run(&mut translator(target, policy.clone()), 0, &split(line));
    let mut lines = sent.lines();
    match result {
        Ok(Outcome::Written { .. }) => {}
        Ok(Outcome::Dropped(reason)) => lines.push(format!("<{reason:?}>")),
        Ok(Outcome::LeftOut { kind, .. }) => lines.push(format!("<left out {kind:?}>")),
        Ok(Outcome::Global(global)) => lines.push(format!("<{global:?}>")),
        Ok(Outcome::NotCarried { kind }) => lines.push(format!("<{kind:?}>")),
        Err(error) => lines.push(match error.reason {
            TranslateReason::Unsupported { kind, .. } => format!("<refused {kind:?}>"),
            reason => format!("<error: {reason}>"),
        }),
    }
    lines.join(" | ")
}

fn check(targets: &[&str], rows: &[(&str, &str)]) {
    for target in targets {
        for (line, expected) in rows {
            assert_eq!(shown(target, &Policy::default(), line), *expected, "{line} on {target}");
        }
    }
}

fn check_skip(targets: &[&str], rows: &[(&str, &str)]) {
    for target in targets {
        for (line, expected) in rows {
            assert_eq!(shown(target, &skip_all(), line), *expected, "{line} on {target}, skip");
        }
    }
}

#[test]
fn the_bytes_are_resp() {
    let (_, sent) = run(&mut translator("7.0", Policy::default()), 0, &split("set key value STICK"));
    assert_eq!(sent.commands[0].1, b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$5\r\nvalue\r\n");
    let long = vec![b'x'; 100_000];
    let (_, sent) = run(&mut translator("7.0", Policy::default()), 0, &[b"APPEND", b"", &long]);
    assert!(sent.commands[0].1.starts_with(b"*3\r\n$6\r\nAPPEND\r\n$0\r\n\r\n$100000\r\nxxx"));
    assert_eq!(strings(&sent.commands[0].1)[2], long);
}

#[test]
fn strings_on_every_target() {
    check(
        &TARGETS,
        &[
            ("SET k v", "B SET k v"),
            ("set k v pxat 1900000000000", "B SET k v PXAT 1900000000000"),
            ("SET k v KEEPTTL", "B SET k v KEEPTTL"),
            ("SET k v STICK", "B SET k v"),
            ("SET k v PXAT 5 STICK _MCFLAGS 7", "B SET k v PXAT 5"),
            ("SET k v EX 10 NX GET", "B SET k v PXAT 1800000010000"),
            ("SET k v PXAT -5", "B SET k v PXAT 1"),
            ("SET k ''", "B SET k ''"),
            ("SETEX k 10 v", "B SET k v PXAT 1800000010000"),
            ("PSETEX k 10 v", "B SET k v PXAT 1800000000010"),
            ("MSET a 1 b 2", "B MSET a 1 b 2"),
            ("MSETNX a 1 b 2", "B MSET a 1 b 2"),
            ("SETNX k v", "G SETNX k v"),
            ("GETSET k v", "B SET k v"),
            ("GETDEL k", "B DEL k"),
            ("DEL a b", "B DEL a b"),
            ("UNLINK a b", "B DEL a b"),
            ("INCR k", "G INCR k"),
            ("decr k", "G DECR k"),
            ("INCRBY k 3", "G INCRBY k 3"),
            ("DECRBY k 3", "G DECRBY k 3"),
            ("INCRBYFLOAT k 3.5", "G EVAL <script> 1 k 3.5"),
            ("APPEND k v", "G APPEND k v"),
            ("PREPEND k v", "G EVAL <script> 1 k v"),
            ("SETRANGE k 5 v", "B SETRANGE k 5 v"),
            ("SETBIT k 5 1", "B SETBIT k 5 1"),
            ("BITFIELD k GET u8 0", "<Read>"),
            ("BITFIELD k", "<Read>"),
            ("BITFIELD k GET u8 0 set u8 0 5", "B BITFIELD k GET u8 0 set u8 0 5"),
            ("BITFIELD k OVERFLOW SAT INCRBY u8 0 5 SET u8 8 1", "G BITFIELD k OVERFLOW SAT INCRBY u8 0 5 SET u8 8 1"),
            ("PFADD k a b", "B PFADD k a b"),
            ("DELEX k", "B DEL k"),
            ("GETEX k", "<Read>"),
            ("GETEX k PERSIST", "G PERSIST k"),
            ("GETEX k EX 10", "G PEXPIREAT k 1800000010000"),
        ],
    );
    check(
        &["8.4"],
        &[
            ("DELEX k IFEQ v", "G DELEX k IFEQ v"),
            ("DELEX k ifdne 0123456789abcdef", "G DELEX k ifdne 0123456789abcdef"),
        ],
    );
    check(
        &["7.0", "v9.0"],
        &[
            ("DELEX k IFEQ v", "G EVAL <script> 1 k v"),
            ("DELEX k ifne v", "G EVAL <script> 1 k v"),
            ("DELEX k IFDEQ 0123456789abcdef", "<refused Command>"),
            ("CL.THROTTLE k 1 2 3", "<refused Command>"),
        ],
    );
    check_skip(&["7.0"], &[("DELEX k IFDEQ x", "<left out Command>"), ("CL.THROTTLE k 1 2 3", "<left out Command>")]);
}

#[test]
fn keys_on_every_target() {
    check(
        &TARGETS,
        &[
            ("PEXPIREAT k 1900000000000", "G PEXPIREAT k 1900000000000"),
            ("PERSIST k", "G PERSIST k"),
            ("EXPIRE k 10", "G PEXPIREAT k 1800000010000"),
            ("PEXPIRE k 10", "G PEXPIREAT k 1800000000010"),
            ("EXPIREAT k 1900000000", "G PEXPIREAT k 1900000000000"),
            ("RENAME a b", "G RENAME a b"),
            ("RENAMENX a b", "G RENAMENX a b"),
            ("MOVE k 3", "G MOVE k 3"),
            ("STICK a b", "<NoMeaning>"),
            ("SHRINK", "<NoMeaning>"),
            ("PING", "<NoMeaning>"),
            ("SORT a ALPHA", "<Read>"),
            ("SORT a", "<Truncated>"),
            ("SORT a BY nosort STORE d", "G SORT a BY nosort STORE d"),
            ("FLUSHALL", "<FlushAll>"),
            ("flushdb", "<FlushDb(DbIndex(0))>"),
            ("DFLYCLUSTER FLUSHSLOTS 0 5 7 7", "<FlushSlots([(Slot(0), Slot(5)), (Slot(7), Slot(7))])>"),
            ("SCRIPT LOAD body", "B* SCRIPT LOAD body"),
            ("SCRIPT FLAGS sha x", "<NoMeaning>"),
            (
                "ALIASED k v",
                "<error: df2redis does not know this command (an alias of the master's --command_alias, or a \
              newer Dragonfly); remedy: --on-unsupported command=skip leaves it out and lists it>",
            ),
        ],
    );
    check(&["7.0", "v8.1"], &[("EXPIRE k 10 gt", "G PEXPIREAT k 1800000010000 gt")]);
    check(&["6.2"], &[("EXPIRE k 10 gt", "<refused Command>")]);
    check_skip(&["6.2"], &[("ALIASED k v", "<left out Command>")]);
}

#[test]
fn lists_sets_and_sorted_sets_on_every_target() {
    check(
        &TARGETS,
        &[
            ("LPUSH k a b", "G LPUSH k a b"),
            ("RPUSH k a b", "G RPUSH k a b"),
            ("LPUSHX k a", "G LPUSHX k a"),
            ("RPUSHX k a", "G RPUSHX k a"),
            ("LPOP k", "G LPOP k"),
            ("LPOP k 2000000", "G LTRIM k 2000000 -1"),
            ("RPOP k 3", "G LTRIM k 0 -4"),
            ("RPOP k 9223372036854775807", "G LTRIM k 0 -9223372036854775807"),
            ("LINSERT k BEFORE a b", "G LINSERT k BEFORE a b"),
            ("LSET k 0 a", "B LSET k 0 a"),
            ("LTRIM k 0 9", "G LTRIM k 0 9"),
            ("LREM k 1 a", "G LREM k 1 a"),
            ("LMOVE a b LEFT RIGHT", "G LMOVE a b LEFT RIGHT"),
            ("BLMOVE a b LEFT RIGHT 0.5", "G LMOVE a b LEFT RIGHT"),
            ("RPOPLPUSH a b", "G RPOPLPUSH a b"),
            ("BRPOPLPUSH a b 0", "G RPOPLPUSH a b"),
            ("SADD k a b", "B SADD k a b"),
            ("SREM k a b", "G SREM k a b"),
            ("SADDEX k 10 a b", "<refused MemberExpiry>"),
            ("ZADD k 1 a 2 b", "B ZADD k 1 a 2 b"),
            ("ZADD k CH 1 a", "B ZADD k CH 1 a"),
            ("ZADD k nx 1 a", "G ZADD k nx 1 a"),
            ("ZADD k CH GT 1 a", "G ZADD k CH GT 1 a"),
            ("ZADD k INCR 1 a", "G ZADD k INCR 1 a"),
            ("ZINCRBY k 1 a", "G ZINCRBY k 1 a"),
            ("ZREM k a", "G ZREM k a"),
            ("ZPOPMIN k", "G ZPOPMIN k"),
            ("ZPOPMAX k 3", "G ZREMRANGEBYRANK k -3 -1"),
            ("ZPOPMIN k 700000", "G ZREMRANGEBYRANK k 0 699999"),
            ("ZREMRANGEBYRANK k 0 1", "G ZREMRANGEBYRANK k 0 1"),
            ("ZREMRANGEBYSCORE k 0 1", "G ZREMRANGEBYSCORE k 0 1"),
            ("ZREMRANGEBYLEX k [a [b", "G ZREMRANGEBYLEX k [a [b"),
            ("GEOADD k 1 2 a", "B GEOADD k 1 2 a"),
            ("GEOADD k XX CH 1 2 a", "G GEOADD k XX CH 1 2 a"),
            ("GEORADIUS k 1 2 3 km ASC", "<Read>"),
            ("GEORADIUS k 1 2 3 km STORE d", "G GEORADIUS k 1 2 3 km STORE d"),
            ("GEORADIUSBYMEMBER k m 3 km STOREDIST d", "G GEORADIUSBYMEMBER k m 3 km STOREDIST d"),
            ("GEORADIUS k", "<Truncated>"),
        ],
    );
    check_skip(&TARGETS, &[("SADDEX k 10 a b", "B SADD k a b"), ("SADDEX k keepttl 10 a", "B SADD k a")]);
}

#[test]
fn hashes_by_target() {
    check(
        &TARGETS,
        &[
            ("HSET k f v", "B HSET k f v"),
            ("HMSET k f v g w", "B HMSET k f v g w"),
            ("HSETNX k f v", "G HSETNX k f v"),
            ("HDEL k f", "G HDEL k f"),
            ("HINCRBY k f 1", "G HINCRBY k f 1"),
            ("HGETEX k FIELDS 1 f", "<Read>"),
        ],
    );
    check(
        &["7.4", "8.0", "v9.0"],
        &[
            ("HINCRBYFLOAT k f 1.5", "G EVAL <script> 1 k 1.5 f KEEP"),
            ("HEXPIRE k 10 FIELDS 2 f g", "G HPEXPIREAT k 1800000010000 FIELDS 2 f g"),
            ("HEXPIRE k 10 nx fields 1 f", "G HPEXPIREAT k 1800000010000 nx FIELDS 1 f"),
            ("HEXPIRE k 0 FIELDS 1 f", "G HPEXPIREAT k 1800000000000 FIELDS 1 f"),
            ("FIELDEXPIRE k 10 f g", "G HPEXPIREAT k 1800000010000 FIELDS 2 f g"),
            ("HGETEX k EX 10 FIELDS 1 f", "G HPEXPIREAT k 1800000010000 FIELDS 1 f"),
            ("HGETEX k PXAT 77 FIELDS 1 f", "G HPEXPIREAT k 77 FIELDS 1 f"),
            ("HGETEX k PERSIST FIELDS 1 f", "G HPERSIST k FIELDS 1 f"),
            ("HSETEX k 10 f v g w", "B HSET k f v g w | G HPEXPIREAT k 1800000010000 FIELDS 2 f g"),
            ("HSETEX k PX 10 FIELDS 1 f v", "B HSET k f v | G HPEXPIREAT k 1800000001000 FIELDS 1 f"),
            ("HSETEX k FIELDS 1 f v", "B HSET k f v"),
            ("HSETEX k NX 10 f v", "G EVAL <script> 1 k NX '' 1800000010000 f v"),
            ("HSETEX k nx KEEPTTL 10 f v", "G EVAL <script> 1 k NX KEEP 1800000010000 f v"),
            ("HSETEX k FXX EX 10 FIELDS 1 f v", "G EVAL <script> 1 k FXX '' 1800000010000 f v"),
            ("HSETEX k FNX KEEPTTL FIELDS 1 f v", "G EVAL <script> 1 k FNX KEEP '' f v"),
        ],
    );
    check(
        &["6.2", "7.0", "v8.1"],
        &[
            ("HINCRBYFLOAT k f 1.5", "G EVAL <script> 1 k 1.5 f"),
            ("HEXPIRE k 10 FIELDS 1 f", "<refused FieldExpiry>"),
            ("HSETEX k 10 f v", "<refused FieldExpiry>"),
            ("HEXPIRE k 0 FIELDS 2 f g", "G HDEL k f g"),
            ("HGETEX k PERSIST FIELDS 1 f", "<NoEffect>"),
        ],
    );
    check_skip(
        &["6.2", "7.0", "v8.1"],
        &[
            ("HEXPIRE k 10 FIELDS 1 f", "<left out FieldExpiry>"),
            ("HEXPIRE k 0 XX FIELDS 1 f", "<left out FieldExpiry>"),
            ("FIELDEXPIRE k 10 f", "<left out FieldExpiry>"),
            ("HSETEX k 10 f v", "B HSET k f v"),
            ("HSETEX k KEEPTTL 10 f v", "B HSET k f v"),
            ("HSETEX k NX 10 f v", "G EVAL <script> 1 k NX '' '' f v"),
        ],
    );
}

#[test]
fn streams_by_target() {
    check(
        &TARGETS,
        &[
            ("XADD k 5-1 f v", "B XADD k 5-1 f v"),
            ("XADD k MINID 4-0 NOMKSTREAM 5-1 f v", "B XADD k MINID 4-0 NOMKSTREAM 5-1 f v"),
            ("XADD k NOMKSTREAM MAXLEN ~ 10 LIMIT 5 7 f v", "B XADD k NOMKSTREAM MAXLEN ~ 10 LIMIT 5 7 f v"),
            ("XADD k MAXLEN = 10 * f v", "G XADD k MAXLEN = 10 * f v"),
            ("XADD k 5-* f v", "G XADD k 5-* f v"),
            ("XTRIM k MINID 5-0", "G XTRIM k MINID 5-0"),
            ("XDEL k 5-1", "G XDEL k 5-1"),
            ("XACK k g 5-1", "G XACK k g 5-1"),
            // As XREADGROUP is recorded.
            (
                "XCLAIM k g c 0 5-1 TIME 77 RETRYCOUNT 1 FORCE JUSTID LASTID 5-1",
                "G XCLAIM k g c 0 5-1 TIME 77 RETRYCOUNT 1 FORCE JUSTID LASTID 5-1",
            ),
            (
                "XCLAIM k g c -5 5-1 6 justid",
                "G EVAL <script> 1 k g c 0 1800000000000 3 TIME 1800000000000 JUSTID 5-1 6-0",
            ),
            // What Dragonfly takes IDLE for.
            (
                "XCLAIM k g c 9 5-1 idle 1000 RETRYCOUNT 3 FORCE LASTID 5-1",
                "G EVAL <script> 1 k g c 9 1800000000000 7 TIME 1000 RETRYCOUNT 3 FORCE LASTID 5-1 5-1",
            ),
            (
                "XCLAIM k g c 0 5-1 TIME 1800000000001 RETRYCOUNT -1",
                "G EVAL <script> 1 k g c 0 1800000000000 2 TIME 1800000000000 5-1",
            ),
            ("XAUTOCLAIM k g c 5000 0-0", "G EVAL <script> 1 k g c 5000 1800000000000 0-0 100"),
            ("XAUTOCLAIM k g c 5000 - COUNT 3 JUSTID", "G EVAL <script> 1 k g c 5000 1800000000000 0-0 3 JUSTID"),
            ("XAUTOCLAIM k g c 0 (5-0", "G EVAL <script> 1 k g c 0 1800000000000 4-18446744073709551615 100"),
            ("XAUTOCLAIM k g c 0 (5-7", "G EVAL <script> 1 k g c 0 1800000000000 5-6 100"),
            ("XGROUP CREATECONSUMER k g c", "G XGROUP CREATECONSUMER k g c"),
            ("XGROUP create k g $ MKSTREAM", "G XGROUP create k g $ MKSTREAM"),
            ("XSETID k 5-1", "G XSETID k 5-1"),
        ],
    );
    let new = "XGROUP SETID k g 5-1 ENTRIESREAD 3";
    check(&["7.0", "v8.1"], &[(new, "G XGROUP SETID k g 5-1 ENTRIESREAD 3")]);
    check(&["6.2"], &[(new, "G XGROUP SETID k g 5-1"), ("XSETID k 5 ENTRIESADDED 3 MAXDELETEDID 1-1", "G XSETID k 5")]);
}

#[test]
fn a_document_of_an_old_source_keeps_its_expiry() {
    for (release, target, line, expected) in [
        ("df-v1.32.0", "stack", "JSON.SET k $ {}", "B JSON.SET k $ {}"),
        ("df-v1.32.0", "stack", "JSON.SET k . 1 XX", "G JSON.SET k . 1 XX"),
        ("df-v1.32.0", "stack", "JSON.MSET a $ 1", "B JSON.MSET a $ 1"),
        ("df-v1.32.0", "stackc", "JSON.MSET foo $ 1", "B@12182 JSON.SET foo $ 1"),
        ("df-v1.32.0", "7.0", "JSON.SET k $ {}", "B SET k {} KEEPTTL"),
        ("df-v1.33.0", "stack", "JSON.SET k $ {}", "B DEL k | B JSON.SET k $ {}"),
        ("df-v1.33.0", "7.0", "JSON.SET k $ {}", "B SET k {}"),
        ("f8eca6d0b", "7.0", "JSON.SET k $ {}", "B SET k {}"),
    ] {
        let policy = Policy { by_kind: vec![(Kind::Json, Action::AsString)], skip_all: false };
        let mut translator = translator(target, policy);
        translator.set_source(crate::dragonfly::session::Release::parse(release));
        let (_, sent) = run(&mut translator, 0, &split(line));
        assert_eq!(sent.lines().join(" | "), expected, "{line} of {release} on {target}");
    }
}

#[test]
fn what_older_masters_record_raw() {
    check(
        &["7.0", "v9.0"],
        &[
            ("LMPOP 1 k LEFT", "G LMPOP 1 k LEFT"),
            ("LMPOP 2 a b LEFT COUNT 3", "G LMPOP 2 a b LEFT COUNT 3"),
            ("BLMPOP 0.5 2 a b LEFT", "G LMPOP 2 a b LEFT"),
            ("BLMPOP 0 1 k LEFT", "G LMPOP 1 k LEFT"),
            ("ZMPOP 1 k MIN COUNT 2", "G ZMPOP 1 k MIN COUNT 2"),
            ("ZMPOP 2 a b MAX", "G ZMPOP 2 a b MAX"),
            ("LMPOP a b", "<Truncated>"),
            ("ZMPOP b", "<Truncated>"),
            ("ZUNIONSTORE d 2 a b WEIGHTS 1 2", "G ZUNIONSTORE d 2 a b WEIGHTS 1 2"),
            ("ZINTERSTORE d 1 a AGGREGATE MIN", "G ZINTERSTORE d 1 a AGGREGATE MIN"),
            ("ZDIFFSTORE d 2 a b", "G ZDIFFSTORE d 2 a b"),
            ("ZUNIONSTORE d a", "<Truncated>"),
            ("ZINTERSTORE 2", "<Truncated>"),
            ("ZINTER 2 a b", "<NoMeaning>"),
            ("ZRANGESTORE d s 0 -1 REV", "G ZRANGESTORE d s 0 -1 REV"),
            ("ZRANGESTORE d", "<Truncated>"),
            ("SORT k BY w_* LIMIT 0 5 GET # DESC ALPHA", "<Read>"),
            ("SORT k LIMIT 0 5 STORE d", "G SORT k LIMIT 0 5 STORE d"),
            ("SORT STORE d", "<Truncated>"),
            ("SORT LIMIT STORE d", "<Truncated>"),
            ("SORT k 0 5", "<Truncated>"),
        ],
    );
    check(&["7.0c"], &[("ZUNIONSTORE foo 2 {foo} bar", "<CrossSlot>")]);
    check(&["7.0c"], &[("LMPOP 2 foo bar LEFT", "<CrossSlot>"), ("LMPOP 1 foo LEFT", "G@12182 LMPOP 1 foo LEFT")]);
    let mut old = capabilities("6.2");
    old.commands.retain(|name| !name.contains("MPOP"));
    let mut old = JournalTranslator::new(FlowId(0), Arc::new(old), Arc::new(skip_all()), 1 << 20);
    for (line, expected) in [
        ("LMPOP 1 k LEFT", "G LPOP k"),
        ("LMPOP 1 k right COUNT 03", "G RPOP k 3"),
        ("ZMPOP 1 k MIN COUNT 2", "G ZPOPMIN k 2"),
        ("ZMPOP 1 k max", "G ZPOPMAX k"),
        ("LMPOP 2 a b LEFT", ""),
    ] {
        assert_eq!(run(&mut old, 0, &split(line)).1.lines().join(" | "), expected, "{line}");
    }
    let mut new = translator("7.0", Policy::default());
    let _ = run(&mut new, 0, &split("SORT LIMIT STORE d"));
    let listed: Vec<_> = new.notes().take().into_iter().map(|note| (note.key, note.kind)).collect();
    assert_eq!(listed, [(b"d"[..].into(), NoteKind::Doubtful(Doubt::Truncated))]);
}

#[test]
fn integers_are_written_as_every_server_reads_them() {
    check(
        &TARGETS,
        &[
            ("INCRBY k +5", "G INCRBY k 5"),
            ("DECRBY k 007", "G DECRBY k 7"),
            ("HINCRBY h +1 -01", "G HINCRBY h +1 -1"),
            ("LTRIM +1 +0 -01", "G LTRIM +1 0 -1"),
            ("SETBIT k 07 01", "B SETBIT k 7 1"),
            ("SETRANGE k +3 +3", "B SETRANGE k 3 +3"),
            ("ZPOPMIN k +2", "G ZREMRANGEBYRANK k 0 1"),
            ("INCRBY k x", "G INCRBY k x"),
        ],
    );
    let (_, sent) = run(&mut translator("7.0", Policy::default()), 0, &[b"INCRBY", b"k", b" 5\n"]);
    assert_eq!(sent.lines(), ["G INCRBY k 5"]);
}

#[test]
fn a_merged_hyperloglog_keeps_its_expiry() {
    let dense = [&b"HYLL\0"[..], &[0; 11 + 12_288]].concat();
    let (sparse, longer) = ([&b"HYLL\x01"[..], &[0; 11 + 12_288]].concat(), [&dense[..], b"x"].concat());
    let strings_of = |txid: u64, args: &[&[u8]]| {
        let (_, sent) = run(&mut translator("7.0", Policy::default()), txid, args);
        strings(&sent.commands[0].1)
            .iter()
            .skip(3)
            .map(|text| String::from_utf8(text.clone()).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(strings_of(5, &[b"SET", b"k", &dense]), ["KEEPTTL"]);
    assert_eq!(strings_of(0, &[b"SET", b"k", &dense]), [""; 0]);
    for other in [&sparse, &longer] {
        assert_eq!(strings_of(5, &[b"SET", b"k", other]), [""; 0]);
    }
    assert_eq!(strings_of(5, &[b"SET", b"k", &dense, b"PXAT", b"1900000000000"]), ["PXAT", "1900000000000"]);
}

#[test]
fn modules_by_target() {
    check(
        &["stack"],
        &[
            ("JSON.SET k $ {}", "B DEL k | B JSON.SET k $ {}"),
            ("JSON.SET k $.a 1", "G JSON.SET k $.a 1"),
            ("JSON.SET k . 1 NX", "G JSON.SET k . 1 NX"),
            ("JSON.SET k . 1 xx", "G EVAL <script> 1 k 1"),
            ("JSON.SET k $.a 1 XX", "G JSON.SET k $.a 1 XX"),
            ("JSON.MSET a $ 1 b $.x 2", "B DEL a | G JSON.MSET a $ 1 b $.x 2"),
            ("JSON.MSET a $.x 1 a $ 2", "G JSON.MSET a $.x 1 a $ 2"),
            ("JSON.MSET a $ 1 b . 2", "B DEL a b | B JSON.MSET a $ 1 b . 2"),
            ("json.del k", "G JSON.DEL k"),
            ("JSON.FORGET k $.a", "G JSON.FORGET k $.a"),
            ("JSON.MERGE k $.a 1", "G JSON.MERGE k $.a 1"),
            ("JSON.CLEAR k", "G JSON.CLEAR k"),
            ("JSON.TOGGLE k $.a", "G JSON.TOGGLE k $.a"),
            ("JSON.NUMINCRBY k $.a 1", "G JSON.NUMINCRBY k $.a 1"),
            ("JSON.NUMMULTBY k $.a 1", "G JSON.NUMMULTBY k $.a 1"),
            ("JSON.STRAPPEND k $.a \"x\"", "G JSON.STRAPPEND k $.a \\\"x\\\""),
            ("JSON.ARRAPPEND k $.a 1", "G JSON.ARRAPPEND k $.a 1"),
            ("JSON.ARRINSERT k $.a 0 1", "G JSON.ARRINSERT k $.a 0 1"),
            ("JSON.ARRPOP k $.a", "G JSON.ARRPOP k $.a"),
            ("JSON.ARRTRIM k $.a 0 1", "G JSON.ARRTRIM k $.a 0 1"),
            ("BF.RESERVE k 0.1 100", "G BF.RESERVE k 0.1 100"),
            ("BF.ADD k a", "G BF.ADD k a"),
            ("BF.MADD k a b", "G BF.MADD k a b"),
            ("BF.LOADCHUNK k 1 x", "<refused Filters>"),
            ("CF.RESERVE k 100", "G CF.RESERVE k 100"),
            ("CF.ADD k a", "G CF.ADD k a"),
            ("CF.ADDNX k a", "G CF.ADDNX k a"),
            ("CF.INSERT k ITEMS a", "G CF.INSERT k ITEMS a"),
            ("CF.INSERTNX k ITEMS a", "G CF.INSERTNX k ITEMS a"),
            ("CF.DEL k a", "G CF.DEL k a"),
            ("CF.COMPACT k", "G CF.COMPACT k"),
            ("CMS.INITBYDIM k 10 5", "G CMS.INITBYDIM k 10 5"),
            ("CMS.INITBYPROB k 0.1 0.1", "G CMS.INITBYPROB k 0.1 0.1"),
            ("CMS.INCRBY k a 1", "G CMS.INCRBY k a 1"),
            ("CMS.MERGE d 2 a b", "G CMS.MERGE d 2 a b"),
            ("CMS.MERGE a b", "<Truncated>"),
            ("TOPK.RESERVE k 5", "G TOPK.RESERVE k 5"),
            ("TOPK.ADD k a", "G TOPK.ADD k a"),
            ("TOPK.INCRBY k a 1", "G TOPK.INCRBY k a 1"),
            ("FT.CREATE i SCHEMA a TEXT", "B* FT.CREATE i SCHEMA a TEXT"),
            ("FT.ALTER i SCHEMA ADD a TEXT", "B* FT.ALTER i SCHEMA ADD a TEXT"),
            ("FT.DROPINDEX i", "B* FT.DROPINDEX i"),
            ("FT.SYNUPDATE i g a", "B* FT.SYNUPDATE i g a"),
        ],
    );
    check(
        &["7.0", "v9.0"],
        &[
            ("JSON.SET k $ {}", "<refused Json>"),
            ("JSON.MSET k $ {}", "<refused Json>"),
            ("JSON.ARRPOP k", "<refused Json>"),
            ("BF.ADD k a", "<refused Filters>"),
            ("CMS.MERGE a b", "<refused Filters>"),
            ("FT.CREATE i SCHEMA a TEXT", "<NoModule>"),
        ],
    );
    check_skip(&["7.0"], &[("JSON.SET k $ {}", "<left out Json>"), ("TOPK.ADD k a", "<left out Filters>")]);
}

#[test]
fn json_as_strings() {
    let policy =
        Policy { by_kind: vec![(Kind::Json, Action::Refuse), (Kind::Json, Action::AsString)], skip_all: false };
    let rows = [
        ("JSON.SET k $ {}", "B SET k {}"),
        ("JSON.MSET a $ 1 b . 2", "B SET a 1 | B SET b 2"),
        ("JSON.SET k $.a 1", "<left out Json>"),
        ("JSON.DEL k", "B DEL k"),
        ("JSON.DEL k $.a", "<left out Json>"),
        ("JSON.MERGE k $ {}", "<left out Json>"),
    ];
    for (line, expected) in rows {
        assert_eq!(shown("7.0", &policy, line), expected, "{line}");
    }
}

#[test]
fn clusters_get_one_command_a_slot() {
    check(
        &["7.0c"],
        &[
            ("SET foo v", "B@12182 SET foo v"),
            ("INCR foo", "G@12182 INCR foo"),
            ("XGROUP DESTROY foo g", "G@12182 XGROUP DESTROY foo g"),
            ("DEL foo {foo}a bar foo", "B@12182 DEL foo {foo}a | B@5061 DEL bar | B@12182 DEL foo"),
            ("MSET foo 1 {foo}a 2 bar 3", "B@12182 MSET foo 1 {foo}a 2 | B@5061 MSET bar 3"),
            ("RENAME foo {foo}a", "G@12182 RENAME foo {foo}a"),
            ("RENAME foo bar", "<CrossSlot>"),
            ("SORT foo STORE bar", "<CrossSlot>"),
            ("BLMOVE foo bar LEFT LEFT 0", "<CrossSlot>"),
            ("BLMOVE foo {foo} LEFT LEFT 0", "G@12182 LMOVE foo {foo} LEFT LEFT"),
            ("MOVE foo 3", "<MoveInCluster>"),
        ],
    );
    check(
        &["stackc"],
        &[
            (
                "JSON.MSET foo $ 1 bar $.a 2 {foo}a $ 3",
                "B@12182 DEL foo | B@12182 JSON.SET foo $ 1 | G@5061 JSON.SET bar $.a 2 | B@12182 DEL {foo}a | \
                 G@12182 JSON.SET {foo}a $ 3",
            ),
            ("CMS.MERGE foo 1 bar", "<CrossSlot>"),
            ("FT.DROPINDEX foo", "B* FT.DROPINDEX foo"),
        ],
    );
    check(&["v9.0c"], &[("MOVE foo 3", "G@12182 MOVE foo 3")]);
}

/// A payload around a value, as a server would DUMP it.
fn payload(type_byte: u8, body: &[u8], version: u16) -> Vec<u8> {
    let mut payload = [&[type_byte], body, &version.to_le_bytes()].concat();
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Redis, &payload);
    payload.extend_from_slice(&crc.to_le_bytes());
    payload
}

fn restore(target: &str, ttl: &str, payload: &[u8], options: &str) -> String {
    let mut args: Vec<&[u8]> = vec![b"RESTORE", b"k", ttl.as_bytes(), payload];
    if !options.is_empty() {
        args.extend(split(options));
    }
    let (result, sent) = run(&mut translator(target, skip_all()), 0, &args);
    match result {
        Ok(_) => sent.lines().join(" | "),
        Err(error) => format!("<error: {}>", error.reason),
    }
}

#[test]
fn payloads_are_handed_on_as_values() {
    let string = payload(0, b"\x01v", 9);
    assert_eq!(restore("7.0", "0", &string, ""), "B WHOLE String k None \\x01v");
    assert_eq!(restore("7.0", "5", &string, "REPLACE STICK"), "B WHOLE String k Some(1800000000005) \\x01v");
    assert_eq!(restore("7.0", "5", &string, "absttl idletime 3"), "B WHOLE String k Some(5) \\x01v");
    assert_eq!(restore("7.0", "0", &payload(30, b"\x021}", 9), "ABSTTL"), "B WHOLE Json k None \\x021}");
    assert_eq!(restore("7.0", "0", &payload(20, b"\x021}", 9), "ABSTTL"), "B WHOLE JsonOld k None \\x021}");
    assert_eq!(restore("7.0", "0", &payload(33, b"\x00", 9), ""), "");
    let module = |version| {
        let id = payload::module_id(b"ReJSON-RL", version).to_be_bytes();
        payload(7, &[b"\x81".as_slice(), &id, b"\x05\x021}\x00"].concat(), 9)
    };
    assert_eq!(restore("7.0", "0", &module(3), ""), "B WHOLE Json k None \\x021}");
    assert!(restore("7.0", "0", &module(4), "").contains("other than ReJSON-RL"));
    let error = restore("7.0", "0", &string[..string.len() - 1], "");
    assert_eq!(error, "<error: its payload is damaged: its CRC-64 is wrong>");
    assert_eq!(restore("7.0", "0", b"", ""), "<error: its payload is damaged: shorter than a type byte and a footer>");
    assert!(restore("7.0", "0", &payload(9, b"\x01v", 9), "").contains("no Dragonfly loads"));
    assert!(restore("7.0", "0", &string, "NOSUCH").contains("not known here"));
}

#[test]
fn payloads_of_newer_redis_get_a_fresh_footer() {
    let set = payload(20, b"\x09\x09\x00\x00\x00\x01\x00\x01\x01\xff", 11);
    for target in ["8.0", "v8.1"] {
        let args: [&[u8]; 4] = [b"RESTORE", b"k", b"0", &set];
        let (_, sent) = run(&mut translator(target, Policy::default()), 0, &args);
        let strings = strings(&sent.commands[0].1);
        assert_eq!(strings[2], b"0");
        assert_eq!(strings[3], payload(20, &set[1..set.len() - 10], 9));
        assert_eq!(strings[4..], [b"REPLACE".to_vec(), b"ABSTTL".to_vec()]);
    }
    assert_eq!(restore("7.0", "0", &set, ""), "");
}

#[test]
fn search_is_done_once_for_a_transaction_and_by_flow_0() {
    let mut first = translator("stack", Policy::default());
    let create = split("FT.CREATE i SCHEMA a TEXT");
    assert_eq!(run(&mut first, 7, &create).0, Ok(Outcome::Written { commands: 1 }));
    assert_eq!(run(&mut first, 7, &create).0, Ok(Outcome::Dropped(DropReason::Duplicate)));
    assert_eq!(run(&mut first, 8, &create).0, Ok(Outcome::Written { commands: 1 }));
    let mut second =
        JournalTranslator::new(FlowId(1), Arc::new(capabilities("stack")), Arc::new(Policy::default()), 1 << 20);
    assert_eq!(run(&mut second, 7, &create).0, Ok(Outcome::Dropped(DropReason::Duplicate)));
}

#[test]
fn a_string_too_long_for_the_target_follows_the_policy() {
    let mut small = capabilities("7.0");
    small.bulk_bytes_max = 4;
    let new = |policy| JournalTranslator::new(FlowId(0), Arc::new(small.clone()), Arc::new(policy), 1 << 20);
    let error = run(&mut new(Policy::default()), 0, &split("SET k 12345")).0.unwrap_err();
    assert!(matches!(error.reason, TranslateReason::Unsupported { kind: Kind::LargeString, .. }));
    let mut translator = new(skip_all());
    assert_eq!(run(&mut translator, 0, &split("SET k 12345")).1.lines(), ["B DEL k"]);
    assert!(run(&mut translator, 0, &split("APPEND k 12345")).1.lines().is_empty());
    assert_eq!(translator.notes().list().len(), 1);
}

#[test]
fn expiries_can_be_held_back() {
    let mut translator = translator("8.0", Policy::default());
    translator.set_near(Near::before(1_800_000_002_000));
    let mut lines = |line| {
        let lines = run(&mut translator, 0, &split(line)).1.lines().join(" | ");
        (lines, translator.take_shifted_ms())
    };
    assert_eq!(lines("SET k v PXAT 5"), ("B SET k v PXAT 4398046511109".into(), Some(5)));
    assert_eq!(lines("PEXPIREAT k 5"), ("G PEXPIREAT k 4398046511109".into(), Some(5)));
    assert_eq!(lines("PEXPIREAT k 1800000002000"), ("G PEXPIREAT k 1800000002000".into(), None));
    let field = ("G HPEXPIREAT k 6198046512104 FIELDS 1 f".into(), Some(1_800_000_001_000));
    assert_eq!(lines("HEXPIRE k 1 FIELDS 1 f"), field);
    let (line, _) = lines("HEXPIRE k 5 GT FIELDS 1 f");
    assert!(line.ends_with(" 1 k GT 1800000005000 1800000005000 4398046511104 f"), "{line}");
}

#[test]
fn notes_and_counts_tell_what_happened() {
    let mut translator = translator("7.0", skip_all());
    for line in [
        "SET a 1",
        "SET a 2",
        "XADD s * f v",
        "SORT a",
        "SADDEX m 5 x",
        "JSON.SET j $ 1",
        "NOSUCH n",
        "FLUSHALL",
        "SET a",
    ] {
        let _ = run(&mut translator, 0, &split(line));
    }
    let notes: Vec<_> = translator.notes().take().into_iter().map(|note| (note.key, note.kind)).collect();
    let key = |key: &str| Box::<[u8]>::from(key.as_bytes());
    assert_eq!(
        notes,
        [
            (key("s"), NoteKind::Doubtful(Doubt::GeneratedId)),
            (key("a"), NoteKind::Doubtful(Doubt::Truncated)),
            (key("m"), NoteKind::ExpiryDropped(Kind::MemberExpiry)),
            (key("j"), NoteKind::Skipped(Kind::Json)),
            (key("n"), NoteKind::Skipped(Kind::Command)),
        ]
    );
    let by_name: Vec<_> = translator.by_name().collect();
    assert_eq!(by_name[0], ("SET", NameCounts { written: 2, refused: 1, ..NameCounts::default() }));
    assert_eq!(by_name.last(), Some(&(OTHER_NAME, NameCounts { left_out: 1, ..NameCounts::default() })));
    assert_eq!(by_name.len(), 7);
}

#[test]
fn errors_name_flow_db_command_key_reason_and_remedy() {
    let error = run(&mut translator("7.0", Policy::default()), 0, &split("JSON.SET doc\u{1} $ 1")).0.unwrap_err();
    insta::assert_snapshot!(error, @r#"flow 0, db 0: recorded command JSON.SET on key "doc\x01": the target cannot hold it (JSON documents, which need the JSON module); remedy: --on-unsupported json=skip or --on-unsupported json=string, or a target that has it"#);
}

/// Dragonfly keeps a field's expiry in whole seconds, counted from the second that it is in, and rounds what is left up.
#[test]
fn fields_expire_at_whole_seconds() {
    let mut translator = translator("8.0", Policy::default());
    for (line, at) in [
        ("HEXPIRE k 10 FIELDS 1 f", "1800000010000"),
        ("FIELDEXPIRE k 10 f", "1800000010000"),
        ("HSETEX k 10 f v", "1800000010000"),
        ("HSETEX k EX 10 FIELDS 1 f v", "1800000010000"),
        ("HSETEX k PX 1 FIELDS 1 f v", "1800000001000"),
        ("HGETEX k EX 10 FIELDS 1 f", "1800000010000"),
        ("HGETEX k PX 1001 FIELDS 1 f", "1800000002000"),
        ("HGETEX k PX 1000 FIELDS 1 f", "1800000001000"),
        ("HGETEX k PXAT 1800000000077 FIELDS 1 f", "1800000000077"),
        ("HEXPIRE k 0 FIELDS 1 f", "1800000000000"),
    ] {
        let mut sent = Sent::default();
        translator.command(DbIndex(0), 0, &split(line), NOW_MS + 999, &mut Shown, &mut sent).unwrap();
        let last = sent.lines().pop().unwrap();
        assert_eq!(last, format!("G HPEXPIREAT k {at} FIELDS 1 f"), "{line}");
    }
    // Keys count in milliseconds.
    let mut sent = Sent::default();
    translator.command(DbIndex(0), 0, &split("GETEX k EX 10"), NOW_MS + 999, &mut Shown, &mut sent).unwrap();
    assert_eq!(sent.lines(), ["G PEXPIREAT k 1800000010999"]);
}
