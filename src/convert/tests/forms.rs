//! Exact commands of every form of a whole value, by target.

use super::build::*;
use super::*;
use ObjectType as T;

fn ok(capabilities: Capabilities, policy: &str, meta: KeyMeta<'_>, body: &[u8]) -> Vec<String> {
    whole(capabilities, policy, meta, body).unwrap().0
}

fn refusal(capabilities: Capabilities, meta: KeyMeta<'_>, body: &[u8]) -> String {
    whole(capabilities, "", meta, body).unwrap_err().to_string()
}

#[test]
fn every_form_of_a_string() {
    let target = || redis(7, 0);
    assert_eq!(ok(target(), "", meta("k", T::String, None), &string(b"v")), ["SET k v"]);
    assert_eq!(ok(target(), "", meta("k", T::String, None), b"\x00"), ["SET k "]);
    assert_eq!(ok(target(), "", meta("k", T::String, None), &string(b"-70000")), ["SET k -70000"]);
    let later = NOW_MS + 1;
    assert_eq!(ok(target(), "", meta("k", T::String, Some(later)), &string(b"v")), [format!("SET k v PXAT {later}")]);
    // LZF: 'a', then a copy of 40 bytes from one byte back.
    let lzf = b"\xc3\x05\x29\x00a\xe0\x1f\x00";
    assert_eq!(ok(target(), "", meta("k", T::String, None), lzf), [format!("SET k {}", "a".repeat(41))]);
}

#[test]
fn strings_of_every_length_are_one_set() {
    for key_len in [0, 1, 300, 8000, 20_000] {
        let key = "k".repeat(key_len);
        for len in [0usize, 1, 99, 100, 1023, 1024, 7900, 8192, 100_000] {
            let value = vec![b'v'; len];
            for expiry in [None, Some(NOW_MS + 1)] {
                let lines = ok(redis(7, 0), "", meta(&key, T::String, expiry), &string(&value));
                let pxat = expiry.map_or(String::new(), |ms| format!(" PXAT {ms}"));
                assert_eq!(lines, [format!("SET {key} {}{pxat}", "v".repeat(len))]);
            }
        }
    }
}

#[test]
fn an_expired_key_is_deleted() {
    for (object_type, body) in [(T::String, string(b"v")), (T::Hash, strings(2, &["f", "v"])), (T::Json, string(b"{}"))]
    {
        let (lines, tally) = whole(redis(7, 0), "", meta("k", object_type, Some(NOW_MS)), &body).unwrap();
        assert_eq!(lines, ["DEL k"]);
        assert_eq!(tally.total().keys_expired, 1);
    }
}

#[test]
fn small_collections_are_restored_where_the_type_is_known() {
    let expiry = Some(NOW_MS + 5);
    let hash = listpack_value(&["f", "v", "5", "6"]);
    let lines = ok(redis(7, 0), "", meta("h", T::HashListpack, expiry), &hash);
    let payload = escape::printable(&[&[16], &hash[..]].concat());
    assert_eq!(lines, [format!("RESTORE h {} {payload} REPLACE ABSTTL", NOW_MS + 5)]);
    assert_eq!(
        ok(redis(6, 2), "", meta("h", T::HashListpack, expiry), &hash),
        ["DEL h".to_string(), "HSET h f v 5 6".into(), format!("PEXPIREAT h {}", NOW_MS + 5)]
    );

    let zset = listpack_value(&["a", "1", "b", "2.5"]);
    assert!(ok(redis(7, 0), "", meta("z", T::ZsetListpack, None), &zset)[0].starts_with("RESTORE z 0 \\x11"));
    assert_eq!(ok(redis(6, 2), "", meta("z", T::ZsetListpack, None), &zset), ["DEL z", "ZADD z 1 a 2.5 b"]);

    let list = list(&[&["x", "7"], &["y"]]);
    assert!(ok(valkey(8, 1), "", meta("l", T::ListNodes, None), &list)[0].starts_with("RESTORE l 0 \\x12\\x02"));
    assert_eq!(ok(redis(6, 2), "", meta("l", T::ListNodes, None), &list), ["DEL l", "RPUSH l x 7 y"]);

    for (object_type, body) in [
        (T::Set, strings(1, &["a", "5"])),
        (T::Hash, strings(2, &["a", "5"])),
        (T::Zset, [vec![1], zset_run(&[("m", 1.5)])].concat()),
    ] {
        let lines = ok(redis(6, 2), "", meta("k", object_type, None), &body);
        let payload = escape::printable(&[&[object_type as u8], &body[..]].concat());
        assert_eq!(lines, [format!("RESTORE k 0 {payload} REPLACE ABSTTL")]);
    }
}

