//! Where a flow's commands go: its one lane, or all lanes of a cluster's worker.
//!
//! In: what a flow does with its lane. Out: the same for one server and for a cluster. A flow of one server writes through
//! a [`Writer`](super::writer::Writer) to its lane as if there were no cluster.

use super::batch::Batch;
use super::lane::Lane;
use super::router::{Router, Touched};
use super::writer::Encoder;
use crate::ids::{FlowId, Lsn};
use crate::uring::Slab;

pub enum Outlet<'a> {
    One(&'a mut Lane),
    Cluster { lanes: &'a mut [Lane], router: &'a mut Router },
}

impl Outlet<'_> {
    fn lanes(&mut self) -> &mut [Lane] {
        match self {
            Self::One(lane) => std::slice::from_mut(lane),
            Self::Cluster { lanes, .. } => lanes,
        }
    }

    /// See [`Lane::reopen_window`].
    pub fn reopen_window(&mut self, window_bytes: usize) {
        self.lanes().iter_mut().for_each(|lane| lane.reopen_window(window_bytes));
    }

    /// Whether every lane (and the slab) can take one more event.
    #[inline]
    pub fn has_room(&mut self, slab: &Slab, window_bytes: usize) -> bool {
        match self {
            Self::One(lane) => super::worker::has_room(slab, lane, window_bytes),
            // The next command may be for any of them.
            Self::Cluster { lanes, .. } => {
                lanes.iter_mut().all(|lane| super::worker::has_room(slab, lane, window_bytes))
            }
        }
    }

    /// The same behind an event, where there was room before it: only lanes that it wrote to are looked at.
    #[inline]
    pub fn still_has_room(&mut self, slab: &Slab, window_bytes: usize) -> bool {
        if let Self::Cluster { lanes, router } = self {
            match router.take_touched() {
                Touched::Nothing => return true,
                Touched::One(at) => {
                    return lanes.get_mut(at).is_none_or(|lane| super::worker::has_room(slab, lane, window_bytes));
                }
                Touched::Several => {}
            }
        }
        self.has_room(slab, window_bytes)
    }

    /// Moves the batches closed by a writer to the queue.
    #[inline]
    pub fn queue_closed(&mut self) {
        if let Self::One(lane) = self
            && !lane.closed.is_empty()
        {
            lane.queue_closed();
        }
    }

    /// Queues a staged batch (one long command) behind everything on its lane.
    pub fn queue_staged(&mut self, slab: &mut Slab, batch: Batch, encoder: &Encoder, batch_bytes: usize) {
        match self {
            Self::One(lane) => {
                lane.close_open(slab, batch_bytes);
                lane.queue_staged(slab, batch, encoder.db);
            }
            Self::Cluster { lanes, router } => {
                let at = router.lane_of(encoder.slot);
                router.touch(at);
                if let Some(lane) = lanes.get_mut(at) {
                    lane.close_open(slab, batch_bytes);
                    lane.closed.push(batch);
                    lane.queue_closed();
                }
            }
        }
    }

    /// The flow goes on with the journal from here. A cluster's positions are noted by its router.
    pub fn note_position(&mut self, slab: &mut Slab, batch_bytes: usize, flow: FlowId, next_lsn: Lsn, read_ns: u64) {
        if let Self::One(lane) = self {
            lane.note_position(slab, batch_bytes, flow, next_lsn, read_ns);
        }
    }
}
