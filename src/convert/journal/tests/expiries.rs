//! Which expiry a record gives: kept, in whole seconds, or held back.

use super::super::*;
use super::support::*;

#[test]
fn expiries_can_be_held_back() {
    let mut translator = translator("8.0", Policy::default());
    translator.set_near(Near::before(1_800_000_002_000));
    let mut lines = |line| {
        let lines = run(&mut translator, 0, &split(line)).1.lines().join(" | ");
        (lines, translator.take_shifted_ms())
    };
    assert_eq!(lines("SET k v PXAT 5"), ("B SET k v PXAT 4398046511109".into(), Some(5)));
    assert_eq!(lines("PEXPIREAT k 5"), ("G PEXPIREAT k 4398046511109".into(), Some(5)));
    assert_eq!(lines("PEXPIREAT k 1800000002000"), ("G PEXPIREAT k 1800000002000".into(), None));
    let field = ("G HPEXPIREAT k 6198046512104 FIELDS 1 f".into(), Some(1_800_000_001_000));
    assert_eq!(lines("HEXPIRE k 1 FIELDS 1 f"), field);
    let (line, _) = lines("HEXPIRE k 5 GT FIELDS 1 f");
    assert!(line.ends_with(" 1 k GT 1800000005000 1800000005000 4398046511104 f"), "{line}");
}

/// Dragonfly keeps a field's expiry in whole seconds, counted from the second that it is in, and rounds what is left up.
#[test]
fn fields_expire_at_whole_seconds() {
    let mut translator = translator("8.0", Policy::default());
    for (line, at) in [
        ("HEXPIRE k 10 FIELDS 1 f", "1800000010000"),
        ("FIELDEXPIRE k 10 f", "1800000010000"),
        ("HSETEX k 10 f v", "1800000010000"),
        ("HSETEX k EX 10 FIELDS 1 f v", "1800000010000"),
        ("HSETEX k PX 1 FIELDS 1 f v", "1800000001000"),
        ("HGETEX k EX 10 FIELDS 1 f", "1800000010000"),
        ("HGETEX k PX 1001 FIELDS 1 f", "1800000002000"),
        ("HGETEX k PX 1000 FIELDS 1 f", "1800000001000"),
        ("HGETEX k PXAT 1800000000077 FIELDS 1 f", "1800000000077"),
        ("HEXPIRE k 0 FIELDS 1 f", "1800000000000"),
    ] {
        let mut sent = Sent::default();
        translator.command(DbIndex(0), 0, &split(line), NOW_MS + 999, &mut Shown, &mut sent).unwrap();
        let last = sent.lines().pop().unwrap();
        assert_eq!(last, format!("G HPEXPIREAT k {at} FIELDS 1 f"), "{line}");
    }
    // Keys count in milliseconds.
    let mut sent = Sent::default();
    translator.command(DbIndex(0), 0, &split("GETEX k EX 10"), NOW_MS + 999, &mut Shown, &mut sent).unwrap();
    assert_eq!(sent.lines(), ["G PEXPIREAT k 1800000010999"]);
}

#[test]
fn a_merged_hyperloglog_keeps_its_expiry() {
    let dense = [&b"HYLL\0"[..], &[0; 11 + 12_288]].concat();
    let (sparse, longer) = ([&b"HYLL\x01"[..], &[0; 11 + 12_288]].concat(), [&dense[..], b"x"].concat());
    let strings_of = |txid: u64, args: &[&[u8]]| {
        let (_, sent) = run(&mut translator("7.0", Policy::default()), txid, args);
        strings(&sent.commands[0].1)
            .iter()
            .skip(3)
            .map(|text| String::from_utf8(text.clone()).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(strings_of(5, &[b"SET", b"k", &dense]), ["KEEPTTL"]);
    assert_eq!(strings_of(0, &[b"SET", b"k", &dense]), [""; 0]);
    for other in [&sparse, &longer] {
        assert_eq!(strings_of(5, &[b"SET", b"k", other]), [""; 0]);
    }
    assert_eq!(strings_of(5, &[b"SET", b"k", &dense, b"PXAT", b"1900000000000"]), ["PXAT", "1900000000000"]);
}
