//! The source's control connection: registration, flows, phase commands, and plain questions.
//!
//! In: the source's address. Out: opened flows, ready for DFLY SYNC (or, in a partial sync, for STARTSTABLE). What is sent
//! and what replies mean is said by `dragonfly::session`; this module only carries the bytes.

use super::error::EngineError;
use super::fetch::PAYLOAD_BYTES_MAX;
use super::link::{Link, LinkError};
use super::messages::FlowStart;
use super::settings::Endpoint;
use crate::dragonfly::reply::{Reply, ReplyError, parse_reply, parse_reply_within};
use crate::dragonfly::session::{
    self, Credentials, Directive, FlowHandshake, FlowOpened, Handshake, Registration, Release, Request, SessionError,
};
use crate::ids::{DbIndex, FlowId, Lsn};
use crate::redis::info::Info;
use crate::redis::resp;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

pub struct Source {
    endpoint: Endpoint,
    timeout: Duration,
    link: Option<Link>,
    version: String,
    /// Keys by database at the time of connecting, where INFO told.
    keyspace: Option<Vec<(DbIndex, u64)>>,
    /// `master_replid`, new with each process; empty where INFO did not tell.
    process: String,
    role: Role,
    registration: Option<Registration>,
}

/// What the source is to other servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    Master,
    /// Of the server with this address.
    Replica(String),
    /// INFO did not tell.
    Unknown,
}

impl Role {
    fn of(info: &Info<'_>) -> Self {
        let field = |name| info.get(name).unwrap_or("?").to_string();
        match info.get("role") {
            Some("master") => Self::Master,
            Some(_) => Self::Replica(format!("{}:{}", field("master_host"), field("master_port"))),
            None => Self::Unknown,
        }
    }
}

/// A flow that the source opened.
pub struct OpenFlow {
    pub opened: FlowOpened,
    pub start: FlowStart,
}

/// DFLY SYNC and STARTSTABLE are answered only after the flows were written to.
const PHASE_PATIENCE: Duration = Duration::from_secs(600);

/// A source that holds its commands answers when they go on; one that is gone is noticed by its connection.
const OFFSETS_PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// From this release on a partial sync begins with STARTSTABLE, without DFLY SYNC (wire 1.7).
const PARTIAL_WITHOUT_SYNC: (u32, u32) = (1, 35);
/// From this release on every record that counts is in the blobs of a partial sync; before, EXEC was left out (wire 2.7), so
/// that no position could be counted.
const PARTIAL_COUNTABLE: (u32, u32) = (1, 24);
/// Protocol version that only releases from 1.37 on announce (wire 1.4).
const PROTOCOL_OF_NEW: u32 = 5;

/// How a release begins a partial sync (wire 1.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartialWay {
    /// With STARTSTABLE: raw journal from the position on.
    AtOnce,
    /// With DFLY SYNC: blobs from the position on; then STARTSTABLE as after a full sync.
    BySync,
}

/// A phase command on its way: gives back the connection and the reply.
pub type PhaseAnswer = Pin<Box<dyn Future<Output = Result<(Link, Reply), EngineError>>>>;

fn link_error(e: LinkError) -> EngineError {
    EngineError::Source(e.to_string())
}

/// Where a source error leads: what is wrong with the operator's choice is refused, the rest may be tried again.
pub fn session_error(e: SessionError) -> EngineError {
    match e {
        SessionError::NotDragonfly => EngineError::Refused(e.to_string()),
        SessionError::SourceIsReplica => EngineError::SourceIsReplica(e.to_string()),
        e => EngineError::Source(e.to_string()),
    }
}

