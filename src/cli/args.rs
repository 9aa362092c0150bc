//! The flags of a subcommand, made from the table of settings.
//!
//! In: [`TABLE`]. Out: clap arguments, and from their matches a [`Flags`] of plain texts. No value is judged here: what
//! is wrong with one is said by `settings`, in the same words for flag, environment and file.

use super::settings::Flags;
use super::settings::table::{ASKING, Fallback, Form, Jobs, SOURCE, Setting, TABLE, VERIFY};
use clap::{Arg, ArgAction, ArgMatches, Command};

/// The settings that a subcommand knows, as clap's derive wants them: `#[command(flatten)] raw: RawArgs<MIGRATE>`.
#[derive(Clone, Default)]
pub struct RawArgs<const JOBS: Jobs> {
    pub flags: Flags,
    pub print_config: bool,
}

const PRINT_CONFIG: &str = "print-config";

impl<const JOBS: Jobs> clap::Args for RawArgs<JOBS> {
    fn augment_args(command: Command) -> Command {
        let known = TABLE.iter().filter(|setting| setting.jobs & JOBS != 0);
        let command =
            command.args(known.clone().filter(|setting| setting.has_flag()).map(|setting| arg(setting, JOBS)));
        let elsewhere: Vec<_> =
            known.filter(|s| !s.has_flag()).map(|s| format!("  {:<28}{}", s.variable(), s.help)).collect();
        let command = command.arg(
            Arg::new(PRINT_CONFIG)
                .long(PRINT_CONFIG)
                .action(ArgAction::SetTrue)
                .help_heading("Output")
                .help("Print every setting with its value and origin, and do nothing else"),
        );
        let mut after = String::from(
            "Every flag is also a variable (--batch-bytes: DF2REDIS_BATCH_BYTES) and a TOML key (batch-bytes).\n\
             Precedence: flag, environment, file, default.",
        );
        if !elsewhere.is_empty() {
            after.push_str("\n\nOnly in the environment, or by their key in the file:\n");
            after.push_str(&elsewhere.join("\n"));
        }
        command.after_help(after)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn arg(setting: &'static Setting, jobs: Jobs) -> Arg {
    let arg = Arg::new(setting.name).long(setting.name).help_heading(setting.group).help(help(setting, jobs));
    let arg = match setting.form {
        Form::Choice(names) => arg.value_name(names.join("|")),
        Form::Switch => arg.value_name("on|off"),
        _ => arg.value_name(setting.value_name),
    };
    arg.action(if matches!(setting.form, Form::List | Form::Texts) { ArgAction::Append } else { ArgAction::Set })
}

/// A comparison reads its source with ordinary commands, which every server has.
const COMPARED_SOURCE: &str = "Whose keys the target should hold: dragonfly://, redis:// or valkey://HOST:PORT, or dragonflys://, \
                               rediss:// or valkeys:// for TLS (required)";

fn help(setting: &Setting, jobs: Jobs) -> String {
    match setting.default {
        _ if setting.name == SOURCE.name && jobs == VERIFY => COMPARED_SOURCE.to_string(),
        Fallback::Value(text) | Fallback::Computed(text) => format!("{} [default: {text}]", setting.help),
        Fallback::None => setting.help.to_string(),
        // Those that ask a running job find it without.
        Fallback::Required if jobs & ASKING != 0 => format!("{} [default: of the only running job]", setting.help),
        Fallback::Required => format!("{} (required)", setting.help),
    }
}

impl<const JOBS: Jobs> clap::FromArgMatches for RawArgs<JOBS> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut raw = Self::default();
        raw.update_from_arg_matches(matches)?;
        Ok(raw)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for setting in TABLE.iter().filter(|setting| setting.jobs & JOBS != 0 && setting.has_flag()) {
            if let Some(texts) = matches.get_many::<String>(setting.name) {
                self.flags.given.insert(setting.name, texts.cloned().collect());
            }
        }
        self.print_config = matches.get_flag(PRINT_CONFIG);
        Ok(())
    }
}
