//! Journal records between a flow's snapshot records, and what they do to the model.
//!
//! A record touches only keys of its own flow whose baseline was sent whole (wire 2.10), except the strays and the
//! omitted deletes that a spec asks for.

use super::entry::{Entry, FUTURE_MS};
use super::model::{Model, ModelKey, Value};
use super::spec::Spec;
use crate::lab::encode::{journal_blob, journal_command, owner};
use crate::lab::rng::Rng;

/// Largest value that is touched: the model keeps it in memory.
const TOUCHED_BYTES_MAX: u64 = 64 << 10;
/// Keys remembered for touching, for each flow.
const DONE_KEPT_MAX: usize = 4096;

/// The journal of one flow.
pub struct Journal {
    flow: usize,
    /// Group and index of keys that may be touched.
    done: Vec<(usize, u64)>,
    new_keys_count: u64,
    /// LSN of the next record.
    pub next_lsn: u64,
}

impl Journal {
    pub fn new(flow: usize) -> Self {
        Self { flow, done: Vec::new(), new_keys_count: 0, next_lsn: 1 }
    }

    /// The key's baseline was sent whole.
    pub fn sent(&mut self, group: usize, entry: &Entry, rng: &mut Rng) {
        if entry.group.elements.saturating_mul(entry.group.element_bytes) > TOUCHED_BYTES_MAX {
            return;
        }
        if self.done.len() < DONE_KEPT_MAX {
            self.done.push((group, entry.index));
        } else {
            self.done[rng.below(DONE_KEPT_MAX as u64) as usize] = (group, entry.index);
        }
    }

    /// Appends a blob with some write, and applies it to the model.
    pub fn some_write(&mut self, spec: &Spec, model: &Model, rng: &mut Rng, out: &mut Vec<u8>) {
        if self.done.is_empty() || rng.chance(0.1) {
            return self.new_key(spec, model, rng, out);
        }
        let (group, index) = self.done[rng.below(self.done.len() as u64) as usize];
        let entry = Entry::new(spec, group, index);
        let Some(mut state) = model.current(&entry) else { return };
        let text = |rng: &mut Rng| format!("journal-{:x}", rng.below(1 << 40)).into_bytes();
        let (key, what) = (entry.key.clone(), rng.below(10));
        let args: Vec<Vec<u8>> = match (&mut state.value, what) {
            (_, 0) => {
                model.set(entry.db, &key, None);
                return self.blob(entry.db, &[b"DEL".to_vec(), key], out);
            }
            (_, 1) => {
                state.expire_at_ms = Some(FUTURE_MS + rng.below(1 << 30) as i64);
                let at = state.expire_at_ms.unwrap_or_default().to_string().into_bytes();
                vec![b"PEXPIREAT".to_vec(), key.clone(), at]
            }
            (Value::String(value), 2..5) => {
                let more = text(rng);
                value.extend_from_slice(&more);
                vec![b"APPEND".to_vec(), key.clone(), more]
            }
            (Value::String(value), _) => {
                *value = text(rng);
                state.expire_at_ms = None;
                vec![b"SET".to_vec(), key.clone(), value.clone()]
            }
            (Value::List(items), 2..4) if items.len() > 1 => {
                items.pop_front();
                vec![b"LPOP".to_vec(), key.clone()]
            }
            (Value::List(items), _) => {
                items.push_back(text(rng));
                vec![b"RPUSH".to_vec(), key.clone(), items[items.len() - 1].clone()]
            }
            (Value::Set(members), 2..5) if members.len() > 1 => {
                let member = members.pop_first().unwrap_or_default();
                vec![b"SREM".to_vec(), key.clone(), member]
            }
            (Value::Set(members), _) => {
                let member = text(rng);
                members.insert(member.clone());
                vec![b"SADD".to_vec(), key.clone(), member]
            }
            (Value::Hash(fields), 2..5) if fields.len() > 1 => {
                let field = fields.pop_first().unwrap_or_default().0;
                vec![b"HDEL".to_vec(), key.clone(), field]
            }
            (Value::Hash(fields), _) => {
                // An old field as often as a new one: setting it takes its expiry away.
                let old = fields.first_key_value().map(|(field, _)| field.clone()).filter(|_| what < 8);
                let (field, value) = (old.unwrap_or_else(|| text(rng)), text(rng));
                fields.insert(field.clone(), (value.clone(), false));
                vec![b"HSET".to_vec(), key.clone(), field, value]
            }
            (Value::Zset(scores), 2..5) if scores.len() > 1 => {
                let member = scores.pop_first().unwrap_or_default().0;
                vec![b"ZREM".to_vec(), key.clone(), member]
            }
            (Value::Zset(scores), _) => {
                let (member, score) = (text(rng), rng.below(1000) as f64);
                scores.insert(member.clone(), score);
                vec![b"ZADD".to_vec(), key.clone(), score.to_string().into_bytes(), member]
            }
        };
        model.set(entry.db, &key, Some(state));
        self.blob(entry.db, &args, out);
    }

    /// `MSET` of a key whose baseline, with a newer state, comes later.
    pub fn early_write(&mut self, entry: &Entry, out: &mut Vec<u8>) {
        self.blob(entry.db, &[b"MSET".to_vec(), entry.key.clone(), b"older than its baseline".to_vec()], out);
    }

    /// `MSET` of a key that the master deleted afterwards without a record: it holds no such key.
    pub fn omitted_delete(&mut self, spec: &Spec, out: &mut Vec<u8>) {
        let key = self.own_key(spec, "omitted");
        self.blob(spec.databases[0], &[b"MSET".to_vec(), key, b"must not stay".to_vec()], out);
    }

    /// `SET` of a key that another flow owns.
    pub fn stray(&mut self, db: u32, key: &[u8], out: &mut Vec<u8>) {
        self.blob(db, &[b"SET".to_vec(), key.to_vec(), b"HYLL stray".to_vec()], out);
    }

    fn new_key(&mut self, spec: &Spec, model: &Model, rng: &mut Rng, out: &mut Vec<u8>) {
        let (key, db) = (self.own_key(spec, "new"), spec.databases[rng.below(spec.databases.len() as u64) as usize]);
        let value = format!("value {}", rng.below(1000)).into_bytes();
        model.set(db, &key, Some(ModelKey { value: Value::String(value.clone()), expire_at_ms: None }));
        self.blob(db, &[b"SET".to_vec(), key, value], out);
    }

    /// A name that this flow owns and nobody has used.
    fn own_key(&mut self, spec: &Spec, prefix: &str) -> Vec<u8> {
        loop {
            self.new_keys_count += 1;
            let key = format!("{prefix}:{}:{}", self.flow, self.new_keys_count).into_bytes();
            if owner(&key, spec.flows_count) == self.flow {
                return key;
            }
        }
    }

    fn blob(&mut self, db: u32, args: &[Vec<u8>], out: &mut Vec<u8>) {
        let mut record = Vec::new();
        journal_command(&mut record, db, 0, args);
        journal_blob(out, &record);
        self.next_lsn += 1;
    }
}
