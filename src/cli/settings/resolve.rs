//! From checked values to what the engine takes. Everything that concerns more than one setting is decided here.
//!
//! Where one setting excludes another's default (`--sqpoll` and deferred task work), the default gives way; where it
//! excludes what the operator said, the run is refused with both names.

use super::error::UsageError;
use super::layers::{Origin, Values};
use super::syntax;
use super::table::{self, Setting};
use crate::convert::{Policy, Scope, ScopeSpec};
use crate::engine::control::horizon_ms;
use crate::engine::hooks::Hooks;
use crate::engine::settings::{
    AtStop, Endpoint, Follow, MigrateSettings, NatMap, OnExisting, OnLostPosition, SPOOL_BYTES_DEFAULT, SpoolSettings,
};
use crate::operator::logging::{LogFormat, LogSettings};
use crate::operator::progress::ProgressForm;
use crate::uring::{ReadMode, RingSettings, TaskRun, WriteMode};

mod comparing;
mod places;
mod servers;

pub use comparing::{cutover, verify};
pub use places::{ControlPlace, control_of_compared, control_of_job, control_place, metrics};
use servers::{SOURCE_SIDE, TARGET_SIDE, endpoint};

/// Port where the URL names none: the default of Dragonfly, Redis and Valkey alike.
const PORT_DEFAULT: u16 = 6379;
/// The kernel's page, of which receive buffers are multiples.
const PAGE_BYTES: usize = 4096;

/// The place for large temporary files that are not to lie in memory.
pub const SPOOL_DIR_DEFAULT: &str = "/var/tmp";
/// `--spool` of those who want none (`./none` is a directory).
const SPOOL_NONE: &str = "none";

/// Form of what goes to standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputForm {
    Text,
    Json,
}

/// What concerns the terminal and not the run.
#[derive(Clone, Debug)]
pub struct Console {
    pub output: OutputForm,
    pub progress: ProgressForm,
    pub log: LogSettings,
}

/// The simulated source of `demo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DemoSettings {
    pub keys: u64,
    pub flows: u32,
    pub seed: u64,
}

/// What `migrate` needs.
pub fn migrate(values: &mut Values) -> Result<MigrateSettings, UsageError> {
    let source = endpoint(values, &SOURCE_SIDE)?;
    let target = endpoint(values, &TARGET_SIDE)?;
    if (&source.host, source.port) == (&target.host, target.port) {
        return Err(UsageError::Combination(
            "source and target are the same server; a copy onto itself would destroy it".into(),
        ));
    }
    let on_existing = match values.text(&table::ON_EXISTING)? {
        "replace" => OnExisting::Replace,
        "flush" => OnExisting::Flush,
        "skip" => OnExisting::Skip,
        _ => OnExisting::Refuse,
    };
    let settings = data_plane(values, source, target, on_existing)?;
    let shared_target = shared_target(values, on_existing)?;
    let source_first = values.switch(&table::SOURCE_FIRST)?;
    let wait_replicas = values.parsed(&table::WAIT_REPLICAS, syntax::wait_replicas)?;
    let source_may_crash = values.switch(&table::SOURCE_DANGER_BLOCKED_XREAD)?;
    let spool = spool(values)?;
    Ok(MigrateSettings { spool, source_first, shared_target, wait_replicas, source_may_crash, ..settings })
}

/// The default directory and size are found out when the run starts (`machine`).
fn spool(values: &mut Values) -> Result<Option<SpoolSettings>, UsageError> {
    let dir = values.path(&table::SPOOL).unwrap_or_else(|| SPOOL_DIR_DEFAULT.into());
    if dir.as_os_str() == SPOOL_NONE {
        if values.is_given(&table::SPOOL_MAX) {
            values.warn("spool-max has no effect with --spool none".into());
        }
        return Ok(None);
    }
    let bytes_max = match values.is_given(&table::SPOOL_MAX) {
        true => values.size(&table::SPOOL_MAX)? as u64,
        false => SPOOL_BYTES_DEFAULT,
    };
    Ok(Some(SpoolSettings { dir, bytes_max }))
}

