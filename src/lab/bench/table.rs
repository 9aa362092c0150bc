//! Figures of all rounds, and the table of their medians.

use super::BenchArgs;
use crate::uring::probe;
use std::fmt::Write;

/// One figure over the rounds.
#[derive(Debug, serde::Serialize)]
struct Row {
    case: String,
    figure: String,
    rounds: Vec<f64>,
    median: f64,
    lowest: f64,
    highest: f64,
    at_least: Option<f64>,
    at_most: Option<f64>,
    reached: Option<bool>,
}

#[derive(Debug, serde::Serialize)]
pub struct Results {
    command: String,
    machine: String,
    rows: Vec<Row>,
}

impl Results {
    pub fn new(_: &BenchArgs) -> Self {
        let command: Vec<String> = std::env::args().skip(1).collect();
        Self { command: format!("dfly-sim {}", command.join(" ")), machine: machine(), rows: Vec::new() }
    }

    pub fn add(&mut self, case: &str, figure: &str, rounds: Vec<f64>, at_least: Option<f64>, at_most: Option<f64>) {
        let mut sorted = rounds.clone();
        sorted.sort_by(f64::total_cmp);
        let (Some(&lowest), Some(&highest)) = (sorted.first(), sorted.last()) else { return };
        let median = (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0;
        let reached = match (at_least, at_most) {
            (None, None) => None,
            (least, most) => Some(least.is_none_or(|least| median >= least) && most.is_none_or(|most| median <= most)),
        };
        let (case, figure) = (case.to_owned(), figure.to_owned());
        self.rows.push(Row { case, figure, rounds, median, lowest, highest, at_least, at_most, reached });
    }

    pub fn all_reached(&self) -> bool {
        self.rows.iter().all(|row| row.reached != Some(false))
    }

    /// Everything, every round, as JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// A Markdown table.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "`{}` on {}\n", self.command, self.machine);
        text +=
            "| case | figure | median | lowest | highest | to reach | reached |\n|---|---|---:|---:|---:|---:|---|\n";
        for row in &self.rows {
            let wanted = match (row.at_least, row.at_most) {
                (Some(least), _) => format!(">= {least}"),
                (_, Some(most)) => format!("<= {most}"),
                _ => String::new(),
            };
            let reached = row.reached.map_or("", |reached| if reached { "yes" } else { "no" });
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {wanted} | {reached} |",
                row.case,
                row.figure,
                short(row.median),
                short(row.lowest),
                short(row.highest)
            );
        }
        text
    }
}

/// Three digits are more than any run repeats.
fn short(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models: Vec<&str> =
        info.lines().filter_map(|line| line.strip_prefix("model name")?.split(": ").nth(1)).collect();
    let model = models.first().copied().unwrap_or("unknown CPU");
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?");
    format!("{} x {model}, Linux {}, load {load} at the start", models.len(), probe::kernel_release())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_targets() {
        let mut results = Results { command: "x".into(), machine: "y".into(), rows: Vec::new() };
        results.add("a", "b", vec![3.0, 1.0, 2.0], Some(2.0), None);
        results.add("a", "c", vec![1.0, 2.0], None, Some(1.5));
        assert!(results.all_reached());
        results.add("a", "d", vec![1.0], Some(1.1), None);
        assert!(!results.all_reached());
        assert!(results.render().contains("| a | b | 2.00 | 1.00 | 3.00 | >= 2 | yes |"));
    }
}
