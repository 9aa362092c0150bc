//! Whether a replica that took over has everything that its primary had acknowledged: so it is after a `CLUSTER FAILOVER`, which
//! waits for the replica, and may not be after any other takeover.
//!
//! In: `INFO replication` of both nodes. Out: yes, or that it is not certain. A primary that becomes a replica of its heir goes on
//! from its own position only if the heir had come as far as that when it took over; then both know the history before by
//! the same id (`master_replid2`). Else it copies everything anew, and knows of none. A node that is gone proves nothing; nor does one
//! that was restarted, for it goes on from the position of its dump.

use super::{Cluster, Trouble};
use crate::engine::patience::Patience;
use crate::redis::info::Info;
use crate::redis::topology::Node;
use std::time::Duration;

/// So long the old primary may take to follow the new one.
const FOLLOWS_MAX: Duration = Duration::from_secs(10);

impl Cluster {
    /// `heir` took over from `old`, and lacks nothing that this had acknowledged.
    pub(super) async fn was_handed_over(&mut self, old: &Node, heir: &Node) -> Result<bool, Trouble> {
        let mut patience = Patience::new(self.patience.min(FOLLOWS_MAX));
        loop {
            let (of_old, of_heir) = (self.replication(&old.id).await?, self.replication(&heir.id).await?);
            // The process that acknowledged what it did, and the one that answers.
            if let (Some(known), Some(seen)) = (self.known_run_id(&old.id), self.seen_run_ids.get(&old.id))
                && known != *seen
            {
                return Ok(false);
            }
            if let (Some(of_old), Some(of_heir)) = (of_old, of_heir)
                && let Some(lacks_nothing) = lacks_nothing(&of_old, &of_heir)
            {
                return Ok(lacks_nothing);
            }
            let why = format!("{} took over, and {} does not follow it yet", heir.address, old.address);
            if patience.wait(&why).await.is_err() {
                return Ok(false);
            }
        }
    }

    /// It was a replica before, so that slots that are all its now were not moved to it.
    pub(super) async fn was_replica(&mut self, heir: &Node) -> Result<bool, Trouble> {
        let mut patience = Patience::new(self.patience.min(FOLLOWS_MAX));
        loop {
            if let Some(text) = self.replication(&heir.id).await? {
                return Ok(has_history(&Info::parse(&text)));
            }
            if patience.wait(&format!("{} does not say whether it was a replica", heir.address)).await.is_err() {
                return Ok(true);
            }
        }
    }

    /// `None`: the node does not answer.
    pub(super) async fn replication(&mut self, id: &str) -> Result<Option<String>, Trouble> {
        let answer = match self.link(id).await {
            Ok(link) => link.info("replication").await.map_err(Trouble::Broken),
            Err(trouble) => Err(trouble),
        };
        match answer {
            Ok(text) => Ok(Some(text)),
            Err(Trouble::Broken(_)) => {
                self.drop_link(id);
                Ok(None)
            }
            Err(trouble) => Err(trouble),
        }
    }
}

/// `None`: the old primary does not follow the new one yet.
fn lacks_nothing(of_old: &str, of_heir: &str) -> Option<bool> {
    let (old, heir) = (Info::parse(of_old), Info::parse(of_heir));
    // Back again before anybody had seen what the heir had.
    if old.get("role") == Some("master") && heir.get("role") == Some("slave") {
        return Some(false);
    }
    let same = |field: &str| old.get(field).is_some() && old.get(field) == heir.get(field);
    let follows = old.get("role") == Some("slave")
        && old.get("master_link_status") == Some("up")
        && heir.get("role") == Some("master")
        && same("master_replid");
    follows.then(|| has_history(&old) && same("master_replid2"))
}

/// It goes on from what another primary had written.
fn has_history(replication: &Info) -> bool {
    replication.get("master_replid2").is_some_and(|id| id.bytes().any(|digit| digit != b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_shared_history_proves_it() {
        let info = |role: &str, link: &str, id: &str, before: &str| {
            format!("role:{role}\r\nmaster_link_status:{link}\r\nmaster_replid:{id}\r\nmaster_replid2:{before}\r\n")
        };
        let heir = info("master", "", "b1", "a1");
        assert_eq!(lacks_nothing(&info("slave", "up", "b1", "a1"), &heir), Some(true));
        // It copied everything, or is of another history.
        assert_eq!(lacks_nothing(&info("slave", "up", "b1", "000"), &heir), Some(false));
        assert_eq!(lacks_nothing(&info("slave", "up", "b1", "c1"), &heir), Some(false));
        assert_eq!(lacks_nothing(&info("slave", "up", "b1", "000"), &info("master", "", "b1", "000")), Some(false));
        assert_eq!(lacks_nothing(&info("master", "", "c1", "b1"), &info("slave", "up", "c1", "b1")), Some(false));
        // Not there yet.
        assert_eq!(lacks_nothing(&info("master", "", "a1", "000"), &heir), None);
        assert_eq!(lacks_nothing(&info("slave", "down", "a1", "000"), &heir), None);
        assert_eq!(lacks_nothing("", ""), None);
    }
}
