//! Executes commands on the live source's data, and says what a Dragonfly records of them (wire 4.4).
//!
//! In: a command's strings, the data, the time. Out: a reply, and records. A write that succeeds is recorded as typed
//! unless its family's function says otherwise; one that fails changes nothing and is not recorded. The families are in
//! the modules below; what only reads is in [`super::read`].

mod hashes;
mod keys;
mod lists;
mod sets;
mod several;
mod streams;
mod strings;
mod zsets;

pub use streams::border;
pub use zsets::{score_text, sorted};

use super::data::Data;
use super::value::{Field, Object, Stream, Value};
use crate::lab::client::Reply;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A command's strings, name first.
pub type Args = [Vec<u8>];

/// One journal record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub db: u32,
    pub args: Vec<Vec<u8>>,
    /// It goes to every flow: FLUSHALL and FLUSHDB.
    pub global: bool,
}

/// What a command comes to: a reply, or the text of an error (with its code).
pub type Outcome = Result<Reply, String>;

pub const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";
pub const SYNTAX: &str = "ERR syntax error";
pub const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";
pub const NOT_A_FLOAT: &str = "ERR value is not a valid float";
pub const NO_SUCH_KEY: &str = "ERR no such key";

/// The run of one command.
pub struct Run<'a> {
    pub data: &'a mut Data,
    pub db: u32,
    pub now_ms: i64,
    pub flows_count: usize,
    pub records: Vec<Record>,
    /// The command wrote its own records.
    own_records: bool,
}

/// Commands that write, and where their keys stand.
const WRITES: &[(&str, Keys)] = &[
    ("SET", Keys::First),
    ("SETEX", Keys::First),
    ("PSETEX", Keys::First),
    ("SETNX", Keys::First),
    ("GETSET", Keys::First),
    ("GETDEL", Keys::First),
    ("GETEX", Keys::First),
    ("APPEND", Keys::First),
    ("PREPEND", Keys::First),
    ("SETRANGE", Keys::First),
    ("SETBIT", Keys::First),
    ("INCR", Keys::First),
    ("DECR", Keys::First),
    ("INCRBY", Keys::First),
    ("DECRBY", Keys::First),
    ("INCRBYFLOAT", Keys::First),
    ("MSET", Keys::Pairs),
    ("MSETNX", Keys::Pairs),
    ("DEL", Keys::All),
    ("UNLINK", Keys::All),
    ("EXPIRE", Keys::First),
    ("PEXPIRE", Keys::First),
    ("EXPIREAT", Keys::First),
    ("PEXPIREAT", Keys::First),
    ("PERSIST", Keys::First),
    ("RENAME", Keys::Two),
    ("RENAMENX", Keys::Two),
    ("COPY", Keys::Two),
    ("MOVE", Keys::First),
    ("LPUSH", Keys::First),
    ("RPUSH", Keys::First),
    ("LPUSHX", Keys::First),
    ("RPUSHX", Keys::First),
    ("LPOP", Keys::First),
    ("RPOP", Keys::First),
    ("LREM", Keys::First),
    ("LTRIM", Keys::First),
    ("LSET", Keys::First),
    ("LINSERT", Keys::First),
    ("LMOVE", Keys::Two),
    ("RPOPLPUSH", Keys::Two),
    ("SADD", Keys::First),
    ("SREM", Keys::First),
    ("SPOP", Keys::First),
    ("SMOVE", Keys::Two),
    ("SUNIONSTORE", Keys::All),
    ("SINTERSTORE", Keys::All),
    ("SDIFFSTORE", Keys::All),
    ("HSET", Keys::First),
    ("HMSET", Keys::First),
    ("HSETNX", Keys::First),
    ("HDEL", Keys::First),
    ("HINCRBY", Keys::First),
    ("HINCRBYFLOAT", Keys::First),
    ("HEXPIRE", Keys::First),
    ("ZADD", Keys::First),
    ("ZINCRBY", Keys::First),
    ("ZREM", Keys::First),
    ("ZPOPMIN", Keys::First),
    ("ZPOPMAX", Keys::First),
    ("ZREMRANGEBYRANK", Keys::First),
    ("ZREMRANGEBYSCORE", Keys::First),
    ("XADD", Keys::First),
    ("XDEL", Keys::First),
    ("XTRIM", Keys::First),
    ("XACK", Keys::First),
    ("XSETID", Keys::First),
    ("XCLAIM", Keys::First),
    ("XAUTOCLAIM", Keys::First),
    ("XGROUP", Keys::Second),
    ("XREADGROUP", Keys::Streams),
    ("SORT", Keys::Sort),
    ("ZUNIONSTORE", Keys::Stored),
    ("ZINTERSTORE", Keys::Stored),
    ("ZDIFFSTORE", Keys::Stored),
    ("ZRANGESTORE", Keys::Two),
    ("LMPOP", Keys::Counted),
    ("ZMPOP", Keys::Counted),
    ("FLUSHDB", Keys::None),
    ("FLUSHALL", Keys::None),
];

#[derive(Clone, Copy)]
enum Keys {
    None,
    First,
    Second,
    Two,
    All,
    Pairs,
    Streams,
    Sort,
    Stored,
    Counted,
}

