//! What the control plane tells a worker, carried out at the beginning of a turn.
//!
//! In: `WorkerCommand`s. Out: the worker's flows and lanes changed; suspects listed, keys put in doubt.

use super::Worker;
use crate::convert::journal::Suspect;
use crate::engine::error::EngineError;
use crate::engine::fetch::Answer;
use crate::engine::flow::Flow;
use crate::engine::global::Emptied;
use crate::engine::held::positions;
use crate::engine::messages::{Lost, WorkerCommand, WorkerEvent};
use crate::ids::{DbIndex, FlowId};
use crate::uring;
use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

impl Worker {
    /// Returns whether to stop.
    pub(super) fn take_commands(&mut self, now_ns: u64) -> Result<bool, EngineError> {
        loop {
            match self.commands.try_recv() {
                Ok(WorkerCommand::Stop) | Err(mpsc::TryRecvError::Disconnected) => return Ok(true),
                Ok(WorkerCommand::Resume { lane, generation, socket, client_id, applied }) => {
                    if let Some(lane) = self.lanes.get_mut(lane) {
                        lane.client_id = client_id;
                    }
                    self.resume(lane, generation, socket, applied, now_ns)?;
                }
                Ok(WorkerCommand::ConnectAnew) => self.connect_anew()?,
                Ok(WorkerCommand::Settled(settled)) => self.settled(*settled, now_ns)?,
                Ok(WorkerCommand::ReleaseBarrier) => {
                    self.barrier_told = false;
                    self.releases += 1;
                    let emptied = self.emptied();
                    for flow in &mut self.flows {
                        if let Some(lsn) = flow.release_barrier()
                            && let Some(shared) = self.confirmed.get(flow.id.0 as usize)
                        {
                            shared.fetch_max(lsn.0, Ordering::Release);
                        }
                    }
                    if let Some(router) = &mut self.router {
                        router.passed(positions(&self.flows), &emptied);
                    }
                }
                Ok(WorkerCommand::LeaveSource { read_on, asks }) => self.leave_source(read_on, asks, now_ns),
                Ok(WorkerCommand::Drain) => self.draining = true,
                Ok(WorkerCommand::Settle { number, release }) => {
                    self.settling = Some(number);
                    if release {
                        // The source is fenced and everything of it is applied: no renewal follows, unless all is rolled back.
                        let now_ms = uring::clock::realtime_ms() as i64;
                        self.flows.iter_mut().for_each(|flow| flow.handler.release_all(now_ms));
                    }
                }
                Ok(WorkerCommand::Seal { number }) => {
                    self.settling = Some(number);
                    self.flows.iter_mut().for_each(|flow| flow.seal(true));
                }
                Ok(WorkerCommand::GoOn) => {
                    for flow in &mut self.flows {
                        flow.seal(false);
                        flow.handler.begin_holding_again();
                    }
                }
                Ok(WorkerCommand::ReleaseHeld) => {
                    let now_ms = uring::clock::realtime_ms() as i64;
                    self.flows.iter_mut().for_each(|flow| flow.handler.release_all(now_ms));
                    self.drained = false;
                }
                Ok(WorkerCommand::Doubt(lost)) => self.doubtful.push_back(lost),
                Ok(WorkerCommand::Fetched(answer)) => {
                    let Answer { lost, question, answer } = *answer;
                    if let Some(flow) = self.flows.iter_mut().find(|flow| flow.id == lost.flow) {
                        flow.handler.doubts.answered(lost.db, &lost.key, question, answer);
                    }
                }
                Ok(WorkerCommand::Found(names)) => {
                    // Any flow may keep them: what it knows of the others is how far the last of them is applied.
                    let count = self.flows.len().max(1);
                    for (i, name) in names.iter().enumerate() {
                        if let Some(flow) = self.flows.get_mut(i % count) {
                            flow.handler.held.found(name);
                        }
                    }
                }
                Ok(WorkerCommand::ListSuspects) => self.list_suspects(),
                Ok(WorkerCommand::ForgetSuspects) => self.forget_suspects(),
                Err(mpsc::TryRecvError::Empty) => {
                    self.doubt_more();
                    return Ok(false);
                }
            }
        }
    }

    /// By the command that the flows stand before.
    fn emptied(&self) -> Emptied {
        let command = |flow: &Flow| {
            let barrier = flow.stable.as_ref()?.barrier.as_ref()?;
            Some(Emptied::by(&barrier.command, flow.handler.scope()))
        };
        self.flows.iter().find_map(command).unwrap_or(Emptied::Nothing)
    }

    fn list_suspects(&mut self) {
        let (mut keys, mut changed) = (Vec::new(), Vec::new());
        for flow in &mut self.flows {
            for Suspect { db, key, is_changed } in flow.handler.suspects.list() {
                let list = if is_changed { &mut changed } else { &mut keys };
                list.push(Lost { flow: flow.id, db, key });
            }
        }
        let _ = self.events.send(WorkerEvent::Suspects { keys, changed });
    }

    /// But those that are in doubt: what is written again settles them.
    fn forget_suspects(&mut self) {
        let waiting = self.doubtful.iter().map(|lost| (lost.flow, lost.db, lost.key.as_slice()));
        let waiting: HashSet<(FlowId, DbIndex, &[u8])> = waiting.collect();
        for flow in &mut self.flows {
            let (id, handler) = (flow.id, &mut flow.handler);
            let doubts = &handler.doubts;
            handler.suspects.keep(|db, key| waiting.contains(&(id, db, key)) || doubts.has(db, key));
        }
    }

    /// Puts keys that wait for it in doubt, as many as there is room for. They stand in the checkpoint already.
    fn doubt_more(&mut self) {
        while let Some(lost) = self.doubtful.front() {
            let flow = self.flows.iter_mut().find(|flow| flow.id == lost.flow);
            if flow.as_ref().is_some_and(|flow| !flow.handler.doubts.has_room()) {
                return;
            }
            if let (Some(flow), Some(Lost { db, key, .. })) = (flow, self.doubtful.pop_front()) {
                let _ = flow.lost(db, key, &self.events);
            }
        }
    }
}
