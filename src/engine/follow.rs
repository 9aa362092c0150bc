//! Following the journal: one session of `replicate`, from the end of its full sync (or from a checkpoint) until something
//! ends it.
//!
//! In: what the workers and the source say, signals, a cutover. Out: the target in step, or the reason of the end. Invariants:
//! the checkpoint is called good only when every flow's snapshot is confirmed; a global command is executed once, when every
//! flow stands before it and everything before it is applied (`global`); "in step" is what positions say; whatever is heard
//! of the source's end, the session ends only when what was read is applied (`draining`).

use super::absent::{Absent, Asked, Present};
use super::asking::{Asking, Positions};
use super::checkpoint::{self, Checkpoint};
use super::crew::Crew;
use super::draining::Draining;
use super::error::EngineError;
use super::fetch::Fetcher;
use super::global::Global;
use super::handing::DeskEvent;
use super::handover::Order;
use super::hold::Watermarks;
use super::job::{Job, Signals};
use super::joining::Joining;
use super::messages::{Lost, WorkerCommand, WorkerEvent};
use super::migrate::PROGRESS_EVERY;
use super::phase::Phase;
use super::replicas::Replicas;
use super::righting::Rightings;
use super::settings::AtStop;
use super::source::{PartialWay, Source};
use super::target::Target;
use crate::convert::hold::Overflow;
use crate::dragonfly::reply::Reply;
use crate::dragonfly::session::Session;
use crate::ids::Lsn;
use std::pin::pin;
use std::time::Duration;
use tokio::sync::oneshot;

/// How often is looked whether every snapshot is confirmed: until then a restart begins anew.
const CONFIRMED_EVERY: Duration = Duration::from_millis(20);
/// How often the source is asked for its positions.
const OFFSETS_EVERY: Duration = Duration::from_secs(1);
/// How long the source may take to say where it stands when the job is told to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(2);
/// A refused mark of the checkpoint is tried again after this, and one that was too early from the first of these on.
const MARK_EARLY_NS: u64 = 20_000_000;
const MARK_AGAIN_NS: u64 = 1_000_000_000;
/// More records behind than this and the target is no longer called in step.
const IN_STEP_RECORDS_MAX: u64 = 10_000;

