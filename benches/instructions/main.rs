//! Sends a known number of requests through a whole server without disk, so that their instructions can be counted.
//!
//! ```text
//! instructions list              the cases, a name a line
//! instructions CASE SHARDS       runs one; prints how many requests and rounds were measured
//! ```
//!
//! `make bench-check` runs it under `valgrind --tool=callgrind`, which collects only inside [`server::Server::measured_turn`].
//! Everything stands in one thread on a clock that does not move, with fixed seeds, so that two runs count the same up to
//! what the kernel does. It measures no time and depends on none.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measuring tool fails loudly and prints its figures"
)]
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "the modules are the server's; a measurement uses part of them"
)]

#[path = "../../src/clock.rs"]
mod clock;
#[path = "../../src/disk/mod.rs"]
mod disk;
#[path = "../../src/doorbell.rs"]
mod doorbell;
#[path = "../../src/fatal.rs"]
mod fatal;
#[path = "../../src/front/mod.rs"]
mod front;
#[path = "../../src/links.rs"]
mod links;
#[path = "../../src/peer/mod.rs"]
mod peer;
#[path = "../../src/router/mod.rs"]
mod router;
#[path = "../../src/sys.rs"]
mod sys;
#[path = "../../src/tuning/mod.rs"]
mod tuning;

mod cases;
mod server;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["list"] => cases::CASES.iter().for_each(|case| println!("{}", case.name)),
        [name, shards] => {
            let case = cases::CASES.iter().find(|case| case.name == name);
            let case = case.unwrap_or_else(|| panic!("{name} is no case: `instructions list` names them"));
            let shards = shards.parse().expect("SHARDS is a number");
            let (requests, turns) = case.run(shards);
            println!("{{\"requests\":{requests},\"turns\":{turns}}}");
        }
        _ => panic!("usage: instructions list | instructions CASE SHARDS"),
    }
}
