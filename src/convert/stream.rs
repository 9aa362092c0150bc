//! Streams: RESTORE up to a size, with the source's own listpacks and, for older targets, the tail in an older type;
//! beyond that entry by entry.
//!
//! By commands (wire 3.8): XADD of every entry; XGROUP CREATE, CREATECONSUMER and XCLAIM for groups and what is pending;
//! XDEL of what was only put in for an XCLAIM; last XSETID. XCLAIM passes over ids whose entry was deleted. A stream
//! that is at hand whole gets such entries put in at their place for a moment; in one that came in pieces their place
//! has passed by when the tail tells of them, so they follow the policy (`Kind::DanglingPending`).
//!
//! What commands cannot carry: consumers' seen and active times.

use super::ConvertError;
use super::chunk::ChunkScope;
use super::collection::{Sent, begin_restore, end_restore, restore};
use super::converter;
use super::emit::{Command, Key, delete, expire_at};
use super::out::{Class, Out};
use super::policy::{Action, Kind};
use super::stream_ids::LiveIds;
use super::tally::{Tally, What};
use crate::dragonfly::Text;
use crate::dragonfly::value::{
    Scratch, StreamGroup, StreamId, StreamTail, for_each_entry, stream_tail, stream_tail_offset,
};
use crate::redis::payload::Crc64;
use crate::redis::reencode;

/// Most ids of one XCLAIM or XDEL.
const IDS_MAX: usize = 256;
/// What is put in where a deleted entry is pending, to be deleted again.
const STAND_IN: &[u8] = b"$7\r\ndeleted\r\n$0\r\n\r\n";
/// Group that makes an empty stream, then goes.
const MAKING_GROUP: &[u8] = b"df2redis";

/// A stream that arrives in pieces.
#[derive(Debug)]
pub(super) enum OpenStream {
    /// Kept to be restored whole: the listpacks so far.
    Assembling { listpacks: u64, body: Vec<u8> },
    /// Too large for that: every piece has been written.
    Written { entries: u64, ids: LiveIds },
}

impl OpenStream {
    pub fn new(listpacks: u64) -> Self {
        Self::Assembling { listpacks, body: Vec::new() }
    }

    /// Bytes kept.
    pub fn bytes_kept(&self) -> usize {
        match self {
            Self::Assembling { body, .. } => body.len(),
            Self::Written { .. } => 0,
        }
    }

    /// Takes a run of listpacks. `room_bytes`: how much may be kept in all.
    pub fn run(
        &mut self,
        scope: ChunkScope<'_>,
        room_bytes: usize,
        out: &mut impl Out,
        scratch: &mut Scratch,
        unpacked: &mut Vec<u8>,
    ) -> Result<(), ConvertError> {
        if let Self::Assembling { body, .. } = self {
            if body.len().saturating_add(scope.event.len()) <= room_bytes {
                body.extend_from_slice(scope.event);
                return Ok(());
            }
            let kept = std::mem::take(body);
            delete(out, &scope.key);
            *self = Self::Written { entries: 0, ids: LiveIds::new(scope.plan.limits.stream_restore_bytes_max / 2) };
            // What was kept is no part of the event at hand.
            self.write(ChunkScope { event: &kept, ..scope }, &[], out, scratch, unpacked)?;
        }
        self.write(scope, scope.event, out, scratch, unpacked)
    }

    /// Writes the entries of `scope.event`; of these, what lies in `referable` may be referenced.
    fn write(
        &mut self,
        scope: ChunkScope<'_>,
        referable: &[u8],
        out: &mut impl Out,
        scratch: &mut Scratch,
        unpacked: &mut Vec<u8>,
    ) -> Result<(), ConvertError> {
        let Self::Written { entries, ids } = self else { return Ok(()) };
        *entries += for_each_entry(false, scope.event, scratch, |id, fields| {
            ids.push(id);
            add_entry(out, &scope.key, id, fields, referable, unpacked)
        })?;
        Ok(())
    }

