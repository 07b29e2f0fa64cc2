//! Two nodes in one thread: routers and shards made of a few lines, and real sockets between the threads that forward.

use super::*;
use crate::links::link;
use shards::batch::{NOT_SHARED, NotLeader, ReplyKind, RequestHead};
use shards::command::record::{Op, Record, Session};
use shards::ids::{GroupId, KeyHash, ReplicaId, Token};
use shards::peer::frame::{Expected, Kind, PAYLOAD_BYTES_MAX};
use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::Instant;

const GROUPS: usize = 2;
const CREDITS: usize = 64;
const FAR: NodeNumber = NodeNumber(2);

fn peer(node: NodeNumber, socket: TcpStream) -> PeerStream {
    let expected = Expected { cluster: Some(7), session: 9, payload_bytes_max: PAYLOAD_BYTES_MAX };
    PeerStream { node, socket, reader: FrameReader::new(expected), writer: FrameWriter::new(7, 9) }
}

/// Dials the listener that stands for the other node.
struct Loopback {
    address: Mutex<Option<SocketAddr>>,
}

impl Dial for Loopback {
    fn dial(&self, node: NodeNumber) -> io::Result<PeerStream> {
        let address = *self.address.lock().unwrap();
        let address = address.ok_or(io::ErrorKind::ConnectionRefused)?;
        TcpStream::connect(address).map(|socket| peer(node, socket))
    }
}

/// One node: its thread that forwards, turned by hand, and what stands around it.
struct Node {
    forward: Forward,
    /// The router's ends, by group.
    router: Vec<ShardLink>,
    /// The shards' ends, by group.
    shards: Vec<RouterLink>,
    accept: Sender<PeerStream>,
}

fn node(dial: Arc<dyn Dial>) -> Node {
    let bell = Doorbell::new().unwrap();
    let other = || Doorbell::new().unwrap();
    let (router, far_ends) = (0..GROUPS).map(|_| link(CREDITS, other(), Arc::clone(&bell))).unzip();
    let (links, shards) = (0..GROUPS).map(|_| link(CREDITS, Arc::clone(&bell), other())).unzip();
    let (accept, accepted) = channel();
    let parts = ForwardParts { routers: vec![far_ends], shards: links, bell, dial, accepted };
    Node { forward: Forward::new(parts).unwrap(), router, shards, accept }
}

/// A node that asks and one that answers.
struct Pair {
    near: Node,
    far: Node,
    listener: TcpListener,
    dial: Arc<Loopback>,
    /// Who dials, as the next connections say.
    from: NodeNumber,
}

impl Pair {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let dial = Arc::new(Loopback { address: Mutex::new(Some(listener.local_addr().unwrap())) });
        let (near, far) = (node(Arc::clone(&dial) as _), node(Arc::clone(&dial) as _));
        Self { near, far, listener, dial, from: NodeNumber(1) }
    }

    fn turn(&mut self) {
        if let Ok((socket, _)) = self.listener.accept() {
            self.far.accept.send(peer(self.from, socket)).unwrap();
        }
        self.near.forward.turn().unwrap();
        self.far.forward.turn().unwrap();
    }

    /// Turns until `done` gives something.
    fn until<T>(&mut self, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            self.turn();
            if let Some(found) = done(self) {
                return found;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "it does not come");
        }
    }

    fn requests(&mut self, group: usize) -> Box<shards::batch::RequestBatch> {
        self.until(|pair| pair.far.shards[group].receive())
    }

    fn reply(&mut self, group: usize) -> Told {
        self.until(|pair| pair.near.replies(group).pop())
    }
}

#[derive(Debug, PartialEq)]
struct Told {
    token: u64,
    kind: ReplyKind,
    body: Vec<u8>,
    is_shared: bool,
}

