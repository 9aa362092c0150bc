//! The parts of a full-sync record that need no state: opcodes, attributes and key, and how far the value is handed out.
//!
//! In: bytes from a record's front. Out: a [`Head`], and the [`Value`] behind it: whole, or only begun because its record is
//! longer than a whole one may be. What is read over ([`read_over`]) is here too. Nothing is consumed and nothing is
//! remembered: [`super::stream`] does that when the whole event is there.

use super::error::{Limit, Reason};
use super::event::{KeyMeta, ObjectType, Text};
use super::filter::FilterWalk;
use super::layout::{Form, Left, Shape};
use super::stream::Limits;
use super::wire::{Read, Reader, Stop, StringHead};
use crate::ids::DbIndex;

/// Opcodes of wire 2.3.
pub(super) mod opcode {
    pub const FULLSYNC_END: u8 = 0xc8;
    pub const ZSTD_BLOB: u8 = 0xc9;
    pub const LZ4_BLOB: u8 = 0xca;
    pub const BLOB_END: u8 = 0xcb;
    pub const JOURNAL_BLOB: u8 = 0xd2;
    pub const JOURNAL_OFFSET: u8 = 0xd3;
    pub const DF_MASK: u8 = 0xdc;
    pub const VECTOR_INDEX: u8 = 0xde;
    pub const SHARD_DOC_INDEX: u8 = 0xdf;
    pub const TAGGED_CHUNK: u8 = 0xe0;
    pub const SLOT_INFO: u8 = 0xf4;
    pub const FUNCTION2: u8 = 0xf5;
    pub const MODULE_AUX: u8 = 0xf7;
    pub const IDLE: u8 = 0xf8;
    pub const FREQ: u8 = 0xf9;
    pub const AUX: u8 = 0xfa;
    pub const RESIZEDB: u8 = 0xfb;
    pub const EXPIRETIME_MS: u8 = 0xfc;
    pub const EXPIRETIME: u8 = 0xfd;
    pub const SELECTDB: u8 = 0xfe;
    pub const EOF: u8 = 0xff;
}

/// What stands before a value.
pub(super) struct Head<'a> {
    pub expire_at_ms: Option<i64>,
    pub sticky: bool,
    pub memcached_flags: Option<u32>,
    pub object_type: ObjectType,
    /// `None`: in the scratch buffer.
    pub key: Option<&'a [u8]>,
    /// Where the value begins.
    pub value_at: usize,
}

impl<'a> Head<'a> {
    #[inline]
    pub(super) fn meta(&self, db: DbIndex, scratch: &'a [u8]) -> KeyMeta<'a> {
        KeyMeta {
            db,
            key: self.key.unwrap_or(scratch),
            expire_at_ms: self.expire_at_ms,
            sticky: self.sticky,
            memcached_flags: self.memcached_flags,
            object_type: self.object_type,
        }
    }
}

/// Key, value and length of a record that is a raw string without attributes, all of it present and short enough to be
/// handed out whole. `None`: something else, which the general way knows.
#[inline]
pub(super) fn plain_string<'a>(input: &'a [u8], limits: &Limits) -> Option<(&'a [u8], &'a [u8], usize)> {
    let [0, key_part @ ..] = input else { return None };
    let (key_len, key_head) = short_len(key_part)?;
    let (key, value_part) = key_part.get(key_head..)?.split_at_checked(key_len)?;
    let (value_len, value_head) = short_len(value_part)?;
    let body = value_part.get(..value_head + value_len)?;
    let end = 1 + key_head + key_len + body.len();
    (key_len <= limits.key_bytes_max && end <= limits.whole_bytes_max).then_some((key, body, end))
}

/// A raw string's length in the one or two bytes of wire 0.1, and how many they are.
#[inline]
fn short_len(bytes: &[u8]) -> Option<(usize, usize)> {
    match bytes {
        [len @ 0x00..=0x3f, ..] => Some((usize::from(*len), 1)),
        [high @ 0x40..=0x7f, low, ..] => Some((usize::from(high & 0x3f) << 8 | usize::from(*low), 2)),
        _ => None,
    }
}

