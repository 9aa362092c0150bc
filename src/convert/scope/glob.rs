//! Glob patterns as `KEYS` and `SCAN MATCH` know them: `*`, `?`, `[abc]`, `[^a-z]`, `\x`.
//!
//! In: the operator's pattern, keys of any bytes. Matching is iterative: a `*` is tried again one byte further on, and only
//! the last one, so the time is bounded by pattern times key.

use super::ScopeError;

/// Longest pattern.
pub const PATTERN_BYTES_MAX: usize = 1024;

#[derive(Clone, Debug)]
pub struct Glob {
    tokens: Vec<Token>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// Exactly these bytes.
    Text(Vec<u8>),
    AnyByte,
    AnyBytes,
    /// One byte of (or not of) these ranges.
    Set {
        negated: bool,
        ranges: Vec<(u8, u8)>,
    },
}

impl Glob {
    pub fn new(pattern: &str) -> Result<Self, ScopeError> {
        if pattern.len() > PATTERN_BYTES_MAX {
            return Err(ScopeError::GlobTooLong { text: pattern.chars().take(64).collect() });
        }
        let mut tokens: Vec<Token> = Vec::new();
        let mut bytes = pattern.bytes().peekable();
        while let Some(byte) = bytes.next() {
            let token = match byte {
                b'*' if tokens.last() == Some(&Token::AnyBytes) => continue,
                b'*' => Token::AnyBytes,
                b'?' => Token::AnyByte,
                b'[' => set(&mut bytes),
                byte => {
                    let byte = if byte == b'\\' { bytes.next().unwrap_or(b'\\') } else { byte };
                    if let Some(Token::Text(text)) = tokens.last_mut() {
                        text.push(byte);
                        continue;
                    }
                    Token::Text(vec![byte])
                }
            };
            tokens.push(token);
        }
        Ok(Self { tokens })
    }

    /// Every key that begins with these bytes.
    pub fn prefix(prefix: &str) -> Self {
        Self { tokens: vec![Token::Text(prefix.as_bytes().to_vec()), Token::AnyBytes] }
    }

    pub fn matches(&self, key: &[u8]) -> bool {
        let (mut token, mut rest) = (0, key);
        // Where to go on when what follows the last `*` does not match: token behind it, key from one byte further.
        let mut again: Option<(usize, &[u8])> = None;
        loop {
            let step = match self.tokens.get(token) {
                None if rest.is_empty() => return true,
                None => None,
                Some(Token::AnyBytes) => {
                    if token + 1 == self.tokens.len() {
                        return true;
                    }
                    again = Some((token + 1, rest));
                    Some(rest)
                }
                Some(Token::Text(text)) => rest.strip_prefix(text.as_slice()),
                Some(Token::AnyByte) => rest.get(1..),
                Some(Token::Set { negated, ranges }) => rest.split_first().and_then(|(byte, after)| {
                    let listed = ranges.iter().any(|(first, last)| (first..=last).contains(&byte));
                    (listed != *negated).then_some(after)
                }),
            };
            match (step, again) {
                (Some(after), _) => {
                    rest = after;
                    token += 1;
                }
                (None, Some((behind, from))) => {
                    let Some(next) = from.get(1..) else { return false };
                    again = Some((behind, next));
                    token = behind;
                    rest = next;
                }
                (None, None) => return false,
            }
        }
    }
}

/// The set behind a `[`; one without its end reaches to the end of the pattern.
fn set(bytes: &mut std::iter::Peekable<std::str::Bytes<'_>>) -> Token {
    let negated = bytes.next_if_eq(&b'^').is_some();
    let mut ranges = Vec::new();
    let plain = |byte: u8, bytes: &mut std::iter::Peekable<std::str::Bytes<'_>>| match byte {
        b'\\' => bytes.next().unwrap_or(b'\\'),
        byte => byte,
    };
    while let Some(byte) = bytes.next() {
        if byte == b']' {
            break;
        }
        let first = plain(byte, bytes);
        let last = match bytes.next_if_eq(&b'-') {
            None => first,
            Some(_) => match bytes.next() {
                // A minus at the end stands for itself.
                None | Some(b']') => {
                    ranges.push((first, first));
                    ranges.push((b'-', b'-'));
                    break;
                }
                Some(byte) => plain(byte, bytes),
            },
        };
        ranges.push((first.min(last), first.max(last)));
    }
    Token::Set { negated, ranges }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, key: &[u8]) -> bool {
        Glob::new(pattern).unwrap().matches(key)
    }

    #[test]
    fn patterns_match_as_in_redis() {
        for (pattern, key) in [
            ("", ""),
            ("*", ""),
            ("*", "anything"),
            ("user:*", "user:"),
            ("user:*:name", "user:1:2:name"),
            ("*a*b*", "xxaxxaxbx"),
            ("h?llo", "hello"),
            ("h[ae]llo", "hallo"),
            ("h[^e]llo", "hallo"),
            ("h[a-c]llo", "hbllo"),
            ("h[c-a]llo", "hbllo"),
            ("a\\*b", "a*b"),
            ("[a-]", "-"),
            ("[\\]]", "]"),
        ] {
            assert!(matches(pattern, key.as_bytes()), "{pattern} {key}");
        }
        for (pattern, key) in [
            ("", "a"),
            ("user:*", "use"),
            ("*a", "ab"),
            ("h?llo", "hllo"),
            ("h[^e]llo", "hello"),
            ("[", "a"),
            ("a\\*b", "axb"),
            ("*:name", "user:name2"),
        ] {
            assert!(!matches(pattern, key.as_bytes()), "{pattern} {key}");
        }
        assert!(matches("\\x?", b"x\xff") && Glob::prefix("a*").matches(b"a*b") && !Glob::prefix("a*").matches(b"ab"));
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let pattern = "a*".repeat(200);
        let mut key = vec![b'a'; 20_000];
        key.push(b'b');
        assert!(matches(&pattern, &key));
        assert!(!matches(&format!("{pattern}c"), &key));
    }
}
