//! What a run says: lines on stderr with the time since it began, and percentiles.

use std::io::Write;
use std::time::{Duration, Instant};

/// Says lines with the time since the run began.
#[derive(Clone, Copy, Debug)]
pub struct Report(Instant);

impl Default for Report {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Report {
    /// Says a line.
    pub fn say(&self, text: &str) {
        let seconds = self.0.elapsed().as_secs_f64();
        // Nobody to tell when stderr is gone.
        drop(writeln!(std::io::stderr().lock(), "{seconds:8.1} s  {text}"));
    }

    /// Time since the run began.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// The value below which so many of a hundred lie; zero of none.
pub fn percentile(values: &[Duration], percent: usize) -> Duration {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let place = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(place.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// Count, p50, p99 and the longest of some durations.
pub fn summary(values: &[Duration]) -> String {
    let [p50, p99, longest] = [50, 99, 100].map(|percent| percentile(values, percent).as_millis());
    format!("p50 {p50} ms, p99 {p99} ms, longest {longest} ms of {}", values.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_values() {
        let values: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        let of = |percent| percentile(&values, percent).as_millis();
        assert_eq!((of(50), of(99), of(100)), (50, 99, 100));
        assert_eq!(percentile(&[], 99), Duration::ZERO);
        assert_eq!(percentile(&values[..1], 50).as_millis(), 1);
    }
}
