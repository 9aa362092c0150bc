//! One connection to a target node: batches waiting, sent and acknowledged.
//!
//! In: closed batches, completions of sends, reply bytes. Out: chains of whole batches to send, acknowledged batches,
//! and the command that an error reply belongs to. Invariants: at most one chain is in the kernel; batches leave in the
//! order in which they were closed; a batch is kept until its last reply; after a short or broken chain the tail of the
//! first unfinished batch goes first; after a lost connection nothing is sent again that is known to be applied. What a
//! cluster's node did not execute is in `returned` until it is settled (`again`), and until then nothing behind it is sent.

use super::batch::{Batch, Watched};
use super::error::EngineError;
use super::layout::{Marks, Pieces};
use super::lost::{self, WatchedNames};
use super::messages::{LaneStart, Lost};
use super::refusal::{self, Hold};
use super::wire::{Connected, Wire};
use super::writer::{CHECKPOINT_DB, Encoder, GuardState, Source, Writer};
use crate::convert::{Class, CommandMeta, Out};
use crate::ids::{DbIndex, FlowId, Lsn, Slot};
use crate::redis::reply::{Reply, ReplyScanner};
use crate::redis::request;
use crate::report::document::NotCarried;
use crate::uring::{ChunkId, Class as ChunkClass, Outgoing, Ring, Segment, Slab};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

/// Where a lane's connection stands.
pub enum Link {
    Up(Wire),
    /// Waiting for the control plane to connect again.
    Down,
}

pub struct Lane {
    pub index: usize,
    pub node: u16,
    pub link: Link,
    /// The connection's id at the target (0: unknown), so that a lost one can be ended there.
    pub client_id: i64,
    /// Counts connections, so that completions of an earlier one are told apart.
    pub generation: u16,
    pub encoder: Encoder,
    pub guard: GuardState,
    /// Closed, not given to the kernel.
    pub ready: VecDeque<Batch>,
    /// Given to the kernel, not fully answered. The last `in_kernel` of them are the running chain.
    pub sent: VecDeque<Batch>,
    /// Batches of the running chain that the kernel has not completed.
    pub in_kernel: usize,
    /// The first of `ready` went out in part: the rest must follow before anything else.
    cut_short: bool,
    /// The running chain was cut short: what remains goes back to `ready`.
    chain_broken: bool,
    /// A group is sent only when everything before it was answered, and nothing behind it before it was: then no position and
    /// no later record can be executed after one that the server refused.
    pub one_group: bool,
    /// The server refuses: nothing is sent until it is tried again.
    pub hold: Option<Hold>,
    /// Answered, but to be sent again, at least in part (see `refusal`).
    pub returned: Vec<Batch>,
    pub closed: Vec<Batch>,
    pub spare_segments: Vec<Vec<Segment>>,
    /// A cluster's: the commands of the open batch, and what their markers hold.
    pub pieces: Pieces,
    pub marks: Rc<Marks>,
    /// Bytes in `ready` and `sent`.
    pub unacked_bytes: usize,
    pub unacked_commands: u64,
    /// Bytes and commands that were ever queued.
    pub queued_bytes: u64,
    pub queued_commands: u64,
    /// The window was used up and has not been half answered since.
    pub window_full: bool,
    scanner: ReplyScanner,
    pub reply_chunk: Option<ChunkId>,
    pub reading: bool,
    pub reconnects: u64,
    /// Connections lost since the last batch was acknowledged.
    losses_in_a_row: u32,
    /// One of a cluster's: no markers and positions of its own (see `router`).
    pub in_cluster: bool,
    /// Batches ever queued, and acknowledged.
    pub queued_batches: u64,
    pub acked_batches: u64,
    /// When the last reply came, or the first unanswered batch was sent.
    pub heard_ns: u64,
}

/// What an error reply means for its command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is to be done.
    Done,
    /// A script that the target cannot compile: listed, else as `Done`.
    ScriptRefused,
    /// The command was not executed, and is to be executed elsewhere, or later.
    Rejected,
    /// Not executed because of the server's state: the lane holds and tries again (`refusal`).
    Refused,
}

