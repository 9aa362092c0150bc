//! What the source says: bytes to events, and the replica session as a state machine. No I/O, no clock, no unsafe.
//!
//! Format: dragonfly-wire.md, read off Dragonfly's source. Section numbers in comments ("wire 2.6") mean that document.
//!
//! - [`session`]: handshake, phases, refusals; over [`reply`].
//! - [`stream`]: the full sync of one flow; [`event`] is what it says. Below it `record` (what needs no state), `layout`
//!   and `filter` (where values end and may be cut) and `wire` (bounded reads).
//! - [`blob`]: unpacks compressed blobs. [`journal`]: recorded commands. [`value`]: the elements inside values, over
//!   `listpack`, `ziplist`, `intset`, `lzf` and `stream_value`.
//! - [`owner`]: which flow owns a key.
//!
//! All bytes are hostile: reads are bounded, numbers are checked before they are believed, nothing is allocated by a length
//! that no bytes back, and what cannot be decoded is an [`error`] that names flow, offset and reason.

pub mod blob;
pub mod error;
pub mod event;
mod filter;
mod intset;
pub mod journal;
mod layout;
mod listpack;
mod lzf;
pub mod owner;
mod record;
mod release;
pub mod reply;
mod request;
pub mod session;
mod session_error;
pub mod stream;
mod stream_value;
#[cfg(test)]
mod testing;
pub mod value;
mod wire;
mod ziplist;

pub use error::{DecodeError, Reason};
pub use event::*;
