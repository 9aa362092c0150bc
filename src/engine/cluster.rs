//! The control plane's side of a cluster: who has which slot, one connection to each node, commands sent where they belong.
//!
//! In: any node's address. Out: the topology, replies to routed commands, connections for the workers. Invariants: only
//! nodes that an authenticated node of the cluster named are connected to; one command at a time, its answer awaited; a
//! command that was redirected is sent again only after the error that says it was not executed; before anything is sent
//! to a node with which a worker lost a connection, that connection is ended there; a primary that came back as another
//! process, or whose replica took over, may have forgotten acknowledged writes: the session ends, and where the journal is
//! followed the next one goes on from the positions that the nodes hold themselves (`homes`).

use super::error::EngineError;
use super::errors::is_rejection;
use super::patience::{Patience, rest};
use super::refusal;
use super::replicas::Replicas;
use super::settings::{Endpoint, MigrateSettings};
use super::target::{self, TargetLink};
use super::{homes, own};
use crate::ids::Slot;
use crate::redis::info::Info;
use crate::redis::slot::slot;
use crate::redis::topology::{Address, NatMap, Node, Redirect, Role, Topology};
use crate::redis::value::Value;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A node that does not answer within this is asked later.
const NODE_TIMEOUT: Duration = Duration::from_secs(2);
/// First pause before a redirect to a node that no node knows is asked again.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
/// How often a redirect to a node that no node knows is asked again: news of a new node takes a moment to spread.
const UNKNOWN_TRIES: u32 = 5;
/// So long a slot that nobody has is waited for before the start. A replica takes over within seconds of the vote that its
/// primary failed; a cluster that was never complete is told to the operator soon.
const UNCOVERED_MAX: Duration = Duration::from_secs(10);
/// Requests of one pipeline to one node.
const PIPELINE_MAX: usize = 512;

/// Why an attempt failed.
pub enum Trouble {
    /// The connection: what was sent may have been executed, or not.
    Broken(EngineError),
    /// Trying again does not help.
    Final(EngineError),
}

impl From<Trouble> for EngineError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Broken(error) | Trouble::Final(error) => error,
        }
    }
}

pub struct Cluster {
    settings: Arc<MigrateSettings>,
    /// How long what a node cannot do yet is tried again; zero: what it answers is the answer.
    patience: Duration,
    nat: NatMap,
    seed: Address,
    topology: Topology,
    /// By node id.
    links: HashMap<String, TargetLink>,
    /// Ids of these connections at their nodes.
    client_ids: HashMap<String, i64>,
    /// Ids by the number that workers and reports know a node by.
    numbers: Vec<String>,
    /// Run ids of the nodes that were primaries when they were connected to.
    run_ids: HashMap<String, String>,
    /// Connections that were lost: to be ended before the node is told anything else.
    lost_clients: HashMap<String, Vec<LostClient>>,
    /// Run ids of all nodes as they were seen last.
    seen_run_ids: HashMap<String, String>,
    /// The workers of a session write through it.
    of_session: bool,
    /// Where is said that replicas are waited for.
    pub(super) replicas: Option<Arc<Replicas>>,
    /// A session that ends now can be followed by one that goes on from what each node holds.
    ends_on_takeover: Arc<AtomicBool>,
    /// What the checkpoint was told of these processes.
    noted_run_ids: String,
    /// Counts topologies.
    topology_number: u64,
    /// By worker: the topology and the places of the nodes' lanes when it was told last.
    pub(super) assigned: HashMap<usize, (u64, HashMap<String, usize>)>,
}

/// A connection to be ended. Its number means nothing to another process.
#[derive(Clone)]
struct LostClient {
    run_id: String,
    client_id: i64,
}

