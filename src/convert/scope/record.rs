//! Recorded commands under a scope: what is left of one, and its names at the target.
//!
//! In: the strings of a record, with the source's names. Out: the record as it is, other records that come to the same for
//! the keys in scope, or nothing. Two steps, because what is asked about a key by its name at the source (owner, suspects)
//! lies between them: [`Scope::filter_record`], then [`Scope::name_record`].
//!
//! The type of a key is known from the command for most families. Where it is not (DEL, PEXPIREAT, PERSIST), the command goes
//! through: at the target a key of a type that is left out does not exist, so nothing happens. A command that *replaces* a
//! key by a type that is left out becomes a DEL of it.

use super::{Reason, Scope, ScopeError};
use crate::convert::escape;
use crate::convert::journal::{Args, is_whole, key_positions, payload_class};
use crate::convert::tally::TypeClass;
use crate::ids::DbIndex;
use smallvec::{SmallVec, smallvec};
use std::ops::Range;

/// What is left of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scoped<'a> {
    /// All of it.
    Same,
    /// These records in its place, in their order. `reason`: why it did not go as it was.
    Instead { records: Vec<Args<'a>>, reason: Reason },
    /// Nothing.
    Out(Reason),
}

/// Memory for the names of one record, reused.
#[derive(Debug, Default)]
pub struct Sketch {
    bytes: Vec<u8>,
    /// Position among the strings, and where its new text stands in `bytes`.
    texts: Vec<(usize, Range<usize>)>,
}

