//! The cutover as a state machine: what comes after what, what is proof, and when it is too late.
//!
//! In: what happened (an answer, positions, a hook's end, a loss) and the time. Out: the one thing to do next. No I/O and no
//! clock. Invariants: the source is fenced before anything is proven and released on every way back; the traffic is
//! switched only at positions that the source said behind the fence and the target has confirmed, with no client's write
//! since, and while it is being switched nothing more is applied; nothing is called handed over once the fence's budget has
//! run out on either clock, nor if a client wrote anything at the source after the proof.

mod events;
mod plan;

pub use events::{Action, HookEvent, Input, Now, Positions, Undone, Unproven, behind};
pub use plan::{Plan, Verify};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Checking,
    BeforeFence,
    Fencing,
    AfterFence,
    Draining,
    Settling,
    Drained,
    Verifying,
    /// Held expiries are given back: only now is it likely that no renewal of them follows.
    PuttingRight,
    /// What the source recorded since by itself is applied, too.
    DrainingAgain,
    Sealing,
    /// A last look before the switch.
    Sealed,
    TakingOver,
    Switching,
    Confirming,
    EndingJob,
    HandedOver,
    Releasing,
    Aborted,
    Ended,
}

/// Between two looks at a target that is still too far behind.
const CHECK_EVERY_NS: u64 = 100_000_000;
/// The first looks of a drain follow each other at once: each is a round trip to the source.
const DRAIN_LOOKS_AT_ONCE: u32 = 20;
const DRAIN_EVERY_NS: u64 = 1_000_000;
/// A hook must end this long before the fence does, or there is no time left to look again.
const MARGIN_NS: u64 = 20_000_000;

/// One cutover, or one round of a rehearsal.
#[derive(Debug)]
pub struct Cutover {
    plan: Plan,
    hooks_timeout_ns: u64,
    state: State,
    begun: Now,
    fenced: Option<Now>,
    /// Positions behind which no client has written; while draining, those of the look before.
    quiet: Option<Vec<u64>>,
    looks: u32,
    /// Positions at which source and target were proven equal.
    pub proven: Option<Vec<u64>>,
    pub verified: Option<String>,
    /// The comparison found a difference.
    pub differs: bool,
    pub switched: bool,
    /// How long writes were held.
    pub held_ns: Option<u64>,
    /// From the fence until the positions were proven.
    pub drained_ns: Option<u64>,
    /// The fence could not be released: it has to end by itself.
    pub unreleased: bool,
    /// Why it was not done.
    pub why: Option<String>,
    /// What to know although it was done.
    pub note: Option<String>,
    /// The target may lack something although it was done.
    pub lacks: bool,
}

impl Cutover {
    /// Begins with a look at the positions.
    pub fn begin(plan: Plan, hooks_timeout_ns: u64, now: Now) -> (Self, Action) {
        let this = Self {
            plan,
            hooks_timeout_ns,
            state: State::Checking,
            begun: now,
            fenced: None,
            quiet: None,
            looks: 0,
            proven: None,
            verified: None,
            differs: false,
            switched: false,
            held_ns: None,
            drained_ns: None,
            unreleased: false,
            why: None,
            note: None,
            lacks: false,
        };
        (this, Action::AskPositions)
    }

    /// Since the fence was asked for.
    pub fn held_for_ns(&self, now: Now) -> Option<u64> {
        self.fenced.map(|fenced| now.since_ns(fenced))
    }

    /// What is left of the fence's budget; the whole of it before the fence. The source's own timer began later.
    pub fn left_ns(&self, now: Now) -> u64 {
        let budget_ns = self.plan.budget_ms.saturating_mul(1_000_000);
        budget_ns.saturating_sub(self.held_for_ns(now).unwrap_or(0))
    }

    /// The traffic is being switched, or was: whoever asked cannot take it back any more.
    pub fn is_committed(&self) -> bool {
        matches!(self.state, State::Switching | State::Confirming | State::EndingJob | State::HandedOver)
            || self.plan.takeover && self.state == State::TakingOver
    }

    pub fn is_handed_over(&self) -> bool {
        matches!(self.state, State::HandedOver | State::Ended) && self.why.is_none() && self.plan.rehearse == 0
    }

    fn is_rehearsal(&self) -> bool {
        self.plan.rehearse > 0
    }

