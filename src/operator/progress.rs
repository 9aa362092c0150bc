//! Progress on standard error: bars on a terminal, plain lines otherwise.
//!
//! In: [`ProgressSnapshot`]s, about twice a second. Out: keys, bytes and rates, for each flow and in all, and the time
//! left where the number of keys is known. No clock: the time is in the snapshot. Lines come at each change of phase and
//! every [`LINE_EVERY`].

use super::screen::Screen;
use crate::report::numbers::{bytes, count, duration};
use crate::report::observer::{FlowProgress, ProgressSnapshot};
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgressForm {
    /// Bars on a terminal, lines otherwise.
    Auto,
    Bars,
    Lines,
    Off,
}

/// Time between two plain lines of one phase, where nothing else is said.
pub const LINE_EVERY: Duration = Duration::from_secs(5);
/// The same, as it is now, in ms: `df2redis set progress-interval` changes it.
static LINE_EVERY_MS: AtomicU64 = AtomicU64::new(LINE_EVERY.as_millis() as u64);

/// Time between two plain lines of one phase.
pub fn line_every() -> Duration {
    Duration::from_millis(LINE_EVERY_MS.load(Ordering::Relaxed))
}

/// From the next line on.
pub fn set_line_every(every: Duration) {
    LINE_EVERY_MS.store(every.as_millis().min(u128::from(u64::MAX)) as u64, Ordering::Relaxed);
}

/// Rates are taken over this time.
const RATE_OVER: Duration = Duration::from_secs(10);
/// Flows that get a bar of their own; more would fill the terminal.
const FLOW_BARS_MAX: usize = 16;
/// A backlog or a time unread of less than this is everyday life.
const BACKLOG_SHOWN_BYTES_MIN: u64 = 16 << 20;
const UNREAD_SHOWN_MS_MIN: u64 = 1000;
/// Progress of the bar that has an end, in steps.
const BAR_STEPS: u64 = 1000;

/// Shows progress in one of the forms.
pub struct Progress {
    screen: Screen,
    form: ProgressForm,
    rate: RateWindow,
    phase: String,
    line_due: Duration,
    total: Option<ProgressBar>,
    flows: Vec<ProgressBar>,
}

impl Progress {
    pub fn new(form: ProgressForm, screen: Screen) -> Self {
        let form = match form {
            ProgressForm::Auto if screen.is_terminal() => ProgressForm::Bars,
            ProgressForm::Auto => ProgressForm::Lines,
            form => form,
        };
        Self {
            screen,
            form,
            rate: RateWindow::default(),
            phase: String::new(),
            line_due: Duration::ZERO,
            total: None,
            flows: Vec::new(),
        }
    }

    /// Shows where the run stands.
    pub fn show(&mut self, snapshot: &ProgressSnapshot) {
        self.rate.add(snapshot);
        match self.form {
            ProgressForm::Bars => self.draw(snapshot),
            ProgressForm::Lines => {
                if let Some(line) = self.line(snapshot) {
                    // Whoever closed our standard error does not want to know.
                    let _ = self.screen.write(line.as_bytes());
                }
            }
            ProgressForm::Auto | ProgressForm::Off => {}
        }
    }

    /// Takes bars off the terminal.
    pub fn finish(&mut self) {
        self.flows.clear();
        self.total = None;
        self.screen.hide_bars();
    }

    /// The line that is due, if any.
    fn line(&mut self, snapshot: &ProgressSnapshot) -> Option<String> {
        let new_phase = self.phase != snapshot.phase;
        if !new_phase && snapshot.elapsed < self.line_due {
            return None;
        }
        self.line_due = snapshot.elapsed + line_every();
        self.phase.clone_from(&snapshot.phase);
        let mut line = format!("{}: {}\n", snapshot.phase, total_text(snapshot, &self.rate));
        if snapshot.flows.len() > 1 && snapshot.flows.len() <= FLOW_BARS_MAX && !new_phase {
            for flow in &snapshot.flows {
                line.push_str(&format!("  {}\n", flow_text(flow, self.rate.flow_bytes_per_s(flow.flow))));
            }
        }
        Some(line)
    }

