//! The control connection to the target, one server or a cluster: commands, transactions, and patience with what it refuses.
//!
//! In: the target's address, commands. Out: answers; what it is (`probe`), its keys (`keys`), connections that can be found
//! again (`named`). Nothing is written here except by `--on-existing flush`.

use super::cluster::Cluster;
use super::error::EngineError;
use super::errors::shown_of_auth;
use super::link::{Link, LinkError};
use super::own;
use super::patience::Patience;
use super::refusal;
use super::settings::{Endpoint, MigrateSettings};
use super::wire::Connected;
use crate::ids::DbIndex;
use crate::redis::ReplyError;
use crate::redis::capabilities::Capabilities;
use crate::redis::info::Info;
use crate::redis::resp;
use crate::redis::slot::slot;
use crate::redis::value::{self, Value};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

mod history;
mod keys;
mod named;
mod probe;
mod process;

pub use history::History;
pub use keys::{applied, delete, delete_slots, holds_keys, prepare};
pub use named::{
    client_id, connect_control, connect_control_within, connect_lane, connect_named_lane, end_client, end_lanes,
    end_lanes_of_node, name_control,
};
pub use probe::{clocks, cpu, databases, keyspace, probe};
pub use process::Process;

/// Its keys are removed when the job is finished.
pub use crate::convert::OWN_PREFIX;

/// What the target said of itself.
pub struct Target {
    pub capabilities: Capabilities,
    pub make: String,
    pub version: String,
    /// What it must be still whenever it is connected to again.
    pub process: Arc<Process>,
    /// Its number of databases, where it tells.
    pub databases: Option<u32>,
    /// Keys by database before the run.
    pub keyspace: Vec<(DbIndex, u64)>,
    pub cpu_at_start: Option<crate::report::counters::CpuSample>,
}

/// Executes commands, each of them the number of its words and these; nothing (0) where it is asked first (1) whether a key exists, and
/// it does. A server that is full queues nothing for a transaction, not even what deletes; a script is stopped only before its first
/// write.
const AT_ONCE: &[u8] = b"if ARGV[1]=='1' and redis.call('GET',KEYS[1]) then return 0 end local i=2 while i<=#ARGV do \
    local n=tonumber(ARGV[i]) redis.call(unpack(ARGV,i+1,i+n)) i=i+n+1 end return 1";
/// Lua unpacks a few thousand at the most.
const AT_ONCE_WORDS_MAX: usize = 1000;

/// What a changed run id means.
pub const RESTARTED: &str = "the target server was restarted during the run, so writes that it had acknowledged may be lost; \
                             run again with --on-existing flush";

/// A control connection to the target: one server, or a cluster, where each command goes to the node of its key.
pub struct TargetLink {
    link: Link,
    cluster: Option<Box<Cluster>>,
    /// How long a server that refuses for a while is asked again; zero: what it answers is the answer.
    patience: Duration,
    /// What one server must be still when it takes writes again.
    process: Option<Arc<Process>>,
}

fn target_error(e: LinkError) -> EngineError {
    match e {
        LinkError::Resolve { .. }
        | LinkError::Connect { .. }
        | LinkError::Timeout { .. }
        | LinkError::Closed { .. }
        | LinkError::Io { .. }
        | LinkError::Tls { .. } => EngineError::TargetLost(e.to_string()),
        LinkError::Untrusted { .. } => EngineError::Untrusted(e.to_string()),
        LinkError::Unasked { .. } | LinkError::Protocol { .. } => EngineError::Target(e.to_string()),
    }
}

/// A server that has no room for a client says so instead of the first answer, and closes the connection; one may not let us in.
fn error_of(text: &[u8], error: String) -> EngineError {
    match memchr::memmem::find(text, b"max number of clients") {
        Some(_) => EngineError::TargetLost(error),
        None if refusal::refuses_login(text) => EngineError::Untrusted(error),
        None => EngineError::Target(error),
    }
}

