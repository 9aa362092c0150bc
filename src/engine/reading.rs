//! Reading the flows, whatever the target does: when, into which memory, and when to let the source go.
//!
//! In: the state of each flow, memory, time. Out: reads, an alarm, or the word to let the source go. A flow's socket is read straight
//! into its decoder's chunk as long as the decoder keeps up; else into its backlog, which spools. Invariants: a journal is
//! always read, for a source parks its writers while a replica does not read (wire 1.10); a snapshot waits for a slow
//! target, but is read on drop by drop, so that no single write of the source waits for its timeout; a source that cannot
//! be read any more is let go long before that.

use super::error::EngineError;
use super::flow::{Flow, FlowState};
use super::messages::WorkerEvent;
use super::settings::MigrateSettings;
use super::spool::{ChunkPool, Hurdle, SpoolFile};
use super::upstream::Upstream;
use super::wire::Begun;
use super::worker::Worker;
use crate::report::numbers;
use crate::uring::{ChunkId, Completion, CompletionKind, Slab};
use std::time::Duration;

/// A snapshot that waits for the target is read on by so much, so often: 1 MiB/s, where the largest write of a source
/// (8 MiB) may take 30 s.
const DROP_EVERY_NS: u64 = 250_000_000;
const DROP_BYTES: usize = 256 * 1024;
/// The source's `replication_timeout` must be longer than such a write takes at that rate.
pub const SOURCE_TIMEOUT_MIN: Duration = Duration::from_secs(10);
const _: () = assert!(
    SOURCE_TIMEOUT_MIN.as_nanos() > ((8 << 20) / DROP_BYTES as u128) * DROP_EVERY_NS as u128,
    "the largest write is read in time"
);

/// A flow that was not read for so long is worth a warning.
const ALARM_NS: u64 = 1_000_000_000;
/// A journal that cannot be read, with nowhere left to put it, is let go when it has waited so long in all: the source's
/// writers are waiting too. What it waited is forgotten slowly, so that a target that goes on, but not fast enough, is no
/// excuse to park them for ever.
const LET_GO_FULL_NS: u64 = 2_000_000_000;
const FORGOTTEN_PART: u64 = 10;
/// Where there is hope (a slow disk, a snapshot), or nobody wanted a spool. Dragonfly's own limit is 30 s.
const LET_GO_NS: u64 = 15_000_000_000;

/// What is known of the reading of one flow's socket.
#[derive(Default)]
pub struct Reading {
    /// A read is in flight.
    pub in_flight: bool,
    /// It (or the last one) goes into the backlog.
    into_backlog: bool,
    /// When the last read completed; 0: none has.
    last_ns: u64,
    /// When it, or the one in flight, began.
    pub(super) begun_ns: u64,
    /// Longest time between the end of a read and the begin of the next.
    pub unread_ns_max: u64,
    alarmed: bool,
    /// Since when there has been no memory for the next read; 0: there is.
    starved_since_ns: u64,
    /// For how long there was none in all, as far as it is not forgotten, and when that was true.
    starved_ns: u64,
    starved_at_ns: u64,
}

impl Reading {
    /// For how long there was no memory to read into, as far as it is not forgotten.
    fn waited_ns(&self, now_ns: u64) -> u64 {
        let now = if self.starved_since_ns > 0 { now_ns.saturating_sub(self.starved_since_ns) } else { 0 };
        self.starved_ns.saturating_sub(now_ns.saturating_sub(self.starved_at_ns) / FORGOTTEN_PART).saturating_add(now)
    }

    /// There is memory again.
    fn fed(&mut self, now_ns: u64) {
        if self.starved_since_ns > 0 {
            (self.starved_ns, self.starved_at_ns) = (self.waited_ns(now_ns), now_ns);
            self.starved_since_ns = 0;
        }
    }
}

impl Flow {
    /// A read into the decoder's own chunk is in flight.
    pub(super) fn reads_into_input(&self) -> bool {
        self.reading.in_flight && !self.reading.into_backlog
    }

    /// Where the read that is in flight goes.
    pub(super) fn read_chunk(&self) -> Option<ChunkId> {
        if self.reading.into_backlog { self.backlog.intake_chunk() } else { self.input.chunk() }
    }

