//! Replies of the source on the control connection and to `DFLY FLOW`: bounded RESP2.
//!
//! In: the unconsumed bytes of the connection, hostile. Out: one complete [`Reply`] and its length, or the wish for more
//! bytes. Lines, strings, depth, number of elements and the whole reply are bounded; nothing is recursive.

/// Longest line, without its end.
pub const LINE_BYTES_MAX: usize = 64 << 10;
/// Longest bulk string (INFO is the longest that is asked for).
pub const BULK_BYTES_MAX: usize = 1 << 20;
/// Deepest nesting of arrays.
pub const DEPTH_MAX: usize = 8;
/// Longest array, and most elements in all.
pub const ELEMENTS_MAX: usize = 4096;

/// One reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Simple(Vec<u8>),
    Error(Vec<u8>),
    Integer(i64),
    /// `None`: null.
    Bulk(Option<Vec<u8>>),
    /// `None`: null.
    Array(Option<Vec<Reply>>),
}

/// Bytes that are no reply this client would accept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    #[error(
        "the source answered with byte 0x{byte:02x}, which begins no RESP2 reply: is it a TLS port, or no Dragonfly?"
    )]
    UnknownType { byte: u8 },
    #[error("a reply line is longer than {LINE_BYTES_MAX} bytes")]
    LineTooLong,
    #[error("a reply line does not end with CR LF, or a number in it is no number")]
    BadLine,
    #[error("a bulk string of {len} bytes (at most {bytes_max} are accepted)")]
    BulkTooLong { len: i64, bytes_max: usize },
    #[error("a reply has more than {ELEMENTS_MAX} elements")]
    TooManyElements,
    #[error("a reply is nested deeper than {DEPTH_MAX}")]
    TooDeep,
}

/// The reply at the front of `input` and its length; `None` if it is not all there.
pub fn parse_reply(input: &[u8]) -> Result<Option<(Reply, usize)>, ReplyError> {
    parse_reply_within(input, BULK_BYTES_MAX)
}

/// The same where a bulk string may be longer: the value of a key.
pub fn parse_reply_within(input: &[u8], bulk_bytes_max: usize) -> Result<Option<(Reply, usize)>, ReplyError> {
    let mut at = 0;
    // Arrays begun and not complete: how many elements are missing, and those that came.
    let mut open: Vec<(usize, Vec<Reply>)> = Vec::new();
    let mut elements = 0;
    loop {
        let Some((item, len)) = parse_item(input.get(at..).unwrap_or_default(), bulk_bytes_max)? else {
            return Ok(None);
        };
        at += len;
        elements += 1;
        if elements > ELEMENTS_MAX {
            return Err(ReplyError::TooManyElements);
        }
        let mut done = match item {
            Item::Array(0) => Reply::Array(Some(Vec::new())),
            Item::Array(count) => {
                if open.len() == DEPTH_MAX {
                    return Err(ReplyError::TooDeep);
                }
                open.push((count, Vec::new()));
                continue;
            }
            Item::Complete(reply) => reply,
        };
        // A complete reply goes into the innermost open array, which it may complete, and so on outwards.
        loop {
            let Some((missing, mut items)) = open.pop() else { return Ok(Some((done, at))) };
            items.push(done);
            if missing > 1 {
                open.push((missing - 1, items));
                break;
            }
            done = Reply::Array(Some(items));
        }
    }
}

enum Item {
    Complete(Reply),
    /// An array of so many elements begins.
    Array(usize),
}

fn parse_item(input: &[u8], bulk_bytes_max: usize) -> Result<Option<(Item, usize)>, ReplyError> {
    let Some((&kind, rest)) = input.split_first() else { return Ok(None) };
    if !b"+-:$*".contains(&kind) {
        return Err(ReplyError::UnknownType { byte: kind });
    }
    let Some(line) = parse_line(rest)? else { return Ok(None) };
    let after = 1 + line.len() + 2;
    let complete = |reply| Ok(Some((Item::Complete(reply), after)));
    match kind {
        b'+' => complete(Reply::Simple(line.to_vec())),
        b'-' => complete(Reply::Error(line.to_vec())),
        b':' => complete(Reply::Integer(number(line)?)),
        b'$' => match number(line)? {
            -1 => complete(Reply::Bulk(None)),
            len => parse_bulk(input, after, len, bulk_bytes_max),
        },
        _ => match number(line)? {
            -1 => complete(Reply::Array(None)),
            count @ 0.. if count as usize <= ELEMENTS_MAX => Ok(Some((Item::Array(count as usize), after))),
            0.. => Err(ReplyError::TooManyElements),
            _ => Err(ReplyError::BadLine),
        },
    }
}

