//! Intsets, wire 3.3: sets of integers.
//!
//! In: the bytes of one intset, which are hostile. Out: its numbers. Width, count and order are checked.

use super::error::Reason;

const HEADER_BYTES: usize = 8;

fn bad(cause: &'static str) -> Reason {
    Reason::BadContainer { container: "intset", cause }
}

/// The numbers of one intset, in order.
#[derive(Clone, Debug)]
pub struct Intset<'a> {
    rest: &'a [u8],
    width: usize,
    last: Option<i64>,
}

impl<'a> Intset<'a> {
    /// Checks header and length.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Reason> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(bad("shorter than its header"))?;
        let [w0, w1, w2, w3, c0, c1, c2, c3] = *header;
        let width = match u32::from_le_bytes([w0, w1, w2, w3]) {
            width @ (2 | 4 | 8) => width as usize,
            _ => return Err(bad("its width is not 2, 4 or 8")),
        };
        let count = u32::from_le_bytes([c0, c1, c2, c3]) as usize;
        match count.checked_mul(width) == Some(rest.len()) {
            true => Ok(Self { rest, width, last: None }),
            false => Err(bad("its count is not the number of bytes present")),
        }
    }

    /// Numbers still to come.
    pub fn count(&self) -> u64 {
        (self.rest.len() / self.width) as u64
    }

    /// The next number, `None` after the last.
    pub fn next(&mut self) -> Result<Option<i64>, Reason> {
        let Some((bytes, rest)) = self.rest.split_at_checked(self.width) else { return Ok(None) };
        let number = match *bytes {
            [a, b] => i64::from(i16::from_le_bytes([a, b])),
            [a, b, c, d] => i64::from(i32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => i64::from_le_bytes([a, b, c, d, e, f, g, h]),
            _ => return Err(bad("its width is not 2, 4 or 8")),
        };
        if self.last.is_some_and(|last| last >= number) {
            return Err(bad("its numbers do not ascend"));
        }
        (self.rest, self.last) = (rest, Some(number));
        Ok(Some(number))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Writes sorted numbers in the narrowest width; independent of the reader.
    pub fn encode(numbers: &[i64]) -> Vec<u8> {
        let fits =
            |bits: u32| numbers.iter().all(|v| (-(1i128 << (bits - 1))..1 << (bits - 1)).contains(&i128::from(*v)));
        let width = if fits(16) {
            2
        } else if fits(32) {
            4
        } else {
            8
        };
        let mut out = (width as u32).to_le_bytes().to_vec();
        out.extend((numbers.len() as u32).to_le_bytes());
        for number in numbers {
            out.extend(&number.to_le_bytes()[..width]);
        }
        out
    }

    fn walk(bytes: &[u8]) -> Result<Vec<i64>, Reason> {
        let mut set = Intset::new(bytes)?;
        let count = set.count();
        let mut out = Vec::new();
        while let Some(number) = set.next()? {
            out.push(number);
        }
        assert_eq!(count, out.len() as u64);
        Ok(out)
    }

    #[test]
    fn all_widths_come_back() {
        for numbers in [&[][..], &[-1, 0, 7], &[-32768, 32767], &[-32769, 5], &[i64::MIN, 0, i64::MAX]] {
            assert_eq!(walk(&encode(numbers)).unwrap(), numbers);
        }
    }

    #[test]
    fn lies_are_found() {
        let good = encode(&[1, 2, 3]);
        assert!(walk(&good[..good.len() - 1]).is_err());
        assert!(walk(&[3, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(walk(&[2, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(walk(&encode(&[2, 1])).is_err());
        assert!(walk(&encode(&[1, 1])).is_err());
    }
}
