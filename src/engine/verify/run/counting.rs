//! Numbers of keys: `--mode count`.

use super::Job;
use crate::engine::error::EngineError;
use crate::engine::verify::walk;

impl Job<'_> {
    /// `--mode count`: numbers of keys, until they are equal or lag cannot explain it. Keys that have expired, that hold nothing
    /// any more, or that are copies that nobody sees, make numbers differ where nothing is wrong: so the keys of databases
    /// whose numbers differ are compared by name.
    pub(super) async fn count(&mut self) -> Result<(), EngineError> {
        let names = self.looker.names.clone();
        // A number that only the target has may be that of another database of the source.
        let own = self.looker.source.keyspace().await?.into_iter().map(|(db, _)| db).filter(|db| names.admits_db(*db));
        let origins = self.databases.iter().filter_map(|db| names.source_db(*db));
        let mut databases: Vec<u32> = own.chain(origins).collect();
        databases.sort_unstable();
        databases.dedup();
        let mut unequal = Vec::new();
        for db in databases {
            let begun = self.now();
            loop {
                let (source, target) = walk::counts(&mut self.looker, db).await?;
                self.tick()?;
                if source == target {
                    self.counts.keys_compared += source;
                    break;
                }
                if self.now().saturating_sub(begun) > self.settings.lag_max {
                    unequal.push((db, names.target_db(db)?));
                    self.counts.databases_by_name += 1;
                    break;
                }
                tokio::time::sleep(self.settings.lag_max / 20).await;
            }
        }
        self.only = Some(unequal);
        Ok(())
    }
}
