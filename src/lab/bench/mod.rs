//! `tools/bench load`, `journal` and `cutover`: the tool beside a plain relay, and beside `redis-cli --pipe` and a blind writer, in one run.
//!
//! In: a [`Generator`] as the source, a [`Sink`](super::sink::Sink) or a real redis-server as the target. Out: a table, a JSON document. What is
//! compared runs in turns within each round, so that a noisy machine hits all alike; what is reported is the median of the
//! rounds' ratios. The thing measured is alone on one CPU, its peers are on another. CPU time of the tool is that of its
//! whole process, from start to end; that of the relay is its thread's. Only ratios taken in one run mean anything.

mod cluster;
mod cutover;
mod direct;
mod floor;
mod follow;
mod journal;
mod memory;
mod nodes;
mod real;
mod table;
mod tls;
mod tool;

use super::LabError;
use super::generate::{Compression, Spec};
use crate::uring::cpu;
use std::path::PathBuf;

/// How to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchArgs {
    /// Which parts. Of load: sink, redis, memory (these unless given), tls, cluster, nodes; of journal: rate, lag, idle; of cutover: idle, writers (all unless given)
    #[arg(long, value_delimiter = ',')]
    pub parts: Vec<String>,
    /// Only cases whose name contains this
    #[arg(long, default_value = "")]
    pub only: String,
    /// Rounds; in each, everything compared runs once
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Multiplies the amount of data
    #[arg(long, default_value_t = 1.0)]
    pub scale: f64,
    /// CPU of the thing measured
    #[arg(long, default_value_t = 1)]
    pub tool_cpu: usize,
    /// CPU of its peers
    #[arg(long, default_value_t = 0)]
    pub peer_cpu: usize,
    /// The tool's binary; else `df2redis` beside this one
    #[arg(long)]
    pub tool: Option<PathBuf>,
    /// More arguments for the tool (as in `--tool-arg=--batch-bytes=64KiB`)
    #[arg(long)]
    pub tool_arg: Vec<String>,
    /// Size of a relay's read; the tool's receive chunk unless given
    #[arg(long, default_value_t = 512 << 10)]
    pub relay_chunk: usize,
    /// Write all figures to this file
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// A load against the sink, and what is to be reached.
struct Case {
    name: &'static str,
    mix: &'static str,
    keys: u64,
    /// Bytes a CPU-second, as a share of the relay's.
    relay_share_min: Option<f64>,
    keys_per_cpu_s_min: Option<f64>,
}

const CASES: [Case; 4] = [
    Case {
        name: "100 B strings",
        mix: "string:100B",
        keys: 8_000_000,
        relay_share_min: None,
        keys_per_cpu_s_min: Some(3e6),
    },
    Case {
        name: "1 KiB strings",
        mix: "string:1KiB",
        keys: 2_000_000,
        relay_share_min: Some(0.6),
        keys_per_cpu_s_min: None,
    },
    Case {
        name: "1 MiB strings",
        mix: "string:1MiB",
        keys: 3_000,
        relay_share_min: Some(0.85),
        keys_per_cpu_s_min: None,
    },
    Case {
        name: "hashes of 20 fields",
        mix: "hash:20x4",
        keys: 4_000_000,
        relay_share_min: None,
        keys_per_cpu_s_min: Some(1.5e6),
    },
];

/// Runs all parts of `load` asked for and prints the table. Returns whether every figure was reached.
pub fn run(args: &BenchArgs) -> Result<bool, LabError> {
    run_parts(args, &["sink", "redis", "memory"], &["tls", "cluster", "nodes"], |part, results| match part {
        "sink" => CASES
            .iter()
            .filter(|case| case.name.contains(&args.only))
            .try_for_each(|case| sink_case(args, case, results)),
        "redis" => real::run(args, results),
        "tls" => tls::run(args, results),
        "cluster" => cluster::run(args, results),
        "nodes" => nodes::run(args, results),
        _ => memory::run(args, results),
    })
}

/// The same for `journal`.
pub fn run_journal(args: &BenchArgs) -> Result<bool, LabError> {
    let mut journal = journal::JournalBench::start(args)?;
    run_parts(args, &["rate", "lag", "idle"], &[], |part, results| match part {
        "rate" => journal.rate(results),
        "lag" => journal.lag(results),
        _ => journal.idle(results),
    })
}

