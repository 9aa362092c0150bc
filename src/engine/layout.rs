//! The order in which a batch of a cluster's lane goes out: what one flow does in one slot, if any of it must not be applied
//! twice, stands in one transaction, which ends with the marker of that flow and slot.
//!
//! In: an open batch and where each of its commands ends. Out: the same commands, those of one such transaction together,
//! at the place of its first; all else stays as it is. Keys of different slots have nothing to do with each other, so
//! that only order within a slot counts, and that is kept. Of nearly all batches of a full sync nothing needs to be known, for
//! all of it may be applied twice: their commands are not listed (which would cost a tenth of all that is done for a short key).
//!
//! Invariants, on which the recovery of a cluster stands (`settle`, `router`):
//! - a batch has at most one transaction of a flow in a slot, and no command of that flow and slot beside it, so that either
//!   all of them are executed, with the marker, or none;
//! - such a batch is sent only when all before it were executed, and nothing behind it before it was (`Lane::submit`). So a
//!   marker never passes what was not executed, whatever the node refuses or sends elsewhere, and whenever the tool dies.

use super::batch::Watched;
use super::own::marker_key;
use super::writer::Encoder;
use crate::ids::{DbIndex, FlowId, Lsn, Slot};
use crate::redis::resp::push_command;
use crate::uring::{Segment, Slab};
use bytes::Bytes;
use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

/// Pieces shorter than this are copied together.
const COPY_BYTES_MAX: usize = 2048;
/// Segments of a batch at the most; what follows is copied.
const SEGMENTS_MAX: usize = 900;

/// What the markers of a worker hold, shared by its router and its lanes.
#[derive(Debug, Default)]
pub struct Marks {
    /// What positions in the journal are positions of: the source process.
    pub journal_tag: String,
    /// What numbers of the full sync are numbers of: this process.
    pub snapshot_tag: String,
    /// What tells the job's own keys from those of others at a shared target (`own::tag`).
    pub job_tag: String,
    /// Number of the last transaction of the full sync.
    sequence: Cell<u64>,
}

impl Marks {
    pub fn new(journal_tag: String, snapshot_tag: String, job_tag: String) -> Rc<Self> {
        Rc::new(Self { journal_tag, snapshot_tag, job_tag, sequence: Cell::new(0) })
    }

    /// Value of the next marker of the full sync.
    pub fn next_sequence(&self) -> Vec<u8> {
        self.sequence.set(self.sequence.get() + 1);
        format!("{}:{}", self.snapshot_tag, self.sequence.get()).into_bytes()
    }

    /// Value of the marker of a record.
    pub fn journal_value(&self, lsn: Lsn) -> Vec<u8> {
        format!("{}:{lsn}", self.journal_tag).into_bytes()
    }
}

/// One command of an open batch.
#[derive(Clone, Copy, Debug)]
struct Piece {
    end_bytes: usize,
    /// `None`: of no key, or the tool's own.
    place: Option<(FlowId, Slot)>,
    /// LSN behind its record; none in the full sync.
    lsn: Option<Lsn>,
    guarded: bool,
    /// It may have been applied before.
    in_doubt: bool,
}

/// The commands of an open batch: all of them, or none.
#[derive(Debug, Default)]
pub struct Pieces {
    pieces: Vec<Piece>,
    is_list: bool,
    /// Some of them had to be listed. If so, it is expected of the next batch too.
    needed: bool,
    guarded: bool,
    doubts: bool,
    /// Whose answers are watched; `command`: the index of the piece.
    watched: Vec<Watched>,
}

impl Pieces {
    /// The commands of the open batch are listed: it may take some that must be.
    #[inline]
    pub fn is_list(&self) -> bool {
        self.is_list
    }

    /// The commands of the batch that begins are listed.
    pub fn begin_list(&mut self) {
        debug_assert!(self.pieces.is_empty());
        self.is_list = true;
    }

