//! How long batches of the log take to become durable.
//!
//! Fixed memory and no allocation per batch. Never decides anything: the figures are for INFO.

use super::windows::{Percentiles, Windows};
use shards::ids::Sequence;
use std::collections::VecDeque;

/// Batches on their way that are timed; a log that is synced seconds behind has more, and those go untimed.
const TIMED_MAX: usize = 1024;

/// See the module's head.
pub(super) struct CommitTimes {
    /// Batches on their way, with when they were handed over.
    open: VecDeque<(Sequence, u64)>,
    done: Windows,
}

impl CommitTimes {
    /// Nothing measured yet.
    pub(super) fn new() -> Self {
        Self { open: VecDeque::with_capacity(TIMED_MAX), done: Windows::new() }
    }

    /// A batch is handed to the log.
    pub(super) fn begun(&mut self, sequence: Sequence, now_us: u64) {
        if self.open.len() < TIMED_MAX {
            self.open.push_back((sequence, now_us));
        }
    }

    /// Every batch up to this one is durable.
    pub(super) fn durable(&mut self, upto: Sequence, now_us: u64) {
        while self.open.front().is_some_and(|(sequence, _)| *sequence <= upto) {
            let Some((_, begun_us)) = self.open.pop_front() else { return };
            self.done.count(now_us.saturating_sub(begun_us), now_us);
        }
    }

    /// The figures of the last 10 to 20 s.
    pub(super) fn percentiles(&mut self, now_us: u64) -> Percentiles {
        self.done.percentiles(now_us)
    }
}

#[cfg(test)]
mod tests {
    use super::super::windows::WINDOW_US;
    use super::*;

    #[test]
    fn figures_are_of_the_last_windows() {
        let mut times = CommitTimes::new();
        assert_eq!(times.percentiles(5), Percentiles::default());
        for number in 1..=100 {
            times.begun(Sequence(number), 0);
        }
        times.durable(Sequence(98), 100);
        times.durable(Sequence(100), 5_000);
        let found = times.percentiles(6_000);
        assert_eq!((found.p50_us, found.p99_us, found.count), (103, 5_119, 100));
        assert_eq!(times.percentiles(2 * WINDOW_US + 2).count, 0);
        for number in 0..2 * TIMED_MAX as u64 {
            times.begun(Sequence(200 + number), 1);
        }
        assert_eq!(times.open.len(), TIMED_MAX);
    }
}
