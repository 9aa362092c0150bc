//! A worker's view of a cluster: which lane has which slot, the markers of guarded commands, the positions confirmed.
//!
//! In: what the control plane found out, commands with their slots. Out: the same commands on the lanes of their slots.
//! Invariants: between two changes of the slot map, which happen only while nothing is under way, a slot has one lane, so a
//! key's commands keep their order. A guarded command stands in a MULTI with all that its flow does in its slot in the same
//! batch, and `SET <marker of this flow in this slot> <position>` (`layout`); no batch ends between a guarded command and the
//! rest of its record. A flow's position is written to the checkpoint only when everything up to it was executed on all
//! lanes.
//!
//! What a target can hold when the tool is killed, at any instant, also while a slot is MIGRATING at one node and IMPORTING at
//! another: of each flow and slot, all records up to the marker (each command of them was executed, or stood before the
//! marker in its transaction), and behind it only commands that may be applied again, for the transaction behind them was
//! not sent, or not executed. So the next start skips exactly what the marker covers, and applies the rest in its order.

use super::error::EngineError;
use super::lane::Lane;
use super::layout::Marks;
use super::own::marker_key;
use super::writer::{LSN_FIELD_PREFIX, Source};
use crate::convert::{Class, CommandMeta, Out};
use crate::ids::{DbIndex, FlowId, Lsn, Slot};
use crate::redis::slot;
use crate::uring::Slab;
use bytes::Bytes;
use routes::Routes;
use smallvec::SmallVec;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

mod routes;

/// Cuts that wait for their acknowledgements at the most; while so many wait, no new one is made.
const CUTS_MAX: usize = 64;
/// Least time between two positions written, unless nothing is under way.
const POSITIONS_EVERY_NS: u64 = 10_000_000;

/// Markers found at the target when the job went on: by flow and slot, the LSN up to which every record was applied.
pub type Resumed = HashMap<(FlowId, Slot), Lsn>;

/// What the control plane gives a worker of a cluster.
#[derive(Clone)]
pub struct RouterStart {
    /// Index of the lane of each slot.
    pub lanes_by_slot: Box<[u16]>,
    /// What positions in the journal are positions of: the source process.
    pub journal_tag: String,
    /// What numbers of the full sync are numbers of: this process.
    pub snapshot_tag: String,
    /// What tells the job's own keys from those of others at a shared target (`own::tag`).
    pub job_tag: String,
    pub checkpoint_key: String,
    pub resumed: Arc<Resumed>,
    /// By flow: what stands before this LSN may have been sent by an earlier session.
    pub sent_before: Arc<[Lsn]>,
}

/// The tag and the position that a marker holds.
pub fn parse_marker(value: &[u8]) -> Option<(&str, u64)> {
    let (tag, number) = std::str::from_utf8(value).ok()?.rsplit_once(':')?;
    Some((tag, number.parse().ok()?))
}

/// Whether a group that sets `wanted` was applied where its marker holds `found`.
pub fn says_applied(found: &[u8], wanted: &[u8]) -> bool {
    match (parse_marker(found), parse_marker(wanted)) {
        (Some((found_tag, found)), Some((tag, wanted))) => found_tag == tag && found >= wanted,
        _ => false,
    }
}

/// Everything encoded at one moment, and how far each flow was then.
struct Cut {
    /// By lane: batches that must be acknowledged.
    batches: Vec<u64>,
    positions: Vec<(FlowId, Lsn)>,
}

/// Lanes that were written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touched {
    Nothing,
    One(usize),
    Several,
}

