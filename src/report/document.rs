//! The report of a run as one document: what `--output json` prints and every other view is made from.
//!
//! In: [`RunInputs`], plain figures that the engine fills. Out: [`RunReport`], with every derived figure (rates, means,
//! percentiles, CPU per GiB) computed once, here. The JSON form is stable: `schema_version` changes when a field changes
//! its meaning or goes away; fields may be added.

use super::counters::{CpuSample, FlowSample, WorkerStats};
use super::cutover::CutoverReport;
pub use super::filtered::{ClockSkew, Filtered};
use super::latency::{Latency, LatencySeries};
use super::numbers::per_second;
use hdrhistogram::Histogram;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::time::Duration;

/// Version of the JSON form.
pub const SCHEMA_VERSION: u32 = 1;
/// Keys not carried over that the document names; all of them are in `not-carried.jsonl`, all are counted.
pub const NOT_CARRIED_LISTED_MAX: usize = 1000;

/// How a run ended, by class; each has one exit code (see `cli::exit`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitClass {
    Done,
    /// A fault of this program.
    Internal,
    /// The command line, the environment or the file is wrong.
    Usage,
    /// Refused before anything was written (target not empty, a value that the target cannot hold ...).
    Refused,
    /// The source failed, or the connection to it.
    Source,
    /// The target failed, or the connection to it.
    Target,
    /// The source's bytes cannot be decoded.
    Corrupt,
    /// The kernel: io_uring missing or refused, too little locked memory.
    System,
    /// The position in the source's journal is lost; only a full sync is left (reserved for `replicate`).
    PositionLost,
    /// The cutover was rolled back within its budget (reserved for `cutover`).
    CutoverNotReached,
    /// Source and target differ (`verify`, `demo`).
    Differs,
    /// Stopped by a signal.
    Interrupted,
}

/// How it ended, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outcome {
    pub class: ExitClass,
    /// Cause and remedy; `None` when done.
    pub message: Option<String>,
    /// What the target holds now; set whenever the run did not reach its end.
    pub target_state: Option<String>,
}

impl Outcome {
    pub fn done() -> Self {
        Self { class: ExitClass::Done, message: None, target_state: None }
    }

    pub fn failed(class: ExitClass, message: impl Into<String>, target_state: Option<String>) -> Self {
        Self { class, message: Some(message.into()), target_state }
    }
}

/// A server as it names itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ServerInfo {
    /// `host:port`.
    pub address: String,
    /// `dragonfly`, `redis`, `valkey`.
    pub make: String,
    pub version: String,
    /// Number of flows (source), or 0.
    pub flows: u32,
}

/// A kernel feature: what was asked for, what is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RingFeature {
    pub name: String,
    pub used: bool,
    /// Why not, or what of it.
    pub note: Option<String>,
}

/// Counts of one type of value (`string`, `hash`, `list`, `journal`, ...).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TypeRow {
    #[serde(rename = "type")]
    pub type_name: String,
    pub keys_read: u64,
    pub keys_written: u64,
    /// Past their expiry when they were read.
    pub keys_expired: u64,
    /// Left out, by reason.
    pub keys_skipped: BTreeMap<String, u64>,
    pub elements: u64,
    /// Payload bytes, as the source sent them.
    pub bytes: u64,
}

/// A key, or part of one, that was not carried over as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotCarried {
    pub db: u32,
    #[serde(serialize_with = "key_text")]
    pub key: Vec<u8>,
    /// The kind in the words of `--on-unsupported` (`json`, `field-expiry`, ...), or `search-index`, `existing`, ...
    pub kind: String,
    /// What was done instead: `skip`, `drop`, `string`, `refuse`.
    pub action: String,
    /// Why, in one sentence.
    pub reason: String,
}

/// Keys may hold any byte; what is not UTF-8 is written as `\xNN` (and a backslash as two).
fn key_text<S: Serializer>(key: &[u8], s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&super::numbers::printable(key))
}

/// Everything that was not carried over: all counted, the first named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NotCarriedList {
    /// Number by `kind/action`.
    pub counts: BTreeMap<String, u64>,
    /// The first [`NOT_CARRIED_LISTED_MAX`].
    pub listed: Vec<NotCarried>,
}

impl NotCarriedList {
    pub fn push(&mut self, item: &NotCarried) {
        *self.counts.entry(format!("{}/{}", item.kind, item.action)).or_default() += 1;
        if self.listed.len() < NOT_CARRIED_LISTED_MAX {
            self.listed.push(item.clone());
        }
    }

    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }
}

