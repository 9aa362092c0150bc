//! Every kernel feature that a user may switch, as plain data. Defaults are right for most (measured.md).

/// When the kernel runs completions' task work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskRun {
    /// Default flags.
    Interrupt,
    /// `IORING_SETUP_COOP_TASKRUN` (5.19).
    Coop,
    /// `IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN` (6.1): a third less CPU in pipelined traffic.
    Defer,
}

/// How bytes come from the flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadMode {
    /// `READ_FIXED` into the registered arena.
    ReadFixed,
    /// `RECV` into the same memory, unregistered.
    Recv,
}

/// How batches go to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WriteMode {
    /// `SENDMSG | MSG_WAITALL`.
    Sendmsg,
    /// `SENDMSG_ZC | MSG_WAITALL` for batches of at least `zero_copy_bytes_min`, `SENDMSG` for smaller ones.
    SendmsgZc,
}

/// Settings of one worker's ring and slab.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RingSettings {
    /// Submission queue entries; the completion queue has eight times as many.
    pub sq_entries: u32,
    pub taskrun: TaskRun,
    /// A kernel thread polls the submission queue, idling after this many ms. Excludes `TaskRun::Defer`.
    pub sqpoll_idle_ms: Option<u32>,
    /// Register the arena as one fixed buffer (needed by `ReadMode::ReadFixed`).
    pub registered_buffers: bool,
    /// Ask for transparent huge pages for the arena.
    pub huge_pages: bool,
    /// Register the ring's own descriptor.
    pub registered_ring: bool,
    pub read: ReadMode,
    pub write: WriteMode,
    pub zero_copy_bytes_min: usize,
    /// Link ready batches into one chain (else: one batch in flight a connection).
    pub link: bool,
    /// Most batches in one chain.
    pub link_batches_max: usize,
}

impl Default for RingSettings {
    fn default() -> Self {
        Self {
            sq_entries: 256,
            taskrun: TaskRun::Defer,
            sqpoll_idle_ms: None,
            registered_buffers: true,
            huge_pages: true,
            registered_ring: true,
            read: ReadMode::ReadFixed,
            write: WriteMode::Sendmsg,
            zero_copy_bytes_min: 16 * 1024,
            link: true,
            link_batches_max: 8,
        }
    }
}

/// How the arena is cut. `rx_bytes_max * rx_chunks + tx_bytes_max * tx_chunks` bytes in all, at most 1 GiB (the kernel's
/// limit for one registered buffer).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct SlabLayout {
    /// Size of a receive chunk; a multiple of 4096.
    pub rx_chunk_bytes: usize,
    pub rx_chunks: usize,
    /// Size of a send chunk; a multiple of 4096.
    pub tx_chunk_bytes: usize,
    pub tx_chunks: usize,
}
