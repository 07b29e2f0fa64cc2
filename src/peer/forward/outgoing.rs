//! Requests of this node's routers on their way to other nodes, and the replies to them.
//!
//! A batch stays here until every request of it has its reply, so that a broken connection can tell what may be sent
//! again: reads, and writes with a session, go back to their router as not leading; the outcome of any other write is
//! unknown. What was not yet sent goes back whatever it is. Bounded by the credits of the routers' links: one node that is
//! slow holds up the requests for it and no others.

use super::codec::{Reply, Unreadable, encode_requests};
use super::stream::Stream;
use super::{PeerStream, SHARED_BYTES_MIN};
use crate::links::RouterLink;
use shards::batch::{NotLeader, ReplyKind, RequestBatch, RequestHead};
use shards::command::answer::{self, Failure, Outcome};
use shards::command::record::{Op, Record};
use shards::ids::{Millis, NodeNumber, ReplicaId};
use shards::peer::frame::Kind;
use std::collections::VecDeque;
use std::io;

/// Unsent bytes from which on a connection gets no more batches.
const UNSENT_BYTES_MAX: usize = 4 << 20;
/// A node that owes replies and is silent for so long counts as gone.
pub(super) const SILENCE_MS_MAX: u64 = 1200;
/// A node that owes replies is asked for a sign of life so often.
const PING_EVERY_MS: u64 = 300;
/// How long requests wait for a connection to be made.
const DIAL_MS_MAX: u64 = 1500;
/// The first pause after a failed attempt, doubled with each.
const REST_MS_MIN: u64 = 25;
/// The longest pause.
const REST_MS_MAX: u64 = 800;

/// A batch that is under way.
#[derive(Debug)]
struct Kept {
    router: usize,
    batch: Box<RequestBatch>,
    is_answered: Vec<bool>,
    left: usize,
}

/// What a channel's connection is up to.
#[derive(Debug)]
enum State {
    /// Nobody needs one.
    Idle,
    /// A helper dials since then.
    Dialing(Millis),
    /// Connected.
    Open(Box<Stream>),
    /// The last attempt failed; the next one is made after this.
    Resting(Millis),
}

/// Everything for one other node.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) node: NodeNumber,
    state: State,
    /// Not yet sent, in order.
    queue: VecDeque<Kept>,
    /// Sent, by serial from `first_serial` on; `None` once answered.
    sent: VecDeque<Option<Kept>>,
    first_serial: u32,
    /// Sent and not answered.
    owed: usize,
    heard: Millis,
    pinged: Millis,
    failures: u32,
}

/// The router ends of every link from this node's routers, by router and group.
pub(super) type Routers = Vec<Vec<RouterLink>>;

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutgoingCounters {
    /// Requests sent to other nodes.
    pub requests: u64,
    /// Frames that carried them.
    pub batches: u64,
    /// Requests given back to their router: nothing was sent, or it may be sent again.
    pub given_back: u64,
    /// Writes whose outcome is unknown since the connection broke.
    pub unknown: u64,
    /// Connections that broke.
    pub breaks: u64,
}

impl Channel {
    pub(super) fn new(node: NodeNumber) -> Self {
        Self {
            node,
            state: State::Idle,
            queue: VecDeque::new(),
            sent: VecDeque::new(),
            first_serial: 0,
            owed: 0,
            heard: Millis(0),
            pinged: Millis(0),
            failures: 0,
        }
    }

    /// Takes a batch of a router.
    pub(super) fn take(&mut self, router: usize, batch: Box<RequestBatch>) {
        let count = batch.heads.len();
        self.queue.push_back(Kept { router, batch, is_answered: vec![false; count], left: count });
    }

    pub(super) fn stream(&mut self) -> Option<&mut Stream> {
        match &mut self.state {
            State::Open(stream) => Some(stream),
            State::Idle | State::Dialing(_) | State::Resting(_) => None,
        }
    }

    /// Whether a connection is to be dialled now; the caller does it and tells by [`Channel::dialled`].
    pub(super) fn wants_dial(&mut self, now: Millis) -> bool {
        let may = match self.state {
            State::Idle => true,
            State::Resting(until) => now >= until,
            State::Dialing(_) | State::Open(_) => false,
        };
        let wants = may && !self.queue.is_empty();
        if wants {
            self.state = State::Dialing(now);
        }
        wants
    }

    /// What became of dialling.
    pub(super) fn dialled(&mut self, peer: io::Result<PeerStream>, now: Millis) {
        match peer.and_then(Stream::new) {
            Ok(stream) => {
                (self.heard, self.pinged) = (now, now);
                self.state = State::Open(Box::new(stream));
            }
            Err(error) => {
                if self.failures == 0 {
                    tracing::warn!(node = self.node.0, "requests cannot be forwarded: {error}");
                }
                self.rest(now);
            }
        }
    }

