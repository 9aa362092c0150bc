//! Who has which slot: learnt from one node, asked of all anew, waited for where a slot has nobody.
//!
//! In: `CLUSTER SHARDS`, `SLOTS` and `INFO` of nodes. Out: the topology, its nodes remembered for a later session. Invariants: the
//! most complete view with the latest epoch counts, and none from before the one that counted unless most primaries share it; a
//! replica that took over ends a session that follows the journal.

use super::{Cluster, Ended, NODE_TIMEOUT, Shared, Trouble};
use crate::engine::error::EngineError;
use crate::engine::patience::Patience;
use crate::engine::settings::{Endpoint, MigrateSettings};
use crate::engine::target::TargetLink;
use crate::ids::Slot;
use crate::redis::info::Info;
use crate::redis::resp;
use crate::redis::topology::{Address, NatMap, Node, Role, Topology};
use crate::redis::value::Value;
use crate::uring::clock::monotonic_ns;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// So long a slot that nobody has is waited for before the start. A replica takes over within seconds of the vote that its
/// primary failed; a cluster that was never complete is told to the operator soon.
const UNCOVERED_MAX: Duration = Duration::from_secs(10);
/// A replica that did not answer is asked again behind this.
const SILENT_NS: u64 = 30_000_000_000;

impl Cluster {
    /// Learns the cluster from the node behind `link`. A slot that nobody has (a replica is about to take over) is waited for:
    /// before the start a moment, later as long as anything else.
    pub async fn discover(
        settings: &Arc<MigrateSettings>,
        link: &mut TargetLink,
        patience: Duration,
    ) -> Result<Self, EngineError> {
        let seed = Address::new(settings.target.host.clone(), settings.target.port);
        let nat = settings.target_nat.clone();
        let topology = view(link, &seed, &nat, settings.target.tls.is_some()).await?;
        let mut this = Self {
            settings: settings.clone(),
            patience,
            nat,
            seed,
            shared: Shared::new(&topology),
            topology,
            silent: HashMap::new(),
            links: HashMap::new(),
            client_ids: HashMap::new(),
            run_ids: HashMap::new(),
            lost_clients: HashMap::new(),
            seen_run_ids: HashMap::new(),
            of_session: false,
            replicas: None,
            ends_on_takeover: Arc::default(),
            topology_number: 0,
            assigned: HashMap::new(),
        };
        if let Some((one, other)) = this.topology.indistinct() {
            return Err(EngineError::Refused(format!(
                "the target cluster's nodes {} and {} would both be reached at {}, which can be only one of them: say with --target-nat \
                 FROM=TO, ports included, where each of them is",
                one.announced(),
                other.announced(),
                one.address
            )));
        }
        let is_whole = this.topology.uncovered().is_empty();
        if remembered(settings).is_empty() {
            if !is_whole {
                this.wait_until_whole().await?;
            }
        } else if !is_whole || !is_known(settings, &this.topology) {
            this.refresh_patiently().await?;
        }
        remember(settings, &this.topology);
        Ok(this)
    }

    /// Every slot gets a node, or nothing may begin.
    async fn wait_until_whole(&mut self) -> Result<(), EngineError> {
        let limit = self.patience.min(UNCOVERED_MAX);
        let uncovered = ranges(&self.topology.uncovered());
        tracing::warn!(%uncovered, ?limit, "the target cluster does not serve all slots: waiting for a node that does");
        let waited = self.refresh_within(Patience::new(limit)).await;
        match self.topology.uncovered().as_slice() {
            [] => waited,
            uncovered => Err(EngineError::Refused(format!(
                "the target cluster does not serve all slots (nobody has {}); every slot must have a node before the start",
                ranges(uncovered)
            ))),
        }
    }

    /// Asks the nodes anew who has which slot: the most complete answer with the latest epoch counts.
    pub async fn refresh(&mut self) -> Result<(), Trouble> {
        self.refresh_by(None).await
    }

