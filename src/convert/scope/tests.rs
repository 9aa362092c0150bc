//! Every row of the table under filters; rewriting; what is refused.

use super::record::class_of_name;
use super::*;
use crate::convert::journal::table::{Keys, TABLE};

fn spec(text: &str) -> ScopeSpec {
    let mut spec = ScopeSpec::default();
    for part in text.split_ascii_whitespace() {
        let (name, value) = part.split_once('~').unwrap();
        let list = match name {
            "include-key" => &mut spec.include_key,
            "exclude-key" => &mut spec.exclude_key,
            "include-prefix" => &mut spec.include_prefix,
            "exclude-prefix" => &mut spec.exclude_prefix,
            "include-type" => &mut spec.include_type,
            "exclude-type" => &mut spec.exclude_type,
            "include-db" => &mut spec.include_db,
            "exclude-db" => &mut spec.exclude_db,
            "rewrite" => &mut spec.rewrite_prefix,
            "db-map" => &mut spec.db_map,
            _ => panic!("{name}"),
        };
        list.push(value.to_string());
    }
    spec
}

fn scope(text: &str) -> Scope {
    Scope::new(spec(text)).unwrap()
}

/// What becomes of a record, with its names at the target.
fn record(scope: &Scope, db: u32, line: &str) -> String {
    let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    let mut sketch = Sketch::default();
    let mut named = |args: &[&[u8]]| match scope.name_record(DbIndex(db), args, &mut sketch) {
        Ok(to) => {
            let record = sketch.record(args);
            let text = record.iter().map(|arg| String::from_utf8_lossy(arg)).collect::<Vec<_>>().join(" ");
            if to.0 == 0 { text } else { format!("{to}: {text}") }
        }
        Err(error) => format!("refused: {error}"),
    };
    match scope.filter_record(DbIndex(db), &args) {
        Ok(Scoped::Same) => named(&args),
        Ok(Scoped::Instead { records, .. }) => {
            records.iter().map(|record| named(record)).collect::<Vec<_>>().join(", ")
        }
        Ok(Scoped::Out(reason)) => format!("({})", reason.name()),
        Err(error) => format!("refused: {error}").chars().take(70).collect(),
    }
}

#[test]
fn keys_are_admitted_by_any_include_and_no_exclude() {
    let scope = scope("include-key~user:* include-prefix~[x] exclude-key~*:tmp exclude-db~3 exclude-type~hash");
    let admits = |db, key: &str, class| scope.admits(DbIndex(db), key.as_bytes(), class);
    assert_eq!(admits(0, "user:1", None), Ok(()));
    assert_eq!(admits(0, "[x]y", Some(TypeClass::Set)), Ok(()));
    assert_eq!(admits(0, "user:1:tmp", None), Err(Reason::Key));
    assert_eq!(admits(0, "other", None), Err(Reason::Key));
    assert_eq!(admits(3, "user:1", None), Err(Reason::Db));
    assert_eq!(admits(0, "user:1", Some(TypeClass::Hash)), Err(Reason::Type));
    assert!(!scope.is_plain(DbIndex(0)) && Scope::everything().is_plain(DbIndex(7)));
    assert!(!Scope::everything().within(4).is_plain(DbIndex(4)));
}

#[test]
fn records_over_the_border_of_a_key_filter() {
    let scope = scope("include-prefix~k");
    let lines = [
        "SET k1 v",
        "SET o1 v",
        "DEL k1 o1 k2",
        "DEL o1",
        "MSET o1 1 k1 2 o2 3",
        "MSETNX k1 1",
        "JSON.MSET o $ 1 k $ 2",
        "RENAME k1 k2",
        "RENAME k1 o1",
        "RENAME o1 k1",
        "RENAME o1 o2",
        "RENAMENX o1 k1",
        "LMOVE k1 o1 LEFT RIGHT",
        "LMOVE k1 o1 RIGHT LEFT",
        "LMOVE o1 k1 LEFT RIGHT",
        "BLMOVE k1 o1 LEFT LEFT 0",
        "RPOPLPUSH k1 o1",
        "BRPOPLPUSH k1 k2 0",
        "SORT k1 STORE k2",
        "SORT k1 STORE o2",
        "SORT o1 STORE k2",
        "SORT k1 BY w_* STORE k2",
        "SORT k1 BY nosort STORE k2",
        "GEORADIUS o 1 2 3 km STORE k",
        "GEORADIUS k 1 2 3 km STORE o",
        "GEORADIUS k 1 2 3 km STORE k2",
        "CMS.MERGE k 2 k1 k2",
        "CMS.MERGE k 2 k1 o2",
        "CMS.MERGE o 1 k1",
        "XGROUP CREATE k g 0",
        "XGROUP CREATE o g 0",
        "STICK o k",
        "FLUSHALL",
        "SCRIPT LOAD x",
        "MOVE k 3",
        "MOVE o 3",
        "UNKNOWN o",
    ];
    let shown: Vec<String> = lines.iter().map(|line| format!("{line} -> {}", record(&scope, 0, line))).collect();
    insta::assert_snapshot!(shown.join("\n"));
}

