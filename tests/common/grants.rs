//! What README.md lists as the least that a user needs at the target, line by line.

/// README.md has the same line.
pub const TARGET_ACL: &str = "ACL SETUSER df2redis on >secret ~* +@write -@dangerous +restore +sort +select +info +command|list \
    +multi +exec +eval +script|load +get +hget +hexists +client|id +client|kill";
/// Only for some settings.
pub const TARGET_ACL_FLUSH: &str = "ACL SETUSER df2redis +flushall";
pub const TARGET_ACL_SKIP: &str = "ACL SETUSER df2redis +scan";
/// Only for `--wait-replicas`.
pub const TARGET_ACL_WAIT: &str = "ACL SETUSER df2redis +wait";
/// `replicate` looks for connections that a dead process may have left, and keeps a checkpoint.
pub const TARGET_ACL_REPLICATE: &str =
    "ACL SETUSER df2redis +client|setname +client|list +hgetall +hscan +flushall +flushdb +scan";
/// To hold near expiries back; `TARGET_ACL_FIELDS` where fields expire.
pub const TARGET_ACL_HOLD: &str = "ACL SETUSER df2redis +pttl +pexpiretime +time +type +hlen +hkeys +hscan +scan";
pub const TARGET_ACL_FIELDS: &str = "ACL SETUSER df2redis +hpexpiretime";
/// To decide claims in consumer groups as the source does.
pub const TARGET_ACL_CLAIM: &str = "ACL SETUSER df2redis +time +xpending +xrange";
/// What a cluster needs beside what its job needs.
pub const TARGET_ACL_CLUSTER: &str = "ACL SETUSER df2redis +cluster|shards +cluster|slots +cluster|info +cluster|nodes +asking \
    +dbsize +mget +dump +pexpiretime +pttl +lindex +client|setname +client|list";
