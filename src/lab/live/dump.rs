//! Encodes the live source's values as Dragonfly 1.40 does: for the snapshot and for DUMP and RESTORE payloads.

use super::value::{Object, Stream, StreamId, Value};
use crate::lab::encode::packed::{Listpack, PACKED_NODE, PLAIN_NODE, intset};
use crate::lab::encode::{self, Attributes, member_expiry, packed, raw_string, string, types};

/// A hash or zset is one listpack up to this many bytes, with elements up to 64 bytes.
const LISTPACK_BYTES_MAX: usize = 1024;
const LISTPACK_ELEMENT_BYTES_MAX: usize = 64;
const NODE_BYTES_MAX: usize = 8 << 10;
const STREAM_NODE_ENTRIES: usize = 100;
const INTSET_ELEMENTS_MAX: usize = 512;

/// Footer version of Dragonfly's DUMP.
const FOOTER: u16 = 9;

/// Appends a whole snapshot record: attributes, type, key, value. SELECTDB is the caller's.
pub fn record(out: &mut Vec<u8>, key: &[u8], object: &Object, lzf: bool) {
    let (object_type, body) = encoded(&object.value, lzf);
    let attributes = Attributes { expire_at_ms: object.expire_at_ms, ..Attributes::default() };
    encode::key_head(out, attributes, object_type, key, lzf);
    out.extend_from_slice(&body);
}

/// What DUMP answers.
pub fn payload(value: &Value) -> Vec<u8> {
    let (object_type, body) = encoded(value, false);
    encode::dump_payload(object_type, &body, FOOTER)
}

fn encoded(value: &Value, lzf: bool) -> (u8, Vec<u8>) {
    let mut out = Vec::new();
    let object_type = match value {
        Value::String(text) => {
            string(&mut out, text, lzf);
            types::STRING
        }
        Value::Json(text) => {
            string(&mut out, text, lzf);
            types::JSON
        }
        Value::List(items) => {
            list(&mut out, items.iter(), lzf);
            types::LIST_NODES
        }
        Value::Set(members) => {
            let numbers = (members.len() <= INTSET_ELEMENTS_MAX)
                .then(|| members.iter().map(|m| encode::canonical_number(m)).collect::<Option<Vec<i64>>>());
            if let Some(mut numbers) = numbers.flatten().filter(|numbers| !numbers.is_empty()) {
                numbers.sort_unstable();
                string(&mut out, &intset(&numbers), lzf);
                return (types::SET_INTSET, out);
            }
            packed(&mut out, members.len() as u64);
            members.iter().for_each(|member| string(&mut out, member, lzf));
            types::SET
        }
        Value::Hash(fields) if fields.values().any(|field| field.expire_at_s.is_some()) => {
            packed(&mut out, fields.len() as u64);
            for (name, field) in fields {
                string(&mut out, name, lzf);
                string(&mut out, &field.value, lzf);
                member_expiry(&mut out, field.expire_at_s);
            }
            types::HASH_EXPIRY
        }
        Value::Hash(fields) if fits_listpack(fields.iter().flat_map(|(name, field)| [name, &field.value])) => {
            let mut listpack = Listpack::default();
            for (name, field) in fields {
                listpack.push(name);
                listpack.push(&field.value);
            }
            string(&mut out, &listpack.finish(), lzf);
            types::HASH_LISTPACK
        }
        Value::Hash(fields) => {
            packed(&mut out, fields.len() as u64);
            for (name, field) in fields {
                string(&mut out, name, lzf);
                string(&mut out, &field.value, lzf);
            }
            types::HASH
        }
        Value::Zset(scores) => {
            let mut sorted: Vec<(&Vec<u8>, f64)> = scores.iter().map(|(member, score)| (member, *score)).collect();
            sorted.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(b.0)));
            if fits_listpack(scores.keys()) {
                let mut listpack = Listpack::default();
                for (member, score) in sorted {
                    listpack.push(member);
                    listpack.push(format!("{score}").as_bytes());
                }
                string(&mut out, &listpack.finish(), lzf);
                return (types::ZSET_LISTPACK, out);
            }
            packed(&mut out, scores.len() as u64);
            for (member, score) in sorted {
                string(&mut out, member, lzf);
                encode::double(&mut out, score);
            }
            types::ZSET
        }
        Value::Stream(value) => {
            stream(&mut out, value, lzf);
            types::STREAM_V3
        }
    };
    (object_type, out)
}