/// What `replicate` needs.
pub fn replicate(values: &mut Values) -> Result<MigrateSettings, UsageError> {
    let on_lost_position = match values.text(&table::ON_LOST_POSITION)? {
        "resync" => OnLostPosition::Resync,
        _ => OnLostPosition::Stop,
    };
    let hooks = hooks(values)?;
    let hold_expiries_within = values.time(&table::HOLD_EXPIRIES_WITHIN)?;
    horizon_ms(hold_expiries_within).map_err(|why| values.wrong(&table::HOLD_EXPIRIES_WITHIN, &why))?;
    let expiries_at_stop = match values.text(&table::EXPIRIES_AT_STOP)? {
        "hold" => AtStop::Hold,
        _ => AtStop::PutRight,
    };
    let settings = MigrateSettings { hooks, ..migrate(values)? };
    let follow = Follow { on_lost_position, hold_expiries_within, expiries_at_stop };
    Ok(MigrateSettings { follow: Some(follow), ..settings })
}

fn hooks(values: &Values) -> Result<Hooks, UsageError> {
    let hook = |setting: &'static Setting| match values.path(setting) {
        Some(path) if !path.is_absolute() => Err(values.wrong(setting, "an absolute path is needed")),
        path => Ok(path),
    };
    Ok(Hooks {
        in_step: hook(&table::HOOK_IN_STEP)?,
        before_fence: hook(&table::HOOK_BEFORE_FENCE)?,
        after_fence: hook(&table::HOOK_AFTER_FENCE)?,
        drained: hook(&table::HOOK_DRAINED)?,
        handed_over: hook(&table::HOOK_HANDED_OVER)?,
        aborted: hook(&table::HOOK_ABORTED)?,
        timeout: values.time(&table::HOOK_TIMEOUT)?,
    })
}

/// What `demo` needs besides the servers, which it starts itself and passes here.
pub fn demo(values: &mut Values, source: Endpoint, target: Endpoint) -> Result<MigrateSettings, UsageError> {
    data_plane(values, source, target, OnExisting::Refuse)
}

pub fn demo_source(values: &Values) -> Result<DemoSettings, UsageError> {
    Ok(DemoSettings {
        keys: values.number(&table::KEYS)?,
        flows: values.number(&table::FLOWS)? as u32,
        seed: values.number(&table::SEED)?,
    })
}

/// What every subcommand needs; works also where `--progress` is not known.
pub fn console(values: &Values) -> Result<Console, UsageError> {
    let progress = match values.texts(&table::PROGRESS).first().map(String::as_str) {
        Some("bars") => ProgressForm::Bars,
        Some("lines") => ProgressForm::Lines,
        Some("off") | None => ProgressForm::Off,
        Some(_) => ProgressForm::Auto,
    };
    let output = if values.text(&table::OUTPUT_FORM)? == "json" { OutputForm::Json } else { OutputForm::Text };
    let format = if values.text(&table::LOG_FORMAT)? == "json" { LogFormat::Json } else { LogFormat::Text };
    let log = values.parsed(&table::LOG, |text| LogSettings::parse(text, format))?;
    Ok(Console { output, progress, log })
}

fn data_plane(
    values: &mut Values,
    source: Endpoint,
    target: Endpoint,
    on_existing: OnExisting,
) -> Result<MigrateSettings, UsageError> {
    let (cores, pin_cpus) = cores(values)?;
    batches(values)?;
    let settings = MigrateSettings {
        follow: None,
        spool: None,
        source_first: false,
        source,
        target,
        target_nat: target_nat(values)?,
        target_nodes: Default::default(),
        on_existing,
        shared_target: false,
        on_unsupported: policy(values)?,
        scope: scope(values, on_existing)?,
        cores,
        pin_cpus,
        memory_bytes: values.size(&table::MEMORY)?,
        connections: values.number(&table::CONNECTIONS)? as usize,
        batch_bytes: values.size(&table::BATCH_BYTES)?,
        window_bytes: values.size(&table::WINDOW_BYTES)?,
        borrow_bytes_min: values.size(&table::BORROW_BYTES)?,
        restore_bytes_max: values.size(&table::RESTORE_BYTES_MAX)?,
        rx_chunk_bytes: rx_chunk(values)?,
        ring: ring(values)?,
        connect_timeout: values.time(&table::CONNECT_TIMEOUT)?,
        clock_skew_max: values.time(&table::CLOCK_SKEW_MAX)?,
        retry_max: values.time(&table::RETRY_MAX)?,
        wait_replicas: None,
        source_may_crash: false,
        report_dir: values.path(&table::REPORT),
        hooks: Hooks::default(),
        control: Default::default(),
    };
    if settings.batch_bytes > settings.window_bytes {
        return Err(together(values, &table::BATCH_BYTES, &table::WINDOW_BYTES, "a batch must fit into the window"));
    }
    Ok(settings)
}

