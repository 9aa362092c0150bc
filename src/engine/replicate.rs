//! `replicate`: a full sync, then the journal, until stopped; and every way back after a loss.
//!
//! In: a checkpoint at the target, or none. Out: the target kept in step. A session is one registration at the source; it
//! begins as a partial sync from the checkpoint where both sides can, else as a full sync. Invariants: a session begins
//! only after every data connection of an earlier one (also of a dead process) was ended at the target, so the positions
//! that it reads are final; a lost position never empties the target unless the operator said so.

use super::checkpoint::{self, Checkpoint};
use super::crew::{Crew, CrewPlan};
use super::error::EngineError;
use super::fetch::Fetcher;
use super::handing::DeskEvent;
use super::handle::Existing;
use super::handover::Order;
use super::hold::Watermarks;
use super::import::{self, ImportMode};
use super::job::{Job, Signals, graver};
use super::joining::Joining;
use super::messages::{Barrier, WorkerCommand, WorkerEvent};
use super::migrate::{ATTEMPTS_MAX, PROGRESS_EVERY};
use super::phase::Phase;
use super::righting::Rightings;
use super::settings::{OnExisting, OnLostPosition};
use super::source::{PartialWay, Source};
use super::target::{self, Target, TargetLink};
use crate::convert::journal::GlobalCommand;
use crate::dragonfly::reply::Reply;
use crate::dragonfly::session::{Directive, Session};
use crate::ids::{DbIndex, FlowId, Lsn};
use crate::report::counters::Totals;
use crate::uring;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How often is looked whether every snapshot is confirmed: until then a restart begins anew.
const CONFIRMED_EVERY: Duration = Duration::from_millis(20);
/// How often the source is asked for its positions.
const OFFSETS_EVERY: Duration = Duration::from_secs(1);
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LAST: Duration = Duration::from_secs(5);
/// Full syncs in a row that may be lost with the source before the run ends: each one costs the source.
const FULL_SYNCS_MAX: u32 = 4;
/// Tries, about five seconds apart, to reach a source that went away inside a full sync: about five minutes.
const AWAY_TRIES_MAX: u32 = 50;
/// How long the source may take to say where it stands when the job is told to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// What a session begins with.
enum Begin {
    Full {
        owned: bool,
    },
    /// An earlier full sync, into a target that holds nothing else, did not reach its end. The target is emptied only when
    /// the source answers: until then what it holds may be all that is left.
    Again,
    Resume(Checkpoint),
}

