//! The few figures that `demo` and `bench` make of many.

use std::time::Duration;

/// The middle one, or the mean of both middle ones; zero of none.
pub(super) fn median(samples: &[Duration]) -> Duration {
    let mut sorted = samples.to_vec();
    sorted.sort();
    match (sorted.len(), sorted.get((sorted.len().max(1) - 1) / 2), sorted.get(sorted.len() / 2)) {
        (0, ..) => Duration::ZERO,
        (_, Some(low), Some(high)) => (*low + *high) / 2,
        _ => Duration::ZERO,
    }
}

/// The smallest sample that is not below `percent` percent of all; zero of none.
pub(super) fn percentile(samples: &[Duration], percent: usize) -> Duration {
    let mut sorted = samples.to_vec();
    sorted.sort();
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// The middle one of any figures; zero of none.
pub(super) fn median_of(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted.get((sorted.len().max(1) - 1) / 2), sorted.get(sorted.len() / 2));
    low.zip(high).map_or(0.0, |(low, high)| (low + high) / 2.0)
}

/// In milliseconds.
pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// How many times `better` goes into `worse`; zero when there is no better.
pub(super) fn ratio(worse: Duration, better: Duration) -> f64 {
    if better.is_zero() { 0.0 } else { worse.as_secs_f64() / better.as_secs_f64() }
}

/// So many in that time; zero when there was none.
pub(super) fn per_second(count: u32, took: Duration) -> f64 {
    if took.is_zero() { 0.0 } else { f64::from(count) / took.as_secs_f64() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(millis: &[u64]) -> Vec<Duration> {
        millis.iter().copied().map(Duration::from_millis).collect()
    }

    #[test]
    fn a_median_is_the_middle_of_what_is_there() {
        assert_eq!(median(&samples(&[])), Duration::ZERO);
        assert_eq!(median(&samples(&[7])), Duration::from_millis(7));
        assert_eq!(median(&samples(&[9, 1, 5])), Duration::from_millis(5));
        assert_eq!(median(&samples(&[9, 1, 5, 2])), Duration::from_micros(3500));
        assert!((median_of(&[9.0, 1.0, 5.0, 2.0]) - 3.5).abs() < 1e-9);
        assert!(median_of(&[]).abs() < 1e-9);
    }

    #[test]
    fn a_percentile_is_one_of_the_samples() {
        let all = samples(&(1..=100).rev().collect::<Vec<_>>());
        assert_eq!(percentile(&all, 95), Duration::from_millis(95));
        assert_eq!(percentile(&all, 100), Duration::from_millis(100));
        assert_eq!(percentile(&samples(&[3, 4]), 5), Duration::from_millis(3));
        assert_eq!(percentile(&[], 95), Duration::ZERO);
    }

    #[test]
    fn ratios_and_rates_of_nothing_are_nothing() {
        assert!((ratio(Duration::from_secs(3), Duration::from_secs(2)) - 1.5).abs() < 1e-9);
        assert!(ratio(Duration::from_secs(3), Duration::ZERO).abs() < 1e-9);
        assert!((per_second(3, Duration::from_millis(500)) - 6.0).abs() < 1e-9);
        assert!(per_second(3, Duration::ZERO).abs() < 1e-9);
    }
}
