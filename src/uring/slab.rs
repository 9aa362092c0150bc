//! Chunks of fixed size, cut from one arena: receive chunks first, then send chunks.
//!
//! A chunk is taken with one hold, filled from its start (by the kernel or by us), and goes back to its free list with
//! the last hold. The filled prefix never changes; only the tail behind it is written. Besides the callers' holds there
//! are pins: by operations in flight and by [`ChunkView`]s. Callers cannot take a pin away, so a bookkeeping mistake of
//! theirs can neither free memory that the kernel uses nor change bytes that somebody looks at. Free lists are stacks: the
//! chunk used last is taken first, while it is still in the cache. Invariant: a chunk is free, or `holds + pins > 0`.

use super::arena::Arena;
use super::error::UringError;
use super::settings::SlabLayout;
use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::rc::Rc;

/// Most bytes that the kernel registers as one buffer.
pub(super) const ARENA_BYTES_MAX: usize = 1 << 30;
const PAGE_BYTES: usize = 4096;
/// What the bytes of a chunk become when it goes back, in debug builds.
const POISON: u8 = 0xA5;

/// Which of the two sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Receive.
    Rx,
    /// Send.
    Tx,
}

/// A chunk of one slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId(u32);

impl ChunkId {
    /// Position in the slab, for messages and tables.
    pub fn index(self) -> u32 {
        self.0
    }
}

/// The chunks of one worker. Not thread-safe: it belongs to the worker's thread.
pub struct Slab {
    shared: Rc<Shared>,
}

impl Slab {
    /// A slab that no ring knows: for tests and tools.
    pub fn unregistered(layout: SlabLayout) -> Result<Self, UringError> {
        Self::new(layout, false)
    }

    pub(super) fn new(layout: SlabLayout, huge_pages: bool) -> Result<Self, UringError> {
        Ok(Self { shared: Rc::new(Shared::new(layout, huge_pages)?) })
    }

    pub(super) fn shared(&self) -> &Rc<Shared> {
        &self.shared
    }

    /// Takes a free chunk: one hold, nothing filled. None: the slab is exhausted, wait for releases.
    pub fn take(&mut self, class: Class) -> Option<ChunkId> {
        let index = self.shared.free_list(class).borrow_mut().pop()?;
        let meta = self.shared.meta(index);
        meta.holds.set(1);
        meta.filled.set(0);
        meta.filled_at_ns.set(0);
        Some(ChunkId(index))
    }

    /// One more hold.
    ///
    /// # Panics
    /// If nobody holds the chunk: an internal error that would otherwise corrupt data.
    pub fn hold(&mut self, id: ChunkId) {
        let meta = self.shared.meta(id.0);
        let holds = meta.holds.get();
        assert!(holds > 0, "hold of chunk {}, which nobody holds", id.0);
        meta.holds.set(holds.checked_add(1).expect("fewer than 2^32 holds of a chunk"));
    }

    /// One hold less; with the last one (and the last pin) the chunk is free again.
    ///
    /// # Panics
    /// If nobody holds the chunk: an internal error that would otherwise corrupt data.
    pub fn release(&mut self, id: ChunkId) {
        let meta = self.shared.meta(id.0);
        let holds = meta.holds.get();
        assert!(holds > 0, "release of chunk {}, which nobody holds", id.0);
        meta.holds.set(holds - 1);
        if self.shared.free_if_unused(id.0) {
            self.shared.poison(id.0);
        }
    }

    /// Callers' holds of a chunk.
    pub fn holds(&self, id: ChunkId) -> u32 {
        self.shared.meta(id.0).holds.get()
    }

    /// Free chunks of a class.
    pub fn free_count(&self, class: Class) -> usize {
        self.shared.free_list(class).borrow().len()
    }

    /// All chunks of a class.
    pub fn total_count(&self, class: Class) -> usize {
        match class {
            Class::Rx => self.shared.layout.rx_chunks,
            Class::Tx => self.shared.layout.tx_chunks,
        }
    }

