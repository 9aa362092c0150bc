//! One run of `replicate` from a live source that is being written to, with faults drawn from a seed.
//!
//! In: the tool's binary, a target, a seed, which faults. Out: nothing but `Ok` if the target holds in the end what the
//! source holds, else what differs and what the tool said. The writers go on through every fault; in the end they stop,
//! the tool is left alone until every record is acknowledged, and truth.py compares.

use super::losses::Losses;
use super::target::{Mover, Target};
use super::{Live, LiveOptions, Mix, Workload, WorkloadOptions};
use crate::lab::LabError;
use crate::lab::flow::{Faults, Gate};
use crate::lab::generate::{Compression, Spec};
use crate::lab::master::MasterOptions;
use crate::lab::rng::Rng;
use crate::lab::servers::{Server, ServerKind};
use crate::lab::torture::{Tool, wait_for};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Keys to begin with.
const MIX: &str = "string:60B=150,string:3000B=8,int=120,list:6x9=40,list:300x20=4,set:8x9=40,intset:20x7=20,set:300x9=3,hash:6x9=40,\
                   hash:300x12=3,zset:6x9=40,zset:300x9=3,stream:12x6=25,stream:250x5=3";

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL, and a start with the same arguments.
    Kill,
    /// One flow's connection is closed by the source.
    CutFlow,
    /// All of the source's connections are.
    CutAll,
    /// One flow is silent for a while.
    StallFlow,
    /// The target closes the data connections.
    KillLanes,
    /// The target answers nothing for a while.
    StallTarget,
    /// The source's process is killed and comes back with another id.
    RestartSource,
    /// The replica of some primary takes over (in a cluster that has replicas).
    FailOver,
}

impl Fault {
    /// What loses no position.
    pub const HARMLESS: [Self; 6] =
        [Self::Kill, Self::CutFlow, Self::CutAll, Self::StallFlow, Self::KillLanes, Self::StallTarget];
}

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct StageOptions {
    pub seed: u64,
    pub faults: Vec<Fault>,
    pub faults_count: u64,
    /// A flush for each so many commands, once the first full sync is done; 0: none.
    pub flush_every: u64,
    /// This flow never grants a partial sync: the answers are mixed.
    pub never_partial: Vec<usize>,
    /// The source is one of before 1.35.
    pub partial_by_sync: bool,
    /// The first record of a partial sync's blobs is left out.
    pub blob_left_out: bool,
    pub workload_rate: u64,
    pub tool_args: Vec<String>,
    /// The full sync ends only once this is open.
    pub full_sync_gate: Option<Gate>,
    /// Slots of a cluster move to and fro, key by key, all the time.
    pub slots_move: bool,
    /// The nodes of a cluster lose keys once the full sync is done.
    pub keys_lost: bool,
    /// Redis 6.2 cannot take elements from the first of several keys.
    pub pops_of_one_key: bool,
}

impl StageOptions {
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            faults: Fault::HARMLESS.to_vec(),
            faults_count: 4,
            flush_every: 0,
            never_partial: Vec::new(),
            partial_by_sync: false,
            blob_left_out: false,
            workload_rate: 3000,
            tool_args: Vec::new(),
            full_sync_gate: None,
            slots_move: false,
            keys_lost: false,
            pops_of_one_key: false,
        }
    }
}

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunSummary {
    pub kills_full_sync: u64,
    pub kills_stable: u64,
    /// Replicas that took over.
    pub fail_overs: u64,
    /// Faults of other kinds.
    pub other_faults: u64,
    pub partial_syncs: u64,
    pub registrations: u64,
    pub commands: u64,
    pub slots_moved: u64,
    pub keys_lost: u64,
}

impl RunSummary {
    pub fn kills(&self) -> u64 {
        self.kills_full_sync + self.kills_stable
    }
}

impl std::ops::AddAssign for RunSummary {
    fn add_assign(&mut self, other: Self) {
        self.kills_full_sync += other.kills_full_sync;
        self.kills_stable += other.kills_stable;
        self.fail_overs += other.fail_overs;
        self.other_faults += other.other_faults;
        self.partial_syncs += other.partial_syncs;
        self.registrations += other.registrations;
        self.commands += other.commands;
        self.slots_moved += other.slots_moved;
        self.keys_lost += other.keys_lost;
    }
}

/// A source, its writers, and a target.
pub struct LiveStage {
    pub live: Live,
    pub workload: Workload,
    flushes: Option<Workload>,
    losses: Option<Losses>,
    /// The target, or the server that a cluster is gathered into in the end.
    pub server: Arc<Server>,
    pub target: Target,
    mover: Option<Mover>,
    kind: ServerKind,
    binary: PathBuf,
    options: StageOptions,
    rng: Rng,
    summary: RunSummary,
}

