//! One worker: a ring, a slab, a share of the flows, and its own connections to the target. Nothing is shared with other
//! workers but atomics read once a turn.
//!
//! In: connected sockets of its flows, commands from the control plane. Out: the target's connections fed, and
//! `WorkerEvent`s. One turn: submit everything due in one `io_uring_enter`, reap all completions, then process them.
//! Invariants: work per turn is bounded, so that no flow starves another; decoding stops while a connection's window or
//! the send chunks are used up, so memory is bounded by construction.

use super::error::EngineError;
use super::flow::{Flow, FlowState, Heaps, Pumped};
use super::handle::{Existing, FlowHandler};
use super::input::HeapBudget;
use super::lane::{Lane, Link};
use super::settings::MigrateSettings;
use super::sizes::Sizes;
use crate::convert::journal::GlobalCommand;
use crate::convert::{Plan, Tally};
use crate::dragonfly::owner::OwnerRule;
use crate::ids::{DbIndex, FlowId, Lsn};
use crate::redis::resp;
use crate::report::counters::{FlowSample, WorkerStats};
use crate::report::document::{Expiries, NotCarried};
use crate::report::latency::{Interval, Latency, Recorder};
use crate::uring::{self, Class, Completion, CompletionKind, Features, Outgoing, Ring, Segment, Socket, Waker};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;

/// A flow handed over by the control plane, registered and ready for `DFLY SYNC`.
pub struct FlowStart {
    pub id: FlowId,
    pub socket: OwnedFd,
    pub eof_token: [u8; 40],
    /// Stream bytes that came in the same segment as the reply to `DFLY FLOW`.
    pub early: Vec<u8>,
    /// The source granted a partial sync: the journal goes on with this LSN, there is no snapshot.
    pub resume_at: Option<Lsn>,
}

/// A global command that a flow stands before.
#[derive(Clone, Debug)]
pub struct Barrier {
    pub flow: FlowId,
    pub txid: u64,
    pub command: GlobalCommand,
    /// LSN behind the command on this flow.
    pub next_lsn: Lsn,
}

/// A connected, authenticated connection to a target node, in database 0.
pub struct LaneStart {
    pub node: u16,
    pub socket: OwnedFd,
    /// Key of the marker of guarded commands.
    pub marker: Vec<u8>,
    /// Key of the job's checkpoint.
    pub checkpoint: String,
    /// `CLIENT ID` of the connection at the target (0: unknown).
    pub client_id: i64,
    /// Its flows go on from a checkpoint.
    pub resumes: bool,
}

pub struct WorkerStart {
    pub index: usize,
    pub cpu: Option<usize>,
    pub settings: Arc<MigrateSettings>,
    pub sizes: Sizes,
    pub plan: Arc<Plan>,
    pub owner: Arc<OwnerRule>,
    pub existing: Arc<Existing>,
    pub flows: Vec<FlowStart>,
    pub lanes: Vec<LaneStart>,
    pub events: UnboundedSender<WorkerEvent>,
    pub commands: mpsc::Receiver<WorkerCommand>,
    /// By flow: LSN of the next record that the target has not confirmed; 0 before the flow's snapshot is confirmed.
    pub confirmed: Arc<Vec<AtomicU64>>,
}

/// What a worker tells the control plane.
pub enum WorkerEvent {
    /// The ring stands; reading may begin.
    Ready {
        worker: usize,
        features: Box<Features>,
        waker: Waker,
    },
    /// A flow delivered FULLSYNC_END.
    FullSyncEnd {
        flow: FlowId,
    },
    /// A flow delivered its offset, EOF and the right token.
    Complete {
        flow: FlowId,
        next_lsn: Lsn,
        token: [u8; 40],
    },
    /// All flows are complete (or decoding was stopped) and everything is acknowledged.
    Drained,
    /// A flow stands before a global command.
    AtBarrier(Barrier),
    /// All flows of the worker stand before a barrier and everything before it is acknowledged.
    BarrierDrained,
    /// Keys that the source may have deleted silently during the full sync (wire 2.10), to be asked for.
    Suspects {
        worker: usize,
        keys: Vec<(FlowId, DbIndex, Vec<u8>)>,
    },
    /// Once a second.
    Sample {
        worker: usize,
        stats: Box<WorkerStats>,
        interval: Box<Interval>,
        not_carried: Vec<NotCarried>,
    },
    /// A connection to the target broke: the control plane connects again and reads the marker.
    LaneLost {
        worker: usize,
        lane: usize,
        generation: u16,
        client_id: i64,
        marker: Vec<u8>,
        marked_dbs: Vec<DbIndex>,
    },
    Finished {
        summary: Box<WorkerSummary>,
    },
    Failed {
        worker: usize,
        error: EngineError,
    },
}

