//! Names of lost keys that were written again, as long as the checkpoint of a cluster still has them.
//!
//! In: names, each with what must be acknowledged for its key to be there. Out: names that may go. Invariants: none goes
//! before its key is there; nor soon after, for the node that has it may fail, and a replica without it take over: no position tells
//! of that, for the key was written between two records. Whoever goes on from the checkpoint then fetches it once more. Bounded.

use std::collections::VecDeque;

/// Replicas are further behind than this only if nobody looks after them.
const KEPT_NS: u64 = 60_000_000_000;
/// More names than this do not wait for it.
const KEPT_MAX: usize = 256;

#[derive(Default)]
pub struct FoundAgain(VecDeque<Found>);

struct Found {
    field: Vec<u8>,
    since_ns: u64,
    /// By lane: batches that must be acknowledged; `None`: they are to be counted.
    batches: Option<Vec<u64>>,
}

impl FoundAgain {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Behind everything that the lanes have.
    pub fn add(&mut self, field: Vec<u8>, now_ns: u64) {
        self.0.push_back(Found { field, since_ns: now_ns, batches: None });
    }

    /// These were lost once more: they stay.
    pub fn lost_again(&mut self, fields: &[Vec<u8>]) {
        self.0.retain(|found| !fields.contains(&found.field));
    }

    /// What was queued has changed its lane.
    pub fn count_anew(&mut self) {
        self.0.iter_mut().for_each(|found| found.batches = None);
    }

    /// The names that may go. `queued`: by lane, the batches that there are now.
    pub fn take_due(
        &mut self,
        queued: impl Fn() -> Vec<u64>,
        are_acked: impl Fn(&[u64]) -> bool,
        now_ns: u64,
        all: bool,
    ) -> Vec<Vec<u8>> {
        self.0.iter_mut().filter(|found| found.batches.is_none()).for_each(|found| found.batches = Some(queued()));
        let mut due = Vec::new();
        while let Some(first) = self.0.front()
            && (all || self.0.len() > KEPT_MAX || now_ns.saturating_sub(first.since_ns) >= KEPT_NS)
            && first.batches.as_deref().is_some_and(&are_acked)
            && let Some(found) = self.0.pop_front()
        {
            due.push(found.field);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_goes_when_its_key_has_been_there_for_long() {
        let mut found = FoundAgain::default();
        found.add(b"a".to_vec(), 5);
        let none: Vec<Vec<u8>> = Vec::new();
        assert_eq!(found.take_due(|| vec![7], |_| false, u64::MAX, true), none, "not there");
        assert_eq!(found.take_due(|| vec![8], |batches| batches == [7], 6, false), none, "just now");
        assert_eq!(found.take_due(|| vec![8], |batches| batches == [7], 5 + KEPT_NS, false), [b"a".to_vec()]);
        assert!(found.is_empty());
        found.add(b"a".to_vec(), 0);
        found.add(b"b".to_vec(), 0);
        found.take_due(|| vec![8], |_| false, 0, true);
        found.count_anew();
        found.lost_again(&[b"a".to_vec()]);
        assert_eq!(found.take_due(|| vec![3], |batches| batches == [3], 0, true), [b"b".to_vec()]);
        (0..=KEPT_MAX).for_each(|i| found.add(i.to_be_bytes().to_vec(), 0));
        assert_eq!(found.take_due(|| vec![3], |_| true, 0, false).len(), 1);
    }
}
