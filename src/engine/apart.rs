//! Recorded commands over several slots of a cluster: read, write, delete, in order, with the flow held.
//!
//! In: a record whose keys lie in different slots, and the markers' value for it. Out: the same effect by commands of one
//! slot each: a value that is moved (here), keys that are read brought home to the one that is written (`foreign`), elements
//! taken off the first key that is there (`pops`). A value that is too long for that is copied in pages first (`paged`).
//!
//! Invariants: everything before the record is acknowledged and nothing behind it is sent. What is written in a slot stands
//! in one MULTI with the slot's marker; so after a lost connection or a restart each part is done once. The part that gives
//! is done before the part that takes away, and in a slot where the record only read its marker is written last: nothing on
//! any of its keys is applied before it stands in all of its slots, also if there was nothing to do. So where a slot has no
//! marker of the record, its keys are as the record found them; and where one has that is written later, and another one
//! has not that is written earlier, the node of that one has lost it, and nothing goes on from there. With `--wait-replicas`
//! the replicas of the one have what is written earlier before the later is begun. What cannot be done is refused by key
//! and LSN.

mod foreign;
mod paged;
mod pops;

use super::cluster::Cluster;
use super::error::EngineError;
use super::messages::Apart;
use super::own::{self, marker_key};
use super::router::{says_applied, taken};
use super::units::{Inner, Unit};
use crate::convert::journal::{Several, Side, several};
use crate::ids::Slot;
use crate::redis::resp::{self, push_command};
use crate::redis::slot::slot;
use crate::redis::value::Value;
use smallvec::SmallVec;

/// Slots of a record, each once.
type Slots = SmallVec<[Slot; 4]>;

/// What the marker of a slot says of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    /// The keys of the slot are as the record found them.
    Open,
    /// Done.
    Done,
    /// Done, and nothing behind it: it was decided here what the record takes off (`pops`).
    Taken,
}

/// What became of the value of a key.
enum Brought {
    /// There is no such key.
    Nothing,
    Payload(Vec<u8>),
    /// It stands under the name of the copy.
    Copy,
}

impl Half {
    fn of(found: &[u8], apart: &Apart) -> Self {
        match says_applied(found, &apart.marker) {
            true if found == taken(&apart.marker) => Self::Taken,
            true => Self::Done,
            false => Self::Open,
        }
    }

    fn is_done(self) -> bool {
        self != Self::Open
    }
}

impl Cluster {
    /// Carries a record out. May be done again. Returns a key that the target lacks, or may lack, for it had nothing to rename.
    pub async fn carry_out(&mut self, apart: &Apart) -> Result<Option<Vec<u8>>, EngineError> {
        let args: Vec<&[u8]> = apart.args.iter().map(Vec::as_slice).collect();
        let done = match several(&args) {
            Ok(Several::Rename { from, to }) => {
                self.rename(apart, from, to).await.map(|is_there| (!is_there).then(|| to.to_vec()))
            }
            Ok(Several::MoveElement { from, to }) => self.move_element(apart, from, to).await.map(|()| None),
            Ok(Several::Store { reads, writes }) => self.store(apart, &args, &reads, writes).await.map(|()| None),
            Ok(Several::Pop { keys, take }) => self.pop(apart, &keys, take).await.map(|()| None),
            Err(why) => Err(EngineError::Refused(why.into())),
        };
        done.map_err(|error| {
            // What ends the session for another reason than this record keeps its meaning.
            let because: fn(String) -> EngineError = match &error {
                EngineError::Refused(_) | EngineError::TooLong(_) => EngineError::Refused,
                EngineError::Target(_) => EngineError::Target,
                _ => return error,
            };
            let name = args.first().map(|name| name.to_ascii_uppercase()).unwrap_or_default();
            let key = crate::convert::journal::keys_of(&args).next().unwrap_or_default();
            because(format!(
                "flow {}{}: the recorded command {} on the key \"{}\", over several slots, cannot be carried out: {error}",
                apart.flow,
                at_lsn(apart),
                name.escape_ascii(),
                key.escape_ascii()
            ))
        })
    }

