//! Whether the source is still the master that is followed: asked before anything at the target is deleted on its word.
//!
//! A Dragonfly that is made a replica (`REPLICAOF`) keeps its own replicas. It records the FLUSHALL of its own full sync like
//! anybody's, and what it loads then not at all. The flag that INFO tells of changes before that FLUSHALL is recorded, so who
//! has read it and asks then is not told too early. In: an address, the id of the master that was registered with. Out: `Ok`, or
//! why a flush is not to be believed. Invariant: who cannot be asked is not believed.

use super::error::EngineError;
use super::patience::rest;
use super::settings::MigrateSettings;
use super::source::{Role, Source};
use std::time::Duration;

/// A source that recorded a flush is asked for so long. The next session meets the same flush, and asks again.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(500);

/// `Ok`: it is the master `master_id`, and loads nothing.
pub(super) async fn check(settings: &MigrateSettings, master_id: &str) -> Result<(), EngineError> {
    let mut last = "no answer".to_string();
    let asked = async {
        loop {
            match look(settings, master_id).await {
                Err(EngineError::Source(error)) => last = error,
                done => return done,
            }
            rest(PAUSE).await;
        }
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(done) => done,
        Err(_) => Err(EngineError::Source(format!(
            "it recorded a flush, and nobody says whether it is still the master that it was ({last}); so nothing is deleted at \
             the target"
        ))),
    }
}

async fn look(settings: &MigrateSettings, master_id: &str) -> Result<(), EngineError> {
    let mut source = Source::connect(&settings.source, settings.connect_timeout).await?;
    let other = match source.role() {
        Role::Replica(of) => return Err(is_replica(of)),
        Role::Master => source.is_other_than(master_id),
        // Its user may not ask. Whoever registers is told, too, and registered with as long as this connection lives.
        Role::Unknown => source.register().await?.master_id != master_id,
    };
    if other {
        return Err(EngineError::Source("another process answers now".into()));
    }
    if source.is_loading().await? {
        return Err(EngineError::Void(
            "the source was flushed and loads a snapshot (DFLY LOAD, DEBUG RELOAD), of which its journal says nothing; the target \
             keeps what it had before. Run again with --on-existing flush when it is loaded"
                .into(),
        ));
    }
    Ok(())
}

/// Whose replica the source is, if it says so at once.
pub(super) async fn replica_of(settings: &MigrateSettings) -> Option<EngineError> {
    let source = Source::connect(&settings.source, settings.connect_timeout).await.ok()?;
    match source.role() {
        Role::Replica(of) => Some(is_replica(of)),
        _ => None,
    }
}

/// The source follows the server `of`.
pub(super) fn is_replica(of: &str) -> EngineError {
    EngineError::SourceIsReplica(format!("it is a replica of {of}: connect to its master"))
}

/// The same of a source that was followed as a master. The target holds what was applied of its own data.
pub(super) fn became_replica(text: &str) -> String {
    format!(
        "the source was made a replica ({text}): it empties itself and takes the other server's data, and from then on its journal \
         and positions are not those of the data that was copied. Nothing of that was done at the target, which keeps what it had. \
         Nothing goes on from here: use the target as it is, or replicate from the server that holds the data now, with --on-existing \
         flush"
    )
}