impl Source {
    /// Connects, authenticates and asks what the source is. Changes nothing at the source.
    pub async fn connect(endpoint: &Endpoint, timeout: Duration) -> Result<Self, EngineError> {
        let mut link = connect(endpoint, timeout).await?;
        link.watch_life();
        if let Some(credentials) = credentials(endpoint) {
            expect_ok(&mut link, "AUTH", &Request::Auth(&credentials)).await?;
        }
        let (mut version, mut keyspace, mut process, mut role) = (String::new(), None, String::new(), Role::Unknown);
        // Replication needs no INFO; without it only the report and the progress know less.
        match ask(&mut link, "INFO", resp::command(&[b"INFO"])).await? {
            Reply::Bulk(Some(text)) => {
                let text = String::from_utf8_lossy(&text).into_owned();
                let info = Info::parse(&text);
                version = info.get("dragonfly_version").unwrap_or_default().to_string();
                if version.is_empty() {
                    return Err(EngineError::Refused(format!(
                        "{} is no Dragonfly server (its INFO names no dragonfly_version)",
                        endpoint.address()
                    )));
                }
                process = info.get("master_replid").unwrap_or_default().to_string();
                role = Role::of(&info);
                let by_db = info.keys_by_db();
                if !by_db.is_empty() {
                    keyspace = Some(by_db.into_iter().map(|(db, keys)| (DbIndex(db), keys)).collect());
                }
            }
            Reply::Error(text) if text.starts_with(b"NOPERM") => {}
            other => return Err(session_error(SessionError::of_reply("INFO", &other))),
        }
        Ok(Self {
            endpoint: endpoint.clone(),
            timeout,
            link: Some(link),
            version,
            keyspace,
            process,
            role,
            registration: None,
        })
    }

    /// Another connection to the same address.
    pub async fn connect_again(&self) -> Result<Self, EngineError> {
        Self::connect(&self.endpoint, self.timeout).await
    }

    /// As `df-v1.40.1`; empty if the source does not tell.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// None where it does not tell, or is a build without one.
    pub fn release(&self) -> Option<Release> {
        Release::parse(&self.version)
    }

    /// Keys at the time of connecting, where INFO told.
    pub fn keys(&self) -> Option<u64> {
        self.keyspace.as_ref().map(|dbs| dbs.iter().map(|(_, keys)| keys).sum())
    }

    /// Keys by database at the time of connecting; none where INFO did not tell.
    pub fn keyspace(&self) -> &[(DbIndex, u64)] {
        self.keyspace.as_deref().unwrap_or_default()
    }

    /// Which process answered; empty if it does not tell.
    pub fn process(&self) -> &str {
        &self.process
    }

    /// It is surely another process than `process`, so it may not hold what that one held.
    pub fn is_other_than(&self, process: &str) -> bool {
        !process.is_empty() && !self.process.is_empty() && self.process != process
    }

    /// It is the process `process`, by its own word.
    pub fn is_surely(&self, process: &str) -> bool {
        !process.is_empty() && self.process == process
    }

    /// It told that it holds some key. A real Dragonfly lists database 0 even without, with `keys=0`.
    pub fn has_keys(&self) -> bool {
        self.keyspace().iter().any(|(_, keys)| *keys > 0)
    }

    /// What it is to other servers, by INFO.
    pub fn role(&self) -> &Role {
        &self.role
    }

    /// A snapshot is being loaded, as far as its user may know. Plain INFO does not tell.
    pub async fn is_loading(&mut self) -> Result<bool, EngineError> {
        let reply = ask(self.link()?, "INFO PERSISTENCE", resp::command(&[b"INFO", b"PERSISTENCE"])).await?;
        let text = match reply {
            Reply::Bulk(Some(text)) => text,
            Reply::Error(text) if text.starts_with(b"NOPERM") => return Ok(false),
            // No answer is no "no": a flush is executed on it.
            other => return Err(session_error(SessionError::of_reply("INFO PERSISTENCE", &other))),
        };
        Ok(Info::parse(&String::from_utf8_lossy(&text)).get("loading").is_some_and(|loading| loading != "0"))
    }

    /// Registers as a replica, on the connection that asked what the source is.
    pub async fn register(&mut self) -> Result<Registration, EngineError> {
        // Authenticated already.
        let mut handshake = Handshake::new(None);
        let link = self.link()?;
        while let Some(request) = handshake.request() {
            let reply = ask(link, "the handshake", encoded(&request)).await?;
            handshake.reply(&reply).map_err(session_error)?;
        }
        let registration = handshake
            .finish()
            .ok_or_else(|| EngineError::Internal("the handshake ended without a registration".into()))?;
        if registration.version > session::SOURCE_VERSION_KNOWN_MAX {
            tracing::warn!(
                version = registration.version,
                "the source speaks a newer protocol version than was examined; unknown records will be refused"
            );
        }
        self.registration = Some(registration.clone());
        Ok(registration)
    }

