//! What can be wrong with bytes from the source. Every error says where and why.
//!
//! A [`DecodeError`] is final: lengths in the stream are not self-describing, so nothing can be skipped. Errors found
//! inside a value that was handed out earlier ([`super::value`]) know only the offset inside that value; whoever knows
//! the flow adds it with [`DecodeError::placed`].

use crate::ids::FlowId;

/// A stream that cannot be decoded, or a value in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}, offset {offset}: {reason}", Place(*flow))]
pub struct DecodeError {
    /// [`DecodeError::UNPLACED`] if the error was found inside a value, away from its stream.
    pub flow: FlowId,
    /// Offset in the flow's outer byte stream (of the blob's first byte, inside a compressed blob); in the value's body
    /// if `flow` is [`DecodeError::UNPLACED`].
    pub offset: u64,
    pub reason: Reason,
}

impl DecodeError {
    /// Stands for "some flow": the error was found by a function that was given a value only.
    pub const UNPLACED: FlowId = FlowId(u32::MAX);

    /// An error inside a value.
    pub(crate) fn in_value(offset: usize, reason: Reason) -> Self {
        Self { flow: Self::UNPLACED, offset: offset as u64, reason }
    }

    /// The same error, said of the flow and of the stream offset at which the value began.
    pub fn placed(self, flow: FlowId, value_offset: u64) -> Self {
        match self.flow == Self::UNPLACED {
            true => Self { flow, offset: value_offset.saturating_add(self.offset), reason: self.reason },
            false => self,
        }
    }
}

/// Shows where an error was found.
struct Place(FlowId);

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 == DecodeError::UNPLACED {
            true => f.write_str("inside a value"),
            false => write!(f, "flow {}", self.0),
        }
    }
}

/// Which limit a length went beyond, for the text of the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    AtomBytes,
    KeyBytes,
    OpenObjects,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Limit::AtomBytes => "longest uncuttable value (atom_bytes_max)",
            Limit::KeyBytes => "longest key (key_bytes_max)",
            Limit::OpenObjects => "tagged objects open at once (open_objects_max)",
        })
    }
}

