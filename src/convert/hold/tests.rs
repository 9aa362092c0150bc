//! Which expiries are held and given back when, and that names follow their keys as far as they must.

use super::*;
use crate::convert::names::NAME_OVERHEAD_BYTES;
use crate::lab::LabError;
use crate::lab::servers::{Server, ServerKind, ServerOptions};

const DB: DbIndex = DbIndex(0);
const NOW: i64 = 1_000_000;
const HORIZON: i64 = 20_000;

fn held() -> Held {
    let mut held = Held::new(1 << 20);
    held.turn(NOW, 0, HORIZON);
    held
}

fn record(held: &mut Held, line: &str) {
    let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    held.record(DB, &args);
}

fn names(due: Vec<Due>) -> Vec<(String, i64)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let name = |Due { name, .. }: &Due| {
        let field = name.field.as_deref().map_or(String::new(), |field| format!("/{}", text(field)));
        format!("{}:{}{field}", name.db, text(&name.key))
    };
    let mut names: Vec<_> = due.iter().map(|due| (name(due), due.name.at_ms)).collect();
    names.sort();
    names
}

#[test]
fn the_horizon_is_wider_while_the_flow_lags() {
    let mut held = held();
    let shifts_before = |held: &Held, at_ms: i64| held.near().shifts(at_ms - 1) && !held.near().shifts(at_ms);
    assert!(shifts_before(&held, NOW + LAGGING_HORIZON_MS));
    held.turn(NOW, NOW - LAG_MS_MAX, HORIZON);
    assert!(shifts_before(&held, NOW + HORIZON));
    for applied in [0, NOW] {
        held.turn(NOW, applied, 2 * LAGGING_HORIZON_MS);
        assert!(shifts_before(&held, NOW + 2 * LAGGING_HORIZON_MS));
    }
    assert_eq!(Held::nothing(true).near(), Near::KEPT);
    let mut nothing = Held::nothing(false);
    nothing.turn(NOW, 0, HORIZON);
    assert_eq!(nothing.near(), Near::AS_IS);
}

#[test]
fn what_may_still_be_renewed_stays_held() {
    let mut held = held();
    held.hold(DB, b"past", None, NOW - 50_000);
    held.hold(DB, b"near", None, NOW + 5);
    held.hold(DB, b"ahead", None, NOW + 50_000);
    held.hold(DB, b"h", Some(b"f"), NOW - 40_000);
    // Behind: nothing is known of the time since.
    assert!(held.take_due(NOW, NOW - 60_000).is_empty());
    held.turn(NOW + 1_000, NOW, HORIZON);
    let due = names(held.take_due(NOW + 1_000, NOW));
    assert_eq!(
        due,
        [("0:ahead".into(), NOW + 50_000), ("0:h/f".into(), NOW - 40_000), ("0:past".into(), NOW - 50_000)]
    );
    assert!(held.take_due(NOW + 2_000, NOW + 1_000).is_empty());
    assert_eq!(names(held.take_due(NOW + 3_000, NOW + 2_005)), [("0:near".into(), NOW + 5)]);
    assert!(held.is_empty() && held.held_ms_max == 3_000);
}

/// Near what the default is, everything stays held until it has passed.
#[test]
fn a_lower_horizon_has_what_lies_beyond_it_given_back() {
    let mut held = held();
    held.hold(DB, b"k", None, NOW + 30_000);
    held.turn(NOW, NOW, LAGGING_HORIZON_MS);
    assert!(held.take_due(NOW, NOW).is_empty());
    // At once, not at the next look.
    held.turn(NOW + 1, NOW, HORIZON_MS_MIN);
    assert_eq!(names(held.take_due(NOW + 1, NOW)), [("0:k".into(), NOW + 30_000)]);
}

