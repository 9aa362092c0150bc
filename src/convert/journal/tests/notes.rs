//! What the report is told of records: notes, counts, errors.

use super::super::*;
use super::support::*;

#[test]
fn a_string_too_long_for_the_target_follows_the_policy() {
    let mut small = capabilities("7.0");
    small.bulk_bytes_max = 4;
    let new = |policy| JournalTranslator::new(FlowId(0), Arc::new(small.clone()), Arc::new(policy), 1 << 20);
    let error = run(&mut new(Policy::default()), 0, &split("SET k 12345")).0.unwrap_err();
    assert!(matches!(error.reason, TranslateReason::Unsupported { kind: Kind::LargeString, .. }));
    let mut translator = new(skip_all());
    assert_eq!(run(&mut translator, 0, &split("SET k 12345")).1.lines(), ["B DEL k"]);
    assert!(run(&mut translator, 0, &split("APPEND k 12345")).1.lines().is_empty());
    assert_eq!(translator.notes().list().len(), 1);
}

#[test]
fn of_a_record_over_several_keys_those_that_fit_are_carried_out() {
    for (target, line, sent, listed) in [
        ("7.0", "MSET a 1 b 12345 c 3", "B MSET a 1 c 3 | B DEL b", "b"),
        ("7.0", "MSET b 12345", "B DEL b", "b"),
        ("7.0", "MSET b 12345 b 1", "B MSET b 1", ""),
        ("7.0", "MSET b 1 b 12345", "B MSET b 1 | B DEL b", "b"),
        ("7.0", "MSET longkey 1 a 2", "B MSET a 2", "longkey"),
        ("7.0", "DEL longkey a", "B DEL a", "longkey"),
        ("7.0", "SET longkey 1", "", "longkey"),
        ("stack", "JSON.SET k $ 12345", "B DEL k", "k"),
        ("stack", "JSON.SET k $ 12345 NX", "", "k"),
        ("stack", "JSON.SET k .a 12345", "", "k"),
        ("stack", "JSON.MSET a $ 12345 b $ 2 c .x 12345", "B DEL a | B DEL b | B JSON.MSET b $ 2", "a c"),
        ("7.0", "JSON.MSET a $ 12345 b $ 2", "", "a b"),
    ] {
        let mut small = capabilities(target);
        small.bulk_bytes_max = 4;
        let policy = Arc::new(skip_all());
        let mut translator = JournalTranslator::new(FlowId(0), Arc::new(small), policy, 1 << 20);
        let (outcome, written) = run(&mut translator, 0, &split(line));
        assert!(matches!(outcome, Ok(Outcome::LeftOut { kind: Kind::LargeString, .. })), "{line}: {outcome:?}");
        let keys: Vec<_> = translator.notes().take().into_iter().map(|note| note.key).collect();
        let keys: Vec<_> = keys.iter().map(|key| String::from_utf8_lossy(key)).collect();
        assert_eq!((written.lines().join(" | ").as_str(), keys.join(" ").as_str()), (sent, listed), "{line}");
    }
}

#[test]
fn notes_and_counts_tell_what_happened() {
    let mut translator = translator("7.0", skip_all());
    for line in [
        "SET a 1",
        "SET a 2",
        "XADD s * f v",
        "SORT a",
        "SADDEX m 5 x",
        "JSON.SET j $ 1",
        "NOSUCH n",
        "FLUSHALL",
        "SET a",
    ] {
        let _ = run(&mut translator, 0, &split(line));
    }
    let notes: Vec<_> = translator.notes().take().into_iter().map(|note| (note.key, note.kind)).collect();
    let key = |key: &str| Box::<[u8]>::from(key.as_bytes());
    assert_eq!(
        notes,
        [
            (key("s"), NoteKind::Doubtful(Doubt::GeneratedId)),
            (key("m"), NoteKind::ExpiryDropped(Kind::MemberExpiry)),
            (key("j"), NoteKind::Skipped(Kind::Json)),
            (key("n"), NoteKind::Skipped(Kind::Command)),
        ]
    );
    let by_name: Vec<_> = translator.by_name().collect();
    assert_eq!(by_name[0], ("SET", NameCounts { written: 2, refused: 1, ..NameCounts::default() }));
    assert_eq!(by_name.last(), Some(&(OTHER_NAME, NameCounts { left_out: 1, ..NameCounts::default() })));
    assert_eq!(by_name.len(), 7);
}

#[test]
fn sets_that_an_old_source_compares_wrongly_are_listed_once() {
    for (release, listed) in [("df-v1.40.1", &["a", "b"][..]), ("df-v1.41.0", &[]), ("df-dev", &[])] {
        let mut translator = translator("7.0", Policy::default());
        translator.set_source(crate::dragonfly::session::Release::parse(release));
        for line in ["ZADD a GT 1 m", "ZADD b ch lt 2 m", "ZADD a XX GT 3 m", "ZADD c NX 1 GT", "ZADD d 1 GT"] {
            assert!(matches!(run(&mut translator, 0, &split(line)).0, Ok(Outcome::Written { commands: 1 })), "{line}");
        }
        let keys: Vec<_> = translator.notes().take().into_iter().map(|note| note.key.to_vec()).collect();
        assert_eq!(keys, listed.iter().map(|key| key.as_bytes().to_vec()).collect::<Vec<_>>(), "{release}");
    }
}

/// Before 1.14 a SETNX that found its key is recorded, too.
#[test]
fn conditions_of_a_new_source_were_met() {
    for (release, wanted) in [
        ("df-v1.13.0", [["G SETNX k v"].as_slice(), &["G RENAMENX a b"]]),
        ("df-v1.14.0", [&["B SET k v"], &["B DEL b", "G RENAMENX a b"]]),
    ] {
        let mut translator = translator("7.0", Policy::default());
        translator.set_source(crate::dragonfly::session::Release::parse(release));
        for (line, wanted) in ["SETNX k v", "RENAMENX a b"].iter().zip(wanted) {
            let (outcome, sent) = run(&mut translator, 0, &split(line));
            outcome.unwrap();
            assert_eq!(sent.lines(), wanted, "{release}");
        }
    }
}

#[test]
fn errors_name_flow_db_command_key_reason_and_remedy() {
    let error = run(&mut translator("7.0", Policy::default()), 0, &split("JSON.SET doc\u{1} $ 1")).0.unwrap_err();
    insta::assert_snapshot!(error, @r#"flow 0, db 0: recorded command JSON.SET on key "doc\x01": the target cannot hold it (JSON documents, which need the JSON module); remedy: --on-unsupported json=skip or --on-unsupported json=string, or a target that has it"#);
}
