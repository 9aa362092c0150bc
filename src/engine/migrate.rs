//! `migrate`: one full sync, from the handshake to a proven end.
//!
//! In: resolved settings. Out: a `RunInputs` with everything that the report says, whatever happened. The control plane
//! runs on tokio-uring in the calling thread; workers run in theirs. Phases: connect -> flows -> full sync -> (all flows
//! at FULLSYNC_END) -> STARTSTABLE -> (all flows complete, everything acknowledged) -> suspects asked -> markers removed.
//! Invariant: the outcome is `Done` only if every flow delivered its offset, EOF and token and every command sent was
//! answered.

use super::crew::{Crew, CrewPlan};
use super::error::{Class, EngineError};
use super::handle::Existing;
use super::phase::Phase;
use super::settings::{MigrateSettings, OnExisting};
use super::source::Source;
use super::target::{self, TargetLink};
use super::worker::{WorkerEvent, WorkerSummary};
use crate::convert::{Limits, Plan, What};
use crate::dragonfly::owner::OwnerRule;
use crate::redis::Capabilities;
use crate::report::counters::{CpuSample, Totals, rss_bytes_peak};
use crate::report::document::{ExitClass, NotCarried, Outcome, RunInputs, ServerInfo};
use crate::report::observer::{FlowProgress, Observer, ProgressSnapshot};
use crate::uring::{self, Ring, RingSettings, SlabLayout};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Runs the job to its end. Never panics on what peers do; every failure is in the outcome.
pub fn run_migrate(command: &str, settings: MigrateSettings, observer: &mut dyn Observer) -> RunInputs {
    let mut job = Job::new(command, settings, observer);
    // tokio-uring would panic where io_uring is not to be had; this says why and what to do.
    let result = match check_ring(&job.settings.ring) {
        Ok(()) => tokio_uring::start(job.run()),
        Err(e) => Err(e),
    };
    job.finish(result)
}

/// Sets a small ring up and drops it, in a thread of its own (a ring belongs to the thread that made it).
fn check_ring(settings: &RingSettings) -> Result<(), EngineError> {
    let settings = settings.clone();
    let layout = SlabLayout { rx_chunk_bytes: 4096, rx_chunks: 1, tx_chunk_bytes: 4096, tx_chunks: 1 };
    let ring = std::thread::spawn(move || Ring::new(&settings, layout).map(drop).map_err(|e| e.to_string()));
    match ring.join() {
        Ok(outcome) => outcome.map_err(EngineError::System),
        Err(_) => Err(EngineError::Internal("setting a ring up panicked".into())),
    }
}

/// A sync that the source voided by a flush is begun anew this many times.
const ATTEMPTS_MAX: u32 = 5;
/// Names of search indexes that the report lists.
const SEARCH_INDEXES_MAX: usize = 1000;
const SETTLE_TRIES: u32 = 6;
const SETTLE_PAUSE: Duration = Duration::from_millis(50);
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

pub(super) struct Job<'o> {
    settings: Arc<MigrateSettings>,
    observer: &'o mut dyn Observer,
    started: Instant,
    phase: Phase,
    phase_since: Instant,
    report: RunInputs,
    totals: Totals,
    keys_expected: Option<u64>,
    /// Something was written to the target.
    touched: bool,
    transfer_since: Option<Instant>,
    /// Ids, at the target, of the connections of the last attempt's workers.
    client_ids: Vec<i64>,
    cpu_at_start: Option<CpuSample>,
}

impl<'o> Job<'o> {
    fn new(command: &str, settings: MigrateSettings, observer: &'o mut dyn Observer) -> Self {
        let value = serde_json::to_value(&settings).unwrap_or_default();
        let mut report = RunInputs::empty(command, Outcome::done(), value);
        report.started_unix_ms = uring::clock::realtime_ms();
        report.kernel = uring::probe::kernel_release();
        report.source.address = format!("{}:{}", settings.source.host, settings.source.port);
        Self {
            settings: Arc::new(settings),
            observer,
            started: Instant::now(),
            phase: Phase::Connect,
            phase_since: Instant::now(),
            report,
            totals: Totals::new(),
            keys_expected: None,
            touched: false,
            transfer_since: None,
            client_ids: Vec::new(),
            cpu_at_start: CpuSample::of_process(),
        }
    }

    fn enter(&mut self, phase: Phase) {
        debug_assert!(self.phase.may_enter(phase), "{:?} -> {phase:?}", self.phase);
        let now = Instant::now();
        self.report.phases.push((self.phase.name().to_string(), now - self.phase_since));
        tracing::info!(phase = phase.name(), "phase");
        self.phase = phase;
        self.phase_since = now;
    }

