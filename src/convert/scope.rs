//! Which keys a job carries, and under which name and database they stand at the target.
//!
//! In: the operator's filters, prefix rewriting and database map ([`ScopeSpec`]); keys and recorded commands under their
//! names at the source. Out: admitted or left out with a [`Reason`], and the name and database at the target.
//!
//! Invariants: a scope that [`Scope::is_plain`] changes nothing and need not be asked. Two keys of the source never get one
//! name at the target: rules that could do it are refused when the scope is built, and a key that is not rewritten but
//! begins like a rewritten one is refused by name. A recorded command that reaches over the border of the scope is split
//! or replaced where that comes to the same ([`record`]), else refused; never dropped silently.
//!
//! Keys that would stand at the target under a name that begins with [`OWN_PREFIX`], the tool's own there, are never carried, whatever
//! the scope: the plain one need be asked about keys for which [`is_own`] is true, too.
//!
//! It does not: know which flow owns a key; that is asked about the source's name, before.

mod dbs;
mod glob;
mod record;
#[cfg(test)]
mod tests;

pub use record::{Scoped, Sketch};

use super::escape;
use super::tally::TypeClass;
use crate::ids::DbIndex;
use dbs::Databases;
use glob::Glob;
use serde::Serialize;

/// All keys of the tool at the target begin with this.
pub const OWN_PREFIX: &str = "df2redis:";

/// Whether a key of the target is, or is taken for, one of the tool's own.
#[inline]
pub fn is_own(name: &[u8]) -> bool {
    name.starts_with(OWN_PREFIX.as_bytes())
}

/// What the operator said, as texts; see README.md, "Filters".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ScopeSpec {
    pub include_key: Vec<String>,
    pub exclude_key: Vec<String>,
    pub include_prefix: Vec<String>,
    pub exclude_prefix: Vec<String>,
    pub include_type: Vec<String>,
    pub exclude_type: Vec<String>,
    pub include_db: Vec<String>,
    pub exclude_db: Vec<String>,
    /// `OLD=NEW`.
    pub rewrite_prefix: Vec<String>,
    /// `SOURCE:TARGET`, `*:TARGET`.
    pub db_map: Vec<String>,
    /// Several databases of the source may go into one of the target.
    pub db_merge: bool,
}

/// A scope that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    #[error("unknown type {name:?}; types are string, list, set, hash, zset, stream, json, filter")]
    UnknownType { name: String },
    #[error("{text:?} is no database number")]
    BadDb { text: String },
    #[error("{text:?} is no rule OLD=NEW, as in old:=new: (both parts stand for the beginning of a key's name)")]
    BadRewrite { text: String },
    #[error("the rules {a:?} and {b:?} could give two keys one name at the target")]
    RewritesCollide { a: String, b: String },
    #[error("the rule {text:?} would give keys names of the tool's own, which begin with {OWN_PREFIX}")]
    RewriteOwn { text: String },
    #[error(
        "key \"{key}\" (database {db}) would begin with {OWN_PREFIX} at the target, as the tool's own keys there, and cannot be carried"
    )]
    OwnName { db: u32, key: String },
    #[error("{text:?} is no SOURCE:TARGET, such as 1:3 or *:0")]
    BadDbPair { text: String },
    #[error("database {db} of the source is mapped twice")]
    DbTwice { db: u32 },
    #[error(
        "databases {a} and {b} of the source would both go into database {target}; leave one out (--exclude-db), map it \
         elsewhere, or say --db-merge on if no key stands in both"
    )]
    DbsCollide { a: String, b: String, target: u32 },
    #[error("the glob {text:?} is longer than {} bytes", glob::PATTERN_BYTES_MAX)]
    GlobTooLong { text: String },
    #[error(
        "database {db} of the source would go into database {target}, and the target has {}; map it (--db-map {db}:N) or leave \
         it out (--exclude-db {db})",
        if *databases == 1 { "only database 0".to_string() } else { format!("only {databases} (its setting databases)") }
    )]
    DbOutOfRange { db: u32, target: u32, databases: u32 },
    #[error(
        "key \"{key}\" (database {db}) is not rewritten, but begins with \"{prefix}\", as the keys that --rewrite-prefix makes: \
         two keys could get one name. Leave it out (--exclude-prefix), or choose another prefix"
    )]
    NamesCollide { db: u32, key: String, prefix: String },
    #[error("the recorded command {command} on key \"{key}\" (database {db}) {why}")]
    Border { db: u32, key: String, command: String, why: &'static str },
}

/// Why a key, or a command, is not carried over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    Key,
    Type,
    Db,
    /// Its name would be one of the tool's own.
    Own,
}

impl Reason {
    pub const ALL: [Reason; 4] = [Reason::Key, Reason::Type, Reason::Db, Reason::Own];

    pub fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Type => "type",
            Self::Db => "db",
            Self::Own => "own-name",
        }
    }
}

