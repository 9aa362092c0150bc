//! Translates Dragonfly's recorded commands (wire 4.4, 4.9) into commands of one given target.
//!
//! In: the strings of one record, its db and txid, the time of its receipt. Out: RESP commands in an [`Out`], or an
//! [`Outcome`] that says why there are none. Used for the journal blobs of a full sync and for stable sync alike.
//!
//! Invariants:
//! - An error means that nothing of the record was written.
//! - Of the commands made from one record at most one in each cluster slot is [`Class::Guarded`], and it is the last one
//!   of its slot: a marker behind it covers the whole record. The one exception is a RESTORE so large that the converter
//!   sends it in chunks (RPUSH, XGROUP): it begins with a DEL, and only a marker behind its last command covers it.
//! - Names and options are compared without regard to letter case; relative times become absolute at receipt.
//! - Common commands (SET, INCR, HSET, LPUSH ...) allocate nothing.
//!
//! It does not: know which flow owns a key (see [`stray_candidate`]), apply global commands, read replies (see
//! [`replies`]), map databases.

mod claims;
mod error;
mod floats;
mod hashes;
mod keys;
mod large;
mod modules;
mod notes;
mod old;
mod payload;
mod pops;
mod quirks;
mod record;
pub mod replies;
mod several;
mod streams;
mod strings;
mod suspects;
pub mod table;
mod write;

#[cfg(test)]
mod tests;

pub use error::{TranslateError, TranslateReason};
pub use keys::{Args, KeyIter, key_positions, keys_of, stray_candidate};
pub use notes::{Doubt, Note, NoteKind, Notes};
pub use payload::{RestorePayload, Restored, payload_class};
pub use quirks::{Meaning, Quirks, may_be_rounded};
pub use several::{Several, Side, Take, is_whole, several, stored_key, stores_only_what_is_there};
pub use suspects::{Suspect, Suspects, SuspectsOverflow};

use super::near::Near;
use super::out::{Class, CommandMeta, Out};
use super::policy::{Action, Kind, Policy};
use crate::dragonfly::journal::Command;
use crate::dragonfly::session::Release;
use crate::ids::{DbIndex, FlowId, Slot};
use crate::redis::Capabilities;
use crate::redis::slot::slot;
use record::Record;
use std::collections::HashSet;
use std::sync::Arc;
use table::{How, Keys};
use write::Request;

/// What became of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// So many commands were written.
    Written { commands: u32 },
    /// Nothing to send.
    Dropped(DropReason),
    /// Left out by policy, and noted. `commands` were written all the same: a DEL of what the source replaced, and what could be held.
    LeftOut { kind: Kind, commands: u32 },
    /// The engine must act: restart a full sync, or keep a barrier over all flows.
    Global(GlobalCommand),
    /// Needs an answer from a peer before anything can be sent.
    NotCarried { kind: NotCarriedKind },
}

/// Why nothing had to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// Changes nothing: SORT without STORE, BITFIELD with only GET ...
    Read,
    /// Has no meaning outside Dragonfly: STICK, SHRINK, SCRIPT FLAGS, PING.
    NoMeaning,
    /// Changes what the target was never given (HGETEX PERSIST where fields have no expiry).
    NoEffect,
    /// FT.*: search indexes are not carried over; noted, by one flow.
    Search,
    /// The record lost its operands (wire 6.19): its keys are told by [`JournalTranslator::take_unclear`].
    Truncated,
}

/// One record on every flow, with the same txid (wire 4.5, 4.8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GlobalCommand {
    FlushAll,
    FlushDb(DbIndex),
    /// DFLYCLUSTER FLUSHSLOTS: first and last slot of each range.
    FlushSlots(Box<[(Slot, Slot)]>),
}

/// What the target cannot do in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NotCarriedKind {
    /// The keys of a RENAME, SORT STORE, LMOVE ... lie in different slots of the target's cluster, or it does not name them.
    CrossSlot,
    /// MOVE in a cluster, of which only database 0 is used.
    MoveInCluster,
}

