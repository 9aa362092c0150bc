//! Commands of kept batches as units that can be executed apart: single ones, and whole MULTI groups.
//!
//! In: a batch of a cluster lane, whose bytes were not changed since they were encoded. Out: its units in order, each
//! with its bytes, slot and marker. Nothing is noted of a command on the happy path; this walk happens only after a
//! redirect or a lost connection.

use super::batch::{Batch, NO_SUCH_KEY, Watched};
use super::error::EngineError;
use super::errors::key_of;
use crate::convert::journal::keys_of;
use crate::ids::Slot;
use crate::redis::request::key_position;
use crate::redis::slot::slot;
use crate::redis::value::Value;
use crate::uring::Slab;
use std::ops::Range;

/// One command, or MULTI to EXEC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    pub bytes: Vec<u8>,
    /// Replies that it brings.
    pub replies: u32,
    /// Upper case name of the (first inner) command.
    pub name: Vec<u8>,
    /// All inner commands; empty for a single one.
    pub inner: Vec<Inner>,
    /// Its first key; empty if it has none.
    pub key: Vec<u8>,
    /// All keys of all its commands, the marker left out.
    pub keys: Vec<Vec<u8>>,
    /// `None`: no key, every node is told.
    pub slot: Option<Slot>,
    /// Key and value of the marker that it sets.
    pub marker: Option<(Vec<u8>, Vec<u8>)>,
    /// It may have been applied.
    pub unknown: bool,
    /// A single command that may have been applied at an earlier time: sent again after a restart or a lost connection.
    pub again: bool,
    /// Commands whose answers may say that the target lost a key.
    pub watched: Vec<WatchedCommand>,
}

/// A command of a unit whose answer may say that the target lost its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchedCommand {
    /// Its place in the unit: 0 for a single one, else behind the MULTI.
    pub place: u32,
    pub watched: Watched,
    /// `None`: its name is too long to be known.
    pub key: Option<Vec<u8>>,
}

/// A key that the target lacks, or may lack, by its name there.
pub type Missed = (Watched, Option<Vec<u8>>);

impl Unit {
    /// The keys that the target lacks, going by the answers; `None`: nobody has seen them, so any may be.
    pub fn missed(&self, answers: Option<&[Value]>) -> impl Iterator<Item = Missed> {
        let elements = answers.map(|values| match values.last() {
            Some(Value::Array(elements)) if self.replies > 1 => elements,
            _ => values,
        });
        let is_missed = move |of: &&WatchedCommand| {
            let at = if self.replies > 1 { of.place.checked_sub(1) } else { Some(0) };
            let value = elements.and_then(|values| values.get(at? as usize));
            elements.is_none() || value.is_some_and(|value| says(value, of.watched.lost_if))
        };
        self.watched.iter().filter(is_missed).map(|of| (of.watched, of.key.clone()))
    }
}

/// The answer, or a part of it, is this number.
fn says(value: &Value, number: i64) -> bool {
    match value {
        Value::Error(_) => number == NO_SUCH_KEY,
        Value::Integer(found) => *found == number,
        Value::Array(parts) => parts.iter().any(|part| matches!(part, Value::Integer(found) if *found == number)),
        _ => false,
    }
}

/// One command of a MULTI group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Upper case.
    pub name: Vec<u8>,
    /// It may have been applied by itself at an earlier time.
    pub again: bool,
}

/// The strings of one command and where it ends.
type Parsed<'a> = (Vec<&'a [u8]>, usize);

/// The units of a batch with the indices of their commands.
pub fn units_of(batch: &Batch, slab: &Slab) -> Result<Vec<(Range<u32>, Unit)>, EngineError> {
    let mut bytes = Vec::with_capacity(batch.bytes);
    batch.slices(slab).for_each(|slice| bytes.extend_from_slice(slice));
    let mut units = split(&bytes).ok_or_else(|| EngineError::Internal("a batch cannot be read again".into()))?;
    for (range, unit) in &mut units {
        unit.again = unit.inner.is_empty() && batch.is_in_doubt(range.start);
        for (command, inner) in (range.start + 1..).zip(&mut unit.inner) {
            inner.again = batch.is_in_doubt(command);
        }
        let watched = batch.watched.iter().filter(|watched| range.contains(&watched.command));
        unit.watched.extend(watched.map(|watched| WatchedCommand {
            place: watched.command - range.start,
            watched: *watched,
            key: key_of(batch, slab, watched.command),
        }));
    }
    Ok(units)
}

