//! Whole replies ([`Value`]) of a connection that carries many of them, read as the bytes arrive.
//!
//! Where [`super::value::parse`] begins each reply anew with every piece that came, this keeps what it has: for pipelines
//! of data reads. In: pieces of any size. Out: replies in order. Bounded: a reply takes at most `bytes_max` (its bytes and
//! the overhead of its elements); a longer one is a typed error, and the connection is of no more use.

use super::reply::{ReplyError, line_end, parse_integer, parse_length};
use super::value::{DEPTH_MAX, LINE_BYTES_MAX, Value};

/// What an element costs in memory beside its bytes.
const ELEMENT_OVERHEAD_BYTES: usize = 64;

/// See the module's header.
#[derive(Debug)]
pub struct ValueReader {
    received: Vec<u8>,
    /// Bytes of `received` that were taken.
    at: usize,
    /// Arrays begun: elements still to come, and those that came.
    open: Vec<(u64, Vec<Value>)>,
    /// Cost of the reply being read.
    bytes_used: usize,
    bytes_max: usize,
}

impl ValueReader {
    pub fn new(bytes_max: usize) -> Self {
        Self { received: Vec::new(), at: 0, open: Vec::new(), bytes_used: 0, bytes_max }
    }

    /// Takes the next bytes of the connection.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.at > 0 {
            self.received.drain(..self.at);
            self.at = 0;
        }
        self.received.extend_from_slice(bytes);
    }

    /// The next reply, once it is complete.
    pub fn take(&mut self) -> Result<Option<Value>, ReplyError> {
        loop {
            let Some(mut value) = self.item()? else { return Ok(None) };
            // The value ends every array of which it is the last element.
            loop {
                let Some((left, mut elements)) = self.open.pop() else {
                    self.bytes_used = 0;
                    return Ok(Some(value));
                };
                elements.push(value);
                if left > 1 {
                    self.open.push((left - 1, elements));
                    break;
                }
                value = Value::Array(elements);
            }
        }
    }

    /// The next value that is no array with elements; arrays are opened on the way.
    fn item(&mut self) -> Result<Option<Value>, ReplyError> {
        loop {
            let rest = self.received.get(self.at..).unwrap_or_default();
            let Some(line) = line_end(rest, LINE_BYTES_MAX)? else { return Ok(None) };
            let Some((&mark, text)) = line.split_first() else { return Err(ReplyError::UnknownType { mark: b'\r' }) };
            let after = self.at + line.len() + 2;
            let value = match mark {
                b'+' => Value::Simple(text.to_vec()),
                b'-' => Value::Error(text.to_vec()),
                b':' => Value::Integer(parse_integer(text)?),
                b'$' => match parse_length(text, u64::MAX >> 1)? {
                    None => Value::Null,
                    Some(len) => return self.bulk(after, len),
                },
                b'*' => match parse_length(text, u64::MAX >> 1)? {
                    None => Value::Null,
                    Some(0) => Value::Array(Vec::new()),
                    Some(count) => {
                        if self.open.len() == DEPTH_MAX {
                            return Err(ReplyError::TooDeep { limit: DEPTH_MAX });
                        }
                        self.spend(
                            usize::try_from(count).unwrap_or(usize::MAX).saturating_mul(ELEMENT_OVERHEAD_BYTES),
                        )?;
                        self.open.push((count, Vec::new()));
                        self.at = after;
                        continue;
                    }
                },
                mark => return Err(ReplyError::UnknownType { mark }),
            };
            self.spend(line.len())?;
            self.at = after;
            return Ok(Some(value));
        }
    }

    fn bulk(&mut self, at: usize, len: u64) -> Result<Option<Value>, ReplyError> {
        let too_long = ReplyError::TooLong { limit: self.bytes_max };
        let len = usize::try_from(len).ok().filter(|len| self.bytes_used.saturating_add(*len) <= self.bytes_max);
        let len = len.ok_or(too_long)?;
        let Some(content) = self.received.get(at..at + len) else { return Ok(None) };
        let Some(end) = self.received.get(at + len..at + len + 2) else { return Ok(None) };
        if end != b"\r\n" {
            return Err(ReplyError::BulkNotTerminated);
        }
        let value = Value::Bulk(content.to_vec());
        self.spend(len)?;
        self.at = at + len + 2;
        Ok(Some(value))
    }

    fn spend(&mut self, bytes: usize) -> Result<(), ReplyError> {
        self.bytes_used = self.bytes_used.saturating_add(bytes);
        if self.bytes_used > self.bytes_max { Err(ReplyError::TooLong { limit: self.bytes_max }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::value;
    use proptest::prelude::*;

    fn encode(value: &Value, out: &mut Vec<u8>) {
        match value {
            Value::Simple(text) => out.extend([b"+", &text[..], b"\r\n"].concat()),
            Value::Error(text) => out.extend([b"-", &text[..], b"\r\n"].concat()),
            Value::Integer(n) => out.extend(format!(":{n}\r\n").bytes()),
            Value::Bulk(bytes) => out.extend([format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()),
            Value::Null => out.extend(b"$-1\r\n"),
            Value::Array(values) => {
                out.extend(format!("*{}\r\n", values.len()).bytes());
                values.iter().for_each(|value| encode(value, out));
            }
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            "[a-z ]{0,9}".prop_map(|text| Value::Simple(text.into_bytes())),
            "[A-Z ]{0,9}".prop_map(|text| Value::Error(text.into_bytes())),
            any::<i64>().prop_map(Value::Integer),
            proptest::collection::vec(any::<u8>(), 0..40).prop_map(Value::Bulk),
            Just(Value::Null),
        ];
        leaf.prop_recursive(4, 30, 5, |inner| proptest::collection::vec(inner, 0..5).prop_map(Value::Array))
    }

    proptest! {
        #[test]
        fn reads_what_the_whole_parser_reads(
            replies in proptest::collection::vec(values(), 1..6),
            piece in 1usize..50,
        ) {
            let mut bytes = Vec::new();
            replies.iter().for_each(|reply| encode(reply, &mut bytes));
            let mut reader = ValueReader::new(1 << 20);
            let mut got = Vec::new();
            for piece in bytes.chunks(piece) {
                reader.push(piece);
                while let Some(value) = reader.take().unwrap() {
                    got.push(value);
                }
            }
            prop_assert_eq!(&got, &replies);
            prop_assert_eq!(value::parse(&bytes).unwrap().unwrap().0, got[0].clone());
        }

        #[test]
        fn noise_ends_in_an_error_or_in_values(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = ValueReader::new(1 << 10);
            reader.push(&bytes);
            while let Ok(Some(_)) = reader.take() {}
        }
    }

    #[test]
    fn a_reply_beyond_the_limit_is_refused_before_it_is_taken_in() {
        for announced in ["$2000\r\n", "*1000\r\n", "$9223372036854775807\r\n", "*9223372036854775807\r\n"] {
            let mut reader = ValueReader::new(1000);
            reader.push(announced.as_bytes());
            assert!(matches!(reader.take(), Err(ReplyError::TooLong { limit: 1000 })), "{announced}");
        }
        // The limit is one reply's.
        let mut reader = ValueReader::new(1000);
        for _ in 0..5 {
            reader.push(&[b"$900\r\n".to_vec(), vec![b'x'; 900], b"\r\n".to_vec()].concat());
            assert!(reader.take().unwrap().is_some());
        }
    }
}
