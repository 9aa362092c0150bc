//! The bytes of one flow that were read from the source and that its decoder cannot take yet, oldest first.
//!
//! In: bytes that the socket's reads put into the intake chunk. Out: the same bytes, in the same order, into the chunk of
//! the decoder's cursor. Full chunks become segments: they stay in memory while there is plenty, go to the spool file
//! otherwise, and come back in time. Invariants: the order of the bytes is the order of the segments, then the intake; a
//! segment keeps its chunk until it is known to be written whole; what comes back from the file is given to the decoder
//! only if its check sum is the one from before.

use super::error::EngineError;
use super::spool::{ChunkPool, SpoolFile};
use crate::uring::{ChunkId, Ring, Slab};
use std::collections::VecDeque;

/// Segments at the front that are brought back before they are wanted.
const AHEAD: usize = 2;
/// An intake chunk with less room than this is full: shorter reads are not worth a system call.
const READ_BYTES_MIN: usize = 16 * 1024;
/// Moments of reading that a segment remembers.
const MARKS_MAX: usize = 8;

/// When the bytes of a segment were read: up to each `end`, not before `read_ns`. The moments closest to one another are
/// taken together under the earlier one, so that a lag is never reported as shorter than it was.
#[derive(Clone, Copy, Debug, Default)]
struct Marks {
    /// End and moment; the last place is for the newcomer.
    marks: [(u32, u64); MARKS_MAX + 1],
    count: usize,
}

impl Marks {
    fn push(&mut self, end: u32, now_ns: u64) {
        self.marks[self.count] = (end, now_ns);
        self.count += 1;
        if self.count > MARKS_MAX {
            let gap = |i: &usize| self.marks[i + 1].1.saturating_sub(self.marks[*i].1);
            let closest = (0..MARKS_MAX).min_by_key(gap).unwrap_or(0);
            self.marks[closest].0 = self.marks[closest + 1].0;
            self.marks.copy_within(closest + 2.., closest + 1);
            self.count = MARKS_MAX;
        }
    }

    /// The part that `start` lies in: its end and its moment.
    fn at(&self, start: u32) -> Option<(u32, u64)> {
        self.marks[..self.count].iter().find(|(end, _)| *end > start).copied()
    }
}

/// Where a segment's bytes are.
#[derive(Clone, Copy, Debug)]
enum Place {
    Memory {
        chunk: ChunkId,
        kept: bool,
    },
    /// On the way to the file, `done` bytes so far.
    Writing {
        chunk: ChunkId,
        slot: u32,
        done: u32,
    },
    Disk {
        slot: u32,
    },
    /// On the way back.
    Reading {
        chunk: ChunkId,
        slot: u32,
        kept: bool,
    },
}

#[derive(Debug)]
struct Segment {
    place: Place,
    len: u32,
    /// Bytes given to the decoder.
    taken: u32,
    checksum: u64,
    marks: Marks,
}

#[derive(Debug)]
struct Intake {
    chunk: ChunkId,
    taken: u32,
    marks: Marks,
}

/// One flow's backlog.
#[derive(Default)]
pub struct Backlog {
    segments: VecDeque<Segment>,
    /// Number of the first segment; the others follow.
    first_number: u32,
    intake: Option<Intake>,
    /// Chunks that nothing refers to any more, for the pool.
    spent: Vec<(ChunkId, bool)>,
    /// Segments that are not (only) in memory.
    on_disk: usize,
}

impl Backlog {
    /// The decoder has had everything.
    pub fn is_empty(&self, slab: &Slab) -> bool {
        self.segments.is_empty() && self.intake.as_ref().is_none_or(|i| i.taken == slab.filled_len(i.chunk))
    }

    /// Bytes that the decoder has not had.
    pub fn bytes(&self, slab: &Slab) -> u64 {
        let segments: u64 = self.segments.iter().map(|segment| u64::from(segment.len - segment.taken)).sum();
        segments + self.intake.as_ref().map_or(0, |i| u64::from(slab.filled_len(i.chunk) - i.taken))
    }

    /// The chunk to read the socket into. None: there is no memory for it now. No read may be in flight.
    pub fn intake(&mut self, slab: &mut Slab, pool: &mut ChunkPool) -> Option<ChunkId> {
        if let Some(intake) = &self.intake {
            let capacity = slab.capacity(intake.chunk);
            if slab.room(intake.chunk) >= READ_BYTES_MIN.min(capacity / 2) {
                return Some(intake.chunk);
            }
            self.seal(slab);
        }
        let chunk = pool.take(slab)?;
        self.intake = Some(Intake { chunk, taken: 0, marks: Marks::default() });
        Some(chunk)
    }

