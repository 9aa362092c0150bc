//! One side of the comparison: a single server, or all primaries of a cluster, read through ordinary commands.
//!
//! In: commands with the slots of their keys. Out: replies in the order of the commands, wherever they were answered.
//! Lost connections are made anew and the commands sent again (all of them read, or replace whole). What a cluster says of
//! moved slots is followed, and of those on the move: each key is asked for where it is. Invariant: cursors are good as long as the
//! server they belong to lives, so a restart of a server during the comparison is an error.

use super::names::Names;
use super::nodes::{Node, Nodes};
use super::wire::{Commands, Conn, Trouble};
use crate::engine::error::EngineError;
use crate::engine::errors::shown_of_auth;
use crate::engine::patience::rest;
use crate::engine::settings::{Endpoint, NatMap};
use crate::ids::Slot;
use crate::redis::info::Info;
use crate::redis::own_slots::OwnSlots;
use crate::redis::topology::{Address, Redirect, Topology};
use crate::redis::value::Value;
use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Source,
    Target,
}

impl Side {
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }

    pub fn error(self, text: String) -> EngineError {
        match self {
            Self::Source => EngineError::Source(text),
            Self::Target => EngineError::Target(text),
        }
    }
}

/// How a server tells the expiry of hash fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldExpiry {
    /// Not at all: it has none.
    None,
    /// `FIELDTTL key field`, in seconds left (older Dragonfly).
    SecondsLeft,
    /// `HPEXPIRETIME`; a Dragonfly answers whole seconds.
    Exact,
}

/// What a server can tell, found by asking.
#[derive(Clone, Debug)]
pub struct Traits {
    /// Make and version, for people.
    pub name: String,
    pub dragonfly: bool,
    /// `PEXPIRETIME` exists.
    pub expire_time: bool,
    pub field_expiry: FieldExpiry,
    /// Server's clock minus ours.
    pub clock_offset_ms: i64,
    pub cluster: bool,
}

/// Why a question was not answered.
#[derive(Debug)]
pub enum AskError {
    /// The answer takes more memory than allowed.
    TooLarge,
    Engine(EngineError),
}

impl From<EngineError> for AskError {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

/// For how long a lost connection is made anew.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest silence within an answer. SCAN of a large, sparse table takes its time.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Redirections that one exchange may meet while slots move.
const REDIRECTS_MAX: u32 = 100;
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(3);

pub struct Peer {
    pub side: Side,
    pub traits: Traits,
    endpoint: Endpoint,
    nat: NatMap,
    timeout: Duration,
    /// Memory that the answers of one exchange may take.
    bytes_max: usize,
    nodes: Nodes,
    /// Where the source's keys stand here; none: under their own names.
    pub names: Option<Names>,
    /// Bytes received so far.
    pub bytes_received: u64,
}

impl Peer {
    /// Connects, authenticates, and asks what the server is. `bytes_max`: memory for the answers of one exchange.
    pub async fn connect(
        side: Side,
        endpoint: &Endpoint,
        nat: &NatMap,
        timeout: Duration,
        bytes_max: usize,
    ) -> Result<Self, EngineError> {
        let first = Node::new(endpoint.clone());
        let traits = Traits {
            name: String::new(),
            dragonfly: false,
            expire_time: false,
            field_expiry: FieldExpiry::None,
            clock_offset_ms: 0,
            cluster: false,
        };
        let mut peer = Self {
            side,
            traits,
            endpoint: endpoint.clone(),
            nat: nat.clone(),
            timeout,
            bytes_max,
            nodes: Nodes::single(first),
            names: None,
            bytes_received: 0,
        };
        peer.open(0).await.map_err(|trouble| peer.said(0, &text_of(trouble)))?;
        peer.learn().await?;
        Ok(peer)
    }

    /// The nodes that hold keys, by number.
    pub fn primaries(&self) -> Vec<usize> {
        self.nodes.primaries()
    }

    pub fn is_cluster(&self) -> bool {
        self.nodes.is_cluster()
    }

    /// The node of a cluster that called itself so.
    pub fn node_of(&self, id: &str) -> Option<usize> {
        self.nodes.all.iter().position(|node| node.id == id)
    }

    /// Run ids of the nodes, in order of their numbers.
    pub fn run_ids(&self) -> Vec<String> {
        self.nodes.all.iter().map(|node| node.run_id.clone()).collect()
    }

