//! Strings and whole keys: SET and its relatives, DEL, expiry of keys, PREPEND, DELEX, BITFIELD, SORT, MOVE, and the
//! commands whose flags decide their class (ZADD, GEOADD).

use super::error::{TranslateError, TranslateReason};
use super::record::{Record, is};
use super::write::Request;
use super::{COMPARED_MAX, Doubt, DropReason, JournalTranslator, NotCarriedKind, Outcome, keys};
use crate::convert::out::{Class, Out};
use crate::convert::policy::Kind;

/// PREPEND: keeps the TTL, creates a missing key.
/// An expiry that never comes: in the year 2286.
const FAR_AWAY_MS: i64 = 9_999_999_999_999;
const PREPEND_SCRIPT: &str = "local v=redis.call('GET',KEYS[1]) \
if v then redis.call('SET',KEYS[1],ARGV[1]..v,'KEEPTTL') else redis.call('SET',KEYS[1],ARGV[1]) end return 1";
/// DELEX IFEQ.
const DELETE_IF_EQUAL_SCRIPT: &str =
    "if redis.call('GET',KEYS[1])==ARGV[1] then return redis.call('DEL',KEYS[1]) end return 0";
/// DELEX IFNE.
const DELETE_UNLESS_EQUAL_SCRIPT: &str =
    "local v=redis.call('GET',KEYS[1]) if v and v~=ARGV[1] then return redis.call('DEL',KEYS[1]) end return 0";

/// Header and registers of a HyperLogLog that is not packed.
const DENSE_HLL_BYTES: usize = 16 + 16_384 * 6 / 8;

/// A SET in a transaction of its own kind (PFMERGE has two steps; a SET alone has no number) of a HyperLogLog that is not packed.
fn is_pfmerge(record: &Record<'_>) -> bool {
    match record.args {
        [_, _, value] => record.txid != 0 && value.len() == DENSE_HLL_BYTES && value.starts_with(b"HYLL\0"),
        _ => false,
    }
}

/// What a SET, SETEX or GETSET does to the key's expiry.
enum Expiry {
    None,
    At(i64),
    Keep,
}

