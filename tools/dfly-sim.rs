//! `tools/dfly-sim`: the lab's servers on the command line. It only parses, starts and waits.
//!
//! ```text
//! dfly-sim replay tests/data/follow-lz4 --pieces 7
//! dfly-sim generate --mix string:100B=1000000,hash:20x8=50000 --flows 3 --truth /tmp/truth.jsonl
//! dfly-sim generate --mix string:100B=1000,list:9x9=100 --journal-rate 5000 --journal-secs 30 --flush-every 20000
//! dfly-sim sink --listen 127.0.0.1:6379
//! dfly-sim bench load --parts sink --json /tmp/load.json
//! ```

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use df2redis::lab::answers::TargetIdentity;
use df2redis::lab::bench::{self, BenchArgs};
use df2redis::lab::flow::{Fault, Faults, Pieces};
use df2redis::lab::generate::{Compression, Generator, Release, Spec, parse_mix};
use df2redis::lab::live::{Live, LiveOptions, Mix, Workload, WorkloadOptions};
use df2redis::lab::master::{Master, MasterOptions};
use df2redis::lab::recordings::{Recording, recording};
use df2redis::lab::replay::Replay;
use df2redis::lab::sink::{Sink, SinkOptions};
use df2redis::lab::torture;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

#[derive(Parser)]
#[command(about = "A simulated Dragonfly, and a RESP sink, for tests and measurements")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a recording: a folder, or the name of one in tests/data
    Replay(ReplayArgs),
    /// Serve a generated key space
    Generate(Box<GenerateArgs>),
    /// Answer RESP commands at full speed and keep nothing
    Sink(SinkArgs),
    /// Kill df2redis replicate at random moments, start it again, compare with the truth
    Torture(TortureArgs),
    /// List the recordings at hand
    Recordings,
    /// Measure df2redis beside others, in turns
    Bench {
        #[command(subcommand)]
        what: BenchCommand,
    },
}

#[derive(Subcommand)]
enum BenchCommand {
    /// Loads into a sink and into a real server; an error where a figure is not reached
    Load(BenchArgs),
    /// A journal beside a full sync of the same keys; counters, lag, and what an idle follower costs
    Journal(BenchArgs),
    /// Rehearsed cutovers: for how long writes are held
    Cutover(BenchArgs),
}

#[derive(Args)]
struct ReplayArgs {
    recording: PathBuf,
    /// Leave out the journal after the snapshot
    #[arg(long)]
    snapshot_only: bool,
    #[command(flatten)]
    master: MasterArgs,
}

#[derive(Args)]
struct GenerateArgs {
    /// Keys: KIND:SHAPE=COUNT, comma-separated. Kinds: string, int, json, list, set, intset, hash, zset, stream, hashttl,
    /// setttl, bloom, cms, topk, cuckoo. Shapes: 100B, 1KiB, 512MiB; collections ELEMENTSxBYTES
    #[arg(long, default_value = "string:100B=1000000")]
    mix: String,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 2)]
    flows: usize,
    #[arg(long, value_enum, default_value = "none")]
    compression: Compression,
    /// Cut large objects into tagged chunks: on or off
    #[arg(long, default_value = "on", value_parser = on_off, action = clap::ArgAction::Set)]
    tagged: bool,
    /// Where a large object is cut; 0: never
    #[arg(long, default_value_t = 64 << 10)]
    chunk_bytes: usize,
    #[arg(long, value_delimiter = ',', default_value = "0")]
    databases: Vec<u32>,
    /// Share of the keys that expire in 2033
    #[arg(long, default_value_t = 0.0)]
    expire: f64,
    /// Share of the keys that have expired
    #[arg(long, default_value_t = 0.0)]
    expired: f64,
    #[arg(long, default_value_t = 0.0)]
    sticky: f64,
    /// Journal records for each key
    #[arg(long, default_value_t = 0.0)]
    journal_ratio: f64,
    /// Stray keys on each flow
    #[arg(long, default_value_t = 0)]
    strays: usize,
    /// Keys on each flow whose delete is not in the stream
    #[arg(long, default_value_t = 0)]
    omitted_deletes: usize,
    /// Keys on each flow that are written before their baseline comes
    #[arg(long, default_value_t = 0)]
    early_writes: usize,
    #[arg(long, value_enum, default_value = "new")]
    release: Release,
    /// Pre-encoded records, all of a group alike, for measurements
    #[arg(long)]
    fast: bool,
    #[command(flatten)]
    journal: JournalArgs,
    /// Write what a target must hold (for truth.py --compare) once a client has taken everything (a live source: once it
    /// has acknowledged all that the writers wrote)
    #[arg(long)]
    truth: Option<PathBuf>,
    #[command(flatten)]
    master: MasterArgs,
}

