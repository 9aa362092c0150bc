//! Where encoded commands go: implemented by the engine (batches of one connection) and by a plain `Vec` in tests.

use crate::ids::{DbIndex, FlowId, Slot};

/// How a command may be treated when its outcome is unknown after a lost connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Sending it again in order changes nothing: SET, RESTORE REPLACE, DEL, HSET, SADD, plain ZADD, PEXPIREAT ...
    Blind,
    /// Likewise, but once a later one was executed the target refuses it for good: XADD with an id. Where a target may execute one
    /// after it has not executed the one before (a cluster), it is sent as if it were Guarded.
    Ordered,
    /// Twice is wrong (INCR, RPUSH, APPEND ...): the engine sends it with its position (MULTI, command, marker, EXEC).
    Guarded,
}

/// What the engine must know of a command besides its bytes.
#[derive(Clone, Copy, Debug)]
pub struct CommandMeta {
    /// Slot of the key (`redis::slot`), for routing; `Slot(0)` if the command has no key.
    pub slot: Slot,
    pub db: DbIndex,
    pub class: Class,
    /// Send to every node (SCRIPT LOAD).
    pub all_nodes: bool,
}

/// One RESP command at a time: `begin`, then its bytes in order, then `end`. Commands of one key keep their order.
/// Never fails: the engine reserves room before it decodes an event.
pub trait Out {
    /// Begins a command. `SELECT`, markers and batching are the implementor's business.
    fn begin(&mut self, meta: CommandMeta);
    /// Room for at least `len` (<= [`SPACE_MAX`]) contiguous bytes; write to its front, then call `advance`.
    fn space(&mut self, len: usize) -> &mut [u8];
    /// The first `len` bytes of the last `space` are part of the command.
    fn advance(&mut self, len: usize);
    /// Appends bytes of any length that lie in the event being converted: copied if short, referenced where they are if
    /// long.
    fn put(&mut self, bytes: &[u8]);
    /// Appends bytes made by the converter (unpacked LZF, rewritten payloads): large ones are kept without a copy.
    fn put_owned(&mut self, bytes: bytes::Bytes);
    /// Ends the command. The command of a large string may stay open over several events of its flow.
    fn end(&mut self);
    /// A command in one piece: all four steps in one. `len` (<= [`SPACE_MAX`]) is the most that `fill` writes; it says how much it wrote.
    #[inline]
    fn whole(&mut self, meta: CommandMeta, len: usize, fill: impl FnOnce(&mut [u8]) -> usize) {
        self.begin(meta);
        let written = fill(self.space(len));
        self.advance(written);
        self.end();
    }
    /// Of the Guarded command that comes next, a RENAME of this flow in this database of the source, it is to be known if the
    /// target lacks the key. `None`: it has been written, or never will be.
    fn watch_rename(&mut self, _of: Option<(FlowId, DbIndex)>) {}
}

/// Longest contiguous `space`.
pub const SPACE_MAX: usize = 8 * 1024;

/// An [`Out`] that keeps everything in one `Vec`: for tests and benchmarks. It panics when it is used out of order,
/// which is what a test wants to know.
#[derive(Debug, Default)]
pub struct VecOut {
    /// As long as was ever needed, so that `space` need not clear it each time.
    room: Vec<u8>,
    len: usize,
    /// Metadata and end of every command, unless [`VecOut::without_commands`].
    commands: Vec<(CommandMeta, usize)>,
    keeps_no_commands: bool,
    open: Option<CommandMeta>,
}

impl VecOut {
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps only bytes: for benchmarks.
    pub fn without_commands() -> Self {
        Self { keeps_no_commands: true, ..Self::default() }
    }

    /// All bytes written.
    pub fn bytes(&self) -> &[u8] {
        self.room.get(..self.len).unwrap_or_default()
    }

    /// Every command's metadata and bytes, in order.
    pub fn commands(&self) -> impl Iterator<Item = (CommandMeta, &[u8])> {
        let starts = std::iter::once(0).chain(self.commands.iter().map(|(_, end)| *end));
        self.commands.iter().zip(starts).map(|((meta, end), start)| (*meta, &self.room[start..*end]))
    }

    /// Whether a command was begun and not ended.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Forgets what was written, keeps the memory.
    pub fn clear(&mut self) {
        self.len = 0;
        self.commands.clear();
        self.open = None;
    }
}

impl Out for VecOut {
    #[inline]
    fn begin(&mut self, meta: CommandMeta) {
        assert!(self.open.replace(meta).is_none(), "a command was begun inside of another");
    }

    #[inline]
    fn space(&mut self, len: usize) -> &mut [u8] {
        assert!(len <= SPACE_MAX && self.open.is_some());
        if self.room.len() - self.len < len {
            self.room.resize((self.len + len).max(2 * self.room.len()), 0);
        }
        &mut self.room[self.len..self.len + len]
    }

    #[inline]
    fn advance(&mut self, len: usize) {
        assert!(self.len + len <= self.room.len());
        self.len += len;
    }

    fn put(&mut self, bytes: &[u8]) {
        assert!(self.open.is_some());
        let end = self.len + bytes.len();
        if self.room.len() < end {
            self.room.resize(end.max(2 * self.room.len()), 0);
        }
        self.room[self.len..end].copy_from_slice(bytes);
        self.len = end;
    }

    fn put_owned(&mut self, bytes: bytes::Bytes) {
        self.put(&bytes);
    }

    #[inline]
    fn end(&mut self) {
        let open = self.open.take();
        assert!(open.is_some(), "a command was ended that was not begun");
        if !self.keeps_no_commands {
            self.commands.extend(open.map(|meta| (meta, self.len)));
        }
    }
}
