//! Records that say something else than what the source did, by its release.
//!
//! In: a record, the time of its receipt, what is known of the source. Out: what it stands for. A Dragonfly's own replica does
//! what such a record says, and differs from its master from then on.

use super::record::parse_int;
use crate::dragonfly::session::Release;

/// What a record stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    AsSaid,
    /// GAT with 0, before 1.41: the key expires no more, and `PEXPIREAT k 0` is recorded, which would delete it. No other
    /// command is recorded so.
    Persisted,
    /// GETEX without options, before 1.40: nothing was changed, and PEXPIREAT is recorded with the time of its execution, which
    /// would delete the key. Or an expiry that has passed since it was set.
    PerhapsRead,
}

/// What is known of the source.
#[derive(Clone, Copy, Debug)]
pub struct Quirks {
    records_getex: bool,
    /// ZUNIONSTORE, ZRANGESTORE and their kin are recorded as a DEL and a ZADD whose scores have six digits.
    pub rounds_scores: bool,
    /// Its clock is at most so far before ours.
    ahead_ms: i64,
}

/// The first release that records nothing of a GETEX without options.
const GETEX_NOT_RECORDED: (u32, u32) = (1, 40);
/// Releases that round the scores that they record of what they stored from other sets.
const SCORES_ROUNDED: std::ops::RangeInclusive<(u32, u32)> = (1, 34)..=(1, 40);
const SCORE_DIGITS: usize = 6;
/// A time that passed longer ago than any record waits is no time of execution.
const PASSED_MS_MAX: i64 = 600_000;

impl Quirks {
    /// A source whose release is not known is taken for a new one.
    pub fn of(source: Option<Release>, ahead_ms: i64) -> Self {
        let release = source.map(|release| (release.major, release.minor));
        Self {
            records_getex: release.is_some_and(|release| release < GETEX_NOT_RECORDED),
            rounds_scores: release.is_some_and(|release| SCORES_ROUNDED.contains(&release)),
            ahead_ms,
        }
    }

    /// What the record stands for, received at `now_ms`.
    #[inline]
    pub fn meaning(&self, args: &[&[u8]], now_ms: i64) -> Meaning {
        match args {
            [name, _, at] if name.len() == 9 && name.eq_ignore_ascii_case(b"PEXPIREAT") => self.expiry(at, now_ms),
            _ => Meaning::AsSaid,
        }
    }

    fn expiry(&self, at: &[u8], now_ms: i64) -> Meaning {
        let until_ms = now_ms.saturating_add(self.ahead_ms);
        match parse_int(at) {
            Some(0) => Meaning::Persisted,
            // Below 0 lies what the sum of a time and no time comes to.
            Some(at_ms) if self.records_getex && at_ms <= until_ms && (at_ms < 0 || at_ms > now_ms - PASSED_MS_MAX) => {
                Meaning::PerhapsRead
            }
            _ => Meaning::AsSaid,
        }
    }
}

/// Whether a `ZADD k score member ...` may hold a score that was rounded. What a client wrote with more digits was not.
pub fn may_be_rounded(args: &[&[u8]]) -> bool {
    let [name, _, pairs @ ..] = args else { return false };
    name.eq_ignore_ascii_case(b"ZADD") && pairs.iter().step_by(2).any(|score| is_rounded(score))
}

/// As `%g` writes numbers: what has fewer digits, and no exponent, stands for itself (but for fractions far behind the point).
fn is_rounded(score: &[u8]) -> bool {
    let text = score.strip_prefix(b"-").unwrap_or(score);
    let (digits, exponent) = match memchr::memchr(b'e', text) {
        Some(at) => (text.get(..at).unwrap_or_default(), true),
        None => (text, false),
    };
    if digits.iter().any(|byte| !byte.is_ascii_digit() && *byte != b'.') {
        return false;
    }
    let count = digits.iter().filter(|byte| **byte != b'.').skip_while(|byte| **byte == b'0').count();
    count == SCORE_DIGITS || exponent && count < SCORE_DIGITS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_of_six_digits_may_be_rounded() {
        for (score, rounded) in [
            ("1.7e+09", true),
            ("1e+06", true),
            ("-1.70001e+09", true),
            ("0.333333", true),
            ("123457", true),
            ("1e-05", true),
            ("5", false),
            ("-0.25", false),
            ("12345", false),
            ("1700000001", false),
            ("0.1234567", false),
            ("1.7000001e+09", false),
            ("inf", false),
            ("-inf", false),
            ("", false),
        ] {
            assert_eq!(may_be_rounded(&[b"ZADD", b"k", b"1", b"m", score.as_bytes(), b"123456"]), rounded, "{score}");
        }
        assert!(!may_be_rounded(&[b"ZADD"]) && !may_be_rounded(&[b"SADD", b"k", b"123456"]));
        let rounds = |release: &str| Quirks::of(Release::parse(release), 0).rounds_scores;
        assert!(!rounds("df-v1.33.1") && rounds("df-v1.34.0") && rounds("df-v1.40.1") && !rounds("df-v1.41.0"));
    }

    #[test]
    fn an_expiry_is_what_the_release_means_by_it() {
        const NOW: i64 = 1_800_000_000_000;
        use Meaning::{AsSaid, PerhapsRead, Persisted};
        for (release, name, at_ms, meaning) in [
            ("df-v1.39.0", "PEXPIREAT", NOW, PerhapsRead),
            ("df-v1.24.0", "pexpireat", NOW - 3000, PerhapsRead),
            ("df-v1.39.0", "PEXPIREAT", NOW + 5, PerhapsRead),
            ("df-v1.39.0", "PEXPIREAT", NOW + 6, AsSaid),
            ("df-v1.39.0", "PEXPIREAT", -1, PerhapsRead),
            ("df-v1.39.0", "PEXPIREAT", NOW - PASSED_MS_MAX, AsSaid),
            ("df-v1.39.0", "PEXPIREAT", 0, Persisted),
            ("df-v1.39.0", "HPEXPIRE", NOW, AsSaid),
            ("df-v1.40.0", "PEXPIREAT", NOW, AsSaid),
            ("df-v1.40.1", "PEXPIREAT", 0, Persisted),
            ("f8eca6d0b", "PEXPIREAT", NOW, AsSaid),
        ] {
            let quirks = Quirks::of(Release::parse(release), 5);
            let at = at_ms.to_string();
            assert_eq!(quirks.meaning(&[name.as_bytes(), b"k", at.as_bytes()], NOW), meaning, "{release} {name} {at}");
        }
        let quirks = Quirks::of(None, 0);
        assert_eq!(quirks.meaning(&[b"PEXPIREAT", b"k", b"now"], NOW), AsSaid);
        assert_eq!(quirks.meaning(&[b"PEXPIREAT", b"k"], NOW), AsSaid);
        assert_eq!(quirks.meaning(&[b"PERSIST", b"k"], NOW), AsSaid);
    }
}