    /// Where the next read goes, and how long it may be. None: not now.
    fn next_read(
        &mut self,
        slab: &mut Slab,
        pool: &mut ChunkPool,
        now_ns: u64,
        source_first: bool,
    ) -> Option<(ChunkId, usize)> {
        if self.reading.in_flight || !self.upstream.is_read() {
            return None;
        }
        if self.backlog.is_empty(slab)
            && let Some(chunk) = self.input.chunk()
            && slab.room(chunk) > 0
        {
            self.backlog.end_intake();
            self.reading.into_backlog = false;
            return Some((chunk, usize::MAX));
        }
        let drops = self.state == FlowState::Snapshot && !source_first;
        if drops && now_ns.saturating_sub(self.reading.last_ns) < DROP_EVERY_NS {
            return None;
        }
        let Some(chunk) = self.backlog.intake(slab, pool) else {
            if self.reading.starved_since_ns == 0 {
                self.reading.starved_since_ns = now_ns;
            }
            return None;
        };
        self.reading.into_backlog = true;
        Some((chunk, if drops { DROP_BYTES } else { usize::MAX }))
    }

    fn read_begins(&mut self, now_ns: u64) {
        let unread_ns = self.unread_ns(now_ns);
        self.reading.unread_ns_max = self.reading.unread_ns_max.max(unread_ns);
        self.reading.in_flight = true;
        self.reading.begun_ns = now_ns;
        self.reading.fed(now_ns);
        if self.reading.alarmed && self.reading.waited_ns(now_ns) < ALARM_NS {
            self.reading.alarmed = false;
            tracing::warn!(flow = %self.id, "the flow is read again");
        }
    }

    /// A read completed. Returns the number of bytes.
    pub(super) fn read_done(
        &mut self,
        slab: &mut Slab,
        result: Result<u32, i32>,
        now_ns: u64,
    ) -> Result<usize, EngineError> {
        self.reading.in_flight = false;
        let left = self.upstream == Upstream::Leaving;
        if left {
            self.upstream = Upstream::Closed;
        }
        match result {
            // This flow has all it needs. If another one has not, its own connection says so: closing one of a
            // registration's connections closes all.
            Ok(0) | Err(_) if self.is_complete() => {
                self.upstream = Upstream::Closed;
                Ok(0)
            }
            // Asked for.
            Ok(0) | Err(_) if left => Ok(0),
            Ok(0) => Err(self.source_closed()),
            Ok(n) => {
                self.bytes_in += u64::from(n);
                self.reading.last_ns = now_ns;
                if self.reading.into_backlog {
                    self.backlog.received(slab, now_ns);
                } else {
                    self.read_ns = now_ns;
                    if let Some(chunk) = self.input.chunk() {
                        slab.set_filled_at_ns(chunk, now_ns);
                    }
                }
                Ok(n as usize)
            }
            Err(libc::EINTR | libc::EAGAIN | libc::ENOBUFS) => Ok(0),
            Err(errno) => Err(self.reading_failed(errno)),
        }
    }

    /// Brings bytes of the backlog to the decoder's chunk. False: there are none, or none yet.
    pub(super) fn feed(&mut self, slab: &mut Slab) -> bool {
        let Some(chunk) = self.input.chunk() else { return false };
        let Some(read_ns) = self.backlog.feed(slab, chunk) else { return false };
        self.read_ns = read_ns;
        if slab.filled_at_ns(chunk) == 0 {
            slab.set_filled_at_ns(chunk, read_ns);
        }
        self.input.filled(slab);
        true
    }

    /// For how long it has not been read.
    pub(super) fn unread_ns(&self, now_ns: u64) -> u64 {
        let idle = self.reading.in_flight || !self.upstream.is_read() || self.reading.last_ns == 0;
        if idle { 0 } else { now_ns.saturating_sub(self.reading.last_ns) }
    }
}

