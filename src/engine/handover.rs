//! A cutover carried out: the machine of `cutover` with connections, hooks and a clock.
//!
//! In: a plan, from the control socket. Out: its steps as they happen, a report, and two orders to the job: to settle (say
//! when nothing is left to send) and to end. It runs beside the job, on the same thread, with a connection of its own to
//! each side, and reads the confirmed positions where the workers put them. Invariant: whatever fails, the source is
//! released, here or by its own timer.

use super::control::{Control, CutoverAsked};
use super::cutover::{Action, Cutover, HookEvent, Input, Now, Plan, Positions, Undone, Unproven, Verify};
use super::easing::{self, Eased};
use super::fence::{FenceLink, RELEASE_SETTLES};
use super::hold::HoldState;
use super::hooks::{self, HookFacts};
use super::settings::MigrateSettings;
use super::verify::fenced::Fenced;
use super::witness::Witness;
use crate::ids::DbIndex;
use crate::report::cutover::{CutoverEvent, CutoverOutcome, CutoverReport, CutoverStep, Rehearsal, Spread};
use crate::uring;
use hdrhistogram::Histogram;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

mod compare;
mod list;
mod own;

/// Keys of this tool at the target.
pub type OwnKeys = Vec<(DbIndex, Vec<u8>)>;

/// What the job must do for a cutover.
pub enum Order {
    /// Answer when no worker has anything left to send or to be answered; `release`: held expiries are given back before.
    Settle { release: bool, done: oneshot::Sender<()> },
    /// Apply nothing more, and answer when nothing is left to be answered.
    Seal { done: oneshot::Sender<()> },
    /// Answer when the nodes of a cluster were asked whether they still have what they acknowledged.
    Check { done: oneshot::Sender<()> },
    /// It is rolled back: apply again.
    GoOn,
    /// What is left of it, a hook, concerns no session.
    RolledBack,
    /// Stop and remove what is the tool's own at the target; `keys` may be left from earlier runs.
    End { keys: OwnKeys, done: oneshot::Sender<Result<(), Undone>> },
}

/// What a cutover needs to know of the job.
pub struct Handover {
    pub settings: Arc<MigrateSettings>,
    pub control: Arc<Control>,
    pub orders: UnboundedSender<Order>,
    pub sync_id: String,
    /// The session that it is about: another one has other positions.
    pub session: u64,
    /// The target is a cluster.
    pub cluster: bool,
    /// Expiries held back in the session.
    pub hold: Arc<HoldState>,
    /// What was read in the session, and who wrote it.
    pub witness: Arc<Witness>,
    /// The target held nothing else when the job began: what only it has is a difference.
    pub owned: bool,
    /// Markers of the session.
    pub markers: Vec<Vec<u8>>,
}

/// How long releasing may take; afterwards the fence has to end by itself.
const RELEASE_MAX: Duration = Duration::from_secs(3);
/// How long whoever asked may take to hear of the end.
const HEARD_MAX: Duration = Duration::from_secs(2);
/// How long workers may take to settle outside of a fence.
const SETTLE_MAX: Duration = Duration::from_secs(30);
/// Between two looks whether the session is there still.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A fence ends at the source by itself; this long after its budget nothing of it is left to release.
const FENCE_GONE_NS: u64 = 2_000_000_000;

/// Carries it out. The last event is `Ended`, with the report that is also returned.
pub async fn run(handover: Handover, asked: CutoverAsked) -> CutoverReport {
    let CutoverAsked { plan, events } = asked;
    let mut run = Run {
        begun: now(),
        source: None,
        own: OwnKeys::new(),
        comparison: None,
        unprepared: None,
        eased: None,
        report: CutoverReport { budget_ms: plan.budget_ms, ..CutoverReport::default() },
        plan,
        handover,
        events,
    };
    run.whole().await;
    let _ = run.events.send(CutoverEvent::Ended(Box::new(run.report.clone())));
    // The job may end now, and with it the socket: whoever asked hears of the end before.
    let _ = tokio::time::timeout(HEARD_MAX, run.events.closed()).await;
    run.report
}

