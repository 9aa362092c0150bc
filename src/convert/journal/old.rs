//! Commands over several keys as older masters record them: raw, and truncated where the keys lie on several shards.
//!
//! In: records of `LMPOP`, `BLMPOP`, `ZMPOP`, `ZRANGESTORE`, `ZUNIONSTORE`, `ZINTERSTORE`, `ZDIFFSTORE`, and of `SORT`, which no
//! release records whole (wire 6.19). Out: the same command where the record is whole, else its keys, to be fetched or listed. A record
//! that is not whole is never executed: what is left of it may name another destination.
//!
//! One that did nothing is recorded whole all the same: a command of several steps that ends early does so with a step that succeeds
//! (Dragonfly's `Transaction::Conclude`). What it failed with is no error here (see [`super::replies`]). And SORT and GEORADIUS, where
//! there is nothing to read, leave alone what they would store into, which a target would delete.

use super::error::TranslateError;
use super::record::Record;
use super::several::{Several, Take, reads_by_pattern, several, sorts_by_option};
use super::write::Request;
use super::{Doubt, DropReason, JournalTranslator, Outcome, keys};
use crate::convert::out::{Class, Out};
use crate::convert::policy::Kind;
use smallvec::SmallVec;

/// KEYS: what is read, what is stored into. ARGV: the command. GET tells that a key is there, too, if it is no string: by an error.
/// (For EXISTS the target's user would need one more permission.)
const STORE_SCRIPT: &str = "if not redis.pcall('GET',KEYS[1]) then return 0 end \
local r=redis.pcall(unpack(ARGV)) local e=type(r)=='table' and r.err \
local function says(text) return e:find(text,1,true) end \
if e and (says('WRONGTYPE') or says('converted into double') or says('could not decode') or says('does not exist')) \
then return 0 end return r";

/// KEYS: of the first that is there and a sorted set, elements are taken off. ARGV: their ranks.
const POP_SCRIPT: &str = "for _,key in ipairs(KEYS) do local r=redis.pcall('ZREMRANGEBYRANK',key,ARGV[1],ARGV[2]) \
if type(r)=='number' then if r>0 then return 1 end elseif not r.err:find('WRONGTYPE',1,true) then return r end end return 0";