impl Worker {
    /// Begins a read on every flow that can be read, and moves what spools.
    pub(super) fn read_flows(&mut self, now_ns: u64) -> Result<(), EngineError> {
        let count = self.flows.len();
        for step in 0..count {
            let position = (self.first_flow + step) % count;
            let flow = &mut self.flows[position];
            if flow.state == FlowState::Complete && !flow.follow {
                flow.backlog.drop_bytes(self.ring.slab(), self.spool.as_mut());
            }
            let tokens = |write: bool, number: u32| Self::spool_token(write, position, number);
            flow.backlog.work(&mut self.ring, &mut self.pool, self.spool.as_mut(), tokens)?;
            let source_first = self.settings.source_first;
            if let Some((chunk, bytes_max)) = flow.next_read(self.ring.slab_mut(), &mut self.pool, now_ns, source_first)
            {
                let token = Self::flow_token(position);
                match flow.wire.read(&mut self.ring, chunk, bytes_max, token)? {
                    Begun::InKernel => {}
                    Begun::Here(result) => self.here.push(Completion { token, kind: CompletionKind::Read, result }),
                    Begun::NoMemory => continue,
                }
                flow.read_begins(now_ns);
            }
        }
        if let Some(spool) = &mut self.spool
            && let Some((offset, len)) = spool.trim()
        {
            self.ring
                .punch_file(&spool.file, offset, len, Self::trim_token())
                .map_err(|e| EngineError::System(e.to_string()))?;
        }
        self.watch_reading(now_ns)
    }

    /// Says when a flow is not read, and ends the run before its source would.
    fn watch_reading(&mut self, now_ns: u64) -> Result<(), EngineError> {
        // A source that is gone does not wait.
        if self.gone.is_some() {
            return Ok(());
        }
        for flow in &mut self.flows {
            let unread_ns = flow.unread_ns(now_ns);
            let hurdle = self.spool.as_ref().and_then(SpoolFile::hurdle);
            let full = hurdle.is_some() && flow.state != FlowState::Snapshot;
            let waited_ns = if full { unread_ns.max(flow.reading.waited_ns(now_ns)) } else { unread_ns };
            if waited_ns < ALARM_NS {
                continue;
            }
            flow.reading.unread_ns_max = flow.reading.unread_ns_max.max(unread_ns);
            if !std::mem::replace(&mut flow.reading.alarmed, true) {
                tracing::warn!(flow = %flow.id, cause = why_unread(&self.settings, hurdle),
                    "the flow is not being read as it should: the source waits");
            }
            // A run that is stopping lets go anyway.
            if waited_ns >= (if full { LET_GO_FULL_NS } else { LET_GO_NS }) && !self.draining {
                let why = format!(
                    "the target does not keep up, and flow {} could not be read for {} ms, because {}. The source is let go \
                     before it has to wait longer; nothing that the target confirmed is lost. Make the target faster or give \
                     more room (--spool-max, --spool, --memory)",
                    flow.id,
                    waited_ns / 1_000_000,
                    why_unread(&self.settings, hurdle)
                );
                if flow.stable.is_none() {
                    return Err(EngineError::Target(why + ", and run again"));
                }
                if !std::mem::replace(&mut self.let_go, true) {
                    let _ = self.events.send(WorkerEvent::LetGo { why });
                }
            }
        }
        Ok(())
    }
}

fn why_unread(settings: &MigrateSettings, hurdle: Option<Hurdle>) -> String {
    let Some(spool) = &settings.spool else {
        return "memory is full and there is no spool (--spool none)".into();
    };
    let dir = spool.dir.display();
    match hurdle {
        Some(Hurdle::Cap) => {
            format!("memory is full and the spool has reached its cap of {} in {dir}", numbers::bytes(spool.bytes_max))
        }
        Some(Hurdle::NoSpace(errno) | Hurdle::Failed(errno)) => {
            let cause = std::io::Error::from_raw_os_error(errno);
            format!("memory is full and writing to the spool in {dir} failed ({cause})")
        }
        None => format!("memory is full and the spool in {dir} takes its time"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half a second in each one is too much for ever, half a second in ten is forgotten.
    #[test]
    fn waiting_again_and_again_adds_up() {
        let rounds = |pause_ms: u64| {
            let (mut reading, mut now_ns) = (Reading::default(), 1_000_000_000);
            for _ in 0..100 {
                reading.starved_since_ns = now_ns;
                now_ns += 500_000_000;
                reading.fed(now_ns);
                now_ns += pause_ms * 1_000_000;
            }
            reading.waited_ns(now_ns)
        };
        assert!(rounds(500) > LET_GO_FULL_NS && rounds(10_000) < LET_GO_FULL_NS);
        let mut reading = Reading { starved_since_ns: 5, ..Reading::default() };
        assert_eq!(reading.waited_ns(1005), 1000);
        reading.fed(1005);
        assert_eq!((reading.waited_ns(1005), reading.waited_ns(20_000)), (1000, 0));
    }
}
