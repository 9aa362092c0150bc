//! The job's side of a cutover: one at a time is begun, served with what only the job can do, and ended with it.
//!
//! In: requests from the control socket, orders of the running cutover. Out: the job settled, or ended with nothing of this
//! tool's left at the target. Invariant: a cutover outlives the session that it is about only to be rolled back, or (after a
//! takeover, which ends the source) to be ended well.

use super::control::{CutoverAsked, RepairAsked};
use super::crew::Crew;
use super::cutover::{HookEvent, Undone};
use super::error::EngineError;
use super::handover::{self, Handover, Order, OwnKeys, facts};
use super::hooks;
use super::import::{self, ImportMode};
use super::job::{HURRY_MAX, Job, Signals};
use super::messages::{Lost, WorkerCommand};
use super::own;
use super::phase::Phase;
use super::source::Source;
use super::sweep::{FAST, sweep};
use super::target::{self, Target};
use crate::convert::hold::ALL;
use crate::ids::DbIndex;
use crate::report::cutover::{CutoverOutcome, CutoverReport};
use std::ops::ControlFlow;
use std::pin::pin;
use tokio::sync::mpsc::{Receiver, UnboundedReceiver, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A cutover under way.
struct Running {
    task: JoinHandle<CutoverReport>,
    orders: UnboundedReceiver<Order>,
    /// No session is in its way any more.
    is_rolled_back: bool,
}

/// Where cutovers are asked for, and the one that is under way.
#[derive(Default)]
pub(super) struct Desk {
    asked: Option<Receiver<CutoverAsked>>,
    repairs: Option<Receiver<RepairAsked>>,
    running: Option<Running>,
    /// The job is to end.
    ending: Option<(OwnKeys, oneshot::Sender<Result<(), Undone>>)>,
    in_step_told: bool,
}

/// What comes to the desk.
pub(super) enum DeskEvent {
    Asked(CutoverAsked),
    Repair(RepairAsked),
    Order(Order),
    Ended(CutoverReport),
}

impl Desk {
    pub fn new(asked: Option<Receiver<CutoverAsked>>, repairs: Option<Receiver<RepairAsked>>) -> Self {
        Self { asked, repairs, ..Self::default() }
    }

    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Another session must not begin yet.
    fn needs_session(&self) -> bool {
        self.running.as_ref().is_some_and(|running| !running.is_rolled_back)
    }

    /// The next thing; may be dropped at any time.
    pub async fn next(&mut self) -> DeskEvent {
        let Some(running) = &mut self.running else {
            let (asked, repairs) = (&mut self.asked, &mut self.repairs);
            return tokio::select! {
                Some(asked) = next_of(asked) => DeskEvent::Asked(asked),
                Some(repair) = next_of(repairs) => DeskEvent::Repair(repair),
                else => std::future::pending().await,
            };
        };
        let report = tokio::select! {
            biased;
            Some(order) = running.orders.recv() => {
                running.is_rolled_back |= matches!(order, Order::RolledBack);
                return DeskEvent::Order(order);
            }
            report = &mut running.task => report,
        };
        self.running = None;
        DeskEvent::Ended(report.unwrap_or_else(|error| CutoverReport {
            outcome: CutoverOutcome::NotDone,
            message: Some(format!("internal error: the cutover's task ended: {error}; please report it")),
            ..CutoverReport::default()
        }))
    }
}

async fn next_of<T>(asked: &mut Option<Receiver<T>>) -> Option<T> {
    match asked {
        Some(asked) => asked.recv().await,
        None => std::future::pending().await,
    }
}

impl Job<'_> {
    /// Has a key copied again from the source, in order with the journal: as one that the target lost.
    pub(super) fn begin_repair(&self, asked: RepairAsked, crew: &Crew, drains: bool) {
        let RepairAsked { db, key, done } = asked;
        let result = match crew.flow_of(&key) {
            _ if drains => Err("the source is gone".to_string()),
            _ if crew.is_cluster() && self.settings.scope.target_db(db) != Ok(DbIndex(0)) => {
                Err("a cluster has only database 0".into())
            }
            _ if self.settings.scope.admits(db, &key, None).is_err() => Err("the job leaves the key out".into()),
            _ if !self.settings.scope.is_alone(db) => {
                Err("several databases go into this one of the target (--db-merge): whose key it is cannot be told"
                    .into())
            }
            None => Err("which flow the key comes on is not known, so the order with its records is not".into()),
            Some(flow) => {
                crew.tell_flow(flow, WorkerCommand::Doubt(Lost { flow, db, key }));
                Ok(())
            }
        };
        let _ = done.send(result);
    }

    /// `owned`: the target held nothing else when the job began.
    pub(super) fn begin_cutover(&mut self, asked: CutoverAsked, source: &Source, crew: &Crew, owned: bool) {
        let (orders_tx, orders) = unbounded_channel();
        let handover = Handover {
            settings: self.settings.clone(),
            control: self.settings.control.clone(),
            orders: orders_tx,
            sync_id: source.registered().map(|registration| registration.sync_id.clone()).unwrap_or_default(),
            session: self.sessions,
            cluster: crew.is_cluster(),
            hold: crew.hold().clone(),
            witness: crew.witness().clone(),
            owned,
            markers: crew.markers().to_vec(),
        };
        let task = tokio_uring::spawn(handover::run(handover, asked));
        self.desk.running = Some(Running { task, orders, is_rolled_back: false });
    }

    /// Everything is at the target and the traffic was switched: the job ends.
    pub(super) fn begin_end(&mut self, keys: OwnKeys, done: oneshot::Sender<Result<(), Undone>>) {
        self.enter(Phase::HandingOver);
        self.desk.ending = Some((keys, done));
    }

    pub(super) fn cutover_ended(&mut self, report: CutoverReport) {
        match (&report.outcome, &report.message) {
            (CutoverOutcome::NotDone, Some(why)) => tracing::warn!(%why, "cutover not done"),
            (outcome, _) => tracing::info!(?outcome, "cutover ended"),
        }
        self.report.cutover = Some(report);
        self.settings.control.cutover_over();
    }

    /// A session has ended while a cutover was under way: it is rolled back, and the error is given back (its last hook goes on beside
    /// what follows), or it has ended the source itself, and the job is over, with this.
    pub(super) async fn outlive_cutover(
        &mut self,
        probed: &Target,
        error: EngineError,
        signals: &mut Signals,
    ) -> ControlFlow<Result<(), EngineError>, EngineError> {
        if !self.desk.needs_session() {
            return ControlFlow::Continue(error);
        }
        // Who lost the lease does nothing more at the target.
        let may_end = !matches!(error, EngineError::LeaseLost(_));
        if self.desk.ending.is_some() && may_end {
            // The traffic is switched, at proven positions: there is no way back, and nothing more to come.
            signals.hurries |= matches!(error, EngineError::Interrupted);
            tracing::warn!(%error, "the session ended while the job was being ended");
            return ControlFlow::Break(self.end_outside_session(probed, error, signals).await);
        }
        self.desk.ending = None;
        self.settings.control.cancel_cutover(&format!("the session with the source ended: {error}"));
        while self.desk.needs_session() {
            let event = tokio::select! {
                event = self.desk.next() => event,
                () = signals.next() => match signals.taken() {
                    1 => continue,
                    // What is fenced ends by itself, and hooks with this process.
                    _ => return ControlFlow::Continue(EngineError::Interrupted),
                },
            };
            match event {
                DeskEvent::Order(Order::End { keys, done }) if may_end => {
                    self.begin_end(keys, done);
                    return ControlFlow::Break(self.end_outside_session(probed, error, signals).await);
                }
                // Whoever asked hears that nobody answers any more.
                DeskEvent::Order(_) | DeskEvent::Asked(_) | DeskEvent::Repair(_) => {}
                DeskEvent::Ended(report) => self.cutover_ended(report),
            }
        }
        ControlFlow::Continue(error)
    }

    /// The workers are gone, and with them the names of expiries that they held back. What the session ended with, and what the nodes
    /// say of what they have acknowledged, is how the job ends: there is no source any more to bring it.
    async fn end_outside_session(
        &mut self,
        probed: &Target,
        error: EngineError,
        signals: &mut Signals,
    ) -> Result<(), EngineError> {
        let lost = match error {
            // As expected, or by who wants it so: what was read is applied.
            EngineError::Source(_) | EngineError::LetGo(_) | EngineError::Interrupted => {
                signals.hurry(self.check_nodes_again()).await.err()
            }
            error => Some(error),
        };
        let late = signals.hurry(self.put_expiries_right(probed, &lost)).await.err();
        for error in lost.iter().chain(&late) {
            tracing::error!(%error, "behind the switch, so there is no way back: compare what the target holds");
        }
        self.hand_over(probed, lost.or(late), signals).await
    }

    async fn check_nodes_again(&self) -> Result<(), EngineError> {
        match &self.nodes {
            Some(cluster) => cluster.lock().await.check_nodes().await,
            None => Ok(()),
        }
    }

    async fn put_expiries_right(&mut self, probed: &Target, lost: &Option<EngineError>) -> Result<(), EngineError> {
        let mut link = match lost {
            Some(_) => self.control_again(probed).await?,
            None => self.control_patiently(probed, &EngineError::Interrupted).await?,
        };
        let swept = sweep(&mut link, &probed.capabilities, || ALL, || FAST, self.settings.retry_max).await?;
        self.report.expiries.put_right_by_sweep += swept.put_right;
        swept.whole().map(drop)
    }

    /// Removes what is this tool's at the target and waits for the end of the cutover. `lacks`: why the target may lack something.
    pub(super) async fn hand_over(
        &mut self,
        probed: &Target,
        lacks: Option<EngineError>,
        signals: &mut Signals,
    ) -> Result<(), EngineError> {
        let Some((keys, done)) = self.desk.ending.take() else { return Ok(()) };
        // There is nothing any more that the job could go on from.
        (self.resumable, self.handed_over) = (false, true);
        let removed = signals.hurry(self.remove_own(probed, keys)).await;
        if let Err(error) = &removed {
            tracing::warn!(%error, "keys of this tool are left at the target");
        }
        // Before the lease is given back, and before a hook is waited for: the target has its traffic.
        let is_ended = signals.hurry(async { Ok(self.end_import_mode().await) }).await;
        let is_ended = is_ended.unwrap_or_else(|error| {
            Err(format!("the target may be in import mode, and expire nothing (CONFIG SET import-mode no): {error}"))
        });
        self.give_lease_back().await;
        // What the error says to do is for a job that may go on.
        let lacks_text = lacks.as_ref().map(|error| {
            format!(
                "the target may lack something; compare it, and do not run the job into it again, for it has the traffic: {error}"
            )
        });
        let left = removed.err().map(|error| {
            format!("keys that begin with {} are left at the target and may be deleted: {error}", target::OWN_PREFIX)
        });
        let notes: Vec<String> = lacks_text.clone().into_iter().chain(left).chain(is_ended.err()).collect();
        let _ = done.send(match notes.is_empty() {
            true => Ok(()),
            false => Err(Undone { text: notes.join("; "), lacks: lacks.is_some() }),
        });
        self.outlast_cutover(signals).await;
        self.enter(Phase::Done);
        lacks_text.map_or(Ok(()), |text| Err(EngineError::Target(text)))
    }

    /// What is left of a cutover that is decided, its last hook, and that whoever asked hears of it; of two signals the second ends it.
    pub(super) async fn outlast_cutover(&mut self, signals: &mut Signals) {
        let mut left = pin!(async {
            while self.desk.is_running() {
                if let DeskEvent::Ended(report) = self.desk.next().await {
                    self.cutover_ended(report);
                }
            }
        });
        while signals.taken() < 2 {
            tokio::select! {
                () = &mut left => return,
                () = signals.next() => {}
            }
        }
        // A hook ends with this process.
        let _ = tokio::time::timeout(HURRY_MAX, left).await;
    }

    async fn remove_own(&self, probed: &Target, mut keys: OwnKeys) -> Result<(), EngineError> {
        let mut link = self.control_again(probed).await?;
        keys.push((DbIndex(0), own::checkpoint_key(&self.settings).into_bytes()));
        for (marker, dbs) in &self.marked {
            keys.extend(dbs.iter().map(|db| (*db, marker.clone())));
        }
        keys.sort();
        keys.dedup();
        // It is given back last; and the mark of a mode that is on stays as long.
        let marks = self.import_mode == ImportMode::Ours;
        let stays =
            |key: &[u8]| key.starts_with(own::LEASE_KEY.as_bytes()) || marks && key == import::MARK_KEY.as_bytes();
        keys.retain(|(_, key)| !stays(key));
        for (db, key) in keys {
            target::delete(&mut link, db, &key).await?;
        }
        Ok(())
    }

    /// Calls the hook for being in step, the first time.
    pub(super) fn tell_in_step(&mut self) {
        let hook = self.settings.hooks.of(HookEvent::InStep).map(std::path::Path::to_path_buf);
        let Some(path) = hook.filter(|_| !self.desk.in_step_told) else { return };
        self.desk.in_step_told = true;
        let (facts, within) = (facts(&self.settings, HookEvent::InStep), self.settings.hooks.timeout);
        tokio_uring::spawn(async move {
            if let Err(why) = hooks::call(&path, &facts, within).await {
                tracing::warn!(%why, "the in-step hook failed");
            }
        });
    }
}
