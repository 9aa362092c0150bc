//! Streams and their groups.

use super::{Args, NOT_AN_INTEGER, Outcome, Reply, Run, SYNTAX, arg, bulk, int, integer, ok, word};
use crate::lab::live::value::{Group, Pending, Stream, StreamId, id_text};

const NO_GROUP: &str = "NOGROUP No such key or consumer group";
const BAD_ID: &str = "ERR Invalid stream ID specified as stream command argument";

/// `ms-seq`, or `ms` alone with this sequence.
pub fn parse_id(text: &[u8], seq: u64) -> Result<StreamId, String> {
    let text = std::str::from_utf8(text).map_err(|_| BAD_ID)?;
    let (ms, seq_text) = text.split_once('-').map_or((text, None), |(ms, seq)| (ms, Some(seq)));
    let number = |text: &str| text.parse::<u64>().map_err(|_| BAD_ID.to_owned());
    Ok((number(ms)?, seq_text.map_or(Ok(seq), number)?))
}

/// A range's borders, `-` and `+` included.
pub fn border(text: &[u8], end: bool) -> Result<StreamId, String> {
    match text {
        b"-" => Ok((0, 0)),
        b"+" => Ok((u64::MAX, u64::MAX)),
        _ => parse_id(text, if end { u64::MAX } else { 0 }),
    }
}

