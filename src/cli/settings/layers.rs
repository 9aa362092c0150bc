//! Flags over environment over systemd's credentials over file over defaults: one value and its origin for each setting.
//!
//! In: what the command line said, the environment's `DF2REDIS_*`, the TOML file. Out: [`Values`], every text checked
//! against its form, and warnings. Invariants: a secret's text leaves this type only through [`Values::secret`]; no error
//! repeats it, nor a line of the file that holds it.

use super::error::UsageError;
use super::suggest;
use super::syntax;
use super::table::{self, Fallback, Form, Jobs, Setting, TABLE, VARIABLE_PREFIX};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::{Zeroize, Zeroizing};

/// Largest configuration file read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Variables of the demo, the tests and the tools (see `lab::servers`, `lab::recordings`), which are no settings.
const LAB_VARIABLES: [&str; 3] = ["DF2REDIS_SERVERS", "DF2REDIS_CAPTURES", "DF2REDIS_TESTS"];

/// The directory of a unit's credentials, set by systemd.
const CREDENTIALS_VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Flag,
    Environment,
    /// A file of systemd's `LoadCredential=`.
    Credential,
    File(PathBuf),
    Default,
    /// A default that another setting changed.
    Follows(&'static str),
}

impl Origin {
    /// Whether the operator said it.
    pub fn is_given(&self) -> bool {
        matches!(self, Origin::Flag | Origin::Environment | Origin::Credential | Origin::File(_))
    }
}

/// The origin as it is named to people.
pub struct Named<'a>(pub &'a Origin, pub &'a Setting);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Origin::Flag => write!(f, "flag --{}", self.1.name),
            Origin::Environment => write!(f, "environment {}", self.1.variable()),
            Origin::Credential => write!(f, "systemd credential {}", self.1.name),
            Origin::File(path) => write!(f, "file {}", path.display()),
            Origin::Default => f.write_str("default"),
            Origin::Follows(name) => write!(f, "default with --{name}"),
        }
    }
}

/// What the command line said: values by setting, as texts.
#[derive(Clone, Default)]
pub struct Flags {
    pub given: BTreeMap<&'static str, Vec<String>>,
}

/// The environment's variables, taken once so that tests need not touch the process's own.
#[derive(Clone, Default)]
pub struct Environment(pub BTreeMap<String, OsString>);

impl Environment {
    /// The variables that begin with `DF2REDIS_`, and where systemd put the unit's credentials.
    pub fn of(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let named = variables.into_iter().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        Self(named.filter(|(name, _)| name.starts_with(VARIABLE_PREFIX) || name == CREDENTIALS_VARIABLE).collect())
    }
}

struct Given {
    texts: Vec<String>,
    origin: Origin,
}

/// Every setting that has a value, checked. No `Debug`: it holds secrets.
pub struct Values {
    given: BTreeMap<&'static str, Given>,
    warnings: Vec<String>,
}

impl Values {
    /// Merges the layers for the subcommand `jobs`.
    pub fn merge(jobs: Jobs, flags: &Flags, environment: &Environment) -> Result<Self, UsageError> {
        let mut values = Self { given: BTreeMap::new(), warnings: Vec::new() };
        values.warn_of_unknown_variables(environment);
        let upper = |setting: &Setting| -> Result<Option<Given>, UsageError> {
            if let Some(texts) = flags.given.get(setting.name) {
                return Ok(Some(Given { texts: texts.clone(), origin: Origin::Flag }));
            }
            match environment.0.get(&setting.variable()) {
                // `DF2REDIS_TARGET_PASSWORD=` is how a shell or a unit file says "none".
                Some(value) if !value.is_empty() => match value.clone().into_string() {
                    Ok(text) => Ok(Some(Given { texts: vec![text], origin: Origin::Environment })),
                    Err(_) => Err(UsageError::value(setting, &Origin::Environment, "", "it is not valid UTF-8")),
                },
                _ => Ok(None),
            }
        };
        let credentials = environment.0.get(CREDENTIALS_VARIABLE).filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let mut file = match upper(&table::CONFIG)? {
            Some(Given { texts, .. }) => {
                let path = PathBuf::from(texts.into_iter().next_back().unwrap_or_default());
                values.read_file(&path)?
            }
            None => BTreeMap::new(),
        };
        for setting in TABLE.iter().copied() {
            let below = file.remove(setting.name);
            let given = match (upper(setting)?, credential(setting, credentials.as_deref())?, below, setting.default) {
                (Some(given), ..) | (None, Some(given), ..) | (None, None, Some(given), _) => given,
                (None, None, None, Fallback::Value(text)) => {
                    Given { texts: vec![text.to_string()], origin: Origin::Default }
                }
                _ => continue,
            };
            let given = Self::checked(setting, given)?;
            if setting.jobs & jobs != 0 {
                values.given.insert(setting.name, given);
            }
        }
        Ok(values)
    }

