//! What becomes of one flow's events: filters before the conversion, and the conversion itself.
//!
//! In: events and journal records of one flow. Out: commands through a `Writer`, and what must be known at the end
//! (suspects, strays, skipped keys). Invariants: a key that this flow does not own is dropped only when the source's rule
//! is known (wire 1.1); a key that the target held before and that is to be kept is never written; the order of the flow
//! is the order of the commands.

use super::doubt::Doubts;
use super::error::EngineError;
use super::global::is_elsewhere;
use super::returned::Returned;
use super::rows;
use super::scoped::Names;
use super::unclear::Unclear;
use crate::convert::hold::{Due, HORIZON_MS_MIN, Held, hold_again, is_lagging};
use crate::convert::journal::{self, GlobalCommand, JournalTranslator, NotCarriedKind, Outcome, Suspects};
use crate::convert::names::Name;
use crate::convert::scope::Scoped;
use crate::convert::{Class, CommandMeta, Converter, Out, Plan, Scope, is_own};
use crate::dragonfly::journal::{Command, JournalDecoder, JournalEvent};
use crate::dragonfly::owner::{OwnerRule, Verdict};
use crate::dragonfly::{Event, KeyMeta, ObjectId, ObjectType, Text, value};
use crate::ids::{DbIndex, FlowId};
use crate::redis::slot::slot;
use crate::report::document::{Filtered, NotCarried};
use smallvec::SmallVec;
use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// Keys that the target held before the run and that `--on-existing skip` leaves as they are, as 128-bit hashes.
pub struct Existing {
    hashes: HashSet<u128>,
    seeds: [RandomState; 2],
}

impl Existing {
    pub fn new() -> Self {
        Self { hashes: HashSet::new(), seeds: [RandomState::new(), RandomState::new()] }
    }

    pub fn insert(&mut self, db: DbIndex, key: &[u8]) {
        let hash = self.hash(db, key);
        self.hashes.insert(hash);
    }

    pub fn contains(&self, db: DbIndex, key: &[u8]) -> bool {
        self.hashes.contains(&self.hash(db, key))
    }

    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    fn hash(&self, db: DbIndex, key: &[u8]) -> u128 {
        let [low, high] = &self.seeds;
        u128::from(low.hash_one((db, key))) | (u128::from(high.hash_one((db, key))) << 64)
    }
}

/// Keys of each flow whose owner is looked at unconditionally, to learn the source's rule.
const OBSERVED_KEYS: u32 = 4096;

/// Memory that the suspects of one flow may take.
const SUSPECTS_BYTES_MAX: usize = 64 << 20;

/// Memory for the keys of journal records that the report lists, until they are taken (once a second).
const NOTES_BYTES_MAX: usize = 16 << 20;

/// Memory for the names of one flow's held expiries, and of all flows.
const HELD_BYTES_MAX: usize = 8 << 20;
const HELD_BYTES_MAX_ALL: usize = 32 << 20;
/// A name is near if its expiry was within the horizon so long ago.
const NEAR_SLACK_MS: i64 = 1_000;

/// Memory for the names of what one flow holds, and for those of what it has given back for a cutover.
fn names_bytes_max(owner: &OwnerRule) -> usize {
    HELD_BYTES_MAX.min(HELD_BYTES_MAX_ALL / owner.flows().max(1) as usize)
}

/// A key by its database and name at the source.
pub type SourceKey = (DbIndex, Vec<u8>);

/// Counts that belong to no type of value.
#[derive(Clone, Debug, Default)]
pub struct FlowCounts {
    pub strays_dropped: u64,
    /// HyperLogLog keys whose owner could not be told.
    pub owner_unknown: u64,
    pub existing_skipped: u64,
    pub journal_records: u64,
    /// Keys whose held expiry had passed when it was given back: the target removes them.
    pub expired_at_release: u64,
    /// An expiry that had been sent passed before the flow was complete.
    pub expiry_passed: bool,
    pub filtered: Filtered,
    /// Keys that the target had lost, and that were written again.
    pub fetched_again: u64,
    /// Those that could not be had.
    pub not_fetched: u64,
}

