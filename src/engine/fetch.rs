//! Fetches keys that vanished at the target again from the source, through ordinary commands on a connection of its own.
//!
//! In: names of lost keys. Out: for each its value with the source's positions before and after it was read, or why it
//! cannot be had. All questions about a key leave in one write, so that little can come between them. One batch of keys is
//! under way at a time; the flows go on meanwhile.

use super::doubt::Fetched;
use super::error::EngineError;
use super::messages::{Lost, Wanted};
use super::settings::MigrateSettings;
use super::source::Source;
use crate::dragonfly::reply::Reply;
use crate::ids::Lsn;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Keys of one batch.
const BATCH_MAX: usize = 64;
/// Longest value that is fetched: it stands in memory as a whole.
pub const PAYLOAD_BYTES_MAX: usize = 32 << 20;

/// An answer for the flow that lost the key.
pub struct Answer {
    pub lost: Lost,
    pub question: u64,
    pub answer: Result<Fetched, String>,
}

pub struct Fetcher {
    settings: Arc<MigrateSettings>,
    flows: u32,
    waiting: VecDeque<Wanted>,
    running: Option<oneshot::Receiver<Vec<Answer>>>,
}

impl Fetcher {
    pub fn new(settings: &Arc<MigrateSettings>, flows: u32) -> Self {
        Self { settings: settings.clone(), flows, waiting: VecDeque::new(), running: None }
    }

    /// A worker lost a key.
    pub fn want(&mut self, wanted: Wanted) {
        let lost = &wanted.lost;
        tracing::warn!(flow = %lost.flow, db = %lost.db, key = %lost.key.escape_ascii(),
            "the target lost a key, or a record did not say what became of it: fetching it from the source");
        self.waiting.push_back(wanted);
        self.look();
    }

    fn look(&mut self) {
        if self.running.is_some() || self.waiting.is_empty() {
            return;
        }
        let batch: Vec<Wanted> = self.waiting.drain(..self.waiting.len().min(BATCH_MAX)).collect();
        let (done, running) = oneshot::channel();
        self.running = Some(running);
        let (settings, flows) = (self.settings.clone(), self.flows);
        tokio_uring::spawn(async move {
            // Nobody listens any more if the session is over.
            let _ = done.send(fetch_all(&settings, flows, batch).await);
        });
    }

    /// The answers of the running batch.
    pub async fn answers(&mut self) -> Vec<Answer> {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let answers = running.await;
        self.running = None;
        self.look();
        answers.unwrap_or_default()
    }
}

async fn fetch_all(settings: &MigrateSettings, flows: u32, batch: Vec<Wanted>) -> Vec<Answer> {
    let mut source = Source::connect(&settings.source, settings.connect_timeout).await.map_err(|e| e.to_string());
    let mut answers = Vec::with_capacity(batch.len());
    for Wanted { lost, question } in batch {
        let answer = match &mut source {
            Ok(source) => fetch(source, flows, &lost).await.map_err(|e| e.to_string()),
            Err(why) => Err(why.clone()),
        };
        answers.push(Answer { lost, question, answer });
    }
    answers
}

async fn fetch(source: &mut Source, flows: u32, lost: &Lost) -> Result<Fetched, EngineError> {
    let replies = source.dump(lost.db, &lost.key).await?;
    let unexpected =
        |what: &str, reply: &Reply| EngineError::Source(format!("the source answered {what} with {}", shown(reply)));
    let [before, dump, time, after] = &replies;
    let position = |reply: &Reply| -> Result<Lsn, EngineError> {
        let offsets = crate::dragonfly::session::replica_offsets(reply, flows).map_err(super::source::session_error)?;
        let missing = || EngineError::Internal("a key was lost by a flow that there is not".into());
        offsets.get(lost.flow.0 as usize).copied().ok_or_else(missing)
    };
    let payload = match dump {
        Reply::Bulk(payload) => payload.clone(),
        other => return Err(unexpected("DUMP", other)),
    };
    let expire_at_ms = match time {
        Reply::Integer(-1) => None,
        // Gone, perhaps only since the DUMP.
        Reply::Integer(-2) if payload.is_none() => None,
        Reply::Integer(at_ms @ 0..) => Some(*at_ms),
        other => return Err(unexpected("PEXPIRETIME", other)),
    };
    Ok(Fetched { before: position(before)?, after: position(after)?, payload, expire_at_ms })
}

fn shown(reply: &Reply) -> String {
    match reply {
        Reply::Error(text) => format!("\"{}\"", text.escape_ascii()),
        Reply::Bulk(_) => "a string".into(),
        other => format!("{other:?}"),
    }
}
