//! The machine under made-up events: every order of them ends released or proven, never switched too late.

use super::*;
use crate::engine::verify::{Rate, SampleSize};
use crate::engine::witness::Seen;
use proptest::prelude::*;

const MS: u64 = 1_000_000;

fn plan() -> Plan {
    Plan {
        execute: true,
        budget_ms: 1000,
        verify: Verify::Count,
        sample: SampleSize::Percent(1.0),
        sample_seed: 1,
        verify_rate: Rate::Unlimited,
        hook: Some("/bin/true".into()),
        hook_timeout_ms: 500,
        takeover: false,
        rehearse: 0,
        lag_entries_max: 100,
        wait_ms: 1000,
    }
}

fn at(ms: u64) -> Now {
    Now { monotonic_ns: ms * MS, boottime_ns: ms * MS }
}

/// Everything that was applied a client wrote.
fn positions(source: &[u64], applied: &[u64]) -> Input {
    witnessed(source, applied, applied, applied)
}

fn witnessed(source: &[u64], applied: &[u64], read: &[u64], wrote: &[u64]) -> Input {
    let seen = Seen { read: read.to_vec(), wrote: wrote.to_vec() };
    Input::Positions(Positions { source: source.to_vec(), applied: applied.to_vec(), seen })
}

fn hook(event: HookEvent, within_ms: u64) -> Action {
    Action::Hook { event, within_ns: within_ms * MS }
}

/// Up to the proof of the drain, 10 ms after the fence at 0.
fn drained(plan: Plan) -> Cutover {
    let (mut cutover, action) = Cutover::begin(plan, 10_000 * MS, at(0));
    assert_eq!(action, Action::AskPositions);
    assert_eq!(cutover.on(positions(&[5, 9], &[5, 8]), at(0)), hook(HookEvent::BeforeFence, 10_000));
    assert_eq!(cutover.on(Input::Hook(Ok(())), at(0)), Action::Fence { ms: 1000 });
    assert_eq!(cutover.on(Input::Fenced(Ok(())), at(1)), hook(HookEvent::AfterFence, 979));
    assert_eq!(cutover.on(Input::Hook(Ok(())), at(2)), Action::AskPositions);
    assert_eq!(cutover.on(positions(&[6, 9], &[6, 8]), at(3)), Action::AskPositions);
    assert_eq!(cutover.on(positions(&[6, 9], &[6, 9]), at(4)), Action::Settle { release: false });
    cutover
}

/// From the proof that held expiries were given back to the switch.
fn sealed(cutover: &mut Cutover) {
    assert_eq!(cutover.on(Input::Settled, at(12)), Action::AskPositions);
    assert_eq!(cutover.on(positions(&[6, 9], &[6, 9]), at(12)), Action::Seal);
    assert_eq!(cutover.on(Input::Settled, at(12)), Action::AskPositions);
    assert!(!cutover.is_committed());
    assert_eq!(cutover.on(positions(&[6, 9], &[6, 9]), at(12)), hook(HookEvent::Switch, 500));
}

#[test]
fn a_cutover_that_nothing_disturbs() {
    let mut cutover = drained(plan());
    assert_eq!(cutover.on(Input::Settled, at(10)), hook(HookEvent::Drained, 970));
    // A quarter of the budget is kept for the hook, and twice the margin.
    assert_eq!(cutover.on(Input::Hook(Ok(())), at(11)), Action::Verify { within_ns: (989 - 250 - 40) * MS });
    assert_eq!(cutover.on(Input::Verified(Ok("same".into())), at(12)), Action::Settle { release: true });
    assert!(!cutover.is_committed());
    sealed(&mut cutover);
    assert!(cutover.is_committed());
    assert_eq!(cutover.on(Input::Hook(Ok(())), at(100)), Action::AskPositions);
    assert_eq!(cutover.on(positions(&[6, 9], &[6, 9]), at(101)), Action::EndJob);
    assert_eq!(cutover.on(Input::JobEnded(Ok(())), at(5000)), hook(HookEvent::HandedOver, 10_000));
    assert_eq!(cutover.on(Input::Hook(Err("no matter".into())), at(5001)), Action::End);
    assert!(cutover.is_handed_over());
    assert_eq!((cutover.held_ns, cutover.drained_ns), (Some(101 * MS), Some(10 * MS)));
}

