//! `df2redis generate`: shell completions, a man page, a commented settings file; made from what the program knows of
//! itself, so that they are never out of date.

use super::print_out;
use super::settings::table::{Fallback, Form, Setting, TABLE};
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
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let line = match (setting.default, setting.form) {
        (Fallback::Value(text), Form::Count { .. }) => format!("# {} = {text}", setting.name),
        (Fallback::Value(text), _) => format!("# {} = {}", setting.name, quoted(text)),
        (Fallback::Computed(how), _) => format!("# {} = ...   # default: {how}", setting.name),
        (Fallback::None, _) => format!("# {} = {}   # not set", setting.name, quoted(setting.value_name)),
        (Fallback::Required, _) => format!("# {} = {}   # required", setting.name, quoted(setting.value_name)),
    };
    let _ = writeln!(out, "{line}");
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
    use crate::cli::settings::{Environment, Flags, Values, table};
    use clap::CommandFactory;

    /// Uncommented, the generated file is read, and changes nothing.
    #[test]
    fn the_generated_file_says_what_holds_without_it() {
        let text = config();
        let defaults: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# "))
            .filter(|line| {
                line.split_once(" = ").is_some_and(|(name, value)| {
                    TABLE.iter().any(|s| s.name == name && matches!(s.default, Fallback::Value(_)))
                        && !value.contains("...")
                })
            })
            .collect();
        assert!(defaults.len() > 20, "{defaults:?}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("generated.toml");
        std::fs::write(&path, defaults.join("\n")).unwrap();
        let mut flags = Flags::default();
        flags.given.insert("config", vec![path.to_str().unwrap().into()]);
        let read = Values::merge(table::MIGRATE, &flags, &Environment::default()).unwrap();
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