#[test]
fn what_older_sources_record_over_the_border() {
    let keys = scope("include-prefix~k");
    let lists = scope("include-type~list");
    let zsets = scope("include-type~zset");
    let names = scope("rewrite~k=n");
    for (scope, line, expected) in [
        (&keys, "LMPOP 2 k1 k2 LEFT", "same"),
        (&keys, "LMPOP 2 o1 o2 LEFT", "("),
        (&keys, "LMPOP 2 k1 o2 LEFT", "refused"),
        (&keys, "BLMPOP 0 2 o1 k2 LEFT", "refused"),
        (&keys, "ZMPOP k1 o1", "refused"),
        (&keys, "ZRANGESTORE k1 k2 0 1", "same"),
        (&keys, "ZRANGESTORE o1 k2 0 1", "("),
        (&keys, "ZRANGESTORE k1 o2 0 1", "refused"),
        (&keys, "ZUNIONSTORE k1 2 k2 k3 WEIGHTS 1 2", "same"),
        (&keys, "ZUNIONSTORE k1 2 k2 o3", "refused"),
        (&keys, "ZINTERSTORE o1 1 k2", "("),
        (&keys, "ZUNIONSTORE k1 k2", "same"),
        (&keys, "ZUNIONSTORE o1 k2", "ZUNIONSTORE k2"),
        (&keys, "ZDIFFSTORE o1", "("),
        (&keys, "GEORADIUS k1", "same"),
        (&keys, "GEORADIUSBYMEMBER o1", "("),
        (&keys, "GEORADIUS k1 1 2 3 km", "same"),
        (&keys, "CMS.MERGE k1 k2", "same"),
        (&keys, "CMS.MERGE k1 o2", "CMS.MERGE k1"),
        (&keys, "CMS.MERGE o1 k2", "CMS.MERGE k2"),
        (&keys, "CMS.MERGE o1 o2", "("),
        (&keys, "SORT STORE k1", "same"),
        (&keys, "SORT k1 ALPHA k2", "same"),
        (&keys, "SORT o1 ALPHA k2 DESC", "SORT k2"),
        (&keys, "SORT STORE o1", "("),
        (&keys, "SORT k1", "same"),
        (&names, "SORT STORE k1", "SORT STORE n1"),
        (&names, "GEORADIUS k1", "GEORADIUS n1"),
        (&lists, "GEORADIUS z", "DEL z"),
        (&lists, "SORT ALPHA l", "same"),
        (&keys, "ZRANGESTORE k1 o2", "ZRANGESTORE k1"),
        (&lists, "ZRANGESTORE z", "DEL z"),
        (&keys, "PFMERGE k1 o1", "PFMERGE k1"),
        (&lists, "ZDIFFSTORE l 1 z", "DEL l"),
        (&lists, "ZDIFFSTORE l z", "same"),
        (&zsets, "ZUNIONSTORE z 1 y", "refused"),
        (&lists, "LMPOP 1 l LEFT", "same"),
        (&lists, "ZMPOP 1 z MIN", "("),
        (&lists, "ZRANGESTORE l z 0 1", "DEL l"),
    ] {
        let shown = record(scope, 0, line);
        let expected = if expected == "same" { line } else { expected };
        assert!(shown.starts_with(expected), "{line}: {shown}");
    }
}

#[test]
fn records_under_a_type_filter() {
    let strings_out = scope("exclude-type~string");
    let lines = [
        "SET k v",
        "MSET a 1 b 2",
        "SETEX k 5 v",
        "INCR k",
        "SETNX k v",
        "GETDEL k",
        "DEL k",
        "PEXPIREAT k 5",
        "PERSIST k",
        "RENAME a b",
        "RENAME a a",
        "HSET h f v",
        "MOVE k 1",
        "SORT l STORE d",
        "FIELDEXPIRE h 1 f",
    ];
    let shown: Vec<String> = lines.iter().map(|line| format!("{line} -> {}", record(&strings_out, 0, line))).collect();
    let hashes = scope("include-type~hash");
    let more = [
        "HSET h f v",
        "SADD s m",
        "ZADD z 1 m",
        "RPUSH l e",
        "XADD x 1-1 f v",
        "JSON.SET j $ 1",
        "JSON.MSET j $ 1 i $ 2",
        "BF.ADD b x",
        "LMOVE a b LEFT LEFT",
        "SORT l STORE d",
        "GEORADIUS k 1 2 3 km STORE d",
    ];
    let more: Vec<String> = more.iter().map(|line| format!("{line} => {}", record(&hashes, 0, line))).collect();
    insta::assert_snapshot!(format!("{}\n{}", shown.join("\n"), more.join("\n")));
}

