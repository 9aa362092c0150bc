//! A cutover carried out: the machine of `cutover` with connections, hooks and a clock.
//!
//! In: a plan, from the control socket. Out: its steps as they happen, a report, and two orders to the job: to settle (say
//! when nothing is left to send) and to end. It runs beside the job, on the same thread, with a connection of its own to
//! each side, and reads the confirmed positions where the workers put them. Invariant: whatever fails, the source is
//! released, here or by its own timer.

use super::control::{Control, CutoverAsked};
use super::cutover::{Action, Cutover, HookEvent, Input, Now, Plan, Verify};
use super::easing;
use super::fence::{self, FenceLink, Keyspace, RELEASE_SETTLES};
use super::hold::HoldState;
use super::hooks::{self, HookFacts};
use super::settings::MigrateSettings;
use super::target::{OWN_PREFIX, TargetLink};
use crate::ids::DbIndex;
use crate::redis::value::Value;
use crate::report::cutover::{CutoverEvent, CutoverOutcome, CutoverReport, CutoverStep, Rehearsal, Spread};
use crate::uring;
use hdrhistogram::Histogram;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

/// Keys of this tool at the target.
pub type OwnKeys = Vec<(DbIndex, Vec<u8>)>;

/// What the job must do for a cutover.
pub enum Order {
    /// Answer when no worker has anything left to send or to be answered.
    Settle(oneshot::Sender<()>),
    /// Stop and remove what is the tool's own at the target; `keys` may be left from earlier runs.
    End { keys: OwnKeys, done: oneshot::Sender<Result<(), String>> },
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
    /// Markers of the session.
    pub markers: Vec<Vec<u8>>,
}

/// How long releasing may take; afterwards the fence has to end by itself.
const RELEASE_MAX: Duration = Duration::from_secs(3);
/// How long whoever asked may take to hear of the end.
const HEARD_MAX: Duration = Duration::from_secs(2);
/// How long workers may take to settle outside of a fence.
const SETTLE_MAX: Duration = Duration::from_secs(30);
/// A fence ends at the source by itself; this long after its budget nothing of it is left to release.
const FENCE_GONE_NS: u64 = 2_000_000_000;

