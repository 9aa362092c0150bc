//! Whether a node of a cluster starves: three real servers share both CPUs with the source and the tool.
//!
//! In: a pre-encoded load on four flows into a cluster of empty primaries. Out: the smallest share that a node had in any
//! fifth of a second while all of them had keys to come, and the longest time in which a node got no key while another did.
//! Each node is asked for its number of keys on a connection and a thread of its own, so that a busy one delays its own samples only.

use super::table::Results;
use super::{BenchArgs, fast_spec, tool};
use crate::lab::LabError;
use crate::lab::client::Client;
use crate::lab::cluster::Cluster;
use crate::lab::servers::{Server, ServerOptions, find_any_server};
use crate::uring::cpu;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const NAME: &str = "cluster of 3 redis, 100 B strings";
const PRIMARIES: usize = 3;
const FLOWS: usize = 4;
const KEYS: u64 = 6_000_000;
const WINDOW_S: f64 = 0.2;
const SAMPLE_EVERY: Duration = Duration::from_millis(2);
/// A node gets at least so much of a third, in any window.
const SHARE_MIN: f64 = 0.5;
const PAUSE_MS_MAX: f64 = 200.0;

pub fn run(args: &BenchArgs, results: &mut Results) -> Result<(), LabError> {
    // Whatever an earlier part was pinned to: the servers and the source run where the system puts them.
    cpu::pin_current_thread_to(&[args.peer_cpu, args.tool_cpu])?;
    let cluster = Cluster::start(&find_any_server()?, PRIMARIES, false, ServerOptions::default())?;
    let spec = fast_spec("string:100B", KEYS, FLOWS, args.scale)?;
    let (mut shares, mut pauses, mut rates) = (vec![], vec![], vec![]);
    for round in 0..args.rounds {
        for node in &cluster.nodes {
            node.client()?.run("FLUSHALL SYNC")?;
        }
        let (run, samples) = while_sampled(&cluster.nodes, || tool::migrate(args, &spec, cluster.port()))?;
        let fairness = Fairness::of(&samples, WINDOW_S)
            .ok_or_else(|| LabError::Bench(format!("{NAME}: over too soon to be measured; use a larger --scale")))?;
        eprintln!("{NAME} {}: {fairness:?} {run:?}", round + 1);
        shares.push(fairness.share_min);
        pauses.push(fairness.pause_s_max * 1e3);
        rates.push(run.keys as f64 / run.transfer_s / 1e6);
    }
    results.add(NAME, "smallest share of a node in any 0.2 s, of its third", shares, Some(SHARE_MIN), None);
    results.add(NAME, "longest time without a key for one node, ms", pauses, None, Some(PAUSE_MS_MAX));
    results.add(NAME, "million keys a second", rates, None, None);
    Ok(())
}

/// Moments in seconds, and how many keys the node had then.
type Samples = Vec<(f64, u64)>;

/// Does `work` and asks every node for its number of keys meanwhile.
fn while_sampled<T>(
    nodes: &[Server],
    work: impl FnOnce() -> Result<T, LabError>,
) -> Result<(T, Vec<Samples>), LabError> {
    let (started, over) = (Instant::now(), AtomicBool::new(false));
    let sample = |mut client: Client| -> Result<Samples, LabError> {
        let mut samples = Samples::new();
        while !over.load(Ordering::Acquire) {
            let keys = client.run("DBSIZE")?.int().unwrap_or_default();
            samples.push((started.elapsed().as_secs_f64(), keys as u64));
            std::thread::sleep(SAMPLE_EVERY);
        }
        Ok(samples)
    };
    std::thread::scope(|scope| {
        let clients = nodes.iter().map(Server::client).collect::<Result<Vec<_>, _>>()?;
        let threads: Vec<_> = clients.into_iter().map(|client| scope.spawn(|| sample(client))).collect();
        let done = work();
        over.store(true, Ordering::Release);
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|_| Err(LabError::Bench("a sampling thread panicked".into())))
        };
        let samples = threads.into_iter().map(join).collect::<Result<_, _>>()?;
        Ok((done?, samples))
    })
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Fairness {
    /// Of a node in any window, as a part of what it has if all have the same.
    share_min: f64,
    /// In which one node got nothing, and another got something.
    pause_s_max: f64,
    /// That were looked at.
    windows: usize,
}