/// What the control plane tells a worker (through its channel; then the waker is rung).
pub enum WorkerCommand {
    Resume {
        lane: usize,
        generation: u16,
        socket: OwnedFd,
        client_id: i64,
        applied: u64,
    },
    /// The global command was executed and its position stored.
    ReleaseBarrier,
    /// Decode nothing more; `Drained` follows when everything is acknowledged.
    Drain,
    /// Send the suspects once (they stay suspects until a record settles them or they are deleted).
    ListSuspects,
    /// The source has none of these keys: delete those that no record has settled since.
    DeleteSuspects(Vec<(FlowId, DbIndex, Vec<u8>)>),
    /// End: drop everything and report.
    Stop,
}

/// What is left when a worker has stopped.
pub struct WorkerSummary {
    pub worker: usize,
    pub tallies: Vec<Tally>,
    pub not_carried: Vec<NotCarried>,
    pub suspects: Vec<(DbIndex, Vec<u8>)>,
    pub strays_dropped: u64,
    pub owner_unknown: u64,
    pub existing_skipped: u64,
    pub expiries: Expiries,
    pub journal_records: u64,
    pub journal_by_name: Vec<(String, u64)>,
    pub marked: Vec<(Vec<u8>, Vec<DbIndex>)>,
    pub stats: WorkerStats,
    pub interval: Interval,
    pub source_version: Option<String>,
}

/// Room for send chunks that one event may need at the worst (a run of tiny elements grows about tenfold).
const TX_CHUNKS_RESERVE: usize = 16;

/// Longest wait in one turn: commands and the one-second sample are looked at this often.
const WAIT_MAX: Duration = Duration::from_millis(100);

const SAMPLE_NS: u64 = 1_000_000_000;

const KIND_FLOW: u64 = 1;
const KIND_REPLY: u64 = 2;
const KIND_SEND: u64 = 3;
const KIND_ACK: u64 = 4;

fn token(kind: u64, generation: u16, index: usize) -> u64 {
    kind << 56 | u64::from(generation) << 32 | index as u64
}

pub struct Worker {
    index: usize,
    settings: Arc<MigrateSettings>,
    sizes: Sizes,
    ring: Ring,
    flows: Vec<Flow>,
    lanes: Vec<Lane>,
    heap: Heaps,
    events: UnboundedSender<WorkerEvent>,
    commands: mpsc::Receiver<WorkerCommand>,
    recorder: Recorder,
    stats: WorkerStats,
    next_sample_ns: u64,
    drained: bool,
    /// Told to decode nothing more.
    draining: bool,
    barrier_told: bool,
    confirmed: Arc<Vec<AtomicU64>>,
    /// Flow that is pumped first this turn.
    first_flow: usize,
}

/// The worker's thread: runs until stopped or failed, and tells the control plane how it ended.
pub fn run(start: WorkerStart) {
    let (index, events) = (start.index, start.events.clone());
    let event = match Worker::new(start).and_then(Worker::work) {
        Ok(summary) => WorkerEvent::Finished { summary: Box::new(summary) },
        Err(error) => WorkerEvent::Failed { worker: index, error },
    };
    // The control plane may be gone already; then nobody is left to be told.
    let _ = events.send(event);
}

impl Worker {
    fn new(start: WorkerStart) -> Result<Self, EngineError> {
        let WorkerStart {
            index,
            cpu,
            settings,
            sizes,
            plan,
            owner,
            existing,
            flows,
            lanes,
            events,
            commands,
            confirmed,
        } = start;
        if let Some(cpu) = cpu {
            uring::cpu::pin_current_thread(cpu)
                .map_err(|e| EngineError::System(format!("worker {index} cannot be pinned to CPU {cpu}: {e}")))?;
        }
        let mut ring = Ring::new(&settings.ring, sizes.layout).map_err(|e| EngineError::System(e.to_string()))?;
        let lanes: Vec<Lane> = lanes.into_iter().enumerate().map(|(i, lane)| Lane::new(i, lane)).collect();
        let heap = Heaps { outer: HeapBudget::new(sizes.heap_bytes_max), inner: HeapBudget::new(sizes.heap_bytes_max) };
        let follow = settings.follow.is_some();
        let mut built = Vec::with_capacity(flows.len());
        for (position, flow) in flows.into_iter().enumerate() {
            let handler = FlowHandler::new(flow.id, plan.clone(), owner.clone(), existing.clone());
            built.push(Flow::new(
                flow,
                position % lanes.len().max(1),
                handler,
                &sizes,
                follow,
                ring.slab_mut(),
                &heap.outer,
            )?);
        }
        let waker = ring.waker();
        let features = Box::new(ring.features().clone());
        let _ = events.send(WorkerEvent::Ready { worker: index, features, waker });
        Ok(Self {
            index,
            settings,
            sizes,
            ring,
            flows: built,
            lanes,
            heap,
            events,
            commands,
            recorder: Recorder::new(),
            stats: WorkerStats::default(),
            next_sample_ns: uring::clock::monotonic_ns() + SAMPLE_NS,
            drained: false,
            draining: false,
            barrier_told: false,
            confirmed,
            first_flow: 0,
        })
    }

