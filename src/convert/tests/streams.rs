//! Streams, whole and in pieces, by RESTORE and by commands.

use super::build::*;
use super::*;
use ObjectType as T;
use Stage::{Elements, StreamTail};

fn tail() -> Vec<u8> {
    let group = Group {
        name: "g",
        last: (20, 0),
        read: Some(2),
        consumers: &["c", "idle"],
        pending: &[((10, 1), 1111, 1, 0), ((15, 0), 1111, 1, 0), ((20, 0), 2222, 3, 0)],
    };
    let unread = Group { name: "h", last: (0, 0), read: None, consumers: &[], pending: &[] };
    stream_tail(3, (30, 0), (15, 0), 4, &[group, unread])
}

/// Entries 10-1, 20-0, 30-0; 15-0 was deleted and is pending.
fn nodes() -> [Vec<u8>; 2] {
    [stream_node(&[(10, 1, false), (20, 0, false)]), stream_node(&[(30, 0, false)])]
}

fn stream() -> Vec<u8> {
    let [first, second] = nodes();
    [&[2], &first[..], &second, &tail()].concat()
}

fn by_commands() -> Limits {
    Limits { stream_restore_bytes_max: 10, ..Limits::default() }
}

#[test]
fn a_stream_is_restored_in_the_type_that_the_target_takes() {
    let body = stream();
    let (lines, tally) = whole(redis(7, 2), "", meta("s", T::StreamV3, None), &body).unwrap();
    let payload = escape::printable(&[&[21], &body[..]].concat());
    assert_eq!(lines, [format!("RESTORE s 0 {payload} REPLACE ABSTTL")]);
    assert_eq!(tally.total().elements_written, 3);
    for (target, rdb_type) in [(redis(7, 0), 19), (redis(6, 2), 15)] {
        let (lines, _) = whole(target, "", meta("s", T::StreamV3, None), &body).unwrap();
        let mut payload = vec![rdb_type, 2];
        payload.extend(nodes().concat());
        crate::redis::reencode::stream_tail(&tail(), 21, rdb_type, &mut payload).unwrap();
        assert_eq!(lines, [format!("RESTORE s 0 {} REPLACE ABSTTL", escape::printable(&payload))]);
    }
}

#[test]
fn a_split_stream_is_put_together() {
    let [first, second] = nodes();
    for target in [redis(6, 2), redis(7, 0), valkey(8, 0)] {
        let mut converter = converter(target.clone(), "", Limits::default());
        let runs: &[(Stage, u64, &[u8])] = &[(Elements, 1, &first), (Elements, 1, &second), (StreamTail, 1, &tail())];
        let lines = split(&mut converter, meta("s", T::StreamV3, Some(NOW_MS + 1)), 2, runs).unwrap();
        assert_eq!(lines, whole(target, "", meta("s", T::StreamV3, Some(NOW_MS + 1)), &stream()).unwrap().0);
    }
}

#[test]
fn a_large_whole_stream_goes_by_commands_with_stand_ins() {
    let mut converter = converter(redis(7, 0), "", by_commands());
    let mut out = VecOut::new();
    let body = stream();
    let event = Event::Whole { meta: meta("s", T::StreamV3, Some(NOW_MS + 1)), body: &body };
    converter.event(&event, NOW_MS, &mut out).unwrap();
    let expire = format!("PEXPIREAT s {}", NOW_MS + 1);
    assert_eq!(
        lines(&out),
        [
            "DEL s",
            "XADD s 10-1 f v10",
            "XADD s 15-0 deleted ",
            "XADD s 20-0 f v20",
            "XADD s 30-0 f v30",
            "XGROUP CREATE s g 20-0 ENTRIESREAD 2",
            "XGROUP CREATECONSUMER s g c",
            "XCLAIM s g c 0 10-1 15-0 TIME 1111 RETRYCOUNT 1 FORCE JUSTID",
            "XCLAIM s g c 0 20-0 TIME 2222 RETRYCOUNT 3 FORCE JUSTID",
            "XGROUP CREATECONSUMER s g idle",
            "XGROUP CREATE s h 0-0",
            "XDEL s 15-0",
            "XSETID s 30-0 ENTRIESADDED 4 MAXDELETEDID 15-0",
            &expire,
        ]
    );
}

