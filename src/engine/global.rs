//! A global command of the journal (FLUSHALL, FLUSHDB, slots given away): executed once, when every flow stands before it and
//! everything before it is applied (wire 4.5).
//!
//! In: the barriers of all flows, the checkpoint. Out: the command executed, with the positions behind it, in one transaction.
//! Invariants: nothing of the target's own is deleted, and nothing at all on the word of a source that is not known to be the
//! master still (`standing`); what the checkpoint keeps beside positions is kept; nothing of the job
//! is borrowed, so that it says where it stands as long as a target is waited for.

use super::checkpoint::{self, Checkpoint, Kept};
use super::error::EngineError;
use super::import::ImportMode;
use super::lease::Lease;
use super::messages::{Barrier, Lost};
use super::proving;
use super::replicate::same_target;
use super::settings::MigrateSettings;
use super::standing;
use super::target::{self, Target, TargetLink};
use crate::convert::Scope;
use crate::convert::journal::GlobalCommand;
use crate::ids::{DbIndex, Lsn, Slot};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// The database whose slots a source gives away.
const SLOTS_DB: DbIndex = DbIndex(0);

/// What a global command leaves nothing of at the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Emptied {
    Nothing,
    All,
    Slots(Box<[(Slot, Slot)]>),
}

impl Emptied {
    /// In a cluster, which has one database. `scope`: within it.
    pub fn by(command: &GlobalCommand, scope: &Scope) -> Self {
        match command {
            GlobalCommand::FlushDb(db) if scope.place_of(*db) != Some(DbIndex(0)) => Self::Nothing,
            GlobalCommand::FlushAll | GlobalCommand::FlushDb(_) => Self::All,
            GlobalCommand::FlushSlots(_) if scope.place_of(SLOTS_DB) != Some(DbIndex(0)) => Self::Nothing,
            GlobalCommand::FlushSlots(ranges) => Self::Slots(ranges.clone()),
        }
    }

    pub fn has(&self, slot: Slot) -> bool {
        match self {
            Self::Nothing => false,
            Self::All => true,
            Self::Slots(ranges) => ranges.iter().any(|(first, last)| (*first..=*last).contains(&slot)),
        }
    }
}

/// Whether it concerns a database of which nothing is at the target: then flows pass it as if it were not there. `scope`: within it.
pub(super) fn is_elsewhere(command: &GlobalCommand, scope: &Scope) -> bool {
    match command {
        GlobalCommand::FlushAll => false,
        GlobalCommand::FlushDb(db) => scope.place_of(*db).is_none(),
        GlobalCommand::FlushSlots(_) => scope.place_of(SLOTS_DB).is_none(),
    }
}

pub(super) struct Global {
    settings: Arc<MigrateSettings>,
    import_mark: bool,
    /// The command that takes the lease again.
    lease: Vec<Vec<u8>>,
}

impl Global {
    pub(super) fn new(settings: &Arc<MigrateSettings>, import_mode: ImportMode, lease: Option<&Lease>) -> Self {
        let lease = lease.map(Lease::taking).unwrap_or_default();
        Self { settings: settings.clone(), import_mark: import_mode == ImportMode::Ours, lease }
    }

    /// All flows stand before these barriers and everything before them is applied.
    pub(super) async fn execute(
        self,
        probed: &Target,
        checkpoint: &Checkpoint,
        barriers: &[Barrier],
    ) -> Result<(), EngineError> {
        standing::check(&self.settings, &checkpoint.master_id).await?;
        // The first connection was idle for long: the target (`timeout`) may have closed it.
        let mut target = same_target(&self.settings, probed, self.settings.retry_max).await?;
        if let Some(cluster) = target.cluster() {
            // Behind a look at all nodes, one of which may hear late who has its slots. From here on an heir may lack the command, and
            // its own replicas would confirm it all the same.
            cluster.refresh_patiently().await?;
            cluster.ends_on_takeover(Arc::new(AtomicBool::new(true)));
        }
        let scope = self.settings.scope.clone().within(probed.databases.unwrap_or(u32::MAX));
        self.execute_by(&mut target, &scope, checkpoint, barriers).await?;
        proving::confirm(&mut target, &self.settings).await?;
        if self.settings.wait_replicas.is_none() {
            return Ok(());
        }
        // It may have been a replica meanwhile, and a master again before anybody looked.
        match target.cluster() {
            Some(cluster) => cluster.check_nodes().await,
            None => target.is_same_still().await,
        }
    }

