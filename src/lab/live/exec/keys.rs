//! Commands on keys of any type, and on whole databases.

use super::{Args, NO_SUCH_KEY, Outcome, Record, Run, SYNTAX, arg, int, integer, ok, word};
use crate::lab::live::data::DATABASES;
use crate::lab::live::dump;

impl Run<'_> {
    pub(super) fn key_command(&mut self, name: &str, args: &Args) -> Outcome {
        match name {
            "DEL" | "UNLINK" => {
                arg(args, 1)?;
                self.delete(&args[1..])
            }
            "EXPIRE" | "PEXPIRE" | "EXPIREAT" | "PEXPIREAT" => self.expire(name, args),
            "PERSIST" => {
                let key = arg(args, 1)?;
                let had = self.data.get(self.db, key).is_some_and(|object| object.expire_at_ms.is_some());
                if !had {
                    self.record_nothing();
                }
                self.data.set_expiry(self.db, key, None);
                int(usize::from(had))
            }
            "RENAME" | "RENAMENX" => self.rename(name, args),
            "COPY" => {
                let (from, to) = (arg(args, 1)?, arg(args, 2)?);
                let replace = word(args, 3) == "REPLACE";
                let object = self.data.get(self.db, from).cloned();
                self.record_nothing();
                let Some(object) = object.filter(|_| replace || !self.exists(to)) else { return int(0) };
                self.record_restore(to, &object);
                self.data.put(self.db, to, object);
                int(1)
            }
            "MOVE" => {
                let (key, to) = (arg(args, 1)?, integer(arg(args, 2)?)?);
                let to = u32::try_from(to).ok().filter(|db| *db < DATABASES).ok_or("ERR DB index is out of range")?;
                if to == self.db {
                    return Err("ERR source and destination objects are the same".into());
                }
                if !self.exists(key) || self.data.get(to, key).is_some() {
                    self.record_nothing();
                    return int(0);
                }
                if let Some(object) = self.data.remove(self.db, key) {
                    self.data.put(to, key, object);
                }
                int(1)
            }
            "FLUSHDB" | "FLUSHALL" => {
                let every = 0..DATABASES;
                every.filter(|db| name == "FLUSHALL" || *db == self.db).for_each(|db| self.data.clear(db));
                self.record_nothing();
                let args = vec![name.as_bytes().to_vec()];
                self.records.push(Record { db: self.db, args, global: true });
                ok()
            }
            _ => Err(format!("ERR unknown command '{}'", name.to_lowercase())),
        }
    }

    fn delete(&mut self, keys: &[Vec<u8>]) -> Outcome {
        let mut by_flow = vec![vec![b"DEL".to_vec()]; self.flows_count];
        self.record_nothing();
        let mut count = 0;
        for key in keys {
            if self.data.remove(self.db, key).is_some() {
                count += 1;
                by_flow[self.owner(key)].push(key.clone());
            }
        }
        by_flow.into_iter().filter(|record| record.len() > 1).for_each(|record| self.record(record));
        int(count)
    }

    fn expire(&mut self, name: &str, args: &Args) -> Outcome {
        let (key, time) = (arg(args, 1)?, integer(arg(args, 2)?)?);
        let at = match name {
            "EXPIRE" => self.now_ms.saturating_add(time.saturating_mul(1000)),
            "PEXPIRE" => self.now_ms.saturating_add(time),
            "EXPIREAT" => time.saturating_mul(1000),
            _ => time,
        };
        self.record_nothing();
        let Some(old) = self.data.get(self.db, key).map(|object| object.expire_at_ms) else { return int(0) };
        let wanted = match word(args, 3).as_str() {
            "" => true,
            "NX" => old.is_none(),
            "XX" => old.is_some(),
            "GT" => old.is_some_and(|old| at > old),
            "LT" => old.is_none_or(|old| at < old),
            _ => return Err(SYNTAX.into()),
        };
        if wanted {
            self.expire_at(key, at);
        }
        int(usize::from(wanted))
    }

    /// Sets the expiry of a key that exists, and records it.
    pub(super) fn expire_at(&mut self, key: &[u8], at: i64) {
        if at <= self.now_ms {
            self.data.remove(self.db, key);
            return self.record_of(&[b"DEL", key]);
        }
        self.data.set_expiry(self.db, key, Some(at));
        self.record_of(&[b"PEXPIREAT", key, at.to_string().as_bytes()]);
    }

    /// On one flow recorded as typed, on two as DEL and RESTORE.
    fn rename(&mut self, name: &str, args: &Args) -> Outcome {
        let (from, to) = (arg(args, 1)?, arg(args, 2)?);
        if !self.exists(from) {
            return Err(NO_SUCH_KEY.into());
        }
        let only_new = name == "RENAMENX";
        if from == to || (only_new && self.exists(to)) {
            self.record_nothing();
            return if only_new { int(0) } else { ok() };
        }
        if self.owner(from) != self.owner(to)
            && let Some(object) = self.data.get(self.db, from).cloned()
        {
            self.record_of(&[b"DEL", from]);
            self.record_restore(to, &object);
        }
        if let Some(object) = self.data.remove(self.db, from) {
            self.data.put(self.db, to, object);
        }
        if only_new { int(1) } else { ok() }
    }

    fn record_restore(&mut self, key: &[u8], object: &crate::lab::live::value::Object) {
        let at = object.expire_at_ms.unwrap_or(0).to_string();
        let payload = dump::payload(&object.value);
        self.record_of(&[b"RESTORE", key, at.as_bytes(), &payload, b"REPLACE", b"ABSTTL"]);
    }
}
