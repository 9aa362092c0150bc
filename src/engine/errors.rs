//! Error replies of the target: which are expected, and what the others mean for the operator.

use super::batch::Batch;
use super::error::EngineError;
use super::lane::{Fault, Verdict};
use super::messages::NodeName;
use super::{refusal, rows};
use crate::convert::journal::replies::{ErrorMeaning, error_meaning};
use crate::redis::request;
use crate::report::document::NotCarried;
use crate::uring::Slab;

/// So much of a script's command is copied to name it.
const SCRIPT_SHOWN_MAX: usize = 160;

/// Looks at the error reply `text` to command `index` of `batch`. `Ok` where the reply is no sign of divergence.
/// `again`: the command may have been applied before.
pub fn judge(
    batch: &Batch,
    slab: &Slab,
    index: u32,
    node: &NodeName,
    text: &[u8],
    again: bool,
) -> Result<Verdict, EngineError> {
    let head = request::nth_command(batch.slices(slab), u64::from(index))
        .map_err(|e| EngineError::Internal(format!("a batch cannot be read again after an error reply: {e}")))?;
    let name = head.name;
    let key = head.first_key.unwrap_or_default();
    let meaning = error_meaning(&name, text, again);
    if meaning == ErrorMeaning::ScriptRefused {
        return Ok(Verdict::ScriptRefused);
    }
    if meaning != ErrorMeaning::Unexpected {
        tracing::debug!(%node, command = %name.escape_ascii(), key = %key.escape_ascii(),
            reply = %text.escape_ascii(), ?meaning, "expected error reply");
        return Ok(Verdict::Done);
    }
    if refusal::refuses(text, batch.aborted || !batch.refused.is_empty()) {
        return Ok(Verdict::Refused);
    }
    Err(EngineError::Target(describe(node, &name, &key, text)))
}

/// What a refused command was answered, in words.
pub fn describe_refusal(batch: &Batch, slab: &Slab, index: u32, node: &NodeName, text: &[u8]) -> String {
    let head = request::nth_command(batch.slices(slab), u64::from(index)).ok();
    let (name, key) = head.map(|head| (head.name, head.first_key.unwrap_or_default())).unwrap_or_default();
    describe(node, &name, &key, text)
}

fn describe(node: &NodeName, name: &[u8], key: &[u8], text: &[u8]) -> String {
    format!(
        "{node} answered \"{}\" to {} {}; {}",
        text.escape_ascii(),
        name.escape_ascii(),
        key.escape_ascii(),
        remedy(text)
    )
}

/// The same for a lane of a cluster. A command that the node sent elsewhere, or cannot execute yet, is `Rejected`, what it
/// refuses because of its own state `Refused`; so is the EXEC of its group.
pub fn judge_in_cluster(
    batch: &Batch,
    slab: &Slab,
    fault: Fault,
    node: &NodeName,
    text: &[u8],
) -> Result<Verdict, EngineError> {
    if is_rejection(text) {
        tracing::debug!(%node, reply = %text.escape_ascii(), "rejected");
        return Ok(Verdict::Rejected);
    }
    if fault.element.is_none() && refusal::refuses(text, false) {
        return Ok(Verdict::Refused);
    }
    // An error of a command of its group came right before.
    if text.starts_with(b"EXECABORT") && batch.has_unexecuted() {
        return Ok(if batch.rejected.last() > batch.refused.last() { Verdict::Rejected } else { Verdict::Refused });
    }
    if fault.element.is_none() && !text.starts_with(b"ERR EXEC without MULTI") {
        return judge(batch, slab, fault.command, node, text, batch.is_in_doubt(fault.command));
    }
    let units = super::units::units_of(batch, slab)?;
    let group = units.into_iter().map(|(range, _)| range).find(|range| range.contains(&fault.command));
    let first = group.map_or(fault.command, |range| range.start);
    if let Some(element) = fault.element {
        let command = first.saturating_add(1).saturating_add(element);
        return judge(batch, slab, command, node, text, batch.is_in_doubt(command));
    }
    // Its MULTI was refused: then its commands were executed one by one, those that were not refused.
    let refused = |command: u32| batch.refused.contains(&command) || batch.rejected.contains(&command);
    match (first..fault.command).all(refused) {
        true => Ok(Verdict::Refused),
        false => Err(EngineError::Torn(format!(
            "{node} refused a MULTI and executed commands that stood in it; run again with --on-existing flush"
        ))),
    }
}

/// Whether an error of a cluster's node says that the command was not executed, and may be elsewhere or later.
pub fn is_rejection(text: &[u8]) -> bool {
    let code = text.split(|b| *b == b' ').next().unwrap_or(text);
    matches!(code, b"MOVED" | b"ASK" | b"TRYAGAIN" | b"CLUSTERDOWN" | b"READONLY" | b"LOADING" | b"MASTERDOWN")
}