    async fn run(&mut self) -> Result<(), EngineError> {
        let mut signals = Signals::new()?;
        let (probed, mut source, existing) = tokio::select! {
            ready = self.prepare() => ready?,
            () = signals.received() => return Err(EngineError::Interrupted),
        };
        let settings = self.settings.clone();
        let may_flush = probed.keyspace.is_empty() || settings.on_existing == OnExisting::Flush;
        let mut attempt = 1;
        let summaries = loop {
            let plan = CrewPlan {
                settings: settings.clone(),
                capabilities: probed.capabilities.clone(),
                existing: existing.clone(),
                run_id: probed.run_id.clone(),
            };
            match self.attempt(&mut source, plan, &mut signals).await {
                Err(EngineError::SyncVoided { flow, command }) if may_flush && attempt < ATTEMPTS_MAX => {
                    tracing::warn!(flow, %command, attempt, "the source was flushed during the full sync: beginning anew");
                    attempt += 1;
                    // What the workers sent last must not be executed after the FLUSHALL.
                    let mut target = TargetLink::connect(&settings.target, settings.connect_timeout).await?;
                    for client_id in std::mem::take(&mut self.client_ids) {
                        target::end_client(&mut target, client_id).await?;
                    }
                    target.call(&[b"FLUSHALL", b"ASYNC"]).await?;
                    self.totals = Totals::new();
                    self.report.not_carried = Default::default();
                    self.enter(Phase::Connect);
                    source = Source::connect(&settings.source, settings.connect_timeout).await?;
                }
                Err(EngineError::SyncVoided { flow, command }) if !may_flush => {
                    return Err(EngineError::Source(format!(
                        "flow {flow}: the source ran {command} during the full sync, which voids the snapshot. The sync \
                         could begin anew only after emptying the target, which held keys of its own (--on-existing {}), \
                         so it is left as it is",
                        if settings.on_existing == OnExisting::Skip { "skip" } else { "replace" }
                    )));
                }
                result => break result?,
            }
        };
        self.enter(Phase::Settling);
        tokio::select! {
            settled = self.settle_patiently(&probed, &summaries) => settled?,
            () = signals.received() => return Err(EngineError::Interrupted),
        }
        for summary in summaries {
            self.add_summary(summary);
        }
        self.enter(Phase::Done);
        Ok(())
    }