impl Job<'_> {
    /// The full sync (if the session is one), then the journal until something ends it.
    pub(super) async fn follow(
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
            let (link, reply) = signals.interruptible(answer).await?;
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
        crew.take_lost().into_iter().for_each(|wanted| fetcher.want(wanted));
        let mut absent = Absent::new(&self.settings, &self.source_process);
        let mut rightings = Rightings::new(&self.settings, &probed.capabilities, crew.hold().clone());
        let mut ticks = tokio::time::interval(PROGRESS_EVERY);
        let mut offsets = tokio::time::interval(OFFSETS_EVERY);
        let mut confirmations = tokio::time::interval(CONFIRMED_EVERY);
        let mut draining: Option<Draining> = None;
        let mut asking = Asking::default();
        loop {
            // Why the source is gone, if this turn has told.
            let mut gone = Ok(());
            tokio::select! {
                event = crew.event() => match event? {
                    // Of a source that is gone nothing is asked: the next session begins with keys that are in doubt.
                    WorkerEvent::Lost(_) if Draining::lacks_source(draining.as_ref()) => {}
                    WorkerEvent::Suspects { keys, changed } => {
                        watch.doubtful.extend(changed);
                        match keys.is_empty() || Draining::lacks_source(draining.as_ref()) {
                            true => watch.suspects(keys),
                            false => absent.want(keys),
                        }
                    }
                    WorkerEvent::SourceGone { why } => gone = Err(EngineError::Source(why)),
                    WorkerEvent::LetGo { why } => gone = Err(EngineError::LetGo(why)),
                    WorkerEvent::Spent { worker, releases } => {
                        if let Some(draining) = &mut draining {
                            draining.spent(worker, releases);
                        }
                    }
                    WorkerEvent::Drained => watch.drained += 1,
                    WorkerEvent::Settled(number) => watch.settled(number, crew.workers()),
                    WorkerEvent::Lost(wanted) => fetcher.want(wanted),
                    event => {
                        joining.event(&event);
                        self.watch(event);
                    }
                },
                answer = joining.answer() => gone = answer.and_then(|answer| joining.answered(source, answer)),
                _ = ticks.tick() => {
                    self.progress();
                    if let Some(draining) = &mut draining {
                        self.tell_draining(draining);
                    }
                    watch.marks.confirm(&crew.confirmed(), crew.hold());
                    rightings.look();
                }
                answers = fetcher.answers() => {
                    // That the source is gone does not mean that it does not have the key.
                    let lacks_source = Draining::lacks_source(draining.as_ref());
                    for answer in answers.into_iter().filter(|answer| !lacks_source || answer.answer.is_ok()) {
                        crew.tell_flow(answer.lost.flow, WorkerCommand::Fetched(Box::new(answer)));
                    }
                }
                Asked { keys, exist } = absent.answer() => match exist {
                    Ok(exist) => {
                        let (present, absent): (Vec<_>, Vec<_>) = keys.into_iter().zip(exist).partition(|(_, exists)| *exists);
                        self.report.suspects.asked += (present.len() + absent.len()) as u64;
                        self.report.suspects.removed += absent.len() as u64;
                        watch.present.add(present.into_iter().map(|(lost, _)| lost), crate::uring::clock::monotonic_ns());
                        watch.suspects(absent.into_iter().map(|(lost, _)| lost).collect());
                        // The checkpoint waits for it.
                        if watch.present.wants_positions() && joining.is_done() {
                            gone = asking.ask(source);
                        }
                    }
                    Err(_) if draining.is_some() => watch.suspects(keys),
                    Err(error) => gone = Err(error),
                },
                swept = rightings.ended() => {
                    let swept = swept?;
                    self.report.expiries.put_right_by_sweep += swept.put_right;
                    match watch.releasing {
                        false => crew.tell_found(swept.names),
                        // The flows have given back what they know by name: these are looked at again in the end.
                        true => crew.hold().add_unnamed(Overflow::of(&swept.names)),
                    }
                }
                _ = confirmations.tick(), if !checkpoint.stable => {}
                _ = offsets.tick(), if joining.is_done() && matches!(self.phase, Phase::CatchingUp | Phase::InStep) => {
                    let asks = checkpoint.stable || watch.present.wants_positions();
                    gone = if asks { asking.ask(source) } else { Ok(()) };
                    if asking.is_late() && self.phase == Phase::InStep {
                        tracing::warn!("the source does not say where it stands: whether the target is in step is not known");
                        self.view.unheard();
                        self.enter(Phase::CatchingUp);
                    }
                }
                positions = asking.answer(source) => {
                    gone = positions.map(|positions| {
                        watch.present.heard(&positions);
                        if checkpoint.stable {
                            self.compare_offsets(positions, crew, &mut watch);
                        }
                    });
                }
                () = signals.next() => {
                    if self.phase == Phase::Stopping || watch.stops {
                        return Err(EngineError::Interrupted);
                    }
                    tracing::info!("stopping: what was read is applied; a second signal stops at once");
                    watch.stops = true;
                    self.settings.control.cancel_cutover("the job was told to stop");
                }
                event = self.desk.next() => match event {
                    DeskEvent::Repair(asked) => self.begin_repair(asked, crew, draining.is_some()),
                    DeskEvent::Asked(asked) => self.begin_cutover(asked, source, crew, checkpoint.owned),
                    DeskEvent::Order(Order::Settle { release, done }) => {
                        let number = watch.settle(done);
                        crew.tell_all(|| WorkerCommand::Settle { number, release });
                    }
                    DeskEvent::Order(Order::Seal { done }) => {
                        // The last moment at which a cutover can still be rolled back.
                        signals.interruptible(crew.check_nodes()).await?;
                        let number = watch.settle(done);
                        crew.tell_all(|| WorkerCommand::Seal { number });
                    }
                    DeskEvent::Order(Order::Check { done }) => {
                        signals.interruptible(crew.check_nodes()).await?;
                        let _ = done.send(());
                    }
                    DeskEvent::Order(Order::RolledBack) => {}
                    DeskEvent::Order(Order::GoOn) => crew.tell_all(|| WorkerCommand::GoOn),
                    DeskEvent::Order(Order::End { keys, done }) => {
                        self.begin_end(keys, done);
                        crew.tell_all(|| WorkerCommand::Drain);
                    }
                    DeskEvent::Ended(report) => self.cutover_ended(report),
                },
            }
            gone = gone.and_then(|()| joining.go_on(source, crew));
            if let Err(cause) = gone {
                if !matches!(cause, EngineError::Source(_) | EngineError::LetGo(_)) {
                    return Err(cause);
                }
                (joining, asking) = (Joining::none(), Asking::default());
                // A session that is being stopped, or ended, applies what was read anyway.
                if draining.is_none() && matches!(self.phase, Phase::CatchingUp | Phase::InStep) {
                    draining = Some(self.begin_draining(source, crew, cause));
                }
            }
            let now_ns = crate::uring::clock::monotonic_ns();
            let is_copied = !checkpoint.stable && crew.confirmed().iter().all(|lsn| *lsn > 0);
            if is_copied && !std::mem::replace(&mut watch.suspects_asked, true) {
                // From here on every DEL is recorded. What becomes of them outlives the session: before the checkpoint is good.
                crew.tell_all(|| WorkerCommand::ListSuspects);
            }
            if draining.is_some() || crew.has_barriers() {
                // The source says no more where it stood, or nobody comes to that before the checkpoint is good: all are looked at.
                watch.doubtful.extend(watch.present.take());
            }
            let are_settled = watch.suspects_settled == crew.workers() && watch.present.is_passed(&crew.confirmed());
            if is_copied && now_ns >= watch.mark_at_ns && are_settled {
                if watch.mark_round.is_none() && self.mark_stable(probed, checkpoint, &mut watch, now_ns).await? {
                    watch.mark_round = Some(crew.replicas().map_or(0, Replicas::covering));
                    let lacks_source = Draining::lacks_source(draining.as_ref());
                    for lost in watch.doubtful.drain(..).filter(|_| !lacks_source) {
                        crew.tell_flow(lost.flow, WorkerCommand::Doubt(lost));
                    }
                    watch.present.take();
                    crew.tell_all(|| WorkerCommand::ForgetSuspects);
                    // Whatever ends the session from here on, the next one looks what the target holds.
                    crew.set_stable();
                    crew.note_processes();
                }
                if let Some(round) = watch.mark_round {
                    // Replicas are to have it, too, before anybody relies on it.
                    checkpoint.stable = crew.replicas().is_none_or(|replicas| replicas.reach(round));
                }
                self.resumable = checkpoint.stable;
            }
            self.settings.control.set_ready(self.phase == Phase::InStep);
            // A cutover that is under way is rolled back first.
            if watch.stops && !self.desk.is_running() && self.phase != Phase::Stopping {
                self.enter(Phase::Stopping);
                if draining.is_none() {
                    watch.stop_at = stop_positions(source, &mut asking).await;
                    (joining, asking) = (Joining::none(), Asking::default());
                    draining = Some(self.begin_draining(source, crew, EngineError::Interrupted));
                }
            }
            // What was read may be all that there is of it. A job that is paused by hand applies nothing, and is not waited for.
            let is_read = |draining: &Draining| draining.is_over(watch.releases);
            let may_stop = draining.as_ref().is_some_and(is_read) || self.settings.control.throttle.is_paused();
            if self.phase == Phase::Stopping && may_stop && !std::mem::replace(&mut watch.ends, true) {
                crew.tell_all(|| WorkerCommand::Drain);
            }
            if checkpoint.stable
                && let Some(barriers) = crew.take_barriers()
            {
                let global = Global::new(&self.settings, self.import_mode, self.lease.as_ref());
                let mut passed = pin!(global.execute(probed, checkpoint, &barriers));
                let mut later = Vec::new();
                // Cut off anywhere it is as after a kill: executed with its positions, or not.
                loop {
                    tokio::select! {
                        passed = &mut passed => break passed?,
                        () = signals.next() => return Err(EngineError::Interrupted),
                        event = crew.event() => match event? {
                            event @ WorkerEvent::Sample { .. } => self.watch(event),
                            event => later.push(event),
                        },
                        _ = ticks.tick() => self.progress(),
                    }
                }
                crew.put_back(later);
                crew.tell_all(|| WorkerCommand::ReleaseBarrier);
                // It went with a flush.
                crew.note_processes();
                watch.releases += 1;
            }
            if self.phase == Phase::Draining
                && let Some(over) = draining.take_if(|draining| draining.is_over(watch.releases))
            {
                return Err(self.end_draining(over, crew));
            }
            if watch.drained == crew.workers() && matches!(self.phase, Phase::Stopping | Phase::HandingOver) {
                // Behind a fence nothing is missing: that was proven.
                let handing_over = self.phase == Phase::HandingOver;
                if !handing_over && !watch.releasing {
                    signals.interruptible(crew.check_nodes()).await?;
                }
                let keeps = self.settings.follow.as_ref().is_some_and(|of| of.expiries_at_stop == AtStop::Hold);
                if !handing_over && (keeps || !watch.caught_up(&crew.confirmed())) {
                    if checkpoint.held {
                        let why = if keeps { "as told" } else { "behind the source" };
                        tracing::info!(why, "stopped: near expiries stay held until the job goes on");
                    }
                    return Err(EngineError::Interrupted);
                }
                if !watch.releasing {
                    watch.releasing = true;
                    watch.drained = 0;
                    crew.tell_all(|| WorkerCommand::ReleaseHeld);
                    continue;
                }
                let mut target = signals.interruptible(self.control_again(probed)).await?;
                if checkpoint.held {
                    let swept = signals.interruptible(rightings.end(&mut target)).await?;
                    self.report.expiries.put_right_by_sweep += swept.put_right;
                    if !handing_over {
                        // Behind the last answer: a primary that was replaced meanwhile put nothing right.
                        signals.interruptible(crew.check_nodes()).await?;
                    }
                    match swept.whole() {
                        Ok(_) => {
                            let not_held = checkpoint::set_held(&mut target, &checkpoint.key, false);
                            signals.interruptible(not_held).await?
                        }
                        Err(error) if handing_over => return Err(error),
                        Err(error) => {
                            tracing::warn!(%error, "stopped: near expiries in these slots stay held until the job goes on")
                        }
                    }
                }
                self.put_right = true;
                return if handing_over { Ok(()) } else { Err(EngineError::Interrupted) };
            }
        }
    }

    /// Calls the checkpoint good. False: it cannot be done yet, or is too early: a node of a cluster of which no position is there
    /// could come back with a part of its snapshot, and nothing would tell. The job goes on meanwhile.
    async fn mark_stable(
        &self,
        probed: &Target,
        checkpoint: &Checkpoint,
        watch: &mut Watch,
        now_ns: u64,
    ) -> Result<bool, EngineError> {
        let marked = async {
            let mut link = self.control_again_within(probed, Duration::ZERO).await?;
            let is_early = link.cluster().is_some() && !checkpoint::names_homes(&mut link, checkpoint).await?;
            if !is_early {
                checkpoint::note_lost(&mut link, &checkpoint.key, &watch.doubtful).await?;
                checkpoint::mark_stable(&mut link, &checkpoint.key).await?;
            }
            Ok(!is_early)
        };
        let error = match marked.await {
            Err(error @ (EngineError::Target(_) | EngineError::TargetLost(_) | EngineError::Untrusted(_))) => error,
            Ok(false) => {
                // It could have been done.
                watch.mark_since_ns = None;
                watch.mark_pause_ns = (2 * watch.mark_pause_ns).clamp(MARK_EARLY_NS, MARK_AGAIN_NS);
                watch.mark_at_ns = now_ns + watch.mark_pause_ns;
                return Ok(false);
            }
            marked => return marked,
        };
        watch.mark_at_ns = now_ns + MARK_AGAIN_NS;
        let since_ns = *watch.mark_since_ns.get_or_insert(now_ns);
        let limit = self.settings.retry_max;
        if u128::from(now_ns.saturating_sub(since_ns)) > limit.as_nanos() {
            let late = |why: String| format!("{why} (tried again for {limit:?}, see --retry-max)");
            return Err(match error {
                EngineError::Target(why) => EngineError::Target(late(why)),
                EngineError::TargetLost(why) => EngineError::TargetLost(late(why)),
                error => error,
            });
        }
        tracing::warn!(%error, "the checkpoint cannot be called good yet: trying again");
        Ok(false)
    }

    /// Compares the source's positions with the target's: whenever every flow has applied what the source had, the target is in step.
    fn compare_offsets(&mut self, positions: Positions, crew: &Crew, watch: &mut Watch) {
        let Positions { asked_ms, lsns: offsets, .. } = positions;
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
        } else if behind > IN_STEP_RECORDS_MAX && self.phase == Phase::InStep {
            self.enter(Phase::CatchingUp);
        }
    }
}

