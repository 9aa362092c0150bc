//! How a session begins: with a full sync, or from the checkpoint's positions.
//!
//! In: the target's checkpoint, or the lack of one; a source. Out: a registration, its flows open and the workers started, and the
//! checkpoint that they write. Invariants: nothing is emptied before the source is known to hold something, unless the operator said
//! so; a position that cannot be had is `LostPosition`, and changes nothing.

use crate::convert::hold::Overflow;
use crate::dragonfly::session::{Directive, Session};
use crate::engine::checkpoint::{self, Checkpoint};
use crate::engine::crew::{Crew, CrewPlan};
use crate::engine::draining::positions_text;
use crate::engine::error::EngineError;
use crate::engine::handle::Existing;
use crate::engine::job::Job;
use crate::engine::lease;
use crate::engine::messages::Lost;
use crate::engine::own;
use crate::engine::phase::Phase;
use crate::engine::settings::OnExisting;
use crate::engine::source::Source;
use crate::engine::target::{self, Target, TargetLink};
use crate::ids::FlowId;
use crate::report::counters::Totals;
use std::collections::HashSet;
use std::sync::Arc;

/// What a session begins with.
pub(super) enum Begin {
    Full {
        owned: bool,
    },
    /// An earlier full sync, into a target that holds nothing else, did not reach its end, or its position is lost. The target is
    /// emptied only when the source answers as a master that has loaded its data and holds some: until then what the target
    /// holds may be all that is left.
    Again,
    Resume(Checkpoint),
}

/// A session that is to follow the source, from its full sync or from the checkpoint on.
pub(super) struct Begun {
    pub(super) source: Source,
    pub(super) session: Session,
    pub(super) crew: Crew,
    pub(super) checkpoint: Checkpoint,
}

