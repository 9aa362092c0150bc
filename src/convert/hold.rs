//! Expiries held back while a flow lags (wire 6.34).
//!
//! The target expires keys by its own clock. A key whose expiry passes before the record that renews it has been applied
//! would vanish although it lives at the source. So, while a flow holds, an expiry that lies before `now + horizon` is not
//! sent: the key goes without, and its expiry is kept here until the flow has caught up and gives it back. The source
//! records a DEL for every key that really expires, so expiring late loses nothing.
//!
//! In: attributes of snapshot keys and recorded commands, before their conversion. Out: the same with the expiry taken out,
//! and in the end what is to be set. Invariants: what is held for a key is what the source said last; bounded in bytes:
//! what finds no place is sent as it is, and counted.

use super::journal::keys_of;
use crate::ids::DbIndex;
use smallvec::SmallVec;
use std::collections::HashMap;

/// A record with its expiry taken out: strings borrowed from the record, or constants.
pub type Rewritten<'a> = SmallVec<[&'a [u8]; 16]>;

/// What a held key costs beside its bytes (table entry, allocation, half-full tables).
const KEY_OVERHEAD_BYTES: usize = 96;

/// Expiries of one flow that the target has not been told.
#[derive(Debug)]
pub struct Held {
    by_db: HashMap<DbIndex, HashMap<Box<[u8]>, i64>>,
    bytes_used: usize,
    bytes_max: usize,
    horizon_ms: i64,
    /// Expiries held, all in all.
    pub held_count: u64,
    /// Expiries before the horizon that found no place.
    pub overflow_count: u64,
    /// The earliest expiry that was sent as it is; once it has passed while the flow still lags, a key may have vanished.
    pub sent_expiry_ms_min: Option<i64>,
}

impl Held {
    /// `horizon_ms`: expiries nearer than this are held; `bytes_max`: memory for them.
    pub fn new(horizon_ms: i64, bytes_max: usize) -> Self {
        Self {
            by_db: HashMap::new(),
            bytes_used: 0,
            bytes_max,
            horizon_ms,
            held_count: 0,
            overflow_count: 0,
            sent_expiry_ms_min: None,
        }
    }

    /// From now on only expiries nearer than this are held.
    pub fn set_horizon_ms(&mut self, horizon_ms: i64) {
        self.horizon_ms = horizon_ms;
    }

    pub fn is_empty(&self) -> bool {
        self.by_db.is_empty()
    }

    /// A snapshot key with this expiry: returns the expiry to send.
    pub fn snapshot_key(&mut self, db: DbIndex, key: &[u8], expire_at_ms: Option<i64>, now_ms: i64) -> Option<i64> {
        self.set(db, key, expire_at_ms, now_ms)
    }