/// Carries it out. The last event is `Ended`, with the report that is also returned.
pub async fn run(handover: Handover, asked: CutoverAsked) -> CutoverReport {
    let CutoverAsked { plan, events } = asked;
    let mut run = Run {
        begun: now(),
        source: None,
        own: OwnKeys::new(),
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
    report: CutoverReport,
}

impl Run {
    async fn whole(&mut self) {
        if let Err(why) = self.prepare().await {
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
        if self.handover.cluster && self.plan.verify == Verify::Count && self.plan.rehearse == 0 {
            return Err(
                "keys are not counted in a cluster yet: say --verify none, and compare with df2redis verify".into()
            );
        }
        // In a cluster, those that killed runs left behind stay.
        if self.plan.rehearse == 0 && !self.handover.cluster {
            self.own = self.find_own().await?;
        }
        Ok(())
    }

    async fn execute(&mut self) {
        let wait = Duration::from_millis(self.plan.wait_ms);
        // In step, too, is a matter of so long a wait.
        let eased = match easing::ease(&self.handover.hold, wait, || self.gone()).await {
            Ok(eased) => eased,
            Err(why) => {
                self.report.outcome = CutoverOutcome::NotDone;
                self.report.message = Some(format!("{why}. Nothing was fenced"));
                return;
            }
        };
        let cutover = self.round().await;
        drop(eased);
        self.report.outcome = match cutover.is_handed_over() {
            true => CutoverOutcome::HandedOver,
            false => CutoverOutcome::NotDone,
        };
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
        let control = &self.handover.control;
        if let Some(why) = control.cutover_cancelled() {
            return Some(why);
        }
        match control.session() {
            Some(session) if session == self.handover.session => None,
            _ => Some("the session with the source ended".into()),
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
                Input::Hook(self.hook(cutover, *event, Duration::from_nanos(*within_ns)).await)
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
            Action::Settle => {
                let (settled, answer) = oneshot::channel();
                let _ = self.handover.orders.send(Order::Settle(settled));
                let timeout = if fenced { left } else { SETTLE_MAX };
                match tokio::time::timeout(timeout, answer).await {
                    Ok(Ok(())) => Input::Settled,
                    Ok(Err(_)) => Input::Lost("the job could not settle: its session ended".into()),
                    Err(_) => Input::Lost("the target did not answer everything within the budget".into()),
                }
            }
            Action::Verify => match tokio::time::timeout(left, self.verify()).await {
                Ok(result) => Input::Verified(result),
                Err(_) => self.no_answer("the verification"),
            },
            Action::Takeover { seconds } => {
                let Some(source) = &mut self.source else { return lost() };
                source.set_timeout(Duration::from_secs(seconds.saturating_mul(2).saturating_add(5)));
                Input::TakenOver(source.takeover(*seconds, &self.handover.sync_id).await)
            }
            Action::EndJob => {
                let (done, answer) = oneshot::channel();
                let _ = self.handover.orders.send(Order::End { keys: self.own.clone(), done });
                Input::JobEnded(answer.await.unwrap_or_else(|_| Err("the job ended without a word".into())))
            }
            Action::Release => Input::Released(self.release(cutover).await),
            Action::End => Input::Waited,
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
                Some(applied) => Input::Positions { source: positions, applied },
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
            Input::Positions { source, applied } => {
                let behind = super::cutover::behind(source, applied);
                format!("{behind} entries behind")
            }
            Input::Hook(Err(why)) | Input::Fenced(Err(why)) | Input::Verified(Err(why)) => why.clone(),
            Input::TakenOver(Err(why)) | Input::JobEnded(Err(why)) | Input::Released(Err(why)) => why.clone(),
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
            Action::Settle => "proven equal",
            Action::Verify => "verify",
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
        tracing::info!(step = %step.name, held_us, detail = %step.detail, "cutover");
        let _ = self.events.send(CutoverEvent::Step(step.clone()));
        if self.report.steps.len() < STEPS_KEPT_MAX {
            self.report.steps.push(step);
        }
    }

    fn has_hook(&self, event: HookEvent) -> bool {
        self.plan.rehearse == 0
            && match event {
                HookEvent::Switch => self.plan.hook.is_some(),
                event => self.handover.settings.hooks.of(event).is_some(),
            }
    }

    /// The keys of this tool at the target, also those that killed runs left behind.
    async fn find_own(&self) -> Result<OwnKeys, String> {
        let mut link = self.target().await?;
        let mut own = OwnKeys::new();
        for db in target_keyspace(&mut link).await?.into_keys().map(DbIndex) {
            own.extend(own_of(&mut link, db).await?.into_iter().map(|key| (db, key)));
            own.extend(self.handover.markers.iter().map(|marker| (db, marker.clone())));
        }
        own.sort();
        own.dedup();
        Ok(own)
    }

    async fn target(&self) -> Result<TargetLink, String> {
        let settings = &self.handover.settings;
        let mut link = TargetLink::open(settings).await.map_err(|error| error.to_string())?;
        match link.cluster() {
            Some(_) => Err(
                "a cutover into a cluster is not supported yet; stop the writers, wait until the target is in step, \
                            and switch by hand"
                    .into(),
            ),
            None => Ok(link),
        }
    }

    async fn verify(&mut self) -> Result<String, String> {
        match self.plan.verify {
            Verify::None => return Ok(String::new()),
            Verify::Count => {}
        }
        let mut link = self.target().await?;
        let Some(source) = &mut self.source else { return Err("no connection to the source".into()) };
        let wanted = source.keyspace().await?;
        let mut own = Keyspace::new();
        let mut current = None;
        for (db, key) in &self.own {
            if current != Some(*db) {
                link.call(&[b"SELECT", db.to_string().as_bytes()]).await.map_err(|error| error.to_string())?;
                current = Some(*db);
            }
            // A hash answers WRONGTYPE, and is there.
            if link.call_raw("GET", &[b"GET", key]).await.map_err(|error| error.to_string())? != Value::Null {
                own.entry(db.0).or_default().0 += 1;
            }
        }
        fence::compare_counts(&wanted, &target_keyspace(&mut link).await?, &own)
    }

    /// What would be done, with today's numbers.
    async fn list(&mut self) {
        let (budget_ms, hook) = (self.plan.budget_ms, self.plan.hook.clone());
        let begun = now();
        let Input::Positions { source, applied } = self.positions(self.handover.settings.connect_timeout).await else {
            self.report.outcome = CutoverOutcome::NotDone;
            self.report.message = Some("the source does not tell its positions".into());
            return;
        };
        let trip_us = now().since_ns(begun) / 1000;
        let behind = super::cutover::behind(&source, &applied);
        let status = self.handover.control.status();
        let ready = if self.handover.control.is_ready() { "in step" } else { "not in step yet: it would wait" };
        let near = if behind <= self.plan.lag_entries_max { "near enough" } else { "too far: it would wait" };
        let mut lines = vec![
            ("positions", format!("{ready}; {behind} entries behind in {} flows: {near}", source.len())),
            ("before-fence", self.hook_words(HookEvent::BeforeFence, "may veto")),
        ];
        if self.plan.takeover {
            lines.push((
                "takeover",
                format!(
                    "DFLY TAKEOVER {}: the source waits for every acknowledgement and ends",
                    budget_ms.div_ceil(1000)
                ),
            ));
        } else {
            let fence =
                format!("CLIENT PAUSE {budget_ms} WRITE at {}: ends by itself after {budget_ms} ms", status.source);
            let rate = status.rates.commands_per_s;
            let drain = match rate > 0.0 {
                true => format!("about {:.0} ms at today's {rate:.0} entries/s", behind as f64 * 1000.0 / rate),
                false => "at once: nothing is being written now".into(),
            };
            lines.push(("fence", fence));
            lines.push(("after-fence", self.hook_words(HookEvent::AfterFence, "may stop it")));
            lines.push(("proven equal", format!("positions equal, twice, {trip_us} us a look; {drain}")));
            lines.push(("verify", verify_words(self.plan.verify, &self.verify().await)));
        }
        let switch = match &hook {
            Some(path) => format!("{}, at most {} ms", path.display(), self.plan.hook_timeout_ms.min(budget_ms)),
            None => "no hook: whoever waits for this command's end switches the traffic".into(),
        };
        lines.push(("switch", switch));
        lines.push((
            "end of the job",
            format!("{} keys of this tool are removed from the target, exit code 0", self.own.len()),
        ));
        lines.push(("on any miss", "CLIENT UNPAUSE, the job follows on, exit code 9".into()));
        for (name, detail) in lines {
            let step = CutoverStep { name: name.into(), detail, ..CutoverStep::default() };
            let _ = self.events.send(CutoverEvent::Step(step.clone()));
            self.report.steps.push(step);
        }
    }

    fn hook_words(&self, event: HookEvent, may: &str) -> String {
        match self.handover.settings.hooks.of(event) {
            Some(path) => format!("{} is called and {may}", path.display()),
            None => "no hook".into(),
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

fn verify_words(verify: Verify, said: &Result<String, String>) -> String {
    match (verify, said) {
        (Verify::None, _) => "nothing is compared".into(),
        (Verify::Count, Ok(said)) => format!("keys of each database; now, unfenced: {said}"),
        (Verify::Count, Err(why)) => format!("keys of each database; now, unfenced: {why}"),
    }
}

/// The tool's keys in one database.
async fn own_of(link: &mut TargetLink, db: DbIndex) -> Result<Vec<Vec<u8>>, String> {
    let text = |error: super::error::EngineError| error.to_string();
    link.call(&[b"SELECT", db.to_string().as_bytes()]).await.map_err(text)?;
    let pattern = format!("{OWN_PREFIX}*");
    let (mut cursor, mut found) = (b"0".to_vec(), Vec::new());
    loop {
        let scan: &[&[u8]] = &[b"SCAN", &cursor, b"MATCH", pattern.as_bytes(), b"COUNT", b"10000"];
        let Value::Array(reply) = link.call(scan).await.map_err(text)? else {
            return Err("the target answered SCAN with no array".into());
        };
        let (Some(Value::Bulk(next)), Some(Value::Array(keys))) = (reply.first(), reply.get(1)) else {
            return Err("the target answered SCAN with an unknown shape".into());
        };
        found.extend(keys.iter().filter_map(Value::bytes).map(<[u8]>::to_vec));
        if next.as_slice() == b"0" {
            return Ok(found);
        }
        cursor = next.clone();
    }
}

async fn target_keyspace(link: &mut TargetLink) -> Result<Keyspace, String> {
    match link.call(&[b"INFO", b"keyspace"]).await.map_err(|error| error.to_string())? {
        Value::Bulk(text) => Ok(fence::keyspace(&String::from_utf8_lossy(&text))),
        other => Err(format!("the target answered INFO with {other:?}")),
    }
}

/// What every hook of a job is told.
pub fn facts(settings: &MigrateSettings, event: HookEvent) -> HookFacts {
    HookFacts {
        event: event.name().into(),
        source: format!("{}:{}", settings.source.host, settings.source.port),
        target: format!("{}:{}", settings.target.host, settings.target.port),
        pid: std::process::id(),
        ..HookFacts::default()
    }
}
