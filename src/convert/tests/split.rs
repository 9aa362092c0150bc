//! Values that come in pieces.

use super::build::*;
use super::*;
use ObjectType as T;
use Stage::Elements;

#[test]
fn a_string_stays_one_set() {
    for expiry in [None, Some(NOW_MS + 1)] {
        let mut converter = converter(redis(7, 0), "", Limits::default());
        let runs: &[(Stage, u64, &[u8])] = &[(Elements, 3, b"abc"), (Elements, 2, b"de")];
        let lines = split(&mut converter, meta("k", T::String, expiry), 5, runs).unwrap();
        let pxat = expiry.map_or(String::new(), |ms| format!(" PXAT {ms}"));
        assert_eq!(lines, [format!("SET k abcde{pxat}")]);
    }
}

#[test]
fn a_huge_string_goes_in_pieces() {
    let limits = Limits { set_bytes_max: 4, ..Limits::default() };
    let mut converter = converter(redis(7, 0), "", limits);
    let runs: &[(Stage, u64, &[u8])] = &[(Elements, 3, b"abc"), (Elements, 2, b"de")];
    let lines = split(&mut converter, meta("k", T::String, Some(NOW_MS + 1)), 5, runs).unwrap();
    let expected = ["DEL k", "SETRANGE k 4 \\x00", "SETRANGE k 0 abc", "SETRANGE k 3 de"];
    assert_eq!(lines[..4], expected);
    assert_eq!(lines[4], format!("PEXPIREAT k {}", NOW_MS + 1));
}

#[test]
fn a_string_of_the_wrong_length_is_an_error() {
    for set_bytes_max in [1, 100] {
        for runs in [&[(Elements, 3, &b"abc"[..])][..], &[(Elements, 9, b"abcdefghi")]] {
            let limits = Limits { set_bytes_max, ..Limits::default() };
            let mut converter = converter(redis(7, 0), "", limits);
            let error = split(&mut converter, meta("k", T::String, None), 5, runs).unwrap_err();
            assert!(matches!(error, ConvertError::WrongLength { .. }));
        }
    }
}

#[test]
fn collections_in_runs() {
    let mut converter = converter(redis(7, 4), "", Limits::default());
    let (first, second) = (zset_run(&[("a", 1.0)]), zset_run(&[("b", 2.0), ("c", 2.5)]));
    let runs: &[(Stage, u64, &[u8])] = &[(Elements, 1, &first), (Elements, 2, &second)];
    let lines = split(&mut converter, meta("z", T::Zset, Some(NOW_MS + 9)), 3, runs).unwrap();
    let expire = format!("PEXPIREAT z {}", NOW_MS + 9);
    assert_eq!(lines, ["DEL z", "ZADD z 1 a", "ZADD z 2 b 2.5 c", &expire]);

    let mut converter = self::converter(redis(7, 4), "", Limits::default());
    let later = expiry(Some(NOW_MS / 1000 + 1));
    let first = run(&["f", "v", &later]);
    let lines = split(&mut converter, meta("h", T::HashExpiry, None), 1, &[(Elements, 1, &first)]).unwrap();
    let hpexpireat = format!("HPEXPIREAT h {} FIELDS 1 f", NOW_MS + 1000);
    assert_eq!(lines, ["DEL h", "HSET h f v", &hpexpireat]);
}

#[test]
fn a_split_set_whose_members_have_all_expired_is_gone() {
    let mut converter = converter(redis(7, 0), "", Limits::default());
    let past = expiry(Some(NOW_MS / 1000 - 1));
    let members = run(&["a", &past, "b", &past]);
    let lines =
        split(&mut converter, meta("s", T::SetExpiry, Some(NOW_MS + 1)), 2, &[(Elements, 2, &members)]).unwrap();
    assert_eq!(lines, ["DEL s"]);
    assert_eq!(converter.tally().total().keys_expired, 1);
}

#[test]
fn an_expired_object_is_deleted_and_its_elements_are_passed_over() {
    let mut converter = converter(redis(7, 0), "", Limits::default());
    let runs: &[(Stage, u64, &[u8])] = &[(Elements, 1, b"not even a member")];
    let lines = split(&mut converter, meta("s", T::Set, Some(NOW_MS - 1)), 1, runs).unwrap();
    assert_eq!(lines, ["DEL s"]);
}

#[test]
fn split_filters_follow_the_policy() {
    let mut converter = converter(redis(7, 0), "skip", Limits::default());
    let lines = split(&mut converter, meta("b", T::BloomPieces, None), 1, &[(Elements, 0, b"\xff\xff")]).unwrap();
    assert_eq!(lines, ["DEL b"]);
    assert_eq!(converter.tally().skipped(Kind::Filters), 1);
}

#[test]
fn an_ignored_object_leaves_no_trace() {
    let mut converter = converter(redis(7, 0), "", Limits::default());
    let mut out = VecOut::new();
    converter.ignore(ObjectId(3), &meta("stray", T::Set, None));
    let run = Event::Run { object: ObjectId(3), stage: Elements, count: 1, body: b"\x01a" };
    converter.event(&run, NOW_MS, &mut out).unwrap();
    converter.event(&Event::End { object: ObjectId(3) }, NOW_MS, &mut out).unwrap();
    assert!(out.bytes().is_empty());
    assert_eq!(converter.objects_open(), 0);
}

#[test]
fn several_objects_may_be_open() {
    let mut converter = converter(redis(7, 0), "", Limits::default());
    let mut out = VecOut::new();
    let (a, b) = (ObjectId(1), ObjectId(2));
    let mut event = |event: Event<'_>| converter.event(&event, NOW_MS, &mut out).unwrap();
    event(Event::Begin { object: a, meta: meta("a", T::Set, None), count: 2 });
    event(Event::Run { object: a, stage: Elements, count: 1, body: b"\x01x" });
    event(Event::Begin { object: b, meta: meta("b", T::Hash, None), count: 1 });
    event(Event::Whole { meta: meta("k", T::String, None), body: b"\x01v" });
    event(Event::Run { object: b, stage: Elements, count: 1, body: b"\x01f\x01v" });
    event(Event::Run { object: a, stage: Elements, count: 1, body: b"\x01y" });
    event(Event::End { object: b });
    event(Event::End { object: a });
    assert_eq!(lines(&out), ["DEL a", "SADD a x", "DEL b", "SET k v", "HSET b f v", "SADD a y"]);
}

#[test]
fn runs_of_nothing_begun_are_errors() {
    let mut converter = converter(redis(7, 0), "", Limits::default());
    let run = Event::Run { object: ObjectId(3), stage: Elements, count: 1, body: b"\x01a" };
    let error = converter.event(&run, NOW_MS, &mut VecOut::new()).unwrap_err();
    assert_eq!(error, ConvertError::UnexpectedRun { flow: FlowId(1), object: 3 });
    assert!(converter.event(&Event::End { object: ObjectId(3) }, NOW_MS, &mut VecOut::new()).is_err());
}
