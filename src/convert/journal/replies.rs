//! What a target's answer to a translated command means.
//!
//! Some errors are expected: the record succeeded at the source, but the target rightly has nothing to apply it to (a key
//! that was skipped), or has it already (a Blind command sent again). And some answers that are no errors say that the
//! target lacks a key that the source has (wire 4.4, 6.34): it must be fetched again.

use super::record::is;

/// Meaning of an error reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorMeaning {
    /// Source and target differ, or the target is unwell.
    Unexpected,
    /// A Blind command that had been applied before; nothing to do.
    AppliedBefore,
    /// The target lacks the key on purpose (skipped type), or by its own expiry: count it.
    KeyMissing,
    /// FIELDEXPIRE on a set: expiry of members, which no target has.
    MemberExpiry,
    /// A command that changed nothing at the source either, of a JSON document or one that ended early: that is recorded, too
    /// (wire 4.4).
    NothingChanged,
    /// SCRIPT LOAD of a text that the target cannot compile: Dragonfly runs Lua 5.4 and has flags of its own, the targets run
    /// 5.1. To be listed; no data depends on it.
    ScriptRefused,
}

/// Commands of several steps, which an error at the source keeps out of its journal only where they lie on several shards. (ZMPOP
/// fails at none, but takes nothing off a key of another type. Of several keys, where no script may pass over one, it is told:
/// `old::multi_pop`. What a CMS.MERGE comes to is listed.)
const ENDS_EARLY: [&str; 10] = [
    "SORT",
    "GEORADIUS",
    "GEORADIUSBYMEMBER",
    "ZUNIONSTORE",
    "ZINTERSTORE",
    "ZDIFFSTORE",
    "ZRANGESTORE",
    "LMPOP",
    "ZMPOP",
    "CMS.MERGE",
];

/// `name`: the command as the target was told it; `error`: the reply line without `-`; `sent_again`: the command may have
/// been applied before.
pub fn error_meaning(name: &[u8], error: &[u8], sent_again: bool) -> ErrorMeaning {
    let says = |text: &str| memchr::memmem::find(error, text.as_bytes()).is_some();
    let is_no_document = says("Existing key has wrong Redis type");
    if (is(name, "RENAME") || is(name, "RENAMENX")) && says("no such key") {
        return ErrorMeaning::KeyMissing;
    }
    if is(name, "HPEXPIREAT") && error.starts_with(b"WRONGTYPE") {
        return ErrorMeaning::MemberExpiry;
    }
    // Recorded whatever came of it, since 1.26; it fails here as it did there. (Listed, and so not hidden: where ids were made anew.)
    if is(name, "XSETID") {
        if says("no such key") {
            return ErrorMeaning::KeyMissing;
        }
        if says("The ID specified in XSETID is smaller than ") || error.starts_with(b"WRONGTYPE") {
            return ErrorMeaning::NothingChanged;
        }
    }
    if name.get(..5).is_some_and(|front| is(front, "JSON.")) {
        // The texts of RedisJSON; valkey-json's begin with a word of their own.
        const NOTHING: [&str; 3] = [" does not exist or ", "index out of ", "wrong static path"];
        // Of the key, not of what is in the document. Only these are recorded then: below the root they do nothing. (What may meet such a
        // key elsewhere is a script: `JournalTranslator::json_set`.)
        let deleted_nothing = (is(name, "JSON.DEL") || is(name, "JSON.FORGET"))
            && (is_no_document || error.starts_with(b"WRONGTYPE Not a JSON document"));
        if NOTHING.iter().any(|text| says(text))
            || deleted_nothing
            || error.starts_with(b"NONEXISTENT ")
            || error.starts_with(b"WRONGTYPE JSON element")
        {
            return ErrorMeaning::NothingChanged;
        }
        if says("on a key that doesn't exist") || says("must be created at the root") {
            return ErrorMeaning::KeyMissing;
        }
    }
    // A filter that the snapshot left out.
    let of_filters =
        ["CF.", "CMS.", "TOPK."].iter().any(|family| name.get(..family.len()).is_some_and(|front| is(front, family)));
    if of_filters && (says("key does not exist") || says("Not found") || says("was not found")) {
        return ErrorMeaning::KeyMissing;
    }
    // Infinities that cancel out: refused, and recorded.
    if (is(name, "ZINCRBY") || is(name, "ZADD")) && says("not a number (NaN)") {
        return ErrorMeaning::NothingChanged;
    }
    // The middle two: a member of a GEORADIUSBYMEMBER, before Redis 7 and since; the last: sketches of a CMS.MERGE.
    let ended_early = error.starts_with(b"WRONGTYPE")
        || ["converted into double", "could not decode", "does not exist", "width/depth is not equal"]
            .iter()
            .any(|text| says(text));
    if ended_early && ENDS_EARLY.iter().any(|early| is(name, early)) {
        return ErrorMeaning::NothingChanged;
    }
    if is(name, "SCRIPT") && (says("compiling script") || says("script shebang") || says("flag")) {
        return ErrorMeaning::ScriptRefused;
    }
    let repeated_xadd = is(name, "XADD") && says("equal or smaller");
    let repeated_lset = is(name, "LSET") && (says("no such key") || says("out of range"));
    // Between the two passes the key may have become another type, which a later record of the same run makes it again.
    if sent_again && (repeated_xadd || repeated_lset || is_no_document || error.starts_with(b"WRONGTYPE")) {
        return ErrorMeaning::AppliedBefore;
    }
    ErrorMeaning::Unexpected
}

