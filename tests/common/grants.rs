//! What README.md lists as the least that a user needs at the target and at the source, line by line.
#![allow(dead_code)] // each test file uses a part

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

/// For `verify`, at either side that is no Dragonfly.
pub const TARGET_ACL_VERIFY: &str = "ACL SETUSER df2redis on >secret ~* +@read +info +select";
pub const TARGET_ACL_VERIFY_CLUSTER: &str = "ACL SETUSER df2redis +cluster|slots +cluster|nodes +asking";
/// Beside what `migrate` needs.
pub const TARGET_ACL_REPAIR: &str = "ACL SETUSER df2redis +client|list";

/// What a user needs at the source. README.md has the same lines.
pub const SOURCE_ACL: &str = "ACL SETUSER df2redis ON >secret ~* +PING +INFO +REPLCONF +DFLY +SELECT +EXISTS +TIME";
/// To fetch what was lost at the target, or stands in no record: only for `replicate`, and repairs by it.
pub const SOURCE_ACL_FETCH: &str = "ACL SETUSER df2redis +DUMP +PEXPIRETIME";
/// The fence of a cutover.
pub const SOURCE_ACL_CUTOVER: &str = "ACL SETUSER df2redis +CLIENT";
/// Whose answer is only good for a warning.
pub const SOURCE_ACL_CONFIG: &str = "ACL SETUSER df2redis +CONFIG";
/// For `verify`, and the comparisons of a cutover.
pub const SOURCE_ACL_VERIFY: &str =
    "ACL SETUSER df2redis ON >secret ~* +@READ +SCAN +DBSIZE +INFO +SELECT +TIME +XINFO +DUMP";

/// What Valkey's import mode takes at the target.
pub const TARGET_ACL_IMPORT: &str = "ACL SETUSER df2redis +config|get +config|set +client|import-source";
