//! What holds with a router's thread holds when shards serve clients themselves: the tests of other files, run again with
//! `router.mode = "inline"` (`support/server.rs` sees to that by this program's name), on as many shards as they ask for.
#![allow(
    clippy::duplicate_mod,
    reason = "each file is a test program of its own elsewhere and brings its own support along"
)]

#[path = "bad_input.rs"]
mod bad_input;
#[path = "cluster_life.rs"]
mod cluster_life;
#[path = "commands.rs"]
mod commands;
#[path = "durability.rs"]
mod durability;
#[path = "examples.rs"]
mod examples;
#[path = "kill.rs"]
mod kill;
#[path = "order.rs"]
mod order;
#[path = "search.rs"]
mod search;
#[path = "stopping.rs"]
mod stopping;