    /// The stream's tail: everything is complete. `scope.event` is the tail.
    pub fn finish(
        self,
        scope: ChunkScope<'_>,
        expire_at_ms: Option<i64>,
        out: &mut impl Out,
        tally: &mut Tally,
    ) -> Result<Sent, ConvertError> {
        let tail = stream_tail(scope.object_type, scope.event)?;
        match self {
            Self::Assembling { listpacks, body } => {
                let mut head = Vec::with_capacity(9);
                reencode::push_len(&mut head, listpacks);
                restore_pieces(scope, &head, Listpacks::Kept(body), scope.event, expire_at_ms, out)?;
                Ok(Sent::Restored { elements: tail.length })
            }
            Self::Written { entries, ids } => {
                let dangling = ids.dangling(&pending_ids(&tail));
                let lost = dangling.ids.len() as u64 + dangling.unknown;
                if lost > 0 {
                    let (kind, key) = (Kind::DanglingPending, &scope.key);
                    match scope.plan.action(kind) {
                        Action::Refuse => return Err(converter::unsupported(scope.flow, key, kind, scope.plan)),
                        action => tally.list_not_carried(key.db, key.bytes, What::Kind(kind), action, lost),
                    }
                }
                write_tail(scope, &tail, entries, &dangling.ids, false, out);
                expire_at(out, &scope.key, expire_at_ms);
                Ok(Sent::ByCommands { elements: entries })
            }
        }
    }
}

/// A whole stream.
pub(super) fn whole(
    scope: ChunkScope<'_>,
    expire_at_ms: Option<i64>,
    out: &mut impl Out,
    scratch: &mut Scratch,
    unpacked: &mut Vec<u8>,
) -> Result<Sent, ConvertError> {
    let ChunkScope { plan, key, object_type, event: body, .. } = scope;
    let (tail_at, _) = stream_tail_offset(body)?;
    let (listpacks, tail_bytes) = body.split_at_checked(tail_at).unwrap_or((body, &[]));
    if body.len() <= plan.limits.stream_restore_bytes_max {
        // The length is the tail's first number.
        let elements = packed_number(tail_bytes);
        if plan.capabilities.stream_type(object_type as u8) == object_type as u8 {
            restore(out, &key, object_type as u8, body, expire_at_ms, plan.limits.inline_bytes_max);
        } else {
            restore_pieces(scope, &[], Listpacks::InEvent(listpacks), tail_bytes, expire_at_ms, out)?;
        }
        return Ok(Sent::Restored { elements });
    }
    let tail = stream_tail(object_type, tail_bytes)?;
    delete(out, &key);
    // Ids that are pending; those met by no entry get a stand-in at their place.
    let pending = pending_ids(&tail);
    let mut waiting = pending.iter().copied().peekable();
    let mut stand_ins = Vec::new();
    let entries = for_each_entry(true, body, scratch, |id, fields| {
        while let Some(missing) = waiting.next_if(|pending| *pending < id) {
            add_stand_in(out, &key, missing);
            stand_ins.push(missing);
        }
        while waiting.next_if_eq(&id).is_some() {}
        add_entry(out, &key, id, fields, body, unpacked)
    })?;
    for missing in waiting {
        add_stand_in(out, &key, missing);
        stand_ins.push(missing);
    }
    write_tail(scope, &tail, entries, &stand_ins, true, out);
    expire_at(out, &key, expire_at_ms);
    Ok(Sent::ByCommands { elements: entries })
}

enum Listpacks<'a> {
    InEvent(&'a [u8]),
    Kept(Vec<u8>),
}

