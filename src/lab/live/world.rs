//! The live source's state: its data, one journal a flow, the full syncs that run, and who may write now.
//!
//! In: commands, from the seeded writers and from ordinary connections alike. Out: replies; records in the journals, each
//! under the next LSN of its flow; for a full sync, every key's baseline before any record that changes it (wire 2.10).
//! All of it happens under one lock, so the data is at every moment what the journals say: it is the model.

use super::data::{DATABASES, Data};
use super::dump;
use super::exec::{Record, Run, written_keys};
use super::read;
use super::value::{Object, Value};
use crate::lab::client::Reply;
use crate::lab::encode::{self, journal_blob, journal_command, owner};
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Records kept of each flow's journal, whatever the backlog: those before are lost for every replica.
const RECORDS_KEPT_MAX: usize = 4 << 20;

pub struct World {
    state: Mutex<State>,
    /// Something was journaled, or writers may go on.
    changed: Condvar,
    flows_count: usize,
    lzf: bool,
}

struct State {
    data: Data,
    journals: Vec<Journal>,
    /// Full syncs: flow by flow.
    taps: Vec<Tap>,
    last_tap: u64,
    last_txid: u64,
    gate: Gate,
    master_id: String,
    restarts: u64,
    /// `REPLICAOF`: no replica is told, and registrations live on.
    replica_of: Option<(String, u16)>,
    /// A snapshot is being loaded.
    loading: bool,
    silent_on_loading: bool,
}

/// Who must wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Open,
    /// `CLIENT PAUSE`: until then; true: reads wait too.
    Paused(Instant, bool),
    /// `DFLY TAKEOVER` waits for its ACKs: every command waits.
    Takeover,
}

/// One flow's journal.
struct Journal {
    records: VecDeque<Box<[u8]>>,
    /// LSN of the first one.
    first_lsn: u64,
}

impl Journal {
    fn next_lsn(&self) -> u64 {
        self.first_lsn + self.records.len() as u64
    }

    fn push(&mut self, record: Box<[u8]>) {
        self.records.push_back(record);
        if self.records.len() > RECORDS_KEPT_MAX {
            self.records.pop_front();
            self.first_lsn += 1;
        }
    }
}

/// A full sync of one flow.
struct Tap {
    id: u64,
    flow: usize,
    /// Keys whose baseline was not sent.
    unsent: BTreeSet<(u32, Vec<u8>)>,
    /// Baselines and blobs to be sent.
    queue: Vec<u8>,
    /// Database that the last baseline was of.
    db: Option<u32>,
}

impl Tap {
    fn baseline(&mut self, db: u32, key: &[u8], object: &Object, lzf: bool) {
        if self.db != Some(db) {
            encode::select_db(&mut self.queue, db);
            self.db = Some(db);
        }
        dump::record(&mut self.queue, key, object, lzf);
    }

    /// The key is about to change: its baseline goes first.
    fn side_save(&mut self, data: &Data, db: u32, key: &[u8], lzf: bool) {
        if self.unsent.remove(&(db, key.to_vec()))
            && let Some(object) = data.get(db, key)
        {
            self.baseline(db, key, object, lzf);
        }
    }
}

/// Records taken from a journal.
pub struct Taken {
    pub bytes: Vec<u8>,
    /// LSN of the record behind the last one taken.
    pub next_lsn: u64,
    /// End of the first record in `bytes`.
    pub first_end: usize,
}

