//! A partial sync from a source before 1.35, on the control connection: DFLY SYNC, blobs, STARTSTABLE (wire 1.7).
//!
//! In: the replies, and what the flows say. Out: STARTSTABLE, once every flow is at FULLSYNC_END (wire 1.6: not before). The
//! flows apply and count the records of the blobs as they do with the journal later (`stable`). Invariant: a global command
//! that reached one flow before its FULLSYNC_END and another one behind it would wait for ever, as the other's blob may
//! come only with STARTSTABLE: then the session ends, and the next one finds the command in every backlog.

use super::crew::Crew;
use super::error::EngineError;
use super::link::Link;
use super::messages::WorkerEvent;
use super::source::{PhaseAnswer, Source};
use crate::dragonfly::reply::Reply;
use std::collections::BTreeSet;

pub struct Joining {
    answer: Option<PhaseAnswer>,
    /// The command that is being answered, or was.
    command: &'static str,
    flows: u32,
    /// Flows at FULLSYNC_END.
    ended: BTreeSet<u32>,
    done: bool,
}

impl Joining {
    /// Nothing is to be done: the flows are in stable sync.
    pub fn none() -> Self {
        Self { answer: None, command: "", flows: 0, ended: BTreeSet::new(), done: true }
    }

    /// Sends DFLY SYNC.
    pub fn begin(source: &mut Source, flows: u32) -> Result<Self, EngineError> {
        let answer = Some(source.sync_partial()?);
        Ok(Self { answer, command: "SYNC", flows, ended: BTreeSet::new(), done: false })
    }

    pub fn is_done(&self) -> bool {
        self.done
    }

    /// The reply to the command under way; never, without one. May be dropped and called again.
    pub async fn answer(&mut self) -> Result<(Link, Reply), EngineError> {
        let reply = match &mut self.answer {
            Some(answer) => answer.await,
            None => std::future::pending().await,
        };
        self.answer = None;
        reply
    }

    /// The reply came: the connection is the source's again.
    pub fn answered(&mut self, source: &mut Source, (link, reply): (Link, Reply)) -> Result<(), EngineError> {
        source.answered(link);
        if reply != Reply::Simple(b"OK".to_vec()) {
            return Err(EngineError::Source(format!("the source answered DFLY {} with {reply:?}", self.command)));
        }
        self.done = self.command == "STARTSTABLE";
        Ok(())
    }

    /// What a worker said.
    pub fn event(&mut self, event: &WorkerEvent) {
        if let WorkerEvent::FullSyncEnd { flow } = event {
            self.ended.insert(flow.0);
        }
    }

    /// Sends STARTSTABLE if it is time.
    pub fn go_on(&mut self, source: &mut Source, crew: &Crew) -> Result<(), EngineError> {
        if self.done || self.answer.is_some() || self.command != "SYNC" {
            return Ok(());
        }
        if self.ended.len() == self.flows as usize {
            self.command = "STARTSTABLE";
            self.answer = Some(source.start_partial()?);
            return Ok(());
        }
        let at_barrier: BTreeSet<u32> = crew.at_barrier().map(|flow| flow.0).collect();
        let all_wait = (0..self.flows).all(|flow| at_barrier.contains(&flow) || self.ended.contains(&flow));
        let all_at_barrier = at_barrier.len() == self.flows as usize;
        if all_wait && !all_at_barrier && !at_barrier.is_empty() {
            return Err(EngineError::Source(
                "a global command came while the flows of a partial sync were joining: registering again".into(),
            ));
        }
        Ok(())
    }
}
