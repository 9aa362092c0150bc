//! The source's control connection: registration, flows, phase commands, and plain questions.
//!
//! In: the source's address. Out: opened flows, ready for DFLY SYNC. The order of requests is that of wire 1.2: in
//! particular CLIENT-VERSION is never sent before the registration exists (it would crash the master).

use super::error::EngineError;
use super::link::{Link, LinkError};
use super::settings::Endpoint;
use super::worker::FlowStart;
use crate::ids::{DbIndex, FlowId, Lsn};
use crate::redis::info::Info;
use crate::redis::resp;
use crate::redis::value::{self, Value};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// What the source said at the registration.
#[derive(Clone, Debug)]
struct Registration {
    master_id: String,
    sync_id: String,
    flows: u32,
}

pub struct Source {
    endpoint: Endpoint,
    timeout: Duration,
    link: Option<Link>,
    version: String,
    keys: Option<u64>,
    registration: Option<Registration>,
}

/// Most flows that a native replica accepts.
const FLOWS_MAX: i64 = 1024;
/// Announced version: LSN markers on every release, no vector-graph opcodes (wire 1.4).
const CLIENT_VERSION: &[u8] = b"4";
/// DFLY SYNC and STARTSTABLE are answered only after the flows were written to.
const PHASE_PATIENCE: Duration = Duration::from_secs(600);

/// What the source granted.
pub enum Opened {
    Full(Vec<FlowStart>),
    Partial(Vec<FlowStart>),
    /// A partial sync was asked for and granted on so many flows, but not on all.
    Refused(u32),
}

/// A phase command on its way.
pub type PhaseAnswer = Pin<Box<dyn Future<Output = Result<Link, EngineError>>>>;

fn source_error(e: LinkError) -> EngineError {
    EngineError::Source(e.to_string())
}

impl Source {
    /// Connects, authenticates and asks what the source is. Changes nothing at the source.
    pub async fn connect(endpoint: &Endpoint, timeout: Duration) -> Result<Self, EngineError> {
        let mut link = open(endpoint, timeout).await?;
        let (mut version, mut keys) = (String::new(), None);
        // INFO needs no permission that replication needs; without it only the report and the progress know less.
        if let Value::Bulk(text) = ask(&mut link, "INFO", &[b"INFO"]).await? {
            let text = String::from_utf8_lossy(&text).into_owned();
            let info = Info::parse(&text);
            version = info.get("dragonfly_version").unwrap_or_default().to_string();
            if version.is_empty() {
                return Err(EngineError::Refused(format!(
                    "{}:{} is no Dragonfly server (its INFO names no dragonfly_version)",
                    endpoint.host, endpoint.port
                )));
            }
            let by_db = info.keys_by_db();
            if !by_db.is_empty() {
                keys = Some(by_db.iter().map(|(_, keys)| keys).sum());
            }
        }
        Ok(Self { endpoint: endpoint.clone(), timeout, link: Some(link), version, keys, registration: None })
    }

    /// As `df-v1.40.1`; empty if the source does not tell.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Keys at the time of connecting, where INFO told.
    pub fn keys(&self) -> Option<u64> {
        self.keys
    }

    pub fn flows(&self) -> u32 {
        self.registration.as_ref().map_or(0, |registration| registration.flows)
    }

    fn link(&mut self) -> Result<&mut Link, EngineError> {
        self.link.as_mut().ok_or_else(|| EngineError::Internal("the control connection is in use".into()))
    }

    /// Registers as a replica.
    pub async fn register(&mut self) -> Result<(), EngineError> {
        let link = self.link()?;
        expect_ok(link, "PING", &[b"PING"]).await?;
        expect_ok(link, "REPLCONF listening-port", &[b"REPLCONF", b"listening-port", b"0"]).await?;
        let reply = ask(link, "REPLCONF capa dragonfly", &[b"REPLCONF", b"capa", b"dragonfly"]).await?;
        let registration = registration(&reply, link.addr())?;
        expect_ok(link, "REPLCONF CLIENT-VERSION", &[b"REPLCONF", b"CLIENT-VERSION", CLIENT_VERSION]).await?;
        self.registration = Some(registration);
        Ok(())
    }

    /// Opens every flow for a full sync.
    pub async fn open_flows(&mut self) -> Result<Vec<FlowStart>, EngineError> {
        match self.open_flows_at(None).await? {
            Opened::Full(flows) => Ok(flows),
            Opened::Partial(_) | Opened::Refused(_) => {
                Err(EngineError::Source("the source granted a partial sync that was not asked for".into()))
            }
        }
    }

