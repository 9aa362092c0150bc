//! One run of a job: what both `migrate` and `replicate` keep and report, and how a run begins and ends.
//!
//! In: resolved settings. Out: a `RunInputs` with everything that the report says, whatever happened. The control plane
//! runs on tokio-uring in the calling thread; workers run in theirs.

use super::cluster::Cluster;
use super::control::{Control, Waiting};
use super::draining::positions_text;
use super::error::{Class, EngineError};
use super::handing::Desk;
use super::import::ImportMode;
use super::lease::{Lease, Watch};
use super::messages::{Lost, WorkerEvent, WorkerSummary};
use super::phase::Phase;
use super::settings::MigrateSettings;
use super::spool;
use super::target;
use super::view::View;
use crate::convert::{Limits, Plan, What};
use crate::dragonfly::session::Release;
use crate::ids::DbIndex;
use crate::redis::Capabilities;
use crate::report::counters::{CpuSample, Totals, rss_bytes_peak};
use crate::report::document::{ExitClass, NotCarried, Outcome, RunInputs};
use crate::report::observer::{FlowProgress, Observer, ProgressSnapshot};
use crate::uring::{self, Ring, RingSettings, SlabLayout};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// Runs the job to its end: `replicate` if the settings say to follow, else `migrate`. Never panics on what peers do;
/// every failure is in the outcome.
pub fn run(command: &str, settings: MigrateSettings, observer: &mut dyn Observer) -> RunInputs {
    run_with(command, settings, observer, Vec::new())
}

/// Something that serves operators while a job runs: begun on the control thread's ring, before the job. `Err`: why the
/// job must not begin.
pub type Service = Box<dyn FnOnce(Arc<Control>) -> Result<(), String>>;

/// [`run`], with services beside the job.
pub fn run_with(
    command: &str,
    settings: MigrateSettings,
    observer: &mut dyn Observer,
    services: Vec<Service>,
) -> RunInputs {
    let mut job = Job::new(command, settings, observer);
    // What the workers will ask of the kernel is known to be there before anything is begun.
    let result =
        check_ring(&job.settings.ring).and_then(|()| spool::check(job.settings.spool.as_ref())).and_then(|()| {
            let runtime = tokio_uring::Runtime::new(&tokio_uring::builder())
                .map_err(|e| EngineError::System(uring::explain_setup(e).to_string()))?;
            runtime.block_on(async {
                for service in services {
                    service(job.settings.control.clone()).map_err(EngineError::Refused)?;
                }
                let ended = if job.settings.follow.is_some() { job.replicate().await } else { job.migrate().await };
                job.give_lease_back().await;
                ended
            })
        });
    job.finish(result)
}

/// Sets a small ring up and drops it, in a thread of its own (a ring belongs to the thread that made it).
pub(super) fn check_ring(settings: &RingSettings) -> Result<(), EngineError> {
    let settings = settings.clone();
    let layout = SlabLayout { rx_chunk_bytes: 4096, rx_chunks: 1, tx_chunk_bytes: 4096, tx_chunks: 1 };
    let ring = std::thread::spawn(move || Ring::new(&settings, layout).map(drop).map_err(|e| e.to_string()));
    match ring.join() {
        Ok(outcome) => outcome.map_err(EngineError::System),
        Err(_) => Err(EngineError::Internal("setting a ring up panicked".into())),
    }
}

/// The cause among two ends. A worker that fails for its own reasons closes its flows, whereupon the source ends all of the
/// registration: what is then heard of the source is only the echo. That the target's data is not to be trusted counts more than
/// anything: the checkpoint must not be gone on from.
pub(super) fn graver(left: Result<(), EngineError>, right: Result<(), EngineError>) -> Result<(), EngineError> {
    match (left, right) {
        (left, Err(torn @ EngineError::Torn(_))) if !matches!(left, Err(EngineError::Torn(_))) => Err(torn),
        (Err(EngineError::Source(_)), Err(right)) if !matches!(right, EngineError::Source(_)) => Err(right),
        (left, right) => left.and(right),
    }
}

/// Names of search indexes that the report lists.
const SEARCH_INDEXES_MAX: usize = 1000;

/// What is left may take so long once it is to hurry.
pub(super) const HURRY_MAX: Duration = Duration::from_secs(2);

/// SIGINT, SIGTERM and an operator's `stop`, from the start of the run to its end: what comes between two waits is not lost.
pub(super) struct Signals {
    heard: UnboundedReceiver<()>,
    /// Of those, how many somebody was waiting for.
    taken: u32,
    /// What is left is not to take long.
    pub hurries: bool,
}

