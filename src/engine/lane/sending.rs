//! What leaves on a lane: chains of whole batches, and how far the kernel took them.
//!
//! In: closed batches, completions of sends. Out: chains for the ring. Invariants: at most one chain is in the kernel; batches
//! leave in the order in which they were closed; after a short or broken chain the tail of the first unfinished batch goes
//! first; nothing is sent behind a group that was not answered, where one at a time is asked for (`one_group`).

use super::{Lane, Link};
use crate::engine::batch::Batch;
use crate::engine::error::EngineError;
use crate::uring::{Outgoing, Ring};

impl Lane {
    /// Submits the next chain if the wire is free. Returns the number of batches submitted.
    pub fn submit(
        &mut self,
        ring: &mut Ring,
        batches_max: usize,
        token: u64,
        now_ns: u64,
    ) -> Result<usize, EngineError> {
        let Link::Up(wire) = &mut self.link else { return Ok(0) };
        if self.in_kernel > 0 || self.ready.is_empty() || wire.is_sending() {
            return Ok(0);
        }
        // What was not executed comes first; only the rest of a batch that was cut short is on its way already.
        if self.in_cluster && !self.returned.is_empty() && !self.cut_short {
            return Ok(0);
        }
        if self.sent.is_empty() {
            self.heard_ns = now_ns;
        }
        let batches_max = batches_max.min(wire.batches_max());
        let count = match &self.hold {
            None => self.ready.len().min(batches_max),
            // The rest of a batch that was cut short, or the batch to try with and its SELECT.
            Some(_) if self.cut_short => 1,
            Some(hold) if hold.trying && self.sent.is_empty() && self.returned.is_empty() => {
                self.ready.len().min(2.min(batches_max))
            }
            Some(_) => return Ok(0),
        };
        let count = match self.one_group {
            false => count,
            // The rest of what was begun.
            true if self.cut_short => 1,
            true if self.sent.iter().any(Batch::is_fenced) => return Ok(0),
            true => match self.ready.iter().take(count).take_while(|batch| !batch.is_fenced()).count() {
                0 if self.sent.is_empty() => 1,
                blind => blind,
            },
        };
        if count == 0 {
            return Ok(0);
        }
        for batch in self.ready.iter_mut().take(count) {
            if batch.submitted_ns == 0 {
                batch.submitted_ns = now_ns;
            }
        }
        let count = {
            let chain: smallvec::SmallVec<[Outgoing<'_>; 16]> = self
                .ready
                .iter()
                .take(count)
                .map(|batch| Outgoing { segments: &batch.segments, skip_bytes: batch.sent_bytes, token })
                .collect();
            wire.send(ring, &chain)?
        };
        for _ in 0..count {
            if let Some(batch) = self.ready.pop_front() {
                self.sent.push_back(batch);
            }
        }
        self.in_kernel = count;
        self.cut_short = false;
        self.chain_broken = false;
        Ok(count)
    }

    /// One batch of the running chain completed with `result`. Returns an errno that means the connection is lost.
    pub fn sent_completion(&mut self, result: Result<u32, i32>) -> Option<i32> {
        let position = self.sent.len().checked_sub(self.in_kernel)?;
        self.in_kernel -= 1;
        let mut lost = None;
        if let Some(batch) = self.sent.get_mut(position) {
            match result {
                Ok(n) => {
                    batch.sent_bytes += n as usize;
                    self.chain_broken |= batch.sent_bytes < batch.bytes;
                }
                Err(libc::ECANCELED | libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ENOMEM) => {
                    self.chain_broken = true;
                }
                Err(errno) => {
                    self.chain_broken = true;
                    lost = Some(errno);
                }
            }
        }
        if self.in_kernel == 0 && self.chain_broken {
            // Completions come in chain order, so the unfinished batches are the last ones.
            while self.sent.back().is_some_and(|batch| batch.sent_bytes < batch.bytes) {
                if let Some(batch) = self.sent.pop_back() {
                    // Who answers what was not sent is no server.
                    if batch.replied == batch.commands {
                        lost = lost.or(Some(libc::EPROTO));
                    }
                    self.ready.push_front(batch);
                }
            }
            self.chain_broken = false;
            self.cut_short = self.ready.front().is_some_and(|batch| batch.sent_bytes > 0);
        }
        lost
    }
}
