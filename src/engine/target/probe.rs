//! What the target is, can do and holds, before the first write.
//!
//! In: a control connection. Out: a [`Target`]. Nothing is written.

use super::{Process, Target, TargetLink};
use crate::engine::error::EngineError;
use crate::engine::patience::Patience;
use crate::engine::refusal;
use crate::ids::DbIndex;
use crate::redis::capabilities::Capabilities;
use crate::redis::info::Info;
use crate::redis::value::Value;
use crate::uring::clock::realtime_ms;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// What else may stand in a client's query buffer beside one long string.
const QUERY_BYTES_SPARE: u64 = 64 << 10;

/// A clock of the target.
pub struct Clock {
    /// A cluster's node; empty for one server.
    pub node: String,
    /// Before this machine's, in milliseconds, and how far that may be off.
    pub ahead_ms: i64,
    pub uncertain_ms: u64,
}

/// The clocks of the target, one a primary; none of those where its user may not ask.
pub async fn clocks(link: &mut TargetLink) -> Result<Vec<Clock>, EngineError> {
    let Some(cluster) = &mut link.cluster else { return Ok(clock(link).await?.into_iter().collect()) };
    let mut clocks = Vec::new();
    for id in cluster.primary_ids() {
        let node = cluster.address_of(&id).map(|address| address.to_string()).unwrap_or_default();
        let Some(link) = Box::pin(cluster.patient_link(&id)).await? else { continue };
        match clock(link).await? {
            Some(clock) => clocks.push(Clock { node, ..clock }),
            None => tracing::warn!(%node, "its clock cannot be compared: the user lacks the permission for TIME"),
        }
    }
    Ok(clocks)
}

async fn clock(link: &mut TargetLink) -> Result<Option<Clock>, EngineError> {
    let before_ms = realtime_ms() as i64;
    let Value::Array(parts) = link.call_raw("TIME", &[b"TIME"]).await? else { return Ok(None) };
    let after_ms = realtime_ms() as i64;
    let number = |at: usize| parts.get(at).and_then(Value::text).and_then(|text| text.parse::<i64>().ok());
    let time_ms = number(0).zip(number(1)).map(|(s, us)| s.saturating_mul(1000).saturating_add(us / 1000));
    Ok(time_ms.map(|ms| Clock {
        node: String::new(),
        ahead_ms: ms.saturating_sub(before_ms.midpoint(after_ms)),
        uncertain_ms: (after_ms - before_ms).unsigned_abs() / 2,
    }))
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
        redis.call('HKEYS',KEYS[1]) redis.call('HSCAN',KEYS[1],'0') redis.call('HPEXPIRETIME',KEYS[1],'FIELDS',1,'f')";
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
    let patience = link.patience;
    may(link, "EVAL", script, patience).await
}

/// Whether it may go through all keys, at each primary: names of what is held are not always at hand (`sweep`).
async fn may_scan(link: &mut TargetLink) -> Result<bool, EngineError> {
    const SCAN: &[&[u8]] = &[b"SCAN", b"0", b"COUNT", b"1"];
    let patience = link.patience;
    let Some(cluster) = &mut link.cluster else { return may(link, "SCAN", SCAN, patience).await };
    for id in cluster.primary_ids() {
        let Some(node) = Box::pin(cluster.patient_link(&id)).await? else { continue };
        if !may(node, "SCAN", SCAN, patience).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn may(link: &mut TargetLink, name: &str, args: &[&[u8]], patience: Duration) -> Result<bool, EngineError> {
    let mut patience = Patience::new(patience);
    loop {
        match link.call_raw(name, args).await? {
            Value::Error(text) if refusal::refuses_for_now(&text) => {
                patience.wait(&link.answered(name, &text)).await?;
            }
            answer => return Ok(answer.error_text().is_none()),
        }
    }
}

/// What a server says that it is and can do, and its INFO.
async fn ask(link: &mut TargetLink) -> Result<(Capabilities, String), EngineError> {
    let text = link.info("everything").await?;
    let names = command_names(link).await?;
    let proto_bytes_max = config_number(link, "proto-max-bulk-len").await?;
    // A string must stand in the query buffer whole.
    let query_bytes_max = config_number(link, "client-query-buffer-limit").await?;
    let query_bytes_max = query_bytes_max.map(|bytes| bytes.saturating_sub(QUERY_BYTES_SPARE).max(1));
    let bulk_bytes_max = [proto_bytes_max, query_bytes_max].into_iter().flatten().min();
    let capabilities =
        Capabilities::from_probe(&text, names, bulk_bytes_max).map_err(|e| EngineError::Refused(e.to_string()))?;
    Ok((capabilities, text))
}

/// Learns what the target is and can do, a cluster as much as each of its primaries. Writes nothing.
pub async fn probe(link: &mut TargetLink) -> Result<Target, EngineError> {
    let (mut capabilities, text) = ask(link).await?;
    let info = Info::parse(&text);
    if let Some(cluster) = &mut link.cluster {
        for id in cluster.primary_ids() {
            let node = cluster.address_of(&id).map(|address| address.to_string()).unwrap_or_default();
            let Some(link) = Box::pin(cluster.patient_link(&id)).await? else { continue };
            let (of_node, _) = ask(link).await?;
            if of_node.make != capabilities.make {
                return Err(EngineError::Refused(format!(
                    "the nodes of the target cluster are of several makes: {node} is {of_node}, another one {capabilities}"
                )));
            }
            if of_node.version != capabilities.version {
                tracing::warn!(%node, is = %of_node, another = %capabilities, "the nodes of the target differ: the older version counts");
            }
            capabilities.narrow(&of_node);
        }
    }
    // Known, but not for this user: then it is as good as absent.
    if !runs(link, &[b"EVAL", b"return 1", b"0"]).await? {
        capabilities.commands.remove("EVAL");
    }
    capabilities.scripts_ask = runs(link, &asking(&capabilities)).await? && may_scan(link).await?;
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
        process: Arc::new(if capabilities.cluster { Process::cluster() } else { Process::of(&info) }),
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
            other => {
                return Err(EngineError::Target(format!("the cluster answered DBSIZE with {}", other.described())));
            }
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
        other => Err(EngineError::Target(format!("the target answered COMMAND with {}", other.described()))),
    }
}
