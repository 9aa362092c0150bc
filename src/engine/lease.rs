//! The lease of a target: two jobs into one target, by mistake, would write over each other without a sign.
//!
//! In: a connection to the target before the first write. Out: the target held for this process, or a refusal that names who
//! holds it. A lease is a key with its owner and a short life, taken with `SET NX PX`, renewed by a task of the control plane
//! over a connection of its own, and given back at the end. Invariants: a lease is changed and deleted only by its owner, or
//! taken over in one step from an owner whose process is known to be gone; that a renewal fails means nothing, a target may
//! be slow, full or away: the lease is lost only when somebody else is seen to hold it, and then the job ends.
//!
//! Jobs that share a target (`--shared-target`) hold one lease each, and together a mark in the place of the only one's.

mod owner;

use super::checkpoint;
use super::error::EngineError;
use super::import;
use super::job::Job;
use super::own;
use super::patience::rest;
use super::refusal;
use super::settings::{MigrateSettings, OnExisting};
use super::target::{self, Target, TargetLink};
use crate::ids::DbIndex;
use crate::redis::value::Value;
use crate::uring;
use owner::{Life, Owner};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long a lease lives without being renewed: so long waits a start on another machine after a kill.
const LIFE: Duration = Duration::from_secs(15);
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// Waiting for a lease, it is looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A time to live that grows by this much was renewed.
const RENEWED_MS_MIN: i64 = 100;
/// How long giving back may take: a lease that stays ends by itself.
const GIVE_BACK_MAX: Duration = Duration::from_secs(2);
/// A cluster that seems to hold a key or two is counted again so often.
const COUNTS_MAX: u32 = 5;
const COUNT_PAUSE: Duration = Duration::from_millis(50);
/// What jobs that share a target hold together.
const SHARED: &str = "shared";

/// Answers what the lease holds now; a lease of ours lives on.
const RENEW: &[u8] = b"local v=redis.call('GET',KEYS[1]) \
    if v==ARGV[1] then redis.call('PEXPIRE',KEYS[1],ARGV[2]) end return v";
const TAKE_OVER: &[u8] = b"if redis.call('GET',KEYS[1])==ARGV[1] then \
    redis.call('SET',KEYS[1],ARGV[2],'PX',ARGV[3]) return 1 end return 0";
const GIVE_BACK: &[u8] = b"if redis.call('GET',KEYS[1])==ARGV[1] then return redis.call('DEL',KEYS[1]) end return 0";

/// One key that is held.
#[derive(Clone, Debug)]
struct Held {
    key: String,
    value: String,
    /// It is of all jobs that share the target: it is not given back.
    shared: bool,
}

/// A lease that was taken.
pub struct Lease {
    held: Vec<Held>,
    /// The target's user may run scripts.
    scripts: bool,
    /// Who holds it instead.
    lost: watch::Receiver<Option<String>>,
    renewing: JoinHandle<()>,
}

/// Tells that the lease is lost.
#[derive(Clone)]
pub struct Watch(watch::Receiver<Option<String>>);

impl Watch {
    /// Ends when the lease is lost. May be dropped at any time.
    pub async fn lost(&mut self) -> EngineError {
        let Ok(lost) = self.0.wait_for(Option::is_some).await else { return std::future::pending().await };
        lost_error(lost.as_deref().unwrap_or_default())
    }

    pub fn check(&self) -> Result<(), EngineError> {
        match &*self.0.borrow() {
            Some(other) => Err(lost_error(other)),
            None => Ok(()),
        }
    }
}

/// The same, where there may be none. May be dropped at any time.
pub async fn lost(lease: &mut Option<Watch>) -> EngineError {
    match lease {
        Some(lease) => lease.lost().await,
        None => std::future::pending().await,
    }
}

