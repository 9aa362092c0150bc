//! Slots that move from node to node, as `redis-cli --cluster reshard` moves them.
//!
//! In: slots, places of nodes. Out: the slots and their keys are there. A resharding moves several slots at once between the same
//! two nodes: one slot is many round trips, of which a busy machine makes few a second.

use super::{Cluster, READY_TIME_MAX, insist, insist_for, peer_port};
use crate::lab::LabError;
use crate::lab::client::{Client, Reply};
use std::time::{Duration, Instant};

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
    /// So long a node that cannot is asked again.
    patience: Duration,
    /// What a MIGRATE that failed has left at the other end is written over.
    replaces: bool,
}

impl<'a> Mover<'a> {
    fn new(cluster: &'a Cluster, from: usize, to: usize) -> Result<Self, LabError> {
        let (source, target) = (cluster.nodes[from].client()?, cluster.nodes[to].client()?);
        Ok(Self { cluster, from, to, source, target, patience: READY_TIME_MAX, replaces: false })
    }

    fn move_slot(&mut self, slot: u16, keys_at_once: &str, pause: Duration) -> Result<(), LabError> {
        self.move_keys(slot, keys_at_once, pause)?;
        let to = self.cluster.id(self.to);
        for node in [&mut self.target, &mut self.source] {
            std::thread::sleep(pause);
            insist_for(node, &["CLUSTER", "SETSLOT", &slot.to_string(), "NODE", to], self.patience)?;
        }
        Ok(())
    }

    fn open(&mut self, slot: u16) -> Result<(), LabError> {
        let (slot, from, to) = (slot.to_string(), self.cluster.id(self.from), self.cluster.id(self.to));
        insist_for(&mut self.target, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", from], self.patience)?;
        insist_for(&mut self.source, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", to], self.patience)
    }

    fn move_keys(&mut self, slot: u16, keys_at_once: &str, pause: Duration) -> Result<(), LabError> {
        self.open(slot)?;
        let to = &self.cluster.nodes[self.to];
        let (host, port) = (to.host().as_bytes(), peer_port(to).to_string());
        loop {
            std::thread::sleep(pause);
            let keys = self.source.run(&format!("CLUSTER GETKEYSINSLOT {slot} {keys_at_once}"))?;
            let keys: Vec<&[u8]> = keys.array().unwrap_or_default().iter().filter_map(Reply::bytes).collect();
            if keys.is_empty() {
                return Ok(());
            }
            let mut args: Vec<&[u8]> = vec![b"MIGRATE", host, port.as_bytes(), b"", b"0", b"10000"];
            args.extend(self.replaces.then_some(b"REPLACE".as_slice()));
            args.push(b"KEYS");
            args.extend(keys);
            insist_for(&mut self.source, &args, self.patience)?;
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

    /// The same where the replica of the node that takes the slot may take over meanwhile: then that one takes it, which is told so
    /// anew, for it may know of no move.
    pub fn move_slot_surely(&self, slot: u16, from: usize, to: usize, pause: Duration) -> Result<(), LabError> {
        const PATIENCE: Duration = Duration::from_millis(300);
        let until = Instant::now() + READY_TIME_MAX;
        loop {
            let heir = self.primaries().into_iter().find(|node| self.shard_of(*node) == self.shard_of(to));
            let moved = heir.map_or(Ok(false), |to| {
                let mover = Mover::new(self, from, to)?;
                let mut mover = Mover { patience: PATIENCE, replaces: true, ..mover };
                if self.slots_of(to)?.contains(&slot) {
                    let end = ["CLUSTER", "SETSLOT", &slot.to_string(), "NODE", self.id(to)];
                    return insist_for(&mut mover.source, &end, PATIENCE).map(|()| true);
                }
                mover.move_slot(slot, MIGRATE_KEYS_SLOWLY, pause).map(|()| true)
            });
            match moved {
                Ok(true) => return Ok(()),
                Err(error) if Instant::now() > until => return Err(error),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Begins to move a slot: all its keys are at the other node, and it is not that one's yet.
    pub fn half_move_slot(&self, slot: u16, from: usize, to: usize) -> Result<(), LabError> {
        Mover::new(self, from, to)?.move_keys(slot, MIGRATE_KEYS, Duration::ZERO)
    }

    /// Begins to move a slot: only these of its keys are at the other node.
    pub fn half_move_key(&self, slot: u16, from: usize, to: usize, keys: &[&str]) -> Result<(), LabError> {
        let mut mover = Mover::new(self, from, to)?;
        mover.open(slot)?;
        let (host, port) = (self.nodes[to].host(), peer_port(&self.nodes[to]).to_string());
        let args = ["MIGRATE", host, &port, "", "0", "10000", "KEYS"];
        insist(&mut mover.source, &[&args, keys].concat())
    }

    /// Moves a run of slots with all their keys at once (Valkey 9: `CLUSTER MIGRATESLOTS`), and waits until it is done.
    pub fn move_atomically(&self, slots: (u16, u16), from: usize, to: usize) -> Result<(), LabError> {
        let until = Instant::now() + READY_TIME_MAX;
        loop {
            self.begin_atomic_move(slots, from, to)?;
            let state = loop {
                let state = self.atomic_move_state(from)?;
                if ["success", "failed", "cancelled"].contains(&state.as_str()) || Instant::now() > until {
                    break state;
                }
                std::thread::sleep(Duration::from_millis(5));
            };
            match state.as_str() {
                "success" => return Ok(()),
                // A busy machine: it is begun anew, as an operator would.
                "failed" if Instant::now() < until => {}
                state => {
                    let peer = self.nodes[from].address().to_string();
                    return Err(LabError::Reply { peer, reason: format!("an atomic move of slots ended as {state}") });
                }
            }
        }
    }

    pub fn begin_atomic_move(&self, (first, last): (u16, u16), from: usize, to: usize) -> Result<(), LabError> {
        let (first, last) = (first.to_string(), last.to_string());
        let args = ["CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", &first, &last, "NODE", self.id(to)];
        insist(&mut self.nodes[from].client()?, &args)
    }

    /// What a node says of the atomic move that was begun last.
    pub fn atomic_move_state(&self, node: usize) -> Result<String, LabError> {
        let moves = self.nodes[node].client()?.run("CLUSTER GETSLOTMIGRATIONS")?;
        let text = |reply: &Reply| reply.bytes().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let last = moves.array().unwrap_or_default().first().and_then(Reply::array).unwrap_or_default();
        let state = last.chunks(2).find(|pair| pair.first().and_then(text).as_deref() == Some("state"));
        Ok(state.and_then(|pair| text(pair.get(1)?)).unwrap_or_default())
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
