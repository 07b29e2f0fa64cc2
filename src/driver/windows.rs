//! Percentiles of times over a window that moves every ten seconds.
//!
//! Fixed memory, and a time costs two additions. Two windows are kept, the present one and the one before, so figures are of
//! the last 10 to 20 s. Never decides anything: the figures are for INFO.

/// Length of one window, in microseconds.
pub(super) const WINDOW_US: u64 = 10_000_000;
/// Parts of each power of two, so that a figure is at most an eighth too large.
const PARTS: usize = 8;
const BUCKETS: usize = 32 * PARTS;

/// One window.
struct Window {
    buckets: Box<[u32; BUCKETS]>,
    longest_us: u64,
}

/// See the module's head.
pub(super) struct Windows {
    present: Window,
    before: Window,
    begun_us: u64,
}

/// What stayed below, in microseconds, and of how many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Percentiles {
    /// The median.
    pub(super) p50_us: u64,
    /// 99 of 100 stay below.
    pub(super) p99_us: u64,
    /// 999 of 1,000 stay below.
    pub(super) p999_us: u64,
    /// The longest one, exactly.
    pub(super) longest_us: u64,
    /// How many were measured.
    pub(super) count: u64,
}

impl Window {
    fn new() -> Self {
        Self { buckets: Box::new([0; BUCKETS]), longest_us: 0 }
    }

    fn clear(&mut self) {
        self.buckets.fill(0);
        self.longest_us = 0;
    }
}

impl Windows {
    /// Nothing measured yet.
    pub(super) fn new() -> Self {
        Self { present: Window::new(), before: Window::new(), begun_us: 0 }
    }

    /// Something took so long, and ended now.
    pub(super) fn count(&mut self, time_us: u64, now_us: u64) {
        self.turn(now_us);
        self.present.buckets[bucket_of(time_us)] += 1;
        self.present.longest_us = self.present.longest_us.max(time_us);
    }

    /// The figures of the last windows.
    pub(super) fn percentiles(&mut self, now_us: u64) -> Percentiles {
        self.turn(now_us);
        let both = || self.present.buckets.iter().zip(self.before.buckets.iter());
        let count: u64 = both().map(|(present, before)| u64::from(*present) + u64::from(*before)).sum();
        if count == 0 {
            return Percentiles::default();
        }
        let below = |rank: u64| {
            let mut seen = 0;
            for (number, (present, before)) in both().enumerate() {
                seen += u64::from(*present) + u64::from(*before);
                if seen >= rank {
                    return bucket_end(number);
                }
            }
            bucket_end(BUCKETS - 1)
        };
        Percentiles {
            p50_us: below(count.div_ceil(2)),
            p99_us: below((count * 99).div_ceil(100)),
            p999_us: below((count * 999).div_ceil(1000)),
            longest_us: self.present.longest_us.max(self.before.longest_us),
            count,
        }
    }

    fn turn(&mut self, now_us: u64) {
        let windows = now_us.saturating_sub(self.begun_us) / WINDOW_US;
        if windows == 0 {
            return;
        }
        std::mem::swap(&mut self.present, &mut self.before);
        self.present.clear();
        if windows > 1 {
            self.before.clear();
        }
        self.begun_us = now_us;
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
    fn figures_are_of_the_last_two_windows() {
        let mut windows = Windows::new();
        assert_eq!(windows.percentiles(5), Percentiles::default());
        (0..998).for_each(|_| windows.count(10, 20));
        windows.count(300, 20);
        windows.count(7_777, 21);
        let found = windows.percentiles(30);
        assert_eq!((found.p50_us, found.p99_us, found.p999_us), (10, 10, 319));
        assert_eq!((found.longest_us, found.count), (7_777, 1_000));
        windows.count(5, WINDOW_US + 1);
        let found = windows.percentiles(WINDOW_US + 2);
        assert_eq!((found.longest_us, found.count), (7_777, 1_001), "the window before counts");
        let found = windows.percentiles(2 * WINDOW_US + 2);
        assert_eq!((found.longest_us, found.count), (5, 1), "the one before that does not");
    }
}
