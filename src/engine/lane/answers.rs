//! What a lane's server answers: replies are counted off against the commands sent, errors are judged, batches are done.
//!
//! In: reply bytes, completed sends. Out: acknowledged batches, and the command that an error reply belongs to. Invariants: a
//! reply belongs to the first command sent that is not answered; a batch is kept until its last reply, and until the kernel has
//! let it go; behind a refusal nothing counts as acknowledged before it is settled (`refusal`).

use super::Lane;
use crate::engine::batch::{Batch, NO_SUCH_KEY, Watched};
use crate::engine::error::EngineError;
use crate::engine::refusal;
use crate::redis::reply::Reply;
use crate::uring::Slab;
use std::collections::VecDeque;

/// What an error reply means for its command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is to be done.
    Done,
    /// A script that the target cannot compile: listed, else as `Done`.
    ScriptRefused,
    /// The command was not executed, and is to be executed elsewhere, or later.
    Rejected,
    /// Not executed because of the server's state: the lane holds and tries again (`refusal`).
    Refused,
}

/// The command that an error reply is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its index in the batch; that of the EXEC if `element` is given.
    pub command: u32,
    /// Which command of the group.
    pub element: Option<u32>,
}

impl Lane {
    /// Scans reply bytes; calls `acked` for each batch whose last reply came and `failed` for each error reply.
    pub fn replies(
        &mut self,
        bytes: &[u8],
        now_ns: u64,
        acked: impl FnMut(Batch),
        mut failed: impl FnMut(&Batch, Fault, &[u8]) -> Result<Verdict, EngineError>,
        mut lost: impl FnMut(&Batch, Watched),
    ) -> Result<(), EngineError> {
        let in_cluster = self.in_cluster;
        let Self { scanner, sent, ready, name, heard_ns, .. } = self;
        let mut behind = in_cluster && (!self.returned.is_empty() || sent.iter().any(Batch::has_unexecuted));
        let mut judged = |batch: &mut Batch, fault: Fault, text: &[u8]| {
            let verdict = match failed(batch, fault, text) {
                // It met what should have been changed before it. It is executed again behind that, and judged then.
                Err(EngineError::Target(_)) if behind && fault.element.is_none() => Verdict::Refused,
                verdict => verdict?,
            };
            behind |= in_cluster && matches!(verdict, Verdict::Rejected | Verdict::Refused);
            match verdict {
                Verdict::Done | Verdict::ScriptRefused => {}
                Verdict::Rejected => batch.rejected.push(fault.command),
                Verdict::Refused => {
                    batch.aborted |= batch.guard.is_some_and(|guard| fault.command >= guard.first_command);
                    batch.refused.push(fault.command);
                }
            }
            Ok(verdict)
        };
        let mut outcome = Ok(());
        let scanned = scanner.feed(bytes, |reply| {
            if outcome.is_err() {
                return;
            }
            let mut count = 1u64;
            match reply {
                Reply::Ok { count: oks } => count = oks,
                Reply::Error(text) => {
                    if let Some(batch) = answered(sent, ready) {
                        let fault = Fault { command: batch.replied, element: None };
                        outcome = judged(batch, fault, text).map(drop);
                    }
                }
                Reply::ArrayError { index, text } => {
                    // An element of EXEC's array: it belongs to a command of the group, and is no reply of its own.
                    if let Some(batch) = answered(sent, ready) {
                        let fault = match batch.guard {
                            Some(guard) => Fault {
                                command: guard.first_command.saturating_add(1).saturating_add(index as u32),
                                element: None,
                            },
                            None => Fault { command: batch.replied, element: Some(index as u32) },
                        };
                        outcome = match judged(batch, fault, text) {
                            // The others of its group were executed.
                            Ok(Verdict::Refused) => Err(EngineError::Torn(format!(
                                "{name} refused a command in the middle of a transaction: \"{}\"; run again with \
                                 --on-existing flush",
                                text.escape_ascii()
                            ))),
                            Err(EngineError::Target(why)) => Err(EngineError::Torn(format!(
                                "{why}. The rest of its transaction was executed, and the position with it, so nothing goes on \
                                 from there: run again with --on-existing flush"
                            ))),
                            judged => judged.map(drop),
                        };
                        if outcome.is_ok()
                            && let Some(watched) = batch.watched_at(Some(index)).filter(|of| of.lost_if == NO_SUCH_KEY)
                        {
                            lost(batch, watched);
                        }
                    }
                    return;
                }
                Reply::ArrayInteger { index, value } => {
                    // 1 is what nearly all answer.
                    if value != 1
                        && let Some(batch) = answered(sent, ready)
                        && let Some(watched) = batch.watched_at(Some(index)).filter(|of| of.lost_if == value)
                    {
                        lost(batch, watched);
                    }
                    return;
                }
                Reply::Integer(value) if value != 1 => {
                    if let Some(batch) = answered(sent, ready)
                        && let Some(watched) = batch.watched_at(None).filter(|of| of.lost_if == value)
                    {
                        lost(batch, watched);
                    }
                }
                Reply::Null if answered(sent, ready).is_some_and(|batch| batch.answers_of_exec().is_some()) => {
                    outcome = Err(EngineError::Target(format!(
                        "{name} did not execute a MULTI, although nothing was watched; its commands are not applied"
                    )));
                    return;
                }
                Reply::Array { elements, .. } => {
                    // Of a refused group, too, nothing but EXEC answers with an array.
                    if let Some(wanted) = answered(sent, ready).and_then(|batch| batch.answers_of_exec())
                        && elements != u64::from(wanted)
                    {
                        outcome = Err(EngineError::Torn(format!(
                            "{name} answered EXEC with {elements} replies, not one for each command of the transaction; \
                             what it executed is not known: run again with --on-existing flush"
                        )));
                        return;
                    }
                }
                _ => {}
            }
            let ends_group = matches!(reply, Reply::Array { .. } | Reply::Error(_));
            // Pieces of a reply that never ends are no sign of life.
            *heard_ns = now_ns;
            while count > 0 {
                let Some(batch) = answered(sent, ready) else {
                    outcome = Err(EngineError::Target(format!(
                        "{name} sent a reply that nobody asked for; is there a proxy in between that mixes connections?"
                    )));
                    return;
                };
                let step = count.min(u64::from(batch.commands - batch.replied));
                let from = batch.replied;
                batch.replied += step as u32;
                count -= step;
                if !ends_group && batch.has_answered_exec(from) {
                    outcome = Err(EngineError::Torn(format!(
                        "{name} answered EXEC with no array: whether it executed the transaction is not known; run again \
                         with --on-existing flush"
                    )));
                    return;
                }
            }
        });
        self.take_answered(acked);
        outcome?;
        scanned.map_err(|e| EngineError::Target(format!("{}: bad reply stream: {e}", self.name)))
    }

