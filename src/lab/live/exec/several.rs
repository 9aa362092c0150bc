//! Commands that read several keys and write one, or take from the first of several.
//!
//! Older masters record them as typed where all their keys lie on one shard (wire 4.10, table). Where not, this source
//! records what a newer one does, `DEL` and the result, or the pop: a record that has lost its operands (wire 6.19) says
//! nothing that could be compared.

use super::{Args, Outcome, Reply, Run, SYNTAX, arg, float, int, integer, slice, sorted, word};
use super::{score_text, written_keys};
use crate::lab::live::value::{Object, Value};
use std::collections::{BTreeMap, VecDeque};

type Scores = BTreeMap<Vec<u8>, f64>;

/// `n key...` at a position: the keys, and where the options begin.
pub fn counted(args: &Args, at: usize) -> Result<(&[Vec<u8>], usize), String> {
    let count = usize::try_from(integer(arg(args, at)?)?).ok().filter(|count| *count > 0).ok_or(SYNTAX)?;
    let end = at.checked_add(1).and_then(|at| at.checked_add(count)).ok_or(SYNTAX)?;
    Ok((args.get(at + 1..end).ok_or(SYNTAX)?, end))
}

impl Run<'_> {
    pub(super) fn several_command(&mut self, name: &str, args: &Args) -> Outcome {
        match name {
            "SORT" => self.sort(args),
            "ZRANGESTORE" => {
                let (start, stop) = (integer(arg(args, 3)?)?, integer(arg(args, 4)?)?);
                let all = self.zset_at(arg(args, 2)?, false)?.map(|scores| owned(scores)).unwrap_or_default();
                let kept = all[slice(start, stop, all.len())].iter().cloned().collect();
                self.store_scores(name, args, kept)
            }
            "LMPOP" | "ZMPOP" => self.pop_first(name, args),
            _ => self.combine(name, args),
        }
    }

    /// All its keys lie on one shard.
    pub(super) fn is_on_one_flow(&self, name: &str, args: &Args) -> bool {
        let mut flows = written_keys(name, args).unwrap_or_default().into_iter().map(|key| self.owner(key));
        flows.next().is_some_and(|first| flows.all(|flow| flow == first))
    }

    /// `SORT k [ALPHA] [DESC] [LIMIT offset count] STORE k`, of texts.
    fn sort(&mut self, args: &Args) -> Outcome {
        let (mut descends, mut limit, mut to) = (false, (0, -1), None);
        let mut at = 2;
        while at < args.len() {
            match word(args, at).as_str() {
                "ALPHA" => at += 1,
                "DESC" => (descends, at) = (true, at + 1),
                "LIMIT" => (limit, at) = ((integer(arg(args, at + 1)?)?, integer(arg(args, at + 2)?)?), at + 3),
                "STORE" => (to, at) = (Some(arg(args, at + 1)?), at + 2),
                _ => return Err(SYNTAX.into()),
            }
        }
        let to = to.ok_or("ERR this simulation sorts with STORE only")?;
        let is_on_one_flow = self.is_on_one_flow("SORT", args);
        let mut items: Vec<Vec<u8>> = match self.list_at(arg(args, 1)?, false)? {
            Some(items) => items.iter().cloned().collect(),
            // Recorded where it lies on one shard, and `to` is left alone.
            None => {
                if !is_on_one_flow {
                    self.record_nothing();
                }
                return Ok(Reply::Array(Vec::new()));
            }
        };
        items.sort();
        if descends {
            items.reverse();
        }
        let count = if limit.1 < 0 { usize::MAX } else { limit.1 as usize };
        let items: VecDeque<Vec<u8>> = items.into_iter().skip(limit.0.max(0) as usize).take(count).collect();
        if !is_on_one_flow {
            self.record_of(&[b"DEL", to]);
            if !items.is_empty() {
                let mut record = vec![b"RPUSH".to_vec(), to.to_vec()];
                record.extend(items.iter().cloned());
                self.record(record);
            }
        }
        self.data.remove(self.db, to);
        let stored = items.len();
        if stored > 0 {
            self.data.put(self.db, to, Object::new(Value::List(items)));
        }
        int(stored)
    }

    /// `ZUNIONSTORE to n key... [WEIGHTS w...] [AGGREGATE SUM|MIN|MAX]`, ZINTERSTORE, ZDIFFSTORE.
    fn combine(&mut self, name: &str, args: &Args) -> Outcome {
        let (keys, mut at) = counted(args, 2)?;
        let mut weights = vec![1.0; keys.len()];
        let mut how = "SUM".to_owned();
        while at < args.len() {
            match word(args, at).as_str() {
                "WEIGHTS" => {
                    for (nth, weight) in weights.iter_mut().enumerate() {
                        *weight = float(arg(args, at + 1 + nth)?)?;
                    }
                    at += 1 + keys.len();
                }
                "AGGREGATE" => (how, at) = (word(args, at + 1), at + 2),
                _ => return Err(SYNTAX.into()),
            }
        }
        let together = |a: f64, b: f64| match how.as_str() {
            "MIN" => a.min(b),
            "MAX" => a.max(b),
            _ => a + b,
        };
        let mut result: Option<Scores> = None;
        for (key, weight) in keys.iter().zip(weights) {
            let mut scores = self.zset_at(key, false)?.cloned().unwrap_or_default();
            scores.values_mut().for_each(|score| *score *= weight);
            result = Some(match (result, name) {
                (None, _) => scores,
                (Some(mut so_far), "ZUNIONSTORE") => {
                    for (member, score) in scores {
                        so_far.entry(member).and_modify(|old| *old = together(*old, score)).or_insert(score);
                    }
                    so_far
                }
                (Some(so_far), "ZINTERSTORE") => {
                    let both = |(member, old)| scores.get(&member).map(|score| (member, together(old, *score)));
                    so_far.into_iter().filter_map(both).collect()
                }
                (Some(so_far), _) => so_far.into_iter().filter(|(member, _)| !scores.contains_key(member)).collect(),
            });
        }
        self.store_scores(name, args, result.unwrap_or_default())
    }

    fn store_scores(&mut self, name: &str, args: &Args, scores: Scores) -> Outcome {
        let to = arg(args, 1)?;
        if !self.is_on_one_flow(name, args) {
            self.record_of(&[b"DEL", to]);
            if !scores.is_empty() {
                let mut record = vec![b"ZADD".to_vec(), to.to_vec()];
                record.extend(scores.iter().flat_map(|(member, score)| [score_text(*score), member.clone()]));
                self.record(record);
            }
        }
        self.data.remove(self.db, to);
        let count = scores.len();
        if count > 0 {
            self.data.put(self.db, to, Object::new(Value::Zset(scores)));
        }
        int(count)
    }

    /// `LMPOP n key... LEFT|RIGHT [COUNT n]`, `ZMPOP n key... MIN|MAX [COUNT n]`. That nothing was there is recorded, too.
    fn pop_first(&mut self, name: &str, args: &Args) -> Outcome {
        let (keys, at) = counted(args, 1)?;
        let count = if word(args, at + 1) == "COUNT" { integer(arg(args, at + 2)?)? } else { 1 };
        let count = usize::try_from(count).ok().filter(|count| *count > 0).ok_or(SYNTAX)?;
        let pop: &str = match word(args, at).as_str() {
            "LEFT" if name == "LMPOP" => "LPOP",
            "RIGHT" if name == "LMPOP" => "RPOP",
            "MIN" if name == "ZMPOP" => "ZPOPMIN",
            "MAX" if name == "ZMPOP" => "ZPOPMAX",
            _ => return Err(SYNTAX.into()),
        };
        for key in keys {
            // Of another type: an error.
            let _ = match name {
                "LMPOP" => self.list_at(key, false)?.map(|_| ()),
                _ => self.zset_at(key, false)?.map(|_| ()),
            };
        }
        let raw = self.is_on_one_flow(name, args);
        let Some(key) = keys.iter().find(|key| self.exists(key)) else {
            if !raw {
                self.record_nothing();
            }
            return Ok(Reply::Nil);
        };
        let number = count.to_string().into_bytes();
        let popped = vec![pop.as_bytes().to_vec(), key.clone(), number.clone()];
        if !raw {
            self.record(popped);
        }
        if name == "ZMPOP" {
            let Some(scores) = self.zset_at(key, false)? else { return Ok(Reply::Nil) };
            let mut all = owned(scores);
            if pop == "ZPOPMAX" {
                all.reverse();
            }
            all.iter().take(count).for_each(|(member, _)| {
                scores.remove(member);
            });
            return int(count.min(all.len()));
        }
        let Some(items) = self.list_at(key, false)? else { return Ok(Reply::Nil) };
        let taken = count.min(items.len());
        if pop == "LPOP" {
            items.drain(..taken);
        } else {
            items.truncate(items.len() - taken);
        }
        int(taken)
    }
}

/// Members by score, then by name.
fn owned(scores: &Scores) -> Vec<(Vec<u8>, f64)> {
    sorted(scores).into_iter().map(|(member, score)| (member.clone(), score)).collect()
}
