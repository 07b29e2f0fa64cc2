//! What the client front costs per request: an echo router behind a real front, and a load generator on a second thread.
//!
//! Prints requests a second and the front thread's CPU time per request for 50 connections at several pipeline depths.
//! CPU time comes from the scheduler's accounting of the thread, so it holds on a busy machine where rates do not.
//! `FRONT_BENCH_SECONDS`, `FRONT_BENCH_RECEIVE` (multishot, single, readiness) and `FRONT_BENCH_COMPLETIONS` (deferred,
//! cooperative, plain) choose what is measured.
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

#[path = "../src/doorbell.rs"]
mod doorbell;
#[path = "../src/front/mod.rs"]
mod front;

use doorbell::Doorbell;
use front::{
    Class, Completions, Front, FrontCounters, FrontSettings, Handled, LineAt, LineHandler, Listeners,
    Receive, ReplySink, Wait,
};
use shards::batch::ReplyKind;
use shards::ids::{Millis, Token};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const CONNECTIONS: usize = 50;

/// Takes every line and answers it in the same turn, as a router with an instant shard would.
#[derive(Default)]
struct Echo {
    taken: Vec<Token>,
}

impl LineHandler for Echo {
    fn line<'l>(&mut self, at: &mut LineAt<'_>, _line: &'l [u8]) -> Handled<'l> {
        if !at.admits(Class::SingleRead) {
            return Handled::Hold(Class::SingleRead);
        }
        self.taken.push(at.token());
        Handled::Taken { class: Class::SingleRead, id: b"" }
    }

    fn flush(&mut self) {}

    fn poll(&mut self, sink: &mut ReplySink<'_>) -> bool {
        let any = !self.taken.is_empty();
        for token in self.taken.drain(..) {
            sink.complete(token, ReplyKind::Success, b"\"result\":\"value:0123456789\"", None);
        }
        any
    }

    fn has_work(&mut self) -> bool {
        !self.taken.is_empty()
    }
}

fn settings() -> FrontSettings {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let receive = match variable("FRONT_BENCH_RECEIVE").as_str() {
        "single" => Receive::Single,
        "readiness" => Receive::Readiness,
        _ => Receive::Multishot,
    };
    let completions = match variable("FRONT_BENCH_COMPLETIONS").as_str() {
        "cooperative" => Completions::Cooperative,
        "plain" => Completions::Plain,
        _ => Completions::Deferred,
    };
    FrontSettings { receive, completions, ..FrontSettings::default() }
}

/// Nanoseconds that the calling thread was on a processor.
fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}

/// Keeps every connection `depth` requests deep until told to stop; returns the replies seen.
fn load(address: SocketAddr, depth: usize, seconds: f64) -> (u64, f64) {
    let request = b"{\"command\":\"GET\",\"key\":\"key:000000000123\"}\n".repeat(depth);
    let mut streams: Vec<TcpStream> =
        (0..CONNECTIONS).map(|_| TcpStream::connect(address).unwrap()).collect();
    for stream in &mut streams {
        stream.set_nodelay(true).unwrap();
        stream.write_all(&request).unwrap();
    }
    let (mut replies, mut buffer, started) = (0u64, vec![0; 64 << 10], Instant::now());
    let end = started + Duration::from_secs_f64(seconds);
    while Instant::now() < end {
        for stream in &mut streams {
            let mut missing = depth;
            while missing > 0 {
                let count = stream.read(&mut buffer).unwrap();
                assert!(count > 0, "the front keeps the connection");
                missing -= memchr::memchr_iter(b'\n', &buffer[..count]).count();
            }
            replies += depth as u64;
            stream.write_all(&request).unwrap();
        }
    }
    (replies, started.elapsed().as_secs_f64())
}

/// Runs a front until told to stop; returns its CPU time and counters.
fn serve(listeners: Listeners, bell: Arc<Doorbell>, stop: &AtomicBool) -> (u64, FrontCounters) {
    let origin = Instant::now();
    let clock = move || Millis(origin.elapsed().as_millis() as u64);
    let mut front = Front::open(settings(), listeners, bell, clock).unwrap();
    let mut echo = Echo::default();
    let before = cpu_ns();
    while !stop.load(Ordering::Relaxed) {
        let until = Millis(origin.elapsed().as_millis() as u64 + 50);
        front.turn(&mut echo, Wait::Until(until)).unwrap();
    }
    (cpu_ns() - before, front.counters())
}

fn main() {
    let seconds = std::env::var("FRONT_BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2.0);
    println!("depth  requests/s  front CPU ns/request  requests/turn  enters/turn");
    for depth in [1, 16, 64] {
        let listeners = Listeners::bind(&["127.0.0.1:0".parse().unwrap()], 1024).unwrap();
        let address = listeners.addresses().unwrap()[0];
        let stop = Arc::new(AtomicBool::new(false));
        let bell = Doorbell::new().unwrap();
        let server = {
            let (stop, bell) = (Arc::clone(&stop), Arc::clone(&bell));
            std::thread::spawn(move || serve(listeners, bell, &stop))
        };
        let (replies, elapsed) = load(address, depth, seconds);
        stop.store(true, Ordering::Relaxed);
        bell.ring();
        let (cpu, counters) = server.join().unwrap();
        println!(
            "{depth:>5}  {:>10.0}  {:>20.0}  {:>13.1}  {:>11.2}",
            replies as f64 / elapsed,
            cpu as f64 / counters.lines as f64,
            counters.lines as f64 / counters.turns as f64,
            counters.enters as f64 / counters.turns as f64,
        );
    }
}
