//! What the fault tests share: the program as a child with a deadline, a source made by hand, and what a server holds.
//!
//! A hang is a defect: every child is killed at its deadline, and the test fails saying so.
#![allow(dead_code)] // each test file uses a part

pub mod captures;
pub mod clustered;
pub mod grants;
pub mod hostile;
pub mod job;
pub mod refusals;

use df2redis::lab::LabError;
use df2redis::lab::client::{Client, Reply};
use df2redis::lab::encode as enc;
use df2redis::lab::flow::{Faults, FlowWriter, Gate};
use df2redis::lab::master::{Feed, FlowFeed, Held, Identity, Master, MasterOptions};
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Longest that a run may take in a test.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The program, started.
pub struct Running {
    child: Child,
    stdout: std::thread::JoinHandle<Vec<u8>>,
    stderr: std::thread::JoinHandle<Vec<u8>>,
    started: Instant,
}

/// What a run left behind.
pub struct Run {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub report: Value,
    pub elapsed: Duration,
}

impl Run {
    /// The exit code; -1 if a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// The report's message, or standard error if there is no report.
    pub fn message(&self) -> String {
        match self.report["outcome"]["message"].as_str() {
            Some(text) => text.to_owned(),
            None => self.stderr.clone(),
        }
    }

    #[track_caller]
    pub fn expect_code(&self, code: i32) -> &Self {
        assert_eq!(self.code(), code, "{}\n{}", self.message(), self.stderr);
        self
    }

    #[track_caller]
    pub fn expect_text(&self, part: &str) -> &Self {
        assert!(self.message().contains(part), "no \"{part}\" in: {}\n{}", self.message(), self.stderr);
        self
    }
}

/// The program with these arguments and nothing of the tester's environment.
pub fn program(args: &[&str]) -> Command {
    let mut command = Command::new(job::binary());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("DF2REDIS_") {
            command.env_remove(name);
        }
    }
    command.args(args);
    command
}

pub fn migrate_command(source_port: u16, target_port: u16, more: &[&str]) -> Command {
    let (source, target) = (format!("dragonfly://127.0.0.1:{source_port}"), format!("redis://127.0.0.1:{target_port}"));
    let mut command = program(&["migrate", "--source", &source, "--target", &target, "--output", "json"]);
    if !more.contains(&"--memory") {
        command.args(["--memory", "128MiB"]);
    }
    command.args(["--progress", "off"]).args(more);
    command
}

pub fn start(mut command: Command) -> Running {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    fn drain(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.read_to_end(&mut bytes).ok();
            bytes
        })
    }
    let (stdout, stderr) = (drain(child.stdout.take().unwrap()), drain(child.stderr.take().unwrap()));
    Running { child, stdout, stderr, started: Instant::now() }
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().expect("kill runs");
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be asked").is_none()
    }

    pub fn wait(self) -> Run {
        self.wait_for(DEADLINE)
    }

    /// Panics at the deadline, after killing the child.
    pub fn wait_for(mut self, deadline: Duration) -> Run {
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child can be asked") {
                break status;
            }
            if self.started.elapsed() > deadline {
                self.child.kill().ok();
                self.child.wait().ok();
                let stderr = self.stderr.join().unwrap_or_default();
                panic!("a hang: the program did not end within {deadline:?}\n{}", String::from_utf8_lossy(&stderr));
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let elapsed = self.started.elapsed();
        let (stdout, stderr) = (text(self.stdout.join().unwrap()), text(self.stderr.join().unwrap()));
        let report = serde_json::from_str(&stdout).unwrap_or(Value::Null);
        Run { status, stdout, stderr, report, elapsed }
    }
}

pub fn migrate(source_port: u16, target_port: u16, more: &[&str]) -> Run {
    start(migrate_command(source_port, target_port, more)).wait()
}

/// Starts a server of this kind, or says why the test skips.
pub fn server(kind: ServerKind) -> Option<Server> {
    server_with(kind, ServerOptions::default())
}

