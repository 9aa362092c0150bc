//! What one flow's converter has read, written and left out, and the list of what was not carried over.
//!
//! The list is bounded: the engine takes it out as it grows ([`Tally::take_not_carried`]) and writes it to a file;
//! whatever comes beyond the bound before that is only counted.

use super::escape;
use super::policy::{Action, Kind};
use crate::dragonfly::ObjectType;
use crate::ids::DbIndex;
use serde::Serialize;
use serde::ser::SerializeMap;

/// Most entries of the list between two takes.
pub const NOT_CARRIED_ENTRIES_MAX: usize = 100_000;
/// Most bytes of keys in the list between two takes.
pub const NOT_CARRIED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What the user calls the type of a key; the rows of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TypeClass {
    String,
    List,
    Set,
    Hash,
    Zset,
    Stream,
    Json,
    Filter,
}

impl TypeClass {
    pub const ALL: [TypeClass; 8] =
        [Self::String, Self::List, Self::Set, Self::Hash, Self::Zset, Self::Stream, Self::Json, Self::Filter];

    #[inline]
    pub fn of(object_type: ObjectType) -> Self {
        use ObjectType::*;
        match object_type {
            String => Self::String,
            ListZiplists | ListNodes => Self::List,
            Set | SetIntset | SetExpiry => Self::Set,
            Hash | HashZiplist | HashListpack | HashExpiry => Self::Hash,
            Zset | ZsetZiplist | ZsetListpack => Self::Zset,
            StreamV1 | StreamV2 | StreamV3 => Self::Stream,
            JsonOld | Json => Self::Json,
            Bloom | BloomPieces | CountMinSketch | TopK | Cuckoo => Self::Filter,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::List => "list",
            Self::Set => "set",
            Self::Hash => "hash",
            Self::Zset => "zset",
            Self::Stream => "stream",
            Self::Json => "json",
            Self::Filter => "filter",
        }
    }
}

/// Counters of one type. `keys_read = keys_written + keys_expired + keys_skipped` once no object is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TypeTally {
    pub keys_read: u64,
    pub keys_written: u64,
    /// Expired, or without any element left: a DEL was sent.
    pub keys_expired: u64,
    pub keys_skipped: u64,
    /// Elements of collections (fields, members, entries) that were written.
    pub elements_written: u64,
    /// Bytes of keys and values as the source sent them.
    pub bytes_read: u64,
    /// Bytes of commands.
    pub bytes_written: u64,
    /// Keys written by one RESTORE; the others went by commands of their type.
    pub restores: u64,
    pub commands: u64,
}

/// What a list entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum What {
    Kind(Kind),
    /// AUX search-index: an FT.CREATE that has no place at the target.
    SearchIndex,
    SearchSynonyms,
}

impl What {
    pub fn name(self) -> &'static str {
        match self {
            Self::Kind(kind) => kind.name(),
            Self::SearchIndex => "search-index",
            Self::SearchSynonyms => "search-synonyms",
        }
    }
}

impl Serialize for What {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// One thing that is not at the target as it was at the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotCarried {
    pub db: u32,
    /// The key (or index definition) in printable form, lossless: see [`escape::printable`].
    pub key: String,
    pub what: What,
    pub action: Action,
    /// How many of it under this key: field expiries, members, pending entries ...
    pub count: u64,
}

/// See the module's header.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    by_type: [TypeTally; TypeClass::ALL.len()],
    skipped: [u64; Kind::ALL.len()],
    dropped: [u64; Kind::ALL.len()],
    converted: [u64; Kind::ALL.len()],
    /// Keys whose sticky mark was dropped (no target has one).
    pub sticky_dropped: u64,
    /// Keys whose memcached flags were dropped.
    pub memcached_flags_dropped: u64,
    pub scripts_loaded: u64,
    pub search_definitions: u64,
    not_carried: Vec<NotCarried>,
    not_carried_bytes: usize,
    /// Entries that found no place in the list.
    pub not_carried_unlisted: u64,
}

impl Tally {
    pub fn of(&self, class: TypeClass) -> &TypeTally {
        // Every class has its place: the array is as long as `ALL`.
        &self.by_type[class as usize]
    }

    pub fn of_mut(&mut self, class: TypeClass) -> &mut TypeTally {
        &mut self.by_type[class as usize]
    }

    /// Keys left out because of this kind.
    pub fn skipped(&self, kind: Kind) -> u64 {
        self.skipped[kind as usize]
    }

    /// Expiries (or attributes) dropped because of this kind.
    pub fn dropped(&self, kind: Kind) -> u64 {
        self.dropped[kind as usize]
    }

    /// Keys stored in another form because of this kind (JSON as a string).
    pub fn converted(&self, kind: Kind) -> u64 {
        self.converted[kind as usize]
    }

    /// All types together.
    pub fn total(&self) -> TypeTally {
        let mut total = TypeTally::default();
        self.by_type.iter().for_each(|tally| total.add(tally));
        total
    }

