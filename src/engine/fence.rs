//! The source's side of a cutover: fence, positions, release, takeover, counts; on a connection of its own.
//!
//! In: a request. Out: its answer. A source with a `timeout` closes the connection while a hook or a comparison runs: then another
//! one is made, once a request, and the request is sent again, which harms with none but the takeover. Invariant: no answer
//! comes from another process than the one that was connected to first.
//!
//! Facts about Dragonfly's `CLIENT PAUSE`, from its source: it holds journaled commands, PUBLISH and writing scripts of every
//! connection that did not come through the admin port (but not a script inside of MULTI, nor XREADGROUP before 1.37);
//! expiry and eviction rest meanwhile. It waits up to a second for running commands and then refuses, with nothing held.
//! Pauses add up: the last to end counts. `CLIENT UNPAUSE` (since 1.28) ends all of them, anybody's, within about 10 ms, and a
//! pause begun within those 10 ms revives the one before. Expiry goes on with the end of the first of several pauses, or when
//! another replica begins or ends its full sync: it is one switch for all.

use super::error::EngineError;
use super::link::LinkError;
use super::settings::MigrateSettings;
use super::source::{Source, encoded};
use crate::dragonfly::reply::{Reply, parse_reply};
use crate::dragonfly::session::{self, Request};
use crate::redis::info::Info;
use crate::redis::resp;
use std::time::Duration;

/// After a release, until the source's pauses have really ended.
pub const RELEASE_SETTLES: Duration = Duration::from_millis(50);

/// Keys and keys with an expiry, by database.
pub type Keyspace = std::collections::BTreeMap<u32, (u64, u64)>;

/// A connection to the source for one cutover.
pub struct FenceLink {
    source: Source,
}

impl FenceLink {
    pub async fn connect(settings: &MigrateSettings) -> Result<Self, EngineError> {
        Ok(Self { source: Source::connect(&settings.source, settings.connect_timeout).await? })
    }

    /// Holds every write for `ms` from when the source takes it up. `Err`: there was no answer; `Ok(Err)`: it refused.
    pub async fn pause(&mut self, ms: u64) -> Result<Result<(), String>, String> {
        let ms = ms.to_string();
        let reply = self.ask("CLIENT PAUSE", resp::command(&[b"CLIENT", b"PAUSE", ms.as_bytes(), b"WRITE"])).await?;
        Ok(is_ok("CLIENT PAUSE", &reply))
    }

    /// Ends every pause.
    pub async fn unpause(&mut self) -> Result<(), String> {
        self.ok("CLIENT UNPAUSE", resp::command(&[b"CLIENT", b"UNPAUSE"])).await
    }

    /// LSN of the next record of each of `flows` flows.
    pub async fn positions(&mut self, flows: u32) -> Result<Vec<u64>, String> {
        let reply = self.ask("DFLY REPLICAOFFSET", encoded(&Request::ReplicaOffset)).await?;
        let offsets = session::replica_offsets(&reply, flows).map_err(|error| error.to_string())?;
        Ok(offsets.into_iter().map(|lsn| lsn.0).collect())
    }

    /// Lets the source wait until this registration has acknowledged everything, and end itself. `patience`: for its answer.
    pub async fn takeover(&mut self, seconds: u64, sync_id: &str, patience: Duration) -> Result<(), String> {
        // An idle connection that was closed is made anew by this: the takeover itself is never sent twice.
        self.ask("PING", resp::command(&[b"PING"])).await?;
        if let Ok(link) = self.source.link() {
            link.set_timeout(patience);
        }
        let seconds = seconds.to_string();
        let request = resp::command(&[b"DFLY", b"TAKEOVER", seconds.as_bytes(), sync_id.as_bytes()]);
        let reply = self.ask_once("DFLY TAKEOVER", request).await.map_err(|unanswered| unanswered.why)?;
        is_ok("DFLY TAKEOVER", &reply)
    }

    pub async fn keyspace(&mut self) -> Result<Keyspace, String> {
        match self.ask("INFO", resp::command(&[b"INFO", b"KEYSPACE"])).await? {
            Reply::Bulk(Some(text)) => Ok(keyspace(&String::from_utf8_lossy(&text))),
            other => Err(format!("the source answered INFO with {other:?}")),
        }
    }

    async fn ask(&mut self, what: &str, request: Vec<u8>) -> Result<Reply, String> {
        match self.ask_once(what, request.clone()).await {
            Err(Unanswered { why, broken: true }) => {
                self.connect_again(&why).await?;
                self.ask_once(what, request).await
            }
            answer => answer,
        }
        .map_err(|unanswered| unanswered.why)
    }

    async fn ask_once(&mut self, what: &str, request: Vec<u8>) -> Result<Reply, Unanswered> {
        let link = self.source.link().map_err(|error| Unanswered { why: error.to_string(), broken: false })?;
        link.request(what, request, parse_reply).await.map_err(|error| Unanswered {
            broken: matches!(error, LinkError::Closed { .. } | LinkError::Io { .. }),
            why: error.to_string(),
        })
    }

    async fn connect_again(&mut self, why: &str) -> Result<(), String> {
        let source = self.source.connect_again().await.map_err(|again| format!("{why}, and then: {again}"))?;
        if !source.is_surely(self.source.process()) {
            return Err(format!(
                "{why}; it is not sure that the same process answers there now (INFO tells which it is)"
            ));
        }
        tracing::debug!(why, "connected to the source again");
        self.source = source;
        Ok(())
    }

