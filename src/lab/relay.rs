//! A plain relay: what moving the bytes alone costs, with the same ring and buffers as the data plane and no decoding.
//!
//! In: two connections. Everything that the source sends goes to the sink, in order; everything that the sink answers is
//! thrown away. Out: bytes, CPU time, wall time and system calls. It is the floor that `tools/bench load` compares with.
//! One worker, one read in flight into rotating chunks while earlier chunks are being sent. Invariants: bytes
//! keep their order; at most `chunks` chunks are in use.

use crate::uring::{
    self, ChunkId, Class, Completion, CompletionKind, Counters, Outgoing, Ring, RingSettings, Segment, SlabLayout,
    Socket, UringError,
};
use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::rc::Rc;
use std::time::Duration;

/// How to relay.
#[derive(Clone, Debug)]
pub struct RelayOptions {
    pub ring: RingSettings,
    /// Size of a read, and of a send; a multiple of 4096.
    pub chunk_bytes: usize,
    /// Chunks that rotate; 2 is ping-pong.
    pub chunks: usize,
    /// Pin the calling thread to this CPU first.
    pub cpu: Option<usize>,
}

impl Default for RelayOptions {
    fn default() -> Self {
        Self { ring: RingSettings::default(), chunk_bytes: 64 << 10, chunks: 8, cpu: None }
    }
}

/// What it cost, from the first turn to the moment when the sink's kernel had accepted the last byte.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct RelayStats {
    pub bytes: u64,
    /// What the sink answered.
    pub bytes_discarded: u64,
    /// Of the relaying thread.
    pub cpu_ns: u64,
    pub wall_ns: u64,
    pub enters: u64,
    pub reads: u64,
    pub sends: u64,
    pub short_writes: u64,
}

/// Why a relay ended early.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error(transparent)]
    Uring(#[from] UringError),
    #[error("the relay could not read from the source: {0}")]
    Source(io::Error),
    #[error("the relay could not write to the sink: {0}")]
    Sink(io::Error),
    #[error("the relay could not be pinned to its CPU: {0}")]
    Pin(io::Error),
    #[error("a relay needs at least 2 chunks")]
    Chunks,
}

/// Relays until the source ends and everything is sent; then tells the sink, and waits for its end (for a few seconds).
pub fn run_relay(source: TcpStream, sink: TcpStream, options: &RelayOptions) -> Result<RelayStats, RelayError> {
    if options.chunks < 2 {
        return Err(RelayError::Chunks);
    }
    if let Some(cpu) = options.cpu {
        uring::cpu::pin_current_thread(cpu).map_err(RelayError::Pin)?;
    }
    let layout = SlabLayout {
        rx_chunk_bytes: options.chunk_bytes,
        rx_chunks: options.chunks,
        tx_chunk_bytes: ANSWER_BYTES,
        tx_chunks: 1,
    };
    let ring = Ring::new(&options.ring, layout)?;
    let batches_max = if options.ring.link { options.ring.link_batches_max.max(1) } else { 1 };
    let source = Rc::new(Socket::from(source));
    let sink = Rc::new(Socket::from(sink));
    sink.set_nodelay(true).map_err(RelayError::Sink)?;
    Relay {
        batches_max: batches_max.min(ring.chain_batches_max()),
        ring,
        source,
        sink,
        reading: None,
        source_ended: false,
        answers: None,
        sink_ended: false,
        waiting: VecDeque::with_capacity(options.chunks),
        in_chain: 0,
        stats: RelayStats::default(),
    }
    .run()
}

const ANSWER_BYTES: usize = 16 << 10;
const TOKEN_SOURCE: u64 = 1;
const TOKEN_SINK: u64 = 2;
const WAIT: Duration = Duration::from_millis(200);
/// How long the sink may take to close after us.
const GOODBYE_NS: u64 = 5_000_000_000;

/// A chunk on its way to the sink.
struct Part {
    segment: [Segment; 1],
    chunk: ChunkId,
    sent_bytes: usize,
}

struct Relay {
    ring: Ring,
    source: Rc<Socket>,
    sink: Rc<Socket>,
    batches_max: usize,
    reading: Option<ChunkId>,
    source_ended: bool,
    answers: Option<ChunkId>,
    sink_ended: bool,
    /// Chunks that are not sent completely, oldest first; the first `in_chain` of them are in flight.
    waiting: VecDeque<Part>,
    in_chain: usize,
    stats: RelayStats,
}

impl Relay {
    fn run(mut self) -> Result<RelayStats, RelayError> {
        let (cpu_ns, wall_ns) = (uring::cpu::thread_cpu_ns(), uring::clock::monotonic_ns());
        let mut completions = Vec::with_capacity(64);
        while !(self.source_ended && self.waiting.is_empty()) {
            self.turn(&mut completions)?;
        }
        self.stats.cpu_ns = uring::cpu::thread_cpu_ns() - cpu_ns;
        self.stats.wall_ns = uring::clock::monotonic_ns() - wall_ns;
        self.note(self.ring.counters());
        self.sink.shutdown_write();
        let deadline_ns = uring::clock::monotonic_ns() + GOODBYE_NS;
        while !self.sink_ended && uring::clock::monotonic_ns() < deadline_ns {
            self.turn(&mut completions)?;
        }
        Ok(self.stats)
    }

    fn note(&mut self, counters: Counters) {
        self.stats.enters = counters.enters;
        self.stats.reads = counters.read_calls;
        self.stats.sends = counters.send_calls;
        self.stats.short_writes = counters.short_writes;
    }

