//! Hashes.

use super::{Args, Outcome, Reply, Run, SYNTAX, arg, bulk, float, float_text, int, integer, ok, sum, word};
use crate::lab::live::value::Field;

impl Run<'_> {
    pub(super) fn hash_command(&mut self, name: &str, args: &Args) -> Outcome {
        let key = arg(args, 1)?;
        match name {
            "HSET" | "HMSET" => {
                if args.len() < 4 || args.len() % 2 == 1 {
                    return Err(format!("ERR wrong number of arguments for '{}' command", name.to_lowercase()));
                }
                let Some(fields) = self.hash_at(key, true)? else { return int(0) };
                let mut new = 0;
                for pair in args[2..].chunks_exact(2) {
                    // Setting a field takes its expiry away.
                    let field = Field { value: pair[1].clone(), expire_at_s: None };
                    new += usize::from(fields.insert(pair[0].clone(), field).is_none());
                }
                if name == "HSET" { int(new) } else { ok() }
            }
            "HSETNX" => {
                let (field, value) = (arg(args, 2)?.to_vec(), arg(args, 3)?.to_vec());
                let Some(fields) = self.hash_at(key, true)? else { return int(0) };
                if fields.contains_key(&field) {
                    return int(0);
                }
                fields.insert(field, Field { value, expire_at_s: None });
                int(1)
            }
            "HDEL" => {
                arg(args, 2)?;
                let Some(fields) = self.hash_at(key, false)? else { return int(0) };
                int(args[2..].iter().filter(|field| fields.remove(field.as_slice()).is_some()).count())
            }
            "HINCRBY" => {
                let (field, by) = (arg(args, 2)?, integer(arg(args, 3)?)?);
                let old = self.field(key, field)?;
                let old = old.map_or(Ok(0), |value| integer(&value)).map_err(|_| "ERR hash value is not an integer")?;
                let new = old.checked_add(by).ok_or("ERR increment or decrement would overflow")?;
                self.set_field(key, field, new.to_string().into_bytes())?;
                Ok(Reply::Int(new))
            }
            "HINCRBYFLOAT" => {
                let (field, by) = (arg(args, 2)?, float(arg(args, 3)?)?);
                let old = self.field(key, field)?;
                let old = old.map_or(Ok(0.0), |value| float(&value)).map_err(|_| "ERR hash value is not a float")?;
                let text = float_text(sum(old, by)?);
                self.set_field(key, field, text.clone())?;
                bulk(Some(text))
            }
            _ => self.expire_fields(args),
        }
    }

    fn field(&mut self, key: &[u8], field: &[u8]) -> Result<Option<Vec<u8>>, String> {
        Ok(self.hash_at(key, false)?.and_then(|fields| fields.get(field)).map(|field| field.value.clone()))
    }

    /// Keeps the field's expiry.
    fn set_field(&mut self, key: &[u8], field: &[u8], value: Vec<u8>) -> Result<(), String> {
        if let Some(fields) = self.hash_at(key, true)? {
            let expire_at_s = fields.get(field).and_then(|old| old.expire_at_s);
            fields.insert(field.to_vec(), Field { value, expire_at_s });
        }
        Ok(())
    }

    /// `HEXPIRE key seconds FIELDS n field ...`, recorded as typed, with its relative time.
    fn expire_fields(&mut self, args: &Args) -> Outcome {
        let (key, seconds) = (arg(args, 1)?, integer(arg(args, 2)?)?);
        let count = integer(arg(args, 4)?)?;
        if word(args, 3) != "FIELDS" || args.len() as i64 != 5 + count || count < 1 || seconds <= 0 {
            return Err(SYNTAX.into());
        }
        let at = self.now_ms / 1000 + seconds;
        let Some(fields) = self.hash_at(key, false)? else {
            self.record_nothing();
            return Ok(Reply::Array(vec![Reply::Int(-2); count as usize]));
        };
        let mut answer = |name: &Vec<u8>| match fields.get_mut(name) {
            Some(field) => {
                field.expire_at_s = Some(at);
                Reply::Int(1)
            }
            None => Reply::Int(-2),
        };
        Ok(Reply::Array(args[5..].iter().map(&mut answer).collect()))
    }
}
