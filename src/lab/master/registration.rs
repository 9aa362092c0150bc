//! One registration (sync id) of a replica: which flows it opened, its phase, and the threads that write the flows.
//!
//! Invariants: phases only go forward (preparation, full sync, stable); a cancelled registration writes nothing more.

use super::{FlowFeed, Shared, Violation};
use crate::lab::flow::{FlowShared, FlowWriter};
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Preparation,
    FullSync,
    Stable,
}

pub(super) struct Registration {
    pub sync_id: u64,
    /// What the writer of each flow shows of itself.
    pub flows: Vec<Arc<FlowShared>>,
    /// REPLCONF CLIENT-ID told who it is.
    pub named: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    phase: Phase,
    cancelled: bool,
    streams: Vec<Option<TcpStream>>,
    /// Flows that answered PARTIAL: what they will be sent.
    partial: Vec<Option<Box<dyn FlowFeed>>>,
    /// The token was written.
    finished: Vec<bool>,
    acks: Vec<Option<u64>>,
    acks_count: Vec<u64>,
    acks_log: Vec<AckSeen>,
}

/// One `REPLCONF ACK`.
#[derive(Clone, Copy, Debug)]
pub struct AckSeen {
    pub at: Instant,
    pub flow: usize,
    pub lsn: u64,
}

/// So many are remembered.
const ACKS_LOG_MAX: usize = 100_000;

impl Registration {
    pub fn new(sync_id: u64, flows_count: usize) -> Self {
        Self {
            sync_id,
            flows: (0..flows_count).map(|_| Arc::default()).collect(),
            named: AtomicBool::new(false),
            state: Mutex::new(State {
                phase: Phase::Preparation,
                cancelled: false,
                streams: (0..flows_count).map(|_| None).collect(),
                partial: (0..flows_count).map(|_| None).collect(),
                finished: vec![false; flows_count],
                acks: vec![None; flows_count],
                acks_count: vec![0; flows_count],
                acks_log: Vec::new(),
            }),
            changed: Condvar::new(),
        }
    }

    /// A flow's connection arrived: writes `reply` and counts it as open, in one step, because SYNC may follow as soon
    /// as the client has the reply. False: wrong phase, the flow is open already, or the connection is gone.
    pub fn open_flow(
        &self,
        flow: usize,
        mut stream: TcpStream,
        reply: &[u8],
        partial: Option<Box<dyn FlowFeed>>,
    ) -> bool {
        let mut state = self.state();
        if state.cancelled || state.phase != Phase::Preparation || state.streams[flow].is_some() {
            return false;
        }
        let sent = stream.write_all(reply).is_ok();
        state.streams[flow] = sent.then_some(stream);
        state.partial[flow] = partial;
        sent
    }

    /// DFLY SYNC: starts the writers.
    pub fn sync(self: &Arc<Self>, shared: &Arc<Shared>) -> Result<(), Option<Violation>> {
        let streams: Vec<TcpStream> = {
            let mut state = self.state();
            let open = state.streams.iter().flatten().count();
            if state.cancelled {
                return Err(None);
            }
            if state.phase != Phase::Preparation {
                return Err(Some(Violation::SyncTwice));
            }
            if open < self.flows.len() {
                return Err(Some(Violation::SyncBeforeFlows { open, flows_count: self.flows.len() }));
            }
            if let Some(flow) =
                state.partial.iter().position(Option::is_some).filter(|_| !shared.feed.partial_by_sync())
            {
                return Err(Some(Violation::SyncAfterPartial { flow }));
            }
            if state.partial.iter().all(Option::is_some) {
                shared.partial_count.fetch_add(1, Ordering::AcqRel);
            }
            state.phase = Phase::FullSync;
            state.streams.iter().flatten().filter_map(|s| s.try_clone().ok()).collect()
        };
        for (flow, stream) in streams.into_iter().enumerate() {
            let (registration, shared) = (self.clone(), shared.clone());
            std::thread::spawn(move || registration.write_flow(&shared, flow, stream));
        }
        Ok(())
    }

