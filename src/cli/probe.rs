//! `df2redis probe`: what this machine offers for io_uring, what is missing, and what to do about it.
//!
//! Reads `/proc` only; the ring's own features come from `uring` (see [`ring_features`]).

use super::settings::{Console, OutputForm, UsageError, Values};
use super::{Mode, log_warnings, print_out};
use crate::operator::Screen;
use crate::report::document::{ExitClass, RingFeature};
use crate::uring::probe::{Check, Outcome as Passed, self_test};
use serde::Serialize;
use std::fmt::Write;

/// The oldest kernel that this tool runs on.
const KERNEL_MIN: (u32, u32) = (6, 1);
/// Below this much locked memory, registering buffers fails for users without CAP_IPC_LOCK.
const LOCKED_BYTES_MIN: u64 = 256 << 20;

pub fn run(values: &mut Values, console: &Console, _screen: &Screen, mode: Mode) -> Result<ExitClass, UsageError> {
    log_warnings(values);
    if mode == Mode::ResolveOnly {
        return Ok(ExitClass::Done);
    }
    let machine = Machine::look();
    match console.output {
        OutputForm::Text => print_out(&machine.text()),
        OutputForm::Json => print_out(&(serde_json::to_string_pretty(&machine).unwrap_or_default() + "\n")),
    }
    Ok(if machine.usable() { ExitClass::Done } else { ExitClass::System })
}

/// What was found.
#[derive(Debug, Serialize)]
struct Machine {
    schema_version: u32,
    kernel: String,
    /// `kernel.io_uring_disabled`: 0 all users, 1 only some, 2 nobody; `None` where the kernel has no such setting.
    io_uring_disabled: Option<u8>,
    /// `None`: unlimited, or the limit does not bind (CAP_IPC_LOCK).
    locked_memory_bytes: Option<u64>,
    features: Vec<RingFeature>,
    /// What keeps the tool from running, or from running well, each with its remedy.
    problems: Vec<Problem>,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
struct Problem {
    fatal: bool,
    text: String,
}

impl Machine {
    fn look() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        Self::from_texts(
            &read("/proc/sys/kernel/osrelease"),
            &read("/proc/sys/kernel/io_uring_disabled"),
            &read("/proc/self/limits"),
            &read("/proc/self/status"),
            ring_features(),
        )
    }

    fn from_texts(
        release: &str,
        disabled: &str,
        limits: &str,
        status: &str,
        features: Result<Vec<RingFeature>, String>,
    ) -> Self {
        let kernel = release.trim().to_string();
        let io_uring_disabled = disabled.trim().parse().ok();
        let locked_memory_bytes = locked_memory(limits).filter(|_| !may_lock_all(status));
        let mut problems = Vec::new();
        let mut problem = |fatal, text: String| problems.push(Problem { fatal, text });
        if kernel_version(&kernel).is_none_or(|version| version < KERNEL_MIN) {
            let (major, minor) = KERNEL_MIN;
            problem(true, format!("kernel {kernel:?} is older than {major}.{minor}, the oldest supported: update it"));
        }
        match io_uring_disabled {
            Some(0) | None => {}
            Some(1) => problem(
                false,
                "io_uring is only for root and the group in kernel.io_uring_group: join that group, or run \
                 sysctl kernel.io_uring_disabled=0"
                    .into(),
            ),
            Some(_) => problem(true, "io_uring is switched off: run sysctl kernel.io_uring_disabled=0".into()),
        }
        if let Some(bytes) = locked_memory_bytes.filter(|&bytes| bytes < LOCKED_BYTES_MIN) {
            problem(
                false,
                format!(
                    "only {} of memory may be locked: raise it (ulimit -l, LimitMEMLOCK= in a unit file), lower --memory, \
                     or use --registered-buffers off",
                    crate::report::numbers::bytes(bytes)
                ),
            );
        }
        let features = features.unwrap_or_else(|text| {
            problem(true, text);
            Vec::new()
        });
        Self { schema_version: 1, kernel, io_uring_disabled, locked_memory_bytes, features, problems }
    }

    fn usable(&self) -> bool {
        self.problems.iter().all(|problem| !problem.fatal)
    }

    fn text(&self) -> String {
        let mut out = format!("kernel           {}\n", self.kernel);
        let locked = self.locked_memory_bytes.map_or("unlimited".into(), crate::report::numbers::bytes);
        let _ = writeln!(out, "locked memory    {locked}");
        for feature in &self.features {
            let note = feature.note.as_deref().map(|note| format!(" ({note})")).unwrap_or_default();
            let _ = writeln!(out, "{:<16} {}{note}", feature.name, if feature.used { "yes" } else { "no" });
        }
        for problem in &self.problems {
            let _ = writeln!(out, "{}: {}", if problem.fatal { "error" } else { "warning" }, problem.text);
        }
        if self.problems.is_empty() {
            out.push_str("Everything that df2redis uses is there.\n");
        }
        out
    }
}

/// What a ring on this machine can do; an error names cause and remedy.
fn ring_features() -> Result<Vec<RingFeature>, String> {
    Ok(self_test().into_iter().map(feature).collect())
}

fn feature(check: Check) -> RingFeature {
    let note = match check.outcome {
        Passed::Failed | Passed::Absent => Some(check.detail),
        Passed::Passed => None,
    };
    RingFeature { name: check.name.to_string(), used: check.outcome == Passed::Passed, note }
}

/// `6.18.0-rc1+` is (6, 18).
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The soft limit in `/proc/self/limits`.
fn locked_memory(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Whether this process has CAP_IPC_LOCK, from `/proc/self/status`.
fn may_lock_all(status: &str) -> bool {
    const CAP_IPC_LOCK: u64 = 14;
    let capabilities =
        status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    capabilities.is_some_and(|bits| bits & 1 << CAP_IPC_LOCK != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: &str =
        "Limit    Soft Limit  Hard Limit  Units\nMax locked memory         8388608     8388608     bytes\n";

    #[test]
    fn golden_text_of_a_machine_with_problems() {
        let machine = Machine::from_texts(
            "5.15.0-91-generic\n",
            "2\n",
            LIMITS,
            "CapEff:\t0000000000000000\n",
            Err("io_uring_setup: EPERM".into()),
        );
        assert!(!machine.usable());
        insta::assert_snapshot!(machine.text(), @r#"
        kernel           5.15.0-91-generic
        locked memory    8.0 MiB
        error: kernel "5.15.0-91-generic" is older than 6.1, the oldest supported: update it
        error: io_uring is switched off: run sysctl kernel.io_uring_disabled=0
        warning: only 8.0 MiB of memory may be locked: raise it (ulimit -l, LimitMEMLOCK= in a unit file), lower --memory, or use --registered-buffers off
        error: io_uring_setup: EPERM
        "#);
    }

    #[test]
    fn a_good_machine_has_none() {
        let features = vec![RingFeature { name: "sendmsg-zc".into(), used: true, note: None }];
        let machine = Machine::from_texts("6.18.0-rc1+", "", &LIMITS.replace("8388608", "unlimited"), "", Ok(features));
        assert!(machine.usable());
        assert_eq!(machine.locked_memory_bytes, None);
        let root = Machine::from_texts("6.18.0", "", LIMITS, "CapEff:\t000001ffffffffff\n", Ok(Vec::new()));
        assert_eq!((root.locked_memory_bytes, root.problems.len()), (None, 0));
        assert!(machine.text().ends_with("Everything that df2redis uses is there.\n"));
    }
}
