//! The end of a ring: nothing that the kernel may still touch is given back.
//!
//! Sockets are shut down, operations cancelled, and completions awaited, for a bounded time. What is in flight even then is
//! leaked, with the arena. Only then are the ring's descriptor unregistered (a registered one would live on until the thread
//! ends), the io_uring closed and the arena unmapped, in that order.

use super::Ring;
use super::submit::{ENTER_GETEVENTS, ENTER_SQ_WAKEUP};
use crate::uring::op::OpKind;
use crate::uring::setup;
use io_uring::types::{CancelBuilder, Timespec};
use std::time::{Duration, Instant};

/// How long the end of a ring waits for cancelled operations, and once more for the notifications of zero-copy sends.
const DRAIN_WAIT: Duration = Duration::from_millis(1000);

impl Drop for Ring {
    fn drop(&mut self) {
        for (_, op) in &self.table {
            if let OpKind::Read { socket, .. } | OpKind::Send { socket, .. } = &op.kind {
                socket.shutdown();
            }
        }
        // Cancelling misses what a polling kernel thread has not begun yet; this ends the read of the eventfd in any case.
        self.waker.wake();
        let mut drained = self.in_kernel() == 0;
        if !drained {
            let patience = Timespec::from(Duration::from_millis(100));
            // Whatever it could not cancel completes through the shutdown above, or is waited for below.
            let _ = self.io.submitter().register_sync_cancel(Some(patience), CancelBuilder::any());
            drained = self.drain(Instant::now() + DRAIN_WAIT);
        }
        if !drained {
            // What is left waits for acknowledgements of bytes that a peer does not read.
            for (_, op) in &self.table {
                if let OpKind::Send { socket, zero_copy: true, .. } = &op.kind {
                    socket.reset();
                }
            }
            drained = self.drain(Instant::now() + DRAIN_WAIT);
        }
        if !drained {
            // The kernel may still write to or read from these: they must never be used for anything else.
            std::mem::forget(std::mem::take(&mut self.table));
            std::mem::forget(self.wake.take());
            std::mem::forget(self.shared.clone());
        }
        if let Some(index) = self.ring_index.take() {
            setup::unregister_ring(&self.io, index);
        }
        // Holds of operations that never reached the kernel.
        for op in self.table.drain() {
            match op.kind {
                OpKind::Read { chunk, socket, .. } => {
                    self.shared.end_read(chunk, 0);
                    socket.reading.set(false);
                }
                OpKind::Send { mut message, socket, .. } => {
                    message.finish(&self.shared, true);
                    socket.sending.set(0);
                }
                OpKind::FileRead { chunk, .. } => self.shared.end_read(chunk, 0),
                OpKind::FileWrite { chunk, .. } => self.shared.unpin(chunk.index()),
                OpKind::FilePunch { .. } | OpKind::Wake => {}
            }
        }
        // Then the fields, in order: the io_uring is closed before the slab is unmapped.
    }
}

impl Ring {
    /// Operations that the kernel may know about.
    fn in_kernel(&mut self) -> usize {
        let queued = if self.modes.sqpoll { 0 } else { self.io.submission().len() };
        self.table.len().saturating_sub(queued)
    }

    /// Waits, at most until `deadline`, until the kernel knows of nothing any more. Submits nothing.
    fn drain(&mut self, deadline: Instant) -> bool {
        let mut out = Vec::new();
        loop {
            self.reap(&mut out);
            out.clear();
            if self.in_kernel() == 0 {
                return true;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                return false;
            };
            let flags = ENTER_GETEVENTS | if self.modes.sqpoll { ENTER_SQ_WAKEUP } else { 0 };
            let slice = left.min(Duration::from_millis(20));
            if let Err(e) = self.enter(0, 1, flags, Some(slice))
                && !matches!(e.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY))
            {
                return false;
            }
        }
    }
}
