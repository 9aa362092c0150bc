//! What a running job lets others see and change: its status, its knobs, its stop, its cutover.
//!
//! One [`Control`] is shared by the job's control thread, its workers (which read the knobs once a turn), and those who
//! serve operators (`operator::control`, `operator::metrics`). Invariants: nothing here blocks; a knob never leaves its
//! bounds, whoever sets it; what is changed here is never a matter of what is right, only of how fast.

use super::cutover::Plan;
use super::throttle::Throttle;
use crate::convert::hold::{HORIZON_MS_MIN, LAGGING_HORIZON_MS};
use crate::ids::DbIndex;
use crate::report::cutover::CutoverEvent;
use crate::report::status::{FlowStatus, Knob, Status, ThrottleStatus};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::sync::mpsc::{Receiver, Sender, UnboundedSender, channel};
use tokio::sync::oneshot;

/// Bounds of what can be set while the job runs; the same as at its start.
pub const BATCH_BYTES: std::ops::RangeInclusive<usize> = 4 << 10..=4 << 20;
pub const WINDOW_BYTES: std::ops::RangeInclusive<usize> = 16 << 10..=1 << 30;

/// Repairs that wait for the job.
const REPAIRS_MAX: usize = 16;

/// A session's number, and the applied positions of its flows.
type Positions = (u64, Arc<Vec<AtomicU64>>);

/// A cutover that was asked for.
pub struct CutoverAsked {
    pub plan: Plan,
    /// What happens, as it happens; the last one is `Ended`.
    pub events: UnboundedSender<CutoverEvent>,
}

/// A key that is to be copied again from the source, in order with the journal.
pub struct RepairAsked {
    pub db: DbIndex,
    pub key: Vec<u8>,
    /// It is on its way, or why it cannot be done.
    pub done: oneshot::Sender<Result<(), String>>,
}

/// Something that the control plane waits for: told in the status for as long as this lives.
pub struct Waiting {
    control: Arc<Control>,
    number: u64,
}

impl Waiting {
    /// Why it still waits.
    pub fn say(&self, why: &str) {
        lock(&self.control.waits).insert(self.number, why.to_string());
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        lock(&self.control.waits).remove(&self.number);
    }
}

pub struct Control {
    pub throttle: Throttle,
    batch_bytes: AtomicUsize,
    window_bytes: AtomicUsize,
    /// Expiries nearer than this are held while the target is in step.
    hold_within_ms: AtomicI64,
    /// The job follows the source.
    follows: AtomicBool,
    status: Mutex<Status>,
    positions: Mutex<Option<Positions>>,
    /// What the control plane waits for, in words.
    waits: Mutex<BTreeMap<u64, String>>,
    waits_count: AtomicU64,
    /// Workers have run: the target is being written to.
    begun: AtomicBool,
    stop: Notify,
    stop_asked: AtomicBool,
    cutovers: Sender<CutoverAsked>,
    cutovers_asked: Mutex<Option<Receiver<CutoverAsked>>>,
    repairs: Sender<RepairAsked>,
    repairs_asked: Mutex<Option<Receiver<RepairAsked>>>,
    /// The target is in step, and everything that follows from that is on its way.
    ready: AtomicBool,
    /// One is asked for or under way.
    cutover_busy: AtomicBool,
    /// Why the cutover that is under way must be rolled back.
    cutover_cancelled: Mutex<Option<String>>,
}

