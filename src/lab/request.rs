//! Requests as the lab's servers read them: RESP arrays and inline lines, bounded, blocking.

use std::io::{self, BufRead, Read};

/// Most arguments of a request, and most bytes of one argument: far above anything that a handshake needs.
const ARGS_MAX: usize = 1 << 16;
const ARG_BYTES_MAX: usize = 64 << 20;
const LINE_BYTES_MAX: u64 = 64 << 10;

/// One request: its strings, name first; never empty.
pub type Request = Vec<Vec<u8>>;

/// Reads the next request; `None` if the peer closed the connection between two requests.
pub fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    loop {
        let Some(line) = read_line(reader)? else { return Ok(None) };
        if line.is_empty() {
            continue;
        }
        let Some(count) = line.strip_prefix(b"*") else {
            return Ok(Some(line.split(|b| *b == b' ').filter(|w| !w.is_empty()).map(<[u8]>::to_vec).collect()));
        };
        let count = number(count)?;
        if count > ARGS_MAX {
            return Err(bad("too many arguments"));
        }
        if count == 0 {
            continue;
        }
        let mut args = Vec::with_capacity(count.min(64));
        for _ in 0..count {
            args.push(read_bulk(reader)?);
        }
        return Ok(Some(args));
    }
}

/// `name` in upper case, for matching.
pub fn upper(word: &[u8]) -> String {
    String::from_utf8_lossy(word).to_ascii_uppercase()
}

fn read_bulk(reader: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let line = read_line(reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let len = number(line.strip_prefix(b"$").ok_or_else(|| bad("a request argument is no bulk string"))?)?;
    if len > ARG_BYTES_MAX {
        return Err(bad("an argument is too long"));
    }
    let mut bytes = Vec::new();
    reader.take(len as u64 + 2).read_to_end(&mut bytes)?;
    if bytes.len() != len + 2 || !bytes.ends_with(b"\r\n") {
        return Err(bad("a bulk string does not end where it should"));
    }
    bytes.truncate(len);
    Ok(bytes)
}

fn read_line(reader: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    reader.take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.pop() != Some(b'\n') {
        return Err(bad("a line does not end"));
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(Some(line))
}

fn number(digits: &[u8]) -> io::Result<usize> {
    std::str::from_utf8(digits).ok().and_then(|d| d.parse().ok()).ok_or_else(|| bad("not a length"))
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms() {
        let mut input: &[u8] = b"PING\r\n*2\r\n$4\r\nECHO\r\n$3\r\na b\r\n\r\nREPLCONF  ACK 17\n";
        let mut next = || read_request(&mut input).unwrap();
        assert_eq!(next().unwrap(), [b"PING".to_vec()]);
        assert_eq!(next().unwrap(), [b"ECHO".to_vec(), b"a b".to_vec()]);
        assert_eq!(next().unwrap().len(), 3);
        assert_eq!(next(), None);
    }

    #[test]
    fn hostile_lengths() {
        for input in ["*99999999999\r\n", "*1\r\n$99999999999\r\n", "*-1\r\n", "*1\r\n:1\r\n", "*1\r\n$3\r\nab\r\n"] {
            assert!(read_request(&mut input.as_bytes()).is_err(), "{input}");
        }
    }
}
