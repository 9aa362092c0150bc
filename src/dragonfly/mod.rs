//! What the source says: bytes to events, and the replica session as a state machine. No I/O, no clock, no unsafe.
//!
//! Format: dragonfly-wire.md, read off Dragonfly's source. Section numbers in comments ("wire 2.6") mean that document.

pub mod error;
pub mod event;
pub mod journal;
pub mod stream;
pub mod value;

pub use error::{DecodeError, Reason};
pub use event::*;
