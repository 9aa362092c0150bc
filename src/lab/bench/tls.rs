//! What TLS costs the tool: the same load plain, over TLS to the target, and over TLS from the source, in turns.
//!
//! In: a sink as the target, a generator as the source, a `TlsProxy` in front of one or the other. Out: the tool's CPU time
//! by that of its plain run. The proxies run beside the peers and are not counted. The certificate is made by `openssl`,
//! which must be at hand.

use super::table::Results;
use super::tool::{self, Sides};
use super::{BenchArgs, fast_spec, pin};
use crate::lab::LabError;
use crate::lab::sink::{Sink, SinkOptions};
use crate::lab::tls_proxy::TlsProxyOptions;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const CASES: [(&str, &str, u64); 3] = [
    ("100 B strings", "string:100B", 4_000_000),
    ("1 KiB strings", "string:1KiB", 1_000_000),
    ("1 MiB strings", "string:1MiB", 1_500),
];

pub fn run(args: &BenchArgs, results: &mut Results) -> Result<(), LabError> {
    let certificate = Certificate::make()?;
    let shown = &certificate.shown;
    for (name, mix, keys) in CASES.into_iter().filter(|(name, ..)| name.contains(&args.only)) {
        let spec = fast_spec(mix, keys, 1, args.scale)?;
        let measure = |sides: &Sides<'_>| -> Result<f64, LabError> {
            pin(args.peer_cpu)?;
            let sink = Sink::start(SinkOptions::default())?;
            let run = tool::migrate_over(args, &spec, sink.port(), sides)?;
            eprintln!("{name}, TLS {:?} {:?}: {run:?}", sides.source.is_some(), sides.target.is_some());
            Ok(run.cpu_s / (run.bytes_in as f64 / f64::from(1 << 30)))
        };
        let (mut plain, mut target, mut source) = (vec![], vec![], vec![]);
        for _ in 0..args.rounds {
            plain.push(measure(&Sides::default())?);
            target.push(measure(&Sides { target: Some(shown), ..Sides::default() })?);
            source.push(measure(&Sides { source: Some(shown), ..Sides::default() })?);
        }
        let by_plain = |tls: &[f64]| tls.iter().zip(&plain).map(|(tls, plain)| tls / plain).collect::<Vec<_>>();
        results.add(name, "CPU with TLS to the target by plain", by_plain(&target), None, None);
        results.add(name, "CPU with TLS to the source by plain", by_plain(&source), None, None);
        results.add(name, "CPU seconds a GiB, plain", plain, None, None);
        results.add(name, "CPU seconds a GiB, TLS to the target", target, None, None);
        results.add(name, "CPU seconds a GiB, TLS to the source", source, None, None);
    }
    Ok(())
}

/// A self-signed certificate for 127.0.0.1. Dropping it removes its files.
struct Certificate {
    dir: PathBuf,
    shown: TlsProxyOptions,
}

impl Certificate {
    fn make() -> Result<Self, LabError> {
        let dir = std::env::temp_dir().join(format!("df2redis-bench-tls-{}", std::process::id()));
        std::fs::create_dir_all(&dir).map_err(|source| LabError::File { path: dir.clone(), source })?;
        let shown =
            TlsProxyOptions { cert: dir.join("cert.pem"), key: dir.join("key.pem"), ..TlsProxyOptions::default() };
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=bench", "-addext", "subjectAltName=IP:127.0.0.1"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
            .arg(&shown.key)
            .arg("-out")
            .arg(&shown.cert)
            .stdin(Stdio::null())
            .output()
            .map_err(|e| LabError::Bench(format!("openssl cannot be started: {e}; install it for --parts tls")))?;
        let certificate = Self { dir, shown };
        if made.status.success() {
            return Ok(certificate);
        }
        Err(LabError::Bench(format!("openssl made no certificate: {}", String::from_utf8_lossy(&made.stderr).trim())))
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.dir).ok();
    }
}
