//! Which keys the job carries, and where a key of one side stands at the other.
//!
//! In: the job's [`Scope`]; keys and databases. Out: for a key of the source its place at the target, for one of the target
//! the key of the source that it would come from, or none. Everything else in `verify` goes by the source's names: commands
//! for the target are given the target's only when they are sent. Keys of our own have one name everywhere.
//!
//! Invariant: `source_of` is the inverse of the scope. It does not know scopes that merge databases: those are refused.

use super::look::JSON_TYPE;
use super::wire::Commands;
use crate::convert::scope::Reason;
use crate::convert::{Scope, ScopeError, TypeClass, is_own};
use crate::ids::DbIndex;
use std::sync::Arc;

/// Databases that are tried as the origin of one of the target, besides that of the same number.
const DATABASES: u32 = 64;

#[derive(Clone, Debug)]
pub struct Names {
    scope: Arc<Scope>,
}

impl Names {
    pub fn new(scope: Scope) -> Self {
        Self { scope: Arc::new(scope) }
    }

    /// For the state file: differs where scopes differ. Empty for everything.
    pub fn fingerprint(&self) -> String {
        self.scope.fingerprint()
    }

    pub fn admits_db(&self, db: u32) -> bool {
        self.scope.admits_db(DbIndex(db))
    }

    /// Whether a key of the source is carried, as far as its name says.
    pub fn admits(&self, db: u32, key: &[u8]) -> bool {
        self.scope.is_plain(DbIndex(db)) && !is_own(key) || self.scope.admits(DbIndex(db), key, None).is_ok()
    }

    /// Whether keys of this type, as TYPE names it, are carried.
    pub fn admits_type(&self, db: u32, key: &[u8], type_name: &str) -> bool {
        let class = match type_name {
            "string" => TypeClass::String,
            "list" => TypeClass::List,
            "set" => TypeClass::Set,
            "hash" => TypeClass::Hash,
            "zset" => TypeClass::Zset,
            "stream" => TypeClass::Stream,
            JSON_TYPE => TypeClass::Json,
            _ => TypeClass::Filter,
        };
        self.scope.admits(DbIndex(db), key, Some(class)) != Err(Reason::Type)
    }

    /// The database of the target.
    pub fn target_db(&self, db: u32) -> Result<u32, ScopeError> {
        self.scope.target_db(DbIndex(db)).map(|db| db.0)
    }

    /// The carried database of the source that goes into this one.
    pub fn source_db(&self, target_db: u32) -> Option<u32> {
        let origin = |db: &u32| self.admits_db(*db) && self.target_db(*db) == Ok(target_db);
        let named = self.scope.spec().include_db.iter().chain(&self.scope.spec().db_map);
        let named = named.filter_map(|text| text.split(':').next()?.trim().parse().ok());
        std::iter::once(target_db).chain(named).chain(0..DATABASES).find(origin)
    }

    /// The name at the source, in `db` there, of a key of the target. None: no carried key goes there.
    pub fn source_of(&self, db: u32, name: &[u8]) -> Option<Vec<u8>> {
        self.scope.source_of(DbIndex(db), name)
    }

    /// The same commands for the target, and the database there; none: they are the same.
    pub fn at_target(&self, db: u32, commands: &Commands) -> Result<Option<(u32, Commands)>, ScopeError> {
        if self.scope.is_plain(DbIndex(db)) {
            return Ok(None);
        }
        let named = commands.renamed(|key| {
            let mut name = Vec::with_capacity(key.len());
            match is_own(key) {
                true => name.extend_from_slice(key),
                false => self.scope.push_name(DbIndex(db), key, &mut name)?,
            }
            Ok(name)
        })?;
        Ok(Some((self.target_db(db)?, named)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::ScopeSpec;

    fn names(rewrite: &[&str], db_map: &[&str], exclude_prefix: &[&str]) -> Names {
        let texts = |list: &[&str]| list.iter().map(|text| text.to_string()).collect();
        let (rewrite_prefix, db_map, exclude_prefix) = (texts(rewrite), texts(db_map), texts(exclude_prefix));
        Names::new(Scope::new(ScopeSpec { rewrite_prefix, db_map, exclude_prefix, ..ScopeSpec::default() }).unwrap())
    }

    #[test]
    fn names_of_the_target_lead_back() {
        let names = names(&["a:=b:", "a:x=c"], &[], &["no"]);
        for (name, key) in [
            ("b:1", Some("a:1")),
            ("c1", Some("a:x1")),
            ("other", Some("other")),
            // No key of the source has this name at the target.
            ("a:1", None),
            ("b:x1", None),
            ("no:1", None),
        ] {
            assert_eq!(names.source_of(0, name.as_bytes()), key.map(|key| key.as_bytes().to_vec()), "{name}");
        }
    }

    #[test]
    fn databases_lead_back() {
        let names = names(&[], &["1:3", "2:70", "100:1"], &[]);
        let origins = [0, 1, 2, 3, 4, 70].map(|db| names.source_db(db));
        assert_eq!(origins, [Some(0), Some(100), None, Some(1), Some(4), Some(2)]);
    }

    #[test]
    fn commands_get_the_names_of_the_target() {
        let names = names(&["a:=bb:"], &["1:3"], &[]);
        let mut commands = Commands::new();
        commands.push(&[b"HGET", b"a:1", b"a:f"]);
        commands.push_keyed(&[b"XINFO", b"STREAM", b"a:2"], 2);
        commands.push(&[b"DEL", b"df2redis:repair:1"]);
        let (db, named) = names.at_target(1, &commands).unwrap().unwrap();
        let mut expected = Commands::new();
        expected.push(&[b"HGET", b"bb:1", b"a:f"]);
        expected.push_keyed(&[b"XINFO", b"STREAM", b"bb:2"], 2);
        expected.push(&[b"DEL", b"df2redis:repair:1"]);
        assert_eq!(db, 3);
        assert_eq!(named.each().collect::<Vec<_>>(), expected.each().collect::<Vec<_>>());
        assert!(Names::new(Scope::everything()).at_target(1, &commands).unwrap().is_none());
    }
}
