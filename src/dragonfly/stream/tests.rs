//! Each opcode, type form, limit and trap of the stream, by hand-made bytes (wire appendix A among them).

use super::super::testing::*;
use super::*;
use crate::dragonfly::error::Limit;

fn hex(text: &str) -> Vec<u8> {
    text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

/// What the body of a stream says, before the usual end; the same in one piece, byte by byte and with small limits.
fn said(body: &[u8]) -> Vec<Said> {
    let bytes = stream(body);
    let (mut whole, rest) = drive(&bytes, LIMITS, || usize::MAX).unwrap();
    assert_eq!(rest, b"");
    let (bytewise, _) = drive(&bytes, LIMITS, || 1).unwrap();
    assert_eq!(whole.said, bytewise.said);
    let small = Limits { whole_bytes_max: 12, run_bytes_max: 8, ..LIMITS };
    for piece in [1, 7, usize::MAX] {
        let (cut, _) = drive(&bytes, small, || piece).unwrap();
        assert_eq!(whole.said, cut.said);
    }
    let end = whole.said.split_off(whole.said.len() - 3);
    assert_eq!(end, [Said::FullSyncEnd, Said::JournalOffset(42), Said::Eof(*TOKEN)]);
    whole.said
}

fn reason(body: &[u8]) -> Reason {
    let bytes = stream(body);
    let error = decode(&bytes).unwrap_err();
    assert_eq!(error.flow, FlowId(3));
    assert!(!error.to_string().is_empty());
    if let Ok((collector, _)) = drive(&bytes, LIMITS, || 1) {
        panic!("byte by byte it is accepted: {:?}", collector.said);
    }
    error.reason
}

fn key(object_type: ObjectType, key: &str, body: Vec<u8>) -> Key {
    let (db, expire_at_ms, sticky, memcached_flags) = (0, None, false, None);
    Key { db, key: key.as_bytes().to_vec(), expire_at_ms, sticky, memcached_flags, object_type, body }
}

#[test]
fn appendix_a_aux() {
    let expected = Said::Aux(b"redis-bits".to_vec(), b"64".to_vec());
    assert_eq!(said(&hex("fa 0a 72 65 64 69 73 2d 62 69 74 73 c0 40")), [expected]);
}

#[test]
fn appendix_a_key_with_expiry() {
    let expected = Key { expire_at_ms: Some(2_000_000_000_000), ..key(ObjectType::String, "k", vec![1, b'v']) };
    assert_eq!(said(&hex("fe 00 fc 00 20 4a a9 d1 01 00 00 00 01 6b 01 76")), [Said::Key(expected)]);
}

#[test]
fn appendix_a_sticky_key() {
    let expected = Key { sticky: true, memcached_flags: Some(7), ..key(ObjectType::String, "k", vec![0xc0, 12]) };
    assert_eq!(said(&hex("dc 03 00 00 00 07 00 00 00 00 01 6b c0 0c")), [Said::Key(expected)]);
}

#[test]
fn appendix_a_set_whole_and_in_two_chunks() {
    let expected = [Said::Key(key(ObjectType::Set, "s", hex("02 01 61 c0 05")))];
    assert_eq!(said(&hex("02 01 73 02 01 61 c0 05")), expected);
    let cut = hex("e0 07 00 00 00 06 00 00 00 02 01 73 02 01 61 e0 07 00 00 00 02 00 00 00 c0 05");
    assert_eq!(said(&cut), expected);
}

#[test]
fn appendix_a_hash_with_expiry_and_list() {
    let body = hex("02 01 66 01 76 c2 80 45 7a 01 01 67 01 77 c0 ff");
    assert_eq!(said(&[hex("1f 01 68"), body.clone()].concat()), [Said::Key(key(ObjectType::HashExpiry, "h", body))]);
    let body = hex("01 02 0d 0d 00 00 00 02 00 81 78 02 81 79 02 ff");
    assert_eq!(said(&[hex("12 01 6c"), body.clone()].concat()), [Said::Key(key(ObjectType::ListNodes, "l", body))]);
}

#[test]
fn appendix_a_journal_blob() {
    let blob = hex("d2 01 0f 06 00 0a 00 01 03 05 03 53 45 54 01 6b 01 76");
    assert_eq!(said(&blob), [Said::Journal(hex("06 00 0a 00 01 03 05 03 53 45 54 01 6b 01 76"))]);
    // Mode 1 may pack any string.
    let record = [b'a'; 100];
    assert_eq!(said(&[vec![0xd2, 1], lzf(&record)].concat()), [Said::Journal(record.to_vec())]);
    assert_eq!(reason(&hex("d2 02 01 0d")), Reason::JournalBlobCount { count: 2 });
}

#[test]
fn header_versions() {
    for (version, good) in [("0005", true), ("0012", true), ("0004", false), ("0013", false), ("00a9", false)] {
        let mut bytes = stream(&[]);
        bytes[5..9].copy_from_slice(version.as_bytes());
        assert_eq!(decode(&bytes).is_ok(), good, "{version}");
    }
    assert!(matches!(decode(b"+OK\r\n+OK\r\n").unwrap_err().reason, Reason::BadHeader { .. }));
}

#[test]
fn keys_in_every_string_form() {
    for (form, plain) in [
        (raw("k"), "k"),
        (hex("c0 fb"), "-5"),
        (hex("c1 39 30"), "12345"),
        (hex("c2 80 45 7a 01"), "24790400"),
        (lzf(&[b'z'; 90]), &"z".repeat(90)),
        (raw(""), ""),
    ] {
        assert_eq!(
            said(&[vec![0], form, vec![1, b'v']].concat()),
            [Said::Key(key(ObjectType::String, plain, raw("v")))]
        );
    }
}

#[test]
fn select_db_holds_for_what_follows_and_not_for_open_chunks() {
    let body = [
        hex("fe 05"),
        chunk(1, &[&[2][..], &raw("s"), &[2], &raw("a")].concat()),
        hex("fe 00 fe 01 00 01 6b 01 76"),
        chunk(1, &raw("b")),
        hex("00 01 6c 01 76"),
        hex("fe 02"),
    ]
    .concat();
    let dbs: Vec<_> = said(&body)
        .into_iter()
        .map(|said| match said {
            Said::Key(key) => (key.key, key.db),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(dbs, [(b"k".to_vec(), 1), (b"s".to_vec(), 5), (b"l".to_vec(), 1)]);
    assert_eq!(reason(&hex("fe 80 00 01 00 00")), Reason::DbIndexTooLarge { index: 65536 });
}

#[test]
fn every_type_is_found_whole_and_cut() {
    let node = [raw([7; 16]), raw("listpack")].concat();
    let tail1 = [packed(2), packed(1), packed(1), packed(0)].concat();
    let group = |fields: &[u64], active: bool| {
        let mut out =
            [raw("g"), fields.iter().flat_map(|f| packed(*f)).collect(), packed(1), vec![9; 24], packed(3)].concat();
        out.extend([packed(1), raw("c"), vec![8; if active { 16 } else { 8 }], packed(1), vec![9; 16]].concat());
        out
    };
    let tail1g = [packed(2), packed(1), packed(1), packed(1), group(&[1, 1], false)].concat();
    let tail2 = [packed(2), vec![1; 7], packed(1), group(&[1, 1, u64::MAX], false)].concat();
    let tail3 = [packed(2), vec![1; 7], packed(2), group(&[1, 1, u64::MAX], true), group(&[1, 1, 5], true)].concat();
    let double = [0u8; 8];
    let bloom_head = [&[0][..], &double, &double, &[1, 2, 3]].concat();
    let values: Vec<(u8, Vec<u8>)> = vec![
        (0, raw("value of a string that is longer than twelve bytes")),
        (0, lzf(&[b'q'; 80])),
        (2, [packed(3), raw("member one"), raw("member two"), hex("c0 05")].concat()),
        (2, packed(0)),
        (4, [packed(2), raw("field"), raw("value"), raw("f"), raw("")].concat()),
        (5, [packed(2), raw("m"), double.to_vec(), raw("n"), double.to_vec()].concat()),
        (11, raw("some intset blob")),
        (12, raw("ziplist")),
        (13, raw("ziplist")),
        (14, [packed(2), raw("ziplist one"), raw("ziplist two")].concat()),
        (15, [packed(2), node.clone(), node.clone(), tail1.clone()].concat()),
        (15, [packed(0), tail1g].concat()),
        (16, raw("a listpack of fields and values")),
        (17, raw("listpack")),
        (18, [packed(2), vec![1], raw("plain"), vec![2], raw("listpack")].concat()),
        (19, [packed(1), node.clone(), tail2].concat()),
        (20, raw("{\"a\":1}")),
        (21, [packed(1), node, tail3].concat()),
        (30, raw("{\"a\":\"a text longer than twelve bytes\"}")),
        (31, [packed(1), raw("f"), raw("v"), hex("c2 80 45 7a 01")].concat()),
        (32, [packed(1), raw("m"), hex("c0 ff")].concat()),
        (33, [bloom_head.clone(), packed(2), packed(3), raw([1; 64]), packed(4), raw([2; 128])].concat()),
        (33, [bloom_head.clone(), packed(0)].concat()),
        (34, [bloom_head.clone(), packed(1), packed(3), packed(100), raw([1; 64]), raw([1; 36])].concat()),
        (34, [bloom_head, packed(1), packed(3), packed(100), lzf(&[1; 90]), raw([1; 8]), hex("c0 0c")].concat()),
        (35, [packed(3), packed(2), packed(9), vec![5; 48]].concat()),
        (
            36,
            [
                vec![0, 2, 3, 4],
                double.to_vec(),
                packed(2),
                raw("item"),
                packed(7),
                hex("c0 05"),
                packed(300),
                raw([1; 48]),
            ]
            .concat(),
        ),
        (36, [vec![0, 2, 3, 4], double.to_vec(), packed(0), raw([1; 48])].concat()),
        (
            37,
            [vec![2, 3, 4, 5, 6, 7], packed(2), packed(70), raw([1; 64]), raw([1; 6]), packed(3), raw([1; 3])].concat(),
        ),
    ];
    let mut body = Vec::new();
    let mut expected = Vec::new();
    for (byte, value) in values {
        let object_type = ObjectType::from_byte(byte).unwrap();
        assert_eq!(object_type.byte(), byte);
        let record = [&[byte][..], &raw("k"), &value].concat();
        assert_eq!(said(&record), [Said::Key(key(object_type, "k", value.clone()))], "type {byte}");
        // As a tagged object in one chunk, and followed by a left-over byte.
        assert_eq!(said(&chunk(9, &record)), [Said::Key(key(object_type, "k", value.clone()))], "type {byte}");
        assert!(decode(&stream(&chunk(9, &[&record[..], &[0]].concat()))).is_err(), "type {byte}");
        body.extend(record);
        expected.push(Said::Key(key(object_type, "k", value)));
    }
    assert_eq!(said(&body), expected);
}

#[test]
fn tagged_objects_interleave_with_everything() {
    let begin = |id: u32, name: &str| chunk(id, &[&[2][..], &raw(name), &[3], &raw("a")].concat());
    let content = [chunk(7, &raw("b")), hex("fe 03"), begin(8, "y"), hex("00 01 6b 01 76")].concat();
    let body = [
        begin(7, "x"),
        hex("00 01 6a 01 76"),
        vec![0xca],
        raw(&content),
        chunk(8, &raw("b")),
        FULL_SYNC_END.to_vec(),
        chunk(7, &raw("c")),
        vec![0xc9],
        raw(chunk(8, &raw("c"))),
        // The id is free again.
        begin(7, "z"),
        chunk(7, &[raw("b"), raw("c")].concat()),
    ]
    .concat();
    let bytes = [HEADER, &body, JOURNAL_OFFSET_42, &eof()].concat();
    let set = hex("03 01 61 01 62 01 63");
    for piece in [1, 5, usize::MAX] {
        let (collector, _) = drive(&bytes, LIMITS, || piece).unwrap();
        assert_eq!(
            collector.said,
            [
                Said::Key(key(ObjectType::String, "j", raw("v"))),
                Said::Key(Key { db: 3, ..key(ObjectType::String, "k", raw("v")) }),
                Said::FullSyncEnd,
                Said::Key(key(ObjectType::Set, "x", set.clone())),
                Said::Key(Key { db: 3, ..key(ObjectType::Set, "y", set.clone()) }),
                Said::Key(Key { db: 3, ..key(ObjectType::Set, "z", set.clone()) }),
                Said::JournalOffset(42),
                Said::Eof(*TOKEN),
            ]
        );
    }
}

#[test]
fn a_chunk_may_end_at_any_element_border() {
    let count_only = chunk(1, &[&[4][..], &raw("h"), &[2]].concat());
    let rest = [chunk(1, &[raw("f"), raw("v")].concat()), chunk(1, &[raw("g"), raw("w")].concat())].concat();
    let body = hex("02 01 66 01 76 01 67 01 77");
    assert_eq!(said(&[count_only, rest].concat()), [Said::Key(key(ObjectType::Hash, "h", body))]);
    // A stream's tail in a chunk of its own, and an empty collection in a chunk.
    let node = [raw([7; 16]), raw("listpack")].concat();
    let tail = [vec![1; 8], packed(0)].concat();
    let first = chunk(2, &[&[21][..], &raw("t"), &[1], &node].concat());
    assert_eq!(
        said(&[first, chunk(2, &tail)].concat()),
        [Said::Key(key(ObjectType::StreamV3, "t", [vec![1], node, tail].concat()))]
    );
    assert_eq!(said(&chunk(3, &hex("02 01 73 00"))), [Said::Key(key(ObjectType::Set, "s", vec![0]))]);
}

#[test]
fn broken_chunks() {
    let first = [&[2][..], &raw("s"), &[2], &raw("a")].concat();
    assert_eq!(reason(&chunk(0, &first)), Reason::ChunkIdZero);
    assert_eq!(reason(&chunk(1, &[])), Reason::ChunkEmpty { id: 1 });
    assert_eq!(reason(&[chunk(1, &first), chunk(1, &[])].concat()), Reason::ChunkEmpty { id: 1 });
    // Cut in the key, in the count, in an element, in a string, in a filter's bytes.
    for len in 1..first.len() {
        let whole = [&first[..len]].concat();
        match len {
            4 => {
                assert!(decode(&stream(&[chunk(1, &whole), chunk(1, &raw("a")), chunk(1, &raw("b"))].concat())).is_ok())
            }
            _ => assert_eq!(reason(&chunk(1, &whole)), Reason::ChunkCutsElement { id: 1 }, "{len}"),
        }
    }
    assert_eq!(reason(&[chunk(1, &first), chunk(1, &[1])].concat()), Reason::ChunkCutsElement { id: 1 });
    let string = [&[0][..], &raw("s"), &packed(70_000), &[b'v'; 69_999]].concat();
    assert_eq!(reason(&chunk(1, &string)), Reason::ChunkCutsElement { id: 1 });
    let sketch = [&[35][..], &raw("c"), &[1, 1, 1, 0, 0]].concat();
    assert_eq!(reason(&chunk(1, &sketch)), Reason::ChunkCutsElement { id: 1 });
    // Left over after the end.
    let over = [chunk(1, &first), chunk(1, &[raw("b"), raw("c")].concat())].concat();
    assert_eq!(reason(&over), Reason::ChunkLeftOver { id: 1, left_over: 2 });
    assert_eq!(reason(&chunk(1, &hex("00 01 6b 01 76 00"))), Reason::ChunkLeftOver { id: 1, left_over: 1 });
    // Unfinished at EOF; too many open.
    assert_eq!(reason(&chunk(5, &first)), Reason::EofWithOpenObjects { open: 1, first_id: 5 });
    let many: Vec<u8> = (1..10).flat_map(|id| chunk(id, &first)).collect();
    assert_eq!(reason(&many), Reason::LimitPassed { what: Limit::OpenObjects, announced: 9, limit: 8 });
    // No opcode but attributes may stand before the type in a chunk.
    assert!(matches!(reason(&chunk(1, &hex("fe 00 00 01 6b 01 76"))), Reason::UnknownOpcode { byte: 0xfe }));
}

#[test]
fn blobs_hold_whole_records() {
    let blob = |content: &[u8]| [vec![0xca], raw(content)].concat();
    let good = hex("fe 04 00 01 6b 01 76 fe 06");
    assert_eq!(
        said(&[blob(&good), hex("00 01 6c 01 76")].concat()),
        [
            Said::Key(Key { db: 4, ..key(ObjectType::String, "k", raw("v")) }),
            Said::Key(Key { db: 6, ..key(ObjectType::String, "l", raw("v")) })
        ]
    );
    assert_eq!(reason(&blob(&hex("00 01 6b 02 76"))), Reason::CutByBlobEnd { left_over: 5 });
    assert_eq!(reason(&blob(&blob(&hex("00 01 6b 01 76")))), Reason::NestedBlob);
    assert_eq!(reason(&blob(&eof())), Reason::EofInBlob);
    assert_eq!(
        reason(&blob(&[&hex("00 01 6b")[..], &packed(70_000), &[b'v'; 100]].concat())),
        Reason::ObjectCutByBlobEnd
    );
    let first = chunk(1, &[&[2][..], &raw("s"), &[2], &raw("a")].concat());
    assert_eq!(reason(&blob(&first[..first.len() - 2])), Reason::ObjectCutByBlobEnd);
    assert_eq!(reason(&blob(&first[..11])), Reason::CutByBlobEnd { left_over: 11 });
    // Two borders in one: the object goes on outside.
    assert!(decode(&stream(&[blob(&first), chunk(1, &raw("b"))].concat())).is_ok());
    assert_eq!(reason(&hex("ca c0 05")), Reason::RawFormExpected { what: "compressed blob" });
    let error = decode(&stream(&[hex("00 01 6c 01 76"), blob(&hex("00 01 6b 01 76 cb"))].concat())).unwrap_err();
    assert_eq!((error.offset, error.reason), (14, Reason::ForbiddenOpcode { opcode: 0xcb }));
}

#[test]
fn enter_and_leave_only_where_a_blob_is() {
    let mut decoder = StreamDecoder::new(FlowId(0), LIMITS);
    assert_eq!(decoder.enter_blob().unwrap_err().reason, Reason::BlobOutOfPlace);
    assert_eq!(decoder.leave_blob(&[]).unwrap_err().reason, Reason::BlobOutOfPlace);
}

#[test]
fn opcodes_that_are_read_over() {
    assert_eq!(said(&hex("fb 41 2c 05")), [Said::Skipped(0xfb)]);
    assert_eq!(said(&hex("f4 01 02 03")), [Said::Skipped(0xf4)]);
    assert_eq!(said(&hex("f5 03 61 62 63")), [Said::Skipped(0xf5)]);
    assert_eq!(
        said(&hex("f7 05 02 01 01 02 03 00 00 00 00 04 00 00 00 00 00 00 00 00 05 01 61 00")),
        [Said::Skipped(0xf7)]
    );
    // IDLE and FREQ stand before a key.
    assert_eq!(said(&hex("f8 05 f9 07 00 01 6b 01 76")), [Said::Key(key(ObjectType::String, "k", raw("v")))]);
    // Graph of two nodes, documents of a shard: nothing but Skipped, as often as it takes.
    let node = |level: u32| {
        let mut out = [vec![1; 12], level.to_le_bytes().to_vec()].concat();
        for links in 0..=level {
            out.extend([links.to_le_bytes().to_vec(), vec![7; links as usize * 4]].concat());
        }
        out
    };
    let graph = [vec![0xde], raw("index:field"), packed(0), packed(2), node(0), node(2)].concat();
    let docs =
        [vec![0xdf], packed(1), raw("index"), packed(2), raw("doc1"), packed(1), raw("doc2"), packed(2)].concat();
    let said = decode(&stream(&[graph, docs, hex("00 01 6b 01 76")].concat())).unwrap();
    assert!(said.contains(&Said::Skipped(0xde)) && said.contains(&Said::Skipped(0xdf)));
    assert!(said.contains(&Said::Key(key(ObjectType::String, "k", raw("v")))));
}

#[test]
fn what_is_never_sent_is_refused() {
    assert_eq!(reason(&[0xcb]), Reason::ForbiddenOpcode { opcode: 0xcb });
    assert_eq!(reason(&[0xfd, 0, 0, 0, 0]), Reason::ForbiddenOpcode { opcode: 0xfd });
    for byte in [1, 3, 6, 7, 8, 9, 10, 22, 29, 38, 100, 199, 204, 221, 225, 246] {
        assert_eq!(reason(&[byte, 1, b'k', 1, b'v']), Reason::UnknownOpcode { byte });
    }
    assert_eq!(reason(&hex("dc 04 00 00 00 00 01 6b 01 76")), Reason::UnknownMask { mask: 4 });
    assert_eq!(reason(&hex("fc 00 20 4a a9 d1 01 00 00 fe 00")), Reason::AttributesWithoutKey { byte: 0xfe });
    assert_eq!(reason(&hex("dc 00 00 00 00 dc 00 00 00 00 00 01 6b 01 76")), Reason::AttributeTwice);
    assert_eq!(reason(&hex("00 c5")), Reason::BadStringForm { byte: 0xc5 });
    assert_eq!(reason(&hex("02 01 6b c0 05")), Reason::BadPackedNumber { byte: 0xc0 });
    assert_eq!(reason(&hex("12 01 6b 01 03 01 61")), Reason::UnknownListContainer { container: 3 });
}

#[test]
fn the_end_needs_everything_before_it() {
    let end = |parts: &[&[u8]]| decode(&[HEADER, &parts.concat(), &eof()].concat()).unwrap_err().reason;
    assert_eq!(end(&[]), Reason::EofWithoutFullSyncEnd);
    assert_eq!(end(&[FULL_SYNC_END]), Reason::EofWithoutJournalOffset);
    assert_eq!(end(&[JOURNAL_OFFSET_42]), Reason::EarlyJournalOffset);
    assert_eq!(end(&[FULL_SYNC_END, FULL_SYNC_END]), Reason::SecondFullSyncEnd);
    assert_eq!(end(&[FULL_SYNC_END, JOURNAL_OFFSET_42, JOURNAL_OFFSET_42]), Reason::SecondJournalOffset);
    assert_eq!(end(&[FULL_SYNC_END, JOURNAL_OFFSET_42, &[0xd2, 1, 1, 13]]), Reason::AfterJournalOffset { byte: 0xd2 });
}

#[test]
fn what_follows_eof_is_left_alone() {
    let bytes = [&stream(&[])[..], b"journal"].concat();
    for piece in [1, 3, usize::MAX] {
        assert_eq!(drive(&bytes, LIMITS, || piece).unwrap().1, b"journal");
    }
    let mut decoder = StreamDecoder::new(FlowId(0), LIMITS);
    let mut rest = &bytes[..];
    while !decoder.is_ended() {
        match decoder.next(rest).unwrap() {
            Progress::Event { consumed, .. } => rest = &rest[consumed..],
            Progress::NeedMore { .. } => unreachable!(),
        }
    }
    assert_eq!(decoder.next(rest).unwrap_err().reason, Reason::AfterEof);
}

#[test]
fn no_prefix_of_a_stream_is_a_success() {
    let body = [
        hex("fa 01 61 01 62 fe 00 fc 00 20 4a a9 d1 01 00 00 00 01 6b 01 76"),
        chunk(1, &[&[2][..], &raw("s"), &[2], &raw("a")].concat()),
        [vec![0xca], raw(hex("00 01 6b 01 76"))].concat(),
        chunk(1, &raw("b")),
    ]
    .concat();
    let bytes = stream(&body);
    let small = Limits { whole_bytes_max: 6, run_bytes_max: 4, ..LIMITS };
    for len in 0..bytes.len() {
        for limits in [LIMITS, small] {
            let error = drive(&bytes[..len], limits, || usize::MAX).err().expect("a prefix was accepted");
            assert!(matches!(error.reason, Reason::Truncated { .. } | Reason::ClosedBeforeEof), "{len}: {error}");
        }
    }
}

#[test]
fn lengths_beyond_the_limits_are_refused_before_they_are_waited_for() {
    let huge = [0x81, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let atom = |body: &[&[u8]]| match decode(&[HEADER, &body.concat()].concat()).unwrap_err().reason {
        Reason::LimitPassed { what, limit, .. } => (what, limit),
        other => panic!("{other:?}"),
    };
    let atom_max = (Limit::AtomBytes, LIMITS.atom_bytes_max as u64);
    assert_eq!(atom(&[&[0], &huge]), (Limit::KeyBytes, LIMITS.key_bytes_max as u64));
    for byte in [11, 12, 13, 16, 17, 20, 30] {
        assert_eq!(atom(&[&[byte], &raw("k"), &huge]), atom_max, "type {byte}");
    }
    for byte in [2, 4, 5, 14, 31, 32] {
        assert_eq!(atom(&[&[byte], &raw("k"), &[1], &huge]), atom_max, "type {byte}");
    }
    assert_eq!(atom(&[&[18], &raw("k"), &[1, 2], &huge]), atom_max);
    assert_eq!(atom(&[&[0xca], &huge]), atom_max);
    assert_eq!(atom(&[&[0xd2, 1], &huge]), atom_max);
    assert_eq!(atom(&[&[0xfa], &huge]), atom_max);
    assert_eq!(atom(&[&[0xc3 - 0xc3], &raw("k"), &[0xc3, 1], &huge]), atom_max);
    // A tail that announces more pending entries than an atom can hold.
    assert_eq!(
        atom(&[&[21], &raw("k"), &[0, 1, 1, 1, 1, 1, 1, 1, 1, 1], &raw("g"), &[1, 1, 1], &packed(1 << 20)]),
        atom_max
    );
    // Elements of several strings count as a whole.
    let half = [&packed(600 << 10)[..], &vec![b'x'; 600 << 10]].concat();
    assert_eq!(atom(&[&[4], &raw("k"), &[1], &half, &half]), atom_max);
}

#[test]
fn huge_counts_and_strings_are_begun_and_nothing_is_reserved() {
    let mut decoder = StreamDecoder::new(FlowId(0), LIMITS);
    let huge = [0x81, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    for byte in [0u8, 2, 4, 5, 14, 15, 18, 19, 21, 31, 32] {
        let bytes = [HEADER, &[byte], &raw("k")[..], &huge].concat();
        let mut decoder = decoder.clone();
        match decoder.next(&bytes).unwrap() {
            Progress::Event { event: Event::Begin { count, .. }, consumed } => {
                assert_eq!((count, consumed), (0x00ff_ffff_ffff_ffff, bytes.len()));
            }
            other => panic!("type {byte}: {other:?}"),
        }
    }
    // A number of elements that no memory could hold.
    let bytes = [HEADER, &[5], &raw("k")[..], &[0x81], &[0xff; 8]].concat();
    assert_eq!(decoder.next(&bytes).unwrap_err().reason, Reason::LengthOverflow);
}

#[test]
fn raw_bytes_left_counts_down() {
    let mut decoder = StreamDecoder::new(FlowId(0), Limits { whole_bytes_max: 10, ..LIMITS });
    let bytes = [HEADER, &[0], &raw("k")[..], &raw("0123456789")].concat();
    assert_eq!(decoder.raw_bytes_left(), 0);
    let Progress::Event { consumed, .. } = decoder.next(&bytes[..14]).unwrap() else { panic!() };
    assert_eq!((consumed, decoder.raw_bytes_left()), (13, 10));
    let Progress::Event { event, consumed } = decoder.next(&bytes[13..17]).unwrap() else { panic!() };
    assert!(matches!(event, Event::Run { body: b"0123", count: 4, .. }));
    assert_eq!((consumed, decoder.raw_bytes_left()), (4, 6));
    assert_eq!(decoder.closed(&[]).reason, Reason::Truncated { missing: 6 });
}

#[test]
fn runs_keep_to_their_limit_unless_one_element_is_longer() {
    let limits = Limits { whole_bytes_max: 20, run_bytes_max: 10, ..LIMITS };
    let members = [raw("abc"), raw("def"), raw("ghi"), raw("a member longer than a run"), raw("jk")];
    let bytes = stream(&[&[2][..], &raw("s"), &[5], &members.concat()].concat());
    let mut decoder = StreamDecoder::new(FlowId(0), limits);
    let (mut rest, mut runs) = (&bytes[..], Vec::new());
    while !decoder.is_ended() {
        let Progress::Event { event, consumed } = decoder.next(rest).unwrap() else { panic!() };
        if let Event::Run { count, body, .. } = event {
            runs.push((count, body.len()));
        }
        rest = &rest[consumed..];
    }
    assert_eq!(runs, [(2, 8), (1, 4), (1, 27), (1, 3)]);
}

/// The short way for plain strings and the general way are one.
#[test]
fn plain_strings_come_out_alike_both_ways() {
    let mut decoder = StreamDecoder::new(FlowId(3), LIMITS);
    decoder.stage = StreamStage::Body;
    for (key_len, value_len) in [0, 1, 63, 64, 300].into_iter().flat_map(|k| [0, 1, 63, 64, 900].map(|v| (k, v))) {
        let mut record = vec![0];
        for len in [key_len, value_len] {
            match len {
                0..=63 => record.push(len as u8),
                _ => record.extend([0x40 | (len >> 8) as u8, len as u8]),
            }
            record.resize(record.len() + len, b'x');
        }
        for (whole, key) in [(10_000, 10_000), (100, 10_000), (10_000, 100), (record.len(), key_len)] {
            let limits = Limits { whole_bytes_max: whole, key_bytes_max: key, ..LIMITS };
            let (mut short, mut general) = (decoder.clone(), decoder.clone());
            (short.limits, general.limits) = (limits, limits);
            for len in [record.len(), record.len() - 1, 1] {
                assert_eq!(short.clone().next(&record[..len]), general.clone().next_any(&record[..len]));
            }
            assert_eq!(short.next(&record).is_ok(), general.next_any(&record).is_ok());
            assert_eq!(short.offset_bytes(), general.offset_bytes());
        }
    }
}