    async fn learn(&mut self) -> Result<(), EngineError> {
        let text = self.info().await?;
        let info = Info::parse(&text);
        let field = |name: &str| info.get(name).unwrap_or_default().to_string();
        self.traits.dragonfly = info.get("dragonfly_version").is_some();
        self.traits.name = match (info.get("dragonfly_version"), info.get("valkey_version")) {
            (Some(version), _) => format!("Dragonfly {}", version.trim_start_matches("df-")),
            (_, Some(version)) => format!("Valkey {version}"),
            _ => format!("Redis {}", field("redis_version")),
        };
        // A Dragonfly in cluster mode "emulated" is one server.
        self.traits.cluster = field("redis_mode") == "cluster" || field("cluster_enabled") == "1";
        if self.traits.cluster && !self.traits.dragonfly {
            self.refresh().await?;
            for node in self.primaries() {
                self.open(node).await.map_err(|trouble| self.said(node, &text_of(trouble)))?;
            }
            // What the walk needs is missing now, or never.
            self.own_slots().await?;
        }
        let mut commands = Commands::new();
        commands.push(&[b"PEXPIRETIME", b"df2redis:none"]);
        commands.push(&[b"HPEXPIRETIME", b"df2redis:none", b"FIELDS", b"1", b"f"]);
        commands.push(&[b"FIELDTTL", b"df2redis:none", b"f"]);
        let known = self.ask_node(0, 0, &commands).await.map_err(|error| self.engine(error))?;
        let knows = |at: usize| !matches!(known.get(at), Some(Value::Error(text)) if is_unknown_command(text));
        self.traits.expire_time = knows(0);
        self.traits.field_expiry = match (knows(1), knows(2)) {
            (true, _) => FieldExpiry::Exact,
            (false, true) => FieldExpiry::SecondsLeft,
            (false, false) => FieldExpiry::None,
        };
        self.measure_clock().await
    }

    async fn measure_clock(&mut self) -> Result<(), EngineError> {
        let mut commands = Commands::new();
        commands.push(&[b"TIME"]);
        let replies = self.ask_node(0, 0, &commands).await.map_err(|error| self.engine(error))?;
        // Without the permission the clocks are taken to agree.
        if let Some(Value::Array(parts)) = replies.first()
            && let [seconds, micros] = &parts[..]
            && let (Some(seconds), Some(micros)) = (number(seconds), number(micros))
        {
            let server_ms = seconds.saturating_mul(1000).saturating_add(micros / 1000);
            self.traits.clock_offset_ms = server_ms.saturating_sub(unix_ms());
        }
        Ok(())
    }

    /// The server's own Unix time.
    pub fn server_now_ms(&self) -> i64 {
        unix_ms().saturating_add(self.traits.clock_offset_ms)
    }