/// Whether an answer of 0 (or nil) to a Guarded command, sent for the first time, says that the target lost a key, or
/// elements, which the source had.
pub fn empty_reply_means_lost(name: &[u8]) -> bool {
    match name.len() {
        4 => is(name, "LPOP") || is(name, "RPOP"),
        7 => is(name, "PERSIST"),
        8 => is(name, "RENAMENX"),
        9 => is(name, "PEXPIREAT"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meaning(name: &str, error: &str, again: bool) -> ErrorMeaning {
        error_meaning(name.as_bytes(), error.as_bytes(), again)
    }

    #[test]
    fn expected_errors_are_told_from_others() {
        assert_eq!(meaning("RENAME", "ERR no such key", false), ErrorMeaning::KeyMissing);
        assert_eq!(meaning("HPEXPIREAT", "WRONGTYPE Operation", false), ErrorMeaning::MemberExpiry);
        let script = "ERR Error compiling script (new function): user_script:1: unexpected symbol near '/'";
        assert_eq!(meaning("SCRIPT", script, false), ErrorMeaning::ScriptRefused);
        assert_eq!(meaning("SCRIPT", "ERR unknown command 'SCRIPT'", false), ErrorMeaning::Unexpected);
        let xadd = "ERR The ID specified in XADD is equal or smaller than the target stream top item";
        assert_eq!(meaning("XADD", xadd, true), ErrorMeaning::AppliedBefore);
        assert_eq!(meaning("XADD", xadd, false), ErrorMeaning::Unexpected);
        assert_eq!(meaning("HSET", "WRONGTYPE Operation", true), ErrorMeaning::AppliedBefore);
        assert_eq!(meaning("HSET", "WRONGTYPE Operation", false), ErrorMeaning::Unexpected);
        assert_eq!(meaning("LMPOP", "WRONGTYPE Operation", false), ErrorMeaning::NothingChanged);
        assert_eq!(meaning("SORT", "OOM command not allowed", false), ErrorMeaning::Unexpected);
        assert_eq!(meaning("SET", "OOM command not allowed", true), ErrorMeaning::Unexpected);
    }

    #[test]
    fn regression_a_refused_xsetid_is_no_divergence() {
        let smaller = "ERR The ID specified in XSETID is smaller than the target stream top item";
        for error in
            [smaller, "ERR The ID specified in XSETID is smaller than current max_deleted_entry_id", "WRONGTYPE x"]
        {
            assert_eq!(meaning("XSETID", error, false), ErrorMeaning::NothingChanged, "{error}");
        }
        assert_eq!(meaning("XSETID", "ERR no such key", false), ErrorMeaning::KeyMissing);
        // No record has that option; the snapshot's does.
        let shorter = "ERR The entries_added specified in XSETID is smaller than the target stream length";
        assert_eq!(meaning("XSETID", shorter, false), ErrorMeaning::Unexpected);
    }

    #[test]
    fn regression_a_sum_that_is_no_number_is_no_divergence() {
        for name in ["ZINCRBY", "ZADD"] {
            let meaning = |error| meaning(name, error, false);
            assert_eq!(meaning("ERR resulting score is not a number (NaN)"), ErrorMeaning::NothingChanged);
            assert_eq!(meaning("ERR value is not a valid float"), ErrorMeaning::Unexpected);
        }
    }

    #[test]
    fn regression_what_is_no_document_is_told_from_what_is_in_one() {
        for error in ["ERR Existing key has wrong Redis type", "WRONGTYPE Not a JSON document key"] {
            for name in ["JSON.DEL", "JSON.FORGET"] {
                assert_eq!(meaning(name, error, false), ErrorMeaning::NothingChanged, "{name}: {error}");
            }
            for name in ["JSON.SET", "JSON.MSET", "JSON.MERGE", "JSON.TOGGLE"] {
                assert_eq!(meaning(name, error, false), ErrorMeaning::Unexpected, "{name}: {error}");
            }
            assert_eq!(meaning("JSON.SET", error, true), ErrorMeaning::AppliedBefore, "{error}");
        }
    }

    #[test]
    fn a_zero_from_an_expiry_is_a_lost_key() {
        assert!(empty_reply_means_lost(b"PEXPIREAT") && empty_reply_means_lost(b"persist"));
        assert!(!empty_reply_means_lost(b"HDEL") && !empty_reply_means_lost(b"SREM"));
    }
}
