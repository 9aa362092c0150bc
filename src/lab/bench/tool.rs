//! One run of the tool's real binary, and what its report says of it.

use super::{BenchArgs, pin};
use crate::lab::LabError;
use crate::lab::generate::{Generator, Spec};
use crate::lab::master::MasterOptions;
use crate::lab::sink::{Sink, SinkOptions};
use crate::lab::tls_proxy::{TlsProxy, TlsProxyOptions};
use serde_json::Value;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Figures of one run.
#[derive(Clone, Copy, Debug, Default)]
pub struct ToolRun {
    pub keys: u64,
    pub bytes_in: u64,
    /// Of the whole process: start, probing and registering included.
    pub cpu_s: f64,
    /// From the request for the data to the last acknowledgement.
    pub transfer_s: f64,
    pub system_calls: u64,
    pub rss_bytes: u64,
}

/// A run from a generated source into a sink.
pub fn against_sink(args: &BenchArgs, spec: &Spec) -> Result<ToolRun, LabError> {
    pin(args.peer_cpu)?;
    let sink = Sink::start(SinkOptions::default())?;
    let run = migrate(args, spec, sink.port())?;
    if let Some(malformed) = sink.malformed().first() {
        return Err(LabError::Bench(format!("the sink got what is no request: {malformed:?}")));
    }
    Ok(run)
}

/// The same into the sinks of a make-believe cluster.
pub fn against_cluster(args: &BenchArgs, spec: &Spec, primaries: usize) -> Result<ToolRun, LabError> {
    pin(args.peer_cpu)?;
    let sinks = Sink::start_cluster(primaries)?;
    let run = migrate(args, spec, sinks.first().map_or(0, Sink::port))?;
    for sink in &sinks {
        if let Some(malformed) = sink.malformed().first() {
            return Err(LabError::Bench(format!("a sink got what is no request: {malformed:?}")));
        }
        if sink.counts().commands < run.keys / primaries as u64 / 2 {
            return Err(LabError::Bench("the keys were not shared out evenly".into()));
        }
    }
    Ok(run)
}

/// A run into whatever listens on `target_port`. The source runs where this thread does; the tool on its CPU.
pub fn migrate(args: &BenchArgs, spec: &Spec, target_port: u16) -> Result<ToolRun, LabError> {
    migrate_over(args, spec, target_port, &Sides::default())
}

/// Sides that are reached over TLS, by a proxy that shows this certificate; it is its own CA.
#[derive(Clone, Copy, Default)]
pub struct Sides<'a> {
    pub source: Option<&'a TlsProxyOptions>,
    pub target: Option<&'a TlsProxyOptions>,
}

/// As [`migrate`], with TLS in between.
pub fn migrate_over(args: &BenchArgs, spec: &Spec, target_port: u16, sides: &Sides<'_>) -> Result<ToolRun, LabError> {
    let keys = spec.keys_count();
    let (master, _) = Generator::start(spec.clone(), MasterOptions::default())?;
    let source = sides.source.map(|shown| TlsProxy::start(master.port(), shown)).transpose()?;
    let target = sides.target.map(|shown| TlsProxy::start(target_port, shown)).transpose()?;
    let trusted = [("--source-tls-ca", sides.source), ("--target-tls-ca", sides.target)];
    let cpu = args.tool_cpu.to_string();
    let output = Command::new("taskset")
        .args(["-c", &cpu])
        .arg(binary(args)?)
        .args(["migrate", "--output", "json", "--progress", "off", "--cores", "1", "--pin", &cpu])
        .arg("--source")
        .arg(match &source {
            Some(proxy) => format!("dragonflys://127.0.0.1:{}", proxy.port()),
            None => format!("dragonfly://127.0.0.1:{}", master.port()),
        })
        .arg("--target")
        .arg(match &target {
            Some(proxy) => format!("rediss://127.0.0.1:{}", proxy.port()),
            None => format!("redis://127.0.0.1:{target_port}"),
        })
        .args(
            trusted
                .iter()
                .filter_map(|(flag, shown)| Some([OsStr::new(flag), shown.as_ref()?.cert.as_os_str()]))
                .flatten(),
        )
        .args(&args.tool_arg)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| LabError::Bench(format!("taskset cannot be started: {e}")))?;
    let document: Value = serde_json::from_slice(&output.stdout)
        .map_err(|e| LabError::Bench(format!("df2redis ended with {} and without a report: {e}", output.status)))?;
    if !output.status.success() {
        return Err(LabError::Bench(format!("df2redis ended with {}: {}", output.status, document["outcome"])));
    }
    if let Some(violation) = master.violations().first() {
        return Err(LabError::Bench(format!("df2redis broke the protocol: {violation}")));
    }
    let number = |path: &str| document.pointer(path).and_then(Value::as_f64).unwrap_or(0.0);
    let run = ToolRun {
        keys: number("/counters/keys") as u64,
        bytes_in: number("/counters/bytes_in") as u64,
        cpu_s: (number("/cpu/tool/user_ms") + number("/cpu/tool/system_ms")) / 1e3,
        transfer_s: number("/rates/transfer_ms") / 1e3,
        system_calls: number("/batches/system_calls") as u64,
        rss_bytes: number("/rss_bytes_peak") as u64,
    };
    if run.keys != keys {
        return Err(LabError::Bench(format!("df2redis reports {} keys of {keys}", run.keys)));
    }
    Ok(run)
}

pub fn binary(args: &BenchArgs) -> Result<PathBuf, LabError> {
    match &args.tool {
        Some(path) => Ok(path.clone()),
        None => Ok(std::env::current_exe()?.with_file_name("df2redis")),
    }
}
