//! The hole of wire 2.10: keys that the source may have deleted without telling.
//!
//! A key in a bucket that the snapshot has not reached yet may be written by MSET, MSETNX, SETNX or GETSET (journaled, no
//! baseline before it) and then deleted (neither journaled nor sent). The target keeps it, the source has none. So the keys
//! of such records are remembered until a baseline or a later record settles them; what is left when the full sync is over must
//! be asked for at the source, and deleted at the target where the source has none.
//!
//! The next write in such a bucket has it sent, without the key, and is journaled, as all is from then on. If it is of the key
//! itself, no baseline tells that the string was gone. Its record may: what makes a list fails where there is a string, and fails
//! are not recorded, so the string is to be deleted first. Where it may have met the string or not (INCR of a number), nobody
//! knows what it came to: the key is remembered as changed, and must be fetched, or listed.
//!
//! The answer is of the moment when the source was asked. Until everything that it had recorded by then is applied, a record may
//! still come that was written behind a silent deletion; so what was listed is kept until then, and of what is about to be
//! deleted until that is done.
//!
//! Bounded: `bytes_used <= bytes_max`. A set that is full refuses with a typed error, and remembers that it did: the
//! answer is then incomplete and the caller must say so (or compare all keys).

use super::record::parse_int;
use super::several::{is_whole, stored_key};
use super::{keys_of, known_name};
use crate::dragonfly::session::Release;
use crate::ids::DbIndex;
use std::collections::HashMap;

/// The first release that deletes without a record.
const OMITS_DELETES: (u32, u32) = (1, 40);

/// Keys of one flow that must be asked for at the end of the full sync.
#[derive(Debug)]
pub struct Suspects {
    by_db: HashMap<DbIndex, HashMap<Box<[u8]>, Holds>>,
    keys_count: usize,
    bytes_used: usize,
    bytes_max: usize,
    omits_deletes: bool,
    /// They were listed: the full sync is over.
    is_listed: bool,
    /// Those whose value became unknown since.
    late: Vec<(DbIndex, Box<[u8]>)>,
}

/// A key that nothing settled.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Suspect {
    pub db: DbIndex,
    pub key: Vec<u8>,
    /// Its value is not known.
    pub is_changed: bool,
}

/// What is known of a suspect's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Integer,
    Float,
    HyperLogLog,
    Text,
    /// Nothing any more.
    Changed,
    /// Nothing, nor need it be: the source deletes nothing silently, and any later record says that the key is, or was, there.
    Whatever,
}

/// What a record that succeeded tells of a key that a suspect may be.
enum Tells {
    /// Its value is what the record says, or it is gone.
    Value,
    /// It is there.
    IsThere,
    /// It was no string: a key of another type was made, or is there.
    NoString,
    /// If it was there, it was a string for which this holds; in either case it is another one now.
    Changes(fn(Holds) -> bool),
    Nothing,
}

/// They make a key of another type where there is none, and fail where there is a string (JSON.SET replaces it, without a condition).
/// Others that concern other types may be recorded where there is no key, or even a string (XSETID, JSON.DEL).
const MAKE: [&str; 28] = [
    "LPUSH",
    "RPUSH",
    "HSET",
    "HMSET",
    "HSETNX",
    "HINCRBY",
    "HINCRBYFLOAT",
    "HSETEX",
    "SADD",
    "SADDEX",
    "ZADD",
    "ZINCRBY",
    "GEOADD",
    "XADD",
    "JSON.SET",
    "JSON.MERGE",
    "BF.RESERVE",
    "BF.ADD",
    "BF.MADD",
    "BF.LOADCHUNK",
    "CF.RESERVE",
    "CF.ADD",
    "CF.ADDNX",
    "CF.INSERT",
    "CF.INSERTNX",
    "CMS.INITBYDIM",
    "CMS.INITBYPROB",
    "TOPK.RESERVE",
];

