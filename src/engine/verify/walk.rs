//! The walk over one side's keys: SCAN, database by database, primary by primary, and which keys are chosen.
//!
//! Every key that is there from the beginning to the end of a pass is met at least once. Our own keys at the target are
//! passed over. A sample is chosen by a seeded hash of database and key: the same keys at both sides, and in every run.

use super::image::print_of;
use super::look::Looker;
use super::names::Names;
use super::paged::scan_reply;
use super::peer::{Peer, Side, shown};
use super::settings::{Mode, SampleSize};
use super::state::Position;
use super::wire::Commands;
use crate::engine::error::EngineError;
use crate::engine::target::OWN_PREFIX;
use crate::redis::value::Value;

pub const PASS_SOURCE: u32 = 0;
pub const PASS_LAST: u32 = 1;
/// Keys passed over that cost the source as much as one that is read.
pub const PASSED_OVER_A_KEY: u64 = 20;
/// A longer SCAN holds a Dragonfly up.
const SCAN_COUNT: u64 = 100;
/// Pages of one batch in which nothing was chosen: then it ends all the same, so that the position moves on.
const PAGES_MAX: u32 = 50;

/// Which keys are compared.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    mode: Mode,
    /// Keys whose hash is not above this are chosen.
    threshold: u64,
}

impl Choice {
    /// `keys`: how many the source has.
    pub fn new(mode: Mode, keys: u64) -> Self {
        let share = match mode {
            Mode::Count | Mode::Full => 1.0,
            Mode::Sample { size: SampleSize::Percent(percent), .. } => percent / 100.0,
            Mode::Sample { size: SampleSize::Keys(wanted), .. } => wanted as f64 / keys.max(1) as f64,
        };
        let threshold = if share >= 1.0 { u64::MAX } else { (share.max(0.0) * u64::MAX as f64) as u64 };
        Self { mode, threshold }
    }

    pub fn takes(&self, db: u32, key: &[u8]) -> bool {
        match self.mode {
            Mode::Sample { seed, .. } => print_of(&(seed, db, key)) <= self.threshold,
            _ => true,
        }
    }

    /// For the state file.
    pub fn name(&self) -> String {
        match self.mode {
            Mode::Count => "count".into(),
            Mode::Full => "full".into(),
            Mode::Sample { seed, size: SampleSize::Keys(keys) } => format!("sample of {keys} keys, seed {seed}"),
            Mode::Sample { seed, size: SampleSize::Percent(percent) } => format!("sample of {percent}%, seed {seed}"),
        }
    }
}

pub struct Batch {
    /// Chosen keys by their names at the source, each once.
    pub keys: Vec<Vec<u8>>,
    /// Keys that SCAN gave.
    pub seen: u64,
    pub next: Position,
}

/// The next keys of one database of this side at one node: about `count`, or fewer where the scan ends.
pub async fn batch(
    peer: &mut Peer,
    db: u32,
    position: &Position,
    choice: (&Choice, &Names),
    count: usize,
) -> Result<Batch, EngineError> {
    let primaries = peer.primaries();
    let Some(node) = primaries.get(position.node).copied() else {
        return Ok(Batch { keys: Vec::new(), seen: 0, next: next_database(position) });
    };
    let mut batch = Batch { keys: Vec::new(), seen: 0, next: position.clone() };
    for _ in 0..PAGES_MAX {
        let mut commands = Commands::new();
        let cursor = batch.next.cursor.as_bytes();
        commands.push(&[b"SCAN", cursor, b"COUNT", SCAN_COUNT.to_string().as_bytes()]);
        let reply = peer.ask_node(node, db, &commands).await.map_err(|error| peer.engine(error))?.pop();
        if let Some(error @ Value::Error(_)) = &reply {
            return Err(peer.said(node, &format!("SCAN was answered with {}", shown(error))));
        }
        let (cursor, keys) =
            reply.and_then(scan_reply).ok_or_else(|| peer.said(node, "SCAN was answered in an unknown form"))?;
        batch.seen += keys.len() as u64;
        batch.keys.extend(keys.into_iter().filter_map(|key| chosen(peer.side, db, key, choice)));
        batch.next.cursor = String::from_utf8_lossy(&cursor).into_owned();
        if cursor == b"0" {
            batch.next.node += 1;
            break;
        }
        if batch.keys.len() >= count {
            break;
        }
    }
    batch.keys.sort_unstable();
    batch.keys.dedup();
    Ok(batch)
}

