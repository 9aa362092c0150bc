//! `--repair`: a key that differs is copied again, whole, where no job writes to the target.
//!
//! By DUMP at the source; its payload is re-encoded for the target as the journal's RESTORE is (a Dragonfly's payload may
//! be of types that no target knows). Where that does not do (the payload is larger than allowed, or of a newer type), by
//! reading the value in pages into a key of ours beside it, which then takes its place.
//!
//! Invariant: nothing is written here while a job is connected to the target, or has left a position there: the journal would
//! be applied to what the repair wrote. A job that is connected is asked to do it: it fetches the key and writes it between
//! its records, where it belongs.

use super::image::all_bytes;
use super::look::Looker;
use super::paged::scan_reply;
use super::peer::{AskError, FieldExpiry, Peer, number, shown};
use super::run::Observer;
use super::settings::{Repair, VerifySettings};
use super::walk::own_keys;
use super::wire::Commands;
use crate::convert::journal::{JournalTranslator, Outcome};
use crate::convert::out::VecOut;
use crate::convert::{Converter, Limits, Plan};
use crate::engine::error::EngineError;
use crate::engine::own::{CHECKPOINT_KEY, CONTROL_NAME, LANE_NAME};
use crate::engine::target::{self, OWN_PREFIX, TargetLink};
use crate::ids::{DbIndex, FlowId};
use crate::redis::slot::{slot, tag};
use crate::redis::value::Value;
use std::sync::Arc;

/// Memory for keys that the translation lists.
const NOTES_BYTES_MAX: usize = 64 * 1024;
/// Elements of a page of a value that is copied by reading it.
const PAGE_COUNT: u64 = 128;
/// Bytes of a page of a string.
const PAGE_BYTES: u64 = 1024 * 1024;

/// Who mends what differs.
pub enum Mender {
    Nobody,
    Copies(Box<Repairer>),
    Job,
}

impl Mender {
    pub async fn new(
        settings: &VerifySettings,
        target: &mut Peer,
        observer: &mut dyn Observer,
    ) -> Result<Self, EngineError> {
        if settings.repair == Repair::Off {
            return Ok(Self::Nobody);
        }
        if !is_job_connected(target).await? {
            if settings.scope.rewrites() {
                return Err(EngineError::Refused(OTHER_NAMES.into()));
            }
            return Ok(Self::Copies(Box::new(Repairer::new(settings, target).await?)));
        }
        observer
            .finds_job()
            .map(|()| Self::Job)
            .map_err(|why| EngineError::Refused(format!("{BESIDE_A_JOB} It cannot be asked: {why}")))
    }
}

const BESIDE_A_JOB: &str = "a migrate or replicate job is connected to the target: it would write to keys while they are \
    repaired, in another order than the source. A running replicate can do it, if it is asked through its control socket; \
    else compare without --repair, or stop the job first.";

const OTHER_NAMES: &str = "--rewrite-prefix gives keys other names at the target, under which only a running replicate copies keys \
    again: compare without --repair, or repair beside the job";

const HAS_POSITION: &str = "the target holds the position of a replicate job (df2redis:checkpoint, or one with a tag behind it) \
    that would go on from there and apply writes to repaired keys a second time. Repair when the job is over; if it is, delete \
    that key";

pub struct Repairer {
    converter: Converter,
    translator: JournalTranslator,
}

impl Repairer {
    /// Learns what the target can hold; refused where a job may write to it.
    pub async fn new(settings: &VerifySettings, target: &mut Peer) -> Result<Self, EngineError> {
        refuse_beside_a_job(target).await?;
        // Those of jobs that share the target have other names, and are looked for once: it is a walk over all keys.
        let name = CHECKPOINT_KEY.strip_prefix(OWN_PREFIX).unwrap_or(CHECKPOINT_KEY);
        if own_keys(target, 0, name).await? > 0 {
            return Err(EngineError::Refused(HAS_POSITION.into()));
        }
        let mut link = TargetLink::connect(&settings.target, settings.connect_timeout).await?;
        let capabilities = target::probe(&mut link).await?.capabilities;
        let policy = settings.on_unsupported.clone();
        let plan = Plan::new(capabilities.clone(), policy.clone(), Limits::default())
            .map_err(|error| EngineError::Refused(error.to_string()))?;
        Ok(Self {
            converter: Converter::new(FlowId(0), Arc::new(plan)),
            translator: JournalTranslator::new(FlowId(0), Arc::new(capabilities), Arc::new(policy), NOTES_BYTES_MAX),
        })
    }