    async fn execute_by(
        &self,
        target: &mut TargetLink,
        scope: &Scope,
        checkpoint: &Checkpoint,
        barriers: &[Barrier],
    ) -> Result<(), EngineError> {
        let Some(first) = barriers.first() else { return Ok(()) };
        if barriers.iter().any(|barrier| barrier.txid != first.txid || barrier.command != first.command) {
            // Asking again would bring the same: the source would be registered with for ever.
            return Err(EngineError::LostPosition(format!(
                "flows stand before different global commands (transactions {:?}), so the journal cannot be trusted; only a full \
                 sync goes on from here (--on-lost-position resync, or a new run with --on-existing flush)",
                barriers.iter().map(|barrier| barrier.txid).collect::<Vec<_>>()
            )));
        }
        let lsns: Vec<(u32, Lsn)> = barriers.iter().map(|barrier| (barrier.flow.0, barrier.next_lsn)).collect();
        if !checkpoint.owned {
            return Err(EngineError::Refused(format!(
                "the source ran {:?}, but the target held keys of its own when the job began, which it would delete too; \
                 run again with --on-existing flush",
                first.command
            )));
        }
        let lost = match target.cluster() {
            Some(_) => Vec::new(),
            None => checkpoint::read(target, &checkpoint.key).await?.map_or(Vec::new(), |found| found.lost),
        };
        let is_kept = |lost: &Lost| match &first.command {
            GlobalCommand::FlushAll => false,
            GlobalCommand::FlushDb(db) => lost.db != *db,
            GlobalCommand::FlushSlots(_) => true,
        };
        let kept = Kept {
            lost: lost.into_iter().filter(is_kept).collect(),
            import_mark: self.import_mark,
            lease: self.lease.clone(),
        };
        tracing::info!(command = ?first.command, txid = first.txid, "all flows reached a global command: executing it once");
        match &first.command {
            GlobalCommand::FlushAll => {
                checkpoint::execute_global(target, checkpoint, 0, &[b"FLUSHALL"], &lsns, &kept).await?;
            }
            GlobalCommand::FlushDb(db) => {
                let place = place_alone(scope, *db, "ran FLUSHDB in")?;
                checkpoint::execute_global(target, checkpoint, place.0, &[b"FLUSHDB"], &lsns, &kept).await?;
            }
            GlobalCommand::FlushSlots(_) if scope.rewrites() => {
                return Err(EngineError::Refused(
                    "the source gave slots away (DFLYCLUSTER FLUSHSLOTS), and with --rewrite-prefix the names at the target \
                     do not tell the slots at the source; run again with --on-existing flush"
                        .into(),
                ));
            }
            GlobalCommand::FlushSlots(ranges) => {
                let place = place_alone(scope, SLOTS_DB, "gave slots away (DFLYCLUSTER FLUSHSLOTS) of")?;
                if let Some(cluster) = target.cluster() {
                    checkpoint::forget_slots(cluster, checkpoint, ranges, &lsns).await?;
                }
                target::delete_slots(target, place, ranges).await?;
                checkpoint::execute_global(target, checkpoint, 0, &[], &lsns, &kept).await?;
            }
        }
        Ok(())
    }
}

/// Where a database is at the target, alone: what deletes there would delete others', too.
fn place_alone(scope: &Scope, db: DbIndex, did: &str) -> Result<DbIndex, EngineError> {
    if !scope.is_alone(db) {
        return Err(EngineError::Refused(format!(
            "the source {did} database {db}, and other databases go into the same one of the target (--db-merge), from which \
             their keys would be deleted too; run again with --on-existing flush"
        )));
    }
    Ok(scope.target_db(db)?)
}
