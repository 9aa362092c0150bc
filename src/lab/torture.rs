//! Kills `df2redis replicate` again and again, starts it again with the same arguments, and compares at the end.
//!
//! In: the tool's binary, recordings with a stable part and the generated live source, real servers, a seed. Out: how many kills were done and in which
//! phase, or the seed of the first run that ended wrong. A run: a replayed source that takes its time, a few SIGKILLs at
//! drawn moments, a last start that is left alone until every position is acknowledged, and `truth.py`. The journals hold
//! INCR, RPUSH and APPEND, so that a doubled or lost record shows.

use super::LabError;
use super::cluster::Cluster;
use super::live::stage::{self, Fault, StageOptions};
use super::live::target::Target;
use super::master::{Master, MasterOptions};
use super::recordings::{Recording, recording};
use super::replay::Replay;
use super::rng::Rng;
use super::servers::{Server, ServerKind, ServerOptions};
use super::truth;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Recordings whose journals go on after the full sync.
pub const RECORDINGS: [&str; 4] = ["follow-lz4", "follow-plain", "follow-flushall", "live-lz4"];
/// In place of a recording: a live source with a mixed workload.
pub const GENERATED: &str = "generated";
/// The same into a cluster of three, whose slots move key by key meanwhile.
pub const CLUSTER: &str = "cluster";

/// How long a step may take before a run counts as hung. Debug builds on a busy machine are slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The binary `df2redis`.
    pub tool: PathBuf,
    pub kills: u64,
    pub seed: u64,
    /// Names of recordings, [`GENERATED`] and [`CLUSTER`]; one that is named twice is drawn twice as often.
    pub recordings: Vec<String>,
    pub kinds: Vec<ServerKind>,
    /// Most kills of one run.
    pub kills_per_run_max: u64,
}