impl Sketch {
    /// The record with its names at the target.
    pub fn record<'r>(&'r self, args: &[&'r [u8]]) -> Args<'r> {
        let mut named = Args::from_slice(args);
        for (at, range) in &self.texts {
            if let (Some(arg), Some(text)) = (named.get_mut(*at), self.bytes.get(range.clone())) {
                *arg = text;
            }
        }
        named
    }
}

impl Scope {
    /// What of a record concerns keys in scope. Errors: it reaches over the border of the scope in a way that cannot be
    /// taken apart.
    pub fn filter_record<'a>(&self, db: DbIndex, args: &[&'a [u8]]) -> Result<Scoped<'a>, ScopeError> {
        let own = || key_positions(args).into_iter().any(|at| args.get(at).is_some_and(|key| self.becomes_own(key)));
        match self.filter_by(db, args, &|key| self.admits_key(key)) {
            Ok(Scoped::Out(Reason::Key)) if own() => Ok(Scoped::Out(Reason::Own)),
            Ok(Scoped::Instead { records, reason: Reason::Key }) if own() => {
                Ok(Scoped::Instead { records, reason: Reason::Own })
            }
            Err(ScopeError::Border { db, key, command, .. }) if own() => {
                Err(ScopeError::Border { db, key, command, why: FROM_OWN })
            }
            scoped => scoped,
        }
    }

    /// The same where other names are in scope than this scope says.
    pub fn filter_by<'a>(
        &self,
        db: DbIndex,
        args: &[&'a [u8]],
        admits_key: &impl Fn(&[u8]) -> bool,
    ) -> Result<Scoped<'a>, ScopeError> {
        let border = |key: &[u8], why| Border { db, args, key, why }.error();
        let name = args.first().map(|name| name.to_ascii_uppercase()).unwrap_or_default();
        let positions = key_positions(args);
        if positions.is_empty() {
            return Ok(Scoped::Same);
        }
        let key = |index: usize| positions.get(index).and_then(|at| args.get(*at)).copied().unwrap_or_default();
        if name == b"MOVE" {
            return self.filter_move(db, args, key(0), admits_key).map_err(|why| border(key(0), why));
        }
        if !self.admits_db(db) {
            return Ok(Scoped::Out(Reason::Db));
        }
        let kept: SmallVec<[bool; 16]> =
            positions.iter().map(|at| args.get(*at).is_some_and(|key| admits_key(key))).collect();
        let all_kept = !kept.contains(&false);
        if !kept.contains(&true) {
            return Ok(Scoped::Out(Reason::Key));
        }
        let keys_kept = || {
            let kept = positions.iter().zip(&kept).filter(|(_, kept)| **kept);
            kept.filter_map(|(at, _)| args.get(*at).copied())
        };
        match name.as_slice() {
            b"DEL" | b"UNLINK" | b"STICK" if !all_kept => Ok(some_of(args, &positions, &kept, 1)),
            b"DEL" | b"UNLINK" | b"STICK" => Ok(Scoped::Same),
            b"MSET" | b"MSETNX" if !self.admits_type(TypeClass::String) => Ok(deletes(keys_kept())),
            b"MSET" | b"MSETNX" if !all_kept => Ok(some_of(args, &positions, &kept, 2)),
            // At the root it may replace a key of another type.
            b"JSON.MSET" if !self.admits_type(TypeClass::Json) => Ok(deletes(keys_kept())),
            b"JSON.MSET" if !all_kept => Ok(some_of(args, &positions, &kept, 3)),
            b"RENAME" | b"RENAMENX" => match (kept.first(), kept.get(1)) {
                (Some(true), Some(false)) => {
                    Ok(Scoped::Instead { records: vec![delete([key(0)].into_iter())], reason: Reason::Key })
                }
                (Some(false), Some(true)) => Err(border(key(1), FROM_OUTSIDE)),
                _ => Ok(Scoped::Same),
            },
            b"LMOVE" | b"BLMOVE" | b"RPOPLPUSH" | b"BRPOPLPUSH" => match (kept.first(), kept.get(1)) {
                _ if !self.admits_type(TypeClass::List) => Ok(Scoped::Out(Reason::Type)),
                (Some(true), Some(false)) => {
                    let left = args.get(3).is_some_and(|side| side.eq_ignore_ascii_case(b"LEFT"));
                    let pop: &[u8] = if left && name.ends_with(b"LMOVE") { b"LPOP" } else { b"RPOP" };
                    Ok(Scoped::Instead { records: vec![smallvec![pop, key(0)]], reason: Reason::Key })
                }
                (Some(false), Some(true)) => Err(border(key(1), FROM_OUTSIDE)),
                _ => Ok(Scoped::Same),
            },
            // Of a record that lost its operands nobody knows which key was written.
            b"GEORADIUS" | b"GEORADIUSBYMEMBER" | b"ZRANGESTORE" if !is_whole(args) => {
                match self.admits_type(TypeClass::Zset) {
                    true => Ok(truncated(args, &positions, &kept)),
                    // It is a sorted set, or was made one.
                    false => Ok(deletes(keys_kept())),
                }
            }
            b"SORT" | b"ZUNIONSTORE" | b"ZINTERSTORE" | b"ZDIFFSTORE" if !is_whole(args) => {
                Ok(truncated(args, &positions, &kept))
            }
            b"PFMERGE" if self.admits_type(TypeClass::String) => Ok(truncated(args, &positions, &kept)),
            b"SORT" => self
                .filter_sort(args, key(0), positions.get(1).map(|_| key(1)), admits_key)
                .map_err(|why| border(key(0), why)),
            b"GEORADIUS" | b"GEORADIUSBYMEMBER" => match (positions.len(), kept.first(), kept.get(1)) {
                (_, _, Some(false)) => Ok(Scoped::Out(Reason::Key)),
                // A read.
                (1, ..) => Ok(Scoped::Same),
                _ if !self.admits_type(TypeClass::Zset) => {
                    Ok(perhaps_stored(smallvec![args.first().copied().unwrap_or_default(), key(1)]))
                }
                (_, Some(false), _) => Err(border(key(1), FROM_OUTSIDE)),
                _ => Ok(Scoped::Same),
            },
            b"LMPOP" | b"BLMPOP" | b"ZMPOP" if !all_kept => Err(border(key(0), FROM_ANY)),
            b"ZRANGESTORE" => match (kept.first(), kept.get(1)) {
                (Some(false), _) => Ok(Scoped::Out(Reason::Key)),
                _ if !self.admits_type(TypeClass::Zset) => Ok(deletes([key(0)].into_iter())),
                (_, Some(false)) => Err(border(key(0), FROM_OUTSIDE)),
                _ => Ok(Scoped::Same),
            },
            b"ZUNIONSTORE" | b"ZINTERSTORE" | b"ZDIFFSTORE" => {
                let to = args.get(1).copied().unwrap_or_default();
                match kept.split_last() {
                    Some((false, _)) => Ok(Scoped::Out(Reason::Key)),
                    _ if !self.admits_type(TypeClass::Zset) => Ok(deletes([to].into_iter())),
                    Some((true, sources)) if sources.contains(&false) => Err(border(to, FROM_OUTSIDE)),
                    _ if !self.admits_type(TypeClass::Set) => Err(border(to, FROM_TYPES)),
                    _ => Ok(Scoped::Same),
                }
            }
            b"CMS.MERGE" => match kept.split_last() {
                _ if !self.admits_type(TypeClass::Filter) => Ok(Scoped::Out(Reason::Type)),
                _ if !is_whole(args) => Ok(truncated(args, &positions, &kept)),
                Some((false, _)) => Ok(Scoped::Out(Reason::Key)),
                Some((true, sources)) if sources.contains(&false) => Err(border(
                    positions.last().and_then(|at| args.get(*at)).copied().unwrap_or_default(),
                    FROM_OUTSIDE,
                )),
                _ => Ok(Scoped::Same),
            },
            b"RESTORE" => {
                let class = args.get(3).and_then(|payload| payload_class(payload));
                match class {
                    Some(class) if !self.admits_type(class) => Ok(deletes([key(0)].into_iter())),
                    _ => Ok(Scoped::Same),
                }
            }
            b"SET" | b"SETEX" | b"PSETEX" if !self.admits_type(TypeClass::String) => Ok(deletes([key(0)].into_iter())),
            // It is recorded where a key of any type was there, too, and did nothing then.
            b"JSON.SET" if args.get(4).is_some_and(|word| word.eq_ignore_ascii_case(b"NX")) => {
                Ok(if self.admits_type(TypeClass::Json) { Scoped::Same } else { Scoped::Out(Reason::Type) })
            }
            b"JSON.SET" if !self.admits_type(TypeClass::Json) => {
                // At the root it may replace a key of another type.
                Ok(deletes([key(0)].into_iter()))
            }
            b"FIELDEXPIRE" if !self.admits_type(TypeClass::Hash) && !self.admits_type(TypeClass::Set) => {
                Ok(Scoped::Out(Reason::Type))
            }
            name => Ok(match class_of(name) {
                Some(class) if !self.admits_type(class) => Scoped::Out(Reason::Type),
                _ => Scoped::Same,
            }),
        }
    }

    /// Notes the names at the target of a record that is in scope; [`Sketch::record`] then gives it. Returns its database there.
    pub fn name_record(&self, db: DbIndex, args: &[&[u8]], sketch: &mut Sketch) -> Result<DbIndex, ScopeError> {
        sketch.bytes.clear();
        sketch.texts.clear();
        let positions = key_positions(args);
        if positions.is_empty() {
            // Global commands are mapped where they are executed; scripts stand in no database.
            let flush = args.first().is_some_and(|name| name.eq_ignore_ascii_case(b"FLUSHDB"));
            return Ok(if flush { db } else { DbIndex(0) });
        }
        if self.rewrites() {
            for at in positions {
                let Some(key) = args.get(at) else { continue };
                let start = sketch.bytes.len();
                self.push_name(db, key, &mut sketch.bytes)?;
                sketch.texts.push((at, start..sketch.bytes.len()));
            }
        }
        if args.first().is_some_and(|name| name.eq_ignore_ascii_case(b"MOVE"))
            && let Some(to) = args.get(2).and_then(|text| number(text))
        {
            let start = sketch.bytes.len();
            sketch.bytes.extend_from_slice(self.target_db(DbIndex(to))?.to_string().as_bytes());
            sketch.texts.push((2, start..sketch.bytes.len()));
        }
        self.target_db(db)
    }

    fn filter_move<'a>(
        &self,
        db: DbIndex,
        args: &[&'a [u8]],
        key: &[u8],
        admits_key: &impl Fn(&[u8]) -> bool,
    ) -> Result<Scoped<'a>, &'static str> {
        if !admits_key(key) {
            return Ok(Scoped::Out(Reason::Key));
        }
        // What is no number the translation refuses.
        let Some(to) = args.get(2).and_then(|text| number(text)).map(DbIndex) else { return Ok(Scoped::Same) };
        match (self.admits_db(db), self.admits_db(to)) {
            (false, false) => Ok(Scoped::Out(Reason::Db)),
            (true, true) if self.filters_types() => Err(
                "moves a key whose type is not recorded, and types are left out; remedy: no type filter, or a new full sync",
            ),
            (true, true) if self.target_db(db).ok() == self.target_db(to).ok() => {
                Err("moves a key between databases that are one at the target (--db-merge)")
            }
            (true, true) => Ok(Scoped::Same),
            _ => {
                Err("moves a key between a database that is carried and one that is not (--include-db, --exclude-db); \
                      remedy: carry both, with a new full sync")
            }
        }
    }

    /// SORT with STORE reads lists, sets and sorted sets, and other keys through its patterns.
    fn filter_sort<'a>(
        &self,
        args: &[&'a [u8]],
        from: &[u8],
        store: Option<&'a [u8]>,
        admits_key: &impl Fn(&[u8]) -> bool,
    ) -> Result<Scoped<'a>, &'static str> {
        let Some(store) = store else {
            // Without STORE a read, or a record that lost its operands, which the translation notes.
            return Ok(if admits_key(from) { Scoped::Same } else { Scoped::Out(Reason::Key) });
        };
        if !admits_key(store) {
            return Ok(Scoped::Out(Reason::Key));
        }
        if !self.admits_type(TypeClass::List) {
            return Ok(perhaps_stored(smallvec![b"SORT".as_slice(), b"STORE".as_slice(), store]));
        }
        let reads_others = args.windows(2).any(|pair| {
            (pair[0].eq_ignore_ascii_case(b"BY") || pair[0].eq_ignore_ascii_case(b"GET")) && pair[1].contains(&b'*')
        });
        if !admits_key(from) {
            return Err(FROM_OUTSIDE);
        }
        if reads_others && (self.filters_keys() || self.filters_types() || self.rewrites()) {
            return Err(
                "reads other keys by a pattern (BY, GET), which may be left out or have other names at the target; \
                        remedy: a new full sync",
            );
        }
        if !self.admits_type(TypeClass::Set) || !self.admits_type(TypeClass::Zset) {
            return Err(FROM_TYPES);
        }
        Ok(Scoped::Same)
    }
}

