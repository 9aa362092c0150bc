//! Keys and names in messages and reports: printable ASCII stays, everything else is `\xHH`. Lossless.

use std::fmt::Write;

/// Longest text made of a key in an error message, in source bytes.
const MESSAGE_BYTES_MAX: usize = 256;

/// The whole of `bytes`, printable. `\` and `"` are escaped, so that the text can stand between quotes.
pub fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'\\' => text.push_str("\\\\"),
            b'"' => text.push_str("\\\""),
            b' '..=b'~' => text.push(char::from(byte)),
            // Writing to a String cannot fail.
            _ => drop(write!(text, "\\x{byte:02x}")),
        }
    }
    text
}

/// As [`printable`], cut after 256 bytes.
pub fn for_message(bytes: &[u8]) -> String {
    match bytes.get(..MESSAGE_BYTES_MAX) {
        Some(head) if bytes.len() > MESSAGE_BYTES_MAX => format!("{}... ({} bytes)", printable(head), bytes.len()),
        _ => printable(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_and_lossless() {
        assert_eq!(printable(b"a \"b\"\\\n\xff"), "a \\\"b\\\"\\\\\\x0a\\xff");
        assert_eq!(for_message(&[b'k'; 300]).len(), 256 + "... (300 bytes)".len());
    }
}
