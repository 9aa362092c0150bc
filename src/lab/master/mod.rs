//! A Dragonfly-like master front: handshake, registrations and phases as dragonfly-wire.md 1 describes them.
//!
//! In: a [`Feed`] that knows the data; connections of a replica. Out: replies on the main connection, the feed's bytes
//! on the flows. It is strict: what would crash, freeze or confuse a real master is kept as a [`Violation`], which tests
//! assert to be none. Any of a registration's N+1 connections closing cancels it and shuts its flow sockets.
//! A partial sync is granted, as from 1.35 on, where the feed still has the journal from the LSN asked for.

mod registration;
mod rights;
mod session;

use super::LabError;
use super::flow::{Faults, FlowWriter};
pub use registration::AckSeen;
use registration::Registration;
pub use rights::Rights;
use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

/// Who a simulated master says it is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// 40 hex characters.
    pub master_id: String,
    pub flows_count: usize,
    /// `None`: a 3-element reply, as before 1.4.
    pub version: Option<u32>,
    /// `Some`: a 5-element reply, as since 1.40.
    pub lineage_id: Option<String>,
    /// One a flow, 40 hex characters each.
    pub eof_tokens: Vec<String>,
    /// Reply to INFO.
    pub info: String,
}

/// What a key holds, for plain commands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Reply to TYPE.
    pub type_name: String,
    /// Value of a string, where it is known.
    pub string: Option<Vec<u8>>,
    pub expire_at_ms: Option<i64>,
}

/// What a connection of an ordinary client keeps.
#[derive(Clone, Debug, Default)]
pub struct ClientState {
    pub db: u32,
    /// Commands after MULTI.
    pub queued: Option<Vec<Vec<Vec<u8>>>>,
}

/// The data behind a master.
pub trait Feed: Send + Sync + 'static {
    fn identity(&self) -> Identity;
    /// A fresh stream of one flow, for one registration.
    fn open(&self, flow: usize) -> Box<dyn FlowFeed>;
    /// A stream of the flow's journal from `lsn` on (raw entries, only `stable` is called), where the feed can give it.
    fn open_partial(&self, _flow: usize, _lsn: u64) -> Option<Box<dyn FlowFeed>> {
        None
    }
    /// What the key holds at the end.
    fn held(&self, db: u32, key: &[u8]) -> Option<Held>;
    /// For DBSIZE and INFO.
    fn keys_count(&self, db: u32) -> u64;
    /// Reply to `DFLY REPLICAOFFSET`, one number a flow.
    fn replica_offsets(&self) -> Vec<u64>;
    /// A partial sync goes through `DFLY SYNC` and blobs, as before 1.35; else STARTSTABLE follows at once.
    fn partial_by_sync(&self) -> bool {
        false
    }
    /// Keys with an expiry, for INFO.
    fn expiring_count(&self, _db: u32) -> u64 {
        0
    }
    /// The whole reply to an ordinary command (also CLIENT PAUSE and the like); `None`: the master itself knows better.
    fn command(&self, _client: &mut ClientState, _request: &[Vec<u8>]) -> Option<Vec<u8>> {
        None
    }
    /// `DFLY EXPIRE`.
    fn expire(&self) {}
    /// `DFLY TAKEOVER`: holds all commands and journals a PING; the LSNs that must be acknowledged. `None`: not possible.
    fn begin_takeover(&self) -> Option<Vec<u64>> {
        None
    }
    /// The takeover failed: commands go on.
    fn end_takeover(&self) {}
    /// Host and port of the master that the source was made a replica of (`REPLICAOF`), if it was.
    fn replica_of(&self) -> Option<(String, u16)> {
        None
    }
    /// A snapshot is being loaded.
    fn is_loading(&self) -> bool {
        false
    }
    /// `INFO PERSISTENCE` is answered with an error.
    fn is_silent_on_loading(&self) -> bool {
        false
    }
}

