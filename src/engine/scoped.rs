//! A flow's events under a scope: keys left out, renamed, or in another database.
//!
//! In: events and records with the source's names. Out: the same with the target's names, given to the conversion.
//! Invariant: what is asked about a key at the source (owner, suspects) is asked by its name there; everything that concerns
//! the target (keys that it held before, held expiries, commands) by its name here. Only flows with a scope come this way.

use super::error::EngineError;
use super::handle::{Applied, Existing, FlowHandler};
use crate::convert::journal::keys_of;
use crate::convert::scope::{Reason, Scoped, Sketch};
use crate::convert::{Out, Scope, ScopeError, TypeClass, escape};
use crate::dragonfly::{Event, KeyMeta, ObjectId};
use crate::ids::DbIndex;

/// Memory for names, reused from key to key.
#[derive(Debug, Default)]
pub struct Names {
    key: Vec<u8>,
    sketch: Sketch,
}

impl From<ScopeError> for EngineError {
    fn from(error: ScopeError) -> Self {
        Self::Refused(error.to_string())
    }
}

/// An error about a database gets the first key that it was met at. (Others name theirs.)
#[cold]
fn at_key(error: ScopeError, what: &str, db: DbIndex, key: &[u8]) -> EngineError {
    match error {
        ScopeError::DbOutOfRange { .. } | ScopeError::DbsCollide { .. } => {
            EngineError::Refused(format!("{what} \"{}\" (database {db}): {error}", escape::for_message(key)))
        }
        error => error.into(),
    }
}

/// Where a MOVE takes its key.
fn moved_to(args: &[&[u8]]) -> Option<DbIndex> {
    let [name, _, to] = args else { return None };
    let to = std::str::from_utf8(to).ok()?.parse().ok()?;
    name.eq_ignore_ascii_case(b"MOVE").then_some(DbIndex(to))
}

/// The key is moved to where the target held one.
fn is_taken(existing: &Existing, args: &[&[u8]], key: &[u8]) -> bool {
    moved_to(args).is_some_and(|to| existing.contains(to, key))
}

impl FlowHandler {
    /// A whole object, or the begin of one.
    pub(super) fn snapshot_scoped(
        &mut self,
        event: &Event<'_>,
        now_ms: i64,
        out: &mut impl Out,
    ) -> Result<(), EngineError> {
        let (meta, body, object) = match event {
            Event::Whole { meta, body } => (*meta, Some(*body), None),
            Event::Begin { object, meta, .. } => (*meta, None, Some(*object)),
            _ => return Ok(()),
        };
        self.dropped_objects.retain(|id| Some(*id) != object);
        let was_suspect = self.suspects.is_suspect(meta.db, meta.key);
        self.suspects.settled(meta.db, meta.key);
        if !self.owns(&meta, body) {
            self.drop_object(object);
            return Ok(());
        }
        let class = TypeClass::of(meta.object_type);
        if let Err(reason) = self.scope().admits(meta.db, meta.key, Some(class)) {
            *self.counts.filtered.keys.entry(reason.name()).or_default() += 1;
            self.drop_object(object);
            self.tell_of_own(reason, meta.db, &[b"", meta.key]);
            if reason == Reason::Type && was_suspect {
                // A string was written there by a record, and what stands there now is left out.
                let (db, name) = self.scope().at_target(meta.db, meta.key)?;
                self.apply_record(db, 0, &[b"DEL", &name], now_ms, false, out)?;
            }
            return Ok(());
        }
        let mut key = std::mem::take(&mut self.names.key);
        key.clear();
        let named = self.scope().push_name(meta.db, meta.key, &mut key).and_then(|()| self.scope().target_db(meta.db));
        let result = named.map_err(|error| at_key(error, "the key", meta.db, meta.key)).and_then(|db| {
            self.counts.filtered.keys_renamed += u64::from(key != meta.key);
            if !self.admits_existing(db, &key) {
                self.drop_object(object);
                return Ok(());
            }
            let meta = KeyMeta { db, key: &key, ..meta };
            let meta = if self.concerns_expiry(&meta) { self.hold(&meta) } else { meta };
            let event = match *event {
                Event::Whole { body, .. } => Event::Whole { meta, body },
                Event::Begin { object, count, .. } => Event::Begin { object, meta, count },
                _ => return Ok(()),
            };
            let outcome = self.converter.event(&event, now_ms, out).map_err(EngineError::from);
            self.held.unnamed_fields(self.converter.take_shifted_fields());
            outcome
        });
        self.names.key = key;
        result
    }