    pub fn class(&self, id: ChunkId) -> Class {
        self.shared.meta(id.0).class
    }

    /// Size of a chunk.
    pub fn capacity(&self, id: ChunkId) -> usize {
        self.shared.meta(id.0).capacity as usize
    }

    /// The filled prefix.
    pub fn filled(&self, id: ChunkId) -> &[u8] {
        let meta = self.shared.meta(id.0);
        debug_assert!(meta.in_use(), "filled of chunk {}, which nobody holds", id.0);
        self.shared.bytes(meta, meta.filled.get())
    }

    /// Length of the filled prefix.
    pub fn filled_len(&self, id: ChunkId) -> u32 {
        self.shared.meta(id.0).filled.get()
    }

    /// The filled prefix as a value of its own, which pins the chunk and does not borrow the slab.
    pub fn view(&self, id: ChunkId) -> ChunkView {
        let meta = self.shared.meta(id.0);
        // A pin on a free chunk would be undone by the next `take`.
        assert!(meta.in_use(), "view of chunk {}, which nobody holds", id.0);
        self.shared.pin(id.0);
        ChunkView { shared: self.shared.clone(), chunk: id.0, len: meta.filled.get() }
    }

    /// Bytes that can still be filled; 0 while a read is in flight.
    pub fn room(&self, id: ChunkId) -> usize {
        self.shared.meta(id.0).room() as usize
    }

    /// The tail that can still be filled; empty while a read is in flight. [`Slab::advance`] marks it as filled.
    pub fn spare(&mut self, id: ChunkId) -> &mut [u8] {
        let meta = self.shared.meta(id.0);
        // A free chunk has no writable tail: whoever asks has lost his hold.
        debug_assert!(meta.in_use(), "spare of chunk {}, which nobody holds", id.0);
        let (start, room) = (meta.offset as usize + meta.filled.get() as usize, meta.room() as usize);
        // SAFETY: the range lies in the arena (filled + room <= capacity). It is initialized: the mapping began zeroed.
        // Nobody else reaches it: `filled`, views and sends end at the filled mark, no read is in flight (room would be
        // 0), and `&mut self` excludes every other access through the slab for as long as the slice lives.
        unsafe { std::slice::from_raw_parts_mut(self.shared.arena.base().add(start), room) }
    }

    /// Marks `len` bytes of the tail as filled.
    ///
    /// # Panics
    /// If the tail is shorter: an internal error.
    pub fn advance(&mut self, id: ChunkId, len: usize) {
        let meta = self.shared.meta(id.0);
        assert!(len <= meta.room() as usize, "advance of chunk {} by {len}, which has room for {}", id.0, meta.room());
        meta.filled.set(meta.filled.get() + len as u32);
    }

    /// Copies as many bytes as there is room for; returns their number.
    pub fn append(&mut self, id: ChunkId, bytes: &[u8]) -> usize {
        let spare = self.spare(id);
        let len = bytes.len().min(spare.len());
        spare[..len].copy_from_slice(&bytes[..len]);
        self.advance(id, len);
        len
    }

    /// Appends `len` filled bytes, from `start` on, of one chunk to another: the head of a record moves to where its
    /// rest will arrive.
    ///
    /// # Panics
    /// If `from` does not hold them or `to` has no room for them: an internal error.
    pub fn copy_between(&mut self, from: ChunkId, start: usize, len: usize, to: ChunkId) {
        let source = self.shared.meta(from.0);
        let filled = source.filled.get() as usize;
        assert!(start <= filled && len <= filled - start, "bytes {start}+{len} of chunk {}: {filled} filled", from.0);
        let target = self.shared.meta(to.0);
        assert!(len <= target.room() as usize, "{len} bytes for chunk {}: room for {}", to.0, target.room());
        let base = self.shared.arena.base();
        // SAFETY: the source lies in a filled prefix and the target in an unfilled tail, both checked above, so both are
        // in the arena and do not overlap even within one chunk. No read is in flight on `to` (room would be 0).
        unsafe {
            std::ptr::copy_nonoverlapping(
                base.add(source.offset as usize + start),
                base.add(target.offset as usize + target.filled.get() as usize),
                len,
            );
        }
        target.filled.set(target.filled.get() + len as u32);
    }

