//! Where the bytes of lagging flows go: chunks set apart for them, and slots of one file a worker.
//!
//! In: chunks full of received bytes. Out: places for them, and the space back. The file has no name and no structure: its
//! worth ends with the process, so nothing in it needs to be found again. Invariants: the files of all workers together
//! never take more than `--spool-max`; a slot is used by one segment at a time, and by none while its space is given back;
//! the chunks set apart suffice to read every flow and to bring every flow's bytes back, whatever the rest of the slab does.

use super::error::EngineError;
use super::settings::SpoolSettings;
use crate::uring::{ChunkId, Class, Slab, UnnamedFile};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Free space at the end of a file is given back in pieces of this size, and only if as much again stays free.
const TRIM_BYTES: u64 = 64 << 20;

/// Disk space that the files of all workers take together.
pub struct DiskShare {
    taken_bytes: AtomicU64,
    bytes_max: u64,
}

impl DiskShare {
    pub fn new(bytes_max: u64) -> Arc<Self> {
        Arc::new(Self { taken_bytes: AtomicU64::new(0), bytes_max })
    }

    fn grow(&self, bytes: u64) -> bool {
        let grown = |taken: u64| taken.checked_add(bytes).filter(|sum| *sum <= self.bytes_max);
        self.taken_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown).is_ok()
    }

    fn shrink(&self, bytes: u64) {
        self.taken_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Whether files can be made as the settings say, before anything is begun.
pub fn check(settings: Option<&SpoolSettings>) -> Result<(), EngineError> {
    let Some(settings) = settings else { return Ok(()) };
    SpoolStart::open(settings, &DiskShare::new(0)).map(drop)
}

/// What a worker is given to spool with.
pub struct SpoolStart {
    pub file: UnnamedFile,
    pub share: Arc<DiskShare>,
}

impl SpoolStart {
    /// Makes a file, as the settings say.
    pub fn open(settings: &SpoolSettings, share: &Arc<DiskShare>) -> Result<Self, EngineError> {
        let file = UnnamedFile::open(&settings.dir).map_err(|cause| {
            EngineError::Refused(format!(
                "no spool file can be made in {}: {cause}; name another directory with --spool, or do without (--spool none)",
                settings.dir.display()
            ))
        })?;
        Ok(Self { file, share: share.clone() })
    }
}

/// Why nothing more can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hurdle {
    /// `--spool-max` is used up.
    Cap,
    /// The file cannot grow (a full disk, a quota, a limit of file sizes): its slots are used again.
    NoSpace(i32),
    /// Writing failed.
    Failed(i32),
}

/// One worker's file.
pub struct SpoolFile {
    pub file: Rc<UnnamedFile>,
    share: Arc<DiskShare>,
    slot_bytes: u64,
    /// Slots below `slots_count` that no segment uses.
    free: BTreeSet<u32>,
    slots_count: u32,
    /// Slots at the end whose space is being given back.
    trimming: u32,
    /// The file system cannot give space back.
    keeps_space: bool,
    hurdle: Option<Hurdle>,
    pub bytes_written: u64,
    pub bytes_read: u64,
    /// Most bytes of slots in use.
    pub bytes_max: u64,
}

impl SpoolFile {
    pub fn new(start: SpoolStart, slot_bytes: usize) -> Self {
        Self {
            file: Rc::new(start.file),
            share: start.share,
            slot_bytes: slot_bytes as u64,
            free: BTreeSet::new(),
            slots_count: 0,
            trimming: 0,
            keeps_space: false,
            hurdle: None,
            bytes_written: 0,
            bytes_read: 0,
            bytes_max: 0,
        }
    }

    /// Where a slot begins in the file.
    pub fn offset(&self, slot: u32) -> u64 {
        u64::from(slot) * self.slot_bytes
    }

    /// Bytes of slots in use.
    pub fn used_bytes(&self) -> u64 {
        (u64::from(self.slots_count) - self.free.len() as u64) * self.slot_bytes
    }

    /// What keeps the next segment from being written, as far as is known.
    pub fn hurdle(&self) -> Option<Hurdle> {
        self.hurdle
    }

    /// A slot to write to, the lowest first. None: see `hurdle`.
    pub fn take_slot(&mut self) -> Option<u32> {
        if matches!(self.hurdle, Some(Hurdle::Failed(_))) {
            return None;
        }
        let slot = match self.free.pop_first() {
            Some(slot) => slot,
            None => self.grow()?,
        };
        if self.hurdle == Some(Hurdle::Cap) {
            self.hurdle = None;
        }
        self.bytes_max = self.bytes_max.max(self.used_bytes());
        Some(slot)
    }

    fn grow(&mut self) -> Option<u32> {
        if matches!(self.hurdle, Some(Hurdle::NoSpace(_))) || self.trimming > 0 {
            return None;
        }
        if !self.share.grow(self.slot_bytes) {
            self.hurdle = Some(Hurdle::Cap);
            return None;
        }
        let slot = self.slots_count;
        self.slots_count = slot.checked_add(1)?;
        Some(slot)
    }

