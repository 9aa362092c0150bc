//! What can go wrong between us and the kernel, each with cause and remedy.

use std::io;

/// An error of this room. Errors of a single read or send are not here: they are results of its completion.
#[derive(Debug, thiserror::Error)]
pub enum UringError {
    /// `kernel.io_uring_disabled` forbids it.
    #[error(
        "io_uring is switched off on this machine (kernel.io_uring_disabled = {value}: {}); \
         ask the administrator for `sysctl kernel.io_uring_disabled=0`{}",
        if *.value == 1 { "only for members of kernel.io_uring_group and with CAP_SYS_ADMIN" } else { "for everybody" },
        if *.value == 1 { ", or to be put into that group" } else { "" }
    )]
    Disabled { value: u32 },
    /// A security policy forbids it.
    #[error(
        "io_uring is forbidden to this process ({call}: EPERM) though kernel.io_uring_disabled does not say so: a seccomp \
         filter or security module does. In a container, allow io_uring_setup, io_uring_enter and io_uring_register in the \
         seccomp profile (Docker: `--security-opt seccomp=PROFILE.json`, for a trial `seccomp=unconfined`)"
    )]
    Forbidden { call: &'static str },
    /// The system call does not exist.
    #[error(
        "this kernel ({release}) has no io_uring (ENOSYS): it was built without CONFIG_IO_URING, or a container sandbox \
         (gVisor, an old seccomp profile) hides it. Run on Linux 6.1 or newer, outside of such a sandbox"
    )]
    Missing { release: String },
    /// Older than the floor.
    #[error("this kernel is {release}, df2redis needs Linux 6.1 or newer (IORING_SETUP_DEFER_TASKRUN, linked sends)")]
    KernelTooOld { release: String },
    /// The kernel refused the flags.
    #[error(
        "this kernel ({release}) refused the ring's flags ({flags}): EINVAL. Choose other ones (--taskrun coop or \
         interrupt, no --sqpoll) or a newer kernel"
    )]
    FlagsRefused { release: String, flags: String },
    /// An operation that the settings need is not there.
    #[error("this kernel ({release}) lacks io_uring's {operation}; {remedy}")]
    OperationMissing { release: String, operation: &'static str, remedy: &'static str },
    /// Too little locked memory.
    #[error(
        "registering {needed_bytes} bytes of buffers failed (ENOMEM): the limit of locked memory, RLIMIT_MEMLOCK, is {}. \
         All rings of this user count together. Raise it (`ulimit -l {}`, systemd: LimitMEMLOCK=, Docker: `--ulimit \
         memlock=`), run with CAP_IPC_LOCK, give less --memory, or use --registered-buffers off",
        limit_text(*.limit_bytes), .needed_bytes.div_ceil(1024)
    )]
    MemoryLocked { needed_bytes: u64, limit_bytes: Option<u64> },
    /// Too little locked memory for the rings themselves.
    #[error(
        "io_uring_setup failed (ENOMEM): a ring's own queues count as locked memory, and RLIMIT_MEMLOCK is {limit_bytes} \
         bytes for all rings of this user together. Raise it (`ulimit -l 8192`, systemd: LimitMEMLOCK=, Docker: `--ulimit \
         memlock=`), run with CAP_IPC_LOCK, or give fewer --cores and a smaller --sq-entries"
    )]
    RingMemory { limit_bytes: u64 },
    /// A layout that cannot be.
    #[error("the buffers of a worker cannot be laid out so: {reason}")]
    Layout { reason: String },
    /// The arena is larger than what the kernel registers as one buffer.
    #[error(
        "{bytes} bytes of buffers for one worker are more than the {bytes_max} that the kernel registers as one buffer; \
         give less --memory or more --cores"
    )]
    ArenaTooLarge { bytes: u64, bytes_max: u64 },
    /// No file descriptors, no memory and the like.
    #[error("{call} failed: {source}")]
    System { call: &'static str, source: io::Error },
    /// A read into a full chunk.
    #[error("internal error: read into chunk {chunk}, which has no room")]
    ChunkFull { chunk: u32 },
    /// Two reads on one chunk or one socket.
    #[error("internal error: a read is in flight already on this {what}")]
    ReadInFlight { what: &'static str },
    /// Two unlinked chains on one socket would interleave.
    #[error("internal error: sends are in flight already on this socket; a second chain would interleave with them")]
    SendInFlight,
    /// A chain that the submission queue cannot hold at once.
    #[error(
        "a chain of {batches} batches does not fit the submission queue of {batches_max} entries; use a shorter --link-batches or a larger --sq-entries"
    )]
    ChainTooLong { batches: usize, batches_max: usize },
    /// The kernel takes at most 1024 vector parts.
    #[error("internal error: a batch has {segments} parts, the kernel takes {segments_max}")]
    TooManySegments { segments: usize, segments_max: usize },
    /// Nothing to send, or more than one send can carry.
    #[error("internal error: a batch of {bytes} bytes cannot be sent (1 to {bytes_max})")]
    BatchBytes { bytes: u64, bytes_max: u64 },
    /// A segment that points beyond what its chunk holds.
    #[error("internal error: bytes {start}+{len} of chunk {chunk} are to be sent, but it holds {filled}")]
    SegmentOutside { chunk: u32, start: u32, len: u32, filled: u32 },
    /// The kernel took only a part of a chain.
    #[error(
        "the kernel ran out of memory in the middle of a chain of sends: what follows might overtake it, so this worker \
         stops. Free memory and start again"
    )]
    ChainCut,
    /// Used after a call failed for good.
    #[error("this worker's ring has stopped after the error before this one")]
    Stopped,
}

fn limit_text(limit_bytes: Option<u64>) -> String {
    match limit_bytes {
        Some(bytes) => format!("{bytes} bytes"),
        None => "unlimited for us (another limit, such as a cgroup's, is reached)".to_string(),
    }
}