    /// Opens every flow, asking for a partial sync from `lsns` (one a flow) if given.
    pub async fn open_flows_at(&mut self, lsns: Option<&[Lsn]>) -> Result<Opened, EngineError> {
        let Some(Registration { master_id, sync_id, flows }) = self.registration.clone() else {
            return Err(EngineError::Internal("flows are opened before the registration".into()));
        };
        let mut opened = Vec::with_capacity(flows as usize);
        let mut granted = 0;
        for flow in 0..flows {
            let mut link = open(&self.endpoint, self.timeout).await?;
            let number = flow.to_string();
            let what = format!("DFLY FLOW {number}");
            let lsn = lsns.and_then(|lsns| lsns.get(flow as usize)).copied();
            let lsn_text = lsn.map(|lsn| lsn.to_string());
            let mut request: Vec<&[u8]> =
                vec![b"DFLY", b"FLOW", master_id.as_bytes(), sync_id.as_bytes(), number.as_bytes()];
            request.extend(lsn_text.as_deref().map(str::as_bytes));
            let reply = ask(&mut link, &what, &request).await?;
            let (partial, eof_token) = flow_token(&reply, &what)?;
            granted += u32::from(partial);
            let resume_at = if partial { lsn } else { None };
            let (socket, early) = link.hand_over().map_err(source_error)?;
            opened.push(FlowStart { id: FlowId(flow), socket, eof_token, early, resume_at });
        }
        Ok(if granted == flows {
            Opened::Partial(opened)
        } else if granted == 0 && lsns.is_none() {
            Opened::Full(opened)
        } else {
            // Mixed, or refused: such a registration is of no use (wire 1.5).
            Opened::Refused(granted)
        })
    }

    /// Sends `DFLY SYNC`. The future gives the connection back through [`Source::answered`].
    pub fn start_sync(&mut self) -> Result<PhaseAnswer, EngineError> {
        self.phase_command("SYNC")
    }

    /// Sends `DFLY STARTSTABLE`: only when every flow is at FULLSYNC_END, and while all flows are being read (wire 1.6).
    pub fn start_stable(&mut self) -> Result<PhaseAnswer, EngineError> {
        self.phase_command("STARTSTABLE")
    }

    /// The phase command was answered.
    pub fn answered(&mut self, link: Link) {
        self.link = Some(link);
    }

    fn phase_command(&mut self, name: &'static str) -> Result<PhaseAnswer, EngineError> {
        let sync_id = self.registration.as_ref().map(|r| r.sync_id.clone()).unwrap_or_default();
        let mut link =
            self.link.take().ok_or_else(|| EngineError::Internal("the control connection is in use".into()))?;
        Ok(Box::pin(async move {
            link.set_timeout(PHASE_PATIENCE);
            let what = format!("DFLY {name}");
            expect_ok(&mut link, &what, &[b"DFLY", name.as_bytes(), sync_id.as_bytes()]).await?;
            Ok(link)
        }))
    }

    /// `DFLY REPLICAOFFSET`: LSN of the next record of each shard.
    pub async fn replica_offsets(&mut self) -> Result<Vec<u64>, EngineError> {
        let flows = self.flows() as usize;
        let link = self.link()?;
        match ask(link, "DFLY REPLICAOFFSET", &[b"DFLY", b"REPLICAOFFSET"]).await? {
            Value::Array(elements) if elements.len() == flows => Ok(elements
                .iter()
                .map(|element| if let Value::Integer(lsn) = element { (*lsn).max(0) as u64 } else { 0 })
                .collect()),
            other => Err(EngineError::Source(format!("the source answered DFLY REPLICAOFFSET with {other:?}"))),
        }
    }

    /// Id of the source's process, once registered.
    pub fn master_id(&self) -> &str {
        self.registration.as_ref().map_or("", |registration| &registration.master_id)
    }

    /// Whether STARTSTABLE alone begins a partial sync (wire 1.7: from 1.35 on).
    pub fn partial_without_sync(&self) -> bool {
        let numbers = self.version.trim_start_matches("df-").trim_start_matches('v');
        let mut parts = numbers.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (1, 35)
    }

    /// Whether a key exists at the source now.
    pub async fn exists(&mut self, db: DbIndex, key: &[u8]) -> Result<bool, EngineError> {
        let link = self.link()?;
        expect_ok(link, "SELECT", &[b"SELECT", db.to_string().as_bytes()]).await?;
        match ask(link, "EXISTS", &[b"EXISTS", key]).await? {
            Value::Integer(n) => Ok(n > 0),
            other => Err(EngineError::Source(format!("the source answered EXISTS with {other:?}"))),
        }
    }
}

