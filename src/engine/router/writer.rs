//! One event's access to all lanes of a cluster's worker.
//!
//! In: commands with their slots and classes. Out: their bytes in the open batches of the lanes of their slots, and what the
//! layout of a batch must know of them (`layout`). Invariants: what a marker covers is written nowhere; no batch ends between a
//! guarded command and the rest of its record.

use super::Router;
use crate::convert::{Class, CommandMeta, Out};
use crate::engine::batch::{NO_SUCH_KEY, UNHEARD};
use crate::engine::error::EngineError;
use crate::engine::lane::Lane;
use crate::engine::writer::Source;
use crate::ids::{DbIndex, FlowId, Lsn, Slot};
use crate::uring::Slab;
use bytes::Bytes;
use smallvec::SmallVec;

/// Where a command's bytes go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Aim {
    Lane(usize),
    /// Kept, and copied to every lane at its end.
    All,
    /// Written nowhere: it was applied before, or cannot be sent.
    Nowhere,
}

/// Where `convert` writes in a cluster: one event's access to all lanes.
pub struct ClusterWriter<'a> {
    router: &'a mut Router,
    lanes: &'a mut [Lane],
    slab: &'a mut Slab,
    source: &'a Source,
    flow: FlowId,
    /// LSN behind the record that is written; `None` in the full sync, whose records have none.
    record: Option<Lsn>,
    /// Some slot's marker may cover the record.
    resuming: bool,
    /// The record may have been sent before.
    again: bool,
    borrow_bytes_min: usize,
    batch_bytes: usize,
    read_ns: u64,
    aim: Aim,
    /// Slot and class of the command begun.
    begun: (Slot, Class),
    /// All that is written is one transaction.
    whole: bool,
    /// The answer to the next command is watched: the source's database, and the answer that says that the key is lost.
    watching: Option<(DbIndex, i64)>,
    /// It was applied by an earlier session, which may not have heard the answer.
    unheard: bool,
}

/// The record that is being written. It outlives the writer, which is made anew for each event, so that making one costs little.
#[derive(Default)]
pub(super) struct Open {
    /// Lanes that got a guarded command of it.
    guarded: SmallVec<[usize; 4]>,
    /// Lanes that are to be looked at behind it.
    unclosed: SmallVec<[usize; 4]>,
}

/// What does not change from event to event.
#[derive(Clone, Copy)]
pub struct WriteSettings {
    pub borrow_bytes_min: usize,
    pub batch_bytes: usize,
    pub read_ns: u64,
}

impl WriteSettings {
    /// Nothing can be borrowed.
    pub fn copying(batch_bytes: usize, read_ns: u64) -> Self {
        Self { borrow_bytes_min: usize::MAX, batch_bytes, read_ns }
    }
}

impl<'a> ClusterWriter<'a> {
    #[inline]
    pub fn new(
        router: &'a mut Router,
        lanes: &'a mut [Lane],
        slab: &'a mut Slab,
        source: &'a Source,
        (flow, record): (FlowId, Option<Lsn>),
        settings: WriteSettings,
    ) -> Self {
        let resuming = record.is_some_and(|lsn| router.resumed_to.get(&flow).is_some_and(|to| lsn <= *to));
        let sent_before = router.sent_before.get(flow.0 as usize).copied().unwrap_or_default();
        let again = record.is_some_and(|lsn| lsn <= sent_before);
        if record.is_some() {
            // A record that ended in an error left them as they were.
            router.open.guarded.clear();
            router.open.unclosed.clear();
        }
        let WriteSettings { borrow_bytes_min, batch_bytes, read_ns } = settings;
        Self {
            router,
            lanes,
            slab,
            source,
            flow,
            record,
            resuming,
            again,
            borrow_bytes_min,
            batch_bytes,
            read_ns,
            aim: Aim::Nowhere,
            begun: (Slot(0), Class::Blind),
            whole: false,
            watching: None,
            unheard: false,
        }
    }

    /// For a value that was fetched again, which is written behind everything before the position given, and is no record: its
    /// commands stand in one transaction, and no marker that was found covers them. The position may stand in the marker already,
    /// so where nobody has seen that they were executed the key is in doubt again.
    pub fn between_records(mut self, db: DbIndex) -> Self {
        (self.resuming, self.again, self.whole) = (false, false, true);
        self.watch(db, UNHEARD);
        self
    }

