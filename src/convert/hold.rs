//! Expiries held back while a flow lags (wire 6.34): which, until when, and how they are given back.
//!
//! In: how far the flow is known to be applied; keys and fields whose expiry was written later than it is ([`Near`]). Out:
//! names whose expiry is to be put right now, and the commands that do it. What is true is in the target alone: the names
//! here are hints, so that they are found without looking at every key. A command that gives back changes nothing unless the
//! key's expiry is a shifted one at that moment, so a stale hint does no harm, and none has to follow what commands do.
//!
//! Invariants: an expiry is given back only if it lies well ahead of a flow that has caught up, or if everything that the
//! source did before it (and a margin for the clocks) is applied, so that no renewal can follow; bounded in bytes: what finds
//! no place is reported as overflow, and then every key must be looked at.

use super::journal::keys_of;
use super::near::{Near, SHIFT_MS};
use crate::ids::DbIndex;
use crate::redis::resp;
use std::collections::HashMap;

/// While a flow lags, expiries nearer than this are held back. Longer than nearly every full sync takes.
const LAGGING_HORIZON_MS: i64 = 3_600_000;
/// While it does not: longer than a lag may last before it is noticed.
const IN_STEP_HORIZON_MS: i64 = 10_000;
/// A flow lags if what the source did so long ago is not known to be applied. Its positions are asked for each second.
const LAG_MS_MAX: i64 = 4_000;
const _: () = assert!(LAG_MS_MAX * 2 < IN_STEP_HORIZON_MS);
/// The clocks of source and tool may differ so much.
pub const CLOCK_MARGIN_MS: i64 = 2_000;
/// Time between two looks for what is due.
const LOOK_EVERY_MS: i64 = 250;

/// What a name costs beside its bytes (table entry, allocation, half-full tables).
const NAME_OVERHEAD_BYTES: usize = 96;

/// KEYS: the key; ARGV: its expiry, the least that a shifted time to live can be.
const KEY_SCRIPT: &str = "if redis.call('PTTL',KEYS[1])>=tonumber(ARGV[2]) \
then return redis.call('PEXPIREAT',KEYS[1],ARGV[1]) end return 0";
/// The same of the field ARGV[3]. The key may be of another type, or gone.
const FIELD_SCRIPT: &str = "local t=redis.pcall('HPTTL',KEYS[1],'FIELDS',1,ARGV[3]) \
if t and t[1] and t[1]>=tonumber(ARGV[2]) \
then return redis.call('HPEXPIREAT',KEYS[1],ARGV[1],'FIELDS',1,ARGV[3])[1] end return 0";

/// A name whose expiry is to be put right.
#[derive(Debug, PartialEq, Eq)]
pub struct Due {
    pub db: DbIndex,
    pub key: Box<[u8]>,
    pub field: Option<Box<[u8]>>,
    pub at_ms: i64,
}

impl Due {
    /// The command that puts it right, if it is still shifted.
    pub fn command(&self) -> Vec<u8> {
        let (at, least) = (self.at_ms.max(1).to_string(), (SHIFT_MS / 2).to_string());
        match &self.field {
            None => resp::command(&[b"EVAL", KEY_SCRIPT.as_bytes(), b"1", &self.key, at.as_bytes(), least.as_bytes()]),
            Some(field) => resp::command(&[
                b"EVAL",
                FIELD_SCRIPT.as_bytes(),
                b"1",
                &self.key,
                at.as_bytes(),
                least.as_bytes(),
                field,
            ]),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    at_ms: i64,
    since_ms: i64,
}

/// Key, and field of a hash.
type Name = (Box<[u8]>, Option<Box<[u8]>>);

/// Held expiries of one flow.
#[derive(Debug)]
pub struct Held {
    near: Near,
    holds: bool,
    lagging: bool,
    by_db: HashMap<DbIndex, HashMap<Name, Entry>>,
    fields_count: usize,
    bytes_used: usize,
    bytes_max: usize,
    looked_ms: i64,
    /// Expiries held, all in all.
    pub held_count: u64,
    /// Names that found no place since this was last taken.
    overflow: bool,
    /// All of them.
    pub overflow_count: u64,
    /// Longest time for which one was held.
    pub held_ms_max: i64,
    /// Time in which the flow was behind.
    pub lagged_ms: i64,
    turn_ms: i64,
    /// The earliest expiry that the snapshot had sent as it is; once it has passed while the flow still lags, a key may have
    /// vanished.
    pub sent_expiry_ms_min: Option<i64>,
}

impl Held {
    /// `bytes_max`: memory for names.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            // Until the first turn everything is near.
            near: Near::before(i64::MAX / 2),
            holds: true,
            lagging: true,
            by_db: HashMap::new(),
            fields_count: 0,
            bytes_used: 0,
            bytes_max,
            looked_ms: 0,
            held_count: 0,
            overflow: false,
            overflow_count: 0,
            held_ms_max: 0,
            lagged_ms: 0,
            turn_ms: 0,
            sent_expiry_ms_min: None,
        }
    }