pub fn server_with(kind: ServerKind, options: ServerOptions) -> Option<Server> {
    match Server::start_kind(kind, options) {
        Err(error @ LabError::NoServer { .. }) => {
            eprintln!("skipped: {kind:?} cannot be started here: {error}");
            None
        }
        server => Some(server.unwrap()),
    }
}

/// The bytes of one flow, by phase.
#[derive(Clone, Default)]
pub struct FlowBytes {
    pub snapshot: Vec<u8>,
    /// Between STARTSTABLE and JOURNAL_OFFSET.
    pub finish: Vec<u8>,
    pub stable: Vec<u8>,
}

impl FlowBytes {
    pub fn new() -> Self {
        let mut flow = Self::default();
        enc::header(&mut flow.snapshot);
        flow
    }

    pub fn db(&mut self, db: u32) -> &mut Self {
        enc::select_db(&mut self.snapshot, db);
        self
    }

    pub fn string(&mut self, key: &[u8], value: &[u8]) -> &mut Self {
        self.string_until(key, value, None)
    }

    pub fn string_until(&mut self, key: &[u8], value: &[u8], expire_at_ms: Option<i64>) -> &mut Self {
        let attributes = enc::Attributes { expire_at_ms, ..Default::default() };
        enc::key_head(&mut self.snapshot, attributes, enc::types::STRING, key, false);
        enc::string(&mut self.snapshot, value, false);
        self
    }

    /// Any value whose bytes are made by `value`.
    pub fn object(&mut self, object_type: u8, key: &[u8], value: impl FnOnce(&mut Vec<u8>)) -> &mut Self {
        enc::key_head(&mut self.snapshot, enc::Attributes::default(), object_type, key, false);
        value(&mut self.snapshot);
        self
    }

    /// A list of packed nodes of at most `node_elements`.
    pub fn list(&mut self, key: &[u8], elements: &[Vec<u8>], node_elements: usize) -> &mut Self {
        self.object(enc::types::LIST_NODES, key, |out| list_body(out, elements, node_elements))
    }

    pub fn journal(&mut self, db: u32, args: &[impl AsRef<[u8]>]) -> &mut Self {
        let mut record = Vec::new();
        enc::journal_command(&mut record, db, 0, args);
        enc::journal_blob(&mut self.snapshot, &record);
        self
    }

    /// A journal blob after STARTSTABLE.
    pub fn late_journal(&mut self, db: u32, args: &[impl AsRef<[u8]>]) -> &mut Self {
        let mut record = Vec::new();
        enc::journal_command(&mut record, db, 0, args);
        enc::journal_blob(&mut self.finish, &record);
        self
    }
}

pub fn list_body(out: &mut Vec<u8>, elements: &[Vec<u8>], node_elements: usize) {
    enc::packed(out, elements.len().div_ceil(node_elements) as u64);
    for node in elements.chunks(node_elements) {
        let mut pack = enc::packed::Listpack::default();
        node.iter().for_each(|element| pack.push(element));
        enc::packed(out, enc::packed::PACKED_NODE);
        enc::raw_string(out, &pack.finish());
    }
}

/// A source made by hand. Each registration gets the next entry of `attempts`, the last one for ever.
pub struct Hand {
    flows_count: usize,
    attempts: Vec<Vec<FlowBytes>>,
    held: BTreeMap<(u32, Vec<u8>), Held>,
    release: String,
    opened: Vec<AtomicUsize>,
    asked: AtomicUsize,
    /// Questions for keys that are answered at once; the others wait.
    silent_behind: Option<(usize, Gate)>,
}

impl Hand {
    pub fn new(flows: Vec<FlowBytes>) -> Self {
        Self {
            flows_count: flows.len(),
            opened: (0..flows.len()).map(|_| AtomicUsize::new(0)).collect(),
            attempts: vec![flows],
            held: BTreeMap::new(),
            release: "df-v1.40.1".into(),
            asked: AtomicUsize::new(0),
            silent_behind: None,
        }
    }

    pub fn then(mut self, flows: Vec<FlowBytes>) -> Self {
        self.attempts.push(flows);
        self
    }

