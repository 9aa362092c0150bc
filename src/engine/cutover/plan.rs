//! What is asked of a cutover, and whether it can be done at all.

use crate::engine::verify::{Rate, SampleSize};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How the target is compared before the traffic is switched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verify {
    None,
    /// Keys of each database.
    #[default]
    Count,
    /// Values of keys that are chosen before the fence.
    Sample,
    /// Every key, every value.
    Full,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Do it; else only the steps are listed.
    #[serde(default)]
    pub execute: bool,
    /// Longest time for which writes at the source are held.
    pub budget_ms: u64,
    #[serde(default)]
    pub verify: Verify,
    /// How many keys `Verify::Sample` takes, and which.
    #[serde(default = "sample_default")]
    pub sample: SampleSize,
    #[serde(default = "sample_seed_default")]
    pub sample_seed: u64,
    /// Most that is read from the fenced source in a second.
    #[serde(default = "verify_rate_default")]
    pub verify_rate: Rate,
    /// Switches the traffic.
    #[serde(default)]
    pub hook: Option<PathBuf>,
    /// Longest time for the hook; also bounded by what is left of the budget.
    pub hook_timeout_ms: u64,
    /// Let the source stop itself (`DFLY TAKEOVER`) instead of fencing it.
    #[serde(default)]
    pub takeover: bool,
    /// Fence, drain and release so often, and hand nothing over; 0: no rehearsal.
    #[serde(default)]
    pub rehearse: u32,
    /// Do not fence while the target is farther behind.
    pub lag_entries_max: u64,
    /// How long to wait for the target to come as near as that.
    pub wait_ms: u64,
}

fn sample_default() -> SampleSize {
    SampleSize::Percent(1.0)
}

fn sample_seed_default() -> u64 {
    1
}

fn verify_rate_default() -> Rate {
    Rate::Unlimited
}

/// Bounds of the budget: less cannot be kept, more is an outage.
const BUDGET_MS: std::ops::RangeInclusive<u64> = 100..=600_000;
const REHEARSE_MAX: u32 = 10_000;
/// What a comparison must leave of the budget to the hook, as a part of it, unless the hook's own time-out is shorter.
const HOOK_SHARE: u64 = 4;

impl Plan {
    /// Whether it can be done at all. `Err`: why not.
    pub fn check(&self) -> Result<(), String> {
        if !BUDGET_MS.contains(&self.budget_ms) {
            return Err(format!("the budget must lie between {}ms and {}ms", BUDGET_MS.start(), BUDGET_MS.end()));
        }
        if self.rehearse > REHEARSE_MAX {
            return Err(format!("at most {REHEARSE_MAX} rehearsals"));
        }
        if self.takeover && self.rehearse > 0 {
            return Err("a takeover stops the source and cannot be rehearsed".into());
        }
        if self.takeover && self.verify != Verify::None {
            return Err("after a takeover there is no source to compare with: say --verify none".into());
        }
        match self.sample {
            SampleSize::Percent(percent) if !(percent > 0.0 && percent <= 100.0) => {
                return Err("the sample must be a share above 0% and up to 100%, or a number of keys".into());
            }
            SampleSize::Keys(0) => return Err("a sample of 0 keys proves nothing".into()),
            _ => {}
        }
        if matches!(self.verify_rate, Rate::KeysPerSecond(0) | Rate::BytesPerSecond(0)) {
            return Err("the rate must be more than zero; off means no limit".into());
        }
        if let Some(hook) = &self.hook
            && !hook.is_absolute()
        {
            return Err("the hook must be an absolute path".into());
        }
        Ok(())
    }

    /// What is kept of the budget for the hook that switches the traffic.
    pub fn hook_reserve_ms(&self) -> u64 {
        match self.hook {
            Some(_) => self.hook_timeout_ms.min(self.budget_ms / HOOK_SHARE),
            None => 0,
        }
    }
}