    fn turn(&mut self, completions: &mut Vec<Completion>) -> Result<(), RelayError> {
        self.arm_reads()?;
        self.send()?;
        completions.clear();
        self.ring.turn(WAIT, completions)?;
        for completion in completions.iter() {
            match (completion.kind, completion.token) {
                (CompletionKind::Read, TOKEN_SOURCE) => self.received(completion.result)?,
                (CompletionKind::Read, _) => self.answered(completion.result),
                (CompletionKind::Send, _) => self.sent(completion.result)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn arm_reads(&mut self) -> Result<(), RelayError> {
        if self.reading.is_none()
            && !self.source_ended
            && let Some(chunk) = self.ring.slab_mut().take(Class::Rx)
        {
            self.ring.read(&self.source, chunk, TOKEN_SOURCE)?;
            self.reading = Some(chunk);
        }
        if self.answers.is_none()
            && !self.sink_ended
            && let Some(chunk) = self.ring.slab_mut().take(Class::Tx)
        {
            self.ring.read(&self.sink, chunk, TOKEN_SINK)?;
            self.answers = Some(chunk);
        }
        Ok(())
    }

    fn send(&mut self) -> Result<(), RelayError> {
        if self.in_chain > 0 || self.waiting.is_empty() {
            return Ok(());
        }
        let count = self.waiting.len().min(self.batches_max);
        let chain: smallvec::SmallVec<[Outgoing<'_>; 16]> = self
            .waiting
            .iter()
            .take(count)
            .map(|part| Outgoing { segments: &part.segment, skip_bytes: part.sent_bytes, token: 0 })
            .collect();
        self.ring.send(&self.sink, &chain)?;
        self.in_chain = count;
        Ok(())
    }

    fn received(&mut self, result: Result<u32, i32>) -> Result<(), RelayError> {
        let Some(chunk) = self.reading.take() else { return Ok(()) };
        match result {
            Ok(len @ 1..) => {
                self.stats.bytes += u64::from(len);
                let segment = [Segment::Chunk { chunk, start: 0, len }];
                self.waiting.push_back(Part { segment, chunk, sent_bytes: 0 });
                return Ok(());
            }
            Ok(0) => self.source_ended = true,
            Err(libc::EINTR | libc::EAGAIN) => {}
            Err(errno) => return Err(RelayError::Source(io::Error::from_raw_os_error(errno))),
        }
        self.ring.slab_mut().release(chunk);
        Ok(())
    }

    fn answered(&mut self, result: Result<u32, i32>) {
        if let Some(chunk) = self.answers.take() {
            self.ring.slab_mut().release(chunk);
        }
        match result {
            Ok(len @ 1..) => self.stats.bytes_discarded += u64::from(len),
            Err(libc::EINTR | libc::EAGAIN) => {}
            // A sink that has gone shows when we write to it.
            Ok(0) | Err(_) => self.sink_ended = true,
        }
    }

    /// The completions of a chain come in its order; those behind a short or failed send are cancelled.
    fn sent(&mut self, result: Result<u32, i32>) -> Result<(), RelayError> {
        self.in_chain = self.in_chain.saturating_sub(1);
        match result {
            Ok(sent) => {
                if let Some(part) = self.waiting.front_mut() {
                    part.sent_bytes += sent as usize;
                    if part.sent_bytes >= part.segment[0].bytes() {
                        let chunk = part.chunk;
                        self.waiting.pop_front();
                        self.ring.slab_mut().release(chunk);
                    }
                }
                Ok(())
            }
            Err(libc::ECANCELED | libc::EINTR | libc::EAGAIN) => Ok(()),
            Err(errno) => Err(RelayError::Sink(io::Error::from_raw_os_error(errno))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uring::tcp_pair;
    use std::io::{Read, Write};

    #[test]
    fn everything_arrives_in_order_and_answers_are_discarded() {
        for (chunk_bytes, chunks, link) in [(64 << 10, 8, true), (256 << 10, 2, false), (4096, 3, true)] {
            let (mut writer, source) = tcp_pair().unwrap();
            let (sink, mut reader) = tcp_pair().unwrap();
            let bytes: Vec<u8> = (0..3_000_001u32).map(|i| (i ^ (i >> 9)) as u8).collect();
            let expected = bytes.clone();
            let write = std::thread::spawn(move || writer.write_all(&bytes).unwrap());
            let read = std::thread::spawn(move || {
                let mut all = Vec::new();
                let mut piece = vec![0; 100_000];
                loop {
                    match reader.read(&mut piece).unwrap() {
                        0 => return all,
                        n => all.extend_from_slice(&piece[..n]),
                    }
                    reader.write_all(b"+OK\r\n").unwrap();
                }
            });
            let ring = RingSettings { link, huge_pages: false, ..RingSettings::default() };
            let options = RelayOptions { ring, chunk_bytes, chunks, cpu: None };
            let stats = run_relay(source, sink, &options).unwrap();
            write.join().unwrap();
            assert!(read.join().unwrap() == expected);
            assert_eq!(stats.bytes as usize, expected.len());
            assert!(stats.bytes_discarded > 0 && stats.enters > 0 && stats.cpu_ns > 0);
            assert!(stats.sends >= (expected.len() / chunk_bytes) as u64);
        }
    }

    #[test]
    fn a_sink_that_goes_away_is_an_error() {
        let (mut writer, source) = tcp_pair().unwrap();
        let (sink, reader) = tcp_pair().unwrap();
        drop(reader);
        let write = std::thread::spawn(move || while writer.write_all(&[1; 10_000]).is_ok() {});
        let outcome = run_relay(source, sink, &RelayOptions::default());
        assert!(matches!(outcome, Err(RelayError::Sink(_))), "{outcome:?}");
        write.join().unwrap();
    }
}