/// The name at the source of a key that is compared.
fn chosen(side: Side, db: u32, key: Vec<u8>, (choice, names): (&Choice, &Names)) -> Option<Vec<u8>> {
    let (db, key) = match side {
        Side::Source => names.admits(db, &key).then_some((db, key))?,
        Side::Target if key.starts_with(OWN_PREFIX.as_bytes()) => return None,
        Side::Target => {
            let origin = names.source_db(db)?;
            (origin, names.source_of(origin, &key)?)
        }
    };
    choice.takes(db, &key).then_some(key)
}

/// The database after this one.
pub fn next_database(position: &Position) -> Position {
    Position { database: position.database + 1, node: 0, cursor: "0".into(), ..position.clone() }
}

/// The pass after this one.
pub fn next_pass(position: &Position) -> Position {
    Position { pass: position.pass + 1, database: 0, node: 0, cursor: "0".into() }
}

/// Keys of a database of the source at both sides, without ours.
pub async fn counts(looker: &mut Looker, db: u32) -> Result<(u64, u64), EngineError> {
    let target_db = looker.names.target_db(db)?;
    let (source, target) = tokio::join!(looker.source.count(db), looker.target.count(target_db));
    let (source, mut target) = (source?, target?);
    if source != target {
        // Only then, for it is a walk over all keys.
        target = target.saturating_sub(own_keys(&mut looker.target, target_db, "").await?);
    }
    Ok((source, target))
}

/// Keys of ours in one database, of a kind: what follows the prefix.
pub async fn own_keys(peer: &mut Peer, db: u32, kind: &str) -> Result<u64, EngineError> {
    let mut own = 0;
    for node in peer.primaries() {
        let mut cursor = b"0".to_vec();
        loop {
            let mut commands = Commands::new();
            let pattern = format!("{OWN_PREFIX}{kind}*");
            commands.push(&[b"SCAN", &cursor, b"MATCH", pattern.as_bytes(), b"COUNT", b"1000"]);
            let reply = peer.ask_node(node, db, &commands).await.map_err(|error| peer.engine(error))?.pop();
            let (next, keys) =
                reply.and_then(scan_reply).ok_or_else(|| peer.said(node, "SCAN was answered in an unknown form"))?;
            own += keys.len() as u64;
            if next == b"0" {
                break;
            }
            cursor = next;
        }
    }
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(size: SampleSize, seed: u64) -> usize {
        let choice = Choice::new(Mode::Sample { size, seed }, 10_000);
        (0..10_000).filter(|i| choice.takes(0, format!("key:{i}").as_bytes())).count()
    }

    #[test]
    fn a_sample_has_about_its_size_and_depends_on_its_seed() {
        assert!((80..120).contains(&chosen(SampleSize::Percent(1.0), 1)));
        assert!((2300..2700).contains(&chosen(SampleSize::Keys(2500), 2)));
        assert_eq!(chosen(SampleSize::Keys(20_000), 3), 10_000);
        assert_eq!(chosen(SampleSize::Percent(100.0), 3), 10_000);
        assert_eq!(chosen(SampleSize::Percent(0.0), 3), 0);
        let of = |seed| Choice::new(Mode::Sample { size: SampleSize::Percent(50.0), seed }, 1);
        assert!((0..100u8).any(|i| of(1).takes(0, &[i]) != of(2).takes(0, &[i])));
        assert!((0..100u8).all(|i| of(1).takes(0, &[i]) == of(1).takes(0, &[i])));
    }
}