impl Signals {
    pub fn new(control: Arc<Control>) -> Result<Self, EngineError> {
        let of = |kind| signal(kind).map_err(|e| EngineError::System(format!("signals cannot be watched: {e}")));
        let (mut interrupt, mut terminate) = (of(SignalKind::interrupt())?, of(SignalKind::terminate())?);
        let (tell, heard) = unbounded_channel();
        // tokio tells once of all that came since it was asked. Of two the second means more, also where nobody waits meanwhile.
        tokio_uring::spawn(async move {
            while !tell.is_closed() {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    () = control.stop_asked() => {}
                }
                let _ = tell.send(());
            }
        });
        Ok(Self { heard, taken: 0, hurries: false })
    }

    /// The next one.
    pub async fn next(&mut self) {
        let _ = self.heard.recv().await;
        self.taken += 1;
    }

    /// How many were waited for and came.
    pub fn taken(&self) -> u32 {
        self.taken
    }

    /// Does what the first signal ends: there is nothing to be applied before. Cut off anywhere it is as after a kill.
    pub async fn interruptible<T>(
        &mut self,
        work: impl Future<Output = Result<T, EngineError>>,
    ) -> Result<T, EngineError> {
        tokio::select! {
            done = work => done,
            () = self.next() => Err(EngineError::Interrupted),
        }
    }

    /// Does what is left where there is no way back. From the first signal that comes meanwhile on nothing of it may take long, nor
    /// where the job was told to stop at once.
    pub async fn hurry<T>(&mut self, work: impl Future<Output = Result<T, EngineError>>) -> Result<T, EngineError> {
        let mut work = pin!(work);
        if !self.hurries && self.taken < 2 {
            tokio::select! {
                done = &mut work => return done,
                () = self.next() => self.hurries = true,
            }
        }
        tokio::time::timeout(HURRY_MAX, work).await.unwrap_or(Err(EngineError::Interrupted))
    }
}

pub(super) struct Job<'o> {
    pub(super) settings: Arc<MigrateSettings>,
    pub(super) observer: &'o mut dyn Observer,
    pub(super) started: Instant,
    pub(super) phase: Phase,
    pub(super) phase_since: Instant,
    pub(super) report: RunInputs,
    pub(super) totals: Totals,
    pub(super) keys_expected: Option<u64>,
    /// The process of the source that is copied; empty if it does not tell.
    pub(super) source_process: String,
    /// Something was written to the target.
    pub(super) touched: bool,
    /// The target's checkpoint is good: a restart goes on from it.
    pub(super) resumable: bool,
    /// The target has the traffic.
    pub(super) handed_over: bool,
    /// The job was stopped where the source's positions were reached, and what was held of expiries was given back.
    pub(super) put_right: bool,
    pub(super) transfer_since: Option<Instant>,
    /// Ids, at the target, of the connections of the last attempt's workers.
    pub(super) client_ids: Vec<i64>,
    /// The cluster of a session that has ended under a cutover: what its nodes were when they acknowledged.
    pub(super) nodes: Option<Rc<Mutex<Cluster>>>,
    /// By flow: LSN that the target of the last session had confirmed.
    pub(super) confirmed: Vec<u64>,
    pub(super) import_mode: ImportMode,
    /// The target is held for this process.
    pub(super) lease: Option<Lease>,
    /// Keys that the target lost and that the last session could not fetch again.
    pub(super) lost: Vec<Lost>,
    /// Shifted expiries may stand at the target whose keys are not known by name.
    pub(super) sweep_needed: bool,
    cpu_at_start: Option<CpuSample>,
    pub(super) view: View,
    pub(super) desk: Desk,
    /// Sessions so far.
    pub(super) sessions: u64,
    /// Markers written by the sessions that have ended.
    pub(super) marked: Vec<(Vec<u8>, Vec<DbIndex>)>,
    /// Why there is no session, for the status.
    pub(super) waiting: Option<Waiting>,
}

