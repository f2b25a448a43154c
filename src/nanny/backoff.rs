//! Waits that double, with jitter, and are forgotten only after a time of health.

use std::time::Duration;

use crate::config;

/// The waits of one thing that fails. Jitter is drawn from a seed, so that a simulation repeats itself.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
    dice: fastrand::Rng,
}

impl Backoff {
    /// No failure so far.
    #[must_use]
    pub fn new(config: &config::Backoff, seed: u64) -> Self {
        Self { first: config.first, longest: config.longest, failures: 0, dice: fastrand::Rng::with_seed(seed) }
    }

    /// The next wait: `first` times two for every failure before, at most `longest`, of which half is jitter.
    pub fn next_wait(&mut self) -> Duration {
        let full = self.first.saturating_mul(1 << self.failures.min(20)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        full / 2 + (full / 2).mul_f64(self.dice.f64())
    }

    /// Failures since the last [`Backoff::reset`].
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// It has been well for long enough.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_differ() {
        let config = config::Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(3), ..Default::default() };
        let (mut one, mut other) = (Backoff::new(&config, 1), Backoff::new(&config, 2));
        let mut differs = false;
        for failures in 0..40 {
            let full = Duration::from_millis(100).saturating_mul(1 << failures.min(20)).min(Duration::from_secs(3));
            let (a, b) = (one.next_wait(), other.next_wait());
            assert!(a >= full / 2 && a <= full, "{a:?} after {failures} failures");
            differs |= a != b;
        }
        assert!(differs, "two slots wait in step");
        one.reset();
        assert!(one.next_wait() <= Duration::from_millis(100));
    }
}
