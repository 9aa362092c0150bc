//! The worker's connections to the target: what is due is sent, what is answered is taken, what is lost or refused is
//! waited for.
//!
//! In: batches that the flows filled, completions, connections made again. Out: sends and reads on the ring, positions moved
//! forward behind what was acknowledged. Invariants: a position moves only with its acknowledged batch; what the target
//! refused is sent again in its order; a connection that owes replies is never silent for ever.

use super::batch::Batch;
use super::error::EngineError;
use super::flow::Flow;
use super::lane::{Lane, Link, Verdict};
use super::messages::{Lost, WorkerEvent};
use super::refusal::{self, Hold};
use super::replicas::Unproven;
use super::router::Router;
use super::settings::MigrateSettings;
use super::units::Missed;
use super::wire::{Begun, Connected};
use super::worker::{KIND_REPLY, KIND_SEND, Worker, token};
use crate::ids::{FlowId, Lsn};
use crate::report::counters::WorkerStats;
use crate::report::latency::{Latency, Recorder};
use crate::uring::{self, Class, Completion, CompletionKind, Ring, Slab};
use std::sync::atomic::{AtomicU64, Ordering};

/// Keeps names of keys that are to be fetched, in the checkpoint. `lane`: that of their flow, on one server.
pub(super) fn remember(
    router: &mut Option<Box<Router>>,
    lanes: &mut [Lane],
    lane: usize,
    slab: &mut Slab,
    batch_bytes: usize,
    lost: &[Lost],
) -> Result<(), EngineError> {
    if let Some(router) = router {
        router.remember_lost(lanes, slab, batch_bytes, uring::clock::monotonic_ns(), lost);
        return Ok(());
    }
    let Some(lane) = lanes.get_mut(lane) else { return Ok(()) };
    lane.remember_lost(slab, lost)
}

/// A connection that owes replies may be silent for so many connect timeouts.
const SILENCE_FACTOR: u32 = 3;
/// A machine that acknowledges nothing for so long, though it is asked again and again (first after 0.2 s), is cut off, or gone. One
/// whose server is busy, forks, or takes no more bytes acknowledges at once.
const CUT_OFF_NS: u64 = 2_250_000_000;
/// Between two looks at what the kernel knows.
const LOOK_NS: u64 = 200_000_000;

impl Worker {
    pub(super) fn resume(
        &mut self,
        position: usize,
        generation: u16,
        socket: Connected,
        applied: u64,
        now_ns: u64,
    ) -> Result<(), EngineError> {
        let Some(lane) = self.lanes.get_mut(position) else { return Ok(()) };
        if lane.generation != generation || !matches!(lane.link, Link::Down) {
            return Ok(());
        }
        let mut known = Vec::new();
        lane.resume(self.ring.slab_mut(), socket, applied, |batch| known.push(batch))?;
        let node = lane.node;
        let mut unseen = Vec::new();
        for batch in known {
            // What it was answered is not known.
            let slab = self.ring.slab();
            unseen.extend(
                batch.watched.iter().map(|watched| (*watched, super::errors::key_of(&batch, slab, watched.command))),
            );
            record_acked(&mut self.recorder, &mut self.stats, node, &batch, now_ns);
            confirm(&mut self.flows, &self.confirmed, &mut self.unproven, &batch);
            batch.release(self.ring.slab_mut());
        }
        self.stats.reconnects += 1;
        self.put_in_doubt(position, unseen)
    }