/// Why a cutover that is about this session cannot go on, if so.
fn gone(control: &Control, session: u64) -> Option<String> {
    match (control.cutover_cancelled(), control.session()) {
        (Some(why), _) => Some(why),
        (None, Some(now)) if now == session => None,
        _ => Some("the session with the source ended".into()),
    }
}

fn now() -> Now {
    Now { monotonic_ns: uring::clock::monotonic_ns(), boottime_ns: uring::clock::boottime_ns() }
}

struct Run {
    handover: Handover,
    plan: Plan,
    events: UnboundedSender<CutoverEvent>,
    begun: Now,
    /// `None`: not connected, or not to be trusted any more.
    source: Option<FenceLink>,
    /// The tool's keys at the target, found before the fence.
    own: OwnKeys,
    /// The comparison, made ready before the fence.
    comparison: Option<Fenced>,
    /// Why it could not be.
    unprepared: Option<String>,
    /// What was held back is put right but for what is near, until this is dropped.
    eased: Option<Eased>,
    report: CutoverReport,
}

impl Run {
    async fn whole(&mut self) {
        let gone = self.told_gone();
        let prepared = tokio::select! {
            prepared = self.prepare() => prepared,
            why = gone => Err(why),
        };
        if let Err(why) = prepared {
            self.report.outcome = CutoverOutcome::NotDone;
            self.report.message = Some(format!("{why}. Nothing was fenced"));
        } else if self.plan.rehearse > 0 {
            self.rehearse().await;
        } else if self.plan.execute {
            self.execute().await;
        } else {
            self.list().await;
        }
    }

    /// Everything that can be known or made before the fence.
    async fn prepare(&mut self) -> Result<(), String> {
        self.plan.check()?;
        if self.handover.control.throttle.is_paused() {
            return Err("the job is paused: resume it first".into());
        }
        self.source = Some(FenceLink::connect(&self.handover.settings).await.map_err(|error| error.to_string())?);
        if self.plan.rehearse == 0 {
            self.may_compare()?;
            self.check_hooks()?;
        }
        // In a cluster, those that killed runs left behind stay.
        if self.plan.rehearse == 0 && !self.handover.cluster {
            self.own = self.find_own().await?;
        }
        if self.plan.execute && self.plan.verify != Verify::None {
            self.prepare_comparison().await?;
        }
        Ok(())
    }

    async fn execute(&mut self) {
        let wait = Duration::from_millis(self.plan.wait_ms);
        // In step, too, is a matter of so long a wait.
        match easing::ease(&self.handover.hold, wait, || self.gone()).await {
            Ok(eased) => {
                self.eased = Some(eased);
                let at_ms = now().since_ns(self.begun) / 1_000_000;
                let detail = "put right, but for those that are near".into();
                self.tell_step(CutoverStep { name: "expiries".into(), at_ms, detail, ..CutoverStep::default() });
            }
            Err(why) => {
                self.go_on();
                self.report.outcome = CutoverOutcome::NotDone;
                self.report.message = Some(format!("{why}. Nothing was fenced"));
                return;
            }
        };
        let cutover = self.round().await;
        if !cutover.is_handed_over() {
            self.go_on();
        }
        self.eased = None;
        self.report.outcome = match cutover.is_handed_over() {
            true => CutoverOutcome::HandedOver,
            false => CutoverOutcome::NotDone,
        };
        self.report.differs = cutover.differs;
        self.report.lacks = cutover.lacks;
        self.report.message = cutover.why.or(cutover.note);
        self.report.held_us = cutover.held_ns.map(|ns| ns / 1000);
        self.report.positions = cutover.proven;
        self.report.verified = cutover.verified;
        self.report.switched = cutover.switched;
    }

