//! How an expiry is written that must not fire yet (wire 6.34).
//!
//! The target expires keys and fields by its own clock; what the source renews meanwhile must not vanish. So an expiry that
//! is near is written [`SHIFT_MS`] later than it is. The true time can be read from the shifted one, which the server
//! itself carries along with the key through RENAME, MOVE, KEEPTTL and a crash of this tool: nothing has to be remembered.
//! A server in import mode (Valkey >= 8.1) keeps what has expired, and is told the truth.

/// About 139 years: no expiry of a Dragonfly reaches into this range (it caps them at 8 years), so a shifted one is known by
/// its value. Below the most that hash fields take (2^46 ms).
pub const SHIFT_MS: i64 = 1 << 42;

/// Shifted expiries lie below this (a true time before the year 2100): later ones are somebody else's "never".
pub const SHIFTED_MS_END: i64 = SHIFT_MS + 4_102_444_800_000;

/// The true time of an expiry that is read from a target.
pub fn true_ms(told_ms: i64) -> i64 {
    if (SHIFT_MS..SHIFTED_MS_END).contains(&told_ms) { told_ms - SHIFT_MS } else { told_ms }
}

/// Which expiries are written later than they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Near {
    before_ms: i64,
    keeps_past: bool,
}

impl Near {
    /// All are written as they are.
    pub const AS_IS: Self = Self { before_ms: i64::MIN, keeps_past: false };
    /// The target keeps what has expired: all are written as they are, past ones too.
    pub const KEPT: Self = Self { before_ms: i64::MIN, keeps_past: true };

    /// Expiries before this Unix time are shifted.
    pub fn before(before_ms: i64) -> Self {
        Self { before_ms, keeps_past: false }
    }

    /// The expiry as the target is told it.
    pub fn told(self, at_ms: i64) -> i64 {
        if self.shifts(at_ms) { at_ms.max(0).saturating_add(SHIFT_MS) } else { at_ms }
    }

    pub fn shifts(self, at_ms: i64) -> bool {
        at_ms < self.before_ms
    }

    /// Whether what expires then is to be left out, having expired.
    pub fn is_past(self, at_ms: i64, now_ms: i64) -> bool {
        at_ms <= now_ms && !self.keeps_past && !self.shifts(at_ms)
    }

    /// Whether some expiries may be shifted.
    pub fn may_shift(self) -> bool {
        self.before_ms != i64::MIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_near_expiries_are_shifted_and_can_be_read_back() {
        let near = Near::before(1_000);
        assert_eq!((near.told(999), near.told(1_000), near.told(-5)), (999 + SHIFT_MS, 1_000, SHIFT_MS));
        assert!(!near.is_past(999, 2_000) && near.is_past(1_500, 2_000) && !near.is_past(2_001, 2_000));
        assert!(Near::AS_IS.is_past(999, 2_000) && !Near::KEPT.is_past(999, 2_000));
        assert_eq!((Near::AS_IS.told(5), Near::KEPT.told(5)), (5, 5));
        assert_eq!(
            (true_ms(near.told(999)), true_ms(near.told(1_000)), true_ms(SHIFTED_MS_END)),
            (999, 1_000, SHIFTED_MS_END)
        );
        assert!(Near::before(i64::MAX).told(4_000_000_000_000) < SHIFTED_MS_END);
    }
}
