//! What the control plane and the workers tell each other.
//!
//! A worker is started with everything it owns; afterwards it sends `WorkerEvent`s and takes `WorkerCommand`s, and ends
//! with a `WorkerSummary`. Nothing else is shared but the confirmed positions (atomics).

use super::error::EngineError;
use super::fetch::Answer;
use super::handle::Existing;
use super::hold::HoldState;
use super::replicas::Replicas;
use super::router::RouterStart;
use super::settings::MigrateSettings;
use super::sizes::Sizes;
use super::spool::SpoolStart;
use super::units::{Missed, Unit};
use super::wire::Connected;
use super::witness::Witness;
use crate::convert::journal::GlobalCommand;
use crate::convert::names::Name;
use crate::convert::{Plan, Tally};
use crate::dragonfly::owner::OwnerRule;
use crate::ids::{DbIndex, FlowId, Lsn};
use crate::report::counters::WorkerStats;
use crate::report::document::{Expiries, Filtered, NotCarried};
use crate::report::latency::Interval;
use crate::uring::{Features, Waker};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;
use tokio::sync::mpsc::UnboundedSender;

/// A flow handed over by the control plane, registered and ready for `DFLY SYNC`.
pub struct FlowStart {
    pub id: FlowId,
    pub socket: Connected,
    pub eof_token: [u8; 40],
    /// Stream bytes that came in the same segment as the reply to `DFLY FLOW`.
    pub early: Vec<u8>,
    /// The source granted a partial sync: the journal goes on with this LSN, there is no snapshot.
    pub resume_at: Option<Lsn>,
    /// It first goes on in journal blobs, behind `DFLY SYNC` (wire 1.7, before 1.35).
    pub in_blobs: bool,
}

/// A global command that a flow stands before.
#[derive(Clone, Debug)]
pub struct Barrier {
    pub flow: FlowId,
    pub txid: u64,
    pub command: GlobalCommand,
    /// LSN behind the command on this flow.
    pub next_lsn: Lsn,
}

/// A connected, authenticated connection to a target node, in database 0.
pub struct LaneStart {
    pub node: u16,
    /// Where it is.
    pub name: NodeName,
    pub socket: Connected,
    /// Key of the marker of guarded commands.
    pub marker: Vec<u8>,
    /// Key of the job's checkpoint.
    pub checkpoint: String,
    /// `CLIENT ID` of the connection at the target (0: unknown).
    pub client_id: i64,
    /// To one of a cluster's nodes.
    pub in_cluster: bool,
}

/// A node as messages name it: by the number that reports know it by, and its address.
#[derive(Clone, Debug)]
pub struct NodeName(Arc<str>);

