//! What the target is told and answers: requests, replies, DUMP payloads, slots, capabilities. No I/O.
//!
//! - [`resp`]: writing requests. [`request`]: walking over requests already written.
//! - [`reply`]: scanning a stream of replies at full speed. [`value`]: one whole reply of a control connection;
//!   [`value_reader`]: many of them, as they arrive.
//! - [`payload`]: the footer of a DUMP payload; [`reencode`]: value bodies that a target takes in another type.
//! - [`slot`]: the hash slot of a key. [`topology`]: which node of a cluster has which slots; [`own_slots`]: by a node's own word;
//!   [`address`]: where nodes are.
//! - [`info`], [`capabilities`]: what the target says it is, and what that means.
//!
//! Bytes from the target are hostile: every length is checked and bounded, and nothing is allocated for what was only
//! announced.

pub mod address;
pub mod capabilities;
pub mod info;
pub mod own_slots;
pub mod payload;
pub mod reencode;
pub mod reply;
pub mod request;
pub mod resp;
pub mod slot;
pub mod topology;
pub mod value;
pub mod value_reader;

pub use capabilities::{Capabilities, Make, ProbeError, Version};
pub use reply::{Reply, ReplyError, ReplyScanner};
