//! The walk over one side's keys: SCAN, database by database, primary by primary, and which keys are chosen.
//!
//! Every key that is there from the beginning to the end of a pass is met at least once, also where its slot moves (`round`),
//! or its slot is told. Our own keys at the target are passed over. A sample is chosen by a seeded hash of database and key:
//! the same keys at both sides, and in every run.

use super::image::print_of;
use super::look::Looker;
use super::names::Names;
use super::paged::scan_reply;
use super::peer::{Peer, Side, shown};
use super::round::Round;
use super::settings::{Mode, SampleSize};
use super::state::Position;
use super::wire::Commands;
use crate::engine::cluster::ranges;
use crate::engine::error::EngineError;
use crate::engine::target::OWN_PREFIX;
use crate::ids::Slot;
use crate::redis::value::Value;

pub const PASS_SOURCE: u32 = 0;
pub const PASS_LAST: u32 = 1;
/// Keys passed over that cost the source as much as one that is read.
pub const PASSED_OVER_A_KEY: u64 = 20;
/// A longer SCAN holds a Dragonfly up.
const SCAN_COUNT: &[u8] = b"100";
/// At the target, for the few keys that are ours.
const OWN_SCAN_COUNT: &[u8] = b"1000";
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
    /// Slots of the database that moved all the time: not all of their keys were met.
    pub moving: Vec<(Slot, Slot)>,
}

/// The next keys of one database of this side: about `count`, or fewer where the scan ends.
pub async fn batch(
    peer: &mut Peer,
    db: u32,
    position: &Position,
    choice: (&Choice, &Names),
    count: usize,
) -> Result<Batch, EngineError> {
    let mut batch = Batch { keys: Vec::new(), seen: 0, next: position.clone(), moving: Vec::new() };
    for _ in 0..PAGES_MAX {
        let Some(keys) = page(peer, db, &mut batch.next, &[b"COUNT", SCAN_COUNT]).await? else {
            batch.moving = end_of_nodes(peer, &mut batch.next).await?;
            break;
        };
        batch.seen += keys.len() as u64;
        let keys = keys.into_iter().filter(|key| batch.next.takes(key));
        batch.keys.extend(keys.filter_map(|key| chosen(peer.side, db, key, choice)));
        if batch.keys.len() >= count {
            break;
        }
    }
    batch.keys.sort_unstable();
    batch.keys.dedup();
    Ok(batch)
}

impl Position {
    /// Whether a key that was met, by its name there, counts.
    fn takes(&self, key: &[u8]) -> bool {
        self.round.as_ref().is_none_or(|round| round.takes(key))
    }
}

/// The next page of one database of this side, and one further. None: all nodes were gone through.
async fn page(
    peer: &mut Peer,
    db: u32,
    position: &mut Position,
    how: &[&[u8]],
) -> Result<Option<Vec<Vec<u8>>>, EngineError> {
    if peer.is_cluster() && position.round.is_none() {
        let round = Some(Round::begin(peer).await?);
        *position = Position { node: 0, cursor: "0".into(), round, ..position.clone() };
    }
    let node = match &position.round {
        None => (position.node == 0).then_some(0),
        Some(round) => match round.node(position.node) {
            None => None,
            Some(id) => Some(peer.node_of(id).ok_or_else(|| {
                peer.side.error(format!("the node {id} left the cluster while keys were compared; begin anew"))
            })?),
        },
    };
    let Some(node) = node else { return Ok(None) };
    let mut commands = Commands::new();
    commands.push(&[&[b"SCAN".as_slice(), position.cursor.as_bytes()], how].concat());
    let reply = peer.ask_node(node, db, &commands).await.map_err(|error| peer.engine(error))?.pop();
    if let Some(error @ Value::Error(_)) = &reply {
        return Err(peer.said(node, &format!("SCAN was answered with {}", shown(error))));
    }
    let (cursor, keys) =
        reply.and_then(scan_reply).ok_or_else(|| peer.said(node, "SCAN was answered in an unknown form"))?;
    position.cursor = String::from_utf8_lossy(&cursor).into_owned();
    if cursor == b"0" {
        position.node += 1;
    }
    Ok(Some(keys))
}

/// All nodes were gone through: on to those of slots that moved meanwhile, or to the next database. Returns the slots that never
/// stood still.
async fn end_of_nodes(peer: &mut Peer, position: &mut Position) -> Result<Vec<(Slot, Slot)>, EngineError> {
    let round = match position.round.take() {
        Some(round) => round.next(peer).await?,
        None => Round::default(),
    };
    if round.is_last() {
        *position = next_database(position);
        return Ok(round.left);
    }
    *position = Position { node: 0, cursor: "0".into(), round: Some(round), ..position.clone() };
    Ok(Vec::new())
}

/// What is said of slots that never stood still.
pub fn moving_text(side: Side, moving: &[(Slot, Slot)]) -> String {
    format!(
        "slots {} of the {} moved all the time that their keys were gone through, or a move was begun and never ended: let the \
         moving end and compare again",
        ranges(moving),
        side.name()
    )
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
    Position { database: position.database + 1, node: 0, cursor: "0".into(), round: None, ..position.clone() }
}

/// The pass after this one.
pub fn next_pass(position: &Position) -> Position {
    Position { pass: position.pass + 1, cursor: "0".into(), ..Position::default() }
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
    let pattern = format!("{OWN_PREFIX}{kind}*");
    let (mut own, mut position) = (0, Position { cursor: "0".into(), ..Position::default() });
    while position.database == 0 {
        match page(peer, db, &mut position, &[b"MATCH", pattern.as_bytes(), b"COUNT", OWN_SCAN_COUNT]).await? {
            Some(keys) => own += keys.iter().filter(|key| position.takes(key)).count() as u64,
            None => match end_of_nodes(peer, &mut position).await?.as_slice() {
                [] => {}
                moving => return Err(peer.side.error(moving_text(peer.side, moving))),
            },
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
