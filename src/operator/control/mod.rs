//! The control socket: how `df2redis status`, `set`, `pause` and the like speak to a running job.
//!
//! A Unix socket of mode 0600; only the job's own user (and root) is answered, whatever the mode became. One JSON document
//! a line in each direction, a request at most [`REQUEST_BYTES_MAX`] long. The server runs on the job's control thread and
//! never waits for anybody: a peer that does not read or does not ask is dropped, and the job does not notice.

pub mod client;
pub mod server;
pub mod socket;

use crate::engine::cutover::Plan;
use crate::report::cutover::CutoverEvent;
use crate::report::status::Status;
use serde::{Deserialize, Serialize};

/// Version of the protocol; an answer names it.
pub const PROTOCOL_VERSION: u32 = 1;
/// Longest request.
pub const REQUEST_BYTES_MAX: usize = 16 * 1024;

/// What may be asked of a running job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    Status {},
    /// Changes a knob; sizes in bytes, times in ms, limits a second or `off`.
    Set {
        key: String,
        value: String,
    },
    /// Sends nothing more to the target until `Resume`.
    Pause {},
    Resume {},
    /// Limits what is sent to the target; what is not given has no limit.
    Throttle {
        #[serde(default)]
        bytes_per_s: Option<u64>,
        #[serde(default)]
        entries_per_s: Option<u64>,
    },
    /// Ends the job as the first SIGINT does.
    Stop {},
    /// Copies a key again from the source, in order with the journal. `key`: in hexadecimal digits.
    Repair {
        #[serde(default)]
        db: u32,
        key: String,
    },
    /// Hands over to the target, or says how it would be done. Answered by several lines, the last with `ended`; closing the
    /// connection before has it rolled back.
    Cutover(Plan),
}

/// What a job answers: one line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    pub protocol: u32,
    pub ok: bool,
    /// What was wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What was done, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Box<Status>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cutover: Option<CutoverEvent>,
}

impl Answer {
    pub fn done(text: impl Into<String>) -> Self {
        Self { protocol: PROTOCOL_VERSION, ok: true, done: Some(text.into()), ..Self::default() }
    }

    pub fn error(text: impl Into<String>) -> Self {
        Self { protocol: PROTOCOL_VERSION, error: Some(text.into()), ..Self::default() }
    }

    pub fn cutover(event: CutoverEvent) -> Self {
        Self { protocol: PROTOCOL_VERSION, ok: true, cutover: Some(event), ..Self::default() }
    }

    pub fn status(status: Status) -> Self {
        Self { protocol: PROTOCOL_VERSION, ok: true, status: Some(Box::new(status)), ..Self::default() }
    }
}

/// Keys are any bytes, and requests are text.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn bytes_of_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some((digit(pair.first()?)? << 4 | digit(pair.get(1)?)?) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_key_travels() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(bytes_of_hex(&hex(&all)), Some(all));
        assert_eq!(bytes_of_hex(""), Some(Vec::new()));
        assert!(["0", "0g", "+1", "é"].iter().all(|text| bytes_of_hex(text).is_none()));
    }

    #[test]
    fn requests_are_read_strictly() {
        let read = |text: &str| serde_json::from_str::<Request>(text);
        assert_eq!(read(r#"{"do":"status"}"#).unwrap(), Request::Status {});
        assert_eq!(
            read(r#"{"do":"throttle","bytes_per_s":5}"#).unwrap(),
            Request::Throttle { bytes_per_s: Some(5), entries_per_s: None }
        );
        let plan = r#"{"do":"cutover","budget_ms":1,"hook_timeout_ms":1,"lag_entries_max":1,"wait_ms":1}"#;
        assert!(matches!(read(plan).unwrap(), Request::Cutover(plan) if !plan.execute));
        for text in [
            "",
            "{}",
            r#"{"do":"dance"}"#,
            r#"{"do":"pause","for":3}"#,
            r#"{"do":"set","key":"a"}"#,
            r#"{"do":"throttle","bytes_per_s":-1}"#,
            r#"{"do":"throttle","bytes_per_second":1}"#,
            r#"{"do":"cutover"}"#,
            r#"{"do":"cutover","budget_ms":1,"hook_timeout_ms":1,"lag_entries_max":1,"wait_ms":1,"force":true}"#,
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
