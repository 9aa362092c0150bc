//! One look at a few keys: read at both sides through ordinary commands and compared.
//!
//! In: a database and keys. Out: one [`Verdict`] a key. Small values are read whole, many in one exchange; large ones go to
//! [`super::paged`], streams to [`super::stream`]. What is read at the two sides is not of one moment: a difference found
//! here is a suspicion, judged by [`super::suspects`]. Memory: one exchange's answers of each side, bounded by the peers.

use super::difference::{ELEMENTS_MAX, Element, Item, Kind};
use super::fields;
use super::image::Image;
use super::names::Names;
use super::peer::{AskError, Peer, number, shown};
use super::rate::Bucket;
use super::wire::Commands;
use crate::convert::Policy;
use crate::engine::error::EngineError;
use crate::redis::value::Value;
use std::time::Instant;

mod meta;

use meta::Meta;

/// Longest string, and most elements of a collection, that are read whole.
const SMALL_BYTES_MAX: u64 = 64 * 1024;
const SMALL_ELEMENTS_MAX: u64 = 256;
/// Most strings' bytes, and most elements, asked for in one exchange.
const CHUNK_WEIGHT_MAX: u64 = 1024 * 1024;
/// What an element weighs, its length unknown.
const ELEMENT_WEIGHT: u64 = 128;
/// Elements of a large collection that are read for as much as one key.
pub const ELEMENTS_A_KEY: u64 = 100;

/// What one look at a key found.
#[derive(Debug)]
pub enum Verdict {
    Equal,
    /// Neither side has it.
    Gone,
    /// The target cannot hold it, and was not meant to.
    NotCarried,
    Differs(Box<Found>),
    NotCompared {
        type_name: String,
        reason: String,
    },
}

/// What one side holds, as far as it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Equal values have equal prints; none: not read as a whole.
    pub print: Option<u64>,
    pub expire_at_ms: Option<i64>,
}

/// A suspicion.
#[derive(Debug)]
pub struct Found {
    pub type_name: String,
    pub items: Vec<Item>,
    pub source: State,
    pub target: State,
    /// Elements of a collection that differ, beside what `items` says; there may be more if not `complete`.
    pub elements: Vec<Element>,
    pub complete: bool,
}

impl Found {
    pub fn new(type_name: &str, items: Vec<Item>) -> Box<Self> {
        let (source, target) = (State::default(), State::default());
        Box::new(Self { type_name: type_name.into(), items, source, target, elements: Vec::new(), complete: true })
    }
}

/// The print of a key that is not there.
pub const ABSENT: u64 = 0;

/// Both sides, and how they are compared.
pub struct Looker {
    pub source: Peer,
    pub target: Peer,
    /// Expiries nearer than this are equal.
    pub tolerance_ms: i64,
    pub policy: Policy,
    pub names: Names,
    /// Else it is only compared which keys there are, and of which type.
    pub values: bool,
    pub bucket: Bucket,
    pub started: Instant,
    /// Bytes received from the source that the bucket knows of.
    pub bytes_paced: u64,
    /// Elements read of large collections, of which no full hundred is paid for.
    pub elements_unpaid: u64,
}

/// A key whose value is to be read, with the larger of its sizes.
struct Open {
    at: usize,
    type_name: String,
    size: u64,
}

impl Looker {
    /// Looks at keys of one database.
    pub async fn look(&mut self, db: u32, keys: &[Vec<u8>]) -> Result<Vec<Verdict>, EngineError> {
        let (sources, targets) = self.metas(db, keys).await?;
        let mut verdicts: Vec<Option<Verdict>> = Vec::with_capacity(keys.len());
        let mut open = Vec::new();
        for (at, (key, (source, target))) in keys.iter().zip(sources.iter().zip(&targets)).enumerate() {
            let carried = |meta: &Meta| self.names.admits_type(db, key, &meta.type_name);
            let verdict = match (source, target) {
                (Some(source), _) if !carried(source) => Some(Verdict::NotCarried),
                // The target's own.
                (None, Some(target)) if !carried(target) => Some(Verdict::Gone),
                _ => self.judge_meta(source.as_ref(), target.as_ref()),
            };
            if let (None, Some(source)) = (&verdict, source) {
                open.push(Open { at, type_name: source.type_name.clone(), size: 0 });
            }
            verdicts.push(verdict);
        }
        super::hollow::settle(self, db, keys, &mut verdicts).await?;
        if !self.values {
            self.pace(keys.len() as u64).await;
            let both = || Verdict::Equal;
            return Ok(verdicts.into_iter().map(|verdict| verdict.unwrap_or_else(both)).collect());
        }
        self.sizes(db, keys, &mut open).await?;
        let (small, large): (Vec<Open>, Vec<Open>) = open.into_iter().partition(is_small);
        let mut found = Vec::new();
        for chunk in chunks(small) {
            found.extend(self.small(db, keys, chunk).await?);
        }
        for Open { at, type_name, .. } in large {
            let Some(key) = keys.get(at) else { continue };
            found.push((at, self.large(db, key, &type_name).await?));
        }
        for (at, mut verdict) in found {
            if let (Some(source), Some(target)) =
                (sources.get(at).cloned().flatten(), targets.get(at).cloned().flatten())
            {
                self.add_expiry(&mut verdict, &source, &target);
            }
            if let Some(place) = verdicts.get_mut(at) {
                *place = Some(verdict);
            }
        }
        self.pace(keys.len() as u64).await;
        Ok(verdicts.into_iter().map(|verdict| verdict.unwrap_or(Verdict::Gone)).collect())
    }