#[test]
fn the_type_of_a_restore_is_in_its_payload() {
    let payload = [0, 3, 0x62, 0x61, 0x72, 9, 0, 0x36, 0x4c, 0x18, 0xac, 0xba, 0xe0, 0x9e, 0xa6];
    let args: [&[u8]; 4] = [b"RESTORE", b"k", b"0", &payload];
    assert_eq!(scope("exclude-type~hash").filter_record(DbIndex(0), &args), Ok(Scoped::Same));
    let out = scope("exclude-type~string").filter_record(DbIndex(0), &args).unwrap();
    assert!(
        matches!(out, Scoped::Instead { ref records, .. } if records[0].as_slice() == [&b"DEL"[..], b"k"]),
        "{out:?}"
    );
}

#[test]
fn databases_are_filtered_and_mapped() {
    let scope = scope("exclude-db~2 db-map~0:5 db-map~5:0");
    let shown: Vec<String> = [
        (0, "SET k v"),
        (2, "SET k v"),
        (5, "SET k v"),
        (0, "MOVE k 5"),
        (0, "MOVE k 2"),
        (2, "MOVE k 0"),
        (2, "MOVE k 2"),
        (2, "FLUSHDB"),
        (5, "FLUSHDB"),
        (5, "SCRIPT LOAD x"),
    ]
    .iter()
    .map(|(db, line)| format!("{db}: {line} -> {}", record(&scope, *db, line)))
    .collect();
    insta::assert_snapshot!(shown.join("\n"));
    for (scope, db) in [(Scope::everything().within(1), 3), (Scope::everything().within(2), 2)] {
        let refused = record(&scope, 0, &format!("MOVE k {db}"));
        assert!(refused.starts_with(&format!("refused: database {db}")), "{refused}");
    }
    assert_eq!(record(&Scope::everything().within(2), 0, "MOVE k 1"), "MOVE k 1");
}

#[test]
fn names_are_rewritten_wherever_a_key_stands() {
    let scope = scope("rewrite~a:=x: rewrite~a:b:=y: rewrite~=z:");
    let lines = [
        "SET a:1 a:2",
        "SET a:b:1 v",
        "SET q v",
        "MSET a:1 a:1 b a:1",
        "RENAME a:1 a:b:2",
        "SORT a:1 LIMIT 0 1 STORE a:2",
        "XGROUP CREATE a:1 a:g 0",
        "GEORADIUS a:1 1 2 3 km STORE a:2",
        "CMS.MERGE a:d 2 a:1 a:2",
        "BITFIELD a: SET u8 0 1",
        "JSON.MSET a:1 $ 1 a:2 $ 2",
        "RESTORE a:1 0 P",
        "SORT a:1 BY a:* STORE a:2",
        "FT.CREATE idx",
        "DEL",
    ];
    let shown: Vec<String> = lines.iter().map(|line| format!("{line} -> {}", record(&scope, 0, line))).collect();
    insta::assert_snapshot!(shown.join("\n"));
}

#[test]
fn two_keys_never_get_one_name() {
    let one = scope("rewrite~old:=new:");
    assert_eq!(one.at_target(DbIndex(0), b"old:1"), Ok((DbIndex(0), b"new:1".to_vec())));
    assert!(one.at_target(DbIndex(0), b"new:1").unwrap_err().to_string().contains("new:1"));
    let swap = scope("rewrite~a:=b: rewrite~b:=a:");
    assert_eq!(swap.at_target(DbIndex(0), b"b:1").unwrap().1, b"a:1");
    for bad in [
        "rewrite~a=x rewrite~b=x",
        "rewrite~a=x rewrite~b=xy",
        "rewrite~a=x rewrite~a=y",
        "rewrite~a=",
        "rewrite~noequals",
    ] {
        let built = Scope::new(spec(bad));
        if bad == "rewrite~a=" {
            // Nothing else may keep its name then.
            assert!(built.unwrap().at_target(DbIndex(0), b"b").is_err());
        } else {
            assert!(built.is_err(), "{bad}");
        }
    }
}

/// A new row must say of which type its key is, or stand here among those whose type is not told.
#[test]
fn every_command_has_a_type_or_is_known_to_have_none() {
    let without: Vec<&str> = TABLE
        .iter()
        .filter(|row| row.keys != Keys::Nothing && class_of_name(row.name).is_none())
        .map(|row| row.name)
        .collect();
    insta::assert_snapshot!(without.join(" "));
}
