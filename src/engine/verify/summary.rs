//! What a comparison says of itself: while it runs, and at the end.

use super::settings::{Mode, VerifySettings};
use super::state::Counts;
use crate::report::document::Outcome;
use serde::Serialize;
use std::time::Duration;

/// Where a comparison stands.
#[derive(Clone, Debug)]
pub struct Progress {
    pub elapsed: Duration,
    /// 0: over the source's keys, 1: over the target's, 2: only suspects are left.
    pub pass: u32,
    pub database: Option<u32>,
    pub keys_walked: u64,
    /// Keys of both sides when it began.
    pub keys_expected: u64,
    pub keys_compared: u64,
    pub suspects: u64,
    pub differing: u64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Server {
    pub address: String,
    /// Make and version.
    pub server: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub schema_version: u32,
    pub command: &'static str,
    pub outcome: Outcome,
    pub mode: Mode,
    pub source: Server,
    pub target: Server,
    pub databases: Vec<u32>,
    #[serde(flatten)]
    pub counts: Counts,
    /// It went on from a state file.
    pub resumed: bool,
    pub seconds: f64,
    pub bytes_from_source: u64,
}

impl Summary {
    pub fn new(settings: &VerifySettings) -> Self {
        let of = |address: String| Server { address, server: String::new() };
        Self {
            schema_version: 1,
            command: "verify",
            outcome: Outcome::done(),
            mode: settings.mode,
            source: of(settings.source_address()),
            target: of(settings.target_address()),
            databases: Vec::new(),
            counts: Counts::default(),
            resumed: false,
            seconds: 0.0,
            bytes_from_source: 0,
        }
    }

    /// Keys that differ, or may, and were not repaired.
    pub fn keys_differing(&self) -> u64 {
        self.counts.differing.values().sum::<u64>().saturating_sub(self.counts.repaired)
    }

    pub fn differing_text(&self) -> String {
        let kinds: Vec<_> = self.counts.differing.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        let repaired = match self.counts.repaired {
            0 => String::new(),
            repaired => format!("; {repaired} repaired"),
        };
        format!("source and target differ: {}{repaired}", kinds.join(", "))
    }
}