    /// The first node's INFO.
    pub async fn info(&mut self) -> Result<String, EngineError> {
        match self.one(0, &[b"INFO"]).await? {
            Value::Bulk(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
            other => Err(self.said(0, &format!("INFO was answered with {}", shown(&other)))),
        }
    }

    /// Keys by database, over all nodes.
    pub async fn keyspace(&mut self) -> Result<Vec<(u32, u64)>, EngineError> {
        let mut by_db = BTreeMap::new();
        for node in self.refresh_primaries().await? {
            let Value::Bulk(text) = self.one(node, &[b"INFO", b"keyspace"]).await? else { continue };
            for (db, keys) in Info::parse(&String::from_utf8_lossy(&text)).keys_by_db() {
                *by_db.entry(db).or_insert(0) += keys;
            }
        }
        Ok(by_db.into_iter().collect())
    }

    /// Keys of one database, over all nodes.
    pub async fn count(&mut self, db: u32) -> Result<u64, EngineError> {
        let mut total = 0;
        for node in self.refresh_primaries().await? {
            let mut commands = Commands::new();
            commands.push(&[b"DBSIZE"]);
            let replies = self.ask_node(node, db, &commands).await.map_err(|error| self.engine(error))?;
            match replies.first() {
                Some(Value::Integer(n)) => total += u64::try_from(*n).unwrap_or(0),
                Some(other) => return Err(self.said(node, &format!("DBSIZE was answered with {}", shown(other)))),
                None => return Err(EngineError::Internal("an exchange without a reply".into())),
            }
        }
        Ok(total)
    }

    /// One command at one node, database 0; an error reply is an error.
    pub async fn one(&mut self, node: usize, args: &[&[u8]]) -> Result<Value, EngineError> {
        let mut commands = Commands::new();
        commands.push(args);
        let mut replies = self.ask_node(node, 0, &commands).await.map_err(|error| self.engine(error))?;
        match replies.pop() {
            Some(Value::Error(text)) => {
                let name = String::from_utf8_lossy(args.first().copied().unwrap_or_default()).into_owned();
                Err(self.said(node, &format!("{name} was answered with \"{}\"", text.escape_ascii())))
            }
            Some(value) => Ok(value),
            None => Err(EngineError::Internal("an exchange without a reply".into())),
        }
    }

    /// Commands for keys by the source's names, each at its owner; replies in the order of the commands.
    pub async fn ask(&mut self, db: u32, commands: &Commands) -> Result<Vec<Value>, AskError> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let own = self.names.as_ref().map(|names| names.at_target(db, commands)).transpose();
        let own = own.map_err(EngineError::from)?.flatten();
        let (db, commands) = own.as_ref().map_or((db, commands), |(db, commands)| (*db, commands));
        if !self.nodes.is_cluster() {
            return self.ask_node(0, db, commands).await;
        }
        let all: Vec<(Slot, &[u8])> = commands.each().collect();
        let (mut replies, mut refused): (Vec<Option<Value>>, _) = (vec![None; all.len()], String::new());
        for _ in 0..REDIRECTS_MAX {
            let (mut moved, mut elsewhere) = (false, Vec::new());
            for node in 0..self.nodes.all.len() {
                let mut own = Commands::new();
                let mut places = Vec::new();
                for (place, (slot, bytes)) in all.iter().enumerate() {
                    if self.nodes.owner(*slot) == node && replies.get(place).is_some_and(Option::is_none) {
                        own.push_encoded(bytes, *slot);
                        places.push(place);
                    }
                }
                if own.is_empty() {
                    continue;
                }
                for (place, reply) in places.into_iter().zip(self.ask_node(node, db, &own).await?) {
                    match &reply {
                        Value::Error(text) if text.starts_with(b"ASK ") => elsewhere.push((place, node, text.clone())),
                        reply if is_redirect(reply) => moved = true,
                        _ => replies[place] = Some(reply),
                    }
                }
            }
            for (node, places) in self.importers(elsewhere).await? {
                let mut own = Commands::new();
                for (slot, bytes) in places.iter().filter_map(|place| all.get(*place)) {
                    own.push(&[b"ASKING"]);
                    own.push_encoded(bytes, *slot);
                }
                let mut answers = self.ask_node(node, db, &own).await?.into_iter();
                for place in places {
                    if let Some(asking @ Value::Error(_)) = answers.next() {
                        refused = format!(" (ASKING was answered with {}; grant it)", shown(&asking));
                    }
                    // It is taken anew where the move has ended meanwhile.
                    replies[place] = answers.next().filter(|reply| !is_redirect(reply));
                }
            }
            if !moved && replies.iter().all(Option::is_some) {
                return Ok(replies.into_iter().flatten().collect());
            }
            rest(PAUSE_MIN).await;
            self.refresh().await?;
        }
        let text = format!("slots of the cluster kept moving{refused}; compare when the resharding is over");
        Err(self.side.error(text).into())
    }

    /// By node to which a slot is being moved: what is to be asked there, for its owner does not have the key (any more). What is left
    /// out names a node that nobody knows yet. `redirects`: places, who answered so, and its words.
    async fn importers(
        &mut self,
        redirects: Vec<(usize, usize, Vec<u8>)>,
    ) -> Result<BTreeMap<usize, Vec<usize>>, EngineError> {
        let mut importers: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let Some((_, asked, _)) = redirects.first() else { return Ok(importers) };
        // A node that is given its first slot is in no view of the slots.
        let mut topology = self.topology(*asked).await?;
        if let Value::Bulk(text) = self.one(*asked, &[b"CLUSTER", b"NODES"]).await? {
            let added = topology.add_listed(&text, &self.address_of(*asked), &self.nat);
            added.map_err(|error| self.said(*asked, &error.to_string()))?;
        }
        for (place, asked, text) in redirects {
            let address = self.address_of(asked);
            let announced = topology.find(&address).map_or(&address, |node| node.announced());
            let redirect = Redirect::parse(&text, announced);
            if let Some(node) = redirect.and_then(|redirect| topology.find(&redirect.address)) {
                importers.entry(self.nodes.number(node, &self.endpoint)).or_default().push(place);
            }
        }
        Ok(importers)
    }

