//! `--print-config`: every setting with its value and origin, as TOML that `--config` would read back.
//!
//! Secrets are named, with their origin, and never shown: the output may be pasted into a bug report.

use super::layers::{Named, Origin, Values};
use super::table::{Fallback, Form, Jobs, Setting, TABLE};
use std::fmt::Write;

/// The settings of `jobs`, one line each, under their headings.
pub fn print_config(values: &Values, jobs: Jobs) -> String {
    let mut out = String::new();
    let mut group = "";
    for setting in TABLE.iter().filter(|setting| setting.jobs & jobs != 0) {
        if setting.group != group {
            group = setting.group;
            let _ = writeln!(out, "{}# {group}", if out.is_empty() { "" } else { "\n" });
        }
        let _ = writeln!(out, "{}", line(values, setting));
    }
    out
}

fn line(values: &Values, setting: &Setting) -> String {
    let name = setting.name;
    match values.origin(setting) {
        None => match setting.default {
            Fallback::Computed(how) => format!("# {name}: {how}"),
            _ => format!("# {name} is not set"),
        },
        Some(origin) if setting.is_secret() => format!("# {name} is set and not shown ({})", Named(origin, setting)),
        Some(origin) => {
            let value = toml_value(values.texts(setting), setting.form);
            let hidden = if setting.in_file() { "" } else { "# " };
            // What only follows from others need not be written down.
            let hidden = if matches!(origin, Origin::Follows(_)) { "# " } else { hidden };
            format!("{:<40} # {}", format!("{hidden}{name} = {value}"), Named(origin, setting))
        }
    }
}

fn toml_value(texts: &[String], form: Form) -> String {
    let one = |text: &String| match form {
        Form::Count { .. } if text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<i64>().is_ok() => {
            // TOML has no leading zeros.
            text.parse::<i64>().map_or_else(|_| text.clone(), |n| n.to_string())
        }
        _ => toml::Value::from(text.as_str()).to_string(),
    };
    match (form, texts) {
        (Form::List | Form::Texts, texts) if texts.len() != 1 => {
            format!("[{}]", texts.iter().map(one).collect::<Vec<_>>().join(", "))
        }
        (_, [text, ..]) => one(text),
        (_, []) => "\"\"".into(),
    }
}
