//! Looks at every key of the target for expiries that were written later than they are, and puts them right (wire 6.34).
//!
//! Needed where names are not at hand: after a process that died, and when more expiries were held than memory has room for.
//! In: bounds between which an expiry stays held. Out: how many were put right, how many are still held. It goes through the
//! keys by SCAN, a few hundred at a time, and rests as long as each step took, so that the target keeps half of its time.
//! What it does to a key is one step at the target, so it needs no order with what the workers write.

use super::error::EngineError;
use super::errors::is_rejection;
use super::target::TargetLink;
use crate::convert::near::{SHIFT_MS, SHIFTED_MS_END};
use crate::redis::Capabilities;
use crate::redis::slot::slot;
use crate::redis::value::Value;
use crate::uring;
use std::collections::BTreeMap;
use std::time::Duration;

/// KEYS: keys; ARGV: shift, end of the shifted range, expiries after this are put right, and those up to this, "1" to look
/// at hash fields as well, "1" where PEXPIRETIME exists, most fields of a hash that is gone through at once.
/// Returns: put right, still held, then positions of hashes with more fields.
const KEYS_SCRIPT: &str = "local shift,stop,ahead,past=tonumber(ARGV[1]),tonumber(ARGV[2]),tonumber(ARGV[3]),tonumber(ARGV[4]) \
local r={0,0} local now=0 if ARGV[6]~='1' then local t=redis.call('TIME') now=t[1]*1000+math.floor(t[2]/1000) end \
local function due(e) if e<shift or e>=stop then return nil end local at=e-shift \
if at>ahead or at<=past then r[1]=r[1]+1 return string.format('%.0f',at<1 and 1 or at) end r[2]=r[2]+1 return nil end \
for i,k in ipairs(KEYS) do local e \
if ARGV[6]=='1' then e=redis.call('PEXPIRETIME',k) else e=redis.call('PTTL',k) if e>0 then e=e+now end end \
local at=due(e) if at then redis.call('PEXPIREAT',k,at) end \
if ARGV[5]=='1' and redis.call('TYPE',k).ok=='hash' then \
if redis.call('HLEN',k)>tonumber(ARGV[7]) then r[#r+1]=i else \
for _,f in ipairs(redis.call('HKEYS',k)) do local x=redis.call('HPEXPIRETIME',k,'FIELDS',1,f) \
local fat=x and x[1] and due(x[1]) if fat then redis.call('HPEXPIREAT',k,fat,'FIELDS',1,f) end end end end end return r";

/// The same for the fields ARGV[5...] of one hash.
const FIELDS_SCRIPT: &str = "local k=KEYS[1] \
local shift,stop,ahead,past=tonumber(ARGV[1]),tonumber(ARGV[2]),tonumber(ARGV[3]),tonumber(ARGV[4]) \
local r={0,0} for i=5,#ARGV do local x=redis.pcall('HPEXPIRETIME',k,'FIELDS',1,ARGV[i]) local e=x and x[1] or -2 \
if e>=shift and e<stop then local at=e-shift if at>ahead or at<=past then r[1]=r[1]+1 \
redis.call('HPEXPIREAT',k,string.format('%.0f',at<1 and 1 or at),'FIELDS',1,ARGV[i]) else r[2]=r[2]+1 end end end return r";

/// Keys asked for in one step, and fields.
const STEP_KEYS: &[u8] = b"300";
/// A hash with more fields is gone through by HSCAN.
const HASH_FIELDS_MAX: &[u8] = b"500";

/// How often a cluster whose slots move meanwhile is gone through, and the pause before the second time.
const CLUSTER_TRIES_MAX: u32 = 8;
const CLUSTER_PAUSE: Duration = Duration::from_millis(500);

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub keys: u64,
    pub put_right: u64,
    /// Still held: they may be renewed.
    pub left: u64,
    /// Steps that a node of a cluster did not do, because the keys had moved.
    pub redirected: u64,
}

/// Goes through every key of every database once. `bounds`: asked before each step; expiries after the first and up to the
/// second are put right.
pub async fn sweep(
    link: &mut TargetLink,
    capabilities: &Capabilities,
    bounds: impl Fn() -> (i64, i64),
) -> Result<Swept, EngineError> {
    let mut swept = Swept::default();
    let Some(cluster) = link.cluster() else {
        sweep_server(link, capabilities, &bounds, &mut swept).await?;
        return Ok(swept);
    };
    // A key that moves from a node not looked at to one that was would be missed.
    for attempt in 1..=CLUSTER_TRIES_MAX {
        let before = cluster.owners_at_rest().await?;
        let mut this = Swept { put_right: swept.put_right, ..Swept::default() };
        for id in cluster.primary_ids() {
            let Some(endpoint) = cluster.endpoint_of(&id) else { continue };
            let mut node = TargetLink::connect(&endpoint, cluster.settings().connect_timeout).await?;
            sweep_server(&mut node, capabilities, &bounds, &mut this).await?;
        }
        let after = cluster.owners_at_rest().await?;
        swept = this;
        if before.is_some() && before == after && swept.redirected == 0 {
            return Ok(swept);
        }
        tracing::warn!(attempt, "slots moved while every key was looked at for expiries held back; looking again");
        tokio::time::sleep(CLUSTER_PAUSE * attempt).await;
    }
    Err(EngineError::Target(format!(
        "slots of the cluster moved each of the {CLUSTER_TRIES_MAX} times that every key was looked at for expiries held back: \
         keys may still expire some 139 years late. Let the moving of slots end and run again"
    )))
}