impl World {
    pub fn new(flows_count: usize, master_id: String, lzf: bool) -> Self {
        let journals = (0..flows_count).map(|_| Journal { records: VecDeque::new(), first_lsn: 1 }).collect();
        let state = State {
            data: Data::new(),
            journals,
            taps: Vec::new(),
            last_tap: 0,
            last_txid: 70_000,
            gate: Gate::Open,
            master_id,
            restarts: 0,
            replica_of: None,
            loading: false,
            silent_on_loading: false,
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), flows_count, lzf }
    }

    /// Puts a key that was there before any record.
    pub fn begin_with(&self, db: u32, key: &[u8], object: Object) {
        self.lock().data.put(db, key, object);
    }

    /// Runs one command as an ordinary client would. Writes wait while they are held.
    pub fn run(&self, db: u32, args: &[Vec<u8>]) -> Reply {
        let mut replies = self.run_all(db, std::slice::from_ref(&args.to_vec()));
        replies.pop().unwrap_or(Reply::Nil)
    }

    /// Runs commands as one transaction: they are next to each other and share a transaction id.
    pub fn run_all(&self, db: u32, commands: &[Vec<Vec<u8>>]) -> Vec<Reply> {
        let names: Vec<String> = commands.iter().map(|args| super::exec::word(args, 0)).collect();
        let writes = commands.iter().zip(&names).any(|(args, name)| written_keys(name, args).is_some());
        let mut state = self.enter(writes);
        let now_ms = now_ms();
        self.expire_due(&mut state, now_ms);
        state.last_txid += 1;
        let txid = state.last_txid;
        let many = commands.len() > 1;
        let run = |(args, name): (&Vec<Vec<u8>>, &String)| match written_keys(name, args) {
            Some(_) => self.write(&mut state, db, now_ms, name, args, many.then_some(txid)),
            None => self.read(&mut state, db, now_ms, name, args),
        };
        let replies = commands.iter().zip(&names).map(run).collect();
        drop(state);
        self.changed.notify_all();
        replies
    }

    /// Journals a record as it is, whatever the data is: what other releases record.
    pub fn record(&self, db: u32, args: &[&str], txid: u64) {
        let args = args.iter().map(|arg| arg.as_bytes().to_vec()).collect();
        self.journal(&mut self.lock(), &Record { db, args, global: false }, txid);
        self.changed.notify_all();
    }

    /// What changes nothing that a client wrote; some of it is journaled all the same.
    fn read(&self, state: &mut State, db: u32, now_ms: i64, name: &str, args: &[Vec<u8>]) -> Reply {
        match name {
            "SCRIPT" if super::exec::word(args, 1) == "LOAD" => {
                let record = Record { db, args: args.to_vec(), global: false };
                self.journal(state, &record, 0);
                return Reply::Bulk(vec![b'5'; 40]);
            }
            // Each shard is told to say that it was reached.
            "WAIT" => {
                state.journals.iter_mut().for_each(|journal| journal.push(Box::new([13])));
                return Reply::Int(1);
            }
            _ => {}
        }
        let reply = match read::read(&state.data, db, now_ms, name, args) {
            Some(outcome) => outcome.unwrap_or_else(Reply::Error),
            None => Reply::Error(format!("ERR unknown command '{}'", name.to_lowercase())),
        };
        // Whoever looks into a collection whose members have all expired deletes it, paused or not.
        if let Some(key) = args.get(1).filter(|_| read::looks_into(name))
            && state.data.get(db, key).is_some_and(|object| object.value.is_hollow(now_ms))
        {
            let flow = owner(key, self.flows_count);
            for tap in state.taps.iter_mut().filter(|tap| tap.flow == flow) {
                tap.side_save(&state.data, db, key, self.lzf);
            }
            state.data.remove(db, key);
            let record = Record { db, args: vec![b"DEL".to_vec(), key.clone()], global: false };
            self.journal(state, &record, 0);
        }
        reply
    }

    fn write(&self, state: &mut State, db: u32, now_ms: i64, name: &str, args: &[Vec<u8>], txid: Option<u64>) -> Reply {
        let keys = written_keys(name, args).unwrap_or_default();
        for tap in &mut state.taps {
            for key in &keys {
                if owner(key, self.flows_count) != tap.flow {
                    continue;
                }
                tap.side_save(&state.data, db, key, self.lzf);
                if name == "MOVE"
                    && let Ok(to) = super::exec::integer(args.get(2).map_or(b"", Vec::as_slice))
                {
                    tap.side_save(&state.data, to as u32, key, self.lzf);
                }
            }
        }
        let mut run = Run::new(&mut state.data, db, now_ms, self.flows_count);
        let outcome = run.write(name, args);
        let records = run.records;
        // A command on several flows is a transaction, like a flush; one on a single flow has none.
        let txid =
            txid.unwrap_or(if records.len() > 1 || records.iter().any(|r| r.global) { state.last_txid } else { 0 });
        for record in records {
            self.journal(state, &record, txid);
        }
        outcome.unwrap_or_else(Reply::Error)
    }

    fn journal(&self, state: &mut State, record: &Record, txid: u64) {
        let key_at = match record.args[0].as_slice() {
            b"XGROUP" | b"LMPOP" | b"ZMPOP" => 2,
            _ => 1,
        };
        let flows = match record.args.get(key_at) {
            _ if record.global => 0..self.flows_count,
            Some(key) if !record.args[0].eq_ignore_ascii_case(b"SCRIPT") => {
                let flow = owner(key, self.flows_count);
                flow..flow + 1
            }
            _ => 0..1,
        };
        let mut bytes = Vec::new();
        journal_command(&mut bytes, record.db, txid, &record.args);
        for flow in flows {
            state.journals[flow].push(bytes.clone().into());
            for tap in state.taps.iter_mut().filter(|tap| tap.flow == flow) {
                if record.global {
                    tap.unsent.retain(|(db, _)| record.args[0] == b"FLUSHDB" && *db != record.db);
                }
                journal_blob(&mut tap.queue, &bytes);
            }
        }
    }

    /// Keys whose time has come are deleted, with a record each.
    fn expire_due(&self, state: &mut State, now_ms: i64) {
        // A master that is paused expires nothing.
        if matches!(state.gate, Gate::Paused(until, _) if Instant::now() < until) {
            return;
        }
        while let Some((db, key)) = state.data.due(now_ms) {
            let flow = owner(&key, self.flows_count);
            for tap in state.taps.iter_mut().filter(|tap| tap.flow == flow) {
                tap.side_save(&state.data, db, &key, self.lzf);
            }
            state.data.remove(db, &key);
            let record = Record { db, args: vec![b"DEL".to_vec(), key], global: false };
            self.journal(state, &record, 0);
        }
    }

    /// What a master does in the background, and `DFLY EXPIRE`.
    pub fn expire(&self) {
        let mut state = self.lock();
        self.expire_due(&mut state, now_ms());
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until this kind of command may run.
    fn enter(&self, writes: bool) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        loop {
            let wait = match state.gate {
                Gate::Open => return state,
                Gate::Paused(_, reads) if !writes && !reads => return state,
                Gate::Paused(until, _) => until.saturating_duration_since(Instant::now()),
                Gate::Takeover => Duration::from_secs(1),
            };
            if wait.is_zero() {
                state.gate = Gate::Open;
                return state;
            }
            state = self.wait(state, wait);
        }
    }

    /// `CLIENT PAUSE`. It ends by itself.
    pub fn pause(&self, time: Duration, reads_too: bool) {
        self.lock().gate = Gate::Paused(Instant::now() + time, reads_too);
    }

    /// `CLIENT UNPAUSE`.
    pub fn unpause(&self) {
        self.lock().gate = Gate::Open;
        self.changed.notify_all();
    }

    /// `CLIENT PAUSE ... ALL` holds every command of a client, DFLY too.
    pub fn wait_for_pause_of_all(&self) {
        let mut state = self.lock();
        while let Gate::Paused(until, true) = state.gate
            && let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
        {
            state = self.wait(state, left);
        }
    }

    /// Whether writes are held now.
    pub fn is_held(&self) -> bool {
        match self.lock().gate {
            Gate::Open => false,
            Gate::Paused(until, _) => Instant::now() < until,
            Gate::Takeover => true,
        }
    }

    /// `DFLY TAKEOVER` begins: every command waits, a PING is journaled on every flow. Returns the LSNs to be acknowledged.
    pub fn begin_takeover(&self) -> Vec<u64> {
        let mut state = self.lock();
        state.gate = Gate::Takeover;
        state.journals.iter_mut().for_each(|journal| journal.push(Box::new([13])));
        let lsns = state.journals.iter().map(Journal::next_lsn).collect();
        drop(state);
        self.changed.notify_all();
        lsns
    }

    /// Waits for a record behind `lsn` and takes about `bytes_max` bytes of them. `None`: the journal no longer holds it.
    pub fn take(&self, flow: usize, lsn: u64, bytes_max: usize, patience: Duration) -> Option<Taken> {
        let mut state = self.lock();
        if state.journals[flow].next_lsn() <= lsn {
            state = self.wait(state, patience);
        }
        let journal = &state.journals[flow];
        let skip = usize::try_from(lsn.checked_sub(journal.first_lsn)?).ok()?;
        if lsn > journal.next_lsn() {
            return None;
        }
        let mut taken = Taken { bytes: Vec::new(), next_lsn: lsn, first_end: 0 };
        for record in journal.records.range(skip..) {
            taken.bytes.extend_from_slice(record);
            taken.next_lsn += 1;
            if taken.next_lsn == lsn + 1 {
                taken.first_end = taken.bytes.len();
            }
            if taken.bytes.len() >= bytes_max {
                break;
            }
        }
        Some(taken)
    }

    /// LSN of the next record of each flow.
    pub fn next_lsns(&self) -> Vec<u64> {
        self.lock().journals.iter().map(Journal::next_lsn).collect()
    }

    /// Whether the journal holds everything from `lsn` on.
    pub fn holds(&self, flow: usize, lsn: u64) -> bool {
        let state = self.lock();
        let journal = &state.journals[flow];
        lsn >= journal.first_lsn && lsn <= journal.next_lsn()
    }

    /// A full sync of one flow begins now.
    pub fn begin_tap(&self, flow: usize) -> u64 {
        let mut guard = self.lock();
        let state = &mut *guard;
        state.last_tap += 1;
        let unsent = state.data.iter().filter(|(_, key, _)| owner(key, self.flows_count) == flow);
        let unsent = unsent.map(|(db, key, _)| (db, key.clone())).collect();
        state.taps.push(Tap { id: state.last_tap, flow, unsent, queue: Vec::new(), db: None });
        state.last_tap
    }

    /// The next part of the snapshot; true: every baseline was sent.
    pub fn step_tap(&self, id: u64, bytes_max: usize) -> (Vec<u8>, bool) {
        let mut guard = self.lock();
        let State { data, taps, .. } = &mut *guard;
        let Some(tap) = taps.iter_mut().find(|tap| tap.id == id) else { return (Vec::new(), true) };
        while tap.queue.len() < bytes_max {
            let Some((db, key)) = tap.unsent.pop_first() else { break };
            if let Some(object) = data.get(db, &key) {
                tap.baseline(db, &key, object, self.lzf);
            }
        }
        (std::mem::take(&mut tap.queue), tap.unsent.is_empty())
    }

    /// STARTSTABLE: the last blobs, and the LSN from which the journal goes on.
    pub fn end_tap(&self, id: u64) -> (Vec<u8>, u64) {
        let mut state = self.lock();
        let Some(at) = state.taps.iter().position(|tap| tap.id == id) else { return (Vec::new(), 1) };
        let tap = state.taps.swap_remove(at);
        (tap.queue, state.journals[tap.flow].next_lsn())
    }

    /// The process was killed and started again with the data that it had: another id, journals from 1 on.
    pub fn restart(&self) {
        let mut state = self.lock();
        state.restarts += 1;
        let restarts = state.restarts;
        state.master_id = format!("{:040x}", (u128::from(restarts) << 64) + 0xdf);
        state.taps.clear();
        state.journals.iter_mut().for_each(|journal| *journal = Journal { records: VecDeque::new(), first_lsn: 1 });
        state.gate = Gate::Open;
    }

    /// Everything is gone, and nothing is recorded: what a process that finds no snapshot begins with.
    pub fn forget_all(&self) {
        self.lock().data = Data::new();
    }

    /// `REPLICAOF host port`, up to where the flag changes; `None`: `REPLICAOF NO ONE`.
    pub fn set_replica_of(&self, master: Option<(&str, u16)>) {
        self.lock().replica_of = master.map(|(host, port)| (host.to_owned(), port));
    }

    pub fn replica_of(&self) -> Option<(String, u16)> {
        self.lock().replica_of.clone()
    }

    /// What a replica's full sync, and `DFLY LOAD`, do: a FLUSHALL that is recorded like any other, then keys that are not.
    pub fn replace_all(&self, keys: &[(&str, &str)]) {
        self.run(0, &[b"FLUSHALL".to_vec()]);
        for (key, text) in keys {
            self.begin_with(0, key.as_bytes(), Object::new(Value::String(text.as_bytes().to_vec())));
        }
    }

    pub fn set_loading(&self, loading: bool) {
        self.lock().loading = loading;
    }

    /// `INFO PERSISTENCE` is answered with an error.
    pub fn set_silent_on_loading(&self, silent: bool) {
        self.lock().silent_on_loading = silent;
    }

    pub fn is_silent_on_loading(&self) -> bool {
        self.lock().silent_on_loading
    }

    pub fn is_loading(&self) -> bool {
        self.lock().loading
    }

    pub fn master_id(&self) -> String {
        self.lock().master_id.clone()
    }

    pub fn keys_count(&self, db: u32) -> u64 {
        self.lock().data.len(db) as u64
    }

    pub fn expiring_count(&self, db: u32) -> u64 {
        self.lock().data.expiring_count(db) as u64
    }

    pub fn databases_count(&self) -> u32 {
        DATABASES
    }

    /// Looks at the data, which stands still meanwhile.
    pub fn look<T>(&self, look: impl FnOnce(&Data) -> T) -> T {
        self.expire();
        look(&self.lock().data)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, time).unwrap_or_else(std::sync::PoisonError::into_inner).0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Unix time.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as i64)
}
