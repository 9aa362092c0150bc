//! How fast the target may be fed: pause, and limits in bytes and entries a second, over all workers.
//!
//! In: what the operator asks for, what workers send. Out: whether a worker may send now, or when. A limit is a date at
//! which everything sent so far is paid for; one atomic each, looked at once a turn. Invariants: over any longer time no
//! more is sent than the limit allows, plus one turn of each worker; nothing here touches reading from the source.

use super::settings::MigrateSettings;
use super::worker::Worker;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The part of a second's allowance that one flow decodes in one turn: many small steps instead of few long stops.
const STEPS_PER_SECOND: u64 = 50;
const STEP_BYTES_MIN: u64 = 4 * 1024;
/// Bytes decoded in one step where only entries are limited.
const STEP_BYTES_BY_ENTRIES: u64 = 4 * 1024;

/// Whether a worker may convert and send more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    Open,
    /// Look again in so many nanoseconds.
    Wait(u64),
    /// Until the operator says so.
    Paused,
}

/// A limit: so many units a second, 0: none.
#[derive(Debug, Default)]
struct Limit {
    per_s: AtomicU64,
    /// Monotonic time at which everything sent so far is paid for.
    paid_at_ns: AtomicU64,
}

impl Limit {
    fn set(&self, per_s: u64) {
        self.per_s.store(per_s, Ordering::Relaxed);
        // A new limit does not pay for what was sent under the old one.
        self.paid_at_ns.store(0, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.per_s.load(Ordering::Relaxed)
    }

    fn wait_ns(&self, now_ns: u64) -> u64 {
        if self.get() == 0 { 0 } else { self.paid_at_ns.load(Ordering::Relaxed).saturating_sub(now_ns) }
    }

    fn pay(&self, units: u64, now_ns: u64) {
        let per_s = self.get();
        if per_s == 0 || units == 0 {
            return;
        }
        let cost_ns = (u128::from(units) * 1_000_000_000 / u128::from(per_s)).min(u128::from(u64::MAX)) as u64;
        // The closure always gives a value, so this cannot fail.
        let _ = self.paid_at_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid_at| {
            Some(paid_at.max(now_ns).saturating_add(cost_ns))
        });
    }
}

/// The limits of a job.
#[derive(Debug, Default)]
pub struct Throttle {
    paused: AtomicBool,
    bytes: Limit,
    entries: Limit,
}

impl Throttle {
    pub fn pause(&self, on: bool) {
        self.paused.store(on, Ordering::Relaxed);
    }

    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Bytes a second; `None`: no limit.
    pub fn set_bytes_per_s(&self, limit: Option<u64>) {
        self.bytes.set(limit.unwrap_or(0));
    }

    pub fn bytes_per_s(&self) -> Option<u64> {
        Some(self.bytes.get()).filter(|limit| *limit > 0)
    }

    /// Entries (commands to the target) a second; `None`: no limit.
    pub fn set_entries_per_s(&self, limit: Option<u64>) {
        self.entries.set(limit.unwrap_or(0));
    }

    pub fn entries_per_s(&self) -> Option<u64> {
        Some(self.entries.get()).filter(|limit| *limit > 0)
    }

    /// Whether more may be sent at `now_ns`.
    pub fn gate(&self, now_ns: u64) -> Gate {
        if self.is_paused() {
            return Gate::Paused;
        }
        match self.bytes.wait_ns(now_ns).max(self.entries.wait_ns(now_ns)) {
            0 => Gate::Open,
            wait_ns => Gate::Wait(wait_ns),
        }
    }

    /// So much was made ready to be sent.
    pub fn pay(&self, bytes: u64, entries: u64, now_ns: u64) {
        self.bytes.pay(bytes, now_ns);
        self.entries.pay(entries, now_ns);
    }

    /// Most bytes that one of `flows` flows should decode in one turn; `None`: as many as it likes.
    pub fn step_bytes(&self, flows: usize) -> Option<usize> {
        let by_bytes =
            self.bytes_per_s().map(|limit| (limit / STEPS_PER_SECOND / flows.max(1) as u64).max(STEP_BYTES_MIN));
        let by_entries = self.entries_per_s().map(|_| STEP_BYTES_BY_ENTRIES);
        by_bytes.into_iter().chain(by_entries).min().map(|bytes| bytes as usize)
    }
}

impl Worker {
    /// Takes over what an operator has changed since the last turn.
    pub(super) fn take_knobs(&mut self) {
        let (batch_bytes, window_bytes) = self.settings.control.batch_and_window();
        if (batch_bytes, window_bytes) != (self.settings.batch_bytes, self.settings.window_bytes) {
            self.settings = Arc::new(MigrateSettings { batch_bytes, window_bytes, ..(*self.settings).clone() });
        }
        let step_bytes = self.settings.control.throttle.step_bytes(self.flows.len());
        for flow in &mut self.flows {
            flow.limit_step(step_bytes);
        }
    }

    /// Pays for what this turn has queued.
    pub(super) fn pay(&mut self, now_ns: u64) {
        let queued = self
            .lanes
            .iter()
            .fold((0, 0), |(bytes, commands), lane| (bytes + lane.queued_bytes, commands + lane.queued_commands));
        let (bytes, commands) = (queued.0.saturating_sub(self.paid.0), queued.1.saturating_sub(self.paid.1));
        self.settings.control.throttle.pay(bytes, commands, now_ns);
        self.paid = queued;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_limit_is_kept_over_time() {
        let throttle = Throttle::default();
        throttle.set_bytes_per_s(Some(1_000_000));
        let (mut now, mut sent) = (5 * SECOND, 0u64);
        let begun = now;
        while now < begun + 10 * SECOND {
            match throttle.gate(now) {
                Gate::Open => {
                    sent += 30_000;
                    throttle.pay(30_000, 1, now);
                }
                Gate::Wait(ns) => now += ns,
                Gate::Paused => unreachable!(),
            }
        }
        assert!((9_900_000..=10_100_000).contains(&sent), "{sent}");
    }

    #[test]
    fn a_quiet_time_is_not_saved_up() {
        let throttle = Throttle::default();
        throttle.set_entries_per_s(Some(100));
        throttle.pay(0, 100, SECOND);
        assert_eq!(throttle.gate(SECOND), Gate::Wait(SECOND));
        assert_eq!(throttle.gate(100 * SECOND), Gate::Open);
        throttle.pay(0, 100, 100 * SECOND);
        assert_eq!(throttle.gate(100 * SECOND), Gate::Wait(SECOND));
        throttle.set_entries_per_s(None);
        assert_eq!(throttle.gate(100 * SECOND), Gate::Open);
    }

    #[test]
    fn a_pause_goes_before_everything() {
        let throttle = Throttle::default();
        throttle.pause(true);
        assert_eq!(throttle.gate(0), Gate::Paused);
        throttle.pause(false);
        assert_eq!(throttle.gate(0), Gate::Open);
        assert_eq!(throttle.step_bytes(4), None);
        throttle.set_bytes_per_s(Some(u64::MAX));
        throttle.pay(u64::MAX, u64::MAX, u64::MAX);
        assert!(throttle.step_bytes(4).is_some());
    }
}
