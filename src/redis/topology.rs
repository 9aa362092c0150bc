//! Which nodes a cluster has and which slots are whose, from the answers to `CLUSTER SHARDS`, or `CLUSTER SLOTS` and `NODES`.
//!
//! In: a reply of a node, the address at which it was asked, a map of addresses. Out: a [`Topology`]: nodes with the
//! address to connect to and every name they are known by, and the owner of each slot. Also the text of `MOVED` and
//! `ASK`. Invariants: bounded in nodes whatever the reply says; an address comes from the reply alone, so that a node
//! which the cluster did not name is never found ([`Topology::find`]); no I/O.
//!
//! Where a node writes no host (`cluster-preferred-endpoint-type unknown-endpoint`) the host that was asked is meant, with the port
//! that is written. "?" is the host of a node that is to be known by a name and has none, or none that was heard of yet: then its
//! IP address is taken, for the asked host may well be another node with the same port.

pub use super::address::{Address, NatMap};
use super::address::{is_no_host, is_unnamed, known_host};
use super::slot::SLOTS;
use super::value::Value;
use crate::ids::Slot;
use std::hash::{Hash, Hasher};

/// Most nodes of a cluster, replicas included (the servers' own recommendation ends at 1000 primaries).
pub const NODES_MAX: usize = 4096;
/// Slot without an owner.
const NOBODY: u16 = u16::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Primary,
    Replica,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The cluster's own name for it; the address where the reply has none (Redis before 4).
    pub id: String,
    /// Where to connect to.
    pub address: Address,
    pub role: Role,
    /// The asked node does not call it failed.
    pub healthy: bool,
    /// Of a replica: the id of its primary.
    pub replica_of: Option<String>,
    /// Every address that the reply gives it, as `MOVED` may name it; first the one that clients are to take.
    known_as: Vec<Address>,
}

/// The names of a node in a reply.
#[derive(Clone, Copy, Default)]
struct Names<'a> {
    /// The one that clients are to take.
    preferred: Option<&'a str>,
    ip: Option<&'a str>,
    hostname: Option<&'a str>,
}

impl Names<'_> {
    /// Every address of a node with these names, the best one first. `None`: one of them is no name.
    fn addresses(&self, port: u16, asked: &Address) -> Option<Vec<Address>> {
        if [self.preferred, self.ip, self.hostname].into_iter().flatten().any(is_no_host) {
            return None;
        }
        let (ip, hostname) = (self.ip.and_then(known_host), self.hostname.and_then(known_host));
        let unnamed = self.preferred.is_some_and(is_unnamed);
        let instead = if unnamed { ip.or(hostname) } else { None };
        let best = self.preferred.and_then(known_host).or(instead).unwrap_or(&asked.host);
        let mut addresses = vec![Address::new(best, port)];
        addresses.extend([ip, hostname].into_iter().flatten().map(|host| Address::new(host, port)));
        addresses.extend(unnamed.then(|| Address::unnamed(port)));
        Some(addresses)
    }
}

impl Node {
    fn new(id: &str, known_as: Vec<Address>, nat: &NatMap, role: Role, healthy: bool) -> Option<Self> {
        let address = nat.apply(&known_as).or_else(|| known_as.first().cloned())?;
        Some(Self { id: id.to_string(), address, role, healthy, replica_of: None, known_as })
    }

    /// Where the cluster says that it is. An answer of this node that names no host means this one.
    pub fn announced(&self) -> &Address {
        self.known_as.first().unwrap_or(&self.address)
    }

    /// What its certificate must bear: the host that is connected to, or its announced name, where that is mapped to an IP address.
    pub fn certificate_name(&self) -> &str {
        let announced = self.announced();
        if self.address.is_ip() && !announced.is_ip() { &announced.host } else { &self.address.host }
    }
}

/// A reply that says no topology.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer to {command} cannot be read: {what}")]
pub struct TopologyError {
    pub command: &'static str,
    pub what: &'static str,
}

