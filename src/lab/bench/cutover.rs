//! For how long a cutover that nothing disturbs holds the writes: rehearsals against a live source and a real server.
//!
//! Each round is a job of its own, with a rehearsal of a hundred. The source keeps records that fill no segment for 10 ms, as
//! a real one does. What is to be reached is the p99 of one rehearsal, in the median of the rounds.

use super::table::Results;
use super::{BenchArgs, tool};
use crate::lab::LabError;
use crate::lab::generate::Spec;
use crate::lab::live::{Live, LiveOptions, Workload, WorkloadOptions};
use crate::lab::master::MasterOptions;
use crate::lab::servers::{Server, ServerOptions, find_any_server};
use crate::lab::torture::{Tool, wait_for};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const MIX: &str = "string:100B=20000,hash:10x20=2000,list:20x20=500,set:20x9=500,zset:20x9=500";
const FLOWS: usize = 4;
/// Commands a second.
const RATE: u64 = 2000;
const REHEARSALS: u32 = 100;
const DISPATCH_AFTER: Duration = Duration::from_millis(10);
const HELD_MS_P99_MAX: f64 = 50.0;

/// A rehearsal a round, with or without writers.
pub fn run(args: &BenchArgs, writers: bool, results: &mut Results) -> Result<(), LabError> {
    let (mut held, mut drained) = (Vec::new(), Vec::new());
    for round in 0..args.rounds {
        let rehearsal = rehearse(args, writers)?;
        let ms = |what: &str, at: &str| rehearsal[what][at].as_f64().unwrap_or(f64::NAN) / 1000.0;
        eprintln!("cutover {}: {rehearsal}", round + 1);
        held.push(["us_p50", "us_p99", "us_max"].map(|at| ms("held", at)));
        drained.push(["us_p50", "us_p99"].map(|at| ms("drained", at)));
    }
    let case = match writers {
        true => format!("{RATE} commands a second"),
        false => "no writers".into(),
    };
    let column = |i: usize| held.iter().map(|row| row[i]).collect::<Vec<_>>();
    results.add(&case, "writes held, p50, ms", column(0), None, None);
    results.add(&case, "writes held, p99 of 100, ms", column(1), None, Some(HELD_MS_P99_MAX));
    results.add(&case, "writes held, longest of 100, ms", column(2), None, None);
    results.add(&case, "proven equal after, p50, ms", drained.iter().map(|row| row[0]).collect(), None, None);
    results.add(&case, "proven equal after, p99 of 100, ms", drained.iter().map(|row| row[1]).collect(), None, None);
    Ok(())
}

fn rehearse(args: &BenchArgs, writers: bool) -> Result<Value, LabError> {
    let server = Server::start(&find_any_server()?, ServerOptions::default())?;
    let spec = Spec { flows_count: FLOWS, ..Spec::of(MIX)? };
    let options = LiveOptions { dispatch_after: Some(DISPATCH_AFTER), ..LiveOptions::default() };
    let live = Live::start(spec, options, MasterOptions::default())?;
    let write = || {
        let options = WorkloadOptions { rate: Some(RATE), ..WorkloadOptions::default() };
        Workload::start(live.world(), live.spec(), options)
    };
    let _workload = writers.then(write);
    let (binary, socket) = (tool::binary(args)?, server.dir().join("job.sock"));
    let control = socket.to_string_lossy().into_owned();
    let log = server.dir().join("tool.log");
    let mut job = Tool::start(&binary, live.port(), server.port(), &log, &["--control", &control])?;
    let failed = |what: &str, job: &Tool| LabError::Bench(format!("{what}:\n{}", job.said()));
    let in_step = wait_for(|| {
        let answer = ask(&binary, &["status"], &control).ok()?;
        (job.ended().is_some() || answer["status"]["in_step"] == true).then_some(())
    });
    if in_step.is_none() || job.ended().is_some() {
        return Err(failed("never in step", &job));
    }
    let count = REHEARSALS.to_string();
    let answer = ask(&binary, &["cutover", "--rehearse", &count, "--budget", "10s"], &control)?;
    let report = &answer["cutover"]["ended"];
    if report["outcome"] != "rehearsed" {
        return Err(failed(&format!("the rehearsal failed: {answer}"), &job));
    }
    Ok(report["rehearsal"].clone())
}

/// The last line of the answer.
fn ask(binary: &Path, what: &[&str], control: &str) -> Result<Value, LabError> {
    let output = Command::new(binary).args(what).args(["--output", "json", "--control", control]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).map_err(|e| LabError::Bench(format!("df2redis {what:?} said {text:?}: {e}")))
}