/// How often a command name was seen, by what became of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NameCounts {
    pub written: u64,
    pub dropped: u64,
    /// Left out by policy.
    pub left_out: u64,
    pub not_carried: u64,
    pub global: u64,
    /// Ended in an error.
    pub refused: u64,
}

/// The first release in which GT and LT of a ZADD count in sets of any size.
const ZADD_COMPARES: (u32, u32) = (1, 41);
/// Sets that are listed as compared wrongly; more are not.
const COMPARED_MAX: usize = 1024;

/// The first release that records nothing of a command that failed, a SETNX or RENAMENX that found its key included.
const FAILURES_NOT_RECORDED: (u32, u32) = (1, 14);

/// The first release in which a JSON.SET of a whole document takes the key's expiry away.
const JSON_SET_CLEARS_EXPIRY: (u32, u32) = (1, 33);

/// Name under which [`JournalTranslator::by_name`] counts names that are not known.
pub const OTHER_NAME: &str = "(unknown)";

/// Canonical name of a record's command; empty if it is not known.
pub fn known_name(args: &[&[u8]]) -> &'static str {
    args.first().and_then(|name| table::find(name)).map_or("", |(_, row)| row.name)
}

/// State of one flow's journal translation.
#[derive(Debug)]
pub struct JournalTranslator {
    flow: FlowId,
    capabilities: Arc<Capabilities>,
    policy: Arc<Policy>,
    /// By row of the table: the target knows a command of this name.
    present: Box<[bool]>,
    /// By row of the table, the last one for names not known.
    counts: Box<[NameCounts]>,
    /// A record may be of a command that failed.
    records_failures: bool,
    /// A JSON.SET of a whole document keeps the key's expiry at the source.
    json_keeps_expiry: bool,
    /// GT and LT of a ZADD count for nothing at the source in sets that are not small.
    compares_wrongly: bool,
    /// Sets that were listed for that.
    compared: HashSet<(DbIndex, Box<[u8]>)>,
    /// Which expiries are written later than they are (wire 6.34).
    near: Near,
    /// The last expiry that the record at hand had shifted.
    shifted_ms: Option<i64>,
    notes: Notes,
    /// Keys of which the records did not say what became of them, with the command's name, since they were last taken.
    unclear: Vec<(Box<[u8]>, &'static str, Doubt)>,
}

impl JournalTranslator {
    /// `notes_bytes_max`: most memory for keys to be listed in the report.
    pub fn new(flow: FlowId, capabilities: Arc<Capabilities>, policy: Arc<Policy>, notes_bytes_max: usize) -> Self {
        let present = table::TABLE.iter().map(|row| capabilities.commands.contains(row.name)).collect();
        Self {
            flow,
            capabilities,
            policy,
            present,
            counts: vec![NameCounts::default(); table::TABLE.len() + 1].into(),
            records_failures: false,
            json_keeps_expiry: false,
            compares_wrongly: false,
            compared: HashSet::new(),
            near: Near::AS_IS,
            shifted_ms: None,
            notes: Notes::new(notes_bytes_max),
            unclear: Vec::new(),
        }
    }

    /// Of which release the records are, where that is known; else they are taken to be of a new one.
    pub fn set_source(&mut self, release: Option<Release>) {
        let is_before = |first| release.is_some_and(|release| (release.major, release.minor) < first);
        self.records_failures = is_before(FAILURES_NOT_RECORDED);
        self.json_keeps_expiry = is_before(JSON_SET_CLEARS_EXPIRY);
        self.compares_wrongly = is_before(ZADD_COMPARES);
    }

