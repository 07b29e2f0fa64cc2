//! The dedup table of a group: what was answered to each client's recent writes, so that a retry applies once.
//!
//! A client numbers its writes. Per client the table keeps a floor and the replies at or above it; a seq below the floor
//! is expired, and whatever is dropped (acknowledged, aged by entry stamp, or pushed out by a bound) raises the floor
//! above it, so a forgotten write is refused and never applied again. The floor itself is kept for
//! [`SessionLimits::idle_ms`] after the last reply went; a retry later than that would count as new.
//!
//! Each client has one timer, set when its first reply is recorded and looked at again only when it is due, so that a
//! write costs no work on a queue. Everything is decided by what was applied, the stamps in it and the timers, which
//! snapshots keep, so replicas drop the same replies at the same entry. Never reads a clock; never lets the order of its
//! lookup map show.

use super::digest::SessionDigest;
use super::session_cut::SessionCut;
use crate::batch::ReplyKind;
use crate::ids::Millis;
use std::collections::{BTreeMap, VecDeque};

/// Longest client id in bytes.
pub const CLIENT_BYTES_MAX: usize = 256;
/// Longest remembered reply body in bytes. The body of a write's reply is a word, a number, a version or an error
/// sentence; none of them carries a value.
pub const REPLY_BODY_BYTES_MAX: usize = 64 << 10;
/// Most bytes of replies that one client may have; beyond it the oldest go. It bounds what one change copies during a
/// snapshot.
pub const CLIENT_REPLY_BYTES_MAX: usize = 1 << 20;

/// Bounds of the table; part of the group's replicated configuration, since replicas must drop alike.
#[derive(Clone, Copy, Debug)]
pub struct SessionLimits {
    /// Most clients; when as many are known, the longest idle one makes room, and without one a new client is refused.
    pub clients_max: usize,
    /// Most replies remembered for one client.
    pub replies_per_client_max: usize,
    /// No further write is admitted while the table holds as many bytes.
    pub bytes_max: usize,
    /// How long a reply is remembered, by entry stamps, in milliseconds.
    pub reply_age_ms: u64,
    /// How long a client without replies keeps its floor, by entry stamps, in milliseconds.
    pub idle_ms: u64,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            clients_max: 65_536,
            replies_per_client_max: 1024,
            bytes_max: 256 << 20,
            reply_age_ms: 3_600_000,
            idle_ms: 86_400_000,
        }
    }
}

/// A remembered reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The client's number of the request.
    pub seq: u64,
    /// Hash of the request, to tell a retry from another request under the same seq.
    pub fingerprint: u64,
    /// Stamp of the entry that carried the request.
    pub stamp: Millis,
    /// How to read the body.
    pub kind: ReplyKind,
    /// The body as it was sent.
    pub body: Box<[u8]>,
}

/// Bookkeeping of one reply beside its body, roughly: the reply itself and the allocator's share.
const REPLY_OVERHEAD_BYTES: usize = size_of::<Reply>() + 16;
/// Bookkeeping of one client beside its id, roughly: its slot, its timer and its place in the lookup map.
const CLIENT_OVERHEAD_BYTES: usize = size_of::<Option<Client>>() + 64;
/// Room for so many replies stays with a client that has acknowledged all.
const REPLIES_KEPT_ROOM: usize = 4;

impl Reply {
    /// The kind as stored in snapshots.
    pub(crate) fn kind_code(&self) -> u8 {
        match self.kind {
            ReplyKind::Ok => 0,
            ReplyKind::Success => 1,
            ReplyKind::Error => 2,
            ReplyKind::Part => 3,
            ReplyKind::NotLeader | ReplyKind::StalePart => {
                unreachable!("what was not proposed and what may be stale is never remembered")
            }
        }
    }

    /// Reads a stored kind.
    pub(crate) fn kind_of(code: u8) -> Option<ReplyKind> {
        [ReplyKind::Ok, ReplyKind::Success, ReplyKind::Error, ReplyKind::Part].get(usize::from(code)).copied()
    }