    /// Nothing is held: the target keeps what has expired, or it cannot be told to put things right.
    pub fn nothing(target_keeps_expired: bool) -> Self {
        let near = if target_keeps_expired { Near::KEPT } else { Near::AS_IS };
        Self { near, holds: false, lagging: false, ..Self::new(0) }
    }

    /// `applied_until_ms`: everything that the source did before is known to be applied (0: nothing is known).
    pub fn turn(&mut self, now_ms: i64, applied_until_ms: i64) {
        if !self.holds {
            return;
        }
        if self.lagging && self.turn_ms > 0 {
            self.lagged_ms += now_ms.saturating_sub(self.turn_ms).max(0);
        }
        self.turn_ms = now_ms;
        self.lagging = is_lagging(now_ms, applied_until_ms);
        let horizon_ms = if self.lagging { LAGGING_HORIZON_MS } else { IN_STEP_HORIZON_MS };
        self.near = Near::before(now_ms.saturating_add(horizon_ms));
    }

    /// A key of the snapshot expires then: what the target is to be told.
    pub fn snapshot_key(&mut self, db: DbIndex, key: &[u8], at_ms: i64) -> i64 {
        if self.near.shifts(at_ms) {
            self.hold(db, key, None, at_ms);
        } else if self.holds {
            self.sent_expiry_ms_min = Some(self.sent_expiry_ms_min.map_or(at_ms, |least| least.min(at_ms)));
        }
        self.near.told(at_ms)
    }

    /// Which expiries are to be written later than they are, now.
    pub fn near(&self) -> Near {
        self.near
    }

    pub fn is_empty(&self) -> bool {
        self.by_db.is_empty()
    }

    /// Names were left out since the last call: every key must be looked at.
    pub fn take_overflow(&mut self) -> bool {
        std::mem::take(&mut self.overflow)
    }

    /// Shifted expiries were written without their names.
    pub fn unnamed(&mut self, count: u64) {
        self.held_count += count;
        self.overflow |= count > 0;
    }

    /// The expiry of a key (or of a field) was shifted.
    pub fn hold(&mut self, db: DbIndex, key: &[u8], field: Option<&[u8]>, at_ms: i64) {
        self.held_count += 1;
        self.name(db, key, field, at_ms);
    }

    fn name(&mut self, db: DbIndex, key: &[u8], field: Option<&[u8]>, at_ms: i64) {
        let bytes = key.len() + field.map_or(0, <[u8]>::len) + NAME_OVERHEAD_BYTES;
        let names = self.by_db.entry(db).or_default();
        let name = (key.into(), field.map(Into::into));
        if let Some(entry) = names.get_mut(&name) {
            entry.at_ms = at_ms;
        } else if self.bytes_used + bytes > self.bytes_max {
            self.overflow = true;
            self.overflow_count += 1;
        } else {
            self.bytes_used += bytes;
            self.fields_count += usize::from(field.is_some());
            names.insert(name, Entry { at_ms, since_ms: self.turn_ms });
        }
        self.by_db.retain(|_, names| !names.is_empty());
    }

