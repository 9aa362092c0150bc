//! INCRBYFLOAT and HINCRBYFLOAT: the sum that Dragonfly made, in its own text.
//!
//! Dragonfly adds in double and writes the shortest text that reads back equal; Redis and Valkey add in long double and
//! print 17 decimals. Sent as they are, three times +0.1 would be 0.30000000000000004 at the source and 0.3 at the target. So
//! a script adds at the target, where the records before this one have left the source's old value. Lua's numbers are
//! doubles, its text is read and written by the C library, correctly rounded.

use super::error::TranslateError;
use super::record::Record;
use super::{JournalTranslator, Outcome};
use crate::convert::out::{Class, Out};

/// KEYS: the key. ARGV: what is added; for a hash, then the field, and `KEEP` where the target's fields can expire.
///
/// The text: the first of 15, 16 and 17 digits that reads back equal is the shortest one. Two kinds of numbers want more:
/// those below the normal ones have fewer digits, and the gap below a power of two is half as wide as the one above, so the
/// nearest number of 16 digits may miss where the next one up does not. Then digits alone for exponents from -6 to 20, else
/// the form with an exponent.
const ADD_SCRIPT: &str = "local k,f=KEYS[1],ARGV[2] local old \
if f then old=redis.call('HGET',k,f) else old=redis.call('GET',k) end \
local a,b=tonumber(old or '0'),tonumber(ARGV[1]) \
if not a or not b then return redis.error_reply('ERR value is not a valid float') end \
local n,s=a+b \
if n~=n then return redis.error_reply('ERR increment would produce NaN or Infinity') end \
if n==0 then s='0' elseif n==1/0 then s='inf' elseif n==-1/0 then s='-inf' else \
for p=(n<2.3e-308 and n>-2.3e-308) and 0 or 14,16 do \
s=string.format('%.'..p..'e',n) \
if tonumber(s)==n then break end \
if p==15 then local up=s:gsub('([0-8])e',function(d) return (d+1)..'e' end) \
if tonumber(up)==n then s=up break end end end \
local g,h,t,e=s:match('^(-?)(%d)%.?(%d*)e([-+]%d+)$') \
local d=(h..t):gsub('0+$','') e=tonumber(e) \
if e<-6 or e>20 then s=g..h..(#d>1 and '.'..d:sub(2) or '')..'e'..(e<0 and '-' or '+')..math.abs(e) \
elseif e<0 then s=g..'0.'..string.rep('0',-e-1)..d \
elseif #d<=e+1 then s=g..d..string.rep('0',e+1-#d) \
else s=g..d:sub(1,e+1)..'.'..d:sub(e+2) end end \
if f then local at=-1 \
if ARGV[3] then local r=redis.call('HPEXPIRETIME',k,'FIELDS',1,f) at=r and r[1] or -1 end \
redis.call('HSET',k,f,s) \
if at>0 then redis.call('HPEXPIREAT',k,string.format('%.0f',at),'FIELDS',1,f) end \
elseif old then redis.call('SET',k,s,'KEEPTTL') else redis.call('SET',k,s) end return 1";

impl JournalTranslator {
    /// `INCRBYFLOAT k delta`
    pub(super) fn add_float<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        let [_, _, delta] = record.args else { return Err(record.unknown_option(3)) };
        self.add_by_script(record, &[*delta], out)
    }

    /// `HINCRBYFLOAT k f delta`
    pub(super) fn add_field_float<O: Out>(
        &mut self,
        record: &Record<'_>,
        out: &mut O,
    ) -> Result<Outcome, TranslateError> {
        let [_, _, field, delta] = record.args else { return Err(record.unknown_option(4)) };
        let argv: &[&[u8]] = &[*delta, *field, b"KEEP"];
        let count = if self.capabilities.field_expiry { 3 } else { 2 };
        self.add_by_script(record, argv.get(..count).unwrap_or(argv), out)
    }

    /// As it is where the target's user may not run such a script: the last digits may differ then.
    fn add_by_script<O: Out>(
        &mut self,
        record: &Record<'_>,
        argv: &[&[u8]],
        out: &mut O,
    ) -> Result<Outcome, TranslateError> {
        if !self.capabilities.scripts_add || !self.capabilities.has_command("EVAL") {
            return self.pass(record, Class::Guarded, out);
        }
        self.eval(record, ADD_SCRIPT, argv, out)
    }
}
