//! Expiry of fields and members: HEXPIRE, HSETEX (both forms), HGETEX, FIELDEXPIRE, SADDEX.
//!
//! Dragonfly counts in whole seconds from the second of execution; the target is told absolute milliseconds. Targets without
//! field expiry follow `--on-unsupported field-expiry=...`; no target has expiry of set members (`member-expiry`).

use super::error::TranslateError;
use super::record::{Record, is};
use super::write::Request;
use super::{Doubt, DropReason, JournalTranslator, Outcome};
use crate::convert::near::SHIFT_MS;
use crate::convert::out::{Class, Out};
use crate::convert::policy::Kind;

/// HSETEX in all its forms, for conditions and kept TTLs.
/// ARGV: condition ('', 'NX' for each field, 'FNX', 'FXX' for all), 'KEEP' or '', expiry in ms or '', then field and value pairs.
const HSETEX_SCRIPT: &str = "local k,m,keep,at=KEYS[1],ARGV[1],ARGV[2],ARGV[3] \
if m=='FNX' or m=='FXX' then for i=4,#ARGV,2 do \
if (redis.call('HEXISTS',k,ARGV[i])==1)~=(m=='FXX') then return 0 end end end \
for i=4,#ARGV,2 do local f,t=ARGV[i],at \
if m=='NX' and redis.call('HEXISTS',k,f)==1 then t=nil \
elseif keep=='KEEP' then local r=redis.call('HPEXPIRETIME',k,'FIELDS',1,f) r=r and r[1] or -2 \
if r==-1 then t='' elseif r>0 then t=string.format('%.0f',r) end end \
if t then redis.call('HSET',k,f,ARGV[i+1]) \
if t~='' then redis.call('HPEXPIREAT',k,t,'FIELDS',1,f) end end end return 1";

/// HPEXPIREAT with GT or LT where expiries may be shifted (`convert::near`).
/// ARGV: the condition, the time, the time as it is to be written, the shift, then fields.
const COMPARE_SCRIPT: &str = "local k,at,shift=KEYS[1],tonumber(ARGV[2]),tonumber(ARGV[4]) \
for i=5,#ARGV do local r=redis.call('HPEXPIRETIME',k,'FIELDS',1,ARGV[i]) local e=r and r[1] or -2 \
if e>=shift then e=e-shift end \
if (ARGV[1]=='GT' and e>0 and at>e) or (ARGV[1]=='LT' and (e==-1 or e>at)) \
then redis.call('HPEXPIREAT',k,ARGV[3],'FIELDS',1,ARGV[i]) end end return 1";

/// A HSETEX of either form, understood.
struct HSetEx<'r> {
    condition: &'static str,
    keep_ttl: bool,
    expire_at_ms: Option<i64>,
    pairs: &'r [&'r [u8]],
}

