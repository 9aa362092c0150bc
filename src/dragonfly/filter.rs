//! Steps over the probabilistic types 33-37 (wire 3.7) without looking at their bits.
//!
//! They can be large and nothing but their presence is used, so their bytes pass by in any pieces: [`FilterWalk`] reads
//! the small heads that say how many bytes come next and counts those down.

use super::error::Reason;
use super::event::ObjectType;
use super::wire::{Read, Reader, Stop, StringHead};

/// Where in a filter the reader stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FilterWalk {
    object_type: ObjectType,
    /// Bytes that must pass before the next step.
    bytes: u64,
    step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Head,
    /// So many filters still begin.
    Filters(u64),
    /// Pieces of one filter, until `total` plain bytes have come.
    Pieces {
        filters: u64,
        total: u64,
    },
    /// Top-k: so many pairs of item and count still begin.
    Items(u64),
    /// Top-k: the count of an item, then so many pairs.
    ItemCount(u64),
    Counters,
    Done,
}

impl FilterWalk {
    pub(super) fn new(object_type: ObjectType) -> Self {
        Self { object_type, bytes: 0, step: Step::Head }
    }

    pub(super) fn is_done(&self) -> bool {
        self.bytes == 0 && self.step == Step::Done
    }

    pub(super) fn bytes_left(&self) -> u64 {
        self.bytes
    }

    /// Steps over as much of `view` as belongs to the filter, at least one byte.
    pub(super) fn advance(&mut self, view: &[u8]) -> Read<usize> {
        let mut reader = Reader::of_complete(view);
        loop {
            let passing = self.bytes.min(reader.left() as u64);
            reader.take(passing)?;
            self.bytes -= passing;
            if self.bytes > 0 || self.step == Step::Done {
                break;
            }
            let mark = reader.pos();
            match self.head(&mut reader) {
                Ok((step, bytes)) => (self.step, self.bytes) = (step, bytes),
                Err(stop) if mark == 0 => return Err(stop),
                Err(_) => {
                    reader.rewind(mark);
                    break;
                }
            }
        }
        match reader.pos() {
            0 => Err(Stop::More(1)),
            len => Ok(len),
        }
    }

    /// Reads the head at which the walk stands: what comes after it, and after how many bytes.
    fn head(&self, reader: &mut Reader<'_>) -> Read<(Step, u64)> {
        match self.step {
            Step::Head => self.first_head(reader),
            Step::Filters(left) => self.filter_head(reader, left - 1),
            Step::Pieces { filters, total } => self.piece_head(reader, filters, total),
            Step::Items(left) => Ok((Step::ItemCount(left - 1), string_bytes(reader)?.0)),
            Step::ItemCount(left) => {
                reader.packed()?;
                Ok((items(left), 0))
            }
            Step::Counters => Ok((Step::Done, string_bytes(reader)?.0)),
            Step::Done => Ok((Step::Done, 0)),
        }
    }

    fn first_head(&self, reader: &mut Reader<'_>) -> Read<(Step, u64)> {
        match self.object_type {
            ObjectType::CountMinSketch => {
                let (width, depth, _total) = (reader.packed()?, reader.packed()?, reader.packed()?);
                let bytes = width.checked_mul(depth).and_then(|cells| cells.checked_mul(8));
                Ok((Step::Done, bytes.ok_or(Reason::LengthOverflow)?))
            }
            ObjectType::TopK => {
                no_options(reader)?;
                for _k_width_depth in 0..3 {
                    reader.packed()?;
                }
                reader.double()?;
                Ok((items(reader.packed()?), 0))
            }
            ObjectType::Cuckoo => {
                for _ in 0..6 {
                    reader.packed()?;
                }
                Ok((filters(reader.packed()?), 0))
            }
            _ => {
                no_options(reader)?;
                reader.double()?;
                reader.double()?;
                for _items_and_capacity in 0..3 {
                    reader.packed()?;
                }
                Ok((filters(reader.packed()?), 0))
            }
        }
    }

    fn filter_head(&self, reader: &mut Reader<'_>, left: u64) -> Read<(Step, u64)> {
        if self.object_type != ObjectType::Cuckoo {
            let _hash_count = reader.packed()?;
        }
        if self.object_type == ObjectType::Bloom {
            return Ok((filters(left), string_bytes(reader)?.0));
        }
        Ok((pieces(left, reader.packed()?), 0))
    }

    fn piece_head(&self, reader: &mut Reader<'_>, left: u64, total: u64) -> Read<(Step, u64)> {
        let (bytes, plain) = string_bytes(reader)?;
        if plain == 0 || plain > total {
            return Err(
                Reason::BadFilter { cause: "a piece is empty or longer than what is left of its filter" }.into()
            );
        }
        Ok((pieces(left, total - plain), bytes))
    }
}

fn filters(left: u64) -> Step {
    if left == 0 { Step::Done } else { Step::Filters(left) }
}

fn items(left: u64) -> Step {
    if left == 0 { Step::Counters } else { Step::Items(left) }
}

fn pieces(left: u64, total: u64) -> Step {
    if total == 0 { filters(left) } else { Step::Pieces { filters: left, total } }
}

fn no_options(reader: &mut Reader<'_>) -> Read<()> {
    match reader.packed()? {
        0 => Ok(()),
        _ => Err(Reason::BadFilter { cause: "its options number is not 0" }.into()),
    }
}

/// Head of a string in any form: bytes that follow, and the length they stand for.
fn string_bytes(reader: &mut Reader<'_>) -> Read<(u64, u64)> {
    Ok(match reader.string_head()? {
        StringHead::Raw(len) => (len, len),
        StringHead::Int(number) => (0, itoa::Buffer::new().format(number).len() as u64),
        StringHead::Lzf { packed, plain } => (packed, plain),
    })
}