    /// Opens every flow, asking for a partial sync from `lsns` (one a flow) if given.
    pub async fn open_flows(&mut self, lsns: Option<&[Lsn]>) -> Result<Vec<OpenFlow>, EngineError> {
        let registration = self.registered()?.clone();
        let by_sync = self.partial_way() == Some(PartialWay::BySync);
        let mut flows = Vec::with_capacity(registration.flows as usize);
        for id in (0..registration.flows).map(FlowId) {
            let from = lsns.and_then(|lsns| lsns.get(id.0 as usize)).copied();
            let mut link = connect(&self.endpoint, self.timeout).await?;
            let mut handshake = FlowHandshake::new(credentials(&self.endpoint), &registration, id, from);
            while let Some(request) = handshake.request() {
                let reply = ask(&mut link, "DFLY FLOW", encoded(&request)).await?;
                handshake.reply(&reply).map_err(session_error)?;
            }
            let opened =
                handshake.finish().ok_or_else(|| EngineError::Internal("a flow was opened without a reply".into()))?;
            let (socket, early) = link.hand_over().map_err(link_error)?;
            let resume_at = from.filter(|_| opened.directive == Directive::Partial);
            flows.push(OpenFlow {
                opened,
                start: FlowStart {
                    id,
                    socket,
                    eof_token: opened.eof_token,
                    early,
                    resume_at,
                    in_blobs: resume_at.is_some() && by_sync,
                },
            });
        }
        Ok(flows)
    }

    /// Sends a phase command (`DFLY SYNC`, `DFLY STARTSTABLE`). The connection comes back with the reply; give it to
    /// [`Source::answered`].
    pub fn phase_command(&mut self, request: &Request<'_>) -> Result<PhaseAnswer, EngineError> {
        self.question(request, PHASE_PATIENCE)
    }

    fn question(&mut self, request: &Request<'_>, patience: Duration) -> Result<PhaseAnswer, EngineError> {
        let request = encoded(request);
        let mut link = self.link.take().ok_or_else(in_use)?;
        Ok(Box::pin(async move {
            link.set_timeout(patience);
            let reply = ask(&mut link, "a DFLY command", request).await?;
            Ok((link, reply))
        }))
    }

    /// The phase command was answered.
    pub fn answered(&mut self, mut link: Link) {
        link.set_timeout(self.timeout);
        self.link = Some(link);
    }

    /// Begins a partial sync of flows that were all granted one.
    pub fn start_partial(&mut self) -> Result<PhaseAnswer, EngineError> {
        let sync_id = self.registered()?.sync_id.clone();
        self.phase_command(&Request::StartStable { sync_id: &sync_id })
    }

    /// LSN of the next record of each shard.
    pub async fn replica_offsets(&mut self) -> Result<Vec<Lsn>, EngineError> {
        let reply = ask(self.link()?, "DFLY REPLICAOFFSET", encoded(&Request::ReplicaOffset)).await?;
        self.offsets_of(&reply)
    }

    /// The same without waiting: the connection comes back with the reply, as for [`Source::phase_command`].
    pub fn ask_offsets(&mut self) -> Result<PhaseAnswer, EngineError> {
        self.question(&Request::ReplicaOffset, OFFSETS_PATIENCE)
    }

    /// What the reply to that says.
    pub fn offsets_of(&self, reply: &Reply) -> Result<Vec<Lsn>, EngineError> {
        session::replica_offsets(reply, self.registered()?.flows).map_err(session_error)
    }

    /// The control connection is not waiting for a phase command.
    pub fn is_free(&self) -> bool {
        self.link.is_some()
    }

    /// Ends the control connection, and with it the registration.
    pub fn leave(&mut self) {
        self.link = None;
    }

    /// How a partial sync begins; `None`: the release is not known, or its positions cannot be counted on the way.
    pub fn partial_way(&self) -> Option<PartialWay> {
        partial_way(&self.version, self.registration.as_ref().map_or(0, |registration| registration.version))
    }

    /// Asks for the blobs of a partial sync of flows that were all granted one.
    pub fn sync_partial(&mut self) -> Result<PhaseAnswer, EngineError> {
        let sync_id = self.registered()?.sync_id.clone();
        self.phase_command(&Request::Sync { sync_id: &sync_id })
    }

