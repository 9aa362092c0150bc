//! Random streams, cut at random: the same keys and the same elements come out, or the same refusal.

use super::super::listpack::tests::{Plain, encode as listpack};
use super::super::testing::*;
use super::super::value::{Element, Scratch, WalkError, count_elements, for_each_element};
use super::super::{ObjectType, Stage, Text};
use super::*;
use proptest::prelude::*;

/// One string: its plain bytes and how it is written.
#[derive(Clone, Debug)]
struct Written {
    plain: Vec<u8>,
    bytes: Vec<u8>,
}

fn written() -> impl Strategy<Value = Written> {
    let text = proptest::collection::vec(any::<u8>(), 0..40);
    let long = proptest::collection::vec(0u8..3, 30..300);
    prop_oneof![
        4 => text.prop_map(|plain| Written { bytes: raw(&plain), plain }),
        1 => long.prop_map(|plain| Written { bytes: lzf(&plain), plain }),
        1 => any::<i8>().prop_map(|v| Written { plain: v.to_string().into(), bytes: vec![0xc0, v as u8] }),
        1 => any::<i16>().prop_map(|v| {
            Written { plain: v.to_string().into(), bytes: [&[0xc1][..], &v.to_le_bytes()].concat() }
        }),
        1 => any::<i32>().prop_map(|v| {
            Written { plain: v.to_string().into(), bytes: [&[0xc2][..], &v.to_le_bytes()].concat() }
        }),
    ]
}

/// A collection: its type, its elements as they stand, and what each says.
#[derive(Clone, Debug)]
struct Collection {
    object_type: ObjectType,
    elements: Vec<Vec<u8>>,
    shown: Vec<Vec<u8>>,
}

/// An element as one row of bytes, to compare.
fn show(element: Element<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    let mut put = |text: Text<'_>| {
        text.append_to(&mut out).unwrap();
        out.push(b'|');
    };
    let tail = match element {
        Element::Item(item) => {
            put(item);
            String::new()
        }
        Element::Member { member, expire_at_ms } => {
            put(member);
            format!("{expire_at_ms:?}")
        }
        Element::Field { field, value, expire_at_ms } => {
            put(field);
            put(value);
            format!("{expire_at_ms:?}")
        }
        Element::Scored { member, score } => {
            put(member);
            format!("{score:?}")
        }
    };
    [out, tail.into_bytes()].concat()
}

fn row(texts: &[&Written], tail: String) -> Vec<u8> {
    [texts.iter().flat_map(|text| [&text.plain[..], b"|"].concat()).collect(), tail.into_bytes()].concat()
}