    /// Takes the expiry out of a record, and follows what the record does to held ones. None: the record stays as it is.
    pub fn record<'a>(&mut self, db: DbIndex, args: &[&'a [u8]], now_ms: i64) -> Option<Rewritten<'a>> {
        let name = args.first()?;
        let is = |text: &str| name.eq_ignore_ascii_case(text.as_bytes());
        let key = args.get(1).copied();
        if is("SET") {
            return self.set_record(db, args, now_ms);
        }
        if is("PEXPIREAT") {
            let (key, at) = (key?, number(args.get(2)?)?);
            if self.set(db, key, Some(at), now_ms).is_some() {
                return None;
            }
            return Some(SmallVec::from_slice(&[&b"PERSIST"[..], key]));
        }
        if is("RESTORE") {
            return self.restore_record(db, args, now_ms);
        }
        if self.is_empty() {
            return None;
        }
        if is("RENAME") || is("RENAMENX") {
            let (from, to) = (key?, args.get(2)?);
            match self.remove(db, from) {
                Some(at) => self.insert(db, to, at),
                None => drop(self.remove(db, to)),
            }
        } else if is("MOVE") {
            let (key, to) = (key?, number(args.get(2)?).and_then(|to| u32::try_from(to).ok())?);
            if let Some(at) = self.remove(db, key) {
                self.insert(DbIndex(to), key, at);
            }
        } else if [
            "PERSIST", "DEL", "UNLINK", "GETDEL", "MSET", "MSETNX", "GETSET", "SETEX", "PSETEX", "EXPIRE", "PEXPIRE",
            "EXPIREAT",
        ]
        .iter()
        .any(|name| is(name))
        {
            for key in keys_of(args) {
                self.remove(db, key);
            }
        } else if is("SORT") {
            // What is stored is a new key.
            let store = args.iter().position(|arg| arg.eq_ignore_ascii_case(b"STORE"));
            if let Some(to) = store.and_then(|at| args.get(at + 1)) {
                self.remove(db, to);
            }
        }
        None
    }

    /// `SET k v [PXAT ms | KEEPTTL] ...`.
    fn set_record<'a>(&mut self, db: DbIndex, args: &[&'a [u8]], now_ms: i64) -> Option<Rewritten<'a>> {
        let key = args.get(1)?;
        let options = args.get(3..).unwrap_or_default();
        if options.iter().any(|option| option.eq_ignore_ascii_case(b"KEEPTTL")) {
            return None;
        }
        let Some(at) = options.iter().position(|option| option.eq_ignore_ascii_case(b"PXAT")) else {
            self.remove(db, key);
            return None;
        };
        let time = number(options.get(at + 1)?)?;
        if self.set(db, key, Some(time), now_ms).is_some() {
            return None;
        }
        let kept = args.iter().enumerate().filter(|(i, _)| *i != 3 + at && *i != 4 + at);
        Some(kept.map(|(_, arg)| *arg).collect())
    }

    /// `RESTORE k ttl payload [REPLACE] [ABSTTL] ...`.
    fn restore_record<'a>(&mut self, db: DbIndex, args: &[&'a [u8]], now_ms: i64) -> Option<Rewritten<'a>> {
        let (key, ttl) = (args.get(1)?, number(args.get(2)?)?);
        let absolute = args.get(4..).unwrap_or_default().iter().any(|option| option.eq_ignore_ascii_case(b"ABSTTL"));
        let at = match ttl {
            0 => None,
            ttl if absolute => Some(ttl),
            ttl => Some(now_ms.saturating_add(ttl)),
        };
        let sent = self.set(db, key, at, now_ms);
        if at.is_none() || sent.is_some() {
            return None;
        }
        let mut rewritten = Rewritten::from_slice(args);
        *rewritten.get_mut(2)? = b"0";
        Some(rewritten)
    }

    /// The key has this expiry now. Returns what the target is to be told.
    fn set(&mut self, db: DbIndex, key: &[u8], expire_at_ms: Option<i64>, now_ms: i64) -> Option<i64> {
        let Some(at) = expire_at_ms else {
            self.remove(db, key);
            return None;
        };
        if at >= now_ms.saturating_add(self.horizon_ms) {
            self.remove(db, key);
            self.note_sent(at);
            return Some(at);
        }
        self.remove(db, key);
        if self.bytes_used + key.len() + KEY_OVERHEAD_BYTES > self.bytes_max {
            self.overflow_count += 1;
            self.note_sent(at);
            return Some(at);
        }
        self.held_count += 1;
        self.insert(db, key, at);
        None
    }

    fn note_sent(&mut self, at: i64) {
        self.sent_expiry_ms_min = Some(self.sent_expiry_ms_min.map_or(at, |least| least.min(at)));
    }

    fn insert(&mut self, db: DbIndex, key: &[u8], at: i64) {
        if self.by_db.entry(db).or_default().insert(key.into(), at).is_none() {
            self.bytes_used += key.len() + KEY_OVERHEAD_BYTES;
        }
    }

    fn remove(&mut self, db: DbIndex, key: &[u8]) -> Option<i64> {
        let keys = self.by_db.get_mut(&db)?;
        let at = keys.remove(key)?;
        self.bytes_used = self.bytes_used.saturating_sub(key.len() + KEY_OVERHEAD_BYTES);
        if keys.is_empty() {
            self.by_db.remove(&db);
        }
        Some(at)
    }

    /// Takes the keys whose expiry is to be set now. `after_ms`: expiries before it stay held (the source's own DEL, or a
    /// renewal, is on its way); None: all are given back.
    pub fn take_due(&mut self, after_ms: Option<i64>) -> Vec<(DbIndex, Box<[u8]>, i64)> {
        let mut due = Vec::new();
        for (db, keys) in &mut self.by_db {
            let taken = keys.extract_if(|_, at| after_ms.is_none_or(|after| *at > after));
            due.extend(taken.map(|(key, at)| (*db, key, at)));
        }
        self.by_db.retain(|_, keys| !keys.is_empty());
        self.recount();
        due
    }

    /// All keys of a database are gone, or of all.
    pub fn clear(&mut self, db: Option<DbIndex>) {
        match db {
            None => self.by_db.clear(),
            Some(db) => drop(self.by_db.remove(&db)),
        }
        self.recount();
    }

    fn recount(&mut self) {
        let keys = self.by_db.values().flat_map(HashMap::keys);
        self.bytes_used = keys.map(|key| key.len() + KEY_OVERHEAD_BYTES).sum();
    }
}

