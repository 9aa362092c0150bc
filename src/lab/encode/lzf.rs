//! A plain LZF packer (wire 0.2): short, not fast. Only the format matters; the packing need not be the best.

/// Longest distance back and longest copy that the format can name.
const DISTANCE_MAX: usize = 1 << 13;
const COPY_MAX: usize = 264;
const LITERALS_MAX: usize = 32;

/// Packs `input`; the result may be longer than it.
pub fn compress(input: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(input.len());
    let mut last_seen = vec![usize::MAX; 1 << 14];
    let mut literals_from = 0;
    let mut at = 0;
    while at + 3 <= input.len() {
        let three = u32::from_le_bytes([input[at], input[at + 1], input[at + 2], 0]);
        let slot = (three.wrapping_mul(0x9e37_79b1) >> 18) as usize;
        let before = std::mem::replace(&mut last_seen[slot], at);
        let near = before < at && at - before <= DISTANCE_MAX;
        if !near || input[before..before + 3] != input[at..at + 3] {
            at += 1;
            continue;
        }
        let limit = COPY_MAX.min(input.len() - at);
        let len = (0..limit).take_while(|i| input[before + i] == input[at + i]).count();
        literals(&mut out, &input[literals_from..at]);
        let (distance, code) = (at - before - 1, len - 2);
        if code < 7 {
            out.push((code << 5) as u8 | (distance >> 8) as u8);
        } else {
            out.push(7 << 5 | (distance >> 8) as u8);
            out.push((code - 7) as u8);
        }
        out.push(distance as u8);
        at += len;
        literals_from = at;
    }
    literals(&mut out, &input[literals_from..]);
    out
}

fn literals(out: &mut Vec<u8>, bytes: &[u8]) {
    for run in bytes.chunks(LITERALS_MAX) {
        out.push(run.len() as u8 - 1);
        out.extend_from_slice(run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Straight from the format's description.
    fn expand(mut packed: &[u8]) -> Vec<u8> {
        let mut out: Vec<u8> = Vec::new();
        while let Some((control, rest)) = packed.split_first() {
            let control = usize::from(*control);
            if control < 32 {
                out.extend_from_slice(&rest[..control + 1]);
                packed = &rest[control + 1..];
                continue;
            }
            let (mut len, mut rest) = (control >> 5, rest);
            if len == 7 {
                len += usize::from(rest[0]);
                rest = &rest[1..];
            }
            let back = ((control & 31) << 8) + usize::from(rest[0]) + 1;
            for _ in 0..len + 2 {
                out.push(out[out.len() - back]);
            }
            packed = &rest[1..];
        }
        out
    }

    #[test]
    fn round_trip() {
        let mut rng = crate::lab::rng::Rng::new(1);
        for len in [0, 1, 2, 3, 4, 40, 300, 5000, 70_000] {
            let mut text = Vec::new();
            rng.fill_text(&mut text, len);
            for input in [text, vec![b'x'; len], b"abcabd".repeat(len / 6)] {
                let small = compress(&input);
                assert_eq!(expand(&small), input, "{len}");
                assert!(input.len() < 300 || small.len() < input.len() * 95 / 100);
            }
        }
    }
}