    /// The answer `lost_if` to the command that comes next says that the target lost its key. `db`: at the source.
    pub fn watch(&mut self, db: DbIndex, lost_if: i64) {
        self.watching = Some((db, lost_if));
    }

    /// What was watched was applied by an earlier session, and whether that heard the answer is not known.
    pub fn is_unheard(&self) -> bool {
        self.unheard
    }

    /// The record is complete: a batch may end here.
    pub fn record_done(&mut self) {
        self.router.open.guarded.clear();
        for at in std::mem::take(&mut self.router.open.unclosed) {
            self.close_if_full(at);
        }
    }

    #[inline]
    fn close_if_full(&mut self, at: usize) {
        if let Some(lane) = self.lanes.get_mut(at)
            && lane.encoder.is_full(self.batch_bytes)
        {
            lane.close_cluster(self.slab);
        }
    }

    #[inline]
    fn end_at(&mut self, at: usize) {
        let Some(lane) = self.lanes.get_mut(at) else { return };
        lane.encoder.batch.commands += 1;
        debug_assert!(lane.pieces.is_list() || self.watching.is_none());
        if lane.pieces.is_list() {
            self.list(at);
        } else {
            self.close_if_full(at);
        }
    }

    /// Lists the command that ends here.
    #[inline(never)]
    fn list(&mut self, at: usize) {
        let Some(lane) = self.lanes.get_mut(at) else { return };
        let (slot, class) = self.begun;
        // With what must not be applied twice nothing behind it is executed before it.
        let guarded = class != Class::Blind || self.whole;
        lane.pieces.push(&lane.encoder, Some((self.flow, slot)), self.record, guarded);
        if self.again && class != Class::Guarded {
            lane.pieces.put_in_doubt();
        }
        let answers = |of: &mut (DbIndex, i64)| of.1 != NO_SUCH_KEY || class == Class::Guarded;
        if let Some((db, lost_if)) = self.watching.take_if(answers) {
            lane.pieces.watch(self.flow, db, lost_if);
        }
        if guarded {
            self.router.marked.insert((self.flow, slot));
        }
        if self.record.is_none() {
            return self.close_if_full(at);
        }
        // A marker covers the whole of its record: the rest of it goes into the same transaction.
        let Open { guarded: lanes, unclosed } = &mut self.router.open;
        if guarded && !lanes.contains(&at) {
            lanes.push(at);
        }
        if !lanes.contains(&at) {
            self.close_if_full(at);
        } else if !unclosed.contains(&at) {
            unclosed.push(at);
        }
    }

    #[cold]
    fn refuse_db(&mut self, db: DbIndex) -> Aim {
        self.router.refused = Some(EngineError::Refused(format!(
            "flow {}{}: the source has keys in database {db}, but a cluster has only database 0",
            self.flow,
            self.record.map(|lsn| format!(", LSN {}", lsn.0.saturating_sub(1))).unwrap_or_default()
        )));
        Aim::Nowhere
    }

    #[inline]
    fn aim_at(&mut self, meta: &CommandMeta) -> Aim {
        if meta.all_nodes {
            self.router.scratch.clear();
            return Aim::All;
        }
        if meta.db != DbIndex(0) {
            return self.refuse_db(meta.db);
        }
        if self.resuming && self.was_applied(meta.slot) {
            let heard = self.router.heard_before.get(self.flow.0 as usize).copied().unwrap_or_default();
            self.unheard |= self.watching.is_some() && self.record.is_some_and(|lsn| lsn > heard);
            return Aim::Nowhere;
        }
        Aim::Lane(self.router.lane_of(meta.slot))
    }

    /// The marker that was found in the slot covers the record.
    fn was_applied(&self, slot: Slot) -> bool {
        let applied = self.router.resumed.get(&(self.flow, slot));
        applied.is_some_and(|applied| self.record.is_some_and(|lsn| lsn <= *applied))
    }

