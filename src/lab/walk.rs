//! Walks RESP requests in a byte stream without storing them: lengths are read, strings skipped.
//!
//! In: received bytes, as they come. Out: replies through [`Answers`], counts. Invariant: the walk may stop at any byte
//! and goes on from there; bytes of a long string are never kept. Only requests that need their arguments for the
//! answer are gathered, up to a bound.

use super::answers::{Answers, Class, class};

/// A string of a gathered request is kept up to this length; what is longer is cut, as no answer depends on it.
const GATHERED_BYTES_MAX: usize = 16 << 10;
/// Longest length line (`$536870912\r\n`).
const LINE_BYTES_MAX: usize = 24;

/// What is wrong with a request stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {offset} of the input: {reason}")]
pub struct Malformed {
    pub offset: u64,
    pub reason: &'static str,
}

/// State of one connection's walk.
pub(super) struct Walker {
    answers: Answers,
    /// Strings of the current request that have not begun.
    strings_left: u64,
    /// Bytes of the current string (and its CRLF) that are still to come.
    skip_bytes: u64,
    class: Class,
    /// The current request needs its arguments: gathered here.
    gathering: bool,
    args: Vec<Vec<u8>>,
    /// Bytes consumed before the current call.
    offset: u64,
    pub commands_count: u64,
}

impl Walker {
    pub fn new(answers: Answers) -> Self {
        Self {
            answers,
            strings_left: 0,
            skip_bytes: 0,
            class: Class::Ok,
            gathering: false,
            args: Vec::new(),
            offset: 0,
            commands_count: 0,
        }
    }

