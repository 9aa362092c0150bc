//! One flow's full-sync stream (wire 2): contiguous bytes in, one event at a time out.
//!
//! In: all bytes of the flow not consumed yet, in any pieces, and between `enter_blob` and `leave_blob` the content of the
//! compressed blob just reported. Out: events that borrow those bytes. [`StreamDecoder::next`] changes nothing unless it
//! returns an event, so a short input costs only the second look. What must hold:
//!
//! - the same bytes give the same objects, however they are cut into calls (only the borders of `Run`s differ);
//! - an announced length or count is checked against the limits before anybody is asked for its bytes;
//! - the end of the snapshot is EOF and nothing else; it is refused while anything is unfinished.
//!
//! Not here: decompression ([`super::blob`]), the elements inside values ([`super::value`]), journal records
//! ([`super::journal`]).

use super::error::{DecodeError, Reason};
use super::event::{Event, KeyMeta, ObjectId, ObjectType};
use super::layout::Left;
use super::record::{Found, find_value, opcode, plain_string, read_head};
use super::wire::{Read, Stop};
use crate::ids::{DbIndex, FlowId};

mod chunks;
mod opcodes;

/// What the decoder refuses to go beyond, each named in the error it causes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Objects whose record is longer than this are streamed as Begin / Run / End (where their type can be cut).
    pub whole_bytes_max: usize,
    /// A `Run` of elements holds at most this many bytes, unless one element alone is longer.
    pub run_bytes_max: usize,
    /// The longest string, blob, element or uncuttable value that must be contiguous.
    pub atom_bytes_max: usize,
    /// Longest key.
    pub key_bytes_max: usize,
    /// Tagged objects open at once on one flow.
    pub open_objects_max: usize,
}

impl Limits {
    /// `NeedMore` never asks for more than this, so a buffer of this size is always enough.
    pub fn contiguous_bytes_max(&self) -> usize {
        let record = self.key_bytes_max.saturating_add(self.atom_bytes_max).saturating_add(128);
        record.max(self.whole_bytes_max)
    }
}

/// Outcome of one call of `next`.
#[derive(Debug, PartialEq)]
pub enum Progress<'a> {
    /// An event and how many bytes of the input it consumed (may be 0 for `End`).
    Event { event: Event<'a>, consumed: usize },
    /// Nothing can be said before the input (counted from its first byte) is at least this long.
    NeedMore { at_least: usize },
}

/// `REDIS0009`.
const HEADER_BYTES: usize = 9;
/// Named by [`Event::Begin`] for an object split by us and not by tags; tagged ids are never 0.
const UNTAGGED: u32 = 0;

/// The decoder of one flow. See the module.
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    flow: FlowId,
    limits: Limits,
    /// Bytes of the outer stream consumed.
    offset: u64,
    stage: StreamStage,
    blob: Blob,
    db: DbIndex,
    full_sync_end_seen: bool,
    journal_offset_seen: bool,
    current: Current,
    /// Tagged objects begun and not ended.
    open: Vec<Split>,
    /// Plain text of a key or journal blob that came in an integer or LZF form.
    scratch: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StreamStage {
    Header,
    Body,
    Ended,
}

/// Whether compressed content is being read; the number is the offset of the blob's opcode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blob {
    Outside,
    Reported(u64),
    Inside(u64),
}

/// What the next byte belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Current {
    Records,
    Untagged(Left),
    /// Inside a tagged chunk; `left` bytes of its payload are to come.
    Chunk {
        id: u32,
        left: u64,
    },
    /// Elements of something that is read over.
    Skipping {
        opcode: u8,
        left: Left,
    },
}

/// A tagged object begun and not ended.
#[derive(Debug, Clone, Copy)]
struct Split {
    id: u32,
    left: Left,
}