/// Runs once. `Err`: what was wrong.
pub fn run(
    binary: &Path,
    target: impl Into<Target>,
    kind: ServerKind,
    options: StageOptions,
) -> Result<RunSummary, String> {
    let mut stage = LiveStage::new(binary, target, kind, options).map_err(|error| error.to_string())?;
    let mut tool = stage.start()?;
    if stage.options.flush_every > 0 {
        stage.begin_flushes(&mut tool)?;
    }
    if stage.options.keys_lost {
        stage.begin_losses(&mut tool)?;
    }
    for _ in 0..stage.options.faults_count {
        stage.some_fault(&mut tool)?;
    }
    stage.finish(tool)
}

impl LiveStage {
    /// The target is emptied; the writers write from now on.
    pub fn new(
        binary: &Path,
        target: impl Into<Target>,
        kind: ServerKind,
        options: StageOptions,
    ) -> Result<Self, LabError> {
        let target = target.into();
        target.empty()?;
        let mut rng = Rng::new(options.seed ^ 0x57a6);
        let compressions = [Compression::None, Compression::Lzf, Compression::Zstd, Compression::Lz4];
        let spec = Spec {
            seed: options.seed,
            flows_count: 1 + rng.below(4) as usize,
            compression: compressions[rng.below(4) as usize],
            databases: if rng.chance(0.5) && !target.is_cluster() { vec![0, 2] } else { vec![0] },
            expire_fraction: 0.2,
            ..Spec::of(MIX)?
        };
        let live_options = LiveOptions {
            // A full sync takes some tenths of a second: kills meet it too.
            snapshot_bytes_per_s: Some(200_000 + rng.below(1_000_000)),
            jitter_max: rng.chance(0.5).then(|| Duration::from_millis(rng.below(30))),
            dispatch_after: None,
            partial_by_sync: options.partial_by_sync,
            blob_left_out: options.blob_left_out,
            ..LiveOptions::default()
        };
        let never_partial = options.never_partial.iter().map(|flow| flow % spec.flows_count).collect();
        let faults = Faults { full_sync_gate: options.full_sync_gate.clone(), ..Faults::default() };
        let master_options = MasterOptions { never_partial, faults, ..MasterOptions::default() };
        let live = Live::start(spec, live_options, master_options)?;
        let workload = WorkloadOptions {
            seed: options.seed,
            rate: Some(options.workload_rate),
            new_keys_tags: if target.is_cluster() { 12 } else { 0 },
            pops_of_one_key: options.pops_of_one_key,
            ..WorkloadOptions::default()
        };
        let workload = Workload::start(live.world(), live.spec(), workload);
        let (binary, summary) = (binary.to_owned(), RunSummary::default());
        let mover = match &target {
            Target::Cluster { cluster, .. } if options.slots_move => Some(Mover::start(cluster.clone(), options.seed)),
            _ => None,
        };
        let server = target.server().clone();
        Ok(Self {
            live,
            workload,
            flushes: None,
            losses: None,
            server,
            target,
            mover,
            kind,
            binary,
            options,
            rng,
            summary,
        })
    }

    /// Starts the tool, always with the same arguments.
    pub fn start(&self) -> Result<Tool, String> {
        let log = self.server.dir().join(format!("tool-{}.log", self.options.seed));
        let more: Vec<&str> = self.options.tool_args.iter().map(String::as_str).collect();
        Tool::start(&self.binary, self.live.port(), self.target.port(), &log, &more).map_err(|error| error.to_string())
    }

    /// Flushes come from now on; one in the full sync would void it.
    fn begin_flushes(&mut self, tool: &mut Tool) -> Result<(), String> {
        self.wait_stable(tool)?;
        let options = WorkloadOptions {
            mix: Mix::Flushes,
            seed: self.options.seed,
            rate: Some((self.options.workload_rate / self.options.flush_every).max(1)),
            ..WorkloadOptions::default()
        };
        self.flushes = Some(Workload::start(self.live.world(), self.live.spec(), options));
        Ok(())
    }

    /// In the full sync no answer is looked at: what is lost there is lost.
    fn begin_losses(&mut self, tool: &mut Tool) -> Result<(), String> {
        self.wait_stable(tool)?;
        if let Target::Cluster { cluster, .. } = &self.target {
            self.losses = Some(Losses::start(self.live.world(), cluster.clone(), self.options.seed));
        }
        Ok(())
    }

    /// Waits until the target's checkpoint is good.
    pub fn wait_stable(&self, tool: &mut Tool) -> Result<(), String> {
        let ended = |tool: &mut Tool| self.has_ended(tool).map(|ended| ended.map(Some)).transpose();
        match wait_for(|| ended(tool).or_else(|| self.target.is_stable().then_some(Ok(None)))) {
            Some(Err(error)) => Err(error),
            Some(Ok(None)) => Ok(()),
            Some(Ok(Some(code))) => Err(format!("the tool ended with {code}:\n{}", tool.said())),
            None => Err(format!("no good checkpoint:\n{}", tool.said())),
        }
    }