    /// Looks after the lanes whose server refuses: what was answered is sorted, the next attempt begun when it is due.
    fn tend_holds(&mut self, now_ns: u64) -> Result<(), EngineError> {
        for position in 0..self.lanes.len() {
            let lane = &mut self.lanes[position];
            let Some(hold) = &lane.hold else { continue };
            // Then the control plane settles all of it.
            if lane.has_rejected() || lane.in_cluster && !lane.is_live() {
                continue;
            }
            let held_ns = hold.held_ns(now_ns);
            let mut acked = Vec::new();
            let holds = lane.settle_refusal(self.ring.slab_mut(), now_ns, |batch| acked.push(batch))?;
            for batch in acked {
                record_acked(&mut self.recorder, &mut self.stats, lane.node, &batch, now_ns);
                confirm(&mut self.flows, &self.confirmed, &mut self.unproven, &batch);
                let segments = batch.release(self.ring.slab_mut());
                lane.recycle(segments);
            }
            if !holds {
                self.stats.held_ms += held_ns / 1_000_000;
                tracing::info!(
                    worker = self.index,
                    lane = position,
                    held_ms = held_ns / 1_000_000,
                    "the target takes commands again"
                );
                continue;
            }
            if !lane.sent.is_empty() || !lane.returned.is_empty() || matches!(lane.link, Link::Down) {
                continue;
            }
            let Some(hold) = &mut lane.hold else { continue };
            if let Some(why) = hold.wants_anew.take() {
                self.give_up_lane(position, why)?;
            } else {
                hold.may_try(now_ns, self.settings.retry_max)?;
            }
        }
        Ok(())
    }

    /// A server that answers nothing for so long may be gone, or cut off: the connection is made again.
    fn end_silent_lanes(&mut self, now_ns: u64) -> Result<(), EngineError> {
        if self.router.is_some() {
            return Ok(());
        }
        let silence_max_ns = (SILENCE_FACTOR * self.settings.connect_timeout).as_nanos() as u64;
        for position in 0..self.lanes.len() {
            let lane = &self.lanes[position];
            let waits = matches!(lane.link, Link::Up(_)) && !lane.sent.is_empty();
            if waits && now_ns.saturating_sub(lane.heard_ns) > silence_max_ns {
                self.lose_lane(position, "the target answered nothing for too long".into())?;
            }
        }
        Ok(())
    }

    /// A partition is noticed by the kernel's own signs, long before the patience for a slow server ends.
    fn end_cut_off_lanes(&mut self, now_ns: u64) -> Result<(), EngineError> {
        if now_ns < self.next_look_ns {
            return Ok(());
        }
        self.next_look_ns = now_ns + LOOK_NS;
        for position in 0..self.lanes.len() {
            let lane = &mut self.lanes[position];
            let Link::Up(wire) = &lane.link else { continue };
            let signs = wire.peer_signs();
            let owes_ns = lane.owes_ns(signs, now_ns);
            // Where nothing is under way only the probes of the kernel are: one that is lost, on a slow link, says nothing. It judges
            // by several of them.
            if owes_ns > CUT_OFF_NS && !lane.sent.is_empty() {
                self.lose_lane(position, "its machine acknowledges nothing: it is cut off, or gone".into())?;
            }
        }
        Ok(())
    }

    pub(super) fn submit(&mut self, now_ns: u64) -> Result<(), EngineError> {
        self.tend_holds(now_ns)?;
        self.end_silent_lanes(now_ns)?;
        self.end_cut_off_lanes(now_ns)?;
        let stops = self.held.stops;
        for lane in &mut self.lanes {
            // Where something was not executed, only what was sent in part goes on.
            if !stops || lane.is_cut_short() {
                if lane.wire_is_idle() {
                    lane.close_open(self.ring.slab_mut(), self.settings.batch_bytes);
                }
                submit_lane(&mut self.ring, lane, &self.settings, now_ns, &mut self.stats)?;
            }
            if let Link::Up(wire) = &mut lane.link {
                wire.flush(&mut self.ring, token(KIND_SEND, lane.generation, lane.index))?;
            }
            // One lane alone must not hold a send chunk that others need.
            if lane.is_idle() {
                lane.encoder.tail.finish(&mut lane.encoder.batch, self.ring.slab_mut());
            }
        }
        Ok(())
    }

