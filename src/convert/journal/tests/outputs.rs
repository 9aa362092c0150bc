//! What each record becomes, by target.

use super::super::*;
use super::support::*;

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
            ("SETNX k v", "B SET k v"),
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
            ("PFADD k a b", "G PFADD k a b"),
            ("DELEX k", "B DEL k"),
            ("GETEX k", "<Read>"),
            ("GETEX k PERSIST", "B PEXPIREAT k 9999999999999 | G PERSIST k"),
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
            ("PERSIST k", "B PEXPIREAT k 9999999999999 | G PERSIST k"),
            ("EXPIRE k 10", "G PEXPIREAT k 1800000010000"),
            ("PEXPIRE k 10", "G PEXPIREAT k 1800000000010"),
            ("EXPIREAT k 1900000000", "G PEXPIREAT k 1900000000000"),
            ("RENAME a b", "B DEL b | G RENAME a b"),
            ("RENAME a a", "G RENAME a a"),
            ("RENAMENX a b", "B DEL b | G RENAMENX a b"),
            ("MOVE k 3", "G MOVE k 3"),
            ("STICK a b", "<NoMeaning>"),
            ("SHRINK", "<NoMeaning>"),
            ("PING", "<NoMeaning>"),
            ("SORT a ALPHA", "<Read>"),
            ("SORT a", "<Read>"),
            ("SORT a BY nosort STORE d", "G EVAL <script> 2 a d SORT a BY nosort STORE d"),
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
            ("GEORADIUS k 1 2 3 km STORE d", "G EVAL <script> 2 k d GEORADIUS k 1 2 3 km STORE d"),
            ("GEORADIUSBYMEMBER k m 3 km STOREDIST d", "G EVAL <script> 2 k d GEORADIUSBYMEMBER k m 3 km STOREDIST d"),
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
            ("XADD k 5-1 f v", "O XADD k 5-1 f v"),
            ("XADD k MINID 4-0 NOMKSTREAM 5-1 f v", "O XADD k MINID 4-0 NOMKSTREAM 5-1 f v"),
            ("XADD k NOMKSTREAM MAXLEN ~ 10 LIMIT 5 7 f v", "O XADD k NOMKSTREAM MAXLEN ~ 10 LIMIT 5 7 f v"),
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
fn what_older_masters_record_raw() {
    check(
        &["7.0", "v9.0"],
        &[
            ("LMPOP 1 k LEFT", "G LMPOP 1 k LEFT"),
            ("LMPOP 2 a b LEFT COUNT 3", "G LMPOP 2 a b LEFT COUNT 3"),
            ("BLMPOP 0.5 2 a b LEFT", "G LMPOP 2 a b LEFT"),
            ("BLMPOP 0 1 k LEFT", "G LMPOP 1 k LEFT"),
            ("ZMPOP 1 k MIN COUNT 2", "G EVAL <script> 1 k 0 1"),
            ("ZMPOP 2 a b MAX", "G EVAL <script> 2 a b -1 -1"),
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
            ("SORT k LIMIT 0 5 STORE d", "G EVAL <script> 2 k d SORT k LIMIT 0 5 STORE d"),
            ("SORT STORE d", "<Truncated>"),
            ("SORT LIMIT STORE d", "<Truncated>"),
            ("SORT k 0 5", "<Truncated>"),
        ],
    );
    check(&["7.0c"], &[("ZUNIONSTORE foo 2 {foo} bar", "<CrossSlot>")]);
    // Over several slots it is carried out apart, which needs no LMPOP.
    let mut old_cluster = capabilities("6.2c");
    old_cluster.commands.retain(|name| !name.contains("MPOP"));
    let mut old_cluster = JournalTranslator::new(FlowId(0), Arc::new(old_cluster), Arc::default(), 1 << 20);
    for line in ["LMPOP 2 foo bar LEFT", "BLMPOP 0 2 foo bar LEFT", "ZMPOP 2 foo bar MIN COUNT 2"] {
        let apart = Outcome::NotCarried { kind: NotCarriedKind::CrossSlot };
        assert_eq!(run(&mut old_cluster, 0, &split(line)).0.unwrap(), apart, "{line}");
    }
    assert!(run(&mut old_cluster, 0, &split("LMPOP 2 {foo}a {foo}b LEFT")).0.is_err());
    check(&["7.0c"], &[("LMPOP 2 foo bar LEFT", "<CrossSlot>"), ("LMPOP 1 foo LEFT", "G@12182 LMPOP 1 foo LEFT")]);
    let mut old = capabilities("6.2");
    old.commands.retain(|name| !name.contains("MPOP"));
    let mut old = JournalTranslator::new(FlowId(0), Arc::new(old), Arc::new(skip_all()), 1 << 20);
    for (line, expected) in [
        ("LMPOP 1 k LEFT", "G LPOP k"),
        ("LMPOP 1 k right COUNT 03", "G RPOP k 3"),
        ("ZMPOP 1 k max", "G EVAL <script> 1 k -1 -1"),
        ("ZMPOP 2 a b MIN COUNT 2", "G EVAL <script> 2 a b 0 1"),
        ("LMPOP 2 a b LEFT", ""),
    ] {
        assert_eq!(run(&mut old, 0, &split(line)).1.lines().join(" | "), expected, "{line}");
    }
    let mut old = capabilities("6.2");
    old.commands.retain(|name| !name.contains("MPOP") && name != "EVAL");
    let mut old = JournalTranslator::new(FlowId(0), Arc::new(old), Arc::new(skip_all()), 1 << 20);
    for (line, expected) in [("ZMPOP 1 k MIN COUNT 2", "G ZPOPMIN k 2"), ("ZMPOP 1 k max", "G ZPOPMAX k")] {
        assert_eq!(run(&mut old, 0, &split(line)).1.lines().join(" | "), expected, "{line}");
    }
    let mut new = translator("7.0", Policy::default());
    for (txid, line, keys) in [
        (7, "SORT LIMIT STORE d", &["d"][..]),
        (7, "SORT a", &["a"]),
        (0, "SORT a", &[]),
        (7, "ZUNIONSTORE d a", &["d", "a"]),
        (7, "PFMERGE d a", &["d", "a"]),
        (0, "SREM s", &[]),
    ] {
        assert!(run(&mut new, txid, &split(line)).1.lines().is_empty(), "{line}");
        let truncated: Vec<_> =
            new.take_unclear().iter().map(|(key, ..)| String::from_utf8_lossy(key).into_owned()).collect();
        assert_eq!(truncated, keys, "{line}");
    }
}

