//! What `verify` compares, and what a `cutover` does and compares.

use super::servers::{COMPARED_SOURCE_SIDE, TARGET_SIDE, endpoint};
use super::{plain_scope, policy, target_nat, together};
use crate::cli::settings::error::UsageError;
use crate::cli::settings::layers::Values;
use crate::cli::settings::syntax;
use crate::cli::settings::table;
use crate::engine::cutover::{Plan, Verify};
use crate::engine::verify::{Mode, Rate, Repair, SampleSize, VerifySettings};

/// What `cutover` asks for, besides what is said by flags alone.
pub fn cutover(values: &Values, execute: bool, rehearse: u32, takeover: bool) -> Result<Plan, UsageError> {
    let hook = match values.path(&table::HOOK) {
        Some(path) => Some(std::path::absolute(path).map_err(|error| values.wrong(&table::HOOK, &error.to_string()))?),
        None => None,
    };
    let ms = |setting| values.time(setting).map(|time| time.as_millis() as u64);
    let plan = Plan {
        execute,
        budget_ms: ms(&table::BUDGET)?,
        verify: match values.text(&table::CUTOVER_VERIFY)? {
            "none" => Verify::None,
            // After a takeover there is nothing to compare with.
            _ if takeover && !values.is_given(&table::CUTOVER_VERIFY) => Verify::None,
            "sample" => Verify::Sample,
            "full" => Verify::Full,
            _ => Verify::Count,
        },
        sample: values.parsed(&table::SAMPLE, sample_size)?,
        sample_seed: values.number(&table::SAMPLE_SEED)?,
        verify_rate: values.parsed(&table::VERIFY_RATE, rate)?,
        hook,
        hook_timeout_ms: ms(&table::HOOK_TIMEOUT)?,
        takeover,
        rehearse,
        lag_entries_max: values.number(&table::LAG_ENTRIES_MAX)?,
        wait_ms: ms(&table::WAIT)?,
    };
    plan.check().map_err(UsageError::Combination)?;
    Ok(plan)
}

/// What `verify` needs. Either side may be any server that speaks the protocol.
pub fn verify(values: &mut Values) -> Result<VerifySettings, UsageError> {
    let source = endpoint(values, &COMPARED_SOURCE_SIDE)?;
    let target = endpoint(values, &TARGET_SIDE)?;
    if (&source.host, source.port) == (&target.host, target.port) {
        return Err(UsageError::Combination("source and target are the same server".into()));
    }
    let mode = match values.text(&table::MODE)? {
        "count" => Mode::Count,
        "sample" => Mode::Sample {
            size: values.parsed(&table::SAMPLE, sample_size)?,
            seed: values.number(&table::SAMPLE_SEED)?,
        },
        _ => Mode::Full,
    };
    if !matches!(mode, Mode::Sample { .. }) && values.is_given(&table::SAMPLE) {
        values.warn("sample has no effect without --mode sample".into());
    }
    let repair = match values.text(&table::REPAIR)? {
        "copy" => Repair::Copy,
        "mirror" => Repair::Mirror,
        _ => Repair::Off,
    };
    if mode == Mode::Count && repair != Repair::Off {
        return Err(together(values, &table::MODE, &table::REPAIR, "to count finds no key that could be repaired"));
    }
    let scope = plain_scope(values)?;
    if scope.spec().db_merge {
        return Err(UsageError::Combination(
            "verify cannot compare databases that were merged (db-merge = on): whose a key is cannot be told".into(),
        ));
    }
    if mode == Mode::Count && scope.leaves_out_keys() {
        return Err(UsageError::Combination(
            "mode = count counts every key, and does not know filters by key or type; take --mode sample or full"
                .into(),
        ));
    }
    Ok(VerifySettings {
        source,
        target,
        target_nat: target_nat(values)?,
        mode,
        rate: values.parsed(&table::RATE, rate)?,
        memory_bytes: values.size(&table::MEMORY)?,
        lag_max: values.time(&table::LAG_MAX)?,
        expiry_tolerance: values.time(&table::EXPIRY_TOLERANCE)?,
        resume: values.path(&table::RESUME),
        repair,
        scope,
        on_unsupported: policy(values)?,
        connect_timeout: values.time(&table::CONNECT_TIMEOUT)?,
    })
}

/// `1000`, or `2.5%`.
fn sample_size(text: &str) -> Result<SampleSize, String> {
    match text.strip_suffix('%') {
        None => syntax::number(text).map(SampleSize::Keys),
        Some(percent) => match percent.trim().parse() {
            Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(SampleSize::Percent(percent)),
            _ => Err("a number of keys, or a share from 0% to 100%, is needed".into()),
        },
    }
}

/// `20000` keys, `50MiB`, or `off`.
fn rate(text: &str) -> Result<Rate, String> {
    match syntax::number(text) {
        Ok(0) => Err("the rate must be more than zero; off means no limit".into()),
        Ok(keys) => Ok(Rate::KeysPerSecond(keys)),
        Err(_) if text == "off" => Ok(Rate::Unlimited),
        Err(_) => match syntax::size(text) {
            Ok(bytes @ 1..) => Ok(Rate::BytesPerSecond(bytes)),
            _ => Err("a number of keys (20000), a size (50MiB) or off is needed".into()),
        },
    }
}
