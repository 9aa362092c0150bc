//! One whole RESP2 reply as a value, for control connections (INFO, COMMAND, CONFIG, SELECT ...).
//!
//! The bytes come from a peer: lines, depth, elements and total size are bounded, and nothing is allocated for lengths
//! that were only announced. Data connections use [`super::reply`] instead.

use super::reply::{ReplyError, line_end, parse_integer, parse_length};

/// Longest line (simple string, error, number).
pub const LINE_BYTES_MAX: usize = 64 * 1024;
/// Deepest nesting of arrays.
pub const DEPTH_MAX: usize = 8;
/// Most bytes of one reply.
pub const TOTAL_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Most elements of one reply, all arrays together.
pub const ELEMENTS_MAX: usize = 1024 * 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Simple(Vec<u8>),
    Error(Vec<u8>),
    Integer(i64),
    Bulk(Vec<u8>),
    Null,
    Array(Vec<Value>),
}

impl Value {
    /// Text of a simple or bulk string.
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Simple(bytes) | Self::Bulk(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// As [`bytes`](Self::bytes), if it is UTF-8.
    pub fn text(&self) -> Option<&str> {
        self.bytes().and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    pub fn array(&self) -> Option<&[Value]> {
        match self {
            Self::Array(elements) => Some(elements),
            _ => None,
        }
    }

    /// What it is, for messages: an answer of the wrong type may be long.
    pub fn described(&self) -> String {
        match self {
            Self::Error(text) => format!("\"{}\"", text.escape_ascii()),
            Self::Simple(_) => "a status".into(),
            Self::Integer(number) => format!("the number {number}"),
            Self::Bulk(_) => "a text".into(),
            Self::Null => "nothing".into(),
            Self::Array(elements) => format!("an array of {}", elements.len()),
        }
    }

    /// The text of an error reply, made printable.
    pub fn error_text(&self) -> Option<String> {
        match self {
            Self::Error(text) => Some(String::from_utf8_lossy(text).into_owned()),
            _ => None,
        }
    }
}

/// The value at the front of `input` and how many bytes it takes; `None` if it is not complete yet.
pub fn parse(input: &[u8]) -> Result<Option<(Value, usize)>, ReplyError> {
    let mut at = 0;
    let mut elements_total = 0;
    // Arrays begun and not finished: announced length and what is there of them.
    let mut open: Vec<(usize, Vec<Value>)> = Vec::new();
    loop {
        let Some(rest) = input.get(at..) else { return incomplete(input) };
        let Some(line) = line_end(rest, LINE_BYTES_MAX)? else { return incomplete(input) };
        let (Some(&mark), Some(text)) = (line.first(), line.get(1..)) else {
            return Err(ReplyError::UnknownType { mark: b'\r' });
        };
        at += line.len() + 2;
        let mut value = match mark {
            b'+' => Value::Simple(text.to_vec()),
            b'-' => Value::Error(text.to_vec()),
            b':' => Value::Integer(parse_integer(text)?),
            b'$' => match parse_length(text, TOTAL_BYTES_MAX as u64)? {
                None => Value::Null,
                Some(len) => {
                    let len =
                        usize::try_from(len).map_err(|_| ReplyError::BadLength { limit: TOTAL_BYTES_MAX as u64 })?;
                    let Some(content) = input.get(at..at + len) else { return incomplete(input) };
                    let Some(end) = input.get(at + len..at + len + 2) else { return incomplete(input) };
                    if end != b"\r\n" {
                        return Err(ReplyError::BulkNotTerminated);
                    }
                    at += len + 2;
                    Value::Bulk(content.to_vec())
                }
            },
            b'*' => match parse_length(text, ELEMENTS_MAX as u64)? {
                None => Value::Null,
                Some(0) => Value::Array(Vec::new()),
                Some(len) => {
                    elements_total += len;
                    if elements_total > ELEMENTS_MAX as u64 {
                        return Err(ReplyError::BadLength { limit: ELEMENTS_MAX as u64 });
                    }
                    if open.len() == DEPTH_MAX {
                        return Err(ReplyError::TooDeep { limit: DEPTH_MAX });
                    }
                    open.push((len as usize, Vec::new()));
                    continue;
                }
            },
            mark => return Err(ReplyError::UnknownType { mark }),
        };
        // The value ends every array of which it is the last element.
        loop {
            let Some((len, elements)) = open.last_mut() else { return Ok(Some((value, at))) };
            elements.push(value);
            if elements.len() < *len {
                break;
            }
            match open.pop() {
                Some((_, elements)) => value = Value::Array(elements),
                None => break,
            }
        }
    }
}

fn incomplete(input: &[u8]) -> Result<Option<(Value, usize)>, ReplyError> {
    if input.len() > TOTAL_BYTES_MAX {
        return Err(ReplyError::TooLong { limit: TOTAL_BYTES_MAX });
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_value_and_every_truncation() {
        let input = b"*6\r\n+OK\r\n-ERR no\r\n:-5\r\n$3\r\na\r\n\r\n$-1\r\n*2\r\n*0\r\n*-1\r\n";
        let expected = Value::Array(vec![
            Value::Simple(b"OK".to_vec()),
            Value::Error(b"ERR no".to_vec()),
            Value::Integer(-5),
            Value::Bulk(b"a\r\n".to_vec()),
            Value::Null,
            Value::Array(vec![Value::Array(vec![]), Value::Null]),
        ]);
        assert_eq!(parse(input).unwrap(), Some((expected, input.len())));
        for len in 0..input.len() {
            assert_eq!(parse(&input[..len]).unwrap(), None, "{len}");
        }
    }

    #[test]
    fn hostile_values_are_refused() {
        assert!(matches!(parse(b"*99999999\r\n"), Err(ReplyError::BadLength { .. })));
        assert!(matches!(parse(b"$99999999999\r\n"), Err(ReplyError::BadLength { .. })));
        assert!(matches!(parse(b"$-2\r\n"), Err(ReplyError::BadLength { .. })));
        assert!(matches!(parse(b"$1\r\nabc"), Err(ReplyError::BulkNotTerminated)));
        assert!(matches!(parse(b"%1\r\n"), Err(ReplyError::UnknownType { mark: b'%' })));
        assert!(matches!(parse(b"\r\n"), Err(ReplyError::UnknownType { .. })));
        assert!(matches!(parse(&b"*1\r\n".repeat(9)), Err(ReplyError::TooDeep { .. })));
        assert!(matches!(parse(&vec![b'+'; LINE_BYTES_MAX + 10]), Err(ReplyError::LineTooLong { .. })));
    }
}
