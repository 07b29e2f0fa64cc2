//! Holds that front, router and links allocate for batches and never for requests: from socket to socket.
#![allow(unsafe_code, reason = "a counting allocator has to be one")]

use super::world::{Client, World};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fmt::Write as _;

struct Counting;

thread_local! {
    static TAKEN: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    TAKEN.with(|taken| taken.set(taken.get() + 1));
}

// SAFETY: every call goes to the system's allocator with the arguments it came with; the counter owns no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the promises of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the pointer came from this allocator with the same layout, and the caller keeps the promises of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from this allocator with the same layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Requests of one round, all of them on their way at once.
const REQUESTS: usize = 256;
const ROUNDS: u64 = 40;

fn round(world: &mut World, client: &mut Client, lines: &[u8]) {
    client.send_bytes(lines);
    let mut answered = 0;
    while answered < REQUESTS {
        world.turn();
        answered += client.lines_passed();
    }
}

#[test]
fn a_request_takes_no_memory_of_its_own() {
    let mut world = World::with(1, 1024, super::RouterSettings::default());
    let mut client = world.connect();
    for command in ["SET", "GET", "INCR"] {
        let mut lines = String::new();
        for number in 0..REQUESTS {
            let (key, value) = match command {
                "SET" => (format!("s{number:04}"), ",\"value\":\"0123456789012345678901234567890123456789\""),
                "GET" => (format!("s{number:04}"), ""),
                _ => (format!("n{number:04}"), ",\"amount\":0"),
            };
            writeln!(lines, "{{\"command\":\"{command}\",\"key\":\"{key}\"{value}}}").unwrap();
        }
        for _ in 0..10 {
            round(&mut world, &mut client, lines.as_bytes());
        }
        let before = TAKEN.with(Cell::get);
        for _ in 0..ROUNDS {
            round(&mut world, &mut client, lines.as_bytes());
        }
        let each = (TAKEN.with(Cell::get) - before) / ROUNDS;
        println!("{command}: {each} allocations for a round of {REQUESTS} requests");
        // The world makes new effects for each step, so this is of batches: some dozens, whatever the requests are.
        assert!(each <= REQUESTS as u64 / 2, "{command}: {each} allocations for {REQUESTS} requests");
    }
}
