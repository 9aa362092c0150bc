//! The replica session with a master (wire 1): requests, what their replies mean, and the phases of a full sync.
//!
//! Sans-io. [`Handshake`] registers on the control connection, [`FlowHandshake`] opens one flow; each says what to send
//! next and takes the reply. [`Session`] is told what happens on all connections and says what to do: its [`Phase`] moves
//! by one table, and only forward. A phase ends by facts of both sides, never by silence:
//!
//! ```text
//! Connect -> Flows -> FullSync -> AllAtFullSyncEnd -> StartingStable -> TokensChecked -> Done
//! ```
//!
//! STARTSTABLE is asked for when SYNC was accepted and *every* flow has delivered FULLSYNC_END; the session is done when
//! every flow has delivered JOURNAL_OFFSET and its own token, and STARTSTABLE was accepted. Any error is final: one lost
//! connection ends the whole registration, so a new session begins with new connections.

use super::reply::Reply;
use crate::ids::{FlowId, Lsn};

pub use super::release::Release;
pub use super::reply::{ReplyError, parse_reply};
pub use super::request::{Credentials, Request};
pub use super::session_error::{Retry, SessionError};

/// Protocol version that is announced: brings LSN markers from every master that has them, and no vector graphs.
pub const CLIENT_VERSION: u32 = 4;
/// Highest protocol version that was examined. A master that says more is served, but may send what is not known.
pub const SOURCE_VERSION_KNOWN_MAX: u32 = 5;
/// More flows than this are refused, as by Dragonfly's own replica.
pub const FLOWS_MAX: u32 = 1024;

/// What the master said when it registered us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// 40 hexadecimal digits, new at every start of the master.
    pub master_id: String,
    /// `SYNC<k>`, named in all later commands.
    pub sync_id: String,
    /// Number of flows, 1..=1024.
    pub flows: u32,
    /// Protocol version; ambiguous around release 1.22 (wire 1.4). 0 from masters that do not say (1.3 and older).
    pub version: u32,
    /// Id of the root master of a cascade, from 1.40 on.
    pub lineage_id: Option<String>,
}

impl Registration {
    /// Reads the reply to `REPLCONF capa dragonfly`, wire 1.3.
    pub fn from_reply(reply: &Reply) -> Result<Self, SessionError> {
        const WHAT: &str = "REPLCONF capa dragonfly";
        let items = match reply {
            Reply::Simple(text) if text == b"OK" => return Err(SessionError::NotDragonfly),
            Reply::Array(Some(items)) => items,
            other => return Err(SessionError::of_reply(WHAT, other)),
        };
        let bad = |what| SessionError::BadRegistration { what };
        let (master_id, sync_id, flows) = match items.as_slice() {
            [master_id, sync_id, flows, ..] => (text(master_id), text(sync_id), flows),
            _ => return Err(bad("fewer than three elements")),
        };
        let master_id =
            master_id.filter(|id| is_hex_id(id)).ok_or(bad("the master id is not 40 hexadecimal digits"))?;
        let sync_id = sync_id.filter(|id| is_sync_id(id)).ok_or(bad("the sync id is not SYNC and a number"))?;
        let flows = match flows {
            Reply::Integer(flows @ 1..) if *flows <= i64::from(FLOWS_MAX) => *flows as u32,
            _ => return Err(bad("the number of flows is not 1 to 1024")),
        };
        let version = match items.get(3) {
            None => 0,
            Some(Reply::Integer(version)) => u32::try_from(*version).map_err(|_| bad("the version is out of range"))?,
            Some(_) => return Err(bad("the version is not a number")),
        };
        let lineage_id = items.get(4).and_then(text).filter(|id| is_hex_id(id));
        Ok(Self {
            master_id: master_id.to_owned(),
            sync_id: sync_id.to_owned(),
            flows,
            version,
            lineage_id: lineage_id.map(str::to_owned),
        })
    }
}

