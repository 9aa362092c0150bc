//! What is looked at before anything is written: a target that is ready, a user that may do the work, databases that have
//! their place, clocks that agree.
//!
//! In: both servers. Out: connections, or a refusal that names the setting. Invariant: nothing here changes either server. A
//! source that is away is waited for only where an earlier run shows that it is the right one.

use super::checkpoint;
use super::error::EngineError;
use super::job::Job;
use super::own;
use super::patience::rest;
use super::proving;
use super::reading::SOURCE_TIMEOUT_MIN;
use super::settings::{MigrateSettings, OnExisting};
use super::source::Source;
use super::target::{self, Target, TargetLink};
use crate::dragonfly::session::Release;
use crate::redis::value::Value;
use crate::report::document::ClockSkew;
use crate::uring::clock::realtime_ms;
use std::time::Duration;
use tokio::time::Instant;

const XREAD_CRASHES_FROM: Release = Release { major: 1, minor: 37, patch: 0 };
const XREAD_CRASHES_BEFORE: Release = Release { major: 1, minor: 37, patch: 2 };
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_LAST: Duration = Duration::from_secs(2);
/// For so long a source that is away is waited for by a job that goes on. It may be restarting: both may be started by the same
/// service manager.
const AWAY_MAX: Duration = Duration::from_secs(300);
/// What clocks that are kept right may drift apart while a job runs.
const CLOCK_DRIFT_MS: i64 = 20;

/// Commands of every job in a form that cannot succeed, whatever the target holds: its permissions are checked before its
/// arguments are understood. MULTI and EXEC with nothing between them succeed, and do nothing.
const ACCESS_PROBES: [&[&[u8]]; 5] = [
    &[b"SET", b"df2redis:probe", b"x", b"NX", b"XX"],
    &[b"RESTORE", b"df2redis:probe", b"0", b"x", b"NO-OPTION"],
    &[b"PEXPIREAT", b"df2redis:probe", b"no-number"],
    &[b"MULTI"],
    &[b"EXEC"],
];
/// Likewise, for `--on-existing flush`.
const FLUSH_PROBE: &[&[u8]] = &[b"FLUSHALL", b"NO-OPTION"];

