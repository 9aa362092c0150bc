//! Every record form of wire 4.1, in whole and cut, and what is wrong with damaged ones.

use super::super::testing::{packed, raw};
use super::*;

fn show(event: &JournalEvent<'_>) -> String {
    match event {
        JournalEvent::Command(command) => {
            assert_eq!(command.args().count(), command.args_count);
            assert_eq!(command.args().next(), Some(command.name()));
            let args: Vec<_> = command.args().map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
            format!("db{} tx{} {}", command.db, command.txid, args.join("|"))
        }
        JournalEvent::Ping => "PING".into(),
        JournalEvent::Exec => "EXEC".into(),
        JournalEvent::Marker(lsn) => format!("LSN {lsn}"),
    }
}

/// All events of `bytes`, which must be complete, fed in pieces.
fn events(bytes: &[u8], piece: usize) -> Result<Vec<String>, Reason> {
    let mut decoder = JournalDecoder::new(FlowId(1), 1000).starting_at(100);
    let (mut out, mut at, mut given) = (Vec::new(), 0, 0);
    loop {
        match decoder.next(&bytes[at..given]).map_err(|error| error.reason)? {
            JournalProgress::Event { event, consumed } => {
                out.push(show(&event));
                at += consumed;
                assert_eq!(decoder.offset_bytes(), 100 + at as u64);
            }
            JournalProgress::NeedMore { at_least } => {
                assert!(at_least > given - at);
                if given == bytes.len() {
                    assert_eq!(at, given, "bytes left over: {:02x?}", &bytes[at..]);
                    return Ok(out);
                }
                given = bytes.len().min(given + piece);
            }
        }
    }
}

fn command(opcode: u8, txid: u64, args: &[&str]) -> Vec<u8> {
    let total = args.iter().map(|arg| arg.len() as u64).sum();
    let mut out =
        [packed(u64::from(opcode)), packed(txid), packed(1), packed(args.len() as u64), packed(total)].concat();
    out.extend(args.iter().flat_map(raw));
    out
}

/// What a source that became a replica writes between two records (wire 1.9).
#[test]
fn an_error_reply_in_the_journal_is_the_sources_words() {
    let set = command(10, 0, &["SET", "k", "v"]);
    let said = |text: &str| Err(Reason::SourceSaid { text: text.to_string() });
    let long = format!("-ERR {}", "x".repeat(10_000));
    for piece in [1, 3, 1000] {
        let of = |text: &str| events(&[&set[..], text.as_bytes(), &set[..]].concat(), piece);
        assert_eq!(
            of("-ERR Replicating a replica is unsupported\r\n"),
            said("ERR Replicating a replica is unsupported")
        );
        assert_eq!(of("-NOPERM a\x1b[2Jb\r\n"), said("NOPERM a?[2Jb"));
        assert_eq!(of(&long), said(&long[1..=200]));
        assert_eq!(of("-\r\n"), Err(Reason::UnknownJournalOpcode { opcode: 45 }));
        assert_eq!(of("-x\r\n"), Err(Reason::UnknownJournalOpcode { opcode: 45 }));
    }
}

#[test]
fn examples_of_wire_4_1() {
    let set = [0x06, 0x00, 0x0a, 0x00, 0x01, 0x03, 0x05, 0x03, 0x53, 0x45, 0x54, 0x01, 0x6b, 0x01, 0x76];
    let mset = [
        0x06, 0x03, 0x0a, 0x80, 0x00, 0x01, 0x11, 0x70, 0x01, 0x05, 0x07, 0x04, 0x4d, 0x53, 0x45, 0x54, 0x01, 0x61,
        0x01, 0x31, 0x01, 0x62, 0x00,
    ];
    let bytes = [&set[..], &mset, &[0x0f, 0x29], &[0x0d]].concat();
    let expected = ["db0 tx0 SET|k|v", "db3 tx70000 MSET|a|1|b|", "LSN 41", "PING"];
    for piece in [1, 2, 7, 1000] {
        assert_eq!(events(&bytes, piece).unwrap(), expected);
    }
}

#[test]
fn old_records_and_the_db_state() {
    let bytes = [
        command(9, 0, &["DEL", "k"]),
        vec![6, 2],
        command(11, 7, &["LPUSH", "l", "x"]),
        vec![12, 7, 3],
        vec![6, 5, 13],
        command(10, 1, &["PING"]),
    ]
    .concat();
    let expected = ["db0 tx0 DEL|k", "db2 tx7 LPUSH|l|x", "EXEC", "PING", "db5 tx1 PING"];
    for piece in [1, 1000] {
        assert_eq!(events(&bytes, piece).unwrap(), expected);
    }
}

