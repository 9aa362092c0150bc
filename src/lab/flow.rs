//! The writer of one flow: bytes to the replica, in the pieces and with the faults that a test asks for.
//!
//! In: the stream's bytes in order, from a [`super::master::FlowFeed`]. Out: the same bytes on a socket, except what the
//! [`Faults`] say. Offsets count from the first byte after the reply to `DFLY FLOW`. Without pieces or faults a call is
//! one `write_all`, so that a generator can send big blocks at full speed.

use super::rng::Rng;
use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How a flow's bytes are cut into socket writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pieces {
    /// As the feed hands them over.
    #[default]
    Whole,
    /// Always this many bytes.
    Fixed(usize),
    /// 1 to `max` bytes, drawn from a generator seeded with `seed` and the flow.
    Seeded { max: usize, seed: u64 },
}

/// Something that happens when a flow reaches an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection is closed after `offset` bytes.
    Cut,
    /// The byte at `offset` is changed by exclusive or.
    Garble(u8),
    /// Nothing is sent for this long, then the flow goes on.
    Stall(Duration),
}

/// Holds something back until a test opens it.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<AtomicBool>);

impl Gate {
    pub fn open(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub fn is_open(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Pieces and faults of all flows of a master.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    pub pieces: Pieces,
    /// If set, only so many bytes at the front and at the end of a flow are sent in `pieces`, the rest in blocks of
    /// 64 KiB: keeps tests with tiny pieces short.
    pub pieces_edge_bytes: Option<u64>,
    /// Flow, offset, what happens there.
    pub at: Vec<(u32, u64, Fault)>,
    /// Bytes a second, for each flow.
    pub slow: Option<u64>,
    /// The full sync of each flow ends only once this is open; and `slow` is over then.
    pub full_sync_gate: Option<Gate>,
    /// Only the first so many registrations suffer the faults `at`; later ones are served well. `None`: all do.
    pub registrations_max: Option<u64>,
}

impl Faults {
    pub fn pieces(mut self, pieces: Pieces) -> Self {
        self.pieces = pieces;
        self
    }

    pub fn cut_at(mut self, flow: u32, offset: u64) -> Self {
        self.at.push((flow, offset, Fault::Cut));
        self
    }

    pub fn garble(mut self, flow: u32, offset: u64, xor: u8) -> Self {
        self.at.push((flow, offset, Fault::Garble(xor)));
        self
    }

    pub fn stall(mut self, flow: u32, offset: u64, time: Duration) -> Self {
        self.at.push((flow, offset, Fault::Stall(time)));
        self
    }

    pub fn slow(mut self, bytes_per_s: u64) -> Self {
        self.slow = Some(bytes_per_s.max(1));
        self
    }
}

/// Writes one flow of one registration.
pub struct FlowWriter {
    stream: TcpStream,
    position: u64,
    /// Bytes of the flow, where they are known before: for `pieces_edge_bytes`.
    total_bytes: Option<u64>,
    /// Faults of this flow, the nearest last.
    ahead: Vec<(u64, Fault)>,
    faults: Faults,
    plain: bool,
    rng: Rng,
    started: Instant,
    /// Where `started` was.
    started_at: u64,
    shared: Arc<FlowShared>,
}

/// What others may know of a flow while its writer runs.
#[derive(Debug, Default)]
pub struct FlowShared {
    /// Bytes given to the kernel.
    pub sent_bytes: AtomicU64,
    /// Set just before the bytes of FULLSYNC_END are sent: from then on STARTSTABLE is legal.
    pub full_sync_end: AtomicBool,
    /// The registration was cancelled: stop.
    pub cancelled: AtomicBool,
    /// Milliseconds for which nothing is to be sent, from now on; 0: none.
    pub stall_ms: AtomicU64,
}

impl FlowWriter {
    /// `registration` counts from 1. Sets TCP_NODELAY where pieces are asked for.
    pub fn new(
        stream: TcpStream,
        flow: u32,
        registration: u64,
        total_bytes: Option<u64>,
        faults: &Faults,
        shared: Arc<FlowShared>,
    ) -> io::Result<Self> {
        let faulty = faults.registrations_max.is_none_or(|max| registration <= max);
        let mut ahead: Vec<(u64, Fault)> =
            faults.at.iter().filter(|(f, ..)| faulty && *f == flow).map(|(_, at, fault)| (*at, *fault)).collect();
        ahead.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        stream.set_nodelay(true)?;
        let seed = match faults.pieces {
            Pieces::Seeded { seed, .. } => seed,
            _ => 0,
        };
        Ok(Self {
            stream,
            position: 0,
            total_bytes,
            plain: ahead.is_empty() && faults.slow.is_none() && faults.pieces == Pieces::Whole,
            ahead,
            faults: faults.clone(),
            rng: Rng::new(seed ^ u64::from(flow)),
            started: Instant::now(),
            started_at: 0,
            shared,
        })
    }

    /// Offset of the next byte.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// From here on so many bytes a second.
    pub fn pace(&mut self, bytes_per_s: u64) {
        self.faults.slow = Some(bytes_per_s.max(1));
        self.plain = false;
        self.started = Instant::now();
        self.started_at = self.position;
    }

    /// From here on without a pace.
    pub fn full_speed(&mut self) {
        self.faults.slow = None;
        self.plain = self.ahead.is_empty() && self.faults.pieces == Pieces::Whole;
    }

    /// The registration is gone: nothing more is to be written.
    pub fn is_cancelled(&self) -> bool {
        self.shared.cancelled.load(Ordering::Acquire)
    }

    /// The full sync is not to end yet.
    pub fn is_held(&self) -> bool {
        self.faults.full_sync_gate.as_ref().is_some_and(|gate| !gate.is_open()) && !self.is_cancelled()
    }

    /// To be called right before the bytes of FULLSYNC_END are written.
    pub fn announce_full_sync_end(&mut self) {
        while self.is_held() {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.shared.full_sync_end.store(true, Ordering::Release);
    }

    /// Writes all of `bytes`. Fails when the peer is gone, the registration cancelled, or a cut is due.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.plain {
            return self.send(bytes);
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.shared.cancelled.load(Ordering::Acquire) {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let mut len = rest.len().min(self.piece_bytes());
            match self.ahead.last().copied() {
                Some((at, fault)) if at <= self.position => {
                    self.ahead.pop();
                    match fault {
                        Fault::Stall(time) => self.pause(time),
                        Fault::Cut => {
                            self.stream.shutdown(Shutdown::Both).ok();
                            return Err(io::ErrorKind::ConnectionAborted.into());
                        }
                        Fault::Garble(xor) => {
                            self.send(&[rest[0] ^ xor])?;
                            rest = &rest[1..];
                        }
                    }
                    continue;
                }
                Some((at, _)) => len = len.min((at - self.position) as usize),
                None => {}
            }
            let (piece, after) = rest.split_at(len);
            self.send(piece)?;
            rest = after;
            if let Some(rate) = self.faults.slow.filter(|_| self.faults.full_sync_gate.is_none() || self.is_held()) {
                let due = Duration::from_secs_f64((self.position - self.started_at) as f64 / rate as f64);
                self.pause(due.saturating_sub(self.started.elapsed()));
            }
        }
        Ok(())
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.shared.stall_ms.swap(0, Ordering::Relaxed) {
            0 => {}
            ms => self.pause(Duration::from_millis(ms)),
        }
        self.stream.write_all(bytes)?;
        self.position += bytes.len() as u64;
        self.shared.sent_bytes.store(self.position, Ordering::Relaxed);
        Ok(())
    }

    fn piece_bytes(&mut self) -> usize {
        const BLOCK: usize = 64 << 10;
        // A slow flow must trickle, not come in bursts of a second's worth.
        let calm = self.faults.slow.map_or(BLOCK, |rate| (rate / 50).clamp(1, BLOCK as u64) as usize);
        if let (Some(edge), Some(total)) = (self.faults.pieces_edge_bytes, self.total_bytes) {
            let back_edge = total.saturating_sub(edge);
            if self.position >= edge && self.position < back_edge {
                return calm.min((back_edge - self.position) as usize);
            }
        }
        match self.faults.pieces {
            Pieces::Whole => calm,
            Pieces::Fixed(len) => len.max(1),
            Pieces::Seeded { max, .. } => 1 + self.rng.below(max.max(1) as u64) as usize,
        }
    }

    /// Sleeps, but not beyond a cancellation.
    fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.shared.cancelled.load(Ordering::Acquire) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(Duration::from_millis(20)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpListener;

    fn through(faults: Faults, bytes: &[u8]) -> (Vec<u8>, bool) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut reader = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let mut writer = FlowWriter::new(stream, 1, 1, Some(bytes.len() as u64), &faults, Arc::default()).unwrap();
        let bytes = bytes.to_vec();
        let thread = std::thread::spawn(move || bytes.chunks(700).all(|c| writer.write(c).is_ok()));
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        (got, thread.join().unwrap())
    }

    #[test]
    fn pieces_and_faults() {
        let bytes: Vec<u8> = (0..5000u32).map(|i| i as u8).collect();
        for pieces in [Pieces::Whole, Pieces::Fixed(3), Pieces::Seeded { max: 9, seed: 1 }] {
            assert_eq!(through(Faults::default().pieces(pieces), &bytes), (bytes.clone(), true));
        }
        let faults = Faults { pieces_edge_bytes: Some(50), ..Faults::default().pieces(Pieces::Fixed(1)) };
        assert_eq!(through(faults, &bytes).0, bytes);
        assert_eq!(through(Faults::default().cut_at(1, 1234), &bytes), (bytes[..1234].to_vec(), false));
        let mut garbled = bytes.clone();
        garbled[4000] ^= 5;
        let faults = Faults::default().garble(1, 4000, 5).stall(1, 10, Duration::from_millis(30)).cut_at(0, 3);
        let started = Instant::now();
        assert_eq!(through(faults, &bytes).0, garbled);
        assert!(started.elapsed() >= Duration::from_millis(30));
        let started = Instant::now();
        assert_eq!(through(Faults::default().slow(50_000), &bytes).0, bytes);
        assert!(started.elapsed() >= Duration::from_millis(90));
    }
}
