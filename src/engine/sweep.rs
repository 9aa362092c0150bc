//! Looks at every key of the target for expiries that were written later than they are, and puts them right (wire 6.34).
//!
//! Needed where names are not at hand: after a process that died, and when more expiries were held than memory has room for.
//! In: bounds between which an expiry stays held. Out: how many were put right, how many are still held, and the names of
//! those, as far as memory has room. It goes through the keys by SCAN, a few hundred at a time, and rests a multiple of the
//! time that each step took, so that most of the target's time is left to others. What it does to a key is one step at the
//! target, so it needs no order with what the workers write.
//!
//! In a cluster a key that moves from a node not looked at to one that was would be missed. So a slot counts as looked at only if it
//! stood still meanwhile (`owners`); the others are looked at again, and what never stands still is told.

use super::cluster::ranges;
use super::error::EngineError;
use super::errors::is_rejection;
use super::owners::runs;
use super::patience::rest;
use super::target::TargetLink;
use crate::convert::hold::{Bounds, Overflow, script_numbers};
use crate::convert::names::{NAME_OVERHEAD_BYTES, Name};
use crate::ids::{DbIndex, Slot};
use crate::redis::Capabilities;
use crate::redis::slot::{SLOTS, slot};
use crate::redis::value::Value;
use crate::uring;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Puts right, or counts and names, one expiry: name of a Lua function of time and what tells the name.
macro_rules! due {
    () => {
        "local shift,stop,ahead,past=tonumber(ARGV[1]),tonumber(ARGV[2]),tonumber(ARGV[3]),tonumber(ARGV[4]) \
local r={0,0,0,{},{},{}} local room=1000 \
local function due(e,n,t,a,b) if e<shift or e>=stop then return nil end local at=e-shift \
if at>ahead or at<=past then r[1]=r[1]+1 return string.format('%.0f',at<1 and 1 or at) end r[n]=r[n]+1 \
if room>0 then room=room-1 t[#t+1]=a if b then t[#t+1]=b end t[#t+1]=at end return nil end "
    };
}

/// KEYS: keys; ARGV: shift, end of the shifted range, expiries after this are put right, and those up to this, "1" to look
/// at hash fields as well, "1" where PEXPIRETIME exists, most fields of a hash that is gone through at once.
/// Returns: put right, keys and fields still held, positions of hashes with more fields, then of what is still held: key's
/// position and time, key's position, field and time.
const KEYS_SCRIPT: &str = concat!(
    due!(),
    "local now=0 if ARGV[6]~='1' then local t=redis.call('TIME') now=t[1]*1000+math.floor(t[2]/1000) end \
for i,k in ipairs(KEYS) do local e \
if ARGV[6]=='1' then e=redis.call('PEXPIRETIME',k) else e=redis.call('PTTL',k) if e>0 then e=e+now end end \
local at=due(e,2,r[5],i) if at then redis.call('PEXPIREAT',k,at) end \
if ARGV[5]=='1' and redis.call('TYPE',k).ok=='hash' then \
if redis.call('HLEN',k)>tonumber(ARGV[7]) then r[4][#r[4]+1]=i else \
for _,f in ipairs(redis.call('HKEYS',k)) do local x=redis.call('HPEXPIRETIME',k,'FIELDS',1,f) \
local fat=x and x[1] and due(x[1],3,r[6],i,f) if fat then redis.call('HPEXPIREAT',k,fat,'FIELDS',1,f) end end end end end return r"
);

/// The same for the fields ARGV[5...] of one hash.
const FIELDS_SCRIPT: &str = concat!(
    due!(),
    "local k=KEYS[1] for i=5,#ARGV do local x=redis.pcall('HPEXPIRETIME',k,'FIELDS',1,ARGV[i]) \
if x and x.err and not string.find(x.err,'WRONGTYPE') then return redis.error_reply(x.err) end local e=x and x[1] or -2 \
local fat=due(e,3,r[6],1,ARGV[i]) if fat then redis.call('HPEXPIREAT',k,fat,'FIELDS',1,ARGV[i]) end end return r"
);

/// What these are called in errors.
const LOOKS: &str = "a script that looks at expiries";

/// After each step a sweep rests so many times as long as the step took: the target keeps half of its time, or nine tenths.
pub const FAST: u32 = 1;
pub const GENTLE: u32 = 9;