/// See the module's header.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    spec: ScopeSpec,
    include: Vec<Glob>,
    exclude: Vec<Glob>,
    /// By `TypeClass as usize`: left out.
    types_out: [bool; TypeClass::ALL.len()],
    /// Longest old prefix first.
    rewrites: Vec<Rewrite>,
    dbs: Databases,
    is_plain: bool,
}

#[derive(Clone, Debug)]
struct Rewrite {
    old: Vec<u8>,
    new: Vec<u8>,
}

impl Scope {
    /// Everything, under its own name.
    pub fn everything() -> Self {
        Self { is_plain: true, ..Self::default() }
    }

    /// Checks and compiles what the operator said.
    pub fn new(spec: ScopeSpec) -> Result<Self, ScopeError> {
        let include = globs(&spec.include_key, &spec.include_prefix)?;
        let exclude = globs(&spec.exclude_key, &spec.exclude_prefix)?;
        let types_out = types_out(&spec)?;
        let rewrites = rewrites(&spec.rewrite_prefix)?;
        let dbs = Databases::new(&spec)?;
        let is_plain = include.is_empty()
            && exclude.is_empty()
            && !types_out.contains(&true)
            && rewrites.is_empty()
            && dbs.is_identity();
        Ok(Self { spec, include, exclude, types_out, rewrites, dbs, is_plain })
    }

    /// The target has so many databases (1: a cluster).
    #[must_use]
    pub fn within(mut self, databases: u32) -> Self {
        self.dbs.databases_max = databases;
        self
    }

    /// What the operator said.
    pub fn spec(&self) -> &ScopeSpec {
        &self.spec
    }

    /// Whether keys of this database go over as they are, so that nothing needs to be asked.
    #[inline]
    pub fn is_plain(&self, db: DbIndex) -> bool {
        self.is_plain && db.0 < self.dbs.databases_max
    }

    /// Some keys are left out by their type.
    pub fn filters_types(&self) -> bool {
        self.types_out.contains(&true)
    }

    /// Some keys are left out.
    pub fn filters(&self) -> bool {
        self.filters_types() || self.filters_keys() || self.dbs.filters()
    }

    /// Some keys are left out by their names or types, in databases that are carried.
    pub fn leaves_out_keys(&self) -> bool {
        self.filters_types() || self.filters_keys()
    }

    /// Keys change their name on the way.
    pub fn rewrites(&self) -> bool {
        !self.rewrites.is_empty()
    }

    pub(super) fn filters_keys(&self) -> bool {
        !self.include.is_empty() || !self.exclude.is_empty()
    }

    /// A text that differs where two scopes differ; kept in the checkpoint. Empty for everything.
    pub fn fingerprint(&self) -> String {
        if self.spec == ScopeSpec::default() {
            return String::new();
        }
        serde_json::to_string(&self.spec).unwrap_or_default()
    }

    /// Whether a key under its name at the source is carried. `class`: where it is known.
    pub fn admits(&self, db: DbIndex, key: &[u8], class: Option<TypeClass>) -> Result<(), Reason> {
        if !self.dbs.admits(db) {
            return Err(Reason::Db);
        }
        if !self.admits_key(key) {
            return Err(self.reason_of(key));
        }
        match class {
            Some(class) if !self.admits_type(class) => Err(Reason::Type),
            _ => Ok(()),
        }
    }

    pub(super) fn admits_key(&self, key: &[u8]) -> bool {
        !self.becomes_own(key)
            && (self.include.is_empty() || self.include.iter().any(|glob| glob.matches(key)))
            && !self.exclude.iter().any(|glob| glob.matches(key))
    }

    /// Why a key that is not admitted by its name is not.
    pub(super) fn reason_of(&self, key: &[u8]) -> Reason {
        if self.becomes_own(key) { Reason::Own } else { Reason::Key }
    }

    /// Whether the name at the target of a key of the source would be one of the tool's own.
    pub(super) fn becomes_own(&self, key: &[u8]) -> bool {
        match self.rewrites.iter().find(|rule| key.starts_with(&rule.old)) {
            Some(Rewrite { old, new }) => {
                let name = new.iter().chain(key.get(old.len()..).unwrap_or_default());
                name.take(OWN_PREFIX.len()).eq(OWN_PREFIX.as_bytes())
            }
            None => is_own(key),
        }
    }

    pub fn admits_type(&self, class: TypeClass) -> bool {
        !self.types_out.get(class as usize).copied().unwrap_or(false)
    }

    /// Whether keys of this database are carried.
    pub fn admits_db(&self, db: DbIndex) -> bool {
        self.dbs.admits(db)
    }

    /// The database at the target. Errors: the target has none of that number.
    pub fn target_db(&self, db: DbIndex) -> Result<DbIndex, ScopeError> {
        self.dbs.target(db)
    }

