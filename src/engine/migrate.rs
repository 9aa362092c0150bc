//! `migrate`: one full sync, from the handshake to a proven end.
//!
//! Phases: connect -> flows -> full sync -> (all flows at FULLSYNC_END) -> STARTSTABLE -> (all flows complete, everything
//! acknowledged) -> suspects asked -> markers removed -> replicas and nodes asked. Invariant: the outcome is `Done` only if every
//! flow delivered its offset, EOF and token, every command sent was answered, and behind the last answer every node of a cluster is
//! the process, or the heir with all that it had, of the one that the session began with.

use super::absent;
use super::checkpoint::Checkpoint;
use super::cluster::Cluster;
use super::crew::{ClusterPlan, Crew, CrewPlan, journal_tag};
use super::error::EngineError;
use super::handle::Existing;
use super::homes::{Found, WithoutHome};
use super::job::{Job, Signals, graver};
use super::lease;
use super::messages::{WorkerEvent, WorkerSummary};
use super::patience::Patience;
use super::phase::Phase;
use super::preflight::check_release;
use super::proving;
use super::router::Resumed;
use super::rows;
use super::settings::OnExisting;
use super::source::{Role, Source, session_error};
use super::standing;
use super::sweep::{self, FAST};
use super::target::{self, Target, TargetLink};
use crate::convert::hold::{ALL, Overflow};
use crate::dragonfly::session::{Action, Session, SessionError, Signal};
use crate::ids::DbIndex;
use crate::report::counters::Totals;
use crate::report::document::ServerInfo;
use crate::uring;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// A sync that the source voided by a flush is begun anew this many times.
pub(super) const ATTEMPTS_MAX: u32 = 5;
pub(super) const PROGRESS_EVERY: Duration = Duration::from_millis(500);

