//! Databases: which are carried, and into which one of the target each goes.
//!
//! Two databases of the source go into one of the target only if the operator said so. A target that has fewer databases
//! (a cluster has one) refuses what does not fit by name.

use super::{ScopeError, ScopeSpec};
use crate::ids::DbIndex;

#[derive(Clone, Debug)]
pub struct Databases {
    include: Vec<u32>,
    exclude: Vec<u32>,
    map: Vec<(u32, u32)>,
    /// Where every database goes that `map` does not name.
    others: Option<u32>,
    /// Several may go into one.
    merges: bool,
    /// Databases of the target.
    pub databases_max: u32,
}

impl Default for Databases {
    fn default() -> Self {
        Self {
            include: Vec::new(),
            exclude: Vec::new(),
            map: Vec::new(),
            others: None,
            merges: false,
            databases_max: u32::MAX,
        }
    }
}

impl Databases {
    pub fn new(spec: &ScopeSpec) -> Result<Self, ScopeError> {
        let mut this = Self {
            include: spec.include_db.iter().map(|text| number(text)).collect::<Result<_, _>>()?,
            exclude: spec.exclude_db.iter().map(|text| number(text)).collect::<Result<_, _>>()?,
            merges: spec.db_merge,
            ..Self::default()
        };
        for text in &spec.db_map {
            let bad = || ScopeError::BadDbPair { text: text.clone() };
            let (from, to) = text.split_once(':').ok_or_else(bad)?;
            let to = number(to).map_err(|_| bad())?;
            if from.trim() == "*" {
                if this.others.replace(to).is_some() {
                    return Err(bad());
                }
                continue;
            }
            let from = number(from).map_err(|_| bad())?;
            if this.map.iter().any(|(db, _)| *db == from) {
                return Err(ScopeError::DbTwice { db: from });
            }
            this.map.push((from, to));
        }
        if !this.merges {
            this.check_collisions()?;
        }
        Ok(this)
    }

    pub fn is_identity(&self) -> bool {
        !self.filters() && self.others.is_none() && self.map.iter().all(|(from, to)| from == to)
    }

    pub fn filters(&self) -> bool {
        !self.include.is_empty() || !self.exclude.is_empty()
    }

    pub fn admits(&self, db: DbIndex) -> bool {
        (self.include.is_empty() || self.include.contains(&db.0)) && !self.exclude.contains(&db.0)
    }

    pub fn target(&self, db: DbIndex) -> Result<DbIndex, ScopeError> {
        let target = self.mapped(db.0);
        // A database that keeps its number, which another one was given.
        if !self.merges
            && !self.is_named(db.0)
            && let Some((other, _)) = self.map.iter().find(|(from, to)| *to == target && self.admits(DbIndex(*from)))
        {
            return Err(ScopeError::DbsCollide { a: other.to_string(), b: db.to_string(), target });
        }
        if target >= self.databases_max {
            return Err(ScopeError::DbOutOfRange { db: db.0, target, databases: self.databases_max });
        }
        Ok(DbIndex(target))
    }

    /// No other carried database goes where this one goes.
    pub fn is_alone(&self, db: DbIndex) -> bool {
        let target = self.mapped(db.0);
        !self.merges
            || self.others != Some(target)
                && self.carried_named().filter(|other| *other != db.0).all(|other| self.mapped(other) != target)
    }

    /// The only carried database that goes into this one of the target, where that is known.
    pub fn source_of(&self, target: DbIndex) -> Option<DbIndex> {
        // The star stands for any number of them.
        if self.others == Some(target.0) && self.include.is_empty() {
            return None;
        }
        let named = self.carried_named().chain([target.0]).map(DbIndex);
        let mut from: Vec<DbIndex> =
            named.filter(|db| self.admits(*db) && self.target(*db).is_ok_and(|to| to == target)).collect();
        from.sort_unstable();
        from.dedup();
        if let [db] = from.as_slice() { Some(*db) } else { None }
    }

    fn mapped(&self, db: u32) -> u32 {
        let named = self.map.iter().find(|(from, _)| *from == db).map(|(_, to)| *to);
        named.or(self.others).unwrap_or(db)
    }

    fn is_named(&self, db: u32) -> bool {
        self.map.iter().any(|(from, _)| *from == db)
    }

