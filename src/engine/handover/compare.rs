//! The comparison behind the fence: made ready before it, done within what the budget leaves, and told.
//!
//! In: what the plan asks for. Out: what was compared, or why nothing is proven. A difference is told as soon as it is
//! certain; then little more is waited for, because the writers are held. Nothing is written at either side.

use super::{Input, Run, Unproven, Verify, now};
use crate::engine::fence::{self, Counted, Keyspace};
use crate::engine::verify::fenced::{Fenced, Told};
use crate::engine::verify::{Mode, Progress, Rate, Repair, SampleSize, VerifySettings};
use crate::ids::DbIndex;
use crate::redis::value::Value;
use crate::report::cutover::{CutoverEvent, CutoverStep};
use std::time::Duration;

/// What differs behind the fence for so long differs: nothing is on its way any more.
const STANDS_STILL: Duration = Duration::from_millis(100);
/// Expiries nearer to each other than this are equal: some servers tell them in seconds left.
const EXPIRY_TOLERANCE: Duration = Duration::from_secs(1);
/// How long more differences are waited for after the first: the cutover is over, and the writers wait.
const MORE_DIFFERENCES: Duration = Duration::from_millis(200);
/// Differences kept in the report.
const DIFFERENCES_KEPT_MAX: usize = 1000;
/// For how long keys are gone through by name whose numbers keys past their expiry may explain: the writers wait.
const BY_NAME_MAX: Duration = Duration::from_secs(1);
/// Between two looks whether the cutover is still wanted.
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl Run {
    /// Whether what is asked for can be compared at all.
    pub(super) fn may_compare(&self) -> Result<(), String> {
        let scope = &self.handover.settings.scope;
        match self.plan.verify {
            Verify::None => Ok(()),
            _ if scope.spec().db_merge => Err(
                "databases that were merged (db-merge = on) cannot be compared, because whose a key is cannot be told: say \
                 --verify none"
                    .into(),
            ),
            _ => Ok(()),
        }
    }

    /// Connects, and chooses the sample, while writes go on.
    pub(super) async fn prepare_comparison(&mut self) -> Result<(), String> {
        let mut comparison = Fenced::begin(self.verify_settings(), self.handover.owned)?;
        loop {
            let told = tokio::select! {
                told = comparison.next() => told,
                () = tokio::time::sleep(LOOK_EVERY) => match self.gone() {
                    Some(why) => return Err(why),
                    None => continue,
                }
            };
            match told {
                Told::Ready { keys } => {
                    let detail = match self.plan.verify {
                        Verify::Sample => format!("{keys} keys of the sample are to be compared"),
                        Verify::Count => "numbers of keys are to be compared, and names where they differ".into(),
                        _ => format!("about {keys} keys of both sides are to be compared"),
                    };
                    self.tell_step(CutoverStep { name: "prepare".into(), detail, ..CutoverStep::default() });
                    self.comparison = Some(comparison);
                    return Ok(());
                }
                // Equal numbers will do.
                Told::Ended(Err(why)) if self.plan.verify == Verify::Count => {
                    self.unprepared = Some(why);
                    return Ok(());
                }
                Told::Ended(Err(why)) => return Err(format!("the comparison cannot be prepared: {why}")),
                _ => {}
            }
        }
    }

    fn verify_settings(&self) -> VerifySettings {
        let settings = &self.handover.settings;
        VerifySettings {
            source: settings.source.clone(),
            target: settings.target.clone(),
            target_nat: settings.target_nat.clone(),
            mode: match self.plan.verify {
                Verify::Sample => Mode::Sample { size: self.plan.sample, seed: self.plan.sample_seed },
                Verify::Count => Mode::Count,
                _ => Mode::Full,
            },
            rate: self.plan.verify_rate,
            memory_bytes: settings.memory_bytes,
            lag_max: STANDS_STILL,
            expiry_tolerance: EXPIRY_TOLERANCE,
            resume: None,
            repair: Repair::Off,
            on_unsupported: settings.on_unsupported.clone(),
            scope: settings.scope.clone(),
            connect_timeout: settings.connect_timeout,
        }
    }

    /// The comparison, within what it may take.
    pub(super) async fn compare(&mut self, within: Duration) -> Input {
        match self.plan.verify {
            Verify::None => Input::Verified(Ok(String::new())),
            Verify::Count => self.compare_counts(within).await,
            Verify::Sample | Verify::Full => self.compare_values(within).await,
        }
    }

    /// Numbers of keys, and where they differ, or say nothing, which keys there are.
    async fn compare_counts(&mut self, within: Duration) -> Input {
        let begun = now();
        let counted = match self.counts_say_something() {
            false => None,
            true => match tokio::time::timeout(within, self.count()).await {
                Ok(Ok(Counted::Equal(keys))) => {
                    return Input::Verified(Ok(format!("count: {keys} keys on both sides")));
                }
                Ok(Ok(unequal)) => Some(unequal),
                Ok(Err(why)) => return Input::Verified(Err(Unproven::NotDone(why))),
                Err(_) => return self.no_answer("the counting of keys"),
            },
        };
        let left = within.saturating_sub(Duration::from_nanos(now().since_ns(begun)));
        match counted {
            Some(Counted::Unequal { words, explicable: true }) => {
                match self.compare_values(left.min(BY_NAME_MAX)).await {
                    // A part of the keys in no order is as good as a sample.
                    Input::Verified(Err(Unproven::NotDone(why))) => Input::Verified(Ok(format!(
                        "count: {words}, which keys past their expiry may explain; by name: {why}"
                    ))),
                    input => with_words(input, &words),
                }
            }
            Some(Counted::Unequal { words, .. }) => match self.compare_values(left).await {
                Input::Verified(Err(Unproven::NotDone(why))) => {
                    Input::Verified(Err(Unproven::Differs(format!("{words}; by name: {why}"))))
                }
                input => with_words(input, &words),
            },
            _ => self.compare_values(left).await,
        }
    }

    /// In a cluster the tool's own keys are not known by name; where keys are left out, or the target has others, numbers
    /// differ anyway.
    fn counts_say_something(&self) -> bool {
        let leaves_out = self.handover.settings.scope.leaves_out_keys();
        !self.handover.cluster && !leaves_out && self.handover.owned
    }

    async fn compare_values(&mut self, within: Duration) -> Input {
        let Some(mut comparison) = self.comparison.take() else {
            let why = self.unprepared.take().unwrap_or("internal error: the comparison was not prepared".into());
            return Input::Verified(Err(Unproven::NotDone(why)));
        };
        comparison.go();
        let begun = now();
        let (mut differing, mut progress) = (0u64, None::<Progress>);
        let deadline = tokio::time::sleep(within);
        tokio::pin!(deadline);
        loop {
            let told = tokio::select! {
                told = comparison.next() => told,
                () = &mut deadline => break,
                () = tokio::time::sleep(LOOK_EVERY) => match self.gone() {
                    Some(why) => return Input::Lost(why),
                    None => continue,
                }
            };
            match told {
                Told::Difference(difference) => {
                    differing += 1;
                    if differing == 1 {
                        let left =
                            within.saturating_sub(Duration::from_nanos(now().since_ns(begun))).min(MORE_DIFFERENCES);
                        deadline.set(tokio::time::sleep(left));
                    }
                    let Ok(difference) = serde_json::to_value(&difference) else { continue };
                    let _ = self.events.send(CutoverEvent::Difference(difference.clone()));
                    if self.report.differences.len() < DIFFERENCES_KEPT_MAX {
                        self.report.differences.push(difference);
                    }
                }
                Told::Progress(seen) => progress = Some(seen),
                Told::Ready { .. } => {}
                Told::Ended(Ok(counts)) if counts.differing.is_empty() => {
                    let (name, compared) = (self.mode_name(), counts.keys_compared);
                    let equal =
                        if self.plan.verify == Verify::Count { "gone through by name, none missing" } else { "equal" };
                    return Input::Verified(Ok(match counts.not_carried {
                        0 => format!("{name}: {compared} keys {equal}"),
                        n => format!("{name}: {} keys {equal}, {n} not carried", compared.saturating_sub(n)),
                    }));
                }
                Told::Ended(Ok(_)) => break,
                Told::Ended(Err(why)) if differing == 0 => return Input::Verified(Err(Unproven::NotDone(why))),
                Told::Ended(Err(_)) => break,
            }
        }
        let walked = progress.as_ref().map_or(0, |progress| progress.keys_walked);
        Input::Verified(Err(match differing {
            0 => {
                let expected = progress.map_or(0, |progress| progress.keys_expected);
                Unproven::NotDone(format!(
                    "the comparison was not finished within {} ms ({} ms of the budget are kept for the hook): {walked} of \
                     about {expected} keys, no difference so far. Give it more --budget, or compare less (--verify sample)",
                    within.as_millis(),
                    self.plan.hook_reserve_ms()
                ))
            }
            n => Unproven::Differs(format!(
                "{n} keys differ or could not be compared (at least; it was ended there). `df2redis verify` finds the rest, \
                 and --repair mends them once the job is stopped"
            )),
        }))
    }

    fn mode_name(&self) -> &'static str {
        match self.plan.verify {
            Verify::Count => "count",
            Verify::Sample => "sample",
            _ => "full",
        }
    }

    /// Numbers of keys of each database at both sides.
    async fn count(&mut self) -> Result<Counted, String> {
        let (wanted, held, own) = self.keyspaces().await?;
        Ok(fence::compare_counts(&wanted, &held, &own))
    }

    /// The source's as it is meant to be at the target, the target's, and what is the tool's own there.
    async fn keyspaces(&mut self) -> Result<(Keyspace, Keyspace, Keyspace), String> {
        let mut link = self.target().await?;
        let scope = self.handover.settings.scope.clone();
        let Some(source) = &mut self.source else { return Err("no connection to the source".into()) };
        let mut wanted = Keyspace::new();
        for (db, keys) in source.keyspace().await? {
            if scope.admits_db(DbIndex(db)) {
                let db = scope.target_db(DbIndex(db)).map_err(|error| error.to_string())?;
                wanted.insert(db.0, keys);
            }
        }
        let mut own = Keyspace::new();
        let mut current = None;
        for (db, key) in &self.own {
            if current != Some(*db) {
                link.call(&[b"SELECT", db.to_string().as_bytes()]).await.map_err(|error| error.to_string())?;
                current = Some(*db);
            }
            match link.call_raw("GET", &[b"GET", key]).await.map_err(|error| error.to_string())? {
                Value::Null => {}
                // A hash answers WRONGTYPE, and is there.
                Value::Error(text) if !text.starts_with(b"WRONGTYPE") => {
                    return Err(format!("the target answered GET with \"{}\"", text.escape_ascii()));
                }
                _ => own.entry(db.0).or_default().0 += 1,
            }
        }
        Ok((wanted, super::own::target_keyspace(&mut link).await?, own))
    }

    async fn source_keys(&mut self) -> Result<u64, String> {
        let Some(source) = &mut self.source else { return Err("no connection to the source".into()) };
        Ok(source.keyspace().await?.values().map(|(keys, _)| *keys).sum())
    }

    /// What would be compared, in words, with today's numbers.
    pub(super) async fn comparison_words(&mut self) -> String {
        if let Err(why) = self.may_compare() {
            return format!("refused: {why}");
        }
        let within_ms = self.plan.budget_ms.saturating_sub(self.plan.hook_reserve_ms());
        match self.plan.verify {
            Verify::None => "nothing is compared".into(),
            Verify::Count if !self.counts_say_something() => {
                let keys = match self.source_keys().await {
                    Ok(keys) => keys,
                    Err(why) => return why,
                };
                format!(
                    "which keys there are, by name, for numbers say nothing here: {keys} keys of the source, both directions"
                )
            }
            Verify::Count => match self.count().await {
                Ok(Counted::Equal(keys)) => format!("keys of each database; now, unfenced: {keys} on both sides"),
                Ok(Counted::Unequal { words, .. }) => format!(
                    "keys of each database; now, unfenced: {words}; what still differs behind the fence is gone through by \
                     name, within {within_ms} ms"
                ),
                Err(why) => why,
            },
            Verify::Sample | Verify::Full => {
                let keys = match self.source_keys().await {
                    Ok(keys) => keys,
                    Err(why) => return why,
                };
                let chosen = match (self.plan.verify, self.plan.sample) {
                    (Verify::Full, _) => keys,
                    (_, SampleSize::Keys(wanted)) => wanted.min(keys),
                    (_, SampleSize::Percent(percent)) => (keys as f64 * percent / 100.0) as u64,
                };
                let (name, rate) = (self.mode_name(), rate_words(self.plan.verify_rate));
                format!(
                    "{name}: type, value and expiry of about {chosen} of {keys} keys, both directions, {rate}; what is not \
                     done within {within_ms} ms of the fence rolls it back"
                )
            }
        }
    }
}

/// What was found by name, with the numbers that were the reason to look.
fn with_words(input: Input, words: &str) -> Input {
    let add = |said: String| format!("{said} ({words})");
    match input {
        Input::Verified(Ok(said)) => Input::Verified(Ok(add(said))),
        Input::Verified(Err(Unproven::Differs(why))) => Input::Verified(Err(Unproven::Differs(add(why)))),
        Input::Verified(Err(Unproven::NotDone(why))) => Input::Verified(Err(Unproven::NotDone(add(why)))),
        input => input,
    }
}

fn rate_words(rate: Rate) -> String {
    match rate {
        Rate::Unlimited => "as fast as it goes".into(),
        Rate::KeysPerSecond(keys) => format!("at most {keys} keys a second"),
        Rate::BytesPerSecond(bytes) => format!("at most {bytes} bytes a second"),
    }
}
