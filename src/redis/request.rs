//! Walking over requests already encoded, given as a sequence of byte slices as they lie in a batch.
//!
//! Nothing is noted of a command when it is written; when the k-th reply is an error, or a connection is lost with k
//! commands acknowledged, the batch is read again to its k-th command. Large bulks are stepped over, never copied.
//! The bytes are our own, yet checked like foreign ones: a batch that cannot be walked is an error, not a panic.

/// Most bytes of a key (or command name) that are copied into a [`CommandHead`].
pub const COPIED_BYTES_MAX: usize = 64 * 1024;

/// Digits of any number of strings.
const COUNT_DIGITS_MAX: usize = 20;

/// One command of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandHead {
    /// As written, upper case.
    pub name: Vec<u8>,
    /// The first key, if the command has one; cut at [`COPIED_BYTES_MAX`].
    pub first_key: Option<Vec<u8>>,
    /// Of a script, how many keys it is given, if that is a number.
    pub script_keys_count: Option<usize>,
    /// Number of strings, name included.
    pub args_count: usize,
    /// Where the command begins, counted over all segments.
    pub bytes_offset: u64,
    /// Bytes of the whole command.
    pub bytes_len: u64,
}

/// A batch that is not a sequence of whole commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("the batch ends at byte {offset}, inside a command")]
    Truncated { offset: u64 },
    #[error("byte {offset} of the batch does not continue a RESP command")]
    Malformed { offset: u64 },
    #[error("the batch holds only {commands} commands")]
    NoSuchCommand { commands: u64 },
}

/// The `n`-th command (from 0).
pub fn nth_command<'a>(segments: impl IntoIterator<Item = &'a [u8]>, n: u64) -> Result<CommandHead, RequestError> {
    nth_command_by(segments, n, key_position)
}

/// The same with another string for its first key: which one it is, by the command's name.
pub fn nth_command_by<'a>(
    segments: impl IntoIterator<Item = &'a [u8]>,
    n: u64,
    key_position: fn(&[u8]) -> Option<usize>,
) -> Result<CommandHead, RequestError> {
    let mut commands = 0;
    for command in commands_by(segments, key_position) {
        let command = command?;
        if commands == n {
            return Ok(command);
        }
        commands += 1;
    }
    Err(RequestError::NoSuchCommand { commands })
}

/// Where the `n`-th command begins, or the end of the batch if it holds exactly `n`.
pub fn offset_of<'a>(segments: impl IntoIterator<Item = &'a [u8]>, n: u64) -> Result<u64, RequestError> {
    let mut walker = Walker::new(segments.into_iter());
    for commands in 0..n {
        if walker.at_end() {
            return Err(RequestError::NoSuchCommand { commands });
        }
        walker.command(false)?;
    }
    Ok(walker.offset)
}

/// All commands in order. Ends after the first error.
pub fn commands<'a>(
    segments: impl IntoIterator<Item = &'a [u8]>,
) -> impl Iterator<Item = Result<CommandHead, RequestError>> {
    commands_by(segments, key_position)
}

fn commands_by<'a>(
    segments: impl IntoIterator<Item = &'a [u8]>,
    key_position: fn(&[u8]) -> Option<usize>,
) -> impl Iterator<Item = Result<CommandHead, RequestError>> {
    let mut walker = Walker { key_position, ..Walker::new(segments.into_iter()) };
    let mut failed = false;
    std::iter::from_fn(move || {
        if failed || walker.at_end() {
            return None;
        }
        let command = walker.command(true);
        failed = command.is_err();
        Some(command)
    })
}

/// Which string of a command (`name` in upper case) is its first key: for nearly all the one after the name.
pub fn key_position(name: &[u8]) -> Option<usize> {
    match name {
        b"SELECT" | b"MULTI" | b"EXEC" | b"SCRIPT" | b"PING" | b"ASKING" | b"FLUSHALL" | b"FLUSHDB" | b"FUNCTION" => {
            None
        }
        b"XGROUP" | b"LMPOP" | b"ZMPOP" => Some(2),
        b"EVAL" | b"EVALSHA" => Some(3),
        _ => Some(1),
    }
}

struct Walker<'a, I> {
    segments: I,
    current: &'a [u8],
    offset: u64,
    key_position: fn(&[u8]) -> Option<usize>,
}

