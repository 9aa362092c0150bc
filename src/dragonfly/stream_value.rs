//! What a stream (types 15, 19, 21) holds: entries in listpacks, then ids, groups and consumers (wire 3.6).
//!
//! In: the body of a `Run` of listpacks, of the tail, or of a whole stream. Out: live entries in order, or one
//! [`StreamTail`]. Counts are compared with what follows them, ids must ascend, and a consumer's ids must stand in its
//! group's pending list, each with exactly one consumer. A vector grows only as bytes back it.

use super::error::{DecodeError, Reason};
use super::event::{ObjectType, Text};
use super::layout::{Form, Shape};
use super::listpack::Listpack;
use super::value::{Fault, Scratch, WalkError, complete, container_bytes, nodes};
use super::wire::Reader;

/// Id of a stream entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    pub ms: u64,
    pub seq: u64,
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

/// Calls `visit(id, fields)` for every live entry of a run of stream listpacks (or of a whole stream value if
/// `whole`), in order; `fields` alternates names and values.
pub fn for_each_entry<E>(
    whole: bool,
    body: &[u8],
    scratch: &mut Scratch,
    mut visit: impl FnMut(StreamId, &[Text<'_>]) -> Result<(), E>,
) -> Result<u64, WalkError<E>> {
    let mut reader = Reader::of_complete(body);
    let walked = walk_nodes(whole, &mut reader, scratch, &mut visit);
    walked.map_err(|fault| match fault {
        Fault::Reason(reason) => WalkError::Decode(DecodeError::in_value(reader.pos(), reason)),
        Fault::Visitor(error) => WalkError::Visitor(error),
    })
}

/// Decodes the tail, given as the body of a `Run` in `Stage::StreamTail`.
pub fn stream_tail(object_type: ObjectType, body: &[u8]) -> Result<StreamTail, DecodeError> {
    let mut reader = Reader::of_complete(body);
    read_tail(object_type, &mut reader).map_err(|reason| DecodeError::in_value(reader.pos(), reason))
}

/// Where a whole stream value's listpacks end and its tail begins: (bytes before the tail, number of listpacks).
pub fn stream_tail_offset(body: &[u8]) -> Result<(usize, u64), DecodeError> {
    let mut reader = Reader::of_complete(body);
    skip_nodes(&mut reader, body.len()).map_err(|reason| DecodeError::in_value(reader.pos(), reason))
}

fn skip_nodes(reader: &mut Reader<'_>, len: usize) -> Result<(usize, u64), Reason> {
    let count = complete(reader.packed(), len)?;
    for _ in 0..count {
        complete(Shape::StreamNode.skip(reader), len)?;
    }
    Ok((reader.pos(), count))
}

fn bad(cause: &'static str) -> Reason {
    Reason::BadStream { cause }
}

fn walk_nodes<E>(
    whole: bool,
    reader: &mut Reader<'_>,
    scratch: &mut Scratch,
    visit: &mut impl FnMut(StreamId, &[Text<'_>]) -> Result<(), E>,
) -> Result<u64, Fault<E>> {
    let mut last = None;
    let mut node = |reader: &mut Reader<'_>, len: usize| {
        let id = complete(reader.raw_string("stream node id"), len)?;
        let id = <&[u8; 16]>::try_from(id).map_err(|_| bad("the id of a node is not 16 bytes long"))?;
        let text = complete(reader.string(), len)?;
        let pack = Listpack::new(container_bytes(text, &mut scratch.container)?)?;
        walk_entries(StreamId::from_be_bytes(id), pack, &mut last, visit)
    };
    if !whole {
        return nodes(false, reader, node);
    }
    let len = reader.pos() + reader.left();
    let mut visited = 0;
    for _ in 0..complete(reader.packed(), len)? {
        visited += node(reader, len)?;
    }
    Ok(visited)
}

/// One node: live count, deleted count, master fields, 0; then the entries.
fn walk_entries<E>(
    node_id: StreamId,
    mut pack: Listpack<'_>,
    last: &mut Option<StreamId>,
    visit: &mut impl FnMut(StreamId, &[Text<'_>]) -> Result<(), E>,
) -> Result<u64, Fault<E>> {
    const DELETED: i64 = 1;
    const SAME_FIELDS: i64 = 2;
    let (live, deleted) = (pack.next_int()?, pack.next_int()?);
    let master_count = pack.next_int()?;
    if live < 0 || deleted < 0 || master_count < 0 {
        return Err(bad("a negative count in a node").into());
    }
    let mut master = Vec::new();
    for _ in 0..master_count {
        master.push(pack.next_text()?);
    }
    if pack.next_int()? != 0 {
        return Err(bad("no 0 after the master fields of a node").into());
    }
    let (mut seen_live, mut seen_deleted) = (0i64, 0i64);
    let mut fields = Vec::new();
    while let Some(flags) = pack.next()? {
        let Text::Int(flags @ 0..=3) = flags else {
            return Err(bad("an entry with unknown flags").into());
        };
        let ms = node_id.ms.wrapping_add_signed(pack.next_int()?);
        let seq = node_id.seq.wrapping_add_signed(pack.next_int()?);
        let id = StreamId { ms, seq };
        if last.replace(id).is_some_and(|last| last >= id) {
            return Err(bad("ids of entries do not ascend").into());
        }
        fields.clear();
        let elements = if flags & SAME_FIELDS != 0 {
            for &name in &master {
                fields.push(name);
                fields.push(pack.next_text()?);
            }
            master_count + 3
        } else {
            let count = pack.next_int()?;
            if count < 0 {
                return Err(bad("a negative number of fields").into());
            }
            for _ in 0..count {
                fields.push(pack.next_text()?);
                fields.push(pack.next_text()?);
            }
            count * 2 + 4
        };
        if pack.next_int()? != elements {
            return Err(bad("an entry's number of elements is wrong").into());
        }
        if flags & DELETED != 0 {
            seen_deleted += 1;
            continue;
        }
        seen_live += 1;
        visit(id, &fields).map_err(Fault::Visitor)?;
    }
    match (seen_live, seen_deleted) == (live, deleted) {
        true => Ok(seen_live as u64),
        false => Err(bad("a node's count of entries is wrong").into()),
    }
}

fn read_tail(object_type: ObjectType, reader: &mut Reader<'_>) -> Result<StreamTail, Reason> {
    if object_type.form() != Form::Stream {
        return Err(Reason::NotAStream { object_type });
    }
    let newer = object_type != ObjectType::StreamV1;
    let mut tail = Tail { len: reader.left(), reader };
    let length = tail.number()?;
    let last_id = tail.id()?;
    let (mut first_id, mut max_deleted_id, mut entries_added) = (None, None, None);
    if newer {
        first_id = Some(tail.id()?);
        max_deleted_id = Some(tail.id()?);
        entries_added = Some(tail.number()?);
    }
    let mut groups = Vec::new();
    for _ in 0..tail.number()? {
        groups.push(tail.group(object_type)?);
    }
    match tail.reader.left() {
        0 => Ok(StreamTail { length, last_id, first_id, max_deleted_id, entries_added, groups }),
        left_over => Err(Reason::ValueLeftOver { left_over }),
    }
}

/// A reader of the numbers of a tail, which is all there.
struct Tail<'r, 'a> {
    reader: &'r mut Reader<'a>,
    len: usize,
}

impl Tail<'_, '_> {
    fn number(&mut self) -> Result<u64, Reason> {
        complete(self.reader.packed(), self.len)
    }

    fn id(&mut self) -> Result<StreamId, Reason> {
        Ok(StreamId { ms: self.number()?, seq: self.number()? })
    }

    fn raw_id(&mut self) -> Result<StreamId, Reason> {
        Ok(StreamId::from_be_bytes(&complete(self.reader.array(), self.len)?))
    }

    fn time(&mut self) -> Result<u64, Reason> {
        complete(self.reader.u64_le(), self.len)
    }

    fn name(&mut self) -> Result<Vec<u8>, Reason> {
        let mut name = Vec::new();
        complete(self.reader.string(), self.len)?.append(&mut name)?;
        Ok(name)
    }

    fn group(&mut self, object_type: ObjectType) -> Result<StreamGroup, Reason> {
        let name = self.name()?;
        let last_id = self.id()?;
        let entries_read = match object_type {
            ObjectType::StreamV1 => None,
            _ => Some(self.number()?).filter(|&read| read != u64::MAX),
        };
        let mut pending: Vec<StreamPending> = Vec::new();
        for _ in 0..self.number()? {
            let (id, delivery_time_ms) = (self.raw_id()?, self.time()?);
            if pending.last().is_some_and(|last| last.id >= id) {
                return Err(bad("ids of a pending list do not ascend"));
            }
            pending.push(StreamPending { id, delivery_time_ms, delivery_count: self.number()? });
        }
        let mut owned = vec![false; pending.len()];
        let mut consumers = Vec::new();
        for _ in 0..self.number()? {
            consumers.push(self.consumer(object_type, &pending, &mut owned)?);
        }
        match owned.iter().all(|&owned| owned) {
            true => Ok(StreamGroup { name, last_id, entries_read, pending, consumers }),
            false => Err(bad("a pending entry belongs to no consumer")),
        }
    }

    fn consumer(
        &mut self,
        object_type: ObjectType,
        group: &[StreamPending],
        owned: &mut [bool],
    ) -> Result<StreamConsumer, Reason> {
        let (name, seen_time_ms) = (self.name()?, self.time()?);
        let active_time_ms = match object_type {
            ObjectType::StreamV3 => Some(self.time()?),
            _ => None,
        };
        let mut pending = Vec::new();
        for _ in 0..self.number()? {
            let id = self.raw_id()?;
            let found = group.binary_search_by_key(&id, |pending| pending.id).ok();
            let Some(owned) = found.and_then(|index| owned.get_mut(index)) else {
                return Err(bad("a consumer's pending id is not in its group's list"));
            };
            if std::mem::replace(owned, true) {
                return Err(bad("a pending id belongs to two consumers"));
            }
            pending.push(id);
        }
        Ok(StreamConsumer { name, seen_time_ms, active_time_ms, pending })
    }
}

impl StreamId {
    /// u64be ms, u64be seq.
    fn from_be_bytes(bytes: &[u8; 16]) -> Self {
        let both = u128::from_be_bytes(*bytes);
        Self { ms: (both >> 64) as u64, seq: both as u64 }
    }
}
