//! Whether a node of a cluster starves: three real servers share both CPUs with the source and the tool.
//!
//! In: a pre-encoded load on four flows into a cluster of empty primaries. Out: the smallest share that a node had in any
//! fifth of a second while all of them had keys to come, and the longest time in which a node got no key while another did.
//! Five busy threads share two CPUs, and a server that makes its hash table twice as large, or waits for a CPU, takes no key
//! either: what the tool has to answer for is only the time in which a node slept, for there was nothing to do. So both figures
//! are given twice, of all time and of that. Each node is asked for its number of keys on a connection and a thread of its
//! own, so that a busy one delays its own samples only.

use super::table::Results;
use super::{BenchArgs, fast_spec, tool};
use crate::lab::LabError;
use crate::lab::client::Client;
use crate::lab::cluster::Cluster;
use crate::lab::cpu::ThreadCpu;
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
/// Keys of the tool itself that may be there before the load's: its lease, and a position. The lease lies at one node some
/// hundred milliseconds before the source's first key can come.
const OWN_KEYS_MAX: f64 = 2.0;

pub fn run(args: &BenchArgs, results: &mut Results) -> Result<(), LabError> {
    // Whatever an earlier part was pinned to: the servers and the source run where the system puts them.
    cpu::pin_current_thread_to(&[args.peer_cpu, args.tool_cpu])?;
    let cluster = Cluster::start(&find_any_server()?, PRIMARIES, false, ServerOptions::default())?;
    let spec = fast_spec("string:100B", KEYS, FLOWS, args.scale)?;
    let (mut shares, mut asleep_shares, mut pauses, mut asleep, mut rates) = (vec![], vec![], vec![], vec![], vec![]);
    for round in 0..args.rounds {
        for node in &cluster.nodes {
            node.client()?.run("FLUSHALL SYNC")?;
        }
        let (run, samples) = while_sampled(&cluster.nodes, || tool::migrate(args, &spec, cluster.port()))?;
        let fairness = Fairness::of(&samples, WINDOW_S)
            .ok_or_else(|| LabError::Bench(format!("{NAME}: over too soon to be measured; use a larger --scale")))?;
        eprintln!("{NAME} {}: {fairness:?} {run:?}", round + 1);
        shares.push(fairness.share_min);
        asleep_shares.push(fairness.asleep_share_min);
        pauses.push(fairness.pause_s_max * 1e3);
        asleep.push(fairness.asleep_s_max * 1e3);
        rates.push(run.keys as f64 / run.transfer_s / 1e6);
    }
    results.add(NAME, "smallest share of a node in any 0.2 s, of its third", shares, None, None);
    results.add(NAME, "the same, where it slept for half of it", asleep_shares, Some(SHARE_MIN), None);
    results.add(NAME, "longest time without a key for one node, ms", pauses, None, None);
    results.add(NAME, "longest sleep in such a time, ms", asleep, None, Some(PAUSE_MS_MAX));
    results.add(NAME, "million keys a second", rates, None, None);
    Ok(())
}

/// What a node had at a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Sample {
    at_s: f64,
    keys: f64,
    /// So long it had something to do until then, whether it had a CPU or waited for one.
    busy_s: f64,
}

type Samples = Vec<Sample>;

