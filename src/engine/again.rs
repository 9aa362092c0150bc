//! What a cluster's node did not execute, or perhaps not, out of the batches that were under way: to be executed again.
//!
//! In: batches in the order in which they were sent, answered to their end, or, on a lost connection, up to some command.
//! Out: units in that order: what was sent elsewhere, what was refused because of the node's state, what was not answered;
//! and blind commands that were executed although one before them on one of their keys was not.
//! Invariants: nothing else is executed twice; a transaction that was executed stands behind nothing that was not
//! (`layout`), and so does an XADD, which always stands in one. Repeating blind commands in their order changes nothing
//! (`convert::journal::table`), whatever errors they and those that they had passed meet meanwhile.

use super::batch::{Batch, Watched};
use super::error::EngineError;
use super::lane::Lane;
use super::layout::batch_of;
use super::own::CHECKPOINT_KEY;
use super::router::Router;
use super::units::{Unit, units_of};
use crate::uring::Slab;
use std::collections::HashMap;

/// The units of `batches` that are to be executed (again), in order.
pub fn unexecuted(batches: &[Batch], slab: &Slab) -> Result<Vec<Unit>, EngineError> {
    let mut units: Vec<Unit> = Vec::new();
    // By key: the units on it that were not executed, as long as nothing behind them was.
    let mut keys: HashMap<Vec<u8>, Vec<usize>> = HashMap::new();
    for batch in batches {
        if batch.replied == batch.commands && !batch.has_unexecuted() && keys.is_empty() {
            continue;
        }
        for (range, mut unit) in units_of(batch, slab)? {
            let refused = |command: u32| batch.rejected.contains(&command) || batch.refused.contains(&command);
            if range.end > batch.replied {
                unit.unknown = true;
            } else if !range.clone().any(refused) {
                if !unit.keys.iter().any(|key| keys.contains_key(key)) {
                    continue;
                }
                if unit.marker.is_some() {
                    return Err(EngineError::Internal(format!(
                        "a transaction on {} was executed although it was not to be sent yet",
                        unit.key.escape_ascii()
                    )));
                }
                unit.again = true;
                // They may meet what this one made of the key (another type), until it is executed again behind them.
                for passed in unit.keys.iter().filter_map(|key| keys.get_mut(key).map(std::mem::take)).flatten() {
                    units.get_mut(passed).into_iter().for_each(|passed| passed.again = true);
                }
            }
            for key in &unit.keys {
                let passed = keys.entry(key.clone()).or_default();
                if !unit.again {
                    passed.push(units.len());
                }
            }
            units.push(unit);
        }
    }
    Ok(units)
}

/// One batch of these units, in their order.
fn batch_of_units(units: &[Unit], like: &Batch) -> Batch {
    let bytes = units.iter().map(|unit| unit.bytes.as_slice()).collect::<Vec<_>>().concat();
    let fenced = units.iter().any(|unit| unit.marker.is_some());
    let mut batch = batch_of(bytes, units.iter().map(|unit| unit.replies).sum(), fenced);
    let mut at = 0;
    for unit in units {
        if unit.again {
            batch.put_in_doubt(at..at + 1);
        }
        for (inner, _) in (1..).zip(&unit.inner).filter(|(_, inner)| inner.again) {
            batch.put_in_doubt(at + inner..at + inner + 1);
        }
        batch.watched.extend(unit.watched.iter().map(|of| Watched { command: at + of.place, ..of.watched }));
        at += unit.replies;
        if unit.replies > 1 {
            batch.groups.push((at - 1, at - unit.replies + 1));
        }
    }
    batch.first_read_ns = like.first_read_ns;
    batch
}

impl Lane {
    /// Nothing of it is under way: everything sent was answered, and no command was sent in part.
    pub fn is_quiet(&self) -> bool {
        self.sent.is_empty() && self.in_kernel == 0 && !self.is_cut_short()
    }

    /// A node sent commands elsewhere, or cannot execute them yet.
    pub fn has_rejected(&self) -> bool {
        self.returned.iter().any(|batch| !batch.rejected.is_empty())
    }

    /// Commands wait that were not sent.
    pub fn has_waiting(&self) -> bool {
        !self.encoder.batch.is_empty() || !self.ready.is_empty()
    }

