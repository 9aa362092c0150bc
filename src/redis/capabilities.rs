//! What one given target can hold and do, from its own answers.

/// The make of the target server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Make {
    Redis,
    Valkey,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

/// Decides every form that `convert` chooses. Built once, at the start, from INFO, COMMAND and CONFIG answers.
#[derive(Clone, Debug)]
pub struct Capabilities {
    pub make: Make,
    pub version: Version,
    pub cluster: bool,
    /// `JSON.SET` exists.
    pub json: bool,
    /// `HPEXPIREAT` exists (Redis >= 7.4, Valkey >= 9).
    pub field_expiry: bool,
    /// `CLIENT IMPORT-SOURCE` and `import-mode` exist (Valkey >= 8.1).
    pub import_mode: bool,
    /// `proto-max-bulk-len` in bytes; 512 MiB where CONFIG GET is not allowed.
    pub bulk_bytes_max: u64,
    /// Names of all commands the server knows, upper case.
    pub commands: std::collections::HashSet<String>,
}
