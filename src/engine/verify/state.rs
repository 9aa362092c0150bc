//! The state file (`--resume FILE`): where an interrupted comparison goes on.
//!
//! Written beside and renamed, about once a second and at the end of an interrupted run; removed when a comparison is
//! complete. Position, counts and suspects are of one moment. It is good only for the same servers (by run id), the same
//! mode and the same sample: anything else is refused by name. Invariant: a key that the position says is done was
//! compared, or is among the suspects.

use super::round::Round;
use crate::engine::error::EngineError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Largest state file read.
const FILE_BYTES_MAX: u64 = 1 << 30;
const SCHEMA_VERSION: u32 = 1;

/// What must be the same for a comparison to go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub source: String,
    pub target: String,
    pub source_run_ids: Vec<String>,
    pub target_run_ids: Vec<String>,
    pub mode: String,
}

/// Where the walk stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// 0: over the source's keys, 1: over the target's, 2: done.
    pub pass: u32,
    /// Index into the databases.
    pub database: usize,
    /// Of the nodes of the round; a single server is one.
    pub node: usize,
    pub cursor: String,
    /// Of a cluster, once its walk has begun.
    #[serde(default)]
    pub round: Option<Round>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Keys of the source that were compared, each once.
    pub keys_compared: u64,
    /// Keys of the target that were looked for at the source.
    pub keys_looked_for: u64,
    /// Keys seen by the walks, whether chosen or not.
    pub keys_walked: u64,
    /// Keys that the target was not meant to hold.
    pub not_carried: u64,
    /// Keys that differed at first and were settled by looking again.
    pub settled: u64,
    /// Keys by the first kind of difference.
    pub differing: BTreeMap<String, u64>,
    pub repaired: u64,
    pub not_repaired: u64,
    /// `--mode count`: databases whose numbers of keys differed, so that their keys were compared by name.
    #[serde(default)]
    pub databases_by_name: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    pub schema_version: u32,
    pub identity: Identity,
    pub databases: Vec<u32>,
    pub position: Position,
    pub counts: Counts,
    /// Database and key, in hexadecimal digits.
    pub suspects: Vec<(u32, String)>,
}

impl Saved {
    pub fn new(identity: Identity, databases: Vec<u32>, position: Position, counts: Counts) -> Self {
        Self { schema_version: SCHEMA_VERSION, identity, databases, position, counts, suspects: Vec::new() }
    }

    pub fn add_suspect(&mut self, db: u32, key: &[u8]) {
        self.suspects.push((db, key.iter().map(|byte| format!("{byte:02x}")).collect()));
    }

    /// Databases and keys of the suspects.
    pub fn suspect_keys(&self) -> Vec<(u32, Vec<u8>)> {
        let key = |hex: &String| {
            let digits = hex.as_bytes().chunks_exact(2);
            digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect::<Option<Vec<u8>>>()
        };
        self.suspects.iter().filter_map(|(db, hex)| Some((*db, key(hex)?))).collect()
    }
}

/// Writes the file, complete or not at all.
pub fn save(path: &Path, saved: &Saved) -> Result<(), EngineError> {
    let beside = path.with_extension("part");
    let write = || {
        let bytes = serde_json::to_vec(saved)?;
        std::fs::write(&beside, bytes)?;
        std::fs::rename(&beside, path)
    };
    write().map_err(|cause| EngineError::System(format!("cannot write the state file {}: {cause}", path.display())))
}

/// Reads the file. None: there is none, so the comparison begins.
pub fn load(path: &Path, identity: &Identity) -> Result<Option<Saved>, EngineError> {
    let refused = |why: String| {
        EngineError::Refused(format!(
            "the state file {} cannot be used: {why}; remove it to begin the comparison anew",
            path.display()
        ))
    };
    match std::fs::metadata(path) {
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(refused(cause.to_string())),
        Ok(data) if data.len() > FILE_BYTES_MAX => return Err(refused("it is too large".into())),
        Ok(_) => {}
    }
    let bytes = std::fs::read(path).map_err(|cause| refused(cause.to_string()))?;
    let saved: Saved = serde_json::from_slice(&bytes).map_err(|cause| refused(format!("it is damaged: {cause}")))?;
    if saved.schema_version != SCHEMA_VERSION {
        return Err(refused(format!("it is of version {}, known is {SCHEMA_VERSION}", saved.schema_version)));
    }
    let (was, is) = (&saved.identity, identity);
    for (what, was, is) in
        [("source", &was.source, &is.source), ("target", &was.target, &is.target), ("mode", &was.mode, &is.mode)]
    {
        if was != is {
            return Err(refused(format!("its {what} is {was}, not {is}")));
        }
    }
    for (what, was, is) in
        [("source", &was.source_run_ids, &is.source_run_ids), ("target", &was.target_run_ids, &is.target_run_ids)]
    {
        if was != is {
            return Err(refused(format!("the {what} was restarted since, so the positions in it are lost")));
        }
    }
    Ok(Some(saved))
}

/// The comparison is complete.
pub fn remove(path: &Path) {
    if let Err(cause) = std::fs::remove_file(path)
        && cause.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!("cannot remove the state file {}: {cause}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            source: "a:1".into(),
            target: "b:2".into(),
            source_run_ids: vec!["x".into()],
            target_run_ids: vec!["y".into()],
            mode: "full".into(),
        }
    }

    #[test]
    fn a_state_is_read_as_it_was_written_and_only_for_the_same_comparison() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        assert_eq!(load(&path, &identity()).unwrap(), None);
        let cursor = "18446744073709551615".into();
        let position = Position { pass: 1, database: 2, node: 0, cursor, round: Some(Round::default()) };
        let mut saved = Saved::new(identity(), vec![0, 3], position, Counts { settled: 7, ..Counts::default() });
        saved.add_suspect(3, b"\x00\xffkey");
        save(&path, &saved).unwrap();
        let again = load(&path, &identity()).unwrap().unwrap();
        assert_eq!(again, saved);
        assert_eq!(again.suspect_keys(), [(3, b"\x00\xffkey".to_vec())]);

        for (other, says) in [
            (Identity { target: "c:3".into(), ..identity() }, "its target is b:2, not c:3"),
            (Identity { mode: "sample".into(), ..identity() }, "its mode is full, not sample"),
            (Identity { source_run_ids: vec!["z".into()], ..identity() }, "the source was restarted"),
        ] {
            let error = load(&path, &other).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        std::fs::write(&path, b"{").unwrap();
        assert!(load(&path, &identity()).unwrap_err().to_string().contains("damaged"));
        remove(&path);
        assert_eq!(load(&path, &identity()).unwrap(), None);
    }
}