#[test]
fn a_position_said_once_is_no_proof() {
    let (mut cutover, _) = Cutover::begin(plan(), MS, at(0));
    cutover.on(positions(&[5], &[5]), at(0));
    cutover.on(Input::Hook(Ok(())), at(0));
    cutover.on(Input::Fenced(Ok(())), at(1));
    assert_eq!(cutover.on(Input::Hook(Ok(())), at(1)), Action::AskPositions);
    assert_eq!(cutover.on(positions(&[6], &[6]), at(1)), Action::AskPositions);
    assert_eq!(cutover.on(positions(&[7], &[7]), at(1)), Action::AskPositions);
    // More applied than the source has written is no equality either.
    assert_eq!(cutover.on(positions(&[7], &[8]), at(1)), Action::AskPositions);
    assert_eq!(cutover.on(positions(&[7], &[7]), at(1)), Action::Settle { release: false });
}

#[test]
fn regression_a_sleeping_machine_is_too_late() {
    // The monotonic clock stood still, the other did not; and the other way round.
    for late in [Now { monotonic_ns: 20 * MS, boottime_ns: 1001 * MS }, Now { monotonic_ns: 1001 * MS, boottime_ns: 0 }]
    {
        let mut cutover = drained(plan());
        cutover.on(Input::Settled, at(10));
        cutover.on(Input::Hook(Ok(())), at(11));
        assert_eq!(cutover.on(Input::Verified(Ok("same".into())), late), Action::Release);
        assert!(cutover.why.as_ref().unwrap().contains("within the budget"));
        cutover.on(Input::Released(Ok(())), late);
        assert_eq!(cutover.on(Input::Hook(Ok(())), late), Action::End);
        assert!(!cutover.is_handed_over());
    }
}

#[test]
fn a_hook_that_ended_too_late_is_no_handing_over_and_is_told() {
    let mut cutover = drained(plan());
    cutover.on(Input::Settled, at(10));
    cutover.on(Input::Hook(Ok(())), at(11));
    cutover.on(Input::Verified(Ok("same".into())), at(12));
    sealed(&mut cutover);
    assert_eq!(cutover.on(Input::Hook(Ok(())), at(1000)), Action::Release);
    assert!(cutover.switched && cutover.why.as_ref().unwrap().contains("switch it back"));
}

#[test]
fn a_write_behind_the_proof_is_no_handing_over() {
    let mut cutover = drained(plan());
    cutover.on(Input::Settled, at(10));
    cutover.on(Input::Hook(Ok(())), at(11));
    cutover.on(Input::Verified(Ok("same".into())), at(12));
    sealed(&mut cutover);
    cutover.on(Input::Hook(Ok(())), at(20));
    // Not read yet, so nothing is known of it.
    assert_eq!(cutover.on(witnessed(&[6, 10], &[6, 9], &[6, 9], &[6, 9]), at(21)), Action::AskPositions);
    assert_eq!(cutover.on(witnessed(&[6, 10], &[6, 9], &[6, 10], &[6, 10]), at(21)), Action::Release);
    let why = cutover.why.as_ref().unwrap();
    assert!(why.contains("not tight") && why.contains("flow 1, LSN 9") && why.contains("switch it back"), "{why}");
}

/// Before the switch there is nothing to switch back.
#[test]
fn a_write_between_the_proof_and_the_switch_is_not_switched() {
    for at_look in 0..2 {
        let mut cutover = drained(plan());
        cutover.on(Input::Settled, at(10));
        cutover.on(Input::Hook(Ok(())), at(11));
        cutover.on(Input::Verified(Ok("same".into())), at(12));
        cutover.on(Input::Settled, at(12));
        if at_look == 1 {
            assert_eq!(cutover.on(positions(&[6, 9], &[6, 9]), at(12)), Action::Seal);
            cutover.on(Input::Settled, at(12));
        }
        assert_eq!(cutover.on(positions(&[6, 10], &[6, 10]), at(13)), Action::Release);
        assert!(!cutover.switched && cutover.why.as_ref().unwrap().contains("not tight"));
    }
}

