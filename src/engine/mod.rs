//! Control plane, workers, windows in flight, phases.
//!
//! ```text
//! migrate   one full sync from handshake to end          control thread, tokio-uring
//!   source, target, link, resolve   control connections; standing: is it still the master; lease: one job into one target; own: names of its keys there
//!   crew    workers started, listened to, reconnected, stopped
//! worker    one ring, one slab: flows in, lanes out       one thread a core
//!   flow    socket -> input -> decoder -> handle (filters) -> convert -> writer
//!   reading socket -> backlog -> spool file -> input, where the target does not keep up
//!   upstream a source that is gone: what was read is applied to its end
//!   vanished keys that the target lost: in doubt (`doubt`), fetched again (`fetch`), kept in the checkpoint (`lost`)
//!   lane    writer -> batches -> linked sends -> replies; lanes: all of a worker's, lost, refused, silent ones too
//!   router  of a cluster: slots to lanes, markers, positions; held, units: between two slot maps
//! cluster   who has which slot, routed commands; settle, apart: what a held worker left behind
//! cutover   what comes after what; handover: with connections, hooks and a clock; witness, sealed: what speaks against the fence
//! verify    source against target, through ordinary commands   control thread, tokio-uring
//! ```
//!
//! Invariants: what the report calls done was proven by positions on both sides; a command is sent again only after a
//! lost connection, and only if the target is known not to have applied it, or if applying it twice in order changes
//! nothing.

mod absent;
mod again;
mod apart;
mod asking;
mod backlog;
mod batch;
mod checkpoint;
mod cluster;
pub mod control;
mod crew;
pub mod cutover;
mod doubt;
mod draining;
mod easing;
pub mod error;
mod errors;
mod fence;
mod fetch;
mod figures;
mod flow;
mod follow;
mod global;
mod handing;
mod handle;
mod handover;
mod held;
mod hold;
mod homes;
pub mod hooks;
mod import;
mod input;
mod job;
mod joining;
mod lag;
mod lane;
mod lanes;
mod layout;
mod lease;
mod link;
mod lost;
mod messages;
mod migrate;
mod outlet;
mod own;
mod owners;
mod patience;
mod phase;
mod preflight;
mod proving;
mod reading;
mod refusal;
mod replicas;
mod replicate;
mod resolve;
mod returned;
mod righting;
mod router;
mod rows;
mod scoped;
mod sealed;
pub mod settings;
mod settle;
mod sizes;
mod source;
pub mod spool;
mod stable;
mod standing;
mod sweep;
mod target;
pub mod throttle;
pub mod tls;
mod unclear;
mod units;
mod upstream;
mod vanished;
pub mod verify;
mod view;
mod wire;
pub mod witness;
mod worker;
mod writer;

pub use error::EngineError;
pub use job::{Service, run, run_with};