    /// When something is due although nothing happens.
    pub(super) fn next_deadline(&self) -> Option<Millis> {
        match self.state {
            State::Open(_) if self.owed > 0 => Some(Millis(self.heard.0.max(self.pinged.0) + PING_EVERY_MS)),
            State::Dialing(since) if !self.queue.is_empty() => Some(Millis(since.0 + DIAL_MS_MAX)),
            _ => None,
        }
    }

    /// Whether a turn would find something.
    pub(super) fn has_work(&self) -> bool {
        match &self.state {
            State::Open(stream) => {
                stream.has_work(true) || (!self.queue.is_empty() && stream.unsent() < UNSENT_BYTES_MAX)
            }
            State::Idle | State::Resting(_) => !self.queue.is_empty(),
            State::Dialing(_) => false,
        }
    }

    /// Sends what waits and takes the replies that have come; whether anything happened.
    pub(super) fn turn(
        &mut self,
        routers: &mut Routers,
        counters: &mut OutgoingCounters,
        now: Millis,
    ) -> bool {
        let mut busy = false;
        match self.state {
            State::Open(_) => match self.exchange(routers, counters, now) {
                Ok(did) => busy = did,
                Err(error) => {
                    tracing::warn!(node = self.node.0, "a connection for forwarded requests broke: {error}");
                    counters.breaks += 1;
                    self.give_up(routers, counters);
                    self.rest(now);
                    busy = true;
                }
            },
            State::Dialing(since) if now.0 < since.0 + DIAL_MS_MAX => {}
            State::Dialing(_) | State::Resting(_) => {
                busy = !self.queue.is_empty();
                self.give_back_queue(routers, counters);
            }
            State::Idle => {}
        }
        busy
    }

    fn exchange(
        &mut self,
        routers: &mut Routers,
        counters: &mut OutgoingCounters,
        now: Millis,
    ) -> io::Result<bool> {
        let mut busy = self.send(counters, now);
        if let State::Open(stream) = &mut self.state {
            stream.flush()?;
        }
        while let State::Open(stream) = &mut self.state
            && stream.read()?
        {
            busy = true;
            self.heard = now;
            self.failures = 0;
            self.receive(routers)?;
        }
        if self.owed > 0 && now.0 >= self.heard.0.max(self.pinged.0) + PING_EVERY_MS {
            if now.0 >= self.heard.0 + SILENCE_MS_MAX {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it owes replies and is silent"));
            }
            self.pinged = now;
            let State::Open(stream) = &mut self.state else { return Ok(busy) };
            let nothing = RequestBatch::default();
            stream.push(Kind::ForwardRequests, |out| encode_requests(out, 0, 0, &nothing, now));
            stream.flush()?;
        }
        Ok(busy)
    }

    /// Moves batches from the queue to the connection.
    fn send(&mut self, counters: &mut OutgoingCounters, now: Millis) -> bool {
        let mut any = false;
        let State::Open(stream) = &mut self.state else { return false };
        while stream.unsent() < UNSENT_BYTES_MAX
            && let Some(kept) = self.queue.pop_front()
        {
            if self.owed == 0 {
                // Silence counts from here: before, there was nothing to say.
                (self.heard, self.pinged) = (now, now);
            }
            any = true;
            let serial = self.first_serial.wrapping_add(self.sent.len() as u32);
            let router = u16::try_from(kept.router).expect("a handful of routers");
            stream.push(Kind::ForwardRequests, |out| encode_requests(out, serial, router, &kept.batch, now));
            counters.batches += 1;
            counters.requests += kept.batch.heads.len() as u64;
            self.owed += kept.left;
            self.sent.push_back(Some(kept));
        }
        any
    }

    /// Hands the replies of the frames that have come to their routers.
    fn receive(&mut self, routers: &mut Routers) -> io::Result<()> {
        let State::Open(stream) = &mut self.state else { return Ok(()) };
        while let Some(frame) = stream.next()? {
            if frame.kind != Kind::ForwardReplies {
                return Err(unreadable(Unreadable("a frame of another kind")));
            }
            let mut rest = frame.payload;
            while !rest.is_empty() {
                let reply = Reply::take(&mut rest).map_err(unreadable)?;
                let at = reply.serial.wrapping_sub(self.first_serial) as usize;
                let place = self.sent.get_mut(at);
                let kept = place.and_then(Option::as_mut).ok_or(Unreadable("a reply to no batch"));
                let kept = kept.map_err(unreadable)?;
                kept.answer(&reply, routers).map_err(unreadable)?;
                self.owed -= 1;
                if kept.left == 0
                    && let Some(kept) = self.sent[at].take()
                {
                    kept.recycle(routers);
                }
            }
        }
        while let Some(None) = self.sent.front() {
            self.sent.pop_front();
            self.first_serial = self.first_serial.wrapping_add(1);
        }
        Ok(())
    }

