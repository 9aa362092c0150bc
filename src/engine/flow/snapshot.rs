//! The full sync of a flow: its bytes become events, and the events commands.
//!
//! In: the flow's input, or the unpacked content of a compressed blob. Out: commands on the flow's lane, phase events to the
//! control plane, and why decoding stopped. Invariants: a blob's content is parsed in the place of the blob; what is too long
//! for a chunk is staged and queued whole, behind all before it; an end is the token, never a closed socket.

use super::{Flow, FlowState, Stop};
use crate::convert::Out;
use crate::dragonfly::journal::JournalDecoder;
use crate::dragonfly::stream::Progress;
use crate::dragonfly::{DecodeError, Event, ObjectType, Reason};
use crate::engine::error::EngineError;
use crate::engine::handle::FlowHandler;
use crate::engine::input::{HeapBudget, Room, Window};
use crate::engine::lane::Lane;
use crate::engine::messages::{Apart, WorkerEvent};
use crate::engine::outlet::Outlet;
use crate::engine::router::{ClusterWriter, WriteSettings};
use crate::engine::settings::MigrateSettings;
use crate::engine::writer::{Encoder, Source, Writer};
use crate::uring::Slab;
use bytes::Bytes;
use tokio::sync::mpsc::UnboundedSender;

/// Pieces of a large string are at least this long, unless the chunk or the string ends.
const PIECE_BYTES_MIN: u64 = 64 * 1024;

