//! `.hgrm`: the percentile distribution as text, in the form that HdrHistogram's own tools print and plot.
//!
//! In: a histogram in nanoseconds. Out: values in microseconds (`value unit scaling ratio` 1000, said in the file name's
//! stead by a `#` line), percentiles as fractions of one, five steps to each halving of the rest, then the summary lines.

use hdrhistogram::Histogram;
use std::io::{self, Write};

/// Values are divided by this: nanoseconds become microseconds.
pub const VALUE_UNIT_RATIO: f64 = 1000.0;
/// Steps for each halving of the distance to 100 %, as the standard tools use.
const TICKS_PER_HALF: u32 = 5;

/// Writes the distribution of `histogram` (ns) in microseconds.
pub fn write_hgrm(out: &mut impl Write, histogram: &Histogram<u64>) -> io::Result<()> {
    write!(out, "{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)")?;
    let mut total = 0;
    for step in histogram.iter_quantiles(TICKS_PER_HALF) {
        total += step.count_since_last_iteration();
        let value = step.value_iterated_to() as f64 / VALUE_UNIT_RATIO;
        let quantile = step.quantile_iterated_to();
        if quantile < 1.0 {
            writeln!(out, "{value:12.3} {quantile:2.12} {total:10} {:14.2}", 1.0 / (1.0 - quantile))?;
        } else {
            writeln!(out, "{value:12.3} {quantile:2.12} {total:10}")?;
        }
    }
    writeln!(
        out,
        "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]",
        histogram.mean() / VALUE_UNIT_RATIO,
        histogram.stdev() / VALUE_UNIT_RATIO
    )?;
    let max = histogram.max() as f64 / VALUE_UNIT_RATIO;
    writeln!(out, "#[Max     = {max:12.3}, Total count    = {:12}]", histogram.len())?;
    let sub_buckets = 2 * 10u64.pow(u32::from(histogram.sigfig())).next_power_of_two();
    writeln!(out, "#[Buckets = {:12}, SubBuckets     = {sub_buckets:12}]", histogram.buckets())?;
    writeln!(out, "#[Values are in microseconds: value unit scaling ratio {VALUE_UNIT_RATIO}]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::latency::empty_histogram;

    #[test]
    fn golden_distribution() {
        let mut histogram = empty_histogram();
        for (ns, count) in [(1_000, 90), (20_000, 9), (5_000_000, 1)] {
            histogram.saturating_record_n(ns, count);
        }
        let mut out = Vec::new();
        write_hgrm(&mut out, &histogram).unwrap();
        insta::assert_snapshot!(String::from_utf8(out).unwrap());
    }

    #[test]
    fn an_empty_histogram_has_a_summary() {
        let mut out = Vec::new();
        write_hgrm(&mut out, &empty_histogram()).unwrap();
        assert!(String::from_utf8(out).unwrap().contains("Total count    =            0]"));
    }
}