    /// Follows a record, before its own expiry is held, that gives a held key another name, another expiry or an end. What
    /// is not followed (MSET, GETSET ...) leaves a stale name behind, which does no harm.
    pub fn record(&mut self, db: DbIndex, args: &[&[u8]]) {
        if self.is_empty() {
            return;
        }
        let [name, key, more @ ..] = args else { return };
        let is = |text: &str| name.eq_ignore_ascii_case(text.as_bytes());
        let (to_db, to) = if is("RENAME") || is("RENAMENX") {
            (Some(db), more.first().copied())
        } else if is("MOVE") {
            (more.first().and_then(|to| std::str::from_utf8(to).ok()?.parse().ok().map(DbIndex)), Some(*key))
        } else {
            let keeps = || more.iter().skip(1).any(|option| option.eq_ignore_ascii_case(b"KEEPTTL"));
            if is("DEL") || is("UNLINK") {
                keys_of(args).for_each(|key| self.remove(db, key));
            } else if is("PERSIST") || is("PEXPIREAT") || is("RESTORE") || (is("SET") && !keeps()) {
                self.remove(db, key);
            }
            return;
        };
        let (Some(to_db), Some(to)) = (to_db, to) else { return };
        let moved: Vec<(Option<Box<[u8]>>, i64)> =
            self.by_db.get(&db).map_or_else(Vec::new, |names| match names.get(&(Box::from(*key), None)) {
                Some(entry) => vec![(None, entry.at_ms)],
                None => Vec::new(),
            });
        // It may have failed where the new name was taken.
        if !is("RENAMENX") {
            self.remove(db, key);
        }
        for (field, at_ms) in moved {
            self.name(to_db, to, field.as_deref(), at_ms);
        }
        // Fields are found by their key only by looking at every name.
        if self.holds_fields_of(db, key) {
            self.overflow = true;
        }
    }

    fn holds_fields_of(&self, db: DbIndex, key: &[u8]) -> bool {
        self.fields_count > 0
            && self
                .by_db
                .get(&db)
                .is_some_and(|names| names.keys().any(|(name, field)| field.is_some() && **name == *key))
    }

    fn remove(&mut self, db: DbIndex, key: &[u8]) {
        let Some(names) = self.by_db.get_mut(&db) else { return };
        if let Some(entry) = names.remove(&(Box::from(key), None)) {
            self.bytes_used = self.bytes_used.saturating_sub(key.len() + NAME_OVERHEAD_BYTES);
            self.held_ms_max = self.held_ms_max.max(self.turn_ms.saturating_sub(entry.since_ms));
            if names.is_empty() {
                self.by_db.remove(&db);
            }
        }
    }

    /// Takes what is due now: expiries well ahead of a flow that has caught up, and those that no renewal can follow any
    /// more.
    pub fn take_due(&mut self, now_ms: i64, applied_until_ms: i64) -> Vec<Due> {
        if self.is_empty() || now_ms.saturating_sub(self.looked_ms) < LOOK_EVERY_MS {
            return Vec::new();
        }
        self.looked_ms = now_ms;
        let (ahead_ms, past_ms) = due_bounds(now_ms, applied_until_ms);
        let lagging = self.lagging;
        self.take(now_ms, |at_ms| at_ms <= past_ms || (!lagging && at_ms > ahead_ms))
    }

    /// Takes all: nothing follows.
    pub fn take_all(&mut self, now_ms: i64) -> Vec<Due> {
        self.take(now_ms, |_| true)
    }

    fn take(&mut self, now_ms: i64, is_due: impl Fn(i64) -> bool) -> Vec<Due> {
        let mut due = Vec::new();
        for (db, names) in &mut self.by_db {
            for ((key, field), entry) in names.extract_if(|_, entry| is_due(entry.at_ms)) {
                self.held_ms_max = self.held_ms_max.max(now_ms.saturating_sub(entry.since_ms));
                let bytes = key.len() + field.as_ref().map_or(0, |field| field.len()) + NAME_OVERHEAD_BYTES;
                self.bytes_used = self.bytes_used.saturating_sub(bytes);
                self.fields_count -= usize::from(field.is_some());
                due.push(Due { db: *db, key, field, at_ms: entry.at_ms });
            }
        }
        self.by_db.retain(|_, names| !names.is_empty());
        due
    }
}