#[test]
fn collections_beyond_the_limit_go_by_commands() {
    let body = [vec![3], zset_run(&[("m", f64::INFINITY), ("n", 0.1), ("o", -3.0)])].concat();
    let limits = Limits { restore_bytes_max: 10, ..Limits::default() };
    let mut converter = converter(redis(7, 0), "", limits);
    let mut out = VecOut::new();
    let meta = meta("z", T::Zset, Some(NOW_MS + 1));
    converter.event(&Event::Whole { meta, body: &body }, NOW_MS, &mut out).unwrap();
    assert_eq!(
        lines(&out),
        ["DEL z".to_string(), "ZADD z inf m 0.1 n -3 o".into(), format!("PEXPIREAT z {}", NOW_MS + 1)]
    );
    assert_eq!(converter.tally().total().elements_written, 3);
}

#[test]
fn lists_are_guarded_and_the_rest_is_blind() {
    let limits = Limits { restore_bytes_max: 0, ..Limits::default() };
    let mut converter = converter(redis(7, 0), "", limits);
    let mut out = VecOut::new();
    for (key, object_type, body) in [
        ("l", T::ListNodes, list(&[&["x"]])),
        ("s", T::Set, strings(1, &["x"])),
        ("h", T::Hash, strings(2, &["x", "y"])),
    ] {
        converter.event(&Event::Whole { meta: meta(key, object_type, None), body: &body }, NOW_MS, &mut out).unwrap();
    }
    let classes: Vec<Class> = out.commands().map(|(meta, _)| meta.class).collect();
    use Class::{Blind as B, Guarded as G};
    assert_eq!(classes, [B, G, B, B, B, B]);
}

#[test]
fn empty_collections_are_deleted() {
    for (object_type, body) in [
        (T::Set, vec![0]),
        (T::Hash, vec![0]),
        (T::ListNodes, vec![0]),
        (T::ListNodes, list(&[&[], &[]])),
        (T::HashListpack, listpack_value(&[])),
        (T::ZsetListpack, listpack_value(&[])),
        (T::HashExpiry, vec![0]),
    ] {
        let (lines, tally) = whole(redis(7, 0), "", meta("k", object_type, None), &body).unwrap();
        assert_eq!(lines, ["DEL k"], "{object_type:?}");
        assert_eq!(tally.total().keys_expired, 1);
    }
}

const SOON_S: i64 = NOW_MS / 1000 + 10;

fn hash_with_expiries() -> Vec<u8> {
    let (soon, later, past) = (expiry(Some(SOON_S)), expiry(Some(SOON_S + 1)), expiry(Some(NOW_MS / 1000)));
    strings(3, &["f", "v", &later, "g", "7", "-1", "gone", "x", &past, "h", "w", &soon])
}

#[test]
fn hash_fields_keep_their_expiries_where_they_can() {
    let body = hash_with_expiries();
    let meta = meta("h", T::HashExpiry, None);
    let type_24 = [
        &[24][..],
        &(SOON_S * 1000).to_le_bytes(),
        b"\x03",
        b"\x43\xe9\x01f\x01v", // 1000 ms after the earliest, plus 1
        b"\x00\x01g\xc0\x07",
        b"\x01\x01h\x01w",
    ];
    let payload = escape::printable(&type_24.concat());
    assert_eq!(ok(redis(7, 4), "", meta, &body), [format!("RESTORE h 0 {payload} REPLACE ABSTTL")]);
    let type_22 = [
        &[22, 3][..],
        b"\x01f\x01v",
        &((SOON_S + 1) * 1000).to_le_bytes(),
        b"\x01g\xc0\x07",
        &[255; 8],
        b"\x01h\x01w",
        &(SOON_S * 1000).to_le_bytes(),
    ];
    let payload = escape::printable(&type_22.concat());
    assert_eq!(ok(valkey(9, 0), "", meta, &body), [format!("RESTORE h 0 {payload} REPLACE ABSTTL")]);
}

