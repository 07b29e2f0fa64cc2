//! Traffic that goes on beside whatever a test does: counters, whose every value is known.

use super::client::Connection;
use serde_json::json;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What clients that count tell the test.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    enough: AtomicBool,
    longest_us: AtomicU64,
}

impl Traffic {
    /// Counts on at a node until the test has seen enough; what was counted. Every answer must be the next number.
    ///
    /// # Panics
    /// When a request fails, or a number is another.
    pub(crate) fn count_on(&self, port: u16, name: &str) -> u64 {
        let mut connection = Connection::open(port).expect("the node listens");
        let mut count = 0;
        while !self.enough.load(Ordering::Acquire) {
            let begun = Instant::now();
            count += 1;
            let request =
                json!({"command": "INCR", "key": name, "client": name, "seq": count, "timeout_ms": 10000});
            let reply = connection.ask(&request);
            assert_eq!(reply["result"], count, "a counter counts each request once");
            self.longest_us.fetch_max(begun.elapsed().as_micros() as u64, Ordering::AcqRel);
        }
        count
    }

    /// The longest that a request took since this was last asked.
    pub(crate) fn take_longest(&self) -> Duration {
        Duration::from_micros(self.longest_us.swap(0, Ordering::AcqRel))
    }

    /// Ends it. Also when the test fails, or its threads would be waited for in vain.
    pub(crate) fn end(&self) {
        self.enough.store(true, Ordering::Release);
    }
}

/// Ends the traffic when the test is over, one way or the other.
pub(crate) struct Ends<'t>(pub(crate) &'t Traffic);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}
