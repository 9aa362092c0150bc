//! The source is gone, or was let go, or the job is told to stop, and what was read of the source's journal is not applied yet:
//! drain, then end the session.
//!
//! In: why the source is left, what the workers say. Out: the session's end, once every worker has applied what it has. A
//! source's backlog may reach back for seconds only, and what was read is all that is left of the time before: so it is
//! applied first, and the next session asks for what follows. Invariants: the registration is over at the source before
//! anything else is done, so that it waits for nobody; nothing is asked here of a source that is gone; what is not whole, and a global
//! command that not every flow has reached, is not applied, and no position is behind it.

use super::crew::Crew;
use super::error::EngineError;
use super::job::Job;
use super::messages::WorkerCommand;
use super::phase::Phase;
use super::source::Source;
use crate::report::numbers;
use crate::uring::clock::monotonic_ns;

/// How often the log says how much is left.
const SAID_EVERY_NS: u64 = 5_000_000_000;

/// A session that is to end when everything read is applied.
pub(super) struct Draining {
    /// What the session ends with.
    cause: EngineError,
    since_ns: u64,
    said_ns: u64,
    /// Positions confirmed when it began.
    before: Vec<u64>,
    /// By worker: releases of global commands when it last said that it had applied everything.
    spent: Vec<Option<u64>>,
}

impl Draining {
    /// The source is not there, or not to be asked: it was not left because the job stops.
    pub fn lacks_source(this: Option<&Self>) -> bool {
        this.is_some_and(|draining| !matches!(draining.cause, EngineError::Interrupted))
    }

    /// A worker has nothing left.
    pub fn spent(&mut self, worker: usize, releases: u64) {
        if let Some(spent) = self.spent.get_mut(worker) {
            *spent = Some(releases);
        }
    }

    /// Everything read is applied; `releases`: global commands that were released so far.
    pub fn is_over(&self, releases: u64) -> bool {
        self.spent.iter().all(|spent| *spent == Some(releases))
    }
}

impl Job<'_> {
    /// Ends the registration and has everything that was read applied. A job that stops does so too, so that no writer of the source
    /// waits for it.
    pub(super) fn begin_draining(&mut self, source: &mut Source, crew: &Crew, cause: EngineError) -> Draining {
        source.leave();
        // Who is let go is not read on: there is nowhere to put it, or it comes again.
        let read_on = !matches!(cause, EngineError::LetGo(_) | EngineError::Interrupted);
        let asks = matches!(cause, EngineError::Interrupted);
        crew.tell_all(|| WorkerCommand::LeaveSource { read_on, asks });
        if self.phase != Phase::Stopping {
            tracing::warn!(%cause, "the source is gone: applying what was read, then registering again");
            self.enter(Phase::Draining);
        }
        self.view.forget();
        let now_ns = monotonic_ns();
        Draining {
            cause,
            since_ns: now_ns,
            said_ns: now_ns,
            before: crew.confirmed(),
            spent: vec![None; crew.workers()],
        }
    }

    /// Says now and then how much is left.
    pub(super) fn tell_draining(&self, draining: &mut Draining) {
        let now_ns = monotonic_ns();
        if now_ns.saturating_sub(draining.said_ns) >= SAID_EVERY_NS {
            draining.said_ns = now_ns;
            let left = numbers::bytes(self.totals.sum().flows.iter().map(|flow| flow.backlog_bytes).sum());
            match self.phase {
                Phase::Stopping => tracing::info!(%left, "stopping: applying what was read"),
                _ => tracing::info!(%left, "the source is gone: applying what was read"),
            }
        }
    }

    /// Counts it, and gives back what the session ends with.
    pub(super) fn end_draining(&mut self, draining: Draining, crew: &Crew) -> EngineError {
        let after = crew.confirmed();
        let records: u64 =
            after.iter().zip(&draining.before).map(|(after, before)| after.saturating_sub(*before)).sum();
        let drains = &mut self.report.drains;
        drains.count += 1;
        drains.records += records;
        drains.ms += monotonic_ns().saturating_sub(draining.since_ns) / 1_000_000;
        tracing::info!(records, positions = %positions_text(&after), "everything that was read is applied");
        draining.cause
    }
}

/// What the target holds, for people.
pub(super) fn positions_text(next_lsns: &[u64]) -> String {
    let of = |(flow, lsn): (usize, &u64)| format!("flow {flow} up to LSN {}", lsn.saturating_sub(1));
    next_lsns.iter().enumerate().map(of).collect::<Vec<_>>().join(", ")
}
