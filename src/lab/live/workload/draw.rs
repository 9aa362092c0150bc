//! Draws one command after another.

use super::{Entry, FUTURE_MS, Kind, Mix, Rng, Spec, WorkloadOptions};
use crate::lab::live::world::now_ms;

/// Keys of the spec that are written, for each kind.
const KEYS_MAX: u64 = 20_000;

const STRING: &[&str] = &[
    "SET k v",
    "SET k v",
    "SET k v PX t",
    "SET k v KEEPTTL",
    "SET k v XX GET",
    "SET k v NX",
    "SETEX k 9000 v",
    "APPEND k v",
    "PREPEND k v",
    "SETRANGE k s v",
    "SETBIT k s 1",
    "GETSET k v",
    "GETDEL k",
    "SETNX k v",
    "GETEX k EX 9000",
    "GETEX k PERSIST",
    "MSET k v k v k v",
    "MSETNX k v k v",
    "COPY k k REPLACE",
];
const INT: &[&str] = &[
    "INCR k",
    "INCR k",
    "INCRBY k s",
    "DECR k",
    "DECRBY k s",
    "INCRBYFLOAT k 0.5",
    "INCRBYFLOAT k 0.1",
    "SET k s",
    "SET k s",
    "INCR k",
    "INCRBY k s",
];
const LIST: &[&str] = &[
    "LPUSH k v",
    "RPUSH k v v",
    "LPUSHX k v",
    "RPUSHX k v",
    "LPOP k",
    "RPOP k",
    "LPOP k 2",
    "LREM k 0 e",
    "LREM k -1 e",
    "LTRIM k 0 30",
    "LTRIM k 1 -1",
    "LSET k 0 v",
    "LINSERT k BEFORE e v",
    "LINSERT k AFTER e v",
    "LMOVE k k LEFT RIGHT",
    "LMOVE k k RIGHT RIGHT",
    "RPOPLPUSH k k",
    "LMPOP 2 k k LEFT",
    "LMPOP 3 k k k RIGHT COUNT 2",
    "SORT k ALPHA STORE k",
    "SORT k ALPHA DESC LIMIT 1 9 STORE k",
    "RPUSH k e e",
];
const SET: &[&str] = &[
    "SADD k v",
    "SADD k e v",
    "SADD k s",
    "SREM k e",
    "SREM k v e",
    "SPOP k",
    "SPOP k 2",
    "SMOVE k k e",
    "SUNIONSTORE k k k",
    "SINTERSTORE k k k",
    "SDIFFSTORE k k k",
];
const HASH: &[&str] = &[
    "HSET k e v",
    "HSET k e v f v",
    "HMSET k f v",
    "HSETNX k e v",
    "HDEL k e",
    "HDEL k e f",
    "HINCRBY k n s",
    "HINCRBYFLOAT k n2 1.5",
    "HINCRBYFLOAT k n2 0.1",
    "HINCRBYFLOAT k n3 -1e-7",
    "HSET k f v",
];
const ZSET: &[&str] = &[
    "ZADD k s v",
    "ZADD k s e s e2",
    "ZADD k GT CH s e",
    "ZADD k NX s e",
    "ZINCRBY k s e",
    "ZREM k e",
    "ZPOPMIN k",
    "ZPOPMAX k 2",
    "ZREMRANGEBYRANK k 0 0",
    "ZREMRANGEBYSCORE k (5 8",
    "ZADD k s v",
    "ZADD k s e s e2",
    "ZUNIONSTORE k 2 k k WEIGHTS 1 2",
    "ZUNIONSTORE k 3 k k k AGGREGATE MAX",
    "ZINTERSTORE k 2 k k",
    "ZDIFFSTORE k 2 k k",
    "ZRANGESTORE k k 0 9",
    "ZMPOP 2 k k MIN",
    "ZMPOP 3 k k k MAX COUNT 2",
];
const STREAM: &[&str] = &[
    "XADD k * f v",
    "XADD k * f v e v",
    "XADD k MAXLEN ~ 40 * f v",
    "XADD k NOMKSTREAM * f v",
    "XDEL k ID",
    "XTRIM k MAXLEN 50",
    "XGROUP CREATE k g 0 MKSTREAM",
    "XGROUP CREATE k g2 $ MKSTREAM",
    "XGROUP DESTROY k g2",
    "XGROUP CREATECONSUMER k g c",
    "XREADGROUP GROUP g c COUNT 3 STREAMS k >",
    "XREADGROUP GROUP g c2 COUNT 1 STREAMS k >",
    "XACK k g ID",
    "XGROUP DELCONSUMER k g c2",
    "XCLAIM k g c 0 ID JUSTID",
    "XADD k * f v",
];
/// For keys of any kind.
const ANY: &[&str] = &[
    "DEL k",
    "UNLINK k k",
    "PEXPIREAT k T",
    "EXPIRE k 9000",
    "PEXPIRE k t",
    "PERSIST k",
    "RENAME k k",
    "RENAMENX k k",
    "COPY k k REPLACE",
    "MOVE k D",
    "PEXPIREAT k T",
];

/// Kinds whose commands are drawn.
const KINDS: [(Kind, &[&str]); 7] = [
    (Kind::String, STRING),
    (Kind::Int, INT),
    (Kind::List, LIST),
    (Kind::Set, SET),
    (Kind::Hash, HASH),
    (Kind::Zset, ZSET),
    (Kind::Stream, STREAM),
];

pub struct Draw {
    rng: Rng,
    options: WorkloadOptions,
    databases: Vec<u32>,
    /// For each of [`KINDS`]: groups of the spec and how many keys they have.
    groups: Vec<Vec<(Kind, usize, u64)>>,
    spec: Spec,
    /// The last id that this writer has probably made.
    flushes: u64,
}