    /// What the source answers to EXISTS.
    pub fn holds(mut self, db: u32, key: &[u8]) -> Self {
        self.held.insert((db, key.to_vec()), Held { type_name: "string".into(), ..Held::default() });
        self
    }

    /// EXISTS for more keys than `count` is answered only once the gate is open.
    pub fn silent_behind(mut self, count: usize, gate: &Gate) -> Self {
        self.silent_behind = Some((count, gate.clone()));
        self
    }

    /// What the source answers to EXISTS, and to DUMP: a string.
    pub fn holds_string(mut self, db: u32, key: &[u8], value: &[u8]) -> Self {
        let string = Some(value.to_vec());
        self.held.insert((db, key.to_vec()), Held { type_name: "string".into(), string, ..Held::default() });
        self
    }

    /// Which release it says it is.
    pub fn release(mut self, release: &str) -> Self {
        self.release = release.into();
        self
    }

    pub fn start(self) -> Master {
        self.start_with(MasterOptions::default())
    }

    pub fn faulty(self, faults: Faults) -> Master {
        self.start_with(MasterOptions { faults, ..MasterOptions::default() })
    }

    pub fn start_with(self, options: MasterOptions) -> Master {
        Master::start(Arc::new(self), options).expect("a master starts")
    }
}

fn token(flow: usize) -> String {
    format!("{flow:040x}")
}

impl Feed for Hand {
    fn identity(&self) -> Identity {
        Identity {
            master_id: "0123456789abcdef0123456789abcdef01234567".into(),
            flows_count: self.flows_count,
            version: Some(5),
            lineage_id: Some("0123456789abcdef0123456789abcdef01234567".into()),
            eof_tokens: (0..self.flows_count).map(token).collect(),
            info: format!("# Server\r\nredis_version:7.4.0\r\ndragonfly_version:{}\r\n", self.release),
        }
    }

    fn open(&self, flow: usize) -> Box<dyn FlowFeed> {
        let attempt = self.opened[flow].fetch_add(1, Ordering::Relaxed).min(self.attempts.len() - 1);
        Box::new(HandFlow { bytes: self.attempts[attempt][flow].clone(), token: token(flow) })
    }

    fn held(&self, db: u32, key: &[u8]) -> Option<Held> {
        let before = self.asked.fetch_add(1, Ordering::Relaxed);
        while self.silent_behind.as_ref().is_some_and(|(count, gate)| before >= *count && !gate.is_open()) {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.held.get(&(db, key.to_vec())).cloned()
    }

    fn keys_count(&self, _db: u32) -> u64 {
        0
    }

    fn replica_offsets(&self) -> Vec<u64> {
        vec![100; self.flows_count]
    }
}

struct HandFlow {
    bytes: FlowBytes,
    token: String,
}

impl FlowFeed for HandFlow {
    fn snapshot(&mut self, out: &mut FlowWriter) -> io::Result<()> {
        out.write(&self.bytes.snapshot)?;
        out.announce_full_sync_end();
        let mut end = Vec::new();
        enc::full_sync_end(&mut end);
        out.write(&end)
    }

    fn finish(&mut self, out: &mut FlowWriter) -> io::Result<()> {
        let mut end = self.bytes.finish.clone();
        enc::journal_offset(&mut end, 100);
        enc::eof(&mut end);
        end.extend_from_slice(self.token.as_bytes());
        out.write(&end)
    }

