//! Commands over several keys as older masters record them: raw, and truncated where the keys lie on several shards.
//!
//! In: records of `LMPOP`, `BLMPOP`, `ZMPOP`, `ZRANGESTORE`, `ZUNIONSTORE`, `ZINTERSTORE`, `ZDIFFSTORE`, and of `SORT`, which no
//! release records whole (wire 6.19). Out: the same command where the record is whole, else its keys, to be fetched or listed. A record
//! that is not whole is never executed: what is left of it may name another destination.

use super::error::TranslateError;
use super::record::Record;
use super::several::reads_by_pattern;
use super::write::Request;
use super::{DropReason, JournalTranslator, Outcome, keys};
use crate::convert::out::{Class, Out};
use crate::convert::policy::Kind;

impl JournalTranslator {
    /// SORT without STORE is a read; `SORT k` alone in a transaction may also be what is left of a SORT STORE over two shards.
    pub(super) fn sort<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        if !keys::is_whole_sort(record.args) {
            return Ok(self.truncated(record));
        }
        if keys::sort_store(record.args).is_some() {
            // Which keys those are nobody says, and a node refuses it in the middle of its transaction.
            if self.capabilities.cluster && reads_by_pattern(record.args) {
                return Ok(Outcome::NotCarried { kind: super::NotCarriedKind::CrossSlot });
            }
            return self.pass(record, Class::Guarded, out);
        }
        // What ran on several shards has a transaction's number (wire 4.1).
        if record.args.len() > 2 || record.txid == 0 {
            return Ok(Outcome::Dropped(DropReason::Read));
        }
        Ok(self.truncated(record))
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
        // A nil from it is no sign of a lost key, as one from LPOP is: that nothing was there is recorded, too.
        if self.capabilities.has_command(name) {
            if self.is_cross_slot(record) {
                return Ok(Outcome::NotCarried { kind: super::NotCarriedKind::CrossSlot });
            }
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
