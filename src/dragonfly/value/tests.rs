//! Elements of every container, and what is wrong with damaged ones.

use super::super::listpack::tests::{Plain, encode as listpack};
use super::super::testing::{lzf, packed, raw};
use super::super::ziplist::tests::encode as ziplist;
use super::super::{event::ObjectType, intset::tests::encode as intset};
use super::*;
use crate::ids::DbIndex;

fn plain(text: Text<'_>) -> String {
    let mut out = Vec::new();
    text.append_to(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn show(element: Element<'_>) -> String {
    match element {
        Element::Item(item) => plain(item),
        Element::Member { member, expire_at_ms: None } => plain(member),
        Element::Member { member, expire_at_ms: Some(at) } => format!("{}@{at}", plain(member)),
        Element::Field { field, value, expire_at_ms: None } => format!("{}={}", plain(field), plain(value)),
        Element::Field { field, value, expire_at_ms: Some(at) } => format!("{}={}@{at}", plain(field), plain(value)),
        Element::Scored { member, score } => format!("{}:{score}", plain(member)),
    }
}

fn walked(object_type: ObjectType, whole: bool, body: &[u8]) -> Result<Vec<String>, Reason> {
    let mut scratch = Scratch::default();
    let mut out = Vec::new();
    let visited = for_each_element(object_type, whole, body, &mut scratch, |element| {
        out.push(show(element));
        Ok::<_, ()>(())
    });
    match visited {
        Ok(visited) => {
            assert_eq!(visited, out.len() as u64);
            assert_eq!(count_elements(object_type, whole, body, &mut scratch), Ok(visited));
            Ok(out)
        }
        Err(WalkError::Decode(error)) => {
            assert_eq!(error.flow, DecodeError::UNPLACED);
            Err(error.reason)
        }
        Err(WalkError::Visitor(())) => unreachable!(),
    }
}

fn text(s: &str) -> Plain {
    Plain::Str(s.as_bytes().to_vec())
}

#[test]
fn plain_collections_whole_and_in_runs() {
    let double = |v: f64| v.to_le_bytes().to_vec();
    let cases: [(ObjectType, u64, Vec<u8>, &[&str]); 5] = [
        (ObjectType::Set, 2, [raw("a"), vec![0xc0, 5]].concat(), &["a", "5"]),
        (
            ObjectType::Hash,
            1,
            [raw("f"), lzf(&[b'v'; 50])].concat(),
            &["f=vvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvv"],
        ),
        (
            ObjectType::Zset,
            3,
            [raw("a"), double(f64::NEG_INFINITY), raw("b"), double(-0.0), raw("c"), double(1e300)].concat(),
            &["a:-inf", "b:-0", &format!("c:{}", 1e300)],
        ),
        (
            ObjectType::HashExpiry,
            2,
            [raw("f"), raw("v"), vec![0xc2, 0x80, 0x45, 0x7a, 1], raw("g"), raw("w"), vec![0xc0, 0xff]].concat(),
            &["f=v@1700000000000", "g=w"],
        ),
        (
            ObjectType::SetExpiry,
            3,
            [raw("m"), raw("24790400"), raw("n"), raw("-1"), raw("o"), vec![0xc0, 0]].concat(),
            &["m@1700000000000", "n", "o@1675209600000"],
        ),
    ];
    for (object_type, count, elements, expected) in cases {
        assert_eq!(walked(object_type, false, &elements).unwrap(), expected);
        let whole = [packed(count), elements.clone()].concat();
        assert_eq!(walked(object_type, true, &whole).unwrap(), expected);
        let more = [packed(count + 1), elements.clone()].concat();
        assert!(matches!(walked(object_type, true, &more), Err(Reason::ValueTruncated { .. })));
        let fewer = [packed(count - 1), elements.clone()].concat();
        assert!(matches!(walked(object_type, true, &fewer), Err(Reason::ValueLeftOver { .. })));
        assert!(walked(object_type, false, &elements[..elements.len() - 1]).is_err());
        assert_eq!(walked(object_type, true, &[0]).unwrap(), [""; 0]);
    }
}

#[test]
fn lists_of_both_kinds() {
    let pack = listpack(&[text("x"), Plain::Int(-7), text("y")]);
    let long = listpack(&vec![text("same"); 30]);
    let body = [
        vec![2],
        raw(&pack),
        vec![1],
        raw("plain"),
        vec![1, 0xc0, 9],
        vec![2],
        lzf(&long),
        vec![2],
        raw(listpack(&[])),
    ];
    let mut expected = vec!["x", "-7", "y", "plain", "9"];
    expected.extend(["same"; 30]);
    assert_eq!(walked(ObjectType::ListNodes, false, &body.concat()).unwrap(), expected);
    assert_eq!(walked(ObjectType::ListNodes, true, &[packed(5), body.concat()].concat()).unwrap(), expected);
    assert_eq!(
        walked(ObjectType::ListNodes, true, &[vec![1, 3], raw(&pack)].concat()),
        Err(Reason::UnknownListContainer { container: 3 })
    );
    let nodes = [raw(ziplist(&[text("a"), Plain::Int(3)])), raw(ziplist(&[Plain::Int(-300)]))].concat();
    assert_eq!(walked(ObjectType::ListZiplists, false, &nodes).unwrap(), ["a", "3", "-300"]);
    assert_eq!(walked(ObjectType::ListZiplists, true, &[vec![2], nodes].concat()).unwrap(), ["a", "3", "-300"]);
}

#[test]
fn containers_of_hashes_sets_and_sorted_sets() {
    let pairs = [text("f"), Plain::Int(1), text("g"), text("w")];
    let scored =
        [text("a"), text("-inf"), Plain::Int(7), Plain::Int(2), text("b"), text("2.5"), text("c"), text("inf")];
    for (object_type, packed) in
        [(ObjectType::HashListpack, listpack(&pairs)), (ObjectType::HashZiplist, ziplist(&pairs))]
    {
        assert_eq!(walked(object_type, true, &raw(packed)).unwrap(), ["f=1", "g=w"]);
    }
    for (object_type, packed) in
        [(ObjectType::ZsetListpack, listpack(&scored)), (ObjectType::ZsetZiplist, ziplist(&scored))]
    {
        assert_eq!(walked(object_type, true, &raw(packed)).unwrap(), ["a:-inf", "7:2", "b:2.5", "c:inf"]);
    }
    assert_eq!(walked(ObjectType::SetIntset, true, &raw(intset(&[-70000, 3]))).unwrap(), ["-70000", "3"]);
    assert_eq!(walked(ObjectType::SetIntset, true, &lzf(&intset(&[1, 2, 3, 4, 5]))).unwrap().len(), 5);
}

#[test]
fn damaged_containers() {
    let odd = [text("f"), Plain::Int(1), text("g")];
    let odd_error = |container| Err(Reason::OddContainer { container, count: 3 });
    assert_eq!(walked(ObjectType::HashListpack, true, &raw(listpack(&odd))), odd_error("listpack"));
    assert_eq!(
        walked(ObjectType::ZsetZiplist, true, &raw(ziplist(&[text("a"), Plain::Int(1), text("b")]))),
        odd_error("ziplist")
    );
    for score in ["nan", "NaN", "1x", "", "0x10"] {
        assert_eq!(
            walked(ObjectType::ZsetListpack, true, &raw(listpack(&[text("a"), text(score)]))),
            Err(Reason::BadScore)
        );
    }
    let nan = [raw("a"), f64::NAN.to_le_bytes().to_vec()].concat();
    assert_eq!(walked(ObjectType::Zset, false, &nan), Err(Reason::BadScore));
    for expiry in [raw("x"), raw("-2"), raw("9223372036854775807"), raw("")] {
        assert_eq!(walked(ObjectType::SetExpiry, false, &[raw("m"), expiry].concat()), Err(Reason::BadExpiry));
    }
    let pack = raw(listpack(&[text("f"), Plain::Int(1)]));
    assert!(matches!(
        walked(ObjectType::HashListpack, true, &[pack, vec![0]].concat()),
        Err(Reason::ValueLeftOver { .. })
    ));
    assert!(walked(ObjectType::HashListpack, true, &[0xc3, 3, 8, 0x20, 1, 1]).is_err());
    assert!(matches!(walked(ObjectType::Json, true, &raw("{}")), Err(Reason::NotACollection { .. })));
    assert!(matches!(walked(ObjectType::String, true, &raw("{}")), Err(Reason::NotACollection { .. })));
}

#[test]
fn the_visitor_may_stop_the_walk() {
    let body = [raw("a"), raw("b")].concat();
    let stopped = for_each_element(ObjectType::Set, false, &body, &mut Scratch::default(), |_| Err("enough"));
    assert!(matches!(stopped, Err(WalkError::Visitor("enough"))));
}

#[test]
fn string_values() {
    let meta = |object_type| KeyMeta {
        db: DbIndex(0),
        key: b"k",
        expire_at_ms: None,
        sticky: false,
        memcached_flags: None,
        object_type,
    };
    assert_eq!(string_value(&meta(ObjectType::String), b"\x03bar"), Ok(Text::Raw(b"bar")));
    assert_eq!(string_value(&meta(ObjectType::Json), &[0xc0, 123]), Ok(Text::Int(123)));
    assert!(string_value(&meta(ObjectType::Json), &[0xc0, 123, 0]).is_err());
    assert!(string_value(&meta(ObjectType::String), b"\x04bar").is_err());
    assert!(string_value(&meta(ObjectType::Set), b"\x03bar").is_err());
}

fn id(ms: u64, seq: u64) -> StreamId {
    StreamId { ms, seq }
}

fn raw_id(ms: u64, seq: u64) -> Vec<u8> {
    [ms.to_be_bytes(), seq.to_be_bytes()].concat()
}

/// A node with master fields a, b: 5-1 with them, 5-3 deleted, 6-0 (sequence goes down) with a field of its own.
fn node() -> Vec<Plain> {
    let int = Plain::Int;
    vec![
        int(2),
        int(1),
        int(2),
        text("a"),
        text("b"),
        int(0), //
        int(2),
        int(0),
        int(0),
        text("1"),
        int(2),
        int(5), //
        int(3),
        int(0),
        int(2),
        text("x"),
        text("y"),
        int(5), //
        int(0),
        int(1),
        int(-1),
        int(1),
        text("f"),
        text("v"),
        int(6),
    ]
}

fn entries(whole: bool, body: &[u8]) -> Result<Vec<(StreamId, Vec<String>)>, Reason> {
    let mut out = Vec::new();
    let visited = for_each_entry(whole, body, &mut Scratch::default(), |id, fields| {
        out.push((id, fields.iter().map(|text| plain(*text)).collect()));
        Ok::<_, ()>(())
    });
    match visited {
        Ok(visited) => {
            assert_eq!(visited, out.len() as u64);
            Ok(out)
        }
        Err(WalkError::Decode(error)) => Err(error.reason),
        Err(WalkError::Visitor(())) => unreachable!(),
    }
}

#[test]
fn stream_entries() {
    let run = [raw(raw_id(5, 1)), raw(listpack(&node()))].concat();
    let strings = |fields: &[&str]| fields.iter().map(|s| s.to_string()).collect::<Vec<_>>();
    let expected = vec![(id(5, 1), strings(&["a", "1", "b", "2"])), (id(6, 0), strings(&["f", "v"]))];
    assert_eq!(entries(false, &run).unwrap(), expected);
    let tail = vec![9; 3];
    let whole = [vec![1], run.clone(), tail].concat();
    assert_eq!(entries(true, &whole).unwrap(), expected);
    assert_eq!(stream_tail_offset(&whole), Ok((1 + run.len(), 1)));
    // The second node must come after the first.
    let later = [raw(raw_id(7, 0)), lzf(&listpack(&node()))].concat();
    assert_eq!(entries(false, &[run.clone(), later.clone()].concat()).unwrap().len(), 4);
    assert!(entries(false, &[later, run].concat()).is_err());
}

#[test]
fn damaged_stream_nodes() {
    let damaged = |index: usize, by: Plain| {
        let mut elements = node();
        elements[index] = by;
        entries(false, &[raw(raw_id(5, 1)), raw(listpack(&elements))].concat())
    };
    assert!(damaged(0, Plain::Int(2)).is_ok());
    let int = Plain::Int;
    for (index, by) in [
        (0, int(3)),
        (0, int(-1)),
        (0, text("z")),
        (1, int(0)),
        (2, int(1)),
        (2, int(300)),
        (5, int(1)),
        (6, int(4)),
        (6, text("x")),
        (8, int(5)),
        (11, int(4)),
        (21, int(2)),
        (21, int(-1)),
        (21, int(i64::MAX)),
        (24, int(5)),
    ] {
        assert!(damaged(index, by.clone()).is_err(), "{index} {by:?}");
    }
    assert!(entries(false, &[raw([0; 15]), raw(listpack(&node()))].concat()).is_err());
}

#[test]
fn stream_tails_of_all_types() {
    let group = |object_type: ObjectType| {
        let read = if object_type == ObjectType::StreamV1 { vec![] } else { packed(u64::MAX) };
        let active = if object_type == ObjectType::StreamV3 { 90u64.to_le_bytes().to_vec() } else { vec![] };
        [
            [raw("g"), packed(5), packed(1), read].concat(),
            [packed(2), raw_id(5, 0), 70u64.to_le_bytes().to_vec(), packed(3)].concat(),
            [raw_id(5, 1), 71u64.to_le_bytes().to_vec(), packed(1)].concat(),
            [packed(2), raw("c"), 80u64.to_le_bytes().to_vec(), active.clone(), packed(1), raw_id(5, 1)].concat(),
            [raw("d"), 81u64.to_le_bytes().to_vec(), active, packed(1), raw_id(5, 0)].concat(),
        ]
        .concat()
    };
    for object_type in [ObjectType::StreamV1, ObjectType::StreamV2, ObjectType::StreamV3] {
        let newer = object_type != ObjectType::StreamV1;
        let extra = if newer { vec![5, 0, 4, 9, 12] } else { vec![] };
        let bytes = [vec![2, 6, 7], extra, vec![1], group(object_type)].concat();
        let tail = stream_tail(object_type, &bytes).unwrap();
        assert_eq!((tail.length, tail.last_id), (2, id(6, 7)));
        assert_eq!(tail.first_id, newer.then_some(id(5, 0)));
        assert_eq!(tail.max_deleted_id, newer.then_some(id(4, 9)));
        assert_eq!(tail.entries_added, newer.then_some(12));
        let group = &tail.groups[0];
        assert_eq!((&group.name[..], group.last_id, group.entries_read), (&b"g"[..], id(5, 1), None));
        assert_eq!(group.pending[0], StreamPending { id: id(5, 0), delivery_time_ms: 70, delivery_count: 3 });
        let consumer = &group.consumers[0];
        assert_eq!((&consumer.name[..], consumer.seen_time_ms), (&b"c"[..], 80));
        assert_eq!(consumer.active_time_ms, (object_type == ObjectType::StreamV3).then_some(90));
        assert_eq!(consumer.pending, [id(5, 1)]);
        for len in 0..bytes.len() {
            assert!(stream_tail(object_type, &bytes[..len]).is_err());
        }
        assert!(stream_tail(object_type, &[&bytes[..], &[0]].concat()).is_err());
    }
}

#[test]
fn damaged_stream_tails() {
    let entry = |ms| [raw_id(ms, 0), vec![0; 8], vec![1]].concat();
    let tail = |pending: &[u64], consumers: &[&[u64]]| {
        let mut out = [vec![0; 8], vec![1], raw("g"), vec![0, 0, 0], packed(pending.len() as u64)].concat();
        out.extend(pending.iter().flat_map(|ms| entry(*ms)));
        out.extend(packed(consumers.len() as u64));
        for ids in consumers {
            out.extend([raw("c"), vec![0; 16], packed(ids.len() as u64)].concat());
            out.extend(ids.iter().flat_map(|ms| raw_id(*ms, 0)));
        }
        stream_tail(ObjectType::StreamV3, &out)
    };
    assert!(tail(&[1, 2], &[&[2, 1]]).is_ok());
    assert!(tail(&[], &[&[]]).is_ok());
    assert!(tail(&[2, 1], &[&[2, 1]]).is_err());
    assert!(tail(&[1, 1], &[&[1, 1]]).is_err());
    assert!(tail(&[1, 2], &[&[1]]).is_err());
    assert!(tail(&[1, 2], &[&[1], &[1, 2]]).is_err());
    assert!(tail(&[1], &[&[1, 3]]).is_err());
    // Counts that no bytes back.
    let huge = [0x81, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    assert!(stream_tail(ObjectType::StreamV3, &[&[0; 8][..], &huge].concat()).is_err());
    assert!(stream_tail(ObjectType::Set, &[0; 9]).is_err());
}