    fn bytes(&self) -> usize {
        self.body.len() + REPLY_OVERHEAD_BYTES
    }
}

/// Why a new write is refused; nothing was changed, and a later try may succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// As many clients as allowed have replies younger than the age limit.
    TooManyClients,
    /// The remembered replies take all the memory they may.
    TooManyBytes,
}

/// What the table knows about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check<'a> {
    /// Never seen: apply it and [`Sessions::record`] the reply.
    Fresh,
    /// A retry: answer this and apply nothing.
    Replay(&'a Reply),
    /// Another request had this seq.
    Mismatch,
    /// Below the floor: whether it was applied is no longer known.
    Expired,
    /// Never seen, and there is no room to remember it.
    Refused(Refusal),
}

#[derive(Debug)]
pub(super) struct Client {
    pub(super) id: Box<[u8]>,
    /// The lowest seq that may still be applied or replayed.
    pub(super) floor: u64,
    /// Stamp of the last entry that recorded or acknowledged something.
    pub(super) last_active: Millis,
    pub(super) timer: Timer,
    /// By rising seq.
    pub(super) replies: VecDeque<Reply>,
    reply_bytes: usize,
    /// The last snapshot that has this client as it was at its beginning, or that began before the client.
    pub(super) captured: u32,
}

/// When a client is looked at again; never later than something of it is due to be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timer {
    /// Whether the client had no reply when the timer was set: then it waits to be forgotten.
    pub(super) idle: bool,
    pub(super) due: Millis,
    /// Tells timers due at the same stamp apart: they go off in the order in which they were set.
    pub(super) order: u64,
}

/// Clients by due stamp and order.
type Timers = BTreeMap<(Millis, u64), u32>;

/// The dedup table of one group.
#[derive(Debug)]
pub struct Sessions {
    limits: SessionLimits,
    /// Only for lookups, never iterated.
    by_id: hashbrown::HashTable<u32>,
    pub(super) clients: Vec<Option<Client>>,
    free: Vec<u32>,
    /// Timers of clients that had replies when they were set, and of those that had none.
    active: Timers,
    idle: Timers,
    /// The highest order given to a timer.
    order: u64,
    bytes: usize,
    pub(super) generation: u32,
    pub(super) cut: Option<SessionCut>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self::new(SessionLimits::default())
    }
}

impl Sessions {
    /// An empty table.
    pub fn new(limits: SessionLimits) -> Self {
        assert!(limits.clients_max > 0 && limits.replies_per_client_max > 0, "a session remembers something");
        Self {
            limits,
            by_id: hashbrown::HashTable::new(),
            clients: Vec::new(),
            free: Vec::new(),
            active: Timers::new(),
            idle: Timers::new(),
            order: 0,
            bytes: 0,
            generation: 0,
            cut: None,
        }
    }

    /// Number of clients known.
    pub fn clients(&self) -> usize {
        self.by_id.len()
    }