/// A connected, authenticated connection.
async fn open(endpoint: &Endpoint, timeout: Duration) -> Result<Link, EngineError> {
    let mut link = Link::connect(&endpoint.host, endpoint.port, timeout).await.map_err(source_error)?;
    if let Some(password) = endpoint.password.expose() {
        let args: Vec<&[u8]> = match endpoint.user.expose() {
            Some(user) => vec![b"AUTH", user.as_bytes(), password.as_bytes()],
            None => vec![b"AUTH", password.as_bytes()],
        };
        expect_ok(&mut link, "AUTH", &args).await?;
    }
    Ok(link)
}

/// One request and its reply. An error reply is an `Err` with what to do about it.
async fn ask(link: &mut Link, what: &str, args: &[&[u8]]) -> Result<Value, EngineError> {
    match link.request(what, resp::command(args), value::parse).await.map_err(source_error)? {
        Value::Error(text) => Err(EngineError::Source(format!(
            "{} answered {what} with \"{}\"; {}",
            link.addr(),
            text.escape_ascii(),
            remedy(&String::from_utf8_lossy(&text))
        ))),
        value => Ok(value),
    }
}

async fn expect_ok(link: &mut Link, what: &str, args: &[&[u8]]) -> Result<(), EngineError> {
    match ask(link, what, args).await? {
        Value::Simple(_) => Ok(()),
        other => Err(EngineError::Source(format!("{} answered {what} with {other:?} instead of OK", link.addr()))),
    }
}

/// What to do about an error line (wire 1.11).
fn remedy(text: &str) -> &'static str {
    let has = |part: &str| text.contains(part);
    if has("NOAUTH") {
        "give the source's password (DF2REDIS_SOURCE_PASSWORD or --source-password-file)"
    } else if has("WRONGPASS") {
        "the source's user or password is wrong"
    } else if has("without any password configured") {
        "this is the admin port of a source without a password for it: leave the password out"
    } else if has("NOPERM") {
        "the source's user needs the commands REPLCONF and DFLY"
    } else if has("restricted command") {
        "the source restricts REPLCONF or DFLY to its admin port: give that port"
    } else if has("Replicating a replica") {
        "the source is a replica itself: give the address of its master"
    } else if has("LOADING") {
        "the source is loading its data: run again when it is ready"
    } else if has("bad master id") || has("syncid not found") || has("invalid state") {
        "the source dropped the registration (restarted, or a connection of it was closed; a load balancer in between \
         breaks the protocol): run again"
    } else if has("SHUTTING_DOWN") {
        "the source is shutting down: run again when it is back"
    } else if has("max number of clients") {
        "the source has no connection left: raise its maxclients"
    } else {
        "see the source's log"
    }
}

/// Takes the reply to `REPLCONF capa dragonfly` apart (wire 1.3).
fn registration(reply: &Value, addr: &str) -> Result<Registration, EngineError> {
    let wrong = |why: &str| EngineError::Source(format!("{addr} answered REPLCONF capa dragonfly {why}"));
    let Value::Array(elements) = reply else {
        return Err(EngineError::Refused(format!(
            "{addr} is no Dragonfly server: it does not know the capability dragonfly (answer {reply:?})"
        )));
    };
    let [Value::Simple(master_id), Value::Simple(sync_id), Value::Integer(flows), ..] = elements.as_slice() else {
        return Err(wrong("with another shape than master id, sync id and number of flows"));
    };
    if master_id.len() != 40 || !master_id.iter().all(u8::is_ascii_hexdigit) {
        return Err(wrong("with a master id that is not 40 hexadecimal digits"));
    }
    if !sync_id.starts_with(b"SYNC") || sync_id.len() > 32 || !sync_id[4..].iter().all(u8::is_ascii_digit) {
        return Err(wrong("with a sync id that is not SYNC and a number"));
    }
    if !(1..=FLOWS_MAX).contains(flows) {
        return Err(wrong(&format!("with {flows} flows; 1 to {FLOWS_MAX} are possible")));
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Registration { master_id: text(master_id), sync_id: text(sync_id), flows: *flows as u32 })
}

/// The token in the reply to `DFLY FLOW` (wire 1.5).
fn flow_token(reply: &Value, what: &str) -> Result<(bool, [u8; 40]), EngineError> {
    if let Value::Array(elements) = reply
        && let [Value::Simple(directive), Value::Simple(token)] = elements.as_slice()
        && (directive == b"FULL" || directive == b"PARTIAL")
        && let Ok(token) = <[u8; 40]>::try_from(token.as_slice())
    {
        return Ok((directive == b"PARTIAL", token));
    }
    Err(EngineError::Source(format!(
        "the source answered {what} with {reply:?} instead of FULL and a token of 40 bytes"
    )))
}
