//! What is told of a key without its value, type and expiry, and what that says already.

use super::{ABSENT, Found, JSON_TYPE, Looker, State, Verdict, size_command};
use crate::convert::{Action, Kind as Unsupported};
use crate::engine::error::EngineError;
use crate::engine::verify::difference::{Item, Kind};
use crate::engine::verify::fields;
use crate::engine::verify::image::print_of;
use crate::engine::verify::peer::{Peer, number, shown};
use crate::engine::verify::wire::Commands;
use crate::redis::value::Value;

#[derive(Clone, Debug)]
pub(super) struct Meta {
    pub type_name: String,
    pub expire_at_ms: Option<i64>,
}

impl Looker {
    pub(super) async fn metas(
        &mut self,
        db: u32,
        keys: &[Vec<u8>],
    ) -> Result<(Vec<Option<Meta>>, Vec<Option<Meta>>), EngineError> {
        let of = |peer: &Peer| {
            let expiry: &[u8] = if peer.traits.expire_time { b"PEXPIRETIME" } else { b"PTTL" };
            let mut commands = Commands::new();
            for key in keys {
                commands.push(&[b"TYPE", key]);
                commands.push(&[expiry, key]);
            }
            commands
        };
        let (at_source, at_target) = (of(&self.source), of(&self.target));
        let (source, target) =
            self.each(db, &at_source, &at_target).await.map_err(|error| self.source.engine(error))?;
        Ok((metas_of(&self.source, &source)?, metas_of(&self.target, &target)?))
    }

    /// What can be said without the value. None: the values must be compared.
    pub(super) fn judge_meta(&self, source: Option<&Meta>, target: Option<&Meta>) -> Option<Verdict> {
        let (source, target) = match (source, target) {
            (None, None) => return Some(Verdict::Gone),
            (Some(source), None) if self.is_left_out(&source.type_name) => return Some(Verdict::NotCarried),
            // A Dragonfly whose writes are paused expires nothing, but shows what has expired.
            (Some(source), None) if self.has_expired(source) => return Some(Verdict::Gone),
            (Some(source), None) => {
                let mut found = Found::new(&source.type_name, vec![Item::new(Kind::Missing)]);
                found.source.expire_at_ms = source.expire_at_ms;
                // The value is not read: what counts is that there is one.
                found.source.print = Some(!ABSENT);
                found.target.print = Some(ABSENT);
                return Some(Verdict::Differs(found));
            }
            (None, Some(target)) => {
                let mut found = Found::new(&target.type_name, vec![Item::new(Kind::Extra)]);
                found.source.print = Some(ABSENT);
                return Some(Verdict::Differs(found));
            }
            (Some(source), Some(target)) => (source, target),
        };
        let json_as_string = source.type_name == JSON_TYPE && target.type_name == "string";
        if source.type_name != target.type_name && !json_as_string {
            let item = Item::new(Kind::Type).values(Some(source.type_name.clone()), Some(target.type_name.clone()));
            let mut found = Found::new(&source.type_name, vec![item]);
            found.source = State { print: Some(print_of(&source.type_name)), expire_at_ms: source.expire_at_ms };
            return Some(Verdict::Differs(found));
        }
        if self.values && size_command(&source.type_name).is_none() && source.type_name != JSON_TYPE {
            return Some(Verdict::NotCompared {
                type_name: source.type_name.clone(),
                reason: format!("values of type {} cannot be compared", source.type_name),
            });
        }
        None
    }

    fn has_expired(&self, source: &Meta) -> bool {
        let now_ms = self.source.server_now_ms().saturating_add(self.tolerance_ms);
        source.expire_at_ms.is_some_and(|at_ms| at_ms <= now_ms)
    }

    /// The job was told to leave values of this type out.
    fn is_left_out(&self, type_name: &str) -> bool {
        let kind = match type_name {
            JSON_TYPE => Unsupported::Json,
            name if size_command(name).is_none() => Unsupported::Filters,
            _ => return false,
        };
        self.policy.action(kind) == Action::Skip
    }

    /// Adds the comparison of the keys' expiries to that of their values.
    pub(super) fn add_expiry(&self, verdict: &mut Verdict, source: &Meta, target: &Meta) {
        let target_ms = fields::meant(source.expire_at_ms, target.expire_at_ms);
        let same = match (source.expire_at_ms, target_ms) {
            (Some(a), Some(b)) => a.abs_diff(b) <= self.tolerance_ms.unsigned_abs(),
            (None, None) => true,
            _ => false,
        };
        if !same {
            let show = |at: Option<i64>| at.map(|at| at.to_string());
            let item = Item::new(Kind::Expiry).values(show(source.expire_at_ms), show(target_ms));
            match verdict {
                Verdict::Differs(found) => found.items.push(item),
                Verdict::Equal => {
                    let mut found = Found::new(&source.type_name, vec![item]);
                    // Values that are equal are of no more interest: the expiry is what must stand still.
                    (found.source.print, found.target.print) = (Some(!ABSENT), Some(!ABSENT));
                    *verdict = Verdict::Differs(found);
                }
                _ => {}
            }
        }
        if let Verdict::Differs(found) = verdict {
            found.source.expire_at_ms = source.expire_at_ms;
            found.target.expire_at_ms = target_ms;
        }
    }
}

fn metas_of(peer: &Peer, replies: &[Value]) -> Result<Vec<Option<Meta>>, EngineError> {
    let now_ms = peer.server_now_ms();
    let pairs = replies.chunks_exact(2);
    pairs
        .map(|pair| {
            let (Some(type_name), Some(expiry)) = (pair[0].text(), number(&pair[1])) else {
                let wrong = pair.iter().find(|reply| matches!(reply, Value::Error(_))).unwrap_or(&pair[0]);
                return Err(peer.said(0, &format!("TYPE or the expiry of a key was answered with {}", shown(wrong))));
            };
            // -2: it went between the two commands.
            if type_name == "none" || expiry == -2 {
                return Ok(None);
            }
            let expire_at_ms = match expiry {
                // A time left below zero is that of a key that has expired and is still shown.
                -1 => None,
                at if peer.traits.expire_time => Some(at),
                left => Some(now_ms.saturating_add(left)),
            };
            Ok(Some(Meta { type_name: type_name.to_string(), expire_at_ms }))
        })
        .collect()
}
