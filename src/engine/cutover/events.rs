//! What happens to a cutover, and what it has done about it.

use crate::engine::witness::Seen;

/// The time on two clocks: one stands still while the machine sleeps, the other may not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    pub monotonic_ns: u64,
    pub boottime_ns: u64,
}

impl Now {
    /// The longer of the times since `earlier`.
    pub fn since_ns(self, earlier: Self) -> u64 {
        let monotonic = self.monotonic_ns.saturating_sub(earlier.monotonic_ns);
        monotonic.max(self.boottime_ns.saturating_sub(earlier.boottime_ns))
    }
}

/// Where hooks are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookEvent {
    InStep,
    BeforeFence,
    AfterFence,
    Drained,
    /// The one that switches the traffic.
    Switch,
    HandedOver,
    Aborted,
}

impl HookEvent {
    pub fn name(self) -> &'static str {
        match self {
            Self::InStep => "in-step",
            Self::BeforeFence => "before-fence",
            Self::AfterFence => "after-fence",
            Self::Drained => "drained",
            Self::Switch => "switch",
            Self::HandedOver => "handed-over",
            Self::Aborted => "aborted",
        }
    }
}

/// Positions by flow, each the LSN of the next record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    /// The source's.
    pub source: Vec<u64>,
    /// What the target had confirmed after that was heard.
    pub applied: Vec<u64>,
    /// What was read then, and behind the last record that a client wrote.
    pub seen: Seen,
}

impl Positions {
    /// Whether `reached` covers everything that the source had. A shard without a journal says 0.
    pub(super) fn is_covered(&self, reached: &[u64]) -> bool {
        reached.len() == self.source.len()
            && self.source.iter().zip(reached).all(|(source, reached)| source <= reached || *source == 0)
    }

    /// The first flow in which a client wrote behind these positions, and the LSN behind that.
    pub(super) fn written_behind(&self, positions: &[u64]) -> Option<(usize, u64)> {
        let wrote = self.seen.wrote.iter().copied().zip(positions).enumerate();
        wrote.into_iter().find(|(_, (wrote, position))| wrote > *position).map(|(flow, (wrote, _))| (flow, wrote))
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Positions(Positions),
    /// The job is not ready to be cut over: not in step yet.
    NotReady(String),
    /// `Err`: why not, for each of these.
    Hook(Result<(), String>),
    /// `Err`: the source refused, and holds nothing.
    Fenced(Result<(), String>),
    Waited,
    /// The workers have nothing left to send or to be answered.
    Settled,
    /// What was compared, or why that proves nothing.
    Verified(Result<String, Unproven>),
    TakenOver(Result<(), String>),
    /// The job has ended: what is its own is removed, and nothing is missing; else what is not so.
    JobEnded(Result<(), Undone>),
    Released(Result<(), String>),
    /// The session, the job or whoever asked is gone, or a deadline passed.
    Lost(String),
}

/// What the end of a job, behind the switch, did not bring about at the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undone {
    pub text: String,
    /// The target may lack something: it is not only untidy.
    pub lacks: bool,
}

/// Why a comparison proves nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unproven {
    /// Source and target are not the same.
    Differs(String),
    /// It could not be done, or not in time.
    NotDone(String),
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    AskPositions,
    Wait {
        ns: u64,
    },
    Hook {
        event: HookEvent,
        within_ns: u64,
    },
    /// `CLIENT PAUSE <ms> WRITE`.
    Fence {
        ms: u64,
    },
    /// Have every worker say when nothing is left to be sent or answered; `release`: give held expiries back first.
    Settle {
        release: bool,
    },
    Verify {
        within_ns: u64,
    },
    /// Have every worker apply nothing more, and say when nothing is left to be answered; what comes is only looked at.
    Seal,
    Takeover {
        seconds: u64,
    },
    /// End the job: everything is at the target.
    EndJob,
    /// `CLIENT UNPAUSE`.
    Release,
    End,
}

/// Records that the source has written and the target has not confirmed.
pub fn behind(source: &[u64], applied: &[u64]) -> u64 {
    source.iter().zip(applied).map(|(source, applied)| source.saturating_sub(*applied)).sum()
}
