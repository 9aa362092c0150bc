//! The comparison behind the fence: made ready before it, done within what the budget leaves, and told.
//!
//! In: what the plan asks for. Out: what was compared, or why nothing is proven. A difference is told as soon as it is
//! certain; then little more is waited for, because the writers are held. Nothing is written at either side.

use super::{Input, Run, Unproven, Verify, now};
use crate::engine::fence::{self, Keyspace};
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
/// Between two looks whether the cutover is still wanted.
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl Run {
    /// Whether what is asked for can be compared at all.
    pub(super) fn may_compare(&self) -> Result<(), String> {
        let scope = &self.handover.settings.scope;
        match self.plan.verify {
            Verify::None => Ok(()),
            Verify::Count if self.handover.cluster => {
                Err("keys are not counted in a cluster yet: say --verify sample, full or none".into())
            }
            Verify::Count if scope.leaves_out_keys() => Err(
                "the job leaves some keys out, so numbers of keys say nothing: say --verify sample, full or none".into(),
            ),
            Verify::Count if !self.handover.owned => Err(
                "the target held keys of its own when the job began, so numbers of keys say nothing: say --verify sample, \
                 full or none"
                    .into(),
            ),
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
                        _ => format!("about {keys} keys of both sides are to be compared"),
                    };
                    self.tell_step(CutoverStep { name: "prepare".into(), detail, ..CutoverStep::default() });
                    self.comparison = Some(comparison);
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
            mode: match self.plan.verify {
                Verify::Sample => Mode::Sample { size: self.plan.sample, seed: self.plan.sample_seed },
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
            Verify::Count => match tokio::time::timeout(within, self.count()).await {
                Ok(result) => Input::Verified(result),
                Err(_) => self.no_answer("the counting of keys"),
            },
            Verify::Sample | Verify::Full => self.compare_values(within).await,
        }
    }

    async fn compare_values(&mut self, within: Duration) -> Input {
        let Some(mut comparison) = self.comparison.take() else {
            return Input::Verified(Err(Unproven::NotDone("internal error: it was not prepared".into())));
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
                    return Input::Verified(Ok(match counts.not_carried {
                        0 => format!("{name}: {compared} keys equal"),
                        n => format!("{name}: {} keys equal, {n} not carried", compared.saturating_sub(n)),
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
        if self.plan.verify == Verify::Sample { "sample" } else { "full" }
    }

    /// Numbers of keys of each database at both sides.
    async fn count(&mut self) -> Result<String, Unproven> {
        let (wanted, held, own) = self.keyspaces().await.map_err(Unproven::NotDone)?;
        fence::compare_counts(&wanted, &held, &own).map_err(Unproven::Differs)
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
            // A hash answers WRONGTYPE, and is there.
            if link.call_raw("GET", &[b"GET", key]).await.map_err(|error| error.to_string())? != Value::Null {
                own.entry(db.0).or_default().0 += 1;
            }
        }
        Ok((wanted, super::own::target_keyspace(&mut link).await?, own))
    }

    /// What would be compared, in words, with today's numbers.
    pub(super) async fn comparison_words(&mut self) -> String {
        if let Err(why) = self.may_compare() {
            return format!("refused: {why}");
        }
        let within_ms = self.plan.budget_ms.saturating_sub(self.plan.hook_reserve_ms());
        match self.plan.verify {
            Verify::None => "nothing is compared".into(),
            Verify::Count => match self.count().await {
                Ok(said) | Err(Unproven::Differs(said) | Unproven::NotDone(said)) => {
                    format!("keys of each database; now, unfenced: {said}")
                }
            },
            Verify::Sample | Verify::Full => {
                let keys = match &mut self.source {
                    Some(source) => source.keyspace().await.map(|dbs| dbs.values().map(|(keys, _)| *keys).sum()),
                    None => Err("no connection to the source".into()),
                };
                let keys: u64 = match keys {
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

fn rate_words(rate: Rate) -> String {
    match rate {
        Rate::Unlimited => "as fast as it goes".into(),
        Rate::KeysPerSecond(keys) => format!("at most {keys} keys a second"),
        Rate::BytesPerSecond(bytes) => format!("at most {bytes} bytes a second"),
    }
}