/// One flow's bytes, part by part. Each part runs on a thread of its own flow and may block.
pub trait FlowFeed: Send {
    /// Bytes of the whole flow where they are known beforehand.
    fn total_bytes(&self) -> Option<u64> {
        None
    }
    /// Header to FULLSYNC_END and what follows it before STARTSTABLE. Calls `announce_full_sync_end` at the right place.
    fn snapshot(&mut self, out: &mut FlowWriter) -> io::Result<()>;
    /// After STARTSTABLE: last blobs, JOURNAL_OFFSET, EOF, token.
    fn finish(&mut self, out: &mut FlowWriter) -> io::Result<()>;
    /// The journal after the token. The connection stays open when it returns.
    fn stable(&mut self, out: &mut FlowWriter) -> io::Result<()>;
}

/// How a master behaves, besides its data.
#[derive(Clone, Debug)]
pub struct MasterOptions {
    pub listen: String,
    pub user: Option<String>,
    /// `Some`: every connection must AUTH first.
    pub password: Option<String>,
    /// `Some`: what every connection that has logged in may run at first.
    pub rights: Option<Rights>,
    pub faults: Faults,
    /// Answers given in place of the right ones.
    pub scripted: Vec<Scripted>,
    /// Records of each flow, counted back from its end, from which a partial sync may begin; `None`: all.
    pub backlog_records: Option<u64>,
    /// Flows that answer FULL to every LSN, so that the answers are mixed.
    pub never_partial: Vec<usize>,
    /// Registrations after this many find another process (another master id), as after a restart.
    pub new_id_after: Option<u64>,
    /// Connections of ordinary clients that were idle for so long are closed (Dragonfly's `timeout`).
    pub idle_max: Option<Duration>,
}

impl Default for MasterOptions {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:0".to_owned(),
            user: None,
            password: None,
            rights: None,
            faults: Faults::default(),
            scripted: Vec::new(),
            backlog_records: None,
            never_partial: Vec::new(),
            new_id_after: None,
            idle_max: None,
        }
    }
}

/// A reply forced on requests whose text (words joined by blanks, upper case) begins with `request`.
#[derive(Clone, Debug)]
pub struct Scripted {
    pub request: String,
    /// The whole reply, `\r\n` included; empty: close the connection.
    pub reply: Vec<u8>,
    /// How often, before the right answers are given again.
    pub times: u32,
}

/// What a real master would not have forgiven.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("REPLCONF CLIENT-VERSION on a connection without a live registration (wire 1.2: crashes the master)")]
    VersionBeforeCapa,
    #[error(
        "DFLY FLOW without REPLCONF CLIENT-ID: CLUSTER NODES of an emulated cluster would show a node without an id"
    )]
    Nameless,
    #[error("DFLY SYNC with {open} of {flows_count} flows open")]
    SyncBeforeFlows { open: usize, flows_count: usize },
    #[error("DFLY SYNC twice")]
    SyncTwice,
    #[error("DFLY STARTSTABLE before DFLY SYNC")]
    StableBeforeSync,
    #[error("DFLY SYNC although flow {flow} answered PARTIAL (wire 1.7: refused from 1.40 on)")]
    SyncAfterPartial { flow: usize },
    #[error("DFLY STARTSTABLE before flow {flow} sent FULLSYNC_END (wire 1.6: holds the whole master)")]
    StableBeforeFullSyncEnd { flow: usize },
    #[error("{request:?} on flow {flow}, where only REPLCONF ACK n is allowed (wire 1.9)")]
    NoAckOnFlow { flow: usize, request: String },
    #[error("a request that is no RESP and no inline command: {reason}")]
    Malformed { reason: String },
}

/// A running master. Dropping it stops it.
pub struct Master {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<std::thread::JoinHandle<()>>,
}

