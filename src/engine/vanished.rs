//! Keys that the target lost, as the flow that owns them sees it (wire 4.4, 6.34): from the answer that says so to the value that
//! is written again.
//!
//! In: answers to renewals, repairs that are asked for, values fetched from the source. Out: names to be fetched and to be kept in
//! the checkpoint, and each value in its place among the records ([`doubt`](super::doubt) says where). Names are the source's,
//! but for those in answers. Invariant: a name goes from the checkpoint with the value, on one server in the same transaction, in a
//! cluster when it is there (`router::found`).

use super::batch::{NO_SUCH_KEY, UNHEARD};
use super::doubt::Settled;
use super::flow::Flow;
use super::handle::FlowHandler;
use super::lane::Lane;
use super::lost;
use super::messages::{Lost, Wanted, WorkerEvent};
use super::outlet::Outlet;
use super::router::{ClusterWriter, WriteSettings};
use super::settings::MigrateSettings;
use super::writer::{CHECKPOINT_DB, Source, Writer};
use crate::convert::journal::{self, Doubt, NoteKind, Outcome, payload_class};
use crate::convert::{Class, CommandMeta, Out};
use crate::dragonfly::journal::Command;
use crate::ids::{DbIndex, Lsn, Slot};
use crate::redis::resp;
use crate::uring::{Slab, clock};
use bytes::Bytes;
use smallvec::SmallVec;
use tokio::sync::mpsc::UnboundedSender;

/// Names of keys that could not be fetched again stay in the checkpoint for the next process, so many of a flow.
const REMEMBERED_MAX: u64 = 1024;

/// The answer to the last command made of this record that says that the target lacks the key, or a field, of which the
/// source had it (wire 4.4).
fn lost_answer(command: &Command<'_>) -> Option<i64> {
    let name = command.name();
    let is = |text: &str| name.eq_ignore_ascii_case(text.as_bytes());
    match name.len() {
        5 if is("GETEX") => Some(0),
        6 if is("RENAME") => Some(NO_SUCH_KEY),
        6 if is("HGETEX") => Some(-2),
        7 if is("PERSIST") => Some(0),
        7 if is("HEXPIRE") => Some(-2),
        8 if is("RENAMENX") => Some(NO_SUCH_KEY),
        9 if is("PEXPIREAT") => Some(0),
        // With a condition 0 may mean that it does not hold.
        6..=8 if is("EXPIRE") || is("PEXPIRE") || is("EXPIREAT") => (command.args().count() == 3).then_some(0),
        11 if is("FIELDEXPIRE") => Some(-2),
        _ => None,
    }
}

impl Flow {
    /// The target lost a key of the source's database `db`, or may have, by its name at the target; `None` if that is too long to
    /// be told. `lost_if`: the answer that said so. Returns it if it is to be fetched.
    pub(super) fn lost_at_target(
        &mut self,
        db: DbIndex,
        key: Option<Vec<u8>>,
        lost_if: i64,
        events: &UnboundedSender<WorkerEvent>,
    ) -> Option<Lost> {
        let scope = self.handler.scope();
        if scope.filters_types() && lost_if != UNHEARD {
            // Of a type that is left out it was never there.
            return None;
        }
        let name = key.as_deref().map(|key| scope.source_of(db, key));
        match name {
            Some(Some(name)) => self.lost(db, name, events),
            Some(None) => {
                self.handler.give_up(db, &key.unwrap_or_default(), "several keys of the source may have this name");
                None
            }
            None => {
                self.handler.give_up(db, b"", "its name is too long");
                None
            }
        }
    }

    /// The same by its name at the source.
    pub(super) fn lost(&mut self, db: DbIndex, key: Vec<u8>, events: &UnboundedSender<WorkerEvent>) -> Option<Lost> {
        if !self.handler.unclear.fetches {
            // Only what a RENAME makes is watched in `migrate`.
            self.handler.translator.notes().add(db, &key, "RENAME", NoteKind::Doubtful(Doubt::Renamed));
            return None;
        }
        match self.handler.doubts.lost(db, &key) {
            Ok(Some(question)) => {
                let lost = Lost { flow: self.id, db, key };
                let _ = events.send(WorkerEvent::Lost(Wanted { lost: lost.clone(), question }));
                (self.handler.counts.not_fetched < REMEMBERED_MAX).then_some(lost)
            }
            Ok(None) => None,
            Err(why) => {
                self.handler.give_up(db, &key, &why);
                None
            }
        }
    }

