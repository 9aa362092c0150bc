//! What a comparison needs to know, resolved. `cli` builds it.

use crate::convert::{Policy, Scope};
use crate::engine::settings::{Endpoint, NatMap};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Debug, serde::Serialize)]
pub struct VerifySettings {
    pub source: Endpoint,
    pub target: Endpoint,
    /// Addresses that the target cluster's nodes announce, and what to connect to instead.
    pub target_nat: NatMap,
    pub mode: Mode,
    /// Most keys or bytes read from the source in a second.
    pub rate: Rate,
    /// All memory for replies and suspects.
    pub memory_bytes: usize,
    /// A difference that outlasts this time, while the source's value stands still, is none that lag explains.
    pub lag_max: Duration,
    /// Expiries that are nearer to each other than this are equal.
    pub expiry_tolerance: Duration,
    /// Where the position is kept, so that an interrupted comparison can go on.
    pub resume: Option<PathBuf>,
    pub repair: Repair,
    /// What the job did with what the target cannot hold: decides what is no difference, and how to repair.
    pub on_unsupported: Policy,
    /// What the job carries, and under which names.
    pub scope: Scope,
    pub connect_timeout: Duration,
}

impl VerifySettings {
    pub fn source_address(&self) -> String {
        self.source.address().to_string()
    }

    pub fn target_address(&self) -> String {
        self.target.address().to_string()
    }
}

/// How much is compared.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The number of keys of each database.
    Count,
    /// Values of keys chosen by a seeded hash of their names.
    Sample { size: SampleSize, seed: u64 },
    /// Every key, every value.
    Full,
}

#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SampleSize {
    /// About so many keys.
    Keys(u64),
    /// So much of every hundred.
    Percent(f64),
}

/// Most that is read in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rate {
    Unlimited,
    KeysPerSecond(u64),
    BytesPerSecond(u64),
}

/// What to do with keys that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Repair {
    Off,
    /// Copy again what is missing or differs.
    Copy,
    /// Also delete what the source does not have.
    Mirror,
}
