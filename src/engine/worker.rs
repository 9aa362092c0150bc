//! One worker: a ring, a slab, a share of the flows, and its own connections to the target. Nothing is shared with other
//! workers but atomics read once a turn.
//!
//! In: connected sockets of its flows, commands from the control plane. Out: the target's connections fed, and
//! `WorkerEvent`s. One turn: submit everything due in one `io_uring_enter`, reap all completions, then process them.
//! Invariants: work per turn is bounded, so that no flow starves another; decoding stops while a connection's window or
//! the send chunks are used up, so memory is bounded by construction.

use super::error::EngineError;
use super::figures::SAMPLE_NS;
use super::flow::{Flow, FlowState, Heaps, Pumped};
use super::handle::FlowHandler;
use super::held::HeldState;
use super::hold::HoldState;
use super::input::HeapBudget;
use super::lane::{Lane, Link};
use super::lanes::{remember, submit_lane};
use super::messages::{Lost, WorkerCommand, WorkerEvent, WorkerStart, WorkerSummary};
use super::outlet::Outlet;
use super::replicas::Unproven;
use super::router::Router;
use super::settings::MigrateSettings;
use super::sizes::Sizes;
use super::spool::{ChunkPool, SpoolFile};
use super::throttle::Gate;
use super::upstream::Gone;
use super::witness::Witness;
use crate::ids::Lsn;
use crate::redis::resp;
use crate::report::counters::WorkerStats;
use crate::report::document::NotCarried;
use crate::report::latency::{Latency, Recorder};
use crate::uring::{self, Class, Completion, CompletionKind, Outgoing, Ring, Segment};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;

mod orders;

/// Room for send chunks that one event may need at the worst (a run of tiny elements grows about tenfold).
const TX_CHUNKS_RESERVE: usize = 16;

/// Longest wait in one turn: commands and the one-second sample are looked at this often.
const WAIT_MAX: Duration = Duration::from_millis(100);

const KIND_FLOW: u64 = 1;
pub(super) const KIND_REPLY: u64 = 2;
pub(super) const KIND_SEND: u64 = 3;
const KIND_ACK: u64 = 4;
const KIND_SPOOL_WRITE: u64 = 5;
const KIND_SPOOL_READ: u64 = 6;
const KIND_SPOOL_TRIM: u64 = 7;

pub(super) fn token(kind: u64, generation: u16, index: usize) -> u64 {
    kind << 56 | u64::from(generation) << 32 | index as u64
}

pub struct Worker {
    pub(super) index: usize,
    pub(super) settings: Arc<MigrateSettings>,
    sizes: Sizes,
    pub(super) ring: Ring,
    pub(super) flows: Vec<Flow>,
    pub(super) lanes: Vec<Lane>,
    /// The target is a cluster.
    pub(super) router: Option<Box<Router>>,
    pub(super) held: HeldState,
    /// Scripts that the target could not compile, to be listed.
    pub(super) refused_scripts: Vec<NotCarried>,
    /// Memory and file of the backlogs of all flows.
    pub(super) pool: ChunkPool,
    pub(super) spool: Option<SpoolFile>,
    heap: Heaps,
    pub(super) events: UnboundedSender<WorkerEvent>,
    commands: mpsc::Receiver<WorkerCommand>,
    pub(super) recorder: Recorder,
    pub(super) stats: WorkerStats,
    pub(super) next_sample_ns: u64,
    /// When it looks again at what the kernel knows of the targets' machines.
    pub(super) next_look_ns: u64,
    drained: bool,
    /// Told to decode nothing more.
    pub(super) draining: bool,
    pub(super) barrier_told: bool,
    /// To be put in doubt where there is room.
    pub(super) doubtful: VecDeque<Lost>,
    /// The registration at the source is over.
    pub(super) gone: Option<Gone>,
    /// Told that the source is to be let go.
    pub(super) let_go: bool,
    /// Global commands that were released.
    pub(super) releases: u64,
    /// Asked to say when nothing is left to be sent or answered.
    settling: Option<u64>,
    pub(super) confirmed: Arc<Vec<AtomicU64>>,
    /// Where replicas must confirm what is told.
    pub(super) unproven: Option<Unproven>,
    witness: Arc<Witness>,
    hold: Arc<HoldState>,
    /// Reads that needed no kernel (see `wire`), to be handled with this turn's completions.
    pub(super) here: Vec<Completion>,
    /// Flow that is pumped first this turn.
    pub(super) first_flow: usize,
    /// Longest time between two turns, in which nothing was read.
    pub(super) away_ns_max: u64,
    /// Bytes and commands of all lanes that were paid for at the throttle.
    pub(super) paid: (u64, u64),
}