/// Without a script nobody looks whether there is something to read, and what may be stored in vain is told.
#[test]
fn what_is_stored_without_a_script_is_told() {
    let mut without = capabilities("7.0");
    without.commands.remove("EVAL");
    let mut without = JournalTranslator::new(FlowId(0), Arc::new(without), Arc::new(skip_all()), 1 << 20);
    for line in ["SORT a ALPHA STORE d", "GEORADIUS a 1 2 3 km STORE d"] {
        assert_eq!(run(&mut without, 0, &split(line)).1.lines(), [format!("G {line}")]);
        let name = line.split(' ').next().unwrap();
        assert_eq!(without.take_unclear(), [(b"d"[..].into(), name, Doubt::PerhapsNothing)]);
    }
    // Which of several is a sorted set nobody looks either.
    for (line, keys) in [("ZMPOP 2 a b MIN", &["a", "b"][..]), ("ZMPOP 1 a MIN", &[])] {
        assert_eq!(run(&mut without, 0, &split(line)).1.lines(), [format!("G {line}")]);
        let told = keys.iter().map(|key| (key.as_bytes().into(), "ZMPOP", Doubt::PerhapsNothing));
        assert_eq!(without.take_unclear(), told.collect::<Vec<_>>());
    }
}

#[test]
fn what_may_have_come_to_something_else_is_told() {
    for (line, told) in [
        ("SORT a STORE d", &[][..]),
        ("SORT a BY nosort STORE d", &["d"]),
        ("SORT a BY w_* STORE d", &["d"]),
        ("SORT a GET # STORE d", &["d"]),
        ("MSET a 1 b 2", &[]),
        ("msetnx a 1 b 2", &["a", "b"]),
    ] {
        let mut translator = translator("7.0", Policy::default());
        assert_eq!(run(&mut translator, 0, &split(line)).1.commands.len(), 1, "{line}");
        let unclear = translator.take_unclear();
        let keys: Vec<&[u8]> = unclear.iter().map(|(key, ..)| &**key).collect();
        assert_eq!(keys, told.iter().map(|key| key.as_bytes()).collect::<Vec<_>>(), "{line}");
    }
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
fn clusters_get_one_command_a_slot() {
    check(
        &["7.0c"],
        &[
            ("SET foo v", "B@12182 SET foo v"),
            ("INCR foo", "G@12182 INCR foo"),
            ("XGROUP DESTROY foo g", "G@12182 XGROUP DESTROY foo g"),
            ("DEL foo {foo}a bar foo", "B@12182 DEL foo {foo}a | B@5061 DEL bar | B@12182 DEL foo"),
            ("MSET foo 1 {foo}a 2 bar 3", "B@12182 MSET foo 1 {foo}a 2 | B@5061 MSET bar 3"),
            ("RENAME foo {foo}a", "B@12182 DEL {foo}a | G@12182 RENAME foo {foo}a"),
            ("RENAME foo bar", "<CrossSlot>"),
            ("SORT foo STORE bar", "<CrossSlot>"),
            ("BLMOVE foo bar LEFT LEFT 0", "<CrossSlot>"),
            ("BLMOVE foo {foo} LEFT LEFT 0", "G@12182 LMOVE foo {foo} LEFT LEFT"),
            ("SORT foo BY w_* STORE {foo}", "<CrossSlot>"),
            ("SORT foo GET {foo}* STORE {foo}", "<CrossSlot>"),
            ("SORT foo BY nosort STORE {foo}", "G@12182 EVAL <script> 2 foo {foo} SORT foo BY nosort STORE {foo}"),
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
            ("FT.DROPINDEX foo", "<Search>"),
        ],
    );
    check(&["v9.0c"], &[("MOVE foo 3", "<MoveInCluster>")]);
}