    pub(super) fn arm_replies(&mut self) -> Result<(), EngineError> {
        for lane in &mut self.lanes {
            if lane.reading {
                continue;
            }
            let Link::Up(wire) = &mut lane.link else { continue };
            if lane.reply_chunk.is_none() {
                lane.reply_chunk = self.ring.slab_mut().take(Class::Tx);
            }
            if let Some(chunk) = lane.reply_chunk {
                let token = token(KIND_REPLY, lane.generation, lane.index);
                match wire.read(&mut self.ring, chunk, usize::MAX, token)? {
                    Begun::InKernel => {}
                    Begun::Here(result) => self.here.push(Completion { token, kind: CompletionKind::Read, result }),
                    Begun::NoMemory => continue,
                }
                lane.reading = true;
            }
        }
        Ok(())
    }

    pub(super) fn replies(
        &mut self,
        position: usize,
        generation: u16,
        result: Result<u32, i32>,
        now_ns: u64,
    ) -> Result<(), EngineError> {
        let Some(lane) = self.lanes.get_mut(position) else { return Ok(()) };
        if lane.generation != generation {
            return Ok(());
        }
        lane.reading = false;
        let chunk = match (result, lane.reply_chunk.take()) {
            (Ok(bytes @ 1..), Some(chunk)) => {
                self.stats.bytes_replies += u64::from(bytes);
                chunk
            }
            (Err(libc::EINTR | libc::EAGAIN), chunk) => {
                lane.reply_chunk = chunk;
                return Ok(());
            }
            (result, chunk) => {
                if let Some(chunk) = chunk {
                    self.ring.slab_mut().release(chunk);
                }
                let reason = match result {
                    Ok(_) => "the target closed the connection".to_string(),
                    Err(errno) => lane.reason(errno),
                };
                return self.lose_lane(position, reason);
            }
        };
        let (mut acked, mut lost) = (Vec::new(), Vec::new());
        let view = self.ring.slab().view(chunk);
        let slab = self.ring.slab();
        let (node, name) = (lane.node, lane.name.clone());
        let (mut refusal, mut may_copy) = (None, false);
        let cluster = lane.in_cluster;
        let mut rejected = false;
        let mut refused_scripts = Vec::new();
        let outcome = lane.replies(
            &view,
            now_ns,
            |batch| acked.push(batch),
            |batch, fault, text| {
                let verdict = match cluster {
                    false => {
                        super::errors::judge(batch, slab, fault.command, &name, text, batch.is_in_doubt(fault.command))?
                    }
                    true => super::errors::judge_in_cluster(batch, slab, fault, &name, text)?,
                };
                rejected |= verdict == Verdict::Rejected;
                // Each node of a cluster refuses it: it is listed once.
                if verdict == Verdict::ScriptRefused && node == 0 {
                    refused_scripts.push(super::errors::refused_script(batch, slab, fault.command, text));
                }
                if verdict == Verdict::Refused && refusal.is_none() {
                    let described = super::errors::describe_refusal(batch, slab, fault.command, &name, text);
                    refusal = Some((described, refusal::refuses_access(text)));
                }
                may_copy |= !cluster && refusal::may_copy(text);
                Ok(verdict)
            },
            |batch, watched| lost.push((watched, super::errors::key_of(batch, slab, watched.command))),
        );
        drop(view);
        for row in refused_scripts {
            tracing::warn!(script = %row.key.escape_ascii(), reason = row.reason, "a script is not carried over");
            self.refused_scripts.push(row);
        }
        match (&mut lane.hold, refusal) {
            (Some(hold), Some((text, of_access))) => hold.refused(text, of_access),
            (None, Some((text, of_access))) => {
                lane.hold = Some(Hold::new(text, of_access, now_ns));
                self.stats.holds += 1;
            }
            _ => {}
        }
        // Nothing goes to one that has copied another's data, and a new connection is made only to one that has not.
        if let Some(hold) = lane.hold.as_mut().filter(|_| may_copy) {
            hold.wants_anew = Some("the target may be a replica: it is asked before it gets more");
            // The others have met nothing, perhaps, and their connections outlive its promotion.
            let _ = self.events.send(WorkerEvent::MayCopy);
        }
        // Taken again at once, so that no batch can have the last chunk while its reply needs one.
        self.ring.slab_mut().release(chunk);
        lane.reply_chunk = self.ring.slab_mut().take(Class::Tx);
        self.acknowledged(position, acked, now_ns);
        if rejected {
            self.stop_sending();
        }
        self.put_in_doubt(position, lost)?;
        outcome
    }