impl Draw {
    pub fn new(spec: &Spec, options: &WorkloadOptions) -> Self {
        let of = |kind: Kind| {
            let groups = spec.mix.iter().enumerate().filter(move |(_, group)| same_family(group.kind, kind));
            groups.map(|(at, group)| (group.kind, at, group.count.min(KEYS_MAX))).filter(|(.., n)| *n > 0).collect()
        };
        Self {
            rng: Rng::new(options.seed ^ 0x3717),
            options: options.clone(),
            databases: spec.databases.clone(),
            groups: KINDS.iter().map(|(kind, _)| of(*kind)).collect(),
            spec: spec.clone(),
            flushes: 0,
        }
    }

    /// The next command, or transaction, and its database.
    pub fn next(&mut self, number: u64) -> (u32, Vec<Vec<Vec<u8>>>) {
        let words = |text: String| text.split(' ').map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>();
        match self.options.mix {
            Mix::Sets => {
                let mut value = Vec::new();
                self.rng.fill_text(&mut value, 100);
                let key = format!("set:{}", self.rng.below(100_000)).into_bytes();
                return (self.databases[0], vec![vec![b"SET".to_vec(), key, value]]);
            }
            Mix::Incrs => return (self.databases[0], vec![words(format!("INCR count:{}", self.rng.below(1000)))]),
            Mix::Mixed | Mix::Flushes => {}
        }
        let db = self.databases[self.rng.below(self.databases.len() as u64) as usize];
        let flushes = self.options.mix == Mix::Flushes;
        if flushes || self.options.flush_every > 0 && number % self.options.flush_every == self.options.flush_every - 1
        {
            self.flushes += 1;
            let name = if self.flushes.is_multiple_of(4) { "FLUSHALL" } else { "FLUSHDB" };
            return (db, vec![words(name.to_owned())]);
        }
        let count = if self.rng.chance(0.1) { 2 + self.rng.below(4) } else { 1 };
        (db, (0..count).map(|_| self.command(db)).collect())
    }

    fn command(&mut self, db: u32) -> Vec<Vec<u8>> {
        let kind = self.rng.below(KINDS.len() as u64) as usize;
        // An XADD of every stream command keeps groups and trimming busy.
        let forms = if self.rng.chance(0.12) { ANY } else { KINDS[kind].1 };
        let form = forms[self.rng.below(forms.len() as u64) as usize];
        let form = match self.options.pops_of_one_key {
            true => form.replace("MPOP 2 k k", "MPOP 1 k").replace("MPOP 3 k k k", "MPOP 1 k"),
            false => form.to_owned(),
        };
        form.split(' ').map(|word| self.word(word, kind, db)).collect()
    }

    /// What stands for a word of a form.
    fn word(&mut self, word: &str, kind: usize, db: u32) -> Vec<u8> {
        match word {
            "k" => self.key(kind, db),
            // Values of many lengths, some of them numbers.
            "v" => match self.rng.below(10) {
                0 => self.rng.below(100_000).to_string().into_bytes(),
                1 => Vec::new(),
                2 => {
                    let mut value = Vec::new();
                    let len = self.rng.below(1500) as usize;
                    self.rng.fill_text(&mut value, len);
                    value
                }
                _ => format!("value-{:x}", self.rng.next_u64() >> self.rng.below(60)).into_bytes(),
            },
            "e" => format!("e{}", self.rng.below(12)).into_bytes(),
            "e2" => format!("x{}", self.rng.below(12)).into_bytes(),
            "f" => format!("field-{}", self.rng.below(30)).into_bytes(),
            "s" => self.rng.below(20).to_string().into_bytes(),
            "t" => self.time_left_ms().to_string().into_bytes(),
            "T" => (now_ms() + self.time_left_ms()).to_string().into_bytes(),
            "D" => self.databases[self.rng.below(self.databases.len() as u64) as usize].to_string().into_bytes(),
            // Ids are times of the last few seconds: now and then one is met.
            "ID" => format!("{}-0", now_ms() as u64 - self.rng.below(40)).into_bytes(),
            _ => word.as_bytes().to_vec(),
        }
    }

    fn time_left_ms(&mut self) -> i64 {
        match self.options.expire_in {
            Some(near) if self.rng.chance(0.5) => 1 + self.rng.below(near.as_millis() as u64 + 1) as i64,
            _ => FUTURE_MS - now_ms() + self.rng.below(1 << 30) as i64,
        }
    }

    fn key(&mut self, kind: usize, db: u32) -> Vec<u8> {
        let groups = &self.groups[kind];
        if !groups.is_empty() && self.rng.chance(0.6) {
            let (key_kind, group, count) = groups[self.rng.below(groups.len() as u64) as usize];
            // Keys of the spec have one database each; a few tries find one of this.
            for _ in 0..8 {
                let index = self.rng.below(count);
                if self.databases.len() == 1 || Entry::new(&self.spec, group, index).db == db {
                    return Entry::key(key_kind, group, index);
                }
            }
        }
        let (name, number) = (KINDS[kind].0, self.rng.below(self.options.new_keys.max(1)));
        match self.options.new_keys_tags {
            0 => format!("new-{name}:{number}").into_bytes(),
            tags => format!("new-{name}:{{{}}}:{number}", number % tags).into_bytes(),
        }
    }
}

fn same_family(of_group: Kind, kind: Kind) -> bool {
    let family = match of_group {
        Kind::Intset | Kind::SetTtl => Kind::Set,
        Kind::HashTtl => Kind::Hash,
        other => other,
    };
    family == kind
}
