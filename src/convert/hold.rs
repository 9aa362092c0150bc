//! Expiries held back (wire 6.34): which, until when, and how they are given back.
//!
//! In: how far the flow is known to be applied; keys and fields whose expiry was written later than it is ([`Near`]). Out:
//! names whose expiry is to be put right now, and the commands that do it. What is true is in the target alone: the names
//! here are hints, so that they are found without looking at every key. A command that gives back reads the key's expiry at
//! that moment and changes nothing unless it is a shifted one that may be given back, so a stale hint does no harm, and none
//! has to follow what commands do.
//!
//! Invariants: an expiry is given back only if it lies beyond the horizon of flows that have caught up, or if everything
//! that the source did before it (and a margin for the clocks) is applied, so that no renewal can follow; bounded in bytes:
//! what finds no place is reported as overflow. An overflow of keys does no harm while the flow is followed, for the source
//! records a DEL for each key that expires; every key must be looked at in the end. For fields it records none.

use super::journal::keys_of;
use super::names::{Name, Names};
use super::near::{Near, SHIFT_MS, SHIFTED_MS_END};
use crate::ids::DbIndex;
use crate::redis::resp;

/// While a flow lags, expiries nearer than this are held back. Longer than nearly every full sync takes.
pub const LAGGING_HORIZON_MS: i64 = 3_600_000;
/// The least while it does not: longer than a lag may last before it is noticed.
pub const HORIZON_MS_MIN: i64 = 10_000;
/// A flow lags if what the source did so long ago is not known to be applied. Its positions are asked for each second.
const LAG_MS_MAX: i64 = 4_000;
const _: () = assert!(LAG_MS_MAX * 2 < HORIZON_MS_MIN);
/// The clocks of source and tool may differ so much.
pub const CLOCK_MARGIN_MS: i64 = 2_000;
/// Time between two looks for what is due: this, and a millisecond more for so many names, so that a full table costs no
/// more than a small one.
const LOOK_EVERY_MS: i64 = 250;
const NAMES_PER_MS: i64 = 32;

/// KEYS: the key; ARGV: shift, end of the shifted range, expiries after this are put right, and those up to this, "1" where
/// PEXPIRETIME exists.
const KEY_SCRIPT: &str = "local k=KEYS[1] local e \
if ARGV[5]=='1' then e=redis.call('PEXPIRETIME',k) else e=redis.call('PTTL',k) \
if e>0 then local t=redis.call('TIME') e=e+t[1]*1000+math.floor(t[2]/1000) end end \
local at=e-ARGV[1] if at<0 or e>=tonumber(ARGV[2]) then return 0 end \
if at>tonumber(ARGV[3]) or at<=tonumber(ARGV[4]) then \
return redis.call('PEXPIREAT',k,string.format('%.0f',at<1 and 1 or at)) end return 0";
/// The same of the field ARGV[5]. The key may be of another type, or gone.
const FIELD_SCRIPT: &str = "local k=KEYS[1] local x=redis.pcall('HPEXPIRETIME',k,'FIELDS',1,ARGV[5]) \
if x and x.err and not string.find(x.err,'WRONGTYPE') then return redis.error_reply(x.err) end local e=x and x[1] or -2 \
local at=e-ARGV[1] if at<0 or e>=tonumber(ARGV[2]) then return 0 end \
if at>tonumber(ARGV[3]) or at<=tonumber(ARGV[4]) then \
return redis.call('HPEXPIREAT',k,string.format('%.0f',at<1 and 1 or at),'FIELDS',1,ARGV[5])[1] end return 0";

