//! A mutation fuzzer for everything that reads bytes which somebody else wrote: clients, peers, disks, operators.
//!
//! A [`targets::Target`] reads an input and judges what came of it: no panic, and more where there is something to compare
//! with. [`engine`] mutates inputs under a seed, keeps those that behave in a new way, and makes a failing one small.
//! Failing inputs stay in `kept/TARGET/`, and `tests/replay.rs` runs them all on the stable compiler. One seed and one
//! number of threads are one sequence of inputs. See docs/SIMULATION.md.

pub mod drive;
pub mod engine;
pub mod kept;
pub mod minimise;
pub mod mutate;
pub mod targets;

/// The server's way from received bytes to lines, compiled in from where it is: the server is a binary, no library.
#[allow(dead_code, unreachable_pub, unused_imports, reason = "only a part of the room is driven from here")]
mod front;

/// The server's configuration, likewise.
#[allow(dead_code, unreachable_pub, unused_imports, reason = "only a part of the room is driven from here")]
#[path = "../../../src/tuning/mod.rs"]
mod tuning;

/// Forwarded requests, likewise.
#[allow(dead_code, unreachable_pub, reason = "only a part of the room is driven from here")]
mod forward;
