//! The right end state of a generated stream: what a target must hold once everything was applied.
//!
//! Keys that no journal record touched are computed from the spec when asked for; the others are kept here. Rows come
//! out in the format of tools/truth.py, so that it can compare any target with them.

use super::entry::Entry;
use super::rows::{Flat, head};
use super::spec::{Kind, Spec};
use crate::lab::LabError;
use crate::lab::encode::owner;
use crate::lab::master::Held;
use crate::lab::truth::json_of;
use serde_json::{Value as Json, json};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

/// A key that the journal has touched.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelKey {
    pub value: Value,
    pub expire_at_ms: Option<i64>,
}

/// A value in plain form.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    String(Vec<u8>),
    List(VecDeque<Vec<u8>>),
    Set(BTreeSet<Vec<u8>>),
    /// Value and whether the field has an expiry of its own.
    Hash(BTreeMap<Vec<u8>, (Vec<u8>, bool)>),
    Zset(BTreeMap<Vec<u8>, f64>),
}

impl Value {
    /// TYPE's answer.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::String(_) => "string",
            Self::List(_) => "list",
            Self::Set(_) => "set",
            Self::Hash(_) => "hash",
            Self::Zset(_) => "zset",
        }
    }

    /// The value of an untouched key; `None` for kinds that the journal leaves alone.
    pub fn of(entry: &Entry) -> Option<Self> {
        let (count, mut text) = (entry.group.elements, Vec::new());
        let mut element = |j| {
            text.clear();
            entry.element(j, &mut text);
            text.clone()
        };
        Some(match entry.group.kind {
            Kind::String | Kind::Int => {
                let mut text = Vec::new();
                entry.text(&mut text);
                Self::String(text)
            }
            Kind::List => Self::List((0..count).map(element).collect()),
            Kind::Set | Kind::Intset => Self::Set((0..count).map(element).collect()),
            Kind::SetTtl => Self::Set((0..count).filter(|j| !entry.element_expired(*j)).map(element).collect()),
            Kind::Zset => Self::Zset((0..count).map(|j| (element(j), entry.score(j))).collect()),
            Kind::Hash | Kind::HashTtl => {
                let timed = entry.group.kind == Kind::HashTtl;
                let field = |j| {
                    let mut value = Vec::new();
                    entry.field_value(j, &mut value);
                    (element(j), (value, timed && entry.element_expire_at_s(j).is_some()))
                };
                Self::Hash((0..count).filter(|j| !timed || !entry.element_expired(*j)).map(field).collect())
            }
            _ => return None,
        })
    }
}

/// The end state. Shared between the flows' writers and the test.
pub struct Model {
    spec: Arc<Spec>,
    /// Keys that the journal has touched: `None` is deleted.
    touched: Mutex<Touched>,
    /// Keys in each database before any journal record, counted when first asked for.
    base_counts: OnceLock<HashMap<u32, u64>>,
}

type Touched = HashMap<(u32, Vec<u8>), Option<ModelKey>>;

impl Model {
    pub fn new(spec: Arc<Spec>) -> Self {
        Self { spec, touched: Mutex::default(), base_counts: OnceLock::new() }
    }

    /// What the journal made of the key, if it touched it.
    pub fn touched(&self, db: u32, key: &[u8]) -> Option<Option<ModelKey>> {
        self.lock().get(&(db, key.to_vec())).cloned()
    }

    /// The key's state now; `None`: absent, or of a kind that is never touched.
    pub fn current(&self, entry: &Entry) -> Option<ModelKey> {
        self.touched(entry.db, &entry.key).unwrap_or_else(|| {
            let value = if entry.is_alive() { Value::of(entry) } else { None };
            value.map(|value| ModelKey { value, expire_at_ms: entry.attributes.expire_at_ms })
        })
    }

    pub fn set(&self, db: u32, key: &[u8], state: Option<ModelKey>) {
        self.lock().insert((db, key.to_vec()), state);
    }

    /// Forgets what the journal records of an earlier registration did to the keys of one flow.
    pub fn reset_flow(&self, flow: usize) {
        self.lock().retain(|(_, key), _| owner(key, self.spec.flows_count) != flow);
    }

    /// What a master would answer about the key at the end.
    pub fn look_up(&self, db: u32, key: &[u8]) -> Option<Held> {
        if let Some(state) = self.touched(db, key) {
            let state = state?;
            let type_name = state.value.type_name().to_owned();
            let string = if let Value::String(text) = state.value { Some(text) } else { None };
            return Some(Held { type_name, string, expire_at_ms: state.expire_at_ms });
        }
        let entry = self.entry_named(key).filter(|entry| entry.db == db && entry.is_alive())?;
        let kind = entry.group.kind;
        let string = matches!(kind, Kind::String | Kind::Int).then(|| {
            let mut text = Vec::new();
            entry.text(&mut text);
            text
        });
        let type_name = if kind == Kind::Json { "ReJSON-RL" } else { kind.type_name() };
        Some(Held { type_name: type_name.to_owned(), string, expire_at_ms: entry.attributes.expire_at_ms })
    }

    /// Keys in a database at the end.
    pub fn keys_count(&self, db: u32) -> u64 {
        if self.spec.fast {
            return if db == 0 { self.spec.keys_count() } else { 0 };
        }
        let base = self.base_counts.get_or_init(|| {
            let mut counts = HashMap::new();
            entries(&self.spec).filter(Entry::is_alive).for_each(|entry| *counts.entry(entry.db).or_default() += 1);
            counts
        });
        let mut count = base.get(&db).copied().unwrap_or_default();
        for ((_, key), state) in self.lock().iter().filter(|((d, _), _)| *d == db) {
            count += u64::from(state.is_some());
            count -= u64::from(self.entry_named(key).is_some_and(|entry| entry.db == db && entry.is_alive()));
        }
        count
    }