impl Cluster {
    /// Learns the cluster from the node behind `link`. A slot that nobody has (a replica is about to take over) is waited for:
    /// before the start a moment, later as long as anything else.
    pub async fn discover(
        settings: &Arc<MigrateSettings>,
        link: &mut TargetLink,
        patience: Duration,
    ) -> Result<Self, EngineError> {
        let seed = Address::new(settings.target.host.clone(), settings.target.port);
        let nat = settings.target_nat.clone();
        let topology = view(link, &seed, &nat, settings.target.tls.is_some()).await?;
        let mut this = Self {
            settings: settings.clone(),
            patience,
            nat,
            seed,
            topology,
            links: HashMap::new(),
            client_ids: HashMap::new(),
            numbers: Vec::new(),
            run_ids: HashMap::new(),
            lost_clients: HashMap::new(),
            seen_run_ids: HashMap::new(),
            of_session: false,
            replicas: None,
            ends_on_takeover: Arc::default(),
            noted_run_ids: String::new(),
            topology_number: 0,
            assigned: HashMap::new(),
        };
        if !this.topology.uncovered().is_empty() {
            let was_whole = !settings.target_nodes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).is_empty();
            match was_whole {
                true => this.refresh_patiently().await?,
                false => this.wait_until_whole().await?,
            }
        }
        remember(settings, &this.topology);
        Ok(this)
    }

    /// Every slot gets a node, or nothing may begin.
    async fn wait_until_whole(&mut self) -> Result<(), EngineError> {
        let limit = self.patience.min(UNCOVERED_MAX);
        let uncovered = ranges(&self.topology.uncovered());
        tracing::warn!(%uncovered, ?limit, "the target cluster does not serve all slots: waiting for a node that does");
        let waited = self.refresh_within(Patience::new(limit)).await;
        match self.topology.uncovered().as_slice() {
            [] => waited,
            uncovered => Err(EngineError::Refused(format!(
                "the target cluster does not serve all slots (nobody has {}); every slot must have a node before the start",
                ranges(uncovered)
            ))),
        }
    }

    /// Once this is set, a node that may lack what was acknowledged (a replica that took over, a primary that was restarted) ends
    /// the session: the next one goes on from the positions that the nodes hold (`homes`).
    pub fn ends_on_takeover(&mut self, on: Arc<AtomicBool>) {
        self.ends_on_takeover = on;
        self.of_session = true;
    }

    /// The primaries that have slots, with the processes that they are.
    pub fn processes(&self) -> Vec<(String, String)> {
        let run_id = |id: String| self.run_ids.get(&id).cloned().map(|run_id| (id, run_id));
        self.primary_ids().into_iter().filter_map(run_id).collect()
    }

    /// Puts the processes of the primaries into the checkpoint, where they are others than before, or `again` (`homes`). Only while
    /// `ends_on_takeover` is set: before, there is no good checkpoint.
    pub async fn note_processes(&mut self, again: bool) -> Result<(), EngineError> {
        let nodes = self.processes().iter().map(|(id, run_id)| format!("{id}={run_id}")).collect::<Vec<_>>().join(",");
        if !self.ends_on_takeover.load(Ordering::Acquire) || nodes == self.noted_run_ids && !again {
            return Ok(());
        }
        let checkpoint = own::checkpoint_key(&self.settings);
        let set = [b"HSET", checkpoint.as_bytes(), homes::NODES_FIELD.as_bytes(), nodes.as_bytes()];
        match self.call(&set).await? {
            Value::Error(text) => {
                tracing::debug!(reply = %text.escape_ascii(), "the processes of the nodes are not noted")
            }
            _ => self.noted_run_ids = nodes,
        }
        Ok(())
    }

    pub fn topology_number(&self) -> u64 {
        self.topology_number
    }

    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The number of a node, the same for the whole run.
    pub fn number(&mut self, id: &str) -> u16 {
        let at = self.numbers.iter().position(|known| known == id).unwrap_or_else(|| {
            self.numbers.push(id.to_string());
            self.numbers.len() - 1
        });
        at.min(usize::from(u16::MAX)) as u16
    }

    pub fn id_of(&self, number: u16) -> Option<&str> {
        self.numbers.get(usize::from(number)).map(String::as_str)
    }

    /// Ids of the nodes that have slots.
    pub fn primary_ids(&self) -> Vec<String> {
        self.topology.primaries().iter().map(|node| node.id.clone()).collect()
    }

    pub fn address_of(&self, id: &str) -> Option<Address> {
        self.topology.by_id(id).map(|node| node.address.clone())
    }

    pub fn endpoint_of(&self, id: &str) -> Option<Endpoint> {
        let address = self.address_of(id)?;
        Some(Endpoint { host: address.host, port: address.port, ..self.settings.target.clone() })
    }

    pub fn patience(&self) -> Patience {
        Patience::new(self.patience)
    }

    pub fn settings(&self) -> &Arc<MigrateSettings> {
        &self.settings
    }

    /// This connection, a worker's or one of our own, was lost.
    pub fn lost(&mut self, id: &str, client_id: i64) {
        self.links.remove(id);
        let run_id = self.seen_run_ids.get(id).cloned().unwrap_or_default();
        self.lost_clients.entry(id.to_string()).or_default().push(LostClient { run_id, client_id });
    }

    /// Asks the nodes anew who has which slot: the most complete answer with the latest epoch counts.
    pub async fn refresh(&mut self) -> Result<(), Trouble> {
        let mut ids = self.primary_ids();
        let others = self.topology.nodes().iter().map(|node| node.id.clone()).filter(|id| !ids.contains(id));
        let others: Vec<String> = others.collect();
        let mut best: Option<Topology> = None;
        let better = |new: &Topology, old: &Option<Topology>| {
            let rank = |t: &Topology| (std::cmp::Reverse(t.uncovered().len()), t.epoch);
            old.as_ref().is_none_or(|old| rank(new) > rank(old))
        };
        let primaries = ids.len();
        ids.extend(others);
        for (position, id) in ids.iter().enumerate() {
            let complete = best.as_ref().is_some_and(|best| best.uncovered().is_empty());
            if position >= primaries && complete {
                break;
            }
            let Some(address) = self.address_of(id) else { continue };
            let (nat, tls) = (self.nat.clone(), self.settings.target.tls.is_some());
            let seen = match self.link(id).await {
                Ok(link) => view(link, &address, &nat, tls).await,
                Err(Trouble::Final(error)) => return Err(Trouble::Final(error)),
                Err(Trouble::Broken(error)) => Err(error),
            };
            match seen {
                Ok(topology) if better(&topology, &best) => best = Some(topology),
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(node = %address, %error, "a node cannot be asked for the topology");
                    self.links.remove(id);
                }
            }
        }
        if best.is_none() {
            let mut link = TargetLink::connect(&self.settings.target, NODE_TIMEOUT).await.map_err(Trouble::Broken)?;
            let tls = self.settings.target.tls.is_some();
            best = Some(view(&mut link, &self.seed, &self.nat, tls).await.map_err(Trouble::Broken)?);
        }
        if let Some(topology) = best {
            self.adopt(topology)?;
        }
        Ok(())
    }

    fn adopt(&mut self, topology: Topology) -> Result<(), Trouble> {
        if topology != self.topology {
            self.topology_number += 1;
            tracing::info!(
                epoch = topology.epoch,
                primaries = topology.primaries().len(),
                "the cluster's topology changed"
            );
        }
        let takeover = takeover(&self.topology, &topology);
        self.topology = topology;
        remember(&self.settings, &self.topology);
        // A node that is no primary any more may be restarted: it will copy its data from the new one.
        let primaries = self.primary_ids();
        self.run_ids.retain(|id, _| primaries.contains(id));
        let nodes = &self.topology;
        self.links.retain(|id, _| nodes.by_id(id).is_some());
        let Some((old, heir)) = takeover else { return Ok(()) };
        if self.ends_on_takeover.load(Ordering::Acquire) {
            return Err(Trouble::Final(EngineError::TargetRestarted(format!(
                "{heir} took over from {old}, and may lack what that had acknowledged in its last moments"
            ))));
        }
        if self.of_session && self.settings.wait_replicas.is_some() {
            return Err(Trouble::Final(EngineError::Target(format!(
                "{heir} took over from {old} in the full sync, and may lack what that had acknowledged in its last moments; run \
                 again with --on-existing flush"
            ))));
        }
        tracing::warn!(
            %old,
            %heir,
            "a replica took over: writes that its primary acknowledged in its last moments may be missing, for clusters \
             replicate asynchronously"
        );
        Ok(())
    }

    /// The connection to a node, made if there is none.
    pub async fn link(&mut self, id: &str) -> Result<&mut TargetLink, Trouble> {
        if !self.links.contains_key(id) {
            let unknown = || Trouble::Broken(EngineError::Target("a node left the cluster".into()));
            let endpoint = self.endpoint_of(id).ok_or_else(unknown)?;
            let mut link = TargetLink::connect(&endpoint, NODE_TIMEOUT).await.map_err(Trouble::Broken)?;
            self.check_run_id(id, &mut link).await?;
            let run_id = self.seen_run_ids.get(id).cloned().unwrap_or_default();
            for LostClient { client_id, .. } in
                self.lost_clients.get(id).cloned().unwrap_or_default().into_iter().filter(|lost| lost.run_id == run_id)
            {
                target::end_client(&mut link, client_id).await.map_err(|error| match error {
                    EngineError::TooLong(_) => Trouble::Final(error),
                    error => Trouble::Broken(error),
                })?;
            }
            self.lost_clients.remove(id);
            target::name_control(&mut link, &self.settings).await.map_err(Trouble::Broken)?;
            let client_id = target::client_id(&mut link).await.map_err(Trouble::Broken)?;
            self.client_ids.insert(id.to_string(), client_id);
            self.links.insert(id.to_string(), link);
        }
        self.links.get_mut(id).ok_or_else(|| Trouble::Final(EngineError::Internal("a connection vanished".into())))
    }

    /// A primary that is another process now, with nobody in its place, may have lost what it had acknowledged.
    pub async fn check_run_id(&mut self, id: &str, link: &mut TargetLink) -> Result<(), Trouble> {
        let run_id = target::run_id(link).await.map_err(Trouble::Broken)?;
        self.seen_run_ids.insert(id.to_string(), run_id.clone());
        if !self.topology.primaries().iter().any(|node| node.id == id) {
            return Ok(());
        }
        match self.run_ids.get(id) {
            Some(known) if *known != run_id => {
                let text = format!("node {id}: {}", target::RESTARTED);
                Err(Trouble::Final(match self.ends_on_takeover.load(Ordering::Acquire) {
                    true => EngineError::TargetRestarted(text),
                    false => EngineError::Target(text),
                }))
            }
            Some(_) => Ok(()),
            None => {
                self.run_ids.insert(id.to_string(), run_id);
                Ok(())
            }
        }
    }

    /// Forgets a connection that broke.
    pub fn drop_link(&mut self, id: &str) {
        self.links.remove(id);
    }

    /// Sends encoded commands to one node and takes their replies.
    pub async fn send(&mut self, id: &str, asking: bool, bytes: &[u8], replies: usize) -> Result<Vec<Value>, Trouble> {
        let mut request = Vec::new();
        if asking {
            crate::redis::resp::push_command(&mut request, &[b"ASKING"]);
        }
        request.extend_from_slice(bytes);
        let patience = self.settings.connect_timeout;
        let link = self.link(id).await?;
        // Data may take longer than a question.
        link.set_timeout(patience);
        let answered = link.replies(request, replies + usize::from(asking)).await;
        link.set_timeout(NODE_TIMEOUT);
        match answered {
            Ok(mut values) => {
                if asking {
                    values.remove(0);
                }
                Ok(values)
            }
            Err(error) => {
                // The node may still execute it: the connection is ended there before the next one is used.
                self.lost(id, self.client_ids.get(id).copied().unwrap_or_default());
                // An answer that is too long once is too long again.
                Err(match error {
                    EngineError::TooLong(_) => Trouble::Final(error),
                    error => Trouble::Broken(error),
                })
            }
        }
    }

    /// Executes encoded commands of one slot (one, or a MULTI group) where the slot is, following redirects and waiting
    /// for nodes that are not ready. Returns their replies, none of which says that it was not executed.
    pub async fn execute(&mut self, slot: Slot, bytes: &[u8], replies: usize) -> Result<Vec<Value>, Trouble> {
        self.execute_beside(slot, bytes, replies, None).await
    }

    /// The same, but not where a slot is moved to as long as `marker` is where it is moved from. A MIGRATE that failed halfway
    /// leaves a key at both ends, and is done again from the old one: what had been written to the marker at the new one would be
    /// undone, and what it covers done again by the next start.
    pub async fn execute_beside(
        &mut self,
        slot: Slot,
        bytes: &[u8],
        replies: usize,
        marker: Option<&[u8]>,
    ) -> Result<Vec<Value>, Trouble> {
        let mut patience = self.patience();
        let mut redirect: Option<Redirect> = None;
        loop {
            let asking = redirect.as_ref().is_some_and(|redirect| redirect.ask);
            let id = match redirect.take() {
                Some(redirect) => self.known_node(&redirect).await?,
                None => self.topology.owner(slot).map(|node| node.id.clone()),
            };
            let Some(id) = id else {
                patience.wait(&format!("nobody has slot {slot}")).await.map_err(Trouble::Final)?;
                self.refresh().await?;
                continue;
            };
            let values = self.send(&id, asking, bytes, replies).await?;
            let Some(text) = values.iter().find_map(|value| match value {
                Value::Error(text) if is_rejection(text) => Some(text.clone()),
                _ => None,
            }) else {
                return Ok(values);
            };
            let asked = self.address_of(&id).unwrap_or_else(|| self.seed.clone());
            redirect = Redirect::parse(&text, &asked);
            let mut hurry = redirect.as_ref().is_some_and(|redirect| redirect.ask) && !asking;
            if let (true, Some(marker)) = (hurry, marker) {
                let request = crate::redis::resp::command(&[b"EXISTS", marker]);
                let stays = matches!(self.send(&id, false, &request, 1).await?.first(), Some(Value::Integer(1..)));
                redirect = redirect.filter(|_| !stays);
                hurry = !stays;
            }
            if !hurry {
                // MOVED back and forth, TRYAGAIN, CLUSTERDOWN ...: the nodes need a moment to agree.
                let why = format!("{asked} answers \"{}\"", text.escape_ascii());
                patience.wait(&why).await.map_err(Trouble::Final)?;
                self.refresh().await?;
            }
        }
    }

    /// The node that a redirect names. Nobody but the cluster's own nodes is ever connected to.
    async fn known_node(&mut self, redirect: &Redirect) -> Result<Option<String>, Trouble> {
        for attempt in 0..UNKNOWN_TRIES {
            if let Some(node) = self.topology.find(&redirect.address) {
                return Ok(Some(node.id.clone()));
            }
            rest(PAUSE_FIRST * 4u32.pow(attempt)).await;
            self.refresh().await?;
        }
        Err(Trouble::Final(EngineError::Target(format!(
            "the target sends slot {} to {}, which is no node of the cluster that its nodes describe; it was not connected \
             to (addresses behind a translation are given with --target-nat)",
            redirect.slot, redirect.address
        ))))
    }

    /// One command, where its key is; it may be sent again after a lost connection, or where the node refuses for a while.
    /// FLUSHALL and the like go to every primary, a SELECT of database 0 nowhere.
    pub async fn call(&mut self, args: &[&[u8]]) -> Result<Value, EngineError> {
        let name = args.first().copied().unwrap_or_default();
        let is = |text: &str| name.eq_ignore_ascii_case(text.as_bytes());
        if is("SELECT") {
            return match args.get(1) {
                Some(&b"0") => Ok(Value::Simple(b"OK".to_vec())),
                _ => Err(EngineError::Refused("a cluster has only database 0".into())),
            };
        }
        let request = crate::redis::resp::command(args);
        if ["FLUSHALL", "FLUSHDB", "DBSIZE", "CLIENT", "SCRIPT", "PING"].iter().any(|name| is(name)) {
            return self.on_all(&request).await;
        }
        let key_at = if is("EVAL") { 3 } else { 1 };
        self.call_in_slot(slot(args.get(key_at).copied().unwrap_or_default()), &request).await
    }

    /// One encoded command of a slot, which may be sent again.
    async fn call_in_slot(&mut self, slot: Slot, request: &[u8]) -> Result<Value, EngineError> {
        let mut patience = self.patience();
        loop {
            let why = match self.execute(slot, request, 1).await {
                Ok(values) => match values.into_iter().next().unwrap_or(Value::Null) {
                    Value::Error(text) if !self.patience.is_zero() && refusal::refuses_for_now(&text) => {
                        format!("the node of slot {slot} answers \"{}\"", text.escape_ascii())
                    }
                    value => return Ok(value),
                },
                Err(Trouble::Broken(error)) => error.to_string(),
                Err(Trouble::Final(error)) => return Err(error),
            };
            patience.wait(&why).await?;
            self.refresh_patiently().await?;
        }
    }

    /// One command to every primary, which may be sent again; numbers are added up, else the last reply counts.
    pub async fn on_all(&mut self, request: &[u8]) -> Result<Value, EngineError> {
        let mut patience = self.patience();
        'again: loop {
            let (mut sum, mut last) = (0i64, Value::Null);
            for id in self.primary_ids() {
                let why = match self.send(&id, false, request, 1).await {
                    Ok(values) => match values.into_iter().next().unwrap_or(Value::Null) {
                        // What says that it was not executed: a node that is a replica now, or cannot yet.
                        Value::Error(text) if is_rejection(&text) || refusal::refuses_for_now(&text) => {
                            let node = self.address_of(&id).map(|address| address.to_string()).unwrap_or_default();
                            format!("{node} answers \"{}\"", text.escape_ascii())
                        }
                        value @ Value::Error(_) => return Ok(value),
                        value => {
                            match value {
                                Value::Integer(number) => sum = sum.saturating_add(number),
                                value => last = value,
                            }
                            continue;
                        }
                    },
                    Err(Trouble::Broken(error)) => error.to_string(),
                    Err(Trouble::Final(error)) => return Err(error),
                };
                patience.wait(&why).await?;
                self.refresh_patiently().await?;
                continue 'again;
            }
            return Ok(if last == Value::Null { Value::Integer(sum) } else { last });
        }
    }

    /// Refreshes until a node answers and every slot has an owner.
    pub async fn refresh_patiently(&mut self) -> Result<(), EngineError> {
        self.refresh_within(self.patience()).await
    }

    async fn refresh_within(&mut self, mut patience: Patience) -> Result<(), EngineError> {
        loop {
            let why = match self.refresh().await {
                Ok(()) => match self.topology.uncovered().as_slice() {
                    [] => return Ok(()),
                    uncovered => format!("nobody has {}", ranges(uncovered)),
                },
                Err(Trouble::Broken(error)) => error.to_string(),
                Err(Trouble::Final(error)) => return Err(error),
            };
            patience.wait(&why).await?;
        }
    }

    /// Many commands of one key each that may be sent again. Returns a reply for each, in their order.
    pub async fn pipeline(&mut self, requests: &[(Slot, Vec<u8>)]) -> Result<Vec<Value>, EngineError> {
        let mut replies: Vec<Value> = vec![Value::Null; requests.len()];
        let mut by_node: HashMap<String, Vec<usize>> = HashMap::new();
        let mut apart = Vec::new();
        for (at, (slot, _)) in requests.iter().enumerate() {
            match self.topology.owner(*slot) {
                Some(node) => by_node.entry(node.id.clone()).or_default().push(at),
                None => apart.push(at),
            }
        }
        for (id, places) in by_node {
            for chunk in places.chunks(PIPELINE_MAX) {
                let bytes: Vec<u8> =
                    chunk.iter().filter_map(|at| requests.get(*at)).flat_map(|r| r.1.clone()).collect();
                match self.send(&id, false, &bytes, chunk.len()).await {
                    Ok(values) => {
                        for (at, value) in chunk.iter().zip(values) {
                            match &value {
                                Value::Error(text) if is_rejection(text) || refusal::refuses_for_now(text) => {
                                    apart.push(*at);
                                }
                                _ => replies[*at] = value,
                            }
                        }
                    }
                    Err(Trouble::Broken(_)) => apart.extend_from_slice(chunk),
                    Err(Trouble::Final(error)) => return Err(error),
                }
            }
        }
        for at in apart {
            let Some((slot, bytes)) = requests.get(at) else { continue };
            replies[at] = self.call_in_slot(*slot, bytes).await?;
        }
        Ok(replies)
    }
}

