//! Where `convert` writes: the open batch of a lane, or the staged command of a flow's large string.
//!
//! In: one RESP command at a time. Out: bytes in send chunks (copied) or segments that point into the received chunk
//! (borrowed). Invariants: a batch holds whole commands only; SELECT is inserted when the database changes; a guarded
//! command stands in a MULTI that ends with its position (design.md, "Exactly once"). Writing never fails: when the slab
//! has no send chunk left, bytes go to the heap (the worker stops decoding long before that).

use super::batch::{Batch, Guard, NO_SUCH_KEY, Watched};
use super::lost::{WatchedNames, watched_field};
use crate::convert::{Class, CommandMeta, Out};
use crate::ids::{DbIndex, FlowId, Lsn, Slot};
use crate::uring::{ChunkId, Class as ChunkClass, Segment, Slab};
use bytes::Bytes;
use smallvec::SmallVec;
use std::io::Write;

/// Segments after which a batch closes, well under the kernel's 1024 parts a message.
const SEGMENTS_MAX: usize = 512;

/// From here on a batch (whose one command has very many long arguments) gets no more segments: what follows is copied to
/// the heap and becomes the last one.
const SEGMENTS_HARD_MAX: usize = 1000;

/// The bytes that the event being converted borrows from.
#[derive(Clone)]
pub enum Source {
    /// A slab chunk: its id and the view that pins it.
    Chunk(ChunkId, crate::uring::ChunkView),
    Heap(Bytes),
    /// Nothing may be borrowed.
    None,
}

/// The end of the encoded bytes of a lane (or of a staged command).
#[derive(Debug, Default)]
pub struct Tail {
    chunk: Option<ChunkId>,
    /// Used when the slab is empty.
    heap: Vec<u8>,
    /// Where the last `space` on the heap began.
    heap_mark: usize,
}

impl Tail {
    /// Gives the chunk back and turns heap bytes into a segment.
    pub fn finish(&mut self, batch: &mut Batch, slab: &mut Slab) {
        self.flush_heap(batch);
        if let Some(chunk) = self.chunk.take() {
            slab.release(chunk);
        }
    }

    pub(super) fn flush_heap(&mut self, batch: &mut Batch) {
        if !self.heap.is_empty() {
            batch.push_heap(Bytes::from(std::mem::take(&mut self.heap)));
        }
    }

    /// Makes room for `len` contiguous bytes.
    fn room(&mut self, batch: &mut Batch, slab: &mut Slab, len: usize) {
        if let Some(chunk) = self.chunk {
            if slab.room(chunk) >= len {
                return;
            }
            slab.release(chunk);
            self.chunk = None;
        }
        let crowded = batch.segments.len() >= SEGMENTS_HARD_MAX;
        if self.heap.is_empty() && !crowded {
            self.chunk = slab.take(ChunkClass::Tx);
        }
        if self.chunk.is_none() && self.heap.capacity() - self.heap.len() < len {
            if crowded {
                self.heap.reserve(len.max(32 * 1024));
            } else {
                self.flush_heap(batch);
                self.heap.reserve_exact(len.max(32 * 1024));
            }
        }
    }

    fn copy(&mut self, batch: &mut Batch, slab: &mut Slab, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            self.room(batch, slab, 1);
            match self.chunk {
                Some(chunk) => {
                    let start = slab.filled_len(chunk);
                    let copied = slab.append(chunk, bytes);
                    batch.push_chunk(slab, chunk, start, copied as u32);
                    bytes = &bytes[copied..];
                }
                None => {
                    let copied = bytes.len().min(self.heap.capacity() - self.heap.len());
                    self.heap.extend_from_slice(&bytes[..copied]);
                    bytes = &bytes[copied..];
                }
            }
        }
    }
}

/// The batch under construction with all that goes with it.
pub struct Encoder {
    pub batch: Batch,
    pub tail: Tail,
    /// Database selected at the end of what was encoded so far.
    pub db: DbIndex,
    /// A command was begun and not ended.
    pub in_command: bool,
    /// The next guarded command is a RENAME whose answer is watched.
    watching: Option<(FlowId, DbIndex)>,
    /// Slot of the command begun last, if it is staged: a cluster's lane is chosen when it is committed.
    pub slot: Slot,
}

