//! A small seeded generator of numbers (SplitMix64), so that every run with one seed makes the same bytes.

/// Not for secrets. Cheap to clone and to derive: `Rng::new(seed ^ index)` is a fine independent stream.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    /// The next 64 bits.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`; 0 if `bound` is 0.
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// True in `fraction` (0.0 to 1.0) of the calls.
    pub fn chance(&mut self, fraction: f64) -> bool {
        fraction > 0.0 && (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64 <= fraction
    }

    /// Appends `len` bytes: printable, half of them repeated, so that compressors find something but not all.
    pub fn fill_text(&mut self, out: &mut Vec<u8>, len: usize) {
        const LETTERS: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
        let end = out.len() + len;
        out.reserve(len);
        while out.len() < end {
            let mut bits = self.next_u64();
            let run = if bits & 1 == 0 { 10 } else { 3 };
            for _ in 0..run {
                bits >>= 6;
                let letter = LETTERS[(bits & 63) as usize];
                for _ in 0..if run == 3 { 6 } else { 1 } {
                    if out.len() < end {
                        out.push(letter);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_same_numbers() {
        let (mut a, mut b) = (Rng::new(7), Rng::new(7));
        assert!((0..100).all(|_| a.next_u64() == b.next_u64()));
        assert!((0..1000).all(|_| a.below(10) < 10));
        assert_eq!(a.below(0), 0);
        assert!(!a.chance(0.0));
        let mut text = Vec::new();
        a.fill_text(&mut text, 1234);
        assert_eq!(text.len(), 1234);
    }
}
