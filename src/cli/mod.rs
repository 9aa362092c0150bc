//! The command line: one file a subcommand, settings declared once.
//!
//! In: arguments and environment, passed as values. Out: what the subcommand prints, and an [`ExitClass`]. Nothing here
//! ends the process; `main` does. To add a subcommand: a variant of [`Command`], its file, and (for its settings) a bit in
//! `settings::table`.

mod args;
pub mod control;
mod cutover;
pub mod demo;
pub mod exit;
mod generate;
mod machine;
pub mod migrate;
pub mod probe;
pub mod replicate;
mod services;
pub mod settings;
mod status_text;
pub mod verify;

use crate::operator::{Screen, logging};
use crate::report::ExitClass;
use args::RawArgs;
use clap::{CommandFactory, Parser};
use settings::table::{self, Jobs};
use settings::{Console, Environment, UsageError, Values};
use std::ffi::OsString;
use std::io::Write;

/// Moves the data of a live Dragonfly server into Redis or Valkey, over io_uring.
#[derive(Parser)]
#[command(name = "df2redis", version, max_term_width = 110, after_help = exit::HELP, arg_required_else_help = true)]
#[command(disable_help_subcommand = true, next_line_help = false)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Copy everything from a Dragonfly server to a Redis or Valkey server, consistent as of one moment
    Migrate {
        #[command(flatten)]
        raw: RawArgs<{ table::MIGRATE }>,
    },
    /// Copy everything, then follow every later write until stopped; go on from the target's checkpoint after a restart
    Replicate {
        #[command(flatten)]
        raw: RawArgs<{ table::REPLICATE }>,
    },
    /// Compare source and target, also while replicate runs; print one JSON line for each key that differs
    Verify {
        #[command(flatten)]
        raw: RawArgs<{ table::VERIFY }>,
    },
    /// Run the main job with no server at hand: simulated source, redis-server child or built-in sink
    Demo {
        #[command(flatten)]
        raw: RawArgs<{ table::DEMO }>,
    },
    /// Say where a running job stands: phase, rates, lag of each flow, what holds it back, its knobs
    Status {
        /// Look again every second
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        raw: RawArgs<{ table::CONTROLLING }>,
    },
    /// Change knobs of a running job
    Set {
        /// What to change; `df2redis status` lists the knobs
        #[arg(value_name = "KEY=VALUE", required = true)]
        assignments: Vec<String>,
        #[command(flatten)]
        raw: RawArgs<{ table::CONTROLLING }>,
    },
    /// Send nothing more to a running job's target, until `df2redis resume`
    Pause {
        #[command(flatten)]
        raw: RawArgs<{ table::CONTROLLING }>,
    },
    /// Let a paused job go on
    Resume {
        #[command(flatten)]
        raw: RawArgs<{ table::CONTROLLING }>,
    },
    /// Limit what a running job sends to its target
    Throttle {
        /// 10MiB/s, 5000entries/s, or off
        rate: String,
        #[command(flatten)]
        raw: RawArgs<{ table::CONTROLLING }>,
    },
    /// End a running job as an interrupt does: what was read is applied; `replicate` can go on later
    Stop {
        #[command(flatten)]
        raw: RawArgs<{ table::CONTROLLING }>,
    },
    /// Hand over from a running job's source to its target; without --execute only say how
    Cutover {
        #[command(flatten)]
        deeds: cutover::Deeds,
        #[command(flatten)]
        raw: RawArgs<{ table::CUTOVER }>,
    },
    /// Print shell completions, the manual page, or a commented settings file
    Generate {
        #[command(subcommand)]
        artifact: generate::Artifact,
    },
    /// Say what this machine's kernel offers, and what is missing
    Probe {
        #[command(flatten)]
        raw: RawArgs<{ table::PROBE }>,
    },
}

