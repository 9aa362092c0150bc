//! The ring against real files: places, short ends, reuse, errors of the file system.

use super::*;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::rc::Rc;
use std::time::{Duration, Instant};

const CHUNK: usize = 64 << 10;
const LAYOUT: SlabLayout = SlabLayout { rx_chunk_bytes: CHUNK, rx_chunks: 12, tx_chunk_bytes: 4096, tx_chunks: 1 };

struct Desk {
    ring: Ring,
    file: Rc<UnnamedFile>,
    _dir: tempfile::TempDir,
}

fn desk(registered_buffers: bool) -> Desk {
    let settings = RingSettings {
        sq_entries: 32,
        huge_pages: false,
        registered_buffers,
        read: if registered_buffers { ReadMode::ReadFixed } else { ReadMode::Recv },
        ..RingSettings::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let file = Rc::new(UnnamedFile::open(dir.path()).unwrap());
    Desk { ring: Ring::new(&settings, LAYOUT).unwrap(), file, _dir: dir }
}

impl Desk {
    fn chunk(&mut self, seed: u8, len: usize) -> ChunkId {
        let slab = self.ring.slab_mut();
        let chunk = slab.take(Class::Rx).unwrap();
        let bytes: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed).collect();
        slab.append(chunk, &bytes);
        chunk
    }

    fn completions(&mut self, count: usize) -> Vec<Completion> {
        let begun = Instant::now();
        let mut all = Vec::new();
        while all.iter().filter(|c: &&Completion| c.kind != CompletionKind::Wake).count() < count {
            assert!(begun.elapsed() < Duration::from_secs(20), "only {all:?}");
            self.ring.turn(Duration::from_millis(200), &mut all).unwrap();
        }
        all.retain(|c| c.kind != CompletionKind::Wake);
        all.sort_by_key(|c| c.token);
        all
    }
}

#[test]
fn chunks_go_to_their_places_and_come_back() {
    for registered in [true, false] {
        let mut desk = desk(registered);
        let chunks: Vec<ChunkId> = (0..4).map(|i| desk.chunk(i, CHUNK - i as usize * 777)).collect();
        // In any order, and all at once.
        for (i, chunk) in chunks.iter().enumerate().rev() {
            let len = desk.ring.slab().filled_len(*chunk);
            desk.ring.write_file(&desk.file, *chunk, (0, len), (i * CHUNK) as u64, i as u64).unwrap();
        }
        for (i, completion) in desk.completions(4).iter().enumerate() {
            let len = desk.ring.slab().filled_len(chunks[i]);
            assert_eq!((completion.kind, completion.result), (CompletionKind::FileWrite, Ok(len)));
        }
        for (i, written) in chunks.iter().enumerate() {
            let read = desk.ring.slab_mut().take(Class::Rx).unwrap();
            desk.ring.read_file(&desk.file, read, CHUNK, (i * CHUNK) as u64, 9).unwrap();
            assert_eq!(desk.ring.slab().room(read), 0, "lent to the kernel");
            let completion = desk.completions(1)[0];
            let bytes = completion.result.unwrap() as usize;
            let len = desk.ring.slab().filled_len(*written) as usize;
            assert!(bytes >= len && desk.ring.slab().filled(read)[..len] == *desk.ring.slab().filled(*written));
        }
    }
}

#[test]
fn the_end_of_the_file_and_holes_are_told() {
    let mut desk = desk(true);
    let chunk = desk.chunk(1, 1000);
    desk.ring.write_file(&desk.file, chunk, (100, 900), 0, 1).unwrap();
    desk.completions(1);
    let read = desk.ring.slab_mut().take(Class::Rx).unwrap();
    desk.ring.read_file(&desk.file, read, CHUNK, 0, 2).unwrap();
    assert_eq!(desk.completions(1)[0].result, Ok(900));
    assert_eq!(desk.ring.slab().filled(read), &desk.ring.slab().filled(chunk)[100..]);
    desk.ring.read_file(&desk.file, read, CHUNK, 900, 3).unwrap();
    assert_eq!(desk.completions(1)[0].result, Ok(0));
    desk.ring.punch_file(&desk.file, 0, 4096, 4).unwrap();
    if desk.completions(1)[0].result.is_ok() {
        let metadata = desk.file.file().metadata().unwrap();
        assert_eq!((metadata.len(), metadata.blocks()), (900, 0));
        let mut bytes = [1; 900];
        desk.file.file().read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn what_is_not_filled_is_not_written() {
    let mut desk = desk(true);
    let chunk = desk.chunk(1, 10);
    let error = desk.ring.write_file(&desk.file, chunk, (5, 6), 0, 1).unwrap_err();
    assert!(matches!(error, UringError::SegmentOutside { filled: 10, .. }), "{error}");
    assert_eq!(desk.ring.in_flight(), 0);
}

/// A chunk given back while it is being written is not reused before the kernel is done with it.
#[test]
fn a_chunk_stays_as_long_as_it_is_written() {
    let mut desk = desk(true);
    for round in 0..50u64 {
        let chunk = desk.chunk(round as u8, CHUNK);
        desk.ring.write_file(&desk.file, chunk, (0, CHUNK as u32), 0, round).unwrap();
        desk.ring.slab_mut().release(chunk);
        assert_eq!(desk.ring.slab().free_count(Class::Rx), 11);
        desk.completions(1);
        assert_eq!(desk.ring.slab().free_count(Class::Rx), 12);
    }
    // And a ring may end with writes and reads under way.
    let chunk = desk.chunk(1, CHUNK);
    desk.ring.write_file(&desk.file, chunk, (0, CHUNK as u32), 0, 1).unwrap();
    let other = desk.ring.slab_mut().take(Class::Rx).unwrap();
    desk.ring.read_file(&desk.file, other, CHUNK, 0, 2).unwrap();
}

/// The process lives on, signal or not.
#[test]
fn a_place_beyond_the_largest_file_is_an_error() {
    let mut desk = desk(true);
    let chunk = desk.chunk(1, CHUNK);
    desk.ring.write_file(&desk.file, chunk, (0, CHUNK as u32), i64::MAX as u64 - 10, 1).unwrap();
    let result = desk.completions(1)[0].result;
    assert!(matches!(result, Err(libc::EFBIG | libc::EINVAL) | Ok(0..=10)), "{result:?}");
}