impl<'o> Job<'o> {
    fn new(command: &str, settings: MigrateSettings, observer: &'o mut dyn Observer) -> Self {
        let value = serde_json::to_value(&settings).unwrap_or_default();
        let mut report = RunInputs::empty(command, Outcome::done(), value);
        report.started_unix_ms = uring::clock::realtime_ms();
        report.kernel = uring::probe::kernel_release();
        report.source.address = settings.source.address().to_string();
        settings.control.begin(settings.batch_bytes, settings.window_bytes);
        if let Some(follow) = &settings.follow {
            settings.control.begin_following(follow.hold_expiries_within);
        }
        let desk = Desk::new(settings.control.take_cutovers(), settings.control.take_repairs());
        let job = Self {
            settings: Arc::new(settings),
            observer,
            started: Instant::now(),
            phase: Phase::Connect,
            phase_since: Instant::now(),
            report,
            totals: Totals::new(),
            keys_expected: None,
            source_process: String::new(),
            touched: false,
            resumable: false,
            handed_over: false,
            put_right: false,
            transfer_since: None,
            client_ids: Vec::new(),
            nodes: None,
            confirmed: Vec::new(),
            import_mode: ImportMode::Off,
            lease: None,
            lost: Vec::new(),
            sweep_needed: false,
            cpu_at_start: Some(cpu_of_process()),
            view: View::default(),
            desk,
            sessions: 0,
            marked: Vec::new(),
            waiting: None,
        };
        job.publish();
        job
    }

    /// Tells of the loss of the lease. Without one nothing is ever lost.
    pub(super) fn lease_watch(&self) -> Option<Watch> {
        self.lease.as_ref().map(Lease::watch)
    }

    pub(super) fn check_lease(&self) -> Result<(), EngineError> {
        self.lease_watch().map_or(Ok(()), |lease| lease.check())
    }