    /// A send was completed: batches that were answered before are done now.
    pub(super) fn sent(&mut self, position: usize, now_ns: u64) {
        let Some(lane) = self.lanes.get_mut(position) else { return };
        let mut acked = Vec::new();
        lane.take_answered(|batch| acked.push(batch));
        self.acknowledged(position, acked, now_ns);
    }

    /// Batches of a lane are answered and let go.
    fn acknowledged(&mut self, position: usize, acked: Vec<Batch>, now_ns: u64) {
        let Some(lane) = self.lanes.get_mut(position) else { return };
        for batch in acked {
            record_acked(&mut self.recorder, &mut self.stats, lane.node, &batch, now_ns);
            confirm(&mut self.flows, &self.confirmed, &mut self.unproven, &batch);
            let segments = batch.release(self.ring.slab_mut());
            lane.recycle(segments);
        }
    }

    /// The target may have lost these keys: they are fetched again, and remembered until then.
    pub(super) fn put_in_doubt(&mut self, lane: usize, lost: Vec<Missed>) -> Result<(), EngineError> {
        let mut remembered = Vec::new();
        for (watched, key) in lost {
            if let Some(flow) = self.flows.iter_mut().find(|flow| flow.id == watched.flow) {
                remembered.extend(flow.lost_at_target(watched.db, key, watched.lost_if, &self.events));
            }
        }
        let (slab, batch_bytes) = (self.ring.slab_mut(), self.settings.batch_bytes);
        remember(&mut self.router, &mut self.lanes, lane, slab, batch_bytes, &remembered)
    }

    /// Where everything was answered, the checkpoint need not name what was asked.
    pub(super) fn forget_watched(&mut self) {
        for lane in &mut self.lanes {
            lane.forget_watched(self.ring.slab_mut(), self.settings.batch_bytes);
        }
    }

    /// A cluster's lane has nothing more to do.
    pub(super) fn end_lane(&mut self, position: usize) {
        let Some(lane) = self.lanes.get_mut(position) else { return };
        if let Link::Up(wire) = &mut lane.link {
            wire.close(&mut self.ring);
        }
        if let Some(chunk) = lane.reply_chunk.take() {
            self.ring.slab_mut().release(chunk);
        }
        lane.lose();
    }

    /// Every lane gets another connection. One that was refused itself does when its answers are sorted.
    pub(super) fn connect_anew(&mut self) -> Result<(), EngineError> {
        for position in 0..self.lanes.len() {
            let lane = &self.lanes[position];
            let is_told = lane.hold.as_ref().is_some_and(|hold| hold.wants_anew.is_some());
            if matches!(lane.link, Link::Up(_)) && !is_told {
                self.give_up_lane(position, "on another one the target refused as a replica does")?;
            }
        }
        Ok(())
    }

    /// We end the connection, and not the target.
    fn give_up_lane(&mut self, position: usize, why: &str) -> Result<(), EngineError> {
        if let Some(lane) = self.lanes.get_mut(position) {
            lane.expect_loss();
        }
        self.lose_lane(position, why.into())
    }

