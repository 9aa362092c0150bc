//! When every key of the target is looked at for shifted expiries while `replicate` follows, and by whom.
//!
//! In: that names are missing (after a process that died, or for want of memory), and how far the flows are. Out: sweeps on
//! a connection of their own, one at a time, beside the flows. Invariant: it is not forgotten that names are missing before a
//! sweep has left nothing held.

use super::error::EngineError;
use super::hold::HoldState;
use super::settings::MigrateSettings;
use super::sweep::{Swept, sweep};
use super::target::{self, TargetLink};
use crate::convert::hold::{due_bounds, is_lagging};
use crate::redis::Capabilities;
use crate::uring;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Time between the end of a sweep that left something held and the next.
const AGAIN_AFTER_MS: i64 = 5_000;

pub struct Rightings {
    settings: Arc<MigrateSettings>,
    capabilities: Arc<Capabilities>,
    hold: Arc<HoldState>,
    running: Option<oneshot::Receiver<Result<Swept, EngineError>>>,
    not_before_ms: i64,
}

impl Rightings {
    pub fn new(settings: &Arc<MigrateSettings>, capabilities: &Capabilities, hold: Arc<HoldState>) -> Self {
        let capabilities = Arc::new(capabilities.clone());
        Self { settings: settings.clone(), capabilities, hold, running: None, not_before_ms: 0 }
    }

    /// Begins a sweep if one is needed and the flows have caught up.
    pub fn look(&mut self) {
        let early = now_ms() < self.not_before_ms;
        if self.running.is_some() || early || is_lagging(now_ms(), self.hold.applied_until_ms_min()) {
            return;
        }
        if !self.hold.take_unnamed() {
            return;
        }
        let (done, running) = oneshot::channel();
        self.running = Some(running);
        let (settings, capabilities, hold) = (self.settings.clone(), self.capabilities.clone(), self.hold.clone());
        tokio_uring::spawn(async move {
            let work = async {
                let mut link = target::connect_control(&settings).await?;
                sweep(&mut link, &capabilities, || bounds(&hold)).await
            };
            // Nobody listens any more if the session is over; the next one begins anew.
            let _ = done.send(work.await);
        });
    }

    /// The end of the running sweep. A broken connection to the target is no reason to end the job: it is tried again.
    pub async fn ended(&mut self) -> Result<Swept, EngineError> {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let result = running.await;
        self.running = None;
        self.not_before_ms = now_ms() + AGAIN_AFTER_MS;
        match result {
            Ok(Ok(swept)) => {
                tracing::info!(
                    keys = swept.keys,
                    put_right = swept.put_right,
                    left = swept.left,
                    "looked at every key for expiries held back"
                );
                if swept.left > 0 {
                    self.hold.set_unnamed();
                }
                Ok(swept)
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "looking for expiries held back failed; trying again");
                self.hold.set_unnamed();
                Ok(Swept::default())
            }
            Err(_) => Err(EngineError::Internal("a sweep ended without a word".into())),
        }
    }

    /// The job ends in step, and nothing follows: whatever is still held is put right.
    pub async fn end(&mut self, link: &mut TargetLink) -> Result<Swept, EngineError> {
        if self.running.is_none() && !self.hold.take_unnamed() {
            return Ok(Swept::default());
        }
        sweep(link, &self.capabilities, || (i64::MIN, i64::MIN)).await
    }
}

/// While a flow lags only what no renewal can follow is put right.
fn bounds(hold: &HoldState) -> (i64, i64) {
    let (now_ms, until_ms) = (now_ms(), hold.applied_until_ms_min());
    let (ahead_ms, past_ms) = due_bounds(now_ms, until_ms);
    (if is_lagging(now_ms, until_ms) { i64::MAX } else { ahead_ms }, past_ms)
}

fn now_ms() -> i64 {
    uring::clock::realtime_ms() as i64
}
