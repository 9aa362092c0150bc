//! The backlog with a real ring and file: order, bounds, short ends, damage.

use super::super::settings::SpoolSettings;
use super::super::spool::{DiskShare, Hurdle, SpoolStart, reserve_chunks};
use super::*;
use crate::lab::rng::Rng;
use crate::uring::{Class, CompletionKind, RingSettings, SlabLayout, UnnamedFile};
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::time::Duration;

const CHUNK: usize = 64 << 10;

/// One flow without a socket: what it receives and what its decoder gets are numbers counting up.
struct Desk {
    ring: Ring,
    pool: ChunkPool,
    spool: SpoolFile,
    backlog: Backlog,
    received: u64,
    given: u64,
    now_ns: u64,
    _dir: tempfile::TempDir,
}

const READ: u64 = 1 << 32;

fn byte(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

impl Desk {
    fn new(rx_chunks: usize, bytes_max: u64) -> Self {
        let layout = SlabLayout { rx_chunk_bytes: CHUNK, rx_chunks, tx_chunk_bytes: 4096, tx_chunks: 1 };
        let settings = RingSettings { sq_entries: 32, huge_pages: false, ..RingSettings::default() };
        let mut ring = Ring::new(&settings, layout).unwrap();
        let pool = ChunkPool::new(ring.slab_mut(), 1, reserve_chunks(1));
        let dir = tempfile::tempdir().unwrap();
        let settings = SpoolSettings { dir: dir.path().to_owned(), bytes_max };
        let start = SpoolStart::open(&settings, &DiskShare::new(bytes_max)).unwrap();
        let spool = SpoolFile::new(start, CHUNK);
        Self { ring, pool, spool, backlog: Backlog::default(), received: 0, given: 0, now_ns: 0, _dir: dir }
    }

    /// As a read of the socket would; false: there was no memory for it.
    fn receive(&mut self, count: usize) -> bool {
        let Some(chunk) = self.backlog.intake(self.ring.slab_mut(), &mut self.pool) else { return false };
        let bytes: Vec<u8> = (0..count as u64).map(|i| byte(self.received + i)).collect();
        let taken = self.ring.slab_mut().append(chunk, &bytes);
        assert!(taken > 0);
        self.received += taken as u64;
        self.now_ns += 1;
        self.backlog.received(self.ring.slab(), self.now_ns);
        true
    }

    /// As a decoder would that takes up to `count` bytes; returns their number.
    fn give(&mut self, count: usize) -> Result<usize, EngineError> {
        let slab = self.ring.slab_mut();
        let chunk = slab.take(Class::Rx).unwrap();
        let fill = CHUNK - count.min(CHUNK);
        slab.append(chunk, &vec![0; fill]);
        while let Some(read_ns) = self.backlog.feed(slab, chunk) {
            assert!(read_ns <= self.now_ns);
        }
        let bytes = slab.filled(chunk)[fill..].to_vec();
        slab.release(chunk);
        for found in &bytes {
            assert_eq!(*found, byte(self.given), "byte {}", self.given);
            self.given += 1;
        }
        Ok(bytes.len())
    }

    /// One turn of the worker. Reads of the file come back at most `bytes_max` long.
    fn turn(&mut self) -> Result<(), EngineError> {
        let Self { ring, pool, spool, backlog, .. } = self;
        backlog.work(ring, pool, Some(spool), |write, number| u64::from(number) | if write { 0 } else { READ })?;
        if let Some((offset, len)) = spool.trim() {
            ring.punch_file(&spool.file, offset, len, 0).unwrap();
        }
        let mut completions = Vec::new();
        ring.turn(Duration::from_millis(1), &mut completions).unwrap();
        for c in completions {
            match c.kind {
                CompletionKind::FileWrite => backlog.written(ring, spool, c.token as u32, c.result, c.token)?,
                CompletionKind::FileRead => backlog.brought_back(ring, spool, c.token as u32, c.result, c.token)?,
                CompletionKind::FilePunch => spool.trimmed(c.result),
                _ => {}
            }
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), EngineError> {
        let mut idle = 0;
        while self.given < self.received {
            idle = if self.give(CHUNK)? == 0 { idle + 1 } else { 0 };
            assert!(idle < 5000, "{} of {} bytes came", self.given, self.received);
            self.turn()?;
        }
        assert!(self.backlog.is_empty(self.ring.slab()));
        Ok(())
    }
}

#[test]
fn bytes_come_out_as_they_went_in_whatever_the_pace() {
    for seed in 0..6 {
        let mut rng = Rng::new(seed);
        let mut desk = Desk::new(16, 200 * CHUNK as u64);
        for round in 0..600 {
            // Floods and droughts, in turns.
            let flood = (round / 60) % 2 == 0;
            for _ in 0..if flood { 1 + rng.below(8) } else { rng.below(2) } {
                desk.receive(1 + rng.below(CHUNK as u64) as usize);
            }
            if !flood || rng.chance(0.1) {
                desk.give(1 + rng.below(2 * CHUNK as u64) as usize).unwrap();
            }
            desk.turn().unwrap();
        }
        assert!(desk.spool.bytes_written > 20 * CHUNK as u64, "{}", desk.spool.bytes_written);
        desk.drain().unwrap();
        assert_eq!((desk.spool.used_bytes(), desk.spool.hurdle()), (0, None));
        // Every chunk is back in its place.
        desk.backlog.end_intake();
        desk.turn().unwrap();
        assert_eq!(desk.ring.slab().free_count(Class::Rx), 16 - reserve_chunks(1));
    }
}

#[test]
fn at_the_cap_nothing_more_is_taken_and_nothing_is_lost() {
    let mut desk = Desk::new(12, 20 * CHUNK as u64);
    let mut refused = 0;
    while refused < 50 {
        refused += u32::from(!desk.receive(CHUNK));
        desk.turn().unwrap();
    }
    assert_eq!((desk.spool.hurdle(), desk.spool.used_bytes()), (Some(Hurdle::Cap), 20 * CHUNK as u64));
    let at_cap = desk.received;
    // What is taken out makes room again.
    while desk.given < at_cap / 2 {
        desk.give(CHUNK).unwrap();
        desk.turn().unwrap();
    }
    assert!(desk.receive(CHUNK));
    desk.drain().unwrap();
}

#[test]
fn a_full_disk_keeps_the_bytes_in_memory() {
    let mut desk = Desk::new(12, 1 << 40);
    let full = std::fs::OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
    desk.spool.file = Rc::new(UnnamedFile::from(full));
    let mut refused = 0;
    while refused < 50 {
        refused += u32::from(!desk.receive(CHUNK));
        desk.turn().unwrap();
    }
    assert_eq!(desk.spool.hurdle(), Some(Hurdle::NoSpace(libc::ENOSPC)));
    desk.drain().unwrap();
    assert_eq!(desk.spool.bytes_written, 0);
}

#[test]
fn a_disk_that_fails_keeps_the_bytes_in_memory() {
    let mut desk = Desk::new(12, 1 << 40);
    let closed = std::fs::File::open("/dev/null").unwrap();
    desk.spool.file = Rc::new(UnnamedFile::from(closed));
    while desk.receive(CHUNK) {
        desk.turn().unwrap();
    }
    assert_eq!(desk.spool.hurdle(), Some(Hurdle::Failed(libc::EBADF)));
    desk.drain().unwrap();
}

/// Spools, does something to the file, and says how the way back ends.
fn after(meddle: impl FnOnce(&std::fs::File)) -> String {
    let mut desk = Desk::new(12, 1 << 30);
    for _ in 0..30 {
        desk.receive(CHUNK);
        desk.turn().unwrap();
    }
    while desk.backlog.segments.iter().any(|segment| matches!(segment.place, Place::Writing { .. })) {
        desk.turn().unwrap();
    }
    meddle(desk.spool.file.file());
    let error = desk.drain().unwrap_err();
    // Nothing wrong reached the decoder: `give` compares every byte.
    assert!(desk.given < desk.received);
    error.to_string()
}

#[test]
fn damage_is_an_error_and_never_data() {
    let flipped = after(|file| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, 5 * CHUNK as u64 + 77).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 5 * CHUNK as u64 + 77).unwrap();
    });
    assert!(flipped.contains("other bytes came back"), "{flipped}");
    let swapped = after(|file| {
        let mut slot = vec![0; CHUNK];
        file.read_exact_at(&mut slot, 3 * CHUNK as u64).unwrap();
        file.write_all_at(&slot, 6 * CHUNK as u64).unwrap();
    });
    assert!(swapped.contains("other bytes came back"), "{swapped}");
    let cut = after(|file| file.set_len(4 * CHUNK as u64 + 100).unwrap());
    assert!(cut.contains("ends too early"), "{cut}");
}

