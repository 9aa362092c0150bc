//! A cutover that is not done: its steps, with today's numbers.

use super::{HookEvent, Input, Positions, Run, now};
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
        let mut lines = vec![
            ("positions", format!("{ready}; {behind} entries behind in {} flows: {near}", source.len())),
            ("before-fence", self.hook_words(HookEvent::BeforeFence, "may veto")),
        ];
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
            lines.push(("proven equal", format!("positions equal, twice, {trip_us} us a look; {drain}")));
            lines.push(("verify", self.comparison_words().await));
        }
        let switch = match &hook {
            Some(path) => format!("{}, at most {} ms", path.display(), self.plan.hook_timeout_ms.min(budget_ms)),
            None => "no hook: whoever waits for this command's end switches the traffic".into(),
        };
        lines.push(("switch", switch));
        lines.push((
            "end of the job",
            format!("{} keys of this tool are removed from the target, exit code 0", self.own.len()),
        ));
        lines.push((
            "on any miss",
            "CLIENT UNPAUSE, the job follows on, exit code 9 (10: source and target differ)".into(),
        ));
        for (name, detail) in lines {
            self.tell_step(CutoverStep { name: name.into(), detail, ..CutoverStep::default() });
        }
    }

    fn hook_words(&self, event: HookEvent, may: &str) -> String {
        match self.handover.settings.hooks.of(event) {
            Some(path) => format!("{} is called and {may}", path.display()),
            None => "no hook".into(),
        }
    }
}
