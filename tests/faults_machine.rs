//! What the machine withholds: locked memory, for a user without privileges.
//!
//! In: the program, run as nobody under `prlimit`. Out: it works, or it says which limit to raise; it never panics.

use df2redis::lab::torture::tool_binary;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

const NOBODY: u32 = 65_534;

/// Runs a copy of the program that nobody may execute, with this limit on locked memory.
fn run(dir: &Path, memlock_bytes: u64, arguments: &[&str]) -> std::io::Result<Output> {
    let program = dir.join("df2redis");
    if !program.exists() {
        std::fs::copy(tool_binary(env!("CARGO_BIN_EXE_df2redis")), &program)?;
    }
    let mut command = Command::new("prlimit");
    command.arg(format!("--memlock={memlock_bytes}:{memlock_bytes}")).arg(program).args(arguments);
    command.current_dir(dir).env("TMPDIR", dir);
    if std::fs::metadata("/proc/self")?.uid() == 0 {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.output()
}

#[test]
fn little_locked_memory_is_named_or_done_without() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    for (memlock_bytes, must_work) in [(65_536, false), (1 << 20, false), (8 << 20, true)] {
        let output = match run(dir.path(), memlock_bytes, &["demo", "--keys", "2000", "--cores", "1"]) {
            Ok(output) => output,
            Err(error) => {
                println!("skipped: {error}");
                return;
            }
        };
        let errors = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(0) => {}
            Some(7) if !must_work => assert!(errors.contains("RLIMIT_MEMLOCK is"), "{errors}"),
            code => panic!("{memlock_bytes} bytes: {code:?}: {errors}"),
        }
        assert!(!errors.contains("panicked"), "{errors}");
    }
}
