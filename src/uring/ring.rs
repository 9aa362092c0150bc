//! One worker's ring: reads into chunks, chains of sends, and one turn that submits and reaps.
//!
//! In: [`Ring::read`] and [`Ring::send`] queue operations; nothing reaches the kernel before [`Ring::turn`] (or a full
//! queue). Out: one [`Completion`] for each read and each batch. Invariants: an operation holds its socket, chunks and
//! heap bytes until the kernel is done with them (zero-copy sends: until the notification, after their completion); a
//! socket has at most one read and one chain of sends in flight; a chain is submitted whole, and every send of it waits
//! for all of its bytes (MSG_WAITALL), so that after a failure the rest of the chain has not begun.
//! A ring belongs to the thread that made it.

mod end;
mod files;
mod submit;

use super::error::UringError;
use super::features::Features;
use super::op::{MessagePool, Op, OpKind, Segment, parts, user_data};
use super::settings::{RingSettings, SlabLayout};
use super::setup::{self, Modes, ZeroCopy};
use super::slab::{ChunkId, Shared, Slab};
use super::socket::Socket;
use super::wake::{WakeEnd, Waker};
use io_uring::types::Fd;
use io_uring::{IoUring, cqueue, opcode, squeue};
use slab::Slab as Table;
use std::rc::Rc;
use std::time::Duration;

/// What became of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// As given to [`Ring::read`] (and its like) or in [`Outgoing`]; 0 for a wake-up.
    pub token: u64,
    pub kind: CompletionKind,
    /// Bytes read, sent or written (which may be fewer than asked for), or the errno. A read of 0 bytes is the end of the
    /// stream, or of the file.
    pub result: Result<u32, i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompletionKind {
    Read,
    Send,
    FileWrite,
    FileRead,
    FilePunch,
    Wake,
}

/// One batch of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    pub segments: &'a [Segment],
    /// Bytes at the start of `segments` that went out before (a short write).
    pub skip_bytes: usize,
    pub token: u64,
}

/// What a ring did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// `io_uring_enter` calls.
    pub enters: u64,
    pub sqes: u64,
    pub cqes: u64,
    pub read_calls: u64,
    pub send_calls: u64,
    pub bytes_read: u64,
    pub bytes_sent: u64,
    /// Sends that accepted some bytes, but not all.
    pub short_writes: u64,
    /// Chains of which the rest was cancelled, because a send failed or came out short.
    pub chain_breaks: u64,
    /// Zero-copy sends.
    pub zc_sends: u64,
    /// Zero-copy sends of which the kernel reported that it copied after all (as far as it reports).
    pub zc_copied: u64,
    pub wakes: u64,
    /// Completions of operations that are unknown: always 0, unless there is a bug.
    pub stale: u64,
}

/// The ring.
pub struct Ring {
    // Dropped first: see `Drop`.
    io: IoUring,
    ring_index: Option<u32>,
    modes: Modes,
    table: Table<Op>,
    generation: u32,
    messages: MessagePool,
    /// Link flag of each entry that is queued and not yet submitted, oldest first (unused with SQPOLL).
    queued_links: Vec<bool>,
    /// Entries of the chain being built.
    chain: Vec<squeue::Entry>,
    wake: Option<WakeEnd>,
    wake_armed: bool,
    waker: Waker,
    counters: Counters,
    features: Features,
    /// A chain was cut, or the kernel keeps refusing: nothing is submitted any more.
    broken: bool,
    refusals: u32,
    slab: Slab,
    /// Of the slab that this ring was made with: what operations in flight refer to.
    shared: Rc<Shared>,
}

/// The whole arena is the only registered buffer.
const ARENA_BUFFER: u16 = 0;
const SEND_FLAGS: u32 = (libc::MSG_WAITALL | libc::MSG_NOSIGNAL) as u32;
/// IORING_SEND_ZC_REPORT_USAGE and IORING_RECVSEND_FIXED_BUF, in the `ioprio` field.
const ZC_REPORT_USAGE: u16 = 1 << 3;
const ZC_FIXED_BUFFER: u16 = 1 << 2;
/// IORING_NOTIF_USAGE_ZC_COPIED, in the result of a notification.
const NOTIF_COPIED: u32 = 1 << 31;