/// Registers on the control connection: send [`Handshake::request`], give its reply to [`Handshake::reply`], until there
/// is no request left.
#[derive(Debug)]
pub struct Handshake {
    credentials: Option<Credentials>,
    step: HandshakeStep,
    registration: Option<Registration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HandshakeStep {
    Auth,
    Ping,
    ListeningPort,
    Capability,
    ClientId,
    /// Only here: a master without a live registration crashes on it (wire 1.2).
    ClientVersion,
    Done,
}

impl Handshake {
    pub fn new(credentials: Option<Credentials>) -> Self {
        let step = if credentials.is_some() { HandshakeStep::Auth } else { HandshakeStep::Ping };
        Self { credentials, step, registration: None }
    }

    /// What to send next; `None` when registered.
    pub fn request(&self) -> Option<Request<'_>> {
        Some(match (self.step, &self.credentials) {
            (HandshakeStep::Auth, Some(credentials)) => Request::Auth(credentials),
            (HandshakeStep::Auth | HandshakeStep::Ping, _) => Request::Ping,
            (HandshakeStep::ListeningPort, _) => Request::ListeningPort(0),
            (HandshakeStep::Capability, _) => Request::Capability,
            (HandshakeStep::ClientId, _) => {
                Request::ClientId { sync_id: self.registration.as_ref().map_or("", |of| of.sync_id.as_str()) }
            }
            (HandshakeStep::ClientVersion, _) => Request::ClientVersion(CLIENT_VERSION),
            (HandshakeStep::Done, _) => return None,
        })
    }

    /// Takes the reply to the last request.
    pub fn reply(&mut self, reply: &Reply) -> Result<(), SessionError> {
        self.step = match self.step {
            HandshakeStep::Auth => expect("AUTH", reply, b"OK", HandshakeStep::Ping)?,
            HandshakeStep::Ping => expect("PING", reply, b"PONG", HandshakeStep::ListeningPort)?,
            HandshakeStep::ListeningPort => expect("REPLCONF listening-port", reply, b"OK", HandshakeStep::Capability)?,
            HandshakeStep::Capability => {
                self.registration = Some(Registration::from_reply(reply)?);
                HandshakeStep::ClientId
            }
            // Whatever it says: the id is for others, and the release may not know of ids.
            HandshakeStep::ClientId => HandshakeStep::ClientVersion,
            HandshakeStep::ClientVersion => expect("REPLCONF CLIENT-VERSION", reply, b"OK", HandshakeStep::Done)?,
            HandshakeStep::Done => return Err(SessionError::OutOfOrder { what: "a reply without a request" }),
        };
        Ok(())
    }

    /// The registration, once there is no request left.
    pub fn finish(self) -> Option<Registration> {
        self.registration.filter(|_| self.step == HandshakeStep::Done)
    }
}

/// How the master will serve a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Directive {
    Full,
    Partial,
}

/// Reply to `DFLY FLOW`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowOpened {
    pub directive: Directive,
    /// What must come after EOF.
    pub eof_token: [u8; 40],
}

impl FlowOpened {
    pub fn from_reply(reply: &Reply) -> Result<Self, SessionError> {
        let Reply::Array(Some(items)) = reply else {
            return Err(SessionError::of_reply("DFLY FLOW", reply));
        };
        let bad = |what| SessionError::BadFlowReply { what };
        let [directive, token] = items.as_slice() else { return Err(bad("not two elements")) };
        let directive = match text(directive) {
            Some("FULL") => Directive::Full,
            Some("PARTIAL") => Directive::Partial,
            _ => return Err(bad("neither FULL nor PARTIAL")),
        };
        let token = text(token).filter(|token| is_hex_id(token)).and_then(|token| token.as_bytes().try_into().ok());
        Ok(Self { directive, eof_token: token.ok_or(bad("the token is not 40 hexadecimal digits"))? })
    }
}