/// A connection lost so often without one batch acknowledged in between will not get better.
const LOSSES_IN_A_ROW_MAX: u32 = 20;

pub(super) const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
pub(super) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
pub(super) const KEEPALIVE_PROBES: u32 = 4;
/// Bytes that the peer's machine does not take for so long end the connection. A server that only is slow takes none either
/// while its buffer is full, so this is not short.
pub(super) const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Most segment lists kept for reuse.
const SPARE_SEGMENTS_MAX: usize = 64;

impl Lane {
    pub fn new(index: usize, start: LaneStart) -> Self {
        let LaneStart { node, socket, marker, client_id, checkpoint, in_cluster } = start;
        Self {
            index,
            node,
            link: up(socket),
            client_id,
            generation: 0,
            encoder: Encoder::new(),
            guard: GuardState {
                checkpoint,
                marker,
                sequence: 0,
                marked_dbs: Vec::new(),
                watched: WatchedNames::default(),
            },
            ready: VecDeque::new(),
            sent: VecDeque::new(),
            in_kernel: 0,
            cut_short: false,
            chain_broken: false,
            one_group: in_cluster,
            hold: None,
            returned: Vec::new(),
            closed: Vec::new(),
            spare_segments: Vec::new(),
            pieces: Pieces::default(),
            marks: Rc::default(),
            unacked_bytes: 0,
            unacked_commands: 0,
            queued_bytes: 0,
            queued_commands: 0,
            window_full: false,
            scanner: ReplyScanner::new(),
            reply_chunk: None,
            reading: false,
            reconnects: 0,
            losses_in_a_row: 0,
            in_cluster,
            queued_batches: 0,
            acked_batches: 0,
            heard_ns: 0,
        }
    }

    /// Opens a window that was used up once half of it is answered, so that what follows is converted and sent in long
    /// pieces, and not in as short ones as the answers come in.
    pub fn reopen_window(&mut self, window_bytes: usize) {
        if self.window_full && self.unacked_bytes <= window_bytes / 2 {
            self.window_full = false;
        }
    }

    /// Everything encoded was answered.
    pub fn is_idle(&self) -> bool {
        let queued = self.closed.len() + self.ready.len() + self.sent.len() + self.returned.len();
        self.encoder.batch.is_empty() && queued == 0
    }

    /// Nothing is on the way to the kernel, and nothing under way must be answered first: an open batch should go out now.
    pub fn wire_is_idle(&self) -> bool {
        let waits = self.one_group
            && match self.pieces.is_guarded() || self.encoder.batch.guard.is_some() {
                true => !self.sent.is_empty(),
                false => self.sent.iter().any(Batch::is_fenced),
            };
        self.in_kernel == 0 && self.ready.is_empty() && !waits
    }

    /// Closes the open batch, if it holds anything.
    pub fn close_open(&mut self, slab: &mut Slab, batch_bytes: usize) {
        if self.encoder.batch.is_empty() {
            return;
        }
        if self.in_cluster {
            return self.close_cluster(slab);
        }
        self.plain_writer(slab, batch_bytes, 0).close();
        self.queue_closed();
    }

    /// Closes the open batch of a cluster's lane: brings it into its order, with its markers.
    pub fn close_cluster(&mut self, slab: &mut Slab) {
        if self.encoder.batch.is_empty() {
            return;
        }
        self.pieces.lay_out(&mut self.encoder, slab, &self.marks);
        let segments = self.spare_segments.pop().unwrap_or_default();
        let batch = self.encoder.take_batch(slab, segments);
        self.closed.push(batch);
        self.queue_closed();
    }

    /// Puts a position behind everything encoded so far.
    pub fn note_position(&mut self, slab: &mut Slab, batch_bytes: usize, flow: FlowId, next_lsn: Lsn, read_ns: u64) {
        self.plain_writer(slab, batch_bytes, read_ns).record_done(flow, next_lsn);
        self.queue_closed();
    }

