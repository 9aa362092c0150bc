//! `df2redis migrate`: the main job.

use super::settings::{Console, OutputForm, UsageError, Values, resolve};
use super::{Mode, log_warnings, machine, print_out, services};
use crate::engine::settings::MigrateSettings;
use crate::engine::{self, Service};
use crate::operator::progress::Progress;
use crate::operator::{Screen, Watcher};
use crate::report::{ExitClass, Outcome, ReportFiles, RunInputs, RunReport, text};
use std::io::IsTerminal;
use std::time::SystemTime;

pub fn run(values: &mut Values, console: &Console, screen: &Screen, mode: Mode) -> Result<ExitClass, UsageError> {
    let mut settings = resolve::migrate(values)?;
    if mode == Mode::ResolveOnly {
        log_warnings(values);
        return Ok(ExitClass::Done);
    }
    machine::fit(values, &mut settings);
    log_warnings(values);
    let services = services::of_job(values, &settings)?;
    Ok(run_watched("migrate", settings, console, screen, services))
}

/// Runs the job with progress, report files and the final report; for every subcommand that moves data.
pub fn run_watched(
    command: &str,
    settings: MigrateSettings,
    console: &Console,
    screen: &Screen,
    services: Vec<Service>,
) -> ExitClass {
    let files = match &settings.report_dir {
        Some(dir) => match ReportFiles::create(dir, SystemTime::now()) {
            Ok(files) => Some(files),
            Err(error) => {
                let value = serde_json::to_value(&settings).unwrap_or_default();
                let state = Some("nothing was written to the target".to_string());
                let outcome = Outcome::failed(ExitClass::Refused, error.to_string(), state);
                return conclude(&RunReport::assemble(RunInputs::empty(command, outcome, value)), console, screen);
            }
        },
        None => None,
    };
    let mut watcher = Watcher::new(Progress::new(console.progress, screen.clone()), files);
    let report = RunReport::assemble(engine::run_with(command, settings, &mut watcher, services));
    if let Err(error) = watcher.finish(&report) {
        tracing::warn!("{error}");
    }
    conclude(&report, console, screen)
}

/// Prints the report; a failure is also said on standard error where the report does not go to a terminal.
fn conclude(report: &RunReport, console: &Console, screen: &Screen) -> ExitClass {
    match console.output {
        OutputForm::Text => print_out(&text::render(report)),
        OutputForm::Json => match report.to_json() {
            Ok(json) => print_out(&json),
            Err(error) => tracing::error!("the report cannot be written as JSON: {error}"),
        },
    }
    if let Some(message) = &report.outcome.message
        && (console.output == OutputForm::Json || !std::io::stdout().is_terminal())
    {
        let _ = screen.write(format!("df2redis: {}\n", text::harmless(message)).as_bytes());
    }
    report.outcome.class
}