    /// Bytes held, bookkeeping included, up to the allocator's rounding.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What to do with a request. Changes nothing.
    pub fn check(&self, client: &[u8], seq: u64, fingerprint: u64) -> Check<'_> {
        let Some(number) = self.find(client) else {
            return if seq == u64::MAX { Check::Expired } else { self.admit(true) };
        };
        let client = self.client(number);
        // The last number there is cannot be passed by a floor, so it is never remembered.
        if seq < client.floor || seq == u64::MAX {
            return Check::Expired;
        }
        match client.replies.binary_search_by_key(&seq, |reply| reply.seq) {
            Ok(at) if client.replies[at].fingerprint == fingerprint => Check::Replay(&client.replies[at]),
            Ok(_) => Check::Mismatch,
            Err(_) => self.admit(false),
        }
    }

    /// Remembers the reply to a request that [`Self::check`] called fresh just before. `stamp` is the entry's. A seq that
    /// the client acknowledged in the meantime is not remembered: it asked for that.
    pub fn record(
        &mut self,
        client: &[u8],
        seq: u64,
        fingerprint: u64,
        kind: ReplyKind,
        body: &[u8],
        stamp: Millis,
    ) {
        assert!(client.len() <= CLIENT_BYTES_MAX, "the command checked the client id's length");
        assert!(body.len() <= REPLY_BODY_BYTES_MAX, "the reply to a write carries no value");
        let number = self.find(client).unwrap_or_else(|| self.create(client, stamp));
        if seq < self.client(number).floor {
            return;
        }
        self.capture_before_change(number);
        self.insert(number, Reply { seq, fingerprint, stamp, kind, body: body.into() });
        self.bound_client(number);
    }

    /// Learns that the client has every reply below `lowest_unanswered`. `stamp` is the entry's.
    pub fn acked(&mut self, client: &[u8], lowest_unanswered: u64, stamp: Millis) {
        let Some(number) = self.find(client) else { return };
        if self.client(number).floor < lowest_unanswered {
            self.capture_before_change(number);
            self.client_mut(number).last_active = stamp;
            self.raise_floor(number, lowest_unanswered);
        }
    }

    /// Drops what is too old at the entry stamp `now`, looking at no more than `clients` clients (each of at most
    /// [`SessionLimits::replies_per_client_max`] replies); whether more may be due. Call it with the same arguments at the
    /// same entry on every replica.
    pub fn expire(&mut self, now: Millis, clients: usize) -> bool {
        for _ in 0..clients {
            let first_due =
                |timers: &Timers| timers.first_key_value().filter(|(key, _)| key.0 <= now).map(|(_, n)| *n);
            let Some(number) = first_due(&self.active).or_else(|| first_due(&self.idle)) else {
                return false;
            };
            self.capture_before_change(number);
            self.look_at(number, now);
        }
        true
    }

    /// Numbers and digest of all clients and replies. Reads everything: for tests and checks.
    pub fn digest(&self) -> SessionDigest {
        let mut digest = SessionDigest::default();
        for client in self.clients.iter().flatten() {
            digest.add(&client.stored(), &client.replies);
        }
        digest
    }

    fn admit(&self, new_client: bool) -> Check<'_> {
        if self.bytes >= self.limits.bytes_max {
            return Check::Refused(Refusal::TooManyBytes);
        }
        if new_client && self.clients() >= self.limits.clients_max && self.idle.is_empty() {
            return Check::Refused(Refusal::TooManyClients);
        }
        Check::Fresh
    }

    fn find(&self, id: &[u8]) -> Option<u32> {
        let hash = xxhash_rust::xxh3::xxh3_64(id);
        self.by_id.find(hash, |number| *self.client(*number).id == *id).copied()
    }

    fn client(&self, number: u32) -> &Client {
        self.clients[number as usize].as_ref().expect("a client number in use")
    }

    fn client_mut(&mut self, number: u32) -> &mut Client {
        self.clients[number as usize].as_mut().expect("a client number in use")
    }

    fn create(&mut self, id: &[u8], stamp: Millis) -> u32 {
        // One for one: a table loaded under a lower bound than it was written under may stay above it, but never grows.
        if self.clients() >= self.limits.clients_max {
            let longest_idle = self.idle.values().next().copied();
            let idle = longest_idle.expect("check admits a client only when there is room for it");
            self.capture_before_change(idle);
            self.forget(idle);
        }
        let due = Millis(stamp.0.saturating_add(self.limits.reply_age_ms));
        self.order += 1;
        let timer = Timer { idle: false, due, order: self.order };
        // A client that begins during a snapshot is not part of it.
        let captured = self.generation;
        let replies = VecDeque::new();
        self.adopt(Client {
            id: id.into(),
            floor: 0,
            last_active: stamp,
            timer,
            replies,
            reply_bytes: 0,
            captured,
        })
    }

    fn adopt(&mut self, client: Client) -> u32 {
        let hash = xxhash_rust::xxh3::xxh3_64(&client.id);
        let timer = client.timer;
        self.bytes += client.id.len() + CLIENT_OVERHEAD_BYTES;
        let number = self.free.pop().unwrap_or(self.clients.len() as u32);
        if number as usize == self.clients.len() {
            self.clients.push(None);
        }
        self.clients[number as usize] = Some(client);
        let clients = &self.clients;
        self.by_id.insert_unique(hash, number, |number| {
            let client = clients[*number as usize].as_ref().expect("a client number in use");
            xxhash_rust::xxh3::xxh3_64(&client.id)
        });
        self.timers(timer.idle).insert((timer.due, timer.order), number);
        number
    }

    fn forget(&mut self, number: u32) {
        let client = self.clients[number as usize].take().expect("a client number in use");
        assert!(client.replies.is_empty(), "a client with replies is not forgotten");
        self.bytes -= client.id.len() + CLIENT_OVERHEAD_BYTES;
        self.timers(client.timer.idle).remove(&(client.timer.due, client.timer.order));
        let hash = xxhash_rust::xxh3::xxh3_64(&client.id);
        if let Ok(entry) = self.by_id.find_entry(hash, |other| *other == number) {
            entry.remove();
        }
        self.free.push(number);
    }

    fn timers(&mut self, idle: bool) -> &mut Timers {
        if idle { &mut self.idle } else { &mut self.active }
    }

    fn insert(&mut self, number: u32, reply: Reply) {
        let (bytes, stamp) = (reply.bytes(), reply.stamp);
        let client = self.client_mut(number);
        assert!((client.floor..u64::MAX).contains(&reply.seq), "check refuses the seqs that are never found");
        client.last_active = reply.stamp;
        client.reply_bytes += bytes;
        match client.replies.binary_search_by_key(&reply.seq, |other| other.seq) {
            Ok(_) => panic!("a reply is recorded once"),
            Err(at) => client.replies.insert(at, reply),
        }
        let was_idle = client.timer.idle;
        self.bytes += bytes;
        if was_idle {
            self.set_timer(number, false, stamp.0.saturating_add(self.limits.reply_age_ms));
        }
    }

    /// Drops the lowest replies of a client that has too many.
    fn bound_client(&mut self, number: u32) {
        let replies_max = self.limits.replies_per_client_max;
        let client = self.client(number);
        let mut bytes = client.reply_bytes;
        let mut kept = client.replies.len();
        for reply in &client.replies {
            if kept <= replies_max && (bytes <= CLIENT_REPLY_BYTES_MAX || kept == 1) {
                break;
            }
            bytes -= reply.bytes();
            kept -= 1;
        }
        if kept < client.replies.len() {
            let floor = client.replies[client.replies.len() - kept].seq;
            self.raise_floor(number, floor);
        }
    }

    fn raise_floor(&mut self, number: u32, floor: u64) {
        let client = self.client_mut(number);
        client.floor = client.floor.max(floor);
        let mut freed = 0;
        while client.replies.front().is_some_and(|reply| reply.seq < floor) {
            freed += client.replies.pop_front().map_or(0, |reply| reply.bytes());
        }
        client.reply_bytes -= freed;
        if client.replies.is_empty() {
            client.replies.shrink_to(REPLIES_KEPT_ROOM);
        }
        self.bytes -= freed;
    }

    /// Drops what is due of a client whose timer went off, and sets the timer again.
    fn look_at(&mut self, number: u32, now: Millis) {
        let SessionLimits { reply_age_ms, idle_ms, .. } = self.limits;
        let is_old = |reply: &Reply| reply.stamp.0.saturating_add(reply_age_ms) <= now.0;
        if let Some(last_old) = self.client(number).replies.iter().rev().find(|reply| is_old(reply)) {
            let floor = last_old.seq.saturating_add(1);
            self.raise_floor(number, floor);
        }
        let client = self.client(number);
        let oldest = client.replies.iter().map(|reply| reply.stamp).min();
        let due = match oldest {
            Some(oldest) => oldest.0.saturating_add(reply_age_ms),
            None => client.last_active.0.saturating_add(idle_ms),
        };
        if oldest.is_none() && due <= now.0 {
            return self.forget(number);
        }
        self.set_timer(number, oldest.is_none(), due);
    }

    fn set_timer(&mut self, number: u32, idle: bool, due: u64) {
        self.order += 1;
        let new = Timer { idle, due: Millis(due), order: self.order };
        let old = std::mem::replace(&mut self.client_mut(number).timer, new);
        self.timers(old.idle).remove(&(old.due, old.order));
        self.timers(new.idle).insert((new.due, new.order), number);
    }

    /// Puts a client from a snapshot in its place; false when it is already there or its timer's order is taken.
    pub(crate) fn restore(&mut self, stored: StoredClient, replies: VecDeque<Reply>) -> bool {
        let StoredClient { id, floor, last_active, idle, due, order } = stored;
        let timer = Timer { idle, due, order };
        if self.find(id).is_some() || self.timers(idle).contains_key(&(due, order)) {
            return false;
        }
        self.order = self.order.max(order);
        let reply_bytes = replies.iter().map(Reply::bytes).sum();
        self.bytes += reply_bytes;
        let captured = self.generation;
        self.adopt(Client { id: id.into(), floor, last_active, timer, replies, reply_bytes, captured });
        true
    }
}