#[test]
fn hash_fields_lose_their_expiries_only_by_policy() {
    let body = hash_with_expiries();
    let meta = meta("h", T::HashExpiry, None);
    insta::assert_snapshot!(refusal(redis(7, 2), meta, &body), @r#"flow 1: key "h" in database 0 is a hash with field expiries, which the target cannot hold (Redis 7.2.0 has no HPEXPIREAT; Redis 7.4 and Valkey 9.0 have it); to go on all the same: --on-unsupported field-expiry=drop"#);
    let (lines, mut tally) = whole(redis(7, 2), "field-expiry=drop", meta, &body).unwrap();
    let payload = escape::printable(b"\x04\x03\x01f\x01v\x01g\xc0\x07\x01h\x01w");
    assert_eq!(lines, [format!("RESTORE h 0 {payload} REPLACE ABSTTL")]);
    assert_eq!(tally.dropped(Kind::FieldExpiry), 2);
    let listed = tally.take_not_carried();
    assert_eq!((listed[0].key.as_str(), listed[0].action, listed[0].count), ("h", Action::Drop, 2));
}

#[test]
fn hashes_without_any_expiry_left_are_plain() {
    let past = expiry(Some(NOW_MS / 1000));
    let meta = meta("h", T::HashExpiry, None);
    let payload = escape::printable(b"\x04\x01\x01g\x01w");
    for target in [redis(6, 2), redis(7, 4), valkey(9, 0)] {
        let lines = ok(target.clone(), "", meta, &strings(3, &["g", "w", "-1", "f", "v", &past]));
        assert_eq!(lines, [format!("RESTORE h 0 {payload} REPLACE ABSTTL")]);
        assert_eq!(ok(target, "", meta, &strings(3, &["f", "v", &past])), ["DEL h"]);
    }
}

#[test]
fn large_hashes_get_their_expiries_by_command() {
    let limits = Limits { restore_bytes_max: 10, ..Limits::default() };
    let mut converter = converter(redis(7, 4), "", limits);
    let mut out = VecOut::new();
    let body = hash_with_expiries();
    converter.event(&Event::Whole { meta: meta("h", T::HashExpiry, None), body: &body }, NOW_MS, &mut out).unwrap();
    assert_eq!(
        lines(&out),
        [
            "DEL h".to_string(),
            "HSET h f v g 7 h w".into(),
            format!("HPEXPIREAT h {} FIELDS 1 h", SOON_S * 1000),
            format!("HPEXPIREAT h {} FIELDS 1 f", (SOON_S + 1) * 1000),
        ]
    );
}

#[test]
fn set_members_can_keep_no_expiry() {
    let (soon, past) = (expiry(Some(SOON_S)), expiry(Some(NOW_MS / 1000)));
    let body = strings(2, &["a", &soon, "b", "-1", "c", &past]);
    let meta = meta("s", T::SetExpiry, None);
    insta::assert_snapshot!(refusal(redis(8, 2), meta, &body), @r#"flow 1: key "s" in database 0 is a set with member expiries, which the target cannot hold (no Redis or Valkey has expiries of set members); to go on all the same: --on-unsupported member-expiry=drop"#);
    let (lines, tally) = whole(redis(8, 2), "skip", meta, &body).unwrap();
    assert_eq!(lines, [r"RESTORE s 0 \x02\x02\x01a\x01b REPLACE ABSTTL"]);
    assert_eq!(tally.dropped(Kind::MemberExpiry), 1);
    assert_eq!(ok(redis(8, 2), "", meta, &strings(2, &["b", "-1"])), [r"RESTORE s 0 \x02\x01\x01b REPLACE ABSTTL"]);
    assert_eq!(ok(redis(8, 2), "", meta, &strings(2, &["c", &past])), ["DEL s"]);
}

#[test]
fn json_documents() {
    let mut with_module = redis(8, 0);
    with_module.json = true;
    let expiry = Some(NOW_MS + 1);
    assert_eq!(
        ok(with_module.clone(), "", meta("j", T::Json, expiry), &string(br#"{"a":1}"#)),
        ["DEL j".to_string(), r#"JSON.SET j $ {\"a\":1}"#.into(), format!("PEXPIREAT j {}", NOW_MS + 1)]
    );
    assert_eq!(ok(with_module, "", meta("j", T::JsonOld, None), &string(b"123")), ["DEL j", "JSON.SET j $ 123"]);
    insta::assert_snapshot!(refusal(redis(7, 0), meta("j", T::Json, None), &string(b"{}")), @r#"flow 1: key "j" in database 0 is a JSON document, which the target cannot hold (Redis 7.0.0 has no JSON.SET); to go on all the same: --on-unsupported json=skip or --on-unsupported json=string"#);
    assert_eq!(
        ok(redis(7, 0), "json=string", meta("j", T::Json, expiry), &string(b"123")),
        [format!("SET j 123 PXAT {}", NOW_MS + 1)]
    );
    let (lines, tally) = whole(redis(7, 0), "skip", meta("j", T::Json, None), &string(b"{}")).unwrap();
    assert_eq!(lines, ["DEL j"]);
    assert_eq!((tally.skipped(Kind::Json), tally.of(TypeClass::Json).keys_skipped), (1, 1));
}

#[test]
fn filters_are_refused_or_skipped() {
    for object_type in [T::Bloom, T::BloomPieces, T::CountMinSketch, T::TopK, T::Cuckoo] {
        assert!(refusal(redis(8, 2), meta("b", object_type, None), b"").contains("filters=skip"));
        let (lines, mut tally) = whole(redis(8, 2), "filters=skip", meta("b", object_type, None), b"").unwrap();
        assert_eq!(lines, ["DEL b"]);
        assert_eq!(tally.take_not_carried()[0].what, What::Kind(Kind::Filters));
    }
}

#[test]
fn strings_beyond_the_targets_limit_follow_the_policy() {
    let mut small = redis(7, 0);
    small.bulk_bytes_max = 1000;
    let long = string(&[b'v'; 1001]);
    assert!(refusal(small.clone(), meta("k", T::String, None), &long).contains("proto-max-bulk-len"));
    assert_eq!(ok(small.clone(), "large-string=skip", meta("k", T::String, None), &long), ["DEL k"]);
    // An element of a collection likewise; the others stay.
    let value = "v".repeat(1001);
    let body = strings(2, &["f", &value, "g", "w"]);
    assert!(refusal(small.clone(), meta("h", T::Hash, None), &body).contains("large-string=skip"));
    assert_eq!(ok(small, "skip", meta("h", T::Hash, None), &body), ["DEL h", "HSET h g w"]);
}

#[test]
fn attributes_without_a_place_are_counted() {
    let meta = KeyMeta { sticky: true, memcached_flags: Some(7), ..meta("k", T::String, None) };
    let (lines, tally) = whole(redis(7, 0), "", meta, &string(b"v")).unwrap();
    assert_eq!(lines, ["SET k v"]);
    assert_eq!((tally.sticky_dropped, tally.memcached_flags_dropped), (1, 1));
}

#[test]
fn aux_fields() {
    use crate::dragonfly::Text;
    let mut converter = converter(redis(7, 0), "", Limits::default());
    let mut out = VecOut::new();
    for (name, value) in [
        ("redis-ver", "6.2.11"),
        ("df-ver", "df-v1.40.1"),
        ("lua", "return 1"),
        ("search-index", "idx ON HASH SCHEMA a TEXT"),
        ("search-synonyms", "idx g a b"),
    ] {
        let aux = Event::Aux { name: Text::Raw(name.as_bytes()), value: Text::Raw(value.as_bytes()) };
        converter.event(&aux, NOW_MS, &mut out).unwrap();
    }
    assert_eq!(lines(&out), ["SCRIPT LOAD return 1"]);
    assert!(out.commands().all(|(meta, _)| meta.all_nodes));
    assert_eq!(converter.source_version(), Some("df-v1.40.1"));
    let listed: Vec<_> = converter.tally_mut().take_not_carried().into_iter().map(|entry| entry.what.name()).collect();
    assert_eq!(listed, ["search-index", "search-synonyms"]);
}

#[test]
fn slots_are_worked_out_for_a_cluster() {
    let mut cluster = redis(7, 0);
    for (is_cluster, slot) in [(true, 12182), (false, 0)] {
        cluster.cluster = is_cluster;
        let mut converter = converter(cluster.clone(), "", Limits::default());
        let mut out = VecOut::new();
        let event = Event::Whole { meta: meta("foo", T::String, None), body: b"\x01v" };
        converter.event(&event, NOW_MS, &mut out).unwrap();
        assert_eq!(out.commands().next().unwrap().0.slot.0, slot);
    }
}

#[test]
fn journal_blobs_are_not_for_the_converter() {
    let mut converter = converter(redis(7, 0), "", Limits::default());
    let blob = Event::JournalBlob { record: b"" };
    assert_eq!(converter.event(&blob, NOW_MS, &mut VecOut::new()), Err(ConvertError::JournalBlob { flow: FlowId(1) }));
}
