//! The status of a job in the text form of Prometheus (version 0.0.4).
//!
//! In: a [`Status`]. Out: every figure of it with name, type and help. The same status gives the same text. Names are
//! stable: they may be added to, and dashboards rely on them.

use crate::report::status::{FlowStatus, Status};
use std::fmt::Write;

/// All metrics, ending with a newline.
pub fn render(status: &Status) -> String {
    let mut out = String::new();
    info(&mut out, status);
    let ms = |ms: u64| ms as f64 / 1000.0;
    let ns = |ns: u64| ns as f64 / 1e9;
    gauge(&mut out, "uptime_seconds", "Time since the job began", ms(status.elapsed_ms));
    gauge(&mut out, "phase_seconds", "Time in the present phase", ms(status.phase_ms));
    gauge(&mut out, "in_step", "1: the target is in step with the source", f64::from(u8::from(status.in_step)));
    gauge(&mut out, "resumable", "1: a restart goes on from the checkpoint", f64::from(u8::from(status.resumable)));
    counter(&mut out, "keys_total", "Keys of the snapshot read", status.keys);
    if let Some(keys) = status.keys_expected {
        gauge(&mut out, "keys_expected", "Keys that the source held at the start", keys as f64);
    }
    counter(&mut out, "source_bytes_total", "Bytes read from the source", status.bytes_in);
    counter(&mut out, "target_bytes_total", "Bytes written to the target", status.bytes_out);
    counter(&mut out, "commands_total", "Commands that the target has answered", status.commands);
    counter(&mut out, "target_reconnects_total", "Connections to the target that were made again", status.reconnects);
    gauge(&mut out, "unacked_bytes", "Bytes sent to the target and not yet answered", status.unacked_bytes as f64);
    if let Some(lag) = status.lag {
        gauge(&mut out, "lag_entries", "Records that the target is behind the source", lag.entries as f64);
        gauge(&mut out, "lag_seconds", "Age of the oldest position of the source not reached", ms(lag.ms));
    }
    if let Some(lag) = status.apply_lag {
        head(&mut out, "apply_lag_seconds", "gauge", "Last byte of an entry read until its reply, in the last second");
        for (quantile, value) in [("0.5", lag.ns_p50), ("0.99", lag.ns_p99), ("1", lag.ns_max)] {
            let _ = writeln!(out, "df2redis_apply_lag_seconds{{quantile=\"{quantile}\"}} {}", ns(value));
        }
    }
    if let Some(spool) = status.spool {
        gauge(&mut out, "spool_bytes", "Bytes in the spool", spool.bytes as f64);
        gauge(&mut out, "spool_bytes_max", "Most bytes that the spool may hold", spool.bytes_max as f64);
        counter(&mut out, "spool_bytes_total", "Bytes that went through the spool", spool.bytes_written);
    }
    let throttle = &status.throttle;
    gauge(&mut out, "paused", "1: paused by the operator", f64::from(u8::from(throttle.paused)));
    let held = f64::from(u8::from(!throttle.reasons.is_empty()));
    gauge(&mut out, "held_back", "1: something holds the job back (df2redis status says what)", held);
    gauge(&mut out, "limit_bytes_per_second", "Limit set by the operator; 0: none", limit(throttle.bytes_per_s));
    gauge(&mut out, "limit_entries_per_second", "Limit set by the operator; 0: none", limit(throttle.entries_per_s));
    flows(&mut out, &status.flows);
    out
}

fn limit(limit: Option<u64>) -> f64 {
    limit.unwrap_or(0) as f64
}

fn info(out: &mut String, status: &Status) {
    head(out, "info", "gauge", "The job; always 1");
    let labels = [
        ("version", &status.tool_version),
        ("command", &status.command),
        ("source", &status.source),
        ("target", &status.target),
        ("phase", &status.phase),
    ];
    let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    let _ = writeln!(out, "df2redis_info{{{}}} 1", labels.join(","));
}

/// A label's value: backslash, quote and line end are escaped.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP df2redis_{name} {help}\n# TYPE df2redis_{name} {kind}");
}

fn gauge(out: &mut String, name: &str, help: &str, value: f64) {
    head(out, name, "gauge", help);
    let _ = writeln!(out, "df2redis_{name} {value}");
}

fn counter(out: &mut String, name: &str, help: &str, value: u64) {
    head(out, name, "counter", help);
    let _ = writeln!(out, "df2redis_{name} {value}");
}

fn flows(out: &mut String, flows: &[FlowStatus]) {
    let mut each = |name: &str, kind: &str, help: &str, of: &dyn Fn(&FlowStatus) -> Option<f64>| {
        let values: Vec<_> = flows.iter().filter_map(|flow| Some((flow.flow, of(flow)?))).collect();
        if values.is_empty() {
            return;
        }
        head(out, name, kind, help);
        for (flow, value) in values {
            let _ = writeln!(out, "df2redis_{name}{{flow=\"{flow}\"}} {value}");
        }
    };
    let n = |n: u64| n as f64;
    each("flow_bytes_total", "counter", "Bytes read from a flow", &|flow| Some(n(flow.bytes_in)));
    each("flow_source_lsn", "gauge", "Next LSN at the source", &|flow| flow.source_lsn.map(n));
    each("flow_read_lsn", "gauge", "Next LSN to be read", &|flow| flow.read_lsn.map(n));
    each("flow_applied_lsn", "gauge", "Next LSN not confirmed by the target", &|flow| flow.applied_lsn.map(n));
    each("flow_lag_entries", "gauge", "Records that a flow is behind", &|flow| flow.lag_entries.map(n));
    each("flow_lag_seconds", "gauge", "Time that a flow is behind", &|flow| flow.lag_ms.map(|ms| n(ms) / 1000.0));
    each("flow_unread_seconds_max", "gauge", "Longest time for which a flow was not being read", &|flow| {
        Some(n(flow.unread_ms_max) / 1000.0)
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::status::{Lag, Percentiles};

    #[test]
    fn golden_metrics() {
        let status = Status {
            tool_version: "0.1.0".into(),
            command: "replicate".into(),
            source: "10.0.0.5:6379".into(),
            target: "odd\"\n\\host:6379".into(),
            phase: "in step".into(),
            in_step: true,
            elapsed_ms: 12_345,
            keys: 7,
            lag: Some(Lag { entries: 3, ms: 1500 }),
            apply_lag: Some(Percentiles { ns_p50: 150_000, ns_p99: 2_000_000, ns_max: 9_000_000 }),
            flows: vec![
                FlowStatus { flow: 0, bytes_in: 5, source_lsn: Some(9), lag_ms: Some(1500), ..Default::default() },
                FlowStatus { flow: 1, ..Default::default() },
            ],
            ..Status::default()
        };
        let text = render(&status);
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with("df2redis_") && value.parse::<f64>().is_ok(), "{line}");
        }
        insta::assert_snapshot!(text);
    }
}
