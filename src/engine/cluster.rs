//! The control plane's side of a cluster: who has which slot, one connection to each node, commands sent where they belong.
//!
//! In: any node's address. Out: the topology, replies to routed commands, connections for the workers. Invariants: only
//! nodes that an authenticated node of the cluster named are connected to; one command at a time, its answer awaited; a
//! command that was redirected is sent again only after the error that says it was not executed; before anything is sent
//! to a node with which a worker lost a connection, that connection is ended there; a primary that came back as another
//! process, or whose replica took over, may have forgotten acknowledged writes: the session ends, and where the journal is
//! followed the next one goes on from the positions that the nodes hold themselves (`homes`). Each worker of a session has a
//! [`Cluster`] with connections of its own, so that a wait of one stops no other; what is known of the nodes they have in common.

use super::error::EngineError;
use super::errors::is_rejection;
use super::patience::{Patience, rest};
use super::replicas::Replicas;
use super::settings::{Endpoint, MigrateSettings};
use super::target::{self, History, TargetLink};
use super::{homes, own};
use crate::ids::Slot;
use crate::redis::info::Info;
use crate::redis::topology::{Address, NatMap, Redirect, Topology};
use crate::redis::value::Value;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;

mod calls;
mod handed;
mod nodes;

pub use nodes::ranges;

/// A node that does not answer within this is asked later.
const NODE_TIMEOUT: Duration = Duration::from_secs(2);
/// What another history of a primary means.
const WAS_REPLICA: &str = "it was a replica during the run, and may have copied another node's data, so writes that it had acknowledged \
                           may be lost; run again with --on-existing flush";
/// First and longest pause before the nodes are asked again for one that a redirect names, and that none of them knows.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
const PAUSE_LAST: Duration = Duration::from_secs(1);
/// So long it is asked for: news of a new node takes a moment to spread.
const UNKNOWN_MAX: Duration = Duration::from_secs(10);
/// The same where nothing is waited for.
const UNKNOWN_MIN: Duration = Duration::from_millis(400);

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
    /// Replicas that did not answer, and when they were asked, in ns.
    silent: HashMap<String, u64>,
    /// Ids of these connections at their nodes.
    client_ids: HashMap<String, i64>,
    shared: Rc<Shared>,
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
    /// Number of the topology among all that there were.
    topology_number: u64,
    /// By worker: the topology and the places of the nodes' lanes when it was told last.
    pub(super) assigned: HashMap<usize, (u64, HashMap<String, usize>)>,
}

/// Why a session ended.
struct Ended {
    kind: fn(String) -> EngineError,
    text: String,
}

/// What all who have a hand in a session know in common: each worker has a [`Cluster`] of its own, for it may have to wait for a node.
struct Shared {
    /// Held while the nodes are asked who has which slot: an older view must not come behind a newer one.
    refreshing: Mutex<()>,
    known: RefCell<Known>,
}

struct Known {
    /// The last view in which whatever took over had been found good.
    topology: Topology,
    number: u64,
    run_ids: HashMap<String, String>,
    /// What the primaries' data goes back to.
    histories: HashMap<String, History>,
    /// Ids by the number that workers and reports know a node by.
    numbers: Vec<String>,
    /// What the checkpoint was told of the processes.
    noted_run_ids: String,
    /// What ended the session, for all that still use it: nobody may go on as if nothing had happened.
    ended: Option<Ended>,
}

impl Shared {
    fn new(topology: &Topology) -> Rc<Self> {
        let (run_ids, numbers, noted_run_ids) = (HashMap::new(), Vec::new(), String::new());
        let (topology, histories) = (topology.clone(), HashMap::new());
        let known = Known { topology, number: 0, run_ids, histories, numbers, noted_run_ids, ended: None };
        Rc::new(Self { refreshing: Mutex::new(()), known: RefCell::new(known) })
    }
}

/// A connection to be ended. Its number means nothing to another process.
#[derive(Clone)]
struct LostClient {
    run_id: String,
    client_id: i64,
}

impl Cluster {
    /// Once this is set, a node that may lack what was acknowledged (a replica that took over, a primary that was restarted) ends
    /// the session: the next one goes on from the positions that the nodes hold (`homes`).
    pub fn ends_on_takeover(&mut self, on: Arc<AtomicBool>) {
        self.ends_on_takeover = on;
        self.of_session = true;
    }