    /// The one thing to do after `input`.
    pub fn on(&mut self, input: Input, now: Now) -> Action {
        if self.state == State::Switching && input == Input::Hook(Ok(())) {
            self.switched = true;
        }
        match input {
            // Everything is proven and switched; only the job's own keys may be left behind.
            Input::Lost(why) if self.state == State::EndingJob => {
                return self.job_ended(Err(Undone { text: why, lacks: true }), now);
            }
            Input::Lost(why) => return self.give_up(why),
            _ => {}
        }
        if self.is_fenced() && self.left_ns(now) == 0 {
            return self.too_late(match &input {
                Input::Hook(Err(why)) | Input::Fenced(Err(why)) => Some(why),
                Input::Verified(Err(Unproven::Differs(why) | Unproven::NotDone(why))) => Some(why),
                _ => None,
            });
        }
        match (self.state, input) {
            (State::Checking, Input::Waited) => Action::AskPositions,
            (State::Checking, Input::Positions(at)) => self.check(&at, now),
            (State::Checking, Input::NotReady(why)) => match self.may_wait(now) {
                true => Action::Wait { ns: CHECK_EVERY_NS },
                false => self.give_up(format!("{why}: nothing was fenced")),
            },
            (State::BeforeFence, Input::Hook(Ok(()))) => self.fence(now),
            (State::BeforeFence, Input::Hook(Err(why))) => self.give_up(format!("the before-fence hook vetoed: {why}")),
            (State::Fencing, Input::Fenced(Ok(()))) => self.hook(State::AfterFence, HookEvent::AfterFence, now),
            (State::Fencing, Input::Fenced(Err(why))) => {
                // A release would end somebody else's pause.
                self.fenced = None;
                self.give_up(format!("the source could not be fenced: {why}"))
            }
            (State::AfterFence, Input::Hook(Ok(()))) => self.go(State::Draining, Action::AskPositions),
            (State::Draining | State::DrainingAgain | State::Sealed | State::Confirming, Input::Waited) => {
                Action::AskPositions
            }
            (State::Draining, Input::Positions(at)) => self.drain(at, now),
            (State::Settling, Input::Settled) => {
                self.drained_ns = self.held_for_ns(now);
                match self.is_rehearsal() {
                    true => self.go(State::Releasing, Action::Release),
                    false => self.hook(State::Drained, HookEvent::Drained, now),
                }
            }
            (State::Drained, Input::Hook(Ok(()))) if self.plan.verify == Verify::None => self.put_right(),
            (State::Drained, Input::Hook(Ok(()))) => self.verify(now),
            (State::Verifying, Input::Verified(Ok(said))) => {
                self.verified = Some(said);
                self.put_right()
            }
            (State::Verifying, Input::Verified(Err(Unproven::Differs(why)))) => {
                self.differs = true;
                self.give_up(format!("source and target are not the same: {why}"))
            }
            (State::Verifying, Input::Verified(Err(Unproven::NotDone(why)))) => {
                self.give_up(format!("nothing is proven about source and target: {why}"))
            }
            (State::PuttingRight, Input::Settled) => {
                self.looks = 0;
                self.go(State::DrainingAgain, Action::AskPositions)
            }
            (State::DrainingAgain | State::Sealed | State::Confirming, Input::Positions(at)) => self.look(at, now),
            (State::Sealing, Input::Settled) => {
                self.looks = 0;
                self.go(State::Sealed, Action::AskPositions)
            }
            (State::TakingOver, Input::TakenOver(Ok(()))) => self.switch(now),
            (State::TakingOver, Input::TakenOver(Err(why))) => self.give_up(format!("DFLY TAKEOVER failed: {why}")),
            (State::Switching, Input::Hook(Ok(()))) => match self.plan.takeover {
                // There is no source to ask any more.
                true => self.go(State::EndingJob, Action::EndJob),
                false => {
                    self.looks = 0;
                    self.go(State::Confirming, Action::AskPositions)
                }
            },
            (State::Switching, Input::Hook(Err(why))) => {
                self.give_up(format!("the hook did not switch the traffic: {why}"))
            }
            (State::EndingJob, Input::JobEnded(result)) => self.job_ended(result, now),
            // It is handed over whatever this hook says.
            (State::HandedOver, Input::Hook(_)) => self.go(State::Ended, Action::End),
            (State::Releasing, Input::Released(result)) => self.released(result, now),
            (State::Aborted, Input::Hook(_)) => self.go(State::Ended, Action::End),
            (State::AfterFence | State::Drained, Input::Hook(Err(why))) => {
                self.give_up(format!("the {} hook failed: {why}", self.state_name()))
            }
            (state, input) => self.give_up(format!("internal error: {input:?} came in state {state:?}")),
        }
    }

