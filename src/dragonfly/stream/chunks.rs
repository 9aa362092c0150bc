//! Tagged chunks (wire 2): pieces of several objects that come in turns on one flow.
//!
//! In: a chunk, from its opcode on, or the rest of its payload. Out: `Begin`, `Run` and `End` of the object that it belongs to.
//! Invariants: what is read of a chunk stays within it; only elements may be cut by its end, and only where another chunk of
//! the object follows.

use super::{Current, Split, StreamDecoder};
use crate::dragonfly::error::{Limit, Reason};
use crate::dragonfly::event::{Event, ObjectId};
use crate::dragonfly::layout::Left;
use crate::dragonfly::record::{Found, clip, find_chunk_value, read_head};
use crate::dragonfly::wire::{Read, Stop};

/// Opcode, u32le stream id, u32le payload length.
const CHUNK_HEAD_BYTES: usize = 9;

impl StreamDecoder {
    /// A tagged chunk, from its opcode on.
    pub(super) fn chunk<'a>(&'a mut self, input: &'a [u8]) -> Read<(Event<'a>, usize)> {
        let mut reader = self.limits.reader(input);
        reader.u8()?;
        let (id, len) = (reader.u32_le()?, reader.u32_le()?);
        if id == 0 {
            return Err(Reason::ChunkIdZero.into());
        }
        if len == 0 {
            return Err(Reason::ChunkEmpty { id }.into());
        }
        let payload = input.get(CHUNK_HEAD_BYTES..).unwrap_or_default();
        if self.open.iter().any(|split| split.id == id) {
            return self.chunk_payload(id, u64::from(len), payload, CHUNK_HEAD_BYTES);
        }
        self.chunk_begin(id, u64::from(len), payload)
    }

    /// The first chunk of an object: attributes, type, key and the beginning of the value.
    pub(super) fn chunk_begin<'a>(&'a mut self, id: u32, len: u64, payload: &'a [u8]) -> Read<(Event<'a>, usize)> {
        let view = clip(payload, len);
        let in_chunk = |stop| within_chunk(stop, id, len, CHUNK_HEAD_BYTES);
        let head = read_head(view, &self.limits, &mut self.scratch).map_err(in_chunk)?;
        let found = find_chunk_value(&head, view, &self.limits).map_err(in_chunk)?;
        let (end, left_over) = (CHUNK_HEAD_BYTES + found.end, len - found.end as u64);
        match found.what {
            Found::Whole => {
                if left_over > 0 {
                    return Err(Reason::ChunkLeftOver { id, left_over }.into());
                }
                self.consume(end);
                let body = view.get(head.value_at..found.end).unwrap_or_default();
                Ok((Event::Whole { meta: head.meta(self.db, &self.scratch), body }, end))
            }
            Found::Begin { count, left } => {
                if let Left::Bytes(bytes) = left
                    && bytes > left_over
                {
                    return Err(Reason::ChunkCutsElement { id }.into());
                }
                if self.open.len() >= self.limits.open_objects_max {
                    let (announced, limit) = (self.open.len() as u64 + 1, self.limits.open_objects_max as u64);
                    return Err(Reason::LimitPassed { what: Limit::OpenObjects, announced, limit }.into());
                }
                self.current = after_chunk_piece(id, left_over, &left)?;
                self.open.push(Split { id, left });
                self.consume(end);
                let meta = head.meta(self.db, &self.scratch);
                Ok((Event::Begin { object: ObjectId(id), meta, count }, end))
            }
        }
    }

    /// The next run of a tagged object: `len` bytes of payload are to come, `before` bytes were read before them.
    pub(super) fn chunk_payload<'a>(
        &'a mut self,
        id: u32,
        len: u64,
        payload: &'a [u8],
        before: usize,
    ) -> Read<(Event<'a>, usize)> {
        let object = ObjectId(id);
        let Some((index, split)) = self.open.iter_mut().enumerate().find(|(_, split)| split.id == id) else {
            // Not reachable: `Current::Chunk` names an open object.
            return Err(Reason::ChunkIdZero.into());
        };
        if split.left.is_done() {
            if len > 0 {
                return Err(Reason::ChunkLeftOver { id, left_over: len }.into());
            }
            self.open.swap_remove(index);
            self.current = Current::Records;
            return Ok((Event::End { object }, 0));
        }
        let view = clip(payload, len);
        let mut left = split.left;
        let run = left.advance(view, &self.limits).map_err(|stop| within_chunk(stop, id, len, before))?;
        self.current = after_chunk_piece(id, len - run.len as u64, &left)?;
        split.left = left;
        self.consume(before + run.len);
        let body = view.get(..run.len).unwrap_or_default();
        Ok((Event::Run { object, stage: run.stage, count: run.count, body }, before + run.len))
    }
}

/// What is read after a piece of a chunk: the chunk itself, or records when it has ended.
fn after_chunk_piece(id: u32, len_left: u64, left: &Left) -> Read<Current> {
    if len_left > 0 || left.is_done() {
        return Ok(Current::Chunk { id, left: len_left });
    }
    match left.may_be_cut() {
        true => Ok(Current::Records),
        false => Err(Reason::ChunkCutsElement { id }.into()),
    }
}

/// What is missing must still fit the chunk; it is counted from the front of the input, `before` bytes before the payload.
fn within_chunk(stop: Stop, id: u32, len: u64, before: usize) -> Stop {
    match stop {
        Stop::More(at_least) if at_least as u64 > len => Reason::ChunkCutsElement { id }.into(),
        Stop::More(at_least) => Stop::More(at_least.saturating_add(before)),
        wrong => wrong,
    }
}
