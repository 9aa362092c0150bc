//! Standard error, shared by progress bars and log lines: whoever writes a line moves the bars out of the way first.

use indicatif::{MultiProgress, ProgressDrawTarget};
use std::io::{self, IsTerminal, Write};
use tracing_subscriber::fmt::MakeWriter;

/// A handle on standard error; clones share it.
#[derive(Clone, Debug)]
pub struct Screen {
    bars: MultiProgress,
}

impl Default for Screen {
    fn default() -> Self {
        Self::new()
    }
}

impl Screen {
    /// Without bars until [`Screen::show_bars`].
    pub fn new() -> Self {
        Self { bars: MultiProgress::with_draw_target(ProgressDrawTarget::hidden()) }
    }

    /// Whether standard error is a terminal.
    pub fn is_terminal(&self) -> bool {
        io::stderr().is_terminal()
    }

    /// Draws bars from now on, at most five times a second.
    pub fn show_bars(&self) -> &MultiProgress {
        self.bars.set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
        &self.bars
    }

    /// Takes the bars away for good.
    pub fn hide_bars(&self) {
        // Clearing can only fail as writing to standard error can, and then there is nobody to tell.
        let _ = self.bars.clear();
        self.bars.set_draw_target(ProgressDrawTarget::hidden());
    }

    /// Writes whole lines above the bars.
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        self.bars.suspend(|| io::stderr().lock().write_all(bytes))
    }
}

/// A log line on its way: `tracing` writes one event in one call.
#[derive(Debug)]
pub struct LineWriter(Screen);

impl Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Screen {
    type Writer = LineWriter;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter(self.clone())
    }
}