/// A live source: keys change while they are replicated, ordinary clients may write, nothing is sent twice alike.
#[derive(Args)]
struct JournalArgs {
    /// Serve a source whose keys can change, also without writers of its own
    #[arg(long)]
    live: bool,
    /// Commands a second that its own writers write; 0: as fast as it goes
    #[arg(long)]
    journal_rate: Option<u64>,
    /// How long they write
    #[arg(long)]
    journal_secs: Option<f64>,
    /// How many they write
    #[arg(long)]
    journal_records: Option<u64>,
    /// What they write
    #[arg(long, value_enum, default_value = "mixed")]
    journal_mix: Mix,
    /// One of so many commands is a FLUSHDB or FLUSHALL; 0: none
    #[arg(long, default_value_t = 0)]
    flush_every: u64,
    /// Half of the expiries are at most so many milliseconds away
    #[arg(long)]
    expire_in_ms: Option<u64>,
    /// Bytes a second of each flow's full sync
    #[arg(long)]
    snapshot_bytes_per_s: Option<u64>,
    /// Each flow waits up to so many milliseconds before it sends what it has
    #[arg(long)]
    jitter_ms: Option<u64>,
    /// Records that fill no segment are sent after so many milliseconds (a real master: 10)
    #[arg(long)]
    dispatch_after_ms: Option<u64>,
    /// Records of each flow from which a partial sync may go on; all, unless given
    #[arg(long)]
    backlog_records: Option<u64>,
}

#[derive(Args)]
struct MasterArgs {
    #[arg(long, default_value = "127.0.0.1:6380")]
    listen: String,
    #[arg(long)]
    user: Option<String>,
    /// Name of an environment variable that holds the password clients must give
    #[arg(long)]
    password_env: Option<String>,
    /// Write in pieces of 1 to N bytes
    #[arg(long)]
    pieces: Option<usize>,
    /// Pieces only for so many bytes at each end of a flow
    #[arg(long)]
    pieces_edge_bytes: Option<u64>,
    /// Close FLOW after OFFSET bytes
    #[arg(long, value_name = "FLOW:OFFSET")]
    cut: Vec<String>,
    /// Change the byte at OFFSET by exclusive or
    #[arg(long, value_name = "FLOW:OFFSET:XOR")]
    garble: Vec<String>,
    /// Stop at OFFSET for so many milliseconds
    #[arg(long, value_name = "FLOW:OFFSET:MS")]
    stall: Vec<String>,
    /// Bytes a second on each flow
    #[arg(long)]
    slow: Option<u64>,
    /// Only the first N registrations suffer cuts, stalls and changed bytes
    #[arg(long)]
    faults_registrations: Option<u64>,
}

#[derive(Args)]
struct TortureArgs {
    #[arg(long, default_value_t = 200)]
    kills: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only these: recordings, `generated` (a live source), `cluster` (the same into a cluster whose slots move)
    #[arg(long, value_delimiter = ',')]
    recordings: Vec<String>,
    /// The binary under test; else the one beside this program
    #[arg(long)]
    tool: Option<PathBuf>,
}

#[derive(Args)]
struct SinkArgs {
    #[arg(long, default_value = "127.0.0.1:6379")]
    listen: String,
    /// What INFO says: a version of Redis
    #[arg(long, default_value = "7.0.15")]
    redis: String,
    /// A version of Valkey instead
    #[arg(long)]
    valkey: Option<String>,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Replay(args) => replay(args),
        Command::Generate(args) => generate(*args),
        Command::Sink(args) => {
            let identity = match &args.valkey {
                Some(version) => TargetIdentity::valkey(version),
                None => TargetIdentity::redis(&args.redis),
            };
            let sink = Sink::start(SinkOptions { listen: args.listen, identity })?;
            println!("listening on {}", sink.address());
            let mut last = sink.counts();
            loop {
                std::thread::sleep(Duration::from_secs(1));
                let now = sink.counts();
                if now.commands != last.commands {
                    println!("{} commands ({} in the last second)", now.commands, now.commands - last.commands);
                }
                last = now;
            }
        }
        Command::Torture(args) => {
            let tool = match args.tool {
                Some(tool) => tool,
                None => std::env::current_exe()?.with_file_name("df2redis"),
            };
            let mut options = torture::Options { kills: args.kills, seed: args.seed, ..torture::Options::new(&tool) };
            if !args.recordings.is_empty() {
                options.recordings = args.recordings;
            }
            let summary = torture::run(&options, |line| println!("{line}"))?;
            println!(
                "{} in the full sync, {} in stable sync, {} partial syncs, {} runs",
                summary.kills_full_sync, summary.kills_stable, summary.partial_syncs, summary.runs
            );
            println!("{} kills, 0 differences", summary.kills);
            Ok(())
        }
        Command::Bench { what: BenchCommand::Load(args) } => {
            anyhow::ensure!(bench::run(&args)?, "a figure was not reached");
            Ok(())
        }
        Command::Bench { what: BenchCommand::Journal(args) } => {
            anyhow::ensure!(bench::run_journal(&args)?, "a figure was not reached");
            Ok(())
        }
        Command::Bench { what: BenchCommand::Cutover(args) } => {
            anyhow::ensure!(bench::run_cutover(&args)?, "a figure was not reached");
            Ok(())
        }
        Command::Recordings => {
            for name in df2redis::lab::recordings::recording_names()? {
                println!("{name}");
            }
            Ok(())
        }
    }
}