    /// The command that ends here is of this flow and slot. One of a record of the journal, one that must not be applied twice
    /// and one whose answer is watched are for a batch whose commands are listed (see [`Lane::list`](super::lane::Lane::list)).
    #[inline]
    pub fn push(&mut self, encoder: &Encoder, place: Option<(FlowId, Slot)>, lsn: Option<Lsn>, guarded: bool) {
        debug_assert!(self.is_list || !guarded && lsn.is_none());
        if !self.is_list {
            return;
        }
        self.needed |= guarded || lsn.is_some();
        self.guarded |= guarded;
        self.pieces.push(Piece { end_bytes: encoder.bytes(), place, lsn, guarded, in_doubt: false });
    }

    /// The last one may have been applied before.
    pub fn put_in_doubt(&mut self) {
        if let Some(piece) = self.pieces.last_mut() {
            piece.in_doubt = true;
            self.doubts = true;
        }
    }

    /// The answer to the last one may say that the target lost its key.
    pub fn watch(&mut self, flow: FlowId, db: DbIndex, lost_if: i64) {
        debug_assert!(self.is_list);
        let command = self.pieces.len().saturating_sub(1) as u32;
        self.watched.push(Watched { command, flow, db, lost_if });
    }

    /// Some of them must not be applied twice.
    #[inline]
    pub fn is_guarded(&self) -> bool {
        self.guarded
    }

    /// Brings the open batch into its order, with its transactions. It is to be closed then.
    pub fn lay_out(&mut self, encoder: &mut Encoder, slab: &mut Slab, marks: &Marks) {
        debug_assert!(self.pieces.len() == encoder.batch.commands as usize || !self.is_list && self.pieces.is_empty());
        if self.guarded {
            encoder.tail.flush_heap(&mut encoder.batch);
            let groups = self.groups();
            let old = Old::take(encoder);
            let mut text = Vec::with_capacity(old.bytes().min(64 << 10));
            let mut order: Vec<Option<usize>> = Vec::with_capacity(self.pieces.len());
            for (at, group) in groups.iter().enumerate() {
                match group {
                    Group::Alone => {
                        old.copy(self.range(at), &mut text, encoder, slab);
                        order.push(Some(at));
                    }
                    Group::Member => {}
                    Group::First { members, place: (flow, slot), lsn } => {
                        push_command(&mut text, &[b"MULTI"]);
                        order.push(None);
                        for member in members {
                            old.copy(self.range(*member), &mut text, encoder, slab);
                            order.push(Some(*member));
                        }
                        let value = match lsn {
                            Some(lsn) => marks.journal_value(*lsn),
                            None => marks.next_sequence(),
                        };
                        push_command(&mut text, &[b"SET", &marker_key(&marks.job_tag, *flow, *slot), &value]);
                        push_command(&mut text, &[b"EXEC"]);
                        order.extend([None, None]);
                        let exec = order.len() - 1;
                        encoder.batch.groups.push((exec as u32, (exec - 1 - members.len()) as u32));
                    }
                }
            }
            encoder.copy(slab, &text);
            old.release(slab);
            encoder.batch.commands = order.len() as u32;
            encoder.batch.fenced = true;
            self.note_watched(order.iter().copied(), encoder);
            self.note_doubts(order.into_iter(), encoder);
        } else {
            self.note_watched((0..self.pieces.len()).map(Some), encoder);
            self.note_doubts((0..self.pieces.len()).map(Some), encoder);
        }
        self.pieces.clear();
        self.watched.clear();
        self.is_list = self.needed;
        (self.needed, self.guarded, self.doubts) = (false, false, false);
    }

    /// By command: the piece that it is.
    fn note_doubts(&self, commands: impl Iterator<Item = Option<usize>>, encoder: &mut Encoder) {
        if !self.doubts {
            return;
        }
        for (command, piece) in (0u32..).zip(commands) {
            if piece.and_then(|at| self.pieces.get(at)).is_some_and(|piece| piece.in_doubt) {
                encoder.batch.put_in_doubt(command..command + 1);
            }
        }
    }

    /// By command: the piece that it is.
    fn note_watched(&self, commands: impl Iterator<Item = Option<usize>>, encoder: &mut Encoder) {
        if self.watched.is_empty() {
            return;
        }
        for (command, piece) in (0u32..).zip(commands) {
            let Some(piece) = piece else { continue };
            let found = self.watched.binary_search_by_key(&(piece as u32), |watched| watched.command);
            if let Some(watched) = found.ok().and_then(|at| self.watched.get(at)) {
                encoder.batch.watched.push(Watched { command, ..*watched });
            }
        }
    }

