//! What the control plane tells a worker, carried out at the beginning of a turn.
//!
//! In: `WorkerCommand`s. Out: the worker's flows and lanes changed; suspects listed, and deleted where the source has them no more.

use super::Worker;
use crate::engine::error::EngineError;
use crate::engine::fetch::Answer;
use crate::engine::flow::Flow;
use crate::engine::global::Emptied;
use crate::engine::held::positions;
use crate::engine::messages::{Lost, WorkerCommand, WorkerEvent};
use crate::engine::outlet::Outlet;
use crate::ids::{DbIndex, FlowId};
use crate::uring;
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
                Ok(WorkerCommand::LeaveSource { read_on }) => self.leave_source(read_on, now_ns),
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
                Ok(WorkerCommand::Doubt(Lost { flow, db, key, .. })) => {
                    if let Some(flow) = self.flows.iter_mut().find(|of| of.id == flow) {
                        // It stands in the checkpoint already.
                        let _ = flow.lost(db, key, &self.events);
                    }
                }
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
                Ok(WorkerCommand::DeleteSuspects(keys)) => self.delete_suspects(keys)?,
                Err(mpsc::TryRecvError::Empty) => return Ok(false),
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
        let mut keys = Vec::new();
        for flow in &self.flows {
            keys.extend(flow.handler.suspects.list().map(|(db, key)| (flow.id, db, key.to_vec())));
        }
        let _ = self.events.send(WorkerEvent::Suspects { worker: self.index, keys });
    }

    fn delete_suspects(&mut self, keys: Vec<(FlowId, DbIndex, Vec<u8>)>) -> Result<(), EngineError> {
        for (id, db, key) in keys {
            let Some(flow) = self.flows.iter_mut().find(|flow| flow.id == id) else { continue };
            // A record that came meanwhile has settled it: then the key's fate is in the journal.
            if flow.handler.suspects.is_suspect(db, &key) {
                flow.handler.suspects.settled(db, &key);
                // The source was asked by its own name.
                let (db, key) = flow.handler.scope().at_target(db, &key)?;
                let mut outlet = match &mut self.router {
                    None => Outlet::One(&mut self.lanes[flow.lane]),
                    Some(router) => Outlet::Cluster { lanes: &mut self.lanes, router },
                };
                outlet.delete(self.ring.slab_mut(), self.settings.batch_bytes, id, db, &key);
            }
        }
        Ok(())
    }
}
