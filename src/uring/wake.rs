//! Waking a ring from other threads: an eventfd that the ring reads from.
//!
//! A wake-up sets a flag first and writes only if the flag was clear, so that many wake-ups between two turns cost one
//! system call. The ring clears the flag before it hands out the completion: what was queued before a wake-up that found
//! the flag set is seen by whoever looks after that completion.

use super::error::UringError;
use super::socket::event_fd;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Wakes one ring from any thread.
#[derive(Clone, Debug)]
pub struct Waker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    fd: OwnedFd,
    pending: AtomicBool,
}

impl Waker {
    /// Makes the ring's present or next turn return with a completion of kind `Wake`. Cheap if one is on its way.
    pub fn wake(&self) {
        if !self.shared.pending.swap(true, Ordering::AcqRel) {
            let one = 1u64.to_ne_bytes();
            // SAFETY: eight readable bytes. It cannot block: the counter is at most 1, as the flag admits one write
            // between two reads.
            unsafe {
                libc::write(self.shared.fd.as_raw_fd(), one.as_ptr().cast(), one.len());
            }
        }
    }
}

/// The ring's end: the eventfd and the eight bytes that the kernel reads its counter into.
pub(super) struct WakeEnd {
    waker: Waker,
    counter: NonNull<u64>,
}

impl WakeEnd {
    pub(super) fn new() -> Result<Self, UringError> {
        let fd = event_fd().map_err(|source| UringError::System { call: "eventfd", source })?;
        let shared = Arc::new(Shared { fd, pending: AtomicBool::new(false) });
        Ok(Self { waker: Waker { shared }, counter: NonNull::from(Box::leak(Box::new(0u64))) })
    }

    pub(super) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    pub(super) fn fd(&self) -> RawFd {
        self.waker.shared.fd.as_raw_fd()
    }

    /// Where the kernel puts the counter; eight bytes, valid until `self` is dropped.
    pub(super) fn counter(&self) -> *mut u8 {
        self.counter.as_ptr().cast()
    }

    /// The wake-up was received: the next one writes again.
    pub(super) fn clear(&self) {
        self.waker.shared.pending.swap(false, Ordering::AcqRel);
    }
}

impl Drop for WakeEnd {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `Box::leak` and is freed once. The ring forgets a `WakeEnd` whose read is still
        // in flight instead of dropping it.
        drop(unsafe { Box::from_raw(self.counter.as_ptr()) });
    }
}
