//! Whole collections: one RESTORE with the source's own bytes where the target takes their type and size, else DEL and
//! chunked commands.
//!
//! Redis refuses empty collections, so the number of elements is looked up first; where it stands in a header nothing
//! is walked.

use super::ConvertError;
use super::chunk::{ChunkBuffers, ChunkScope, Chunker};
use super::emit::{Command, Key, delete, expire_at};
use super::out::{Class, Out, SPACE_MAX};
use super::tally::Tally;
use crate::dragonfly::value::{Scratch, count_elements, for_each_element};
use crate::dragonfly::{DecodeError, ObjectType};
use crate::redis::payload::{Crc64, FOOTER_LEN};
use crate::redis::resp::{DECIMAL_LEN_MAX, HEAD_LEN_MAX, Writer};

const RESTORE_HEAD: &[u8] = b"*6\r\n$7\r\nRESTORE\r\n";
const RESTORE_TAIL: &[u8] = b"\r\n$7\r\nREPLACE\r\n$6\r\nABSTTL\r\n";
/// Everything in a RESTORE besides key and value.
const RESTORE_OVERHEAD_MAX: usize =
    RESTORE_HEAD.len() + 3 * (HEAD_LEN_MAX + 2) + DECIMAL_LEN_MAX + 1 + FOOTER_LEN + RESTORE_TAIL.len();

/// How a whole value went out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Restored {
        elements: u64,
    },
    ByCommands {
        elements: u64,
    },
    /// Nothing of it is left: a DEL was sent.
    Empty,
    /// By policy.
    Skipped,
}

/// A whole collection without expiries of its own. `expire_at_ms` is the key's.
pub(super) fn whole(
    scope: ChunkScope<'_>,
    expire_at_ms: Option<i64>,
    out: &mut impl Out,
    scratch: &mut Scratch,
    buffers: &mut ChunkBuffers,
    tally: &mut Tally,
) -> Result<Sent, ConvertError> {
    let ChunkScope { plan, key, object_type, event: body, .. } = scope;
    let elements = elements_of(object_type, body, scratch)?;
    if elements == 0 {
        delete(out, &key);
        return Ok(Sent::Empty);
    }
    if body.len() <= plan.limits.restore_bytes_max && plan.capabilities.restores(object_type as u8) {
        restore(out, &key, object_type as u8, body, expire_at_ms, plan.limits.inline_bytes_max);
        return Ok(Sent::Restored { elements });
    }
    by_commands(scope, expire_at_ms, out, scratch, buffers, tally)
}

/// A whole collection of any type by commands.
pub(super) fn by_commands(
    scope: ChunkScope<'_>,
    expire_at_ms: Option<i64>,
    out: &mut impl Out,
    scratch: &mut Scratch,
    buffers: &mut ChunkBuffers,
    tally: &mut Tally,
) -> Result<Sent, ConvertError> {
    delete(out, &scope.key);
    let run = run(scope, true, out, scratch, buffers, tally)?;
    expire_at(out, &scope.key, expire_at_ms);
    super::converter::expiries_dropped(tally, &scope.key, scope.object_type, run.expiries_dropped);
    Ok(match run.elements {
        0 => Sent::Empty,
        elements => Sent::ByCommands { elements },
    })
}

/// What a run of elements came to.
pub(super) struct RunSent {
    pub elements: u64,
    pub expiries_dropped: u64,
}

/// The elements of a body by commands, without DEL and expiry.
pub(super) fn run(
    scope: ChunkScope<'_>,
    whole: bool,
    out: &mut impl Out,
    scratch: &mut Scratch,
    buffers: &mut ChunkBuffers,
    tally: &mut Tally,
) -> Result<RunSent, ConvertError> {
    let mut chunker = Chunker::new(scope, out, buffers, tally);
    for_each_element(scope.object_type, whole, scope.event, scratch, |element| chunker.element(element))?;
    chunker.finish()?;
    Ok(RunSent { elements: chunker.written, expiries_dropped: chunker.expiries_dropped })
}

