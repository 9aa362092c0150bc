//! How old what the target has not applied is.
//!
//! In: the source's positions, whenever they are heard. Out: for each flow, the age of the oldest of them that the target
//! has not reached. No clock: times are arguments. Bounded: the oldest samples are thinned out, so that a long lag is told
//! to within a few per cent.

use std::collections::VecDeque;

/// Samples kept.
const SAMPLES_MAX: usize = 512;

#[derive(Debug, Default)]
pub struct LagClock {
    /// (time, the source's next LSN by flow), oldest first.
    heard: VecDeque<(u64, Vec<u64>)>,
    /// Samples nearer to each other than this are thinned out.
    step_ms: u64,
}

impl LagClock {
    /// The source said `positions` at `now_ms`.
    pub fn heard(&mut self, now_ms: u64, positions: &[u64]) {
        if self.heard.len() >= SAMPLES_MAX {
            let mut index = 0;
            self.heard.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.step_ms = (self.step_ms * 2).max(1000);
        }
        let last =
            |back: usize| self.heard.len().checked_sub(back).and_then(|at| self.heard.get(at)).map(|(ms, _)| *ms);
        if let (Some(newest), Some(before)) = (last(1), last(2))
            && newest.saturating_sub(before) < self.step_ms
        {
            self.heard.pop_back();
        }
        self.heard.push_back((now_ms, positions.to_vec()));
    }

    /// Milliseconds since the source was first heard to be ahead of `applied`; 0: not behind, as far as is known.
    pub fn behind_ms(&self, flow: usize, applied: u64, now_ms: u64) -> u64 {
        let ahead = self.heard.iter().find(|(_, positions)| positions.get(flow).is_some_and(|lsn| *lsn > applied));
        ahead.map_or(0, |(heard_ms, _)| now_ms.saturating_sub(*heard_ms))
    }

    /// Drops what every flow has passed.
    pub fn reached(&mut self, applied: &[u64]) {
        let passed = |positions: &[u64]| positions.iter().zip(applied).all(|(source, applied)| source <= applied);
        while self.heard.front().is_some_and(|(_, positions)| passed(positions)) {
            self.heard.pop_front();
        }
        if self.heard.is_empty() {
            self.step_ms = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_is_that_of_the_first_position_not_reached() {
        let mut clock = LagClock::default();
        for second in 0..10 {
            clock.heard(second * 1000, &[second * 10, 5]);
        }
        assert_eq!(clock.behind_ms(0, 90, 9500), 0);
        assert_eq!(clock.behind_ms(0, 41, 9500), 4500);
        assert_eq!(clock.behind_ms(1, 5, 9500), 0);
        clock.reached(&[41, 5]);
        assert_eq!(clock.heard.len(), 5);
        assert_eq!(clock.behind_ms(0, 41, 9500), 4500);
        assert_eq!(clock.behind_ms(7, 0, 9500), 0);
    }

    #[test]
    fn a_long_lag_takes_bounded_memory_and_is_still_told() {
        let mut clock = LagClock::default();
        for second in 1..100_000u64 {
            clock.heard(second * 1000, &[second]);
        }
        assert!(clock.heard.len() <= SAMPLES_MAX);
        let told = clock.behind_ms(0, 50_000, 99_999_000);
        assert!((49_000_000..=50_000_000).contains(&told), "{told}");
    }
}
