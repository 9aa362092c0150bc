//! Asks the target's nodes whether their replicas have what was written (`--wait-replicas`).
//!
//! In: who waits for a round (`replicas`), the nodes that have slots now. Out: rounds that have ended, the reason why one does
//! not, or after `--retry-max` the error that ends the run. Each question is `MULTI, SET, DEL, EXEC, WAIT` on a connection
//! of its own: the write leaves no key behind, and WAIT counts from it. Invariants: all nodes of a round confirm;
//! a node that is another process than before, or whose replica took over, confirms nothing: the session ends.

use super::cluster::{Cluster, Trouble};
use super::error::EngineError;
use super::own;
use super::patience::{Patience, rest};
use super::refusal;
use super::replicas::Replicas;
use super::settings::{Endpoint, MigrateSettings, WaitReplicas};
use super::target::{Process, TargetLink};
use crate::ids::Slot;
use crate::redis::info::Info;
use crate::redis::resp;
use crate::redis::slot::SLOTS;
use crate::redis::topology::Topology;
use crate::redis::value::Value;
use crate::uring::Waker;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// Time between two rounds: what is answered meanwhile is covered by one.
const ROUND_PAUSE: Duration = Duration::from_millis(10);
/// Replies to one question.
const REPLIES: usize = 5;

/// The task that asks.
pub struct Prover {
    task: tokio::task::JoinHandle<EngineError>,
}

impl Prover {
    /// `process`: what a target which is one server must be.
    pub fn start(
        settings: &Arc<MigrateSettings>,
        process: &Arc<Process>,
        cluster: Option<Rc<Mutex<Cluster>>>,
        shared: Arc<Replicas>,
        wakers: Vec<Waker>,
    ) -> Self {
        let mut rounds = Rounds {
            settings: settings.clone(),
            process: process.clone(),
            cluster,
            nodes: Vec::new(),
            links: HashMap::new(),
            shared,
            wakers,
            turn: 0,
        };
        Self { task: tokio_uring::spawn(async move { rounds.run().await }) }
    }

    /// Why it has ended. May be dropped at any time.
    pub async fn failed(&mut self) -> EngineError {
        match (&mut self.task).await {
            Ok(error) => error,
            Err(error) => EngineError::Internal(format!("who asks for replicas has ended: {error}")),
        }
    }
}

impl Drop for Prover {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Rounds {
    settings: Arc<MigrateSettings>,
    process: Arc<Process>,
    cluster: Option<Rc<Mutex<Cluster>>>,
    nodes: Vec<Node>,
    /// By node id.
    links: HashMap<String, TargetLink>,
    shared: Arc<Replicas>,
    wakers: Vec<Waker>,
    /// Tries so far: a slot that is on the move takes no new key, so each try writes in another one.
    turn: usize,
}

/// A node that is to confirm.
#[derive(Clone)]
struct Node {
    id: String,
    endpoint: Endpoint,
    /// Of a cluster's node.
    slot: Option<Slot>,
}

impl Rounds {
    async fn run(&mut self) -> EngineError {
        loop {
            self.shared.wanted().await;
            let round = self.shared.begin();
            if let Err(error) = self.finish_round().await {
                return error;
            }
            self.shared.end(round);
            self.wakers.iter().for_each(Waker::wake);
            rest(ROUND_PAUSE).await;
        }
    }

    /// Asks until every node has confirmed.
    async fn finish_round(&mut self) -> Result<(), EngineError> {
        let (mut patience, mut said) = (Patience::new(self.settings.retry_max), false);
        loop {
            let why = match self.ask_all().await {
                Ok(false) => {
                    if let Some(cluster) = &self.cluster {
                        drop(cluster.lock().await);
                    }
                    continue;
                }
                Ok(true) => {
                    if said {
                        tracing::info!("replicas confirm again");
                    }
                    return Ok(());
                }
                Err(Trouble::Broken(
                    EngineError::Target(why) | EngineError::TargetLost(why) | EngineError::Untrusted(why),
                )) => why,
                Err(Trouble::Broken(error) | Trouble::Final(error)) => return Err(error),
            };
            if !said {
                said = true;
                tracing::warn!(%why, "holding: replicas do not confirm what was written (--wait-replicas)");
            }
            self.shared.lack(&why);
            self.wakers.iter().for_each(Waker::wake);
            patience.wait(&format!("{why}, so that no position is told (--wait-replicas)")).await?;
            // If somebody else is at it, it is refreshed by them.
            if let Some(Ok(mut cluster)) = self.cluster.as_ref().map(|cluster| cluster.try_lock()) {
                // Its error: a replica took over.
                match cluster.refresh().await {
                    Ok(()) | Err(Trouble::Broken(_)) => {}
                    Err(Trouble::Final(error)) => return Err(error),
                }
            }
        }
    }

