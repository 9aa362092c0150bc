//! A journal beside a full sync of the same keys; counters with exactly-once on; the lag at half of the top rate; what an
//! idle follower costs.
//!
//! The target is a real redis-server on the peers' CPU; the simulated source shares the tool's. Within a round everything
//! runs once, in turns, so that a noisy machine hits all alike.

use super::follow::Follower;
use super::real::{clean, cpu_s};
use super::table::Results;
use super::{BenchArgs, fast_spec, pin, tool};
use crate::lab::LabError;
use crate::lab::client::{Client, Reply, encode};
use crate::lab::generate::{FastCommand, FastJournal, Spec};
use crate::lab::servers::{Server, ServerOptions, find_any_server};
use std::time::Duration;

const KEYS: u64 = 1_000_000;
const VALUE_BYTES: usize = 100;
/// Keys that the counters go around over.
const COUNTERS: u64 = 1000;
/// Keys that are overwritten while the lag is measured: a target that grows stops for its own hash table now and then.
const LAG_KEYS: u64 = 100_000;
const LAG_TIME: Duration = Duration::from_secs(5);
const IDLE_TIME: Duration = Duration::from_secs(20);
const IDLE_ROUNDS_MAX: usize = 2;

pub struct JournalBench<'a> {
    args: &'a BenchArgs,
    server: Server,
    client: Client,
    /// Records a second that `rate` has seen.
    rates: Vec<f64>,
}

/// One journal run.
#[derive(Debug)]
struct Run {
    seconds: f64,
    tool_cpu_s: f64,
    server_cpu_s: f64,
    lag_ns_p99: f64,
}

impl<'a> JournalBench<'a> {
    pub fn start(args: &'a BenchArgs) -> Result<Self, LabError> {
        let options = ServerOptions { core: Some(args.peer_cpu), ..ServerOptions::default() };
        let server = Server::start(&find_any_server()?, options)?;
        let client = server.client()?;
        pin(args.tool_cpu)?;
        Ok(Self { args, server, client, rates: Vec::new() })
    }

    /// SETs and INCRs against the full sync.
    pub fn rate(&mut self, results: &mut Results) -> Result<(), LabError> {
        let records = (KEYS as f64 * self.args.scale) as u64;
        let mut of_full = (Vec::new(), Vec::new());
        let (mut million, mut cpu) = (Vec::new(), Vec::new());
        for round in 0..self.args.rounds {
            let full_spec = fast_spec("string:100B", KEYS, 1, self.args.scale)?;
            let (args, port) = (self.args, self.server.port());
            let full = |client: &mut Client| clean(client, |_| tool::migrate(args, &full_spec, port));
            // Whoever goes first finds the machine as another left it.
            let before = if round % 2 == 0 { Some(full(&mut self.client)?) } else { None };
            let sets = self.run(FastCommand::Set { value_bytes: VALUE_BYTES }, records, records, None)?;
            let incrs = self.run(FastCommand::Incr, records, COUNTERS, None)?;
            let full = match before {
                Some(full) => full,
                None => full(&mut self.client)?,
            };
            let full_rate = full.keys as f64 / full.transfer_s;
            eprintln!("journal {}: full sync {full:?}; SET {sets:?}; INCR {incrs:?}", round + 1);
            self.rates.push(records as f64 / sets.seconds);
            of_full.0.push(records as f64 / sets.seconds / full_rate);
            of_full.1.push(records as f64 / incrs.seconds / full_rate);
            million.push([full_rate / 1e6, records as f64 / sets.seconds / 1e6, records as f64 / incrs.seconds / 1e6]);
            let per_million = 1e6 / records as f64;
            cpu.push([
                full.cpu_s * per_million,
                sets.tool_cpu_s * per_million,
                incrs.tool_cpu_s * per_million,
                sets.server_cpu_s * per_million,
                incrs.server_cpu_s * per_million,
            ]);
        }
        let column = |rows: &[[f64; 3]], i: usize| rows.iter().map(|row| row[i]).collect::<Vec<_>>();
        let cpu_column = |i: usize| cpu.iter().map(|row: &[f64; 5]| row[i]).collect::<Vec<_>>();
        results.add("journal of 100 B SETs", "rate, share of the full sync's", of_full.0, Some(0.9), None);
        results.add("journal of INCRs, exactly once", "rate, share of the full sync's", of_full.1, Some(0.4), None);
        for (i, case) in
            ["full sync", "journal of 100 B SETs", "journal of INCRs, exactly once"].into_iter().enumerate()
        {
            results.add(case, "million records a second", column(&million, i), None, None);
            results.add(case, "CPU seconds of the tool a million", cpu_column(i), None, None);
            if i > 0 {
                results.add(case, "CPU seconds of redis a million", cpu_column(i + 2), None, None);
            }
        }
        Ok(())
    }

