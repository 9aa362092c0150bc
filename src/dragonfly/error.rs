//! What can be wrong with bytes from the source. Every error says where and why.

use crate::ids::FlowId;

/// A stream that cannot be decoded. Final: lengths are not self-describing, so nothing can be skipped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("flow {flow}, offset {offset}: {reason}")]
pub struct DecodeError {
    pub flow: FlowId,
    /// Offset in the flow's outer byte stream (of the blob's first byte, inside a compressed blob).
    pub offset: u64,
    pub reason: Reason,
}

/// Skeleton: to be completed with one variant per cause, each naming the values involved and the limit passed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("the stream ended inside the full sync ({missing} more bytes were announced)")]
    Truncated { missing: u64 },
}
