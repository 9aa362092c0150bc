//! What needs a module at the target (JSON, filters, throttling), search, scripts and cluster commands.

use super::error::{TranslateError, TranslateReason};
use super::record::Record;
use super::table::Filter;
use super::write::Request;
use super::{Args, Doubt, DropReason, GlobalCommand, JournalTranslator, NoteKind, Outcome, keys};
use crate::convert::out::{Class, CommandMeta, Out};
use crate::convert::policy::{Action, Kind};
use crate::ids::Slot;
use std::collections::HashSet;

const NO_JSON: &str = "JSON documents, which need the JSON module";
const NO_FILTERS: &str =
    "Bloom, cuckoo, count-min and top-k filters, which need a module (and whose snapshot state is Dragonfly's own)";

/// JSON.SET NX of a whole document: a module that finds another value there fails.
const CREATE_JSON_SCRIPT: &str =
    "if redis.call('EXISTS',KEYS[1])==0 then redis.call('JSON.SET',KEYS[1],'$',ARGV[1]) end return 1";

/// JSON.SET XX of a whole document.
const REPLACE_JSON_SCRIPT: &str = "if redis.call('EXISTS',KEYS[1])==1 then redis.call('DEL',KEYS[1]) \
redis.call('JSON.SET',KEYS[1],'$',ARGV[1]) end return 1";

