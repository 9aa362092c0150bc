//! Writes the value of one [`Entry`] piece by piece, cut only where a master may cut it (wire 2.6).

use super::entry::Entry;
use super::spec::{Kind, Release};
use crate::lab::encode::packed::{Listpack, PACKED_NODE, PLAIN_NODE, Ziplist, intset};
use crate::lab::encode::{self, member_expiry, packed, raw_string, string, types};

/// A hash or zset is one listpack up to this many bytes (`listpack_max_bytes`), with elements up to 64 bytes.
const LISTPACK_BYTES_MAX: u64 = 1024;
const LISTPACK_ELEMENT_BYTES_MAX: u64 = 64;
/// A list node holds about this many bytes; a longer element stands alone.
const NODE_BYTES: u64 = 8 << 10;
const STREAM_NODE_ENTRIES: u64 = 100;

/// An object being written.
#[derive(Debug)]
pub struct ObjectWriter {
    pub entry: Entry,
    object_type: u8,
    lzf: bool,
    /// Cuttable parts: elements, list nodes, stream listpacks; 1 for what cannot be cut.
    units_count: u64,
    units_done: u64,
    /// Elements in a unit.
    unit_elements: u64,
    begun: bool,
}

impl ObjectWriter {
    pub fn new(entry: Entry, release: Release, lzf: bool) -> Self {
        let old = release == Release::Old;
        let group = entry.group;
        let small = group.element_bytes <= LISTPACK_ELEMENT_BYTES_MAX
            && group.elements.saturating_mul(group.element_bytes.max(8) * 2 + 4) <= LISTPACK_BYTES_MAX;
        let node_elements = (NODE_BYTES / (group.element_bytes + 4)).max(1);
        let (object_type, units_count, unit_elements) = match group.kind {
            Kind::String | Kind::Int => (types::STRING, 1, 1),
            Kind::Json => (if old { types::JSON_OLD } else { types::JSON }, 1, 1),
            Kind::List => {
                let object_type = if old { types::LIST_ZIPLISTS } else { types::LIST_NODES };
                (object_type, group.elements.div_ceil(node_elements), node_elements)
            }
            Kind::Set => (types::SET, group.elements, 1),
            Kind::Intset => (types::SET_INTSET, 1, group.elements),
            Kind::Hash if small => (if old { types::HASH_ZIPLIST } else { types::HASH_LISTPACK }, 1, group.elements),
            Kind::Hash => (types::HASH, group.elements, 1),
            Kind::Zset if small => (if old { types::ZSET_ZIPLIST } else { types::ZSET_LISTPACK }, 1, group.elements),
            Kind::Zset => (types::ZSET, group.elements, 1),
            Kind::Stream => {
                let object_type = if old { types::STREAM_V1 } else { types::STREAM_V3 };
                (object_type, group.elements.div_ceil(STREAM_NODE_ENTRIES), STREAM_NODE_ENTRIES)
            }
            Kind::HashTtl => (types::HASH_EXPIRY, group.elements, 1),
            Kind::SetTtl => (types::SET_EXPIRY, group.elements, 1),
            Kind::Bloom => (if old { types::BLOOM } else { types::BLOOM_PIECES }, 1, 1),
            Kind::Cms => (types::COUNT_MIN_SKETCH, 1, 1),
            Kind::TopK => (types::TOP_K, 1, 1),
            Kind::Cuckoo => (types::CUCKOO, 1, 1),
        };
        Self { entry, object_type, lzf, units_count, units_done: 0, unit_elements, begun: false }
    }

    /// True for a string so long that it must be streamed by [`Entry::block`], not built.
    pub fn is_huge_string(&self) -> bool {
        self.entry.group.kind == Kind::String && self.entry.group.element_bytes > 4 << 20
    }

    /// Attributes, type, key, and the length of a string: what stands before a huge string's bytes.
    pub fn huge_string_head(&self, out: &mut Vec<u8>) {
        self.head(out);
        packed(out, self.entry.group.element_bytes);
    }

