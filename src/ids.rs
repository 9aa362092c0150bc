//! The ids that every room shares, as newtypes, so that none can be taken for another.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// Number of a flow: 0..N-1, one for each shard of the source.
    FlowId,
    u32
);
id!(
    /// Log sequence number of a source shard's journal.
    Lsn,
    u64
);
id!(
    /// Logical database.
    DbIndex,
    u32
);
id!(
    /// Hash slot of a Redis Cluster, 0..16383.
    Slot,
    u16
);