impl Flow {
    /// Decodes from the current window until something is missing.
    #[allow(clippy::too_many_arguments)] // one call site; a struct would only rename them
    pub(super) fn decode(
        &mut self,
        slab: &mut Slab,
        lane: &mut Outlet<'_>,
        settings: &MigrateSettings,
        chunk_bytes: usize,
        now_ms: i64,
        events: &UnboundedSender<WorkerEvent>,
        consumed_bytes: &mut usize,
    ) -> Result<Stop, EngineError> {
        let Self { blob, input, decoder, journal, handler, staged, state, stable, .. } = self;
        let cursor = match blob {
            Some(blob) => &mut blob.cursor,
            None => input,
        };
        let Some((window, mut position)) = cursor.window(slab) else { return Ok(Stop::Need(1)) };
        let window_is_last = match &window {
            Window::Chunk(chunk, view) => view.len() == slab.capacity(*chunk),
            Window::Heap(_) => true,
        };
        let source = window.source();
        let bytes = window.bytes();
        // A staged command is closed nowhere: it is queued whole.
        let mut nowhere = (Vec::new(), Vec::new());
        let stop = loop {
            // Asked also with nothing left: the end of an object takes no bytes.
            let rest = &bytes[position..];
            let raw_left = decoder.raw_bytes_left();
            if raw_left > 0 && !window_is_last {
                let wanted = raw_left.min(PIECE_BYTES_MIN).min(chunk_bytes as u64) as usize;
                if rest.len() < wanted {
                    break Stop::Need(wanted);
                }
            }
            let (event, consumed) = match decoder.next(rest)? {
                Progress::NeedMore { at_least } => break Stop::Need(at_least.max(1)),
                Progress::Event { event, consumed } => (event, consumed),
            };
            position += consumed;
            *consumed_bytes += consumed;
            match event {
                Event::FullSyncEnd => {
                    *state = FlowState::SnapshotEnded;
                    let _ = events.send(WorkerEvent::FullSyncEnd { flow: self.id });
                    continue;
                }
                Event::JournalOffset(lsn) => {
                    if let Some(stable) = stable
                        && stable.next_lsn != lsn
                    {
                        return Err(EngineError::LostPosition(format!(
                            "flow {}: the source says that its next record is LSN {lsn}, but {} was counted over the records \
                             of the partial sync: a record was lost or counted twice",
                            self.id, stable.next_lsn
                        )));
                    }
                    self.next_lsn = Some(lsn);
                    continue;
                }
                Event::Eof { token } => {
                    if token != self.eof_token {
                        let text = |token: &[u8; 40]| token.escape_ascii().to_string();
                        let reason = Reason::WrongToken { found: text(&token), promised: text(&self.eof_token) };
                        let error = DecodeError { flow: self.id, offset: decoder.offset_bytes(), reason };
                        return Err(EngineError::Corrupt(error));
                    }
                    let next_lsn = self.next_lsn.ok_or_else(|| {
                        EngineError::Internal("the decoder let an EOF without JOURNAL_OFFSET pass".into())
                    })?;
                    *state = FlowState::Complete;
                    let _ = events.send(WorkerEvent::Complete { flow: self.id, next_lsn, token });
                    break Stop::Complete;
                }
                Event::Compressed { codec, frame } => {
                    let frame = match &window {
                        Window::Chunk(..) => Bytes::copy_from_slice(frame),
                        Window::Heap(heap) => heap.slice_ref(frame),
                    };
                    break Stop::Blob(codec, frame);
                }
                Event::Skipped { opcode } => {
                    tracing::debug!(flow = %self.id, opcode, "read over");
                    continue;
                }
                Event::JournalBlob { record } if stable.is_some() => {
                    if record.is_empty() {
                        let reason = Reason::JournalBlobEmpty;
                        let error = DecodeError { flow: self.id, offset: decoder.offset_bytes(), reason };
                        return Err(EngineError::Corrupt(error));
                    }
                    self.blob_records = Bytes::copy_from_slice(record);
                    break Stop::Records;
                }
                Event::Whole { .. } | Event::Begin { .. } if stable.is_some() => {
                    return Err(EngineError::LostPosition(format!(
                        "flow {}: the source granted a partial sync, but sends keys of a snapshot",
                        self.id
                    )));
                }
                _ => {}
            }
            if let Event::Begin { meta, .. } = &event
                && meta.object_type == ObjectType::String
            {
                *staged = Some(Box::new(Encoder::new()));
            }
            let ends = matches!(event, Event::End { .. });
            let (borrow_bytes_min, batch_bytes, read_ns) =
                (settings.borrow_bytes_min, settings.batch_bytes, self.read_ns);
            let to_lane = |encoder, guard, closed, spare_segments, slab| Writer {
                encoder,
                slab,
                guard,
                source: &source,
                borrow_bytes_min,
                batch_bytes,
                in_record: false,
                closed,
                spare_segments,
                read_ns,
            };
            let converted = match (staged.as_deref_mut(), &mut *lane) {
                (Some(staged), _) => {
                    let mut writer = to_lane(staged, None, &mut nowhere.0, &mut nowhere.1, &mut *slab);
                    convert(handler, journal, &event, now_ms, &mut writer)
                }
                (None, Outlet::One(lane)) => {
                    let Lane { encoder, guard, closed, spare_segments, .. } = &mut **lane;
                    let mut writer = to_lane(encoder, Some(guard), closed, spare_segments, &mut *slab);
                    convert(handler, journal, &event, now_ms, &mut writer)
                }
                (None, Outlet::Cluster { lanes, router }) => {
                    let write = WriteSettings { borrow_bytes_min, batch_bytes, read_ns };
                    let mut writer = ClusterWriter::new(router, lanes, slab, &source, (self.id, None), write);
                    convert(handler, journal, &event, now_ms, &mut writer).and_then(|()| router.take_refusal())
                }
            };
            if let Err(error) = converted {
                // What is wrong inside of a value is found away from the stream: here it gets its place.
                return Err(match error {
                    EngineError::Corrupt(error) => EngineError::Corrupt(error.placed(self.id, decoder.offset_bytes())),
                    error => error,
                });
            }
            if staged.is_some() {
                commit_staged(staged, ends, slab, lane, settings.batch_bytes);
            } else {
                lane.queue_closed();
            }
            if let Some((db, args)) = handler.apart.take() {
                self.apart = Some(Apart { flow: self.id, db, args, next_lsn: None, marker: Vec::new() });
                break Stop::Full;
            }
            if !lane.still_has_room(slab, settings.window_bytes) {
                break Stop::Full;
            }
            if *consumed_bytes > self.pump_bytes_max {
                break Stop::Budget;
            }
        };
        cursor.consumed_to(position);
        Ok(stop)
    }