    /// One try at all nodes at once. False: all have confirmed, but there may be other nodes by now.
    async fn ask_all(&mut self) -> Result<bool, Trouble> {
        let Some(want) = self.settings.wait_replicas else { return Ok(true) };
        self.turn += 1;
        let is_fresh = self.look_at_nodes().await;
        let mut questions = Vec::new();
        for node in self.nodes.clone() {
            let mut link = match self.links.remove(&node.id) {
                Some(link) => link,
                None => self.connect(&node).await?,
            };
            link.set_timeout(self.settings.connect_timeout + want.timeout);
            questions.push(tokio_uring::spawn(async move {
                let answer = link.replies(question(node.slot, want, want.timeout), REPLIES).await;
                (node, link, answer)
            }));
        }
        let mut outcome = Ok(is_fresh);
        for asked in questions {
            let (node, link, answer) =
                asked.await.map_err(|e| Trouble::Final(EngineError::Internal(format!("a question ended: {e}"))))?;
            let place = node.endpoint.address();
            match answer.map(|values| judge(&values, want)) {
                Ok(Ok(())) => drop(self.links.insert(node.id, link)),
                // Too few: another question may follow on the connection. After an error a fresh one logs in anew.
                Ok(Err(Lack::Few(why))) => {
                    self.links.insert(node.id, link);
                    outcome = Err(Trouble::Broken(EngineError::Target(format!("node {place}: {why}"))));
                }
                Ok(Err(Lack::Error(why))) => {
                    outcome = Err(Trouble::Broken(EngineError::Target(format!("node {place} {why}"))));
                }
                Err(error) => outcome = Err(Trouble::Broken(error)),
            }
        }
        outcome
    }

    /// Learns which nodes are to confirm. False: they are those of before, for what a worker has left is being executed, which takes its
    /// time where replicas are missing.
    async fn look_at_nodes(&mut self) -> bool {
        let Some(cluster) = &self.cluster else {
            self.nodes = vec![Node { id: String::new(), endpoint: self.settings.target.clone(), slot: None }];
            return true;
        };
        let mut cluster = match cluster.try_lock() {
            Ok(cluster) => cluster,
            Err(_) if !self.nodes.is_empty() => return false,
            Err(_) => cluster.lock().await,
        };
        // A worker may have written to nodes that only it knew.
        cluster.catch_up();
        let of = |id: String| {
            let (endpoint, slot) = (cluster.endpoint_of(&id)?, cluster.a_slot_of(&id, self.turn)?);
            Some(Node { id, endpoint, slot: Some(slot) })
        };
        self.nodes = cluster.primary_ids().into_iter().filter_map(of).collect();
        true
    }