/// Whether what is known to be applied is so old that the flow counts as behind.
pub fn is_lagging(now_ms: i64, applied_until_ms: i64) -> bool {
    now_ms.saturating_sub(applied_until_ms) > LAG_MS_MAX
}

/// Expiries after the first may be given back once the flow has caught up, and those up to the second in any case.
pub fn due_bounds(now_ms: i64, applied_until_ms: i64) -> (i64, i64) {
    (now_ms.saturating_add(IN_STEP_HORIZON_MS), applied_until_ms.saturating_sub(CLOCK_MARGIN_MS))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DB: DbIndex = DbIndex(0);
    const NOW: i64 = 1_000_000;

    fn held() -> Held {
        let mut held = Held::new(1 << 20);
        held.turn(NOW, 0);
        held
    }

    fn record(held: &mut Held, line: &str) {
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        held.record(DB, &args);
    }

    fn names(due: Vec<Due>) -> Vec<(String, i64)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let name = |due: &Due| {
            let field = due.field.as_deref().map_or(String::new(), |field| format!("/{}", text(field)));
            format!("{}:{}{field}", due.db, text(&due.key))
        };
        let mut names: Vec<_> = due.iter().map(|due| (name(due), due.at_ms)).collect();
        names.sort();
        names
    }

    #[test]
    fn the_horizon_is_wide_while_the_flow_lags() {
        let mut held = held();
        assert!(held.near().shifts(NOW + LAGGING_HORIZON_MS - 1) && !held.near().shifts(NOW + LAGGING_HORIZON_MS));
        held.turn(NOW, NOW - LAG_MS_MAX);
        assert!(held.near().shifts(NOW + IN_STEP_HORIZON_MS - 1) && !held.near().shifts(NOW + IN_STEP_HORIZON_MS));
        assert_eq!(Held::nothing(true).near(), Near::KEPT);
        let mut nothing = Held::nothing(false);
        nothing.turn(NOW, 0);
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
        held.turn(NOW + 1_000, NOW);
        let due = names(held.take_due(NOW + 1_000, NOW));
        assert_eq!(
            due,
            [("0:ahead".into(), NOW + 50_000), ("0:h/f".into(), NOW - 40_000), ("0:past".into(), NOW - 50_000)]
        );
        assert!(held.take_due(NOW + 2_000, NOW + 1_000).is_empty());
        assert_eq!(names(held.take_due(NOW + 3_000, NOW + 2_005)), [("0:near".into(), NOW + 5)]);
        assert!(held.is_empty() && held.bytes_used == 0 && held.held_ms_max == 3_000);
    }

    #[test]
    fn names_follow_the_key() {
        let mut held = held();
        held.hold(DB, b"k", None, NOW);
        record(&mut held, "RENAME k l");
        record(&mut held, "MOVE l 3");
        record(&mut held, "RENAMENX l other");
        for cleared in ["DEL a", "PERSIST a", "SET a v", "RESTORE a 0 x", "PEXPIREAT a 5"] {
            held.hold(DB, b"a", None, NOW);
            record(&mut held, "SET a v KEEPTTL");
            record(&mut held, cleared);
        }
        for hostile in ["RENAME", "RENAME l", "MOVE l", "MOVE l x", "DEL", "RENAME none other"] {
            record(&mut held, hostile);
        }
        assert_eq!(names(held.take_all(NOW)), [("3:l".into(), NOW)]);
        held.hold(DB, b"h", Some(b"f"), NOW);
        assert!(!held.take_overflow());
        record(&mut held, "RENAME h i");
        assert!(held.take_overflow() && !held.take_overflow());
    }

    #[test]
    fn bounded_in_bytes() {
        let mut held = Held::new(300);
        for i in 0..10 {
            held.hold(DB, format!("key{i}").as_bytes(), None, NOW);
        }
        held.hold(DB, b"key0", None, NOW + 1);
        assert!(held.take_overflow() && held.bytes_used <= 300);
        assert_eq!((held.held_count, held.overflow_count), (11, 7));
        assert_eq!(held.take_all(NOW).len(), 3);
        assert_eq!(held.bytes_used, 0);
    }
}
