//! What the target's replicas have confirmed (`--wait-replicas`), shared by the workers and by who asks the nodes (`proving`).
//!
//! A round is a question to every node that has ended well: a write of the tool's own and, behind it on the same connection, a
//! WAIT. All that the node had answered before stands before that write in what it sends its replicas, whichever
//! connection brought it: so replicas that confirm the write have all of it, and no connection with data ever stands
//! behind a WAIT.
//!
//! In: batches that the target has answered. Out: their positions, once replicas have what they cover; whether to
//! go on meanwhile. Invariants: a round covers only what was answered before it began; rounds are numbered in their order
//! and end in it; where replicas are missing nothing more is decoded, so that little is ever unconfirmed.

use super::worker::Worker;
use crate::ids::{FlowId, Lsn};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// Rounds so far, and what is said of the one that does not end.
#[derive(Default)]
pub struct Replicas {
    begun: AtomicU64,
    ended: AtomicU64,
    /// The last round that somebody waits for.
    wanted: AtomicU64,
    asked: Notify,
    is_lacking: AtomicBool,
    lack: Mutex<String>,
    /// Why the control plane waits for replicas by itself, in the middle of a record over two nodes.
    waits: Mutex<Option<String>>,
}

impl Replicas {
    /// The number of the first round that covers what the target has answered until now.
    pub fn covering(&self) -> u64 {
        self.begun.load(Ordering::SeqCst) + 1
    }

    pub fn is_over(&self, round: u64) -> bool {
        self.ended.load(Ordering::Acquire) >= round
    }

    /// Whether a round is over; it is asked for if it is not.
    pub fn reach(&self, round: u64) -> bool {
        if self.is_over(round) {
            return true;
        }
        if self.wanted.fetch_max(round, Ordering::AcqRel) < round {
            self.asked.notify_one();
        }
        false
    }

    /// Ends when somebody waits for a round. May be dropped at any time.
    pub async fn wanted(&self) {
        while self.is_over(self.wanted.load(Ordering::Acquire)) {
            self.asked.notified().await;
        }
    }

    /// A round begins: nothing of it may be sent before. Returns its number.
    pub fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub fn end(&self, round: u64) {
        self.is_lacking.store(false, Ordering::Release);
        self.ended.store(round, Ordering::Release);
    }

    /// The round that has begun does not end, for this reason.
    pub fn lack(&self, why: &str) {
        *self.lack.lock().unwrap_or_else(PoisonError::into_inner) = why.to_string();
        self.is_lacking.store(true, Ordering::Release);
    }

    pub fn is_lacking(&self) -> bool {
        self.is_lacking.load(Ordering::Acquire)
    }