    /// The chunk that a slice got from [`Slab::filled`] lies in, and its offset there. None: it is not from this arena.
    pub fn chunk_of(&self, bytes: &[u8]) -> Option<(ChunkId, u32)> {
        let offset = (bytes.as_ptr() as usize).checked_sub(self.shared.arena.base() as usize)?;
        if bytes.len() > self.shared.arena.bytes().checked_sub(offset)? {
            return None;
        }
        let layout = &self.shared.layout;
        let rx_bytes = layout.rx_chunk_bytes * layout.rx_chunks;
        let (index, start) = if offset < rx_bytes {
            (offset / layout.rx_chunk_bytes, offset % layout.rx_chunk_bytes)
        } else {
            let offset = offset - rx_bytes;
            let index = offset.checked_div(layout.tx_chunk_bytes)?;
            (layout.rx_chunks + index, offset % layout.tx_chunk_bytes)
        };
        let meta = self.shared.metas.get(index)?;
        (start + bytes.len() <= meta.capacity as usize).then_some((ChunkId(index as u32), start as u32))
    }

    /// Notes when a chunk was filled, for the residence time. Kept until the chunk is taken again.
    pub fn set_filled_at_ns(&mut self, id: ChunkId, now_ns: u64) {
        self.shared.meta(id.0).filled_at_ns.set(now_ns);
    }

    /// When the chunk was filled; 0 if that was not noted.
    pub fn filled_at_ns(&self, id: ChunkId) -> u64 {
        self.shared.meta(id.0).filled_at_ns.get()
    }

    /// Gives the noted filling times of the chunks that became free since the last call.
    pub fn drain_freed(&mut self, mut each: impl FnMut(u64)) {
        self.shared.freed_ns.borrow_mut().drain(..).for_each(&mut each);
    }

    /// Bytes of the arena.
    pub fn bytes(&self) -> usize {
        self.shared.arena.bytes()
    }
}

/// The filled prefix of a chunk as it was when the view was made. Keeps the chunk from being reused.
pub struct ChunkView {
    shared: Rc<Shared>,
    chunk: u32,
    len: u32,
}

impl ChunkView {
    /// Where in the chunk a part of this view begins. None: `bytes` are not part of it.
    pub fn offset_of(&self, bytes: &[u8]) -> Option<u32> {
        let offset = (bytes.as_ptr() as usize).checked_sub(self.as_ptr() as usize)?;
        (bytes.len() <= (self.len as usize).checked_sub(offset)?).then_some(offset as u32)
    }

    pub fn chunk(&self) -> ChunkId {
        ChunkId(self.chunk)
    }
}

impl Deref for ChunkView {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.shared.bytes(self.shared.meta(self.chunk), self.len)
    }
}

impl Clone for ChunkView {
    fn clone(&self) -> Self {
        self.shared.pin(self.chunk);
        Self { shared: self.shared.clone(), chunk: self.chunk, len: self.len }
    }
}

impl Drop for ChunkView {
    fn drop(&mut self) {
        // Not poisoned here: a stale `filled` slice could be looking on, and a view has no exclusive access.
        self.shared.unpin(self.chunk);
    }
}

/// One chunk's bookkeeping.
struct Meta {
    offset: u32,
    capacity: u32,
    class: Class,
    holds: Cell<u32>,
    pins: Cell<u32>,
    filled: Cell<u32>,
    reading: Cell<bool>,
    filled_at_ns: Cell<u64>,
}

impl Meta {
    fn new(offset: usize, capacity: usize, class: Class) -> Self {
        Self {
            offset: offset as u32,
            capacity: capacity as u32,
            class,
            holds: Cell::new(0),
            pins: Cell::new(0),
            filled: Cell::new(0),
            reading: Cell::new(false),
            filled_at_ns: Cell::new(0),
        }
    }

