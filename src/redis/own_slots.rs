//! What one node of a cluster says of itself: the line of `CLUSTER NODES` that is marked `myself`.
//!
//! In: the text of the reply. Out: the node's id, its own epoch, the slots that it has, those that are on the move there. Of other nodes
//! a line tells only what was heard of them, so each node is asked for its own. No I/O.

use super::slot::SLOTS;
use crate::ids::Slot;

/// A node's own word.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OwnSlots {
    pub id: String,
    /// It rises with the first slot that the node takes from another one.
    pub epoch: u64,
    /// First and last of each run.
    pub runs: Vec<(Slot, Slot)>,
    /// Slots that it is giving away or taking.
    pub open: Vec<Slot>,
}

impl OwnSlots {
    /// `<id> <address> <flags> <primary> <ping> <pong> <epoch> <link> <slot or run> ... [<slot>->-<id>] [<slot>-<-<id>]`
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let is_own = |line: &&str| line.split(' ').nth(2).is_some_and(|flags| flags.split(',').any(|f| f == "myself"));
        let mut words = text.lines().find(is_own)?.split(' ').filter(|word| !word.is_empty());
        let id = words.next()?.to_string();
        let epoch = words.nth(5)?.parse().ok()?;
        let mut own = Self { id, epoch, ..Self::default() };
        // The state of its link stands before its slots.
        for word in words.skip(1) {
            match word.strip_prefix('[') {
                Some(moving) => own.open.push(slot(moving.split_once('-')?.0)?),
                None => {
                    let (first, last) = word.split_once('-').unwrap_or((word, word));
                    let run = (slot(first)?, slot(last)?);
                    own.runs.push((run.0 <= run.1).then_some(run)?);
                }
            }
        }
        Some(own)
    }
}

fn slot(text: &str) -> Option<Slot> {
    text.parse().ok().filter(|slot| *slot < SLOTS).map(Slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_line_is_read() {
        let text = b"aa 127.0.0.1:1@2 master - 0 1 3 connected 7-9\n\
                     bb 127.0.0.1:3@4,host,shard-id=x myself,master - 0 0 12 connected 0-5460 6000 [93->-aa] [77-<-aa]\n\
                     cc 127.0.0.1:5@6 slave bb 0 0 12 connected\n";
        let own = OwnSlots::parse(text).unwrap();
        assert_eq!((own.id.as_str(), own.epoch), ("bb", 12));
        assert_eq!(own.runs, [(Slot(0), Slot(5460)), (Slot(6000), Slot(6000))]);
        assert_eq!(own.open, [Slot(93), Slot(77)]);
        let none = OwnSlots::parse(b"bb 127.0.0.1:3@4 myself,slave aa 0 0 12 connected\n").unwrap();
        assert!(none.runs.is_empty() && none.open.is_empty());
        for bad in [
            "",
            "aa 127.0.0.1:1@2 master - 0 1 3 connected 7-9",
            "aa 127.0.0.1:1@2 myself,master - 0 1 x connected 7-9",
            "aa 127.0.0.1:1@2 myself,master - 0 1 3 connected 9-7",
            "aa 127.0.0.1:1@2 myself,master - 0 1 3 connected 16384",
            "aa 127.0.0.1:1@2 myself,master - 0 1 3 connected [x->-aa]",
        ] {
            assert_eq!(OwnSlots::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
