//! Bad input on the cluster port: bytes that are no frame, lengths beyond every bound, old versions, strangers, frames
//! played again. All of it is refused and counted, and nothing grows.

mod support;

use serde_json::{Value, json};
use shards::ids::{GroupId, NodeNumber};
use shards::log::payload::PayloadBuffer;
use shards::peer::frame::{Expected, FrameReader, FrameWriter, HANDSHAKE_BYTES_MAX, HEADER_BYTES, Kind};
use shards::peer::hello::{Card, Hello, Purpose};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;
use support::client::Connection;
use support::cluster::Trio;
use support::random::Random;
use support::tap::{Recording, Tap};
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

/// The hello that a recorded conversation began with.
fn hello_of(said: &[u8]) -> Option<Hello> {
    let expected = Expected { cluster: None, session: 0, payload_bytes_max: HANDSHAKE_BYTES_MAX };
    let mut reader = FrameReader::new(expected);
    reader.space(said.len())[..said.len()].copy_from_slice(said);
    reader.filled(said.len());
    let frame = reader.next().ok()??;
    Hello::decode(frame.payload, &mut PayloadBuffer::new()).ok()
}

/// Plays bytes to a node and waits until it closes, or has nothing more to say; what it answered.
fn play(host: Ipv4Addr, port: u16, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect((host, port)).expect("the cluster port listens");
    stream.set_read_timeout(Some(Duration::from_secs(3))).expect("a timeout can be set");
    // The node may close before it has read all.
    let _ = stream.write_all(bytes);
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    said
}

/// What a replica says that must not change: term, commit index, applied index, keys.
fn state(port: (Ipv4Addr, u16)) -> Vec<Value> {
    let mut connection = Connection::open_at(port.0, port.1).expect("the node listens");
    let info = connection.ask(&json!({"command": "INFO"}));
    let shard = &info["result"]["shards"][0];
    ["term", "commit_index", "applied_index", "keys"].map(|name| shard[name].clone()).to_vec()
}

fn peers((host, port): (Ipv4Addr, u16), name: &str) -> u64 {
    let mut connection = Connection::open_at(host, port).expect("the node listens");
    connection.ask(&json!({"command": "INFO"}))["result"]["peers"][name].as_u64().unwrap_or(0)
}