/// The row of the report for a script that the target cannot compile: the beginning of `SCRIPT LOAD <text>`, command `index`.
pub fn refused_script(batch: &Batch, slab: &Slab, index: u32, text: &[u8]) -> NotCarried {
    let at = request::offset_of(batch.slices(slab), u64::from(index)).unwrap_or_default();
    let head: Vec<u8> = batch
        .slices(slab)
        .flatten()
        .copied()
        .skip(usize::try_from(at).unwrap_or(usize::MAX))
        .take(SCRIPT_SHOWN_MAX)
        .collect();
    rows::refused_script(third_argument(&head).to_vec(), &String::from_utf8_lossy(text))
}

/// The third argument of an encoded command, as far as it is there.
fn third_argument(command: &[u8]) -> &[u8] {
    // The count, and length and text of two arguments stand before its length.
    let mut lines = memchr::memchr_iter(b'\n', command).skip(4);
    let (Some(before), Some(end)) = (lines.next(), lines.next()) else { return &[] };
    let digits = command.get(before + 2..end).unwrap_or_default().trim_ascii();
    let len = std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let rest = command.get(end + 1..).unwrap_or_default();
    rest.get(..len).unwrap_or(rest)
}

/// The key that command `index` of `batch` leaves: its first, or the new name. `None`: its name is too long to be known.
pub fn key_of(batch: &Batch, slab: &Slab, index: u32) -> Option<Vec<u8>> {
    let position = |name: &[u8]| match name {
        b"RENAME" | b"RENAMENX" => Some(2),
        name => request::key_position(name),
    };
    let key = request::nth_command_by(batch.slices(slab), u64::from(index), position).ok()?.first_key?;
    (key.len() < request::COPIED_BYTES_MAX).then_some(key)
}

/// An answer to AUTH that may be shown: some servers repeat what they were sent, the password included.
pub fn shown_of_auth(text: &[u8]) -> String {
    let code = text.split(|b| *b == b' ').next().unwrap_or(text);
    match code {
        b"NOAUTH" | b"WRONGPASS" | b"NOPERM" | b"LOADING" | b"BUSY" | b"MASTERDOWN" => code.escape_ascii().to_string(),
        _ if memchr::memmem::find(text, b"without any password configured").is_some() => {
            "ERR no password is configured".into()
        }
        _ if memchr::memmem::find(text, b"max number of clients").is_some() => {
            "ERR max number of clients reached".into()
        }
        _ => "an error whose words may repeat what was sent, and are not shown".into(),
    }
}

/// What the operator can do about an error class.
pub(super) fn remedy(text: &[u8]) -> &'static str {
    let code = text.split(|b| *b == b' ').next().unwrap_or(text);
    match code {
        b"OOM" => "the target is out of memory: raise its maxmemory and run again",
        b"READONLY" => "the target is a replica: give the address of its primary",
        b"MISCONF" => {
            "the target cannot persist and refuses writes: free its disk or see its stop-writes-on-bgsave-error"
        }
        b"LOADING" => "the target is still loading its data: run again when it is ready",
        b"NOAUTH" | b"WRONGPASS" => "check the target's user and password",
        _ if code == b"NOPERM" || super::refusal::refuses_access(text) => {
            "the target's user lacks a permission (README.md lists the least that is needed)"
        }
        b"CROSSSLOT" => {
            "a command reached keys of several slots, which must not be: please report it (or the target became a cluster during the run)"
        }
        b"MOVED" | b"ASK" | b"CLUSTERDOWN" => "the target became a cluster during the run: run again",
        b"BUSY" => "a script runs at the target: wait for its end, or SCRIPT KILL it",
        b"NOREPLICAS" | b"MASTERDOWN" => "the target lacks replicas, or its primary",
        b"EXECABORT" => "a command inside MULTI was refused (see the error before it in the target's log)",
        _ => "the run stops here, because going on would leave a wrong value behind",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_answer_to_auth_shows_what_was_sent() {
        let repeats = b"ERR unknown command 'AUTH', with args beginning with: 'someuser' 's3cr3t' ";
        let names = b"NOPERM User someuser has no permissions to run the 'auth' command";
        let unwanted = b"ERR AUTH s3cr3t called without any password configured for the default user.";
        for text in [&repeats[..], names, unwanted, b"s3cr3t", b""] {
            let shown = shown_of_auth(text);
            assert!(!shown.is_empty() && !shown.contains("s3cr3t") && !shown.contains("someuser"), "{shown}");
        }
        assert_eq!(shown_of_auth(b"WRONGPASS invalid username-password pair"), "WRONGPASS");
    }
}
