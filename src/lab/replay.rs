//! A feed that serves a recording: exactly the bytes that a real Dragonfly sent, at the phases where it sent them.
//!
//! Bytes up to `bytes_before_startstable` follow DFLY SYNC, the rest of the snapshot and the journal STARTSTABLE. Plain
//! commands are answered from `truth.jsonl`, that is, from the state at the end of the recording; so is REPLICAOFFSET, as
//! if every record had been produced and only their sending took time. Pieces and faults are
//! the master's ([`super::flow::Faults`]).

use super::flow::{FlowWriter, Gate};
use super::master::{Feed, FlowFeed, Held, Identity, Master, MasterOptions};
use super::recordings::Recording;
use super::truth::TruthMap;
use super::{LabError, journal};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Serves one recording.
pub struct Replay {
    recording: Arc<Recording>,
    truth: TruthMap,
    /// Leave out the journal after the token, as if no write had followed.
    pub snapshot_only: bool,
    /// How long each flow takes to send its snapshot, and its journal; `None`: as fast as it is read.
    pub snapshot_time: Option<Duration>,
    pub stable_time: Option<Duration>,
    /// The last tenth of each flow's journal is sent only once this is open.
    pub journal_gate: Option<Gate>,
    /// By flow: where each record of the stable journal begins; empty where the journal cannot be walked.
    starts: Vec<Arc<Vec<usize>>>,
}

impl Replay {
    pub fn new(recording: Recording) -> Result<Self, LabError> {
        let truth = recording.truth_map()?;
        let starts = (0..recording.flows.len())
            .map(|flow| {
                let journal = recording.flows[flow].get(recording.snapshot_bytes(flow)..).unwrap_or_default();
                Arc::new(journal::entry_starts(journal).unwrap_or_default())
            })
            .collect();
        let recording = Arc::new(recording);
        Ok(Self {
            recording,
            truth,
            snapshot_only: false,
            snapshot_time: None,
            stable_time: None,
            journal_gate: None,
            starts,
        })
    }

    /// Starts a master that serves `recording` on a free port of 127.0.0.1.
    pub fn start(recording: Recording, options: MasterOptions) -> Result<Master, LabError> {
        Master::start(Arc::new(Self::new(recording)?), options)
    }
}

impl Feed for Replay {
    fn identity(&self) -> Identity {
        let meta = &self.recording.meta;
        Identity {
            master_id: meta.master_id.clone(),
            flows_count: self.recording.flows.len(),
            version: (meta.capa.len() > 3).then_some(meta.version),
            lineage_id: meta.capa.get(4).and_then(|id| id.as_str()).map(str::to_owned),
            eof_tokens: meta.flows.iter().map(|flow| flow.eof_token.clone()).collect(),
            info: meta.info.clone(),
        }
    }

    fn open(&self, flow: usize) -> Box<dyn FlowFeed> {
        let end =
            if self.snapshot_only { self.recording.snapshot_bytes(flow) } else { self.recording.flows[flow].len() };
        Box::new(self.flow(flow, end))
    }

    fn open_partial(&self, flow: usize, lsn: u64) -> Option<Box<dyn FlowFeed>> {
        let next = *self.recording.meta.replica_offset_at_end.get(flow)?;
        let starts = &self.starts[flow];
        let first = next.checked_sub(starts.len() as u64)?;
        let index = usize::try_from(lsn.checked_sub(first)?).ok()?;
        if self.snapshot_only || index > starts.len() {
            return None;
        }
        let end = self.recording.flows[flow].len();
        Some(Box::new(ReplayFlow { resume: Some((index, lsn)), ..self.flow(flow, end) }))
    }

    fn held(&self, db: u32, key: &[u8]) -> Option<Held> {
        let row = self.truth.get(&(db, key.to_vec()))?;
        Some(Held {
            type_name: if row.type_name == "json" { "ReJSON-RL".to_owned() } else { row.type_name.clone() },
            string: if row.type_name == "string" { row.value().and_then(|v| v.into_iter().next()) } else { None },
            expire_at_ms: (row.expire_at_ms >= 0).then_some(row.expire_at_ms),
        })
    }

    fn keys_count(&self, db: u32) -> u64 {
        self.truth.keys().filter(|(d, _)| *d == db).count() as u64
    }

    fn replica_offsets(&self) -> Vec<u64> {
        self.recording.meta.replica_offset_at_end.clone()
    }
}

impl Replay {
    fn flow(&self, flow: usize, end: usize) -> ReplayFlow {
        ReplayFlow {
            recording: self.recording.clone(),
            flow,
            end,
            snapshot_time: self.snapshot_time,
            stable_time: self.stable_time,
            journal_gate: self.journal_gate.clone(),
            starts: self.starts[flow].clone(),
            resume: None,
        }
    }
}

struct ReplayFlow {
    recording: Arc<Recording>,
    flow: usize,
    end: usize,
    snapshot_time: Option<Duration>,
    stable_time: Option<Duration>,
    journal_gate: Option<Gate>,
    starts: Arc<Vec<usize>>,
    /// A partial sync: index of the first record in `starts`, and its LSN.
    resume: Option<(usize, u64)>,
}

impl ReplayFlow {
    fn send(&self, out: &mut FlowWriter, from: usize, to: usize) -> io::Result<()> {
        out.write(self.recording.flows[self.flow].get(from..to).unwrap_or_default())
    }

    /// The journal from here on, held where it is to be.
    fn send_rest(&self, out: &mut FlowWriter, from: usize) -> io::Result<()> {
        let Some(gate) = &self.journal_gate else { return self.send(out, from, self.end) };
        let held = self
            .starts
            .get(self.starts.len() * 9 / 10)
            .map_or(0, |start| start + self.recording.snapshot_bytes(self.flow));
        let held = held.max(from);
        self.send(out, from, held)?;
        while !gate.is_open() && !out.is_cancelled() {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.send(out, held, self.end)
    }
}

impl FlowFeed for ReplayFlow {
    fn total_bytes(&self) -> Option<u64> {
        Some(self.end as u64)
    }

    fn snapshot(&mut self, out: &mut FlowWriter) -> io::Result<()> {
        let end_at = self.recording.full_sync_end_at(self.flow);
        if let Some(time) = self.snapshot_time {
            out.pace((end_at as f64 / time.as_secs_f64()) as u64);
        }
        self.send(out, 0, end_at)?;
        out.announce_full_sync_end();
        self.send(out, end_at, self.recording.meta.bytes_before_startstable[self.flow] as usize)
    }

    fn finish(&mut self, out: &mut FlowWriter) -> io::Result<()> {
        let from = self.recording.meta.bytes_before_startstable[self.flow] as usize;
        self.send(out, from, self.recording.snapshot_bytes(self.flow))
    }

    fn stable(&mut self, out: &mut FlowWriter) -> io::Result<()> {
        let begin = self.recording.snapshot_bytes(self.flow);
        if let Some(time) = self.stable_time {
            out.pace(((self.end - begin) as f64 / time.as_secs_f64()) as u64);
        }
        let Some((index, lsn)) = self.resume else { return self.send_rest(out, begin) };
        let start_of = |index: usize| self.starts.get(index).map_or(self.end, |start| begin + start);
        if index < self.starts.len() {
            // A master's first record in stable sync is always followed by a marker.
            self.send(out, start_of(index), start_of(index + 1))?;
            out.write(&journal::marker(lsn))?;
        }
        self.send_rest(out, start_of(index + 1))
    }
}