impl Tells {
    fn of(name: &str, args: &[&[u8]]) -> Self {
        match name {
            "SET" | "SETEX" | "PSETEX" | "MSET" | "MSETNX" | "SETNX" | "GETSET" | "DEL" | "UNLINK" | "GETDEL"
            | "RESTORE" | "JSON.MSET" | "LMOVE" | "BLMOVE" | "RPOPLPUSH" | "BRPOPLPUSH" => Self::Value,
            "PEXPIREAT" | "PERSIST" | "EXPIRE" | "PEXPIRE" | "EXPIREAT" | "GETEX" => Self::IsThere,
            "INCR" | "DECR" | "INCRBY" | "DECRBY" => Self::Changes(|holds| holds == Holds::Integer),
            "INCRBYFLOAT" => Self::Changes(|holds| matches!(holds, Holds::Integer | Holds::Float)),
            "PFADD" => Self::Changes(|holds| holds == Holds::HyperLogLog),
            "APPEND" | "PREPEND" | "SETRANGE" | "SETBIT" | "BITFIELD" | "CL.THROTTLE" | "MOVE" => {
                Self::Changes(|_| true)
            }
            // With NX or XX it is recorded whatever it did.
            "JSON.SET" if args.len() > 4 => Self::Changes(|_| true),
            "XGROUP" if args.get(1).is_some_and(|word| word.eq_ignore_ascii_case(b"CREATE")) => Self::NoString,
            name if MAKE.contains(&name) => Self::NoString,
            _ => Self::Nothing,
        }
    }
}

impl Holds {
    fn of(value: &[u8]) -> Self {
        let is_float = || std::str::from_utf8(value).is_ok_and(|text| text.trim().parse::<f64>().is_ok());
        match () {
            () if parse_int(value).is_some() => Self::Integer,
            () if is_float() => Self::Float,
            () if value.starts_with(b"HYLL") => Self::HyperLogLog,
            () => Self::Text,
        }
    }
}

/// The set is full: the keys left out are unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "more than {bytes_max} bytes of keys were written by MSET, SETNX or GETSET during the full sync and may have been deleted \
     silently; remedy: start the source with --journal_omit_redundant_writes=false, migrate in a quieter hour, or compare \
     the key sets afterwards"
)]
pub struct SuspectsOverflow {
    pub bytes_max: usize,
}

/// What a key costs beside its bytes: the pointer in the table, its control byte, the allocator's header, half-full tables.
const KEY_OVERHEAD_BYTES: usize = 64;

impl Suspects {
    /// `bytes_max`: most memory that may be spent, counted as key bytes and [`KEY_OVERHEAD_BYTES`] each. A source whose release is
    /// not known is taken for a new one.
    pub fn new(bytes_max: usize, source: Option<Release>) -> Self {
        let omits_deletes = source.is_none_or(|release| (release.major, release.minor) >= OMITS_DELETES);
        Self {
            by_db: HashMap::new(),
            keys_count: 0,
            bytes_used: 0,
            bytes_max,
            omits_deletes,
            is_listed: false,
            late: Vec::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.keys_count
    }

    pub fn is_empty(&self) -> bool {
        self.keys_count == 0
    }

    /// Takes note of one record: its keys become suspects or are settled. Returns a key that was deleted before, and is to be at the
    /// target. `stable`: after the full sync, when every deletion is recorded.
    pub fn record<'a>(
        &mut self,
        db: DbIndex,
        args: &[&'a [u8]],
        stable: bool,
    ) -> Result<Option<&'a [u8]>, SuspectsOverflow> {
        let Some(name) = args.first() else { return Ok(None) };
        let leaves_a_hole = !stable
            && match name.len() {
                4 => name.eq_ignore_ascii_case(b"MSET"),
                5 => name.eq_ignore_ascii_case(b"SETNX"),
                6 => name.eq_ignore_ascii_case(b"MSETNX") || name.eq_ignore_ascii_case(b"GETSET"),
                _ => false,
            };
        if leaves_a_hole {
            let mut pairs = args.get(1..).unwrap_or_default().chunks(2);
            pairs.try_for_each(|pair| match pair {
                [key, value] if self.omits_deletes => self.put(db, key, Holds::of(value)),
                [key, ..] => self.written(db, key),
                [] => Ok(()),
            })?;
            return Ok(None);
        }
        if self.is_empty() || !keys_of(args).any(|key| self.is_suspect(db, key)) && !self.is_moved_onto(args) {
            return Ok(None);
        }
        self.follow(db, args)
    }

