//! From the submission queue into the kernel: the one system call of a turn, and what its outcomes mean.
//!
//! Done without the crate's own `submit`, which neither uses a registered ring descriptor across calls nor asks for deferred
//! completions when it does not wait.

use super::Ring;
use crate::uring::error::UringError;
use io_uring::squeue;
use io_uring::types::Timespec;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// EAGAIN or EBUSY so often in a row means that it will not end.
const REFUSALS_MAX: u32 = 10_000;

pub(super) const ENTER_GETEVENTS: u32 = 1;
pub(super) const ENTER_SQ_WAKEUP: u32 = 1 << 1;
const ENTER_SQ_WAIT: u32 = 1 << 2;
const ENTER_EXT_ARG: u32 = 1 << 3;
const ENTER_REGISTERED_RING: u32 = 1 << 4;

impl Ring {
    /// One `io_uring_enter`, if needed.
    pub(super) fn submit(&mut self, wait: Option<Duration>) -> Result<(), UringError> {
        let sq = self.io.submission();
        let queued = sq.len() as u32;
        let deferred = sq.taskrun() || sq.cq_overflow();
        let asleep = self.modes.sqpoll && sq.need_wakeup();
        drop(sq);
        let due = if self.modes.sqpoll { asleep && queued > 0 } else { queued > 0 };
        if !due && wait.is_none() && !deferred {
            return Ok(());
        }
        // Deferred completions come only to a call with this flag, waiting or not.
        let mut flags = ENTER_GETEVENTS;
        if asleep {
            flags |= ENTER_SQ_WAKEUP;
        }
        match self.enter(queued, wait.is_some() as u32, flags, wait) {
            Ok(submitted) => self.note_submitted(submitted, queued),
            Err(e) => match e.raw_os_error() {
                // The time was up, or a signal came, before anything was submitted.
                Some(libc::ETIME | libc::EINTR) => Ok(()),
                // Short of memory, or of room for completions: reaping makes some, the next turn submits again.
                Some(libc::EAGAIN | libc::EBUSY) if self.refusals < REFUSALS_MAX => {
                    self.refusals += 1;
                    Ok(())
                }
                _ => {
                    self.broken = true;
                    Err(UringError::System { call: "io_uring_enter", source: e })
                }
            },
        }
    }

    fn note_submitted(&mut self, submitted: u32, queued: u32) -> Result<(), UringError> {
        self.refusals = 0;
        if self.modes.sqpoll {
            return Ok(());
        }
        let submitted = (submitted as usize).min(self.queued_links.len());
        let cut = submitted > 0 && submitted < queued as usize && self.queued_links[submitted - 1];
        self.queued_links.drain(..submitted);
        if cut {
            // The rest of the chain would start beside its beginning: better no more bytes than mixed ones.
            self.broken = true;
            return Err(UringError::ChainCut);
        }
        Ok(())
    }

    pub(super) fn enter(
        &mut self,
        to_submit: u32,
        complete_min: u32,
        flags: u32,
        wait: Option<Duration>,
    ) -> io::Result<u32> {
        self.counters.enters += 1;
        let time = wait.map(Timespec::from);
        let argument = EnterArgument {
            sigmask: 0,
            sigmask_bytes: 0,
            wait_min_us: 0,
            time: time.as_ref().map_or(0, |time| std::ptr::from_ref(time) as u64),
        };
        let (fd, flags) = match self.ring_index {
            Some(index) => (index as i32, flags | ENTER_REGISTERED_RING),
            None => (self.io.as_raw_fd(), flags),
        };
        let (flags, pointer, bytes) = match time {
            Some(_) => (flags | ENTER_EXT_ARG, std::ptr::from_ref(&argument), size_of::<EnterArgument>()),
            None => (flags, std::ptr::null(), 0),
        };
        // SAFETY: the descriptor is this ring's (or its index in this thread's table, where it was registered); the
        // argument and the time it points to live through the call. The queued entries are sound by `push`'s contract.
        let outcome =
            unsafe { libc::syscall(libc::SYS_io_uring_enter, fd, to_submit, complete_min, flags, pointer, bytes) };
        if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome as u32) }
    }

    /// Makes sure that `count` entries fit the submission queue, submitting what is queued if they do not.
    pub(super) fn make_room(&mut self, count: usize) -> Result<(), UringError> {
        let mut refused = 0;
        loop {
            let sq = self.io.submission();
            let (queued, room) = (sq.len() as u32, sq.capacity() - sq.len());
            let asleep = self.modes.sqpoll && sq.need_wakeup();
            drop(sq);
            if room >= count {
                return Ok(());
            }
            let flags = match (self.modes.sqpoll, asleep) {
                (false, _) => 0,
                (true, false) => ENTER_SQ_WAIT,
                (true, true) => ENTER_SQ_WAIT | ENTER_SQ_WAKEUP,
            };
            match self.enter(queued, 0, flags, None) {
                Ok(submitted) => self.note_submitted(submitted, queued)?,
                Err(e) => match e.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN | libc::EBUSY) if refused < REFUSALS_MAX => refused += 1,
                    _ => return Err(UringError::System { call: "io_uring_enter", source: e }),
                },
            }
        }
    }

    /// Queues entries, all at once: a polling kernel thread sees a chain whole or not at all.
    ///
    /// # Safety
    /// What the entries point to must stay valid and, where the kernel writes, unused by others until they complete. There
    /// must be room for them.
    pub(super) unsafe fn push(&mut self, entries: &[squeue::Entry]) {
        self.counters.sqes += entries.len() as u64;
        if !self.modes.sqpoll {
            let last = entries.len().saturating_sub(1);
            self.queued_links.extend((0..entries.len()).map(|position| position < last));
        }
        // SAFETY: by this function's own contract.
        let pushed = unsafe { self.io.submission().push_multiple(entries) };
        assert!(pushed.is_ok(), "room was made for {} entries", entries.len());
    }
}

/// `struct io_uring_getevents_arg`.
#[repr(C)]
struct EnterArgument {
    sigmask: u64,
    sigmask_bytes: u32,
    wait_min_us: u32,
    time: u64,
}
