//! The primaries of one side and which of them owns a slot.
//!
//! In: what a node says of the slots. Out: nodes by number. Invariant: a node keeps its number when the owners of slots
//! change, for cursors are noted by it.

use super::wire::Conn;
use crate::engine::settings::Endpoint;
use crate::ids::Slot;
use crate::redis::slot::SLOTS;
use crate::redis::topology::{self, Topology};

pub struct Node {
    pub endpoint: Endpoint,
    /// The cluster's own name for it; empty: it was not asked yet.
    pub id: String,
    /// Of the process that answered first; empty: not known yet.
    pub run_id: String,
    pub conn: Option<Conn>,
}

impl Node {
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, id: String::new(), run_id: String::new(), conn: None }
    }
}

pub struct Nodes {
    pub all: Vec<Node>,
    /// By slot; empty for a single server.
    owners: Vec<u16>,
}

impl Nodes {
    pub fn single(node: Node) -> Self {
        Self { all: vec![node], owners: Vec::new() }
    }

    /// Of a cluster, be it of one node.
    pub fn is_cluster(&self) -> bool {
        !self.owners.is_empty()
    }

    pub fn owner(&self, slot: Slot) -> usize {
        self.owners.get(usize::from(slot.0)).map_or(0, |node| usize::from(*node))
    }

    /// Nodes that own slots; a single server owns all.
    pub fn primaries(&self) -> Vec<usize> {
        if self.owners.is_empty() {
            return vec![0];
        }
        let mut primaries: Vec<usize> = self.owners.iter().map(|node| usize::from(*node)).collect();
        primaries.sort_unstable();
        primaries.dedup();
        primaries
    }

    /// New owners. The address that was asked first stays node 0, even if it owns nothing. `named`: as the operator named it. A slot
    /// that nobody owns is asked of it: it says so.
    pub fn update(&mut self, topology: &Topology, named: &Endpoint) {
        let mut owners = vec![0; usize::from(SLOTS)];
        for owner in topology.primaries() {
            let index = self.number(owner, named);
            for slot in topology.slots_of(&owner.id) {
                if let (Some(owner), Ok(index)) = (owners.get_mut(usize::from(slot.0)), u16::try_from(index)) {
                    *owner = index;
                }
            }
        }
        self.owners = owners;
    }

    /// Of a node of the cluster, which need not own slots.
    pub fn number(&mut self, of: &topology::Node, named: &Endpoint) -> usize {
        let known = self.all.iter().position(|node| node.endpoint.address() == of.address);
        known.unwrap_or_else(|| {
            self.all.push(Node::new(named.at(of)));
            self.all.len() - 1
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::topology::{Address, NatMap};
    use crate::redis::value;

    fn endpoint(host: &str, port: u16) -> Endpoint {
        Endpoint { host: host.into(), port, tls: None, user: Default::default(), password: Default::default() }
    }

    #[test]
    fn slots_have_owners_and_nodes_keep_their_numbers() {
        let named = endpoint("asked", 2);
        let topology = |text: &str| {
            let nat = NatMap::parse(&["a=gate"]).unwrap();
            Topology::from_slots(&value::parse(text.as_bytes()).unwrap().unwrap().0, &named.address(), &nat).unwrap()
        };
        let mut nodes = Nodes::single(Node::new(named.clone()));
        nodes.update(
            &topology(
                "*2\r\n*3\r\n:0\r\n:8191\r\n*3\r\n$1\r\na\r\n:1\r\n$2\r\nid\r\n*3\r\n:8192\r\n:16383\r\n*2\r\n$0\r\n\r\n:2\r\n",
            ),
            &named,
        );
        assert_eq!((nodes.owner(Slot(0)), nodes.owner(Slot(8191)), nodes.owner(Slot(8192))), (1, 1, 0));
        assert_eq!(nodes.all[1].endpoint.address(), Address::new("gate", 1));
        nodes.update(&topology("*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$1\r\nb\r\n:3\r\n"), &named);
        assert_eq!((nodes.owner(Slot(0)), nodes.all.len(), nodes.primaries()), (2, 3, vec![2]));
    }
}