    /// A record of a suspect.
    #[cold]
    fn follow<'a>(&mut self, db: DbIndex, args: &[&'a [u8]]) -> Result<Option<&'a [u8]>, SuspectsOverflow> {
        let name = known_name(args);
        let Some(key) = keys_of(args).next() else { return Ok(None) };
        let holds = self.holds(db, key);
        if !self.omits_deletes {
            keys_of(args).for_each(|key| self.settled(db, key));
            return Ok(None);
        }
        match (Tells::of(name, args), holds) {
            (Tells::Value, _) => keys_of(args).for_each(|key| self.settled(db, key)),
            // Of a changed one it is still to be known what it holds.
            (Tells::IsThere | Tells::NoString, Some(Holds::Changed)) => {}
            (Tells::IsThere, _) => self.settled(db, key),
            (Tells::NoString, _) => {
                self.settled(db, key);
                return Ok(Some(key));
            }
            (Tells::Changes(_), _) if name == "MOVE" => {
                self.put(db, key, Holds::Changed)?;
                if let Some(to) = moved_to(args) {
                    self.put(to, key, Holds::Changed)?;
                }
            }
            (Tells::Changes(admits), Some(holds)) if holds != Holds::Changed && !admits(holds) => {
                self.settled(db, key);
                return Ok(Some(key));
            }
            (Tells::Changes(_), _) => self.put(db, key, Holds::Changed)?,
            (Tells::Nothing, _) if matches!(name, "RENAME" | "RENAMENX") => {
                keys_of(args).for_each(|key| self.settled(db, key));
                if holds == Some(Holds::Changed) {
                    keys_of(args).skip(1).try_for_each(|to| self.put(db, to, Holds::Changed))?;
                }
            }
            // What is left of a record that lost its operands names what it wrote.
            (Tells::Nothing, _) if !is_whole(args) => keys_of(args).for_each(|key| self.settled(db, key)),
            // It is recorded also where it read nothing, and then stored nothing, or failed.
            (Tells::Nothing, _) => match stored_key(args) {
                Some(stored) if self.is_suspect(db, stored) => self.put(db, stored, Holds::Changed)?,
                _ => {}
            },
        }
        Ok(None)
    }

    fn is_moved_onto(&self, args: &[&[u8]]) -> bool {
        moved_to(args).is_some_and(|to| args.get(1).is_some_and(|key| self.is_suspect(to, key)))
    }

    fn holds(&self, db: DbIndex, key: &[u8]) -> Option<Holds> {
        self.by_db.get(&db)?.get(key).copied()
    }

    /// `key` is to be asked for, until something is recorded of it.
    pub fn written(&mut self, db: DbIndex, key: &[u8]) -> Result<(), SuspectsOverflow> {
        self.put(db, key, Holds::Whatever)
    }

    fn put(&mut self, db: DbIndex, key: &[u8], new: Holds) -> Result<(), SuspectsOverflow> {
        if self.is_listed && new == Holds::Changed {
            self.settle(db, key);
            self.late.push((db, key.into()));
            return Ok(());
        }
        let keys = self.by_db.entry(db).or_default();
        if let Some(holds) = keys.get_mut(key) {
            // It will be fetched, or is listed: once is enough.
            if *holds != Holds::Changed {
                *holds = new;
            }
            return Ok(());
        }
        let bytes_used = self.bytes_used.saturating_add(key.len()).saturating_add(KEY_OVERHEAD_BYTES);
        if bytes_used > self.bytes_max {
            return Err(SuspectsOverflow { bytes_max: self.bytes_max });
        }
        keys.insert(key.into(), new);
        self.bytes_used = bytes_used;
        self.keys_count += 1;
        Ok(())
    }

    /// A baseline of `key` was seen.
    #[inline]
    pub fn settled(&mut self, db: DbIndex, key: &[u8]) {
        if !self.is_empty() {
            self.settle(db, key);
        }
    }

    fn settle(&mut self, db: DbIndex, key: &[u8]) {
        if self.by_db.get_mut(&db).is_some_and(|keys| keys.remove(key).is_some()) {
            self.bytes_used = self.bytes_used.saturating_sub(key.len() + KEY_OVERHEAD_BYTES);
            self.keys_count -= 1;
        }
    }

    /// Nothing settled the key so far.
    pub fn is_suspect(&self, db: DbIndex, key: &[u8]) -> bool {
        self.by_db.get(&db).is_some_and(|keys| keys.contains_key(key))
    }

    /// All keys that nothing settled. The changed ones are forgotten: of any that is, from now on, [`Suspects::take_late`] tells.
    pub fn list(&mut self) -> Vec<Suspect> {
        self.is_listed = true;
        let of_db = |(db, keys): (&DbIndex, &HashMap<Box<[u8]>, Holds>)| {
            let db = *db;
            let of_key =
                move |key: &[u8], holds| Suspect { db, key: key.to_vec(), is_changed: holds == Holds::Changed };
            keys.iter().map(|(key, holds)| of_key(key, *holds)).collect::<Vec<_>>()
        };
        let listed: Vec<Suspect> = self.by_db.iter().flat_map(of_db).collect();
        listed.iter().filter(|suspect| suspect.is_changed).for_each(|suspect| self.settle(suspect.db, &suspect.key));
        listed
    }

    /// Keys whose value has become unknown since they were listed.
    pub fn take_late(&mut self) -> Vec<(DbIndex, Box<[u8]>)> {
        std::mem::take(&mut self.late)
    }

    /// Forgets all others.
    pub fn keep(&mut self, is_kept: impl Fn(DbIndex, &[u8]) -> bool) {
        for (db, keys) in &mut self.by_db {
            keys.retain(|key, _| is_kept(*db, key));
        }
        self.keys_count = self.by_db.values().map(HashMap::len).sum();
        self.bytes_used = self.by_db.values().flat_map(HashMap::keys).map(|key| key.len() + KEY_OVERHEAD_BYTES).sum();
    }

    /// All keys that nothing settled, and forgets them.
    pub fn drain(&mut self) -> Vec<Suspect> {
        self.keys_count = 0;
        self.bytes_used = 0;
        let of_db = |(db, keys): (DbIndex, HashMap<Box<[u8]>, Holds>)| {
            let suspect = move |(key, holds): (Box<[u8]>, Holds)| Suspect {
                db,
                key: key.into_vec(),
                is_changed: holds == Holds::Changed,
            };
            keys.into_iter().map(suspect)
        };
        std::mem::take(&mut self.by_db).into_iter().flat_map(of_db).collect()
    }
}