/// Reads attributes, type and key.
#[inline]
pub(super) fn read_head<'a>(input: &'a [u8], limits: &Limits, scratch: &mut Vec<u8>) -> Read<Head<'a>> {
    let mut reader = Reader::of_complete(input);
    let mut expire_at_ms = None;
    let mut mask = None;
    let mut memcached_flags = None;
    let mut first = reader.u8()?;
    let object_type = loop {
        if let Some(object_type) = ObjectType::from_byte(first) {
            break object_type;
        }
        match first {
            opcode::EXPIRETIME_MS => {
                let before = expire_at_ms.replace(i64::from_le_bytes(reader.array()?));
                if before.is_some() {
                    return Err(Reason::AttributeTwice.into());
                }
            }
            opcode::DF_MASK => {
                let bits = reader.u32_le()?;
                if bits & !3 != 0 {
                    return Err(Reason::UnknownMask { mask: bits }.into());
                }
                if mask.replace(bits).is_some() {
                    return Err(Reason::AttributeTwice.into());
                }
                if bits & 2 != 0 {
                    memcached_flags = Some(reader.u32_le()?);
                }
            }
            // Hints of Redis about eviction: they belong to the key and say nothing that is carried over.
            opcode::IDLE => _ = reader.packed()?,
            opcode::FREQ => _ = reader.u8()?,
            byte if expire_at_ms.is_some() || mask.is_some() => {
                return Err(Reason::AttributesWithoutKey { byte }.into());
            }
            byte => return Err(Reason::UnknownOpcode { byte }.into()),
        }
        first = reader.u8()?;
    };
    let key = read_key(&mut reader, limits, scratch)?;
    let sticky = mask.is_some_and(|bits| bits & 1 != 0);
    Ok(Head { expire_at_ms, sticky, memcached_flags, object_type, key, value_at: reader.pos() })
}

#[inline]
fn read_key<'a>(reader: &mut Reader<'a>, limits: &Limits, scratch: &mut Vec<u8>) -> Read<Option<&'a [u8]>> {
    let mark = *reader;
    let announced = match reader.string_head()? {
        StringHead::Raw(len) if len <= limits.key_bytes_max as u64 => return reader.take(len).map(Some),
        StringHead::Raw(len) => len,
        StringHead::Int(_) => 0,
        StringHead::Lzf { packed, plain } => packed.max(plain),
    };
    let limit = limits.key_bytes_max as u64;
    if announced > limit {
        return Err(Reason::LimitPassed { what: Limit::KeyBytes, announced, limit }.into());
    }
    *reader = mark;
    let text = reader.string()?;
    resolve(text, scratch)
}

/// The plain text: borrowed, or (`None`) in the scratch buffer.
pub(super) fn resolve<'a>(text: Text<'a>, scratch: &mut Vec<u8>) -> Read<Option<&'a [u8]>> {
    match text {
        Text::Raw(bytes) => Ok(Some(bytes)),
        packed => {
            scratch.clear();
            packed.append(scratch)?;
            Ok(None)
        }
    }
}

/// Where the value of a key goes on: whole up to `end`, or only begun there.
pub(super) struct Value {
    pub end: usize,
    pub what: Found,
}

pub(super) enum Found {
    Whole,
    Begin { count: u64, left: Left },
}

/// Decides how the value at `head.value_at` is handed out: whole if its record is no longer than `whole_bytes_max` (or its
/// type cannot be cut), else begun.
#[inline]
pub(super) fn find_value(head: &Head<'_>, input: &[u8], limits: &Limits) -> Read<Value> {
    match head.object_type.form() {
        Form::String => find_string(head, input, limits),
        Form::Atom => find_atom(head, input, limits),
        form => {
            let begin = find_begin(form, head, input)?;
            let Found::Begin { left, .. } = begin.what else { return Ok(begin) };
            // The record is looked at only as far as a whole one may reach, so that the look is bounded.
            let view = clip(input, limits.whole_bytes_max as u64);
            let mut reader = limits.reader(view);
            let whole = reader
                .take(begin.end as u64)
                .and_then(|_| left.skip_whole(&mut reader, view.get(begin.end..).unwrap_or_default(), limits));
            match whole {
                Ok(()) => Ok(Value { end: reader.pos(), what: Found::Whole }),
                Err(Stop::More(at_least)) if at_least > limits.whole_bytes_max => Ok(begin),
                Err(stop) => Err(stop),
            }
        }
    }
}