/// RESTORE of a value in pieces: head, listpacks, and the tail written as the type that the target takes.
fn restore_pieces(
    scope: ChunkScope<'_>,
    head: &[u8],
    listpacks: Listpacks<'_>,
    tail: &[u8],
    expire_at_ms: Option<i64>,
    out: &mut impl Out,
) -> Result<(), ConvertError> {
    let ChunkScope { flow, plan, key, object_type, .. } = scope;
    let rdb_type = plan.capabilities.stream_type(object_type as u8);
    let mut new_tail = Vec::with_capacity(tail.len());
    reencode::stream_tail(tail, object_type as u8, rdb_type, &mut new_tail)
        .map_err(|source| ConvertError::StreamTail { flow, db: key.db, key: key.for_message(), source })?;
    let listpack_bytes = match &listpacks {
        Listpacks::InEvent(bytes) => bytes,
        Listpacks::Kept(bytes) => bytes.as_slice(),
    };
    let mut crc = Crc64::new();
    crc.update(&[rdb_type]);
    crc.update(head);
    crc.update(listpack_bytes);
    crc.update(&new_tail);
    let footer = crc.footer();
    let len = head.len() + listpack_bytes.len() + new_tail.len();
    let mut command = begin_restore(out, &key, rdb_type, len, expire_at_ms);
    command.raw(head);
    match listpacks {
        Listpacks::InEvent(bytes) => command.put(bytes),
        Listpacks::Kept(mut bytes) => command.own(&mut bytes),
    };
    command.own(&mut new_tail);
    end_restore(&mut command, &footer);
    Ok(())
}