/// Keys that the source's omitted records would leave behind (wire 2.10): asked for at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Suspects {
    pub asked: u64,
    pub removed: u64,
}

/// Expiries held back, so that the target expires nothing that the source renews meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Expiries {
    /// The target was in Valkey's import mode, in which it expires nothing by itself: nothing was held.
    pub import_mode: bool,
    /// Held back.
    pub held: u64,
    /// Still held, by name, when the run ended: for the run that goes on.
    pub held_at_end: u64,
    /// Longest time for which one was held.
    pub held_ms_max: u64,
    /// Longest time, of all flows, in which a flow was behind, so that near expiries were held.
    pub lagged_ms_max: u64,
    /// Of those held: had passed when they were given back, so that the target removed the key.
    pub passed_at_release: u64,
    /// Held without their name being remembered: every key of the target is looked at for them, at the latest in the end.
    pub not_named: u64,
    /// Put right when every key was looked at, in this run or after an earlier one.
    pub put_right_by_sweep: u64,
    /// Keys that had vanished at the target all the same and were fetched again from the source.
    pub fetched_again: u64,
    /// Keys that should have been fetched again and could not be; they are listed among what was not carried over.
    pub not_fetched: u64,
    /// Flows in which an expiry that had been sent passed before the flow was complete: keys renewed meanwhile may be
    /// missing at the target.
    pub flows_at_risk: u64,
}

/// Sessions of `replicate` whose source went away, or was let go: what was read was applied before they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Drains {
    pub count: u64,
    /// Journal records that the target confirmed after the source was gone, and how long that took.
    pub records: u64,
    pub ms: u64,
}

/// What the engine hands over at the end of a run. Everything optional may be missing in a run that failed early.
#[derive(Debug)]
pub struct RunInputs {
    /// `migrate`, `demo`.
    pub command: String,
    pub outcome: Outcome,
    /// The resolved settings, serialized (secrets show only whether they are set).
    pub settings: serde_json::Value,
    /// `uname -r`.
    pub kernel: String,
    pub ring_features: Vec<RingFeature>,
    pub source: ServerInfo,
    pub targets: Vec<ServerInfo>,
    /// In order, with the time that each took.
    pub phases: Vec<(String, Duration)>,
    /// The whole run, and that part of it in which data flowed (the base of all rates).
    pub elapsed: Duration,
    pub transfer: Duration,
    pub started_unix_ms: u64,
    pub types: Vec<TypeRow>,
    pub not_carried: NotCarriedList,
    /// Journal commands by name.
    pub journal_commands: BTreeMap<String, u64>,
    pub search_indexes: Vec<String>,
    pub scripts_loaded: u64,
    pub suspects: Suspects,
    pub expiries: Expiries,
    pub filtered: Filtered,
    pub clock_skew: ClockSkew,
    /// All workers added up ([`super::Totals::sum`]).
    pub totals: WorkerStats,
    pub latencies: LatencySeries,
    /// CPU used in the run by the tool.
    pub cpu_tool: Option<CpuSample>,
    /// CPU used in the run by each target that says so in `INFO`.
    pub cpu_target: Option<CpuSample>,
    pub rss_bytes_peak: Option<u64>,
    /// The last cutover of the run.
    pub cutover: Option<CutoverReport>,
    pub drains: Drains,
}

impl RunInputs {
    /// The report of a run that ended with `outcome` before anything was measured; the fields are public.
    pub fn empty(command: &str, outcome: Outcome, settings: serde_json::Value) -> Self {
        Self {
            command: command.to_string(),
            outcome,
            settings,
            kernel: String::new(),
            ring_features: Vec::new(),
            source: ServerInfo::default(),
            targets: Vec::new(),
            phases: Vec::new(),
            elapsed: Duration::ZERO,
            transfer: Duration::ZERO,
            started_unix_ms: 0,
            types: Vec::new(),
            not_carried: NotCarriedList::default(),
            journal_commands: BTreeMap::new(),
            search_indexes: Vec::new(),
            scripts_loaded: 0,
            suspects: Suspects::default(),
            expiries: Expiries::default(),
            filtered: Filtered::default(),
            clock_skew: ClockSkew::default(),
            totals: WorkerStats::default(),
            latencies: LatencySeries::new(),
            cpu_tool: None,
            cpu_target: None,
            rss_bytes_peak: None,
            cutover: None,
            drains: Drains::default(),
        }
    }
}

