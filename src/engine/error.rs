//! Why a run ended without reaching its goal, by class. The class decides the exit code.

use crate::convert::ConvertError;
use crate::convert::journal::{TranslateError, TranslateReason};
use crate::dragonfly::{DecodeError, Reason};
use crate::ids::{FlowId, Lsn};

/// Exit classes (README.md lists the codes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The run was refused: nothing was written, or it stopped at the first key that the target cannot hold.
    Refused,
    Source,
    Target,
    CorruptStream,
    System,
    Interrupted,
    PositionLost,
    Internal,
}

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("refused: {0}")]
    Refused(String),
    #[error("source: {0}")]
    Source(String),
    #[error("target: {0}")]
    Target(String),
    /// The source follows another server: what it has to say is of that one's data.
    #[error("source: {0}")]
    SourceIsReplica(String),
    /// The source holds nothing, and the target does.
    #[error("source: {0}")]
    SourceEmpty(String),
    /// Its own words in the middle of a flow.
    #[error("source: {0}")]
    SourceSaid(String),
    /// The target's answer is longer than a control connection takes.
    #[error("target: {0}")]
    TooLong(String),
    /// The connection to the target could not be made, or broke: another one may help.
    #[error("target: {0}")]
    TargetLost(String),
    /// The target's certificate is not accepted here, or ours, our user or its password there: before the first write that ends the run, later it is waited
    /// for like a lost connection, for somebody may be about to mend it.
    #[error("target: {0}")]
    Untrusted(String),
    /// The target does not keep up: the source was let go, so that it does not wait for it.
    #[error("target: {0}")]
    LetGo(String),
    /// The target's data and positions are not to be trusted.
    #[error("target: {0}")]
    Torn(String),
    /// Another process holds the target's lease now.
    #[error("target: {0}")]
    LeaseLost(String),
    /// The target is another process than the one that the run began with.
    #[error("target: {0}")]
    TargetRestarted(String),
    #[error(
        "corrupt stream from the source: {0}; nothing after this point can be read. Run again; if it stays, please report it with the source's version"
    )]
    Corrupt(DecodeError),
    #[error("corrupt value from the source: {0}. Run again; if it stays, please report it with the source's version")]
    CorruptValue(String),
    #[error("{0}")]
    System(String),
    /// The position in the source's journal is lost: only a full sync is left.
    #[error("position lost: {0}")]
    LostPosition(String),
    /// The same, and the checkpoint says so: no start goes on from it, and none empties the target by itself.
    #[error("position lost: {0}")]
    Void(String),
    #[error("interrupted")]
    Interrupted,
    /// The source was emptied (FLUSHALL, FLUSHDB) while its snapshot was being read: the sync begins anew.
    #[error(
        "flow {flow}: the source ran {command} during the full sync, which voids the snapshot (dragonfly-wire.md 4.8)"
    )]
    SyncVoided { flow: u32, command: String },
    #[error("internal error: {0}; please report it")]
    Internal(String),
}

/// Nothing at the source is longer (its documented maximum is 256 MB): a greater length is no length.
const PLAUSIBLE_BYTES_MAX: u64 = 512 << 20;

/// What a Dragonfly that is a replica answers to its own replicas (wire 1.11).
const IS_REPLICA: &str = "Replicating a replica";

impl From<DecodeError> for EngineError {
    fn from(error: DecodeError) -> Self {
        match &error.reason {
            Reason::LimitPassed { announced, .. } if *announced <= PLAUSIBLE_BYTES_MAX => Self::Refused(format!(
                "{error}. The limits follow from the memory: run again with more --memory (for a key, with a larger \
                 --rx-chunk)"
            )),
            Reason::SourceSaid { text } if text.contains(IS_REPLICA) => {
                Self::SourceIsReplica("it became a replica of another server while it was followed".into())
            }
            Reason::SourceSaid { .. } => Self::SourceSaid(error.to_string()),
            _ => Self::Corrupt(error),
        }
    }
}

impl From<ConvertError> for EngineError {
    fn from(error: ConvertError) -> Self {
        match error {
            ConvertError::Unsupported { .. } => Self::Refused(error.to_string()),
            ConvertError::Decode(error) => Self::Corrupt(error),
            ConvertError::StreamTail { .. } | ConvertError::BadScore { .. } => Self::CorruptValue(error.to_string()),
            ConvertError::UnexpectedRun { .. }
            | ConvertError::WrongLength { .. }
            | ConvertError::JournalBlob { .. } => Self::Internal(error.to_string()),
        }
    }
}

impl From<TranslateError> for EngineError {
    fn from(error: TranslateError) -> Self {
        match error.reason {
            TranslateReason::Unsupported { .. } | TranslateReason::UnknownCommand => Self::Refused(error.to_string()),
            _ => Self::CorruptValue(error.to_string()),
        }
    }
}

impl EngineError {
    /// A refusal gets the place of the record that it is about.
    pub fn at_lsn(self, flow: FlowId, lsn: Lsn) -> Self {
        match self {
            Self::Refused(text) => Self::Refused(format!("{text} (flow {flow}, LSN {lsn})")),
            error => error,
        }
    }

    /// Once the workers run, a target that is not trusted is waited for like one that is away.
    pub fn once_begun(self, begun: bool) -> Self {
        match self {
            Self::Untrusted(text) if begun => Self::TargetLost(text),
            error => error,
        }
    }

    pub fn class(&self) -> Class {
        match self {
            Self::Refused(_) | Self::SourceIsReplica(_) => Class::Refused,
            Self::Source(_) | Self::SourceEmpty(_) | Self::SourceSaid(_) | Self::SyncVoided { .. } => Class::Source,
            Self::Target(_)
            | Self::TooLong(_)
            | Self::TargetLost(_)
            | Self::Untrusted(_)
            | Self::LetGo(_)
            | Self::Torn(_)
            | Self::TargetRestarted(_)
            | Self::LeaseLost(_) => Class::Target,
            Self::Corrupt(_) | Self::CorruptValue(_) => Class::CorruptStream,
            Self::System(_) => Class::System,
            Self::Interrupted => Class::Interrupted,
            Self::LostPosition(_) | Self::Void(_) => Class::PositionLost,
            Self::Internal(_) => Class::Internal,
        }
    }
}
