//! XCLAIM and XAUTOCLAIM: the same entries go to the same consumer, with the source's delivery times and counts.
//!
//! The source decides by idle times at its moment; the target executes later, when other entries have become idle enough.
//! So a script compares delivery times with the moment of receipt. What Dragonfly does otherwise than Redis (from its source,
//! 1.13 to HEAD): `IDLE n` is taken as `TIME n`; a time in the future or below 0 is now; the consumer is made even if nothing
//! is claimed (since about 1.27); an entry that is deleted is no longer pending then (Redis: since 7.0).
//!
//! Where the target's user may not run the script, the commands go as they are, and what may differ is noted.

use super::error::{TranslateError, TranslateReason};
use super::record::{Record, is};
use super::write::Request;
use super::{Doubt, JournalTranslator, Outcome};
use crate::convert::out::{Class, Out};
use crate::convert::policy::Kind;
use smallvec::SmallVec;

/// ARGV: group, consumer, least idle time, now, what the XCLAIM of one id ends with (how many strings, the strings), ids.
/// A LASTID is carried out even if no id is claimed, by a claim for which nothing is idle enough.
const CLAIM_SCRIPT: &str = "local k,g,c,m,now,n=KEYS[1],ARGV[1],ARGV[2],tonumber(ARGV[3]),tonumber(ARGV[4]),tonumber(ARGV[5]) \
local made=redis.pcall('XGROUP','CREATECONSUMER',k,g,c) if type(made)=='table' then return made end \
local t=redis.call('TIME') local here=t[1]*1000+math.floor(t[2]/1000) \
local options,first={},6+n for i=6,5+n do options[#options+1]=ARGV[i] end \
for i=first,#ARGV do local id=ARGV[i] \
if #redis.call('XRANGE',k,id,id)==0 then redis.call('XACK',k,g,id) else \
local p=redis.call('XPENDING',k,g,id,id,1)[1] \
if m==0 or not p or now-here+p[3]>=m then redis.call('XCLAIM',k,g,c,0,id,unpack(options)) end end end \
for i=1,n-1 do if options[i]=='LASTID' then \
redis.call('XCLAIM',k,g,c,9007199254740991,'0-1','LASTID',options[i+1],'JUSTID') end end return 1";

/// ARGV: group, consumer, least idle time, now, start, count, JUSTID or nothing.
const AUTO_CLAIM_SCRIPT: &str = "local k,g,c,m,now,from,n=KEYS[1],ARGV[1],ARGV[2],tonumber(ARGV[3]),tonumber(ARGV[4]),ARGV[5],tonumber(ARGV[6]) \
local made=redis.pcall('XGROUP','CREATECONSUMER',k,g,c) if type(made)=='table' then return made end \
local t=redis.call('TIME') local here=t[1]*1000+math.floor(t[2]/1000) local left=n*10 \
while left>0 and n>0 do local page=redis.call('XPENDING',k,g,from,'+',math.min(left,100)) \
if #page==0 then return 1 end \
for _,p in ipairs(page) do if left==0 or n==0 then break end left=left-1 from='('..p[1] \
if #redis.call('XRANGE',k,p[1],p[1])==0 then redis.call('XACK',k,g,p[1]) n=n-1 \
elseif m==0 or now-here+p[3]>=m then \
redis.call('XCLAIM',k,g,c,0,p[1],'TIME',ARGV[4],unpack(ARGV,7)) n=n-1 end end end return 1";

/// Entries that XAUTOCLAIM claims at the most, if it does not say.
const AUTO_CLAIM_COUNT: i64 = 100;

