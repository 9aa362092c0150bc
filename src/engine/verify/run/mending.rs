//! What becomes of a difference that is certain: told, and mended first where that is wanted, here or by the running job.

use super::{JOB_PAUSE_FIRST, JOB_PAUSE_LAST, Job};
use crate::engine::error::EngineError;
use crate::engine::patience::rest;
use crate::engine::verify::difference::{Item, Kind};
use crate::engine::verify::look::Verdict;
use crate::engine::verify::peer::unix_ms;
use crate::engine::verify::repair::{self, CopyError, Mender};
use crate::engine::verify::settings::Repair;
use crate::engine::verify::suspects::Suspect;

impl Job<'_> {
    pub(super) async fn confirmed(&mut self, suspect: Suspect) -> Result<(), EngineError> {
        let extra = suspect.is_extra();
        let mut items = suspect.all_items();
        if suspect.has_elements()
            && let Some(Verdict::Differs(found)) =
                self.looker.look(suspect.db, std::slice::from_ref(&suspect.key)).await?.pop()
        {
            // The key may be gone as a whole.
            let of_key = |item: &&Item| matches!(item.kind, Kind::Missing | Kind::Type);
            items = found.items.iter().filter(of_key).cloned().chain(items).collect();
        }
        let wanted = self.settings.repair == Repair::Mirror || (self.settings.repair == Repair::Copy && !extra);
        let (mut repaired, mut reason) = (None, None);
        if wanted {
            let result = self.repair(suspect.db, &suspect.key, extra).await?;
            repaired = Some(result.is_ok());
            reason = result.err();
        }
        self.tell(suspect.db, &suspect.key, suspect.type_name, items, repaired, reason);
        Ok(())
    }

    /// `Ok(Err(why))`: it is not equal afterwards.
    async fn repair(&mut self, db: u32, key: &[u8], extra: bool) -> Result<Result<(), String>, EngineError> {
        if matches!(self.mender, Mender::Job) {
            return self.repair_by_job(db, key).await;
        }
        repair::refuse_beside_a_job(&mut self.looker.target).await?;
        let copied = match (&mut self.mender, extra) {
            (_, true) => match self.looker.exist_at_source(db, &[key.to_vec()]).await?.first() {
                Some(false) => repair::delete(&mut self.looker, db, key).await,
                _ => Err(CopyError::Failed("the source has the key by now".into())),
            },
            (Mender::Copies(repairer), false) => repairer.copy(&mut self.looker, db, key, unix_ms()).await,
            _ => Ok(()),
        };
        match copied {
            Ok(()) | Err(CopyError::Gone) => {}
            Err(CopyError::Failed(why)) => return Ok(Err(why)),
            Err(CopyError::Engine(error)) => return Err(error),
        }
        match self.looker.look(db, &[key.to_vec()]).await?.pop() {
            Some(Verdict::Equal | Verdict::Gone) => Ok(Ok(())),
            _ => Ok(Err("it still differs: is the source written to?".into())),
        }
    }

    /// The job fetches the key, and writes it where it belongs among the records: then both sides are equal, as soon as lag
    /// allows to see it.
    async fn repair_by_job(&mut self, db: u32, key: &[u8]) -> Result<Result<(), String>, EngineError> {
        if let Err(why) = self.observer.ask_job(db, key) {
            return Ok(Err(why));
        }
        let (asked, mut pause) = (self.now(), JOB_PAUSE_FIRST);
        loop {
            rest(pause).await;
            if let Some(Verdict::Equal | Verdict::Gone) = self.looker.look(db, &[key.to_vec()]).await?.pop() {
                return Ok(Ok(()));
            }
            if self.now().saturating_sub(asked) > self.settings.lag_max {
                return Ok(Err("the job was asked to copy it again, and it was not seen equal since".into()));
            }
            pause = (pause * 2).min(JOB_PAUSE_LAST);
        }
    }
}