    async fn ok(&mut self, what: &str, request: Vec<u8>) -> Result<(), String> {
        is_ok(what, &self.ask(what, request).await?)
    }
}

/// Why there was no answer.
struct Unanswered {
    why: String,
    /// The connection ended: another one may help.
    broken: bool,
}

fn is_ok(what: &str, reply: &Reply) -> Result<(), String> {
    match reply {
        Reply::Simple(text) if text == b"OK" => Ok(()),
        Reply::Error(text) => Err(format!("the source answered {what} with \"{}\"", text.escape_ascii())),
        other => Err(format!("the source answered {what} with {other:?}")),
    }
}

/// From the text of `INFO keyspace`, which source and target write alike.
pub fn keyspace(text: &str) -> Keyspace {
    let info = Info::parse(text);
    let expires = |db: u32| {
        let line = info.get(&format!("db{db}"))?;
        line.split(',').find_map(|part| part.strip_prefix("expires="))?.parse().ok()
    };
    info.keys_by_db().into_iter().map(|(db, keys)| (db, (keys, expires(db).unwrap_or(0)))).collect()
}

/// What the numbers of keys say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Counted {
    Equal(u64),
    /// They differ. `explicable`: by no more than keys past their expiry may, which each server counts until it finds them.
    Unequal {
        words: String,
        explicable: bool,
    },
}

/// Compares the numbers of keys. `own`: keys of this tool at the target, by database.
pub fn compare_counts(source: &Keyspace, target: &Keyspace, own: &Keyspace) -> Counted {
    let dbs: std::collections::BTreeSet<u32> = source.keys().chain(target.keys()).copied().collect();
    let (mut total, mut words, mut explicable) = (0, Vec::new(), true);
    for db in dbs {
        let of = |keyspace: &Keyspace| keyspace.get(&db).copied().unwrap_or_default();
        let ((keys, expires), (held, held_expires)) = (of(source), of(target));
        let held = held.saturating_sub(of(own).0);
        total += keys;
        if keys != held {
            words.push(format!("database {db} has {keys} keys at the source and {held} at the target"));
            explicable &= keys.abs_diff(held) <= expires.max(held_expires);
        }
    }
    match words.is_empty() {
        true => Counted::Equal(total),
        false => Counted::Unequal { words: words.join(", "), explicable },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::settings::Endpoint;
    use crate::lab::generate::Spec;
    use crate::lab::live::{Live, LiveOptions};
    use crate::lab::master::MasterOptions;

    #[test]
    fn an_idle_connection_is_made_again_to_the_same_process_only() {
        let idle_max = Duration::from_millis(50);
        let options = MasterOptions { idle_max: Some(idle_max), ..MasterOptions::default() };
        let spec = Spec::of("string:10B=20").unwrap();
        let mut live = Live::start(spec, LiveOptions::default(), options).unwrap();
        let endpoint = Endpoint {
            host: "127.0.0.1".into(),
            port: live.port(),
            tls: None,
            user: Default::default(),
            password: Default::default(),
        };
        let flows = live.spec().flows_count as u32;
        tokio_uring::start(async {
            let source = Source::connect(&endpoint, Duration::from_secs(30)).await.unwrap();
            let mut link = FenceLink { source };
            for _ in 0..3 {
                tokio::time::sleep(idle_max * 4).await;
                link.positions(flows).await.unwrap();
                tokio::time::sleep(idle_max * 4).await;
                link.pause(1).await.unwrap().unwrap();
                tokio::time::sleep(idle_max * 4).await;
                link.unpause().await.unwrap();
            }
            live.restart().unwrap();
            let why = link.positions(flows).await.unwrap_err();
            assert!(why.contains("the same process"), "{why}");
            live.die();
            let why = link.positions(flows).await.unwrap_err();
            assert!(why.contains("cannot connect"), "{why}");
        });
    }

    #[test]
    fn counts_are_compared_by_database() {
        let source = keyspace("# Keyspace\r\ndb0:keys=100,expires=3,avg_ttl=-1\r\ndb7:keys=5,expires=0,avg_ttl=-1\r\n");
        assert_eq!(source, Keyspace::from([(0, (100, 3)), (7, (5, 0))]));
        let target = |zero, seven| Keyspace::from([(0, (zero, 2)), (7, (seven, 0))]);
        let own = Keyspace::from([(0, (2, 0)), (7, (1, 0))]);
        let explicable = |target: &Keyspace| match compare_counts(&source, target, &own) {
            Counted::Unequal { words, explicable } => Some((words, explicable)),
            Counted::Equal(_) => None,
        };
        assert_eq!(compare_counts(&source, &target(102, 6), &own), Counted::Equal(105));
        assert!(explicable(&target(105, 6)).unwrap().1);
        let (words, by_expiry) = explicable(&target(106, 6)).unwrap();
        assert!(words.contains("database 0 has 100 keys at the source and 104") && !words.contains("7") && !by_expiry);
        assert!(!explicable(&target(102, 5)).unwrap().1 && !explicable(&Keyspace::new()).unwrap().1);
    }
}
