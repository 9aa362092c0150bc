//! A worker's view of a cluster: which lane has which slot, the markers of guarded commands, the positions confirmed.
//!
//! In: what the control plane found out, commands with their slots. Out: the same commands on the lanes of their slots.
//! Invariants: between two changes of the slot map, which happen only while nothing is under way, a slot has one lane, so a
//! key's commands keep their order. A guarded command stands in a MULTI with all that its flow does in its slot in the same
//! batch, and `SET <marker of this flow in this slot> <position>` (`layout`); no batch ends between a guarded command and the
//! rest of its record. A flow's position is written to the checkpoint only when everything up to it was executed on all
//! lanes, and, where replicas must confirm, when those of every node have it, the position that the node keeps included.
//!
//! What a target can hold when the tool is killed, at any instant, also while a slot is MIGRATING at one node and IMPORTING at
//! another: of each flow and slot, all records up to the marker (each command of them was executed, or stood before the
//! marker in its transaction), and behind it only commands that may be applied again, for the transaction behind them was
//! not sent, or not executed. So the next start skips exactly what the marker covers, and applies the rest in its order.

use super::error::EngineError;
use super::global::Emptied;
use super::homes;
use super::lane::Lane;
use super::layout::Marks;
use super::lost::lost_field;
use super::messages::Lost;
use super::own::{marker_key, position_key};
use super::replicas::Replicas;
use super::writer::LSN_FIELD_PREFIX;
use crate::ids::{FlowId, Lsn, Slot};
use crate::redis::slot;
use crate::uring::Slab;
use found::FoundAgain;
use routes::Routes;
use smallvec::SmallVec;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

mod found;
mod routes;
mod writer;

pub use writer::{ClusterWriter, WriteSettings};

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
    /// By flow: the answers to everything before this LSN were seen, and what they said of lost keys is in the checkpoint.
    pub heard_before: Arc<[Lsn]>,
    /// Keys of positions found at the nodes.
    pub noted: Arc<[(FlowId, Slot)]>,
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

/// The form of a marker that also says: what its record takes off one of several keys was decided in this slot (`apart::pops`).
/// It says the same of positions.
pub fn taken(marker: &[u8]) -> Vec<u8> {
    let number_at = memchr::memrchr(b':', marker).map_or(0, |at| at + 1);
    let (tag, number) = marker.split_at(number_at);
    [tag, b"+", number].concat()
}

/// Everything encoded at one moment, and how far each flow was then.
struct Cut {
    /// By lane: batches that must be acknowledged.
    batches: Vec<u64>,
    positions: Vec<(FlowId, Lsn)>,
}

/// Positions that were written to every node, whose replicas are to confirm them before the checkpoint is told.
struct AtNodes {
    positions: Vec<(FlowId, Lsn)>,
    /// By lane: batches that must be acknowledged.
    batches: Vec<u64>,
    /// Then: the round that covers them.
    round: Option<u64>,
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
    heard_before: Arc<[Lsn]>,
    /// By flow: the last LSN of `resumed`.
    resumed_to: BTreeMap<FlowId, Lsn>,
    scratch: Vec<u8>,
    /// Where the last `space` in it began.
    scratch_mark: usize,
    /// Why the command begun last cannot be sent.
    refused: Option<EngineError>,
    touched: Touched,
    open: writer::Open,
    /// Markers that were written.
    pub marked: HashSet<(FlowId, Slot)>,
    cuts: VecDeque<Cut>,
    /// Positions of the newest cut, and of the newest confirmed one.
    cut_last: Vec<(FlowId, Lsn)>,
    confirmed: Vec<(FlowId, Lsn)>,
    /// Where replicas must confirm: positions on their way, and those that every node's replicas have.
    at_nodes: Option<AtNodes>,
    proven: Vec<(FlowId, Lsn)>,
    written: Vec<(FlowId, Lsn)>,
    written_ns: u64,
    /// By lane: where its node keeps positions.
    homes: Vec<SmallVec<[Slot; 4]>>,
    /// Slots in which a node did not execute something, since the slots got their lanes: no homes.
    avoided: HashSet<Slot>,
    /// What must be acknowledged for these homes to be there, and their names.
    homes_sent: Option<(Vec<u64>, String)>,
    /// Homes that are there, and those that the checkpoint names.
    homes_there: String,
    homes_named: String,
    /// Keys of positions that were written.
    pub noted: HashSet<(FlowId, Slot)>,
    found_again: FoundAgain,
}

