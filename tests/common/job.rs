//! A `replicate` that a test follows: which binary, which seeds, waiting while it runs, stopping it.

use df2redis::lab::live::Live;
use df2redis::lab::torture::{Tool, tool_binary, wait_for};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The program; another binary (DF2REDIS_TOOL) shows whether a test finds an old bug.
pub fn binary() -> &'static Path {
    static TOOL: OnceLock<PathBuf> = OnceLock::new();
    TOOL.get_or_init(|| tool_binary(env!("CARGO_BIN_EXE_df2redis")))
}

/// Seeds of a test: `few`, or as many as DF2REDIS_SEEDS says, from DF2REDIS_SEED on.
pub fn seeds(few: u64) -> Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("DF2REDIS_SEED").unwrap_or(1);
    first..first + number("DF2REDIS_SEEDS").unwrap_or(few)
}

/// Waits for it, while the tool runs.
#[track_caller]
pub fn until(tool: &mut Tool, what: &str, mut look: impl FnMut() -> bool) {
    let reached = wait_for(|| {
        if let Some(code) = tool.ended() {
            panic!("{what}; the tool ended with {code}:\n{}", tool.said());
        }
        look().then_some(())
    });
    assert!(reached.is_some(), "{what}:\n{}", tool.said());
}

/// What `df2redis status` says by this socket; `null` where the job does not answer.
pub fn status(socket: &Path) -> serde_json::Value {
    let status = Command::new(binary()).arg("status").arg("--control").arg(socket).args(["--output", "json"]).output();
    let answer: serde_json::Value = serde_json::from_slice(&status.unwrap().stdout).unwrap_or_default();
    answer["status"].clone()
}

/// What holds it back.
pub fn reasons(socket: &Path) -> String {
    status(socket)["throttle"]["reasons"].to_string()
}

/// An interrupt, and its end.
#[track_caller]
pub fn stop(tool: &mut Tool) {
    tool.signal("INT");
    assert_eq!(tool.wait(), Some(130), "{}", tool.said());
}

/// The source executes a command, its words parted by spaces.
pub fn run(live: &Live, line: &str) {
    let args: Vec<Vec<u8>> = line.split(' ').map(|word| word.as_bytes().to_vec()).collect();
    live.world().run(0, &args);
}
