//! How far each node of a cluster is known to be: positions kept at every node, beside the checkpoint.
//!
//! The checkpoint lies at one node, so it cannot tell that another one came back with older data, or that a replica which took
//! over lacks what its primary had acknowledged. Hence each worker writes the positions of its flows to every node, into keys of
//! some of the slots of that node (its homes): a node that has lost its last moments has lost its last positions too, for
//! what a server keeps is always what it had at some moment.
//!
//! In: the lane of each slot, positions that are confirmed on all lanes. Out: what to write where; after a restart, the position from
//! which nothing is missing at any node. Invariants: a position is written only when everything before it was executed at all
//! nodes, so the largest one found at a node is true of that node, also where its key came from another node with its
//! slot; the checkpoint names homes only once they are written, so one that is missing tells of a loss.

use super::checkpoint::Checkpoint;
use super::error::EngineError;
use super::router::parse_marker;
use crate::ids::{FlowId, Lsn, Slot};
use crate::redis::slot::SLOTS;
use smallvec::SmallVec;
use std::collections::{BTreeMap, HashMap};

/// Homes of a node: several, for slots move away.
const HOMES: usize = 4;
/// Field of the checkpoint that names the homes of a worker, by its first flow.
pub const FIELD_PREFIX: &str = "homes:";

/// By lane: some of its slots, spread over all of them.
pub fn choose(lanes: impl Iterator<Item = usize>) -> Vec<SmallVec<[Slot; HOMES]>> {
    let mut slots: Vec<Vec<Slot>> = Vec::new();
    for (slot, lane) in (0..SLOTS).map(Slot).zip(lanes) {
        if slots.len() <= lane {
            slots.resize(lane + 1, Vec::new());
        }
        if let Some(of) = slots.get_mut(lane) {
            of.push(slot);
        }
    }
    let spread = |of: &Vec<Slot>| {
        let mut homes: SmallVec<[Slot; HOMES]> =
            (0..HOMES).filter_map(|nth| of.get(of.len().saturating_sub(1) * nth / (HOMES - 1)).copied()).collect();
        homes.dedup();
        homes
    };
    slots.iter().map(spread).collect()
}

/// Homes as the checkpoint names them.
pub fn to_text(homes: &[SmallVec<[Slot; HOMES]>]) -> String {
    homes.iter().flatten().map(|slot| slot.to_string()).collect::<Vec<_>>().join(",")
}

/// A field of the checkpoint, if it names homes.
pub fn parse(field: &[u8], value: &[u8]) -> Option<(FlowId, Vec<Slot>)> {
    let flow = std::str::from_utf8(field).ok()?.strip_prefix(FIELD_PREFIX)?.parse().ok()?;
    let slots = std::str::from_utf8(value).ok()?.split(',');
    Some((FlowId(flow), slots.filter_map(|text| text.parse().ok()).filter(|slot| *slot < SLOTS).map(Slot).collect()))
}

/// What the nodes hold of a job's positions.
#[derive(Default)]
pub struct Found {
    /// By flow and slot.
    positions: HashMap<(FlowId, Slot), Lsn>,
}

impl Found {
    /// The value of a key of this flow and slot.
    pub fn add(&mut self, flow: FlowId, slot: Slot, tag: &str, value: &[u8]) {
        if let Some((found, lsn)) = parse_marker(value)
            && found == tag
        {
            self.positions.insert((flow, slot), Lsn(lsn));
        }
    }

    /// Where to write, and to delete at the end.
    pub fn places(&self) -> impl Iterator<Item = (FlowId, Slot)> {
        self.positions.keys().copied()
    }

