//! Writing RESP requests: into a slice that the caller has sized ([`Writer`]), or at the end of a `Vec`.
//!
//! The slice writer is the hot path: a `SET` of a short string is a few straight copies. It never panics: a write that
//! does not fit is left out and remembered ([`Writer::overflowed`]), which can only be a mistake of ours, because every
//! caller sizes its room with [`bulk_len_max`] and the lengths of its literals.

/// Most bytes of the decimal text of any `u64` or `i64`.
pub const DECIMAL_LEN_MAX: usize = 20;
/// Most bytes of `*<n>\r\n` or `$<n>\r\n`.
pub const HEAD_LEN_MAX: usize = 1 + DECIMAL_LEN_MAX + 2;

/// Most bytes that a bulk string of `len` bytes takes, head and end included.
pub const fn bulk_len_max(len: usize) -> usize {
    HEAD_LEN_MAX + len + 2
}

/// Writes to the front of a slice.
pub struct Writer<'a> {
    room: &'a mut [u8],
    at: usize,
    overflowed: bool,
}

impl<'a> Writer<'a> {
    pub fn new(room: &'a mut [u8]) -> Self {
        Self { room, at: 0, overflowed: false }
    }

    /// Number of bytes written.
    pub fn written(&self) -> usize {
        debug_assert!(!self.overflowed, "the room was sized too small");
        self.at
    }

    /// Whether a write was left out because it did not fit.
    pub fn overflowed(&self) -> bool {
        self.overflowed
    }

    /// Bytes as they are.
    #[inline]
    pub fn put(&mut self, bytes: &[u8]) {
        match self.room.get_mut(self.at..).and_then(|rest| rest.get_mut(..bytes.len())) {
            Some(place) => {
                place.copy_from_slice(bytes);
                self.at += bytes.len();
            }
            None => self.overflowed = true,
        }
    }

    /// `mark`, a decimal number, CR LF.
    #[inline]
    fn head(&mut self, mark: u8, number: usize) {
        // Lengths below 100 are the rule; they are written without a detour.
        match number {
            0..10 => self.put(&[mark, b'0' + number as u8, b'\r', b'\n']),
            10..100 => self.put(&[mark, b'0' + (number / 10) as u8, b'0' + (number % 10) as u8, b'\r', b'\n']),
            _ => {
                let mut digits = itoa::Buffer::new();
                self.put(&[mark]);
                self.put(digits.format(number).as_bytes());
                self.put(b"\r\n");
            }
        }
    }

    /// `*<elements>\r\n`
    #[inline]
    pub fn array_head(&mut self, elements: usize) {
        self.head(b'*', elements);
    }

    /// `$<len>\r\n`
    #[inline]
    pub fn bulk_head(&mut self, len: usize) {
        self.head(b'$', len);
    }

    /// `$<len>\r\n<bytes>\r\n`
    #[inline]
    pub fn bulk(&mut self, bytes: &[u8]) {
        self.bulk_head(bytes.len());
        self.put(bytes);
        self.put(b"\r\n");
    }

    /// The decimal text of a number as a bulk string.
    #[inline]
    pub fn bulk_integer(&mut self, number: i64) {
        let mut digits = itoa::Buffer::new();
        self.bulk(digits.format(number).as_bytes());
    }
}

/// Appends `*<elements>\r\n`.
pub fn push_array_head(out: &mut Vec<u8>, elements: usize) {
    push_head(out, b'*', elements);
}

/// Appends `$<len>\r\n`.
pub fn push_bulk_head(out: &mut Vec<u8>, len: usize) {
    push_head(out, b'$', len);
}

/// Appends `$<len>\r\n<bytes>\r\n`.
pub fn push_bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    push_bulk_head(out, bytes.len());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// Appends the decimal text of a number as a bulk string.
pub fn push_bulk_integer(out: &mut Vec<u8>, number: i64) {
    push_bulk(out, itoa::Buffer::new().format(number).as_bytes());
}

/// Appends a whole request.
pub fn push_command(out: &mut Vec<u8>, args: &[&[u8]]) {
    push_array_head(out, args.len());
    for arg in args {
        push_bulk(out, arg);
    }
}

/// A whole request as a new `Vec`, for control connections.
pub fn command(args: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    push_command(&mut out, args);
    out
}

fn push_head(out: &mut Vec<u8>, mark: u8, number: usize) {
    out.push(mark);
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_an_array_of_bulks() {
        assert_eq!(command(&[b"SET", b"", b"v"]), b"*3\r\n$3\r\nSET\r\n$0\r\n\r\n$1\r\nv\r\n");
    }

    #[test]
    fn the_slice_writer_writes_what_the_vec_writer_writes() {
        for len in [0usize, 1, 9, 10, 11, 99, 100, 101, 999, 1000, 12345] {
            let bytes = vec![b'x'; len];
            let mut expected = Vec::new();
            push_array_head(&mut expected, len);
            push_bulk(&mut expected, &bytes);
            push_bulk_integer(&mut expected, -(len as i64));
            let mut room = vec![0; HEAD_LEN_MAX + 2 * bulk_len_max(len) + 64];
            let mut writer = Writer::new(&mut room);
            writer.array_head(len);
            writer.bulk(&bytes);
            writer.bulk_integer(-(len as i64));
            let written = writer.written();
            assert_eq!(room[..written], expected[..]);
        }
    }

    #[test]
    fn a_write_that_does_not_fit_is_left_out() {
        let mut room = [0; 4];
        let mut writer = Writer::new(&mut room);
        writer.put(b"abc");
        writer.put(b"de");
        assert!(writer.overflowed());
    }

    #[test]
    fn the_longest_numbers_fit() {
        let mut room = [0; 64];
        let mut writer = Writer::new(&mut room);
        writer.bulk_head(usize::MAX);
        assert_eq!(writer.written(), HEAD_LEN_MAX);
        assert_eq!(i64::MIN.to_string().len(), DECIMAL_LEN_MAX);
    }
}
