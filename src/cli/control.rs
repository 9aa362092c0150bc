//! `df2redis status`, `set`, `pause`, `resume`, `throttle` and `stop`: one question to a running job each.
//!
//! In: which job (its socket, or its source and target, or the only one there is) and what to ask. Out: the answer, as text
//! or as one line of JSON.

use super::settings::{Console, OutputForm, UsageError, Values, resolve, syntax};
use super::{Mode, log_warnings, print_out, status_text};
use crate::operator::Screen;
use crate::operator::control::client::{Client, ClientError};
use crate::operator::control::{Answer, Request};
use crate::report::ExitClass;
use crate::report::text::harmless;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

/// Between two looks of `status --watch`.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// Moves the cursor home and clears the terminal.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// What to ask.
#[derive(Clone, Copy, Debug)]
pub enum Ask<'a> {
    Status { watch: bool },
    Set(&'a [String]),
    Pause,
    Resume,
    Throttle(&'a str),
    Stop,
}

pub fn run(
    values: &mut Values,
    console: &Console,
    screen: &Screen,
    mode: Mode,
    ask: Ask<'_>,
) -> Result<ExitClass, UsageError> {
    log_warnings(values);
    let requests = requests(ask)?;
    if mode == Mode::ResolveOnly {
        return Ok(ExitClass::Done);
    }
    let path = resolve::control_of_job(values)?;
    let result = match ask {
        Ask::Status { watch: true } => watch(&path, console),
        _ => ask_each(&path, &requests, console, screen),
    };
    Ok(result.unwrap_or_else(|error| {
        say(screen, &error.to_string());
        ExitClass::Refused
    }))
}

pub(super) fn say(screen: &Screen, text: &str) {
    let _ = screen.write(format!("df2redis: {}\n", harmless(text)).as_bytes());
}

fn requests(ask: Ask<'_>) -> Result<Vec<Request>, UsageError> {
    Ok(match ask {
        Ask::Status { .. } => vec![Request::Status {}],
        Ask::Set(assignments) => assignments.iter().map(|text| assignment(text)).collect::<Result<_, _>>()?,
        Ask::Pause => vec![Request::Pause {}],
        Ask::Resume => vec![Request::Resume {}],
        Ask::Throttle(rate) => vec![throttle(rate)?],
        Ask::Stop => vec![Request::Stop {}],
    })
}

fn wrong(what: &str, text: &str, reason: &str) -> UsageError {
    UsageError::Combination(format!("{what} {text:?}: {reason}"))
}

/// `KEY=VALUE`, with sizes and times as everywhere else.
fn assignment(text: &str) -> Result<Request, UsageError> {
    let (key, value) = text.split_once('=').ok_or_else(|| wrong("set", text, "KEY=VALUE is needed"))?;
    let (key, value) = (key.trim(), value.trim());
    let value = match key {
        "batch-bytes" | "window-bytes" | "rate-bytes" if value != "off" => {
            syntax::size(value.strip_suffix("/s").unwrap_or(value))
                .map_err(|reason| wrong("set", text, &reason))?
                .to_string()
        }
        "progress-interval" | "hold-expiries-within" => {
            let time = syntax::time(value).map_err(|reason| wrong("set", text, &reason))?;
            format!("{}ms", time.as_millis())
        }
        _ => value.to_string(),
    };
    Ok(Request::Set { key: key.to_string(), value })
}

/// `10MiB/s`, `5000entries/s`, `off`.
fn throttle(text: &str) -> Result<Request, UsageError> {
    let rate = text.strip_suffix("/s").unwrap_or(text);
    if rate == "off" {
        return Ok(Request::Throttle { bytes_per_s: None, entries_per_s: None });
    }
    let parsed = match rate.strip_suffix("entries") {
        Some(entries) => {
            syntax::number(entries.trim()).map(|n| Request::Throttle { bytes_per_s: None, entries_per_s: Some(n) })
        }
        None => syntax::size(rate).map(|n| Request::Throttle { bytes_per_s: Some(n), entries_per_s: None }),
    };
    parsed.map_err(|reason| wrong("throttle", text, &format!("10MiB/s, 5000entries/s or off is needed ({reason})")))
}

fn ask_each(path: &Path, requests: &[Request], console: &Console, screen: &Screen) -> Result<ExitClass, ClientError> {
    let mut client = Client::connect(path)?;
    let mut class = ExitClass::Done;
    for request in requests {
        let answer = client.ask(request)?;
        show(&answer, console);
        if let Some(error) = &answer.error {
            say(screen, error);
            class = ExitClass::Refused;
        }
    }
    Ok(class)
}

fn watch(path: &Path, console: &Console) -> Result<ExitClass, ClientError> {
    let mut client = Client::connect(path)?;
    loop {
        let answer = match client.ask(&Request::Status {}) {
            Ok(answer) => answer,
            // The job has ended: there is nothing more to watch.
            Err(ClientError::Io { .. }) => return Ok(ExitClass::Done),
            Err(error) => return Err(error),
        };
        if console.output == OutputForm::Text && std::io::stdout().is_terminal() {
            print_out(CLEAR);
        }
        show(&answer, console);
        std::thread::sleep(WATCH_EVERY);
    }
}

fn show(answer: &Answer, console: &Console) {
    match (console.output, answer) {
        (OutputForm::Json, answer) => print_out(&(serde_json::to_string(answer).unwrap_or_default() + "\n")),
        (OutputForm::Text, Answer { status: Some(status), .. }) => print_out(&status_text::render(status)),
        (OutputForm::Text, Answer { done: Some(text), .. }) => print_out(&format!("{}\n", harmless(text))),
        (OutputForm::Text, _) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_assignments_are_read() {
        let bytes = |n| Request::Throttle { bytes_per_s: Some(n), entries_per_s: None };
        assert_eq!(throttle("10MiB/s").unwrap(), bytes(10 << 20));
        assert_eq!(throttle("4096").unwrap(), bytes(4096));
        let entries = Request::Throttle { bytes_per_s: None, entries_per_s: Some(5000) };
        assert_eq!(throttle("5_000 entries/s").unwrap(), entries);
        assert_eq!(throttle("off").unwrap(), Request::Throttle { bytes_per_s: None, entries_per_s: None });
        for text in ["", "fast", "-1", "10 parsecs/s", "entries"] {
            assert!(throttle(text).is_err(), "{text}");
        }
        let set = |key: &str, value: &str| Request::Set { key: key.into(), value: value.into() };
        assert_eq!(assignment("batch-bytes=64KiB").unwrap(), set("batch-bytes", "65536"));
        assert_eq!(assignment("progress-interval = 2s").unwrap(), set("progress-interval", "2000ms"));
        assert_eq!(assignment("hold-expiries-within=2h").unwrap(), set("hold-expiries-within", "7200000ms"));
        assert_eq!(assignment("log=info,df2redis::engine=debug").unwrap(), set("log", "info,df2redis::engine=debug"));
        assert!(assignment("batch-bytes").is_err() && assignment("batch-bytes=lots").is_err());
    }
}
