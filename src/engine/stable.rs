//! The stable phase of one flow: journal records applied in order, positions counted, barriers kept.
//!
//! In: the bytes behind the token (or behind the reply to `DFLY FLOW` in a partial sync). Out: commands on the flow's
//! lane, each record followed by its position. Invariants: `acked <= applied == read` at a record's border; an LSN marker
//! must equal the LSN of the record before it, else something was lost or counted twice; a global command is not applied
//! here: the flow stops before it until all flows have reached it and it was executed once (wire 4.5).

use super::error::EngineError;
use super::flow::{Flow, FlowState, Stop};
use super::global::is_elsewhere;
use super::handle::{Applied, FlowHandler};
use super::lane::Lane;
use super::messages::{Apart, Barrier, Lost, WorkerEvent};
use super::outlet::Outlet;
use super::router::{ClusterWriter, WriteSettings};
use super::settings::MigrateSettings;
use super::witness::is_clients;
use super::writer::{Source, Writer};
use crate::convert::Out;
use crate::convert::journal::GlobalCommand;
use crate::dragonfly::Reason;
use crate::dragonfly::journal::{JournalDecoder, JournalEvent, JournalProgress};
use crate::ids::{DbIndex, Lsn};
use crate::uring::Slab;
use tokio::sync::mpsc::UnboundedSender;

/// Records between two acknowledgements at the most (the native replica's figure).
const ACK_RECORDS_MAX: u64 = 1024;
const ACK_EVERY_NS: u64 = 1_000_000_000;

/// What a flow keeps in stable sync.
pub struct Stable {
    pub decoder: JournalDecoder,
    /// LSN of the next record to be read; everything before it was given to the lane.
    pub next_lsn: Lsn,
    /// LSN behind the last record that a client wrote; 0: none was read.
    pub wrote_lsn: Lsn,
    /// LSN of the next record that the target has not confirmed.
    pub acked_lsn: Lsn,
    /// What the last ACK said, and when it was sent.
    ack_sent: Option<Lsn>,
    ack_sent_ns: u64,
    /// A PING record waits for its immediate ACK.
    ping: bool,
    /// LSN behind the last PING that is not acknowledged itself: whoever sent it waits for that.
    ping_lsn: Option<Lsn>,
    /// The global command that the flow stands before.
    pub barrier: Option<Barrier>,
    /// What the flow was in before it stood there.
    before_barrier: FlowState,
    /// The journal still comes in blobs (see [`FlowStart::in_blobs`](super::messages::FlowStart)): nothing is acknowledged.
    pub in_blobs: bool,
}

impl Stable {
    pub fn new(decoder: JournalDecoder, next_lsn: Lsn) -> Self {
        Self {
            decoder,
            next_lsn,
            wrote_lsn: Lsn(0),
            acked_lsn: next_lsn,
            ack_sent: None,
            ack_sent_ns: 0,
            ping: false,
            ping_lsn: None,
            barrier: None,
            before_barrier: FlowState::Stable,
            in_blobs: false,
        }
    }

    /// The LSN to acknowledge now, if an ACK is due.
    pub fn ack_due(&mut self, now_ns: u64) -> Option<Lsn> {
        let due = match self.ack_sent {
            None => true,
            Some(sent) => {
                let nearer = self.ping_lsn.is_some() && self.acked_lsn > sent;
                let many = self.acked_lsn.0 >= sent.0.saturating_add(ACK_RECORDS_MAX);
                self.ping || nearer || many || now_ns >= self.ack_sent_ns + ACK_EVERY_NS
            }
        };
        if !due {
            return None;
        }
        self.ping = false;
        self.ping_lsn = self.ping_lsn.filter(|lsn| *lsn > self.acked_lsn);
        self.ack_sent = Some(self.acked_lsn);
        self.ack_sent_ns = now_ns;
        Some(self.acked_lsn)
    }
}