    /// The database at the target that holds what this one holds. None: nothing of it is there, for it is left out, or the target has no
    /// such database (its first key would have ended the run).
    pub fn place_of(&self, db: DbIndex) -> Option<DbIndex> {
        self.target_db(db).ok().filter(|_| self.admits_db(db))
    }

    /// The only database of the source that goes into that of `db`; false: others do too.
    pub fn is_alone(&self, db: DbIndex) -> bool {
        self.dbs.is_alone(db)
    }

    /// Appends the name at the target of an admitted key.
    pub fn push_name(&self, db: DbIndex, key: &[u8], out: &mut Vec<u8>) -> Result<(), ScopeError> {
        if self.becomes_own(key) {
            return Err(ScopeError::OwnName { db: db.0, key: escape::for_message(key) });
        }
        match self.rewrites.iter().find(|rule| key.starts_with(&rule.old)) {
            Some(rule) => {
                out.extend_from_slice(&rule.new);
                out.extend_from_slice(key.get(rule.old.len()..).unwrap_or_default());
            }
            None => {
                if let Some(rule) = self.rewrites.iter().find(|rule| key.starts_with(&rule.new)) {
                    return Err(ScopeError::NamesCollide {
                        db: db.0,
                        key: escape::for_message(key),
                        prefix: escape::for_message(&rule.new),
                    });
                }
                out.extend_from_slice(key);
            }
        }
        Ok(())
    }

    /// The name at the source, in `db` there, of a key of the target. `None`: no carried key goes there, or other databases
    /// go into the same one.
    pub fn source_of(&self, db: DbIndex, name: &[u8]) -> Option<Vec<u8>> {
        let rewritten = self.rewrites.iter().find_map(|rule| {
            let rest = name.strip_prefix(&rule.new[..])?;
            Some([&rule.old[..], rest].concat())
        });
        let key = rewritten.unwrap_or_else(|| name.to_vec());
        let mut again = Vec::with_capacity(name.len());
        let is_inverse = self.push_name(db, &key, &mut again).is_ok() && again == name;
        (is_inverse && self.is_alone(db) && self.admits(db, &key, None).is_ok()).then_some(key)
    }

    /// The database and the name at the source of a key of the target, as far as they are known.
    pub fn source_place(&self, db: DbIndex, name: &[u8]) -> Option<(DbIndex, Vec<u8>)> {
        let db = self.dbs.source_of(db)?;
        Some((db, self.source_of(db, name)?))
    }

    /// The name at the target of an admitted key, and its database.
    pub fn at_target(&self, db: DbIndex, key: &[u8]) -> Result<(DbIndex, Vec<u8>), ScopeError> {
        let mut name = Vec::with_capacity(key.len());
        self.push_name(db, key, &mut name)?;
        Ok((self.target_db(db)?, name))
    }
}

/// As the operator said it.
impl Serialize for Scope {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.spec.serialize(serializer)
    }
}

fn globs(patterns: &[String], prefixes: &[String]) -> Result<Vec<Glob>, ScopeError> {
    let patterns = patterns.iter().map(|text| Glob::new(text));
    patterns.chain(prefixes.iter().map(|text| Ok(Glob::prefix(text)))).collect()
}

fn types_out(spec: &ScopeSpec) -> Result<[bool; TypeClass::ALL.len()], ScopeError> {
    let class = |name: &String| {
        let known = TypeClass::ALL.into_iter().find(|class| class.name() == name);
        known.ok_or_else(|| ScopeError::UnknownType { name: name.clone() })
    };
    let include: Vec<TypeClass> = spec.include_type.iter().map(class).collect::<Result<_, _>>()?;
    let exclude: Vec<TypeClass> = spec.exclude_type.iter().map(class).collect::<Result<_, _>>()?;
    Ok(TypeClass::ALL.map(|class| (!include.is_empty() && !include.contains(&class)) || exclude.contains(&class)))
}

fn rewrites(texts: &[String]) -> Result<Vec<Rewrite>, ScopeError> {
    let mut rules: Vec<Rewrite> = Vec::new();
    for text in texts {
        let (old, new) = text.split_once('=').ok_or_else(|| ScopeError::BadRewrite { text: text.clone() })?;
        let (old, new) = (old.as_bytes().to_vec(), new.as_bytes().to_vec());
        if is_own(&new) {
            return Err(ScopeError::RewriteOwn { text: text.clone() });
        }
        // One new prefix inside another: a rest of the name could make up the difference.
        if let Some(other) = rules.iter().find(|r| r.old == old || r.new.starts_with(&new) || new.starts_with(&r.new)) {
            let shown =
                |rule: &Rewrite| format!("{}={}", escape::for_message(&rule.old), escape::for_message(&rule.new));
            return Err(ScopeError::RewritesCollide { a: shown(other), b: text.clone() });
        }
        rules.push(Rewrite { old, new });
    }
    rules.sort_by_key(|rule| std::cmp::Reverse(rule.old.len()));
    Ok(rules)
}
