//! Value bodies in the RDB encodings that a target reads: strings and lengths for bodies built anew, and the tail of a
//! stream written in an older type.
//!
//! A stream of type 21 or 19 keeps its listpacks byte for byte; only what follows them is written again without the
//! fields that the older type lacks (wire 3.6, 3.8). Input is hostile: every read is bounded, and nothing is allocated
//! beyond the bytes present.

/// RDB types that this tool writes into payloads without having received them.
pub mod rdb_type {
    pub const SET: u8 = 2;
    pub const HASH: u8 = 4;
    pub const STREAM_V1: u8 = 15;
    pub const STREAM_V2: u8 = 19;
    pub const STREAM_V3: u8 = 21;
    /// Hash with field expiries, Valkey 9.0 and later.
    pub const HASH_EXPIRY_VALKEY: u8 = 22;
    /// Hash with field expiries, Redis 7.4 and later.
    pub const HASH_EXPIRY_REDIS: u8 = 24;
}

/// A stream tail that is not what its type promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the metadata of a stream (type {stream_type}) is malformed at byte {offset} of {len}")]
pub struct TailError {
    pub stream_type: u8,
    pub offset: usize,
    pub len: usize,
}

/// Appends a packed length (wire 0.1).
pub fn push_len(out: &mut Vec<u8>, len: u64) {
    match len {
        0..64 => out.push(len as u8),
        64..16384 => out.extend_from_slice(&[0x40 | (len >> 8) as u8, len as u8]),
        16384..=0xffff_ffff => {
            out.push(0x80);
            out.extend_from_slice(&(len as u32).to_be_bytes());
        }
        _ => {
            out.push(0x81);
            out.extend_from_slice(&len.to_be_bytes());
        }
    }
}

