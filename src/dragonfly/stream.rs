//! One flow's full-sync stream: contiguous bytes in, one event at a time out.
//!
//! Skeleton: signatures only; see dragonfly-wire.md 2.

use super::DecodeError;
use super::event::Event;
use crate::ids::FlowId;

/// What the decoder refuses to go beyond, each named in the error it causes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Objects whose record is longer than this are streamed as Begin / Run / End (where their type can be cut).
    pub whole_bytes_max: usize,
    /// A `Run` of elements holds at most this many bytes, unless one element alone is longer.
    pub run_bytes_max: usize,
    /// The longest string, blob, element or uncuttable value that must be contiguous.
    pub atom_bytes_max: usize,
    /// Longest key.
    pub key_bytes_max: usize,
    /// Tagged objects open at once on one flow.
    pub open_objects_max: usize,
}

/// Outcome of one call of `next`.
#[derive(Debug)]
pub enum Progress<'a> {
    /// An event and how many bytes of the input it consumed (may be 0 for `End`).
    Event { event: Event<'a>, consumed: usize },
    /// Nothing can be said before the input (counted from its first byte) is at least this long.
    NeedMore { at_least: usize },
}

pub struct StreamDecoder {
    _flow: FlowId,
    _limits: Limits,
}

impl StreamDecoder {
    pub fn new(flow: FlowId, limits: Limits) -> Self {
        Self { _flow: flow, _limits: limits }
    }

    /// Decodes the next event at the front of `input`, which holds all unconsumed bytes. After `Event`, the caller drops
    /// `consumed` bytes and calls again. Errors name flow, offset and reason, and are final.
    pub fn next<'a>(&'a mut self, _input: &'a [u8]) -> Result<Progress<'a>, DecodeError> {
        todo!()
    }

    /// Bytes of a raw string of which `Begin` was given and that still have to come as `Run`s; 0 outside of one. The
    /// caller may then wait for more input before calling, to get longer pieces.
    pub fn raw_bytes_left(&self) -> u64 {
        todo!()
    }

    /// From now on `next` gets the decompressed content of the blob just reported.
    pub fn enter_blob(&mut self) -> Result<(), DecodeError> {
        todo!()
    }

    /// The content has been given whole; `left_over` is what `next` has not consumed of it (must be empty).
    pub fn leave_blob(&mut self, _left_over: &[u8]) -> Result<(), DecodeError> {
        todo!()
    }

    /// The source closed the connection: always an error (truncated stream) unless `Eof` was reported.
    pub fn closed(&self, _left_over: &[u8]) -> DecodeError {
        todo!()
    }

    /// Offset in the outer stream of the next byte to be consumed.
    pub fn offset_bytes(&self) -> u64 {
        todo!()
    }
}
