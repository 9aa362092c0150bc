//! The question where the source stands, on its control connection: at most one under way.
//!
//! In: the connection while it is free. Out: the source's positions with the time of the question, and how long an answer is
//! owed. Invariants: a late answer ends nothing, for a healthy source holds its commands now and then (`CLIENT PAUSE ... ALL`,
//! a long transaction) while the flows go on; that only the lag is not known meanwhile is for the caller to say. A connection
//! that ends is an error at once, one whose machine is gone as soon as the kernel knows (`Link::watch_life`).

use super::error::EngineError;
use super::source::{PhaseAnswer, Source};
use crate::ids::Lsn;
use crate::uring::clock;
use std::time::Duration;

/// An answer that is owed for longer is late.
const LATE_NS: u64 = Duration::from_secs(3).as_nanos() as u64;

/// Where the source stood.
pub struct Positions {
    /// When it was asked, as Unix time: what it did before is contained.
    pub asked_ms: i64,
    /// The same on this machine's steady clock.
    pub asked_ns: u64,
    pub lsns: Vec<Lsn>,
}

#[derive(Default)]
pub struct Asking {
    answer: Option<PhaseAnswer>,
    asked_ms: i64,
    asked_ns: u64,
}

impl Asking {
    /// Asks, unless the connection is in use.
    pub fn ask(&mut self, source: &mut Source) -> Result<(), EngineError> {
        if source.is_free() {
            (self.asked_ms, self.asked_ns) = (clock::realtime_ms() as i64, clock::monotonic_ns());
            self.answer = Some(source.ask_offsets()?);
        }
        Ok(())
    }

    /// The answer is owed for longer than any that comes at once.
    pub fn is_late(&self) -> bool {
        self.answer.is_some() && clock::monotonic_ns().saturating_sub(self.asked_ns) > LATE_NS
    }

    /// The answer; never, if nothing was asked. The connection is the source's again. May be dropped and called again.
    pub async fn answer(&mut self, source: &mut Source) -> Result<Positions, EngineError> {
        let answer = match &mut self.answer {
            Some(answer) => answer.await,
            None => std::future::pending().await,
        };
        self.answer = None;
        let (link, reply) = answer?;
        source.answered(link);
        Ok(Positions { asked_ms: self.asked_ms, asked_ns: self.asked_ns, lsns: source.offsets_of(&reply)? })
    }
}
