//! Reply order and holds over the wire.

use super::harness::{Client, Server};
use crate::front::FrontSettings;
use std::sync::atomic::Ordering;

fn id_of(line: &str) -> usize {
    let rest = line.strip_prefix("{\"status\":\"success\",\"id\":").unwrap();
    rest.split(',').next().unwrap().parse().unwrap()
}

fn ids(client: &mut Client, count: usize) -> Vec<usize> {
    (0..count).map(|_| id_of(&client.line())).collect()
}

#[test]
fn replies_keep_the_order_of_requests_whatever_completes_first() {
    let server = Server::start(FrontSettings::default());
    server.control.scramble.store(true, Ordering::SeqCst);
    let mut client = server.client();
    let text: String = (0..2000).map(|n| format!("#{n} {} {n}\n", ["read", "now", "big"][n % 3])).collect();
    client.send(&text);
    assert_eq!(ids(&mut client, 2000), (0..2000).collect::<Vec<_>>());
}

#[test]
fn unordered_replies_overtake_and_none_is_lost() {
    let server = Server::start(FrontSettings::default());
    server.control.scramble.store(true, Ordering::SeqCst);
    let mut client = server.client();
    client.send("read before\nunordered\nflags\n");
    assert_eq!(client.result(), "before");
    assert_eq!(client.line(), "{\"status\":\"success\",\"result\":\"OK\"}");
    assert_eq!(client.line(), "{\"status\":\"success\",\"result\":7}");
    client.send(&(0..2000).map(|n| format!("#{n} read {n}\n")).collect::<String>());
    let mut seen = ids(&mut client, 2000);
    assert!(!seen.is_sorted(), "the script scrambles");
    seen.sort_unstable();
    assert_eq!(seen, (0..2000).collect::<Vec<_>>());
}

/// Sends lines of which the first stalls; tells which were taken before its reply, and that all are answered in order.
fn check(lines: &[&str], taken_before: &[&str]) {
    let server = Server::start(FrontSettings::default());
    let mut client = server.client();
    client.send(&(lines.join("\n") + "\n"));
    let mut probe = server.client();
    server.until("the hold", |counters| counters.holds > 0 || taken_before.len() == lines.len());
    probe.send("now probe\n");
    assert_eq!(probe.result(), "probe");
    let mut seen = server.seen();
    seen.retain(|line| line != "now probe");
    assert_eq!(seen, taken_before);
    server.release();
    for line in lines {
        assert_eq!(client.result(), line.split(' ').nth(1).unwrap());
    }
}

#[test]
fn classes_hold_each_other_as_the_protocol_says() {
    check(&["stall-scatter a", "read b", "write c", "read d"], &["stall-scatter a", "read b"]);
    check(&["stall-barrier a", "read b"], &["stall-barrier a"]);
    check(&["stall-read a", "write b", "barrier c", "read d"], &["stall-read a", "write b"]);
    check(&["stall-write a", "scatter b", "read c"], &["stall-write a", "scatter b", "read c"]);
}

#[test]
fn a_line_waits_for_room_at_a_shard() {
    let server = Server::start(FrontSettings::default());
    let (mut first, mut second) = (server.client(), server.client());
    first.send("room a\nread b\n");
    second.send("room c\n");
    server.until("the hold", |counters| counters.holds_for_room >= 2);
    assert!(server.seen().is_empty());
    server.make_room();
    assert_eq!((first.result(), first.result()), ("a".into(), "b".into()));
    assert_eq!(second.result(), "c");
}