    pub(super) fn lose_lane(&mut self, position: usize, reason: String) -> Result<(), EngineError> {
        self.end_lane(position);
        let Some(lane) = self.lanes.get_mut(position) else { return Ok(()) };
        tracing::warn!(worker = self.index, lane = position, node = %lane.name, %reason, "lost a connection to the target");
        if lane.is_hopeless() {
            return Err(EngineError::Target(format!(
                "{} closes each connection before one batch is acknowledged ({reason}); its log says why (limits of \
                 a client's query or of the protocol, memory, a proxy in between)",
                lane.name
            )));
        }
        if self.router.is_some() {
            self.stop_sending();
            return Ok(());
        }
        let _ = self.events.send(WorkerEvent::LaneLost {
            worker: self.index,
            lane: position,
            generation: lane.generation,
            client_id: lane.client_id,
            marker: lane.guard.marker.clone(),
            marked_dbs: lane.guard.marked_dbs.clone(),
        });
        Ok(())
    }
}

/// Moves the positions of an acknowledged batch forward, if nobody else must confirm it.
fn confirm(flows: &mut [Flow], confirmed: &[AtomicU64], unproven: &mut Option<Unproven>, batch: &Batch) {
    match unproven {
        Some(unproven) => unproven.answered(&batch.positions),
        None => tell(flows, confirmed, &batch.positions),
    }
}

/// Moves positions forward.
pub(super) fn tell(flows: &mut [Flow], confirmed: &[AtomicU64], positions: &[(FlowId, Lsn)]) {
    for (id, lsn) in positions {
        if let Some(flow) = flows.iter_mut().find(|flow| flow.id == *id) {
            flow.confirmed(*lsn);
        }
        if let Some(shared) = confirmed.get(id.0 as usize) {
            shared.fetch_max(lsn.0, Ordering::Release);
        }
    }
}

/// Records the three latencies of an acknowledged batch and counts it.
fn record_acked(recorder: &mut Recorder, stats: &mut WorkerStats, node: u16, batch: &Batch, now_ns: u64) {
    let commands = u64::from(batch.commands);
    // What the tool writes of its own was never read.
    if batch.first_read_ns > 0 {
        recorder.record(Latency::ApplyLag, node, now_ns.saturating_sub(batch.first_read_ns), commands);
    }
    recorder.record(Latency::Service, node, now_ns.saturating_sub(batch.submitted_ns), 1);
    stats.batches += 1;
    stats.commands += commands;
    stats.replies += commands;
    stats.batch_bytes += batch.bytes as u64;
    stats.batch_bytes_max = stats.batch_bytes_max.max(batch.bytes as u64);
}

pub(super) fn submit_lane(
    ring: &mut Ring,
    lane: &mut Lane,
    settings: &MigrateSettings,
    now_ns: u64,
    stats: &mut WorkerStats,
) -> Result<(), EngineError> {
    let chain_max = if settings.ring.link { settings.ring.link_batches_max.max(1) } else { 1 };
    let submitted = lane.submit(ring, chain_max, token(KIND_SEND, lane.generation, lane.index), now_ns)?;
    if submitted > 0 {
        stats.count_chain(lane.unacked_commands);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::writer::Encoder;
    use crate::report::latency::LatencySeries;

    /// The time since the machine was started was taken for a lag.
    #[test]
    fn regression_what_was_never_read_has_no_apply_lag() {
        let (mut recorder, mut stats) = (Recorder::new(), WorkerStats::default());
        let mut batch = Encoder::new().batch;
        batch.commands = 1;
        record_acked(&mut recorder, &mut stats, 0, &batch, 5_000);
        let mut seconds = LatencySeries::new();
        seconds.add(&recorder.take_interval());
        let kinds =
            |seconds: &LatencySeries| -> Vec<Latency> { seconds.whole().map(|(latency, ..)| latency).collect() };
        assert_eq!(kinds(&seconds), [Latency::Service]);
        batch.first_read_ns = 4_000;
        record_acked(&mut recorder, &mut stats, 0, &batch, 5_000);
        seconds.add(&recorder.take_interval());
        assert_eq!(kinds(&seconds), [Latency::ApplyLag, Latency::Service]);
    }
}
