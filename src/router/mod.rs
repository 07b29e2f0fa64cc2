//! The router: takes request lines from the front, sends each to the shard that owns its key, gathers where several
//! answer, and brings replies back.
//!
//! Invariants. A request on one key is parsed once, encoded straight into the batch that travels, and costs no
//! allocation, lock or system call of its own. Every line taken gets exactly one reply. Calls of a gather go to a shard
//! in the order in which they were asked for; while some wait for room at a shard, no line is taken for it. It never
//! waits, and it keeps no state of a client beyond what is under way.
//!
//! | file | duty |
//! |---|---|
//! | `mod` | the way of a request on one key, and the front's interface |
//! | `plan` | every other command: its class, and whether it is answered, sent or gathered |
//! | `search` | what the commands of the index engine ask of shards |
//! | `answers` | what the router answers itself |
//! | `replies` | what comes back from shards, and deadlines of gathers |
//! | `calls` | the gathers under way |
//! | `facts` | what the server is, and how it is stopped |

mod answers;
mod calls;
mod facts;
mod plan;
mod replies;
mod search;
#[cfg(test)]
mod tests;

pub use facts::{SERVER_VERSION, ServerFacts, StopHandle};

use crate::front::{Class, Handled, ID_BYTES_MAX, LineAt, LineHandler, ReplySink};
use crate::links::ShardLink;
use calls::Gathers;
use shards::batch::{ReplyKind, RequestHead};
use shards::command::encode;
use shards::command::record::{Record, flag};
use shards::gather::topology::Topology;
use shards::ids::{KeyHash, Millis, Token, hash_of};
use std::collections::VecDeque;
use std::sync::Arc;
use strand_wire::code::Code;
use strand_wire::commands;
use strand_wire::limits::Limits;
use strand_wire::reply;
use strand_wire::request::{self, Refusal};

/// A batch of so many bytes is sent at once instead of at the end of the turn.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// Knobs of a router.
#[derive(Clone, Debug)]
pub struct RouterSettings {
    /// What clients may send.
    pub limits: Limits,
    /// Whether `"debug": true` is allowed.
    pub debug_faults: bool,
    /// Gathers under way at once; further lines that need one wait. At most 65,536.
    pub gathers_max: usize,
    /// Bytes that all gathers may hold together: requests, and answers that wait for others.
    pub gathers_bytes_max: usize,
}

impl Default for RouterSettings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            debug_faults: true,
            gathers_max: 4096,
            gathers_bytes_max: 512 << 20,
        }
    }
}

/// Counts since the router was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouterCounters {
    /// Requests sent to a shard as they are.
    pub sent: u64,
    /// Lines that the router answered without a shard, refusals included.
    pub answered_alone: u64,
    /// Lines that were no request.
    pub refused: u64,
    /// Gathers begun.
    pub gathers: u64,
    /// Calls of gathers.
    pub calls: u64,
    /// Gathers that ended at their deadline.
    pub gather_timeouts: u64,
}

/// A gather's call that found no room at its shard.
#[derive(Debug)]
struct WaitingCall {
    token: Token,
    deadline: Millis,
    record: Vec<u8>,
}

/// The router; see the module's head.
pub struct Router {
    /// One a group, by its number.
    links: Vec<ShardLink>,
    /// Calls that wait for room, by group.
    waiting: Vec<VecDeque<WaitingCall>>,
    topology: Topology,
    settings: RouterSettings,
    facts: Arc<ServerFacts>,
    gathers: Gathers,
    counters: RouterCounters,
    /// Deadline of requests on one key that give none, from the table of commands.
    key_timeout_ms: u32,
    clock: Box<dyn Fn() -> Millis>,
}

/// One request, as the ways of its command need it.
#[derive(Clone, Copy, Debug)]
struct Asked<'l> {
    id: &'l [u8],
    deadline: Millis,
    line_bytes: usize,
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router").field("groups", &self.links.len()).finish_non_exhaustive()
    }
}

impl Router {
    /// A router over one link for each group of `topology`. `clock` is the front's: it is asked once a turn, and only
    /// while gathers are under way.
    ///
    /// # Panics
    /// When links and groups differ in number.
    pub fn new(
        links: Vec<ShardLink>,
        topology: Topology,
        mut settings: RouterSettings,
        facts: Arc<ServerFacts>,
        clock: impl Fn() -> Millis + 'static,
    ) -> Self {
        assert_eq!(links.len(), topology.groups(), "a link for each group");
        // The front keeps an id of at most so many bytes until the reply.
        settings.limits.id_bytes_max = settings.limits.id_bytes_max.min(ID_BYTES_MAX);
        let key_timeout_ms = commands::find("GET").map_or(5000, |spec| spec.timeout_ms);
        Self {
            waiting: links.iter().map(|_| VecDeque::new()).collect(),
            links,
            topology,
            gathers: Gathers::new(settings.gathers_max, settings.gathers_bytes_max),
            settings,
            facts,
            counters: RouterCounters::default(),
            key_timeout_ms,
            clock: Box::new(clock),
        }
    }

    /// The counters so far.
    pub fn counters(&self) -> RouterCounters {
        self.counters
    }