fn target_nat(values: &Values) -> Result<NatMap, UsageError> {
    NatMap::parse(values.texts(&table::TARGET_NAT)).map_err(|reason| values.wrong(&table::TARGET_NAT, &reason))
}

/// Jobs that share a target must not empty it, and find each other's keys there.
fn shared_target(values: &mut Values, on_existing: OnExisting) -> Result<bool, UsageError> {
    let shared = values.switch(&table::SHARED_TARGET)?;
    if shared && matches!(on_existing, OnExisting::Refuse | OnExisting::Flush) {
        return Err(UsageError::Combination(
            "shared-target = on needs on-existing = replace or skip: the target holds keys of other jobs, which must not be \
             deleted"
                .into(),
        ));
    }
    Ok(shared)
}

fn cores(values: &mut Values) -> Result<(usize, Vec<usize>), UsageError> {
    let pin_cpus = syntax::cpus(values.texts(&table::PIN)).map_err(|reason| values.wrong(&table::PIN, &reason))?;
    if !values.is_given(&table::CORES) {
        let (cores, origin) = if pin_cpus.is_empty() {
            (std::thread::available_parallelism().map_or(1, usize::from), Origin::Default)
        } else {
            (pin_cpus.len(), Origin::Follows("pin"))
        };
        values.set_default(&table::CORES, cores.min(1024).to_string(), origin);
    }
    let cores = values.number(&table::CORES)? as usize;
    if !pin_cpus.is_empty() && pin_cpus.len() < cores {
        return Err(together(values, &table::CORES, &table::PIN, "each worker needs a CPU of its own"));
    }
    Ok((cores, pin_cpus))
}

/// A batch must fit into the window: what was not said gives way to what was.
fn batches(values: &mut Values) -> Result<(), UsageError> {
    let (batch, window) = (values.size(&table::BATCH_BYTES)?, values.size(&table::WINDOW_BYTES)?);
    if batch > window {
        if !values.is_given(&table::BATCH_BYTES) {
            values.set_default(&table::BATCH_BYTES, window.to_string(), Origin::Follows("window-bytes"));
        } else if !values.is_given(&table::WINDOW_BYTES) {
            values.set_default(&table::WINDOW_BYTES, batch.to_string(), Origin::Follows("batch-bytes"));
        }
    }
    Ok(())
}

fn rx_chunk(values: &Values) -> Result<Option<usize>, UsageError> {
    if !values.is_given(&table::RX_CHUNK) {
        return Ok(None);
    }
    let bytes = values.size(&table::RX_CHUNK)?;
    if !bytes.is_multiple_of(PAGE_BYTES) {
        return Err(values.wrong(&table::RX_CHUNK, "it must be a multiple of 4KiB"));
    }
    // A flow needs one buffer being read, one being parsed, and some in flight to the target.
    if bytes.saturating_mul(8) > values.size(&table::MEMORY)? {
        return Err(together(
            values,
            &table::RX_CHUNK,
            &table::MEMORY,
            "at least eight receive buffers must fit into the memory",
        ));
    }
    Ok(Some(bytes))
}

