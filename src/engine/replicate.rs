//! `replicate`: a full sync, then the journal, until stopped; and every way back after a loss.
//!
//! In: a checkpoint at the target, or none. Out: the target kept in step. This is what decides what follows a session; how one
//! begins is `beginning`, how the target is met again `meeting`. A session is one registration at the source; it
//! begins as a partial sync from the checkpoint where both sides can, else as a full sync. Invariants: a session begins
//! only after every data connection of an earlier one (also of a dead process) was ended at the target, so the positions
//! that it reads are final; a lost position never empties the target unless the operator said so.

use super::checkpoint::{self, Checkpoint};
use super::draining::positions_text;
use super::error::EngineError;
use super::import::{self, ImportMode};
use super::job::{Job, Signals, graver};
use super::migrate::ATTEMPTS_MAX;
use super::patience::rest;
use super::phase::Phase;
use super::settings::{OnExisting, OnLostPosition};
use super::standing;
use super::target::{self, Target, TargetLink};
use crate::dragonfly::session::SessionError;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

mod beginning;
mod meeting;

use beginning::{Begin, Begun};
use meeting::Met;
pub(super) use meeting::same_target;

const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LAST: Duration = Duration::from_secs(5);
/// Full syncs in a row that may be lost with the source before the run ends: each one costs the source.
const FULL_SYNCS_MAX: u32 = 4;
/// Tries, about five seconds apart, to reach a source that went away inside a full sync: about five minutes.
const AWAY_TRIES_MAX: u32 = 60;

/// Says so where near expiries cannot be held back.
pub(super) fn warn_where_nothing_is_held(probed: &Target) {
    if !probed.capabilities.holds_expiries() {
        tracing::warn!(
            "the target's user may not run scripts, or not what they ask (+eval +pttl +pexpiretime +time +type +hlen +hkeys +hscan \
             +scan, and +hpexpiretime where fields expire), so near expiries cannot be held back: keys that the source renews \
             while the target is behind may vanish"
        );
    }
}

