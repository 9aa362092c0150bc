//! Commands that only read, answered from the live source's data.

use super::data::{Data, page, place};
use super::dump;
use super::exec::{
    Args, Outcome, SYNTAX, WRONG_TYPE, arg, border, bulk, index, int, integer, score_text, slice, sorted, word,
};
use super::value::{Field, Group, Object, Stream, StreamId, Value, id_text};
use crate::lab::client::Reply;
use std::collections::BTreeMap;

/// The answer, or `None` for a command that this simulation does not know. `name` in upper case.
pub fn read(data: &Data, db: u32, now_ms: i64, name: &str, args: &Args) -> Option<Outcome> {
    Reader { data, db, now_ms }.answer(name, args).transpose()
}

/// Whether the command goes over the members of a collection, and finds out that they have expired.
pub fn looks_into(name: &str) -> bool {
    matches!(name, "HGET" | "HMGET" | "HKEYS" | "HGETALL" | "HSCAN" | "FIELDTTL")
}

struct Reader<'a> {
    data: &'a Data,
    db: u32,
    now_ms: i64,
}

/// Binds the value of one type, or leaves with the answer for a missing key.
macro_rules! value_of {
    ($self:ident, $key:expr, $variant:ident, $missing:expr) => {
        match $self.object($key).map(|object| &object.value) {
            None => return Ok(Some($missing)),
            Some(Value::$variant(value)) => value,
            Some(_) => return Err(WRONG_TYPE.into()),
        }
    };
}