pub struct FlowHandler {
    pub flow: FlowId,
    pub converter: Converter,
    /// Converts the values of RESTORE records; counted apart from the snapshot's keys.
    pub(super) restorer: Converter,
    pub translator: JournalTranslator,
    pub suspects: Suspects,
    pub counts: FlowCounts,
    /// Expiries that the target is not told while the flow lags.
    pub held: Held,
    /// Keys that the target lost.
    pub doubts: Doubts,
    /// What records do not say.
    pub(super) unclear: Unclear,
    /// Held expiries that are being given back.
    releasing: Vec<Due>,
    /// What was given back for a cutover.
    returned: Returned,
    /// The target has PEXPIRETIME.
    tells_expiry: bool,
    owner: Arc<OwnerRule>,
    pub(super) existing: Arc<Existing>,
    observe_left: u32,
    /// A record of a blob that is being carried out apart, with the source's database, and those behind it in the blob.
    pub apart: Option<(DbIndex, Vec<Vec<u8>>)>,
    deferred: VecDeque<Deferred>,
    /// Split objects whose key is not to be written.
    pub(super) dropped_objects: SmallVec<[ObjectId; 4]>,
    /// Memory for names that are other ones at the target.
    pub(super) names: Names,
    /// It was said that keys with the tool's own names are left out.
    pub(super) told_of_own: bool,
}

impl FlowHandler {
    pub fn new(flow: FlowId, plan: Arc<Plan>, owner: Arc<OwnerRule>, existing: Arc<Existing>) -> Self {
        let held = if !plan.capabilities.holds_expiries() {
            Held::nothing(plan.capabilities.import_mode)
        } else {
            Held::new(names_bytes_max(&owner))
        };
        let mut this = Self {
            flow,
            converter: Converter::new(flow, plan.clone()),
            restorer: Converter::new(flow, plan.clone()),
            translator: JournalTranslator::new(
                flow,
                Arc::new(plan.capabilities.clone()),
                Arc::new(plan.policy.clone()),
                NOTES_BYTES_MAX,
            ),
            suspects: Suspects::new(SUSPECTS_BYTES_MAX, plan.source),
            counts: FlowCounts::default(),
            held,
            doubts: Doubts::default(),
            unclear: Unclear::new(&plan),
            releasing: Vec::new(),
            returned: Returned::new(names_bytes_max(&owner)),
            tells_expiry: plan.capabilities.has_command("PEXPIRETIME"),
            owner,
            existing,
            observe_left: OBSERVED_KEYS,
            apart: None,
            deferred: VecDeque::new(),
            dropped_objects: SmallVec::new(),
            names: Names::default(),
            told_of_own: false,
        };
        this.translator.set_source(plan.source);
        this.set_near();
        this
    }

    /// A new turn: how far behind the flow is decides which expiries are held back (see [`Held::turn`]), and how far behind
    /// any flow is which are given back. `easing`: a cutover has them given back.
    pub fn turn(
        &mut self,
        now_ms: i64,
        applied_until_ms: i64,
        applied_until_ms_min: i64,
        horizon_ms: i64,
        easing: bool,
    ) {
        self.returned.remember(easing);
        self.unclear.lagging = is_lagging(now_ms, applied_until_ms);
        self.held.turn(now_ms, applied_until_ms, horizon_ms);
        self.set_near();
        if self.releasing.is_empty() {
            self.releasing = self.held.take_due(now_ms, applied_until_ms_min);
        }
    }

    /// Whether nothing is held that expires later than the least horizon.
    pub fn holds_only_near(&self, now_ms: i64) -> bool {
        self.releasing.is_empty() && self.held.is_all_before(now_ms + HORIZON_MS_MIN + NEAR_SLACK_MS)
    }

