//! Keys of the target: what `--on-existing` makes of those that are there, markers read, keys and slots deleted.
//!
//! In: a control connection. Out: the keys to be left alone; what was deleted.

use super::{OWN_PREFIX, Target, TargetLink};
use crate::engine::cluster::{Cluster, Trouble};
use crate::engine::error::EngineError;
use crate::engine::handle::Existing;
use crate::engine::lease::{self, Lease};
use crate::engine::refusal::refuses_for_now;
use crate::engine::settings::{MigrateSettings, OnExisting};
use crate::ids::{DbIndex, Slot};
use crate::redis::resp;
use crate::redis::slot::slot;
use crate::redis::value::Value;

/// Most keys that `--on-existing skip` remembers for each MiB of `--memory`.
const EXISTING_PER_MIB: usize = 8192;

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
                "the target {} holds {held} keys; say what to do with them: --on-existing replace (overwrite keys that \
                 the source has, leave the others), flush (delete everything first) or skip (leave them as they are)",
                settings.target.address()
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

/// Whether it holds any key that is not this tool's.
pub async fn holds_keys(link: &mut TargetLink, settings: &MigrateSettings) -> Result<bool, EngineError> {
    if let Some(cluster) = &mut link.cluster {
        for endpoint in cluster.primary_ids().iter().filter_map(|id| cluster.endpoint_of(id)) {
            let mut node = TargetLink::connect(&endpoint, settings.connect_timeout).await?;
            if holds_keys_in(&mut node, DbIndex(0)).await? {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    for (db, _) in super::keyspace(link).await? {
        if holds_keys_in(link, db).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn holds_keys_in(link: &mut TargetLink, db: DbIndex) -> Result<bool, EngineError> {
    link.call(&[b"SELECT", db.to_string().as_bytes()]).await?;
    let (mut cursor, mut found) = (b"0".to_vec(), false);
    loop {
        let keys;
        (cursor, keys) = page(link, &cursor).await?;
        found |= keys.iter().filter_map(Value::bytes).any(|key| !key.starts_with(OWN_PREFIX.as_bytes()));
        if found || cursor == b"0" {
            break;
        }
    }
    link.call(&[b"SELECT", b"0"]).await?;
    Ok(found)
}

async fn scan(link: &mut TargetLink, db: DbIndex, existing: &mut Existing) -> Result<(), EngineError> {
    link.call(&[b"SELECT", db.to_string().as_bytes()]).await?;
    let mut cursor = b"0".to_vec();
    loop {
        let (next, keys) = page(link, &cursor).await?;
        keys.iter().filter_map(Value::bytes).for_each(|key| existing.insert(db, key));
        if next == b"0" {
            break;
        }
        cursor = next;
    }
    link.call(&[b"SELECT", b"0"]).await?;
    Ok(())
}

/// One SCAN: the next cursor, and keys.
async fn page(link: &mut TargetLink, cursor: &[u8]) -> Result<(Vec<u8>, Vec<Value>), EngineError> {
    parse_page(link.call(&[b"SCAN", cursor, b"COUNT", b"1000"]).await?)
}

fn parse_page(reply: Value) -> Result<(Vec<u8>, Vec<Value>), EngineError> {
    let Value::Array(reply) = reply else {
        return Err(EngineError::Target("the target answered SCAN with no array".into()));
    };
    match <[Value; 2]>::try_from(reply) {
        Ok([Value::Bulk(next), Value::Array(keys)]) => Ok((next, keys)),
        _ => Err(EngineError::Target("the target answered SCAN with an unknown shape".into())),
    }
}

/// Position of the last guarded group that was applied on a lost connection: the largest of the marker's values.
pub async fn applied(link: &mut TargetLink, marker: &[u8], dbs: &[DbIndex]) -> Result<u64, EngineError> {
    let mut largest = 0;
    for db in dbs {
        link.call(&[b"SELECT", db.to_string().as_bytes()]).await?;
        let found = match link.call(&[b"GET", marker]).await? {
            Value::Bulk(text) => Some(text),
            Value::Null => None,
            // Nothing applied would be applied once more.
            other => {
                return Err(EngineError::Target(format!(
                    "the target answered the question for a marker with {}",
                    other.described()
                )));
            }
        };
        if let Some(text) = found {
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

/// Deletes the keys of these hash slots in a database.
pub async fn delete_slots(link: &mut TargetLink, db: DbIndex, ranges: &[(Slot, Slot)]) -> Result<u64, EngineError> {
    if let Some(cluster) = &mut link.cluster {
        return delete_slots_of_cluster(cluster, ranges).await;
    }
    let (mut cursor, mut deleted) = (b"0".to_vec(), 0);
    link.call(&[b"SELECT", db.to_string().as_bytes()]).await?;
    loop {
        let (next, keys) = page(link, &cursor).await?;
        for key in keys.iter().filter_map(Value::bytes).filter(|key| is_in_slots(key, ranges)) {
            link.call(&[b"UNLINK", key]).await?;
            deleted += 1;
        }
        if next == b"0" {
            break;
        }
        cursor = next;
    }
    link.call(&[b"SELECT", b"0"]).await?;
    Ok(deleted)
}

fn is_in_slots(key: &[u8], ranges: &[(Slot, Slot)]) -> bool {
    let slot = slot(key);
    !key.starts_with(OWN_PREFIX.as_bytes()) && ranges.iter().any(|(first, last)| (*first..=*last).contains(&slot))
}

/// Twice, and until nothing is found any more: a key may move from a node that was not looked at yet to one that was.
async fn delete_slots_of_cluster(cluster: &mut Cluster, ranges: &[(Slot, Slot)]) -> Result<u64, EngineError> {
    let (mut deleted, mut patience) = (0, cluster.patience());
    for round in 0u64.. {
        cluster.refresh_patiently().await?;
        let mut found = 0;
        for id in cluster.primary_ids() {
            match delete_slots_of_node(cluster, &id, ranges).await {
                Ok(keys) => found += keys,
                // It is looked at again.
                Err(Trouble::Broken(error)) => {
                    patience.wait(&error.to_string()).await?;
                    found += 1;
                    break;
                }
                Err(Trouble::Final(error)) => return Err(error),
            }
        }
        deleted += found;
        if found == 0 && round > 0 {
            break;
        }
    }
    Ok(deleted)
}

/// Keys that a node shows, each deleted where its slot is now.
async fn delete_slots_of_node(cluster: &mut Cluster, id: &str, ranges: &[(Slot, Slot)]) -> Result<u64, Trouble> {
    let (mut cursor, mut deleted) = (b"0".to_vec(), 0);
    loop {
        let request = resp::command(&[b"SCAN", &cursor, b"COUNT", b"1000"]);
        let reply = cluster.send(id, false, &request, 1).await?.pop().unwrap_or(Value::Null);
        if let Value::Error(text) = &reply {
            let error = EngineError::Target(format!("a node answered SCAN with \"{}\"", text.escape_ascii()));
            return Err(if refuses_for_now(text) { Trouble::Broken(error) } else { Trouble::Final(error) });
        }
        let (next, keys) = parse_page(reply).map_err(Trouble::Final)?;
        let keys = keys.iter().filter_map(Value::bytes).filter(|key| is_in_slots(key, ranges));
        let requests: Vec<_> = keys.map(|key| (slot(key), resp::command(&[b"UNLINK", key]))).collect();
        for answer in cluster.pipeline(&requests).await.map_err(Trouble::Final)? {
            match answer {
                Value::Error(text) => {
                    let error = format!("the cluster answered UNLINK with \"{}\"", text.escape_ascii());
                    return Err(Trouble::Final(EngineError::Target(error)));
                }
                answer => deleted += u64::from(answer == Value::Integer(1)),
            }
        }
        if next == b"0" {
            return Ok(deleted);
        }
        cursor = next;
    }
}