impl JournalTranslator {
    /// `HEXPIRE k sec [NX|XX|GT|LT] FIELDS n f...`
    pub(super) fn hexpire<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        let at_ms = record.field_relative_ms(2, 1000)?;
        let conditional = ["NX", "XX", "GT", "LT"].iter().any(|condition| record.is(3, condition));
        let fields_at = 3 + usize::from(conditional);
        let fields = record.fields(fields_at, 1)?;
        let condition = record.args.get(3..fields_at).unwrap_or_default();
        self.expire_fields(record, at_ms, condition, fields, out)
    }

    /// `FIELDEXPIRE k sec f...`: the record does not say whether k is a hash or a set. On a set HPEXPIREAT answers WRONGTYPE.
    pub(super) fn field_expire<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        let at_ms = record.field_relative_ms(2, 1000)?;
        self.expire_fields(record, at_ms, &[], record.from(3), out)
    }

    /// `HGETEX k [EX s | PX ms | EXAT s | PXAT ms | PERSIST] FIELDS n f...`: only its effect matters.
    pub(super) fn hget_ex<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        if record.is(2, "FIELDS") {
            record.fields(2, 1)?;
            return Ok(Outcome::Dropped(DropReason::Read));
        }
        if record.is(2, "PERSIST") {
            let fields = record.fields(3, 1)?;
            if !self.capabilities.field_expiry {
                return Ok(Outcome::Dropped(DropReason::NoEffect));
            }
            let key = record.key()?;
            let mut request = Request::open(out, self.meta(record, key, Class::Guarded), 4 + fields.len(), "HPERSIST");
            request.text(key);
            write_fields(&mut request, fields);
            request.close();
            return Ok(Outcome::Written { commands: 1 });
        }
        let at_ms = record.field_expiry_option(2)?.ok_or_else(|| record.unknown_option(2))?;
        let fields = record.fields(4, 1)?;
        self.expire_fields(record, at_ms, &[], fields, out)
    }

    /// Lets fields expire, as far as the target can; at once means HDEL.
    fn expire_fields<O: Out>(
        &mut self,
        record: &Record<'_>,
        at_ms: i64,
        condition: &[&[u8]],
        fields: &[&[u8]],
        out: &mut O,
    ) -> Result<Outcome, TranslateError> {
        let key = record.key()?;
        if self.capabilities.field_expiry {
            let compares = condition.first().is_some_and(|word| is(word, "GT") || is(word, "LT"));
            if compares && self.near.may_shift() {
                return self.expire_fields_by_script(record, at_ms, condition, fields, out);
            }
            let at_ms = self.expiry_ms(at_ms);
            let strings = 5 + condition.len() + fields.len();
            let mut request = Request::open(out, self.meta(record, key, Class::Guarded), strings, "HPEXPIREAT");
            request.text(key);
            request.number(at_ms);
            request.texts(condition);
            write_fields(&mut request, fields);
            request.close();
            return Ok(Outcome::Written { commands: 1 });
        }
        if at_ms > record.now_ms {
            self.drop_expiry(record, Kind::FieldExpiry, "expiry of hash fields (Redis >= 7.4, Valkey >= 9)")?;
            return Ok(Outcome::LeftOut { kind: Kind::FieldExpiry, commands: 0 });
        }
        if !condition.is_empty() {
            self.drop_expiry(record, Kind::FieldExpiry, "expiry of hash fields (Redis >= 7.4, Valkey >= 9)")?;
            self.doubt(record, Doubt::ConditionalExpiry);
            return Ok(Outcome::LeftOut { kind: Kind::FieldExpiry, commands: 0 });
        }
        let mut request = Request::open(out, self.meta(record, key, Class::Guarded), 2 + fields.len(), "HDEL");
        request.text(key);
        request.texts(fields);
        request.close();
        Ok(Outcome::Written { commands: 1 })
    }

    /// GT and LT compare with what the fields have, which may be shifted.
    fn expire_fields_by_script<O: Out>(
        &mut self,
        record: &Record<'_>,
        at_ms: i64,
        condition: &[&[u8]],
        fields: &[&[u8]],
        out: &mut O,
    ) -> Result<Outcome, TranslateError> {
        let told_ms = self.expiry_ms(at_ms);
        let Some(mut request) = self.open_eval(record, COMPARE_SCRIPT, 4 + fields.len(), out)? else {
            return self.leave_out(record, Kind::Command, "it needs EVAL, which the target does not offer");
        };
        request.word(if condition.first().is_some_and(|word| is(word, "GT")) { "GT" } else { "LT" });
        request.number(at_ms.max(1));
        request.number(told_ms);
        request.number(SHIFT_MS);
        request.texts(fields);
        request.close();
        Ok(Outcome::Written { commands: 1 })
    }

    /// `HSETEX k [NX] [KEEPTTL] sec f v ...` (Dragonfly) or
    /// `HSETEX k [FNX|FXX] [EX s|PX ms|EXAT s|PXAT ms|KEEPTTL] FIELDS n f v ...` (as in Redis 8.0).
    pub(super) fn hset_ex<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        let mut parsed = parse_hset_ex(record)?;
        let has_expiry = self.capabilities.field_expiry;
        if !has_expiry {
            if parsed.expire_at_ms.is_some() {
                self.drop_expiry(record, Kind::FieldExpiry, "expiry of hash fields (Redis >= 7.4, Valkey >= 9)")?;
            }
            parsed.expire_at_ms = None;
            parsed.keep_ttl = false;
        }
        if !parsed.condition.is_empty() || parsed.keep_ttl {
            return self.hset_ex_by_script(record, &parsed, out);
        }
        let key = record.key()?;
        // The HSET stands before a Guarded command of the same record, or is alone: Blind either way.
        let mut request = Request::open(out, self.meta(record, key, Class::Blind), 2 + parsed.pairs.len(), "HSET");
        request.text(key);
        request.texts(parsed.pairs);
        request.close();
        let Some(at_ms) = parsed.expire_at_ms else { return Ok(Outcome::Written { commands: 1 }) };
        let count = parsed.pairs.len() / 2;
        let told_ms = self.expiry_ms(at_ms);
        let mut request = Request::open(out, self.meta(record, key, Class::Guarded), 5 + count, "HPEXPIREAT");
        request.text(key);
        request.number(told_ms);
        request.word("FIELDS");
        request.number(i64::try_from(count).unwrap_or(i64::MAX));
        parsed.pairs.iter().step_by(2).for_each(|field| request.text(field));
        request.close();
        Ok(Outcome::Written { commands: 2 })
    }

    fn hset_ex_by_script<O: Out>(
        &mut self,
        record: &Record<'_>,
        parsed: &HSetEx<'_>,
        out: &mut O,
    ) -> Result<Outcome, TranslateError> {
        let told_ms = parsed.expire_at_ms.map(|at_ms| self.expiry_ms(at_ms));
        let Some(mut request) = self.open_eval(record, HSETEX_SCRIPT, 3 + parsed.pairs.len(), out)? else {
            return self.leave_out(record, Kind::Command, "it needs EVAL, which the target does not offer");
        };
        request.word(parsed.condition);
        request.word(if parsed.keep_ttl { "KEEP" } else { "" });
        match told_ms {
            Some(told_ms) => request.number(told_ms),
            None => request.word(""),
        }
        request.texts(parsed.pairs);
        request.close();
        Ok(Outcome::Written { commands: 1 })
    }

    /// `SADDEX k [KEEPTTL] sec m...`
    pub(super) fn sadd_ex<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        let seconds_at = 2 + usize::from(record.is(2, "KEEPTTL"));
        record.relative_ms(seconds_at, 1000)?;
        let members = record.grouped(seconds_at + 1, 1)?;
        self.drop_expiry(record, Kind::MemberExpiry, "expiry of set members, which no Redis and no Valkey has")?;
        let key = record.key()?;
        let mut request = Request::open(out, self.meta(record, key, Class::Blind), 2 + members.len(), "SADD");
        request.text(key);
        request.texts(members);
        request.close();
        Ok(Outcome::Written { commands: 1 })
    }
}