/// Memory for the names of what is still held.
const NAMES_BYTES_MAX: usize = 8 << 20;

/// Keys asked for in one step, and fields.
const STEP_KEYS: &[u8] = b"300";
/// A hash with more fields is gone through by HSCAN.
const HASH_FIELDS_MAX: &[u8] = b"500";

/// How long slots of a cluster that move are looked at again, where a later sweep may do it.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Pauses before that: the first, and so many of it at the most.
const CLUSTER_PAUSE: Duration = Duration::from_millis(250);
const CLUSTER_PAUSES_MAX: u32 = 8;

/// What a sweep did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub keys: u64,
    pub put_right: u64,
    /// Still held: they may be renewed.
    pub left: u64,
    /// Their names, and whether some are missing.
    pub names: Vec<Name>,
    names_bytes: usize,
    pub unnamed: Overflow,
    /// Slots of a cluster that moved all the time, and were not looked at.
    pub moving: Vec<(Slot, Slot)>,
    /// Slots in which a node of a cluster did not do a step, because the keys had moved.
    redirected: BTreeSet<u16>,
}

/// Goes through every key of every database once. `bounds`: asked before each step; expiries after the first and up to the
/// second are put right. `rests`: after each step, so many times as long as it took. `patience`: for slots of a cluster that move.
pub async fn sweep(
    link: &mut TargetLink,
    capabilities: &Capabilities,
    bounds: impl Fn() -> Bounds,
    rests: impl Fn() -> u32,
    patience: Duration,
) -> Result<Swept, EngineError> {
    let mut swept = Swept::default();
    let Some(cluster) = link.cluster() else {
        sweep_server(link, capabilities, &bounds, &rests, |_| true, &mut swept).await?;
        return Ok(swept);
    };
    let begun_ns = uring::clock::monotonic_ns();
    let mut left: BTreeSet<u16> = (0..SLOTS).collect();
    for attempt in 1u32.. {
        let before = cluster.owners().await?;
        let mut this = Swept { names_bytes: swept.names_bytes, ..Swept::default() };
        for id in before.ids_of(left.iter().copied().map(Slot)) {
            let Some(endpoint) = cluster.endpoint_of(&id) else { continue };
            let mut node = TargetLink::connect(&endpoint, cluster.settings().connect_timeout).await?;
            let wanted = |slot: Slot| left.contains(&slot.0);
            sweep_server(&mut node, capabilities, &bounds, &rests, wanted, &mut this).await?;
        }
        let after = cluster.owners().await?;
        let redirected = std::mem::take(&mut this.redirected);
        let is_done = |slot: Slot| before.stood_still(&after, slot) && !redirected.contains(&slot.0);
        // Those of the others are found again.
        this.names.retain(|name| is_done(slot(&name.key)));
        left.retain(|slot| !is_done(Slot(*slot)));
        swept.add(this);
        if left.is_empty() || Duration::from_nanos(uring::clock::monotonic_ns() - begun_ns) >= patience {
            break;
        }
        if attempt.is_power_of_two() {
            let slots = left.len();
            tracing::info!(
                attempt,
                slots,
                "slots moved while their keys were looked at for expiries held back: looking again"
            );
        }
        rest(CLUSTER_PAUSE * attempt.min(CLUSTER_PAUSES_MAX)).await;
    }
    swept.moving = runs(left.into_iter().map(Slot));
    Ok(swept)
}