impl Job<'_> {
    /// What the target's checkpoint, or the lack of one, means for the first session.
    pub(super) async fn first_begin(&mut self, target: &mut TargetLink, probed: &Target) -> Result<Begin, EngineError> {
        let settings = self.settings.clone();
        let flush = settings.on_existing == OnExisting::Flush;
        // Whatever state it is in: it goes with everything else.
        let found = match flush {
            true => None,
            false => checkpoint::read(target, &own::checkpoint_key(&settings)).await?,
        };
        match found {
            Some(checkpoint) if checkpoint.stable => {
                if checkpoint.scope != settings.scope.fingerprint() {
                    return Err(EngineError::Refused(format!(
                        "the target's checkpoint is of a job with other filters or names ({}); give the same ones to go on from \
                         it, or run with --on-existing flush",
                        if checkpoint.scope.is_empty() { "none" } else { &checkpoint.scope }
                    )));
                }
                self.touched = true;
                self.resumable = true;
                Ok(Begin::Resume(checkpoint))
            }
            Some(checkpoint) if checkpoint.owned => {
                tracing::warn!("an earlier run ended inside its full sync: the target is emptied and it begins anew");
                Ok(Begin::Again)
            }
            Some(checkpoint) => Err(EngineError::Refused(format!(
                "an earlier run into this target, which held keys of its own, ended inside its full sync: what it wrote cannot \
                 be told from the rest; say --on-existing flush, or clean the target and delete the key {}",
                checkpoint.key
            ))),
            None => {
                self.touched = flush && !probed.keyspace.is_empty();
                target::prepare(target, probed, &settings, self.lease.as_ref()).await?;
                let alone = probed.keyspace.is_empty() && !settings.shared_target;
                Ok(Begin::Full { owned: flush || alone })
            }
        }
    }

    pub(super) async fn full_again(&mut self, target: &mut TargetLink) -> Result<Begin, EngineError> {
        self.touched = true;
        self.resumable = false;
        self.check_lease()?;
        lease::flush_all(target, self.lease.as_ref(), &[b"FLUSHALL"]).await?;
        self.lost.clear();
        self.totals = Totals::new();
        self.report.not_carried = Default::default();
        Ok(Begin::Full { owned: true })
    }

    /// Everything up to the point at which the source is asked to send.
    pub(super) async fn begin_session(
        &mut self,
        target: &mut TargetLink,
        probed: &Target,
        mut begin: Begin,
    ) -> Result<Begun, EngineError> {
        let mut plan = CrewPlan {
            settings: self.settings.clone(),
            capabilities: probed.capabilities.clone(),
            databases: probed.databases,
            source: None,
            source_ahead_ms: self.source_ahead_ms(),
            existing: Arc::new(Existing::new()),
            process: probed.process.clone(),
            cluster: match &mut begin {
                Begin::Full { .. } | Begin::Again => self.cluster_plan(probed, None).await?,
                Begin::Resume(checkpoint) => self.cluster_plan(probed, Some(checkpoint)).await?,
            },
            lease: self.lease_watch(),
        };
        let mut source = self.connect_source().await?;
        plan.source = source.release();
        self.check_databases(&source, probed)?;
        let mut session = Session::new();
        let held = probed.capabilities.holds_expiries();
        let begin = match begin {
            Begin::Again => {
                // Perhaps it lost all, and what the target holds is all that is left.
                if !source.has_keys() && target::holds_keys(target, &self.settings).await? {
                    return Err(EngineError::SourceEmpty(
                        "it holds no key at all now, or may not be asked (INFO), so the target, which holds what it held, or a part of \
                         that, is not emptied for another full sync; if the source is meant to be empty, run with --on-existing flush"
                            .into(),
                    ));
                }
                self.full_again(target).await?
            }
            begin => begin,
        };
        let (crew, checkpoint) = match begin {
            Begin::Again => return Err(EngineError::Internal("a full sync begins anew twice".into())),
            Begin::Full { owned } => {
                let crew = self.open_full(&mut source, &mut session, plan).await?;
                let (master_id, flows) =
                    session.registration().map(|r| (r.master_id.clone(), r.flows)).unwrap_or_default();
                let scope = self.settings.scope.fingerprint();
                let key = own::checkpoint_key(&self.settings);
                let checkpoint = Checkpoint {
                    key,
                    master_id,
                    flows,
                    stable: false,
                    owned,
                    held,
                    lsns: Vec::new(),
                    scope,
                    lost: Vec::new(),
                    homes: Vec::new(),
                    nodes: Vec::new(),
                    flushing: false,
                };
                checkpoint::begin(target, &checkpoint).await?;
                (crew, checkpoint)
            }
            Begin::Resume(mut checkpoint) => {
                checkpoint::keep_lost(target, &checkpoint).await?;
                let known = std::mem::take(&mut checkpoint.lost);
                let ours: HashSet<Lost> = self.lost.iter().cloned().collect();
                self.lost.extend(known.into_iter().filter(|lost| !ours.contains(lost)));
                let mut crew = self.open_partial(&mut source, &checkpoint, plan).await?;
                crew.note_processes();
                if checkpoint.held {
                    crew.hold().add_unnamed(Overflow { keys: true, fields: probed.capabilities.field_expiry });
                }
                checkpoint.held |= held;
                checkpoint::set_held(target, &checkpoint.key, checkpoint.held).await?;
                (crew, checkpoint)
            }
        };
        Ok(Begun { source, session, crew, checkpoint })
    }

    /// Registers and opens all flows from the checkpoint's positions. A position that cannot be had is `LostPosition`.
    pub(super) async fn open_partial(
        &mut self,
        source: &mut Source,
        checkpoint: &Checkpoint,
        mut plan: CrewPlan,
    ) -> Result<Crew, EngineError> {
        self.enter(Phase::Flows);
        let lost = |why: String| {
            EngineError::LostPosition(format!(
                "{why}. The target holds everything up to its checkpoint ({}); only a full sync goes on from here \
                 (--on-lost-position resync, which empties the target, or a new run with --on-existing flush)",
                positions_text(&checkpoint.lsns.iter().map(|lsn| lsn.0).collect::<Vec<_>>())
            ))
        };
        let registration = source.register().await?;
        self.report.source.flows = registration.flows;
        if registration.master_id != checkpoint.master_id {
            return Err(lost(format!(
                "the source is another process ({}) than the one that the checkpoint is of ({}): it was restarted, or \
                 failed over",
                registration.master_id, checkpoint.master_id
            )));
        }
        if registration.flows != checkpoint.flows {
            return Err(lost(format!("the source has {} flows now, {} before", registration.flows, checkpoint.flows)));
        }
        if source.partial_way().is_none() {
            return Err(lost(format!(
                "the source's release ({}) leaves records out of a partial sync, so positions cannot be counted in it",
                source.version()
            )));
        }
        let flows = source.open_flows(Some(&checkpoint.lsns)).await?;
        let refused: Vec<FlowId> =
            flows.iter().filter(|flow| flow.opened.directive == Directive::Full).map(|flow| flow.start.id).collect();
        if !refused.is_empty() {
            let offsets = source.replica_offsets().await.unwrap_or_default();
            let behind: Vec<String> = refused
                .iter()
                .map(|flow| {
                    let wanted = checkpoint.lsns.get(flow.0 as usize).copied().unwrap_or_default();
                    let now = offsets.get(flow.0 as usize).copied().unwrap_or_default();
                    format!("flow {flow}: LSN {wanted} wanted, the source is at {now}")
                })
                .collect();
            return Err(lost(format!(
                "the source's backlog does not reach back to the checkpoint ({})",
                behind.join("; ")
            )));
        }
        if let Some(cluster) = &mut plan.cluster {
            cluster.sent_before = source.replica_offsets().await?.into();
        }
        let crew = Crew::start(plan, flows.into_iter().map(|flow| flow.start).collect()).await?;
        self.report.ring_features = crew.features();
        Ok(crew)
    }
}