fn add_entry(
    out: &mut impl Out,
    key: &Key<'_>,
    id: StreamId,
    fields: &[Text<'_>],
    event: &[u8],
    unpacked: &mut Vec<u8>,
) -> Result<(), ConvertError> {
    let mut command = begin_add(out, key, id, fields.len());
    for field in fields {
        command.text(*field, event, unpacked)?;
    }
    command.end();
    Ok(())
}

fn add_stand_in(out: &mut impl Out, key: &Key<'_>, id: StreamId) {
    begin_add(out, key, id, 2).raw(STAND_IN).end();
}

fn begin_add<'o, O: Out>(out: &'o mut O, key: &Key<'_>, id: StreamId, fields: usize) -> Command<'o, O> {
    let mut command = Command::begin(out, key.meta(Class::Ordered), 3 + fields, b"$4\r\nXADD\r\n");
    command.bulk(key.bytes).bulk(&id_text(id));
    command
}

/// Everything after the entries. `dangling` ids are stand-ins to be deleted if `stood_in`, else passed over.
fn write_tail(
    scope: ChunkScope<'_>,
    tail: &StreamTail,
    entries: u64,
    dangling: &[StreamId],
    stood_in: bool,
    out: &mut impl Out,
) {
    let ChunkScope { plan, key, .. } = scope;
    let has_counters = plan.capabilities.stream_counters();
    let mut exists = entries > 0 || (stood_in && !dangling.is_empty());
    for group in &tail.groups {
        create_group(out, &key, group, has_counters, !exists);
        exists = true;
        write_consumers(out, &key, group, if stood_in { &[] } else { dangling });
    }
    if !exists {
        let mut command = Command::begin(out, key.meta(Class::Guarded), 6, b"$6\r\nXGROUP\r\n");
        command.bulk(b"CREATE").bulk(key.bytes).bulk(MAKING_GROUP).bulk(b"0").bulk(b"MKSTREAM").end();
        let mut command = Command::begin(out, key.meta(Class::Blind), 4, b"$6\r\nXGROUP\r\n");
        command.bulk(b"DESTROY").bulk(key.bytes).bulk(MAKING_GROUP).end();
    }
    if stood_in {
        for ids in dangling.chunks(IDS_MAX) {
            // Sent again after it, the XCLAIMs above would find no entry, and Redis would forget what is pending.
            let mut command = Command::begin(out, key.meta(Class::Guarded), 2 + ids.len(), b"$4\r\nXDEL\r\n");
            command.bulk(key.bytes);
            for id in ids {
                command.bulk(&id_text(*id));
            }
            command.end();
        }
    }
    set_id(out, &key, tail, entries, has_counters);
}

fn set_id(out: &mut impl Out, key: &Key<'_>, tail: &StreamTail, entries: u64, has_counters: bool) {
    let args = if has_counters { 7 } else { 3 };
    let mut command = Command::begin(out, key.meta(Class::Blind), args, b"$6\r\nXSETID\r\n");
    command.bulk(key.bytes).bulk(&id_text(tail.last_id));
    if has_counters {
        // The target refuses fewer entries ever added than there are.
        let added = tail.entries_added.unwrap_or(tail.length).max(entries).min(i64::MAX as u64);
        command.bulk(b"ENTRIESADDED").unsigned(added);
        command.bulk(b"MAXDELETEDID").bulk(&id_text(tail.max_deleted_id.unwrap_or_default()));
    }
    command.end();
}

fn create_group(out: &mut impl Out, key: &Key<'_>, group: &StreamGroup, has_counters: bool, makes_stream: bool) {
    let entries_read = group.entries_read.and_then(|read| i64::try_from(read).ok()).filter(|_| has_counters);
    let args = 5 + if makes_stream { 1 } else { 0 } + if entries_read.is_some() { 2 } else { 0 };
    // A second time it answers -BUSYGROUP.
    let mut command = Command::begin(out, key.meta(Class::Guarded), args, b"$6\r\nXGROUP\r\n");
    command.bulk(b"CREATE").bulk(key.bytes).bulk(&group.name).bulk(&id_text(group.last_id));
    if makes_stream {
        command.bulk(b"MKSTREAM");
    }
    if let Some(read) = entries_read {
        command.bulk(b"ENTRIESREAD").integer(read);
    }
    command.end();
}

/// Consumers and what is pending for each. `passed_over` (ascending) is left out.
fn write_consumers(out: &mut impl Out, key: &Key<'_>, group: &StreamGroup, passed_over: &[StreamId]) {
    let mut pending = group.pending.clone();
    pending.sort_unstable_by_key(|pending| pending.id);
    for consumer in &group.consumers {
        let mut command = Command::begin(out, key.meta(Class::Blind), 5, b"$6\r\nXGROUP\r\n");
        command.bulk(b"CREATECONSUMER").bulk(key.bytes).bulk(&group.name).bulk(&consumer.name).end();
        let claims: Vec<_> = consumer
            .pending
            .iter()
            .filter(|id| passed_over.binary_search(id).is_err())
            .filter_map(|id| pending.get(pending.binary_search_by_key(id, |pending| pending.id).ok()?).copied())
            .collect();
        for same in claims.chunk_by(|left, right| {
            (left.delivery_time_ms, left.delivery_count) == (right.delivery_time_ms, right.delivery_count)
        }) {
            for ids in same.chunks(IDS_MAX) {
                let Some(first) = ids.first() else { continue };
                let args = 11 + ids.len();
                let mut command = Command::begin(out, key.meta(Class::Blind), args, b"$6\r\nXCLAIM\r\n");
                command.bulk(key.bytes).bulk(&group.name).bulk(&consumer.name).bulk(b"0");
                for pending in ids {
                    command.bulk(&id_text(pending.id));
                }
                command.bulk(b"TIME").unsigned(first.delivery_time_ms);
                command.bulk(b"RETRYCOUNT").unsigned(first.delivery_count);
                command.bulk(b"FORCE").bulk(b"JUSTID").end();
            }
        }
    }
}

/// All pending ids of all groups, ascending, each once. 0-0 is no id that an entry can have.
fn pending_ids(tail: &StreamTail) -> Vec<StreamId> {
    let mut ids: Vec<StreamId> =
        tail.groups.iter().flat_map(|group| &group.pending).map(|pending| pending.id).collect();
    ids.retain(|id| *id != StreamId::default());
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn id_text(id: StreamId) -> smallvec::SmallVec<[u8; 64]> {
    let mut text = smallvec::SmallVec::new();
    text.extend_from_slice(itoa::Buffer::new().format(id.ms).as_bytes());
    text.push(b'-');
    text.extend_from_slice(itoa::Buffer::new().format(id.seq).as_bytes());
    text
}

/// The packed number (wire 0.1) at the front, for counting only.
fn packed_number(bytes: &[u8]) -> u64 {
    match *bytes {
        [value @ 0x00..=0x3f, ..] => u64::from(value),
        [high @ 0x40..=0x7f, low, ..] => u64::from(high & 0x3f) << 8 | u64::from(low),
        [0x80, a, b, c, d, ..] => u64::from(u32::from_be_bytes([a, b, c, d])),
        [0x81, a, b, c, d, e, f, g, h, ..] => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        _ => 0,
    }
}
