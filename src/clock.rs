//! The only source of time and entropy in the program.
//!
//! Everything else is given both as arguments, so that the engine behaves the same in the simulator. Wall time may jump when
//! somebody sets the machine's clock; deadlines are measured with [`Clock`], which does not.

use crate::sys;
use shards::ids::Millis;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Time for one thread: milliseconds since the Unix epoch that never go back, although the machine's clock may.
///
/// It reads the wall clock once, at its start, and counts on from there with the monotonic clock. A later correction of the
/// machine's clock reaches it with [`Clock::follow_wall`], forwards only.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    wall_at_start_ms: u64,
}

impl Clock {
    /// A clock that shows the wall time of now.
    pub fn start() -> Self {
        Self { start: Instant::now(), wall_at_start_ms: wall_ms() }
    }

    /// Milliseconds since the Unix epoch; never less than before.
    pub fn now(&self) -> Millis {
        Millis(self.wall_at_start_ms + millis_of(self.start.elapsed()))
    }

    /// Microseconds since this clock started, for measuring.
    pub fn elapsed_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Catches up with the wall clock if that is ahead, such as after the machine slept. To be called now and then.
    pub fn follow_wall(&mut self) {
        self.advance_to(wall_ms());
    }

    fn advance_to(&mut self, wall_ms: u64) {
        let behind_ms = wall_ms.saturating_sub(self.now().0);
        self.wall_at_start_ms += behind_ms;
    }
}

/// The wall clock: milliseconds since the Unix epoch; 0 on a machine whose clock stands before it.
pub fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis_of)
}

/// 64 random bits from the kernel.
pub fn random_u64() -> u64 {
    u64::from_le_bytes(random())
}

/// 128 random bits from the kernel: enough for a name that nobody else draws.
pub fn random_u128() -> u128 {
    u128::from_le_bytes(random())
}

fn random<const BYTES: usize>() -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    sys::random_bytes(&mut bytes).expect("getrandom works on every kernel since 3.17");
    bytes
}

fn millis_of(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_never_goes_back() {
        let mut clock = Clock::start();
        let before = clock.now();
        clock.advance_to(before.0.saturating_sub(1_000_000));
        assert!(clock.now() >= before);
        clock.advance_to(before.0 + 1_000_000);
        assert!(clock.now().0 >= before.0 + 1_000_000);
        assert!(clock.elapsed_us() < 60_000_000, "a jump of the wall clock is no elapsed time");
    }

    #[test]
    fn time_is_now_and_chance_is_not_constant() {
        // The first day of 2024, in milliseconds: this file is younger.
        assert!(wall_ms() > 1_704_067_200_000);
        assert_ne!(random_u64(), random_u64());
        assert_ne!(random_u128() >> 64, random_u128() >> 64);
    }
}
