//! A worker's end of a connection: plain, or TLS at the edge of the ring.
//!
//! In: a connected socket, with its TLS session if there is one. Plain, every call is the ring's own, and costs nothing.
//! Over TLS a read goes into a chunk of the connection's own and is decrypted into the caller's; a send is encrypted into
//! one buffer and sent from there. What does not fit the caller's chunk waits, decrypted or not, and is delivered by the next
//! `read` without the kernel. Invariants: no plaintext is encrypted twice on one connection (what was sent short goes on as
//! ciphertext); sends never overlap; no completion is passed on before all ciphertext of its plaintext was accepted.

use super::error::EngineError;
use super::tls::{SEAL_BYTES_MAX, Session};
use crate::uring::{ChunkId, Class, Outgoing, PeerSigns, Ring, Segment, Slab, Socket};
use bytes::{BufMut, Bytes, BytesMut};
use smallvec::SmallVec;
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

/// A connection as the control plane hands it over.
pub struct Connected {
    pub fd: OwnedFd,
    /// After its handshake.
    pub tls: Option<Box<Session>>,
}

impl From<OwnedFd> for Connected {
    /// A plain connection.
    fn from(fd: OwnedFd) -> Self {
        Self { fd, tls: None }
    }
}

/// What became of a read or a send: bytes, or an errno (see [`Wire::reason`]).
pub type Outcome = Result<u32, i32>;

/// What a call to [`Wire::read`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// A completion will follow, to be given to [`Wire::received`].
    InKernel,
    /// Bytes that were here already are in the chunk now.
    Here(Outcome),
    /// The slab has no chunk for ciphertext: try again.
    NoMemory,
}

pub struct Wire {
    socket: Rc<Socket>,
    tls: Option<Box<Coded>>,
}

/// The TLS side of a wire.
struct Coded {
    session: Box<Session>,
    /// Ciphertext is read into this one; held from the first read to the end.
    chunk: Option<ChunkId>,
    class: Class,
    /// Bytes of the chunk that the session has taken.
    taken: usize,
    /// Ciphertext given to the kernel, how much of it was accepted, and the plaintext that it stands for.
    outgoing: Bytes,
    sent_bytes: usize,
    plain_bytes: u32,
    /// The buffer of an earlier send, for the next.
    spare: BytesMut,
    failure: Option<String>,
}

/// Segments of plaintext that one send encrypts.
const SLICES_MAX: usize = 512;
/// Ciphertext is longer than its plaintext: a header and a check sum for each record.
const CIPHER_ROOM: usize = SEAL_BYTES_MAX / 128 + 512;
/// Memory of one connection outside of the slab, at most: records in the making, the same in flight, and what the session
/// keeps of what is received.
pub const LANE_TLS_BYTES: usize = 2 * (SEAL_BYTES_MAX + CIPHER_ROOM) + 64 * 1024;
/// The same where nothing but acknowledgements is sent.
pub const FLOW_TLS_BYTES: usize = 64 * 1024;

impl Wire {
    /// `class`: of the chunk that ciphertext is read into. It is taken from the slab with the first read.
    pub fn new(connected: Connected, class: Class) -> Self {
        let tls = connected.tls.map(|session| {
            Box::new(Coded {
                session,
                chunk: None,
                class,
                taken: 0,
                outgoing: Bytes::new(),
                sent_bytes: 0,
                plain_bytes: 0,
                spare: BytesMut::new(),
                failure: None,
            })
        });
        Self { socket: Rc::new(Socket::from(connected.fd)), tls }
    }

    /// Most batches that one call to [`Wire::send`] takes. One ciphertext never covers two of them: a batch must not be
    /// answered before its completion is known.
    pub fn batches_max(&self) -> usize {
        if self.tls.is_some() { 1 } else { usize::MAX }
    }

    /// Lets the kernel find out that the peer's machine is gone. Where the options cannot be set (no TCP), nothing is lost but that.
    pub fn watch_life(&self, idle: Duration, interval: Duration, probes_max: u32, user_timeout: Duration) {
        let _ = self.socket.set_keepalive(idle, interval, probes_max);
        let _ = self.socket.set_user_timeout(user_timeout);
    }

    /// What the kernel knows of the peer's machine.
    pub fn peer_signs(&self) -> Option<PeerSigns> {
        self.socket.peer_signs()
    }

    pub fn is_sending(&self) -> bool {
        self.socket.is_sending()
    }

