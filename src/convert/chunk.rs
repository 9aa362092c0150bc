//! Collections as commands of bounded size: RPUSH, SADD, HSET, ZADD, after a DEL and before the expiry.
//!
//! Elements are gathered, already encoded, until a command is full (`Limits::command_elements_max`,
//! `command_bytes_max`). An element that is long by itself gets its own command and is not copied. Expiries of hash
//! fields follow each HSET as HPEXPIREAT, grouped by time.
//!
//! Expired fields and members are left out here; whether an expiry may be dropped is the policy's business and decided
//! per element, so that `refuse` names the first such key.

use super::emit::{Command, Key};
use super::near::Near;
use super::out::{Class, Out};
use super::plan::Plan;
use super::policy::{Action, Kind};
use super::tally::{Tally, What};
use super::{ConvertError, converter};
use crate::dragonfly::value::Element;
use crate::dragonfly::{DecodeError, ObjectType, Text};
use crate::ids::FlowId;
use crate::redis::resp;
use std::ops::Range;

/// From this length on an element is written where it lies instead of being gathered.
const LONG_ELEMENT_BYTES: usize = 16 * 1024;

/// Buffers reused from chunk to chunk.
#[derive(Default)]
pub(super) struct ChunkBuffers {
    args: Vec<u8>,
    /// Encoded names of fields that expire.
    fields: Vec<u8>,
    /// When, and where in `fields`.
    expiries: Vec<(i64, Range<usize>)>,
    number: Vec<u8>,
    pub unpacked: Vec<u8>,
    /// Fields whose expiry was shifted.
    pub shifted: u64,
}

/// What is the same for all elements of a run.
#[derive(Clone, Copy)]
pub(super) struct ChunkScope<'a> {
    pub flow: FlowId,
    pub plan: &'a Plan,
    pub key: Key<'a>,
    pub object_type: ObjectType,
    /// Body of the event: elements that lie in it may be referenced.
    pub event: &'a [u8],
    pub now_ms: i64,
    /// Which expiries of fields are written later than they are.
    pub near: Near,
}

/// Writes elements as commands. Call `finish` at the end.
pub(super) struct Chunker<'c, 'a, O: Out> {
    scope: ChunkScope<'a>,
    out: &'c mut O,
    buffers: &'c mut ChunkBuffers,
    tally: &'c mut Tally,
    verb: Verb,
    args_count: usize,
    elements: usize,
    pub written: u64,
    /// Expiries that the target cannot hold and the policy drops.
    pub expiries_dropped: u64,
}

#[derive(Clone, Copy)]
struct Verb {
    head: &'static [u8],
    class: Class,
}

impl Verb {
    fn of(object_type: ObjectType) -> Self {
        use super::TypeClass;
        match TypeClass::of(object_type) {
            TypeClass::Hash => Self { head: b"$4\r\nHSET\r\n", class: Class::Blind },
            TypeClass::Set => Self { head: b"$4\r\nSADD\r\n", class: Class::Blind },
            TypeClass::Zset => Self { head: b"$4\r\nZADD\r\n", class: Class::Blind },
            _ => Self { head: b"$5\r\nRPUSH\r\n", class: Class::Guarded },
        }
    }
}

impl<'c, 'a, O: Out> Chunker<'c, 'a, O> {
    pub fn new(scope: ChunkScope<'a>, out: &'c mut O, buffers: &'c mut ChunkBuffers, tally: &'c mut Tally) -> Self {
        buffers.args.clear();
        buffers.fields.clear();
        buffers.expiries.clear();
        let verb = Verb::of(scope.object_type);
        Self { scope, out, buffers, tally, verb, args_count: 0, elements: 0, written: 0, expiries_dropped: 0 }
    }