impl Encoder {
    pub fn new() -> Self {
        Self {
            batch: Batch::new(Vec::new(), DbIndex(0)),
            tail: Tail::default(),
            db: DbIndex(0),
            in_command: false,
            watching: None,
            slot: Slot(0),
        }
    }

    /// Takes the batch out, closed, leaving an empty one that uses `segments`.
    pub fn take_batch(&mut self, slab: &mut Slab, segments: Vec<Segment>) -> Batch {
        self.tail.flush_heap(&mut self.batch);
        let _ = slab;
        std::mem::replace(&mut self.batch, Batch::new(segments, self.db))
    }

    /// Writes a complete command of short arguments.
    pub fn command(&mut self, slab: &mut Slab, args: &[&[u8]]) {
        let mut text = Vec::with_capacity(128);
        let _ = write!(text, "*{}\r\n", args.len());
        for arg in args {
            let _ = write!(text, "${}\r\n", arg.len());
            text.extend_from_slice(arg);
            text.extend_from_slice(b"\r\n");
        }
        self.tail.copy(&mut self.batch, slab, &text);
        self.batch.commands += 1;
    }

    /// Selects a database, where another one is selected.
    pub fn select(&mut self, slab: &mut Slab, db: DbIndex) {
        if self.db != db {
            self.batch.selects.push((self.batch.commands, db));
            self.command(slab, &[b"SELECT", db.to_string().as_bytes()]);
            self.db = db;
        }
    }

    /// Room for `len` contiguous bytes; what is written to its front counts by [`Encoder::advance`].
    #[inline]
    pub fn space<'a>(&'a mut self, slab: &'a mut Slab, len: usize) -> &'a mut [u8] {
        let Self { batch, tail, .. } = self;
        tail.room(batch, slab, len);
        match tail.chunk {
            Some(chunk) => slab.spare(chunk),
            None => {
                // Zeroed on this rare path, so that the caller gets plain initialized bytes.
                tail.heap_mark = tail.heap.len();
                tail.heap.resize(tail.heap_mark + len, 0);
                &mut tail.heap[tail.heap_mark..]
            }
        }
    }

    #[inline]
    pub fn advance(&mut self, slab: &mut Slab, len: usize) {
        let Self { batch, tail, .. } = self;
        match tail.chunk {
            Some(chunk) => {
                let start = slab.filled_len(chunk);
                slab.advance(chunk, len);
                batch.push_chunk(slab, chunk, start, len as u32);
            }
            None => {
                // `space` grew the vector by the length asked for; only `len` of it counts.
                let asked = tail.heap.len() - tail.heap_mark;
                debug_assert!(len <= asked);
                tail.heap.truncate(tail.heap_mark + len);
            }
        }
    }

    /// A command, in one piece of at most `len` bytes; `fill` says how many it wrote.
    #[inline]
    pub fn whole(&mut self, slab: &mut Slab, read_ns: u64, len: usize, fill: impl FnOnce(&mut [u8]) -> usize) {
        if self.batch.is_empty() {
            self.batch.first_read_ns = read_ns;
        }
        let written = fill(self.space(slab, len));
        self.advance(slab, written);
        self.batch.commands += 1;
    }

    /// Bytes of the event: borrowed from `source` if they are long, else copied.
    #[inline]
    pub fn put(&mut self, slab: &mut Slab, source: &Source, borrow_bytes_min: usize, bytes: &[u8]) {
        if bytes.len() >= borrow_bytes_min && self.batch.segments.len() < SEGMENTS_HARD_MAX {
            match source {
                Source::Chunk(chunk, view) => {
                    if let Some(start) = view.offset_of(bytes) {
                        self.tail.flush_heap(&mut self.batch);
                        self.batch.push_chunk(slab, *chunk, start, bytes.len() as u32);
                        return;
                    }
                }
                Source::Heap(heap) => {
                    let heap_range = heap.as_ptr_range();
                    let range = bytes.as_ptr_range();
                    if range.start >= heap_range.start && range.end <= heap_range.end {
                        self.tail.flush_heap(&mut self.batch);
                        self.batch.push_heap(heap.slice_ref(bytes));
                        return;
                    }
                }
                Source::None => {}
            }
        }
        self.copy(slab, bytes);
    }

