//! Names of keys and hash fields whose expiry is held back, each with its time: a table bounded in bytes.
//!
//! In: names with their times. Out: those that are due. The names are hints (see [`super::hold`]): what finds no place is
//! refused, and the caller must see to it that every key is looked at in the end. A name is found by a 64-bit hash, so that
//! looking for one allocates nothing; a second name of the same hash finds no place.

use crate::ids::DbIndex;
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use twox_hash::XxHash64;

/// What a name costs beside its bytes (table entry, allocation, half-full tables).
pub const NAME_OVERHEAD_BYTES: usize = 128;

/// A name with its true expiry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub db: DbIndex,
    pub key: Box<[u8]>,
    pub field: Option<Box<[u8]>>,
    pub at_ms: i64,
}

/// Key and field stand in one piece.
#[derive(Debug)]
struct Entry {
    bytes: Box<[u8]>,
    key_len: u32,
    is_field: bool,
    db: DbIndex,
    at_ms: i64,
    since_ms: i64,
}

impl Entry {
    fn is(&self, db: DbIndex, key: &[u8], field: Option<&[u8]>) -> bool {
        let (own_key, own_field) = self.bytes.split_at(self.key_len as usize);
        self.db == db && own_key == key && self.is_field == field.is_some() && own_field == field.unwrap_or_default()
    }

    fn cost(&self) -> usize {
        self.bytes.len() + NAME_OVERHEAD_BYTES
    }

    fn into_name(self) -> Name {
        let (key, field) = self.bytes.split_at(self.key_len as usize);
        Name { db: self.db, key: key.into(), field: self.is_field.then(|| field.into()), at_ms: self.at_ms }
    }
}

/// The keys are hashes already.
#[derive(Default)]
struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[derive(Debug)]
pub struct Names {
    by_hash: HashMap<u64, Entry, BuildHasherDefault<Same>>,
    seed: u64,
    bytes_used: usize,
    bytes_max: usize,
    fields_count: usize,
    /// No time lies outside of these: most looks for what is due end here.
    at_ms_min: i64,
    at_ms_max: i64,
}

impl Names {
    pub fn new(bytes_max: usize) -> Self {
        Self {
            by_hash: HashMap::default(),
            // Nobody outside can choose names of one hash.
            seed: RandomState::new().hash_one(bytes_max),
            bytes_used: 0,
            bytes_max,
            fields_count: 0,
            at_ms_min: i64::MAX,
            at_ms_max: i64::MIN,
        }
    }

    pub fn len(&self) -> usize {
        self.by_hash.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_hash.is_empty()
    }

    pub fn has_fields(&self) -> bool {
        self.fields_count > 0
    }

    /// No time is later.
    pub fn at_ms_max(&self) -> i64 {
        self.at_ms_max
    }

    fn hash(&self, db: DbIndex, key: &[u8], field: Option<&[u8]>) -> u64 {
        let of_key = XxHash64::oneshot(self.seed ^ u64::from(db.0), key);
        field.map_or(of_key, |field| XxHash64::oneshot(of_key, field))
    }

    /// Remembers a name, or its new time. False: it found no place.
    pub fn put(&mut self, db: DbIndex, key: &[u8], field: Option<&[u8]>, at_ms: i64, now_ms: i64) -> bool {
        let hash = self.hash(db, key, field);
        if let Some(entry) = self.by_hash.get_mut(&hash) {
            if !entry.is(db, key, field) {
                return false;
            }
            entry.at_ms = at_ms;
        } else {
            let cost = key.len() + field.map_or(0, <[u8]>::len) + NAME_OVERHEAD_BYTES;
            if self.bytes_used + cost > self.bytes_max {
                return false;
            }
            let mut bytes = Vec::with_capacity(cost - NAME_OVERHEAD_BYTES);
            bytes.extend_from_slice(key);
            bytes.extend_from_slice(field.unwrap_or_default());
            self.bytes_used += cost;
            self.fields_count += usize::from(field.is_some());
            let (bytes, key_len) = (bytes.into(), key.len() as u32);
            let entry = Entry { bytes, key_len, is_field: field.is_some(), db, at_ms, since_ms: now_ms };
            self.by_hash.insert(hash, entry);
        }
        self.at_ms_min = self.at_ms_min.min(at_ms);
        self.at_ms_max = self.at_ms_max.max(at_ms);
        true
    }

