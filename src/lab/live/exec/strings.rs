//! Strings and numbers.

use super::{Args, Outcome, Reply, Run, SYNTAX, arg, bulk, float, float_text, int, integer, ok, sum, word};
use crate::lab::live::value::{Object, Value};

/// Longest string that SETRANGE and SETBIT may make.
const STRING_BYTES_MAX: usize = 1 << 26;

impl Run<'_> {
    pub(super) fn string_command(&mut self, name: &str, args: &Args) -> Outcome {
        let key = arg(args, 1)?;
        match name {
            "SET" => self.set(args),
            "SETEX" | "PSETEX" => {
                let time = integer(arg(args, 2)?)?;
                if time <= 0 {
                    return Err(format!("ERR invalid expire time in '{}' command", name.to_lowercase()));
                }
                let unit = if name == "SETEX" { 1000 } else { 1 };
                self.store(key, arg(args, 3)?, Some(self.now_ms + time.saturating_mul(unit)));
                ok()
            }
            "SETNX" => {
                let value = arg(args, 2)?;
                if self.exists(key) {
                    self.record_nothing();
                    return int(0);
                }
                self.data.put(self.db, key, Object::new(Value::String(value.to_vec())));
                int(1)
            }
            "GETSET" => {
                let (old, value) = (self.string_at(key, false)?.cloned(), arg(args, 2)?);
                self.data.put(self.db, key, Object::new(Value::String(value.to_vec())));
                bulk(old)
            }
            "GETDEL" => {
                let old = self.string_at(key, false)?.cloned();
                match old.is_some() {
                    true => drop(self.data.remove(self.db, key)),
                    false => self.record_nothing(),
                }
                bulk(old)
            }
            "GETEX" => self.get_and_expire(args),
            "APPEND" | "PREPEND" => {
                let more = arg(args, 2)?;
                let Some(value) = self.string_at(key, true)? else { return int(0) };
                let at = if name == "APPEND" { value.len() } else { 0 };
                value.splice(at..at, more.iter().copied());
                int(value.len())
            }
            "SETRANGE" => {
                let (offset, part) = (integer(arg(args, 2)?)?, arg(args, 3)?);
                let end = usize::try_from(offset).ok().and_then(|offset| offset.checked_add(part.len()));
                let end = end.filter(|end| *end <= STRING_BYTES_MAX).ok_or("ERR offset is out of range")?;
                if part.is_empty() {
                    self.record_nothing();
                    return int(self.string_at(key, false)?.map_or(0, |value| value.len()));
                }
                let Some(value) = self.string_at(key, true)? else { return int(0) };
                value.resize(value.len().max(end), 0);
                value[end - part.len()..end].copy_from_slice(part);
                int(value.len())
            }
            "SETBIT" => {
                let (offset, bit) = (integer(arg(args, 2)?)?, integer(arg(args, 3)?)?);
                let at = usize::try_from(offset).ok().filter(|at| at / 8 < STRING_BYTES_MAX);
                let at = at.ok_or("ERR bit offset is not an integer or out of range")?;
                if !(0..=1).contains(&bit) {
                    return Err("ERR bit is not an integer or out of range".into());
                }
                let Some(value) = self.string_at(key, true)? else { return int(0) };
                value.resize(value.len().max(at / 8 + 1), 0);
                let mask = 0x80 >> (at % 8);
                let old = value[at / 8] & mask != 0;
                value[at / 8] = if bit == 1 { value[at / 8] | mask } else { value[at / 8] & !mask };
                int(usize::from(old))
            }
            "INCR" => self.add(key, 1),
            "DECR" => self.add(key, -1),
            "INCRBY" => self.add(key, integer(arg(args, 2)?)?),
            "DECRBY" => self.add(key, integer(arg(args, 2)?)?.checked_neg().ok_or("ERR decrement would overflow")?),
            "INCRBYFLOAT" => {
                let by = float(arg(args, 2)?)?;
                let old = self.string_at(key, false)?.map_or(Ok(0.0), |value| float(value))?;
                let text = float_text(sum(old, by)?);
                if let Some(value) = self.string_at(key, true)? {
                    value.clone_from(&text);
                }
                bulk(Some(text))
            }
            _ => self.set_many(name, args),
        }
    }

    fn set(&mut self, args: &Args) -> Outcome {
        let (key, value) = (arg(args, 1)?, arg(args, 2)?);
        let (mut expire_at_ms, mut keep, mut only_if, mut get) = (None, false, None, false);
        let mut i = 3;
        while i < args.len() {
            let option = word(args, i);
            match option.as_str() {
                "KEEPTTL" => keep = true,
                "NX" => only_if = Some(false),
                "XX" => only_if = Some(true),
                "GET" => get = true,
                "EX" | "PX" | "EXAT" | "PXAT" => {
                    i += 1;
                    expire_at_ms = Some(self.at_ms(&option, integer(arg(args, i)?)?));
                }
                _ => return Err(SYNTAX.into()),
            }
            i += 1;
        }
        let old = if get { Some(self.string_at(key, false)?.cloned()) } else { None };
        if only_if.is_some_and(|wanted| wanted != self.exists(key)) {
            self.record_nothing();
            return bulk(old.flatten());
        }
        if keep {
            let kept = self.data.get(self.db, key).and_then(|object| object.expire_at_ms);
            self.data.put(self.db, key, Object { value: Value::String(value.to_vec()), expire_at_ms: kept });
            self.record_of(&[b"SET", key, value, b"KEEPTTL"]);
        } else {
            self.store(key, value, expire_at_ms);
        }
        old.map_or_else(ok, bulk)
    }

    /// Unix milliseconds of an EX, PX, EXAT or PXAT.
    fn at_ms(&self, option: &str, time: i64) -> i64 {
        match option {
            "EX" => self.now_ms.saturating_add(time.saturating_mul(1000)),
            "PX" => self.now_ms.saturating_add(time),
            "EXAT" => time.saturating_mul(1000),
            _ => time,
        }
    }

    /// SET as it is recorded.
    fn store(&mut self, key: &[u8], value: &[u8], expire_at_ms: Option<i64>) {
        if expire_at_ms.is_some_and(|at| at <= self.now_ms) {
            match self.data.remove(self.db, key) {
                Some(_) => self.record_of(&[b"DEL", key]),
                None => self.record_nothing(),
            }
            return;
        }
        self.data.put(self.db, key, Object { value: Value::String(value.to_vec()), expire_at_ms });
        match expire_at_ms {
            Some(at) => self.record_of(&[b"SET", key, value, b"PXAT", at.to_string().as_bytes()]),
            None => self.record_of(&[b"SET", key, value]),
        }
    }

    fn get_and_expire(&mut self, args: &Args) -> Outcome {
        let key = arg(args, 1)?;
        let value = self.string_at(key, false)?.cloned();
        self.record_nothing();
        if value.is_none() {
            return Ok(Reply::Nil);
        }
        match word(args, 2).as_str() {
            "" => {}
            "PERSIST" => {
                self.data.set_expiry(self.db, key, None);
                self.record_of(&[b"PERSIST", key]);
            }
            option @ ("EX" | "PX" | "EXAT" | "PXAT") => {
                let at = self.at_ms(option, integer(arg(args, 3)?)?);
                self.expire_at(key, at);
            }
            _ => return Err(SYNTAX.into()),
        }
        bulk(value)
    }

    fn add(&mut self, key: &[u8], by: i64) -> Outcome {
        let old = self.string_at(key, false)?.map_or(Ok(0), |value| integer(value))?;
        let new = old.checked_add(by).ok_or("ERR increment or decrement would overflow")?;
        if let Some(value) = self.string_at(key, true)? {
            *value = new.to_string().into_bytes();
        }
        Ok(Reply::Int(new))
    }

    /// MSET, MSETNX: one record a flow.
    fn set_many(&mut self, name: &str, args: &Args) -> Outcome {
        if args.len() < 3 || args.len().is_multiple_of(2) {
            return Err(format!("ERR wrong number of arguments for '{}' command", name.to_lowercase()));
        }
        if name == "MSETNX" && args[1..].iter().step_by(2).any(|key| self.exists(key)) {
            self.record_nothing();
            return int(0);
        }
        let mut by_flow = vec![vec![b"MSET".to_vec()]; self.flows_count];
        for pair in args[1..].chunks_exact(2) {
            self.data.put(self.db, &pair[0], Object::new(Value::String(pair[1].clone())));
            by_flow[self.owner(&pair[0])].extend_from_slice(pair);
        }
        by_flow.into_iter().filter(|record| record.len() > 1).for_each(|record| self.record(record));
        if name == "MSETNX" { int(1) } else { ok() }
    }
}