impl Ring {
    /// Makes a ring and its slab. To be called in the thread that will use it.
    pub fn new(settings: &RingSettings, layout: SlabLayout) -> Result<Self, UringError> {
        let made = setup::make(settings, layout)?;
        let wake = match WakeEnd::new() {
            Ok(wake) => wake,
            Err(e) => {
                if let Some(index) = made.ring_index {
                    setup::unregister_ring(&made.io, index);
                }
                return Err(e);
            }
        };
        let entries = made.io.params().sq_entries() as usize;
        Ok(Self {
            ring_index: made.ring_index,
            modes: made.modes,
            table: Table::with_capacity(entries * 2),
            generation: 0,
            messages: MessagePool::default(),
            queued_links: Vec::with_capacity(entries),
            chain: Vec::with_capacity(entries),
            waker: wake.waker(),
            wake: Some(wake),
            wake_armed: false,
            counters: Counters::default(),
            features: made.features,
            broken: false,
            refusals: 0,
            shared: made.slab.shared().clone(),
            slab: made.slab,
            io: made.io,
        })
    }

    pub fn features(&self) -> &Features {
        &self.features
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    pub fn slab(&self) -> &Slab {
        &self.slab
    }

    pub fn slab_mut(&mut self) -> &mut Slab {
        &mut self.slab
    }

    /// Operations that have not completed, among them zero-copy sends without their notification and the wake-up.
    pub fn in_flight(&self) -> usize {
        self.table.len()
    }

    /// Most batches in one chain.
    pub fn chain_batches_max(&self) -> usize {
        self.io.params().sq_entries() as usize
    }

    /// For other threads.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Reads what the socket has into the tail of a chunk. Until its completion the chunk has no room, and the socket
    /// takes no second read.
    pub fn read(&mut self, socket: &Rc<Socket>, chunk: ChunkId, token: u64) -> Result<(), UringError> {
        self.read_at_most(socket, chunk, usize::MAX, token)
    }

    /// As [`Ring::read`], at most `bytes_max` bytes.
    pub fn read_at_most(
        &mut self,
        socket: &Rc<Socket>,
        chunk: ChunkId,
        bytes_max: usize,
        token: u64,
    ) -> Result<(), UringError> {
        self.check_usable()?;
        if socket.reading.get() {
            return Err(UringError::ReadInFlight { what: "socket" });
        }
        self.make_room(1)?;
        let (start, len) = self.shared.begin_read(chunk, bytes_max)?;
        socket.reading.set(true);
        let data = self.insert(OpKind::Read { token, chunk, socket: socket.clone() });
        let fd = Fd(socket.raw());
        let entry = if self.modes.read_fixed {
            opcode::ReadFixed::new(fd, start, len, ARENA_BUFFER).build()
        } else {
            opcode::Recv::new(fd, start, len).build()
        };
        self.counters.read_calls += 1;
        // SAFETY: `begin_read` lent this part of the arena to the kernel alone until `end_read`, at this operation's
        // completion; the table's entry keeps the socket open, and the ring keeps the arena mapped until then.
        unsafe { self.push(&[entry.user_data(data)]) };
        Ok(())
    }

    /// Sends batches one after the other; each has its own completion. If one fails or comes out short, those behind it
    /// complete with ECANCELED and have not begun: what is left goes into the next chain, with `skip_bytes` for the short
    /// one. On an error nothing is sent.
    pub fn send(&mut self, socket: &Rc<Socket>, batches: &[Outgoing<'_>]) -> Result<(), UringError> {
        self.check_usable()?;
        if socket.sending.get() > 0 {
            return Err(UringError::SendInFlight);
        }
        let batches_max = self.chain_batches_max();
        if batches.len() > batches_max {
            return Err(UringError::ChainTooLong { batches: batches.len(), batches_max });
        }
        self.make_room(batches.len())?;
        let mut chain = std::mem::take(&mut self.chain);
        let built = self.build_chain(socket, batches, &mut chain);
        if built.is_ok() {
            socket.sending.set(batches.len() as u32);
            self.counters.send_calls += batches.len() as u64;
            // SAFETY: the table's entries keep the socket open, the messages in place and everything that their vectors
            // point into pinned or alive, until the kernel has reported that it is done with them.
            unsafe { self.push(&chain) };
        }
        chain.clear();
        self.chain = chain;
        built
    }

    /// Ends both directions of a socket, so that what is in flight on it completes.
    pub fn shutdown(&self, socket: &Socket) {
        socket.shutdown();
    }

    /// Submits everything queued, waits up to `wait` for a completion unless there is one already, and appends all
    /// completions to `out`. Makes at most one system call, and none if there is nothing to submit and nothing to wait
    /// for. Returning without completions is no error: the time was up, or a signal came.
    pub fn turn(&mut self, wait: Duration, out: &mut Vec<Completion>) -> Result<(), UringError> {
        self.check_usable()?;
        self.arm_wake()?;
        // The borrow publishes how far completions were consumed when it ends; a kernel that does not know would return
        // from a wait at once.
        let ready = !self.io.completion().is_empty();
        let wait = (!ready && !wait.is_zero()).then_some(wait);
        self.submit(wait)?;
        self.reap(out);
        Ok(())
    }

    /// Lets every send go out as zero-copy, for the probe.
    pub(super) fn force_zero_copy(&mut self, zero_copy: ZeroCopy) {
        self.modes.zero_copy = Some(zero_copy);
    }

    /// Takes all completions there are.
    fn reap(&mut self, out: &mut Vec<Completion>) {
        let Self { io, table, shared, messages, counters, wake, wake_armed, .. } = self;
        for entry in io.completion() {
            counters.cqes += 1;
            let (generation, index) = parts(entry.user_data());
            let Some(op) = table.get(index).filter(|op| op.generation == generation) else {
                counters.stale += 1;
                continue;
            };
            let more = cqueue::more(entry.flags());
            if cqueue::notif(entry.flags()) {
                counters.zc_copied += u64::from(entry.result() as u32 & NOTIF_COPIED != 0);
                if let OpKind::Send { mut message, .. } = table.remove(index).kind {
                    message.finish(shared, true);
                    messages.give(message);
                }
                continue;
            }
            let result = u32::try_from(entry.result()).map_err(|_| entry.result().wrapping_neg());
            if let OpKind::Send { token, socket, bytes, linked, zero_copy, .. } = &op.kind {
                count_send(counters, result, *bytes, *linked, *zero_copy);
                socket.sending.set(socket.sending.get().saturating_sub(1));
                out.push(Completion { token: *token, kind: CompletionKind::Send, result });
                if more {
                    continue;
                }
            }
            match table.remove(index).kind {
                OpKind::Read { token, chunk, socket } => {
                    let bytes = result.unwrap_or(0);
                    shared.end_read(chunk, bytes);
                    socket.reading.set(false);
                    counters.bytes_read += u64::from(bytes);
                    out.push(Completion { token, kind: CompletionKind::Read, result });
                }
                OpKind::Send { mut message, .. } => {
                    message.finish(shared, true);
                    messages.give(message);
                }
                OpKind::FileRead { token, chunk, .. } => {
                    shared.end_read(chunk, result.unwrap_or(0));
                    out.push(Completion { token, kind: CompletionKind::FileRead, result });
                }
                OpKind::FileWrite { token, chunk, .. } => {
                    shared.unpin(chunk.index());
                    out.push(Completion { token, kind: CompletionKind::FileWrite, result });
                }
                OpKind::FilePunch { token, .. } => {
                    out.push(Completion { token, kind: CompletionKind::FilePunch, result });
                }
                OpKind::Wake => {
                    *wake_armed = false;
                    if let Some(wake) = wake {
                        wake.clear();
                    }
                    counters.wakes += 1;
                    out.push(Completion { token: 0, kind: CompletionKind::Wake, result });
                }
            }
        }
    }

    /// Fills `chain` with the entries of `batches` and the table with their operations; all or none.
    fn build_chain(
        &mut self,
        socket: &Rc<Socket>,
        batches: &[Outgoing<'_>],
        chain: &mut Vec<squeue::Entry>,
    ) -> Result<(), UringError> {
        for (position, batch) in batches.iter().enumerate() {
            let mut message = self.messages.take();
            let (bytes, in_arena) = match message.fill(&self.shared, batch.segments, batch.skip_bytes) {
                Ok(filled) => filled,
                Err(e) => {
                    message.finish(&self.shared, false);
                    self.messages.give(message);
                    self.take_back(chain);
                    return Err(e);
                }
            };
            message.pin(&self.shared);
            let linked = position + 1 < batches.len();
            let zero_copy = self.modes.zero_copy.filter(|zc| socket.is_tcp() && bytes as usize >= zc.bytes_min);
            let fd = Fd(socket.raw());
            let header = message.header();
            let entry = match zero_copy {
                Some(zc) => {
                    let fixed = zc.fixed && in_arena;
                    let priority = if zc.report_usage { ZC_REPORT_USAGE } else { 0 };
                    let entry = opcode::SendMsgZc::new(fd, header).flags(SEND_FLAGS);
                    let entry = entry.ioprio(priority | if fixed { ZC_FIXED_BUFFER } else { 0 }).build();
                    if fixed { with_buffer_index(entry, ARENA_BUFFER) } else { entry }
                }
                None => opcode::SendMsg::new(fd, header).flags(SEND_FLAGS).build(),
            };
            let data = self.insert(OpKind::Send {
                token: batch.token,
                socket: socket.clone(),
                message,
                bytes,
                linked,
                zero_copy: zero_copy.is_some(),
            });
            let entry = if linked { entry.flags(squeue::Flags::IO_LINK) } else { entry };
            chain.push(entry.user_data(data));
        }
        Ok(())
    }

    /// Undoes the operations of a chain that will not be submitted.
    fn take_back(&mut self, chain: &mut Vec<squeue::Entry>) {
        for entry in chain.drain(..) {
            let (_, index) = parts(entry.get_user_data());
            if let OpKind::Send { mut message, .. } = self.table.remove(index).kind {
                message.finish(&self.shared, true);
                self.messages.give(message);
            }
        }
    }

    /// Enters an operation and returns its `user_data`.
    fn insert(&mut self, kind: OpKind) -> u64 {
        self.generation = self.generation.wrapping_add(1);
        let index = self.table.insert(Op { generation: self.generation, kind });
        user_data(self.generation, index)
    }

    fn arm_wake(&mut self) -> Result<(), UringError> {
        if self.wake_armed {
            return Ok(());
        }
        self.make_room(1)?;
        let Some((fd, counter)) = self.wake.as_ref().map(|wake| (wake.fd(), wake.counter())) else { return Ok(()) };
        self.wake_armed = true;
        let data = self.insert(OpKind::Wake);
        let entry = opcode::Read::new(Fd(fd), counter, 8).build().user_data(data);
        // SAFETY: the eight bytes and the eventfd live in `wake`, which is dropped only when this read has completed (else
        // leaked), and nobody else uses the bytes.
        unsafe { self.push(&[entry]) };
        Ok(())
    }

    fn check_usable(&self) -> Result<(), UringError> {
        // Two slabs can be swapped through `slab_mut`; then one's exclusive borrow would not protect the other.
        assert!(Rc::ptr_eq(&self.shared, self.slab.shared()), "this is another ring's slab");
        if self.broken { Err(UringError::Stopped) } else { Ok(()) }
    }
}

fn count_send(counters: &mut Counters, result: Result<u32, i32>, bytes: u32, linked: bool, zero_copy: bool) {
    let sent = result.unwrap_or(0);
    counters.bytes_sent += u64::from(sent);
    counters.short_writes += u64::from(sent > 0 && sent < bytes);
    // The first that fails breaks the chain; the cancelled ones behind it do not count again.
    counters.chain_breaks += u64::from(linked && sent < bytes && result != Err(libc::ECANCELED));
    counters.zc_sends += u64::from(zero_copy && result.is_ok());
}

/// Sets `buf_index`, for which the crate has no way on this operation.
fn with_buffer_index(mut entry: squeue::Entry, index: u16) -> squeue::Entry {
    const BUF_INDEX_OFFSET: usize = 40;
    const _: () = assert!(size_of::<squeue::Entry>() == 64);
    // SAFETY: an entry is a `struct io_uring_sqe`: 64 plain bytes, of which 40 and 41 are `buf_index`, where any value is
    // valid; the write stays inside and is aligned, as the entry is to 8 bytes.
    unsafe {
        std::ptr::from_mut(&mut entry).cast::<u8>().add(BUF_INDEX_OFFSET).cast::<u16>().write(index);
    }
    entry
}
