//! Operations in flight: what each one keeps alive until the kernel is done with it.
//!
//! `user_data` is generation and index of an entry, so that a stale completion never meets an entry's next user. The
//! `msghdr` and the vector of a send live in a [`Message`] at a fixed address, recycled through a pool: sending allocates
//! nothing once the pool is warm.

use super::error::UringError;
use super::file::UnnamedFile;
use super::slab::{ChunkId, Shared};
use super::socket::Socket;
use bytes::Bytes;
use std::ptr::{self, NonNull};
use std::rc::Rc;

/// Most parts of one vector (UIO_MAXIOV).
pub(super) const SEGMENTS_MAX: usize = 1024;
/// Most bytes of one send (MAX_RW_COUNT): the kernel would cut a longer one.
pub(super) const BATCH_BYTES_MAX: u64 = 0x7fff_f000;

/// One operation in flight.
pub(super) struct Op {
    pub(super) generation: u32,
    pub(super) kind: OpKind,
}

/// What it is, and what it holds.
pub(super) enum OpKind {
    Read { token: u64, chunk: ChunkId, socket: Rc<Socket> },
    Send { token: u64, socket: Rc<Socket>, message: MessageBox, bytes: u32, linked: bool, zero_copy: bool },
    // The file is only held, so that it stays open.
    FileWrite { token: u64, chunk: ChunkId, _file: Rc<UnnamedFile> },
    FileRead { token: u64, chunk: ChunkId, _file: Rc<UnnamedFile> },
    FilePunch { token: u64, _file: Rc<UnnamedFile> },
    Wake,
}

/// `user_data` of an entry.
pub(super) fn user_data(generation: u32, index: usize) -> u64 {
    (u64::from(generation) << 32) | index as u64
}

/// The reverse of [`user_data`].
pub(super) fn parts(user_data: u64) -> (u32, usize) {
    ((user_data >> 32) as u32, (user_data & 0xffff_ffff) as usize)
}

/// Header and vector of one send, and what the vector points into.
pub(super) struct Message {
    header: libc::msghdr,
    vector: Vec<libc::iovec>,
    pinned: Vec<ChunkId>,
    heap: Vec<Bytes>,
}

/// A message at a fixed address that the kernel may be reading through its own pointer. A raw pointer, because moving a
/// `Box` asserts that nobody else uses what it points to.
pub(super) struct MessageBox(NonNull<Message>);

impl MessageBox {
    fn new() -> Self {
        // SAFETY: an all-zero msghdr is valid: null pointers and zero lengths.
        let header = unsafe { std::mem::zeroed() };
        let message = Message { header, vector: Vec::new(), pinned: Vec::new(), heap: Vec::new() };
        Self(NonNull::from(Box::leak(Box::new(message))))
    }

    /// Only while no operation is in flight with it.
    fn message(&mut self) -> &mut Message {
        // SAFETY: the pointer came from `Box::leak` and is freed only in `Drop`; `&mut self` makes the access exclusive
        // on our side, and the callers (fill, finish) run before submission and after completion.
        unsafe { self.0.as_mut() }
    }

    /// For the submission queue entry. Valid until `self` is dropped.
    pub(super) fn header(&self) -> *const libc::msghdr {
        // SAFETY: the pointer is valid (see `message`); only an address is computed.
        unsafe { &raw const (*self.0.as_ptr()).header }
    }

    /// Points the vector at `segments` without their first `skip_bytes`, merging parts that follow one another. Returns
    /// the bytes, and whether all of them lie in the arena. Nothing is pinned yet.
    pub(super) fn fill(
        &mut self,
        shared: &Shared,
        segments: &[Segment],
        skip_bytes: usize,
    ) -> Result<(u32, bool), UringError> {
        let message = self.message();
        let mut skip = skip_bytes;
        let mut bytes: u64 = 0;
        for segment in segments {
            let (start, len) = match segment {
                Segment::Chunk { chunk, start, len } => {
                    let Some(address) = shared.filled_part(*chunk, *start, *len) else {
                        return Err(shared.segment_outside(*chunk, *start, *len));
                    };
                    if skip < *len as usize {
                        message.pinned.push(*chunk);
                    }
                    (address, *len as usize)
                }
                Segment::Heap(part) => {
                    if skip < part.len() {
                        message.heap.push(part.clone());
                    }
                    (part.as_ptr().cast_mut(), part.len())
                }
            };
            let skipped = skip.min(len);
            skip -= skipped;
            if skipped == len {
                continue;
            }
            bytes += (len - skipped) as u64;
            message.push(start.wrapping_add(skipped), len - skipped);
        }
        if bytes == 0 || bytes > BATCH_BYTES_MAX {
            return Err(UringError::BatchBytes { bytes, bytes_max: BATCH_BYTES_MAX });
        }
        if message.vector.len() > SEGMENTS_MAX {
            return Err(UringError::TooManySegments { segments: message.vector.len(), segments_max: SEGMENTS_MAX });
        }
        message.header.msg_iov = message.vector.as_mut_ptr();
        message.header.msg_iovlen = message.vector.len() as _;
        Ok((bytes as u32, message.heap.is_empty()))
    }

    /// Pins every chunk of the vector: the send is about to be submitted.
    pub(super) fn pin(&mut self, shared: &Shared) {
        for chunk in &self.message().pinned {
            shared.pin(chunk.index());
        }
    }

    /// Lets go of everything that the send held; `pinned`: whether [`MessageBox::pin`] was called.
    pub(super) fn finish(&mut self, shared: &Shared, pinned: bool) {
        let message = self.message();
        for chunk in message.pinned.drain(..) {
            if pinned {
                shared.unpin(chunk.index());
            }
        }
        message.heap.clear();
        message.vector.clear();
        message.header.msg_iov = ptr::null_mut();
        message.header.msg_iovlen = 0;
    }
}

impl Drop for MessageBox {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `Box::leak` and is freed once. The ring forgets messages that are still in flight
        // instead of dropping them.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl Message {
    fn push(&mut self, start: *mut u8, len: usize) {
        if let Some(last) = self.vector.last_mut()
            && last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == start
            && self.heap.is_empty()
        {
            last.iov_len += len;
            return;
        }
        self.vector.push(libc::iovec { iov_base: start.cast(), iov_len: len });
    }
}

/// Messages not in use.
#[derive(Default)]
pub(super) struct MessagePool {
    idle: Vec<MessageBox>,
}

/// More idle messages than this are not kept.
const IDLE_MAX: usize = 1024;

impl MessagePool {
    pub(super) fn take(&mut self) -> MessageBox {
        self.idle.pop().unwrap_or_else(MessageBox::new)
    }

    /// Takes back a message on which `finish` was called.
    pub(super) fn give(&mut self, message: MessageBox) {
        if self.idle.len() < IDLE_MAX {
            self.idle.push(message);
        }
    }
}

/// One part of a batch.
#[derive(Clone, Debug)]
pub enum Segment {
    /// Filled bytes of a chunk.
    Chunk { chunk: ChunkId, start: u32, len: u32 },
    /// Bytes on the heap.
    Heap(Bytes),
}

impl Segment {
    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Chunk { len, .. } => *len as usize,
            Self::Heap(bytes) => bytes.len(),
        }
    }
}
