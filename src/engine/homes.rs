//! How far each node of a cluster is known to be: positions kept at every node, beside the checkpoint.
//!
//! The checkpoint lies at one node, so it cannot tell that another one came back with older data, or that a replica which took
//! over lacks what its primary had acknowledged. Hence each worker writes the positions of its flows to every node, into keys of
//! some of the slots of that node (its homes): a node that has lost its last moments has lost its last positions too, for
//! what a server keeps is always what it had at some moment.
//!
//! In: the lane of each slot, positions that are confirmed on all lanes. Out: what to write where; after a restart, the position from
//! which nothing is missing at any node, and the nodes of which nothing is proven. Invariants: a position is written only when
//! everything before it was executed at all nodes; the checkpoint names homes only once they are written, so one that is missing
//! tells of a loss.
//!
//! What a home proves is its own slot, and with it the slots that were at the same node whenever that lost something. So it is the
//! oldest named home that counts, whichever node has it now: one that came from another node behind a loss proves nothing of its new
//! node. A node that has none of them any more (all were moved away while the tool was not there) is proven by being the same process
//! as when the checkpoint was written. Where it is another one nothing goes on; of a node that the checkpoint does not know (it
//! joined, or took over) it is told. What is left: a node that gave all its homes away, then lost something, and then was given the
//! home of another node, all of it while the tool was not there. And keys that came to a node with their slot, if the node then goes back
//! to a state from before they came (an older dump, or a replica that lagged behind the move): its homes say how far the journal is
//! applied there, not what was moved there since, so of these keys only those are good that the journal names again. Who moved
//! the slot has deleted them. A position proves what its node has executed, as long as slots stay; the next save behind a move ends it.

use super::checkpoint::Checkpoint;
use super::error::EngineError;
use super::router::parse_marker;
use crate::ids::{FlowId, Lsn, Slot};
use crate::redis::slot::SLOTS;
use smallvec::SmallVec;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Homes of a node: several, for slots move away.
const HOMES: usize = 4;
/// Field of the checkpoint that names the homes of a worker, by its first flow.
pub const FIELD_PREFIX: &str = "homes:";

/// By lane: some of its slots, spread over all of them. Not the first and the last one, with which a resharding begins, nor those
/// that are `avoided`, where there are others: what a slot that is on the move refuses holds the worker.
pub fn choose(lanes: impl Iterator<Item = usize>, avoided: &HashSet<Slot>) -> Vec<SmallVec<[Slot; HOMES]>> {
    let mut slots: Vec<Vec<Slot>> = Vec::new();
    for (slot, lane) in (0..SLOTS).map(Slot).zip(lanes) {
        if slots.len() <= lane {
            slots.resize(lane + 1, Vec::new());
        }
        if let Some(of) = slots.get_mut(lane) {
            of.push(slot);
        }
    }
    let spread = |of: Vec<Slot>| {
        let inner = match of.as_slice() {
            [_, inner @ .., _] if !inner.is_empty() => inner,
            all => all,
        };
        let settled: Vec<Slot> = inner.iter().filter(|slot| !avoided.contains(slot)).copied().collect();
        let of = if settled.is_empty() { inner } else { &settled };
        // The middle of each of as many parts.
        let mut homes: SmallVec<[Slot; HOMES]> =
            (0..HOMES).filter_map(|nth| of.get(of.len() * (2 * nth + 1) / (2 * HOMES)).copied()).collect();
        homes.dedup();
        homes
    };
    slots.into_iter().map(spread).collect()
}

/// Homes as the checkpoint names them, and the flows whose positions are there.
pub fn to_text(homes: &[SmallVec<[Slot; HOMES]>], flows: impl Iterator<Item = FlowId>) -> String {
    let joined = |words: Vec<String>| words.join(",");
    let slots = homes.iter().flatten().map(|slot| slot.to_string()).collect();
    format!("{}:{}", joined(slots), joined(flows.map(|flow| flow.to_string()).collect()))
}

/// Homes that a worker had, and its flows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub flows: Vec<FlowId>,
    pub slots: Vec<Slot>,
}

/// A field of the checkpoint, if it names homes.
pub fn parse(field: &[u8], value: &[u8]) -> Option<Named> {
    let flow = std::str::from_utf8(field).ok()?.strip_prefix(FIELD_PREFIX)?.parse().ok()?;
    let (slots, flows) = std::str::from_utf8(value).ok()?.split_once(':')?;
    let numbers = |text: &str| text.split(',').filter_map(|number| number.parse().ok()).collect::<Vec<u32>>();
    let slots = numbers(slots).into_iter().filter_map(|slot| u16::try_from(slot).ok()).filter(|slot| *slot < SLOTS);
    let mut named = Named { flows: numbers(flows).into_iter().map(FlowId).collect(), slots: slots.map(Slot).collect() };
    if !named.flows.contains(&FlowId(flow)) {
        named.flows.push(FlowId(flow));
    }
    Some(named)
}

