//! One key of a generated key space, as a pure function of the spec, its group and its index: attributes and elements.
//!
//! The stream's writer ([`super::object`]) and the model of the right end state ([`super::model`]) both read it from
//! here, so neither has to keep values in memory, however large they are.

use super::spec::{Group, Kind, Spec};
use crate::lab::encode::{self, Attributes};
use crate::lab::rng::Rng;

/// An expiry far enough away, in 2033.
pub const FUTURE_MS: i64 = 2_000_000_000_000;
/// One long past, in 2024.
pub const PAST_MS: i64 = 1_704_067_200_000;
/// Long strings repeat a block of this size.
const BLOCK_BYTES: u64 = 64 << 10;
/// Id of a stream's first entry.
const STREAM_MS: u64 = 1_700_000_000_000;

/// A key and how its value is made.
#[derive(Clone, Debug)]
pub struct Entry {
    pub group: Group,
    pub index: u64,
    pub key: Vec<u8>,
    pub db: u32,
    pub attributes: Attributes,
    value_seed: u64,
}

impl Entry {
    /// The `index`-th key of the `group_index`-th group.
    pub fn new(spec: &Spec, group_index: usize, index: u64) -> Self {
        let group = spec.mix[group_index];
        let seed = spec.seed.wrapping_mul(0x1_0000_01b3) ^ (group_index as u64) << 48;
        let mut entry = Self {
            group,
            index,
            key: Self::key(group.kind, group_index, index),
            db: 0,
            attributes: Attributes::default(),
            value_seed: seed,
        };
        if spec.fast {
            entry.attributes.expire_at_ms = (spec.expire_fraction >= 0.5).then_some(FUTURE_MS);
            return entry;
        }
        let mut rng = Rng::new(seed ^ index);
        entry.value_seed = rng.next_u64();
        entry.db = spec.databases[rng.below(spec.databases.len() as u64) as usize];
        if rng.chance(spec.expired_fraction) {
            entry.attributes.expire_at_ms = Some(PAST_MS + (index % 1000) as i64);
        } else if rng.chance(spec.expire_fraction) {
            entry.attributes.expire_at_ms = Some(FUTURE_MS + (index % 1_000_000) as i64);
        }
        if rng.chance(spec.sticky_fraction) {
            entry.attributes.sticky = index.is_multiple_of(2);
            entry.attributes.memcached_flags = (index % 3 != 1).then_some(index as u32);
        }
        entry
    }

    /// The name alone: `KIND:GROUP:` and 12 digits.
    pub fn key(kind: Kind, group_index: usize, index: u64) -> Vec<u8> {
        format!("{kind}:{group_index}:{index:012}").into_bytes()
    }

    pub fn owner(&self, flows_count: usize) -> usize {
        encode::owner(&self.key, flows_count)
    }

    /// False where a target must not have the key: expired, or a collection without a live member.
    pub fn is_alive(&self) -> bool {
        let expired = self.attributes.expire_at_ms.is_some_and(|at| at < FUTURE_MS);
        let members = match self.group.kind {
            Kind::List | Kind::Set | Kind::Intset | Kind::Hash | Kind::Zset => self.group.elements > 0,
            Kind::HashTtl | Kind::SetTtl => (0..self.group.elements).any(|j| !self.element_expired(j)),
            _ => true,
        };
        !expired && members
    }

    /// Appends the value of a string, number or JSON document.
    pub fn text(&self, out: &mut Vec<u8>) {
        let mut rng = Rng::new(self.value_seed);
        match self.group.kind {
            Kind::Int => {
                let number = rng.next_u64() as i64 >> (rng.next_u64() % 64);
                out.extend_from_slice(number.to_string().as_bytes());
            }
            // Every fifth document is a bare number: it comes in integer form.
            Kind::Json if self.index % 5 == 4 => out.extend_from_slice(self.index.to_string().as_bytes()),
            Kind::Json => {
                let mut filler = Vec::new();
                rng.fill_text(&mut filler, (self.group.element_bytes.saturating_sub(40)) as usize);
                let filler = String::from_utf8_lossy(&filler).into_owned();
                let document = serde_json::json!({ "a": [1, -2, 3.5, null, true], "i": self.index, "t": filler });
                out.extend_from_slice(document.to_string().as_bytes());
            }
            _ => {
                let mut left = self.group.element_bytes;
                while left > 0 {
                    let block = self.block(left);
                    out.extend_from_slice(&block);
                    left -= block.len() as u64;
                }
            }
        }
    }