pub struct Router {
    routes: Routes,
    pub marks: Rc<Marks>,
    checkpoint_key: String,
    resumed: Arc<Resumed>,
    sent_before: Arc<[Lsn]>,
    /// By flow: the last LSN of `resumed`.
    resumed_to: BTreeMap<FlowId, Lsn>,
    scratch: Vec<u8>,
    /// Where the last `space` in it began.
    scratch_mark: usize,
    /// Why the command begun last cannot be sent.
    refused: Option<EngineError>,
    touched: Touched,
    /// Markers that were written.
    pub marked: HashSet<(FlowId, Slot)>,
    cuts: VecDeque<Cut>,
    /// Positions of the newest cut, and of the newest confirmed one.
    cut_last: Vec<(FlowId, Lsn)>,
    confirmed: Vec<(FlowId, Lsn)>,
    written: Vec<(FlowId, Lsn)>,
    written_ns: u64,
}

impl Router {
    /// Keys of the markers that were written.
    pub fn marked_keys(&self) -> impl Iterator<Item = Vec<u8>> {
        self.marked.iter().map(|(flow, slot)| marker_key(&self.marks.job_tag, *flow, *slot))
    }

    pub fn new(start: RouterStart) -> Self {
        let mut resumed_to = BTreeMap::new();
        for ((flow, _), lsn) in start.resumed.iter() {
            let last = resumed_to.entry(*flow).or_insert(*lsn);
            *last = (*last).max(*lsn);
        }
        Self {
            routes: Routes::new(start.lanes_by_slot),
            marks: Marks::new(start.journal_tag, start.snapshot_tag, start.job_tag),
            checkpoint_key: start.checkpoint_key,
            marked: start.resumed.keys().copied().collect(),
            resumed: start.resumed,
            sent_before: start.sent_before,
            resumed_to,
            scratch: Vec::new(),
            scratch_mark: 0,
            refused: None,
            touched: Touched::Nothing,
            cuts: VecDeque::new(),
            cut_last: Vec::new(),
            confirmed: Vec::new(),
            written: Vec::new(),
            written_ns: 0,
        }
    }

    #[inline]
    pub fn lane_of(&self, slot: Slot) -> usize {
        self.routes.lane_of(slot)
    }

    /// The slots have these lanes.
    pub fn has_routes(&self, lanes_by_slot: &[u16]) -> bool {
        self.routes.lanes().eq(lanes_by_slot.iter().map(|lane| usize::from(*lane)))
    }

    /// Every slot's lane has a connection.
    pub fn uses_only(&self, lanes: &[Lane]) -> bool {
        self.routes.lanes().all(|lane| lanes.get(lane).is_some_and(Lane::is_live))
    }

    /// The slots may have new lanes. Only while nothing is under way. `requeued`: what was queued changed its lane.
    pub fn reroute(&mut self, lanes_by_slot: Box<[u16]>, requeued: bool) {
        self.routes = Routes::new(lanes_by_slot);
        if requeued {
            // It is counted anew.
            self.cuts.clear();
            self.cut_last.clear();
        }
        // A position that was on its way may have been rejected: it is written again.
        self.written.clear();
    }

    /// Why the last event could not be converted, if it could not.
    #[inline]
    pub fn take_refusal(&mut self) -> Result<(), EngineError> {
        if self.refused.is_none() {
            return Ok(());
        }
        self.refused.take().map_or(Ok(()), Err)
    }

    /// Takes note of a lane that is written to.
    #[inline]
    pub fn touch(&mut self, at: usize) {
        self.touched = match self.touched {
            Touched::Nothing => Touched::One(at),
            Touched::One(other) if other == at => Touched::One(at),
            _ => Touched::Several,
        };
    }

    /// What was written to since the last call.
    #[inline]
    pub fn take_touched(&mut self) -> Touched {
        std::mem::replace(&mut self.touched, Touched::Nothing)
    }

    /// Takes note of how far the flows are and what must be acknowledged for that to be confirmed.
    pub fn cut(&mut self, lanes: &[Lane], positions: Vec<(FlowId, Lsn)>) {
        if positions == self.cut_last || self.cuts.len() >= CUTS_MAX {
            return;
        }
        let batches =
            lanes.iter().map(|lane| lane.queued_batches + u64::from(!lane.encoder.batch.is_empty())).collect();
        self.cut_last.clone_from(&positions);
        self.cuts.push_back(Cut { batches, positions });
    }