/// A client as a snapshot holds it, without its replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoredClient<'a> {
    pub(crate) id: &'a [u8],
    pub(crate) floor: u64,
    pub(crate) last_active: Millis,
    pub(crate) idle: bool,
    pub(crate) due: Millis,
    pub(crate) order: u64,
}

impl Client {
    pub(super) fn stored(&self) -> StoredClient<'_> {
        let Timer { idle, due, order } = self.timer;
        StoredClient { id: &self.id, floor: self.floor, last_active: self.last_active, idle, due, order }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sessions(limits: SessionLimits) -> Sessions {
        Sessions::new(limits)
    }

    fn record(sessions: &mut Sessions, client: &str, seq: u64, stamp: u64) {
        assert_eq!(sessions.check(client.as_bytes(), seq, seq), Check::Fresh);
        let body = format!("\"result\":{seq}");
        sessions.record(client.as_bytes(), seq, seq, ReplyKind::Success, body.as_bytes(), Millis(stamp));
    }

    fn is_replayed(sessions: &Sessions, client: &str, seq: u64) -> bool {
        matches!(sessions.check(client.as_bytes(), seq, seq), Check::Replay(reply)
            if reply.body[..] == *format!("\"result\":{seq}").as_bytes())
    }

    #[test]
    fn a_retry_gets_the_first_reply() {
        let mut sessions = sessions(SessionLimits::default());
        for seq in [5, 3, 9] {
            record(&mut sessions, "a", seq, 10);
        }
        assert!([3, 5, 9].into_iter().all(|seq| is_replayed(&sessions, "a", seq)));
        assert_eq!(sessions.check(b"a", 5, 6), Check::Mismatch);
        assert_eq!(sessions.check(b"a", 4, 4), Check::Fresh);
        assert_eq!(sessions.check(b"b", 5, 5), Check::Fresh, "another client");
        sessions.acked(b"a", 5, Millis(11));
        assert_eq!(sessions.check(b"a", 3, 3), Check::Expired);
        assert_eq!(sessions.check(b"a", 4, 4), Check::Expired, "never applied, and never will be");
        assert!(is_replayed(&sessions, "a", 5));
        sessions.acked(b"a", 2, Millis(12));
        assert_eq!(sessions.check(b"a", 3, 3), Check::Expired, "a floor never falls");
        sessions.record(b"a", 4, 4, ReplyKind::Ok, b"", Millis(13));
        assert_eq!(sessions.check(b"a", 4, 4), Check::Expired, "acknowledged before it was recorded");
        assert_eq!(sessions.check(b"a", u64::MAX, 1), Check::Expired);
        assert_eq!(sessions.check(b"new", u64::MAX, 1), Check::Expired);
        sessions.acked(b"a", u64::MAX, Millis(14));
        assert_eq!(sessions.check(b"a", u64::MAX - 1, 1), Check::Expired);
    }

