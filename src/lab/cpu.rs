//! CPU time of threads, from `/proc`, so that a measurement can tell the tool's time from the lab's, and one that waits for a
//! CPU from one that has nothing to do.

use std::fs;
use std::path::PathBuf;

/// A thread, to ask for its CPU time from any other.
#[derive(Clone, Debug)]
pub struct ThreadCpu {
    path: PathBuf,
}

impl ThreadCpu {
    /// The calling thread.
    pub fn current() -> Self {
        let link = fs::read_link("/proc/thread-self").unwrap_or_default();
        Self { path: PathBuf::from("/proc").join(link).join("schedstat") }
    }

    /// The first thread of another process.
    pub fn of_process(pid: u32) -> Self {
        Self { path: PathBuf::from(format!("/proc/{pid}/task/{pid}/schedstat")) }
    }

    /// Nanoseconds so far in which it had something to do: on a CPU, or waiting for one (what it waits for right now is counted
    /// when it has got it). `None` as for [`Self::nanos`].
    pub fn busy_nanos(&self) -> Option<u64> {
        let text = fs::read_to_string(&self.path).ok()?;
        let mut numbers = text.split_ascii_whitespace().map(str::parse::<u64>);
        Some(numbers.next()?.ok()? + numbers.next()?.ok()?)
    }

    /// Nanoseconds on a CPU so far (to the last scheduler tick); `None` once the thread has ended, or where the kernel
    /// keeps no such figure.
    pub fn nanos(&self) -> Option<u64> {
        fs::read_to_string(&self.path).ok()?.split_ascii_whitespace().next()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_with_work() {
        let cpu = ThreadCpu::current();
        let before = cpu.nanos().unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_millis(60);
        while std::time::Instant::now() < until {
            std::hint::spin_loop();
        }
        assert!(cpu.nanos().unwrap() > before);
    }

    /// A thread that sleeps has nothing to do; one that works has, whether it gets a CPU or not.
    #[test]
    fn sleep_is_told_from_work() {
        let cpu = ThreadCpu::current();
        let busy_ms = |work: &dyn Fn()| {
            let before = cpu.busy_nanos().unwrap();
            work();
            // Makes the scheduler take stock.
            std::thread::sleep(std::time::Duration::from_millis(1));
            (cpu.busy_nanos().unwrap() - before) / 1_000_000
        };
        let asleep_ms = busy_ms(&|| std::thread::sleep(std::time::Duration::from_millis(400)));
        let at_work_ms = busy_ms(&|| {
            let until = std::time::Instant::now() + std::time::Duration::from_millis(100);
            while std::time::Instant::now() < until {
                std::hint::spin_loop();
            }
        });
        assert!(at_work_ms >= 95 && asleep_ms < 200, "{at_work_ms} {asleep_ms}");
    }
}