    /// Deletes a key, in order with everything else on this lane.
    pub fn delete(&mut self, slab: &mut Slab, batch_bytes: usize, db: DbIndex, key: &[u8]) {
        let mut writer = self.plain_writer(slab, batch_bytes, 0);
        writer.begin(CommandMeta { slot: Slot(0), db, class: Class::Blind, all_nodes: false });
        writer.put(&crate::redis::resp::command(&[b"DEL", key]));
        writer.end();
        self.queue_closed();
    }

    /// Keeps the names of lost keys in the checkpoint, in front of everything that is not sent: the next transaction writes over
    /// the names among which they are now.
    pub fn remember_lost(&mut self, slab: &mut Slab, lost: &[Lost]) -> Result<(), EngineError> {
        if lost.is_empty() {
            return Ok(());
        }
        let at = usize::from(self.cut_short);
        let db = match self.ready.get(at) {
            Some(next) => position_of(next, slab, next.replied)?.1,
            None => self.encoder.batch.db_at_start,
        };
        let fields: Vec<Vec<u8>> = lost.iter().map(lost::lost_field).collect();
        let mut args: Vec<&[u8]> = vec![b"HSET", self.guard.checkpoint.as_bytes()];
        args.extend(fields.iter().flat_map(|field| [&field[..], b""]));
        let mut encoder = Encoder::new();
        (encoder.db, encoder.batch.db_at_start) = (db, db);
        encoder.select(slab, CHECKPOINT_DB);
        encoder.command(slab, &args);
        encoder.select(slab, db);
        let mut batch = encoder.take_batch(slab, Vec::new());
        encoder.tail.finish(&mut batch, slab);
        self.unacked_bytes += batch.bytes;
        self.unacked_commands += u64::from(batch.commands);
        self.ready.insert(at, batch);
        Ok(())
    }

    /// Everything was answered: no name needs to be kept that the last transaction wrote.
    pub fn forget_watched(&mut self, slab: &mut Slab, batch_bytes: usize) {
        if !self.guard.watched.is_stored() || !self.is_idle() {
            return;
        }
        let mut fields = Vec::new();
        self.guard.watched.take(|_| true, |flow, _| fields.push(lost::watched_field(flow)));
        let mut args: Vec<&[u8]> = vec![b"HDEL", self.guard.checkpoint.as_bytes()];
        args.extend(fields.iter().map(String::as_bytes));
        let command = crate::redis::resp::command(&args);
        let mut writer = self.plain_writer(slab, batch_bytes, 0);
        writer.begin(CommandMeta { slot: Slot(0), db: CHECKPOINT_DB, class: Class::Blind, all_nodes: false });
        writer.put(&command);
        writer.end();
        self.queue_closed();
    }

    /// A writer that borrows nothing.
    pub fn plain_writer<'a>(&'a mut self, slab: &'a mut Slab, batch_bytes: usize, read_ns: u64) -> Writer<'a> {
        Writer {
            encoder: &mut self.encoder,
            slab,
            guard: Some(&mut self.guard),
            source: &Source::None,
            borrow_bytes_min: usize::MAX,
            batch_bytes,
            closed: &mut self.closed,
            spare_segments: &mut self.spare_segments,
            in_record: false,
            read_ns,
        }
    }

    /// Moves the batches closed by a writer to the queue.
    pub fn queue_closed(&mut self) {
        for batch in self.closed.drain(..) {
            self.unacked_bytes += batch.bytes;
            self.unacked_commands += u64::from(batch.commands);
            self.queued_batches += 1;
            self.queued_bytes += batch.bytes as u64;
            self.queued_commands += u64::from(batch.commands);
            self.ready.push_back(batch);
        }
    }

    /// Queues a staged batch (one long command) behind everything closed so far, with the SELECT it needs.
    pub fn queue_staged(&mut self, slab: &mut Slab, staged: Batch, db: DbIndex) {
        debug_assert!(self.encoder.batch.is_empty());
        if self.encoder.db != db {
            self.encoder.batch.first_read_ns = staged.first_read_ns;
            self.encoder.command(slab, &[b"SELECT", db.to_string().as_bytes()]);
            self.encoder.db = db;
            let segments = self.spare_segments.pop().unwrap_or_default();
            let mut select = self.encoder.take_batch(slab, segments);
            select.first_read_ns = staged.first_read_ns;
            self.closed.push(select);
        }
        self.encoder.batch.db_at_start = db;
        self.closed.push(staged);
        self.queue_closed();
    }