/// The same inside the first chunk of a tagged object: what can be cut is always begun.
pub(super) fn find_chunk_value(head: &Head<'_>, view: &[u8], limits: &Limits) -> Read<Value> {
    match head.object_type.form() {
        Form::String => find_string(head, view, limits),
        Form::Atom => find_atom(head, view, limits),
        form => find_begin(form, head, view),
    }
}

#[inline]
fn find_string(head: &Head<'_>, input: &[u8], limits: &Limits) -> Read<Value> {
    let mut reader = Reader::of_complete(input);
    reader.take(head.value_at as u64)?;
    let StringHead::Raw(len) = reader.string_head()? else {
        return find_atom(head, input, limits);
    };
    let begin = reader.pos();
    if len > (limits.whole_bytes_max as u64).saturating_sub(begin as u64) {
        return Ok(Value { end: begin, what: Found::Begin { count: len, left: Left::bytes(len) } });
    }
    reader.take(len)?;
    Ok(Value { end: reader.pos(), what: Found::Whole })
}

fn find_atom(head: &Head<'_>, input: &[u8], limits: &Limits) -> Read<Value> {
    let mut reader = limits.reader(input);
    reader.take(head.value_at as u64)?;
    reader.skip_string()?;
    Ok(Value { end: reader.pos(), what: Found::Whole })
}

/// Reads the count at the beginning of a value that can be cut.
#[inline]
fn find_begin(form: Form, head: &Head<'_>, input: &[u8]) -> Read<Value> {
    let mut reader = Reader::of_complete(input);
    reader.take(head.value_at as u64)?;
    let (count, left) = match form {
        Form::Elements(shape) => {
            let count = reader.packed()?;
            (count, Left::elements(shape, count))
        }
        Form::Stream => {
            let count = reader.packed()?;
            (count, Left::stream(head.object_type, count))
        }
        _ => (0, Left::Filter(FilterWalk::new(head.object_type))),
    };
    Ok(Value { end: reader.pos(), what: Found::Begin { count, left } })
}

/// The first `len` bytes, or all.
#[inline]
pub(super) fn clip(bytes: &[u8], len: u64) -> &[u8] {
    usize::try_from(len).ok().and_then(|len| bytes.get(..len)).unwrap_or(bytes)
}

/// Steps over an opcode that carries nothing for us; what is left of it then is skipped element by element.
pub(super) fn read_over(first: u8, reader: &mut Reader<'_>) -> Read<Left> {
    match first {
        opcode::RESIZEDB => {
            reader.packed()?;
            reader.packed()?;
        }
        opcode::SLOT_INFO => {
            for _ in 0..3 {
                reader.packed()?;
            }
        }
        opcode::FUNCTION2 => reader.skip_string()?,
        opcode::MODULE_AUX => skip_module_aux(reader)?,
        opcode::VECTOR_INDEX => {
            reader.skip_string()?;
            reader.packed()?;
            return Ok(Left::elements(Shape::VectorNode, reader.packed()?));
        }
        opcode::SHARD_DOC_INDEX => {
            reader.packed()?;
            reader.skip_string()?;
            return Ok(Left::elements(Shape::ShardDoc, reader.packed()?));
        }
        // Only an incomplete one comes here: complete ones are taken by `select_dbs`.
        opcode::SELECTDB => _ = reader.packed()?,
        opcode::BLOB_END | opcode::EXPIRETIME => return Err(Reason::ForbiddenOpcode { opcode: first }.into()),
        byte => return Err(Reason::UnknownOpcode { byte }.into()),
    }
    Ok(Left::Done)
}

/// Module id, then values each with its own opcode, up to opcode 0.
fn skip_module_aux(reader: &mut Reader<'_>) -> Read<()> {
    reader.packed()?;
    loop {
        match reader.packed()? {
            0 => return Ok(()),
            1 | 2 => _ = reader.packed()?,
            3 => _ = reader.take(4)?,
            4 => _ = reader.take(8)?,
            5 => reader.skip_string()?,
            _ => return Err(Reason::UnknownOpcode { byte: opcode::MODULE_AUX }.into()),
        }
    }
}
