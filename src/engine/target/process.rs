//! Whether a target that is one server is still the process that it was, with the data that it had: it may have been restarted, or have
//! been another server's replica in between. Then it has thrown away what it had acknowledged, and is the same process.
//!
//! In: a connection, for its `INFO`. Out: yes, an error, or not yet: a replica is waited for.

use super::{History, RESTARTED, TargetLink};
use crate::engine::error::EngineError;
use crate::engine::patience::Patience;
use crate::redis::info::Info;
use std::sync::{Mutex, PoisonError};

/// In place of a run id.
const CLUSTER: &str = "cluster";
/// What another history means.
const WAS_REPLICA: &str = "the target server was a replica during the run, and copied another server's data, so writes that it had \
                           acknowledged are lost; run again with --on-existing flush";

/// One server, as it was found. A cluster's nodes come and go; each is looked at when it is connected to.
#[derive(Debug)]
pub struct Process {
    run_id: String,
    history: Mutex<History>,
}

impl Process {
    /// The server that says this of itself (`INFO`).
    pub fn of(info: &Info) -> Self {
        Self { run_id: info.get("run_id").unwrap_or_default().into(), history: Mutex::new(History::of(info)) }
    }

    pub fn cluster() -> Self {
        Self { run_id: CLUSTER.into(), history: Mutex::default() }
    }

    /// The server behind this connection is the same, and takes writes. A replica is waited for as long as the link's patience.
    pub async fn check(&self, link: &mut TargetLink) -> Result<(), EngineError> {
        if link.cluster.is_some() && self.run_id == CLUSTER {
            return Ok(());
        }
        let mut patience = Patience::new(link.patience);
        loop {
            let text = link.info("default").await?;
            let info = Info::parse(&text);
            if info.get("run_id").unwrap_or_default() != self.run_id {
                return Err(EngineError::TargetRestarted(RESTARTED.into()));
            }
            let goes_on = self.history.lock().unwrap_or_else(PoisonError::into_inner).goes_on(&info);
            let replica_of = goes_on.map_err(|_| EngineError::TargetRestarted(WAS_REPLICA.into()))?;
            let Some(master) = replica_of else { return Ok(()) };
            patience.wait(&format!("{} is a replica of {master} now", link.link.addr())).await?;
        }
    }
}