    async fn connect(&self, node: &Node) -> Result<TargetLink, Trouble> {
        let link = TargetLink::connect(&node.endpoint, self.settings.connect_timeout).await;
        let mut link = link.map_err(Trouble::Broken)?;
        match &self.cluster {
            Some(cluster) => cluster.lock().await.check_process(&node.id, &mut link).await?,
            None => self.process.check(&mut link).await.map_err(|error| match error {
                EngineError::TargetRestarted(_) => Trouble::Final(error),
                error => Trouble::Broken(error),
            })?,
        }
        Ok(link)
    }
}

fn question(slot: Option<Slot>, want: WaitReplicas, timeout: Duration) -> Vec<u8> {
    let key = own::replicas_key(slot);
    let (count, timeout) = (want.count.to_string(), timeout.as_millis().max(1).to_string());
    let commands: [&[&[u8]]; REPLIES] = [
        &[b"MULTI"],
        &[b"SET", &key, b"1"],
        &[b"DEL", &key],
        &[b"EXEC"],
        &[b"WAIT", count.as_bytes(), timeout.as_bytes()],
    ];
    let mut bytes = Vec::new();
    commands.iter().for_each(|args| resp::push_command(&mut bytes, args));
    bytes
}

#[derive(Debug, PartialEq, Eq)]
enum Lack {
    Few(String),
    Error(String),
}

fn judge(values: &[Value], want: WaitReplicas) -> Result<(), Lack> {
    let [.., Value::Array(executed), waited] = values else {
        let text = values.iter().find_map(Value::error_text).unwrap_or_default();
        return Err(Lack::Error(format!("answers \"{text}\", so that replicas cannot be waited for")));
    };
    // What is no write is not counted by WAIT either.
    match (values.iter().chain(executed).find_map(Value::error_text), waited) {
        (Some(text), _) => Err(Lack::Error(format!("answers \"{text}\", so that replicas cannot be waited for"))),
        (None, Value::Integer(count)) if *count >= i64::from(want.count) => Ok(()),
        (None, Value::Integer(count)) => {
            Err(Lack::Few(format!("{count} of {} replicas have confirmed what was written", want.count)))
        }
        (None, other) => Err(Lack::Error(format!("answers WAIT with {}", other.described()))),
    }
}

/// Waits until replicas have everything that the target has executed until now.
pub async fn confirm(link: &mut TargetLink, settings: &MigrateSettings) -> Result<(), EngineError> {
    let Some(want) = settings.wait_replicas else { return Ok(()) };
    if let Some(cluster) = link.cluster() {
        return cluster.confirm_all().await;
    }
    link.set_timeout(settings.connect_timeout + want.timeout);
    let mut patience = Patience::new(settings.retry_max);
    loop {
        match judge(&link.replies(question(None, want, want.timeout), REPLIES).await?, want) {
            Ok(()) => break,
            Err(Lack::Few(why)) => patience.wait(&format!("the target: {why}")).await?,
            // It may be a replica now, which throws away what it has executed.
            Err(Lack::Error(why)) => {
                patience.wait(&format!("the target: {why}")).await?;
                link.is_same_still().await?;
            }
        }
    }
    link.set_timeout(settings.connect_timeout);
    Ok(())
}

impl Cluster {
    /// One of the slots of a node; each `turn` another one.
    fn a_slot_of(&self, id: &str, turn: usize) -> Option<Slot> {
        let slots: Vec<Slot> = self.topology().slots_of(id).collect();
        // Far apart, for slots move in runs.
        slots.get(turn.wrapping_mul(4099) % slots.len().max(1)).copied()
    }

    /// Waits until the replicas of a slot's node have everything that it has executed until now.
    pub async fn confirm_slot(&mut self, slot: Slot) -> Result<(), EngineError> {
        if self.settings().wait_replicas.is_none() {
            return Ok(());
        }
        loop {
            match self.topology().owner(slot).map(|node| node.id.clone()) {
                Some(id) if self.confirm_node(&id).await? => return Ok(()),
                // Another node has it now.
                Some(_) => {}
                None => self.refresh_patiently().await?,
            }
        }
    }

    /// The same of all slots, each of them at a node that had it before it was asked and behind that.
    async fn confirm_all(&mut self) -> Result<(), EngineError> {
        let mut left: Vec<Slot> = (0..SLOTS).map(Slot).collect();
        while !left.is_empty() {
            self.refresh_patiently().await?;
            let before = self.topology().clone();
            let owner = |topology: &Topology, slot| topology.owner(slot).map(|node| node.id.clone());
            let ids: BTreeSet<String> = left.iter().filter_map(|slot| owner(&before, *slot)).collect();
            for id in ids {
                self.confirm_node(&id).await?;
            }
            self.refresh_patiently().await?;
            left.retain(|slot| owner(&before, *slot) != owner(self.topology(), *slot));
        }
        Ok(())
    }

    fn say_waits(&self, why: Option<&str>) {
        if let Some(replicas) = &self.replicas {
            replicas.set_waits(why.map(str::to_string));
        }
    }

