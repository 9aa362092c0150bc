//! A cluster's worker between two slot maps: it encodes nothing until what was under way is answered and settled.
//!
//! In: a redirect, a lost connection, or a record over several slots. Out: `WorkerEvent::Held` with what was under way and was
//! not executed, in order, once nothing is under way; after `Settled` the worker goes on with the new lanes, first with what it had
//! not sent. Invariants: a slot changes its lane only while nothing is under way; behind a command that was not executed
//! nothing is sent (to no node, until it is settled); a record over several slots is carried out only when everything
//! before it was executed.
//!
//! The whole worker is held, not the slot: no position of a flow passes a record that was not executed, so that the flows stand still
//! for the source and for a cutover in any case, and what is read meanwhile waits in its order in the backlog and the spool, which
//! have their bounds; parked by slot it would have to lie in memory, and be merged again. What that costs is how fresh the other slots are
//! while one is served by nobody.

use super::again;
use super::error::EngineError;
use super::flow::Flow;
use super::lane::Lane;
use super::messages::{Held, LostLane, Settled, WorkerEvent};
use super::replicas::Unproven;
use super::worker::Worker;
use crate::convert::journal;
use crate::ids::{DbIndex, FlowId, Lsn};
use crate::redis::slot::slot;
use crate::uring;

/// A node that answers nothing for so long is treated as gone.
const SILENCE_NS_MAX: u64 = 10_000_000_000;
/// A worker that stands still for so long says so.
const HELD_NS_LONG: u64 = 1_000_000_000;

/// Where a worker stands between two slot maps.
#[derive(Default)]
pub struct HeldState {
    pub stage: Stage,
    /// Since when it is not free.
    since_ns: u64,
    /// Nothing more is sent: something was not executed.
    pub stops: bool,
    /// The control plane was told of the records over several slots.
    apart_told: bool,
    /// Something was not executed, or a connection was lost, when the control plane was told.
    missed: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    #[default]
    Free,
    /// Nothing more is encoded; what is under way is waited for.
    Draining,
    /// The control plane settles what was not executed.
    Told,
}

impl Worker {
    /// Encodes nothing more until what is queued is executed.
    pub(super) fn hold(&mut self) {
        if self.held.stage == Stage::Free {
            self.held.stage = Stage::Draining;
            self.held.since_ns = uring::clock::monotonic_ns();
        }
    }

    /// Sends nothing more until what is under way is settled.
    pub(super) fn stop_sending(&mut self) {
        self.hold();
        self.held.stops = true;
    }

    pub(super) fn is_held(&self) -> bool {
        self.held.stage != Stage::Free
    }

    pub(super) fn is_held_long(&self, now_ns: u64) -> bool {
        self.is_held() && now_ns.saturating_sub(self.held.since_ns) > HELD_NS_LONG
    }

    /// A cluster's node that stands still may have been replaced: its connections are given up, and what they carried is
    /// settled where its slots are then.
    pub(super) fn lose_silent_lanes(&mut self, now_ns: u64) -> Result<(), EngineError> {
        if self.router.is_none() {
            return Ok(());
        }
        let is_silent = |lane: &Lane| {
            lane.is_live() && !lane.sent.is_empty() && now_ns.saturating_sub(lane.heard_ns) > SILENCE_NS_MAX
        };
        let silent: Vec<usize> = self.lanes.iter().filter(|lane| is_silent(lane)).map(|lane| lane.index).collect();
        silent
            .into_iter()
            .try_for_each(|lane| self.lose_lane(lane, format!("no reply within {} s", SILENCE_NS_MAX / 1_000_000_000)))
    }

    /// Tells the control plane once nothing is under way.
    pub(super) fn tell_when_held(&mut self) -> Result<(), EngineError> {
        let stops = self.held.stops;
        let is_done = |lane: &Lane| !lane.is_live() || if stops { lane.is_quiet() } else { lane.is_idle() };
        if self.held.stage != Stage::Draining || !self.lanes.iter().all(is_done) {
            return Ok(());
        }
        let (mut live, mut lost, mut units) = (Vec::new(), Vec::new(), Vec::new());
        for lane in &mut self.lanes {
            if lane.is_live() {
                live.push((lane.index, lane.node));
            } else {
                let client_id = (!std::mem::replace(&mut lane.told, true)).then_some(lane.client_id);
                lost.push(LostLane { lane: lane.index, node: lane.node, client_id });
            }
            units.extend(lane.take_unexecuted(self.ring.slab_mut())?);
        }
        let mut apart = Vec::new();
        if !self.lanes.iter().any(Lane::has_waiting) {
            for record in self.flows.iter_mut().filter_map(|flow| flow.apart.as_mut()) {
                // Numbers of the full sync are given when a batch is closed: this one comes behind all of them.
                if let (None, Some(router)) = (record.next_lsn, &self.router) {
                    record.marker = router.marks.next_sequence();
                }
                apart.push(record.clone());
            }
        }
        if let Some(router) = &mut self.router {
            // What a lost connection left unanswered says nothing of its slot.
            units.iter().filter(|unit| !unit.unknown).filter_map(|unit| unit.slot).for_each(|slot| router.avoid(slot));
            for record in &apart {
                let args: journal::Args<'_> = record.args.iter().map(Vec::as_slice).collect();
                router.marked.extend(journal::keys_of(&args).map(|key| (record.flow, slot(key))));
            }
        }
        self.held.apart_told = !apart.is_empty();
        self.held.missed = !units.is_empty() || lost.iter().any(|lost| lost.client_id.is_some());
        self.held.stage = Stage::Told;
        tracing::debug!(worker = self.index, units = units.len(), lost = lost.len(), "held");
        let _ = self.events.send(WorkerEvent::Held(Box::new(Held { worker: self.index, units, live, lost, apart })));
        Ok(())
    }