/// The same for one server, or one node of a cluster.
async fn sweep_server(
    link: &mut TargetLink,
    capabilities: &Capabilities,
    bounds: &impl Fn() -> Bounds,
    rests: &impl Fn() -> u32,
    wanted: impl Fn(Slot) -> bool,
    swept: &mut Swept,
) -> Result<(), EngineError> {
    for db in super::target::databases(link).await? {
        link.call(&[b"SELECT", db.to_string().as_bytes()]).await?;
        let mut cursor = b"0".to_vec();
        loop {
            let begun_ns = uring::clock::monotonic_ns();
            let (next, keys) = scanned(link.call(&[b"SCAN", &cursor, b"COUNT", STEP_KEYS]).await?)?;
            swept.keys += keys.len() as u64;
            // A script's keys must lie in one slot of a cluster.
            let mut groups: BTreeMap<u16, Vec<Vec<u8>>> = BTreeMap::new();
            for key in keys {
                let of = if capabilities.cluster { slot(&key) } else { Slot(0) };
                if wanted(of) {
                    groups.entry(of.0).or_default().push(key);
                }
            }
            for (slot, keys) in &groups {
                if !step(link, capabilities, db, keys, bounds(), swept).await? {
                    swept.redirected.insert(*slot);
                }
            }
            if next == b"0" {
                break;
            }
            cursor = next;
            let took_ns = uring::clock::monotonic_ns().saturating_sub(begun_ns);
            tokio::time::sleep(Duration::from_nanos(took_ns) * rests()).await;
        }
    }
    // Where the caller's next command belongs.
    link.call(&[b"SELECT", b"0"]).await.map(drop)
}

/// Looks at keys of one slot. False: a node of a cluster said that some are elsewhere.
async fn step(
    link: &mut TargetLink,
    capabilities: &Capabilities,
    db: DbIndex,
    keys: &[Vec<u8>],
    bounds: Bounds,
    swept: &mut Swept,
) -> Result<bool, EngineError> {
    let flag = |is: bool| if is { b"1" } else { b"0" };
    let numbers = script_numbers(bounds);
    let count = keys.len().to_string();
    let mut args: Vec<&[u8]> = vec![b"EVAL", KEYS_SCRIPT.as_bytes(), count.as_bytes()];
    args.extend(keys.iter().map(Vec::as_slice));
    args.extend(numbers.iter().map(String::as_bytes));
    args.push(flag(capabilities.field_expiry));
    args.push(flag(capabilities.has_command("PEXPIRETIME")));
    args.push(HASH_FIELDS_MAX);
    let reply = link.call_raw("EVAL", &args).await?;
    let large = match reply_of(LOOKS, reply, capabilities)? {
        Some(reply) => add(swept, reply, db, keys)?,
        None => return Ok(false),
    };
    let mut all = true;
    for position in large {
        let Some(key) = usize::try_from(position - 1).ok().and_then(|at| keys.get(at)) else { continue };
        all &= fields(link, capabilities, db, key, bounds, swept).await?;
    }
    Ok(all)
}

/// One hash with many fields. False: it is elsewhere.
async fn fields(
    link: &mut TargetLink,
    capabilities: &Capabilities,
    db: DbIndex,
    key: &Vec<u8>,
    bounds: Bounds,
    swept: &mut Swept,
) -> Result<bool, EngineError> {
    let numbers = script_numbers(bounds);
    let mut cursor = b"0".to_vec();
    loop {
        let reply = link.call_raw("HSCAN", &[b"HSCAN", key, &cursor, b"COUNT", STEP_KEYS]).await?;
        let reply = match reply {
            // It is of another type by now.
            Value::Error(text) if text.starts_with(b"WRONGTYPE") => return Ok(true),
            reply => reply,
        };
        let Some(reply) = reply_of("HSCAN", reply, capabilities)? else { return Ok(false) };
        let (next, pairs) = scanned(reply)?;
        let mut args: Vec<&[u8]> = vec![b"EVAL", FIELDS_SCRIPT.as_bytes(), b"1", key];
        args.extend(numbers.iter().map(String::as_bytes));
        args.extend(pairs.iter().step_by(2).map(Vec::as_slice));
        let reply = link.call_raw("EVAL", &args).await?;
        match reply_of(LOOKS, reply, capabilities)? {
            Some(reply) => drop(add(swept, reply, db, std::slice::from_ref(key))?),
            None => return Ok(false),
        }
        if next == b"0" {
            return Ok(true);
        }
        cursor = next;
    }
}

/// `None`: the node of a cluster said that the keys are elsewhere, and did nothing.
fn reply_of(what: &str, reply: Value, capabilities: &Capabilities) -> Result<Option<Value>, EngineError> {
    match reply {
        Value::Error(text) if capabilities.cluster && is_rejection(&text) => Ok(None),
        Value::Error(text) => {
            Err(EngineError::Target(format!("the target answered {what} with \"{}\"", text.escape_ascii())))
        }
        reply => Ok(Some(reply)),
    }
}