    /// Appends the object's next part, until `out` is `bytes_max` long (0: no bound) or the object is complete. True: it
    /// is complete.
    pub fn write(&mut self, out: &mut Vec<u8>, bytes_max: usize) -> bool {
        if !self.begun {
            self.begun = true;
            self.head(out);
            self.value_head(out);
        }
        while self.units_done < self.units_count {
            let unit = self.units_done;
            self.unit(unit, out);
            self.units_done += 1;
            if self.units_done == self.units_count && self.entry.group.kind == Kind::Stream {
                self.stream_tail(out);
            }
            if bytes_max > 0 && out.len() >= bytes_max {
                break;
            }
        }
        self.units_done == self.units_count
    }

    fn head(&self, out: &mut Vec<u8>) {
        encode::key_head(out, self.entry.attributes, self.object_type, &self.entry.key, self.lzf);
    }

    /// Number of elements or nodes, for the types that announce one.
    fn value_head(&self, out: &mut Vec<u8>) {
        match self.entry.group.kind {
            Kind::List | Kind::Set | Kind::HashTtl | Kind::SetTtl => packed(out, self.units_count),
            Kind::Hash | Kind::Zset if matches!(self.object_type, types::HASH | types::ZSET) => {
                packed(out, self.units_count);
            }
            Kind::Stream => {
                packed(out, self.units_count);
                if self.units_count == 0 {
                    self.stream_tail(out);
                }
            }
            _ => {}
        }
    }

    fn unit(&self, unit: u64, out: &mut Vec<u8>) {
        let entry = &self.entry;
        let from = unit * self.unit_elements;
        let to = (from + self.unit_elements).min(entry.group.elements);
        let mut text = Vec::new();
        match self.object_type {
            types::STRING | types::JSON | types::JSON_OLD => {
                entry.text(&mut text);
                string(out, &text, self.lzf);
            }
            types::SET | types::SET_EXPIRY => {
                self.element(unit, &mut text, out);
                if self.object_type == types::SET_EXPIRY {
                    member_expiry(out, entry.element_expire_at_s(unit));
                }
            }
            types::HASH | types::HASH_EXPIRY => {
                self.element(unit, &mut text, out);
                text.clear();
                entry.field_value(unit, &mut text);
                string(out, &text, self.lzf);
                if self.object_type == types::HASH_EXPIRY {
                    member_expiry(out, entry.element_expire_at_s(unit));
                }
            }
            types::ZSET => {
                self.element(unit, &mut text, out);
                encode::double(out, entry.score(unit));
            }
            types::SET_INTSET => {
                let numbers: Vec<i64> = (from..to).map(|j| entry.number(j)).collect();
                string(out, &intset(&numbers), self.lzf);
            }
            types::LIST_NODES if entry.group.element_bytes > NODE_BYTES => {
                packed(out, PLAIN_NODE);
                self.element(unit, &mut text, out);
            }
            types::LIST_NODES => {
                packed(out, PACKED_NODE);
                string(out, &self.listpack(from, to), self.lzf);
            }
            types::HASH_LISTPACK | types::ZSET_LISTPACK => string(out, &self.listpack(from, to), self.lzf),
            types::HASH_ZIPLIST | types::ZSET_ZIPLIST | types::LIST_ZIPLISTS => {
                string(out, &self.ziplist(from, to), self.lzf);
            }
            types::STREAM_V1 | types::STREAM_V3 => self.stream_node(from, to, out),
            _ => super::filter::write(self.object_type, entry, out),
        }
    }

    fn element(&self, j: u64, text: &mut Vec<u8>, out: &mut Vec<u8>) {
        self.entry.element(j, text);
        string(out, text, self.lzf);
    }

    fn listpack(&self, from: u64, to: u64) -> Vec<u8> {
        let mut listpack = Listpack::default();
        self.each_packed(from, to, |text| listpack.push(text));
        listpack.finish()
    }

    fn ziplist(&self, from: u64, to: u64) -> Vec<u8> {
        let mut ziplist = Ziplist::default();
        self.each_packed(from, to, |text| ziplist.push(text));
        ziplist.finish()
    }