    /// Everything is settled: goes on with the lanes as they are now.
    pub(super) fn settled(&mut self, settled: Settled, now_ns: u64) -> Result<(), EngineError> {
        let Some(router) = &mut self.router else { return Ok(()) };
        let moved = settled.lanes_by_slot.as_ref().is_some_and(|lanes_by_slot| !router.has_routes(lanes_by_slot));
        let mut waiting = Vec::new();
        for lane in &mut self.lanes {
            let at = lane.index;
            if moved || settled.gone.contains(&at) || settled.fresh.iter().any(|(fresh, _)| *fresh == at) {
                waiting.push((at, lane.take_waiting(self.ring.slab_mut())));
            }
        }
        if waiting.iter().any(|(_, batches)| !batches.is_empty()) {
            router.forget_cuts();
        }
        if (self.held.missed || moved) && !self.barrier_told {
            // A position that was on its way may have been rejected: it is written again. Before a global command none was on its
            // way, and it may have been executed by now.
            router.forget_noted();
        }
        if let Some(lanes_by_slot) = settled.lanes_by_slot.filter(|_| moved) {
            router.reroute(lanes_by_slot);
        }
        for lane in settled.gone {
            self.end_lane(lane);
            if let Some(lane) = self.lanes.get_mut(lane) {
                lane.told = true;
            }
        }
        for (at, start) in settled.fresh {
            let mut fresh = Lane::new(at, start);
            if let Some(router) = &self.router {
                fresh.marks = router.marks.clone();
            }
            match self.lanes.get_mut(at) {
                Some(lane) => {
                    fresh.follows(lane);
                    *lane = fresh;
                    self.stats.reconnects += 1;
                }
                None => self.lanes.push(fresh),
            }
        }
        if let Some(router) = &self.router {
            for (at, waiting) in waiting {
                again::reroute(&mut self.lanes, router, self.ring.slab_mut(), at, waiting)?;
            }
        }
        if std::mem::take(&mut self.held.apart_told) {
            self.flows.iter_mut().for_each(Flow::release_apart);
        }
        // What the control plane has executed meanwhile is to be confirmed too.
        if let Some(unproven) = &mut self.unproven {
            unproven.answered(&[]);
        }
        // A connection may have been lost since the control plane was told.
        let lost = self.router.as_ref().is_some_and(|router| !router.uses_only(&self.lanes));
        self.held.stage = if lost { Stage::Draining } else { Stage::Free };
        self.held.stops = lost;
        let held_us = uring::clock::monotonic_ns().saturating_sub(self.held.since_ns) / 1000;
        tracing::debug!(worker = self.index, held_us, "settled");
        // In front of every position that passes them.
        self.put_in_doubt(0, settled.missed)?;
        // Where records over several slots follow each other closely, the worker is held again before its next look.
        self.note_positions(now_ns, false);
        Ok(())
    }

    /// Makes a cut, and writes the positions that are confirmed, if it is time; `when_idle`: or if nothing is under way.
    pub(super) fn note_positions(&mut self, now_ns: u64, when_idle: bool) {
        // No position may pass what a node sent elsewhere before it has been executed there.
        if self.is_held() {
            return;
        }
        // A name that goes must not be needed by a replica that takes over.
        let may_forget = self.unproven.as_ref().is_none_or(Unproven::is_none);
        let Some(router) = &mut self.router else { return };
        let positions = positions(&self.flows);
        if !positions.is_empty() {
            router.cut(&self.lanes, positions);
            let batch_bytes = self.settings.batch_bytes;
            let replicas = self.unproven.as_ref().map(Unproven::shared);
            router.note_positions(&mut self.lanes, self.ring.slab_mut(), batch_bytes, now_ns, when_idle, replicas);
            if may_forget {
                router.forget_found(&mut self.lanes, self.ring.slab_mut(), batch_bytes, now_ns, self.draining);
            }
        }
    }

    /// Everything read is applied, its positions are in the checkpoint, and replicas have all of it where they must.
    pub(super) fn is_noted(&self) -> bool {
        let noted = match &self.router {
            None => true,
            Some(router) => !self.is_held() && router.is_noted(&positions(&self.flows)),
        };
        noted && self.is_proven()
    }

    /// Markers that this worker wrote (and positions, to a cluster's nodes), and the databases in which.
    pub(super) fn markers(&self) -> Vec<(Vec<u8>, Vec<DbIndex>)> {
        match &self.router {
            None => self.lanes.iter().map(|l| (l.guard.marker.clone(), l.guard.marked_dbs.clone())).collect(),
            Some(router) => router.own_keys().map(|key| (key, vec![DbIndex(0)])).collect(),
        }
    }
}

pub fn positions(flows: &[Flow]) -> Vec<(FlowId, Lsn)> {
    flows.iter().filter_map(|flow| Some((flow.id, flow.given_lsn()?))).collect()
}