    /// Writes every row, in no particular order.
    pub fn write_truth(&self, path: &Path) -> Result<(), LabError> {
        let fail = |source| LabError::File { path: path.to_owned(), source };
        let mut file = BufWriter::new(std::fs::File::create(path).map_err(fail)?);
        self.write_rows(&mut file).and_then(|()| file.flush()).map_err(fail)
    }

    fn write_rows(&self, out: &mut impl Write) -> io::Result<()> {
        let touched = self.lock().clone();
        for ((db, key), state) in &touched {
            if let Some(state) =
                state.as_ref().filter(|s| s.expire_at_ms.is_none_or(|at| at >= super::entry::FUTURE_MS))
            {
                writeln!(out, "{}", touched_row(*db, key, state))?;
            }
        }
        for entry in entries(&self.spec) {
            if entry.is_alive() && !touched.contains_key(&(entry.db, entry.key.clone())) {
                writeln!(out, "{}", row(&entry))?;
            }
        }
        Ok(())
    }

    fn entry_named(&self, key: &[u8]) -> Option<Entry> {
        let text = std::str::from_utf8(key).ok()?;
        let mut parts = text.split(':').skip(1);
        let (group, index) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let known: &super::Group = self.spec.mix.get::<usize>(group)?;
        let entry = (index < known.count).then(|| Entry::new(&self.spec, group, index))?;
        (entry.key == key).then_some(entry)
    }

    fn lock(&self) -> MutexGuard<'_, Touched> {
        self.touched.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Every entry of a key space.
pub fn entries(spec: &Spec) -> impl Iterator<Item = Entry> + '_ {
    let groups = spec.mix.iter().enumerate();
    groups.flat_map(move |(group, shape)| (0..shape.count).map(move |index| Entry::new(spec, group, index)))
}

/// The row of an untouched key. Long strings and lists are digested as they are made.
fn row(entry: &Entry) -> Json {
    let mut row = head(entry.db, &entry.key, entry.group.kind.type_name(), entry.attributes.expire_at_ms);
    let mut flat = Flat::default();
    match entry.group.kind {
        Kind::String => flat.long(entry.group.element_bytes, |left| entry.block(left)),
        Kind::Json => {
            let mut text = Vec::new();
            entry.text(&mut text);
            row["json"] = serde_json::from_slice(&text).unwrap_or_default();
            return row;
        }
        Kind::List => {
            let mut text = Vec::new();
            for j in 0..entry.group.elements {
                text.clear();
                entry.element(j, &mut text);
                flat.part(&text);
            }
        }
        Kind::Stream => return stream_row(entry, row),
        _ => match Value::of(entry) {
            Some(value) => return value_row(&entry.key, &value, row),
            None => {
                row["opaque"] = Json::Bool(true);
                return row;
            }
        },
    }
    flat.into_row(row)
}

fn touched_row(db: u32, key: &[u8], state: &ModelKey) -> Json {
    value_row(key, &state.value, head(db, key, state.value.type_name(), state.expire_at_ms))
}

fn value_row(key: &[u8], value: &Value, mut row: Json) -> Json {
    let mut flat = Flat::default();
    match value {
        Value::String(text) => flat.part(text),
        Value::List(items) => items.iter().for_each(|item| flat.part(item)),
        Value::Set(members) => members.iter().for_each(|member| flat.part(member)),
        Value::Zset(scores) => scores.iter().for_each(|(member, score)| {
            flat.part(member);
            // Scores are short fractions, which Python prints in the same way.
            flat.part(format!("{score:?}").as_bytes());
        }),
        Value::Hash(fields) => {
            fields.iter().for_each(|(field, (value, _))| {
                flat.part(field);
                flat.part(value);
            });
            let timed: Vec<Json> = fields.iter().filter(|(_, (_, timed))| *timed).map(|(f, _)| json_of(f)).collect();
            if !timed.is_empty() && memchr::memmem::find(key, b"ttl").is_some() {
                row["fields_with_ttl"] = if timed.len() < 50 { Json::Array(timed) } else { json!(timed.len()) };
            }
        }
    }
    flat.into_row(row)
}

fn stream_row(entry: &Entry, row: Json) -> Json {
    let id = |j| {
        let (ms, seq) = entry.stream_id(j);
        format!("{ms}-{seq}")
    };
    let mut flat = Flat::default();
    for j in (0..entry.group.elements).filter(|j| !entry.stream_deleted(*j)) {
        flat.part(id(j).as_bytes());
        for (k, name) in entry.stream_fields(j).iter().enumerate() {
            let mut value = Vec::new();
            entry.field_value(j * 2 + k as u64, &mut value);
            flat.part(name.as_bytes());
            flat.part(&value);
        }
    }
    let last = entry.group.elements.checked_sub(1).map_or("0-0".to_owned(), id);
    let pending: Vec<Json> = entry.stream_pending().map(|(j, count)| json!([id(j), "consumer-0", count])).collect();
    let groups: Vec<Json> = (0..entry.stream_groups_count())
        .map(|g| {
            json!({ "name": format!("group-{g}"), "last": last, "pending": pending,
                    "consumers": ["consumer-0", "consumer-1"] })
        })
        .collect();
    let mut row = flat.into_row(row);
    row["last_id"] = json!(last);
    row["groups"] = json!(groups);
    row
}
