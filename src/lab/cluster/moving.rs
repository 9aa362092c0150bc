//! Slots that move from node to node, as `redis-cli --cluster reshard` moves them.
//!
//! In: slots, places of nodes. Out: the slots and their keys are there. A resharding moves several slots at once between the same
//! two nodes: one slot is many round trips, of which a busy machine makes few a second.

use super::{Cluster, insist, peer_port};
use crate::lab::LabError;
use crate::lab::client::{Client, Reply};
use std::time::Duration;

/// Slots in a row out of which slots go to one node, before the next node takes some.
const TURN_SLOTS: usize = 2048;
/// Of these so many move at once.
const MOVERS: usize = 8;
/// Keys of one MIGRATE.
const MIGRATE_KEYS: &str = "64";
/// The same where a slot is moved slowly.
const MIGRATE_KEYS_SLOWLY: &str = "1";

/// Moves slots from one node to another.
struct Mover<'a> {
    cluster: &'a Cluster,
    from: usize,
    to: usize,
    source: Client,
    target: Client,
}

impl<'a> Mover<'a> {
    fn new(cluster: &'a Cluster, from: usize, to: usize) -> Result<Self, LabError> {
        Ok(Self { cluster, from, to, source: cluster.nodes[from].client()?, target: cluster.nodes[to].client()? })
    }

    fn move_slot(&mut self, slot: u16, keys_at_once: &str, pause: Duration) -> Result<(), LabError> {
        self.move_keys(slot, keys_at_once, pause)?;
        let to = self.cluster.id(self.to);
        for node in [&mut self.target, &mut self.source] {
            std::thread::sleep(pause);
            insist(node, &["CLUSTER", "SETSLOT", &slot.to_string(), "NODE", to])?;
        }
        Ok(())
    }

    fn move_keys(&mut self, slot: u16, keys_at_once: &str, pause: Duration) -> Result<(), LabError> {
        let (slot, from, to) = (slot.to_string(), self.cluster.id(self.from), self.cluster.id(self.to));
        insist(&mut self.target, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", from])?;
        insist(&mut self.source, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", to])?;
        let port = peer_port(&self.cluster.nodes[self.to]).to_string();
        loop {
            std::thread::sleep(pause);
            let keys = self.source.run(&format!("CLUSTER GETKEYSINSLOT {slot} {keys_at_once}"))?;
            let keys: Vec<&[u8]> = keys.array().unwrap_or_default().iter().filter_map(Reply::bytes).collect();
            if keys.is_empty() {
                return Ok(());
            }
            let mut args: Vec<&[u8]> = vec![b"MIGRATE", b"127.0.0.1", port.as_bytes(), b"", b"0", b"10000", b"KEYS"];
            args.extend(keys);
            insist(&mut self.source, &args)?;
        }
    }
}

impl Cluster {
    /// Moves one slot with all its keys from one primary to another.
    pub fn move_slot(&self, slot: u16, from: usize, to: usize) -> Result<(), LabError> {
        Mover::new(self, from, to)?.move_slot(slot, MIGRATE_KEYS, Duration::ZERO)
    }

    /// Moves it key by key, with a pause behind each step: for that time it is half here and half there.
    pub fn move_slot_slowly(&self, slot: u16, from: usize, to: usize, pause: Duration) -> Result<(), LabError> {
        Mover::new(self, from, to)?.move_slot(slot, MIGRATE_KEYS_SLOWLY, pause)
    }

    /// Begins to move a slot: all its keys are at the other node, and it is not that one's yet.
    pub fn half_move_slot(&self, slot: u16, from: usize, to: usize) -> Result<(), LabError> {
        Mover::new(self, from, to)?.move_keys(slot, MIGRATE_KEYS, Duration::ZERO)
    }

    /// Moves every `step`-th slot of every primary to the next one. How many slots that were.
    pub fn reshard(&self, step: usize) -> Result<usize, LabError> {
        let primaries = self.primaries();
        let owned = primaries.iter().map(|node| self.slots_of(*node)).collect::<Result<Vec<_>, _>>()?;
        let owned: Vec<Vec<u16>> = owned.into_iter().map(|slots| slots.into_iter().step_by(step).collect()).collect();
        let turns = owned.iter().map(|slots| slots.len().div_ceil(TURN_SLOTS)).max().unwrap_or(0);
        // In turns, so that no node is ever without slots: it would become a replica.
        for turn in 0..turns {
            for (at, slots) in owned.iter().enumerate() {
                if let Some(slots) = slots.chunks(TURN_SLOTS).nth(turn) {
                    self.wait_agreed()?;
                    self.move_slots(slots, primaries[at], primaries[(at + 1) % primaries.len()])?;
                }
            }
        }
        Ok(owned.iter().map(Vec::len).sum())
    }

    /// What a primary says that it owns.
    fn slots_of(&self, node: usize) -> Result<Vec<u16>, LabError> {
        let view = self.nodes[node].client()?.run("CLUSTER NODES")?.text().unwrap_or_default();
        let own = view.lines().find(|line| line.contains("myself")).unwrap_or_default();
        // Of slots that are being moved it says more, in brackets.
        let ranges = own.split(' ').skip(8).filter(|word| !word.starts_with('['));
        let range = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            first.parse::<u16>().ok().zip(last.parse::<u16>().ok()).map(|(first, last)| first..=last)
        };
        Ok(ranges.filter_map(range).flatten().collect())
    }

    fn move_slots(&self, slots: &[u16], from: usize, to: usize) -> Result<(), LabError> {
        // The first one gives the node that takes them its new epoch.
        self.move_slot(slots[0], from, to)?;
        let move_some = |slots: &[u16]| {
            let mut mover = Mover::new(self, from, to)?;
            slots.iter().try_for_each(|slot| mover.move_slot(*slot, MIGRATE_KEYS, Duration::ZERO))
        };
        std::thread::scope(|scope| {
            let parts = slots[1..].chunks(slots.len().div_ceil(MOVERS));
            let movers: Vec<_> = parts.map(|part| scope.spawn(move || move_some(part))).collect();
            movers.into_iter().try_for_each(|mover| match mover.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
    }
}
