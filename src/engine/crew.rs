//! The workers of one full sync: started, listened to, reconnected, stopped.
//!
//! In: the flows, opened. Out: the workers' events. Invariants: no thread outlives `stop`; a connection that a worker
//! lost is made again only to the same server process (a restarted one may have forgotten acknowledged writes).

use super::cluster::Cluster;
use super::error::EngineError;
use super::handle::Existing;
use super::hold::HoldState;
use super::job::{graver, plan_of};
use super::lease;
use super::messages;
use super::messages::{
    Barrier, FlowStart, Held, LaneStart, NodeName, Settled, WorkerCommand, WorkerEvent, WorkerStart, WorkerSummary,
};
use super::own;
use super::proving::Prover;
use super::replicas::Replicas;
use super::router::{Resumed, RouterStart};
use super::settings::MigrateSettings;
use super::sizes::Sizes;
use super::spool::{DiskShare, SpoolStart};
use super::target::{OWN_PREFIX, Process};
use super::witness::Witness;
use super::worker;
use crate::convert::names::Name;
use crate::dragonfly::owner::OwnerRule;
use crate::dragonfly::session::Release;
use crate::ids::{FlowId, Lsn, Slot};
use crate::redis::Capabilities;
use crate::report::document::RingFeature;
use crate::uring::{self, Features, Waker};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

mod reconnecting;
mod watching;

use reconnecting::{Again, Lost, Reconnected, first_lane};

pub struct CrewPlan {
    pub settings: Arc<MigrateSettings>,
    pub capabilities: Capabilities,
    /// Databases of the target, where it tells.
    pub databases: Option<u32>,
    /// Release of the source, where it tells.
    pub source: Option<Release>,
    /// Its clock is at most so far before ours.
    pub source_ahead_ms: i64,
    pub existing: Arc<Existing>,
    pub process: Arc<Process>,
    /// The target is one.
    pub cluster: Option<ClusterPlan>,
    /// Tells when the target is another's.
    pub lease: Option<lease::Watch>,
}

/// What a session knows of the target cluster.
#[derive(Clone)]
pub struct ClusterPlan {
    pub cluster: Rc<Mutex<Cluster>>,
    /// What the positions of its markers are positions of.
    pub journal_tag: String,
    /// Markers found at the beginning.
    pub resumed: Arc<Resumed>,
    /// By flow: what stands before this LSN may have been sent by an earlier session, though no position says so.
    pub sent_before: Arc<[Lsn]>,
    /// By flow: the checkpoint's position, before what the nodes lack is counted.
    pub heard_before: Arc<[Lsn]>,
    /// Keys of positions found at the nodes.
    pub noted: Arc<[(FlowId, Slot)]>,
    /// The checkpoint is good: a session that ends may be followed by one that goes on from it.
    pub stable: Arc<AtomicBool>,
}

/// Part of a source process's id that tells its positions from another's.
pub fn journal_tag(master_id: &str) -> String {
    master_id.chars().filter(char::is_ascii_alphanumeric).take(16).collect()
}

struct Member {
    commands: mpsc::Sender<WorkerCommand>,
    waker: Option<Waker>,
    thread: Option<JoinHandle<()>>,
}

pub struct Crew {
    plan: CrewPlan,
    members: Vec<Member>,
    events: UnboundedReceiver<WorkerEvent>,
    /// What workers said while others still set up, such as a lost connection.
    early: VecDeque<WorkerEvent>,
    features: Option<Box<Features>>,
    reconnected: UnboundedReceiver<Reconnected>,
    reconnected_tx: UnboundedSender<Reconnected>,
    settled: UnboundedReceiver<(usize, Result<Settled, EngineError>)>,
    settled_tx: UnboundedSender<(usize, Result<Settled, EngineError>)>,
    /// By worker: the cluster, with connections of its own, so that one that waits for a node stops no other one.
    clusters: Vec<Rc<Mutex<Cluster>>>,
    /// Tasks that execute what held workers left, and the one that looks at the nodes.
    settling: Vec<tokio::task::JoinHandle<()>>,
    summaries: Vec<WorkerSummary>,
    /// By flow: LSN of the next record that the target has not confirmed (0: its snapshot is not).
    confirmed: Arc<Vec<AtomicU64>>,
    /// What replicas have confirmed, and who asks them, where they must.
    replicas: Option<Arc<Replicas>>,
    prover: Option<Prover>,
    witness: Arc<Witness>,
    hold: Arc<HoldState>,
    owner: Arc<OwnerRule>,
    /// Flows that stand before a global command, and workers that are drained before one.
    barriers: Vec<Barrier>,
    /// Keys that flows lost before the session follows the journal: they are fetched then.
    lost_early: Vec<messages::Wanted>,
    barrier_workers: usize,
    /// Ids, at the target, of all connections that workers had.
    client_ids: Vec<i64>,
    /// Keys of the lanes' markers.
    markers: Vec<Vec<u8>>,
}

