//! The job's checkpoint: one hash at the target, in database 0.
//!
//! Fields: `master` (the source process's id), `flows` (their number), `phase` (`full` until every flow's snapshot is
//! confirmed, then `stable`), `owned` (1: the target was empty, or emptied by us, when the job began), `held` (1: expiries may
//! stand there that are written later than they are), `lsn:<flow>` (LSN
//! of the next record that is not applied; written by the lanes themselves, in the same MULTI as guarded commands or
//! behind blind ones), `scope` (the job's filters), `watched:` and `lost:` (see `lost`), `homes:`, `nodes` and `flushing` (of a cluster,
//! see `homes`), `void` (see `make_void`). Invariant: what a position says is applied, is; so a restart that goes on from the positions loses
//! and doubles nothing.

use super::cluster::{Cluster, Trouble};
use super::error::EngineError;
use super::errors::is_rejection;
use super::homes;
use super::import;
use super::lost;
use super::messages::Lost;
use super::own;
use super::refusal;
use super::target::{self, TargetLink};
use super::writer::LSN_FIELD_PREFIX;
use crate::ids::{FlowId, Lsn, Slot};
use crate::redis::resp;
use crate::redis::slot::slot;
use crate::redis::value::Value;
use std::collections::BTreeMap;

/// Field that says why nobody goes on from the positions, though what the target holds is good.
const VOID: &str = "void";
/// Field that is 1 while a global command is executed node by node: then what nodes keep of positions (`homes`) may be gone.
const FLUSHING: &str = "flushing";
/// Names of one HSET.
const FIELDS_MAX: usize = 1000;
/// Fields of one page: of the longest names that there are, they fit into one reply.
const PAGE_FIELDS: &[u8] = b"100";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Key of the hash: see `own::checkpoint_key`.
    pub key: String,
    pub master_id: String,
    pub flows: u32,
    /// Every flow's snapshot was confirmed: the positions are good.
    pub stable: bool,
    /// The target held nothing but this job's data: it may be emptied for a new full sync.
    pub owned: bool,
    /// Expiries may stand at the target that are written later than they are: they are to be put right.
    pub held: bool,
    /// By flow; only in the stable phase.
    pub lsns: Vec<Lsn>,
    /// The filters and names of the job (`Scope::fingerprint`).
    pub scope: String,
    /// Keys that the target may have lost.
    pub lost: Vec<Lost>,
    /// A cluster's: where its nodes keep positions, by worker.
    pub homes: Vec<homes::Named>,
    /// A cluster's: its primaries, and their processes (run ids) when they were seen last.
    pub nodes: Vec<(String, String)>,
    /// A cluster's: a global command was being executed, node by node.
    pub flushing: bool,
}

/// Reads the checkpoint. None: no job has left one. `Void`: one that nobody goes on from.
pub async fn read(link: &mut TargetLink, key: &str) -> Result<Option<Checkpoint>, EngineError> {
    let fields = all_fields(link, key).await?;
    if fields.is_empty() {
        return Ok(None);
    }
    let field =
        |name: &str| fields.get(name.as_bytes()).and_then(|value| std::str::from_utf8(value).ok()).map(str::to_string);
    if let Some(why) = field(VOID) {
        return Err(EngineError::Void(why));
    }
    let need = |name: &str| field(name).ok_or_else(|| unreadable(key, &format!("it has no field {name}")));
    let flows: u32 = need("flows")?.parse().map_err(|_| unreadable(key, "its number of flows is no number"))?;
    let stable = need("phase")? == "stable";
    let scope = field("scope").unwrap_or_default();
    let mut lsns = Vec::new();
    if stable {
        for flow in 0..flows.min(1024) {
            let text = need(&format!("{LSN_FIELD_PREFIX}{flow}"))?;
            lsns.push(Lsn(text.parse().map_err(|_| unreadable(key, "a position is no number"))?));
        }
    }
    let held = field("held").as_deref() == Some("1");
    let lost = fields.iter().flat_map(|(name, value)| lost::parse(name, value)).collect();
    let homes = fields.iter().filter_map(|(name, value)| homes::parse(name, value)).collect();
    let nodes = field(homes::NODES_FIELD).unwrap_or_default();
    let nodes =
        nodes.split(',').filter_map(|node| node.split_once('=')).map(|(id, run)| (id.into(), run.into())).collect();
    let flushing = field(FLUSHING).as_deref() == Some("1");
    let (master_id, owned) = (need("master")?, need("owned")? == "1");
    let key = key.to_string();
    Ok(Some(Checkpoint { key, master_id, flows, stable, owned, held, lsns, scope, lost, homes, nodes, flushing }))
}