impl Job<'_> {
    pub(super) async fn replicate(&mut self) -> Result<(), EngineError> {
        let mut signals = Signals::new(self.settings.control.clone())?;
        let result = self.replicate_until_stopped(&mut signals).await;
        self.outlast_cutover(&mut signals).await;
        for lost in std::mem::take(&mut self.lost) {
            self.report.expiries.not_fetched += 1;
            self.add_not_carried(&super::rows::vanished(lost));
        }
        if self.import_mode == ImportMode::Ours && self.keeps_import_mode(&result) {
            tracing::warn!(
                "the target stays in import mode, and expires nothing, until the job goes on (else: CONFIG SET import-mode no)"
            );
        } else if !matches!(result, Err(EngineError::LeaseLost(_))) {
            tokio::select! {
                _ = self.end_import_mode() => {}
                () = signals.next() => {
                    tracing::error!("stopped while import mode was turned off at the target: CONFIG SET import-mode no");
                }
            }
        }
        result
    }

    /// Turns the target's import mode off where this job turned it on; says why it could not.
    pub(super) async fn end_import_mode(&mut self) -> Result<(), String> {
        if self.import_mode != ImportMode::Ours {
            return Ok(());
        }
        let ended = async { import::end(&mut target::connect_control(&self.settings).await?).await };
        ended.await.map_err(|error| {
            tracing::error!(%error, "import mode could not be turned off at the target: CONFIG SET import-mode no");
            format!("the target is in import mode, and expires nothing (CONFIG SET import-mode no): {error}")
        })?;
        // Not once more: from now on another job may turn it on.
        self.import_mode = ImportMode::Off;
        Ok(())
    }

    /// The job goes on later: until then the target must not let expire what the source may have renewed, as after a kill.
    fn keeps_import_mode(&self, ended: &Result<(), EngineError>) -> bool {
        self.resumable
            && match ended {
                Ok(()) | Err(EngineError::Void(_) | EngineError::LostPosition(_) | EngineError::LeaseLost(_)) => false,
                // As with expiries that are held back: they are put right only where the source's positions were reached.
                Err(EngineError::Interrupted) => !self.put_right,
                Err(_) => true,
            }
    }

    async fn replicate_until_stopped(&mut self, signals: &mut Signals) -> Result<(), EngineError> {
        let settings = self.settings.clone();
        if settings.on_existing == OnExisting::Skip {
            return Err(EngineError::Refused(
                "--on-existing skip cannot be kept over a restart, when the target holds this job's own keys; use replace \
                 or flush"
                    .into(),
            ));
        }
        let (mut target, mut probed) = signals.interruptible(self.first_contact()).await?;
        signals.interruptible(self.take_lease(&mut target, &mut probed)).await?;
        signals.interruptible(target::end_lanes(&mut target, &settings)).await?;
        let mut begin = signals.interruptible(self.first_begin(&mut target, &probed)).await?;
        // Other jobs have their own times for it.
        probed.capabilities.import_mode &= !settings.shared_target;
        if probed.capabilities.import_mode {
            signals.interruptible(import::begin(&mut target, &mut self.import_mode)).await?;
        }
        probed.capabilities.import_mode = self.import_mode != ImportMode::Off;
        self.report.expiries.import_mode = probed.capabilities.import_mode;
        if !probed.capabilities.import_mode {
            warn_where_nothing_is_held(&probed);
        }
        let (mut attempt, mut pause) = (1, RETRY_FIRST);
        let mut losses = Losses::default();
        // Since when no session has come to the journal because of the target.
        let mut target_lost: Option<Instant> = None;
        loop {
            let error = match self.session(&mut target, &probed, begin, signals).await {
                Ok(()) => return self.hand_over(&probed, None, signals).await,
                Err(error) => error.once_begun(settings.control.has_begun()),
            };
            let error = self.check_lease().err().unwrap_or(error);
            let error = self.or_replica(error).await;
            let error = match self.outlive_cutover(&probed, error, signals).await {
                ControlFlow::Break(ended) => return ended,
                ControlFlow::Continue(error) => error,
            };
            if matches!(error, EngineError::LeaseLost(_)) {
                return Err(error);
            }
            let is_torn = matches!(error, EngineError::Torn(_));
            self.resumable &= !is_torn;
            // Perhaps the session ended before it could begin to stop, for a cutover was to be rolled back first.
            let stopping = self.phase == Phase::Stopping || signals.taken() > 0;
            // The source went away while the tool was stopping: what is confirmed is in the checkpoint.
            let error = match error {
                EngineError::Source(_) | EngineError::LetGo(_) if stopping => EngineError::Interrupted,
                error => error,
            };
            // Nothing is begun anew by a job that is to end.
            let is_over = matches!(
                error,
                EngineError::TargetLost(_)
                    | EngineError::TargetRestarted(_)
                    | EngineError::LostPosition(_)
                    | EngineError::SyncVoided { .. }
            );
            if matches!(error, EngineError::Interrupted) || stopping && is_over {
                return Err(error);
            }
            let met = signals.interruptible(self.meet_again(&mut target, &mut probed, &error)).await;
            let Met { restarted, checkpoint } = match met {
                Ok(Some(met)) => met,
                Ok(None) => return Err(error),
                // Nobody may go on from the checkpoint, and it does not say so.
                Err(EngineError::Interrupted) if is_torn || matches!(error, EngineError::Void(_)) => return Err(error),
                Err(error) => return Err(error),
            };
            let owned = checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.owned);
            let master_id = checkpoint.as_ref().map(|checkpoint| checkpoint.master_id.clone()).unwrap_or_default();
            let stable = checkpoint.filter(|checkpoint| checkpoint.stable);
            self.resumable = stable.is_some();
            begin = match error {
                EngineError::SourceIsReplica(text) if self.sessions > 0 => {
                    let why = standing::became_replica(&text);
                    return Err(self.give_up_position(&mut target, stable, why, signals).await);
                }
                EngineError::Void(text) => {
                    return Err(self.give_up_position(&mut target, stable, text, signals).await);
                }
                // Whatever ended the session, another process answers now.
                _ if restarted.is_some() => Begin::Resume(self.kept_by_restart(stable, restarted.as_deref())?),
                EngineError::SyncVoided { flow, command } if owned && attempt < ATTEMPTS_MAX => {
                    tracing::warn!(flow, %command, "the source was flushed during the full sync: beginning anew");
                    attempt += 1;
                    match signals.interruptible(standing::check(&settings, &master_id)).await {
                        Ok(()) => signals.interruptible(self.full_again(&mut target)).await?,
                        // It is waited for, and looked at again.
                        Err(EngineError::Source(_) | EngineError::Void(_)) => Begin::Again,
                        Err(EngineError::SourceIsReplica(text)) => {
                            return Err(EngineError::Source(standing::became_replica(&text)));
                        }
                        Err(error) => return Err(error),
                    }
                }
                EngineError::LostPosition(text)
                    if owned
                        && settings.follow.as_ref().is_some_and(|f| f.on_lost_position == OnLostPosition::Resync) =>
                {
                    tracing::warn!(%text, "position lost: taking a full sync again");
                    Begin::Again
                }
                EngineError::TargetLost(text) => {
                    let Some(checkpoint) = stable else { return Err(EngineError::TargetLost(text)) };
                    let since = *target_lost.get_or_insert_with(Instant::now);
                    if since.elapsed() > settings.retry_max {
                        return Err(EngineError::TargetLost(format!(
                            "{text} (tried again for {:?})",
                            settings.retry_max
                        )));
                    }
                    tracing::warn!(%text, ?pause, "lost a connection to the target: going on from the checkpoint");
                    self.wait_for(&format!("target: {text}"));
                    self.confirmed = checkpoint.lsns.iter().map(|lsn| lsn.0).collect();
                    tokio::select! {
                        () = rest(pause) => {}
                        () = signals.next() => return Err(EngineError::Interrupted),
                    }
                    pause = (pause * 2).min(RETRY_LAST);
                    Begin::Resume(checkpoint)
                }
                EngineError::LetGo(text) if stable.is_none() => return Err(EngineError::Target(text)),
                EngineError::Source(text) | EngineError::LetGo(text) => {
                    self.wait_for(&format!("no session with the source: {text}"));
                    let begin = match stable {
                        Some(checkpoint) => {
                            self.confirmed = checkpoint.lsns.iter().map(|lsn| lsn.0).collect();
                            let positions = positions_text(&self.confirmed);
                            tracing::warn!(%text, ?pause, %positions, "lost the source: going on from the checkpoint");
                            Begin::Resume(checkpoint)
                        }
                        None if owned && (is_loading(&text) || losses.may_begin_again(self.sessions)) => {
                            tracing::warn!(
                                %text,
                                ?pause,
                                full_syncs = self.sessions,
                                "lost the source inside the full sync: beginning anew when it is back"
                            );
                            Begin::Again
                        }
                        None => return Err(EngineError::Source(text)),
                    };
                    tokio::select! {
                        () = rest(pause) => {}
                        () = signals.next() => return Err(EngineError::Interrupted),
                    }
                    pause = (pause * 2).min(RETRY_LAST);
                    begin
                }
                error => return Err(error),
            };
            if self.phase != Phase::Connect {
                // A session that reached the journal starts the pauses anew.
                if matches!(self.phase, Phase::CatchingUp | Phase::InStep | Phase::Draining) {
                    pause = RETRY_FIRST;
                    target_lost = None;
                    if self.resumable {
                        losses = Losses::default();
                    }
                }
                self.enter(Phase::Connect);
            }
        }
    }

    /// A source that was followed and is a replica now is told of as such, by whatever it was noticed.
    async fn or_replica(&self, error: EngineError) -> EngineError {
        let noticed =
            matches!(error, EngineError::SourceIsReplica(_) | EngineError::SourceSaid(_) | EngineError::Corrupt(_));
        match noticed && self.sessions > 0 {
            true => standing::replica_of(&self.settings).await.unwrap_or(error),
            false => error,
        }
    }

    /// What the source would send from the checkpoint's positions on is not of the data that the target holds.
    async fn give_up_position(
        &mut self,
        target: &mut TargetLink,
        stable: Option<Checkpoint>,
        why: String,
        signals: &mut Signals,
    ) -> EngineError {
        let Some(checkpoint) = stable else { return EngineError::Source(why) };
        self.confirmed = checkpoint.lsns.iter().map(|lsn| lsn.0).collect();
        if let Err(error) = signals.interruptible(checkpoint::make_void(target, &checkpoint.key, &why)).await {
            tracing::error!(%error, key = checkpoint.key, "the checkpoint could not be marked: do not start the job again but with --on-existing flush");
        }
        EngineError::Void(why)
    }

    /// One registration, to its end. Workers are stopped whatever happens.
    async fn session(
        &mut self,
        target: &mut TargetLink,
        probed: &Target,
        begin: Begin,
        signals: &mut Signals,
    ) -> Result<(), EngineError> {
        let Begun { mut source, mut session, mut crew, mut checkpoint } =
            signals.interruptible(self.begin_session(target, probed, begin)).await?;
        self.sessions += 1;
        self.waiting = None;
        self.settings.control.publish_positions(self.sessions, crew.positions());
        let result = self.follow(&mut source, &mut session, &mut crew, probed, &mut checkpoint, signals).await;
        self.confirmed = crew.confirmed();
        // A takeover may have ended the source: then nobody else could say what they lack.
        self.nodes = crew.cluster().filter(|_| self.desk.is_running());
        self.settings.control.forget_positions();
        self.view.forget();
        let (summaries, ended) = crew.stop().await;
        // The names of an earlier session went with it.
        self.report.expiries.held_at_end = 0;
        for summary in summaries {
            self.add_summary(summary);
        }
        graver(result, ended)
    }
}

