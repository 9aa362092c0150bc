//! What the control plane and the workers share about held expiries (wire 6.34).
//!
//! Out of the control plane: how far each flow is known to be applied, as a time, and the horizon up to which expiries are
//! held. Out of the workers: that some shifted expiries have no name in memory, so that every key must be looked at, and
//! that a flow has given back what lies beyond a lowered horizon. All are atomics read once a turn.

use super::control::Control;
use crate::convert::hold::{HORIZON_MS_MIN, Overflow};
use crate::ids::{FlowId, Lsn};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

/// Shared by all workers of a crew and the control plane.
pub struct HoldState {
    /// By flow: everything that the source did before this Unix time (ms, our clock) is applied. 0: nothing is known.
    applied_until_ms: Vec<AtomicI64>,
    unnamed_keys: AtomicBool,
    unnamed_fields: AtomicBool,
    control: Arc<Control>,
    /// 0: the horizon is the job's; else the number of the easing that has lowered it.
    easing: AtomicU64,
    easings: AtomicU64,
    /// By flow: the easing for which it holds nothing that lies beyond the lowered horizon.
    given_back: Vec<AtomicU64>,
    /// The easing for which every key was looked at.
    swept: AtomicU64,
}

impl HoldState {
    pub fn new(flows: usize, control: Arc<Control>) -> Self {
        Self {
            applied_until_ms: (0..flows).map(|_| AtomicI64::new(0)).collect(),
            unnamed_keys: AtomicBool::new(false),
            unnamed_fields: AtomicBool::new(false),
            control,
            easing: AtomicU64::new(0),
            easings: AtomicU64::new(0),
            given_back: (0..flows).map(|_| AtomicU64::new(0)).collect(),
            swept: AtomicU64::new(0),
        }
    }

    pub fn applied_until_ms(&self, flow: FlowId) -> i64 {
        self.applied_until_ms.get(flow.0 as usize).map_or(0, |ms| ms.load(Ordering::Acquire))
    }

    /// The flow that is furthest behind.
    pub fn applied_until_ms_min(&self) -> i64 {
        self.applied_until_ms.iter().map(|ms| ms.load(Ordering::Acquire)).min().unwrap_or_default()
    }

    /// Some names found no place: every key of the target must be looked at.
    pub fn add_unnamed(&self, overflow: Overflow) {
        if overflow.keys {
            self.unnamed_keys.store(true, Ordering::Release);
        }
        if overflow.fields {
            self.unnamed_fields.store(true, Ordering::Release);
        }
    }

    pub fn take_unnamed(&self) -> Overflow {
        Overflow {
            keys: self.unnamed_keys.swap(false, Ordering::AcqRel),
            fields: self.unnamed_fields.swap(false, Ordering::AcqRel),
        }
    }

    pub fn unnamed(&self) -> Overflow {
        Overflow {
            keys: self.unnamed_keys.load(Ordering::Acquire),
            fields: self.unnamed_fields.load(Ordering::Acquire),
        }
    }

    /// Expiries nearer than this are held while the flows are in step.
    pub fn horizon_ms(&self) -> i64 {
        if self.easing() > 0 { HORIZON_MS_MIN } else { self.control.hold_within_ms() }
    }

    /// The easing that has lowered the horizon; 0: none.
    pub fn easing(&self) -> u64 {
        self.easing.load(Ordering::Acquire)
    }

    /// Lowers the horizon to the least, or has it as the job's settings say again.
    pub fn ease(&self, on: bool) {
        let number = if on { self.easings.fetch_add(1, Ordering::AcqRel) + 1 } else { 0 };
        self.easing.store(number, Ordering::Release);
    }

    /// A flow has (or has not) given back all that lies beyond the horizon that `easing` has lowered.
    pub fn set_given_back(&self, flow: FlowId, easing: u64) {
        if let Some(given_back) = self.given_back.get(flow.0 as usize) {
            given_back.store(easing, Ordering::Release);
        }
    }

    /// Every key was looked at since `easing` began.
    pub fn set_swept(&self, easing: u64) {
        self.swept.fetch_max(easing, Ordering::AcqRel);
    }

    pub fn is_swept(&self, easing: u64) -> bool {
        self.swept.load(Ordering::Acquire) >= easing
    }

    /// What is held lies nearer than the lowered horizon, and has a name.
    pub fn is_eased(&self) -> bool {
        let easing = self.easing();
        let overflow = self.unnamed();
        easing > 0
            && self.given_back.iter().all(|given_back| given_back.load(Ordering::Acquire) == easing)
            && (self.is_swept(easing) || !(overflow.keys || overflow.fields))
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
    fn an_easing_ends_when_every_flow_and_every_key_is_done() {
        let state = HoldState::new(2, Arc::default());
        let set = state.horizon_ms();
        state.add_unnamed(Overflow { keys: true, fields: false });
        state.ease(true);
        let easing = state.easing();
        assert!(state.horizon_ms() == HORIZON_MS_MIN && set > HORIZON_MS_MIN && !state.is_eased());
        state.set_given_back(FlowId(0), easing);
        state.set_swept(easing);
        assert!(!state.is_eased());
        state.set_given_back(FlowId(1), easing);
        assert!(state.is_eased());
        state.ease(false);
        assert!(!state.is_eased() && state.horizon_ms() == set);
        // What was done for an earlier one does not count.
        state.ease(true);
        assert!(!state.is_eased());
    }

    #[test]
    fn a_time_is_applied_when_the_positions_asked_then_are() {
        let (state, mut marks) = (HoldState::new(2, Arc::default()), Watermarks::default());
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
