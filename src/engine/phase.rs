//! Where a run stands: one enum, one transition table.

/// Phases of a full sync (wire 7). `replicate` and `cutover` will go on from `Draining`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Connecting, asking both sides what they are.
    Connect,
    /// Registering and opening the flows.
    Flows,
    FullSync,
    /// All flows are at FULLSYNC_END: STARTSTABLE was sent, offsets and tokens come in.
    StartingStable,
    /// Every flow is complete and every command answered; suspects are asked, markers removed.
    Settling,
    /// Following the journal, behind the source.
    CatchingUp,
    /// Everything is applied that the source had when it was last asked, a second ago.
    InStep,
    /// The source is gone, or was let go: what was read is applied and acknowledged.
    Draining,
    /// Told to stop: the source is left, what was read is applied.
    Stopping,
    /// The traffic was switched: the tool's own keys are removed.
    HandingOver,
    Done,
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Flows => "flows",
            Self::FullSync => "full sync",
            Self::StartingStable => "starting stable",
            Self::Settling => "settling",
            Self::CatchingUp => "catching up",
            Self::InStep => "in step",
            Self::Draining => "source gone, applying what was read",
            Self::Stopping => "stopping",
            Self::HandingOver => "handing over",
            Self::Done => "done",
        }
    }

    /// Whether `next` may follow. A voided sync goes back to `Connect`.
    pub fn may_enter(self, next: Self) -> bool {
        use Phase::*;
        matches!(
            (self, next),
            (Connect, Flows)
                | (Flows, FullSync)
                | (FullSync, StartingStable)
                | (StartingStable, Settling)
                | (Settling, Done)
                | (Flows | StartingStable, CatchingUp)
                | (CatchingUp, InStep)
                | (InStep, CatchingUp)
                | (CatchingUp | InStep, Draining)
                | (CatchingUp | InStep | Draining, Stopping)
                | (CatchingUp | InStep | Draining | Connect, HandingOver)
                | (HandingOver, Done)
                | (Connect | Flows | FullSync | StartingStable | CatchingUp | InStep | Draining, Connect)
        )
    }
}
