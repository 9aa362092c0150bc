//! The kernel: probe, ring, slab of fixed buffers, sockets, linked writes, files, clocks. The only room with `unsafe`.
//!
//! A worker owns one [`Ring`]; the ring owns one arena, cut into a [`Slab`] of chunks. In: reads into chunks, chains of
//! batches to send. Out: [`Completion`]s, reaped once a turn. What always holds, whatever the callers do: memory that
//! the kernel may write is reachable by nobody else; memory that the kernel may read is neither changed nor given back;
//! a socket has at most one read and one chain of sends in flight, so that the order of its bytes is defined.
//!
//! It knows nothing of either protocol. Numbers and traps behind the choices: `linux-only.md`.

mod arena;
pub mod clock;
pub mod cpu;
mod error;
mod features;
mod file;
mod op;
pub mod probe;
mod ring;
pub mod settings;
mod setup;
mod slab;
mod socket;
mod wake;

#[cfg(test)]
mod file_tests;
#[cfg(test)]
mod ring_tests;

pub use error::UringError;
pub use features::{Feature, Features, Memlock};
pub use file::{UnnamedFile, free_bytes};
pub use op::Segment;
pub use ring::{Completion, CompletionKind, Counters, Outgoing, Ring};
pub use settings::{ReadMode, RingSettings, SlabLayout, TaskRun, WriteMode};
pub use setup::explain_setup;
pub use slab::{ChunkId, ChunkView, Class, Slab};
pub use socket::{PeerSigns, Socket, duplicate_fd, tcp_pair, unread_bytes};
pub use wake::Waker;