    pub(super) async fn give_lease_back(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back(&self.settings).await;
        }
    }

    /// A session cannot begin for this reason: told until one has.
    pub(super) fn wait_for(&mut self, why: &str) {
        let control = &self.settings.control;
        self.waiting.get_or_insert_with(|| control.waiting()).say(why);
    }

    pub(super) fn enter(&mut self, phase: Phase) {
        debug_assert!(self.phase.may_enter(phase), "{:?} -> {phase:?}", self.phase);
        let now = Instant::now();
        self.report.phases.push((self.phase.name().to_string(), now - self.phase_since));
        tracing::info!(phase = phase.name(), "phase");
        self.phase = phase;
        self.phase_since = now;
        self.publish();
    }

    /// Events that only the report and the observer care for.
    pub(super) fn watch(&mut self, event: WorkerEvent) {
        if let WorkerEvent::Sample { worker, stats, interval, not_carried } = event {
            self.totals.update(worker as u16, *stats);
            self.view.latencies.add(&interval);
            self.report.latencies.add(&interval);
            self.observer.interval(&interval);
            self.observer.second(self.started.elapsed());
            for item in not_carried {
                self.add_not_carried(&item);
            }
        }
    }

    pub(super) fn progress(&mut self) {
        let sum = self.totals.sum();
        let snapshot = ProgressSnapshot {
            phase: self.phase.name().to_string(),
            elapsed: self.started.elapsed(),
            flows: sum
                .flows
                .iter()
                .map(|f| FlowProgress {
                    flow: f.flow,
                    bytes_in: f.bytes_in,
                    keys: f.keys,
                    state: f.state,
                    unread_ms: f.unread_ns / 1_000_000,
                    backlog_bytes: f.backlog_bytes,
                })
                .collect(),
            bytes_in: sum.bytes_in,
            bytes_out: sum.bytes_out,
            keys: sum.keys,
            keys_expected: self.keys_expected,
        };
        self.observer.progress(&snapshot);
        self.view.remember(snapshot.elapsed, &sum);
        self.publish();
    }

    pub(super) fn add_not_carried(&mut self, item: &NotCarried) {
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

    pub(super) fn add_summary(&mut self, summary: WorkerSummary) {
        for item in &summary.not_carried {
            self.add_not_carried(item);
        }
        for tally in &summary.tallies {
            super::rows::add_tally(&mut self.report, tally);
        }
        let expiries = &mut self.report.expiries;
        expiries.held += summary.expiries.held;
        expiries.held_at_end += summary.expiries.held_at_end;
        expiries.not_named += summary.expiries.not_named;
        expiries.passed_at_release += summary.expiries.passed_at_release;
        expiries.flows_at_risk += summary.expiries.flows_at_risk;
        self.report.filtered.add(&summary.filtered);
        expiries.fetched_again += summary.expiries.fetched_again;
        expiries.not_fetched += summary.expiries.not_fetched;
        self.lost.extend(summary.lost);
        expiries.held_ms_max = expiries.held_ms_max.max(summary.expiries.held_ms_max);
        expiries.lagged_ms_max = expiries.lagged_ms_max.max(summary.expiries.lagged_ms_max);
        super::rows::add_existing(&mut self.report, summary.existing_skipped);
        for (name, count) in summary.journal_by_name {
            *self.report.journal_commands.entry(name).or_default() += count;
        }
        self.marked.extend(summary.marked);
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
        self.report.cpu_tool = self.cpu_at_start.map(|before| cpu_of_process().since(before));
        self.observer.second(self.report.elapsed);
        if let Err(error) = result {
            let state = self.target_state(&error);
            self.report.outcome = Outcome::failed(exit_class(error.class()), error.to_string(), Some(state));
        }
        self.report
    }

    /// What the operator finds at the target after a run that did not reach its end.
    fn target_state(&self, error: &EngineError) -> String {
        if !self.touched {
            return "nothing was written to the target".into();
        }
        if self.handed_over {
            return "the target has the traffic, and this job is over: compare it with the source (df2redis verify)"
                .into();
        }
        if self.resumable {
            let positions = match positions_text(&self.confirmed) {
                text if text.is_empty() => text,
                text => format!(" ({text})"),
            };
            let next = match error {
                EngineError::Void(_) => "and must not be followed up from there",
                _ => "run the same command again to go on from there, without --on-existing flush",
            };
            return format!("the target holds the source's data up to its checkpoint{positions}; {next}");
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

pub(super) fn exit_class(class: Class) -> ExitClass {
    match class {
        Class::Refused => ExitClass::Refused,
        Class::Source => ExitClass::Source,
        Class::Target => ExitClass::Target,
        Class::CorruptStream => ExitClass::Corrupt,
        Class::System => ExitClass::System,
        Class::Interrupted => ExitClass::Interrupted,
        Class::PositionLost => ExitClass::PositionLost,
        Class::Internal => ExitClass::Internal,
    }
}

/// CPU time of the whole process so far (`/proc/self/stat` would round it to 10 ms).
fn cpu_of_process() -> CpuSample {
    let usage = uring::cpu::usage();
    CpuSample { user: Duration::from_nanos(usage.user_ns), system: Duration::from_nanos(usage.system_ns) }
}

/// The plan that every flow of a run converts by.
pub(super) fn plan_of(
    settings: &MigrateSettings,
    capabilities: Capabilities,
    databases: Option<u32>,
    set_bytes_max: u64,
    (source, source_ahead_ms): (Option<Release>, i64),
) -> Result<Arc<Plan>, EngineError> {
    // What is not borrowed anyway is written in one piece.
    let inline_bytes_max = settings.borrow_bytes_min;
    let restore_bytes_max = settings.restore_bytes_max;
    let limits = Limits { restore_bytes_max, set_bytes_max, inline_bytes_max, ..Limits::default() };
    let scope = settings.scope.clone().within(databases.unwrap_or(u32::MAX));
    Plan::new(capabilities, settings.on_unsupported.clone(), limits)
        .map(|plan| Arc::new(plan.scoped(scope).from_source(source, source_ahead_ms)))
        .map_err(|e| EngineError::Refused(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_cause_among_two_ends() {
        let source = || Err(EngineError::Source("closed".into()));
        let target = || Err(EngineError::Target("refused".into()));
        let torn = || Err(EngineError::Torn("executed twice".into()));
        let interrupted = || Err(EngineError::Interrupted);
        for left in [Ok(()), source(), target(), interrupted(), torn()] {
            assert!(matches!(graver(left, torn()), Err(EngineError::Torn(_))));
        }
        assert!(matches!(graver(torn(), target()), Err(EngineError::Torn(_))));
        assert!(matches!(graver(source(), target()), Err(EngineError::Target(_))));
        assert!(matches!(graver(target(), source()), Err(EngineError::Target(_))));
        assert!(matches!(graver(interrupted(), target()), Err(EngineError::Interrupted)));
        assert!(graver(Ok(()), Ok(())).is_ok() && graver(Ok(()), target()).is_err());
    }

    #[test]
    fn two_signals_are_two_also_where_nobody_waits() {
        tokio_uring::start(async {
            let mut signals = Signals::new(Arc::default()).unwrap();
            for count in 1..=2 {
                let pid = std::process::id().to_string();
                assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
                let heard = async {
                    while signals.heard.len() < count {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                };
                tokio::time::timeout(Duration::from_secs(60), heard).await.expect("it is not heard");
            }
            signals.next().await;
            assert!(matches!(
                signals.interruptible(std::future::pending::<Result<(), _>>()).await,
                Err(EngineError::Interrupted)
            ));
        });
    }
}