impl Run<'_> {
    pub(super) fn stream_command(&mut self, name: &str, args: &Args) -> Outcome {
        let key = arg(args, 1)?;
        match name {
            "XADD" => self.add_entry(args),
            "XDEL" => {
                let ids: Vec<StreamId> =
                    args[2..].iter().map(|text| parse_id(text, 0)).collect::<Result<_, String>>()?;
                let Some(stream) = self.stream(key, false)? else { return int(0) };
                let mut count = 0;
                for id in ids {
                    if stream.entries.remove(&id).is_some() {
                        stream.max_deleted = stream.max_deleted.max(id);
                        count += 1;
                    }
                }
                int(count)
            }
            "XTRIM" => {
                let (trim, _) = Trim::parse(args, 2)?;
                let trim = trim.ok_or(SYNTAX)?;
                let Some(stream) = self.stream(key, false)? else { return int(0) };
                let count = trim.apply(stream);
                let first = stream.entries.first_key_value().map(|(id, _)| *id);
                if !trim.is_exact_min_id() {
                    self.record_trim(key, first);
                }
                int(count)
            }
            "XSETID" => {
                let id = parse_id(arg(args, 2)?, 0)?;
                let stream = self.stream(key, false)?.ok_or("ERR no such key")?;
                if stream.entries.last_key_value().is_some_and(|(last, _)| id < *last) {
                    return Err("ERR The ID specified in XSETID is smaller than the target stream top item".into());
                }
                stream.last_id = id;
                ok()
            }
            "XACK" => {
                let ids: Vec<StreamId> =
                    args[3.min(args.len())..].iter().map(|text| parse_id(text, 0)).collect::<Result<_, String>>()?;
                let group_name = arg(args, 2)?;
                let group = self.stream(key, false)?.and_then(|stream| stream.groups.get_mut(group_name));
                let Some(group) = group else { return int(0) };
                int(ids.iter().filter(|id| group.pending.remove(id).is_some()).count())
            }
            "XCLAIM" => self.claim(args),
            "XAUTOCLAIM" => self.auto_claim(args),
            "XGROUP" => self.group_command(args),
            _ => self.read_group(args),
        }
    }

    fn stream(&mut self, key: &[u8], create: bool) -> Result<Option<&mut Stream>, String> {
        Ok(self.stream_at(key, create)?.map(|stream| &mut **stream))
    }

    fn add_entry(&mut self, args: &Args) -> Outcome {
        let key = arg(args, 1)?;
        let mut i = 2;
        let mut create = true;
        let mut trim = None;
        loop {
            match word(args, i).as_str() {
                "NOMKSTREAM" => {
                    create = false;
                    i += 1;
                }
                "MAXLEN" | "MINID" => (trim, i) = Trim::parse(args, i)?,
                _ => break,
            }
        }
        let (id_arg, fields) = (arg(args, i)?, args.get(i + 1..).unwrap_or_default());
        if fields.is_empty() || fields.len() % 2 == 1 {
            return Err("ERR wrong number of arguments for 'xadd' command".into());
        }
        let now = self.now_ms as u64;
        if !create && !self.exists(key) {
            self.record_nothing();
            return Ok(Reply::Nil);
        }
        let last = self.stream(key, false)?.map_or((0, 0), |stream| stream.last_id);
        let id = match id_arg {
            b"*" if now > last.0 => (now, 0),
            b"*" => (last.0, last.1 + 1),
            text => parse_id(text, 0)?,
        };
        if id <= last {
            return Err("ERR The ID specified in XADD is equal or smaller than the target stream top item".into());
        }
        let Some(stream) = self.stream(key, true)? else { return Ok(Reply::Nil) };
        stream.entries.insert(id, fields.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect());
        (stream.last_id, stream.entries_added) = (id, stream.entries_added + 1);
        let text = id_text(id);
        let mut record = vec![b"XADD".to_vec(), key.to_vec()];
        if let Some(trim) = trim {
            trim.apply(stream);
            match stream.entries.first_key_value() {
                Some((first, _)) => record.extend([b"MINID".to_vec(), id_text(*first)]),
                None => record.extend([b"MAXLEN".to_vec(), b"0".to_vec()]),
            }
        }
        record.push(text.clone());
        record.extend_from_slice(fields);
        self.record(record);
        bulk(Some(text))
    }

    /// XTRIM as it is recorded: by what is first now.
    fn record_trim(&mut self, key: &[u8], first: Option<StreamId>) {
        match first {
            Some(id) => self.record_of(&[b"XTRIM", key, b"MINID", &id_text(id)]),
            None => self.record_of(&[b"XTRIM", key, b"MAXLEN", b"0"]),
        }
    }

    fn group_command(&mut self, args: &Args) -> Outcome {
        let (what, key, name) = (word(args, 1), arg(args, 2)?, arg(args, 3)?.to_vec());
        let now = self.now_ms as u64;
        if what == "CREATE" {
            let make = args[4.min(args.len())..].iter().any(|arg| arg.eq_ignore_ascii_case(b"MKSTREAM"));
            let id_arg = arg(args, 4)?;
            let stream = self.stream(key, make)?.ok_or("ERR The XGROUP subcommand requires the key to exist")?;
            let last_id = if id_arg == b"$" { stream.last_id } else { parse_id(id_arg, 0)? };
            if stream.groups.contains_key(&name) {
                return Err("BUSYGROUP Consumer Group name already exists".into());
            }
            stream.groups.insert(name, Group { last_id, ..Group::default() });
            return ok();
        }
        let stream = self.stream(key, false)?.ok_or("ERR The XGROUP subcommand requires the key to exist")?;
        let last_id = stream.last_id;
        if what == "DESTROY" {
            return int(usize::from(stream.groups.remove(&name).is_some()));
        }
        let group = stream.groups.get_mut(&name).ok_or(NO_GROUP)?;
        match what.as_str() {
            "SETID" => {
                let id_arg = arg(args, 4)?;
                group.last_id = if id_arg == b"$" { last_id } else { parse_id(id_arg, 0)? };
                group.entries_read = match word(args, 5).as_str() {
                    "ENTRIESREAD" => u64::try_from(integer(arg(args, 6)?)?).ok(),
                    _ => None,
                };
                ok()
            }
            "CREATECONSUMER" => {
                let consumer = arg(args, 4)?;
                let new = !group.consumers.contains_key(consumer);
                if new {
                    group.consumers.insert(consumer.to_vec(), now);
                }
                int(usize::from(new))
            }
            "DELCONSUMER" => {
                let consumer = arg(args, 4)?;
                let before = group.pending.len();
                group.pending.retain(|_, pending| pending.consumer != consumer);
                group.consumers.remove(consumer);
                int(before - group.pending.len())
            }
            _ => Err(SYNTAX.into()),
        }
    }

    /// `XREADGROUP GROUP g c [COUNT n] STREAMS key >`: one stream, new entries only.
    fn read_group(&mut self, args: &Args) -> Outcome {
        let (group_name, consumer) = (arg(args, 2)?.to_vec(), arg(args, 3)?.to_vec());
        let count = if word(args, 4) == "COUNT" { integer(arg(args, 5)?)?.max(1) as usize } else { 10 };
        let at = if word(args, 4) == "COUNT" { 6 } else { 4 };
        if word(args, 1) != "GROUP" || word(args, at) != "STREAMS" || args.len() != at + 3 || args[at + 2] != b">" {
            return Err(
                "ERR this simulation reads one stream from > on, as XREADGROUP GROUP g c [COUNT n] STREAMS key >"
                    .into(),
            );
        }
        let (key, now) = (args[at + 1].clone(), self.now_ms as u64);
        self.record_nothing();
        let stream = self.stream(&key, false)?.ok_or(NO_GROUP)?;
        let Stream { entries, groups, last_id: last_of_stream, entries_added, .. } = stream;
        let group = groups.get_mut(&group_name).ok_or(NO_GROUP)?;
        let new_consumer = group.consumers.insert(consumer.clone(), now).is_none();
        let after = (std::ops::Bound::Excluded(group.last_id), std::ops::Bound::Unbounded);
        let found: Vec<_> = entries.range(after).take(count).map(|(id, fields)| (*id, fields.clone())).collect();
        let (mut records, mut reply) = (Vec::new(), Vec::new());
        let words = |words: &[&[u8]]| words.iter().map(|word| word.to_vec()).collect::<Vec<_>>();
        if new_consumer {
            records.push(words(&[b"XGROUP", b"CREATECONSUMER", &key, &group_name, &consumer]));
        }
        for (id, fields) in &found {
            let (id_bytes, at_ms) = (id_text(*id), now.to_string());
            let pending = Pending { consumer: consumer.clone(), delivered_at_ms: now, deliveries: 1 };
            group.pending.insert(*id, pending);
            group.last_id = *id;
            records.push(words(&[
                b"XCLAIM",
                &key,
                &group_name,
                &consumer,
                b"0",
                &id_bytes,
                b"TIME",
                at_ms.as_bytes(),
                b"RETRYCOUNT",
                b"1",
                b"FORCE",
                b"JUSTID",
                b"LASTID",
                &id_bytes,
            ]));
            let flat = fields.iter().flat_map(|(f, v)| [f.clone(), v.clone()]).map(Reply::Bulk).collect();
            reply.push(Reply::Array(vec![Reply::Bulk(id_bytes), Reply::Array(flat)]));
        }
        if !found.is_empty() {
            // Known where the group has read all there is; else as far as counting goes on.
            group.entries_read = match group.last_id == *last_of_stream {
                true => Some(*entries_added),
                false => group.entries_read.map(|read| read + found.len() as u64),
            };
            let read = group.entries_read.map_or("-1".to_owned(), |read| read.to_string());
            records.push(words(&[
                b"XGROUP",
                b"SETID",
                &key,
                &group_name,
                &id_text(group.last_id),
                b"ENTRIESREAD",
                read.as_bytes(),
            ]));
        }
        records.into_iter().for_each(|record| self.record(record));
        if reply.is_empty() {
            return Ok(Reply::Nil);
        }
        Ok(Reply::Array(vec![Reply::Array(vec![Reply::Bulk(key), Reply::Array(reply)])]))
    }

    /// `XCLAIM key group consumer min-idle id... [IDLE ms] [TIME ms] [RETRYCOUNT n] [FORCE] [JUSTID]`. As Dragonfly does it, IDLE
    /// is a time, and the consumer is made even if nothing is claimed.
    fn claim(&mut self, args: &Args) -> Outcome {
        let (key, group_name, consumer) = (arg(args, 1)?, arg(args, 2)?, arg(args, 3)?.to_vec());
        let idle_ms_min = integer(arg(args, 4)?)?.max(0) as u64;
        let now = self.now_ms as u64;
        let Stream { entries, groups, .. } = self.stream(key, false)?.ok_or(NO_GROUP)?;
        let group = groups.get_mut(group_name).ok_or(NO_GROUP)?;
        let ids = args[5..].iter().map_while(|text| parse_id(text, 0).ok()).collect::<Vec<_>>();
        let (mut at_ms, mut deliveries, mut force, mut just_id) = (now, None, false, false);
        let mut i = 5 + ids.len();
        while i < args.len() {
            match word(args, i).as_str() {
                "JUSTID" => just_id = true,
                "FORCE" => force = true,
                "IDLE" | "TIME" => {
                    i += 1;
                    at_ms = u64::try_from(integer(arg(args, i)?)?).ok().filter(|at| *at <= now).unwrap_or(now);
                }
                "RETRYCOUNT" => {
                    i += 1;
                    deliveries = u64::try_from(integer(arg(args, i)?)?).ok();
                }
                _ => return Err(SYNTAX.into()),
            }
            i += 1;
        }
        group.consumers.insert(consumer.clone(), now);
        let mut claimed = Vec::new();
        for id in ids {
            if !entries.contains_key(&id) {
                // A deleted entry is no longer pending.
                group.pending.remove(&id);
                continue;
            }
            let pending = match group.pending.get_mut(&id) {
                Some(pending) if now.saturating_sub(pending.delivered_at_ms) < idle_ms_min => continue,
                Some(pending) => pending,
                None if force => group.pending.entry(id).or_insert(Pending {
                    consumer: consumer.clone(),
                    delivered_at_ms: now,
                    deliveries: 1,
                }),
                None => continue,
            };
            (pending.consumer, pending.delivered_at_ms) = (consumer.clone(), at_ms);
            pending.deliveries = deliveries.unwrap_or(pending.deliveries + u64::from(!just_id));
            claimed.push(Reply::Bulk(id_text(id)));
        }
        Ok(Reply::Array(claimed))
    }

    /// `XAUTOCLAIM key group consumer min-idle start [COUNT n] [JUSTID]`: replies with the ids alone.
    fn auto_claim(&mut self, args: &Args) -> Outcome {
        let (key, group_name, consumer) = (arg(args, 1)?, arg(args, 2)?, arg(args, 3)?.to_vec());
        let (idle_ms_min, start) = (integer(arg(args, 4)?)?.max(0) as u64, parse_id(arg(args, 5)?, 0)?);
        let now = self.now_ms as u64;
        let Stream { entries, groups, .. } = self.stream(key, false)?.ok_or(NO_GROUP)?;
        let group = groups.get_mut(group_name).ok_or(NO_GROUP)?;
        let mut left = if word(args, 6) == "COUNT" { integer(arg(args, 7)?)?.max(1) as usize } else { 100 };
        let just_id = args.last().is_some_and(|last| last.eq_ignore_ascii_case(b"JUSTID"));
        group.consumers.insert(consumer.clone(), now);
        let scanned: Vec<_> = group.pending.range(start..).map(|(id, _)| *id).take(left * 10).collect();
        let mut claimed = Vec::new();
        for id in scanned {
            if left == 0 {
                break;
            }
            if !entries.contains_key(&id) {
                group.pending.remove(&id);
                left -= 1;
                continue;
            }
            let Some(pending) = group.pending.get_mut(&id) else { continue };
            if now.saturating_sub(pending.delivered_at_ms) >= idle_ms_min {
                (pending.consumer, pending.delivered_at_ms) = (consumer.clone(), now);
                pending.deliveries += u64::from(!just_id);
                claimed.push(Reply::Bulk(id_text(id)));
                left -= 1;
            }
        }
        Ok(Reply::Array(claimed))
    }
}