    fn range(&self, at: usize) -> Range<usize> {
        let end = |at: usize| self.pieces.get(at).map_or(0, |piece| piece.end_bytes);
        at.checked_sub(1).map_or(0, end)..end(at)
    }

    /// By piece: what it belongs to.
    fn groups(&self) -> Vec<Group> {
        let mut sorted: Vec<((FlowId, Slot), usize)> =
            self.pieces.iter().enumerate().filter_map(|(at, piece)| Some((piece.place?, at))).collect();
        sorted.sort_unstable();
        let mut groups: Vec<Group> = self.pieces.iter().map(|_| Group::Alone).collect();
        for run in sorted.chunk_by(|a, b| a.0 == b.0) {
            let pieces = || run.iter().filter_map(|(_, at)| self.pieces.get(*at));
            if !pieces().any(|piece| piece.guarded) {
                continue;
            }
            let members: Vec<usize> = run.iter().map(|(_, at)| *at).collect();
            let lsn = pieces().filter_map(|piece| piece.lsn).max();
            for (nth, (place, at)) in run.iter().enumerate() {
                if let Some(group) = groups.get_mut(*at) {
                    *group = match nth {
                        0 => Group::First { members: members.clone(), place: *place, lsn },
                        _ => Group::Member,
                    };
                }
            }
        }
        groups
    }
}

enum Group {
    /// It stays where it is.
    Alone,
    /// The first of a transaction, which stands at its place.
    First {
        members: Vec<usize>,
        place: (FlowId, Slot),
        lsn: Option<Lsn>,
    },
    Member,
}

/// The bytes of a batch before they were brought into order.
struct Old {
    segments: Vec<Segment>,
    /// Where each segment ends.
    ends: Vec<usize>,
}

impl Old {
    fn take(encoder: &mut Encoder) -> Self {
        let batch = &mut encoder.batch;
        let segments = std::mem::take(&mut batch.segments);
        batch.bytes = 0;
        let ends = segments.iter().scan(0, |end, segment| {
            *end += segment.bytes();
            Some(*end)
        });
        Self { ends: ends.collect(), segments }
    }

    fn bytes(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Copies a range behind `text`; long parts of it become segments of the new batch, behind the text so far.
    fn copy(&self, range: Range<usize>, text: &mut Vec<u8>, encoder: &mut Encoder, slab: &mut Slab) {
        let mut at = range.start;
        let first = self.ends.partition_point(|end| *end <= at);
        for (segment, end) in self.segments.iter().zip(&self.ends).skip(first) {
            if at >= range.end {
                return;
            }
            let from = at - (end - segment.bytes());
            let len = range.end.min(*end) - at;
            let long = len > COPY_BYTES_MAX && encoder.batch.segments.len() < SEGMENTS_MAX;
            if long {
                encoder.copy(slab, text);
                text.clear();
                encoder.tail.flush_heap(&mut encoder.batch);
            }
            match segment {
                Segment::Chunk { chunk, start, .. } if long => {
                    encoder.batch.push_chunk(slab, *chunk, start + from as u32, len as u32);
                }
                Segment::Chunk { chunk, start, .. } => {
                    let from = *start as usize + from;
                    text.extend_from_slice(slab.filled(*chunk).get(from..from + len).unwrap_or_default());
                }
                Segment::Heap(bytes) if long => encoder.batch.push_heap(bytes.slice(from..from + len)),
                Segment::Heap(bytes) => text.extend_from_slice(bytes.get(from..from + len).unwrap_or_default()),
            }
            at += len;
        }
    }

    fn release(self, slab: &mut Slab) {
        for segment in self.segments {
            if let Segment::Chunk { chunk, .. } = segment {
                slab.release(chunk);
            }
        }
    }
}

/// A closed batch of these encoded commands.
pub fn batch_of(bytes: Vec<u8>, commands: u32, fenced: bool) -> super::batch::Batch {
    let mut batch = super::batch::Batch::new(Vec::new(), crate::ids::DbIndex(0));
    batch.push_heap(Bytes::from(bytes));
    batch.commands = commands;
    batch.fenced = fenced;
    batch
}

#[cfg(test)]
mod tests;