    #[test]
    fn a_client_has_only_so_many_replies() {
        let mut sessions = sessions(SessionLimits::default());
        for seq in 0..2000 {
            record(&mut sessions, "a", seq, 10);
        }
        assert_eq!(sessions.check(b"a", 2000 - 1025, 0), Check::Expired);
        assert!(is_replayed(&sessions, "a", 2000 - 1024));
        assert_eq!(sessions.digest().replies, 1024);
        let body = vec![b'x'; REPLY_BODY_BYTES_MAX];
        for seq in 2000..2100 {
            sessions.record(b"a", seq, seq, ReplyKind::Error, &body, Millis(10));
        }
        assert!(sessions.bytes() < CLIENT_REPLY_BYTES_MAX + 1000);
        assert!(matches!(sessions.check(b"a", 2099, 2099), Check::Replay(_)));
    }

    #[test]
    fn replies_go_after_an_hour_and_clients_after_a_day() {
        let mut sessions = sessions(SessionLimits::default());
        let hour = 3_600_000;
        record(&mut sessions, "a", 1, 0);
        record(&mut sessions, "a", 2, 1000);
        record(&mut sessions, "b", 1, 2000);
        assert!(!sessions.expire(Millis(hour - 1), 10));
        assert!(is_replayed(&sessions, "a", 1));
        assert!(!sessions.expire(Millis(hour), 10));
        assert_eq!(sessions.check(b"a", 1, 1), Check::Expired);
        assert!(is_replayed(&sessions, "a", 2));
        assert!(sessions.expire(Millis(hour + 2000), 1), "one look, and more to do");
        assert!(is_replayed(&sessions, "b", 1));
        assert!(!sessions.expire(Millis(hour + 2000), 10));
        assert_eq!((sessions.digest().replies, sessions.clients()), (0, 2));
        assert_eq!(sessions.check(b"a", 2, 2), Check::Expired, "the floor stays");
        // A client that comes back has its replies dropped an hour later, not a day.
        record(&mut sessions, "b", 2, 2 * hour);
        sessions.expire(Millis(3 * hour), 10);
        assert_eq!(sessions.check(b"b", 2, 2), Check::Expired);
        sessions.expire(Millis(24 * hour + 1000), 10);
        assert_eq!(sessions.clients(), 1, "only b was active since");
        sessions.expire(Millis(26 * hour), 10);
        assert_eq!((sessions.clients(), sessions.bytes()), (0, 0));
    }

