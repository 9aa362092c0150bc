//! Pops of many elements, as commands that do not answer with what they remove: an answer of millions of elements takes the
//! target's memory and the connection's time, and nobody reads it.

use super::error::{TranslateError, TranslateReason};
use super::record::Record;
use super::table::End;
use super::write::Request;
use super::{DropReason, JournalTranslator, Outcome};
use crate::convert::out::{Class, Out};

impl JournalTranslator {
    /// `LPOP k [count]`, `RPOP k [count]`
    pub(super) fn pop<O: Out>(
        &mut self,
        record: &Record<'_>,
        end: End,
        out: &mut O,
    ) -> Result<Outcome, TranslateError> {
        let Some(count) = count(record)? else { return self.pass(record, Class::Guarded, out) };
        let range = match end {
            End::First => (count, -1),
            // Counted from the end, where -1 is the last one.
            End::Last => (0, -count.saturating_add(1)),
        };
        self.by_range(record, count, "LTRIM", range, out)
    }

    /// `ZPOPMIN k [count]`, `ZPOPMAX k [count]`: ranks are by score, then by member, as pops are.
    pub(super) fn zpop<O: Out>(
        &mut self,
        record: &Record<'_>,
        end: End,
        out: &mut O,
    ) -> Result<Outcome, TranslateError> {
        let Some(count) = count(record)? else { return self.pass(record, Class::Guarded, out) };
        let range = match end {
            End::First => (0, count - 1),
            End::Last => (-count, -1),
        };
        self.by_range(record, count, "ZREMRANGEBYRANK", range, out)
    }

    /// `SREM k member...`, which a SPOP is recorded as. One that removed nothing has no members, and is refused by every server.
    pub(super) fn rem<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        match record.args.len() {
            2 => Ok(Outcome::Dropped(DropReason::Read)),
            _ => self.pass(record, Class::Guarded, out),
        }
    }

    fn by_range<O: Out>(
        &mut self,
        record: &Record<'_>,
        count: i64,
        name: &'static str,
        (first, last): (i64, i64),
        out: &mut O,
    ) -> Result<Outcome, TranslateError> {
        if count == 0 {
            return Ok(Outcome::Dropped(DropReason::Read));
        }
        let key = record.key()?;
        let mut request = Request::open(out, self.meta(record, key, Class::Guarded), 4, name);
        request.text(key);
        request.number(first);
        request.number(last);
        request.close();
        Ok(Outcome::Written { commands: 1 })
    }
}

fn count(record: &Record<'_>) -> Result<Option<i64>, TranslateError> {
    if record.args.len() < 3 {
        return Ok(None);
    }
    match record.int(2)? {
        count @ 0.. => Ok(Some(count)),
        _ => Err(record.error(TranslateReason::BadArgument { position: 2, expected: "a count of elements" })),
    }
}