impl<'a, I: Iterator<Item = &'a [u8]>> Walker<'a, I> {
    fn new(segments: I) -> Self {
        Self { segments, current: &[], offset: 0, key_position }
    }

    /// Whether no byte is left; moves on to the next segment that has one.
    fn at_end(&mut self) -> bool {
        while self.current.is_empty() {
            match self.segments.next() {
                Some(segment) => self.current = segment,
                None => return true,
            }
        }
        false
    }

    fn byte(&mut self) -> Result<u8, RequestError> {
        if self.at_end() {
            return Err(RequestError::Truncated { offset: self.offset });
        }
        let Some((&byte, rest)) = self.current.split_first() else {
            return Err(RequestError::Truncated { offset: self.offset });
        };
        self.current = rest;
        self.offset += 1;
        Ok(byte)
    }

    /// Steps over `len` bytes, copying at most `copied_max` of them.
    fn bytes(&mut self, len: u64, copied_max: usize, copied: &mut Vec<u8>) -> Result<(), RequestError> {
        let mut left = len;
        while left > 0 {
            if self.at_end() {
                return Err(RequestError::Truncated { offset: self.offset });
            }
            let step = usize::try_from(left).unwrap_or(usize::MAX).min(self.current.len());
            let (taken, rest) = self.current.split_at(step);
            let room = copied_max.saturating_sub(copied.len());
            copied.extend_from_slice(taken.get(..room).unwrap_or(taken));
            self.current = rest;
            self.offset += step as u64;
            left -= step as u64;
        }
        Ok(())
    }

    fn expect(&mut self, expected: u8) -> Result<(), RequestError> {
        let offset = self.offset;
        if self.byte()? == expected { Ok(()) } else { Err(RequestError::Malformed { offset }) }
    }

    /// `mark`, a decimal number, CR LF.
    fn number(&mut self, mark: u8) -> Result<u64, RequestError> {
        self.expect(mark)?;
        let mut number: u64 = 0;
        let mut digits = 0;
        loop {
            let offset = self.offset;
            match self.byte()? {
                digit @ b'0'..=b'9' => {
                    number = number
                        .checked_mul(10)
                        .and_then(|number| number.checked_add(u64::from(digit - b'0')))
                        .ok_or(RequestError::Malformed { offset })?;
                    digits += 1;
                }
                b'\r' if digits > 0 => break,
                _ => return Err(RequestError::Malformed { offset }),
            }
        }
        self.expect(b'\n')?;
        Ok(number)
    }

    fn command(&mut self, wants_head: bool) -> Result<CommandHead, RequestError> {
        let bytes_offset = self.offset;
        let args = self.number(b'*')?;
        let args_count = usize::try_from(args).map_err(|_| RequestError::Malformed { offset: bytes_offset })?;
        let mut name = Vec::new();
        let mut first_key = None;
        let mut script_keys_count = None;
        let mut key_at = None;
        for position in 0..args_count {
            let len = self.number(b'$')?;
            if position == 0 && wants_head {
                self.bytes(len, COPIED_BYTES_MAX, &mut name)?;
                key_at = (self.key_position)(&name);
            } else if key_at == Some(position) {
                let mut key = Vec::new();
                self.bytes(len, COPIED_BYTES_MAX, &mut key)?;
                first_key = Some(key);
            } else if position == 2 && key_at == Some(3) {
                let mut count = Vec::new();
                self.bytes(len, COUNT_DIGITS_MAX, &mut count)?;
                script_keys_count = std::str::from_utf8(&count).ok().and_then(|count| count.parse().ok());
            } else {
                self.bytes(len, 0, &mut Vec::new())?;
            }
            self.expect(b'\r')?;
            self.expect(b'\n')?;
        }
        let bytes_len = self.offset - bytes_offset;
        Ok(CommandHead { name, first_key, script_keys_count, args_count, bytes_offset, bytes_len })
    }
}

#[cfg(test)]
mod tests {
    use super::super::resp;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn finds_commands_over_any_cut() {
        let mut bytes = resp::command(&[b"SET", b"k", b"v"]);
        let second = bytes.len();
        resp::push_command(&mut bytes, &[b"XGROUP", b"CREATE", b"s", b"g", b"0"]);
        resp::push_command(&mut bytes, &[b"EXEC"]);
        for size in 1..bytes.len() {
            let found = nth_command(bytes.chunks(size), 1).unwrap();
            assert_eq!(found.name, b"XGROUP");
            assert_eq!(found.first_key.as_deref(), Some(&b"s"[..]));
            assert_eq!((found.args_count, found.bytes_offset), (5, second as u64));
            assert_eq!(nth_command(bytes.chunks(size), 2).unwrap().first_key, None);
            assert_eq!(nth_command(bytes.chunks(size), 3), Err(RequestError::NoSuchCommand { commands: 3 }));
            assert_eq!(offset_of(bytes.chunks(size), 3), Ok(bytes.len() as u64));
        }
    }

    #[test]
    fn a_script_tells_how_many_keys_it_has() {
        for (args, count) in [
            (&[&b"EVAL"[..], b"return", b"2", b"k", b"l"][..], Some(2)),
            (&[b"EVAL", b"return", b"x", b"k"], None),
            (&[b"SET", b"k", b"2", b"PX", b"1"], None),
            (&[b"XGROUP", b"CREATE", b"2", b"g", b"0"], None),
        ] {
            assert_eq!(nth_command([&resp::command(args)[..]], 0).unwrap().script_keys_count, count);
        }
    }

    #[test]
    fn malformed_batches_are_errors() {
        let bytes = resp::command(&[b"SET", b"k", b"v"]);
        for len in 1..bytes.len() {
            assert!(matches!(nth_command([&bytes[..len]], 0), Err(RequestError::Truncated { .. })));
        }
        for bad in [&b"SET\r\n"[..], b"*1\r\n+a\r\n", b"*99999999999999999999\r\n", b"*1\r\n$1\r\naX", b"*\r\n"] {
            assert!(nth_command([bad], 0).is_err());
        }
    }

    proptest! {
        #[test]
        fn every_command_comes_back(
            commands in proptest::collection::vec(
                (proptest::collection::vec(any::<u8>(), 0..30), proptest::collection::vec(any::<u8>(), 0..300)), 0..20),
            size in 1usize..200,
        ) {
            let mut bytes = Vec::new();
            let mut offsets = vec![];
            for (key, value) in &commands {
                offsets.push(bytes.len() as u64);
                resp::push_command(&mut bytes, &[b"SET", key, value]);
            }
            let found: Vec<_> = self::commands(bytes.chunks(size)).collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(found.iter().map(|c| c.bytes_offset).collect::<Vec<_>>(), offsets);
            let keys: Vec<_> = found.iter().map(|c| c.first_key.clone().unwrap()).collect();
            prop_assert_eq!(keys, commands.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>());
        }
    }
}
