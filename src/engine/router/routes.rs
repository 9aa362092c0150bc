//! Which lane has which slot.
//!
//! In: the lane of each slot. Out: the same, looked up for every key: the whole map is as large as the first-level cache, through
//! which the data streams, so that a look into it waits for the second level or the third. Nearly all slots lie in runs of one
//! node, hence a map of blocks of slots, of 512 bytes; only blocks in which nodes meet need the whole one.

use crate::ids::Slot;
use crate::redis::slot::SLOTS;

const SLOTS_PER_BLOCK: usize = 64;
const BLOCKS: usize = SLOTS as usize / SLOTS_PER_BLOCK;
const _: () = assert!(BLOCKS * SLOTS_PER_BLOCK == SLOTS as usize);

/// The slots of a block have several lanes.
const SEVERAL: u16 = u16::MAX;

pub struct Routes {
    by_block: [u16; BLOCKS],
    by_slot: Box<[u16]>,
}

impl Routes {
    pub fn new(by_slot: Box<[u16]>) -> Self {
        debug_assert_eq!(by_slot.len(), usize::from(SLOTS));
        let mut by_block = [SEVERAL; BLOCKS];
        for (lane, slots) in by_block.iter_mut().zip(by_slot.chunks_exact(SLOTS_PER_BLOCK)) {
            if let Some((first, others)) = slots.split_first()
                && others.iter().all(|other| other == first)
            {
                *lane = *first;
            }
        }
        Self { by_block, by_slot }
    }

    #[inline]
    pub fn lane_of(&self, slot: Slot) -> usize {
        let slot = usize::from(slot.0);
        match self.by_block.get(slot / SLOTS_PER_BLOCK) {
            Some(&lane) if lane != SEVERAL => usize::from(lane),
            _ => self.by_slot.get(slot).map_or(0, |lane| usize::from(*lane)),
        }
    }

    /// The lane of each slot.
    pub fn lanes(&self) -> impl Iterator<Item = usize> {
        self.by_slot.iter().map(|lane| usize::from(*lane))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_the_plain_map(
            runs in proptest::collection::vec((0u16..5, 1usize..3000), 1..30),
            strays in proptest::collection::vec((0..usize::from(SLOTS), 0u16..5), 0..20),
        ) {
            let mut plain: Vec<u16> = runs.iter().flat_map(|(lane, len)| std::iter::repeat_n(*lane, *len)).collect();
            plain.resize(usize::from(SLOTS), 9);
            strays.iter().for_each(|(slot, lane)| plain[*slot] = *lane);
            let routes = Routes::new(plain.clone().into());
            for (slot, lane) in plain.iter().enumerate() {
                prop_assert_eq!(routes.lane_of(Slot(slot as u16)), usize::from(*lane));
            }
            prop_assert!(routes.lanes().eq(plain.iter().map(|lane| usize::from(*lane))));
        }
    }
}