    fn work(mut self) -> Result<WorkerSummary, EngineError> {
        let mut completions: Vec<Completion> = Vec::with_capacity(1024);
        loop {
            let now_ns = uring::clock::monotonic_ns();
            if self.take_commands(now_ns)? {
                return Ok(self.finish());
            }
            let more = if self.draining { false } else { self.pump(now_ns)? };
            self.send_acks(now_ns)?;
            self.submit(now_ns)?;
            self.arm_reads(now_ns)?;
            self.tell_when_drained();
            if now_ns >= self.next_sample_ns {
                self.sample(now_ns);
            }
            let wait = if more { Duration::ZERO } else { WAIT_MAX };
            completions.clear();
            self.ring.turn(wait, &mut completions).map_err(|e| EngineError::System(e.to_string()))?;
            let now_ns = uring::clock::monotonic_ns();
            for completion in &completions {
                self.complete(completion, now_ns)?;
            }
            let Self { ring, recorder, .. } = &mut self;
            ring.slab_mut().drain_freed(|filled_ns| {
                recorder.record(Latency::Residence, 0, now_ns.saturating_sub(filled_ns), 1);
            });
        }
    }

    /// Returns whether to stop.
    fn take_commands(&mut self, now_ns: u64) -> Result<bool, EngineError> {
        loop {
            match self.commands.try_recv() {
                Ok(WorkerCommand::Stop) | Err(mpsc::TryRecvError::Disconnected) => return Ok(true),
                Ok(WorkerCommand::Resume { lane, generation, socket, client_id, applied }) => {
                    if let Some(lane) = self.lanes.get_mut(lane) {
                        lane.client_id = client_id;
                    }
                    self.resume(lane, generation, socket, applied, now_ns)?;
                }
                Ok(WorkerCommand::ReleaseBarrier) => {
                    self.barrier_told = false;
                    for flow in &mut self.flows {
                        if let Some(lsn) = flow.release_barrier()
                            && let Some(shared) = self.confirmed.get(flow.id.0 as usize)
                        {
                            shared.fetch_max(lsn.0, Ordering::Release);
                        }
                    }
                }
                Ok(WorkerCommand::Drain) => self.draining = true,
                Ok(WorkerCommand::ListSuspects) => self.list_suspects(),
                Ok(WorkerCommand::DeleteSuspects(keys)) => self.delete_suspects(keys),
                Err(mpsc::TryRecvError::Empty) => return Ok(false),
            }
        }
    }

    fn resume(
        &mut self,
        lane: usize,
        generation: u16,
        socket: OwnedFd,
        applied: u64,
        now_ns: u64,
    ) -> Result<(), EngineError> {
        let Some(lane) = self.lanes.get_mut(lane) else { return Ok(()) };
        if lane.generation != generation || !matches!(lane.link, Link::Down) {
            return Ok(());
        }
        let mut known = Vec::new();
        lane.resume(self.ring.slab_mut(), Socket::from(socket), applied, |batch| known.push(batch))?;
        let node = lane.node;
        for batch in known {
            record_acked(&mut self.recorder, &mut self.stats, node, &batch, now_ns);
            confirm(&mut self.flows, &self.confirmed, &batch);
            batch.release(self.ring.slab_mut());
        }
        self.stats.reconnects += 1;
        Ok(())
    }

