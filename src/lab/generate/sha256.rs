//! SHA-256 (FIPS 180-4), plain: only for the digests of long values in truth rows.

/// A digest in the making.
#[derive(Clone, Debug)]
pub struct Sha256 {
    state: [u32; 8],
    block: [u8; 64],
    filled: usize,
    total_bytes: u64,
}

impl Default for Sha256 {
    fn default() -> Self {
        Self { state: roots(2).map(|(_, half)| half), block: [0; 64], filled: 0, total_bytes: 0 }
    }
}

impl Sha256 {
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.total_bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let take = bytes.len().min(64 - self.filled);
            self.block[self.filled..self.filled + take].copy_from_slice(&bytes[..take]);
            self.filled += take;
            bytes = &bytes[take..];
            if self.filled == 64 {
                self.compress();
                self.filled = 0;
            }
        }
    }

    /// The digest in lower-case hexadecimal digits.
    pub fn hex(mut self) -> String {
        let bits = self.total_bytes * 8;
        self.update(&[0x80]);
        while self.filled != 56 {
            self.update(&[0]);
        }
        self.update(&bits.to_be_bytes());
        self.state.iter().map(|word| format!("{word:08x}")).collect()
    }

    fn compress(&mut self) {
        let mut w = [0u32; 64];
        for (word, bytes) in w.iter_mut().zip(self.block.as_chunks::<4>().0) {
            *word = u32::from_be_bytes(*bytes);
        }
        for i in 16..64 {
            let (a, b) = (w[i - 15], w[i - 2]);
            let small = a.rotate_right(7) ^ a.rotate_right(18) ^ (a >> 3);
            let large = b.rotate_right(17) ^ b.rotate_right(19) ^ (b >> 10);
            w[i] = w[i - 16].wrapping_add(small).wrapping_add(w[i - 7]).wrapping_add(large);
        }
        let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = self.state;
        for (word, k) in w.iter().zip(constants()) {
            let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
            let t1 = h.wrapping_add(s1).wrapping_add((e & f) ^ (!e & g)).wrapping_add(*k).wrapping_add(*word);
            let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
            let t2 = s0.wrapping_add((a & b) ^ (a & c) ^ (b & c));
            (h, g, f, e, d, c, b, a) = (g, f, e, d.wrapping_add(t1), c, b, a, t1.wrapping_add(t2));
        }
        for (word, add) in self.state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
            *word = word.wrapping_add(add);
        }
    }
}

fn constants() -> &'static [u32; 64] {
    static CONSTANTS: std::sync::OnceLock<[u32; 64]> = std::sync::OnceLock::new();
    CONSTANTS.get_or_init(|| roots(3).map(|(_, third)| third))
}

/// The first 32 bits of the fractions of the `degree`-th roots of the first N primes, which the standard takes as its
/// constants; computed, not copied: floor(root * 2^32) by bisection in integers.
fn roots<const N: usize>(degree: u32) -> [(u32, u32); N] {
    let mut primes = (2u32..).filter(|n| (2..*n).take_while(|d| d * d <= *n).all(|d| n % d != 0));
    std::array::from_fn(|_| {
        let prime = primes.next().unwrap_or(2);
        let (mut low, mut high) = (0u64, 1 << 36);
        while high - low > 1 {
            let middle = (low + high) / 2;
            if power_at_most(middle, degree, prime) { low = middle } else { high = middle }
        }
        (prime, low as u32)
    })
}

/// `(x / 2^32)^degree <= prime`, exactly.
fn power_at_most(x: u64, degree: u32, prime: u32) -> bool {
    let x = u128::from(x);
    match degree {
        2 => x * x <= u128::from(prime) << 64,
        _ => {
            // x^3 <= prime * 2^96, with x < 2^36: x^3 < 2^108 fits; prime * 2^96 < 2^105.
            x * x * x <= u128::from(prime) << 96
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_digests() {
        let digest = |bytes: &[u8]| {
            let mut sha = Sha256::default();
            bytes.chunks(7).for_each(|chunk| sha.update(chunk));
            sha.hex()
        };
        assert_eq!(digest(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(digest(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let long = digest(&[b'a'; 1_000_000]);
        assert_eq!(long, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    }
}
