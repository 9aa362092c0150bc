//! Event to commands for one given target: SET, RESTORE or chunked commands; translation of journal commands; policies
//! for what the target cannot hold. No I/O, no clock (the time is an argument).
//!
//! A [`Converter`] belongs to one flow. It takes the decoder's events and writes commands to an [`Out`]; which form a
//! value takes is decided by the [`Plan`], built once from the target's capabilities and the operator's policy. What was
//! read, written and left out is counted in a [`Tally`].
//!
//! - [`converter`]: events in, by type to the forms below.
//! - `string`, `collection`, `expiring`, `stream`, `json`: the forms. `chunk`: commands of bounded size.
//! - [`scope`]: which keys are carried, and under which name and database.
//! - `emit`: single commands. [`out`]: where they go.

pub mod converter;
pub mod error;
pub mod escape;
pub mod hold;
pub mod journal;
pub mod names;
pub mod near;
pub mod out;
pub mod plan;
pub mod policy;
pub mod scope;
pub mod tally;

mod chunk;
mod collection;
mod emit;
mod expiring;
mod json;
mod stream;
mod stream_ids;
mod string;
#[cfg(test)]
mod tests;

pub use converter::Converter;
pub use error::ConvertError;
pub use out::{Class, CommandMeta, Out};
pub use plan::{Limits, Plan};
pub use policy::{Action, Kind, Policy, PolicyError};
pub use scope::{OWN_PREFIX, Scope, ScopeError, ScopeSpec, is_own};
pub use tally::{NotCarried, Tally, TypeClass, TypeTally, What};
