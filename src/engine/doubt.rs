//! Keys of one flow that vanished at the target and are being fetched again from the source (wire 4.4, 6.34).
//!
//! In: lost keys, the records that name them, and values fetched: each with the positions of the source before and after
//! it was read. Out: when to write a value, when to ask anew, when to give up. Invariant: a value is written only where no
//! record of its key lies between the position before it was read and the place in the flow where it is written; so every
//! record of the key is either contained in it or applied after it. Bounded in keys and bytes.

use crate::ids::{DbIndex, Lsn};
use std::collections::{HashMap, HashSet};

/// A key as the source had it.
#[derive(Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Next LSN of the flow before the value was read, and after.
    pub before: Lsn,
    pub after: Lsn,
    /// A DUMP payload; None: the source has no such key.
    pub payload: Option<Vec<u8>>,
    pub expire_at_ms: Option<i64>,
}

/// What is to be done for a lost key.
#[derive(Debug, PartialEq, Eq)]
pub enum Settled {
    /// Write it, here.
    Write { db: DbIndex, key: Box<[u8]>, fetched: Fetched },
    /// It changed meanwhile: fetch it anew.
    Again { db: DbIndex, key: Box<[u8]>, question: u64 },
    /// It could not be had: list it.
    GivenUp { db: DbIndex, key: Box<[u8]>, why: String },
}

struct Entry {
    /// The last one: what was read before all keys were gone, and says so, is no answer for a key that is there again.
    question: u64,
    /// LSN of the last record that named the key.
    touched: Option<Lsn>,
    asked_count: u32,
    answer: Option<Result<Fetched, String>>,
}

/// The lost keys of one flow.
#[derive(Default)]
pub struct Doubts {
    questions: u64,
    entries: HashMap<(DbIndex, Box<[u8]>), Entry>,
    /// Keys that the target does not hold on purpose: not asked for again.
    left_out: HashSet<(DbIndex, Box<[u8]>)>,
}

/// More lost keys at a time than this are listed, not fetched.
const KEYS_MAX: usize = 1024;
/// Keys remembered that the target does not hold on purpose.
const LEFT_OUT_MAX: usize = 4096;
/// A key that is written again and again meanwhile is asked for so often.
const ASKED_MAX: u32 = 8;
/// From here on the flow stands still until the answer is there, so that it cannot run past it.
const ASKED_RUNNING: u32 = 1;

impl Doubts {
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The target lost the key. Returns the number of the question, if it is to be fetched; else it is on its way already.
    /// `Err`: too many.
    pub fn lost(&mut self, db: DbIndex, key: &[u8]) -> Result<Option<u64>, String> {
        let name = (db, Box::from(key));
        if self.entries.contains_key(&name) || self.left_out.contains(&name) {
            return Ok(None);
        }
        if self.entries.len() >= KEYS_MAX {
            return Err(format!("more than {KEYS_MAX} keys were lost at a time"));
        }
        self.questions += 1;
        self.entries.insert(name, Entry { question: self.questions, touched: None, asked_count: 1, answer: None });
        Ok(Some(self.questions))
    }

    /// It is to be fetched.
    pub fn has(&self, db: DbIndex, key: &[u8]) -> bool {
        self.entries.contains_key(&(db, Box::from(key)))
    }

    /// One more can be asked for.
    pub fn has_room(&self) -> bool {
        self.entries.len() < KEYS_MAX
    }

    /// A record at `lsn` names the key.
    pub fn touched(&mut self, db: DbIndex, key: &[u8], lsn: Lsn) {
        if let Some(entry) = self.entries.get_mut(&(db, Box::from(key))) {
            entry.touched = Some(lsn);
        }
    }

    /// A record at `lsn` may concern any key.
    pub fn touched_all(&mut self, lsn: Lsn) {
        self.entries.values_mut().for_each(|entry| entry.touched = Some(lsn));
    }

    /// The target is not to hold this key: its absence is no loss.
    pub fn leave_out(&mut self, db: DbIndex, key: &[u8]) {
        if self.left_out.len() < LEFT_OUT_MAX {
            self.left_out.insert((db, Box::from(key)));
        }
    }

    /// All keys of a database are gone at the source, and will be at the target.
    pub fn flushed(&mut self, db: Option<DbIndex>) {
        self.entries.retain(|(of, _), _| db.is_some_and(|db| db != *of));
    }

    /// What the source said to a question.
    pub fn answered(&mut self, db: DbIndex, key: &[u8], question: u64, answer: Result<Fetched, String>) {
        let entry = self.entries.get_mut(&(db, Box::from(key)));
        if let Some(entry) = entry.filter(|entry| entry.question == question) {
            entry.answer = Some(answer);
        }
    }

    /// The flow must not go on before an answer.
    pub fn holds_flow(&self) -> bool {
        self.entries.values().any(|entry| entry.asked_count > ASKED_RUNNING && entry.answer.is_none())
    }

    /// An answer is still to come.
    pub fn is_waiting(&self) -> bool {
        self.entries.values().any(|entry| entry.answer.is_none())
    }

    /// All names, at the end of a session.
    pub fn take(&mut self) -> Vec<(DbIndex, Box<[u8]>)> {
        std::mem::take(&mut self.entries).into_keys().collect()
    }

    /// Something is to be done before the record at `next_lsn`.
    pub fn is_due(&self, next_lsn: Lsn) -> bool {
        self.entries.values().any(|entry| match &entry.answer {
            Some(Ok(fetched)) => next_lsn >= fetched.after,
            Some(Err(_)) => true,
            None => false,
        })
    }

