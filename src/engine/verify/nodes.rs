//! The primaries of one side and which of them owns a slot.
//!
//! In: the answer to CLUSTER SLOTS. Out: nodes by number. Invariant: a node keeps its number when the owners of slots
//! change, for cursors are noted by it.

use super::wire::Conn;
use crate::ids::Slot;
use crate::redis::slot::SLOTS;
use crate::redis::value::Value;

pub struct Node {
    pub host: String,
    pub port: u16,
    /// Of the process that answered first; empty: not known yet.
    pub run_id: String,
    pub conn: Option<Conn>,
}

impl Node {
    pub fn new(host: String, port: u16) -> Self {
        Self { host, port, run_id: String::new(), conn: None }
    }
}

/// First and last slot, host, port.
pub type Range = (u16, u16, String, u16);

pub struct Nodes {
    pub all: Vec<Node>,
    /// By slot; empty for a single server.
    owners: Vec<u16>,
}

impl Nodes {
    pub fn single(node: Node) -> Self {
        Self { all: vec![node], owners: Vec::new() }
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

    /// New owners. The address that was asked first stays node 0, even if it owns nothing.
    pub fn update(&mut self, ranges: Vec<Range>) {
        let mut owners = vec![0; usize::from(SLOTS)];
        for (first, last, host, port) in ranges {
            let known = self.all.iter().position(|node| node.host == host && node.port == port);
            let index = known.unwrap_or_else(|| {
                self.all.push(Node::new(host, port));
                self.all.len() - 1
            });
            for slot in first..=last {
                if let (Some(owner), Ok(index)) = (owners.get_mut(usize::from(slot)), u16::try_from(index)) {
                    *owner = index;
                }
            }
        }
        self.owners = owners;
    }
}

/// The answer to CLUSTER SLOTS; `asked` stands for nodes that do not know their own address.
pub fn parse_slots(reply: &Value, asked: &str) -> Option<Vec<Range>> {
    let slot = |value: &Value| match value {
        Value::Integer(n) => u16::try_from(*n).ok().filter(|slot| *slot < SLOTS),
        _ => None,
    };
    let mut ranges = Vec::new();
    for row in reply.array()? {
        let [first, last, primary, ..] = row.array()? else { return None };
        let [host, Value::Integer(port), ..] = primary.array()? else { return None };
        let host = host.text().filter(|host| !host.is_empty()).unwrap_or(asked);
        ranges.push((slot(first)?, slot(last)?, host.to_string(), u16::try_from(*port).ok()?));
    }
    (!ranges.is_empty()).then_some(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::value;

    #[test]
    fn slots_have_owners_and_nodes_keep_their_numbers() {
        let text = b"*2\r\n*3\r\n:0\r\n:8191\r\n*3\r\n$1\r\na\r\n:1\r\n$2\r\nid\r\n*3\r\n:8192\r\n:16383\r\n*2\r\n$0\r\n\r\n:2\r\n";
        let ranges = parse_slots(&value::parse(text).unwrap().unwrap().0, "asked").unwrap();
        let mut nodes = Nodes::single(Node::new("asked".into(), 2));
        nodes.update(ranges);
        assert_eq!((nodes.owner(Slot(0)), nodes.owner(Slot(8191)), nodes.owner(Slot(8192))), (1, 1, 0));
        nodes.update(vec![(0, 16383, "b".into(), 3)]);
        assert_eq!((nodes.owner(Slot(0)), nodes.all.len(), nodes.primaries()), (2, 3, vec![2]));
    }

    #[test]
    fn other_shapes_are_refused() {
        for bad in
            ["*0\r\n", "+OK\r\n", "*1\r\n*2\r\n:0\r\n:1\r\n", "*1\r\n*3\r\n:0\r\n:16384\r\n*2\r\n$1\r\na\r\n:1\r\n"]
        {
            assert_eq!(parse_slots(&value::parse(bad.as_bytes()).unwrap().unwrap().0, "x"), None, "{bad:?}");
        }
    }
}
