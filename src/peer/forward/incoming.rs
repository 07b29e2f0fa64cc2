//! Requests of other nodes' routers on their way to this node's shards, and the replies to them.
//!
//! To the shards this is one more router. Each router of another node is a stream of requests of its own, an *origin*; its
//! views are counted anew here, so that a node which starts again (and whose views begin anew) is never taken for one
//! whose refused requests are still under way. Bounded: a connection with too much unread by the shards, or too many
//! replies unsent, is not read.

use super::codec::{Reply, Requests, Unreadable, decode_requests};
use super::stream::Stream;
use crate::links::ShardLink;
use shards::batch::{NOT_SHARED, ReplyBatch, RequestHead};
use shards::ids::{GroupId, Map, Millis, NodeNumber, Token};
use shards::peer::frame::Kind;
use std::collections::VecDeque;
use std::io;

/// Connections from other nodes at once, those included whose requests are still in the shards: the bits of a
/// connection's place in the tokens.
pub(super) const CONNECTIONS_MAX: usize = 1 << 12;
/// Bytes of a connection's requests that may wait for room at the shards.
const WAITING_BYTES_MAX: usize = 8 << 20;
/// Unsent bytes of replies from which on a connection is not read.
const UNSENT_BYTES_MAX: usize = 16 << 20;

/// Bits of a request's place in its batch.
const PLACE_BITS: u32 = 20;
/// Bits of a batch's serial.
const SERIAL_BITS: u32 = 32;
const _: () = assert!(super::codec::REQUESTS_MAX <= 1 << PLACE_BITS);
const _: () = assert!(CONNECTIONS_MAX <= 1 << (64 - PLACE_BITS - SERIAL_BITS));

/// One connection.
#[derive(Debug)]
struct Connection {
    /// `None` once it broke; its place is free when the shards have answered.
    stream: Option<Box<Stream>>,
    /// Names it for ever.
    number: u64,
    /// Requests in the shards.
    under_way: usize,
    waiting_bytes: usize,
    /// Replies that leave with the next flush.
    replies: Vec<u8>,
}

/// A batch that found too little room at its shard.
#[derive(Debug)]
struct Waiting {
    at: usize,
    connection: u64,
    origin: u16,
    view: u32,
    heads: Vec<RequestHead>,
    records: Vec<u8>,
    /// Heads before this one were sent.
    next: usize,
}