impl Options {
    pub fn new(tool: &Path) -> Self {
        Self {
            tool: tool.to_owned(),
            kills: 10,
            seed: 1,
            recordings: RECORDINGS.into_iter().chain([GENERATED; 3]).map(str::to_owned).collect(),
            kinds: vec![ServerKind::Redis7],
            kills_per_run_max: 8,
        }
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    pub runs: u64,
    pub kills: u64,
    /// Kills before the checkpoint was good.
    pub kills_full_sync: u64,
    /// Kills after it.
    pub kills_stable: u64,
    /// Sessions that went on by a partial sync.
    pub partial_syncs: u64,
}

/// A running `df2redis replicate`; killed when dropped.
pub struct Tool {
    child: Child,
    log: PathBuf,
}

impl Tool {
    /// Starts it; standard error goes to `log`. A `--target` in `more` is meant instead of the port.
    pub fn start(
        binary: &Path,
        source_port: u16,
        target_port: u16,
        log: &Path,
        more: &[&str],
    ) -> Result<Self, LabError> {
        let file = |path: &Path| {
            std::fs::File::create(path).map_err(|source| LabError::File { path: path.to_owned(), source })
        };
        let mut command = Command::new(binary);
        command.args(["replicate", "--source", &format!("dragonfly://127.0.0.1:{source_port}")]);
        if !more.contains(&"--target") {
            command.args(["--target", &format!("redis://127.0.0.1:{target_port}")]);
        }
        let child = command
            .args(["--memory", "64MiB", "--progress", "off", "--output", "json", "--on-unsupported", "skip"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file(log)?)
            .spawn()
            .map_err(|source| LabError::File { path: binary.to_owned(), source })?;
        Ok(Self { child, log: log.to_owned() })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and waits until the process is gone.
    pub fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }

    /// Sends a signal by name (`INT`, `TERM`).
    pub fn signal(&self, name: &str) {
        Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().ok();
    }

    /// The exit code if it has ended (-1: by a signal).
    pub fn ended(&mut self) -> Option<i32> {
        self.child.try_wait().ok().flatten().map(|status| status.code().unwrap_or(-1))
    }

    /// Waits for the end; `None`: it does not end.
    pub fn wait(&mut self) -> Option<i32> {
        wait_for(|| self.ended())
    }

    /// What it said on standard error.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Looks again and again, for as long as a step may take.
pub fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() > until {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A source, a target and what must be there in the end.
pub struct Stage {
    pub name: String,
    pub kind: ServerKind,
    pub master: Master,
    pub server: Arc<Server>,
    pub dir: PathBuf,
    tool: PathBuf,
    truth_file: PathBuf,
    wanted: Vec<Option<u64>>,
}

impl Stage {
    /// `times`: how long the source takes for its snapshot and for its journal. The target is emptied.
    pub fn new(
        tool: &Path,
        name: &str,
        server: Arc<Server>,
        kind: ServerKind,
        times: (Duration, Duration),
        options: MasterOptions,
    ) -> Result<Self, LabError> {
        Self::of(tool, recording(name)?, server, kind, times, options)
    }

    /// The same with a recording that is at hand, perhaps changed.
    pub fn of(
        tool: &Path,
        recording: Recording,
        server: Arc<Server>,
        kind: ServerKind,
        times: (Duration, Duration),
        options: MasterOptions,
    ) -> Result<Self, LabError> {
        let name = recording.name.clone();
        server.client()?.run("FLUSHALL")?;
        let dir = server.dir().to_owned();
        let truth_file = recording.write_truth(&dir)?;
        let wanted = recording.meta.replica_offset_at_end.iter().copied().map(Some).collect();
        let mut replay = Replay::new(recording)?;
        (replay.snapshot_time, replay.stable_time) = (Some(times.0), Some(times.1));
        let master = Master::start(Arc::new(replay), options)?;
        Ok(Self { name, kind, master, server, dir, tool: tool.to_owned(), truth_file, wanted })
    }

    /// Starts the tool, always with the same arguments.
    pub fn start(&self, more: &[&str]) -> Result<Tool, LabError> {
        Tool::start(&self.tool, self.master.port(), self.server.port(), &self.dir.join("tool.log"), more)
    }

    /// The target's checkpoint is good.
    pub fn is_stable(&self) -> bool {
        is_stable(&self.server)
    }

    /// Every record is acknowledged by the newest session.
    pub fn is_at_end(&self) -> bool {
        self.master.acks() == self.wanted
    }

    /// Lets the tool come to the end and stops it. `Err`: what was wrong.
    pub fn reach_end(&self, tool: &mut Tool) -> Result<(), String> {
        let ended = wait_for(|| tool.ended().or_else(|| self.is_at_end().then_some(-2)));
        match ended {
            Some(-2) => {}
            Some(code) => return Err(format!("the tool ended with {code}:\n{}", tool.said())),
            None => {
                return Err(format!(
                    "acknowledged {:?} of {:?}, {} registrations:\n{}",
                    self.master.acks(),
                    self.wanted,
                    self.master.registrations_count(),
                    tool.said()
                ));
            }
        }
        // Keys whose deletion was not in the stream are asked for when the target is in step.
        std::thread::sleep(Duration::from_millis(100));
        tool.signal("INT");
        let code = tool.wait();
        if code != Some(130) {
            return Err(format!("the tool ended with {code:?} after SIGINT:\n{}", tool.said()));
        }
        match self.master.violations().as_slice() {
            [] => Ok(()),
            violations => Err(format!("a real source would not have forgiven {violations:?}")),
        }
    }

    /// Lets the tool come to the end, stops it and compares. `Err`: what was wrong.
    pub fn finish(&self, mut tool: Tool) -> Result<(), String> {
        self.reach_end(&mut tool)?;
        self.compare().map_err(|differences| format!("{differences}\n{}", tool.said()))
    }

    /// The target against the truth.
    pub fn compare(&self) -> Result<(), String> {
        compare(&self.server, self.kind, &self.truth_file)
    }
}

/// The program that a test runs: the one built with it, or another binary (DF2REDIS_TOOL) that shows whether the test finds an old bug.
pub fn tool_binary(built: &str) -> PathBuf {
    std::env::var_os("DF2REDIS_TOOL").map_or_else(|| built.into(), PathBuf::from)
}

/// A target that `replicate` filled against the truth.
pub fn compare(server: &Server, kind: ServerKind, truth_file: &Path) -> Result<(), String> {
    compare_within(server, kind, truth_file, 2)
}

/// The same where expiries may lie so far apart.
pub fn compare_within(server: &Server, kind: ServerKind, truth_file: &Path, slack_ms: u64) -> Result<(), String> {
    let slack_ms = slack_ms.to_string();
    let mut args = vec!["--skip-types", "json,opaque", "--ignore", "df2redis:", "--slack-ms", &slack_ms];
    if kind == ServerKind::Redis7 {
        args.push("--no-field-ttl");
    }
    truth::compare(server.port(), truth_file, &args).map(drop)
}

/// The target's checkpoint says that the full sync is done.
pub fn is_stable(server: &Server) -> bool {
    let phase = server.client().and_then(|mut client| client.run("HGET df2redis:checkpoint phase"));
    phase.is_ok_and(|reply| reply.text().is_some_and(|text| text == "stable"))
}

/// Runs until `options.kills` kills were done. `Err`: the first run that ended wrong, with its seed.
pub fn run(options: &Options, mut log: impl FnMut(&str)) -> Result<Summary, LabError> {
    let mut servers = Vec::new();
    for kind in &options.kinds {
        servers.push((*kind, Arc::new(Server::start_kind(*kind, ServerOptions::default())?)));
    }
    let cluster = match options.recordings.iter().any(|name| name == CLUSTER) {
        true => Some(Target::Cluster {
            cluster: Arc::new(Cluster::start_kind(ServerKind::Redis7, 3, false)?),
            judge: Arc::new(Server::start_kind(ServerKind::Redis7, ServerOptions::default())?),
        }),
        false => None,
    };
    let mut summary = Summary::default();
    while summary.kills < options.kills {
        let seed = options.seed.wrapping_add(summary.runs);
        let left = options.kills - summary.kills;
        one_run(options, &servers, cluster.as_ref(), seed, left, &mut summary, &mut log)
            .map_err(|reason| LabError::Bench(format!("seed {seed} ({} kills before): {reason}", summary.kills)))?;
    }
    Ok(summary)
}

fn one_run(
    options: &Options,
    servers: &[(ServerKind, Arc<Server>)],
    cluster: Option<&Target>,
    seed: u64,
    kills_left: u64,
    summary: &mut Summary,
    log: &mut impl FnMut(&str),
) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let name = &options.recordings[rng.below(options.recordings.len() as u64) as usize];
    let (kind, server) = &servers[rng.below(servers.len() as u64) as usize];
    let kills = (1 + rng.below(options.kills_per_run_max)).min(kills_left);
    let cluster = cluster.filter(|_| name == CLUSTER);
    if name == GENERATED || cluster.is_some() {
        let flush_every = if rng.chance(0.3) { 3000 } else { 0 };
        let run =
            StageOptions { faults: vec![Fault::Kill], faults_count: kills, flush_every, ..StageOptions::new(seed) };
        let run = match cluster {
            // Records over several slots hold the flow: it is written to at a pace that it can follow.
            Some(cluster) => {
                let run = StageOptions { slots_move: true, workload_rate: 1000, ..run };
                stage::run(&options.tool, cluster.clone(), ServerKind::Redis7, run)?
            }
            None => stage::run(&options.tool, server.clone(), *kind, run)?,
        };
        summary.runs += 1;
        summary.kills += kills;
        summary.kills_full_sync += run.kills_full_sync;
        summary.kills_stable += run.kills_stable;
        summary.partial_syncs += run.partial_syncs;
        let into = if cluster.is_some() { "a cluster".to_owned() } else { format!("{kind:?}") };
        log(&format!("seed {seed}: generated into {into}, {run:?}: equal"));
        return Ok(());
    }
    let snapshot_ms = 50 + rng.below(250);
    let stable_ms = 300 + rng.below(1200);
    let times = (Duration::from_millis(snapshot_ms), Duration::from_millis(stable_ms));
    let text = |error: LabError| error.to_string();
    let stage =
        Stage::new(&options.tool, name, server.clone(), *kind, times, MasterOptions::default()).map_err(text)?;
    let (mut in_full, mut in_stable) = (0, 0);
    for _ in 0..kills {
        let before = stage.master.registrations_count();
        let mut tool = stage.start(&[]).map_err(text)?;
        // One in ten dies before it has registered.
        if !rng.chance(0.1) {
            let registered = wait_for(|| {
                let sent = || stage.master.sent_bytes().iter().any(|bytes| *bytes > 0);
                let begun = stage.master.registrations_count() > before && (sent() || stage.is_at_end());
                begun.then_some(None).or_else(|| tool.ended().map(Some))
            });
            match registered {
                Some(None) => {}
                Some(Some(code)) => return Err(format!("the tool ended with {code}:\n{}", tool.said())),
                None => return Err(format!("the tool does not register:\n{}", tool.said())),
            }
        }
        // A third dies in the snapshot (if there is one), the others somewhere in the journal.
        let moment_us = match (stage.is_stable(), rng.chance(0.33)) {
            (false, true) => rng.below(snapshot_ms * 1000),
            (false, false) => snapshot_ms * 1000 + rng.below(stable_ms * 1000),
            (true, _) => rng.below(stable_ms * 400),
        };
        std::thread::sleep(Duration::from_micros(moment_us));
        if stage.is_stable() {
            in_stable += 1
        } else {
            in_full += 1
        }
        if let Some(code) = tool.ended() {
            return Err(format!("the tool ended with {code}:\n{}", tool.said()));
        }
        tool.kill();
    }
    let tool = stage.start(&[]).map_err(text)?;
    stage.finish(tool)?;
    summary.runs += 1;
    summary.kills += kills;
    summary.kills_full_sync += in_full;
    summary.kills_stable += in_stable;
    summary.partial_syncs += stage.master.partial_count();
    log(&format!(
        "seed {seed}: {name} into {kind:?}, {in_full} kills in the full sync, {in_stable} in stable sync, {} partial syncs: equal",
        stage.master.partial_count()
    ));
    Ok(())
}