    /// Copies one key; what the source no longer has is left alone. `Err(text)`: why it was not repaired.
    pub async fn copy(&mut self, looker: &mut Looker, db: u32, key: &[u8], now_ms: i64) -> Result<(), CopyError> {
        let mut commands = Commands::new();
        commands.push(&[b"DUMP", key]);
        commands.push(&[if looker.source.traits.expire_time { b"PEXPIRETIME" } else { b"PTTL" }, key]);
        let (payload, expiry) = match looker.source.ask(db, &commands).await {
            Ok(replies) => {
                let mut replies = replies.into_iter();
                (replies.next(), replies.next())
            }
            Err(AskError::TooLarge) => return self.copy_in_pages(looker, db, key).await,
            Err(AskError::Engine(error)) => return Err(error.into()),
        };
        looker.pace(1).await;
        let expire_at_ms = expire_at_ms(looker, expiry.as_ref())?;
        let payload = match payload {
            Some(Value::Bulk(payload)) => payload,
            Some(Value::Null) => return Err(CopyError::Gone),
            other => return Err(CopyError::Failed(format!("DUMP was answered with {}", answer(other.as_ref())))),
        };
        let Some(requests) = self.translate(db, key, &payload, expire_at_ms, now_ms) else {
            return self.copy_in_pages(looker, db, key).await;
        };
        let mut commands = Commands::new();
        for request in &requests {
            commands.push_encoded(request, slot(key));
        }
        expect_no_error(&looker.target.ask(db, &commands).await)
    }

    /// The commands that put the value in its place at the target. None: the payload is not understood.
    fn translate(
        &mut self,
        db: u32,
        key: &[u8],
        payload: &[u8],
        expire_at_ms: Option<i64>,
        now_ms: i64,
    ) -> Option<Vec<Vec<u8>>> {
        let expiry = expire_at_ms.unwrap_or(0).to_string();
        let args: [&[u8]; 6] = [b"RESTORE", key, expiry.as_bytes(), payload, b"REPLACE", b"ABSTTL"];
        let mut out = VecOut::new();
        match self.translator.command(DbIndex(db), 0, &args, now_ms, &mut self.converter, &mut out) {
            Ok(Outcome::Written { .. }) => Some(out.commands().map(|(_, bytes)| bytes.to_vec()).collect()),
            Ok(_) => None,
            Err(error) => {
                tracing::debug!("DUMP of {}: {error}; the value is read instead", key.escape_ascii());
                None
            }
        }
    }

    /// Reads the value in pages into a key of ours at the target, which then takes the key's place.
    async fn copy_in_pages(&mut self, looker: &mut Looker, db: u32, key: &[u8]) -> Result<(), CopyError> {
        let mut commands = Commands::new();
        commands.push(&[b"TYPE", key]);
        commands.push(&[if looker.source.traits.expire_time { b"PEXPIRETIME" } else { b"PTTL" }, key]);
        let replies = looker.source.ask(db, &commands).await?;
        let type_name = replies.first().and_then(Value::text).unwrap_or_default().to_string();
        let expire_at_ms = expire_at_ms(looker, replies.get(1))?;
        let beside = beside(key, looker.target.traits.cluster);
        let mut commands = Commands::new();
        commands.push(&[b"DEL", &beside]);
        expect_no_error(&looker.target.ask(db, &commands).await)?;
        match type_name.as_str() {
            "none" => return Err(CopyError::Gone),
            "string" => copy_string(looker, db, key, &beside).await?,
            "list" => copy_list(looker, db, key, &beside).await?,
            "set" | "hash" | "zset" => copy_scanned(looker, db, key, &beside, &type_name).await?,
            other => return Err(CopyError::Failed(format!("a value of type {other} cannot be copied in pages"))),
        }
        let mut commands = Commands::new();
        if let Some(at_ms) = expire_at_ms {
            commands.push(&[b"PEXPIREAT", &beside, at_ms.to_string().as_bytes()]);
        }
        commands.push(&[b"RENAME", &beside, key]);
        expect_no_error(&looker.target.ask(db, &commands).await)
    }
}

/// Why a key was not copied.
#[derive(Debug)]
pub enum CopyError {
    /// The source no longer has it.
    Gone,
    Failed(String),
    /// The run cannot go on.
    Engine(EngineError),
}

