//! Types 31 and 32: hashes whose fields, and sets whose members, have expiries of their own.
//!
//! What has expired is left out; if nothing remains the key is absent. What remains without any expiry is a plain hash
//! or set. Hash fields keep their expiries where the target has them (payload type 24 or 22, or HSET and HPEXPIREAT);
//! members can keep theirs nowhere. Whatever cannot be kept follows the policy.

use super::ConvertError;
use super::chunk::{ChunkBuffers, ChunkScope};
use super::collection::{Sent, by_commands, restore_made};
use super::converter;
use super::emit::delete;
use super::out::Out;
use super::policy::{Action, Kind};
use super::tally::Tally;
use crate::dragonfly::value::{Element, Scratch, for_each_element};
use crate::dragonfly::{ObjectType, Text};
use crate::redis::reencode::{self, rdb_type};

/// What is left of a value at `now_ms`.
#[derive(Default)]
struct Remains {
    elements: u64,
    with_expiry: u64,
    expire_at_ms_min: i64,
    shifted: u64,
}

/// A whole value of type 31 or 32. `expire_at_ms` is the key's.
pub(super) fn whole(
    scope: ChunkScope<'_>,
    expire_at_ms: Option<i64>,
    out: &mut impl Out,
    scratch: &mut Scratch,
    buffers: &mut ChunkBuffers,
    tally: &mut Tally,
    payload: &mut Vec<u8>,
) -> Result<Sent, ConvertError> {
    let ChunkScope { plan, key, object_type, event: body, .. } = scope;
    let remains = remains(scope, scratch)?;
    if remains.elements == 0 {
        delete(out, &key);
        return Ok(Sent::Empty);
    }
    let is_hash = object_type == ObjectType::HashExpiry;
    let keeps_expiries = remains.with_expiry > 0 && is_hash && plan.capabilities.field_expiry;
    if remains.with_expiry > 0 && !keeps_expiries {
        let kind = if is_hash { Kind::FieldExpiry } else { Kind::MemberExpiry };
        if plan.action(kind) == Action::Refuse {
            return Err(converter::unsupported(scope.flow, &key, kind, plan));
        }
    }
    let payload_type = match (is_hash, keeps_expiries) {
        (true, true) => plan.capabilities.hash_expiry_type(),
        (true, false) => Some(rdb_type::HASH),
        (false, _) => Some(rdb_type::SET),
    };
    // A rebuilt value takes at most eight bytes an element more than it came in.
    let payload_len_max = (remains.elements as usize).saturating_mul(8).saturating_add(body.len()).saturating_add(17);
    match payload_type {
        Some(payload_type) if payload_len_max <= plan.limits.restore_bytes_max => {
            payload.clear();
            build(scope, &remains, payload_type, scratch, payload)?;
            restore_made(out, &key, payload_type, payload, expire_at_ms);
            if keeps_expiries {
                buffers.shifted += remains.shifted;
            } else {
                converter::expiries_dropped(tally, &key, object_type, remains.with_expiry);
            }
            Ok(Sent::Restored { elements: remains.elements })
        }
        _ => by_commands(scope, expire_at_ms, out, scratch, buffers, tally),
    }
}

/// Whether an element is left out. Only expiries that the target can hold can be put off.
fn is_past(scope: ChunkScope<'_>, at_ms: i64) -> bool {
    let held = scope.object_type == ObjectType::HashExpiry && scope.plan.capabilities.field_expiry;
    if held { scope.near.is_past(at_ms, scope.now_ms) } else { at_ms <= scope.now_ms }
}

fn remains(scope: ChunkScope<'_>, scratch: &mut Scratch) -> Result<Remains, ConvertError> {
    let mut remains = Remains { expire_at_ms_min: i64::MAX, ..Remains::default() };
    for_each_element(scope.object_type, true, scope.event, scratch, |element| {
        let (Element::Member { expire_at_ms, .. } | Element::Field { expire_at_ms, .. }) = element else {
            return Ok(());
        };
        match expire_at_ms {
            Some(ms) if is_past(scope, ms) => {}
            Some(ms) => {
                remains.elements += 1;
                remains.with_expiry += 1;
                remains.expire_at_ms_min = remains.expire_at_ms_min.min(scope.near.told(ms));
                remains.shifted += u64::from(scope.near.shifts(ms));
            }
            None => remains.elements += 1,
        }
        Ok::<(), ConvertError>(())
    })?;
    Ok(remains)
}

/// The value as a payload of another type (wire 3.8).
fn build(
    scope: ChunkScope<'_>,
    remains: &Remains,
    payload_type: u8,
    scratch: &mut Scratch,
    payload: &mut Vec<u8>,
) -> Result<(), ConvertError> {
    if payload_type == rdb_type::HASH_EXPIRY_REDIS {
        payload.extend_from_slice(&remains.expire_at_ms_min.to_le_bytes());
    }
    reencode::push_len(payload, remains.elements);
    for_each_element(scope.object_type, true, scope.event, scratch, |element| {
        match element {
            Element::Member { expire_at_ms: Some(ms), .. } | Element::Field { expire_at_ms: Some(ms), .. }
                if is_past(scope, ms) => {}
            Element::Member { member, .. } => push_string(payload, member),
            Element::Field { field, value, expire_at_ms } => {
                let expire_at_ms = expire_at_ms.map(|ms| scope.near.told(ms));
                if payload_type == rdb_type::HASH_EXPIRY_REDIS {
                    // 0 stands for no expiry, so the earliest one is 1.
                    let since_min =
                        expire_at_ms.map_or(0, |ms| ms.saturating_sub(remains.expire_at_ms_min).saturating_add(1));
                    reencode::push_len(payload, since_min.unsigned_abs());
                }
                push_string(payload, field);
                push_string(payload, value);
                if payload_type == rdb_type::HASH_EXPIRY_VALKEY {
                    payload.extend_from_slice(&expire_at_ms.unwrap_or(-1).to_le_bytes());
                }
            }
            Element::Item(_) | Element::Scored { .. } => {}
        }
        Ok::<(), ConvertError>(())
    })?;
    Ok(())
}

/// A text as an RDB string, in the form it came in.
fn push_string(payload: &mut Vec<u8>, text: Text<'_>) {
    match text {
        Text::Raw(bytes) => reencode::push_raw_string(payload, bytes),
        Text::Int(number) => reencode::push_integer_string(payload, number),
        Text::Lzf { packed, plain_len } => reencode::push_lzf_string(payload, packed, plain_len),
    }
}
