//! What a run tells while it goes on: the one trait through which the engine speaks to whoever watches it.
//!
//! The engine's control thread calls these; none may block for long. `operator` implements it for people (progress, log
//! files), tests implement it to look inside.

use super::document::NotCarried;
use super::latency::Interval;
use std::time::Duration;

/// Where the run stands, sent about twice a second.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgressSnapshot {
    /// The phase in the words of design.md ("connect", "full sync", ...).
    pub phase: String,
    pub elapsed: Duration,
    pub flows: Vec<FlowProgress>,
    /// Bytes read from the source and written to the target.
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub keys: u64,
    /// Keys that the source is known to hold, once it is known.
    pub keys_expected: Option<u64>,
}

/// One flow in a [`ProgressSnapshot`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowProgress {
    pub flow: u32,
    pub bytes_in: u64,
    pub keys: u64,
    /// In the engine's words: `snapshot`, `snapshot ended`, `complete`.
    pub state: &'static str,
    /// For how long it has not been read now, ms.
    pub unread_ms: u64,
    /// Bytes read and waiting for the target.
    pub backlog_bytes: u64,
}

/// Watches a run. Every method has an empty default.
pub trait Observer {
    /// The run stands here.
    fn progress(&mut self, _snapshot: &ProgressSnapshot) {}

    /// A key, or part of one, could not be carried over as it is. Called once for each, as it happens.
    fn not_carried(&mut self, _item: &NotCarried) {}

    /// One worker's latencies since its last interval; each worker sends one a second.
    fn interval(&mut self, _interval: &Interval) {}

    /// The time since the run began: called at least once a second, and at the end after the last interval.
    /// Every flow's applied position was equal to the source's.
    fn in_step(&mut self) {}

    fn second(&mut self, _now: Duration) {}
}

/// Watches nothing.
#[derive(Debug, Default)]
pub struct Unwatched;

impl Observer for Unwatched {}