    /// Unpacks more of the blob's content, or leaves the blob at its end.
    pub(super) fn unpack(
        &mut self,
        slab: &mut Slab,
        heap: &HeapBudget,
        need: usize,
        chunk_bytes: usize,
    ) -> Result<Room, EngineError> {
        let Some(blob) = &mut self.blob else { return Ok(Room::Ready) };
        if blob.cursor.make_room(slab, heap, need, chunk_bytes) == Room::Wait {
            return Ok(Room::Wait);
        }
        // A jumbo may have become complete with bytes that were there already, at the very end of the blob.
        if blob.cursor.window(slab).is_some_and(|(window, from)| window.bytes().len() - from >= need) {
            return Ok(Room::Ready);
        }
        let Some(chunk) = blob.cursor.chunk() else { return Ok(Room::Ready) };
        let unpacked = match blob.reader.read(slab.spare(chunk)) {
            Ok(unpacked) => unpacked,
            Err(reason) => return Err(self.corrupt(reason)),
        };
        if unpacked > 0 {
            slab.advance(chunk, unpacked);
            return Ok(blob.cursor.filled(slab));
        }
        if slab.room(chunk) == 0 {
            return Ok(Room::Ready);
        }
        let left_over = blob.cursor.unparsed(slab);
        self.decoder.leave_blob(&left_over)?;
        blob.cursor.clear(slab);
        self.blob = None;
        Ok(Room::Ready)
    }

    /// The records of a blob behind one that was carried out apart.
    pub(super) fn go_on_with_blob(
        &mut self,
        slab: &mut Slab,
        lane: &mut Outlet<'_>,
        settings: &MigrateSettings,
        now_ms: i64,
    ) -> Result<(), EngineError> {
        while self.handler.has_deferred() && self.apart.is_none() {
            let Outlet::Cluster { lanes, router } = lane else { return Ok(()) };
            let write = WriteSettings::copying(settings.batch_bytes, self.read_ns);
            let mut writer = ClusterWriter::new(router, lanes, slab, &Source::None, (self.id, None), write);
            self.handler.next_deferred(now_ms, &mut writer)?;
            router.take_refusal()?;
            if let Some((db, args)) = self.handler.apart.take() {
                self.apart = Some(Apart { flow: self.id, db, args, next_lsn: None, marker: Vec::new() });
            }
        }
        Ok(())
    }
}

/// Hands an event to the flow's handler.
#[inline]
fn convert(
    handler: &mut FlowHandler,
    journal: &mut JournalDecoder,
    event: &Event<'_>,
    now_ms: i64,
    out: &mut impl Out,
) -> Result<(), EngineError> {
    match event {
        Event::JournalBlob { record } => handler.journal_blob(journal, record, now_ms, out),
        event => handler.snapshot(event, now_ms, out),
    }
}

/// Queues the staged command(s) once none is open.
fn commit_staged(
    staged: &mut Option<Box<Encoder>>,
    ends: bool,
    slab: &mut Slab,
    lane: &mut Outlet<'_>,
    batch_bytes: usize,
) {
    let Some(encoder) = staged else { return };
    if !encoder.in_command && encoder.batch.commands > 0 {
        let mut batch = encoder.take_batch(slab, Vec::new());
        encoder.tail.finish(&mut batch, slab);
        lane.queue_staged(slab, batch, encoder, batch_bytes);
    }
    if ends {
        let mut unused = encoder.take_batch(slab, Vec::new());
        encoder.tail.finish(&mut unused, slab);
        unused.release(slab);
        *staged = None;
    }
}
