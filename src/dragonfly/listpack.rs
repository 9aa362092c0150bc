//! Listpacks, wire 3.3: the compact containers of Redis 7, and of stream nodes.
//!
//! In: the bytes of one listpack, which are hostile. Out: its elements. The header's totals, every element's length and
//! every back length are checked; the end mark must be the last byte.

use super::error::Reason;
use super::event::Text;

const HEADER_BYTES: usize = 6;
const END: u8 = 0xff;
/// Count in the header that stands for "walk and see".
const COUNT_UNKNOWN: u16 = u16::MAX;

fn bad(cause: &'static str) -> Reason {
    Reason::BadContainer { container: "listpack", cause }
}

/// The elements of one listpack, in order.
#[derive(Clone, Debug)]
pub struct Listpack<'a> {
    /// Elements not yet visited and the end mark.
    rest: &'a [u8],
    /// What the header says, if it says.
    count: Option<u16>,
    seen: u64,
}

impl<'a> Listpack<'a> {
    /// Checks the header.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Reason> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(bad("shorter than its header"))?;
        let [b0, b1, b2, b3, c0, c1] = *header;
        if u32::from_le_bytes([b0, b1, b2, b3]) as usize != bytes.len() {
            return Err(bad("its total length is not the number of bytes present"));
        }
        if rest.last() != Some(&END) {
            return Err(bad("no end mark"));
        }
        let count = u16::from_le_bytes([c0, c1]);
        Ok(Self { rest, count: (count != COUNT_UNKNOWN).then_some(count), seen: 0 })
    }

    /// Number of elements: from the header where it says, else by a walk.
    pub fn count(&self) -> Result<u64, Reason> {
        match self.count {
            Some(count) => Ok(u64::from(count)),
            None => {
                let mut walk = self.clone();
                while walk.next()?.is_some() {}
                Ok(walk.seen)
            }
        }
    }

    /// The next element, `None` after the last.
    #[inline]
    pub fn next(&mut self) -> Result<Option<Text<'a>>, Reason> {
        if let [END] = self.rest {
            return match self.count {
                Some(count) if u64::from(count) != self.seen => Err(bad("its count is not the number of elements")),
                _ => Ok(None),
            };
        }
        let (text, len) = element(self.rest)?;
        let back_len = back_length_bytes(len);
        let after = self.rest.get(len..).ok_or(bad("an element reaches past the end"))?;
        let (back, after) = after.split_at_checked(back_len).ok_or(bad("an element reaches past the end"))?;
        if !back_length_is(back, len) {
            return Err(bad("a back length does not match its element"));
        }
        self.rest = after;
        self.seen += 1;
        Ok(Some(text))
    }

    /// The next element, which must be there and be an integer.
    pub fn next_int(&mut self) -> Result<i64, Reason> {
        match self.next()? {
            Some(Text::Int(number)) => Ok(number),
            Some(_) => Err(bad("text where a number must stand")),
            None => Err(bad("ends too early")),
        }
    }

    /// The next element, which must be there.
    pub fn next_text(&mut self) -> Result<Text<'a>, Reason> {
        self.next()?.ok_or(bad("ends too early"))
    }
}

/// The element at the front of `bytes` and the length of its encoding and data.
#[inline]
fn element(bytes: &[u8]) -> Result<(Text<'_>, usize), Reason> {
    let short = bad("an element reaches past the end");
    let Some(&first) = bytes.first() else { return Err(short) };
    let string = |head: usize, len: usize| {
        let end = head.checked_add(len)?;
        Some((Text::Raw(bytes.get(head..end)?), end))
    };
    let at = |index: usize| bytes.get(index).copied();
    let found = match first {
        0x00..=0x7f => Some((Text::Int(i64::from(first)), 1)),
        0x80..=0xbf => string(1, usize::from(first & 0x3f)),
        0xc0..=0xdf => at(1).map(|low| {
            let bits = i64::from(first & 0x1f) << 8 | i64::from(low);
            (Text::Int(if bits >= 4096 { bits - 8192 } else { bits }), 2)
        }),
        0xe0..=0xef => at(1).and_then(|low| string(2, usize::from(first & 0x0f) << 8 | usize::from(low))),
        0xf0 => fixed::<4>(bytes).and_then(|len| string(5, u32::from_le_bytes(len) as usize)),
        0xf1 => fixed(bytes).map(|b| (Text::Int(i64::from(i16::from_le_bytes(b))), 3)),
        0xf2 => fixed(bytes).map(|[a, b, c]| (Text::Int(i64::from(i32::from_le_bytes([0, a, b, c]) >> 8)), 4)),
        0xf3 => fixed(bytes).map(|b| (Text::Int(i64::from(i32::from_le_bytes(b))), 5)),
        0xf4 => fixed(bytes).map(|b| (Text::Int(i64::from_le_bytes(b)), 9)),
        _ => return Err(bad("an element of unknown encoding")),
    };
    found.ok_or(short)
}

/// The `N` bytes after the encoding byte.
#[inline]
fn fixed<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.get(1..)?.first_chunk::<N>().copied()
}

/// How many bytes the back length of an element takes. The borders are those of Redis: below, not equal.
#[inline]
fn back_length_bytes(len: usize) -> usize {
    match len {
        0..=127 => 1,
        128..16_383 => 2,
        16_383..2_097_151 => 3,
        2_097_151..268_435_455 => 4,
        _ => 5,
    }
}