impl<'a> Reader<'a> {
    fn answer(&self, name: &str, args: &Args) -> Result<Option<Reply>, String> {
        let empty = || Reply::Array(Vec::new());
        let bulks = |parts: Vec<Vec<u8>>| Reply::Array(parts.into_iter().map(Reply::Bulk).collect());
        let reply: Outcome = match name {
            "DBSIZE" => int(self.data.len(self.db)),
            // Integers, unlike Redis.
            "TIME" => Ok(Reply::Array(vec![Reply::Int(self.now_ms / 1000), Reply::Int(self.now_ms % 1000 * 1000)])),
            "EXISTS" => int(args[1..].iter().filter(|key| self.object(key).is_some()).count()),
            "TYPE" => {
                let object = self.object(arg(args, 1)?);
                Ok(Reply::Status(object.map_or("none", |object| object.value.type_name()).into()))
            }
            "PTTL" | "TTL" | "PEXPIRETIME" | "EXPIRETIME" => Ok(Reply::Int(self.time_left(name, arg(args, 1)?))),
            "SCAN" => self.scan(args),
            "DUMP" => bulk(self.object(arg(args, 1)?).map(|object| dump::payload(&object.value))),
            "GET" => bulk(Some(value_of!(self, arg(args, 1)?, String, Reply::Nil).clone())),
            "STRLEN" => int(value_of!(self, arg(args, 1)?, String, Reply::Int(0)).len()),
            "GETRANGE" | "SUBSTR" => {
                let text = value_of!(self, arg(args, 1)?, String, Reply::Bulk(Vec::new()));
                let range = slice(integer(arg(args, 2)?)?, integer(arg(args, 3)?)?, text.len());
                bulk(Some(text[range].to_vec()))
            }
            "MGET" => {
                let get = |key: &Vec<u8>| match self.object(key).map(|object| &object.value) {
                    Some(Value::String(text)) => Reply::Bulk(text.clone()),
                    _ => Reply::Nil,
                };
                Ok(Reply::Array(args[1..].iter().map(get).collect()))
            }
            "JSON.GET" => bulk(Some(value_of!(self, arg(args, 1)?, Json, Reply::Nil).clone())),
            "LLEN" => int(value_of!(self, arg(args, 1)?, List, Reply::Int(0)).len()),
            "LRANGE" => {
                let items = value_of!(self, arg(args, 1)?, List, empty());
                let range = slice(integer(arg(args, 2)?)?, integer(arg(args, 3)?)?, items.len());
                Ok(bulks(items.range(range).cloned().collect()))
            }
            "LINDEX" => {
                let items = value_of!(self, arg(args, 1)?, List, Reply::Nil);
                let at = usize::try_from(index(integer(arg(args, 2)?)?, items.len())).ok();
                bulk(at.and_then(|at| items.get(at)).cloned())
            }
            "SCARD" => int(value_of!(self, arg(args, 1)?, Set, Reply::Int(0)).len()),
            "SMEMBERS" => Ok(bulks(value_of!(self, arg(args, 1)?, Set, empty()).iter().cloned().collect())),
            "SISMEMBER" => int(usize::from(value_of!(self, arg(args, 1)?, Set, Reply::Int(0)).contains(arg(args, 2)?))),
            "SMISMEMBER" => {
                let none = Reply::Array(vec![Reply::Int(0); args.len().saturating_sub(2)]);
                let members = value_of!(self, arg(args, 1)?, Set, none);
                Ok(Reply::Array(args[2..].iter().map(|m| Reply::Int(i64::from(members.contains(m)))).collect()))
            }
            "SSCAN" => {
                let members = value_of!(self, arg(args, 1)?, Set, cursor_reply(0, Vec::new()));
                self.scan_members(args, members.iter(), |member| vec![member.to_vec()])
            }
            // Counts what has expired as well, as Dragonfly does.
            "HLEN" => int(value_of!(self, arg(args, 1)?, Hash, Reply::Int(0)).len()),
            "HGET" => {
                let fields = value_of!(self, arg(args, 1)?, Hash, Reply::Nil);
                bulk(fields.get(arg(args, 2)?).filter(|f| self.lives(f)).map(|field| field.value.clone()))
            }
            "HMGET" => {
                let none = Reply::Array(vec![Reply::Nil; args.len().saturating_sub(2)]);
                let fields = value_of!(self, arg(args, 1)?, Hash, none);
                let living = |name: &Vec<u8>| fields.get(name).filter(|f| self.lives(f));
                let get = |name: &Vec<u8>| living(name).map_or(Reply::Nil, |f| Reply::Bulk(f.value.clone()));
                Ok(Reply::Array(args[2..].iter().map(get).collect()))
            }
            "HKEYS" => {
                let fields = value_of!(self, arg(args, 1)?, Hash, empty());
                Ok(bulks(self.living(fields).map(|(name, _)| name.clone()).collect()))
            }
            "HGETALL" => {
                let fields = value_of!(self, arg(args, 1)?, Hash, empty());
                Ok(bulks(self.living(fields).flat_map(|(name, field)| [name.clone(), field.value.clone()]).collect()))
            }
            "HSCAN" => {
                let fields = value_of!(self, arg(args, 1)?, Hash, cursor_reply(0, Vec::new()));
                let names = self.living(fields).map(|(name, _)| name);
                self.scan_members(args, names, |name| vec![name.to_vec(), fields[name].value.clone()])
            }
            // Seconds that a field has left; of members nothing is known here.
            "FIELDTTL" => {
                let fields = match self.object(arg(args, 1)?).map(|object| &object.value) {
                    Some(Value::Hash(fields)) => fields,
                    _ => return Ok(Some(Reply::Int(-2))),
                };
                let field = fields.get(arg(args, 2)?).filter(|f| self.lives(f));
                let left = field.map(|f| f.expire_at_s.map_or(-1, |at| (at - self.now_ms / 1000).max(0)));
                Ok(Reply::Int(left.unwrap_or(-3)))
            }
            // As newer releases tell it: Unix milliseconds, whole seconds all the same.
            "HPEXPIRETIME" => {
                let names = args.get(4..).unwrap_or_default();
                if word(args, 2) != "FIELDS" || integer(arg(args, 3)?)? != names.len() as i64 {
                    return Err(SYNTAX.into());
                }
                let fields = value_of!(self, arg(args, 1)?, Hash, Reply::Array(vec![Reply::Int(-2); names.len()]));
                let told = |f: &Field| f.expire_at_s.map_or(-1, |at| at * 1000);
                let get = |name: &Vec<u8>| Reply::Int(fields.get(name).filter(|f| self.lives(f)).map_or(-2, told));
                Ok(Reply::Array(names.iter().map(get).collect()))
            }
            "ZCARD" => int(value_of!(self, arg(args, 1)?, Zset, Reply::Int(0)).len()),
            "ZSCORE" => {
                let scores = value_of!(self, arg(args, 1)?, Zset, Reply::Nil);
                bulk(scores.get(arg(args, 2)?).map(|score| score_text(*score)))
            }
            "ZMSCORE" => {
                let none = Reply::Array(vec![Reply::Nil; args.len().saturating_sub(2)]);
                let scores = value_of!(self, arg(args, 1)?, Zset, none);
                let get = |m: &Vec<u8>| scores.get(m).map_or(Reply::Nil, |score| Reply::Bulk(score_text(*score)));
                Ok(Reply::Array(args[2..].iter().map(get).collect()))
            }
            "ZRANGE" => {
                let scores = value_of!(self, arg(args, 1)?, Zset, empty());
                let range = slice(integer(arg(args, 2)?)?, integer(arg(args, 3)?)?, scores.len());
                let with = word(args, 4) == "WITHSCORES";
                let sorted = sorted(scores);
                let parts = sorted[range].iter().flat_map(|(member, score)| {
                    std::iter::once(member.to_vec()).chain(with.then(|| score_text(*score)))
                });
                Ok(bulks(parts.collect()))
            }
            "ZSCAN" => {
                let scores = value_of!(self, arg(args, 1)?, Zset, cursor_reply(0, Vec::new()));
                self.scan_members(args, scores.keys(), |member| vec![member.to_vec(), score_text(scores[member])])
            }
            "XLEN" => int(value_of!(self, arg(args, 1)?, Stream, Reply::Int(0)).entries.len()),
            "XRANGE" => xrange(value_of!(self, arg(args, 1)?, Stream, empty()), args),
            "XINFO" => match self.object(arg(args, 2)?).map(|object| &object.value) {
                None => Err("ERR no such key".into()),
                Some(Value::Stream(stream)) => self.xinfo(stream, args),
                Some(_) => Err(WRONG_TYPE.into()),
            },
            "XPENDING" => {
                let stream = value_of!(self, arg(args, 1)?, Stream, empty());
                let group = stream.groups.get(arg(args, 2)?).ok_or("NOGROUP No such key or consumer group")?;
                self.xpending(group, args)
            }
            _ => return Ok(None),
        };
        reply.map(Some)
    }

