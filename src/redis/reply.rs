//! A stream of replies, scanned as it arrives in pieces of any size.
//!
//! On the happy path nearly every reply is `+OK\r\n`: runs of it are counted by comparing blocks with a repeated
//! pattern. Everything else is reported one by one. What an array holds (the answer to EXEC) is reported as it passes:
//! errors and numbers with the index of their element, then a summary; nothing is kept of it, so no answer takes memory.
//!
//! Invariants: after an error the scanner is of no more use (the connection must be closed). Bytes kept between calls:
//! one unfinished line, at most [`LINE_BYTES_MAX`].

/// Longest line (simple string, error, number).
pub const LINE_BYTES_MAX: usize = 64 * 1024;
/// Longest bulk string that is read over.
pub const BULK_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Most elements of one array: what servers themselves can count. They are only counted, so many of them take no memory.
pub const ELEMENTS_MAX: u64 = i32::MAX as u64;
/// Deepest nesting of arrays.
pub const DEPTH_MAX: usize = 8;

const OK: &[u8; 5] = b"+OK\r\n";
const OK_BLOCK: usize = 64;
static OK_BLOCK_BYTES: [u8; OK.len() * OK_BLOCK] = {
    let mut bytes = [0; OK.len() * OK_BLOCK];
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] = OK[at % OK.len()];
        at += 1;
    }
    bytes
};

/// What the scanner has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// `count` replies `+OK` in a row, each answering one command. A run may be reported in several parts.
    Ok {
        count: u64,
    },
    /// `+QUEUED`: a command inside of MULTI was accepted.
    Queued,
    /// Any other simple string, without its mark.
    Simple(&'a [u8]),
    Integer(i64),
    /// The text without its mark: `ERR ...`, `OOM ...`, `MOVED ...`.
    Error(&'a [u8]),
    /// A bulk string of this length was read over.
    Bulk {
        len: u64,
    },
    /// A null bulk string or a null array (an EXEC that was not executed).
    Null,
    /// An error inside of an array, by the index of the outermost array's element. Not a reply of its own.
    ArrayError {
        index: u64,
        text: &'a [u8],
    },
    /// A number inside of an array, likewise.
    ArrayInteger {
        index: u64,
        value: i64,
    },
    /// An array is complete; `errors` of its elements were errors (reported before).
    Array {
        elements: u64,
        errors: u64,
    },
}

impl Reply<'_> {
    /// How many commands this answers.
    pub fn answers(&self) -> u64 {
        match self {
            Self::Ok { count } => *count,
            Self::ArrayError { .. } | Self::ArrayInteger { .. } => 0,
            _ => 1,
        }
    }
}

/// Bytes that are no RESP2 reply, or one beyond the limits. Final: close the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    #[error("a reply line is longer than {limit} bytes")]
    LineTooLong { limit: usize },
    #[error("a reply line does not end with CR LF")]
    LineNotTerminated,
    #[error("a reply begins with byte {mark:#04x}, which is no RESP2 type")]
    UnknownType { mark: u8 },
    #[error("a reply announces a length that is no number from -1 to {limit}")]
    BadLength { limit: u64 },
    #[error("an integer reply is not a number")]
    BadInteger,
    #[error("a bulk string is not followed by CR LF")]
    BulkNotTerminated,
    #[error("replies are nested deeper than {limit} arrays")]
    TooDeep { limit: usize },
    #[error("a reply is longer than {limit} bytes")]
    TooLong { limit: usize },
}

/// Scans the replies of one connection. See the module's header.
#[derive(Debug, Default)]
pub struct ReplyScanner {
    /// The beginning of a line whose end has not arrived.
    line: Vec<u8>,
    /// Bytes of a bulk string still to be read over, its CR LF included.
    bulk_left: u64,
    bulk_len: u64,
    /// Elements still to come of each open array, the outermost first.
    open: [u64; DEPTH_MAX],
    depth: usize,
    elements: u64,
    errors: u64,
}

impl ReplyScanner {
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the bytes so far end at the border of a reply.
    pub fn at_border(&self) -> bool {
        self.line.is_empty() && self.bulk_left == 0 && self.depth == 0
    }

