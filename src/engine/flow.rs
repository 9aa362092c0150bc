//! One flow: its socket, decoder and handler, and how received bytes become commands.
//!
//! In: completed reads. Out: commands on the flow's lane, phase events to the control plane. Invariants: bytes are parsed
//! in stream order, a compressed blob's content in the place of the blob (`snapshot`); while the lane or the slab is full nothing
//! is decoded, and what is read goes into the backlog (`reading`); the end is the token, never a closed socket.

use super::backlog::Backlog;
use super::error::EngineError;
use super::handle::FlowHandler;
use super::input::{Cursor, HeapBudget, Room};
use super::lane::{KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES, USER_TIMEOUT};
use super::messages::{Apart, FlowStart, WorkerEvent};
use super::outlet::Outlet;
use super::reading::Reading;
use super::router::{ClusterWriter, WriteSettings};
use super::sealed::Ahead;
use super::settings::MigrateSettings;
use super::sizes::Sizes;
use super::stable::Stable;
use super::upstream::Upstream;
use super::wire::Wire;
use super::writer::{Encoder, Source};
use crate::dragonfly::blob::BlobReader;
use crate::dragonfly::journal::JournalDecoder;
use crate::dragonfly::stream::StreamDecoder;
use crate::dragonfly::{Codec, DecodeError, Reason};
use crate::ids::{FlowId, Lsn};
use crate::uring::{Class, Slab};
use bytes::Bytes;
use tokio::sync::mpsc::UnboundedSender;

mod snapshot;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowState {
    Snapshot,
    /// FULLSYNC_END came; journal blobs may follow.
    SnapshotEnded,
    /// Offset, EOF and the right token came. What follows is stable journal, read and dropped.
    Complete,
    /// Following the journal.
    Stable,
    /// Before a global command, waiting for the other flows.
    AtBarrier,
}

impl FlowState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::SnapshotEnded => "snapshot ended",
            Self::Complete => "complete",
            Self::Stable => "stable",
            Self::AtBarrier => "at barrier",
        }
    }
}

/// Why `pump` returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pumped {
    /// Enough for this turn; there is more.
    Budget,
    /// Until a read, an acknowledgement or free memory.
    Waiting,
}

/// A compressed blob whose content is being parsed.
struct Blob {
    reader: BlobReader,
    cursor: Cursor,
}

/// Heap for records longer than a chunk. What stands inside of a compressed blob has a budget of its own: the blob itself
/// stays in the outer one until its content is parsed, so that flows in blobs would wait for each other for ever.
pub struct Heaps {
    pub outer: HeapBudget,
    pub inner: HeapBudget,
}

pub struct Flow {
    pub id: FlowId,
    pub wire: Wire,
    /// Index of the worker's lane that takes this flow's commands.
    pub lane: usize,
    pub state: FlowState,
    pub reading: Reading,
    pub(super) upstream: Upstream,
    /// Nothing is left to be decoded, and nothing more comes.
    pub(super) spent: bool,
    pub bytes_in: u64,
    pub input: Cursor,
    /// What was read and does not fit into `input` yet.
    pub backlog: Backlog,
    pub handler: FlowHandler,
    /// In stable sync, or in a partial sync on the way there.
    pub stable: Option<Stable>,
    /// What is left to be applied of a journal blob of a partial sync.
    pub(super) blob_records: Bytes,
    /// Go on with the journal after the token.
    pub(super) follow: bool,
    pub(super) pump_bytes_max: usize,
    decoder: StreamDecoder,
    journal: JournalDecoder,
    blob: Option<Blob>,
    /// The command of a large string that is still being received.
    staged: Option<Box<Encoder>>,
    eof_token: [u8; 40],
    next_lsn: Option<Lsn>,
    /// When the newest bytes of `input` were read.
    pub(super) read_ns: u64,
    /// A record over several slots of a cluster: nothing more is decoded until it was carried out.
    pub(super) apart: Option<Apart>,
    /// Nothing more is applied; what was looked at meanwhile.
    pub(super) sealed: Option<Ahead>,
}

/// Bytes of one flow decoded in one turn.
const PUMP_BYTES: usize = 1 << 20;

/// What the inner loop stopped for.
pub(super) enum Stop {
    Need(usize),
    Blob(Codec, Bytes),
    /// A journal blob of a partial sync is in `blob_records`.
    Records,
    Full,
    Budget,
    Complete,
}

