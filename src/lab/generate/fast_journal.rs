//! A journal for measurements: pre-encoded records whose key digits are patched, sent in large blocks or at a rate.
//!
//! It begins when its [`JournalGate`] is opened, so that a measurement can tell it from the full sync before it. Positions are
//! truthful: the gate counts what was sent.

use super::entry::Entry;
use super::fast::{DIGITS, count_up};
use super::spec::{Kind, Spec};
use crate::lab::encode::{journal_command, owner};
use crate::lab::flow::FlowWriter;
use crate::lab::journal::marker;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes of a block of records.
const BLOCK_BYTES: usize = 256 << 10;
/// At a rate, what is due is sent this often.
const SLICE: Duration = Duration::from_micros(500);

/// What is journaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FastJournal {
    pub command: FastCommand,
    /// On all flows.
    pub records: u64,
    /// The records go around over so many keys.
    pub keys: u64,
    /// Records a second; `None`: as fast as they are read.
    pub rate: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FastCommand {
    /// `SET` of the keys of a generated group 0 of strings.
    Set { value_bytes: usize },
    /// `INCR` of keys named like those of a generated group 0 of numbers.
    Incr,
}

impl FastCommand {
    fn kind(self) -> Kind {
        if self == Self::Incr { Kind::Int } else { Kind::String }
    }

    /// Name of the `index`-th key.
    pub fn key(self, index: u64) -> Vec<u8> {
        Entry::key(self.kind(), 0, index)
    }
}

/// Opens the journals, and knows how far they were sent.
#[derive(Debug)]
pub struct JournalGate {
    open: AtomicBool,
    next_lsns: Vec<AtomicU64>,
}

impl JournalGate {
    pub(super) fn new(flows_count: usize) -> Self {
        Self { open: AtomicBool::new(false), next_lsns: (0..flows_count).map(|_| AtomicU64::new(1)).collect() }
    }

    pub fn open(&self) {
        self.open.store(true, Ordering::Release);
    }

    /// LSN of the next record of each flow.
    pub fn next_lsns(&self) -> Vec<u64> {
        self.next_lsns.iter().map(|lsn| lsn.load(Ordering::Acquire)).collect()
    }
}

/// Sends the flow's records of the whole journal, once the gate is open.
pub(super) fn send(
    spec: &Spec,
    journal: FastJournal,
    flow: usize,
    gate: &JournalGate,
    out: &mut FlowWriter,
) -> io::Result<()> {
    while !gate.open.load(Ordering::Acquire) {
        if out.is_cancelled() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut key = journal.command.key(0);
    let prefix_bytes = key.len() - DIGITS;
    let mut record = Vec::new();
    match journal.command {
        FastCommand::Set { value_bytes } => {
            journal_command(&mut record, 0, 0, &[b"SET".as_slice(), &key, &vec![b'j'; value_bytes]]);
        }
        FastCommand::Incr => journal_command(&mut record, 0, 0, &[b"INCR".as_slice(), &key]),
    }
    let at = memchr::memmem::find(&record, &key).map_or(0, |found| found + prefix_bytes);
    let slots = (BLOCK_BYTES / record.len()).max(1);
    let mut block = record.repeat(slots);
    let (mut slot, mut sent, mut digits) = (0, 0u64, [b'0'; DIGITS]);
    let started = Instant::now();
    let mut flush = |block: &[u8], count: usize, sent: &mut u64| {
        let (first, rest) =
            block[..count * record.len()].split_at(if *sent == 0 { record.len().min(count * record.len()) } else { 0 });
        out.write(first)?;
        if *sent == 0 && count > 0 {
            out.write(&marker(1))?;
        }
        *sent += count as u64;
        gate.next_lsns[flow].fetch_max(1 + *sent, Ordering::AcqRel);
        out.write(rest)
    };
    for number in 0..journal.records {
        if number % journal.keys.max(1) == 0 {
            digits = [b'0'; DIGITS];
        }
        if let Some(rate) = journal.rate {
            let due = Duration::from_secs_f64(number as f64 / rate.max(1) as f64);
            if due > started.elapsed() {
                flush(&block, slot, &mut sent)?;
                slot = 0;
                std::thread::sleep((due + SLICE).saturating_sub(started.elapsed()));
            }
        }
        let own = spec.flows_count == 1 || {
            key[prefix_bytes..].copy_from_slice(&digits);
            owner(&key, spec.flows_count) == flow
        };
        if own {
            let from = slot * record.len() + at;
            block[from..from + DIGITS].copy_from_slice(&digits);
            slot += 1;
            if slot == slots {
                flush(&block, slot, &mut sent)?;
                slot = 0;
            }
        }
        count_up(&mut digits);
    }
    flush(&block, slot, &mut sent)
}