    /// Calls `acked` for each batch whose last reply came, once the kernel has let it go too: its completion may be seen after
    /// the reply.
    pub fn take_answered(&mut self, mut acked: impl FnMut(Batch)) {
        let mut refusing = self.hold.as_ref().is_some_and(|hold| !hold.trying) || !self.returned.is_empty();
        while self.sent.len() > self.in_kernel
            && self.sent.front().is_some_and(|batch| batch.replied == batch.commands)
            && let Some(batch) = self.sent.pop_front()
        {
            if !batch.preamble {
                self.losses_in_a_row = 0;
            }
            refusing |= batch.first_refused().is_some() || batch.has_unexecuted();
            if refusing {
                self.returned.push(batch);
                continue;
            }
            if let Some(hold) = self.hold.as_mut().filter(|_| !batch.preamble) {
                hold.taken = true;
            }
            self.unacked_bytes = self.unacked_bytes.saturating_sub(batch.bytes);
            self.unacked_commands = self.unacked_commands.saturating_sub(u64::from(batch.commands));
            self.acked_batches += batch.stands_for;
            acked(batch);
        }
    }

    /// Everything under way was answered after a refusal: what is to be sent again is prepared, `acked` gets the rest.
    /// Returns whether the lane (still) holds.
    pub fn settle_refusal(
        &mut self,
        slab: &mut Slab,
        now_ns: u64,
        mut acked: impl FnMut(Batch),
    ) -> Result<bool, EngineError> {
        if !self.sent.is_empty() || self.in_kernel > 0 || self.cut_short {
            return Ok(self.hold.is_some());
        }
        if self.returned.is_empty() {
            if self.hold.as_ref().is_some_and(|hold| hold.trying && (hold.taken || self.ready.is_empty())) {
                self.hold = None;
            }
            return Ok(self.hold.is_some());
        }
        if self.in_cluster {
            self.put_back_refused(slab)?.into_iter().for_each(&mut acked);
        } else {
            refusal::settle(self, slab)?.into_iter().for_each(|batch| {
                self.unacked_bytes = self.unacked_bytes.saturating_sub(batch.bytes);
                self.unacked_commands = self.unacked_commands.saturating_sub(u64::from(batch.commands));
                acked(batch);
            });
        }
        if let Some(hold) = &mut self.hold {
            hold.again(now_ns);
        }
        Ok(self.hold.is_some())
    }
}

/// The batch that the next reply belongs to: the first one sent that is not answered, or else the one whose sending was cut
/// short and which waits for its rest to be sent.
fn answered<'a>(sent: &'a mut VecDeque<Batch>, ready: &'a mut VecDeque<Batch>) -> Option<&'a mut Batch> {
    let open = |batch: &&mut Batch| batch.replied < batch.commands;
    match sent.iter_mut().find(open) {
        Some(batch) => Some(batch),
        None => ready.front_mut().filter(|batch| batch.sent_bytes > 0).filter(open),
    }
}
