//! The one table of settings: name, form, default and help of each, from which flags, environment, file and
//! `--print-config` are made.
//!
//! A setting `batch-bytes` is the flag `--batch-bytes`, the variable `DF2REDIS_BATCH_BYTES` and the TOML key
//! `batch-bytes`. To add one: a `static` here, its name in [`TABLE`], and the line in `resolve.rs` that uses it.
//!
//! Invariants (tests): names are unique; every default is valid in its own form; secrets have no flag; what turns a check off has
//! `danger` in its name, and is off.

/// What a value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Any text.
    Text,
    Path,
    /// `scheme://HOST:PORT`; never echoed, for people write passwords into it.
    Endpoint,
    /// `256MiB`, `32KiB`, or bytes.
    Size {
        min: u64,
        max: u64,
    },
    Count {
        min: u64,
        max: u64,
    },
    /// `30s`, `500ms`.
    Time,
    /// `on` or `off`.
    Switch,
    Choice(&'static [&'static str]),
    /// Values separated by commas; the flag may be repeated.
    List,
    /// Values that may hold commas; the flag may be repeated.
    Texts,
    /// Shown nowhere.
    Secret,
}

/// Which subcommands know a setting (a set of bits).
pub type Jobs = u8;
pub const MIGRATE: Jobs = 1;
pub const DEMO: Jobs = 2;
pub const PROBE: Jobs = 4;
pub const REPLICATE: Jobs = 8;
/// The subcommands that speak to a running job.
pub const CONTROLLING: Jobs = 16;
pub const VERIFY: Jobs = 32;
pub const CUTOVER: Jobs = 64;
/// All that find a running job by its control socket.
pub const ASKING: Jobs = CONTROLLING | CUTOVER;
/// The jobs between two servers of the user's that move data.
const SERVED: Jobs = MIGRATE | REPLICATE;
/// All jobs between two servers of the user's.
const BETWEEN: Jobs = SERVED | VERIFY;
/// The jobs that move data.
const DATA: Jobs = SERVED | DEMO;

/// Where a setting may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Places {
    /// Flag, environment, file.
    Everywhere,
    /// Environment and file: arguments are visible to everyone on the machine.
    NotFlag,
    /// Flag and environment.
    NotFile,
}

/// What holds where nothing is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    Value(&'static str),
    /// Found out when the run starts; the text is for the help.
    Computed(&'static str),
    /// Not set.
    None,
    /// Must be given.
    Required,
}

/// One setting.
#[derive(Debug)]
pub struct Setting {
    pub name: &'static str,
    pub value_name: &'static str,
    pub help: &'static str,
    /// Heading in the help.
    pub group: &'static str,
    pub form: Form,
    pub default: Fallback,
    pub places: Places,
    pub jobs: Jobs,
}

impl Setting {
    /// `DF2REDIS_BATCH_BYTES`.
    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.name.replace('-', "_").to_uppercase())
    }

    pub fn has_flag(&self) -> bool {
        self.places != Places::NotFlag
    }

    pub fn in_file(&self) -> bool {
        self.places != Places::NotFile
    }

    /// Whether the value must not be shown.
    pub fn is_secret(&self) -> bool {
        self.form == Form::Secret
    }
}

/// What all environment variables of this tool begin with.
pub const VARIABLE_PREFIX: &str = "DF2REDIS_";

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

const SERVERS: &str = "Servers";
const TLS: &str = "TLS";
const POLICY: &str = "Policies";
const FILTERS: &str = "Filters";
const RESOURCES: &str = "Resources";
const BATCHES: &str = "Batches";
const RING: &str = "io_uring";
const OPERATION: &str = "Operation";
const SWITCHING: &str = "Cutover";
const OUTPUT: &str = "Output";
const GENERATOR: &str = "Simulated source";
const COMPARISON: &str = "Comparison";