    /// The connection is gone: what it owes is answered from here.
    fn give_up(&mut self, routers: &mut Routers, counters: &mut OutgoingCounters) {
        self.first_serial = self.first_serial.wrapping_add(self.sent.len() as u32);
        for kept in std::mem::take(&mut self.sent).into_iter().flatten() {
            kept.give_back(routers, counters, may_be_sent_again);
        }
        self.owed = 0;
        self.give_back_queue(routers, counters);
    }

    fn give_back_queue(&mut self, routers: &mut Routers, counters: &mut OutgoingCounters) {
        for kept in self.queue.drain(..) {
            kept.give_back(routers, counters, |_| true);
        }
    }

    fn rest(&mut self, now: Millis) {
        let rest_ms = (REST_MS_MIN << self.failures.min(8)).min(REST_MS_MAX);
        self.failures += 1;
        self.state = State::Resting(Millis(now.0 + rest_ms));
    }
}

impl Kept {
    fn head(&self, place: usize) -> Option<RequestHead> {
        let is_open = self.is_answered.get(place).is_some_and(|answered| !answered);
        if is_open { self.batch.heads.get(place).copied() } else { None }
    }

    fn link<'r>(&self, routers: &'r mut Routers) -> &'r mut RouterLink {
        &mut routers[self.router][self.batch.group.0 as usize]
    }

    /// Hands one reply to the router.
    fn answer(&mut self, reply: &Reply<'_>, routers: &mut Routers) -> Result<(), Unreadable> {
        let place = reply.place as usize;
        let head = self.head(place).ok_or(Unreadable("a reply to no open request"))?;
        let link = self.link(routers);
        if reply.kind == ReplyKind::NotLeader {
            let (leader, term) = reply.refusal()?;
            refuse(link, &head, self.batch.record(&head), leader, term);
        } else if reply.shared.len() >= SHARED_BYTES_MIN && reply.kind == ReplyKind::Success {
            link.batch()
                .push_shared(head.token, reply.shared.into(), |out| out.extend_from_slice(reply.body));
        } else {
            link.batch().push(head.token, reply.kind, |out| {
                out.extend_from_slice(reply.body);
                out.extend_from_slice(reply.shared);
            });
        }
        if link.batch().bytes.len() >= super::REPLIES_BYTES_MAX {
            link.flush();
        }
        self.is_answered[place] = true;
        self.left -= 1;
        Ok(())
    }

    /// Answers what is open without the other node: given back where `may` allows, of unknown outcome otherwise.
    fn give_back(self, routers: &mut Routers, counters: &mut OutgoingCounters, may: impl Fn(&[u8]) -> bool) {
        for place in 0..self.batch.heads.len() {
            let Some(head) = self.head(place) else { continue };
            let record = self.batch.record(&head);
            let link = self.link(routers);
            if may(record) {
                counters.given_back += 1;
                refuse(link, &head, record, ReplicaId(0), 0);
            } else {
                counters.unknown += 1;
                link.batch().push(head.token, ReplyKind::Error, |out| {
                    answer::write(&Outcome::Failed(Failure::Timeout { unknown: true }), out);
                });
            }
        }
        self.recycle(routers);
    }

    fn recycle(self, routers: &mut Routers) {
        let group = self.batch.group.0 as usize;
        routers[self.router][group].recycle(self.batch);
    }
}

fn refuse(link: &mut RouterLink, head: &RequestHead, record: &[u8], leader: ReplicaId, term: u64) {
    let refused = NotLeader { leader, term, hash: head.hash, deadline: head.deadline, record };
    link.batch().push_not_leader(head.token, &refused);
}

/// Whether a request that may have reached a leader can be sent to another one: it changes nothing, or is recognised.
fn may_be_sent_again(record: &[u8]) -> bool {
    let Ok(record) = Record::decode(record) else { return false };
    let changes = match record.op {
        Op::TxnStart | Op::DeletePrefix | Op::CatalogChange => true,
        Op::Snapshot => false,
        op => op.is_logged(),
    };
    !changes || record.session.is_some()
}

fn unreadable(error: Unreadable) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.0)
}