/// PINGs, scripts and what expires move the positions behind the fence, at every step, and nobody has written.
#[test]
fn regression_what_the_source_records_by_itself_speaks_against_no_fence() {
    let (mut cutover, _) = Cutover::begin(plan(), MS, at(0));
    cutover.on(positions(&[5, 9], &[5, 9]), at(0));
    cutover.on(Input::Hook(Ok(())), at(0));
    cutover.on(Input::Fenced(Ok(())), at(1));
    let mut lsn = 9;
    // Each answer lies further on than the one before, and the target is further than the source was.
    let mut next = || {
        lsn += 3;
        witnessed(&[5, lsn], &[5, lsn + 1], &[5, lsn + 1], &[5, 9])
    };
    assert_eq!(cutover.on(Input::Hook(Ok(())), at(1)), Action::AskPositions);
    assert_eq!(cutover.on(next(), at(1)), Action::AskPositions);
    assert_eq!(cutover.on(next(), at(1)), Action::Settle { release: false });
    assert_eq!(cutover.proven, Some(vec![5, 15]));
    cutover.on(Input::Settled, at(2));
    cutover.on(Input::Hook(Ok(())), at(2));
    cutover.on(Input::Verified(Ok("same".into())), at(3));
    assert_eq!(cutover.on(Input::Settled, at(3)), Action::AskPositions);
    // What is not applied yet is waited for.
    assert_eq!(cutover.on(witnessed(&[5, 20], &[5, 19], &[5, 20], &[5, 9]), at(3)), Action::AskPositions);
    assert_eq!(cutover.on(next(), at(3)), Action::Seal);
    assert_eq!(cutover.on(Input::Settled, at(3)), Action::AskPositions);
    // From here on it is enough to know what it is.
    assert_eq!(cutover.on(witnessed(&[5, 30], &[5, 22], &[5, 29], &[5, 9]), at(3)), Action::AskPositions);
    let switch = cutover.on(witnessed(&[5, 30], &[5, 22], &[5, 30], &[5, 9]), at(3));
    assert!(matches!(switch, Action::Hook { event: HookEvent::Switch, .. }), "{switch:?}");
    cutover.on(Input::Hook(Ok(())), at(4));
    assert_eq!(cutover.on(witnessed(&[5, 40], &[5, 22], &[5, 40], &[5, 9]), at(4)), Action::EndJob);
}

#[test]
fn a_target_too_far_behind_is_waited_for_and_then_not_fenced() {
    let (mut cutover, _) = Cutover::begin(plan(), MS, at(0));
    assert_eq!(cutover.on(positions(&[500], &[5]), at(0)), Action::Wait { ns: 100 * MS });
    assert_eq!(cutover.on(Input::Waited, at(100)), Action::AskPositions);
    assert_eq!(cutover.on(positions(&[500], &[5]), at(1000)), hook(HookEvent::Aborted, 1));
    assert_eq!(cutover.on(Input::Hook(Ok(())), at(1000)), Action::End);
    assert!(cutover.held_for_ns(at(1000)).is_none());
}

#[test]
fn a_job_that_is_not_in_step_is_waited_for_and_not_fenced() {
    let (mut cutover, _) = Cutover::begin(plan(), MS, at(0));
    assert_eq!(cutover.on(Input::NotReady("no".into()), at(0)), Action::Wait { ns: 100 * MS });
    assert_eq!(cutover.on(Input::Waited, at(100)), Action::AskPositions);
    assert_eq!(cutover.on(Input::NotReady("no".into()), at(1000)), hook(HookEvent::Aborted, 1));
}

#[test]
fn a_fence_that_was_refused_is_not_released() {
    let (mut cutover, _) = Cutover::begin(plan(), MS, at(0));
    cutover.on(positions(&[5], &[5]), at(0));
    cutover.on(Input::Hook(Ok(())), at(0));
    assert_eq!(cutover.on(Input::Fenced(Err("busy".into())), at(900)), hook(HookEvent::Aborted, 1));
    // No answer is no refusal: then it may stand.
    let (mut cutover, _) = Cutover::begin(plan(), MS, at(0));
    cutover.on(positions(&[5], &[5]), at(0));
    cutover.on(Input::Hook(Ok(())), at(0));
    assert_eq!(cutover.on(Input::Lost("no answer".into()), at(900)), Action::Release);
}

#[test]
fn a_rehearsal_releases_and_hands_nothing_over() {
    let mut cutover = drained(Plan { rehearse: 3, ..plan() });
    assert_eq!(cutover.on(Input::Settled, at(10)), Action::Release);
    assert_eq!(cutover.on(Input::Released(Ok(())), at(12)), Action::End);
    assert!(!cutover.is_handed_over() && cutover.why.is_none());
    assert_eq!(cutover.held_ns, Some(12 * MS));
}

