//! Names of what is the tool's own at the target: keys, and connections in `CLIENT LIST`.
//!
//! In: the settings. Out: names. A job alone at its target has the plain ones; under `--shared-target` each name bears the
//! job's tag, so that several jobs touch nothing of each other. Invariants: every key begins with `target::OWN_PREFIX`; the
//! same job (source as the operator named it, filters and names) has the same tag in every run.

use super::settings::MigrateSettings;
use crate::ids::{FlowId, Slot};
use crate::redis::slot;
use twox_hash::XxHash64;

/// Key of the checkpoint of a job that is alone.
pub const CHECKPOINT_KEY: &str = "df2redis:checkpoint";
/// Key of the lease; those of jobs that share a target go on with `:<tag>`.
pub const LEASE_KEY: &str = "df2redis:lease";
/// In a cluster the lease lies in the checkpoint's slot, so that one transaction holds both.
const LEASE_KEY_CLUSTER: &str = "df2redis:lease:{df2redis:checkpoint}";
/// Connections that carry data, so that those of a dead process can be found and ended.
pub const LANE_NAME: &str = "df2redis-lane";
/// Connections that execute global commands and keep the checkpoint.
pub const CONTROL_NAME: &str = "df2redis-control";
/// Connections that renew the lease.
pub const LEASE_NAME: &str = "df2redis-lease";

/// What tells this job from others at a shared target; empty for a job that is alone.
pub fn tag(settings: &MigrateSettings) -> String {
    if !settings.shared_target {
        return String::new();
    }
    let whole = format!("{}:{} {}", settings.source.host, settings.source.port, settings.scope.fingerprint());
    format!("{:016x}", XxHash64::oneshot(0, whole.as_bytes()))
}

pub fn checkpoint_key(settings: &MigrateSettings) -> String {
    tagged(CHECKPOINT_KEY, ':', &tag(settings))
}

/// The lease of a job that is alone; a mark of those that share the target.
pub fn lease_key(cluster: bool) -> String {
    if cluster { LEASE_KEY_CLUSTER } else { LEASE_KEY }.to_string()
}

/// The lease of this job among others.
pub fn shared_lease_key(settings: &MigrateSettings) -> String {
    tagged(LEASE_KEY, ':', &tag(settings))
}

pub fn lane_name(settings: &MigrateSettings) -> String {
    tagged(LANE_NAME, '-', &tag(settings))
}

pub fn control_name(settings: &MigrateSettings) -> String {
    tagged(CONTROL_NAME, '-', &tag(settings))
}

/// Key of the marker of a flow in a slot of a cluster; `tag`: the job's.
pub fn marker_key(tag: &str, flow: FlowId, slot: Slot) -> Vec<u8> {
    key_in_slot('m', tag, flow, slot)
}

/// Key of the position of a flow that a cluster's node keeps in this slot.
pub fn position_key(tag: &str, flow: FlowId, slot: Slot) -> Vec<u8> {
    key_in_slot('p', tag, flow, slot)
}

/// A key that lives inside of one transaction, in a slot of a cluster.
pub fn temporary_key(tag: &str, flow: FlowId, slot: Slot, number: usize) -> Vec<u8> {
    let mut key = key_in_slot('t', tag, flow, slot);
    key.extend_from_slice(format!(":{number}").as_bytes());
    key
}

/// Key that is set and deleted again where replicas are asked for; `slot`: of a cluster's node.
pub fn replicas_key(slot: Option<Slot>) -> Vec<u8> {
    match slot {
        Some(slot) => format!("df2redis:replicas:{{{}}}", slot::tag(slot)).into_bytes(),
        None => b"df2redis:replicas".to_vec(),
    }
}

fn key_in_slot(kind: char, tag: &str, flow: FlowId, slot: Slot) -> Vec<u8> {
    let mut key = format!("df2redis:{kind}:{{{}}}:{flow}", slot::tag(slot));
    if !tag.is_empty() {
        key.push(':');
        key.push_str(tag);
    }
    key.into_bytes()
}

fn tagged(name: &str, mark: char, tag: &str) -> String {
    if tag.is_empty() { name.to_string() } else { format!("{name}{mark}{tag}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_lie_in_their_slot_with_or_without_a_tag() {
        for tag in ["", "0123456789abcdef"] {
            let key = marker_key(tag, FlowId(12), Slot(77));
            assert_eq!(slot::slot(&key), Slot(77));
            assert!(key.starts_with(super::super::target::OWN_PREFIX.as_bytes()));
            let position = position_key(tag, FlowId(12), Slot(77));
            assert!(slot::slot(&position) == Slot(77) && position != key);
            let temporary = temporary_key(tag, FlowId(12), Slot(77), 3);
            assert!(slot::slot(&temporary) == Slot(77) && temporary.starts_with(b"df2redis:t:"));
        }
        assert_ne!(marker_key("", FlowId(1), Slot(7)), marker_key("a", FlowId(1), Slot(7)));
    }

    #[test]
    fn the_lease_of_a_cluster_lies_with_the_checkpoint() {
        assert_eq!(slot::slot(lease_key(true).as_bytes()), slot::slot(CHECKPOINT_KEY.as_bytes()));
    }
}
