//! What one given target can hold and do, from its own answers.
//!
//! Built once, at the start, by [`Capabilities::from_probe`]; every choice of a form in `convert` asks here. Servers
//! that are neither Redis nor Valkey, and those older than Redis 6.2, are refused: forms that were never tried on a
//! server are not sent to it.

use super::info::Info;
use super::reencode::rdb_type;
use std::collections::HashSet;
use std::fmt;

/// `proto-max-bulk-len` of a server that was not told otherwise.
pub const BULK_BYTES_MAX_DEFAULT: u64 = 512 * 1024 * 1024;

/// The make of the target server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Make {
    Redis,
    Valkey,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
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
    /// Scripts may run what asks for expiries.
    pub scripts_ask: bool,
    /// Scripts may read what they add to.
    pub scripts_add: bool,
    /// Scripts may read what is pending in a consumer group.
    pub scripts_claim: bool,
    /// `proto-max-bulk-len` in bytes; 512 MiB where CONFIG GET is not allowed.
    pub bulk_bytes_max: u64,
    /// `maxmemory` is set, or not told: the server may refuse writes for want of memory.
    pub memory_limited: bool,
    /// Names of all commands the server knows, upper case.
    pub commands: HashSet<String>,
}

/// A target that is refused, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    #[error(
        "the target's INFO names no redis_version; is it a Redis or Valkey server, and is INFO allowed to this user?"
    )]
    NoVersion,
    #[error("the target's version {text:?} cannot be read")]
    BadVersion { text: String },
    #[error("the target is Redis {version}; Redis 6.2 or later, or Valkey, is needed")]
    TooOld { version: Version },
    #[error("the target is {name}, which is neither Redis nor Valkey; only these are supported as targets")]
    OtherServer { name: String },
}

impl Capabilities {
    /// From the text of INFO, the names of all commands (COMMAND LIST, or the first elements of COMMAND's reply; none if
    /// the user may not ask) and `proto-max-bulk-len` where CONFIG GET told it.
    pub fn from_probe<S: AsRef<str>>(
        info_text: &str,
        command_names: impl IntoIterator<Item = S>,
        bulk_bytes_max: Option<u64>,
    ) -> Result<Self, ProbeError> {
        let info = Info::parse(info_text);
        let commands: HashSet<String> =
            command_names.into_iter().map(|name| name.as_ref().to_ascii_uppercase()).collect();
        if let Some(name) = other_server(&info, &commands) {
            return Err(ProbeError::OtherServer { name });
        }
        let redis_version = info.get("redis_version").ok_or(ProbeError::NoVersion)?;
        let (make, version_text) = match info.get("valkey_version") {
            Some(text) => (Make::Valkey, text),
            None if info.get("server_name") == Some("valkey") => (Make::Valkey, redis_version),
            None => (Make::Redis, redis_version),
        };
        let version = Version::parse(version_text)?;
        if make == Make::Redis && version < Version::new(6, 2, 0) {
            return Err(ProbeError::TooOld { version });
        }
        let by_version = match make {
            Make::Redis => version >= Version::new(7, 4, 0),
            Make::Valkey => version >= Version::new(9, 0, 0),
        };
        Ok(Self {
            make,
            version,
            cluster: info.get("cluster_enabled") == Some("1") || info.get("redis_mode") == Some("cluster"),
            json: commands.contains("JSON.SET"),
            field_expiry: by_version && (commands.is_empty() || commands.contains("HPEXPIREAT")),
            import_mode: make == Make::Valkey && version >= Version::new(8, 1, 0),
            scripts_ask: true,
            scripts_add: true,
            scripts_claim: true,
            bulk_bytes_max: bulk_bytes_max.unwrap_or(BULK_BYTES_MAX_DEFAULT),
            memory_limited: info.get("maxmemory") != Some("0"),
            commands,
        })
    }

    /// Leaves what the other server, one of the same make, can do too.
    pub fn narrow(&mut self, other: &Self) {
        self.version = self.version.min(other.version);
        self.json &= other.json;
        self.field_expiry &= other.field_expiry;
        self.import_mode &= other.import_mode;
        self.bulk_bytes_max = self.bulk_bytes_max.min(other.bulk_bytes_max);
        self.memory_limited |= other.memory_limited;
        // None: it could not be asked.
        if self.commands.is_empty() {
            self.commands.clone_from(&other.commands);
        } else if !other.commands.is_empty() {
            self.commands.retain(|name| other.commands.contains(name));
        }
    }