    /// The same, and of equal answers that of node `first`.
    pub(super) async fn refresh_by(&mut self, first: Option<&str>) -> Result<(), Trouble> {
        let shared = self.shared.clone();
        let _alone = shared.refreshing.lock().await;
        self.catch_up();
        let mut ids = self.primary_ids();
        if let Some(first) = first {
            ids.retain(|id| id != first);
            ids.insert(0, first.to_string());
        }
        let others = self.topology.nodes().iter().map(|node| node.id.clone()).filter(|id| !ids.contains(id));
        let others: Vec<String> = others.collect();
        let mut views: Vec<Topology> = Vec::new();
        let mut restarted = None;
        let settings = self.settings.clone();
        let floor = self.topology.epoch;
        let is_whole = |views: &[Topology]| views.iter().any(|view| view.uncovered().is_empty() && view.epoch >= floor);
        let (primaries, mut late) = (ids.len(), 0);
        ids.extend(others);
        for (position, id) in ids.iter().enumerate() {
            if position >= primaries && is_whole(&views) {
                break;
            }
            let announced = self.announced(id);
            let (nat, tls) = (self.nat.clone(), self.settings.target.tls.is_some());
            let seen = match self.link(id).await {
                Ok(link) => view(link, &announced, &nat, tls).await,
                // Another process: it matters where the others still take it for a primary.
                Err(Trouble::Final(error @ (EngineError::Target(_) | EngineError::TargetRestarted(_))))
                    if shared.known.borrow().ended.is_none() =>
                {
                    restarted.get_or_insert((id.clone(), error));
                    continue;
                }
                Err(Trouble::Final(error)) => return Err(Trouble::Final(error)),
                Err(Trouble::Broken(error)) => Err(error),
            };
            match seen {
                Ok(topology) => {
                    let counts = is_known(&settings, &topology);
                    late += usize::from(counts && position < primaries && topology.epoch < floor);
                    views.extend(counts.then_some(topology));
                }
                Err(error) => {
                    tracing::debug!(node = %announced, %error, "a node cannot be asked for the topology");
                    self.links.remove(id);
                }
            }
        }
        // The named node may have left the cluster, and knows nobody of it any more.
        let asked: Vec<Address> = ids.iter().filter_map(|id| self.address_of(id)).collect();
        let others = remembered(&settings).into_iter().filter(|node| !asked.contains(&node.address));
        let mut others: Vec<(Endpoint, Address)> =
            others.map(|node| (settings.target.at(&node), node.announced().clone())).collect();
        if !asked.contains(&self.seed) {
            others.push((settings.target.clone(), self.seed.clone()));
        }
        let mut why = EngineError::TargetLost("no node describes the cluster that the run began with".into());
        for (endpoint, announced) in others {
            if is_whole(&views) {
                break;
            }
            match self.ask_stranger(&endpoint, &announced).await {
                Ok(topology) => views.extend(is_known(&settings, &topology).then_some(topology)),
                Err(error) => why = error,
            }
        }
        let answered = !views.is_empty();
        views.retain(|view| view.epoch >= floor || may_go_back(late, primaries));
        if answered && views.is_empty() {
            return Err(Trouble::Broken(EngineError::TargetLost(format!(
                "only nodes answer that have not heard of the cluster's epoch {floor}: they do not know who has their slots by now"
            ))));
        }
        match (best(views), restarted) {
            (Some(topology), restarted) => {
                self.adopt(topology).await?;
                let still = restarted.filter(|(id, _)| self.primary_ids().contains(id));
                still.map_or(Ok(()), |(_, error)| Err(Trouble::Final(error)))
            }
            (None, Some((_, error))) => Err(Trouble::Final(error)),
            (None, None) => Err(Trouble::Broken(why)),
        }
    }

    /// What a node says that is not, or no longer, in the topology.
    async fn ask_stranger(&self, endpoint: &Endpoint, announced: &Address) -> Result<Topology, EngineError> {
        let mut link = TargetLink::connect(endpoint, NODE_TIMEOUT).await?;
        view(&mut link, announced, &self.nat, self.settings.target.tls.is_some()).await
    }