impl From<EngineError> for CopyError {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

impl From<AskError> for CopyError {
    fn from(error: AskError) -> Self {
        match error {
            AskError::TooLarge => Self::Failed("one of its elements takes more memory than allowed".into()),
            AskError::Engine(error) => Self::Engine(error),
        }
    }
}

/// Refuses where a job is connected to the target, or has left a position there.
pub async fn refuse_beside_a_job(target: &mut Peer) -> Result<(), EngineError> {
    if is_job_connected(target).await? {
        return Err(EngineError::Refused(BESIDE_A_JOB.into()));
    }
    let mut commands = Commands::new();
    commands.push(&[b"EXISTS", CHECKPOINT_KEY.as_bytes()]);
    match target.ask(0, &commands).await.map_err(|error| target.engine(error))?.first() {
        Some(Value::Integer(0)) => Ok(()),
        _ => Err(EngineError::Refused(HAS_POSITION.into())),
    }
}

async fn is_job_connected(target: &mut Peer) -> Result<bool, EngineError> {
    for node in target.primaries() {
        if let Value::Bulk(list) = target.one(node, &[b"CLIENT", b"LIST"]).await? {
            let list = String::from_utf8_lossy(&list).into_owned();
            let mut names = list.split_ascii_whitespace().filter_map(|part| part.strip_prefix("name="));
            if names.any(|name| name.starts_with(LANE_NAME) || name.starts_with(CONTROL_NAME)) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Deletes a key that the source does not have.
pub async fn delete(looker: &mut Looker, db: u32, key: &[u8]) -> Result<(), CopyError> {
    let mut commands = Commands::new();
    commands.push(&[b"UNLINK", key]);
    expect_no_error(&looker.target.ask(db, &commands).await)
}

fn expect_no_error(replies: &Result<Vec<Value>, AskError>) -> Result<(), CopyError> {
    match replies {
        Ok(replies) => match replies.iter().find(|reply| matches!(reply, Value::Error(_))) {
            Some(error) => Err(CopyError::Failed(format!("the target answered with {}", shown(error)))),
            None => Ok(()),
        },
        Err(error) => Err(CopyError::Failed(format!("{error:?}"))),
    }
}

fn expire_at_ms(looker: &Looker, reply: Option<&Value>) -> Result<Option<i64>, CopyError> {
    match reply.and_then(number) {
        Some(-2) => Err(CopyError::Gone),
        Some(..0) => Ok(None),
        Some(at) if looker.source.traits.expire_time => Ok(Some(at)),
        Some(left) => Ok(Some(looker.source.server_now_ms().saturating_add(left))),
        None => Err(CopyError::Failed(format!("the expiry was answered with {}", answer(reply)))),
    }
}

fn answer(reply: Option<&Value>) -> String {
    reply.map_or_else(|| "nothing".into(), shown)
}

/// The key under which a value is put together, in the slot of its own in a cluster.
fn beside(key: &[u8], cluster: bool) -> Vec<u8> {
    let print = super::image::print_of(&key);
    match cluster {
        true => format!("{OWN_PREFIX}repair:{{{}}}:{print:016x}", tag(slot(key))).into_bytes(),
        false => format!("{OWN_PREFIX}repair:{print:016x}").into_bytes(),
    }
}

async fn copy_string(looker: &mut Looker, db: u32, key: &[u8], to: &[u8]) -> Result<(), CopyError> {
    let mut at = 0;
    loop {
        let mut commands = Commands::new();
        let end = at + PAGE_BYTES - 1;
        commands.push(&[b"GETRANGE", key, at.to_string().as_bytes(), end.to_string().as_bytes()]);
        let Some(Value::Bulk(page)) = looker.source.ask(db, &commands).await?.pop() else {
            return Err(CopyError::Failed("GETRANGE was answered with no string".into()));
        };
        if page.is_empty() && at > 0 {
            return Ok(());
        }
        let mut commands = Commands::new();
        commands.push(&[b"APPEND", to, &page]);
        expect_no_error(&looker.target.ask(db, &commands).await)?;
        looker.pace(0).await;
        if (page.len() as u64) < PAGE_BYTES {
            return Ok(());
        }
        at += PAGE_BYTES;
    }
}

async fn copy_list(looker: &mut Looker, db: u32, key: &[u8], to: &[u8]) -> Result<(), CopyError> {
    let mut at = 0;
    loop {
        let mut commands = Commands::new();
        let end = at + PAGE_COUNT - 1;
        commands.push(&[b"LRANGE", key, at.to_string().as_bytes(), end.to_string().as_bytes()]);
        let elements = match looker.source.ask(db, &commands).await?.pop() {
            Some(Value::Array(elements)) => all_bytes(elements),
            _ => None,
        };
        let elements = elements.ok_or_else(|| CopyError::Failed("LRANGE was answered with no list".into()))?;
        if !elements.is_empty() {
            write(looker, db, b"RPUSH", to, &elements).await?;
        }
        looker.pace_elements(elements.len() as u64).await;
        if (elements.len() as u64) < PAGE_COUNT {
            return Ok(());
        }
        at += PAGE_COUNT;
    }
}

/// One write of many arguments at the target.
async fn write(looker: &mut Looker, db: u32, command: &[u8], to: &[u8], args: &[Vec<u8>]) -> Result<(), CopyError> {
    let mut all: Vec<&[u8]> = vec![command, to];
    all.extend(args.iter().map(Vec::as_slice));
    let mut commands = Commands::new();
    commands.push(&all);
    expect_no_error(&looker.target.ask(db, &commands).await)
}

/// A set, hash or sorted set.
async fn copy_scanned(looker: &mut Looker, db: u32, key: &[u8], to: &[u8], type_name: &str) -> Result<(), CopyError> {
    let (scan, add): (&[u8], &[u8]) = match type_name {
        "set" => (b"SSCAN", b"SADD"),
        "hash" => (b"HSCAN", b"HSET"),
        _ => (b"ZSCAN", b"ZADD"),
    };
    let mut cursor = b"0".to_vec();
    loop {
        let mut commands = Commands::new();
        commands.push(&[scan, key, &cursor, b"COUNT", PAGE_COUNT.to_string().as_bytes()]);
        let reply = looker.source.ask(db, &commands).await?.pop();
        let (next, elements) = reply
            .and_then(scan_reply)
            .ok_or_else(|| CopyError::Failed(format!("{} was answered in an unknown form", scan.escape_ascii())))?;
        let args = match type_name {
            "zset" => scored(looker, db, key, &elements).await?,
            _ => elements,
        };
        if !args.is_empty() {
            write(looker, db, add, to, &args).await?;
        }
        if type_name == "hash" {
            copy_field_expiries(looker, db, key, to, &args).await?;
        }
        looker.pace_elements(args.len() as u64).await;
        if next == b"0" {
            return Ok(());
        }
        cursor = next;
    }
}

/// Scores and members for ZADD; the exact scores, which a SCAN may shorten.
async fn scored(looker: &mut Looker, db: u32, key: &[u8], scanned: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, CopyError> {
    let members: Vec<&Vec<u8>> = scanned.iter().step_by(2).collect();
    if members.is_empty() {
        return Ok(Vec::new());
    }
    let mut args: Vec<&[u8]> = vec![b"ZMSCORE", key];
    args.extend(members.iter().map(|member| member.as_slice()));
    let mut commands = Commands::new();
    commands.push(&args);
    let Some(Value::Array(scores)) = looker.source.ask(db, &commands).await?.pop() else {
        return Err(CopyError::Failed("ZMSCORE was answered with no array".into()));
    };
    let mut args = Vec::new();
    for (member, score) in members.into_iter().zip(scores) {
        // A member that went meanwhile has none.
        if let Value::Bulk(score) = score {
            args.extend([score, member.clone()]);
        }
    }
    Ok(args)
}

async fn copy_field_expiries(
    looker: &mut Looker,
    db: u32,
    key: &[u8],
    to: &[u8],
    fields_and_values: &[Vec<u8>],
) -> Result<(), CopyError> {
    let exact = |peer: &Peer| peer.traits.field_expiry == FieldExpiry::Exact;
    let fields: Vec<&[u8]> = fields_and_values.iter().step_by(2).map(Vec::as_slice).collect();
    if fields.is_empty() || !exact(&looker.source) || !exact(&looker.target) {
        return Ok(());
    }
    let count = fields.len().to_string();
    let mut commands = Commands::new();
    commands.push(&[&[&b"HPEXPIRETIME"[..], key, b"FIELDS", count.as_bytes()], &fields[..]].concat());
    let Some(Value::Array(times)) = looker.source.ask(db, &commands).await?.pop() else { return Ok(()) };
    let mut commands = Commands::new();
    for (field, at) in fields.iter().zip(times.iter().map(number)) {
        if let Some(at @ 1..) = at {
            commands.push(&[b"HPEXPIREAT", to, at.to_string().as_bytes(), b"FIELDS", b"1", field]);
        }
    }
    expect_no_error(&looker.target.ask(db, &commands).await)
}