/// Opens one flow on its own connection. After [`FlowHandshake::finish`] says something, all further bytes of the
/// connection are the stream's, beginning with those behind the reply.
#[derive(Debug)]
pub struct FlowHandshake {
    credentials: Option<Credentials>,
    master_id: String,
    sync_id: String,
    flow: FlowId,
    /// LSN of the next record wanted, to ask for a partial sync.
    from: Option<Lsn>,
    authenticated: bool,
    opened: Option<FlowOpened>,
}

impl FlowHandshake {
    pub fn new(credentials: Option<Credentials>, registration: &Registration, flow: FlowId, from: Option<Lsn>) -> Self {
        Self {
            authenticated: credentials.is_none(),
            credentials,
            master_id: registration.master_id.clone(),
            sync_id: registration.sync_id.clone(),
            flow,
            from,
            opened: None,
        }
    }

    /// What to send next; `None` when the flow is open.
    pub fn request(&self) -> Option<Request<'_>> {
        match (&self.credentials, self.authenticated, self.opened) {
            (_, _, Some(_)) => None,
            (Some(credentials), false, _) => Some(Request::Auth(credentials)),
            _ => Some(Request::Flow {
                master_id: &self.master_id,
                sync_id: &self.sync_id,
                flow: self.flow,
                from: self.from,
            }),
        }
    }

    /// Takes the reply to the last request.
    pub fn reply(&mut self, reply: &Reply) -> Result<(), SessionError> {
        if !self.authenticated {
            self.authenticated = expect("AUTH", reply, b"OK", true)?;
        } else if self.opened.is_none() {
            self.opened = Some(FlowOpened::from_reply(reply)?);
        } else {
            return Err(SessionError::OutOfOrder { what: "a reply without a request" });
        }
        Ok(())
    }

    pub fn finish(&self) -> Option<FlowOpened> {
        self.opened
    }
}

/// Where a full sync stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Registering on the control connection.
    Connect,
    /// Opening the flows.
    Flows,
    /// The flows deliver the snapshot.
    FullSync,
    /// Every flow has delivered FULLSYNC_END and the master has accepted SYNC.
    AllAtFullSyncEnd,
    /// STARTSTABLE is on its way.
    StartingStable,
    /// Every flow has delivered JOURNAL_OFFSET, EOF and its own token.
    TokensChecked,
    /// And the master has accepted STARTSTABLE.
    Done,
}

/// What moves a phase on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fact {
    Registered,
    AllFlowsOpen,
    AllAtFullSyncEnd,
    StartStableAsked,
    AllTokensMatch,
    StartStableAccepted,
}

impl Phase {
    /// The transition table.
    fn after(self, fact: Fact) -> Option<Phase> {
        match (self, fact) {
            (Phase::Connect, Fact::Registered) => Some(Phase::Flows),
            (Phase::Flows, Fact::AllFlowsOpen) => Some(Phase::FullSync),
            (Phase::FullSync, Fact::AllAtFullSyncEnd) => Some(Phase::AllAtFullSyncEnd),
            (Phase::AllAtFullSyncEnd, Fact::StartStableAsked) => Some(Phase::StartingStable),
            (Phase::StartingStable, Fact::AllTokensMatch) => Some(Phase::TokensChecked),
            (Phase::TokensChecked, Fact::StartStableAccepted) => Some(Phase::Done),
            _ => None,
        }
    }
}