fn replay(args: ReplayArgs) -> anyhow::Result<()> {
    let recording = if args.recording.join("meta.json").is_file() {
        Recording::load(&args.recording)?
    } else {
        recording(&args.recording.to_string_lossy())?
    };
    let mut replay = Replay::new(recording)?;
    replay.snapshot_only = args.snapshot_only;
    let master = Master::start(Arc::new(replay), args.master.options()?)?;
    println!("listening on {}", master.address());
    master.wait();
    Ok(())
}

fn generate(args: GenerateArgs) -> anyhow::Result<()> {
    let spec = Spec {
        mix: parse_mix(&args.mix)?,
        seed: args.seed,
        flows_count: args.flows.clamp(1, 1024),
        compression: args.compression,
        tagged: args.tagged,
        chunk_bytes: args.chunk_bytes,
        databases: args.databases,
        expire_fraction: args.expire,
        expired_fraction: args.expired,
        sticky_fraction: args.sticky,
        journal_ratio: args.journal_ratio,
        strays_count: args.strays,
        omitted_deletes_count: args.omitted_deletes,
        early_writes_count: args.early_writes,
        release: args.release,
        fast: args.fast,
        journal: None,
    };
    anyhow::ensure!(!spec.databases.is_empty(), "--databases must name at least one database");
    let journal = args.journal;
    if journal.live || journal.journal_rate.is_some() {
        let options = MasterOptions { backlog_records: journal.backlog_records, ..args.master.options()? };
        return live(spec, &journal, options, args.truth);
    }
    let (master, model) = Generator::start(spec, args.master.options()?)?;
    println!("listening on {}", master.address());
    if let Some(path) = args.truth {
        while master.finished_count() == 0 {
            std::thread::sleep(Duration::from_millis(50));
        }
        model.write_truth(&path)?;
        println!("wrote {}", path.display());
    }
    master.wait();
    Ok(())
}

fn live(spec: Spec, args: &JournalArgs, options: MasterOptions, truth: Option<PathBuf>) -> anyhow::Result<()> {
    let live_options = LiveOptions {
        snapshot_bytes_per_s: args.snapshot_bytes_per_s,
        jitter_max: args.jitter_ms.map(Duration::from_millis),
        dispatch_after: args.dispatch_after_ms.map(Duration::from_millis),
        ..LiveOptions::default()
    };
    let live = Live::start(spec, live_options, options)?;
    println!("listening on 127.0.0.1:{}", live.port());
    let Some(rate) = args.journal_rate else {
        live.wait();
        return Ok(());
    };
    let workload = WorkloadOptions {
        mix: args.journal_mix,
        seed: live.spec().seed,
        rate: (rate > 0).then_some(rate),
        commands_max: args.journal_records,
        time_max: args.journal_secs.map(Duration::from_secs_f64),
        flush_every: args.flush_every,
        expire_in: args.expire_in_ms.map(Duration::from_millis),
        ..WorkloadOptions::default()
    };
    let workload = Workload::start(live.world(), live.spec(), workload);
    while !workload.is_finished() {
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("wrote {} commands; the next LSNs are {:?}", workload.done(), live.world().next_lsns());
    if let Some(path) = truth {
        while !live.is_acknowledged() {
            std::thread::sleep(Duration::from_millis(50));
        }
        live.write_truth(&path)?;
        println!("wrote {}", path.display());
    }
    live.wait();
    Ok(())
}

impl MasterArgs {
    fn options(&self) -> anyhow::Result<MasterOptions> {
        let mut faults = Faults {
            pieces_edge_bytes: self.pieces_edge_bytes,
            registrations_max: self.faults_registrations,
            slow: self.slow,
            ..Faults::default()
        };
        if let Some(max) = self.pieces {
            faults.pieces = Pieces::Seeded { max, seed: 1 };
        }
        for text in &self.cut {
            let [flow, offset] = numbers(text)?;
            faults.at.push((flow as u32, offset, Fault::Cut));
        }
        for text in &self.garble {
            let [flow, offset, xor] = numbers(text)?;
            faults.at.push((flow as u32, offset, Fault::Garble(xor as u8)));
        }
        for text in &self.stall {
            let [flow, offset, ms] = numbers(text)?;
            faults.at.push((flow as u32, offset, Fault::Stall(Duration::from_millis(ms))));
        }
        let password = match &self.password_env {
            Some(name) => Some(std::env::var(name).with_context(|| format!("the environment variable {name}"))?),
            None => None,
        };
        Ok(MasterOptions {
            listen: self.listen.clone(),
            user: self.user.clone(),
            password,
            faults,
            scripted: Vec::new(),
            ..MasterOptions::default()
        })
    }
}

/// Numbers separated by colons.
fn numbers<const N: usize>(text: &str) -> anyhow::Result<[u64; N]> {
    let found: Vec<u64> = text.split(':').map(str::parse).collect::<Result<_, _>>().with_context(|| text.to_owned())?;
    let count = found.len();
    found.try_into().map_err(|_| anyhow::anyhow!("{text}: {count} numbers where {N} are wanted"))
}

fn on_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("on or off".to_owned()),
    }
}
