//! What can be wrong with the command line, the environment and the file: each says where, why, and what to write instead.

use super::layers::{Named, Origin};
use super::table::{Form, Places, Setting};
use std::path::PathBuf;

/// Always exit class "usage". Never holds a secret, nor the text of an endpoint.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// Made by [`UsageError::value`].
    #[error("{place}: {reason}")]
    Value {
        /// Setting, origin and (where it may be shown) value.
        place: String,
        reason: String,
    },
    #[error("{} is missing: give {}", .0.name, ways(.0))]
    Required(&'static Setting),
    #[error("{path}: unknown key {key:?}{meant}", path = .path.display(), meant = did_you_mean(.suggestion))]
    UnknownKey { path: PathBuf, key: String, suggestion: Option<&'static str> },
    #[error("{path}, line {line}: {reason}", path = .path.display())]
    FileSyntax { path: PathBuf, line: usize, reason: String },
    #[error("cannot read {path}: {cause}", path = .path.display())]
    File {
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    #[error("{path} holds no password in its first line", path = .0.display())]
    EmptyPasswordFile(PathBuf),
    /// Settings that are right one by one and wrong together.
    #[error("{0}")]
    Combination(String),
}

impl UsageError {
    /// A wrong value of one setting.
    pub fn value(setting: &Setting, origin: &Origin, text: &str, reason: &str) -> Self {
        let origin = Named(origin, setting);
        let hidden = text.is_empty() || matches!(setting.form, Form::Secret | Form::Endpoint);
        let place = if hidden {
            format!("{} ({origin})", setting.name)
        } else {
            format!("{} = {text:?} ({origin})", setting.name)
        };
        Self::Value { place, reason: reason.to_string() }
    }
}

fn did_you_mean(suggestion: &Option<&'static str>) -> String {
    suggestion.map(|name| format!("; did you mean {name:?}?")).unwrap_or_default()
}

fn ways(setting: &Setting) -> String {
    let flag = format!("--{} {}", setting.name, setting.value_name);
    let key = format!("{} in the --config file", setting.name);
    match setting.places {
        Places::Everywhere => format!("{flag}, {} in the environment, or {key}", setting.variable()),
        Places::NotFlag => format!("{} in the environment, or {key}", setting.variable()),
        Places::NotFile => format!("{flag}, or {} in the environment", setting.variable()),
    }
}