/// The units of encoded commands.
fn split(bytes: &[u8]) -> Option<Vec<(Range<u32>, Unit)>> {
    let mut units = Vec::new();
    let (mut at, mut index) = (0, 0u32);
    while at < bytes.len() {
        let (first_at, first_index) = (at, index);
        let (mut strings, mut end) = command(bytes, at)?;
        index += 1;
        let (mut marker, mut all) = (None, Vec::new());
        let mut keys;
        if strings.first() == Some(&&b"MULTI"[..]) {
            let (inner, mut next) = command(bytes, end)?;
            index += 1;
            strings = inner;
            keys = all_keys(&strings);
            all.extend(strings.first().map(|name| Inner { name: name.to_vec(), again: false }));
            loop {
                let (other, after) = command(bytes, next)?;
                index += 1;
                next = after;
                match other.as_slice() {
                    [b"EXEC"] => break,
                    [b"SET", key, value] => marker = Some((key.to_vec(), value.to_vec())),
                    _ => {}
                }
                keys.extend(all_keys(&other));
                all.extend(other.first().map(|name| Inner { name: name.to_vec(), again: false }));
            }
            if let Some((marker, _)) = &marker {
                keys.retain(|key| key != marker);
            }
            end = next;
        } else {
            keys = all_keys(&strings);
        }
        let name = strings.first()?.to_vec();
        let key = key_position(&name).and_then(|position| strings.get(position)).map(|key| key.to_vec());
        let unit = Unit {
            bytes: bytes.get(first_at..end)?.to_vec(),
            replies: index - first_index,
            slot: key.as_deref().map(slot),
            key: key.unwrap_or_default(),
            keys,
            name,
            inner: all,
            marker,
            unknown: false,
            again: false,
            watched: Vec::new(),
        };
        units.push((first_index..index, unit));
        at = end;
    }
    Some(units)
}

/// Every key that the command reads or writes.
fn all_keys(strings: &[&[u8]]) -> Vec<Vec<u8>> {
    let first = strings.first().and_then(|name| key_position(name)).and_then(|position| strings.get(position));
    let mut keys: Vec<Vec<u8>> = first.iter().map(|key| key.to_vec()).collect();
    if let [b"EVAL", _, count, given @ ..] = strings {
        let count = std::str::from_utf8(count).ok().and_then(|count| count.parse().ok()).unwrap_or(0);
        keys.extend(given.iter().take(count).skip(1).map(|key| key.to_vec()));
    }
    // Names that no journal has (RESTORE of ours ...) have the first one alone.
    keys.extend(keys_of(strings).map(<[u8]>::to_vec).filter(|key| first.is_none_or(|first| key != first)));
    keys
}

fn command(bytes: &[u8], at: usize) -> Option<Parsed<'_>> {
    let (count, mut at) = number(bytes, at, b'*')?;
    let mut strings = Vec::new();
    for _ in 0..count {
        let (len, from) = number(bytes, at, b'$')?;
        let end = from.checked_add(len)?;
        strings.push(bytes.get(from..end)?);
        at = end.checked_add(2).filter(|at| *at <= bytes.len())?;
    }
    Some((strings, at))
}

fn number(bytes: &[u8], at: usize, mark: u8) -> Option<(usize, usize)> {
    let rest = bytes.get(at..)?;
    let end = memchr::memchr(b'\r', rest)?;
    let text = rest.get(..end)?.strip_prefix(&[mark])?;
    Some((std::str::from_utf8(text).ok()?.parse().ok()?, at + end + 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::resp::push_command;

    #[test]
    fn what_pops_from_several_keys_lies_where_they_do() {
        let mut bytes = Vec::new();
        let commands: [&[&[u8]]; 7] = [
            &[b"MULTI"],
            &[b"LMPOP", b"1", b"k", b"LEFT"],
            &[b"SET", b"m", b"t:5"],
            &[b"EXEC"],
            &[b"ZMPOP", b"2", b"{t}a", b"{t}b", b"MIN"],
            &[b"EVAL", b"return", b"2", b"{t}a", b"{t}b", b"0", b"-1"],
            &[b"EVAL", b"return", b"1", b"k", b"l"],
        ];
        commands.iter().for_each(|args| push_command(&mut bytes, args));
        let units = split(&bytes).unwrap();
        let shown: Vec<_> = units.iter().map(|(_, unit)| (unit.slot, unit.keys.len())).collect();
        let (k, t) = (Some(slot(b"k")), Some(slot(b"{t}a")));
        assert_eq!(shown, [(k, 1), (t, 2), (t, 2), (k, 1)]);
    }

    #[test]
    fn groups_are_one_unit() {
        let mut bytes = Vec::new();
        let commands: [&[&[u8]]; 7] = [
            &[b"SET", b"a", b"1\r\n"],
            &[b"MULTI"],
            &[b"INCR", b"n"],
            &[b"SET", b"m", b"t:5"],
            &[b"EXEC"],
            &[b"SCRIPT", b"LOAD", b"return 1"],
            &[b"DEL", b"a", b"b"],
        ];
        commands.iter().for_each(|args| push_command(&mut bytes, args));
        let units = split(&bytes).unwrap();
        let shown: Vec<_> =
            units.iter().map(|(range, unit)| (range.clone(), unit.replies, unit.key.as_slice())).collect();
        assert_eq!(shown, [(0..1, 1, &b"a"[..]), (1..5, 4, b"n"), (5..6, 1, b""), (6..7, 1, b"a")]);
        assert_eq!(units[1].1.marker, Some((b"m".to_vec(), b"t:5".to_vec())));
        assert_eq!(units[1].1.keys, [b"n"]);
        assert_eq!((units[2].1.slot, units[0].1.slot), (None, Some(slot(b"a"))));
        assert_eq!(units[3].1.keys, [b"a", b"b"]);
        assert_eq!(units.iter().map(|(_, unit)| unit.bytes.as_slice()).collect::<Vec<_>>().concat(), bytes);
        for len in 1..bytes.len() {
            if !units
                .iter()
                .scan(0, |sum, (_, unit)| {
                    *sum += unit.bytes.len();
                    Some(*sum)
                })
                .any(|end| end == len)
            {
                assert!(split(&bytes[..len]).is_none(), "{len}");
            }
        }
    }
}