    fn in_use(&self) -> bool {
        self.holds.get() > 0 || self.pins.get() > 0
    }

    fn room(&self) -> u32 {
        if self.reading.get() { 0 } else { self.capacity - self.filled.get() }
    }
}

/// What slab, views and ring share.
pub(super) struct Shared {
    arena: Arena,
    layout: SlabLayout,
    metas: Box<[Meta]>,
    free_rx: RefCell<Vec<u32>>,
    free_tx: RefCell<Vec<u32>>,
    freed_ns: RefCell<Vec<u64>>,
}

impl Shared {
    fn new(layout: SlabLayout, huge_pages: bool) -> Result<Self, UringError> {
        let bytes = checked_bytes(&layout)?;
        let rx_bytes = layout.rx_chunk_bytes * layout.rx_chunks;
        let rx = (0..layout.rx_chunks).map(|i| Meta::new(i * layout.rx_chunk_bytes, layout.rx_chunk_bytes, Class::Rx));
        let tx = (0..layout.tx_chunks)
            .map(|i| Meta::new(rx_bytes + i * layout.tx_chunk_bytes, layout.tx_chunk_bytes, Class::Tx));
        let metas: Box<[Meta]> = rx.chain(tx).collect();
        let (rx_chunks, chunks) = (layout.rx_chunks as u32, metas.len() as u32);
        Ok(Self {
            arena: Arena::new(bytes, huge_pages)?,
            layout,
            // Reversed, so that the lowest addresses are used first.
            free_rx: RefCell::new((0..rx_chunks).rev().collect()),
            free_tx: RefCell::new((rx_chunks..chunks).rev().collect()),
            freed_ns: RefCell::new(Vec::with_capacity(metas.len())),
            metas,
        })
    }

    pub(super) fn arena(&self) -> &Arena {
        &self.arena
    }

    fn meta(&self, index: u32) -> &Meta {
        &self.metas[index as usize]
    }

    fn free_list(&self, class: Class) -> &RefCell<Vec<u32>> {
        match class {
            Class::Rx => &self.free_rx,
            Class::Tx => &self.free_tx,
        }
    }

    /// The first `len` bytes of a chunk, at most the filled ones of the present or an earlier, pinned, moment.
    fn bytes(&self, meta: &Meta, len: u32) -> &[u8] {
        debug_assert!(len <= meta.filled.get());
        // SAFETY: `len` never exceeds the filled mark (it is the mark, or was it when a view was made, and the mark only
        // grows while the chunk is pinned), so the range is in the arena and initialized. It does not change while
        // the slice lives: only tails behind the mark are written, and the mark is reset only by `Slab::take`, which needs
        // `&mut Slab` (excluded by the borrow behind `filled`) and a chunk without pins (excluded by a view's pin).
        unsafe { std::slice::from_raw_parts(self.arena.base().add(meta.offset as usize), len as usize) }
    }

    /// The address and length of filled bytes, for the kernel to read. None: not all of them are filled.
    pub(super) fn filled_part(&self, id: ChunkId, start: u32, len: u32) -> Option<*mut u8> {
        let meta = self.meta(id.0);
        let end = start.checked_add(len)?;
        if end > meta.filled.get() || !meta.in_use() {
            return None;
        }
        // SAFETY: start <= filled <= capacity: the address is within the chunk, so within the arena.
        Some(unsafe { self.arena.base().add(meta.offset as usize + start as usize) })
    }

    /// The error for a part that `filled_part` refused.
    pub(super) fn segment_outside(&self, id: ChunkId, start: u32, len: u32) -> UringError {
        UringError::SegmentOutside { chunk: id.0, start, len, filled: self.meta(id.0).filled.get() }
    }