/// What happened on one of the connections.
#[derive(Debug, Clone)]
pub enum Signal<'a> {
    Registered(Registration),
    FlowOpened {
        flow: FlowId,
        opened: FlowOpened,
    },
    /// Reply to `DFLY SYNC`.
    SyncReply(&'a Reply),
    FullSyncEnd(FlowId),
    /// Reply to `DFLY STARTSTABLE`.
    StartStableReply(&'a Reply),
    JournalOffset {
        flow: FlowId,
        lsn: Lsn,
    },
    Eof {
        flow: FlowId,
        token: [u8; 40],
    },
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Open `flows` flow connections with a [`FlowHandshake`] each.
    OpenFlows { flows: u32 },
    /// Begin to read all flows, then send `DFLY SYNC` on the control connection.
    SendSync,
    /// Send `DFLY STARTSTABLE` on the control connection, and keep reading all flows.
    SendStartStable,
    /// The snapshot is complete and proven so.
    Finish,
}

/// One full sync, over all its connections.
#[derive(Debug)]
pub struct Session {
    phase: Phase,
    registration: Option<Registration>,
    flows: Vec<FlowState>,
    sync_accepted: bool,
    start_stable_accepted: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct FlowState {
    opened: Option<FlowOpened>,
    full_sync_end: bool,
    journal_offset: Option<Lsn>,
    token_matches: bool,
}

impl Default for Session {
    fn default() -> Self {
        Self::new()
    }
}

impl Session {
    pub fn new() -> Self {
        Self {
            phase: Phase::Connect,
            registration: None,
            flows: Vec::new(),
            sync_accepted: false,
            start_stable_accepted: false,
        }
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    pub fn registration(&self) -> Option<&Registration> {
        self.registration.as_ref()
    }

    /// LSN of the next record of each flow, once the session is done.
    pub fn journal_offsets(&self) -> Option<Vec<Lsn>> {
        let done = self.phase == Phase::Done;
        self.flows.iter().map(|flow| flow.journal_offset.filter(|_| done)).collect()
    }

    /// Flows that have not delivered FULLSYNC_END yet.
    pub fn flows_in_snapshot(&self) -> usize {
        self.flows.iter().filter(|flow| !flow.full_sync_end).count()
    }

    /// The request of an action that sends one.
    pub fn request(&self, action: &Action) -> Option<Request<'_>> {
        let sync_id = self.registration.as_ref()?.sync_id.as_str();
        match action {
            Action::SendSync => Some(Request::Sync { sync_id }),
            Action::SendStartStable => Some(Request::StartStable { sync_id }),
            Action::OpenFlows { .. } | Action::Finish => None,
        }
    }

    /// Takes in what happened. At most one action follows.
    pub fn on(&mut self, signal: Signal<'_>) -> Result<Option<Action>, SessionError> {
        match signal {
            Signal::Registered(registration) => {
                self.advance(Fact::Registered)?;
                let flows = registration.flows;
                self.flows = vec![FlowState::default(); flows as usize];
                self.registration = Some(registration);
                Ok(Some(Action::OpenFlows { flows }))
            }
            Signal::FlowOpened { flow, opened } => self.flow_opened(flow, opened),
            Signal::SyncReply(reply) => {
                if self.phase != Phase::FullSync || self.sync_accepted {
                    return Err(SessionError::OutOfOrder { what: "a reply to DFLY SYNC" });
                }
                self.sync_accepted = expect("DFLY SYNC", reply, b"OK", true)?;
                self.ask_for_stable()
            }
            Signal::FullSyncEnd(flow) => {
                self.flow(flow, Phase::FullSync)?.full_sync_end = true;
                self.ask_for_stable()
            }
            Signal::StartStableReply(reply) => {
                if !matches!(self.phase, Phase::StartingStable | Phase::TokensChecked) || self.start_stable_accepted {
                    return Err(SessionError::OutOfOrder { what: "a reply to DFLY STARTSTABLE" });
                }
                self.start_stable_accepted = expect("DFLY STARTSTABLE", reply, b"OK", true)?;
                self.finish()
            }
            Signal::JournalOffset { flow, lsn } => {
                self.flow(flow, Phase::StartingStable)?.journal_offset = Some(lsn);
                Ok(None)
            }
            Signal::Eof { flow, token } => self.flow_ended(flow, token),
        }
    }

    fn flow_opened(&mut self, flow: FlowId, opened: FlowOpened) -> Result<Option<Action>, SessionError> {
        self.flow(flow, Phase::Flows)?.opened = Some(opened);
        let mut directives = self.flows.iter().map(|flow| flow.opened.map(|opened| opened.directive));
        if directives.clone().any(|directive| directive.is_none()) {
            return Ok(None);
        }
        if directives.any(|directive| directive == Some(Directive::Partial)) {
            return Err(SessionError::PartialInFullSync);
        }
        self.advance(Fact::AllFlowsOpen)?;
        Ok(Some(Action::SendSync))
    }

    fn flow_ended(&mut self, flow: FlowId, token: [u8; 40]) -> Result<Option<Action>, SessionError> {
        let state = self.flow(flow, Phase::StartingStable)?;
        if state.journal_offset.is_none() {
            return Err(SessionError::OutOfOrder { what: "EOF before JOURNAL_OFFSET" });
        }
        if state.opened.map(|opened| opened.eof_token) != Some(token) {
            return Err(SessionError::TokenMismatch { flow });
        }
        state.token_matches = true;
        self.finish()
    }

    /// STARTSTABLE may be sent when SYNC was accepted and all flows are at FULLSYNC_END; never before (wire 1.6).
    fn ask_for_stable(&mut self) -> Result<Option<Action>, SessionError> {
        if !self.sync_accepted || self.flows_in_snapshot() > 0 {
            return Ok(None);
        }
        self.advance(Fact::AllAtFullSyncEnd)?;
        self.advance(Fact::StartStableAsked)?;
        Ok(Some(Action::SendStartStable))
    }

    fn finish(&mut self) -> Result<Option<Action>, SessionError> {
        if self.phase == Phase::StartingStable && self.flows.iter().all(|flow| flow.token_matches) {
            self.advance(Fact::AllTokensMatch)?;
        }
        if self.phase == Phase::TokensChecked && self.start_stable_accepted {
            self.advance(Fact::StartStableAccepted)?;
            return Ok(Some(Action::Finish));
        }
        Ok(None)
    }

    /// The state of a flow on which something happens that belongs to `phase`.
    fn flow(&mut self, flow: FlowId, phase: Phase) -> Result<&mut FlowState, SessionError> {
        let in_phase = self.phase == phase;
        match self.flows.get_mut(flow.0 as usize) {
            Some(state) if in_phase => Ok(state),
            Some(_) => Err(SessionError::OutOfOrder { what: "something on a flow that cannot happen in this phase" }),
            None => Err(SessionError::OutOfOrder { what: "something on a flow that does not exist" }),
        }
    }

    fn advance(&mut self, fact: Fact) -> Result<(), SessionError> {
        self.phase = self.phase.after(fact).ok_or(SessionError::OutOfOrder { what: "a step out of its phase" })?;
        Ok(())
    }
}

/// Reads the reply to `DFLY REPLICAOFFSET`: LSN of the next record of each flow (0 if its shard has no journal yet).
pub fn replica_offsets(reply: &Reply, flows: u32) -> Result<Vec<Lsn>, SessionError> {
    const WHAT: &str = "DFLY REPLICAOFFSET";
    let unexpected = || SessionError::of_reply(WHAT, reply);
    match reply {
        Reply::Array(Some(items)) if items.len() == flows as usize => items
            .iter()
            .map(|item| match item {
                Reply::Integer(lsn) => u64::try_from(*lsn).map(Lsn).map_err(|_| unexpected()),
                _ => Err(unexpected()),
            })
            .collect(),
        _ => Err(unexpected()),
    }
}

/// `value` if the reply is this simple string.
fn expect<T>(what: &'static str, reply: &Reply, wanted: &[u8], value: T) -> Result<T, SessionError> {
    match reply {
        Reply::Simple(text) if text == wanted => Ok(value),
        other => Err(SessionError::of_reply(what, other)),
    }
}

fn text(reply: &Reply) -> Option<&str> {
    match reply {
        Reply::Simple(text) | Reply::Bulk(Some(text)) => std::str::from_utf8(text).ok(),
        _ => None,
    }
}

fn is_hex_id(id: &str) -> bool {
    id.len() == 40 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_sync_id(id: &str) -> bool {
    id.strip_prefix("SYNC").is_some_and(|k| (1..=20).contains(&k.len()) && k.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests;
