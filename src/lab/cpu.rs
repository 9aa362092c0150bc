//! CPU time of threads, from `/proc`, so that a measurement can tell the tool's time from the lab's.

use std::fs;
use std::path::PathBuf;

/// A thread of this process, to ask for its CPU time from any other.
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
}
