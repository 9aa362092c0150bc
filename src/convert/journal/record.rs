//! One record on its way through the translator: checked access to its strings, parsing of numbers and options, errors
//! that name it. Nothing here allocates unless it makes an error.

use super::error::{TranslateError, TranslateReason, shown};
use super::table::Row;
use crate::ids::{DbIndex, FlowId};

const SECOND_MS: i64 = 1000;

/// A record and what is known of it. `args.len() >= row.args_min`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'r> {
    pub flow: FlowId,
    pub db: DbIndex,
    pub txid: u64,
    pub args: &'r [&'r [u8]],
    /// Unix time of receipt: relative times count from it.
    pub now_ms: i64,
    pub row: &'static Row,
    /// The target knows a command of this name.
    pub present: bool,
}

impl<'r> Record<'r> {
    /// String `position`, 0 being the name.
    pub fn arg(&self, position: usize) -> Result<&'r [u8], TranslateError> {
        let missing = || self.error(TranslateReason::WrongArity { given: self.args.len(), least: position + 1 });
        self.args.get(position).copied().ok_or_else(missing)
    }

    /// The strings from `position` on; none if there are not so many.
    pub fn from(&self, position: usize) -> &'r [&'r [u8]] {
        self.args.get(position..).unwrap_or_default()
    }

    pub fn key(&self) -> Result<&'r [u8], TranslateError> {
        self.arg(1)
    }

    /// Whether string `position` is `option`, in any letter case.
    pub fn is(&self, position: usize, option: &str) -> bool {
        self.args.get(position).is_some_and(|arg| arg.eq_ignore_ascii_case(option.as_bytes()))
    }

    pub fn int(&self, position: usize) -> Result<i64, TranslateError> {
        let bad = || self.error(TranslateReason::BadArgument { position, expected: "an integer of 64 bits" });
        parse_int(self.arg(position)?).ok_or_else(bad)
    }

    /// String `position` counts `unit_ms` from receipt: absolute Unix milliseconds.
    pub fn relative_ms(&self, position: usize, unit_ms: i64) -> Result<i64, TranslateError> {
        self.time_ms(position, unit_ms, self.now_ms)
    }

    /// The same for hash fields: Dragonfly counts whole seconds, rounded up, from the second that it is in.
    pub fn field_relative_ms(&self, position: usize, unit_ms: i64) -> Result<i64, TranslateError> {
        let left_ms = self.time_ms(position, unit_ms, 0)?;
        let seconds = left_ms.saturating_add(SECOND_MS - 1).div_euclid(SECOND_MS);
        let second = self.now_ms.div_euclid(SECOND_MS);
        let given = self.int(position)?;
        let at_ms = second.checked_add(seconds).and_then(|at| at.checked_mul(SECOND_MS));
        at_ms.ok_or_else(|| self.error(TranslateReason::TimeOutOfRange { position, given }))
    }

    /// String `position` is a Unix time in units of `unit_ms`: in milliseconds.
    pub fn absolute_ms(&self, position: usize, unit_ms: i64) -> Result<i64, TranslateError> {
        self.time_ms(position, unit_ms, 0)
    }

    fn time_ms(&self, position: usize, unit_ms: i64, from_ms: i64) -> Result<i64, TranslateError> {
        let given = self.int(position)?;
        given
            .checked_mul(unit_ms)
            .and_then(|ms| ms.checked_add(from_ms))
            .ok_or_else(|| self.error(TranslateReason::TimeOutOfRange { position, given }))
    }

    /// `EX`, `PX`, `EXAT` or `PXAT` at `position` with its number after it: absolute Unix milliseconds. `None` if it is none of these.
    pub fn expiry_option(&self, position: usize) -> Result<Option<i64>, TranslateError> {
        let option = self.arg(position)?;
        let of = |name: &str| option.eq_ignore_ascii_case(name.as_bytes());
        if of("PXAT") {
            self.absolute_ms(position + 1, 1).map(Some)
        } else if of("PX") {
            self.relative_ms(position + 1, 1).map(Some)
        } else if of("EX") {
            self.relative_ms(position + 1, 1000).map(Some)
        } else if of("EXAT") {
            self.absolute_ms(position + 1, 1000).map(Some)
        } else {
            Ok(None)
        }
    }

    /// The same for hash fields.
    pub fn field_expiry_option(&self, position: usize) -> Result<Option<i64>, TranslateError> {
        if self.is(position, "PX") {
            self.field_relative_ms(position + 1, 1).map(Some)
        } else if self.is(position, "EX") {
            self.field_relative_ms(position + 1, SECOND_MS).map(Some)
        } else {
            self.expiry_option(position)
        }
    }

    /// `FIELDS n item...` at `position`, which must be the end of the record: the items, `group` of them for each of n.
    pub fn fields(&self, position: usize, group: usize) -> Result<&'r [&'r [u8]], TranslateError> {
        if !self.is(position, "FIELDS") {
            return Err(self.unknown_option(position));
        }
        let count = self.int(position + 1)?;
        let items = self.from(position + 2);
        let announced = usize::try_from(count).ok().and_then(|count| count.checked_mul(group));
        if items.is_empty() || announced != Some(items.len()) {
            return Err(self.error(TranslateReason::BadArgument {
                position: position + 1,
                expected: "the number of fields that follow",
            }));
        }
        Ok(items)
    }

    /// The strings from `position` on come in whole groups.
    pub fn grouped(&self, position: usize, group: usize) -> Result<&'r [&'r [u8]], TranslateError> {
        let items = self.from(position);
        if items.is_empty() || !items.len().is_multiple_of(group) {
            return Err(self.error(TranslateReason::WrongGrouping { group }));
        }
        Ok(items)
    }

    pub fn unknown_option(&self, position: usize) -> TranslateError {
        if position >= self.args.len() {
            return self.error(TranslateReason::WrongArity { given: self.args.len(), least: position + 1 });
        }
        self.error(TranslateReason::UnknownOption { position })
    }

    #[cold]
    pub fn error(&self, reason: TranslateReason) -> TranslateError {
        error_of(self.flow, self.db, self.args, super::keys::keys_in(self.row, self.args).next(), reason)
    }
}