impl JournalTranslator {
    /// `XCLAIM k g c min-idle id... [IDLE ms] [TIME ms] [RETRYCOUNT n] [FORCE] [JUSTID] [LASTID id]`
    pub(super) fn xclaim<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        let idle_ms_min = record.int(4)?.max(0);
        let options_at = 5 + record.from(5).iter().take_while(|id| parse_id(id).is_some()).count();
        let ids = record.args.get(5..options_at).unwrap_or_default();
        if ids.is_empty() {
            return Err(
                record.error(TranslateReason::BadArgument { position: 5, expected: "the id of a stream entry" })
            );
        }
        let mut time_ms = record.now_ms;
        let mut kept: SmallVec<[&[u8]; 8]> = SmallVec::new();
        let mut position = options_at;
        while let Some(option) = record.args.get(position) {
            if is(option, "IDLE") || is(option, "TIME") {
                time_ms = record.int(position + 1)?;
                position += 2;
            } else if is(option, "RETRYCOUNT") {
                // Below 0 is none.
                if record.int(position + 1)? >= 0 {
                    kept.extend([b"RETRYCOUNT", record.arg(position + 1)?]);
                }
                position += 2;
            } else if is(option, "LASTID") {
                kept.extend([b"LASTID", record.arg(position + 1)?]);
                position += 2;
            } else if is(option, "FORCE") || is(option, "JUSTID") {
                kept.push(if is(option, "FORCE") { b"FORCE" } else { b"JUSTID" });
                position += 1;
            } else {
                return Err(record.unknown_option(position));
            }
        }
        if !(0..=record.now_ms).contains(&time_ms) {
            time_ms = record.now_ms;
        }
        let (group, consumer) = (record.arg(2)?, record.arg(3)?);
        // What XREADGROUP records has no conditions, and its consumer was recorded before.
        let all = [&b"FORCE"[..], b"JUSTID", b"LASTID"].iter().all(|option| kept.contains(option));
        let plain = idle_ms_min == 0 && ids.len() == 1 && all;
        if plain || !self.claims_by_script() {
            if idle_ms_min > 0 {
                self.doubt(record, Doubt::IdleTime);
            }
            let key = record.key()?;
            let front = record.args.get(1..options_at).unwrap_or_default();
            let strings = 1 + front.len() + 2 + kept.len();
            let mut request = Request::open(out, self.meta(record, key, Class::Guarded), strings, "XCLAIM");
            request.texts(front);
            request.word("TIME");
            request.number(time_ms);
            request.texts(&kept);
            request.close();
            return Ok(Outcome::Written { commands: 1 });
        }
        let argv_count = 5 + 2 + kept.len() + ids.len();
        let Some(mut request) = self.open_eval(record, CLAIM_SCRIPT, argv_count, out)? else {
            return self.leave_out(record, Kind::Command, "it needs EVAL, which the target does not offer");
        };
        request.texts(&[group, consumer]);
        request.number(idle_ms_min);
        request.number(record.now_ms);
        request.number(2 + kept.len() as i64);
        request.word("TIME");
        request.number(time_ms);
        request.texts(&kept);
        ids.iter().for_each(|id| whole_id(&mut request, id));
        request.close();
        Ok(Outcome::Written { commands: 1 })
    }

    fn claims_by_script(&self) -> bool {
        self.capabilities.scripts_claim && self.capabilities.has_command("EVAL")
    }

    /// `XAUTOCLAIM k g c min-idle start [COUNT n] [JUSTID]`
    pub(super) fn xautoclaim<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        let idle_ms_min = record.int(4)?.max(0);
        let (mut count, mut just_id) = (AUTO_CLAIM_COUNT, false);
        let mut position = 6;
        while let Some(option) = record.args.get(position) {
            if is(option, "COUNT") {
                count = record.int(position + 1)?;
                position += 2;
            } else if is(option, "JUSTID") {
                just_id = true;
                position += 1;
            } else {
                return Err(record.unknown_option(position));
            }
        }
        let start = start_of(record.arg(5)?);
        let (Some(start), true) = (start, self.claims_by_script()) else {
            self.doubt(record, Doubt::IdleTime);
            return self.pass(record, Class::Guarded, out);
        };
        let (group, consumer) = (record.arg(2)?, record.arg(3)?);
        let Some(mut request) = self.open_eval(record, AUTO_CLAIM_SCRIPT, 6 + usize::from(just_id), out)? else {
            return self.leave_out(record, Kind::Command, "it needs EVAL, which the target does not offer");
        };
        request.texts(&[group, consumer]);
        request.number(idle_ms_min);
        request.number(record.now_ms);
        request.text(start.as_bytes());
        request.number(count);
        if just_id {
            request.word("JUSTID");
        }
        request.close();
        Ok(Outcome::Written { commands: 1 })
    }
}

/// An id with its second half, which a range would take for the greatest one.
fn whole_id<O: Out>(request: &mut Request<'_, O>, id: &[u8]) {
    match memchr::memchr(b'-', id) {
        Some(_) => request.text(id),
        None => request.text_and_tail(id, b"-0"),
    }
}

/// Where a scan begins. Behind an id that is to be left out Dragonfly begins with the one before it.
fn start_of(text: &[u8]) -> Option<String> {
    if text == b"-" {
        return Some("0-0".into());
    }
    let (left_out, id) = text.strip_prefix(b"(").map_or((false, text), |id| (true, id));
    let (ms, seq) = parse_id(id)?;
    let (ms, seq) = match (left_out, seq) {
        (false, _) => (ms, seq),
        (true, 0) => (ms.checked_sub(1)?, u64::MAX),
        (true, _) => (ms, seq - 1),
    };
    Some(format!("{ms}-{seq}"))
}

/// `ms` or `ms-seq`.
pub(super) fn parse_id(text: &[u8]) -> Option<(u64, u64)> {
    let number = |part: &[u8]| -> Option<u64> {
        if !part.iter().all(u8::is_ascii_digit) {
            return None;
        }
        std::str::from_utf8(part).ok()?.parse().ok()
    };
    match memchr::memchr(b'-', text) {
        None => Some((number(text)?, 0)),
        Some(dash) => Some((number(text.get(..dash)?)?, number(text.get(dash + 1..)?)?)),
    }
}
