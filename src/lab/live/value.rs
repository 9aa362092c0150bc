//! What the live source's keys hold, in plain form, and what they begin with.
//!
//! In: entries of a generated key space. Out: objects that commands change ([`super::exec`]), that the snapshot's writer
//! encodes ([`super::dump`]) and that rows for truth.py are made of ([`super::rows`]).

use crate::lab::generate::Kind;
use crate::lab::generate::entry::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A key's value and attributes.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    pub value: Value,
    pub expire_at_ms: Option<i64>,
}

impl Object {
    pub fn new(value: Value) -> Self {
        Self { value, expire_at_ms: None }
    }

    /// The beginning of a generated key; `None`: a live source cannot hold it (filters), or it is dead (expired, empty).
    pub fn of(entry: &Entry) -> Option<Self> {
        let value = if entry.is_alive() { Value::of(entry)? } else { return None };
        Some(Self { value, expire_at_ms: entry.attributes.expire_at_ms })
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    String(Vec<u8>),
    Json(Vec<u8>),
    List(VecDeque<Vec<u8>>),
    Set(BTreeSet<Vec<u8>>),
    Hash(BTreeMap<Vec<u8>, Field>),
    Zset(BTreeMap<Vec<u8>, f64>),
    Stream(Box<Stream>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    pub value: Vec<u8>,
    /// Unix seconds.
    pub expire_at_s: Option<i64>,
}

/// Names and values of a stream's entry, in order.
pub type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// Milliseconds and sequence.
pub type StreamId = (u64, u64);

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stream {
    pub entries: BTreeMap<StreamId, Fields>,
    pub last_id: StreamId,
    pub max_deleted: StreamId,
    pub entries_added: u64,
    pub groups: BTreeMap<Vec<u8>, Group>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Group {
    pub last_id: StreamId,
    /// `None`: unknown.
    pub entries_read: Option<u64>,
    pub pending: BTreeMap<StreamId, Pending>,
    /// When each consumer was seen last, Unix milliseconds.
    pub consumers: BTreeMap<Vec<u8>, u64>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Pending {
    pub consumer: Vec<u8>,
    pub delivered_at_ms: u64,
    pub deliveries: u64,
}

impl Value {
    /// A hash whose fields have all expired.
    pub fn is_hollow(&self, now_ms: i64) -> bool {
        let gone = |field: &Field| field.expire_at_s.is_some_and(|at| at <= now_ms / 1000);
        matches!(self, Self::Hash(fields) if !fields.is_empty() && fields.values().all(gone))
    }

    fn of(entry: &Entry) -> Option<Self> {
        let count = entry.group.elements;
        let element = |j| {
            let mut text = Vec::new();
            entry.element(j, &mut text);
            text
        };
        let field_value = |j| {
            let mut text = Vec::new();
            entry.field_value(j, &mut text);
            text
        };
        let text = || {
            let mut text = Vec::new();
            entry.text(&mut text);
            text
        };
        Some(match entry.group.kind {
            Kind::String | Kind::Int => Self::String(text()),
            Kind::Json => Self::Json(text()),
            Kind::List => Self::List((0..count).map(element).collect()),
            Kind::Set | Kind::Intset => Self::Set((0..count).map(element).collect()),
            Kind::SetTtl => Self::Set((0..count).filter(|j| !entry.element_expired(*j)).map(element).collect()),
            Kind::Zset => Self::Zset((0..count).map(|j| (element(j), entry.score(j))).collect()),
            Kind::Hash | Kind::HashTtl => {
                let timed = entry.group.kind == Kind::HashTtl;
                let alive = (0..count).filter(|j| !timed || !entry.element_expired(*j));
                let expiry = |j| if timed { entry.element_expire_at_s(j) } else { None };
                let field = |j| (element(j), Field { value: field_value(j), expire_at_s: expiry(j) });
                Self::Hash(alive.map(field).collect())
            }
            Kind::Stream => Self::Stream(Box::new(Stream::of(entry, field_value))),
            Kind::Bloom | Kind::Cms | Kind::TopK | Kind::Cuckoo => return None,
        })
    }

    /// TYPE's answer.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::String(_) => "string",
            Self::Json(_) => "ReJSON-RL",
            Self::List(_) => "list",
            Self::Set(_) => "set",
            Self::Hash(_) => "hash",
            Self::Zset(_) => "zset",
            Self::Stream(_) => "stream",
        }
    }

    /// A collection without elements, which is removed (a stream stays).
    pub fn is_empty(&self) -> bool {
        match self {
            Self::List(items) => items.is_empty(),
            Self::Set(members) => members.is_empty(),
            Self::Hash(fields) => fields.is_empty(),
            Self::Zset(scores) => scores.is_empty(),
            Self::String(_) | Self::Json(_) | Self::Stream(_) => false,
        }
    }
}

impl Stream {
    fn of(entry: &Entry, value: impl Fn(u64) -> Vec<u8>) -> Self {
        let count = entry.group.elements;
        let mut stream = Self { entries_added: count, ..Self::default() };
        for j in 0..count {
            stream.last_id = entry.stream_id(j);
            if entry.stream_deleted(j) {
                stream.max_deleted = entry.stream_id(j);
                continue;
            }
            let names = entry.stream_fields(j).iter().enumerate();
            let fields = names.map(|(k, name)| (name.as_bytes().to_vec(), value(j * 2 + k as u64))).collect();
            stream.entries.insert(entry.stream_id(j), fields);
        }
        let past = crate::lab::generate::entry::PAST_MS as u64;
        for group in 0..entry.stream_groups_count() {
            let pending = entry.stream_pending().map(|(j, deliveries)| {
                let consumer = b"consumer-0".to_vec();
                (entry.stream_id(j), Pending { consumer, delivered_at_ms: past + j, deliveries })
            });
            let group_state = Group {
                last_id: stream.last_id,
                // The second group does not know how much it has read.
                entries_read: (group == 0).then_some(count),
                pending: pending.collect(),
                consumers: (0..2).map(|c| (format!("consumer-{c}").into_bytes(), past)).collect(),
            };
            stream.groups.insert(format!("group-{group}").into_bytes(), group_state);
        }
        stream
    }

    pub fn first_id(&self) -> StreamId {
        self.entries.first_key_value().map_or((0, 0), |(id, _)| *id)
    }
}

/// `ms-seq`.
pub fn id_text(id: StreamId) -> Vec<u8> {
    format!("{}-{}", id.0, id.1).into_bytes()
}