    async fn adopt(&mut self, topology: Topology) -> Result<(), Trouble> {
        let changed = topology != self.topology;
        if changed {
            tracing::info!(
                epoch = topology.epoch,
                primaries = topology.primaries().len(),
                "the cluster's topology changed"
            );
        }
        let takeovers = takeovers(&self.topology, &topology);
        let before = self.primary_ids();
        self.topology = topology;
        remember(&self.settings, &self.topology);
        // The process that a new primary is gets noted when it is connected to.
        let primaries = self.primary_ids();
        let nodes = &self.topology;
        self.links.retain(|id, _| nodes.by_id(id).is_some() && (before.contains(id) || !primaries.contains(id)));
        for Takeover { old, heir, is_certain } in takeovers {
            if is_certain || self.was_replica(&heir).await? {
                self.after_takeover(&old, &heir).await?;
            }
        }
        // A node that is no primary any more may be restarted: it will copy its data from the new one.
        self.run_ids.retain(|id, _| primaries.contains(id));
        // Nobody executes anything at an heir of which it is not known what it lacks.
        let shared = self.shared.clone();
        let mut known = shared.known.borrow_mut();
        known.topology.clone_from(&self.topology);
        known.number += u64::from(changed);
        known.run_ids.retain(|id, _| primaries.contains(id));
        known.histories.retain(|id, _| primaries.contains(id));
        self.topology_number = known.number;
        Ok(())
    }

    /// The heir may lack what was acknowledged: where positions say what, a session goes on from them; in a full sync nothing does.
    async fn after_takeover(&mut self, old: &Node, heir: &Node) -> Result<(), Trouble> {
        let (old_at, heir_at) = (&old.address, &heir.address);
        if self.ends_on_takeover.load(Ordering::Acquire) {
            return Err(self.ends_by(EngineError::TargetRestarted, format!(
                "{heir_at} took over from {old_at}, and may lack what that had acknowledged in its last moments (whoever goes on \
                 from the checkpoint brings it)"
            )));
        }
        if !self.of_session {
            tracing::warn!(
                old = %old_at,
                heir = %heir_at,
                "a replica took over: writes that its primary acknowledged in its last moments may be missing, for clusters \
                 replicate asynchronously"
            );
        } else if self.was_handed_over(old, heir).await? {
            tracing::info!(old = %old_at, heir = %heir_at, "a replica took over, with everything that its primary had");
        } else {
            return Err(self.ends_by(EngineError::Target, format!(
                "{heir_at} took over from {old_at} in the full sync, and may lack what that had acknowledged in its last moments; \
                 run again with --on-existing flush"
            )));
        }
        Ok(())
    }

    /// The session ends by this, whoever of those that use the cluster is told first.
    fn ends_by(&mut self, kind: fn(String) -> EngineError, text: String) -> Trouble {
        self.shared.known.borrow_mut().ended = Some(Ended { kind, text: text.clone() });
        Trouble::Final(kind(text))
    }