/// The checkpoint's fields. Names of lost keys may make it longer than any reply may be, so it is read in pages; one that is no
/// longer than a page is read in one step. Nobody writes to it meanwhile but the lanes of a session that runs.
async fn all_fields(link: &mut TargetLink, key: &str) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, EngineError> {
    if let Some(fields) = paged_fields(link, key).await? {
        return Ok(fields);
    }
    let Value::Array(pairs) = link.call(&[b"HGETALL", key.as_bytes()]).await? else {
        return Err(unreadable(key, "it is no hash"));
    };
    let mut fields = BTreeMap::new();
    add_pairs(&mut fields, pairs);
    Ok(fields)
}

/// None: an error was answered, as where the user may not do it. Of a cluster, all pages are of one node: what a cursor means, no
/// other one knows.
async fn paged_fields(link: &mut TargetLink, key: &str) -> Result<Option<BTreeMap<Vec<u8>, Vec<u8>>>, EngineError> {
    let owner = match link.cluster() {
        Some(cluster) => match cluster.topology().owner(slot(key.as_bytes())) {
            Some(node) => Some(node.id.clone()),
            None => return Ok(None),
        },
        None => None,
    };
    let (mut fields, mut cursor) = (BTreeMap::new(), b"0".to_vec());
    loop {
        let command: [&[u8]; 5] = [b"HSCAN", key.as_bytes(), &cursor, b"COUNT", PAGE_FIELDS];
        let page = match (&owner, link.cluster()) {
            (Some(id), Some(cluster)) => match cluster.send(id, false, &resp::command(&command), 1).await {
                Ok(mut replies) => replies.pop(),
                Err(_) => None,
            },
            _ => Some(link.call_raw("HSCAN", &command).await?),
        };
        let Some(Value::Array(parts)) = page else { return Ok(None) };
        let Ok([Value::Bulk(next), Value::Array(pairs)]) = <[Value; 2]>::try_from(parts) else {
            return Err(unreadable(key, "the target answered HSCAN with an unknown shape"));
        };
        add_pairs(&mut fields, pairs);
        if next == b"0" {
            return Ok(Some(fields));
        }
        cursor = next;
    }
}

fn add_pairs(fields: &mut BTreeMap<Vec<u8>, Vec<u8>>, pairs: Vec<Value>) {
    let mut pairs = pairs.into_iter();
    while let (Some(Value::Bulk(name)), Some(Value::Bulk(value))) = (pairs.next(), pairs.next()) {
        fields.insert(name, value);
    }
}

/// The command that sets the positions exactly before a global command: should that end half-way, the next process begins there, and
/// executes it once more.
fn before(key: &str, lsns: &[(u32, Lsn)], flushes: bool) -> Vec<Vec<u8>> {
    let mut set = vec![b"HSET".to_vec(), key.as_bytes().to_vec()];
    for (flow, lsn) in lsns {
        set.push(format!("{LSN_FIELD_PREFIX}{flow}").into_bytes());
        set.push(lsn.0.saturating_sub(1).to_string().into_bytes());
    }
    if flushes {
        set.extend([FLUSHING.into(), b"1".to_vec()]);
    }
    set
}

/// Slots of a cluster are about to be emptied, with what their markers say.
pub async fn forget_slots(
    cluster: &mut Cluster,
    checkpoint: &Checkpoint,
    ranges: &[(Slot, Slot)],
    lsns: &[(u32, Lsn)],
) -> Result<(), EngineError> {
    let before = before(&checkpoint.key, lsns, false);
    cluster.ask(&before.iter().map(Vec::as_slice).collect::<Vec<_>>()).await?;
    let tag = own::tag(cluster.settings());
    let slots = ranges.iter().flat_map(|(first, last)| (first.0..=last.0).map(Slot));
    let keys = slots.flat_map(|slot| (0..checkpoint.flows).map(move |flow| (FlowId(flow), slot)));
    let keys: Vec<Vec<u8>> = keys.map(|(flow, slot)| own::marker_key(&tag, flow, slot)).collect();
    cluster.delete_all(keys.into_iter()).await
}

