//! What workers count. Plain structs of `u64`, filled by one worker, sent once a second, added up by the control thread.
//!
//! All counters of a [`WorkerStats`] are cumulative since the worker began: a message that is lost or late does no harm,
//! and [`Totals`] keeps the newest of each worker. Counters add up over workers, `*_max` take the largest.

use std::collections::BTreeMap;
use std::time::Duration;

macro_rules! worker_stats {
    (sum { $($(#[$sum_doc:meta])* $sum:ident,)* } max { $($(#[$max_doc:meta])* $max:ident,)* }) => {
        /// One worker's counters since it began.
        #[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
        pub struct WorkerStats {
            $($(#[$sum_doc])* pub $sum: u64,)*
            $($(#[$max_doc])* pub $max: u64,)*
            /// The flows of this worker.
            pub flows: Vec<FlowSample>,
            /// What its connections wait for now, in words: nodes that refuse, slots that nobody serves.
            #[serde(skip)]
            pub refusals: Vec<String>,
        }

        impl WorkerStats {
            /// Adds another worker's counters; flows are appended.
            pub fn merge(&mut self, other: &WorkerStats) {
                $(self.$sum = self.$sum.saturating_add(other.$sum);)*
                $(self.$max = self.$max.max(other.$max);)*
                self.flows.extend_from_slice(&other.flows);
                self.refusals.extend_from_slice(&other.refusals);
            }
        }
    };
}

worker_stats! {
    sum {
        /// Keys of the snapshot that were decoded (an object counts once, however many pieces it came in).
        keys,
        /// Journal entries that were decoded.
        journal_entries,
        /// Records about keys that the flow does not own, dropped.
        strays_dropped,
        /// Bytes read from the flows, and the reads that brought them.
        bytes_in,
        flow_reads,
        /// Bytes that the target's sockets took.
        bytes_out,
        /// Bytes read from the target (replies).
        bytes_replies,
        /// Bytes of values sent from where they were received, without a copy.
        bytes_borrowed,
        /// Batches sent, and their bytes.
        batches,
        batch_bytes,
        /// Chains of linked sends, and the commands in flight on the connection after each was submitted.
        chains,
        pipeline_depth_sum,
        /// Commands sent and replies received.
        commands,
        replies,
        /// Replies that were errors.
        error_replies,
        /// `io_uring_enter` calls and other system calls of the data plane.
        enters,
        system_calls_other,
        /// Submission and completion queue entries.
        sqes,
        cqes,
        /// Sends that took less than they were given, and chains that broke.
        short_writes,
        chain_breaks,
        /// Zero-copy sends, and how many of them the kernel copied all the same.
        zero_copy_sends,
        zero_copy_copied,
        /// Connections to the target that were made again.
        reconnects,
        /// Times that a connection held because the target refused (memory, disk, loading ...), and for how long in all (ms).
        holds,
        held_ms,
        /// Times that reading stopped because memory was full, and for how long in all (ms).
        memory_stalls,
        memory_stall_ms,
        /// Sent and not yet answered, now.
        unacked_bytes,
        unacked_commands,
        /// Connections whose window is used up, now.
        windows_full,
        /// CPU time of the worker's thread.
        cpu_ns,
        /// Names of expiries held back, now.
        expiries_held,
        /// Bytes that went to the spool and came back, and those in it now.
        spool_bytes_written,
        spool_bytes_read,
        spool_bytes,
    }
    max {
        batch_bytes_max,
        pipeline_depth_max,
        /// Most bytes sent and not yet acknowledged on one connection.
        window_bytes_max,
        /// Most data memory in use in this worker.
        memory_bytes_max,
        /// Most bytes in the spool of one worker.
        spool_bytes_max,
    }
}

impl WorkerStats {
    /// Counts a chain of sends, with the commands then in flight on its connection.
    #[inline]
    pub fn count_chain(&mut self, commands_in_flight: u64) {
        self.chains += 1;
        self.pipeline_depth_sum += commands_in_flight;
        self.pipeline_depth_max = self.pipeline_depth_max.max(commands_in_flight);
    }

    /// Longest time for which any flow was not being read, ms.
    pub fn unread_ms_max(&self) -> u64 {
        self.flows.iter().map(|flow| flow.unread_ns_max / 1_000_000).max().unwrap_or(0)
    }
}

/// One flow's counters since it began.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct FlowSample {
    pub flow: u32,
    /// In the engine's words: `snapshot`, `snapshot ended`, `complete`.
    pub state: &'static str,
    pub bytes_in: u64,
    pub keys: u64,
    /// LSN of the next journal record to be read; 0 before the journal.
    pub read_lsn: u64,
    /// Longest time for which this flow's socket was not being read.
    pub unread_ns_max: u64,
    /// For how long it has not been read now.
    pub unread_ns: u64,
    /// Bytes read and not decoded, in memory and in the spool.
    pub backlog_bytes: u64,
}

/// The newest counters of every worker.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    workers: Vec<WorkerStats>,
    /// By flow: the longest time unread of earlier sessions, which had workers of their own.
    unread_ns_max: BTreeMap<u32, u64>,
}

impl Totals {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a worker's newest (cumulative) counters in place of its last ones.
    pub fn update(&mut self, worker: u16, stats: WorkerStats) {
        let worker = usize::from(worker);
        for flow in &stats.flows {
            let longest = self.unread_ns_max.entry(flow.flow).or_default();
            *longest = flow.unread_ns_max.max(*longest);
        }
        if self.workers.len() <= worker {
            self.workers.resize_with(worker + 1, WorkerStats::default);
        }
        self.workers[worker] = stats;
    }

    /// All workers added up; flows in order.
    pub fn sum(&self) -> WorkerStats {
        let mut sum = WorkerStats::default();
        for worker in &self.workers {
            sum.merge(worker);
        }
        for flow in &mut sum.flows {
            flow.unread_ns_max = flow.unread_ns_max.max(self.unread_ns_max.get(&flow.flow).copied().unwrap_or(0));
        }
        sum.flows.sort_by_key(|flow| flow.flow);
        sum
    }
}

/// CPU time used so far, by this process or by a server (from `INFO`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuSample {
    pub user: Duration,
    pub system: Duration,
}

/// Clock ticks a second in `/proc` (`USER_HZ`, 100 on every architecture that this tool runs on).
const TICKS_PER_SECOND: u64 = 100;

impl CpuSample {
    /// This process so far, to 10 ms. `None` where `/proc` is not mounted.
    pub fn of_process() -> Option<Self> {
        Self::from_proc_stat(&std::fs::read_to_string("/proc/self/stat").ok()?)
    }

    /// From the text of `/proc/<pid>/stat` or `/proc/<pid>/task/<tid>/stat`: fields 14 (utime) and 15 (stime).
    pub fn from_proc_stat(text: &str) -> Option<Self> {
        // The command name (field 2) may hold blanks and parentheses; fields are counted behind its last ')'.
        let (_, rest) = text.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace().skip(11);
        let mut ticks = || fields.next()?.parse::<u64>().ok();
        let (user, system) = (ticks()?, ticks()?);
        let time = |ticks: u64| Duration::from_millis(ticks.saturating_mul(1000 / TICKS_PER_SECOND));
        Some(Self { user: time(user), system: time(system) })
    }

    /// From the answer to `INFO cpu` of Redis or Valkey (`used_cpu_user`, `used_cpu_sys`).
    pub fn from_info(text: &str) -> Option<Self> {
        let field = |name: &str| {
            let value = text.lines().find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':'))?;
            Duration::try_from_secs_f64(value.parse().ok()?).ok()
        };
        Some(Self { user: field("used_cpu_user")?, system: field("used_cpu_sys")? })
    }

    /// What was used between `earlier` and this sample (zero if a server restarted in between).
    pub fn since(self, earlier: Self) -> Self {
        Self { user: self.user.saturating_sub(earlier.user), system: self.system.saturating_sub(earlier.system) }
    }

    pub fn total(self) -> Duration {
        self.user.saturating_add(self.system)
    }
}

/// Largest resident memory of this process so far, in bytes (`VmHWM`).
pub fn rss_bytes_peak() -> Option<u64> {
    rss_from_status(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn rss_from_status(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_keep_the_newest_of_each_worker() {
        let mut totals = Totals::new();
        let flow = |flow, keys| FlowSample { flow, keys, unread_ns_max: keys * 1_000_000, ..Default::default() };
        totals.update(1, WorkerStats { keys: 5, batch_bytes_max: 9, flows: vec![flow(1, 5)], ..Default::default() });
        totals.update(0, WorkerStats { keys: 2, batch_bytes_max: 11, flows: vec![flow(0, 2)], ..Default::default() });
        totals.update(1, WorkerStats { keys: 7, batch_bytes_max: 9, flows: vec![flow(1, 7)], ..Default::default() });
        let sum = totals.sum();
        assert_eq!((sum.keys, sum.batch_bytes_max, sum.unread_ms_max()), (9, 11, 7));
        assert_eq!(sum.flows.iter().map(|f| (f.flow, f.keys)).collect::<Vec<_>>(), [(0, 2), (1, 7)]);
    }

    #[test]
    fn cpu_time_is_read_from_proc_and_info() {
        let stat = "42 (a )( b) S 1 2 3 4 5 6 7 8 9 10 150 25 0 0 20 0 1 0";
        let sample = CpuSample::from_proc_stat(stat).unwrap();
        assert_eq!((sample.user.as_millis(), sample.system.as_millis()), (1500, 250));
        assert_eq!(CpuSample::from_proc_stat("42 (x"), None);
        assert!(CpuSample::of_process().is_some());

        let info = "# CPU\r\nused_cpu_sys:0.5\r\nused_cpu_user:1.25\r\nused_cpu_user_children:9\r\n";
        let sample = CpuSample::from_info(info).unwrap();
        assert_eq!((sample.user.as_millis(), sample.system.as_millis()), (1250, 500));
        assert_eq!(CpuSample::from_info("used_cpu_user:-1\r\nused_cpu_sys:nan"), None);
        assert_eq!(rss_from_status("VmPeak:  9 kB\nVmHWM:\t  2048 kB\n"), Some(2 << 20));
        assert!(rss_bytes_peak().is_some_and(|bytes| bytes > 1 << 20));
    }
}