impl StreamDecoder {
    pub fn new(flow: FlowId, limits: Limits) -> Self {
        Self {
            flow,
            limits,
            offset: 0,
            stage: StreamStage::Header,
            blob: Blob::Outside,
            db: DbIndex(0),
            full_sync_end_seen: false,
            journal_offset_seen: false,
            current: Current::Records,
            open: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// Decodes the next event at the front of `input`, which holds all unconsumed bytes. After `Event`, the caller drops
    /// `consumed` bytes and calls again, also with an empty input, until `NeedMore`. Errors name flow, offset and reason,
    /// and are final.
    #[inline]
    pub fn next<'a>(&'a mut self, input: &'a [u8]) -> Result<Progress<'a>, DecodeError> {
        // Most keys are short plain strings: this says of them what `next_any` would, without its detours.
        if self.current == Current::Records
            && self.stage == StreamStage::Body
            && !self.journal_offset_seen
            && let Some((key, body, consumed)) = plain_string(input, &self.limits)
        {
            self.consume(consumed);
            let meta = KeyMeta {
                db: self.db,
                key,
                expire_at_ms: None,
                sticky: false,
                memcached_flags: None,
                object_type: ObjectType::String,
            };
            return Ok(Progress::Event { event: Event::Whole { meta, body }, consumed });
        }
        self.next_any(input)
    }

    fn next_any<'a>(&'a mut self, input: &'a [u8]) -> Result<Progress<'a>, DecodeError> {
        // The header and SELECTDB have no events of their own: they are consumed with the event behind them.
        let header = match self.stage {
            StreamStage::Header => match self.check_header(input)? {
                Some(len) => len,
                None => return Ok(Progress::NeedMore { at_least: HEADER_BYTES }),
            },
            _ => 0,
        };
        let selected = match input.get(header) {
            Some(&opcode::SELECTDB) => self.select_dbs(input.get(header..).unwrap_or_default())?,
            _ => 0,
        };
        let front = header + selected;
        let (flow, offset) = (self.flow, self.place());
        match self.step(input.get(front..).unwrap_or_default()) {
            Ok((event, consumed)) => Ok(Progress::Event { event, consumed: consumed + front }),
            Err(Stop::More(at_least)) if selected == 0 => Ok(Progress::NeedMore { at_least: at_least + header }),
            // A SELECTDB with nothing behind it yet must not wait: it may be the last record of a blob.
            Err(Stop::More(_)) => {
                Ok(Progress::Event { event: Event::Skipped { opcode: opcode::SELECTDB }, consumed: front })
            }
            Err(Stop::Wrong(reason)) => Err(DecodeError { flow, offset, reason: *reason }),
        }
    }

    /// Bytes of a raw string of which `Begin` was given and that still have to come as `Run`s; 0 outside of one. The
    /// caller may then wait for more input before calling, to get longer pieces.
    pub fn raw_bytes_left(&self) -> u64 {
        let left = match &self.current {
            Current::Untagged(left) => left,
            Current::Chunk { id, .. } => match self.open.iter().find(|split| split.id == *id) {
                Some(split) => &split.left,
                None => return 0,
            },
            Current::Records | Current::Skipping { .. } => return 0,
        };
        match left {
            Left::Bytes(bytes) => *bytes,
            _ => 0,
        }
    }

    /// From now on `next` gets the decompressed content of the blob just reported, in any pieces.
    pub fn enter_blob(&mut self) -> Result<(), DecodeError> {
        match self.blob {
            Blob::Reported(at) => {
                self.blob = Blob::Inside(at);
                Ok(())
            }
            _ => Err(self.wrong(Reason::BlobOutOfPlace)),
        }
    }

    /// The content has been given whole; `left_over` is what `next` has not consumed of it (must be empty).
    pub fn leave_blob(&mut self, left_over: &[u8]) -> Result<(), DecodeError> {
        if !matches!(self.blob, Blob::Inside(_)) {
            return Err(self.wrong(Reason::BlobOutOfPlace));
        }
        if !left_over.is_empty() {
            return Err(self.wrong(Reason::CutByBlobEnd { left_over: left_over.len() }));
        }
        // An `End` not fetched yet may still come: it needs no bytes.
        let complete = match self.current {
            Current::Records | Current::Untagged(Left::Done) => true,
            Current::Chunk { left, .. } => left == 0,
            Current::Untagged(_) | Current::Skipping { .. } => false,
        };
        if !complete {
            return Err(self.wrong(Reason::ObjectCutByBlobEnd));
        }
        self.blob = Blob::Outside;
        Ok(())
    }

    /// The source closed the connection: always an error (truncated stream) unless `Eof` was reported.
    pub fn closed(&self, left_over: &[u8]) -> DecodeError {
        let idle = self.current == Current::Records && self.open.is_empty() && left_over.is_empty();
        if self.stage == StreamStage::Ended {
            return self.wrong(Reason::AfterEof);
        }
        if idle && self.stage == StreamStage::Body {
            return self.wrong(Reason::ClosedBeforeEof);
        }
        let mut probe = self.clone();
        let missing = match probe.next(left_over) {
            Ok(Progress::NeedMore { at_least }) => at_least.saturating_sub(left_over.len()).max(1) as u64,
            Ok(Progress::Event { .. }) => 1,
            Err(error) => return error,
        };
        self.wrong(Reason::Truncated { missing: missing.max(self.raw_bytes_left()) })
    }

    /// Offset in the outer stream of the next byte to be consumed.
    pub fn offset_bytes(&self) -> u64 {
        self.offset
    }

    /// Database of the next untagged key (SELECTDB).
    pub fn db(&self) -> DbIndex {
        self.db
    }

    /// Whether FULLSYNC_END has been reported.
    pub fn full_sync_end_seen(&self) -> bool {
        self.full_sync_end_seen
    }

    /// Whether EOF has been reported: `offset_bytes` is then where the journal begins.
    pub fn is_ended(&self) -> bool {
        self.stage == StreamStage::Ended
    }

    /// Offset for errors: of the blob, inside one.
    #[inline]
    fn place(&self) -> u64 {
        match self.blob {
            Blob::Inside(at) => at,
            _ => self.offset,
        }
    }

    fn wrong(&self, reason: Reason) -> DecodeError {
        DecodeError { flow: self.flow, offset: self.place(), reason }
    }

    #[inline]
    fn consume(&mut self, bytes: usize) {
        if self.stage == StreamStage::Header {
            self.stage = StreamStage::Body;
            self.offset += HEADER_BYTES as u64;
        }
        match self.blob {
            Blob::Inside(_) => {}
            _ => {
                self.offset += bytes as u64;
                self.blob = Blob::Outside;
            }
        }
    }

    /// One event at the front of `input` and its length. Nothing has changed if it is an `Err`.
    #[inline]
    fn step<'a>(&'a mut self, input: &'a [u8]) -> Read<(Event<'a>, usize)> {
        match self.current {
            Current::Records => self.record(input),
            Current::Untagged(left) => self.untagged(left, input),
            Current::Chunk { id, left } => self.chunk_payload(id, left, input, 0),
            Current::Skipping { opcode, left } => self.skip_on(opcode, left, input),
        }
    }

    #[inline]
    fn record<'a>(&'a mut self, input: &'a [u8]) -> Read<(Event<'a>, usize)> {
        let Some(&first) = input.first() else {
            return Err(Stop::More(1));
        };
        if self.stage == StreamStage::Ended {
            return Err(Reason::AfterEof.into());
        }
        if self.journal_offset_seen && first != opcode::EOF && first != opcode::SELECTDB {
            return Err(match first {
                opcode::JOURNAL_OFFSET => Reason::SecondJournalOffset.into(),
                byte => Reason::AfterJournalOffset { byte }.into(),
            });
        }
        match first {
            opcode::TAGGED_CHUNK => self.chunk(input),
            0..=37 | opcode::EXPIRETIME_MS | opcode::DF_MASK | opcode::IDLE | opcode::FREQ => self.key(input),
            _ => self.opcode(first, input),
        }
    }

