//! The relay between the same source bytes and a peer that throws them away.

use super::{BenchArgs, pin};
use crate::lab::LabError;
use crate::lab::flow::{Faults, FlowWriter};
use crate::lab::generate::{Generator, Spec};
use crate::lab::master::Feed;
use crate::lab::relay::{RelayOptions, RelayStats, run_relay};
use crate::uring::tcp_pair;
use std::io::Read;
use std::sync::Arc;

/// Relays flow 0 of `spec` once.
pub fn run(args: &BenchArgs, spec: &Spec) -> Result<RelayStats, LabError> {
    pin(args.peer_cpu)?;
    let (ours, source) = tcp_pair()?;
    let (sink, mut theirs) = tcp_pair()?;
    let mut feed = Generator::new(spec.clone()).open(0);
    let writer = std::thread::spawn(move || -> std::io::Result<()> {
        let mut out = FlowWriter::new(ours, 0, 1, None, &Faults::default(), Arc::default())?;
        feed.snapshot(&mut out)?;
        feed.finish(&mut out)
    });
    let reader = std::thread::spawn(move || {
        let mut buffer = vec![0; 256 << 10];
        while matches!(theirs.read(&mut buffer), Ok(1..)) {}
    });
    let options = RelayOptions { chunk_bytes: args.relay_chunk, cpu: Some(args.tool_cpu), ..RelayOptions::default() };
    // In a thread of its own: it is pinned elsewhere than its peers.
    let relay = std::thread::spawn(move || run_relay(source, sink, &options));
    let stats = relay.join().map_err(|_| LabError::Bench("the relay panicked".into()))?;
    let stats = stats.map_err(|e| LabError::Bench(e.to_string()))?;
    let written = writer.join().map_err(|_| LabError::Bench("the relay's source panicked".into()))?;
    written?;
    reader.join().ok();
    Ok(stats)
}
