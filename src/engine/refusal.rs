//! A target that refuses for a while: out of memory, not able to persist, loading, busy, a replica, access taken away.
//!
//! Such a reply says that the command was not executed, because of the state that the server is in. The lane then holds: it
//! sends nothing more, takes the replies to what is under way, and sends everything again from the first refused command
//! on, one batch at a time, with growing pauses, until the server takes it or the operator's limit has passed.
//!
//! In: batches with the places of their refused commands. Out: the same, cut to what is to be sent again, or an error.
//! Invariants: nothing is skipped; nothing guarded is sent twice; a command that was executed although one before it on the
//! same key was not, and that cannot simply be repeated, ends the run (the server changed its mind in the middle of what was
//! under way). Blind commands may be repeated (`convert::journal::table`), except an XADD behind one that was refused.

use super::batch::Batch;
use super::error::EngineError;
use super::lane::{Lane, position_of, select_batch};
use super::messages::NodeName;
use super::patience::jittered;
use super::target::OWN_PREFIX;
use crate::redis::request::{self, CommandHead};
use crate::uring::Slab;
use std::collections::HashSet;
use std::time::Duration;

/// Pauses between attempts.
const PAUSE_FIRST_NS: u64 = 50_000_000;
const PAUSE_LAST_NS: u64 = 2_000_000_000;
/// A lane that holds says so this often.
const SAY_EVERY_NS: u64 = 5_000_000_000;
/// Why a connection is made again whose user is refused: once, and not again at each attempt.
const LOGGING_IN: &str = "access was refused: logging in again";

/// A lane that waits for its server.
#[derive(Clone, Debug)]
pub struct Hold {
    pub since_ns: u64,
    /// The server's words to the first refused command of the last attempt, with its name and key.
    pub text: String,
    /// They were said in the attempt that was begun last.
    is_fresh: bool,
    /// They refuse the user.
    of_access: bool,
    /// Before the next attempt the connection is made again, for this reason.
    pub wants_anew: Option<&'static str>,
    said_ns: u64,
    pause_ns: u64,
    next_try_ns: u64,
    /// The next attempt is under way.
    pub trying: bool,
    /// The server took a batch again.
    pub taken: bool,
}

impl Hold {
    /// `of_access`: the user is refused.
    pub fn new(text: String, of_access: bool, now_ns: u64) -> Self {
        tracing::warn!(%text, "the target refuses: holding, and trying again");
        let pause_ns = PAUSE_FIRST_NS;
        let next_try_ns = after(pause_ns, now_ns);
        Self {
            since_ns: now_ns,
            text,
            is_fresh: true,
            of_access,
            wants_anew: of_access.then_some(LOGGING_IN),
            said_ns: now_ns,
            pause_ns,
            next_try_ns,
            trying: false,
            taken: false,
        }
    }

    /// A command is refused in the middle of an attempt: the server may have another reason by now.
    pub fn refused(&mut self, text: String, of_access: bool) {
        if !self.trying || std::mem::replace(&mut self.is_fresh, true) {
            return;
        }
        if of_access && !self.of_access {
            self.wants_anew = Some(LOGGING_IN);
        }
        (self.text, self.of_access) = (text, of_access);
    }

    /// Refused again.
    pub fn again(&mut self, now_ns: u64) {
        self.trying = false;
        self.taken = false;
        self.pause_ns = (self.pause_ns * 2).min(PAUSE_LAST_NS);
        self.next_try_ns = after(self.pause_ns, now_ns);
        if now_ns >= self.said_ns + SAY_EVERY_NS {
            self.said_ns = now_ns;
            let seconds = (now_ns - self.since_ns) / 1_000_000_000;
            tracing::warn!(text = %self.text, seconds, "the target still refuses");
        }
    }

