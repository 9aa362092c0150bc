//! Stream commands: XADD with its id, what older targets do not know (ENTRIESREAD ...).

use super::claims::parse_id;
use super::error::{TranslateError, TranslateReason};
use super::record::{Record, is};
use super::write::Request;
use super::{Doubt, JournalTranslator, Outcome};
use crate::convert::out::{Class, Out};
use smallvec::SmallVec;

impl JournalTranslator {
    /// `XADD k [NOMKSTREAM] [MAXLEN|MINID [=|~] x [LIMIT n]] id f v ...`. A `*` comes only from masters <= 1.26.
    pub(super) fn xadd<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        let mut position = 2;
        loop {
            if record.is(position, "NOMKSTREAM") {
                position += 1;
            } else if record.is(position, "MAXLEN") || record.is(position, "MINID") {
                position += 2 + usize::from(record.is(position + 1, "=") || record.is(position + 1, "~"));
            } else if record.is(position, "LIMIT") {
                position += 2;
            } else {
                break;
            }
        }
        let id = record.arg(position)?;
        record.grouped(position + 1, 2)?;
        if id.last() == Some(&b'*') {
            self.doubt(record, Doubt::GeneratedId);
            return self.pass(record, Class::Guarded, out);
        }
        if parse_id(id).is_none() {
            return Err(record.error(TranslateReason::BadArgument { position, expected: "the id of a stream entry" }));
        }
        self.pass(record, Class::Ordered, out)
    }

    /// `XGROUP CREATE|SETID k g id [MKSTREAM] [ENTRIESREAD n]`, CREATECONSUMER, DELCONSUMER, DESTROY.
    pub(super) fn xgroup<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        let known = ["CREATE", "SETID", "DESTROY", "CREATECONSUMER", "DELCONSUMER"];
        if !known.iter().any(|subcommand| record.is(1, subcommand)) {
            return Err(record.unknown_option(1));
        }
        let options_at = if record.is(1, "CREATE") || record.is(1, "SETID") { 5 } else { record.args.len() };
        self.pass_without(record, options_at, &["ENTRIESREAD"], record.arg(2)?, out)
    }

    /// `XSETID k id [ENTRIESADDED n] [MAXDELETEDID id]`
    pub(super) fn xsetid<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        self.pass_without(record, 3, &["ENTRIESADDED", "MAXDELETEDID"], record.key()?, out)
    }

    /// Passes the record, for Redis before 7.0 without the options named (from `options_at` on) and their values.
    fn pass_without<O: Out>(
        &mut self,
        record: &Record<'_>,
        options_at: usize,
        new_options: &[&str],
        key: &[u8],
        out: &mut O,
    ) -> Result<Outcome, TranslateError> {
        if self.capabilities.stream_counters() {
            return self.pass(record, Class::Guarded, out);
        }
        let front = record.args.get(1..options_at).unwrap_or(record.from(1));
        let mut kept: SmallVec<[&[u8]; 4]> = SmallVec::new();
        let mut position = options_at;
        while let Some(option) = record.args.get(position) {
            if new_options.iter().any(|new| is(option, new)) {
                position += 2;
            } else {
                kept.push(option);
                position += 1;
            }
        }
        let mut request =
            Request::open(out, self.meta(record, key, Class::Guarded), 1 + front.len() + kept.len(), record.row.name);
        request.texts(front);
        request.texts(&kept);
        request.close();
        Ok(Outcome::Written { commands: 1 })
    }
}