/// On every primary of a cluster. What is `behind` the command, the positions among it, is of the checkpoint's slot.
async fn execute_on_cluster(
    cluster: &mut Cluster,
    key: &str,
    command: &[&[u8]],
    behind: &[Vec<&[u8]>],
    lsns: &[(u32, Lsn)],
) -> Result<(), EngineError> {
    let before = before(key, lsns, true);
    // The first time with the positions of before.
    let mut once = behind.to_vec();
    if let Some(set) = once.first_mut() {
        set.extend(before.iter().skip(2).map(Vec::as_slice));
    }
    let mut behind = behind.to_vec();
    if let Some(set) = behind.first_mut() {
        set.extend([FLUSHING.as_bytes(), b"0"]);
    }
    let before: Vec<&[u8]> = before.iter().map(Vec::as_slice).collect();
    // Without room for them their node is emptied first, in the same step.
    let noted = match cluster.call_unless_full(&before).await? {
        Value::Error(text) => refusal::is_full(&text) && empty_at_once(cluster, key, command, &once).await?,
        _ => true,
    };
    if !noted {
        cluster.ask(&before).await?;
    }
    // An heir that knows of no flush would miss the positions that the other nodes kept.
    cluster.confirm_slot(slot(key.as_bytes())).await?;
    execute_twice(cluster, key, command, [&once, &behind], |text| refusal::refuses(text, false)).await
}

/// Empties a cluster, the node that has the checkpoint last.
pub async fn empty_cluster(
    cluster: &mut Cluster,
    key: &str,
    command: &[&[u8]],
    behind: &[Vec<&[u8]>],
) -> Result<(), EngineError> {
    execute_twice(cluster, key, command, [behind; 2], refusal::refuses_for_now).await
}

/// A key that moves from a node that was not emptied yet to one that was outlives it: so all is done twice. No slot goes to and
/// fro in so short a time. `refuses`: an answer that is waited out.
async fn execute_twice(
    cluster: &mut Cluster,
    key: &str,
    command: &[&[u8]],
    behind: [&[Vec<&[u8]>]; 2],
    refuses: fn(&[u8]) -> bool,
) -> Result<(), EngineError> {
    // Nothing else is under way, so the command may be executed again where its answer was lost: a node that stands still
    // for a while is waited for, as it is everywhere else.
    let mut patience = cluster.patience();
    for behind in behind {
        cluster.refresh_patiently().await?;
        loop {
            match execute_everywhere(cluster, key, command, behind, refuses).await {
                Ok(()) => break,
                Err(Trouble::Broken(error)) => {
                    patience.wait(&error.to_string()).await?;
                    cluster.refresh_patiently().await?;
                }
                Err(Trouble::Final(error)) => return Err(error),
            }
        }
    }
    Ok(())
}

/// On every primary, on the checkpoint's own last and together with the positions.
async fn execute_everywhere(
    cluster: &mut Cluster,
    key: &str,
    command: &[&[u8]],
    behind: &[Vec<&[u8]>],
    refuses: fn(&[u8]) -> bool,
) -> Result<(), Trouble> {
    let request = resp::command(command);
    let own = slot(key.as_bytes());
    let nobody = || Trouble::Broken(EngineError::Target(format!("nobody has slot {own}")));
    let owner = cluster.topology().owner(own).map(|node| node.id.clone()).ok_or_else(nobody)?;
    let failed = |text: String| {
        let error = EngineError::Target(format!("the cluster answered a global command with \"{text}\""));
        // A node that is no primary any more, or that refuses for now.
        let passes = is_rejection(text.as_bytes()) || refuses(text.as_bytes());
        if passes { Trouble::Broken(error) } else { Trouble::Final(error) }
    };
    // While its slot is on the move the checkpoint may be at a node that would be emptied before: then a key that is nowhere is
    // asked for elsewhere.
    let nowhere = resp::command(&[b"GET", &own::replicas_key(Some(own))]);
    if let Some(text) = cluster.send(&owner, false, &nowhere, 1).await?.first().and_then(Value::error_text) {
        return Err(failed(text));
    }
    for id in cluster.primary_ids().into_iter().filter(|id| *id != owner) {
        if let Some(text) = cluster.send(&id, false, &request, 1).await?.first().and_then(Value::error_text) {
            return Err(failed(text));
        }
    }
    let mut group = resp::command(&[b"MULTI"]);
    group.extend_from_slice(&request);
    for set in behind {
        resp::push_command(&mut group, set);
    }
    resp::push_command(&mut group, &[b"EXEC"]);
    let values = cluster.execute(own, &group, 3 + behind.len()).await?;
    let elements = values.last().and_then(Value::array).unwrap_or_default();
    match values.iter().chain(elements).find_map(Value::error_text) {
        Some(text) if refusal::is_full(text.as_bytes()) && empty_at_once(cluster, key, command, behind).await? => {
            Ok(())
        }
        Some(text) => Err(failed(text)),
        None if elements.len() == 1 + behind.len() => Ok(()),
        None => Err(Trouble::Final(EngineError::Target(format!(
            "the cluster answered the EXEC of a global command with {} replies, not with one for each of its commands",
            elements.len()
        )))),
    }
}

