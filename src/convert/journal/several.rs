//! What a recorded command over several keys reads and what it writes, for whoever carries it out where the keys lie on
//! different nodes.
//!
//! In: the strings of a record, name first, in the form in which the translator lets it through. Out: its parts, borrowed.
//! Every command of the table whose keys may lie in different slots is here but those that the translator splits itself,
//! because their parts commute (`MSET`, `DEL`, `JSON.MSET`) or mean nothing (`STICK`).

use super::keys::{self, key_positions};
use super::record::{is, parse_int};
use super::table::{self, How};
use smallvec::SmallVec;

/// Where an element is taken off a list, or put on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Left,
    Right,
}

/// A record over several keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Several<'a> {
    /// The key gets another name: RENAME, RENAMENX.
    Rename { from: &'a [u8], to: &'a [u8] },
    /// An element goes from one list to another: LMOVE, RPOPLPUSH and their blocking forms.
    MoveElement { from: (&'a [u8], Side), to: (&'a [u8], Side) },
    /// Keys are read, one is written: SORT, GEORADIUS, ZRANGESTORE, ZUNIONSTORE, CMS.MERGE and their kin. The positions of
    /// the keys among the strings; the written key may be read, too.
    Store { reads: SmallVec<[usize; 4]>, writes: usize },
    /// Elements are taken off the first key that is there: LMPOP, BLMPOP, ZMPOP.
    Pop { keys: SmallVec<[&'a [u8]; 4]>, take: Take },
}

/// What is taken off a key, as a command that does not answer with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Take {
    /// `NAME key first last`
    pub name: &'static str,
    pub first: i64,
    pub last: i64,
}

/// The parts of a record. Errors: why it cannot be carried out anywhere but on one node.
pub fn several<'a>(args: &[&'a [u8]]) -> Result<Several<'a>, &'static str> {
    let Some((_, row)) = args.first().and_then(|name| table::find(name)) else { return Err(UNKNOWN) };
    let key = |at: usize| args.get(at).copied().ok_or(UNKNOWN);
    let side =
        |at: usize| args.get(at).map_or(Side::Right, |text| if is(text, "LEFT") { Side::Left } else { Side::Right });
    match (row.name, row.how) {
        ("RENAME" | "RENAMENX", _) => Ok(Several::Rename { from: key(1)?, to: key(2)? }),
        ("LMOVE" | "BLMOVE", _) => Ok(Several::MoveElement { from: (key(1)?, side(3)), to: (key(2)?, side(4)) }),
        ("RPOPLPUSH" | "BRPOPLPUSH", _) => {
            Ok(Several::MoveElement { from: (key(1)?, Side::Right), to: (key(2)?, Side::Left) })
        }
        (_, How::MultiPop(..)) => pop(args),
        (_, How::Sort) if reads_by_pattern(args) => Err(BY_PATTERN),
        (_, how) => store(args, how).ok_or(UNKNOWN),
    }
}

/// Whether a record over several keys has the operands that its command needs. Else it names keys and no more (wire 6.19), and says
/// of none what became of it.
pub fn is_whole(args: &[&[u8]]) -> bool {
    let Some((_, row)) = args.first().and_then(|name| table::find(name)) else { return true };
    match row.how {
        How::Sort => keys::is_whole_sort(args),
        How::MultiPop(_, at) => keys::counted_keys(args, at).is_some(),
        How::Combine | How::CmsMerge => keys::merge_sources(args).is_some(),
        How::RangeStore => args.len() >= 5,
        How::GeoRadius(options_at) => args.len() >= options_at,
        How::PfMerge => false,
        _ => true,
    }
}

/// The key into which a record stores what it reads elsewhere, whatever it reads.
pub fn stored_key<'a>(args: &[&'a [u8]]) -> Option<&'a [u8]> {
    let (_, row) = args.first().and_then(|name| table::find(name))?;
    match store(args, row.how)? {
        Several::Store { reads, writes } if !reads.is_empty() => args.get(writes).copied(),
        _ => None,
    }
}