const FROM_OUTSIDE: &str = "gives a key in scope the value of one that is left out, so the target does not have it; remedy: a wider \
                            filter, with a new full sync";

const FROM_OWN: &str = "reads a key that begins with df2redis:, as the tool's own keys at the target, or would there; such a key is not \
                        carried, so the target does not have it; remedy: rename it at the source, then a new full sync";

const FROM_ANY: &str = "takes from the first of several keys that holds something, and some of them are left out; remedy: a wider \
                        filter, with a new full sync";

const FROM_TYPES: &str =
    "stores what it reads from a key whose type may be left out; remedy: carry lists, sets and sorted sets";

/// A record that cannot be taken apart.
struct Border<'r, 'a> {
    db: DbIndex,
    args: &'r [&'a [u8]],
    key: &'r [u8],
    why: &'static str,
}

impl Border<'_, '_> {
    #[cold]
    fn error(self) -> ScopeError {
        ScopeError::Border {
            db: self.db.0,
            key: escape::for_message(self.key),
            command: self.args.first().map(|name| escape::for_message(name)).unwrap_or_default(),
            why: self.why,
        }
    }
}

/// The groups of `group` strings whose key is kept.
fn some_of<'a>(args: &[&'a [u8]], positions: &[usize], kept: &[bool], group: usize) -> Scoped<'a> {
    let mut left: Args<'a> = args.iter().take(1).copied().collect();
    for at in positions.iter().zip(kept).filter(|(_, kept)| **kept).map(|(at, _)| *at) {
        left.extend(args.iter().skip(at).take(group).copied());
    }
    Scoped::Instead { records: vec![left], reason: Reason::Key }
}

