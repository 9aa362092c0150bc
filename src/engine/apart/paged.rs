//! Values that are too long for one reply, or for the memory of a transaction: copied to another slot page by page.
//!
//! In: a key, a name of the tool's own in another slot. Out: the value under that name, without the key's expiry, with those of
//! a hash's fields. The flow is held, so nobody changes the key meanwhile; yet a slot may move, which takes the meaning from
//! a cursor, and a connection may be lost behind a push. So a copy whose fate is not known, or that has not as many elements
//! in the end, is begun anew. One that a kill leaves behind has the name that the next try gives it.

use super::{answered, no_answer};
use crate::engine::cluster::{Cluster, Trouble};
use crate::engine::error::EngineError;
use crate::engine::refusal;
use crate::engine::verify::scan_reply;
use crate::redis::resp;
use crate::redis::slot::slot;
use crate::redis::value::Value;

/// Bytes that a page should have.
const PAGE_BYTES: usize = 1 << 20;
const PAGE_COUNT_FIRST: u64 = 64;
const PAGE_COUNT_MAX: u64 = 4096;
/// Copies that are begun of one value.
const TRIES_MAX: u32 = 20;

/// How many elements to ask for.
struct Page(u64);

impl Page {
    fn adapt(&mut self, bytes: usize) {
        if bytes < PAGE_BYTES / 2 {
            self.0 = (self.0 * 2).min(PAGE_COUNT_MAX);
        } else if bytes > 2 * PAGE_BYTES {
            self.0 = (self.0 / 2).max(1);
        }
    }

    /// Whether a smaller page can be tried.
    fn shrink(&mut self) -> bool {
        let smaller = self.0 > 1;
        self.0 = (self.0 / 8).max(1);
        smaller
    }
}

impl Cluster {
    /// Copies the value of `key` to `to`, whatever stands there.
    pub(super) async fn copy_in_pages(&mut self, key: &[u8], to: &[u8]) -> Result<(), EngineError> {
        let kind = self.ask(&[b"TYPE", key]).await?.text().unwrap_or_default().to_string();
        let size: &[u8] = match kind.as_str() {
            "string" => b"STRLEN",
            "list" => b"LLEN",
            "set" => b"SCARD",
            "hash" => b"HLEN",
            "zset" => b"ZCARD",
            _ => {
                return Err(EngineError::Refused(format!(
                    "its value, a {kind}, is too long for one answer, and only strings, lists, sets, hashes and sorted sets are \
                     copied in pages"
                )));
            }
        };
        let mut patience = self.patience();
        for _ in 0..TRIES_MAX {
            self.ask(&[b"UNLINK", to]).await?;
            let is_whole = match kind.as_str() {
                "string" => self.copy_string(key, to).await?,
                "list" => self.copy_ranges(key, to, b"LRANGE", b"RPUSH").await?,
                "zset" => self.copy_ranges(key, to, b"ZRANGE", b"ZADD").await?,
                "set" => self.copy_scanned(key, to, b"SSCAN", b"SADD").await?,
                _ => self.copy_scanned(key, to, b"HSCAN", b"HSET").await?,
            };
            if is_whole && self.ask(&[size, key]).await? == self.ask(&[size, to]).await? {
                return Ok(());
            }
            patience.wait("a copy of a long value was disturbed").await?;
        }
        Err(EngineError::Target(format!("its value could not be copied to another slot in {TRIES_MAX} tries")))
    }

    async fn copy_string(&mut self, key: &[u8], to: &[u8]) -> Result<bool, EngineError> {
        let mut at = 0;
        loop {
            let (first, last) = (at.to_string(), (at + PAGE_BYTES - 1).to_string());
            let piece = match self.ask(&[b"GETRANGE", key, first.as_bytes(), last.as_bytes()]).await? {
                Value::Bulk(piece) => piece,
                other => return Err(no_answer("GETRANGE", &other)),
            };
            if piece.is_empty() {
                return Ok(true);
            }
            if !self.put(&[b"SETRANGE", to, first.as_bytes(), &piece]).await? {
                return Ok(false);
            }
            at += piece.len();
        }
    }

