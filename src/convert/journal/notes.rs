//! What the report must list by key: expiries dropped, values left out, and records after which source and target may
//! differ although nothing failed (defects of the recorded journal, wire 6.19 to 6.21).
//!
//! Bounded in bytes: what no longer fits is counted, never silently forgotten.

use crate::convert::policy::Kind;
use crate::ids::DbIndex;

/// One thing to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub db: DbIndex,
    /// The key; of an FT command, the index.
    pub key: Box<[u8]>,
    /// Canonical name of the recorded command; empty if it is not known.
    pub command: &'static str,
    pub kind: NoteKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoteKind {
    /// The value was written, its expiry (or a member's, a field's) was not.
    ExpiryDropped(Kind),
    /// The record was left out by policy: the key may differ from now on.
    Skipped(Kind),
    /// A search index, which is not carried over.
    IndexNotCarried,
    /// Written, but the key should be verified.
    Doubtful(Doubt),
}

/// Why a key may differ although every record was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Doubt {
    /// XADD with `*` (masters <= 1.26): the target made another id.
    GeneratedId,
    /// The record of a command over several shards lost its operands (SORT STORE, CMS.MERGE, GEORADIUS STORE).
    Truncated,
    /// Stored in the full sync from another key, which the snapshot may have sent only later.
    EarlyRead,
    /// MSETNX, which is recorded also where it stored nothing; SORT or GEORADIUS with STORE, where no script may look whether there was
    /// something to read; ZMPOP of several keys, where none may look which are sorted sets.
    PerhapsNothing,
    /// A string that was added to in the full sync, which the source may have deleted before without a record (wire 2.10).
    PerhapsDeleted,
    /// SORT with BY or GET, and STORE: the source reads other keys by them than a target, and does not sort a set that is stored.
    SortedOtherwise,
    /// What a ZUNIONSTORE or the like stored (1.34 to 1.40): its scores are recorded with six digits.
    Rounded,
    /// ZADD with GT or LT in a set that is not small (before 1.41): the source takes any score.
    Comparison,
    /// XCLAIM or XAUTOCLAIM by idle time, where no script may decide it by the source's time.
    IdleTime,
    /// A filter whose base may have been left out of the snapshot (no filter can be carried).
    FilterBase,
    /// JSON.MERGE below the root creates in RedisJSON what Dragonfly leaves alone.
    JsonMergePath,
    /// A document stored as a string was changed in part: its text is now out of date.
    JsonAsString,
    /// An immediate expiry with a condition on a TTL that the target does not have.
    ConditionalExpiry,
    /// What it was renamed from was left out, or had expired at the target.
    Renamed,
    /// The target expired it before the source's renewal came, and it could not be fetched again.
    Vanished,
}

/// Collects notes up to a bound.
#[derive(Debug)]
pub struct Notes {
    list: Vec<Note>,
    bytes_used: usize,
    bytes_max: usize,
    left_out: u64,
}

impl Notes {
    pub fn new(bytes_max: usize) -> Self {
        Self { list: Vec::new(), bytes_used: 0, bytes_max, left_out: 0 }
    }

    /// The same thing about the same key twice in a row is kept once.
    #[cold]
    pub fn add(&mut self, db: DbIndex, key: &[u8], command: &'static str, kind: NoteKind) {
        if self.list.last().is_some_and(|last| last.db == db && *last.key == *key && last.kind == kind) {
            return;
        }
        let bytes_used = self.bytes_used.saturating_add(key.len()).saturating_add(size_of::<Note>());
        if bytes_used > self.bytes_max {
            self.left_out += 1;
            return;
        }
        self.bytes_used = bytes_used;
        self.list.push(Note { db, key: key.into(), command, kind });
    }

    pub fn list(&self) -> &[Note] {
        &self.list
    }

    /// How many notes did not fit.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// The notes since the last call; room for new ones is made.
    pub fn take(&mut self) -> Vec<Note> {
        self.bytes_used = 0;
        std::mem::take(&mut self.list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_bounded_and_counted() {
        let mut notes = Notes::new(2 * size_of::<Note>() + 4);
        let kind = NoteKind::Doubtful(Doubt::Truncated);
        for key in ["a", "a", "b", "c", "d"] {
            notes.add(DbIndex(0), key.as_bytes(), "SORT", kind);
        }
        assert_eq!((notes.list().len(), notes.left_out()), (2, 2));
        assert_eq!(notes.take().len(), 2);
        notes.add(DbIndex(0), b"e", "SORT", kind);
        assert_eq!(notes.list().len(), 1);
    }
}
