//! RESTORE records: the payload is checked, its attributes are read, and its value is handed on as if the snapshot had sent it.
//!
//! A payload is one type byte, the value, a footer version (u16le) and a CRC-64 (u64le) over everything before it. It comes
//! from Dragonfly (RENAME, COPY over shards: its own types 16-18, 21, 30-37) or as a client typed it (any type that Dragonfly
//! loads). The meaning of type 20 depends on the footer: JSON of old Dragonflies below 10, else Redis' SET_LISTPACK (wire 3.1).

use super::error::{TranslateError, TranslateReason};
use super::record::{Record, is};
use super::write::Request;
use super::{JournalTranslator, Outcome};
use crate::convert::out::{Class, Out};
use crate::convert::policy::Kind;
use crate::convert::{Converter, Tally, TypeClass};
use crate::dragonfly::event::{Event, KeyMeta, ObjectType};
use crate::redis;
use crate::redis::payload::{Crc64, FOOTER_LEN};

/// Writes a whole value: the [`Converter`] of snapshot values, or a stand-in in tests.
pub trait RestorePayload {
    /// Writes `body`, a value exactly as it would stand in a snapshot after its key, so that it replaces the key. Begins
    /// with a command that removes or replaces the key. `body` lies in the record, so it may be borrowed by `out`. The
    /// expiry in `meta` is as the target is to be told it ([`JournalTranslator::set_near`]).
    fn restore<O: Out>(
        &mut self,
        meta: KeyMeta<'_>,
        body: &[u8],
        now_ms: i64,
        out: &mut O,
    ) -> Result<Restored, Box<dyn std::error::Error + Send + Sync>>;
}

/// What became of the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restored {
    Written {
        commands: u32,
    },
    /// Left out by policy, and listed by the implementor; `commands` remove what the target had under the key.
    LeftOut {
        kind: Kind,
        commands: u32,
    },
}

/// The value is counted and listed in the converter's tally, as if the snapshot had held it.
impl RestorePayload for Converter {
    fn restore<O: Out>(
        &mut self,
        meta: KeyMeta<'_>,
        body: &[u8],
        now_ms: i64,
        out: &mut O,
    ) -> Result<Restored, Box<dyn std::error::Error + Send + Sync>> {
        let class = TypeClass::of(meta.object_type);
        let skipped = |tally: &Tally| Kind::ALL.map(|kind| tally.skipped(kind));
        let (commands_before, skipped_before) = (self.tally().of(class).commands, skipped(self.tally()));
        self.event(&Event::Whole { meta, body }, now_ms, out)?;
        let commands = self.tally().of(class).commands.saturating_sub(commands_before);
        let commands = u32::try_from(commands).unwrap_or(u32::MAX);
        let skipped_after = skipped(self.tally());
        let left_out = Kind::ALL.into_iter().zip(skipped_before).zip(skipped_after).find(|((_, was), is)| is > was);
        Ok(match left_out {
            Some(((kind, _), _)) => Restored::LeftOut { kind, commands },
            None => Restored::Written { commands },
        })
    }
}

/// Type numbers that a master never writes in a snapshot.
const TYPE_ZSET_TEXT_SCORES: u8 = 3;
const TYPE_MODULE: u8 = 7;
const TYPE_20: u8 = 20;

/// A payload taken apart.
struct Payload<'r> {
    type_byte: u8,
    body: &'r [u8],
    footer_version: u16,
}

impl JournalTranslator {
    /// `RESTORE k ttl payload [REPLACE] [ABSTTL] [IDLETIME s] [FREQ n] [STICK]`: it succeeded, so it replaces.
    pub(super) fn restore<O: Out, P: RestorePayload>(
        &mut self,
        record: &Record<'_>,
        payloads: &mut P,
        out: &mut O,
    ) -> Result<Outcome, TranslateError> {
        let (mut absolute, mut sticky) = (false, false);
        let mut position = 4;
        while let Some(option) = record.args.get(position) {
            if is(option, "IDLETIME") || is(option, "FREQ") {
                position += 1;
                record.int(position)?;
            } else if is(option, "ABSTTL") {
                absolute = true;
            } else if is(option, "STICK") {
                sticky = true;
            } else if !is(option, "REPLACE") {
                return Err(record.unknown_option(position));
            }
            position += 1;
        }
        let at_ms = match record.int(2)? {
            0 => None,
            _ if absolute => Some(record.absolute_ms(2, 1)?),
            _ => Some(record.relative_ms(2, 1)?),
        };
        let payload = parse(record.arg(3)?).map_err(|what| record.error(TranslateReason::BadPayload { what }))?;
        let (object_type, body) = match payload.type_byte {
            TYPE_ZSET_TEXT_SCORES => return self.write_restore(record, at_ms, &payload, out),
            TYPE_20 if payload.footer_version >= 10 => {
                if !self.capabilities.restores(redis::reencode::rdb_type::STREAM_V3) {
                    // Both types are of Redis 7.2.
                    return self.leave_out(record, Kind::Command, "a payload of Redis 7.2 (a set as listpack)");
                }
                return self.write_restore(record, at_ms, &payload, out);
            }
            TYPE_MODULE => (
                ObjectType::Json,
                rejson_text(payload.body).map_err(|what| record.error(TranslateReason::BadPayload { what }))?,
            ),
            byte => {
                let what = "a value type that no Dragonfly loads";
                let unknown = || record.error(TranslateReason::BadPayload { what });
                (object_type(byte).ok_or_else(unknown)?, payload.body)
            }
        };
        let meta = KeyMeta {
            db: record.db,
            key: record.key()?,
            expire_at_ms: at_ms.map(|at_ms| self.expiry_ms(at_ms)),
            sticky,
            memcached_flags: None,
            object_type,
        };
        let failed = |cause: Box<dyn std::error::Error + Send + Sync>| {
            record.error(TranslateReason::Payload { cause: cause.to_string().into() })
        };
        match payloads.restore(meta, body, record.now_ms, out).map_err(failed)? {
            Restored::Written { commands } => Ok(Outcome::Written { commands }),
            Restored::LeftOut { kind, commands } => Ok(Outcome::LeftOut { kind, commands }),
        }
    }