    async fn rehearse(&mut self) {
        let empty = || Histogram::<u64>::new_with_bounds(1, 3_600_000_000, 3);
        let (Ok(mut held), Ok(mut drained)) = (empty(), empty()) else { return };
        let mut rehearsal = Rehearsal::default();
        for _ in 0..self.plan.rehearse {
            let cutover = self.round().await;
            if let Some(ns) = cutover.held_ns {
                rehearsal.rounds += 1;
                held.saturating_record(ns / 1000);
            }
            if let Some(ns) = cutover.drained_ns {
                drained.saturating_record(ns / 1000);
            }
            if let Some(why) = cutover.why {
                rehearsal.missed += 1;
                self.report.message = Some(why);
                // What is not a matter of time will not get better by trying again.
                if cutover.held_ns.is_none() || self.gone().is_some() {
                    break;
                }
            }
            if cutover.unreleased {
                break;
            }
            tokio::time::sleep(RELEASE_SETTLES).await;
        }
        (rehearsal.held, rehearsal.drained) = (Spread::of(&held), Spread::of(&drained));
        let whole = rehearsal.missed == 0 && rehearsal.rounds == self.plan.rehearse;
        self.report.outcome = if whole { CutoverOutcome::Rehearsed } else { CutoverOutcome::NotDone };
        self.report.rehearsal = Some(rehearsal);
    }

    /// The job follows on: what was given back for the fence is held again, in front of what the source writes now.
    fn go_on(&mut self) {
        self.eased = None;
        let _ = self.handover.orders.send(Order::GoOn);
    }

    /// One run of the machine, to its end.
    async fn round(&mut self) -> Cutover {
        let timeout_ns = self.handover.settings.hooks.timeout.as_nanos() as u64;
        let (mut cutover, mut action) = Cutover::begin(self.plan.clone(), timeout_ns, now());
        while action != Action::End {
            let input = match self.gone().filter(|_| !cutover.is_committed() && may_be_lost(&action)) {
                Some(why) => Input::Lost(why),
                None => self.act(&cutover, &action).await,
            };
            let at = now();
            self.step(&cutover, &action, &input, at);
            action = cutover.on(input, at);
        }
        cutover
    }

    /// Why the cutover cannot go on, if so.
    fn gone(&self) -> Option<String> {
        gone(&self.handover.control, self.handover.session)
    }

    /// The same, as soon as it is so: no other session begins as long as this goes on.
    fn told_gone(&self) -> impl Future<Output = String> + use<> {
        let (control, session) = (self.handover.control.clone(), self.handover.session);
        async move {
            loop {
                match gone(&control, session) {
                    Some(why) => return why,
                    None => tokio::time::sleep(LOOK_EVERY).await,
                }
            }
        }
    }

    async fn act(&mut self, cutover: &Cutover, action: &Action) -> Input {
        let left = Duration::from_nanos(cutover.left_ns(now()));
        let fenced = cutover.held_for_ns(now()).is_some();
        match action {
            Action::AskPositions if !fenced && !self.handover.control.is_ready() => {
                Input::NotReady("the target has not been in step with the source yet".into())
            }
            Action::AskPositions => {
                let timeout = if fenced { left } else { self.handover.settings.connect_timeout };
                self.positions(timeout).await
            }
            Action::Wait { ns } => {
                tokio::time::sleep(Duration::from_nanos(*ns)).await;
                Input::Waited
            }
            Action::Hook { event, within_ns } => {
                // A rehearsal may go on with another round.
                if *event == HookEvent::Aborted && self.plan.rehearse == 0 {
                    let _ = self.handover.orders.send(Order::RolledBack);
                }
                let hook = self.hook(cutover, *event, Duration::from_nanos(*within_ns));
                // One that switches the traffic is not left half-way.
                if cutover.is_committed() || *event == HookEvent::Switch || !may_be_lost(action) {
                    return Input::Hook(hook.await);
                }
                tokio::select! {
                    ended = hook => Input::Hook(ended),
                    why = self.told_gone() => Input::Lost(why),
                }
            }
            Action::Fence { ms } => {
                let Some(source) = &mut self.source else { return lost() };
                match tokio::time::timeout(left, source.pause(*ms)).await {
                    Ok(Ok(result)) => Input::Fenced(result),
                    Ok(Err(why)) => {
                        self.source = None;
                        Input::Lost(why)
                    }
                    Err(_) => self.no_answer("CLIENT PAUSE"),
                }
            }
            Action::Settle { release } => {
                let (done, answer) = oneshot::channel();
                self.settled(Order::Settle { release: *release, done }, answer, if fenced { left } else { SETTLE_MAX })
                    .await
            }
            Action::Seal => {
                let (done, answer) = oneshot::channel();
                self.settled(Order::Seal { done }, answer, if fenced { left } else { SETTLE_MAX }).await
            }
            Action::Verify { within_ns } => self.compare(Duration::from_nanos(*within_ns)).await,
            Action::Takeover { seconds } => {
                // Behind it there is no source that could bring what a replica that took over lacks.
                let (done, answer) = oneshot::channel();
                if let Input::Lost(why) = self.settled(Order::Check { done }, answer, SETTLE_MAX).await {
                    return Input::TakenOver(Err(format!("it was not told to the source: {why}")));
                }
                let Some(source) = &mut self.source else { return lost() };
                let patience = Duration::from_secs(seconds.saturating_mul(2).saturating_add(5));
                Input::TakenOver(source.takeover(*seconds, &self.handover.sync_id, patience).await)
            }
            Action::EndJob => {
                let (done, answer) = oneshot::channel();
                let _ = self.handover.orders.send(Order::End { keys: self.own.clone(), done });
                let unknown = || Undone { text: "the job ended without a word".into(), lacks: true };
                Input::JobEnded(answer.await.unwrap_or_else(|_| Err(unknown())))
            }
            Action::Release => Input::Released(self.release(cutover).await),
            Action::End => Input::Waited,
        }
    }