impl Default for Control {
    fn default() -> Self {
        let (cutovers, asked) = channel(1);
        let (repairs, repairs_asked) = channel(REPAIRS_MAX);
        Self {
            throttle: Throttle::default(),
            batch_bytes: AtomicUsize::new(0),
            window_bytes: AtomicUsize::new(0),
            hold_within_ms: AtomicI64::new(LAGGING_HORIZON_MS),
            follows: AtomicBool::new(false),
            status: Mutex::default(),
            positions: Mutex::default(),
            waits: Mutex::default(),
            waits_count: AtomicU64::new(0),
            begun: AtomicBool::new(false),
            stop: Notify::new(),
            stop_asked: AtomicBool::new(false),
            cutovers,
            cutovers_asked: Mutex::new(Some(asked)),
            repairs,
            repairs_asked: Mutex::new(Some(repairs_asked)),
            ready: AtomicBool::new(false),
            cutover_busy: AtomicBool::new(false),
            cutover_cancelled: Mutex::default(),
        }
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For whoever serves operators.
impl Control {
    /// Where the job stands now.
    pub fn status(&self) -> Status {
        let mut status = lock(&self.status).clone();
        self.add_positions(&mut status);
        status.knobs = self.knobs();
        let ThrottleStatus { reasons, .. } = std::mem::take(&mut status.throttle);
        status.throttle = ThrottleStatus {
            paused: self.throttle.is_paused(),
            bytes_per_s: self.throttle.bytes_per_s(),
            entries_per_s: self.throttle.entries_per_s(),
            reasons: self.reasons().into_iter().chain(reasons).chain(self.waits()).collect(),
        };
        status
    }

    /// Ends the job as the first SIGINT does: what was read is applied.
    pub fn ask_stop(&self) {
        if !self.stop_asked.swap(true, Ordering::AcqRel) {
            self.stop.notify_one();
        }
    }

    /// Asks for a cutover. `Err`: why there can be none now.
    pub fn ask_cutover(&self, asked: CutoverAsked) -> Result<(), &'static str> {
        if lock(&self.status).command != "replicate" {
            return Err("only a running `df2redis replicate` can be cut over");
        }
        if self.session().is_none() {
            return Err("the job does not follow the source now; `df2redis status` says where it is");
        }
        if self.cutover_busy.swap(true, Ordering::AcqRel) {
            return Err("a cutover is under way already");
        }
        *lock(&self.cutover_cancelled) = None;
        self.cutovers.try_send(asked).map_err(|_| "the job has ended")
    }

    /// Asks for a key to be copied again. `Err`: why not now.
    pub fn ask_repair(&self, db: DbIndex, key: Vec<u8>) -> Result<oneshot::Receiver<Result<(), String>>, &'static str> {
        if lock(&self.status).command != "replicate" || self.session().is_none() {
            return Err("the job does not follow the source now; `df2redis status` says where it is");
        }
        if self.cutover_busy.load(Ordering::Acquire) {
            return Err("a cutover is under way");
        }
        let (done, answer) = oneshot::channel();
        let asked = self.repairs.try_send(RepairAsked { db, key, done });
        asked.map(|()| answer).map_err(|_| "the job has too many keys to copy again already")
    }

    /// Has the cutover that is under way rolled back, unless the traffic is being switched already.
    pub fn cancel_cutover(&self, why: &str) {
        lock(&self.cutover_cancelled).get_or_insert_with(|| why.to_string());
    }

