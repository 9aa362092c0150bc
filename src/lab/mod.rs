//! What demo, benchmarks and tests stand on: the other ends of the wire, made to order.
//!
//! - [`master`]: a Dragonfly-like front (handshake, registrations, phases); its data comes from a [`master::Feed`].
//! - [`replay`]: a feed that serves recorded streams; [`recordings`] finds and loads them.
//! - [`generate`]: a feed that makes N flows of a seeded key space, and a model of the right end state.
//! - [`live`]: a feed whose keys change while it is replicated, by seeded writers and by ordinary clients.
//! - [`encode`]: the encoder below `generate` and `live`, written from dragonfly-wire.md alone, so that it can judge the decoder.
//! - [`flow`]: the writer of one flow: pieces, cuts, stalls, garbled bytes, slow sending.
//! - [`relay`]: the floor under the benchmarks: reads and sends, decodes nothing.
//! - [`bench`]: measurements of the tool beside the relay and beside real loaders (`tools/bench load`).
//! - [`sink`]: a RESP server that answers at full speed; [`script`]: one that misbehaves by script.
//! - [`proxy`]: bytes through to a real server, cut, slowed, paused or split on the way; [`tls_proxy`]: TLS in front of one.
//! - [`journal`]: where each LSN begins in a recorded journal; [`torture`]: kills `replicate` again and again.
//! - [`servers`]: real servers as children; [`cluster`]: a cluster of them; [`client`]: a small blocking client to ask them.
//!
//! Everything here runs on plain blocking threads, so that nothing of the tool's own engine is under the tests' feet.
//! Nothing in `dragonfly`, `redis`, `convert`, `engine` or `uring` is used to make the bytes that test them.

pub mod answers;
pub mod bench;
pub mod client;
pub mod cluster;
pub mod cpu;
pub mod encode;
pub mod error;
pub mod flow;
pub mod generate;
pub mod journal;
pub mod live;
pub mod master;
pub mod proxy;
pub mod recordings;
pub mod relay;
pub mod replay;
pub mod request;
pub mod rng;
pub mod script;
pub mod servers;
pub mod sink;
pub mod tls_proxy;
pub mod torture;
pub mod truth;
pub mod walk;

pub use error::LabError;

/// The answer of a source to TIME, by this machine's clock: Dragonfly gives integers.
fn source_time_reply() -> Vec<u8> {
    let now = unix_time();
    format!("*2\r\n:{}\r\n:{}\r\n", now.as_secs(), now.subsec_micros()).into_bytes()
}

/// The answer of a target: Redis gives texts.
fn target_time_reply() -> Vec<u8> {
    let now = unix_time();
    let (seconds, micros) = (now.as_secs().to_string(), now.subsec_micros().to_string());
    format!("*2\r\n${}\r\n{seconds}\r\n${}\r\n{micros}\r\n", seconds.len(), micros.len()).into_bytes()
}

fn unix_time() -> std::time::Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}
