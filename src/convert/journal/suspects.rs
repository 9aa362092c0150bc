//! The hole of wire 2.10: keys that the source may have deleted without telling.
//!
//! A key in a bucket that the snapshot has not reached yet may be written by MSET, MSETNX, SETNX or GETSET (journaled, no
//! baseline before it) and then deleted (neither journaled nor sent). The target keeps it, the source has none. So the keys
//! of such records are remembered until a baseline or a later record of another kind settles them; what is left when the
//! full sync is over must be asked for at the source, and deleted at the target where the source has none.
//!
//! Bounded: `bytes_used <= bytes_max`. A set that is full refuses with a typed error, and remembers that it did: the
//! answer is then incomplete and the caller must say so (or compare all keys).

use crate::ids::DbIndex;
use std::collections::{HashMap, HashSet};

/// Keys of one flow that must be asked for at the end of the full sync.
#[derive(Debug)]
pub struct Suspects {
    by_db: HashMap<DbIndex, HashSet<Box<[u8]>>>,
    keys_count: usize,
    bytes_used: usize,
    bytes_max: usize,
}

/// The set is full: the keys left out are unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "more than {bytes_max} bytes of keys were written by MSET, SETNX or GETSET during the full sync and may have been deleted \
     silently; remedy: start the source with --journal_omit_redundant_writes=false, migrate in a quieter hour, or compare \
     the key sets afterwards"
)]
pub struct SuspectsOverflow {
    pub bytes_max: usize,
}

/// What a key costs beside its bytes: the pointer in the table, its control byte, the allocator's header, half-full tables.
const KEY_OVERHEAD_BYTES: usize = 64;

impl Suspects {
    /// `bytes_max`: most memory that may be spent, counted as key bytes and [`KEY_OVERHEAD_BYTES`] each.
    pub fn new(bytes_max: usize) -> Self {
        Self { by_db: HashMap::new(), keys_count: 0, bytes_used: 0, bytes_max }
    }

    pub fn len(&self) -> usize {
        self.keys_count
    }

    pub fn is_empty(&self) -> bool {
        self.keys_count == 0
    }

    /// Takes note of one record of the full sync: its keys become suspects or are settled.
    pub fn record(&mut self, db: DbIndex, args: &[&[u8]]) -> Result<(), SuspectsOverflow> {
        let Some(name) = args.first() else { return Ok(()) };
        let leaves_a_hole = match name.len() {
            4 => name.eq_ignore_ascii_case(b"MSET"),
            5 => name.eq_ignore_ascii_case(b"SETNX"),
            6 => name.eq_ignore_ascii_case(b"MSETNX") || name.eq_ignore_ascii_case(b"GETSET"),
            _ => false,
        };
        if leaves_a_hole {
            return super::keys_of(args).try_for_each(|key| self.written(db, key));
        }
        if !self.is_empty() {
            super::keys_of(args).for_each(|key| self.settled(db, key));
        }
        Ok(())
    }

    /// `key` was written by a record that leaves the hole.
    pub fn written(&mut self, db: DbIndex, key: &[u8]) -> Result<(), SuspectsOverflow> {
        let keys = self.by_db.entry(db).or_default();
        if keys.contains(key) {
            return Ok(());
        }
        let bytes_used = self.bytes_used.saturating_add(key.len()).saturating_add(KEY_OVERHEAD_BYTES);
        if bytes_used > self.bytes_max {
            return Err(SuspectsOverflow { bytes_max: self.bytes_max });
        }
        keys.insert(key.into());
        self.bytes_used = bytes_used;
        self.keys_count += 1;
        Ok(())
    }

    /// A baseline, or a later record of another kind, of `key` was seen.
    #[inline]
    pub fn settled(&mut self, db: DbIndex, key: &[u8]) {
        if !self.is_empty() {
            self.settle(db, key);
        }
    }

    fn settle(&mut self, db: DbIndex, key: &[u8]) {
        if self.by_db.get_mut(&db).is_some_and(|keys| keys.remove(key)) {
            self.bytes_used = self.bytes_used.saturating_sub(key.len() + KEY_OVERHEAD_BYTES);
            self.keys_count -= 1;
        }
    }

    /// Nothing settled the key so far.
    pub fn is_suspect(&self, db: DbIndex, key: &[u8]) -> bool {
        self.by_db.get(&db).is_some_and(|keys| keys.contains(key))
    }

    /// All keys that nothing settled, and forgets them.
    pub fn drain(&mut self) -> Vec<(DbIndex, Vec<u8>)> {
        self.keys_count = 0;
        self.bytes_used = 0;
        let by_db = std::mem::take(&mut self.by_db);
        by_db.into_iter().flat_map(|(db, keys)| keys.into_iter().map(move |key| (db, key.into_vec()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(suspects: &mut Suspects, db: u32, line: &str) -> Result<(), SuspectsOverflow> {
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        suspects.record(DbIndex(db), &args)
    }

    #[test]
    fn what_nothing_settles_is_left() {
        let mut suspects = Suspects::new(1 << 20);
        for line in ["MSET a 1 b 2 c 3", "setnx d 1", "GETSET e 1", "MSETNX f 1", "SET never 1"] {
            record(&mut suspects, 0, line).unwrap();
        }
        record(&mut suspects, 1, "MSET a 1").unwrap();
        assert_eq!(suspects.len(), 7);
        record(&mut suspects, 0, "DEL a d").unwrap();
        record(&mut suspects, 0, "INCR b").unwrap();
        suspects.settled(DbIndex(0), b"e");
        suspects.settled(DbIndex(0), b"none");
        record(&mut suspects, 0, "MSET b 2").unwrap();
        let mut left = suspects.drain();
        left.sort();
        let of = |db, key: &str| (DbIndex(db), key.as_bytes().to_vec());
        assert_eq!(left, [of(0, "b"), of(0, "c"), of(0, "f"), of(1, "a")]);
        assert!(suspects.is_empty() && suspects.drain().is_empty());
    }

    #[test]
    fn a_full_set_refuses_and_keeps_what_it_has() {
        let mut suspects = Suspects::new(2 * (KEY_OVERHEAD_BYTES + 1));
        suspects.written(DbIndex(0), b"a").unwrap();
        suspects.written(DbIndex(0), b"b").unwrap();
        suspects.written(DbIndex(0), b"b").unwrap();
        assert_eq!(suspects.written(DbIndex(0), b"c"), Err(SuspectsOverflow { bytes_max: suspects.bytes_max }));
        suspects.settled(DbIndex(0), b"a");
        suspects.written(DbIndex(0), b"c").unwrap();
        assert_eq!(suspects.len(), 2);
    }
}
