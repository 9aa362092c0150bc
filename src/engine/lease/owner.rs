//! Who holds a lease: written into the lease, read by whoever finds it.
//!
//! In: the settings and `/proc`, or the bytes of a lease. Out: an owner, and whether it is known to live or to be gone. A
//! process is known by host, boot, PID namespace, PID and the tick at which it was started: only where the first three are
//! our own can anything be said of it. Invariant: an owner that cannot be looked at is never called gone.

use crate::engine::settings::MigrateSettings;
use crate::uring;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Longest lease that is read; ours are far shorter.
const TEXT_BYTES_MAX: usize = 4096;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Random: another one for each run.
    pub id: String,
    pub host: String,
    boot: String,
    pid_namespace: String,
    pub pid: u32,
    /// Since the machine was started: a number that is used again stands for another process.
    started_ticks: u64,
    /// `migrate`, `replicate`.
    pub job: String,
    pub source: String,
    pub since_unix_s: u64,
}

/// What is known of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Lives,
    Gone,
    /// On another machine, or out of sight.
    Unknown,
}

impl Owner {
    /// This process, as the owner of a job's lease.
    pub fn this(settings: &MigrateSettings) -> Self {
        let pid = std::process::id();
        Self {
            id: proc_line("sys/kernel/random/uuid"),
            host: proc_line("sys/kernel/hostname"),
            boot: proc_line("sys/kernel/random/boot_id"),
            pid_namespace: pid_namespace(),
            pid,
            started_ticks: process(pid).map_or(0, |process| process.started_ticks),
            job: if settings.follow.is_some() { "replicate" } else { "migrate" }.into(),
            source: settings.source.address().to_string(),
            since_unix_s: uring::clock::realtime_ms() / 1000,
        }
    }

    pub fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// `None`: it is none of this release's leases.
    pub fn parse(text: &[u8]) -> Option<Self> {
        text.get(..TEXT_BYTES_MAX.min(text.len())).and_then(|text| serde_json::from_slice(text).ok())
    }

    /// What can be said of the owner from here.
    pub fn life(&self) -> Life {
        let here = !self.boot.is_empty()
            && self.boot == proc_line("sys/kernel/random/boot_id")
            && !self.pid_namespace.is_empty()
            && self.pid_namespace == pid_namespace();
        if !here || self.started_ticks == 0 {
            return Life::Unknown;
        }
        match process(self.pid) {
            Some(process) if process.ended || process.started_ticks != self.started_ticks => Life::Gone,
            Some(_) => Life::Lives,
            // Without /proc nothing is known; with it, what is not there is gone.
            None if process(std::process::id()).is_some() => Life::Gone,
            None => Life::Unknown,
        }
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { job, source, pid, host, since_unix_s, id, .. } = self;
        let ago_s = (uring::clock::realtime_ms() / 1000).saturating_sub(*since_unix_s);
        let text = format!("{job} from {source}, process {pid} on host {host}, begun {ago_s} s ago, id {id}");
        write!(f, "{}", text.escape_default())
    }
}

struct Process {
    started_ticks: u64,
    /// A zombie: it does nothing any more.
    ended: bool,
}

/// `None`: there is none with this number, or it cannot be read.
fn process(pid: u32) -> Option<Process> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The name stands in parentheses and may hold anything; the state follows, and the start is the 20th field from there.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let started_ticks = fields.nth(18)?.parse().ok()?;
    Some(Process { started_ticks, ended: matches!(state, "Z" | "X") })
}

/// One line of a file below `/proc`; empty if it cannot be read.
fn proc_line(name: &str) -> String {
    std::fs::read_to_string(Path::new("/proc").join(name)).map(|text| text.trim().to_string()).unwrap_or_default()
}

fn pid_namespace() -> String {
    std::fs::read_link("/proc/self/ns/pid").map(|to| to.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> Owner {
        let pid = std::process::id();
        let started_ticks = process(pid).unwrap().started_ticks;
        let (boot, pid_namespace) = (proc_line("sys/kernel/random/boot_id"), pid_namespace());
        Owner { boot, pid_namespace, pid, started_ticks, ..Owner::default() }
    }

    #[test]
    fn only_a_process_that_can_be_looked_at_is_gone_or_lives() {
        let here = here();
        assert_eq!(here.life(), Life::Lives);
        assert_eq!(
            Owner { started_ticks: here.started_ticks + 1, ..here.clone() }.life(),
            Life::Gone,
            "another process"
        );
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        let started_ticks = process(pid).unwrap().started_ticks;
        let other = Owner { pid, started_ticks, ..here.clone() };
        while !process(pid).unwrap().ended {
            std::thread::yield_now();
        }
        assert_eq!(other.life(), Life::Gone, "a zombie");
        child.wait().unwrap();
        assert_eq!(other.life(), Life::Gone, "no process");
        for unseen in [
            Owner { boot: "another".into(), ..other.clone() },
            Owner { pid_namespace: "pid:[1]".into(), ..other.clone() },
            Owner { pid_namespace: String::new(), ..other.clone() },
            Owner { started_ticks: 0, ..other.clone() },
        ] {
            assert_eq!(unseen.life(), Life::Unknown, "{unseen:?}");
        }
    }

    #[test]
    fn texts_of_owners() {
        let owner = Owner { id: "x".into(), host: "h\n\u{1b}[31m".into(), ..here() };
        assert_eq!(Owner::parse(owner.to_text().as_bytes()), Some(owner.clone()));
        assert!(!owner.to_string().contains(['\n', '\u{1b}']));
        for text in [b"".as_slice(), b"1", b"{}", &[b'['; 10_000], b"{\"id\":1}"] {
            assert_eq!(Owner::parse(text), None);
        }
    }
}
