//! One batch of encoded commands: its bytes as segments, and what must be known until its last reply.
//!
//! In: bytes, copied into send chunks or referenced where they were received. Out: segments for one `SENDMSG`.
//! Invariants: `replied <= commands`, `sent_bytes <= bytes`; each `Segment::Chunk` stands for one hold on its chunk, given
//! back by [`Batch::release`]; a guard group (MULTI .. marker, EXEC) reaches from its first command to the batch's end.
//! A batch is never changed once closed: what must be found again in it (the k-th command) is found by re-reading.

use crate::ids::{DbIndex, FlowId, Lsn};
use crate::uring::{ChunkId, Segment, Slab};
use bytes::Bytes;
use std::ops::Range;

/// The commands that must not be applied twice: everything from `first_command` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Index of the MULTI.
    pub first_command: u32,
    /// Position written to the lane's marker inside the same MULTI.
    pub sequence: u64,
}

/// A command of a journal record whose answer tells whether the target has the key that the source had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    pub command: u32,
    pub flow: FlowId,
    /// The source's database.
    pub db: DbIndex,
    /// The answer that says that the key, or the field, is not there.
    pub lost_if: i64,
}

/// In place of an answer: there is none that says so, but one that nobody has heard.
pub const UNHEARD: i64 = i64::MIN;
/// In place of an answer: the error that there is no such key, to a RENAME. What is lost is the key that it makes.
pub const NO_SUCH_KEY: i64 = i64::MIN + 1;

#[derive(Debug)]
pub struct Batch {
    pub segments: Vec<Segment>,
    pub bytes: usize,
    /// Bytes that the kernel took so far; what follows goes out first after a short write.
    pub sent_bytes: usize,
    /// Commands = replies expected.
    pub commands: u32,
    pub replied: u32,
    pub guard: Option<Guard>,
    /// A cluster's: it has transactions with markers.
    pub fenced: bool,
    /// For each flow with journal records in it: the LSN behind the last of them. Acknowledged with the batch.
    pub positions: Vec<(FlowId, Lsn)>,
    /// Commands whose answer may say that the target lost a key, in order.
    pub watched: Vec<Watched>,
    /// A cluster's: its transactions, in order: index of the EXEC, and of the first command inside.
    pub groups: Vec<(u32, u32)>,
    /// SELECTs inside: index of the command and the database.
    pub selects: Vec<(u32, DbIndex)>,
    /// Database selected where the batch begins.
    pub db_at_start: DbIndex,
    /// When the bytes of its first command were read from the source.
    pub first_read_ns: u64,
    /// When it was first submitted to the kernel.
    pub submitted_ns: u64,
    /// Commands that the server refused because of its state, in order.
    pub refused: Vec<u32>,
    /// The guard group was not executed, because of such a refusal.
    pub aborted: bool,
    /// Commands that a cluster's node sent elsewhere, or cannot execute yet.
    pub rejected: Vec<u32>,
    /// Commands that may have been applied before: sent on a connection that was lost, or by a process that is gone. None of a
    /// guard group, which is never executed twice.
    in_doubt: Vec<Range<u32>>,
    /// A SELECT that what follows needs on this connection: it belongs to it alone.
    pub preamble: bool,
    /// Names of lost keys, put between other batches: it may be sent again whole, wherever it stands.
    pub names: bool,
    /// As how many of a cluster's it counts: it stands for so many that were sent, and were not executed.
    pub stands_for: u64,
}