    /// Writes what was fetched again, where its place in the flow has come.
    pub(super) fn settle_doubts(
        &mut self,
        slab: &mut Slab,
        outlet: &mut Outlet<'_>,
        settings: &MigrateSettings,
        now_ms: i64,
        events: &UnboundedSender<WorkerEvent>,
    ) {
        // In front of a global command that was read but not executed, for the position goes with what is written.
        let Some(next_lsn) = self.given_lsn() else { return };
        while outlet.has_room(slab, settings.window_bytes) {
            let (db, key, fetched) = match self.handler.doubts.settle(next_lsn) {
                None => return,
                Some(Settled::Write { db, key, fetched }) => (db, key, fetched),
                Some(Settled::Again { db, key, question }) => {
                    let lost = Lost { flow: self.id, db, key: key.into_vec() };
                    let _ = events.send(WorkerEvent::Lost(Wanted { lost, question }));
                    continue;
                }
                // Its name stays in the checkpoint: the next process tries again.
                Some(Settled::GivenUp { db, key, why }) => {
                    self.handler.give_up(db, &key, &why);
                    continue;
                }
            };
            let lost = Lost { flow: self.id, db, key: key.to_vec() };
            let payload = fetched.payload.map(Bytes::from);
            let source = payload.clone().map_or(Source::None, Source::Heap);
            let lane = match outlet {
                Outlet::One(lane) => &mut **lane,
                Outlet::Cluster { lanes, router } => {
                    let write = WriteSettings {
                        borrow_bytes_min: settings.borrow_bytes_min,
                        batch_bytes: settings.batch_bytes,
                        read_ns: self.read_ns,
                    };
                    let place = (self.id, Some(next_lsn));
                    let mut writer = ClusterWriter::new(router, lanes, slab, &source, place, write).between_records(db);
                    self.handler.put_back(db, &key, payload.as_deref(), fetched.expire_at_ms, now_ms, &mut writer);
                    writer.record_done();
                    router.found_again(&lost, clock::monotonic_ns());
                    continue;
                }
            };
            let field = lost::lost_field(&lost);
            let Lane { encoder, guard, closed, spare_segments, .. } = &mut *lane;
            let forget = resp::command(&[b"HDEL", guard.checkpoint.as_bytes(), &field]);
            let mut writer = Writer {
                encoder,
                slab: &mut *slab,
                guard: Some(guard),
                source: &source,
                borrow_bytes_min: settings.borrow_bytes_min,
                batch_bytes: settings.batch_bytes,
                in_record: true,
                closed,
                spare_segments,
                read_ns: self.read_ns,
            };
            self.handler.put_back(db, &key, payload.as_deref(), fetched.expire_at_ms, now_ms, &mut writer);
            writer.begin(CommandMeta { slot: Slot(0), db: CHECKPOINT_DB, class: Class::Guarded, all_nodes: false });
            writer.put(&forget);
            writer.end();
            writer.record_done(self.id, next_lsn);
            lane.queue_closed();
        }
    }
}

impl FlowHandler {
    /// The key, by its name at the source, that the target lacks if the last command made of this record is answered so.
    pub fn watched<'a>(&self, command: &Command<'a>) -> Option<(&'a [u8], i64)> {
        let lost_if = lost_answer(command)?;
        let key = command.args().nth(if lost_if == NO_SUCH_KEY { 2 } else { 1 })?;
        // A key that is renamed out of the scope is deleted.
        self.scope().admits(command.db, key, None).is_ok().then_some((key, lost_if))
    }

    /// Whether the record gives a key in scope another name, where it must be known if the target lacks it.
    pub(super) fn renames(&self, db: DbIndex, args: &[&[u8]]) -> bool {
        let [name, _, to] = args else { return false };
        let is = |text: &str| name.eq_ignore_ascii_case(text.as_bytes());
        (is("RENAME") || is("RENAMENX")) && self.scope().admits(db, to, None).is_ok()
    }

    /// A record that names keys which the target lost.
    pub fn touch(&mut self, command: &Command<'_>, lsn: Lsn) {
        let args: SmallVec<[&[u8]; 16]> = command.args().collect();
        journal::keys_of(&args).for_each(|key| self.doubts.touched(command.db, key, lsn));
    }

    /// Writes a key, by its name at the source, as the source has it. `payload`: as DUMP gives it; None: it has no such key.
    pub fn put_back(
        &mut self,
        db: DbIndex,
        key: &[u8],
        payload: Option<&[u8]>,
        expire_at_ms: Option<i64>,
        now_ms: i64,
        out: &mut impl Out,
    ) {
        self.suspects.settled(db, key);
        let (target_db, name) = match self.scope().at_target(db, key) {
            Ok(place) => place,
            Err(error) => return self.cannot_put_back(db, key, &error.to_string()),
        };
        // What is left out by its type is not there, whatever was there before.
        let class = payload.and_then(payload_class);
        let payload = payload.filter(|_| class.is_none_or(|class| self.scope().admits(db, key, Some(class)).is_ok()));
        let at = expire_at_ms.unwrap_or(0).to_string();
        let args: SmallVec<[&[u8]; 6]> = match payload {
            Some(payload) => {
                SmallVec::from_slice(&[&b"RESTORE"[..], &name, at.as_bytes(), payload, b"REPLACE", b"ABSTTL"])
            }
            None => SmallVec::from_slice(&[&b"DEL"[..], &name]),
        };
        self.held.record(target_db, &args);
        let outcome = self.translator.command(target_db, 0, &args, now_ms, &mut self.restorer, out);
        self.note_held(target_db, &args);
        match outcome {
            Ok(Outcome::Written { .. }) => self.counts.fetched_again += 1,
            // It was never there, and is listed as such.
            Ok(_) => self.doubts.leave_out(db, key),
            Err(error) => self.cannot_put_back(db, key, &error.to_string()),
        }
    }

    fn cannot_put_back(&mut self, db: DbIndex, key: &[u8], why: &str) {
        self.doubts.leave_out(db, key);
        self.give_up(db, key, why);
    }

    /// A lost key cannot be had again: the report lists it.
    pub fn give_up(&mut self, db: DbIndex, key: &[u8], why: &str) {
        tracing::warn!(flow = %self.flow, %db, key = %key.escape_ascii(), why, "a key that the target lost is not fetched again");
        self.counts.not_fetched += 1;
        self.translator.notes().add(db, key, "", NoteKind::Doubtful(Doubt::Vanished));
    }
}