    /// The segment in it was read back, or is not wanted any more.
    pub fn give_slot(&mut self, slot: u32) {
        self.free.insert(slot);
    }

    /// Writing to a slot failed: it is never used again.
    pub fn write_failed(&mut self, errno: i32) {
        if matches!(self.hurdle, Some(Hurdle::Failed(_))) {
            return;
        }
        let grows_no_more = matches!(errno, libc::ENOSPC | libc::EDQUOT | libc::EFBIG);
        let hurdle = if grows_no_more { Hurdle::NoSpace(errno) } else { Hurdle::Failed(errno) };
        if self.hurdle != Some(hurdle) {
            let cause = std::io::Error::from_raw_os_error(errno);
            tracing::warn!(%cause, "writing to the spool failed; from here on memory must do, or what was spooled so far");
        }
        self.hurdle = Some(hurdle);
    }

    /// A part at the file's end to give back: its offset and length. `trimmed` must follow.
    pub fn trim(&mut self) -> Option<(u64, u64)> {
        let slots = u32::try_from(TRIM_BYTES / self.slot_bytes).unwrap_or(u32::MAX).max(1);
        if self.trimming > 0 || self.keeps_space || self.free.len() < slots as usize * 2 {
            return None;
        }
        let first = self.slots_count.checked_sub(slots)?;
        if self.free.range(first..).count() < slots as usize {
            return None;
        }
        self.free.split_off(&first);
        self.slots_count = first;
        self.trimming = slots;
        Some((self.offset(first), u64::from(slots) * self.slot_bytes))
    }

    /// The space was given back, or cannot be.
    pub fn trimmed(&mut self, result: Result<u32, i32>) {
        let slots = std::mem::take(&mut self.trimming);
        match result {
            Ok(_) => self.share.shrink(u64::from(slots) * self.slot_bytes),
            Err(errno) => {
                tracing::debug!(errno, "the file system does not give the spool's space back before the end");
                self.keeps_space = true;
                self.free.extend(self.slots_count..self.slots_count + slots);
                self.slots_count += slots;
            }
        }
    }
}

impl Drop for SpoolFile {
    fn drop(&mut self) {
        self.share.shrink(u64::from(self.slots_count + self.trimming) * self.slot_bytes);
    }
}

/// Chunks set apart for one flow: one that the socket is read into, one or two that are being written, one that comes back.
const CHUNKS_PER_FLOW: usize = 3;
/// And for all flows of a worker, so that one in a flood may have more.
const CHUNKS_SHARED: usize = 2;

/// Receive chunks to set apart for `flows` flows.
pub fn reserve_chunks(flows: usize) -> usize {
    flows * CHUNKS_PER_FLOW + CHUNKS_SHARED
}

/// The chunks set apart, and the rest of the slab as far as the decoders can do without.
pub struct ChunkPool {
    idle: Vec<ChunkId>,
    /// Chunks of the reserve that are in use.
    owed: usize,
    flows: usize,
    /// Flows that hold the chunk that is kept for bringing their bytes back.
    bringing_back: usize,
    /// Free chunks of the slab that are left to the decoders.
    left_free: usize,
}

impl ChunkPool {
    /// Takes `reserve` chunks out of a fresh slab.
    pub fn new(slab: &mut Slab, flows: usize, reserve: usize) -> Self {
        let idle: Vec<ChunkId> = (0..reserve).map_while(|_| slab.take(Class::Rx)).collect();
        let left_free = (slab.total_count(Class::Rx) - idle.len()) / 2;
        Self { idle, owed: 0, flows, bringing_back: 0, left_free }
    }

    /// More bytes should not be kept in memory.
    pub fn is_tight(&self, slab: &Slab) -> bool {
        slab.free_count(Class::Rx) <= self.left_free
    }

    /// A chunk to read a socket into.
    pub fn take(&mut self, slab: &mut Slab) -> Option<ChunkId> {
        if !self.is_tight(slab) {
            return slab.take(Class::Rx);
        }
        let kept = self.flows.saturating_sub(self.bringing_back);
        if self.idle.len() > kept { self.take_idle() } else { None }
    }

    /// A chunk to read spooled bytes back into, and whether it is the one that is kept for a flow's `first`.
    pub fn take_back(&mut self, slab: &mut Slab, first: bool) -> Option<(ChunkId, bool)> {
        if !self.is_tight(slab) {
            return slab.take(Class::Rx).map(|chunk| (chunk, false));
        }
        if !first {
            return None;
        }
        let chunk = self.take_idle()?;
        self.bringing_back += 1;
        Some((chunk, true))
    }

    fn take_idle(&mut self) -> Option<ChunkId> {
        let chunk = self.idle.pop()?;
        self.owed += 1;
        Some(chunk)
    }

