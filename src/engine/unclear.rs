//! Keys of which a record does not say what became of them: it lost its operands on the way into the journal (wire 6.19), or
//! digits of its scores, or says something else than what the source did (`journal::quirks`), or read what the full sync had not
//! sent yet.
//!
//! In: records, before and after they are applied. Out: what is passed over, and keys that are fetched from the source as lost
//! ones are (`doubt`), or, where that cannot be done (`migrate`, filters by type), listed. Bounded by what may be in doubt.
//! Invariant: on one server the name of a key that is fetched is remembered before the position passes its record.

use super::batch::UNHEARD;
use super::error::EngineError;
use super::flow::Flow;
use super::handle::FlowHandler;
use super::messages::{Lost, WorkerEvent};
use crate::convert::journal::{self, Doubt, Meaning, NoteKind, Quirks, may_be_rounded};
use crate::convert::{Out, Plan};
use crate::ids::DbIndex;
use tokio::sync::mpsc::UnboundedSender;

/// Keys of one turn; more are listed.
const KEYS_MAX: usize = 1024;

/// Of one flow.
pub struct Unclear {
    /// Keys can be fetched from the source.
    pub fetches: bool,
    /// What the source did seconds ago is not known to be applied.
    pub lagging: bool,
    /// Database at the source of the record at hand.
    pub db: DbIndex,
    /// Database and only key of a DEL, if that was the record before.
    deleted: Option<(DbIndex, Box<[u8]>)>,
    /// By the source's database and their names at the target.
    keys: Vec<(DbIndex, Box<[u8]>)>,
    quirks: Quirks,
}

impl Unclear {
    pub fn new(plan: &Plan) -> Self {
        let quirks = Quirks::of(plan.source, plan.source_ahead_ms);
        Self { fetches: false, lagging: true, db: DbIndex(0), deleted: None, keys: Vec::new(), quirks }
    }

    /// The record, an expiry by its name, took the key's expiry away.
    pub fn is_persisted(&self, args: &[&[u8]], now_ms: i64) -> bool {
        self.quirks.meaning(args, now_ms) == Meaning::Persisted
    }
}

impl FlowHandler {
    /// Whether the record is to be passed over, for it stands for a read. If it is an expiry after all, a short one, the source
    /// records the end of the key; where that may not be heard, the key is asked for. Names are the source's.
    pub(super) fn only_reads(
        &mut self,
        db: DbIndex,
        args: &[&[u8]],
        now_ms: i64,
        stable: bool,
    ) -> Result<bool, EngineError> {
        if self.unclear.quirks.meaning(args, now_ms) != Meaning::PerhapsRead {
            return Ok(false);
        }
        let key = args.get(1).copied().unwrap_or_default();
        if !stable {
            self.suspects.written(db, key).map_err(|e| EngineError::Refused(e.to_string()))?;
            return Ok(true);
        }
        // Of a flow that is behind, most are expiries whose renewals follow: they count, and the source is asked.
        Ok(!self.unclear.lagging)
    }

    /// What a record means for the keys that the source may have deleted silently: one that it has deleted before is deleted here, too.
    /// Names are the source's.
    pub(super) fn note_suspects(
        &mut self,
        db: DbIndex,
        args: &[&[u8]],
        now_ms: i64,
        stable: bool,
        out: &mut impl Out,
    ) -> Result<(), EngineError> {
        let deleted =
            self.suspects.record(db, args, stable).map_err(|overflow| EngineError::Refused(overflow.to_string()))?;
        for (of, key) in self.suspects.take_late() {
            let (target_db, name) = self.scope().at_target(of, &key)?;
            match self.is_fetched() {
                true => self.unclear.keys.push((of, name.into())),
                false => {
                    let kind = NoteKind::Doubtful(Doubt::PerhapsDeleted);
                    self.translator.notes().add(target_db, &name, journal::known_name(args), kind);
                }
            }
        }
        let Some(key) = deleted else { return Ok(()) };
        let (db, name) = self.scope().at_target(db, key)?;
        self.apply_record(db, 0, &[b"DEL", &name], now_ms, stable, out).map(drop)
    }

    /// Takes note of what a record that was applied did not say. Names are the target's. `written`: it was carried out.
    pub(super) fn note_unclear(&mut self, db: DbIndex, args: &[&[u8]], now_ms: i64, stable: bool, written: bool) {
        let unclear = self.translator.take_unclear();
        let is_clear = unclear.is_empty();
        for (key, command, doubt) in unclear {
            self.fetch_or_list(db, key, command, doubt);
        }
        let Some(key) = args.get(1) else { return };
        // The baseline of a key comes before what changes it, not before what reads it (wire 2.10).
        if !stable
            && written
            && is_clear
            && let Some(stored) = journal::stored_key(args)
        {
            self.fetch_or_list(db, stored.into(), journal::known_name(args), Doubt::EarlyRead);
        }
        let quirks = self.unclear.quirks;
        if stable && quirks.meaning(args, now_ms) == Meaning::PerhapsRead && self.doubts.has_room() && self.is_fetched()
        {
            self.unclear.keys.push((self.unclear.db, Box::from(*key)));
        }
        if !quirks.rounds_scores {
            return;
        }
        let deleted = self.unclear.deleted.take();
        if deleted.is_some_and(|(of, name)| of == db && *name == **key) && may_be_rounded(args) {
            self.fetch_or_list(db, Box::from(*key), "ZADD", Doubt::Rounded);
        } else if matches!(args, [name, _] if name.eq_ignore_ascii_case(b"DEL")) {
            self.unclear.deleted = Some((db, Box::from(*key)));
        }
    }

    fn fetch_or_list(&mut self, db: DbIndex, key: Box<[u8]>, command: &'static str, doubt: Doubt) {
        match self.is_fetched() {
            true => self.unclear.keys.push((self.unclear.db, key)),
            false => self.translator.notes().add(db, &key, command, NoteKind::Doubtful(doubt)),
        }
    }

    fn is_fetched(&self) -> bool {
        self.unclear.fetches && self.unclear.keys.len() < KEYS_MAX && !self.scope().filters_types()
    }
}

impl Flow {
    /// Asks for what this turn's records did not say. Returns the names that are to be remembered, in front of every position
    /// that was not sent yet, so that they are known if the tool is killed.
    pub(super) fn ask_unclear(&mut self, events: &UnboundedSender<WorkerEvent>) -> Vec<Lost> {
        let unclear = std::mem::take(&mut self.handler.unclear.keys);
        let asked = |(db, key): (DbIndex, Box<[u8]>)| self.lost_at_target(db, Some(key.into_vec()), UNHEARD, events);
        unclear.into_iter().filter_map(asked).collect()
    }
}