    /// The value as it is, with a footer that the target accepts.
    fn write_restore<O: Out>(
        &mut self,
        record: &Record<'_>,
        at_ms: Option<i64>,
        payload: &Payload<'_>,
        out: &mut O,
    ) -> Result<Outcome, TranslateError> {
        let given = record.arg(3)?;
        let value = given.get(..given.len().saturating_sub(FOOTER_LEN)).unwrap_or_default();
        debug_assert_eq!(value.len(), payload.body.len() + 1);
        let footer = redis::payload::footer(&[value]);
        let key = record.key()?;
        let mut request = Request::open(out, self.meta(record, key, Class::Blind), 6, "RESTORE");
        request.text(key);
        request.number(at_ms.map_or(0, |at_ms| self.expiry_ms(at_ms)));
        request.text_and_tail(value, &footer);
        request.word("REPLACE");
        request.word("ABSTTL");
        request.close();
        Ok(Outcome::Written { commands: 1 })
    }
}

/// The type of the value in a RESTORE payload, as far as its first byte and its footer tell; `None`: no type that is known.
pub fn payload_class(payload: &[u8]) -> Option<TypeClass> {
    let payload = parse(payload).ok()?;
    match payload.type_byte {
        TYPE_ZSET_TEXT_SCORES => Some(TypeClass::Zset),
        TYPE_20 if payload.footer_version >= 10 => Some(TypeClass::Set),
        TYPE_MODULE => Some(TypeClass::Json),
        byte => object_type(byte).map(TypeClass::of),
    }
}

fn parse(payload: &[u8]) -> Result<Payload<'_>, &'static str> {
    let too_short = "shorter than a type byte and a footer";
    let (value, footer) =
        payload.len().checked_sub(FOOTER_LEN).and_then(|at| payload.split_at_checked(at)).ok_or(too_short)?;
    let (type_byte, body) = value.split_first().ok_or(too_short)?;
    let (version, crc) = footer.split_first_chunk::<2>().ok_or(too_short)?;
    let crc = crc.first_chunk::<8>().ok_or(too_short)?;
    let mut computed = Crc64::new();
    computed.update(value);
    computed.update(version);
    if computed.value() != u64::from_le_bytes(*crc) {
        return Err("its CRC-64 is wrong");
    }
    Ok(Payload { type_byte: *type_byte, body, footer_version: u16::from_le_bytes(*version) })
}

fn object_type(byte: u8) -> Option<ObjectType> {
    use ObjectType::*;
    let types = [
        String,
        Set,
        Hash,
        Zset,
        SetIntset,
        ZsetZiplist,
        HashZiplist,
        ListZiplists,
        StreamV1,
        HashListpack,
        ZsetListpack,
        ListNodes,
        StreamV2,
        JsonOld,
        StreamV3,
        Json,
        HashExpiry,
        SetExpiry,
        Bloom,
        BloomPieces,
        CountMinSketch,
        TopK,
        Cuckoo,
    ];
    types.into_iter().find(|of| *of as u8 == byte)
}

/// The string inside a module value of `ReJSON-RL` version 3: `81` + id, opcode 5, the string, opcode 0.
fn rejson_text(body: &[u8]) -> Result<&[u8], &'static str> {
    const STRING_OPCODE: u8 = 5;
    const END_OPCODE: u8 = 0;
    let foreign = "a module value other than ReJSON-RL version 3";
    let (mark, rest) = body.split_first().ok_or(foreign)?;
    let (id, rest) = rest.split_first_chunk::<8>().ok_or(foreign)?;
    if *mark != 0x81 || u64::from_be_bytes(*id) != module_id(b"ReJSON-RL", 3) {
        return Err(foreign);
    }
    match rest {
        [STRING_OPCODE, text @ .., END_OPCODE] if !text.is_empty() => Ok(text),
        _ => Err("a ReJSON-RL value that is not one string"),
    }
}

/// Nine characters of six bits each, then ten bits of encoding version.
pub(super) const fn module_id(name: &[u8; 9], version: u64) -> u64 {
    const CHARACTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut id = 0;
    let mut at = 0;
    while at < name.len() {
        let mut code = 0;
        while CHARACTERS[code] != name[at] {
            code += 1;
        }
        id = id << 6 | code as u64;
        at += 1;
    }
    id << 10 | version
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_payloads_are_refused() {
        let good = [0, 3, 0x62, 0x61, 0x72, 9, 0, 0x36, 0x4c, 0x18, 0xac, 0xba, 0xe0, 0x9e, 0xa6];
        assert_eq!(parse(&good).unwrap().body, b"\x03bar");
        for cut in 0..good.len() {
            assert!(parse(&good[..cut]).is_err());
        }
        for at in 0..good.len() {
            let mut bad = good;
            bad[at] ^= 1;
            assert!(parse(&bad).is_err());
        }
    }
}
