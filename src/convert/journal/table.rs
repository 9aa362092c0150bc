//! The table of every command name that a Dragonfly journal may hold (wire 4.4, 4.9): how it is translated, where its
//! keys stand, how many strings it has at least.
//!
//! A row's [`How`] also decides the [`Class`]. A command is **Blind** only if the following holds: let a run of records
//! without a Guarded one between them be applied, and then applied again from its beginning; the end is the same. (A
//! Guarded command leaves a marker, so nothing before it is ever sent again.) That needs more than each command being
//! idempotent by itself:
//!
//! - *Whole values* (SET with any options, MSET, DEL, RESTORE REPLACE): the last one wins, whatever was there.
//! - *Elements set to an absolute value* (HSET, SADD, ZADD and GEOADD without flags, SETBIT, SETRANGE, BITFIELD SET, LSET):
//!   the last write of an element wins, and none of them changes which keys exist in a way that a DEL of the same
//!   run does not change again. LSET counts from either end, but no other Blind command changes a list's length.
//!
//! The same holds where some of the run were executed and some not (a cluster's node that could not for a moment), and all from
//! the first that was not are applied again: errors that they meet in between say nothing. One command is the exception, and
//! hence **Ordered**:
//!
//! - *XADD with an explicit id*: the second time the target refuses it (`equal or smaller`), trimming included, which is
//!   right (see [`super::replies`]); but once a later one was executed it refuses it the first time, too, and the entry is lost.
//!
//! Everything else is **Guarded**, in particular what looks harmless:
//!
//! - *Removals* (HDEL, SREM, ZREM, ZREMRANGEBY..., LREM): with k = {a, b} and a TTL, `SREM k a, SADD k a, SREM k b` leaves
//!   {a} with the TTL. Again from the start, the first SREM empties k, the key goes and its TTL with it.
//! - *Changes of a TTL that keep the value* (PEXPIREAT, PERSIST, HPEXPIREAT): `SET s v PXAT t1, PEXPIREAT s t2` repeated
//!   after t1 makes the target drop s and answer 0 to the second. Guarded, the SET is not repeated once the TTL moved.
//! - *Conditions* (HSETNX, ZADD NX/XX/GT/LT, JSON.SET NX/XX): the second time they meet another state.
//! - *Trimming* (LTRIM, XTRIM): XTRIM ... MAXLEN 0 repeated removes the entries added after it, and their XADD is refused.
//! - *PFADD*: a HyperLogLog is a string to SETBIT and SETRANGE, which make another one where it was not executed, and undo what
//!   it then does again.
//! - *What reads another key, or moves one* (RENAME, MOVE, SORT STORE, LMOVE, CMS.MERGE).
//! - *JSON.SET elsewhere than at the root*: a filter in the path may match something else the second time.

use Keys::{All, Counted, First, FirstTwo, Geo, Merge, Nothing, Second, Sort, Triples, Twos};

/// Where a command's keys stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// No key.
    Nothing,
    /// `NAME key ...`
    First,
    /// `NAME SUBCOMMAND key ...`
    Second,
    /// `NAME key key ...`
    FirstTwo,
    /// `NAME key...`
    All,
    /// `NAME ... count key...`, the count at this position; or, as a truncated record (wire 6.19), `NAME key...`
    Counted(usize),
    /// `NAME (key value)...`
    Twos,
    /// `NAME (key path value)...`
    Triples,
    /// `SORT key ... [STORE key]`
    Sort,
    /// `GEORADIUS key ... [STORE key | STOREDIST key]`
    Geo,
    /// `CMS.MERGE key n key...`, ZUNIONSTORE likewise; or, as a truncated record (wire 6.19), `CMS.MERGE key...`
    Merge,
}

/// Module families whose commands go through where the target has them, and follow a policy where not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Creates the filter.
    Create,
    /// Changes a filter whose base may have been left out of the snapshot.
    Change,
    /// The payload is Dragonfly's own: nobody else can read it.
    Opaque,
}

/// Where something is taken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    First,
    Last,
}