    /// Capabilities of a plain server of this make and version, as a probe without command names would find them. For
    /// tests, benchmarks and the sink.
    pub fn plain(make: Make, version: Version) -> Self {
        Self {
            make,
            version,
            cluster: false,
            json: false,
            field_expiry: match make {
                Make::Redis => version >= Version::new(7, 4, 0),
                Make::Valkey => version >= Version::new(9, 0, 0),
            },
            import_mode: make == Make::Valkey && version >= Version::new(8, 1, 0),
            scripts_ask: true,
            scripts_add: true,
            scripts_claim: true,
            bulk_bytes_max: BULK_BYTES_MAX_DEFAULT,
            memory_limited: false,
            commands: HashSet::new(),
        }
    }

    /// Whether expiries can be held back: scripts put them right.
    pub fn holds_expiries(&self) -> bool {
        !self.import_mode && self.scripts_ask && self.has_command("EVAL")
    }

    /// Whether RESTORE takes a payload of this RDB type (wire 3.1; 22 and 24 as in 3.8).
    pub fn restores(&self, rdb_type: u8) -> bool {
        match rdb_type {
            0 | 2 | 4 | 5 | 11..=15 => true,
            16..=18 | rdb_type::STREAM_V2 => self.at_least(7, 0),
            rdb_type::STREAM_V3 => self.at_least(7, 2),
            rdb_type::HASH_EXPIRY_REDIS => self.make == Make::Redis && self.field_expiry,
            rdb_type::HASH_EXPIRY_VALKEY => self.make == Make::Valkey && self.field_expiry,
            _ => false,
        }
    }

    /// The RDB type in which RESTORE takes a hash with field expiries.
    pub fn hash_expiry_type(&self) -> Option<u8> {
        [rdb_type::HASH_EXPIRY_REDIS, rdb_type::HASH_EXPIRY_VALKEY]
            .into_iter()
            .find(|rdb_type| self.restores(*rdb_type))
    }

    /// The newest RDB type, not above `received`, in which RESTORE takes a stream.
    pub fn stream_type(&self, received: u8) -> u8 {
        [rdb_type::STREAM_V3, rdb_type::STREAM_V2]
            .into_iter()
            .find(|rdb_type| *rdb_type <= received && self.restores(*rdb_type))
            .unwrap_or(rdb_type::STREAM_V1)
    }

    /// Whether XGROUP CREATE takes ENTRIESREAD, and XSETID ENTRIESADDED and MAXDELETEDID.
    pub fn stream_counters(&self) -> bool {
        self.at_least(7, 0)
    }

    /// Whether the server knows this command (upper case); yes if it could not be asked.
    pub fn has_command(&self, name: &str) -> bool {
        self.commands.is_empty() || self.commands.contains(name)
    }

    /// Valkey counts on from Redis 7.2.
    fn at_least(&self, redis_major: u32, redis_minor: u32) -> bool {
        self.make == Make::Valkey || self.version >= Version::new(redis_major, redis_minor, 0)
    }
}

/// "Redis 7.0.15", as in messages and reports.
impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.make, self.version)
    }
}

