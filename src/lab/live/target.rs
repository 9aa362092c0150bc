//! Where a run against a live source writes to: one server, or a cluster that may be resharded meanwhile.
//!
//! In: servers. Out: what a run asks of its target: emptied before, its checkpoint, faults at the data connections, and the
//! comparison in the end. A cluster is gathered into a stand-alone server for that, where truth.py reads it.

use crate::lab::LabError;
use crate::lab::client::Client;
use crate::lab::cluster::Cluster;
use crate::lab::rng::Rng;
use crate::lab::servers::{Server, ServerKind, ServerOptions};
use crate::lab::torture::{compare, compare_within, is_stable, wait_for};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// MIGRATE hands on a time to live, not a time: each move of a key delays its expiry by what it took.
const MIGRATE_SLACK_MS: u64 = 2000;

/// A run's target.
#[derive(Clone)]
pub enum Target {
    Server(Arc<Server>),
    /// `judge`: a stand-alone server of the same kind, into which the nodes are gathered.
    Cluster {
        cluster: Arc<Cluster>,
        judge: Arc<Server>,
    },
}

impl From<Arc<Server>> for Target {
    fn from(server: Arc<Server>) -> Self {
        Self::Server(server)
    }
}

impl Target {
    /// The server, or the one into which a cluster is gathered.
    pub fn server(&self) -> &Arc<Server> {
        match self {
            Self::Server(server) => server,
            Self::Cluster { judge, .. } => judge,
        }
    }

    pub fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster { .. })
    }

    /// Port to begin with: of the server, or of a living primary.
    pub fn port(&self) -> u16 {
        match self {
            Self::Server(server) => server.port(),
            Self::Cluster { cluster, .. } => {
                cluster.primaries().first().map_or(0, |primary| cluster.nodes[*primary].port())
            }
        }
    }

    /// A client to each server that takes writes.
    pub fn clients(&self) -> Result<Vec<Client>, LabError> {
        match self {
            Self::Server(server) => Ok(vec![server.client()?]),
            Self::Cluster { cluster, .. } => {
                cluster.primaries().into_iter().map(|primary| cluster.nodes[primary].client()).collect()
            }
        }
    }

    pub fn empty(&self) -> Result<(), LabError> {
        self.clients()?.iter_mut().try_for_each(|client| client.run("FLUSHALL").map(drop))
    }

    /// The checkpoint says that the full sync is done.
    pub fn is_stable(&self) -> bool {
        match self {
            Self::Server(server) => is_stable(server),
            Self::Cluster { cluster, .. } => {
                cluster.primaries().into_iter().any(|primary| is_stable(&cluster.nodes[primary]))
            }
        }
    }

    /// Closes the tool's data connections. How many there were.
    pub fn kill_lanes(&self) -> Result<u64, LabError> {
        let mut count = 0;
        for mut client in self.clients()? {
            let list = client.run("CLIENT LIST")?.text().unwrap_or_default();
            for line in list.lines().filter(|line| line.contains("name=df2redis-lane")) {
                let id = line.split(' ').find_map(|field| field.strip_prefix("id=")).unwrap_or_default();
                // It may be gone already.
                client.ask(&["CLIENT", "KILL", "ID", id])?;
                count += 1;
            }
        }
        Ok(count)
    }

    /// One server answers nothing for this time.
    pub fn stall(&self, time: Duration, rng: &mut Rng) -> Result<(), LabError> {
        let mut clients = self.clients()?;
        let count = clients.len().max(1) as u64;
        match clients.get_mut(rng.below(count) as usize) {
            Some(client) => client.run(&format!("CLIENT PAUSE {} ALL", time.as_millis())).map(drop),
            None => Ok(()),
        }
    }

    /// Some replica takes over from its primary, while slots may move; if it does.
    pub fn fail_over(&self, rng: &mut Rng, mover: Option<&Mover>) -> Result<bool, LabError> {
        const WITHIN: Duration = Duration::from_secs(40);
        let Self::Cluster { cluster, .. } = self else { return Ok(false) };
        let primaries = cluster.primaries();
        let mut replicas: Vec<usize> = (0..cluster.nodes.len()).filter(|node| !primaries.contains(node)).collect();
        // A replica does not know, before Valkey 8, that a slot of its primary is on the move: of its keys that have been moved already
        // it would say that they are not there, and what is written to them then is lost. No client could help that.
        let _failing = mover.map(|mover| mover.keep_out(cluster, &mut replicas, rng));
        match replicas.get(rng.below(replicas.len().max(1) as u64) as usize) {
            Some(replica) => cluster.try_fail_over(*replica, WITHIN),
            None => Ok(false),
        }
    }

    /// What is there against the truth.
    pub fn compare(&self, kind: ServerKind, truth_file: &Path) -> Result<(), String> {
        if let Self::Cluster { cluster, judge } = self {
            let gathered = cluster.wait_ok().and_then(|()| cluster.gather(judge));
            gathered.map_err(|error| error.to_string())?;
            return compare_within(judge, kind, truth_file, MIGRATE_SLACK_MS);
        }
        match kind {
            ServerKind::Redis6 => compare(&replica_of(self.server())?, ServerKind::Redis7, truth_file),
            _ => compare(self.server(), kind, truth_file),
        }
    }
}