    /// Takes one element.
    pub fn element(&mut self, element: Element<'_>) -> Result<(), ConvertError> {
        match element {
            Element::Item(item) => self.parts(&[item], None),
            Element::Member { member, expire_at_ms } => match self.expiry(expire_at_ms, Kind::MemberExpiry)? {
                Expiry::Past => Ok(()),
                Expiry::None | Expiry::At(_) => self.parts(&[member], None),
            },
            Element::Field { field, value, expire_at_ms } => match self.expiry(expire_at_ms, Kind::FieldExpiry)? {
                Expiry::Past => Ok(()),
                Expiry::None => self.parts(&[field, value], None),
                Expiry::At(ms) => self.parts(&[field, value], Some(ms)),
            },
            Element::Scored { member, score } => {
                let mut number = std::mem::take(&mut self.buffers.number);
                number.clear();
                let scored = match push_score(&mut number, score) {
                    true => self.parts(&[Text::Raw(&number), member], None),
                    false => Err(ConvertError::BadScore {
                        flow: self.scope.flow,
                        db: self.scope.key.db,
                        key: self.scope.key.for_message(),
                    }),
                };
                self.buffers.number = number;
                scored
            }
        }
    }

    /// Writes what is still gathered.
    pub fn finish(&mut self) -> Result<(), ConvertError> {
        self.flush();
        Ok(())
    }

    fn expiry(&mut self, expire_at_ms: Option<i64>, kind: Kind) -> Result<Expiry, ConvertError> {
        match expire_at_ms {
            None => Ok(Expiry::None),
            Some(ms) if kind == Kind::FieldExpiry && self.scope.plan.capabilities.field_expiry => {
                let ChunkScope { near, now_ms, .. } = self.scope;
                if near.is_past(ms, now_ms) {
                    return Ok(Expiry::Past);
                }
                self.buffers.shifted += u64::from(near.shifts(ms));
                Ok(Expiry::At(near.told(ms)))
            }
            Some(ms) if ms <= self.scope.now_ms => Ok(Expiry::Past),
            Some(_) => {
                if self.scope.plan.action(kind) == Action::Refuse {
                    return Err(converter::unsupported(self.scope.flow, &self.scope.key, kind, self.scope.plan));
                }
                self.expiries_dropped += 1;
                Ok(Expiry::None)
            }
        }
    }