    fn stable(&mut self, out: &mut FlowWriter) -> io::Result<()> {
        out.write(&self.bytes.stable)
    }
}

/// By database and key: type and contents (sets and hashes sorted).
pub type Contents = BTreeMap<(u32, Vec<u8>), (String, Vec<Vec<u8>>)>;

/// Everything that a server holds.
pub fn contents(client: &mut Client) -> Contents {
    let mut all = BTreeMap::new();
    for db in 0..16 {
        client.ask(&["SELECT", &db.to_string()]).unwrap();
        let keys = client.ask(&["KEYS", "*"]).unwrap();
        for key in keys.array().unwrap() {
            let key = key.bytes().unwrap().to_vec();
            let kind = client.ask(&[b"TYPE".as_slice(), &key]).unwrap().text().unwrap();
            let read: Vec<&[u8]> = match kind.as_str() {
                "string" => vec![b"GET", &key],
                "list" => vec![b"LRANGE", &key, b"0", b"-1"],
                "set" => vec![b"SMEMBERS", &key],
                "hash" => vec![b"HGETALL", &key],
                "zset" => vec![b"ZRANGE", &key, b"0", b"-1", b"WITHSCORES"],
                "stream" => vec![b"XLEN", &key],
                other => panic!("a key of type {other}"),
            };
            let mut values = flatten(&client.ask(&read).unwrap());
            match kind.as_str() {
                "set" => values.sort(),
                "hash" => {
                    let mut pairs: Vec<_> = values.chunks(2).map(<[_]>::to_vec).collect();
                    pairs.sort();
                    values = pairs.concat();
                }
                _ => {}
            }
            all.insert((db, key), (kind, values));
        }
    }
    client.ask(&["SELECT", "0"]).unwrap();
    all
}

/// The same with the entries of streams, their groups, consumers and pending entries, and with expiries.
pub fn whole_contents(client: &mut Client) -> Contents {
    let mut all = contents(client);
    for ((db, key), (kind, values)) in &mut all {
        client.ask(&["SELECT", &db.to_string()]).unwrap();
        if kind == "stream" {
            *values = flatten(&client.ask(&[b"XRANGE".as_slice(), key, b"-", b"+"]).unwrap());
            let full = [b"XINFO".as_slice(), b"STREAM", key, b"FULL", b"COUNT", b"0"];
            values.extend(stream_state(&client.ask(&full).unwrap()));
        }
        let expiry = client.ask(&[b"PEXPIRETIME".as_slice(), key]).unwrap().int().unwrap();
        if expiry > 0 {
            values.push(format!("expires at {expiry}").into_bytes());
        }
    }
    client.ask(&["SELECT", "0"]).unwrap();
    all
}

/// What `XINFO STREAM ... FULL` says of ids, groups, consumers and pending entries; not when somebody was seen.
fn stream_state(full: &Reply) -> Vec<Vec<u8>> {
    let mut state = Vec::new();
    for pair in full.array().unwrap().chunks(2) {
        let [name, value] = pair else { continue };
        match name.text().unwrap().as_str() {
            "last-generated-id" | "entries-added" | "max-deleted-entry-id" | "name" | "last-delivered-id" => {
                state.push(name.bytes().unwrap().to_vec());
                state.extend(flatten(value));
            }
            "groups" | "consumers" => value.array().unwrap().iter().for_each(|of| state.extend(stream_state(of))),
            // Id, consumer, time of delivery, deliveries; of a consumer's without its name.
            "pel" | "pending" => state.extend(value.array().unwrap().iter().flat_map(|entry| {
                let fields = entry.array().unwrap();
                let times = fields.len().saturating_sub(2);
                fields
                    .iter()
                    .enumerate()
                    .filter(|(at, _)| *at != times)
                    .flat_map(|(_, field)| flatten(field))
                    .collect::<Vec<_>>()
            })),
            _ => {}
        }
    }
    state
}

fn flatten(reply: &Reply) -> Vec<Vec<u8>> {
    match reply {
        Reply::Array(replies) => replies.iter().flat_map(flatten).collect(),
        Reply::Int(number) => vec![number.to_string().into_bytes()],
        other => vec![other.bytes().unwrap_or_default().to_vec()],
    }
}

/// `count` distinct texts.
pub fn texts(prefix: &str, count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|i| format!("{prefix}-{i:07}").into_bytes()).collect()
}

/// Bytes that no compression shortens much, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

fn signal(pid: u32, name: &str) {
    Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap();
}

/// The target's process, stopped for as long as this lives.
pub struct Stopped(u32);

impl Stopped {
    pub fn new(server: &Server) -> Self {
        let pid = server.pid().unwrap();
        signal(pid, "STOP");
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal(self.0, "CONT");
    }
}