/// Counts and remembers what a script says; positions of hashes that it left out are returned.
fn add(swept: &mut Swept, reply: Value, db: DbIndex, keys: &[Vec<u8>]) -> Result<Vec<i64>, EngineError> {
    let known = match &reply {
        Value::Array(parts) => parts_of(parts),
        _ => None,
    };
    let Some(Parts { put_right, keys_left, fields_left, large, key_names, field_names }) = known else {
        return Err(EngineError::Target(format!("the target answered {LOOKS} with {reply:?}")));
    };
    swept.put_right += put_right;
    swept.left += keys_left + fields_left;
    let key_at = |position: &Value| match position {
        Value::Integer(position @ 1..) => keys.get(*position as usize - 1).map(|key| key.as_slice().into()),
        _ => None,
    };
    let (mut keys_named, mut fields_named) = (0, 0);
    for pair in key_names.chunks_exact(2) {
        if let [position, Value::Integer(at_ms)] = pair
            && let Some(key) = key_at(position)
            && swept.remember(Name { db, key, field: None, at_ms: *at_ms })
        {
            keys_named += 1;
        }
    }
    for triple in field_names.chunks_exact(3) {
        if let [position, Value::Bulk(field), Value::Integer(at_ms)] = triple
            && let Some(key) = key_at(position)
            && swept.remember(Name { db, key, field: Some(field.as_slice().into()), at_ms: *at_ms })
        {
            fields_named += 1;
        }
    }
    swept.unnamed.keys |= keys_named < keys_left;
    swept.unnamed.fields |= fields_named < fields_left;
    Ok(large.iter().filter_map(|position| if let Value::Integer(n) = position { Some(*n) } else { None }).collect())
}

/// What a script says.
struct Parts<'a> {
    put_right: u64,
    keys_left: u64,
    fields_left: u64,
    large: &'a [Value],
    key_names: &'a [Value],
    field_names: &'a [Value],
}

fn parts_of(parts: &[Value]) -> Option<Parts<'_>> {
    let [Value::Integer(put_right), Value::Integer(keys), Value::Integer(fields), large, key_names, field_names] =
        parts
    else {
        return None;
    };
    Some(Parts {
        put_right: put_right.unsigned_abs(),
        keys_left: keys.unsigned_abs(),
        fields_left: fields.unsigned_abs(),
        large: large.array()?,
        key_names: key_names.array()?,
        field_names: field_names.array()?,
    })
}

impl Swept {
    /// What another look has found.
    fn add(&mut self, other: Self) {
        self.keys += other.keys;
        self.put_right += other.put_right;
        self.left += other.left;
        self.names.extend(other.names);
        self.names_bytes = other.names_bytes;
        self.unnamed.keys |= other.unnamed.keys;
        self.unnamed.fields |= other.unnamed.fields;
    }

    /// Nothing may be left that was not looked at.
    pub fn whole(self) -> Result<Self, EngineError> {
        match self.moving.is_empty() {
            true => Ok(self),
            false => Err(EngineError::Target(format!(
                "slots of the cluster moved all the time that their keys were to be looked at for expiries held back: keys in {} may \
                 still expire some 139 years late. Let the moving of slots end and run again",
                ranges(&self.moving)
            ))),
        }
    }

    /// Keeps a name, if there is room for it.
    fn remember(&mut self, name: Name) -> bool {
        let bytes = name.key.len() + name.field.as_ref().map_or(0, |field| field.len()) + NAME_OVERHEAD_BYTES;
        if self.names_bytes + bytes > NAMES_BYTES_MAX {
            return false;
        }
        self.names_bytes += bytes;
        self.names.push(name);
        true
    }
}

/// Cursor and elements of a SCAN.
fn scanned(reply: Value) -> Result<(Vec<u8>, Vec<Vec<u8>>), EngineError> {
    if let Value::Array(parts) = reply
        && let Ok([Value::Bulk(cursor), Value::Array(elements)]) = <[Value; 2]>::try_from(parts)
    {
        let elements = elements.into_iter().filter_map(|v| if let Value::Bulk(b) = v { Some(b) } else { None });
        return Ok((cursor, elements.collect()));
    }
    Err(EngineError::Target("the target answered SCAN with an unknown shape".into()))
}