    async fn settled(&self, order: Order, answer: oneshot::Receiver<()>, timeout: Duration) -> Input {
        let _ = self.handover.orders.send(order);
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(())) => Input::Settled,
            Ok(Err(_)) => Input::Lost("the job could not settle: its session ended".into()),
            Err(_) => Input::Lost("the target did not answer everything within the budget".into()),
        }
    }

    /// A request was cut off in the middle: what comes next on that connection would be its answer.
    fn no_answer(&mut self, what: &str) -> Input {
        self.source = None;
        Input::Lost(format!("{what} was not answered within the budget"))
    }

    async fn positions(&mut self, timeout: Duration) -> Input {
        let Some(applied) = self.handover.control.applied(self.handover.session) else {
            return Input::Lost("the session with the source ended".into());
        };
        let Some(source) = &mut self.source else { return lost() };
        match tokio::time::timeout(timeout, source.positions(applied.len() as u32)).await {
            // Read only now: what the source said is older than this.
            Ok(Ok(positions)) => match self.handover.control.applied(self.handover.session) {
                Some(applied) => {
                    Input::Positions(Positions { source: positions, applied, seen: self.handover.witness.seen() })
                }
                None => Input::Lost("the session with the source ended".into()),
            },
            Ok(Err(why)) => {
                self.source = None;
                Input::Lost(why)
            }
            Err(_) => self.no_answer("DFLY REPLICAOFFSET"),
        }
    }

    async fn release(&mut self, cutover: &Cutover) -> Result<(), String> {
        self.go_on();
        let held_ns = cutover.held_for_ns(now()).unwrap_or(0);
        if held_ns > self.plan.budget_ms.saturating_mul(1_000_000).saturating_add(FENCE_GONE_NS) {
            // It ended by itself; asking would end somebody else's.
            return Ok(());
        }
        let released = async {
            if let Some(source) = &mut self.source
                && source.unpause().await.is_ok()
            {
                return Ok(());
            }
            // The connection may be why it is released.
            let mut source = FenceLink::connect(&self.handover.settings).await.map_err(|error| error.to_string())?;
            source.unpause().await?;
            self.source = Some(source);
            Ok(())
        };
        tokio::time::timeout(RELEASE_MAX, released).await.unwrap_or_else(|_| Err("the source does not answer".into()))
    }

    async fn hook(&self, cutover: &Cutover, event: HookEvent, within: Duration) -> Result<(), String> {
        let settings = &self.handover.settings;
        let path = match event {
            // In a rehearsal hooks would act on real traffic.
            _ if self.plan.rehearse > 0 => None,
            HookEvent::Switch => self.plan.hook.as_deref(),
            event => settings.hooks.of(event),
        };
        let Some(path) = path else { return Ok(()) };
        let facts = HookFacts {
            fence_left_ms: cutover.held_for_ns(now()).map(|_| cutover.left_ns(now()) / 1_000_000),
            positions: cutover.proven.clone(),
            reason: cutover.why.clone(),
            ..facts(settings, event)
        };
        hooks::call(path, &facts, within).await
    }

    /// Tells what was done, except of the many looks at positions those that changed nothing.
    fn step(&mut self, cutover: &Cutover, action: &Action, input: &Input, at: Now) {
        let detail = match input {
            Input::Positions(Positions { source, applied, .. }) => {
                let behind = super::cutover::behind(source, applied);
                format!("{behind} entries behind")
            }
            Input::Hook(Err(why)) | Input::Fenced(Err(why)) => why.clone(),
            Input::Verified(Err(Unproven::Differs(why) | Unproven::NotDone(why))) => why.clone(),
            Input::TakenOver(Err(why)) | Input::Released(Err(why)) => why.clone(),
            Input::JobEnded(Err(undone)) => undone.text.clone(),
            Input::Verified(Ok(said)) => said.clone(),
            Input::Lost(why) | Input::NotReady(why) => why.clone(),
            _ => String::new(),
        };
        let name = match action {
            Action::AskPositions | Action::Wait { .. } if detail.is_empty() => return,
            Action::AskPositions | Action::Wait { .. } => "positions",
            Action::Hook { event, .. } if self.has_hook(*event) => event.name(),
            Action::Hook { .. } => return,
            Action::Fence { .. } => "fence",
            Action::Settle { release: false } => "proven equal",
            Action::Settle { release: true } => "expiries",
            Action::Seal => "sealed",
            Action::Verify { .. } => "verify",
            Action::Takeover { .. } => "takeover",
            Action::EndJob => "end of the job",
            Action::Release => "release",
            Action::End => return,
        };
        let held_us = cutover.held_for_ns(at).map(|ns| ns / 1000);
        let step = CutoverStep { name: name.into(), at_ms: at.since_ns(self.begun) / 1_000_000, held_us, detail };
        if self.report.steps.last().is_some_and(|last| (&last.name, &last.detail) == (&step.name, &step.detail)) {
            return;
        }
        self.tell_step(step);
    }

    fn tell_step(&mut self, step: CutoverStep) {
        tracing::info!(step = %step.name, step.held_us, detail = %step.detail, "cutover");
        let _ = self.events.send(CutoverEvent::Step(step.clone()));
        if self.report.steps.len() < STEPS_KEPT_MAX {
            self.report.steps.push(step);
        }
    }

    /// A hook that cannot be called is better known before the fence.
    fn check_hooks(&self) -> Result<(), String> {
        let of = |event| self.handover.settings.hooks.of(event);
        use HookEvent::*;
        let hooks = [BeforeFence, AfterFence, Drained, HandedOver, Aborted].into_iter().filter_map(of);
        hooks.chain(self.plan.hook.as_deref()).try_for_each(hooks::check)
    }

    fn has_hook(&self, event: HookEvent) -> bool {
        self.plan.rehearse == 0
            && match event {
                HookEvent::Switch => self.plan.hook.is_some(),
                event => self.handover.settings.hooks.of(event).is_some(),
            }
    }
}

/// Steps kept in a report; a rehearsal of thousands says the same over and over.
const STEPS_KEPT_MAX: usize = 200;

fn lost() -> Input {
    Input::Lost("the session with the source ended".into())
}

/// The way back is gone to its end, whatever is lost meanwhile.
fn may_be_lost(action: &Action) -> bool {
    !matches!(action, Action::Release | Action::Hook { event: HookEvent::Aborted | HookEvent::HandedOver, .. })
}

/// What every hook of a job is told.
pub fn facts(settings: &MigrateSettings, event: HookEvent) -> HookFacts {
    HookFacts {
        event: event.name().into(),
        source: settings.source.address().to_string(),
        target: settings.target.address().to_string(),
        pid: std::process::id(),
        ..HookFacts::default()
    }
}