    /// Ends the connection. What was received is still read; the read in flight, or the next one, tells of the end.
    pub fn shut(&self, ring: &mut Ring) {
        ring.shutdown(&self.socket);
    }

    /// Gives the chunk back. Call it before the wire is dropped, unless the slab goes too.
    pub fn close(&mut self, ring: &mut Ring) {
        ring.shutdown(&self.socket);
        if let Some(chunk) = self.tls.take().and_then(|tls| tls.chunk) {
            ring.slab_mut().release(chunk);
        }
    }

    /// What an errno from this wire means.
    pub fn reason(&self, errno: i32) -> String {
        match self.tls.as_ref().and_then(|tls| tls.failure.clone()) {
            Some(failure) => format!("TLS: {failure}"),
            None => std::io::Error::from_raw_os_error(errno).to_string(),
        }
    }

    /// Reads into the tail of `chunk`, at most `bytes_max` bytes (over TLS: of ciphertext, or what is left of it).
    pub fn read(
        &mut self,
        ring: &mut Ring,
        chunk: ChunkId,
        bytes_max: usize,
        token: u64,
    ) -> Result<Begun, EngineError> {
        let Some(tls) = &mut self.tls else {
            let begun = ring.read_at_most(&self.socket, chunk, bytes_max, token);
            return begun.map(|()| Begun::InKernel).map_err(system);
        };
        match tls.open(ring.slab_mut(), chunk) {
            Some(outcome) => Ok(Begun::Here(outcome)),
            None if tls.arm(ring, &self.socket, bytes_max, token)? => Ok(Begun::InKernel),
            None => Ok(Begun::NoMemory),
        }
    }

    /// A read completed. `chunk` is where plaintext goes. None: only a part of a record came, and the read goes on.
    pub fn received(
        &mut self,
        ring: &mut Ring,
        chunk: Option<ChunkId>,
        token: u64,
        result: Outcome,
    ) -> Result<Option<Outcome>, EngineError> {
        let Some(tls) = &mut self.tls else { return Ok(Some(result)) };
        if !matches!(result, Ok(1..)) {
            return Ok(Some(result));
        }
        let Some(chunk) = chunk else { return Ok(Some(Err(libc::EINTR))) };
        match tls.open(ring.slab_mut(), chunk) {
            Some(outcome) => Ok(Some(outcome)),
            None if tls.arm(ring, &self.socket, usize::MAX, token)? => Ok(None),
            None => Ok(Some(Err(libc::EINTR))),
        }
    }

    /// Sends batches, each with its own completion, to be given to [`Wire::sent`]. Returns how many were begun; over TLS only
    /// the first is, of which the completion may report a part, or none if the session is at its end.
    pub fn send(&mut self, ring: &mut Ring, batches: &[Outgoing<'_>]) -> Result<usize, EngineError> {
        let Some(tls) = &mut self.tls else {
            return ring.send(&self.socket, batches).map(|()| batches.len()).map_err(system);
        };
        let Some(batch) = batches.first() else { return Ok(0) };
        let mut out = std::mem::take(&mut tls.spare);
        out.reserve(SEAL_BYTES_MAX.min(remaining(batch)) + CIPHER_ROOM);
        let mut out = out.writer();
        let sealed = tls.session.seal(&slices(ring.slab(), batch), &mut out);
        let out = out.into_inner();
        if sealed == 0 || out.is_empty() {
            // The session is at its end: the read that is in flight, or the next one, says so.
            ring.shutdown(&self.socket);
            return Ok(0);
        }
        tls.begin(ring, &self.socket, out, sealed as u32, batch.token)?;
        Ok(1)
    }

    /// Sends what the session itself has to say, where nothing is being sent. Its completion bears `token`.
    pub fn flush(&mut self, ring: &mut Ring, token: u64) -> Result<(), EngineError> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        if self.socket.is_sending() || !tls.session.wants_write() {
            return Ok(());
        }
        let mut out = std::mem::take(&mut tls.spare).writer();
        tls.session.take_output(&mut out);
        let out = out.into_inner();
        if out.is_empty() { Ok(()) } else { tls.begin(ring, &self.socket, out, 0, token) }
    }