fn number(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DB: DbIndex = DbIndex(0);
    const NOW: i64 = 1_000_000;

    fn held() -> Held {
        Held::new(10_000, 1 << 20)
    }

    fn record(held: &mut Held, line: &str) -> String {
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        match held.record(DB, &args, NOW) {
            None => line.to_string(),
            Some(rewritten) => rewritten.iter().map(|arg| String::from_utf8_lossy(arg)).collect::<Vec<_>>().join(" "),
        }
    }

    fn all(held: &mut Held) -> Vec<(String, i64)> {
        let mut keys: Vec<_> = held
            .take_due(None)
            .into_iter()
            .map(|(_, key, at)| (String::from_utf8_lossy(&key).into_owned(), at))
            .collect();
        keys.sort();
        keys
    }

    #[test]
    fn near_and_past_expiries_are_held_far_ones_are_sent() {
        let mut held = held();
        assert_eq!(held.snapshot_key(DB, b"past", Some(NOW - 5), NOW), None);
        assert_eq!(held.snapshot_key(DB, b"near", Some(NOW + 5), NOW), None);
        assert_eq!(held.snapshot_key(DB, b"far", Some(NOW + 10_000), NOW), Some(NOW + 10_000));
        assert_eq!(held.snapshot_key(DB, b"none", None, NOW), None);
        assert_eq!(held.sent_expiry_ms_min, Some(NOW + 10_000));
        assert_eq!(all(&mut held), [("near".to_string(), NOW + 5), ("past".to_string(), NOW - 5)]);
        assert!(held.is_empty());
    }

    #[test]
    fn a_renewal_replaces_what_is_held() {
        let mut held = held();
        held.snapshot_key(DB, b"s", Some(NOW - 5), NOW);
        assert_eq!(record(&mut held, "PEXPIREAT s 1000007"), "PERSIST s");
        assert_eq!(all(&mut held), [("s".to_string(), NOW + 7)]);
        held.snapshot_key(DB, b"s", Some(NOW - 5), NOW);
        assert_eq!(record(&mut held, "PEXPIREAT s 9000000"), "PEXPIREAT s 9000000");
        assert!(all(&mut held).is_empty());
    }

    #[test]
    fn records_that_set_or_clear_an_expiry() {
        let mut held = held();
        assert_eq!(record(&mut held, "SET k v PXAT 1000001 STICK"), "SET k v STICK");
        assert_eq!(record(&mut held, "SET k w KEEPTTL"), "SET k w KEEPTTL");
        assert_eq!(record(&mut held, "RENAME k l"), "RENAME k l");
        assert_eq!(all(&mut held), [("l".to_string(), NOW + 1)]);
        for clearing in ["SET k v", "DEL k", "PERSIST k", "MSET k v", "GETSET k v", "GETDEL k", "SORT x STORE k"] {
            record(&mut held, "SET k v PXAT 1000001");
            record(&mut held, clearing);
            assert!(all(&mut held).is_empty(), "{clearing}");
        }
        assert_eq!(record(&mut held, "RESTORE k 5 P REPLACE"), "RESTORE k 0 P REPLACE");
        assert_eq!(all(&mut held), [("k".to_string(), NOW + 5)]);
        assert_eq!(record(&mut held, "RESTORE k 1000002 P ABSTTL"), "RESTORE k 0 P ABSTTL");
        assert_eq!(record(&mut held, "MOVE k 3"), "MOVE k 3");
        assert_eq!(held.take_due(None), [(DbIndex(3), b"k"[..].into(), NOW + 2)]);
    }

    #[test]
    fn hostile_records_change_nothing() {
        let mut held = held();
        for line in [
            "SET",
            "SET k",
            "SET k v PXAT",
            "SET k v PXAT x",
            "PEXPIREAT",
            "PEXPIREAT k",
            "PEXPIREAT k x",
            "RESTORE k",
            "RENAME k",
            "MOVE k x",
        ] {
            held.snapshot_key(DB, b"other", Some(NOW), NOW);
            assert_eq!(record(&mut held, line), line);
        }
    }

    #[test]
    fn bounded_in_bytes() {
        let mut held = Held::new(10_000, 300);
        for i in 0..10 {
            held.snapshot_key(DB, format!("key{i}").as_bytes(), Some(NOW), NOW);
        }
        assert_eq!(held.held_count + held.overflow_count, 10);
        assert!(held.held_count == 3 && held.bytes_used <= 300);
        assert_eq!(all(&mut held).len(), 3);
        assert_eq!(held.bytes_used, 0);
    }

    #[test]
    fn what_is_past_stays_for_the_sources_own_del() {
        let mut held = held();
        held.snapshot_key(DB, b"past", Some(NOW - 5), NOW);
        held.snapshot_key(DB, b"near", Some(NOW + 5), NOW);
        assert_eq!(held.take_due(Some(NOW)), [(DB, b"near"[..].into(), NOW + 5)]);
        assert_eq!(held.take_due(Some(NOW)), []);
        assert!(!held.is_empty());
    }
}
