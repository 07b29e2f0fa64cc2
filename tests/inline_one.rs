//! As `inline.rs`, with one shard, which has all clients and all keys in one thread.
#![allow(
    clippy::duplicate_mod,
    reason = "each file is a test program of its own elsewhere and brings its own support along"
)]

#[path = "bad_input.rs"]
mod bad_input;
#[path = "commands.rs"]
mod commands;
#[path = "kill.rs"]
mod kill;
#[path = "order.rs"]
mod order;
#[path = "stopping.rs"]
mod stopping;
