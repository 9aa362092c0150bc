//! Keys that a cluster's nodes lose behind the tool's back, and that the source renews at once and goes on with: each has to be
//! there again, as the source has it.
//!
//! In: a source, a cluster, a seed. Out: losses, one after the other, until told to stop; `Err` names a key that did not come
//! back. A key is deleted only when the target has all that was written to it so far: else what was still on its way would build
//! it anew, and hide its loss (README.md says so).

use super::World;
use crate::lab::LabError;
use crate::lab::client::{Client, Reply};
use crate::lab::cluster::Cluster;
use crate::lab::rng::Rng;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a key may take to be as the source has it: kills, silent nodes and busy machines take part.
const BACK_TIME_MAX: Duration = Duration::from_secs(120);
/// Keys of each type that one thread loses, and threads.
const KEYS: u64 = 3;
const THREADS: u64 = 4;

/// Loses keys until it is stopped or dropped.
pub struct Losses {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<Result<(), String>>>,
}

impl Losses {
    pub fn start(world: Arc<World>, cluster: Arc<Cluster>, seed: u64) -> Self {
        let (stop, count) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let start = |thread: u64| {
            let (world, cluster, stop, count) = (world.clone(), cluster.clone(), stop.clone(), count.clone());
            let rng = Rng::new(seed ^ (0x1055 + thread));
            std::thread::spawn(move || lose_keys(&world, &cluster, thread, rng, &stop, &count))
        };
        let threads = (0..THREADS).map(start).collect();
        Self { stop, count, threads }
    }

    /// Ends when the last key is back. How many were lost.
    pub fn stop(mut self) -> Result<u64, String> {
        self.end()?;
        Ok(self.count.load(Ordering::Relaxed))
    }

    fn end(&mut self) -> Result<(), String> {
        self.stop.store(true, Ordering::Release);
        let ends: Vec<_> = self.threads.drain(..).map(std::thread::JoinHandle::join).collect();
        let panicked = || Err("a thread that loses keys panicked".to_string());
        ends.into_iter().try_for_each(|end| end.unwrap_or_else(|_| panicked()))
    }
}

impl Drop for Losses {
    fn drop(&mut self) {
        self.end().ok();
    }
}

fn lose_keys(
    world: &World,
    cluster: &Cluster,
    thread: u64,
    mut rng: Rng,
    stop: &AtomicBool,
    count: &AtomicU64,
) -> Result<(), String> {
    let run = |command: &str| {
        let words = command.split(' ').map(|word| word.as_bytes().to_vec()).collect();
        world.run_all(0, &[words]);
    };
    let mut lost = 0;
    // No value comes twice: what was written last is found by it.
    for round in (1..).step_by(2) {
        // Each thread loses one at least, however far behind the target is.
        if lost > 0 && stop.load(Ordering::Acquire) {
            break;
        }
        let kind = rng.below(4) as usize;
        let key = format!("lost:{thread}:{kind}:{}", rng.below(KEYS));
        // What was written last tells whether the target has all of it.
        let build = |round: u64| match kind {
            0 => format!("HSET {key} last {round}"),
            1 => format!("APPEND {key} .{round}"),
            2 => format!("RPUSH {key} {round}"),
            _ => format!("SADD {key} {round}"),
        };
        let last = |round: u64| match kind {
            0 => (format!("HGET {key} last"), round.to_string()),
            1 => (format!("GETRANGE {key} -{} -1", round.to_string().len() + 1), format!(".{round}")),
            2 => (format!("LINDEX {key} -1"), round.to_string()),
            _ => (format!("SISMEMBER {key} {round}"), "1".to_string()),
        };
        if kind == 0 {
            run(&format!("HSET {key} f {round} g {round}"));
        }
        run(&build(round));
        run(&format!("PEXPIRE {key} 4000000"));
        if !is_there(cluster, &last(round))? {
            return Err(format!("{key} was written in round {round} and did not come"));
        }
        std::thread::sleep(Duration::from_millis(rng.below(20)));
        if everywhere(cluster, &["DEL", &key])?.iter().filter(|reply| reply.int() == Some(1)).count() != 1 {
            // Just now it was on its way from node to node.
            continue;
        }
        count.fetch_add(1, Ordering::Relaxed);
        lost += 1;
        run(&if rng.chance(0.5) { format!("PEXPIRE {key} 5000000") } else { format!("PERSIST {key}") });
        run(&build(round + 1));
        if !is_there(cluster, &last(round + 1))? {
            return Err(format!("{key} was lost in round {round} and did not come back"));
        }
        if kind == 1 {
            run(&format!("DEL {key}"));
        }
    }
    Ok(())
}

/// Waits until some node answers so; not for ever.
fn is_there(cluster: &Cluster, (question, answer): &(String, String)) -> Result<bool, String> {
    let until = Instant::now() + BACK_TIME_MAX;
    let words: Vec<&str> = question.split(' ').collect();
    let says = |reply: &Reply| match reply {
        Reply::Int(number) => number.to_string() == *answer,
        reply => reply.text().as_deref() == Some(answer.as_str()),
    };
    while !everywhere(cluster, &words)?.iter().any(says) {
        if Instant::now() > until {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(true)
}

/// Asks every primary, also one that is only importing the key's slot.
fn everywhere(cluster: &Cluster, words: &[&str]) -> Result<Vec<Reply>, String> {
    let ask = |client: &mut Client| -> Result<Reply, LabError> {
        client.run("ASKING")?;
        client.ask(words)
    };
    let mut replies = Vec::new();
    for primary in cluster.primaries() {
        let reply = cluster.nodes[primary].client().and_then(|mut client| ask(&mut client));
        replies.push(reply.map_err(|error| error.to_string())?);
    }
    Ok(replies)
}
