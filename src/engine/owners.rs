//! Which node has which slot by the word of each node itself, and which slots stood still between two looks.
//!
//! In: every primary's own line of `CLUSTER NODES`. Out: the slots that one node had, all its keys with it, from the first look to
//! the second. Invariants: a slot that no asked node claims, or that two do, or that is on the move, has no owner; one that left
//! and came back is told by the epoch of its node, which rises when a node takes a slot while another node's is higher. Only a
//! move that was begun and called off in between, keys moved there and back, leaves no trace here.

use super::cluster::Cluster;
use super::error::EngineError;
use crate::ids::Slot;
use crate::redis::own_slots::OwnSlots;
use crate::redis::resp;
use crate::redis::slot::SLOTS;
use crate::redis::value::Value;

/// One look at all primaries.
#[derive(Debug, Default)]
pub struct Owners {
    nodes: Vec<OwnSlots>,
    /// By slot: its node among these.
    by_slot: Vec<Option<usize>>,
}

impl Owners {
    pub fn new(nodes: Vec<OwnSlots>) -> Self {
        let mut claims: Vec<(usize, usize)> = vec![(0, 0); usize::from(SLOTS)];
        for (at, node) in nodes.iter().enumerate() {
            for (first, last) in &node.runs {
                for claim in claims.get_mut(usize::from(first.0)..=usize::from(last.0)).unwrap_or_default() {
                    *claim = (claim.0 + 1, at);
                }
            }
        }
        for open in nodes.iter().flat_map(|node| &node.open) {
            claims.get_mut(usize::from(open.0)).into_iter().for_each(|claim| claim.0 = 0);
        }
        let by_slot = claims.into_iter().map(|(count, at)| (count == 1).then_some(at)).collect();
        Self { nodes, by_slot }
    }

    /// Ids of the nodes that have any of these slots.
    pub fn ids_of(&self, slots: impl Iterator<Item = Slot>) -> Vec<String> {
        let mut has = vec![false; self.nodes.len()];
        for at in slots.filter_map(|slot| self.owner(slot)) {
            has.get_mut(at).into_iter().for_each(|has| *has = true);
        }
        self.nodes.iter().zip(has).filter(|(_, has)| *has).map(|(node, _)| node.id.clone()).collect()
    }

    /// The slot had one node from this look to the later one.
    pub fn stood_still(&self, later: &Self, slot: Slot) -> bool {
        self.node(slot).is_some_and(|before| later.node(slot) == Some(before))
    }

    fn owner(&self, slot: Slot) -> Option<usize> {
        self.by_slot.get(usize::from(slot.0)).copied().flatten()
    }

    /// Id and epoch of the node that has the slot.
    fn node(&self, slot: Slot) -> Option<(&str, u64)> {
        let node = self.owner(slot).and_then(|at| self.nodes.get(at))?;
        Some((node.id.as_str(), node.epoch))
    }
}

/// These slots, which are in order, as first and last of each run.
pub fn runs(slots: impl Iterator<Item = Slot>) -> Vec<(Slot, Slot)> {
    let mut runs: Vec<(Slot, Slot)> = Vec::new();
    for slot in slots {
        match runs.last_mut() {
            Some((_, last)) if last.0 + 1 == slot.0 => *last = slot,
            _ => runs.push((slot, slot)),
        }
    }
    runs
}

impl Cluster {
    /// Asks every primary for its own slots.
    pub async fn owners(&mut self) -> Result<Owners, EngineError> {
        self.refresh_patiently().await?;
        let request = resp::command(&[b"CLUSTER", b"NODES"]);
        let mut nodes = Vec::new();
        for id in self.primary_ids() {
            match self.send(&id, false, &request, 1).await?.into_iter().next() {
                Some(Value::Bulk(text)) => nodes.extend(OwnSlots::parse(&text)),
                Some(Value::Error(text)) => {
                    return Err(EngineError::Target(format!(
                        "a node answered CLUSTER NODES with \"{}\"; the target's user needs +cluster|nodes",
                        text.escape_ascii()
                    )));
                }
                _ => {}
            }
        }
        Ok(Owners::new(nodes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, epoch: u64, runs: &[(u16, u16)], open: &[u16]) -> OwnSlots {
        let runs = runs.iter().map(|(first, last)| (Slot(*first), Slot(*last))).collect();
        OwnSlots { id: id.into(), epoch, runs, open: open.iter().map(|slot| Slot(*slot)).collect() }
    }

    #[test]
    fn a_slot_stands_still_where_one_node_had_it_all_the_time() {
        let before = Owners::new(vec![
            node("a", 1, &[(0, 99)], &[50]),
            node("b", 2, &[(90, 199)], &[]),
            node("c", 3, &[(300, 399)], &[]),
        ]);
        // b took slot 3; c took one, too, and gave it back meanwhile: that would be all the same for the others.
        let after = Owners::new(vec![
            node("c", 4, &[(300, 399)], &[]),
            node("b", 2, &[(3, 3), (90, 199)], &[60]),
            node("a", 1, &[(0, 2), (4, 89)], &[]),
        ]);
        let still: Vec<u16> = (0..SLOTS).filter(|slot| before.stood_still(&after, Slot(*slot))).collect();
        // Not 3, which moved; nor 50 and 60, which were on the move; nor 90 to 99, which two claimed; nor those of c.
        let wanted = (0..90).filter(|slot| ![3, 50, 60].contains(slot)).chain(100..200);
        assert_eq!(still, wanted.collect::<Vec<u16>>());
        assert_eq!(before.ids_of([Slot(1), Slot(95), Slot(150), Slot(250)].into_iter()), ["a", "b"]);
    }
}