    /// Which of these keys the source has.
    pub async fn exist_at_source(&mut self, db: u32, keys: &[Vec<u8>]) -> Result<Vec<bool>, EngineError> {
        let mut commands = Commands::new();
        keys.iter().for_each(|key| commands.push(&[b"EXISTS", key]));
        let replies = self.source.ask(db, &commands).await.map_err(|error| self.source.engine(error))?;
        self.pace(keys.len() as u64).await;
        replies
            .iter()
            .map(|reply| match reply {
                Value::Integer(n) => Ok(*n > 0),
                other => Err(self.source.said(0, &format!("EXISTS was answered with {}", shown(other)))),
            })
            .collect()
    }

    /// Waits as the rate limit wants after so many keys.
    pub async fn pace(&mut self, keys: u64) {
        let bytes = self.source.bytes_received - self.bytes_paced;
        self.bytes_paced = self.source.bytes_received;
        let wait = self.bucket.take(keys, bytes, self.started.elapsed());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// The same after elements of a large collection.
    pub async fn pace_elements(&mut self, elements: u64) {
        self.elements_unpaid += elements;
        let keys = self.elements_unpaid / ELEMENTS_A_KEY;
        self.elements_unpaid %= ELEMENTS_A_KEY;
        self.pace(keys).await;
    }

    /// The same commands at both sides at once.
    pub async fn both(&mut self, db: u32, commands: &Commands) -> Result<(Vec<Value>, Vec<Value>), AskError> {
        self.each(db, commands, commands).await
    }

    pub async fn each(
        &mut self,
        db: u32,
        at_source: &Commands,
        at_target: &Commands,
    ) -> Result<(Vec<Value>, Vec<Value>), AskError> {
        let (source, target) = tokio::join!(self.source.ask(db, at_source), self.target.ask(db, at_target));
        // Bounds are the same on both sides; an error proper goes before a wish for less.
        match (source, target) {
            (Ok(source), Ok(target)) => Ok((source, target)),
            (Err(AskError::Engine(error)), _) | (_, Err(AskError::Engine(error))) => Err(AskError::Engine(error)),
            _ => Err(AskError::TooLarge),
        }
    }

    async fn sizes(&mut self, db: u32, keys: &[Vec<u8>], open: &mut [Open]) -> Result<(), EngineError> {
        let mut commands = Commands::new();
        let mut asked = Vec::new();
        for (index, key) in open.iter().enumerate() {
            // Streams and documents are read key by key anyway.
            if let (Some(command), Some(name)) = (size_command(&key.type_name), keys.get(key.at))
                && key.type_name != "stream"
            {
                commands.push(&[command, name]);
                asked.push(index);
            }
        }
        let (source, target) = self.both(db, &commands).await.map_err(|error| self.source.engine(error))?;
        for (index, (source, target)) in asked.into_iter().zip(source.iter().zip(&target)) {
            let size = |value: &Value| number(value).and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
            if let Some(key) = open.get_mut(index) {
                key.size = size(source).max(size(target));
            }
        }
        Ok(())
    }

    /// Values that are read whole.
    async fn small(
        &mut self,
        db: u32,
        keys: &[Vec<u8>],
        open: Vec<Open>,
    ) -> Result<Vec<(usize, Verdict)>, EngineError> {
        let mut commands = Commands::new();
        for key in &open {
            push_read(&mut commands, &key.type_name, keys.get(key.at).map_or(&[], Vec::as_slice));
        }
        let (source, target) = match self.both(db, &commands).await {
            Ok(replies) => replies,
            Err(AskError::TooLarge) => {
                let mut verdicts = Vec::new();
                for Open { at, type_name, .. } in open {
                    if let Some(key) = keys.get(at) {
                        verdicts.push((at, self.large(db, key, &type_name).await?));
                    }
                }
                return Ok(verdicts);
            }
            Err(AskError::Engine(error)) => return Err(error),
        };
        let mut verdicts = Vec::new();
        let mut hashes = Vec::new();
        for (Open { at, type_name, .. }, (source, target)) in open.into_iter().zip(source.into_iter().zip(target)) {
            for reply in [&source, &target] {
                self.check_read(reply)?;
            }
            let images = (Image::of_reply(&type_name, source), Image::of_reply(&type_name, target));
            if let (Some(source), Some(_)) = &images
                && type_name == "hash"
            {
                hashes.push((verdicts.len(), source.fields()));
            }
            verdicts.push((at, verdict_of(&type_name, images)));
        }
        self.small_fields(db, keys, &mut verdicts, hashes).await?;
        Ok(verdicts)
    }

    /// The expiries of the fields of small hashes; `hashes`: index of the verdict, and fields.
    async fn small_fields(
        &mut self,
        db: u32,
        keys: &[Vec<u8>],
        verdicts: &mut [(usize, Verdict)],
        hashes: Vec<(usize, Vec<Vec<u8>>)>,
    ) -> Result<(), EngineError> {
        if !fields::comparable(self) {
            return Ok(());
        }
        let mut wanted = Vec::new();
        for (index, fields) in hashes {
            if let Some(key) = verdicts.get(index).and_then(|(at, _)| keys.get(*at)) {
                wanted.push((index, key.clone(), fields));
            }
        }
        let of: Vec<_> = wanted.iter().map(|(_, key, fields)| (key.as_slice(), fields.as_slice())).collect();
        let elements = fields::compare(self, db, &of).await.map_err(|error| self.source.engine(error))?;
        for ((index, ..), elements) in wanted.iter().zip(elements) {
            if let Some((_, verdict)) = verdicts.get_mut(*index)
                && !elements.is_empty()
            {
                match verdict {
                    Verdict::Differs(found) => found.elements.extend(elements),
                    verdict => {
                        let mut found = Found::new("hash", Vec::new());
                        found.elements = elements;
                        *verdict = Verdict::Differs(found);
                    }
                }
            }
        }
        Ok(())
    }

    /// A value that is read in pages, or in several questions.
    async fn large(&mut self, db: u32, key: &[u8], type_name: &str) -> Result<Verdict, EngineError> {
        let result = match type_name {
            "stream" => super::stream::compare(self, db, key).await,
            JSON_TYPE => super::json::compare(self, db, key).await,
            _ => super::paged::compare(self, db, key, type_name).await,
        };
        match result {
            Err(AskError::TooLarge) => Ok(Verdict::NotCompared {
                type_name: type_name.into(),
                reason: "one of its elements takes more memory than allowed; run again with more --memory".into(),
            }),
            Err(AskError::Engine(error)) => Err(error),
            Ok(verdict) => Ok(verdict),
        }
    }

    /// Error replies to reads: a type that changed meanwhile is a suspicion, everything else the end.
    pub fn check_read(&self, reply: &Value) -> Result<(), EngineError> {
        match reply {
            Value::Error(text) if text.starts_with(b"WRONGTYPE") => Ok(()),
            Value::Error(text) => Err(EngineError::Refused(format!(
                "a server answered a read with \"{}\"; see README.md for the permissions that verify needs",
                text.escape_ascii()
            ))),
            _ => Ok(()),
        }
    }
}

pub const JSON_TYPE: &str = "ReJSON-RL";

/// The value was not there, or another, when it was read.
pub fn changed(type_name: &str) -> Verdict {
    Verdict::Differs(Found::new(type_name, vec![Item::new(Kind::Value)]))
}

/// The verdict on two values read whole; none: it was something else when it was read.
pub fn verdict_of(type_name: &str, images: (Option<Image>, Option<Image>)) -> Verdict {
    let (Some(source), Some(target)) = images else { return changed(type_name) };
    let (elements, items) = source.differences(&target);
    if items.is_empty() && elements.is_empty() {
        return Verdict::Equal;
    }
    let mut found = Found::new(type_name, items);
    found.complete = elements.len() < ELEMENTS_MAX;
    found.elements = elements;
    found.source.print = Some(source.print());
    found.target.print = Some(target.print());
    Verdict::Differs(found)
}

fn size_command(type_name: &str) -> Option<&'static [u8]> {
    Some(match type_name {
        "string" => b"STRLEN",
        "list" => b"LLEN",
        "set" => b"SCARD",
        "hash" => b"HLEN",
        "zset" => b"ZCARD",
        "stream" => b"XLEN",
        _ => return None,
    })
}