impl Job<'_> {
    /// Holds the target for this process; what it then holds beside the lease is what it held before.
    pub(super) async fn take_lease(&mut self, link: &mut TargetLink, probed: &mut Target) -> Result<(), EngineError> {
        let scripts = probed.capabilities.has_command("EVAL");
        let (lease, emptied) = Lease::take(&self.settings, link, scripts).await?;
        let own = self.lease.insert(lease).keys_count();
        if emptied {
            // What it held counts: a dead process of this job may write until its connections are ended, and is deleted with it.
            self.touched = true;
            return Ok(());
        }
        for again in 0.. {
            probed.keyspace = target::keyspace(link).await?;
            if let Some((_, keys)) = probed.keyspace.iter_mut().find(|(db, _)| *db == DbIndex(0)) {
                *keys = keys.saturating_sub(own);
            }
            probed.keyspace.retain(|(_, keys)| *keys > 0);
            // A key that goes from one node to another just then may be counted at both.
            let few = probed.keyspace.iter().map(|(_, keys)| *keys).sum::<u64>() <= own;
            if probed.keyspace.is_empty() || !few || link.cluster().is_none() || again == COUNTS_MAX {
                break;
            }
            rest(COUNT_PAUSE).await;
        }
        Ok(())
    }
}

fn lost_error(other: &str) -> EngineError {
    EngineError::LeaseLost(format!(
        "another df2redis writes to it now: {other}. This one was away for longer than its lease lives ({LIFE:?}) and has \
         stopped. Make sure that only one of them is started, or see --shared-target"
    ))
}

impl Lease {
    /// Takes it, or says who holds it. Waits for one whose owner cannot be looked at, as long as it may live. True: for that a full
    /// target had to be emptied, as `--on-existing flush` says.
    pub async fn take(
        settings: &Arc<MigrateSettings>,
        link: &mut TargetLink,
        scripts: bool,
    ) -> Result<(Self, bool), EngineError> {
        let cluster = link.cluster().is_some();
        let value = Owner::this(settings).to_text();
        let alone = own::lease_key(cluster);
        let held = match settings.shared_target {
            false => vec![Held { key: alone, value, shared: false }],
            true => vec![
                Held { key: alone, value: SHARED.into(), shared: true },
                Held { key: own::shared_lease_key(settings), value, shared: false },
            ],
        };
        let flush = scripts && settings.on_existing == OnExisting::Flush && !settings.shared_target;
        let mut emptied = false;
        for one in &held {
            emptied |= take_one(link, one, scripts, flush, settings.retry_max).await?;
        }
        let (lost_tx, lost) = watch::channel(None);
        let renewing = tokio_uring::spawn(renew_always(settings.clone(), held.clone(), scripts, lost_tx));
        Ok((Self { held, scripts, lost, renewing }, emptied))
    }

    pub fn watch(&self) -> Watch {
        Watch(self.lost.clone())
    }

    /// Keys of the lease, each in database 0.
    pub fn keys_count(&self) -> u64 {
        self.held.len() as u64
    }

    /// The command that takes it again, if it is free, for whoever empties the target. A job that shares its target never does.
    pub fn taking(&self) -> Vec<Vec<u8>> {
        self.held.first().map(set_command).unwrap_or_default()
    }

    /// Gives it back, if that does not take long.
    pub async fn give_back(self, settings: &Arc<MigrateSettings>) {
        self.renewing.abort();
        if self.lost.borrow().is_some() {
            return;
        }
        let giving = async {
            let mut link = TargetLink::open(settings).await?;
            for held in self.held.iter().filter(|held| !held.shared) {
                give_back_one(&mut link, held, self.scripts).await?;
            }
            Ok::<_, EngineError>(())
        };
        match tokio::time::timeout(GIVE_BACK_MAX, giving).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the lease is not given back; it ends by itself"),
            Err(_) => tracing::debug!("the target does not answer; the lease ends by itself"),
        }
    }
}

