//! Hostile records: a typed error or a well-formed command, never a panic, and nothing written before an error.

use super::super::*;
use super::support::*;
use proptest::prelude::*;

/// One good record of every name, and of every form that is read in its own way.
pub const GOOD: &[&str] = &[
    "SET k v PXAT 5 STICK _MCFLAGS 7",
    "SET k v",
    "MSET a 1 b 2",
    "DEL a b",
    "INCR k",
    "DECR k",
    "INCRBY k 1",
    "DECRBY k 1",
    "INCRBYFLOAT k 1",
    "APPEND k v",
    "PREPEND k v",
    "SETRANGE k 1 v",
    "SETBIT k 1 1",
    "BITFIELD k SET u8 0 1",
    "SETNX k v",
    "GETSET k v",
    "GETDEL k",
    "DELEX k IFEQ v",
    "PFADD k a",
    "PFCOUNT k",
    "PFMERGE d a",
    "CL.THROTTLE k 1 2 3 4",
    "MSETNX a 1",
    "SETEX k 1 v",
    "PSETEX k 1 v",
    "GETEX k EX 1",
    "UNLINK a",
    "PEXPIREAT k 1",
    "PERSIST k",
    "EXPIRE k 1",
    "PEXPIRE k 1",
    "EXPIREAT k 1",
    "RENAME a b",
    "RENAMENX a b",
    "MOVE k 1",
    "RESTORE k 0 payload REPLACE",
    "STICK a",
    "SHRINK",
    "SORT a LIMIT 0 1 STORE b",
    "HSET k f v",
    "HMSET k f v",
    "HSETNX k f v",
    "HDEL k f",
    "HINCRBY k f 1",
    "HINCRBYFLOAT k f 1",
    "HEXPIRE k 1 NX FIELDS 1 f",
    "HSETEX k NX KEEPTTL 1 f v",
    "HSETEX k FNX EX 1 FIELDS 1 f v",
    "HGETEX k EX 1 FIELDS 1 f",
    "FIELDEXPIRE k 1 f",
    "LPUSH k a",
    "RPUSH k a",
    "LPUSHX k a",
    "RPUSHX k a",
    "LPOP k",
    "RPOP k",
    "LINSERT k BEFORE a b",
    "LSET k 0 a",
    "LTRIM k 0 1",
    "LREM k 0 a",
    "LMPOP 2 a b LEFT",
    "BLMPOP 0 2 a b RIGHT COUNT 3",
    "LMOVE a b LEFT LEFT",
    "BLMOVE a b LEFT LEFT 0",
    "RPOPLPUSH a b",
    "BRPOPLPUSH a b 0",
    "SADD k a",
    "SREM k a",
    "SADDEX k KEEPTTL 1 a",
    "ZADD k NX 1 a",
    "ZINCRBY k 1 a",
    "ZREM k a",
    "ZPOPMIN k",
    "ZPOPMAX k",
    "ZREMRANGEBYRANK k 0 1",
    "ZREMRANGEBYSCORE k 0 1",
    "ZREMRANGEBYLEX k a b",
    "ZMPOP 1 a MIN COUNT 3",
    "ZUNIONSTORE d 2 a b WEIGHTS 1 2 AGGREGATE MAX",
    "ZINTERSTORE d 1 a",
    "ZDIFFSTORE d 2 a b",
    "ZINTER 1 a",
    "ZRANGESTORE d s 0 -1",
    "GEOADD k NX 1 2 a",
    "GEORADIUS k 1 2 3 km STORE d",
    "GEORADIUSBYMEMBER k m 3 km STORE d",
    "XADD k MAXLEN ~ 5 LIMIT 3 1-1 f v",
    "XTRIM k MAXLEN 0",
    "XDEL k 1-1",
    "XACK k g 1-1",
    "XCLAIM k g c 0 1-1 IDLE 1 RETRYCOUNT 1 FORCE",
    "XAUTOCLAIM k g c 0 0",
    "XSETID k 1 ENTRIESADDED 1",
    "XGROUP SETID k g 1 ENTRIESREAD 1",
    "JSON.SET k $ 1",
    "JSON.MSET a $ 1 b $.x 2",
    "JSON.DEL k",
    "JSON.FORGET k",
    "JSON.MERGE k $ 1",
    "JSON.CLEAR k",
    "JSON.TOGGLE k",
    "JSON.NUMINCRBY k $ 1",
    "JSON.NUMMULTBY k $ 1",
    "JSON.STRAPPEND k $ 1",
    "JSON.ARRAPPEND k $ 1",
    "JSON.ARRINSERT k $ 0 1",
    "JSON.ARRPOP k",
    "JSON.ARRTRIM k $ 0 1",
    "BF.RESERVE k 1 1",
    "BF.ADD k a",
    "BF.MADD k a",
    "BF.LOADCHUNK k 1 x",
    "CF.RESERVE k 1",
    "CF.ADD k a",
    "CF.ADDNX k a",
    "CF.INSERT k ITEMS a",
    "CF.INSERTNX k ITEMS a",
    "CF.DEL k a",
    "CF.COMPACT k",
    "CMS.INITBYDIM k 1 1",
    "CMS.INITBYPROB k 1 1",
    "CMS.INCRBY k a 1",
    "CMS.MERGE d 1 a",
    "TOPK.RESERVE k 1",
    "TOPK.ADD k a",
    "TOPK.INCRBY k a 1",
    "FT.CREATE i",
    "FT.ALTER i",
    "FT.DROPINDEX i",
    "FT.SYNUPDATE i",
    "SCRIPT LOAD x",
    "FLUSHALL",
    "FLUSHDB",
    "DFLYCLUSTER FLUSHSLOTS 0 1",
    "PING",
];