#[test]
fn old_targets_get_no_counters() {
    let mut converter = converter(redis(6, 2), "", by_commands());
    let mut out = VecOut::new();
    let body = stream();
    converter.event(&Event::Whole { meta: meta("s", T::StreamV3, None), body: &body }, NOW_MS, &mut out).unwrap();
    let lines = lines(&out);
    assert!(lines.contains(&"XGROUP CREATE s g 20-0".to_string()));
    assert_eq!(lines.last().unwrap(), "XSETID s 30-0");
}

#[test]
fn a_large_split_stream_cannot_have_stand_ins() {
    let [first, second] = nodes();
    let tail = tail();
    let runs: &[(Stage, u64, &[u8])] = &[(Elements, 1, &first), (Elements, 1, &second), (StreamTail, 1, &tail)];
    let meta = meta("s", T::StreamV3, None);
    let refused = split(&mut converter(redis(7, 0), "", by_commands()), meta, 2, runs).unwrap_err();
    insta::assert_snapshot!(refused, @r#"flow 1: key "s" in database 0 is a stream with pending entries whose messages were deleted, which the target cannot hold (it is too large for RESTORE, and XCLAIM needs the message); to go on all the same: --on-unsupported dangling-pending=drop"#);
    let mut converter = converter(redis(7, 0), "skip", by_commands());
    let lines = split(&mut converter, meta, 2, runs).unwrap();
    assert_eq!(
        lines,
        [
            "DEL s",
            "XADD s 10-1 f v10",
            "XADD s 20-0 f v20",
            "XADD s 30-0 f v30",
            "XGROUP CREATE s g 20-0 ENTRIESREAD 2",
            "XGROUP CREATECONSUMER s g c",
            "XCLAIM s g c 0 10-1 TIME 1111 RETRYCOUNT 1 FORCE JUSTID",
            "XCLAIM s g c 0 20-0 TIME 2222 RETRYCOUNT 3 FORCE JUSTID",
            "XGROUP CREATECONSUMER s g idle",
            "XGROUP CREATE s h 0-0",
            "XSETID s 30-0 ENTRIESADDED 4 MAXDELETEDID 15-0",
        ]
    );
    assert_eq!(converter.tally().dropped(Kind::DanglingPending), 1);
}

#[test]
fn a_stream_that_grows_too_large_changes_over() {
    let [first, second] = nodes();
    let tail = stream_tail(3, (30, 0), (0, 0), 3, &[]);
    let limits = Limits { stream_restore_bytes_max: first.len(), ..Limits::default() };
    let runs: &[(Stage, u64, &[u8])] = &[(Elements, 1, &first), (Elements, 1, &second), (StreamTail, 1, &tail)];
    let lines = split(&mut converter(redis(7, 0), "", limits), meta("s", T::StreamV3, None), 2, runs).unwrap();
    assert_eq!(
        lines,
        [
            "DEL s",
            "XADD s 10-1 f v10",
            "XADD s 20-0 f v20",
            "XADD s 30-0 f v30",
            "XSETID s 30-0 ENTRIESADDED 3 MAXDELETEDID 0-0",
        ]
    );
}

#[test]
fn an_empty_stream_is_made_by_a_group() {
    let body = [&[0][..], &stream_tail(0, (5, 0), (5, 0), 9, &[])].concat();
    let mut converter = converter(redis(7, 0), "", Limits { stream_restore_bytes_max: 0, ..Limits::default() });
    let mut out = VecOut::new();
    converter.event(&Event::Whole { meta: meta("s", T::StreamV3, None), body: &body }, NOW_MS, &mut out).unwrap();
    assert_eq!(
        lines(&out),
        [
            "DEL s",
            "XGROUP CREATE s df2redis 0 MKSTREAM",
            "XGROUP DESTROY s df2redis",
            "XSETID s 5-0 ENTRIESADDED 9 MAXDELETEDID 5-0",
        ]
    );
}

#[test]
fn every_truncation_of_a_stream_is_an_error_and_never_a_panic() {
    let body = stream();
    for limits in [Limits::default(), by_commands()] {
        for target in [redis(7, 2), redis(7, 0)] {
            for len in 0..body.len() {
                let mut converter = converter(target.clone(), "skip", limits);
                let event = Event::Whole { meta: meta("s", T::StreamV3, None), body: &body[..len] };
                let _ = converter.event(&event, NOW_MS, &mut VecOut::new());
            }
        }
    }
}
