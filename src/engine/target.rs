//! The target before the run: what it is, what it holds, and what must be true before the first write.
//!
//! In: the target's address and the operator's choices. Out: its capabilities, the keys to be left alone, connections
//! for the workers. Nothing is written here except by `--on-existing flush`.

use super::cluster::Cluster;
use super::error::EngineError;
use super::handle::Existing;
use super::lease::{self, Lease};
use super::link::{Link, LinkError};
use super::own;
use super::patience::Patience;
use super::refusal;
use super::settings::{Endpoint, MigrateSettings, OnExisting};
use super::wire::Connected;
use crate::ids::{DbIndex, Slot};
use crate::redis::ReplyError;
use crate::redis::capabilities::Capabilities;
use crate::redis::info::Info;
use crate::redis::value::{self, Value};
use std::cell::Cell;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// All keys of the tool at the target begin with this; they are removed when the job is finished.
pub const OWN_PREFIX: &str = "df2redis:";

/// What the target said of itself.
pub struct Target {
    pub capabilities: Capabilities,
    pub make: String,
    pub version: String,
    pub run_id: String,
    /// Its number of databases, where it tells.
    pub databases: Option<u32>,
    /// Keys by database before the run.
    pub keyspace: Vec<(DbIndex, u64)>,
    pub cpu_at_start: Option<crate::report::counters::CpuSample>,
}

/// Most keys that `--on-existing skip` remembers for each MiB of `--memory`.
const EXISTING_PER_MIB: usize = 8192;

/// What else may stand in a client's query buffer beside one long string.
const QUERY_BYTES_SPARE: u64 = 64 << 10;

/// What a changed run id means.
pub const RESTARTED: &str = "the target server was restarted during the run, so writes that it had acknowledged may be lost; \
                             run again with --on-existing flush";

/// A control connection to the target: one server, or a cluster, where each command goes to the node of its key.
pub struct TargetLink {
    link: Link,
    cluster: Option<Box<Cluster>>,
    /// How long a server that refuses for a while is asked again; zero: what it answers is the answer.
    patience: Duration,
}

fn target_error(e: LinkError) -> EngineError {
    match e {
        LinkError::Connect { .. } | LinkError::Timeout { .. } | LinkError::Closed { .. } | LinkError::Io { .. } => {
            EngineError::TargetLost(e.to_string())
        }
        LinkError::Resolve { .. } | LinkError::Tls { .. } | LinkError::Unasked { .. } | LinkError::Protocol { .. } => {
            EngineError::Target(e.to_string())
        }
    }
}

/// A server that has no room for a client says so instead of the first answer, and closes the connection.
fn error_of(text: &[u8], error: String) -> EngineError {
    match memchr::memmem::find(text, b"max number of clients") {
        Some(_) => EngineError::TargetLost(error),
        None => EngineError::Target(error),
    }
}

