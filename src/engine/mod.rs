//! Control plane, workers, windows in flight, phases.

pub mod settings;