    /// The chunk that a read in flight goes into.
    pub fn intake_chunk(&self) -> Option<ChunkId> {
        self.intake.as_ref().map(|intake| intake.chunk)
    }

    /// The intake becomes the last segment.
    fn seal(&mut self, slab: &Slab) {
        let Some(Intake { chunk, taken, marks }) = self.intake.take() else { return };
        let len = slab.filled_len(chunk);
        if taken == len {
            self.spent.push((chunk, false));
            return;
        }
        let place = Place::Memory { chunk, kept: false };
        self.segments.push_back(Segment { place, len, taken, checksum: 0, marks });
    }

    /// A read into the intake completed.
    pub fn received(&mut self, slab: &Slab, now_ns: u64) {
        if let Some(intake) = &mut self.intake {
            intake.marks.push(slab.filled_len(intake.chunk), now_ns);
        }
    }

    /// The socket is read by the decoder's own cursor again: the intake, of which nothing is left, goes.
    pub fn end_intake(&mut self) {
        if let Some(intake) = self.intake.take() {
            self.spent.push((intake.chunk, false));
        }
    }

    /// Copies the next bytes to the tail of `to`, as many as were read at about one moment and as there is room for.
    /// Returns that moment. None: nothing is there yet, or there is no room.
    pub fn feed(&mut self, slab: &mut Slab, to: ChunkId) -> Option<u64> {
        let room = slab.room(to);
        if room == 0 {
            return None;
        }
        let (chunk, taken, len, marks) = match self.segments.front_mut() {
            Some(Segment { place: Place::Memory { chunk, .. }, taken, len, marks, .. }) => (*chunk, taken, *len, marks),
            Some(_) => return None,
            None => {
                let intake = self.intake.as_mut()?;
                (intake.chunk, &mut intake.taken, slab.filled_len(intake.chunk), &mut intake.marks)
            }
        };
        let (end, read_ns) = marks.at(*taken)?;
        let count = (end.min(len) - *taken).min(u32::try_from(room).unwrap_or(u32::MAX));
        if count == 0 {
            return None;
        }
        slab.copy_between(chunk, *taken as usize, count as usize, to);
        *taken += count;
        self.pop_taken();
        Some(read_ns)
    }

    /// Lets go of segments that the decoder has had.
    fn pop_taken(&mut self) {
        while let Some(Segment { place: Place::Memory { chunk, kept }, taken, len, .. }) = self.segments.front()
            && taken == len
        {
            self.spent.push((*chunk, *kept));
            self.segments.pop_front();
            self.first_number = self.first_number.wrapping_add(1);
        }
    }

    /// Nobody wants the bytes: lets go of them, as far as nothing is in flight.
    pub fn drop_bytes(&mut self, slab: &Slab, spool: Option<&mut SpoolFile>) {
        let mut spool = spool;
        if let Some(intake) = &mut self.intake {
            intake.taken = slab.filled_len(intake.chunk);
        }
        for segment in &mut self.segments {
            segment.taken = segment.len;
        }
        loop {
            self.pop_taken();
            let Some(Segment { place: Place::Disk { slot }, .. }) = self.segments.front() else { return };
            let slot = *slot;
            self.segments.pop_front();
            self.first_number = self.first_number.wrapping_add(1);
            self.on_disk -= 1;
            if let Some(spool) = spool.as_deref_mut() {
                spool.give_slot(slot);
            }
        }
    }

    /// Gives spent chunks back, writes out what memory is too tight for, and brings back what is wanted next. `tokens`
    /// makes the tokens of a write and of a read of a segment from its number.
    pub fn work(
        &mut self,
        ring: &mut Ring,
        pool: &mut ChunkPool,
        spool: Option<&mut SpoolFile>,
        tokens: impl Fn(bool, u32) -> u64,
    ) -> Result<(), EngineError> {
        for (chunk, kept) in self.spent.drain(..) {
            pool.give(ring.slab_mut(), chunk, kept);
        }
        let Some(spool) = spool else { return Ok(()) };
        if self.segments.is_empty() {
            return Ok(());
        }
        self.write_out(ring, pool, spool, &tokens)?;
        self.bring_back(ring, pool, spool, &tokens)
    }

