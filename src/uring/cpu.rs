//! What a process may ask about and of itself: CPU time and placement, memory, limits, child processes.

use super::clock;
use super::features::Memlock;
use std::io;
use std::process::Command;

/// Pins the calling thread to one CPU.
pub fn pin_current_thread(cpu: usize) -> io::Result<()> {
    pin_current_thread_to(&[cpu])
}

/// Lets the calling thread run on these CPUs only.
pub fn pin_current_thread_to(cpus: &[usize]) -> io::Result<()> {
    if let Some(cpu) = cpus.iter().find(|cpu| **cpu >= libc::CPU_SETSIZE as usize) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("there is no CPU {cpu}")));
    }
    // SAFETY: an all-zero cpu_set_t is the empty set; each CPU is below its size, and the call reads it only.
    let outcome = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        cpus.iter().for_each(|cpu| libc::CPU_SET(*cpu, &mut set));
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The CPUs that the calling thread may run on, ascending.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    // SAFETY: an all-zero cpu_set_t is valid, the call writes at most its size, and each index is below that size.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((0..libc::CPU_SETSIZE as usize).filter(|cpu| libc::CPU_ISSET(*cpu, &set)).collect())
    }
}

/// CPU time (user and system) of the calling thread, in ns. Work that the kernel does for a ring in other threads
/// (SQPOLL) is only in [`process_cpu_ns`].
pub fn thread_cpu_ns() -> u64 {
    clock::read(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// CPU time (user and system) of all threads of the process, in ns.
pub fn process_cpu_ns() -> u64 {
    clock::read(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// What the process has used so far.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Usage {
    pub user_ns: u64,
    pub system_ns: u64,
    pub context_switches_voluntary: u64,
    pub context_switches_involuntary: u64,
    pub page_faults_minor: u64,
    pub page_faults_major: u64,
}

/// Usage of the whole process.
pub fn usage() -> Usage {
    // SAFETY: an all-zero rusage is valid, and the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let ns = |t: libc::timeval| (t.tv_sec as u64) * 1_000_000_000 + (t.tv_usec as u64) * 1000;
    Usage {
        user_ns: ns(usage.ru_utime),
        system_ns: ns(usage.ru_stime),
        context_switches_voluntary: usage.ru_nvcsw as u64,
        context_switches_involuntary: usage.ru_nivcsw as u64,
        page_faults_minor: usage.ru_minflt as u64,
        page_faults_major: usage.ru_majflt as u64,
    }
}

/// Resident memory now, in bytes (VmRSS); None if /proc does not tell.
pub fn rss_bytes() -> Option<u64> {
    status_kib("VmRSS:").map(|kib| kib * 1024)
}

/// Most resident memory so far, in bytes (VmHWM); None if /proc does not tell.
pub fn rss_bytes_max() -> Option<u64> {
    status_kib("VmHWM:").map(|kib| kib * 1024)
}

/// The limit of locked memory.
pub fn memlock() -> Memlock {
    let limit = memlock_limit();
    Memlock { limit_bytes: (limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur), exempt: has_ipc_lock() }
}

/// Raises the soft limit of locked memory to the hard one. Returns whether that changed anything.
pub fn raise_memlock() -> bool {
    let limit = memlock_limit();
    if limit.rlim_cur == limit.rlim_max {
        return false;
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max };
    // SAFETY: reads a valid rlimit.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raised) == 0 }
}

/// No core dumps, and no reading of this process's memory by others of the same user: it holds passwords.
pub fn forbid_dumps() -> io::Result<()> {
    // SAFETY: no memory is involved.
    if unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Lets the child get `SIGKILL` when the thread that starts it ends, so that no server outlives a demo.
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    use std::os::unix::process::CommandExt;
    let parent = std::process::id();
    // SAFETY: between fork and exec only async-signal-safe calls are made: prctl, getppid, and an error without
    // allocation.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the call took effect.
            if libc::getppid() as u32 != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        })
    }
}

/// Kills all processes of a group whose leader is a child that has not been waited for yet.
pub fn kill_group(leader_pid: u32) {
    let Some(pid) = i32::try_from(leader_pid).ok().filter(|pid| *pid > 1) else { return };
    // SAFETY: no memory is involved; a group that is gone is no harm.
    unsafe {
        libc::kill(-pid, libc::SIGKILL);
    }
}

fn memlock_limit() -> libc::rlimit {
    let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: fills a valid rlimit.
    unsafe {
        libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit);
    }
    limit
}

fn has_ipc_lock() -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|set| set >> CAP_IPC_LOCK & 1 == 1)
}

fn status_kib(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_costs_cpu_time_and_memory() {
        let (thread, process) = (thread_cpu_ns(), process_cpu_ns());
        let mut sum = 0u64;
        while thread_cpu_ns() - thread < 3_000_000 {
            sum = sum.wrapping_add(std::hint::black_box(sum) ^ 1);
        }
        assert!(process_cpu_ns() - process >= 2_000_000);
        assert!(usage().user_ns + usage().system_ns > 0);
        assert!(rss_bytes().unwrap() > 0);
        assert!(rss_bytes_max().unwrap() > 0);
    }

    #[test]
    fn pinning() {
        std::thread::spawn(|| {
            let cpu = *allowed_cpus().unwrap().last().unwrap();
            pin_current_thread(cpu).unwrap();
            assert_eq!(allowed_cpus().unwrap(), [cpu]);
            assert!(pin_current_thread(100_000).is_err());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn children_can_be_started_so() {
        assert!(die_with_parent(&mut Command::new("true")).status().unwrap().success());
    }
}
