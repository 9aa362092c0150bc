//! What a cutover tells: each step as it happens, and at the end a document of all of it.
//!
//! It travels over the control socket to `df2redis cutover`, and stands in the report of the job that it ended. The JSON
//! form is stable: fields may be added.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// How it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CutoverOutcome {
    /// Nothing was changed: the steps were only listed.
    #[default]
    Planned,
    /// Fenced and released as often as asked.
    Rehearsed,
    /// The traffic is at the target, and the job has ended.
    HandedOver,
    /// Rolled back: the source serves on, and the job follows on.
    NotDone,
}

/// One step, as it was done (or, in a plan, would be).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutoverStep {
    pub name: String,
    /// Since the cutover was asked for.
    pub at_ms: u64,
    /// Since the fence was asked for; `None` outside it.
    pub held_us: Option<u64>,
    pub detail: String,
}

/// Times of the rounds of a rehearsal, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spread {
    pub us_min: u64,
    pub us_p50: u64,
    pub us_p90: u64,
    pub us_p99: u64,
    pub us_max: u64,
}

impl Spread {
    /// Of times in microseconds.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self { us_min: histogram.min(), us_p50: at(0.5), us_p90: at(0.9), us_p99: at(0.99), us_max: histogram.max() }
    }
}

/// What a rehearsal found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rehearsal {
    pub rounds: u32,
    /// Rounds in which the target did not reach the source within the budget.
    pub missed: u32,
    /// From asking for the fence until the answer to its release: how long writes were held.
    pub held: Spread,
    /// From the fence until every flow's position was proven equal.
    pub drained: Spread,
}

/// A cutover, whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutoverReport {
    pub outcome: CutoverOutcome,
    /// Why not, or what to know.
    pub message: Option<String>,
    pub budget_ms: u64,
    pub steps: Vec<CutoverStep>,
    /// From asking for the fence until it was released, or the traffic was switched.
    pub held_us: Option<u64>,
    /// Each flow's position at which source and target were proven equal.
    pub positions: Option<Vec<u64>>,
    /// What the verification said.
    pub verified: Option<String>,
    /// The verification found a difference.
    #[serde(default)]
    pub differs: bool,
    /// It was handed over, but the target may lack something: see `message`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub lacks: bool,
    /// The first of the keys that differ, each as `df2redis verify` tells it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<serde_json::Value>,
    /// The hook that switches the traffic ended well (also where the cutover did not end so).
    pub switched: bool,
    pub rehearsal: Option<Rehearsal>,
}

fn is_false(it: &bool) -> bool {
    !it
}

/// One line of the answer to a cutover.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CutoverEvent {
    Step(CutoverStep),
    /// A key that differs, as `df2redis verify` tells it.
    Difference(serde_json::Value),
    Ended(Box<CutoverReport>),
}
