//! The report for people: the table by type, what was not carried over, the latencies, and the figures to compare.
//!
//! In: a [`RunReport`]. Out: text, at most about 100 columns wide, without colour; the same run gives the same text. Names
//! and error texts come from the peers: control characters in them never reach the terminal.

use super::cutover::{CutoverOutcome, CutoverReport};
use super::document::{CpuUse, RunReport, TypeRow};
use super::numbers::{bytes, count, duration, nanos, printable};
use comfy_table::{CellAlignment, Table, presets};
use std::fmt::Write;
use std::time::Duration;

/// Names shown of each list; the rest is in the JSON document and in `not-carried.jsonl`.
const NAMES_SHOWN_MAX: usize = 10;

/// The whole report, ending with a newline.
pub fn render(report: &RunReport) -> String {
    let mut out = String::new();
    headline(&mut out, report);
    if let Some(cutover) = &report.cutover {
        line(&mut out, &cutover_line(cutover));
    }
    if !report.phases.is_empty() {
        phases(&mut out, report);
    }
    if !report.types.is_empty() {
        section(&mut out, "Keys by type", &types(&report.types));
    }
    left_behind(&mut out, report);
    if !report.latencies.is_empty() {
        section(&mut out, "Latencies", &latencies(report));
    }
    if report.counters.bytes_in > 0 {
        section(&mut out, "Figures", &figures(report));
    }
    harmless(&out)
}

/// `text` without control characters other than line ends: no peer may move the cursor or recolour the screen.
pub fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn headline(out: &mut String, report: &RunReport) {
    let took = duration(Duration::from_millis(report.elapsed_ms));
    match &report.outcome.message {
        None => line(out, &format!("Done in {took}.")),
        Some(message) => line(out, &format!("Not finished after {took}: {message}")),
    }
    if let Some(state) = &report.outcome.target_state {
        line(out, &format!("Target: {state}"));
    }
    if !report.source.address.is_empty() {
        let targets: Vec<_> =
            report.targets.iter().map(|t| format!("{} {} {}", t.make, t.version, t.address)).collect();
        let source = &report.source;
        let flows = if source.flows > 0 { format!(" ({} flows)", source.flows) } else { String::new() };
        let named = [&source.make, &source.version, &source.address].map(String::as_str);
        let named = named.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
        let to = if targets.is_empty() { String::new() } else { format!(" to {}", targets.join(", ")) };
        line(out, &format!("From {named}{flows}{to}."));
    }
}

fn cutover_line(cutover: &CutoverReport) -> String {
    let held =
        cutover.held_us.map(|us| format!(", writes held for {}", nanos(us.saturating_mul(1000)))).unwrap_or_default();
    let verified = cutover.verified.as_ref().map(|said| format!(", {said}")).unwrap_or_default();
    match (cutover.outcome, &cutover.message) {
        (CutoverOutcome::HandedOver, None) => format!("Handed over{held}{verified}."),
        (CutoverOutcome::HandedOver, Some(note)) => format!("Handed over{held}{verified}; {note}."),
        (CutoverOutcome::Rehearsed, _) => "The last cutover was a rehearsal.".into(),
        (CutoverOutcome::Planned, _) => "The last cutover was only planned.".into(),
        (CutoverOutcome::NotDone, why) => {
            format!("The last cutover was not done{held}: {}", why.as_deref().unwrap_or("no reason was given"))
        }
    }
}

fn phases(out: &mut String, report: &RunReport) {
    let list: Vec<_> =
        report.phases.iter().map(|p| format!("{} {}", p.name, duration(Duration::from_millis(p.elapsed_ms)))).collect();
    line(out, &format!("Phases: {}.", list.join(", ")));
}

fn types(rows: &[TypeRow]) -> Table {
    let mut table = plain(&["type", "read", "written", "expired", "skipped", "elements", "bytes", "reason"]);
    let mut all = TypeRow { type_name: "all".into(), ..Default::default() };
    for row in rows {
        type_line(&mut table, row);
        all.keys_read += row.keys_read;
        all.keys_written += row.keys_written;
        all.keys_expired += row.keys_expired;
        all.elements += row.elements;
        all.bytes += row.bytes;
        for (reason, n) in &row.keys_skipped {
            *all.keys_skipped.entry(reason.clone()).or_default() += n;
        }
    }
    if rows.len() > 1 {
        type_line(&mut table, &all);
    }
    numeric(&mut table, 1..=6);
    table
}