    fn object(&self, key: &[u8]) -> Option<&'a Object> {
        self.data.get(self.db, key)
    }

    /// A field that has expired is not seen, but its key is, be it the last one: TYPE, SCAN and DBSIZE do not look inside.
    fn lives(&self, field: &Field) -> bool {
        field.expire_at_s.is_none_or(|at| at > self.now_ms / 1000)
    }

    fn living(&self, fields: &'a BTreeMap<Vec<u8>, Field>) -> impl Iterator<Item = (&'a Vec<u8>, &'a Field)> {
        fields.iter().filter(|(_, field)| self.lives(field))
    }

    fn time_left(&self, name: &str, key: &[u8]) -> i64 {
        let Some(object) = self.object(key) else { return -2 };
        let Some(at) = object.expire_at_ms else { return -1 };
        match name {
            "PTTL" => at - self.now_ms,
            "TTL" => (at - self.now_ms + 500) / 1000,
            "PEXPIRETIME" => at,
            _ => at / 1000,
        }
    }

    /// `SCAN cursor [COUNT n] [MATCH prefix*] [TYPE t]`.
    fn scan(&self, args: &Args) -> Outcome {
        let cursor = cursor_of(arg(args, 1)?)?;
        let (next, keys) = self.data.scan(self.db, cursor, option(args, "COUNT", 10)?);
        let pattern = option_text(args, "MATCH");
        let wanted_type = option_text(args, "TYPE").map(<[u8]>::to_ascii_lowercase);
        let of_type = |key: &[u8]| match (&wanted_type, self.object(key)) {
            (Some(wanted), Some(object)) => object.value.type_name().as_bytes().eq_ignore_ascii_case(wanted),
            _ => true,
        };
        let keys = keys.into_iter().filter(|key| pattern.is_none_or(|p| matches(p, key)) && of_type(key));
        Ok(cursor_reply(next, keys.map(<[u8]>::to_vec).collect()))
    }

    fn scan_members<'b>(
        &self,
        args: &Args,
        members: impl Iterator<Item = &'b Vec<u8>>,
        parts: impl Fn(&[u8]) -> Vec<Vec<u8>>,
    ) -> Outcome {
        let cursor = cursor_of(arg(args, 2)?)?;
        let mut ordered: Vec<(u64, &[u8])> =
            members.map(|m| (place(m), m.as_slice())).filter(|(at, _)| *at >= cursor).collect();
        ordered.sort_unstable();
        let (next, found) = page(ordered.into_iter(), option(args, "COUNT", 10)?);
        Ok(cursor_reply(next, found.into_iter().flat_map(parts).collect()))
    }

    fn xinfo(&self, stream: &Stream, args: &Args) -> Outcome {
        let id = |id: StreamId| Reply::Bulk(id_text(id));
        let number = |n: u64| Reply::Int(n as i64);
        match word(args, 1).as_str() {
            "STREAM" => Ok(pairs(vec![
                ("length", number(stream.entries.len() as u64)),
                ("last-generated-id", id(stream.last_id)),
                ("max-deleted-entry-id", id(stream.max_deleted)),
                ("entries-added", number(stream.entries_added)),
                ("recorded-first-entry-id", id(stream.first_id())),
                ("groups", number(stream.groups.len() as u64)),
            ])),
            "GROUPS" => {
                let row = |(name, group): (&Vec<u8>, &Group)| {
                    pairs(vec![
                        ("name", Reply::Bulk(name.clone())),
                        ("consumers", number(group.consumers.len() as u64)),
                        ("pending", number(group.pending.len() as u64)),
                        ("last-delivered-id", id(group.last_id)),
                        ("entries-read", group.entries_read.map_or(Reply::Nil, number)),
                        (
                            "lag",
                            group
                                .entries_read
                                .map_or(Reply::Nil, |n| number(stream.entries_added - n.min(stream.entries_added))),
                        ),
                    ])
                };
                Ok(Reply::Array(stream.groups.iter().map(row).collect()))
            }
            "CONSUMERS" => {
                let group = stream.groups.get(arg(args, 3)?).ok_or("NOGROUP No such consumer group")?;
                let row = |(name, seen): (&Vec<u8>, &u64)| {
                    let idle = number((self.now_ms as u64).saturating_sub(*seen));
                    let own = group.pending.values().filter(|pending| pending.consumer == *name).count();
                    pairs(vec![
                        ("name", Reply::Bulk(name.clone())),
                        ("pending", number(own as u64)),
                        ("idle", idle.clone()),
                        ("inactive", idle),
                    ])
                };
                Ok(Reply::Array(group.consumers.iter().map(row).collect()))
            }
            _ => Err(SYNTAX.into()),
        }
    }

    /// The form with a range: `XPENDING key group - + count`.
    fn xpending(&self, group: &Group, args: &Args) -> Outcome {
        let (from, to) = (border(arg(args, 3)?, false)?, border(arg(args, 4)?, true)?);
        let count = integer(arg(args, 5)?)?.max(0) as usize;
        let found = group.pending.range(from..=to).take(count).map(|(id, pending)| {
            let idle = (self.now_ms as u64).saturating_sub(pending.delivered_at_ms);
            Reply::Array(vec![
                Reply::Bulk(id_text(*id)),
                Reply::Bulk(pending.consumer.clone()),
                Reply::Int(idle as i64),
                Reply::Int(pending.deliveries as i64),
            ])
        });
        Ok(Reply::Array(found.collect()))
    }
}

