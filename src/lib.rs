//! df2redis moves the whole data set of a live Dragonfly server into Redis or Valkey.
//!
//! ```text
//! flow socket -> READ_FIXED into a slab chunk -> dragonfly::stream (events that borrow the chunk)
//!   -> convert (form, RESP header; large values stay where they are) -> batch of one target connection
//!   -> linked vectored writes -> replies counted -> chunk back to the slab
//! ```
//!
//! Rooms, from the bottom:
//!
//! - [`ids`]: the newtypes that every room shares.
//! - [`dragonfly`]: what the source says. Bytes to events; the replica session. No I/O, no clock.
//! - [`redis`]: what the target is told and answers. Requests, replies, DUMP payloads, capabilities. No I/O.
//! - [`uring`]: the kernel: probe, ring, slab of fixed buffers, linked writes. The only room with `unsafe`.
//! - [`convert`]: event to commands for one given target; policies for what it cannot hold. Knows the first two.
//! - [`report`]: counters, histograms, exporters.
//! - [`engine`]: control plane, workers, windows in flight, phases. Knows all of the above. Begin at [`engine::run_migrate`].
//! - [`lab`]: simulated Dragonfly (generated or replayed), RESP sink, relay, real servers as children: what demo, bench
//!   and tests stand on. Beside the program itself, `tools/dfly-sim` is its command line.
//! - [`operator`]: progress and logging.
//! - [`cli`]: one file a subcommand; settings.
//!
//! What always holds: an error never looks like an end of data; bytes from either peer are bounded and checked before
//! anything is allocated for them; a command is sent again only where that cannot change the outcome.
#![deny(unsafe_code)]

pub mod cli;
pub mod convert;
pub mod dragonfly;
pub mod engine;
pub mod ids;
pub mod lab;
pub mod operator;
pub mod redis;
pub mod report;
#[allow(unsafe_code)]
pub mod uring;