/// The line at the front, without CR LF.
fn parse_line(rest: &[u8]) -> Result<Option<&[u8]>, ReplyError> {
    let window = rest.get(..LINE_BYTES_MAX + 2).unwrap_or(rest);
    match memchr::memchr(b'\n', window) {
        Some(end) => match window.get(..end) {
            Some([line @ .., b'\r']) => Ok(Some(line)),
            _ => Err(ReplyError::BadLine),
        },
        None if rest.len() >= LINE_BYTES_MAX + 2 => Err(ReplyError::LineTooLong),
        None => Ok(None),
    }
}

fn parse_bulk(input: &[u8], at: usize, len: i64, bytes_max: usize) -> Result<Option<(Item, usize)>, ReplyError> {
    let too_long = ReplyError::BulkTooLong { len, bytes_max };
    let bytes = usize::try_from(len).ok().filter(|len| *len <= bytes_max).ok_or(too_long)?;
    let end = at + bytes;
    match (input.get(at..end), input.get(end..end + 2)) {
        (Some(text), Some(b"\r\n")) => Ok(Some((Item::Complete(Reply::Bulk(Some(text.to_vec()))), end + 2))),
        (Some(_), Some(_)) => Err(ReplyError::BadLine),
        _ => Ok(None),
    }
}

fn number(line: &[u8]) -> Result<i64, ReplyError> {
    std::str::from_utf8(line).ok().and_then(|digits| digits.parse().ok()).ok_or(ReplyError::BadLine)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(input: &[u8]) -> Result<Option<(Reply, usize)>, ReplyError> {
        let whole = parse_reply(input);
        // No prefix of a good reply is a reply or an error.
        if let Ok(Some((_, len))) = whole {
            for cut in 0..len {
                assert_eq!(parse_reply(&input[..cut]), Ok(None));
            }
        }
        whole
    }

    fn simple(text: &str) -> Reply {
        Reply::Simple(text.as_bytes().to_vec())
    }

    #[test]
    fn every_kind() {
        assert_eq!(parse(b"+OK\r\nrest"), Ok(Some((simple("OK"), 5))));
        assert_eq!(parse(b"-ERR no\r\n"), Ok(Some((Reply::Error(b"ERR no".to_vec()), 9))));
        assert_eq!(parse(b":-12\r\n"), Ok(Some((Reply::Integer(-12), 6))));
        assert_eq!(parse(b"$3\r\na\r\n\r\n"), Ok(Some((Reply::Bulk(Some(b"a\r\n".to_vec())), 9))));
        assert_eq!(parse(b"$-1\r\n"), Ok(Some((Reply::Bulk(None), 5))));
        assert_eq!(parse(b"*-1\r\n"), Ok(Some((Reply::Array(None), 5))));
        assert_eq!(parse(b"*0\r\n"), Ok(Some((Reply::Array(Some(vec![])), 4))));
        let nested = Reply::Array(Some(vec![
            Reply::Array(Some(vec![simple("a"), Reply::Array(Some(vec![]))])),
            Reply::Integer(1),
        ]));
        assert_eq!(parse(b"*2\r\n*2\r\n+a\r\n*0\r\n:1\r\n"), Ok(Some((nested, 20))));
    }

    #[test]
    fn bounds() {
        let too_long = |len| ReplyError::BulkTooLong { len, bytes_max: BULK_BYTES_MAX };
        assert!(parse_reply_within(b"$99999999\r\n", 100_000_000).unwrap().is_none());
        assert_eq!(parse(&[b"+".to_vec(), vec![b'x'; LINE_BYTES_MAX + 2]].concat()), Err(ReplyError::LineTooLong));
        assert!(
            parse_reply(&[b"+".to_vec(), vec![b'x'; LINE_BYTES_MAX], b"\r\n".to_vec()].concat()).unwrap().is_some()
        );
        assert_eq!(parse(b"$99999999\r\n"), Err(too_long(99_999_999)));
        assert_eq!(parse(b"$-2\r\n"), Err(too_long(-2)));
        assert_eq!(parse(b"*2147483648\r\n"), Err(ReplyError::TooManyElements));
        assert_eq!(parse(&b"*4096\r\n*1\r\n".repeat(3)), Ok(None));
        assert_eq!(parse(&b"*1\r\n".repeat(10_000)), Err(ReplyError::TooDeep));
        assert_eq!(parse(&[b"*4096\r\n".to_vec(), b"*0\r\n".repeat(4096)].concat()), Err(ReplyError::TooManyElements));
    }

    #[test]
    fn damage() {
        assert_eq!(parse(b"\x15\x03\x01"), Err(ReplyError::UnknownType { byte: 0x15 }));
        for bad in [&b"+a\n"[..], b":x\r\n", b":\r\n", b"$1\r\nabc\r\n", b"*-2\r\n", b":99999999999999999999\r\n"] {
            assert_eq!(parse(bad), Err(ReplyError::BadLine), "{bad:?}");
        }
    }
}
