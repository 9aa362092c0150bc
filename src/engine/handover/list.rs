//! A cutover that is not done: its steps, with today's numbers.

use super::{HookEvent, Input, Positions, Run, Verify, now};
use crate::convert::hold::HORIZON_MS_MIN;
use crate::engine::cutover;
use crate::report::cutover::{CutoverOutcome, CutoverStep};

impl Run {
    /// What would be done, with today's numbers.
    pub(super) async fn list(&mut self) {
        let (budget_ms, hook) = (self.plan.budget_ms, self.plan.hook.clone());
        let begun = now();
        let Input::Positions(Positions { source, applied, .. }) =
            self.positions(self.handover.settings.connect_timeout).await
        else {
            self.report.outcome = CutoverOutcome::NotDone;
            self.report.message = Some("the source does not tell its positions".into());
            return;
        };
        let trip_us = now().since_ns(begun) / 1000;
        let behind = cutover::behind(&source, &applied);
        let status = self.handover.control.status();
        let ready = if self.handover.control.is_ready() { "in step" } else { "not in step yet: it would wait" };
        let near = if behind <= self.plan.lag_entries_max { "near enough" } else { "too far: it would wait" };
        let mut lines = Vec::new();
        if self.plan.verify != Verify::None && !self.plan.takeover {
            lines.push(("prepare", self.preparation_words()));
        }
        lines.push(("expiries", self.easing_words()));
        lines.push(("positions", format!("{ready}; {behind} entries behind in {} flows: {near}", source.len())));
        lines.push(("before-fence", self.hook_words(HookEvent::BeforeFence, "may veto")));
        if self.plan.takeover {
            lines.push((
                "takeover",
                format!(
                    "DFLY TAKEOVER {}: the source waits for every acknowledgement and ends",
                    budget_ms.div_ceil(1000)
                ),
            ));
        } else {
            let fence =
                format!("CLIENT PAUSE {budget_ms} WRITE at {}: ends by itself after {budget_ms} ms", status.source);
            let rate = status.rates.commands_per_s;
            let drain = match rate > 0.0 {
                true => format!("about {:.0} ms at today's {rate:.0} entries/s", behind as f64 * 1000.0 / rate),
                false => "at once: nothing is being written now".into(),
            };
            lines.push(("fence", fence));
            lines.push(("after-fence", self.hook_words(HookEvent::AfterFence, "may stop it")));
            lines.push((
                "positions",
                format!("until all is applied, and no client has written between two looks of {trip_us} us; {drain}"),
            ));
            lines.push(("proven equal", "nothing is left to be sent or answered".into()));
            lines.push(("drained", self.hook_words(HookEvent::Drained, "may stop it")));
            lines.push(("verify", self.comparison_words().await));
            let rest = format!("those within the next {} s are put right, too", HORIZON_MS_MIN / 1000);
            lines.push(("expiries", rest));
            lines.push(("positions", "what the source has recorded by itself since is applied".into()));
            lines.push(("sealed", "nothing more is applied".into()));
            lines.push(("positions", "a last look before the switch".into()));
        }
        let switch = match &hook {
            Some(path) => format!("{}, at most {} ms", path.display(), self.plan.hook_timeout_ms.min(budget_ms)),
            None => "no hook: whoever waits for this command's end switches the traffic".into(),
        };
        lines.push(("switch", switch));
        if !self.plan.takeover {
            lines.push(("positions", "no client may have written at the source since the proof".into()));
        }
        let own = match self.handover.cluster {
            true => "this job's checkpoint and markers are removed from the cluster".into(),
            false => format!("{} keys of this tool are removed from the target", self.own.len()),
        };
        lines.push(("end of the job", format!("{own}, exit code 0")));
        lines.push(("handed-over", self.hook_words(HookEvent::HandedOver, "told")));
        let back = match self.plan.takeover {
            true => "before the takeover: the job follows on, exit code 9; behind it there is no way back",
            false => {
                "CLIENT UNPAUSE, expiries held back again, the job follows on, exit code 9 (10: source and target differ)"
            }
        };
        lines.push(("on any miss", back.into()));
        lines.push(("aborted", self.hook_words(HookEvent::Aborted, "told why")));
        for (name, detail) in lines {
            self.tell_step(CutoverStep { name: name.into(), detail, ..CutoverStep::default() });
        }
    }

    /// What is held back, and what it takes to put it right before the fence.
    fn easing_words(&self) -> String {
        let hold = &self.handover.hold;
        let held = self.handover.control.status().expiries_held;
        let unnamed = hold.unnamed();
        let near_s = HORIZON_MS_MIN / 1000;
        match (held, unnamed.keys || unnamed.fields) {
            (0, false) => "none is held back now".into(),
            (held, false) => format!(
                "{held} are held back now; but for those of the next {near_s} s they are put right before the fence"
            ),
            (held, true) => format!(
                "{held} are held back by name now, and others without: every key of the target is looked at before the fence, and \
                 but for those of the next {near_s} s they are put right"
            ),
        }
    }

    fn preparation_words(&self) -> String {
        match self.plan.verify {
            Verify::Sample => "connections to both sides; the keys of the sample are chosen while writes go on".into(),
            _ => "connections to both sides".into(),
        }
    }

    fn hook_words(&self, event: HookEvent, may: &str) -> String {
        match self.handover.settings.hooks.of(event) {
            Some(path) => format!("{} is called and {may}", path.display()),
            None => "no hook".into(),
        }
    }
}
