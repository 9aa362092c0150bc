//! Ziplists, wire 3.3: the compact containers of old masters (types 12, 13, 14).
//!
//! In: the bytes of one ziplist, which are hostile. Out: its elements. The header's totals, the tail offset, every length
//! and every back reference are checked; the end mark must be the last byte.

use super::error::Reason;
use super::event::Text;

const HEADER_BYTES: usize = 10;
const END: u8 = 0xff;
/// First byte of a previous length that stands in the four bytes behind it.
const LONG_PREVIOUS: u8 = 0xfe;
const COUNT_UNKNOWN: u16 = u16::MAX;

fn bad(cause: &'static str) -> Reason {
    Reason::BadContainer { container: "ziplist", cause }
}

/// The elements of one ziplist, in order.
#[derive(Clone, Debug)]
pub struct Ziplist<'a> {
    rest: &'a [u8],
    count: Option<u16>,
    seen: u64,
    /// Where the entry to come stands, from the front of the ziplist, and how long the one before it was.
    at: usize,
    previous_len: usize,
    tail_at: usize,
}

impl<'a> Ziplist<'a> {
    /// Checks the header.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Reason> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(bad("shorter than its header"))?;
        let [b0, b1, b2, b3, t0, t1, t2, t3, c0, c1] = *header;
        if u32::from_le_bytes([b0, b1, b2, b3]) as usize != bytes.len() {
            return Err(bad("its total length is not the number of bytes present"));
        }
        if rest.last() != Some(&END) {
            return Err(bad("no end mark"));
        }
        let count = u16::from_le_bytes([c0, c1]);
        Ok(Self {
            rest,
            count: (count != COUNT_UNKNOWN).then_some(count),
            seen: 0,
            at: HEADER_BYTES,
            previous_len: 0,
            tail_at: u32::from_le_bytes([t0, t1, t2, t3]) as usize,
        })
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
    pub fn next(&mut self) -> Result<Option<Text<'a>>, Reason> {
        if let [END] = self.rest {
            if self.count.is_some_and(|count| u64::from(count) != self.seen) {
                return Err(bad("its count is not the number of elements"));
            }
            // The offset is that of the last entry, or of the end mark if there is none.
            return match self.at - self.previous_len == self.tail_at {
                true => Ok(None),
                false => Err(bad("its tail offset is not that of the last element")),
            };
        }
        let (previous, head) = previous_length(self.rest)?;
        if previous != self.previous_len {
            return Err(bad("a previous length does not match the element before"));
        }
        let body = self.rest.get(head..).unwrap_or_default();
        let (text, len) = entry(body).ok_or(bad("an element of unknown encoding or past the end"))?;
        let len = head + len;
        self.rest = self.rest.get(len..).ok_or(bad("an element reaches past the end"))?;
        self.at += len;
        self.previous_len = len;
        self.seen += 1;
        Ok(Some(text))
    }
}

/// The previous length at the front of an entry, and how many bytes it takes.
fn previous_length(bytes: &[u8]) -> Result<(usize, usize), Reason> {
    match bytes {
        [LONG_PREVIOUS, a, b, c, d, ..] => Ok((u32::from_le_bytes([*a, *b, *c, *d]) as usize, 5)),
        [END, ..] => Err(bad("an end mark before the end")),
        [LONG_PREVIOUS, ..] | [] => Err(bad("an element reaches past the end")),
        [short, ..] => Ok((usize::from(*short), 1)),
    }
}

/// The element behind the previous length, and its length.
fn entry(bytes: &[u8]) -> Option<(Text<'_>, usize)> {
    let first = *bytes.first()?;
    let string = |head: usize, len: usize| {
        let end = head.checked_add(len)?;
        Some((Text::Raw(bytes.get(head..end)?), end))
    };
    match first {
        0x00..=0x3f => string(1, usize::from(first)),
        0x40..=0x7f => string(2, usize::from(first & 0x3f) << 8 | usize::from(*bytes.get(1)?)),
        0x80 => string(5, u32::from_be_bytes(fixed(bytes)?) as usize),
        0xc0 => Some((Text::Int(i64::from(i16::from_le_bytes(fixed(bytes)?))), 3)),
        0xd0 => Some((Text::Int(i64::from(i32::from_le_bytes(fixed(bytes)?))), 5)),
        0xe0 => Some((Text::Int(i64::from_le_bytes(fixed(bytes)?)), 9)),
        0xf0 => {
            let [a, b, c] = fixed(bytes)?;
            Some((Text::Int(i64::from(i32::from_le_bytes([0, a, b, c]) >> 8)), 4))
        }
        0xfe => Some((Text::Int(i64::from(i8::from_le_bytes(fixed(bytes)?))), 2)),
        0xf1..=0xfd => Some((Text::Int(i64::from(first & 0x0f) - 1), 1)),
        _ => None,
    }
}

