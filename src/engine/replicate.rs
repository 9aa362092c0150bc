//! `replicate`: a full sync, then the journal, until stopped; and every way back after a loss.
//!
//! In: a checkpoint at the target, or none. Out: the target kept in step. A session is one registration at the source; it
//! begins as a partial sync from the checkpoint where both sides can, else as a full sync. Invariants: a session begins
//! only after every data connection of an earlier one (also of a dead process) was ended at the target, so the positions
//! that it reads are final; a lost position never empties the target unless the operator said so.

use super::checkpoint::{self, Checkpoint};
use super::crew::{Crew, CrewPlan};
use super::error::EngineError;
use super::handle::Existing;
use super::job::{Job, Signals, graver};
use super::messages::{Barrier, WorkerCommand, WorkerEvent};
use super::migrate::{ATTEMPTS_MAX, PROGRESS_EVERY, refuse_databases};
use super::phase::Phase;
use super::settings::{OnExisting, OnLostPosition};
use super::source::Source;
use super::target::{self, Target, TargetLink};
use crate::convert::journal::GlobalCommand;
use crate::dragonfly::reply::Reply;
use crate::dragonfly::session::{Directive, Session};
use crate::ids::{DbIndex, FlowId, Lsn};
use std::sync::Arc;
use std::time::Duration;

/// How often is looked whether every snapshot is confirmed: until then a restart begins anew.
const CONFIRMED_EVERY: Duration = Duration::from_millis(20);
/// How often the source is asked for its positions.
const OFFSETS_EVERY: Duration = Duration::from_secs(1);
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LAST: Duration = Duration::from_secs(5);

/// What a session begins with.
enum Begin {
    Full { owned: bool },
    Resume(Checkpoint),
}