    fn checked(setting: &Setting, mut given: Given) -> Result<Given, UsageError> {
        if setting.form == Form::List {
            given.texts = given.texts.iter().flat_map(|text| text.split(',')).map(|t| t.trim().to_string()).collect();
        } else if given.texts.len() > 1 && setting.form != Form::Texts {
            // clap lets a flag be given once only; a file may try an array.
            return Err(UsageError::value(setting, &given.origin, "", "one value is needed, not several"));
        }
        for text in &given.texts {
            syntax::check(setting, text).map_err(|reason| UsageError::value(setting, &given.origin, text, &reason))?;
        }
        Ok(given)
    }

    fn warn_of_unknown_variables(&mut self, environment: &Environment) {
        for name in environment.0.keys() {
            if TABLE.iter().any(|setting| setting.variable() == *name)
                || LAB_VARIABLES.contains(&name.as_str())
                || name == CREDENTIALS_VARIABLE
            {
                continue;
            }
            let known: Vec<String> = TABLE.iter().map(|setting| setting.variable()).collect();
            let meant = suggest::nearest(name, known.iter().map(String::as_str));
            let meant = meant.map(|meant| format!("; did you mean {meant}?")).unwrap_or_default();
            self.warnings.push(format!("the environment variable {name} is not known and has no effect{meant}"));
        }
    }