/// Nodes and the owner of each slot. See the module's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    nodes: Vec<Node>,
    owners: Box<[u16]>,
    /// `cluster_current_epoch` of the node that was asked: a later view has a greater one.
    pub epoch: u64,
}

impl Topology {
    fn empty() -> Self {
        Self { nodes: Vec::new(), owners: vec![NOBODY; usize::from(SLOTS)].into(), epoch: 0 }
    }

    /// From the reply to `CLUSTER SHARDS` (Redis 7.0 and later) of the node at `asked`. `tls`: the ports for TLS are wanted
    /// (the other answers give those of the kind of connection on which they are asked for).
    pub fn from_shards(reply: &Value, asked: &Address, nat: &NatMap, tls: bool) -> Result<Self, TopologyError> {
        let wrong = |what| TopologyError { command: "CLUSTER SHARDS", what };
        let mut topology = Self::empty();
        for shard in reply.array().ok_or(wrong("it is no array"))? {
            let nodes = field(shard, "nodes").and_then(Value::array).ok_or(wrong("a shard has no nodes"))?;
            let slots = field(shard, "slots").and_then(Value::array).ok_or(wrong("a shard has no slots"))?;
            let mut owner = None;
            let mut replicas = Vec::new();
            for entry in nodes {
                let text = |name: &str| field(entry, name).and_then(Value::text).and_then(known_host);
                let id = text("id").ok_or(wrong("a node has no id"))?;
                let port = match field(entry, if tls { "tls-port" } else { "port" }) {
                    Some(Value::Integer(port)) => u16::try_from(*port).ok().filter(|port| *port > 0),
                    _ => None,
                };
                let Some(port) = port else { continue };
                let role = match text("role") {
                    Some("master" | "primary") => Role::Primary,
                    _ => Role::Replica,
                };
                let healthy = text("health").is_none_or(|health| health == "online");
                let name = |of: &str| field(entry, of).and_then(Value::text);
                let names = Names { preferred: name("endpoint"), ip: name("ip"), hostname: name("hostname") };
                let known_as = names.addresses(port, asked).ok_or(wrong("a node has a host that is none"))?;
                let node = Node::new(id, known_as, nat, role, healthy).ok_or(wrong("a node has no address"))?;
                let at = topology.add(node).ok_or(wrong("it has too many nodes"))?;
                if role == Role::Replica {
                    replicas.push(at);
                }
                // A failed primary and the replica that took its place may both be called master for a while.
                if role == Role::Primary && (healthy || owner.is_none()) {
                    owner = Some(at);
                }
            }
            topology.follow(&replicas, owner);
            for range in slots.chunks(2) {
                let range = range.first().and_then(slot_of).zip(range.get(1).and_then(slot_of));
                topology.assign(range.ok_or(wrong("a range of slots is none"))?, owner).map_err(wrong)?;
            }
        }
        Ok(topology)
    }