    /// Forgets a key (not its fields). Returns its time, and when it was put.
    pub fn remove(&mut self, db: DbIndex, key: &[u8]) -> Option<(i64, i64)> {
        let hash = self.hash(db, key, None);
        if !self.by_hash.get(&hash)?.is(db, key, None) {
            return None;
        }
        let entry = self.by_hash.remove(&hash)?;
        self.bytes_used = self.bytes_used.saturating_sub(entry.cost());
        Some((entry.at_ms, entry.since_ms))
    }

    /// The time of a key.
    pub fn get(&self, db: DbIndex, key: &[u8]) -> Option<i64> {
        let entry = self.by_hash.get(&self.hash(db, key, None))?;
        entry.is(db, key, None).then_some(entry.at_ms)
    }

    /// Takes those later than the first time, and those up to the second. `put_ms`: told when each was put.
    pub fn take(&mut self, ahead_ms: i64, past_ms: i64, mut put_ms: impl FnMut(i64)) -> Vec<Name> {
        if self.at_ms_min > past_ms && self.at_ms_max <= ahead_ms {
            return Vec::new();
        }
        let mut taken = Vec::new();
        (self.at_ms_min, self.at_ms_max) = (i64::MAX, i64::MIN);
        let Self { at_ms_min, at_ms_max, .. } = self;
        let is_due = |_: &u64, entry: &mut Entry| {
            let is_due = entry.at_ms > ahead_ms || entry.at_ms <= past_ms;
            if !is_due {
                *at_ms_min = (*at_ms_min).min(entry.at_ms);
                *at_ms_max = (*at_ms_max).max(entry.at_ms);
            }
            is_due
        };
        for (_, entry) in self.by_hash.extract_if(is_due) {
            put_ms(entry.since_ms);
            self.bytes_used = self.bytes_used.saturating_sub(entry.cost());
            self.fields_count -= usize::from(entry.is_field);
            taken.push(entry.into_name());
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DB: DbIndex = DbIndex(0);

    fn taken(names: &mut Names, ahead_ms: i64, past_ms: i64) -> Vec<i64> {
        let mut times: Vec<i64> = names.take(ahead_ms, past_ms, |_| ()).iter().map(|name| name.at_ms).collect();
        times.sort_unstable();
        times
    }

    #[test]
    fn names_are_found_by_all_their_parts() {
        let mut names = Names::new(1 << 20);
        assert!(names.put(DB, b"ab", None, 1, 0) && names.put(DB, b"a", Some(b"b"), 2, 0));
        assert!(names.put(DbIndex(1), b"ab", None, 3, 0) && names.put(DB, b"ab", Some(b""), 4, 0));
        assert_eq!((names.len(), names.get(DB, b"ab"), names.get(DbIndex(1), b"ab")), (4, Some(1), Some(3)));
        assert!(names.put(DB, b"ab", None, 9, 7));
        assert_eq!((names.remove(DB, b"ab"), names.remove(DB, b"ab"), names.len()), (Some((9, 0)), None, 3));
        let all = names.take(i64::MIN, i64::MIN, |_| ());
        assert!(all.contains(&Name { db: DB, key: (*b"a").into(), field: Some((*b"b").into()), at_ms: 2 }));
        assert!(names.is_empty() && !names.has_fields() && names.bytes_used == 0);
    }

    #[test]
    fn what_is_due_is_taken_and_the_rest_stays() {
        let mut names = Names::new(1 << 20);
        for at_ms in 0..100i64 {
            names.put(DB, &at_ms.to_be_bytes(), None, at_ms, 0);
        }
        assert!(taken(&mut names, i64::MAX, -1).is_empty());
        assert_eq!(taken(&mut names, 97, 1), [0, 1, 98, 99]);
        assert_eq!((names.at_ms_min, names.at_ms_max, names.len()), (2, 97, 96));
        assert!(taken(&mut names, 97, 1).is_empty());
        names.put(DB, b"k", None, 1, 0);
        assert_eq!(taken(&mut names, 97, 1), [1]);
    }

    #[test]
    fn bounded_in_bytes() {
        let mut names = Names::new(3 * NAME_OVERHEAD_BYTES + 12);
        let found: Vec<bool> = (0..10).map(|i| names.put(DB, format!("key{i}").as_bytes(), None, 1, 0)).collect();
        assert_eq!(found, [[true; 3].as_slice(), &[false; 7]].concat());
        assert!(names.put(DB, b"key0", None, 2, 0) && names.bytes_used <= names.bytes_max);
        names.remove(DB, b"key0");
        assert!(names.put(DB, b"key9", None, 1, 0));
    }
}
