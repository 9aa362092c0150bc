//! Journal records (wire 4): inside journal blobs of the full sync, and bare in stable sync.
//!
//! Skeleton: signatures only.

use super::DecodeError;
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
        let _ = self.raw;
        std::iter::empty()
    }

    /// The command name as recorded.
    pub fn name(&self) -> &'a [u8] {
        todo!()
    }
}

#[derive(Debug)]
pub enum JournalProgress<'a> {
    Event { event: JournalEvent<'a>, consumed: usize },
    NeedMore { at_least: usize },
}

/// State of one flow's journal: the selected db.
pub struct JournalDecoder {
    _flow: FlowId,
}

impl JournalDecoder {
    /// `atom_bytes_max`: the longest record.
    pub fn new(flow: FlowId, _atom_bytes_max: usize) -> Self {
        Self { _flow: flow }
    }

    /// The next record at the front of `input` (SELECT prefixes are consumed with the record they stand before).
    pub fn next<'a>(&mut self, _input: &'a [u8]) -> Result<JournalProgress<'a>, DecodeError> {
        todo!()
    }

    /// All records of one journal blob, which must be complete. The db state of a blob starts at 0.
    pub fn decode_blob<'a>(
        &mut self,
        _blob: &'a [u8],
        _visit: impl FnMut(JournalEvent<'a>) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError> {
        todo!()
    }
}
