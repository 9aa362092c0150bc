//! The walk over a cluster's keys while slots move: SCAN carries no key, so no node says that some are elsewhere by now.
//!
//! In: every primary's own word of its slots. Out: which primaries are to be gone through, and the keys of which slots count there. A
//! slot's keys were all met when it stood still from before the first SCAN to behind the last one (`engine::owners`); the others are
//! gone through again, as long as that helps. It is kept in the state file, so that moves between two runs are noticed as well.

use super::peer::Peer;
use crate::engine::error::EngineError;
use crate::engine::owners::{Owners, runs};
use crate::engine::patience::rest;
use crate::ids::Slot;
use crate::redis::own_slots::OwnSlots;
use crate::redis::slot::{SLOTS, slot};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Between two rounds.
const PAUSE: Duration = Duration::from_millis(250);
/// Rounds, one after the other, in which no slot stood still: then the rest is given up.
const IDLE_MAX: u32 = 40;

/// Every primary that had one of these slots, once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// Slots whose keys were not all met yet, in runs.
    pub left: Vec<(Slot, Slot)>,
    /// Who had which slots when it began.
    before: Vec<OwnSlots>,
    /// Ids of those to be gone through.
    nodes: Vec<String>,
    /// Rounds before this one in which no slot stood still.
    idle: u32,
}

impl Round {
    /// The first one, over all slots.
    pub async fn begin(peer: &mut Peer) -> Result<Self, EngineError> {
        let all = Self { left: vec![(Slot(0), Slot(SLOTS - 1))], ..Self::default() };
        Ok(all.over(peer.own_slots().await?))
    }

    fn over(self, before: Vec<OwnSlots>) -> Self {
        let nodes = Owners::new(before.clone()).ids_of(slots(&self.left));
        Self { before, nodes, ..self }
    }

    /// The `at`th node to be gone through.
    pub fn node(&self, at: usize) -> Option<&str> {
        self.nodes.get(at).map(String::as_str)
    }

    /// Whether this key, by its name there, counts.
    pub fn takes(&self, key: &[u8]) -> bool {
        let slot = slot(key);
        let behind = self.left.partition_point(|(first, _)| *first <= slot);
        behind.checked_sub(1).and_then(|at| self.left.get(at)).is_some_and(|(_, last)| slot <= *last)
    }

    /// All nodes were gone through: the next round.
    pub async fn next(self, peer: &mut Peer) -> Result<Self, EngineError> {
        let round = self.ended(peer.own_slots().await?);
        if round.is_last() {
            return Ok(round);
        }
        let slots = slots(&round.left).count();
        tracing::info!("{slots} slots of the {} moved while their keys were gone through: again", peer.side.name());
        rest(PAUSE).await;
        Ok(round.over(peer.own_slots().await?))
    }

    fn ended(self, after: Vec<OwnSlots>) -> Self {
        let (before, after) = (Owners::new(self.before), Owners::new(after));
        let left = runs(slots(&self.left).filter(|slot| !before.stood_still(&after, *slot)));
        let idle = if left == self.left { self.idle + 1 } else { 0 };
        Self { left, idle, ..Self::default() }
    }

    /// Nothing is left, or that never stands still.
    pub fn is_last(&self) -> bool {
        self.left.is_empty() || self.idle >= IDLE_MAX
    }
}

fn slots(runs: &[(Slot, Slot)]) -> impl Iterator<Item = Slot> {
    runs.iter().flat_map(|(first, last)| first.0..=last.0).map(Slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, epoch: u64, runs: &[(u16, u16)]) -> OwnSlots {
        let runs = runs.iter().map(|(first, last)| (Slot(*first), Slot(*last))).collect();
        OwnSlots { id: id.into(), epoch, runs, open: Vec::new() }
    }

    #[test]
    fn only_what_moved_is_left_and_it_is_given_up_in_the_end() {
        let all = Round { left: vec![(Slot(0), Slot(SLOTS - 1))], ..Round::default() };
        assert!(all.takes(b"any"));
        let round = all.over(vec![node("a", 1, &[(0, 9999)]), node("b", 2, &[(10000, SLOTS - 1)])]);
        assert_eq!([0, 1, 2].map(|at| round.node(at)), [Some("a"), Some("b"), None]);
        // One node gave a slot to another, and one to a node that joined.
        let after = vec![node("a", 1, &[(0, 9998)]), node("b", 2, &[(9999, 12181), (12183, SLOTS - 1)])];
        let mut round = round.ended(after.clone());
        assert_eq!(round.left, [(Slot(9999), Slot(9999)), (Slot(12182), Slot(12182))]);
        assert_eq!((slot(b"foo"), round.takes(b"foo"), round.takes(b"bar")), (Slot(12182), true, false));
        // The new node is not heard of yet.
        round = round.over(after.clone());
        assert_eq!([0, 1].map(|at| round.node(at)), [Some("b"), None]);
        round = round.ended(after.clone());
        assert_eq!(round.left, [(Slot(12182), Slot(12182))]);
        for _ in 0..IDLE_MAX {
            assert!(!round.is_last());
            round = round.over(after.clone()).ended(after.clone());
        }
        assert!(round.is_last() && !round.left.is_empty());
        let with_new = [after, vec![node("c", 3, &[(12182, 12182)])]].concat();
        assert!(round.over(with_new.clone()).ended(with_new).left.is_empty());
    }
}