    /// Bytes of a batch: sent when it has this size. `Err`: why not.
    pub fn set_batch_bytes(&self, bytes: usize) -> Result<(), String> {
        within("batch-bytes", bytes, &BATCH_BYTES)?;
        if bytes > self.window_bytes.load(Ordering::Relaxed) {
            return Err("batch-bytes must not be larger than window-bytes".into());
        }
        self.batch_bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Most bytes sent and not answered on one connection. `Err`: why not.
    pub fn set_window_bytes(&self, bytes: usize) -> Result<(), String> {
        within("window-bytes", bytes, &WINDOW_BYTES)?;
        if bytes < self.batch_bytes.load(Ordering::Relaxed) {
            return Err("window-bytes must not be smaller than batch-bytes".into());
        }
        self.window_bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Expiries nearer than this are held while the target is in step. `Err`: why not.
    pub fn set_hold_within(&self, within: Duration) -> Result<(), String> {
        if !self.follows.load(Ordering::Relaxed) {
            return Err("hold-expiries-within is a matter of `df2redis replicate`".into());
        }
        self.hold_within_ms.store(horizon_ms(within)?, Ordering::Relaxed);
        Ok(())
    }

    fn knobs(&self) -> Vec<Knob> {
        let knob = |key: &str, value: String, what: &str| Knob { key: key.into(), value, what: what.into() };
        let limit = |limit: Option<u64>| limit.map_or("off".to_string(), |n| n.to_string());
        let (batch, window) = self.batch_and_window();
        let mut knobs = vec![
            knob("batch-bytes", batch.to_string(), "a batch is sent when it has this size, or when the wire is idle"),
            knob("window-bytes", window.to_string(), "most bytes sent and not yet answered on one connection"),
            knob("rate-bytes", limit(self.throttle.bytes_per_s()), "most bytes a second sent to the target"),
            knob("rate-entries", limit(self.throttle.entries_per_s()), "most commands a second sent to the target"),
        ];
        if self.follows.load(Ordering::Relaxed) {
            let within = format!("{}ms", self.hold_within_ms());
            knobs.push(knob("hold-expiries-within", within, "expiries nearer than this are held back"));
        }
        knobs
    }

    fn reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.throttle.is_paused() {
            reasons.push("paused by the operator (df2redis resume)".to_string());
        }
        if let Some(limit) = self.throttle.bytes_per_s() {
            reasons.push(format!("limited to {limit} bytes/s by the operator"));
        }
        if let Some(limit) = self.throttle.entries_per_s() {
            reasons.push(format!("limited to {limit} entries/s by the operator"));
        }
        reasons
    }

    fn waits(&self) -> Vec<String> {
        let mut waits: Vec<String> = lock(&self.waits).values().cloned().collect();
        waits.sort_unstable();
        waits.dedup();
        waits
    }

    fn add_positions(&self, status: &mut Status) {
        let positions = lock(&self.positions);
        let Some((_, applied)) = &*positions else { return };
        for FlowStatus { flow, applied_lsn, lag_entries, source_lsn, read_lsn, .. } in &mut status.flows {
            let Some(applied) = applied.get(*flow as usize).map(|lsn| lsn.load(Ordering::Acquire)) else { continue };
            *applied_lsn = Some(applied).filter(|lsn| *lsn > 0);
            // The others were heard up to a second ago.
            *read_lsn = read_lsn.map(|lsn| lsn.max(applied));
            *source_lsn = source_lsn.map(|lsn| lsn.max(read_lsn.unwrap_or(applied)).max(applied));
            *lag_entries = source_lsn.zip(*applied_lsn).map(|(source, applied)| source.saturating_sub(applied));
        }
        if let Some(lag) = &mut status.lag {
            lag.entries = status.flows.iter().filter_map(|flow| flow.lag_entries).sum();
        }
    }
}

/// Bounds of `hold-expiries-within`. `Err`: why it is none.
pub fn horizon_ms(within: Duration) -> Result<i64, String> {
    match i64::try_from(within.as_millis()) {
        Ok(ms) if ms >= HORIZON_MS_MIN => Ok(ms),
        _ => Err(format!("hold-expiries-within must be {}s at least", HORIZON_MS_MIN / 1000)),
    }
}

fn within(key: &str, n: usize, bounds: &std::ops::RangeInclusive<usize>) -> Result<(), String> {
    match bounds.contains(&n) {
        true => Ok(()),
        false => Err(format!("{key} must lie between {} and {} bytes", bounds.start(), bounds.end())),
    }
}

/// For the job.
impl Control {
    /// What the run begins with.
    pub(super) fn begin(&self, batch_bytes: usize, window_bytes: usize) {
        self.batch_bytes.store(batch_bytes, Ordering::Relaxed);
        self.window_bytes.store(window_bytes, Ordering::Relaxed);
    }

    /// The same for a job that follows the source.
    pub(super) fn begin_following(&self, hold_within: Duration) {
        self.follows.store(true, Ordering::Relaxed);
        // Its bounds were looked at when the settings were read.
        let _ = self.set_hold_within(hold_within);
    }

    /// For a wait of the control plane that is to be seen.
    pub(super) fn waiting(self: &Arc<Self>) -> Waiting {
        Waiting { control: self.clone(), number: self.waits_count.fetch_add(1, Ordering::Relaxed) }
    }