    /// Whether an attempt may begin. Errors: the limit has passed.
    pub fn may_try(&mut self, now_ns: u64, retry_max: Duration) -> Result<bool, EngineError> {
        if !self.trying && u128::from(now_ns - self.since_ns) > retry_max.as_nanos() {
            return Err(EngineError::Target(format!(
                "{} (tried again for {retry_max:?}, see --retry-max; nothing behind it was applied on its key)",
                self.text
            )));
        }
        if !self.trying && now_ns >= self.next_try_ns {
            (self.trying, self.is_fresh) = (true, false);
        }
        Ok(self.trying)
    }

    pub fn held_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.since_ns)
    }
}

/// The moment after such a pause.
fn after(pause_ns: u64, now_ns: u64) -> u64 {
    now_ns + jittered(Duration::from_nanos(pause_ns), now_ns).as_nanos() as u64
}

/// Whether an error reply refuses because of the server's state. `in_refused_group`: a command of its group was refused.
pub fn refuses(text: &[u8], in_refused_group: bool) -> bool {
    match code(text) {
        b"OOM" | b"MISCONF" | b"LOADING" | b"READONLY" | b"BUSY" | b"NOREPLICAS" | b"MASTERDOWN" => true,
        b"EXECABORT" => in_refused_group || because(text).is_some_and(|cause| refuses(cause, false)),
        _ => refuses_access(text),
    }
}

/// The same, and not because of the user: it may pass by itself.
pub fn refuses_for_now(text: &[u8]) -> bool {
    refuses(text, false) && !refuses_access(text)
}

/// It has no memory left.
pub fn is_full(text: &[u8]) -> bool {
    code(text) == b"OOM" || code(text) == b"EXECABORT" && because(text).is_some_and(is_full)
}

/// The server may be a replica, which copies another one's data.
pub fn may_copy(text: &[u8]) -> bool {
    match code(text) {
        b"READONLY" | b"MASTERDOWN" | b"LOADING" => true,
        _ => because(text).is_some_and(may_copy),
    }
}

/// The user, its password or its permissions were changed.
pub fn refuses_access(text: &[u8]) -> bool {
    refuses_login(text) || code(text) == b"NOPERM" || refuses_in_script(text)
}

/// What a script may not call is refused with no code of its own. Redis before 7.2 does not name the command, and before 7.0 it puts
/// the place in front: `ERR Error running script (call to f_...): @user_script:1: @user_script: 1: The user ...`, or that from
/// `@user_script` on, where the script hands the error on.
fn refuses_in_script(text: &[u8]) -> bool {
    let at = |words: &[u8]| memchr::memmem::find(text, words);
    let in_front = text.starts_with(b"ERR Error running script") || text.starts_with(b"@user_script: ");
    at(b"ACL failure in script").is_some_and(|at| at <= 4)
        || at(b"The user executing the script ").is_some_and(|at| at <= 4 || in_front && text[..at].ends_with(b": "))
}

/// The connection is nobody's: its user, or the password, is not, or not any more, the server's.
pub fn refuses_login(text: &[u8]) -> bool {
    matches!(code(text), b"NOAUTH" | b"WRONGPASS")
}

fn code(text: &[u8]) -> &[u8] {
    let text = of_script(text).unwrap_or(text);
    text.split(|byte| *byte == b' ').next().unwrap_or(text)
}

/// What a command in a script was answered before Redis 7: `ERR Error running script (call to f_...): @user_script:1:
/// @user_script: 1: -READONLY You can't write against a read only replica.`
fn of_script(text: &[u8]) -> Option<&[u8]> {
    let rest = text.strip_prefix(b"ERR Error running script")?;
    let mark = b": -";
    memchr::memmem::find(rest, mark).and_then(|at| rest.get(at + mark.len()..))
}

/// `EXECABORT Transaction discarded because of: OOM command not allowed ...`
fn because(text: &[u8]) -> Option<&[u8]> {
    let mark = b"because of: ";
    memchr::memmem::find(text, mark).and_then(|at| text.get(at + mark.len()..))
}

