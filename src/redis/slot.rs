//! The hash slot of a key: CRC-16/XMODEM of the key, or of its hash tag, modulo 16384.
//!
//! The tag is what stands between the first `{` and the first `}` after it; the whole key counts if there is no such
//! pair or nothing between them. The other way round, [`tag`] gives a short text that lies in a wanted slot.

use crate::ids::Slot;
use std::sync::OnceLock;

/// Number of slots of a Redis Cluster.
pub const SLOTS: u16 = 16384;

/// Table-16 form: 9.5 ns for a key of 16 bytes, where the byte-wise `crc16` crate takes 27 (measured.md 12).
static CRC16: crc::Crc<u16, crc::Table<16>> = crc::Crc::<u16, crc::Table<16>>::new(&crc::CRC_16_XMODEM);

/// The slot of a key.
#[inline]
pub fn slot(key: &[u8]) -> Slot {
    Slot(CRC16.checksum(hash_tag(key)) % SLOTS)
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
        fn agrees_with_the_bytewise_twin(key in proptest::collection::vec(any::<u8>(), 0..80)) {
            let tag = hash_tag(&key);
            prop_assert_eq!(slot(&key).0, crc16::State::<crc16::XMODEM>::calculate(tag) % SLOTS);
        }
    }
}