    fn go(&mut self, state: State, action: Action) -> Action {
        self.state = state;
        action
    }

    fn state_name(&self) -> &'static str {
        if self.state == State::AfterFence { "after-fence" } else { "drained" }
    }

    /// Whether the fence must still stand for what is being done.
    fn is_fenced(&self) -> bool {
        use State::*;
        self.fenced.is_some()
            && matches!(
                self.state,
                Fencing
                    | AfterFence
                    | Draining
                    | Settling
                    | Drained
                    | Verifying
                    | PuttingRight
                    | DrainingAgain
                    | Sealing
                    | Sealed
                    | Switching
                    | Confirming
            )
    }

    fn hook(&mut self, state: State, event: HookEvent, now: Now) -> Action {
        self.state = state;
        // A hook has nothing to do in a rehearsal: it would act on real traffic.
        let within_ns = match self.is_fenced() {
            true => self.hooks_timeout_ns.min(self.left_ns(now).saturating_sub(MARGIN_NS)),
            false => self.hooks_timeout_ns,
        };
        Action::Hook { event, within_ns }
    }

    fn check(&mut self, at: &Positions, now: Now) -> Action {
        let behind = behind(&at.source, &at.applied);
        if behind <= self.plan.lag_entries_max && at.source.len() == at.applied.len() {
            return self.hook(State::BeforeFence, HookEvent::BeforeFence, now);
        }
        if self.may_wait(now) {
            return Action::Wait { ns: CHECK_EVERY_NS };
        }
        self.give_up(format!(
            "the target is {behind} entries behind, more than {} (--lag-entries-max): nothing was fenced",
            self.plan.lag_entries_max
        ))
    }

    fn may_wait(&self, now: Now) -> bool {
        now.since_ns(self.begun) < self.plan.wait_ms.saturating_mul(1_000_000)
    }

    fn fence(&mut self, now: Now) -> Action {
        if self.plan.takeover {
            return self.go(State::TakingOver, Action::Takeover { seconds: self.plan.budget_ms.div_ceil(1000) });
        }
        // From before it is sent, so that the source's own timer always ends later than ours.
        self.fenced = Some(now);
        self.go(State::Fencing, Action::Fence { ms: self.plan.budget_ms })
    }

    /// Proven once everything is applied that the source had, and no client has written since the look before.
    fn drain(&mut self, at: Positions, now: Now) -> Action {
        if at.source.len() != at.applied.len() {
            return self.give_up("the source answers with another number of flows".into());
        }
        let quiet = self.quiet.as_ref().is_some_and(|before| at.written_behind(before).is_none());
        if quiet && at.is_covered(&at.applied) {
            self.proven = Some(at.source);
            return self.go(State::Settling, Action::Settle { release: false });
        }
        self.quiet = Some(at.source);
        self.look_again(now)
    }

    /// A look behind the proof: no client may have written, and all that the source recorded by itself must be applied or,
    /// once nothing is applied any more, at least be known for what it is.
    fn look(&mut self, at: Positions, now: Now) -> Action {
        if let Some((flow, lsn)) = at.written_behind(self.quiet.as_deref().unwrap_or_default()) {
            let when = match self.state {
                State::Confirming => "while the traffic was switched",
                _ => "behind the proof",
            };
            return self.give_up(format!(
                "the source has written something {when} (flow {flow}, LSN {}), so its fence was not tight (writes on its \
                 admin port, or another CLIENT UNPAUSE)",
                lsn.saturating_sub(1)
            ));
        }
        let (applied, read) = (at.is_covered(&at.applied), at.is_covered(&at.seen.read));
        match self.state {
            State::DrainingAgain if applied => {
                self.proven = Some(at.source);
                self.go(State::Sealing, Action::Seal)
            }
            State::Sealed if read => self.switch(now),
            State::Confirming if read => {
                self.held_ns = self.held_for_ns(now);
                self.go(State::EndingJob, Action::EndJob)
            }
            _ => self.look_again(now),
        }
    }

    fn look_again(&mut self, now: Now) -> Action {
        self.looks += 1;
        match self.looks <= DRAIN_LOOKS_AT_ONCE {
            true => Action::AskPositions,
            false => Action::Wait { ns: DRAIN_EVERY_NS.min(self.left_ns(now)) },
        }
    }

    /// What is left of the budget, except for what the hook that switches must find.
    fn verify(&mut self, now: Now) -> Action {
        let reserve_ns = self.plan.hook_reserve_ms().saturating_mul(1_000_000).saturating_add(2 * MARGIN_NS);
        let within_ns = self.left_ns(now).saturating_sub(reserve_ns);
        if within_ns == 0 {
            let reserve_ms = reserve_ns / 1_000_000;
            return self.give_up(format!(
                "no time is left to compare: {reserve_ms} ms of the budget of {} ms are kept for the switch",
                self.plan.budget_ms
            ));
        }
        self.go(State::Verifying, Action::Verify { within_ns })
    }

    fn put_right(&mut self) -> Action {
        self.go(State::PuttingRight, Action::Settle { release: true })
    }

    fn switch(&mut self, now: Now) -> Action {
        let left_ns = self.left_ns(now);
        if self.fenced.is_some() && left_ns <= 2 * MARGIN_NS {
            return self.too_late(None);
        }
        let timeout_ns = self.plan.hook_timeout_ms.saturating_mul(1_000_000);
        let within_ns = match self.fenced {
            Some(_) => timeout_ns.min(left_ns - MARGIN_NS),
            None => timeout_ns,
        };
        self.go(State::Switching, Action::Hook { event: HookEvent::Switch, within_ns })
    }

    fn job_ended(&mut self, result: Result<(), Undone>, now: Now) -> Action {
        if let Err(Undone { text, lacks }) = result {
            (self.note, self.lacks) = (Some(text), lacks);
        }
        self.hook(State::HandedOver, HookEvent::HandedOver, now)
    }

    fn too_late(&mut self, said: Option<&String>) -> Action {
        let budget_ms = self.plan.budget_ms;
        let done = match self.state {
            State::Fencing => "the source did not answer",
            State::AfterFence => "the after-fence hook did not end",
            State::Draining | State::Settling | State::PuttingRight | State::DrainingAgain | State::Sealing => {
                "the target did not reach the source"
            }
            State::Sealed => "what the source recorded was not read",
            State::Drained => "the drained hook did not end",
            State::Verifying => "the verification did not end",
            State::Switching => "the hook did not end",
            _ => "the switch was not proven",
        };
        let said = said.map(|said| format!(" ({said})")).unwrap_or_default();
        self.give_up(format!("{done} within the budget of {budget_ms} ms{said}"))
    }

    fn give_up(&mut self, why: String) -> Action {
        match self.state {
            // A second reason does not change the way back.
            State::Releasing | State::Aborted | State::HandedOver | State::Ended => {
                self.why.get_or_insert(why);
                self.go(State::Ended, Action::End)
            }
            _ => {
                let why = match self.switched {
                    true => format!(
                        "{why}. The hook had switched the traffic already: switch it back, or stop the source's writers and \
                         see what it wrote since"
                    ),
                    false => why,
                };
                self.why = Some(why);
                match self.fenced {
                    Some(_) => self.go(State::Releasing, Action::Release),
                    None => self.aborted(),
                }
            }
        }
    }

    fn aborted(&mut self) -> Action {
        let within_ns = self.hooks_timeout_ns;
        self.go(State::Aborted, Action::Hook { event: HookEvent::Aborted, within_ns })
    }

    fn released(&mut self, result: Result<(), String>, now: Now) -> Action {
        self.held_ns = self.held_for_ns(now);
        if let Err(why) = result {
            self.unreleased = true;
            let note = format!(
                "writes may be held until the fence ends by itself, {} ms after it began: {why}",
                self.plan.budget_ms
            );
            self.why = Some(match self.why.take() {
                Some(first) => format!("{first}; the fence could not be released ({note})"),
                None => format!("the fence could not be released ({note})"),
            });
        }
        match (&self.why, self.is_rehearsal()) {
            (_, true) => self.go(State::Ended, Action::End),
            _ => self.aborted(),
        }
    }
}

#[cfg(test)]
mod tests;