    /// Lends the tail of a chunk, at most `len_max` bytes, to the kernel: pinned and unreachable until `end_read`.
    pub(super) fn begin_read(&self, id: ChunkId, len_max: usize) -> Result<(*mut u8, u32), UringError> {
        let meta = self.meta(id.0);
        assert!(meta.holds.get() > 0, "read into chunk {}, which nobody holds", id.0);
        if meta.reading.get() {
            return Err(UringError::ReadInFlight { what: "chunk" });
        }
        let len = (meta.room() as usize).min(len_max) as u32;
        if len == 0 {
            return Err(UringError::ChunkFull { chunk: id.0 });
        }
        meta.reading.set(true);
        self.pin(id.0);
        // SAFETY: filled < capacity, so the address is within the chunk, so within the arena.
        Ok((unsafe { self.arena.base().add(meta.offset as usize + meta.filled.get() as usize) }, len))
    }

    /// The read is over: `len` bytes of the tail are filled.
    pub(super) fn end_read(&self, id: ChunkId, len: u32) {
        let meta = self.meta(id.0);
        assert!(meta.reading.replace(false), "end of a read on chunk {}, which has none", id.0);
        assert!(len <= meta.capacity - meta.filled.get(), "the kernel read {len} bytes beyond chunk {}", id.0);
        meta.filled.set(meta.filled.get() + len);
        self.unpin(id.0);
    }

    pub(super) fn pin(&self, index: u32) {
        let meta = self.meta(index);
        meta.pins.set(meta.pins.get().checked_add(1).expect("fewer than 2^32 pins of a chunk"));
    }

    pub(super) fn unpin(&self, index: u32) {
        let meta = self.meta(index);
        assert!(meta.pins.get() > 0, "unpin of chunk {index}, which has no pins");
        meta.pins.set(meta.pins.get() - 1);
        self.free_if_unused(index);
    }

    /// Puts a chunk that nobody holds or pins any more on its free list. The caller has just taken the last of either.
    fn free_if_unused(&self, index: u32) -> bool {
        let meta = self.meta(index);
        if meta.in_use() {
            return false;
        }
        let filled_at_ns = meta.filled_at_ns.get();
        let mut freed = self.freed_ns.borrow_mut();
        // Bounded, in case that nobody drains it.
        if filled_at_ns != 0 && freed.len() < freed.capacity() {
            freed.push(filled_at_ns);
        }
        self.free_list(meta.class).borrow_mut().push(index);
        true
    }

    /// Overwrites the filled prefix of a free chunk in debug builds, so that a use after release shows. Only to be
    /// called from a method that borrows the slab exclusively.
    fn poison(&self, index: u32) {
        let meta = self.meta(index);
        if cfg!(debug_assertions) && !meta.in_use() {
            // SAFETY: nobody holds or pins the chunk, so no view, send or read refers to it, and the caller's exclusive
            // borrow of the slab excludes slices from `filled`. The range is the chunk's own.
            unsafe {
                self.arena.base().add(meta.offset as usize).write_bytes(POISON, meta.filled.get() as usize);
            }
        }
    }
}

/// The size of the arena, if the layout can be.
fn checked_bytes(layout: &SlabLayout) -> Result<usize, UringError> {
    for (name, bytes, chunks) in
        [("receive", layout.rx_chunk_bytes, layout.rx_chunks), ("send", layout.tx_chunk_bytes, layout.tx_chunks)]
    {
        if chunks > 0 && (bytes == 0 || bytes % PAGE_BYTES != 0) {
            return Err(UringError::Layout {
                reason: format!("a {name} chunk of {bytes} bytes is not a multiple of {PAGE_BYTES}"),
            });
        }
    }
    let rx = layout.rx_chunk_bytes.saturating_mul(layout.rx_chunks);
    let tx = layout.tx_chunk_bytes.saturating_mul(layout.tx_chunks);
    let bytes = rx.saturating_add(tx);
    if bytes > ARENA_BYTES_MAX {
        return Err(UringError::ArenaTooLarge { bytes: bytes as u64, bytes_max: ARENA_BYTES_MAX as u64 });
    }
    if bytes == 0 {
        return Err(UringError::Layout { reason: "it has no chunks".to_string() });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
