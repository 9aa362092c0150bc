//! Making a ring: flags, registration, and which fallbacks were taken.
//!
//! In: settings and a layout. Out: an `io_uring`, a slab whose arena is registered if asked, and what is in use. An error
//! says what to do about it. Nothing is in flight yet.

use super::cpu;
use super::error::UringError;
use super::features::{Features, Memlock};
use super::probe;
use super::settings::{ReadMode, RingSettings, SlabLayout, TaskRun, WriteMode};
use super::slab::Slab;
use io_uring::{IoUring, opcode};
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Fewest entries of a submission queue: a chain, the reads and a wake-up must fit.
const SQ_ENTRIES_MIN: u32 = 8;
const SQ_ENTRIES_MAX: u32 = 4096;

/// A ring as it came from the kernel, before anything was submitted.
pub(super) struct Made {
    pub(super) io: IoUring,
    pub(super) slab: Slab,
    /// Index of the ring's own descriptor in this thread's table of registered rings.
    pub(super) ring_index: Option<u32>,
    pub(super) modes: Modes,
    pub(super) features: Features,
}

/// What the settings came down to.
#[derive(Clone, Copy)]
pub(super) struct Modes {
    pub(super) sqpoll: bool,
    /// The arena is a registered buffer.
    pub(super) registered: bool,
    pub(super) read_fixed: bool,
    pub(super) zero_copy: Option<ZeroCopy>,
}

/// How zero-copy sends go out.
#[derive(Clone, Copy)]
pub(super) struct ZeroCopy {
    pub(super) bytes_min: usize,
    /// The kernel reports whether it copied after all (6.2).
    pub(super) report_usage: bool,
    /// Vectors inside of the arena refer to it as the registered buffer (6.15).
    pub(super) fixed: bool,
}

pub(super) fn make(settings: &RingSettings, layout: SlabLayout) -> Result<Made, UringError> {
    let release = probe::kernel_release();
    if probe::is_older(&release, probe::KERNEL_FLOOR) {
        return Err(UringError::KernelTooOld { release });
    }
    let mut features = Features { kernel_release: release.clone(), memlock: cpu::memlock(), ..Features::default() };
    let io = make_ring(settings, &release, &mut features)?;
    features.sq_entries = io.params().sq_entries();
    features.cq_entries = io.params().cq_entries();
    check_operations(&io, settings, &release)?;
    let slab = Slab::new(layout, settings.huge_pages)?;
    features.arena_bytes = slab.bytes() as u64;
    let registered = register_arena(&io, &slab, settings, &mut features)?;
    features.huge_page_bytes = slab.shared().arena().huge_bytes();
    features.add(
        "huge-pages",
        settings.huge_pages,
        features.huge_page_bytes.filter(|_| registered).map(|bytes| bytes > 0),
        features.huge_page_bytes.is_some_and(|bytes| bytes > 0),
    );
    if settings.huge_pages && !registered {
        features.note("pages come on demand, so it is not known yet");
    }
    let read_fixed = settings.read == ReadMode::ReadFixed && registered;
    features.add("read-fixed", settings.read == ReadMode::ReadFixed, Some(registered), read_fixed);
    if !read_fixed && settings.read == ReadMode::ReadFixed {
        features.note("needs registered buffers; RECV is used");
    }
    let zero_copy = zero_copy(settings, registered, &mut features);
    features.add("linked-sends", settings.link, Some(true), settings.link);
    let ring_index = register_ring(&io, settings, &mut features);
    let modes = Modes { sqpoll: settings.sqpoll_idle_ms.is_some(), registered, read_fixed, zero_copy };
    Ok(Made { io, slab, ring_index, modes, features })
}

