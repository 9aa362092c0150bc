//! What the tool is compared with at a real server: the same keys, encoded beforehand, sent without looking at anything.

use super::pin;
use crate::lab::LabError;
use crate::lab::client::encode;
use crate::lab::generate::Kind;
use crate::lab::generate::entry::Entry;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Bytes of one blind write; where CPU a byte is lowest (measured.md 1).
const WRITE_BYTES: usize = 16 << 10;

/// `SET` of every key of the generated group 0, as one buffer.
pub fn encoded_sets(keys: u64, value_bytes: usize) -> Vec<u8> {
    let value = vec![b'v'; value_bytes];
    let mut bytes = Vec::new();
    for index in 0..keys {
        encode(&[b"SET".as_slice(), &Entry::key(Kind::String, 0, index), &value], &mut bytes);
    }
    bytes
}

/// Writes `bytes` and counts the replies (5 bytes each), on this CPU. Returns the seconds from connecting to the last reply.
pub fn blind(bytes: &[u8], keys: u64, port: u16, on_cpu: usize) -> Result<f64, LabError> {
    let started = Instant::now();
    std::thread::scope(|scope| {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        let mut writer = stream.try_clone()?;
        let writing = scope.spawn(move || {
            pin(on_cpu)?;
            bytes.chunks(WRITE_BYTES).try_for_each(|piece| writer.write_all(piece)).map_err(LabError::from)
        });
        let reading = scope.spawn(move || -> Result<(), LabError> {
            pin(on_cpu)?;
            let (mut stream, mut buffer, mut left) = (stream, vec![0; 64 << 10], keys * 5);
            while left > 0 {
                match stream.read(&mut buffer)? {
                    0 => return Err(LabError::Bench("the server closed the blind writer's connection".into())),
                    count => left = left.saturating_sub(count as u64),
                }
            }
            Ok(())
        });
        for thread in [writing, reading] {
            thread.join().map_err(|_| LabError::Bench("the blind writer panicked".into()))??;
        }
        Ok(started.elapsed().as_secs_f64())
    })
}

/// `redis-cli --pipe` with `file` as its input, on this CPU. Returns the seconds that its process lived.
pub fn redis_cli(file: &Path, port: u16, on_cpu: usize) -> Result<f64, LabError> {
    let input = std::fs::File::open(file).map_err(|source| LabError::File { path: file.into(), source })?;
    let started = Instant::now();
    let status = Command::new("taskset")
        .args(["-c", &on_cpu.to_string(), "redis-cli", "-h", "127.0.0.1", "-p", &port.to_string(), "--pipe"])
        .stdin(input)
        .stdout(Stdio::null())
        .status()
        .map_err(|e| LabError::Bench(format!("redis-cli cannot be started: {e}")))?;
    let wall_s = started.elapsed().as_secs_f64();
    if !status.success() {
        return Err(LabError::Bench(format!("redis-cli ended with {status}")));
    }
    Ok(wall_s)
}