/// The database into which a MOVE takes its key. It is recorded whatever it did.
fn moved_to(args: &[&[u8]]) -> Option<DbIndex> {
    let [name, _, to] = args else { return None };
    let to = name.eq_ignore_ascii_case(b"MOVE").then(|| parse_int(to))??;
    u32::try_from(to).ok().map(DbIndex)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(release: &str) -> Suspects {
        Suspects::new(1 << 20, Release::parse(release))
    }

    /// Returns what is to be deleted.
    fn record(suspects: &mut Suspects, db: u32, line: &str) -> Option<String> {
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let gone = suspects.record(DbIndex(db), &args, false).unwrap();
        gone.map(|key| String::from_utf8_lossy(key).into_owned())
    }

    /// What is left, those with a star changed.
    fn left(suspects: &mut Suspects) -> String {
        let mut left = suspects.drain();
        left.sort();
        let shown = |suspect: &Suspect| {
            let key = String::from_utf8_lossy(&suspect.key);
            format!("{}/{key}{}", suspect.db, if suspect.is_changed { "*" } else { "" })
        };
        left.iter().map(shown).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_nothing_settles_is_left() {
        let mut suspects = new("");
        for line in ["MSET a 1 b 2 c 3", "setnx d 1", "GETSET e 1", "MSETNX f 1", "SET never 1"] {
            assert_eq!(record(&mut suspects, 0, line), None);
        }
        record(&mut suspects, 1, "MSET a 1");
        assert_eq!(suspects.len(), 7);
        record(&mut suspects, 0, "DEL a d");
        record(&mut suspects, 0, "PERSIST b");
        suspects.settled(DbIndex(0), b"e");
        suspects.settled(DbIndex(0), b"none");
        record(&mut suspects, 0, "MSET b 2");
        assert_eq!(left(&mut suspects), "0/b 0/c 0/f 1/a");
        assert!(suspects.is_empty() && suspects.drain().is_empty());
        record(&mut suspects, 0, "MSET a 1");
        suspects.record(DbIndex(0), &[b"MSET", b"a", b"1", b"b", b"1"], true).unwrap();
        assert!(suspects.is_empty());
    }

    /// First the string is written, then the line is recorded: what is deleted, and what is left.
    #[test]
    fn a_record_tells_what_it_can_have_met() {
        for (value, line, deleted, wanted) in [
            ("v", "RPUSH k e", "k", ""),
            ("5", "HSETNX k f v", "k", ""),
            ("v", "xgroup create k g $ MKSTREAM", "k", ""),
            ("v", "JSON.SET k $ {}", "k", ""),
            ("v", "INCR k", "k", ""),
            ("1.5", "INCRBY k 1", "k", ""),
            ("1.5", "INCRBYFLOAT k 1", "", "0/k*"),
            ("v", "PFADD k e", "k", ""),
            ("HYLL", "PFADD k e", "", "0/k*"),
            (" +5", "DECR k", "", "0/k*"),
            ("v", "APPEND k e", "", "0/k*"),
            ("v", "JSON.SET k $ {} NX", "", "0/k*"),
            ("v", "MOVE k 3", "", "0/k* 3/k*"),
            ("v", "RENAME k l", "", ""),
            ("v", "RENAMENX l k", "", ""),
            ("v", "SETNX k e", "", "0/k"),
            ("v", "GETDEL k", "", ""),
            ("v", "PEXPIREAT k 5", "", ""),
            ("v", "SORT s STORE k", "", "0/k*"),
            ("v", "SORT k STORE", "", ""),
            // Recorded where there is no key as well, or where there is a string.
            ("v", "SORT k STORE d", "", "0/k"),
            ("v", "STICK k", "", "0/k"),
            ("v", "DELEX k IFEQ e", "", "0/k"),
            ("v", "LPUSHX k e", "", "0/k"),
            ("v", "XSETID k 5-5", "", "0/k"),
            ("v", "XGROUP DESTROY k g", "", "0/k"),
        ] {
            let mut suspects = new("df-v1.40.1");
            record(&mut suspects, 0, "MSET k x");
            suspects.record(DbIndex(0), &[b"MSET", b"k", value.as_bytes()], false).unwrap();
            assert_eq!(record(&mut suspects, 0, line).unwrap_or_default(), deleted, "{value}: {line}");
            assert_eq!(left(&mut suspects), wanted, "{value}: {line}");
            // Older ones delete nothing silently.
            let mut suspects = new("df-v1.39.0");
            record(&mut suspects, 0, "MSET k v");
            assert_eq!(record(&mut suspects, 0, line), None, "{line}");
        }
    }

    #[test]
    fn what_was_changed_stays_so_under_any_name() {
        let mut suspects = new("df-v1.40.1");
        for line in ["MSET k 5", "INCR k", "PERSIST k", "RPUSH k e", "MSET k 6", "INCR k", "RENAME k l"] {
            assert_eq!(record(&mut suspects, 0, line), None, "{line}");
        }
        record(&mut suspects, 1, "MSET m 5");
        record(&mut suspects, 0, "MOVE m 1");
        assert_eq!(left(&mut suspects), "0/l* 0/m* 1/m*");
    }

    #[test]
    fn a_full_set_refuses_and_keeps_what_it_has() {
        let mut suspects = Suspects::new(2 * (KEY_OVERHEAD_BYTES + 1), None);
        suspects.written(DbIndex(0), b"a").unwrap();
        suspects.written(DbIndex(0), b"b").unwrap();
        suspects.written(DbIndex(0), b"b").unwrap();
        assert_eq!(suspects.written(DbIndex(0), b"c"), Err(SuspectsOverflow { bytes_max: suspects.bytes_max }));
        suspects.settled(DbIndex(0), b"a");
        suspects.written(DbIndex(0), b"c").unwrap();
        assert_eq!(suspects.len(), 2);
    }

    /// The source is asked meanwhile; a record may still tell that a key was deleted before.
    #[test]
    fn what_was_listed_is_known_until_it_is_forgotten() {
        let mut suspects = new("df-v1.40.0");
        for line in ["MSET n 5 text v l v gone v late v", "INCR n"] {
            record(&mut suspects, 0, line);
        }
        let listed = suspects.list();
        let changed: Vec<&[u8]> = listed.iter().filter(|of| of.is_changed).map(|of| &of.key[..]).collect();
        assert_eq!((listed.len(), changed), (5, vec![&b"n"[..]]));
        let mut stable = |line: &str| {
            let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            let deleted =
                suspects.record(DbIndex(0), &args, true).unwrap().map(|key| String::from_utf8_lossy(key).into_owned());
            let late: Vec<String> =
                suspects.take_late().iter().map(|(_, key)| String::from_utf8_lossy(key).into_owned()).collect();
            (deleted.unwrap_or_default(), late.join(" "))
        };
        let of = |deleted: &str, late: &str| (deleted.to_string(), late.to_string());
        // It is to be fetched already.
        assert_eq!(stable("INCR n"), of("", ""));
        assert_eq!(stable("INCR text"), of("text", ""));
        assert_eq!(stable("APPEND late x"), of("", "late"));
        assert_eq!(stable("APPEND late x"), of("", ""));
        suspects.keep(|_, key| key == b"gone");
        assert_eq!((suspects.len(), suspects.bytes_used), (1, 4 + KEY_OVERHEAD_BYTES));
        let args: [&[u8]; 3] = [b"RPUSH", b"gone", b"e"];
        assert_eq!(suspects.record(DbIndex(0), &args, true), Ok(Some(&b"gone"[..])));
        assert!(suspects.is_empty());
    }
}