/// How a record is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// As it is, Blind.
    Blind,
    /// As it is, Guarded. In a cluster all its keys must lie in one slot.
    Guarded,
    /// Nothing to do at the target.
    Drop,
    /// SREM; from 1.16 to 1.34 a SPOP of nothing is recorded as one without members.
    Rem,
    /// PFMERGE over whatever keys of it are on this shard, recorded raw before 1.14: what it comes to has to be fetched.
    PfMerge,
    Set,
    /// SETEX (1000), PSETEX (1): SET PXAT.
    SetEx(i64),
    /// MSET and MSETNX (recorded also where it failed: its keys are in doubt): MSET for each slot.
    MSet,
    /// GETSET: SET.
    GetSet,
    /// SETNX: SET. Its key may be one that the source has deleted silently (wire 2.10).
    SetNx,
    /// DEL, UNLINK, GETDEL: DEL for each slot.
    Del,
    /// RENAME: a DEL of the new name in front, for the target may lack what it gets.
    Rename,
    /// RENAMENX: the same, for the target may hold the new name, which the source has deleted silently.
    RenameNx,
    GetEx,
    PExpireAt,
    Persist,
    /// EXPIRE (1000, true), PEXPIRE (1, true), EXPIREAT (1000, false): PEXPIREAT.
    Expire(i64, bool),
    Prepend,
    AddFloat,
    DelEx,
    /// LPOP, RPOP: with a count LTRIM, which does not answer with what it removes (it may be millions).
    Pop(End),
    /// ZPOPMIN, ZPOPMAX: likewise ZREMRANGEBYRANK.
    ZPop(End),
    BitField,
    ZAdd,
    GeoAdd,
    Restore,
    Move,
    Sort,
    /// LMPOP, BLMPOP, ZMPOP: the form that does not block, under this name; before Redis 7.0 LPOP and the like. With the
    /// position of the number of keys.
    MultiPop(&'static str, usize),
    RangeStore,
    /// ZUNIONSTORE, ZINTERSTORE, ZDIFFSTORE.
    Combine,
    /// GEORADIUS and BYMEMBER with the position of the first option.
    GeoRadius(usize),
    /// BLMOVE, BRPOPLPUSH: the form that does not block, under this name, without the timeout.
    Unblock(&'static str),
    HExpire,
    FieldExpire,
    HSetEx,
    HGetEx,
    AddFieldFloat,
    SAddEx,
    XAdd,
    XClaim,
    XAutoClaim,
    XGroup,
    XSetId,
    JsonSet,
    JsonMSet,
    JsonDel,
    JsonMerge,
    Json,
    Filters(Filter),
    CmsMerge,
    Throttle,
    Search,
    Script,
    DflyCluster,
    FlushAll,
    FlushDb,
}

/// One command name.
#[derive(Debug)]
pub struct Row {
    /// Upper case.
    pub name: &'static str,
    /// Least number of strings, the name included; below it the record is refused.
    pub args_min: usize,
    pub keys: Keys,
    pub how: How,
    /// Bit n: string n is an integer, which Dragonfly reads more generously than the target (`+1`, `01`).
    pub ints: u8,
}

const fn row(name: &'static str, args_min: usize, keys: Keys, how: How) -> Row {
    Row { name, args_min, keys, how, ints: 0 }
}

impl Row {
    /// The same where the strings at these positions are integers.
    const fn ints(mut self, positions: &[usize]) -> Self {
        let mut at = 0;
        while at < positions.len() {
            self.ints |= 1 << positions[at];
            at += 1;
        }
        self
    }
}

/// Every name, by family.
pub static TABLE: &[Row] = &[
    // Strings.
    row("SET", 3, First, How::Set),
    row("MSET", 3, Twos, How::MSet),
    row("DEL", 2, All, How::Del),
    row("INCR", 2, First, How::Guarded),
    row("DECR", 2, First, How::Guarded),
    row("INCRBY", 3, First, How::Guarded).ints(&[2]),
    row("DECRBY", 3, First, How::Guarded).ints(&[2]),
    row("INCRBYFLOAT", 3, First, How::AddFloat),
    row("APPEND", 3, First, How::Guarded),
    row("PREPEND", 3, First, How::Prepend),
    row("SETRANGE", 4, First, How::Blind).ints(&[2]),
    row("SETBIT", 4, First, How::Blind).ints(&[2, 3]),
    row("BITFIELD", 2, First, How::BitField),
    row("SETNX", 3, First, How::SetNx),
    row("GETSET", 3, First, How::GetSet),
    row("GETDEL", 2, First, How::Del),
    row("DELEX", 2, First, How::DelEx),
    row("PFADD", 2, First, How::Guarded),
    row("CL.THROTTLE", 5, First, How::Throttle),
    // Recorded raw only by old masters, or never; kept because their meaning is plain.
    row("MSETNX", 3, Twos, How::MSet),
    row("SETEX", 4, First, How::SetEx(1000)),
    row("PSETEX", 4, First, How::SetEx(1)),
    row("GETEX", 2, First, How::GetEx),
    row("UNLINK", 2, All, How::Del),
    row("PFCOUNT", 2, All, How::Drop),
    row("PFMERGE", 2, All, How::PfMerge),
    // Keys.
    row("PEXPIREAT", 3, First, How::PExpireAt),
    row("PERSIST", 2, First, How::Persist),
    row("EXPIRE", 3, First, How::Expire(1000, true)),
    row("PEXPIRE", 3, First, How::Expire(1, true)),
    row("EXPIREAT", 3, First, How::Expire(1000, false)),
    row("RENAME", 3, FirstTwo, How::Rename),
    row("RENAMENX", 3, FirstTwo, How::RenameNx),
    row("MOVE", 3, First, How::Move).ints(&[2]),
    row("RESTORE", 4, First, How::Restore),
    row("STICK", 2, All, How::Drop),
    row("SHRINK", 1, Nothing, How::Drop),
    row("SORT", 2, Sort, How::Sort),
    // Hashes.
    row("HSET", 4, First, How::Blind),
    row("HMSET", 4, First, How::Blind),
    row("HSETNX", 4, First, How::Guarded),
    row("HDEL", 3, First, How::Guarded),
    row("HINCRBY", 4, First, How::Guarded).ints(&[3]),
    row("HINCRBYFLOAT", 4, First, How::AddFieldFloat),
    row("HEXPIRE", 6, First, How::HExpire),
    row("HSETEX", 5, First, How::HSetEx),
    row("HGETEX", 5, First, How::HGetEx),
    row("FIELDEXPIRE", 4, First, How::FieldExpire),
    // Lists.
    row("LPUSH", 3, First, How::Guarded),
    row("RPUSH", 3, First, How::Guarded),
    row("LPUSHX", 3, First, How::Guarded),
    row("RPUSHX", 3, First, How::Guarded),
    row("LPOP", 2, First, How::Pop(End::First)).ints(&[2]),
    row("RPOP", 2, First, How::Pop(End::Last)).ints(&[2]),
    row("LINSERT", 5, First, How::Guarded),
    row("LSET", 4, First, How::Blind).ints(&[2]),
    row("LTRIM", 4, First, How::Guarded).ints(&[2, 3]),
    row("LREM", 4, First, How::Guarded).ints(&[2]),
    // Raw only from old masters: when both keys lay on one shard; LMPOP from 1.27 to 1.33, BLMPOP in 1.28.32 and 1.28.33.
    row("LMOVE", 5, FirstTwo, How::Guarded),
    row("LMPOP", 2, Counted(1), How::MultiPop("LMPOP", 1)),
    row("BLMPOP", 2, Counted(2), How::MultiPop("LMPOP", 2)),
    row("BLMOVE", 6, FirstTwo, How::Unblock("LMOVE")),
    row("RPOPLPUSH", 3, FirstTwo, How::Guarded),
    row("BRPOPLPUSH", 4, FirstTwo, How::Unblock("RPOPLPUSH")),
    // Sets.
    row("SADD", 3, First, How::Blind),
    row("SREM", 2, First, How::Rem),
    row("SADDEX", 4, First, How::SAddEx),
    // Sorted sets and positions.
    row("ZADD", 4, First, How::ZAdd),
    row("ZINCRBY", 4, First, How::Guarded),
    row("ZREM", 3, First, How::Guarded),
    row("ZPOPMIN", 2, First, How::ZPop(End::First)).ints(&[2]),
    row("ZPOPMAX", 2, First, How::ZPop(End::Last)).ints(&[2]),
    row("ZREMRANGEBYRANK", 4, First, How::Guarded).ints(&[2, 3]),
    row("ZREMRANGEBYSCORE", 4, First, How::Guarded),
    row("ZREMRANGEBYLEX", 4, First, How::Guarded),
    // Raw only from old masters: ZUNIONSTORE and its kin up to 1.33, ZMPOP from 1.27 to 1.31, ZRANGESTORE from 1.23 to 1.34;
    // up to 1.21 ZINTER, which only reads.
    row("ZUNIONSTORE", 2, Merge, How::Combine),
    row("ZINTERSTORE", 2, Merge, How::Combine),
    row("ZDIFFSTORE", 2, Merge, How::Combine),
    row("ZINTER", 2, Nothing, How::Drop),
    row("ZMPOP", 2, Counted(1), How::MultiPop("ZMPOP", 1)),
    row("ZRANGESTORE", 2, FirstTwo, How::RangeStore),
    row("GEOADD", 5, First, How::GeoAdd),
    row("GEORADIUS", 2, Geo, How::GeoRadius(6)),
    row("GEORADIUSBYMEMBER", 2, Geo, How::GeoRadius(5)),
    // Streams.
    row("XADD", 5, First, How::XAdd),
    row("XTRIM", 4, First, How::Guarded),
    row("XDEL", 3, First, How::Guarded),
    row("XACK", 4, First, How::Guarded),
    row("XCLAIM", 6, First, How::XClaim),
    row("XAUTOCLAIM", 6, First, How::XAutoClaim),
    row("XSETID", 3, First, How::XSetId),
    row("XGROUP", 3, Second, How::XGroup),
    // JSON.
    row("JSON.SET", 4, First, How::JsonSet),
    row("JSON.MSET", 4, Triples, How::JsonMSet),
    row("JSON.DEL", 2, First, How::JsonDel),
    row("JSON.FORGET", 2, First, How::JsonDel),
    row("JSON.MERGE", 4, First, How::JsonMerge),
    row("JSON.CLEAR", 2, First, How::Json),
    row("JSON.TOGGLE", 2, First, How::Json),
    row("JSON.NUMINCRBY", 4, First, How::Json),
    row("JSON.NUMMULTBY", 4, First, How::Json),
    row("JSON.STRAPPEND", 3, First, How::Json),
    row("JSON.ARRAPPEND", 4, First, How::Json),
    row("JSON.ARRINSERT", 5, First, How::Json),
    row("JSON.ARRPOP", 2, First, How::Json),
    row("JSON.ARRTRIM", 5, First, How::Json),
    // Filters.
    row("BF.RESERVE", 4, First, How::Filters(Filter::Create)),
    row("BF.ADD", 3, First, How::Filters(Filter::Change)),
    row("BF.MADD", 3, First, How::Filters(Filter::Change)),
    row("BF.LOADCHUNK", 4, First, How::Filters(Filter::Opaque)),
    row("CF.RESERVE", 3, First, How::Filters(Filter::Create)),
    row("CF.ADD", 3, First, How::Filters(Filter::Change)),
    row("CF.ADDNX", 3, First, How::Filters(Filter::Change)),
    row("CF.INSERT", 4, First, How::Filters(Filter::Change)),
    row("CF.INSERTNX", 4, First, How::Filters(Filter::Change)),
    row("CF.DEL", 3, First, How::Filters(Filter::Change)),
    row("CF.COMPACT", 2, First, How::Filters(Filter::Change)),
    row("CMS.INITBYDIM", 4, First, How::Filters(Filter::Create)),
    row("CMS.INITBYPROB", 4, First, How::Filters(Filter::Create)),
    row("CMS.INCRBY", 4, First, How::Filters(Filter::Change)),
    row("CMS.MERGE", 2, Merge, How::CmsMerge),
    row("TOPK.RESERVE", 3, First, How::Filters(Filter::Create)),
    row("TOPK.ADD", 3, First, How::Filters(Filter::Change)),
    row("TOPK.INCRBY", 4, First, How::Filters(Filter::Change)),
    // Whole server.
    row("FT.CREATE", 2, Nothing, How::Search),
    row("FT.ALTER", 2, Nothing, How::Search),
    row("FT.DROPINDEX", 2, Nothing, How::Search),
    row("FT.SYNUPDATE", 2, Nothing, How::Search),
    row("SCRIPT", 2, Nothing, How::Script),
    row("FLUSHALL", 1, Nothing, How::FlushAll),
    row("FLUSHDB", 1, Nothing, How::FlushDb),
    row("DFLYCLUSTER", 2, Nothing, How::DflyCluster),
    // What stands for a JSON.MSET that stored nothing.
    row("PING", 1, Nothing, How::Drop),
];

/// The row of a command name in any letter case; `None` for a name that is not known.
pub fn find(name: &[u8]) -> Option<(usize, &'static Row)> {
    if name.is_empty() {
        return None;
    }
    let mut at = hash(name);
    loop {
        let position = usize::from(INDEX[at & (INDEX.len() - 1)]);
        let row = TABLE.get(position)?;
        if row.name.as_bytes().eq_ignore_ascii_case(name) {
            return Some((position, row));
        }
        at += 1;
    }
}

/// Marks an empty place of [`INDEX`]: no row has this number.
const NO_ROW: u8 = u8::MAX;
const _: () = assert!(TABLE.len() < NO_ROW as usize);

/// Row numbers by hash of the name, with linear probing; four times as many places as rows, so probing ends soon.
static INDEX: [u8; 512] = build_index();

const fn build_index() -> [u8; 512] {
    let mut index = [NO_ROW; 512];
    assert!(TABLE.len() * 2 < index.len());
    let mut position = 0;
    while position < TABLE.len() {
        let mut at = hash(TABLE[position].name.as_bytes()) & (index.len() - 1);
        while index[at] != NO_ROW {
            at = (at + 1) & (index.len() - 1);
        }
        index[at] = position as u8;
        position += 1;
    }
    index
}

/// Of a name that is not empty; the same for both letter cases.
const fn hash(name: &[u8]) -> usize {
    const UPPER: u8 = 0xdf;
    let first = (name[0] & UPPER) as usize;
    let middle = (name[name.len() / 2] & UPPER) as usize;
    let third = (name[name.len() * 3 / 4] & UPPER) as usize;
    let last = (name[name.len() - 1] & UPPER) as usize;
    first * 31 + middle * 113 + third * 241 + last * 7 + name.len() * 59
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_in_any_case_and_once() {
        for (position, row) in TABLE.iter().enumerate() {
            assert_eq!(find(row.name.as_bytes()).map(|(at, _)| at), Some(position), "{}", row.name);
            assert_eq!(find(row.name.to_ascii_lowercase().as_bytes()).map(|(at, _)| at), Some(position));
            assert_eq!(row.name, row.name.to_ascii_uppercase());
        }
    }

    /// What a batch is routed by again, when a node sent it elsewhere or was lost, is what it was routed by at first. (BLMPOP is sent as
    /// LMPOP.)
    #[test]
    fn what_is_sent_is_found_by_the_key_that_it_was_routed_by() {
        let with_keys = TABLE.iter().filter(|row| row.keys != Nothing && row.name != "BLMPOP");
        for Row { name, keys, .. } in with_keys {
            let line = match keys {
                Counted(1) => format!("{name} 1 k LEFT"),
                Second => format!("{name} CREATE k g 0"),
                Merge => format!("{name} k 1 k"),
                _ => format!("{name} k k v"),
            };
            let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            let first = crate::convert::journal::key_positions(&args).into_iter().min();
            assert_eq!(crate::redis::request::key_position(name.as_bytes()), first, "{line}");
        }
    }

    #[test]
    fn other_names_are_not_found() {
        for name in ["", "S", "SE", "SETS", "GET", "XREADGROUP", "BZMPOP", "\u{0}", "JSON.GET", "EVAL"] {
            assert!(find(name.as_bytes()).is_none(), "{name}");
        }
        assert!(find(&[0xff; 4096]).is_none());
    }

    #[test]
    fn hot_names_are_found_within_a_few_steps() {
        for row in TABLE {
            let home = hash(row.name.as_bytes()) & (INDEX.len() - 1);
            let steps = (0..INDEX.len())
                .position(|step| {
                    let position = usize::from(INDEX[(home + step) & (INDEX.len() - 1)]);
                    TABLE.get(position).is_some_and(|found| found.name == row.name)
                })
                .unwrap();
            assert!(steps <= 8, "{} takes {steps} steps", row.name);
        }
    }
}