    #[inline]
    pub fn put_owned(&mut self, slab: &mut Slab, borrow_bytes_min: usize, bytes: Bytes) {
        if bytes.len() >= borrow_bytes_min && self.batch.segments.len() < SEGMENTS_HARD_MAX {
            self.tail.flush_heap(&mut self.batch);
            self.batch.push_heap(bytes);
        } else {
            self.copy(slab, &bytes);
        }
    }

    #[inline]
    pub fn copy(&mut self, slab: &mut Slab, bytes: &[u8]) {
        let Self { batch, tail, .. } = self;
        tail.copy(batch, slab, bytes);
    }

    /// Bytes encoded so far.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.batch.bytes + self.tail.heap.len()
    }

    /// The batch is long enough to be closed.
    pub fn is_full(&self, batch_bytes: usize) -> bool {
        self.batch.bytes >= batch_bytes || self.batch.segments.len() >= SEGMENTS_MAX
    }
}

/// The lane's side of guarded commands.
pub struct GuardState {
    /// Key of the job's checkpoint, in database 0.
    pub checkpoint: String,
    /// Key that holds the position of the last guarded group applied.
    pub marker: Vec<u8>,
    /// Position of the last group begun.
    pub sequence: u64,
    /// Databases in which the marker was written (it is written to the database current at the group's end).
    pub marked_dbs: Vec<DbIndex>,
    /// What the checkpoint is told of commands whose answers may say that a key was lost.
    pub watched: WatchedNames,
}

/// Fields of the checkpoint that hold the next LSN of each flow begin with this.
pub const LSN_FIELD_PREFIX: &str = "lsn:";
/// The checkpoint lies here, whatever databases the data is in.
pub const CHECKPOINT_DB: DbIndex = DbIndex(0);

/// One event's access to the encoder.
pub struct Writer<'a> {
    pub encoder: &'a mut Encoder,
    pub slab: &'a mut Slab,
    /// None: a staged command, whose SELECT is written when it is committed, and which is always blind.
    pub guard: Option<&'a mut GuardState>,
    pub source: &'a Source,
    pub borrow_bytes_min: usize,
    pub batch_bytes: usize,
    /// A journal record with a position is being written: the batch must not end before `record_done`.
    pub in_record: bool,
    /// Batches closed by this writer, to be queued by the lane.
    pub closed: &'a mut Vec<Batch>,
    pub spare_segments: &'a mut Vec<Vec<Segment>>,
    pub read_ns: u64,
}