fn collection() -> impl Strategy<Value = Collection> {
    let of = |object_type, items: Vec<(Vec<u8>, Vec<Vec<u8>>)>| {
        let (elements, shown): (Vec<_>, Vec<_>) = items.into_iter().unzip();
        Collection { object_type, elements, shown: shown.concat() }
    };
    let many = 0..30usize;
    let expiry = prop_oneof![Just(-1i64), 0..i64::from(i32::MAX)];
    let expires = |v: i64| format!("{:?}", (v >= 0).then_some((v + 1_675_209_600) * 1000));
    let expiry_bytes = |v: i64| if v < 0 { vec![0xc0, 0xff] } else { raw(v.to_string()) };
    let set = written().prop_map(|m| (m.bytes.clone(), vec![row(&[&m], "None".into())]));
    let hash = (written(), written())
        .prop_map(|(f, v)| ([&f.bytes[..], &v.bytes].concat(), vec![row(&[&f, &v], "None".into())]));
    let zset = (written(), any::<f64>().prop_filter("a number", |v| !v.is_nan()))
        .prop_map(|(m, s)| ([&m.bytes[..], &s.to_le_bytes()].concat(), vec![row(&[&m], format!("{s:?}"))]));
    let timed_hash = (written(), written(), expiry.clone()).prop_map(move |(f, v, e)| {
        ([&f.bytes[..], &v.bytes, &expiry_bytes(e)].concat(), vec![row(&[&f, &v], expires(e))])
    });
    let timed_set = (written(), expiry)
        .prop_map(move |(m, e)| ([&m.bytes[..], &expiry_bytes(e)].concat(), vec![row(&[&m], expires(e))]));
    let element = prop_oneof![
        any::<i64>().prop_map(Plain::Int),
        proptest::collection::vec(any::<u8>(), 0..80).prop_map(Plain::Str)
    ];
    let plain_node = written().prop_map(|w| ([&[1][..], &w.bytes].concat(), vec![row(&[&w], String::new())]));
    let packed_node = (proptest::collection::vec(element, 0..12), any::<bool>()).prop_map(|(elements, compress)| {
        let pack = listpack(&elements);
        let string = if compress && pack.len() > 20 { lzf(&pack) } else { raw(&pack) };
        let shown = elements.iter().map(|element| match element {
            Plain::Int(v) => format!("{v}|").into_bytes(),
            Plain::Str(s) => [&s[..], b"|"].concat(),
        });
        ([&[2][..], &string].concat(), shown.collect())
    });
    let list = prop_oneof![plain_node, packed_node];
    use proptest::collection::vec;
    prop_oneof![
        vec(set, many.clone()).prop_map(move |items| of(ObjectType::Set, items)),
        vec(hash, many.clone()).prop_map(move |items| of(ObjectType::Hash, items)),
        vec(zset, many.clone()).prop_map(move |items| of(ObjectType::Zset, items)),
        vec(timed_hash, many.clone()).prop_map(move |items| of(ObjectType::HashExpiry, items)),
        vec(timed_set, many.clone()).prop_map(move |items| of(ObjectType::SetExpiry, items)),
        vec(list, many).prop_map(move |items| of(ObjectType::ListNodes, items)),
    ]
}

/// How one key is put into the stream.
#[derive(Clone, Debug)]
struct Record {
    key: Written,
    db: u16,
    expire_at_ms: Option<i64>,
    sticky: bool,
    value: Either,
    /// Elements per chunk; empty: untagged.
    cuts: Vec<usize>,
    /// Where the following chunks fall among the units behind.
    gaps: Vec<usize>,
}

#[derive(Clone, Debug)]
enum Either {
    String(Written),
    Collection(Collection),
}

fn record() -> impl Strategy<Value = Record> {
    let value = prop_oneof![written().prop_map(Either::String), collection().prop_map(Either::Collection)];
    let cuts = prop_oneof![Just(Vec::new()), proptest::collection::vec(1usize..8, 1..6)];
    (written(), 0u16..4, any::<Option<i64>>(), any::<bool>(), value, cuts, proptest::collection::vec(0usize..4, 6))
        .prop_map(|(key, db, expire_at_ms, sticky, value, cuts, gaps)| Record {
            key,
            db,
            expire_at_ms,
            sticky,
            value,
            cuts,
            gaps,
        })
}

