//! The rate limit: how long to wait so that no more than the allowed keys or bytes are read in a second.
//!
//! A bucket that may go into debt: what was read is known only afterwards, and is then waited for. The time is an argument.

use super::settings::Rate;
use std::time::Duration;

/// Of the allowance, what may be used at once after a pause.
const BURST: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub struct Bucket {
    rate: Rate,
    /// Allowance left; negative: debt.
    left: f64,
    at: Duration,
}

impl Bucket {
    /// `now` as in [`take`](Self::take): the time since any fixed moment.
    pub fn new(rate: Rate, now: Duration) -> Self {
        Self { rate, left: 0.0, at: now }
    }

    /// Notes what was read; returns how long to wait before anything more is read.
    pub fn take(&mut self, keys: u64, bytes: u64, now: Duration) -> Duration {
        let (per_second, taken) = match self.rate {
            Rate::Unlimited => return Duration::ZERO,
            Rate::KeysPerSecond(rate) => (rate.max(1) as f64, keys as f64),
            Rate::BytesPerSecond(rate) => (rate.max(1) as f64, bytes as f64),
        };
        let earned = now.saturating_sub(self.at).as_secs_f64() * per_second;
        self.at = now;
        self.left = (self.left + earned).min(per_second * BURST.as_secs_f64()) - taken;
        if self.left >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-self.left / per_second) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads chunks of `chunk` for a minute, waiting as told; returns what was read.
    fn read_for_a_minute(rate: Rate, chunk: u64) -> u64 {
        let mut now = Duration::from_secs(5);
        let mut bucket = Bucket::new(rate, now);
        let mut total = 0;
        while now < Duration::from_secs(65) {
            total += chunk;
            now += bucket.take(chunk, chunk, now) + Duration::from_micros(50);
        }
        total
    }

    #[test]
    fn the_rate_is_kept_whatever_the_size_of_the_pieces() {
        for chunk in [1, 100, 7000] {
            for rate in [Rate::KeysPerSecond(1000), Rate::BytesPerSecond(1000)] {
                let total = read_for_a_minute(rate, chunk);
                assert!((59_000..=60_000 + 100 + chunk).contains(&total), "{rate:?} {chunk}: {total}");
            }
        }
    }

    #[test]
    fn a_pause_saves_up_little_and_no_limit_waits_never() {
        let mut bucket = Bucket::new(Rate::KeysPerSecond(1000), Duration::ZERO);
        assert_eq!(bucket.take(100, 0, Duration::from_secs(1000)), Duration::ZERO);
        assert!(bucket.take(100, 0, Duration::from_secs(1000)) >= Duration::from_millis(99));
        assert_eq!(
            Bucket::new(Rate::Unlimited, Duration::ZERO).take(u64::MAX, u64::MAX, Duration::ZERO),
            Duration::ZERO
        );
    }
}
