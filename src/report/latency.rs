//! The three latencies of a run, as HDR histograms: recorded by workers without locks, merged by the control thread.
//!
//! In: `record(latency, node, ns, count)` on the hot path (a table lookup and an add, 6-8 ns). Once a second the worker
//! calls [`Recorder::take_interval`] and sends the small, sparse [`Interval`] away; [`LatencySeries`] adds it to the
//! whole-run histograms and hands the second's merged histograms on to be logged.
//!
//! Bounds and precision: 1 ns to 2^36 ns (68.7 s), 2 significant digits. One histogram is 31 KiB (3 digits would be
//! 220 KiB and would fall out of the L2 cache for a precision that no run repeats). A worker keeps one for each latency
//! and node that it has really seen: 93 KiB a node. Values beyond the bounds are counted at the bound.

use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::time::Duration;

/// Lowest value told apart, ns.
pub const LATENCY_NS_MIN: u64 = 1;
/// Highest value told apart, ns (68.7 s); larger ones are counted here.
pub const LATENCY_NS_MAX: u64 = 1 << 36;
/// Significant decimal digits kept: every value is right to 1 %.
pub const LATENCY_DIGITS: u8 = 2;

/// The latencies that are kept, and never mixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Latency {
    /// Last byte of an entry read from the flow, until its reply came from the target.
    ApplyLag,
    /// Batch submitted to the kernel, until its last reply.
    Service,
    /// Receive buffer filled, until it is free again.
    Residence,
}

impl Latency {
    pub const ALL: [Latency; 3] = [Latency::ApplyLag, Latency::Service, Latency::Residence];

    /// The name in files, tags and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Latency::ApplyLag => "apply_lag",
            Latency::Service => "service",
            Latency::Residence => "residence",
        }
    }

    /// From where to where, in words.
    pub fn meaning(self) -> &'static str {
        match self {
            Latency::ApplyLag => "last byte of an entry read -> its reply",
            Latency::Service => "batch submitted -> its last reply",
            Latency::Residence => "receive buffer filled -> buffer free",
        }
    }

    /// What is to be known about coordinated omission before this figure is compared with another.
    pub fn omission(self) -> &'static str {
        match self {
            Latency::ApplyLag => {
                "every entry is recorded from its arrival: free of coordinated omission as long as the flows are read \
                 (see unread_ms_max for how long any was not)"
            }
            Latency::Service => {
                "closed loop: a slow target delays the next batch too, so this is not free of coordinated omission"
            }
            Latency::Residence => "occupancy of memory, not a response time",
        }
    }

    fn index(self) -> usize {
        match self {
            Latency::ApplyLag => 0,
            Latency::Service => 1,
            Latency::Residence => 2,
        }
    }
}

/// An empty histogram with the bounds of this module.
pub fn empty_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(LATENCY_NS_MIN, LATENCY_NS_MAX, LATENCY_DIGITS).expect("constant bounds are valid")
}

/// One worker's histograms of the second that is running. Not shared; `Send` so that it can be built elsewhere.
#[derive(Debug, Default)]
pub struct Recorder {
    /// By node, then by latency; allocated when first used.
    nodes: Vec<[Option<Box<Histogram<u64>>>; 3]>,
}

impl Recorder {
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts `count` entries that took `ns` each. Values beyond the bounds count at the bound.
    #[inline]
    pub fn record(&mut self, latency: Latency, node: u16, ns: u64, count: u64) {
        if let Some(Some(histogram)) = self.nodes.get_mut(usize::from(node)).map(|kinds| &mut kinds[latency.index()]) {
            histogram.saturating_record_n(ns, count);
        } else {
            self.record_first(latency, node, ns, count);
        }
    }

    #[cold]
    fn record_first(&mut self, latency: Latency, node: u16, ns: u64, count: u64) {
        let node = usize::from(node);
        if self.nodes.len() <= node {
            self.nodes.resize_with(node + 1, Default::default);
        }
        let histogram = self.nodes[node][latency.index()].get_or_insert_with(|| Box::new(empty_histogram()));
        histogram.saturating_record_n(ns, count);
    }

    /// What was recorded since the last call, and begins anew. Call it once a second.
    pub fn take_interval(&mut self) -> Interval {
        let mut interval = Interval::default();
        for (node, kinds) in self.nodes.iter_mut().enumerate() {
            for latency in Latency::ALL {
                let Some(histogram) = kinds[latency.index()].as_mut().filter(|h| !h.is_empty()) else { continue };
                let counts =
                    histogram.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect();
                interval.parts.push(Part { latency, node: node as u16, counts });
                histogram.reset();
            }
        }
        interval
    }
}

/// One worker's second, sparse: only the values that occurred (some hundred pairs at most, usually a few dozen). The
/// series of a run is cut into seconds where it is merged ([`LatencySeries::close_second`]), by one clock for all workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interval {
    parts: Vec<Part>,
}

impl Interval {
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    latency: Latency,
    node: u16,
    /// (value in ns, count); a value is the highest of its bucket, so adding it elsewhere lands in the same bucket.
    counts: Vec<(u64, u64)>,
}

/// The merged figures of all workers: the whole run, and the second that is being collected.
#[derive(Debug, Default)]
pub struct LatencySeries {
    whole: BTreeMap<(Latency, u16), Histogram<u64>>,
    second: BTreeMap<(Latency, u16), Histogram<u64>>,
    second_started: Duration,
}

/// One second of one latency at one node, ready to be logged.
#[derive(Debug)]
pub struct SeriesPoint<'a> {
    pub latency: Latency,
    pub node: u16,
    pub started: Duration,
    pub length: Duration,
    pub histogram: &'a Histogram<u64>,
}

