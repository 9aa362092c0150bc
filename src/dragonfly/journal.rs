//! Journal records (wire 4): inside journal blobs of the full sync, and bare in stable sync.
//!
//! In: the unconsumed bytes of a flow after EOF and token (in any pieces), or one complete journal blob. Out: one
//! [`JournalEvent`] at a time, its strings borrowed and already checked. A SELECT prefix is consumed with the record behind
//! it, so a record cut by the end of the input changes nothing. Which events count as an LSN is said by
//! [`JournalEvent::counts`]; [`LsnCounter`] keeps the count of what was read and checks LSN markers against it.

use super::DecodeError;
use super::error::{Limit, Reason};
use super::wire::{Read, Reader, Stop};
use crate::ids::{DbIndex, FlowId, Lsn};

#[derive(Debug)]
pub enum JournalEvent<'a> {
    /// COMMAND, EXPIRED or MULTI_COMMAND: counts as one LSN.
    Command(Command<'a>),
    /// Counts; must be acknowledged at once.
    Ping,
    /// EXEC of old masters: counts, nothing to do.
    Exec,
    /// LSN marker: LSN of the record before it. Does not count.
    Marker(Lsn),
}

impl JournalEvent<'_> {
    /// Whether the event takes an LSN (wire 4.6).
    pub fn counts(&self) -> bool {
        !matches!(self, JournalEvent::Marker(_))
    }
}

/// One recorded command.
#[derive(Clone, Copy, Debug)]
pub struct Command<'a> {
    pub db: DbIndex,
    pub txid: u64,
    /// Number of strings, command name included; at least 1.
    pub args_count: usize,
    /// The strings' bytes (packed length + bytes each), already checked to be exactly `args_count` strings.
    raw: &'a [u8],
}

impl<'a> Command<'a> {
    /// The strings, command name first.
    pub fn args(&self) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a> {
        Args { reader: Reader::of_complete(self.raw) }
    }

    /// The command name as recorded.
    pub fn name(&self) -> &'a [u8] {
        self.args().next().unwrap_or_default()
    }
}

/// Walks over strings that were checked before.
#[derive(Clone)]
struct Args<'a> {
    reader: Reader<'a>,
}

impl<'a> Iterator for Args<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        let len = self.reader.packed().ok()?;
        self.reader.take(len).ok()
    }
}

#[derive(Debug)]
pub enum JournalProgress<'a> {
    Event { event: JournalEvent<'a>, consumed: usize },
    NeedMore { at_least: usize },
}

/// State of one flow's journal: the selected db.
#[derive(Debug, Clone)]
pub struct JournalDecoder {
    flow: FlowId,
    atom_bytes_max: usize,
    db: DbIndex,
    /// Bytes of the flow consumed before the front of the next input.
    offset: u64,
}

impl JournalDecoder {
    /// `atom_bytes_max`: the longest record.
    pub fn new(flow: FlowId, atom_bytes_max: usize) -> Self {
        Self { flow, atom_bytes_max, db: DbIndex(0), offset: 0 }
    }

    /// Says where in the flow the journal begins, so that errors name offsets of the flow.
    pub fn starting_at(mut self, offset: u64) -> Self {
        self.offset = offset;
        self
    }

    /// Offset in the flow of the next byte to be consumed.
    pub fn offset_bytes(&self) -> u64 {
        self.offset
    }

    /// The next record at the front of `input` (SELECT prefixes are consumed with the record they stand before).
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Result<JournalProgress<'a>, DecodeError> {
        let mut reader = Reader::of_complete(input);
        let (mut db, limit) = (self.db, self.atom_bytes_max);
        match read_record(&mut reader, &mut db, limit) {
            Ok(event) => {
                self.db = db;
                self.offset += reader.pos() as u64;
                Ok(JournalProgress::Event { event, consumed: reader.pos() })
            }
            Err(Stop::More(at_least)) => Ok(JournalProgress::NeedMore { at_least }),
            Err(Stop::Wrong(reason)) => Err(DecodeError { flow: self.flow, offset: self.offset, reason: *reason }),
        }
    }

    /// All records of one journal blob, which must be complete. The db state of a blob starts at 0.
    ///
    /// Offsets of errors count from the front of the blob.
    pub fn decode_blob<'a>(
        &mut self,
        blob: &'a [u8],
        mut visit: impl FnMut(JournalEvent<'a>) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError> {
        let wrong = |offset: usize, reason| DecodeError { flow: self.flow, offset: offset as u64, reason };
        let mut db = DbIndex(0);
        let mut rest = blob;
        if blob.is_empty() {
            return Err(wrong(0, Reason::JournalBlobEmpty));
        }
        while !rest.is_empty() {
            let at = blob.len() - rest.len();
            let mut reader = Reader::of_complete(rest);
            match read_record(&mut reader, &mut db, self.atom_bytes_max) {
                Ok(event) => visit(event)?,
                Err(Stop::More(at_least)) => {
                    let missing = at_least.saturating_sub(rest.len()) as u64;
                    return Err(wrong(at, Reason::JournalBlobTruncated { missing }));
                }
                Err(Stop::Wrong(reason)) => return Err(wrong(at, *reason)),
            }
            rest = rest.get(reader.pos()..).unwrap_or_default();
        }
        Ok(())
    }
}

/// LSN of the next record of one flow, counted over records *read* (wire 4.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LsnCounter {
    next: Lsn,
}

impl LsnCounter {
    /// `next` comes from JOURNAL_OFFSET, or from the LSN that was sent in FLOW.
    pub fn new(next: Lsn) -> Self {
        Self { next }
    }

    /// LSN of the next record.
    pub fn next(&self) -> Lsn {
        self.next
    }