/// Appends a string in its raw form.
pub fn push_raw_string(out: &mut Vec<u8>, bytes: &[u8]) {
    push_len(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends the decimal text of a number as a string, in the shortest form.
pub fn push_integer_string(out: &mut Vec<u8>, number: i64) {
    if let Ok(number) = i8::try_from(number) {
        out.extend_from_slice(&[0xc0, number as u8]);
    } else if let Ok(number) = i16::try_from(number) {
        out.push(0xc1);
        out.extend_from_slice(&number.to_le_bytes());
    } else if let Ok(number) = i32::try_from(number) {
        out.push(0xc2);
        out.extend_from_slice(&number.to_le_bytes());
    } else {
        push_raw_string(out, itoa::Buffer::new().format(number).as_bytes());
    }
}

/// Appends a string that is LZF-compressed already.
pub fn push_lzf_string(out: &mut Vec<u8>, packed: &[u8], plain_len: usize) {
    out.push(0xc3);
    push_len(out, packed.len() as u64);
    push_len(out, plain_len as u64);
    out.extend_from_slice(packed);
}

/// Writes the tail of a stream of type `from` as type `to` (the same or an older one).
pub fn stream_tail(tail: &[u8], from: u8, to: u8, out: &mut Vec<u8>) -> Result<(), TailError> {
    let mut cursor = Cursor { bytes: tail, at: 0 };
    copy_tail(&mut cursor, from, to, out).and_then(|()| (cursor.at == tail.len()).then_some(())).ok_or(TailError {
        stream_type: from,
        offset: cursor.at,
        len: tail.len(),
    })
}

fn copy_tail(cursor: &mut Cursor<'_>, from: u8, to: u8, out: &mut Vec<u8>) -> Option<()> {
    let reads_counters = from != rdb_type::STREAM_V1;
    let writes_counters = to != rdb_type::STREAM_V1;
    out.extend_from_slice(cursor.lens(3)?);
    if reads_counters {
        let counters = cursor.lens(5)?;
        if writes_counters {
            out.extend_from_slice(counters);
        }
    }
    let (groups, bytes) = cursor.len()?;
    out.extend_from_slice(bytes);
    for _ in 0..groups {
        out.extend_from_slice(cursor.string()?);
        out.extend_from_slice(cursor.lens(2)?);
        if reads_counters {
            let entries_read = cursor.lens(1)?;
            if writes_counters {
                out.extend_from_slice(entries_read);
            }
        }
        let (pending, bytes) = cursor.len()?;
        out.extend_from_slice(bytes);
        for _ in 0..pending {
            out.extend_from_slice(cursor.take(24)?);
            out.extend_from_slice(cursor.lens(1)?);
        }
        let (consumers, bytes) = cursor.len()?;
        out.extend_from_slice(bytes);
        for _ in 0..consumers {
            out.extend_from_slice(cursor.string()?);
            out.extend_from_slice(cursor.take(8)?);
            if from == rdb_type::STREAM_V3 {
                let active_time = cursor.take(8)?;
                if to == rdb_type::STREAM_V3 {
                    out.extend_from_slice(active_time);
                }
            }
            let (pending, bytes) = cursor.len()?;
            out.extend_from_slice(bytes);
            out.extend_from_slice(cursor.take(usize::try_from(pending).ok()?.checked_mul(16)?)?);
        }
    }
    Some(())
}

/// The only way in which the tail is read.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(len)?)?;
        self.at += len;
        Some(taken)
    }

    /// A packed length and the bytes it was written in.
    fn len(&mut self) -> Option<(u64, &'a [u8])> {
        let rest = self.bytes.get(self.at..)?;
        let first = *rest.first()?;
        let size = match first {
            0x00..0x40 => 1,
            0x40..0x80 => 2,
            0x80 => 5,
            0x81 => 9,
            _ => return None,
        };
        let bytes = self.take(size)?;
        let value = match bytes {
            [value] => u64::from(*value),
            [high, low] => u64::from(high & 0x3f) << 8 | u64::from(*low),
            [_, number @ ..] => number.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)),
            [] => return None,
        };
        Some((value, bytes))
    }

    /// `count` packed lengths as they stand.
    fn lens(&mut self, count: usize) -> Option<&'a [u8]> {
        let start = self.at;
        for _ in 0..count {
            self.len()?;
        }
        self.bytes.get(start..self.at)
    }

    /// A string as it stands, in any of its forms.
    fn string(&mut self) -> Option<&'a [u8]> {
        let start = self.at;
        match *self.bytes.get(self.at)? {
            0xc0 => self.take(2)?,
            0xc1 => self.take(3)?,
            0xc2 => self.take(5)?,
            0xc3 => {
                self.take(1)?;
                let (packed_len, _) = self.len()?;
                self.len()?;
                self.take(usize::try_from(packed_len).ok()?)?
            }
            _ => {
                let (len, _) = self.len()?;
                self.take(usize::try_from(len).ok()?)?
            }
        };
        self.bytes.get(start..self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::rdb_type::*;
    use super::*;

    /// length 1, last 5-1, [first 5-1, deleted 0-0, added 7], one group with one pending entry and one consumer.
    fn tail(stream_type: u8) -> Vec<u8> {
        let mut out = vec![1, 5, 1];
        if stream_type != STREAM_V1 {
            out.extend([5, 1, 0, 0, 7]);
        }
        out.push(1);
        out.extend([1, b'g', 5, 1]);
        if stream_type != STREAM_V1 {
            out.extend([0x81, 255, 255, 255, 255, 255, 255, 255, 255]);
        }
        let id = [0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1];
        out.push(1);
        out.extend(id);
        out.extend([9; 8]);
        out.push(3);
        out.push(1);
        out.extend([0xc1, 57, 48]);
        out.extend([8; 8]);
        if stream_type == STREAM_V3 {
            out.extend([7; 8]);
        }
        out.push(1);
        out.extend(id);
        out
    }

    #[test]
    fn older_types_lack_their_fields() {
        for (from, to) in [(21, 21), (21, 19), (21, 15), (19, 19), (19, 15), (15, 15)] {
            let mut out = Vec::new();
            stream_tail(&tail(from), from, to, &mut out).unwrap();
            assert_eq!(out, tail(to), "{from} -> {to}");
        }
    }

    #[test]
    fn every_truncation_is_an_error() {
        let tail = tail(21);
        for len in 0..tail.len() {
            assert!(stream_tail(&tail[..len], 21, 15, &mut Vec::new()).is_err());
        }
        let mut longer = tail.clone();
        longer.push(0);
        assert!(stream_tail(&longer, 21, 15, &mut Vec::new()).is_err());
    }

    #[test]
    fn lengths_and_integers_have_their_shortest_form() {
        let mut out = Vec::new();
        for len in [0, 63, 64, 300, 16383, 16384, 70000, 0xffff_ffff, 1 << 32] {
            push_len(&mut out, len);
        }
        let expected: &[u8] = &[
            0, 0x3f, 0x40, 0x40, 0x41, 0x2c, 0x7f, 0xff, 0x80, 0, 0, 0x40, 0, 0x80, 0, 1, 0x11, 0x70, 0x80, 255, 255,
            255, 255, 0x81, 0, 0, 0, 1, 0, 0, 0, 0,
        ];
        assert_eq!(out, expected);
        out.clear();
        for number in [5, -129, 70000, 1 << 40] {
            push_integer_string(&mut out, number);
        }
        let mut expected = vec![0xc0, 5, 0xc1, 0x7f, 0xff, 0xc2, 0x70, 0x11, 1, 0, 13];
        expected.extend(b"1099511627776");
        assert_eq!(out, expected);
    }
}
