//! How far the value of each type reaches, and where it may be cut.
//!
//! [`Left`] is what is still missing of a value that is being read: so many elements, so many bytes, a stream's tail, or
//! a step inside a filter. `advance` moves it over complete elements at the front of the bytes at hand and changes
//! nothing if there is none. It is the only place that knows the borders of elements; [`super::stream`] uses it to find
//! whole values and to cut large ones into runs. Nothing here allocates, and no announced number is believed: each is
//! met by bytes or by a wait for bytes.

use super::error::{Limit, Reason};
use super::event::{ObjectType, Stage};
use super::filter::FilterWalk;
use super::stream::Limits;
use super::wire::{Read, Reader, Stop};

/// What kind of value a type has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Type 0: raw bytes can be cut anywhere by us.
    String,
    /// One string that must be seen as a whole.
    Atom,
    Elements(Shape),
    Stream,
    Filter,
}

/// What one element is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    OneString,
    TwoStrings,
    ThreeStrings,
    /// String, double.
    Scored,
    /// Packed container, string.
    ListNode,
    /// Two strings, the first of 16 bytes.
    StreamNode,
    /// Node of a vector graph (opcode 222).
    VectorNode,
    /// String, packed number (opcode 223).
    ShardDoc,
}

impl ObjectType {
    /// The type with this number in a snapshot.
    #[inline]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::String,
            2 => Self::Set,
            4 => Self::Hash,
            5 => Self::Zset,
            11 => Self::SetIntset,
            12 => Self::ZsetZiplist,
            13 => Self::HashZiplist,
            14 => Self::ListZiplists,
            15 => Self::StreamV1,
            16 => Self::HashListpack,
            17 => Self::ZsetListpack,
            18 => Self::ListNodes,
            19 => Self::StreamV2,
            20 => Self::JsonOld,
            21 => Self::StreamV3,
            30 => Self::Json,
            31 => Self::HashExpiry,
            32 => Self::SetExpiry,
            33 => Self::Bloom,
            34 => Self::BloomPieces,
            35 => Self::CountMinSketch,
            36 => Self::TopK,
            37 => Self::Cuckoo,
            _ => return None,
        })
    }

    /// The number of the type, first byte of a RESTORE payload.
    #[inline]
    pub fn byte(self) -> u8 {
        self as u8
    }

    #[inline]
    pub(super) fn form(self) -> Form {
        match self {
            Self::String => Form::String,
            Self::SetIntset
            | Self::ZsetZiplist
            | Self::HashZiplist
            | Self::HashListpack
            | Self::ZsetListpack
            | Self::JsonOld
            | Self::Json => Form::Atom,
            Self::Set | Self::ListZiplists => Form::Elements(Shape::OneString),
            Self::Hash | Self::SetExpiry => Form::Elements(Shape::TwoStrings),
            Self::HashExpiry => Form::Elements(Shape::ThreeStrings),
            Self::Zset => Form::Elements(Shape::Scored),
            Self::ListNodes => Form::Elements(Shape::ListNode),
            Self::StreamV1 | Self::StreamV2 | Self::StreamV3 => Form::Stream,
            Self::Bloom | Self::BloomPieces | Self::CountMinSketch | Self::TopK | Self::Cuckoo => Form::Filter,
        }
    }
}

impl Shape {
    /// Steps over one element.
    #[inline]
    pub(super) fn skip(self, reader: &mut Reader<'_>) -> Read<()> {
        match self {
            Shape::OneString => reader.skip_string(),
            Shape::TwoStrings => {
                reader.skip_string()?;
                reader.skip_string()
            }
            Shape::ThreeStrings => {
                reader.skip_string()?;
                reader.skip_string()?;
                reader.skip_string()
            }
            Shape::Scored => {
                reader.skip_string()?;
                reader.double().map(|_| ())
            }
            Shape::ListNode => match reader.packed()? {
                1 | 2 => reader.skip_string(),
                container => Err(Reason::UnknownListContainer { container }.into()),
            },
            Shape::StreamNode => {
                match reader.raw_string("stream node id")?.len() {
                    16 => {}
                    _ => return Err(Reason::BadStream { cause: "the id of a node is not 16 bytes long" }.into()),
                }
                reader.skip_string()
            }
            Shape::VectorNode => skip_vector_node(reader),
            Shape::ShardDoc => {
                reader.skip_string()?;
                reader.packed().map(|_| ())
            }
        }
    }