/// Whether a hash or sorted set of these is one listpack.
fn fits_listpack<'a>(mut elements: impl Iterator<Item = &'a Vec<u8>>) -> bool {
    let mut bytes = 7;
    elements.all(|element| {
        bytes += element.len() + 11;
        element.len() <= LISTPACK_ELEMENT_BYTES_MAX && bytes <= LISTPACK_BYTES_MAX
    })
}

fn list<'a>(out: &mut Vec<u8>, items: impl Iterator<Item = &'a Vec<u8>>, lzf: bool) {
    let (mut nodes, mut nodes_count, mut open) = (Vec::new(), 0, Listpack::default());
    let close = |open: &mut Listpack, nodes: &mut Vec<u8>, count: &mut u64| {
        if open.count() > 0 {
            packed(nodes, PACKED_NODE);
            string(nodes, &std::mem::take(open).finish(), lzf);
            *count += 1;
        }
    };
    for item in items {
        if item.len() > NODE_BYTES_MAX {
            close(&mut open, &mut nodes, &mut nodes_count);
            packed(&mut nodes, PLAIN_NODE);
            string(&mut nodes, item, lzf);
            nodes_count += 1;
            continue;
        }
        if open.body_bytes() + item.len() > NODE_BYTES_MAX {
            close(&mut open, &mut nodes, &mut nodes_count);
        }
        open.push(item);
    }
    close(&mut open, &mut nodes, &mut nodes_count);
    packed(out, nodes_count);
    out.extend_from_slice(&nodes);
}

fn stream(out: &mut Vec<u8>, stream: &Stream, lzf: bool) {
    let entries: Vec<_> = stream.entries.iter().collect();
    packed(out, entries.len().div_ceil(STREAM_NODE_ENTRIES) as u64);
    for node in entries.chunks(STREAM_NODE_ENTRIES) {
        let (first, first_fields) = (*node[0].0, node[0].1);
        packed(out, 16);
        raw_id(out, first);
        let mut listpack = Listpack::default();
        for number in [node.len(), 0, first_fields.len()] {
            listpack.push_number(number as i64);
        }
        first_fields.iter().for_each(|(name, _)| listpack.push(name));
        listpack.push_number(0);
        for (id, fields) in node {
            let begun = listpack.count();
            let same = fields.iter().map(|(name, _)| name).eq(first_fields.iter().map(|(name, _)| name));
            listpack.push_number(i64::from(same) << 1);
            listpack.push_number((id.0 - first.0) as i64);
            listpack.push_number(id.1.wrapping_sub(first.1) as i64);
            if !same {
                listpack.push_number(fields.len() as i64);
            }
            for (name, value) in fields.iter() {
                if !same {
                    listpack.push(name);
                }
                listpack.push(value);
            }
            listpack.push_number((listpack.count() - begun) as i64);
        }
        string(out, &listpack.finish(), lzf);
    }
    let pair = |out: &mut Vec<u8>, id: StreamId| {
        packed(out, id.0);
        packed(out, id.1);
    };
    packed(out, stream.entries.len() as u64);
    pair(out, stream.last_id);
    pair(out, stream.first_id());
    pair(out, stream.max_deleted);
    packed(out, stream.entries_added);
    packed(out, stream.groups.len() as u64);
    for (name, group) in &stream.groups {
        raw_string(out, name);
        pair(out, group.last_id);
        packed(out, group.entries_read.unwrap_or(u64::MAX));
        packed(out, group.pending.len() as u64);
        for (id, pending) in &group.pending {
            raw_id(out, *id);
            out.extend_from_slice(&pending.delivered_at_ms.to_le_bytes());
            packed(out, pending.deliveries);
        }
        packed(out, group.consumers.len() as u64);
        for (consumer, seen_at_ms) in &group.consumers {
            raw_string(out, consumer);
            out.extend_from_slice(&seen_at_ms.to_le_bytes());
            out.extend_from_slice(&seen_at_ms.to_le_bytes());
            let own: Vec<StreamId> =
                group.pending.iter().filter(|(_, p)| p.consumer == *consumer).map(|(id, _)| *id).collect();
            packed(out, own.len() as u64);
            own.into_iter().for_each(|id| raw_id(out, id));
        }
    }
}

/// 16 raw bytes.
fn raw_id(out: &mut Vec<u8>, (ms, seq): StreamId) {
    out.extend_from_slice(&ms.to_be_bytes());
    out.extend_from_slice(&seq.to_be_bytes());
}