/// Whether the record, if there is nothing that it could read, leaves alone what it stores into. (The others store an empty result.)
pub fn stores_only_what_is_there(args: &[&[u8]]) -> bool {
    let found = args.first().and_then(|name| table::find(name));
    found.is_some_and(|(_, row)| matches!(row.how, How::Sort | How::GeoRadius(_)))
}

fn store<'a>(args: &[&'a [u8]], how: How) -> Option<Several<'a>> {
    if !matches!(how, How::RangeStore | How::Sort | How::GeoRadius(_) | How::Combine | How::CmsMerge) {
        return None;
    }
    let positions = key_positions(args);
    if how == How::RangeStore {
        let (writes, reads) = positions.split_first()?;
        return Some(Several::Store { reads: SmallVec::from_slice(reads), writes: *writes });
    }
    let (writes, reads) = positions.split_last()?;
    Some(Several::Store { reads: SmallVec::from_slice(reads), writes: *writes })
}

const UNKNOWN: &str = "its keys lie in different slots of the cluster";
const BY_PATTERN: &str =
    "it reads other keys by a pattern (BY, GET), which no node of a cluster does; remedy: a new full sync";

/// `n key... LEFT|RIGHT|MIN|MAX [COUNT n]`
fn pop<'a>(args: &[&'a [u8]]) -> Result<Several<'a>, &'static str> {
    let positions = key_positions(args);
    let side_at = positions.last().map_or(args.len(), |at| at + 1);
    let side = args.get(side_at).ok_or(UNKNOWN)?;
    let count = match args.get(side_at + 2) {
        Some(text) => parse_int(text).filter(|count| *count > 0).ok_or("its COUNT is no positive number")?,
        None => 1,
    };
    let take = match () {
        () if is(side, "LEFT") => Take { name: "LTRIM", first: count, last: -1 },
        // Counted from the end, where -1 is the last one.
        () if is(side, "RIGHT") => Take { name: "LTRIM", first: 0, last: -count.saturating_add(1) },
        () if is(side, "MIN") => Take { name: "ZREMRANGEBYRANK", first: 0, last: count - 1 },
        () => Take { name: "ZREMRANGEBYRANK", first: -count, last: -1 },
    };
    Ok(Several::Pop { keys: positions.iter().filter_map(|at| args.get(*at).copied()).collect(), take })
}

/// A SORT that looks into keys which its record does not name. (`BY` without `*` only says that nothing is sorted.)
pub(super) fn reads_by_pattern(args: &[&[u8]]) -> bool {
    sorts_by(args, |pattern| pattern.contains(&b'*'))
}

/// A SORT with BY or GET.
pub(super) fn sorts_by_option(args: &[&[u8]]) -> bool {
    sorts_by(args, |_| true)
}

/// It has a GET, or a BY with such a pattern.
fn sorts_by(args: &[&[u8]], such: impl Fn(&[u8]) -> bool) -> bool {
    let mut at = 2;
    while let Some(option) = args.get(at) {
        let by = is(option, "BY") && args.get(at + 1).is_some_and(|pattern| such(pattern));
        if by || is(option, "GET") {
            return true;
        }
        at += match () {
            () if is(option, "LIMIT") => 3,
            () if is(option, "BY") || is(option, "STORE") => 2,
            () => 1,
        };
    }
    false
}

#[cfg(test)]
mod tests {
    use super::super::table::{Keys, TABLE};
    use super::*;

    fn shown(line: &str) -> String {
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
        let side = |side: Side| if side == Side::Left { "<" } else { ">" };
        match several(&args) {
            Ok(Several::Rename { from, to }) => format!("rename {} {}", text(from), text(to)),
            Ok(Several::MoveElement { from, to }) => {
                format!("move {}{} {}{}", text(from.0), side(from.1), text(to.0), side(to.1))
            }
            Ok(Several::Store { reads, writes }) => {
                let reads: Vec<String> = reads.iter().map(|at| text(args[*at])).collect();
                format!("store {} from {}", text(args[writes]), reads.join(" "))
            }
            Ok(Several::Pop { keys, take }) => {
                let keys: Vec<String> = keys.iter().map(|key| text(key)).collect();
                format!("{} {} {} of {}", take.name, take.first, take.last, keys.join(" "))
            }
            Err(why) => format!("refused: {}", why.split(',').next().unwrap()),
        }
    }

