//! The hash slot of a key: CRC-16/XMODEM of the key, or of its hash tag, modulo 16384.
//!
//! The tag is what stands between the first `{` and the first `}` after it; the whole key counts if there is no such
//! pair or nothing between them. The other way round, [`tag`] gives a short text that lies in a wanted slot.

use crate::ids::Slot;
use std::sync::OnceLock;

/// Number of slots of a Redis Cluster.
pub const SLOTS: u16 = 16384;

/// `SUMS[n][b]`: CRC-16/XMODEM of the byte `b` with `n` zero bytes behind it. The sum of a key is the XOR of its bytes' sums, so
/// that the looks into the table do not wait for each other, as those of a byte-wise sum do.
static SUMS: [[u16; 256]; BLOCK_BYTES] = sums();
const BLOCK_BYTES: usize = 16;
const POLYNOMIAL: u16 = 0x1021;

const fn sums() -> [[u16; 256]; BLOCK_BYTES] {
    let mut sums = [[0; 256]; BLOCK_BYTES];
    let mut byte = 0;
    while byte < 256 {
        let mut sum = (byte as u16) << 8;
        let mut zeros = 0;
        while zeros < BLOCK_BYTES {
            let mut bit = 0;
            while bit < 8 {
                sum = sum << 1 ^ if sum & 0x8000 != 0 { POLYNOMIAL } else { 0 };
                bit += 1;
            }
            sums[zeros][byte] = sum;
            zeros += 1;
        }
        byte += 1;
    }
    sums
}

/// The slot of a key.
#[inline]
pub fn slot(key: &[u8]) -> Slot {
    let hashed = if has_brace(key) { hash_tag(key) } else { key };
    Slot(checksum(hashed) % SLOTS)
}

#[inline]
fn checksum(bytes: &[u8]) -> u16 {
    let (head, blocks) = bytes.split_at(bytes.len() % BLOCK_BYTES);
    let places = SUMS.get(..head.len()).unwrap_or_default().iter().rev();
    let sum = places.zip(head).fold(0, |sum, (place, byte)| sum ^ place[usize::from(*byte)]);
    let (blocks, _) = blocks.as_chunks::<BLOCK_BYTES>();
    blocks.iter().fold(sum, |sum, block| {
        // What came before lies in front of the block's first two bytes.
        let [first, second] = sum.to_be_bytes();
        let mut block = *block;
        block[0] ^= first;
        block[1] ^= second;
        SUMS.iter().rev().zip(block).fold(0, |sum, (place, byte)| sum ^ place[usize::from(byte)])
    })
}

/// Whether there is a `{` anywhere: hardly any key has one, and to find that out is most of what [`hash_tag`] costs.
#[inline]
fn has_brace(key: &[u8]) -> bool {
    const WORD_BYTES: usize = 8;
    let in_word = |word: &[u8; WORD_BYTES]| {
        // A byte that becomes zero borrows from its highest bit.
        let zeroed = u64::from_le_bytes(*word) ^ u64::from_le_bytes([b'{'; WORD_BYTES]);
        zeroed.wrapping_sub(u64::from_le_bytes([0x01; WORD_BYTES])) & !zeroed & u64::from_le_bytes([0x80; WORD_BYTES])
    };
    match key.last_chunk() {
        // The last word overlaps the one before it.
        Some(last) => key.as_chunks().0.iter().fold(in_word(last), |found, word| found | in_word(word)) != 0,
        None => key.contains(&b'{'),
    }
}

/// The part of the key that is hashed.
#[inline]
pub fn hash_tag(key: &[u8]) -> &[u8] {
    let Some(open) = memchr::memchr(b'{', key) else { return key };
    let Some(rest) = key.get(open + 1..) else { return key };
    match memchr::memchr(b'}', rest) {
        None | Some(0) => key,
        Some(len) => rest.get(..len).unwrap_or(key),
    }
}

/// Most bytes of a [`tag`].
pub const TAG_BYTES_MAX: usize = 4;

/// A short text whose slot is `slot`: a key with it as its hash tag lies there. Found once, by trying.
pub fn tag(slot: Slot) -> &'static str {
    static TAGS: OnceLock<Vec<Box<str>>> = OnceLock::new();
    TAGS.get_or_init(find_tags).get(usize::from(slot.0)).map_or("", |tag| tag)
}

/// Texts of up to four letters and digits, shortest first, until every slot has one.
fn find_tags() -> Vec<Box<str>> {
    const LETTERS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut tags: Vec<Box<str>> = vec![Box::default(); usize::from(SLOTS)];
    let mut left = tags.len();
    for number in 0..LETTERS.len().pow(TAG_BYTES_MAX as u32) {
        let mut text = String::with_capacity(TAG_BYTES_MAX);
        let mut rest = number;
        loop {
            text.push(char::from(LETTERS[rest % LETTERS.len()]));
            rest /= LETTERS.len();
            if rest == 0 {
                break;
            }
        }
        if let Some(place) = tags.get_mut(usize::from(slot(text.as_bytes()).0))
            && place.is_empty()
        {
            *place = text.into();
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
    tags
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_slots() {
        assert_eq!(slot(b"123456789"), Slot(0x31c3));
        assert_eq!(slot(b"foo"), Slot(12182));
        assert_eq!(slot(b""), Slot(0));
    }

    #[test]
    fn tags() {
        assert_eq!(hash_tag(b"{user1000}.following"), b"user1000");
        assert_eq!(hash_tag(b"foo{}{bar}"), b"foo{}{bar}");
        assert_eq!(hash_tag(b"foo{{bar}}zap"), b"{bar");
        assert_eq!(hash_tag(b"foo{bar}{zap}"), b"bar");
        assert_eq!(hash_tag(b"foo}{"), b"foo}{");
        assert_eq!(hash_tag(b"{"), b"{");
    }

    #[test]
    fn every_slot_has_a_tag() {
        for number in 0..SLOTS {
            let tag = tag(Slot(number));
            assert!(!tag.is_empty() && tag.len() <= TAG_BYTES_MAX);
            assert_eq!(slot(format!("df2redis:m:{{{tag}}}:12").as_bytes()), Slot(number));
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_bytewise_twin(
            mut key in proptest::collection::vec(any::<u8>(), 0..80),
            braces in proptest::collection::vec((any::<proptest::sample::Index>(), any::<bool>()), 0..4),
        ) {
            for (at, opens) in braces.iter().filter(|_| !key.is_empty()).map(|(at, opens)| (at.index(key.len()), opens)).collect::<Vec<_>>() {
                key[at] = if *opens { b'{' } else { b'}' };
            }
            let tag = hash_tag(&key);
            prop_assert_eq!(slot(&key).0, crc16::State::<crc16::XMODEM>::calculate(tag) % SLOTS);
        }
    }
}
