//! The operator's programs, called at named events.
//!
//! In: a path, an event, what it should know. Out: whether it ended well. A hook runs without a shell, in a clean
//! environment (`PATH` and `DF2REDIS_*`), with JSON on standard input and its output on the job's standard error. Invariants:
//! it is killed with its whole process group when its time is over or nobody waits for it any more, and by the kernel when this process
//! dies; what it prints is not read, so it cannot block anybody.

use super::cutover::HookEvent;
use crate::uring::clock;
use crate::uring::cpu::{die_with_parent, kill_group};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::sync::oneshot;

/// The programs of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Hooks {
    pub in_step: Option<PathBuf>,
    pub before_fence: Option<PathBuf>,
    pub after_fence: Option<PathBuf>,
    pub drained: Option<PathBuf>,
    pub handed_over: Option<PathBuf>,
    pub aborted: Option<PathBuf>,
    /// Longest time for each.
    pub timeout: Duration,
}

impl Hooks {
    /// The program for an event. That which switches the traffic comes with the cutover.
    pub fn of(&self, event: HookEvent) -> Option<&Path> {
        let path = match event {
            HookEvent::InStep => &self.in_step,
            HookEvent::BeforeFence => &self.before_fence,
            HookEvent::AfterFence => &self.after_fence,
            HookEvent::Drained => &self.drained,
            HookEvent::HandedOver => &self.handed_over,
            HookEvent::Aborted => &self.aborted,
            HookEvent::Switch => &None,
        };
        path.as_deref()
    }
}

/// What every hook is told.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct HookFacts {
    pub event: String,
    pub source: String,
    pub target: String,
    pub pid: u32,
    /// What is left of the fence; `None`: nothing is fenced.
    pub fence_left_ms: Option<u64>,
    /// Positions at which source and target were proven equal.
    pub positions: Option<Vec<u64>>,
    /// Why a cutover was not done.
    pub reason: Option<String>,
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Between two looks whether a hook has ended.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Whether the hook can be called at all, as far as can be known before. `Err`: why not.
pub fn check(path: &Path) -> Result<(), String> {
    let name = path.display();
    let found = std::fs::metadata(path).map_err(|error| format!("the hook {name} cannot be called: {error}"))?;
    match found.is_file() && found.permissions().mode() & 0o111 != 0 {
        true => Ok(()),
        false => Err(format!("the hook {name} is no executable file")),
    }
}

/// Calls a hook and waits for its end, at most `within`; it is killed where nobody waits any more. `Err`: why it counts as failed.
pub async fn call(path: &Path, facts: &HookFacts, within: Duration) -> Result<(), String> {
    let (path, facts) = (path.to_path_buf(), facts.clone());
    let (ended, end) = oneshot::channel();
    // A thread of its own: it lives as long as the hook, for with it the kernel would kill the hook.
    let thread = std::thread::Builder::new().name("hook".into()).spawn(move || {
        let result = run(&path, &facts, within, || ended.is_closed());
        let _ = ended.send(result);
    });
    thread.map_err(|error| format!("no thread for the hook: {error}"))?;
    end.await.unwrap_or_else(|_| Err("the hook's thread ended without a word".into()))
}

fn run(path: &Path, facts: &HookFacts, within: Duration, is_over: impl Fn() -> bool) -> Result<(), String> {
    let name = path.display();
    if within.is_zero() {
        return Err(format!("{name} was not called: no time is left"));
    }
    let input = serde_json::to_vec(facts).unwrap_or_default();
    let mut command = Command::new(path);
    command
        .env_clear()
        .env("PATH", PATH)
        .env("DF2REDIS_EVENT", &facts.event)
        .env("DF2REDIS_SOURCE", &facts.source)
        .env("DF2REDIS_TARGET", &facts.target)
        .env("DF2REDIS_PID", facts.pid.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::from(std::io::stderr()))
        .stderr(Stdio::inherit())
        .process_group(0);
    if let Some(ms) = facts.fence_left_ms {
        command.env("DF2REDIS_FENCE_LEFT_MS", ms.to_string());
    }
    let begun_ns = clock::monotonic_ns();
    let ran = || Duration::from_nanos(clock::monotonic_ns().saturating_sub(begun_ns));
    let mut child =
        die_with_parent(&mut command).spawn().map_err(|error| format!("{name} cannot be started: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // It fits into the pipe; a hook that does not read it is in its right.
        let _ = stdin.write_all(&input);
    }
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("{name} ended with {status}")),
            Ok(None) if ran() >= within || is_over() => break,
            Ok(None) => std::thread::sleep(LOOK_EVERY),
            Err(error) => return Err(format!("{name} cannot be waited for: {error}")),
        }
    }
    kill_group(child.id());
    let _ = child.wait();
    Err(format!("{name} was killed after {} ms; what it had done by then is not known", ran().as_millis()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn script(dir: &Path, text: &str) -> PathBuf {
        let path = dir.join("hook");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn a_hook_knows_what_it_must_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let path = script(dir.path(), &format!("(env; cat) > {}", out.display()));
        let facts = HookFacts { event: "drained".into(), fence_left_ms: Some(123), ..HookFacts::default() };
        run(&path, &facts, Duration::from_secs(20), || false).unwrap();
        let said = std::fs::read_to_string(out).unwrap();
        assert!(said.contains("DF2REDIS_EVENT=drained") && said.contains("DF2REDIS_FENCE_LEFT_MS=123"), "{said}");
        assert!(said.contains("\"fence_left_ms\":123"), "{said}");
        assert!(!said.contains("CARGO") && !said.contains("HOME="), "{said}");
    }

    #[test]
    fn a_hook_that_fails_or_hangs_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let facts = HookFacts::default();
        let failing = script(dir.path(), "exit 3");
        assert!(run(&failing, &facts, Duration::from_secs(20), || false).unwrap_err().contains("exit status: 3"));
        assert!(
            run(&dir.path().join("absent"), &facts, Duration::from_secs(1), || false).unwrap_err().contains("started")
        );
        assert!(run(&failing, &facts, Duration::ZERO, || false).unwrap_err().contains("not called"));
        // Its children die with it.
        let left = dir.path().join("left");
        let hanging = script(dir.path(), &format!("(sleep 2; touch {}) & sleep 60", left.display()));
        let begun = std::time::Instant::now();
        assert!(run(&hanging, &facts, Duration::from_millis(200), || false).unwrap_err().contains("killed"));
        assert!(begun.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(2500));
        assert!(!left.exists());
    }
}
