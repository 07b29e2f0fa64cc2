//! How long batches of the log take to become durable: percentiles over a window that moves every ten seconds.
//!
//! Fixed memory and no allocation per batch. Two windows are kept, the present one and the one before, so figures are of
//! the last 10 to 20 s. Never decides anything: the figures are for INFO.

use shards::ids::Sequence;
use std::collections::VecDeque;

/// Length of one window, in microseconds.
const WINDOW_US: u64 = 10_000_000;
/// Parts of each power of two, so that a figure is at most an eighth too large.
const PARTS: usize = 8;
const BUCKETS: usize = 32 * PARTS;
/// Batches on their way that are timed; a log that is synced seconds behind has more, and those go untimed.
const TIMED_MAX: usize = 1024;

/// See the module's head.
pub(super) struct CommitTimes {
    /// Batches on their way, with when they were handed over.
    open: VecDeque<(Sequence, u64)>,
    present: Box<[u32; BUCKETS]>,
    before: Box<[u32; BUCKETS]>,
    window_begun_us: u64,
}

/// The median, what 99 of 100 stay below, both in microseconds, and of how many batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Percentiles {
    /// The median.
    pub(super) p50_us: u64,
    /// 99 of 100 stay below.
    pub(super) p99_us: u64,
    /// Batches measured.
    pub(super) count: u64,
}

impl CommitTimes {
    /// Nothing measured yet.
    pub(super) fn new() -> Self {
        let empty = || Box::new([0; BUCKETS]);
        Self {
            open: VecDeque::with_capacity(TIMED_MAX),
            present: empty(),
            before: empty(),
            window_begun_us: 0,
        }
    }

    /// A batch is handed to the log.
    pub(super) fn begun(&mut self, sequence: Sequence, now_us: u64) {
        if self.open.len() < TIMED_MAX {
            self.open.push_back((sequence, now_us));
        }
    }

    /// Every batch up to this one is durable.
    pub(super) fn durable(&mut self, upto: Sequence, now_us: u64) {
        self.turn(now_us);
        while self.open.front().is_some_and(|(sequence, _)| *sequence <= upto) {
            let Some((_, begun_us)) = self.open.pop_front() else { return };
            self.present[bucket_of(now_us.saturating_sub(begun_us))] += 1;
        }
    }

    /// The figures of the last windows.
    pub(super) fn percentiles(&mut self, now_us: u64) -> Percentiles {
        self.turn(now_us);
        let count: u64 = self.present.iter().chain(self.before.iter()).map(|count| u64::from(*count)).sum();
        if count == 0 {
            return Percentiles::default();
        }
        let below = |rank: u64| {
            let mut seen = 0;
            for (number, (present, before)) in self.present.iter().zip(self.before.iter()).enumerate() {
                seen += u64::from(*present) + u64::from(*before);
                if seen >= rank {
                    return bucket_end(number);
                }
            }
            bucket_end(BUCKETS - 1)
        };
        Percentiles { p50_us: below(count.div_ceil(2)), p99_us: below((count * 99).div_ceil(100)), count }
    }

    fn turn(&mut self, now_us: u64) {
        let windows = now_us.saturating_sub(self.window_begun_us) / WINDOW_US;
        if windows == 0 {
            return;
        }
        std::mem::swap(&mut self.present, &mut self.before);
        self.present.fill(0);
        if windows > 1 {
            self.before.fill(0);
        }
        self.window_begun_us = now_us;
    }
}

/// Times below 8 us have a bucket each; above, each power of two has eight.
fn bucket_of(time_us: u64) -> usize {
    if time_us < PARTS as u64 {
        return time_us as usize;
    }
    let power = time_us.ilog2() as usize;
    let part = (time_us >> (power - 3)) as usize & (PARTS - 1);
    ((power - 2) * PARTS + part).min(BUCKETS - 1)
}

/// The longest time of a bucket.
fn bucket_end(bucket: usize) -> u64 {
    if bucket < PARTS {
        return bucket as u64;
    }
    let (power, part) = (bucket / PARTS + 2, (bucket % PARTS) as u64);
    ((PARTS as u64 + part + 1) << (power - 3)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_in_a_bucket_that_ends_little_above_it() {
        let mut last = 0;
        for time_us in (0..2000).chain([5_000, 77_777, 1_000_000, 60_000_000]) {
            let (bucket, end) = (bucket_of(time_us), bucket_end(bucket_of(time_us)));
            assert!(end >= time_us && end <= time_us + time_us / 8, "{time_us} us counts as {end}");
            assert!(bucket >= last && (bucket == 0 || bucket_end(bucket - 1) < time_us));
            last = bucket;
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

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
        assert_eq!(times.percentiles(WINDOW_US + 1).count, 100, "the window before counts");
        assert_eq!(times.percentiles(2 * WINDOW_US + 2).count, 0, "the one before that does not");
        for number in 0..2 * TIMED_MAX as u64 {
            times.begun(Sequence(200 + number), 1);
        }
        assert_eq!(times.open.len(), TIMED_MAX);
    }
}