/// The same for one server, or one node of a cluster.
async fn sweep_server(
    link: &mut TargetLink,
    capabilities: &Capabilities,
    bounds: &impl Fn() -> (i64, i64),
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
                let of = if capabilities.cluster { slot(&key).0 } else { 0 };
                groups.entry(of).or_default().push(key);
            }
            for keys in groups.values() {
                step(link, capabilities, keys, bounds(), swept).await?;
            }
            if next == b"0" {
                break;
            }
            cursor = next;
            let took_ns = uring::clock::monotonic_ns().saturating_sub(begun_ns);
            tokio::time::sleep(Duration::from_nanos(took_ns)).await;
        }
    }
    Ok(())
}

async fn step(
    link: &mut TargetLink,
    capabilities: &Capabilities,
    keys: &[Vec<u8>],
    bounds: (i64, i64),
    swept: &mut Swept,
) -> Result<(), EngineError> {
    let flag = |is: bool| if is { b"1" } else { b"0" };
    let numbers = numbers(bounds);
    let count = keys.len().to_string();
    let mut args: Vec<&[u8]> = vec![b"EVAL", KEYS_SCRIPT.as_bytes(), count.as_bytes()];
    args.extend(keys.iter().map(Vec::as_slice));
    args.extend(numbers.iter().map(String::as_bytes));
    args.push(flag(capabilities.field_expiry));
    args.push(flag(capabilities.has_command("PEXPIRETIME")));
    args.push(HASH_FIELDS_MAX);
    let reply = link.call_raw("EVAL", &args).await?;
    let large = match script_reply(reply, capabilities, swept)? {
        Some(reply) => add(swept, reply)?,
        None => return Ok(()),
    };
    for position in large {
        let Some(key) = usize::try_from(position - 1).ok().and_then(|at| keys.get(at)) else { continue };
        fields(link, capabilities, key, bounds, swept).await?;
    }
    Ok(())
}

/// One hash with many fields.
async fn fields(
    link: &mut TargetLink,
    capabilities: &Capabilities,
    key: &[u8],
    bounds: (i64, i64),
    swept: &mut Swept,
) -> Result<(), EngineError> {
    let numbers = numbers(bounds);
    let mut cursor = b"0".to_vec();
    loop {
        // The hash may be gone, or another type, by now.
        let reply = link.call_raw("HSCAN", &[b"HSCAN", key, &cursor, b"COUNT", STEP_KEYS]).await?;
        if let Value::Error(text) = &reply {
            swept.redirected += u64::from(is_rejection(text));
            return Ok(());
        }
        let (next, pairs) = scanned(reply)?;
        let mut args: Vec<&[u8]> = vec![b"EVAL", FIELDS_SCRIPT.as_bytes(), b"1", key];
        args.extend(numbers.iter().map(String::as_bytes));
        args.extend(pairs.iter().step_by(2).map(Vec::as_slice));
        let reply = link.call_raw("EVAL", &args).await?;
        match script_reply(reply, capabilities, swept)? {
            Some(reply) => drop(add(swept, reply)?),
            None => return Ok(()),
        }
        if next == b"0" {
            return Ok(());
        }
        cursor = next;
    }
}

/// `None`: the node of a cluster said that the keys are elsewhere, and did nothing.
fn script_reply(reply: Value, capabilities: &Capabilities, swept: &mut Swept) -> Result<Option<Value>, EngineError> {
    match reply {
        Value::Error(text) if capabilities.cluster && is_rejection(&text) => {
            swept.redirected += 1;
            Ok(None)
        }
        Value::Error(text) => Err(EngineError::Target(format!(
            "the target answered a script that looks at expiries with \"{}\"",
            text.escape_ascii()
        ))),
        reply => Ok(Some(reply)),
    }
}

fn numbers((ahead_ms, past_ms): (i64, i64)) -> [String; 4] {
    [SHIFT_MS, SHIFTED_MS_END, ahead_ms, past_ms].map(|number| number.to_string())
}

/// Counts what a script says; what it says beyond is returned.
fn add(swept: &mut Swept, reply: Value) -> Result<Vec<i64>, EngineError> {
    let numbers: Option<Vec<i64>> = reply
        .array()
        .map(|values| values.iter().filter_map(|v| if let Value::Integer(n) = v { Some(*n) } else { None }).collect());
    match numbers.as_deref() {
        Some([put_right, left, more @ ..]) => {
            swept.put_right += put_right.unsigned_abs();
            swept.left += left.unsigned_abs();
            Ok(more.to_vec())
        }
        _ => Err(EngineError::Target(format!("the target answered a script that looks at expiries with {reply:?}"))),
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