impl Job<'_> {
    /// What `replicate` begins with: both servers are looked at, and nothing of either is changed.
    pub(super) async fn first_contact(&mut self) -> Result<(TargetLink, Target), EngineError> {
        let began = Instant::now();
        let mut pause = PAUSE_FIRST;
        loop {
            let (mut target, probed) = self.first_target().await?;
            let error = match self.first_source(&mut target, &probed).await {
                Ok(()) => return Ok((target, probed)),
                Err(error) => error,
            };
            if !is_away(&error) || began.elapsed() + pause > AWAY_MAX || !self.has_begun(&mut target).await {
                return Err(error);
            }
            tracing::warn!(%error, ?pause, "the source cannot be reached, and an earlier run into this target could: trying again");
            rest(pause).await;
            pause = (pause * 2).min(PAUSE_LAST);
        }
    }

    /// The source is asked before the target is emptied: a wrong address must not cost a data set.
    async fn first_source(&mut self, target: &mut TargetLink, probed: &Target) -> Result<(), EngineError> {
        let mut source = self.connect_source().await?;
        self.check_databases(&source, probed)?;
        self.check_access(target).await?;
        self.check_timeout(&mut source).await?;
        self.check_clocks(&mut source, target).await
    }

    /// Whether the source waits for a slow target's sake as long as is relied on, where its user may ask.
    pub(super) async fn check_timeout(&self, source: &mut Source) -> Result<(), EngineError> {
        match source.replication_timeout().await? {
            Some(timeout) if timeout < SOURCE_TIMEOUT_MIN && !self.settings.source_first => tracing::warn!(
                ?timeout,
                wanted = ?SOURCE_TIMEOUT_MIN,
                "the source drops a replica that takes longer to read one write (replication_timeout), and a snapshot that waits for a \
                 slow target is read no faster: raise it at the source (CONFIG SET replication_timeout, in ms), or say --source-first on"
            ),
            _ => {}
        }
        Ok(())
    }

    /// The target holds what an earlier run of this job left, to go on from or to begin anew.
    async fn has_begun(&self, target: &mut TargetLink) -> bool {
        if self.settings.on_existing == OnExisting::Flush {
            return false;
        }
        let found = checkpoint::read(target, &own::checkpoint_key(&self.settings)).await;
        matches!(found, Ok(Some(checkpoint)) if checkpoint.stable || checkpoint.owned)
    }

    /// The control connection and what the target is. Waits for one that is loading, busy, or has no room for a client.
    pub(super) async fn first_target(&mut self) -> Result<(TargetLink, Target), EngineError> {
        let began = Instant::now();
        let mut pause = PAUSE_FIRST;
        loop {
            let error = match self.try_target().await {
                Ok(ready) => return Ok(ready),
                Err(error) => error,
            };
            let patience = patience(&error, self.settings.retry_max, self.settings.connect_timeout);
            if began.elapsed() + pause > patience {
                return Err(error);
            }
            tracing::warn!(%error, ?pause, "the target is not ready: trying again");
            rest(pause).await;
            pause = (pause * 2).min(PAUSE_LAST);
        }
    }

    async fn try_target(&mut self) -> Result<(TargetLink, Target), EngineError> {
        let settings = self.settings.clone();
        let mut link = match settings.follow {
            Some(_) => target::connect_control(&settings).await?,
            None => TargetLink::open(&settings).await?,
        };
        let probed = self.probe_target(&mut link).await?;
        Ok((link, probed))
    }

    /// Whether every database that the source holds has its place at the target.
    pub(super) fn check_databases(&self, source: &Source, probed: &Target) -> Result<(), EngineError> {
        let scope = self.settings.scope.clone().within(probed.databases.unwrap_or(u32::MAX));
        for (db, keys) in source.keyspace() {
            if *keys > 0 && scope.admits_db(*db) {
                scope.target_db(*db)?;
            }
        }
        Ok(())
    }

    /// Whether the target has the replicas that are to be waited for, and its user may run what every job runs, so that a missing permission is named before anything is
    /// written. What only some data needs is held, and named, when it is refused.
    pub(super) async fn check_access(&self, target: &mut TargetLink) -> Result<(), EngineError> {
        let flush = (self.settings.on_existing == OnExisting::Flush).then_some(FLUSH_PROBE);
        match target.cluster() {
            None => try_access(target, flush).await?,
            Some(cluster) => {
                for id in cluster.primary_ids() {
                    if let Some(node) = cluster.patient_link(&id).await? {
                        try_access(node, flush).await?;
                    }
                }
            }
        }
        proving::check(target, &self.settings).await
    }

    /// How far the source's clock may be before this machine's, as far as the comparison at the start told.
    pub(super) fn source_ahead_ms(&self) -> i64 {
        let skew = &self.report.clock_skew;
        skew.source_ms.unwrap_or(0).saturating_add_unsigned(skew.uncertain_ms).saturating_add(CLOCK_DRIFT_MS)
    }

    /// Compares the clocks: expiries are absolute times, and each server goes by its own clock.
    pub(super) async fn check_clocks(
        &mut self,
        source: &mut Source,
        target: &mut TargetLink,
    ) -> Result<(), EngineError> {
        let clocks = target::clocks(target).await?;
        let before_ms = realtime_ms() as i64;
        let source_ms = source.time_ms().await?;
        let after_ms = realtime_ms() as i64;
        let source_ms = source_ms.map(|ms| ms - before_ms.midpoint(after_ms));
        // Of a cluster the worst one counts.
        let worst = clocks.iter().max_by_key(|clock| clock.ahead_ms.abs_diff(source_ms.unwrap_or(0)));
        let skew = ClockSkew {
            source_ms,
            target_ms: worst.map(|clock| clock.ahead_ms),
            uncertain_ms: (after_ms - before_ms).unsigned_abs() / 2 + worst.map_or(0, |clock| clock.uncertain_ms) + 1,
        };
        self.report.clock_skew = skew;
        let (Some(source_ms), Some(target_ms)) = (skew.source_ms, skew.target_ms) else {
            tracing::warn!("the clocks cannot be compared: a user lacks the permission for TIME");
            return Ok(());
        };
        let apart_ms = source_ms.abs_diff(target_ms);
        if u128::from(apart_ms.saturating_sub(skew.uncertain_ms)) > self.settings.clock_skew_max.as_millis() {
            let node = worst.map(|clock| clock.node.as_str()).filter(|node| !node.is_empty());
            let node = node.map(|node| format!(" node {node}")).unwrap_or_default();
            return Err(EngineError::Refused(format!(
                "the clocks of source and target are {apart_ms} ms apart (source {source_ms:+} ms, target{node} {target_ms:+} ms from \
                 this machine's): keys would expire at the wrong time. Set them right, or allow it with --clock-skew-max"
            )));
        }
        Ok(())
    }
}

