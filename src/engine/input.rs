//! The received bytes of one flow: which of them are not parsed yet, and what to do when a record is not contiguous.
//!
//! In: bytes that arrive in slab chunks (from the socket, or unpacked from a compressed blob). Out: contiguous windows
//! for the decoder. A record cut by a chunk's end moves its head into the next chunk; one that is longer than a chunk is
//! collected on the heap (a jumbo), by as many bytes as really arrived. Invariants: `parsed <= filled`; no byte is
//! skipped or given twice; the heap in use by all flows of a worker stays under one budget.

use super::writer::Source;
use crate::uring::{ChunkId, ChunkView, Class, Slab};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Heap that the jumbos of one worker may use in all. A jumbo's whole length is reserved before its first byte is kept:
/// two half-collected ones could otherwise wait for each other's memory for ever.
#[derive(Clone)]
pub struct HeapBudget {
    used_bytes: Arc<AtomicUsize>,
    bytes_max: usize,
}

impl HeapBudget {
    pub fn new(bytes_max: usize) -> Self {
        Self { used_bytes: Arc::default(), bytes_max }
    }

    /// Bytes reserved now.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// Lets a jumbo of `need` bytes begin. One alone always may (its size is bounded by the decoder's limits).
    fn begin(&self, need: usize) -> Option<Budgeted> {
        let used = self.used_bytes();
        let admitted = used == 0 || used.saturating_add(need) <= self.bytes_max;
        admitted.then(|| self.reserve(Vec::new(), need))
    }

    /// Reserves whether or not there is room.
    fn reserve(&self, bytes: Vec<u8>, reserved: usize) -> Budgeted {
        self.used_bytes.fetch_add(reserved, Ordering::Relaxed);
        Budgeted { bytes, reserved, used_bytes: self.used_bytes.clone() }
    }
}

/// Heap bytes that give their share of the budget back when the last reference goes.
struct Budgeted {
    bytes: Vec<u8>,
    reserved: usize,
    used_bytes: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for Budgeted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Budgeted {
    fn drop(&mut self) {
        self.used_bytes.fetch_sub(self.reserved, Ordering::Relaxed);
    }
}

/// A record longer than a chunk.
enum Jumbo {
    /// Collecting until `need` bytes are there.
    Filling { held: Budgeted, need: usize },
    /// Given to the decoder from `parsed` on.
    Ready { bytes: Bytes, parsed: usize },
}

/// What a window's bytes lie in.
#[derive(Clone)]
pub enum Window {
    Chunk(ChunkId, ChunkView),
    Heap(Bytes),
}

impl Window {
    /// What commands may borrow from.
    pub fn source(&self) -> Source {
        match self {
            Self::Chunk(chunk, view) => Source::Chunk(*chunk, view.clone()),
            Self::Heap(bytes) => Source::Heap(bytes.clone()),
        }
    }

    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Chunk(_, view) => view,
            Self::Heap(bytes) => bytes,
        }
    }
}

/// What `make_room` achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// `fill` may write into the chunk now.
    Ready,
    /// The slab (or the heap budget) is exhausted: try again after acknowledgements.
    Wait,
}

/// One sequence of bytes and how far it was parsed.
#[derive(Default)]
pub struct Cursor {
    chunk: Option<ChunkId>,
    parsed: usize,
    jumbo: Option<Jumbo>,
}

/// Reads shorter than this are not worth a system call while another chunk could be had.
const READ_BYTES_MIN: usize = 16 * 1024;

impl Cursor {
    /// The chunk to read into, and nothing else: `make_room` prepared it.
    pub fn chunk(&self) -> Option<ChunkId> {
        self.chunk
    }

    /// The unparsed bytes that the decoder may see now, and the position of the first in the window. None: there are
    /// none, or a jumbo is still being collected.
    pub fn window(&mut self, slab: &Slab) -> Option<(Window, usize)> {
        match &self.jumbo {
            Some(Jumbo::Filling { .. }) => None,
            Some(Jumbo::Ready { bytes, parsed }) => Some((Window::Heap(bytes.clone()), *parsed)),
            None => {
                let chunk = self.chunk?;
                if self.parsed >= slab.filled_len(chunk) as usize {
                    return None;
                }
                Some((Window::Chunk(chunk, slab.view(chunk)), self.parsed))
            }
        }
    }

    /// The decoder consumed everything before `parsed` of the last window.
    pub fn consumed_to(&mut self, position: usize) {
        match &mut self.jumbo {
            Some(Jumbo::Ready { bytes, parsed }) => {
                *parsed = position;
                if position >= bytes.len() {
                    self.jumbo = None;
                }
            }
            _ => self.parsed = position,
        }
    }