impl Job<'_> {
    pub(super) async fn replicate(&mut self) -> Result<(), EngineError> {
        let settings = self.settings.clone();
        if settings.on_existing == OnExisting::Skip {
            return Err(EngineError::Refused(
                "--on-existing skip cannot be kept over a restart, when the target holds this job's own keys; use replace \
                 or flush"
                    .into(),
            ));
        }
        let mut signals = Signals::new(self.settings.control.clone())?;
        let mut target = target::connect_control(&settings).await?;
        let probed = self.probe_target(&mut target).await?;
        target::end_lanes(&mut target).await?;
        let mut begin = self.first_begin(&mut target, &probed).await?;
        let (mut attempt, mut pause) = (1, RETRY_FIRST);
        loop {
            let error = match self.session(&mut target, &probed, begin, &mut signals).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            // The source went away while the tool was stopping: what is confirmed is in the checkpoint.
            let error = match error {
                EngineError::Source(_) if self.phase == Phase::Stopping => EngineError::Interrupted,
                error => error,
            };
            if matches!(error, EngineError::Interrupted) {
                return Err(error);
            }
            // A fresh connection: the target may have closed one that was idle, and the cause of the end is worth more than
            // what is heard of a target that is gone.
            target = match self.control_again(&probed).await {
                Ok(target) => target,
                Err(_) if matches!(error, EngineError::Target(_)) => return Err(error),
                Err(gone) => return Err(gone),
            };
            target::end_lanes(&mut target).await?;
            let checkpoint = checkpoint::read(&mut target).await?;
            let owned = checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.owned);
            let stable = checkpoint.filter(|checkpoint| checkpoint.stable);
            self.resumable = stable.is_some();
            begin = match error {
                EngineError::SyncVoided { flow, command } if owned && attempt < ATTEMPTS_MAX => {
                    tracing::warn!(flow, %command, "the source was flushed during the full sync: beginning anew");
                    attempt += 1;
                    self.full_again(&mut target).await?
                }
                EngineError::LostPosition(text)
                    if owned
                        && settings.follow.as_ref().is_some_and(|f| f.on_lost_position == OnLostPosition::Resync) =>
                {
                    tracing::warn!(%text, "position lost: taking a full sync again");
                    self.full_again(&mut target).await?
                }
                EngineError::Source(text) => {
                    let Some(checkpoint) = stable else { return Err(EngineError::Source(text)) };
                    tracing::warn!(%text, ?pause, "lost the source: going on from the checkpoint");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = signals.next() => return Err(EngineError::Interrupted),
                    }
                    pause = (pause * 2).min(RETRY_LAST);
                    Begin::Resume(checkpoint)
                }
                error => return Err(error),
            };
            if self.phase != Phase::Connect {
                // A session that reached the journal starts the pauses anew.
                if matches!(self.phase, Phase::CatchingUp | Phase::InStep) {
                    pause = RETRY_FIRST;
                }
                self.enter(Phase::Connect);
            }
        }
    }

    /// A fresh control connection to the same server process.
    async fn control_again(&self, probed: &Target) -> Result<TargetLink, EngineError> {
        let mut link = target::connect_control(&self.settings).await?;
        if target::run_id(&mut link).await? == probed.run_id {
            return Ok(link);
        }
        Err(EngineError::Target(target::RESTARTED.into()))
    }

    /// What the target's checkpoint, or the lack of one, means for the first session.
    async fn first_begin(&mut self, target: &mut TargetLink, probed: &Target) -> Result<Begin, EngineError> {
        let settings = self.settings.clone();
        let flush = settings.on_existing == OnExisting::Flush;
        match checkpoint::read(target).await? {
            Some(checkpoint) if checkpoint.stable && !flush => {
                self.touched = true;
                self.resumable = true;
                Ok(Begin::Resume(checkpoint))
            }
            Some(checkpoint) if checkpoint.owned && !flush => {
                tracing::warn!("an earlier run ended inside its full sync: the target is emptied and it begins anew");
                self.full_again(target).await
            }
            Some(_) if !flush => Err(EngineError::Refused(
                "an earlier run into this target, which held keys of its own, ended inside its full sync: what it wrote cannot \
                 be told from the rest; say --on-existing flush, or clean the target and delete the key df2redis:checkpoint"
                    .into(),
            )),
            _ => {
                target::prepare(target, probed, &settings).await?;
                Ok(Begin::Full { owned: flush || probed.keyspace.is_empty() })
            }
        }
    }

    async fn full_again(&mut self, target: &mut TargetLink) -> Result<Begin, EngineError> {
        self.touched = true;
        self.resumable = false;
        target.call(&[b"FLUSHALL"]).await?;
        Ok(Begin::Full { owned: true })
    }

    /// One registration, to its end. Workers are stopped whatever happens.
    async fn session(
        &mut self,
        target: &mut TargetLink,
        probed: &Target,
        begin: Begin,
        signals: &mut Signals,
    ) -> Result<(), EngineError> {
        let plan = CrewPlan {
            settings: self.settings.clone(),
            capabilities: probed.capabilities.clone(),
            existing: Arc::new(Existing::new()),
            run_id: probed.run_id.clone(),
            cluster: match &begin {
                Begin::Full { .. } => self.cluster_plan(probed, None).await?,
                Begin::Resume(checkpoint) => self.cluster_plan(probed, Some(checkpoint)).await?,
            },
        };
        let mut source = self.connect_source().await?;
        refuse_databases(probed, &source)?;
        let mut session = Session::new();
        let (mut crew, mut checkpoint) = match begin {
            Begin::Full { owned } => {
                let crew = self.open_full(&mut source, &mut session, plan).await?;
                let (master_id, flows) =
                    session.registration().map(|r| (r.master_id.clone(), r.flows)).unwrap_or_default();
                checkpoint::begin(target, &master_id, flows, owned).await?;
                (crew, Checkpoint { master_id, flows, stable: false, owned, lsns: Vec::new() })
            }
            Begin::Resume(checkpoint) => (self.open_partial(&mut source, &checkpoint, plan).await?, checkpoint),
        };
        self.settings.control.publish_positions(crew.positions());
        let result = self.follow(&mut source, &mut session, &mut crew, probed, &mut checkpoint, signals).await;
        self.settings.control.forget_positions();
        self.view.forget();
        let (summaries, ended) = crew.stop().await;
        for summary in summaries {
            self.add_summary(summary);
        }
        graver(result, ended)
    }

    /// Registers and opens all flows from the checkpoint's positions. A position that cannot be had is `LostPosition`.
    async fn open_partial(
        &mut self,
        source: &mut Source,
        checkpoint: &Checkpoint,
        plan: CrewPlan,
    ) -> Result<Crew, EngineError> {
        self.enter(Phase::Flows);
        let lost = |why: String| {
            EngineError::LostPosition(format!(
                "{why}. The target holds the state up to its checkpoint; only a full sync goes on from here \
                 (--on-lost-position resync, which empties the target, or a new run with --on-existing flush)"
            ))
        };
        let registration = source.register().await?;
        self.report.source.flows = registration.flows;
        if registration.master_id != checkpoint.master_id {
            return Err(lost(format!(
                "the source is another process ({}) than the one that the checkpoint is of ({}): it was restarted, or \
                 failed over",
                registration.master_id, checkpoint.master_id
            )));
        }
        if registration.flows != checkpoint.flows {
            return Err(lost(format!("the source has {} flows now, {} before", registration.flows, checkpoint.flows)));
        }
        if !source.partial_without_sync() {
            return Err(lost(format!(
                "the source's release ({}) grants partial syncs in an older way",
                source.version()
            )));
        }
        let flows = source.open_flows(Some(&checkpoint.lsns)).await?;
        let refused: Vec<FlowId> =
            flows.iter().filter(|flow| flow.opened.directive == Directive::Full).map(|flow| flow.start.id).collect();
        if !refused.is_empty() {
            let offsets = source.replica_offsets().await.unwrap_or_default();
            let behind: Vec<String> = refused
                .iter()
                .map(|flow| {
                    let wanted = checkpoint.lsns.get(flow.0 as usize).copied().unwrap_or_default();
                    let now = offsets.get(flow.0 as usize).copied().unwrap_or_default();
                    format!("flow {flow}: LSN {wanted} wanted, the source is at {now}")
                })
                .collect();
            return Err(lost(format!(
                "the source's backlog does not reach back to the checkpoint ({})",
                behind.join("; ")
            )));
        }
        let crew = Crew::start(plan, flows.into_iter().map(|flow| flow.start).collect()).await?;
        self.report.ring_features = crew.features();
        Ok(crew)
    }

    /// The full sync (if the session is one), then the journal until something ends it.
    async fn follow(
        &mut self,
        source: &mut Source,
        session: &mut Session,
        crew: &mut Crew,
        probed: &Target,
        checkpoint: &mut Checkpoint,
        signals: &mut Signals,
    ) -> Result<(), EngineError> {
        if !checkpoint.stable {
            self.full_sync(source, session, crew, signals, &mut 0).await?;
        } else {
            let answer = source.start_partial()?;
            let (link, reply) = tokio::select! {
                answer = answer => answer?,
                () = signals.next() => return Err(EngineError::Interrupted),
            };
            source.answered(link);
            if reply != Reply::Simple(b"OK".to_vec()) {
                return Err(EngineError::Source(format!("the source answered DFLY STARTSTABLE with {reply:?}")));
            }
        }
        self.enter(Phase::CatchingUp);
        let mut watch = Watch::default();
        let mut ticks = tokio::time::interval(PROGRESS_EVERY);
        let mut offsets = tokio::time::interval(OFFSETS_EVERY);
        let mut confirmations = tokio::time::interval(CONFIRMED_EVERY);
        loop {
            tokio::select! {
                event = crew.event() => match event? {
                    WorkerEvent::Suspects { worker, keys } => self.settle_suspects(source, crew, worker, keys).await?,
                    WorkerEvent::Drained => watch.drained += 1,
                    event => self.watch(event),
                },
                _ = ticks.tick() => self.progress(),
                _ = confirmations.tick(), if !checkpoint.stable => {
                    if crew.confirmed().iter().all(|lsn| *lsn > 0) {
                        checkpoint::mark_stable(&mut self.control_again(probed).await?).await?;
                        checkpoint.stable = true;
                        self.resumable = true;
                    }
                }
                _ = offsets.tick(), if self.phase != Phase::Stopping => {
                    self.compare_offsets(source, crew, checkpoint, &mut watch).await?;
                }
                () = signals.next() => {
                    if self.phase == Phase::Stopping {
                        return Err(EngineError::Interrupted);
                    }
                    tracing::info!("stopping: what was read is applied and acknowledged; a second signal stops at once");
                    self.enter(Phase::Stopping);
                    crew.tell_all(|| WorkerCommand::Drain);
                }
            }
            if checkpoint.stable
                && let Some(barriers) = crew.take_barriers()
            {
                // The first connection was idle for long: the target (`timeout`) may have closed it.
                let mut target = self.control_again(probed).await?;
                self.pass_barrier(crew, &mut target, checkpoint, &barriers).await?;
            }
            if self.phase == Phase::Stopping && watch.drained == crew.workers() {
                return Err(EngineError::Interrupted);
            }
        }
    }

    /// Asks the source for its positions and compares: whenever every flow has applied what the source had, the target is in step.
    async fn compare_offsets(
        &mut self,
        source: &mut Source,
        crew: &Crew,
        checkpoint: &Checkpoint,
        watch: &mut Watch,
    ) -> Result<(), EngineError> {
        if !source.is_free() || !checkpoint.stable {
            return Ok(());
        }
        let offsets = source.replica_offsets().await?;
        let confirmed = crew.confirmed();
        let behind: u64 =
            offsets.iter().zip(&confirmed).map(|(source, applied)| source.0.saturating_sub(*applied)).sum();
        tracing::debug!(behind_records = behind, "positions");
        self.view.heard(self.started.elapsed(), offsets.iter().map(|lsn| lsn.0).collect(), &confirmed);
        // A position of 0 says that the shard has no journal yet; then nothing can be missing there.
        if behind == 0 && self.phase == Phase::CatchingUp {
            self.enter(Phase::InStep);
            self.observer.in_step();
            if !watch.suspects_asked {
                watch.suspects_asked = true;
                crew.tell_all(|| WorkerCommand::ListSuspects);
            }
        } else if behind > IN_STEP_RECORDS_MAX && self.phase == Phase::InStep {
            self.enter(Phase::CatchingUp);
        }
        Ok(())
    }

    /// Suspects that the source does not have are deleted by the flow that owns them, in order with its journal.
    async fn settle_suspects(
        &mut self,
        source: &mut Source,
        crew: &Crew,
        worker: usize,
        keys: Vec<(FlowId, DbIndex, Vec<u8>)>,
    ) -> Result<(), EngineError> {
        if keys.is_empty() {
            return Ok(());
        }
        let mut asking = Source::connect(&self.settings.source, self.settings.connect_timeout).await?;
        let mut absent = Vec::new();
        for (flow, db, key) in keys {
            self.report.suspects.asked += 1;
            if !asking.exists(db, &key).await? {
                absent.push((flow, db, key));
            }
        }
        let _ = source;
        self.report.suspects.removed += absent.len() as u64;
        crew.tell(worker, WorkerCommand::DeleteSuspects(absent));
        Ok(())
    }

    /// All flows stand before the same global command and everything before it is applied: executes it once.
    async fn pass_barrier(
        &mut self,
        crew: &Crew,
        target: &mut TargetLink,
        checkpoint: &Checkpoint,
        barriers: &[Barrier],
    ) -> Result<(), EngineError> {
        let Some(first) = barriers.first() else { return Ok(()) };
        if barriers.iter().any(|barrier| barrier.txid != first.txid || barrier.command != first.command) {
            return Err(EngineError::Source(format!(
                "flows stand before different global commands (transactions {:?}): the journal cannot be trusted",
                barriers.iter().map(|barrier| barrier.txid).collect::<Vec<_>>()
            )));
        }
        let lsns: Vec<(u32, Lsn)> = barriers.iter().map(|barrier| (barrier.flow.0, barrier.next_lsn)).collect();
        if !checkpoint.owned {
            return Err(EngineError::Refused(format!(
                "the source ran {:?}, but the target held keys of its own when the job began, which it would delete too; \
                 run again with --on-existing flush",
                first.command
            )));
        }
        tracing::info!(command = ?first.command, txid = first.txid, "all flows reached a global command: executing it once");
        match &first.command {
            GlobalCommand::FlushAll => checkpoint::execute_global(target, checkpoint, 0, &[b"FLUSHALL"], &lsns).await?,
            GlobalCommand::FlushDb(db) => {
                checkpoint::execute_global(target, checkpoint, db.0, &[b"FLUSHDB"], &lsns).await?;
            }
            GlobalCommand::FlushSlots(ranges) => {
                target::delete_slots(target, ranges).await?;
                checkpoint::execute_global(target, checkpoint, 0, &[b"PING"], &lsns).await?;
            }
        }
        crew.tell_all(|| WorkerCommand::ReleaseBarrier);
        Ok(())
    }
}

/// More records behind than this and the target is no longer called in step.
const IN_STEP_RECORDS_MAX: u64 = 10_000;

/// What the control plane keeps while it follows.
#[derive(Default)]
struct Watch {
    drained: usize,
    suspects_asked: bool,
}
