//! The keys of a recorded command: needed for strays, suspects, cluster slots and reports.
//!
//! In: the strings of a record, name first. Out: the keys, in their order, borrowed from it. A name that is not known has
//! no keys here; a record that is too short has as many as are present. Nothing is allocated.

use super::table::{self, Keys, Row};
use smallvec::SmallVec;

/// The strings of a record as a slice-like value. Records of up to 16 strings need no memory of their own.
pub type Args<'a> = SmallVec<[&'a [u8]; 16]>;

/// The keys of a record.
pub fn keys_of<'r, 'a>(args: &'r [&'a [u8]]) -> KeyIter<'r, 'a> {
    match args.first().and_then(|name| table::find(name)) {
        Some((_, row)) => keys_in(row, args),
        None => KeyIter { args: &[], step: 1, extra: None, words: false },
    }
}

/// The key of a record that might be a stray (wire 1.1): PFMERGE stores its result on every shard that holds one of its
/// keys and records a SET of a HyperLogLog there. The caller computes the owner and drops what the flow does not own.
pub fn stray_candidate<'a>(args: &[&'a [u8]]) -> Option<&'a [u8]> {
    match args {
        [name, key, value, ..] if name.eq_ignore_ascii_case(b"SET") && value.starts_with(b"HYLL") => Some(key),
        _ => None,
    }
}

/// Walks over a record's keys.
#[derive(Clone, Debug)]
pub struct KeyIter<'r, 'a> {
    /// Begins at the next key.
    args: &'r [&'a [u8]],
    step: usize,
    /// A key that stands apart (STORE).
    extra: Option<&'a [u8]>,
    /// Words of a SORT stand among them.
    words: bool,
}

impl<'a> Iterator for KeyIter<'_, 'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        while let Some((key, _)) = self.args.split_first() {
            self.args = self.args.get(self.step..).unwrap_or_default();
            if !self.words || !is_sort_word(key) {
                return Some(key);
            }
        }
        self.extra.take()
    }
}

pub(super) fn keys_in<'r, 'a>(row: &Row, args: &'r [&'a [u8]]) -> KeyIter<'r, 'a> {
    let range = |from: usize, to: usize| args.get(from..to.min(args.len())).unwrap_or_default();
    let (front, step, extra) = match row.keys {
        Keys::Nothing => (range(0, 0), 1, None),
        Keys::First => (range(1, 2), 1, None),
        Keys::Second => (range(2, 3), 1, None),
        Keys::FirstTwo => (range(1, 3), 1, None),
        Keys::All => (range(1, args.len()), 1, None),
        Keys::Counted(at) => (counted_keys(args, at).unwrap_or(range(1, args.len())), 1, None),
        Keys::Twos => (range(1, args.len()), 2, None),
        Keys::Triples => (range(1, args.len()), 3, None),
        Keys::Sort if !is_whole_sort(args) => (range(1, args.len()), 1, None),
        Keys::Sort => (range(1, 2), 1, sort_store(args)),
        Keys::Geo => (range(1, 2), 1, geo_store(args)),
        Keys::Merge => match merge_sources(args) {
            Some(sources) => (sources, 1, args.get(1).copied()),
            None => (range(1, args.len()), 1, None),
        },
    };
    KeyIter { args: front, step, extra, words: row.keys == Keys::Sort && !is_whole_sort(args) }
}

/// Positions of a record's keys among its strings, in the order of [`keys_of`].
pub fn key_positions(args: &[&[u8]]) -> SmallVec<[usize; 16]> {
    let Some((_, row)) = args.first().and_then(|name| table::find(name)) else { return SmallVec::new() };
    let end = args.len();
    let (range, step, extra) = match row.keys {
        Keys::Nothing => (0..0, 1, None),
        Keys::First => (1..2, 1, None),
        Keys::Second => (2..3, 1, None),
        Keys::FirstTwo => (1..3, 1, None),
        Keys::All => (1..end, 1, None),
        Keys::Counted(at) => match counted_keys(args, at) {
            Some(keys) => (at + 1..at + 1 + keys.len(), 1, None),
            None => (1..end, 1, None),
        },
        Keys::Twos => (1..end, 2, None),
        Keys::Triples => (1..end, 3, None),
        Keys::Sort if !is_whole_sort(args) => {
            let is_word = |at: &usize| args.get(*at).is_some_and(|text| is_sort_word(text));
            return (1..end).filter(|at| !is_word(at)).collect();
        }
        Keys::Sort => (1..2, 1, sort_store_at(args)),
        Keys::Geo => (1..2, 1, geo_store_at(args)),
        Keys::Merge => match merge_sources(args) {
            Some(sources) => (3..3 + sources.len(), 1, Some(1)),
            None => (1..end, 1, None),
        },
    };
    let front = range.start..range.end.min(end);
    front.step_by(step).chain(extra).collect()
}

