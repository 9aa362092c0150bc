//! Why a recorded command cannot be translated: which one, why, and what the operator can do about it.
//!
//! Two families: what the target cannot hold and the policy says `refuse` (the remedy names the flag), and records that
//! make no sense (wrong number of arguments, text where a number belongs), which a master never writes.

use crate::convert::policy::{Action, Kind};
use crate::ids::{DbIndex, FlowId};

/// A record that was not translated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "flow {flow}, db {db}: recorded command {command}{}: {reason}",
    key.as_ref().map(|key| format!(" on key \"{}\"", key.escape_ascii())).unwrap_or_default()
)]
pub struct TranslateError {
    pub flow: FlowId,
    pub db: DbIndex,
    /// As recorded, shortened to [`SHOWN_BYTES_MAX`].
    pub command: Box<str>,
    /// The first key, shortened likewise; none if the command has none, or is not known.
    pub key: Option<Box<[u8]>>,
    pub reason: TranslateReason,
}

/// Longest piece of a hostile record that is kept in an error.
pub const SHOWN_BYTES_MAX: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TranslateReason {
    #[error("the target cannot hold it ({what}); remedy: {}, or a target that has it", remedies(*kind))]
    Unsupported { kind: Kind, what: &'static str },
    #[error(
        "df2redis does not know this command (an alias of the master's --command_alias, or a newer Dragonfly); remedy: \
         --on-unsupported command=skip leaves it out and lists it"
    )]
    UnknownCommand,
    #[error("{given} strings, at least {least} are needed: the record is damaged or of an unknown form")]
    WrongArity { given: usize, least: usize },
    #[error("the arguments do not come in groups of {group}: the record is damaged or of an unknown form")]
    WrongGrouping { group: usize },
    #[error("argument {position} should be {expected}: the record is damaged or of an unknown form")]
    BadArgument { position: usize, expected: &'static str },
    #[error("argument {position} is an option that is not known here: a newer Dragonfly, or a damaged record")]
    UnknownOption { position: usize },
    #[error("a time of {given} (argument {position}) is out of range")]
    TimeOutOfRange { position: usize, given: i64 },
    #[error("its payload is damaged: {what}")]
    BadPayload { what: &'static str },
    #[error("its payload: {cause}")]
    Payload { cause: Box<str> },
}

/// The flags that would let a thing of this kind pass.
fn remedies(kind: Kind) -> String {
    let actions = kind.allowed().iter().filter(|action| **action != Action::Refuse);
    actions.map(|action| format!("--on-unsupported {kind}={action}")).collect::<Vec<_>>().join(" or ")
}

/// The front of a piece of a record, fit to be kept in an error.
pub(super) fn shown(bytes: &[u8]) -> &[u8] {
    bytes.get(..SHOWN_BYTES_MAX).unwrap_or(bytes)
}
