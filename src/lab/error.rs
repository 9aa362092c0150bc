//! What can go wrong in the lab, with what to do about it.

use std::io;
use std::path::PathBuf;

/// Errors of the lab. Tests and the demo show them as they are.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{path}: {reason}; the recording is damaged, restore it from version control")]
    Recording { path: PathBuf, reason: String },
    #[error("no recording named {name:?} in {dir}; set DF2REDIS_CAPTURES to the folder that holds the recordings")]
    NoRecording { name: String, dir: PathBuf },
    #[error("cannot listen on {address}: {source}; choose another address or port")]
    Listen { address: String, source: io::Error },
    #[error("no {what} found; looked at {looked_at}. Run tools/servers to install it, or set DF2REDIS_SERVERS")]
    NoServer { what: String, looked_at: String },
    #[error("{binary} did not get ready: {reason}; its log ends with:\n{log}")]
    ServerStart { binary: PathBuf, reason: String, log: String },
    #[error("connection to {peer}: {source}")]
    Connection { peer: String, source: io::Error },
    #[error("{peer} sent what is no RESP reply: {reason}")]
    Reply { peer: String, reason: String },
    #[error("{peer} answered {command}: {error}")]
    Refused { peer: String, command: String, error: String },
    #[error("mix {text:?}: {reason}; an example is string:100B=1000,hash:20x8=50")]
    Mix { text: String, reason: String },
    #[error("{0}")]
    Bench(String),
    #[error("{0}")]
    Io(#[from] io::Error),
}
