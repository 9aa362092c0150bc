//! Which features of the kernel were asked for, are there, and are used: for the report's header and `df2redis probe`.

/// What shaped one ring.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Features {
    /// As `uname -r` says.
    pub kernel_release: String,
    pub memlock: Memlock,
    pub arena_bytes: u64,
    /// Bytes of the arena on huge pages right after the start; None if /proc does not tell.
    pub huge_page_bytes: Option<u64>,
    pub sq_entries: u32,
    pub cq_entries: u32,
    pub features: Vec<Feature>,
}

impl Features {
    /// The feature of that name is in use.
    pub fn uses(&self, name: &str) -> bool {
        self.features.iter().any(|feature| feature.name == name && feature.used)
    }

    pub(super) fn add(&mut self, name: &'static str, requested: bool, available: Option<bool>, used: bool) {
        self.features.push(Feature { name, requested, available, used, note: None });
    }

    pub(super) fn note(&mut self, note: impl Into<String>) {
        if let Some(feature) = self.features.last_mut() {
            feature.note = Some(note.into());
        }
    }
}

/// One feature.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Feature {
    pub name: &'static str,
    pub requested: bool,
    /// None: not tried, because nobody asked for it.
    pub available: Option<bool>,
    pub used: bool,
    /// Why it is not used although requested, or what it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// The limit of locked memory, which registered buffers count against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Memlock {
    /// Soft RLIMIT_MEMLOCK; None: unlimited.
    pub limit_bytes: Option<u64>,
    /// The process has CAP_IPC_LOCK, so that the limit does not apply (in a user namespace it may still).
    pub exempt: bool,
}

impl Memlock {
    /// The limit, where it binds and is below `needed_bytes`.
    pub fn too_little_for(self, needed_bytes: u64) -> Option<u64> {
        self.limit_bytes.filter(|limit| !self.exempt && *limit < needed_bytes)
    }
}