    /// Names of expiries that are held.
    pub fn held_names_count(&self) -> usize {
        self.held.names_count() + self.releasing.len()
    }

    fn set_near(&mut self) {
        let near = self.held.near();
        self.converter.set_near(near);
        self.restorer.set_near(near);
        self.translator.set_near(near);
    }

    /// What was not carried over since the last call.
    pub fn take_not_carried(&mut self) -> Vec<NotCarried> {
        let mut items: Vec<NotCarried> = Vec::new();
        for converter in [&mut self.converter, &mut self.restorer] {
            items.extend(converter.tally_mut().take_not_carried().into_iter().map(rows::snapshot_item));
        }
        items.extend(self.translator.notes().take().into_iter().map(rows::journal_note));
        items
    }

    /// An object of the snapshot, or a part of one, or an AUX field.
    pub fn snapshot(&mut self, event: &Event<'_>, now_ms: i64, out: &mut impl Out) -> Result<(), EngineError> {
        match event {
            Event::Whole { meta, .. } | Event::Begin { meta, .. }
                if !self.scope().is_plain(meta.db) || is_own(meta.key) =>
            {
                return self.snapshot_scoped(event, now_ms, out);
            }
            Event::Whole { meta, body } if !self.admits(meta, Some(body)) => return Ok(()),
            Event::Whole { meta, body } if self.concerns_expiry(meta) => {
                let meta = self.hold(meta);
                let outcome = self.converter.event(&Event::Whole { meta, body }, now_ms, out);
                self.held.unnamed_fields(self.converter.take_shifted_fields());
                return outcome.map_err(EngineError::from);
            }
            Event::Begin { object, meta, .. } => {
                self.dropped_objects.retain(|id| id != object);
                if !self.admits(meta, None) {
                    self.dropped_objects.push(*object);
                    return Ok(());
                }
                if self.concerns_expiry(meta) {
                    let Event::Begin { object, meta, count } = *event else { return Ok(()) };
                    let meta = self.hold(&meta);
                    let event = Event::Begin { object, meta, count };
                    return self.converter.event(&event, now_ms, out).map_err(EngineError::from);
                }
            }
            Event::Run { object, .. } if self.dropped_objects.contains(object) => return Ok(()),
            Event::End { object } if self.dropped_objects.contains(object) => {
                self.dropped_objects.retain(|id| id != object);
                return Ok(());
            }
            _ => {}
        }
        let outcome = self.converter.event(event, now_ms, out).map_err(EngineError::from);
        self.held.unnamed_fields(self.converter.take_shifted_fields());
        outcome
    }

    pub(super) fn scope(&self) -> &Scope {
        self.converter.plan().scope()
    }

    pub(super) fn concerns_expiry(&self, meta: &KeyMeta<'_>) -> bool {
        meta.expire_at_ms.is_some()
    }

