//! A simulated Dragonfly's data: a seeded key space, streamed on the fly in bounded memory, and the right end state.
//!
//! In: a [`Spec`]. Out: a [`Feed`] for [`Master`], whose flows are made as they are sent, and a [`Model`] that says what
//! a target must hold afterwards. With [`Spec::fast`] the records are pre-encoded, for measurements.
//! Pieces, cuts, stalls and the like are the master's.

pub mod entry;
mod fast;
pub mod fast_journal;
mod filter;
pub(in crate::lab) mod flow;
mod journal;
pub mod model;
mod object;
pub(in crate::lab) mod rows;
mod sha256;
pub mod spec;
pub mod verify;

pub use entry::Entry;
pub use fast_journal::{FastCommand, FastJournal, JournalGate};
pub use model::Model;
pub use spec::{Compression, Group, Kind, Release, Spec, parse_mix};

use super::LabError;
use super::master::{Feed, FlowFeed, Held, Identity, Master, MasterOptions};
use super::rng::Rng;
use std::sync::Arc;

/// Serves a generated key space.
pub struct Generator {
    spec: Arc<Spec>,
    model: Arc<Model>,
    gate: Arc<JournalGate>,
}

impl Generator {
    pub fn new(spec: Spec) -> Self {
        let spec = Arc::new(spec);
        let gate = Arc::new(JournalGate::new(spec.flows_count));
        Self { model: Arc::new(Model::new(spec.clone())), spec, gate }
    }

    /// What the journal of [`Spec::journal`] waits for.
    pub fn journal_gate(&self) -> Arc<JournalGate> {
        self.gate.clone()
    }

    /// What a target must hold once everything was sent and applied.
    pub fn model(&self) -> Arc<Model> {
        self.model.clone()
    }

    /// Starts a master that serves `spec`; returns it with the model.
    pub fn start(spec: Spec, options: MasterOptions) -> Result<(Master, Arc<Model>), LabError> {
        let generator = Self::new(spec);
        let model = generator.model();
        Ok((Master::start(Arc::new(generator), options)?, model))
    }

    fn hex(&self, salt: u64) -> String {
        let mut rng = Rng::new(self.spec.seed ^ salt);
        (0..3).map(|_| format!("{:016x}", rng.next_u64())).collect::<String>()[..40].to_owned()
    }
}

impl Feed for Generator {
    fn identity(&self) -> Identity {
        let old = self.spec.release == Release::Old;
        let master_id = self.hex(0x1d);
        let version = if old { "df-v1.14.0" } else { "df-v1.40.1" };
        Identity {
            flows_count: self.spec.flows_count,
            version: Some(if old { 2 } else { 5 }),
            lineage_id: (!old).then(|| master_id.clone()),
            master_id,
            eof_tokens: (0..self.spec.flows_count).map(|flow| self.hex(0xe0f + flow as u64)).collect(),
            info: format!(
                "# Server\r\nredis_version:7.4.0\r\ndragonfly_version:{version}\r\nredis_mode:standalone\r\n\
                 arch_bits:64\r\nthread_count:{}\r\nmultiplexing_api:iouring\r\n",
                self.spec.flows_count
            ),
        }
    }

    fn open(&self, flow: usize) -> Box<dyn FlowFeed> {
        let token = self.hex(0xe0f + flow as u64);
        if self.spec.fast {
            return Box::new(fast::FastFlow::new(self.spec.clone(), flow, token, self.gate.clone()));
        }
        Box::new(flow::GeneratedFlow::new(self.spec.clone(), self.model.clone(), flow, token))
    }

    fn held(&self, db: u32, key: &[u8]) -> Option<Held> {
        self.model.look_up(db, key)
    }

    fn keys_count(&self, db: u32) -> u64 {
        self.model.keys_count(db)
    }

    fn replica_offsets(&self) -> Vec<u64> {
        self.gate.next_lsns()
    }
}

#[cfg(test)]
mod tests;
