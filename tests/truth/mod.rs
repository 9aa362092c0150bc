//! Compares decoded keys with the rows of a recording's `truth.jsonl` (made by `truth.py` from ordinary commands).

mod sha256;

use crate::walk::{Key, Value, is_filter};
use df2redis::dragonfly::ObjectType;
use df2redis::dragonfly::value::{StreamId, StreamTail};
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};

type Name = (u32, Vec<u8>);

/// What differs, as text. Keys must be the same on both sides.
pub fn compare<'a>(rows: &[Json], keys: impl Iterator<Item = (&'a Name, &'a Key)>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut keys: BTreeMap<&Name, &Key> = keys.collect();
    for row in rows {
        let name = (row["db"].as_u64().unwrap() as u32, bytes(&row["key"]));
        let show = format!("db {} {}", name.0, String::from_utf8_lossy(&name.1));
        match keys.remove(&name) {
            None => wrong.push(format!("lost: {show}")),
            Some(key) => wrong.extend(differs(row, key).map(|why| format!("{show}: {why}"))),
        }
    }
    wrong.extend(keys.keys().map(|(db, key)| format!("not at the source: db {db} {}", String::from_utf8_lossy(key))));
    wrong
}

fn differs(row: &Json, key: &Key) -> Option<String> {
    let expire_at_ms = row["expire_at_ms"].as_i64().unwrap();
    if (key.expire_at_ms.unwrap_or(-1) - expire_at_ms).abs() > 2 {
        return Some(format!("expiry {:?}, not {expire_at_ms}", key.expire_at_ms));
    }
    let object_type = row["type"].as_str().unwrap();
    if kind(key.object_type) != object_type {
        return Some(format!("{:?} is no {object_type}", key.object_type));
    }
    if row.get("opaque").is_some() {
        return (!is_filter(key.object_type)).then(|| "no filter".into());
    }
    if row.get("hll_count").is_some() {
        return (!key.value.bytes.starts_with(b"HYLL")).then(|| "no HyperLogLog".into());
    }
    if let Some(json) = row.get("json") {
        let found: Json = serde_json::from_slice(&key.value.bytes).unwrap_or_default();
        return (found != *json).then(|| format!("JSON {found}, not {json}"));
    }
    let parts = canonical(object_type, &key.value);
    if let Some(values) = row["value"].as_array() {
        let expected: Vec<_> = values.iter().map(bytes).collect();
        if expected != parts {
            return Some(format!("{} parts differ", parts.len()));
        }
    } else {
        let total: usize = parts.iter().map(Vec::len).sum();
        let hashed: Vec<u8> =
            parts.iter().flat_map(|part| [&(part.len() as u64).to_le_bytes()[..], part].concat()).collect();
        let found = (parts.len() as u64, total as u64, sha256::hex(&hashed));
        let expected = (
            row["items"].as_u64().unwrap(),
            row["bytes"].as_u64().unwrap(),
            row["sha256"].as_str().unwrap().to_owned(),
        );
        if found != expected {
            return Some(format!("{found:?}, not {expected:?}"));
        }
    }
    for timed in ["fields_with_ttl", "members_with_ttl"] {
        match row.get(timed) {
            Some(Json::Array(names)) => {
                let expected: BTreeSet<_> = names.iter().map(bytes).collect();
                if expected != key.value.timed.iter().cloned().collect() {
                    return Some(format!("{timed} differ"));
                }
            }
            Some(count) if count.as_u64() != Some(key.value.timed.len() as u64) => {
                return Some(format!("{timed}: {}, not {count}", key.value.timed.len()));
            }
            _ => {}
        }
    }
    key.value.tail.as_ref().filter(|_| object_type == "stream").and_then(|tail| tail_differs(row, tail))
}

fn tail_differs(row: &Json, tail: &StreamTail) -> Option<String> {
    let id = |id: StreamId| format!("{}-{}", id.ms, id.seq);
    let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
    if row["last_id"].as_str() != Some(&id(tail.last_id)) {
        return Some(format!("last id {}", id(tail.last_id)));
    }
    let found: BTreeMap<String, _> = tail
        .groups
        .iter()
        .map(|group| {
            let owner = |pending: StreamId| {
                group.consumers.iter().find(|consumer| consumer.pending.contains(&pending)).map(|c| text(&c.name))
            };
            let pending: BTreeSet<_> =
                group.pending.iter().map(|p| (id(p.id), owner(p.id).unwrap_or_default(), p.delivery_count)).collect();
            let consumers: BTreeSet<_> = group.consumers.iter().map(|consumer| text(&consumer.name)).collect();
            (text(&group.name), (id(group.last_id), pending, consumers))
        })
        .collect();
    let string = |json: &Json| json.as_str().unwrap().to_owned();
    let expected: BTreeMap<String, _> = row["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| {
            let pending: BTreeSet<_> = group["pending"]
                .as_array()
                .unwrap()
                .iter()
                .map(|entry| (string(&entry[0]), string(&entry[1]), entry[2].as_u64().unwrap()))
                .collect();
            let consumers: BTreeSet<_> = group["consumers"].as_array().unwrap().iter().map(string).collect();
            (string(&group["name"]), (string(&group["last"]), pending, consumers))
        })
        .collect();
    (found != expected).then(|| format!("groups {found:?}, not {expected:?}"))
}

/// The order in which `truth.py` writes a value.
fn canonical(object_type: &str, value: &Value) -> Vec<Vec<u8>> {
    let mut parts = value.parts.clone();
    match object_type {
        "string" => return vec![value.bytes.clone()],
        "set" => parts.sort(),
        "hash" => {
            let mut pairs: Vec<_> = parts.chunks(2).map(<[_]>::to_vec).collect();
            pairs.sort();
            return pairs.concat();
        }
        "zset" => {
            for pair in parts.chunks_mut(2) {
                let score = f64::from_bits(u64::from_be_bytes(pair[1][..].try_into().unwrap()));
                pair[1] = python_repr(if score == 0.0 { 0.0 } else { score }).into_bytes();
            }
            let mut pairs: Vec<_> = parts.chunks(2).map(<[_]>::to_vec).collect();
            pairs.sort();
            return pairs.concat();
        }
        _ => {}
    }
    parts
}

/// A float as Python prints it.
fn python_repr(value: f64) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap();
    let exponent: i32 = exponent.parse().unwrap();
    match exponent {
        -4..=15 => {
            let plain = format!("{value}");
            if plain.contains('.') { plain } else { format!("{plain}.0") }
        }
        _ => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    }
}

fn kind(object_type: ObjectType) -> &'static str {
    match object_type.byte() {
        0 => "string",
        2 | 11 | 32 => "set",
        4 | 13 | 16 | 31 => "hash",
        5 | 12 | 17 => "zset",
        14 | 18 => "list",
        15 | 19 | 21 => "stream",
        20 | 30 => "json",
        33 | 34 => "MBbloom--",
        35 => "CMSk-TYPE",
        36 => "TopK-TYPE",
        _ => "MBbloomCF",
    }
}

/// A byte string of `truth.jsonl`: itself, or `{"b64": ...}`.
fn bytes(json: &Json) -> Vec<u8> {
    match json {
        Json::String(text) => text.clone().into_bytes(),
        _ => base64(json["b64"].as_str().expect("a string or base64")),
    }
}

fn base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = Vec::new();
    let (mut bits, mut held) = (0u32, 0);
    for byte in text.bytes().filter(|byte| *byte != b'=') {
        bits = bits << 6 | ALPHABET.iter().position(|a| *a == byte).expect("base64") as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    out
}