/// The same for `cutover`.
pub fn run_cutover(args: &BenchArgs) -> Result<bool, LabError> {
    run_parts(args, &["idle", "writers"], &[], |part, results| cutover::run(args, part == "writers", results))
}

fn run_parts(
    args: &BenchArgs,
    usual: &[&str],
    more: &[&str],
    mut run: impl FnMut(&str, &mut table::Results) -> Result<(), LabError>,
) -> Result<bool, LabError> {
    let all = [usual, more].concat();
    if let Some(other) = args.parts.iter().find(|part| !all.contains(&part.as_str())) {
        return Err(LabError::Bench(format!("no part {other:?}; there are {}", all.join(", "))));
    }
    let mut results = table::Results::new(args);
    let unasked = |part: &str| args.parts.is_empty() && usual.contains(&part);
    let wanted = |part: &&&str| unasked(part) || args.parts.iter().any(|wanted| wanted == **part);
    all.iter().filter(wanted).try_for_each(|part| run(part, &mut results))?;
    print!("{}", results.render());
    if let Some(path) = &args.json {
        std::fs::write(path, results.to_json()).map_err(|source| LabError::File { path: path.clone(), source })?;
    }
    Ok(results.all_reached())
}

/// A pre-encoded load of one kind on so many flows.
fn fast_spec(mix: &str, keys: u64, flows_count: usize, scale: f64) -> Result<Spec, LabError> {
    let keys = ((keys as f64 * scale) as u64).max(1);
    let spec = Spec::of(&format!("{mix}={keys}"))?;
    Ok(Spec { flows_count, compression: Compression::None, fast: true, ..spec })
}

fn pin(cpu: usize) -> Result<(), LabError> {
    cpu::pin_current_thread(cpu).map_err(|e| LabError::Bench(format!("cannot run on CPU {cpu}: {e}")))
}

fn sink_case(args: &BenchArgs, case: &Case, results: &mut table::Results) -> Result<(), LabError> {
    let spec = fast_spec(case.mix, case.keys, 1, args.scale)?;
    let (mut shares, mut keys_rates, mut byte_rates, mut floor_rates) = (vec![], vec![], vec![], vec![]);
    let (mut walls, mut calls, mut rss) = (vec![], vec![], vec![]);
    for round in 0..args.rounds {
        // Whoever goes first finds the caches of the other.
        let mut floor = None;
        if round % 2 == 0 {
            floor = Some(floor::run(args, &spec)?);
        }
        let tool = tool::against_sink(args, &spec)?;
        let floor = match floor {
            Some(floor) => floor,
            None => floor::run(args, &spec)?,
        };
        let floor_rate = floor.bytes as f64 / (floor.cpu_ns as f64 / 1e9);
        let rate = tool.bytes_in as f64 / tool.cpu_s;
        shares.push(rate / floor_rate);
        keys_rates.push(tool.keys as f64 / tool.cpu_s);
        byte_rates.push(rate);
        floor_rates.push(floor_rate);
        walls.push(tool.transfer_s);
        calls.push(tool.system_calls as f64 / (tool.bytes_in as f64 / (1u64 << 30) as f64));
        rss.push(tool.rss_bytes as f64);
        eprintln!("{} {}: {tool:?} {floor:?}", case.name, round + 1);
    }
    let mib = |rates: Vec<f64>| rates.into_iter().map(|rate| rate / f64::from(1 << 20)).collect::<Vec<_>>();
    results.add(case.name, "share of the relay's bytes a CPU-second", shares, case.relay_share_min, None);
    results.add(
        case.name,
        "million keys a CPU-second",
        keys_rates.into_iter().map(|rate| rate / 1e6).collect(),
        case.keys_per_cpu_s_min.map(|min| min / 1e6),
        None,
    );
    results.add(case.name, "MiB in a CPU-second", mib(byte_rates), None, None);
    results.add(case.name, "MiB a CPU-second, relay", mib(floor_rates), None, None);
    results.add(case.name, "transfer, s", walls, None, None);
    results.add(case.name, "system calls a GiB in", calls, None, None);
    results.add(case.name, "peak memory, MiB", mib(rss), None, Some(memory::RSS_MIB_MAX));
    Ok(())
}