/// Empties the target with `command`, a FLUSHALL. In the same breath the lease is taken again, and the mark of the import mode
/// set: without it a mode that a job turned on would be on for ever if the job died now.
pub async fn flush_all(link: &mut TargetLink, lease: Option<&Lease>, command: &[&[u8]]) -> Result<(), EngineError> {
    if lease.is_some_and(|lease| lease.held.iter().any(|held| held.shared)) {
        return Err(EngineError::Refused("the target is shared with other jobs, so it is not emptied".into()));
    }
    let again = lease.map(Lease::taking).unwrap_or_default();
    let again: Vec<&[u8]> = again.iter().map(Vec::as_slice).collect();
    if let Some(cluster) = link.cluster() {
        // Cut off half-way, the checkpoint still says whose the rest is.
        let behind: Vec<Vec<&[u8]>> = Some(again).filter(|again| !again.is_empty()).into_iter().collect();
        return checkpoint::empty_cluster(cluster, own::CHECKPOINT_KEY, command, &behind).await;
    }
    let mut commands = vec![command];
    if !again.is_empty() {
        commands.push(&again);
    }
    if import::is_marked(link).await? {
        commands.push(import::SET_MARK);
    }
    link.transaction(&commands, refusal::refuses_for_now).await
}

/// Empties a target that has no room for the lease, if nobody holds it, and takes it. False: neither.
async fn take_emptied(link: &mut TargetLink, held: &Held) -> Result<bool, EngineError> {
    let taking = set_command(held);
    let taking: Vec<&[u8]> = taking.iter().map(Vec::as_slice).collect();
    let mut commands: Vec<&[&[u8]]> = vec![&[b"FLUSHALL", b"ASYNC"], &taking];
    if link.cluster().is_none() && import::is_marked(link).await? {
        commands.push(import::SET_MARK);
    }
    // Of a cluster, the lease's node: the others need no room to be emptied.
    let done = link.at_once(Some(held.key.as_bytes()), &commands).await?;
    if done {
        tracing::warn!("the target is full, and has no room for the lease: it was emptied first (--on-existing flush)");
    }
    Ok(done)
}

fn life_ms() -> String {
    LIFE.as_millis().to_string()
}