    /// From the reply to `CLUSTER SLOTS` of the node at `asked`.
    pub fn from_slots(reply: &Value, asked: &Address, nat: &NatMap) -> Result<Self, TopologyError> {
        let wrong = |what| TopologyError { command: "CLUSTER SLOTS", what };
        let mut topology = Self::empty();
        for row in reply.array().ok_or(wrong("it is no array"))? {
            let [first, last, nodes @ ..] = row.array().unwrap_or_default() else {
                return Err(wrong("a range has no slots"));
            };
            let range = slot_of(first).zip(slot_of(last)).ok_or(wrong("a range of slots is none"))?;
            let mut owner = None;
            let mut replicas = Vec::new();
            for (position, entry) in nodes.iter().enumerate() {
                let [host, Value::Integer(port), rest @ ..] = entry.array().unwrap_or_default() else {
                    return Err(wrong("a node has no address"));
                };
                let Some(port) = u16::try_from(*port).ok().filter(|port| *port > 0) else { continue };
                // From Redis 7.0 on, what else it is known by.
                let more = rest.get(1);
                let name = |of: &str| field(more?, of).and_then(Value::text);
                let names = Names { preferred: host.text(), ip: name("ip"), hostname: name("hostname") };
                let known_as = names.addresses(port, asked).ok_or(wrong("a node has a host that is none"))?;
                // Redis before 4 has no ids.
                let address = known_as.first().map(Address::to_string).unwrap_or_default();
                let id = rest.first().and_then(Value::text).unwrap_or(&address);
                let role = if position == 0 { Role::Primary } else { Role::Replica };
                let node = Node::new(id, known_as, nat, role, true).ok_or(wrong("a node has no address"))?;
                let at = topology.add(node).ok_or(wrong("it has too many nodes"))?;
                match position {
                    0 => owner = Some(at),
                    _ => replicas.push(at),
                }
            }
            topology.follow(&replicas, owner);
            topology.assign(range, owner).map_err(wrong)?;
        }
        Ok(topology)
    }

    /// Adds the nodes of an answer to `CLUSTER NODES`: `CLUSTER SLOTS` leaves out those that have no slots, such as one that is about to
    /// be given its first. `<id> <ip>:<port>@<bus port>[,<hostname>[,...]] <flags> <id of its primary, or -> ...`
    pub fn add_listed(&mut self, text: &[u8], asked: &Address, nat: &NatMap) -> Result<(), TopologyError> {
        let wrong = |what| TopologyError { command: "CLUSTER NODES", what };
        let text = std::str::from_utf8(text).map_err(|_| wrong("it is no text"))?;
        for line in text.lines() {
            let mut words = line.split(' ');
            let (Some(id), Some(place), Some(flags)) = (words.next(), words.next(), words.next()) else {
                return Err(wrong("a line has no node"));
            };
            let has = |name: &str| flags.split(',').any(|flag| flag == name);
            let (address, more) = place.split_once('@').unwrap_or((place, ""));
            let is_known = self.by_id(id).is_some();
            // One that was only heard of has no id of its own, or no address.
            let Some((ip, port)) = Address::parse(address).filter(|_| !is_known && !has("handshake") && !has("noaddr"))
            else {
                continue;
            };
            let names = Names { preferred: ip.as_deref(), ip: ip.as_deref(), hostname: more.split(',').nth(1) };
            let known_as = names.addresses(port, asked).ok_or(wrong("a node has a host that is none"))?;
            let role = if has("master") { Role::Primary } else { Role::Replica };
            let mut node = Node::new(id, known_as, nat, role, !has("fail")).ok_or(wrong("a node has no address"))?;
            node.replica_of = words.next().filter(|id| role == Role::Replica && *id != "-").map(str::to_string);
            self.add(node).ok_or(wrong("it has too many nodes"))?;
        }
        Ok(())
    }

    /// The node's place; a node that is there already keeps it. `None`: too many.
    fn add(&mut self, node: Node) -> Option<u16> {
        if let Some(at) = self.nodes.iter().position(|known| known.id == node.id) {
            if let Some(known) = self.nodes.get_mut(at)
                && node.role == Role::Primary
            {
                (known.role, known.replica_of) = (Role::Primary, None);
            }
            return u16::try_from(at).ok();
        }
        if self.nodes.len() >= NODES_MAX {
            return None;
        }
        self.nodes.push(node);
        u16::try_from(self.nodes.len() - 1).ok()
    }

    /// These are replicas of this node.
    fn follow(&mut self, replicas: &[u16], primary: Option<u16>) {
        let primary = primary.and_then(|at| self.nodes.get(usize::from(at))).map(|node| node.id.clone());
        for at in replicas {
            if let Some(node) = self.nodes.get_mut(usize::from(*at)).filter(|node| node.role == Role::Replica) {
                node.replica_of.clone_from(&primary);
            }
        }
    }