impl Flow {
    pub fn new(
        start: FlowStart,
        lane: usize,
        handler: FlowHandler,
        sizes: &Sizes,
        follow: bool,
        slab: &mut Slab,
        heap: &HeapBudget,
    ) -> Result<Self, EngineError> {
        let FlowStart { id, socket, eof_token, early, resume_at, in_blobs } = start;
        let mut input = Cursor::default();
        if input.make_room(slab, heap, 1, sizes.layout.rx_chunk_bytes) == Room::Wait {
            return Err(EngineError::Internal("the slab has no chunk for a new flow".into()));
        }
        if let Some(chunk) = input.chunk()
            && slab.append(chunk, &early) < early.len()
        {
            return Err(EngineError::Source(format!(
                "flow {id}: {} bytes came before DFLY SYNC was sent; this is not how a Dragonfly behaves",
                early.len()
            )));
        }
        // An idle source says nothing for hours (wire 1.9), and in a full sync nothing is said to it: only the kernel can
        // notice that its machine is gone.
        let wire = Wire::new(socket, Class::Rx);
        wire.watch_life(KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES, USER_TIMEOUT);
        Ok(Self {
            id,
            wire,
            lane,
            state: if resume_at.is_some() && !in_blobs { FlowState::Stable } else { FlowState::Snapshot },
            stable: resume_at.map(|lsn| {
                let mut stable = Stable::new(JournalDecoder::new(id, sizes.limits.atom_bytes_max), lsn);
                stable.in_blobs = in_blobs;
                stable
            }),
            blob_records: Bytes::new(),
            follow,
            pump_bytes_max: PUMP_BYTES,
            reading: Reading::default(),
            upstream: Upstream::Open,
            spent: false,
            bytes_in: early.len() as u64,
            input,
            backlog: Backlog::default(),
            handler,
            decoder: StreamDecoder::new(id, sizes.limits),
            journal: JournalDecoder::new(id, sizes.limits.atom_bytes_max),
            blob: None,
            staged: None,
            eof_token,
            next_lsn: None,
            apart: None,
            sealed: None,
            read_ns: 0,
        })
    }

    /// The full sync of the flow is over, and (in `migrate`) every held expiry was given back.
    pub fn is_complete(&self) -> bool {
        self.state == FlowState::Complete && !self.handler.is_releasing()
    }

    /// Decodes at most so many bytes a turn; `None`: the usual.
    pub fn limit_step(&mut self, bytes: Option<usize>) {
        self.pump_bytes_max = bytes.unwrap_or(PUMP_BYTES).min(PUMP_BYTES);
    }

    /// The source ended the connection before the flow was complete.
    pub(super) fn source_closed(&self) -> EngineError {
        let id = self.id;
        if self.stable.is_some() {
            return EngineError::Source(format!("the source closed the connection of flow {id} in stable sync"));
        }
        EngineError::Source(format!(
            "the source closed the connection of flow {id} in the middle of the full sync ({}). Its log says why \
             (replication_timeout, shutdown, memory); the target holds a part of the data",
            self.decoder.closed(&[])
        ))
    }

    pub(super) fn reading_failed(&self, errno: i32) -> EngineError {
        EngineError::Source(format!(
            "flow {}, offset {}: reading failed: {}",
            self.id,
            self.decoder.offset_bytes(),
            self.wire.reason(errno)
        ))
    }

    /// Decodes and converts what was received, as far as the lane and the slab have room.
    #[allow(clippy::too_many_arguments)] // one call site; a struct would only rename them
    pub fn pump(
        &mut self,
        slab: &mut Slab,
        lane: &mut Outlet<'_>,
        heap: &Heaps,
        settings: &MigrateSettings,
        sizes: &Sizes,
        now_ms: i64,
        events: &UnboundedSender<WorkerEvent>,
    ) -> Result<Pumped, EngineError> {
        let chunk_bytes = sizes.layout.rx_chunk_bytes;
        let mut consumed_bytes = 0;
        lane.reopen_window(settings.window_bytes);
        if !self.reads_into_input() {
            self.input.filled(slab);
        }
        loop {
            if self.handler.is_releasing() {
                self.release_held(slab, lane, settings, now_ms);
                if self.handler.is_releasing() {
                    return Ok(Pumped::Waiting);
                }
            }
            // Not beside a global command: a position goes with it.
            if self.handler.holds_again() && self.state != FlowState::AtBarrier {
                self.hold_again(slab, lane, settings);
                if self.handler.holds_again() {
                    return Ok(Pumped::Waiting);
                }
            }
            if self.handler.has_deferred() && self.apart.is_none() {
                self.go_on_with_blob(slab, lane, settings, now_ms)?;
            }
            if self.apart.is_some() || self.spent {
                return Ok(Pumped::Waiting);
            }
            match self.state {
                FlowState::Complete if self.follow => {
                    self.begin_stable(slab, lane, settings, sizes.limits.atom_bytes_max)?;
                    continue;
                }
                FlowState::Complete => return Ok(self.drop_stable(slab, &heap.outer, chunk_bytes)),
                FlowState::AtBarrier => return Ok(Pumped::Waiting),
                FlowState::Snapshot | FlowState::SnapshotEnded | FlowState::Stable => {}
            }
            if !lane.has_room(slab, settings.window_bytes) {
                return Ok(Pumped::Waiting);
            }
            let stop = if self.sealed.is_some() {
                self.look_ahead(slab, chunk_bytes)?
            } else if !self.blob_records.is_empty() {
                match self.decode_blob_records(slab, lane, settings, now_ms, events, &mut consumed_bytes)? {
                    Stop::Need(_) => continue,
                    stop => stop,
                }
            } else if self.state == FlowState::Stable {
                self.decode_stable(slab, lane, settings, now_ms, events, &mut consumed_bytes)?
            } else {
                self.decode(slab, lane, settings, chunk_bytes, now_ms, events, &mut consumed_bytes)?
            };
            match stop {
                Stop::Full => return Ok(Pumped::Waiting),
                Stop::Budget => return Ok(Pumped::Budget),
                // Each blob begins in database 0.
                Stop::Records => {
                    let decoder = JournalDecoder::new(self.id, sizes.limits.atom_bytes_max);
                    if let Some(stable) = &mut self.stable {
                        stable.decoder = decoder.starting_at(self.decoder.offset_bytes());
                    }
                }
                Stop::Complete if self.stable.is_some() => {}
                Stop::Complete => {
                    self.handler.snapshot_ended(now_ms);
                    if !self.follow {
                        self.handler.release_all(now_ms);
                    }
                }
                Stop::Blob(codec, frame) => {
                    self.decoder.enter_blob()?;
                    let reader = BlobReader::new(codec, frame).map_err(|reason| self.corrupt(reason))?;
                    self.blob = Some(Blob { reader, cursor: Cursor::default() });
                }
                Stop::Need(need) if self.blob.is_some() => {
                    if self.unpack(slab, &heap.inner, need, chunk_bytes)? == Room::Wait {
                        return Ok(Pumped::Waiting);
                    }
                }
                Stop::Need(need) => {
                    if self.reads_into_input() {
                        return Ok(Pumped::Waiting);
                    }
                    if self.is_at_end(slab, need) {
                        if self.sealed.is_some() {
                            return Ok(Pumped::Waiting);
                        }
                        self.end(slab);
                        return Ok(Pumped::Waiting);
                    }
                    if self.input.make_room(slab, &heap.outer, need, chunk_bytes) == Room::Wait {
                        return Ok(Pumped::Waiting);
                    }
                    // A jumbo may have become complete with bytes that were there already.
                    let available = self.input.window(slab).map_or(0, |(window, from)| window.bytes().len() - from);
                    if available < need && !self.feed(slab) {
                        return Ok(Pumped::Waiting);
                    }
                }
            }
        }
    }

