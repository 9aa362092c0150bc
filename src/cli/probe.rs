//! `df2redis probe`: what this machine offers for io_uring, what is missing, and what to do about it.
//!
//! Everything is found out by `uring`'s self-test; here it is only shown, and joined with what follows for the defaults.

use super::settings::{Console, OutputForm, UsageError, Values};
use super::{Mode, log_warnings, print_out};
use crate::engine::settings::{MEMORY_BYTES_DEFAULT, locked_bytes};
use crate::operator::Screen;
use crate::report::document::ExitClass;
use crate::report::numbers;
use crate::uring::probe::{Check, Outcome, self_test};
use crate::uring::{Memlock, cpu};
use serde::Serialize;
use std::fmt::Write;

pub fn run(values: &mut Values, console: &Console, _screen: &Screen, mode: Mode) -> Result<ExitClass, UsageError> {
    log_warnings(values);
    if mode == Mode::ResolveOnly {
        return Ok(ExitClass::Done);
    }
    // A run raises the soft limit as well.
    cpu::raise_memlock();
    let machine = Machine::judge(self_test(), cpu::memlock());
    match console.output {
        OutputForm::Text => print_out(&machine.text()),
        OutputForm::Json => print_out(&(serde_json::to_string_pretty(&machine).unwrap_or_default() + "\n")),
    }
    Ok(if machine.usable { ExitClass::Done } else { ExitClass::System })
}

/// What was found.
#[derive(Debug, Serialize)]
struct Machine {
    schema_version: u32,
    /// A migration with default settings runs.
    usable: bool,
    checks: Vec<Check>,
    /// What works less well than it could.
    warnings: Vec<String>,
}

impl Machine {
    fn judge(checks: Vec<Check>, memlock: Memlock) -> Self {
        let needed = locked_bytes(MEMORY_BYTES_DEFAULT);
        let warnings = memlock.too_little_for(needed).map(|limit| {
            format!(
                "only {} of memory may be locked, and the buffers of the default --memory take {}: they are not registered \
                 with the kernel then, which costs a little CPU time. Raise the limit (ulimit -l {}, LimitMEMLOCK= in a unit \
                 file, docker run --ulimit memlock=-1) or give CAP_IPC_LOCK",
                numbers::bytes(limit),
                numbers::bytes(needed),
                needed / 1024,
            )
        });
        let usable = checks.iter().all(|check| check.outcome != Outcome::Failed);
        Self { schema_version: 2, usable, checks, warnings: warnings.into_iter().collect() }
    }

    fn text(&self) -> String {
        let mut out = String::new();
        for Check { name, outcome, detail } in &self.checks {
            let word = match outcome {
                Outcome::Passed => "yes",
                Outcome::Absent => "no",
                Outcome::Failed => "FAILED",
            };
            let _ = writeln!(out, "{name:<20} {word:<7} {detail}");
        }
        for warning in &self.warnings {
            let _ = writeln!(out, "warning: {warning}");
        }
        out.push_str(match self.usable {
            true => "df2redis runs on this machine. What says \"no\" is optional.\n",
            false => "df2redis does not run on this machine: see what FAILED, and linux-only.md.\n",
        });
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &'static str, outcome: Outcome, detail: &str) -> Check {
        Check { name, outcome, detail: detail.into() }
    }

    #[test]
    fn golden_text_of_a_machine_with_problems() {
        let checks = vec![
            check("kernel", Outcome::Passed, "6.1.0-13-amd64"),
            check("ring-defer-taskrun", Outcome::Failed, "io_uring is forbidden to this process"),
            check("sendmsg-zc-fixed", Outcome::Absent, "needs Linux 6.15"),
        ];
        let machine = Machine::judge(checks, Memlock { limit_bytes: Some(8 << 20), exempt: false });
        assert!(!machine.usable);
        insta::assert_snapshot!(machine.text(), @r#"
        kernel               yes     6.1.0-13-amd64
        ring-defer-taskrun   FAILED  io_uring is forbidden to this process
        sendmsg-zc-fixed     no      needs Linux 6.15
        warning: only 8.0 MiB of memory may be locked, and the buffers of the default --memory take 128.0 MiB: they are not registered with the kernel then, which costs a little CPU time. Raise the limit (ulimit -l 131072, LimitMEMLOCK= in a unit file, docker run --ulimit memlock=-1) or give CAP_IPC_LOCK
        df2redis does not run on this machine: see what FAILED, and linux-only.md.
        "#);
    }

    #[test]
    fn an_optional_thing_that_is_absent_is_no_problem() {
        let checks = || vec![check("ring-sqpoll", Outcome::Absent, "EPERM")];
        for memlock in [
            Memlock { limit_bytes: None, exempt: false },
            Memlock { limit_bytes: Some(8 << 20), exempt: true },
            Memlock { limit_bytes: Some(1 << 30), exempt: false },
        ] {
            let machine = Machine::judge(checks(), memlock);
            assert!(machine.usable && machine.warnings.is_empty(), "{memlock:?}");
        }
    }
}