/// An EVAL of AT_ONCE. `key`: of a cluster's slot; if `unless`, nothing is executed where it exists. None: too many words.
pub fn at_once(key: Option<&[u8]>, unless: bool, commands: &[&[&[u8]]]) -> Option<Vec<u8>> {
    if commands.iter().any(|command| command.len() > AT_ONCE_WORDS_MAX) {
        return None;
    }
    // With one that is nowhere no node takes the script while the slot is on the move, in the middle of which it would fail.
    let nowhere = key.map(|key| own::replicas_key(Some(slot(key))));
    let keys: Vec<&[u8]> = key.into_iter().chain(nowhere.as_deref()).collect();
    let count = keys.len().to_string();
    let counts: Vec<String> = commands.iter().map(|command| command.len().to_string()).collect();
    let mut args: Vec<&[u8]> = vec![b"EVAL", AT_ONCE, count.as_bytes()];
    args.extend(keys);
    args.push(if unless { b"1" } else { b"0" });
    for (count, command) in counts.iter().zip(commands) {
        args.push(count.as_bytes());
        args.extend_from_slice(command);
    }
    Some(resp::command(&args))
}

/// Whether such a script did what it was to do.
pub fn was_done_at_once(answer: &Value) -> bool {
    if let Value::Error(text) = answer {
        tracing::debug!(reply = %text.escape_ascii(), "a full target is not emptied by a script");
    }
    *answer == Value::Integer(1)
}

impl TargetLink {
    /// Connects and authenticates.
    pub async fn connect(endpoint: &Endpoint, timeout: Duration) -> Result<Self, EngineError> {
        let link = Link::connect(&endpoint.host, endpoint.port, endpoint.tls.as_ref(), timeout).await;
        let link = link.map_err(target_error)?;
        let mut this = Self { link, cluster: None, patience: Duration::ZERO, process: None };
        if let Some(password) = endpoint.password.expose() {
            let user = endpoint.user.expose();
            let args: Vec<&[u8]> = match user {
                Some(user) => vec![b"AUTH", user.as_bytes(), password.as_bytes()],
                None => vec![b"AUTH", password.as_bytes()],
            };
            this.log_in(&args).await?;
        }
        Ok(this)
    }

    /// One request and its reply; an error reply is an `Err` that names the command. A server that refuses for a while is
    /// asked again, so nothing of a transaction may be asked by this (see `transaction`).
    pub async fn call(&mut self, args: &[&[u8]]) -> Result<Value, EngineError> {
        let what = String::from_utf8_lossy(args.first().copied().unwrap_or_default()).into_owned();
        let mut patience = Patience::new(self.patience);
        loop {
            match self.call_raw(&what, args).await? {
                Value::Error(text) => {
                    let error = self.answered(&what, &text);
                    if self.patience.is_zero() || !refusal::refuses_for_now(&text) {
                        return Err(error_of(&text, error));
                    }
                    patience.wait(&error).await?;
                    self.check_behind(&text).await?;
                }
                value => return Ok(value),
            }
        }
    }

    fn answered(&self, what: &str, text: &[u8]) -> String {
        format!("{} answered {what} with \"{}\"", self.link.addr(), text.escape_ascii())
    }

    /// Commands, of which the first write is one that deletes, as one transaction of one server, begun anew where that refuses
    /// (`refuses`) for a while. None was answered with an error.
    pub async fn transaction(&mut self, commands: &[&[&[u8]]], refuses: fn(&[u8]) -> bool) -> Result<(), EngineError> {
        const MULTI: &[&[u8]] = &[b"MULTI"];
        let mut patience = Patience::new(self.patience);
        loop {
            let mut refused = None;
            for args in [MULTI].iter().chain(commands) {
                let what = String::from_utf8_lossy(args.first().copied().unwrap_or_default()).into_owned();
                if let Value::Error(text) = self.call_raw(&what, args).await? {
                    refused = Some((what, text));
                    break;
                }
            }
            // Behind a refusal it executes nothing, and ends the transaction: DISCARD would be one more grant to give.
            let (what, text) = match (self.call_raw("EXEC", &[b"EXEC"]).await?, refused) {
                (Value::Array(answers), None) if answers.len() == commands.len() => {
                    return match answers.iter().find_map(Value::error_text) {
                        Some(text) => Err(EngineError::Target(self.answered("EXEC", text.as_bytes()))),
                        None => Ok(()),
                    };
                }
                (Value::Error(_), Some(refused)) => refused,
                (Value::Error(text), None) => ("EXEC".to_string(), text),
                (other, _) => {
                    let error = format!("the target answered EXEC with {}", other.described());
                    return Err(EngineError::Target(error));
                }
            };
            let error = self.answered(&what, &text);
            // Another connection is let in, or not; this one is not any more.
            if self.patience.is_zero() || !refuses(&text) || refusal::refuses_login(&text) {
                return Err(error_of(&text, error));
            }
            if refusal::is_full(&text) && self.at_once(None, commands).await? {
                return Ok(());
            }
            patience.wait(&error).await?;
            self.check_behind(&text).await?;
        }
    }

