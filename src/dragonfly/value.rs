//! The elements inside a value: one walk over every layout of wire 3, whole or in runs.
//!
//! In: a body of an [`super::Event::Whole`] or [`super::Event::Run`], hostile even though the stream decoder has found its
//! end. Out: elements, each borrowing the body, or (LZF-packed containers) a scratch buffer that is reused; nothing is
//! allocated per element. Errors are unplaced: they know the offset in the body, the caller adds flow and stream offset
//! ([`DecodeError::placed`]). Streams are in `stream_value`.

use super::error::{DecodeError, Reason};
use super::event::{KeyMeta, ObjectType, Text};
use super::intset::Intset;
use super::listpack::Listpack;
use super::wire::{Read, Reader, Stop};
use super::ziplist::Ziplist;

pub use super::stream_value::{
    StreamConsumer, StreamGroup, StreamId, StreamPending, StreamTail, for_each_entry, stream_tail, stream_tail_offset,
};

/// Field and member expiries count seconds from here: 2023-02-01 00:00:00 UTC (wire 3.5).
const MEMBER_EXPIRY_EPOCH_S: i64 = 1_675_209_600;

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

impl<E> From<Fault<E>> for WalkError<E> {
    fn from(fault: Fault<E>) -> Self {
        match fault {
            Fault::Reason(reason) => WalkError::Decode(DecodeError::in_value(0, reason)),
            Fault::Visitor(error) => WalkError::Visitor(error),
        }
    }
}

/// Calls `visit` for each element of `body`. `whole`: body begins with the count (an `Event::Whole`); otherwise it is the
/// body of a `Run`. Not for strings, streams, JSON and filters. Returns the number of elements visited.
///
/// Types whose value is one container (11, 12, 13, 16, 17) are never cut; their body is the container's string either way.
pub fn for_each_element<E>(
    object_type: ObjectType,
    whole: bool,
    body: &[u8],
    scratch: &mut Scratch,
    mut visit: impl FnMut(Element<'_>) -> Result<(), E>,
) -> Result<u64, WalkError<E>> {
    let mut reader = Reader::of_complete(body);
    let walked = walk(object_type, whole, &mut reader, scratch, &mut visit);
    walked.map_err(|fault| match fault {
        Fault::Reason(reason) => WalkError::Decode(DecodeError::in_value(reader.pos(), reason)),
        Fault::Visitor(error) => WalkError::Visitor(error),
    })
}

/// Number of elements `for_each_element` would visit (list nodes and containers opened), without unpacking strings
/// where that can be avoided. What a count in a header says is believed here; the walk checks it.
pub fn count_elements(
    object_type: ObjectType,
    whole: bool,
    body: &[u8],
    scratch: &mut Scratch,
) -> Result<u64, DecodeError> {
    let mut reader = Reader::of_complete(body);
    count(object_type, whole, &mut reader, scratch).map_err(|reason| DecodeError::in_value(reader.pos(), reason))
}

/// The string value of types 0, 20, 30 (`Event::Whole` body).
pub fn string_value<'a>(meta: &KeyMeta<'_>, body: &'a [u8]) -> Result<Text<'a>, DecodeError> {
    let object_type = meta.object_type;
    if !matches!(object_type, ObjectType::String | ObjectType::Json | ObjectType::JsonOld) {
        return Err(DecodeError::in_value(0, Reason::NotAString { object_type }));
    }
    only_string(body).map_err(|reason| DecodeError::in_value(0, reason))
}

/// What stops a walk, before it has a place.
#[derive(Debug)]
pub(super) enum Fault<E> {
    Reason(Reason),
    Visitor(E),
}

impl<E> From<Reason> for Fault<E> {
    fn from(reason: Reason) -> Self {
        Fault::Reason(reason)
    }
}

/// The result of a read of bytes that are all there: what is missing will never come.
#[inline]
pub(super) fn complete<T>(read: Read<T>, body_len: usize) -> Result<T, Reason> {
    read.map_err(|stop| match stop {
        Stop::More(at_least) => Reason::ValueTruncated { missing: at_least.saturating_sub(body_len) as u64 },
        Stop::Wrong(reason) => *reason,
    })
}

/// `body` as one string and nothing else.
fn only_string(body: &[u8]) -> Result<Text<'_>, Reason> {
    let mut reader = Reader::of_complete(body);
    let text = complete(reader.string(), body.len())?;
    match reader.left() {
        0 => Ok(text),
        left_over => Err(Reason::ValueLeftOver { left_over }),
    }
}

/// The bytes of a container, unpacked into the scratch buffer if need be.
pub(super) fn container_bytes<'a>(text: Text<'a>, scratch: &'a mut Vec<u8>) -> Result<&'a [u8], Reason> {
    match text {
        Text::Raw(bytes) => Ok(bytes),
        packed => {
            scratch.clear();
            packed.append(scratch)?;
            Ok(scratch)
        }
    }
}

