//! A connection of a worker to a target that is one server: the first one, and, made in the background, another one for one that was
//! lost.
//!
//! In: what must be known of it. Out: the connection; another one is told to the worker by the crew. Invariants: only to the same server
//! process, with its data; the lost one is ended there first, so that what it still holds is never executed behind what comes now.

use super::Crew;
use crate::engine::error::EngineError;
use crate::engine::import;
use crate::engine::patience::{Patience, rest};
use crate::engine::settings::MigrateSettings;
use crate::engine::target::{self, Process, TargetLink};
use crate::engine::wire::Connected;
use crate::ids::DbIndex;
use std::time::Duration;

const RECONNECT_FIRST: Duration = Duration::from_millis(50);
const RECONNECT_LAST: Duration = Duration::from_secs(2);

pub(super) struct Reconnected {
    pub(super) worker: usize,
    pub(super) lane: usize,
    pub(super) generation: u16,
    pub(super) result: Result<Again, EngineError>,
}

/// A connection made again.
pub(super) struct Again {
    pub(super) socket: Connected,
    pub(super) client_id: i64,
    /// Position of the last guarded group that the target applied.
    pub(super) applied: u64,
}

/// What must be known of a lost connection to replace it.
pub(super) struct Lost {
    pub(super) client_id: i64,
    pub(super) marker: Vec<u8>,
    pub(super) marked_dbs: Vec<DbIndex>,
    pub(super) import_mode: bool,
}

impl Crew {
    /// Connects again in the background, with growing pauses, for as long as `--retry-max`.
    pub(super) fn reconnect(&self, worker: usize, lane: usize, generation: u16, lost: Lost) {
        let (settings, process) = (self.plan.settings.clone(), self.plan.process.clone());
        let done = self.reconnected_tx.clone();
        tokio_uring::spawn(async move {
            let result = connect_again(&settings, &process, &lost).await;
            let _ = done.send(Reconnected { worker, lane, generation, result });
        });
    }
}

/// A connection for a worker that begins, and its id at the target. One that is lost while it is made, or that there is no room for, is
/// made again: nothing was sent on it.
pub(super) async fn first_lane(
    settings: &MigrateSettings,
    import_mode: bool,
) -> Result<(TargetLink, i64), EngineError> {
    // A source that has opened its flows waits meanwhile.
    let limit = settings.retry_max.min(settings.connect_timeout);
    let mut patience = Patience::new(limit).shown_in(&settings.control);
    loop {
        match try_first(settings, import_mode).await {
            // A lost connection stays one, as which the session outlives it.
            Err(error @ EngineError::TargetLost(_)) if patience.wait(&error.to_string()).await.is_err() => {
                return Err(error);
            }
            Err(EngineError::TargetLost(_)) => {}
            done => return done,
        }
    }
}

async fn try_first(settings: &MigrateSettings, import_mode: bool) -> Result<(TargetLink, i64), EngineError> {
    let mut link = target::connect_lane(settings).await?;
    if import_mode {
        import::declare(&mut link).await?;
    }
    let client_id = target::client_id(&mut link).await?;
    Ok((link, client_id))
}

async fn connect_again(settings: &MigrateSettings, process: &Process, lost: &Lost) -> Result<Again, EngineError> {
    let deadline = tokio::time::Instant::now() + settings.retry_max;
    let waiting = settings.control.waiting();
    let mut pause = RECONNECT_FIRST;
    loop {
        match try_again(settings, process, lost).await {
            Ok(done) => return Ok(done),
            // Waiting does not help.
            Err(EngineError::Refused(reason)) => return Err(EngineError::Target(reason)),
            Err(error @ EngineError::TargetRestarted(_)) => return Err(error),
            Err(error) if tokio::time::Instant::now() + pause >= deadline => {
                return Err(EngineError::Target(format!(
                    "the connection was lost and could not be made again within {:?} (--retry-max): {error}",
                    settings.retry_max
                )));
            }
            Err(error) => {
                tracing::warn!(%error, ?pause, "connecting to the target again failed");
                waiting.say(&format!("connecting to the target again: {error}"));
                rest(pause).await;
                pause = (pause * 2).min(RECONNECT_LAST);
            }
        }
    }
}

async fn try_again(settings: &MigrateSettings, process: &Process, lost: &Lost) -> Result<Again, EngineError> {
    let mut link = target::connect_lane(settings).await?;
    process.check(&mut link).await?;
    // Bytes of the lost connection may still wait at the target: it must never execute them after what comes now.
    target::end_client(&mut link, lost.client_id).await?;
    let applied = target::applied(&mut link, &lost.marker, &lost.marked_dbs).await?;
    let client_id = target::client_id(&mut link).await?;
    if lost.import_mode {
        import::declare(&mut link).await?;
    }
    Ok(Again { socket: link.hand_over()?, client_id, applied })
}