/// The destination of `SORT key [BY p] [LIMIT o n] [GET p]... [ASC|DESC] [ALPHA] [STORE key]`.
pub(super) fn sort_store<'a>(args: &[&'a [u8]]) -> Option<&'a [u8]> {
    sort_store_at(args).and_then(|at| args.get(at).copied())
}

fn sort_store_at(args: &[&[u8]]) -> Option<usize> {
    let mut at = 2;
    while let Some(option) = args.get(at) {
        if option.eq_ignore_ascii_case(b"STORE") {
            return (at + 1 < args.len()).then_some(at + 1);
        }
        let values = if option.eq_ignore_ascii_case(b"LIMIT") {
            2
        } else {
            usize::from(option.eq_ignore_ascii_case(b"BY") || option.eq_ignore_ascii_case(b"GET"))
        };
        at += 1 + values;
    }
    None
}

/// The destination of `GEORADIUS[BYMEMBER] key ... STORE key | STOREDIST key`: the last of them counts. A member or key
/// that is itself called STORE can only stand before the options.
pub(super) fn geo_store<'a>(args: &[&'a [u8]]) -> Option<&'a [u8]> {
    geo_store_at(args).and_then(|at| args.get(at).copied())
}

fn geo_store_at(args: &[&[u8]]) -> Option<usize> {
    let by_member = args.first()?.len() == "GEORADIUSBYMEMBER".len();
    let mut at = if by_member { 5 } else { 6 };
    let mut found = None;
    while let Some(option) = args.get(at) {
        let stores = option.eq_ignore_ascii_case(b"STORE") || option.eq_ignore_ascii_case(b"STOREDIST");
        at += 1;
        if stores {
            found = (at < args.len()).then_some(at);
        }
        at += usize::from(stores || option.eq_ignore_ascii_case(b"COUNT"));
    }
    found
}

/// The keys of `LMPOP n key... LEFT|RIGHT [COUNT n]` and the like, the number of keys at `at`; `None` if that is not what
/// it is, as in truncated records.
pub(super) fn counted_keys<'r, 'a>(args: &'r [&'a [u8]], at: usize) -> Option<&'r [&'a [u8]]> {
    let count = super::record::parse_int(args.get(at)?)?;
    let end = usize::try_from(count).ok().filter(|count| *count > 0)?.checked_add(at + 1)?;
    let whole = match args.get(end..)? {
        [_] => true,
        [_, word, _] => word.eq_ignore_ascii_case(b"COUNT"),
        _ => false,
    };
    let side = args.get(end)?;
    let known = [&b"LEFT"[..], b"RIGHT", b"MIN", b"MAX"].iter().any(|word| side.eq_ignore_ascii_case(word));
    if whole && known { args.get(at + 1..end) } else { None }
}

/// Words of a SORT, which are taken for keys from 1.31 to 1.36. (So are numbers, which may be keys.)
const SORT_WORDS: [&[u8]; 7] = [b"ASC", b"DESC", b"ALPHA", b"LIMIT", b"BY", b"GET", b"STORE"];

fn is_sort_word(text: &[u8]) -> bool {
    SORT_WORDS.iter().any(|word| text.eq_ignore_ascii_case(word))
}

/// Whether this can be a SORT as a client wrote it. Dragonfly from 1.31 to 1.36 takes all its strings for keys, and records
/// on each flow those that fall to its shard.
pub(super) fn is_whole_sort(args: &[&[u8]]) -> bool {
    let mut at = 2;
    while let Some(option) = args.get(at) {
        let is = |word: &str| option.eq_ignore_ascii_case(word.as_bytes());
        let number = |at: usize| args.get(at).is_some_and(|text| super::record::parse_int(text).is_some());
        at += match () {
            () if is("LIMIT") && number(at + 1) && number(at + 2) => 3,
            () if (is("BY") || is("GET") || is("STORE")) && at + 1 < args.len() => 2,
            () if is("ASC") || is("DESC") || is("ALPHA") => 1,
            () => return false,
        };
    }
    args.get(1).is_some_and(|key| !is_sort_word(key))
}

