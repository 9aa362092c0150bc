//! Before a cutover fences the source, what is held back is put right: inside the fence there is no time for it.
//!
//! In: what the job and its workers share about held expiries. Out: only expiries are held that are nearer than the least
//! horizon, each with a name, so that giving them back inside the fence is a matter of milliseconds; the flows go on
//! meanwhile. Invariant: the horizon is as the settings say again once the [`Eased`] is dropped.

use super::hold::HoldState;
use crate::convert::hold::is_lagging;
use crate::uring;
use std::sync::Arc;
use std::time::Duration;

/// Time between two looks, and between two words in the log.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const TELL_EVERY: Duration = Duration::from_secs(10);

/// The horizon is lowered for as long as this lives.
pub struct Eased(Arc<HoldState>);

impl Drop for Eased {
    fn drop(&mut self) {
        self.0.ease(false);
    }
}

/// Lowers the horizon and waits until what lies beyond is put right. It takes as long as it takes to look at every key, if
/// names are missing. `lag_max`: give up if the target is behind for so long on end. `gone`: why to give up at once.
pub async fn ease(
    hold: &Arc<HoldState>,
    lag_max: Duration,
    gone: impl Fn() -> Option<String>,
) -> Result<Eased, String> {
    hold.ease(true);
    let eased = Eased(hold.clone());
    let now = || Duration::from_nanos(uring::clock::monotonic_ns());
    let (mut in_step, mut told) = (now(), now());
    while !hold.is_eased() {
        if let Some(why) = gone() {
            return Err(why);
        }
        if !is_lagging(uring::clock::realtime_ms() as i64, hold.applied_until_ms_min()) {
            in_step = now();
        } else if now().saturating_sub(in_step) > lag_max {
            return Err("the target is behind, so expiries that are held back cannot be put right".into());
        }
        if now().saturating_sub(told) > TELL_EVERY {
            told = now();
            tracing::info!("before the fence: every key of the target is looked at for expiries held back");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(eased)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cutover_that_is_cancelled_leaves_the_horizon_as_it_was() {
        let hold = Arc::new(HoldState::new(1, Arc::default()));
        let set = hold.horizon_ms();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let gone = || (hold.horizon_ms() < set).then(|| "cancelled".to_string());
        let result = runtime.block_on(ease(&hold, Duration::MAX, gone));
        assert_eq!(result.err().as_deref(), Some("cancelled"));
        assert_eq!(hold.horizon_ms(), set);
        // Never in step.
        let result = runtime.block_on(ease(&hold, Duration::ZERO, || None));
        assert!(result.err().unwrap().contains("behind") && hold.horizon_ms() == set);
    }
}