impl JournalTranslator {
    /// SORT without STORE is a read; `SORT k` alone in a transaction may also be what is left of a SORT STORE over two shards.
    pub(super) fn sort<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        if !keys::is_whole_sort(record.args) {
            return Ok(self.truncated(record));
        }
        if let Some(to) = keys::sort_store(record.args) {
            // Which keys those are nobody says, and a node refuses it in the middle of its transaction.
            if self.capabilities.cluster && reads_by_pattern(record.args) {
                return Ok(Outcome::NotCarried { kind: super::NotCarriedKind::CrossSlot });
            }
            if sorts_by_option(record.args) {
                self.unclear.push((to.into(), record.row.name, Doubt::SortedOtherwise));
            }
            return self.store_if_there(record, out);
        }
        // What ran on several shards has a transaction's number (wire 4.1).
        if record.args.len() > 2 || record.txid == 0 {
            return Ok(Outcome::Dropped(DropReason::Read));
        }
        Ok(self.truncated(record))
    }

    /// SORT or GEORADIUS with STORE.
    pub(super) fn store_if_there<O: Out>(
        &mut self,
        record: &Record<'_>,
        out: &mut O,
    ) -> Result<Outcome, TranslateError> {
        if self.is_cross_slot(record) {
            return Ok(Outcome::NotCarried { kind: super::NotCarriedKind::CrossSlot });
        }
        let keys: SmallVec<[&[u8]; 2]> = keys::keys_in(record.row, record.args).collect();
        let [from, to] = keys[..] else { return Err(record.unknown_option(2)) };
        if !self.capabilities.has_command("EVAL") {
            self.unclear.push((to.into(), record.row.name, Doubt::PerhapsNothing));
            return self.pass(record, Class::Guarded, out);
        }
        let strings = 5 + record.args.len();
        let mut request = Request::open(out, self.meta(record, from, Class::Guarded), strings, "EVAL");
        request.word(STORE_SCRIPT);
        request.word("2");
        request.texts(&[from, to]);
        request.word(record.row.name);
        request.texts(record.from(1));
        request.close();
        Ok(Outcome::Written { commands: 1 })
    }

    /// `LMPOP n key... LEFT|RIGHT [COUNT n]` and its kin, `at` being the place of n; `name`: the form that does not block.
    pub(super) fn multi_pop<O: Out>(
        &mut self,
        record: &Record<'_>,
        name: &'static str,
        at: usize,
        out: &mut O,
    ) -> Result<Outcome, TranslateError> {
        let Some(popped) = keys::counted_keys(record.args, at) else {
            return Ok(self.truncated(record));
        };
        let key = popped.first().copied().unwrap_or_default();
        // Carried out apart it needs no command of that name.
        if self.is_cross_slot(record) {
            return Ok(Outcome::NotCarried { kind: super::NotCarriedKind::CrossSlot });
        }
        if name == "ZMPOP" {
            if self.capabilities.has_command("EVAL")
                && let Ok(Several::Pop { keys, take }) = several(record.args)
            {
                return Ok(self.pop_sorted(record, &keys, take, out));
            }
            let unclear = popped.iter().filter(|_| popped.len() > 1);
            self.unclear.extend(unclear.map(|key| (Box::from(*key), record.row.name, Doubt::PerhapsNothing)));
        }
        // A nil from it is no sign of a lost key, as one from LPOP is: that nothing was there is recorded, too.
        if self.capabilities.has_command(name) {
            let args = record.from(at);
            let mut request = Request::open(out, self.meta(record, key, Class::Guarded), 1 + args.len(), name);
            request.texts(args);
            request.close();
            return Ok(Outcome::Written { commands: 1 });
        }
        if popped.len() > 1 {
            return self.leave_out(
                record,
                Kind::Command,
                "LMPOP or ZMPOP of several keys, which Redis has from 7.0 on",
            );
        }
        let side = at + 2;
        let one = match () {
            () if record.is(side, "LEFT") => "LPOP",
            () if record.is(side, "RIGHT") => "RPOP",
            () if record.is(side, "MIN") => "ZPOPMIN",
            () => "ZPOPMAX",
        };
        let count = if record.args.len() > side + 1 { Some(record.int(side + 2)?) } else { None };
        let strings = 2 + usize::from(count.is_some());
        let mut request = Request::open(out, self.meta(record, key, Class::Guarded), strings, one);
        request.text(key);
        if let Some(count) = count {
            request.number(count);
        }
        request.close();
        Ok(Outcome::Written { commands: 1 })
    }

    /// ZMPOP, which passes over keys of another type at the source (1.27 to 1.31), and fails at one elsewhere.
    fn pop_sorted<O: Out>(&mut self, record: &Record<'_>, keys: &[&[u8]], take: Take, out: &mut O) -> Outcome {
        let first = keys.first().copied().unwrap_or_default();
        let mut request = Request::open(out, self.meta(record, first, Class::Guarded), 5 + keys.len(), "EVAL");
        request.word(POP_SCRIPT);
        request.number(keys.len() as i64);
        request.texts(keys);
        request.number(take.first);
        request.number(take.last);
        request.close();
        Outcome::Written { commands: 1 }
    }

    /// `ZUNIONSTORE to n key... [WEIGHTS w...] [AGGREGATE how]` and its kin.
    pub(super) fn combine<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        if keys::merge_sources(record.args).is_none() {
            return Ok(self.truncated(record));
        }
        self.pass(record, Class::Guarded, out)
    }

    /// `ZRANGESTORE to from min max ...`; in 1.34 after a DEL and a ZADD that come to the same.
    pub(super) fn range_store<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        if record.args.len() < 5 {
            return Ok(self.truncated(record));
        }
        self.pass(record, Class::Guarded, out)
    }
}
