//! How the memory of a run is divided. Everything is decided here, once, so that the sum is bounded by construction.

use super::error::EngineError;
use super::settings::MigrateSettings;
use super::spool;
use super::wire::{FLOW_TLS_BYTES, LANE_TLS_BYTES};
use crate::dragonfly::stream::Limits;
use crate::uring::SlabLayout;

/// Memory of one worker.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub layout: SlabLayout,
    /// Receive chunks set apart for what spools.
    pub spool_chunks: usize,
    /// Heap for values longer than a receive chunk that must be contiguous (JSON, long elements, journal records), and
    /// once more as much for those inside of compressed blobs.
    pub heap_bytes_max: usize,
    pub limits: Limits,
    /// Strings up to this length go as one SET, longer ones in pieces.
    pub set_bytes_max: u64,
}

/// The kernel registers at most this much as one buffer.
const ARENA_BYTES_MAX: usize = 1 << 30;
/// Reads of this size wake the source half as often as those of 256 KiB, and still lie in the L2 cache when they are decoded.
const RX_CHUNK_BYTES_MAX: usize = 512 * 1024;
const RX_CHUNK_BYTES_MIN: usize = 64 * 1024;
const TX_CHUNK_BYTES: usize = 32 * 1024;
/// A string is sent whole up to here, whatever the memory: longer ones would hold up the other flows of a connection.
const SET_BYTES_MAX: usize = 4 << 20;
/// Receive memory that suffices for one flow at full speed; more would only cool the caches.
const RX_BYTES_PER_FLOW: usize = 16 << 20;
const PAGE_BYTES: usize = 4096;
/// A HyperLogLog (at most 12,304 bytes) must come whole, or it is not seen that it may be a stray (wire 1.1).
const WHOLE_BYTES_MIN: usize = 16 * 1024;

impl Sizes {
    /// Divides `memory_bytes` among `workers` of which the busiest has `flows` flows and `lanes` connections.
    pub fn derive(settings: &MigrateSettings, workers: usize, flows: usize, lanes: usize) -> Result<Self, EngineError> {
        let flows = flows.max(1);
        // Over TLS each connection has a chunk for ciphertext, and memory of its own for records.
        let source_tls = if settings.source.tls.is_some() { flows } else { 0 };
        let target_tls = if settings.target.tls.is_some() { lanes } else { 0 };
        let share = settings.memory_bytes / workers.max(1);
        let share = share.saturating_sub(source_tls * FLOW_TLS_BYTES + target_tls * LANE_TLS_BYTES);
        let arena = (share / 2).min(ARENA_BYTES_MAX);
        // Send chunks: what the windows can hold, the reserve of an event, a reply chunk for each lane, and one for each
        // flow, which may be in the middle of a large string.
        let tx_wanted = lanes * (2 * settings.window_bytes / TX_CHUNK_BYTES + 4) + 48 + flows + target_tls;
        let tx_chunks = tx_wanted.min(arena / 3 / TX_CHUNK_BYTES);
        let rx_bytes = arena.saturating_sub(tx_chunks * TX_CHUNK_BYTES).min(flows * RX_BYTES_PER_FLOW);
        let spool_chunks = if settings.spool.is_some() { spool::reserve_chunks(flows) } else { 0 };
        let rx_chunk_bytes = match settings.rx_chunk_bytes {
            Some(bytes) => bytes.next_multiple_of(PAGE_BYTES),
            None => {
                (rx_bytes / (flows * 8 + spool_chunks + source_tls)).clamp(RX_CHUNK_BYTES_MIN, RX_CHUNK_BYTES_MAX)
                    / PAGE_BYTES
                    * PAGE_BYTES
            }
        };
        let rx_chunks = rx_bytes / rx_chunk_bytes;
        // Each flow may hold two chunks and a blob's chunk besides a string that is being received.
        if rx_chunks < flows * 4 + spool_chunks + source_tls || tx_chunks < 48 + flows + 2 * lanes + target_tls {
            return Err(EngineError::Refused(format!(
                "--memory {} is too little for {flows} flows on one of {workers} worker(s) with chunks of {rx_chunk_bytes} bytes; \
                 give more memory or smaller chunks (--rx-chunk), or do without a spool (--spool none)",
                settings.memory_bytes
            )));
        }
        let string_room = (rx_chunks - spool_chunks - source_tls - flows * 3) * rx_chunk_bytes / (2 * flows);
        let heap_bytes_max = share / 4;
        Ok(Self {
            layout: SlabLayout { rx_chunk_bytes, rx_chunks, tx_chunk_bytes: TX_CHUNK_BYTES, tx_chunks },
            spool_chunks,
            heap_bytes_max,
            limits: Limits {
                whole_bytes_max: (rx_chunk_bytes / 2).min(settings.restore_bytes_max).max(WHOLE_BYTES_MIN),
                run_bytes_max: 16 * 1024,
                atom_bytes_max: heap_bytes_max.max(rx_chunk_bytes),
                key_bytes_max: rx_chunk_bytes / 2,
                open_objects_max: 1024,
            },
            set_bytes_max: string_room.min(SET_BYTES_MAX) as u64,
        })
    }
}