impl Fairness {
    /// None: the nodes took less time than one window.
    fn of(nodes: &[Samples], window_s: f64) -> Option<Self> {
        let begin = nodes.iter().filter_map(begin_of).reduce(f64::min)?;
        // Once one node has all its keys the others have more than their share.
        let end = nodes.iter().filter_map(end_of).reduce(f64::min)?;
        let windows = ((end - begin) / window_s).floor().max(0.0) as usize;
        let mut share_min = f64::INFINITY;
        for window in 0..windows {
            let from = begin + window as f64 * window_s;
            let gains: Vec<f64> =
                nodes.iter().map(|samples| keys_at(samples, from + window_s) - keys_at(samples, from)).collect();
            let sum: f64 = gains.iter().sum();
            // Where nobody gets anything the tool, or the source, waits for a CPU.
            if sum > 0.0 {
                let least = gains.into_iter().fold(f64::INFINITY, f64::min);
                share_min = share_min.min(least / sum * nodes.len() as f64);
            }
        }
        let pauses = nodes.iter().enumerate().map(|(at, samples)| {
            let others = |from, to| {
                let others = nodes.iter().enumerate().filter(|(other, _)| *other != at);
                others.map(|(_, samples)| keys_at(samples, to) - keys_at(samples, from)).sum::<f64>() > 0.0
            };
            longest_pause(samples, begin, end, others)
        });
        let pause_s_max = pauses.fold(0.0, f64::max);
        (windows > 0).then_some(Self { share_min, pause_s_max, windows })
    }
}

/// The last moment without a key.
fn begin_of(samples: &Samples) -> Option<f64> {
    samples.iter().take_while(|(_, keys)| *keys == 0).last().map(|(moment, _)| *moment)
}

/// The first moment with all keys.
fn end_of(samples: &Samples) -> Option<f64> {
    let (_, all) = *samples.last()?;
    samples.iter().find(|(_, keys)| *keys == all).map(|(moment, _)| *moment)
}

/// The number of keys at a moment, between two samples by their distance.
fn keys_at(samples: &Samples, moment: f64) -> f64 {
    let next = samples.partition_point(|(at, _)| *at <= moment);
    match (next.checked_sub(1).and_then(|last| samples.get(last)), samples.get(next)) {
        (Some(&(from, before)), Some(&(to, after))) => {
            before as f64 + (after as f64 - before as f64) * (moment - from) / (to - from)
        }
        (Some(&(_, keys)), None) | (None, Some(&(_, keys))) => keys as f64,
        (None, None) => 0.0,
    }
}

/// Longest time without a new key between `begin` and `end` in which `others` got some.
fn longest_pause(samples: &Samples, begin: f64, end: f64, others: impl Fn(f64, f64) -> bool) -> f64 {
    let mut longest: f64 = 0.0;
    let mut since = begin;
    for pair in samples.windows(2) {
        let [(_, before), (moment, after)] = *pair else { continue };
        if after > before && moment >= begin && moment <= end {
            if others(since, moment) {
                longest = longest.max(moment - since);
            }
            since = moment;
        }
    }
    if others(since, end) { longest.max(end - since) } else { longest }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sample every 10 ms, from one on in which there is no key.
    fn node(keys: impl Fn(u64) -> u64) -> Samples {
        (0..=100).map(|step| (step as f64 / 100.0, keys(step))).collect()
    }

    #[test]
    fn equal_rates_are_fair() {
        let fairness = Fairness::of(&[node(|step| step * 10), node(|step| step * 10)], 0.2).unwrap();
        assert!((fairness.share_min - 1.0).abs() < 1e-9, "{fairness:?}");
        assert!((fairness.pause_s_max - 0.01).abs() < 1e-9 && (4..=5).contains(&fairness.windows), "{fairness:?}");
    }

    #[test]
    fn a_node_that_waits_is_seen() {
        // Nothing for 0.4 s, and then everything at once.
        let late = node(|step| if (20..60).contains(&step) { 200 } else { step * 10 });
        let fairness = Fairness::of(&[node(|step| step * 10), late.clone()], 0.2).unwrap();
        assert!(fairness.share_min < 1e-9 && (fairness.pause_s_max - 0.4).abs() < 0.011, "{fairness:?}");
        // While nobody gets anything nobody starves.
        let fairness = Fairness::of(&[late.clone(), late], 0.2).unwrap();
        assert!(fairness.share_min > 0.99, "{fairness:?}");
        // One that comes first has all its keys early; the other one was given less meanwhile.
        let first = node(|step| (step * 20).min(1000));
        let fairness = Fairness::of(&[first, node(|step| step * 10)], 0.2).unwrap();
        assert!((fairness.share_min - 2.0 / 3.0).abs() < 1e-9, "{fairness:?}");
        assert_eq!(Fairness::of(&[node(|step| step), node(|step| step)], 2.0), None);
    }
}