/// `RESTORE key ms payload REPLACE ABSTTL`, the payload's value being one slice that lies in the event.
#[inline]
pub(super) fn restore(
    out: &mut impl Out,
    key: &Key<'_>,
    rdb_type: u8,
    value: &[u8],
    expire_at_ms: Option<i64>,
    inline_bytes_max: usize,
) {
    let mut crc = Crc64::new();
    crc.update(&[rdb_type]);
    crc.update(value);
    let footer = crc.footer();
    let room = RESTORE_OVERHEAD_MAX + key.bytes.len() + value.len();
    if value.len() >= inline_bytes_max || room > SPACE_MAX {
        let mut command = begin_restore(out, key, rdb_type, value.len(), expire_at_ms);
        command.put(value);
        return end_restore(&mut command, &footer);
    }
    out.begin(key.meta(Class::Blind));
    let mut writer = Writer::new(out.space(room));
    writer.put(RESTORE_HEAD);
    writer.bulk(key.bytes);
    match expire_at_ms {
        None => writer.put(b"$1\r\n0\r\n"),
        Some(ms) => writer.bulk_integer(ms),
    }
    writer.bulk_head(1 + value.len() + FOOTER_LEN);
    writer.put(&[rdb_type]);
    writer.put(value);
    writer.put(&footer);
    writer.put(RESTORE_TAIL);
    let written = writer.written();
    out.advance(written);
    out.end();
}

/// As [`restore`], with a value that was made here; `value` may be left empty.
pub(super) fn restore_made(
    out: &mut impl Out,
    key: &Key<'_>,
    rdb_type: u8,
    value: &mut Vec<u8>,
    expire_at_ms: Option<i64>,
) {
    let mut crc = Crc64::new();
    crc.update(&[rdb_type]);
    crc.update(value);
    let footer = crc.footer();
    let mut command = begin_restore(out, key, rdb_type, value.len(), expire_at_ms);
    command.own(value);
    end_restore(&mut command, &footer);
}

/// Begins a RESTORE up to where the value's `value_len` bytes follow.
pub(super) fn begin_restore<'o, O: Out>(
    out: &'o mut O,
    key: &Key<'_>,
    rdb_type: u8,
    value_len: usize,
    expire_at_ms: Option<i64>,
) -> Command<'o, O> {
    let mut command = Command::begin(out, key.meta(Class::Blind), 6, b"$7\r\nRESTORE\r\n");
    command.bulk(key.bytes).integer(expire_at_ms.unwrap_or(0));
    command.bulk_head(1 + value_len + FOOTER_LEN).raw(&[rdb_type]);
    command
}

/// Ends a RESTORE whose value has been written.
pub(super) fn end_restore<O: Out>(command: &mut Command<'_, O>, footer: &[u8; FOOTER_LEN]) {
    command.raw(footer).raw(RESTORE_TAIL).end();
}

/// Number of elements of a whole collection.
#[inline]
fn elements_of(object_type: ObjectType, body: &[u8], scratch: &mut Scratch) -> Result<u64, DecodeError> {
    let in_header = match object_type {
        ObjectType::HashListpack | ObjectType::ZsetListpack => {
            container(body).and_then(|container| container_count(container, 4)).map(|count| count / 2)
        }
        ObjectType::HashZiplist | ObjectType::ZsetZiplist => {
            container(body).and_then(|container| container_count(container, 8)).map(|count| count / 2)
        }
        _ => None,
    };
    match in_header {
        Some(count) => Ok(count),
        None => count_elements(object_type, true, body, scratch),
    }
}

/// The container, if it is one raw string.
fn container(body: &[u8]) -> Option<&[u8]> {
    match *body {
        [0x00..=0x3f, ref rest @ ..] => Some(rest),
        [0x40..=0x7f, _, ref rest @ ..] => Some(rest),
        [0x80, _, _, _, _, ref rest @ ..] => Some(rest),
        _ => None,
    }
}

/// The u16le count of a listpack or ziplist, unless it says that it does not know.
fn container_count(container: &[u8], offset: usize) -> Option<u64> {
    match container.get(offset..offset + 2) {
        Some(&[low, high]) => Some(u16::from_le_bytes([low, high])).filter(|count| *count != u16::MAX).map(u64::from),
        _ => None,
    }
}
