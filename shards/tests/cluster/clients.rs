//! Clients with a small router each: requests in order, again after a refusal as the walls of the cluster say, and again
//! after a crash where that is safe.

use super::history::Operation;
use super::world::{Reply, World};
use shards::batch::{NotLeader, ReplyKind, RequestBatch, RequestHead};
use shards::command::items;
use shards::command::record::{Op, Record, Session};
use shards::ids::{GroupId, KeyHash, Millis, Token, hash_of};
use shards::txn::Kind;
use shards::txn::message::Start;
use std::collections::{BTreeMap, VecDeque};

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Set(String, String),
    Get(String),
    Increment(String),
    /// One value for one key in each of the groups.
    SetAll(String, String),
}

/// How a wish ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Done(String),
    Failed(String),
    Unknown,
}

struct Request {
    number: u64,
    wish: Wish,
    begun: u64,
    deadline: u64,
    record: Vec<u8>,
    hash: KeyHash,
    is_under_way: bool,
    /// An earlier try may have been applied: from then on no refusal says that it was not.
    may_have_applied: bool,
}

pub(crate) struct Client {
    router: u8,
    group: u32,
    groups: u32,
    /// Whom it believes to lead.
    target: u16,
    view: u32,
    next: u64,
    /// Wishes under way or refused, in their order.
    open: VecDeque<Request>,
    pub(crate) depth: usize,
    pub(crate) history: Vec<Operation>,
    pub(crate) ends: Vec<(Wish, End)>,
    /// How often a request came back.
    pub(crate) refusals: u64,
    timeout_ms: u64,
    hold_until: u64,
}

impl Client {
    pub(crate) fn new(router: u8, group: u32, groups: u32) -> Self {
        Self {
            router,
            group,
            groups,
            target: 1,
            view: 1,
            next: 1,
            open: VecDeque::new(),
            depth: 1,
            history: Vec::new(),
            ends: Vec::new(),
            refusals: 0,
            timeout_ms: 3000,
            hold_until: 0,
        }
    }