impl Master {
    /// Listens and serves on threads of its own.
    pub fn start(feed: Arc<dyn Feed>, options: MasterOptions) -> Result<Self, LabError> {
        let fail = |source| LabError::Listen { address: options.listen.clone(), source };
        let listener = TcpListener::bind(&options.listen).map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        let shared = Arc::new(Shared {
            identity: feed.identity(),
            feed,
            scripted: Mutex::new(options.scripted.clone()),
            rights: Mutex::new(options.rights.clone()),
            options,
            state: Mutex::default(),
            stopping: AtomicBool::new(false),
            connections_count: AtomicU64::new(0),
            finished_count: AtomicU64::new(0),
            partial_count: AtomicU64::new(0),
            address: OnceLock::from(address),
        });
        let accepted = shared.clone();
        let accepting = Some(std::thread::spawn(move || accept(&listener, &accepted)));
        Ok(Self { shared, address, accepting })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// What the clients did wrong so far.
    pub fn violations(&self) -> Vec<Violation> {
        self.shared.state().violations.clone()
    }

    /// Connections accepted so far.
    pub fn connections_count(&self) -> u64 {
        self.shared.connections_count.load(Ordering::Relaxed)
    }

    /// Registrations (sync ids) given out so far.
    pub fn registrations_count(&self) -> u64 {
        self.shared.state().last_sync_id
    }

    /// Registrations that live.
    pub fn replicas_count(&self) -> usize {
        self.shared.state().registrations.len()
    }

    /// Registrations whose flows were all sent up to their tokens.
    pub fn finished_count(&self) -> u64 {
        self.shared.finished_count.load(Ordering::Acquire)
    }

    /// Registrations that went on by a partial sync.
    pub fn partial_count(&self) -> u64 {
        self.shared.partial_count.load(Ordering::Acquire)
    }

    /// The process has ended by itself (`DFLY TAKEOVER`), or was stopped.
    pub fn is_stopped(&self) -> bool {
        self.shared.stopping.load(Ordering::Acquire)
    }

    /// Closes every connection, as a network does; new ones are accepted.
    pub fn cut_all(&self) {
        self.shared.close_all();
    }

    /// Closes one flow's connection of the newest registration.
    pub fn cut_flow(&self, flow: usize) {
        if let Some(registration) = self.shared.newest() {
            registration.cut(flow);
        }
    }

    /// Sends nothing on one flow of the newest registration for so long.
    pub fn stall_flow(&self, flow: usize, time: Duration) {
        if let Some(flow) = self.shared.newest().and_then(|registration| registration.flows.get(flow).cloned()) {
            flow.stall_ms.store(time.as_millis() as u64, Ordering::Relaxed);
        }
    }

    /// Requests of main and plain connections so far, words joined by blanks; the first 10,000.
    pub fn requests(&self) -> Vec<String> {
        self.shared.state().requests.clone()
    }

    /// Last `REPLCONF ACK` of each flow of the newest registration.
    pub fn acks(&self) -> Vec<Option<u64>> {
        let registration = self.shared.newest();
        registration.map(|r| r.acks()).unwrap_or_default()
    }

    /// How many `REPLCONF ACK` came on each flow of the newest registration.
    pub fn acks_count(&self) -> Vec<u64> {
        let registration = self.shared.newest();
        registration.map(|r| r.acks_count()).unwrap_or_default()
    }

    /// Every `REPLCONF ACK` of the newest registration (the first 100,000).
    pub fn acks_log(&self) -> Vec<AckSeen> {
        let registration = self.shared.newest();
        registration.map(|r| r.acks_log()).unwrap_or_default()
    }

    /// Bytes sent on each flow of the newest registration.
    pub fn sent_bytes(&self) -> Vec<u64> {
        let registration = self.shared.newest();
        registration.map(|r| r.flows.iter().map(|f| f.sent_bytes.load(Ordering::Relaxed)).collect()).unwrap_or_default()
    }

    /// Closes the listener and every connection, as if the process had been killed.
    pub fn stop(&mut self) {
        if !self.shared.stopping.swap(true, Ordering::AcqRel) {
            // Wakes the accepting thread.
            TcpStream::connect(self.address).ok();
        }
        if let Some(thread) = self.accepting.take() {
            thread.join().ok();
        }
        self.shared.close_all();
    }

    /// Waits as long as the master runs: for the command line.
    pub fn wait(mut self) {
        if let Some(thread) = self.accepting.take() {
            thread.join().ok();
        }
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What all connections share.
struct Shared {
    identity: Identity,
    feed: Arc<dyn Feed>,
    options: MasterOptions,
    scripted: Mutex<Vec<Scripted>>,
    rights: Mutex<Option<Rights>>,
    state: Mutex<State>,
    stopping: AtomicBool,
    connections_count: AtomicU64,
    finished_count: AtomicU64,
    partial_count: AtomicU64,
    address: OnceLock<SocketAddr>,
}

#[derive(Default)]
struct State {
    last_sync_id: u64,
    last_connection: u64,
    registrations: HashMap<u64, Arc<Registration>>,
    /// Of those that opened a flow.
    newest: Option<Arc<Registration>>,
    connections: HashMap<u64, TcpStream>,
    violations: Vec<Violation>,
    requests: Vec<String>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn newest(&self) -> Option<Arc<Registration>> {
        self.state().newest.clone()
    }

    fn violation(&self, violation: Violation) {
        self.state().violations.push(violation);
    }

    /// Who the registration finds.
    fn master_id(&self, sync_id: u64) -> String {
        let id = &self.identity.master_id;
        match self.options.new_id_after {
            Some(count) if sync_id > count => id.chars().rev().collect(),
            _ => id.clone(),
        }
    }

    /// Who whoever asks now finds.
    fn process_now(&self) -> String {
        let registrations = self.state().last_sync_id;
        self.master_id(registrations + 1)
    }

    /// A stream from `lsn` on, where a partial sync is to be granted.
    fn partial(&self, flow: usize, sync_id: u64, master_id: &[u8], lsn: u64) -> Option<Box<dyn FlowFeed>> {
        let end = self.feed.replica_offsets().get(flow).copied()?;
        let first = self.options.backlog_records.map_or(0, |count| end.saturating_sub(count));
        let held = lsn >= first && lsn <= end && !self.options.never_partial.contains(&flow);
        let same = self.master_id(sync_id).as_bytes() == master_id && self.identity.master_id.as_bytes() == master_id;
        if held && same { self.feed.open_partial(flow, lsn) } else { None }
    }

    /// A new registration.
    fn register(&self) -> Arc<Registration> {
        let mut state = self.state();
        state.last_sync_id += 1;
        let registration = Arc::new(Registration::new(state.last_sync_id, self.identity.flows_count));
        state.registrations.insert(registration.sync_id, registration.clone());
        registration
    }

    /// A flow was opened: it is no mere question.
    fn in_use(&self, registration: &Arc<Registration>) {
        self.state().newest = Some(registration.clone());
    }

    fn registration(&self, sync_id: u64) -> Option<Arc<Registration>> {
        self.state().registrations.get(&sync_id).cloned()
    }

    fn cancel(&self, registration: &Registration) {
        self.state().registrations.remove(&registration.sync_id);
        registration.cancel();
    }

    /// The scripted reply to `request`, if one is due.
    fn scripted(&self, request: &str) -> Option<Vec<u8>> {
        let mut scripted = self.scripted.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let found = scripted.iter_mut().find(|s| s.times > 0 && request.starts_with(&s.request))?;
        found.times -= 1;
        Some(found.reply.clone())
    }

    /// Forced replies that are still due.
    fn scripted_count(&self) -> usize {
        let scripted = self.scripted.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        scripted.iter().filter(|s| s.times > 0).count()
    }

    /// Live registrations, the oldest first.
    fn registrations(&self) -> Vec<Arc<Registration>> {
        let mut all: Vec<_> = self.state().registrations.values().cloned().collect();
        all.sort_by_key(|registration| registration.sync_id);
        all
    }

    /// The process ends: nothing is accepted any more, every connection is closed.
    fn die(&self) {
        self.stopping.store(true, Ordering::Release);
        self.close_all();
        if let Some(address) = self.address.get() {
            // Wakes the accepting thread, which closes the listener.
            TcpStream::connect(address).ok();
        }
    }

    fn close_all(&self) {
        let (registrations, connections) = {
            let mut state = self.state();
            (std::mem::take(&mut state.registrations), std::mem::take(&mut state.connections))
        };
        for registration in registrations.values() {
            registration.cancel();
        }
        for stream in connections.values() {
            stream.shutdown(Shutdown::Both).ok();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept() else { continue };
        if shared.stopping.load(Ordering::Acquire) {
            return;
        }
        let Ok(second) = stream.try_clone() else { continue };
        shared.connections_count.fetch_add(1, Ordering::Relaxed);
        let id = {
            let mut state = shared.state();
            state.last_connection += 1;
            let id = state.last_connection;
            state.connections.insert(id, second);
            id
        };
        let shared = shared.clone();
        std::thread::spawn(move || {
            session::serve(&shared, stream);
            if let Some(stream) = shared.state().connections.remove(&id) {
                stream.shutdown(Shutdown::Both).ok();
            }
        });
    }
}

#[cfg(test)]
mod tests;