/// Tries the commands of every job on one server. A cluster's node looks at permissions before it says whose the key is.
async fn try_access(link: &mut TargetLink, flush: Option<&[&[u8]]>) -> Result<(), EngineError> {
    for args in ACCESS_PROBES.into_iter().chain(flush) {
        let name = String::from_utf8_lossy(args[0]);
        match link.call_raw(&name, args).await? {
            // A refused EXEC says EXECABORT first.
            Value::Error(text) if text.windows(6).any(|word| word == b"NOPERM") => {
                return Err(EngineError::Target(format!(
                    "nothing was written: the target answered {name} with \"{}\"; grant it to the target's user (README.md \
                     lists the least that is needed)",
                    text.escape_ascii()
                )));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Refuses a source that being replicated would hurt: the journal of a shard is turned on by DFLY FLOW until the process ends, and
/// these releases read a null pointer when they record a blocked XREAD as if it were an XREADGROUP (Dragonfly #6975).
pub(super) fn check_release(release: Option<Release>, settings: &MigrateSettings) -> Result<(), EngineError> {
    match release {
        Some(release) if release >= XREAD_CRASHES_FROM && release < XREAD_CRASHES_BEFORE => {}
        _ => return Ok(()),
    }
    if settings.source_may_crash {
        tracing::warn!(
            "the source is of a release that crashes when a blocked XREAD is served while it has, or had, a replica"
        );
        return Ok(());
    }
    Err(EngineError::Refused(
        "the source is of a release (1.37.0, 1.37.1) that crashes when it serves a blocked XREAD of any client, once a replica has \
         registered with it and until it is restarted: upgrade it to 1.37.2 or later first. If no client ever blocks in XREAD, \
         --source-danger-blocked-xread on goes on all the same"
            .into(),
    ))
}

/// Whether the source may be reached later. What the operator has to change is better said at once.
fn is_away(error: &EngineError) -> bool {
    let EngineError::Source(text) = error else { return false };
    const AWAY: [&str; 7] = [
        "cannot connect to",
        "closed the connection",
        "the connection to ",
        "no answer from",
        "is loading its data set",
        "is shutting down",
        "refuses more clients",
    ];
    AWAY.iter().any(|words| text.contains(words))
}

/// How long an error of the first contact may be waited out.
fn patience(error: &EngineError, retry_max: Duration, connect_timeout: Duration) -> Duration {
    let (EngineError::Target(text) | EngineError::TargetLost(text)) = error else { return Duration::ZERO };
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&["LOADING", "still loading", "\"BUSY ", "max number of clients"]) {
        retry_max
    } else if says(&["closed the connection", "reset by peer"]) {
        // A server without room for a client closes at once; so does one that is no Redis.
        connect_timeout
    } else {
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dragonfly::session::SessionError;
    use crate::engine::link::LinkError;

    #[test]
    fn only_a_source_that_may_come_back_is_waited_for() {
        let addr = "h:1".to_string();
        let cause = || std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let (what, perhaps) = ("INFO".to_string(), "");
        for (error, away) in [
            (LinkError::Connect { addr: addr.clone(), cause: cause() }, true),
            (LinkError::Timeout { addr: addr.clone(), what: what.clone(), after: PAUSE_LAST, perhaps }, true),
            (LinkError::Closed { addr: addr.clone(), what: what.clone(), perhaps }, true),
            (LinkError::Io { addr: addr.clone(), cause: cause(), perhaps }, true),
            (LinkError::Resolve { host: addr.clone(), cause: cause() }, false),
            (LinkError::Tls { addr: addr.clone(), cause: String::new() }, false),
            (LinkError::Untrusted { addr: addr.clone(), cause: String::new() }, false),
            (LinkError::Protocol { addr, what, reason: String::new() }, false),
        ] {
            assert_eq!(is_away(&EngineError::Source(error.to_string())), away, "{error}");
            assert!(!is_away(&EngineError::Target(error.to_string())));
        }
        for (error, away) in [
            (SessionError::Loading, true),
            (SessionError::ShuttingDown, true),
            (SessionError::MaxClients, true),
            (SessionError::WrongPassword, false),
            (SessionError::NoAuth { what: "INFO" }, false),
        ] {
            assert_eq!(is_away(&EngineError::Source(error.to_string())), away, "{error}");
        }
    }

    #[test]
    fn only_what_passes_by_itself_is_waited_for() {
        let patience = |text: &str| {
            patience(&EngineError::Target(text.into()), Duration::from_secs(9), Duration::from_secs(3)).as_secs()
        };
        assert_eq!(patience("t answered INFO with \"LOADING Redis is loading\""), 9);
        assert_eq!(patience("t answered INFO with \"ERR max number of clients reached\""), 9);
        assert_eq!(patience("t closed the connection"), 3);
        assert_eq!(patience("t answered AUTH with \"WRONGPASS\""), 0);
    }
}
