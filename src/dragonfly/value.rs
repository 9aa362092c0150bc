//! The elements inside a value: one walk over every layout of wire 3, whole or in runs.
//!
//! Skeleton: signatures only.

use super::DecodeError;
use super::event::{KeyMeta, ObjectType, Text};

/// One element of a collection, whatever container it stood in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Element<'a> {
    /// Of a list.
    Item(Text<'a>),
    /// Of a set; `expire_at_ms` only from type 32 (absolute Unix ms).
    Member {
        member: Text<'a>,
        expire_at_ms: Option<i64>,
    },
    /// Of a hash; `expire_at_ms` only from type 31.
    Field {
        field: Text<'a>,
        value: Text<'a>,
        expire_at_ms: Option<i64>,
    },
    Scored {
        member: Text<'a>,
        score: f64,
    },
}

/// Buffers reused between walks, for LZF-packed containers.
#[derive(Default)]
pub struct Scratch {
    pub container: Vec<u8>,
}

/// What `for_each_element` stops with: the bytes are wrong, or the visitor said so.
#[derive(Debug)]
pub enum WalkError<E> {
    Decode(DecodeError),
    Visitor(E),
}

/// Calls `visit` for each element of `body`. `whole`: body begins with the count (an `Event::Whole`); otherwise it is the
/// body of a `Run`. Not for strings, streams, JSON and filters. Returns the number of elements visited.
pub fn for_each_element<E>(
    _object_type: ObjectType,
    _whole: bool,
    _body: &[u8],
    _scratch: &mut Scratch,
    _visit: impl FnMut(Element<'_>) -> Result<(), E>,
) -> Result<u64, WalkError<E>> {
    todo!()
}

/// Number of elements `for_each_element` would visit (list nodes and containers opened), without unpacking strings
/// where that can be avoided.
pub fn count_elements(
    _object_type: ObjectType,
    _whole: bool,
    _body: &[u8],
    _scratch: &mut Scratch,
) -> Result<u64, DecodeError> {
    todo!()
}

/// The string value of types 0, 20, 30 (`Event::Whole` body).
pub fn string_value<'a>(_meta: &KeyMeta<'_>, _body: &'a [u8]) -> Result<Text<'a>, DecodeError> {
    todo!()
}

/// Id of a stream entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    pub ms: u64,
    pub seq: u64,
}

/// Calls `visit(id, fields)` for every live entry of a run of stream listpacks (or of a whole stream value if
/// `whole`), in order; `fields` alternates names and values.
pub fn for_each_entry<E>(
    _whole: bool,
    _body: &[u8],
    _scratch: &mut Scratch,
    _visit: impl FnMut(StreamId, &[Text<'_>]) -> Result<(), E>,
) -> Result<u64, WalkError<E>> {
    todo!()
}

/// A stream's metadata after its listpacks. Types 15 lack the `Option`s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamTail {
    pub length: u64,
    pub last_id: StreamId,
    pub first_id: Option<StreamId>,
    pub max_deleted_id: Option<StreamId>,
    pub entries_added: Option<u64>,
    pub groups: Vec<StreamGroup>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamGroup {
    pub name: Vec<u8>,
    pub last_id: StreamId,
    /// None: not in the type, or unknown (all ones).
    pub entries_read: Option<u64>,
    pub pending: Vec<StreamPending>,
    pub consumers: Vec<StreamConsumer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamPending {
    pub id: StreamId,
    pub delivery_time_ms: u64,
    pub delivery_count: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamConsumer {
    pub name: Vec<u8>,
    pub seen_time_ms: u64,
    pub active_time_ms: Option<u64>,
    /// Ids that stand in the group's pending list.
    pub pending: Vec<StreamId>,
}

/// Decodes the tail, given as the body of a `Run` in `Stage::StreamTail`.
pub fn stream_tail(_object_type: ObjectType, _body: &[u8]) -> Result<StreamTail, DecodeError> {
    todo!()
}

/// Where a whole stream value's listpacks end and its tail begins: (bytes before the tail, number of listpacks).
pub fn stream_tail_offset(_body: &[u8]) -> Result<(usize, u64), DecodeError> {
    todo!()
}

impl Text<'_> {
    /// Length of the plain text in bytes.
    pub fn plain_len(&self) -> usize {
        todo!()
    }

    /// Appends the plain text.
    pub fn append_to(&self, _out: &mut Vec<u8>) -> Result<(), DecodeError> {
        todo!()
    }
}