    /// Looks which cuts are acknowledged, and writes the newest positions into the checkpoint if that is due.
    pub fn note_positions(&mut self, lanes: &mut [Lane], slab: &mut Slab, batch_bytes: usize, now_ns: u64) {
        while let Some(cut) = self.cuts.front() {
            if cut.batches.iter().zip(&*lanes).any(|(batches, lane)| lane.acked_batches < *batches) {
                break;
            }
            if let Some(cut) = self.cuts.pop_front() {
                self.confirmed = cut.positions;
            }
        }
        let due = now_ns >= self.written_ns + POSITIONS_EVERY_NS || lanes.iter().all(Lane::is_idle);
        if self.confirmed == self.written || !due {
            return;
        }
        let checkpoint = self.checkpoint_key.as_bytes();
        let lane = self.lane_of(slot::slot(checkpoint));
        let Some(lane) = lanes.get_mut(lane) else { return };
        let mut fields: Vec<String> = Vec::new();
        for position in self.confirmed.iter().filter(|position| !self.written.contains(position)) {
            let (flow, lsn) = *position;
            fields.push(format!("{LSN_FIELD_PREFIX}{flow}"));
            fields.push(lsn.to_string());
            let positions = &mut lane.encoder.batch.positions;
            match positions.iter_mut().find(|(id, _)| *id == flow) {
                Some((_, known)) => *known = lsn,
                None => positions.push((flow, lsn)),
            }
        }
        let mut args: Vec<&[u8]> = vec![b"HSET", checkpoint];
        args.extend(fields.iter().map(String::as_bytes));
        if lane.encoder.batch.first_read_ns == 0 {
            lane.encoder.batch.first_read_ns = now_ns;
        }
        lane.encoder.command(slab, &args);
        lane.pieces.push(&lane.encoder, None, None, false);
        // Behind the last record, so that no record is cut in two.
        if lane.encoder.is_full(batch_bytes) {
            lane.close_cluster(slab);
        }
        self.written.clone_from(&self.confirmed);
        self.written_ns = now_ns;
    }

    /// Every position of these flows is in the checkpoint, or on its way there.
    pub fn is_noted(&self, positions: &[(FlowId, Lsn)]) -> bool {
        self.cuts.is_empty() && self.written == positions
    }
}

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
    /// Lanes that got a guarded command of the record, and lanes that are to be looked at behind it.
    guarded: SmallVec<[usize; 4]>,
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
            guarded: SmallVec::new(),
            unclosed: SmallVec::new(),
        }
    }

    /// The record is complete: a batch may end here.
    pub fn record_done(&mut self) {
        self.guarded.clear();
        for at in std::mem::take(&mut self.unclosed) {
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
        let (slot, class) = self.begun;
        lane.encoder.batch.commands += 1;
        lane.pieces.push(&lane.encoder, Some((self.flow, slot)), self.record, class == Class::Guarded);
        if self.again && class == Class::Blind {
            lane.pieces.put_in_doubt();
        }
        if class == Class::Guarded {
            self.router.marked.insert((self.flow, slot));
        }
        if self.record.is_none() {
            return self.close_if_full(at);
        }
        // A marker covers the whole of its record: the rest of it goes into the same transaction.
        if class == Class::Guarded && !self.guarded.contains(&at) {
            self.guarded.push(at);
        }
        if !self.guarded.contains(&at) {
            self.close_if_full(at);
        } else if !self.unclosed.contains(&at) {
            self.unclosed.push(at);
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
        if lane.encoder.batch.is_empty() {
            lane.encoder.batch.first_read_ns = self.read_ns;
        }
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
}

#[cfg(test)]
mod tests;
