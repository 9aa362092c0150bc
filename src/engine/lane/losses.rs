//! A lane's connection is lost and made again: what was not answered waits, and is sent again where that changes nothing.
//!
//! In: the loss, the next connection and how far the target says its groups were applied. Out: the queue as it is to be sent
//! again. Invariants: nothing is sent again that is known to be applied; what may have been applied is marked as in doubt; a
//! cluster's lane keeps what was under way for the control plane to settle.

use super::{Lane, Link, up};
use crate::engine::batch::Batch;
use crate::engine::error::EngineError;
use crate::engine::wire::Connected;
use crate::engine::writer::Encoder;
use crate::ids::DbIndex;
use crate::redis::reply::ReplyScanner;
use crate::redis::request;
use crate::uring::Slab;

/// A connection lost so often without one batch acknowledged in between will not get better.
pub(super) const LOSSES_IN_A_ROW_MAX: u32 = 20;

impl Lane {
    /// The connection is gone: everything unanswered waits for the next one, in order.
    pub fn lose(&mut self) {
        self.link = Link::Down;
        self.generation = self.generation.wrapping_add(1);
        self.in_kernel = 0;
        self.cut_short = false;
        self.chain_broken = false;
        self.reading = false;
        self.owes_since_ns = None;
        self.scanner = ReplyScanner::new();
        self.losses_in_a_row += 1;
        if self.in_cluster {
            // What was under way is settled by the control plane.
            self.returned.extend(self.sent.drain(..));
            if self.ready.front().is_some_and(|batch| batch.sent_bytes > 0) {
                self.returned.extend(self.ready.pop_front());
            }
            if let Some(hold) = &mut self.hold {
                hold.trying = false;
            }
            return;
        }
        while let Some(mut batch) = self.sent.pop_back() {
            // How much of it the kernel took is not known while it is there.
            batch.sent_bytes = batch.bytes;
            self.ready.push_front(batch);
        }
        if let Some(hold) = &mut self.hold {
            hold.trying = false;
        }
        // Answered, but not done: everything from the first refused command on.
        let mut is_first = true;
        for batch in &mut self.returned {
            batch.replied = if is_first { batch.first_refused().unwrap_or(batch.commands) } else { 0 };
            is_first = false;
        }
        while let Some(batch) = self.returned.pop() {
            self.ready.push_front(batch);
        }
    }

    /// Takes over what is counted over several connections.
    pub fn follows(&mut self, earlier: &mut Self) {
        if self.node == earlier.node {
            self.hold = earlier.hold.take();
        }
        self.generation = earlier.generation.wrapping_add(1);
        self.reconnects = earlier.reconnects + 1;
        self.losses_in_a_row = earlier.losses_in_a_row;
        self.queued_batches = earlier.queued_batches;
        self.queued_bytes = earlier.queued_bytes;
        self.queued_commands = earlier.queued_commands;
        self.acked_batches = earlier.acked_batches;
    }

    /// The next loss is our own doing, and tells nothing of the target.
    pub fn expect_loss(&mut self) {
        self.losses_in_a_row = self.losses_in_a_row.saturating_sub(1);
    }

    /// Connecting again will not help.
    pub fn is_hopeless(&self) -> bool {
        self.losses_in_a_row > LOSSES_IN_A_ROW_MAX
    }

