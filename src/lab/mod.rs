//! (being built)

pub mod relay;
