//! One connection to a target node: batches waiting, sent and acknowledged.
//!
//! In: closed batches, completions of sends, reply bytes. Out: chains of whole batches to send (`sending`), acknowledged batches
//! and the command that an error reply belongs to (`answers`). Invariants: at most one chain is in the kernel; batches leave in
//! the order in which they were closed; a batch is kept until its last reply; after a short or broken chain the tail of the
//! first unfinished batch goes first; after a lost connection nothing is sent again that is known to be applied (`losses`). What
//! a cluster's node did not execute is in `returned` until it is settled (`again`), and until then nothing behind it is sent.

use super::batch::Batch;
use super::error::EngineError;
use super::layout::{Marks, Pieces};
use super::lost::{self, WatchedNames};
use super::messages::{LaneStart, Lost, NodeName};
use super::refusal::Hold;
use super::wire::{Connected, Wire};
use super::writer::{CHECKPOINT_DB, Encoder, GuardState, Source, Writer};
use crate::convert::{Class, CommandMeta, Out};
use crate::ids::{DbIndex, FlowId, Lsn, Slot};
use crate::redis::reply::ReplyScanner;
use crate::uring::{ChunkId, Class as ChunkClass, PeerSigns, Segment, Slab};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

mod answers;
mod losses;
mod sending;

pub use answers::{Fault, Verdict};
pub use losses::{position_of, select_batch};

/// Where a lane's connection stands.
pub enum Link {
    Up(Wire),
    /// Waiting for the control plane to connect again.
    Down,
}

pub struct Lane {
    pub index: usize,
    pub node: u16,
    pub name: NodeName,
    pub link: Link,
    /// The connection's id at the target (0: unknown), so that a lost one can be ended there.
    pub client_id: i64,
    /// The connection is lost or closed, and nobody has to hear of it again.
    pub told: bool,
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
    /// Since when the peer's machine owes an acknowledgement.
    owes_since_ns: Option<u64>,
}

/// Where nothing is under way. (Unanswered probes end a lane sooner than the kernel would: see `Worker::end_cut_off_lanes`.)
pub(super) const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
pub(super) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
pub(super) const KEEPALIVE_PROBES: u32 = 4;
/// Bytes that the peer's machine does not take for so long end the connection. A server that only is slow takes none either
/// while its buffer is full, so this is not short. A machine that is gone is told from that by what the kernel says of it: see
/// `Worker::end_cut_off_lanes`.
pub(super) const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Most segment lists kept for reuse.
const SPARE_SEGMENTS_MAX: usize = 64;

impl Lane {
    pub fn new(index: usize, start: LaneStart) -> Self {
        let LaneStart { node, name, socket, marker, client_id, checkpoint, in_cluster } = start;
        Self {
            index,
            node,
            name,
            link: up(socket),
            client_id,
            told: false,
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
            owes_since_ns: None,
        }
    }

    /// For how long the peer's machine owes an acknowledgement, as its kernel was looked at now.
    pub fn owes_ns(&mut self, signs: Option<PeerSigns>, now_ns: u64) -> u64 {
        let Some(quiet) = signs.filter(|signs| signs.owes).map(|signs| signs.quiet.as_nanos() as u64) else {
            self.owes_since_ns = None;
            return 0;
        };
        // Something came between two looks.
        let heard_ns = now_ns.saturating_sub(quiet);
        let since_ns = self.owes_since_ns.filter(|since_ns| *since_ns >= heard_ns).unwrap_or(now_ns);
        self.owes_since_ns = Some(since_ns);
        now_ns - since_ns
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

    /// The command that follows must be listed in the open batch of a cluster's lane: what is not listed goes out before it.
    #[inline]
    pub fn list(&mut self, slab: &mut Slab) {
        if !self.pieces.is_list() {
            self.close_cluster(slab);
            self.pieces.begin_list();
        }
    }

    /// Puts a position behind everything encoded so far.
    pub fn note_position(&mut self, slab: &mut Slab, batch_bytes: usize, flow: FlowId, next_lsn: Lsn, read_ns: u64) {
        self.plain_writer(slab, batch_bytes, read_ns).record_done(flow, next_lsn);
        self.queue_closed();
    }

    /// Keeps the names of lost keys in the checkpoint, in front of everything that was not sent: the next transaction writes over
    /// the names among which they are now. Behind what a lost connection had been sent: that may be applied, and then is not
    /// sent again, nor what stands before it.
    pub fn remember_lost(&mut self, slab: &mut Slab, lost: &[Lost]) -> Result<(), EngineError> {
        if lost.is_empty() {
            return Ok(());
        }
        let at = match self.link {
            Link::Up(_) => usize::from(self.cut_short),
            Link::Down => self.ready.iter().take_while(|batch| batch.sent_bytes > 0).count(),
        };
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
        batch.names = true;
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
            self.encoder.select(slab, db);
            let segments = self.spare_segments.pop().unwrap_or_default();
            let mut select = self.encoder.take_batch(slab, segments);
            select.first_read_ns = staged.first_read_ns;
            self.closed.push(select);
        }
        self.encoder.batch.db_at_start = db;
        self.closed.push(staged);
        self.queue_closed();
    }

    /// What an errno of this connection means.
    pub fn reason(&self, errno: i32) -> String {
        match &self.link {
            Link::Up(wire) => wire.reason(errno),
            Link::Down => std::io::Error::from_raw_os_error(errno).to_string(),
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

#[cfg(test)]
mod tests;
