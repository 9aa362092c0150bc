//! The operator's side of the control socket: one request, one answer, with deadlines.

use super::{Answer, Request};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest answer believed: a job of 1024 flows says about 300 KiB.
const ANSWER_BYTES_MAX: u64 = 16 << 20;
/// How long a job may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no job answers at {path}: {cause}", path = .path.display())]
    Connect { path: PathBuf, cause: io::Error },
    #[error("the job at {path} did not answer: {cause}", path = .path.display())]
    Io { path: PathBuf, cause: io::Error },
    #[error("the job at {path} answered with what is no answer: {reason}", path = .path.display())]
    Protocol { path: PathBuf, reason: String },
}

/// A connection to a job.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    reader: BufReader<UnixStream>,
}

impl Client {
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let failed = |cause| ClientError::Connect { path: path.to_path_buf(), cause };
        let stream = UnixStream::connect(path).map_err(failed)?;
        stream.set_read_timeout(Some(ANSWER_MAX)).map_err(failed)?;
        stream.set_write_timeout(Some(ANSWER_MAX)).map_err(failed)?;
        Ok(Self { path: path.to_path_buf(), reader: BufReader::new(stream) })
    }

    /// For answers that come when they come. The connection's end is noticed all the same.
    pub fn wait_for_ever(&mut self) -> Result<(), ClientError> {
        let set = self.reader.get_ref().set_read_timeout(None);
        set.map_err(|cause| ClientError::Io { path: self.path.clone(), cause })
    }

    /// Asks and waits for the answer.
    pub fn ask(&mut self, request: &Request) -> Result<Answer, ClientError> {
        self.send(request)?;
        self.next_line()
    }

    pub fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        let mut line = serde_json::to_vec(request).map_err(|error| self.protocol(error.to_string()))?;
        line.push(b'\n');
        self.reader.get_mut().write_all(&line).map_err(|cause| ClientError::Io { path: self.path.clone(), cause })
    }

    /// The next line that the job says.
    pub fn next_line<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, ClientError> {
        let mut line = Vec::new();
        let read = (&mut self.reader).take(ANSWER_BYTES_MAX).read_until(b'\n', &mut line);
        let failed = |cause| ClientError::Io { path: self.path.clone(), cause };
        read.map_err(failed)?;
        if line.last() != Some(&b'\n') {
            let cause = io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection");
            return Err(failed(cause));
        }
        serde_json::from_slice(&line).map_err(|error| self.protocol(error.to_string()))
    }

    fn protocol(&self, reason: String) -> ClientError {
        ClientError::Protocol { path: self.path.clone(), reason }
    }
}