    /// Returns whether the value is known to stand under its new name.
    async fn rename(&mut self, apart: &Apart, from: &[u8], to: &[u8]) -> Result<bool, EngineError> {
        if self.is_moved(apart, from, to).await? {
            return Ok(false);
        }
        let mut is_there = false;
        if !self.half(apart, slot(to)).await?.is_done() {
            let copy = own::temporary_key(&own::tag(self.settings()), apart.flow, slot(to), 0);
            let expiry = self.expiry_ms(from).await?.to_string();
            match self.bring(from, &copy, usize::MAX).await? {
                // It was left out, or has expired: what had the new name is gone all the same.
                // (A kill may have left the half of a copy.)
                Brought::Nothing => self.group(apart, to, &[&[b"DEL", to, &copy]]).await?,
                Brought::Payload(payload) => {
                    let restore: [&[u8]; 6] = [b"RESTORE", to, expiry.as_bytes(), &payload, b"REPLACE", b"ABSTTL"];
                    self.group(apart, to, &[&restore]).await?;
                    is_there = true;
                }
                Brought::Copy => {
                    let rename: [&[u8]; 3] = [b"RENAME", &copy, to];
                    let expire: [&[u8]; 3] = [b"PEXPIREAT", to, expiry.as_bytes()];
                    let commands: [&[&[u8]]; 2] = [&rename, &expire];
                    self.group(apart, to, if expiry == "0" { &commands[..1] } else { &commands }).await?;
                    // That there is nothing to rename is no error of the target elsewhere; here it would be the end of the value.
                    if expiry == "0" && !self.exists(to).await? {
                        return Err(EngineError::Torn(format!(
                            "the copy of the key {} in the slot of its new name has vanished; run again with --on-existing flush",
                            from.escape_ascii()
                        )));
                    }
                    is_there = true;
                }
            }
        }
        self.confirm_slot(slot(to)).await?;
        self.group(apart, from, &[&[b"DEL", from]]).await?;
        Ok(is_there)
    }