    /// Nobody has taken over, and every primary is the process that it was: what they acknowledged before this was asked is there
    /// still. A primary that was cut off, or stood still, acknowledges for a moment what is thrown away when it hears of its heir.
    pub async fn check_nodes(&mut self) -> Result<(), EngineError> {
        let mut patience = self.patience();
        let mut heirs = Patience::new(self.patience.min(UNCOVERED_MAX));
        loop {
            self.refresh_patiently().await?;
            match self.primaries_go_on().await {
                Ok(()) => {}
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Broken(error)) => {
                    patience.wait(&error.to_string()).await?;
                    continue;
                }
            }
            // Whoever has just taken over knows it before the others do.
            if let Some(address) = self.heir().await? {
                heirs.wait(&format!("{address} is a primary now, and no other node says so")).await?;
                continue;
            }
            return Ok(());
        }
    }

    /// Every primary answers, as the one that it was, and has been a replica of nobody meanwhile. Broken: one does not, or is one.
    pub async fn primaries_go_on(&mut self) -> Result<(), Trouble> {
        let request = resp::command(&[b"INFO", b"default"]);
        for id in self.primary_ids() {
            let at = self.address_of(&id).unwrap_or_else(|| self.seed.clone());
            let why = match self.send(&id, false, &request, 1).await?.first() {
                Some(Value::Bulk(text)) => match self.is_same(&id, &Info::parse(&String::from_utf8_lossy(text)))? {
                    None => continue,
                    Some(master) => format!("{at} is a replica of {master} now"),
                },
                other => format!("{at} answered INFO with {}", other.map(Value::described).unwrap_or_default()),
            };
            return Err(Trouble::Broken(EngineError::Target(why)));
        }
        Ok(())
    }

    /// A replica that calls itself a primary. One that cannot be reached from here is not tried again each time: behind a fence there
    /// is no time for it.
    pub async fn heir(&mut self) -> Result<Option<Address>, Trouble> {
        let replicas = self.topology.nodes().iter().filter(|node| node.role == Role::Replica && node.healthy);
        for node in replicas.cloned().collect::<Vec<_>>() {
            if self.silent.get(&node.id).is_some_and(|since_ns| monotonic_ns() < since_ns + SILENT_NS) {
                continue;
            }
            let was_linked = self.links.contains_key(&node.id);
            let mut said = self.replication(&node.id).await?;
            if said.is_none() && was_linked {
                // The connection may have been an old one.
                said = self.replication(&node.id).await?;
            }
            match said {
                Some(text) if Info::parse(&text).get("role") == Some("master") => return Ok(Some(node.address)),
                Some(_) => drop(self.silent.remove(&node.id)),
                None => drop(self.silent.insert(node.id, monotonic_ns())),
            }
        }
        Ok(None)
    }

    /// Refreshes until a node answers and every slot has an owner.
    pub async fn refresh_patiently(&mut self) -> Result<(), EngineError> {
        self.refresh_within(self.patience()).await
    }

    async fn refresh_within(&mut self, mut patience: Patience) -> Result<(), EngineError> {
        loop {
            let why = match self.refresh().await {
                Ok(()) => match self.topology.uncovered().as_slice() {
                    [] => return Ok(()),
                    uncovered => format!("nobody has {}", ranges(uncovered)),
                },
                Err(Trouble::Broken(error)) => error.to_string(),
                Err(Trouble::Final(error)) => return Err(error),
            };
            patience.wait(&why).await?;
        }
    }
}

struct Takeover {
    old: Node,
    heir: Node,
    /// Else its slots may have been moved, all of them between two views.
    is_certain: bool,
}

/// Primaries whose slots are another node's now that had none before: their replica, an heir that nobody knew, or one that was not
/// known to be a replica yet (in a young cluster).
fn takeovers(old: &Topology, new: &Topology) -> Vec<Takeover> {
    let still = new.primaries();
    let heir_of = |primary: &Node| {
        let mut heirs: Vec<&Node> = old.slots_of(&primary.id).filter_map(|slot| new.owner(slot)).collect();
        heirs.dedup_by(|a, b| a.id == b.id);
        let has_all = heirs.len() == 1;
        // One that has slots still gave some to a node that has just taken over elsewhere; or its own replica had not heard yet of a
        // slot that it was given, and took over all others.
        let is_primary = still.iter().any(|node| node.id == primary.id);
        let may_be = |heir: &Node| {
            let is_own = old.by_id(&heir.id).is_some_and(|known| known.replica_of.as_ref() == Some(&primary.id));
            heir.id != primary.id && (is_own || !is_primary)
        };
        heirs.into_iter().filter(|heir| may_be(heir)).find_map(|heir| {
            let is_certain = match old.by_id(&heir.id) {
                Some(known) => known.role == Role::Replica,
                None => new.by_id(&primary.id).is_none_or(|node| !node.healthy),
            };
            let had_none = old.slots_of(&heir.id).next().is_none();
            let is_replica = new.by_id(&primary.id).is_some_and(|node| node.role == Role::Replica);
            let takeover = Takeover { old: primary.clone(), heir: heir.clone(), is_certain };
            (is_certain || had_none && (has_all || is_replica)).then_some(takeover)
        })
    };
    old.primaries().into_iter().filter_map(heir_of).collect()
}

/// A node that was cut off has its slots for itself, and takes writes that are thrown away when it hears of its heir: alone it takes
/// nobody back to a time before. Who took over was elected by most primaries, so that they know. Where most of them have a lower
/// epoch, the node that had told of a higher one is gone and has told nobody else (or answers with none, as 0).
fn may_go_back(late: usize, primaries: usize) -> bool {
    2 * late > primaries
}

