//! Sorted sets.

use super::{Args, NOT_A_FLOAT, Outcome, Reply, Run, SYNTAX, arg, bulk, float, int, integer, slice, word};
use std::collections::BTreeMap;

/// Members by score, then by name.
pub fn sorted(scores: &BTreeMap<Vec<u8>, f64>) -> Vec<(&Vec<u8>, f64)> {
    let mut sorted: Vec<(&Vec<u8>, f64)> = scores.iter().map(|(member, score)| (member, *score)).collect();
    sorted.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(b.0)));
    sorted
}

/// A score in a reply.
pub fn score_text(score: f64) -> Vec<u8> {
    if score.is_infinite() {
        return if score > 0.0 { b"inf".to_vec() } else { b"-inf".to_vec() };
    }
    format!("{score}").into_bytes()
}

impl Run<'_> {
    pub(super) fn zset_command(&mut self, name: &str, args: &Args) -> Outcome {
        let key = arg(args, 1)?;
        match name {
            "ZADD" => self.add_scores(args),
            "ZINCRBY" => {
                let (by, member) = (float(arg(args, 2)?)?, arg(args, 3)?.to_vec());
                let Some(scores) = self.zset_at(key, true)? else { return int(0) };
                let score = scores.entry(member).or_insert(0.0);
                *score += by;
                bulk(Some(score_text(*score)))
            }
            "ZREM" => {
                arg(args, 2)?;
                let Some(scores) = self.zset_at(key, false)? else { return int(0) };
                int(args[2..].iter().filter(|member| scores.remove(member.as_slice()).is_some()).count())
            }
            "ZPOPMIN" | "ZPOPMAX" => {
                let count = args.get(2).map_or(Ok(1), |count| integer(count))?.max(0) as usize;
                let Some(scores) = self.zset_at(key, false)? else {
                    self.record_nothing();
                    return Ok(Reply::Array(Vec::new()));
                };
                let mut all: Vec<(Vec<u8>, f64)> = sorted(scores).into_iter().map(|(m, s)| (m.clone(), s)).collect();
                if name == "ZPOPMAX" {
                    all.reverse();
                }
                all.truncate(count);
                all.iter().for_each(|(member, _)| {
                    scores.remove(member);
                });
                let parts = all.into_iter().flat_map(|(member, score)| [member, score_text(score)]);
                Ok(Reply::Array(parts.map(Reply::Bulk).collect()))
            }
            "ZREMRANGEBYRANK" => {
                let (start, stop) = (integer(arg(args, 2)?)?, integer(arg(args, 3)?)?);
                self.remove_scores(key, |sorted| sorted[slice(start, stop, sorted.len())].to_vec())
            }
            _ => {
                let (min, max) = (border(arg(args, 2)?)?, border(arg(args, 3)?)?);
                let inside = move |score: f64| {
                    (if min.1 { score > min.0 } else { score >= min.0 })
                        && (if max.1 { score < max.0 } else { score <= max.0 })
                };
                self.remove_scores(key, |all| all.iter().filter(|(_, score)| inside(*score)).cloned().collect())
            }
        }
    }

    fn remove_scores(&mut self, key: &[u8], which: impl Fn(&[(Vec<u8>, f64)]) -> Vec<(Vec<u8>, f64)>) -> Outcome {
        let Some(scores) = self.zset_at(key, false)? else { return int(0) };
        let all: Vec<(Vec<u8>, f64)> = sorted(scores).into_iter().map(|(m, s)| (m.clone(), s)).collect();
        let doomed = which(&all);
        doomed.iter().for_each(|(member, _)| {
            scores.remove(member);
        });
        int(doomed.len())
    }

    /// Recorded as typed, also where nothing changed.
    fn add_scores(&mut self, args: &Args) -> Outcome {
        let key = arg(args, 1)?;
        let (mut nx, mut xx, mut gt, mut lt, mut ch) = (false, false, false, false, false);
        let mut i = 2;
        loop {
            match word(args, i).as_str() {
                "NX" => nx = true,
                "XX" => xx = true,
                "GT" => gt = true,
                "LT" => lt = true,
                "CH" => ch = true,
                _ => break,
            }
            i += 1;
        }
        let pairs = args.get(i..).filter(|pairs| !pairs.is_empty() && pairs.len() % 2 == 0).ok_or(SYNTAX)?;
        let pairs: Vec<(f64, &Vec<u8>)> =
            pairs.chunks_exact(2).map(|pair| Ok((float(&pair[0])?, &pair[1]))).collect::<Result<_, String>>()?;
        let (mut added, mut changed) = (0, 0);
        let Some(scores) = self.zset_at(key, !xx)? else { return int(0) };
        for (score, member) in pairs {
            match scores.get_mut(member) {
                Some(old) => {
                    if nx || (gt && score <= *old) || (lt && score >= *old) || score == *old {
                        continue;
                    }
                    *old = score;
                    changed += 1;
                }
                None if !xx => {
                    scores.insert(member.clone(), score);
                    added += 1;
                }
                None => {}
            }
        }
        int(if ch { added + changed } else { added })
    }
}

/// A border of a range of scores: `(5`, `5`, `+inf`; true: excluded.
fn border(text: &[u8]) -> Result<(f64, bool), String> {
    match text.strip_prefix(b"(") {
        Some(rest) => Ok((float(rest).map_err(|_| NOT_A_FLOAT.to_owned())?, true)),
        None => Ok((float(text).map_err(|_| NOT_A_FLOAT.to_owned())?, false)),
    }
}
