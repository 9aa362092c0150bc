//! What a flow's full-sync stream says, as events that borrow the received bytes.
//!
//! The decoder (`stream::StreamDecoder`) makes them; `convert` consumes them. A value that is small arrives as one
//! [`Event::Whole`] whose body is exactly the stream's own bytes (so that it can be a RESTORE payload); a value that is
//! large, or cut into tagged chunks, arrives as `Begin`, any number of `Run`s, `End`, with other events in between. A value
//! whose type cannot be cut (one string) is always whole, in a tagged chunk too; only a long raw string is cut by us.
//! Layouts: dragonfly-wire.md 2 and 3.

use crate::ids::{DbIndex, Lsn};

/// RDB type byte of an object, dragonfly-wire.md 3.1. Only the types that a master may send in a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum ObjectType {
    String = 0,
    Set = 2,
    Hash = 4,
    Zset = 5,
    SetIntset = 11,
    ZsetZiplist = 12,
    HashZiplist = 13,
    ListZiplists = 14,
    StreamV1 = 15,
    HashListpack = 16,
    ZsetListpack = 17,
    ListNodes = 18,
    StreamV2 = 19,
    JsonOld = 20,
    StreamV3 = 21,
    Json = 30,
    HashExpiry = 31,
    SetExpiry = 32,
    Bloom = 33,
    BloomPieces = 34,
    CountMinSketch = 35,
    TopK = 36,
    Cuckoo = 37,
}

/// What stands before the value of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyMeta<'a> {
    pub db: DbIndex,
    /// The key's bytes, resolved from whatever string form the stream used.
    pub key: &'a [u8],
    /// Absolute Unix time in milliseconds.
    pub expire_at_ms: Option<i64>,
    /// DF_MASK bit 0: exempt from eviction.
    pub sticky: bool,
    /// DF_MASK bit 1: memcached flags.
    pub memcached_flags: Option<u32>,
    pub object_type: ObjectType,
}

/// Names one split object from its `Begin` to its `End`. Unique among the objects open on a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ObjectId(pub u32);

/// Codec of a compressed blob (opcodes c9 and ca).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    Zstd,
    Lz4,
}

/// A string in one of its forms (wire 0.2), or an integer element of a listpack, ziplist or intset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text<'a> {
    Raw(&'a [u8]),
    /// Stands for its decimal text.
    Int(i64),
    /// LZF: checked only to have plausible lengths; unpacking may still fail.
    Lzf {
        packed: &'a [u8],
        plain_len: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event<'a> {
    /// One AUX field (wire 2.4).
    Aux { name: Text<'a>, value: Text<'a> },
    /// A complete object. `body` is the value exactly as in the stream, after the key: a string (type 0, 30, ...), or
    /// `packed n` and the elements. Never longer than `Limits::whole_bytes_max`, except types whose value is one
    /// uncuttable string (JSON, listpacks, filters ...).
    Whole { meta: KeyMeta<'a>, body: &'a [u8] },
    /// A split object begins. `count` is the announced number of elements (of bytes, for a raw string: its `Run`s are
    /// then plain bytes; 0 for filters, which announce nothing).
    Begin { object: ObjectId, meta: KeyMeta<'a>, count: u64 },
    /// `count` complete elements of a split object, `body` being exactly their bytes. For a raw string: the next bytes
    /// of it, `count` = body.len(). For streams: `stage` tells what the elements are. For types that are
    /// only reported, never carried (filters), bodies are not promised to end at element borders and `count` is 0.
    Run { object: ObjectId, stage: Stage, count: u64, body: &'a [u8] },
    /// The object is complete.
    End { object: ObjectId },
    /// The bytes of one journal record written while the snapshot runs (opcode d2): feed to `journal::decode_blob`.
    JournalBlob { record: &'a [u8] },
    /// A compressed blob: decompress and feed the content through the same decoder between `enter_blob` and `leave_blob`.
    Compressed { codec: Codec, frame: &'a [u8] },
    /// Opcode c8.
    FullSyncEnd,
    /// Opcode d3: LSN of the next record of this shard.
    JournalOffset(Lsn),
    /// EOF opcode, 8 zero bytes and the token; nothing of the snapshot follows. The decoder compared nothing.
    Eof { token: [u8; 40] },
    /// Something that was read over on purpose (vector index graphs, RESIZEDB ...), for the log. Long things are read over in
    /// pieces, with one event each. A SELECTDB (fe) shows only where nothing stands behind it yet; it needs no mention.
    Skipped { opcode: u8 },
}

/// Which part of an object's value a `Run` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Elements of a collection (members, field/value pairs, list nodes, stream listpacks), or bytes of a string.
    Elements,
    /// A stream's whole tail after its listpacks (length, ids, groups), one run with count 1.
    StreamTail,
}