    #[test]
    fn every_command_over_several_keys_is_split_or_has_its_parts() {
        let of = |name: &str| match name {
            "RENAME" | "RENAMENX" => vec![("a b", "rename a b")],
            "LMOVE" => vec![("a b LEFT RIGHT", "move a< b>"), ("a b right left", "move a> b<")],
            "BLMOVE" => vec![("a b LEFT RIGHT 0.5", "move a< b>")],
            "RPOPLPUSH" => vec![("a b", "move a> b<")],
            "BRPOPLPUSH" => vec![("a b 0", "move a> b<")],
            "LMPOP" => vec![
                ("2 a b LEFT", "LTRIM 1 -1 of a b"),
                ("2 a b RIGHT COUNT 3", "LTRIM 0 -4 of a b"),
                ("2 a b right COUNT 9223372036854775807", "LTRIM 0 -9223372036854775807 of a b"),
            ],
            "BLMPOP" => vec![("0 2 a b LEFT COUNT 2", "LTRIM 2 -1 of a b")],
            "ZMPOP" => {
                vec![("2 a b MIN", "ZREMRANGEBYRANK 0 0 of a b"), ("2 a b MAX COUNT 3", "ZREMRANGEBYRANK -3 -1 of a b")]
            }
            "SORT" => vec![
                ("a ALPHA DESC LIMIT 0 5 STORE d", "store d from a"),
                ("a BY nosort STORE d", "store d from a"),
                ("a BY w_* STORE d", "refused: it reads other keys by a pattern (BY"),
                ("a GET # STORE d", "refused: it reads other keys by a pattern (BY"),
            ],
            "GEORADIUS" => vec![("a 1 2 3 km STOREDIST d", "store d from a")],
            "GEORADIUSBYMEMBER" => vec![("a m 3 km STORE d", "store d from a")],
            "ZUNIONSTORE" | "ZINTERSTORE" | "ZDIFFSTORE" => vec![("d 2 a d", "store d from a d")],
            "CMS.MERGE" => vec![("d 2 a b WEIGHTS 1 2", "store d from a b")],
            "ZRANGESTORE" => vec![("d a 0 -1", "store d from a")],
            // Split by the translator, or of no meaning.
            "MSET" | "MSETNX" | "DEL" | "UNLINK" | "STICK" | "JSON.MSET" | "PFCOUNT" | "PFMERGE" => {
                vec![("a 1 b", UNKNOWN_SHOWN)]
            }
            other => panic!("{other} has several keys, and nobody says what becomes of it over several slots"),
        };
        for row in TABLE.iter().filter(|row| !matches!(row.keys, Keys::Nothing | Keys::First | Keys::Second)) {
            for (rest, wanted) in of(row.name) {
                assert_eq!(shown(&format!("{} {rest}", row.name)), wanted, "{} {rest}", row.name);
            }
        }
    }

    #[test]
    fn a_read_stores_nothing() {
        let of = |line: &str| {
            let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            stored_key(&args).map(|key| String::from_utf8_lossy(key).into_owned())
        };
        assert_eq!(of("SORT a BY w_* STORE d").as_deref(), Some("d"));
        assert_eq!(of("ZRANGESTORE d a 0 -1").as_deref(), Some("d"));
        assert_eq!(of("CMS.MERGE d 1 a").as_deref(), Some("d"));
        for line in ["SORT a ALPHA", "GEORADIUS a 1 2 3 km", "SET a b", "RENAME a b", "LMPOP 2 a b LEFT", "NONE a"] {
            assert_eq!(of(line), None, "{line}");
        }
    }

    const UNKNOWN_SHOWN: &str = "refused: its keys lie in different slots of the cluster";
}