/// Applies one record, if it is a command.
#[inline]
fn apply(
    handler: &mut FlowHandler,
    event: &JournalEvent<'_>,
    now_ms: i64,
    out: &mut impl Out,
) -> Result<Applied, EngineError> {
    match event {
        JournalEvent::Command(command) => match handler.journal_command(command, now_ms, true, out)? {
            // Nothing of it is at the target. No flow waits for the others there: of two that go on from positions before and behind it
            // one would never come to it.
            Applied::Global(global) if is_elsewhere(&global, handler.scope()) => Ok(Applied::Done),
            applied => Ok(applied),
        },
        _ => Ok(Applied::Done),
    }
}

impl Flow {
    /// Decodes and applies journal records from the current window until something is missing.
    pub(super) fn decode_stable(
        &mut self,
        slab: &mut Slab,
        lane: &mut Outlet<'_>,
        settings: &MigrateSettings,
        now_ms: i64,
        events: &UnboundedSender<WorkerEvent>,
        consumed_bytes: &mut usize,
    ) -> Result<Stop, EngineError> {
        let Some((window, mut position)) = self.input.window(slab) else { return Ok(Stop::Need(1)) };
        let (source, bytes) = (window.source(), window.bytes());
        let stop =
            self.apply_records(bytes, &mut position, &source, slab, lane, settings, now_ms, events, consumed_bytes)?;
        self.input.consumed_to(position);
        Ok(stop)
    }

    /// Applies what is left of the journal blob of a partial sync. `Need`: it is at its end.
    pub(super) fn decode_blob_records(
        &mut self,
        slab: &mut Slab,
        lane: &mut Outlet<'_>,
        settings: &MigrateSettings,
        now_ms: i64,
        events: &UnboundedSender<WorkerEvent>,
        consumed_bytes: &mut usize,
    ) -> Result<Stop, EngineError> {
        let (bytes, mut position) = (std::mem::take(&mut self.blob_records), 0);
        let source = Source::Heap(bytes.clone());
        let stop =
            self.apply_records(&bytes, &mut position, &source, slab, lane, settings, now_ms, events, consumed_bytes)?;
        self.blob_records = bytes.slice(position.min(bytes.len())..);
        match stop {
            Stop::Need(need) if !self.blob_records.is_empty() => {
                let missing = need.saturating_sub(self.blob_records.len()) as u64;
                Err(self.corrupt(Reason::JournalBlobTruncated { missing }))
            }
            stop => Ok(stop),
        }
    }

