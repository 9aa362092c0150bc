//! Recorded commands over several slots of a cluster: read, write, delete, in order, with the flow held.
//!
//! In: a record whose keys lie in different slots, and the markers' value for it. Out: the same effect by commands of one
//! slot each. Invariants: everything before the record is acknowledged and nothing behind it is sent; what is written to
//! the destination stands in one MULTI with the destination's marker, what is taken from the source in one with the
//! source's; so after a lost connection or a restart each half is done once. Where the second half is done and the first is
//! not, its node has lost it, and nothing goes on from there. What cannot be done is refused by key and LSN.

use super::cluster::Cluster;
use super::error::EngineError;
use super::messages::Apart;
use super::own::{self, marker_key};
use super::router::says_applied;
use super::units::{Inner, Unit};
use crate::redis::resp::push_command;
use crate::redis::slot::slot;
use crate::redis::value::Value;

/// Values of one RPUSH or ZADD.
const VALUES_MAX: usize = 1000;

impl Cluster {
    /// Carries a record out. May be done again.
    pub async fn carry_out(&mut self, apart: &Apart) -> Result<(), EngineError> {
        let name = apart.args.first().map(|name| name.to_ascii_uppercase()).unwrap_or_default();
        let args: Vec<&[u8]> = apart.args.iter().map(Vec::as_slice).collect();
        let done = match (name.as_slice(), args.get(1..).unwrap_or_default()) {
            (b"RENAME" | b"RENAMENX", [from, to]) => self.rename(apart, from, to).await,
            (b"LMOVE" | b"BLMOVE", [from, to, head, tail, ..]) => {
                let left = |side: &[u8]| side.eq_ignore_ascii_case(b"LEFT");
                self.move_element(apart, (from, left(head)), (to, left(tail))).await
            }
            (b"RPOPLPUSH" | b"BRPOPLPUSH", [from, to, ..]) => self.move_element(apart, (from, false), (to, true)).await,
            (b"SORT", _) => self.sort_store(apart, &args).await,
            (b"GEORADIUS" | b"GEORADIUSBYMEMBER", _) => self.geo_store(apart, &args).await,
            _ => Err(EngineError::Refused("its keys lie in different slots of the cluster".into())),
        };
        done.map_err(|error| {
            // What ends the session for another reason than this record keeps its meaning.
            if !matches!(error, EngineError::Refused(_) | EngineError::Target(_)) {
                return error;
            }
            let place = apart.next_lsn.map(|lsn| format!(", LSN {}", lsn.0.saturating_sub(1))).unwrap_or_default();
            let key = args.get(1).copied().unwrap_or_default();
            EngineError::Refused(format!(
                "flow {}{place}: the recorded command {} on the key \"{}\", over several slots, cannot be carried out: {error}",
                apart.flow,
                name.escape_ascii(),
                key.escape_ascii()
            ))
        })
    }

    async fn rename(&mut self, apart: &Apart, from: &[u8], to: &[u8]) -> Result<(), EngineError> {
        if self.is_done(apart, from).await? {
            return self.must_be_done(apart, to).await;
        }
        if !self.is_done(apart, to).await? {
            let payload = match self.read(&[b"DUMP", from]).await? {
                Value::Bulk(payload) => payload,
                // It was left out, or has expired: there is nothing to rename.
                _ => return Ok(()),
            };
            let expiry = self.expiry_ms(from).await?.to_string();
            self.group(apart, to, &[&[b"RESTORE", to, expiry.as_bytes(), &payload, b"REPLACE", b"ABSTTL"]]).await?;
        }
        self.group(apart, from, &[&[b"DEL", from]]).await
    }