/// The translation tells of the keys that are kept: they may have been written.
fn truncated<'a>(args: &[&'a [u8]], positions: &[usize], kept: &[bool]) -> Scoped<'a> {
    if kept.contains(&false) { some_of(args, positions, kept, 1) } else { Scoped::Same }
}

/// A key of a type in scope may have stood there before; now another stands there at the source.
fn deletes<'a>(keys: impl Iterator<Item = &'a [u8]>) -> Scoped<'a> {
    Scoped::Instead { records: vec![delete(keys)], reason: Reason::Type }
}

/// Where there was nothing to read, SORT and GEORADIUS left alone what they would store into, and are recorded all the same: so the
/// key is not deleted, but told, as that of a record which lost its operands. `record`: in the form of such a one.
fn perhaps_stored(record: Args<'_>) -> Scoped<'_> {
    Scoped::Instead { records: vec![record], reason: Reason::Type }
}

fn delete<'a>(keys: impl Iterator<Item = &'a [u8]>) -> Args<'a> {
    std::iter::once(&b"DEL"[..]).chain(keys).collect()
}

fn number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The type of the key of a command, where the command alone tells.
fn class_of(name: &[u8]) -> Option<TypeClass> {
    const STRINGS: &[&[u8]] = &[
        b"INCR",
        b"DECR",
        b"INCRBY",
        b"DECRBY",
        b"INCRBYFLOAT",
        b"APPEND",
        b"PREPEND",
        b"SETRANGE",
        b"SETBIT",
        b"BITFIELD",
        b"SETNX",
        b"GETSET",
        b"GETDEL",
        b"PFADD",
        b"PFCOUNT",
        b"PFMERGE",
        b"CL.THROTTLE",
    ];
    const LISTS: &[&[u8]] = &[
        b"LPUSH", b"RPUSH", b"LPUSHX", b"RPUSHX", b"LPOP", b"RPOP", b"LINSERT", b"LSET", b"LTRIM", b"LREM", b"LMPOP",
        b"BLMPOP",
    ];
    const ZSETS: &[&[u8]] = &[b"GEOADD"];
    let begins = |front: &[u8]| name.starts_with(front);
    if STRINGS.contains(&name) {
        Some(TypeClass::String)
    } else if LISTS.contains(&name) {
        Some(TypeClass::List)
    } else if ZSETS.contains(&name) || begins(b"Z") {
        Some(TypeClass::Zset)
    } else if matches!(name, b"SADD" | b"SREM" | b"SADDEX") {
        Some(TypeClass::Set)
    } else if begins(b"JSON.") {
        Some(TypeClass::Json)
    } else if begins(b"BF.") || begins(b"CF.") || begins(b"CMS.") || begins(b"TOPK.") {
        Some(TypeClass::Filter)
    } else if begins(b"X") {
        Some(TypeClass::Stream)
    } else if begins(b"H") {
        Some(TypeClass::Hash)
    } else {
        None
    }
}

#[cfg(test)]
pub(super) fn class_of_name(name: &str) -> Option<TypeClass> {
    class_of(name.as_bytes())
}