    /// Translates one recorded command; `args[0]` is the name; `now_ms`: Unix time of receipt. `payloads` writes what a
    /// RESTORE holds.
    pub fn command<O: Out, P: RestorePayload>(
        &mut self,
        db: DbIndex,
        txid: u64,
        args: &[&[u8]],
        now_ms: i64,
        payloads: &mut P,
        out: &mut O,
    ) -> Result<Outcome, TranslateError> {
        let found = args.first().and_then(|name| table::find(name));
        let result = match found {
            Some((position, row)) => {
                let record =
                    Record { flow: self.flow, db, txid, args, now_ms, row, present: self.is_present(position) };
                self.translate(&record, payloads, out)
            }
            None => self.unknown(db, args),
        };
        let position = found.map_or(table::TABLE.len(), |(position, _)| position);
        if let Some(counts) = self.counts.get_mut(position) {
            counts.add(&result);
        }
        result
    }

    /// [`command`](Self::command) for a record as the decoder gives it.
    pub fn recorded<O: Out, P: RestorePayload>(
        &mut self,
        command: &Command<'_>,
        now_ms: i64,
        payloads: &mut P,
        out: &mut O,
    ) -> Result<Outcome, TranslateError> {
        let args: Args<'_> = command.args().collect();
        self.command(command.db, command.txid, &args, now_ms, payloads, out)
    }

    /// Which expiries are written later than they are from now on, so that the target expires nothing that the source may
    /// have renewed (wire 6.34). Whoever sets it puts them right in the end.
    pub fn set_near(&mut self, near: Near) {
        self.near = near;
    }

    /// The true time of the expiry that was shifted since the last call, of a key or of its fields.
    pub fn take_shifted_ms(&mut self) -> Option<i64> {
        self.shifted_ms.take()
    }

    /// Names that were seen, with their counts.
    pub fn by_name(&self) -> impl Iterator<Item = (&'static str, NameCounts)> {
        let names = table::TABLE.iter().map(|row| row.name).chain([OTHER_NAME]);
        names.zip(self.counts.iter().copied()).filter(|(_, counts)| *counts != NameCounts::default())
    }

    /// Keys of which the last record does not say what became of them, for it lost its operands (wire 6.19) or for another reason.
    pub fn take_unclear(&mut self) -> Vec<(Box<[u8]>, &'static str, Doubt)> {
        std::mem::take(&mut self.unclear)
    }

    /// What the report must list by key.
    pub fn notes(&mut self) -> &mut Notes {
        &mut self.notes
    }

    fn is_present(&self, position: usize) -> bool {
        self.present.get(position).copied().unwrap_or(false)
    }

