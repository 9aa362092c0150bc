//! The primitive encodings of wire 0: packed numbers, strings in their five forms, fixed-width numbers.
//!
//! A [`Reader`] stands at a position in a slice and never reads past its end. It tells two outcomes apart: *more bytes
//! are needed* ([`Stop::More`], with the length the slice must have at least) and *the bytes are wrong*
//! ([`Stop::Wrong`]). An announced length beyond the reader's limit is wrong at once, so that nobody waits for bytes that
//! would be refused. Nothing here allocates.

use super::error::{Limit, Reason};
use super::event::Text;
use super::lzf;

/// Why a read did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The slice, counted from its beginning, must be at least this long.
    More(usize),
    /// Boxed, so that the result of a read that succeeds stays small.
    Wrong(Box<Reason>),
}

impl From<Reason> for Stop {
    fn from(reason: Reason) -> Self {
        Stop::Wrong(Box::new(reason))
    }
}

pub type Read<T> = Result<T, Stop>;

/// First bits of a string, wire 0.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StringHead {
    /// This many raw bytes follow.
    Raw(u64),
    Int(i64),
    /// `packed` bytes follow.
    Lzf {
        packed: u64,
        plain: u64,
    },
}

/// A position in a slice; all reads are checked.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    buf: &'a [u8],
    pos: usize,
    /// Longest string, in bytes as they stand and as they unpack.
    string_max: u64,
}

impl<'a> Reader<'a> {
    #[inline]
    pub fn new(buf: &'a [u8], string_max: u64) -> Self {
        Self { buf, pos: 0, string_max }
    }

    /// A reader of bytes that are all present, so that no limit but their own length is needed.
    #[inline]
    pub fn of_complete(buf: &'a [u8]) -> Self {
        Self::new(buf, u64::MAX)
    }

    #[inline]
    pub fn pos(&self) -> usize {
        self.pos
    }

    /// Goes back to where the reader stood before.
    #[inline]
    pub fn rewind(&mut self, pos: usize) {
        debug_assert!(pos <= self.pos);
        self.pos = pos.min(self.pos);
    }

    /// Bytes not read yet.
    #[inline]
    pub fn left(&self) -> usize {
        self.buf.len() - self.pos
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.left() == 0
    }

    #[inline]
    pub fn peek(&self) -> Read<u8> {
        match self.buf.get(self.pos) {
            Some(&byte) => Ok(byte),
            None => Err(self.more(1)),
        }
    }

    #[inline]
    pub fn u8(&mut self) -> Read<u8> {
        let byte = self.peek()?;
        self.pos += 1;
        Ok(byte)
    }

