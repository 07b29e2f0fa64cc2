//! Prints what parsing and answering one request costs, in nanoseconds: the median of several rounds.
//!
//! `cargo run --release -p strand-wire --example parse_cost`. It measures one thread with warm caches and nothing else.

#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::hint::black_box;
use std::time::Instant;
use strand_wire::limits::Limits;
use strand_wire::{reply, request};

fn measure(name: &str, mut work: impl FnMut()) {
    const ROUNDS: usize = 31;
    const ITERATIONS: u32 = 20_000;
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..ITERATIONS {
                work();
            }
            start.elapsed().as_nanos() as f64 / f64::from(ITERATIONS)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    println!("{name:32} {:8.1} ns (least {:.1})", rounds[ROUNDS / 2], rounds[0]);
}

fn measure_line(name: &str, line: &str) {
    let limits = Limits::default();
    assert!(request::parse(line.as_bytes(), &limits).is_ok(), "{name} is a request");
    measure(&format!("{name} ({} B)", line.len()), || {
        black_box(request::parse(black_box(line.as_bytes()), &limits).is_ok());
    });
}

fn set(value: &str) -> String {
    format!(r#"{{"command":"SET","key":"user:000000000123","value":{value}}}"#)
}

fn main() {
    let frame = set("\"\"").len();
    measure_line("SET", &set(&format!("\"{}\"", "x".repeat(100 - frame))));
    measure_line("SET", &set(&format!("\"{}\"", "x".repeat(1024 - frame))));
    measure_line("SET, not ASCII", &set(&format!("\"{}\"", "ä".repeat(512 - frame / 2))));
    measure_line("SET, nested", &set(&format!("[{}]", vec![r#"{"name":"abc","count":12}"#; 37].join(","))));
    let plain = set(&format!("\"{}\"", "x".repeat(40)));
    let body = plain.trim_end_matches('}');
    measure_line("SET with id", &format!("{body},\"id\":123456}}"));
    measure_line("SET with client and seq", &format!("{body},\"client\":\"c1\",\"seq\":123456}}"));
    measure_line("SET with ttl_ms", &format!("{body},\"ttl_ms\":60000}}"));
    measure_line("SET, general path", &format!("{body},\"debug\":false}}"));
    measure_line("GET", r#"{"command":"GET","key":"user:000000000123"}"#);
    measure_line("INCR", r#"{"command":"INCR","key":"user:000000000123","amount":5}"#);
    let items: Vec<String> = (0..100).map(|n| format!("\"user:{n:012}\":\"{}\"", "x".repeat(80))).collect();
    measure_line("BULK_SET of 100", &format!(r#"{{"command":"BULK_SET","items":{{{}}}}}"#, items.join(",")));
    let items: Vec<String> = (0..10_000).map(|n| format!("\"user:{n:012}\":{n}")).collect();
    measure_batch(&format!(r#"{{"command":"BULK_SET","items":{{{}}}}}"#, items.join(",")));

    let mut out = Vec::with_capacity(1 << 20);
    measure("reply OK", || {
        out.clear();
        reply::ok(black_box(&mut out), None);
    });
    let token = format!("\"{}\"", "x".repeat(62));
    measure("reply of 64 B with id", || {
        out.clear();
        reply::result(black_box(&mut out), Some(b"123456"), black_box(token.as_bytes()));
    });
    measure("reply of an integer", || {
        out.clear();
        reply::push_signed(black_box(&mut out), black_box(-123_456_789));
    });
}

/// One large batch, a few times only.
fn measure_batch(line: &str) {
    let limits = Limits::default();
    let start = Instant::now();
    for _ in 0..20 {
        black_box(request::parse(black_box(line.as_bytes()), &limits).is_ok());
    }
    let total = start.elapsed().as_nanos() as f64 / 20.0;
    println!("{:32} {:8.1} ns an item", "BULK_SET of 10,000", total / 10_000.0);
}
