//! The live source's databases: keys, expiries, and an order in which SCAN may walk while keys come and go.

use super::value::Object;
use std::collections::{BTreeSet, HashMap};

/// Databases, as `dbnum` has them by default.
pub const DATABASES: u32 = 16;

/// All databases.
#[derive(Debug, Default)]
pub struct Data {
    databases: Vec<Database>,
    /// Keys that expire, the next one first.
    expiring: BTreeSet<(i64, u32, Vec<u8>)>,
}

#[derive(Debug, Default)]
struct Database {
    objects: HashMap<Vec<u8>, Object>,
    /// The keys by a hash that never changes.
    order: BTreeSet<(u64, Vec<u8>)>,
}

impl Data {
    pub fn new() -> Self {
        Self { databases: (0..DATABASES).map(|_| Database::default()).collect(), expiring: BTreeSet::new() }
    }

    pub fn get(&self, db: u32, key: &[u8]) -> Option<&Object> {
        self.databases.get(db as usize)?.objects.get(key)
    }

    /// For changes of the value; expiries go through [`Data::set_expiry`].
    pub fn get_mut(&mut self, db: u32, key: &[u8]) -> Option<&mut Object> {
        self.databases.get_mut(db as usize)?.objects.get_mut(key)
    }

    /// Puts the object in place of whatever is there.
    pub fn put(&mut self, db: u32, key: &[u8], object: Object) {
        self.remove(db, key);
        if let Some(at) = object.expire_at_ms {
            self.expiring.insert((at, db, key.to_vec()));
        }
        let Some(database) = self.databases.get_mut(db as usize) else { return };
        database.order.insert((place(key), key.to_vec()));
        database.objects.insert(key.to_vec(), object);
    }

    pub fn remove(&mut self, db: u32, key: &[u8]) -> Option<Object> {
        let database = self.databases.get_mut(db as usize)?;
        let (key, object) = database.objects.remove_entry(key)?;
        database.order.remove(&(place(&key), key.clone()));
        if let Some(at) = object.expire_at_ms {
            self.expiring.remove(&(at, db, key));
        }
        Some(object)
    }

    pub fn set_expiry(&mut self, db: u32, key: &[u8], expire_at_ms: Option<i64>) {
        let Some(object) = self.databases.get_mut(db as usize).and_then(|d| d.objects.get_mut(key)) else { return };
        if let Some(at) = object.expire_at_ms {
            self.expiring.remove(&(at, db, key.to_vec()));
        }
        object.expire_at_ms = expire_at_ms;
        if let Some(at) = expire_at_ms {
            self.expiring.insert((at, db, key.to_vec()));
        }
    }

    /// The next key whose time has come.
    pub fn due(&self, now_ms: i64) -> Option<(u32, Vec<u8>)> {
        self.expiring.first().filter(|(at, ..)| *at <= now_ms).map(|(_, db, key)| (*db, key.clone()))
    }

    pub fn clear(&mut self, db: u32) {
        if let Some(database) = self.databases.get_mut(db as usize) {
            *database = Database::default();
            self.expiring.retain(|(_, d, _)| *d != db);
        }
    }

    pub fn len(&self, db: u32) -> usize {
        self.databases.get(db as usize).map_or(0, |database| database.objects.len())
    }

    pub fn expiring_count(&self, db: u32) -> usize {
        self.expiring.iter().filter(|(_, d, _)| *d == db).count()
    }

    /// Every key.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Vec<u8>, &Object)> {
        let databases = self.databases.iter().enumerate();
        databases.flat_map(|(db, database)| database.objects.iter().map(move |(key, object)| (db as u32, key, object)))
    }

    /// Keys from `cursor` on, at least one and about `count`; and the next cursor, 0 at the end.
    pub fn scan(&self, db: u32, cursor: u64, count: usize) -> (u64, Vec<&[u8]>) {
        let Some(database) = self.databases.get(db as usize) else { return (0, Vec::new()) };
        page(database.order.range((cursor, Vec::new())..).map(|(at, key)| (*at, key.as_slice())), count)
    }
}

/// The keys that stand first, all of one place together; and where the next one stands, 0 if there is none.
pub fn page<'a>(ordered: impl Iterator<Item = (u64, &'a [u8])>, count: usize) -> (u64, Vec<&'a [u8]>) {
    let (mut found, mut last) = (Vec::new(), None);
    for (at, key) in ordered {
        if found.len() >= count.max(1) && last != Some(at) {
            return (at, found);
        }
        last = Some(at);
        found.push(key);
    }
    (0, found)
}

/// Where a key stands in SCAN's order; never 0, which is where cursors begin and end.
pub fn place(key: &[u8]) -> u64 {
    (twox_hash::XxHash64::oneshot(0x5ca4, key) >> 16) + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::live::value::Value;

    #[test]
    fn scan_finds_every_key_that_stays() {
        let mut data = Data::new();
        let object = || Object::new(Value::String(b"v".to_vec()));
        (0..100).for_each(|i| data.put(1, format!("k{i}").as_bytes(), object()));
        let (mut cursor, mut seen) = (0, BTreeSet::new());
        for round in 0.. {
            let (next, keys) = data.scan(1, cursor, 7);
            seen.extend(keys.into_iter().map(<[u8]>::to_vec));
            // The others come and go meanwhile.
            data.remove(1, format!("k{}", 50 + round).as_bytes());
            data.put(1, format!("more{round}").as_bytes(), object());
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        assert!((0..50).all(|i| seen.contains(format!("k{i}").as_bytes())));
        assert_eq!(data.len(1), data.iter().count());
    }

    #[test]
    fn expiries_come_in_order() {
        let mut data = Data::new();
        for (key, at) in [("a", 30), ("b", 10), ("c", 20)] {
            data.put(0, key.as_bytes(), Object { value: Value::String(Vec::new()), expire_at_ms: Some(at) });
        }
        data.set_expiry(0, b"b", Some(25));
        assert_eq!(data.due(9), None);
        assert_eq!(data.due(22), Some((0, b"c".to_vec())));
        data.remove(0, b"c");
        assert_eq!(data.due(24), None);
        data.set_expiry(0, b"b", None);
        assert_eq!(data.due(29), None);
        assert_eq!((data.len(0), data.expiring_count(0)), (2, 1));
    }
}