/// A primary whose slots are another node's now that was none before: its replica, or an heir that nobody knew.
fn takeover(old: &Topology, new: &Topology) -> Option<(Address, Address)> {
    old.primaries().into_iter().find_map(|primary| {
        let mut heirs = old.slots_of(&primary.id).filter_map(|slot| new.owner(slot));
        let is_new = |heir: &&Node| match old.by_id(&heir.id) {
            Some(known) => known.role == Role::Replica,
            None => new.by_id(&primary.id).is_none_or(|node| !node.healthy),
        };
        heirs.find(is_new).map(|heir| (primary.address.clone(), heir.address.clone()))
    })
}

/// For the time when the node that the operator named is gone.
fn remember(settings: &MigrateSettings, topology: &Topology) {
    let nodes = topology.nodes().iter().filter(|node| node.healthy).map(|node| node.address.clone()).collect();
    *settings.target_nodes.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = nodes;
}

/// What one node says of the cluster.
async fn view(link: &mut TargetLink, asked: &Address, nat: &NatMap, tls: bool) -> Result<Topology, EngineError> {
    let unreadable = |e: crate::redis::topology::TopologyError| EngineError::Target(format!("{asked}: {e}"));
    let mut topology = match link.call_raw("CLUSTER", &[b"CLUSTER", b"SHARDS"]).await? {
        Value::Error(_) => None,
        shards => Some(Topology::from_shards(&shards, asked, nat, tls).map_err(unreadable)?),
    };
    if topology.as_ref().is_none_or(|topology| !topology.uncovered().is_empty()) {
        match link.call_raw("CLUSTER", &[b"CLUSTER", b"SLOTS"]).await? {
            Value::Error(text) if topology.is_none() => {
                return Err(EngineError::Target(format!(
                    "{asked} answered CLUSTER SLOTS with \"{}\"; the target's user needs +cluster",
                    text.escape_ascii()
                )));
            }
            Value::Error(_) => {}
            slots => {
                let by_slots = Topology::from_slots(&slots, asked, nat).map_err(unreadable)?;
                if topology.as_ref().is_none_or(|t| by_slots.uncovered().len() < t.uncovered().len()) {
                    topology = Some(by_slots);
                }
            }
        }
    }
    let mut topology = topology.ok_or_else(|| EngineError::Internal("a topology without slots".into()))?;
    if let Value::Bulk(text) = link.call_raw("CLUSTER", &[b"CLUSTER", b"INFO"]).await? {
        let text = String::from_utf8_lossy(&text).into_owned();
        topology.epoch = Info::parse(&text).get("cluster_current_epoch").and_then(|e| e.parse().ok()).unwrap_or(0);
    }
    Ok(topology)
}

/// Runs of slots, in words.
pub fn ranges(slots: &[(Slot, Slot)]) -> String {
    let text = slots.iter().take(8).map(|(first, last)| format!("{first}-{last}")).collect::<Vec<_>>().join(", ");
    if slots.len() > 8 { text + ", ..." } else { text }
}