    /// Counts and lists something that is not carried over as it was.
    pub fn not_carried(&mut self, db: DbIndex, key: &[u8], what: What, action: Action, count: u64) {
        match what {
            What::Kind(kind) => match action {
                Action::Skip => self.skipped[kind as usize] += count,
                Action::Drop => self.dropped[kind as usize] += count,
                Action::AsString => self.converted[kind as usize] += count,
                Action::Refuse => {}
            },
            What::SearchIndex | What::SearchSynonyms => self.search_definitions += count,
        }
        if self.not_carried.len() >= NOT_CARRIED_ENTRIES_MAX
            || self.not_carried_bytes.saturating_add(key.len()) > NOT_CARRIED_BYTES_MAX
        {
            self.not_carried_unlisted += 1;
            return;
        }
        self.not_carried_bytes += key.len();
        self.not_carried.push(NotCarried { db: db.0, key: escape::printable(key), what, action, count });
    }

    /// How many entries wait to be taken.
    pub fn not_carried_waiting(&self) -> usize {
        self.not_carried.len()
    }

    /// The entries listed since the last call.
    pub fn take_not_carried(&mut self) -> Vec<NotCarried> {
        self.not_carried_bytes = 0;
        std::mem::take(&mut self.not_carried)
    }

    /// Adds another flow's counters and list.
    pub fn add(&mut self, other: Tally) {
        for class in TypeClass::ALL {
            self.of_mut(class).add(other.of(class));
        }
        for kind in Kind::ALL {
            self.skipped[kind as usize] += other.skipped(kind);
            self.dropped[kind as usize] += other.dropped(kind);
            self.converted[kind as usize] += other.converted(kind);
        }
        self.sticky_dropped += other.sticky_dropped;
        self.memcached_flags_dropped += other.memcached_flags_dropped;
        self.scripts_loaded += other.scripts_loaded;
        self.search_definitions += other.search_definitions;
        self.not_carried_unlisted += other.not_carried_unlisted;
        self.not_carried_bytes += other.not_carried_bytes;
        self.not_carried.extend(other.not_carried);
    }
}

impl TypeTally {
    pub fn add(&mut self, other: &TypeTally) {
        self.keys_read += other.keys_read;
        self.keys_written += other.keys_written;
        self.keys_expired += other.keys_expired;
        self.keys_skipped += other.keys_skipped;
        self.elements_written += other.elements_written;
        self.bytes_read += other.bytes_read;
        self.bytes_written += other.bytes_written;
        self.restores += other.restores;
        self.commands += other.commands;
    }
}

/// Types without any key and kinds without any count are left out; the list is not part of it.
impl Serialize for Tally {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let types: std::collections::BTreeMap<&str, &TypeTally> = TypeClass::ALL
            .iter()
            .filter(|class| self.of(**class).keys_read > 0)
            .map(|class| (class.name(), self.of(*class)))
            .collect();
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("by_type", &types)?;
        map.serialize_entry("total", &self.total())?;
        for (name, counts) in [("skipped", &self.skipped), ("dropped", &self.dropped), ("converted", &self.converted)] {
            let counts: std::collections::BTreeMap<&str, u64> = Kind::ALL
                .iter()
                .zip(counts)
                .filter(|(_, count)| **count > 0)
                .map(|(kind, count)| (kind.name(), *count))
                .collect();
            map.serialize_entry(name, &counts)?;
        }
        map.serialize_entry("sticky_dropped", &self.sticky_dropped)?;
        map.serialize_entry("memcached_flags_dropped", &self.memcached_flags_dropped)?;
        map.serialize_entry("scripts_loaded", &self.scripts_loaded)?;
        map.serialize_entry("search_definitions", &self.search_definitions)?;
        map.serialize_entry("not_carried_unlisted", &self.not_carried_unlisted)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_bounded_and_the_counts_are_not() {
        let mut tally = Tally::default();
        for _ in 0..NOT_CARRIED_ENTRIES_MAX + 5 {
            tally.not_carried(DbIndex(0), b"k", What::Kind(Kind::Filters), Action::Skip, 1);
        }
        assert_eq!(tally.skipped(Kind::Filters), NOT_CARRIED_ENTRIES_MAX as u64 + 5);
        assert_eq!(tally.not_carried_unlisted, 5);
        assert_eq!(tally.take_not_carried().len(), NOT_CARRIED_ENTRIES_MAX);
        tally.not_carried(DbIndex(0), b"k", What::SearchIndex, Action::Skip, 1);
        assert_eq!(tally.not_carried_waiting(), 1);
    }

    #[test]
    fn serializes_what_counts() {
        let mut tally = Tally::default();
        tally.of_mut(TypeClass::Hash).keys_read = 1;
        tally.not_carried(DbIndex(3), b"h\0", What::Kind(Kind::FieldExpiry), Action::Drop, 7);
        let json = serde_json::to_value(&tally).unwrap();
        assert_eq!(json["by_type"]["hash"]["keys_read"], 1);
        assert_eq!(json["dropped"]["field-expiry"], 7);
        let entry = serde_json::to_string(&tally.take_not_carried()).unwrap();
        assert_eq!(entry, r#"[{"db":3,"key":"h\\x00","what":"field-expiry","action":"drop","count":7}]"#);
    }
}
