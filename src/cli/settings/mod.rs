//! Settings: declared once ([`table`]), merged from flags, environment and file ([`layers`]), resolved into what the
//! engine takes ([`resolve`]), shown with their origins ([`print`]).
//!
//! Invariants: a resolved value needs no further check; impossible combinations are refused here; secrets come only from
//! environment and files and are never shown.

pub mod error;
pub mod layers;
pub mod print;
pub mod resolve;
mod suggest;
pub mod syntax;
pub mod table;
mod tls;

pub use error::UsageError;
pub use layers::{Environment, Flags, Origin, Values};
pub use resolve::{Console, DemoSettings, OutputForm};