/// How long a worker may take to set up its ring (registering pins memory, which is slow) and to stop.
const WORKER_PATIENCE: Duration = Duration::from_secs(60);
impl Crew {
    /// Spreads the flows over the workers, connects their lanes and waits until every ring stands.
    pub async fn start(plan: CrewPlan, flows: Vec<FlowStart>) -> Result<Self, EngineError> {
        let settings = plan.settings.clone();
        let flows_count = flows.len();
        let workers = settings.cores.clamp(1, flows_count.max(1));
        let flows_max = flows_count.div_ceil(workers);
        let nodes = match &plan.cluster {
            Some(plan) => plan.cluster.lock().await.primary_ids().len(),
            None => 0,
        };
        // One to each node of a cluster, and room for nodes that come.
        let lanes_of = |flows: usize| if nodes > 0 { nodes + 1 } else { settings.connections.clamp(1, flows.max(1)) };
        let sizes = Sizes::derive(&settings, workers, flows_max, lanes_of(flows_max))?;
        let source = (plan.source, plan.source_ahead_ms);
        let convert_plan = plan_of(&settings, plan.capabilities.clone(), plan.databases, sizes.set_bytes_max, source)?;
        let owner = Arc::new(OwnerRule::new(flows_count as u32));
        let job = format!("{:x}{:x}", std::process::id(), uring::clock::realtime_ms());

        let confirmed: Arc<Vec<AtomicU64>> =
            Arc::new(flows.iter().map(|flow| AtomicU64::new(flow.resume_at.map_or(0, |lsn| lsn.0))).collect());
        let mut shares: Vec<Vec<FlowStart>> = (0..workers).map(|_| Vec::new()).collect();
        for (i, flow) in flows.into_iter().enumerate() {
            shares[i % workers].push(flow);
        }
        let disk = DiskShare::new(settings.spool.as_ref().map_or(0, |spool| spool.bytes_max));
        let (events_tx, events) = unbounded_channel();
        let (reconnected_tx, reconnected) = unbounded_channel();
        let (settled_tx, settled) = unbounded_channel();
        let mut crew = Self {
            plan,
            members: Vec::new(),
            events,
            early: VecDeque::new(),
            features: None,
            reconnected,
            reconnected_tx,
            settled,
            settled_tx,
            clusters: Vec::new(),
            settling: Vec::new(),
            summaries: Vec::new(),
            confirmed,
            // `migrate` asks once, at its end.
            replicas: settings.follow.as_ref().and(settings.wait_replicas).map(|_| Arc::default()),
            prover: None,
            witness: Arc::new(Witness::new(flows_count)),
            hold: Arc::new(HoldState::new(flows_count, settings.control.clone())),
            owner: owner.clone(),
            barriers: Vec::new(),
            lost_early: Vec::new(),
            barrier_workers: 0,
            client_ids: Vec::new(),
            markers: Vec::new(),
        };
        for (index, share) in shares.into_iter().enumerate() {
            let mut lanes = Vec::new();
            let router = match crew.plan.cluster.clone() {
                Some(plan) => {
                    let mut cluster = plan.cluster.lock().await;
                    let mut places = HashMap::new();
                    for id in cluster.primary_ids() {
                        let Some(lane) = cluster.first_lane(&id).await? else { continue };
                        places.insert(id, lanes.len());
                        lanes.push(lane);
                    }
                    Some(RouterStart {
                        lanes_by_slot: cluster.lanes_by_slot(&places),
                        journal_tag: plan.journal_tag,
                        snapshot_tag: job.clone(),
                        job_tag: own::tag(&settings),
                        checkpoint_key: own::checkpoint_key(&settings),
                        resumed: plan.resumed,
                        sent_before: plan.sent_before,
                        heard_before: plan.heard_before,
                        noted: plan.noted,
                    })
                }
                None => None,
            };
            let servers = if router.is_some() { 0 } else { lanes_of(share.len()) };
            for lane in 0..servers {
                let (link, client_id) = first_lane(&settings, crew.plan.capabilities.import_mode).await?;
                let marker = format!("{OWN_PREFIX}marker:{job}:{index}:{lane}").into_bytes();
                crew.client_ids.push(client_id);
                crew.markers.push(marker.clone());
                lanes.push(LaneStart {
                    node: 0,
                    name: NodeName::new(0, &settings.target.address()),
                    client_id,
                    socket: link.hand_over()?,
                    marker,
                    checkpoint: own::checkpoint_key(&settings),
                    in_cluster: false,
                });
            }
            let (commands, receiver) = mpsc::channel();
            let start = WorkerStart {
                index,
                cpu: settings.pin_cpus.get(index % settings.pin_cpus.len().max(1)).copied(),
                settings: settings.clone(),
                sizes,
                plan: convert_plan.clone(),
                owner: owner.clone(),
                existing: crew.plan.existing.clone(),
                flows: share,
                lanes,
                events: events_tx.clone(),
                commands: receiver,
                confirmed: crew.confirmed.clone(),
                witness: crew.witness.clone(),
                router,
                replicas: crew.replicas.clone(),
                hold: crew.hold.clone(),
                spool: settings.spool.as_ref().map(|spool| SpoolStart::open(spool, &disk)).transpose()?,
            };
            let thread = std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || worker::run(start))
                .map_err(|e| EngineError::System(format!("worker {index} cannot be started: {e}")))?;
            crew.members.push(Member { commands, waker: None, thread: Some(thread) });
        }
        drop(events_tx);
        if let Err(error) = crew.wait_ready().await {
            // What the others say while they stop is less than why they have to.
            let _ = crew.stop().await;
            return Err(error);
        }
        settings.control.set_begun();
        if let Some(replicas) = &crew.replicas {
            let cluster = crew.plan.cluster.as_ref().map(|plan| plan.cluster.clone());
            if let Some(cluster) = &cluster {
                cluster.lock().await.replicas = Some(replicas.clone());
            }
            let wakers = crew.members.iter().filter_map(|member| member.waker.clone()).collect();
            crew.prover = Some(Prover::start(&settings, &crew.plan.process, cluster, replicas.clone(), wakers));
        }
        crew.watch_nodes();
        if let Some(plan) = &crew.plan.cluster {
            let cluster = plan.cluster.lock().await;
            crew.clusters = (0..workers).map(|_| Rc::new(Mutex::new(cluster.for_worker()))).collect();
        }
        Ok(crew)
    }

    async fn wait_ready(&mut self) -> Result<(), EngineError> {
        let mut ready = 0;
        while ready < self.members.len() {
            match tokio::time::timeout(WORKER_PATIENCE, self.events.recv()).await {
                Ok(Some(WorkerEvent::Ready { worker, features, waker })) => {
                    ready += 1;
                    self.features = Some(features);
                    if let Some(member) = self.members.get_mut(worker) {
                        member.waker = Some(waker);
                    }
                }
                Ok(Some(WorkerEvent::Failed { error, .. })) => return Err(error),
                Ok(Some(WorkerEvent::SourceGone { why })) => return Err(EngineError::Source(why)),
                Ok(Some(event)) => self.early.push_back(event),
                Ok(None) => return Err(EngineError::Internal("a worker ended without a word".into())),
                Err(_) => {
                    return Err(EngineError::System(format!(
                        "a worker's ring did not stand within {WORKER_PATIENCE:?}"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Flows that stand before a global command now.
    pub fn at_barrier(&self) -> impl Iterator<Item = FlowId> {
        self.barriers.iter().map(|barrier| barrier.flow)
    }

    /// The barriers, once every flow stands before one and everything before them is acknowledged.
    pub fn take_barriers(&mut self) -> Option<Vec<Barrier>> {
        if self.barriers.len() < self.confirmed.len() || self.barrier_workers < self.members.len() {
            return None;
        }
        self.barrier_workers = 0;
        Some(std::mem::take(&mut self.barriers))
    }

    /// A flow stands before a global command.
    pub fn has_barriers(&self) -> bool {
        !self.barriers.is_empty()
    }

    /// By flow: LSN of the next record that the target has not confirmed; 0 before the flow's snapshot is.
    pub fn confirmed(&self) -> Vec<u64> {
        self.confirmed.iter().map(|lsn| lsn.load(Ordering::Acquire)).collect()
    }

    /// What replicas have confirmed, where they must.
    pub fn replicas(&self) -> Option<&Replicas> {
        self.replicas.as_deref()
    }

    /// What was read of each flow, and who wrote it.
    pub fn witness(&self) -> &Arc<Witness> {
        &self.witness
    }

    /// How far the flows are applied as a time, and what is held.
    pub fn hold(&self) -> &Arc<HoldState> {
        &self.hold
    }

    /// Tells the worker of a flow.
    pub fn tell_flow(&self, flow: FlowId, command: WorkerCommand) {
        // As the flows were spread.
        self.tell(flow.0 as usize % self.members.len().max(1), command);
    }

    /// The same, as it is kept up to date.
    pub fn positions(&self) -> Arc<Vec<AtomicU64>> {
        self.confirmed.clone()
    }

    /// The target is a cluster.
    pub fn is_cluster(&self) -> bool {
        self.plan.capabilities.cluster
    }

    /// The checkpoint is good from now on.
    pub fn set_stable(&self) {
        if let Some(plan) = &self.plan.cluster {
            plan.stable.store(true, Ordering::Release);
        }
    }

    /// Keys of the markers that the lanes may write.
    pub fn markers(&self) -> &[Vec<u8>] {
        &self.markers
    }

    /// Tells every worker the same.
    pub fn tell_all(&self, command: impl Fn() -> WorkerCommand) {
        for worker in 0..self.members.len() {
            self.tell(worker, command());
        }
    }

    /// The flow that a key comes on, as far as the source's rule is known.
    pub fn flow_of(&self, key: &[u8]) -> Option<FlowId> {
        self.owner.owner(key)
    }

    /// Keys dropped as strays under a rule that turned out to be wrong.
    pub fn strays_in_doubt(&self) -> u64 {
        self.owner.strays_in_doubt()
    }

    pub fn workers(&self) -> usize {
        self.members.len()
    }

    pub fn features(&self) -> Vec<RingFeature> {
        self.features.as_ref().map(|features| super::rows::ring_features(features)).unwrap_or_default()
    }

    /// The next event that is not the crew's own business.
    pub async fn event(&mut self) -> Result<WorkerEvent, EngineError> {
        loop {
            tokio::select! {
                event = next(&mut self.early, &mut self.events) => match event {
                    Some(WorkerEvent::Failed { worker, error }) => {
                        tracing::debug!(worker, %error, "worker failed");
                        return Err(error);
                    }
                    Some(WorkerEvent::LaneLost { worker, lane, generation, client_id, marker, marked_dbs }) => {
                        let import_mode = self.plan.capabilities.import_mode;
                        self.reconnect(worker, lane, generation, Lost { client_id, marker, marked_dbs, import_mode });
                    }
                    Some(WorkerEvent::MayCopy) => self.tell_all(|| WorkerCommand::ConnectAnew),
                    Some(WorkerEvent::Held(held)) => self.settle(held),
                    Some(event) => {
                        // Kept here, because a flow may stand before a barrier while others are still in the full sync.
                        match &event {
                            WorkerEvent::AtBarrier(barrier) => self.barriers.push(barrier.clone()),
                            WorkerEvent::BarrierDrained => self.barrier_workers += 1,
                            _ => {}
                        }
                        return Ok(event);
                    }
                    None => return Err(EngineError::Internal("all workers ended without a word".into())),
                },
                Some((worker, settled)) = self.settled.recv() => {
                    self.tell(worker, WorkerCommand::Settled(Box::new(settled?)));
                }
                lost = lease::lost(&mut self.plan.lease) => return Err(lost),
                failed = failed(&mut self.prover) => return Err(failed),
                Some(again) = self.reconnected.recv() => {
                    let Again { socket, client_id, applied } = again.result?;
                    self.client_ids.push(client_id);
                    let command =
                        WorkerCommand::Resume { lane: again.lane, generation: again.generation, socket, client_id, applied };
                    self.tell(again.worker, command);
                }
            }
        }
    }

    /// Events to be returned once more, in this order. (What the crew itself heard of barriers is kept.)
    pub fn put_back(&mut self, events: Vec<WorkerEvent>) {
        let is_kept = |event: &WorkerEvent| matches!(event, WorkerEvent::AtBarrier(_) | WorkerEvent::BarrierDrained);
        self.early.extend(events.into_iter().filter(|event| !is_kept(event)));
    }

    /// A flow that is ahead of the others, which are still in the full sync, lost a key.
    pub fn keep_lost(&mut self, wanted: messages::Wanted) {
        self.lost_early.push(wanted);
    }

    pub fn take_lost(&mut self) -> Vec<messages::Wanted> {
        std::mem::take(&mut self.lost_early)
    }

    pub fn tell(&self, worker: usize, command: WorkerCommand) {
        if let Some(member) = self.members.get(worker) {
            // A worker that is gone has said why through its event.
            let _ = member.commands.send(command);
            if let Some(waker) = &member.waker {
                waker.wake();
            }
        }
    }

    /// Shares out names of expiries that were found held at the target.
    pub fn tell_found(&self, names: Vec<Name>) {
        let share = names.len().div_ceil(self.members.len().max(1)).max(1);
        for (worker, names) in names.chunks(share).enumerate() {
            self.tell(worker, WorkerCommand::Found(names.to_vec()));
        }
    }

    /// Executes, in the background, what a held worker of a cluster left, and sends it on.
    fn settle(&mut self, held: Box<Held>) {
        let Some(cluster) = self.clusters.get(held.worker).cloned() else { return };
        let done = self.settled_tx.clone();
        self.settling.retain(|task| !task.is_finished());
        self.settling.push(tokio_uring::spawn(async move {
            let result = cluster.lock().await.settle(&held).await;
            let _ = done.send((held.worker, result));
        }));
    }

    /// Has the checkpoint say, in the background, which processes a cluster's primaries are.
    pub fn note_processes(&mut self) {
        let Some(plan) = self.plan.cluster.clone() else { return };
        let done = self.settled_tx.clone();
        self.settling.push(tokio_uring::spawn(async move {
            match plan.cluster.lock().await.note_processes(true).await {
                Ok(()) => {}
                // It ends the session, whoever has heard of it first.
                Err(error @ EngineError::TargetRestarted(_)) => drop(done.send((usize::MAX, Err(error)))),
                Err(error) => {
                    tracing::warn!(%error, "the checkpoint does not say which processes the cluster's nodes are")
                }
            }
        }));
    }

    /// Ids of all connections that workers had. What they sent last may still wait at the target.
    pub fn client_ids(&self) -> &[i64] {
        &self.client_ids
    }

    /// Stops every worker and waits for it. Returns their summaries and the first failure among them.
    pub async fn stop(&mut self) -> (Vec<WorkerSummary>, Result<(), EngineError>) {
        self.prover = None;
        // What they have not executed belongs to the next session: nothing may be executed once it has read the markers.
        for task in self.settling.drain(..) {
            task.abort();
            let _ = task.await;
        }
        for worker in 0..self.members.len() {
            self.tell(worker, WorkerCommand::Stop);
        }
        let mut outcome = Ok(());
        let deadline = tokio::time::Instant::now() + WORKER_PATIENCE;
        loop {
            match tokio::time::timeout_at(deadline, self.events.recv()).await {
                Ok(Some(WorkerEvent::Finished { summary })) => self.summaries.push(*summary),
                Ok(Some(WorkerEvent::Failed { error, .. })) => outcome = graver(outcome, Err(error)),
                Ok(Some(WorkerEvent::Ready { worker, waker, .. })) => {
                    waker.wake();
                    if let Some(member) = self.members.get_mut(worker) {
                        member.waker = Some(waker);
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => {
                    outcome = outcome.and(Err(EngineError::Internal("a worker did not stop".into())));
                    break;
                }
            }
        }
        for member in &mut self.members {
            if let Some(thread) = member.thread.take()
                && thread.is_finished()
            {
                let _ = thread.join();
            }
        }
        (std::mem::take(&mut self.summaries), outcome)
    }
}

impl Drop for Crew {
    /// One that was stopped has nothing left that runs. Else it was cut off while a session was begun: nothing of it goes on.
    fn drop(&mut self) {
        self.settling.iter().for_each(|task| task.abort());
        self.tell_all(|| WorkerCommand::Stop);
    }
}

/// Ends when replicas cannot be waited for any more. May be dropped at any time.
async fn failed(prover: &mut Option<Prover>) -> EngineError {
    match prover {
        Some(prover) => prover.failed().await,
        None => std::future::pending().await,
    }
}

/// The next event, those from the start first. May be dropped at any time.
async fn next(early: &mut VecDeque<WorkerEvent>, events: &mut UnboundedReceiver<WorkerEvent>) -> Option<WorkerEvent> {
    match early.pop_front() {
        Some(event) => Some(event),
        None => events.recv().await,
    }
}