/// `XRANGE key from to [COUNT n]`.
fn xrange(stream: &Stream, args: &Args) -> Outcome {
    let from = match arg(args, 2)?.strip_prefix(b"(") {
        Some(text) => {
            let (ms, seq) = border(text, false)?;
            if seq == u64::MAX { (ms + 1, 0) } else { (ms, seq + 1) }
        }
        None => border(arg(args, 2)?, false)?,
    };
    let to = border(arg(args, 3)?, true)?;
    if from > to {
        return Ok(Reply::Array(Vec::new()));
    }
    let found = stream.entries.range(from..=to).take(option(args, "COUNT", usize::MAX)?).map(|(id, fields)| {
        let flat = fields.iter().flat_map(|(name, value)| [name.clone(), value.clone()]).map(Reply::Bulk);
        Reply::Array(vec![Reply::Bulk(id_text(*id)), Reply::Array(flat.collect())])
    });
    Ok(Reply::Array(found.collect()))
}

fn pairs(pairs: Vec<(&str, Reply)>) -> Reply {
    Reply::Array(pairs.into_iter().flat_map(|(name, value)| [Reply::Bulk(name.as_bytes().to_vec()), value]).collect())
}

fn cursor_reply(next: u64, parts: Vec<Vec<u8>>) -> Reply {
    let parts = parts.into_iter().map(Reply::Bulk).collect();
    Reply::Array(vec![Reply::Bulk(next.to_string().into_bytes()), Reply::Array(parts)])
}

fn cursor_of(text: &[u8]) -> Result<u64, String> {
    std::str::from_utf8(text).ok().and_then(|t| t.parse().ok()).ok_or_else(|| "ERR invalid cursor".to_owned())
}

fn option_text<'a>(args: &'a Args, name: &str) -> Option<&'a [u8]> {
    let at = args.iter().skip(2).position(|arg| arg.eq_ignore_ascii_case(name.as_bytes()))?;
    args.get(at + 3).map(Vec::as_slice)
}

fn option(args: &Args, name: &str, default: usize) -> Result<usize, String> {
    option_text(args, name).map_or(Ok(default), |text| integer(text).map(|n| n.max(1) as usize))
}

/// Globs of one kind: `prefix*`, or the name itself.
fn matches(pattern: &[u8], key: &[u8]) -> bool {
    pattern.strip_suffix(b"*").map_or(pattern == key, |prefix| key.starts_with(prefix))
}
