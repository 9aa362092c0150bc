//! The kernel: probe, ring, slab of fixed buffers, sockets, linked writes, timers. The only room with `unsafe`.

pub mod settings;

pub use settings::{ReadMode, RingSettings, SlabLayout, TaskRun, WriteMode};