/// Redis 6.2 cannot tell what truth.py asks for: a server of a later release that copies it can.
fn replica_of(server: &Server) -> Result<Server, String> {
    let copied = || -> Result<Option<Server>, LabError> {
        let replica = Server::start_kind(ServerKind::Redis7, ServerOptions::default())?;
        let mut client = replica.client()?;
        client.run(&format!("REPLICAOF {} {}", server.host(), server.port()))?;
        let linked = wait_for(|| (client.info("master_link_status").ok()?.as_deref() == Some("up")).then_some(()));
        Ok(linked.map(|()| replica))
    };
    copied().map_err(|error| error.to_string())?.ok_or_else(|| "the target cannot be copied".into())
}

/// Moves slots that hold keys to and fro, key by key, until it is dropped: at every moment a slot may be half moved.
pub struct Mover {
    stop: Arc<AtomicBool>,
    shards: Arc<Mutex<Shards>>,
    moved: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<Result<(), LabError>>>,
}

/// Shards of which one gives slots away, or one is being failed over, now.
#[derive(Default)]
struct Shards {
    gives: Option<usize>,
    fails_over: Option<usize>,
}

/// A shard that gives no slots away as long as this lives.
struct FailingOver(Arc<Mutex<Shards>>);

impl Drop for FailingOver {
    fn drop(&mut self) {
        lock(&self.0).fails_over = None;
    }
}

fn lock(shards: &Mutex<Shards>) -> MutexGuard<'_, Shards> {
    shards.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Mover {
    pub fn start(cluster: Arc<Cluster>, seed: u64) -> Self {
        let (stop, moved) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let shards = Arc::<Mutex<Shards>>::default();
        let (stopping, counter, claims) = (stop.clone(), moved.clone(), shards.clone());
        let rng = Rng::new(seed ^ 0x510f);
        let thread = std::thread::spawn(move || move_slots(&cluster, rng, &stopping, &counter, &claims));
        Self { stop, moved, shards, thread: Some(thread) }
    }

    /// Leaves one of these replicas, whose shard gives no slot away, nor begins to for so long.
    fn keep_out(&self, cluster: &Cluster, replicas: &mut Vec<usize>, rng: &mut Rng) -> FailingOver {
        let mut shards = lock(&self.shards);
        replicas.retain(|replica| Some(cluster.shard_of(*replica)) != shards.gives);
        let chosen = rng.below(replicas.len().max(1) as u64) as usize;
        *replicas = replicas.get(chosen).copied().into_iter().collect();
        shards.fails_over = replicas.first().map(|replica| cluster.shard_of(*replica));
        FailingOver(self.shards.clone())
    }

    /// Ends behind the slot that is being moved. How many were moved.
    pub fn stop(mut self) -> Result<u64, LabError> {
        self.end()?;
        Ok(self.moved.load(Ordering::Relaxed))
    }

    fn end(&mut self) -> Result<(), LabError> {
        self.stop.store(true, Ordering::Release);
        match self.thread.take().map(std::thread::JoinHandle::join) {
            Some(Ok(result)) => result,
            _ => Ok(()),
        }
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        self.end().ok();
    }
}

fn move_slots(
    cluster: &Cluster,
    mut rng: Rng,
    stop: &AtomicBool,
    moved: &AtomicU64,
    shards: &Mutex<Shards>,
) -> Result<(), LabError> {
    // Slots that one node gives to another before the next one's turn: see the head of `lab::cluster`.
    const TURN_SLOTS: u64 = 6;
    while !stop.load(Ordering::Acquire) {
        let primaries = cluster.primaries();
        let from = primaries[rng.below(primaries.len() as u64) as usize];
        let to = primaries[rng.below(primaries.len() as u64) as usize];
        let shard = cluster.shard_of(from);
        {
            let mut shards = lock(shards);
            if cluster.shard_of(to) == shard || shards.fails_over == Some(shard) {
                continue;
            }
            shards.gives = Some(shard);
        }
        // A replica of its may have taken over since.
        if !cluster.primaries().contains(&from) {
            lock(shards).gives = None;
            continue;
        }
        for _ in 0..1 + rng.below(TURN_SLOTS) {
            let mut client = cluster.nodes[from].client()?;
            let key = client.run("RANDOMKEY")?;
            let Some(key) = key.bytes() else { break };
            // A slot with several keys is met more often. The node may hold a key that is on its way.
            let slot = client.ask(&[b"CLUSTER".as_slice(), b"KEYSLOT", key])?.int().unwrap_or(0) as u16;
            let pause = Duration::from_micros(rng.below(4000));
            match cluster.nodes.len() > primaries.len() {
                true => cluster.move_slot_surely(slot, from, to, pause)?,
                false => cluster.move_slot_slowly(slot, from, to, pause)?,
            }
            moved.fetch_add(1, Ordering::Relaxed);
            if stop.load(Ordering::Acquire) {
                break;
            }
        }
        lock(shards).gives = None;
        cluster.wait_agreed()?;
    }
    Ok(())
}