/// Takes the batches that were returned after a refusal, all answered, and puts what of them must be sent again in front of
/// what waits. Returns those that are done.
pub fn settle(lane: &mut Lane, slab: &mut Slab) -> Result<Vec<Batch>, EngineError> {
    let returned = std::mem::take(&mut lane.returned);
    let mut again: Vec<Batch> = Vec::with_capacity(returned.len());
    let (mut done, mut waiting) = (Vec::new(), Waiting::default());
    for mut batch in returned {
        let executed = batch.guard.is_some() && !batch.aborted;
        let group_at = batch.guard.map_or(batch.commands, |guard| guard.first_command);
        let first = if again.is_empty() && !waiting.select { batch.first_refused() } else { Some(0) };
        let from = first.unwrap_or(batch.commands).min(if executed { group_at } else { batch.commands });
        waiting.walk(&batch, slab, from, executed.then_some(group_at), &lane.name)?;
        let end = if executed { group_at } else { batch.commands };
        // Each batch gets a SELECT of its own.
        if from >= end || batch.preamble {
            // Its positions may be told only when everything before is done.
            if let Some(last) = again.last_mut() {
                last.positions.append(&mut batch.positions);
            }
            done.push(batch);
            continue;
        }
        if executed {
            if !batch.positions.is_empty() {
                return Err(out_of_order(&lane.name, "the position of records that were refused"));
            }
            let (offset, _) = position_of(&batch, slab, group_at)?;
            let (bytes, commands) = (batch.bytes, batch.commands);
            batch.cut(slab, offset, group_at);
            lane.unacked_bytes = lane.unacked_bytes.saturating_sub(bytes - batch.bytes);
            lane.unacked_commands = lane.unacked_commands.saturating_sub(u64::from(commands - batch.commands));
        }
        let (offset, _) = position_of(&batch, slab, from)?;
        batch.replied = from;
        batch.sent_bytes = offset;
        // Those behind the refused one were executed.
        batch.put_in_doubt(from..batch.commands);
        again.push(batch);
    }
    // What waits was closed for a connection on which all of this had been executed.
    let behind = lane.ready.front().map_or(lane.encoder.batch.db_at_start, |batch| batch.db_at_start);
    if !again.is_empty() {
        push_front(lane, select_batch(slab, behind));
    }
    for mut batch in again.into_iter().rev() {
        let (_, db) = position_of(&batch, slab, batch.replied)?;
        batch.refused.clear();
        batch.aborted = false;
        lane.ready.push_front(batch);
        push_front(lane, select_batch(slab, db));
    }
    Ok(done)
}

fn push_front(lane: &mut Lane, batch: Batch) {
    lane.unacked_bytes += batch.bytes;
    lane.unacked_commands += u64::from(batch.commands);
    lane.ready.push_front(batch);
}

/// What is to be sent again, so far.
#[derive(Default)]
struct Waiting {
    keys: HashSet<Vec<u8>>,
    /// A command with more keys than the first is among them.
    others: bool,
    /// Streams with a refused XADD.
    streams: HashSet<Vec<u8>>,
    /// The change of the database was refused.
    select: bool,
}

impl Waiting {
    /// Commands of `batch` from `from` on are to be sent again, those from `executed_at` on were executed as a group.
    fn walk(
        &mut self,
        batch: &Batch,
        slab: &Slab,
        from: u32,
        executed_at: Option<u32>,
        node: &NodeName,
    ) -> Result<(), EngineError> {
        if from >= batch.commands && self.keys.is_empty() && !self.others {
            return Ok(());
        }
        for (index, command) in (0u32..).zip(request::commands(batch.slices(slab))) {
            let command = command
                .map_err(|e| EngineError::Internal(format!("a batch cannot be read again after a refusal: {e}")))?;
            if executed_at.is_some_and(|at| index >= at) {
                self.executed(&command, node)?;
            } else if index >= from {
                let refused = batch.aborted && batch.guard.is_some_and(|guard| index >= guard.first_command)
                    || batch.refused.binary_search(&index).is_ok();
                self.sent_again(&command, refused, node)?;
            }
        }
        Ok(())
    }