/// The most complete view with the latest epoch, and of several the one that most nodes share: one that was cut off hears of an epoch
/// before it hears who has its slots by now.
fn best(mut views: Vec<Topology>) -> Option<Topology> {
    let rank = |view: &Topology| (std::cmp::Reverse(view.uncovered().len()), view.epoch);
    let top = views.iter().map(rank).max()?;
    views.retain(|view| rank(view) == top);
    let owners: Vec<u64> = views.iter().map(Topology::owners_hash).collect();
    let votes = |at: usize| owners.iter().filter(|of| owners.get(at) == Some(of)).count();
    // The first of those with as many.
    let at = (0..views.len()).rev().max_by_key(|at| votes(*at))?;
    Some(views.swap_remove(at))
}

/// For the time when the node that the operator named is gone, or has left the cluster.
fn remember(settings: &MigrateSettings, topology: &Topology) {
    if topology.uncovered().is_empty() {
        let nodes = topology.nodes().iter().filter(|node| node.healthy).cloned().collect();
        *settings.target_nodes.lock().unwrap_or_else(PoisonError::into_inner) = nodes;
    }
}

fn remembered(settings: &MigrateSettings) -> Vec<Node> {
    settings.target_nodes.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// A view of the cluster that the run began with: half of the primaries of the last one are in it. A node that left may have
/// joined another cluster.
fn is_known(settings: &MigrateSettings, topology: &Topology) -> bool {
    let mut known = remembered(settings);
    known.retain(|node| node.role == Role::Primary);
    2 * known.iter().filter(|node| topology.by_id(&node.id).is_some()).count() >= known.len()
}

/// What one node says of the cluster. `asked`: where it is by its own words.
async fn view(link: &mut TargetLink, asked: &Address, nat: &NatMap, tls: bool) -> Result<Topology, EngineError> {
    let unreadable = |e: crate::redis::topology::TopologyError| EngineError::Target(format!("{asked}: {e}"));
    let needed = |what: &str, text: &[u8]| {
        EngineError::Target(format!(
            "{asked} answered CLUSTER {} with \"{}\"; the target's user needs +cluster|{what}",
            what.to_uppercase(),
            text.escape_ascii()
        ))
    };
    let mut topology = match link.call_raw("CLUSTER", &[b"CLUSTER", b"SHARDS"]).await? {
        Value::Error(_) => None,
        shards => Some(Topology::from_shards(&shards, asked, nat, tls).map_err(unreadable)?),
    };
    if topology.as_ref().is_none_or(|topology| !topology.uncovered().is_empty()) {
        match link.call_raw("CLUSTER", &[b"CLUSTER", b"SLOTS"]).await? {
            Value::Error(text) if topology.is_none() => return Err(needed("slots", &text)),
            Value::Error(_) => {}
            slots => {
                let mut by_slots = Topology::from_slots(&slots, asked, nat).map_err(unreadable)?;
                if topology.as_ref().is_none_or(|t| by_slots.uncovered().len() < t.uncovered().len()) {
                    // A node that has no slots yet may be sent to all the same.
                    match link.call_raw("CLUSTER", &[b"CLUSTER", b"NODES"]).await? {
                        Value::Bulk(text) => by_slots.add_listed(&text, asked, nat).map_err(unreadable)?,
                        Value::Error(text) if text.starts_with(b"NOPERM") => return Err(needed("nodes", &text)),
                        _ => {}
                    }
                    topology = Some(by_slots);
                }
            }
        }
    }
    let mut topology = topology.ok_or_else(|| EngineError::Internal("a topology without slots".into()))?;
    match link.call_raw("CLUSTER", &[b"CLUSTER", b"INFO"]).await? {
        Value::Bulk(text) => {
            let text = String::from_utf8_lossy(&text).into_owned();
            topology.epoch = Info::parse(&text).get("cluster_current_epoch").and_then(|e| e.parse().ok()).unwrap_or(0);
        }
        // Without its epoch an old view would count as much as a new one.
        Value::Error(text) if text.starts_with(b"NOPERM") => return Err(needed("info", &text)),
        _ => {}
    }
    Ok(topology)
}

/// Runs of slots, in words.
pub fn ranges(slots: &[(Slot, Slot)]) -> String {
    let text = slots.iter().take(8).map(|(first, last)| format!("{first}-{last}")).collect::<Vec<_>>().join(", ");
    if slots.len() > 8 { text + ", ..." } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs of slots with their nodes, the primary first.
    fn topology(runs: &[(i64, i64, &[u16])]) -> Topology {
        let node = |port: &u16| {
            let words = [Value::Bulk(b"h".to_vec()), Value::Integer(i64::from(*port))];
            Value::Array([&words[..], &[Value::Bulk(format!("node{port}").into_bytes())]].concat())
        };
        let run = |(first, last, ports): &(i64, i64, &[u16])| {
            let slots = [Value::Integer(*first), Value::Integer(*last)];
            Value::Array(slots.into_iter().chain(ports.iter().map(node)).collect())
        };
        let reply = Value::Array(runs.iter().map(run).collect());
        Topology::from_slots(&reply, &Address::new("h", 1), &NatMap::default()).unwrap()
    }

    #[test]
    fn of_equal_views_the_one_that_most_share_counts() {
        let of = |epoch: u64, runs: &[(i64, i64, &[u16])]| {
            let mut view = topology(runs);
            view.epoch = epoch;
            view
        };
        let view = |epoch: u64, first: &[u16]| of(epoch, &[(0, 99, first), (100, 16383, &[3])]);
        let (old, new) = (|epoch| view(epoch, &[1, 2]), |epoch| view(epoch, &[2]));
        let owner = |views: Vec<Topology>| best(views).and_then(|view| Some(view.owner(Slot(0))?.address.port));
        assert_eq!(owner(vec![old(7), new(7), new(7)]), Some(2), "the first one has only heard of the epoch");
        assert_eq!(owner(vec![old(6), old(6), new(7)]), Some(2));
        assert_eq!(owner(vec![old(7), new(7)]), Some(1));
        assert_eq!(owner(vec![of(9, &[(0, 99, &[5])]), new(7)]), Some(2), "not complete");
        assert_eq!(owner(Vec::new()), None);
    }

    #[test]
    fn who_took_over_is_told_from_who_was_given_slots() {
        let before = topology(&[(0, 99, &[1, 2]), (100, 16383, &[3])]);
        let heir = |runs: &[(i64, i64, &[u16])]| {
            takeovers(&before, &topology(runs))
                .first()
                .map(|takeover| (takeover.heir.address.port, takeover.is_certain))
        };
        assert_eq!(heir(&[(0, 99, &[1, 2]), (100, 16383, &[3])]), None);
        assert_eq!(heir(&[(0, 99, &[2, 1]), (100, 16383, &[3])]), Some((2, true)), "its replica");
        assert_eq!(heir(&[(0, 99, &[9]), (100, 16383, &[3])]), Some((9, true)), "a new one, for one that is away");
        // Its replica was replaced since the nodes were asked the last time, and then took over; or it gave the new node all it had.
        assert_eq!(heir(&[(0, 99, &[9, 1]), (100, 16383, &[3])]), Some((9, false)));
        assert_eq!(heir(&[(0, 49, &[9]), (50, 99, &[1, 2]), (100, 16383, &[3])]), None, "a new one, given slots");
        assert_eq!(heir(&[(0, 49, &[3]), (50, 99, &[1, 2]), (100, 16383, &[3])]), None, "an old one, given slots");
        let before = topology(&[(0, 99, &[1, 2]), (100, 16383, &[3, 4])]);
        let after = topology(&[(0, 98, &[1, 2]), (99, 99, &[4, 3]), (100, 16383, &[4, 3])]);
        let olds: Vec<u16> = takeovers(&before, &after).iter().map(|takeover| takeover.old.address.port).collect();
        assert_eq!(olds, [3], "the heir of another node, given slots");
        let after = topology(&[(0, 98, &[2]), (99, 99, &[1]), (100, 16383, &[3, 4])]);
        let found: Vec<(u16, u16)> = takeovers(&before, &after)
            .iter()
            .map(|takeover| (takeover.old.address.port, takeover.heir.address.port))
            .collect();
        assert_eq!(found, [(1, 2)], "its replica, all but a slot that this had not heard of");
    }
}