/// The worker's thread: runs until stopped or failed, and tells the control plane how it ended.
pub fn run(start: WorkerStart) {
    let (index, events) = (start.index, start.events.clone());
    // Where panics unwind (not in release builds), one must not leave the control plane waiting for ever.
    let work = std::panic::AssertUnwindSafe(|| Worker::new(start).and_then(Worker::work));
    let result = std::panic::catch_unwind(work)
        .unwrap_or_else(|_| Err(EngineError::Internal(format!("worker {index} panicked (see standard error)"))));
    let event = match result {
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
            witness,
            router,
            replicas,
            hold,
            spool,
        } = start;
        if let Some(cpu) = cpu {
            uring::cpu::pin_current_thread(cpu)
                .map_err(|e| EngineError::System(format!("worker {index} cannot be pinned to CPU {cpu}: {e}")))?;
        }
        let mut ring = Ring::new(&settings.ring, sizes.layout).map_err(|e| EngineError::System(e.to_string()))?;
        let mut lanes: Vec<Lane> = lanes.into_iter().enumerate().map(|(i, lane)| Lane::new(i, lane)).collect();
        for lane in &mut lanes {
            let may_be_refused = settings.follow.is_some() || plan.capabilities.memory_limited;
            lane.one_group |= may_be_refused;
        }
        let heap = Heaps { outer: HeapBudget::new(sizes.heap_bytes_max), inner: HeapBudget::new(sizes.heap_bytes_max) };
        let follow = settings.follow.is_some();
        let mut built = Vec::with_capacity(flows.len());
        for (position, flow) in flows.into_iter().enumerate() {
            let mut handler = FlowHandler::new(flow.id, plan.clone(), owner.clone(), existing.clone());
            handler.unclear.fetches = follow;
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
        let router = router.map(|start| Box::new(Router::new(start)));
        if let Some(router) = &router {
            lanes.iter_mut().for_each(|lane| lane.marks = router.marks.clone());
        }
        let pool = ChunkPool::new(ring.slab_mut(), built.len(), sizes.spool_chunks);
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
            router,
            held: HeldState::default(),
            refused_scripts: Vec::new(),
            pool,
            spool: spool.map(|start| SpoolFile::new(start, sizes.layout.rx_chunk_bytes)),
            heap,
            events,
            commands,
            recorder: Recorder::new(),
            stats: WorkerStats::default(),
            next_sample_ns: uring::clock::monotonic_ns() + SAMPLE_NS,
            next_look_ns: 0,
            drained: false,
            draining: false,
            barrier_told: false,
            doubtful: VecDeque::new(),
            gone: None,
            let_go: false,
            releases: 0,
            settling: None,
            confirmed,
            unproven: replicas.map(Unproven::new),
            witness,
            hold,
            here: Vec::new(),
            first_flow: 0,
            away_ns_max: 0,
            paid: (0, 0),
        })
    }

    fn work(mut self) -> Result<WorkerSummary, EngineError> {
        let mut completions: Vec<Completion> = Vec::with_capacity(1024);
        let mut turned_ns = uring::clock::monotonic_ns();
        loop {
            let now_ns = uring::clock::monotonic_ns();
            if self.take_commands(now_ns)? {
                return Ok(self.finish());
            }
            self.take_knobs();
            let lacks_replicas = self.tend_unproven(now_ns);
            let stopped = self.draining || self.is_held() || lacks_replicas;
            let gate = if stopped { Gate::Paused } else { self.settings.control.throttle.gate(now_ns) };
            let more = match gate {
                Gate::Open => self.pump(now_ns)?,
                _ if self.draining && !self.is_held() => self.release_held(),
                _ => false,
            };
            self.note_positions(now_ns, true);
            self.send_acks(now_ns)?;
            // In front of what is submitted: behind it, it would wait for the next turn, and a fence with it.
            if self.draining || self.settling.is_some() {
                self.forget_watched();
            }
            self.submit(now_ns)?;
            self.pay(now_ns);
            self.read_flows(now_ns)?;
            self.end_quiet_flows(now_ns);
            self.arm_replies()?;
            self.tell_when_drained();
            self.tell_when_spent();
            self.lose_silent_lanes(now_ns)?;
            self.tell_when_held()?;
            if now_ns >= self.next_sample_ns {
                self.forget_watched();
                self.sample(now_ns);
            }
            let wait = match gate {
                _ if !self.here.is_empty() => Duration::ZERO,
                Gate::Wait(ns) => Duration::from_nanos(ns).min(WAIT_MAX),
                _ if more => Duration::ZERO,
                _ => WAIT_MAX,
            };
            completions.clear();
            self.away_ns_max = self.away_ns_max.max(uring::clock::monotonic_ns().saturating_sub(turned_ns));
            self.ring.turn(wait, &mut completions).map_err(|e| EngineError::System(e.to_string()))?;
            let now_ns = uring::clock::monotonic_ns();
            turned_ns = now_ns;
            for completion in &completions {
                self.complete(completion, now_ns)?;
            }
            for completion in std::mem::take(&mut self.here) {
                self.read_done(completion.token, completion.result, now_ns)?;
            }
            let Self { ring, recorder, .. } = &mut self;
            ring.slab_mut().drain_freed(|filled_ns| {
                recorder.record(Latency::Residence, 0, now_ns.saturating_sub(filled_ns), 1);
            });
        }
    }

    /// Decodes and converts what was received, as far as windows and memory allow. Returns whether there is more to do
    /// without any completion.
    fn pump(&mut self, now_ns: u64) -> Result<bool, EngineError> {
        let now_ms = uring::clock::realtime_ms() as i64;
        let count = self.flows.len();
        let easing = self.hold.easing();
        let (until_ms_min, horizon_ms) = (self.hold.applied_until_ms_min(), self.hold.horizon_ms());
        let mut more = false;
        for step in 0..count {
            let position = (self.first_flow + step) % count;
            let flow = &mut self.flows[position];
            let until_ms = self.hold.applied_until_ms(flow.id);
            flow.handler.turn(now_ms, until_ms, until_ms_min, horizon_ms, easing > 0);
            let lane = flow.lane;
            let mut outlet = match &mut self.router {
                None => Outlet::One(&mut self.lanes[lane]),
                Some(router) => Outlet::Cluster { lanes: &mut self.lanes, router },
            };
            let outlet = &mut outlet;
            // While a global command is executed nothing may write a position from before it.
            if !flow.handler.doubts.is_empty() && !self.barrier_told {
                flow.settle_doubts(self.ring.slab_mut(), outlet, &self.settings, now_ms, &self.events);
            }
            let pumped =
                flow.pump(self.ring.slab_mut(), outlet, &self.heap, &self.settings, &self.sizes, now_ms, &self.events)?;
            let unclear = flow.ask_unclear(&self.events);
            let (slab, batch_bytes) = (self.ring.slab_mut(), self.settings.batch_bytes);
            remember(&mut self.router, &mut self.lanes, lane, slab, batch_bytes, &unclear)?;
            self.hold.add_unnamed(flow.handler.held.take_overflow());
            if let Some(ahead) = flow.witnessed() {
                self.witness.publish(flow.id, ahead.read, ahead.wrote);
            }
            if easing > 0 {
                let given_back = flow.handler.holds_only_near(now_ms);
                self.hold.set_given_back(flow.id, if given_back { easing } else { 0 });
            }
            match pumped {
                Pumped::Budget => more = true,
                Pumped::Waiting => {}
            }
            if flow.apart.is_some() {
                self.hold();
                break;
            }
            // Keeps the kernel busy with what this flow produced while the next one is converted.
            let fed = if self.router.is_none() { lane..lane + 1 } else { 0..self.lanes.len() };
            for lane in &mut self.lanes[fed] {
                submit_lane(&mut self.ring, lane, &self.settings, now_ns, &mut self.stats)?;
            }
        }
        self.first_flow = (self.first_flow + 1) % count.max(1);
        Ok(more)
    }

    /// Nothing is decoded any more: what is left of held expiries is given back. Never more to do without a completion.
    fn release_held(&mut self) -> bool {
        let now_ms = uring::clock::realtime_ms() as i64;
        for flow in &mut self.flows {
            let mut outlet = match &mut self.router {
                None => Outlet::One(&mut self.lanes[flow.lane]),
                Some(router) => Outlet::Cluster { lanes: &mut self.lanes, router },
            };
            if !flow.handler.doubts.is_empty() && !self.barrier_told {
                flow.settle_doubts(self.ring.slab_mut(), &mut outlet, &self.settings, now_ms, &self.events);
            }
            flow.release_held(self.ring.slab_mut(), &mut outlet, &self.settings, now_ms);
            // A sweep may have named some meanwhile.
            self.hold.add_unnamed(flow.handler.held.take_overflow());
        }
        false
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
                let chunk = flow.read_chunk();
                match flow.wire.received(&mut self.ring, chunk, completion.token, completion.result)? {
                    Some(result) => self.read_done(completion.token, result, now_ns),
                    None => Ok(()),
                }
            }
            KIND_REPLY => {
                let Some(lane) = self.lanes.get_mut(position).filter(|lane| lane.generation == generation) else {
                    return Ok(());
                };
                let Link::Up(wire) = &mut lane.link else { return Ok(()) };
                match wire.received(&mut self.ring, lane.reply_chunk, completion.token, completion.result)? {
                    Some(result) => self.read_done(completion.token, result, now_ns),
                    None => Ok(()),
                }
            }
            KIND_SEND => {
                let Some(lane) = self.lanes.get_mut(position) else { return Ok(()) };
                if lane.generation != generation {
                    return Ok(());
                }
                let Link::Up(wire) = &mut lane.link else { return Ok(()) };
                let Some(result) = wire.sent(&mut self.ring, completion.token, completion.result)? else {
                    return Ok(());
                };
                if let Ok(n) = result {
                    self.stats.bytes_out += u64::from(n);
                }
                match lane.sent_completion(result) {
                    Some(errno) => {
                        let reason = lane.reason(errno);
                        self.lose_lane(position, reason)
                    }
                    None => {
                        self.sent(position, now_ns);
                        Ok(())
                    }
                }
            }
            KIND_ACK => {
                let Some(flow) = self.flows.get_mut(position) else { return Ok(()) };
                // A few bytes on an idle socket go out whole or not at all; a broken one shows at the next read.
                flow.wire.sent(&mut self.ring, completion.token, completion.result).map(drop)
            }
            KIND_SPOOL_WRITE | KIND_SPOOL_READ => {
                // The generation's place holds the flow, the position's the number of the segment.
                let (Some(flow), Some(spool)) = (self.flows.get_mut(usize::from(generation)), &mut self.spool) else {
                    return Ok(());
                };
                let (number, result, token) = (position as u32, completion.result, completion.token);
                if token >> 56 == KIND_SPOOL_WRITE {
                    flow.backlog.written(&mut self.ring, spool, number, result, token)
                } else {
                    flow.backlog.brought_back(&mut self.ring, spool, number, result, token)
                }
            }
            KIND_SPOOL_TRIM => {
                if let Some(spool) = &mut self.spool {
                    spool.trimmed(completion.result);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Bytes of a peer, or the end of them, are here.
    fn read_done(&mut self, token: u64, result: Result<u32, i32>, now_ns: u64) -> Result<(), EngineError> {
        let (generation, position) = ((token >> 32) as u16, token as u32 as usize);
        if token >> 56 != KIND_FLOW {
            return self.replies(position, generation, result, now_ns);
        }
        let Some(flow) = self.flows.get_mut(position) else { return Ok(()) };
        self.stats.flow_reads += 1;
        let read = match flow.read_done(self.ring.slab_mut(), result, now_ns) {
            Err(EngineError::Source(why)) if flow.stable.is_some() => {
                self.source_ended(position, why);
                return Ok(());
            }
            read => read?,
        };
        self.stats.bytes_in += read as u64;
        Ok(())
    }

    pub(super) fn flow_token(position: usize) -> u64 {
        token(KIND_FLOW, 0, position)
    }

    pub(super) fn spool_token(write: bool, position: usize, number: u32) -> u64 {
        let kind = if write { KIND_SPOOL_WRITE } else { KIND_SPOOL_READ };
        token(kind, position as u16, number as usize)
    }

    pub(super) fn trim_token() -> u64 {
        token(KIND_SPOOL_TRIM, 0, 0)
    }

    fn tell_when_drained(&mut self) {
        let at_barrier = |flow: &Flow| flow.state == FlowState::AtBarrier;
        // Of a source that is gone nothing is heard: keys in doubt are for the next session, and named in the checkpoint.
        let asks = self.gone.as_ref().is_none_or(|gone| gone.asks);
        let busy = |flow: &Flow| flow.handler.is_releasing() || asks && flow.handler.doubts.is_waiting();
        // Nor is anything begun for keys that found no room: what is answered here stays until its flow has come on.
        let at_rest = (self.gone.is_some() || self.doubtful.is_empty()) && !self.flows.iter().any(busy);
        let (stopped, settles) = (self.draining && at_rest, self.settling.is_some() && at_rest);
        let ended = !self.drained && (stopped || self.flows.iter().all(|flow| flow.is_complete()));
        let held = !self.barrier_told && !self.flows.is_empty() && self.flows.iter().all(at_barrier);
        if !(ended || held || settles) || self.is_held() || !self.lanes.iter().all(Lane::is_idle) {
            return;
        }
        if settles
            && self.is_noted()
            && let Some(number) = self.settling.take()
        {
            let _ = self.events.send(WorkerEvent::Settled(number));
        }
        if ended && self.is_noted() {
            self.drained = true;
            let _ = self.events.send(WorkerEvent::Drained);
        }
        // A position from before it that is still to be written would come behind those that are written with it.
        if held && self.is_noted() {
            self.barrier_told = true;
            let _ = self.events.send(WorkerEvent::BarrierDrained);
        }
    }

    /// Acknowledges what the target has confirmed to the source, on each flow's own connection.
    fn send_acks(&mut self, now_ns: u64) -> Result<(), EngineError> {
        for (position, flow) in self.flows.iter_mut().enumerate() {
            if !flow.upstream.is_read() {
                continue;
            }
            flow.wire.flush(&mut self.ring, token(KIND_ACK, 0, position))?;
            let Some(stable) = &mut flow.stable else { continue };
            // Before the snapshot is confirmed there is nothing to acknowledge.
            if stable.acked_lsn == Lsn(0) || stable.in_blobs || flow.wire.is_sending() {
                continue;
            }
            if let Some(lsn) = stable.ack_due(now_ns) {
                let request = resp::command(&[b"REPLCONF", b"ACK", lsn.to_string().as_bytes()]);
                let segments = [Segment::Heap(request.into())];
                let ack = Outgoing { segments: &segments, skip_bytes: 0, token: token(KIND_ACK, 0, position) };
                flow.wire.send(&mut self.ring, &[ack])?;
            }
        }
        Ok(())
    }
}

/// Whether a lane (and the slab) can take one more event.
#[inline]
pub fn has_room(slab: &uring::Slab, lane: &mut Lane, window_bytes: usize) -> bool {
    if lane.unacked_bytes + lane.encoder.batch.bytes >= window_bytes {
        lane.window_full = true;
    }
    !lane.window_full && slab.free_count(Class::Tx) > TX_CHUNKS_RESERVE
}