    fn draw(&mut self, snapshot: &ProgressSnapshot) {
        if self.total.is_none() {
            let bars = self.screen.show_bars();
            self.total = Some(bars.add(ProgressBar::new(BAR_STEPS)));
            // One flow's line would only repeat the total.
            let shown = if (2..=FLOW_BARS_MAX).contains(&snapshot.flows.len()) { snapshot.flows.len() } else { 0 };
            self.flows =
                (0..shown).map(|_| bars.add(ProgressBar::no_length().with_style(style("  {wide_msg}")))).collect();
        } else if self.flows.is_empty() && (2..=FLOW_BARS_MAX).contains(&snapshot.flows.len()) {
            // The flows became known after the first snapshot.
            let bars = self.screen.show_bars();
            self.flows = snapshot
                .flows
                .iter()
                .map(|_| bars.add(ProgressBar::no_length().with_style(style("  {wide_msg}"))))
                .collect();
        }
        let Some(total) = &self.total else { return };
        match snapshot.keys_expected.filter(|&keys| keys > 0) {
            Some(expected) => {
                total.set_style(style("[{bar:30}] {wide_msg}"));
                total.set_position(snapshot.keys.saturating_mul(BAR_STEPS) / expected.max(snapshot.keys));
            }
            None => total.set_style(style("{spinner} {wide_msg}")),
        }
        total.set_message(format!("{}: {}", snapshot.phase, bar_text(snapshot, &self.rate)));
        total.tick();
        for (bar, flow) in self.flows.iter().zip(&snapshot.flows) {
            bar.set_message(flow_text(flow, self.rate.flow_bytes_per_s(flow.flow)));
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn total_text(snapshot: &ProgressSnapshot, rate: &RateWindow) -> String {
    let mut text = count(snapshot.keys);
    if let Some(expected) = snapshot.keys_expected {
        text.push_str(&format!(" of {}", count(expected)));
    }
    text.push_str(&format!(
        " keys, {} read, {} written, {} keys/s, {}/s, after {}",
        bytes(snapshot.bytes_in),
        bytes(snapshot.bytes_out),
        count(rate.keys_per_s() as u64),
        bytes(rate.bytes_per_s() as u64),
        duration(snapshot.elapsed)
    ));
    if let Some(left) = rate.time_left(snapshot) {
        text.push_str(&format!(", about {} left", duration(left)));
    }
    text
}

/// The total in few words: a bar's line is cut at the width of the terminal, and the time left must be seen.
fn bar_text(snapshot: &ProgressSnapshot, rate: &RateWindow) -> String {
    let left = match rate.time_left(snapshot) {
        Some(left) => format!("{} left, ", duration(left)),
        None => String::new(),
    };
    format!(
        "{left}{} keys, {}/s, {}, {}/s",
        count(snapshot.keys),
        count(rate.keys_per_s() as u64),
        bytes(snapshot.bytes_in),
        bytes(rate.bytes_per_s() as u64)
    )
}

fn flow_text(flow: &FlowProgress, bytes_per_s: f64) -> String {
    let mut text = format!(
        "flow {}: {} keys, {}, {}/s, {}",
        flow.flow,
        count(flow.keys),
        bytes(flow.bytes_in),
        bytes(bytes_per_s as u64),
        flow.state
    );
    if flow.backlog_bytes >= BACKLOG_SHOWN_BYTES_MIN {
        text.push_str(&format!(", {} waiting for the target", bytes(flow.backlog_bytes)));
    }
    if flow.unread_ms >= UNREAD_SHOWN_MS_MIN {
        text.push_str(&format!(", NOT READ for {}", duration(Duration::from_millis(flow.unread_ms))));
    }
    text
}

/// The snapshots of the last [`RATE_OVER`].
#[derive(Default)]
struct RateWindow {
    seen: VecDeque<ProgressSnapshot>,
}

impl RateWindow {
    fn add(&mut self, snapshot: &ProgressSnapshot) {
        // A sync that was begun anew counts from zero.
        if self.seen.back().is_some_and(|last| last.keys > snapshot.keys || last.elapsed > snapshot.elapsed) {
            self.seen.clear();
        }
        self.seen.push_back(snapshot.clone());
        while self.seen.len() > 2
            && self.seen.get(1).is_some_and(|next| snapshot.elapsed.saturating_sub(next.elapsed) >= RATE_OVER)
        {
            self.seen.pop_front();
        }
    }

    /// How much `of` grew in a second.
    fn per_s(&self, of: impl Fn(&ProgressSnapshot) -> u64) -> f64 {
        let (Some(first), Some(last)) = (self.seen.front(), self.seen.back()) else { return 0.0 };
        crate::report::numbers::per_second(
            of(last).saturating_sub(of(first)),
            last.elapsed.saturating_sub(first.elapsed),
        )
    }

    fn keys_per_s(&self) -> f64 {
        self.per_s(|snapshot| snapshot.keys)
    }

    fn bytes_per_s(&self) -> f64 {
        self.per_s(|snapshot| snapshot.bytes_in)
    }

    fn flow_bytes_per_s(&self, flow: u32) -> f64 {
        self.per_s(|snapshot| snapshot.flows.iter().find(|f| f.flow == flow).map_or(0, |f| f.bytes_in))
    }

    /// From the keys still expected; `None` if that is not known or nothing moves.
    fn time_left(&self, snapshot: &ProgressSnapshot) -> Option<Duration> {
        let left = snapshot.keys_expected?.checked_sub(snapshot.keys).filter(|&left| left > 0)?;
        let rate = self.keys_per_s();
        if rate <= 0.0 || snapshot.keys == 0 {
            return None;
        }
        Duration::try_from_secs_f64(left as f64 / rate).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(ms: u64, phase: &str, keys: u64, keys_expected: Option<u64>) -> ProgressSnapshot {
        let flow = |flow, keys, state| FlowProgress { flow, keys, bytes_in: keys * 100, state, ..Default::default() };
        ProgressSnapshot {
            phase: phase.into(),
            elapsed: Duration::from_millis(ms),
            flows: vec![flow(0, keys / 2, "snapshot"), flow(1, keys - keys / 2, "snapshot ended")],
            bytes_in: keys * 100,
            bytes_out: keys * 120,
            keys,
            keys_expected,
        }
    }

    #[test]
    fn golden_lines() {
        let mut progress = Progress::new(ProgressForm::Lines, Screen::new());
        let mut text = String::new();
        let steps = [
            snapshot(0, "connect", 0, None),
            snapshot(500, "full sync", 0, Some(1_000_000)),
            snapshot(1_000, "full sync", 50_000, Some(1_000_000)),
            snapshot(5_500, "full sync", 500_000, Some(1_000_000)),
            snapshot(6_000, "full sync", 550_000, Some(1_000_000)),
            snapshot(10_600, "starting stable sync", 1_000_100, Some(1_000_000)),
        ];
        for step in steps {
            progress.rate.add(&step);
            text.extend(progress.line(&step));
        }
        insta::assert_snapshot!(text, @r"
        connect: 0 keys, 0 B read, 0 B written, 0 keys/s, 0 B/s, after 0 ms
        full sync: 0 of 1,000,000 keys, 0 B read, 0 B written, 0 keys/s, 0 B/s, after 500 ms
        full sync: 500,000 of 1,000,000 keys, 47.7 MiB read, 57.2 MiB written, 90,909 keys/s, 8.7 MiB/s, after 5.5 s, about 5.5 s left
          flow 0: 250,000 keys, 23.8 MiB, 4.3 MiB/s, snapshot
          flow 1: 250,000 keys, 23.8 MiB, 4.3 MiB/s, snapshot ended
        starting stable sync: 1,000,100 of 1,000,000 keys, 95.4 MiB read, 114.5 MiB written, 99,019 keys/s, 9.4 MiB/s, after 10.6 s
        ");
    }

    #[test]
    fn rates_look_back_ten_seconds_and_survive_a_new_start() {
        let mut rate = RateWindow::default();
        for second in 0..100 {
            rate.add(&snapshot(second * 1000, "full sync", second * second, None));
        }
        assert!(rate.seen.len() <= 12);
        assert!((rate.keys_per_s() - 188.0).abs() < 1.0, "{}", rate.keys_per_s());
        rate.add(&snapshot(101_000, "full sync", 5, None));
        assert_eq!(rate.keys_per_s(), 0.0);
    }

    #[test]
    fn bars_are_drawn_for_any_number_of_flows() {
        for flows in [0, 1, 2, 40] {
            let mut progress = Progress::new(ProgressForm::Bars, Screen::new());
            let mut step = snapshot(500, "full sync", 10, Some(5));
            progress.show(&ProgressSnapshot { phase: "connect".into(), ..Default::default() });
            step.flows = vec![step.flows[0]; flows];
            progress.show(&step);
            assert_eq!(progress.flows.len(), if flows == 2 { 2 } else { 0 });
            progress.finish();
        }
    }
}