impl Writer<'_> {
    /// A journal record is complete: everything of `flow` before `next_lsn` stands in front of here. Ends a full batch,
    /// so that a guarded command and the position behind it are never in different batches.
    pub fn record_done(&mut self, flow: FlowId, next_lsn: Lsn) {
        let positions = &mut self.encoder.batch.positions;
        match positions.iter_mut().find(|(id, _)| *id == flow) {
            Some((_, lsn)) => *lsn = next_lsn,
            None => positions.push((flow, next_lsn)),
        }
        if self.encoder.batch.first_read_ns == 0 {
            self.encoder.batch.first_read_ns = self.read_ns;
        }
        self.close_if_full(self.batch_bytes);
    }

    fn close_if_full(&mut self, batch_bytes: usize) {
        if self.encoder.is_full(batch_bytes) {
            self.close();
        }
    }

    /// The answer `lost_if` to the command written last says that the target lost `key`, by its name at the source.
    pub fn watch(&mut self, flow: FlowId, db: DbIndex, key: &[u8], lost_if: i64) {
        let command = self.encoder.batch.commands.saturating_sub(1);
        self.encoder.batch.watched.push(Watched { command, flow, db, lost_if });
        if let Some(state) = self.guard.as_deref_mut() {
            state.watched.add(flow, db, key);
        }
    }

    /// Writes the positions of the batch into the checkpoint: with the guarded commands, or behind the blind ones.
    fn write_positions(&mut self) {
        let Some(state) = self.guard.as_deref_mut() else { return };
        if self.encoder.batch.positions.is_empty() {
            return;
        }
        let positions = &self.encoder.batch.positions;
        let mut fields: SmallVec<[Vec<u8>; 8]> = SmallVec::new();
        for (flow, lsn) in positions {
            fields.push(format!("{LSN_FIELD_PREFIX}{flow}").into_bytes());
            fields.push(lsn.to_string().into_bytes());
        }
        state.watched.take(
            |flow| positions.iter().any(|(id, _)| *id == flow),
            |flow, names| fields.extend([watched_field(flow).into_bytes(), names.to_vec()]),
        );
        let mut args: SmallVec<[&[u8]; 12]> = smallvec::smallvec![&b"HSET"[..], state.checkpoint.as_bytes()];
        args.extend(fields.iter().map(Vec::as_slice));
        self.encoder.select(self.slab, CHECKPOINT_DB);
        self.encoder.command(self.slab, &args);
    }

    /// Ends the guard group, if one is open, and moves the batch to `closed`.
    pub fn close(&mut self) {
        if self.encoder.batch.is_empty() {
            return;
        }
        self.write_positions();
        if let (Some(guard), Some(state)) = (self.encoder.batch.guard, self.guard.as_deref_mut()) {
            let mut text = [0u8; 20];
            let digits = decimal(guard.sequence, &mut text);
            self.encoder.command(self.slab, &[b"SET", &state.marker, digits]);
            self.encoder.command(self.slab, &[b"EXEC"]);
            if !state.marked_dbs.contains(&self.encoder.db) {
                state.marked_dbs.push(self.encoder.db);
            }
        }
        let segments = self.spare_segments.pop().unwrap_or_default();
        let batch = self.encoder.take_batch(self.slab, segments);
        self.closed.push(batch);
    }
}

/// Decimal text of `n` in `buffer`.
pub(super) fn decimal(n: u64, buffer: &mut [u8; 20]) -> &[u8] {
    let mut rest: &mut [u8] = buffer;
    let _ = write!(rest, "{n}");
    let left = rest.len();
    &buffer[..20 - left]
}

impl Out for Writer<'_> {
    fn begin(&mut self, meta: CommandMeta) {
        if self.encoder.batch.is_empty() {
            self.encoder.batch.first_read_ns = self.read_ns;
        }
        match self.guard.as_deref_mut() {
            Some(state) => {
                self.encoder.select(self.slab, meta.db);
                // In stable sync the whole batch: where the target refuses one command, it then executes none, and no position.
                if (meta.class == Class::Guarded || self.in_record) && self.encoder.batch.guard.is_none() {
                    state.sequence += 1;
                    self.encoder.batch.guard =
                        Some(Guard { first_command: self.encoder.batch.commands, sequence: state.sequence });
                    self.encoder.command(self.slab, &[b"MULTI"]);
                }
                if meta.class == Class::Guarded
                    && let Some((flow, db)) = self.encoder.watching.take()
                {
                    let command = self.encoder.batch.commands;
                    self.encoder.batch.watched.push(Watched { command, flow, db, lost_if: NO_SUCH_KEY });
                }
            }
            None => {
                self.encoder.db = meta.db;
                self.encoder.slot = meta.slot;
                self.encoder.batch.db_at_start = meta.db;
            }
        }
        self.encoder.in_command = true;
    }

    fn space(&mut self, len: usize) -> &mut [u8] {
        self.encoder.space(self.slab, len)
    }

    fn advance(&mut self, len: usize) {
        self.encoder.advance(self.slab, len);
    }

    fn put(&mut self, bytes: &[u8]) {
        self.encoder.put(self.slab, self.source, self.borrow_bytes_min, bytes);
    }

    fn put_owned(&mut self, bytes: Bytes) {
        self.encoder.put_owned(self.slab, self.borrow_bytes_min, bytes);
    }

    fn end(&mut self) {
        self.encoder.in_command = false;
        self.encoder.batch.commands += 1;
        // In stable sync a batch ends between records (`record_done`).
        if self.guard.is_some() && !self.in_record {
            self.close_if_full(self.batch_bytes);
        }
    }

    fn watch_rename(&mut self, of: Option<(FlowId, DbIndex)>) {
        self.encoder.watching = of;
    }
}
