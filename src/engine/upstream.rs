//! A flow's connection to the source that is at its end, and what was read of it: decoded to its last whole record.
//!
//! In: ends and errors of the flows' sockets, the order to leave the source. Out: [`WorkerEvent::Spent`], once everything
//! that can be is applied, acknowledged and in the checkpoint. Invariants: what is applied is a prefix of what the source
//! sent; a record that is cut off at the end is discarded and not counted; a flow that stands before a global command stays
//! there until all have reached it (wire 4.5). A closed connection ends the whole registration (wire 1.10), so no flow is
//! waited for that says nothing more.

use super::flow::{Flow, FlowState};
use super::lane::Lane;
use super::messages::WorkerEvent;
use super::worker::Worker;
use crate::uring::{Ring, Slab};

/// What may still come from the source on a flow's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upstream {
    Open,
    /// The registration is over: what is on its way is read.
    Ending,
    /// Shut by us: the read in flight is the last one.
    Leaving,
    Closed,
}

impl Upstream {
    /// The registration lives.
    pub fn is_open(self) -> bool {
        self == Self::Open
    }

    /// Reads are begun.
    pub fn is_read(self) -> bool {
        matches!(self, Self::Open | Self::Ending)
    }
}

/// The worker was told to leave the source.
pub struct Gone {
    since_ns: u64,
    /// Lost keys are asked for all the same.
    pub(super) asks: bool,
    /// Releases of global commands when it last said that everything was spent.
    told: Option<u64>,
}

/// A connection on which nothing came for so long, after the registration was over, brings nothing more.
const QUIET_NS: u64 = 2_000_000_000;

impl Flow {
    /// Nothing more comes, and what is here is less than the decoder wants.
    pub(super) fn is_at_end(&self, slab: &Slab, need: usize) -> bool {
        self.upstream == Upstream::Closed
            && !self.reading.in_flight
            && self.backlog.is_empty(slab)
            && self.input.unparsed_bytes(slab) < need
    }

    /// Everything whole is decoded.
    pub(super) fn end(&mut self, slab: &mut Slab) {
        let cut_bytes = self.input.unparsed_bytes(slab);
        tracing::debug!(flow = %self.id, cut_bytes, "the end of what was read");
        self.input.clear(slab);
        self.spent = true;
    }

    /// Closes the connection from our side.
    fn shut(&mut self, ring: &mut Ring) {
        if self.upstream.is_read() {
            self.wire.shut(ring);
            self.upstream = if self.reading.in_flight { Upstream::Leaving } else { Upstream::Closed };
        }
    }
}

impl Worker {
    /// A flow's connection is at its end.
    pub(super) fn source_ended(&mut self, position: usize, why: String) {
        let Some(flow) = self.flows.get_mut(position) else { return };
        flow.upstream = Upstream::Closed;
        let _ = self.events.send(WorkerEvent::SourceGone { why });
    }

    /// The registration is over.
    pub(super) fn leave_source(&mut self, read_on: bool, asks: bool, now_ns: u64) {
        self.gone.get_or_insert(Gone { since_ns: now_ns, asks, told: None });
        for flow in &mut self.flows {
            if !read_on {
                flow.shut(&mut self.ring);
            } else if flow.upstream == Upstream::Open {
                flow.upstream = Upstream::Ending;
            }
        }
        // So that operators see at once how much is left.
        self.next_sample_ns = now_ns;
    }

    /// Closes connections that bring nothing more but were not ended.
    pub(super) fn end_quiet_flows(&mut self, now_ns: u64) {
        let Some(gone) = &self.gone else { return };
        for flow in &mut self.flows {
            let quiet_ns = now_ns.saturating_sub(gone.since_ns.max(flow.reading.begun_ns));
            if flow.upstream == Upstream::Ending && flow.reading.in_flight && quiet_ns > QUIET_NS {
                flow.shut(&mut self.ring);
            }
        }
    }

    /// Tells once nothing of what was read is left to be applied, as far as it may be. Global commands are told of before.
    pub(super) fn tell_when_spent(&mut self) {
        let Some(gone) = &mut self.gone else { return };
        let is_done = |flow: &Flow| {
            let decoded = flow.spent || flow.state == FlowState::AtBarrier;
            decoded && flow.upstream == Upstream::Closed && !flow.handler.is_releasing() && flow.apart.is_none()
        };
        if gone.told == Some(self.releases) || !self.flows.iter().all(is_done) {
            return;
        }
        if !self.lanes.iter().all(Lane::is_idle) || !self.is_noted() {
            return;
        }
        if let Some(gone) = &mut self.gone {
            gone.told = Some(self.releases);
        }
        let _ = self.events.send(WorkerEvent::Spent { worker: self.index, releases: self.releases });
    }
}
