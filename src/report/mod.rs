//! What a run measured and what it tells: histograms, counters, the report document and its exporters.
//!
//! Workers fill [`Recorder`]s and [`WorkerStats`] without locks and send them once a second; the control thread merges
//! them ([`LatencySeries`], [`Totals`]) and, at the end, [`RunReport::assemble`] turns [`RunInputs`] into the one document
//! that the text table ([`text`]), `--output json` and `--report DIR` ([`files`]) show.
//!
//! Invariants: nothing here knows the engine, a socket or a clock (times are arguments); no secret ever enters; memory
//! does not grow with the length of a run, only with its number of target nodes.

pub mod counters;
pub mod cutover;
pub mod document;
pub mod files;
pub mod filtered;
pub mod hgrm;
pub mod hlog;
pub mod latency;
pub mod numbers;
pub mod observer;
#[cfg(test)]
mod sample;
pub mod status;
pub mod text;

pub use counters::{CpuSample, FlowSample, Totals, WorkerStats};
pub use document::{ExitClass, NotCarried, Outcome, RunInputs, RunReport, ServerInfo, TypeRow};
pub use files::ReportFiles;
pub use latency::{Interval, Latency, LatencySeries, Recorder};
pub use observer::{FlowProgress, Observer, ProgressSnapshot};
