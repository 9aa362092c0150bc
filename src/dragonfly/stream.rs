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

use super::error::{DecodeError, Limit, Reason};
use super::event::{Codec, Event, KeyMeta, ObjectId, ObjectType};
use super::layout::Left;
use super::record::{Found, clip, find_chunk_value, find_value, opcode, plain_string, read_head, read_over, resolve};
use super::wire::{Read, Stop};
use crate::ids::{DbIndex, FlowId, Lsn};

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
/// Opcode, u32le stream id, u32le payload length.
const CHUNK_HEAD_BYTES: usize = 9;
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

    /// Length of the header, if all of it is there.
    #[cold]
    fn check_header(&self, input: &[u8]) -> Result<Option<usize>, DecodeError> {
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
    fn select_dbs(&mut self, input: &[u8]) -> Result<usize, DecodeError> {
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

    /// A tagged chunk, from its opcode on.
    fn chunk<'a>(&'a mut self, input: &'a [u8]) -> Read<(Event<'a>, usize)> {
        let mut reader = self.limits.reader(input);
        reader.u8()?;
        let (id, len) = (reader.u32_le()?, reader.u32_le()?);
        if id == 0 {
            return Err(Reason::ChunkIdZero.into());
        }
        if len == 0 {
            return Err(Reason::ChunkEmpty { id }.into());
        }
        let payload = input.get(CHUNK_HEAD_BYTES..).unwrap_or_default();
        if self.open.iter().any(|split| split.id == id) {
            return self.chunk_payload(id, u64::from(len), payload, CHUNK_HEAD_BYTES);
        }
        self.chunk_begin(id, u64::from(len), payload)
    }

    /// The first chunk of an object: attributes, type, key and the beginning of the value.
    fn chunk_begin<'a>(&'a mut self, id: u32, len: u64, payload: &'a [u8]) -> Read<(Event<'a>, usize)> {
        let view = clip(payload, len);
        let in_chunk = |stop| within_chunk(stop, id, len, CHUNK_HEAD_BYTES);
        let head = read_head(view, &self.limits, &mut self.scratch).map_err(in_chunk)?;
        let found = find_chunk_value(&head, view, &self.limits).map_err(in_chunk)?;
        let (end, left_over) = (CHUNK_HEAD_BYTES + found.end, len - found.end as u64);
        match found.what {
            Found::Whole => {
                if left_over > 0 {
                    return Err(Reason::ChunkLeftOver { id, left_over }.into());
                }
                self.consume(end);
                let body = view.get(head.value_at..found.end).unwrap_or_default();
                Ok((Event::Whole { meta: head.meta(self.db, &self.scratch), body }, end))
            }
            Found::Begin { count, left } => {
                if let Left::Bytes(bytes) = left
                    && bytes > left_over
                {
                    return Err(Reason::ChunkCutsElement { id }.into());
                }
                if self.open.len() >= self.limits.open_objects_max {
                    let (announced, limit) = (self.open.len() as u64 + 1, self.limits.open_objects_max as u64);
                    return Err(Reason::LimitPassed { what: Limit::OpenObjects, announced, limit }.into());
                }
                self.current = after_chunk_piece(id, left_over, &left)?;
                self.open.push(Split { id, left });
                self.consume(end);
                let meta = head.meta(self.db, &self.scratch);
                Ok((Event::Begin { object: ObjectId(id), meta, count }, end))
            }
        }
    }

    /// The next run of a tagged object: `len` bytes of payload are to come, `before` bytes were read before them.
    fn chunk_payload<'a>(
        &'a mut self,
        id: u32,
        len: u64,
        payload: &'a [u8],
        before: usize,
    ) -> Read<(Event<'a>, usize)> {
        let object = ObjectId(id);
        let Some((index, split)) = self.open.iter_mut().enumerate().find(|(_, split)| split.id == id) else {
            // Not reachable: `Current::Chunk` names an open object.
            return Err(Reason::ChunkIdZero.into());
        };
        if split.left.is_done() {
            if len > 0 {
                return Err(Reason::ChunkLeftOver { id, left_over: len }.into());
            }
            self.open.swap_remove(index);
            self.current = Current::Records;
            return Ok((Event::End { object }, 0));
        }
        let view = clip(payload, len);
        let mut left = split.left;
        let run = left.advance(view, &self.limits).map_err(|stop| within_chunk(stop, id, len, before))?;
        self.current = after_chunk_piece(id, len - run.len as u64, &left)?;
        split.left = left;
        self.consume(before + run.len);
        let body = view.get(..run.len).unwrap_or_default();
        Ok((Event::Run { object, stage: run.stage, count: run.count, body }, before + run.len))
    }

    /// The rest of something that is read over.
    fn skip_on<'a>(&'a mut self, opcode: u8, mut left: Left, input: &'a [u8]) -> Read<(Event<'a>, usize)> {
        let run = left.advance(input, &self.limits)?;
        self.current = if left.is_done() { Current::Records } else { Current::Skipping { opcode, left } };
        self.consume(run.len);
        Ok((Event::Skipped { opcode }, run.len))
    }

    /// Everything that begins with an opcode of its own.
    fn opcode<'a>(&'a mut self, first: u8, input: &'a [u8]) -> Read<(Event<'a>, usize)> {
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

/// What is read after a piece of a chunk: the chunk itself, or records when it has ended.
fn after_chunk_piece(id: u32, len_left: u64, left: &Left) -> Read<Current> {
    if len_left > 0 || left.is_done() {
        return Ok(Current::Chunk { id, left: len_left });
    }
    match left.may_be_cut() {
        true => Ok(Current::Records),
        false => Err(Reason::ChunkCutsElement { id }.into()),
    }
}

/// What is missing must still fit the chunk; it is counted from the front of the input, `before` bytes before the payload.
fn within_chunk(stop: Stop, id: u32, len: u64, before: usize) -> Stop {
    match stop {
        Stop::More(at_least) if at_least as u64 > len => Reason::ChunkCutsElement { id }.into(),
        Stop::More(at_least) => Stop::More(at_least.saturating_add(before)),
        wrong => wrong,
    }
}

#[cfg(test)]
mod proptests;
#[cfg(test)]
mod tests;