    /// The next thing to be done before the record at `next_lsn`.
    pub fn settle(&mut self, next_lsn: Lsn) -> Option<Settled> {
        let is_due = |entry: &Entry| match &entry.answer {
            Some(Ok(fetched)) => next_lsn >= fetched.after,
            Some(Err(_)) => true,
            None => false,
        };
        let name = self.entries.iter().find(|(_, entry)| is_due(entry)).map(|(name, _)| name.clone())?;
        let entry = self.entries.get_mut(&name)?;
        let answer = entry.answer.take()?;
        let (db, key) = name.clone();
        let settled = match answer {
            Ok(fetched) if entry.touched.is_none_or(|touched| touched < fetched.before) => {
                Settled::Write { db, key, fetched }
            }
            Ok(_) if entry.asked_count < ASKED_MAX => {
                entry.asked_count += 1;
                self.questions += 1;
                entry.question = self.questions;
                return Some(Settled::Again { db, key, question: self.questions });
            }
            Ok(_) => {
                let why = format!("it was changed each of the {ASKED_MAX} times that it was read");
                Settled::GivenUp { db, key, why }
            }
            Err(why) => Settled::GivenUp { db, key, why },
        };
        self.entries.remove(&name);
        Some(settled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DB: DbIndex = DbIndex(0);

    fn fetched(before: u64, after: u64) -> Result<Fetched, String> {
        Ok(Fetched { before: Lsn(before), after: Lsn(after), payload: None, expire_at_ms: None })
    }

    fn lost(key: &str) -> Doubts {
        let mut doubts = Doubts::default();
        assert_eq!(doubts.lost(DB, key.as_bytes()), Ok(Some(1)));
        assert_eq!(doubts.lost(DB, key.as_bytes()), Ok(None));
        doubts
    }

    #[test]
    fn a_value_is_written_where_it_fits() {
        let mut doubts = lost("k");
        // Contained in the value.
        doubts.touched(DB, b"k", Lsn(9));
        assert!(!doubts.is_due(Lsn(10)) && !doubts.holds_flow());
        doubts.answered(DB, b"k", 1, fetched(10, 12));
        assert!(!doubts.is_due(Lsn(11)) && doubts.settle(Lsn(11)).is_none());
        doubts.touched(DB, b"other", Lsn(11));
        assert!(doubts.is_due(Lsn(12)));
        assert!(matches!(doubts.settle(Lsn(12)), Some(Settled::Write { .. })));
        assert!(doubts.is_empty() && doubts.settle(Lsn(12)).is_none());
    }

    #[test]
    fn a_record_that_may_be_contained_or_not_has_it_fetched_anew() {
        for touched in [10, 11, 12] {
            let mut doubts = lost("k");
            doubts.touched(DB, b"k", Lsn(touched));
            doubts.answered(DB, b"k", 1, fetched(10, 12));
            assert!(matches!(doubts.settle(Lsn(13)), Some(Settled::Again { question: 2, .. })), "{touched}");
            // Now the flow waits, so nothing can come between.
            assert!(doubts.holds_flow());
            doubts.answered(DB, b"k", 2, fetched(20, 20));
            assert!(!doubts.holds_flow());
            assert!(matches!(doubts.settle(Lsn(20)), Some(Settled::Write { .. })));
        }
    }

    /// Asked before a flush, read behind it: it was absent then. It has been made anew since, and is in doubt again.
    #[test]
    fn an_answer_to_a_question_from_before_a_flush_is_none_to_the_next_one() {
        let mut doubts = lost("k");
        doubts.flushed(None);
        assert_eq!(doubts.lost(DB, b"k"), Ok(Some(2)));
        doubts.answered(DB, b"k", 1, fetched(10, 10));
        assert!(doubts.is_waiting() && doubts.settle(Lsn(12)).is_none());
        doubts.answered(DB, b"k", 2, fetched(12, 12));
        assert!(matches!(doubts.settle(Lsn(12)), Some(Settled::Write { fetched, .. }) if fetched.before == Lsn(12)));
    }

    #[test]
    fn it_ends_in_any_case() {
        let mut doubts = lost("k");
        for question in 1..u64::from(ASKED_MAX) {
            doubts.answered(DB, b"k", question, fetched(5, 5));
            doubts.touched(DB, b"k", Lsn(5));
            assert!(matches!(doubts.settle(Lsn(6)), Some(Settled::Again { .. })));
        }
        doubts.answered(DB, b"k", ASKED_MAX.into(), fetched(5, 5));
        assert!(matches!(doubts.settle(Lsn(6)), Some(Settled::GivenUp { .. })));
        let mut doubts = lost("k");
        doubts.answered(DB, b"k", 1, Err("NOPERM".into()));
        assert!(matches!(doubts.settle(Lsn(1)), Some(Settled::GivenUp { why, .. }) if why == "NOPERM"));
        let mut doubts = lost("k");
        doubts.flushed(Some(DbIndex(1)));
        assert!(!doubts.is_empty());
        doubts.flushed(None);
        assert!(doubts.is_empty());
        doubts.answered(DB, b"k", 1, fetched(1, 1));
        assert!(doubts.settle(Lsn(9)).is_none());
        for i in 0..KEYS_MAX {
            doubts.lost(DB, &i.to_be_bytes()).unwrap();
        }
        assert!(doubts.lost(DB, b"more").is_err());
    }
}