    /// Commands at one node, whatever their keys.
    pub async fn ask_node(&mut self, node: usize, db: u32, commands: &Commands) -> Result<Vec<Value>, AskError> {
        let begun = Instant::now();
        let mut pause = PAUSE_MIN;
        loop {
            let lost = match self.exchange(node, db, commands).await {
                // A server that loads its data, or whose script runs, answers later.
                Ok(replies) => match replies.iter().find(|reply| is_passing(reply)) {
                    Some(reply) => shown(reply),
                    None => return Ok(replies),
                },
                Err(Trouble::TooLarge) => {
                    self.drop_connection(node);
                    return Err(AskError::TooLarge);
                }
                Err(Trouble::Protocol(text)) => return Err(self.said(node, &text).into()),
                Err(Trouble::Lost(text)) => {
                    self.drop_connection(node);
                    text
                }
            };
            if begun.elapsed() > PATIENCE {
                return Err(self.said(node, &format!("{lost} (tried again for {PATIENCE:?})")).into());
            }
            tracing::warn!("{:?} {}: {lost}; trying again", self.side, self.address_of(node));
            rest(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn exchange(&mut self, node: usize, db: u32, commands: &Commands) -> Result<Vec<Value>, Trouble> {
        self.open(node).await?;
        let bytes_max = self.bytes_max;
        let Some(conn) = self.nodes.all.get_mut(node).and_then(|node| node.conn.as_mut()) else {
            return Err(Trouble::Lost("there is no connection".into()));
        };
        let selects = conn.db != db;
        let mut all = Commands::new();
        if selects {
            all.push(&[b"SELECT", db.to_string().as_bytes()]);
        }
        let bytes = [all.bytes(), commands.bytes()].concat();
        let count = commands.len() + usize::from(selects);
        let (mut replies, received) = conn.exchange(bytes, count, bytes_max, SILENCE_MAX).await?;
        self.bytes_received += received as u64;
        if selects {
            let selected = replies.remove(0);
            if let Value::Error(text) = &selected {
                return match is_passing(&selected) {
                    true => Ok(vec![selected]),
                    false => {
                        Err(Trouble::Protocol(format!("SELECT {db} was answered with \"{}\"", text.escape_ascii())))
                    }
                };
            }
            conn.db = db;
        }
        Ok(replies)
    }

    /// Makes the connection to a node if there is none.
    async fn open(&mut self, index: usize) -> Result<(), Trouble> {
        let Some(node) = self.nodes.all.get(index).filter(|node| node.conn.is_none()) else { return Ok(()) };
        let Endpoint { host, port, tls, user, password } = node.endpoint.clone();
        let mut conn = Conn::connect(&host, port, tls.as_ref(), self.timeout, self.bytes_max).await?;
        let mut commands = Commands::new();
        if let Some(password) = password.expose() {
            match user.expose() {
                Some(user) => commands.push(&[b"AUTH", user.as_bytes(), password.as_bytes()]),
                None => commands.push(&[b"AUTH", password.as_bytes()]),
            }
        }
        let auth = commands.len();
        commands.push(&[b"CLIENT", b"SETNAME", b"df2redis-verify"]);
        commands.push(&[b"INFO", b"server"]);
        commands.push(&[b"INFO", b"replication"]);
        let (replies, _) =
            conn.exchange(commands.bytes().to_vec(), commands.len(), self.bytes_max, SILENCE_MAX).await?;
        if auth == 1
            && let Some(Value::Error(text)) = replies.first()
        {
            return Err(Trouble::Protocol(format!(
                "AUTH was answered with \"{}\"; check user and password",
                shown_of_auth(text)
            )));
        }
        let mut run_id = String::new();
        for reply in replies.iter().skip(auth + 1) {
            match reply {
                Value::Bulk(text) => {
                    let text = String::from_utf8_lossy(text).into_owned();
                    let info = Info::parse(&text);
                    if run_id.is_empty() {
                        run_id = info.get("run_id").or(info.get("master_replid")).unwrap_or_default().to_string();
                    }
                }
                Value::Error(_) if is_passing(reply) => return Err(Trouble::Lost(shown(reply))),
                Value::Error(text) if text.starts_with(b"NOPERM") => {}
                other => return Err(Trouble::Protocol(format!("INFO was answered with {}", shown(other)))),
            }
        }
        let Some(node) = self.nodes.all.get_mut(index) else { return Ok(()) };
        if !node.run_id.is_empty() && node.run_id != run_id {
            return Err(Trouble::Protocol(
                "the server was restarted, so positions within its keys are lost; begin the comparison anew".into(),
            ));
        }
        node.run_id = run_id;
        node.conn = Some(conn);
        Ok(())
    }

    fn drop_connection(&mut self, node: usize) {
        if let Some(node) = self.nodes.all.get_mut(node) {
            node.conn = None;
        }
    }

    /// Asks a cluster who owns what.
    async fn refresh(&mut self) -> Result<(), EngineError> {
        let topology = self.topology(0).await?;
        if topology.primaries().is_empty() {
            return Err(self.said(0, "the answer to CLUSTER SLOTS names no slot"));
        }
        self.nodes.update(&topology, &self.endpoint);
        Ok(())
    }

    /// What a node says of the slots.
    async fn topology(&mut self, node: usize) -> Result<Topology, EngineError> {
        let reply = self.one(node, &[b"CLUSTER", b"SLOTS"]).await?;
        let topology = Topology::from_slots(&reply, &self.address_of(node), &self.nat);
        topology.map_err(|error| self.said(node, &error.to_string()))
    }

    /// The same, if it is a cluster: nodes may have joined.
    async fn refresh_primaries(&mut self) -> Result<Vec<usize>, EngineError> {
        if self.is_cluster() {
            self.refresh().await?;
        }
        Ok(self.primaries())
    }

    /// Asks every primary of a cluster for its own slots.
    pub async fn own_slots(&mut self) -> Result<Vec<OwnSlots>, EngineError> {
        let mut all = Vec::new();
        for node in self.refresh_primaries().await? {
            let reply = self.one(node, &[b"CLUSTER", b"NODES"]).await?;
            let Value::Bulk(text) = &reply else { continue };
            if let (Some(own), Some(known)) = (OwnSlots::parse(text), self.nodes.all.get_mut(node)) {
                known.id.clone_from(&own.id);
                all.push(own);
            }
        }
        Ok(all)
    }

    fn address_of(&self, node: usize) -> Address {
        self.nodes.all.get(node).map_or_else(|| self.endpoint.address(), |node| node.endpoint.address())
    }

    /// An error of this side that names the node.
    pub fn said(&self, node: usize, text: &str) -> EngineError {
        self.side.error(format!("{}: {text}", self.address_of(node)))
    }

    pub fn engine(&self, error: AskError) -> EngineError {
        match error {
            AskError::Engine(error) => error,
            AskError::TooLarge => EngineError::Refused(format!(
                "an answer takes more than {} bytes; run again with more --memory",
                self.bytes_max
            )),
        }
    }
}

fn text_of(trouble: Trouble) -> String {
    match trouble {
        Trouble::TooLarge => "an answer is too large".into(),
        Trouble::Lost(text) | Trouble::Protocol(text) => text,
    }
}

fn is_unknown_command(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text).to_ascii_lowercase();
    text.contains("unknown command") || text.contains("unknown subcommand") || text.starts_with("noperm")
}

fn is_redirect(reply: &Value) -> bool {
    let words = [&b"MOVED "[..], b"ASK ", b"TRYAGAIN", b"CLUSTERDOWN"];
    matches!(reply, Value::Error(text) if words.iter().any(|word| text.starts_with(word)))
}

fn is_passing(reply: &Value) -> bool {
    matches!(reply, Value::Error(text) if text.starts_with(b"LOADING") || text.starts_with(b"BUSY ") || text.starts_with(b"MASTERDOWN"))
}

/// A reply in an error text.
pub fn shown(value: &Value) -> String {
    match value {
        Value::Error(text) => format!("\"{}\"", text.escape_ascii()),
        Value::Array(elements) => format!("an array of {}", elements.len()),
        Value::Bulk(bytes) => format!("a string of {} bytes", bytes.len()),
        other => format!("{other:?}"),
    }
}

/// A number, as an integer reply or as text.
pub fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Integer(n) => Some(*n),
        value => value.text()?.parse().ok(),
    }
}

pub fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
