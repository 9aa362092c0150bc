//! Settings whose defaults depend on the machine that the run starts on.
//!
//! In: resolved settings. Out: the same, with what this machine cannot give taken back, and a warning that says so. What
//! the operator asked for by name is left alone: it works, or the run is refused with cause and remedy.

use super::settings::{Values, table};
use crate::engine::settings::{Endpoint, MigrateSettings, locked_bytes};
use crate::report::numbers;
use crate::uring::{Memlock, ReadMode, cpu};

/// Takes back what this machine cannot give.
pub fn fit(values: &mut Values, settings: &mut MigrateSettings) {
    guard_secrets(values, settings);
    cpu::raise_memlock();
    fit_locked_memory(values, settings, cpu::memlock());
}

/// With secrets in memory there are no core dumps of this process, and no other user's debugger may look into it.
fn guard_secrets(values: &mut Values, settings: &MigrateSettings) {
    let holds = |side: &Endpoint| {
        side.password.expose().is_some() || side.tls.as_ref().is_some_and(|tls| tls.files().key.is_some())
    };
    if (holds(&settings.source) || holds(&settings.target))
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
    use crate::cli::settings::{Environment, Flags, resolve};

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
}