    /// Which of these keys exist at the source now. All questions leave in one write.
    pub async fn exist(&mut self, keys: &[(DbIndex, &[u8])]) -> Result<Vec<bool>, EngineError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let (mut request, mut asked, mut selected) = (Vec::new(), Vec::new(), None);
        for (db, key) in keys {
            if selected.replace(*db) != Some(*db) {
                resp::push_command(&mut request, &[b"SELECT", db.to_string().as_bytes()]);
                asked.push("SELECT");
            }
            resp::push_command(&mut request, &[b"EXISTS", key]);
            asked.push("EXISTS");
        }
        let parse = |input: &[u8]| {
            let (mut at, mut replies) = (0, Vec::with_capacity(asked.len()));
            while replies.len() < asked.len() {
                let Some((reply, len)) = parse_reply(input.get(at..).unwrap_or_default())? else { return Ok(None) };
                at += len;
                replies.push(reply);
            }
            Ok::<_, ReplyError>(Some((replies, at)))
        };
        let replies = self.link()?.request("EXISTS", request, parse).await.map_err(link_error)?;
        let mut exist = Vec::with_capacity(keys.len());
        for (what, reply) in asked.iter().zip(&replies) {
            match reply {
                Reply::Simple(text) if *what == "SELECT" && text == b"OK" => {}
                Reply::Integer(n) if *what == "EXISTS" => exist.push(*n > 0),
                other => return Err(session_error(SessionError::of_reply(what, other))),
            }
        }
        Ok(exist)
    }

    /// The source's clock; `None` where its user may not ask.
    pub async fn time_ms(&mut self) -> Result<Option<i64>, EngineError> {
        let Reply::Array(Some(parts)) = ask(self.link()?, "TIME", resp::command(&[b"TIME"])).await? else {
            return Ok(None);
        };
        // Dragonfly answers with integers, Redis with texts.
        let number = |at: usize| match parts.get(at) {
            Some(Reply::Integer(number)) => Some(*number),
            Some(Reply::Bulk(Some(text))) => std::str::from_utf8(text).ok()?.parse::<i64>().ok(),
            _ => None,
        };
        Ok(number(0).zip(number(1)).map(|(s, us)| s.saturating_mul(1000).saturating_add(us / 1000)))
    }

    /// How long one write to a replica may take; `None` where its user may not ask.
    pub async fn replication_timeout(&mut self) -> Result<Option<Duration>, EngineError> {
        const CONFIG: &[&[u8]] = &[b"CONFIG", b"GET", b"replication_timeout"];
        let Reply::Array(Some(pair)) = ask(self.link()?, "CONFIG GET", resp::command(CONFIG)).await? else {
            return Ok(None);
        };
        let Some(Reply::Bulk(Some(ms))) = pair.get(1) else { return Ok(None) };
        Ok(std::str::from_utf8(ms).ok().and_then(|ms| ms.parse().ok()).map(Duration::from_millis))
    }

    /// Asks for a key's value: the replies to `DFLY REPLICAOFFSET`, `DUMP`, `PEXPIRETIME` and `DFLY REPLICAOFFSET`, which
    /// leave in one write, so that next to nothing can come between them.
    pub async fn dump(&mut self, db: DbIndex, key: &[u8]) -> Result<[Reply; 4], EngineError> {
        let link = self.link()?;
        let select = ask(link, "SELECT", resp::command(&[b"SELECT", db.to_string().as_bytes()])).await?;
        if select != Reply::Simple(b"OK".to_vec()) {
            return Err(session_error(SessionError::of_reply("SELECT", &select)));
        }
        let offsets = encoded(&Request::ReplicaOffset);
        let request =
            [&offsets[..], &resp::command(&[b"DUMP", key]), &resp::command(&[b"PEXPIRETIME", key]), &offsets[..]]
                .concat();
        link.request("DUMP", request, |input| {
            let (mut at, mut replies) = (0, Vec::with_capacity(4));
            while replies.len() < 4 {
                let rest = input.get(at..).unwrap_or_default();
                let Some((reply, len)) = parse_reply_within(rest, PAYLOAD_BYTES_MAX)? else { return Ok(None) };
                at += len;
                replies.push(reply);
            }
            // Four were taken.
            Ok::<_, ReplyError>(<[Reply; 4]>::try_from(replies).ok().map(|replies| (replies, at)))
        })
        .await
        .map_err(link_error)
    }

    pub(super) fn link(&mut self) -> Result<&mut Link, EngineError> {
        self.link.as_mut().ok_or_else(in_use)
    }

    pub(super) fn registered(&self) -> Result<&Registration, EngineError> {
        self.registration
            .as_ref()
            .ok_or_else(|| EngineError::Internal("the source is used before the registration".into()))
    }
}

