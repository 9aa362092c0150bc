//! Replies that no honest target sends.

use df2redis::lab::script::Hostile;

/// What comes in place of a reply, and what is said of it.
pub fn malformed() -> Vec<(&'static str, Hostile, &'static str)> {
    vec![
        ("a line without an end", Hostile::Endless(b"+".to_vec(), b"x".to_vec()), "a reply line is longer than"),
        ("a negative length", Hostile::Instead(b"$-2\r\n".to_vec()), "announces a length that is no number"),
        ("a length of 2^63", Hostile::Instead(b"$9223372036854775808\r\n".to_vec()), "announces a length"),
        ("an array of 2^31", Hostile::Instead(b"*2147483648\r\n".to_vec()), "announces a length"),
        ("10,000 arrays in each other", Hostile::Instead(b"*1\r\n".repeat(10_000)), "nested deeper than"),
        ("a push of RESP3", Hostile::Instead(b">2\r\n$10\r\ninvalidate\r\n*0\r\n".to_vec()), "which is no RESP2 type"),
        ("a map of RESP3", Hostile::Instead(b"%1\r\n+a\r\n:1\r\n".to_vec()), "which is no RESP2 type"),
        ("a number that is none", Hostile::Instead(b":1x\r\n".to_vec()), "an integer reply is not a number"),
        ("a line with a bare LF", Hostile::Instead(b"+OK\n".to_vec()), "does not end with CR LF"),
        ("a long text without its end", Hostile::Instead(b"$3\r\nabcde\r\n".to_vec()), "is not followed by CR LF"),
        ("no RESP at all", Hostile::Instead(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()), "which is no RESP2 type"),
    ]
}