/// Runs one command line to its end.
pub fn run(
    arguments: impl IntoIterator<Item = OsString>,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> ExitClass {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(message) => {
            // Help and version come this way too; they go to standard output and are no error.
            let class = if message.use_stderr() { ExitClass::Usage } else { ExitClass::Done };
            let _ = message.print();
            return class;
        }
    };
    let environment = Environment::of(variables);
    let result = match &arguments.command {
        Command::Migrate { raw } => with_settings(raw, &environment, migrate::run),
        Command::Replicate { raw } => with_settings(raw, &environment, replicate::run),
        Command::Verify { raw } => with_settings(raw, &environment, verify::run),
        Command::Demo { raw } => with_settings(raw, &environment, demo::run),
        Command::Status { watch, raw } => ask(raw, &environment, control::Ask::Status { watch: *watch }),
        Command::Set { assignments, raw } => ask(raw, &environment, control::Ask::Set(assignments)),
        Command::Pause { raw } => ask(raw, &environment, control::Ask::Pause),
        Command::Resume { raw } => ask(raw, &environment, control::Ask::Resume),
        Command::Throttle { rate, raw } => ask(raw, &environment, control::Ask::Throttle(rate)),
        Command::Cutover { deeds, raw } => with_settings(raw, &environment, |values, console, screen, mode| {
            cutover::run(values, console, screen, mode, *deeds)
        }),
        Command::Generate { artifact } => Ok(generate::run(*artifact, Arguments::command())),
        Command::Stop { raw } => ask(raw, &environment, control::Ask::Stop),
        Command::Probe { raw } => with_settings(raw, &environment, probe::run),
    };
    result.unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "df2redis: {error}");
        ExitClass::Usage
    })
}

/// Merges the layers, begins logging, and runs the subcommand; or only prints the configuration.
fn with_settings<const JOBS: Jobs>(
    raw: &RawArgs<JOBS>,
    environment: &Environment,
    run: impl FnOnce(&mut Values, &Console, &Screen, Mode) -> Result<ExitClass, UsageError>,
) -> Result<ExitClass, UsageError> {
    let mut values = Values::merge(JOBS, &raw.flags, environment)?;
    let console = settings::resolve::console(&values)?;
    let screen = Screen::new();
    logging::init(&console.log, &screen);
    if !raw.print_config {
        return run(&mut values, &console, &screen, Mode::Run);
    }
    let class = run(&mut values, &console, &screen, Mode::ResolveOnly)?;
    print_out(&settings::print::print_config(&values, JOBS));
    Ok(class)
}

/// A subcommand that asks a running job.
fn ask(
    raw: &RawArgs<{ table::CONTROLLING }>,
    environment: &Environment,
    what: control::Ask<'_>,
) -> Result<ExitClass, UsageError> {
    with_settings(raw, environment, |values, console, screen, mode| control::run(values, console, screen, mode, what))
}

/// Whether a subcommand runs, or only resolves its settings (for `--print-config`, so that what it shows is valid).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Run,
    ResolveOnly,
}

/// Logs the warnings of the settings.
fn log_warnings(values: &Values) {
    for warning in values.warnings() {
        tracing::warn!("{warning}");
    }
}

/// Writes to standard output; a reader that went away (`| head`) is no error.
fn print_out(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn help(path: &[&str]) -> String {
        let mut command = Arguments::command().term_width(100);
        command.build();
        for name in path {
            command = command.find_subcommand(name).unwrap().clone().term_width(100);
        }
        let text = command.render_long_help().to_string();
        text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_command_tree_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn golden_help() {
        insta::assert_snapshot!("help", help(&[]));
        insta::assert_snapshot!("help_migrate", help(&["migrate"]));
        insta::assert_snapshot!("help_replicate", help(&["replicate"]));
        insta::assert_snapshot!("help_verify", help(&["verify"]));
        insta::assert_snapshot!("help_demo", help(&["demo"]));
        insta::assert_snapshot!("help_probe", help(&["probe"]));
        insta::assert_snapshot!("help_status", help(&["status"]));
        insta::assert_snapshot!("help_cutover", help(&["cutover"]));
        insta::assert_snapshot!("help_set", help(&["set"]));
        insta::assert_snapshot!("help_throttle", help(&["throttle"]));
    }

    fn class(line: &[&str], variables: &[(&str, &str)]) -> ExitClass {
        let variables = variables.iter().map(|&(name, value)| (name.into(), value.into()));
        run(std::iter::once("df2redis").chain(line.iter().copied()).map(OsString::from), variables)
    }

    #[test]
    fn usage_errors_have_their_class() {
        assert_eq!(class(&["--version"], &[]), ExitClass::Done);
        assert_eq!(class(&["migrate", "--nonsense"], &[]), ExitClass::Usage);
        assert_eq!(class(&["migrate"], &[]), ExitClass::Usage);
        assert_eq!(
            class(&["migrate", "--source", "dragonfly://u:p@a", "--target", "redis://b"], &[]),
            ExitClass::Usage
        );
        assert_eq!(class(&["demo", "--print-config"], &[("DF2REDIS_CORES", "0")]), ExitClass::Usage);
        assert_eq!(class(&["demo", "--print-config"], &[]), ExitClass::Done);
    }
}
