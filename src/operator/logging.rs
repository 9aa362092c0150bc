//! Logs: `tracing` to standard error, as text or JSON, filtered by `--log`.
//!
//! The filter is checked when settings are resolved, so that a wrong one is a usage error and not a silent default.
//! Logs hold no secrets. Keys are user data: above the level `debug` only those are named that something is wrong with.

use super::screen::Screen;
use std::sync::{Mutex, OnceLock, PoisonError};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// A filter that is known to be valid, and a form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    filter: String,
    format: LogFormat,
}

impl LogSettings {
    /// `filter` as `tracing` writes it: `warn`, `info,df2redis::engine=debug`.
    pub fn parse(filter: &str, format: LogFormat) -> Result<Self, String> {
        const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        // A bare word that is no level would be taken for the name of a module, and nothing would be logged.
        for part in filter.split(',').map(str::trim).filter(|part| !part.contains(['=', ':', '['])) {
            if !LEVELS.contains(&part.to_ascii_lowercase().as_str()) && !part.starts_with("df2redis") {
                return Err(format!("{part:?} is no level; levels are {}", LEVELS.join(", ")));
            }
        }
        EnvFilter::builder().parse(filter).map_err(|error| error.to_string())?;
        Ok(Self { filter: filter.to_string(), format })
    }
}

/// Begins logging to `screen`. Called once a process; a second call changes nothing.
pub fn init(settings: &LogSettings, screen: &Screen) {
    let (subscriber, change) = subscriber(settings, screen.clone(), screen.is_terminal());
    // A subscriber that is already set (tests) stays.
    if subscriber.try_init().is_ok() {
        let current = Mutex::new(settings.filter.clone());
        let _ = LOG.set(Log { change, current });
    }
}

/// The filter in use; `None`: nothing is logged.
pub fn filter() -> Option<String> {
    Some(LOG.get()?.current.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// Changes the filter while the program runs. `Err`: why not.
pub fn set_filter(filter: &str) -> Result<(), String> {
    let log = LOG.get().ok_or("there is no log to change")?;
    let settings = LogSettings::parse(filter, LogFormat::Text)?;
    (log.change)(EnvFilter::builder().parse_lossy(&settings.filter))?;
    *log.current.lock().unwrap_or_else(PoisonError::into_inner) = settings.filter;
    Ok(())
}

/// Puts another filter in place of the one in use.
type Change = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

struct Log {
    change: Change,
    current: Mutex<String>,
}

static LOG: OnceLock<Log> = OnceLock::new();

fn subscriber<W>(
    settings: &LogSettings,
    writer: W,
    colours: bool,
) -> (Box<dyn tracing::Subscriber + Send + Sync>, Change)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder().parse_lossy(&settings.filter);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(colours);
    match settings.format {
        LogFormat::Text => {
            let builder = builder.with_target(false).with_filter_reloading();
            let handle = builder.reload_handle();
            let change: Change = Box::new(move |filter| handle.reload(filter).map_err(|error| error.to_string()));
            (Box::new(builder.finish()), change)
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            let change: Change = Box::new(move |filter| handle.reload(filter).map_err(|error| error.to_string()));
            (Box::new(builder.finish()), change)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Buffer {
        type Writer = Buffer;
        fn make_writer(&'a self) -> Buffer {
            self.clone()
        }
    }

    fn logged(filter: &str, format: LogFormat) -> String {
        let buffer = Buffer::default();
        let settings = LogSettings::parse(filter, format).unwrap();
        tracing::subscriber::with_default(subscriber(&settings, buffer.clone(), false).0, || {
            tracing::info!(flow = 3, "flow is at the barrier");
            tracing::debug!("detail");
        });
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn filters_choose_and_forms_differ() {
        assert_eq!(logged("warn", LogFormat::Text), "");
        let text = logged("info", LogFormat::Text);
        assert!(text.contains("INFO flow is at the barrier flow=3") && !text.contains("detail"), "{text}");
        assert!(logged("warn,df2redis::operator=debug", LogFormat::Text).contains("detail"));
        let json: serde_json::Value = serde_json::from_str(&logged("info", LogFormat::Json)).unwrap();
        assert_eq!((&json["message"], &json["flow"]), (&"flow is at the barrier".into(), &3.into()));
    }

    #[test]
    fn wrong_filters_are_refused() {
        for filter in ["inof", "a=b=c", "df2redis=loud"] {
            assert!(LogSettings::parse(filter, LogFormat::Text).is_err(), "{filter}");
        }
    }
}