fn ring(values: &mut Values) -> Result<RingSettings, UsageError> {
    let sqpoll_idle_ms = match values.is_given(&table::SQPOLL) {
        true => Some(values.number(&table::SQPOLL)? as u32),
        false => None,
    };
    // The kernel refuses every form of cooperative task work together with a polling thread.
    if sqpoll_idle_ms.is_some() && values.text(&table::TASKRUN)? != "interrupt" {
        give_way(
            values,
            &table::TASKRUN,
            "interrupt",
            &table::SQPOLL,
            "the kernel allows only --taskrun interrupt with --sqpoll",
        )?;
    }
    let registered_buffers = values.switch(&table::REGISTERED_BUFFERS)?;
    if !registered_buffers && values.text(&table::READ)? == "read-fixed" {
        give_way(
            values,
            &table::READ,
            "recv",
            &table::REGISTERED_BUFFERS,
            "--read read-fixed needs --registered-buffers on",
        )?;
    }
    let link = values.switch(&table::LINK)?;
    if !link && values.is_given(&table::LINK_BATCHES) {
        values.warn("link-batches has no effect with --link off".into());
    }
    let write = match values.text(&table::WRITE)? {
        "sendmsg-zc" => WriteMode::SendmsgZc,
        _ => WriteMode::Sendmsg,
    };
    if write == WriteMode::Sendmsg && values.is_given(&table::ZERO_COPY_BYTES) {
        values.warn("zero-copy-bytes has no effect without --write sendmsg-zc".into());
    }
    let sq_entries = values.number(&table::SQ_ENTRIES)? as u32;
    if !sq_entries.is_power_of_two() {
        return Err(values.wrong(&table::SQ_ENTRIES, "it must be a power of two"));
    }
    let link_batches_max = values.number(&table::LINK_BATCHES)? as usize;
    if link && link_batches_max as u64 > u64::from(sq_entries) / 2 {
        return Err(together(
            values,
            &table::LINK_BATCHES,
            &table::SQ_ENTRIES,
            "a chain must fit into half the submission queue",
        ));
    }
    Ok(RingSettings {
        sq_entries,
        taskrun: match values.text(&table::TASKRUN)? {
            "interrupt" => TaskRun::Interrupt,
            "coop" => TaskRun::Coop,
            _ => TaskRun::Defer,
        },
        sqpoll_idle_ms,
        registered_buffers,
        huge_pages: values.switch(&table::HUGE_PAGES)?,
        registered_ring: values.switch(&table::REGISTERED_RING)?,
        read: if values.text(&table::READ)? == "recv" { ReadMode::Recv } else { ReadMode::ReadFixed },
        write,
        zero_copy_bytes_min: values.size(&table::ZERO_COPY_BYTES)?,
        link,
        link_batches_max,
    })
}

/// `setting` becomes `text` because of `cause`; refused if the operator said something else.
fn give_way(
    values: &mut Values,
    setting: &'static Setting,
    text: &str,
    cause: &'static Setting,
    why: &str,
) -> Result<(), UsageError> {
    if values.is_given(setting) {
        return Err(together(values, setting, cause, why));
    }
    values.set_default(setting, text.to_string(), Origin::Follows(cause.name));
    Ok(())
}

/// Two settings that exclude each other, with their values.
fn together(values: &Values, a: &'static Setting, b: &'static Setting, why: &str) -> UsageError {
    let show = |setting: &'static Setting| format!("{} = {}", setting.name, values.texts(setting).join(","));
    UsageError::Combination(format!("{} and {} cannot go together: {why}", show(a), show(b)))
}

/// Which keys are carried, and as what.
fn scope(values: &Values, on_existing: OnExisting) -> Result<Scope, UsageError> {
    let scope = plain_scope(values)?;
    // The journal's DEL does not say of which type the key was.
    if scope.filters_types() && on_existing == OnExisting::Replace {
        return Err(UsageError::Combination(
            "filters by type cannot go together with on-existing = replace: when the source deletes a key of a type that is \
             left out, a key of the target's own of the same name would go too"
                .into(),
        ));
    }
    Ok(scope)
}

/// What the operator said of keys, names and databases.
fn plain_scope(values: &Values) -> Result<Scope, UsageError> {
    let texts = |setting: &Setting| values.texts(setting).to_vec();
    let spec = ScopeSpec {
        include_key: texts(&table::INCLUDE_KEY),
        exclude_key: texts(&table::EXCLUDE_KEY),
        include_prefix: texts(&table::INCLUDE_PREFIX),
        exclude_prefix: texts(&table::EXCLUDE_PREFIX),
        include_type: texts(&table::INCLUDE_TYPE),
        exclude_type: texts(&table::EXCLUDE_TYPE),
        include_db: texts(&table::INCLUDE_DB),
        exclude_db: texts(&table::EXCLUDE_DB),
        rewrite_prefix: texts(&table::REWRITE_PREFIX),
        db_map: texts(&table::DB_MAP),
        db_merge: values.texts(&table::DB_MERGE).iter().any(|text| text == "on"),
    };
    Scope::new(spec).map_err(|error| UsageError::Combination(error.to_string()))
}

fn policy(values: &Values) -> Result<Policy, UsageError> {
    Policy::parse(values.texts(&table::ON_UNSUPPORTED))
        .map_err(|error| values.wrong(&table::ON_UNSUPPORTED, &error.to_string()))
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