/// Does `work` and looks at every node meanwhile.
fn while_sampled<T>(
    nodes: &[Server],
    work: impl FnOnce() -> Result<T, LabError>,
) -> Result<(T, Vec<Samples>), LabError> {
    let (started, over) = (Instant::now(), AtomicBool::new(false));
    let sample = |(mut client, cpu): (Client, ThreadCpu)| -> Result<Samples, LabError> {
        let mut samples = Samples::new();
        while !over.load(Ordering::Acquire) {
            let keys = client.run("DBSIZE")?.int().unwrap_or_default() as f64;
            let busy_ns = cpu.busy_nanos().ok_or_else(|| LabError::Bench(format!("{NAME}: no schedstat in /proc")))?;
            samples.push(Sample { at_s: started.elapsed().as_secs_f64(), keys, busy_s: busy_ns as f64 / 1e9 });
            std::thread::sleep(SAMPLE_EVERY);
        }
        Ok(samples)
    };
    std::thread::scope(|scope| {
        let watched = |node: &Server| Ok((node.client()?, ThreadCpu::of_process(node.pid().unwrap_or_default())));
        let watched = nodes.iter().map(watched).collect::<Result<Vec<_>, LabError>>()?;
        let threads: Vec<_> = watched.into_iter().map(|node| scope.spawn(|| sample(node))).collect();
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
    /// The same where it slept for half of the window or more; 1 if none did.
    asleep_share_min: f64,
    /// In which one node got nothing, and another got something.
    pause_s_max: f64,
    /// The longest time that a node slept in such a pause.
    asleep_s_max: f64,
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
        let (mut share_min, mut asleep_share_min) = (f64::INFINITY, 1.0_f64);
        for window in 0..windows {
            let from = begin + window as f64 * window_s;
            let to = from + window_s;
            let sum: f64 = nodes.iter().map(|samples| gain(samples, from, to)).sum();
            // Where nobody gets anything the tool, or the source, waits for a CPU.
            if sum > 0.0 {
                for samples in nodes {
                    let share = gain(samples, from, to) / sum * nodes.len() as f64;
                    share_min = share_min.min(share);
                    if asleep_s(samples, from, to) >= window_s / 2.0 {
                        asleep_share_min = asleep_share_min.min(share);
                    }
                }
            }
        }
        let (mut pause_s_max, mut asleep_s_max) = (0.0_f64, 0.0_f64);
        for (at, samples) in nodes.iter().enumerate() {
            for (from, to) in pauses(samples, begin, end) {
                let others = nodes.iter().enumerate().filter(|(other, _)| *other != at);
                if others.map(|(_, samples)| gain(samples, from, to)).sum::<f64>() > 0.0 {
                    pause_s_max = pause_s_max.max(to - from);
                    asleep_s_max = asleep_s_max.max(asleep_s(samples, from, to));
                }
            }
        }
        (windows > 0).then_some(Self { share_min, asleep_share_min, pause_s_max, asleep_s_max, windows })
    }
}

/// The last moment without a key of the load.
fn begin_of(samples: &Samples) -> Option<f64> {
    samples.iter().take_while(|sample| sample.keys <= OWN_KEYS_MAX).last().map(|sample| sample.at_s)
}

/// The first moment with all keys.
fn end_of(samples: &Samples) -> Option<f64> {
    let all = samples.last()?.keys;
    samples.iter().find(|sample| sample.keys == all).map(|sample| sample.at_s)
}

/// Keys that a node got.
fn gain(samples: &Samples, from_s: f64, to_s: f64) -> f64 {
    at(samples, to_s, |sample| sample.keys) - at(samples, from_s, |sample| sample.keys)
}

/// So long it had nothing to do.
fn asleep_s(samples: &Samples, from_s: f64, to_s: f64) -> f64 {
    let busy_s = at(samples, to_s, |sample| sample.busy_s) - at(samples, from_s, |sample| sample.busy_s);
    (to_s - from_s - busy_s).max(0.0)
}

/// What a node had at a moment, between two samples by their distance.
fn at(samples: &Samples, moment_s: f64, of: fn(&Sample) -> f64) -> f64 {
    let next = samples.partition_point(|sample| sample.at_s <= moment_s);
    match (next.checked_sub(1).and_then(|last| samples.get(last)), samples.get(next)) {
        (Some(before), Some(after)) => {
            of(before) + (of(after) - of(before)) * (moment_s - before.at_s) / (after.at_s - before.at_s)
        }
        (Some(sample), None) | (None, Some(sample)) => of(sample),
        (None, None) => 0.0,
    }
}

/// The times without a new key between `begin` and `end`.
fn pauses(samples: &Samples, begin: f64, end: f64) -> Vec<(f64, f64)> {
    let mut pauses = Vec::new();
    let mut since = begin;
    for pair in samples.windows(2) {
        let [before, after] = *pair else { continue };
        if after.keys > before.keys && after.at_s >= begin && after.at_s <= end {
            pauses.push((since, after.at_s));
            since = after.at_s;
        }
    }
    pauses.push((since, end));
    pauses
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sample every 10 ms, from one on in which there is no key. It never sleeps.
    fn node(keys: impl Fn(u64) -> u64) -> Samples {
        let sample = |step: u64| {
            let at_s = step as f64 / 100.0;
            Sample { at_s, keys: keys(step) as f64, busy_s: at_s }
        };
        (0..=100).map(sample).collect()
    }

    /// The same node, which sleeps in these steps.
    fn asleep_in(mut node: Samples, steps: std::ops::Range<usize>) -> Samples {
        for (step, sample) in node.iter_mut().enumerate() {
            sample.busy_s -= step.clamp(steps.start, steps.end).saturating_sub(steps.start) as f64 / 100.0;
        }
        node
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 0.011
    }

    #[test]
    fn equal_rates_are_fair() {
        let fairness = Fairness::of(&[node(|step| step * 10), node(|step| step * 10)], 0.2).unwrap();
        assert!((fairness.share_min - 1.0).abs() < 1e-9, "{fairness:?}");
        assert!((fairness.pause_s_max - 0.01).abs() < 1e-9 && (4..=5).contains(&fairness.windows), "{fairness:?}");
        assert!(fairness.asleep_share_min >= 1.0 && fairness.asleep_s_max < 1e-9, "{fairness:?}");
    }

    #[test]
    fn a_node_that_waits_is_seen() {
        // Nothing for 0.4 s, and then everything at once.
        let late = node(|step| if (20..60).contains(&step) { 200 } else { step * 10 });
        let fairness = Fairness::of(&[node(|step| step * 10), late.clone()], 0.2).unwrap();
        assert!(fairness.share_min < 1e-9 && close(fairness.pause_s_max, 0.4), "{fairness:?}");
        // While nobody gets anything nobody starves.
        let fairness = Fairness::of(&[late.clone(), late], 0.2).unwrap();
        assert!(fairness.share_min > 0.99, "{fairness:?}");
        // One that comes first has all its keys early; the other one was given less meanwhile.
        let first = node(|step| (step * 20).min(1000));
        let fairness = Fairness::of(&[first, node(|step| step * 10)], 0.2).unwrap();
        assert!((fairness.share_min - 2.0 / 3.0).abs() < 1e-9, "{fairness:?}");
        assert_eq!(Fairness::of(&[node(|step| step), node(|step| step)], 2.0), None);
    }

    /// What the tool writes for itself before the load begins is no key that the others did not get.
    #[test]
    fn the_load_begins_with_its_first_key() {
        let loaded = |own: u64| node(move |step| if step < 30 { own } else { own + (step - 30) * 10 });
        let fairness = Fairness::of(&[loaded(1), loaded(0), loaded(0)], 0.2).unwrap();
        assert!(close(fairness.pause_s_max, 0.01) && fairness.windows == 3, "{fairness:?}");
        assert!((fairness.share_min - 1.0).abs() < 1e-6, "{fairness:?}");
    }

    /// A server that works, or waits for a CPU, gets no keys because of itself; one that sleeps gets none because of the tool.
    #[test]
    fn only_a_node_that_sleeps_starves() {
        let late = || node(|step| if (20..60).contains(&step) { 200 } else { step * 10 });
        let fairness = Fairness::of(&[node(|step| step * 10), late()], 0.2).unwrap();
        assert!(fairness.asleep_share_min >= 1.0 && fairness.asleep_s_max < 1e-9, "{fairness:?}");
        let fairness = Fairness::of(&[node(|step| step * 10), asleep_in(late(), 20..60)], 0.2).unwrap();
        assert!(fairness.asleep_share_min < 1e-9 && close(fairness.asleep_s_max, 0.4), "{fairness:?}");
        // Slept for a part of it.
        let fairness = Fairness::of(&[node(|step| step * 10), asleep_in(late(), 25..32)], 0.2).unwrap();
        assert!(fairness.asleep_share_min >= 1.0 && close(fairness.asleep_s_max, 0.07), "{fairness:?}");
    }
}