const HOSTILE: [&[u8]; 14] = [
    b"",
    b"-1",
    b"abc",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"99999999999999999999",
    b"\xff\x00\r\n",
    b"*",
    b"STORE",
    b"FIELDS",
    b"KEEPTTL",
    b"PXAT",
    b"{}",
    b"16384",
];

fn survives(translator: &mut JournalTranslator, args: &[&[u8]]) {
    // `run` checks that an error wrote nothing, that commands are whole and that a Guarded one is the last of its slot.
    let (result, _) = run(translator, 0, args);
    if let Err(error) = result {
        assert!(!error.to_string().is_empty());
    }
    let _ = (keys_of(args).count(), stray_candidate(args));
    let _ = Suspects::new(1000, None).record(DbIndex(0), args, false);
}

#[test]
fn every_name_of_the_table_has_an_example() {
    for row in table::TABLE {
        assert!(GOOD.iter().any(|line| line.split(' ').next() == Some(row.name)), "{}", row.name);
    }
}

#[test]
fn only_too_short_records_are_of_wrong_arity() {
    for line in GOOD.iter().filter(|line| !line.starts_with("RESTORE")) {
        let (result, _) = run(&mut translator("stack", skip_all()), 0, &split(line));
        assert!(result.is_ok(), "{line}: {result:?}");
    }
}

#[test]
fn each_truncation_and_each_hostile_argument_is_survived() {
    for target in ["6.2", "stackc", "v9.0"] {
        for policy in [Policy::default(), skip_all()] {
            let mut translator = translator(target, policy);
            for line in GOOD {
                let args = split(line);
                for length in 0..args.len() {
                    survives(&mut translator, &args[..length]);
                }
                for at in 0..args.len() {
                    for hostile in HOSTILE {
                        let mut args = args.clone();
                        args[at] = hostile;
                        survives(&mut translator, &args);
                        args.push(hostile);
                        survives(&mut translator, &args);
                    }
                }
            }
        }
    }
}

#[test]
fn missing_numbers_and_arguments_are_typed_errors() {
    let rows = [
        ("SET k", "2 strings, at least 3 are needed: the record is damaged or of an unknown form"),
        ("SET k v PXAT", "4 strings, at least 5 are needed: the record is damaged or of an unknown form"),
        ("SET k v PXAT x", "argument 4 should be an integer of 64 bits: the record is damaged or of an unknown form"),
        ("SET k v WHAT", "argument 3 is an option that is not known here: a newer Dragonfly, or a damaged record"),
        ("SETEX k 9223372036854775807 v", "a time of 9223372036854775807 (argument 2) is out of range"),
        ("MSET a 1 b", "the arguments do not come in groups of 2: the record is damaged or of an unknown form"),
        (
            "HEXPIRE k 1 FIELDS 2 f",
            "argument 4 should be the number of fields that follow: the record is damaged or of an unknown form",
        ),
        ("XADD k x f v", "argument 2 should be the id of a stream entry: the record is damaged or of an unknown form"),
        ("MOVE k -1", "argument 2 should be a database index: the record is damaged or of an unknown form"),
        (
            "DFLYCLUSTER FLUSHSLOTS 0 16384",
            "argument 3 should be a slot from 0 to 16383: the record is damaged or of an unknown form",
        ),
    ];
    for (line, expected) in rows {
        let error = run(&mut translator("8.0", skip_all()), 0, &split(line)).0.unwrap_err();
        assert_eq!(error.reason.to_string(), expected, "{line}");
    }
}

proptest! {
    #[test]
    fn random_records_are_survived(
        good in 0..GOOD.len(),
        edits in proptest::collection::vec((0usize..12, 0usize..14), 0..6),
        extra in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..12), 0..4),
        target in 0..TARGETS.len(),
        skip in any::<bool>(),
    ) {
        let mut args = split(GOOD[good]);
        args.extend(extra.iter().map(Vec::as_slice));
        for (at, hostile) in edits {
            if let Some(arg) = args.get_mut(1 + at) {
                *arg = HOSTILE[hostile];
            }
        }
        let policy = if skip { skip_all() } else { Policy::default() };
        survives(&mut translator(TARGETS[target], policy), &args);
    }
}