/// What was given back is held again, if it is still as it was. KEYS: the key; ARGV: shift, the expiry, "1" where PEXPIRETIME
/// exists. Returns 0 where the key is gone, 1 where it is held again, else 2. Without PEXPIRETIME the time is told a
/// millisecond or two off.
const KEY_AGAIN_SCRIPT: &str = "local k=KEYS[1] local e \
if ARGV[3]=='1' then e=redis.call('PEXPIRETIME',k) else e=redis.call('PTTL',k) \
if e>=0 then local t=redis.call('TIME') e=e+t[1]*1000+math.floor(t[2]/1000) end end \
if e==-2 then return 0 end if math.abs(e-ARGV[2])>2 then return 2 end \
redis.call('PEXPIREAT',k,string.format('%.0f',e+ARGV[1])) return 1";
/// The same of the field ARGV[3].
const FIELD_AGAIN_SCRIPT: &str = "local k=KEYS[1] local x=redis.pcall('HPEXPIRETIME',k,'FIELDS',1,ARGV[3]) \
if x and x.err and not string.find(x.err,'WRONGTYPE') then return redis.error_reply(x.err) end local e=x and x[1] or -2 \
if e==-2 then return 0 end if math.abs(e-ARGV[2])>2 then return 2 end \
redis.call('HPEXPIREAT',k,string.format('%.0f',e+ARGV[1]),'FIELDS',1,ARGV[3]) return 1";
/// What [`hold_again`] answers where the key, or the field, is gone: it has expired, and the source may have renewed it.
pub const GONE_AGAIN: i64 = 0;

/// The command that holds back again what was given back. `tells_expiry`: the target has PEXPIRETIME.
pub fn hold_again(name: &Name, tells_expiry: bool) -> Vec<u8> {
    let (shift, at) = (SHIFT_MS.to_string(), name.at_ms.to_string());
    let (script, last): (&str, &[u8]) = match &name.field {
        None => (KEY_AGAIN_SCRIPT, if tells_expiry { b"1" } else { b"0" }),
        Some(field) => (FIELD_AGAIN_SCRIPT, field),
    };
    resp::command(&[b"EVAL", script.as_bytes(), b"1", &name.key, shift.as_bytes(), at.as_bytes(), last])
}

/// Expiries after the first and up to the second are put right.
pub type Bounds = (i64, i64);
/// Nothing follows: all are.
pub const ALL: Bounds = (i64::MIN, i64::MIN);

/// The numbers that every script for it takes first.
pub fn script_numbers((ahead_ms, past_ms): Bounds) -> [String; 4] {
    [SHIFT_MS, SHIFTED_MS_END, ahead_ms, past_ms].map(|number| number.to_string())
}

/// A name whose expiry is to be put right.
#[derive(Debug, PartialEq, Eq)]
pub struct Due {
    pub name: Name,
    bounds: Bounds,
}

impl Due {
    /// It was not given back because everything that the source did before it is applied.
    pub fn may_be_renewed(&self) -> bool {
        self.name.at_ms > self.bounds.1
    }

    /// The command that puts it right, if it is still shifted and may be. `tells_expiry`: the target has PEXPIRETIME.
    pub fn command(&self, tells_expiry: bool) -> Vec<u8> {
        let numbers = script_numbers(self.bounds);
        let [shift, end, ahead, past] = numbers.each_ref().map(String::as_bytes);
        let (script, last): (&str, &[u8]) = match &self.name.field {
            None => (KEY_SCRIPT, if tells_expiry { b"1" } else { b"0" }),
            Some(field) => (FIELD_SCRIPT, field),
        };
        resp::command(&[b"EVAL", script.as_bytes(), b"1", &self.name.key, shift, end, ahead, past, last])
    }
}

/// What found no place among the names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overflow {
    pub keys: bool,
    pub fields: bool,
}

impl Overflow {
    /// As if there were no room for any of these.
    pub fn of(names: &[Name]) -> Self {
        Self {
            keys: names.iter().any(|name| name.field.is_none()),
            fields: names.iter().any(|name| name.field.is_some()),
        }
    }
}

/// Held expiries of one flow.
#[derive(Debug)]
pub struct Held {
    near: Near,
    holds: bool,
    lagging: bool,
    names: Names,
    looked_ms: i64,
    horizon_ms: i64,
    /// Expiries held, all in all.
    pub held_count: u64,
    /// Names that found no place since this was last taken.
    overflow: Overflow,
    /// All of them.
    pub overflow_count: u64,
    /// Longest time for which one was held.
    pub held_ms_max: i64,
    /// Time in which the flow was behind.
    pub lagged_ms: i64,
    turn_ms: i64,
    /// The earliest expiry that the snapshot had sent as it is; once it has passed while the flow still lags, a key may have
    /// vanished.
    pub sent_expiry_ms_min: Option<i64>,
}