    /// The same cluster for a worker, with connections of its own.
    pub fn for_worker(&self) -> Self {
        Self {
            settings: self.settings.clone(),
            patience: self.patience,
            nat: self.nat.clone(),
            seed: self.seed.clone(),
            topology: self.topology.clone(),
            links: HashMap::new(),
            silent: HashMap::new(),
            client_ids: HashMap::new(),
            shared: self.shared.clone(),
            run_ids: self.run_ids.clone(),
            lost_clients: HashMap::new(),
            seen_run_ids: self.seen_run_ids.clone(),
            of_session: self.of_session,
            replicas: self.replicas.clone(),
            ends_on_takeover: self.ends_on_takeover.clone(),
            topology_number: self.topology_number,
            assigned: HashMap::new(),
        }
    }

    /// Goes by what others have found out meanwhile.
    pub fn catch_up(&mut self) {
        let known = self.shared.known.borrow();
        if known.number != self.topology_number {
            self.topology.clone_from(&known.topology);
            self.topology_number = known.number;
            self.run_ids.clone_from(&known.run_ids);
            self.links.retain(|id, _| known.topology.by_id(id).is_some());
        }
    }

    /// The process that a primary was.
    fn known_run_id(&self, id: &str) -> Option<String> {
        self.run_ids.get(id).cloned().or_else(|| self.shared.known.borrow().run_ids.get(id).cloned())
    }

    /// The primaries that have slots, with the processes that they are.
    pub fn processes(&self) -> Vec<(String, String)> {
        let run_id = |id: String| self.known_run_id(&id).map(|run_id| (id, run_id));
        self.primary_ids().into_iter().filter_map(run_id).collect()
    }