    /// Walks `input`; appends replies to `out`; returns how many bytes were consumed. The rest (at most a length line and
    /// a command's name) must stand at the front of the next call's input.
    pub fn walk(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Malformed> {
        let mut at = 0;
        loop {
            if self.skip_bytes > 0 {
                let here = &input[at..];
                let take = self.skip_bytes.min(here.len() as u64) as usize;
                if self.gathering {
                    self.gather(&here[..take]);
                }
                at += take;
                self.skip_bytes -= take as u64;
                if self.skip_bytes > 0 {
                    break;
                }
                if self.strings_left == 0 {
                    self.end_request(out);
                }
            }
            let begun = at;
            if self.strings_left == 0 {
                let Some((count, after)) = self.line(b'*', input, at)? else { break };
                if count == 0 {
                    at = after;
                    continue;
                }
                // The name comes with the count, so that the request's class is known when its strings are skipped.
                let Some((len, name_at)) = self.line(b'$', input, after)? else { break };
                if len > 64 {
                    return Err(self.malformed(after, "a command name of more than 64 bytes"));
                }
                let name_end = name_at + len as usize;
                let Some(name) = input.get(name_at..name_end) else { break };
                self.begin_request(name);
                self.strings_left = count - 1;
                self.skip_bytes = 2;
                at = name_end;
            } else {
                let Some((len, after)) = self.line(b'$', input, at)? else { break };
                self.strings_left -= 1;
                self.skip_bytes = len + 2;
                if self.gathering {
                    self.args.push(Vec::new());
                }
                at = after;
            }
            debug_assert!(at > begun);
        }
        self.offset += at as u64;
        Ok(at)
    }

    #[inline]
    fn begin_request(&mut self, name: &[u8]) {
        self.class = class(name);
        self.gathering = self.class == Class::Special || !self.answers.is_plain();
        if self.gathering {
            self.args.clear();
            self.args.push(name.to_vec());
        }
    }

    #[inline]
    fn end_request(&mut self, out: &mut Vec<u8>) {
        self.commands_count += 1;
        match self.class {
            _ if self.gathering => {
                for arg in self.args.iter_mut().skip(1) {
                    arg.truncate(arg.len().saturating_sub(2));
                }
                self.answers.answer(&self.args, out);
                self.gathering = false;
            }
            Class::Ok => out.extend_from_slice(b"+OK\r\n"),
            _ => out.extend_from_slice(b":1\r\n"),
        }
    }

    fn gather(&mut self, bytes: &[u8]) {
        // The CRLF behind the name is skipped before any other string has begun.
        if self.args.len() > 1
            && let Some(arg) = self.args.last_mut()
        {
            let room = GATHERED_BYTES_MAX.saturating_sub(arg.len());
            arg.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    }

    /// Number on the line that begins at `at` with `mark`, and where the line ends; `None`: incomplete.
    #[inline]
    fn line(&self, mark: u8, input: &[u8], at: usize) -> Result<Option<(u64, usize)>, Malformed> {
        let Some(found) = input.get(at) else { return Ok(None) };
        if *found != mark {
            return Err(
                self.malformed(at, if mark == b'*' { "no request begins here" } else { "no string begins here" })
            );
        }
        let mut value = 0u64;
        for (i, byte) in input[at + 1..].iter().enumerate() {
            match byte {
                b'0'..=b'9' if i < LINE_BYTES_MAX - 5 => value = value * 10 + u64::from(byte - b'0'),
                b'\r' => {
                    let end = at + 1 + i + 1;
                    return match input.get(end) {
                        None => Ok(None),
                        Some(b'\n') if i > 0 => Ok(Some((value, end + 1))),
                        _ => Err(self.malformed(at, "a length line ends wrongly")),
                    };
                }
                _ => return Err(self.malformed(at, "a length that is no number")),
            }
        }
        Ok(None)
    }

    fn malformed(&self, at: usize, reason: &'static str) -> Malformed {
        Malformed { offset: self.offset + at as u64, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::answers::TargetIdentity;

    /// Feeds `input` in pieces of `piece` bytes.
    fn run(input: &[u8], piece: usize) -> Result<(u64, String), Malformed> {
        let mut walker = Walker::new(Answers::new(TargetIdentity::default().into()));
        let (mut buffer, mut out) = (Vec::new(), Vec::new());
        for bytes in input.chunks(piece) {
            buffer.extend_from_slice(bytes);
            let used = walker.walk(&buffer, &mut out)?;
            buffer.drain(..used);
        }
        assert!(buffer.is_empty(), "{buffer:?}");
        Ok((walker.commands_count, String::from_utf8(out).unwrap()))
    }

    #[test]
    fn counts_and_answers_at_any_split() {
        let mut input = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$12\r\n*1\r\n$4\r\nPING\r\n".to_vec();
        input.extend_from_slice(
            b"*1\r\n$5\r\nMULTI\r\n*2\r\n$4\r\nincr\r\n$0\r\n\r\n*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n",
        );
        input.extend_from_slice(b"*1\r\n$4\r\nEXEC\r\n*4\r\n$5\r\nRPUSH\r\n$1\r\nl\r\n$1\r\na\r\n$1\r\nb\r\n");
        input.extend_from_slice(b"*2\r\n$4\r\nPING\r\n$2\r\nhi\r\n*1\r\n$4\r\nping\r\n*2\r\n$3\r\nget\r\n$1\r\nk\r\n");
        let wanted = "+OK\r\n+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:1\r\n+OK\r\n:1\r\n$2\r\nhi\r\n+PONG\r\n$-1\r\n";
        for piece in [1, 2, 3, 7, 11, 1000] {
            assert_eq!(run(&input, piece), Ok((9, wanted.to_owned())), "{piece}");
        }
    }

    #[test]
    fn malformed_is_found() {
        for (input, offset) in [("PING\r\n", 0), ("*1\r\n:4\r\n", 4), ("*1\r\n$x\r\n", 4), ("*1\r\n$4\rPING", 4)] {
            assert_eq!(run(input.as_bytes(), 100).unwrap_err().offset, offset, "{input}");
        }
        assert_eq!(run(b"*1\r\n$4\r\nPING\r\n$1", 100).unwrap_err().offset, 14);
    }
}
