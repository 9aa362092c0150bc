//! The status of a job for people. The same status gives the same text; nothing that a peer said reaches the terminal raw.

use crate::report::numbers::{bytes, count, duration, nanos};
use crate::report::status::{FlowStatus, Status};
use crate::report::text::harmless;
use std::fmt::Write;
use std::time::Duration;

/// Flows listed one by one; of more, those that are farthest behind.
const FLOWS_SHOWN_MAX: usize = 32;

/// Some lines, ending with a newline.
pub fn render(status: &Status) -> String {
    let mut out = String::new();
    let ms = Duration::from_millis;
    let _ = writeln!(out, "{} from {} to {} (pid {})", status.command, status.source, status.target, status.pid);
    let _ = writeln!(
        out,
        "phase: {} for {}, {} since the start{}",
        status.phase,
        duration(ms(status.phase_ms)),
        duration(ms(status.elapsed_ms)),
        if status.resumable { ", can go on after a restart" } else { "" }
    );
    let expected = status.keys_expected.map(|keys| format!(" of about {}", count(keys))).unwrap_or_default();
    let _ = writeln!(
        out,
        "moved: {}{expected} keys, {} read, {} written, {} commands answered",
        count(status.keys),
        bytes(status.bytes_in),
        bytes(status.bytes_out),
        count(status.commands)
    );
    let rates = &status.rates;
    let _ = writeln!(
        out,
        "rates: {} keys/s, {} commands/s, {}/s read, {}/s written",
        count(rates.keys_per_s as u64),
        count(rates.commands_per_s as u64),
        bytes(rates.bytes_in_per_s as u64),
        bytes(rates.bytes_out_per_s as u64)
    );
    if let Some(lag) = status.lag {
        let _ = writeln!(out, "lag: {} entries, {}", count(lag.entries), duration(ms(lag.ms)));
    }
    if let Some(lag) = status.apply_lag {
        let (p50, p99, max) = (nanos(lag.ns_p50), nanos(lag.ns_p99), nanos(lag.ns_max));
        let _ = writeln!(out, "apply lag: p50 {p50}, p99 {p99}, max {max}");
    }
    if status.expiries_held > 0 {
        let _ = writeln!(out, "expiries: {} held back", count(status.expiries_held));
    }
    if let Some(spool) = status.spool {
        let (now, max) = (bytes(spool.bytes), bytes(spool.bytes_max));
        let _ = writeln!(out, "spool: {now} of {max}, {} went through it", bytes(spool.bytes_written));
    }
    let held = match status.throttle.reasons.as_slice() {
        [] => "nothing".to_string(),
        reasons => reasons.join("; "),
    };
    let _ = writeln!(out, "held back by: {held}");
    flows(&mut out, &status.flows);
    if !status.knobs.is_empty() {
        out.push_str("knobs (df2redis set KEY=VALUE):\n");
    }
    for knob in &status.knobs {
        let _ = writeln!(out, "  {:<34} {}", format!("{} = {}", knob.key, knob.value), knob.what);
    }
    harmless(&out)
}

fn flows(out: &mut String, flows: &[FlowStatus]) {
    let mut shown: Vec<&FlowStatus> = flows.iter().collect();
    if shown.len() > FLOWS_SHOWN_MAX {
        shown.sort_by_key(|flow| std::cmp::Reverse(flow.lag_entries));
        shown.truncate(FLOWS_SHOWN_MAX);
        let _ = writeln!(out, "{} flows, the {FLOWS_SHOWN_MAX} farthest behind:", flows.len());
    }
    for flow in shown {
        let lsn = |lsn: Option<u64>| lsn.map_or("-".to_string(), |lsn| lsn.to_string());
        let _ =
            write!(out, "  flow {}: {}, {} keys, {}", flow.flow, flow.state, count(flow.keys), bytes(flow.bytes_in));
        if flow.read_lsn.is_some() {
            let (source, read, applied) = (lsn(flow.source_lsn), lsn(flow.read_lsn), lsn(flow.applied_lsn));
            let _ = write!(out, ", LSN {source} at the source, {read} read, {applied} applied");
        }
        if let Some((entries, ms)) = flow.lag_entries.zip(flow.lag_ms) {
            let _ = write!(out, ", behind by {} entries, {}", count(entries), duration(Duration::from_millis(ms)));
        }
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::status::{Knob, Lag, Percentiles, SpoolStatus, StatusRates, ThrottleStatus};

    #[test]
    fn golden_status() {
        let status = Status {
            command: "replicate".into(),
            pid: 42,
            source: "10.0.0.5:6379".into(),
            target: "10.0.0.9:6379".into(),
            phase: "catching up".into(),
            phase_ms: 1500,
            elapsed_ms: 65_000,
            resumable: true,
            keys: 1_000_000,
            keys_expected: Some(1_000_100),
            bytes_in: 300 << 20,
            bytes_out: 310 << 20,
            commands: 1_200_000,
            expiries_held: 4321,
            rates: StatusRates { over_ms: 5000, commands_per_s: 25_000.0, bytes_in_per_s: 3e6, ..Default::default() },
            lag: Some(Lag { entries: 1200, ms: 800 }),
            apply_lag: Some(Percentiles { ns_p50: 150_000, ns_p99: 2_000_000, ns_max: 9_000_000 }),
            flows: vec![FlowStatus {
                flow: 1,
                state: "stable".into(),
                bytes_in: 150 << 20,
                keys: 500_000,
                source_lsn: Some(9000),
                read_lsn: Some(8000),
                applied_lsn: Some(7800),
                lag_entries: Some(1200),
                lag_ms: Some(800),
                unread_ms_max: 3,
            }],
            spool: Some(SpoolStatus {
                bytes: 5 << 20,
                bytes_written: 9 << 20,
                bytes_max: 4 << 30,
                ..Default::default()
            }),
            throttle: ThrottleStatus {
                bytes_per_s: Some(1 << 20),
                reasons: vec!["limited to 1048576 bytes/s by the operator".into()],
                ..Default::default()
            },
            knobs: vec![Knob {
                key: "rate-bytes".into(),
                value: "1048576".into(),
                what: "most bytes\x1b a second".into(),
            }],
            ..Status::default()
        };
        insta::assert_snapshot!(render(&status));
    }
}
