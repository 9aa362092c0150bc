//! Lists.

use super::{Args, NO_SUCH_KEY, Outcome, Reply, Run, SYNTAX, arg, bulk, index, int, integer, ok, slice, word};

impl Run<'_> {
    pub(super) fn list_command(&mut self, name: &str, args: &Args) -> Outcome {
        let key = arg(args, 1)?;
        match name {
            "LPUSH" | "RPUSH" | "LPUSHX" | "RPUSHX" => {
                arg(args, 2)?;
                let Some(items) = self.list_at(key, !name.ends_with('X'))? else { return int(0) };
                for item in &args[2..] {
                    match name.starts_with('L') {
                        true => items.push_front(item.clone()),
                        false => items.push_back(item.clone()),
                    }
                }
                int(items.len())
            }
            "LPOP" | "RPOP" => self.pop(name, args),
            "LREM" => {
                let (count, item) = (integer(arg(args, 2)?)?, arg(args, 3)?.to_vec());
                let Some(items) = self.list_at(key, false)? else { return int(0) };
                let limit = if count == 0 { usize::MAX } else { count.unsigned_abs() as usize };
                let mut removed = 0;
                let mut keep = |x: &Vec<u8>| {
                    let hit = *x == item && removed < limit;
                    removed += usize::from(hit);
                    !hit
                };
                if count < 0 {
                    let kept: Vec<_> = items.drain(..).rev().filter(|x| keep(x)).collect();
                    items.extend(kept.into_iter().rev());
                } else {
                    items.retain(keep);
                }
                int(removed)
            }
            "LTRIM" => {
                let (start, stop) = (integer(arg(args, 2)?)?, integer(arg(args, 3)?)?);
                if let Some(items) = self.list_at(key, false)? {
                    let range = slice(start, stop, items.len());
                    items.truncate(range.end);
                    items.drain(..range.start);
                }
                ok()
            }
            "LSET" => {
                let (at, item) = (integer(arg(args, 2)?)?, arg(args, 3)?.to_vec());
                let items = self.list_at(key, false)?.ok_or(NO_SUCH_KEY)?;
                let at = usize::try_from(index(at, items.len())).ok().filter(|at| *at < items.len());
                items[at.ok_or("ERR index out of range")?] = item;
                ok()
            }
            "LINSERT" => {
                let (place, pivot, item) = (word(args, 2), arg(args, 3)?.to_vec(), arg(args, 4)?.to_vec());
                if !["BEFORE", "AFTER"].contains(&place.as_str()) {
                    return Err(SYNTAX.into());
                }
                let Some(items) = self.list_at(key, false)? else { return int(0) };
                let Some(at) = items.iter().position(|x| *x == pivot) else { return Ok(Reply::Int(-1)) };
                items.insert(at + usize::from(place == "AFTER"), item);
                int(items.len())
            }
            "RPOPLPUSH" => self.move_item(args, false, true),
            _ => {
                let (from, to) = (word(args, 3), word(args, 4));
                if ![&from, &to].iter().all(|side| ["LEFT", "RIGHT"].contains(&side.as_str())) {
                    return Err(SYNTAX.into());
                }
                self.move_item(args, from == "LEFT", to == "LEFT")
            }
        }
    }

    fn pop(&mut self, name: &str, args: &Args) -> Outcome {
        let key = arg(args, 1)?;
        let count = args.get(2).map(|count| integer(count)).transpose()?;
        if count.is_some_and(|count| count < 0) {
            return Err("ERR value is out of range, must be positive".into());
        }
        let left = name == "LPOP";
        let Some(items) = self.list_at(key, false)? else {
            self.record_nothing();
            return Ok(Reply::Nil);
        };
        let take = (count.unwrap_or(1) as usize).min(items.len());
        let taken: Vec<Reply> = (0..take)
            .filter_map(|_| if left { items.pop_front() } else { items.pop_back() })
            .map(Reply::Bulk)
            .collect();
        if take == 0 {
            self.record_nothing();
        }
        if count.is_some() { Ok(Reply::Array(taken)) } else { Ok(taken.into_iter().next().unwrap_or(Reply::Nil)) }
    }

    /// On one flow recorded as typed, as older masters do; on two as a pop and a push, each on its key's flow.
    fn move_item(&mut self, args: &Args, from_left: bool, to_left: bool) -> Outcome {
        let (from, to) = (arg(args, 1)?, arg(args, 2)?);
        self.list_at(to, false)?;
        if from == to && self.list_at(from, false)?.is_some_and(|items| items.len() == 1) {
            // Recorded as a pop and a push it would cost the target the key's expiry.
            return Err("ERR this simulation does not rotate a list of one item".into());
        }
        let Some(items) = self.list_at(from, false)? else {
            self.record_nothing();
            return Ok(Reply::Nil);
        };
        let item = if from_left { items.pop_front() } else { items.pop_back() };
        let emptied = items.is_empty();
        let Some(item) = item else {
            self.record_nothing();
            return Ok(Reply::Nil);
        };
        if emptied && from != to {
            self.data.remove(self.db, from);
        }
        if let Some(items) = self.list_at(to, true)? {
            match to_left {
                true => items.push_front(item.clone()),
                false => items.push_back(item.clone()),
            }
        }
        if self.owner(from) != self.owner(to) {
            self.record_of(&[if from_left { b"LPOP" } else { b"RPOP" }, from]);
            self.record_of(&[if to_left { b"LPUSH" } else { b"RPUSH" }, to, &item]);
        }
        bulk(Some(item))
    }
}
