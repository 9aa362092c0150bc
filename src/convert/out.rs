//! Where encoded commands go: implemented by the engine (batches of one connection) and by a plain `Vec` in tests.

use crate::ids::{DbIndex, Slot};

/// How a command may be treated when its outcome is unknown after a lost connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Sending it again in order changes nothing: SET, RESTORE REPLACE, DEL, HSET, SADD, plain ZADD, PEXPIREAT, XADD with id ...
    Blind,
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
}

/// Longest contiguous `space`.
pub const SPACE_MAX: usize = 8 * 1024;
