//! Compares a server with the model of a generated stream, through ordinary commands.
//!
//! In: a spec, its model, a connection to a target that was loaded. Out: how many keys were compared, and what differs.
//! Key counts are compared for every database; values and expiries of all keys, or of every n-th one where there are more
//! than the caller wants to wait for. Of streams and of what only modules hold, only the presence is compared.

use super::model::{Model, Value, entries};
use super::{Entry, Spec};
use crate::lab::LabError;
use crate::lab::client::{Client, Reply, encode};
use std::collections::{BTreeMap, BTreeSet};

/// Differences that are named; the others are counted.
const NAMED_MAX: usize = 10;
/// Keys asked for at once.
const PIPELINE_KEYS: usize = 200;

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Keys that the model has, in all databases.
    pub keys_expected: u64,
    /// Keys whose value and expiry were compared.
    pub keys_compared: u64,
    pub differences_count: u64,
    /// The first ones, in words.
    pub differences: Vec<String>,
}

impl Verdict {
    pub fn is_same(&self) -> bool {
        self.differences_count == 0
    }

    fn differs(&mut self, what: String) {
        self.differences_count += 1;
        if self.differences.len() < NAMED_MAX {
            self.differences.push(what);
        }
    }
}

/// Compares at most about `keys_max` keys. The server must know `PEXPIRETIME` (Redis 7.0).
pub fn verify(spec: &Spec, model: &Model, client: &mut Client, keys_max: u64) -> Result<Verdict, LabError> {
    let mut verdict = Verdict::default();
    for &db in &spec.databases {
        client.run(&format!("SELECT {db}"))?;
        let (wanted, held) = (model.keys_count(db), client.run("DBSIZE")?.int().unwrap_or(-1));
        verdict.keys_expected += wanted;
        if i64::try_from(wanted) != Ok(held) {
            verdict.differs(format!("database {db} holds {held} keys instead of {wanted}"));
        }
    }
    let step = spec.keys_count().div_ceil(keys_max.max(1)).max(1) as usize;
    let mut batch = Vec::with_capacity(PIPELINE_KEYS);
    for entry in entries(spec).step_by(step) {
        batch.push(Question::new(model, entry));
        if batch.len() == PIPELINE_KEYS {
            ask(client, &mut batch, &mut verdict)?;
        }
    }
    ask(client, &mut batch, &mut verdict)?;
    Ok(verdict)
}

/// One key and what must be answered about it.
struct Question {
    entry: Entry,
    value: Option<Value>,
    exists: bool,
    /// -1: none, -2: no such key.
    expire_at_ms: i64,
}

impl Question {
    fn new(model: &Model, entry: Entry) -> Self {
        if let Some(state) = model.current(&entry) {
            let expire_at_ms = state.expire_at_ms.unwrap_or(-1);
            return Self { entry, value: Some(state.value), exists: true, expire_at_ms };
        }
        let held = model.look_up(entry.db, &entry.key);
        let exists = held.is_some();
        let expire_at_ms = held.map_or(-2, |held| held.expire_at_ms.unwrap_or(-1));
        Self { entry, value: None, exists, expire_at_ms }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let key = self.entry.key.as_slice();
        encode(&[b"SELECT", self.entry.db.to_string().as_bytes()], out);
        match &self.value {
            Some(Value::String(_)) => encode(&[b"GET", key], out),
            Some(Value::List(_)) => encode(&[b"LRANGE", key, b"0", b"-1"], out),
            Some(Value::Set(_)) => encode(&[b"SMEMBERS", key], out),
            Some(Value::Hash(_)) => encode(&[b"HGETALL", key], out),
            Some(Value::Zset(_)) => encode(&[b"ZRANGE", key, b"0", b"-1", b"WITHSCORES"], out),
            None => encode(&[b"EXISTS", key], out),
        }
        encode(&[b"PEXPIRETIME", key], out);
    }