impl JournalTranslator {
    /// `SET k v [PXAT ms | KEEPTTL] [STICK] [_MCFLAGS n]`. Options that only decide whether to write (NX, XX) or what to
    /// answer (GET) are dropped: it was written.
    ///
    /// PFMERGE is recorded as a SET of its result, but keeps the key's expiry (so does BITOP, which cannot be told from a
    /// client's SET).
    pub(super) fn set<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        let mut expiry = if is_pfmerge(record) { Expiry::Keep } else { Expiry::None };
        let mut position = 3;
        while let Some(option) = record.args.get(position) {
            if is(option, "KEEPTTL") {
                expiry = Expiry::Keep;
            } else if is(option, "_MCFLAGS") {
                position += 1;
                record.int(position)?;
            } else if let Some(at_ms) = record.expiry_option(position)? {
                position += 1;
                expiry = Expiry::At(at_ms);
            } else if !["STICK", "NX", "XX", "GET"].iter().any(|ignored| is(option, ignored)) {
                return Err(record.unknown_option(position));
            }
            position += 1;
        }
        self.write_set(record, record.arg(2)?, expiry, out)
    }

    pub(super) fn set_ex<O: Out>(
        &mut self,
        record: &Record<'_>,
        unit_ms: i64,
        out: &mut O,
    ) -> Result<Outcome, TranslateError> {
        self.write_set(record, record.arg(3)?, Expiry::At(record.relative_ms(2, unit_ms)?), out)
    }

    /// GETSET clears the TTL as SET does, and can be repeated when it is one; so can SETNX, which made the key.
    pub(super) fn get_set<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        self.write_set(record, record.arg(2)?, Expiry::None, out)
    }

    fn write_set<O: Out>(
        &mut self,
        record: &Record<'_>,
        value: &[u8],
        expiry: Expiry,
        out: &mut O,
    ) -> Result<Outcome, TranslateError> {
        let key = record.key()?;
        let strings = match expiry {
            Expiry::None => 3,
            Expiry::Keep => 4,
            Expiry::At(_) => 5,
        };
        let mut request = Request::open(out, self.meta(record, key, Class::Blind), strings, "SET");
        request.text(key);
        request.text(value);
        match expiry {
            Expiry::None => {}
            Expiry::Keep => request.word("KEEPTTL"),
            Expiry::At(at_ms) => {
                request.word("PXAT");
                request.number(self.expiry_ms(at_ms));
            }
        }
        request.close();
        Ok(Outcome::Written { commands: 1 })
    }

    /// One MSET for each run of pairs in the same slot.
    pub(super) fn mset<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        let pairs = record.grouped(1, 2)?;
        // Those before 1.14, which alone record it by this name, do so where it failed, too.
        if record.is(0, "MSETNX") {
            let keys = pairs.chunks_exact(2).filter_map(|pair| pair.first().copied());
            self.unclear.extend(keys.map(|key| (Box::from(key), record.row.name, Doubt::PerhapsNothing)));
        }
        Ok(Outcome::Written { commands: self.by_slot(record, "MSET", pairs, 2, out) })
    }

    pub(super) fn del<O: Out>(&mut self, record: &Record<'_>, keys: &[&[u8]], out: &mut O) -> Outcome {
        Outcome::Written { commands: self.del_keys(record, keys, out) }
    }

    pub(super) fn del_keys<O: Out>(&mut self, record: &Record<'_>, keys: &[&[u8]], out: &mut O) -> u32 {
        self.by_slot(record, "DEL", keys, 1, out)
    }

    /// Writes `name` with `items`, each group beginning with a key: one command for each run of groups in the same slot.
    fn by_slot<O: Out>(
        &mut self,
        record: &Record<'_>,
        name: &'static str,
        items: &[&[u8]],
        group: usize,
        out: &mut O,
    ) -> u32 {
        let mut commands = 0;
        let mut rest = items;
        while let Some(key) = rest.first() {
            let slot = self.slot(key);
            let mut end = group.min(rest.len());
            while end < rest.len() && rest.get(end).is_some_and(|next| self.slot(next) == slot) {
                end = (end + group).min(rest.len());
            }
            let (run, after) = rest.split_at(end);
            let mut request = Request::open(out, self.meta(record, key, Class::Blind), 1 + run.len(), name);
            request.texts(run);
            request.close();
            commands += 1;
            rest = after;
        }
        commands
    }

    /// At the source the old value of the new name is gone. Where the target lacks the other key (a value that is left out, or
    /// has expired there) it must go all the same.
    pub(super) fn rename<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        let (from, to) = (record.key()?, record.arg(2)?);
        if from == to || self.is_cross_slot(record) {
            return self.pass(record, Class::Guarded, out);
        }
        let deletes = self.del_keys(record, &[to], out);
        self.pass(record, Class::Guarded, out)?;
        Ok(Outcome::Written { commands: deletes + 1 })
    }

    pub(super) fn get_ex<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        if record.args.len() == 2 {
            return Ok(Outcome::Dropped(DropReason::Read));
        }
        if record.is(2, "PERSIST") {
            return self.persist(record, out);
        }
        let at_ms = record.expiry_option(2)?.ok_or_else(|| record.unknown_option(2))?;
        self.write_pexpire_at(record, at_ms, &[], out)
    }

    /// Its answer is 0 also where the key has no expiry, which is recorded too (GETEX). So that a 0 says that there is no key,
    /// it is given one first. (Blind either way, for it stands before a Guarded command of the same record.)
    pub(super) fn persist<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        let key = record.key()?;
        let mut request = Request::open(out, self.meta(record, key, Class::Blind), 3, "PEXPIREAT");
        request.text(key);
        request.number(FAR_AWAY_MS);
        request.close();
        let mut request = Request::open(out, self.meta(record, key, Class::Guarded), 2, "PERSIST");
        request.text(key);
        request.close();
        Ok(Outcome::Written { commands: 2 })
    }

    pub(super) fn pexpire_at<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        if record.args.len() > 3 {
            return Err(record.unknown_option(3));
        }
        self.write_pexpire_at(record, record.int(2)?, &[], out)
    }

    /// EXPIRE, PEXPIRE, EXPIREAT: masters rewrite them, conditions included; if one does not, Redis 7.0 has the conditions.
    pub(super) fn expire<O: Out>(
        &mut self,
        record: &Record<'_>,
        unit_ms: i64,
        relative: bool,
        out: &mut O,
    ) -> Result<Outcome, TranslateError> {
        let at_ms = if relative { record.relative_ms(2, unit_ms)? } else { record.absolute_ms(2, unit_ms)? };
        let conditions = record.from(3);
        let known = |condition: &&[u8]| ["NX", "XX", "GT", "LT"].iter().any(|name| is(condition, name));
        if !conditions.iter().all(known) {
            return Err(record.unknown_option(3));
        }
        if !conditions.is_empty() && self.is_before_7() {
            return self.leave_out(record, Kind::Command, "an expiry with a condition, which Redis has from 7.0 on");
        }
        self.write_pexpire_at(record, at_ms, conditions, out)
    }

    fn write_pexpire_at<O: Out>(
        &mut self,
        record: &Record<'_>,
        at_ms: i64,
        conditions: &[&[u8]],
        out: &mut O,
    ) -> Result<Outcome, TranslateError> {
        let key = record.key()?;
        let mut request = Request::open(out, self.meta(record, key, Class::Guarded), 3 + conditions.len(), "PEXPIREAT");
        request.text(key);
        request.number(self.expiry_ms(at_ms));
        request.texts(conditions);
        request.close();
        Ok(Outcome::Written { commands: 1 })
    }

    pub(super) fn prepend<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        if record.args.len() > 3 {
            return Err(record.unknown_option(3));
        }
        self.eval(record, PREPEND_SCRIPT, record.from(2), out)
    }

    /// `DELEX k [IFEQ|IFNE|IFDEQ|IFDNE v]`, recorded whether it matched or not.
    pub(super) fn del_ex<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        let [_, key, condition @ ..] = record.args else { return Err(record.unknown_option(1)) };
        match condition {
            [] => Ok(self.del(record, &[*key], out)),
            [_, _] if record.present => self.pass(record, Class::Guarded, out),
            [option, _] if is(option, "IFEQ") => self.eval(record, DELETE_IF_EQUAL_SCRIPT, record.from(3), out),
            [option, _] if is(option, "IFNE") => self.eval(record, DELETE_UNLESS_EQUAL_SCRIPT, record.from(3), out),
            [option, _] if is(option, "IFDEQ") || is(option, "IFDNE") => {
                self.leave_out(record, Kind::Command, "DELEX by digest, which Redis has from 8.4 on")
            }
            _ => Err(record.unknown_option(2)),
        }
    }

    /// Runs a script on the record's first key; Guarded.
    pub(super) fn eval<O: Out>(
        &mut self,
        record: &Record<'_>,
        script: &'static str,
        argv: &[&[u8]],
        out: &mut O,
    ) -> Result<Outcome, TranslateError> {
        let Some(mut request) = self.open_eval(record, script, argv.len(), out)? else {
            return self.leave_out(record, Kind::Command, "it needs EVAL, which the target does not offer");
        };
        request.texts(argv);
        request.close();
        Ok(Outcome::Written { commands: 1 })
    }

    /// `EVAL script 1 key`, to be followed by `argv_count` strings; `None` if the target has no EVAL.
    pub(super) fn open_eval<'o, O: Out>(
        &self,
        record: &Record<'_>,
        script: &'static str,
        argv_count: usize,
        out: &'o mut O,
    ) -> Result<Option<Request<'o, O>>, TranslateError> {
        if !self.capabilities.has_command("EVAL") {
            return Ok(None);
        }
        let key = record.key()?;
        let mut request = Request::open(out, self.meta(record, key, Class::Guarded), 4 + argv_count, "EVAL");
        request.word(script);
        request.word("1");
        request.text(key);
        Ok(Some(request))
    }

    /// Only GET: a read. SET alone is absolute; INCRBY is not.
    pub(super) fn bit_field<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        let (mut sets, mut adds) = (false, false);
        let mut position = 2;
        while let Some(operation) = record.args.get(position) {
            position += if is(operation, "GET") {
                3
            } else if is(operation, "SET") {
                sets = true;
                4
            } else if is(operation, "INCRBY") {
                adds = true;
                4
            } else if is(operation, "OVERFLOW") {
                2
            } else {
                return Err(record.unknown_option(position));
            };
        }
        if position > record.args.len() {
            return Err(record.error(TranslateReason::WrongArity { given: record.args.len(), least: position }));
        }
        match (sets, adds) {
            (_, true) => self.pass(record, Class::Guarded, out),
            (true, false) => self.pass(record, Class::Blind, out),
            (false, false) => Ok(Outcome::Dropped(DropReason::Read)),
        }
    }

    /// ZADD. A source that does not heed GT and LT in larger sets may hold another score then.
    pub(super) fn zadd<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        const FLAGS: [&str; 6] = ["NX", "XX", "GT", "LT", "CH", "INCR"];
        if self.compares_wrongly {
            let flags = record.from(2).iter().take_while(|text| FLAGS.iter().any(|flag| is(text, flag)));
            let compares = flags.clone().any(|flag| is(flag, "GT") || is(flag, "LT"));
            if compares && self.compared.len() < COMPARED_MAX && self.compared.insert((record.db, record.key()?.into()))
            {
                self.doubt(record, Doubt::Comparison);
            }
        }
        self.flagged_add(record, &["NX", "XX", "GT", "LT", "INCR"], 2, out)
    }

    /// ZADD and GEOADD: Blind unless one of `conditions` stands among the flags.
    pub(super) fn flagged_add<O: Out>(
        &mut self,
        record: &Record<'_>,
        conditions: &[&str],
        group: usize,
        out: &mut O,
    ) -> Result<Outcome, TranslateError> {
        let mut class = Class::Blind;
        let mut position = 2;
        while let Some(flag) = record.args.get(position) {
            if conditions.iter().any(|condition| is(flag, condition)) {
                class = Class::Guarded;
            } else if !is(flag, "CH") {
                break;
            }
            position += 1;
        }
        record.grouped(position, group)?;
        self.pass(record, class, out)
    }

    pub(super) fn move_db<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        if u32::try_from(record.int(2)?).is_err() {
            return Err(record.error(TranslateReason::BadArgument { position: 2, expected: "a database index" }));
        }
        // What else a node may have, no key of ours stands there.
        if self.capabilities.cluster {
            return Ok(Outcome::NotCarried { kind: NotCarriedKind::MoveInCluster });
        }
        self.pass(record, Class::Guarded, out)
    }

    /// Masters up to 1.40.1 record them raw, reads as well, and truncated across shards.
    pub(super) fn geo_radius<O: Out>(
        &mut self,
        record: &Record<'_>,
        options_at: usize,
        out: &mut O,
    ) -> Result<Outcome, TranslateError> {
        if record.args.len() < options_at {
            return Ok(self.truncated(record));
        }
        match keys::geo_store(record.args) {
            Some(_) => self.store_if_there(record, out),
            None => Ok(Outcome::Dropped(DropReason::Read)),
        }
    }

    /// A blocking move that succeeded: the same without waiting, and without the timeout at its end.
    pub(super) fn unblock<O: Out>(
        &mut self,
        record: &Record<'_>,
        name: &'static str,
        out: &mut O,
    ) -> Result<Outcome, TranslateError> {
        if self.is_cross_slot(record) {
            return Ok(Outcome::NotCarried { kind: NotCarriedKind::CrossSlot });
        }
        let [_, moved @ .., _timeout] = record.args else { return Err(record.unknown_option(1)) };
        let mut request = Request::open(out, self.meta(record, record.key()?, Class::Guarded), 1 + moved.len(), name);
        request.texts(moved);
        request.close();
        Ok(Outcome::Written { commands: 1 })
    }
}