fn type_line(table: &mut Table, row: &TypeRow) {
    let reasons: Vec<_> = row.keys_skipped.iter().map(|(reason, n)| format!("{reason} {}", count(*n))).collect();
    table.add_row([
        row.type_name.clone(),
        count(row.keys_read),
        count(row.keys_written),
        count(row.keys_expired),
        count(row.keys_skipped.values().sum()),
        count(row.elements),
        bytes(row.bytes),
        reasons.join(", "),
    ]);
}

fn left_behind(out: &mut String, report: &RunReport) {
    if report.not_carried_count > 0 {
        let counts: Vec<_> =
            report.not_carried.counts.iter().map(|(what, n)| format!("{what} {}", count(*n))).collect();
        line(
            out,
            &format!("\nNot carried over as it was: {} ({})", count(report.not_carried_count), counts.join(", ")),
        );
        for item in report.not_carried.listed.iter().take(NAMES_SHOWN_MAX) {
            line(out, &format!("  db {} {}: {} ({})", item.db, printable(&item.key), item.reason, item.action));
        }
        let more = report.not_carried_count.saturating_sub(NAMES_SHOWN_MAX as u64);
        if more > 0 {
            line(out, &format!("  and {} more (all of them in not-carried.jsonl of --report DIR)", count(more)));
        }
    }
    if !report.search_indexes_not_carried.is_empty() {
        let names: Vec<_> =
            report.search_indexes_not_carried.iter().take(NAMES_SHOWN_MAX).map(|n| printable(n.as_bytes())).collect();
        let total = report.search_indexes_not_carried.len();
        let more = if total > names.len() { ", ..." } else { "" };
        line(out, &format!("Search indexes not carried over: {total} ({}{more})", names.join(", ")));
    }
    if report.counters.strays_dropped > 0 {
        line(
            out,
            &format!(
                "Strays dropped (records of flows about keys of others): {}",
                count(report.counters.strays_dropped)
            ),
        );
    }
    if report.suspects.asked > 0 {
        line(
            out,
            &format!(
                "Suspect keys asked for at the source: {}, removed at the target: {}",
                count(report.suspects.asked),
                count(report.suspects.removed)
            ),
        );
    }
    filtered(out, report);
    let expiries = &report.expiries;
    if expiries.held > 0 {
        let (held, passed) = (count(expiries.held), count(expiries.passed_at_release));
        line(
            out,
            &format!(
                "Expiries held back: {held}, for {} at the most; {passed} had passed when they were given back, {} are still held",
                duration(Duration::from_millis(expiries.held_ms_max)),
                count(expiries.held_at_end)
            ),
        );
    }
    if expiries.put_right_by_sweep > 0 {
        line(out, &format!("Expiries put right by looking at every key: {}", count(expiries.put_right_by_sweep)));
    }
    if expiries.fetched_again > 0 || expiries.not_fetched > 0 {
        line(
            out,
            &format!(
                "Keys that had vanished at the target: {} fetched again, {} could not be",
                count(expiries.fetched_again),
                count(expiries.not_fetched)
            ),
        );
    }
    if expiries.flows_at_risk > 0 {
        line(
            out,
            &format!(
                "WARNING: in {} flows an expiry passed at the target before the flow was complete; keys that the source \
                 renewed meanwhile may be missing",
                count(expiries.flows_at_risk)
            ),
        );
    }
    if !report.journal_commands.is_empty() {
        let list: Vec<_> = report.journal_commands.iter().map(|(name, n)| format!("{name} {}", count(*n))).collect();
        line(out, &format!("Journal commands applied: {}", list.join(", ")));
    }
}

fn latencies(report: &RunReport) -> Table {
    let mut table = plain(&["latency", "node", "count", "mean", "p50", "p90", "p99", "p99.9", "p99.99", "max"]);
    for row in &report.latencies {
        table.add_row([
            row.latency.name().to_string(),
            row.node.to_string(),
            count(row.count),
            nanos(row.ns_mean as u64),
            nanos(row.ns_p50),
            nanos(row.ns_p90),
            nanos(row.ns_p99),
            nanos(row.ns_p99_9),
            nanos(row.ns_p99_99),
            nanos(row.ns_max),
        ]);
    }
    numeric(&mut table, 1..=9);
    table
}