    /// Gives held expiries back, as far as the lane has room.
    pub fn release_held(&mut self, slab: &mut Slab, lane: &mut Outlet<'_>, settings: &MigrateSettings, now_ms: i64) {
        lane.reopen_window(settings.window_bytes);
        while self.handler.is_releasing() && lane.has_room(slab, settings.window_bytes) {
            match lane {
                Outlet::One(lane) => {
                    let mut writer = lane.plain_writer(slab, settings.batch_bytes, self.read_ns);
                    self.handler.release(now_ms, &mut writer);
                }
                Outlet::Cluster { lanes, router } => {
                    let write = WriteSettings::copying(settings.batch_bytes, self.read_ns);
                    let mut writer = ClusterWriter::new(router, lanes, slab, &Source::None, (self.id, None), write);
                    self.handler.release(now_ms, &mut writer);
                }
            }
            lane.queue_closed();
        }
    }

    /// The record was carried out.
    pub(super) fn release_apart(&mut self) {
        if let Some(lsn) = self.apart.take().and_then(|apart| apart.next_lsn)
            && let Some(stable) = &mut self.stable
        {
            stable.next_lsn = lsn;
        }
    }

    /// The full sync of this flow is over: what follows is journal. The position is put into the checkpoint behind all that
    /// the snapshot wrote.
    fn begin_stable(
        &mut self,
        slab: &mut Slab,
        lane: &mut Outlet<'_>,
        settings: &MigrateSettings,
        atom_bytes_max: usize,
    ) -> Result<(), EngineError> {
        let next_lsn =
            self.next_lsn.ok_or_else(|| EngineError::Internal("a flow is complete without its LSN".into()))?;
        let decoder = JournalDecoder::new(self.id, atom_bytes_max).starting_at(self.decoder.offset_bytes());
        self.state = FlowState::Stable;
        // A partial sync has counted up to here, and was told that it did so rightly.
        if let Some(stable) = &mut self.stable {
            stable.decoder = decoder;
            stable.in_blobs = false;
            return Ok(());
        }
        let mut stable = Stable::new(decoder, next_lsn);
        // Nothing is confirmed before the snapshot's last command is.
        stable.acked_lsn = Lsn(0);
        self.stable = Some(stable);
        lane.note_position(slab, settings.batch_bytes, self.id, next_lsn, self.read_ns);
        Ok(())
    }

    pub(super) fn corrupt(&self, reason: Reason) -> EngineError {
        EngineError::Corrupt(DecodeError { flow: self.id, offset: self.decoder.offset_bytes(), reason })
    }

    /// What follows the token belongs to no full sync: it is read, so that the source never waits, and dropped.
    fn drop_stable(&mut self, slab: &mut Slab, heap: &HeapBudget, chunk_bytes: usize) -> Pumped {
        if !self.reads_into_input() {
            self.input.clear(slab);
            self.input.make_room(slab, heap, 1, chunk_bytes);
        }
        Pumped::Waiting
    }
}
