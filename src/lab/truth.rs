//! Rows of `truth.jsonl`: what a server holds, one key a line, in the format of `tools/truth.py`.
//!
//! Here they are read (to answer `EXISTS` and the like for a replayed master) and `truth.py --compare` is run.

use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One key.
#[derive(Clone, Debug, PartialEq)]
pub struct TruthRow {
    pub db: u32,
    pub key: Vec<u8>,
    /// As in the file: `string`, `hash`, ..., `json`, `MBbloom--`.
    pub type_name: String,
    /// -1: none.
    pub expire_at_ms: i64,
    /// The whole row.
    pub row: Value,
}

impl TruthRow {
    /// Parses one line; `None` if it is no row.
    pub fn parse(line: &str) -> Option<Self> {
        let row: Value = serde_json::from_str(line).ok()?;
        Some(Self {
            db: u32::try_from(row.get("db")?.as_u64()?).ok()?,
            key: bytes_of(row.get("key")?)?,
            type_name: row.get("type")?.as_str()?.to_owned(),
            expire_at_ms: row.get("expire_at_ms")?.as_i64()?,
            row,
        })
    }

    /// The value's strings, where the row holds them (not a digest).
    pub fn value(&self) -> Option<Vec<Vec<u8>>> {
        self.row.get("value")?.as_array()?.iter().map(bytes_of).collect()
    }
}

/// Rows by database and key.
pub type TruthMap = HashMap<(u32, Vec<u8>), TruthRow>;

/// Parses a whole file; `Err` holds the number (from 1) of the first bad line.
pub fn parse_truth(text: &str) -> Result<TruthMap, usize> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(|(i, line)| TruthRow::parse(line).map(|row| ((row.db, row.key.clone()), row)).ok_or(i + 1))
        .collect()
}

/// A byte string as truth.py prints it: itself where it is printable ASCII, else base64.
pub fn json_of(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.bytes().all(|b| (0x20..0x7f).contains(&b)) => Value::from(text),
        _ => serde_json::json!({ "b64": base64(bytes) }),
    }
}

/// Runs `tools/truth.py` against a server on 127.0.0.1; `Ok` holds its output if nothing was wrong, else `Err` does.
pub fn compare(port: u16, truth_file: &Path, more_args: &[&str]) -> Result<String, String> {
    let tool = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tools/truth.py");
    let output = Command::new("python3")
        .arg(tool)
        .args(["--port", &port.to_string(), "--compare"])
        .arg(truth_file)
        .args(more_args)
        .output()
        .map_err(|error| format!("python3: {error}; install it, the comparison needs it"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(text) } else { Err(text) }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let b = [chunk[0], chunk.get(1).copied().unwrap_or(0), chunk.get(2).copied().unwrap_or(0)];
        let bits = u32::from_be_bytes([0, b[0], b[1], b[2]]);
        for i in 0..4 {
            let letter = ALPHABET[(bits >> (18 - 6 * i)) as usize & 63] as char;
            out.push(if i <= chunk.len() { letter } else { '=' });
        }
    }
    out
}

/// The bytes of a key or value as truth.jsonl writes them.
pub fn bytes_of(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::String(text) => Some(text.as_bytes().to_vec()),
        Value::Object(map) => from_base64(map.get("b64")?.as_str()?),
        _ => None,
    }
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    for letter in text.bytes().take_while(|b| *b != b'=') {
        let value = ALPHABET.iter().position(|a| *a == letter)?;
        bits = (bits << 6) | value as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        let text = r#"{"db": 5, "key": {"b64": "AAEC/w=="}, "type": "string", "expire_at_ms": -1, "value": ["v-"]}"#;
        let row = TruthRow::parse(text).unwrap();
        assert_eq!((row.db, row.key.as_slice()), (5, &[0u8, 1, 2, 255][..]));
        assert_eq!(row.value().unwrap(), [b"v-".to_vec()]);
        assert_eq!(json_of(&row.key), row.row["key"]);
        assert_eq!(parse_truth(&format!("{text}\n{{}}\n")), Err(2));
    }

    #[test]
    fn base64_round_trip() {
        for len in 0..20u32 {
            let bytes: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(37)).collect();
            assert_eq!(from_base64(&base64(&bytes)).unwrap(), bytes);
        }
    }
}