    /// A send completed. Some: a batch's outcome, in plaintext bytes.
    pub fn sent(&mut self, ring: &mut Ring, token: u64, result: Outcome) -> Result<Option<Outcome>, EngineError> {
        let Some(tls) = &mut self.tls else { return Ok(Some(result)) };
        match result {
            Ok(bytes) => tls.sent_bytes += bytes as usize,
            Err(libc::ECANCELED | libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ENOMEM) => {}
            // Of our own words the next read tells.
            Err(errno) => return Ok((tls.plain_bytes > 0).then_some(Err(errno))),
        }
        if tls.sent_bytes < tls.outgoing.len() {
            tls.send_rest(ring, &self.socket, token)?;
            return Ok(None);
        }
        // A zero-copy send may still hold the bytes; then they are not reused.
        if let Ok(mut spare) = std::mem::take(&mut tls.outgoing).try_into_mut() {
            spare.clear();
            tls.spare = spare;
        }
        Ok((tls.plain_bytes > 0).then_some(Ok(tls.plain_bytes)))
    }
}

impl Coded {
    /// Decrypts what is here. None: all of it was taken, and no plaintext came of it.
    fn open(&mut self, slab: &mut Slab, chunk: ChunkId) -> Option<Outcome> {
        if slab.room(chunk) == 0 {
            // The caller asks again, as after a signal.
            return Some(Err(libc::EINTR));
        }
        // Pins the chunk, so that it can be read while another one is written.
        let view = self.chunk.map(|chunk| slab.view(chunk));
        let here = view.as_ref().and_then(|view| view.get(self.taken..)).unwrap_or_default();
        let mut rest = here;
        let opened = self.session.open(&mut rest, slab.spare(chunk));
        self.taken += here.len() - rest.len();
        match opened {
            Ok(0) if self.session.is_closed() => Some(Ok(0)),
            Ok(0) => None,
            Ok(bytes) => {
                slab.advance(chunk, bytes);
                Some(Ok(bytes as u32))
            }
            Err(failure) => {
                self.failure = Some(failure);
                Some(Err(libc::EPROTO))
            }
        }
    }

    /// Reads more ciphertext; everything read before was taken. False: there is no chunk for it.
    fn arm(&mut self, ring: &mut Ring, socket: &Rc<Socket>, bytes_max: usize, token: u64) -> Result<bool, EngineError> {
        // A chunk is filled once: given back and taken, it is empty again (the free list is a stack).
        let slab = ring.slab_mut();
        if let Some(chunk) = self.chunk.take() {
            slab.release(chunk);
        }
        self.chunk = slab.take(self.class);
        self.taken = 0;
        let Some(chunk) = self.chunk else { return Ok(false) };
        ring.read_at_most(socket, chunk, bytes_max, token).map_err(system)?;
        Ok(true)
    }

    fn begin(
        &mut self,
        ring: &mut Ring,
        socket: &Rc<Socket>,
        out: BytesMut,
        plain_bytes: u32,
        token: u64,
    ) -> Result<(), EngineError> {
        self.outgoing = out.freeze();
        self.sent_bytes = 0;
        self.plain_bytes = plain_bytes;
        self.send_rest(ring, socket, token)
    }

    fn send_rest(&mut self, ring: &mut Ring, socket: &Rc<Socket>, token: u64) -> Result<(), EngineError> {
        let segments = [Segment::Heap(self.outgoing.clone())];
        let outgoing = Outgoing { segments: &segments, skip_bytes: self.sent_bytes, token };
        ring.send(socket, &[outgoing]).map_err(system)
    }
}

/// Bytes of a batch that were not sent before.
fn remaining(batch: &Outgoing<'_>) -> usize {
    batch.segments.iter().map(Segment::bytes).sum::<usize>().saturating_sub(batch.skip_bytes)
}

/// The front of a batch, at most [`SEAL_BYTES_MAX`].
fn slices<'a>(slab: &'a Slab, batch: &Outgoing<'a>) -> SmallVec<[IoSlice<'a>; 16]> {
    let (mut skip, mut room) = (batch.skip_bytes, SEAL_BYTES_MAX);
    let mut slices = SmallVec::new();
    for segment in batch.segments {
        let bytes = match segment {
            Segment::Chunk { chunk, start, len } => {
                slab.filled(*chunk).get(*start as usize..*start as usize + *len as usize).unwrap_or_default()
            }
            Segment::Heap(bytes) => bytes,
        };
        let skipped = skip.min(bytes.len());
        skip -= skipped;
        let rest = &bytes[skipped..];
        let taken = rest.len().min(room);
        if taken > 0 {
            slices.push(IoSlice::new(&rest[..taken]));
        }
        room -= taken;
        if room == 0 || slices.len() == SLICES_MAX {
            break;
        }
    }
    slices
}

fn system(e: crate::uring::UringError) -> EngineError {
    EngineError::System(e.to_string())
}

#[cfg(test)]
mod tests;