/// A whole conversation of a real link, byte for byte as it was, is played again: to the node that it was held with while the
/// link is there, to other nodes, after its caller has been started again, and to a caller that expects the node.
///
/// The node that is listened to listens at one address and is told to the others at another, where the tap is. So this also shows
/// that nodes are found where the cluster says they are, though they are seen to speak from elsewhere.
#[test]
fn a_recorded_conversation_is_of_no_use_again() {
    let _timed = timed("recorded conversations played again");
    let [node, tapped] = [Ipv4Addr::new(127, 0, 0, 12), Ipv4Addr::new(127, 0, 0, 22)];
    let trio = Trio::new("cluster-replay", &["--shards", "1"]);
    let [first, second, third] = [0, 1, 2].map(|at| trio.spawn(at));
    for one in [&first, &second, &third] {
        one.until_it_answers();
        one.ask_until_success(&json!({"command": "GET", "key": "any"}));
    }
    second.stop();
    let (port, cluster_port) = (trio.port(1), trio.cluster_port(1));
    let tap = Tap::start((tapped, cluster_port), (node, cluster_port));
    let more = ["--host", "127.0.0.12", "--advertise", "127.0.0.22"];
    let mut second = trio.spawn_at(1, port, cluster_port, &more);
    let lead = json!({"command": "TRANSFER_LEADER", "node": "n1", "shard": 0});
    eventually("the first leads", Duration::from_secs(30), || {
        first.ask(&lead);
        first.ask(&json!({"command": "CLUSTER"}))["result"]["groups"][0]["leader"] == "n1"
    });
    eventually("all know where the second is", Duration::from_secs(30), || {
        let nodes =
            [&first, &third].map(|one| one.ask(&json!({"command": "CLUSTER"}))["result"]["nodes"][1].clone());
        nodes.iter().all(|second| second["address"] == format!("127.0.0.22:{port}"))
    });
    let links = |purpose: Purpose| {
        let of = move |one: &Recording| hello_of(&one.said).is_some_and(|hello| hello.purpose == purpose);
        tap.recordings().into_iter().filter(of).collect::<Vec<_>>()
    };
    let counted = || {
        let count = json!({"command": "INCR", "key": "n", "timeout_ms": 5000});
        first.ask_until_success(&count)["result"].as_u64().expect("a number")
    };
    let mut count = counted();
    eventually("the leader's link is recorded, entries and all", Duration::from_secs(30), || {
        count = counted();
        links(Purpose::Raft(GroupId(0))).iter().any(|link| link.said.len() > 40_000)
    });
    let is_level = || {
        let goal = state((Ipv4Addr::LOCALHOST, trio.port(0)));
        let others = [(node, port), (Ipv4Addr::LOCALHOST, trio.port(2))].map(state);
        others.iter().all(|other| *other == goal)
    };
    // The cluster's own changes, as of the address, are done when nothing has moved for a while.
    let mut before = state((node, port));
    eventually("all have applied the same", Duration::from_secs(30), || {
        std::thread::sleep(Duration::from_millis(1000));
        let was = std::mem::replace(&mut before, state((node, port)));
        was == before && is_level()
    });
    let (memory_before, open) = (second.resident_bytes(), tap.recordings().len());

    // To the node itself, beside the living link: every kind of link, the raft link many times over.
    let (raft, all) = (links(Purpose::Raft(GroupId(0))), tap.recordings());
    let raft = raft.into_iter().max_by_key(|link| link.said.len()).expect("there is one");
    let replayed = peers((node, port), "replayed_frames");
    for _ in 0..50 {
        let answered = play(node, cluster_port, &raft.said);
        assert!(hello_of(&answered).is_none() && answered.len() < 1000, "a welcome at most");
    }
    for one in &all {
        play(node, cluster_port, &one.said);
    }
    eventually("the node counts them", Duration::from_secs(5), || {
        peers((node, port), "replayed_frames") >= replayed + 50
    });
    // To a node that was not meant.
    let refused = peers((Ipv4Addr::LOCALHOST, trio.port(2)), "refused_stranger");
    for _ in 0..5 {
        play(Ipv4Addr::LOCALHOST, trio.cluster_port(2), &raft.said);
    }
    eventually("the other node counts them", Duration::from_secs(5), || {
        peers((Ipv4Addr::LOCALHOST, trio.port(2)), "refused_stranger") >= refused + 5
    });
    assert_eq!(state((node, port)), before, "nothing that was played has moved anything");
    assert!(is_level(), "nor elsewhere");
    assert_eq!(counted(), count + 1);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(tap.recordings().len(), open, "the living links were not disturbed");
    let grown = second.resident_bytes().saturating_sub(memory_before);
    assert!(grown < 16 << 20, "memory grew by {grown} bytes");

    // The caller was started again meanwhile: an old life's hello is refused by name.
    let from_third = |one: &&Recording| hello_of(&one.said).is_some_and(|hello| hello.card.number == 3);
    let old = all.iter().find(from_third).expect("the third speaks to it").clone();
    let since = tap.recordings().len();
    third.stop();
    let third = trio.spawn_without_peers(2);
    eventually("the new life's control link is there", Duration::from_secs(30), || {
        let control = |one: &Recording| {
            let hello = hello_of(&one.said);
            hello.is_some_and(|hello| hello.card.number == 3 && hello.purpose == Purpose::Control)
        };
        tap.recordings().split_off(since).iter().any(|one| control(one) && one.said.len() > 1000)
    });
    let refused = peers((node, port), "refused_stranger");
    play(node, cluster_port, &old.said);
    eventually("another life is refused", Duration::from_secs(5), || {
        peers((node, port), "refused_stranger") > refused
    });

    // To the callers, in place of the node: they notice that the welcome answers another hello.
    third.until_it_answers();
    let failures = peers((Ipv4Addr::LOCALHOST, trio.port(0)), "dial_failures");
    tap.play(Some(raft.answered.clone()));
    eventually("who calls is not taken in", Duration::from_secs(10), || {
        peers((Ipv4Addr::LOCALHOST, trio.port(0)), "dial_failures") > failures
    });
    assert_eq!(counted(), count + 2);
    tap.play(None);
    assert_eq!(counted(), count + 3);
    eventually("all have applied the same", Duration::from_secs(20), is_level);
    assert!(!second.has_ended());
}