    /// A new connection is up, and the target says that guarded groups up to `applied` were applied. Batches known to
    /// be applied are handed to `acked`; the rest is prepared to be sent again from its first unanswered command.
    pub fn resume(
        &mut self,
        slab: &mut Slab,
        socket: Connected,
        applied: u64,
        mut acked: impl FnMut(Batch),
    ) -> Result<(), EngineError> {
        self.link = up(socket);
        self.reconnects += 1;
        // Preambles of lost connections: this one gets its own.
        for _ in 0..self.ready.len() {
            match self.ready.pop_front() {
                Some(batch) if batch.preamble => {
                    self.unacked_bytes = self.unacked_bytes.saturating_sub(batch.bytes);
                    self.unacked_commands = self.unacked_commands.saturating_sub(u64::from(batch.commands));
                    batch.release(slab);
                }
                batch => self.ready.extend(batch),
            }
        }
        // Answered to the end, but the kernel had not let it go when the connection was lost.
        let is_done = |batch: &Batch| batch.replied == batch.commands && batch.first_refused().is_none();
        while self.ready.front().is_some_and(is_done)
            && let Some(batch) = self.ready.pop_front()
        {
            self.unacked_bytes = self.unacked_bytes.saturating_sub(batch.bytes);
            self.unacked_commands = self.unacked_commands.saturating_sub(u64::from(batch.commands));
            acked(batch);
        }
        // What stands before an applied group was applied too: one connection, in order.
        let is_last = |batch: &Batch| batch.guard.is_some_and(|guard| guard.sequence == applied);
        if let Some(last) = self.ready.iter().rposition(is_last) {
            for batch in self.ready.drain(..=last) {
                if batch.first_refused().is_some() {
                    return Err(EngineError::Torn(format!(
                        "{} refused commands, executed later ones, and the connection was lost: the target's data is not \
                         to be trusted; run again with --on-existing flush",
                        self.name
                    )));
                }
                self.unacked_bytes = self.unacked_bytes.saturating_sub(batch.bytes);
                self.unacked_commands = self.unacked_commands.saturating_sub(u64::from(batch.commands));
                acked(batch);
            }
        }
        for batch in &mut self.ready {
            let sent = sent_commands(batch, slab)?;
            batch.put_in_doubt(batch.replied..sent);
        }
        // A new connection starts in database 0. Each batch is sent where it begins: that it is where the one before it ended
        // does not hold once some were answered.
        let (mut db, mut is_first) = (DbIndex(0), true);
        for _ in 0..self.ready.len() {
            let Some(mut batch) = self.ready.pop_front() else { break };
            // Only the first may have been answered in part; names were put in front of it, perhaps.
            let is_begun = !batch.names && std::mem::take(&mut is_first);
            let mut from = if is_begun { batch.replied } else { 0 };
            if let Some(guard) = batch.guard
                && from > guard.first_command
            {
                from = guard.first_command;
            }
            let (offset, begins_in) = position_of(&batch, slab, from)?;
            batch.replied = from;
            batch.sent_bytes = offset;
            batch.refused.clear();
            batch.aborted = false;
            self.select_behind(slab, &mut db, begins_in);
            db = batch.db_at_end();
            self.ready.push_back(batch);
        }
        let begins_in = self.encoder.batch.db_at_start;
        self.select_behind(slab, &mut db, begins_in);
        Ok(())
    }

    /// Selects a database behind what is ready, where that leaves another one selected.
    fn select_behind(&mut self, slab: &mut Slab, db: &mut DbIndex, wanted: DbIndex) {
        if std::mem::replace(db, wanted) != wanted {
            let batch = select_batch(slab, wanted);
            self.unacked_bytes += batch.bytes;
            self.unacked_commands += u64::from(batch.commands);
            self.ready.push_back(batch);
        }
    }
}

/// A batch that selects a database.
pub fn select_batch(slab: &mut Slab, db: DbIndex) -> Batch {
    let mut select = Encoder::new();
    select.command(slab, &[b"SELECT", db.to_string().as_bytes()]);
    let mut batch = select.take_batch(slab, Vec::new());
    select.tail.finish(&mut batch, slab);
    batch.preamble = true;
    batch
}

/// Byte offset of command `index` in the batch and the database selected there.
pub fn position_of(batch: &Batch, slab: &Slab, index: u32) -> Result<(usize, DbIndex), EngineError> {
    let db = batch.selects.iter().rev().find(|(at, _)| *at < index).map_or(batch.db_at_start, |(_, db)| *db);
    let offset = request::offset_of(batch.slices(slab), u64::from(index))
        .map_err(|e| EngineError::Internal(format!("a batch cannot be read again: {e}")))?;
    Ok((offset as usize, db))
}

/// Commands of which at least one byte was sent.
fn sent_commands(batch: &Batch, slab: &Slab) -> Result<u32, EngineError> {
    if batch.sent_bytes == 0 || batch.sent_bytes == batch.bytes {
        return Ok(if batch.sent_bytes == 0 { 0 } else { batch.commands });
    }
    let (mut low, mut high) = (0, batch.commands);
    while low < high {
        let middle = low + (high - low) / 2;
        if position_of(batch, slab, middle)?.0 < batch.sent_bytes {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}
