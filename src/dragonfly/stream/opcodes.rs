//! What is no key: the header, opcodes with a meaning of their own, and what is read over.
//!
//! In: bytes that begin with the header or an opcode. Out: their event. Invariants: FULLSYNC_END, JOURNAL_OFFSET and EOF come
//! once, in this order, and EOF only where nothing is unfinished.

use super::{Blob, Current, HEADER_BYTES, StreamDecoder, StreamStage};
use crate::dragonfly::error::{DecodeError, Reason};
use crate::dragonfly::event::{Codec, Event};
use crate::dragonfly::layout::Left;
use crate::dragonfly::record::{opcode, read_over, resolve};
use crate::dragonfly::wire::{Read, Stop};
use crate::ids::{DbIndex, Lsn};

impl StreamDecoder {
    /// Length of the header, if all of it is there.
    #[cold]
    pub(super) fn check_header(&self, input: &[u8]) -> Result<Option<usize>, DecodeError> {
        let Some(found) = input.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let version = found.strip_prefix(b"REDIS00").map(|digits| match digits {
            [tens @ b'0'..=b'9', ones @ b'0'..=b'9'] => (tens - b'0') * 10 + (ones - b'0'),
            _ => 0,
        });
        match version {
            Some(5..=12) => Ok(Some(HEADER_BYTES)),
            _ => Err(self.wrong(Reason::BadHeader { found: *found })),
        }
    }

    /// Consumes the SELECTDBs at the front, if records are expected there. Returns their length.
    pub(super) fn select_dbs(&mut self, input: &[u8]) -> Result<usize, DecodeError> {
        if self.stage == StreamStage::Ended || self.current != Current::Records {
            return Ok(0);
        }
        let mut consumed = 0;
        loop {
            let mut reader = self.limits.reader(input.get(consumed..).unwrap_or_default());
            if reader.peek() != Ok(opcode::SELECTDB) {
                return Ok(consumed);
            }
            match reader.u8().and_then(|_| reader.packed()) {
                Ok(index) => match u16::try_from(index) {
                    Ok(index) => self.db = DbIndex(u32::from(index)),
                    Err(_) => return Err(self.wrong(Reason::DbIndexTooLarge { index })),
                },
                Err(Stop::More(_)) => return Ok(consumed),
                Err(Stop::Wrong(reason)) => return Err(self.wrong(*reason)),
            }
            consumed += reader.pos();
            self.consume(reader.pos());
        }
    }

    /// Everything that begins with an opcode of its own.
    pub(super) fn opcode<'a>(&'a mut self, first: u8, input: &'a [u8]) -> Read<(Event<'a>, usize)> {
        let mut reader = self.limits.reader(input);
        reader.u8()?;
        let in_blob = matches!(self.blob, Blob::Inside(_));
        match first {
            opcode::AUX => {
                let (name, value) = self.limits.atom(&mut reader, |reader| Ok((reader.string()?, reader.string()?)))?;
                self.consume(reader.pos());
                Ok((Event::Aux { name, value }, reader.pos()))
            }
            opcode::ZSTD_BLOB | opcode::LZ4_BLOB => {
                if in_blob {
                    return Err(Reason::NestedBlob.into());
                }
                let frame = reader.raw_string("compressed blob")?;
                let at = self.offset;
                self.consume(reader.pos());
                self.blob = Blob::Reported(at);
                let codec = if first == opcode::ZSTD_BLOB { Codec::Zstd } else { Codec::Lz4 };
                Ok((Event::Compressed { codec, frame }, reader.pos()))
            }
            opcode::JOURNAL_BLOB => {
                match reader.packed()? {
                    1 => {}
                    count => return Err(Reason::JournalBlobCount { count }.into()),
                }
                let text = reader.string()?;
                let raw = resolve(text, &mut self.scratch)?;
                self.consume(reader.pos());
                Ok((Event::JournalBlob { record: raw.unwrap_or(&self.scratch) }, reader.pos()))
            }
            opcode::FULLSYNC_END => {
                reader.take(8)?;
                if self.full_sync_end_seen {
                    return Err(Reason::SecondFullSyncEnd.into());
                }
                self.full_sync_end_seen = true;
                self.consume(reader.pos());
                Ok((Event::FullSyncEnd, reader.pos()))
            }
            opcode::JOURNAL_OFFSET => {
                let lsn = Lsn(reader.u64_le()?);
                if !self.full_sync_end_seen {
                    return Err(Reason::EarlyJournalOffset.into());
                }
                self.journal_offset_seen = true;
                self.consume(reader.pos());
                Ok((Event::JournalOffset(lsn), reader.pos()))
            }
            opcode::EOF => {
                self.check_end(in_blob)?;
                reader.take(8)?;
                let token = reader.array()?;
                self.stage = StreamStage::Ended;
                self.consume(reader.pos());
                Ok((Event::Eof { token }, reader.pos()))
            }
            _ => {
                let left = self.limits.atom(&mut reader, |reader| read_over(first, reader))?;
                self.current =
                    if left.is_done() { Current::Records } else { Current::Skipping { opcode: first, left } };
                self.consume(reader.pos());
                Ok((Event::Skipped { opcode: first }, reader.pos()))
            }
        }
    }

    /// The rest of something that is read over.
    pub(super) fn skip_on<'a>(&'a mut self, opcode: u8, mut left: Left, input: &'a [u8]) -> Read<(Event<'a>, usize)> {
        let run = left.advance(input, &self.limits)?;
        self.current = if left.is_done() { Current::Records } else { Current::Skipping { opcode, left } };
        self.consume(run.len);
        Ok((Event::Skipped { opcode }, run.len))
    }

    fn check_end(&self, in_blob: bool) -> Read<()> {
        if in_blob {
            return Err(Reason::EofInBlob.into());
        }
        if let Some(first) = self.open.first() {
            return Err(Reason::EofWithOpenObjects { open: self.open.len(), first_id: first.id }.into());
        }
        if !self.full_sync_end_seen {
            return Err(Reason::EofWithoutFullSyncEnd.into());
        }
        match self.journal_offset_seen {
            true => Ok(()),
            false => Err(Reason::EofWithoutJournalOffset.into()),
        }
    }
}
