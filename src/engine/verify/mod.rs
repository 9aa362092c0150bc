//! `verify`: source against target, both directions, while both are written to.
//!
//! ```text
//! run       the walk over both sides' keys, rounds over suspects, state file, summary
//!   fenced    the same, made ready before a cutover's fence and done behind it
//!   look      one look at a few keys: type, expiry, value          image, fields, paged, stream, hll, hollow
//!   suspects  what differed, looked at again until lag cannot explain it
//!   repair    copies a key again, whole
//!   walk      SCAN, node by node, and again where slots moved    round
//!   names     which keys are compared, and where a key stands at the other side
//!   peer      one side: a server, or the primaries of a cluster    wire, nodes
//! ```
//!
//! Both sides are read through ordinary commands. Invariants: every key that a side had from the beginning to the end is
//! compared (SCAN promises no more); memory is bounded whatever the values; the source is read on one connection a node,
//! within the rate; nothing is written, unless by `--repair` at the target.

pub mod difference;
pub mod fenced;
mod fields;
mod hll;
mod hollow;
mod image;
mod json;
mod look;
mod names;
mod nodes;
mod paged;
mod peer;
mod rate;
mod repair;
mod round;
mod run;
pub mod settings;
mod state;
mod stream;
mod summary;
mod suspects;
mod walk;
mod wire;

pub use paged::scan_reply;
pub use run::{Observer, Progress, Summary, run};
pub use settings::{Mode, Rate, Repair, SampleSize, VerifySettings};