/// The units (records and chunks) of a stream, in an order in which split objects interleave.
fn units(records: &[Record]) -> Vec<Vec<u8>> {
    let mut units: Vec<Vec<u8>> = Vec::new();
    // Chunks waiting for their turn: (units to pass before, chunk).
    let mut waiting: Vec<Vec<(usize, Vec<u8>)>> = Vec::new();
    let release = |waiting: &mut Vec<Vec<(usize, Vec<u8>)>>, units: &mut Vec<Vec<u8>>, all: bool| {
        for chunks in waiting.iter_mut() {
            while let Some((gap, _)) = chunks.first_mut() {
                if *gap > 0 && !all {
                    *gap -= 1;
                    break;
                }
                units.push(chunks.remove(0).1);
            }
        }
        waiting.retain(|chunks| !chunks.is_empty());
    };
    for (i, record) in records.iter().enumerate() {
        let mut head = Vec::new();
        if let Some(at) = record.expire_at_ms {
            head.extend([&[0xfc][..], &at.to_le_bytes()].concat());
        }
        if record.sticky {
            head.extend([0xdc, 1, 0, 0, 0]);
        }
        units.push([vec![0xfe], packed(u64::from(record.db))].concat());
        match &record.value {
            Either::String(text) => units.push([&head[..], &[0], &record.key.bytes, &text.bytes].concat()),
            Either::Collection(collection) => {
                head.extend([&[collection.object_type.byte()][..], &record.key.bytes].concat());
                head.extend(packed(collection.elements.len() as u64));
                if record.cuts.is_empty() {
                    units.push([head, collection.elements.concat()].concat());
                    continue;
                }
                let id = i as u32 + 1;
                let mut rest = &collection.elements[..];
                let mut chunks = Vec::new();
                let mut cuts = record.cuts.iter();
                let mut first = head;
                loop {
                    let len = cuts.next().copied().unwrap_or(rest.len()).min(rest.len());
                    first.extend(rest[..len].concat());
                    rest = &rest[len..];
                    chunks.push((record.gaps[chunks.len() % 6], chunk(id, &first)));
                    first.clear();
                    if rest.is_empty() {
                        break;
                    }
                }
                units.push(chunks.remove(0).1);
                waiting.push(chunks);
            }
        }
        let crowded = waiting.len() > 5;
        release(&mut waiting, &mut units, crowded);
    }
    release(&mut waiting, &mut units, true);
    units
}

/// The units, some of them together in blobs (whose frames are their plain content, in these tests).
fn assemble(units: &[Vec<u8>], groups: &[usize]) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut rest, mut groups) = (units, groups.iter().cycle());
    while !rest.is_empty() {
        let len = groups.next().copied().unwrap_or(1).min(rest.len());
        let (now, later) = rest.split_at(len.max(1));
        match len {
            0 => out.extend(now.concat()),
            _ => out.extend([vec![0xca], raw(now.concat())].concat()),
        }
        rest = later;
    }
    out
}

fn expected(records: &[Record]) -> Vec<Key> {
    let key = |record: &Record| {
        let (object_type, body) = match &record.value {
            Either::String(text) => (ObjectType::String, text.bytes.clone()),
            Either::Collection(c) => (c.object_type, [packed(c.elements.len() as u64), c.elements.concat()].concat()),
        };
        Key {
            db: u32::from(record.db),
            key: record.key.plain.clone(),
            expire_at_ms: record.expire_at_ms,
            sticky: record.sticky,
            memcached_flags: None,
            object_type,
            body,
        }
    };
    records.iter().map(key).collect()
}

fn keys(said: &[Said]) -> Vec<Key> {
    said.iter().filter_map(|said| if let Said::Key(key) = said { Some(key.clone()) } else { None }).collect()
}

fn sorted(mut keys: Vec<Key>) -> Vec<Key> {
    keys.sort_by(|a, b| (&a.key, a.db, a.object_type, &a.body).cmp(&(&b.key, b.db, b.object_type, &b.body)));
    keys
}

fn limits() -> impl Strategy<Value = Limits> {
    (1usize..300, 1usize..200).prop_map(|(whole_bytes_max, run_bytes_max)| Limits {
        whole_bytes_max,
        run_bytes_max,
        ..LIMITS
    })
}