/// By the release as INFO tells it, or, for a build without a tag (`dev`, or a bare commit), by the protocol announced.
fn partial_way(version: &str, protocol: u32) -> Option<PartialWay> {
    let Some(release) = Release::parse(version) else {
        return (protocol >= PROTOCOL_OF_NEW).then_some(PartialWay::AtOnce);
    };
    match (release.major, release.minor) {
        release if release >= PARTIAL_WITHOUT_SYNC => Some(PartialWay::AtOnce),
        release if release >= PARTIAL_COUNTABLE => Some(PartialWay::BySync),
        _ => None,
    }
}

fn in_use() -> EngineError {
    EngineError::Internal("the control connection is in use".into())
}

async fn connect(endpoint: &Endpoint, timeout: Duration) -> Result<Link, EngineError> {
    Link::connect(&endpoint.host, endpoint.port, endpoint.tls.as_ref(), timeout).await.map_err(link_error)
}

fn credentials(endpoint: &Endpoint) -> Option<Credentials> {
    let password = endpoint.password.expose()?.to_string();
    Some(Credentials { user: endpoint.user.expose().map(str::to_string), password })
}

pub(super) fn encoded(request: &Request<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    request.encode(&mut bytes);
    bytes
}

pub(super) async fn ask(link: &mut Link, what: &str, request: Vec<u8>) -> Result<Reply, EngineError> {
    link.request(what, request, parse_reply).await.map_err(link_error)
}

async fn expect_ok(link: &mut Link, what: &'static str, request: &Request<'_>) -> Result<(), EngineError> {
    match ask(link, what, encoded(request)).await? {
        Reply::Simple(text) if text == b"OK" => Ok(()),
        other => Err(session_error(SessionError::of_reply(what, &other))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_lists_a_database_of_no_keys_is_empty() {
        let source = |version: &str, keyspace: Option<Vec<(DbIndex, u64)>>| Source {
            endpoint: Endpoint {
                host: String::new(),
                port: 0,
                tls: None,
                user: Default::default(),
                password: Default::default(),
            },
            timeout: Duration::ZERO,
            link: None,
            version: version.to_string(),
            keyspace,
            process: "a".to_string(),
            role: Role::Unknown,
            registration: None,
        };
        assert!(!source("df-v1.40.1", Some(vec![(DbIndex(0), 0)])).has_keys());
        assert!(source("df-v1.40.1", Some(vec![(DbIndex(0), 0), (DbIndex(3), 1)])).has_keys());
        // INFO was not allowed: nothing is known.
        assert!(!source("", None).has_keys());
        // Keys are deleted on the word of the process that was copied, or of one that does not tell which it is.
        assert!(source("df-v1.40.1", None).is_other_than("b") && !source("df-v1.40.1", None).is_other_than("a"));
        assert!(!source("df-v1.40.1", None).is_other_than(""));
        // And nothing is proven on the word of one that may be another.
        assert!(source("df-v1.40.1", None).is_surely("a"));
        assert!(!source("df-v1.40.1", None).is_surely("b") && !source("df-v1.40.1", None).is_surely(""));
    }

    #[test]
    fn a_build_without_a_tag_is_known_by_its_protocol() {
        for (version, protocol, way) in [
            ("df-v1.40.1", 5, Some(PartialWay::AtOnce)),
            ("df-v1.34.0", 4, Some(PartialWay::BySync)),
            ("df-v1.23.0", 3, None),
            ("df-dev", 5, Some(PartialWay::AtOnce)),
            ("f8eca6d0b", 5, Some(PartialWay::AtOnce)),
            // 4 is what 1.16 to 1.21 and 1.30 to 1.36 say.
            ("df-dev", 4, None),
        ] {
            assert_eq!(partial_way(version, protocol), way, "{version} {protocol}");
        }
    }
}