fn set_command(held: &Held) -> Vec<Vec<u8>> {
    let words = ["SET", &held.key, &held.value, "NX", "PX", &life_ms()];
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

/// Whether the lease is ours after this.
async fn set_if_free(link: &mut TargetLink, held: &Held) -> Result<Result<bool, Vec<u8>>, EngineError> {
    let command = set_command(held);
    let words: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
    Ok(match link.call_unless_full("SET", &words).await? {
        Value::Error(text) => Err(text),
        Value::Simple(_) => Ok(true),
        _ => Ok(false),
    })
}

async fn get(link: &mut TargetLink, key: &str) -> Result<Option<Vec<u8>>, EngineError> {
    match link.call(&[b"GET", key.as_bytes()]).await? {
        Value::Bulk(text) => Ok(Some(text)),
        _ => Ok(None),
    }
}

/// `flush`: a full target may be emptied for it, as is told then.
async fn take_one(
    link: &mut TargetLink,
    held: &Held,
    scripts: bool,
    flush: bool,
    retry_max: Duration,
) -> Result<bool, EngineError> {
    let mut wait: Option<Wait> = None;
    let mut refused_since_ns: Option<u64> = None;
    loop {
        match set_if_free(link, held).await? {
            Ok(true) => return Ok(false),
            Ok(false) => {}
            Err(text) if flush && refusal::is_full(&text) && take_emptied(link, held).await? => return Ok(true),
            // Full, read-only, and so on: it may pass, as it may in the middle of a run.
            Err(text) => {
                let since_ns = *refused_since_ns.get_or_insert_with(uring::clock::monotonic_ns);
                let waited = Duration::from_nanos(uring::clock::monotonic_ns().saturating_sub(since_ns));
                let error = format!(
                    "nothing was written: the target answered the first write, of {}, with \"{}\"; {}",
                    held.key,
                    text.escape_ascii(),
                    super::errors::remedy(&text)
                );
                if !refusal::refuses(&text, false) || refusal::refuses_access(&text) || waited >= retry_max {
                    return Err(EngineError::Target(error));
                }
                tracing::warn!(%error, "trying again");
                rest(LOOK_EVERY).await;
                continue;
            }
        }
        let Some(found) = get(link, &held.key).await? else { continue };
        if found == held.value.as_bytes() {
            // Only the jobs' common mark can be there already.
            renew_one(link, held, scripts).await?;
            return Ok(false);
        }
        let owner = Owner::parse(&found);
        match owner.as_ref().map(Owner::life) {
            Some(Life::Lives) => return Err(refused(held, &found)),
            Some(Life::Gone) if scripts => {
                let (key, life) = (held.key.as_bytes(), life_ms());
                let command: [&[u8]; 7] =
                    [b"EVAL", TAKE_OVER, b"1", key, &found, held.value.as_bytes(), life.as_bytes()];
                if link.call(&command).await? == Value::Integer(1) {
                    tracing::info!(owner = %name(&found), "its process is gone: its lease is taken over");
                    return Ok(false);
                }
                continue;
            }
            _ => {}
        }
        let left_ms = match link.call_raw("PTTL", &[b"PTTL", held.key.as_bytes()]).await? {
            Value::Integer(left_ms) => Some(left_ms),
            _ => None,
        };
        let wait = wait.get_or_insert_with(|| {
            tracing::warn!(
                owner = %name(&found),
                seconds = left_ms.map_or(LIFE.as_secs() as i64, |ms| ms / 1000),
                "the target is held by another df2redis, of which it cannot be seen from here whether it still runs: waiting \
                 for its lease to end"
            );
            Wait { found: found.clone(), left_ms: None, until_ns: uring::clock::monotonic_ns() + Wait::LONGEST_NS }
        });
        if wait.shows_life(&found, left_ms, uring::clock::monotonic_ns()) {
            return Err(refused(held, &found));
        }
        rest(LOOK_EVERY).await;
    }
}

/// Waiting for a lease whose owner cannot be looked at.
struct Wait {
    found: Vec<u8>,
    left_ms: Option<i64>,
    until_ns: u64,
}

impl Wait {
    const LONGEST_NS: u64 = LIFE.as_nanos() as u64 + 2_000_000_000;

    /// Whether somebody renews it, or took it before us.
    fn shows_life(&mut self, found: &[u8], left_ms: Option<i64>, now_ns: u64) -> bool {
        let renewed = match (self.left_ms, left_ms) {
            (Some(before), Some(now)) => now > before + RENEWED_MS_MIN,
            _ => false,
        };
        self.left_ms = left_ms.or(self.left_ms);
        renewed || found != self.found || now_ns >= self.until_ns
    }
}

/// Who holds a lease, as text.
fn name(found: &[u8]) -> String {
    match Owner::parse(found) {
        Some(owner) => owner.to_string(),
        None if found == SHARED.as_bytes() => "jobs with --shared-target on".into(),
        None => found.get(..found.len().min(100)).unwrap_or_default().escape_ascii().to_string(),
    }
}

fn refused(held: &Held, found: &[u8]) -> EngineError {
    EngineError::Refused(format!(
        "another df2redis writes to this target: {} (lease {}). Stop that one first; if it is gone, its lease ends by itself \
         within {LIFE:?}. Jobs whose keys are disjoint may share a target: all of them with --shared-target on",
        name(found),
        held.key
    ))
}

/// What a renewal found.
#[derive(Debug, PartialEq, Eq)]
enum Renewed {
    Ours,
    /// Somebody else's.
    Theirs(Vec<u8>),
}

/// Renews it, or takes it again where it is gone: the target was emptied, or was away for too long.
async fn renew_one(link: &mut TargetLink, held: &Held, scripts: bool) -> Result<Renewed, EngineError> {
    let (key, value, life) = (held.key.as_bytes(), held.value.as_bytes(), life_ms());
    let found = match scripts {
        true => link.call(&[b"EVAL", RENEW, b"1", key, value, life.as_bytes()]).await?,
        false => link.call(&[b"GET", key]).await?,
    };
    match found {
        Value::Bulk(found) if found == value => {
            if !scripts {
                // Should it have become another's in between, that one's lives a little longer.
                link.call(&[b"PEXPIRE", key, life.as_bytes()]).await?;
            }
            Ok(Renewed::Ours)
        }
        Value::Bulk(found) => Ok(Renewed::Theirs(found)),
        _ => match set_if_free(link, held).await? {
            // Not ours: the next time says whose.
            Ok(_) => Ok(Renewed::Ours),
            Err(text) => Err(EngineError::Target(text.escape_ascii().to_string())),
        },
    }
}

async fn give_back_one(link: &mut TargetLink, held: &Held, scripts: bool) -> Result<(), EngineError> {
    let (key, value) = (held.key.as_bytes(), held.value.as_bytes());
    if scripts {
        return link.call(&[b"EVAL", GIVE_BACK, b"1", key, value]).await.map(drop);
    }
    // Renewed just before, it cannot end, and become another's, between the question and the deletion.
    if renew_one(link, held, false).await? == Renewed::Ours && get(link, &held.key).await?.as_deref() == Some(value) {
        link.call(&[b"DEL", key]).await?;
    }
    Ok(())
}

/// Renews until somebody else is seen to hold it.
async fn renew_always(
    settings: Arc<MigrateSettings>,
    held: Vec<Held>,
    scripts: bool,
    lost: watch::Sender<Option<String>>,
) {
    let mut link: Option<TargetLink> = None;
    let (mut renewed_ns, mut told) = (uring::clock::monotonic_ns(), false);
    loop {
        tokio::time::sleep(RENEW_EVERY).await;
        let idle = link.is_some();
        let mut renewed = renew_all(&settings, &mut link, &held, scripts).await;
        if renewed.is_err() && idle {
            // The target may have closed a connection that was idle.
            renewed = renew_all(&settings, &mut link, &held, scripts).await;
        }
        match renewed {
            Ok(None) => (renewed_ns, told) = (uring::clock::monotonic_ns(), false),
            Ok(Some(other)) => {
                tracing::error!(owner = %other, "another df2redis has taken the target over");
                let _ = lost.send(Some(other));
                return;
            }
            Err(error) if !told && uring::clock::monotonic_ns() - renewed_ns > LIFE.as_nanos() as u64 => {
                told = true;
                tracing::warn!(%error, "the target's lease cannot be renewed: meanwhile a second start may not be refused");
            }
            Err(error) => tracing::debug!(%error, "the lease could not be renewed"),
        }
    }
}

/// Who else holds it, if somebody does. A connection that failed is dropped.
async fn renew_all(
    settings: &Arc<MigrateSettings>,
    link: &mut Option<TargetLink>,
    held: &[Held],
    scripts: bool,
) -> Result<Option<String>, EngineError> {
    let mut open = match link.take() {
        Some(open) => open,
        None => connect(settings).await?,
    };
    for one in held {
        if let Renewed::Theirs(found) = renew_one(&mut open, one, scripts).await? {
            return Ok(Some(name(&found)));
        }
    }
    *link = Some(open);
    Ok(None)
}

async fn connect(settings: &Arc<MigrateSettings>) -> Result<TargetLink, EngineError> {
    let mut link = TargetLink::open_within(settings, RENEW_EVERY).await?;
    if link.cluster().is_none() {
        // For whoever looks; not everybody may.
        link.call_raw("CLIENT", &[b"CLIENT", b"SETNAME", own::LEASE_NAME.as_bytes()]).await?;
    }
    Ok(link)
}
