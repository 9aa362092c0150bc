//! Writing one RESP command into an [`Out`], string by string.

use crate::convert::out::{CommandMeta, Out, SPACE_MAX};
use crate::redis::resp::{HEAD_LEN_MAX, Writer, bulk_len_max};

/// A string up to this long is copied together with its RESP head into one `space`; a longer one goes through `put`,
/// which borrows what is worth borrowing.
const COPY_BYTES_MAX: usize = 512;
const _: () = assert!(HEAD_LEN_MAX + bulk_len_max(COPY_BYTES_MAX) <= SPACE_MAX);

/// A command being written: as many strings as were announced, then [`close`](Self::close).
pub(super) struct Request<'o, O: Out> {
    out: &'o mut O,
    strings_left: usize,
}

impl<'o, O: Out> Request<'o, O> {
    /// Begins a command of `strings` strings, the first of which is `name`.
    #[inline]
    pub fn open(out: &'o mut O, meta: CommandMeta, strings: usize, name: &'static str) -> Self {
        out.begin(meta);
        let mut request = Self { out, strings_left: strings.wrapping_sub(1) };
        request.write(HEAD_LEN_MAX + bulk_len_max(name.len()), |writer| {
            writer.array_head(strings);
            writer.bulk(name.as_bytes());
        });
        request
    }

    /// A string that lies in the record.
    #[inline]
    pub fn text(&mut self, text: &[u8]) {
        self.count_string();
        if text.len() <= COPY_BYTES_MAX {
            self.write(bulk_len_max(text.len()), |writer| writer.bulk(text));
        } else {
            self.write(HEAD_LEN_MAX, |writer| writer.bulk_head(text.len()));
            self.out.put(text);
            self.write(2, |writer| writer.put(b"\r\n"));
        }
    }

    pub fn texts(&mut self, texts: &[&[u8]]) {
        texts.iter().for_each(|text| self.text(text));
    }

    /// A string of our own, copied: a word or a script.
    pub fn word(&mut self, word: &'static str) {
        self.count_string();
        self.write(HEAD_LEN_MAX, |writer| writer.bulk_head(word.len()));
        word.as_bytes().chunks(COPY_BYTES_MAX).for_each(|piece| self.write(piece.len(), |writer| writer.put(piece)));
        self.write(2, |writer| writer.put(b"\r\n"));
    }

    pub fn number(&mut self, number: i64) {
        self.count_string();
        self.write(bulk_len_max(20), |writer| writer.bulk_integer(number));
    }

    /// One string made of a piece that lies in the record, and a short tail of our own.
    pub fn text_and_tail(&mut self, text: &[u8], tail: &[u8]) {
        self.count_string();
        self.write(HEAD_LEN_MAX, |writer| writer.bulk_head(text.len() + tail.len()));
        self.out.put(text);
        self.write(tail.len() + 2, |writer| {
            writer.put(tail);
            writer.put(b"\r\n");
        });
    }

    pub fn close(self) {
        debug_assert_eq!(self.strings_left, 0, "announced and written strings differ");
        self.out.end();
    }

    fn count_string(&mut self) {
        self.strings_left = self.strings_left.wrapping_sub(1);
    }

    /// `len_max` bytes at most, written in place.
    #[inline]
    fn write(&mut self, len_max: usize, write: impl FnOnce(&mut Writer<'_>)) {
        let mut writer = Writer::new(self.out.space(len_max));
        write(&mut writer);
        let written = writer.written();
        self.out.advance(written);
    }
}