    fn sent_again(&mut self, command: &CommandHead, refused: bool, node: &NodeName) -> Result<(), EngineError> {
        if command.name == b"SELECT" {
            self.select |= refused;
            return Ok(());
        }
        let Some(key) = command.first_key.as_ref().filter(|key| !key.starts_with(OWN_PREFIX.as_bytes())) else {
            return Ok(());
        };
        if self.select && !refused {
            return Err(out_of_order(node, "a key, after the change to its database had been refused"));
        }
        if command.name == b"XADD" {
            if refused {
                self.streams.insert(key.clone());
            } else if self.streams.contains(key) {
                return Err(out_of_order(node, &format!("a later entry of the stream {}", key.escape_ascii())));
            }
        }
        self.others |= has_more_keys(command);
        self.keys.insert(key.clone());
        Ok(())
    }

    fn executed(&self, command: &CommandHead, node: &NodeName) -> Result<(), EngineError> {
        let Some(key) = command.first_key.as_ref().filter(|key| !key.starts_with(OWN_PREFIX.as_bytes())) else {
            return Ok(());
        };
        let touches = self.select || self.others || self.keys.contains(key) || has_more_keys(command);
        if touches && (!self.keys.is_empty() || self.others) {
            let what = format!("{} {}", command.name.escape_ascii(), key.escape_ascii());
            return Err(out_of_order(node, &what));
        }
        Ok(())
    }
}

/// Whether a command may have keys besides the first.
fn has_more_keys(command: &CommandHead) -> bool {
    match command.name.as_slice() {
        b"DEL" | b"UNLINK" => command.args_count > 2,
        b"MSET" => command.args_count > 3,
        b"EVAL" => command.script_keys_count != Some(1),
        b"JSON.MSET" | b"RENAME" | b"RENAMENX" | b"LMOVE" | b"RPOPLPUSH" | b"SORT" | b"GEORADIUS"
        | b"GEORADIUSBYMEMBER" | b"CMS.MERGE" | b"MOVE" | b"COPY" | b"LMPOP" | b"ZMPOP" | b"ZUNIONSTORE"
        | b"ZINTERSTORE" | b"ZDIFFSTORE" | b"ZRANGESTORE" => true,
        _ => false,
    }
}

