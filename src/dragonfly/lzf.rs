//! LZF unpacking (wire 0.2), bounded by the announced plain length.
//!
//! In: the packed bytes and the plain length, both from the stream. Out: exactly that many bytes appended to a vector, or
//! nothing appended at all. Nothing is reserved before [`plausible`] has tied the plain length to the bytes present.

/// No LZF stream expands further: a 3-byte back reference yields at most 264 bytes.
const EXPANSION_MAX: usize = 88;

/// Whether `packed_len` bytes can possibly unpack to `plain_len`.
#[inline]
pub fn plausible(packed_len: usize, plain_len: u64) -> bool {
    plain_len <= (packed_len as u64).saturating_mul(EXPANSION_MAX as u64)
}

/// Appends the `plain_len` bytes that `packed` stands for; `false` (and `out` unchanged) if it does not.
#[must_use]
pub fn unpack(packed: &[u8], plain_len: usize, out: &mut Vec<u8>) -> bool {
    if !plausible(packed.len(), plain_len as u64) {
        return false;
    }
    let start = out.len();
    out.reserve(plain_len);
    let complete = unpack_all(packed, start, plain_len, out).is_some();
    if !complete {
        out.truncate(start);
    }
    complete
}

/// `None` if the packed bytes are wrong. May leave part of the output behind.
fn unpack_all(mut packed: &[u8], start: usize, plain_len: usize, out: &mut Vec<u8>) -> Option<()> {
    let end = start.checked_add(plain_len)?;
    while let Some((&control, rest)) = packed.split_first() {
        if control < 32 {
            let (literal, rest) = rest.split_at_checked(usize::from(control) + 1)?;
            if literal.len() > end - out.len() {
                return None;
            }
            out.extend_from_slice(literal);
            packed = rest;
            continue;
        }
        let mut length = usize::from(control >> 5);
        let mut rest = rest;
        if length == 7 {
            let (&more, after) = rest.split_first()?;
            length += usize::from(more);
            rest = after;
        }
        let (&low, after) = rest.split_first()?;
        packed = after;
        let distance = (usize::from(control & 31) << 8) + usize::from(low) + 1;
        length += 2;
        if distance > out.len() - start || length > end - out.len() {
            return None;
        }
        copy_back(out, distance, length);
    }
    (out.len() == end).then_some(())
}

/// Appends `length` bytes from `distance` bytes back; they may overlap what is being written.
fn copy_back(out: &mut Vec<u8>, distance: usize, mut length: usize) {
    let from = out.len() - distance;
    // Each round doubles what can be copied at once: a pattern repeats with the period `distance`.
    while length > 0 {
        let available = (out.len() - from).min(length);
        out.extend_from_within(from..from + available);
        length -= available;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The rule of wire 0.2 word by word, one byte at a time.
    fn unpack_naive(packed: &[u8], plain_len: usize) -> Option<Vec<u8>> {
        let mut out: Vec<u8> = Vec::new();
        let mut i = 0;
        while i < packed.len() {
            let c = packed[i] as usize;
            i += 1;
            if c < 32 {
                for _ in 0..c + 1 {
                    out.push(*packed.get(i)?);
                    i += 1;
                }
            } else {
                let mut length = c >> 5;
                if length == 7 {
                    length += *packed.get(i)? as usize;
                    i += 1;
                }
                let offset = ((c & 31) << 8) + *packed.get(i)? as usize + 1;
                i += 1;
                for _ in 0..length + 2 {
                    let at = out.len().checked_sub(offset)?;
                    out.push(out[at]);
                }
            }
            if out.len() > plain_len {
                return None;
            }
        }
        (out.len() == plain_len).then_some(out)
    }

    /// A simple packer for tests: greedy, looks back a few distances only.
    pub fn pack(plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut literal: Vec<u8> = Vec::new();
        let flush = |literal: &mut Vec<u8>, out: &mut Vec<u8>| {
            for piece in literal.chunks(32) {
                out.push(piece.len() as u8 - 1);
                out.extend_from_slice(piece);
            }
            literal.clear();
        };
        let mut i = 0;
        while i < plain.len() {
            let mut best = (0, 0);
            for distance in 1..=i.min(600) {
                let length =
                    (0..264.min(plain.len() - i)).take_while(|&k| plain[i + k - distance] == plain[i + k]).count();
                if length > best.0 {
                    best = (length, distance);
                }
            }
            let (length, distance) = best;
            if length < 3 {
                literal.push(plain[i]);
                i += 1;
                continue;
            }
            flush(&mut literal, &mut out);
            let (code, back) = (length - 2, distance - 1);
            if code < 7 {
                out.push(((code << 5) | (back >> 8)) as u8);
            } else {
                out.push(((7 << 5) | (back >> 8)) as u8);
                out.push((code - 7) as u8);
            }
            out.push((back & 255) as u8);
            i += length;
        }
        flush(&mut literal, &mut out);
        out
    }

    #[test]
    fn literals_and_overlapping_references() {
        let mut out = b"before".to_vec();
        // "ab", then 10 bytes from 2 back.
        assert!(unpack(&[1, b'a', b'b', 0xe0, 1, 1], 12, &mut out));
        assert_eq!(out, b"beforeabababababab");
    }

    #[test]
    fn references_do_not_reach_before_the_string() {
        let mut out = b"before".to_vec();
        assert!(!unpack(&[0, b'a', 0x20, 1], 4, &mut out));
        assert_eq!(out, b"before");
    }

    #[test]
    fn a_huge_plain_length_is_refused_before_memory_is_taken() {
        assert!(!unpack(&[0, b'a'], usize::MAX, &mut Vec::new()));
        assert!(!unpack(&[0, b'a'], 1 << 40, &mut Vec::new()));
    }

    proptest! {
        #[test]
        fn agrees_with_the_naive_twin(packed in proptest::collection::vec(any::<u8>(), 0..60), plain_len in 0usize..400) {
            let mut out = Vec::new();
            let good = unpack(&packed, plain_len, &mut out);
            // The naive twin's own length, so that the good case is met often.
            prop_assert_eq!(good.then_some(out), unpack_naive(&packed, plain_len));
            for plain_len in 0..200 {
                if let Some(expected) = unpack_naive(&packed, plain_len) {
                    let mut out = Vec::new();
                    prop_assert!(unpack(&packed, plain_len, &mut out));
                    prop_assert_eq!(out, expected);
                }
            }
        }

        #[test]
        fn packed_text_comes_back(plain in proptest::collection::vec(0u8..4, 0..700)) {
            let packed = pack(&plain);
            let mut out = Vec::new();
            prop_assert!(unpack(&packed, plain.len(), &mut out));
            prop_assert_eq!(out, plain);
        }
    }
}