    /// `[expire_ms] [df_mask] type key value` outside of a tagged chunk.
    #[inline]
    fn key<'a>(&'a mut self, input: &'a [u8]) -> Read<(Event<'a>, usize)> {
        let head = read_head(input, &self.limits, &mut self.scratch)?;
        let found = find_value(&head, input, &self.limits)?;
        self.consume(found.end);
        let meta = head.meta(self.db, &self.scratch);
        let event = match found.what {
            Found::Whole => Event::Whole { meta, body: input.get(head.value_at..found.end).unwrap_or_default() },
            Found::Begin { count, left } => {
                self.current = Current::Untagged(left);
                Event::Begin { object: ObjectId(UNTAGGED), meta, count }
            }
        };
        Ok((event, found.end))
    }

    /// The next run of an object that we split.
    fn untagged<'a>(&'a mut self, mut left: Left, input: &'a [u8]) -> Read<(Event<'a>, usize)> {
        let object = ObjectId(UNTAGGED);
        if left.is_done() {
            self.current = Current::Records;
            return Ok((Event::End { object }, 0));
        }
        let run = left.advance(input, &self.limits)?;
        self.current = Current::Untagged(left);
        self.consume(run.len);
        let body = input.get(..run.len).unwrap_or_default();
        Ok((Event::Run { object, stage: run.stage, count: run.count, body }, run.len))
    }
}

#[cfg(test)]
mod proptests;
#[cfg(test)]
mod tests;
