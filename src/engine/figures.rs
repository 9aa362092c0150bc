//! What a worker counts and tells: the sample of each second, and the summary at its end.

use super::messages::{Lost, WorkerEvent, WorkerSummary};
use super::worker::Worker;
use crate::convert::journal::{Doubt, NoteKind, Suspect};
use crate::report::counters::FlowSample;
use crate::report::document::{Expiries, Filtered};
use crate::uring;

/// Why a worker of a cluster stands still.
const UNSERVED: &str = "the cluster sends commands elsewhere, or cannot execute them yet: waiting until it does (a slot is on the move, \
                        or a node is away)";
/// Time between two samples.
pub(super) const SAMPLE_NS: u64 = 1_000_000_000;

impl Worker {
    pub(super) fn sample(&mut self, now_ns: u64) {
        self.next_sample_ns = now_ns + SAMPLE_NS;
        self.refresh_stats();
        let mut not_carried: Vec<_> = self.flows.iter_mut().flat_map(|flow| flow.handler.take_not_carried()).collect();
        not_carried.append(&mut self.refused_scripts);
        let _ = self.events.send(WorkerEvent::Sample {
            worker: self.index,
            stats: Box::new(self.stats.clone()),
            interval: Box::new(self.recorder.take_interval()),
            not_carried,
        });
    }

    pub(super) fn refresh_stats(&mut self) {
        let counters = self.ring.counters();
        self.stats.enters = counters.enters;
        self.stats.sqes = counters.sqes;
        self.stats.cqes = counters.cqes;
        self.stats.short_writes = counters.short_writes;
        self.stats.chain_breaks = counters.chain_breaks;
        self.stats.zero_copy_sends = counters.zc_sends;
        self.stats.zero_copy_copied = counters.zc_copied;
        self.stats.cpu_ns = uring::cpu::thread_cpu_ns();
        self.stats.unacked_bytes = self.lanes.iter().map(|lane| lane.unacked_bytes as u64).sum();
        self.stats.unacked_commands = self.lanes.iter().map(|lane| lane.unacked_commands).sum();
        self.stats.windows_full = self.lanes.iter().filter(|lane| lane.window_full).count() as u64;
        let now_ns = uring::clock::monotonic_ns();
        if let Some(spool) = &self.spool {
            self.stats.spool_bytes_written = spool.bytes_written;
            self.stats.spool_bytes_read = spool.bytes_read;
            self.stats.spool_bytes = spool.used_bytes();
            self.stats.spool_bytes_max = spool.bytes_max;
        }
        let refuses = self.lanes.iter().any(|lane| lane.in_cluster && lane.hold.is_some());
        self.stats.refusals = self.lanes.iter().filter_map(|lane| lane.hold.as_ref()).map(|h| h.text.clone()).collect();
        let lacking = self.unproven.as_ref().and_then(|unproven| unproven.shared().lacking());
        let refuses = refuses || lacking.is_some();
        self.stats.refusals.extend(lacking);
        if self.is_held_long(now_ns) {
            self.stats.refusals.push(UNSERVED.into());
        }
        let slab = self.ring.slab();
        self.stats.flows = self
            .flows
            .iter()
            .map(|flow| FlowSample {
                flow: flow.id.0,
                bytes_in: flow.bytes_in,
                keys: flow.handler.converter.tally().total().keys_read + flow.handler.counts.filtered.keys_total(),
                state: match refuses || self.lanes.get(flow.lane).is_some_and(|lane| lane.hold.is_some()) {
                    true => "held by the target",
                    false if flow.spent => "source gone, all applied",
                    false if self.gone.is_some() => "source gone",
                    false => flow.state.name(),
                },
                read_lsn: flow.stable.as_ref().map_or(0, |stable| stable.next_lsn.0),
                unread_ns: flow.unread_ns(now_ns),
                // While a worker is busy (or the process stopped) it reads nothing either.
                unread_ns_max: flow.reading.unread_ns_max.max(flow.unread_ns(now_ns)).max(self.away_ns_max),
                backlog_bytes: flow.backlog.bytes(slab),
            })
            .collect();
        self.stats.expiries_held = self.flows.iter().map(|flow| flow.handler.held_names_count() as u64).sum();
        self.stats.strays_dropped = self.flows.iter().map(|flow| flow.handler.counts.strays_dropped).sum();
        self.stats.keys = self.stats.flows.iter().map(|flow| flow.keys).sum();
    }

    pub(super) fn finish(mut self) -> WorkerSummary {
        self.refresh_stats();
        let mut summary = WorkerSummary {
            worker: self.index,
            tallies: Vec::new(),
            not_carried: std::mem::take(&mut self.refused_scripts),
            suspects: Vec::new(),
            lost: Vec::new(),
            strays_dropped: 0,
            owner_unknown: 0,
            existing_skipped: 0,
            expiries: Expiries::default(),
            filtered: Filtered::default(),
            journal_records: 0,
            journal_by_name: Vec::new(),
            marked: self.markers(),
            interval: self.recorder.take_interval(),
            stats: self.stats.clone(),
            source_version: None,
        };
        summary.lost.extend(self.doubtful.drain(..));
        for flow in &mut self.flows {
            let handler = &mut flow.handler;
            for Suspect { db, key, is_changed } in handler.suspects.drain() {
                if is_changed {
                    handler.translator.notes().add(db, &key, "", NoteKind::Doubtful(Doubt::PerhapsDeleted));
                }
                summary.suspects.push((db, key));
            }
            summary.not_carried.extend(handler.take_not_carried());
            for (name, counts) in handler.translator.by_name() {
                let seen = counts.written + counts.dropped + counts.left_out;
                summary.journal_by_name.push((name.to_string(), seen));
            }
            summary.tallies.push(handler.converter.tally().clone());
            summary.strays_dropped += handler.counts.strays_dropped;
            summary.owner_unknown += handler.counts.owner_unknown;
            summary.existing_skipped += handler.counts.existing_skipped;
            summary.expiries.held += handler.held.held_count;
            summary.expiries.held_at_end += handler.held_names_count() as u64;
            summary.expiries.not_named += handler.held.overflow_count;
            let ms = |ms: i64| ms.unsigned_abs();
            summary.expiries.held_ms_max = summary.expiries.held_ms_max.max(ms(handler.held.held_ms_max));
            summary.expiries.lagged_ms_max = summary.expiries.lagged_ms_max.max(ms(handler.held.lagged_ms));
            summary.expiries.passed_at_release += handler.counts.expired_at_release;
            summary.expiries.flows_at_risk += u64::from(handler.counts.expiry_passed);
            summary.filtered.add(&handler.counts.filtered);
            summary.expiries.fetched_again += handler.counts.fetched_again;
            summary.expiries.not_fetched += handler.counts.not_fetched;
            let id = flow.id;
            let lost = handler.doubts.take().into_iter();
            summary.lost.extend(lost.map(|(db, key)| Lost { flow: id, db, key: key.into_vec() }));
            summary.journal_records += handler.counts.journal_records;
            summary.source_version =
                summary.source_version.or_else(|| handler.converter.source_version().map(str::to_string));
        }
        summary
    }
}
