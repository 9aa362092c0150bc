//! `.hlog`: the one-second histograms of a run, as an HdrHistogram interval log (format 1.3, V2 deflate, tags).
//!
//! In: one [`SeriesPoint`] a second for each latency and node. Out: a line each, `Tag=apply_lag.node0,...`, values in
//! nanoseconds, written at once and flushed each second, so that an interrupted run keeps what it had. The standard tools
//! (HistogramLogProcessor, HistogramLogAnalyzer, hdr-plot) open it.

use super::latency::{Latency, SeriesPoint};
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use std::io::{self, Write};
use std::time::SystemTime;

/// The tag of a latency at a node: `apply_lag.node0`.
pub fn tag(latency: Latency, node: u16) -> String {
    format!("{}.node{node}", latency.name())
}

/// Writes an interval log line by line.
pub struct HlogWriter<W: Write> {
    out: W,
    serializer: V2DeflateSerializer,
    line: Vec<u8>,
}

impl<W: Write> HlogWriter<W> {
    /// Writes the header. `started` is the moment that the times of all points count from.
    pub fn begin(mut out: W, started: SystemTime) -> io::Result<Self> {
        let mut serializer = V2DeflateSerializer::new();
        IntervalLogWriterBuilder::new()
            .add_comment(concat!("[Logged with df2redis ", env!("CARGO_PKG_VERSION"), "; values in nanoseconds]"))
            .add_comment("[Histogram log format version 1.3]")
            .with_start_time(started)
            .begin_log_with(&mut out, &mut serializer)?;
        writeln!(out, "\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"")?;
        Ok(Self { out, serializer, line: Vec::new() })
    }

    /// Appends one interval.
    pub fn write(&mut self, point: &SeriesPoint<'_>) -> io::Result<()> {
        self.line.clear();
        let tag = tag(point.latency, point.node);
        // The crate's writer borrows its output for its whole life; one without headers, for one line, is only a few
        // references, and this writer can then own its file.
        IntervalLogWriterBuilder::new()
            .begin_log_with(&mut self.line, &mut self.serializer)?
            .write_histogram(point.histogram, point.started, point.length, Tag::new(&tag))
            .map_err(|error| io::Error::other(format!("cannot serialize a histogram: {error:?}")))?;
        self.out.write_all(&self.line)
    }

    /// Hands what was written to the system.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    #[cfg(test)]
    fn into_inner(self) -> W {
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::latency::empty_histogram;
    use hdrhistogram::Histogram;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
    use std::time::Duration;

    #[test]
    fn a_log_is_read_back_by_the_crate() {
        let mut histogram = empty_histogram();
        histogram.saturating_record_n(123_456, 7);
        let mut log =
            HlogWriter::begin(Vec::new(), SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)).unwrap();
        for second in 0..3 {
            log.write(&SeriesPoint {
                latency: Latency::Service,
                node: 4,
                started: Duration::from_secs(second),
                length: Duration::from_secs(1),
                histogram: &histogram,
            })
            .unwrap();
        }
        let text = log.into_inner();
        assert!(text.starts_with(b"#[Logged with df2redis "));
        let mut seen = 0;
        for entry in IntervalLogIterator::new(&text) {
            match entry.unwrap() {
                LogEntry::StartTime(start) => assert_eq!(start.as_secs(), 1_700_000_000),
                LogEntry::BaseTime(_) => panic!("times are offsets from StartTime"),
                LogEntry::Interval(interval) => {
                    assert_eq!(interval.tag().unwrap().as_str(), "service.node4");
                    assert_eq!(interval.start_timestamp(), Duration::from_secs(seen));
                    assert_eq!(interval.duration(), Duration::from_secs(1));
                    let bytes = base64_decode(interval.encoded_histogram());
                    let back: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap();
                    assert_eq!(back, histogram);
                    seen += 1;
                }
            }
        }
        assert_eq!(seen, 3);
    }

    /// Enough of base64 for a test; the crate's own decoder is not public.
    fn base64_decode(text: &str) -> Vec<u8> {
        const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut out = Vec::new();
        let (mut bits, mut held) = (0u32, 0);
        for c in text.bytes().filter(|&c| c != b'=') {
            bits = bits << 6 | ALPHABET.iter().position(|&a| a == c).unwrap() as u32;
            held += 6;
            if held >= 8 {
                held -= 8;
                out.push((bits >> held) as u8);
            }
        }
        out
    }
}
