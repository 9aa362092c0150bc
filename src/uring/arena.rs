//! One private mapping, aligned to a huge page: the memory of all chunks of a worker.
//!
//! Pages come on demand, so an unregistered arena is resident only as far as it was used (the slab reuses hot chunks
//! first). Registering pins, and so populates, all of it; [`Arena::populate`] does that beforehand in one pass with huge
//! pages, because the kernel's own page-by-page pinning of untouched memory takes seconds a GiB.

use super::error::UringError;
use std::io;
use std::ptr::{self, NonNull};

/// Size and alignment of a huge page.
pub(super) const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A mapping, unmapped when dropped.
pub(super) struct Arena {
    base: NonNull<u8>,
    bytes: usize,
}

impl Arena {
    /// Maps `bytes` (a multiple of 4096, not 0) of zeroed memory.
    pub(super) fn new(bytes: usize, huge_pages: bool) -> Result<Self, UringError> {
        let system = |source| UringError::System { call: "mmap of the buffers", source };
        let Some(span) = bytes.checked_add(HUGE_PAGE_BYTES) else {
            return Err(system(io::Error::from_raw_os_error(libc::ENOMEM)));
        };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe { libc::mmap(ptr::null_mut(), span, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(system(io::Error::last_os_error()));
        }
        let start = start.cast::<u8>();
        let head = start.align_offset(HUGE_PAGE_BYTES).min(HUGE_PAGE_BYTES);
        // SAFETY: `head <= HUGE_PAGE_BYTES`, so head + bytes <= span: both cuts lie within the mapping made above, at
        // page boundaries, and nothing refers to it yet.
        let base = unsafe {
            if head > 0 {
                libc::munmap(start.cast(), head);
            }
            let tail = span - head - bytes;
            if tail > 0 {
                libc::munmap(start.add(head + bytes).cast(), tail);
            }
            start.add(head)
        };
        let Some(base) = NonNull::new(base) else {
            return Err(system(io::Error::from_raw_os_error(libc::ENOMEM)));
        };
        let arena = Self { base, bytes };
        // Both are advice: a kernel without transparent huge pages refuses the first, which `huge_bytes` will show.
        arena.advise(if huge_pages { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE });
        // A child process has no business here, and copying pinned pages at fork would be dear.
        arena.advise(libc::MADV_DONTFORK);
        Ok(arena)
    }

    /// First byte.
    pub(super) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes all pages resident. Failure is not reported: registering would meet it again, with an error.
    pub(super) fn populate(&self) {
        self.advise(libc::MADV_POPULATE_WRITE);
    }

    fn advise(&self, advice: libc::c_int) -> bool {
        // SAFETY: the range is exactly the mapping that `self` owns; none of the advices used changes its contents.
        unsafe { libc::madvise(self.base.as_ptr().cast(), self.bytes, advice) == 0 }
    }

    /// How many bytes lie on huge pages now (by /proc/self/smaps; None if that cannot be read).
    pub(super) fn huge_bytes(&self) -> Option<u64> {
        let maps = std::fs::read_to_string("/proc/self/smaps").ok()?;
        let base = self.base.as_ptr() as usize;
        let mut inside = false;
        for line in maps.lines() {
            let first = line.split_ascii_whitespace().next()?;
            if let Some((from, to)) = first.split_once('-')
                && let (Ok(from), Ok(to)) = (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16))
            {
                inside = (from..to).contains(&base);
            } else if inside && first == "AnonHugePages:" {
                let kib: u64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
                // A neighbouring arena may share the line.
                return Some((kib * 1024).min(self.bytes as u64));
            }
        }
        None
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the range is the mapping that `self` owns. Whoever could still use it (views, the slab, operations in
        // flight) keeps the owner alive, or the ring has leaked it on purpose.
        unsafe {
            libc::munmap(self.base.as_ptr().cast(), self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_zeroed_and_written() {
        for huge in [false, true] {
            let arena = Arena::new(3 * HUGE_PAGE_BYTES + 4096, huge).unwrap();
            assert_eq!(arena.base() as usize % HUGE_PAGE_BYTES, 0);
            arena.populate();
            // SAFETY: within the mapping, and nobody else refers to it.
            let all = unsafe { std::slice::from_raw_parts_mut(arena.base(), arena.bytes()) };
            assert!(all.iter().all(|b| *b == 0));
            all.fill(7);
            assert!(arena.huge_bytes().is_some());
            if !huge {
                assert_eq!(arena.huge_bytes(), Some(0));
            }
        }
    }
}