    pub fn set_waits(&self, why: Option<String>) {
        *self.waits.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Why nothing goes on, if it does not.
    pub fn lacking(&self) -> Option<String> {
        match self.is_lacking() {
            true => Some(self.lack.lock().unwrap_or_else(PoisonError::into_inner).clone()),
            false => self.waits.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// What a worker's target has answered and its replicas have not confirmed.
pub struct Unproven {
    shared: Arc<Replicas>,
    /// Positions by the round that covers them, oldest first.
    waiting: VecDeque<(u64, Vec<(FlowId, Lsn)>)>,
    /// The round that covers everything answered.
    last: u64,
    lacking_since_ns: Option<u64>,
}

impl Unproven {
    pub fn new(shared: Arc<Replicas>) -> Self {
        Self { shared, waiting: VecDeque::new(), last: 0, lacking_since_ns: None }
    }

    pub fn shared(&self) -> &Replicas {
        &self.shared
    }

    /// The target has answered a batch with these positions.
    pub fn answered(&mut self, positions: &[(FlowId, Lsn)]) {
        let round = self.shared.covering();
        self.last = round;
        if positions.is_empty() {
            return;
        }
        self.shared.reach(round);
        if self.waiting.back().is_none_or(|(of, _)| *of != round) {
            self.waiting.push_back((round, Vec::new()));
        }
        let Some((_, known)) = self.waiting.back_mut() else { return };
        for (flow, lsn) in positions {
            match known.iter_mut().find(|(id, _)| id == flow) {
                Some((_, known)) => *known = (*known).max(*lsn),
                None => known.push((*flow, *lsn)),
            }
        }
    }

    /// Replicas have everything that was answered. Asks for nothing.
    pub fn is_none(&self) -> bool {
        self.shared.is_over(self.last)
    }

    /// The next positions that may be told.
    fn take(&mut self) -> Option<Vec<(FlowId, Lsn)>> {
        let (round, _) = self.waiting.front()?;
        if !self.shared.is_over(*round) {
            return None;
        }
        self.waiting.pop_front().map(|(_, positions)| positions)
    }
}

impl Worker {
    /// Tells the positions that replicas have confirmed. Returns whether they are missing: then nothing is to be decoded.
    pub(super) fn tend_unproven(&mut self, now_ns: u64) -> bool {
        let Some(unproven) = &mut self.unproven else { return false };
        while let Some(positions) = unproven.take() {
            super::lanes::tell(&mut self.flows, &self.confirmed, &positions);
        }
        let lacks = unproven.shared.is_lacking();
        match (lacks, unproven.lacking_since_ns) {
            (true, None) => {
                unproven.lacking_since_ns = Some(now_ns);
                self.stats.holds += 1;
            }
            (false, Some(since_ns)) => {
                unproven.lacking_since_ns = None;
                self.stats.held_ms += now_ns.saturating_sub(since_ns) / 1_000_000;
            }
            _ => {}
        }
        lacks
    }

    /// Replicas have everything that the target has answered.
    pub(super) fn is_proven(&self) -> bool {
        self.unproven.as_ref().is_none_or(|unproven| unproven.shared.reach(unproven.last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positions(lsns: &[u64]) -> Vec<(FlowId, Lsn)> {
        (0..).map(FlowId).zip(lsns.iter().copied().map(Lsn)).collect()
    }

    #[test]
    fn a_round_covers_only_what_was_answered_before_it_began() {
        let shared = Arc::new(Replicas::default());
        let mut unproven = Unproven::new(shared.clone());
        unproven.answered(&positions(&[5]));
        let first = shared.begin();
        // Answered while the round runs: the node may have had its write before.
        unproven.answered(&positions(&[9]));
        assert!(unproven.take().is_none());
        shared.end(first);
        assert_eq!(unproven.take(), Some(positions(&[5])));
        assert!(unproven.take().is_none() && !shared.reach(unproven.last));
        let second = shared.begin();
        shared.end(second);
        assert_eq!(unproven.take(), Some(positions(&[9])));
        assert!(unproven.take().is_none() && shared.reach(unproven.last));
    }

    #[test]
    fn positions_of_one_round_are_one() {
        let shared = Arc::new(Replicas::default());
        let mut unproven = Unproven::new(shared.clone());
        for lsn in [3, 8, 7] {
            unproven.answered(&positions(&[lsn, 1]));
        }
        // A batch without positions needs proof too, before anybody is told that all is done.
        shared.end(shared.begin());
        unproven.answered(&[]);
        assert_eq!(unproven.take(), Some(positions(&[8, 1])));
        assert!(!shared.reach(unproven.last));
    }

    #[test]
    fn a_wish_is_not_lost_and_ends_with_its_round() {
        let shared = Replicas::default();
        let is_wanted = |shared: &Replicas| {
            let mut wanted = std::pin::pin!(shared.wanted());
            let waker = std::task::Waker::noop();
            wanted.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_ready()
        };
        assert!(!is_wanted(&shared));
        assert!(!shared.reach(shared.covering()));
        assert!(is_wanted(&shared) && is_wanted(&shared));
        let round = shared.begin();
        shared.lack("0 of 1");
        assert_eq!(shared.lacking().as_deref(), Some("0 of 1"));
        shared.end(round);
        assert!(!is_wanted(&shared) && shared.lacking().is_none());
    }
}