    /// One node's view gives each slot to one owner, which bounds the number of ranges too.
    fn assign(&mut self, (first, last): (Slot, Slot), owner: Option<u16>) -> Result<(), &'static str> {
        if first > last {
            return Err("a range of slots ends before it begins");
        }
        if let (Some(owner), Some(range)) = (owner, self.owners.get_mut(usize::from(first.0)..=usize::from(last.0))) {
            if range.iter().any(|owner| *owner != NOBODY) {
                return Err("a slot has two owners");
            }
            range.fill(owner);
        }
        Ok(())
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The primary that has the slot.
    pub fn owner(&self, slot: Slot) -> Option<&Node> {
        self.nodes.get(usize::from(*self.owners.get(usize::from(slot.0))?))
    }

    /// The slots of a node.
    pub fn slots_of<'a>(&'a self, id: &'a str) -> impl Iterator<Item = Slot> + 'a {
        let owned = (0..SLOTS).zip(self.owners.iter());
        owned.filter_map(move |(slot, owner)| (self.nodes.get(usize::from(*owner))?.id == id).then_some(Slot(slot)))
    }

    /// Primaries that have slots, each once, in the order of their first slot.
    pub fn primaries(&self) -> Vec<&Node> {
        let mut seen = Vec::new();
        for owner in self.owners.iter().filter(|owner| **owner != NOBODY) {
            if !seen.contains(owner) {
                seen.push(*owner);
            }
        }
        seen.into_iter().filter_map(|owner| self.nodes.get(usize::from(owner))).collect()
    }

    /// The same for views in which the same nodes have the same slots.
    pub fn owners_hash(&self) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        let mut before = None;
        for (slot, owner) in
            self.owners.iter().enumerate().filter(|(_, owner)| before.replace(**owner) != Some(**owner))
        {
            (slot, self.nodes.get(usize::from(*owner)).map(|node| &node.id)).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// The node known by this name and port; of nodes without a name the only one with this port.
    pub fn find(&self, address: &Address) -> Option<&Node> {
        let mut found = self.nodes.iter().filter(|node| node.known_as.contains(address) || node.address == *address);
        let first = found.next();
        first.filter(|_| !address.is_unnamed() || found.next().is_none())
    }

    /// Two primaries with slots that would be reached at one address: one of them could not be.
    pub fn indistinct(&self) -> Option<(&Node, &Node)> {
        let primaries = self.primaries();
        primaries.iter().enumerate().find_map(|(at, node)| {
            let before = primaries.get(..at)?.iter().find(|before| before.address == node.address)?;
            Some((*before, *node))
        })
    }

    pub fn by_id(&self, id: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// Ranges of slots that nobody has.
    pub fn uncovered(&self) -> Vec<(Slot, Slot)> {
        let mut ranges: Vec<(Slot, Slot)> = Vec::new();
        for (number, _) in (0..SLOTS).zip(self.owners.iter()).filter(|(_, owner)| **owner == NOBODY) {
            match ranges.last_mut() {
                Some((_, last)) if last.0 + 1 == number => last.0 = number,
                _ => ranges.push((Slot(number), Slot(number))),
            }
        }
        ranges
    }
}

fn slot_of(value: &Value) -> Option<Slot> {
    match value {
        Value::Integer(number) => u16::try_from(*number).ok().filter(|slot| *slot < SLOTS).map(Slot),
        _ => None,
    }
}

/// A field of a map that is written as a flat array.
fn field<'a>(map: &'a Value, name: &str) -> Option<&'a Value> {
    let pairs = map.array()?;
    pairs.chunks_exact(2).find(|pair| pair[0].text() == Some(name)).map(|pair| &pair[1])
}

/// What a redirecting error says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// `ASK`: for this one command only.
    pub ask: bool,
    pub slot: Slot,
    pub address: Address,
}