impl Router {
    /// Keys that were written: the markers, and the positions at the nodes.
    pub fn own_keys(&self) -> impl Iterator<Item = Vec<u8>> {
        let tag = &self.marks.job_tag;
        let markers = self.marked.iter().map(|(flow, slot)| marker_key(tag, *flow, *slot));
        markers.chain(self.noted.iter().map(|(flow, slot)| position_key(tag, *flow, *slot)))
    }

    pub fn new(start: RouterStart) -> Self {
        let routes = Routes::new(start.lanes_by_slot);
        Self {
            homes: homes::choose(routes.lanes(), &HashSet::new()),
            avoided: HashSet::new(),
            homes_sent: None,
            homes_there: String::new(),
            homes_named: String::new(),
            noted: start.noted.iter().copied().collect(),
            routes,
            marks: Marks::new(start.journal_tag, start.snapshot_tag, start.job_tag),
            checkpoint_key: start.checkpoint_key,
            marked: start.resumed.keys().copied().collect(),
            resumed_to: last_of(&start.resumed),
            resumed: start.resumed,
            sent_before: start.sent_before,
            heard_before: start.heard_before,
            scratch: Vec::new(),
            scratch_mark: 0,
            refused: None,
            touched: Touched::Nothing,
            open: writer::Open::default(),
            cuts: VecDeque::new(),
            cut_last: Vec::new(),
            confirmed: Vec::new(),
            at_nodes: None,
            proven: Vec::new(),
            written: Vec::new(),
            written_ns: 0,
            found_again: FoundAgain::default(),
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

    /// Some slot has this lane.
    pub fn has_lane(&self, lane: usize) -> bool {
        self.routes.lanes().any(|at| at == lane)
    }

    /// Every slot's lane has a connection.
    pub fn uses_only(&self, lanes: &[Lane]) -> bool {
        self.routes.lanes().all(|lane| lanes.get(lane).is_some_and(Lane::is_live))
    }

    /// The slots have new lanes. Only while nothing is under way.
    pub fn reroute(&mut self, lanes_by_slot: Box<[u16]>) {
        self.routes = Routes::new(lanes_by_slot);
        self.avoided.clear();
        self.homes = homes::choose(self.routes.lanes(), &self.avoided);
    }

    /// A node did not execute what it was sent for this slot, which may be on the move: no positions are kept there.
    pub fn avoid(&mut self, slot: Slot) {
        if self.avoided.insert(slot) && self.homes.iter().any(|homes| homes.contains(&slot)) {
            self.homes = homes::choose(self.routes.lanes(), &self.avoided);
        }
    }

    /// What was queued changes its lane: it is counted anew.
    pub fn forget_cuts(&mut self) {
        self.cuts.clear();
        self.cut_last.clear();
        self.found_again.count_anew();
    }

    /// The target's keys of the tool's own may be gone: they are written again.
    pub fn forget_noted(&mut self) {
        self.written.clear();
        self.at_nodes = None;
        self.proven.clear();
        self.homes_sent = None;
        self.homes_there.clear();
        self.homes_named.clear();
    }

    /// A global command was executed everywhere, and the positions behind it are in the checkpoint: none from before it may be
    /// written any more. (The worker of other flows has written those behind it, perhaps, when the tool is killed.) What it
    /// emptied holds nothing of what was written behind it when it was executed for the first time.
    pub fn passed(&mut self, positions: Vec<(FlowId, Lsn)>, emptied: &Emptied) {
        self.forget_cuts();
        self.forget_noted();
        self.confirmed = positions;
        if *emptied != Emptied::Nothing && !self.resumed.is_empty() {
            let left = self.resumed.iter().filter(|((_, slot), _)| !emptied.has(*slot));
            self.resumed = Arc::new(left.map(|(place, lsn)| (*place, *lsn)).collect());
            self.resumed_to = last_of(&self.resumed);
        }
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
        let batches = queued(lanes);
        self.cut_last.clone_from(&positions);
        self.cuts.push_back(Cut { batches, positions });
    }

    /// Looks which cuts are acknowledged, and writes the newest positions into the checkpoint if that is due.
    pub fn note_positions(
        &mut self,
        lanes: &mut [Lane],
        slab: &mut Slab,
        batch_bytes: usize,
        now_ns: u64,
        when_idle: bool,
        replicas: Option<&Replicas>,
    ) {
        while let Some(cut) = self.cuts.front() {
            if !are_acked(&cut.batches, lanes) {
                break;
            }
            if let Some(cut) = self.cuts.pop_front() {
                self.confirmed = cut.positions;
            }
        }
        let due = now_ns >= self.written_ns + POSITIONS_EVERY_NS || when_idle && lanes.iter().all(Lane::is_idle);
        let moved = match replicas {
            None => {
                self.homes_are_there(lanes);
                self.confirmed != self.written
            }
            Some(replicas) => {
                self.take_proven(lanes, replicas);
                if due && self.at_nodes.is_none() && self.confirmed != self.proven {
                    self.note_at_nodes(lanes, slab, now_ns);
                    let positions = self.confirmed.clone();
                    self.at_nodes = Some(AtNodes { positions, batches: queued(lanes), round: None });
                }
                self.proven != self.written
            }
        };
        if !due || !moved && self.homes_there == self.homes_named {
            return;
        }
        if moved && replicas.is_none() {
            self.note_at_nodes(lanes, slab, now_ns);
        }
        let tellable = if replicas.is_some() { self.proven.clone() } else { self.confirmed.clone() };
        let Some(lane) = lanes.get_mut(self.lane_of_checkpoint()) else { return };
        let mut fields: Vec<String> = Vec::new();
        for position in tellable.iter().filter(|position| !self.written.contains(position)) {
            let (flow, lsn) = *position;
            fields.push(format!("{LSN_FIELD_PREFIX}{flow}"));
            fields.push(lsn.to_string());
            let positions = &mut lane.encoder.batch.positions;
            match positions.iter_mut().find(|(id, _)| *id == flow) {
                Some((_, known)) => *known = lsn,
                None => positions.push((flow, lsn)),
            }
        }
        if self.homes_there != self.homes_named
            && let Some((flow, _)) = tellable.iter().min()
        {
            fields.extend([format!("{}{flow}", homes::FIELD_PREFIX), self.homes_there.clone()]);
            self.homes_named.clone_from(&self.homes_there);
        }
        if fields.is_empty() {
            return;
        }
        let fields: Vec<&[u8]> = fields.iter().map(String::as_bytes).collect();
        self.tell_checkpoint(lanes, slab, batch_bytes, now_ns, b"HSET", &fields);
        self.written = tellable;
        self.written_ns = now_ns;
    }

    fn lane_of_checkpoint(&self) -> usize {
        self.lane_of(slot::slot(self.checkpoint_key.as_bytes()))
    }

    /// A command on the checkpoint, behind everything that its lane has. Only between two records.
    fn tell_checkpoint(
        &self,
        lanes: &mut [Lane],
        slab: &mut Slab,
        batch_bytes: usize,
        now_ns: u64,
        name: &[u8],
        args: &[&[u8]],
    ) {
        let Some(lane) = lanes.get_mut(self.lane_of_checkpoint()) else { return };
        if lane.encoder.batch.first_read_ns == 0 {
            lane.encoder.batch.first_read_ns = now_ns;
        }
        lane.encoder.command(slab, &[&[name, self.checkpoint_key.as_bytes()], args].concat());
        lane.pieces.push(&lane.encoder, None, None, false);
        // Behind the last record, so that no record is cut in two.
        if lane.encoder.is_full(batch_bytes) {
            lane.close_cluster(slab);
        }
    }

    /// Keeps the names of lost keys in the checkpoint, in front of every position that is written from now on.
    pub fn remember_lost(
        &mut self,
        lanes: &mut [Lane],
        slab: &mut Slab,
        batch_bytes: usize,
        now_ns: u64,
        lost: &[Lost],
    ) {
        if lost.is_empty() {
            return;
        }
        let fields: Vec<Vec<u8>> = lost.iter().map(lost_field).collect();
        self.found_again.lost_again(&fields);
        let args: Vec<&[u8]> = fields.iter().flat_map(|field| [&field[..], b""]).collect();
        self.tell_checkpoint(lanes, slab, batch_bytes, now_ns, b"HSET", &args);
    }

    /// A lost key was written again, behind everything that its lane has: its name goes from the checkpoint when it is there.
    pub fn found_again(&mut self, lost: &Lost, now_ns: u64) {
        self.found_again.add(lost_field(lost), now_ns);
    }

    /// Takes names out of the checkpoint for which it is time; `all`: all whose keys are there.
    pub fn forget_found(&mut self, lanes: &mut [Lane], slab: &mut Slab, batch_bytes: usize, now_ns: u64, all: bool) {
        if self.found_again.is_empty() {
            return;
        }
        let due = self.found_again.take_due(|| queued(lanes), |batches| are_acked(batches, lanes), now_ns, all);
        if !due.is_empty() {
            let args: Vec<&[u8]> = due.iter().map(Vec::as_slice).collect();
            self.tell_checkpoint(lanes, slab, batch_bytes, now_ns, b"HDEL", &args);
        }
    }

    /// Looks whether the homes that were written last are there.
    fn homes_are_there(&mut self, lanes: &[Lane]) {
        if let Some((_, names)) = self.homes_sent.take_if(|(batches, _)| are_acked(batches, lanes)) {
            self.homes_there = names;
        }
    }

    /// Looks whether the replicas of all nodes have the positions that were written to them, and all that those cover.
    fn take_proven(&mut self, lanes: &[Lane], replicas: &Replicas) {
        let Some(at_nodes) = &mut self.at_nodes else { return };
        if at_nodes.round.is_none() && are_acked(&at_nodes.batches, lanes) {
            at_nodes.round = Some(replicas.covering());
        }
        if !at_nodes.round.is_some_and(|round| replicas.reach(round)) {
            return;
        }
        if let Some(at_nodes) = self.at_nodes.take() {
            self.proven = at_nodes.positions;
        }
        // Homes that are named and not there would tell of a loss.
        self.homes_are_there(lanes);
    }

    /// Writes the confirmed positions to every node. One by one: of several keys that are not all at one end, a slot on the move
    /// takes none before all are.
    fn note_at_nodes(&mut self, lanes: &mut [Lane], slab: &mut Slab, now_ns: u64) {
        for (lane, homes) in lanes.iter_mut().zip(&self.homes).filter(|(lane, _)| lane.is_live()) {
            let places =
                homes.iter().flat_map(|slot| self.confirmed.iter().map(move |(flow, lsn)| (*flow, *slot, *lsn)));
            for (flow, slot, lsn) in places {
                let key = position_key(&self.marks.job_tag, flow, slot);
                if lane.encoder.batch.first_read_ns == 0 {
                    lane.encoder.batch.first_read_ns = now_ns;
                }
                lane.encoder.command(slab, &[b"SET", &key, &self.marks.journal_value(lsn)]);
                lane.pieces.push(&lane.encoder, None, None, false);
                self.noted.insert((flow, slot));
            }
        }
        let names = homes::to_text(&self.homes, self.confirmed.iter().map(|(flow, _)| *flow));
        // The first positions there are enough. Waiting for newer ones each time would never end where answers take longer than
        // it takes to write the next.
        if names != self.homes_there && self.homes_sent.as_ref().is_none_or(|(_, sent)| *sent != names) {
            self.homes_sent = Some((queued(lanes), names));
        }
    }

    /// Every position of these flows is in the checkpoint, or on its way there.
    pub fn is_noted(&self, positions: &[(FlowId, Lsn)]) -> bool {
        self.cuts.is_empty() && self.written == positions
    }
}

/// By flow: the last LSN.
fn last_of(resumed: &Resumed) -> BTreeMap<FlowId, Lsn> {
    let mut last = BTreeMap::new();
    for ((flow, _), lsn) in resumed {
        let known = last.entry(*flow).or_insert(*lsn);
        *known = (*known).max(*lsn);
    }
    last
}

/// By lane: batches that are there now, the open one included.
fn queued(lanes: &[Lane]) -> Vec<u64> {
    lanes.iter().map(|lane| lane.queued_batches + u64::from(!lane.encoder.batch.is_empty())).collect()
}

fn are_acked(batches: &[u64], lanes: &[Lane]) -> bool {
    batches.iter().zip(lanes).all(|(batches, lane)| lane.acked_batches >= *batches)
}

#[cfg(test)]
mod tests;