    /// How many bytes are unparsed.
    pub fn unparsed_bytes(&self, slab: &Slab) -> usize {
        let jumbo = match &self.jumbo {
            Some(Jumbo::Filling { held, .. }) => held.bytes.len(),
            Some(Jumbo::Ready { bytes, parsed }) => bytes.len() - parsed,
            None => 0,
        };
        jumbo + self.chunk.map_or(0, |chunk| slab.filled_len(chunk) as usize - self.parsed)
    }

    /// A copy of the unparsed bytes at the end of a blob: none, unless the stream is corrupt.
    pub fn unparsed(&self, slab: &Slab) -> Vec<u8> {
        let mut bytes = match &self.jumbo {
            Some(Jumbo::Filling { held, .. }) => held.bytes.clone(),
            Some(Jumbo::Ready { bytes, parsed }) => bytes[*parsed..].to_vec(),
            None => Vec::new(),
        };
        if let Some(chunk) = self.chunk {
            bytes.extend_from_slice(&slab.filled(chunk)[self.parsed..]);
        }
        bytes
    }

    /// Prepares for more bytes, the decoder wanting `need` contiguous ones. `need` may be satisfied already by bytes
    /// that wait behind a jumbo; the caller asks `window` again first.
    pub fn make_room(&mut self, slab: &mut Slab, heap: &HeapBudget, need: usize, chunk_bytes: usize) -> Room {
        self.unjumbo(heap, need);
        if let Some(Jumbo::Filling { need: wanted, .. }) = &mut self.jumbo {
            *wanted = (*wanted).max(need);
            return self.fill_jumbo(slab);
        }
        if self.jumbo.is_some() {
            return Room::Ready;
        }
        let unparsed = self.chunk.map_or(0, |chunk| slab.filled_len(chunk) as usize - self.parsed);
        if need > chunk_bytes {
            let Some(held) = heap.begin(need) else { return Room::Wait };
            self.jumbo = Some(Jumbo::Filling { held, need });
            return self.fill_jumbo(slab);
        }
        let Some(chunk) = self.chunk else {
            self.chunk = slab.take(Class::Rx);
            self.parsed = 0;
            return if self.chunk.is_some() { Room::Ready } else { Room::Wait };
        };
        let room = slab.room(chunk);
        let enough = room >= READ_BYTES_MIN.min(chunk_bytes / 2) && unparsed + room >= need;
        if enough {
            return Room::Ready;
        }
        if unparsed == 0 {
            // Given back before the next is taken, so that a chunk that nothing borrows from is reused while it is hot.
            slab.release(chunk);
            self.chunk = slab.take(Class::Rx);
            self.parsed = 0;
            return if self.chunk.is_some() { Room::Ready } else { Room::Wait };
        }
        match slab.take(Class::Rx) {
            Some(next) => {
                slab.copy_between(chunk, self.parsed, unparsed, next);
                slab.release(chunk);
                self.chunk = Some(next);
                self.parsed = 0;
                Room::Ready
            }
            // The rest of this chunk is still better than nothing.
            None if room > 0 && unparsed + room >= need => Room::Ready,
            None => Room::Wait,
        }
    }

    /// New bytes came into the chunk: moves what a jumbo wants.
    pub fn filled(&mut self, slab: &mut Slab) -> Room {
        match self.jumbo {
            Some(Jumbo::Filling { .. }) => self.fill_jumbo(slab),
            _ => Room::Ready,
        }
    }

    /// A jumbo of which a part is left unparsed and not enough for the next record: what is left joins what follows.
    fn unjumbo(&mut self, heap: &HeapBudget, need: usize) {
        if let Some(Jumbo::Ready { bytes, parsed }) = &self.jumbo
            && bytes.len() - parsed < need
        {
            // Goes on at once, whatever the budget says: its bytes cannot go back to where they came from.
            let held = heap.reserve(bytes[*parsed..].to_vec(), need);
            self.jumbo = Some(Jumbo::Filling { held, need });
        }
    }