    fn translate<O: Out, P: RestorePayload>(
        &mut self,
        record: &Record<'_>,
        payloads: &mut P,
        out: &mut O,
    ) -> Result<Outcome, TranslateError> {
        let row = record.row;
        if record.args.len() < row.args_min {
            let reason = TranslateReason::WrongArity { given: record.args.len(), least: row.args_min };
            return Err(record.error(reason));
        }
        // What a RESTORE holds is taken apart, so its payload may be longer.
        if row.how != How::Restore && !record.args.iter().all(|arg| self.fits(arg)) {
            return self.too_large(record, out);
        }
        match row.how {
            How::Blind => self.pass(record, Class::Blind, out),
            How::Guarded => self.pass(record, Class::Guarded, out),
            How::Drop => Ok(Outcome::Dropped(DropReason::NoMeaning)),
            How::Rem => self.rem(record, out),
            How::PfMerge => Ok(self.truncated(record)),
            How::Set => self.set(record, out),
            How::SetEx(unit_ms) => self.set_ex(record, unit_ms, out),
            How::MSet => self.mset(record, out),
            // It is recorded because it succeeded.
            How::SetNx if self.records_failures => self.pass(record, Class::Guarded, out),
            How::GetSet | How::SetNx => self.get_set(record, out),
            How::Del => Ok(self.del(record, record.from(1), out)),
            How::RenameNx if self.records_failures => self.pass(record, Class::Guarded, out),
            How::Rename | How::RenameNx => self.rename(record, out),
            How::GetEx => self.get_ex(record, out),
            How::PExpireAt => self.pexpire_at(record, out),
            How::Persist => self.persist(record, out),
            How::Expire(unit_ms, relative) => self.expire(record, unit_ms, relative, out),
            How::Prepend => self.prepend(record, out),
            How::AddFloat => self.add_float(record, out),
            How::DelEx => self.del_ex(record, out),
            How::Pop(end) => self.pop(record, end, out),
            How::ZPop(end) => self.zpop(record, end, out),
            How::BitField => self.bit_field(record, out),
            How::ZAdd => self.zadd(record, out),
            How::GeoAdd => self.flagged_add(record, &["NX", "XX"], 3, out),
            How::Restore => self.restore(record, payloads, out),
            How::Move => self.move_db(record, out),
            How::Sort => self.sort(record, out),
            How::MultiPop(name, at) => self.multi_pop(record, name, at, out),
            How::RangeStore => self.range_store(record, out),
            How::Combine => self.combine(record, out),
            How::GeoRadius(options_at) => self.geo_radius(record, options_at, out),
            How::Unblock(name) => self.unblock(record, name, out),
            How::HExpire => self.hexpire(record, out),
            How::FieldExpire => self.field_expire(record, out),
            How::HSetEx => self.hset_ex(record, out),
            How::HGetEx => self.hget_ex(record, out),
            How::AddFieldFloat => self.add_field_float(record, out),
            How::SAddEx => self.sadd_ex(record, out),
            How::XAdd => self.xadd(record, out),
            How::XClaim => self.xclaim(record, out),
            How::XAutoClaim => self.xautoclaim(record, out),
            How::XGroup => self.xgroup(record, out),
            How::XSetId => self.xsetid(record, out),
            How::JsonSet => self.json_set(record, out),
            How::JsonMSet => self.json_mset(record, out),
            How::JsonDel => self.json_del(record, out),
            How::JsonMerge => self.json_merge(record, out),
            How::Json => self.json(record, out),
            How::Filters(filter) => self.filters(record, filter, out),
            How::CmsMerge => self.cms_merge(record, out),
            How::Throttle => self.throttle(record, out),
            How::Search => self.search(record),
            How::Script => self.script(record, out),
            How::DflyCluster => self.dfly_cluster(record),
            How::FlushAll => Ok(Outcome::Global(GlobalCommand::FlushAll)),
            How::FlushDb => Ok(Outcome::Global(GlobalCommand::FlushDb(record.db))),
        }
    }

    /// The record as it is, under its canonical name.
    fn pass<O: Out>(&mut self, record: &Record<'_>, class: Class, out: &mut O) -> Result<Outcome, TranslateError> {
        if self.is_cross_slot(record) {
            return Ok(Outcome::NotCarried { kind: NotCarriedKind::CrossSlot });
        }
        let key = keys::keys_in(record.row, record.args).next().unwrap_or_default();
        let mut request = Request::open(out, self.meta(record, key, class), record.args.len(), record.row.name);
        for (at, text) in record.args.iter().enumerate().skip(1) {
            match record.row.ints >> at.min(7) & 1 {
                1 if !record::is_plain_int(text) => match record::parse_int(text) {
                    Some(number) => request.number(number),
                    None => request.text(text),
                },
                _ => request.text(text),
            }
        }
        request.close();
        Ok(Outcome::Written { commands: 1 })
    }

    /// Whether the keys lie in different slots of the target's cluster.
    fn is_cross_slot(&self, record: &Record<'_>) -> bool {
        if !self.capabilities.cluster || record.row.keys == Keys::First {
            return false;
        }
        let mut slots = keys::keys_in(record.row, record.args).map(slot);
        slots.next().is_some_and(|first| slots.any(|other| other != first))
    }