    /// Everything is loaded: a connection that breaks now is no reason to call it a failure.
    async fn settle_patiently(
        &mut self,
        probed: &target::Target,
        summaries: &[WorkerSummary],
    ) -> Result<(), EngineError> {
        let mut pause = SETTLE_PAUSE;
        for _ in 1..SETTLE_TRIES {
            match self.settle(probed, summaries).await {
                Err(error @ EngineError::Target(_)) => tracing::warn!(%error, "trying again to settle"),
                done => return done,
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        self.settle(probed, summaries).await
    }

    /// What must be done once everything is acknowledged. May be done again.
    async fn settle(&mut self, probed: &target::Target, summaries: &[WorkerSummary]) -> Result<(), EngineError> {
        // A connection of its own: the first one would have been idle for as long as the load took, and a target with
        // `timeout` closes such.
        let mut target = TargetLink::connect(&self.settings.target, self.settings.connect_timeout).await?;
        if target::run_id(&mut target).await? != probed.run_id {
            return Err(EngineError::Target(target::RESTARTED.into()));
        }
        self.ask_suspects(&mut target, summaries).await?;
        self.remove_markers(&mut target, summaries).await?;
        if let (Some(before), Some(after)) = (probed.cpu_at_start, target::cpu(&mut target).await) {
            self.report.cpu_target = Some(after.since(before));
        }
        Ok(())
    }

    /// Asks both sides what they are, and applies `--on-existing`.
    async fn prepare(&mut self) -> Result<(target::Target, Source, Arc<Existing>), EngineError> {
        let settings = self.settings.clone();
        let mut target = TargetLink::connect(&settings.target, settings.connect_timeout).await?;
        let probed = target::probe(&mut target).await?;
        self.report.targets = vec![ServerInfo {
            address: format!("{}:{}", settings.target.host, settings.target.port),
            make: probed.make.to_ascii_lowercase(),
            version: probed.version.clone(),
            flows: 0,
        }];
        // The source is asked before the target is emptied: a wrong address must not cost a data set.
        let source = Source::connect(&settings.source, settings.connect_timeout).await?;
        self.keys_expected = source.keys();
        self.report.source.make = "dragonfly".into();
        self.report.source.version = source.version().to_string();
        let existing = Arc::new(target::prepare(&mut target, &probed, &settings).await?);
        self.touched = settings.on_existing == OnExisting::Flush && !probed.keyspace.is_empty();
        Ok((probed, source, existing))
    }

    /// One full sync. Workers are stopped whatever happens; their summaries enter the report.
    async fn attempt(
        &mut self,
        source: &mut Source,
        plan: CrewPlan,
        signals: &mut Signals,
    ) -> Result<Vec<WorkerSummary>, EngineError> {
        self.enter(Phase::Flows);
        let opened = async {
            source.register().await?;
            self.report.source.flows = source.flows();
            let flows = source.open_flows().await?;
            Crew::start(plan, flows).await
        };
        let mut crew = tokio::select! {
            crew = opened => crew?,
            () = signals.received() => return Err(EngineError::Interrupted),
        };
        let result = self.sync(source, &mut crew, signals).await;
        let (summaries, ended) = crew.stop().await;
        self.client_ids = crew.client_ids().to_vec();
        match graver(result, ended) {
            Ok(()) => Ok(summaries),
            Err(error) => {
                if !matches!(error, EngineError::SyncVoided { .. }) {
                    for summary in summaries {
                        self.add_summary(summary);
                    }
                }
                Err(error)
            }
        }
    }

    async fn sync(&mut self, source: &mut Source, crew: &mut Crew, signals: &mut Signals) -> Result<(), EngineError> {
        self.report.ring_features = crew.features();
        let flows = source.flows() as usize;
        let (mut at_end, mut complete, mut drained) = (0, 0, 0);
        let mut ticks = tokio::time::interval(PROGRESS_EVERY);
        self.enter(Phase::FullSync);
        self.touched = true;
        self.transfer_since = Some(Instant::now());
        // The answers to SYNC and STARTSTABLE come only after writes to the flows, so events are taken meanwhile.
        let mut request = Some(source.start_sync()?);
        loop {
            tokio::select! {
                answer = async { match &mut request { Some(request) => request.await, None => std::future::pending().await } } => {
                    request = None;
                    source.answered(answer?);
                }
                event = crew.event() => match event? {
                    WorkerEvent::FullSyncEnd { flow } => {
                        tracing::debug!(%flow, "FULLSYNC_END");
                        at_end += 1;
                    }
                    WorkerEvent::Complete { flow, next_lsn } => {
                        tracing::info!(%flow, %next_lsn, "flow complete: the target holds the state before this LSN once drained");
                        complete += 1;
                    }
                    WorkerEvent::Drained => drained += 1,
                    event => self.watch(event),
                },
                _ = ticks.tick() => self.progress(),
                () = signals.received() => return Err(EngineError::Interrupted),
            }
            if self.phase == Phase::FullSync && at_end == flows && request.is_none() {
                self.enter(Phase::StartingStable);
                request = Some(source.start_stable()?);
            }
            if drained == crew.workers()
                && complete == flows
                && request.is_none()
                && self.phase == Phase::StartingStable
            {
                self.progress();
                return Ok(());
            }
        }
    }

    /// Events that only the report and the observer care for.
    fn watch(&mut self, event: WorkerEvent) {
        if let WorkerEvent::Sample { worker, stats, interval, not_carried } = event {
            self.totals.update(worker as u16, *stats);
            self.report.latencies.add(&interval);
            self.observer.interval(&interval);
            self.observer.second(self.started.elapsed());
            for item in not_carried {
                self.add_not_carried(&item);
            }
        }
    }

    fn progress(&mut self) {
        let sum = self.totals.sum();
        let snapshot = ProgressSnapshot {
            phase: self.phase.name().to_string(),
            elapsed: self.started.elapsed(),
            flows: sum
                .flows
                .iter()
                .map(|f| FlowProgress { flow: f.flow, bytes_in: f.bytes_in, keys: f.keys, state: f.state })
                .collect(),
            bytes_in: sum.bytes_in,
            bytes_out: sum.bytes_out,
            keys: sum.keys,
            keys_expected: self.keys_expected,
        };
        self.observer.progress(&snapshot);
    }

    /// Keys that an omitted DEL of the source may have left behind (wire 2.10).
    async fn ask_suspects(&mut self, target: &mut TargetLink, summaries: &[WorkerSummary]) -> Result<(), EngineError> {
        self.report.suspects.asked = 0;
        let suspects: Vec<_> = summaries.iter().flat_map(|s| s.suspects.iter()).collect();
        if suspects.is_empty() {
            return Ok(());
        }
        let mut source = Source::connect(&self.settings.source, self.settings.connect_timeout).await?;
        for (db, key) in suspects {
            self.report.suspects.asked += 1;
            if !source.exists(*db, key).await? && target::delete(target, *db, key).await? {
                self.report.suspects.removed += 1;
            }
        }
        Ok(())
    }

    async fn remove_markers(
        &mut self,
        target: &mut TargetLink,
        summaries: &[WorkerSummary],
    ) -> Result<(), EngineError> {
        for (marker, dbs) in summaries.iter().flat_map(|s| s.marked.iter()) {
            for db in dbs {
                target::delete(target, *db, marker).await?;
            }
        }
        Ok(())
    }

    fn add_not_carried(&mut self, item: &NotCarried) {
        if item.kind == What::SearchIndex.name() && self.report.search_indexes.len() < SEARCH_INDEXES_MAX {
            let name = item.key.split(|byte| *byte == b' ').next().unwrap_or_default();
            let name = String::from_utf8_lossy(name).into_owned();
            // From 1.37 on every flow says it (wire 2.4).
            if !self.report.search_indexes.contains(&name) {
                self.report.search_indexes.push(name);
            }
        }
        self.report.not_carried.push(item);
        self.observer.not_carried(item);
    }

    fn add_summary(&mut self, summary: WorkerSummary) {
        for item in &summary.not_carried {
            self.add_not_carried(item);
        }
        for tally in &summary.tallies {
            super::rows::add_tally(&mut self.report, tally);
        }
        for (name, count) in summary.journal_by_name {
            *self.report.journal_commands.entry(name).or_default() += count;
        }
        self.report.latencies.add(&summary.interval);
        self.observer.interval(&summary.interval);
        self.totals.update(summary.worker as u16, summary.stats);
        if let Some(version) = summary.source_version {
            self.report.source.version = version;
        }
    }

    fn finish(mut self, result: Result<(), EngineError>) -> RunInputs {
        let now = Instant::now();
        self.report.phases.push((self.phase.name().to_string(), now - self.phase_since));
        self.report.elapsed = self.started.elapsed();
        self.report.transfer = self.transfer_since.map_or(Duration::ZERO, |since| now - since);
        self.report.totals = self.totals.sum();
        self.report.rss_bytes_peak = rss_bytes_peak();
        self.report.cpu_tool = match (self.cpu_at_start, CpuSample::of_process()) {
            (Some(before), Some(after)) => Some(after.since(before)),
            _ => None,
        };
        self.observer.second(self.report.elapsed);
        if let Err(error) = result {
            let state = self.target_state();
            self.report.outcome = Outcome::failed(exit_class(error.class()), error.to_string(), Some(state));
        }
        self.report
    }

    /// What the operator finds at the target after a run that did not reach its end.
    fn target_state(&self) -> String {
        if !self.touched {
            return "nothing was written to the target".into();
        }
        format!(
            "the target holds a part of the source's data ({} keys were read in phase \"{}\") and must not be used as it \
             is; run again with --on-existing flush, or replace if it held keys of its own. Keys that begin with \"{}\" \
             are this tool's and may be deleted",
            self.totals.sum().keys,
            self.phase.name(),
            target::OWN_PREFIX
        )
    }
}

/// The cause among two ends. A worker that fails for its own reasons closes its flows, whereupon the source ends all of the
/// registration: what is then heard of the source is only the echo.
pub(super) fn graver(left: Result<(), EngineError>, right: Result<(), EngineError>) -> Result<(), EngineError> {
    match (left, right) {
        (Err(EngineError::Source(_)), Err(right)) if !matches!(right, EngineError::Source(_)) => Err(right),
        (left, right) => left.and(right),
    }
}

/// SIGINT and SIGTERM, from the start of the run to its end: what comes between two waits is not lost.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, EngineError> {
        let listen = |kind| signal(kind).map_err(|e| EngineError::System(format!("signals cannot be received: {e}")));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Returns when one of them came.
    async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn exit_class(class: Class) -> ExitClass {
    match class {
        Class::Refused => ExitClass::Refused,
        Class::Source => ExitClass::Source,
        Class::Target => ExitClass::Target,
        Class::CorruptStream => ExitClass::Corrupt,
        Class::System => ExitClass::System,
        Class::Interrupted => ExitClass::Interrupted,
        Class::Internal => ExitClass::Internal,
    }
}

/// The plan that every flow of a run converts by.
pub(super) fn plan_of(
    settings: &MigrateSettings,
    capabilities: Capabilities,
    set_bytes_max: u64,
) -> Result<Arc<Plan>, EngineError> {
    let limits = Limits { restore_bytes_max: settings.restore_bytes_max, set_bytes_max, ..Limits::default() };
    Plan::new(capabilities, settings.on_unsupported.clone(), limits)
        .map(Arc::new)
        .map_err(|e| EngineError::Refused(e.to_string()))
}

/// A fresh owner rule for a registration.
pub(super) fn owner_rule(flows: u32) -> Arc<OwnerRule> {
    Arc::new(OwnerRule::new(flows))
}
