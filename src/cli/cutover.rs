//! `df2redis cutover`: asks a running `replicate` to hand over, and shows each step as it is done.
//!
//! In: the plan, from flags and settings. Out: the steps and how it ended. Going away (an interrupt) has the job roll back,
//! unless it is switching the traffic already.

use super::control::say;
use super::settings::{Console, OutputForm, UsageError, Values, resolve};
use super::{Mode, log_warnings, print_out};
use crate::engine::cutover::Plan;
use crate::operator::Screen;
use crate::operator::control::client::{Client, ClientError};
use crate::operator::control::{Answer, Request};
use crate::report::ExitClass;
use crate::report::cutover::{CutoverEvent, CutoverOutcome, CutoverReport, CutoverStep, Spread};
use crate::report::numbers::nanos;
use crate::report::text::harmless;
use std::fmt::Write;
use std::path::Path;

/// What is said by flags alone: nobody hands over because a file says so.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Deeds {
    /// Do it; without this the steps are only listed, with today's numbers
    #[arg(long, conflicts_with = "rehearse")]
    pub execute: bool,
    /// Fence, drain and release N times and tell for how long writes were held; hooks are not called
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub rehearse: u32,
    /// Let the source stop itself (DFLY TAKEOVER) instead of fencing it; there is no way back from it
    #[arg(long)]
    pub takeover: bool,
}

pub fn run(
    values: &mut Values,
    console: &Console,
    screen: &Screen,
    mode: Mode,
    deeds: Deeds,
) -> Result<ExitClass, UsageError> {
    log_warnings(values);
    let plan = resolve::cutover(values, deeds.execute, deeds.rehearse, deeds.takeover)?;
    if mode == Mode::ResolveOnly {
        return Ok(ExitClass::Done);
    }
    let path = resolve::control_of_job(values)?;
    Ok(ask(&path, plan, console, screen).unwrap_or_else(|error| {
        say(screen, &error.to_string());
        match error {
            ClientError::Connect { .. } => ExitClass::Refused,
            _ => ExitClass::CutoverNotReached,
        }
    }))
}

fn ask(path: &Path, plan: Plan, console: &Console, screen: &Screen) -> Result<ExitClass, ClientError> {
    let mut client = Client::connect(path)?;
    client.wait_for_ever()?;
    let (rehearses, mut round) = (plan.rehearse > 0, 0);
    client.send(&Request::Cutover(plan))?;
    loop {
        let answer: Answer = client.next_line()?;
        if console.output == OutputForm::Json {
            print_out(&(serde_json::to_string(&answer).unwrap_or_default() + "\n"));
        }
        if let Some(error) = &answer.error {
            say(screen, error);
            return Ok(ExitClass::CutoverNotReached);
        }
        match answer.cutover {
            Some(CutoverEvent::Step(step)) if console.output == OutputForm::Text => {
                match (rehearses, step.name.as_str()) {
                    (false, _) => print_out(&line(&step)),
                    // Of many rounds each is one line.
                    (true, "release") => {
                        round += 1;
                        print_out(&line(&CutoverStep { name: format!("round {round}"), ..step }));
                    }
                    _ => {}
                }
            }
            Some(CutoverEvent::Difference(difference)) if console.output == OutputForm::Text => {
                print_out(&format!("{difference}\n"));
            }
            Some(CutoverEvent::Ended(report)) => {
                if console.output == OutputForm::Text {
                    print_out(&end(&report));
                }
                return Ok(match report.outcome {
                    CutoverOutcome::NotDone if report.differs => ExitClass::Differs,
                    CutoverOutcome::NotDone => ExitClass::CutoverNotReached,
                    CutoverOutcome::HandedOver if report.lacks => ExitClass::Target,
                    _ => ExitClass::Done,
                });
            }
            _ => {}
        }
    }
}

fn line(step: &CutoverStep) -> String {
    let held = step.held_us.map(|us| format!(" [held {}]", nanos(us.saturating_mul(1000)))).unwrap_or_default();
    harmless(&format!("{:<15} {}{held}\n", step.name, step.detail))
}

fn end(report: &CutoverReport) -> String {
    let mut out = String::new();
    let outcome = match report.outcome {
        CutoverOutcome::Planned => "Nothing was changed; --execute does it, --rehearse N tries fence and drain.",
        CutoverOutcome::Rehearsed => "Rehearsed: every round was drained and released within the budget.",
        CutoverOutcome::HandedOver => "Handed over: the job has ended, the traffic belongs to the target.",
        CutoverOutcome::NotDone => "Not done: the source serves on, and the job follows on.",
    };
    let _ = writeln!(out, "{outcome}");
    if let Some(message) = &report.message {
        let _ = writeln!(out, "{message}");
    }
    if let Some(us) = report.held_us {
        let _ = writeln!(out, "Writes were held for {}.", nanos(us.saturating_mul(1000)));
    }
    if let Some(rehearsal) = &report.rehearsal {
        let spread = |name: &str, of: &Spread| {
            let [min, p50, p90, p99, max] =
                [of.us_min, of.us_p50, of.us_p90, of.us_p99, of.us_max].map(|us| nanos(us.saturating_mul(1000)));
            format!("{name}: min {min}, p50 {p50}, p90 {p90}, p99 {p99}, max {max}")
        };
        let _ = writeln!(out, "{} rounds, {} missed", rehearsal.rounds, rehearsal.missed);
        let _ = writeln!(out, "{}", spread("writes held", &rehearsal.held));
        let _ = writeln!(out, "{}", spread("drained after", &rehearsal.drained));
    }
    harmless(&out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::cutover::Rehearsal;

    #[test]
    fn golden_end() {
        let spread = |us| Spread { us_min: us, us_p50: 2 * us, us_p90: 3 * us, us_p99: 4 * us, us_max: 5 * us };
        let report = CutoverReport {
            outcome: CutoverOutcome::NotDone,
            message: Some("the target did not reach the source\x1b within the budget of 5000 ms".into()),
            held_us: Some(5_000_100),
            rehearsal: Some(Rehearsal { rounds: 5, missed: 1, held: spread(1000), drained: spread(700) }),
            ..CutoverReport::default()
        };
        insta::assert_snapshot!("cutover_end", end(&report));
    }
}
