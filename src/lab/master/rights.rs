//! What the user of a simulated source may run: Dragonfly's ACL by command name and by the category of what reads.
//!
//! In: lines of `ACL SETUSER name ON >password ~* +COMMAND ...`. Out: whether a command is executed; what is not is answered as
//! Dragonfly does, which names the user and not the command.

use super::{Master, MasterOptions, Shared};
use std::collections::BTreeSet;
use std::sync::PoisonError;

/// What `+@READ` grants, of the commands that the lab's sources know. SCAN, DBSIZE, XINFO and DUMP are granted by name, for not every
/// release has them in it.
const READING: [&str; 45] = [
    "BITCOUNT",
    "EXISTS",
    "EXPIRETIME",
    "FIELDTTL",
    "GET",
    "GETBIT",
    "GETRANGE",
    "HEXISTS",
    "HGET",
    "HGETALL",
    "HKEYS",
    "HLEN",
    "HMGET",
    "HPEXPIRETIME",
    "HPTTL",
    "HSCAN",
    "HVALS",
    "JSON.GET",
    "KEYS",
    "LINDEX",
    "LLEN",
    "LRANGE",
    "MGET",
    "PEXPIRETIME",
    "PTTL",
    "SCARD",
    "SISMEMBER",
    "SMEMBERS",
    "SMISMEMBER",
    "SSCAN",
    "STRLEN",
    "SUBSTR",
    "TTL",
    "TYPE",
    "XLEN",
    "XPENDING",
    "XRANGE",
    "XREVRANGE",
    "ZCARD",
    "ZCOUNT",
    "ZMSCORE",
    "ZRANGE",
    "ZRANGEBYSCORE",
    "ZSCAN",
    "ZSCORE",
];

/// A user, by name, and what it may run.
#[derive(Clone, Debug)]
pub struct Rights {
    user: String,
    granted: BTreeSet<String>,
}

impl Rights {
    /// The lines one after the other, as an operator gives them: `-NAME` takes away what was granted before.
    fn of(lines: &[&str]) -> (Self, Option<String>) {
        let (mut rights, mut password) = (Self { user: String::new(), granted: BTreeSet::new() }, None);
        for line in lines {
            let mut words = line.split_whitespace().skip(2);
            rights.user = words.next().unwrap_or_default().to_owned();
            for word in words {
                match word.split_at(1) {
                    ("+", name) => _ = rights.granted.insert(name.to_ascii_uppercase()),
                    ("-", name) => _ = rights.granted.remove(&name.to_ascii_uppercase()),
                    (">", secret) => password = Some(secret.to_owned()),
                    _ => {}
                }
            }
        }
        (rights, password)
    }

    /// The error where the user may not run this command, its name in upper case.
    fn refusal(&self, name: &str) -> Option<String> {
        // No permission is asked for to log in and to leave.
        let is_free = matches!(name, "AUTH" | "QUIT" | "HELLO");
        let reads = READING.contains(&name) && self.granted.contains("@READ");
        let may = is_free || reads || self.granted.contains(name);
        (!may).then(|| format!("-NOPERM {} has no ACL permissions\r\n", self.user))
    }
}

impl MasterOptions {
    /// A source whose only user is the one that these lines make.
    pub fn of_user(lines: &[&str]) -> Self {
        let (rights, password) = Rights::of(lines);
        Self { user: Some(rights.user.clone()), password, rights: Some(rights), ..Self::default() }
    }
}

impl Master {
    /// From now on the user may run what these lines say, and nothing else.
    pub fn set_rights(&self, lines: &[&str]) {
        *self.shared.rights.lock().unwrap_or_else(PoisonError::into_inner) = Some(Rights::of(lines).0);
    }
}

impl Shared {
    /// The error for whom is logged in, where he may not run this command, its name in upper case.
    pub(super) fn refusal(&self, name: &str) -> Option<String> {
        self.rights.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.refusal(name)
    }
}
