//! `df2redis verify`: what differs between source and target, one JSON line a key, then a summary.
//!
//! Lines go to standard output as soon as a difference is certain; with `--output json` the summary is the last of them,
//! else it is told in words on standard error, so that standard output holds JSON lines only.

use super::settings::{Console, OutputForm, UsageError, Values, resolve};
use super::{Mode, log_warnings, print_out};
use crate::engine::verify::difference::Difference;
use crate::engine::verify::{self, Observer, Progress, Summary};
use crate::operator::Screen;
use crate::operator::progress::{LINE_EVERY, ProgressForm};
use crate::report::numbers::{bytes, count, duration};
use crate::report::{ExitClass, text};
use std::fmt::Write;
use std::time::Duration;

pub fn run(values: &mut Values, console: &Console, screen: &Screen, mode: Mode) -> Result<ExitClass, UsageError> {
    let settings = resolve::verify(values)?;
    log_warnings(values);
    if mode == Mode::ResolveOnly {
        return Ok(ExitClass::Done);
    }
    let mut printer = Printer::new(console.progress, screen.clone());
    let summary = verify::run(settings, &mut printer);
    printer.finish();
    match console.output {
        OutputForm::Json => print_out(&(serde_json::to_string(&summary).unwrap_or_default() + "\n")),
        OutputForm::Text => {
            let _ = screen.write(told(&summary).as_bytes());
        }
    }
    if let Some(message) = &summary.outcome.message {
        let _ = screen.write(format!("df2redis: {}\n", text::harmless(message)).as_bytes());
    }
    Ok(summary.outcome.class)
}

/// Prints what is found, and where the comparison stands.
struct Printer {
    screen: Screen,
    form: ProgressForm,
    line_due: Duration,
    bar: Option<indicatif::ProgressBar>,
}

impl Printer {
    fn new(form: ProgressForm, screen: Screen) -> Self {
        let form = match form {
            ProgressForm::Auto if screen.is_terminal() => ProgressForm::Bars,
            ProgressForm::Auto => ProgressForm::Lines,
            form => form,
        };
        Self { screen, form, line_due: LINE_EVERY, bar: None }
    }

    fn finish(&mut self) {
        if self.bar.take().is_some() {
            self.screen.hide_bars();
        }
    }
}

impl Observer for Printer {
    fn difference(&mut self, difference: &Difference) {
        let line = serde_json::to_string(difference).unwrap_or_default() + "\n";
        match &self.bar {
            Some(bar) => bar.suspend(|| print_out(&line)),
            None => print_out(&line),
        }
    }

    fn progress(&mut self, progress: &Progress) {
        match self.form {
            ProgressForm::Bars => {
                let screen = &self.screen;
                let bar = self.bar.get_or_insert_with(|| screen.show_bars().add(indicatif::ProgressBar::no_length()));
                bar.set_style(indicatif::ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| bar.style()));
                bar.set_message(line_of(progress));
            }
            ProgressForm::Lines if progress.elapsed >= self.line_due => {
                self.line_due = progress.elapsed + LINE_EVERY;
                let _ = self.screen.write((line_of(progress) + "\n").as_bytes());
            }
            _ => {}
        }
    }
}

fn line_of(progress: &Progress) -> String {
    let what = match progress.pass {
        0 => "comparing",
        1 => "looking for keys that only the target has",
        _ => "looking again",
    };
    let share = match progress.keys_expected {
        0 => String::new(),
        expected => format!(" of about {}", count(expected)),
    };
    format!(
        "verify: {what}: {}{share} keys, {} to be looked at again, {} differ, {}",
        count(progress.keys_walked),
        count(progress.suspects),
        count(progress.differing),
        duration(progress.elapsed)
    )
}

/// The summary in words.
fn told(summary: &Summary) -> String {
    let counts = &summary.counts;
    let mut out = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<22} {value}");
    };
    row("source", format!("{} ({})", summary.source.address, text::harmless(&summary.source.server)));
    row("target", format!("{} ({})", summary.target.address, text::harmless(&summary.target.server)));
    row("keys compared", count(counts.keys_compared));
    row("keys looked for", format!("{} of the target, at the source", count(counts.keys_looked_for)));
    if counts.not_carried > 0 {
        row("not carried", format!("{}, by --on-unsupported or a filter", count(counts.not_carried)));
    }
    if counts.databases_by_name > 0 {
        row("compared by name", format!("keys of {} databases, whose numbers differ", count(counts.databases_by_name)));
    }
    row("settled", format!("{} that differed at first", count(counts.settled)));
    for (kind, keys) in &counts.differing {
        row(kind, count(*keys));
    }
    if counts.repaired + counts.not_repaired > 0 {
        row("repaired", format!("{}, not repaired {}", count(counts.repaired), count(counts.not_repaired)));
    }
    row("read from the source", bytes(summary.bytes_from_source));
    row("time", duration(Duration::from_secs_f64(summary.seconds.max(0.0))));
    if summary.outcome.class == ExitClass::Done {
        out.push_str("no difference was found\n");
    }
    out
}
