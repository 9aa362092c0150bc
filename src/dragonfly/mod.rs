//! What the source says: bytes to events, and the replica session as a state machine. No I/O, no clock, no unsafe.
//!
//! Format: dragonfly-wire.md, read off Dragonfly's source. Section numbers in comments ("wire 2.6") mean that document.

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