/// The node that has the checkpoint, though it is full. False: it was not emptied.
async fn empty_at_once(
    cluster: &mut Cluster,
    key: &str,
    command: &[&[u8]],
    behind: &[Vec<&[u8]>],
) -> Result<bool, Trouble> {
    let commands: Vec<&[&[u8]]> = [command].into_iter().chain(behind.iter().map(Vec::as_slice)).collect();
    let Some(request) = target::at_once(Some(key.as_bytes()), false, &commands) else { return Ok(false) };
    let answers = cluster.execute(slot(key.as_bytes()), &request, 1).await?;
    Ok(answers.first().is_some_and(target::was_done_at_once))
}

fn unreadable(key: &str, why: &str) -> EngineError {
    EngineError::Target(format!(
        "the checkpoint {key} at the target cannot be read: {why}; delete it and begin with --on-existing flush"
    ))
}

/// A full sync begins: nothing of it is good before [`mark_stable`].
pub async fn begin(link: &mut TargetLink, checkpoint: &Checkpoint) -> Result<(), EngineError> {
    link.call(&[b"DEL", checkpoint.key.as_bytes()]).await?;
    let flows = checkpoint.flows.to_string();
    link.call(&fields(checkpoint, flows.as_bytes(), b"full")).await.map(drop)
}

/// Everything but the positions.
fn fields<'a>(checkpoint: &'a Checkpoint, flows: &'a [u8], phase: &'a [u8]) -> Vec<&'a [u8]> {
    let mut set: Vec<&[u8]> = vec![b"HSET", checkpoint.key.as_bytes(), b"master", checkpoint.master_id.as_bytes()];
    set.extend_from_slice(&[b"flows", flows, b"phase", phase, b"owned", flag(checkpoint.owned)]);
    set.extend_from_slice(&[b"held", flag(checkpoint.held), b"scope", checkpoint.scope.as_bytes()]);
    set
}

/// Every node of a cluster keeps a position of every flow.
pub async fn names_homes(link: &mut TargetLink, checkpoint: &Checkpoint) -> Result<bool, EngineError> {
    let homes = read(link, &checkpoint.key).await?.map_or(Vec::new(), |found| found.homes);
    Ok((0..checkpoint.flows).all(|flow| homes.iter().any(|named| named.flows.contains(&FlowId(flow)))))
}

/// Every flow's snapshot and its first position are confirmed.
pub async fn mark_stable(link: &mut TargetLink, key: &str) -> Result<(), EngineError> {
    link.call(&[b"HSET", key.as_bytes(), b"phase", b"stable"]).await.map(drop)
}

/// The positions are not to be trusted: the next start must not go on from them. Takes no memory, so that a full server
/// does it too.
pub async fn tear(link: &mut TargetLink, key: &str) -> Result<(), EngineError> {
    link.call(&[b"HDEL", key.as_bytes(), b"phase"]).await.map(drop)
}

/// The same where what the target holds is good, but not what the source would send next. Every start is told why, and none empties
/// the target for it but with `--on-existing flush`.
pub async fn make_void(link: &mut TargetLink, key: &str, why: &str) -> Result<(), EngineError> {
    let said = link.call(&[b"HSET", key.as_bytes(), VOID.as_bytes(), why.as_bytes()]).await;
    // A full server does that at least.
    tear(link, key).await?;
    said.map(drop)
}

/// Remembers keys that are to be fetched from the source, or deleted where it has none.
pub async fn note_lost(link: &mut TargetLink, key: &str, lost: &[Lost]) -> Result<(), EngineError> {
    for some in lost.chunks(FIELDS_MAX) {
        let fields: Vec<Vec<u8>> = some.iter().map(lost::lost_field).collect();
        let mut set: Vec<&[u8]> = vec![b"HSET", key.as_bytes()];
        set.extend(fields.iter().flat_map(|field| [&field[..], b""]));
        link.call(&set).await?;
    }
    Ok(())
}