/// `FIELDS n` and the fields.
fn write_fields<O: Out>(request: &mut Request<'_, O>, fields: &[&[u8]]) {
    request.word("FIELDS");
    request.number(i64::try_from(fields.len()).unwrap_or(i64::MAX));
    request.texts(fields);
}

fn parse_hset_ex<'r>(record: &Record<'r>) -> Result<HSetEx<'r>, TranslateError> {
    let mut parsed = HSetEx { condition: "", keep_ttl: false, expire_at_ms: None, pairs: &[] };
    let mut position = 2;
    loop {
        let option = record.arg(position)?;
        if is(option, "NX") {
            parsed.condition = "NX";
        } else if is(option, "FNX") {
            parsed.condition = "FNX";
        } else if is(option, "FXX") {
            parsed.condition = "FXX";
        } else if is(option, "KEEPTTL") {
            parsed.keep_ttl = true;
        } else if is(option, "FIELDS") {
            parsed.pairs = record.fields(position, 2)?;
            return Ok(parsed);
        } else if let Some(at_ms) = record.field_expiry_option(position)? {
            parsed.expire_at_ms = Some(at_ms);
            position += 1;
        } else {
            // Dragonfly's own form: the first string that is no option is the number of seconds.
            parsed.expire_at_ms = Some(record.field_relative_ms(position, 1000)?);
            parsed.pairs = record.grouped(position + 1, 2)?;
            return Ok(parsed);
        }
        position += 1;
    }
}