    #[test]
    fn bounds_refuse_and_idle_clients_make_room() {
        let limits = SessionLimits { clients_max: 2, ..SessionLimits::default() };
        let mut table = sessions(limits);
        record(&mut table, "a", 1, 0);
        record(&mut table, "b", 1, 1);
        assert_eq!(table.check(b"c", 1, 1), Check::Refused(Refusal::TooManyClients));
        assert_eq!(table.check(b"a", 2, 2), Check::Fresh, "a known client goes on");
        table.expire(Millis(3_600_000), 10);
        record(&mut table, "c", 1, 3_600_001);
        assert_eq!(table.clients(), 2);
        assert_eq!(table.check(b"a", 1, 1), Check::Refused(Refusal::TooManyClients), "a was forgotten");

        // Loaded under a lower bound than it was filled under: no panic, no growth.
        let mut table = sessions(SessionLimits::default());
        for (client, stamp) in [("a", 0), ("b", 9), ("c", 9)] {
            record(&mut table, client, 1, stamp);
        }
        table.expire(Millis(3_600_000), 10);
        table.limits.clients_max = 1;
        record(&mut table, "d", 1, 3_600_000);
        assert_eq!((table.clients(), table.check(b"e", 1, 1)), (3, Check::Refused(Refusal::TooManyClients)));

        let mut table = sessions(SessionLimits { bytes_max: 300, ..limits });
        record(&mut table, "a", 1, 0);
        record(&mut table, "a", 2, 0);
        assert_eq!(table.check(b"a", 3, 3), Check::Refused(Refusal::TooManyBytes));
        assert!(is_replayed(&table, "a", 1), "a retry is answered all the same");
        table.acked(b"a", 3, Millis(1));
        assert_eq!(table.check(b"a", 3, 3), Check::Fresh);
    }
}