impl Redirect {
    /// From the text of an error without its mark (`MOVED 3999 127.0.0.1:6381`), of the node at `asked`.
    pub fn parse(text: &[u8], asked: &Address) -> Option<Self> {
        let mut words = std::str::from_utf8(text).ok()?.split(' ');
        let ask = match words.next()? {
            "MOVED" => false,
            "ASK" => true,
            _ => return None,
        };
        let slot = words.next()?.parse().ok().filter(|slot| *slot < SLOTS).map(Slot)?;
        let (host, port) = Address::parse(words.next()?)?;
        Some(Self { ask, slot, address: Address { host: host.unwrap_or_else(|| asked.host.clone()), port } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::value::parse;

    fn asked() -> Address {
        Address::new("seed", 7000)
    }

    fn bulk(text: &str) -> String {
        format!("${}\r\n{text}\r\n", text.len())
    }

    fn node(id: &str, port: u16, endpoint: Option<&str>, role: &str, health: &str) -> String {
        let endpoint = endpoint.map_or("$-1\r\n".to_string(), bulk);
        let texts = |name: &str, value: &str| bulk(name) + &bulk(value);
        "*14\r\n".to_string()
            + &texts("id", id)
            + &format!("{}:{port}\r\n", bulk("port"))
            + &texts("ip", "10.0.0.1")
            + &bulk("endpoint")
            + &endpoint
            + &texts("role", role)
            + &format!("{}:5\r\n", bulk("replication-offset"))
            + &texts("health", health)
    }

    fn shard(slots: &[u16], nodes: &[String]) -> String {
        let slots: String = slots.iter().map(|slot| format!(":{slot}\r\n")).collect();
        let count = slots.matches(':').count();
        format!("*4\r\n{}*{count}\r\n{slots}{}*{}\r\n{}", bulk("slots"), bulk("nodes"), nodes.len(), nodes.concat())
    }

    fn shards(text: &[String]) -> Result<Topology, TopologyError> {
        let reply = format!("*{}\r\n{}", text.len(), text.concat());
        let (value, _) = parse(reply.as_bytes()).unwrap().unwrap();
        Topology::from_shards(&value, &asked(), &NatMap::parse(&["b.example=127.0.0.9"]).unwrap(), false)
    }

    #[test]
    fn shards_say_owners_names_and_what_is_missing() {
        let topology = shards(&[
            shard(
                &[0, 99, 200, 16000],
                &[
                    node("a", 7000, None, "master", "fail"),
                    node("b", 7001, Some("b.example"), "master", "online"),
                    node("c", 7002, Some("?"), "replica", "online"),
                ],
            ),
            shard(&[100, 199], &[node("d", 7003, Some("::1"), "master", "online")]),
            shard(&[], &[node("e", 7004, Some("e"), "master", "online")]),
        ])
        .unwrap();
        assert_eq!(topology.owner(Slot(5)).unwrap().address.to_string(), "127.0.0.9:7001");
        assert_eq!(topology.owner(Slot(150)).unwrap().address.to_string(), "[::1]:7003");
        assert_eq!(topology.uncovered(), [(Slot(16001), Slot(16383))]);
        assert_eq!(topology.primaries().iter().map(|node| node.id.as_str()).collect::<Vec<_>>(), ["b", "d"]);
        assert_eq!(topology.nodes().len(), 5);
        let primary_of = |id: &str| topology.by_id(id).unwrap().replica_of.as_deref();
        assert_eq!((primary_of("a"), primary_of("b"), primary_of("c")), (None, None, Some("b")));
        let find = |host: &str, port| topology.find(&Address::new(host, port)).map(|node| node.id.as_str());
        assert_eq!(find("10.0.0.1", 7001), Some("b"));
        assert_eq!(find("b.example", 7001), Some("b"));
        // No host is that of the asked node; "?" is none, but the node has an address.
        assert_eq!(find("seed", 7000), Some("a"));
        assert_eq!((find("seed", 7002), find("10.0.0.1", 7002), find("?", 7002)), (None, Some("c"), Some("c")));
        assert_eq!(topology.by_id("c").unwrap().address.to_string(), "10.0.0.1:7002");
        let certified = |id: &str| topology.by_id(id).unwrap().certificate_name();
        assert_eq!((certified("a"), certified("b"), certified("c")), ("seed", "b.example", "10.0.0.1"));
        assert_eq!(find("10.0.0.1", 7009), None);
        assert_eq!(find("evil.example", 7001), None);
    }

    #[test]
    fn slots_of_older_servers() {
        let reply = "*2\r\n*4\r\n:0\r\n:8000\r\n*3\r\n$0\r\n\r\n:7000\r\n$1\r\na\r\n*3\r\n$9\r\n127.0.0.1\r\n:7001\r\n$1\r\nb\r\n\
                     *3\r\n:8001\r\n:16383\r\n*4\r\n$9\r\n127.0.0.1\r\n:7002\r\n$1\r\nc\r\n*2\r\n$8\r\nhostname\r\n$1\r\nx\r\n";
        let (value, _) = parse(reply.as_bytes()).unwrap().unwrap();
        let topology = Topology::from_slots(&value, &asked(), &NatMap::default()).unwrap();
        assert_eq!(topology.owner(Slot(0)).unwrap().address.to_string(), "seed:7000");
        assert_eq!(topology.find(&Address::new("x", 7002)).unwrap().id, "c");
        let replica = topology.by_id("b").unwrap();
        assert_eq!((replica.role, replica.replica_of.as_deref()), (Role::Replica, Some("a")));
        assert!(topology.uncovered().is_empty());
    }

    #[test]
    fn nodes_without_slots_are_listed_by_older_servers() {
        let reply = "*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n$9\r\n127.0.0.1\r\n:7000\r\n$1\r\na\r\n";
        let (value, _) = parse(reply.as_bytes()).unwrap().unwrap();
        let nat = NatMap::parse(&["10.0.0.2=gate"]).unwrap();
        let mut topology = Topology::from_slots(&value, &asked(), &nat).unwrap();
        let text = "a 127.0.0.1:7000@17000 myself,master - 0 0 1 connected 0-16383\n\
                    b 10.0.0.2:7001@17001,b.example master - 0 1 0 connected\n\
                    c ::1:7002@17002 slave a 0 1 0 connected\n\
                    d :7003@17003 master,fail - 0 1 0 connected\n\
                    e 10.0.0.5:7004@17004 handshake - 0 0 0 disconnected\n\
                    f :0@0 slave,fail,noaddr a 0 1 0 disconnected\n";
        topology.add_listed(text.as_bytes(), &asked(), &nat).unwrap();
        let shown: Vec<String> =
            topology.nodes().iter().map(|n| format!("{} {} {}", n.id, n.address, n.healthy)).collect();
        assert_eq!(shown, ["a 127.0.0.1:7000 true", "b gate:7001 true", "c [::1]:7002 true", "d seed:7003 false"]);
        assert_eq!(topology.find(&Address::new("b.example", 7001)).unwrap().id, "b");
        assert_eq!(topology.primaries().len(), 1);
        let primary_of = |id: &str| topology.by_id(id).unwrap().replica_of.as_deref();
        assert_eq!((primary_of("b"), primary_of("c")), (None, Some("a")));
        for bad in ["a", "a b", "x a\u{7}b:1@2 master", "\u{1b}[0m 10.0.0.1:1@2,h\u{7}x master"] {
            assert!(
                topology.add_listed(bad.as_bytes(), &asked(), &nat).is_err() || topology.nodes().len() == 4,
                "{bad:?}"
            );
        }
    }

    /// A name that was not heard of yet is no reason to take one node for another.
    #[test]
    fn nodes_without_a_name_are_told_apart_by_their_ports_alone() {
        let of = |id: &str, port, slots: &[u16]| shard(slots, &[node(id, port, Some("?"), "master", "online")]);
        let topology = shards(&[of("a", 7000, &[0, 9]), of("b", 7000, &[10, 19]), of("c", 7001, &[20, 29])]).unwrap();
        assert_eq!(topology.find(&Address::unnamed(7001)).unwrap().id, "c");
        assert_eq!(topology.find(&Address::unnamed(7000)), None);
        let (one, other) = topology.indistinct().unwrap();
        assert_eq!((one.id.as_str(), other.id.as_str()), ("a", "b"));
        let topology = shards(&[of("a", 7000, &[0, 9]), of("c", 7001, &[20, 29])]).unwrap();
        assert!(topology.indistinct().is_none());
    }

    #[test]
    fn hostile_replies_are_refused() {
        for reply in [
            "+OK\r\n",
            "*1\r\n+x\r\n",
            "*1\r\n*2\r\n$5\r\nnodes\r\n*0\r\n",
            "*1\r\n*4\r\n$5\r\nslots\r\n*2\r\n:5\r\n:16384\r\n$5\r\nnodes\r\n*0\r\n",
            "*1\r\n*4\r\n$5\r\nslots\r\n*1\r\n:5\r\n$5\r\nnodes\r\n*0\r\n",
        ] {
            let (value, _) = parse(reply.as_bytes()).unwrap().unwrap();
            assert!(Topology::from_shards(&value, &asked(), &NatMap::default(), false).is_err(), "{reply}");
            assert!(Topology::from_slots(&value, &asked(), &NatMap::default()).is_err(), "{reply}");
        }
        let many: Vec<String> = (0..=NODES_MAX).map(|i| node(&i.to_string(), 1, None, "master", "online")).collect();
        assert_eq!(shards(&[shard(&[0, 1], &many)]).unwrap_err().what, "it has too many nodes");
        let of = |id: &str, slots: &[u16]| shard(slots, &[node(id, 1, None, "master", "online")]);
        assert_eq!(shards(&[of("a", &[9, 3])]).unwrap_err().what, "a range of slots ends before it begins");
        assert_eq!(shards(&[of("a", &[3, 9]), of("b", &[9, 10])]).unwrap_err().what, "a slot has two owners");
        assert_eq!(shards(&[of("a", &[3, 9, 3, 9])]).unwrap_err().what, "a slot has two owners");
        for host in ["a b", "a\r\nb", "\u{1b}[31m", "h\u{e4}user"] {
            let node = node("a", 1, Some(host), "master", "online");
            assert_eq!(
                shards(&[shard(&[3, 9], &[node])]).unwrap_err().what,
                "a node has a host that is none",
                "{host}"
            );
        }
    }

    #[test]
    fn redirects() {
        let parse = |text: &str| Redirect::parse(text.as_bytes(), &asked()).map(|r| (r.ask, r.slot.0, r.address));
        assert_eq!(parse("MOVED 5 127.0.0.1:7001"), Some((false, 5, Address::new("127.0.0.1", 7001))));
        assert_eq!(parse("ASK 16383 :7001"), Some((true, 16383, Address::new("seed", 7001))));
        assert_eq!(parse("ASK 1 ::1:7001"), Some((true, 1, Address::new("::1", 7001))));
        assert_eq!(parse("MOVED 1 ?:7001"), Some((false, 1, Address::unnamed(7001))));
        for bad in ["MOVED", "MOVED 16384 a:1", "MOVED 1 a", "MOVED 1 a:0", "MOVED 1 a:x", "OK 1 a:1", "\u{ff}"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        for bad in ["MOVED 1 [::1", "MOVED 1 ]:1", "MOVED 1 a]:1", "MOVED -1 a:1", "MOVED 1  a:1", "ASK 1 \u{1b}[2J:1"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