fn fixed<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.get(1..)?.first_chunk::<N>().copied()
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::listpack::tests::Plain;
    use super::*;

    /// Writes elements with the shortest forms; independent of the reader.
    pub fn encode(elements: &[Plain]) -> Vec<u8> {
        let mut body: Vec<u8> = Vec::new();
        let (mut tail, mut previous) = (10, 0usize);
        for element in elements {
            tail = 10 + body.len();
            let start = body.len();
            if previous < 254 {
                body.push(previous as u8);
            } else {
                body.push(0xfe);
                body.extend((previous as u32).to_le_bytes());
            }
            match element {
                Plain::Int(v @ 0..=12) => body.push(0xf1 + *v as u8),
                Plain::Int(v @ -128..=127) => body.extend([0xfe, *v as i8 as u8]),
                Plain::Int(v @ -32768..=32767) => {
                    body.push(0xc0);
                    body.extend((*v as i16).to_le_bytes());
                }
                Plain::Int(v @ -8388608..=8388607) => {
                    body.push(0xf0);
                    body.extend(&(*v as i32).to_le_bytes()[..3]);
                }
                Plain::Int(v @ -2147483648..=2147483647) => {
                    body.push(0xd0);
                    body.extend((*v as i32).to_le_bytes());
                }
                Plain::Int(v) => {
                    body.push(0xe0);
                    body.extend(v.to_le_bytes());
                }
                Plain::Str(s) => {
                    match s.len() {
                        0..=63 => body.push(s.len() as u8),
                        64..=16383 => body.extend([0x40 | (s.len() >> 8) as u8, s.len() as u8]),
                        _ => {
                            body.push(0x80);
                            body.extend((s.len() as u32).to_be_bytes());
                        }
                    }
                    body.extend(s);
                }
            }
            previous = body.len() - start;
        }
        let mut out = ((body.len() + 11) as u32).to_le_bytes().to_vec();
        out.extend((tail as u32).to_le_bytes());
        out.extend((elements.len().min(65535) as u16).to_le_bytes());
        out.extend(body);
        out.push(0xff);
        out
    }

    fn walk(bytes: &[u8]) -> Result<Vec<Plain>, Reason> {
        let mut pack = Ziplist::new(bytes)?;
        let mut out = Vec::new();
        while let Some(text) = pack.next()? {
            out.push(match text {
                Text::Int(v) => Plain::Int(v),
                Text::Raw(s) => Plain::Str(s.to_vec()),
                Text::Lzf { .. } => unreachable!("no LZF inside ziplists"),
            });
        }
        Ok(out)
    }

    #[test]
    fn every_encoding_comes_back() {
        let mut elements: Vec<_> = (-3..15).map(Plain::Int).collect();
        for bits in [7, 8, 15, 16, 23, 24, 31, 32, 62] {
            let v = 1i64 << bits;
            elements.extend([v, v - 1, -v, -v - 1].map(Plain::Int));
        }
        for len in [0, 1, 63, 64, 240, 250, 251, 252, 253, 254, 16383, 16384] {
            elements.push(Plain::Str(vec![b'x'; len]));
            elements.push(Plain::Int(5));
        }
        assert_eq!(walk(&encode(&elements)).unwrap(), elements);
        assert_eq!(walk(&encode(&[])).unwrap(), []);
        assert_eq!(Ziplist::new(&encode(&elements)).unwrap().count().unwrap(), elements.len() as u64);
    }

    #[test]
    fn lies_are_found() {
        let good = encode(&[Plain::Int(1), Plain::Str(b"ab".to_vec()), Plain::Int(300)]);
        for index in (0..11).chain([12, 16]) {
            for delta in [1, 255] {
                let mut bad = good.clone();
                bad[index] = bad[index].wrapping_add(delta);
                assert!(walk(&bad).is_err(), "byte {index} changed by {delta}");
            }
        }
        for len in 0..good.len() {
            assert!(walk(&good[..len]).is_err());
        }
    }
}