    /// When the key expires, as RESTORE with ABSTTL takes it: 0 is never.
    async fn expiry_ms(&mut self, key: &[u8]) -> Result<i64, EngineError> {
        // PEXPIRETIME came with Redis 7.0.
        let at = match self.call(&[b"PEXPIRETIME", key]).await? {
            Value::Integer(at) => at,
            Value::Error(_) => match self.ask(&[b"PTTL", key]).await? {
                Value::Integer(left @ 0..) => (crate::uring::clock::realtime_ms() as i64).saturating_add(left),
                Value::Integer(none) => none,
                other => return Err(no_answer("PTTL", &other)),
            },
            other => return Err(no_answer("PEXPIRETIME", &other)),
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
        (from, taken_at): (&[u8], Side),
        (to, put_at): (&[u8], Side),
    ) -> Result<(), EngineError> {
        if self.is_moved(apart, from, to).await? {
            return Ok(());
        }
        let (end, pop): (&[u8], &[u8]) = if taken_at == Side::Left { (b"0", b"LPOP") } else { (b"-1", b"RPOP") };
        let push: &[u8] = if put_at == Side::Left { b"LPUSH" } else { b"RPUSH" };
        if !self.half(apart, slot(to)).await?.is_done() {
            match self.ask(&[b"LINDEX", from, end]).await? {
                Value::Bulk(element) => self.group(apart, to, &[&[push, to, &element]]).await?,
                Value::Null => self.note(apart, slot(to)).await?,
                other => return Err(no_answer("LINDEX", &other)),
            }
        }
        self.confirm_slot(slot(to)).await?;
        self.group(apart, from, &[&[pop, from]]).await
    }

    /// Whether a record that moves something was done before: what takes away is done last.
    async fn is_moved(&mut self, apart: &Apart, from: &[u8], to: &[u8]) -> Result<bool, EngineError> {
        if !self.half(apart, slot(from)).await?.is_done() {
            return Ok(false);
        }
        match self.half(apart, slot(to)).await?.is_done() {
            true => Ok(true),
            false => Err(lost(apart, to)),
        }
    }

    /// What the marker of a slot says of the record.
    async fn half(&mut self, apart: &Apart, slot: Slot) -> Result<Half, EngineError> {
        let halves = self.halves(apart, &[slot]).await?;
        Ok(halves.first().copied().unwrap_or(Half::Open))
    }

    /// The same of several slots.
    async fn halves(&mut self, apart: &Apart, slots: &[Slot]) -> Result<Vec<Half>, EngineError> {
        let tag = own::tag(self.settings());
        let markers: Vec<Vec<u8>> = slots.iter().map(|slot| marker_key(&tag, apart.flow, *slot)).collect();
        let question = |(slot, marker): (&Slot, &Vec<u8>)| (*slot, resp::command(&[b"GET", marker]));
        let questions: Vec<_> = slots.iter().zip(&markers).map(question).collect();
        let answers = self.pipeline(&questions).await?;
        let mut halves = Vec::with_capacity(answers.len());
        for (answer, marker) in answers.into_iter().zip(&markers) {
            let answer = match answer {
                Value::Error(_) => self.ask(&[b"GET", marker]).await?,
                answer => answer,
            };
            halves.push(match answer {
                Value::Bulk(found) => Half::of(&found, apart),
                Value::Null => Half::Open,
                other => return Err(no_answer("GET", &other)),
            });
        }
        Ok(halves)
    }

    /// The value of a key, for another slot: what is longer than `bytes_max`, or than one answer, is copied to `copy`.
    async fn bring(&mut self, key: &[u8], copy: &[u8], bytes_max: usize) -> Result<Brought, EngineError> {
        match self.ask(&[b"DUMP", key]).await {
            Ok(Value::Bulk(payload)) if payload.len() <= bytes_max => return Ok(Brought::Payload(payload)),
            Ok(Value::Bulk(_)) | Err(EngineError::TooLong(_)) => {}
            // The record then deletes: of anything else that is said it must not.
            Ok(Value::Null) => return Ok(Brought::Nothing),
            Ok(other) => return Err(no_answer("DUMP", &other)),
            Err(error) => return Err(error),
        }
        self.copy_in_pages(key, copy).await?;
        Ok(Brought::Copy)
    }

    async fn exists(&mut self, key: &[u8]) -> Result<bool, EngineError> {
        // -2: there is no such key. (EXISTS would be one more grant for the operator to give.)
        match self.ask(&[b"PTTL", key]).await? {
            Value::Integer(left) => Ok(left != -2),
            other => Err(no_answer("PTTL", &other)),
        }
    }

    /// In a slot in which nothing is to be done: the record's keys there may change from now on.
    async fn note(&mut self, apart: &Apart, slot: Slot) -> Result<(), EngineError> {
        self.transaction(apart, slot, b"", &apart.marker, &[]).await
    }

    /// Commands on `key`, once, with the marker of its slot.
    async fn group(&mut self, apart: &Apart, key: &[u8], commands: &[&[&[u8]]]) -> Result<(), EngineError> {
        self.transaction(apart, slot(key), key, &apart.marker, commands).await
    }

    async fn transaction(
        &mut self,
        apart: &Apart,
        slot: Slot,
        key: &[u8],
        value: &[u8],
        commands: &[&[&[u8]]],
    ) -> Result<(), EngineError> {
        let marker = marker_key(&own::tag(self.settings()), apart.flow, slot);
        let mut bytes = Vec::new();
        push_command(&mut bytes, &[b"MULTI"]);
        commands.iter().for_each(|args| push_command(&mut bytes, args));
        push_command(&mut bytes, &[b"SET", &marker, value]);
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
            marker: Some((marker, value.to_vec())),
            unknown: false,
            again: false,
            watched: Vec::new(),
        };
        self.execute_unit(&unit).await.map(drop)
    }
}

/// The part of a record that is done first is not there, and one that is done later is.
fn lost(apart: &Apart, key: &[u8]) -> EngineError {
    EngineError::LostPosition(format!(
        "flow {}{}: the node that has the key \"{}\" has lost what a recorded command had done there by what it read at another \
         node, where that has changed since: only a full sync brings it back (--on-lost-position resync, which empties the \
         target, or a new run with --on-existing flush)",
        apart.flow,
        at_lsn(apart),
        key.escape_ascii()
    ))
}

fn at_lsn(apart: &Apart) -> String {
    apart.next_lsn.map(|lsn| format!(", LSN {}", lsn.0.saturating_sub(1))).unwrap_or_default()
}

/// An answer of another type than any that the command has.
fn no_answer(name: &str, answer: &Value) -> EngineError {
    EngineError::Target(format!("the cluster answered {name} with {}", answer.described()))
}

fn answered(text: &[u8]) -> EngineError {
    EngineError::Target(format!("the cluster answered \"{}\"", text.escape_ascii()))
}

/// The slots of keys, each once, but for one.
fn slots_besides<'a>(keys: impl Iterator<Item = &'a [u8]>, home: Option<Slot>) -> Slots {
    let mut slots = Slots::new();
    for slot in keys.map(slot).filter(|slot| Some(*slot) != home) {
        if !slots.contains(&slot) {
            slots.push(slot);
        }
    }
    slots
}