fn figures(report: &RunReport) -> Table {
    let (totals, rates, batches) = (&report.counters, &report.rates, &report.batches);
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let mut row = |name: &str, value: String| {
        table.add_row([name.to_string(), value]);
    };
    row("keys", format!("{} ({}/s)", count(totals.keys), count(rates.keys_per_s as u64)));
    row("read", format!("{} ({}/s)", bytes(totals.bytes_in), bytes(rates.bytes_in_per_s as u64)));
    row("written", format!("{} ({}/s)", bytes(totals.bytes_out), bytes(rates.bytes_out_per_s as u64)));
    row(
        "batches",
        format!(
            "{}, mean {}, {:.1} commands, {:.1} in a chain",
            count(totals.batches),
            bytes(batches.bytes_mean as u64),
            batches.commands_mean,
            batches.batches_per_chain_mean
        ),
    );
    row(
        "pipeline depth",
        format!(
            "mean {:.0}, max {} commands in flight",
            batches.pipeline_depth_mean,
            count(batches.pipeline_depth_max)
        ),
    );
    row("system calls", format!("{} ({:.1} keys each)", count(batches.system_calls), batches.keys_per_system_call));
    row("flows unread", format!("at most {} ms", totals.unread_ms_max()));
    if totals.spool_bytes_written > 0 {
        let (written, most) = (bytes(totals.spool_bytes_written), bytes(totals.spool_bytes_max));
        row("spooled", format!("{written}, at most {most} of a worker at once"));
    }
    let gone = &report.source_gone;
    if gone.count > 0 {
        let took = duration(Duration::from_millis(gone.ms));
        row(
            "source gone",
            format!("{} times; {} records applied after it, in {took}", count(gone.count), count(gone.records)),
        );
    }
    if let Some(cpu) = &report.cpu.tool {
        row("CPU, this tool", cpu_text(cpu));
    }
    if let Some(cpu) = &report.cpu.target {
        row("CPU, target", cpu_text(cpu));
    }
    if let Some(peak) = report.rss_bytes_peak {
        row("memory, peak", bytes(peak));
    }
    let used: Vec<_> = report.ring_features.iter().filter(|f| f.used).map(|f| f.name.as_str()).collect();
    if !used.is_empty() {
        row("io_uring", format!("{} (kernel {})", used.join(", "), report.kernel));
    }
    table
}

fn cpu_text(cpu: &CpuUse) -> String {
    let mut text = format!("{} ms user, {} ms system", count(cpu.user_ms), count(cpu.system_ms));
    if let Some(ms) = cpu.ms_per_gib_in {
        let _ = write!(text, ", {} ms a GiB", count(ms as u64));
    }
    if let Some(ms) = cpu.ms_per_million_keys {
        let _ = write!(text, ", {} ms a million keys", count(ms as u64));
    }
    text
}

/// A table with a header line and nothing drawn; columns are two blanks apart.
fn plain(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().copied());
    table
}

fn numeric(table: &mut Table, columns: std::ops::RangeInclusive<usize>) {
    for index in columns {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

fn section(out: &mut String, title: &str, table: &Table) {
    let _ = writeln!(out, "\n{title}");
    for row in table.lines() {
        let _ = writeln!(out, " {}", row.trim_end());
    }
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}

/// What filters left out.
fn filtered(out: &mut String, report: &RunReport) {
    let list = |counts: &std::collections::BTreeMap<&str, u64>| {
        counts.iter().map(|(reason, n)| format!("by {reason} {}", count(*n))).collect::<Vec<_>>().join(", ")
    };
    let filtered = &report.filtered;
    for (what, counts) in [
        ("Keys left out by filters", &filtered.keys),
        ("Recorded commands left out by filters", &filtered.records),
        ("Recorded commands changed by filters", &filtered.records_changed),
    ] {
        if !counts.is_empty() {
            line(out, &format!("{what}: {}", list(counts)));
        }
    }
    if filtered.keys_renamed > 0 {
        line(out, &format!("Keys written under another name: {}", count(filtered.keys_renamed)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::document::{ExitClass, Outcome, RunInputs};
    use crate::report::sample::sample_inputs;

    #[test]
    fn golden_text_of_a_finished_run() {
        insta::assert_snapshot!(render(&RunReport::assemble(sample_inputs(Outcome::done()))));
    }

    #[test]
    fn no_peer_reaches_the_terminal() {
        let outcome = Outcome::failed(ExitClass::Target, "-ERR \x1b[31mred\x07", None);
        let mut inputs = sample_inputs(outcome);
        inputs.search_indexes.push("idx\x1b]0;title\x07".into());
        inputs.source.version = "1\r2".into();
        let text = render(&RunReport::assemble(inputs));
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    }

    #[test]
    fn golden_text_of_a_refused_run() {
        let outcome = Outcome::failed(
            ExitClass::Refused,
            "the target holds 3 keys; say --on-existing replace, flush or skip, or choose an empty one",
            Some("unchanged".into()),
        );
        let inputs = RunInputs::empty("migrate", outcome, serde_json::Value::Null);
        insta::assert_snapshot!(render(&RunReport::assemble(inputs)));
    }
}
