//! `df2redis verify`: what differs between source and target, one JSON line a key, then a summary.
//!
//! Lines go to standard output as soon as a difference is certain; with `--output json` the summary is the last of them,
//! else it is told in words on standard error, so that standard output holds JSON lines only.

use super::settings::{Console, OutputForm, UsageError, Values, resolve};
use super::{Mode, log_warnings, machine, print_out};
use crate::engine::verify::difference::Difference;
use crate::engine::verify::{self, Observer, Progress, Summary};
use crate::operator::Screen;
use crate::operator::control::client::Client;
use crate::operator::control::{REQUEST_BYTES_MAX, Request, hex};
use crate::operator::progress::{LINE_EVERY, ProgressForm};
use crate::report::numbers::{bytes, count, duration};
use crate::report::{ExitClass, text};
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

pub fn run(values: &mut Values, console: &Console, screen: &Screen, mode: Mode) -> Result<ExitClass, UsageError> {
    let settings = resolve::verify(values)?;
    machine::guard_secrets(values, &settings.source, &settings.target);
    log_warnings(values);
    if mode == Mode::ResolveOnly {
        return Ok(ExitClass::Done);
    }
    let mut printer = Printer::new(console.progress, screen.clone());
    printer.control = resolve::control_of_compared(values, &settings);
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

/// Longest name that is told to a job: a request is at most [`REQUEST_BYTES_MAX`] long.
const KEY_BYTES_MAX: usize = REQUEST_BYTES_MAX / 4;

/// Prints what is found, and where the comparison stands.
struct Printer {
    screen: Screen,
    form: ProgressForm,
    line_due: Duration,
    bar: Option<indicatif::ProgressBar>,
    /// Where the job is asked.
    control: Option<PathBuf>,
    job: Option<Client>,
}

impl Printer {
    fn new(form: ProgressForm, screen: Screen) -> Self {
        let form = match form {
            ProgressForm::Auto if screen.is_terminal() => ProgressForm::Bars,
            ProgressForm::Auto => ProgressForm::Lines,
            form => form,
        };
        Self { screen, form, line_due: LINE_EVERY, bar: None, control: None, job: None }
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

    fn finds_job(&mut self) -> Result<(), String> {
        let Some(path) = &self.control else { return Err("--control is off".into()) };
        let found = Client::connect(path).and_then(|mut job| Ok((job.ask(&Request::Status {})?, job)));
        let (answer, job) = found.map_err(|error| format!("{error}; give its --control"))?;
        match answer.status {
            Some(status) if status.command == "replicate" => {
                self.job = Some(job);
                Ok(())
            }
            _ => Err("it is no replicate".into()),
        }
    }

    fn ask_job(&mut self, db: u32, key: &[u8]) -> Result<(), String> {
        if key.len() > KEY_BYTES_MAX {
            return Err(format!("names of more than {KEY_BYTES_MAX} bytes cannot be told to the job"));
        }
        let request = Request::Repair { db, key: hex(key) };
        let answer = self.job.as_mut().map(|job| job.ask(&request));
        let answer = match answer {
            Some(Ok(answer)) => answer,
            // A job closes connections that were silent for long.
            _ => {
                self.finds_job()?;
                let job = self.job.as_mut().ok_or("no job")?;
                job.ask(&request).map_err(|error| error.to_string())?
            }
        };
        match answer.error {
            None => Ok(()),
            Some(why) => Err(format!("the job does not copy it again: {why}")),
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