    /// Applies journal records of `bytes` from `position` on.
    #[allow(clippy::too_many_arguments)] // two call sites; a struct would only rename them
    fn apply_records(
        &mut self,
        bytes: &[u8],
        position: &mut usize,
        source: &Source,
        slab: &mut Slab,
        lane: &mut Outlet<'_>,
        settings: &MigrateSettings,
        now_ms: i64,
        events: &UnboundedSender<WorkerEvent>,
        consumed_bytes: &mut usize,
    ) -> Result<Stop, EngineError> {
        // Watched records that an earlier session applied.
        let mut unheard: Vec<(DbIndex, Vec<u8>)> = Vec::new();
        let Self { id, handler, stable, state, read_ns, pump_bytes_max, apart, upstream, .. } = self;
        let Some(stable) = stable else {
            return Err(EngineError::Internal("a flow is in stable sync without its counters".into()));
        };
        let stop = loop {
            if !handler.doubts.is_empty() {
                // Of a source that is gone nothing is heard: then the next session asks.
                if handler.doubts.holds_flow() && upstream.is_open() {
                    break Stop::Full;
                }
                if handler.doubts.is_due(stable.next_lsn) {
                    break Stop::Budget;
                }
            }
            let rest = bytes.get(*position..).unwrap_or_default();
            if rest.is_empty() {
                break Stop::Need(1);
            }
            let (event, consumed) = match stable.decoder.next(rest)? {
                JournalProgress::NeedMore { at_least } => break Stop::Need(at_least),
                JournalProgress::Event { event, consumed } => (event, consumed),
            };
            let after = Lsn(stable.next_lsn.0 + u64::from(event.counts()));
            match event {
                JournalEvent::Marker(lsn) => {
                    if lsn.0.checked_add(1) != Some(stable.next_lsn.0) {
                        return Err(EngineError::LostPosition(format!(
                            "flow {id}: the source says that its last record was LSN {lsn}, but {} was counted here: a record was \
                             lost or counted twice",
                            stable.next_lsn.0.saturating_sub(1)
                        )));
                    }
                }
                JournalEvent::Ping => (stable.ping, stable.ping_lsn) = (true, Some(after)),
                JournalEvent::Exec | JournalEvent::Command(_) => {}
            }
            if let JournalEvent::Command(command) = &event
                && !handler.doubts.is_empty()
            {
                handler.touch(command, stable.next_lsn);
            }
            if is_clients(&event) {
                stable.wrote_lsn = after;
            }
            let position_of_record = (*id, event.counts().then_some(after));
            let applied = match lane {
                Outlet::One(lane) => {
                    let Lane { encoder, guard, closed, spare_segments, .. } = &mut **lane;
                    let mut writer = Writer {
                        encoder,
                        slab: &mut *slab,
                        guard: Some(guard),
                        source,
                        borrow_bytes_min: settings.borrow_bytes_min,
                        batch_bytes: settings.batch_bytes,
                        in_record: true,
                        closed,
                        spare_segments,
                        read_ns: *read_ns,
                    };
                    let commands_before = writer.encoder.batch.commands;
                    let applied = apply(handler, &event, now_ms, &mut writer)
                        .map_err(|error| error.at_lsn(*id, stable.next_lsn))?;
                    if let JournalEvent::Command(command) = &event
                        && writer.encoder.batch.commands > commands_before
                        && let Some((key, lost_if)) = handler.watched(command)
                    {
                        writer.watch(*id, command.db, key, lost_if);
                    }
                    if matches!(applied, Applied::Done) && event.counts() {
                        writer.record_done(*id, after);
                    }
                    applied
                }
                Outlet::Cluster { lanes, router } => {
                    let write = WriteSettings {
                        borrow_bytes_min: settings.borrow_bytes_min,
                        batch_bytes: settings.batch_bytes,
                        read_ns: *read_ns,
                    };
                    let mut writer = ClusterWriter::new(router, lanes, slab, source, position_of_record, write);
                    // Each of these records is one command at the most, but for PERSIST, whose two have the same answer, and RENAME.
                    let watched = match &event {
                        JournalEvent::Command(command) => handler.watched(command).map(|of| (command.db, of)),
                        _ => None,
                    };
                    if let Some((db, (_, lost_if))) = watched {
                        writer.watch(db, lost_if);
                    }
                    let applied = apply(handler, &event, now_ms, &mut writer)
                        .map_err(|error| error.at_lsn(*id, stable.next_lsn))?;
                    writer.record_done();
                    if let Some((db, (key, _))) = watched.filter(|_| writer.is_unheard()) {
                        unheard.push((db, key.to_vec()));
                    }
                    router.take_refusal()?;
                    if let (JournalEvent::Command(command), Applied::Apart(args)) = (&event, &applied) {
                        let (db, marker) = (command.db, router.marks.journal_value(after));
                        *apart = Some(Apart { flow: *id, db, args: args.clone(), next_lsn: Some(after), marker });
                    }
                    applied
                }
            };
            if let (JournalEvent::Command(command), Applied::Global(global)) = (&event, &applied) {
                let barrier = Barrier { flow: *id, txid: command.txid, command: global.clone(), next_lsn: after };
                stable.next_lsn = after;
                stable.barrier = Some(barrier.clone());
                stable.before_barrier = std::mem::replace(state, FlowState::AtBarrier);
                *position += consumed;
                match &barrier.command {
                    GlobalCommand::FlushDb(db) => handler.doubts.flushed(Some(*db)),
                    GlobalCommand::FlushAll => handler.doubts.flushed(None),
                    GlobalCommand::FlushSlots(_) => handler.doubts.touched_all(after),
                }
                let _ = events.send(WorkerEvent::AtBarrier(barrier));
                break Stop::Full;
            }
            *position += consumed;
            if apart.is_some() {
                break Stop::Full;
            }
            if event.counts() {
                stable.next_lsn = after;
            }
            *consumed_bytes += consumed;
            lane.queue_closed();
            if !lane.still_has_room(slab, settings.window_bytes) {
                break Stop::Full;
            }
            if *consumed_bytes > *pump_bytes_max {
                break Stop::Budget;
            }
        };
        if !unheard.is_empty()
            && let Outlet::Cluster { lanes, router } = lane
        {
            let lost: Vec<Lost> = unheard.into_iter().filter_map(|(db, key)| self.lost(db, key, events)).collect();
            router.remember_lost(lanes, slab, settings.batch_bytes, self.read_ns, &lost);
        }
        Ok(stop)
    }

