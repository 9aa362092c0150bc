//! Settings whose defaults depend on the machine that the run starts on.
//!
//! In: resolved settings. Out: the same, with what this machine cannot give taken back, and a warning that says so. What
//! the operator asked for by name is left alone: it works, or the run is refused with cause and remedy.

use super::settings::{Values, resolve, table};
use crate::engine::settings::{Endpoint, MigrateSettings, locked_bytes};
use crate::report::numbers;
use crate::uring::{Memlock, ReadMode, UnnamedFile, cpu, free_bytes};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Takes back what this machine cannot give.
pub fn fit(values: &mut Values, settings: &mut MigrateSettings) {
    guard_secrets(values, &settings.source, &settings.target);
    cpu::raise_memlock();
    fit_locked_memory(values, settings, cpu::memlock());
    fit_spool(values, settings, spool_dir(|name| std::env::var_os(name)));
}

/// The directory for the spool where nobody named one: a service's own, or the one for large temporary files.
fn spool_dir(variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let named = |name| variable(name).filter(|value| !value.is_empty());
    // systemd separates several by colons.
    let state = named("STATE_DIRECTORY")
        .and_then(|dirs| dirs.as_bytes().split(|b| *b == b':').next().map(|dir| PathBuf::from(OsStr::from_bytes(dir))));
    state.or_else(|| named("TMPDIR").map(PathBuf::from)).unwrap_or_else(|| resolve::SPOOL_DIR_DEFAULT.into())
}

/// A spool that nobody asked for gives way to a disk that has no room, or no such directory.
fn fit_spool(values: &mut Values, settings: &mut MigrateSettings, default_dir: PathBuf) {
    let Some(spool) = &mut settings.spool else { return };
    if !values.is_given(&table::SPOOL) {
        spool.dir = default_dir;
        if let Err(cause) = UnnamedFile::open(&spool.dir) {
            values.warn(format!(
                "there is no spool, because no file can be made in {} ({cause}): the source will have to wait for a slow target; \
                 name a directory with --spool, or say --spool none",
                spool.dir.display()
            ));
            settings.spool = None;
            return;
        }
    }
    if !values.is_given(&table::SPOOL_MAX)
        && let Ok(free) = free_bytes(&spool.dir)
    {
        spool.bytes_max = spool.bytes_max.min(free / 2);
    }
}

/// With secrets in memory there are no core dumps of this process, and no other user's debugger may look into it.
pub fn guard_secrets(values: &mut Values, source: &Endpoint, target: &Endpoint) {
    let holds = |side: &Endpoint| {
        side.password.expose().is_some() || side.tls.as_ref().is_some_and(|tls| tls.files().key.is_some())
    };
    if (holds(source) || holds(target))
        && let Err(cause) = cpu::forbid_dumps()
    {
        values.warn(format!("core dumps of this process, which would hold its secrets, cannot be forbidden: {cause}"));
    }
}

/// Without registered buffers where they cannot be locked: a little slower is better than not at all.
fn fit_locked_memory(values: &mut Values, settings: &mut MigrateSettings, memlock: Memlock) {
    let needed = locked_bytes(settings.memory_bytes);
    let Some(limit) = memlock.too_little_for(needed).filter(|_| settings.ring.registered_buffers) else { return };
    if values.is_given(&table::REGISTERED_BUFFERS) || values.is_given(&table::READ) {
        return;
    }
    settings.ring.registered_buffers = false;
    settings.ring.read = ReadMode::Recv;
    values.warn(format!(
        "the buffers are not registered with the kernel, because only {} of memory may be locked and they take {}: raise the \
         limit (ulimit -l {}, LimitMEMLOCK=, docker run --ulimit memlock=-1) or say --registered-buffers off",
        numbers::bytes(limit),
        numbers::bytes(needed),
        needed / 1024
    ));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::settings::{Environment, Flags};
    use crate::engine::settings::SpoolSettings;

    fn fitted(flags: &[(&'static str, &str)], limit_bytes: Option<u64>, exempt: bool) -> (bool, usize) {
        let mut given = Flags::default();
        for (name, text) in [("source", "dragonfly://a"), ("target", "redis://b")].iter().chain(flags) {
            given.given.insert(name, vec![text.to_string()]);
        }
        let mut values = Values::merge(table::MIGRATE, &given, &Environment::of(Vec::new())).unwrap();
        let mut settings = resolve::migrate(&mut values).unwrap();
        fit_locked_memory(&mut values, &mut settings, Memlock { limit_bytes, exempt });
        assert_eq!(settings.ring.registered_buffers, settings.ring.read == ReadMode::ReadFixed);
        (settings.ring.registered_buffers, values.warnings().len())
    }

    #[test]
    fn too_little_locked_memory_gives_way_unless_asked_for() {
        assert_eq!(fitted(&[], Some(8 << 20), false), (false, 1));
        assert_eq!(fitted(&[("memory", "16MiB")], Some(8 << 20), false), (true, 0));
        assert_eq!(fitted(&[("registered-buffers", "on")], Some(8 << 20), false), (true, 0));
        assert_eq!(fitted(&[], Some(8 << 20), true), (true, 0));
        assert_eq!(fitted(&[], None, false), (true, 0));
    }

    #[test]
    fn the_spool_is_where_the_machine_says() {
        let dir_with = |given: &[(&str, &str)]| {
            spool_dir(|name| given.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into()))
        };
        assert_eq!(dir_with(&[]), PathBuf::from("/var/tmp"));
        assert_eq!(dir_with(&[("TMPDIR", "/t"), ("STATE_DIRECTORY", "")]), PathBuf::from("/t"));
        assert_eq!(dir_with(&[("TMPDIR", "/t"), ("STATE_DIRECTORY", "/s/a:/s/b")]), PathBuf::from("/s/a"));
    }

    fn spooling(flags: &[(&'static str, &str)], default_dir: &str) -> (Option<SpoolSettings>, usize) {
        let mut given = Flags::default();
        for (name, text) in [("source", "dragonfly://a"), ("target", "redis://b")].iter().chain(flags) {
            given.given.insert(name, vec![text.to_string()]);
        }
        let mut values = Values::merge(table::MIGRATE, &given, &Environment::of(Vec::new())).unwrap();
        let mut settings = resolve::migrate(&mut values).unwrap();
        fit_spool(&mut values, &mut settings, default_dir.into());
        (settings.spool, values.warnings().len())
    }

    #[test]
    fn a_default_spool_gives_way_and_a_named_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        let (spool, warnings) = spooling(&[], path);
        let spool = spool.unwrap();
        assert!(spool.dir == dir.path() && spool.bytes_max <= 4 << 30 && warnings == 0);
        assert_eq!(spooling(&[], "/nowhere"), (None, 1));
        assert_eq!(spooling(&[("spool", "none")], path), (None, 0));
        let named = SpoolSettings { dir: "/nowhere".into(), bytes_max: 1 << 50 };
        assert_eq!(spooling(&[("spool", "/nowhere"), ("spool-max", "1024TiB")], path), (Some(named), 0));
    }
}