    /// The elements of a packed container: item, field and value, or member and score.
    fn each_packed(&self, from: u64, to: u64, mut push: impl FnMut(&[u8])) {
        let mut text = Vec::new();
        for j in from..to {
            text.clear();
            self.entry.element(j, &mut text);
            push(&text);
            text.clear();
            match self.entry.group.kind {
                Kind::Hash => self.entry.field_value(j, &mut text),
                // `{}` prints 3.0 as 3, as the master does.
                Kind::Zset => text.extend_from_slice(format!("{}", self.entry.score(j)).as_bytes()),
                _ => continue,
            }
            push(&text);
        }
    }

    fn stream_node(&self, from: u64, to: u64, out: &mut Vec<u8>) {
        let entry = &self.entry;
        let first = entry.stream_id(from);
        packed(out, 16);
        stream_id(out, first);
        let mut node = Listpack::default();
        let deleted = (from..to).filter(|j| entry.stream_deleted(*j)).count() as u64;
        let names = entry.stream_fields(0);
        for number in [to - from - deleted, deleted, names.len() as u64] {
            node.push_number(number as i64);
        }
        names.iter().for_each(|name| node.push(name.as_bytes()));
        node.push_number(0);
        let mut text = Vec::new();
        for j in from..to {
            let begun = node.count();
            let (ms, seq) = entry.stream_id(j);
            let fields = entry.stream_fields(j);
            let same = fields == names;
            node.push_number(i64::from(entry.stream_deleted(j)) | i64::from(same) << 1);
            node.push_number((ms - first.0) as i64);
            node.push_number(seq as i64 - first.1 as i64);
            if !same {
                node.push_number(fields.len() as i64);
            }
            for (k, name) in fields.iter().enumerate() {
                if !same {
                    node.push(name.as_bytes());
                }
                text.clear();
                entry.field_value(j * 2 + k as u64, &mut text);
                node.push(&text);
            }
            node.push_number((node.count() - begun) as i64);
        }
        string(out, &node.finish(), self.lzf);
    }

    fn stream_tail(&self, out: &mut Vec<u8>) {
        let entry = &self.entry;
        let count = entry.group.elements;
        let deleted = (0..count).filter(|j| entry.stream_deleted(*j));
        let new = self.object_type == types::STREAM_V3;
        let pair = |out: &mut Vec<u8>, id: (u64, u64)| {
            packed(out, id.0);
            packed(out, id.1);
        };
        let last = count.checked_sub(1).map_or((0, 0), |j| entry.stream_id(j));
        packed(out, count - deleted.count() as u64);
        pair(out, last);
        if new {
            let first = (0..count).find(|j| !entry.stream_deleted(*j));
            pair(out, first.map_or((0, 0), |j| entry.stream_id(j)));
            let last_deleted = (0..count).rev().find(|j| entry.stream_deleted(*j));
            pair(out, last_deleted.map_or((0, 0), |j| entry.stream_id(j)));
            packed(out, count);
        }
        packed(out, entry.stream_groups_count());
        for group in 0..entry.stream_groups_count() {
            raw_string(out, format!("group-{group}").as_bytes());
            pair(out, last);
            if new {
                // The second group does not know how much it has read.
                packed(out, if group == 0 { count } else { u64::MAX });
            }
            let pending: Vec<_> = entry.stream_pending().collect();
            packed(out, pending.len() as u64);
            for (j, delivery_count) in &pending {
                stream_id(out, entry.stream_id(*j));
                out.extend_from_slice(&(super::entry::PAST_MS as u64 + j).to_le_bytes());
                packed(out, *delivery_count);
            }
            // One consumer has it all, the other nothing.
            packed(out, 2);
            for consumer in 0..2u64 {
                raw_string(out, format!("consumer-{consumer}").as_bytes());
                out.extend_from_slice(&(super::entry::PAST_MS as u64).to_le_bytes());
                if new {
                    out.extend_from_slice(&(super::entry::PAST_MS as u64).to_le_bytes());
                }
                let own = if consumer == 0 { pending.as_slice() } else { &[] };
                packed(out, own.len() as u64);
                own.iter().for_each(|(j, _)| stream_id(out, entry.stream_id(*j)));
            }
        }
    }
}

/// 16 raw bytes.
fn stream_id(out: &mut Vec<u8>, (ms, seq): (u64, u64)) {
    out.extend_from_slice(&ms.to_be_bytes());
    out.extend_from_slice(&seq.to_be_bytes());
}