    /// The lag at half of the top rate.
    pub fn lag(&mut self, results: &mut Results) -> Result<(), LabError> {
        let command = FastCommand::Set { value_bytes: VALUE_BYTES };
        if self.rates.is_empty() {
            let records = (KEYS as f64 * self.args.scale) as u64;
            let run = self.run(command, records, records, None)?;
            self.rates.push(records as f64 / run.seconds);
        }
        self.rates.sort_by(f64::total_cmp);
        let rate = (self.rates[self.rates.len() / 2] / 2.0) as u64;
        let (mut lags, mut cores) = (Vec::new(), Vec::new());
        for round in 0..self.args.rounds {
            let records = (rate as f64 * LAG_TIME.as_secs_f64()) as u64;
            let run = self.run(command, records, LAG_KEYS.min(records), Some(rate))?;
            eprintln!("lag {} at {rate} records a second: {run:?}", round + 1);
            lags.push(run.lag_ns_p99 / 1e6);
            cores.push(run.tool_cpu_s / run.seconds);
        }
        let case = format!("{:.2} M SETs a second, half of the top rate", rate as f64 / 1e6);
        results.add(&case, "apply lag p99, ms", lags, None, Some(5.0));
        results.add(&case, "CPU of the tool, cores", cores, None, None);
        Ok(())
    }

    /// What a follower costs that has nothing to do.
    pub fn idle(&mut self, results: &mut Results) -> Result<(), LabError> {
        let mut shares = Vec::new();
        for _ in 0..self.args.rounds.min(IDLE_ROUNDS_MAX) {
            self.client.run("FLUSHALL SYNC")?;
            let journal = FastJournal { command: FastCommand::Incr, records: 10, keys: 10, rate: None };
            let mut follower = Follower::start(self.args, &spec(journal)?, &mut self.client, self.server.port())?;
            follower.run_journal(journal.records)?;
            std::thread::sleep(Duration::from_secs(2));
            let before = follower.cpu_s()?;
            std::thread::sleep(IDLE_TIME);
            let used = follower.cpu_s()? - before;
            eprintln!("idle: {used:.2} CPU seconds in {} s", IDLE_TIME.as_secs());
            shares.push(used / IDLE_TIME.as_secs_f64() * 100.0);
            follower.stop()?;
        }
        results.add("idle in stable sync, 20 s", "CPU, % of a core", shares, None, Some(0.5));
        Ok(())
    }

    fn run(&mut self, command: FastCommand, records: u64, keys: u64, rate: Option<u64>) -> Result<Run, LabError> {
        self.client.run("FLUSHALL SYNC")?;
        let journal = FastJournal { command, records, keys, rate };
        let mut follower = Follower::start(self.args, &spec(journal)?, &mut self.client, self.server.port())?;
        let before = (follower.cpu_s()?, cpu_s(&mut self.client)?);
        let seconds = follower.run_journal(records)?;
        let (tool_cpu_s, server_cpu_s) = (follower.cpu_s()? - before.0, cpu_s(&mut self.client)? - before.1);
        let report = follower.stop()?;
        self.check(journal)?;
        let rows = report["latencies"].as_array().cloned().unwrap_or_default();
        let lag = rows.iter().find(|row| row["latency"] == "apply_lag");
        let lag_ns_p99 = lag.and_then(|row| row["ns_p99"].as_f64()).unwrap_or(f64::INFINITY);
        Ok(Run { seconds, tool_cpu_s, server_cpu_s, lag_ns_p99 })
    }

    /// Every key is there; every counter is what it should be.
    fn check(&mut self, journal: FastJournal) -> Result<(), LabError> {
        // The source's one key, and the tool's checkpoint (and marker).
        let held = self.client.run("DBSIZE")?.int().unwrap_or_default() as u64;
        if held < journal.keys.min(journal.records) || held > journal.keys + 8 {
            return Err(LabError::Bench(format!("the target holds {held} keys of {}", journal.keys)));
        }
        if journal.command != FastCommand::Incr {
            return Ok(());
        }
        let mut requests = Vec::new();
        (0..journal.keys).for_each(|i| encode(&[b"GET".as_slice(), &journal.command.key(i)], &mut requests));
        self.client.send(&requests)?;
        for i in 0..journal.keys {
            let wanted = journal.records / journal.keys + u64::from(i < journal.records % journal.keys);
            let reply = self.client.reply()?;
            if reply != Reply::Bulk(wanted.to_string().into_bytes()) {
                return Err(LabError::Bench(format!("counter {i} is {reply:?} instead of {wanted}")));
            }
        }
        Ok(())
    }
}

/// A source with a single key of its own, and a journal.
fn spec(journal: FastJournal) -> Result<Spec, LabError> {
    Ok(Spec { journal: Some(journal), ..fast_spec("list:1x1", 1, 1, 1.0)? })
}