/// The keys that a write may change, or reads; `None`: the command writes nothing. (All of them have their baselines sent
/// before the record. A real master does so for those that change only; what its replica makes of the record then may be
/// wrong, and could not be compared.)
pub fn written_keys<'a>(name: &str, args: &'a Args) -> Option<Vec<&'a [u8]>> {
    let (_, keys) = WRITES.iter().find(|(known, _)| *known == name)?;
    let key = |i: usize| args.get(i).map(Vec::as_slice);
    Some(match keys {
        Keys::None => Vec::new(),
        Keys::First => key(1).into_iter().collect(),
        Keys::Second => key(2).into_iter().collect(),
        Keys::Two => key(1).into_iter().chain(key(2)).collect(),
        Keys::All => args.iter().skip(1).map(Vec::as_slice).collect(),
        Keys::Pairs => args.iter().skip(1).step_by(2).map(Vec::as_slice).collect(),
        Keys::Sort => {
            let store = args.iter().position(|arg| arg.eq_ignore_ascii_case(b"STORE")).and_then(|at| key(at + 1));
            key(1).into_iter().chain(store).collect()
        }
        Keys::Stored | Keys::Counted => {
            let at = if matches!(keys, Keys::Stored) { 2 } else { 1 };
            let counted = several::counted(args, at).map(|(keys, _)| keys).unwrap_or_default();
            let written = (at == 2).then(|| key(1)).flatten();
            written.into_iter().chain(counted.iter().map(Vec::as_slice)).collect()
        }
        Keys::Streams => {
            let begin =
                args.iter().position(|arg| arg.eq_ignore_ascii_case(b"STREAMS")).map_or(args.len(), |at| at + 1);
            args[begin..begin + (args.len() - begin) / 2].iter().map(Vec::as_slice).collect()
        }
    })
}

impl<'a> Run<'a> {
    pub fn new(data: &'a mut Data, db: u32, now_ms: i64, flows_count: usize) -> Self {
        Self { data, db, now_ms, flows_count, records: Vec::new(), own_records: false }
    }

    /// One write. `name` in upper case, and known to [`written_keys`].
    pub fn write(&mut self, name: &str, args: &Args) -> Outcome {
        self.own_records = false;
        let before = self.records.len();
        let outcome = match name {
            "SET" | "SETEX" | "PSETEX" | "SETNX" | "GETSET" | "GETDEL" | "GETEX" | "APPEND" | "PREPEND"
            | "SETRANGE" | "SETBIT" | "INCR" | "DECR" | "INCRBY" | "DECRBY" | "INCRBYFLOAT" | "MSET" | "MSETNX" => {
                self.string_command(name, args)
            }
            "LPUSH" | "RPUSH" | "LPUSHX" | "RPUSHX" | "LPOP" | "RPOP" | "LREM" | "LTRIM" | "LSET" | "LINSERT"
            | "LMOVE" | "RPOPLPUSH" => self.list_command(name, args),
            "SADD" | "SREM" | "SPOP" | "SMOVE" | "SUNIONSTORE" | "SINTERSTORE" | "SDIFFSTORE" => {
                self.set_command(name, args)
            }
            "HSET" | "HMSET" | "HSETNX" | "HDEL" | "HINCRBY" | "HINCRBYFLOAT" | "HEXPIRE" => {
                self.hash_command(name, args)
            }
            "ZADD" | "ZINCRBY" | "ZREM" | "ZPOPMIN" | "ZPOPMAX" | "ZREMRANGEBYRANK" | "ZREMRANGEBYSCORE" => {
                self.zset_command(name, args)
            }
            "XADD" | "XDEL" | "XTRIM" | "XACK" | "XSETID" | "XCLAIM" | "XAUTOCLAIM" | "XGROUP" | "XREADGROUP" => {
                self.stream_command(name, args)
            }
            "SORT" | "ZUNIONSTORE" | "ZINTERSTORE" | "ZDIFFSTORE" | "ZRANGESTORE" | "LMPOP" | "ZMPOP" => {
                self.several_command(name, args)
            }
            _ => self.key_command(name, args),
        };
        for key in written_keys(name, args).unwrap_or_default() {
            if self.data.get(self.db, key).is_some_and(|object| object.value.is_empty()) {
                self.data.remove(self.db, key);
            }
        }
        match &outcome {
            Ok(_) if !self.own_records => {
                let mut record = args.to_vec();
                record[0].make_ascii_uppercase();
                self.record(record);
            }
            Ok(_) => {}
            Err(_) => self.records.truncate(before),
        }
        outcome
    }

    /// Records this in place of the command as typed.
    fn record(&mut self, args: Vec<Vec<u8>>) {
        self.own_records = true;
        self.records.push(Record { db: self.db, args, global: false });
    }

    /// Records words and byte strings.
    fn record_of(&mut self, args: &[&[u8]]) {
        self.record(args.iter().map(|arg| arg.to_vec()).collect());
    }

    /// The command changed nothing that is recorded.
    fn record_nothing(&mut self) {
        self.own_records = true;
    }