fn make_ring(settings: &RingSettings, release: &str, features: &mut Features) -> Result<IoUring, UringError> {
    let entries = settings.sq_entries.clamp(SQ_ENTRIES_MIN, SQ_ENTRIES_MAX).next_power_of_two();
    let mut builder = IoUring::builder();
    builder.dontfork().setup_clamp().setup_submit_all().setup_cqsize(entries * 8);
    let mut flags = String::from("CLAMP SUBMIT_ALL CQSIZE");
    // The polling thread runs task work itself: neither of the other modes exists beside it.
    let taskrun = if settings.sqpoll_idle_ms.is_some() { TaskRun::Interrupt } else { settings.taskrun };
    match taskrun {
        TaskRun::Interrupt => {}
        TaskRun::Coop => {
            builder.setup_coop_taskrun().setup_taskrun_flag();
            flags += " COOP_TASKRUN TASKRUN_FLAG";
        }
        TaskRun::Defer => {
            builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
            flags += " SINGLE_ISSUER DEFER_TASKRUN TASKRUN_FLAG";
        }
    }
    if let Some(idle_ms) = settings.sqpoll_idle_ms {
        builder.setup_sqpoll(idle_ms);
        flags += " SQPOLL";
    }
    let io = builder.build(entries).map_err(|e| setup_error(e, release, &flags))?;
    for (name, mode) in [("coop-taskrun", TaskRun::Coop), ("defer-taskrun", TaskRun::Defer)] {
        let (requested, used) = (settings.taskrun == mode, taskrun == mode);
        features.add(name, requested, used.then_some(true), used);
        if requested && !used {
            features.note("does not go together with sqpoll");
        }
    }
    let sqpoll = settings.sqpoll_idle_ms.is_some();
    features.add("sqpoll", sqpoll, sqpoll.then_some(true), sqpoll);
    Ok(io)
}

/// Tells a switched-off, forbidden, missing, too old and exhausted io_uring apart.
pub(super) fn setup_error(error: io::Error, release: &str, flags: &str) -> UringError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => match probe::io_uring_disabled() {
            Some(value @ 1..) => UringError::Disabled { value },
            _ => UringError::Forbidden { call: "io_uring_setup" },
        },
        Some(libc::ENOSYS) => UringError::Missing { release: release.to_string() },
        Some(libc::EINVAL) => UringError::FlagsRefused { release: release.to_string(), flags: flags.to_string() },
        Some(libc::ENOMEM) => match super::cpu::memlock() {
            Memlock { limit_bytes: Some(limit_bytes), exempt: false } => UringError::RingMemory { limit_bytes },
            _ => UringError::System { call: "io_uring_setup", source: error },
        },
        _ => UringError::System { call: "io_uring_setup", source: error },
    }
}

/// What it means that another library could not set its ring up.
pub fn explain_setup(error: io::Error) -> UringError {
    setup_error(error, &probe::kernel_release(), "those of another library")
}

fn check_operations(io: &IoUring, settings: &RingSettings, release: &str) -> Result<(), UringError> {
    let mut known = io_uring::Probe::new();
    match io.submitter().register_probe(&mut known) {
        Ok(()) => {}
        // A filter that lets set-up through and not this.
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
            return Err(UringError::Forbidden { call: "io_uring_register" });
        }
        Err(source) => return Err(UringError::System { call: "io_uring_register(PROBE)", source }),
    }
    let needed = [
        (opcode::SendMsg::CODE, "SENDMSG", true, "Linux 6.1 or newer has it"),
        (opcode::Recv::CODE, "RECV", true, "Linux 6.1 or newer has it"),
        (opcode::Read::CODE, "READ", true, "Linux 6.1 or newer has it"),
        (opcode::ReadFixed::CODE, "READ_FIXED", settings.read == ReadMode::ReadFixed, "use --read recv"),
    ];
    for (code, operation, wanted, remedy) in needed {
        if wanted && !known.is_supported(code) {
            return Err(UringError::OperationMissing { release: release.to_string(), operation, remedy });
        }
    }
    if !io.params().is_feature_ext_arg() || !io.params().is_feature_nodrop() {
        return Err(UringError::KernelTooOld { release: release.to_string() });
    }
    Ok(())
}

/// How often, and how long apart, a registration is tried again: the kernel gives the locked memory of a ring that was
/// closed just before back a little later.
const REGISTER_TRIES: u32 = 6;
const REGISTER_PAUSE: Duration = Duration::from_millis(10);

