//! Why a flow cannot be converted further.

use super::policy::{Action, Kind};
use crate::dragonfly::DecodeError;
use crate::dragonfly::value::WalkError;
use crate::ids::{DbIndex, FlowId};
use crate::redis::reencode::TailError;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// The policy for this kind is `refuse`.
    #[error(
        "flow {flow}: key \"{key}\" in database {db} is {}, which the target cannot hold ({detail}); to go on all the same: {}",
        kind.description(), remedies(*kind)
    )]
    Unsupported {
        kind: Kind,
        db: DbIndex,
        /// Printable; cut if very long.
        key: Box<str>,
        flow: FlowId,
        detail: Box<str>,
    },
    /// The value's own bytes are wrong.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("flow {flow}: key \"{key}\" in database {db}: {source}")]
    StreamTail { flow: FlowId, db: DbIndex, key: Box<str>, source: TailError },
    /// NaN is no score at the target.
    #[error("flow {flow}: key \"{key}\" in database {db} has a sorted-set score that is not a number")]
    BadScore { flow: FlowId, db: DbIndex, key: Box<str> },
    /// A run or an end of an object that was not begun, or of another kind than was begun.
    #[error("flow {flow}: object {object} goes on without having begun, or in another form than it began")]
    UnexpectedRun { flow: FlowId, object: u32 },
    /// The pieces of a string are not as long as was announced.
    #[error("flow {flow}: key \"{key}\" in database {db}: {missing} bytes of the string are missing or too many")]
    WrongLength { flow: FlowId, db: DbIndex, key: Box<str>, missing: i64 },
    /// Journal blobs are translated by `convert::journal`, not here: a mistake of the caller.
    #[error("flow {flow}: a journal blob was passed to the snapshot converter")]
    JournalBlob { flow: FlowId },
}

impl ConvertError {
    /// The same error; if it lies in a value's bytes, with the flow, and counted from the stream offset at which the
    /// value began.
    pub fn placed(self, flow: FlowId, value_offset: u64) -> Self {
        match self {
            Self::Decode(error) => Self::Decode(error.placed(flow, value_offset)),
            other => other,
        }
    }
}

impl From<WalkError<ConvertError>> for ConvertError {
    fn from(error: WalkError<ConvertError>) -> Self {
        match error {
            WalkError::Decode(error) => Self::Decode(error),
            WalkError::Visitor(error) => error,
        }
    }
}

/// The flags that would let a thing of this kind pass.
fn remedies(kind: Kind) -> String {
    kind.allowed()
        .iter()
        .filter(|action| **action != Action::Refuse)
        .map(|action| format!("--on-unsupported {kind}={action}"))
        .collect::<Vec<_>>()
        .join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_key_kind_and_remedy() {
        let error = ConvertError::Unsupported {
            kind: Kind::Json,
            db: DbIndex(5),
            key: "doc:\\x00".into(),
            flow: FlowId(2),
            detail: "Redis 7.0.15 has no JSON.SET".into(),
        };
        insta::assert_snapshot!(error, @r#"flow 2: key "doc:\x00" in database 5 is a JSON document, which the target cannot hold (Redis 7.0.15 has no JSON.SET); to go on all the same: --on-unsupported json=skip or --on-unsupported json=string"#);
    }
}
