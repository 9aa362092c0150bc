//! Expiries of hash fields: read and compared, for fields of several hashes in one exchange.
//!
//! Redis 7.4 and Valkey 9 tell them in milliseconds (`HPEXPIRETIME`). So does a newer Dragonfly, but it knows whole seconds
//! only; an older one tells seconds left (`FIELDTTL`), which costs a command a field.

use super::difference::{Element, Item, Kind, brief};
use super::image::print_of;
use super::look::Looker;
use super::peer::{AskError, FieldExpiry, Peer, number};
use super::wire::Commands;
use crate::convert::{Action, Kind as Unsupported, near};
use crate::redis::value::Value;

/// What is added to the tolerance where a side tells whole seconds.
const SECOND_MS: i64 = 1000;

/// Whether both sides tell expiries, or one does and the other ought to have them.
pub fn comparable(looker: &Looker) -> bool {
    let sides = (looker.source.traits.field_expiry, looker.target.traits.field_expiry);
    match sides {
        (FieldExpiry::None, FieldExpiry::None) => false,
        // The job was told to drop them.
        (_, FieldExpiry::None) => looker.policy.action(Unsupported::FieldExpiry) != Action::Drop,
        _ => true,
    }
}

/// Fields whose expiries differ, for each hash.
pub async fn compare(
    looker: &mut Looker,
    db: u32,
    hashes: &[(&[u8], &[Vec<u8>])],
) -> Result<Vec<Vec<Element>>, AskError> {
    let (at_source, at_target) = (commands(&looker.source, hashes), commands(&looker.target, hashes));
    let (source, target) = looker.each(db, &at_source, &at_target).await?;
    let (mut source, mut target) = (source.into_iter(), target.into_iter());
    let whole_seconds = [&looker.source, &looker.target]
        .iter()
        .any(|peer| peer.traits.dragonfly || peer.traits.field_expiry == FieldExpiry::SecondsLeft);
    let tolerance_ms = looker.tolerance_ms + if whole_seconds { SECOND_MS } else { 0 };
    let mut results = Vec::with_capacity(hashes.len());
    for (_, fields) in hashes {
        let expiries =
            (take(&looker.source, fields.len(), &mut source), take(&looker.target, fields.len(), &mut target));
        results.push(differing(fields, &expiries.0, &expiries.1, tolerance_ms));
    }
    Ok(results)
}

fn differing(fields: &[Vec<u8>], source: &[Option<i64>], target: &[Option<i64>], tolerance_ms: i64) -> Vec<Element> {
    let meant: Vec<_> = source.iter().zip(target).map(|(a, b)| meant(*a, *b)).collect();
    let differing = fields.iter().zip(source.iter().zip(&meant)).filter(|(_, (a, b))| match (a, b) {
        (Some(a), Some(b)) => a.abs_diff(*b) > tolerance_ms.unsigned_abs(),
        (a, b) => a != b,
    });
    let show = |at: &Option<i64>| at.map(|at| at.to_string());
    let element = |(field, (a, b)): (&Vec<u8>, (&Option<i64>, &Option<i64>))| {
        let item = Item::new(Kind::FieldExpiry).at(format!("field {}", brief(field))).values(show(a), show(b));
        // An expiry told in seconds left moves by a little at every look.
        Element { name: field.clone(), print: print_of(&a.map(|at| at / (8 * tolerance_ms.max(1)))), item }
    };
    differing.map(element).collect()
}

/// The expiry that is meant by the one at the target: a job that lags writes near ones later than they are.
pub fn meant(source_ms: Option<i64>, target_ms: Option<i64>) -> Option<i64> {
    if source_ms.is_some_and(|at| at >= near::SHIFT_MS) { target_ms } else { target_ms.map(near::true_ms) }
}

fn commands(peer: &Peer, hashes: &[(&[u8], &[Vec<u8>])]) -> Commands {
    let mut commands = Commands::new();
    for (key, fields) in hashes.iter().filter(|(_, fields)| !fields.is_empty()) {
        match peer.traits.field_expiry {
            FieldExpiry::None => {}
            FieldExpiry::SecondsLeft => fields.iter().for_each(|field| commands.push(&[b"FIELDTTL", key, field])),
            FieldExpiry::Exact => {
                let count = fields.len().to_string();
                let mut args: Vec<&[u8]> = vec![b"HPEXPIRETIME", key, b"FIELDS", count.as_bytes()];
                args.extend(fields.iter().map(Vec::as_slice));
                commands.push(&args);
            }
        }
    }
    commands
}

/// The answers for `count` fields of one hash; none: no expiry, or no such field.
fn take(peer: &Peer, count: usize, replies: &mut impl Iterator<Item = Value>) -> Vec<Option<i64>> {
    if count == 0 {
        return Vec::new();
    }
    match peer.traits.field_expiry {
        FieldExpiry::None => vec![None; count],
        FieldExpiry::SecondsLeft => {
            let now_ms = peer.server_now_ms();
            let seconds = replies.by_ref().take(count).map(|reply| number(&reply).filter(|left| *left >= 0));
            seconds.map(|left| left.map(|left| now_ms.saturating_add(left.saturating_mul(SECOND_MS)))).collect()
        }
        FieldExpiry::Exact => {
            let mut expiries: Vec<Option<i64>> = match replies.next() {
                Some(Value::Array(times)) => times.iter().map(|at| number(at).filter(|at| *at >= 0)).collect(),
                _ => Vec::new(),
            };
            expiries.resize(count, None);
            expiries
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiries_within_the_tolerance_are_equal() {
        let fields: Vec<Vec<u8>> = [b"a", b"b", b"c", b"d"].iter().map(|f| f.to_vec()).collect();
        let source = [Some(1000), None, Some(5), None];
        assert_eq!(differing(&fields, &source, &[Some(2000), None, Some(5), None], 1000), []);
        let found = differing(&fields, &source, &[Some(2001), Some(1), None, None], 1000);
        let places: Vec<_> = found.iter().filter_map(|element| element.item.place.as_deref()).collect();
        assert_eq!(places, ["field a", "field b", "field c"]);
    }
}