#[test]
fn names_follow_the_key() {
    let mut held = held();
    held.hold(DB, b"k", None, NOW);
    record(&mut held, "RENAME k l");
    record(&mut held, "move l 3");
    record(&mut held, "DEL l");
    record(&mut held, "RENAMENX l other");
    for cleared in ["DEL a", "unlink b a", "PERSIST a"] {
        held.hold(DB, b"a", None, NOW);
        record(&mut held, "SET a v KEEPTTL");
        record(&mut held, cleared);
    }
    for hostile in ["RENAME", "RENAME l", "MOVE l", "MOVE l x", "DEL", "RENAME none other"] {
        record(&mut held, hostile);
    }
    assert_eq!(held.take_overflow(), Overflow::default());
    assert_eq!(names(held.take_all(NOW)), [("3:l".into(), NOW)]);
    held.hold(DB, b"h", Some(b"f"), NOW);
    record(&mut held, "RENAME h i");
    assert_eq!(held.take_overflow(), Overflow { keys: false, fields: true });
    assert_eq!(held.take_overflow(), Overflow::default());
}

/// A MOVE onto a key that is there does nothing, and is recorded all the same.
#[test]
fn a_move_may_have_failed() {
    let mut held = held();
    held.hold(DB, b"k", None, NOW);
    record(&mut held, "MOVE k 3");
    // At the other name the hint is stale, and does no harm.
    assert_eq!(names(held.take_all(NOW)), [("0:k".into(), NOW), ("3:k".into(), NOW)]);
}

/// What an earlier job held is found by one that does not hold: it must be looked for in the end.
#[test]
fn names_found_by_who_does_not_hold_are_not_forgotten() {
    let name = |field: Option<&[u8]>| Name { db: DB, key: b"k"[..].into(), field: field.map(Into::into), at_ms: NOW };
    for keeps in [false, true] {
        let mut held = Held::nothing(keeps);
        held.found(&name(None));
        assert_eq!(held.take_overflow(), Overflow { keys: true, fields: false });
        held.found(&name(Some(b"f")));
        assert_eq!(held.take_overflow(), Overflow { keys: false, fields: true });
        assert!(held.is_empty());
    }
}

#[test]
fn bounded_in_bytes() {
    let mut held = Held::new(3 * NAME_OVERHEAD_BYTES + 12);
    for i in 0..10 {
        held.hold(DB, format!("key{i}").as_bytes(), None, NOW);
    }
    held.hold(DB, b"key0", None, NOW + 1);
    assert_eq!(held.take_overflow(), Overflow { keys: true, fields: false });
    assert_eq!((held.held_count, held.overflow_count), (11, 7));
    held.unnamed_fields(2);
    assert_eq!(held.take_overflow(), Overflow { keys: false, fields: true });
    assert_eq!(held.take_all(NOW).len(), 3);
}

/// A grant that is taken away must not look like a field that is gone.
#[test]
fn a_fields_expiry_that_may_not_be_asked_for_is_refused() {
    let server = match Server::start_kind(ServerKind::Redis8, ServerOptions::default()) {
        Err(LabError::NoServer { what, .. }) => return eprintln!("skipped: no {what}"),
        server => server.unwrap(),
    };
    let mut client = server.client().unwrap();
    for line in ["HSET h f v", "HPEXPIRE h 100000 FIELDS 1 f", "SET s v"] {
        client.run(line).unwrap();
    }
    let field: Box<[u8]> = b"f".as_slice().into();
    let name = |key: &str| Name { db: DbIndex(0), key: key.as_bytes().into(), field: Some(field.clone()), at_ms: 5 };
    let mut ask = |command: Vec<u8>| {
        let strings = String::from_utf8(command).unwrap();
        let args: Vec<&str> = strings.split("\r\n").skip(2).step_by(2).collect();
        format!("{:?}", client.ask(&args).unwrap())
    };
    let mut both =
        |key: &str| [Due { name: name(key), bounds: ALL }.command(true), hold_again(&name(key), true)].map(&mut ask);
    assert_eq!(both("s"), ["Int(0)", "Int(0)"]);
    assert_eq!(both("h"), ["Int(0)", "Int(2)"]);
    server.client().unwrap().run("ACL SETUSER default -hpexpiretime").unwrap();
    both("h").iter().for_each(|reply| assert!(reply.contains("permission"), "{reply}"));
}