    /// Decodes and converts what was received, as far as windows and memory allow. Returns whether there is more to do
    /// without any completion.
    fn pump(&mut self, now_ns: u64) -> Result<bool, EngineError> {
        let now_ms = uring::clock::realtime_ms() as i64;
        let count = self.flows.len();
        let mut more = false;
        for step in 0..count {
            let position = (self.first_flow + step) % count;
            let flow = &mut self.flows[position];
            let lane = &mut self.lanes[flow.lane];
            let pumped =
                flow.pump(self.ring.slab_mut(), lane, &self.heap, &self.settings, &self.sizes, now_ms, &self.events)?;
            match pumped {
                Pumped::Budget => more = true,
                Pumped::Waiting => {}
            }
            // Keeps the kernel busy with what this flow produced while the next one is converted.
            submit_lane(&mut self.ring, lane, &self.settings, now_ns, &mut self.stats)?;
        }
        self.first_flow = (self.first_flow + 1) % count.max(1);
        Ok(more)
    }

    fn submit(&mut self, now_ns: u64) -> Result<(), EngineError> {
        for lane in &mut self.lanes {
            if lane.wire_is_idle() {
                lane.close_open(self.ring.slab_mut(), self.settings.batch_bytes);
            }
            submit_lane(&mut self.ring, lane, &self.settings, now_ns, &mut self.stats)?;
            // One lane alone must not hold a send chunk that others need.
            if lane.is_idle() {
                lane.encoder.tail.finish(&mut lane.encoder.batch, self.ring.slab_mut());
            }
        }
        Ok(())
    }

    fn arm_reads(&mut self, now_ns: u64) -> Result<(), EngineError> {
        for (position, flow) in self.flows.iter_mut().enumerate() {
            if flow.wants_read(self.ring.slab())
                && let Some(chunk) = flow.input.chunk()
            {
                self.ring
                    .read(&flow.socket, chunk, token(KIND_FLOW, 0, position))
                    .map_err(|e| EngineError::System(e.to_string()))?;
                flow.read_begins(now_ns);
            }
        }
        for lane in &mut self.lanes {
            if lane.reading {
                continue;
            }
            let Link::Up(socket) = &lane.link else { continue };
            if lane.reply_chunk.is_none() {
                lane.reply_chunk = self.ring.slab_mut().take(Class::Tx);
            }
            if let Some(chunk) = lane.reply_chunk {
                let socket = socket.clone();
                self.ring
                    .read(&socket, chunk, token(KIND_REPLY, lane.generation, lane.index))
                    .map_err(|e| EngineError::System(e.to_string()))?;
                lane.reading = true;
            }
        }
        Ok(())
    }

    fn complete(&mut self, completion: &Completion, now_ns: u64) -> Result<(), EngineError> {
        if completion.kind == CompletionKind::Wake {
            return Ok(());
        }
        let generation = (completion.token >> 32) as u16;
        let position = completion.token as u32 as usize;
        match completion.token >> 56 {
            KIND_FLOW => {
                let Some(flow) = self.flows.get_mut(position) else { return Ok(()) };
                flow.reading = false;
                self.stats.flow_reads += 1;
                let read = flow.read_done(completion.result, now_ns)?;
                if let Some(chunk) = flow.input.chunk() {
                    self.ring.slab_mut().set_filled_at_ns(chunk, now_ns);
                }
                self.stats.bytes_in += read as u64;
                Ok(())
            }
            KIND_REPLY => self.replies(position, generation, completion.result, now_ns),
            KIND_SEND => {
                let Some(lane) = self.lanes.get_mut(position) else { return Ok(()) };
                if lane.generation != generation {
                    return Ok(());
                }
                if let Ok(n) = completion.result {
                    self.stats.bytes_out += u64::from(n);
                }
                match lane.sent_completion(completion.result) {
                    Some(errno) => {
                        let reason = std::io::Error::from_raw_os_error(errno).to_string();
                        self.lose_lane(position, reason)
                    }
                    None => Ok(()),
                }
            }
            KIND_ACK => match completion.result {
                // A few bytes on an idle socket go out whole or not at all; a broken one shows at the next read.
                Ok(_) | Err(_) => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn replies(
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
                    Err(errno) => std::io::Error::from_raw_os_error(errno).to_string(),
                };
                return self.lose_lane(position, reason);
            }
        };
        let mut acked = Vec::new();
        let view = self.ring.slab().view(chunk);
        let slab = self.ring.slab();
        let node = lane.node;
        let resent = lane.sends_again;
        let outcome = lane.replies(
            &view,
            |batch| acked.push(batch),
            |batch, index, text| super::errors::judge(batch, slab, index, node, text, resent),
        );
        drop(view);
        // Taken again at once, so that no batch can have the last chunk while its reply needs one.
        self.ring.slab_mut().release(chunk);
        lane.reply_chunk = self.ring.slab_mut().take(Class::Tx);
        for batch in acked {
            record_acked(&mut self.recorder, &mut self.stats, node, &batch, now_ns);
            confirm(&mut self.flows, &self.confirmed, &batch);
            let segments = batch.release(self.ring.slab_mut());
            lane.recycle(segments);
        }
        outcome
    }

