//! The live source as a [`Feed`]: flows of its world, and everything that a client may ask of it.

use super::LiveOptions;
use super::read;
use super::world::{World, now_ms};
use crate::lab::client::Reply;
use crate::lab::encode;
use crate::lab::flow::FlowWriter;
use crate::lab::generate::flow::{packed_for, prelude};
use crate::lab::generate::{Compression, Release, Spec};
use crate::lab::journal::marker;
use crate::lab::master::{ClientState, Feed, FlowFeed, Held, Identity};
use crate::lab::request::upper;
use crate::lab::rng::Rng;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of the journal taken at once, and of the snapshot.
const BLOCK_BYTES: usize = 64 << 10;
/// So many bytes of records are sent at once.
const DISPATCH_BYTES: usize = 1500;
/// A flow looks this often whether it was cancelled.
const PATIENCE: Duration = Duration::from_millis(50);
/// A marker follows the first record, and then one that comes so long after the last marker (wire 4.3).
const MARKER_EVERY: Duration = Duration::from_secs(4);

pub(super) struct LiveFeed {
    pub spec: Arc<Spec>,
    pub world: Arc<World>,
    pub options: LiveOptions,
    /// One a flow.
    pub eof_tokens: Vec<String>,
}

impl LiveFeed {
    fn flow(&self, flow: usize) -> LiveFlow {
        LiveFlow {
            spec: self.spec.clone(),
            world: self.world.clone(),
            options: self.options.clone(),
            flow,
            eof_token: self.eof_tokens[flow].clone(),
            tap: None,
            next_lsn: 0,
            by_sync: false,
            rng: Rng::new(self.spec.seed ^ 0x11fe ^ (flow as u64) << 32),
        }
    }
}

impl Feed for LiveFeed {
    fn identity(&self) -> Identity {
        let old = self.spec.release == Release::Old;
        let master_id = self.world.master_id();
        Identity {
            flows_count: self.spec.flows_count,
            version: Some(match (old, self.options.partial_by_sync) {
                (true, _) => 2,
                (_, true) => 4,
                _ => 5,
            }),
            lineage_id: (!old && !self.options.partial_by_sync).then(|| master_id.clone()),
            master_id,
            eof_tokens: self.eof_tokens.clone(),
            info: format!(
                "# Server\r\nredis_version:7.4.0\r\ndragonfly_version:{}\r\nredis_mode:standalone\r\narch_bits:64\r\n\
                 thread_count:{}\r\nmultiplexing_api:iouring\r\n",
                self.options.version.as_deref().unwrap_or(match (old, self.options.partial_by_sync) {
                    (true, _) => "df-v1.14.0",
                    (_, true) => "df-v1.30.3",
                    _ => "df-v1.40.1",
                }),
                self.spec.flows_count
            ),
        }
    }

    fn open(&self, flow: usize) -> Box<dyn FlowFeed> {
        Box::new(self.flow(flow))
    }

    fn open_partial(&self, flow: usize, lsn: u64) -> Option<Box<dyn FlowFeed>> {
        if !self.world.holds(flow, lsn) {
            return None;
        }
        let mut granted = self.flow(flow);
        (granted.next_lsn, granted.by_sync) = (lsn, self.partial_by_sync());
        Some(Box::new(granted))
    }

    fn partial_by_sync(&self) -> bool {
        self.spec.release == Release::Old || self.options.partial_by_sync
    }

    fn held(&self, db: u32, key: &[u8]) -> Option<Held> {
        self.world.look(|data| {
            let object = data.get(db, key)?;
            let string = match &object.value {
                super::Value::String(text) => Some(text.clone()),
                _ => None,
            };
            Some(Held { type_name: object.value.type_name().into(), string, expire_at_ms: object.expire_at_ms })
        })
    }

    fn keys_count(&self, db: u32) -> u64 {
        self.world.keys_count(db)
    }

    fn expiring_count(&self, db: u32) -> u64 {
        self.world.expiring_count(db)
    }

    fn replica_offsets(&self) -> Vec<u64> {
        self.world.wait_for_pause_of_all();
        self.world.next_lsns()
    }

    fn begin_takeover(&self) -> Option<Vec<u64>> {
        Some(self.world.begin_takeover())
    }

    fn end_takeover(&self) {
        self.world.unpause();
    }

    fn expire(&self) {
        self.world.expire();
    }

    fn replica_of(&self) -> Option<(String, u16)> {
        self.world.replica_of()
    }

    fn is_loading(&self) -> bool {
        self.world.is_loading()
    }