    /// No element is shorter.
    #[inline]
    fn bytes_min(self) -> u64 {
        match self {
            Shape::OneString => 1,
            Shape::TwoStrings | Shape::ListNode | Shape::ShardDoc => 2,
            Shape::ThreeStrings => 3,
            Shape::Scored => 9,
            Shape::StreamNode => 18,
            Shape::VectorNode => 20,
        }
    }
}

/// u32le internal id, u64le global id, u32le level, then level + 1 times a u32le count and that many u32le (wire 2.9).
fn skip_vector_node(reader: &mut Reader<'_>) -> Read<()> {
    reader.take(12)?;
    let level = reader.u32_le()?;
    for _ in 0..=level {
        let links = reader.u32_le()?;
        reader.take(u64::from(links) * 4)?;
    }
    Ok(())
}

/// What is still missing of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    Elements { shape: Shape, count: u64 },
    Bytes(u64),
    StreamNodes { object_type: ObjectType, count: u64 },
    StreamTail(ObjectType),
    Filter(FilterWalk),
    Done,
}

/// What `advance` stepped over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Advance {
    pub stage: Stage,
    pub count: u64,
    pub len: usize,
}

impl Left {
    pub(super) fn elements(shape: Shape, count: u64) -> Self {
        match count {
            0 => Left::Done,
            _ => Left::Elements { shape, count },
        }
    }

    pub(super) fn bytes(count: u64) -> Self {
        match count {
            0 => Left::Done,
            _ => Left::Bytes(count),
        }
    }

    pub(super) fn stream(object_type: ObjectType, nodes: u64) -> Self {
        match nodes {
            0 => Left::StreamTail(object_type),
            count => Left::StreamNodes { object_type, count },
        }
    }

    pub(super) fn is_done(&self) -> bool {
        *self == Left::Done
    }

    /// Whether a tagged chunk may end here.
    pub(super) fn may_be_cut(&self) -> bool {
        match self {
            Left::Bytes(_) => false,
            Left::Filter(walk) => walk.bytes_left() == 0,
            _ => true,
        }
    }

    /// Steps over what is complete at the front of `view`, up to `run_bytes_max` bytes or one element. On `Err` nothing
    /// has changed; `Stop::More` counts from the front of `view`.
    pub(super) fn advance(&mut self, view: &[u8], limits: &Limits) -> Read<Advance> {
        match *self {
            Left::Elements { shape, count } => {
                let (done, len) = run_of(shape, count, view, limits)?;
                *self = Left::elements(shape, count - done);
                Ok(Advance { stage: Stage::Elements, count: done, len })
            }
            Left::StreamNodes { object_type, count } => {
                let (done, len) = run_of(Shape::StreamNode, count, view, limits)?;
                *self = Left::stream(object_type, count - done);
                Ok(Advance { stage: Stage::Elements, count: done, len })
            }
            Left::Bytes(count) => {
                let len = (view.len() as u64).min(count);
                if len == 0 {
                    return Err(Stop::More(1));
                }
                *self = Left::bytes(count - len);
                Ok(Advance { stage: Stage::Elements, count: len, len: len as usize })
            }
            Left::StreamTail(object_type) => {
                let mut reader = limits.reader(view);
                limits.atom(&mut reader, |reader| skip_stream_tail(object_type, reader))?;
                *self = Left::Done;
                Ok(Advance { stage: Stage::StreamTail, count: 1, len: reader.pos() })
            }
            Left::Filter(mut walk) => {
                let len = walk.advance(view)?;
                *self = if walk.is_done() { Left::Done } else { Left::Filter(walk) };
                Ok(Advance { stage: Stage::Elements, count: 0, len })
            }
            Left::Done => Ok(Advance { stage: Stage::Elements, count: 0, len: 0 }),
        }
    }

    /// Steps over all of it at once, changing nothing but the reader.
    pub(super) fn skip_whole(self, reader: &mut Reader<'_>, rest: &[u8], limits: &Limits) -> Read<()> {
        match self {
            Left::Elements { shape, count } => skip_elements(shape, count, reader, limits),
            Left::StreamNodes { object_type, count } => {
                skip_elements(Shape::StreamNode, count, reader, limits)?;
                limits.atom(reader, |reader| skip_stream_tail(object_type, reader))
            }
            Left::StreamTail(object_type) => limits.atom(reader, |reader| skip_stream_tail(object_type, reader)),
            Left::Bytes(count) => reader.take(count).map(|_| ()),
            Left::Filter(mut walk) => {
                let start = reader.pos();
                let len = walk.advance(rest).map_err(|stop| match stop {
                    Stop::More(at_least) => Stop::More(start.saturating_add(at_least)),
                    wrong => wrong,
                })?;
                reader.take(len as u64)?;
                match walk.is_done() {
                    true => Ok(()),
                    // All of `rest` was looked at and more is needed.
                    false => {
                        let missing = (reader.left() as u64).saturating_add(walk.bytes_left().max(1));
                        reader.take(missing).map(|_| ())
                    }
                }
            }
            Left::Done => Ok(()),
        }
    }
}

