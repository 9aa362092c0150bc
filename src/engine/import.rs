//! Valkey's import mode (>= 8.1): while it is on the target expires (and evicts) nothing by itself, and connections that
//! declare themselves the import's source see expired keys as living ones, so a renewal that comes late finds its key.
//!
//! In: the probed target. Out: whether the mode is on, and whether it was turned on here. Invariants: a mode that this job
//! turned on, also in a process that died, is turned off at its clean end, and not where a later process is to go on; one that
//! was on before is left on. A mark at the
//! target says whose it is; it is written before the mode is turned on, and again in the transaction that empties the target.

use super::error::EngineError;
use super::target::TargetLink;
use crate::redis::info::Info;
use crate::redis::value::Value;

/// Set while the mode is on because of this job.
pub const MARK_KEY: &str = "df2redis:import-mode";
/// Sets it.
pub const SET_MARK: &[&[u8]] = &[b"SET", MARK_KEY.as_bytes(), b"1"];

/// What was found and done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportMode {
    /// Expiries are held back instead.
    Off,
    /// Turned on by this job: turned off at its clean end.
    Ours,
    /// The operator turned it on.
    Theirs,
}

/// Turns the mode on where the target offers it and lets us; says why not in the log. `found`: what was found and done; right also
/// where this is cut off.
pub async fn begin(link: &mut TargetLink, found: &mut ImportMode) -> Result<(), EngineError> {
    let memory = link.call(&[b"INFO", b"memory"]).await?;
    let mode = match config(link, &[b"CONFIG", b"GET", b"import-mode"]).await? {
        Some(Value::Array(pair)) => pair.get(1).and_then(Value::text).map(str::to_string),
        _ => None,
    };
    let marked = is_marked(link).await?;
    let was_on = mode.as_deref() == Some("yes");
    let info = Info::parse(memory.text().unwrap_or_default());
    let evicts = info.get("maxmemory").is_some_and(|bytes| bytes != "0")
        && info.get("maxmemory_policy").is_some_and(|policy| policy != "noeviction");
    if evicts && !was_on {
        tracing::info!(
            "import mode is not used: in it the target evicts nothing, but it has a maxmemory with an eviction policy; \
             near expiries are held back instead"
        );
        *found = ImportMode::Off;
        return Ok(());
    }
    *found = if was_on && !marked { ImportMode::Theirs } else { ImportMode::Ours };
    let mut turned_on = false;
    if !was_on {
        link.call(SET_MARK).await?;
        turned_on = config(link, &[b"CONFIG", b"SET", b"import-mode", b"yes"]).await?.is_some();
    }
    // The answer to this is the proof: the user may lack CONFIG, yet the mode may be on.
    if let Value::Error(text) = link.call_raw("CLIENT", &[b"CLIENT", b"IMPORT-SOURCE", b"ON"]).await? {
        tracing::warn!(
            reply = %text.escape_ascii(),
            "the target has an import mode, but it cannot be used (+config|get +config|set +client|import-source are needed); near \
             expiries are held back instead"
        );
        match (was_on, turned_on) {
            (true, _) => {}
            (false, true) => end(link).await?,
            (false, false) => unmark(link).await?,
        }
        *found = ImportMode::Off;
    }
    Ok(())
}

/// Declares a connection the import's source. The mode may have been turned off meanwhile: then it is turned on again.
pub async fn declare(link: &mut TargetLink) -> Result<(), EngineError> {
    const ON: &[&[u8]] = &[b"CLIENT", b"IMPORT-SOURCE", b"ON"];
    if let Value::Error(text) = link.call_raw("CLIENT", ON).await? {
        tracing::warn!(reply = %text.escape_ascii(), "the target left import mode during the run: turning it on again");
        config(link, &[b"CONFIG", b"SET", b"import-mode", b"yes"]).await?;
        link.call(ON).await?;
    }
    Ok(())
}

/// Whether a job turned the mode on.
pub async fn is_marked(link: &mut TargetLink) -> Result<bool, EngineError> {
    Ok(!matches!(link.call(&[b"GET", MARK_KEY.as_bytes()]).await?, Value::Null))
}

/// Turns the mode off. From now on the target expires what is past, as the source does. While it is on its mark stays, for the next
/// job to turn it off.
pub async fn end(link: &mut TargetLink) -> Result<(), EngineError> {
    link.call(&[b"CONFIG", b"SET", b"import-mode", b"no"]).await?;
    unmark(link).await
}

async fn unmark(link: &mut TargetLink) -> Result<(), EngineError> {
    link.call(&[b"DEL", MARK_KEY.as_bytes()]).await.map(drop)
}

/// `None`: an error reply (no permission, no such setting).
async fn config(link: &mut TargetLink, args: &[&[u8]]) -> Result<Option<Value>, EngineError> {
    Ok(match link.call_raw("CONFIG", args).await? {
        Value::Error(_) => None,
        value => Some(value),
    })
}
