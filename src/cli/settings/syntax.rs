//! How values are written: sizes, times, switches, URLs, CPU lists. Text in, value or a sentence saying what is wrong out.
//!
//! No reason given here repeats the text of an endpoint: people write passwords into URLs, and reasons are printed.

use super::table::{Form, Setting};
use crate::engine::settings::WaitReplicas;
use std::time::Duration;

/// Checks a value against its setting's form.
pub fn check(setting: &Setting, text: &str) -> Result<(), String> {
    match setting.form {
        Form::Text | Form::List | Form::Texts | Form::Secret => Ok(()),
        Form::Path => {
            if text.is_empty() {
                Err("a path is needed".into())
            } else {
                Ok(())
            }
        }
        Form::Endpoint => split_url(text).map(drop),
        Form::Size { min, max } => within(size(text)?, min, max, size_text),
        Form::Count { min, max } => within(number(text)?, min, max, |n| n.to_string()),
        Form::Time => time(text).map(drop),
        Form::Switch => switch(text).map(drop),
        Form::Choice(names) if names.contains(&text) => Ok(()),
        Form::Choice(names) => Err(format!("one of {} is needed", names.join(", "))),
    }
}

fn within(n: u64, min: u64, max: u64, show: impl Fn(u64) -> String) -> Result<(), String> {
    if (min..=max).contains(&n) { Ok(()) } else { Err(format!("it must lie between {} and {}", show(min), show(max))) }
}

/// A whole number; `_` may separate digits.
pub fn number(text: &str) -> Result<u64, String> {
    let digits: String = text.chars().filter(|&c| c != '_').collect();
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err("a whole number is needed".into());
    }
    digits.parse().map_err(|_| "the number is too large".into())
}

const UNITS: [(&str, u64); 9] = [
    ("", 1),
    ("b", 1),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
];

/// Bytes: `65536`, `32KiB`, `256 MiB`, `1GB`.
pub fn size(text: &str) -> Result<u64, String> {
    let (digits, unit) = split_unit(text);
    let lower = unit.to_ascii_lowercase();
    let (_, factor) =
        UNITS.iter().find(|(name, _)| *name == lower).ok_or("a size such as 65536, 32KiB, 256MiB or 1GiB is needed")?;
    number(digits)?.checked_mul(*factor).ok_or_else(|| "the size is too large".into())
}

/// The shortest exact form of a size.
pub fn size_text(n: u64) -> String {
    for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if n > 0 && n.trailing_zeros() >= shift {
            return format!("{}{unit}", n >> shift);
        }
    }
    n.to_string()
}

/// Longest time that a setting may name: a year, so that deadlines never overflow.
const SECONDS_MAX: u64 = 365 * 24 * 3600;

/// `500ms`, `30s`, `5min`, `2h`; the unit is needed.
pub fn time(text: &str) -> Result<Duration, String> {
    let (digits, unit) = split_unit(text);
    let n = number(digits)?;
    let time = match unit {
        "ms" => Duration::from_millis(n),
        "s" => Duration::from_secs(n),
        "m" | "min" => Duration::from_secs(n.saturating_mul(60)),
        "h" => Duration::from_secs(n.saturating_mul(3600)),
        _ => return Err("a time with its unit is needed, such as 500ms, 30s, 5min or 2h".into()),
    };
    match time.as_nanos() {
        0 => Err("the time must be longer than zero".into()),
        _ if time.as_secs() > SECONDS_MAX => Err("the time is too long".into()),
        _ => Ok(time),
    }
}

/// `N` or `N:TIME`: replicas to wait for, and how long one WAIT may take; 0 is none.
pub fn wait_replicas(text: &str) -> Result<Option<WaitReplicas>, String> {
    /// No primary has more; a number beyond is a slip.
    const REPLICAS_MAX: u64 = 1000;
    const TIMEOUT: Duration = Duration::from_secs(1);
    const TIMEOUT_MAX: Duration = Duration::from_secs(60);
    let (count, timeout) = match text.split_once(':') {
        Some((count, timeout)) => (count, time(timeout)?),
        None => (text, TIMEOUT),
    };
    let count = number(count)?;
    within(count, 0, REPLICAS_MAX, |n| n.to_string())?;
    // A WAIT of 0 ms never ends.
    if !(Duration::from_millis(1)..=TIMEOUT_MAX).contains(&timeout) {
        return Err("one WAIT may take 1ms to 60s".into());
    }
    Ok((count > 0).then_some(WaitReplicas { count: count as u32, timeout }))
}

fn split_unit(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    (digits, unit.trim_start())
}

pub fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" | "true" | "yes" | "1" => Ok(true),
        "off" | "false" | "no" | "0" => Ok(false),
        _ => Err("on or off is needed".into()),
    }
}

/// CPU numbers: each item is one (`3`) or a range (`4-7`). No CPU twice.
pub fn cpus(items: &[String]) -> Result<Vec<usize>, String> {
    /// Linux's own limit for x86 and arm64 (`NR_CPUS`).
    const CPU_MAX: u64 = 8191;
    let mut cpus = Vec::new();
    for item in items {
        let (first, last) = match item.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(item)?, number(item)?),
        };
        if first > last || last > CPU_MAX {
            return Err(format!("CPU ranges run upwards and end at {CPU_MAX} at most"));
        }
        for cpu in first..=last {
            if cpus.contains(&(cpu as usize)) {
                return Err(format!("CPU {cpu} is named twice"));
            }
            cpus.push(cpu as usize);
        }
    }
    Ok(cpus)
}

