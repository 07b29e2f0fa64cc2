//! The engine of Strand: it decides, `src/` performs.
//!
//! Sans-IO and deterministic: no file, socket, clock, thread, executor or random number in here. Time comes in as an
//! argument, everything that must happen outside goes out as an effect, and the same inputs give the same outputs, so
//! that the simulator runs the code that ships. What the crate must never do: depend on glommio, io-uring or libc, read
//! a clock, or let the order of a randomly seeded map reach a reply, a log record or a snapshot.

pub mod batch;
pub mod catalog;
pub mod command;
pub mod consensus;
pub mod effect;
pub mod event;
pub mod gather;
pub mod ids;
pub mod index;
pub mod log;
pub mod meta;
pub mod mutants;
pub mod peer;
pub mod placement;
pub mod shard;
pub mod snapshot;
pub mod state;
pub mod storage;
pub mod txn;
