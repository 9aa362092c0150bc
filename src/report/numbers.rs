//! Numbers as people read them: sizes, counts, rates, times, and key names that may hold any byte.

use std::time::Duration;

/// `1.5 GiB`; below 1 KiB the exact number.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `1,234,567`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `85 ns`, `12.3 us`, `4.56 ms`, `7.89 s`.
pub fn nanos(ns: u64) -> String {
    let value = ns as f64;
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} us", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} ms", value / 1e6),
        _ => format!("{:.2} s", value / 1e9),
    }
}

/// `950 ms`, `12.3 s`, `4 min 05 s`, `3 h 07 min`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{} ms", time.as_millis()),
        1..60 => format!("{:.1} s", time.as_secs_f64()),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// `n` for each second of `time`; 0 if no time has passed.
pub fn per_second(n: u64, time: Duration) -> f64 {
    let seconds = time.as_secs_f64();
    if seconds > 0.0 { n as f64 / seconds } else { 0.0 }
}

/// A key name on one line: printable ASCII and valid UTF-8 letters as they are, the rest as `\xNN`.
pub fn printable(key: &[u8]) -> String {
    let mut out = String::with_capacity(key.len());
    for chunk in key.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                c if c.is_control() => c.to_string().bytes().for_each(|b| out.push_str(&format!("\\x{b:02x}"))),
                c => out.push(c),
            }
        }
        chunk.invalid().iter().for_each(|b| out.push_str(&format!("\\x{b:02x}")));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            [bytes(0), bytes(1023), bytes(1024), bytes(1_048_575), bytes(3 << 30)],
            ["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "3.0 GiB"]
        );
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!([count(0), count(999), count(1000), count(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [nanos(85), nanos(12_345), nanos(4_560_000), nanos(7_890_000_000)],
            ["85 ns", "12.3 us", "4.56 ms", "7.89 s"]
        );
        let times = [950, 12_345, 245_000, 11_220_000].map(|ms| duration(Duration::from_millis(ms)));
        assert_eq!(times, ["950 ms", "12.3 s", "4 min 05 s", "3 h 07 min"]);
        assert_eq!(per_second(10, Duration::ZERO), 0.0);
    }

    #[test]
    fn key_names_stay_on_one_line() {
        assert_eq!(printable(b"user:1"), "user:1");
        assert_eq!(printable("k\u{e9}\n\\".as_bytes()), "k\u{e9}\\x0a\\\\");
        assert_eq!(printable(b"\xff\x00a"), "\\xff\\x00a");
    }
}