    /// Submits the next chain if the wire is free. Returns the number of batches submitted.
    pub fn submit(
        &mut self,
        ring: &mut Ring,
        batches_max: usize,
        token: u64,
        now_ns: u64,
    ) -> Result<usize, EngineError> {
        let Link::Up(wire) = &mut self.link else { return Ok(0) };
        if self.in_kernel > 0 || self.ready.is_empty() || wire.is_sending() {
            return Ok(0);
        }
        // What was not executed comes first; only the rest of a batch that was cut short is on its way already.
        if self.in_cluster && !self.returned.is_empty() && !self.cut_short {
            return Ok(0);
        }
        if self.sent.is_empty() {
            self.heard_ns = now_ns;
        }
        let batches_max = batches_max.min(wire.batches_max());
        let count = match &self.hold {
            None => self.ready.len().min(batches_max),
            // The rest of a batch that was cut short, or the batch to try with and its SELECT.
            Some(_) if self.cut_short => 1,
            Some(hold) if hold.trying && self.sent.is_empty() && self.returned.is_empty() => {
                self.ready.len().min(2.min(batches_max))
            }
            Some(_) => return Ok(0),
        };
        let count = match self.one_group {
            false => count,
            // The rest of what was begun.
            true if self.cut_short => 1,
            true if self.sent.iter().any(Batch::is_fenced) => return Ok(0),
            true => match self.ready.iter().take(count).take_while(|batch| !batch.is_fenced()).count() {
                0 if self.sent.is_empty() => 1,
                blind => blind,
            },
        };
        if count == 0 {
            return Ok(0);
        }
        for batch in self.ready.iter_mut().take(count) {
            if batch.submitted_ns == 0 {
                batch.submitted_ns = now_ns;
            }
        }
        let count = {
            let chain: smallvec::SmallVec<[Outgoing<'_>; 16]> = self
                .ready
                .iter()
                .take(count)
                .map(|batch| Outgoing { segments: &batch.segments, skip_bytes: batch.sent_bytes, token })
                .collect();
            wire.send(ring, &chain)?
        };
        for _ in 0..count {
            if let Some(batch) = self.ready.pop_front() {
                self.sent.push_back(batch);
            }
        }
        self.in_kernel = count;
        self.cut_short = false;
        self.chain_broken = false;
        Ok(count)
    }

    /// One batch of the running chain completed with `result`. Returns an errno that means the connection is lost.
    pub fn sent_completion(&mut self, result: Result<u32, i32>) -> Option<i32> {
        let position = self.sent.len().checked_sub(self.in_kernel)?;
        self.in_kernel -= 1;
        let mut lost = None;
        if let Some(batch) = self.sent.get_mut(position) {
            match result {
                Ok(n) => {
                    batch.sent_bytes += n as usize;
                    self.chain_broken |= batch.sent_bytes < batch.bytes;
                }
                Err(libc::ECANCELED | libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ENOMEM) => {
                    self.chain_broken = true;
                }
                Err(errno) => {
                    self.chain_broken = true;
                    lost = Some(errno);
                }
            }
        }
        if self.in_kernel == 0 && self.chain_broken {
            // Completions come in chain order, so the unfinished batches are the last ones.
            while self.sent.back().is_some_and(|batch| batch.sent_bytes < batch.bytes) {
                if let Some(batch) = self.sent.pop_back() {
                    // Who answers what was not sent is no server.
                    if batch.replied == batch.commands {
                        lost = lost.or(Some(libc::EPROTO));
                    }
                    self.ready.push_front(batch);
                }
            }
            self.chain_broken = false;
            self.cut_short = self.ready.front().is_some_and(|batch| batch.sent_bytes > 0);
        }
        lost
    }

    /// Scans reply bytes; calls `acked` for each batch whose last reply came and `failed` for each error reply.
    pub fn replies(
        &mut self,
        bytes: &[u8],
        now_ns: u64,
        acked: impl FnMut(Batch),
        mut failed: impl FnMut(&Batch, Fault, &[u8]) -> Result<Verdict, EngineError>,
        mut lost: impl FnMut(&Batch, Watched),
    ) -> Result<(), EngineError> {
        let Self { scanner, sent, ready, node, heard_ns, .. } = self;
        let mut judged = |batch: &mut Batch, fault: Fault, text: &[u8]| {
            let verdict = failed(batch, fault, text)?;
            match verdict {
                Verdict::Done | Verdict::ScriptRefused => {}
                Verdict::Rejected => batch.rejected.push(fault.command),
                Verdict::Refused => {
                    batch.aborted |= batch.guard.is_some_and(|guard| fault.command >= guard.first_command);
                    batch.refused.push(fault.command);
                }
            }
            Ok(verdict)
        };
        let mut outcome = Ok(());
        let scanned = scanner.feed(bytes, |reply| {
            if outcome.is_err() {
                return;
            }
            let mut count = 1u64;
            match reply {
                Reply::Ok { count: oks } => count = oks,
                Reply::Error(text) => {
                    if let Some(batch) = answered(sent, ready) {
                        let fault = Fault { command: batch.replied, element: None };
                        outcome = judged(batch, fault, text).map(drop);
                    }
                }
                Reply::ArrayError { index, text } => {
                    // An element of EXEC's array: it belongs to a command of the group, and is no reply of its own.
                    if let Some(batch) = answered(sent, ready) {
                        let fault = match batch.guard {
                            Some(guard) => Fault {
                                command: guard.first_command.saturating_add(1).saturating_add(index as u32),
                                element: None,
                            },
                            None => Fault { command: batch.replied, element: Some(index as u32) },
                        };
                        outcome = match judged(batch, fault, text) {
                            // The others of its group were executed.
                            Ok(Verdict::Refused) => Err(EngineError::Torn(format!(
                                "node {node} refused a command in the middle of a transaction: \"{}\"; run again with \
                                 --on-existing flush",
                                text.escape_ascii()
                            ))),
                            Err(EngineError::Target(why)) => Err(EngineError::Torn(format!(
                                "{why}. The rest of its transaction was executed, and the position with it, so nothing goes on \
                                 from there: run again with --on-existing flush"
                            ))),
                            judged => judged.map(drop),
                        };
                    }
                    return;
                }
                Reply::ArrayInteger { index, value } => {
                    // 1 is what nearly all answer.
                    if value != 1
                        && let Some(batch) = answered(sent, ready)
                        && !batch.watched.is_empty()
                    {
                        let first = batch.guard.map_or(batch.replied, |guard| guard.first_command + 1);
                        let command = first.saturating_add(index as u32);
                        let found = batch.watched.binary_search_by_key(&command, |watched| watched.command);
                        if let Some(watched) = found.ok().and_then(|at| batch.watched.get(at))
                            && watched.lost_if == value
                        {
                            lost(batch, *watched);
                        }
                    }
                    return;
                }
                Reply::Null if answered(sent, ready).is_some_and(|batch| is_at_exec(batch)) => {
                    outcome = Err(EngineError::Target(format!(
                        "node {node} did not execute a MULTI, although nothing was watched; its commands are not applied"
                    )));
                    return;
                }
                Reply::Array { elements, .. } => {
                    // Of a refused group, too, nothing but EXEC answers with an array.
                    if let Some(batch) = answered(sent, ready).filter(|batch| is_at_exec(batch))
                        && let Some(guard) = batch.guard
                        && elements != u64::from(batch.commands - guard.first_command).saturating_sub(2)
                    {
                        outcome = Err(EngineError::Torn(format!(
                            "node {node} answered EXEC with {elements} replies, not one for each command of the transaction; \
                             what it executed is not known: run again with --on-existing flush"
                        )));
                        return;
                    }
                }
                _ => {}
            }
            let ends_group = matches!(reply, Reply::Array { .. } | Reply::Error(_));
            // Pieces of a reply that never ends are no sign of life.
            *heard_ns = now_ns;
            while count > 0 {
                let Some(batch) = answered(sent, ready) else {
                    outcome = Err(EngineError::Target(format!(
                        "node {node} sent a reply that nobody asked for; is there a proxy in between that mixes connections?"
                    )));
                    return;
                };
                let step = count.min(u64::from(batch.commands - batch.replied));
                batch.replied += step as u32;
                count -= step;
                if batch.guard.is_some() && batch.replied == batch.commands && !ends_group {
                    outcome = Err(EngineError::Torn(format!(
                        "node {node} answered EXEC with no array: whether it executed the transaction is not known; run again \
                         with --on-existing flush"
                    )));
                    return;
                }
            }
        });
        self.take_answered(acked);
        outcome?;
        scanned.map_err(|e| EngineError::Target(format!("node {}: bad reply stream: {e}", self.node)))
    }

    /// Calls `acked` for each batch whose last reply came, once the kernel has let it go too: its completion may be seen after
    /// the reply.
    pub fn take_answered(&mut self, mut acked: impl FnMut(Batch)) {
        let mut refusing = self.hold.as_ref().is_some_and(|hold| !hold.trying) || !self.returned.is_empty();
        while self.sent.len() > self.in_kernel
            && self.sent.front().is_some_and(|batch| batch.replied == batch.commands)
            && let Some(batch) = self.sent.pop_front()
        {
            if !batch.preamble {
                self.losses_in_a_row = 0;
            }
            refusing |= batch.first_refused().is_some() || batch.has_unexecuted();
            if refusing {
                self.returned.push(batch);
                continue;
            }
            if let Some(hold) = self.hold.as_mut().filter(|_| !batch.preamble) {
                hold.taken = true;
            }
            self.unacked_bytes = self.unacked_bytes.saturating_sub(batch.bytes);
            self.unacked_commands = self.unacked_commands.saturating_sub(u64::from(batch.commands));
            self.acked_batches += 1;
            acked(batch);
        }
    }

    /// Everything under way was answered after a refusal: what is to be sent again is prepared, `acked` gets the rest.
    /// Returns whether the lane (still) holds.
    pub fn settle_refusal(
        &mut self,
        slab: &mut Slab,
        now_ns: u64,
        doubtful: &mut Vec<NotCarried>,
        mut acked: impl FnMut(Batch),
    ) -> Result<bool, EngineError> {
        if !self.sent.is_empty() || self.in_kernel > 0 || self.cut_short {
            return Ok(self.hold.is_some());
        }
        if self.returned.is_empty() {
            if self.hold.as_ref().is_some_and(|hold| hold.trying && (hold.taken || self.ready.is_empty())) {
                self.hold = None;
            }
            return Ok(self.hold.is_some());
        }
        if self.in_cluster {
            self.put_back_refused(slab, doubtful)?.into_iter().for_each(&mut acked);
        } else {
            refusal::settle(self, slab)?.into_iter().for_each(|batch| {
                self.unacked_bytes = self.unacked_bytes.saturating_sub(batch.bytes);
                self.unacked_commands = self.unacked_commands.saturating_sub(u64::from(batch.commands));
                acked(batch);
            });
        }
        if let Some(hold) = &mut self.hold {
            hold.again(now_ns);
        }
        Ok(self.hold.is_some())
    }

    /// What an errno of this connection means.
    pub fn reason(&self, errno: i32) -> String {
        match &self.link {
            Link::Up(wire) => wire.reason(errno),
            Link::Down => std::io::Error::from_raw_os_error(errno).to_string(),
        }
    }

    /// The connection is gone: everything unanswered waits for the next one, in order.
    pub fn lose(&mut self) {
        self.link = Link::Down;
        self.generation = self.generation.wrapping_add(1);
        self.in_kernel = 0;
        self.cut_short = false;
        self.chain_broken = false;
        self.reading = false;
        self.scanner = ReplyScanner::new();
        self.losses_in_a_row += 1;
        if self.in_cluster {
            // What was under way is settled by the control plane.
            self.returned.extend(self.sent.drain(..));
            if self.ready.front().is_some_and(|batch| batch.sent_bytes > 0) {
                self.returned.extend(self.ready.pop_front());
            }
            if let Some(hold) = &mut self.hold {
                hold.trying = false;
            }
            return;
        }
        while let Some(mut batch) = self.sent.pop_back() {
            // How much of it the kernel took is not known while it is there.
            batch.sent_bytes = batch.bytes;
            self.ready.push_front(batch);
        }
        if let Some(hold) = &mut self.hold {
            hold.trying = false;
        }
        // Answered, but not done: everything from the first refused command on.
        let mut is_first = true;
        for batch in &mut self.returned {
            batch.replied = if is_first { batch.first_refused().unwrap_or(batch.commands) } else { 0 };
            is_first = false;
        }
        while let Some(batch) = self.returned.pop() {
            self.ready.push_front(batch);
        }
    }

    /// It has a connection.
    pub fn is_live(&self) -> bool {
        matches!(self.link, Link::Up(_))
    }

    /// A batch went out in part.
    pub fn is_cut_short(&self) -> bool {
        self.cut_short
    }

    /// Takes over what is counted over several connections.
    pub fn follows(&mut self, earlier: &mut Self) {
        if self.node == earlier.node {
            self.hold = earlier.hold.take();
        }
        self.generation = earlier.generation.wrapping_add(1);
        self.reconnects = earlier.reconnects + 1;
        self.losses_in_a_row = earlier.losses_in_a_row;
        self.queued_batches = earlier.queued_batches;
        self.queued_bytes = earlier.queued_bytes;
        self.queued_commands = earlier.queued_commands;
        self.acked_batches = earlier.acked_batches;
    }

    /// Connecting again will not help.
    pub fn is_hopeless(&self) -> bool {
        self.losses_in_a_row > LOSSES_IN_A_ROW_MAX
    }

    /// A new connection is up, and the target says that guarded groups up to `applied` were applied. Batches known to
    /// be applied are handed to `acked`; the rest is prepared to be sent again from its first unanswered command.
    pub fn resume(
        &mut self,
        slab: &mut Slab,
        socket: Connected,
        applied: u64,
        mut acked: impl FnMut(Batch),
    ) -> Result<(), EngineError> {
        self.link = up(socket);
        self.reconnects += 1;
        // The preamble of a connection that was lost before it was answered: this one gets its own.
        while self.ready.front().is_some_and(|batch| batch.preamble) {
            if let Some(batch) = self.ready.pop_front() {
                self.unacked_bytes = self.unacked_bytes.saturating_sub(batch.bytes);
                self.unacked_commands = self.unacked_commands.saturating_sub(u64::from(batch.commands));
                batch.release(slab);
            }
        }
        // Answered to the end, but the kernel had not let it go when the connection was lost.
        let is_done = |batch: &Batch| batch.replied == batch.commands && batch.first_refused().is_none();
        while self.ready.front().is_some_and(is_done)
            && let Some(batch) = self.ready.pop_front()
        {
            self.unacked_bytes = self.unacked_bytes.saturating_sub(batch.bytes);
            self.unacked_commands = self.unacked_commands.saturating_sub(u64::from(batch.commands));
            acked(batch);
        }
        // What stands before an applied group was applied too: one connection, in order.
        let is_last = |batch: &Batch| batch.guard.is_some_and(|guard| guard.sequence == applied);
        if let Some(last) = self.ready.iter().rposition(is_last) {
            for batch in self.ready.drain(..=last) {
                if batch.first_refused().is_some() {
                    return Err(EngineError::Torn(format!(
                        "node {} refused commands, executed later ones, and the connection was lost: the target's data is not \
                         to be trusted; run again with --on-existing flush",
                        self.node
                    )));
                }
                self.unacked_bytes = self.unacked_bytes.saturating_sub(batch.bytes);
                self.unacked_commands = self.unacked_commands.saturating_sub(u64::from(batch.commands));
                acked(batch);
            }
        }
        for batch in &mut self.ready {
            let sent = sent_commands(batch, slab)?;
            batch.put_in_doubt(batch.replied..sent);
        }
        let mut db = None;
        if let Some(batch) = self.ready.front_mut() {
            let mut from = batch.replied;
            if let Some(guard) = batch.guard
                && from > guard.first_command
            {
                from = guard.first_command;
            }
            let (offset, current) = position_of(batch, slab, from)?;
            batch.replied = from;
            batch.sent_bytes = offset;
            db = Some(current);
        }
        for batch in self.ready.iter_mut().skip(1) {
            batch.replied = 0;
            batch.sent_bytes = 0;
        }
        for batch in &mut self.ready {
            batch.refused.clear();
            batch.aborted = false;
        }
        // A new connection starts in database 0.
        let db = db.unwrap_or(self.encoder.batch.db_at_start);
        if db != DbIndex(0) {
            let batch = select_batch(slab, db);
            self.unacked_bytes += batch.bytes;
            self.unacked_commands += 1;
            self.ready.push_front(batch);
        }
        Ok(())
    }

    /// Keeps an acknowledged batch's segment list for reuse.
    pub fn recycle(&mut self, segments: Vec<Segment>) {
        if self.spare_segments.len() < SPARE_SEGMENTS_MAX {
            self.spare_segments.push(segments);
        }
    }
}

/// A connection whose death is noticed though nothing is said on it.
fn up(connected: Connected) -> Link {
    let wire = Wire::new(connected, ChunkClass::Tx);
    wire.watch_life(KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES, USER_TIMEOUT);
    Link::Up(wire)
}

/// The command that an error reply is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its index in the batch; that of the EXEC if `element` is given.
    pub command: u32,
    /// Which command of the group.
    pub element: Option<u32>,
}

