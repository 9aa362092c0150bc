//! HyperLogLogs: equal if all registers are, whatever their form.
//!
//! A HyperLogLog is a string: `HYLL`, encoding (0 dense, 1 sparse), 3 unused bytes, 8 bytes of a remembered count, then
//! 16,384 registers of six bits, or runs of them. Servers choose the form and remember the count by themselves.

const REGISTERS: usize = 16_384;
const HEADER_BYTES: usize = 16;
const DENSE_BYTES: usize = REGISTERS * 6 / 8;

/// All registers; none if the string is no sound HyperLogLog.
pub fn registers(string: &[u8]) -> Option<Vec<u8>> {
    let (header, body) = string.split_at_checked(HEADER_BYTES)?;
    match header {
        [b'H', b'Y', b'L', b'L', 0, ..] => dense(body),
        [b'H', b'Y', b'L', b'L', 1, ..] => sparse(body),
        _ => None,
    }
}

fn dense(body: &[u8]) -> Option<Vec<u8>> {
    // Redis keeps one byte more than the registers need, some write none.
    if body.len() < DENSE_BYTES {
        return None;
    }
    let bit = |at: usize| body.get(at / 8).map(|byte| (byte >> (at % 8)) & 1);
    (0..REGISTERS).map(|register| (0..6).try_fold(0, |sum, i| Some(sum | bit(register * 6 + i)? << i))).collect()
}

fn sparse(body: &[u8]) -> Option<Vec<u8>> {
    let mut registers = Vec::with_capacity(REGISTERS);
    let mut rest = body;
    while let Some((&op, after)) = rest.split_first() {
        rest = after;
        let (value, count) = match op {
            // ZERO: 00nnnnnn
            0x00..=0x3f => (0, usize::from(op & 0x3f) + 1),
            // XZERO: 01nnnnnn nnnnnnnn
            0x40..=0x7f => {
                let (&low, after) = rest.split_first()?;
                rest = after;
                (0, (usize::from(op & 0x3f) << 8 | usize::from(low)) + 1)
            }
            // VAL: 1vvvvvnn
            _ => (((op >> 2) & 0x1f) + 1, usize::from(op & 0x03) + 1),
        };
        if registers.len() + count > REGISTERS {
            return None;
        }
        registers.resize(registers.len() + count, value);
    }
    (registers.len() == REGISTERS).then_some(registers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(encoding: u8, count: u8, body: &[u8]) -> Vec<u8> {
        [&b"HYLL"[..], &[encoding, 0, 0, 0], &[count; 8], body].concat()
    }

    #[test]
    fn both_forms_of_the_same_registers_are_equal() {
        let sparse = string(1, 0x80, &[0x40 | 0x3f, 0xfd, 0x80 | (4 << 2) | 1]);
        let mut body = vec![0; DENSE_BYTES + 1];
        for register in [16_382, 16_383] {
            for i in 0..6 {
                body[(register * 6 + i) / 8] |= ((5 >> i) & 1) << ((register * 6 + i) % 8);
            }
        }
        let dense = string(0, 0, &body);
        assert_eq!(registers(&sparse).unwrap(), registers(&dense).unwrap());
        assert_eq!(registers(&sparse).unwrap()[16_381..], [0, 5, 5]);
    }

    #[test]
    fn unsound_ones_are_plain_strings() {
        for bad in
            [b"HYLL".to_vec(), string(2, 0, b""), string(0, 0, &[0; 100]), string(1, 0, &[0x3f]), string(1, 0, &[0x7f])]
        {
            assert_eq!(registers(&bad), None);
        }
        assert_eq!(registers(&string(1, 0, &[[0x7f, 0xff], [0x7f, 0xff]].concat())), None);
    }
}
