//! What the tests of the real server share: processes, data directories, a client of their own, chance under a seed.
//!
//! Nothing here uses the product's client or parser, so that both cannot be wrong alike. A test that needs a server makes a
//! [`server::Setup`]; everything it starts ends with it.
#![allow(dead_code, reason = "every test binary uses a part of it")]

pub(crate) mod client;
pub(crate) mod cluster;
pub(crate) mod directory;
pub(crate) mod random;
pub(crate) mod server;
pub(crate) mod system;
pub(crate) mod tap;
pub(crate) mod traffic;

use std::io::Write;
use std::time::{Duration, Instant};

/// Says on stderr how long a test took, past the capture of the test harness.
pub(crate) struct Timed {
    name: &'static str,
    began: Instant,
}

/// Begins to time a test; tells when dropped.
pub(crate) fn timed(name: &'static str) -> Timed {
    Timed { name, began: Instant::now() }
}

impl Drop for Timed {
    fn drop(&mut self) {
        let outcome = if std::thread::panicking() { "FAILED" } else { "ok" };
        let seconds = self.began.elapsed().as_secs_f64();
        // Nobody to tell when stderr is gone.
        let _ = writeln!(std::io::stderr().lock(), "    {seconds:6.1} s  {} ({outcome})", self.name);
    }
}

/// Says something on stderr past the capture of the test harness: figures of long runs.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "             {text}");
}

/// A number from the environment, for longer runs.
///
/// # Panics
/// When the variable is set and is not a number.
pub(crate) fn from_environment(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")),
        Err(_) => otherwise,
    }
}

/// Waits until the condition holds.
///
/// # Panics
/// When it does not within the time.
pub(crate) fn eventually(what: &str, within: Duration, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < within, "not within {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
