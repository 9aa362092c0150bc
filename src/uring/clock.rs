//! The clocks. No other room reads one directly, so that tests can put their own time in place.

/// Nanoseconds of `CLOCK_MONOTONIC`: for durations and latencies.
pub fn monotonic_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// Nanoseconds of `CLOCK_BOOTTIME`: as the monotonic clock, but the time in which the machine slept counts too.
pub fn boottime_ns() -> u64 {
    read(libc::CLOCK_BOOTTIME)
}

/// Milliseconds since 1970 of `CLOCK_REALTIME`: for expiry times.
pub fn realtime_ms() -> u64 {
    read(libc::CLOCK_REALTIME) / 1_000_000
}

/// Nanoseconds of any clock; 0 if the kernel does not know it.
pub(super) fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid, writable timespec for the duration of the call.
    let outcome = unsafe { libc::clock_gettime(clock, &mut time) };
    if outcome != 0 {
        return 0;
    }
    (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes() {
        let before = monotonic_ns();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(monotonic_ns() - before >= 2_000_000);
        let by_std = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
        assert!(realtime_ms().abs_diff(by_std) < 1000);
    }
}
