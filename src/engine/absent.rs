//! Keys that the source may have deleted without recording it (wire 2.10): it is asked whether it has them, beside all else.
//!
//! In: suspects, as the workers list them. Out: which of them the source has, or why it did not say. One list at a time is
//! asked for, on a connection of its own, many keys in one write: there may be so many that one by one they would take minutes.
//! Invariant: what another process does not hold, the one that was copied may have held, so nothing is deleted on its word.

use super::asking::Positions;
use super::error::EngineError;
use super::messages::Lost;
use super::settings::MigrateSettings;
use super::source::Source;
use crate::ids::{DbIndex, Lsn};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Keys of one write.
pub const KEYS_MAX: usize = 256;

/// What became of one list.
pub struct Asked {
    pub keys: Vec<Lost>,
    /// Whether the source has them.
    pub exist: Result<Vec<bool>, EngineError>,
}

/// Keys that the source has, by its own word. What it recorded before it was asked may say that they were deleted, and made anew,
/// for which the flows know them still: until the flows have applied all of that.
#[derive(Default)]
pub struct Present {
    keys: Vec<Lost>,
    asked_ns: u64,
    /// The source's positions behind the last question.
    until: Option<Vec<Lsn>>,
}

impl Present {
    pub fn add(&mut self, keys: impl Iterator<Item = Lost>, now_ns: u64) {
        self.keys.extend(keys);
        (self.asked_ns, self.until) = (now_ns, None);
    }

    /// The source's positions are to be asked for.
    pub fn wants_positions(&self) -> bool {
        !self.keys.is_empty() && self.until.is_none()
    }

    pub fn heard(&mut self, positions: &Positions) {
        if self.wants_positions() && positions.asked_ns >= self.asked_ns {
            self.until = Some(positions.lsns.clone());
        }
    }

    pub fn is_passed(&self, confirmed: &[u64]) -> bool {
        let passed = |until: &Vec<Lsn>| until.iter().zip(confirmed).all(|(lsn, applied)| *applied >= lsn.0);
        self.keys.is_empty() || self.until.as_ref().is_some_and(passed)
    }

    /// They are not waited for any more.
    pub fn take(&mut self) -> Vec<Lost> {
        std::mem::take(&mut self.keys)
    }
}

pub struct Absent {
    settings: Arc<MigrateSettings>,
    /// The process that was copied.
    process: String,
    waiting: VecDeque<Vec<Lost>>,
    running: Option<oneshot::Receiver<Asked>>,
}

impl Absent {
    pub fn new(settings: &Arc<MigrateSettings>, process: &str) -> Self {
        Self { settings: settings.clone(), process: process.to_string(), waiting: VecDeque::new(), running: None }
    }

    pub fn want(&mut self, keys: Vec<Lost>) {
        self.waiting.push_back(keys);
        self.look();
    }

    fn look(&mut self) {
        if self.running.is_some() {
            return;
        }
        let Some(keys) = self.waiting.pop_front() else { return };
        let (mut done, running) = oneshot::channel();
        self.running = Some(running);
        let (settings, process) = (self.settings.clone(), self.process.clone());
        tokio_uring::spawn(async move {
            let exist = tokio::select! {
                exist = ask(&settings, &process, &keys) => exist,
                // The session is over.
                () = done.closed() => return,
            };
            let _ = done.send(Asked { keys, exist });
        });
    }

    /// The next list that is done with. May be dropped at any time.
    pub async fn answer(&mut self) -> Asked {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let asked = running.await;
        self.running = None;
        self.look();
        asked.unwrap_or_else(|_| {
            let ended = EngineError::Internal("asking for suspects ended without a word".into());
            Asked { keys: Vec::new(), exist: Err(ended) }
        })
    }
}

/// A connection that asks the process that was copied which of `count` keys it has.
pub async fn ask_again(settings: &MigrateSettings, process: &str, count: usize) -> Result<Source, EngineError> {
    let source = Source::connect(&settings.source, settings.connect_timeout).await?;
    if source.is_other_than(process) {
        return Err(EngineError::Source(format!(
            "it was restarted, or failed over, before it was asked for {count} keys that it may have deleted without recording it \
             (wire 2.10): the target may hold some of them too many. Run again"
        )));
    }
    Ok(source)
}

async fn ask(settings: &MigrateSettings, process: &str, keys: &[Lost]) -> Result<Vec<bool>, EngineError> {
    let mut source = ask_again(settings, process, keys.len()).await?;
    let mut exist = Vec::new();
    for some in keys.chunks(KEYS_MAX) {
        let names: Vec<(DbIndex, &[u8])> = some.iter().map(|lost| (lost.db, lost.key.as_slice())).collect();
        exist.extend(source.exist(&names).await?);
    }
    Ok(exist)
}
