//! The watcher of a run: hands what the engine tells to the progress display and to the report files.
//!
//! A report file that cannot be written (a full disk) is warned of once and given up; the run goes on, for the data
//! matters more than the report about it.

use super::progress::Progress;
use crate::report::files::FilesError;
use crate::report::latency::{Interval, LatencySeries};
use crate::report::observer::{Observer, ProgressSnapshot};
use crate::report::{NotCarried, ReportFiles, RunReport};
use std::time::Duration;

/// Workers send their intervals once a second, not all at the same moment: a second is closed when this has passed.
const SECOND: Duration = Duration::from_millis(990);

pub struct Watcher {
    progress: Progress,
    files: Option<ReportFiles>,
    series: LatencySeries,
    second_started: Duration,
}

impl Watcher {
    pub fn new(progress: Progress, files: Option<ReportFiles>) -> Self {
        Self { progress, files, series: LatencySeries::new(), second_started: Duration::ZERO }
    }

    /// After the run: takes the bars away and writes what is known only now.
    pub fn finish(mut self, report: &RunReport) -> Result<(), FilesError> {
        self.progress.finish();
        self.close_second(Duration::from_millis(report.elapsed_ms));
        match self.files {
            Some(files) => files.finish(report),
            None => Ok(()),
        }
    }

    fn close_second(&mut self, now: Duration) {
        self.second_started = now;
        let Some(files) = &mut self.files else { return };
        let written = self.series.close_second(now, |point| files.interval(&point)).and_then(|()| files.flush());
        self.give_up_on(written);
    }

    fn give_up_on(&mut self, result: Result<(), FilesError>) {
        if let Err(error) = result {
            tracing::warn!("{error}; the run goes on without report files");
            self.files = None;
        }
    }
}

impl Observer for Watcher {
    fn progress(&mut self, snapshot: &ProgressSnapshot) {
        self.progress.show(snapshot);
    }

    fn not_carried(&mut self, item: &NotCarried) {
        if let Some(files) = &mut self.files {
            let written = files.not_carried(item);
            self.give_up_on(written);
        }
    }

    fn interval(&mut self, interval: &Interval) {
        if self.files.is_some() {
            self.series.add(interval);
        }
    }

    fn in_step(&mut self) {
        super::notify::ready();
    }

    fn second(&mut self, now: Duration) {
        if now.saturating_sub(self.second_started) >= SECOND {
            self.close_second(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::progress::ProgressForm;
    use super::super::screen::Screen;
    use super::*;
    use crate::report::latency::{Latency, Recorder};
    use crate::report::{Outcome, RunInputs};
    use std::time::SystemTime;

    #[test]
    fn intervals_of_all_workers_become_one_line_a_second() {
        let dir = tempfile::tempdir().unwrap();
        let files = ReportFiles::create(dir.path(), SystemTime::UNIX_EPOCH).unwrap();
        let mut watcher = Watcher::new(Progress::new(ProgressForm::Off, Screen::new()), Some(files));
        let mut recorder = Recorder::new();
        for ms in (0..4000).step_by(500) {
            recorder.record(Latency::Service, 0, 1000, 1);
            watcher.interval(&recorder.take_interval());
            watcher.second(Duration::from_millis(ms));
        }
        let report = RunReport::assemble(RunInputs::empty("migrate", Outcome::done(), serde_json::Value::Null));
        watcher.finish(&report).unwrap();
        let log = std::fs::read_to_string(dir.path().join("latencies.hlog")).unwrap();
        // Seconds 1, 2 and 3, and what came after the last of them.
        assert_eq!(log.matches("Tag=service.node0,").count(), 4, "{log}");
        assert!(dir.path().join("report.json").exists());
    }
}