    fn read_file(&mut self, path: &Path) -> Result<BTreeMap<&'static str, Given>, UsageError> {
        let text = read_bounded(path)?;
        let table: toml::Table = toml::from_str(&text).map_err(|error| {
            // The error's own text shows the line, which may hold a secret.
            let line = error.span().map_or(0, |span| text.get(..span.start).map_or(0, |s| s.matches('\n').count() + 1));
            UsageError::FileSyntax { path: path.to_path_buf(), line, reason: error.message().to_string() }
        })?;
        let mut found = BTreeMap::new();
        for (key, value) in table {
            let Some(setting) = TABLE.iter().copied().find(|setting| setting.in_file() && setting.name == key) else {
                let names = TABLE.iter().filter(|setting| setting.in_file()).map(|setting| setting.name);
                let suggestion = suggest::nearest(&key, names);
                return Err(UsageError::UnknownKey { path: path.to_path_buf(), key, suggestion });
            };
            let origin = Origin::File(path.to_path_buf());
            let texts = toml_texts(value).map_err(|reason| UsageError::value(setting, &origin, "", reason))?;
            if setting.is_secret() {
                self.warn_if_readable(path);
            }
            found.insert(setting.name, Given { texts, origin });
        }
        Ok(found)
    }

    /// Warns once of a file with secrets that every user of the machine may read.
    pub fn warn_if_readable(&mut self, path: &Path) {
        let Ok(metadata) = std::fs::metadata(path) else { return };
        if metadata.permissions().mode() & 0o004 != 0 {
            let path = path.display();
            let warning = format!("{path} holds a secret and every user may read it; run: chmod o-rwx {path}");
            if !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
    }

    pub fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }

    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    pub fn origin(&self, setting: &Setting) -> Option<&Origin> {
        self.given.get(setting.name).map(|given| &given.origin)
    }

    /// Whether the operator said it (else it is a default, or not set).
    pub fn is_given(&self, setting: &Setting) -> bool {
        self.origin(setting).is_some_and(Origin::is_given)
    }

    /// Sets a default that another setting or the machine decides, for `--print-config` too.
    pub fn set_default(&mut self, setting: &'static Setting, text: String, origin: Origin) {
        self.given.insert(setting.name, Given { texts: vec![text], origin });
    }

    /// The texts of a setting, empty if it is not set. Not for secrets.
    pub fn texts(&self, setting: &Setting) -> &[String] {
        debug_assert!(!setting.is_secret());
        self.given.get(setting.name).map_or(&[], |given| &given.texts)
    }

    /// The text of a setting that must have a value.
    pub fn text(&self, setting: &'static Setting) -> Result<&str, UsageError> {
        self.texts(setting).first().map(String::as_str).ok_or(UsageError::Required(setting))
    }

    pub fn number(&self, setting: &'static Setting) -> Result<u64, UsageError> {
        self.parsed(setting, syntax::number)
    }

    pub fn size(&self, setting: &'static Setting) -> Result<usize, UsageError> {
        self.parsed(setting, |text| {
            syntax::size(text).and_then(|n| usize::try_from(n).map_err(|_| "too large for this machine".to_string()))
        })
    }

    pub fn switch(&self, setting: &'static Setting) -> Result<bool, UsageError> {
        self.parsed(setting, syntax::switch)
    }

    pub fn time(&self, setting: &'static Setting) -> Result<Duration, UsageError> {
        self.parsed(setting, syntax::time)
    }

    pub fn path(&self, setting: &Setting) -> Option<PathBuf> {
        self.texts(setting).first().map(PathBuf::from)
    }

    /// The text of a secret, and where it comes from.
    pub fn secret(&self, setting: &Setting) -> Option<(&str, &Origin)> {
        let given = self.given.get(setting.name)?;
        Some((given.texts.first()?, &given.origin))
    }

    /// The value of a setting, by a parser whose error becomes a usage error that names the origin.
    pub fn parsed<T>(
        &self,
        setting: &'static Setting,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, UsageError> {
        let text = self.text(setting)?;
        parse(text).map_err(|reason| self.wrong(setting, &reason))
    }

    /// The usage error of a setting whose value is wrong for `reason`.
    pub fn wrong(&self, setting: &'static Setting, reason: &str) -> UsageError {
        let origin = self.origin(setting).unwrap_or(&Origin::Default);
        let text = if setting.is_secret() { String::new() } else { self.texts(setting).join(",") };
        UsageError::value(setting, origin, &text, reason)
    }

    /// Reads a password file: its first line. A file that every user may read is warned of.
    pub fn read_password_file(&mut self, path: &Path) -> Result<String, UsageError> {
        let line = first_line(path)?;
        self.warn_if_readable(path);
        Ok(line)
    }
}

impl Drop for Values {
    fn drop(&mut self) {
        for setting in TABLE.iter().filter(|setting| setting.is_secret()) {
            if let Some(given) = self.given.get_mut(setting.name) {
                given.texts.zeroize();
            }
        }
    }
}

/// A secret that systemd keeps for the unit, in a file of the setting's name (`LoadCredential=target-password:...`).
fn credential(setting: &Setting, dir: Option<&Path>) -> Result<Option<Given>, UsageError> {
    let Some(path) = dir.filter(|_| setting.is_secret()).map(|dir| dir.join(setting.name)) else { return Ok(None) };
    if !path.exists() {
        return Ok(None);
    }
    first_line(&path).map(|text| Some(Given { texts: vec![text], origin: Origin::Credential }))
}

fn first_line(path: &Path) -> Result<String, UsageError> {
    let text = Zeroizing::new(read_bounded(path)?);
    match text.lines().next().unwrap_or_default() {
        "" => Err(UsageError::EmptyPasswordFile(path.to_path_buf())),
        line => Ok(line.to_string()),
    }
}

fn read_bounded(path: &Path) -> Result<String, UsageError> {
    use std::io::Read;
    let failed = |cause| UsageError::File { path: path.to_path_buf(), cause };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(failed(std::io::Error::other("it is larger than 1 MiB")));
    }
    Ok(text)
}

/// A TOML value as the texts that a flag would have.
fn toml_texts(value: toml::Value) -> Result<Vec<String>, &'static str> {
    let one = |value| match value {
        toml::Value::String(text) => Ok(text),
        toml::Value::Integer(n) => Ok(n.to_string()),
        toml::Value::Boolean(on) => Ok(if on { "on" } else { "off" }.to_string()),
        _ => Err("a text, a whole number, true or false, or an array of these is needed"),
    };
    match value {
        toml::Value::Array(items) => items.into_iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}