/// 7-bit groups, big endian, bit 7 set in all but the first.
#[inline]
fn back_length_is(back: &[u8], len: usize) -> bool {
    if let [one] = back {
        return usize::from(*one) == len;
    }
    let mut shift = back.len() * 7;
    back.iter().enumerate().all(|(i, &byte)| {
        shift -= 7;
        let mark = if i == 0 { 0 } else { 0x80 };
        usize::from(byte) == (len >> shift) & 0x7f | mark
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An element for the encoder.
    #[derive(Clone, Debug, PartialEq)]
    pub enum Plain {
        Int(i64),
        Str(Vec<u8>),
    }

    /// Writes elements with the shortest forms; independent of the reader.
    pub fn encode(elements: &[Plain]) -> Vec<u8> {
        let mut body = Vec::new();
        for element in elements {
            let mut e = Vec::new();
            match element {
                Plain::Int(v) => match *v {
                    0..=127 => e.push(*v as u8),
                    -4096..=4095 => {
                        let bits = (*v & 0x1fff) as u16;
                        e.extend([0xc0 | (bits >> 8) as u8, bits as u8]);
                    }
                    -32768..=32767 => {
                        e.push(0xf1);
                        e.extend((*v as i16).to_le_bytes());
                    }
                    -8388608..=8388607 => {
                        e.push(0xf2);
                        e.extend(&(*v as i32).to_le_bytes()[..3]);
                    }
                    -2147483648..=2147483647 => {
                        e.push(0xf3);
                        e.extend((*v as i32).to_le_bytes());
                    }
                    _ => {
                        e.push(0xf4);
                        e.extend(v.to_le_bytes());
                    }
                },
                Plain::Str(s) => {
                    match s.len() {
                        0..=63 => e.push(0x80 | s.len() as u8),
                        64..=4095 => e.extend([0xe0 | (s.len() >> 8) as u8, s.len() as u8]),
                        _ => {
                            e.push(0xf0);
                            e.extend((s.len() as u32).to_le_bytes());
                        }
                    }
                    e.extend(s);
                }
            }
            let len = e.len() as u64;
            let groups = if len <= 127 {
                1
            } else if len < 16383 {
                2
            } else if len < 2097151 {
                3
            } else {
                4
            };
            for i in (0..groups).rev() {
                let top = if i == groups - 1 { 0 } else { 0x80 };
                e.push(top | ((len >> (7 * i)) & 127) as u8);
            }
            body.extend(e);
        }
        let mut out = ((body.len() + 7) as u32).to_le_bytes().to_vec();
        out.extend((elements.len().min(65535) as u16).to_le_bytes());
        out.extend(body);
        out.push(0xff);
        out
    }

    fn walk(bytes: &[u8]) -> Result<Vec<Plain>, Reason> {
        let mut pack = Listpack::new(bytes)?;
        let mut out = Vec::new();
        while let Some(text) = pack.next()? {
            out.push(match text {
                Text::Int(v) => Plain::Int(v),
                Text::Raw(s) => Plain::Str(s.to_vec()),
                Text::Lzf { .. } => unreachable!("no LZF inside listpacks"),
            });
        }
        assert_eq!(Listpack::new(bytes)?.count()?, out.len() as u64);
        Ok(out)
    }

    #[test]
    fn every_encoding_comes_back() {
        let mut elements = Vec::new();
        for bits in [0, 1, 6, 7, 12, 13, 15, 16, 23, 24, 31, 32, 62] {
            let v = 1i64 << bits;
            elements.extend([v, v - 1, -v, -v - 1].map(Plain::Int));
        }
        elements.extend([i64::MIN, i64::MAX].map(Plain::Int));
        for len in [0, 1, 63, 64, 125, 126, 127, 128, 4095, 4096, 16376, 16377, 16378, 16379, 70000] {
            elements.push(Plain::Str(vec![b'x'; len]));
        }
        assert_eq!(walk(&encode(&elements)).unwrap(), elements);
        assert_eq!(walk(&encode(&[])).unwrap(), []);
    }

    #[test]
    fn a_count_of_65535_means_walk() {
        let elements: Vec<_> = (0..70_000).map(Plain::Int).collect();
        assert_eq!(walk(&encode(&elements)).unwrap().len(), 70_000);
    }

    #[test]
    fn header_lies_are_found() {
        let good = encode(&[Plain::Int(1), Plain::Str(b"ab".to_vec())]);
        for (index, delta) in [(0, 1), (0, 255), (3, 1), (4, 1), (4, 255), (5, 1)] {
            let mut bad = good.clone();
            bad[index] = bad[index].wrapping_add(delta);
            assert!(walk(&bad).is_err(), "byte {index} changed by {delta}");
        }
        assert!(walk(&good[..good.len() - 1]).is_err());
        assert!(walk(&[]).is_err());
        assert!(walk(&[6, 0, 0, 0, 0, 0]).is_err());
    }

    #[test]
    fn elements_past_the_end_and_wrong_back_lengths_are_found() {
        assert!(walk(&[9, 0, 0, 0, 1, 0, 0x82, b'a', 0xff]).is_err());
        assert!(walk(&[10, 0, 0, 0, 1, 0, 0x81, b'a', 3, 0xff]).is_err());
        assert!(walk(&[10, 0, 0, 0, 1, 0, 0xf5, 0, 2, 0xff]).is_err());
        assert!(walk(&[12, 0, 0, 0, 1, 0, 0xf0, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err());
        // An end mark before the end.
        assert!(walk(&[9, 0, 0, 0, 1, 0, 0xff, 1, 0xff]).is_err());
    }
}
