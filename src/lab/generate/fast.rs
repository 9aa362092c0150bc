//! A flow for measurements: pre-encoded records whose key digits are patched, sent in large blocks.
//!
//! All keys of a group hold the same value. With more than one flow every key's owner is computed, so the stream is as
//! right as that of [`super::flow`]; with one flow nothing but the digits changes.

use super::entry::Entry;
use super::fast_journal::{self, JournalGate};
use super::flow::prelude;
use super::object::ObjectWriter;
use super::spec::Spec;
use crate::lab::encode;
use crate::lab::flow::FlowWriter;
use crate::lab::master::FlowFeed;
use std::io;
use std::sync::Arc;

/// Bytes of a block of records; one record may be longer.
const BLOCK_BYTES: usize = 256 << 10;
/// Digits at the end of a key.
pub(super) const DIGITS: usize = 12;

/// One flow of one registration.
pub struct FastFlow {
    spec: Arc<Spec>,
    flow: usize,
    eof_token: String,
    gate: Arc<JournalGate>,
}

impl FastFlow {
    pub fn new(spec: Arc<Spec>, flow: usize, eof_token: String, gate: Arc<JournalGate>) -> Self {
        Self { spec, flow, eof_token, gate }
    }

    fn group(&self, group: usize, out: &mut FlowWriter) -> io::Result<()> {
        let count = self.spec.mix[group].count;
        let entry = Entry::new(&self.spec, group, 0);
        let mut key = entry.key.clone();
        let prefix_bytes = key.len() - DIGITS;
        let mut record = Vec::new();
        let mut object = ObjectWriter::new(entry, self.spec.release, false);
        if object.is_huge_string() {
            return self.huge_strings(group, out);
        }
        object.write(&mut record, 0);
        // Where the digits stand in the record.
        let at = memchr::memmem::find(&record, &key).map_or(0, |found| found + prefix_bytes);
        let slots = (BLOCK_BYTES / record.len()).max(1);
        let mut block = record.repeat(slots);
        let mut slot = 0;
        let mut digits = [b'0'; DIGITS];
        for _ in 0..count {
            let own = self.spec.flows_count == 1 || {
                key[prefix_bytes..].copy_from_slice(&digits);
                encode::owner(&key, self.spec.flows_count) == self.flow
            };
            if own {
                let from = slot * record.len() + at;
                block[from..from + DIGITS].copy_from_slice(&digits);
                slot += 1;
                if slot == slots {
                    out.write(&block)?;
                    slot = 0;
                }
            }
            count_up(&mut digits);
        }
        out.write(&block[..slot * record.len()])
    }

    fn huge_strings(&self, group: usize, out: &mut FlowWriter) -> io::Result<()> {
        for index in 0..self.spec.mix[group].count {
            let entry = Entry::new(&self.spec, group, index);
            if entry.owner(self.spec.flows_count) != self.flow {
                continue;
            }
            let mut head = Vec::new();
            let mut left = entry.group.element_bytes;
            let block = entry.block(left);
            ObjectWriter::new(entry, self.spec.release, false).huge_string_head(&mut head);
            out.write(&head)?;
            while left > 0 {
                let take = left.min(block.len() as u64);
                out.write(&block[..take as usize])?;
                left -= take;
            }
        }
        Ok(())
    }
}

/// The next number.
#[inline]
pub(super) fn count_up(digits: &mut [u8; DIGITS]) {
    for digit in digits.iter_mut().rev() {
        if *digit < b'9' {
            *digit += 1;
            return;
        }
        *digit = b'0';
    }
}

impl FlowFeed for FastFlow {
    fn snapshot(&mut self, out: &mut FlowWriter) -> io::Result<()> {
        let mut head = Vec::new();
        prelude(&self.spec, self.flow, &mut head);
        encode::select_db(&mut head, 0);
        out.write(&head)?;
        (0..self.spec.mix.len()).try_for_each(|group| self.group(group, out))?;
        out.announce_full_sync_end();
        let mut end = Vec::new();
        encode::full_sync_end(&mut end);
        out.write(&end)
    }

    fn finish(&mut self, out: &mut FlowWriter) -> io::Result<()> {
        let mut end = Vec::new();
        encode::journal_offset(&mut end, 1);
        encode::eof(&mut end);
        end.extend_from_slice(self.eof_token.as_bytes());
        out.write(&end)
    }

    fn stable(&mut self, out: &mut FlowWriter) -> io::Result<()> {
        match self.spec.journal {
            Some(journal) => fast_journal::send(&self.spec, journal, self.flow, &self.gate, out),
            None => Ok(()),
        }
    }
}
