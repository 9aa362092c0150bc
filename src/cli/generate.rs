//! `df2redis generate`: shell completions, a man page, a commented settings file; made from what the program knows of
//! itself, so that they are never out of date.

use super::print_out;
use super::settings::syntax::size_text;
use super::settings::table::{self, Fallback, Form, Setting, TABLE};
use crate::report::ExitClass;
use clap::Command;
use std::fmt::Write;

/// What to generate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Subcommand)]
pub enum Artifact {
    /// Completions for a shell, to standard output
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// The manual page in roff, to standard output
    Man,
    /// A settings file with every setting, its default and what it means, to standard output
    Config,
}

pub fn run(artifact: Artifact, mut command: Command) -> ExitClass {
    let mut bytes = Vec::new();
    match artifact {
        Artifact::Completions { shell } => clap_complete::generate(shell, &mut command, "df2redis", &mut bytes),
        Artifact::Man => {
            if let Err(error) = man(&command, &mut bytes) {
                tracing::error!(%error, "the manual page cannot be written");
                return ExitClass::Internal;
            }
        }
        Artifact::Config => bytes = config().into_bytes(),
    }
    print_out(&String::from_utf8_lossy(&bytes));
    ExitClass::Done
}

/// The program's page, and below it those of its subcommands: one file is what people install.
fn man(command: &Command, out: &mut Vec<u8>) -> std::io::Result<()> {
    let mut command = command.clone();
    command.build();
    clap_mangen::Man::new(command.clone()).render(out)?;
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let title = format!(".SH \"{}\"\n", sub.get_name().to_uppercase());
        out.extend_from_slice(title.as_bytes());
        let page = clap_mangen::Man::new(sub.clone());
        page.render_description_section(out)?;
        page.render_options_section(out)?;
    }
    Ok(())
}

/// Every setting that a file may hold, commented out with its default.
fn config() -> String {
    let mut out = String::from(
        "# Settings of df2redis: df2redis replicate --config THIS_FILE\n# A flag goes before its environment variable, \
         that before this file, that before the default.\n# What is commented out stands here with its default, or with \
         an example.\n",
    );
    let mut group = "";
    for setting in TABLE.iter().filter(|setting| setting.in_file()) {
        if setting.group != group {
            group = setting.group;
            let _ = write!(out, "\n## {group}\n");
        }
        entry(&mut out, setting);
    }
    out
}

fn entry(out: &mut String, setting: &Setting) {
    out.push('\n');
    for line in wrapped(setting.help, 110) {
        let _ = writeln!(out, "# {line}");
    }
    if let Form::Choice(names) = setting.form {
        let _ = writeln!(out, "# One of: {}", names.join(", "));
    }
    let (text, note) = match setting.default {
        Fallback::Value(text) => (text.to_string(), String::new()),
        Fallback::Computed(how) => (example(setting), format!("   # default: {how}")),
        Fallback::None => (example(setting), "   # not set".into()),
        Fallback::Required => (example(setting), "   # required".into()),
    };
    let value = match setting.form {
        Form::Count { .. } => text,
        _ => toml::Value::from(text).to_string(),
    };
    let _ = writeln!(out, "# {} = {value}{note}", setting.name);
}

/// A value that its form takes.
fn example(setting: &Setting) -> String {
    match setting.form {
        Form::Endpoint => {
            format!("{}://HOST:6379", if setting.name == table::SOURCE.name { "dragonfly" } else { "redis" })
        }
        Form::Size { min, .. } => size_text(min),
        Form::Count { min, .. } => min.to_string(),
        Form::Time => "1s".into(),
        Form::Switch => "off".into(),
        Form::Choice(names) => names.first().copied().unwrap_or_default().into(),
        Form::Text | Form::Path | Form::List | Form::Texts | Form::Secret => setting.value_name.into(),
    }
}

/// Lines of at most `width` characters.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.last().map_or(0, |line| line.chars().count());
        match lines.last_mut() {
            Some(line) if last == 0 || last + 1 + word.chars().count() <= width => {
                if last > 0 {
                    line.push(' ');
                }
                line.push_str(word);
            }
            _ => lines.push(word.to_string()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::settings::{Environment, Flags, Values};
    use clap::CommandFactory;

    /// The file's settings, uncommented: those of which `is` is true.
    fn uncommented(text: &str, is: impl Fn(&Setting) -> bool) -> Vec<&str> {
        let lines = text.lines().filter_map(|line| line.strip_prefix("# "));
        let named = |name: &str| TABLE.iter().any(|setting| setting.name == name && is(setting));
        lines.filter(|line| line.split_once(" = ").is_some_and(|(name, _)| named(name))).collect()
    }

    fn read(lines: &[&str]) -> Values {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("generated.toml");
        std::fs::write(&path, lines.join("\n")).unwrap();
        let mut flags = Flags::default();
        flags.given.insert("config", vec![path.to_str().unwrap().into()]);
        Values::merge(table::MIGRATE, &flags, &Environment::default()).unwrap()
    }

    /// Every line can be uncommented: it is TOML, and its form takes it.
    #[test]
    fn every_line_of_the_generated_file_is_a_setting() {
        let text = config();
        let all = uncommented(&text, |_| true);
        assert_eq!(all.len(), TABLE.iter().filter(|setting| setting.in_file()).count());
        let values = read(&all);
        assert!(!values.texts(&table::CORES).is_empty() && !values.texts(&table::SQPOLL).is_empty());
    }

    /// Uncommented, what stands there as a default changes nothing.
    #[test]
    fn the_generated_file_says_what_holds_without_it() {
        let text = config();
        let defaults = uncommented(&text, |setting| matches!(setting.default, Fallback::Value(_)));
        assert!(defaults.len() > 20, "{defaults:?}");
        let read = read(&defaults);
        let plain = Values::merge(table::MIGRATE, &Flags::default(), &Environment::default()).unwrap();
        for setting in TABLE.iter().filter(|s| s.jobs & table::MIGRATE != 0 && s.in_file() && !s.is_secret()) {
            assert_eq!(read.texts(setting), plain.texts(setting), "{}", setting.name);
        }
        // As it is, it is all comment.
        assert!(toml::from_str::<toml::Table>(&text).unwrap().is_empty());
    }

    #[test]
    fn completions_and_man_page_name_every_subcommand() {
        let command = crate::cli::Arguments::command();
        let mut page = Vec::new();
        man(&command, &mut page).unwrap();
        let page = String::from_utf8(page).unwrap();
        let mut bash = Vec::new();
        clap_complete::generate(clap_complete::Shell::Bash, &mut command.clone(), "df2redis", &mut bash);
        let bash = String::from_utf8(bash).unwrap();
        for name in ["replicate", "cutover", "status"] {
            assert!(page.contains(&format!(".SH \"{}\"", name.to_uppercase())), "{name}");
            assert!(bash.contains(name), "{name}");
        }
        assert!(page.contains("budget") && bash.contains("--batch-bytes"));
    }
}