    /// The workers of a session run.
    pub(super) fn set_begun(&self) {
        self.begun.store(true, Ordering::Release);
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    pub(super) fn hold_within_ms(&self) -> i64 {
        self.hold_within_ms.load(Ordering::Relaxed)
    }

    /// Bytes of a batch and of a window, as they are now.
    pub(super) fn batch_and_window(&self) -> (usize, usize) {
        (self.batch_bytes.load(Ordering::Relaxed), self.window_bytes.load(Ordering::Relaxed))
    }

    pub(super) fn publish(&self, status: Status) {
        *lock(&self.status) = status;
    }

    /// A session follows the source, with these applied positions.
    pub(super) fn publish_positions(&self, session: u64, applied: Arc<Vec<AtomicU64>>) {
        *lock(&self.positions) = Some((session, applied));
    }

    /// A session ended: its positions mean nothing any more.
    pub(super) fn forget_positions(&self) {
        self.set_ready(false);
        *lock(&self.positions) = None;
    }

    /// The session that follows now.
    pub(super) fn session(&self) -> Option<u64> {
        lock(&self.positions).as_ref().map(|(session, _)| *session)
    }

    /// What the target has confirmed in that session; `None`: it has ended.
    pub(super) fn applied(&self, session: u64) -> Option<Vec<u64>> {
        let positions = lock(&self.positions);
        let (_, applied) = positions.as_ref().filter(|(now, _)| *now == session)?;
        Some(applied.iter().map(|lsn| lsn.load(Ordering::Acquire)).collect())
    }

    /// The cutover has ended; there may be another.
    pub(super) fn cutover_over(&self) {
        self.cutover_busy.store(false, Ordering::Release);
    }

    pub(super) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    /// Whether a cutover may begin.
    pub(super) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    pub(super) fn cutover_cancelled(&self) -> Option<String> {
        lock(&self.cutover_cancelled).clone()
    }

    /// Completes once, when an operator asks to stop.
    pub(super) async fn stop_asked(&self) {
        self.stop.notified().await;
    }

    /// The requests for repairs; once.
    pub(super) fn take_repairs(&self) -> Option<Receiver<RepairAsked>> {
        lock(&self.repairs_asked).take()
    }

    /// The requests for cutovers; once.
    pub(super) fn take_cutovers(&self) -> Option<Receiver<CutoverAsked>> {
        lock(&self.cutovers_asked).take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_is_told_as_long_as_it_is() {
        let control = Arc::new(Control::default());
        let (one, other) = (control.waiting(), control.waiting());
        assert!(control.status().throttle.reasons.is_empty());
        one.say("a node is away");
        other.say("a node is away");
        assert_eq!(control.status().throttle.reasons, ["a node is away"]);
        drop(one);
        other.say("it answers LOADING");
        assert_eq!(control.status().throttle.reasons, ["it answers LOADING"]);
        drop(other);
        assert!(control.status().throttle.reasons.is_empty());
    }

    /// What is applied is live, the other positions are up to a second old: nobody applies what was not read.
    #[test]
    fn positions_of_one_status_agree() {
        let control = Control::default();
        let flow = FlowStatus { flow: 0, source_lsn: Some(100), read_lsn: Some(110), ..FlowStatus::default() };
        control.publish(Status { flows: vec![flow], ..Status::default() });
        let applied = Arc::new(vec![AtomicU64::new(120)]);
        control.publish_positions(1, applied.clone());
        let told = |status: &Status| {
            let FlowStatus { source_lsn, read_lsn, applied_lsn, lag_entries, .. } = &status.flows[0];
            [*source_lsn, *read_lsn, *applied_lsn, *lag_entries]
        };
        assert_eq!(told(&control.status()), [Some(120), Some(120), Some(120), Some(0)]);
        applied[0].store(90, Ordering::Release);
        assert_eq!(told(&control.status()), [Some(110), Some(110), Some(90), Some(20)]);
    }
}