    /// The target confirmed everything before `lsn`.
    pub(super) fn confirmed(&mut self, lsn: Lsn) {
        if let Some(stable) = &mut self.stable {
            stable.acked_lsn = stable.acked_lsn.max(lsn);
        }
    }

    /// LSN of the next record that is not given to a lane: that of a global command for a flow that stands before one.
    pub(super) fn given_lsn(&self) -> Option<Lsn> {
        let stable = self.stable.as_ref()?;
        Some(stable.barrier.as_ref().map_or(stable.next_lsn, |barrier| Lsn(barrier.next_lsn.0.saturating_sub(1))))
    }

    /// The barrier was executed, its position stored: the flow goes on behind it. Returns that position.
    pub(super) fn release_barrier(&mut self) -> Option<Lsn> {
        let stable = self.stable.as_mut()?;
        let barrier = stable.barrier.take()?;
        stable.acked_lsn = stable.acked_lsn.max(barrier.next_lsn);
        self.state = stable.before_barrier;
        Some(stable.acked_lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn stable() -> Stable {
        let mut stable = Stable::new(JournalDecoder::new(crate::ids::FlowId(0), 1 << 20), Lsn(10));
        assert_eq!(stable.ack_due(0), Some(Lsn(10)), "at once");
        stable
    }

    #[test]
    fn an_idle_flow_is_acknowledged_each_second() {
        let mut stable = stable();
        for second in 0..5 {
            assert_eq!(stable.ack_due((second * 1000 + 999) * MS), None);
            assert_eq!(stable.ack_due((second * 1000 + 1000) * MS), Some(Lsn(10)), "{second}");
        }
    }

    #[test]
    fn a_busy_flow_is_acknowledged_each_1024_records() {
        let mut stable = stable();
        for round in 1..5 {
            stable.acked_lsn = Lsn(10 + round * 1024 - 1);
            assert_eq!(stable.ack_due(MS), None);
            stable.acked_lsn = Lsn(10 + round * 1024);
            assert_eq!(stable.ack_due(MS), Some(stable.acked_lsn));
        }
    }

    /// A takeover waits for the PING's own LSN, which is confirmed after the immediate ACK.
    #[test]
    fn a_ping_is_acknowledged_at_once_and_again_when_it_is_confirmed() {
        let mut stable = stable();
        (stable.ping, stable.ping_lsn) = (true, Some(Lsn(13)));
        assert_eq!(stable.ack_due(MS), Some(Lsn(10)));
        assert_eq!(stable.ack_due(MS), None);
        stable.acked_lsn = Lsn(12);
        assert_eq!(stable.ack_due(MS), Some(Lsn(12)));
        assert_eq!(stable.ack_due(MS), None);
        stable.acked_lsn = Lsn(13);
        assert_eq!(stable.ack_due(MS), Some(Lsn(13)));
        // Behind it the cadence is as before.
        stable.acked_lsn = Lsn(14);
        assert_eq!(stable.ack_due(MS), None);
        // One that comes when everything before it is confirmed.
        (stable.ping, stable.ping_lsn, stable.acked_lsn) = (true, Some(Lsn(15)), Lsn(15));
        assert_eq!(stable.ack_due(MS), Some(Lsn(15)));
        assert_eq!(stable.ack_due(MS), None);
    }
}