    /// Commands, of which the first write is one that deletes, in one step also at a full server; not if the key `unless` exists.
    /// False: they were not executed.
    pub async fn at_once(&mut self, unless: Option<&[u8]>, commands: &[&[&[u8]]]) -> Result<bool, EngineError> {
        let Some(request) = at_once(unless, unless.is_some(), commands) else { return Ok(false) };
        let answer = match &mut self.cluster {
            Some(cluster) => {
                let slot = slot(unless.unwrap_or_default());
                Box::pin(cluster.execute(slot, &request, 1)).await?.pop().unwrap_or(Value::Null)
            }
            None => self.link.request("EVAL", request, value::parse).await.map_err(target_error)?,
        };
        Ok(was_done_at_once(&answer))
    }

    /// Behind a refusal: a server that was a replica takes writes again, and may be without what it had.
    async fn check_behind(&mut self, refusal: &[u8]) -> Result<(), EngineError> {
        match self.process.take_if(|_| refusal::may_copy(refusal)) {
            Some(process) => Box::pin(self.must_be(&process)).await,
            None => Ok(()),
        }
    }

    /// The target is this one still, and goes on to be.
    pub async fn must_be(&mut self, process: &Arc<Process>) -> Result<(), EngineError> {
        process.check(self).await?;
        self.process = Some(process.clone());
        Ok(())
    }

    /// Where it is known what the target must be.
    pub async fn is_same_still(&mut self) -> Result<(), EngineError> {
        match self.process.clone() {
            Some(process) => process.check(self).await,
            None => Ok(()),
        }
    }

    async fn log_in(&mut self, args: &[&[u8]]) -> Result<(), EngineError> {
        match self.call_raw("AUTH", args).await? {
            Value::Error(text) => {
                let shown = shown_of_auth(&text);
                let said = format!("{} answered AUTH with \"{shown}\"", self.link.addr());
                Err(error_of(&text, format!("{said}; check the target's user and password")))
            }
            _ => Ok(()),
        }
    }

    /// Connects to the target as it is: a cluster's nodes are found out. What it refuses for a while is asked again for as long
    /// as `--retry-max`.
    pub async fn open(settings: &Arc<MigrateSettings>) -> Result<Self, EngineError> {
        Self::open_within(settings, settings.retry_max).await
    }

    /// The same with another patience.
    pub async fn open_within(settings: &Arc<MigrateSettings>, patience: Duration) -> Result<Self, EngineError> {
        let (mut this, info) = Self::connect_any(settings, patience).await?;
        if Info::parse(&info).get("cluster_enabled") == Some("1") {
            let cluster = Cluster::discover(settings, &mut this, patience).await?;
            this.cluster = Some(Box::new(cluster));
        }
        Ok(this)
    }

    /// To a cluster that is known already.
    pub async fn open_known(settings: &Arc<MigrateSettings>, cluster: Cluster) -> Result<Self, EngineError> {
        let (this, _) = Self::connect_any(settings, settings.retry_max).await?;
        Ok(Self { cluster: Some(Box::new(cluster)), ..this })
    }