impl Version {
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// `7.2.4`, `8.0`, `9.1.0-rc1`.
    pub fn parse(text: &str) -> Result<Self, ProbeError> {
        let bad = || ProbeError::BadVersion { text: text.chars().take(64).collect() };
        let mut parts = text.split(['.', '-']).map(|part| part.parse::<u32>().ok());
        let major = parts.next().flatten().ok_or_else(bad)?;
        let minor = parts.next().flatten().ok_or_else(bad)?;
        let patch = parts.next().flatten().unwrap_or(0);
        Ok(Self { major, minor, patch })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// The name of a server that speaks RESP and shows a redis_version, but is another one.
fn other_server(info: &Info<'_>, commands: &HashSet<String>) -> Option<String> {
    for name in ["dragonfly", "keydb", "kvrocks", "garnet", "pika", "redict", "tair", "tendis"] {
        if let Some(version) = info.get(&format!("{name}_version")) {
            return Some(format!("{name} {version}"));
        }
    }
    // KeyDB shows no version of its own, only its executable, its section and its commands.
    let executable = info.get("executable").and_then(|path| path.rsplit('/').next()).unwrap_or_default();
    if info.get("mvcc_depth").is_some()
        || executable.starts_with("keydb")
        || commands.iter().any(|name| name.starts_with("KEYDB."))
    {
        return Some("KeyDB".into());
    }
    match info.get("server_name") {
        None | Some("redis" | "valkey") => None,
        Some(other) => Some(other.chars().take(64).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(info: &str, commands: &[&str]) -> Result<Capabilities, ProbeError> {
        Capabilities::from_probe(info, commands.iter().copied(), None)
    }

    #[test]
    fn redis_and_valkey_are_told_apart() {
        let redis = probe("redis_version:7.0.15\r\nredis_mode:standalone\r\n", &["get", "set"]).unwrap();
        assert_eq!(redis.to_string(), "Redis 7.0.15");
        assert!(!redis.cluster && !redis.json && !redis.field_expiry && !redis.import_mode);
        assert!(redis.commands.contains("GET"));
        let valkey = probe(
            "redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.1.2\r\ncluster_enabled:1\r\n",
            &["HPEXPIREAT", "JSON.SET"],
        )
        .unwrap();
        assert_eq!(valkey.to_string(), "Valkey 9.1.2");
        assert!(valkey.cluster && valkey.json && valkey.field_expiry && valkey.import_mode);
        assert_eq!(valkey.hash_expiry_type(), Some(22));
    }

    #[test]
    fn of_several_servers_the_least_counts() {
        let mut new = probe("redis_version:8.2.0\r\nmaxmemory:0\r\n", &["HPEXPIREAT", "JSON.SET", "SET"]).unwrap();
        let old = probe("redis_version:7.0.15\r\nmaxmemory:5\r\n", &["SET", "OTHER"]).unwrap();
        let mut narrowed = old.clone();
        narrowed.narrow(&new);
        new.narrow(&old);
        for one in [&new, &narrowed] {
            assert_eq!(one.to_string(), "Redis 7.0.15");
            assert!(!one.json && !one.field_expiry && one.memory_limited);
            assert!(one.commands.iter().eq(["SET"]));
        }
        new.narrow(&Capabilities { bulk_bytes_max: 7, ..Capabilities::plain(Make::Redis, new.version) });
        assert!(new.bulk_bytes_max == 7 && new.commands.len() == 1);
    }

    #[test]
    fn types_that_restore_takes() {
        let targets = [
            ((6, 2), Make::Redis),
            ((7, 0), Make::Redis),
            ((7, 2), Make::Redis),
            ((7, 4), Make::Redis),
            ((8, 2), Make::Redis),
            ((7, 2), Make::Valkey),
            ((8, 1), Make::Valkey),
            ((9, 0), Make::Valkey),
        ];
        let tables: Vec<String> = targets
            .iter()
            .map(|((major, minor), make)| {
                let capabilities = Capabilities::plain(*make, Version::new(*major, *minor, 1));
                let types: Vec<u8> = (0..40).filter(|t| capabilities.restores(*t)).collect();
                format!("{capabilities}: {:?} stream {}", &types[9..], capabilities.stream_type(21))
            })
            .collect();
        assert_eq!(
            tables,
            [
                "Redis 6.2.1: [] stream 15",
                "Redis 7.0.1: [16, 17, 18, 19] stream 19",
                "Redis 7.2.1: [16, 17, 18, 19, 21] stream 21",
                "Redis 7.4.1: [16, 17, 18, 19, 21, 24] stream 21",
                "Redis 8.2.1: [16, 17, 18, 19, 21, 24] stream 21",
                "Valkey 7.2.1: [16, 17, 18, 19, 21] stream 21",
                "Valkey 8.1.1: [16, 17, 18, 19, 21] stream 21",
                "Valkey 9.0.1: [16, 17, 18, 19, 21, 22] stream 21",
            ]
        );
        assert_eq!(Capabilities::plain(Make::Redis, Version::new(8, 0, 0)).stream_type(15), 15);
    }

    #[test]
    fn other_servers_are_refused_by_name() {
        let refusals: Vec<String> = [
            ("redis_version:7.4.0\r\ndragonfly_version:df-v1.40.1\r\n", &[][..]),
            ("redis_version:6.3.4\r\nexecutable:/usr/bin/keydb-server\r\n", &[]),
            ("redis_version:6.3.4\r\n", &["keydb.cron"]),
            ("redis_version:7.0.0\r\nserver_name:redict\r\n", &[]),
            ("redis_version:6.0.16\r\n", &[]),
            ("redis_version:unstable\r\n", &[]),
            ("", &[]),
        ]
        .into_iter()
        .map(|(info, commands)| probe(info, commands).unwrap_err().to_string())
        .collect();
        insta::assert_snapshot!(refusals.join("\n"), @r#"
        the target is dragonfly df-v1.40.1, which is neither Redis nor Valkey; only these are supported as targets
        the target is KeyDB, which is neither Redis nor Valkey; only these are supported as targets
        the target is KeyDB, which is neither Redis nor Valkey; only these are supported as targets
        the target is redict, which is neither Redis nor Valkey; only these are supported as targets
        the target is Redis 6.0.16; Redis 6.2 or later, or Valkey, is needed
        the target's version "unstable" cannot be read
        the target's INFO names no redis_version; is it a Redis or Valkey server, and is INFO allowed to this user?
        "#);
    }
}