/// How an origin's views of one group are counted here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counted {
    connection: u64,
    theirs: u32,
    ours: u32,
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IncomingCounters {
    /// Requests taken from other nodes.
    pub requests: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Connections that broke or were closed.
    pub closes: u64,
    /// Connections refused since there were too many.
    pub refused: u64,
    /// Replies for which nobody waited any more.
    pub late_replies: u64,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Incoming {
    /// By group.
    links: Vec<ShardLink>,
    waiting: Vec<VecDeque<Waiting>>,
    connections: Vec<Option<Connection>>,
    next_connection: u64,
    origins: Map<(NodeNumber, u16), u16>,
    views: Map<(u16, u32), Counted>,
    pub(super) counters: IncomingCounters,
}

impl Incoming {
    pub(super) fn new(links: Vec<ShardLink>) -> Self {
        Self {
            waiting: links.iter().map(|_| VecDeque::new()).collect(),
            links,
            connections: Vec::new(),
            next_connection: 0,
            origins: Map::default(),
            views: Map::default(),
            counters: IncomingCounters::default(),
        }
    }

    /// Takes a connection over; its place, or `None` when there are too many.
    pub(super) fn accept(&mut self, stream: Stream) -> Option<usize> {
        let at = match self.connections.iter().position(Option::is_none) {
            Some(at) => at,
            None if self.connections.len() < CONNECTIONS_MAX => {
                self.connections.push(None);
                self.connections.len() - 1
            }
            None => {
                self.counters.refused += 1;
                return None;
            }
        };
        self.counters.connections += 1;
        self.next_connection += 1;
        self.connections[at] = Some(Connection {
            stream: Some(Box::new(stream)),
            number: self.next_connection,
            under_way: 0,
            waiting_bytes: 0,
            replies: Vec::new(),
        });
        Some(at)
    }

    pub(super) fn stream(&mut self, at: usize) -> Option<&mut Stream> {
        self.connections.get_mut(at)?.as_mut()?.stream.as_deref_mut()
    }

    /// Whether a turn would find something.
    pub(super) fn has_work(&self) -> bool {
        self.links.iter().any(ShardLink::has_replies)
            || self.connections.iter().flatten().any(|connection| {
                let stream = connection.stream.as_ref();
                stream.is_some_and(|stream| stream.has_work(connection.is_read()))
            })
    }

    /// Whether nothing is under way.
    pub(super) fn is_quiet(&self) -> bool {
        self.connections.iter().flatten().all(|connection| connection.under_way == 0)
    }

    /// Takes replies and requests on; whether anything happened.
    pub(super) fn turn(&mut self, now: Millis) -> bool {
        let mut busy = self.bring_replies();
        self.send_waiting();
        for at in 0..self.connections.len() {
            match self.exchange(at, now) {
                Ok(did) => busy |= did,
                Err(error) => {
                    if error.kind() != io::ErrorKind::UnexpectedEof {
                        tracing::warn!("a connection with another node's requests broke: {error}");
                    }
                    self.close(at);
                    busy = true;
                }
            }
        }
        busy
    }

    fn exchange(&mut self, at: usize, now: Millis) -> io::Result<bool> {
        let mut busy = false;
        loop {
            let Some(connection) = &mut self.connections[at] else { return Ok(busy) };
            let is_read = connection.is_read();
            let Some(stream) = connection.stream.as_deref_mut() else {
                if connection.under_way == 0 {
                    self.connections[at] = None;
                }
                return Ok(busy);
            };
            if !connection.replies.is_empty() {
                stream.push(Kind::ForwardReplies, |out| out.extend_from_slice(&connection.replies));
                connection.replies.clear();
            }
            stream.flush()?;
            if !is_read || !stream.read()? {
                return Ok(busy);
            }
            busy = true;
            self.receive(at, now)?;
        }
    }

    /// Hands the requests of the frames that have come to the shards.
    fn receive(&mut self, at: usize, now: Millis) -> io::Result<()> {
        // The stream is taken out while its frames are lent.
        let Some(connection) = &mut self.connections[at] else { return Ok(()) };
        let Some(mut stream) = connection.stream.take() else { return Ok(()) };
        let taken = self.take_frames(at, &mut stream, now);
        if let Some(connection) = &mut self.connections[at] {
            connection.stream = Some(stream);
        }
        taken
    }

    fn take_frames(&mut self, at: usize, stream: &mut Stream, now: Millis) -> io::Result<()> {
        let node = stream.node;
        let mut is_asked = false;
        while let Some(frame) = stream.next()? {
            if frame.kind != Kind::ForwardRequests {
                return Err(unreadable(Unreadable("a frame of another kind")));
            }
            let requests = decode_requests(frame.payload).map_err(unreadable)?;
            if requests.count() == 0 {
                is_asked = true;
                continue;
            }
            if requests.group.0 as usize >= self.links.len() {
                return Err(unreadable(Unreadable("a group that does not exist")));
            }
            self.take(at, node, &requests, now).map_err(unreadable)?;
        }
        if is_asked {
            stream.push(Kind::ForwardReplies, |_| {});
            stream.flush()?;
        }
        Ok(())
    }

    /// Hands one batch to its shard, as far as there is room.
    fn take(
        &mut self,
        at: usize,
        node: NodeNumber,
        requests: &Requests<'_>,
        now: Millis,
    ) -> Result<(), Unreadable> {
        let Some(number) = self.connections[at].as_ref().map(|connection| connection.number) else {
            return Ok(());
        };
        self.counters.requests += requests.count() as u64;
        let key = (node, requests.router);
        let origin = match self.origins.get(&key) {
            Some(known) => *known,
            None => {
                // Far fewer than 65,535 in practice: nodes that this one ever heard, times a handful of routers.
                let next = u16::try_from(self.origins.len() + 1);
                let next = next.map_err(|_| Unreadable("too many routers of other nodes"))?;
                self.origins.insert(key, next);
                next
            }
        };
        let view = self.count_view(origin, requests.group, number, requests.view);
        let mut start = 0;
        let heads = (0..requests.count()).map(|place| {
            let head = requests.head(place);
            let begin = start;
            start += head.length;
            RequestHead {
                token: token(at, requests.serial, place),
                hash: head.hash,
                deadline: Millis(now.0 + u64::from(head.left_ms)),
                start: begin,
                length: head.length,
            }
        });
        let group = requests.group.0 as usize;
        let Some(connection) = self.connections[at].as_mut() else { return Ok(()) };
        let link = &mut self.links[group];
        if self.waiting[group].is_empty() && link.room() >= requests.count() {
            let batch = link.batch();
            batch.heads.extend(heads);
            batch.bytes.extend_from_slice(requests.records());
            (batch.group, batch.origin, batch.view) = (requests.group, origin, view);
            link.flush();
            connection.under_way += requests.count();
            return Ok(());
        }
        connection.waiting_bytes += requests.records().len();
        self.waiting[group].push_back(Waiting {
            at,
            connection: number,
            origin,
            view,
            heads: heads.collect(),
            records: requests.records().to_vec(),
            next: 0,
        });
        Ok(())
    }

    /// This node's count of an origin's view: one more whenever the origin's own, or its connection, is another.
    fn count_view(&mut self, origin: u16, group: GroupId, connection: u64, theirs: u32) -> u32 {
        let fresh = Counted { connection, theirs, ours: 1 };
        let counted = self.views.entry((origin, group.0)).or_insert(fresh);
        if (counted.connection, counted.theirs) != (connection, theirs) {
            *counted = Counted { connection, theirs, ours: counted.ours.wrapping_add(1) };
        }
        counted.ours
    }

    /// Sends what waited for room, in order; what broken connections left is dropped.
    fn send_waiting(&mut self) {
        for (group, waiting) in self.waiting.iter_mut().enumerate() {
            let link = &mut self.links[group];
            while let Some(first) = waiting.front_mut() {
                let connection = self.connections[first.at].as_mut();
                let connection = connection.filter(|c| c.number == first.connection && c.stream.is_some());
                let Some(connection) = connection else {
                    waiting.pop_front();
                    continue;
                };
                let count = link.room().min(first.heads.len() - first.next);
                if count == 0 {
                    break;
                }
                let batch = link.batch();
                for head in &first.heads[first.next..][..count] {
                    let start = batch.bytes.len() as u32;
                    batch
                        .bytes
                        .extend_from_slice(&first.records[head.start as usize..][..head.length as usize]);
                    batch.heads.push(RequestHead { start, ..*head });
                }
                (batch.group, batch.origin, batch.view) = (GroupId(group as u32), first.origin, first.view);
                link.flush();
                connection.under_way += count;
                first.next += count;
                if first.next == first.heads.len() {
                    connection.waiting_bytes -= first.records.len();
                    waiting.pop_front();
                }
            }
        }
    }

    /// Takes the shards' replies to their connections.
    fn bring_replies(&mut self) -> bool {
        let mut any = false;
        for group in 0..self.links.len() {
            while let Some(batch) = self.links[group].receive() {
                any = true;
                for head in &batch.heads {
                    self.bring_reply(&batch, head);
                }
                self.links[group].recycle(batch);
            }
        }
        any
    }

    fn bring_reply(&mut self, batch: &ReplyBatch, head: &shards::batch::ReplyHead) {
        let (at, serial, place) = read_token(head.token);
        let connection =
            self.connections[at].as_mut().expect("a place is kept until the shards have answered");
        connection.under_way -= 1;
        let Some(stream) = connection.stream.as_deref_mut() else {
            self.counters.late_replies += 1;
            return;
        };
        let shared = match head.shared {
            NOT_SHARED => &[][..],
            position => &batch.shared[position as usize],
        };
        Reply { serial, place, kind: head.kind, body: batch.body(head), shared }
            .encode(&mut connection.replies);
        if connection.replies.len() >= super::REPLIES_BYTES_MAX {
            stream.push(Kind::ForwardReplies, |out| out.extend_from_slice(&connection.replies));
            connection.replies.clear();
        }
    }

    fn close(&mut self, at: usize) {
        if let Some(connection) = &mut self.connections[at] {
            self.counters.closes += 1;
            connection.stream = None;
            connection.replies = Vec::new();
        }
    }
}

impl Connection {
    /// Whether more requests may be read.
    fn is_read(&self) -> bool {
        let unsent = self.stream.as_ref().map_or(0, |stream| stream.unsent());
        self.waiting_bytes < WAITING_BYTES_MAX && unsent + self.replies.len() < UNSENT_BYTES_MAX
    }
}

fn token(at: usize, serial: u32, place: usize) -> Token {
    Token((at as u64) << (SERIAL_BITS + PLACE_BITS) | u64::from(serial) << PLACE_BITS | place as u64)
}

fn read_token(token: Token) -> (usize, u32, u32) {
    let place = token.0 as u32 & ((1 << PLACE_BITS) - 1);
    ((token.0 >> (SERIAL_BITS + PLACE_BITS)) as usize, (token.0 >> PLACE_BITS) as u32, place)
}

fn unreadable(error: Unreadable) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.0)
}
