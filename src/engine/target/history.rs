//! Whether a server that takes writes still has the data that it had, or was another server's replica in between: then it has thrown away
//! what it had acknowledged, and is the same process.
//!
//! In: its `INFO`, again and again. Out: yes; no; or whose replica it is now. What tells is the id of the history of a server's data
//! (`master_replid`), and of the one before (`master_replid2`). Whoever is promoted goes on from the history that it was in as a replica: its
//! own, where it copied nothing, else that of the server from which it copied everything. A replica that went on from its own position,
//! because the other server had all of it, keeps its own as the one before. A master that lets its first replica in begins a history with none
//! before. Not seen: a copy that was begun and never finished. Not told apart from a copy: a replica that went on from its own
//! position, and was promoted before anybody looked.

use crate::redis::info::Info;

/// Of one process.
#[derive(Debug, Default)]
pub struct History {
    /// Empty where the server does not tell.
    id: String,
    /// It was seen as a replica that had copied another one's data.
    copied: bool,
}

/// It takes writes, and may hold other data than it did.
#[derive(Debug)]
pub struct OtherData;

impl History {
    pub fn of(info: &Info) -> Self {
        Self { id: info.get("master_replid").unwrap_or_default().into(), copied: false }
    }

    /// Whose replica it is, if it is one.
    pub fn goes_on(&mut self, info: &Info) -> Result<Option<String>, OtherData> {
        let text = |name: &str| info.get(name).unwrap_or_default();
        let (id, before) = (text("master_replid"), text("master_replid2"));
        let is_replica = text("role") == "slave";
        let is_own = [id, before].contains(&self.id.as_str()) || self.id.is_empty();
        let begins = !is_replica && before.bytes().all(|digit| digit == b'0');
        if !self.copied && (is_own || begins) {
            self.id = id.to_string();
        } else if is_replica {
            // Before its copy is whole it is still in a history of its own, perhaps in one that was not heard of yet.
            self.copied |= text("master_link_status") == "up";
        } else {
            return Err(OtherData);
        }
        Ok(is_replica.then(|| format!("{}:{}", text("master_host"), text("master_port"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(role: &str, link: &str, id: &str, before: &str) -> String {
        format!(
            "role:{role}\r\nmaster_host:h\r\nmaster_port:1\r\nmaster_link_status:{link}\r\nmaster_replid:{id}\r\nmaster_replid2:{before}\r\n"
        )
    }

    /// Whether it is still the same behind all of this.
    fn outlives(seen: &[(&str, &str, &str, &str)]) -> bool {
        let mut history = History { id: "a1".into(), copied: false };
        seen.iter().all(|(role, link, id, before)| {
            let text = info(role, link, id, before);
            let found = history.goes_on(&Info::parse(&text));
            assert!(found.is_err() || found.as_ref().is_ok_and(|of| of.is_some() == (*role == "slave")));
            found.is_ok()
        })
    }

    #[test]
    fn a_server_that_copied_another_ones_data_is_not_the_same() {
        assert!(outlives(&[("master", "", "a1", "00")]));
        // A replica for a while, without a master; twice.
        assert!(outlives(&[("slave", "down", "a1", "00"), ("master", "", "b1", "a1"), ("master", "", "c1", "b1")]));
        // Its first replica came, and the next time it was a replica nothing was copied.
        assert!(outlives(&[("master", "", "b1", "00"), ("master", "", "c1", "b1")]));
        // It went on from its own position, and back.
        assert!(outlives(&[("slave", "up", "b1", "a1"), ("master", "", "c1", "b1")]));
        // It copied all: noticed before, or behind it.
        assert!(!outlives(&[("slave", "up", "b1", "00"), ("master", "", "c1", "b1")]));
        assert!(!outlives(&[("slave", "down", "a1", "00"), ("master", "", "c1", "b1")]));
        assert!(!outlives(&[("slave", "up", "b1", "00"), ("master", "", "c1", "00")]));
        // It does not tell.
        let mut silent = History::default();
        assert!(silent.goes_on(&Info::parse("role:master\r\n")).unwrap().is_none());
    }
}