/// Field of the checkpoint that names the processes of the primaries: `<id>=<run id>,...`
pub const NODES_FIELD: &str = "nodes";

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
        let by_flow = self.counting(checkpoint).map_err(|slot| missing(slot, node_of(slot)))?;
        // Of a flow whose homes are not named yet each node's newest position counts. Not of another one: where homes were chosen anew
        // the old ones stay as they were, and may come to a node with their slot.
        let mut by_node: BTreeMap<(String, FlowId), Lsn> = BTreeMap::new();
        for ((flow, slot), lsn) in self.positions.iter().filter(|((flow, _), _)| !by_flow.contains_key(flow)) {
            let newest = by_node.entry((node_of(*slot).unwrap_or_default(), *flow)).or_insert(*lsn);
            *newest = (*newest).max(*lsn);
        }
        let mut proven = checkpoint.lsns.clone();
        let by_home = by_flow.into_iter().map(|(flow, (lsn, _))| (String::from("its home"), flow, lsn));
        for (node, flow, lsn) in by_node.into_iter().map(|((node, flow), lsn)| (node, flow, lsn)).chain(by_home) {
            if let Some(position) = proven.get_mut(flow.0 as usize).filter(|position| **position > lsn) {
                let behind = position.0 - lsn.0;
                tracing::debug!(%node, %flow, behind, "a node holds an earlier position than the checkpoint");
                *position = lsn;
            }
        }
        Ok(proven)
    }

    /// Of these nodes, which have slots, those that have none of the homes that count: by whether they are known to be the process
    /// that they were.
    pub fn without_home(
        &self,
        checkpoint: &Checkpoint,
        nodes: &[(String, String)],
        node_of: impl Fn(Slot) -> Option<String>,
    ) -> Result<WithoutHome, EngineError> {
        let by_flow = self.counting(checkpoint).map_err(|slot| missing(slot, node_of(slot)))?;
        let mut without = WithoutHome::default();
        let has: HashSet<String> =
            by_flow.values().flat_map(|(_, slots)| slots.iter()).filter_map(|slot| node_of(*slot)).collect();
        // Nothing is named in the first moments of the journal.
        if has.is_empty() {
            return Ok(without);
        }
        for (id, run_id) in nodes.iter().filter(|(id, _)| !has.contains(id)) {
            match checkpoint.nodes.iter().find(|(known, _)| known == id) {
                Some((_, known)) if known == run_id => {}
                Some(_) => without.restarted.push(id.clone()),
                None => without.unknown.push(id.clone()),
            }
        }
        Ok(without)
    }

    /// By flow: its homes, and the oldest position there. Those that an earlier session named, with other workers, are older than all
    /// others, and do not count. The error: a home without a position.
    fn counting<'a>(&self, checkpoint: &'a Checkpoint) -> Result<BTreeMap<FlowId, (Lsn, &'a [Slot])>, Slot> {
        let mut by_flow: BTreeMap<FlowId, (Lsn, &[Slot])> = BTreeMap::new();
        for Named { flows, slots } in &checkpoint.homes {
            for flow in flows {
                let mut oldest = None;
                for slot in slots {
                    let lsn = *self.positions.get(&(*flow, *slot)).ok_or(*slot)?;
                    oldest = Some(oldest.map_or(lsn, |oldest: Lsn| oldest.min(lsn)));
                }
                if let Some(oldest) = oldest
                    && by_flow.get(flow).is_none_or(|(newest, _)| *newest < oldest)
                {
                    by_flow.insert(*flow, (oldest, slots));
                }
            }
        }
        Ok(by_flow)
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct WithoutHome {
    pub restarted: Vec<String>,
    pub unknown: Vec<String>,
}

fn missing(slot: Slot, node: Option<String>) -> EngineError {
    EngineError::LostPosition(format!(
        "node {} of the cluster has slot {slot}, but not the position that was kept there (df2redis:p:...): it lost its data, and only a \
         full sync brings it back (--on-lost-position resync, which empties the target, or a new run with --on-existing flush)",
        node.unwrap_or_else(|| "?".into())
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(homes: Vec<Named>) -> Checkpoint {
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
            nodes: vec![("a".into(), "1".into()), ("b".into(), "2".into()), ("c".into(), "3".into())],
            flushing: false,
        }
    }

    #[test]
    fn homes_are_spread_and_read_back() {
        let lanes = || (0..SLOTS).map(|slot| usize::from(slot >= 10) + usize::from(slot >= 11));
        let homes = choose(lanes(), &HashSet::new());
        let text = |homes: &[_]| to_text(homes, [FlowId(7), FlowId(9)].into_iter());
        let texts = |homes: &[_]| homes.iter().map(|of| text(std::slice::from_ref(of))).collect::<Vec<String>>();
        assert_eq!(texts(&homes), ["2,4,6,8:7,9", "10:7,9", "2058,6151,10243,14336:7,9"]);
        // Neither where a slot is on the move, unless there is no other.
        let avoided = [4, 5, 6, 10].into_iter().chain(12..SLOTS - 1).map(Slot).collect();
        assert_eq!(texts(&choose(lanes(), &avoided)), ["1,2,7,8:7,9", "10:7,9", "2058,6151,10243,14336:7,9"]);
        let named = parse(b"homes:7", text(&homes).as_bytes()).unwrap();
        assert_eq!((named.flows.as_slice(), named.slots.len()), (&[FlowId(7), FlowId(9)][..], 9));
        let named = Named { flows: vec![FlowId(4), FlowId(0)], slots: vec![Slot(5)] };
        assert_eq!(parse(b"homes:0", b"20000,x,5:4"), Some(named));
        assert!(parse(b"lsn:0", b"5:0").is_none() && parse(b"homes:x", b"5:0").is_none());
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
        let known = vec![Named { flows: vec![FlowId(0)], slots: vec![Slot(1), Slot(200)] }];
        assert_eq!(found.proven(&checkpoint(known.clone()), node_of).unwrap(), [Lsn(90), Lsn(50)]);
        let mut lost = Found::default();
        add(&mut lost, 0, 1, "j:100");
        let error = lost.proven(&checkpoint(known), node_of).unwrap_err();
        assert!(matches!(error, EngineError::LostPosition(_)) && error.to_string().contains("node b"), "{error}");
    }

    /// Node b came back with an older dump, and was given a home of a, and its slot, only then.
    #[test]
    fn a_home_that_came_from_elsewhere_proves_nothing() {
        let node_of = |slot: Slot| Some(if slot.0 < 50 { "a".to_string() } else { "b".to_string() });
        let mut found = Found::default();
        for (flow, slot, lsn) in
            [(0, 1, 100), (0, 99, 100), (0, 200, 70), (1, 1, 50), (1, 99, 50), (1, 200, 40), (1, 300, 3)]
        {
            found.add(FlowId(flow), Slot(slot), "j", format!("j:{lsn}").as_bytes());
        }
        let named = |flows: &[u32], slots: &[u16]| Named {
            flows: flows.iter().copied().map(FlowId).collect(),
            slots: slots.iter().copied().map(Slot).collect(),
        };
        // The second one is left of a session with two workers.
        let homes = vec![named(&[0, 1], &[1, 99, 200]), named(&[1], &[300])];
        assert_eq!(found.proven(&checkpoint(homes), node_of).unwrap(), [Lsn(70), Lsn(40)]);
    }

    #[test]
    fn a_node_without_a_home_is_proven_by_its_process() {
        let node_of = |slot: Slot| Some(if slot.0 < 100 { "a".to_string() } else { "c".to_string() });
        let named = |flows: &[u32], slots: &[u16]| Named {
            flows: flows.iter().copied().map(FlowId).collect(),
            slots: slots.iter().copied().map(Slot).collect(),
        };
        // The second one is left of a session with two workers.
        let checkpoint = checkpoint(vec![named(&[0, 1], &[1, 2]), named(&[1], &[300])]);
        let mut found = Found::default();
        for (flow, slot, lsn) in [(0, 1, 100), (0, 2, 100), (1, 1, 50), (1, 2, 50), (1, 300, 3)] {
            found.add(FlowId(flow), Slot(slot), "j", format!("j:{lsn}").as_bytes());
        }
        let nodes = [("a", "9"), ("b", "2"), ("c", "4"), ("d", "5")].map(|(id, run)| (id.to_string(), run.to_string()));
        let without = found.without_home(&checkpoint, &nodes, node_of).unwrap();
        assert_eq!(without, WithoutHome { restarted: vec!["c".into()], unknown: vec!["d".into()] });
        let nothing = Checkpoint { homes: Vec::new(), ..checkpoint };
        assert_eq!(found.without_home(&nothing, &nodes, node_of).unwrap(), WithoutHome::default());
    }

    /// A slot that was a home until homes were chosen anew was given to node c while the tool was away.
    #[test]
    fn a_position_that_is_written_no_more_proves_nothing() {
        let node_of =
            |slot: Slot| Some(["a", "b", "c"][usize::from(slot.0 / 100).saturating_sub(1).min(2)].to_string());
        let mut found = Found::default();
        for (slot, lsn) in [(1, 100), (200, 100), (300, 7)] {
            found.add(FlowId(0), Slot(slot), "j", format!("j:{lsn}").as_bytes());
        }
        let known = vec![Named { flows: vec![FlowId(0)], slots: vec![Slot(1), Slot(200)] }];
        let checkpoint = checkpoint(known);
        assert_eq!(found.proven(&checkpoint, node_of).unwrap(), [Lsn(100), Lsn(50)]);
        let nodes = |run: &str| [("a", "1"), ("b", "2"), ("c", run)].map(|(id, run)| (id.to_string(), run.to_string()));
        let without = |run: &str| found.without_home(&checkpoint, &nodes(run), node_of).unwrap();
        assert_eq!(without("3"), WithoutHome::default());
        assert_eq!(without("4").restarted, ["c"]);
    }
}