    /// When the router wants a turn although nothing happens: the deadline of a gather.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.gathers.next_deadline()
    }

    /// Whether nothing is under way at any shard.
    pub fn is_quiet(&self) -> bool {
        self.gathers.count() == 0 && self.links.iter().all(|link| link.outstanding() == 0)
    }

    /// Sends a request on one key to the group that owns it.
    #[inline]
    fn send_one_key<'l>(
        &mut self,
        at: &LineAt<'_>,
        asked: &Asked<'l>,
        class: Class,
        record: &Record<'_>,
    ) -> Handled<'l> {
        if !at.admits(class) {
            return Handled::Hold(class);
        }
        let hash = hash_of(record.key);
        let group = self.topology.group_of_hashed(record.key, hash).0 as usize;
        if !self.has_room_at(group) {
            return Handled::HoldForRoom;
        }
        push(&mut self.links[group], client_token(at), hash, asked.deadline, |out| record.encode(out));
        self.counters.sent += 1;
        Handled::Taken { class, id: asked.id }
    }

    /// Whether a line may be taken for a group now: calls that wait go first.
    #[inline]
    fn has_room_at(&self, group: usize) -> bool {
        self.links[group].room() > 0 && self.waiting[group].is_empty()
    }

    fn refuse<'l>(&mut self, at: &mut LineAt<'_>, line: &[u8], refusal: &Refusal<'l>) -> Handled<'l> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Handled::Answered;
        }
        self.counters.refused += 1;
        self.counters.answered_alone += 1;
        at.answer_with(ReplyKind::Error, refusal.id.unwrap_or_default(), |out| {
            reply::push_error(out, refusal.code, &refusal.message, refusal.code.retry());
            if let Some(limit) = refusal.limit {
                out.extend_from_slice(b",\"limit\":");
                reply::push_unsigned(out, limit);
            }
        });
        if refusal.close { Handled::Close } else { Handled::Answered }
    }

    /// Answers a request with an error.
    fn fail<'l>(&mut self, at: &mut LineAt<'_>, id: &[u8], code: Code, text: &str) -> Handled<'l> {
        self.answer(at, id, ReplyKind::Error, |out| reply::push_error(out, code, text, code.retry()))
    }

    /// Answers a request with the members that `members` appends.
    fn answer<'l>(
        &mut self,
        at: &mut LineAt<'_>,
        id: &[u8],
        kind: ReplyKind,
        members: impl FnOnce(&mut Vec<u8>),
    ) -> Handled<'l> {
        self.counters.answered_alone += 1;
        at.answer_with(kind, id, members);
        Handled::Answered
    }
}

impl LineHandler for Router {
    fn line<'l>(&mut self, at: &mut LineAt<'_>, line: &'l [u8]) -> Handled<'l> {
        let request = match request::parse(line, &self.settings.limits) {
            Ok(request) => request,
            Err(refusal) => return self.refuse(at, line, &refusal),
        };
        let id = request.id.unwrap_or_default();
        if id.is_empty() && !at.is_ordered() {
            let text = "every request needs field \"id\" while replies may overtake one another";
            return self.fail(at, id, Code::BadRequest, text);
        }
        if self.facts.stop.is_requested() {
            let text = "the server is stopping; connect again later";
            return self.fail(at, id, Code::ShuttingDown, text);
        }
        let Some(record) = encode::one_key(&request.command) else {
            return self.plan(at, &request, line.len());
        };
        if record.has(flag::DEBUG) && !self.settings.debug_faults {
            return self.fail(at, id, Code::Forbidden, plan::NO_FAULTS);
        }
        let timeout_ms = request.timeout_ms.unwrap_or(self.key_timeout_ms);
        let deadline = Millis(at.now().0 + u64::from(timeout_ms));
        let class = if record.op.is_logged() { Class::SingleWrite } else { Class::SingleRead };
        self.send_one_key(at, &Asked { id, deadline, line_bytes: line.len() }, class, &record)
    }

    fn flush(&mut self) {
        for link in &mut self.links {
            link.flush();
        }
    }

    fn poll(&mut self, sink: &mut ReplySink<'_>) -> bool {
        self.bring_replies(sink)
    }

    fn has_work(&self) -> bool {
        self.links.iter().any(ShardLink::has_replies)
    }
}

/// The token of the line at hand.
#[inline]
fn client_token(at: &LineAt<'_>) -> Token {
    let token = at.token();
    assert!(!calls::is_call(token), "the front leaves the uppermost bit of its tokens to the router");
    token
}

/// Adds a request to what goes to a shard, whose link has room.
#[inline]
fn push(
    link: &mut ShardLink,
    token: Token,
    hash: KeyHash,
    deadline: Millis,
    write: impl FnOnce(&mut Vec<u8>),
) {
    let batch = link.batch();
    let start = batch.bytes.len();
    write(&mut batch.bytes);
    let end = batch.bytes.len();
    let length = u32::try_from(end - start).expect("a record is below 4 GiB");
    let start = u32::try_from(start).expect("a batch is sent long before 4 GiB");
    batch.heads.push(RequestHead { token, hash, deadline, start, length });
    if end >= BATCH_BYTES_MAX {
        link.flush();
    }
}