    /// The group that it speaks to.
    pub(crate) fn group(&self) -> u32 {
        self.group
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    pub(crate) fn has_room(&self) -> bool {
        self.open.len() < self.depth
    }

    /// Begins a wish.
    pub(crate) fn begin(&mut self, world: &mut World, wish: Wish) {
        let number = self.next;
        self.next += 1;
        let name = format!("client{}", self.router);
        let session = Some(Session { client: name.as_bytes(), seq: number, acked: 0 });
        let mut record = Vec::new();
        let mut hash = KeyHash(0);
        match &wish {
            Wish::Set(key, value) => {
                hash = hash_of(key.as_bytes());
                Record::plain(Op::Set, key.as_bytes(), value.as_bytes()).encode(&mut record);
            }
            Wish::Get(key) => {
                hash = hash_of(key.as_bytes());
                Record::plain(Op::Get, key.as_bytes(), b"").encode(&mut record);
            }
            Wish::Increment(key) => {
                hash = hash_of(key.as_bytes());
                let plain = Record::plain(Op::Incr, key.as_bytes(), b"");
                Record { argument: Some(1), session, ..plain }.encode(&mut record);
            }
            Wish::SetAll(key, value) => {
                let mut one = Vec::new();
                items::push(&mut one, key.as_bytes(), value.as_bytes());
                let parts = (0..self.groups).map(|group| (GroupId(group), &one[..])).collect();
                let mut start = Vec::new();
                Start { kind: Kind::Set, parts }.encode(&mut start);
                Record { session, ..Record::plain(Op::TxnStart, b"", &start) }.encode(&mut record);
            }
        }
        let (begun, deadline) = (world.now, world.now + self.timeout_ms);
        let (is_under_way, may_have_applied) = (false, false);
        self.open.push_back(Request {
            number,
            wish,
            begun,
            deadline,
            record,
            hash,
            is_under_way,
            may_have_applied,
        });
        self.send(world);
    }

    /// Sends what is not under way, if nothing before it is still to come back.
    pub(crate) fn send(&mut self, world: &mut World) {
        if world.now < self.hold_until || self.open.iter().all(|request| request.is_under_way) {
            return;
        }
        let mut batch = Box::<RequestBatch>::default();
        (batch.group, batch.view) = (GroupId(self.group), self.view);
        for request in self.open.iter_mut().filter(|request| !request.is_under_way) {
            let start = batch.bytes.len() as u32;
            batch.bytes.extend_from_slice(&request.record);
            batch.heads.push(RequestHead {
                token: Token(request.number),
                hash: request.hash,
                deadline: Millis(request.deadline),
                start,
                length: request.record.len() as u32,
            });
            request.is_under_way = true;
        }
        if !world.request(self.target, self.group, self.router, batch) {
            self.lost(world);
        }
    }

    /// The node that it spoke to died: what may be sent again is, the rest has no known outcome.
    pub(crate) fn lost(&mut self, world: &mut World) {
        self.view += 1;
        self.target = self.target % world.shape.nodes + 1;
        self.hold_until = world.now + 100;
        for at in (0..self.open.len()).rev() {
            let request = &mut self.open[at];
            let is_safe = !matches!(request.wish, Wish::Set(..));
            if !request.is_under_way {
                continue;
            }
            request.is_under_way = false;
            request.may_have_applied = !matches!(request.wish, Wish::Get(_));
            if !is_safe || request.deadline <= world.now {
                self.end(at, End::Failed("NO_QUORUM".to_owned()), world.now);
            }
        }
    }

    /// Which node it speaks to.
    pub(crate) fn target(&self) -> u16 {
        self.target
    }

    fn end(&mut self, at: usize, end: End, now: u64) {
        let Some(request) = self.open.remove(at) else { return };
        let end = match end {
            End::Failed(_) if request.may_have_applied => End::Unknown,
            end => end,
        };
        let operation = |key: &str, is_write, value| Operation {
            key: key.to_owned(),
            is_write,
            value,
            begun: request.begun,
            ended: Some(now),
        };
        match (&request.wish, &end) {
            (Wish::Set(key, value), End::Done(_)) => {
                self.history.push(operation(key, true, Some(value.clone())));
            }
            (Wish::Set(key, value), End::Unknown) => {
                let unknown = operation(key, true, Some(value.clone()));
                self.history.push(Operation { ended: None, ..unknown });
            }
            (Wish::Get(key), End::Done(text)) => {
                let value = text.strip_prefix("\"result\":").expect("a read tells a result");
                let value = (value != "null,\"found\":false").then(|| value.to_owned());
                self.history.push(operation(key, false, value));
            }
            _ => {}
        }
        self.ends.push((request.wish, end));
    }

    /// Takes a reply.
    pub(crate) fn hear(&mut self, world: &World, reply: &Reply) {
        let Some(at) = self.open.iter().position(|request| request.number == reply.token) else {
            return;
        };
        let text = || String::from_utf8_lossy(&reply.body).into_owned();
        match reply.kind {
            ReplyKind::Ok => self.end(at, End::Done(String::new()), world.now),
            ReplyKind::Success => self.end(at, End::Done(text()), world.now),
            ReplyKind::NotLeader => self.refused(at, world, reply),
            ReplyKind::Error if text().contains("\"outcome\":\"unknown\"") => self.unknown(at, world),
            ReplyKind::Error => self.end(at, End::Failed(text()), world.now),
            ReplyKind::Part | ReplyKind::StalePart => panic!("nothing was asked that is answered in parts"),
        }
    }

    fn refused(&mut self, at: usize, world: &World, reply: &Reply) {
        let refused = NotLeader::decode(&reply.body).expect("a refusal can be read");
        let request = &mut self.open[at];
        assert_eq!(refused.record, request.record, "a request comes back as it was sent");
        assert_eq!((refused.hash, refused.deadline.0), (request.hash, request.deadline));
        request.is_under_way = false;
        self.refusals += 1;
        if request.deadline <= world.now {
            return self.end(at, End::Failed("NO_QUORUM".to_owned()), world.now);
        }
        if self.open.iter().any(|request| request.is_under_way) {
            return;
        }
        self.view += 1;
        let known = refused.leader.node().0;
        if known > 0 && known != self.target {
            self.target = known;
        } else {
            self.target = self.target % world.shape.nodes + 1;
            self.hold_until = world.now + 50;
        }
    }

    fn unknown(&mut self, at: usize, world: &World) {
        let request = &mut self.open[at];
        if matches!(request.wish, Wish::Set(..)) {
            return self.end(at, End::Unknown, world.now);
        }
        // With a session a retry is safe.
        request.deadline = world.now + self.timeout_ms;
        request.is_under_way = false;
        request.may_have_applied = true;
    }
}

/// Turns once and lets the clients hear and go on.
pub(crate) fn turn(world: &mut World, clients: &mut [Client]) {
    world.turn();
    let replies = std::mem::take(&mut world.replies);
    for reply in &replies {
        if let Some(client) = clients.iter_mut().find(|client| client.router == reply.router) {
            client.hear(world, reply);
        }
    }
    for client in clients.iter_mut() {
        client.send(world);
    }
}

/// What a counter should be at least and at most.
pub(crate) fn increments(ends: &[(Wish, End)]) -> BTreeMap<String, (u64, u64)> {
    let mut counts: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for (wish, end) in ends {
        if let Wish::Increment(key) = wish {
            let count = counts.entry(key.clone()).or_default();
            match end {
                End::Done(_) => *count = (count.0 + 1, count.1 + 1),
                End::Unknown => count.1 += 1,
                End::Failed(_) => {}
            }
        }
    }
    counts
}
