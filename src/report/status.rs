//! Where a running job stands, as one document: what `df2redis status`, `/metrics` and the plan of a cutover show.
//!
//! Filled by the engine's control thread about twice a second, and once more for each question. The JSON form is stable:
//! fields may be added; `schema_version` changes when one changes its meaning or goes away. No secret ever enters.

use serde::{Deserialize, Serialize};

/// Version of the JSON form.
pub const SCHEMA_VERSION: u32 = 1;

/// A running job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub schema_version: u32,
    pub tool_version: String,
    /// `migrate`, `replicate`.
    pub command: String,
    pub pid: u32,
    /// `HOST:PORT`.
    pub source: String,
    pub target: String,
    pub phase: String,
    pub phase_ms: u64,
    pub elapsed_ms: u64,
    /// Everything was applied that the source had a second before, and it has not fallen far behind since.
    pub in_step: bool,
    /// A restart would go on from the target's checkpoint.
    pub resumable: bool,
    pub keys: u64,
    pub keys_expected: Option<u64>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Commands that the target has answered.
    pub commands: u64,
    /// Sent to the target and not yet answered.
    pub unacked_bytes: u64,
    /// Connections to the target that were made again.
    pub reconnects: u64,
    /// Expiries that are held back now and whose names are known: they stand at the target later than they are.
    #[serde(default)]
    pub expiries_held: u64,
    pub rates: StatusRates,
    /// Known from the first answer to `DFLY REPLICAOFFSET` on.
    pub lag: Option<Lag>,
    /// Of the last second in which anything was applied: last byte of an entry read until its reply.
    pub apply_lag: Option<Percentiles>,
    pub flows: Vec<FlowStatus>,
    /// `None`: the job has no spool.
    pub spool: Option<SpoolStatus>,
    pub throttle: ThrottleStatus,
    /// What can be changed with `df2redis set`, with its value.
    pub knobs: Vec<Knob>,
    /// The settings that the job was started with.
    pub settings: serde_json::Value,
}

/// Means over the last seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusRates {
    pub over_ms: u64,
    pub keys_per_s: f64,
    pub commands_per_s: f64,
    pub bytes_in_per_s: f64,
    pub bytes_out_per_s: f64,
}

/// How far the target is behind the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lag {
    /// Records of all flows that the source has written and the target has not confirmed.
    pub entries: u64,
    /// Of the flow that is farthest behind: age of the oldest position of the source that the target has not reached.
    pub ms: u64,
}

/// Nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Percentiles {
    pub ns_p50: u64,
    pub ns_p99: u64,
    pub ns_max: u64,
}

/// One flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowStatus {
    pub flow: u32,
    pub state: String,
    pub bytes_in: u64,
    pub keys: u64,
    /// LSN of the next record: at the source (when it was last asked), of what was read, of what the target has confirmed.
    pub source_lsn: Option<u64>,
    pub read_lsn: Option<u64>,
    pub applied_lsn: Option<u64>,
    pub lag_entries: Option<u64>,
    pub lag_ms: Option<u64>,
    /// Longest time for which its socket was not being read.
    pub unread_ms_max: u64,
}

/// What was read from the source and waits on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolStatus {
    /// In it now.
    pub bytes: u64,
    /// So far.
    pub bytes_written: u64,
    pub bytes_read: u64,
    /// Most that it may hold.
    pub bytes_max: u64,
}

/// What holds the job back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThrottleStatus {
    pub paused: bool,
    /// Limits of what is sent to the target; `None`: no limit.
    pub bytes_per_s: Option<u64>,
    pub entries_per_s: Option<u64>,
    /// Why it is not faster now, in words; empty: nothing holds it back.
    pub reasons: Vec<String>,
}

/// Something that can be changed while the job runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knob {
    pub key: String,
    /// As `set` takes it.
    pub value: String,
    pub what: String,
}