impl Node {
    /// Sends records to another node.
    fn send(&mut self, group: usize, view: u32, records: &[(u64, Record<'_>)]) {
        let deadline = Millis(Clock::start().now().0 + 5000);
        let batch = self.router[group].batch();
        for (token, record) in records {
            let start = batch.bytes.len() as u32;
            record.encode(&mut batch.bytes);
            let length = batch.bytes.len() as u32 - start;
            batch.heads.push(RequestHead {
                token: Token(*token),
                hash: KeyHash(*token + 1),
                deadline,
                start,
                length,
            });
        }
        (batch.group, batch.node, batch.view) = (GroupId(group as u32), FAR, view);
        self.router[group].flush();
    }

    fn replies(&mut self, group: usize) -> Vec<Told> {
        let link = &mut self.router[group];
        let mut told = Vec::new();
        while let Some(batch) = link.receive() {
            for head in &batch.heads {
                let is_shared = head.shared != NOT_SHARED;
                let shared = if is_shared { &batch.shared[head.shared as usize][..] } else { &[] };
                let body = [batch.body(head), shared].concat();
                told.push(Told { token: head.token.0, kind: head.kind, body, is_shared });
            }
            link.recycle(batch);
        }
        told.reverse();
        told
    }
}

fn get(key: &[u8]) -> Record<'_> {
    Record::plain(Op::Get, key, b"")
}

#[test]
fn requests_and_replies_of_every_kind_come_through() {
    let mut pair = Pair::new();
    let session = Some(Session { client: b"c", seq: 1, acked: 0 });
    let records = [
        (70, get(b"a")),
        (71, Record { session, ..Record::plain(Op::Set, b"b", b"1") }),
        (1 << 63, get(b"c")),
        (73, get(b"d")),
        (74, get(b"e")),
        (75, get(b"f")),
    ];
    pair.near.send(1, 3, &records);
    let batch = pair.requests(1);
    assert_eq!((batch.group, batch.origin, batch.view, batch.heads.len()), (GroupId(1), 1, 1, 6));
    let now = Clock::start().now().0;
    for (head, (token, record)) in batch.heads.iter().zip(&records) {
        assert_eq!(Record::decode(batch.record(head)).as_ref(), Ok(record));
        assert_eq!(head.hash, KeyHash(token + 1));
        assert!(
            (now + 3000..now + 5100).contains(&head.deadline.0),
            "{}",
            head.deadline.0 as i64 - now as i64
        );
    }
    let large: Arc<[u8]> = vec![b'x'; 40_000].into();
    let refused = NotLeader {
        leader: ReplicaId::new(0, NodeNumber(3)),
        term: 8,
        hash: KeyHash(0),
        deadline: Millis(1),
        record: b"theirs",
    };
    let replies = pair.far.shards[1].batch();
    let token = |place: usize| batch.heads[place].token;
    replies.push(token(0), ReplyKind::Success, |out| out.extend_from_slice(b"\"result\":1"));
    replies.push(token(1), ReplyKind::Ok, |_| {});
    replies.push(token(2), ReplyKind::Part, |out| out.push(9));
    replies.push_shared(token(3), Arc::clone(&large), |out| out.extend_from_slice(b"\"result\":"));
    replies.push_not_leader(token(4), &refused);
    replies.push(token(5), ReplyKind::StalePart, |out| out.extend_from_slice(b"stale"));
    pair.far.shards[1].recycle(batch);
    pair.far.shards[1].flush();
    let mut told = Vec::new();
    pair.until(|pair| {
        told.extend(pair.near.replies(1).into_iter().rev());
        (told.len() == 6).then_some(())
    });
    let plain = |token, kind, body: &[u8]| Told { token, kind, body: body.to_vec(), is_shared: false };
    assert_eq!(told[0], plain(70, ReplyKind::Success, b"\"result\":1"));
    assert_eq!(told[1], plain(71, ReplyKind::Ok, b""));
    assert_eq!(told[2], plain(1 << 63, ReplyKind::Part, &[9]));
    assert_eq!((told[3].token, told[3].is_shared, told[3].body.len()), (73, true, 40_009));
    assert_eq!(told[5], plain(75, ReplyKind::StalePart, b"stale"));
    // The refused request is this node's own, with its own deadline.
    let back = NotLeader::decode(&told[4].body).unwrap();
    assert_eq!((told[4].kind, back.leader, back.term), (ReplyKind::NotLeader, refused.leader, 8));
    assert_eq!((back.hash, Record::decode(back.record)), (KeyHash(75), Ok(records[4].1)));
    assert!(back.deadline.0 > now + 3000);
    assert!(pair.near.forward.is_quiet() && pair.far.forward.is_quiet());
    let (out, _) = pair.near.forward.counters();
    assert_eq!((out.requests, out.batches, pair.far.forward.counters().1.requests), (6, 1, 6));
}

#[test]
fn views_are_counted_for_each_group_and_router() {
    let mut pair = Pair::new();
    let mut seen = Vec::new();
    for (group, view) in [(0, 5), (0, 5), (1, 2), (0, 6), (0, 9), (1, 2)] {
        pair.near.send(group, view, &[(1, get(b"a"))]);
        let batch = pair.requests(group);
        seen.push((group, batch.origin, batch.view));
        let token = batch.heads[0].token;
        pair.far.shards[group].recycle(batch);
        pair.far.shards[group].batch().push(token, ReplyKind::Ok, |_| {});
        pair.far.shards[group].flush();
        assert_eq!(pair.reply(group).kind, ReplyKind::Ok);
    }
    assert_eq!(seen, [(0, 1, 1), (0, 1, 1), (1, 1, 1), (0, 1, 2), (0, 1, 3), (1, 1, 1)]);
}

/// Closes the far node's end of every connection.
fn break_connections(pair: &mut Pair) {
    pair.far.forward.incoming = Incoming::new(Vec::new());
    let (links, shards) = (0..GROUPS)
        .map(|_| link(CREDITS, Arc::clone(&pair.far.forward.bell), Doorbell::new().unwrap()))
        .unzip();
    pair.far.forward.incoming = Incoming::new(links);
    pair.far.shards = shards;
}

#[test]
fn a_broken_connection_gives_back_what_may_be_sent_again() {
    let mut pair = Pair::new();
    let session = Some(Session { client: b"c", seq: 1, acked: 0 });
    pair.near.send(
        0,
        1,
        &[
            (1, get(b"a")),
            (2, Record { session, ..Record::plain(Op::Incr, b"b", b"") }),
            (3, Record::plain(Op::Set, b"c", b"1")),
            (4, Record::plain(Op::DeletePrefix, b"c", b"")),
            (5, Record::plain(Op::Snapshot, b"", b"")),
        ],
    );
    let batch = pair.requests(0);
    assert_eq!(batch.heads.len(), 5);
    // One of them was answered before.
    pair.far.shards[0].batch().push(batch.heads[0].token, ReplyKind::Ok, |_| {});
    pair.far.shards[0].flush();
    assert_eq!(pair.reply(0).token, 1);
    break_connections(&mut pair);
    let mut told = Vec::new();
    pair.until(|pair| {
        told.extend(pair.near.replies(0).into_iter().rev());
        (told.len() == 4).then_some(())
    });
    let kinds: Vec<(u64, ReplyKind)> = told.iter().map(|told| (told.token, told.kind)).collect();
    use ReplyKind::{Error, NotLeader};
    assert_eq!(kinds, [(2, NotLeader), (3, Error), (4, Error), (5, NotLeader)]);
    let text = String::from_utf8(told[1].body.clone()).unwrap();
    assert!(text.contains("TIMEOUT") && text.contains("\"outcome\":\"unknown\""), "{text}");
    assert!(pair.near.forward.is_quiet());
    // Connected anew, requests pass again, and what the old connection left is nobody's.
    let reply = pair.until(|pair| {
        if pair.near.router[0].outstanding() == 0 {
            pair.near.send(0, 2, &[(6, get(b"a"))]);
        }
        if let Some(batch) = pair.far.shards[0].receive() {
            pair.far.shards[0].batch().push(batch.heads[0].token, ReplyKind::Ok, |_| {});
            pair.far.shards[0].flush();
        }
        pair.near.replies(0).into_iter().find(|told| told.kind == ReplyKind::Ok)
    });
    assert_eq!(reply.token, 6);
    assert_eq!(pair.near.forward.counters().0.breaks, 1);
}

#[test]
fn nothing_is_kept_for_a_node_that_cannot_be_reached() {
    let mut pair = Pair::new();
    *pair.dial.address.lock().unwrap() = None;
    for round in 0..20 {
        pair.near.send(0, round, &[(1, Record::plain(Op::Set, b"c", b"1"))]);
        assert_eq!(pair.reply(0).kind, ReplyKind::NotLeader, "it never left, so it may be sent elsewhere");
    }
}

#[test]
fn a_silent_node_that_owes_replies_counts_as_gone() {
    let mut pair = Pair::new();
    pair.near.send(0, 1, &[(1, get(b"a"))]);
    let _held = pair.requests(0);
    // While it gives signs of life, slow shards are waited for.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(outgoing::SILENCE_MS_MAX + 400) {
        pair.turn();
        assert!(pair.near.replies(0).is_empty());
        std::thread::sleep(Duration::from_millis(5));
    }
    // Stopped, it is given up in time.
    let begun = Instant::now();
    loop {
        pair.near.forward.turn().unwrap();
        if let Some(told) = pair.near.replies(0).pop() {
            assert_eq!(told.kind, ReplyKind::NotLeader);
            break;
        }
        assert!(begun.elapsed() < Duration::from_millis(outgoing::SILENCE_MS_MAX + 2000));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(begun.elapsed() > Duration::from_millis(outgoing::SILENCE_MS_MAX / 2));
}

#[test]
fn a_shard_without_room_holds_up_its_own_requests_only() {
    let mut pair = Pair::new();
    // A second node fills the link of group 0.
    let mut third = node(Arc::clone(&pair.dial) as _);
    pair.from = NodeNumber(3);
    let records: Vec<(u64, Record<'_>)> = (0..CREDITS as u64).map(|token| (token, get(b"k"))).collect();
    third.send(0, 1, &records);
    pair.until(|pair| {
        third.forward.turn().unwrap();
        pair.far.shards[0].has_requests().then_some(())
    });
    let held = pair.far.shards[0].receive().unwrap();
    assert_eq!(held.heads.len(), CREDITS);
    pair.from = NodeNumber(1);
    pair.near.send(0, 1, &records[..10]);
    pair.near.send(1, 1, &records[..5]);
    let other = pair.requests(1);
    assert_eq!(other.heads.len(), 5, "the other group has room");
    for _ in 0..50 {
        pair.turn();
    }
    assert!(pair.far.shards[0].receive().is_none());
    // Three are answered: three of the waiting go on, in order, then the rest.
    for (count, expected) in [(3, 0..3), (20, 3..10)] {
        for head in &held.heads[expected.start..][..count] {
            pair.far.shards[0].batch().push(head.token, ReplyKind::Ok, |_| {});
        }
        pair.far.shards[0].flush();
        let batch = pair.requests(0);
        let places: Vec<u64> = batch.heads.iter().map(|head| head.hash.0 - 1).collect();
        assert_eq!(places, expected.map(|place| place as u64).collect::<Vec<_>>());
        assert_ne!(batch.origin, held.origin);
        assert!(batch.heads.iter().all(|head| Record::decode(batch.record(head)) == Ok(get(b"k"))));
    }
}

#[test]
fn what_cannot_be_read_ends_the_connection() {
    let mut pair = Pair::new();
    let connect = |pair: &Pair, kind, payload: &[u8]| {
        let address = pair.dial.address.lock().unwrap().unwrap();
        let mut socket = TcpStream::connect(address).unwrap();
        let mut bytes = Vec::new();
        FrameWriter::new(7, 9).push(&mut bytes, kind, payload);
        io::Write::write_all(&mut socket, &bytes).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    };
    let mut group = vec![0; 36];
    (group[8], group[16]) = (9, 1);
    for (kind, payload) in [
        (Kind::ForwardReplies, &[][..]),
        (Kind::ForwardRequests, &[1, 2, 3]),
        (Kind::ForwardRequests, &group),
        (Kind::Raft, &group),
    ] {
        let mut socket = connect(&pair, kind, payload);
        pair.until(|_| match socket.read(&mut [0; 10]) {
            Ok(count) => {
                assert_eq!(count, 0, "closed without a word");
                Some(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(_) => Some(()),
        });
    }
    assert_eq!(pair.far.forward.counters().1.closes, 4);
    assert!(pair.far.shards.iter_mut().all(|shard| shard.receive().is_none()));
}

/// What a forwarded request costs, in one thread for both nodes: the way there and back without router and shard. Printed
/// with `--nocapture`; every request must come back whatever it cost.
#[test]
fn a_stream_of_requests_comes_back_whole() {
    for depth in [1usize, 16, 64] {
        let mut pair = Pair::new();
        pair.near.send(0, 1, &[(0, get(b"warm"))]);
        let answer = |pair: &mut Pair| {
            while let Some(batch) = pair.far.shards[0].receive() {
                for head in &batch.heads {
                    pair.far.shards[0].batch().push(head.token, ReplyKind::Success, |out| {
                        out.extend_from_slice(b"\"result\":\"0123456789012345678901234567890123456789\"");
                    });
                }
                pair.far.shards[0].recycle(batch);
                pair.far.shards[0].flush();
            }
            pair.near.replies(0).len()
        };
        pair.until(|pair| (answer(pair) > 0).then_some(()));
        let (rounds, begun) = (2000 / depth.min(8), Instant::now());
        let records: Vec<_> = (0..depth as u64).map(|token| (token, get(b"key:000000012345"))).collect();
        for _ in 0..rounds {
            pair.near.send(0, 1, &records);
            let mut come = 0;
            pair.until(|pair| {
                come += answer(pair);
                (come == depth).then_some(())
            });
        }
        let ns = begun.elapsed().as_nanos() as f64 / (rounds * depth) as f64;
        println!("depth {depth}: {ns:.0} ns for each request, both nodes together");
        assert!(pair.near.forward.is_quiet());
    }
}