/// What the control plane keeps while it follows.
#[derive(Default)]
struct Watch {
    /// The target refused to call the checkpoint good: it is asked again then.
    mark_at_ns: u64,
    mark_since_ns: Option<u64>,
    mark_pause_ns: u64,
    /// The mark is written: the round in which replicas confirm it.
    mark_round: Option<u64>,
    drained: usize,
    /// Keys that it may have deleted without recording it are asked for.
    suspects_asked: bool,
    /// The source's positions when it was asked the last time.
    offsets_before: Option<Vec<Lsn>>,
    /// Workers whose suspects the source was asked for; those that it has not: the checkpoint is to name them before it is good.
    doubtful: Vec<Lost>,
    suspects_settled: usize,
    /// Those that it has.
    present: Present,
    /// Told to stop.
    stops: bool,
    /// The workers are told that nothing more is to be decoded.
    ends: bool,
    /// Orders to settle so far; who waits for the last of them, and how many workers have done so.
    settles: u64,
    settling: Option<(oneshot::Sender<()>, usize)>,
    /// How far the flows are applied, as times.
    marks: Watermarks,
    /// The source's positions when the job was told to stop.
    stop_at: Vec<Lsn>,
    /// Global commands that were executed, and the flows released behind them.
    releases: u64,
    /// Drained; the held expiries are on their way.
    releasing: bool,
}

impl Watch {
    /// One worker's suspects are settled: of these it is not known that the source has them.
    fn suspects(&mut self, doubtful: Vec<Lost>) {
        self.doubtful.extend(doubtful);
        self.suspects_settled += 1;
    }

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
async fn stop_positions(source: &mut Source, asking: &mut Asking) -> Vec<Lsn> {
    let positions = async {
        // The answer to an earlier question comes first.
        if !source.is_free() {
            asking.answer(source).await?;
        }
        source.replica_offsets().await
    };
    match tokio::time::timeout(STOP_PATIENCE, positions).await {
        Ok(Ok(offsets)) => offsets,
        _ => Vec::new(),
    }
}
