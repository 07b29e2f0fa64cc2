//! Bad input on the cluster port: bytes that are no frame, lengths beyond every bound, old versions, strangers, frames
//! played again. All of it is refused and counted, and nothing grows.

mod support;

use serde_json::json;
use shards::ids::NodeNumber;
use shards::log::payload::PayloadBuffer;
use shards::peer::frame::{FrameWriter, HEADER_BYTES, Kind};
use shards::peer::hello::{Card, Hello, Purpose};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use support::cluster::Trio;
use support::random::Random;
use support::{eventually, timed};

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("the cluster port listens");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout can be set");
    stream
}

/// Sends bytes and waits until the node has closed the connection; what it said before.
fn refused(port: u16, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(port);
    // The node may close before it has read all.
    let _ = stream.write_all(bytes);
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    said
}

fn hello(change: impl FnOnce(&mut Hello)) -> Vec<u8> {
    let card = Card {
        id: "stranger".into(),
        number: 9,
        incarnation: 5,
        shards: 1,
        host: "h".into(),
        port: 1,
        cluster_port: 2,
    };
    let mut hello = Hello {
        protocols: (1, 1),
        cluster: 77,
        card,
        to: NodeNumber(1),
        purpose: Purpose::Control,
        nonce: 1,
    };
    change(&mut hello);
    let (mut payload, mut bytes) = (PayloadBuffer::new(), Vec::new());
    hello.encode(&mut payload);
    FrameWriter::new(hello.cluster, 0).push(&mut bytes, Kind::Hello, &payload);
    bytes
}

#[test]
fn whatever_comes_is_refused_and_counted() {
    let _timed = timed("bad input on the cluster port");
    let trio = Trio::new("cluster-port", &["--shards", "1"]);
    let node = trio.spawn_alone(0);
    node.until_it_answers();
    let port = trio.cluster_port(0);
    let memory_before = node.resident_bytes();
    let mut random = Random::new(7);

    for round in 0..300_usize {
        let mut bytes: Vec<u8> = (0..random.below(3000) + 1).map(|_| random.below(256) as u8).collect();
        if round % 3 == 0 {
            bytes.splice(0..0, *b"STRF\x01");
        }
        refused(port, &bytes);
    }
    let mut flipped = hello(|_| {});
    for bit in (0..flipped.len() * 8).step_by(13) {
        flipped[bit / 8] ^= 1 << (bit % 8);
        refused(port, &flipped);
        flipped[bit / 8] ^= 1 << (bit % 8);
    }

    let mut old = hello(|_| {});
    old[4] = 0;
    refused(port, &old);
    refused(port, &hello(|hello| hello.protocols = (7, 9)));
    refused(port, &hello(|_| {}));
    let mut oversize = Vec::new();
    FrameWriter::new(77, 0).push(&mut oversize, Kind::Hello, &vec![0; 1 << 20]);
    refused(port, &oversize[..HEADER_BYTES + 5000]);

    // A caller who is let in, as a blank node may be, and who plays its own frame again or one of another connection.
    let blank = hello(|hello| (hello.cluster, hello.card.number, hello.purpose) = (0, 0, Purpose::Founding));
    let mut twice = blank.clone();
    twice.extend_from_slice(&blank);
    refused(port, &twice);

    // Silent callers are let go.
    let mut silent = connect(port);
    assert_eq!(silent.read(&mut [0; 1]).expect("the node closes"), 0);

    eventually("INFO counts them", Duration::from_secs(5), || {
        let peers = node.ask(&json!({"command": "INFO"}))["result"]["peers"].clone();
        let figure = |name: &str| peers[name].as_u64().unwrap_or(0);
        figure("damaged_frames") >= 300
            && figure("refused_version") >= 2
            && figure("refused_cluster") >= 1
            && figure("oversize_frames") >= 1
            && figure("replayed_frames") >= 1
            && figure("silent") >= 1
    });
    let grown = node.resident_bytes().saturating_sub(memory_before);
    assert!(grown < 16 << 20, "memory grew by {grown} bytes");
    assert_eq!(node.ask_until_success(&json!({"command": "SET", "key": "k", "value": 1}))["result"], "OK");
    node.stop();
}