fn push_read(commands: &mut Commands, type_name: &str, key: &[u8]) {
    match type_name {
        "list" => commands.push(&[b"LRANGE", key, b"0", b"-1"]),
        "set" => commands.push(&[b"SMEMBERS", key]),
        "hash" => commands.push(&[b"HGETALL", key]),
        "zset" => commands.push(&[b"ZRANGE", key, b"0", b"-1", b"WITHSCORES"]),
        _ => commands.push(&[b"GET", key]),
    }
}

fn is_small(key: &Open) -> bool {
    match key.type_name.as_str() {
        "string" => key.size <= SMALL_BYTES_MAX,
        "stream" | JSON_TYPE => false,
        _ => key.size <= SMALL_ELEMENTS_MAX,
    }
}

/// Cuts small keys into what one exchange asks for.
fn chunks(keys: Vec<Open>) -> Vec<Vec<Open>> {
    let mut chunks = Vec::new();
    let (mut chunk, mut weight) = (Vec::new(), 0);
    for key in keys {
        weight += if key.type_name == "string" { key.size } else { key.size * ELEMENT_WEIGHT };
        chunk.push(key);
        if weight >= CHUNK_WEIGHT_MAX {
            chunks.push(std::mem::take(&mut chunk));
            weight = 0;
        }
    }
    if !chunk.is_empty() {
        chunks.push(chunk);
    }
    chunks
}