fn register_arena(
    io: &IoUring,
    slab: &Slab,
    settings: &RingSettings,
    features: &mut Features,
) -> Result<bool, UringError> {
    if !settings.registered_buffers {
        features.add("registered-buffers", false, None, false);
        return Ok(false);
    }
    let arena = slab.shared().arena();
    let needed_bytes = arena.bytes() as u64;
    if !features.memlock.exempt && features.memlock.limit_bytes.is_some_and(|limit| limit < needed_bytes) {
        cpu::raise_memlock();
        features.memlock = cpu::memlock();
    }
    // Registering touches every page anyway; this is the quick way.
    arena.populate();
    let part = libc::iovec { iov_base: arena.base().cast(), iov_len: arena.bytes() };
    let mut tries = 0;
    loop {
        tries += 1;
        // SAFETY: the range is the arena's mapping. It outlives the registration: the ring closes the io_uring before its
        // `Rc` to the arena's owner is dropped, or leaks the arena.
        match unsafe { io.submitter().register_buffers(&[part]) } {
            Ok(()) => break,
            Err(e) if e.raw_os_error() == Some(libc::ENOMEM) => {
                let limit_bytes = features.memlock.limit_bytes.filter(|_| !features.memlock.exempt);
                if tries >= REGISTER_TRIES || limit_bytes.is_some_and(|limit| limit < needed_bytes) {
                    return Err(UringError::MemoryLocked { needed_bytes, limit_bytes });
                }
                std::thread::sleep(REGISTER_PAUSE);
            }
            Err(source) => return Err(UringError::System { call: "io_uring_register(BUFFERS)", source }),
        }
    }
    features.add("registered-buffers", true, Some(true), true);
    Ok(true)
}

fn zero_copy(settings: &RingSettings, registered: bool, features: &mut Features) -> Option<ZeroCopy> {
    let requested = settings.write == WriteMode::SendmsgZc;
    let support = if requested { probe::zero_copy_support() } else { Err(String::new()) };
    let usable = support.is_ok();
    features.add("sendmsg-zc", requested, requested.then_some(usable), requested && usable);
    match support {
        Ok(support) => {
            let fixed = support.fixed && registered;
            features.add("sendmsg-zc-fixed", registered, Some(support.fixed), fixed);
            Some(ZeroCopy { bytes_min: settings.zero_copy_bytes_min, report_usage: support.report_usage, fixed })
        }
        Err(reason) => {
            if requested {
                features.note(format!("{reason}; SENDMSG is used"));
            }
            None
        }
    }
}

const IORING_REGISTER_RING_FDS: libc::c_uint = 20;
const IORING_UNREGISTER_RING_FDS: libc::c_uint = 21;

/// `struct io_uring_rsrc_update`.
#[repr(C)]
struct RingUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// Registers the ring's descriptor in this thread's table. Done by hand, because the crate remembers the index in one
/// short-lived borrowing value only.
fn register_ring(io: &IoUring, settings: &RingSettings, features: &mut Features) -> Option<u32> {
    if !settings.registered_ring {
        features.add("registered-ring", false, None, false);
        return None;
    }
    let mut update = RingUpdate { offset: u32::MAX, reserved: 0, data: io.as_raw_fd() as u64 };
    let outcome = update_ring(io, IORING_REGISTER_RING_FDS, &mut update);
    features.add("registered-ring", true, Some(outcome.is_ok()), outcome.is_ok());
    if let Err(e) = &outcome {
        features.note(e.to_string());
    }
    outcome.ok().map(|()| update.offset)
}

/// Undoes [`register_ring`]. Without it a closed ring, and all that it refers to, lives on until the thread ends.
pub(super) fn unregister_ring(io: &IoUring, index: u32) {
    // A failure leaves nothing to do but what the caller does anyway: close the descriptor.
    let _ = update_ring(io, IORING_UNREGISTER_RING_FDS, &mut RingUpdate { offset: index, reserved: 0, data: 0 });
}

fn update_ring(io: &IoUring, operation: libc::c_uint, update: &mut RingUpdate) -> io::Result<()> {
    // SAFETY: the descriptor is an open io_uring, and the argument one writable `io_uring_rsrc_update`, as both operations
    // want.
    let outcome =
        unsafe { libc::syscall(libc::SYS_io_uring_register, io.as_raw_fd(), operation, std::ptr::from_mut(update), 1) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