    /// Takes the event into the count. A marker that does not name the record before it is an error: the flow has lost or
    /// doubled something.
    pub fn observe(&mut self, event: &JournalEvent<'_>) -> Result<(), Reason> {
        let overflow = Reason::LengthOverflow;
        match event {
            JournalEvent::Marker(marker) => {
                let expected = self.next.0.checked_sub(1).ok_or(overflow)?;
                match marker.0 == expected {
                    true => Ok(()),
                    false => Err(Reason::MarkerMismatch { marker: marker.0, expected }),
                }
            }
            _ => {
                self.next = Lsn(self.next.0.checked_add(1).ok_or(overflow)?);
                Ok(())
            }
        }
    }
}

/// Opcodes of wire 4.1.
mod opcode {
    pub const NOOP: u8 = 0;
    pub const SELECT: u8 = 6;
    pub const EXPIRED: u8 = 9;
    pub const COMMAND: u8 = 10;
    pub const MULTI_COMMAND: u8 = 11;
    pub const EXEC: u8 = 12;
    pub const PING: u8 = 13;
    pub const FIN: u8 = 14;
    pub const LSN: u8 = 15;
    /// Not one of them: the `-` of an error reply.
    pub const ERROR_LINE: u8 = b'-';
}

/// So much of an error reply is read.
const ERROR_LINE_BYTES_MAX: usize = 200;

/// One record with the SELECTs before it; nothing beyond `bytes_max` bytes is waited for.
fn read_record<'a>(reader: &mut Reader<'a>, db: &mut DbIndex, bytes_max: usize) -> Read<JournalEvent<'a>> {
    let passed = |announced: usize| -> Stop {
        Reason::LimitPassed { what: Limit::AtomBytes, announced: announced as u64, limit: bytes_max as u64 }.into()
    };
    match read_record_unbounded(reader, db) {
        Ok(_) if reader.pos() > bytes_max => Err(passed(reader.pos())),
        Err(Stop::More(at_least)) if at_least > bytes_max => Err(passed(at_least)),
        result => result,
    }
}

fn read_record_unbounded<'a>(reader: &mut Reader<'a>, db: &mut DbIndex) -> Read<JournalEvent<'a>> {
    loop {
        let value = reader.packed()?;
        let opcode = u8::try_from(value).map_err(|_| Reason::UnknownJournalOpcode { opcode: value })?;
        match opcode {
            opcode::SELECT => {
                let value = reader.packed()?;
                let index = u16::try_from(value).map_err(|_| out_of_range("database index", value))?;
                *db = DbIndex(u32::from(index));
            }
            opcode::COMMAND | opcode::EXPIRED | opcode::MULTI_COMMAND => {
                let txid = transaction(reader)?;
                return read_command(reader, *db, txid).map(JournalEvent::Command);
            }
            opcode::EXEC => {
                transaction(reader)?;
                return Ok(JournalEvent::Exec);
            }
            opcode::PING => return Ok(JournalEvent::Ping),
            opcode::LSN => return Ok(JournalEvent::Marker(Lsn(reader.packed()?))),
            opcode::NOOP | opcode::FIN => return Err(Reason::ForbiddenJournalOpcode { opcode }.into()),
            opcode::ERROR_LINE => return Err(error_line(reader)?.into()),
            _ => return Err(Reason::UnknownJournalOpcode { opcode: value }.into()),
        }
    }
}

/// An error reply in the middle of the journal: all that a master ever writes there as text, to an ACK that it does not take
/// (wire 1.9).
fn error_line(reader: &mut Reader<'_>) -> Read<Reason> {
    let mut line = Vec::new();
    if !reader.peek()?.is_ascii_uppercase() {
        return Ok(Reason::UnknownJournalOpcode { opcode: u64::from(opcode::ERROR_LINE) });
    }
    while line.len() < ERROR_LINE_BYTES_MAX {
        match reader.u8()? {
            b'\r' | b'\n' => break,
            byte => line.push(byte),
        }
    }
    let shown = |c: char| if c.is_control() { '?' } else { c };
    Ok(Reason::SourceSaid { text: String::from_utf8_lossy(&line).chars().map(shown).collect() })
}

/// Transaction id; the number of shards behind it is of no use.
fn transaction(reader: &mut Reader<'_>) -> Read<u64> {
    let (txid, shard_count) = (reader.packed()?, reader.packed()?);
    match u32::try_from(shard_count) {
        Ok(_) => Ok(txid),
        Err(_) => Err(out_of_range("number of shards", shard_count).into()),
    }
}

/// Number of strings, their total length, the strings.
fn read_command<'a>(reader: &mut Reader<'a>, db: DbIndex, txid: u64) -> Read<Command<'a>> {
    let (count, announced) = (reader.packed()?, reader.packed()?);
    if count == 0 {
        return Err(Reason::EmptyCommand.into());
    }
    // Each string has at least one byte of length before it. Waiting for all of them at once spares looks at the front.
    let bytes_min = count.checked_add(announced).ok_or(Reason::LengthOverflow)?;
    let start = *reader;
    let mut ahead = start;
    ahead.take(bytes_min)?;
    let mut found = 0u64;
    for _ in 0..count {
        let len = reader.packed()?;
        found = found.saturating_add(len);
        if found > announced {
            return Err(Reason::CommandLength { announced, found }.into());
        }
        reader.take(len)?;
    }
    if found != announced {
        return Err(Reason::CommandLength { announced, found }.into());
    }
    let mut strings = start;
    let raw = strings.take((reader.pos() - start.pos()) as u64)?;
    let args_count = usize::try_from(count).map_err(|_| Reason::LengthOverflow)?;
    Ok(Command { db, txid, args_count, raw })
}

fn out_of_range(what: &'static str, value: u64) -> Reason {
    Reason::JournalRange { what, value }
}

#[cfg(test)]
mod tests;
