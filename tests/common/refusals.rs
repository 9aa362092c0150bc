//! Every answer by which a server says that it does not execute a command because of the state that it is in, with the words of
//! real ones (Redis 7 and 8, Valkey 9). What becomes of each is told in `tests/refusals.rs`.

/// One class of them.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    pub code: &'static str,
    /// The whole line, with `{command}` where the server names what it was told.
    pub text: &'static str,
    pub to: To,
    /// What the operator is told to look after.
    pub remedy: &'static str,
}

/// What is answered so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// Any command; the EXEC of a transaction in which one was refused says that it is discarded.
    Commands,
    /// The same, and an EXEC by itself, where the state began when all was queued: discarded, because of this.
    CommandsAndExec,
    /// AUTH, on the connection that is made after NOAUTH.
    Login,
}

impl Refusal {
    /// The line that a command gets.
    pub fn answer(&self, command: &str) -> String {
        format!("-{}", self.text.replace("{command}", &command.to_ascii_lowercase()))
    }

    /// The line that an EXEC gets, if it can.
    pub fn answer_to_exec(&self) -> Option<String> {
        let text = self.text;
        (self.to == To::CommandsAndExec).then(|| format!("-EXECABORT Transaction discarded because of: {text}"))
    }
}

const fn refusal(code: &'static str, text: &'static str, to: To, remedy: &'static str) -> Refusal {
    Refusal { code, text, to, remedy }
}

pub const NOAUTH: Refusal =
    refusal("NOAUTH", "NOAUTH Authentication required.", To::Commands, "check the target's user and password");

/// All of them are held, tried again with growing pauses, and told in the status; the end is at `--retry-max`, with exit code 5.
pub const REFUSALS: [Refusal; 10] = [
    refusal(
        "OOM",
        "OOM command not allowed when used memory > 'maxmemory'.",
        To::CommandsAndExec,
        "raise its maxmemory",
    ),
    refusal(
        "MISCONF",
        "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk. Commands that may modify \
         the data set are disabled, because this instance is configured to report errors during writes if RDB snapshotting fails \
         (stop-writes-on-bgsave-error option). Please check the Redis logs for details about the RDB error.",
        To::CommandsAndExec,
        "free its disk",
    ),
    refusal("LOADING", "LOADING Redis is loading the dataset in memory", To::CommandsAndExec, "is still loading"),
    refusal(
        "BUSY",
        "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
        To::CommandsAndExec,
        "SCRIPT KILL",
    ),
    refusal(
        "READONLY",
        "READONLY You can't write against a read only replica.",
        To::CommandsAndExec,
        "address of its primary",
    ),
    refusal("NOREPLICAS", "NOREPLICAS Not enough good replicas to write.", To::CommandsAndExec, "lacks replicas"),
    refusal(
        "MASTERDOWN",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        To::CommandsAndExec,
        "or its primary",
    ),
    NOAUTH,
    refusal(
        "WRONGPASS",
        "WRONGPASS invalid username-password pair or user is disabled.",
        To::Login,
        "check the target's user and password",
    ),
    refusal(
        "NOPERM",
        "NOPERM User default has no permissions to run the '{command}' command",
        To::Commands,
        "lacks a permission",
    ),
];
