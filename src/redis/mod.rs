//! What the target is told and answers: requests, replies, DUMP payloads, capabilities. No I/O.

pub mod capabilities;

pub use capabilities::Capabilities;