#[cold]
fn out_of_order(node: &NodeName, what: &str) -> EngineError {
    EngineError::Torn(format!(
        "{node} refused commands for a moment and then executed {what}, which stood behind them and cannot be repeated: the \
         target's data is not to be trusted; give the target what it lacks (memory, disk, permissions) and run again with \
         --on-existing flush"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lanes of many workers that were refused within a millisecond try again one by one, each time.
    #[test]
    fn holds_that_begin_together_do_not_try_again_together() {
        let begun = |at: u64| Hold::new("OOM".into(), false, 1_000_000_000 + 10_000 * at);
        let mut holds: Vec<Hold> = (0..100).map(begun).collect();
        for round in 1..=6 {
            let pauses: HashSet<u64> = holds.iter().zip(0..).map(|(hold, at)| hold.next_try_ns - 10_000 * at).collect();
            assert!(pauses.len() > 80, "round {round}: {pauses:?}");
            for (hold, at) in holds.iter_mut().zip(0..) {
                let now_ns = (round + 1) * 1_000_000_000 + 10_000 * at;
                hold.again(now_ns);
                let pause_ns = hold.next_try_ns - now_ns;
                assert!((hold.pause_ns / 2..hold.pause_ns * 3 / 2).contains(&pause_ns), "{hold:?}");
            }
        }
    }

    #[test]
    fn refusals_are_told_from_errors() {
        for text in [
            "OOM command not allowed when used memory > 'maxmemory'.",
            "MISCONF Redis is configured to save RDB snapshots",
            "LOADING Redis is loading the dataset in memory",
            "READONLY You can't write against a read only replica.",
            "BUSY Redis is busy running a script.",
            "NOPERM this user has no permissions",
            "ERR ACL failure in script: User df2redis has no permissions to run the 'hpexpiretime' command",
            "ERR The user executing the script can't run this command or subcommand script: 01, on @user_script:1.",
            "@user_script: 1: The user executing the script can't run this command or subcommand",
            "ERR Error running script (call to f_0123): @user_script:1: @user_script: 1: The user executing the script can't \
             run this command or subcommand",
            "EXECABORT Transaction discarded because of: OOM command not allowed",
            "ERR Error running script (call to f_0123): @user_script:1: @user_script: 1: -READONLY You can't write against a \
             read only replica.",
        ] {
            assert!(refuses(text.as_bytes(), false), "{text}");
        }
        assert!(
            is_full(b"OOM command not allowed") && is_full(b"EXECABORT Transaction discarded because of: OOM command")
        );
        assert!(may_copy(b"READONLY You can't write") && !may_copy(b"OOM command not allowed"));
        assert!(may_copy(b"EXECABORT Transaction discarded because of: READONLY You can't write"));
        let aborted = b"EXECABORT Transaction discarded because of previous errors.";
        assert!(!is_full(aborted) && !is_full(b"OOMX") && !is_full(b"READONLY because of: OOM"));
        assert!(refuses(aborted, true) && !refuses(aborted, false));
        let quoted = "ERR unknown command 'The user executing the script '";
        for text in
            ["ERR unknown command", "WRONGTYPE Operation", "BUSYKEY Target key name already exists.", "OOMX", quoted]
        {
            assert!(!refuses(text.as_bytes(), true), "{text}");
        }
    }

    /// A command that reads a refused key besides its first must not go unnoticed.
    #[test]
    fn every_command_of_several_keys_is_known() {
        use crate::convert::journal::table::{How, Keys, TABLE};
        let head = |name: &str, first_key, script_keys_count| {
            let name = name.into();
            CommandHead { name, first_key, script_keys_count, args_count: 5, bytes_offset: 0, bytes_len: 0 }
        };
        let told_as = |name: &'static str, how| match (name, how) {
            (_, How::MultiPop(name, _) | How::Unblock(name)) => Some(name),
            (_, How::MSet) => Some("MSET"),
            (_, How::Del) => Some("DEL"),
            (_, How::Drop | How::PfMerge) => None,
            (name, _) => Some(name),
        };
        let several = TABLE.iter().filter(|row| !matches!(row.keys, Keys::Nothing | Keys::First | Keys::Second));
        for name in several.filter_map(|row| told_as(row.name, row.how)) {
            let first_key = Some(b"k".to_vec());
            assert!(has_more_keys(&head(name, first_key, None)), "{name}");
        }
        for (count, more) in [(Some(1), false), (Some(2), true), (None, true)] {
            assert_eq!(has_more_keys(&head("EVAL", Some(b"k".to_vec()), count)), more, "{count:?}");
        }
    }

    #[test]
    fn each_attempt_has_its_own_reason() {
        let mut hold = Hold::new("OOM".into(), false, 0);
        let mut now_ns = 0;
        for (text, of_access, logs_in) in
            [("MISCONF", false, false), ("NOPERM", true, true), ("NOPERM of another", true, false)]
        {
            // What was under way tells nothing new, nor does what stands behind the first refused command.
            hold.refused("EXECABORT".into(), true);
            now_ns += 10_000_000_000;
            assert!(hold.may_try(now_ns, Duration::MAX).unwrap());
            hold.refused(text.into(), of_access);
            hold.refused("EXECABORT".into(), true);
            assert_eq!((hold.text.as_str(), hold.wants_anew.take().is_some()), (text, logs_in));
            hold.again(now_ns);
        }
    }

    #[test]
    fn pauses_grow_and_end() {
        let mut hold = Hold::new("x".into(), false, 1_000);
        let mut now = 1_000;
        let mut tries = 0;
        let error = loop {
            match hold.may_try(now, Duration::from_secs(10)) {
                Ok(true) => {
                    tries += 1;
                    hold.again(now);
                }
                Ok(false) => now += 1_000_000,
                Err(error) => break error,
            }
        };
        assert!((8..=16).contains(&tries), "{tries}");
        assert!(error.to_string().contains("--retry-max"));
    }
}