/// The report.
#[derive(Debug, Serialize)]
pub struct RunReport {
    pub schema_version: u32,
    pub tool_version: String,
    pub command: String,
    pub outcome: Outcome,
    /// The last cutover of the run, done or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cutover: Option<CutoverReport>,
    pub started_unix_ms: u64,
    pub elapsed_ms: u64,
    pub source: ServerInfo,
    pub targets: Vec<ServerInfo>,
    pub phases: Vec<PhaseRow>,
    pub types: Vec<TypeRow>,
    pub not_carried_count: u64,
    pub not_carried: NotCarriedList,
    pub search_indexes_not_carried: Vec<String>,
    pub scripts_loaded: u64,
    pub journal_commands: BTreeMap<String, u64>,
    pub suspects: Suspects,
    pub expiries: Expiries,
    #[serde(skip_serializing_if = "Filtered::is_empty")]
    pub filtered: Filtered,
    pub source_gone: Drains,
    /// Measured before the first write.
    pub clock_skew: ClockSkew,
    pub rates: Rates,
    pub latencies: Vec<LatencyRow>,
    pub batches: Batches,
    pub cpu: Cpu,
    pub rss_bytes_peak: Option<u64>,
    /// Longest time for which any flow of the source was not being read (each flow's: `counters.flows`).
    pub source_unread_ms_max: u64,
    /// Every counter of the data plane, workers added up; flows one by one.
    pub counters: WorkerStats,
    pub kernel: String,
    pub ring_features: Vec<RingFeature>,
    pub settings: serde_json::Value,
    /// The whole-run histograms, for `.hgrm`; not part of the document.
    #[serde(skip)]
    pub histograms: LatencySeries,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PhaseRow {
    pub name: String,
    pub elapsed_ms: u64,
}

/// Over the time in which data flowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    pub transfer_ms: u64,
    pub keys_per_s: f64,
    pub commands_per_s: f64,
    pub bytes_in_per_s: f64,
    pub bytes_out_per_s: f64,
}

/// One latency at one node, in ns.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LatencyRow {
    pub latency: Latency,
    pub node: u16,
    /// From where to where, and what to know about coordinated omission.
    pub meaning: &'static str,
    pub omission: &'static str,
    pub count: u64,
    pub ns_mean: f64,
    pub ns_p50: u64,
    pub ns_p90: u64,
    pub ns_p99: u64,
    pub ns_p99_9: u64,
    pub ns_p99_99: u64,
    pub ns_max: u64,
}

/// Batches, pipeline and system calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Batches {
    pub bytes_mean: f64,
    pub bytes_max: u64,
    pub commands_mean: f64,
    pub batches_per_chain_mean: f64,
    /// Commands in flight on one connection.
    pub pipeline_depth_mean: f64,
    pub pipeline_depth_max: u64,
    pub system_calls: u64,
    pub keys_per_system_call: f64,
}

/// CPU time; what users compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cpu {
    pub tool: Option<CpuUse>,
    pub target: Option<CpuUse>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct CpuUse {
    pub user_ms: u64,
    pub system_ms: u64,
    /// Per GiB read from the source; `None` where less than 1 MiB was read.
    pub ms_per_gib_in: Option<f64>,
    /// Per million keys; `None` where fewer than 1000 were read.
    pub ms_per_million_keys: Option<f64>,
    /// Share of one core over the transfer.
    pub cores: Option<f64>,
}

impl RunReport {
    /// Derives every figure. Pure: no clock, no file.
    pub fn assemble(inputs: RunInputs) -> Self {
        let totals = &inputs.totals;
        let cpu = |sample: Option<CpuSample>| sample.map(|sample| cpu_use(sample, totals, inputs.transfer));
        Self {
            schema_version: SCHEMA_VERSION,
            tool_version: env!("CARGO_PKG_VERSION").to_string(),
            rates: rates(totals, inputs.transfer),
            batches: batches(totals),
            cpu: Cpu { tool: cpu(inputs.cpu_tool), target: cpu(inputs.cpu_target) },
            latencies: inputs.latencies.whole().map(|(latency, node, h)| latency_row(latency, node, h)).collect(),
            command: inputs.command,
            outcome: inputs.outcome,
            cutover: inputs.cutover,
            started_unix_ms: inputs.started_unix_ms,
            elapsed_ms: millis(inputs.elapsed),
            source: inputs.source,
            targets: inputs.targets,
            phases: inputs
                .phases
                .into_iter()
                .map(|(name, elapsed)| PhaseRow { name, elapsed_ms: millis(elapsed) })
                .collect(),
            types: inputs.types,
            not_carried_count: inputs.not_carried.total(),
            not_carried: inputs.not_carried,
            search_indexes_not_carried: inputs.search_indexes,
            scripts_loaded: inputs.scripts_loaded,
            journal_commands: inputs.journal_commands,
            suspects: inputs.suspects,
            expiries: inputs.expiries,
            filtered: inputs.filtered,
            source_gone: inputs.drains,
            clock_skew: inputs.clock_skew,
            rss_bytes_peak: inputs.rss_bytes_peak,
            source_unread_ms_max: totals.unread_ms_max(),
            counters: inputs.totals,
            kernel: inputs.kernel,
            ring_features: inputs.ring_features,
            settings: inputs.settings,
            histograms: inputs.latencies,
        }
    }

