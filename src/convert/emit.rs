//! Single commands: the key they are about, their bytes, and the counting of both.
//!
//! What may be referenced where it lies (`Out::put`) must lie in the event being converted; everything else (keys, text
//! unpacked or made here, names out of a stream's tail) is copied in pieces. [`Command::text`] tells them apart by
//! address.

use super::escape;
use super::out::{Class, CommandMeta, Out, SPACE_MAX};
use super::plan::Plan;
use crate::dragonfly::{DecodeError, KeyMeta, Text};
use crate::ids::{DbIndex, Slot};
use crate::redis::resp::{HEAD_LEN_MAX, Writer, bulk_len_max};
use crate::redis::slot::slot;
use bytes::Bytes;

/// From this length on, bytes made here are handed over instead of being copied in pieces.
const OWNED_BYTES_MIN: usize = SPACE_MAX;

/// The key that commands are about, with what routes it.
#[derive(Clone, Copy)]
pub(super) struct Key<'a> {
    pub bytes: &'a [u8],
    pub db: DbIndex,
    pub slot: Slot,
}

impl<'a> Key<'a> {
    /// The slot is worked out only for a cluster; elsewhere it routes nothing.
    #[inline]
    pub fn of(meta: &KeyMeta<'a>, plan: &Plan) -> Self {
        let slot = if plan.capabilities.cluster { slot(meta.key) } else { Slot(0) };
        Self { bytes: meta.key, db: meta.db, slot }
    }

    #[inline]
    pub fn meta(&self, class: Class) -> CommandMeta {
        CommandMeta { slot: self.slot, db: self.db, class, all_nodes: false }
    }

    pub fn for_message(&self) -> Box<str> {
        escape::for_message(self.bytes).into()
    }
}

/// Counts bytes and commands on their way to the real [`Out`].
pub(super) struct Counting<'o, O> {
    out: &'o mut O,
    pub bytes: u64,
    pub commands: u64,
}

impl<'o, O: Out> Counting<'o, O> {
    #[inline]
    pub fn new(out: &'o mut O) -> Self {
        Self { out, bytes: 0, commands: 0 }
    }
}

impl<O: Out> Out for Counting<'_, O> {
    #[inline]
    fn begin(&mut self, meta: CommandMeta) {
        self.commands += 1;
        self.out.begin(meta);
    }

    #[inline]
    fn space(&mut self, len: usize) -> &mut [u8] {
        self.out.space(len)
    }

    #[inline]
    fn advance(&mut self, len: usize) {
        self.bytes += len as u64;
        self.out.advance(len);
    }

    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.out.put(bytes);
    }

    #[inline]
    fn put_owned(&mut self, bytes: Bytes) {
        self.bytes += bytes.len() as u64;
        self.out.put_owned(bytes);
    }

    #[inline]
    fn end(&mut self) {
        self.out.end();
    }

    #[inline]
    fn whole(&mut self, meta: CommandMeta, len: usize, fill: impl FnOnce(&mut [u8]) -> usize) {
        self.commands += 1;
        let bytes = &mut self.bytes;
        self.out.whole(meta, len, |place| {
            let written = fill(place);
            *bytes += written as u64;
            written
        });
    }
}

/// A command being written, of any size.
pub(super) struct Command<'o, O: Out> {
    out: &'o mut O,
}

impl<'o, O: Out> Command<'o, O> {
    /// Begins a command of `args` strings, of which `head` (RESP text of the name, as in `$3\r\nDEL\r\n`) is the first.
    pub fn begin(out: &'o mut O, meta: CommandMeta, args: usize, head: &[u8]) -> Self {
        out.begin(meta);
        let mut writer = Writer::new(out.space(HEAD_LEN_MAX + head.len()));
        writer.array_head(args);
        writer.put(head);
        let written = writer.written();
        out.advance(written);
        Self { out }
    }

    /// Goes on with a command that was begun at an earlier event.
    pub fn resume(out: &'o mut O) -> Self {
        Self { out }
    }

    /// Bytes that are RESP text already, copied.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        for piece in bytes.chunks(SPACE_MAX) {
            if let Some(place) = self.out.space(piece.len()).get_mut(..piece.len()) {
                place.copy_from_slice(piece);
            }
            self.out.advance(piece.len());
        }
        self
    }

    /// `$<len>\r\n`
    pub fn bulk_head(&mut self, len: usize) -> &mut Self {
        let mut writer = Writer::new(self.out.space(HEAD_LEN_MAX));
        writer.bulk_head(len);
        let written = writer.written();
        self.out.advance(written);
        self
    }

    /// A string, copied.
    pub fn bulk(&mut self, bytes: &[u8]) -> &mut Self {
        let room = bulk_len_max(bytes.len());
        if room > SPACE_MAX {
            return self.bulk_head(bytes.len()).raw(bytes).raw(b"\r\n");
        }
        let mut writer = Writer::new(self.out.space(room));
        writer.bulk(bytes);
        let written = writer.written();
        self.out.advance(written);
        self
    }

    /// The decimal text of a number as a string.
    pub fn integer(&mut self, number: i64) -> &mut Self {
        self.bulk(itoa::Buffer::new().format(number).as_bytes())
    }

    /// The decimal text of a number as a string.
    pub fn unsigned(&mut self, number: u64) -> &mut Self {
        self.bulk(itoa::Buffer::new().format(number).as_bytes())
    }

    /// Bytes that lie in the event, with no head of their own.
    pub fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.put(bytes);
        self
    }

    /// Bytes made here, with no head of their own: handed over if they are many, else copied.
    pub fn own(&mut self, bytes: &mut Vec<u8>) -> &mut Self {
        if bytes.len() < OWNED_BYTES_MIN {
            return self.raw(bytes);
        }
        self.out.put_owned(Bytes::from(std::mem::take(bytes)));
        self
    }

    /// A text in any form as a string. `event` is the body of the event at hand; `unpacked` is a buffer to reuse.
    pub fn text(&mut self, text: Text<'_>, event: &[u8], unpacked: &mut Vec<u8>) -> Result<&mut Self, DecodeError> {
        match text {
            Text::Raw(bytes) if bytes.len() < SPACE_MAX / 2 || !lies_in(bytes, event) => self.bulk(bytes),
            Text::Raw(bytes) => self.bulk_head(bytes.len()).put(bytes).raw(b"\r\n"),
            Text::Int(number) => self.integer(number),
            Text::Lzf { .. } => {
                unpacked.clear();
                text.append_to(unpacked)?;
                self.bulk_head(unpacked.len()).own(unpacked).raw(b"\r\n")
            }
        };
        Ok(self)
    }

    pub fn end(&mut self) {
        self.out.end();
    }
}

/// Whether `part` is a piece of `whole`'s memory (and not of some scratch buffer).
pub(super) fn lies_in(part: &[u8], whole: &[u8]) -> bool {
    let (part, whole) = (part.as_ptr_range(), whole.as_ptr_range());
    whole.start <= part.start && part.end <= whole.end
}

/// `DEL key`
pub(super) fn delete(out: &mut impl Out, key: &Key<'_>) {
    Command::begin(out, key.meta(Class::Blind), 2, b"$3\r\nDEL\r\n").bulk(key.bytes).end();
}

/// `PEXPIREAT key ms`, if the key expires at all.
pub(super) fn expire_at(out: &mut impl Out, key: &Key<'_>, expire_at_ms: Option<i64>) {
    if let Some(ms) = expire_at_ms {
        Command::begin(out, key.meta(Class::Blind), 3, b"$9\r\nPEXPIREAT\r\n").bulk(key.bytes).integer(ms).end();
    }
}
