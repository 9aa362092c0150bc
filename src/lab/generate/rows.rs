//! Parts of a row in the format of tools/truth.py, shared by the models.

use super::sha256::Sha256;
use crate::lab::truth::json_of;
use serde_json::{Value as Json, json};

/// Longest value that a row holds in full.
const ROW_VALUE_BYTES_MAX: usize = 2048;

/// A row without its value.
pub fn head(db: u32, key: &[u8], type_name: &str, expire_at_ms: Option<i64>) -> Json {
    json!({ "db": db, "key": json_of(key), "type": type_name, "expire_at_ms": expire_at_ms.unwrap_or(-1) })
}

/// `flat` of truth.py: the strings themselves while they are short in all, else count, bytes and digest.
#[derive(Default)]
pub struct Flat {
    parts: Vec<Json>,
    count: u64,
    bytes: usize,
    digest: Sha256,
}

impl Flat {
    /// One more string.
    pub fn part(&mut self, bytes: &[u8]) {
        self.begin(bytes.len());
        if self.bytes <= ROW_VALUE_BYTES_MAX {
            self.parts.push(json_of(bytes));
        }
        self.digest.update(bytes);
    }

    /// One part given in blocks.
    pub fn long(&mut self, len: u64, block: impl Fn(u64) -> Vec<u8>) {
        if len as usize <= ROW_VALUE_BYTES_MAX {
            return self.part(&block(len));
        }
        self.begin(len as usize);
        let mut left = len;
        // Every block of a value is a front part of the first one.
        let first = block(left);
        while left > 0 {
            let take = left.min(first.len() as u64);
            self.digest.update(&first[..take as usize]);
            left -= take;
        }
    }

    fn begin(&mut self, len: usize) {
        self.count += 1;
        self.bytes += len;
        self.digest.update(&(len as u64).to_le_bytes());
    }

    /// The row with the value.
    pub fn into_row(self, mut row: Json) -> Json {
        if self.bytes <= ROW_VALUE_BYTES_MAX {
            row["value"] = Json::Array(self.parts);
        } else {
            row["items"] = json!(self.count);
            row["bytes"] = json!(self.bytes);
            row["sha256"] = json!(self.digest.hex());
        }
        row
    }
}
