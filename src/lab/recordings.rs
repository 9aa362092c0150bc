//! Finds and loads recorded streams: every byte that a real Dragonfly sent on each flow, and what it then held.
//!
//! A recording is a folder with `meta.json`, `truth.jsonl` and one `flow-N.bin` a flow, each plain or compressed with
//! zstd (`.zst` behind the name). The repository carries its own in `tests/data`; DF2REDIS_CAPTURES names another place.
//! tests/data/README.md says what is in which.

use super::LabError;
use super::truth::{TruthMap, parse_truth};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// A loaded recording.
#[derive(Clone, Debug)]
pub struct Recording {
    pub name: String,
    pub meta: Meta,
    /// All bytes of each flow after the reply to `DFLY FLOW`.
    pub flows: Vec<Vec<u8>>,
    /// `truth.jsonl` as text.
    pub truth: String,
}

/// What the replayer needs of `meta.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Meta {
    pub master_id: String,
    pub num_flows: usize,
    pub version: u32,
    /// Reply to `REPLCONF capa dragonfly`: 3 to 5 elements.
    pub capa: Vec<serde_json::Value>,
    pub info: String,
    pub flows: Vec<MetaFlow>,
    /// How far each flow had come when `DFLY STARTSTABLE` was sent.
    pub bytes_before_startstable: Vec<u64>,
    /// `DFLY REPLICAOFFSET` after the last write.
    pub replica_offset_at_end: Vec<u64>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct MetaFlow {
    pub eof_token: String,
    /// Offset of the token.
    pub eof_at: u64,
}

impl Recording {
    /// Loads the recording in `dir`, after checking that its parts fit together.
    pub fn load(dir: &Path) -> Result<Self, LabError> {
        let meta_path = dir.join("meta.json");
        let bad = |reason: String| LabError::Recording { path: meta_path.clone(), reason };
        let meta: Meta = serde_json::from_slice(&read(&meta_path)?).map_err(|error| bad(error.to_string()))?;
        let flows =
            (0..meta.num_flows).map(|i| read(&dir.join(format!("flow-{i}.bin")))).collect::<Result<Vec<_>, _>>()?;
        if meta.flows.len() != flows.len() || meta.bytes_before_startstable.len() != flows.len() {
            return Err(bad(format!("{} flows announced, other lists differ", flows.len())));
        }
        for (i, bytes) in flows.iter().enumerate() {
            let (before, eof_at) = (meta.bytes_before_startstable[i], meta.flows[i].eof_at);
            let token = usize::try_from(eof_at).ok().and_then(|at| bytes.get(at..)?.get(..40));
            if before > eof_at || token != Some(meta.flows[i].eof_token.as_bytes()) {
                return Err(bad(format!("flow {i}: its token does not stand at byte {eof_at}")));
            }
        }
        let truth_path = dir.join("truth.jsonl");
        let truth = String::from_utf8(read(&truth_path)?)
            .map_err(|error| LabError::Recording { path: truth_path, reason: error.to_string() })?;
        let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { name, meta, flows, truth })
    }

    /// The rows of `truth.jsonl` by database and key.
    pub fn truth_map(&self) -> Result<TruthMap, LabError> {
        parse_truth(&self.truth).map_err(|line| LabError::Recording {
            path: PathBuf::from(&self.name).join("truth.jsonl"),
            reason: format!("line {line} is no row"),
        })
    }

    /// Writes `truth.jsonl`, uncompressed, into `dir` for truth.py; returns its path.
    pub fn write_truth(&self, dir: &Path) -> Result<PathBuf, LabError> {
        let path = dir.join(format!("{}-truth.jsonl", self.name));
        std::fs::write(&path, &self.truth).map_err(|source| LabError::File { path: path.clone(), source })?;
        Ok(path)
    }

    /// Offset of the byte after the snapshot (header to EOF token) of a flow.
    pub fn snapshot_bytes(&self, flow: usize) -> usize {
        self.meta.flows[flow].eof_at as usize + 40
    }

    /// Offset of FULLSYNC_END in a flow: the last `c8` with its 8 zero bytes before STARTSTABLE. The recordings hold
    /// exactly one each; where there is none (inside a compressed blob), all bytes before STARTSTABLE must be sent.
    pub fn full_sync_end_at(&self, flow: usize) -> usize {
        const FULLSYNC_END: [u8; 9] = [0xc8, 0, 0, 0, 0, 0, 0, 0, 0];
        let before = self.meta.bytes_before_startstable[flow] as usize;
        memchr::memmem::rfind(&self.flows[flow][..before], &FULLSYNC_END).unwrap_or(before)
    }
}

/// The folder that holds the recordings: DF2REDIS_CAPTURES, else `tests/data` of the repository.
pub fn recordings_dir() -> PathBuf {
    std::env::var_os("DF2REDIS_CAPTURES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data"), PathBuf::from)
}

/// Names of all recordings at hand, sorted.
pub fn recording_names() -> Result<Vec<String>, LabError> {
    let dir = recordings_dir();
    let entries = std::fs::read_dir(&dir).map_err(|source| LabError::File { path: dir.clone(), source })?;
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().join("meta.json").is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    Ok(names)
}

/// Loads the recording called `name`.
pub fn recording(name: &str) -> Result<Recording, LabError> {
    let dir = recordings_dir();
    let path = dir.join(name);
    if !path.join("meta.json").is_file() {
        return Err(LabError::NoRecording { name: name.to_owned(), dir });
    }
    Recording::load(&path)
}

/// Reads `path`, or `path.zst` where only that exists.
fn read(path: &Path) -> Result<Vec<u8>, LabError> {
    let fail = |source| LabError::File { path: path.to_owned(), source };
    if path.is_file() {
        return std::fs::read(path).map_err(fail);
    }
    let mut packed = path.as_os_str().to_owned();
    packed.push(".zst");
    let file = std::fs::File::open(&packed).map_err(fail)?;
    zstd::stream::decode_all(file).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_recordings_load() {
        let names = recording_names().unwrap();
        assert!(names.len() >= 9, "{names:?}");
        for name in names {
            let recording = recording(&name).unwrap();
            assert!(!recording.truth_map().unwrap().is_empty());
            for flow in 0..recording.flows.len() {
                assert!(recording.flows[flow].starts_with(b"REDIS0009"));
                let end = recording.full_sync_end_at(flow);
                assert_eq!(recording.flows[flow][end], 0xc8, "{name} flow {flow}");
            }
        }
        assert!(matches!(recording("none"), Err(LabError::NoRecording { .. })));
    }
}