impl Batch {
    pub fn new(segments: Vec<Segment>, db_at_start: DbIndex) -> Self {
        Self {
            segments,
            bytes: 0,
            sent_bytes: 0,
            commands: 0,
            replied: 0,
            guard: None,
            fenced: false,
            positions: Vec::new(),
            watched: Vec::new(),
            groups: Vec::new(),
            selects: Vec::new(),
            db_at_start,
            first_read_ns: 0,
            submitted_ns: 0,
            refused: Vec::new(),
            aborted: false,
            rejected: Vec::new(),
            in_doubt: Vec::new(),
            preamble: false,
            names: false,
            stands_for: 1,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.commands == 0 && self.bytes == 0 && self.positions.is_empty()
    }

    /// Database selected where the batch ends.
    pub fn db_at_end(&self) -> DbIndex {
        self.selects.last().map_or(self.db_at_start, |(_, db)| *db)
    }

    /// It has commands that must not be applied twice.
    pub fn is_fenced(&self) -> bool {
        self.fenced || self.guard.is_some()
    }

    /// The batch's bytes, in order.
    pub fn slices<'a>(&'a self, slab: &'a Slab) -> impl Iterator<Item = &'a [u8]> + Clone {
        self.segments.iter().map(|segment| match segment {
            Segment::Chunk { chunk, start, len } => {
                let filled = slab.filled(*chunk);
                filled.get(*start as usize..(*start + *len) as usize).unwrap_or(&[])
            }
            Segment::Heap(bytes) => &bytes[..],
        })
    }

    /// What is watched of the command that the next reply is for, or of element `element` of the EXEC that it is for.
    pub fn watched_at(&self, element: Option<u64>) -> Option<Watched> {
        if self.watched.is_empty() {
            return None;
        }
        let of_group = |(exec, first): &(u32, u32)| (*exec == self.replied).then_some(*first);
        let command = match element {
            None => self.replied,
            Some(element) => {
                let first = match self.guard {
                    Some(guard) => guard.first_command + 1,
                    None => self.groups.iter().find_map(of_group).unwrap_or(self.replied),
                };
                first.saturating_add(u32::try_from(element).ok()?)
            }
        };
        let found = self.watched.binary_search_by_key(&command, |watched| watched.command).ok()?;
        self.watched.get(found).copied()
    }

    /// How many answers the array has that the next reply should be, if that is the reply to an EXEC.
    pub fn answers_of_exec(&self) -> Option<u32> {
        match self.guard {
            Some(guard) => {
                (self.replied + 1 == self.commands).then(|| self.replied.saturating_sub(guard.first_command + 1))
            }
            None => {
                let (exec, first) = self.groups.get(self.group_from(self.replied))?;
                (*exec == self.replied).then(|| exec.saturating_sub(*first))
            }
        }
    }

    /// Whether one of the replies from this one on, up to the last that came, is that to an EXEC.
    pub fn has_answered_exec(&self, from: u32) -> bool {
        match self.guard {
            Some(_) => self.replied == self.commands,
            None => self.groups.get(self.group_from(from)).is_some_and(|(exec, _)| *exec < self.replied),
        }
    }

    /// The first transaction whose EXEC is not before this command.
    fn group_from(&self, command: u32) -> usize {
        self.groups.partition_point(|(exec, _)| *exec < command)
    }

    /// A node refused some of it, or sent it elsewhere.
    pub fn has_unexecuted(&self) -> bool {
        !self.rejected.is_empty() || !self.refused.is_empty()
    }

    /// The first command that must be sent again.
    pub fn first_refused(&self) -> Option<u32> {
        let group = self.guard.filter(|_| self.aborted).map(|guard| guard.first_command);
        self.refused.first().copied().into_iter().chain(group).min()
    }

    /// These commands may have been applied before.
    pub fn put_in_doubt(&mut self, commands: Range<u32>) {
        let end = self.guard.map_or(commands.end, |guard| commands.end.min(guard.first_command));
        match self.in_doubt.last_mut() {
            _ if commands.start >= end => {}
            Some(last) if last.end == commands.start => last.end = end,
            _ => self.in_doubt.push(commands.start..end),
        }
    }

    /// Whether a command may have been applied before.
    pub fn is_in_doubt(&self, command: u32) -> bool {
        self.in_doubt.iter().any(|range| range.contains(&command))
    }

    /// Keeps only the first `commands` commands, which end at byte `end`, and not the group behind them.
    pub fn cut(&mut self, slab: &mut Slab, end: usize, commands: u32) {
        let mut left = end;
        self.segments.retain_mut(|segment| {
            let len = match segment {
                Segment::Chunk { len, .. } => *len as usize,
                Segment::Heap(bytes) => bytes.len(),
            };
            let kept = len.min(left);
            left -= kept;
            match segment {
                Segment::Chunk { chunk, .. } if kept == 0 => slab.release(*chunk),
                Segment::Chunk { len, .. } => *len = kept as u32,
                Segment::Heap(bytes) => bytes.truncate(kept),
            }
            kept > 0
        });
        self.bytes = end;
        self.commands = commands;
        self.guard = None;
        self.selects.retain(|(at, _)| *at < commands);
    }

    /// Gives every hold back; returns the emptied segment list for reuse.
    pub fn release(mut self, slab: &mut Slab) -> Vec<Segment> {
        for segment in self.segments.drain(..) {
            if let Segment::Chunk { chunk, .. } = segment {
                slab.release(chunk);
            }
        }
        self.segments
    }

    /// Appends `len` bytes at `start` of a chunk, extending the last segment where they follow it. Takes a hold if a
    /// segment is added.
    pub fn push_chunk(&mut self, slab: &mut Slab, chunk: ChunkId, start: u32, len: u32) {
        self.bytes += len as usize;
        if let Some(Segment::Chunk { chunk: last, start: last_start, len: last_len }) = self.segments.last_mut()
            && *last == chunk
            && *last_start + *last_len == start
        {
            *last_len += len;
            return;
        }
        slab.hold(chunk);
        self.segments.push(Segment::Chunk { chunk, start, len });
    }

    pub fn push_heap(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.bytes += bytes.len();
            self.segments.push(Segment::Heap(bytes));
        }
    }
}
