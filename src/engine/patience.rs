//! Waiting for a target that cannot yet: growing pauses with jitter, a word in the log every few seconds, and an end.
//!
//! In: how long (`--retry-max`), and before each further try why the last one failed. Out: a pause, or the error that ends the
//! run; the reason in the status of the job, once it has lasted. What refuses inside of a worker's lane has its own (`refusal::Hold`), which does not block the worker.
//! Every pause before a further try at a peer comes from [`jittered`].

use super::control::{Control, Waiting};
use super::error::EngineError;
use crate::uring;
use std::sync::Arc;
use std::time::Duration;

const PAUSE_FIRST: Duration = Duration::from_millis(5);
const PAUSE_LAST: Duration = Duration::from_millis(500);
const PAUSE_BRIEF: Duration = Duration::from_millis(50);
/// From then on, and again after as long, the operator is told.
const ALARM_EVERY: Duration = Duration::from_secs(5);

/// What passes within this is not told in the status: slots on the move, a replica that takes over.
const SHOWN_AFTER: Duration = Duration::from_millis(500);

pub struct Patience {
    limit: Duration,
    since_ns: u64,
    alarm_at: Duration,
    pause: Duration,
    shown: Option<Waiting>,
}

impl Patience {
    /// For as long as `limit`, from now on.
    pub fn new(limit: Duration) -> Self {
        Self { limit, since_ns: uring::clock::monotonic_ns(), alarm_at: ALARM_EVERY, pause: PAUSE_FIRST, shown: None }
    }

    /// What it waits for is told in the job's status.
    pub fn shown_in(self, control: &Arc<Control>) -> Self {
        Self { shown: Some(control.waiting()), ..self }
    }

    /// Waits a moment. Errors: it has taken too long.
    pub async fn wait(&mut self, why: &str) -> Result<(), EngineError> {
        let pause = self.next(uring::clock::monotonic_ns(), why)?;
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// The same for what takes milliseconds, however often.
    pub async fn wait_briefly(&mut self, why: &str) -> Result<(), EngineError> {
        self.be_brief();
        self.wait(why).await
    }

    fn be_brief(&mut self) {
        self.pause = self.pause.min(PAUSE_BRIEF);
    }

    /// The pause before the next try.
    fn next(&mut self, now_ns: u64, why: &str) -> Result<Duration, EngineError> {
        let waited = Duration::from_nanos(now_ns.saturating_sub(self.since_ns));
        if self.limit.is_zero() {
            return Err(EngineError::Target(why.to_string()));
        }
        if waited >= self.limit {
            return Err(EngineError::Target(format!("{why} (tried again for {:?}, see --retry-max)", self.limit)));
        }
        if let Some(shown) = self.shown.as_ref().filter(|_| waited >= SHOWN_AFTER) {
            shown.say(why);
        }
        if waited >= self.alarm_at {
            self.alarm_at = waited + ALARM_EVERY;
            tracing::warn!(?waited, why, "holding: the target cannot yet");
        }
        let pause = jittered(self.pause, now_ns);
        self.pause = (self.pause * 2).min(PAUSE_LAST);
        Ok(pause)
    }
}

/// Half to one and a half of a pause, so that many that lost the same peer do not come back at one instant. `now_ns`: any
/// clock that differs between them.
pub fn jittered(pause: Duration, now_ns: u64) -> Duration {
    // The clock's lower bits may be alike; the upper ones of the product depend on all of them.
    let mixed = now_ns.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
    pause / 2 + pause * (mixed % 1024) as u32 / 1024
}

/// Waits for about as long.
pub async fn rest(pause: Duration) {
    tokio::time::sleep(jittered(pause, uring::clock::monotonic_ns())).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_end() {
        let mut patience = Patience { since_ns: 0, ..Patience::new(Duration::from_secs(10)) };
        let (mut now_ns, mut pauses) = (7, Vec::new());
        let error = loop {
            match patience.next(now_ns, "node 1 answers \"LOADING\"") {
                Ok(pause) => pauses.push(pause),
                Err(error) => break error,
            }
            now_ns += pauses.last().map_or(0, |pause| pause.as_nanos() as u64) + 12_345;
        };
        assert!(pauses[0] < 2 * PAUSE_FIRST && pauses.iter().all(|pause| *pause < PAUSE_LAST * 3 / 2), "{pauses:?}");
        assert!(pauses.iter().sum::<Duration>() >= Duration::from_secs(9) && pauses.len() > 20, "{pauses:?}");
        let mut patience = Patience { since_ns: 0, ..Patience::new(Duration::from_secs(10)) };
        for now_ns in 0..20 {
            patience.be_brief();
            let pause = patience.next(now_ns, "TRYAGAIN").unwrap();
            assert!(pause < PAUSE_BRIEF * 3 / 2, "{pause:?}");
        }
        let pause = Duration::from_secs(4);
        let many: Vec<Duration> = (0..1000).map(|now_ns| jittered(pause, now_ns)).collect();
        assert!(many.iter().all(|one| *one >= pause / 2 && *one < pause * 3 / 2), "{many:?}");
        let early = many.iter().filter(|one| **one < pause).count();
        assert!((400..600).contains(&early), "{early}");
        let text = error.to_string();
        assert!(text.contains("LOADING") && text.contains("10s") && text.contains("--retry-max"), "{text}");
    }

    /// Many that lost the same peer within a millisecond come back one by one.
    #[test]
    fn the_pauses_of_many_that_wait_differ() {
        let mut waiting: Vec<Patience> =
            (0..100).map(|_| Patience { since_ns: 0, ..Patience::new(Duration::from_secs(10)) }).collect();
        for round in 0..5 {
            let pauses: std::collections::BTreeSet<Duration> = (1_000_000_000 * round..)
                .step_by(10_000)
                .zip(&mut waiting)
                .map(|(now_ns, patience)| patience.next(now_ns, "LOADING").unwrap())
                .collect();
            assert!(pauses.len() > 80, "round {round}: {pauses:?}");
        }
    }
}
