//! What the operator sees while a run goes on: progress and logs on standard error, report files on disk.
//!
//! One [`screen::Screen`] owns standard error, so that log lines never tear progress bars. Standard output belongs to the
//! report alone.

pub mod logging;
pub mod notify;
pub mod progress;
pub mod screen;
pub mod watch;

pub use screen::Screen;
pub use watch::Watcher;