    /// Copies the command kept to every lane.
    #[cold]
    fn copy_to_all(&mut self) {
        for at in 0..self.lanes.len() {
            let Some(lane) = self.lanes.get_mut(at).filter(|lane| lane.is_live()) else { continue };
            self.router.touch(at);
            // Nothing behind it is to come before it.
            if lane.pieces.is_guarded() {
                lane.close_cluster(self.slab);
            }
            if lane.encoder.batch.is_empty() {
                lane.encoder.batch.first_read_ns = self.read_ns;
            }
            lane.encoder.copy(self.slab, &self.router.scratch);
            lane.encoder.batch.commands += 1;
            lane.pieces.push(&lane.encoder, None, None, false);
            lane.close_cluster(self.slab);
        }
        self.router.scratch.clear();
    }
}

impl Out for ClusterWriter<'_> {
    #[inline]
    fn begin(&mut self, meta: CommandMeta) {
        self.aim = self.aim_at(&meta);
        let Aim::Lane(at) = self.aim else { return };
        self.begun = (meta.slot, meta.class);
        self.router.touch(at);
        let Some(lane) = self.lanes.get_mut(at) else { return };
        if self.record.is_some() || meta.class != Class::Blind || self.watching.is_some() {
            lane.list(self.slab);
        }
        if lane.encoder.batch.is_empty() {
            lane.encoder.batch.first_read_ns = self.read_ns;
        }
    }

    /// What hardly any command of the full sync needs is asked for once, not in each of the steps.
    #[inline]
    fn whole(&mut self, meta: CommandMeta, len: usize, fill: impl FnOnce(&mut [u8]) -> usize) {
        let listed = self.record.is_some() || meta.class != Class::Blind || self.watching.is_some();
        if !listed && !meta.all_nodes && meta.db == DbIndex(0) {
            let at = self.router.lane_of(meta.slot);
            if let Some(lane) = self.lanes.get_mut(at).filter(|lane| !lane.pieces.is_list()) {
                self.router.touch(at);
                lane.encoder.whole(self.slab, self.read_ns, len, fill);
                if lane.encoder.is_full(self.batch_bytes) {
                    lane.close_cluster(self.slab);
                }
                return;
            }
        }
        self.begin(meta);
        let written = fill(self.space(len));
        self.advance(written);
        self.end();
    }

    #[inline]
    fn space(&mut self, len: usize) -> &mut [u8] {
        match self.aim {
            Aim::Lane(at) if at < self.lanes.len() => self.lanes[at].encoder.space(self.slab, len),
            _ => {
                let from = self.router.scratch.len();
                self.router.scratch_mark = from;
                self.router.scratch.resize(from + len, 0);
                &mut self.router.scratch[from..]
            }
        }
    }

    #[inline]
    fn advance(&mut self, len: usize) {
        match self.aim {
            Aim::Lane(at) if at < self.lanes.len() => self.lanes[at].encoder.advance(self.slab, len),
            // `space` grew it by the length asked for; what goes nowhere takes no room.
            Aim::All => self.router.scratch.truncate(self.router.scratch_mark + len),
            _ => self.router.scratch.clear(),
        }
    }

    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        match self.aim {
            Aim::Lane(at) if at < self.lanes.len() => {
                self.lanes[at].encoder.put(self.slab, self.source, self.borrow_bytes_min, bytes);
            }
            Aim::All => self.router.scratch.extend_from_slice(bytes),
            _ => {}
        }
    }

    fn put_owned(&mut self, bytes: Bytes) {
        match self.aim {
            Aim::Lane(at) if at < self.lanes.len() => {
                self.lanes[at].encoder.put_owned(self.slab, self.borrow_bytes_min, bytes);
            }
            Aim::All => self.router.scratch.extend_from_slice(&bytes),
            _ => {}
        }
    }

    #[inline]
    fn end(&mut self) {
        match self.aim {
            Aim::Nowhere => self.router.scratch.clear(),
            Aim::All => self.copy_to_all(),
            Aim::Lane(at) => self.end_at(at),
        }
        self.aim = Aim::Nowhere;
    }

    fn watch_rename(&mut self, of: Option<(FlowId, DbIndex)>) {
        self.watching = of.map(|(_, db)| (db, NO_SUCH_KEY));
    }
}
