//! README.md says what the code says: exit codes, kinds and actions, settings, dependencies, paths.

use df2redis::cli::exit;
use df2redis::cli::settings::table::TABLE;
use df2redis::convert::Kind;
use std::path::Path;

const README: &str = include_str!("../README.md");
const LINUX_ONLY: &str = include_str!("../linux-only.md");

/// The lines of the table below the heading.
fn rows(heading: &str) -> impl Iterator<Item = &'static str> {
    let section = README.split("\n## ").find(|section| section.starts_with(heading)).unwrap_or_default();
    section.lines().filter(|line| line.starts_with("| "))
}

#[test]
fn every_exit_code_has_its_row() {
    let codes = exit::HELP.lines().filter_map(|line| line.split_whitespace().next()?.parse::<u8>().ok());
    let listed: Vec<u8> = rows("Exit codes")
        .flat_map(|row| row.split('|').nth(1).unwrap_or_default().split(',').map(str::trim))
        .filter_map(|text| text.parse().ok())
        .collect();
    assert_eq!(codes.collect::<Vec<_>>(), listed);
}

#[test]
fn every_kind_has_its_row_with_its_actions() {
    for kind in Kind::ALL {
        let row = rows("What is carried over").find(|row| row.starts_with(&format!("| `{kind}` ")));
        let row = row.unwrap_or_else(|| panic!("no row for {kind}"));
        for action in kind.allowed() {
            assert!(row.contains(&format!("`{action}`")), "{row}: {action}");
        }
    }
}

#[test]
fn every_dependency_has_a_reason() {
    let manifest = include_str!("../Cargo.toml").parse::<toml::Table>().unwrap();
    for section in ["dependencies", "dev-dependencies"] {
        for name in manifest[section].as_table().unwrap().keys() {
            assert!(rows("Dependencies").any(|row| row.contains(&format!("`{name}`"))), "{name} is not explained");
        }
    }
}

/// The program's own help, of all subcommands.
fn help() -> String {
    let help_of = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_df2redis")).args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let main = help_of(&["--help"]);
    let commands = main
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|word| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase()));
    let all: Vec<String> = commands.map(|command| help_of(&[command, "--help"])).collect();
    all.concat() + &main
}

/// Flags and files that do not exist (any more) mislead.
#[test]
fn flags_and_paths_exist() {
    let help = help();
    let others = [
        "help",
        "cluster",
        "scan",
        "pattern",
        "print-config",
        "security-opt",
        "ulimit",
        "release",
        "locked",
        "parts",
        "recordings",
        // Dragonfly's `--command_alias`.
        "command",
    ];
    for text in [README, LINUX_ONLY] {
        for flag in text.split("--").skip(1) {
            let name: &str = flag.split(|c: char| !c.is_ascii_lowercase() && c != '-').next().unwrap_or_default();
            let name = name.trim_end_matches('-');
            let known = TABLE.iter().any(|setting| setting.name == name)
                || help.contains(&format!("--{name}"))
                || others.contains(&name)
                || name.is_empty();
            assert!(known, "--{name}");
        }
        for path in text.split(['`', '(', ')', ' ', '\n', '[', ']', ',']) {
            let names_a_file = ["src/", "tests/", "tools/"].iter().any(|dir| path.starts_with(dir));
            let path = path.trim_end_matches(['.', ':']);
            assert!(!names_a_file || Path::new(env!("CARGO_MANIFEST_DIR")).join(path).exists(), "{path}");
        }
    }
}