    /// The code that the tool has ended with. A source that goes away in one full sync after the other ends the run, as it is
    /// meant to: then it is started again, as a service manager would.
    fn has_ended(&self, tool: &mut Tool) -> Result<Option<i32>, String> {
        const SOURCE_LOST: i32 = 4;
        let ended = tool.ended();
        if ended == Some(SOURCE_LOST) && !self.target.is_stable() {
            *tool = self.start()?;
            return Ok(None);
        }
        Ok(ended)
    }

    /// Lets some time pass, then does one of the run's faults.
    pub fn some_fault(&mut self, tool: &mut Tool) -> Result<(), String> {
        let fault = self.options.faults[self.rng.below(self.options.faults.len() as u64) as usize];
        // The first may hit the full sync; the others mostly the journal.
        if self.rng.chance(if fault == Fault::Kill { 0.5 } else { 0.7 }) {
            self.wait_stable(tool)?;
        }
        std::thread::sleep(Duration::from_micros(self.rng.below(400_000)));
        if let Some(code) = self.has_ended(tool)? {
            return Err(format!("the tool ended with {code} before {fault:?}:\n{}", tool.said()));
        }
        self.do_fault(fault, tool)
    }

    pub fn do_fault(&mut self, fault: Fault, tool: &mut Tool) -> Result<(), String> {
        let text = |error: LabError| error.to_string();
        let stable = self.target.is_stable();
        let flow = self.rng.below(self.live.spec().flows_count as u64) as usize;
        let time = Duration::from_millis(50 + self.rng.below(400));
        let master = self.live.master();
        match fault {
            Fault::Kill => {
                tool.kill();
                *if stable { &mut self.summary.kills_stable } else { &mut self.summary.kills_full_sync } += 1;
                *tool = self.start()?;
            }
            Fault::CutFlow => master.iter().for_each(|master| master.cut_flow(flow)),
            Fault::CutAll => master.iter().for_each(|master| master.cut_all()),
            Fault::StallFlow => master.iter().for_each(|master| master.stall_flow(flow, time)),
            Fault::KillLanes => self.target.kill_lanes().map(drop).map_err(text)?,
            Fault::StallTarget => self.target.stall(time, &mut self.rng).map_err(text)?,
            Fault::FailOver => {
                let took_over = self.target.fail_over(&mut self.rng, self.mover.as_ref()).map_err(text)?;
                self.summary.fail_overs += u64::from(took_over);
            }
            Fault::RestartSource => self.live.restart().map_err(text)?,
        }
        match fault {
            Fault::Kill | Fault::FailOver => {}
            _ => self.summary.other_faults += 1,
        }
        Ok(())
    }

    /// The writers stop; the tool comes to the end and is stopped; the target is compared.
    pub fn finish(mut self, mut tool: Tool) -> Result<RunSummary, String> {
        self.wait_stable(&mut tool)?;
        // What follows the last fault, too.
        std::thread::sleep(Duration::from_millis(100));
        self.workload.stop();
        self.flushes = None;
        if let Some(losses) = self.losses.take() {
            self.summary.keys_lost = losses.stop().map_err(|why| format!("{why}\n{}", tool.said()))?;
        }
        if let Some(mover) = self.mover.take() {
            self.summary.slots_moved = mover.stop().map_err(|error| error.to_string())?;
        }
        let ended = |tool: &mut Tool| self.has_ended(tool).map(|ended| ended.map(Some)).transpose();
        match wait_for(|| ended(&mut tool).or_else(|| self.live.is_acknowledged().then_some(Ok(None)))) {
            Some(Err(error)) => return Err(error),
            Some(Ok(None)) => {}
            Some(Ok(Some(code))) => return Err(format!("the tool ended with {code}:\n{}", tool.said())),
            None => {
                let acks = self.live.master().map(|master| master.acks());
                let wanted = self.live.world().next_lsns();
                return Err(format!("acknowledged {acks:?} of {wanted:?}:\n{}", tool.said()));
            }
        }
        // Keys whose deletion was not in the stream are asked for when the target is in step.
        std::thread::sleep(Duration::from_millis(100));
        tool.signal("INT");
        match tool.wait() {
            Some(130) => {}
            code => return Err(format!("the tool ended with {code:?} after SIGINT:\n{}", tool.said())),
        }
        if let Some(violation) = self.live.master().and_then(|master| master.violations().first().cloned()) {
            return Err(format!("a real source would not have forgiven: {violation}"));
        }
        let truth_file = self.server.dir().join(format!("truth-{}.jsonl", self.options.seed));
        self.live.write_truth(&truth_file).map_err(|error| error.to_string())?;
        self.target.compare(self.kind, &truth_file).map_err(|text| format!("{text}\n{}", tool.said()))?;
        self.summary.partial_syncs = self.live.partial_count();
        self.summary.registrations = self.live.registrations_count();
        self.summary.commands = self.workload.done();
        Ok(self.summary)
    }
}