impl Held {
    /// `bytes_max`: memory for names.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            // Until the first turn everything is near.
            near: Near::before(i64::MAX / 2),
            holds: true,
            lagging: true,
            names: Names::new(bytes_max),
            looked_ms: 0,
            horizon_ms: LAGGING_HORIZON_MS,
            held_count: 0,
            overflow: Overflow::default(),
            overflow_count: 0,
            held_ms_max: 0,
            lagged_ms: 0,
            turn_ms: 0,
            sent_expiry_ms_min: None,
        }
    }

    /// Nothing is held: the target keeps what has expired, or it cannot be told to put things right.
    pub fn nothing(target_keeps_expired: bool) -> Self {
        let near = if target_keeps_expired { Near::KEPT } else { Near::AS_IS };
        Self { near, holds: false, lagging: false, ..Self::new(0) }
    }

    /// `applied_until_ms`: everything that the source did before is known to be applied (0: nothing is known);
    /// `horizon_ms`: what is nearer is held while the flow is in step.
    pub fn turn(&mut self, now_ms: i64, applied_until_ms: i64, horizon_ms: i64) {
        if !self.holds {
            return;
        }
        if self.lagging && self.turn_ms > 0 {
            self.lagged_ms += now_ms.saturating_sub(self.turn_ms).max(0);
        }
        self.turn_ms = now_ms;
        self.lagging = is_lagging(now_ms, applied_until_ms);
        if horizon_ms != self.horizon_ms {
            // What lies beyond a lower one is given back at once.
            (self.horizon_ms, self.looked_ms) = (horizon_ms, 0);
        }
        let horizon_ms = if self.lagging { horizon_ms.max(LAGGING_HORIZON_MS) } else { horizon_ms };
        self.near = Near::before(now_ms.saturating_add(horizon_ms));
    }

    /// A key of the snapshot expires then: what the target is to be told.
    pub fn snapshot_key(&mut self, db: DbIndex, key: &[u8], at_ms: i64) -> i64 {
        if self.near.shifts(at_ms) {
            self.hold(db, key, None, at_ms);
        } else if self.holds {
            self.sent_expiry_ms_min = Some(self.sent_expiry_ms_min.map_or(at_ms, |least| least.min(at_ms)));
        }
        self.near.told(at_ms)
    }

    /// Which expiries are to be written later than they are, now.
    pub fn near(&self) -> Near {
        self.near
    }

    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Whether no name has a later expiry.
    pub fn is_all_before(&self, at_ms: i64) -> bool {
        self.names.is_empty() || self.names.at_ms_max() < at_ms
    }

    pub fn names_count(&self) -> usize {
        self.names.len()
    }

    /// What was left out since the last call.
    pub fn take_overflow(&mut self) -> Overflow {
        std::mem::take(&mut self.overflow)
    }

    /// Shifted expiries of fields were written without their names.
    pub fn unnamed_fields(&mut self, count: u64) {
        self.held_count += count;
        self.overflow.fields |= count > 0;
    }

    /// The expiry of a key (or of a field) was shifted.
    #[inline]
    pub fn hold(&mut self, db: DbIndex, key: &[u8], field: Option<&[u8]>, at_ms: i64) {
        self.held_count += 1;
        self.name(db, key, field, at_ms);
    }

    /// A key or a field that was found at the target with a shifted expiry.
    pub fn found(&mut self, name: &Name) {
        match self.holds {
            true => self.name(name.db, &name.key, name.field.as_deref(), name.at_ms),
            // Of an earlier job that held: in the end every key is looked at.
            false => {
                self.overflow.keys |= name.field.is_none();
                self.overflow.fields |= name.field.is_some();
            }
        }
    }

    fn name(&mut self, db: DbIndex, key: &[u8], field: Option<&[u8]>, at_ms: i64) {
        if !self.names.put(db, key, field, at_ms, self.turn_ms) {
            self.overflow.keys |= field.is_none();
            self.overflow.fields |= field.is_some();
            self.overflow_count += 1;
        }
    }

    /// Follows a record, before its own expiry is held, that gives a held key another name, another expiry or an end. What
    /// is not followed (SET, GETSET ...) leaves a stale name behind, which does no harm.
    #[inline]
    pub fn record(&mut self, db: DbIndex, args: &[&[u8]]) {
        if self.is_empty() {
            return;
        }
        let [name, key, more @ ..] = args else { return };
        let is = |text: &str| name.eq_ignore_ascii_case(text.as_bytes());
        match name.len() {
            3 if is("DEL") => keys_of(args).for_each(|key| self.remove(db, key)),
            6 if is("UNLINK") => keys_of(args).for_each(|key| self.remove(db, key)),
            7 if is("PERSIST") => self.remove(db, key),
            // A new expiry is held, or not, after this.
            9 if is("PEXPIREAT") => self.remove(db, key),
            6 if is("RENAME") => self.rename(db, key, more.first().map(|to| (db, *to)), true),
            // It may have failed where the new name was taken.
            8 if is("RENAMENX") => self.rename(db, key, more.first().map(|to| (db, *to)), false),
            4 if is("MOVE") => {
                let to = more.first().and_then(|to| std::str::from_utf8(to).ok()?.parse().ok());
                // The same of a MOVE: it is recorded whatever it answered.
                self.rename(db, key, to.map(|to| (DbIndex(to), *key)), false);
            }
            _ => {}
        }
    }

    #[cold]
    fn rename(&mut self, db: DbIndex, key: &[u8], to: Option<(DbIndex, &[u8])>, surely: bool) {
        let Some((to_db, to)) = to else { return };
        if let Some(at_ms) = self.names.get(db, key) {
            if surely {
                self.remove(db, key);
            }
            self.name(to_db, to, None, at_ms);
        }
        // Which fields are of this key could only be told by looking at every name.
        self.overflow.fields |= self.names.has_fields();
    }

    fn remove(&mut self, db: DbIndex, key: &[u8]) {
        if let Some((_, since_ms)) = self.names.remove(db, key) {
            self.held_ms_max = self.held_ms_max.max(self.turn_ms.saturating_sub(since_ms));
        }
    }

    /// Takes what is due now: expiries beyond the horizon of flows that have caught up, and those that no renewal can follow
    /// any more. `applied_until_ms`: of the flow that is furthest behind, for a name may be of any of them.
    pub fn take_due(&mut self, now_ms: i64, applied_until_ms: i64) -> Vec<Due> {
        let every_ms = LOOK_EVERY_MS + self.names.len() as i64 / NAMES_PER_MS;
        if self.is_empty() || now_ms.saturating_sub(self.looked_ms) < every_ms {
            return Vec::new();
        }
        self.looked_ms = now_ms;
        self.take(now_ms, due_bounds(now_ms, applied_until_ms, self.horizon_ms))
    }

    /// Takes all: nothing follows.
    pub fn take_all(&mut self, now_ms: i64) -> Vec<Due> {
        self.take(now_ms, ALL)
    }

    fn take(&mut self, now_ms: i64, bounds: Bounds) -> Vec<Due> {
        let held_ms_max = &mut self.held_ms_max;
        let put_ms = |since_ms: i64| *held_ms_max = (*held_ms_max).max(now_ms.saturating_sub(since_ms));
        let names = self.names.take(bounds.0, bounds.1, put_ms);
        names.into_iter().map(|name| Due { name, bounds }).collect()
    }
}

/// Whether what is known to be applied is so old that the flow counts as behind.
pub fn is_lagging(now_ms: i64, applied_until_ms: i64) -> bool {
    now_ms.saturating_sub(applied_until_ms) > LAG_MS_MAX
}

/// What may be given back of flows that are applied so far: beyond the horizon if they have caught up, and what no renewal can
/// follow in any case.
pub fn due_bounds(now_ms: i64, applied_until_ms: i64, horizon_ms: i64) -> Bounds {
    let lagging = is_lagging(now_ms, applied_until_ms);
    let ahead_ms = if lagging { i64::MAX } else { now_ms.saturating_add(horizon_ms) };
    (ahead_ms, applied_until_ms.saturating_sub(CLOCK_MARGIN_MS))
}

#[cfg(test)]
mod tests;