    /// Puts the processes of the primaries into the checkpoint, where they are others than before, or `again` (`homes`). Only while
    /// `ends_on_takeover` is set: before, there is no good checkpoint.
    pub async fn note_processes(&mut self, again: bool) -> Result<(), EngineError> {
        self.catch_up();
        let nodes = self.processes().iter().map(|(id, run_id)| format!("{id}={run_id}")).collect::<Vec<_>>().join(",");
        if !self.ends_on_takeover.load(Ordering::Acquire) || nodes == self.shared.known.borrow().noted_run_ids && !again
        {
            return Ok(());
        }
        let checkpoint = own::checkpoint_key(&self.settings);
        let set = [b"HSET", checkpoint.as_bytes(), homes::NODES_FIELD.as_bytes(), nodes.as_bytes()];
        match self.call(&set).await? {
            Value::Error(text) => {
                tracing::debug!(reply = %text.escape_ascii(), "the processes of the nodes are not noted")
            }
            _ => self.shared.known.borrow_mut().noted_run_ids = nodes,
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
        let numbers = &mut self.shared.known.borrow_mut().numbers;
        let at = numbers.iter().position(|known| known == id).unwrap_or_else(|| {
            numbers.push(id.to_string());
            numbers.len() - 1
        });
        at.min(usize::from(u16::MAX)) as u16
    }

    pub fn id_of(&self, number: u16) -> Option<String> {
        self.shared.known.borrow().numbers.get(usize::from(number)).cloned()
    }

    /// Ids of the nodes that have slots.
    pub fn primary_ids(&self) -> Vec<String> {
        self.topology.primaries().iter().map(|node| node.id.clone()).collect()
    }

    pub fn address_of(&self, id: &str) -> Option<Address> {
        self.topology.by_id(id).map(|node| node.address.clone())
    }

    pub fn endpoint_of(&self, id: &str) -> Option<Endpoint> {
        self.topology.by_id(id).map(|node| self.settings.target.at(node))
    }

    /// Where the cluster says that a node is: a redirect that names no host means this one.
    fn announced(&self, id: &str) -> Address {
        self.topology.by_id(id).map_or_else(|| self.seed.clone(), |node| node.announced().clone())
    }

    pub fn patience(&self) -> Patience {
        Patience::new(self.patience).shown_in(&self.settings.control)
    }

    /// What becomes of an attempt whose connection could not be made. Before anything is written a node that is not trusted is the
    /// end; later whoever gave it another certificate may mend that, and it is told nothing meanwhile.
    pub fn trouble(&self, error: EngineError) -> Trouble {
        match error.once_begun(self.settings.control.has_begun()) {
            error @ EngineError::Untrusted(_) => Trouble::Final(error),
            error => Trouble::Broken(error),
        }
    }

    /// So long what a node cannot do yet is tried again.
    pub fn patience_max(&self) -> Duration {
        self.patience
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

    /// The connection to a node, made if there is none.
    pub async fn link(&mut self, id: &str) -> Result<&mut TargetLink, Trouble> {
        if let Some(Ended { kind, text }) = &self.shared.known.borrow().ended {
            return Err(Trouble::Final(kind(text.clone())));
        }
        if !self.links.contains_key(id) {
            let unknown = || Trouble::Broken(EngineError::Target("a node left the cluster".into()));
            let endpoint = self.endpoint_of(id).ok_or_else(unknown)?;
            let mut link = TargetLink::connect(&endpoint, NODE_TIMEOUT).await.map_err(|error| self.trouble(error))?;
            self.check_process(id, &mut link).await?;
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
            target::name_control(&mut link, &self.settings).await.map_err(|error| match self.trouble(error) {
                // A permission that was never there.
                Trouble::Broken(error @ EngineError::Target(_)) if !self.settings.control.has_begun() => {
                    Trouble::Final(error)
                }
                trouble => trouble,
            })?;
            let client_id = target::client_id(&mut link).await.map_err(Trouble::Broken)?;
            self.client_ids.insert(id.to_string(), client_id);
            self.links.insert(id.to_string(), link);
        }
        self.links.get_mut(id).ok_or_else(|| Trouble::Final(EngineError::Internal("a connection vanished".into())))
    }

    /// The connection to a primary, which is waited for. `None`: it has no slots any more.
    pub async fn patient_link(&mut self, id: &str) -> Result<Option<&mut TargetLink>, EngineError> {
        let mut patience = self.patience();
        while self.primary_ids().iter().any(|known| known == id) {
            match self.link(id).await {
                Ok(_) => return Ok(self.links.get_mut(id)),
                Err(Trouble::Broken(error)) => {
                    patience.wait(&error.to_string()).await?;
                    self.refresh_patiently().await?;
                }
                Err(Trouble::Final(error)) => return Err(error),
            }
        }
        Ok(None)
    }

    /// A primary that is another process now, with nobody in its place, may have lost what it had acknowledged; so may one that was a
    /// replica since, and of which no view of the cluster told.
    pub async fn check_process(&mut self, id: &str, link: &mut TargetLink) -> Result<(), Trouble> {
        let text = link.info("default").await.map_err(Trouble::Broken)?;
        self.is_same(id, &Info::parse(&text)).map(drop)
    }

    /// Whose replica it is, where the cluster takes it for a primary.
    fn is_same(&mut self, id: &str, info: &Info) -> Result<Option<String>, Trouble> {
        let run_id = info.get("run_id").unwrap_or_default().to_string();
        self.seen_run_ids.insert(id.to_string(), run_id.clone());
        if !self.topology.primaries().iter().any(|node| node.id == id) {
            return Ok(None);
        }
        let may_lack = |what: &str| {
            let text = format!("node {id}: {what}");
            Trouble::Final(match self.ends_on_takeover.load(Ordering::Acquire) {
                true => EngineError::TargetRestarted(text),
                false => EngineError::Target(text),
            })
        };
        if self.known_run_id(id).is_some_and(|known| known != run_id) {
            return Err(may_lack(target::RESTARTED));
        }
        let mut known = self.shared.known.borrow_mut();
        known.run_ids.entry(id.to_string()).or_insert_with(|| run_id.clone());
        let replica_of = match known.histories.get_mut(id) {
            Some(history) => history.goes_on(info).map_err(|_| may_lack(WAS_REPLICA))?,
            // Of a replica nothing is expected.
            None if info.get("role") == Some("slave") => Some(info.get("master_host").unwrap_or_default().into()),
            None => {
                known.histories.insert(id.to_string(), History::of(info));
                None
            }
        };
        drop(known);
        self.run_ids.insert(id.to_string(), run_id);
        Ok(replica_of)
    }

    /// Forgets a connection that broke.
    pub fn drop_link(&mut self, id: &str) {
        self.links.remove(id);
    }

    /// Sends encoded commands to one node and takes their replies; the first one is that to ASKING, if it is sent in front.
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
            Ok(values) => Ok(values),
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
        self.execute_beside(slot, bytes, replies, &[]).await
    }

    /// The same, but not where a slot is moved to as long as one of `keys` is where it is moved from. A MIGRATE that failed halfway
    /// leaves keys at both ends, and is done again from the old one: what had been written to them at the new one would be undone,
    /// and of a marker and the keys that it covers only some.
    pub async fn execute_beside(
        &mut self,
        slot: Slot,
        bytes: &[u8],
        replies: usize,
        keys: &[&[u8]],
    ) -> Result<Vec<Value>, Trouble> {
        let mut patience = self.patience();
        // And the node that redirects.
        let mut redirect: Option<(Redirect, String)> = None;
        loop {
            let asking = redirect.as_ref().is_some_and(|(redirect, _)| redirect.ask);
            let id = match redirect.take() {
                Some((redirect, from)) => Some(self.known_node(&redirect, &from).await?),
                None => self.topology.owner(slot).map(|node| node.id.clone()),
            };
            let Some(id) = id else {
                patience.wait(&format!("nobody has slot {slot}")).await.map_err(Trouble::Final)?;
                self.refresh().await?;
                continue;
            };
            let mut values = self.send(&id, asking, bytes, replies).await?;
            let asked_to_ask = asking.then(|| values.remove(0));
            let Some(text) = values.iter().find_map(|value| match value {
                Value::Error(text) if is_rejection(text) => Some(text.clone()),
                _ => None,
            }) else {
                return Ok(values);
            };
            let asked = self.address_of(&id).unwrap_or_else(|| self.seed.clone());
            redirect = Redirect::parse(&text, &self.announced(&id)).map(|redirect| (redirect, id.clone()));
            let mut why = format!("{asked} answers \"{}\"", text.escape_ascii());
            if let Some(Value::Error(text)) = asked_to_ask {
                why =
                    format!("{asked} answers ASKING with \"{}\"; the target's user needs +asking", text.escape_ascii());
            }
            // A slot on the move takes what belongs to neither end a few milliseconds later.
            let mut moves = text.starts_with(b"TRYAGAIN");
            let mut hurry = redirect.as_ref().is_some_and(|(redirect, _)| redirect.ask) && !asking;
            if hurry && !keys.is_empty() {
                // One by one: of several, of which some are there, nodes say this or that. (EXISTS would be one more grant to give.)
                let request: Vec<u8> =
                    keys.iter().flat_map(|key| crate::redis::resp::command(&[b"PTTL", key])).collect();
                let found = self.send(&id, false, &request, keys.len()).await?;
                if let Some(stays) = found.iter().find(|found| !is_gone(found)) {
                    (redirect, hurry, moves) = (None, false, true);
                    stays
                        .error_text()
                        .into_iter()
                        .for_each(|text| why = format!("{asked} answers PTTL with \"{text}\""));
                }
            }
            if moves {
                patience.wait_briefly(&why).await.map_err(Trouble::Final)?;
            } else if !hurry {
                // MOVED back and forth, TRYAGAIN, CLUSTERDOWN ...: the nodes need a moment to agree.
                patience.wait(&why).await.map_err(Trouble::Final)?;
                self.refresh().await?;
            }
        }
    }

    /// The node that a redirect of node `from` names. Nobody but the cluster's own nodes is ever connected to.
    async fn known_node(&mut self, redirect: &Redirect, from: &str) -> Result<String, Trouble> {
        let wait_max = UNKNOWN_MAX.min(self.patience.max(UNKNOWN_MIN));
        let (mut pause, mut waited) = (PAUSE_FIRST, Duration::ZERO);
        loop {
            if let Some(node) = self.topology.find(&redirect.address) {
                return Ok(node.id.clone());
            }
            if waited >= wait_max || redirect.address.is_unnamed() && !waited.is_zero() {
                break;
            }
            rest(pause).await;
            waited += pause;
            pause = (4 * pause).min(PAUSE_LAST);
            // Of views that differ in this alone that of the node which knows the other counts.
            self.refresh_by(Some(from)).await?;
        }
        // A node whose name was not heard of yet, and others with its port: the slot's owner sends on, or will have it.
        if redirect.address.is_unnamed() {
            return Ok(self.topology.owner(redirect.slot).map_or(from, |node| &node.id).to_string());
        }
        Err(Trouble::Final(EngineError::Target(format!(
            "the target sends slot {} to {}, which is no node of the cluster that its nodes describe; it was not connected \
             to (addresses behind a translation are given with --target-nat)",
            redirect.slot, redirect.address
        ))))
    }
}

/// Whether a node said, asked by PTTL, that it has a key no more. What else it answers, of its state or of permissions, does not.
fn is_gone(answer: &Value) -> bool {
    match answer {
        Value::Integer(left) => *left == -2,
        Value::Error(text) => [&b"ASK "[..], b"MOVED "].iter().any(|code| text.starts_with(code)),
        _ => false,
    }
}
