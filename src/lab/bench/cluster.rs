//! What routing costs: the same keys into the sinks of a cluster of three primaries and into one sink, in turns.
//!
//! In: pre-encoded loads on four flows. Out: the ratio of the tool's CPU time. The sinks stand on another CPU, so that only
//! the tool's own work is compared.

use super::table::Results;
use super::{BenchArgs, fast_spec, tool};
use crate::lab::LabError;

/// The cluster may cost so many times the CPU of one server.
const CPU_RATIO_MAX: f64 = 1.15;
const PRIMARIES: usize = 3;
const FLOWS: usize = 4;
const CASES: [(&str, &str, u64); 3] = [
    ("cluster: 100 B strings", "string:100B", 4_000_000),
    ("cluster: 1 KiB strings", "string:1KiB", 1_000_000),
    ("cluster: hashes of 20 fields", "hash:20x4", 2_000_000),
];

pub fn run(args: &BenchArgs, results: &mut Results) -> Result<(), LabError> {
    for (name, mix, keys) in CASES.iter().filter(|(name, ..)| name.contains(&args.only)) {
        let spec = fast_spec(mix, *keys, FLOWS, args.scale)?;
        let (mut ratios, mut one_rates, mut cluster_rates) = (vec![], vec![], vec![]);
        for round in 0..args.rounds {
            let mut one = None;
            if round % 2 == 0 {
                one = Some(tool::against_sink(args, &spec)?);
            }
            let cluster = tool::against_cluster(args, &spec, PRIMARIES)?;
            let one = match one {
                Some(one) => one,
                None => tool::against_sink(args, &spec)?,
            };
            ratios.push(cluster.cpu_s / one.cpu_s);
            one_rates.push(one.keys as f64 / one.cpu_s / 1e6);
            cluster_rates.push(cluster.keys as f64 / cluster.cpu_s / 1e6);
            eprintln!("{name} {}: cluster {cluster:?} one {one:?}", round + 1);
        }
        results.add(name, "CPU of the tool, three primaries to one server", ratios, None, Some(CPU_RATIO_MAX));
        results.add(name, "million keys a CPU-second, one server", one_rates, None, None);
        results.add(name, "million keys a CPU-second, three primaries", cluster_rates, None, None);
    }
    Ok(())
}