    fn meta(&self, record: &Record<'_>, key: &[u8], class: Class) -> CommandMeta {
        CommandMeta { slot: self.slot(key), db: record.db, class, all_nodes: false }
    }

    /// A single server needs no slots.
    fn slot(&self, key: &[u8]) -> Slot {
        if self.capabilities.cluster { slot(key) } else { Slot(0) }
    }

    /// An absolute expiry as the target is told it. Never below 1, which has the same effect as any time in the past, and
    /// which every command accepts.
    fn expiry_ms(&mut self, at_ms: i64) -> i64 {
        if self.near.shifts(at_ms) {
            self.shifted_ms = Some(at_ms);
        }
        self.near.told(at_ms).max(1)
    }

    /// Conditions of PEXPIREAT came with Redis 7.0, as the counters of streams did.
    fn is_before_7(&self) -> bool {
        !self.capabilities.stream_counters()
    }

    /// The target cannot hold this: refuse, or leave it out and note its keys.
    #[cold]
    fn leave_out(&mut self, record: &Record<'_>, kind: Kind, what: &'static str) -> Result<Outcome, TranslateError> {
        if self.policy.action(kind) == Action::Refuse {
            return Err(record.error(TranslateReason::Unsupported { kind, what }));
        }
        self.note_all(record, NoteKind::Skipped(kind));
        Ok(Outcome::LeftOut { kind, commands: 0 })
    }

    /// The target cannot hold this expiry: refuse, or note it and go on without.
    #[cold]
    fn drop_expiry(&mut self, record: &Record<'_>, kind: Kind, what: &'static str) -> Result<(), TranslateError> {
        if self.policy.action(kind) == Action::Refuse {
            return Err(record.error(TranslateReason::Unsupported { kind, what }));
        }
        self.note_all(record, NoteKind::ExpiryDropped(kind));
        Ok(())
    }

    fn doubt(&mut self, record: &Record<'_>, doubt: Doubt) {
        self.note_all(record, NoteKind::Doubtful(doubt));
    }

    /// A record over several shards, of which each one has its own keys and nothing else (wire 6.19).
    #[cold]
    fn truncated(&mut self, record: &Record<'_>) -> Outcome {
        let keys = keys::keys_in(record.row, record.args);
        self.unclear.extend(keys.map(|key| (Box::from(key), record.row.name, Doubt::Truncated)));
        Outcome::Dropped(DropReason::Truncated)
    }

    #[cold]
    fn note_all(&mut self, record: &Record<'_>, kind: NoteKind) {
        let mut keys = keys::keys_in(record.row, record.args).peekable();
        if keys.peek().is_none() {
            self.notes.add(record.db, b"", record.row.name, kind);
        }
        keys.for_each(|key| self.notes.add(record.db, key, record.row.name, kind));
    }

    #[cold]
    fn unknown(&mut self, db: DbIndex, args: &[&[u8]]) -> Result<Outcome, TranslateError> {
        let key = args.get(1).copied();
        if self.policy.action(Kind::Command) == Action::Refuse {
            return Err(record::error_of(self.flow, db, args, key, TranslateReason::UnknownCommand));
        }
        self.notes.add(db, key.unwrap_or_default(), "", NoteKind::Skipped(Kind::Command));
        Ok(Outcome::LeftOut { kind: Kind::Command, commands: 0 })
    }
}

impl NameCounts {
    fn add(&mut self, result: &Result<Outcome, TranslateError>) {
        let count = match result {
            Ok(Outcome::Written { .. }) => &mut self.written,
            Ok(Outcome::Dropped(_)) => &mut self.dropped,
            Ok(Outcome::LeftOut { .. }) => &mut self.left_out,
            Ok(Outcome::Global(_)) => &mut self.global,
            Ok(Outcome::NotCarried { .. }) => &mut self.not_carried,
            Err(_) => &mut self.refused,
        };
        *count += 1;
    }
}
