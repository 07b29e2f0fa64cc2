//! From bytes to lines: every way in which input can be cut.

use super::harness::{Server, pattern};
use crate::front::{Completions, FrontSettings, Receive};
use std::net::Shutdown;
use std::time::Duration;

fn with(receive: Receive) -> FrontSettings {
    FrontSettings { receive, buffers: 8, buffer_bytes: 256, ..FrontSettings::default() }
}

#[test]
fn a_split_at_every_byte_changes_nothing() {
    for receive in [Receive::Multishot, Receive::Single, Receive::Readiness] {
        let server = Server::start(with(receive));
        let mut client = server.client();
        let text = "#7 read one\r\n\n#\"x\" now two\nwrite three\n";
        for position in 1..text.len() {
            client.send(&text[..position]);
            std::thread::sleep(Duration::from_millis(1));
            client.send(&text[position..]);
            assert_eq!(client.line(), "{\"status\":\"success\",\"id\":7,\"result\":\"one\"}");
            assert_eq!(client.line(), "{\"status\":\"success\",\"id\":\"x\",\"result\":\"two\"}");
            assert_eq!(client.result(), "three");
        }
        for byte in text.split_inclusive(|_| true) {
            client.send(byte);
        }
        assert_eq!(client.line(), "{\"status\":\"success\",\"id\":7,\"result\":\"one\"}");
        assert_eq!(client.line(), "{\"status\":\"success\",\"id\":\"x\",\"result\":\"two\"}");
        assert_eq!(client.result(), "three");
        assert_eq!(server.input_bytes(), 0);
    }
}

#[test]
fn a_pipeline_of_ten_thousand_is_answered_in_order_by_every_way_of_completing() {
    for completions in [Completions::Deferred, Completions::Cooperative, Completions::Plain] {
        let server = Server::start(FrontSettings { completions, ..FrontSettings::default() });
        let mut client = server.client();
        let text: String =
            (0..10_000).map(|n| format!("{} {n}\n", ["read", "now", "write"][n % 3])).collect();
        let mut writer = client.stream.try_clone().unwrap();
        let sender =
            std::thread::spawn(move || std::io::Write::write_all(&mut writer, text.as_bytes()).unwrap());
        for n in 0..10_000 {
            assert_eq!(client.result(), n.to_string());
        }
        sender.join().unwrap();
        assert_eq!(server.counters().lines, 10_000);
    }
}

#[test]
fn long_lines_arrive_whole_among_short_ones() {
    for receive in [Receive::Multishot, Receive::Single, Receive::Readiness] {
        let server = Server::start(FrontSettings { receive, ..FrontSettings::default() });
        let mut client = server.client();
        let long = String::from_utf8(pattern(3 << 20)).unwrap();
        let text = format!("read a\nread {long}\nread b\n");
        let mut writer = client.stream.try_clone().unwrap();
        let sender =
            std::thread::spawn(move || std::io::Write::write_all(&mut writer, text.as_bytes()).unwrap());
        assert_eq!(client.result(), "a");
        assert!(client.result() == long);
        assert_eq!(client.result(), "b");
        sender.join().unwrap();
    }
}

#[test]
fn a_line_over_the_limit_is_refused_behind_the_replies_before_it() {
    let settings = FrontSettings { line_bytes_max: 4096, ..FrontSettings::default() };
    let server = Server::start(settings);
    let exact = "x".repeat(4096 - 5);
    for (over, finished) in [(1, true), (1, false), (500_000, false), (500_000, true)] {
        let mut client = server.client();
        client.send(&format!("read {exact}\r\nstall-read first\n"));
        assert_eq!(client.result(), exact, "a line of the limit's length passes");
        let mut line = "y".repeat(4097 + over);
        line += if finished { "\nread never\n" } else { "" };
        client.send(&line);
        server.until("the refusal", |counters| counters.long_line_closes > 0);
        assert!(server.input_bytes() <= 4096 + (16 << 10), "nothing is kept beyond the limit");
        server.release();
        assert_eq!(client.result(), "first");
        client.error("TOO_LARGE");
        client.ends();
    }
    assert_eq!(server.counters().long_line_closes, 4);
    assert!(!server.seen().iter().any(|line| line == "read never"));
}

#[test]
fn a_client_that_shuts_its_writing_side_still_gets_every_reply() {
    let server = Server::start(FrontSettings::default());
    let mut client = server.client();
    let text: String = (0..3000).map(|n| format!("read {n}\n")).collect();
    client.send(&format!("{text}stall-read last\n"));
    client.stream.shutdown(Shutdown::Write).unwrap();
    for n in 0..3000 {
        assert_eq!(client.result(), n.to_string());
    }
    server.release();
    assert_eq!(client.result(), "last");
    client.ends();
    server.until("the close", |counters| counters.open == 0);
}

#[test]
fn a_last_line_without_its_end_is_refused_not_run() {
    let server = Server::start(FrontSettings::default());
    let mut client = server.client();
    client.send("read a\nread b");
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.result(), "a");
    client.error("BAD_REQUEST");
    client.ends();
    assert_eq!(server.seen(), ["read a"]);
}