impl Job<'_> {
    pub(super) async fn replicate(&mut self) -> Result<(), EngineError> {
        let result = self.replicate_until_stopped().await;
        for lost in std::mem::take(&mut self.lost) {
            self.report.expiries.not_fetched += 1;
            self.add_not_carried(&super::rows::vanished(lost));
        }
        if self.import_mode == ImportMode::Ours {
            let ended = async { import::end(&mut target::connect_control(&self.settings).await?).await };
            if let Err(error) = ended.await {
                tracing::error!(%error, "import mode could not be turned off at the target: CONFIG SET import-mode no");
            }
        }
        result
    }

    async fn replicate_until_stopped(&mut self) -> Result<(), EngineError> {
        let settings = self.settings.clone();
        if settings.on_existing == OnExisting::Skip {
            return Err(EngineError::Refused(
                "--on-existing skip cannot be kept over a restart, when the target holds this job's own keys; use replace \
                 or flush"
                    .into(),
            ));
        }
        let mut signals = Signals::new(self.settings.control.clone())?;
        let (mut target, mut probed) = tokio::select! {
            first = self.first_target() => first?,
            () = signals.next() => return Err(EngineError::Interrupted),
        };
        // The source is asked before the target is emptied: a wrong address must not cost a data set.
        let mut source = self.connect_source().await?;
        self.check_databases(&source, &probed)?;
        self.check_access(&mut target).await?;
        self.check_clocks(&mut source, &mut target).await?;
        drop(source);
        target::end_lanes(&mut target).await?;
        let mut begin = self.first_begin(&mut target, &probed).await?;
        if probed.capabilities.import_mode {
            self.import_mode = import::begin(&mut target).await?;
        }
        probed.capabilities.import_mode = self.import_mode != ImportMode::Off;
        self.report.expiries.import_mode = probed.capabilities.import_mode;
        if !probed.capabilities.import_mode && !probed.capabilities.has_command("EVAL") {
            tracing::warn!(
                "the target's user may not run scripts (+eval), so near expiries cannot be held back: keys that the source \
                 renews while the target is behind may vanish"
            );
        }
        let (mut attempt, mut pause) = (1, RETRY_FIRST);
        let mut losses = Losses::default();
        loop {
            let error = match self.session(&mut target, &probed, begin, &mut signals).await {
                Ok(()) => {
                    self.hand_over(&probed).await;
                    return Ok(());
                }
                Err(error) => error,
            };
            if self.outlive_cutover(&probed, &error).await {
                return Ok(());
            }
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
            let mut restarted = matches!(error, EngineError::TargetRestarted(_));
            target = match self.control_again(&probed).await {
                Ok(target) => target,
                Err(EngineError::TargetRestarted(_)) => {
                    restarted = true;
                    (target, probed) = self.first_target().await?;
                    // A new process begins without it.
                    if self.import_mode != ImportMode::Off {
                        self.import_mode = import::begin(&mut target).await?;
                    }
                    probed.capabilities.import_mode = self.import_mode != ImportMode::Off;
                    target
                }
                Err(_) if matches!(error, EngineError::Target(_)) => return Err(error),
                Err(gone) => return Err(gone),
            };
            if matches!(error, EngineError::Torn(_)) {
                self.resumable = false;
                checkpoint::tear(&mut target).await?;
                return Err(error);
            }
            target::end_lanes(&mut target).await?;
            let checkpoint = checkpoint::read(&mut target).await?;
            let owned = checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.owned);
            let stable = checkpoint.filter(|checkpoint| checkpoint.stable);
            self.resumable = stable.is_some();
            begin = match error {
                // Whatever ended the session, another process answers now.
                _ if restarted => Begin::Resume(self.kept_by_restart(stable)?),
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
                    let begin = match stable {
                        Some(checkpoint) => {
                            tracing::warn!(%text, ?pause, "lost the source: going on from the checkpoint");
                            Begin::Resume(checkpoint)
                        }
                        None if owned && losses.may_begin_again(self.sessions) => {
                            tracing::warn!(
                                %text,
                                ?pause,
                                full_syncs = self.sessions,
                                "lost the source inside the full sync: beginning anew when it is back"
                            );
                            Begin::Again
                        }
                        None => return Err(EngineError::Source(text)),
                    };
                    tokio::select! {
                        () = tokio::time::sleep(pause + jitter(pause)) => {}
                        () = signals.next() => return Err(EngineError::Interrupted),
                    }
                    pause = (pause * 2).min(RETRY_LAST);
                    begin
                }
                error => return Err(error),
            };
            if self.phase != Phase::Connect {
                // A session that reached the journal starts the pauses anew.
                if matches!(self.phase, Phase::CatchingUp | Phase::InStep) {
                    pause = RETRY_FIRST;
                    if self.resumable {
                        losses = Losses::default();
                    }
                }
                self.enter(Phase::Connect);
            }
        }
    }

    /// The target was restarted: with the data that its checkpoint tells of, or without.
    fn kept_by_restart(&self, stable: Option<Checkpoint>) -> Result<Checkpoint, EngineError> {
        let Some(checkpoint) = stable.filter(|checkpoint| checkpoint.scope == self.settings.scope.fingerprint()) else {
            return Err(EngineError::TargetRestarted(format!(
                "{}, and it holds no good checkpoint now",
                target::RESTARTED
            )));
        };
        // Data and positions are of one transaction, so they are of one moment, even where the last second was lost.
        let lost: u64 =
            self.confirmed.iter().zip(&checkpoint.lsns).map(|(acked, held)| acked.saturating_sub(held.0)).sum();
        tracing::warn!(lost_records = lost, "the target was restarted with its data: going on from its checkpoint");
        Ok(checkpoint)
    }

    /// After the target was emptied.
    async fn mark_import_mode(&self, target: &mut TargetLink) -> Result<(), EngineError> {
        if self.import_mode == ImportMode::Ours { import::mark(target).await } else { Ok(()) }
    }

    /// A fresh control connection to the same server process.
    pub(super) async fn control_again(&self, probed: &Target) -> Result<TargetLink, EngineError> {
        let mut link = target::connect_control(&self.settings).await?;
        if target::run_id(&mut link).await? == probed.run_id {
            if probed.capabilities.import_mode {
                import::declare(&mut link).await?;
            }
            return Ok(link);
        }
        Err(EngineError::TargetRestarted(target::RESTARTED.into()))
    }

    /// What the target's checkpoint, or the lack of one, means for the first session.
    async fn first_begin(&mut self, target: &mut TargetLink, probed: &Target) -> Result<Begin, EngineError> {
        let settings = self.settings.clone();
        let flush = settings.on_existing == OnExisting::Flush;
        match checkpoint::read(target).await? {
            Some(checkpoint) if checkpoint.stable && !flush => {
                if checkpoint.scope != settings.scope.fingerprint() {
                    return Err(EngineError::Refused(format!(
                        "the target's checkpoint is of a job with other filters or names ({}); give the same ones to go on from \
                         it, or run with --on-existing flush",
                        if checkpoint.scope.is_empty() { "none" } else { &checkpoint.scope }
                    )));
                }
                self.touched = true;
                self.resumable = true;
                Ok(Begin::Resume(checkpoint))
            }
            Some(checkpoint) if checkpoint.owned && !flush => {
                tracing::warn!("an earlier run ended inside its full sync: the target is emptied and it begins anew");
                Ok(Begin::Again)
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
        self.lost.clear();
        self.totals = Totals::new();
        self.report.not_carried = Default::default();
        self.mark_import_mode(target).await?;
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
            databases: probed.databases,
            existing: Arc::new(Existing::new()),
            run_id: probed.run_id.clone(),
            cluster: match &begin {
                Begin::Full { .. } | Begin::Again => self.cluster_plan(probed, None).await?,
                Begin::Resume(checkpoint) => self.cluster_plan(probed, Some(checkpoint)).await?,
            },
        };
        let mut source = self.connect_source().await?;
        self.check_databases(&source, probed)?;
        let mut session = Session::new();
        let held = !probed.capabilities.import_mode && probed.capabilities.has_command("EVAL");
        let begin = match begin {
            Begin::Again => {
                // Perhaps it is still loading; perhaps it lost all, and what was read of it is all that is left.
                if self.sessions > 0 && source.is_empty() && self.totals.sum().keys > 0 {
                    return Err(EngineError::Source(
                        "it went away inside the full sync and holds no key at all now, so the target, which holds a part of \
                         what it held, is not emptied for another one; if the source is meant to be empty, run again"
                            .into(),
                    ));
                }
                self.full_again(target).await?
            }
            begin => begin,
        };
        let (mut crew, mut checkpoint) = match begin {
            Begin::Again => return Err(EngineError::Internal("a full sync begins anew twice".into())),
            Begin::Full { owned } => {
                let crew = self.open_full(&mut source, &mut session, plan).await?;
                let (master_id, flows) =
                    session.registration().map(|r| (r.master_id.clone(), r.flows)).unwrap_or_default();
                let scope = self.settings.scope.fingerprint();
                let checkpoint = Checkpoint { master_id, flows, stable: false, owned, held, lsns: Vec::new(), scope };
                checkpoint::begin(target, &checkpoint).await?;
                (crew, checkpoint)
            }
            Begin::Resume(mut checkpoint) => {
                let crew = self.open_partial(&mut source, &checkpoint, plan).await?;
                if checkpoint.held {
                    crew.hold().set_unnamed();
                }
                checkpoint.held |= held;
                checkpoint::set_held(target, checkpoint.held).await?;
                (crew, checkpoint)
            }
        };
        self.sessions += 1;
        self.settings.control.publish_positions(self.sessions, crew.positions());
        let result = self.follow(&mut source, &mut session, &mut crew, probed, &mut checkpoint, signals).await;
        self.confirmed = crew.confirmed();
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
        if source.partial_way().is_none() {
            return Err(lost(format!(
                "the source's release ({}) leaves records out of a partial sync, so positions cannot be counted in it",
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
        let mut joining = Joining::none();
        if !checkpoint.stable {
            self.full_sync(source, session, crew, signals, &mut 0).await?;
        } else if source.partial_way() == Some(PartialWay::BySync) {
            joining = Joining::begin(source, checkpoint.flows)?;
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
        let mut fetcher = Fetcher::new(&self.settings, checkpoint.flows);
        for lost in std::mem::take(&mut self.lost) {
            crew.tell_flow(lost.flow, WorkerCommand::Doubt(lost));
        }
        let mut rightings = Rightings::new(&self.settings, &probed.capabilities, crew.hold().clone());
        let mut ticks = tokio::time::interval(PROGRESS_EVERY);
        let mut offsets = tokio::time::interval(OFFSETS_EVERY);
        let mut confirmations = tokio::time::interval(CONFIRMED_EVERY);
        loop {
            tokio::select! {
                event = crew.event() => match event? {
                    WorkerEvent::Suspects { worker, keys } => {
                        self.settle_suspects(source, crew, worker, keys).await?;
                        watch.suspects_settled += 1;
                    }
                    WorkerEvent::Drained => watch.drained += 1,
                    WorkerEvent::Settled(number) => watch.settled(number, crew.workers()),
                    WorkerEvent::Lost(lost) => fetcher.want(lost),
                    event => {
                        joining.event(&event);
                        self.watch(event);
                    }
                },
                answer = joining.answer() => joining.answered(source, answer?)?,
                _ = ticks.tick() => {
                    self.progress();
                    watch.marks.confirm(&crew.confirmed(), crew.hold());
                    rightings.look();
                }
                answers = fetcher.answers() => {
                    for answer in answers {
                        crew.tell_flow(answer.lost.flow, WorkerCommand::Fetched(Box::new(answer)));
                    }
                }
                swept = rightings.ended() => {
                    self.report.expiries.put_right_by_sweep += swept?.put_right;
                }
                _ = confirmations.tick(), if !checkpoint.stable => {
                    if crew.confirmed().iter().all(|lsn| *lsn > 0) {
                        checkpoint::mark_stable(&mut self.control_again(probed).await?).await?;
                        checkpoint.stable = true;
                        self.resumable = true;
                    }
                }
                _ = offsets.tick(), if joining.is_done() && matches!(self.phase, Phase::CatchingUp | Phase::InStep) => {
                    self.compare_offsets(source, crew, checkpoint, &mut watch).await?;
                }
                () = signals.next() => {
                    if self.phase == Phase::Stopping || watch.stops {
                        return Err(EngineError::Interrupted);
                    }
                    tracing::info!("stopping: what was read is applied and acknowledged; a second signal stops at once");
                    watch.stops = true;
                    self.settings.control.cancel_cutover("the job was told to stop");
                }
                event = self.desk.next() => match event {
                    DeskEvent::Asked(asked) => self.begin_cutover(asked, source, crew),
                    DeskEvent::Order(Order::Settle(answer)) => {
                        let number = watch.settle(answer);
                        crew.tell_all(|| WorkerCommand::Settle(number));
                    }
                    DeskEvent::Order(Order::End { keys, done }) => {
                        self.begin_end(keys, done);
                        crew.tell_all(|| WorkerCommand::Drain);
                    }
                    DeskEvent::Ended(report) => self.cutover_ended(report),
                },
            }
            joining.go_on(source, crew)?;
            let settled = watch.suspects_settled >= crew.workers();
            self.settings.control.set_ready(self.phase == Phase::InStep && settled);
            // A cutover that is under way is rolled back first.
            if watch.stops && !self.desk.is_running() && self.phase != Phase::Stopping {
                self.enter(Phase::Stopping);
                watch.stop_at = stop_positions(source).await;
                crew.tell_all(|| WorkerCommand::Drain);
            }
            if checkpoint.stable
                && let Some(barriers) = crew.take_barriers()
            {
                // The first connection was idle for long: the target (`timeout`) may have closed it.
                let mut target = self.control_again(probed).await?;
                self.pass_barrier(crew, &mut target, checkpoint, &barriers).await?;
            }
            if watch.drained == crew.workers() && matches!(self.phase, Phase::Stopping | Phase::HandingOver) {
                // Behind a fence nothing is missing: that was proven.
                let handing_over = self.phase == Phase::HandingOver;
                if !handing_over && !watch.caught_up(&crew.confirmed()) {
                    if checkpoint.held {
                        tracing::info!("stopped behind the source: near expiries stay held until the job goes on");
                    }
                    return Err(EngineError::Interrupted);
                }
                if !watch.releasing {
                    watch.releasing = true;
                    watch.drained = 0;
                    crew.tell_all(|| WorkerCommand::ReleaseHeld);
                    continue;
                }
                let mut target = self.control_again(probed).await?;
                if checkpoint.held {
                    let sweep = rightings.end(&mut target);
                    let swept = tokio::select! {
                        swept = sweep => swept?,
                        () = signals.next() => return Err(EngineError::Interrupted),
                    };
                    self.report.expiries.put_right_by_sweep += swept.put_right;
                    checkpoint::set_held(&mut target, false).await?;
                }
                return if handing_over { Ok(()) } else { Err(EngineError::Interrupted) };
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
        let asked_ms = uring::clock::realtime_ms() as i64;
        let offsets = source.replica_offsets().await?;
        let confirmed = crew.confirmed();
        watch.marks.asked(asked_ms, offsets.clone());
        watch.marks.confirm(&confirmed, crew.hold());
        let behind: u64 =
            offsets.iter().zip(&confirmed).map(|(source, applied)| source.0.saturating_sub(*applied)).sum();
        tracing::debug!(behind_records = behind, "positions");
        self.view.heard(self.started.elapsed(), offsets.iter().map(|lsn| lsn.0).collect(), &confirmed);
        // Under a steady load something is always on its way: then it counts that everything is there which the source had
        // when it was asked before. A position of 0 says that the shard has no journal yet; nothing can be missing there.
        let passed = |before: &Vec<Lsn>| before.iter().zip(&confirmed).all(|(before, applied)| before.0 <= *applied);
        let near = behind <= IN_STEP_RECORDS_MAX && watch.offsets_before.as_ref().is_some_and(passed);
        watch.offsets_before = Some(offsets);
        if (behind == 0 || near) && self.phase == Phase::CatchingUp {
            self.enter(Phase::InStep);
            self.observer.in_step();
            self.tell_in_step();
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
        let scope = &self.settings.scope;
        tracing::info!(command = ?first.command, txid = first.txid, "all flows reached a global command: executing it once");
        match &first.command {
            GlobalCommand::FlushAll => {
                checkpoint::execute_global(target, checkpoint, 0, &[b"FLUSHALL"], &lsns).await?;
                self.mark_import_mode(target).await?;
            }
            GlobalCommand::FlushDb(db) if !scope.admits_db(*db) => {
                checkpoint::execute_global(target, checkpoint, 0, &[b"PING"], &lsns).await?;
            }
            GlobalCommand::FlushDb(db) if !scope.is_alone(*db) => {
                return Err(EngineError::Refused(format!(
                    "the source ran FLUSHDB in database {db}, and other databases go into the same one of the target \
                     (--db-merge), which a FLUSHDB there would empty too; run again with --on-existing flush"
                )));
            }
            GlobalCommand::FlushDb(db) => {
                let db = scope.target_db(*db)?;
                checkpoint::execute_global(target, checkpoint, db.0, &[b"FLUSHDB"], &lsns).await?;
            }
            GlobalCommand::FlushSlots(_) if scope.rewrites() => {
                return Err(EngineError::Refused(
                    "the source gave slots away (DFLYCLUSTER FLUSHSLOTS), and with --rewrite-prefix the names at the target \
                     do not tell the slots at the source; run again with --on-existing flush"
                        .into(),
                ));
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

/// Full syncs that the source did not see through, in a row. A source that is away is not counted, it is waited for.
#[derive(Default)]
struct Losses {
    full_syncs: u32,
    /// Sessions when the last one was counted.
    sessions: u64,
    /// Tries since then to reach the source.
    tries: u32,
}

impl Losses {
    /// Whether another full sync may be tried after a loss of the source; `sessions`: how many were begun so far.
    fn may_begin_again(&mut self, sessions: u64) -> bool {
        if sessions > self.sessions {
            self.full_syncs += 1;
            self.sessions = sessions;
            self.tries = 0;
        } else if sessions > 0 {
            self.tries += 1;
        }
        // Nothing was begun: an address that is wrong is better said at once.
        sessions > 0 && self.full_syncs < FULL_SYNCS_MAX && self.tries < AWAY_TRIES_MAX
    }
}

/// Up to half of the pause more, so that many that lost the same source do not come back at one instant.
fn jitter(pause: Duration) -> Duration {
    pause.mul_f64((uring::clock::monotonic_ns() / 1000 % 512) as f64 / 1024.0)
}

/// More records behind than this and the target is no longer called in step.
const IN_STEP_RECORDS_MAX: u64 = 10_000;

/// What the control plane keeps while it follows.
#[derive(Default)]
struct Watch {
    drained: usize,
    suspects_asked: bool,
    /// The source's positions when it was asked the last time.
    offsets_before: Option<Vec<Lsn>>,
    /// Workers whose suspects were asked for, and told.
    suspects_settled: usize,
    /// Told to stop.
    stops: bool,
    /// Orders to settle so far; who waits for the last of them, and how many workers have done so.
    settles: u64,
    settling: Option<(oneshot::Sender<()>, usize)>,
    /// How far the flows are applied, as times.
    marks: Watermarks,
    /// The source's positions when the job was told to stop.
    stop_at: Vec<Lsn>,
    /// Drained; the held expiries are on their way.
    releasing: bool,
}

impl Watch {
    /// A number for an order to settle.
    fn settle(&mut self, answer: oneshot::Sender<()>) -> u64 {
        self.settles += 1;
        self.settling = Some((answer, 0));
        self.settles
    }

    fn settled(&mut self, number: u64, workers: usize) {
        let Some((_, count)) = self.settling.as_mut().filter(|_| number == self.settles) else { return };
        *count += 1;
        if *count == workers
            && let Some((answer, _)) = self.settling.take()
        {
            let _ = answer.send(());
        }
    }

    /// Everything that the source had done when the job was told to stop is applied.
    fn caught_up(&self, confirmed: &[u64]) -> bool {
        self.stop_at.len() == confirmed.len()
            && self.stop_at.iter().zip(confirmed).all(|(lsn, applied)| *applied >= lsn.0)
    }
}

/// The source's positions now; none if it does not answer soon.
async fn stop_positions(source: &mut Source) -> Vec<Lsn> {
    if !source.is_free() {
        return Vec::new();
    }
    match tokio::time::timeout(STOP_PATIENCE, source.replica_offsets()).await {
        Ok(Ok(offsets)) => offsets,
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_syncs_are_tried_again_only_so_often() {
        let mut losses = Losses::default();
        assert!(!losses.may_begin_again(0), "nothing was begun");
        assert!((1..FULL_SYNCS_MAX.into()).all(|session| losses.may_begin_again(session)));
        assert!(!losses.may_begin_again(FULL_SYNCS_MAX.into()));
        let mut losses = Losses::default();
        let tries = (0..1000).take_while(|_| losses.may_begin_again(1)).count();
        assert_eq!(tries as u32, AWAY_TRIES_MAX);
        let pause = Duration::from_secs(4);
        assert!((0..100).all(|_| jitter(pause) <= pause / 2));
    }
}