macro_rules! settings {
    ($($(#[$doc:meta])* $id:ident: $group:ident, $jobs:expr, $name:literal, $value:literal, $form:expr, $default:expr, $places:ident, $help:literal;)*) => {
        $($(#[$doc])* pub static $id: Setting = Setting {
            name: $name, value_name: $value, help: $help, group: $group, form: $form, default: $default,
            places: Places::$places, jobs: $jobs,
        };)*
        /// Every setting, in the order of the help.
        pub static TABLE: &[&Setting] = &[$(&$id),*];
    };
}

use Fallback::{Computed, None as Unset, Required, Value};
use Form::{Choice, Count, Endpoint, List, Path, Secret, Size, Switch, Text, Texts, Time};

settings! {
    SOURCE: SERVERS, BETWEEN | ASKING, "source", "URL", Endpoint, Required, Everywhere,
        "Where to copy from: dragonfly://HOST:PORT, or dragonflys:// for TLS";
    TARGET: SERVERS, BETWEEN | ASKING, "target", "URL", Endpoint, Required, Everywhere,
        "Where to copy to: redis://HOST:PORT or valkey://HOST:PORT, or rediss:// or valkeys:// for TLS";
    SOURCE_USER: SERVERS, BETWEEN, "source-user", "NAME", Secret, Unset, NotFlag,
        "ACL user at the source";
    SOURCE_PASSWORD: SERVERS, BETWEEN, "source-password", "PASSWORD", Secret, Unset, NotFlag,
        "Password at the source";
    SOURCE_PASSWORD_FILE: SERVERS, BETWEEN, "source-password-file", "FILE", Path, Unset, Everywhere,
        "Read the source's password from this file";
    TARGET_USER: SERVERS, BETWEEN, "target-user", "NAME", Secret, Unset, NotFlag,
        "ACL user at the target";
    TARGET_PASSWORD: SERVERS, BETWEEN, "target-password", "PASSWORD", Secret, Unset, NotFlag,
        "Password at the target";
    TARGET_PASSWORD_FILE: SERVERS, BETWEEN, "target-password-file", "FILE", Path, Unset, Everywhere,
        "Read the target's password from this file";
    TARGET_NAT: SERVERS, BETWEEN, "target-nat", "FROM=TO", List, Unset, Everywhere,
        "Connect to TO where the target cluster announces FROM: HOST=HOST or HOST:PORT=HOST:PORT; may be repeated";
    SOURCE_DANGER_BLOCKED_XREAD: SERVERS, SERVED, "source-danger-blocked-xread", "", Switch, Value("off"), Everywhere,
        "Register with a source of release 1.37.0 or 1.37.1 all the same: from then on until it is restarted it crashes whenever a blocked XREAD of any client is served";
    CONNECT_TIMEOUT: SERVERS, DATA | VERIFY, "connect-timeout", "TIME", Time, Value("10s"), Everywhere,
        "Give up on connecting, and on answers to the handshake, after this time";

    RETRY_MAX: SERVERS, DATA, "retry-max", "TIME", Time, Value("5m"), Everywhere,
        "Go on trying for so long where the target refuses (out of memory, disk full, loading, busy) or its connection is lost";

    WAIT_REPLICAS: SERVERS, SERVED, "wait-replicas", "N[:TIME]", Text, Value("0"), Everywhere,
        "Tell the source, and a cluster's checkpoint, of nothing that N replicas of the target (of each node) have not confirmed, so that one that takes over lacks nothing below a position; TIME: of one WAIT, 1s if not given";

    CLOCK_SKEW_MAX: SERVERS, DATA, "clock-skew-max", "TIME", Time, Value("1s"), Everywhere,
        "Refuse to start where the clocks of source and target are further apart: expiries are absolute times";

    SOURCE_TLS_CA: TLS, BETWEEN, "source-tls-ca", "FILE", Path, Unset, Everywhere,
        "Trust the CA certificates in this PEM file, and no others, to sign the source's certificate; else the system's";
    SOURCE_TLS_CERT: TLS, BETWEEN, "source-tls-cert", "FILE", Path, Unset, Everywhere,
        "Own certificate (and chain) to show to the source, PEM";
    SOURCE_TLS_KEY: TLS, BETWEEN, "source-tls-key", "FILE", Path, Unset, Everywhere,
        "Key of that certificate, PEM, without a passphrase";
    SOURCE_TLS_SERVER_NAME: TLS, BETWEEN, "source-tls-server-name", "NAME", Text, Unset, Everywhere,
        "Name that the source's certificate must bear, where it is not the host of the URL";
    SOURCE_TLS_DANGER: TLS, BETWEEN, "source-tls-danger-accept-any-cert", "", Switch, Value("off"), Everywhere,
        "Accept every certificate of the source: whoever is in between can read and change everything";
    TARGET_TLS_CA: TLS, BETWEEN, "target-tls-ca", "FILE", Path, Unset, Everywhere,
        "Trust the CA certificates in this PEM file, and no others, to sign the target's certificate; else the system's";
    TARGET_TLS_CERT: TLS, BETWEEN, "target-tls-cert", "FILE", Path, Unset, Everywhere,
        "Own certificate (and chain) to show to the target, PEM";
    TARGET_TLS_KEY: TLS, BETWEEN, "target-tls-key", "FILE", Path, Unset, Everywhere,
        "Key of that certificate, PEM, without a passphrase";
    TARGET_TLS_SERVER_NAME: TLS, BETWEEN, "target-tls-server-name", "NAME", Text, Unset, Everywhere,
        "Name that the target's certificate must bear, where it is not the host of the URL";
    TARGET_TLS_DANGER: TLS, BETWEEN, "target-tls-danger-accept-any-cert", "", Switch, Value("off"), Everywhere,
        "Accept every certificate of the target: whoever is in between can read and change everything";

    ON_EXISTING: POLICY, SERVED, "on-existing", "", Choice(&["refuse", "replace", "flush", "skip"]), Value("refuse"), Everywhere,
        "What to do with a target that holds keys: do not start; overwrite keys that the source has too; FLUSHALL first; leave its keys as they are";
    SHARED_TARGET: POLICY, SERVED, "shared-target", "", Switch, Value("off"), Everywhere,
        "Let other jobs write to the target at the same time, all of them with this and none with a key of another; needs --on-existing replace or skip";
    ON_UNSUPPORTED: POLICY, DATA | VERIFY, "on-unsupported", "POLICY", List, Value("refuse"), Everywhere,
        "What to do with what the target cannot hold: refuse, skip, or KIND=ACTION for one kind (json=string, filters=skip, field-expiry=drop, member-expiry=drop, large-string=skip, command=skip, dangling-pending=drop); may be repeated";

    ON_LOST_POSITION: POLICY, REPLICATE, "on-lost-position", "", Choice(&["stop", "resync"]), Value("stop"), Everywhere,
        "When the source cannot go on from the target's checkpoint: stop and say how far; or empty the target and take a full sync again";

    HOLD_EXPIRIES_WITHIN: POLICY, REPLICATE, "hold-expiries-within", "TIME", Time, Value("1h"), Everywhere,
        "Tell the target of expiries nearer than this only when no renewal of them can follow any more, so that a key that the source renews never vanishes while the target is late or this tool away; 10s at least";
    EXPIRIES_AT_STOP: POLICY, REPLICATE, "expiries-at-stop", "", Choice(&["put-right", "hold"]), Value("put-right"), Everywhere,
        "When told to stop: put held expiries right, so that the target is as the source is; or keep them held, for a restart of this job soon after";

    INCLUDE_KEY: FILTERS, BETWEEN, "include-key", "GLOB", Texts, Unset, Everywhere,
        "Carry only keys that match, as in user:* (glob as in SCAN MATCH) or begin with an --include-prefix; may be repeated, as all filters may";
    EXCLUDE_KEY: FILTERS, BETWEEN, "exclude-key", "GLOB", Texts, Unset, Everywhere,
        "Leave out keys that match";
    INCLUDE_PREFIX: FILTERS, BETWEEN, "include-prefix", "PREFIX", Texts, Unset, Everywhere,
        "Carry only keys that begin with this, or match an --include-key";
    EXCLUDE_PREFIX: FILTERS, BETWEEN, "exclude-prefix", "PREFIX", Texts, Unset, Everywhere,
        "Leave out keys that begin with this";
    INCLUDE_TYPE: FILTERS, BETWEEN, "include-type", "TYPES", List, Unset, Everywhere,
        "Carry only these types: string, list, set, hash, zset, stream, json, filter";
    EXCLUDE_TYPE: FILTERS, BETWEEN, "exclude-type", "TYPES", List, Unset, Everywhere,
        "Leave out these types";
    INCLUDE_DB: FILTERS, BETWEEN, "include-db", "DBS", List, Unset, Everywhere,
        "Carry only these databases of the source, as in 0,3";
    EXCLUDE_DB: FILTERS, BETWEEN, "exclude-db", "DBS", List, Unset, Everywhere,
        "Leave out these databases of the source";
    DB_MAP: FILTERS, BETWEEN, "db-map", "PAIRS", List, Unset, Everywhere,
        "Databases at the target, SOURCE:TARGET as in 0:0,1:3 (*:0: all others); what is not named keeps its number";
    DB_MERGE: FILTERS, BETWEEN, "db-merge", "", Switch, Value("off"), Everywhere,
        "Let several databases of the source go into one of the target; of two keys of one name one is lost";
    REWRITE_PREFIX: FILTERS, BETWEEN, "rewrite-prefix", "OLD=NEW", Texts, Unset, Everywhere,
        "Keys that begin with OLD begin with NEW at the target, as in old:=new: (the longest OLD counts)";

    CORES: RESOURCES, DATA, "cores", "N", Count { min: 1, max: 1024 }, Computed("the number of CPUs"), Everywhere,
        "Workers, each with its own ring; at most one a flow is used";
    PIN: RESOURCES, DATA, "pin", "CPUS", List, Unset, Everywhere,
        "Pin worker i to the i-th of these CPUs, as in 0,2,4-7";
    MEMORY: RESOURCES, DATA | VERIFY, "memory", "SIZE", Size { min: 16 * MIB, max: TIB }, Value("256MiB"), Everywhere,
        "All memory for data, shared out among the workers";
    SPOOL: RESOURCES, SERVED, "spool", "DIR", Path, Computed("$STATE_DIRECTORY, else $TMPDIR, else /var/tmp"), Everywhere,
        "Where to keep, in a file without a name, what was read from the source while the target is slow or away; none: nowhere";
    SPOOL_MAX: RESOURCES, SERVED, "spool-max", "SIZE", Size { min: MIB, max: 1024 * TIB }, Computed("4GiB, at most half of the free space"), Everywhere,
        "Most disk space for that; when it is used up, the source is let go";
    SOURCE_FIRST: RESOURCES, SERVED, "source-first", "", Switch, Value("off"), Everywhere,
        "Read the snapshot as fast as the source sends it, into the spool where the target is slower";
    CONNECTIONS: RESOURCES, DATA, "connections", "N", Count { min: 1, max: 64 }, Value("2"), Everywhere,
        "Connections of each worker to each target node";

    BATCH_BYTES: BATCHES, DATA, "batch-bytes", "SIZE", Size { min: 4 * KIB, max: 4 * MIB }, Value("512KiB"), Everywhere,
        "A batch is sent when it has this size, or when the wire is idle";
    WINDOW_BYTES: BATCHES, DATA, "window-bytes", "SIZE", Size { min: 16 * KIB, max: GIB }, Value("3MiB"), Everywhere,
        "Most bytes sent and not yet answered on one connection";
    BORROW_BYTES: BATCHES, DATA, "borrow-bytes", "SIZE", Size { min: 64, max: GIB }, Value("2KiB"), Everywhere,
        "Values of at least this size are sent from where they were received instead of being copied";
    RESTORE_BYTES_MAX: BATCHES, DATA, "restore-bytes-max", "SIZE", Size { min: 0, max: 512 * MIB }, Value("128KiB"), Everywhere,
        "Objects up to this size go as one RESTORE, larger ones as chunked commands";
    RX_CHUNK: BATCHES, DATA, "rx-chunk", "SIZE", Size { min: 4 * KIB, max: 64 * MIB }, Computed("from --memory and the number of flows"), Everywhere,
        "Size of a receive buffer; a multiple of 4KiB";

    READ: RING, DATA, "read", "", Choice(&["read-fixed", "recv"]), Value("read-fixed"), Everywhere,
        "How flows are read: into registered buffers, or plainly";
    WRITE: RING, DATA, "write", "", Choice(&["sendmsg", "sendmsg-zc"]), Value("sendmsg"), Everywhere,
        "How batches are sent: copied by the kernel, or zero-copy from --zero-copy-bytes on";
    ZERO_COPY_BYTES: RING, DATA, "zero-copy-bytes", "SIZE", Size { min: 0, max: GIB }, Value("16KiB"), Everywhere,
        "Batches of at least this size are sent zero-copy with --write sendmsg-zc";
    LINK: RING, DATA, "link", "", Switch, Value("on"), Everywhere,
        "Send ready batches as one chain of linked writes; off: one batch in flight a connection";
    LINK_BATCHES: RING, DATA, "link-batches", "N", Count { min: 1, max: 64 }, Value("8"), Everywhere,
        "Most batches in one chain";
    REGISTERED_BUFFERS: RING, DATA, "registered-buffers", "", Switch, Value("on"), Everywhere,
        "Register the data memory with the kernel (needed by --read read-fixed)";
    REGISTERED_RING: RING, DATA, "registered-ring", "", Switch, Value("on"), Everywhere,
        "Register the ring's own descriptor";
    HUGE_PAGES: RING, DATA, "huge-pages", "", Switch, Value("on"), Everywhere,
        "Ask for transparent huge pages for the data memory";
    TASKRUN: RING, DATA, "taskrun", "", Choice(&["defer", "coop", "interrupt"]), Value("defer"), Everywhere,
        "When the kernel completes requests: when asked, at the next system call, or at once";
    SQPOLL: RING, DATA, "sqpoll", "MS", Count { min: 1, max: 60_000 }, Unset, Everywhere,
        "A kernel thread polls for requests and sleeps after this many idle milliseconds; it burns a core, and needs --taskrun interrupt";
    SQ_ENTRIES: RING, DATA, "sq-entries", "N", Count { min: 32, max: 4096 }, Value("256"), Everywhere,
        "Entries of each worker's submission queue; a power of two";

    KEYS: GENERATOR, DEMO, "keys", "N", Count { min: 1, max: 1_000_000_000 }, Value("300000"), Everywhere,
        "Keys of the simulated source";
    FLOWS: GENERATOR, DEMO, "flows", "N", Count { min: 1, max: 1024 }, Value("4"), Everywhere,
        "Flows (shards) of the simulated source";
    SEED: GENERATOR, DEMO, "seed", "N", Count { min: 0, max: u64::MAX }, Value("1"), Everywhere,
        "The same seed gives the same keys";

    MODE: COMPARISON, VERIFY, "mode", "", Choice(&["count", "sample", "full"]), Value("full"), Everywhere,
        "Compare the number of keys, the values of a sample of the keys, or all keys and values";
    SAMPLE: COMPARISON, VERIFY | CUTOVER, "sample", "N|P%", Text, Value("1%"), Everywhere,
        "Size of a sample: about so many keys, or so much of every hundred";
    SAMPLE_SEED: COMPARISON, VERIFY | CUTOVER, "sample-seed", "N", Count { min: 0, max: u64::MAX }, Value("1"), Everywhere,
        "The same seed chooses the same keys";
    RATE: COMPARISON, VERIFY, "rate", "N|SIZE", Text, Value("20000"), Everywhere,
        "Most keys (20000), or bytes (50MiB), read from the source in a second; off: no limit";
    LAG_MAX: COMPARISON, VERIFY, "lag-max", "TIME", Time, Value("10s"), Everywhere,
        "A key that differs is looked at again for this long before it counts; longer than the target ever lags";
    EXPIRY_TOLERANCE: COMPARISON, VERIFY, "expiry-tolerance", "TIME", Time, Value("1s"), Everywhere,
        "Expiries nearer to each other than this are equal; more than the servers' clocks differ";
    RESUME: COMPARISON, VERIFY, "resume", "FILE", Path, Unset, Everywhere,
        "Keep the position in this file, and go on from it after an interruption; removed at the end";
    REPAIR: COMPARISON, VERIFY, "repair", "", Choice(&["off", "copy", "mirror"]), Value("off"), Everywhere,
        "Copy keys that differ again; mirror: also delete keys that the source does not have. A running replicate is asked to do it";

    CONTROL: OPERATION, SERVED | ASKING | VERIFY, "control", "PATH", Path, Computed("by source and target, in $XDG_RUNTIME_DIR/df2redis, /run/df2redis or the directory for temporary files"), Everywhere,
        "Unix socket through which a running job is watched and told what to do; off: none";

    METRICS: OPERATION, SERVED, "metrics", "ADDR", Text, Unset, Everywhere,
        "Serve /metrics (Prometheus), /healthz and /readyz (in step) at this port of the loopback interface, or at this HOST:PORT";

    BUDGET: SWITCHING, CUTOVER, "budget", "TIME", Time, Value("5s"), Everywhere,
        "Longest time for which writes at the source are held; everything must be done within it, or it is rolled back";
    CUTOVER_VERIFY: SWITCHING, CUTOVER, "verify", "", Choice(&["none", "count", "sample", "full"]), Value("count"), Everywhere,
        "Compare before the traffic is switched: nothing; the number of keys of each database; the values of a sample that is chosen before the fence; all keys and values";
    VERIFY_RATE: SWITCHING, CUTOVER, "verify-rate", "N|SIZE", Text, Value("off"), Everywhere,
        "Most keys (20000), or bytes (50MiB), that --verify reads from the fenced source in a second; off: no limit";
    HOOK: SWITCHING, CUTOVER, "hook", "PATH", Path, Unset, Everywhere,
        "Program that switches the traffic, called when source and target are proven equal";
    LAG_ENTRIES_MAX: SWITCHING, CUTOVER, "lag-entries-max", "N", Count { min: 0, max: u64::MAX }, Value("10000"), Everywhere,
        "Do not fence while the target is more entries behind than this";
    WAIT: SWITCHING, CUTOVER, "wait", "TIME", Time, Value("10s"), Everywhere,
        "How long to wait for the target to come as near as --lag-entries-max";
    HOOK_TIMEOUT: SWITCHING, REPLICATE | CUTOVER, "hook-timeout", "TIME", Time, Value("10s"), Everywhere,
        "Kill a hook that takes longer; inside the fence never longer than what is left of the budget";
    HOOK_IN_STEP: SWITCHING, REPLICATE, "hook-in-step", "PATH", Path, Unset, Everywhere,
        "Program called when the target is in step for the first time";
    HOOK_BEFORE_FENCE: SWITCHING, REPLICATE, "hook-before-fence", "PATH", Path, Unset, Everywhere,
        "Program called before a cutover fences the source; if it fails, nothing is fenced";
    HOOK_AFTER_FENCE: SWITCHING, REPLICATE, "hook-after-fence", "PATH", Path, Unset, Everywhere,
        "Program called when the source is fenced";
    HOOK_DRAINED: SWITCHING, REPLICATE, "hook-drained", "PATH", Path, Unset, Everywhere,
        "Program called when source and target are proven equal";
    HOOK_HANDED_OVER: SWITCHING, REPLICATE, "hook-handed-over", "PATH", Path, Unset, Everywhere,
        "Program called when a cutover is done";
    HOOK_ABORTED: SWITCHING, REPLICATE, "hook-aborted", "PATH", Path, Unset, Everywhere,
        "Program called when a cutover was rolled back";

    OUTPUT_FORM: OUTPUT, DATA | PROBE | ASKING | VERIFY, "output", "", Choice(&["text", "json"]), Value("text"), Everywhere,
        "Form of the report on standard output";
    REPORT: OUTPUT, DATA, "report", "DIR", Path, Unset, Everywhere,
        "Write report.json, histograms (.hgrm, .hlog) and not-carried.jsonl to this directory";
    PROGRESS: OUTPUT, DATA | VERIFY, "progress", "", Choice(&["auto", "bars", "lines", "off"]), Value("auto"), Everywhere,
        "Progress on standard error; auto: bars on a terminal, lines otherwise";
    LOG: OUTPUT, DATA | PROBE | ASKING | VERIFY, "log", "FILTER", Text, Value("warn"), Everywhere,
        "What to log to standard error: error, warn, info, debug, trace, or filters by module";
    LOG_FORMAT: OUTPUT, DATA | PROBE | ASKING | VERIFY, "log-format", "", Choice(&["text", "json"]), Value("text"), Everywhere,
        "Form of the log";
    CONFIG: OUTPUT, DATA | PROBE | ASKING | VERIFY, "config", "FILE", Path, Unset, NotFile,
        "Read settings from this TOML file; flags and environment go before it";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::settings::syntax;

    #[test]
    fn names_are_unique_and_defaults_valid() {
        for (i, setting) in TABLE.iter().enumerate() {
            assert!(TABLE[..i].iter().all(|other| other.name != setting.name), "{}", setting.name);
            if let Value(text) = setting.default {
                syntax::check(setting, text).unwrap_or_else(|reason| panic!("{}: {reason}", setting.name));
            }
            assert!(!(setting.is_secret() && setting.has_flag()), "{}", setting.name);
        }
        let memory = crate::engine::settings::MEMORY_BYTES_DEFAULT >> 20;
        assert!(matches!(MEMORY.default, Value(text) if text == format!("{memory}MiB")));
    }

    /// What can be turned on or off, and turns no check off: with either of two values everything that is checked with the other one
    /// is checked. Whoever adds a switch says here that it does not, or has `danger` in its name.
    const HARMLESS: &[&str] = &[
        // Of the jobs that share it each one still takes no key of another's, and refuses what is there already.
        "shared-target",
        // What meets is still told, key by key.
        "db-merge",
        "source-first",
        "link",
        "registered-buffers",
        "registered-ring",
        "huge-pages",
        // Limits of speed, progress, where to be asked: `off` is none.
        "rate",
        "verify-rate",
        "control",
        "progress",
        // Whether `verify` writes; `off` is the default.
        "repair",
    ];

    #[test]
    fn what_turns_a_check_off_is_called_danger() {
        for setting in TABLE {
            let is_dangerous = setting.name.contains("danger");
            let can_be_off = setting.form == Switch
                || matches!(setting.form, Choice(values) if values.contains(&"off"))
                || setting.help.contains("; off:");
            assert!(
                !can_be_off || is_dangerous || HARMLESS.contains(&setting.name),
                "{} turns off what?",
                setting.name
            );
            // A certificate is checked unless danger is asked for: nothing else of TLS is a matter of on and off.
            assert!(setting.group != TLS || !can_be_off || is_dangerous, "{}", setting.name);
            if is_dangerous {
                assert!(setting.form == Switch && matches!(setting.default, Value("off")), "{}", setting.name);
            }
        }
    }
}
