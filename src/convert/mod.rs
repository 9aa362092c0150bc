//! Event to commands for one given target: SET, RESTORE or chunked commands; translation of journal commands; policies
//! for what the target cannot hold. No I/O, no clock (the time is an argument).

pub mod journal;
pub mod out;
pub mod policy;

pub use out::{Class, CommandMeta, Out};
pub use policy::{Action, Kind, Policy};