/// The batch that the next reply belongs to: the first one sent that is not answered, or else the one whose sending was cut
/// short and which waits for its rest to be sent.
fn answered<'a>(sent: &'a mut VecDeque<Batch>, ready: &'a mut VecDeque<Batch>) -> Option<&'a mut Batch> {
    let open = |batch: &&mut Batch| batch.replied < batch.commands;
    match sent.iter_mut().find(open) {
        Some(batch) => Some(batch),
        None => ready.front_mut().filter(|batch| batch.sent_bytes > 0).filter(open),
    }
}

/// The next reply is that to the EXEC of the batch's group.
fn is_at_exec(batch: &Batch) -> bool {
    batch.guard.is_some() && batch.replied + 1 == batch.commands
}

/// A batch that selects a database.
pub fn select_batch(slab: &mut Slab, db: DbIndex) -> Batch {
    let mut select = Encoder::new();
    select.command(slab, &[b"SELECT", db.to_string().as_bytes()]);
    let mut batch = select.take_batch(slab, Vec::new());
    select.tail.finish(&mut batch, slab);
    batch.preamble = true;
    batch
}

/// Byte offset of command `index` in the batch and the database selected there.
pub fn position_of(batch: &Batch, slab: &Slab, index: u32) -> Result<(usize, DbIndex), EngineError> {
    let db = batch.selects.iter().rev().find(|(at, _)| *at < index).map_or(batch.db_at_start, |(_, db)| *db);
    let offset = request::offset_of(batch.slices(slab), u64::from(index))
        .map_err(|e| EngineError::Internal(format!("a batch cannot be read again: {e}")))?;
    Ok((offset as usize, db))
}

/// Commands of which at least one byte was sent.
fn sent_commands(batch: &Batch, slab: &Slab) -> Result<u32, EngineError> {
    if batch.sent_bytes == 0 || batch.sent_bytes == batch.bytes {
        return Ok(if batch.sent_bytes == 0 { 0 } else { batch.commands });
    }
    let (mut low, mut high) = (0, batch.commands);
    while low < high {
        let middle = low + (high - low) / 2;
        if position_of(batch, slab, middle)?.0 < batch.sent_bytes {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

#[cfg(test)]
mod tests;