    /// When the key expires, as RESTORE with ABSTTL takes it: 0 is never.
    async fn expiry_ms(&mut self, key: &[u8]) -> Result<i64, EngineError> {
        // PEXPIRETIME came with Redis 7.0.
        let at = match self.call(&[b"PEXPIRETIME", key]).await? {
            Value::Integer(at) => at,
            _ => match self.read(&[b"PTTL", key]).await? {
                Value::Integer(left @ 0..) => (crate::uring::clock::realtime_ms() as i64).saturating_add(left),
                Value::Integer(none) => none,
                _ => -1,
            },
        };
        Ok(match at {
            -1 => 0,
            // It expired between the two questions.
            at => at.max(1),
        })
    }

    async fn move_element(
        &mut self,
        apart: &Apart,
        (from, from_left): (&[u8], bool),
        (to, to_left): (&[u8], bool),
    ) -> Result<(), EngineError> {
        if self.is_done(apart, from).await? {
            return self.must_be_done(apart, to).await;
        }
        if !self.is_done(apart, to).await? {
            let element = match self.read(&[b"LINDEX", from, if from_left { b"0" } else { b"-1" }]).await? {
                Value::Bulk(element) => element,
                _ => return Ok(()),
            };
            self.group(apart, to, &[&[if to_left { b"LPUSH" } else { b"RPUSH" }, to, &element]]).await?;
        }
        self.group(apart, from, &[&[if from_left { b"LPOP" } else { b"RPOP" }, from]]).await
    }

    async fn sort_store(&mut self, apart: &Apart, args: &[&[u8]]) -> Result<(), EngineError> {
        let (question, to) = without_store(args, b"STORE")?;
        if self.is_read(apart, args, to).await? {
            return Ok(());
        }
        let Value::Array(values) = self.read(&question).await? else { return Err(unknown_shape()) };
        let texts: Vec<&[u8]> = values.iter().map(|value| value.bytes().unwrap_or_default()).collect();
        self.replace(apart, to, b"RPUSH", &texts, VALUES_MAX).await?;
        self.note_read(apart, args).await
    }

    async fn geo_store(&mut self, apart: &Apart, args: &[&[u8]]) -> Result<(), EngineError> {
        let (mut question, to) = without_store(args, b"STORE")?;
        question.push(b"WITHHASH");
        if self.is_read(apart, args, to).await? {
            return Ok(());
        }
        let Value::Array(rows) = self.read(&question).await? else { return Err(unknown_shape()) };
        let mut owned: Vec<Vec<u8>> = Vec::new();
        for row in &rows {
            let [member, Value::Integer(hash), ..] = row.array().unwrap_or_default() else {
                return Err(unknown_shape());
            };
            owned.push(hash.to_string().into_bytes());
            owned.push(member.bytes().unwrap_or_default().to_vec());
        }
        let texts: Vec<&[u8]> = owned.iter().map(Vec::as_slice).collect();
        self.replace(apart, to, b"ZADD", &texts, 2 * VALUES_MAX).await?;
        self.note_read(apart, args).await
    }

    /// Whether a record that reads one key and stores into another was done before.
    async fn is_read(&mut self, apart: &Apart, args: &[&[u8]], to: &[u8]) -> Result<bool, EngineError> {
        let from = args.get(1).copied().unwrap_or_default();
        if self.is_done(apart, to).await? {
            self.note_read(apart, args).await?;
            return Ok(true);
        }
        if self.is_done(apart, from).await? {
            self.must_be_done(apart, to).await?;
        }
        Ok(false)
    }

    /// Behind what was stored: the key that was read may change from now on.
    async fn note_read(&mut self, apart: &Apart, args: &[&[u8]]) -> Result<(), EngineError> {
        let from = args.get(1).copied().unwrap_or_default();
        if self.is_done(apart, from).await? { Ok(()) } else { self.group(apart, from, &[]).await }
    }