impl Job<'_> {
    pub(super) async fn migrate(&mut self) -> Result<(), EngineError> {
        let mut signals = Signals::new(self.settings.control.clone())?;
        let (probed, mut source, existing) = signals.interruptible(self.prepare()).await?;
        let settings = self.settings.clone();
        let alone = probed.keyspace.is_empty() && !settings.shared_target;
        let may_flush = alone || settings.on_existing == OnExisting::Flush;
        let mut attempt = 1;
        let (summaries, session) = loop {
            let plan = CrewPlan {
                settings: settings.clone(),
                capabilities: probed.capabilities.clone(),
                databases: probed.databases,
                source: source.release(),
                source_ahead_ms: self.source_ahead_ms(),
                existing: existing.clone(),
                process: probed.process.clone(),
                cluster: signals.interruptible(self.cluster_plan(&probed, None)).await?,
                lease: self.lease_watch(),
            };
            let session = plan.cluster.as_ref().map(|plan| plan.cluster.clone());
            match self.attempt(&mut source, plan, &mut signals).await {
                Err(EngineError::SyncVoided { flow, command }) if may_flush && attempt < ATTEMPTS_MAX => {
                    tracing::warn!(flow, %command, attempt, "the source was flushed during the full sync: beginning anew");
                    attempt += 1;
                    let master_id = source.registered()?.master_id.clone();
                    signals.interruptible(standing::check(&settings, &master_id)).await.map_err(for_migrate)?;
                    signals.interruptible(self.begin_anew()).await?;
                    self.enter(Phase::Connect);
                    let connected = Source::connect(&settings.source, settings.connect_timeout);
                    source = signals.interruptible(connected).await?;
                }
                Err(EngineError::SyncVoided { flow, command }) if !may_flush => {
                    return Err(EngineError::Source(format!(
                        "flow {flow}: the source ran {command} during the full sync, which voids the snapshot. The sync \
                         could begin anew only after emptying the target, which held keys of its own (--on-existing {}), \
                         so it is left as it is",
                        if settings.on_existing == OnExisting::Skip { "skip" } else { "replace" }
                    )));
                }
                result => break (result?, session),
            }
        };
        self.enter(Phase::Settling);
        let mut lease = self.lease_watch();
        tokio::select! {
            biased;
            lost = lease::lost(&mut lease) => return Err(lost),
            settled = signals.interruptible(self.settle_patiently(&probed, session, &existing, &summaries)) => settled?,
        }
        for summary in summaries {
            self.add_summary(summary);
        }
        self.enter(Phase::Done);
        Ok(())
    }

    /// Asks both sides what they are, and applies `--on-existing`.
    async fn prepare(&mut self) -> Result<(Target, Source, Arc<Existing>), EngineError> {
        let settings = self.settings.clone();
        let (mut target, mut probed) = self.first_target().await?;
        // Holding expiries back is enough for one full sync.
        probed.capabilities.import_mode = false;
        // The source is asked before the target is emptied: a wrong address must not cost a data set.
        let mut source = self.connect_source().await?;
        self.check_databases(&source, &probed)?;
        self.check_access(&mut target).await?;
        self.check_timeout(&mut source).await?;
        self.check_clocks(&mut source, &mut target).await?;
        self.take_lease(&mut target, &mut probed).await?;
        super::replicate::warn_where_nothing_is_held(&probed);
        if target.cluster().is_none() && super::import::is_marked(&mut target).await.unwrap_or(false) {
            tracing::warn!(
                "a replicate job has left the target in import mode, in which it expires nothing: if that job is not to go on, CONFIG \
                 SET import-mode no"
            );
        }
        self.touched = settings.on_existing == OnExisting::Flush && !probed.keyspace.is_empty();
        let existing = Arc::new(target::prepare(&mut target, &probed, &settings, self.lease.as_ref()).await?);
        Ok((probed, source, existing))
    }

    /// Empties the target after a sync that the source voided.
    pub(super) async fn begin_anew(&mut self) -> Result<(), EngineError> {
        // What the workers sent last must not be executed after the FLUSHALL.
        let mut target = TargetLink::open(&self.settings).await?;
        if target.cluster().is_some() {
            target::end_lanes(&mut target, &self.settings).await?;
        } else {
            for client_id in std::mem::take(&mut self.client_ids) {
                target::end_client(&mut target, client_id).await?;
            }
        }
        self.check_lease()?;
        lease::flush_all(&mut target, self.lease.as_ref(), &[b"FLUSHALL", b"ASYNC"]).await?;
        self.touched = true;
        self.totals = Totals::new();
        self.report.not_carried = Default::default();
        Ok(())
    }

    /// Everything is loaded: a connection that breaks now is no reason to call it a failure.
    async fn settle_patiently(
        &mut self,
        probed: &Target,
        session: Option<Rc<Mutex<Cluster>>>,
        existing: &Existing,
        summaries: &[WorkerSummary],
    ) -> Result<(), EngineError> {
        let mut patience = Patience::new(self.settings.retry_max);
        let until_ns = uring::clock::monotonic_ns() + self.settings.retry_max.as_nanos() as u64;
        loop {
            let settled = self.settle(probed, session.as_ref(), existing, summaries, until_ns).await;
            match settled.map_err(|error| error.once_begun(true)) {
                Err(error @ EngineError::TargetLost(_)) => {
                    tracing::warn!(%error, "trying again to settle");
                    patience.wait(&error.to_string()).await?;
                }
                done => return done,
            }
        }
    }

    /// What must be done once everything is acknowledged. May be done again. `until_ns`: how long slots that move are waited for.
    async fn settle(
        &mut self,
        probed: &Target,
        session: Option<&Rc<Mutex<Cluster>>>,
        existing: &Existing,
        summaries: &[WorkerSummary],
        until_ns: u64,
    ) -> Result<(), EngineError> {
        let mut target = self.target_again(probed, session).await?;
        if self.sweep_needed {
            // Nothing follows: all are given back.
            let patience = Duration::from_nanos(until_ns.saturating_sub(uring::clock::monotonic_ns()));
            let swept = sweep::sweep(&mut target, &probed.capabilities, || ALL, || FAST, patience).await?;
            self.report.expiries.put_right_by_sweep += swept.put_right;
            swept.whole()?;
            self.sweep_needed = false;
        }
        self.ask_suspects(&mut target, existing, summaries).await?;
        self.remove_markers(&mut target, summaries).await?;
        if let (Some(before), Some(after)) = (probed.cpu_at_start, target::cpu(&mut target).await) {
            self.report.cpu_target = Some(after.since(before));
        }
        proving::confirm(&mut target, &self.settings).await?;
        // Once more: what was deleted and put right since the last time may have been thrown away, too.
        match target.cluster() {
            Some(cluster) => cluster.check_nodes().await,
            None => target.is_same_still().await,
        }
    }

    /// Fresh control connections: the first ones were idle all through the sync, and the target (`timeout`) or a firewall
    /// may have closed them. What the session knows of a cluster's nodes tells one that has lost something.
    async fn target_again(
        &self,
        probed: &Target,
        session: Option<&Rc<Mutex<Cluster>>>,
    ) -> Result<TargetLink, EngineError> {
        if let Some(session) = session {
            let cluster = session.lock().await.for_worker();
            return TargetLink::open_known(&self.settings, cluster).await;
        }
        let mut link = TargetLink::open(&self.settings).await?;
        link.must_be(&probed.process).await?;
        Ok(link)
    }

    pub(super) async fn probe_target(&mut self, target: &mut TargetLink) -> Result<Target, EngineError> {
        let probed = target::probe(target).await?;
        self.report.targets = vec![ServerInfo {
            address: self.settings.target.address().to_string(),
            make: probed.make.to_ascii_lowercase(),
            version: probed.version.clone(),
            flows: 0,
        }];
        if let Some(cluster) = target.cluster() {
            let row = self.report.targets.pop();
            for id in cluster.primary_ids() {
                cluster.number(&id);
                let address = cluster.address_of(&id).map(|address| address.to_string()).unwrap_or_default();
                self.report.targets.extend(row.clone().map(|row| ServerInfo { address, ..row }));
            }
        }
        Ok(probed)
    }

    /// What the workers of a session need to know of a target cluster; `None` if the target is none. With a checkpoint, the
    /// markers of the session before are read, and its positions lowered to those from which on no node lacks anything.
    pub(super) async fn cluster_plan(
        &mut self,
        probed: &Target,
        checkpoint: Option<&mut Checkpoint>,
    ) -> Result<Option<ClusterPlan>, EngineError> {
        if !probed.capabilities.cluster {
            return Ok(None);
        }
        let Some(mut cluster) = TargetLink::open(&self.settings).await?.into_cluster() else { return Ok(None) };
        let tag = checkpoint.as_ref().map(|checkpoint| journal_tag(&checkpoint.master_id)).unwrap_or_default();
        let stable = Arc::new(AtomicBool::new(checkpoint.is_some()));
        let heard_before = checkpoint.as_ref().map(|checkpoint| checkpoint.lsns.clone()).unwrap_or_default();
        // In front of the markers: those of a primary say nothing of a replica that takes over while they are read. Behind a look at
        // all nodes, for a node that hears late who has its slots must not end one session after another.
        cluster.refresh_patiently().await?;
        cluster.ends_on_takeover(stable.clone());
        let (resumed, found) = match checkpoint {
            None => (Resumed::new(), Found::default()),
            Some(checkpoint) => {
                let (resumed, found) = cluster.read_markers(checkpoint.flows, &tag).await?;
                if !checkpoint.flushing {
                    let topology = cluster.topology();
                    let proven = found.proven(checkpoint, |slot| topology.owner(slot).map(|node| node.id.clone()))?;
                    let lost: u64 = checkpoint.lsns.iter().zip(&proven).map(|(of, proven)| of.0 - proven.0).sum();
                    if lost > 0 {
                        tracing::warn!(
                            records = lost,
                            "a node lacks what it had acknowledged: going on from where it stands"
                        );
                    }
                    checkpoint.lsns = proven;
                    let owner = |slot| topology.owner(slot).map(|node| node.id.clone());
                    self.check_without_home(found.without_home(checkpoint, &cluster.processes(), owner)?)?;
                }
                (resumed, found)
            }
        };
        for id in cluster.primary_ids() {
            cluster.number(&id);
        }
        Ok(Some(ClusterPlan {
            cluster: Rc::new(Mutex::new(cluster)),
            journal_tag: tag,
            resumed: Arc::new(resumed),
            sent_before: Arc::new([]),
            heard_before: heard_before.into(),
            noted: found.places().collect(),
            stable,
        }))
    }

    /// Nodes whose data no position proves any more.
    fn check_without_home(&mut self, without: WithoutHome) -> Result<(), EngineError> {
        if let Some(id) = without.restarted.first() {
            return Err(EngineError::LostPosition(format!(
                "node {id} of the cluster was restarted, and all the slots in which it kept positions (df2redis:p:...) were moved away: \
                 nothing tells whether it has lost data. Only a full sync makes it good (--on-lost-position resync, which empties the \
                 target, or a new run with --on-existing flush)"
            )));
        }
        for id in without.unknown {
            tracing::warn!(node = %id, "a node that joined, or took over, while the job was away holds no position: compare with verify");
            self.add_not_carried(&rows::unproven_node(&id));
        }
        Ok(())
    }

    /// To a source that can be copied: one that is a replica, or loads its data, is none.
    pub(super) async fn connect_source(&mut self) -> Result<Source, EngineError> {
        let mut source = Source::connect(&self.settings.source, self.settings.connect_timeout).await?;
        if let Role::Replica(of) = source.role() {
            return Err(standing::is_replica(of));
        }
        check_release(source.release(), &self.settings)?;
        if source.is_loading().await? {
            return Err(session_error(SessionError::Loading));
        }
        self.keys_expected = source.keys();
        self.source_process = source.process().to_string();
        self.report.source.make = "dragonfly".into();
        self.report.source.version = source.version().to_string();
        Ok(source)
    }

    /// One full sync. Workers are stopped whatever happens; their summaries enter the report.
    async fn attempt(
        &mut self,
        source: &mut Source,
        plan: CrewPlan,
        signals: &mut Signals,
    ) -> Result<Vec<WorkerSummary>, EngineError> {
        let mut session = Session::new();
        let mut crew = signals.interruptible(self.open_full(source, &mut session, plan)).await?;
        let result = self.sync_to_drain(source, &mut session, &mut crew, signals).await;
        let (summaries, ended) = crew.stop().await;
        self.client_ids = crew.client_ids().to_vec();
        self.sweep_needed = crew.hold().unnamed() != Overflow::default();
        match graver(result, ended) {
            Ok(()) => Ok(summaries),
            Err(error) => {
                if !matches!(error, EngineError::SyncVoided { .. }) {
                    for summary in summaries {
                        self.add_summary(summary);
                    }
                }
                Err(error)
            }
        }
    }

    /// Registers, opens all flows for a full sync, and starts the workers.
    pub(super) async fn open_full(
        &mut self,
        source: &mut Source,
        session: &mut Session,
        mut plan: CrewPlan,
    ) -> Result<Crew, EngineError> {
        self.enter(Phase::Flows);
        let registration = source.register().await?;
        self.report.source.flows = registration.flows;
        if let Some(cluster) = &mut plan.cluster {
            cluster.journal_tag = journal_tag(&registration.master_id);
        }
        session.on(Signal::Registered(registration)).map_err(session_error)?;
        let mut starts = Vec::new();
        for flow in source.open_flows(None).await? {
            session.on(Signal::FlowOpened { flow: flow.start.id, opened: flow.opened }).map_err(session_error)?;
            starts.push(flow.start);
        }
        let crew = Crew::start(plan, starts).await?;
        self.report.ring_features = crew.features();
        Ok(crew)
    }

    async fn sync_to_drain(
        &mut self,
        source: &mut Source,
        session: &mut Session,
        crew: &mut Crew,
        signals: &mut Signals,
    ) -> Result<(), EngineError> {
        let mut drained = 0;
        self.full_sync(source, session, crew, signals, &mut drained).await?;
        let mut ticks = tokio::time::interval(PROGRESS_EVERY);
        while drained < crew.workers() {
            tokio::select! {
                event = crew.event() => match event? {
                    WorkerEvent::Drained => drained += 1,
                    event => self.watch(event),
                },
                _ = ticks.tick() => self.progress(),
                _ = signals.next() => return Err(EngineError::Interrupted),
            }
        }
        self.progress();
        // A lane hears of a takeover only where it has something to send.
        signals.interruptible(crew.check_nodes()).await
    }

    /// From DFLY SYNC until every flow has delivered its offset and token and STARTSTABLE was accepted.
    pub(super) async fn full_sync(
        &mut self,
        source: &mut Source,
        session: &mut Session,
        crew: &mut Crew,
        signals: &mut Signals,
        drained: &mut usize,
    ) -> Result<(), EngineError> {
        let mut ticks = tokio::time::interval(PROGRESS_EVERY);
        self.enter(Phase::FullSync);
        self.touched = true;
        self.transfer_since.get_or_insert_with(Instant::now);
        // The answers to SYNC and STARTSTABLE come only after writes to the flows, so events are taken meanwhile.
        let sync = session.request(&Action::SendSync).map(|request| source.phase_command(&request));
        let mut answer = sync.transpose()?;
        loop {
            let action = tokio::select! {
                reply = async { match &mut answer { Some(answer) => answer.await, None => std::future::pending().await } } => {
                    answer = None;
                    let (link, reply) = reply?;
                    source.answered(link);
                    let signal = match self.phase {
                        Phase::FullSync => Signal::SyncReply(&reply),
                        _ => Signal::StartStableReply(&reply),
                    };
                    session.on(signal)
                }
                event = crew.event() => match event? {
                    WorkerEvent::FullSyncEnd { flow } => session.on(Signal::FullSyncEnd(flow)),
                    WorkerEvent::Complete { flow, next_lsn, token } => {
                        tracing::info!(%flow, %next_lsn, "flow complete");
                        session
                            .on(Signal::JournalOffset { flow, lsn: next_lsn })
                            .and_then(|_| session.on(Signal::Eof { flow, token }))
                    }
                    WorkerEvent::Drained => {
                        *drained += 1;
                        Ok(None)
                    }
                    // Flows are in stable sync already, but not all of them: the sync is void.
                    WorkerEvent::SourceGone { why } => return Err(EngineError::Source(why)),
                    WorkerEvent::LetGo { why } => return Err(EngineError::Target(why)),
                    // A flow may be in the journal already while others are still here.
                    WorkerEvent::Lost(wanted) => {
                        crew.keep_lost(wanted);
                        Ok(None)
                    }
                    event => {
                        self.watch(event);
                        Ok(None)
                    }
                },
                _ = ticks.tick() => {
                    self.progress();
                    Ok(None)
                }
                _ = signals.next() => return Err(EngineError::Interrupted),
            };
            match action.map_err(session_error)? {
                Some(action @ Action::SendStartStable) => {
                    self.enter(Phase::StartingStable);
                    let request = session.request(&action).map(|request| source.phase_command(&request));
                    answer = request.transpose()?;
                }
                Some(Action::Finish) => return self.check_strays(crew),
                _ => {}
            }
        }
    }

    /// A key dropped as a stray under a rule that later turned out to be wrong was perhaps no stray.
    fn check_strays(&self, crew: &Crew) -> Result<(), EngineError> {
        match crew.strays_in_doubt() {
            0 => Ok(()),
            count => Err(EngineError::Source(format!(
                "{count} HyperLogLog keys were dropped as stale copies before it showed that the source places its keys by \
                 a rule that is not known (locktag flags?); run again: with what is known now nothing would be dropped"
            ))),
        }
    }

    /// Keys that an omitted DEL of the source may have left behind (wire 2.10).
    async fn ask_suspects(
        &mut self,
        target: &mut TargetLink,
        existing: &Existing,
        summaries: &[WorkerSummary],
    ) -> Result<(), EngineError> {
        self.report.suspects.asked = 0;
        let suspects: Vec<_> = summaries.iter().flat_map(|s| s.suspects.iter()).collect();
        if suspects.is_empty() {
            return Ok(());
        }
        let mut source = absent::ask_again(&self.settings, &self.source_process, suspects.len()).await?;
        for some in suspects.chunks(absent::KEYS_MAX) {
            let mut names: Vec<(DbIndex, &[u8])> = Vec::with_capacity(some.len());
            let mut places = Vec::with_capacity(some.len());
            for (db, key) in some {
                let (at, name) = self.settings.scope.at_target(*db, key)?;
                // Not written, for the target held it before.
                if !existing.contains(at, &name) {
                    names.push((*db, key));
                    places.push((at, name));
                }
            }
            self.report.suspects.asked += names.len() as u64;
            let exist = source.exist(&names).await?;
            for ((db, name), _) in places.iter().zip(exist).filter(|(_, exists)| !exists) {
                self.report.suspects.removed += u64::from(target::delete(target, *db, name).await?);
            }
        }
        Ok(())
    }

    async fn remove_markers(
        &mut self,
        target: &mut TargetLink,
        summaries: &[WorkerSummary],
    ) -> Result<(), EngineError> {
        if let Some(cluster) = target.cluster() {
            return cluster
                .delete_all(summaries.iter().flat_map(|s| s.marked.iter()).map(|(key, _)| key.clone()))
                .await;
        }
        for (marker, dbs) in summaries.iter().flat_map(|s| s.marked.iter()) {
            for db in dbs {
                target::delete(target, *db, marker).await?;
            }
        }
        Ok(())
    }
}

/// What was found of the source in the middle of a sync, which is not begun anew then.
fn for_migrate(error: EngineError) -> EngineError {
    match error {
        EngineError::SourceIsReplica(text) => EngineError::Source(standing::became_replica(&text)),
        EngineError::Void(text) => EngineError::Source(text),
        error => error,
    }
}
