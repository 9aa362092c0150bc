//! Seeded writers of a live source: commands of every kind that a Dragonfly journals, drawn over its keys.
//!
//! In: the world, a seed, a rate. Out: writes, until told to stop or so many were done. One seed draws the same commands
//! on every run; what they come to may depend on other writers. Keys keep to one type each, except where a rename or a
//! flush takes them away, so that most commands succeed.

use super::World;
use crate::lab::client::Reply;
use crate::lab::generate::entry::{Entry, FUTURE_MS};
use crate::lab::generate::{Kind, Spec};
use crate::lab::rng::Rng;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

mod draw;

use draw::Draw;

/// What is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mix {
    /// Every command that this source knows, in transactions too.
    #[default]
    Mixed,
    /// `SET` of 100-byte strings.
    Sets,
    /// `INCR` of counters.
    Incrs,
    /// `FLUSHDB`, and every fourth time `FLUSHALL`.
    Flushes,
}

/// How much, and how fast.
#[derive(Clone, Debug)]
pub struct WorkloadOptions {
    pub mix: Mix,
    pub seed: u64,
    /// Commands a second; `None`: as fast as it goes.
    pub rate: Option<u64>,
    pub commands_max: Option<u64>,
    pub time_max: Option<Duration>,
    /// Of each so many commands one is FLUSHDB (or, every fourth time, FLUSHALL); 0: none is.
    pub flush_every: u64,
    /// Some expiries are this near and are renewed in time; `None`: all are far away.
    pub expire_in: Option<Duration>,
    /// Keys of each kind besides those of the spec.
    pub new_keys: u64,
    /// Their names carry one of so many hash tags, so that several lie in one slot; 0: no tags.
    pub new_keys_tags: u64,
    /// LMPOP and ZMPOP name one key: of several Redis 6.2 cannot take.
    pub pops_of_one_key: bool,
}

impl Default for WorkloadOptions {
    fn default() -> Self {
        Self {
            mix: Mix::Mixed,
            seed: 1,
            rate: Some(2000),
            commands_max: None,
            time_max: None,
            flush_every: 0,
            expire_in: None,
            new_keys: 50,
            new_keys_tags: 0,
            pops_of_one_key: false,
        }
    }
}

/// A running writer. Dropping it stops it.
pub struct Workload {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Workload {
    pub fn start(world: Arc<World>, spec: &Spec, options: WorkloadOptions) -> Self {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut draw = Draw::new(spec, &options);
        let (stopping, counter) = (stop.clone(), done.clone());
        let thread = std::thread::spawn(move || write(&world, &mut draw, &options, &stopping, &counter));
        Self { stop, done, thread: Some(thread) }
    }

    /// Commands (or transactions) so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Whether all was written that was to be.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(std::thread::JoinHandle::is_finished)
    }

    /// Stops after the command that is being written.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.stop();
    }
}

fn write(world: &World, draw: &mut Draw, options: &WorkloadOptions, stop: &AtomicBool, done: &AtomicU64) {
    let started = Instant::now();
    for number in 0.. {
        let over = options.commands_max.is_some_and(|max| number >= max)
            || options.time_max.is_some_and(|max| started.elapsed() >= max);
        if over || stop.load(Ordering::Acquire) {
            return;
        }
        if let Some(rate) = options.rate {
            let due = Duration::from_secs_f64(number as f64 / rate.max(1) as f64);
            let early = due.saturating_sub(started.elapsed());
            if early > Duration::from_millis(1) {
                std::thread::sleep(early);
            }
        }
        let (db, commands) = draw.next(number);
        let replies = world.run_all(db, &commands);
        debug_assert!(
            !replies.iter().any(|r| matches!(r, Reply::Error(e) if e.contains("unknown command"))),
            "{replies:?}"
        );
        done.fetch_add(1, Ordering::Relaxed);
    }
}
