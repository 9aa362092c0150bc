//! What a run needs to know, resolved: no strings to parse, no impossible combination. `cli` builds it.

use super::control::Control;
use super::hooks::Hooks;
use super::tls::TlsClient;
use crate::convert::{Policy, Scope};
pub use crate::redis::topology::NatMap;
use crate::redis::topology::{Address, Node};
use crate::uring::RingSettings;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use zeroize::Zeroizing;

/// A password or the like. Overwritten when it is dropped. Never printed: `Debug` and `Serialize` show only whether it is set.
#[derive(Clone, Default)]
pub struct Secret(Option<Zeroizing<String>>);

impl Secret {
    pub fn new(text: Option<String>) -> Self {
        Self(text.map(Zeroizing::new))
    }
    /// The secret itself, for AUTH only.
    pub fn expose(&self) -> Option<&str> {
        self.0.as_ref().map(|text| text.as_str())
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "(set)" } else { "(none)" })
    }
}

impl serde::Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(if self.0.is_some() { "(set)" } else { "(none)" })
    }
}

/// One side's address and access.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Endpoint {
    pub host: String,
    pub port: u16,
    /// None: plain TCP.
    pub tls: Option<TlsClient>,
    pub user: Secret,
    pub password: Secret,
}

impl Endpoint {
    /// For people.
    pub fn address(&self) -> Address {
        Address::new(self.host.clone(), self.port)
    }

    /// A node of the cluster that this is one of, with the same access.
    pub fn at(&self, node: &Node) -> Self {
        let tls = self.tls.as_ref().map(|tls| tls.naming(node.certificate_name()));
        Self { host: node.address.host.clone(), port: node.address.port, tls, ..self.clone() }
    }
}

/// What to do with a target that holds keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnExisting {
    /// Do not start.
    Refuse,
    /// Overwrite keys that the source has too; leave the others.
    Replace,
    /// FLUSHALL first.
    Flush,
    /// Keys that the target holds at the start are left as they are; whatever the source says about them is counted.
    Skip,
}

/// What to do when the source cannot go on from the position that the target holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnLostPosition {
    /// Stop and say how far the position was lost.
    Stop,
    /// Empty the target and take a full sync again.
    Resync,
}

/// `replicate`: what it needs to know beyond `migrate`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Follow {
    pub on_lost_position: OnLostPosition,
    /// Expiries nearer than this are held back while the target is in step.
    pub hold_expiries_within: Duration,
    pub expiries_at_stop: AtStop,
}

/// What becomes of held expiries when `replicate` is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AtStop {
    /// The target is left as the source is.
    PutRight,
    /// They stay held, for the job that goes on.
    Hold,
}

/// `--spool-max` where nothing else is said.
pub const SPOOL_BYTES_DEFAULT: u64 = 4 << 30;

/// Disk space for what was read from the source and cannot go to the target yet.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct SpoolSettings {
    pub dir: PathBuf,
    /// Most disk space, of all workers together.
    pub bytes_max: u64,
}

/// `--memory` where nothing else is said.
pub const MEMORY_BYTES_DEFAULT: usize = 256 << 20;

/// Memory that registered buffers lock, of all workers, at most: half of `--memory` (see `sizes`).
pub fn locked_bytes(memory_bytes: usize) -> u64 {
    memory_bytes as u64 / 2
}

/// `--wait-replicas N:TIMEOUT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct WaitReplicas {
    /// Of the target, or of each node of a cluster.
    pub count: u32,
    /// How long one WAIT may take before it is asked again.
    pub timeout: Duration,
}

#[derive(Clone, Debug, serde::Serialize)]
pub struct MigrateSettings {
    pub source: Endpoint,
    pub target: Endpoint,
    /// Addresses that the target cluster's nodes announce, and what to connect to instead.
    pub target_nat: NatMap,
    /// Where the target cluster's nodes were found last: any of them leads to the others when `target` is gone.
    #[serde(skip)]
    pub target_nodes: Arc<Mutex<Vec<Node>>>,
    pub on_existing: OnExisting,
    /// Other jobs, with other keys, write to the target too.
    pub shared_target: bool,
    pub on_unsupported: Policy,
    /// Which keys are carried, and under which name and database.
    pub scope: Scope,
    /// Number of workers, each with its own ring; flows are spread over them.
    pub cores: usize,
    /// Pin worker i to the i-th of these CPUs (empty: not pinned).
    pub pin_cpus: Vec<usize>,
    /// All data memory: slabs of all workers and heap buffers for large values.
    pub memory_bytes: usize,
    /// Connections of each worker to each target node, at most one a flow.
    pub connections: usize,
    /// A batch closes at this size.
    pub batch_bytes: usize,
    /// Most unacknowledged bytes on one connection.
    pub window_bytes: usize,
    /// Values of at least this size are sent from where they were received instead of being copied.
    pub borrow_bytes_min: usize,
    /// Objects up to this size go as one RESTORE; larger ones as chunked commands.
    pub restore_bytes_max: usize,
    /// Size of a receive chunk (None: derived from memory and flows).
    pub rx_chunk_bytes: Option<usize>,
    pub ring: RingSettings,
    /// Where lagging flows spool (None: nowhere).
    pub spool: Option<SpoolSettings>,
    /// Read a snapshot as fast as the source sends it, into the spool where the target is slower.
    pub source_first: bool,
    /// Give up on connecting, and on answers of the control connections, after this time.
    pub connect_timeout: Duration,
    /// Go on trying for so long where the target refuses, or its connection is lost.
    pub retry_max: Duration,
    /// Replicas that must have confirmed what a position covers before it is told.
    pub wait_replicas: Option<WaitReplicas>,
    /// A release that may crash once it has a replica is no reason to refuse.
    pub source_may_crash: bool,
    /// Most that the clocks of source and target may be apart.
    pub clock_skew_max: Duration,
    /// Stay after the full sync and follow the journal.
    pub follow: Option<Follow>,
    /// Where to write the report files.
    pub report_dir: Option<PathBuf>,
    /// Programs called at named events.
    pub hooks: Hooks,
    /// What operators see and change while the job runs.
    #[serde(skip)]
    pub control: Arc<Control>,
}