fn walk<E>(
    object_type: ObjectType,
    whole: bool,
    reader: &mut Reader<'_>,
    scratch: &mut Scratch,
    visit: &mut impl FnMut(Element<'_>) -> Result<(), E>,
) -> Result<u64, Fault<E>> {
    let mut visit = |element: Element<'_>| visit(element).map_err(Fault::Visitor);
    match object_type {
        ObjectType::Set => each(
            whole,
            reader,
            |r| {
                let member = r.string()?;
                Ok(Element::Member { member, expire_at_ms: None })
            },
            visit,
        ),
        ObjectType::Hash => each(
            whole,
            reader,
            |r| {
                let (field, value) = (r.string()?, r.string()?);
                Ok(Element::Field { field, value, expire_at_ms: None })
            },
            visit,
        ),
        ObjectType::Zset => each(
            whole,
            reader,
            |r| {
                let (member, score) = (r.string()?, r.double()?);
                if score.is_nan() {
                    return Err(Reason::BadScore.into());
                }
                Ok(Element::Scored { member, score })
            },
            visit,
        ),
        ObjectType::HashExpiry => each(
            whole,
            reader,
            |r| {
                let (field, value) = (r.string()?, r.string()?);
                Ok(Element::Field { field, value, expire_at_ms: member_expiry(r.string()?)? })
            },
            visit,
        ),
        ObjectType::SetExpiry => each(
            whole,
            reader,
            |r| {
                let member = r.string()?;
                Ok(Element::Member { member, expire_at_ms: member_expiry(r.string()?)? })
            },
            visit,
        ),
        ObjectType::ListNodes => nodes(whole, reader, |reader, len| {
            let node = read_list_node(reader, len)?;
            let mut visited = 0;
            match node {
                Node::Plain(text) => {
                    visited += 1;
                    visit(Element::Item(text))?;
                }
                Node::Packed(text) => {
                    let mut pack = Listpack::new(container_bytes(text, &mut scratch.container)?)?;
                    while let Some(text) = pack.next()? {
                        visited += 1;
                        visit(Element::Item(text))?;
                    }
                }
            }
            Ok(visited)
        }),
        ObjectType::ListZiplists => nodes(whole, reader, |reader, len| {
            let text = complete(reader.string(), len)?;
            let mut pack = Ziplist::new(container_bytes(text, &mut scratch.container)?)?;
            let mut visited = 0;
            while let Some(text) = pack.next()? {
                visited += 1;
                visit(Element::Item(text))?;
            }
            Ok(visited)
        }),
        ObjectType::SetIntset => {
            let mut set = Intset::new(container_bytes(rest_string(reader)?, &mut scratch.container)?)?;
            let mut visited = 0;
            while let Some(number) = set.next()? {
                visited += 1;
                visit(Element::Member { member: Text::Int(number), expire_at_ms: None })?;
            }
            Ok(visited)
        }
        ObjectType::HashListpack | ObjectType::ZsetListpack => {
            let mut pack = Listpack::new(container_bytes(rest_string(reader)?, &mut scratch.container)?)?;
            pairs("listpack", object_type, || pack.next(), visit)
        }
        ObjectType::HashZiplist | ObjectType::ZsetZiplist => {
            let mut pack = Ziplist::new(container_bytes(rest_string(reader)?, &mut scratch.container)?)?;
            pairs("ziplist", object_type, || pack.next(), visit)
        }
        _ => Err(Reason::NotACollection { object_type }.into()),
    }
}

/// Visits elements that stand in the body one after the other.
fn each<'a, E>(
    whole: bool,
    reader: &mut Reader<'a>,
    read: impl Fn(&mut Reader<'a>) -> Read<Element<'a>>,
    mut visit: impl FnMut(Element<'_>) -> Result<(), Fault<E>>,
) -> Result<u64, Fault<E>> {
    nodes(whole, reader, |reader, len| {
        visit(complete(read(reader), len)?)?;
        Ok(1)
    })
}

/// Runs `read` (reader, length of the body) for each element or node of a body. Returns the sum of what it returned.
pub(super) fn nodes<'a, E>(
    whole: bool,
    reader: &mut Reader<'a>,
    mut read: impl FnMut(&mut Reader<'a>, usize) -> Result<u64, Fault<E>>,
) -> Result<u64, Fault<E>> {
    let len = reader.pos() + reader.left();
    let mut visited = 0;
    if whole {
        for _ in 0..complete(reader.packed(), len)? {
            visited += read(reader, len)?;
        }
        return match reader.left() {
            0 => Ok(visited),
            left_over => Err(Reason::ValueLeftOver { left_over }.into()),
        };
    }
    while !reader.is_empty() {
        visited += read(reader, len)?;
    }
    Ok(visited)
}

/// Visits the pairs of a hash or sorted set container.
fn pairs<'a, E>(
    container: &'static str,
    object_type: ObjectType,
    mut next: impl FnMut() -> Result<Option<Text<'a>>, Reason>,
    mut visit: impl FnMut(Element<'_>) -> Result<(), Fault<E>>,
) -> Result<u64, Fault<E>> {
    let scored = matches!(object_type, ObjectType::ZsetListpack | ObjectType::ZsetZiplist);
    let mut visited = 0;
    while let Some(first) = next()? {
        let Some(second) = next()? else {
            return Err(Reason::OddContainer { container, count: visited * 2 + 1 }.into());
        };
        visited += 1;
        visit(match scored {
            true => Element::Scored { member: first, score: text_score(second)? },
            false => Element::Field { field: first, value: second, expire_at_ms: None },
        })?;
    }
    Ok(visited)
}

/// The rest of the reader as one string.
fn rest_string<'a>(reader: &mut Reader<'a>) -> Result<Text<'a>, Reason> {
    let len = reader.pos() + reader.left();
    let text = complete(reader.string(), len)?;
    match reader.left() {
        0 => Ok(text),
        left_over => Err(Reason::ValueLeftOver { left_over }),
    }
}