    /// What of a record, by its names at the target, concerns keys that the target did not hold before (`--on-existing skip`).
    pub(super) fn beside_existing<'a>(&mut self, db: DbIndex, args: &[&'a [u8]]) -> Result<Scoped<'a>, EngineError> {
        let existing = &self.existing;
        if existing.is_empty() || !keys_of(args).any(|key| existing.contains(db, key) || is_taken(existing, args, key))
        {
            return Ok(Scoped::Same);
        }
        self.counts.existing_skipped += 1;
        let key = args.get(1).copied().unwrap_or_default();
        let scoped = match moved_to(args) {
            Some(to) if existing.contains(to, key) && existing.contains(db, key) => Ok(Scoped::Out(Reason::Key)),
            // One onto a key that is there is recorded, too, and moves nothing: whether the source has the key still is not known.
            Some(_) => Err(()),
            None => {
                let everything = Scope::everything();
                everything.filter_by(db, args, &|key| !existing.contains(db, key)).map_err(drop)
            }
        };
        scoped.map_err(|()| {
            EngineError::Refused(format!(
                "the recorded command {} on the key \"{}\" (database {db}) needs a key that the target held before, \
                 and --on-existing skip leaves that as it is: run again with --on-existing replace or flush",
                args.first().map(|name| escape::for_message(name)).unwrap_or_default(),
                keys_of(args).next().map(escape::for_message).unwrap_or_default(),
            ))
        })
    }

    /// Keys with the tool's own names are left out without the operator's word: that is said once. `args`: a record, or a key.
    fn tell_of_own(&mut self, reason: Reason, db: DbIndex, args: &[&[u8]]) {
        if reason != Reason::Own || std::mem::replace(&mut self.told_of_own, true) {
            return;
        }
        let key = args.iter().skip(1).find(|key| self.scope().admits(db, key, None) == Err(Reason::Own));
        let key = key.copied().unwrap_or_default().escape_ascii();
        tracing::warn!(
            flow = %self.flow, %db, %key,
            "a key of the source is left out, for at the target it would begin with df2redis:, as the tool's own keys there; so are all \
             others like it (the report counts them)"
        );
    }

    fn drop_object(&mut self, object: Option<ObjectId>) {
        self.dropped_objects.extend(object);
    }

    /// One journal record.
    pub(super) fn journal_scoped(
        &mut self,
        db: DbIndex,
        txid: u64,
        args: &[&[u8]],
        now_ms: i64,
        stable: bool,
        out: &mut impl Out,
    ) -> Result<Applied, EngineError> {
        match self.scope().filter_record(db, args)? {
            Scoped::Out(reason) => {
                *self.counts.filtered.records.entry(reason.name()).or_default() += 1;
                self.tell_of_own(reason, db, args);
                if reason == Reason::Type && self.scope().admits_type(TypeClass::String) {
                    // It is left out, and may tell of a string that was written there by a record.
                    self.note_suspects(db, args, now_ms, stable, out)?;
                }
                Ok(Applied::Done)
            }
            Scoped::Same => self.apply_named(db, txid, args, now_ms, stable, out),
            Scoped::Instead { records, reason } => {
                *self.counts.filtered.records_changed.entry(reason.name()).or_default() += 1;
                self.tell_of_own(reason, db, args);
                // Only the last of them can be one that is carried out apart.
                let mut applied = Applied::Done;
                for record in &records {
                    applied = self.apply_named(db, txid, record, now_ms, stable, out)?;
                }
                Ok(applied)
            }
        }
    }

    /// Applies a record that is in scope, under the target's names.
    fn apply_named(
        &mut self,
        db: DbIndex,
        txid: u64,
        args: &[&[u8]],
        now_ms: i64,
        stable: bool,
        out: &mut impl Out,
    ) -> Result<Applied, EngineError> {
        if self.only_reads(db, args, now_ms, stable)? {
            return Ok(Applied::Done);
        }
        self.note_suspects(db, args, now_ms, stable, out)?;
        let mut sketch = std::mem::take(&mut self.names.sketch);
        let named = self.scope().name_record(db, args, &mut sketch);
        let what =
            || format!("the recorded command {} on the key", escape::for_message(args.first().unwrap_or(&&b""[..])));
        let result = named
            .map_err(|error| at_key(error, &what(), db, keys_of(args).next().unwrap_or_default()))
            .and_then(|db| self.apply_record(db, txid, &sketch.record(args), now_ms, stable, out));
        self.names.sketch = sketch;
        result
    }
}