    /// The key's attributes as the target is told them for now.
    pub(super) fn hold<'a>(&mut self, meta: &KeyMeta<'a>) -> KeyMeta<'a> {
        let expire_at_ms = meta.expire_at_ms.map(|at_ms| self.held.snapshot_key(meta.db, meta.key, at_ms));
        KeyMeta { expire_at_ms, ..*meta }
    }

    /// The full sync of the flow is over.
    pub fn snapshot_ended(&mut self, now_ms: i64) {
        self.counts.expiry_passed = self.held.sent_expiry_ms_min.is_some_and(|at| at <= now_ms);
    }

    /// Nothing follows: all held expiries are given back, by [`FlowHandler::release`].
    pub fn release_all(&mut self, now_ms: i64) {
        self.releasing.extend(self.held.take_all(now_ms));
    }

    pub fn is_releasing(&self) -> bool {
        !self.releasing.is_empty()
    }

    /// Gives one held expiry back.
    pub fn release(&mut self, now_ms: i64, out: &mut impl Out) {
        let Some(due) = self.releasing.pop() else { return };
        if due.name.at_ms <= now_ms {
            self.counts.expired_at_release += 1;
        }
        out.begin(CommandMeta { slot: slot(&due.name.key), db: due.name.db, class: Class::Blind, all_nodes: false });
        out.put_owned(due.command(self.tells_expiry).into());
        out.end();
        if due.may_be_renewed() {
            self.returned.add(due.name);
        }
    }

    /// The cutover that had held expiries given back is rolled back: they are held again, by [`FlowHandler::next_again`].
    pub fn begin_holding_again(&mut self) {
        self.returned.begin();
    }

    pub fn holds_again(&self) -> bool {
        self.returned.is_begun()
    }

    /// The next one to be held again; with its database and name at the source, if the answer to that tells whether the target has
    /// lost a key of this flow.
    pub fn next_again(&mut self) -> Option<(Name, Option<SourceKey>)> {
        let name = self.returned.next()?;
        let place = self.scope().source_place(name.db, &name.key);
        // A name that was found at the target may be another flow's: what is written again must be in order with its records.
        let own = place.filter(|(_, key)| self.owner.owner(key) == Some(self.flow));
        Some((name, own))
    }

    /// Holds one again.
    pub fn hold_again(&mut self, name: &Name, out: &mut impl Out) {
        out.begin(CommandMeta { slot: slot(&name.key), db: name.db, class: Class::Blind, all_nodes: false });
        out.put_owned(hold_again(name, self.tells_expiry).into());
        out.end();
        self.held.found(name);
    }

    /// Whether the object is to be written. Learns the owner rule on the way.
    fn admits(&mut self, meta: &KeyMeta<'_>, body: Option<&[u8]>) -> bool {
        self.suspects.settled(meta.db, meta.key);
        self.owns(meta, body) && self.admits_existing(meta.db, meta.key)
    }

    /// Whether the flow owns the object, as far as its rule is known. The key's name is the source's.
    pub(super) fn owns(&mut self, meta: &KeyMeta<'_>, body: Option<&[u8]>) -> bool {
        let is_hyll = meta.object_type == ObjectType::String && body.is_some_and(|body| is_hyll(meta, body));
        if self.observe_left > 0 || memchr::memchr(b'{', meta.key).is_some() {
            self.observe_left = self.observe_left.saturating_sub(1);
            self.owner.observe(self.flow, meta.key, is_hyll);
        }
        !(is_hyll && self.is_stray(meta.key))
    }

    fn is_stray(&mut self, key: &[u8]) -> bool {
        match self.owner.verdict(self.flow, key) {
            Verdict::Own => false,
            Verdict::Stray => {
                self.counts.strays_dropped += 1;
                true
            }
            Verdict::Unknown => {
                self.counts.owner_unknown += 1;
                tracing::warn!(flow = %self.flow, key = %key.escape_ascii(),
                    "the source's rule for the owner of a key is not known: this HyperLogLog may be a stale copy");
                false
            }
        }
    }

    pub(super) fn admits_existing(&mut self, db: DbIndex, key: &[u8]) -> bool {
        if !self.existing.is_empty() && self.existing.contains(db, key) {
            self.counts.existing_skipped += 1;
            return false;
        }
        true
    }

    /// The records of one journal blob of the full sync.
    pub fn journal_blob(
        &mut self,
        decoder: &mut JournalDecoder,
        blob: &[u8],
        now_ms: i64,
        out: &mut impl Out,
    ) -> Result<(), EngineError> {
        let mut outcome = Ok(());
        decoder.decode_blob(blob, |event| {
            if let JournalEvent::Command(command) = event
                && outcome.is_ok()
            {
                if self.apart.is_some() || !self.deferred.is_empty() {
                    let args = command.args().map(<[u8]>::to_vec).collect();
                    self.deferred.push_back(Deferred { db: command.db, txid: command.txid, args });
                } else {
                    let args: journal::Args<'_> = command.args().collect();
                    outcome = self.blob_command(command.db, command.txid, &args, now_ms, out);
                }
            }
            Ok(())
        })?;
        outcome
    }

    /// One record of a blob.
    fn blob_command(
        &mut self,
        db: DbIndex,
        txid: u64,
        args: &[&[u8]],
        now_ms: i64,
        out: &mut impl Out,
    ) -> Result<(), EngineError> {
        let watches = self.renames(db, args);
        if watches {
            out.watch_rename(Some((self.flow, db)));
        }
        let applied = self.journal_record(db, txid, args, now_ms, false, out);
        if watches {
            out.watch_rename(None);
        }
        match applied? {
            // Nothing of it is carried.
            Applied::Global(command) if is_elsewhere(&command, self.scope()) => Ok(()),
            Applied::Global(_) => Err(EngineError::SyncVoided {
                flow: self.flow.0,
                command: String::from_utf8_lossy(args.first().copied().unwrap_or_default()).into_owned(),
            }),
            Applied::Apart(args) => {
                self.apart = Some((db, args));
                Ok(())
            }
            Applied::Done => Ok(()),
        }
    }

    /// Records of a blob wait for one before them that is carried out apart.
    pub fn has_deferred(&self) -> bool {
        !self.deferred.is_empty()
    }

    /// Goes on with a blob behind a record that was carried out apart.
    pub fn next_deferred(&mut self, now_ms: i64, out: &mut impl Out) -> Result<(), EngineError> {
        let Some(Deferred { db, txid, args }) = self.deferred.pop_front() else { return Ok(()) };
        let args: journal::Args<'_> = args.iter().map(Vec::as_slice).collect();
        self.blob_command(db, txid, &args, now_ms, out)
    }

    /// One journal record. `stable`: after the full sync, where every record settles the keys it names.
    pub fn journal_command(
        &mut self,
        command: &Command<'_>,
        now_ms: i64,
        stable: bool,
        out: &mut impl Out,
    ) -> Result<Applied, EngineError> {
        let args: journal::Args<'_> = command.args().collect();
        self.journal_record(command.db, command.txid, &args, now_ms, stable, out)
    }

    fn journal_record(
        &mut self,
        db: DbIndex,
        txid: u64,
        args: &[&[u8]],
        now_ms: i64,
        stable: bool,
        out: &mut impl Out,
    ) -> Result<Applied, EngineError> {
        self.counts.journal_records += 1;
        if let Some(key) = journal::stray_candidate(args)
            && self.is_stray(key)
        {
            return Ok(Applied::Done);
        }
        let persisted = [&b"PERSIST"[..], args.get(1).copied().unwrap_or_default()];
        let args = if self.unclear.is_persisted(args, now_ms) { &persisted } else { args };
        self.unclear.db = db;
        // A MOVE concerns two databases. And not only a key may begin so; which it is shows there.
        let moves = matches!(args, [name, _, _] if name.eq_ignore_ascii_case(b"MOVE"));
        if moves || !self.scope().is_plain(db) || args.iter().skip(1).any(|arg| is_own(arg)) {
            return self.journal_scoped(db, txid, args, now_ms, stable, out);
        }
        if self.only_reads(db, args, now_ms, stable)? {
            return Ok(Applied::Done);
        }
        self.note_suspects(db, args, now_ms, stable, out)?;
        self.apply_record(db, txid, args, now_ms, stable, out)
    }

    /// Applies a record whose names are the target's.
    pub(super) fn apply_record(
        &mut self,
        db: DbIndex,
        txid: u64,
        args: &[&[u8]],
        now_ms: i64,
        stable: bool,
        out: &mut impl Out,
    ) -> Result<Applied, EngineError> {
        let records = match self.beside_existing(db, args)? {
            Scoped::Same => return self.apply_admitted(db, txid, args, now_ms, stable, out),
            Scoped::Out(_) => return Ok(Applied::Done),
            Scoped::Instead { records, .. } => records,
        };
        let mut applied = Applied::Done;
        for record in &records {
            applied = self.apply_admitted(db, txid, record, now_ms, stable, out)?;
        }
        Ok(applied)
    }

    fn apply_admitted(
        &mut self,
        db: DbIndex,
        txid: u64,
        args: &[&[u8]],
        now_ms: i64,
        stable: bool,
        out: &mut impl Out,
    ) -> Result<Applied, EngineError> {
        self.held.record(db, args);
        let Self { translator, restorer, .. } = self;
        let outcome = translator.command(db, txid, args, now_ms, restorer, out).map_err(EngineError::from)?;
        self.note_held(db, args);
        let written = matches!(outcome, Outcome::Written { .. } | Outcome::NotCarried { .. });
        self.note_unclear(db, args, now_ms, stable, written);
        match outcome {
            Outcome::Global(global) => Ok(Applied::Global(global)),
            Outcome::NotCarried { kind: NotCarriedKind::CrossSlot } if db == DbIndex(0) => {
                Ok(Applied::Apart(args.iter().map(|arg| arg.to_vec()).collect()))
            }
            Outcome::NotCarried { kind } => {
                let why = match kind {
                    NotCarriedKind::MoveInCluster => {
                        let to = args.get(2).copied().unwrap_or_default().escape_ascii();
                        format!("moves it to database {to}, and a cluster has only database 0")
                    }
                    NotCarriedKind::CrossSlot => "has keys in several slots of another database".into(),
                };
                Err(EngineError::Refused(format!(
                    "the recorded command {} on the key \"{}\" {why}",
                    args.first().copied().unwrap_or_default().escape_ascii(),
                    args.get(1).copied().unwrap_or_default().escape_ascii()
                )))
            }
            _ => Ok(Applied::Done),
        }
    }
}