#[test]
fn damaged_records() {
    let reason = |bytes: &[u8]| {
        let whole = events(bytes, 1000).unwrap_err();
        assert_eq!(events(bytes, 1).unwrap_err(), whole);
        let blob = JournalDecoder::new(FlowId(1), 1000).decode_blob(bytes, |_| Ok(())).unwrap_err();
        assert_eq!(blob.reason, whole);
        whole
    };
    assert_eq!(reason(&[0]), Reason::ForbiddenJournalOpcode { opcode: 0 });
    assert_eq!(reason(&[14]), Reason::ForbiddenJournalOpcode { opcode: 14 });
    for opcode in [1, 5, 7, 8, 16, 63] {
        assert_eq!(reason(&[opcode]), Reason::UnknownJournalOpcode { opcode: u64::from(opcode) });
    }
    assert_eq!(reason(&[0x41, 0x00]), Reason::UnknownJournalOpcode { opcode: 256 });
    assert_eq!(reason(&[0xc0]), Reason::BadPackedNumber { byte: 0xc0 });
    assert_eq!(reason(&[6, 0x80, 0, 1, 0, 0]), Reason::JournalRange { what: "database index", value: 65536 });
    let shards = [&[10, 0, 0x81][..], &(1u64 << 32).to_be_bytes()].concat();
    assert_eq!(reason(&shards), Reason::JournalRange { what: "number of shards", value: 1 << 32 });
    assert_eq!(reason(&[10, 0, 1, 0, 0]), Reason::EmptyCommand);
    // Lengths that do not sum up.
    assert_eq!(reason(&[10, 0, 1, 2, 4, 2, b'a', b'b', 1, b'c', 13]), Reason::CommandLength { announced: 4, found: 3 });
    assert_eq!(reason(&[10, 0, 1, 2, 2, 2, b'a', b'b', 1, b'c']), Reason::CommandLength { announced: 2, found: 3 });
    // The integer form does not occur here.
    assert_eq!(reason(&[10, 0, 1, 1, 1, 0xc0, 1]), Reason::BadPackedNumber { byte: 0xc0 });
}

#[test]
fn huge_numbers_are_refused_before_they_are_waited_for() {
    let huge = [0x81, 0x0f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let limit = |bytes: &[u8]| match events(bytes, 1000).unwrap_err() {
        Reason::LimitPassed { what: Limit::AtomBytes, limit: 1000, .. } => {}
        other => panic!("{other:?}"),
    };
    limit(&[&[10, 0, 1][..], &huge, &[0]].concat());
    limit(&[&[10, 0, 1, 1][..], &huge].concat());
    limit(&[&[10, 0, 1, 1][..], &packed(1000)].concat());
    limit(&command(10, 0, &["SET", &"x".repeat(1000)]));
    assert_eq!(events(&[&[10, 0, 1][..], &[0x81], &[0xff; 8], &[1]].concat(), 1000), Err(Reason::LengthOverflow));
    // A run of SELECTs is a record that never comes.
    limit(&[6, 0].repeat(501));
}

#[test]
fn blobs_are_complete_and_have_their_own_db() {
    let mut decoder = JournalDecoder::new(FlowId(1), 1000);
    assert!(matches!(decoder.next(&[6, 9, 13]), Ok(JournalProgress::Event { event: JournalEvent::Ping, consumed: 3 })));
    let decode = |decoder: &mut JournalDecoder, blob: &[u8]| {
        let mut out = Vec::new();
        decoder
            .decode_blob(blob, |event| {
                out.push(show(&event));
                Ok(())
            })
            .map(|()| out)
            .map_err(|error| error.reason)
    };
    let record = command(10, 0, &["DEL", "k"]);
    assert_eq!(decode(&mut decoder, &record), Ok(vec!["db0 tx0 DEL|k".into()]));
    assert_eq!(
        decode(&mut decoder, &[vec![6, 4], record.clone(), record.clone()].concat()),
        Ok(vec!["db4 tx0 DEL|k".into(), "db4 tx0 DEL|k".into()])
    );
    assert_eq!(decode(&mut decoder, &[]), Err(Reason::JournalBlobEmpty));
    assert!(matches!(decode(&mut decoder, &[6, 4]), Err(Reason::JournalBlobTruncated { .. })));
    for len in 1..record.len() {
        assert!(matches!(decode(&mut decoder, &record[..len]), Err(Reason::JournalBlobTruncated { .. })));
    }
    // The state of the bare journal is untouched.
    let JournalProgress::Event { event, .. } = decoder.next(&record).unwrap() else { panic!() };
    assert_eq!(show(&event), "db9 tx0 DEL|k");
    let stop = DecodeError { flow: FlowId(1), offset: 0, reason: Reason::EmptyCommand };
    assert_eq!(decoder.decode_blob(&record, |_| Err(stop.clone())), Err(stop));
}

#[test]
fn the_counter_checks_markers() {
    let mut counter = LsnCounter::new(Lsn(7));
    counter.observe(&JournalEvent::Ping).unwrap();
    counter.observe(&JournalEvent::Exec).unwrap();
    counter.observe(&JournalEvent::Marker(Lsn(8))).unwrap();
    assert_eq!(counter.next(), Lsn(9));
    let mismatch = counter.observe(&JournalEvent::Marker(Lsn(9)));
    assert_eq!(mismatch, Err(Reason::MarkerMismatch { marker: 9, expected: 8 }));
    assert!(LsnCounter::new(Lsn(0)).observe(&JournalEvent::Marker(Lsn(0))).is_err());
    assert!(LsnCounter::new(Lsn(u64::MAX)).observe(&JournalEvent::Ping).is_err());
}