    /// A list, or a sorted set: by positions.
    async fn copy_ranges(&mut self, key: &[u8], to: &[u8], get: &[u8], put: &[u8]) -> Result<bool, EngineError> {
        let (mut page, mut at) = (Page(PAGE_COUNT_FIRST), 0u64);
        let scored = get == b"ZRANGE";
        loop {
            let (first, last) = (at.to_string(), (at + page.0 - 1).to_string());
            let mut question: Vec<&[u8]> = vec![get, key, first.as_bytes(), last.as_bytes()];
            if scored {
                question.push(b"WITHSCORES");
            }
            let values = match self.ask(&question).await {
                Err(EngineError::TooLong(_)) if page.shrink() => continue,
                values => values?,
            };
            let name = if scored { "ZRANGE" } else { "LRANGE" };
            let mut texts: Vec<&[u8]> = values
                .array()
                .ok_or_else(|| no_answer(name, &values))?
                .iter()
                .map(|value| value.bytes().unwrap_or_default())
                .collect();
            if texts.is_empty() {
                return Ok(true);
            }
            at += texts.len() as u64 / if scored { 2 } else { 1 };
            page.adapt(texts.iter().map(|text| text.len()).sum());
            if scored {
                // Members come before their scores, and go behind them.
                texts.chunks_exact_mut(2).for_each(<[&[u8]]>::reverse);
            }
            let command: Vec<&[u8]> = [put, to].into_iter().chain(texts).collect();
            if !self.put(&command).await? {
                return Ok(false);
            }
        }
    }

    /// A set, or a hash.
    async fn copy_scanned(&mut self, key: &[u8], to: &[u8], get: &[u8], put: &[u8]) -> Result<bool, EngineError> {
        let (mut page, mut cursor) = (Page(PAGE_COUNT_FIRST), b"0".to_vec());
        loop {
            let count = page.0.to_string();
            let reply = match self.ask(&[get, key, &cursor, b"COUNT", count.as_bytes()]).await {
                Err(EngineError::TooLong(_)) if page.shrink() => continue,
                reply => reply?,
            };
            let Some((next, texts)) = scan_reply(reply) else { return Ok(false) };
            page.adapt(texts.iter().map(Vec::len).sum());
            if !texts.is_empty() {
                let command: Vec<&[u8]> = [put, to].into_iter().chain(texts.iter().map(Vec::as_slice)).collect();
                if !self.put(&command).await? {
                    return Ok(false);
                }
                let fields: Vec<&[u8]> = texts.iter().step_by(2).map(Vec::as_slice).collect();
                if get == b"HSCAN" && !self.copy_field_expiries(key, to, &fields).await? {
                    return Ok(false);
                }
            }
            if next == b"0" {
                return Ok(true);
            }
            cursor = next;
        }
    }

    async fn copy_field_expiries(&mut self, key: &[u8], to: &[u8], fields: &[&[u8]]) -> Result<bool, EngineError> {
        let count = fields.len().to_string();
        let question: Vec<&[u8]> =
            [b"HPEXPIRETIME", key, b"FIELDS", count.as_bytes()].into_iter().chain(fields.iter().copied()).collect();
        let times = match self.call(&question).await? {
            // Before Redis 7.4 and Valkey 9 fields do not expire.
            Value::Error(text) if memchr::memmem::find(&text, b"unknown command").is_some() => return Ok(true),
            Value::Error(text) => return Err(answered(&text)),
            times => times,
        };
        for (field, time) in fields.iter().zip(times.array().unwrap_or_default()) {
            let Value::Integer(at @ 0..) = time else { continue };
            if !self.put(&[b"HPEXPIREAT", to, at.to_string().as_bytes(), b"FIELDS", b"1", field]).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes, once. False: perhaps it was not executed.
    async fn put(&mut self, args: &[&[u8]]) -> Result<bool, EngineError> {
        let (slot, request) = (slot(args.get(1).copied().unwrap_or_default()), resp::command(args));
        let mut patience = self.patience();
        loop {
            match self.execute(slot, &request, 1).await {
                Ok(values) => match values.first() {
                    Some(Value::Error(text)) if refusal::refuses(text, false) => {
                        patience.wait(&format!("a node answers \"{}\"", text.escape_ascii())).await?;
                    }
                    Some(Value::Error(text)) => return Err(answered(text)),
                    _ => return Ok(true),
                },
                Err(Trouble::Broken(error)) => {
                    patience.wait(&error.to_string()).await?;
                    self.refresh_patiently().await?;
                    return Ok(false);
                }
                Err(Trouble::Final(error)) => return Err(error),
            }
        }
    }
}