fn cycled(pieces: Vec<usize>) -> impl FnMut() -> usize {
    let mut at = 0;
    move || {
        at += 1;
        pieces[at % pieces.len()]
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn keys_come_out_as_they_went_in(
        records in proptest::collection::vec(record(), 0..12),
        groups in proptest::collection::vec(0usize..5, 1..6),
        limits in limits(),
        pieces in proptest::collection::vec(1usize..200, 1..8),
    ) {
        let bytes = stream(&assemble(&units(&records), &groups));
        let (whole, _) = drive(&bytes, LIMITS, || usize::MAX).unwrap();
        prop_assert_eq!(sorted(keys(&whole.said)), sorted(expected(&records)));
        let (cut, _) = drive(&bytes, limits, cycled(pieces)).unwrap();
        prop_assert_eq!(cut.said, whole.said);
    }

    #[test]
    fn elements_come_out_as_they_went_in(collection in collection(), limits in limits(), tagged in any::<bool>()) {
        let value = [packed(collection.elements.len() as u64), collection.elements.concat()].concat();
        let record = [&[collection.object_type.byte()][..], &raw("k"), &value].concat();
        let body = if tagged { chunk(1, &record) } else { record };
        let bytes = stream(&body);
        let mut decoder = StreamDecoder::new(FlowId(0), limits);
        let (mut rest, mut shown, mut scratch) = (&bytes[..], Vec::new(), Scratch::default());
        while !decoder.is_ended() {
            let Progress::Event { event, consumed } = decoder.next(rest).unwrap() else { panic!("all of it is there") };
            rest = &rest[consumed..];
            let (whole, body) = match event {
                Event::Whole { body, .. } => (true, body),
                Event::Run { stage: Stage::Elements, body, .. } => (false, body),
                _ => continue,
            };
            let visited = for_each_element(collection.object_type, whole, body, &mut scratch, |element| {
                shown.push(show(element));
                Ok::<_, ()>(())
            });
            let visited = match visited {
                Ok(visited) => visited,
                Err(WalkError::Decode(error)) => panic!("{error}"),
                Err(WalkError::Visitor(())) => unreachable!(),
            };
            prop_assert_eq!(count_elements(collection.object_type, whole, body, &mut scratch), Ok(visited));
        }
        prop_assert_eq!(shown, collection.shown);
    }

    #[test]
    fn damage_is_judged_the_same_however_it_arrives(
        records in proptest::collection::vec(record(), 1..6),
        groups in proptest::collection::vec(0usize..5, 1..6),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        pieces in proptest::collection::vec(1usize..60, 1..8),
    ) {
        let mut bytes = stream(&assemble(&units(&records), &groups));
        for (at, by) in damage {
            let at = at.index(bytes.len());
            bytes[at] ^= by;
        }
        let whole = drive(&bytes, LIMITS, || usize::MAX).map(|(collector, rest)| (collector.said, rest));
        let cut = drive(&bytes, LIMITS, cycled(pieces)).map(|(collector, rest)| (collector.said, rest));
        match (whole, cut) {
            (Ok(whole), Ok(cut)) => prop_assert_eq!(whole, cut),
            (Err(whole), Err(cut)) => {
                // A length that cannot be may show as such, or first as bytes that never come.
                let early = matches!(whole.reason, Reason::Truncated { .. } | Reason::CutByBlobEnd { .. });
                if !early {
                    prop_assert_eq!(whole.reason, cut.reason);
                }
            }
            (whole, cut) => prop_assert!(false, "whole: {:?}, in pieces: {:?}", whole, cut),
        }
    }

    #[test]
    fn noise_is_refused(noise in proptest::collection::vec(any::<u8>(), 0..300), limits in limits()) {
        let bytes = [HEADER, &noise].concat();
        prop_assert!(drive(&bytes, limits, || 7).is_err() || noise.len() > 60);
        for object_type in (0..=37).filter_map(ObjectType::from_byte) {
            let mut scratch = Scratch::default();
            for whole in [false, true] {
                let _ = for_each_element(object_type, whole, &noise, &mut scratch, |_| Ok::<_, ()>(()));
                let _ = count_elements(object_type, whole, &noise, &mut scratch);
                let _ = super::super::value::for_each_entry(whole, &noise, &mut scratch, |_, _| Ok::<_, ()>(()));
            }
            let _ = super::super::value::stream_tail(object_type, &noise);
        }
    }
}