/// MAXLEN or MINID of XADD and XTRIM.
struct Trim {
    keep_max: Option<usize>,
    id_min: Option<StreamId>,
    roughly: bool,
}

impl Trim {
    /// Parses from the `i`-th argument on; returns also where it ends.
    fn parse(args: &Args, mut i: usize) -> Result<(Option<Self>, usize), String> {
        let what = word(args, i);
        i += 1;
        let roughly = args.get(i).is_some_and(|arg| arg == b"~");
        i += usize::from(args.get(i).is_some_and(|arg| arg == b"~" || arg == b"="));
        let value = arg(args, i)?;
        let (keep_max, id_min) = match what.as_str() {
            "MAXLEN" => (Some(usize::try_from(integer(value)?).map_err(|_| NOT_AN_INTEGER)?), None),
            "MINID" => (None, Some(parse_id(value, 0)?)),
            _ => return Err(SYNTAX.into()),
        };
        Ok((Some(Self { keep_max, id_min, roughly }), i + 1))
    }

    fn is_exact_min_id(&self) -> bool {
        self.id_min.is_some() && !self.roughly
    }

    /// Removes the first entries; roughly is exactly here, as the record says what is left.
    fn apply(&self, stream: &mut Stream) -> usize {
        let before = stream.entries.len();
        if let Some(id) = self.id_min {
            stream.entries = stream.entries.split_off(&id);
        }
        while self.keep_max.is_some_and(|max| stream.entries.len() > max) {
            stream.entries.pop_first();
        }
        before - stream.entries.len()
    }
}
