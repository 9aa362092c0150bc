//! The footer of a DUMP payload: u16le version, u64le CRC-64/REDIS ("Jones") over everything before it.
//!
//! The version written is always 9: targets refuse payloads newer than themselves (and Valkey 9 refuses 12 to 79 as
//! foreign), but none checks that the version fits the type (wire 3.8).
//!
//! The sum runs over several slices, so that a value that stays where it was received can be summed in place. Short
//! slices go through a table, long ones through carry-less multiplication (`crc-fast`); both keep the same state.

/// The footer version that every target from Redis 6.2 to Valkey 9 accepts.
pub const FOOTER_VERSION: u16 = 9;
/// Bytes of a footer.
pub const FOOTER_LEN: usize = 10;
/// From this length on `crc-fast` beats the table (measured.md 12; `tools/bench micro` repeats it).
pub const FOLDING_LEN_MIN: usize = 128;

static TABLE: crc::Crc<u64, crc::Table<16>> = crc::Crc::<u64, crc::Table<16>>::new(&crc::CRC_64_REDIS);

/// A running CRC-64/REDIS.
#[derive(Clone, Copy, Debug, Default)]
pub struct Crc64(u64);

impl Crc64 {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes by whichever way is faster at their length.
    #[inline]
    pub fn update(&mut self, bytes: &[u8]) {
        if bytes.len() < FOLDING_LEN_MIN { self.update_table(bytes) } else { self.update_folding(bytes) }
    }

    /// The table way.
    #[inline]
    pub fn update_table(&mut self, bytes: &[u8]) {
        // The crate takes the initial value unreflected.
        let mut digest = TABLE.digest_with_initial(self.0.reverse_bits());
        digest.update(bytes);
        self.0 = digest.finalize();
    }

    /// The carry-less multiplication way.
    pub fn update_folding(&mut self, bytes: &[u8]) {
        let mut digest = crc_fast::Digest::new_with_init_state(crc_fast::CrcAlgorithm::Crc64Redis, self.0);
        digest.update(bytes);
        self.0 = digest.finalize();
    }

    pub fn value(&self) -> u64 {
        self.0
    }

    /// The footer of the payload summed so far.
    #[inline]
    pub fn footer(mut self) -> [u8; FOOTER_LEN] {
        let mut footer = [0; FOOTER_LEN];
        let version = FOOTER_VERSION.to_le_bytes();
        self.update_table(&version);
        let (head, sum) = footer.split_at_mut(2);
        head.copy_from_slice(&version);
        sum.copy_from_slice(&self.0.to_le_bytes());
        footer
    }
}

/// The footer of a payload given in pieces (type byte, value, ...).
pub fn footer(pieces: &[&[u8]]) -> [u8; FOOTER_LEN] {
    let mut crc = Crc64::new();
    for piece in pieces {
        crc.update(piece);
    }
    crc.footer()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn check_value() {
        for update in [Crc64::update_table, Crc64::update_folding, Crc64::update] {
            let mut crc = Crc64::new();
            update(&mut crc, b"123456789");
            assert_eq!(crc.value(), 0xe9c6_d914_c4b8_d9ca);
        }
    }

    /// The DUMP rows of wire appendix A.
    #[test]
    fn footers_of_known_dumps() {
        assert_eq!(footer(&[b"\x00\x03bar"]), *b"\x09\x00\x36\x4c\x18\xac\xba\xe0\x9e\xa6");
        assert_eq!(footer(&[b"\x00", b"\xc0\x05"]), *b"\x09\x00\xb3\xdd\x0e\xaa\xd7\xa9\xd0\xe0");
        let mut crc = Crc64::new();
        crc.update(b"\x00\xc0\x0a\x0a\x00");
        assert_eq!(crc.value().to_le_bytes(), *b"\x6e\x9f\x57\x45\x0e\xae\x63\xbb");
    }

    proptest! {
        #[test]
        fn both_ways_agree_over_any_pieces(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..700), 0..5)) {
            let mut plain = Crc64::new();
            let mut folding = Crc64::new();
            let mut mixed = Crc64::new();
            for piece in &pieces {
                plain.update_table(piece);
                folding.update_folding(piece);
                mixed.update(piece);
            }
            let whole = TABLE.checksum(&pieces.concat());
            prop_assert_eq!(plain.value(), whole);
            prop_assert_eq!(folding.value(), whole);
            prop_assert_eq!(mixed.value(), whole);
        }
    }
}