impl FlowHandler {
    /// Remembers the names of what the record had shifted.
    pub(super) fn note_held(&mut self, db: DbIndex, args: &[&[u8]]) {
        self.held.unnamed_fields(self.restorer.take_shifted_fields());
        let Some(at_ms) = self.translator.take_shifted_ms() else { return };
        let [name, key, more @ ..] = args else { return };
        let of_fields = ["HEXPIRE", "HSETEX", "HGETEX", "FIELDEXPIRE"];
        if !of_fields.iter().any(|of| name.eq_ignore_ascii_case(of.as_bytes())) {
            return self.held.hold(db, key, None, at_ms);
        }
        // Options and values are taken for fields as well: what is no field with a shifted expiry is left alone later.
        more.iter().skip(1).for_each(|field| self.held.hold(db, key, Some(field), at_ms));
    }
}

/// What became of a journal record.
pub enum Applied {
    Done,
    /// Nothing was written: the command concerns all flows.
    Global(GlobalCommand),
    /// Nothing was written: the keys lie in several slots of a cluster, so it is carried out apart.
    Apart(Vec<Vec<u8>>),
}

/// A record that waits for the one before it.
struct Deferred {
    db: DbIndex,
    txid: u64,
    args: Vec<Vec<u8>>,
}

/// Whether a whole string value is a HyperLogLog: it begins with `HYLL`.
fn is_hyll(meta: &KeyMeta<'_>, body: &[u8]) -> bool {
    // Length byte(s) first: a HyperLogLog has at least 16 bytes, so its form is raw or LZF, whose first literal run
    // holds the magic. This is asked of every string, so the raw forms are not taken apart for it.
    let text_at = match body.first() {
        Some(0x00..=0x3f) => 1,
        Some(0x40..=0x7f) => 2,
        Some(0x80) => 5,
        Some(0x81) => 9,
        Some(0xc3) => {
            return matches!(value::string_value(meta, body),
                Ok(Text::Lzf { packed, .. }) if packed.get(1..5) == Some(b"HYLL"));
        }
        _ => return false,
    };
    body.get(text_at..).is_some_and(|text| text.starts_with(b"HYLL"))
}