/// Why bytes could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    // The stream as a whole.
    #[error(
        "the stream ended inside the full sync (at least {missing} more bytes were announced); the source or the network cut it: start a new sync"
    )]
    Truncated { missing: u64 },
    #[error(
        "the source closed the connection before EOF; look at the source's log (timeout, shutdown, memory) and start a new sync"
    )]
    ClosedBeforeEof,
    #[error("the stream does not begin with REDIS0005..REDIS0012 but with {found:02x?}: not a Dragonfly full sync")]
    BadHeader { found: [u8; 9] },
    #[error(
        "unknown opcode or type 0x{byte:02x}: the source speaks a newer format than this tool; nothing after it can be read"
    )]
    UnknownOpcode { byte: u8 },
    #[error("opcode 0x{opcode:02x} is never sent by a master")]
    ForbiddenOpcode { opcode: u8 },
    #[error("the decoder was called after the end of the snapshot (EOF was reported before)")]
    AfterEof,
    #[error("the token at the end of the full sync is {found}, and the source promised {promised}")]
    WrongToken { found: String, promised: String },
    #[error("a second FULLSYNC_END")]
    SecondFullSyncEnd,
    #[error("a second JOURNAL_OFFSET")]
    SecondJournalOffset,
    #[error("JOURNAL_OFFSET before FULLSYNC_END")]
    EarlyJournalOffset,
    #[error("opcode or type 0x{byte:02x} between JOURNAL_OFFSET and EOF, where nothing may stand")]
    AfterJournalOffset { byte: u8 },
    #[error("EOF without FULLSYNC_END before it")]
    EofWithoutFullSyncEnd,
    #[error("EOF without JOURNAL_OFFSET before it")]
    EofWithoutJournalOffset,
    #[error("EOF while {open} split objects are unfinished (first stream id {first_id})")]
    EofWithOpenObjects { open: usize, first_id: u32 },
    #[error("expiry or DF_MASK is followed by 0x{byte:02x}, which is no key")]
    AttributesWithoutKey { byte: u8 },
    #[error("expiry or DF_MASK given twice for one key")]
    AttributeTwice,
    #[error("DF_MASK 0x{mask:08x} has bits this tool does not know (known: 0x00000003)")]
    UnknownMask { mask: u32 },
    #[error("database index {index} does not fit 16 bits")]
    DbIndexTooLarge { index: u64 },
    #[error("a journal blob announces {count} records, always 1 is sent")]
    JournalBlobCount { count: u64 },

    // Compressed blobs.
    #[error("a compressed blob inside a compressed blob")]
    NestedBlob,
    #[error("EOF inside a compressed blob")]
    EofInBlob,
    #[error("a record is cut by the end of its compressed blob ({left_over} bytes left over)")]
    CutByBlobEnd { left_over: usize },
    #[error("the content of a compressed blob ended inside a split object")]
    ObjectCutByBlobEnd,
    #[error("blob content was announced or ended where no compressed blob had been reported")]
    BlobOutOfPlace,
    #[error("{codec} blob: {cause}")]
    BadFrame { codec: &'static str, cause: String },
    #[error("{codec} blob without a content size in its frame header")]
    FrameWithoutSize { codec: &'static str },
    #[error("{codec} blob needs dictionary {id}")]
    FrameWithDictionary { codec: &'static str, id: u32 },
    #[error("{codec} blob announces {announced} plain bytes, more than the {limit} allowed")]
    FrameTooLarge { codec: &'static str, announced: u64, limit: u64 },
    #[error("{codec} blob unpacks to {found} bytes, its header says {announced}")]
    FrameSizeMismatch { codec: &'static str, announced: u64, found: u64 },
    #[error("{codec} blob: {left_over} bytes after the end of the frame")]
    FrameTrailingBytes { codec: &'static str, left_over: usize },

    // Tagged chunks.
    #[error("a tagged chunk with stream id 0")]
    ChunkIdZero,
    #[error("tagged chunk of stream id {id} with an empty payload")]
    ChunkEmpty { id: u32 },
    #[error("tagged chunk of stream id {id} ends inside an element")]
    ChunkCutsElement { id: u32 },
    #[error("tagged chunk of stream id {id} has {left_over} bytes after the end of its object")]
    ChunkLeftOver { id: u32, left_over: u64 },

    // Lengths and primitive forms.
    #[error("{announced} is beyond the limit {limit}: {what}")]
    LimitPassed { what: Limit, announced: u64, limit: u64 },
    #[error("0x{byte:02x} is not the beginning of a packed number")]
    BadPackedNumber { byte: u8 },
    #[error("0x{byte:02x} is not the beginning of a string")]
    BadStringForm { byte: u8 },
    #[error("a length or count overflows")]
    LengthOverflow,
    #[error("{what} in an integer or LZF form, only the raw form is sent")]
    RawFormExpected { what: &'static str },
    #[error("LZF string of {packed} bytes cannot unpack to {plain}")]
    LzfImplausible { packed: usize, plain: u64 },
    #[error("LZF string of {packed} bytes is damaged")]
    LzfDamaged { packed: usize },

    // Values.
    #[error("the value ends {missing} bytes too early")]
    ValueTruncated { missing: u64 },
    #[error("{left_over} bytes after the end of the value")]
    ValueLeftOver { left_over: usize },
    #[error("type {object_type:?} has no elements to walk over")]
    NotACollection { object_type: super::event::ObjectType },
    #[error("type {object_type:?} is no plain string")]
    NotAString { object_type: super::event::ObjectType },
    #[error("type {object_type:?} is no stream")]
    NotAStream { object_type: super::event::ObjectType },
    #[error("{container} damaged: {cause}")]
    BadContainer { container: &'static str, cause: &'static str },
    #[error("a {container} of a hash or sorted set holds an odd number of elements ({count})")]
    OddContainer { container: &'static str, count: u64 },
    #[error("list node with container {container} (known: 1 plain, 2 packed)")]
    UnknownListContainer { container: u64 },
    #[error("a score that is not a number")]
    BadScore,
    #[error("an expiry that is neither -1 nor a possible time")]
    BadExpiry,
    #[error("stream damaged: {cause}")]
    BadStream { cause: &'static str },
    #[error("filter damaged: {cause}")]
    BadFilter { cause: &'static str },

    // Journal.
    #[error("unknown journal opcode {opcode}: the source speaks a newer format than this tool")]
    UnknownJournalOpcode { opcode: u64 },
    #[error("the source wrote \"{text}\" where a journal record was to stand")]
    SourceSaid { text: String },
    #[error("journal opcode {opcode} is never sent to a replica")]
    ForbiddenJournalOpcode { opcode: u8 },
    #[error("journal command without a name")]
    EmptyCommand,
    #[error("strings of a journal command are {found} bytes long in all, announced were {announced}")]
    CommandLength { announced: u64, found: u64 },
    #[error("journal blob ends inside a record ({missing} more bytes were announced)")]
    JournalBlobTruncated { missing: u64 },
    #[error("journal blob without a record")]
    JournalBlobEmpty,
    #[error("{what} {value} is out of range")]
    JournalRange { what: &'static str, value: u64 },
    #[error("LSN marker says {marker}, {expected} was expected: records were lost or counted twice")]
    MarkerMismatch { marker: u64, expected: u64 },
}