/// The source is there, and not ready yet.
fn is_loading(error: &str) -> bool {
    error == SessionError::Loading.to_string()
}

/// Full syncs that the source did not see through, in a row. A source that is away is not counted, it is waited for.
#[derive(Default)]
struct Losses {
    full_syncs: u32,
    /// Sessions when the last one was counted.
    sessions: u64,
    /// Tries since then to reach the source.
    tries: u32,
}

impl Losses {
    /// Whether another full sync may be tried after a loss of the source; `sessions`: how many were begun so far.
    fn may_begin_again(&mut self, sessions: u64) -> bool {
        if sessions > self.sessions {
            self.full_syncs += 1;
            self.sessions = sessions;
            self.tries = 0;
        } else if sessions > 0 {
            self.tries += 1;
        }
        // Nothing was begun: an address that is wrong is better said at once.
        sessions > 0 && self.full_syncs < FULL_SYNCS_MAX && self.tries < AWAY_TRIES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_syncs_are_tried_again_only_so_often() {
        let mut losses = Losses::default();
        assert!(!losses.may_begin_again(0), "nothing was begun");
        assert!((1..FULL_SYNCS_MAX.into()).all(|session| losses.may_begin_again(session)));
        assert!(!losses.may_begin_again(FULL_SYNCS_MAX.into()));
        let mut losses = Losses::default();
        let tries = (0..1000).take_while(|_| losses.may_begin_again(1)).count();
        assert_eq!(tries as u32, AWAY_TRIES_MAX);
    }
}