    /// The document as JSON, ending with a newline.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }

    /// The flows one by one.
    pub fn flows(&self) -> &[FlowSample] {
        &self.counters.flows
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn ratio(of: u64, by: u64) -> f64 {
    if by == 0 { 0.0 } else { of as f64 / by as f64 }
}

fn rates(totals: &WorkerStats, transfer: Duration) -> Rates {
    Rates {
        transfer_ms: millis(transfer),
        keys_per_s: per_second(totals.keys, transfer),
        commands_per_s: per_second(totals.commands, transfer),
        bytes_in_per_s: per_second(totals.bytes_in, transfer),
        bytes_out_per_s: per_second(totals.bytes_out, transfer),
    }
}

fn batches(totals: &WorkerStats) -> Batches {
    let system_calls = totals.enters.saturating_add(totals.system_calls_other);
    Batches {
        bytes_mean: ratio(totals.batch_bytes, totals.batches),
        bytes_max: totals.batch_bytes_max,
        commands_mean: ratio(totals.commands, totals.batches),
        batches_per_chain_mean: ratio(totals.batches, totals.chains),
        pipeline_depth_mean: ratio(totals.pipeline_depth_sum, totals.chains),
        pipeline_depth_max: totals.pipeline_depth_max,
        system_calls,
        keys_per_system_call: ratio(totals.keys, system_calls),
    }
}

fn cpu_use(sample: CpuSample, totals: &WorkerStats, transfer: Duration) -> CpuUse {
    const GIB: f64 = (1u64 << 30) as f64;
    let total_ms = sample.total().as_secs_f64() * 1e3;
    CpuUse {
        user_ms: millis(sample.user),
        system_ms: millis(sample.system),
        ms_per_gib_in: (totals.bytes_in >= 1 << 20).then(|| total_ms * GIB / totals.bytes_in as f64),
        ms_per_million_keys: (totals.keys >= 1000).then(|| total_ms * 1e6 / totals.keys as f64),
        cores: (!transfer.is_zero()).then(|| sample.total().as_secs_f64() / transfer.as_secs_f64()),
    }
}

fn latency_row(latency: Latency, node: u16, histogram: &Histogram<u64>) -> LatencyRow {
    let at = |quantile| histogram.value_at_quantile(quantile);
    LatencyRow {
        latency,
        node,
        meaning: latency.meaning(),
        omission: latency.omission(),
        count: histogram.len(),
        ns_mean: histogram.mean(),
        ns_p50: at(0.5),
        ns_p90: at(0.9),
        ns_p99: at(0.99),
        ns_p99_9: at(0.999),
        ns_p99_99: at(0.9999),
        ns_max: histogram.max(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::sample_inputs;

    #[test]
    fn golden_document() {
        let json = RunReport::assemble(sample_inputs(Outcome::done())).to_json().unwrap();
        insta::assert_snapshot!(json.replace(env!("CARGO_PKG_VERSION"), "VERSION"));
    }

    #[test]
    fn a_run_without_figures_has_a_document() {
        let outcome = Outcome::failed(ExitClass::Refused, "the target holds 3 keys", Some("unchanged".into()));
        let report = RunReport::assemble(RunInputs::empty("migrate", outcome, serde_json::Value::Null));
        let value: serde_json::Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
        assert_eq!(value["outcome"]["class"], "refused");
        assert_eq!(value["rates"]["keys_per_s"], 0.0);
    }

    #[test]
    fn the_list_is_bounded_and_the_count_is_not() {
        let mut list = NotCarriedList::default();
        let item =
            NotCarried { db: 0, key: b"k".to_vec(), kind: "json".into(), action: "skip".into(), reason: "no".into() };
        for _ in 0..NOT_CARRIED_LISTED_MAX + 5 {
            list.push(&item);
        }
        assert_eq!((list.listed.len(), list.total()), (NOT_CARRIED_LISTED_MAX, NOT_CARRIED_LISTED_MAX as u64 + 5));
    }
}
