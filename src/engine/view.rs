//! The job as operators see it: its status, with rates over the last seconds and the lag of each flow.
//!
//! In: the sums of the workers' counters, the source's positions, latencies. Out: a [`Status`], put where
//! [`Control::status`](super::control::Control::status) finds it. Nothing here changes the job.

use super::job::Job;
use super::lag::LagClock;
use super::phase::Phase;
use crate::report::counters::WorkerStats;
use crate::report::latency::{Latency, Recent};
use crate::report::numbers::{bytes, per_second};
use crate::report::status::{
    FlowStatus, Lag, Percentiles, SCHEMA_VERSION, SpoolStatus, Status, StatusRates, ThrottleStatus,
};
use std::collections::VecDeque;
use std::time::Duration;

/// Rates are taken over this time.
const RATE_OVER: Duration = Duration::from_secs(5);

/// What is kept between two looks.
#[derive(Default)]
pub(super) struct View {
    /// Keys, commands, bytes in, bytes out, at a time since the start.
    seen: VecDeque<(Duration, [u64; 4])>,
    lag: LagClock,
    /// The source's positions, as last heard in this session.
    source: Option<Vec<u64>>,
    applied: Vec<u64>,
    /// Of the last seconds in which anything was applied.
    pub latencies: Recent,
}

impl View {
    /// The workers' counters at `elapsed`.
    pub fn remember(&mut self, elapsed: Duration, sum: &WorkerStats) {
        let now = [sum.keys, sum.commands, sum.bytes_in, sum.bytes_out];
        // A session begun anew counts from zero.
        if self.seen.back().is_some_and(|(_, last)| last.iter().zip(&now).any(|(last, now)| last > now)) {
            self.seen.clear();
        }
        self.seen.push_back((elapsed, now));
        while self.seen.len() > 2
            && self.seen.get(1).is_some_and(|(then, _)| elapsed.saturating_sub(*then) >= RATE_OVER)
        {
            self.seen.pop_front();
        }
    }

    /// The source's positions and the target's.
    pub fn heard(&mut self, elapsed: Duration, source: Vec<u64>, applied: &[u64]) {
        self.lag.heard(elapsed.as_millis() as u64, &source);
        self.lag.reached(applied);
        self.source = Some(source);
        self.applied = applied.to_vec();
    }

    /// The source does not say where it stands: the lag is not known.
    pub fn unheard(&mut self) {
        self.source = None;
    }

    /// The session's positions mean nothing to the next one.
    pub fn forget(&mut self) {
        (self.lag, self.source) = (LagClock::default(), None);
    }

    fn rates(&self) -> StatusRates {
        let (Some((from, first)), Some((to, last))) = (self.seen.front(), self.seen.back()) else {
            return StatusRates::default();
        };
        let over = to.saturating_sub(*from);
        let rate = |index: usize| {
            let of = |counts: &[u64; 4]| counts.get(index).copied().unwrap_or(0);
            per_second(of(last).saturating_sub(of(first)), over)
        };
        StatusRates {
            over_ms: over.as_millis() as u64,
            keys_per_s: rate(0),
            commands_per_s: rate(1),
            bytes_in_per_s: rate(2),
            bytes_out_per_s: rate(3),
        }
    }
}

impl Job<'_> {
    /// Puts the job's status where operators find it.
    pub(super) fn publish(&self) {
        self.settings.control.publish(self.status());
    }

    fn status(&self) -> Status {
        let sum = self.totals.sum();
        let elapsed_ms = self.started.elapsed().as_millis() as u64;
        let source_of = |flow: u32| self.view.source.as_ref().and_then(|lsns| lsns.get(flow as usize)).copied();
        let flows: Vec<FlowStatus> = sum
            .flows
            .iter()
            .map(|flow| {
                let applied = self.view.applied.get(flow.flow as usize).copied().unwrap_or(0);
                FlowStatus {
                    flow: flow.flow,
                    state: flow.state.to_string(),
                    bytes_in: flow.bytes_in,
                    keys: flow.keys,
                    source_lsn: source_of(flow.flow),
                    read_lsn: Some(flow.read_lsn).filter(|lsn| *lsn > 0),
                    lag_ms: source_of(flow.flow)
                        .map(|_| self.view.lag.behind_ms(flow.flow as usize, applied, elapsed_ms)),
                    unread_ms_max: flow.unread_ns_max / 1_000_000,
                    ..FlowStatus::default()
                }
            })
            .collect();
        let lag = self.view.source.as_ref().map(|_| Lag {
            // The entries are added when the status is asked for.
            entries: 0,
            ms: flows.iter().filter_map(|flow| flow.lag_ms).max().unwrap_or(0),
        });
        let mut reasons = sum.refusals.clone();
        // The workers' connections to one server, or node, tell the same.
        reasons.sort_unstable();
        reasons.dedup();
        if sum.windows_full > 0 {
            let text = "connection(s) wait for the target's answers: their window is used up";
            reasons.push(format!("{} {text}", sum.windows_full));
        }
        let leaves = match self.phase {
            Phase::Draining => Some("the source is gone"),
            Phase::Stopping => Some("stopping"),
            _ => None,
        };
        if let Some(why) = leaves {
            let left = bytes(sum.flows.iter().map(|flow| flow.backlog_bytes).sum());
            reasons.push(format!("{why}: what was read is applied ({left} left)"));
        }
        Status {
            schema_version: SCHEMA_VERSION,
            tool_version: env!("CARGO_PKG_VERSION").into(),
            command: self.report.command.clone(),
            pid: std::process::id(),
            source: self.report.source.address.clone(),
            target: self.settings.target.address().to_string(),
            phase: self.phase.name().into(),
            phase_ms: self.phase_since.elapsed().as_millis() as u64,
            elapsed_ms,
            in_step: self.phase == Phase::InStep,
            resumable: self.resumable,
            keys: sum.keys,
            keys_expected: self.keys_expected,
            bytes_in: sum.bytes_in,
            bytes_out: sum.bytes_out,
            commands: sum.commands,
            unacked_bytes: sum.unacked_bytes,
            reconnects: sum.reconnects,
            expiries_held: sum.expiries_held,
            rates: self.view.rates(),
            lag,
            apply_lag: self.view.latencies.percentiles(Latency::ApplyLag).map(|[ns_p50, ns_p99, ns_max]| Percentiles {
                ns_p50,
                ns_p99,
                ns_max,
            }),
            flows,
            spool: self.settings.spool.as_ref().map(|spool| SpoolStatus {
                bytes: sum.spool_bytes,
                bytes_written: sum.spool_bytes_written,
                bytes_read: sum.spool_bytes_read,
                bytes_max: spool.bytes_max,
            }),
            throttle: ThrottleStatus { reasons, ..ThrottleStatus::default() },
            knobs: Vec::new(),
            settings: self.report.settings.clone(),
        }
    }
}