    fn is_silent_on_loading(&self) -> bool {
        self.world.is_silent_on_loading()
    }

    fn command(&self, client: &mut ClientState, request: &[Vec<u8>]) -> Option<Vec<u8>> {
        let words: Vec<String> = request.iter().take(4).map(|word| upper(word)).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let ok = || Reply::Status("OK".into());
        let reply = match (words.as_slice(), &mut client.queued) {
            (["PING" | "ECHO" | "SELECT" | "INFO" | "AUTH" | "QUIT", ..], None) => return None,
            (["MULTI"], None) => {
                client.queued = Some(Vec::new());
                ok()
            }
            (["DISCARD"], queued @ Some(_)) => {
                *queued = None;
                ok()
            }
            (["EXEC"], queued @ Some(_)) => {
                Reply::Array(self.world.run_all(client.db, &queued.take().unwrap_or_default()))
            }
            (_, Some(queued)) => {
                queued.push(request.to_vec());
                Reply::Status("QUEUED".into())
            }
            (["CLIENT", "PAUSE", ms, rest @ ..], None) => match ms.parse() {
                Ok(ms) => {
                    self.world.pause(Duration::from_millis(ms), rest != ["WRITE"]);
                    ok()
                }
                Err(_) => Reply::Error("ERR timeout is not an integer or out of range".into()),
            },
            (["CLIENT", "UNPAUSE"], None) => {
                self.world.unpause();
                ok()
            }
            (["CLIENT", "SETNAME" | "SETINFO", ..], None) => ok(),
            (["CONFIG", "GET", "REPLICATION_TIMEOUT"], None) if self.options.replication_timeout_ms.is_some() => {
                let ms = self.options.replication_timeout_ms.unwrap_or_default();
                let pair = ["replication_timeout".to_owned(), ms.to_string()];
                Reply::Array(pair.map(|text| Reply::Bulk(text.into_bytes())).into())
            }
            (["CLIENT", "ID"], None) => Reply::Int(1),
            (["HPEXPIRETIME", ..], None) if self.spec.release == Release::Old || self.options.partial_by_sync => {
                Reply::Error("ERR unknown command 'hpexpiretime'".into())
            }
            (_, None) => self.world.run(client.db, request),
        };
        let mut out = Vec::new();
        encode_reply(&reply, &mut out);
        Some(out)
    }
}

/// RESP2.
pub fn encode_reply(reply: &Reply, out: &mut Vec<u8>) {
    match reply {
        Reply::Status(text) => out.extend_from_slice(format!("+{text}\r\n").as_bytes()),
        Reply::Error(text) => out.extend_from_slice(format!("-{text}\r\n").as_bytes()),
        Reply::Int(value) => out.extend_from_slice(format!(":{value}\r\n").as_bytes()),
        Reply::Nil => out.extend_from_slice(b"$-1\r\n"),
        Reply::Bulk(bytes) => {
            out.extend_from_slice(format!("${}\r\n", bytes.len()).as_bytes());
            out.extend_from_slice(bytes);
            out.extend_from_slice(b"\r\n");
        }
        Reply::Array(replies) => {
            out.extend_from_slice(format!("*{}\r\n", replies.len()).as_bytes());
            replies.iter().for_each(|reply| encode_reply(reply, out));
        }
    }
}

struct LiveFlow {
    spec: Arc<Spec>,
    world: Arc<World>,
    options: LiveOptions,
    flow: usize,
    eof_token: String,
    /// The full sync that this flow is in.
    tap: Option<u64>,
    /// LSN of the next record to send.
    next_lsn: u64,
    /// A partial sync of an old release: the records come as blobs after DFLY SYNC (wire 1.7).
    by_sync: bool,
    rng: Rng,
}

impl LiveFlow {
    /// Sends records of the full sync, as a blob where that is worth it.
    fn send(&self, pending: &mut Vec<u8>, compress: bool, out: &mut FlowWriter) -> io::Result<()> {
        let compression = if compress { self.spec.compression } else { Compression::None };
        let sent = out.write(&packed_for(compression, pending)?);
        pending.clear();
        sent
    }

    /// All records from the next one on, as blobs.
    fn blobs(&mut self, pending: &mut Vec<u8>) -> io::Result<()> {
        let taken = self.world.take(self.flow, self.next_lsn, usize::MAX, Duration::ZERO);
        let taken = taken.ok_or_else(|| self.journal_lost())?;
        let starts = crate::lab::journal::entry_starts(&taken.bytes).unwrap_or_default();
        for (i, start) in starts.iter().enumerate() {
            let end = starts.get(i + 1).copied().unwrap_or(taken.bytes.len());
            if !self.options.blob_left_out || i > 0 {
                encode::journal_blob(pending, &taken.bytes[*start..end]);
            }
        }
        self.next_lsn = taken.next_lsn;
        Ok(())
    }