#[test]
fn short_writes_and_reads_go_on_where_they_ended() {
    let mut desk = Desk::new(12, 1 << 30);
    for _ in 0..12 {
        desk.receive(CHUNK);
    }
    let Desk { ring, pool, spool, backlog, .. } = &mut desk;
    backlog.work(ring, pool, Some(spool), |_, number| u64::from(number)).unwrap();
    let writing =
        |backlog: &Backlog| backlog.segments.iter().filter(|s| matches!(s.place, Place::Writing { .. })).count();
    let under_way = writing(backlog);
    assert!(under_way > 0);
    let mut halves = 0;
    let mut completions = Vec::new();
    while writing(backlog) > 0 {
        completions.clear();
        ring.turn(Duration::from_millis(100), &mut completions).unwrap();
        for c in completions.iter().filter(|c| c.kind == CompletionKind::FileWrite) {
            // Each write claims to have done half of what it did, once.
            let half = c.result.unwrap() == CHUNK as u32;
            halves += usize::from(half);
            let result = if half { Ok(CHUNK as u32 / 2) } else { c.result };
            backlog.written(ring, spool, c.token as u32, result, c.token).unwrap();
        }
    }
    assert_eq!(halves, under_way);
    desk.drain().unwrap();
}

#[test]
fn what_nobody_wants_is_dropped() {
    let mut desk = Desk::new(12, 1 << 30);
    for _ in 0..40 {
        desk.receive(CHUNK);
        desk.turn().unwrap();
    }
    for _ in 0..1000 {
        desk.backlog.drop_bytes(desk.ring.slab(), Some(&mut desk.spool));
        desk.turn().unwrap();
        if desk.backlog.is_empty(desk.ring.slab()) {
            break;
        }
    }
    assert_eq!((desk.spool.used_bytes(), desk.backlog.bytes(desk.ring.slab())), (0, 0));
}

#[test]
fn moments_are_never_later_than_the_bytes_were_read() {
    let mut rng = Rng::new(5);
    for _ in 0..200 {
        let mut marks = Marks::default();
        let (mut end, mut now) = (0u32, 0u64);
        let mut truth = Vec::new();
        for _ in 0..1 + rng.below(40) {
            let len = 1 + rng.below(50) as u32;
            now += rng.below(1000);
            truth.extend(std::iter::repeat_n(now, len as usize));
            end += len;
            marks.push(end, now);
        }
        let (mut start, mut last) = (0, 0);
        while start < end {
            let (until, at) = marks.at(start).unwrap();
            assert!(until > start && at >= last && truth[start as usize..until as usize].iter().all(|ns| *ns >= at));
            (start, last) = (until, at);
        }
        assert!(marks.count <= MARKS_MAX && marks.at(end).is_none());
    }
}