    /// The next `len` bytes.
    #[inline]
    pub fn take(&mut self, len: u64) -> Read<&'a [u8]> {
        let rest = self.buf.get(self.pos..).unwrap_or_default();
        match usize::try_from(len).ok().and_then(|len| rest.get(..len)) {
            Some(bytes) => {
                self.pos += bytes.len();
                Ok(bytes)
            }
            None => Err(self.more(len)),
        }
    }

    #[inline]
    pub fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        match self.buf.get(self.pos..).and_then(<[u8]>::first_chunk::<N>) {
            Some(bytes) => {
                self.pos += N;
                Ok(*bytes)
            }
            None => Err(self.more(N as u64)),
        }
    }

    #[inline]
    pub fn u32_le(&mut self) -> Read<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    #[inline]
    pub fn u64_le(&mut self) -> Read<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    #[inline]
    pub fn u64_be(&mut self) -> Read<u64> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// Wire 0.3.
    #[inline]
    pub fn double(&mut self) -> Read<f64> {
        Ok(f64::from_le_bytes(self.array()?))
    }

    /// Wire 0.1. The special string forms are errors here.
    #[inline]
    pub fn packed(&mut self) -> Read<u64> {
        let first = self.u8()?;
        match first {
            0x00..=0x3f => Ok(u64::from(first)),
            _ => self.packed_after(first),
        }
    }

    fn packed_after(&mut self, first: u8) -> Read<u64> {
        match first {
            0x00..=0x3f => Ok(u64::from(first)),
            0x40..=0x7f => Ok(u64::from(first & 0x3f) << 8 | u64::from(self.u8()?)),
            0x80 => Ok(u64::from(u32::from_be_bytes(self.array()?))),
            0x81 => self.u64_be(),
            _ => Err(Reason::BadPackedNumber { byte: first }.into()),
        }
    }

    /// Head of a string: its form and lengths, checked against the limit.
    #[inline]
    pub fn string_head(&mut self) -> Read<StringHead> {
        let first = self.u8()?;
        match first {
            0x00..=0x3f => {
                let len = u64::from(first);
                self.check_len(len)?;
                Ok(StringHead::Raw(len))
            }
            _ => self.string_head_after(first),
        }
    }

    fn string_head_after(&mut self, first: u8) -> Read<StringHead> {
        let head = match first {
            0xc0 => StringHead::Int(i64::from(i8::from_le_bytes(self.array()?))),
            0xc1 => StringHead::Int(i64::from(i16::from_le_bytes(self.array()?))),
            0xc2 => StringHead::Int(i64::from(i32::from_le_bytes(self.array()?))),
            0xc3 => {
                let (packed, plain) = (self.packed()?, self.packed()?);
                self.check_len(packed.max(plain))?;
                StringHead::Lzf { packed, plain }
            }
            0xc4..=0xff | 0x82..=0xbf => return Err(Reason::BadStringForm { byte: first }.into()),
            _ => {
                let len = self.packed_after(first)?;
                self.check_len(len)?;
                StringHead::Raw(len)
            }
        };
        Ok(head)
    }

    #[inline]
    fn check_len(&self, announced: u64) -> Read<()> {
        match announced > self.string_max {
            true => Err(Reason::LimitPassed { what: Limit::AtomBytes, announced, limit: self.string_max }.into()),
            false => Ok(()),
        }
    }

    /// A string in any form.
    #[inline]
    pub fn string(&mut self) -> Read<Text<'a>> {
        match self.string_head()? {
            StringHead::Raw(len) => Ok(Text::Raw(self.take(len)?)),
            StringHead::Int(number) => Ok(Text::Int(number)),
            StringHead::Lzf { packed, plain } => {
                let bytes = self.take(packed)?;
                match (lzf::plausible(bytes.len(), plain), usize::try_from(plain)) {
                    (true, Ok(plain_len)) => Ok(Text::Lzf { packed: bytes, plain_len }),
                    _ => Err(Reason::LzfImplausible { packed: bytes.len(), plain }.into()),
                }
            }
        }
    }

    /// Steps over a string in any form.
    #[inline]
    pub fn skip_string(&mut self) -> Read<()> {
        // Short raw strings are by far the most frequent; everything else goes the long way.
        if let Some(&first) = self.buf.get(self.pos)
            && first <= 0x3f
            && u64::from(first) <= self.string_max
        {
            let end = self.pos + 1 + usize::from(first);
            if end <= self.buf.len() {
                self.pos = end;
                return Ok(());
            }
        }
        self.string().map(|_| ())
    }

    /// A string that only occurs in its raw form.
    #[inline]
    pub fn raw_string(&mut self, what: &'static str) -> Read<&'a [u8]> {
        match self.string_head()? {
            StringHead::Raw(len) => self.take(len),
            _ => Err(Reason::RawFormExpected { what }.into()),
        }
    }

    /// The answer when `needed` bytes from here are not all there.
    #[cold]
    fn more(&self, needed: u64) -> Stop {
        match usize::try_from(needed).ok().and_then(|needed| self.pos.checked_add(needed)) {
            Some(at_least) => Stop::More(at_least),
            None => Reason::LengthOverflow.into(),
        }
    }
}

