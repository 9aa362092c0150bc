//! A cluster's worker between two slot maps: it encodes nothing until what was under way is answered and settled.
//!
//! In: a redirect, a lost connection, or a record over several slots. Out: `WorkerEvent::Held` with everything that was not
//! executed, in order, once every lane is empty; after `Settled` the worker goes on with the new lanes. Invariants: a slot
//! changes its lane only while nothing is under way; what was accepted is not sent again unless an earlier command on the
//! same key was rejected, and then only what may be applied twice.

use super::batch::Batch;
use super::error::EngineError;
use super::flow::Flow;
use super::lane::Lane;
use super::messages::{Held, LostLane, Settled, WorkerEvent};
use super::router::marker_key;
use super::units::{Unit, units_of};
use super::worker::Worker;
use crate::ids::{DbIndex, FlowId, Lsn};
use crate::report::document::NotCarried;
use crate::uring::Slab;

/// A node that answers nothing for so long is treated as gone.
const SILENCE_NS_MAX: u64 = 10_000_000_000;

/// Where a worker stands between two slot maps.
#[derive(Default)]
pub struct HeldState {
    pub stage: Stage,
    /// What was not executed, in order.
    units: Vec<Unit>,
    /// Keys whose commands were executed in another order than they were recorded.
    pub doubtful: Vec<NotCarried>,
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

impl HeldState {
    /// What was not executed, in order.
    pub fn take_units(&mut self) -> Vec<Unit> {
        std::mem::take(&mut self.units)
    }

    /// A batch was answered to its end (or up to `batch.replied`, on a lane that is lost): keeps what was not executed.
    pub fn take_batch(&mut self, lane: &mut Lane, batch: &Batch, slab: &Slab) -> Result<(), EngineError> {
        let whole = batch.replied == batch.commands;
        if whole && batch.rejected.is_empty() && lane.rejected_keys.is_empty() {
            return Ok(());
        }
        for (range, mut unit) in units_of(batch, slab)? {
            let rejected = range.clone().any(|command| batch.rejected.contains(&command));
            if range.end > batch.replied {
                unit.unknown = true;
                self.units.push(unit);
            } else if rejected {
                lane.rejected_keys.extend(unit.keys.iter().cloned());
                self.units.push(unit);
            } else if unit.keys.iter().any(|key| lane.rejected_keys.contains(key)) {
                // The slot came back while an earlier command was on its way.
                if unit.marker.is_none() {
                    // It is executed again, so what follows on any of its keys must be too.
                    lane.rejected_keys.extend(unit.keys.iter().cloned());
                    unit.again = true;
                    self.units.push(unit);
                } else {
                    tracing::warn!(key = %unit.key.escape_ascii(), "executed before an earlier command on the same key");
                    self.doubtful.push(NotCarried {
                        db: 0,
                        key: unit.key,
                        kind: "doubtful-order".into(),
                        action: "verify".into(),
                        reason: "the cluster rejected a command and executed the next one on the same key".into(),
                    });
                }
            }
        }
        Ok(())
    }
}

impl Worker {
    /// Encodes nothing more until what is under way is settled.
    pub(super) fn hold(&mut self) {
        if self.held.stage == Stage::Free {
            self.held.stage = Stage::Draining;
        }
    }

    pub(super) fn is_held(&self) -> bool {
        self.held.stage != Stage::Free
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

    /// Tells the control plane once every lane is empty or lost.
    pub(super) fn tell_when_held(&mut self) -> Result<(), EngineError> {
        let lanes_done = self.lanes.iter().all(|lane| !lane.is_live() || lane.is_idle());
        if self.held.stage != Stage::Draining || !lanes_done {
            return Ok(());
        }
        let (mut live, mut lost) = (Vec::new(), Vec::new());
        for lane in &mut self.lanes {
            if lane.is_live() {
                live.push((lane.index, lane.node));
            } else {
                lost.push(LostLane { lane: lane.index, node: lane.node, client_id: lane.client_id });
                for batch in lane.take_unanswered(self.ring.slab_mut()) {
                    self.held.take_batch(lane, &batch, self.ring.slab())?;
                    batch.release(self.ring.slab_mut());
                }
            }
            lane.rejected_keys.clear();
        }
        let apart = self.flows.iter().filter_map(|flow| flow.apart.clone()).collect();
        let units = self.held.take_units();
        self.held.stage = Stage::Told;
        tracing::debug!(worker = self.index, units = units.len(), lost = lost.len(), "held");
        let _ = self.events.send(WorkerEvent::Held(Box::new(Held { worker: self.index, units, live, lost, apart })));
        Ok(())
    }

    /// Everything is settled: goes on with the lanes as they are now.
    pub(super) fn settled(&mut self, settled: Settled) {
        for lane in settled.gone {
            self.end_lane(lane);
        }
        for (at, start) in settled.fresh {
            let mut fresh = Lane::new(at, start);
            match self.lanes.get_mut(at) {
                Some(lane) => {
                    fresh.follows(lane);
                    *lane = fresh;
                    self.stats.reconnects += 1;
                }
                None => self.lanes.push(fresh),
            }
        }
        if let Some(router) = &mut self.router {
            router.reroute(settled.lanes_by_slot);
        }
        self.flows.iter_mut().for_each(Flow::release_apart);
        // A connection may have been lost since the control plane was told.
        let lost = self.router.as_ref().is_some_and(|router| !router.uses_only(&self.lanes));
        self.held.stage = if lost { Stage::Draining } else { Stage::Free };
    }

    /// Makes a cut, and writes the positions that are confirmed.
    pub(super) fn note_positions(&mut self, now_ns: u64) {
        // A batch counts as answered although a node sent some of its commands elsewhere: no position may pass those before
        // they have been executed there.
        if self.is_held() {
            return;
        }
        let Some(router) = &mut self.router else { return };
        let positions = positions(&self.flows);
        if !positions.is_empty() {
            router.cut(&self.lanes, positions);
            router.note_positions(&mut self.lanes, self.ring.slab_mut(), self.settings.batch_bytes, now_ns);
        }
    }

    /// Everything read is applied, and its positions are in the checkpoint.
    pub(super) fn is_noted(&self) -> bool {
        match &self.router {
            None => true,
            Some(router) => !self.is_held() && router.is_noted(&positions(&self.flows)),
        }
    }

    /// Markers that this worker wrote, and the databases in which.
    pub(super) fn markers(&self) -> Vec<(Vec<u8>, Vec<DbIndex>)> {
        match &self.router {
            None => self.lanes.iter().map(|l| (l.guard.marker.clone(), l.guard.marked_dbs.clone())).collect(),
            Some(router) => {
                router.marked.iter().map(|(flow, slot)| (marker_key(*flow, *slot), vec![DbIndex(0)])).collect()
            }
        }
    }
}

fn positions(flows: &[Flow]) -> Vec<(FlowId, Lsn)> {
    flows.iter().filter_map(|flow| Some((flow.id, flow.given_lsn()?))).collect()
}
