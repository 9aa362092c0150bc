//! What filters left out and changed, and what was measured before the run, as the report tells it. Reasons of filters are
//! `key`, `type` and `db`; `own-name` stands for keys that would have a name of the tool's own at the target.

use serde::Serialize;
use std::collections::BTreeMap;

/// What filters left out, and what they changed. Empty without filters, but for `own-name`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Filtered {
    /// Keys of the snapshot left out, by reason.
    pub keys: BTreeMap<&'static str, u64>,
    /// Recorded commands left out, by reason.
    pub records: BTreeMap<&'static str, u64>,
    /// Recorded commands of which a part was applied, or another command in their place, by reason.
    pub records_changed: BTreeMap<&'static str, u64>,
    /// Keys of the snapshot that were written under another name.
    pub keys_renamed: u64,
}

impl Filtered {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Keys left out, all in all.
    pub fn keys_total(&self) -> u64 {
        self.keys.values().sum()
    }

    pub fn add(&mut self, other: &Self) {
        let add = |to: &mut BTreeMap<&'static str, u64>, from: &BTreeMap<&'static str, u64>| {
            from.iter().for_each(|(reason, count)| *to.entry(reason).or_default() += count);
        };
        add(&mut self.keys, &other.keys);
        add(&mut self.records, &other.records);
        add(&mut self.records_changed, &other.records_changed);
        self.keys_renamed += other.keys_renamed;
    }
}

/// Clocks against that of the tool's machine, in ms; positive: ahead of it. `None` where the server did not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ClockSkew {
    pub source_ms: Option<i64>,
    pub target_ms: Option<i64>,
    /// The two may be off by so much.
    pub uncertain_ms: u64,
}