impl Text<'_> {
    /// Length of the plain text in bytes.
    pub fn plain_len(&self) -> usize {
        match self {
            Text::Raw(bytes) => bytes.len(),
            Text::Int(number) => itoa::Buffer::new().format(*number).len(),
            Text::Lzf { plain_len, .. } => *plain_len,
        }
    }

    /// Appends the plain text; `out` is unchanged if the text cannot be unpacked.
    pub fn append_to(&self, out: &mut Vec<u8>) -> Result<(), super::DecodeError> {
        self.append(out).map_err(|reason| super::DecodeError::in_value(0, reason))
    }

    /// As `append_to`, with the bare reason.
    pub(super) fn append(&self, out: &mut Vec<u8>) -> Result<(), Reason> {
        match self {
            Text::Raw(bytes) => out.extend_from_slice(bytes),
            Text::Int(number) => out.extend_from_slice(itoa::Buffer::new().format(*number).as_bytes()),
            Text::Lzf { packed, plain_len } => {
                if !lzf::unpack(packed, *plain_len, out) {
                    return Err(Reason::LzfDamaged { packed: packed.len() });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(bytes: &[u8]) -> Read<u64> {
        let mut reader = Reader::new(bytes, 1000);
        let value = reader.packed()?;
        assert!(reader.is_empty());
        Ok(value)
    }

    #[test]
    fn packed_numbers_of_wire_0_1() {
        assert_eq!(packed(&[0x00]), Ok(0));
        assert_eq!(packed(&[0x3f]), Ok(63));
        assert_eq!(packed(&[0x40, 0x40]), Ok(64));
        assert_eq!(packed(&[0x41, 0x2c]), Ok(300));
        assert_eq!(packed(&[0x7f, 0xff]), Ok(16383));
        assert_eq!(packed(&[0x80, 0, 0, 0x40, 0]), Ok(16384));
        assert_eq!(packed(&[0x80, 0, 1, 0x11, 0x70]), Ok(70000));
        assert_eq!(packed(&[0x80, 0xff, 0xff, 0xff, 0xff]), Ok(u64::from(u32::MAX)));
        assert_eq!(packed(&[0x81, 0, 0, 0, 1, 0, 0, 0, 0]), Ok(1 << 32));
        for byte in 0x82..=0xff {
            assert_eq!(packed(&[byte, 0, 0]), Err(Reason::BadPackedNumber { byte }.into()));
        }
    }

    #[test]
    fn missing_bytes_are_asked_for_and_not_an_error() {
        assert_eq!(packed(&[]), Err(Stop::More(1)));
        assert_eq!(packed(&[0x40]), Err(Stop::More(2)));
        assert_eq!(packed(&[0x80, 0]), Err(Stop::More(5)));
        assert_eq!(packed(&[0x81, 0]), Err(Stop::More(9)));
        assert_eq!(Reader::new(&[0x05, b'a'], 1000).string(), Err(Stop::More(6)));
        assert_eq!(Reader::new(&[0xc2, 1], 1000).string(), Err(Stop::More(5)));
    }

    #[test]
    fn strings_of_wire_0_2() {
        let text = |bytes: &[u8]| {
            let mut reader = Reader::new(bytes, 1000);
            let text = reader.string().unwrap();
            assert!(reader.is_empty());
            let mut out = Vec::new();
            text.append_to(&mut out).unwrap();
            assert_eq!(out.len(), text.plain_len());
            out
        };
        assert_eq!(text(&[0]), b"");
        assert_eq!(text(b"\x03bar"), b"bar");
        assert_eq!(text(&[0xc0, 0xff]), b"-1");
        assert_eq!(text(&[0xc1, 0x39, 0x30]), b"12345");
        assert_eq!(text(&[0xc2, 0x80, 0x45, 0x7a, 0x01]), b"24790400");
        assert_eq!(text(&[0xc2, 0, 0, 0, 0x80]), b"-2147483648");
        assert_eq!(text(&[0xc3, 6, 12, 1, b'a', b'b', 0xe0, 1, 1]), b"abababababab");
    }

    #[test]
    fn a_length_beyond_the_limit_is_wrong_before_its_bytes_come() {
        let too_long = |announced| Err(Reason::LimitPassed { what: Limit::AtomBytes, announced, limit: 1000 }.into());
        assert_eq!(Reader::new(&[0x80, 0, 0, 0x10, 0], 1000).string(), too_long(4096));
        assert_eq!(
            Reader::new(&[0x81, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], 1000).string(),
            too_long(u64::MAX)
        );
        assert_eq!(Reader::new(&[0xc3, 1, 0x80, 0, 0, 0x10, 0], 1000).string(), too_long(4096));
        assert_eq!(
            Reader::of_complete(&[0x81, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).string(),
            Err(Reason::LengthOverflow.into())
        );
    }

    #[test]
    fn an_lzf_string_cannot_promise_more_than_its_bytes_can_hold() {
        assert_eq!(
            Reader::new(&[0xc3, 2, 0x41, 0x2c, 0, b'a'], 1000).string(),
            Err(Reason::LzfImplausible { packed: 2, plain: 300 }.into())
        );
    }
}