/// The next transactions of the flows write other names where those of the last ones stand: these become lost keys.
pub async fn keep_lost(link: &mut TargetLink, checkpoint: &Checkpoint) -> Result<(), EngineError> {
    if checkpoint.lost.is_empty() {
        return Ok(());
    }
    note_lost(link, &checkpoint.key, &checkpoint.lost).await?;
    let fields: Vec<String> = (0..checkpoint.flows).map(|flow| lost::watched_field(FlowId(flow))).collect();
    let mut unset: Vec<&[u8]> = vec![b"HDEL", checkpoint.key.as_bytes()];
    unset.extend(fields.iter().map(String::as_bytes));
    link.call(&unset).await.map(drop)
}

/// Whether expiries may stand at the target that are written later than they are.
pub async fn set_held(link: &mut TargetLink, key: &str, held: bool) -> Result<(), EngineError> {
    link.call(&[b"HSET", key.as_bytes(), b"held", flag(held)]).await.map(drop)
}

fn flag(is: bool) -> &'static [u8] {
    if is { b"1" } else { b"0" }
}

/// What must outlive a global command, beside the checkpoint.
pub struct Kept {
    /// Keys that are still to be fetched.
    pub lost: Vec<Lost>,
    /// The mark of an import mode that this job turned on.
    pub import_mark: bool,
    /// Takes the lease again, if it is free.
    pub lease: Vec<Vec<u8>>,
}

/// Executes `command` (FLUSHALL, FLUSHDB; empty: nothing) in database `db` and sets all positions behind it, in one transaction:
/// either both are there after a crash, or neither. In a database that a server does not have, nothing is executed.
pub async fn execute_global(
    link: &mut TargetLink,
    checkpoint: &Checkpoint,
    db: u32,
    command: &[&[u8]],
    lsns: &[(u32, Lsn)],
    kept: &Kept,
) -> Result<(), EngineError> {
    let flows = checkpoint.flows.to_string();
    let mut fields: Vec<String> = Vec::new();
    for (flow, lsn) in lsns {
        fields.push(format!("{LSN_FIELD_PREFIX}{flow}"));
        fields.push(lsn.to_string());
    }
    let mut set = self::fields(checkpoint, flows.as_bytes(), b"stable");
    set.extend(fields.iter().map(String::as_bytes));
    // Names of keys that are flushed go, those of others stay, also where a FLUSHDB of database 0 deletes the checkpoint.
    let lost: Vec<Vec<u8>> = kept.lost.iter().map(lost::lost_field).collect();
    set.extend(lost.iter().flat_map(|field| [&field[..], b""]));
    if command.is_empty()
        && let Some(cluster) = link.cluster()
    {
        // What the nodes keep of positions stays, and tells of a loss as always.
        return cluster.ask(&set).await.map(drop);
    }
    let mut behind = vec![set];
    if !kept.lease.is_empty() {
        behind.push(kept.lease.iter().map(Vec::as_slice).collect());
    }
    if let Some(cluster) = link.cluster() {
        // It has one database: it would be the wrong one.
        if db != 0 {
            let name = command.first().copied().unwrap_or_default().escape_ascii().to_string();
            return Err(EngineError::Internal(format!("{name} of database {db}, in a cluster")));
        }
        return execute_on_cluster(cluster, &checkpoint.key, command, &behind, lsns).await;
    }
    let db_text = db.to_string();
    let select_there: [&[u8]; 2] = [b"SELECT", db_text.as_bytes()];
    let select_own: [&[u8]; 2] = [b"SELECT", b"0"];
    let delete: [&[u8]; 2] = [b"DEL", checkpoint.key.as_bytes()];
    let mut commands: Vec<&[&[u8]]> = Vec::new();
    if !command.is_empty() && select(link, db).await? {
        commands.extend([&select_there[..], command]);
    }
    commands.extend([&select_own[..], &delete]);
    commands.extend(behind.iter().map(Vec::as_slice));
    if kept.import_mark {
        commands.push(import::SET_MARK);
    }
    link.transaction(&commands, |text| refusal::refuses(text, false)).await
}

/// Goes into a database. False: the server has none of this number. A SELECT that fails inside of a transaction would leave what stands
/// behind it to another database.
async fn select(link: &mut TargetLink, db: u32) -> Result<bool, EngineError> {
    let db = db.to_string();
    let select: [&[u8]; 2] = [b"SELECT", db.as_bytes()];
    match link.call_raw("SELECT", &select).await? {
        Value::Error(text) if memchr::memmem::find(&text, b"out of range").is_some() => Ok(false),
        // What it refuses for a while is asked again.
        Value::Error(_) => link.call(&select).await.map(|_| true),
        _ => Ok(true),
    }
}