    fn judge(&self, value: &Reply, expiry: &Reply, verdict: &mut Verdict) {
        verdict.keys_compared += 1;
        let name = String::from_utf8_lossy(&self.entry.key);
        let db = self.entry.db;
        let same = match &self.value {
            Some(wanted) => is_value(wanted, value),
            None => value.int() == Some(i64::from(self.exists)),
        };
        if !same {
            verdict.differs(format!("database {db}: the value of {name} is another one"));
        } else if expiry.int() != Some(self.expire_at_ms) {
            verdict.differs(format!("database {db}: {name} expires at {expiry:?} instead of {}", self.expire_at_ms));
        }
    }
}

fn ask(client: &mut Client, batch: &mut Vec<Question>, verdict: &mut Verdict) -> Result<(), LabError> {
    let mut request = Vec::new();
    batch.iter().for_each(|question| question.write(&mut request));
    client.send(&request)?;
    for question in batch.drain(..) {
        client.reply()?;
        let (value, expiry) = (client.reply()?, client.reply()?);
        question.judge(&value, &expiry, verdict);
    }
    Ok(())
}

fn is_value(wanted: &Value, reply: &Reply) -> bool {
    if let Value::String(text) = wanted {
        return reply.bytes() == Some(text.as_slice());
    }
    let Some(parts) = reply.array() else { return false };
    let Some(parts) = parts.iter().map(Reply::bytes).collect::<Option<Vec<&[u8]>>>() else { return false };
    let pairs = || parts.chunks_exact(2).map(|pair| (pair[0], pair[1]));
    match wanted {
        Value::String(_) => false,
        Value::List(items) => items.len() == parts.len() && items.iter().zip(&parts).all(|(a, b)| a == b),
        Value::Set(members) => {
            members.len() == parts.len()
                && members.iter().map(Vec::as_slice).eq(parts.into_iter().collect::<BTreeSet<_>>())
        }
        Value::Hash(fields) => {
            let held: BTreeMap<_, _> = pairs().collect();
            parts.len() == fields.len() * 2
                && fields.iter().all(|(field, (value, _))| held.get(field.as_slice()) == Some(&value.as_slice()))
        }
        Value::Zset(scores) => {
            let held: BTreeMap<_, _> = pairs().collect();
            let score = |text: &[u8]| std::str::from_utf8(text).ok().and_then(|text| text.parse::<f64>().ok());
            parts.len() == scores.len() * 2
                && scores.iter().all(|(m, s)| held.get(m.as_slice()).and_then(|text| score(text)) == Some(*s))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_compared_by_meaning() {
        let array = |parts: &[&str]| Reply::Array(parts.iter().map(|p| Reply::Bulk(p.as_bytes().to_vec())).collect());
        let set = Value::Set([b"a".to_vec(), b"b".to_vec()].into());
        assert!(is_value(&set, &array(&["b", "a"])));
        assert!(!is_value(&set, &array(&["b", "c"])) && !is_value(&set, &array(&["a"])));
        let list = Value::List([b"a".to_vec(), b"b".to_vec()].into());
        assert!(is_value(&list, &array(&["a", "b"])) && !is_value(&list, &array(&["b", "a"])));
        let zset = Value::Zset([(b"m".to_vec(), 1.5)].into());
        assert!(is_value(&zset, &array(&["m", "1.50"])) && !is_value(&zset, &array(&["m", "2"])));
        let hash = Value::Hash([(b"f".to_vec(), (b"v".to_vec(), false))].into());
        assert!(is_value(&hash, &array(&["f", "v"])) && !is_value(&hash, &array(&["f", "w"])));
        assert!(is_value(&Value::String(b"x".to_vec()), &Reply::Bulk(b"x".to_vec())));
        assert!(!is_value(&Value::String(b"x".to_vec()), &Reply::Nil));
        assert!(!is_value(&list, &Reply::Error("WRONGTYPE".into())));
    }
}