    fn owner(&self, key: &[u8]) -> usize {
        crate::lab::encode::owner(key, self.flows_count)
    }

    fn exists(&self, key: &[u8]) -> bool {
        self.data.get(self.db, key).is_some()
    }
}

/// Access to a value of one type: `create` makes an empty one where the key is missing.
macro_rules! typed {
    ($name:ident, $variant:ident, $type:ty) => {
        impl Run<'_> {
            fn $name(&mut self, key: &[u8], create: bool) -> Result<Option<&mut $type>, String> {
                if create && !self.exists(key) {
                    self.data.put(self.db, key, Object::new(Value::$variant(Default::default())));
                }
                match self.data.get_mut(self.db, key).map(|object| &mut object.value) {
                    None => Ok(None),
                    Some(Value::$variant(value)) => Ok(Some(value)),
                    Some(_) => Err(WRONG_TYPE.into()),
                }
            }
        }
    };
}

typed!(string_at, String, Vec<u8>);
typed!(list_at, List, VecDeque<Vec<u8>>);
typed!(set_at, Set, BTreeSet<Vec<u8>>);
typed!(hash_at, Hash, BTreeMap<Vec<u8>, Field>);
typed!(zset_at, Zset, BTreeMap<Vec<u8>, f64>);
typed!(stream_at, Stream, Box<Stream>);

/// The `i`-th argument, or the error about their number.
pub fn arg(args: &Args, i: usize) -> Result<&[u8], String> {
    args.get(i).map(Vec::as_slice).ok_or_else(|| {
        let name = String::from_utf8_lossy(args.first().map_or(b"", Vec::as_slice)).to_lowercase();
        format!("ERR wrong number of arguments for '{name}' command")
    })
}

pub fn word(args: &Args, i: usize) -> String {
    args.get(i).map(|arg| String::from_utf8_lossy(arg).to_ascii_uppercase()).unwrap_or_default()
}

pub fn integer(text: &[u8]) -> Result<i64, String> {
    std::str::from_utf8(text).ok().and_then(|t| t.parse().ok()).ok_or_else(|| NOT_AN_INTEGER.to_owned())
}

pub fn float(text: &[u8]) -> Result<f64, String> {
    let parsed = std::str::from_utf8(text).ok().and_then(|t| t.parse::<f64>().ok()).filter(|f| !f.is_nan());
    parsed.ok_or_else(|| NOT_A_FLOAT.to_owned())
}

/// An index from the front, where negative ones count from the back; not clamped.
pub fn index(index: i64, len: usize) -> i64 {
    if index < 0 { index + len as i64 } else { index }
}

/// The part of `len` elements from `start` to `stop`, both included and perhaps negative.
pub fn slice(start: i64, stop: i64, len: usize) -> std::ops::Range<usize> {
    let (start, stop) = (index(start, len).max(0), index(stop, len).min(len as i64 - 1));
    if start > stop { 0..0 } else { start as usize..stop as usize + 1 }
}

pub fn int(value: usize) -> Outcome {
    Ok(Reply::Int(value as i64))
}

pub fn ok() -> Outcome {
    Ok(Reply::Status("OK".into()))
}

pub fn bulk(value: Option<Vec<u8>>) -> Outcome {
    Ok(value.map_or(Reply::Nil, Reply::Bulk))
}

/// What INCRBYFLOAT and HINCRBYFLOAT come to: doubles, added.
pub fn sum(old: f64, by: f64) -> Result<f64, String> {
    let sum = old + by;
    if sum.is_finite() { Ok(sum) } else { Err("ERR increment would produce NaN or Infinity".into()) }
}

/// A float as Dragonfly writes it: the shortest digits that read back equal (of two that are as near, the one that ends even,
/// which Rust's own text does not keep to), without an exponent from 1e-6 to below 1e21.
pub fn float_text(value: f64) -> Vec<u8> {
    if value == 0.0 {
        return b"0".to_vec();
    }
    if !value.is_finite() {
        return format!("{value}").into_bytes();
    }
    let mut buffer = ryu::Buffer::new();
    let text = buffer.format_finite(value.abs());
    let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{whole}{fraction}");
    let digits = all.trim_start_matches('0');
    // 0.d1d2d3 * 10^point
    let point = whole.len() as i32 + exponent.parse::<i32>().unwrap_or(0) - (all.len() - digits.len()) as i32;
    let digits = digits.trim_end_matches('0');
    let sign = if value < 0.0 { "-" } else { "" };
    let text = match usize::try_from(point) {
        _ if !(-5..=21).contains(&point) => {
            let (first, rest) = digits.split_at(1);
            let dot = if rest.is_empty() { "" } else { "." };
            format!("{sign}{first}{dot}{rest}e{:+}", point - 1)
        }
        Ok(point) if point >= digits.len() => format!("{sign}{digits}{}", "0".repeat(point - digits.len())),
        Ok(point) if point > 0 => format!("{sign}{}.{}", &digits[..point], &digits[point..]),
        _ => format!("{sign}0.{}{digits}", "0".repeat(point.unsigned_abs() as usize)),
    };
    text.into_bytes()
}
