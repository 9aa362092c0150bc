//! What can go wrong with a session (wire 1.11): each with its cause and what helps.

use super::reply::{Reply, ReplyError};
use crate::ids::FlowId;

/// Longest piece of a peer's text that is repeated in an error.
const QUOTE_BYTES_MAX: usize = 200;

/// For an answer to AUTH: some servers repeat what they were sent, the password included.
const NOT_SHOWN: &str = "words that may repeat what was sent, and are not shown";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    #[error("the source wants a password ({what}): give one for the source (environment, file or TOML)")]
    NoAuth { what: &'static str },
    #[error("the source refuses user name or password: correct them, or enable the user at the source")]
    WrongPassword,
    #[error("the source has no password configured for this port: leave the password away ({text})")]
    PasswordNotWanted { text: String },
    #[error("the source's user may not run {what} ({text}): grant it (README.md lists the least that is needed)")]
    NoPermission { what: &'static str, text: String },
    #[error("the source allows {what} on its admin port only (flag restricted_commands): connect to the admin port")]
    Restricted { what: &'static str },
    #[error("the source is a replica itself: connect to its master")]
    SourceIsReplica,
    #[error("the source is loading its data set: try again when it has finished")]
    Loading,
    #[error("the source is shutting down: try again when it is back")]
    ShuttingDown,
    #[error("the source refuses more clients (maxclients): close some, raise the limit, or use the admin port")]
    MaxClients,
    #[error(
        "the source does not know its own id any more: it was restarted in between, or a load balancer spreads the connections over several servers"
    )]
    BadMasterId,
    #[error("the source takes our sync id for malformed ({what})")]
    BadSyncId { what: &'static str },
    #[error(
        "the source has cancelled the registration ({what}): a connection was lost or too slow; start again, and look at its log"
    )]
    SyncIdNotFound { what: &'static str },
    #[error(
        "the source says that {what} does not fit its state: a flow is missing, the phase is wrong, or it is shutting down; start again"
    )]
    InvalidState { what: &'static str },
    #[error("the source is no Dragonfly: it knows REPLCONF capa dragonfly only as Redis or Valkey do")]
    NotDragonfly,
    #[error("the source refused {what}: {text}")]
    Refused { what: &'static str, text: String },
    #[error("the source answered {what} with {found}, which is no such reply")]
    UnexpectedReply { what: &'static str, found: String },
    #[error("the source's registration cannot be used: {what}")]
    BadRegistration { what: &'static str },
    #[error("the source's reply to DFLY FLOW cannot be used: {what}")]
    BadFlowReply { what: &'static str },
    #[error("the source offered a partial sync where a full one was asked for: close all connections and start again")]
    PartialInFullSync,
    #[error("flow {flow} ended with a token that is not its own: the stream cannot be trusted; start again")]
    TokenMismatch { flow: FlowId },
    #[error("out of order: {what}")]
    OutOfOrder { what: &'static str },
    #[error(transparent)]
    Reply(#[from] ReplyError),
}

/// What may help after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Nothing will change by itself.
    No,
    /// Wait, then begin again with new connections.
    Later,
    /// Begin again with new connections.
    NewSession,
}

impl SessionError {
    /// What to do about it.
    pub fn retry(&self) -> Retry {
        match self {
            SessionError::Loading | SessionError::ShuttingDown | SessionError::MaxClients => Retry::Later,
            SessionError::BadMasterId
            | SessionError::SyncIdNotFound { .. }
            | SessionError::InvalidState { .. }
            | SessionError::PartialInFullSync
            | SessionError::TokenMismatch { .. } => Retry::NewSession,
            _ => Retry::No,
        }
    }

    /// The error that a reply to `what` means which is not the one wanted.
    pub fn of_reply(what: &'static str, reply: &Reply) -> Self {
        match reply {
            Reply::Error(text) => Self::of_error_line(what, text),
            _ if what == "AUTH" => SessionError::UnexpectedReply { what, found: NOT_SHOWN.into() },
            other => SessionError::UnexpectedReply { what, found: show(other) },
        }
    }

    fn of_error_line(what: &'static str, line: &[u8]) -> Self {
        let line = String::from_utf8_lossy(line);
        let text = || if what == "AUTH" { NOT_SHOWN.into() } else { quote(&line) };
        let (code, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match code {
            "NOAUTH" => return SessionError::NoAuth { what },
            "WRONGPASS" => return SessionError::WrongPassword,
            "NOPERM" => return SessionError::NoPermission { what, text: text() },
            "LOADING" => return SessionError::Loading,
            _ => {}
        }
        let has = |part: &str| rest.contains(part);
        if has("without any password configured") {
            SessionError::PasswordNotWanted { text: text() }
        } else if has("restricted command") {
            SessionError::Restricted { what }
        } else if has("Replicating a replica") {
            SessionError::SourceIsReplica
        } else if has("SHUTTING_DOWN") {
            SessionError::ShuttingDown
        } else if has("LOADING") {
            SessionError::Loading
        } else if has("max number of clients") {
            SessionError::MaxClients
        } else if has("bad master id") {
            SessionError::BadMasterId
        } else if has("bad sync id") {
            SessionError::BadSyncId { what }
        } else if has("syncid not found") {
            SessionError::SyncIdNotFound { what }
        } else if has("invalid state") {
            SessionError::InvalidState { what }
        } else if has("unknown command") && what.starts_with("REPLCONF") {
            SessionError::NotDragonfly
        } else {
            SessionError::Refused { what, text: text() }
        }
    }
}

fn show(reply: &Reply) -> String {
    match reply {
        Reply::Simple(text) => format!("+{}", quote(&String::from_utf8_lossy(text))),
        Reply::Error(text) => format!("-{}", quote(&String::from_utf8_lossy(text))),
        Reply::Integer(number) => format!(":{number}"),
        Reply::Bulk(None) | Reply::Array(None) => "null".into(),
        Reply::Bulk(Some(text)) => quote(&String::from_utf8_lossy(text)),
        Reply::Array(Some(items)) => format!("an array of {}", items.len()),
    }
}

/// A peer's text, short and without control characters.
fn quote(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().map(|c| if c.is_control() { '?' } else { c }) {
        if out.len() + c.len_utf8() > QUOTE_BYTES_MAX {
            out.push_str("...");
            break;
        }
        out.push(c);
    }
    out
}