    /// Keys that a record of the full sync writes, and whose DEL is not recorded (wire 2.10).
    fn deleted_silently(&self, pending: &mut Vec<u8>) {
        let names = (0..).map(|i| format!("silent:{i}"));
        let own = names.filter(|name| encode::owner(name.as_bytes(), self.spec.flows_count) == self.flow);
        for name in own.take(self.spec.omitted_deletes_count) {
            let mut record = Vec::new();
            encode::journal_command(&mut record, 0, 1, &["MSET", &name, "must not stay"]);
            encode::journal_blob(pending, &record);
        }
    }

    fn journal_lost(&self) -> io::Error {
        io::Error::other(format!("flow {}: the journal no longer holds LSN {}", self.flow, self.next_lsn))
    }
}

impl FlowFeed for LiveFlow {
    fn snapshot(&mut self, out: &mut FlowWriter) -> io::Result<()> {
        let mut pending = Vec::new();
        prelude(&self.spec, self.flow, &mut pending);
        self.send(&mut pending, false, out)?;
        if !self.by_sync {
            let tap = self.world.begin_tap(self.flow);
            self.deleted_silently(&mut pending);
            self.send(&mut pending, true, out)?;
            self.tap = Some(tap);
            if let Some(rate) = self.options.snapshot_bytes_per_s {
                out.pace(rate);
            }
            let block =
                self.options.snapshot_bytes_per_s.map_or(BLOCK_BYTES, |rate| (rate / 100).clamp(64, 65_536) as usize);
            let mut done = false;
            while !done || out.is_held() {
                (pending, done) = self.world.step_tap(tap, block);
                if done && pending.is_empty() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                self.send(&mut pending, true, out)?;
            }
            out.full_speed();
        } else {
            self.blobs(&mut pending)?;
        }
        out.announce_full_sync_end();
        encode::full_sync_end(&mut pending);
        self.send(&mut pending, true, out)
    }

    fn finish(&mut self, out: &mut FlowWriter) -> io::Result<()> {
        let mut pending = Vec::new();
        if self.by_sync {
            self.blobs(&mut pending)?;
        }
        if let Some(tap) = self.tap.take() {
            (pending, self.next_lsn) = self.world.end_tap(tap);
        }
        encode::journal_offset(&mut pending, self.next_lsn);
        self.send(&mut pending, true, out)?;
        encode::eof(&mut pending);
        pending.extend_from_slice(self.eof_token.as_bytes());
        self.send(&mut pending, false, out)
    }

    fn stable(&mut self, out: &mut FlowWriter) -> io::Result<()> {
        let mut marked: Option<Instant> = None;
        loop {
            if out.is_cancelled() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let block = if marked.is_none() { 1 } else { BLOCK_BYTES };
            let taken = self.world.take(self.flow, self.next_lsn, block, PATIENCE);
            let mut taken = taken.ok_or_else(|| self.journal_lost())?;
            if taken.bytes.is_empty() {
                continue;
            }
            if let Some(time) = self.options.dispatch_after
                && taken.bytes.len() < DISPATCH_BYTES
            {
                std::thread::sleep(time);
                let more = self.world.take(self.flow, self.next_lsn, block, Duration::ZERO);
                taken = more.ok_or_else(|| self.journal_lost())?;
            }
            if let Some(max) = self.options.jitter_max {
                std::thread::sleep(Duration::from_micros(self.rng.below(max.as_micros() as u64 + 1)));
            }
            out.write(&taken.bytes[..taken.first_end])?;
            if marked.is_none_or(|at| at.elapsed() >= MARKER_EVERY) {
                out.write(&marker(self.next_lsn))?;
                marked = Some(Instant::now());
            }
            out.write(&taken.bytes[taken.first_end..])?;
            self.next_lsn = taken.next_lsn;
        }
    }
}

impl Drop for LiveFlow {
    fn drop(&mut self) {
        if let Some(tap) = self.tap {
            self.world.end_tap(tap);
        }
    }
}

/// Answers a question about the data at once, pause or not: for tests.
pub fn ask(world: &World, db: u32, words: &[&str]) -> Reply {
    let args: Vec<Vec<u8>> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
    let name = upper(&args[0]);
    world
        .look(|data| read::read(data, db, now_ms(), &name, &args))
        .map_or(Reply::Nil, |r| r.unwrap_or_else(Reply::Error))
}