    /// The next block of a long string of which `left` bytes are to come.
    pub fn block(&self, left: u64) -> Vec<u8> {
        let mut block = Vec::new();
        Rng::new(self.value_seed).fill_text(&mut block, left.min(BLOCK_BYTES) as usize);
        block
    }

    /// Appends the `j`-th item, member or field: distinct within the value, at least `element_bytes` long (a few are
    /// plain numbers).
    pub fn element(&self, j: u64, out: &mut Vec<u8>) {
        if self.group.kind == Kind::Intset {
            return out.extend_from_slice(self.number(j).to_string().as_bytes());
        }
        if j % 7 == 3 {
            return out.extend_from_slice((j * 1000 / 7).to_string().as_bytes());
        }
        let begun = out.len();
        out.extend_from_slice(format!("{j:x}-").as_bytes());
        self.fill(j, begun, out);
    }

    /// Appends the value of the `j`-th field.
    pub fn field_value(&self, j: u64, out: &mut Vec<u8>) {
        if j % 5 == 2 {
            return out.extend_from_slice((j as i64 * 70_001 - 50_000).to_string().as_bytes());
        }
        self.fill(!j, out.len(), out);
    }

    /// The `j`-th number of an intset: ascending.
    pub fn number(&self, j: u64) -> i64 {
        let step = self.group.element_bytes.clamp(1, 1 << 30) as i64;
        (j as i64 - self.group.elements as i64 / 3) * step
    }

    /// Ascending; short in decimal.
    pub fn score(&self, j: u64) -> f64 {
        j as f64 / 2.0 - (self.value_seed % 16) as f64
    }

    /// Expiry of a field or member in Unix seconds: half have one, an eighth of those in the past.
    pub fn element_expire_at_s(&self, j: u64) -> Option<i64> {
        match (self.value_seed ^ j) % 16 {
            0 => Some(PAST_MS / 1000),
            1..8 => Some(FUTURE_MS / 1000 + j as i64),
            _ => None,
        }
    }

    pub fn element_expired(&self, j: u64) -> bool {
        self.element_expire_at_s(j).is_some_and(|at| at < FUTURE_MS / 1000)
    }

    /// Id of a stream's `j`-th entry.
    pub fn stream_id(&self, j: u64) -> (u64, u64) {
        (STREAM_MS + j / 3 * 10, j % 3)
    }

    /// A deleted entry: in the listpack, but not in the stream.
    pub fn stream_deleted(&self, j: u64) -> bool {
        j % 11 == 5
    }

    /// Names of the `j`-th stream entry's fields: most have the node's own.
    pub fn stream_fields(&self, j: u64) -> &'static [&'static str] {
        if j % 4 == 3 { &["temperature", "x"] } else { &["temperature", "humidity"] }
    }

    /// How many groups a stream has.
    pub fn stream_groups_count(&self) -> u64 {
        self.index % 3
    }

    /// Entries of a stream that are pending: the first few that are not deleted; each with its delivery count.
    pub fn stream_pending(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        (0..self.group.elements.min(8)).filter(|j| !self.stream_deleted(*j)).map(|j| (j, 1 + j % 3))
    }

    fn fill(&self, salt: u64, begun: usize, out: &mut Vec<u8>) {
        let missing = (self.group.element_bytes as usize).saturating_sub(out.len() - begun);
        Rng::new(self.value_seed ^ salt.wrapping_mul(0x2545_f491_4f6c_dd1d)).fill_text(out, missing);
    }
}