    /// DFLY STARTSTABLE: releases the writers and waits until every flow's token is written. `Ok(false)`: cancelled
    /// meanwhile. Coming too early is noted, and does what it does at a real master: it waits.
    pub fn start_stable(self: &Arc<Self>, shared: &Arc<Shared>) -> Result<bool, Option<Violation>> {
        let mut state = self.state();
        let all_partial = !shared.feed.partial_by_sync() && state.partial.iter().all(Option::is_some);
        if state.phase == Phase::Preparation && !state.cancelled && all_partial {
            self.start_partial(shared, &mut state);
            return Ok(true);
        }
        if state.phase == Phase::Preparation && !state.cancelled {
            // Whoever was granted a partial sync may try this first, to learn which protocol the master speaks (wire 1.7).
            let trying = state.partial.iter().all(Option::is_some);
            return Err((!trying).then_some(Violation::StableBeforeSync));
        }
        if state.phase == Phase::Stable || state.cancelled {
            return Err(None);
        }
        let early = |flow: &usize| !self.flows[*flow].full_sync_end.load(Ordering::Acquire);
        for flow in (0..self.flows.len()).filter(early) {
            shared.violation(Violation::StableBeforeFullSyncEnd { flow });
        }
        state.phase = Phase::Stable;
        self.changed.notify_all();
        while !state.cancelled && state.finished.contains(&false) {
            state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        if !state.finished.contains(&false) {
            shared.finished_count.fetch_add(1, Ordering::AcqRel);
        }
        Ok(!state.cancelled)
    }

    /// All flows answered PARTIAL: their journals follow at once.
    fn start_partial(self: &Arc<Self>, shared: &Arc<Shared>, state: &mut State) {
        state.phase = Phase::Stable;
        shared.partial_count.fetch_add(1, Ordering::AcqRel);
        for flow in 0..self.flows.len() {
            let stream = state.streams[flow].as_ref().and_then(|stream| stream.try_clone().ok());
            let (Some(mut feed), Some(stream)) = (state.partial[flow].take(), stream) else { continue };
            let (registration, shared) = (self.clone(), shared.clone());
            std::thread::spawn(move || {
                let (faults, sent) = (&shared.options.faults, registration.flows[flow].clone());
                let written = FlowWriter::new(stream, flow as u32, registration.sync_id, None, faults, sent)
                    .and_then(|mut out| feed.stable(&mut out));
                if written.is_err() {
                    shared.cancel(&registration);
                }
            });
        }
    }

    pub fn is_stable(&self) -> bool {
        let state = self.state();
        state.phase == Phase::Stable && !state.cancelled
    }

    /// As INFO REPLICATION names it.
    pub fn state_name(&self) -> &'static str {
        match self.state().phase {
            Phase::Preparation => "preparation",
            Phase::FullSync => "full_sync",
            Phase::Stable => "stable_sync",
        }
    }

    /// Closes one flow's connection, as a network does; that cancels the registration.
    pub fn cut(&self, flow: usize) {
        if let Some(Some(stream)) = self.state().streams.get(flow) {
            stream.shutdown(Shutdown::Both).ok();
        }
    }

    pub fn ack(&self, flow: usize, lsn: u64) {
        let mut state = self.state();
        state.acks[flow] = Some(lsn);
        state.acks_count[flow] += 1;
        if state.acks_log.len() < ACKS_LOG_MAX {
            state.acks_log.push(AckSeen { at: Instant::now(), flow, lsn });
        }
    }

    pub fn acks(&self) -> Vec<Option<u64>> {
        self.state().acks.clone()
    }

    pub fn acks_count(&self) -> Vec<u64> {
        self.state().acks_count.clone()
    }

    pub fn acks_log(&self) -> Vec<AckSeen> {
        self.state().acks_log.clone()
    }

    pub fn cancelled(&self) -> bool {
        self.state().cancelled
    }

    /// Stops the writers and shuts all flow sockets; the main connection stays open.
    pub fn cancel(&self) {
        let mut state = self.state();
        state.cancelled = true;
        for flow in &self.flows {
            flow.cancelled.store(true, Ordering::Release);
        }
        for stream in state.streams.iter().flatten() {
            stream.shutdown(Shutdown::Both).ok();
        }
        self.changed.notify_all();
    }

    fn write_flow(&self, shared: &Shared, flow: usize, stream: TcpStream) {
        let granted = self.state().partial[flow].take();
        let mut feed = granted.unwrap_or_else(|| shared.feed.open(flow));
        let written = (|| {
            let (total, faults) = (feed.total_bytes(), &shared.options.faults);
            let mut out = FlowWriter::new(stream, flow as u32, self.sync_id, total, faults, self.flows[flow].clone())?;
            feed.snapshot(&mut out)?;
            let mut state = self.state();
            while !state.cancelled && state.phase < Phase::Stable {
                state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
            }
            if state.cancelled {
                return Ok(());
            }
            drop(state);
            feed.finish(&mut out)?;
            self.state().finished[flow] = true;
            self.changed.notify_all();
            feed.stable(&mut out)
        })();
        if written.is_err() {
            shared.cancel(self);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