    /// Gives a chunk back that nothing refers to any more; `kept`: as `take_back` said.
    pub fn give(&mut self, slab: &mut Slab, chunk: ChunkId, kept: bool) {
        if kept {
            self.bringing_back = self.bringing_back.saturating_sub(1);
        }
        slab.release(chunk);
        if self.owed > 0
            && let Some(chunk) = slab.take(Class::Rx)
        {
            self.idle.push(chunk);
            self.owed -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uring::SlabLayout;

    const SLOT: usize = 1 << 20;

    fn file(share: &Arc<DiskShare>) -> (tempfile::TempDir, SpoolFile) {
        let dir = tempfile::tempdir().unwrap();
        let settings = SpoolSettings { dir: dir.path().to_owned(), bytes_max: 0 };
        let start = SpoolStart::open(&settings, share).unwrap();
        (dir, SpoolFile::new(start, SLOT))
    }

    #[test]
    fn the_cap_is_one_for_all_files() {
        let share = DiskShare::new(5 << 20);
        let ((_a, mut a), (_b, mut b)) = (file(&share), file(&share));
        let slots: Vec<u32> = (0..3).map(|_| a.take_slot().unwrap()).collect();
        assert_eq!((slots, b.take_slot(), b.take_slot()), (vec![0, 1, 2], Some(0), Some(1)));
        assert_eq!((a.take_slot(), a.hurdle()), (None, Some(Hurdle::Cap)));
        a.give_slot(1);
        // Room in one's own file costs nothing; the other one has no right to it.
        assert_eq!((b.take_slot(), a.take_slot(), a.hurdle()), (None, Some(1), None));
        assert_eq!((a.used_bytes(), a.bytes_max), (3 << 20, 3 << 20));
        drop(a);
        assert_eq!((b.take_slot(), b.take_slot(), b.take_slot(), b.take_slot()), (Some(2), Some(3), Some(4), None));
    }

    #[test]
    fn a_full_disk_stops_growth_and_a_broken_one_everything() {
        let share = DiskShare::new(1 << 40);
        let (_dir, mut file) = file(&share);
        let (first, second) = (file.take_slot().unwrap(), file.take_slot().unwrap());
        file.write_failed(libc::ENOSPC);
        assert_eq!((second, file.take_slot(), file.hurdle()), (1, None, Some(Hurdle::NoSpace(libc::ENOSPC))));
        file.give_slot(first);
        assert_eq!((file.take_slot(), file.take_slot()), (Some(0), None));
        file.write_failed(libc::EIO);
        file.give_slot(first);
        assert_eq!((file.take_slot(), file.hurdle()), (None, Some(Hurdle::Failed(libc::EIO))));
    }

    #[test]
    fn space_at_the_end_is_given_back() {
        let share = DiskShare::new(200 << 20);
        let (_dir, mut file) = file(&share);
        for _ in 0..200 {
            file.take_slot().unwrap();
        }
        assert_eq!(file.take_slot(), None);
        (2..199).for_each(|slot| file.give_slot(slot));
        assert_eq!(file.trim(), None, "the last one is in use");
        file.give_slot(199);
        assert_eq!(file.trim(), Some((136 << 20, 64 << 20)));
        // What is being given back must not be written to.
        assert_eq!(file.trim(), None);
        let again: Vec<u32> = std::iter::from_fn(|| file.take_slot()).collect();
        assert_eq!((again.first(), again.last(), again.len()), (Some(&2), Some(&135), 134));
        file.trimmed(Ok(0));
        assert_eq!((file.take_slot(), share.taken_bytes.load(Ordering::Relaxed)), (Some(136), 137 << 20));
        (2..137).for_each(|slot| file.give_slot(slot));
        assert!(file.trim().is_some());
        file.trimmed(Err(libc::EOPNOTSUPP));
        assert_eq!((file.trim(), file.slots_count, file.free.len()), (None, 137, 135));
    }

    /// Flows in a flood never take what is needed to bring bytes back.
    #[test]
    fn the_way_back_is_kept_free() {
        let layout = SlabLayout { rx_chunk_bytes: 4096, rx_chunks: 20, tx_chunk_bytes: 4096, tx_chunks: 1 };
        let mut slab = Slab::unregistered(layout).unwrap();
        let mut pool = ChunkPool::new(&mut slab, 2, reserve_chunks(2));
        assert_eq!(slab.free_count(Class::Rx), 12);
        let mut flood: Vec<ChunkId> = std::iter::from_fn(|| pool.take(&mut slab)).collect();
        assert_eq!((flood.len(), slab.free_count(Class::Rx)), (6 + 6, 6), "half of the slab is left to the decoders");
        assert!(pool.take_back(&mut slab, false).is_none());
        let back: Vec<(ChunkId, bool)> = (0..2).map(|_| pool.take_back(&mut slab, true).unwrap()).collect();
        assert!(back.iter().all(|(_, kept)| *kept) && pool.take_back(&mut slab, true).is_none());
        // What comes back fills the reserve first.
        pool.give(&mut slab, flood.pop().unwrap(), false);
        assert_eq!((slab.free_count(Class::Rx), pool.idle.len()), (6, 1));
        for (chunk, kept) in back {
            pool.give(&mut slab, chunk, kept);
        }
        assert_eq!((pool.idle.len(), pool.bringing_back), (3, 0));
        flood.into_iter().for_each(|chunk| pool.give(&mut slab, chunk, false));
        assert_eq!((slab.free_count(Class::Rx), pool.idle.len(), pool.owed), (12, 8, 0));
    }
}
