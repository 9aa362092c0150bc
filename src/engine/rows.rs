//! From what the rooms count to the rows of the report.

use super::messages::Lost;
use crate::convert::journal::{Doubt, Note, NoteKind};
use crate::convert::{Action, NotCarried as Item, Tally, TypeClass, What};
use crate::report::document::{NotCarried, RingFeature, RunInputs, TypeRow};
use crate::uring::Features;

/// Adds one flow's counters to the table by type.
pub fn add_tally(report: &mut RunInputs, tally: &Tally) {
    for class in TypeClass::ALL {
        let counted = tally.of(class);
        if counted.keys_read == 0 {
            continue;
        }
        let position = match report.types.iter().position(|row| row.type_name == class.name()) {
            Some(position) => position,
            None => {
                report.types.push(TypeRow { type_name: class.name().to_string(), ..TypeRow::default() });
                report.types.len() - 1
            }
        };
        let row = &mut report.types[position];
        row.keys_read += counted.keys_read;
        row.keys_written += counted.keys_written;
        row.keys_expired += counted.keys_expired;
        if counted.keys_skipped > 0 {
            *row.keys_skipped.entry("unsupported".to_string()).or_default() += counted.keys_skipped;
        }
        row.elements += counted.elements_written;
        row.bytes += counted.bytes_read;
    }
    report.scripts_loaded += tally.scripts_loaded;
}

/// Adds a row for what `--on-existing skip` passed over: keys of the snapshot and recorded commands.
pub fn add_existing(report: &mut RunInputs, skipped: u64) {
    const NAME: &str = "existing";
    if skipped == 0 {
        return;
    }
    if !report.types.iter().any(|row| row.type_name == NAME) {
        report.types.push(TypeRow { type_name: NAME.to_string(), ..TypeRow::default() });
    }
    for row in report.types.iter_mut().filter(|row| row.type_name == NAME) {
        row.keys_read += skipped;
        *row.keys_skipped.entry("held by the target before".to_string()).or_default() += skipped;
    }
}

pub fn ring_features(features: &Features) -> Vec<RingFeature> {
    features
        .features
        .iter()
        .map(|feature| RingFeature { name: feature.name.to_string(), used: feature.used, note: feature.note.clone() })
        .collect()
}

/// A thing of the snapshot that was not carried over.
pub fn snapshot_item(item: Item) -> NotCarried {
    let reason = match (item.what, item.action) {
        (What::SearchIndex | What::SearchSynonyms, _) => "search indexes are not carried over".to_string(),
        (_, Action::Drop) => format!("{} of them dropped; the target cannot hold them", item.count),
        (_, Action::AsString) => "stored as a string; the target has no JSON module".to_string(),
        _ => "the target cannot hold it".to_string(),
    };
    NotCarried {
        db: item.db,
        key: crate::convert::escape::original(&item.key),
        kind: item.what.name().to_string(),
        action: item.action.to_string(),
        reason,
    }
}

/// A key that the target lost, and that was not fetched again before the job ended.
pub fn vanished(lost: Lost) -> NotCarried {
    NotCarried {
        db: lost.db.0,
        key: lost.key,
        kind: format!("doubtful-{:?}", Doubt::Vanished),
        action: "verify".to_string(),
        reason: "it vanished at the target, and the job ended before it was fetched again".to_string(),
    }
}

/// A node of a cluster that joined, or took over, while the job was away, and was given slots without a position.
pub fn unproven_node(id: &str) -> NotCarried {
    NotCarried {
        db: 0,
        key: id.as_bytes().to_vec(),
        kind: "doubtful-node".to_string(),
        action: "verify".to_string(),
        reason: "a node of the cluster with this id has slots, but none of those with the job's positions: whether it has lost data that \
                 was moved there is not known"
            .to_string(),
    }
}

/// A script whose text begins so, and which the target refused.
pub fn refused_script(text: Vec<u8>, error: &str) -> NotCarried {
    NotCarried {
        db: 0,
        key: text,
        kind: "script".to_string(),
        action: "skip".to_string(),
        reason: format!("the target cannot compile it ({error}); Dragonfly runs Lua 5.4, the targets 5.1"),
    }
}

/// A thing of the journal that was not carried over, or is to be verified.
pub fn journal_note(note: Note) -> NotCarried {
    let (kind, action, reason) = match note.kind {
        NoteKind::ExpiryDropped(kind) => (kind.name().to_string(), "drop", "its expiry cannot be held"),
        NoteKind::Skipped(kind) => (kind.name().to_string(), "skip", "the recorded command cannot be applied"),
        NoteKind::IndexNotCarried => ("search-index".to_string(), "skip", "search indexes are not carried over"),
        NoteKind::Doubtful(doubt) => (format!("doubtful-{doubt:?}"), "verify", "source and target may differ"),
    };
    NotCarried {
        db: note.db.0,
        key: note.key.into_vec(),
        kind,
        action: action.to_string(),
        reason: if note.command.is_empty() { reason.to_string() } else { format!("{}: {reason}", note.command) },
    }
}