#[cold]
pub(super) fn error_of(
    flow: FlowId,
    db: DbIndex,
    args: &[&[u8]],
    key: Option<&[u8]>,
    reason: TranslateReason,
) -> TranslateError {
    let name = args.first().copied().unwrap_or_default();
    TranslateError {
        flow,
        db,
        command: shown(name).escape_ascii().to_string().into(),
        key: key.map(|key| shown(key).into()),
        reason,
    }
}

/// Whether `arg` is `option`, in any letter case.
pub(super) fn is(arg: &[u8], option: &str) -> bool {
    arg.eq_ignore_ascii_case(option.as_bytes())
}

/// Whether this is an integer as every server reads it: no plus, no blanks, no zero in front.
pub(super) fn is_plain_int(text: &[u8]) -> bool {
    match text {
        [b'0'] => true,
        [b'-', b'1'..=b'9', rest @ ..] | [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}

/// A decimal integer as Dragonfly reads it: blanks around it, a sign, and zeros in front are allowed.
pub(super) fn parse_int(text: &[u8]) -> Option<i64> {
    let text = text.trim_ascii();
    let (negative, digits) = match text.split_first()? {
        (b'-', digits) => (true, digits),
        (b'+', digits) => (false, digits),
        _ => (false, text),
    };
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0i64, |number, digit| {
        let digit = i64::from(digit.wrapping_sub(b'0'));
        if digit > 9 {
            return None;
        }
        let number = number.checked_mul(10)?;
        if negative { number.checked_sub(digit) } else { number.checked_add(digit) }
    })
}

#[cfg(test)]
mod tests {
    use super::{is_plain_int, parse_int};

    #[test]
    fn integers_are_read_to_the_last_digit() {
        for number in [0, 1, -1, 42, i64::MAX, i64::MIN] {
            assert_eq!(parse_int(number.to_string().as_bytes()), Some(number));
        }
        for text in
            ["", "-", "+", "+-1", "- 1", "1.0", "0x1", "9223372036854775808", "-9223372036854775809", "\u{ff11}"]
        {
            assert_eq!(parse_int(text.as_bytes()), None, "{text}");
        }
        for (text, number) in [("+1", 1), (" 1", 1), ("1 ", 1), ("007", 7), ("-07", -7), ("-0", 0)] {
            assert_eq!(parse_int(text.as_bytes()), Some(number), "{text}");
            assert!(!is_plain_int(text.as_bytes()), "{text}");
        }
        assert!(["0", "7", "-7", "10", "-10"].iter().all(|text| is_plain_int(text.as_bytes())));
        assert!(["", "-", "a", "1a", "-0"].iter().all(|text| !is_plain_int(text.as_bytes())));
    }
}
