//! Which entries a large stream holds, in little memory: asked when its tail tells which ids are pending.
//!
//! Ids come in ascending order and are kept as differences, two to four bytes each, in blocks; when the bound is reached
//! the oldest block goes. Of ids before the oldest block nothing is known then; pending ids are usually recent ones.

use crate::dragonfly::value::StreamId;
use std::collections::VecDeque;

const BLOCK_IDS: usize = 512;

#[derive(Debug)]
pub(super) struct LiveIds {
    blocks: VecDeque<Block>,
    bytes: usize,
    bytes_max: usize,
    evicted: bool,
}

#[derive(Debug)]
struct Block {
    first: StreamId,
    last: StreamId,
    count: usize,
    /// Of each further id: the difference of ms, then seq (or its difference, if ms is the same).
    differences: Vec<u8>,
}

/// Ids that are pending and not held.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Dangling {
    pub ids: Vec<StreamId>,
    /// How many more may be dangling: nothing is known of them.
    pub unknown: u64,
}

impl LiveIds {
    pub fn new(bytes_max: usize) -> Self {
        Self { blocks: VecDeque::new(), bytes: 0, bytes_max, evicted: false }
    }

    /// The next entry's id, above all before it. (One that is not is a malformed stream; the target will refuse it.)
    pub fn push(&mut self, id: StreamId) {
        let is_full = self.blocks.back().is_none_or(|block| block.count >= BLOCK_IDS || id <= block.last);
        if is_full {
            self.bytes += size_of::<Block>();
            self.blocks.push_back(Block { first: id, last: id, count: 1, differences: Vec::new() });
        } else if let Some(block) = self.blocks.back_mut() {
            let before = block.differences.len();
            let ms = id.ms - block.last.ms;
            push_varint(&mut block.differences, ms);
            push_varint(&mut block.differences, if ms == 0 { id.seq - block.last.seq } else { id.seq });
            block.last = id;
            block.count += 1;
            self.bytes += block.differences.len() - before;
        }
        while self.bytes > self.bytes_max && self.blocks.len() > 1 {
            if let Some(block) = self.blocks.pop_front() {
                self.bytes -= size_of::<Block>() + block.differences.len();
                self.evicted = true;
            }
        }
    }

    /// Which of these ids (ascending) are not held.
    pub fn dangling(&self, pending: &[StreamId]) -> Dangling {
        let mut dangling = Dangling::default();
        let mut pending = pending.iter().copied().peekable();
        if let (true, Some(oldest)) = (self.evicted, self.blocks.front()) {
            while pending.next_if(|id| *id < oldest.first).is_some() {
                dangling.unknown += 1;
            }
        }
        for block in &self.blocks {
            if pending.peek().is_none_or(|id| *id > block.last) {
                continue;
            }
            for held in block.ids() {
                while let Some(missing) = pending.next_if(|id| *id < held) {
                    dangling.ids.push(missing);
                }
                while pending.next_if_eq(&held).is_some() {}
            }
        }
        dangling.ids.extend(pending);
        dangling
    }
}

impl Block {
    fn ids(&self) -> impl Iterator<Item = StreamId> {
        let mut rest = self.differences.as_slice();
        let mut id = self.first;
        std::iter::once(self.first).chain(std::iter::from_fn(move || {
            let ms = take_varint(&mut rest)?;
            let seq = take_varint(&mut rest)?;
            id = if ms == 0 {
                StreamId { ms: id.ms, seq: id.seq.checked_add(seq)? }
            } else {
                StreamId { ms: id.ms.checked_add(ms)?, seq }
            };
            Some(id)
        }))
    }
}

fn push_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn id(ms: u64, seq: u64) -> StreamId {
        StreamId { ms, seq }
    }

    #[test]
    fn evicted_ids_are_unknown() {
        let mut ids = LiveIds::new(8 * BLOCK_IDS);
        for ms in 1..=20_000 {
            ids.push(id(ms, 0));
        }
        assert!(ids.bytes <= 8 * BLOCK_IDS);
        let dangling = ids.dangling(&[id(1, 0), id(19_999, 0), id(19_999, 1), id(30_000, 0)]);
        assert_eq!(dangling, Dangling { ids: vec![id(19_999, 1), id(30_000, 0)], unknown: 1 });
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        #[test]
        fn finds_exactly_the_missing(
            held in proptest::collection::btree_set((0u64..300, prop_oneof![0u64..5, any::<u64>()]), 0..2000),
            pending in proptest::collection::btree_set((0u64..300, 0u64..5), 0..200),
        ) {
            let mut ids = LiveIds::new(usize::MAX);
            held.iter().for_each(|(ms, seq)| ids.push(id(*ms, *seq)));
            let pending: Vec<StreamId> = pending.into_iter().map(|(ms, seq)| id(ms, seq)).collect();
            let held: BTreeSet<StreamId> = held.into_iter().map(|(ms, seq)| id(ms, seq)).collect();
            let missing: Vec<StreamId> = pending.iter().copied().filter(|id| !held.contains(id)).collect();
            prop_assert_eq!(ids.dangling(&pending), Dangling { ids: missing, unknown: 0 });
        }
    }
}
