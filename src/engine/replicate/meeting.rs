//! The target met again: behind the end of a session, or on a fresh connection while one goes on.
//!
//! In: what the target was at the start, and why the session ended. Out: a connection to the same server, with the data that it had; or what
//! the checkpoint says of another moment's data. Invariant: no connection is used of which the server may be another one.

use super::{RETRY_FIRST, RETRY_LAST};
use crate::engine::checkpoint::{self, Checkpoint};
use crate::engine::error::EngineError;
use crate::engine::import::{self, ImportMode};
use crate::engine::job::Job;
use crate::engine::own;
use crate::engine::patience::rest;
use crate::engine::settings::MigrateSettings;
use crate::engine::target::{self, Target, TargetLink};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The target behind the end of a session.
pub(super) struct Met {
    /// Why it may hold another moment's data: it is another process, or in a cluster another node, than before, or was a replica.
    pub(super) restarted: Option<String>,
    pub(super) checkpoint: Option<Checkpoint>,
}

impl Job<'_> {
    /// The target again behind the end of a session, and what its checkpoint says. `None`: why the session ended is worth more than
    /// what is heard of a target that is gone, or it leaves nothing to go on from.
    pub(super) async fn meet_again(
        &mut self,
        target: &mut TargetLink,
        probed: &mut Target,
        ended: &EngineError,
    ) -> Result<Option<Met>, EngineError> {
        let is_torn = matches!(ended, EngineError::Torn(_));
        let mut restarted = match ended {
            EngineError::TargetRestarted(why) => Some(why.clone()),
            _ => None,
        };
        // A fresh connection: the target may have closed one that was idle.
        match self.control_patiently(probed, ended).await {
            Ok(fresh) => *target = fresh,
            Err(EngineError::TargetRestarted(why)) => {
                restarted = Some(why);
                (*target, *probed) = self.first_target().await?;
                // A new process begins without it.
                if self.import_mode != ImportMode::Off {
                    import::begin(target, &mut self.import_mode).await?;
                }
                probed.capabilities.import_mode = self.import_mode != ImportMode::Off;
            }
            Err(_) if is_torn || matches!(ended, EngineError::Target(_) | EngineError::TargetLost(_)) => {
                return Ok(None);
            }
            Err(gone) => return Err(gone),
        }
        let key = own::checkpoint_key(&self.settings);
        if is_torn {
            checkpoint::tear(target, &key).await?;
            return Ok(None);
        }
        let found = async {
            target::end_lanes(target, &self.settings).await?;
            checkpoint::read(target, &key).await
        };
        match found.await {
            Ok(checkpoint) => Ok(Some(Met { restarted, checkpoint })),
            // A node of a cluster that was given up is asked once more, and says no more than that: what it was waited for is said.
            Err(_) if matches!(ended, EngineError::Target(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The target was restarted, or copied another server's data: it has the data that its checkpoint tells of, or none.
    pub(super) fn kept_by_restart(
        &self,
        stable: Option<Checkpoint>,
        why: Option<&str>,
    ) -> Result<Checkpoint, EngineError> {
        let why = why.unwrap_or(target::RESTARTED);
        let Some(checkpoint) = stable.filter(|checkpoint| checkpoint.scope == self.settings.scope.fingerprint()) else {
            return Err(EngineError::TargetRestarted(format!("{why}, and it holds no good checkpoint now")));
        };
        // Data and positions are of one transaction, so they are of one moment, even where the last second was lost.
        let lost: u64 =
            self.confirmed.iter().zip(&checkpoint.lsns).map(|(acked, held)| acked.saturating_sub(held.0)).sum();
        tracing::warn!(
            lost_records = lost,
            "the target was restarted with its data, or was a replica and copied another server's (of a cluster: a node was restarted, or a \
             replica took over): going on from its checkpoint"
        );
        Ok(checkpoint)
    }

    /// A fresh control connection to the same server process.
    pub(in crate::engine) async fn control_again(&self, probed: &Target) -> Result<TargetLink, EngineError> {
        self.control_again_within(probed, self.settings.retry_max).await
    }

    /// The same with another patience for what the target refuses.
    pub(in crate::engine) async fn control_again_within(
        &self,
        probed: &Target,
        patience: Duration,
    ) -> Result<TargetLink, EngineError> {
        same_target(&self.settings, probed, patience).await
    }

    /// The same, as long as `--retry-max` where the target can be waited for: not behind an error of its own.
    pub(in crate::engine) async fn control_patiently(
        &self,
        probed: &Target,
        ended: &EngineError,
    ) -> Result<TargetLink, EngineError> {
        let is_given_up = matches!(ended, EngineError::Target(_));
        // It has been waited for already.
        let patience = if is_given_up { Duration::ZERO } else { self.settings.retry_max };
        let deadline = Instant::now() + self.settings.retry_max;
        let mut pause = RETRY_FIRST;
        loop {
            let begun = self.settings.control.has_begun();
            match self.control_again_within(probed, patience).await.map_err(|error| error.once_begun(begun)) {
                Err(EngineError::TargetLost(text)) if !is_given_up && Instant::now() + pause < deadline => {
                    tracing::warn!(%text, ?pause, "the target cannot be reached: trying again");
                    rest(pause).await;
                    pause = (pause * 2).min(RETRY_LAST);
                }
                done => return done,
            }
        }
    }
}

/// A fresh control connection to the same server process, whose refusals are waited out for so long.
pub(in crate::engine) async fn same_target(
    settings: &Arc<MigrateSettings>,
    probed: &Target,
    patience: Duration,
) -> Result<TargetLink, EngineError> {
    let mut link = target::connect_control_within(settings, patience).await?;
    link.must_be(&probed.process).await?;
    if probed.capabilities.import_mode {
        import::declare(&mut link).await?;
    }
    Ok(link)
}