    fn fill_jumbo(&mut self, slab: &mut Slab) -> Room {
        let Some(Jumbo::Filling { held, need }) = &mut self.jumbo else { return Room::Ready };
        if let Some(chunk) = self.chunk {
            let available = &slab.filled(chunk)[self.parsed..];
            let wanted = need.saturating_sub(held.bytes.len()).min(available.len());
            let grown = held.bytes.len() + wanted;
            if grown > held.bytes.capacity() {
                // Grows with what arrived, never by the announced length alone.
                let capacity = (held.bytes.capacity() * 2).max(grown).max(256 * 1024).min((*need).max(grown));
                let more = capacity - held.reserved.min(capacity);
                held.used_bytes.fetch_add(more, Ordering::Relaxed);
                held.reserved += more;
                held.bytes.reserve_exact(capacity - held.bytes.len());
            }
            held.bytes.extend_from_slice(&available[..wanted]);
            self.parsed += wanted;
            if self.parsed == slab.filled_len(chunk) as usize && slab.room(chunk) == 0 {
                slab.release(chunk);
                self.chunk = None;
                self.parsed = 0;
            }
        }
        if held.bytes.len() >= *need {
            if let Some(Jumbo::Filling { held, .. }) = self.jumbo.take() {
                self.jumbo = Some(Jumbo::Ready { bytes: Bytes::from_owner(held), parsed: 0 });
            }
            return Room::Ready;
        }
        if self.chunk.is_none() {
            self.chunk = slab.take(Class::Rx);
            self.parsed = 0;
        }
        if self.chunk.is_some() { Room::Ready } else { Room::Wait }
    }

    /// Gives the chunk back (end of the flow).
    pub fn clear(&mut self, slab: &mut Slab) {
        if let Some(chunk) = self.chunk.take() {
            slab.release(chunk);
        }
        self.parsed = 0;
        self.jumbo = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uring::SlabLayout;

    const CHUNK: usize = 64 * 1024;

    fn slab(rx_chunks: usize) -> Slab {
        let layout = SlabLayout { rx_chunk_bytes: CHUNK, rx_chunks, tx_chunk_bytes: 4096, tx_chunks: 1 };
        Slab::unregistered(layout).unwrap()
    }

    /// As a read of the socket would.
    fn receive(cursor: &mut Cursor, slab: &mut Slab, bytes: &[u8]) -> usize {
        let chunk = cursor.chunk().unwrap();
        let taken = slab.append(chunk, bytes);
        cursor.filled(slab);
        taken
    }

    /// Records of every length, read in the order they were received, whatever the chunks' borders.
    #[test]
    fn records_come_out_as_they_went_in() {
        let lengths = [1, 5, CHUNK - 6, 10, CHUNK, CHUNK + 1, 3, 5 * CHUNK + 17, 1, 2 * CHUNK, 7, CHUNK - 1, 2];
        let all: Vec<u8> = (0..lengths.iter().sum::<usize>()).map(|i| ((i * 31) >> 3) as u8).collect();
        for piece in [977, CHUNK, 20_000] {
            let (mut slab, heap, mut cursor) = (slab(4), HeapBudget::new(1 << 20), Cursor::default());
            let (mut received, mut done) = (0, 0);
            for len in lengths {
                loop {
                    if let Some((window, from)) = cursor.window(&slab)
                        && window.bytes().len() - from >= len
                    {
                        assert!(window.bytes()[from..from + len] == all[done..done + len], "record of {len}");
                        cursor.consumed_to(from + len);
                        done += len;
                        break;
                    }
                    assert_eq!(cursor.make_room(&mut slab, &heap, len, CHUNK), Room::Ready);
                    if cursor.window(&slab).is_some_and(|(window, from)| window.bytes().len() - from >= len) {
                        continue;
                    }
                    let end = all.len().min(received + piece);
                    received += receive(&mut cursor, &mut slab, &all[received..end]);
                }
            }
            assert_eq!((done, heap.used_bytes()), (all.len(), 0));
            cursor.clear(&mut slab);
            assert_eq!(slab.free_count(Class::Rx), 4, "no chunk is lost");
        }
    }

    #[test]
    fn a_flow_stalled_inside_a_long_value_does_not_hold_the_others() {
        let (mut slab, heap) = (slab(8), HeapBudget::new(1 << 20));
        let (mut stalled, mut other, mut third) = (Cursor::default(), Cursor::default(), Cursor::default());
        assert_eq!(stalled.make_room(&mut slab, &heap, 5 * CHUNK, CHUNK), Room::Ready);
        receive(&mut stalled, &mut slab, &[1; 1000]);
        assert_eq!(other.make_room(&mut slab, &heap, 5 * CHUNK, CHUNK), Room::Ready);
        for _ in 0..5 {
            assert_eq!(other.make_room(&mut slab, &heap, 5 * CHUNK, CHUNK), Room::Ready);
            receive(&mut other, &mut slab, &[2; CHUNK]);
        }
        assert_eq!(other.window(&slab).map(|(window, _)| window.bytes().len()), Some(5 * CHUNK));
        // What is announced is reserved, so that both will find their memory.
        assert_eq!(heap.used_bytes(), 10 * CHUNK);
        assert_eq!(third.make_room(&mut slab, &heap, 7 * CHUNK, CHUNK), Room::Wait);
        other.consumed_to(5 * CHUNK);
        assert_eq!(third.make_room(&mut slab, &heap, 7 * CHUNK, CHUNK), Room::Ready);
    }
}
