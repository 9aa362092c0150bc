//! Sets.

use super::{Args, Outcome, Reply, Run, arg, bulk, int, integer};
use crate::lab::live::value::{Object, Value};
use std::collections::BTreeSet;

impl Run<'_> {
    pub(super) fn set_command(&mut self, name: &str, args: &Args) -> Outcome {
        let key = arg(args, 1)?;
        match name {
            "SADD" => {
                arg(args, 2)?;
                let Some(members) = self.set_at(key, true)? else { return int(0) };
                int(args[2..].iter().filter(|member| members.insert(member.to_vec())).count())
            }
            "SREM" => {
                arg(args, 2)?;
                let Some(members) = self.set_at(key, false)? else { return int(0) };
                int(args[2..].iter().filter(|member| members.remove(member.as_slice())).count())
            }
            "SPOP" => self.pop_members(args),
            "SMOVE" => {
                let (to, member) = (arg(args, 2)?, arg(args, 3)?);
                self.set_at(to, false)?;
                if key == to {
                    self.record_nothing();
                    return int(usize::from(self.set_at(key, false)?.is_some_and(|members| members.contains(member))));
                }
                if !self.set_at(key, false)?.is_some_and(|members| members.remove(member)) {
                    self.record_nothing();
                    return int(0);
                }
                if let Some(members) = self.set_at(to, true)? {
                    members.insert(member.to_vec());
                }
                self.record_of(&[b"SREM", key, member]);
                self.record_of(&[b"SADD", to, member]);
                int(1)
            }
            _ => self.store_members(name, args),
        }
    }

    /// Recorded as SREM, or as DEL where nothing is left.
    fn pop_members(&mut self, args: &Args) -> Outcome {
        let key = arg(args, 1)?;
        let count = args.get(2).map(|count| integer(count)).transpose()?;
        self.record_nothing();
        let Some(members) = self.set_at(key, false)? else {
            return Ok(if count.is_some() { Reply::Array(Vec::new()) } else { Reply::Nil });
        };
        // Any member is a random one: those in the middle.
        let take = (count.unwrap_or(1).max(0) as usize).min(members.len());
        let skip = (members.len() - take) / 2;
        let taken: Vec<Vec<u8>> = members.iter().skip(skip).take(take).cloned().collect();
        taken.iter().for_each(|member| {
            members.remove(member);
        });
        let emptied = members.is_empty();
        if emptied {
            self.record_of(&[b"DEL", key]);
        } else if !taken.is_empty() {
            let mut record = vec![b"SREM".to_vec(), key.to_vec()];
            record.extend_from_slice(&taken);
            self.record(record);
        }
        match count {
            Some(_) => Ok(Reply::Array(taken.into_iter().map(Reply::Bulk).collect())),
            None => bulk(taken.into_iter().next()),
        }
    }

    /// Recorded as DEL and SADD.
    fn store_members(&mut self, name: &str, args: &Args) -> Outcome {
        let to = arg(args, 1)?;
        arg(args, 2)?;
        let mut result: Option<BTreeSet<Vec<u8>>> = None;
        for key in &args[2..] {
            let members = self.set_at(key, false)?.cloned().unwrap_or_default();
            result = Some(match (result, name) {
                (None, _) => members,
                (Some(so_far), "SUNIONSTORE") => &so_far | &members,
                (Some(so_far), "SINTERSTORE") => &so_far & &members,
                (Some(so_far), _) => &so_far - &members,
            });
        }
        let result = result.unwrap_or_default();
        self.data.remove(self.db, to);
        self.record_of(&[b"DEL", to]);
        if !result.is_empty() {
            let mut record = vec![b"SADD".to_vec(), to.to_vec()];
            record.extend(result.iter().cloned());
            self.record(record);
        }
        let count = result.len();
        if count > 0 {
            self.data.put(self.db, to, Object::new(Value::Set(result)));
        }
        int(count)
    }
}
