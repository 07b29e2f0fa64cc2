//! Every bound, reached and held.

use super::harness::{Client, Server, pattern};
use crate::front::FrontSettings;
use std::io::Read;
use std::time::{Duration, Instant};

#[test]
fn requests_in_flight_are_bounded() {
    for ordered in [true, false] {
        let server = Server::start(FrontSettings { in_flight_max: 8, ..FrontSettings::default() });
        let mut client = server.client();
        if !ordered {
            client.send("unordered\n");
            assert_eq!(client.line(), "{\"status\":\"success\",\"result\":\"OK\"}");
        }
        let before = server.seen().len();
        client.send(&(0..100).map(|n| format!("stall-read {n}\n")).collect::<String>());
        server.until("the bound", |counters| counters.holds_in_flight > 0);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(server.seen().len() - before, 8);
        server.release();
        for n in 0..100 {
            assert_eq!(client.result(), n.to_string());
        }
    }
}

#[test]
fn a_client_that_reads_nothing_is_stopped_and_then_closed_alone() {
    let settings = FrontSettings { write_stall_ms_max: 400, ..FrontSettings::default() };
    let server = Server::start(settings);
    let mut deaf = server.client();
    deaf.send(&"copy 100000\n".repeat(1000));
    let counters = server.until("the stop", |counters| counters.holds_unsent > 0);
    assert_eq!(counters.slow_reader_closes, 0);
    let mut other = server.client();
    other.send("read fine\n");
    assert_eq!(other.result(), "fine");
    server.until("the close", |counters| counters.slow_reader_closes == 1 && counters.open == 1);
    // What the kernel's buffers took, plus the bound, plus the batch in which it was reached.
    assert!(server.seen().len() < 400, "{}", server.seen().len());
    assert!(deaf.is_gone());
    other.send("read still\n");
    assert_eq!(other.result(), "still");
}

#[test]
fn a_slow_reader_gets_large_shared_values_whole() {
    let server = Server::start(FrontSettings::default());
    let mut client = server.client();
    const SIZE: usize = 8 << 20;
    client.send(&format!("#1 big {SIZE}\n#2 read small\n#3 big {SIZE}\n#4 big 5\n"));
    let mut all = Vec::new();
    let mut part = vec![0; 300_000];
    let tail = b"{\"status\":\"success\",\"id\":4,\"result\":abcde}\n";
    while !all.ends_with(tail) {
        let count = client.stream.read(&mut part).unwrap();
        assert!(count > 0);
        all.extend_from_slice(&part[..count]);
        std::thread::sleep(Duration::from_micros(500));
    }
    let value = pattern(SIZE);
    let mut expected = b"{\"status\":\"success\",\"id\":1,\"result\":".to_vec();
    expected.extend_from_slice(&value);
    expected.extend_from_slice(b"}\n{\"status\":\"success\",\"id\":2,\"result\":\"small\"}\n");
    expected.extend_from_slice(b"{\"status\":\"success\",\"id\":3,\"result\":");
    expected.extend_from_slice(&value);
    expected.extend_from_slice(b"}\n");
    expected.extend_from_slice(tail);
    assert!(all == expected, "every byte in its place");
    assert_eq!(server.counters().bytes_out, expected.len() as u64);
}

#[test]
fn half_a_line_and_then_nothing_is_closed_with_a_word() {
    let settings = FrontSettings { line_idle_ms_max: 200, ..FrontSettings::default() };
    let server = Server::start(settings);
    let (mut half, mut idle) = (server.client(), server.client());
    half.send("read done\nread ha");
    assert_eq!(half.result(), "done");
    let started = Instant::now();
    half.error("BAD_REQUEST");
    assert!(started.elapsed() >= Duration::from_millis(150), "not before its time");
    half.ends();
    idle.send("read fine\n");
    assert_eq!(idle.result(), "fine", "a connection at rest stays");
    assert_eq!(server.counters().slow_line_closes, 1);
}

#[test]
fn a_line_that_drips_is_closed_though_it_never_pauses() {
    let settings =
        FrontSettings { line_idle_ms_max: 200, line_bytes_per_s_min: 10_000, ..FrontSettings::default() };
    let server = Server::start(settings);
    let mut client = server.client();
    let started = Instant::now();
    while server.counters().slow_line_closes == 0 {
        assert!(started.elapsed() < Duration::from_secs(10));
        client.send("x");
        std::thread::sleep(Duration::from_millis(20));
    }
    client.error("BAD_REQUEST");
    client.ends();
}

#[test]
fn a_held_line_is_not_taken_for_a_slow_one() {
    let settings = FrontSettings { line_idle_ms_max: 100, ..FrontSettings::default() };
    let server = Server::start(settings);
    let mut client = server.client();
    client.send("stall-scatter a\nwrite b\nread c");
    std::thread::sleep(Duration::from_millis(400));
    client.send("d\n");
    server.release();
    for expected in ["a", "b", "cd"] {
        assert_eq!(client.result(), expected);
    }
}

#[test]
fn unfinished_input_of_all_connections_has_one_budget() {
    let settings =
        FrontSettings { line_bytes_max: 100_000, unfinished_bytes_max: 150_000, ..FrontSettings::default() };
    let server = Server::start(settings);
    let (mut small, mut large, mut last) = (server.client(), server.client(), server.client());
    small.send(&format!("read {}", "s".repeat(50_000)));
    large.send(&format!("read {}", "l".repeat(80_000)));
    while server.input_bytes() < 130_000 {
        std::thread::sleep(Duration::from_millis(2));
    }
    last.send(&format!("read {}", "t".repeat(30_000)));
    large.error("OVERLOADED");
    large.ends();
    assert_eq!(server.counters().input_budget_closes, 1);
    small.send("\n");
    last.send("\n");
    assert_eq!(small.result().len(), 50_000);
    assert_eq!(last.result().len(), 30_000);
    assert_eq!(server.input_bytes(), 0);
}

#[test]
fn one_connection_too_many_is_told_so() {
    let settings = FrontSettings { connections_max: 2, linger_ms_max: 300, ..FrontSettings::default() };
    let server = Server::start(settings);
    let mut kept: Vec<Client> = (0..2).map(|_| server.client()).collect();
    for client in &mut kept {
        client.send("read in\n");
        assert_eq!(client.result(), "in");
    }
    for _ in 0..5 {
        let mut refused = server.client();
        refused.send("read never\n");
        refused.error("OVERLOADED");
        refused.ends();
    }
    // Refused clients that never close are dropped when their time is over.
    server.until("the close", |counters| counters.open == 2);
    let counters = server.counters();
    assert_eq!((counters.accepted, counters.refused), (2, 5));
    drop(kept.pop());
    server.until("the place", |counters| counters.open == 1);
    let mut next = server.client();
    next.send("read in\n");
    assert_eq!(next.result(), "in");
}

#[test]
fn a_deep_pipeliner_does_not_starve_the_others() {
    let settings = FrontSettings { lines_per_turn_max: 10, ..FrontSettings::default() };
    let server = Server::start(settings);
    let mut deep = server.client();
    deep.send(&(0..5000).map(|_| "now deep\n").collect::<String>());
    let mut other = server.client();
    other.send("read other\n");
    assert_eq!(other.result(), "other");
    for _ in 0..5000 {
        assert_eq!(deep.result(), "deep");
    }
    let counters = server.counters();
    assert!(counters.turns >= 500, "ten lines a turn: {}", counters.turns);
}