    /// The positions up to which no node lacks anything, at most those of the checkpoint. `node_of`: who has a slot.
    pub fn proven(
        &self,
        checkpoint: &Checkpoint,
        node_of: impl Fn(Slot) -> Option<String>,
    ) -> Result<Vec<Lsn>, EngineError> {
        let homes = checkpoint.homes.iter().flat_map(|(flow, slots)| slots.iter().map(|slot| (*flow, *slot)));
        for place in homes {
            if !self.positions.contains_key(&place) {
                return Err(EngineError::LostPosition(format!(
                    "node {} of the cluster has slot {}, but not the position that was kept there (df2redis:p:...): it lost its \
                     data, and only a full sync brings it back (--on-lost-position resync, which empties the target, or a new run with \
                     --on-existing flush)",
                    node_of(place.1).unwrap_or_else(|| "?".into()),
                    place.1
                )));
            }
        }
        let mut by_node: BTreeMap<(String, FlowId), Lsn> = BTreeMap::new();
        for ((flow, slot), lsn) in &self.positions {
            let newest = by_node.entry((node_of(*slot).unwrap_or_default(), *flow)).or_insert(*lsn);
            *newest = (*newest).max(*lsn);
        }
        let mut proven = checkpoint.lsns.clone();
        for ((node, flow), lsn) in by_node {
            if let Some(position) = proven.get_mut(flow.0 as usize).filter(|position| **position > lsn) {
                let behind = position.0 - lsn.0;
                tracing::debug!(%node, %flow, behind, "a node holds an earlier position than the checkpoint");
                *position = lsn;
            }
        }
        Ok(proven)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(homes: Vec<(FlowId, Vec<Slot>)>) -> Checkpoint {
        Checkpoint {
            key: String::new(),
            master_id: "m".into(),
            flows: 2,
            stable: true,
            owned: true,
            held: false,
            lsns: vec![Lsn(100), Lsn(50)],
            scope: String::new(),
            lost: Vec::new(),
            homes,
            flushing: false,
        }
    }

    #[test]
    fn homes_are_spread_and_read_back() {
        let homes = choose((0..SLOTS).map(|slot| usize::from(slot >= 10) + usize::from(slot >= 11)));
        let texts: Vec<String> = homes.iter().map(|of| to_text(std::slice::from_ref(of))).collect();
        assert_eq!(texts, ["0,3,6,9", "10", "11,5468,10925,16383"]);
        let all = to_text(&homes);
        let (flow, slots) = parse(b"homes:7", all.as_bytes()).unwrap();
        assert_eq!((flow, slots.len()), (FlowId(7), 9));
        assert_eq!(parse(b"homes:0", b"20000,x,5"), Some((FlowId(0), vec![Slot(5)])));
        assert!(parse(b"lsn:0", b"5").is_none() && parse(b"homes:x", b"5").is_none());
    }

    #[test]
    fn the_node_that_is_furthest_back_counts() {
        let node_of = |slot: Slot| Some(if slot.0 < 100 { "a".to_string() } else { "b".to_string() });
        let mut found = Found::default();
        let add = |found: &mut Found, flow, slot, text: &str| found.add(FlowId(flow), Slot(slot), "j", text.as_bytes());
        assert_eq!(found.proven(&checkpoint(Vec::new()), node_of).unwrap(), [Lsn(100), Lsn(50)]);
        // An old position that came with its slot says nothing where a newer one stands beside it.
        for (flow, slot, text) in [(0, 1, "j:100"), (0, 2, "j:7"), (0, 200, "j:90"), (1, 1, "j:60"), (1, 200, "j:50")] {
            add(&mut found, flow, slot, text);
        }
        add(&mut found, 1, 300, "other:3");
        assert_eq!(found.proven(&checkpoint(Vec::new()), node_of).unwrap(), [Lsn(90), Lsn(50)]);
        let known = vec![(FlowId(0), vec![Slot(1), Slot(200)])];
        assert_eq!(found.proven(&checkpoint(known.clone()), node_of).unwrap(), [Lsn(90), Lsn(50)]);
        let mut lost = Found::default();
        add(&mut lost, 0, 1, "j:100");
        let error = lost.proven(&checkpoint(known), node_of).unwrap_err();
        assert!(matches!(error, EngineError::LostPosition(_)) && error.to_string().contains("node b"), "{error}");
    }
}
