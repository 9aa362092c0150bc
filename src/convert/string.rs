//! Strings: `SET key value [PXAT ms]`, or pieces by SETRANGE for the huge ones that arrive split.
//!
//! The SET of a short string is the hottest path of all: one `space`, straight copies, no allocation.

use super::emit::{Command, Key, delete};
use super::out::{Class, Out, SPACE_MAX};
use super::plan::Plan;
use crate::dragonfly::{DecodeError, Text};
use crate::redis::resp::{DECIMAL_LEN_MAX, HEAD_LEN_MAX, Writer};

/// Everything in a SET with PXAT besides key and value: array head, three bulk heads and ends, name, option, time.
const SET_OVERHEAD_MAX: usize = 9 + 3 * (HEAD_LEN_MAX + 2) + 14 + 10 + DECIMAL_LEN_MAX;

const SET: &[u8] = b"*3\r\n$3\r\nSET\r\n";
const SET_PXAT: &[u8] = b"*5\r\n$3\r\nSET\r\n";
const PXAT: &[u8] = b"$4\r\nPXAT\r\n";
const SETRANGE: &[u8] = b"$8\r\nSETRANGE\r\n";

/// A whole string, which lies in the event if it is raw. `unpacked` is a buffer to reuse.
#[inline]
pub(super) fn set(
    out: &mut impl Out,
    key: &Key<'_>,
    value: Text<'_>,
    expire_at_ms: Option<i64>,
    plan: &Plan,
    unpacked: &mut Vec<u8>,
) -> Result<(), DecodeError> {
    match value {
        Text::Raw(bytes) if bytes.len() < plan.limits.inline_bytes_max => set_short(out, key, bytes, expire_at_ms),
        Text::Raw(bytes) => {
            let mut command = begin_set(out, key, bytes.len() as u64, expire_at_ms);
            command.put(bytes);
            end_set(&mut command, expire_at_ms);
        }
        Text::Int(number) => set_short(out, key, itoa::Buffer::new().format(number).as_bytes(), expire_at_ms),
        Text::Lzf { .. } => {
            // Unpacked before the command begins: it may fail.
            unpacked.clear();
            value.append_to(unpacked)?;
            let mut command = begin_set(out, key, unpacked.len() as u64, expire_at_ms);
            command.own(unpacked);
            end_set(&mut command, expire_at_ms);
        }
    }
    Ok(())
}

/// Begins a SET up to where the value's bytes follow.
pub(super) fn begin_set<'o, O: Out>(
    out: &'o mut O,
    key: &Key<'_>,
    value_len: u64,
    expire_at_ms: Option<i64>,
) -> Command<'o, O> {
    let args = if expire_at_ms.is_some() { 5 } else { 3 };
    let mut command = Command::begin(out, key.meta(Class::Blind), args, b"$3\r\nSET\r\n");
    command.bulk(key.bytes).bulk_head(usize::try_from(value_len).unwrap_or(usize::MAX));
    command
}

/// Ends a SET whose value has been written.
pub(super) fn end_set<O: Out>(command: &mut Command<'_, O>, expire_at_ms: Option<i64>) {
    command.raw(b"\r\n");
    if let Some(ms) = expire_at_ms {
        command.raw(PXAT).integer(ms);
    }
    command.end();
}

/// A key in which pieces of a string of `len` bytes will be set: removed, then made at its full length, so that the
/// target allocates once.
pub(super) fn begin_ranges(out: &mut impl Out, key: &Key<'_>, len: u64) {
    delete(out, key);
    if let Some(last) = len.checked_sub(1) {
        let mut command = Command::begin(out, key.meta(Class::Blind), 4, SETRANGE);
        command.bulk(key.bytes).unsigned(last).bulk(b"\0").end();
    }
}

/// One piece of a string.
pub(super) fn set_range(out: &mut impl Out, key: &Key<'_>, offset: u64, piece: &[u8]) {
    let mut command = Command::begin(out, key.meta(Class::Blind), 4, SETRANGE);
    command.bulk(key.bytes).unsigned(offset).bulk_head(piece.len()).put(piece).raw(b"\r\n").end();
}

/// A whole short string, wherever it lies: everything in one `space`.
#[inline]
pub(super) fn set_short(out: &mut impl Out, key: &Key<'_>, value: &[u8], expire_at_ms: Option<i64>) {
    let room = SET_OVERHEAD_MAX + key.bytes.len() + value.len();
    if room > SPACE_MAX {
        let mut command = begin_set(out, key, value.len() as u64, expire_at_ms);
        command.raw(value);
        return end_set(&mut command, expire_at_ms);
    }
    out.whole(key.meta(Class::Blind), room, |place| {
        let mut writer = Writer::new(place);
        match expire_at_ms {
            None => {
                writer.put(SET);
                writer.bulk(key.bytes);
                writer.bulk(value);
            }
            Some(ms) => {
                writer.put(SET_PXAT);
                writer.bulk(key.bytes);
                writer.bulk(value);
                writer.put(PXAT);
                writer.bulk_integer(ms);
            }
        }
        writer.written()
    });
}
