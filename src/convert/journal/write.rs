//! Writing one RESP command into an [`Out`]. A private helper until `redis::resp` and `redis::slot` exist.

use crate::convert::out::{CommandMeta, Out, SPACE_MAX};
use crate::ids::Slot;

/// A string up to this long is copied together with its RESP header into one `space`; a longer one goes through `put`,
/// which borrows what is worth borrowing.
const COPY_BYTES_MAX: usize = 512;
/// `$`, 20 digits, and two line ends.
const BULK_OVERHEAD_BYTES_MAX: usize = 1 + 20 + 2 + 2;
const _: () = assert!(COPY_BYTES_MAX + BULK_OVERHEAD_BYTES_MAX <= SPACE_MAX);

/// A command being written: as many strings as were announced, then [`close`](Self::close).
pub(super) struct Request<'o, O: Out> {
    out: &'o mut O,
    strings_left: usize,
}

impl<'o, O: Out> Request<'o, O> {
    pub fn open(out: &'o mut O, meta: CommandMeta, strings: usize) -> Self {
        out.begin(meta);
        let mut request = Self { out, strings_left: strings };
        request.header(b'*', strings);
        request
    }

    /// A string that lies in the record.
    #[inline]
    pub fn text(&mut self, text: &[u8]) {
        if text.len() <= COPY_BYTES_MAX {
            self.copied(text);
        } else {
            self.strings_left = self.strings_left.wrapping_sub(1);
            self.header(b'$', text.len());
            self.out.put(text);
            self.raw(b"\r\n");
        }
    }

    pub fn texts(&mut self, texts: &[&[u8]]) {
        texts.iter().for_each(|text| self.text(text));
    }

    /// A short string of our own, copied.
    pub fn word(&mut self, word: &'static str) {
        if word.len() <= COPY_BYTES_MAX {
            self.copied(word.as_bytes());
        } else {
            self.strings_left = self.strings_left.wrapping_sub(1);
            self.header(b'$', word.len());
            word.as_bytes().chunks(COPY_BYTES_MAX).for_each(|piece| self.raw(piece));
            self.raw(b"\r\n");
        }
    }

    pub fn number(&mut self, number: i64) {
        let mut digits = itoa::Buffer::new();
        self.copied(digits.format(number).as_bytes());
    }

    /// One string made of pieces that lie in the record, and a short tail of our own.
    pub fn pieces(&mut self, pieces: &[&[u8]], tail: &[u8]) {
        self.strings_left = self.strings_left.wrapping_sub(1);
        self.header(b'$', pieces.iter().map(|piece| piece.len()).sum::<usize>() + tail.len());
        pieces.iter().for_each(|piece| self.out.put(piece));
        self.raw(tail);
        self.raw(b"\r\n");
    }

    pub fn close(self) {
        debug_assert_eq!(self.strings_left, 0, "announced and written strings differ");
        self.out.end();
    }

    #[inline]
    fn copied(&mut self, text: &[u8]) {
        self.strings_left = self.strings_left.wrapping_sub(1);
        let mut digits = itoa::Buffer::new();
        let length = digits.format(text.len()).as_bytes();
        let space = self.out.space(text.len() + BULK_OVERHEAD_BYTES_MAX);
        let mut at = 0;
        for piece in [b"$".as_slice(), length, b"\r\n", text, b"\r\n"] {
            if let Some(place) = space.get_mut(at..at + piece.len()) {
                place.copy_from_slice(piece);
            }
            at += piece.len();
        }
        self.out.advance(at);
    }

    fn header(&mut self, kind: u8, number: usize) {
        let mut digits = itoa::Buffer::new();
        let digits = digits.format(number).as_bytes();
        let space = self.out.space(BULK_OVERHEAD_BYTES_MAX);
        let mut at = 0;
        for piece in [&[kind][..], digits, b"\r\n"] {
            if let Some(place) = space.get_mut(at..at + piece.len()) {
                place.copy_from_slice(piece);
            }
            at += piece.len();
        }
        self.out.advance(at);
    }

    /// At most [`COPY_BYTES_MAX`] bytes, as they are.
    fn raw(&mut self, bytes: &[u8]) {
        let space = self.out.space(bytes.len());
        if let Some(place) = space.get_mut(..bytes.len()) {
            place.copy_from_slice(bytes);
        }
        self.out.advance(bytes.len());
    }
}

/// Cluster slot of a key: CRC-16/XMODEM of its tag, modulo 16384.
pub(super) fn slot_of(key: &[u8]) -> Slot {
    let tag = key
        .iter()
        .position(|byte| *byte == b'{')
        .and_then(|open| key.get(open + 1..))
        .and_then(|rest| rest.iter().position(|byte| *byte == b'}').and_then(|close| rest.get(..close)))
        .filter(|tag| !tag.is_empty());
    Slot(crc16::State::<crc16::XMODEM>::calculate(tag.unwrap_or(key)) & 0x3fff)
}

#[cfg(test)]
mod tests {
    use super::slot_of;

    #[test]
    fn slots_are_those_of_cluster_keyslot() {
        assert_eq!(slot_of(b"foo").0, 12182);
        assert_eq!(slot_of(b"{foo}bar").0, 12182);
        assert_eq!(slot_of(b"x{foo}{bar}").0, 12182);
        assert_ne!(slot_of(b"{}foo"), slot_of(b"foo"));
        assert_eq!(slot_of(b"").0, 0);
    }
}
