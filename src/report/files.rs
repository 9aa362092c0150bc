//! `--report DIR`: the report as files, written as the run goes so that an interrupted run keeps what it had.
//!
//! Out: `report.json` (at the end, complete or absent), `latencies.hlog` (one-second intervals, tagged),
//! `<latency>.node<N>.hgrm` (whole run), `not-carried.jsonl` (one line a key, as it happens), `report.txt`. Files of an
//! earlier run in the same directory are replaced. Keys are user data: the directory is made with mode 0700.

use super::document::{NotCarried, RunReport};
use super::hgrm::write_hgrm;
use super::hlog::{HlogWriter, tag};
use super::latency::SeriesPoint;
use super::text;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A report file that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the report file {path}: {cause} (choose another directory with --report)", path = path.display())]
pub struct FilesError {
    pub path: PathBuf,
    #[source]
    pub cause: io::Error,
}

/// The open files of a run's report.
pub struct ReportFiles {
    dir: PathBuf,
    hlog: HlogWriter<BufWriter<File>>,
    not_carried: BufWriter<File>,
}

impl ReportFiles {
    /// Makes the directory if need be and begins the files. `started` is the beginning of the run.
    pub fn create(dir: &Path, started: SystemTime) -> Result<Self, FilesError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at(dir))?;
        remove_old(dir)?;
        let hlog_path = dir.join("latencies.hlog");
        let hlog = File::create(&hlog_path).and_then(|file| HlogWriter::begin(BufWriter::new(file), started));
        let list_path = dir.join("not-carried.jsonl");
        let not_carried = BufWriter::new(File::create(&list_path).map_err(at(&list_path))?);
        Ok(Self { dir: dir.to_path_buf(), hlog: hlog.map_err(at(&hlog_path))?, not_carried })
    }

    /// Appends one second of one latency.
    pub fn interval(&mut self, point: &SeriesPoint<'_>) -> Result<(), FilesError> {
        self.hlog.write(point).map_err(at(&self.dir.join("latencies.hlog")))
    }

    /// Appends one key that was not carried over.
    pub fn not_carried(&mut self, item: &NotCarried) -> Result<(), FilesError> {
        serde_json::to_writer(&mut self.not_carried, item)
            .map_err(io::Error::from)
            .and_then(|()| self.not_carried.write_all(b"\n"))
            .map_err(at(&self.dir.join("not-carried.jsonl")))
    }

    /// Hands everything so far to the system; once a second.
    pub fn flush(&mut self) -> Result<(), FilesError> {
        self.hlog.flush().map_err(at(&self.dir.join("latencies.hlog")))?;
        self.not_carried.flush().map_err(at(&self.dir.join("not-carried.jsonl")))
    }

    /// Writes what is known only at the end.
    pub fn finish(mut self, report: &RunReport) -> Result<(), FilesError> {
        self.flush()?;
        for (latency, node, histogram) in report.histograms.whole() {
            let mut bytes = Vec::new();
            let path = self.dir.join(format!("{}.hgrm", tag(latency, node)));
            write_hgrm(&mut bytes, histogram).map_err(at(&path))?;
            write_whole(&path, &bytes)?;
        }
        write_whole(&self.dir.join("report.txt"), text::render(report).as_bytes())?;
        let path = self.dir.join("report.json");
        let json = report.to_json().map_err(|error| FilesError { path: path.clone(), cause: error.into() })?;
        write_whole(&path, json.as_bytes())
    }
}

/// Removes what an earlier run left, so that no file of it is taken for one of this run.
fn remove_old(dir: &Path) -> Result<(), FilesError> {
    for entry in fs::read_dir(dir).map_err(at(dir))? {
        let path = entry.map_err(at(dir))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let ours = ["report.json", "report.txt", "latencies.hlog", "not-carried.jsonl"].contains(&name)
            || (name.ends_with(".hgrm") && super::Latency::ALL.iter().any(|l| name.starts_with(l.name())));
        if ours {
            fs::remove_file(&path).map_err(at(&path))?;
        }
    }
    Ok(())
}

/// Complete or absent: written beside, then renamed.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), FilesError> {
    let beside = path.with_extension("part");
    fs::write(&beside, bytes).and_then(|()| fs::rename(&beside, path)).map_err(at(path))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> FilesError + use<> {
    let path = path.to_path_buf();
    move |cause| FilesError { path, cause }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::document::Outcome;
    use crate::report::sample::sample_inputs;
    use std::time::Duration;

    #[test]
    fn a_run_leaves_all_files_and_replaces_older_ones() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("deep/report");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("apply_lag.node7.hgrm"), "old").unwrap();
        fs::write(dir.join("mine.txt"), "not of the tool").unwrap();

        let inputs = sample_inputs(Outcome::done());
        let mut files = ReportFiles::create(&dir, SystemTime::UNIX_EPOCH).unwrap();
        for item in &inputs.not_carried.listed {
            files.not_carried(item).unwrap();
        }
        let report = RunReport::assemble(inputs);
        for (latency, node, histogram) in report.histograms.whole() {
            let (started, length) = (Duration::ZERO, Duration::from_secs(1));
            files.interval(&SeriesPoint { latency, node, started, length, histogram }).unwrap();
        }
        files.finish(&report).unwrap();

        let mut names: Vec<_> =
            fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(
            names,
            [
                "apply_lag.node0.hgrm",
                "latencies.hlog",
                "mine.txt",
                "not-carried.jsonl",
                "report.json",
                "report.txt",
                "residence.node0.hgrm",
                "service.node0.hgrm"
            ]
        );
        let line = fs::read_to_string(dir.join("not-carried.jsonl")).unwrap();
        assert_eq!(
            line,
            "{\"db\":0,\"key\":\"doc:\\\\xff1\",\"kind\":\"json\",\"action\":\"skip\",\
             \"reason\":\"the target has no JSON module\"}\n"
        );
        assert_eq!(fs::read_to_string(dir.join("latencies.hlog")).unwrap().matches("Tag=").count(), 3);
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let error = ReportFiles::create(Path::new("/proc/none/report"), SystemTime::UNIX_EPOCH).err().unwrap();
        assert!(error.to_string().starts_with("cannot write the report file /proc/none/report: "), "{error}");
    }
}
