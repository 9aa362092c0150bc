//! Takeovers in a cluster of which no lane hears: it has nothing to send, or only a primary that was cut off answers it.
//!
//! In: the session's view of the cluster. Out: the error that ends the session, as from a lane that was redirected. Invariants:
//! whoever says that everything is at the target has asked the nodes behind the last answer ([`Crew::check_nodes`]); between two
//! looks nothing is claimed that a look could take back.

use super::Crew;
use crate::engine::cluster::{Cluster, Trouble};
use crate::engine::error::EngineError;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Mutex;

/// How often the nodes are asked who has which slot.
const LOOK_EVERY: Duration = Duration::from_secs(5);

impl Crew {
    /// Asks every now and then, in the background, unless somebody else is at it.
    pub(super) fn watch_nodes(&mut self) {
        let Some(plan) = self.plan.cluster.clone() else { return };
        let done = self.settled_tx.clone();
        self.settling.push(tokio_uring::spawn(async move {
            let mut ticks = tokio::time::interval(LOOK_EVERY);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            // The first one is at once.
            ticks.tick().await;
            loop {
                ticks.tick().await;
                let Ok(mut cluster) = plan.cluster.try_lock() else { continue };
                if let Err(Trouble::Final(error)) = look(&mut cluster).await {
                    // No worker has this number: it is the session that ends.
                    let _ = done.send((usize::MAX, Err(error)));
                    return;
                }
            }
        }));
    }

    /// The cluster, as the session has known it.
    pub fn cluster(&self) -> Option<Rc<Mutex<Cluster>>> {
        self.plan.cluster.as_ref().map(|plan| plan.cluster.clone())
    }

    /// What a cluster's nodes have acknowledged until now is there still.
    pub async fn check_nodes(&self) -> Result<(), EngineError> {
        match &self.plan.cluster {
            Some(plan) => plan.cluster.lock().await.check_nodes().await,
            None => Ok(()),
        }
    }
}

/// Broken: a node does not answer, and is asked again the next time.
async fn look(cluster: &mut Cluster) -> Result<(), Trouble> {
    cluster.refresh().await?;
    cluster.primaries_go_on().await?;
    // For the connections, so that a check behind a fence takes no longer than it must.
    cluster.heir().await.map(drop)
}