    /// Carried databases that some rule names, as a source or (by their own number) as a target.
    fn carried_named(&self) -> impl Iterator<Item = u32> + '_ {
        let named = self.map.iter().flat_map(|(from, to)| [*from, *to]).chain(self.include.iter().copied());
        named.filter(|db| self.admits(DbIndex(*db)))
    }

    fn check_collisions(&self) -> Result<(), ScopeError> {
        let mut seen: Vec<(u32, u32)> = Vec::new();
        for db in self.carried_named().filter(|db| self.is_named(*db) || self.include.contains(db)) {
            let target = self.mapped(db);
            match seen.iter().find(|(other, to)| *other != db && *to == target) {
                Some((other, _)) => {
                    return Err(ScopeError::DbsCollide { a: other.to_string(), b: db.to_string(), target });
                }
                None => seen.push((db, target)),
            }
        }
        let Some(target) = self.others else { return Ok(()) };
        // Without a list of databases, any number of them may be meant by the star.
        let starred: Vec<u32> =
            self.include.iter().copied().filter(|db| !self.is_named(*db) && !self.exclude.contains(db)).collect();
        if self.include.is_empty() || starred.len() > 1 {
            let b = "any other".to_string();
            let a = starred.first().map_or_else(|| "any".to_string(), u32::to_string);
            return Err(ScopeError::DbsCollide { a, b, target });
        }
        Ok(())
    }
}

fn number(text: &str) -> Result<u32, ScopeError> {
    text.trim().parse().map_err(|_| ScopeError::BadDb { text: text.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dbs(map: &str, include: &str, merge: bool) -> Result<Databases, ScopeError> {
        let list = |text: &str| text.split(',').filter(|part| !part.is_empty()).map(str::to_string).collect();
        Databases::new(&ScopeSpec {
            db_map: list(map),
            include_db: list(include),
            db_merge: merge,
            ..Default::default()
        })
    }

    #[test]
    fn databases_go_where_they_are_mapped() {
        let dbs = dbs("0:3,3:0,7:8", "", false).unwrap();
        // 8 itself would stay 8.
        assert!(matches!(dbs.target(DbIndex(8)), Err(ScopeError::DbsCollide { target: 8, .. })));
        let at: Vec<u32> = (0..5).map(|db| dbs.target(DbIndex(db)).unwrap().0).collect();
        assert_eq!(at, [3, 1, 2, 0, 4]);
        assert!(!dbs.is_identity() && dbs.is_alone(DbIndex(0)));
    }

    #[test]
    fn a_database_of_the_target_tells_that_of_the_source() {
        for (map, include, merge, target, wanted) in [
            ("", "", false, 3, Some(3)),
            ("0:3,3:0", "", false, 3, Some(0)),
            ("0:3", "", false, 0, None),
            ("3:0", "3", false, 0, Some(3)),
            ("3:0", "3", false, 3, None),
            ("*:0", "4", false, 0, Some(4)),
            ("*:0", "", true, 0, None),
            ("1:0", "", true, 0, None),
        ] {
            let found = dbs(map, include, merge).unwrap().source_of(DbIndex(target));
            assert_eq!(found, wanted.map(DbIndex), "{map} {include} {target}");
        }
    }

    #[test]
    fn two_into_one_must_be_said() {
        assert!(
            dbs("1:0,0:0", "", false).is_err() && dbs("*:0", "", false).is_err() && dbs("1:5,2:5", "", false).is_err()
        );
        assert!(dbs("1:0", "1", false).is_ok() && dbs("1:0", "0,1", false).is_err() && dbs("*:0", "4", false).is_ok());
        assert!(dbs("*:0", "4,5", false).is_err() && dbs("4:1,*:0", "4,5", false).is_ok());
        let merged = dbs("*:0", "", true).unwrap();
        assert_eq!(merged.target(DbIndex(9)), Ok(DbIndex(0)));
        assert!(!merged.is_alone(DbIndex(0)) && !merged.is_alone(DbIndex(9)));
    }

    #[test]
    fn what_does_not_fit_is_refused_by_number() {
        let mut dbs = dbs("", "", false).unwrap();
        assert!(dbs.is_identity());
        dbs.databases_max = 1;
        assert_eq!(dbs.target(DbIndex(0)), Ok(DbIndex(0)));
        assert!(dbs.target(DbIndex(1)).unwrap_err().to_string().contains("only database 0; map it (--db-map 1:N)"));
        for bad in ["x:0", "0", "0:y", "0:-1", "*:0,*:1", "0:1,0:2"] {
            assert!(super::tests::dbs(bad, "", true).is_err(), "{bad}");
        }
    }
}
