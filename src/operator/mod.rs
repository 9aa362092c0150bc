//! What the operator sees of a run while it goes on, and how it is told what to do: progress and logs on standard error,
//! report files on disk, the control socket, metrics over HTTP.
//!
//! One [`screen::Screen`] owns standard error, so that log lines never tear progress bars. Standard output belongs to the
//! report alone.

pub mod control;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod notify;
pub mod progress;
pub mod screen;
pub mod watch;

pub use screen::Screen;
pub use watch::Watcher;