/// The source keys of `CMS.MERGE key n key... [WEIGHTS w...]`, or of a ZUNIONSTORE; `None` if the count is missing, as in truncated records.
pub(super) fn merge_sources<'r, 'a>(args: &'r [&'a [u8]]) -> Option<&'r [&'a [u8]]> {
    let count = super::record::parse_int(args.get(2)?)?;
    let end = usize::try_from(count).ok().filter(|count| *count > 0)?.checked_add(3)?;
    let whole = match args.get(end) {
        None => args.len() == end,
        Some(option) => option.eq_ignore_ascii_case(b"WEIGHTS") || option.eq_ignore_ascii_case(b"AGGREGATE"),
    };
    if whole { args.get(3..end) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(line: &str) -> String {
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
        let keys: Vec<String> = keys_of(&args).map(text).collect();
        let at_positions: Vec<String> = key_positions(&args).into_iter().map(|at| text(args[at])).collect();
        assert_eq!(keys, at_positions, "{line}");
        keys.join(" ")
    }

    #[test]
    fn every_layout_of_keys_is_read() {
        assert_eq!(keys("SET k v PXAT 5"), "k");
        assert_eq!(keys("mset a 1 b 2 c"), "a b c");
        assert_eq!(keys("DEL a b c"), "a b c");
        assert_eq!(keys("RENAME a b"), "a b");
        assert_eq!(keys("RENAME a"), "a");
        assert_eq!(keys("XGROUP SETID s g 0"), "s");
        assert_eq!(keys("JSON.MSET a $ 1 b $ 2"), "a b");
        assert_eq!(keys("SORT a BY store LIMIT 0 1 GET store DESC store d"), "a d");
        assert_eq!(keys("SORT a ALPHA"), "a");
        assert_eq!(keys("SORT a STORE"), "a");
        assert_eq!(keys("SORT a LIMIT 0"), "a 0");
        assert_eq!(keys("SORT STORE d"), "d");
        assert_eq!(keys("SORT alpha a desc 5 get b"), "a 5 b");
        assert_eq!(keys("SORT ALPHA"), "");
        assert_eq!(keys("GEORADIUS a 1 2 3 km COUNT 5 ANY STORE x STOREDIST y"), "a y");
        assert_eq!(keys("GEORADIUSBYMEMBER a STORE 3 km STORE x"), "a x");
        assert_eq!(keys("GEORADIUS a"), "a");
        assert_eq!(keys("CMS.MERGE d 2 a b WEIGHTS 1 2"), "a b d");
        assert_eq!(keys("CMS.MERGE a b"), "a b");
        assert_eq!(keys("CMS.MERGE a 9 b"), "a 9 b");
        assert_eq!(keys("CMS.MERGE a -1 b"), "a -1 b");
        assert_eq!(keys("CMS.MERGE a 9223372036854775807 b"), "a 9223372036854775807 b");
        assert_eq!(keys("ZUNIONSTORE d 2 a b AGGREGATE MAX"), "a b d");
        assert_eq!(keys("ZINTERSTORE d a"), "d a");
        assert_eq!(keys("LMPOP 2 a b LEFT"), "a b");
        assert_eq!(keys("BLMPOP 0 1 a right COUNT 2"), "a");
        assert_eq!(keys("ZMPOP 1 a MIN COUNT"), "1 a MIN COUNT");
        assert_eq!(keys("LMPOP a b"), "a b");
        assert_eq!(keys("LMPOP 2 LEFT"), "2 LEFT");
        assert_eq!(keys("ZRANGESTORE d s 0 1"), "d s");
        assert_eq!(keys("FLUSHALL"), "");
        assert_eq!(keys("NOSUCH a"), "");
        assert_eq!(keys(""), "");
        assert_eq!(keys_of(&[]).count(), 0);
    }

    #[test]
    fn only_a_set_of_a_hyperloglog_may_be_a_stray() {
        assert_eq!(stray_candidate(&[b"SET", b"k", b"HYLL\x01"]), Some(b"k".as_slice()));
        assert_eq!(stray_candidate(&[b"set", b"k", b"HYL"]), None);
        assert_eq!(stray_candidate(&[b"SETNX", b"k", b"HYLL"]), None);
        assert_eq!(stray_candidate(&[b"SET", b"k"]), None);
        assert_eq!(stray_candidate(&[]), None);
    }
}