    /// What it refuses for a while is asked again for so long.
    pub fn patient(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// To the target as the operator named it, or to a node of its cluster that was found before, and what that says of itself: a
    /// process that stands still is connected to, and never answers; and who has the named address may not be of the cluster any more.
    async fn connect_any(settings: &MigrateSettings, patience: Duration) -> Result<(Self, String), EngineError> {
        let failed = match Self::connect_living(&settings.target, settings, patience).await {
            Ok(living) => return Ok(living),
            Err(error) => error,
        };
        let nodes = settings.target_nodes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        for node in nodes.iter().filter(|node| node.address != settings.target.address()) {
            if let Ok(living) = Self::connect_living(&settings.target.at(node), settings, patience).await {
                return Ok(living);
            }
        }
        Err(failed)
    }

    async fn connect_living(
        endpoint: &Endpoint,
        settings: &MigrateSettings,
        patience: Duration,
    ) -> Result<(Self, String), EngineError> {
        let mut this = Self::connect(endpoint, settings.connect_timeout).await?.patient(patience);
        let info = this.info("cluster").await?;
        Ok((this, info))
    }

    /// The cluster, if the target is one.
    pub fn cluster(&mut self) -> Option<&mut Cluster> {
        self.cluster.as_deref_mut()
    }

    /// The cluster alone, for the workers of a session.
    pub fn into_cluster(self) -> Option<Cluster> {
        self.cluster.map(|cluster| *cluster)
    }

    /// For requests that rightly take longer, or must not.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.link.set_timeout(timeout);
    }

    /// Sends encoded commands and takes as many replies.
    pub async fn replies(&mut self, request: Vec<u8>, count: usize) -> Result<Vec<Value>, EngineError> {
        let too_long = Cell::new(false);
        let parse = |bytes: &[u8]| -> Result<_, ReplyError> {
            let (mut values, mut at) = (Vec::with_capacity(count.min(1024)), 0);
            while values.len() < count {
                let parsed = value::parse(bytes.get(at..).unwrap_or_default()).inspect_err(|error| {
                    too_long.set(matches!(error, ReplyError::BadLength { .. } | ReplyError::TooLong { .. }));
                })?;
                let Some((value, len)) = parsed else { return Ok(None) };
                values.push(value);
                at += len;
            }
            Ok(Some((values, at)))
        };
        let replies = self.link.request("a routed command", request, parse).await;
        replies.map_err(|error| match too_long.get() {
            true => EngineError::TooLong(format!(
                "{} answered with more than the {} MiB that are taken at once",
                self.link.addr(),
                value::TOTAL_BYTES_MAX >> 20
            )),
            false => target_error(error),
        })
    }

    /// One request and its reply, error replies included.
    pub async fn call_raw(&mut self, what: &str, args: &[&[u8]]) -> Result<Value, EngineError> {
        let keyed = !["INFO", "COMMAND", "CONFIG", "CLUSTER", "CLIENT", "AUTH"].contains(&what);
        if keyed && let Some(cluster) = &mut self.cluster {
            return Box::pin(cluster.call(args)).await;
        }
        let request = resp::command(args);
        self.link.request(what, request, value::parse).await.map_err(target_error)
    }

    /// The same, and what a full server says is the answer, of a cluster too.
    pub async fn call_unless_full(&mut self, what: &str, args: &[&[u8]]) -> Result<Value, EngineError> {
        match &mut self.cluster {
            Some(cluster) => Box::pin(cluster.call_unless_full(args)).await,
            None => self.call_raw(what, args).await,
        }
    }

    pub fn hand_over(self) -> Result<Connected, EngineError> {
        let (connected, early) = self.link.hand_over().map_err(target_error)?;
        if early.is_empty() {
            Ok(connected)
        } else {
            Err(EngineError::Target("the target sent a reply that nobody asked for".into()))
        }
    }

    pub async fn info(&mut self, section: &str) -> Result<String, EngineError> {
        match self.call(&[b"INFO", section.as_bytes()]).await? {
            Value::Bulk(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
            other => Err(EngineError::Target(format!("{} answered INFO with {}", self.link.addr(), other.described()))),
        }
    }
}