/// The parts of `scheme://HOST[:PORT]`.
#[derive(Debug, PartialEq, Eq)]
pub struct Url<'a> {
    pub scheme: &'a str,
    /// Without brackets.
    pub host: &'a str,
    pub port: Option<u16>,
}

/// Splits a URL; refuses user names, passwords, paths and queries.
pub fn split_url(text: &str) -> Result<Url<'_>, String> {
    let Some((scheme, rest)) = text.split_once("://") else {
        // Without a scheme there may be a password all the same.
        return Err(if text.contains('@') {
            SECRETS_ELSEWHERE.into()
        } else {
            "a URL of the form SCHEME://HOST:PORT is needed".into()
        });
    };
    if rest.contains('@') {
        return Err(SECRETS_ELSEWHERE.into());
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains(['/', '?', '#']) {
        return Err("nothing may follow HOST:PORT (all databases are carried over, each to its own number)".into());
    }
    let (host, port) = if let Some(rest) = rest.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or("the bracket of the IPv6 address is not closed")?;
        host.parse::<std::net::Ipv6Addr>().map_err(|_| "an IPv6 address belongs between the brackets")?;
        match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if rest.is_empty() => (host, None),
            None => return Err("only :PORT may follow the bracket".into()),
        }
    } else {
        match rest.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err("an IPv6 address is written in brackets: [::1]:6379".into());
            }
            Some((host, port)) => (host, Some(port)),
            None => (rest, None),
        }
    };
    if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("the host name is missing or not valid".into());
    }
    let port = match port {
        None => None,
        Some(text) => Some(
            text.parse::<u16>().ok().filter(|&port| port != 0).ok_or("the port must be a number from 1 to 65535")?,
        ),
    };
    Ok(Url { scheme, host, port })
}

const SECRETS_ELSEWHERE: &str = "user names and passwords do not belong in a URL, where every user of this machine and the \
     shell's history can read them. Give them as DF2REDIS_SOURCE_USER, DF2REDIS_SOURCE_PASSWORD, DF2REDIS_TARGET_USER and \
     DF2REDIS_TARGET_PASSWORD in the environment, as source-password (and so on) in the --config file, or in a file with \
     --source-password-file or --target-password-file";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, n) in [
            ("0", 0),
            ("65536", 65536),
            ("32KiB", 32768),
            ("256 MiB", 256 << 20),
            ("1GB", 1_000_000_000),
            ("1_000b", 1000),
        ] {
            assert_eq!(size(text), Ok(n), "{text}");
        }
        for text in ["", "MiB", "-1", "1.5GiB", "12parsecs", "99999999999TiB", "99999999999999999999"] {
            assert!(size(text).is_err(), "{text}");
        }
        for text in ["256MiB", "32KiB", "1GiB", "0", "1000", "3TiB"] {
            assert_eq!(size_text(size(text).unwrap()), text);
        }
    }

    #[test]
    fn times() {
        assert_eq!(time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(time("5min"), Ok(Duration::from_secs(300)));
        for text in ["10", "0s", "s", "1d", "99999999h", "18446744073709551615h"] {
            assert!(time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn replicas_to_wait_for() {
        let wait = |count, ms| Ok(Some(WaitReplicas { count, timeout: Duration::from_millis(ms) }));
        assert_eq!((wait_replicas("0"), wait_replicas("0:5s")), (Ok(None), Ok(None)));
        assert_eq!((wait_replicas("1"), wait_replicas("2:250ms")), (wait(1, 1000), wait(2, 250)));
        for text in ["", "x", "-1", "1:", "1:0s", "1:2h", "1001", "1:2", "1:1s:1s"] {
            assert!(wait_replicas(text).is_err(), "{text}");
        }
    }

    #[test]
    fn urls() {
        let url = |scheme, host, port| Ok(Url { scheme, host, port });
        assert_eq!(split_url("dragonfly://a.b:1"), url("dragonfly", "a.b", Some(1)));
        assert_eq!(split_url("redis://a/"), url("redis", "a", None));
        assert_eq!(split_url("redis://[::1]:6380"), url("redis", "::1", Some(6380)));
        assert_eq!(split_url("redis://[fe80::1]"), url("redis", "fe80::1", None));
        for text in [
            "",
            "a:1",
            "redis://",
            "redis://:1",
            "redis://a:",
            "redis://a:0",
            "redis://a:65536",
            "redis://::1",
            "redis://[::1",
            "redis://[::1]x",
            "redis://[a]",
            "redis://a/1",
            "redis://a?x",
            "redis://a b",
        ] {
            assert!(split_url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_password_in_a_url_is_refused_and_not_repeated() {
        for text in ["redis://:hunter2@a:1", "redis://hunter2@a", "me:hunter2@a:1", "redis://u:p/hunter2@a"] {
            let reason = split_url(text).unwrap_err();
            assert!(reason.contains("DF2REDIS_TARGET_PASSWORD") && !reason.contains("hunter2"), "{reason}");
        }
    }

    #[test]
    fn cpu_lists() {
        let list = |items: &[&str]| cpus(&items.iter().map(|s| s.to_string()).collect::<Vec<_>>());
        assert_eq!(list(&["0", "4-6", "2"]), Ok(vec![0, 4, 5, 6, 2]));
        for items in [&["1", "0-2"][..], &["3-1"], &["x"], &["0-99999999"], &[""]] {
            assert!(list(items).is_err(), "{items:?}");
        }
    }
}
