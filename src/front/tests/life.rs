//! Connections from accept to close.

use super::harness::{Client, Server};
use crate::front::{FrontSettings, Listeners};
use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

#[test]
fn five_hundred_connections_live_beside_each_other() {
    let server = Server::start(FrontSettings::default());
    let mut clients: Vec<Client> = (0..500).map(|_| server.client()).collect();
    for round in 0..3 {
        for (n, client) in clients.iter_mut().enumerate() {
            client.send(&format!("read {round}-{n}\n"));
        }
        for (n, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.result(), format!("{round}-{n}"));
        }
    }
    assert_eq!(server.counters().open, 500);
    drop(clients);
    let counters = server.until("the close", |counters| counters.open == 0);
    assert_eq!((counters.accepted, counters.closed), (500, 500));
}

#[test]
fn a_reply_for_a_closed_connection_goes_nowhere() {
    let server = Server::start(FrontSettings::default());
    let mut first = server.client();
    first.send("stall-read old\n");
    server.until("the line", |counters| counters.lines == 1);
    // Not half-closed but gone: the next bytes towards it are answered with a reset.
    drop(first);
    server.until("the end", |counters| counters.bytes_in > 0);
    let mut second = server.client();
    second.send("now one\n");
    assert_eq!(second.result(), "one");
    server.release();
    second.send("read two\n");
    assert_eq!(second.result(), "two");
    server.until("the close", |counters| counters.open == 1);
}

#[test]
fn a_reset_voids_the_tokens_of_its_requests() {
    let server = Server::start(FrontSettings::default());
    let first = server.client();
    let mut writer = &first.stream;
    writer.write_all(b"unordered\nstall-read old\n").unwrap();
    server.until("the lines", |counters| counters.lines == 2);
    // Closing with a reply that was received and never read makes the peer see a reset.
    assert_eq!(first.stream.peek(&mut [0]).unwrap(), 1);
    drop(first);
    server.until("the reset", |counters| counters.open == 0);
    let mut second = server.client();
    second.send("now one\n");
    assert_eq!(second.result(), "one");
    server.release();
    server.until("the late reply", |counters| counters.late_replies == 1);
    second.send("read two\n");
    assert_eq!(second.result(), "two");
}

#[test]
fn a_handler_can_close_behind_the_replies_under_way() {
    let server = Server::start(FrontSettings::default());
    let mut client = server.client();
    client.send("stall-read a\nclose\nread never\n");
    server.until("the line", |counters| counters.lines == 1);
    server.release();
    assert_eq!(client.result(), "a");
    client.ends();
    assert_eq!(server.seen(), ["stall-read a"]);
}

#[test]
fn a_taken_port_is_an_error() {
    let server = Server::start(FrontSettings::default());
    let error = Listeners::bind(&[server.address], 16).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    let both = Listeners::bind(&["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()], 16).unwrap();
    assert_eq!(both.addresses().unwrap().len(), 2);
}

#[test]
fn a_stop_drains_what_is_under_way() {
    let server = Server::start(FrontSettings::default());
    let mut client = server.client();
    client.send("stall-read a\n");
    server.until("the line", |counters| counters.lines == 1);
    server.stop_accepting();
    server.until("the next turn", |counters| counters.turns > 0);
    std::thread::sleep(Duration::from_millis(50));
    assert!(TcpStream::connect(server.address).is_err(), "nobody listens");
    assert!(!server.is_drained());
    server.release();
    assert_eq!(client.result(), "a");
    client.send("read b\n");
    assert_eq!(client.result(), "b", "connections live on");
    // The reply is here before the ring has said so.
    while !server.is_drained() {
        std::thread::sleep(Duration::from_millis(1));
    }
    server.close_all();
    client.ends();
    drop(client);
    server.until("the close", |counters| counters.open == 0);
}

#[test]
fn a_resting_connection_is_closed_when_that_is_wanted() {
    let server = Server::start(FrontSettings { idle_ms_max: 200, ..FrontSettings::default() });
    let mut client = server.client();
    client.send("read a\n");
    assert_eq!(client.result(), "a");
    client.ends();
    assert_eq!(server.counters().idle_closes, 1);
}

#[test]
fn a_front_dropped_amid_traffic_lets_go_of_its_sockets() {
    let server = Server::start(FrontSettings::default());
    let mut clients: Vec<Client> = (0..20).map(|_| server.client()).collect();
    for client in &mut clients {
        client.send("big 5000000\nread after\n");
    }
    server.until("the lines", |counters| counters.lines >= 20);
    drop(server);
    for client in &mut clients {
        assert!(client.is_gone());
    }
}