    /// The half of a record that is done first, where the other half is done: else its node has lost it.
    async fn must_be_done(&mut self, apart: &Apart, key: &[u8]) -> Result<(), EngineError> {
        if self.is_done(apart, key).await? {
            return Ok(());
        }
        Err(EngineError::LostPosition(format!(
            "flow {}{}: the node that has the key \"{}\" has lost what a recorded command had put there from another node, which \
             no longer has it: only a full sync brings it back (--on-lost-position resync, which empties the target, or a new run \
             with --on-existing flush)",
            apart.flow,
            apart.next_lsn.map(|lsn| format!(", LSN {}", lsn.0.saturating_sub(1))).unwrap_or_default(),
            key.escape_ascii()
        )))
    }

    /// The key holds `values` now, and nothing else.
    async fn replace(
        &mut self,
        apart: &Apart,
        to: &[u8],
        name: &[u8],
        values: &[&[u8]],
        values_max: usize,
    ) -> Result<(), EngineError> {
        let mut commands: Vec<Vec<&[u8]>> = vec![vec![b"DEL", to]];
        for chunk in values.chunks(values_max) {
            let mut command: Vec<&[u8]> = vec![name, to];
            command.extend_from_slice(chunk);
            commands.push(command);
        }
        let commands: Vec<&[&[u8]]> = commands.iter().map(Vec::as_slice).collect();
        self.group(apart, to, &commands).await
    }

    /// Whether the record's half in the slot of `key` was done before.
    async fn is_done(&mut self, apart: &Apart, key: &[u8]) -> Result<bool, EngineError> {
        match self.call(&[b"GET", &marker_key(&own::tag(self.settings()), apart.flow, slot(key))]).await? {
            Value::Bulk(found) => Ok(says_applied(&found, &apart.marker)),
            _ => Ok(false),
        }
    }

    /// A question about one key; an error reply is an error.
    async fn read(&mut self, args: &[&[u8]]) -> Result<Value, EngineError> {
        match self.call(args).await? {
            Value::Error(text) => Err(EngineError::Target(format!("the cluster answered \"{}\"", text.escape_ascii()))),
            value => Ok(value),
        }
    }

    /// Commands on `key`, once, with the marker of its slot.
    async fn group(&mut self, apart: &Apart, key: &[u8], commands: &[&[&[u8]]]) -> Result<(), EngineError> {
        let slot = slot(key);
        let marker = marker_key(&own::tag(self.settings()), apart.flow, slot);
        let mut bytes = Vec::new();
        push_command(&mut bytes, &[b"MULTI"]);
        commands.iter().for_each(|args| push_command(&mut bytes, args));
        push_command(&mut bytes, &[b"SET", &marker, &apart.marker]);
        push_command(&mut bytes, &[b"EXEC"]);
        let unit = Unit {
            bytes,
            replies: commands.len() as u32 + 3,
            name: commands.first().and_then(|args| args.first()).map(|name| name.to_vec()).unwrap_or_default(),
            inner: commands
                .iter()
                .filter_map(|args| args.first())
                .map(|name| Inner { name: name.to_vec(), again: false })
                .collect(),
            key: key.to_vec(),
            keys: vec![key.to_vec()],
            slot: Some(slot),
            marker: Some((marker, apart.marker.clone())),
            unknown: false,
            again: false,
        };
        self.execute_unit(&unit).await
    }
}

/// The command without `STORE key`, and that key.
fn without_store<'a>(args: &[&'a [u8]], option: &[u8]) -> Result<(Vec<&'a [u8]>, &'a [u8]), EngineError> {
    let store = args.iter().rposition(|arg| arg.eq_ignore_ascii_case(option));
    let key = store.and_then(|at| args.get(at + 1));
    match (store, key) {
        (Some(at), Some(key)) => {
            let kept = args.iter().enumerate().filter(|(i, _)| *i != at && *i != at + 1);
            Ok((kept.map(|(_, arg)| *arg).collect(), key))
        }
        _ => Err(EngineError::Refused("its form of storing cannot be read back exactly".into())),
    }
}

fn unknown_shape() -> EngineError {
    EngineError::Target("the cluster answered with an unknown shape".into())
}
