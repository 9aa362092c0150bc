//! When every key of the target is looked at for shifted expiries while `replicate` follows, and by whom.
//!
//! In: that names are missing (after a process that died, or for want of memory), and how far the flows are. Out: sweeps on
//! a connection of their own, one at a time, beside the flows; the names of what a sweep left held. Invariants: it is not
//! forgotten that names are missing before a sweep has named or put right everything; sweeps take at most a tenth of the
//! target's time while they run, and run for at most a tenth of the time; but for one before a cutover, which waits for it.
//!
//! Keys without a name are no reason to look again and again: the source records a DEL for each that expires, and in the end
//! every key is looked at. Of fields it records nothing.

use super::cluster::ranges;
use super::error::EngineError;
use super::hold::HoldState;
use super::settings::MigrateSettings;
use super::sweep::{FAST, GENTLE, PATIENCE, Swept, sweep};
use super::target::{self, TargetLink};
use crate::convert::hold::{ALL, Bounds, LAGGING_HORIZON_MS, Overflow, due_bounds, is_lagging};
use crate::redis::Capabilities;
use crate::uring;
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Least time between the end of a sweep and the next; after one that failed.
const REST_MS_MIN: i64 = 60_000;
const AGAIN_AFTER_MS: i64 = 5_000;
/// After a sweep none begins for so many times as long as it took.
const RESTS: i64 = 9;

pub struct Rightings {
    settings: Arc<MigrateSettings>,
    capabilities: Arc<Capabilities>,
    hold: Arc<HoldState>,
    running: Option<Running>,
    not_before_ms: i64,
    /// Names are missing of what an earlier process held.
    inherited: bool,
}

struct Running {
    result: oneshot::Receiver<Result<Swept, EngineError>>,
    task: JoinHandle<()>,
    begun_ms: i64,
    /// What it was begun for, and the easing in which.
    unnamed: Overflow,
    easing: u64,
}

impl Rightings {
    pub fn new(settings: &Arc<MigrateSettings>, capabilities: &Capabilities, hold: Arc<HoldState>) -> Self {
        let capabilities = Arc::new(capabilities.clone());
        // Nothing else can be missing before the first record.
        let inherited = is_any(hold.unnamed());
        Self { settings: settings.clone(), capabilities, hold, running: None, not_before_ms: 0, inherited }
    }

    /// Begins a sweep if one is needed and the flows have caught up.
    pub fn look(&mut self) {
        let easing = self.hold.easing();
        let urgent = easing > 0 && !self.hold.is_swept(easing);
        let early = now_ms() < self.not_before_ms && !urgent;
        if self.running.is_some() || early || is_lagging(now_ms(), self.hold.applied_until_ms_min()) {
            return;
        }
        let unnamed = self.hold.unnamed();
        // What was held behind a wider horizon than that of today.
        let widened = unnamed.keys && self.hold.horizon_ms() < LAGGING_HORIZON_MS;
        if !is_any(unnamed) || !(urgent || self.inherited || widened || unnamed.fields) {
            return;
        }
        self.hold.take_unnamed();
        let (done, result) = oneshot::channel();
        let (settings, capabilities, hold) = (self.settings.clone(), self.capabilities.clone(), self.hold.clone());
        let task = tokio_uring::spawn(async move {
            let rests = || if hold.easing() > 0 { FAST } else { GENTLE };
            let work = async {
                let mut link = target::connect_control(&settings).await?;
                sweep(&mut link, &capabilities, || bounds(&hold), rests, PATIENCE).await
            };
            // Nobody listens any more if the session is over.
            let _ = done.send(work.await);
        });
        self.running = Some(Running { result, task, begun_ms: now_ms(), unnamed, easing });
    }

    /// The end of the running sweep. A broken connection to the target is no reason to end the job: it is tried again.
    pub async fn ended(&mut self) -> Result<Swept, EngineError> {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let result = (&mut running.result).await;
        let Some(Running { begun_ms, unnamed, easing, .. }) = self.running.take() else { return Ok(Swept::default()) };
        let took_ms = now_ms().saturating_sub(begun_ms).max(0);
        match result {
            Ok(Ok(swept)) => {
                self.not_before_ms = now_ms() + took_ms.saturating_mul(RESTS).max(REST_MS_MIN);
                let whole = swept.moving.is_empty();
                tracing::info!(
                    keys = swept.keys,
                    put_right = swept.put_right,
                    left = swept.left,
                    named = swept.names.len(),
                    took_ms,
                    "looked at every key for expiries held back"
                );
                self.hold.add_unnamed(swept.unnamed);
                if whole {
                    self.inherited = false;
                    self.hold.set_swept(easing);
                } else {
                    let slots = ranges(&swept.moving);
                    tracing::warn!(
                        slots,
                        "slots moved all the time: their keys are looked at later for expiries held back"
                    );
                    self.hold.add_unnamed(unnamed);
                }
                Ok(swept)
            }
            Ok(Err(error)) => {
                self.not_before_ms = now_ms() + AGAIN_AFTER_MS;
                tracing::warn!(%error, "looking for expiries held back failed; trying again");
                self.hold.add_unnamed(unnamed);
                Ok(Swept::default())
            }
            Err(_) => Err(EngineError::Internal("a sweep ended without a word".into())),
        }
    }

    /// The job ends in step, and nothing follows: whatever is still held is put right, but for what lies in slots that move for longer
    /// than the target is waited for.
    pub async fn end(&mut self, link: &mut TargetLink) -> Result<Swept, EngineError> {
        if self.running.is_none() && !is_any(self.hold.take_unnamed()) {
            return Ok(Swept::default());
        }
        sweep(link, &self.capabilities, || ALL, || FAST, self.settings.retry_max).await
    }
}

impl Drop for Rightings {
    /// How far the flows of this session are says nothing to the next one, which may begin before it: what a sweep has not looked at is
    /// left to that.
    fn drop(&mut self) {
        if let Some(Running { task, unnamed, .. }) = self.running.take() {
            task.abort();
            self.hold.add_unnamed(unnamed);
        }
    }
}

fn is_any(overflow: Overflow) -> bool {
    overflow.keys || overflow.fields
}

/// While a flow lags only what no renewal can follow is put right.
fn bounds(hold: &HoldState) -> Bounds {
    due_bounds(now_ms(), hold.applied_until_ms_min(), hold.horizon_ms())
}

fn now_ms() -> i64 {
    uring::clock::realtime_ms() as i64
}