#[test]
fn a_takeover_needs_no_fence() {
    let plan = Plan { takeover: true, verify: Verify::None, ..plan() };
    plan.check().unwrap();
    let (mut cutover, _) = Cutover::begin(plan, MS, at(0));
    cutover.on(positions(&[5], &[5]), at(0));
    assert_eq!(cutover.on(Input::Hook(Ok(())), at(0)), Action::Takeover { seconds: 1 });
    assert!(cutover.is_committed());
    assert_eq!(cutover.on(Input::TakenOver(Ok(())), at(900)), hook(HookEvent::Switch, 500));
    assert_eq!(cutover.on(Input::Hook(Ok(())), at(1500)), Action::EndJob);
    cutover.on(Input::Lost("the target is gone".into()), at(1500));
    assert!(cutover.is_handed_over() && cutover.note.is_some());
}

#[test]
fn plans_that_cannot_be_kept_are_refused() {
    for wrong in [
        Plan { budget_ms: 5, ..plan() },
        Plan { budget_ms: u64::MAX, ..plan() },
        Plan { rehearse: 1_000_000, ..plan() },
        Plan { takeover: true, ..plan() },
        Plan { takeover: true, verify: Verify::None, rehearse: 1, ..plan() },
        Plan { hook: Some("switch.sh".into()), ..plan() },
    ] {
        assert!(wrong.check().is_err(), "{wrong:?}");
    }
}

/// Any answer to an action, right or wrong, after any time.
fn answers(action: &Action, choice: u8, lsn: u64) -> Input {
    let refused = || Err("no".to_string());
    match (action, choice % 8) {
        (_, 7) => Input::Lost("gone".into()),
        (Action::AskPositions, 0..=3) => positions(&[lsn, 3], &[lsn, 3]),
        (Action::AskPositions, _) => positions(&[lsn, 3], &[lsn - 1, 3]),
        (Action::Wait { .. }, _) => Input::Waited,
        (Action::Hook { .. }, 0..=4) => Input::Hook(Ok(())),
        (Action::Hook { .. }, _) => Input::Hook(refused()),
        (Action::Fence { .. }, 0..=5) => Input::Fenced(Ok(())),
        (Action::Fence { .. }, _) => Input::Fenced(refused()),
        (Action::Settle { .. } | Action::Seal, _) => Input::Settled,
        (Action::Verify { .. }, 0..=5) => Input::Verified(Ok("same".into())),
        (Action::Verify { .. }, 6) => Input::Verified(Err(Unproven::NotDone("no".into()))),
        (Action::Verify { .. }, _) => Input::Verified(Err(Unproven::Differs("no".into()))),
        (Action::Takeover { .. }, 0..=4) => Input::TakenOver(Ok(())),
        (Action::Takeover { .. }, _) => Input::TakenOver(refused()),
        (Action::EndJob, 0..=5) => Input::JobEnded(Ok(())),
        (Action::EndJob, _) => Input::JobEnded(Err(Undone { text: "no".into(), lacks: true })),
        (Action::Release, 0..=4) => Input::Released(Ok(())),
        (Action::Release, _) => Input::Released(refused()),
        (Action::End, _) => unreachable!(),
    }
}

proptest! {
    #[test]
    fn every_order_of_events_ends_released_or_proven(
        steps in prop::collection::vec((any::<u8>(), 1u64..4, 0u64..300), 200),
        rehearse in 0u32..2,
    ) {
        let (mut cutover, mut action) = Cutover::begin(Plan { rehearse, ..plan() }, 200 * MS, at(0));
        let (mut ms, mut fenced_at, mut released, mut switched_to) = (0u64, None, false, None);
        let mut last = None;
        for (choice, lsn, passes) in steps {
            if action == Action::End {
                break;
            }
            if matches!(action, Action::Fence { .. }) {
                fenced_at = Some(ms);
            }
            released |= action == Action::Release;
            ms += passes;
            let input = answers(&action, choice, lsn);
            if let Input::Positions(Positions { source, applied, .. }) = &input
                && source == applied
            {
                last = Some(source.clone());
            }
            action = cutover.on(input, at(ms));
            if let Action::Hook { event: HookEvent::Switch, within_ns } = action {
                // Proven, fenced, and with time left.
                prop_assert_eq!(&cutover.proven, &last);
                prop_assert!(fenced_at.is_some() && within_ns / MS + ms < fenced_at.unwrap() + 1000);
                prop_assert_eq!(rehearse, 0);
                switched_to = Some(ms);
            }
            if action == Action::EndJob {
                prop_assert!(switched_to.is_some() && ms < fenced_at.unwrap() + 1000);
            }
        }
        prop_assert_eq!(&action, &Action::End);
        if fenced_at.is_some() && cutover.held_for_ns(at(ms)).is_some() {
            prop_assert!(released || cutover.is_handed_over());
        }
        prop_assert!(!cutover.is_handed_over() || switched_to.is_some());
    }
}
