//! What to do with what the target cannot hold, and with keys that it holds already.

/// A kind of thing that some target cannot hold. Names (kebab case) are those of `--on-unsupported KIND=ACTION`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// JSON documents where the target has no JSON module: refuse, skip, string.
    Json,
    /// Bloom, CMS, TopK, cuckoo: refuse, skip.
    Filters,
    /// Expiry of a hash field where the target has none: refuse, drop.
    FieldExpiry,
    /// Expiry of a set member (no target has it): refuse, drop.
    MemberExpiry,
    /// A string longer than the target's proto-max-bulk-len: refuse, skip.
    LargeString,
    /// A recorded command without an equivalent (CL.THROTTLE ...): refuse, skip.
    Command,
    /// A pending entry of a consumer group whose message was deleted, in a stream too large for RESTORE: refuse, drop.
    DanglingPending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    Refuse,
    /// Leave the value out, list the key.
    Skip,
    /// Drop the expiry (or attribute), keep the value, list the key.
    Drop,
    /// JSON: store its text as a string.
    AsString,
}

/// `--on-unsupported`: one action for each kind.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Policy {
    /// Overrides by kind, in the order given.
    pub by_kind: Vec<(Kind, Action)>,
    /// `skip` for all: values that cannot be held are skipped, expiries that cannot be held are dropped.
    pub skip_all: bool,
}