impl NodeName {
    pub fn new(number: u16, address: &impl fmt::Display) -> Self {
        Self(format!("node {number} ({address})").into())
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A recorded command over several slots, which the control plane carries out while the worker is held.
#[derive(Clone, Debug)]
pub struct Apart {
    pub flow: FlowId,
    /// The source's database.
    pub db: DbIndex,
    pub args: Vec<Vec<u8>>,
    /// LSN behind the record; none in the full sync.
    pub next_lsn: Option<Lsn>,
    /// What the markers in its slots hold once it is done; in the full sync given when the control plane is told.
    pub marker: Vec<u8>,
}

/// A worker of a cluster that is held: nothing is under way on its lanes.
pub struct Held {
    pub worker: usize,
    /// What was not executed, or perhaps not, in order.
    pub units: Vec<Unit>,
    /// Lanes that have a connection, and lanes that lost theirs.
    pub live: Vec<(usize, u16)>,
    pub lost: Vec<LostLane>,
    pub apart: Vec<Apart>,
}

/// A cluster's lane without a connection.
#[derive(Clone, Copy, Debug)]
pub struct LostLane {
    pub lane: usize,
    pub node: u16,
    /// The connection that is to be ended at the node; `None`: that was told before, or nothing of it was under way.
    pub client_id: Option<i64>,
}

/// The way on for a worker that was held.
pub struct Settled {
    /// Index of the lane of each slot; `None`: as before.
    pub lanes_by_slot: Option<Box<[u16]>>,
    pub fresh: Vec<(usize, LaneStart)>,
    /// Lanes to nodes that have no slots any more.
    pub gone: Vec<usize>,
    /// Keys that the target lacks, going by the answers to what was executed, or may lack, where nobody saw an answer.
    pub missed: Vec<Missed>,
}

pub struct WorkerStart {
    pub index: usize,
    pub cpu: Option<usize>,
    pub settings: Arc<MigrateSettings>,
    pub sizes: Sizes,
    pub plan: Arc<Plan>,
    pub owner: Arc<OwnerRule>,
    pub existing: Arc<Existing>,
    pub flows: Vec<FlowStart>,
    pub lanes: Vec<LaneStart>,
    pub events: UnboundedSender<WorkerEvent>,
    pub commands: mpsc::Receiver<WorkerCommand>,
    /// By flow: LSN of the next record that the target has not confirmed; 0 before the flow's snapshot is confirmed.
    pub confirmed: Arc<Vec<AtomicU64>>,
    /// What was read of each flow, and who wrote it.
    pub witness: Arc<Witness>,
    /// The target is a cluster.
    pub router: Option<RouterStart>,
    /// Where replicas must confirm what is told.
    pub replicas: Option<Arc<Replicas>>,
    pub hold: Arc<HoldState>,
    /// Where lagging flows spool.
    pub spool: Option<SpoolStart>,
}

/// A key that vanished at the target.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lost {
    pub flow: FlowId,
    pub db: DbIndex,
    pub key: Vec<u8>,
}

/// A key that is to be fetched.
pub struct Wanted {
    pub lost: Lost,
    /// The flow's number of the question (`doubt`).
    pub question: u64,
}

/// What a worker tells the control plane.
pub enum WorkerEvent {
    /// The ring stands; reading may begin.
    Ready {
        worker: usize,
        features: Box<Features>,
        waker: Waker,
    },
    /// A flow delivered FULLSYNC_END.
    FullSyncEnd {
        flow: FlowId,
    },
    /// A flow delivered its offset, EOF and the right token.
    Complete {
        flow: FlowId,
        next_lsn: Lsn,
        token: [u8; 40],
    },
    /// All flows are complete (or decoding was stopped) and everything is acknowledged.
    Drained,
    /// The source ended a flow's connection in stable sync, or it broke: what was read of it is still applied.
    SourceGone {
        why: String,
    },
    /// The source cannot be read on, and must not be kept waiting for it.
    LetGo {
        why: String,
    },
    /// After `LeaveSource`: everything that was read is applied, acknowledged and in the checkpoint, up to the end or up to a
    /// global command. `releases`: how many of those were released before.
    Spent {
        worker: usize,
        releases: u64,
    },
    /// A flow stands before a global command.
    AtBarrier(Barrier),
    /// All flows of the worker stand before a barrier and everything before it is acknowledged.
    BarrierDrained,
    /// Nothing was left to be sent or answered after this order to settle.
    Settled(u64),
    /// Keys that the source may have deleted silently during the full sync (wire 2.10), to be asked for. `changed`: those of which it is
    /// to be known what they hold as well.
    Suspects {
        keys: Vec<Lost>,
        changed: Vec<Lost>,
    },
    /// The target lost a key that the source had, or a record did not say what became of it: it is to be fetched.
    Lost(Wanted),
    /// Once a second.
    Sample {
        worker: usize,
        stats: Box<WorkerStats>,
        interval: Box<Interval>,
        not_carried: Vec<NotCarried>,
    },
    /// A connection to the target broke: the control plane connects again and reads the marker.
    LaneLost {
        worker: usize,
        lane: usize,
        generation: u16,
        client_id: i64,
        marker: Vec<u8>,
        marked_dbs: Vec<DbIndex>,
    },
    /// A server refused as a replica does, which may copy another one's data: every connection to it is to be made again.
    MayCopy,
    /// A cluster's worker holds still until it is told how to go on.
    Held(Box<Held>),
    Finished {
        summary: Box<WorkerSummary>,
    },
    Failed {
        worker: usize,
        error: EngineError,
    },
}

/// What the control plane tells a worker (through its channel; then the waker is rung).
pub enum WorkerCommand {
    Resume {
        lane: usize,
        generation: u16,
        socket: Connected,
        client_id: i64,
        applied: u64,
    },
    /// The server may have copied another one's data: nothing more goes to it but on new connections, for which it is asked.
    ConnectAnew,
    /// A held worker of a cluster goes on.
    Settled(Box<Settled>),
    /// The global command was executed and its position stored.
    ReleaseBarrier,
    /// Decode nothing more; `Drained` follows when everything is acknowledged.
    Drain,
    /// The registration at the source is over: apply what was read; `Spent` follows. `read_on`: what is still on its way is
    /// read first; else the connections are closed at once. `asks`: what is asked of lost keys is still answered.
    LeaveSource {
        read_on: bool,
        asks: bool,
    },
    /// Say when nothing is left to be sent or answered; `release`: give held expiries back before.
    Settle {
        number: u64,
        release: bool,
    },
    /// Apply nothing more and look at what comes; say when nothing is left to be answered.
    Seal {
        number: u64,
    },
    /// The cutover is rolled back: apply again.
    GoOn,
    /// Decoding has stopped, and nothing more is to come: give all held expiries back; another `Drained` follows.
    ReleaseHeld,
    /// Keys and fields that were found at the target with a shifted expiry.
    Found(Vec<Name>),
    /// A key of which the checkpoint says that it is to be fetched: an earlier session could not, or the source may have deleted it
    /// silently.
    Doubt(Lost),
    /// What the source said of a lost key, or why it cannot be had.
    Fetched(Box<Answer>),
    /// Send the suspects.
    ListSuspects,
    /// Whatever the source had recorded when it was asked for them is applied.
    ForgetSuspects,
    /// End: drop everything and report.
    Stop,
}

/// What is left when a worker has stopped.
pub struct WorkerSummary {
    pub worker: usize,
    pub tallies: Vec<Tally>,
    pub not_carried: Vec<NotCarried>,
    pub suspects: Vec<(DbIndex, Vec<u8>)>,
    /// Keys that the target lost and that were not fetched again yet.
    pub lost: Vec<Lost>,
    pub strays_dropped: u64,
    pub owner_unknown: u64,
    pub existing_skipped: u64,
    pub expiries: Expiries,
    pub filtered: Filtered,
    pub journal_records: u64,
    pub journal_by_name: Vec<(String, u64)>,
    /// Markers written, and the databases in which.
    pub marked: Vec<(Vec<u8>, Vec<DbIndex>)>,
    pub stats: WorkerStats,
    pub interval: Interval,
    pub source_version: Option<String>,
}