/// Steps over as many of `count` elements as are complete: at least one, at most `run_bytes_max` bytes of them unless the
/// first alone is longer. Returns their number and length.
fn run_of(shape: Shape, count: u64, view: &[u8], limits: &Limits) -> Read<(u64, usize)> {
    let mut reader = limits.reader(view);
    let mut done = 0;
    while done < count {
        let mark = reader.pos();
        let step = limits.atom(&mut reader, |reader| shape.skip(reader));
        let too_much = reader.pos() > limits.run_bytes_max;
        match step {
            Ok(()) if done == 0 || !too_much => done += 1,
            Err(stop) if done == 0 => return Err(stop),
            // Found again, with its own offset, by the next call.
            Ok(()) | Err(_) => {
                reader.rewind(mark);
                break;
            }
        }
    }
    Ok((done, reader.pos()))
}

fn skip_elements(shape: Shape, count: u64, reader: &mut Reader<'_>, limits: &Limits) -> Read<()> {
    need(reader, count, shape.bytes_min())?;
    for done in 0..count {
        let mark = reader.pos();
        if let Err(stop) = limits.atom(reader, |reader| shape.skip(reader)) {
            // All that are missing need room, not only the next: else a record that comes in drops is walked over often.
            reader.rewind(mark);
            need(reader, count - done, shape.bytes_min())?;
            return Err(stop);
        }
    }
    Ok(())
}

/// Makes sure that the least bytes which `count` things of at least `bytes_min` take are there, so that a wait for more
/// is one long wait and not many short ones.
#[inline]
fn need(reader: &Reader<'_>, count: u64, bytes_min: u64) -> Read<()> {
    let mut ahead = *reader;
    ahead.take(count.checked_mul(bytes_min).ok_or(Reason::LengthOverflow)?).map(|_| ())
}

/// Everything of a stream after its listpacks, wire 3.6.
pub(super) fn skip_stream_tail(object_type: ObjectType, reader: &mut Reader<'_>) -> Read<()> {
    let counters = if object_type == ObjectType::StreamV1 { 3 } else { 8 };
    for _ in 0..counters {
        reader.packed()?;
    }
    let groups = reader.packed()?;
    need(reader, groups, 5)?;
    for _ in 0..groups {
        reader.skip_string()?;
        for _ in 0..if object_type == ObjectType::StreamV1 { 2 } else { 3 } {
            reader.packed()?;
        }
        let pending = reader.packed()?;
        need(reader, pending, 25)?;
        for _ in 0..pending {
            reader.take(24)?;
            reader.packed()?;
        }
        let consumers = reader.packed()?;
        need(reader, consumers, 10)?;
        for _ in 0..consumers {
            reader.skip_string()?;
            reader.take(if object_type == ObjectType::StreamV3 { 16 } else { 8 })?;
            let ids = reader.packed()?;
            reader.take(ids.checked_mul(16).ok_or(Reason::LengthOverflow)?)?;
        }
    }
    Ok(())
}

impl Limits {
    /// A reader whose strings may be as long as an atom.
    #[inline]
    pub(super) fn reader<'a>(&self, buf: &'a [u8]) -> Reader<'a> {
        Reader::new(buf, self.atom_bytes_max as u64)
    }

    /// Runs `read`, which must not step over more than `atom_bytes_max` bytes nor ask for more.
    #[inline]
    pub(super) fn atom<'a, T>(
        &self,
        reader: &mut Reader<'a>,
        read: impl FnOnce(&mut Reader<'a>) -> Read<T>,
    ) -> Read<T> {
        let mark = reader.pos();
        let result = read(reader);
        let reached = match &result {
            Ok(_) => reader.pos(),
            Err(Stop::More(at_least)) => *at_least,
            Err(Stop::Wrong(_)) => return result,
        };
        match reached - mark.min(reached) > self.atom_bytes_max {
            true => Err(self.atom_passed(reached - mark)),
            false => result,
        }
    }

    #[cold]
    fn atom_passed(&self, announced: usize) -> Stop {
        let limit = self.atom_bytes_max as u64;
        Reason::LimitPassed { what: Limit::AtomBytes, announced: announced as u64, limit }.into()
    }
}