    /// The same of a node. False: it has no slots any more, which confirms nothing.
    async fn confirm_node(&mut self, id: &str) -> Result<bool, EngineError> {
        let Some(want) = self.settings().wait_replicas else { return Ok(true) };
        // Well within what a question to a node may take.
        let timeout = want.timeout.min(self.settings().connect_timeout / 2);
        let mut patience = self.patience();
        for turn in 0.. {
            let Some(slot) = self.a_slot_of(id, turn) else {
                self.say_waits(None);
                return Ok(false);
            };
            let why = match self.send(id, false, &question(Some(slot), want, timeout), REPLIES).await {
                Ok(values) => match judge(&values, want) {
                    Ok(()) => {
                        self.say_waits(None);
                        return Ok(true);
                    }
                    Err(Lack::Few(why) | Lack::Error(why)) => {
                        let place = self.address_of(id).map(|address| address.to_string()).unwrap_or_default();
                        format!("node {place}: {why}")
                    }
                },
                Err(Trouble::Broken(error)) => error.to_string(),
                Err(Trouble::Final(error)) => return Err(error),
            };
            self.say_waits(Some(&why));
            patience.wait(&why).await?;
            self.refresh_patiently().await?;
        }
        Ok(false)
    }
}

/// Before anything is written: every node has as many replicas as are to be waited for, and lets the user wait for them.
pub async fn check(link: &mut TargetLink, settings: &MigrateSettings) -> Result<(), EngineError> {
    let Some(want) = settings.wait_replicas else { return Ok(()) };
    let mut endpoints = vec![settings.target.clone()];
    if let Some(cluster) = link.cluster() {
        endpoints = cluster.primary_ids().iter().filter_map(|id| cluster.endpoint_of(id)).collect();
    }
    for endpoint in endpoints {
        let mut node = TargetLink::connect(&endpoint, settings.connect_timeout).await?;
        let text = node.call(&[b"INFO", b"replication"]).await?;
        // It cannot succeed: permissions are checked before arguments are understood.
        if let Value::Error(text) = node.call_raw("WAIT", &[b"WAIT", b"no-number", b"0"]).await?
            && refusal::refuses_access(&text)
        {
            return Err(EngineError::Target(format!(
                "nothing was written: {} answered WAIT with \"{}\"; grant it to the target's user, for --wait-replicas",
                endpoint.address(),
                text.escape_ascii()
            )));
        }
        let online = replicas_online(text.text().unwrap_or_default());
        if online < u64::from(want.count) {
            return Err(EngineError::Refused(format!(
                "{} has {online} replicas in step, and --wait-replicas {} waits for as many: nothing written there would ever \
                 be confirmed",
                endpoint.address(),
                want.count
            )));
        }
    }
    Ok(())
}

/// Replicas that `INFO replication` calls online.
fn replicas_online(info: &str) -> u64 {
    let info = Info::parse(info);
    let slave = |n: u64| info.get(&format!("slave{n}"));
    let count = info.get("connected_slaves").and_then(|n| n.parse().ok()).unwrap_or(0u64).min(1000);
    (0..count).filter_map(slave).filter(|fields| fields.split(',').any(|field| field == "state=online")).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANT: WaitReplicas = WaitReplicas { count: 2, timeout: Duration::from_secs(1) };

    fn answers(waited: Value) -> Vec<Value> {
        let ok = || Value::Simple(b"OK".to_vec());
        vec![ok(), ok(), ok(), Value::Array(vec![ok(), Value::Integer(1)]), waited]
    }

    #[test]
    fn only_enough_replicas_behind_an_executed_write_confirm() {
        assert_eq!(judge(&answers(Value::Integer(2)), WANT), Ok(()));
        assert_eq!(judge(&answers(Value::Integer(3)), WANT), Ok(()));
        assert!(matches!(judge(&answers(Value::Integer(1)), WANT), Err(Lack::Few(why)) if why.starts_with("1 of 2 ")));
        // A count that stands behind no write says nothing.
        let mut refused = answers(Value::Integer(2));
        refused[1] = Value::Error(b"OOM command not allowed".to_vec());
        refused[3] = Value::Error(b"EXECABORT Transaction discarded".to_vec());
        assert!(matches!(judge(&refused, WANT), Err(Lack::Error(why)) if why.contains("OOM")));
        refused[1] = Value::Simple(b"QUEUED".to_vec());
        refused[3] = Value::Array(vec![Value::Error(b"READONLY x".to_vec())]);
        assert!(matches!(judge(&refused, WANT), Err(Lack::Error(why)) if why.contains("READONLY")));
        let demoted = answers(Value::Error(b"ERR WAIT cannot be used with replica instances".to_vec()));
        assert!(matches!(judge(&demoted, WANT), Err(Lack::Error(_))));
        assert!(matches!(judge(&[], WANT), Err(Lack::Error(_))));
    }

    #[test]
    fn replicas_that_are_not_in_step_do_not_count() {
        let info = "# Replication\r\nrole:master\r\nconnected_slaves:3\r\n\
                    slave0:ip=127.0.0.1,port=1,state=online,offset=5,lag=0\r\n\
                    slave1:ip=127.0.0.1,port=2,state=wait_bgsave,offset=0,lag=0\r\n\
                    slave2:ip=127.0.0.1,port=3,state=online,offset=5,lag=1,type=replica\r\n";
        assert_eq!((replicas_online(info), replicas_online("role:master\r\nconnected_slaves:0\r\n")), (2, 0));
    }
}