    /// From the back: the newest are wanted last. The first one is not worth the way.
    fn write_out(
        &mut self,
        ring: &mut Ring,
        pool: &ChunkPool,
        spool: &mut SpoolFile,
        tokens: &impl Fn(bool, u32) -> u64,
    ) -> Result<(), EngineError> {
        for position in (1..self.segments.len()).rev() {
            // Behind segments on disk nothing is wanted soon.
            if self.on_disk == 0 && !pool.is_tight(ring.slab()) {
                return Ok(());
            }
            let segment = &mut self.segments[position];
            let Place::Memory { chunk, kept: false } = segment.place else { return Ok(()) };
            // Parts of it were given away: it stands at the front, or did.
            if segment.taken > 0 {
                return Ok(());
            }
            let Some(slot) = spool.take_slot() else { return Ok(()) };
            segment.checksum = checksum(&ring.slab().filled(chunk)[..segment.len as usize]);
            segment.place = Place::Writing { chunk, slot, done: 0 };
            self.on_disk += 1;
            let number = self.first_number.wrapping_add(position as u32);
            ring.write_file(&spool.file, chunk, (0, segment.len), spool.offset(slot), tokens(true, number))
                .map_err(|e| EngineError::System(e.to_string()))?;
        }
        Ok(())
    }

    fn bring_back(
        &mut self,
        ring: &mut Ring,
        pool: &mut ChunkPool,
        spool: &mut SpoolFile,
        tokens: &impl Fn(bool, u32) -> u64,
    ) -> Result<(), EngineError> {
        for (position, segment) in self.segments.iter_mut().take(AHEAD).enumerate() {
            let Place::Disk { slot } = segment.place else { continue };
            let Some((chunk, kept)) = pool.take_back(ring.slab_mut(), position == 0) else { return Ok(()) };
            segment.place = Place::Reading { chunk, slot, kept };
            let number = self.first_number.wrapping_add(position as u32);
            ring.read_file(&spool.file, chunk, segment.len as usize, spool.offset(slot), tokens(false, number))
                .map_err(|e| EngineError::System(e.to_string()))?;
        }
        Ok(())
    }

    fn find(&mut self, number: u32) -> Option<&mut Segment> {
        self.segments.get_mut(number.wrapping_sub(self.first_number) as usize)
    }

    /// A write of the segment `number` completed with `result`.
    pub fn written(
        &mut self,
        ring: &mut Ring,
        spool: &mut SpoolFile,
        number: u32,
        result: Result<u32, i32>,
        token: u64,
    ) -> Result<(), EngineError> {
        let Some(segment) = self.find(number) else { return Ok(()) };
        let Place::Writing { chunk, slot, done } = segment.place else { return Ok(()) };
        let done = match result {
            Ok(bytes @ 1..) => done + bytes,
            Err(libc::EINTR | libc::EAGAIN) => done,
            failed => {
                // Nothing is lost: the bytes are still in memory.
                segment.place = Place::Memory { chunk, kept: false };
                self.on_disk -= 1;
                spool.write_failed(failed.err().unwrap_or(libc::ENOSPC));
                return Ok(());
            }
        };
        if done < segment.len {
            segment.place = Place::Writing { chunk, slot, done };
            let rest = (done, segment.len - done);
            return ring
                .write_file(&spool.file, chunk, rest, spool.offset(slot) + u64::from(done), token)
                .map_err(|e| EngineError::System(e.to_string()));
        }
        spool.bytes_written += u64::from(segment.len);
        segment.place = Place::Disk { slot };
        self.spent.push((chunk, false));
        Ok(())
    }

    /// A read of the segment `number` completed with `result`.
    pub fn brought_back(
        &mut self,
        ring: &mut Ring,
        spool: &mut SpoolFile,
        number: u32,
        result: Result<u32, i32>,
        token: u64,
    ) -> Result<(), EngineError> {
        let Some(segment) = self.find(number) else { return Ok(()) };
        let Place::Reading { chunk, slot, kept } = segment.place else { return Ok(()) };
        let done = ring.slab().filled_len(chunk);
        match result {
            Ok(1..) | Err(libc::EINTR | libc::EAGAIN) => {}
            Ok(0) => return Err(damaged("its file ends too early")),
            Err(errno) => return Err(damaged(&std::io::Error::from_raw_os_error(errno).to_string())),
        }
        if done < segment.len {
            let (rest, offset) = ((segment.len - done) as usize, spool.offset(slot) + u64::from(done));
            return ring
                .read_file(&spool.file, chunk, rest, offset, token)
                .map_err(|e| EngineError::System(e.to_string()));
        }
        if checksum(ring.slab().filled(chunk)) != segment.checksum {
            return Err(damaged("other bytes came back than were written"));
        }
        segment.place = Place::Memory { chunk, kept };
        spool.bytes_read += u64::from(segment.len);
        spool.give_slot(slot);
        self.on_disk -= 1;
        Ok(())
    }
}

fn damaged(why: &str) -> EngineError {
    EngineError::System(format!(
        "the spool cannot be read back: {why}. Its disk or file system is damaged, or somebody meddled with it; nothing of \
         what it held was applied. Run again, with --spool in another place"
    ))
}

fn checksum(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes)
}

#[cfg(test)]
#[path = "backlog_tests.rs"]
mod tests;