    /// Takes what was under way and was not executed, for the control plane.
    pub fn take_unexecuted(&mut self, slab: &mut Slab) -> Result<Vec<Unit>, EngineError> {
        let returned = std::mem::take(&mut self.returned);
        let units = unexecuted(&returned, slab)?;
        for batch in returned {
            self.forget(&batch);
            batch.release(slab);
        }
        Ok(units)
    }

    /// Everything under way was answered, some of it with a refusal because of the node's state: puts that in front of what
    /// waits. Returns the batches that are done with.
    pub fn put_back_refused(&mut self, slab: &mut Slab) -> Result<Vec<Batch>, EngineError> {
        let mut returned = std::mem::take(&mut self.returned);
        let units = unexecuted(&returned, slab)?;
        returned.iter().for_each(|batch| self.forget(batch));
        if let (Some(first), false) = (returned.first(), units.is_empty()) {
            let mut again = batch_of_units(&units, first);
            // A position may be told only when all before it is done.
            again.positions = returned.iter_mut().flat_map(|batch| std::mem::take(&mut batch.positions)).collect();
            // None of them counts as acknowledged before this is: what waited for the first of them alone would pass it.
            again.stands_for = returned.iter().map(|batch| batch.stands_for).sum();
            self.acked_batches = self.acked_batches.saturating_sub(again.stands_for);
            self.unacked_bytes += again.bytes;
            self.unacked_commands += u64::from(again.commands);
            self.ready.push_front(again);
        }
        Ok(returned)
    }

    /// Takes everything that was not sent.
    pub fn take_waiting(&mut self, slab: &mut Slab) -> Vec<Batch> {
        self.close_cluster(slab);
        self.encoder.tail.finish(&mut self.encoder.batch, slab);
        let waiting: Vec<Batch> = self.ready.drain(..).collect();
        waiting.iter().for_each(|batch| self.forget(batch));
        waiting
    }

    /// The batch is this lane's no more.
    fn forget(&mut self, batch: &Batch) {
        self.unacked_bytes = self.unacked_bytes.saturating_sub(batch.bytes);
        self.unacked_commands = self.unacked_commands.saturating_sub(u64::from(batch.commands));
        self.acked_batches += batch.stands_for;
    }

    /// Queues a batch that another lane, or an earlier connection, did not send.
    fn requeue(&mut self, mut batch: Batch) {
        batch.stands_for = 1;
        self.unacked_bytes += batch.bytes;
        self.unacked_commands += u64::from(batch.commands);
        self.queued_batches += 1;
        self.ready.push_back(batch);
    }
}

/// Gives what the lane at `from` did not send to the lanes that have its slots now.
pub fn reroute(
    lanes: &mut [Lane],
    router: &Router,
    slab: &mut Slab,
    from: usize,
    waiting: Vec<Batch>,
) -> Result<(), EngineError> {
    // A lane that has slots but no connection, for that was lost just now, gets one. One that has no slots is gone, and only
    // what has no key may be left on it.
    let keeps = |lane: &Lane, at: usize| lane.is_live() || router.has_lane(at);
    for mut batch in waiting {
        let units: Vec<Unit> = units_of(&batch, slab)?.into_iter().map(|(_, unit)| unit).collect();
        // What has no key was given to every lane of then.
        let lane_of = |unit: &Unit| unit.slot.map_or(from, |slot| router.lane_of(slot));
        let mut places: Vec<usize> = units.iter().map(lane_of).collect();
        places.sort_unstable();
        places.dedup();
        if let [place] = places.as_slice() {
            match lanes.get_mut(*place).filter(|lane| keeps(lane, *place)) {
                Some(lane) => lane.requeue(batch),
                None => drop(batch.release(slab)),
            }
            continue;
        }
        for place in places {
            let Some(lane) = lanes.get_mut(place).filter(|lane| keeps(lane, place)) else { continue };
            let of: Vec<Unit> = units.iter().filter(|unit| lane_of(unit) == place).cloned().collect();
            let mut part = batch_of_units(&of, &batch);
            if of.iter().any(|unit| unit.key.starts_with(CHECKPOINT_KEY.as_bytes())) {
                part.positions = std::mem::take(&mut batch.positions);
            }
            lane.requeue(part);
        }
        batch.release(slab);
    }
    Ok(())
}
