//! What the control plane and the workers share about held expiries (wire 6.34).
//!
//! Out of the control plane: how far each flow is known to be applied, as a time. Out of the workers: that some shifted
//! expiries have no name in memory, so that every key must be looked at. Both are atomics read once a turn.

use crate::ids::{FlowId, Lsn};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

/// Shared by all workers of a crew and the control plane.
pub struct HoldState {
    /// By flow: everything that the source did before this Unix time (ms, our clock) is applied. 0: nothing is known.
    applied_until_ms: Vec<AtomicI64>,
    unnamed: AtomicBool,
}

impl HoldState {
    pub fn new(flows: usize) -> Self {
        Self { applied_until_ms: (0..flows).map(|_| AtomicI64::new(0)).collect(), unnamed: AtomicBool::new(false) }
    }

    pub fn applied_until_ms(&self, flow: FlowId) -> i64 {
        self.applied_until_ms.get(flow.0 as usize).map_or(0, |ms| ms.load(Ordering::Acquire))
    }

    /// The flow that is furthest behind.
    pub fn applied_until_ms_min(&self) -> i64 {
        self.applied_until_ms.iter().map(|ms| ms.load(Ordering::Acquire)).min().unwrap_or_default()
    }

    /// Some names found no place: every key of the target must be looked at.
    pub fn set_unnamed(&self) {
        self.unnamed.store(true, Ordering::Release);
    }

    pub fn take_unnamed(&self) -> bool {
        self.unnamed.swap(false, Ordering::AcqRel)
    }

    pub fn is_unnamed(&self) -> bool {
        self.unnamed.load(Ordering::Acquire)
    }
}

/// Positions of the source that wait until they are applied: from an LSN of the source to a time of ours.
#[derive(Default)]
pub struct Watermarks {
    asked: VecDeque<(i64, Vec<Lsn>)>,
}

/// Answers kept; a flow that is further behind lags anyway.
const ASKED_MAX: usize = 16;

impl Watermarks {
    /// The source had these positions at some moment after `asked_ms`.
    pub fn asked(&mut self, asked_ms: i64, offsets: Vec<Lsn>) {
        if self.asked.len() == ASKED_MAX {
            // The newest gives way: a flow far behind must reach the oldest first.
            self.asked.pop_back();
        }
        self.asked.push_back((asked_ms, offsets));
    }

    /// Moves each flow's time forward as far as `confirmed` (the next LSN that the target has not confirmed) shows.
    pub fn confirm(&mut self, confirmed: &[u64], state: &HoldState) {
        for (asked_ms, offsets) in &self.asked {
            for ((offset, confirmed), until) in offsets.iter().zip(confirmed).zip(&state.applied_until_ms) {
                if *confirmed >= offset.0 && *confirmed > 0 {
                    until.fetch_max(*asked_ms, Ordering::AcqRel);
                }
            }
        }
        let reached = |offsets: &[Lsn]| offsets.iter().zip(confirmed).all(|(offset, confirmed)| *confirmed >= offset.0);
        while self.asked.front().is_some_and(|(_, offsets)| reached(offsets)) {
            self.asked.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_applied_when_the_positions_asked_then_are() {
        let (state, mut marks) = (HoldState::new(2), Watermarks::default());
        let lsns = |a, b| vec![Lsn(a), Lsn(b)];
        marks.asked(1_000, lsns(10, 5));
        marks.confirm(&[0, 0], &state);
        assert_eq!(state.applied_until_ms_min(), 0);
        marks.asked(2_000, lsns(12, 5));
        marks.confirm(&[11, 5], &state);
        assert_eq!((state.applied_until_ms(FlowId(0)), state.applied_until_ms(FlowId(1))), (1_000, 2_000));
        for i in 0..100 {
            marks.asked(3_000 + i, lsns(100, 100));
        }
        assert_eq!(marks.asked.len(), ASKED_MAX);
        marks.confirm(&[12, 5], &state);
        assert_eq!(state.applied_until_ms_min(), 2_000);
        marks.confirm(&[100, 100], &state);
        assert!(state.applied_until_ms_min() >= 3_000 && marks.asked.is_empty());
    }
}