impl TargetLink {
    /// Connects and authenticates.
    pub async fn connect(endpoint: &Endpoint, timeout: Duration) -> Result<Self, EngineError> {
        let link = Link::connect(&endpoint.host, endpoint.port, endpoint.tls.as_ref(), timeout).await;
        let link = link.map_err(target_error)?;
        let mut this = Self { link, cluster: None, patience: Duration::ZERO };
        if let Some(password) = endpoint.password.expose() {
            let user = endpoint.user.expose();
            let args: Vec<&[u8]> = match user {
                Some(user) => vec![b"AUTH", user.as_bytes(), password.as_bytes()],
                None => vec![b"AUTH", password.as_bytes()],
            };
            this.ok("AUTH", &args).await?;
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
                }
                value => return Ok(value),
            }
        }
    }

    fn answered(&self, what: &str, text: &[u8]) -> String {
        format!("{} answered {what} with \"{}\"", self.link.addr(), text.escape_ascii())
    }

    /// Commands as one transaction of one server, begun anew where that refuses for a while. Returns the answers of its EXEC, none
    /// of which is an error.
    pub async fn transaction(&mut self, commands: &[&[&[u8]]]) -> Result<Vec<Value>, EngineError> {
        let mut patience = Patience::new(self.patience);
        loop {
            self.call(&[b"MULTI"]).await?;
            let mut refused = None;
            for args in commands {
                let what = String::from_utf8_lossy(args.first().copied().unwrap_or_default()).into_owned();
                if let Value::Error(text) = self.call_raw(&what, args).await? {
                    refused = Some((self.answered(&what, &text), text));
                    break;
                }
            }
            let Some((error, text)) = refused else {
                let answers = match self.call_raw("EXEC", &[b"EXEC"]).await? {
                    Value::Array(answers) => answers,
                    other => return Err(EngineError::Target(format!("the target answered EXEC with {other:?}"))),
                };
                return match answers.iter().find_map(Value::error_text) {
                    Some(text) => Err(EngineError::Target(self.answered("EXEC", text.as_bytes()))),
                    None => Ok(answers),
                };
            };
            // A transaction in which something was refused is not executed.
            self.call_raw("DISCARD", &[b"DISCARD"]).await?;
            if self.patience.is_zero() || !refusal::refuses_for_now(&text) {
                return Err(EngineError::Target(error));
            }
            patience.wait(&error).await?;
        }
    }

    async fn ok(&mut self, what: &str, args: &[&[u8]]) -> Result<(), EngineError> {
        match self.call_raw(what, args).await? {
            Value::Error(text) => {
                Err(error_of(&text, format!("{}; check the target's user and password", self.answered(what, &text))))
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
        let mut this = Self::connect_any(settings).await?;
        this.patience = patience;
        let info = this.info("cluster").await?;
        if Info::parse(&info).get("cluster_enabled") == Some("1") {
            let cluster = Cluster::discover(settings, &mut this, patience).await?;
            this.cluster = Some(Box::new(cluster));
        }
        Ok(this)
    }

    /// To the target as the operator named it, or to a node of its cluster that was found before.
    async fn connect_any(settings: &MigrateSettings) -> Result<Self, EngineError> {
        let failed = match Self::connect(&settings.target, settings.connect_timeout).await {
            Ok(link) => return Ok(link),
            Err(error) => error,
        };
        let nodes = settings.target_nodes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        for address in nodes {
            let endpoint = Endpoint { host: address.host, port: address.port, ..settings.target.clone() };
            if let Ok(link) = Self::connect(&endpoint, settings.connect_timeout).await {
                return Ok(link);
            }
        }
        Err(failed)
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
        let request = crate::redis::resp::command(args);
        self.link.request(what, request, value::parse).await.map_err(target_error)
    }

    pub fn hand_over(self) -> Result<Connected, EngineError> {
        let (connected, early) = self.link.hand_over().map_err(target_error)?;
        if early.is_empty() {
            Ok(connected)
        } else {
            Err(EngineError::Target("the target sent a reply that nobody asked for".into()))
        }
    }

    async fn info(&mut self, section: &str) -> Result<String, EngineError> {
        match self.call(&[b"INFO", section.as_bytes()]).await? {
            Value::Bulk(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
            other => Err(EngineError::Target(format!("{} answered INFO with {other:?}", self.link.addr()))),
        }
    }
}

/// The run id of the server behind a connection: another one means that the server was restarted.
pub async fn run_id(link: &mut TargetLink) -> Result<String, EngineError> {
    if link.cluster.is_some() {
        // Its nodes come and go; each is looked at when it is connected to.
        return Ok("cluster".into());
    }
    let info = link.info("server").await?;
    Ok(Info::parse(&info).get("run_id").unwrap_or_default().to_string())
}

/// The target's clock; `None` where its user may not ask.
pub async fn time_ms(link: &mut TargetLink) -> Result<Option<i64>, EngineError> {
    let Value::Array(parts) = link.call_raw("TIME", &[b"TIME"]).await? else { return Ok(None) };
    let number = |at: usize| parts.get(at).and_then(Value::text).and_then(|text| text.parse::<i64>().ok());
    Ok(number(0).zip(number(1)).map(|(s, us)| s.saturating_mul(1000).saturating_add(us / 1000)))
}

/// The target's CPU time so far, where INFO gives it.
pub async fn cpu(link: &mut TargetLink) -> Option<crate::report::counters::CpuSample> {
    let info = link.info("cpu").await.ok()?;
    crate::report::counters::CpuSample::from_info(&info)
}

/// A script that asks all that scripts about held expiries ask, of a key that there is not.
fn asking(capabilities: &Capabilities) -> [&'static [u8]; 4] {
    const ASKS: &str = "redis.call('PTTL',KEYS[1]) redis.call('TIME') redis.call('TYPE',KEYS[1])";
    const ASKS_TIME: &str =
        "redis.call('PTTL',KEYS[1]) redis.call('TIME') redis.call('TYPE',KEYS[1]) redis.call('PEXPIRETIME',KEYS[1])";
    const ASKS_FIELDS: &str = "redis.call('PEXPIRETIME',KEYS[1]) redis.call('TYPE',KEYS[1]) redis.call('HLEN',KEYS[1]) \
        redis.call('HKEYS',KEYS[1]) redis.call('HPEXPIRETIME',KEYS[1],'FIELDS',1,'f')";
    let script = match (capabilities.field_expiry, capabilities.has_command("PEXPIRETIME")) {
        (true, _) => ASKS_FIELDS,
        (false, true) => ASKS_TIME,
        (false, false) => ASKS,
    };
    [b"EVAL", script.as_bytes(), b"1", b"df2redis:probe"]
}

/// A script that reads what those that add floats read, of a key that there is not.
fn adding(capabilities: &Capabilities) -> [&'static [u8]; 4] {
    const READS: &str = "redis.call('GET',KEYS[1]) redis.call('HGET',KEYS[1],'f')";
    const READS_FIELDS: &str = "redis.call('GET',KEYS[1]) redis.call('HGET',KEYS[1],'f') \
        redis.call('HPEXPIRETIME',KEYS[1],'FIELDS',1,'f')";
    let script = if capabilities.field_expiry { READS_FIELDS } else { READS };
    [b"EVAL", script.as_bytes(), b"1", b"df2redis:probe"]
}

/// A script that reads what those that claim entries of streams read, of a key that there is not.
const CLAIMING: &[&[u8]] = &[
    b"EVAL",
    b"redis.call('TIME') redis.call('XRANGE',KEYS[1],'-','+') local r=redis.pcall('XPENDING',KEYS[1],'g','-','+',1) \
    if r.err and not string.find(r.err,'NOGROUP') then return redis.error_reply(r.err) end return 1",
    b"1",
    b"df2redis:probe",
];

/// Whether the target's user may run this script. Of a server that refuses for a while (one that is full refuses all scripts) it is
/// not known, so that is waited for.
async fn runs(link: &mut TargetLink, script: &[&[u8]]) -> Result<bool, EngineError> {
    let mut patience = Patience::new(link.patience);
    loop {
        match link.call_raw("EVAL", script).await? {
            Value::Error(text) if refusal::refuses_for_now(&text) => {
                patience.wait(&link.answered("EVAL", &text)).await?;
            }
            answer => return Ok(answer.error_text().is_none()),
        }
    }
}

/// Learns what the target is and can do. Writes nothing.
pub async fn probe(link: &mut TargetLink) -> Result<Target, EngineError> {
    let text = link.info("everything").await?;
    let info = Info::parse(&text);
    let names = command_names(link).await?;
    let proto_bytes_max = config_number(link, "proto-max-bulk-len").await?;
    // A string must stand in the query buffer whole.
    let query_bytes_max = config_number(link, "client-query-buffer-limit").await?;
    let query_bytes_max = query_bytes_max.map(|bytes| bytes.saturating_sub(QUERY_BYTES_SPARE).max(1));
    let bulk_bytes_max = [proto_bytes_max, query_bytes_max].into_iter().flatten().min();
    let capabilities =
        Capabilities::from_probe(&text, names, bulk_bytes_max).map_err(|e| EngineError::Refused(e.to_string()))?;
    let mut capabilities = capabilities;
    // Known, but not for this user: then it is as good as absent.
    if !runs(link, &[b"EVAL", b"return 1", b"0"]).await? {
        capabilities.commands.remove("EVAL");
    }
    capabilities.scripts_ask = runs(link, &asking(&capabilities)).await?;
    capabilities.scripts_add = runs(link, &adding(&capabilities)).await?;
    capabilities.scripts_claim = runs(link, CLAIMING).await?;
    // In import mode MIGRATE does not find keys that have expired, so that their slots could not be moved any more (tried with
    // Valkey 8.1.8 and 9.1.2), and nodes that take over are not in it: expiries are held back instead.
    capabilities.import_mode &= !capabilities.cluster;
    if info.get("role") == Some("slave") && !capabilities.cluster {
        return Err(EngineError::Refused(format!(
            "the target is a replica of {}:{}; give the address of its primary",
            info.get("master_host").unwrap_or("?"),
            info.get("master_port").unwrap_or("?")
        )));
    }
    if info.get("loading").is_some_and(|loading| loading != "0") {
        return Err(EngineError::Target("the target is still loading its data; run again when it is ready".into()));
    }
    // A cluster has one, whatever its setting says.
    let databases = match capabilities.cluster {
        true => Some(1),
        false => config_number(link, "databases").await?.and_then(|n| u32::try_from(n).ok()),
    };
    let keyspace = keyspace(link).await?;
    Ok(Target {
        databases,
        make: format!("{:?}", capabilities.make),
        version: format!(
            "{}.{}.{}",
            capabilities.version.major, capabilities.version.minor, capabilities.version.patch
        ),
        run_id: match capabilities.cluster {
            true => "cluster".into(),
            false => info.get("run_id").unwrap_or_default().to_string(),
        },
        keyspace,
        cpu_at_start: crate::report::counters::CpuSample::from_info(&text),
        capabilities,
    })
}

/// Keys by database.
pub async fn keyspace(link: &mut TargetLink) -> Result<Vec<(DbIndex, u64)>, EngineError> {
    if let Some(cluster) = &mut link.cluster {
        return Ok(match Box::pin(cluster.call(&[b"DBSIZE"])).await? {
            Value::Integer(keys @ 1..) => vec![(DbIndex(0), keys as u64)],
            Value::Integer(_) => Vec::new(),
            // Not known is not empty.
            Value::Error(text) => {
                return Err(EngineError::Target(format!(
                    "the cluster answered DBSIZE with \"{}\"; the target's user needs +dbsize",
                    text.escape_ascii()
                )));
            }
            other => return Err(EngineError::Target(format!("the cluster answered DBSIZE with {other:?}"))),
        });
    }
    let text = link.info("keyspace").await?;
    Ok(Info::parse(&text).keys_by_db().into_iter().map(|(db, keys)| (DbIndex(db), keys)).collect())
}

/// A number of the target's configuration; `None` where the user may not ask.
async fn config_number(link: &mut TargetLink, name: &str) -> Result<Option<u64>, EngineError> {
    let Value::Array(pair) = link.call_raw("CONFIG", &[b"CONFIG", b"GET", name.as_bytes()]).await? else {
        return Ok(None);
    };
    Ok(pair.get(1).and_then(Value::text).and_then(|text| text.parse().ok()))
}

/// Databases that hold keys now.
pub async fn databases(link: &mut TargetLink) -> Result<Vec<DbIndex>, EngineError> {
    Ok(keyspace(link).await?.into_iter().map(|(db, _)| db).collect())
}

/// Names of all commands, upper case.
async fn command_names(link: &mut TargetLink) -> Result<HashSet<String>, EngineError> {
    let upper = |name: &[u8]| String::from_utf8_lossy(name).to_ascii_uppercase();
    // COMMAND LIST exists from Redis 7.0; COMMAND lists everything with details.
    if let Value::Array(names) = link.call_raw("COMMAND", &[b"COMMAND", b"LIST"]).await? {
        return Ok(names.iter().filter_map(|v| if let Value::Bulk(n) = v { Some(upper(n)) } else { None }).collect());
    }
    match link.call(&[b"COMMAND"]).await? {
        Value::Array(rows) => Ok(rows
            .iter()
            .filter_map(|row| match row {
                Value::Array(fields) => match fields.first() {
                    Some(Value::Bulk(name)) => Some(upper(name)),
                    _ => None,
                },
                _ => None,
            })
            .collect()),
        other => Err(EngineError::Target(format!("the target answered COMMAND with {other:?}"))),
    }
}

/// Applies `--on-existing`. Returns the keys that must not be written.
pub async fn prepare(
    link: &mut TargetLink,
    target: &Target,
    settings: &MigrateSettings,
    lease: Option<&Lease>,
) -> Result<Existing, EngineError> {
    let held: u64 = target.keyspace.iter().map(|(_, keys)| keys).sum();
    let mut existing = Existing::new();
    if held == 0 {
        return Ok(existing);
    }
    match settings.on_existing {
        OnExisting::Refuse => {
            return Err(EngineError::Refused(format!(
                "the target {}:{} holds {held} keys; say what to do with them: --on-existing replace (overwrite keys that \
                 the source has, leave the others), flush (delete everything first) or skip (leave them as they are)",
                settings.target.host, settings.target.port
            )));
        }
        OnExisting::Replace => {}
        OnExisting::Flush => {
            lease::flush_all(link, lease, &[b"FLUSHALL", b"ASYNC"]).await?;
        }
        OnExisting::Skip => {
            let keys_max = (settings.memory_bytes >> 20) * EXISTING_PER_MIB;
            if held > keys_max as u64 {
                return Err(EngineError::Refused(format!(
                    "the target holds {held} keys; to remember them for --on-existing skip takes more memory than \
                     --memory allows (about {keys_max} keys)"
                )));
            }
            if let Some(cluster) = &mut link.cluster {
                for id in cluster.primary_ids() {
                    let Some(endpoint) = cluster.endpoint_of(&id) else { continue };
                    let mut node = TargetLink::connect(&endpoint, settings.connect_timeout).await?;
                    scan(&mut node, DbIndex(0), &mut existing).await?;
                }
                return Ok(existing);
            }
            for (db, _) in &target.keyspace {
                scan(link, *db, &mut existing).await?;
            }
        }
    }
    Ok(existing)
}

async fn scan(link: &mut TargetLink, db: DbIndex, existing: &mut Existing) -> Result<(), EngineError> {
    link.call(&[b"SELECT", db.to_string().as_bytes()]).await?;
    let mut cursor = b"0".to_vec();
    loop {
        let Value::Array(reply) = link.call(&[b"SCAN", &cursor, b"COUNT", b"1000"]).await? else {
            return Err(EngineError::Target("the target answered SCAN with no array".into()));
        };
        let (Some(Value::Bulk(next)), Some(Value::Array(keys))) = (reply.first(), reply.get(1)) else {
            return Err(EngineError::Target("the target answered SCAN with an unknown shape".into()));
        };
        for key in keys {
            if let Value::Bulk(key) = key {
                existing.insert(db, key);
            }
        }
        if next.as_slice() == b"0" {
            break;
        }
        cursor = next.to_vec();
    }
    link.call(&[b"SELECT", b"0"]).await?;
    Ok(())
}

/// Position of the last guarded group that was applied on a lost connection: the largest of the marker's values.
pub async fn applied(link: &mut TargetLink, marker: &[u8], dbs: &[DbIndex]) -> Result<u64, EngineError> {
    let mut largest = 0;
    for db in dbs {
        link.call(&[b"SELECT", db.to_string().as_bytes()]).await?;
        if let Value::Bulk(text) = link.call(&[b"GET", marker]).await? {
            let position = std::str::from_utf8(&text).ok().and_then(|t| t.parse().ok()).ok_or_else(|| {
                EngineError::Target(format!("the marker {} holds \"{}\"", marker.escape_ascii(), text.escape_ascii()))
            })?;
            largest = largest.max(position);
        }
    }
    if !dbs.is_empty() {
        link.call(&[b"SELECT", b"0"]).await?;
    }
    Ok(largest)
}

/// Deletes one key if it exists.
pub async fn delete(link: &mut TargetLink, db: DbIndex, key: &[u8]) -> Result<bool, EngineError> {
    link.call(&[b"SELECT", db.to_string().as_bytes()]).await?;
    Ok(matches!(link.call(&[b"DEL", key]).await?, Value::Integer(1..)))
}

/// Id of this connection at the target; 0 where it does not say.
pub async fn client_id(link: &mut TargetLink) -> Result<i64, EngineError> {
    match link.call_raw("CLIENT", &[b"CLIENT", b"ID"]).await? {
        Value::Integer(id) => Ok(id),
        _ => Ok(0),
    }
}

/// Ends a connection of ours that was lost, so that nothing it still holds is executed. Without that being sure, going on
/// could apply a command twice.
pub async fn end_client(link: &mut TargetLink, client_id: i64) -> Result<(), EngineError> {
    let refused = || {
        EngineError::Refused(
            "a connection to the target was lost, and to go on the target's user needs the permissions +client|id and \
             +client|kill: without them the target might still execute what the lost connection had sent"
                .into(),
        )
    };
    if client_id == 0 {
        return Err(refused());
    }
    match link.call_raw("CLIENT", &[b"CLIENT", b"KILL", b"ID", client_id.to_string().as_bytes()]).await? {
        Value::Error(text) if text.starts_with(b"NOPERM") => Err(refused()),
        _ => Ok(()),
    }
}

/// A connection for the control plane of `replicate`: named, so that one of a dead process can be found and ended.
pub async fn connect_control(settings: &Arc<MigrateSettings>) -> Result<TargetLink, EngineError> {
    connect_control_within(settings, settings.retry_max).await
}

/// The same with another patience.
pub async fn connect_control_within(
    settings: &Arc<MigrateSettings>,
    patience: Duration,
) -> Result<TargetLink, EngineError> {
    let mut link = TargetLink::open_within(settings, patience).await?;
    // The connections to a cluster's nodes have names of their own.
    if link.cluster.is_none() {
        name_control(&mut link, settings).await?;
    }
    Ok(link)
}

/// Names a connection of the control plane.
pub async fn name_control(link: &mut TargetLink, settings: &MigrateSettings) -> Result<(), EngineError> {
    let name = own::control_name(settings);
    link.call_raw("CLIENT", &[b"CLIENT", b"SETNAME", name.as_bytes()]).await.map(drop)
}

/// A connection for data.
pub async fn connect_lane(settings: &MigrateSettings) -> Result<TargetLink, EngineError> {
    let mut link = TargetLink::connect(&settings.target, settings.connect_timeout).await?;
    // Without the permission it stays nameless; `end_lanes` then says what is needed.
    link.call_raw("CLIENT", &[b"CLIENT", b"SETNAME", own::lane_name(settings).as_bytes()]).await?;
    Ok(link)
}

/// The same to a cluster's node, where only the name finds it again after a restart.
pub async fn connect_named_lane(endpoint: &Endpoint, settings: &MigrateSettings) -> Result<TargetLink, EngineError> {
    let mut link = TargetLink::connect(endpoint, settings.connect_timeout).await?;
    link.call(&[b"CLIENT", b"SETNAME", own::lane_name(settings).as_bytes()]).await?;
    Ok(link)
}

/// Ends the connections that a dead process of this job may have left, those for data and that for global commands: what
/// they still hold must not be executed after the checkpoint has been read.
pub async fn end_lanes(link: &mut TargetLink, settings: &MigrateSettings) -> Result<u64, EngineError> {
    match &mut link.cluster {
        Some(cluster) => Box::pin(cluster.end_lanes()).await,
        None => end_lanes_of_node(link, settings).await,
    }
}

/// The same for one server.
pub async fn end_lanes_of_node(link: &mut TargetLink, settings: &MigrateSettings) -> Result<u64, EngineError> {
    let names = [own::lane_name(settings), own::control_name(settings)];
    let Value::Bulk(list) = link.call(&[b"CLIENT", b"LIST"]).await? else {
        return Err(EngineError::Target("the target answered CLIENT LIST with no text".into()));
    };
    let own = client_id(link).await?;
    let mut ended = 0;
    for line in String::from_utf8_lossy(&list).lines() {
        let field = |name: &str| line.split(' ').find_map(|part| part.strip_prefix(name));
        if field("name=").is_some_and(|name| names.iter().any(|own| own == name))
            && let Some(id) = field("id=").and_then(|id| id.parse::<i64>().ok())
            && id != own
        {
            end_client(link, id).await?;
            ended += 1;
        }
    }
    Ok(ended)
}

/// Deletes the keys of these hash slots in database 0 (a cluster has no other).
pub async fn delete_slots(link: &mut TargetLink, ranges: &[(Slot, Slot)]) -> Result<u64, EngineError> {
    let Some(cluster) = &mut link.cluster else { return delete_slots_of_node(link, ranges).await };
    let mut deleted = 0;
    for id in cluster.primary_ids() {
        let Some(endpoint) = cluster.endpoint_of(&id) else { continue };
        let mut node = TargetLink::connect(&endpoint, cluster.settings().connect_timeout).await?;
        deleted += delete_slots_of_node(&mut node, ranges).await?;
    }
    Ok(deleted)
}

async fn delete_slots_of_node(link: &mut TargetLink, ranges: &[(Slot, Slot)]) -> Result<u64, EngineError> {
    let (mut cursor, mut deleted) = (b"0".to_vec(), 0);
    link.call(&[b"SELECT", b"0"]).await?;
    loop {
        let Value::Array(reply) = link.call(&[b"SCAN", &cursor, b"COUNT", b"1000"]).await? else {
            return Err(EngineError::Target("the target answered SCAN with no array".into()));
        };
        let (Some(Value::Bulk(next)), Some(Value::Array(keys))) = (reply.first(), reply.get(1)) else {
            return Err(EngineError::Target("the target answered SCAN with an unknown shape".into()));
        };
        for key in keys.iter().filter_map(Value::bytes) {
            let slot = crate::redis::slot::slot(key);
            let own = key.starts_with(OWN_PREFIX.as_bytes());
            if !own && ranges.iter().any(|(first, last)| (*first..=*last).contains(&slot)) {
                link.call(&[b"UNLINK", key]).await?;
                deleted += 1;
            }
        }
        if next.as_slice() == b"0" {
            return Ok(deleted);
        }
        cursor = next.clone();
    }
}
