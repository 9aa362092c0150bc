//! What a generated key space looks like, and its command line form.

use super::fast_journal::FastJournal;
use crate::lab::LabError;
use std::fmt;
use std::str::FromStr;

/// Everything that decides a generated stream. One spec and seed give the same keys and values on every run.
#[derive(Clone, Debug)]
pub struct Spec {
    pub mix: Vec<Group>,
    pub seed: u64,
    pub flows_count: usize,
    pub compression: Compression,
    /// Cut large objects into tagged chunks (1.40 and later); else their parts follow each other.
    pub tagged: bool,
    /// Largest piece of an object before it is cut; 0: never.
    pub chunk_bytes: usize,
    /// Databases that the keys are spread over.
    pub databases: Vec<u32>,
    /// Share of the keys with an expiry in 2033, and with one in the past.
    pub expire_fraction: f64,
    pub expired_fraction: f64,
    /// Share of the keys that are sticky, and that have memcached flags.
    pub sticky_fraction: f64,
    /// Journal records between the keys, for each key.
    pub journal_ratio: f64,
    /// For each flow: keys of other flows, with stale values, in the snapshot and as journal records (wire 1.1).
    pub strays_count: usize,
    /// For each flow: keys written by a journal record and then deleted without one (wire 2.10).
    pub omitted_deletes_count: usize,
    /// For each flow: strings written by a journal record before their baseline comes (wire 2.10).
    pub early_writes_count: usize,
    pub release: Release,
    /// All keys of a group hold the same value, in database 0, uncompressed, without anything between: pre-encoded
    /// records with patched digits, for measurements.
    pub fast: bool,
    /// With [`Spec::fast`]: a journal for measurements, once its gate is opened.
    pub journal: Option<FastJournal>,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            mix: Vec::new(),
            seed: 1,
            flows_count: 2,
            compression: Compression::None,
            tagged: true,
            chunk_bytes: 64 << 10,
            databases: vec![0],
            expire_fraction: 0.0,
            expired_fraction: 0.0,
            sticky_fraction: 0.0,
            journal_ratio: 0.0,
            strays_count: 0,
            omitted_deletes_count: 0,
            early_writes_count: 0,
            release: Release::New,
            fast: false,
            journal: None,
        }
    }
}

impl Spec {
    /// A spec with this mix (`string:100B=1000,hash:20x8=50`), all else default.
    pub fn of(mix: &str) -> Result<Self, LabError> {
        Ok(Self { mix: parse_mix(mix)?, ..Self::default() })
    }

    /// Keys in all groups.
    pub fn keys_count(&self) -> u64 {
        self.mix.iter().map(|group| group.count).sum()
    }
}

/// Which forms the stream uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Release {
    /// Version 1.40: types 16, 17, 18, 21, 30, 34.
    New,
    /// Version 1.14: types 12, 13, 14, 15, 20; 4-element reply to capa.
    Old,
}

/// `compression_mode` of the master.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Compression {
    None,
    Lzf,
    Zstd,
    Lz4,
}

/// Kind of value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    String,
    /// A string that is a number of up to 64 bits.
    Int,
    Json,
    List,
    Set,
    Intset,
    Hash,
    Zset,
    Stream,
    /// Hash and set whose fields and members partly expire.
    HashTtl,
    SetTtl,
    Bloom,
    Cms,
    TopK,
    Cuckoo,
}

const KINDS: [(Kind, &str); 15] = [
    (Kind::String, "string"),
    (Kind::Int, "int"),
    (Kind::Json, "json"),
    (Kind::List, "list"),
    (Kind::Set, "set"),
    (Kind::Intset, "intset"),
    (Kind::Hash, "hash"),
    (Kind::Zset, "zset"),
    (Kind::Stream, "stream"),
    (Kind::HashTtl, "hashttl"),
    (Kind::SetTtl, "setttl"),
    (Kind::Bloom, "bloom"),
    (Kind::Cms, "cms"),
    (Kind::TopK, "topk"),
    (Kind::Cuckoo, "cuckoo"),
];

impl Kind {
    pub fn name(self) -> &'static str {
        KINDS.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }

    /// TYPE's answer at a Dragonfly; `json` where truth.py says so.
    pub fn type_name(self) -> &'static str {
        match self {
            Self::String | Self::Int => "string",
            Self::Json => "json",
            Self::List => "list",
            Self::Set | Self::Intset | Self::SetTtl => "set",
            Self::Hash | Self::HashTtl => "hash",
            Self::Zset => "zset",
            Self::Stream => "stream",
            Self::Bloom => "MBbloom--",
            Self::Cms => "CMSk-TYPE",
            Self::TopK => "TopK-TYPE",
            Self::Cuckoo => "MBbloomCF",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `count` keys of one shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    pub kind: Kind,
    /// Elements of a collection; 1 for strings.
    pub elements: u64,
    /// Bytes of each element, or of the string.
    pub element_bytes: u64,
    pub count: u64,
}

impl FromStr for Group {
    type Err = LabError;

    /// `KIND:SHAPE=COUNT`; SHAPE is a size (`100B`, `1KiB`, `512MiB`) for strings and JSON, `ELEMENTSxBYTES` for the
    /// others; `KIND=COUNT` takes 10 elements of 10 bytes.
    fn from_str(text: &str) -> Result<Self, LabError> {
        let bad = |reason: &str| LabError::Mix { text: text.to_owned(), reason: reason.to_owned() };
        let (what, count) = text.split_once('=').ok_or_else(|| bad("no =COUNT"))?;
        let (kind_name, shape) = what.split_once(':').unwrap_or((what, "10x10"));
        let known = || KINDS.map(|(_, name)| name).join(", ");
        let kind = KINDS
            .iter()
            .find(|(_, name)| *name == kind_name)
            .ok_or_else(|| bad(&format!("no kind {kind_name:?}; there are {}", known())))?
            .0;
        let (elements, bytes) = shape.split_once('x').unwrap_or(("1", shape));
        Ok(Self {
            kind,
            elements: size(elements).ok_or_else(|| bad("the number of elements is no number"))?,
            element_bytes: size(bytes).ok_or_else(|| bad("the size is no number of B, KiB, MiB or GiB"))?,
            count: size(count).ok_or_else(|| bad("COUNT is no number"))?,
        })
    }
}

/// A whole mix, groups separated by commas.
pub fn parse_mix(text: &str) -> Result<Vec<Group>, LabError> {
    text.split(',').map(|group| group.trim().parse()).collect()
}

/// `10`, `10B`, `10K`, `10KiB`, `10M` ... (powers of 1024).
fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "" | "B" => 1,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1u64 << 30,
        _ => return None,
    };
    digits.replace('_', "").parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixes() {
        let mix = parse_mix("string:100B=1_000, hash:20x8=50,string:512MiB=1,list:10000000x16=1,topk=2").unwrap();
        let group = |kind, elements, element_bytes, count| Group { kind, elements, element_bytes, count };
        assert_eq!(mix[0], group(Kind::String, 1, 100, 1000));
        assert_eq!(mix[1], group(Kind::Hash, 20, 8, 50));
        assert_eq!(mix[2].element_bytes, 512 << 20);
        assert_eq!(mix[3].elements, 10_000_000);
        assert_eq!(mix[4], group(Kind::TopK, 10, 10, 2));
        for bad in ["string", "strng:1=1", "hash:axb=1", "string:1X=1", ""] {
            assert!(parse_mix(bad).is_err(), "{bad}");
        }
    }
}
