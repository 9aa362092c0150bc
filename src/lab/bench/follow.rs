//! A run of `df2redis replicate` behind a pre-encoded journal, measured from outside.

use super::{BenchArgs, tool};
use crate::lab::LabError;
use crate::lab::client::Client;
use crate::lab::generate::{Generator, JournalGate, Spec};
use crate::lab::master::{Master, MasterOptions};
use serde_json::Value;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest wait for anything: more than any figure takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(600);
/// Acknowledgements come for each so many records; the end is told apart no finer.
const ACK_RECORDS: u64 = 1024;

/// A follower that has done its full sync; killed when dropped.
pub struct Follower {
    child: Child,
    master: Master,
    gate: Arc<JournalGate>,
}

impl Follower {
    /// Starts `replicate` from a fast source into an empty server and waits until the journal may come.
    pub fn start(args: &BenchArgs, spec: &Spec, target: &mut Client, target_port: u16) -> Result<Self, LabError> {
        let generator = Generator::new(spec.clone());
        let gate = generator.journal_gate();
        let master = Master::start(Arc::new(generator), MasterOptions::default())?;
        let cpu = args.tool_cpu.to_string();
        let child = Command::new("taskset")
            .args(["-c", &cpu])
            .arg(tool::binary(args)?)
            .args(["replicate", "--output", "json", "--progress", "off", "--cores", "1", "--pin", &cpu])
            .args(["--source", &format!("dragonfly://127.0.0.1:{}", master.port())])
            .args(["--target", &format!("redis://127.0.0.1:{target_port}")])
            .args(&args.tool_arg)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| LabError::Bench(format!("taskset cannot be started: {e}")))?;
        let mut follower = Self { child, master, gate };
        follower.wait("no good checkpoint", Duration::from_millis(20), |_| {
            let phase = target.run("HGET df2redis:checkpoint phase")?;
            Ok(phase.text().is_some_and(|text| text == "stable"))
        })?;
        Ok(follower)
    }

    /// Lets `records` come; returns the seconds until they are acknowledged.
    pub fn run_journal(&mut self, records: u64) -> Result<f64, LabError> {
        let started = Instant::now();
        self.gate.open();
        let wanted = records.saturating_sub(ACK_RECORDS);
        self.wait("the journal is not acknowledged", Duration::from_millis(1), |follower| {
            Ok(follower.master.acks().iter().flatten().map(|lsn| lsn - 1).sum::<u64>() >= wanted)
        })?;
        let seconds = started.elapsed().as_secs_f64();
        self.wait("the journal's end is not acknowledged", Duration::from_millis(20), |follower| {
            Ok(follower.master.acks().iter().flatten().map(|lsn| lsn - 1).sum::<u64>() == records)
        })?;
        Ok(seconds)
    }

    /// CPU seconds of the whole process so far, to the hundredth.
    pub fn cpu_s(&self) -> Result<f64, LabError> {
        let path = std::path::PathBuf::from(format!("/proc/{}/stat", self.child.id()));
        let text = std::fs::read_to_string(&path).map_err(|source| LabError::File { path, source })?;
        // The name, in parentheses, may hold anything; user and system time are the 12th and 13th field behind it.
        let fields = text.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).take(2);
        Ok(fields.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0)
    }

    /// Stops it; returns its report.
    pub fn stop(mut self) -> Result<Value, LabError> {
        Command::new("kill").args(["-INT", &self.child.id().to_string()]).status()?;
        let mut report = String::new();
        if let Some(stdout) = &mut self.child.stdout {
            stdout.read_to_string(&mut report)?;
        }
        let status = self.child.wait()?;
        if status.code() != Some(130) {
            return Err(LabError::Bench(format!("df2redis ended with {status} when it was stopped")));
        }
        if let Some(violation) = self.master.violations().first() {
            return Err(LabError::Bench(format!("df2redis broke the protocol: {violation}")));
        }
        serde_json::from_str(&report).map_err(|e| LabError::Bench(format!("df2redis left no report: {e}")))
    }

    fn wait(
        &mut self,
        what: &str,
        pause: Duration,
        mut done: impl FnMut(&Self) -> Result<bool, LabError>,
    ) -> Result<(), LabError> {
        let until = Instant::now() + PATIENCE;
        while !done(self)? {
            if let Some(status) = self.child.try_wait()? {
                return Err(LabError::Bench(format!("{what}: df2redis ended with {status}")));
            }
            if Instant::now() > until {
                return Err(LabError::Bench(format!("{what} after {} s", PATIENCE.as_secs())));
            }
            std::thread::sleep(pause);
        }
        Ok(())
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