impl JournalTranslator {
    /// `JSON.SET k path text [NX|XX]`. A whole document replaces whatever stood there, a string and the key's expiry
    /// included; RedisJSON keeps the expiry, and refuses a string.
    pub(super) fn json_set<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        let root = is_root(record.arg(2)?);
        let whole = root && record.args.len() == 4;
        if record.present && whole && !self.json_keeps_expiry {
            let dels = self.del_keys(record, &[record.key()?], out);
            self.pass(record, Class::Blind, out)?;
            return Ok(Outcome::Written { commands: dels + 1 });
        }
        let script = match () {
            () if !record.present || !root => None,
            () if record.is(4, "XX") && !self.json_keeps_expiry => Some(REPLACE_JSON_SCRIPT),
            () if record.is(4, "NX") && self.capabilities.has_command("EVAL") => Some(CREATE_JSON_SCRIPT),
            () => None,
        };
        if let Some(script) = script {
            let key = record.key()?;
            let mut request = Request::open(out, self.meta(record, key, Class::Guarded), 5, "EVAL");
            request.word(script);
            request.word("1");
            request.text(key);
            request.text(record.arg(3)?);
            request.close();
            return Ok(Outcome::Written { commands: 1 });
        }
        if record.present {
            return self.pass(record, if whole { Class::Blind } else { Class::Guarded }, out);
        }
        if !whole || self.policy.action(Kind::Json) != Action::AsString {
            // With NX there was nothing.
            let replaced = if root && !record.is(4, "NX") { record.from(1).get(..1) } else { None };
            return self.json_left_out(record, replaced.unwrap_or_default(), out);
        }
        Ok(self.json_text(record, record.key()?, record.arg(3)?, out))
    }

    /// `JSON.MSET (k path text)...`: one command where the target can take it, else a JSON.SET for each document.
    pub(super) fn json_mset<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        let triples = record.grouped(1, 3)?;
        let all_whole = triples.chunks_exact(3).all(|triple| triple.get(1).is_some_and(|path| is_root(path)));
        if record.present && !self.capabilities.cluster {
            let replaced = self.replaced(triples);
            let dels = if replaced.is_empty() { 0 } else { self.del_keys(record, &replaced, out) };
            self.pass(record, if all_whole { Class::Blind } else { Class::Guarded }, out)?;
            return Ok(Outcome::Written { commands: dels + 1 });
        }
        if self.capabilities.commands.contains("JSON.SET") {
            return Ok(self.json_mset_split(record, triples, all_whole, out));
        }
        if !all_whole || self.policy.action(Kind::Json) != Action::AsString {
            let whole = triples.chunks_exact(3).filter(|triple| triple.get(1).is_some_and(|path| is_root(path)));
            let replaced: Args<'_> = whole.filter_map(|triple| triple.first().copied()).collect();
            return self.json_left_out(record, &replaced, out);
        }
        let mut commands = 0;
        for triple in triples.chunks_exact(3) {
            if let [key, _path, text] = triple {
                self.json_text(record, key, text, out);
                commands += 1;
            }
        }
        Ok(Outcome::Written { commands })
    }

    /// Keys of which a JSON.MSET writes the whole document, and nothing before that.
    fn replaced<'a>(&self, triples: &[&'a [u8]]) -> Args<'a> {
        let mut seen: HashSet<&[u8]> = HashSet::new();
        let first = |triple: &[&'a [u8]]| match triple {
            [key, path, _] => (seen.insert(key) && is_root(path)).then_some(*key),
            _ => None,
        };
        if self.json_keeps_expiry { Args::new() } else { triples.chunks_exact(3).filter_map(first).collect() }
    }

    /// A JSON.SET for each triple; unless all are whole documents, the last one in each slot is Guarded.
    fn json_mset_split<O: Out>(
        &mut self,
        record: &Record<'_>,
        triples: &[&[u8]],
        all_whole: bool,
        out: &mut O,
    ) -> Outcome {
        let mut guarded: HashSet<usize> = HashSet::new();
        if !all_whole {
            let mut seen: HashSet<Slot> = HashSet::new();
            for (at, triple) in triples.chunks_exact(3).enumerate().rev() {
                let key = triple.first().copied().unwrap_or_default();
                if seen.insert(self.slot(key)) {
                    guarded.insert(at);
                }
            }
        }
        let mut commands = 0;
        let replaced = self.replaced(triples);
        for (at, triple) in triples.chunks_exact(3).enumerate() {
            if let [key, path, _] = triple
                && is_root(path)
                && replaced.contains(key)
            {
                commands += self.del_keys(record, &[key], out);
            }
            let class = if guarded.contains(&at) { Class::Guarded } else { Class::Blind };
            let key = triple.first().copied().unwrap_or_default();
            let mut request = Request::open(out, self.meta(record, key, class), 4, "JSON.SET");
            request.texts(triple);
            request.close();
            commands += 1;
        }
        Outcome::Written { commands }
    }

    /// JSON.DEL, JSON.FORGET: at the root the key goes.
    pub(super) fn json_del<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        if record.present {
            return self.pass(record, Class::Guarded, out);
        }
        let whole = record.args.get(2).is_none_or(|path| is_root(path));
        if whole && self.policy.action(Kind::Json) == Action::AsString {
            return Ok(self.del(record, &[record.key()?], out));
        }
        self.json_in_part(record)
    }

    /// `JSON.MERGE k path text`: below the root the two servers differ (wire 4.9).
    pub(super) fn json_merge<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        if record.present && !is_root(record.arg(2)?) {
            self.doubt(record, Doubt::JsonMergePath);
        }
        self.json(record, out)
    }

    pub(super) fn json<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        if record.present {
            return self.pass(record, Class::Guarded, out);
        }
        self.json_in_part(record)
    }

    /// A change that cannot be made without the module.
    fn json_in_part(&mut self, record: &Record<'_>) -> Result<Outcome, TranslateError> {
        if self.policy.action(Kind::Json) == Action::AsString {
            self.doubt(record, Doubt::JsonAsString);
            return Ok(Outcome::LeftOut { kind: Kind::Json, commands: 0 });
        }
        self.leave_out(record, Kind::Json, NO_JSON)
    }

    /// The same where whole documents are among it: what stood there, perhaps a value of another type, must go.
    fn json_left_out<O: Out>(
        &mut self,
        record: &Record<'_>,
        replaced: &[&[u8]],
        out: &mut O,
    ) -> Result<Outcome, TranslateError> {
        let mut outcome = self.json_in_part(record)?;
        if let Outcome::LeftOut { commands, .. } = &mut outcome
            && self.policy.action(Kind::Json) != Action::AsString
        {
            *commands = self.del_keys(record, replaced, out);
        }
        Ok(outcome)
    }

    /// The text of a document as a string.
    fn json_text<O: Out>(&mut self, record: &Record<'_>, key: &[u8], text: &[u8], out: &mut O) -> Outcome {
        let strings = if self.json_keeps_expiry { 4 } else { 3 };
        let mut request = Request::open(out, self.meta(record, key, Class::Blind), strings, "SET");
        request.text(key);
        request.text(text);
        if self.json_keeps_expiry {
            request.word("KEEPTTL");
        }
        request.close();
        Outcome::Written { commands: 1 }
    }

    pub(super) fn filters<O: Out>(
        &mut self,
        record: &Record<'_>,
        filter: Filter,
        out: &mut O,
    ) -> Result<Outcome, TranslateError> {
        if !record.present || filter == Filter::Opaque {
            return self.leave_out(record, Kind::Filters, NO_FILTERS);
        }
        if filter == Filter::Change {
            self.doubt(record, Doubt::FilterBase);
        }
        self.pass(record, Class::Guarded, out)
    }

    /// `CMS.MERGE dst n src...`; over several shards the count is missing and RedisBloom refuses it (wire 4.9).
    pub(super) fn cms_merge<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        if keys::merge_sources(record.args).is_none() && record.present {
            return Ok(self.truncated(record));
        }
        self.filters(record, Filter::Change, out)
    }

    pub(super) fn throttle<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        if record.present {
            return self.pass(record, Class::Guarded, out);
        }
        self.leave_out(record, Kind::Command, "CL.THROTTLE, which needs the redis-cell module")
    }

    /// FT.*: on every flow with the same txid; one of them is enough to list the index. It is left out whatever the target has,
    /// for the indexes of the snapshot are not carried over either, and a module may not take what Dragonfly's search took.
    pub(super) fn search(&mut self, record: &Record<'_>) -> Result<Outcome, TranslateError> {
        if self.flow.0 == 0 && !record.row.name.ends_with("DROPINDEX") {
            self.notes.add(record.db, record.arg(1)?, record.row.name, NoteKind::IndexNotCarried);
        }
        Ok(Outcome::Dropped(DropReason::Search))
    }

    /// `SCRIPT LOAD body` on every node; `SCRIPT FLAGS` is Dragonfly's own.
    pub(super) fn script<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        if record.is(1, "FLAGS") {
            return Ok(Outcome::Dropped(DropReason::NoMeaning));
        }
        if !record.is(1, "LOAD") || record.args.len() != 3 {
            return Err(record.unknown_option(1));
        }
        Ok(self.write_to_all_nodes(record, out))
    }

    fn write_to_all_nodes<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Outcome {
        let meta = CommandMeta { slot: Slot(0), db: record.db, class: Class::Blind, all_nodes: true };
        let mut request = Request::open(out, meta, record.args.len(), record.row.name);
        request.texts(record.from(1));
        request.close();
        Outcome::Written { commands: 1 }
    }

    /// `DFLYCLUSTER FLUSHSLOTS start end [start end ...]`
    pub(super) fn dfly_cluster(&mut self, record: &Record<'_>) -> Result<Outcome, TranslateError> {
        if !record.is(1, "FLUSHSLOTS") {
            return Err(record.unknown_option(1));
        }
        record.grouped(2, 2)?;
        let slot = |position: usize| {
            let bad = || record.error(TranslateReason::BadArgument { position, expected: "a slot from 0 to 16383" });
            let number = u16::try_from(record.int(position)?).map_err(|_| bad())?;
            if number < 16384 { Ok(Slot(number)) } else { Err(bad()) }
        };
        let ranges = (2..record.args.len()).step_by(2);
        let ranges: Result<Vec<_>, TranslateError> = ranges.map(|at| Ok((slot(at)?, slot(at + 1)?))).collect();
        Ok(Outcome::Global(GlobalCommand::FlushSlots(ranges?.into())))
    }
}

/// The path of a whole document.
pub(super) fn is_root(path: &[u8]) -> bool {
    matches!(path, b"$" | b"." | b"")
}