    fn parts(&mut self, parts: &[Text<'_>], field_expires_at_ms: Option<i64>) -> Result<(), ConvertError> {
        let bytes_len = parts.iter().map(Text::plain_len).fold(0, usize::saturating_add);
        if bytes_len as u64 > self.scope.plan.capabilities.bulk_bytes_max && !self.fits(parts)? {
            return Ok(());
        }
        let limits = &self.scope.plan.limits;
        let is_long = bytes_len >= LONG_ELEMENT_BYTES;
        if is_long
            || self.elements >= limits.command_elements_max
            || self.buffers.args.len().saturating_add(bytes_len) > limits.command_bytes_max
        {
            self.flush();
        }
        if let (Some(ms), Some(field)) = (field_expires_at_ms, parts.first()) {
            let start = self.buffers.fields.len();
            push_text(&mut self.buffers.fields, *field)?;
            self.buffers.expiries.push((ms, start..self.buffers.fields.len()));
        }
        self.written += 1;
        if is_long {
            self.long_element(parts)?;
            self.flush_expiries();
            return Ok(());
        }
        for part in parts {
            push_text(&mut self.buffers.args, *part)?;
        }
        self.args_count += parts.len();
        self.elements += 1;
        Ok(())
    }

    /// Whether no part is too long for the target; if one is, by policy an error or an element left out.
    fn fits(&mut self, parts: &[Text<'_>]) -> Result<bool, ConvertError> {
        let ChunkScope { flow, plan, key, .. } = self.scope;
        if parts.iter().all(|part| part.plain_len() as u64 <= plan.capabilities.bulk_bytes_max) {
            return Ok(true);
        }
        match plan.action(Kind::LargeString) {
            Action::Refuse => Err(converter::unsupported(flow, &key, Kind::LargeString, plan)),
            action => {
                self.tally.list_not_carried(key.db, key.bytes, What::Kind(Kind::LargeString), action, 1);
                Ok(false)
            }
        }
    }

    fn long_element(&mut self, parts: &[Text<'_>]) -> Result<(), DecodeError> {
        // A part that does not unpack is found before the command begins.
        let unpacks = parts.iter().any(|part| matches!(part, Text::Lzf { .. }));
        let ChunkScope { key, event, .. } = self.scope;
        if unpacks {
            let mut args = Vec::new();
            for part in parts {
                push_text(&mut args, *part)?;
            }
            begin(self.out, self.verb, &key, parts.len()).own(&mut args).end();
            return Ok(());
        }
        let mut command = begin(self.out, self.verb, &key, parts.len());
        for part in parts {
            command.text(*part, event, &mut self.buffers.unpacked)?;
        }
        command.end();
        Ok(())
    }

    fn flush(&mut self) {
        if self.elements > 0 {
            begin(self.out, self.verb, &self.scope.key, self.args_count).raw(&self.buffers.args).end();
            self.buffers.args.clear();
            self.elements = 0;
            self.args_count = 0;
        }
        self.flush_expiries();
    }

    /// `HPEXPIREAT key ms FIELDS n field ...` for each time.
    fn flush_expiries(&mut self) {
        let ChunkBuffers { fields, expiries, .. } = &mut *self.buffers;
        expiries.sort_by_key(|(ms, _)| *ms);
        for group in expiries.chunk_by(|(left, _), (right, _)| left == right) {
            let Some((ms, _)) = group.first() else { continue };
            let key = &self.scope.key;
            let head = b"$10\r\nHPEXPIREAT\r\n";
            let mut command = Command::begin(self.out, key.meta(Class::Blind), 5 + group.len(), head);
            command.bulk(key.bytes).integer(*ms).raw(b"$6\r\nFIELDS\r\n").unsigned(group.len() as u64);
            for (_, place) in group {
                command.raw(fields.get(place.clone()).unwrap_or_default());
            }
            command.end();
        }
        expiries.clear();
        fields.clear();
    }
}

enum Expiry {
    None,
    Past,
    At(i64),
}

fn begin<'o, O: Out>(out: &'o mut O, verb: Verb, key: &Key<'_>, args_count: usize) -> Command<'o, O> {
    let mut command = Command::begin(out, key.meta(verb.class), 2 + args_count, verb.head);
    command.bulk(key.bytes);
    command
}

/// Appends a text as a bulk string.
pub(super) fn push_text(out: &mut Vec<u8>, text: Text<'_>) -> Result<(), DecodeError> {
    match text {
        Text::Raw(bytes) => resp::push_bulk(out, bytes),
        Text::Int(number) => resp::push_bulk_integer(out, number),
        Text::Lzf { plain_len, .. } => {
            resp::push_bulk_head(out, plain_len);
            text.append_to(out)?;
            out.extend_from_slice(b"\r\n");
        }
    }
    Ok(())
}

/// Appends the shortest text that reads back as exactly this score; false for NaN.
fn push_score(out: &mut Vec<u8>, score: f64) -> bool {
    /// Below 2^53 whole numbers are exact, and shorter without a fraction.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    if score.is_nan() {
        return false;
    }
    if score.is_infinite() {
        out.extend_from_slice(if score > 0.0 { b"inf" } else { b"-inf" });
    } else if score.trunc() == score && score.abs() < EXACT_MAX && !(score == 0.0 && score.is_sign_negative()) {
        out.extend_from_slice(itoa::Buffer::new().format(score as i64).as_bytes());
    } else {
        out.extend_from_slice(ryu::Buffer::new().format_finite(score).as_bytes());
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(score: f64) -> String {
        let mut out = Vec::new();
        assert!(push_score(&mut out, score));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn scores_are_short() {
        let texts: Vec<String> =
            [0.0, -0.0, 1.0, -17.0, 0.1, 1e16, 1e300, f64::INFINITY, f64::NEG_INFINITY, 9007199254740992.0, 5e-324]
                .map(text)
                .to_vec();
        assert_eq!(texts.join(" "), "0 -0.0 1 -17 0.1 1e16 1e300 inf -inf 9007199254740992.0 5e-324");
        assert!(!push_score(&mut Vec::new(), f64::NAN));
    }

    proptest! {
        #[test]
        fn scores_read_back_exactly(bits in any::<u64>()) {
            let score = f64::from_bits(bits);
            prop_assume!(!score.is_nan());
            prop_assert_eq!(text(score).parse::<f64>().unwrap().to_bits(), bits);
        }
    }
}