    /// Scans the next bytes of the connection and reports what they complete, in order.
    pub fn feed(&mut self, bytes: &[u8], mut visit: impl FnMut(Reply<'_>)) -> Result<(), ReplyError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.bulk_left > 0 {
                rest = self.skip_bulk(rest, &mut visit)?;
            } else if !self.line.is_empty() {
                rest = self.finish_line(rest, &mut visit)?;
            } else {
                if self.depth == 0 {
                    let count = count_oks(rest);
                    if count > 0 {
                        visit(Reply::Ok { count: count as u64 });
                        rest = rest.get(count * OK.len()..).unwrap_or_default();
                        continue;
                    }
                }
                match line_end(rest, LINE_BYTES_MAX)? {
                    Some(line) => {
                        rest = rest.get(line.len() + 2..).unwrap_or_default();
                        self.take_line(line, &mut visit)?;
                    }
                    None => {
                        self.line.extend_from_slice(rest);
                        rest = &[];
                    }
                }
            }
        }
        Ok(())
    }

    /// Appends to the line kept from before, up to its end.
    fn finish_line<'a>(&mut self, rest: &'a [u8], visit: &mut impl FnMut(Reply<'_>)) -> Result<&'a [u8], ReplyError> {
        let (taken, left) = match memchr::memchr(b'\n', rest) {
            Some(at) => rest.split_at(at + 1),
            None => (rest, &[][..]),
        };
        if self.line.len() + taken.len() > LINE_BYTES_MAX + 2 {
            return Err(ReplyError::LineTooLong { limit: LINE_BYTES_MAX });
        }
        self.line.extend_from_slice(taken);
        if self.line.last() == Some(&b'\n') {
            // The line is taken out while its reply is handled, and its memory put back.
            let kept = std::mem::take(&mut self.line);
            let line = kept.strip_suffix(b"\r\n").ok_or(ReplyError::LineNotTerminated)?;
            self.take_line(line, visit)?;
            self.line = kept;
            self.line.clear();
        }
        Ok(left)
    }

    fn take_line(&mut self, line: &[u8], visit: &mut impl FnMut(Reply<'_>)) -> Result<(), ReplyError> {
        let Some((&mark, text)) = line.split_first() else { return Err(ReplyError::UnknownType { mark: b'\r' }) };
        match mark {
            b'+' => self.simple(text, visit),
            b'-' => self.error(text, visit),
            b':' => {
                let value = parse_integer(text)?;
                if self.depth == 0 {
                    visit(Reply::Integer(value));
                } else {
                    visit(Reply::ArrayInteger { index: self.index(), value });
                }
                self.element_ended(visit);
            }
            b'$' => match parse_length(text, BULK_BYTES_MAX)? {
                Some(len) => {
                    self.bulk_len = len;
                    self.bulk_left = len + 2;
                }
                None => self.plain(Reply::Null, visit),
            },
            b'*' => match parse_length(text, ELEMENTS_MAX)? {
                Some(len) => self.array_begun(len, visit)?,
                None => self.plain(Reply::Null, visit),
            },
            mark => return Err(ReplyError::UnknownType { mark }),
        }
        Ok(())
    }

    fn simple(&mut self, text: &[u8], visit: &mut impl FnMut(Reply<'_>)) {
        let reply = match text {
            b"OK" => Reply::Ok { count: 1 },
            b"QUEUED" => Reply::Queued,
            text => Reply::Simple(text),
        };
        self.plain(reply, visit);
    }

    fn error(&mut self, text: &[u8], visit: &mut impl FnMut(Reply<'_>)) {
        if self.depth == 0 {
            visit(Reply::Error(text));
        } else {
            self.errors += 1;
            visit(Reply::ArrayError { index: self.index(), text });
        }
        self.element_ended(visit);
    }

    /// A reply that is of interest only outside of arrays.
    fn plain(&mut self, reply: Reply<'_>, visit: &mut impl FnMut(Reply<'_>)) {
        if self.depth == 0 {
            visit(reply);
        }
        self.element_ended(visit);
    }

    fn array_begun(&mut self, len: u64, visit: &mut impl FnMut(Reply<'_>)) -> Result<(), ReplyError> {
        if self.depth == 0 {
            self.elements = len;
            self.errors = 0;
        }
        if len == 0 {
            if self.depth == 0 {
                visit(Reply::Array { elements: 0, errors: 0 });
            }
            self.element_ended(visit);
            return Ok(());
        }
        let Some(level) = self.open.get_mut(self.depth) else { return Err(ReplyError::TooDeep { limit: DEPTH_MAX }) };
        *level = len;
        self.depth += 1;
        Ok(())
    }

    /// Index of the current element of the outermost array.
    fn index(&self) -> u64 {
        self.open.first().map_or(0, |left| self.elements.saturating_sub(*left))
    }

    /// An element has ended: so do all arrays of which it was the last.
    fn element_ended(&mut self, visit: &mut impl FnMut(Reply<'_>)) {
        while let Some(level) = self.depth.checked_sub(1).and_then(|depth| self.open.get_mut(depth)) {
            *level = level.saturating_sub(1);
            if *level > 0 {
                return;
            }
            self.depth -= 1;
            if self.depth == 0 {
                visit(Reply::Array { elements: self.elements, errors: self.errors });
            }
        }
    }

    fn skip_bulk<'a>(&mut self, rest: &'a [u8], visit: &mut impl FnMut(Reply<'_>)) -> Result<&'a [u8], ReplyError> {
        let content_left = self.bulk_left.saturating_sub(2);
        let skipped = usize::try_from(content_left).unwrap_or(usize::MAX).min(rest.len());
        self.bulk_left -= skipped as u64;
        let (_, mut rest) = rest.split_at(skipped);
        for expected in [b'\r', b'\n'] {
            let due = if expected == b'\r' { 2 } else { 1 };
            if self.bulk_left == due {
                let Some((&byte, left)) = rest.split_first() else { return Ok(rest) };
                if byte != expected {
                    return Err(ReplyError::BulkNotTerminated);
                }
                rest = left;
                self.bulk_left -= 1;
            }
        }
        if self.bulk_left == 0 {
            self.plain(Reply::Bulk { len: self.bulk_len }, visit);
        }
        Ok(rest)
    }
}

/// How many `+OK\r\n` stand at the front.
#[inline]
pub fn count_oks(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    let mut count = 0;
    while let Some(left) = rest.strip_prefix(&OK_BLOCK_BYTES) {
        count += OK_BLOCK;
        rest = left;
    }
    while let Some(left) = rest.strip_prefix(OK) {
        count += 1;
        rest = left;
    }
    count
}

/// The line at the front without its end, or `None` if its end is not there yet.
pub(super) fn line_end(bytes: &[u8], limit: usize) -> Result<Option<&[u8]>, ReplyError> {
    let searched = bytes.get(..limit + 2).unwrap_or(bytes);
    match memchr::memchr(b'\n', searched).and_then(|at| bytes.get(..at)) {
        Some(line) => line.strip_suffix(b"\r").map(Some).ok_or(ReplyError::LineNotTerminated),
        None if bytes.len() >= limit + 2 => Err(ReplyError::LineTooLong { limit }),
        None => Ok(None),
    }
}

pub(super) fn parse_integer(text: &[u8]) -> Result<i64, ReplyError> {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(ReplyError::BadInteger)
}

/// `None` for -1.
pub(super) fn parse_length(text: &[u8], limit: u64) -> Result<Option<u64>, ReplyError> {
    match parse_integer(text) {
        Ok(-1) => Ok(None),
        Ok(len) if u64::try_from(len).is_ok_and(|len| len <= limit) => Ok(Some(len as u64)),
        _ => Err(ReplyError::BadLength { limit }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::value::{self, Value};
    use super::*;
    use proptest::prelude::*;

    /// An owned form of what is reported, runs of OK taken apart.
    fn scan(pieces: &[&[u8]]) -> Result<Vec<String>, ReplyError> {
        let mut seen = Vec::new();
        let mut scanner = ReplyScanner::new();
        for piece in pieces {
            scanner.feed(piece, |reply| match reply {
                Reply::Ok { count } => seen.extend((0..count).map(|_| "ok".to_string())),
                Reply::Bulk { len } => seen.push(format!("bulk {len}")),
                other => seen.push(format!("{other:?}")),
            })?;
        }
        if !scanner.at_border() {
            seen.push("open".into());
        }
        Ok(seen)
    }

    /// The plain twin: whole values, one after the other.
    fn twin(mut bytes: &[u8]) -> Vec<String> {
        let mut seen = Vec::new();
        while let Some((value, len)) = value::parse(bytes).unwrap() {
            match &value {
                Value::Simple(text) if text == b"OK" => seen.push("ok".into()),
                Value::Simple(text) if text == b"QUEUED" => seen.push(format!("{:?}", Reply::Queued)),
                Value::Simple(text) => seen.push(format!("{:?}", Reply::Simple(text))),
                Value::Error(text) => seen.push(format!("{:?}", Reply::Error(text))),
                Value::Integer(value) => seen.push(format!("{:?}", Reply::Integer(*value))),
                Value::Bulk(content) => seen.push(format!("bulk {}", content.len())),
                Value::Null => seen.push(format!("{:?}", Reply::Null)),
                Value::Array(elements) => {
                    let mut errors = 0;
                    for (index, element) in elements.iter().enumerate() {
                        twin_element(index as u64, element, &mut errors, &mut seen);
                    }
                    seen.push(format!("{:?}", Reply::Array { elements: elements.len() as u64, errors }));
                }
            }
            bytes = &bytes[len..];
        }
        if !bytes.is_empty() {
            seen.push("open".into());
        }
        seen
    }

    fn twin_element(index: u64, value: &Value, errors: &mut u64, seen: &mut Vec<String>) {
        match value {
            Value::Error(text) => {
                *errors += 1;
                seen.push(format!("{:?}", Reply::ArrayError { index, text }));
            }
            Value::Integer(value) => seen.push(format!("{:?}", Reply::ArrayInteger { index, value: *value })),
            Value::Array(elements) => elements.iter().for_each(|e| twin_element(index, e, errors, seen)),
            _ => {}
        }
    }

    fn encode(value: &Value, out: &mut Vec<u8>) {
        match value {
            Value::Simple(text) => out.extend([b"+", &text[..], b"\r\n"].concat()),
            Value::Error(text) => out.extend([b"-", &text[..], b"\r\n"].concat()),
            Value::Integer(value) => out.extend(format!(":{value}\r\n").bytes()),
            Value::Bulk(content) => super::super::resp::push_bulk(out, content),
            Value::Null => out.extend(b"$-1\r\n"),
            Value::Array(elements) => {
                super::super::resp::push_array_head(out, elements.len());
                elements.iter().for_each(|element| encode(element, out));
            }
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            4 => Just(Value::Simple(b"OK".to_vec())),
            1 => Just(Value::Simple(b"QUEUED".to_vec())),
            1 => "[ -~]{0,12}".prop_map(|text| Value::Simple(text.into_bytes())),
            1 => "[ -~]{1,20}".prop_map(|text| Value::Error(text.into_bytes())),
            1 => any::<i64>().prop_map(Value::Integer),
            1 => proptest::collection::vec(any::<u8>(), 0..40).prop_map(Value::Bulk),
            1 => Just(Value::Null),
        ];
        leaf.prop_recursive(3, 24, 5, |inner| proptest::collection::vec(inner, 0..5).prop_map(Value::Array))
    }

    #[test]
    fn runs_of_ok_are_one_report() {
        let bytes = OK.repeat(1000);
        assert_eq!(count_oks(&bytes), 1000);
        for cut in 0..12 {
            let (head, tail) = bytes.split_at(bytes.len() / 2 + cut);
            assert_eq!(scan(&[head, tail]).unwrap().len(), 1000);
        }
    }

    #[test]
    fn an_exec_is_summarized_with_its_errors() {
        let bytes = b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*3\r\n:7\r\n-WRONGTYPE no\r\n+OK\r\n-EXECABORT x\r\n";
        assert_eq!(
            scan(&[bytes]).unwrap(),
            [
                "ok".to_string(),
                "Queued".into(),
                "Queued".into(),
                format!("{:?}", Reply::ArrayInteger { index: 0, value: 7 }),
                format!("{:?}", Reply::ArrayError { index: 1, text: b"WRONGTYPE no" }),
                format!("{:?}", Reply::Array { elements: 3, errors: 1 }),
                format!("{:?}", Reply::Error(b"EXECABORT x")),
            ]
        );
    }

    #[test]
    fn an_array_of_millions_is_counted_without_memory() {
        const ELEMENTS: u64 = 3_000_000;
        let mut scanner = ReplyScanner::new();
        let mut seen = Vec::new();
        let mut feed = |bytes: &[u8]| scanner.feed(bytes, |reply| seen.push(format!("{reply:?}"))).unwrap();
        feed(format!("*2\r\n*{ELEMENTS}\r\n").as_bytes());
        let element = b"$3\r\nabc\r\n".repeat(1000);
        (0..ELEMENTS / 1000).for_each(|_| feed(&element));
        feed(b":7\r\n");
        assert!(scanner.at_border() && scanner.line.capacity() == 0);
        assert_eq!(
            seen,
            [Reply::ArrayInteger { index: 1, value: 7 }, Reply::Array { elements: 2, errors: 0 }]
                .map(|reply| format!("{reply:?}"))
        );
    }

    #[test]
    fn hostile_replies_are_refused() {
        let long = vec![b'+'; LINE_BYTES_MAX + 3];
        let cases: [(&[u8], ReplyError); 10] = [
            (&long, ReplyError::LineTooLong { limit: LINE_BYTES_MAX }),
            (b"+O\n", ReplyError::LineNotTerminated),
            (b"OK\r\n", ReplyError::UnknownType { mark: b'O' }),
            (b"\r\n", ReplyError::UnknownType { mark: b'\r' }),
            (b"$-2\r\n", ReplyError::BadLength { limit: BULK_BYTES_MAX }),
            (b"$536870913\r\n", ReplyError::BadLength { limit: BULK_BYTES_MAX }),
            (b"*2147483648\r\n", ReplyError::BadLength { limit: ELEMENTS_MAX }),
            (b":1x\r\n", ReplyError::BadInteger),
            (b"$1\r\nab\r\n", ReplyError::BulkNotTerminated),
            (b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n", ReplyError::TooDeep { limit: DEPTH_MAX }),
        ];
        for (bytes, expected) in cases {
            assert_eq!(scan(&[bytes]), Err(expected), "{:?}", &bytes[..bytes.len().min(20)]);
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(scan(&single), Err(expected), "bytewise {:?}", &bytes[..bytes.len().min(20)]);
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_plain_twin_in_any_pieces(
            values in proptest::collection::vec(any_value(), 0..12),
            cuts in proptest::collection::vec(1usize..40, 1..60),
            keep in 0.0..1.0f64,
        ) {
            let mut bytes = Vec::new();
            values.iter().for_each(|value| encode(value, &mut bytes));
            bytes.truncate(bytes.len() - (keep * keep * keep * bytes.len() as f64) as usize);
            let mut pieces = Vec::new();
            let mut rest = &bytes[..];
            let mut cuts = cuts.iter().cycle();
            while !rest.is_empty() {
                let (piece, left) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                pieces.push(piece);
                rest = left;
            }
            let seen = scan(&pieces).unwrap();
            let expected = twin(&bytes);
            // A cut array has reported what passed; the twin knows only whole values.
            if expected.last().is_some_and(|last| last == "open") {
                prop_assert_eq!(&seen[..expected.len() - 1], &expected[..expected.len() - 1]);
                prop_assert_eq!(seen.last().unwrap(), "open");
            } else {
                prop_assert_eq!(seen, expected);
            }
        }

        #[test]
        fn garbage_never_panics(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..6)) {
            let pieces: Vec<&[u8]> = pieces.iter().map(|piece| &piece[..]).collect();
            let _ = scan(&pieces);
        }
    }
}