enum Node<'a> {
    Plain(Text<'a>),
    Packed(Text<'a>),
}

fn read_list_node<'a>(reader: &mut Reader<'a>, len: usize) -> Result<Node<'a>, Reason> {
    let container = complete(reader.packed(), len)?;
    let text = complete(reader.string(), len)?;
    match container {
        1 => Ok(Node::Plain(text)),
        2 => Ok(Node::Packed(text)),
        _ => Err(Reason::UnknownListContainer { container }),
    }
}

/// A score in a container: an integer, or decimal text (also `inf`, `-inf`).
fn text_score(text: Text<'_>) -> Result<f64, Reason> {
    let score = match text {
        Text::Int(number) => number as f64,
        Text::Raw(bytes) => {
            std::str::from_utf8(bytes).ok().and_then(|digits| digits.parse().ok()).ok_or(Reason::BadScore)?
        }
        Text::Lzf { .. } => return Err(Reason::BadScore),
    };
    if score.is_nan() { Err(Reason::BadScore) } else { Ok(score) }
}

/// Wire 3.5: -1, or seconds since 2023-02-01; as absolute milliseconds.
fn member_expiry(text: Text<'_>) -> Result<Option<i64>, Reason> {
    let seconds = match text {
        Text::Int(number) => number,
        Text::Raw(bytes) => {
            std::str::from_utf8(bytes).ok().and_then(|digits| digits.parse().ok()).ok_or(Reason::BadExpiry)?
        }
        Text::Lzf { .. } => return Err(Reason::BadExpiry),
    };
    match seconds {
        -1 => Ok(None),
        0.. => {
            let at_ms = seconds.checked_add(MEMBER_EXPIRY_EPOCH_S).and_then(|at_s| at_s.checked_mul(1000));
            at_ms.map(Some).ok_or(Reason::BadExpiry)
        }
        _ => Err(Reason::BadExpiry),
    }
}

fn count(object_type: ObjectType, whole: bool, reader: &mut Reader<'_>, scratch: &mut Scratch) -> Result<u64, Reason> {
    let len = reader.pos() + reader.left();
    let container = &mut scratch.container;
    match object_type {
        ObjectType::ListNodes => settle(nodes(whole, reader, |reader, len| {
            Ok(match read_list_node(reader, len)? {
                Node::Plain(_) => 1,
                Node::Packed(text) => Listpack::new(container_bytes(text, container)?)?.count()?,
            })
        })),
        ObjectType::ListZiplists => settle(nodes(whole, reader, |reader, len| {
            let text = complete(reader.string(), len)?;
            Ok(Ziplist::new(container_bytes(text, container)?)?.count()?)
        })),
        ObjectType::SetIntset => Ok(Intset::new(container_bytes(rest_string(reader)?, container)?)?.count()),
        ObjectType::HashListpack | ObjectType::ZsetListpack => {
            halve("listpack", Listpack::new(container_bytes(rest_string(reader)?, container)?)?.count()?)
        }
        ObjectType::HashZiplist | ObjectType::ZsetZiplist => {
            halve("ziplist", Ziplist::new(container_bytes(rest_string(reader)?, container)?)?.count()?)
        }
        _ => match object_type.form() {
            super::layout::Form::Elements(_) if whole => complete(reader.packed(), len),
            super::layout::Form::Elements(shape) => settle(nodes(false, reader, |reader, len| {
                complete(shape.skip(reader), len)?;
                Ok(1)
            })),
            _ => Err(Reason::NotACollection { object_type }),
        },
    }
}

fn halve(container: &'static str, count: u64) -> Result<u64, Reason> {
    if count.is_multiple_of(2) { Ok(count / 2) } else { Err(Reason::OddContainer { container, count }) }
}

/// A walk without a visitor has no visitor's error.
fn settle<T>(walked: Result<T, Fault<std::convert::Infallible>>) -> Result<T, Reason> {
    walked.map_err(|fault| match fault {
        Fault::Reason(reason) => reason,
        Fault::Visitor(never) => match never {},
    })
}

#[cfg(test)]
mod tests;