impl LatencySeries {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one worker's second to the second being collected and to the whole run.
    pub fn add(&mut self, interval: &Interval) {
        for part in &interval.parts {
            let key = (part.latency, part.node);
            let whole = self.whole.entry(key).or_insert_with(empty_histogram);
            let second = self.second.entry(key).or_insert_with(empty_histogram);
            for &(value, count) in &part.counts {
                whole.saturating_record_n(value, count);
                second.saturating_record_n(value, count);
            }
        }
    }

    /// Ends the second being collected: `log` is called for each latency and node that has values in it, then it is
    /// cleared. Call it once a second, after every worker's interval was added, and once at the end.
    pub fn close_second<E>(
        &mut self,
        now: Duration,
        mut log: impl FnMut(SeriesPoint<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let started = std::mem::replace(&mut self.second_started, now);
        let mut result = Ok(());
        for (&(latency, node), histogram) in &mut self.second {
            if histogram.is_empty() {
                continue;
            }
            if result.is_ok() {
                result = log(SeriesPoint {
                    latency,
                    node,
                    started,
                    length: now.saturating_sub(started),
                    histogram: &*histogram,
                });
            }
            histogram.reset();
        }
        result
    }

    /// The whole run, by latency and node.
    pub fn whole(&self) -> impl Iterator<Item = (Latency, u16, &Histogram<u64>)> {
        self.whole.iter().map(|(&(latency, node), histogram)| (latency, node, histogram))
    }
}

/// The latencies of about the last second in which there were any, all nodes together.
#[derive(Debug, Default)]
pub struct Recent {
    parts: std::collections::VecDeque<Interval>,
}

impl Recent {
    /// Intervals kept: one second of this many workers at the most.
    const INTERVALS_MAX: usize = 16;

    /// Adds one worker's second.
    pub fn add(&mut self, interval: &Interval) {
        if interval.is_empty() {
            return;
        }
        if self.parts.len() == Self::INTERVALS_MAX {
            self.parts.pop_front();
        }
        self.parts.push_back(interval.clone());
    }

    /// Median, 99th percentile and maximum, ns; `None`: nothing was recorded.
    pub fn percentiles(&self, latency: Latency) -> Option<[u64; 3]> {
        let mut histogram = empty_histogram();
        let parts = self.parts.iter().flat_map(|interval| &interval.parts).filter(|part| part.latency == latency);
        for (value, count) in parts.flat_map(|part| &part.counts) {
            histogram.saturating_record_n(*value, *count);
        }
        let at = |quantile| histogram.value_at_quantile(quantile);
        (!histogram.is_empty()).then(|| [at(0.5), at(0.99), histogram.max()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn intervals_of_two_workers_add_up() {
        let mut series = LatencySeries::new();
        let (mut a, mut b) = (Recorder::new(), Recorder::new());
        a.record(Latency::ApplyLag, 0, 1_000, 3);
        a.record(Latency::ApplyLag, 2, 5_000_000, 1);
        b.record(Latency::ApplyLag, 0, 1_000_000, 1);
        b.record(Latency::Service, 0, 77, 1);
        for interval in [a.take_interval(), b.take_interval()] {
            series.add(&interval);
        }
        let mut logged = Vec::new();
        series
            .close_second(ms(1000), |p| {
                logged.push((p.latency, p.node, p.histogram.len(), p.length));
                Ok::<(), ()>(())
            })
            .unwrap();
        assert_eq!(
            logged,
            [
                (Latency::ApplyLag, 0, 4, ms(1000)),
                (Latency::ApplyLag, 2, 1, ms(1000)),
                (Latency::Service, 0, 1, ms(1000))
            ]
        );
        // The second is cleared, the whole run stays.
        series.close_second(ms(2000), |_| Err("nothing was recorded")).unwrap();
        assert_eq!(series.whole().map(|(.., h)| h.len()).collect::<Vec<_>>(), [4, 1, 1]);
        let (.., histogram) = series.whole().next().unwrap();
        assert!(histogram.equivalent(histogram.max(), 1_000_000), "the maximum survives the sparse form");
        assert!(a.take_interval().is_empty(), "an interval is taken once");
    }

    #[test]
    fn the_sparse_form_keeps_every_bucket() {
        let mut recorder = Recorder::new();
        let mut plain = empty_histogram();
        let mut value = 1u64;
        for i in 0..2000u64 {
            value = value.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let ns = value >> (28 + i % 36);
            recorder.record(Latency::Residence, 1, ns, i % 3 + 1);
            plain.saturating_record_n(ns, i % 3 + 1);
        }
        let mut series = LatencySeries::new();
        series.add(&recorder.take_interval());
        let (.., merged) = series.whole().next().unwrap();
        assert_eq!(*merged, plain);
    }

    #[test]
    fn values_out_of_bounds_count_at_the_bound() {
        let mut recorder = Recorder::new();
        recorder.record(Latency::ApplyLag, u16::MAX, u64::MAX, 1);
        recorder.record(Latency::ApplyLag, u16::MAX, 0, 1);
        let mut series = LatencySeries::new();
        series.add(&recorder.take_interval());
        let (_, node, histogram) = series.whole().next().unwrap();
        assert_eq!((node, histogram.len()), (u16::MAX, 2));
        assert!(histogram.max() >= LATENCY_NS_MAX);
    }

    #[test]
    fn a_histogram_is_as_large_as_the_header_says() {
        assert!(empty_histogram().distinct_values() * 8 <= 32 * 1024, "{}", empty_histogram().distinct_values() * 8);
    }
}