    fn lose_lane(&mut self, position: usize, reason: String) -> Result<(), EngineError> {
        let Some(lane) = self.lanes.get_mut(position) else { return Ok(()) };
        if let Link::Up(socket) = &lane.link {
            self.ring.shutdown(&socket.clone());
        }
        if let Some(chunk) = lane.reply_chunk.take() {
            self.ring.slab_mut().release(chunk);
        }
        lane.lose();
        tracing::warn!(worker = self.index, lane = position, node = lane.node, %reason, "lost a connection to the target");
        if lane.is_hopeless() {
            return Err(EngineError::Target(format!(
                "node {} closes each connection before one batch is acknowledged ({reason}); its log says why (limits of \
                 a client's query or of the protocol, memory, a proxy in between)",
                lane.node
            )));
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

    fn tell_when_drained(&mut self) {
        let at_barrier = |flow: &Flow| flow.state == FlowState::AtBarrier;
        let ended = !self.drained && (self.draining || self.flows.iter().all(|flow| flow.is_complete()));
        let held = !self.barrier_told && !self.flows.is_empty() && self.flows.iter().all(at_barrier);
        if !(ended || held) || !self.lanes.iter().all(Lane::is_idle) {
            return;
        }
        if ended {
            self.drained = true;
            let _ = self.events.send(WorkerEvent::Drained);
        }
        if held {
            self.barrier_told = true;
            let _ = self.events.send(WorkerEvent::BarrierDrained);
        }
    }

    /// Acknowledges what the target has confirmed to the source, on each flow's own connection.
    fn send_acks(&mut self, now_ns: u64) -> Result<(), EngineError> {
        for (position, flow) in self.flows.iter_mut().enumerate() {
            let Some(stable) = &mut flow.stable else { continue };
            // Before the snapshot is confirmed there is nothing to acknowledge.
            if stable.acked_lsn == Lsn(0) || flow.socket.is_sending() {
                continue;
            }
            if let Some(lsn) = stable.ack_due(now_ns) {
                let request = resp::command(&[b"REPLCONF", b"ACK", lsn.to_string().as_bytes()]);
                let segments = [Segment::Heap(request.into())];
                let ack = Outgoing { segments: &segments, skip_bytes: 0, token: token(KIND_ACK, 0, position) };
                self.ring.send(&flow.socket, &[ack]).map_err(|e| EngineError::System(e.to_string()))?;
            }
        }
        Ok(())
    }

    fn list_suspects(&mut self) {
        let mut keys = Vec::new();
        for flow in &self.flows {
            keys.extend(flow.handler.suspects.list().map(|(db, key)| (flow.id, db, key.to_vec())));
        }
        let _ = self.events.send(WorkerEvent::Suspects { worker: self.index, keys });
    }

    fn delete_suspects(&mut self, keys: Vec<(FlowId, DbIndex, Vec<u8>)>) {
        for (id, db, key) in keys {
            let Some(flow) = self.flows.iter_mut().find(|flow| flow.id == id) else { continue };
            // A record that came meanwhile has settled it: then the key's fate is in the journal.
            if flow.handler.suspects.is_suspect(db, &key) {
                flow.handler.suspects.settled(db, &key);
                let lane = &mut self.lanes[flow.lane];
                lane.delete(self.ring.slab_mut(), self.settings.batch_bytes, db, &key);
            }
        }
    }

    fn sample(&mut self, now_ns: u64) {
        self.next_sample_ns = now_ns + SAMPLE_NS;
        self.refresh_stats();
        let not_carried = self.flows.iter_mut().flat_map(|flow| flow.handler.take_not_carried()).collect();
        let _ = self.events.send(WorkerEvent::Sample {
            worker: self.index,
            stats: Box::new(self.stats.clone()),
            interval: Box::new(self.recorder.take_interval()),
            not_carried,
        });
    }

    fn refresh_stats(&mut self) {
        let counters = self.ring.counters();
        self.stats.enters = counters.enters;
        self.stats.sqes = counters.sqes;
        self.stats.cqes = counters.cqes;
        self.stats.short_writes = counters.short_writes;
        self.stats.chain_breaks = counters.chain_breaks;
        self.stats.zero_copy_sends = counters.zc_sends;
        self.stats.zero_copy_copied = counters.zc_copied;
        self.stats.cpu_ns = uring::cpu::thread_cpu_ns();
        self.stats.unacked_bytes = self.lanes.iter().map(|lane| lane.unacked_bytes as u64).sum();
        self.stats.unacked_commands = self.lanes.iter().map(|lane| lane.unacked_commands).sum();
        self.stats.flows = self
            .flows
            .iter()
            .map(|flow| FlowSample {
                flow: flow.id.0,
                bytes_in: flow.bytes_in,
                keys: flow.handler.converter.tally().total().keys_read,
                state: flow.state.name(),
                unread_ns_max: flow.unread_ns_max,
            })
            .collect();
        self.stats.strays_dropped = self.flows.iter().map(|flow| flow.handler.counts.strays_dropped).sum();
        self.stats.keys = self.stats.flows.iter().map(|flow| flow.keys).sum();
    }

    fn finish(mut self) -> WorkerSummary {
        self.refresh_stats();
        let mut summary = WorkerSummary {
            worker: self.index,
            tallies: Vec::new(),
            not_carried: Vec::new(),
            suspects: Vec::new(),
            strays_dropped: 0,
            owner_unknown: 0,
            existing_skipped: 0,
            expiries: Expiries::default(),
            journal_records: 0,
            journal_by_name: Vec::new(),
            marked: self.lanes.iter().map(|l| (l.guard.marker.clone(), l.guard.marked_dbs.clone())).collect(),
            interval: self.recorder.take_interval(),
            stats: self.stats.clone(),
            source_version: None,
        };
        for flow in &mut self.flows {
            let handler = &mut flow.handler;
            summary.not_carried.extend(handler.take_not_carried());
            for (name, counts) in handler.translator.by_name() {
                let seen = counts.written + counts.dropped + counts.left_out;
                summary.journal_by_name.push((name.to_string(), seen));
            }
            summary.tallies.push(handler.converter.tally().clone());
            summary.suspects.extend(handler.suspects.drain());
            summary.strays_dropped += handler.counts.strays_dropped;
            summary.owner_unknown += handler.counts.owner_unknown;
            summary.existing_skipped += handler.counts.existing_skipped;
            summary.expiries.held += handler.held.held_count;
            summary.expiries.not_held += handler.held.overflow_count;
            summary.expiries.passed_at_release += handler.counts.expired_at_release;
            summary.expiries.flows_at_risk += u64::from(handler.counts.expiry_passed);
            summary.journal_records += handler.counts.journal_records;
            summary.source_version =
                summary.source_version.or_else(|| handler.converter.source_version().map(str::to_string));
        }
        summary
    }
}

/// Moves the positions of an acknowledged batch forward.
fn confirm(flows: &mut [Flow], confirmed: &[AtomicU64], batch: &super::batch::Batch) {
    for (id, lsn) in &batch.positions {
        if let Some(flow) = flows.iter_mut().find(|flow| flow.id == *id) {
            flow.confirmed(*lsn);
        }
        if let Some(shared) = confirmed.get(id.0 as usize) {
            shared.fetch_max(lsn.0, Ordering::Release);
        }
    }
}

/// Records the three latencies of an acknowledged batch and counts it.
fn record_acked(recorder: &mut Recorder, stats: &mut WorkerStats, node: u16, batch: &super::batch::Batch, now_ns: u64) {
    let commands = u64::from(batch.commands);
    recorder.record(Latency::ApplyLag, node, now_ns.saturating_sub(batch.first_read_ns), commands);
    recorder.record(Latency::Service, node, now_ns.saturating_sub(batch.submitted_ns), 1);
    stats.batches += 1;
    stats.commands += commands;
    stats.replies += commands;
    stats.batch_bytes += batch.bytes as u64;
    stats.batch_bytes_max = stats.batch_bytes_max.max(batch.bytes as u64);
}

fn submit_lane(
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

/// Whether a lane (and the slab) can take one more event.
#[inline]
pub fn has_room(slab: &uring::Slab, lane: &mut Lane, window_bytes: usize) -> bool {
    if lane.unacked_bytes + lane.encoder.batch.bytes >= window_bytes {
        lane.window_full = true;
    }
    !lane.window_full && slab.free_count(Class::Tx) > TX_CHUNKS_RESERVE
}
