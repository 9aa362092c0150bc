//! Where the recorded streams are, and how to read them.
//!
//! A recording is a folder with `flow-N.bin`, `meta.json` and `truth.jsonl`, each plain or zstd-compressed (`.zst`).

use std::path::{Path, PathBuf};

/// One recorded master.
pub struct Capture {
    pub name: String,
    dir: PathBuf,
}

impl Capture {
    /// A file of the recording, unpacked.
    pub fn file(&self, name: &str) -> Vec<u8> {
        let plain = self.dir.join(name);
        if let Ok(bytes) = std::fs::read(&plain) {
            return bytes;
        }
        let packed = self.dir.join(format!("{name}.zst"));
        let file = std::fs::File::open(&packed)
            .unwrap_or_else(|e| panic!("{} and {}: {e}", plain.display(), packed.display()));
        zstd::stream::decode_all(file).unwrap_or_else(|e| panic!("{}: {e}", packed.display()))
    }

    pub fn meta(&self) -> serde_json::Value {
        serde_json::from_slice(&self.file("meta.json")).expect("meta.json is JSON")
    }

    /// All bytes of each flow.
    pub fn flows(&self) -> Vec<Vec<u8>> {
        let count = self.meta()["flows"].as_array().expect("meta.json names flows").len();
        (0..count).map(|flow| self.file(&format!("flow-{flow}.bin"))).collect()
    }

    /// What the master held at the end, one key a row.
    pub fn truth(&self) -> Vec<serde_json::Value> {
        let text = String::from_utf8(self.file("truth.jsonl")).expect("truth.jsonl is UTF-8");
        text.lines().map(|line| serde_json::from_str(line).expect("a row of truth.jsonl is JSON")).collect()
    }
}

/// All recordings, by name. Looked for in `DF2REDIS_CAPTURES`, `tests/data` and `../shared/captures`.
pub fn captures() -> Vec<Capture> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let places = [
        std::env::var_os("DF2REDIS_CAPTURES").map(PathBuf::from),
        Some(root.join("tests/data")),
        Some(root.join("../shared/captures")),
        Some(root.join("../../shared/captures")),
    ];
    for place in places.into_iter().flatten() {
        let mut found = in_folder(&place);
        if !found.is_empty() {
            found.sort_by(|a, b| a.name.cmp(&b.name));
            return found;
        }
    }
    panic!("no recorded streams found; set DF2REDIS_CAPTURES to the folder that holds them");
}

fn in_folder(place: &Path) -> Vec<Capture> {
    let Ok(entries) = std::fs::read_dir(place) else { return Vec::new() };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|dir| dir.join("meta.json").exists() || dir.join("meta.json.zst").exists())
        .map(|dir| Capture { name: dir.file_name().unwrap_or_default().to_string_lossy().into_owned(), dir })
        .collect()
}
