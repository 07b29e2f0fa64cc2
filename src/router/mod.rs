//! The router: takes request lines from the front, sends each to the shard that owns its key, gathers where several
//! answer, and brings replies back.
//!
//! Invariants. A request on one key is parsed once, encoded straight into the batch that travels, and costs no
//! allocation, lock or system call of its own. Every line taken gets exactly one reply. Calls of a gather go to a shard
//! in the order in which they were asked for; while some wait for room at a shard, no line is taken for it. Requests of one
//! connection on one key never change places, whichever node leads. It never waits, and it keeps no state of a client
//! beyond what is under way.
//!
//! | file | duty |
//! |---|---|
//! | `mod` | the way of a request on one key, and the front's interface |
//! | `plan` | every other command: its class, and whether it is answered, sent or gathered |
//! | `search` | what the commands of the index engine ask of shards |
//! | `answers` | what the router answers itself |
//! | `replies` | what comes back from shards, and deadlines of gathers |
//! | `calls` | the gathers under way |
//! | `pairs` | which group a numbered write went to |
//! | `way` | where a group's requests go, and what becomes of them when its leader changes |
//! | `members` | what ADD_NODE, REMOVE_NODE, TRANSFER_LEADER and BALANCE ask of group 0 |
//! | `facts` | what the server is, and how it is stopped |
//! | `figures` | what routers count, told by one of them for all |

mod answers;
mod calls;
mod facts;
mod figures;
mod members;
mod pairs;
mod plan;
mod replies;
mod search;
#[cfg(test)]
mod tests;
mod way;

pub use facts::{SERVER_VERSION, ServerFacts, StopHandle};
pub use figures::{RouterBoard, RouterCounters};

use crate::front::{Class, Handled, ID_BYTES_MAX, LineAt, LineHandler, ReplySink};
use crate::links::ShardLink;
use crate::peer::nodes::Nodes;
use crate::peer::view::ClusterView;
use calls::Gathers;
use pairs::Pairs;
use shards::batch::ReplyKind;
use shards::command::answer::SEQ_REUSED;
use shards::command::encode;
use shards::command::record::{Record, flag};
use shards::gather::topology::Topology;
use shards::ids::{GroupId, Millis, Token, hash_of};
use std::sync::Arc;
use strand_wire::code::Code;
use strand_wire::commands;
use strand_wire::limits::Limits;
use strand_wire::reply;
use strand_wire::request::{self, Refusal};
use way::{Side, Target, Way};

/// How often a router looks for a leader while requests wait for one, in milliseconds.
const LEADER_LOOK_MS: u64 = 2;

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

/// What a router of a cluster has besides the links to its own shards.
#[derive(Debug)]
pub struct ClusterParts {
    /// Who leads.
    pub view: Arc<ClusterView>,
    /// Who the nodes are.
    pub nodes: Arc<Nodes>,
    /// One link a group to the thread that forwards, by the group's number.
    pub links: Vec<ShardLink>,
}

/// What every router of a cluster looks at.
#[derive(Debug)]
struct Cluster {
    view: Arc<ClusterView>,
    nodes: Arc<Nodes>,
}

/// The router; see the module's head.
pub struct Router {
    /// One a group, by its number.
    ways: Vec<Way>,
    /// Absent on a node that is alone.
    cluster: Option<Cluster>,
    topology: Topology,
    settings: RouterSettings,
    facts: Arc<ServerFacts>,
    gathers: Gathers,
    counters: RouterCounters,
    /// Its place on the board of figures.
    number: usize,
    next_publish: Millis,
    pairs: Pairs,
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
        f.debug_struct("Router").field("groups", &self.ways.len()).finish_non_exhaustive()
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
            ways: (0..).map(GroupId).zip(links).map(|(group, link)| Way::new(group, link)).collect(),
            cluster: None,
            topology,
            gathers: Gathers::new(settings.gathers_max, settings.gathers_bytes_max),
            settings,
            facts,
            counters: RouterCounters::default(),
            number: 0,
            next_publish: Millis(0),
            pairs: Pairs::default(),
            key_timeout_ms,
            clock: Box::new(clock),
        }
    }

    /// Makes it a router of a cluster; before the first turn.
    ///
    /// # Panics
    /// When links and groups differ in number.
    pub fn join(&mut self, parts: ClusterParts) {
        let ClusterParts { view, nodes, links } = parts;
        assert_eq!(links.len(), self.ways.len(), "a link for each group");
        for (way, link) in self.ways.iter_mut().zip(links) {
            way.join(link);
        }
        self.cluster = Some(Cluster { view, nodes });
    }

    /// The counters so far.
    pub fn counters(&self) -> RouterCounters {
        self.counters
    }

    /// When the router wants a turn although nothing happens: the deadline of a gather, or soon, since requests wait for a
    /// leader.
    pub fn next_deadline(&self, now: Millis) -> Option<Millis> {
        let waits = self.ways.iter().any(|way| way.held() > 0 && !way.is_open());
        let soon = waits.then_some(Millis(now.0 + LEADER_LOOK_MS));
        [self.gathers.next_deadline(), soon].into_iter().flatten().min()
    }

    /// Whether nothing is under way at any shard.
    pub fn is_quiet(&self) -> bool {
        self.gathers.count() == 0 && self.ways.iter().all(|way| way.outstanding() + way.held() == 0)
    }

    /// A line that was not read the quick way: every other command, and what is refused.
    #[inline(never)]
    fn other_line<'l>(&mut self, at: &mut LineAt<'_>, line: &'l [u8]) -> Handled<'l> {
        let request = match request::parse_any(line, &self.settings.limits) {
            Ok(request) => request,
            Err(refusal) => return self.refuse(at, line, &refusal),
        };
        let id = request.id.unwrap_or_default();
        if let Some(refused) = self.refuse_now(at, id) {
            return refused;
        }
        let Some(record) = encode::one_key(&request.command) else {
            return self.plan(at, &request, line.len());
        };
        if record.has(flag::DEBUG) && !self.settings.debug_faults {
            return self.fail(at, id, Code::Forbidden, plan::NO_FAULTS);
        }
        let timeout_ms = request.timeout_ms.unwrap_or(self.key_timeout_ms);
        let deadline = Millis(at.now().0 + u64::from(timeout_ms));
        self.send_one_key(at, id, deadline, &record)
    }

    /// Whether [`Router::refuse_now`] is to be asked.
    #[inline]
    fn may_refuse_now(&self, at: &LineAt<'_>, id: &[u8]) -> bool {
        (id.is_empty() && !at.is_ordered()) || self.facts.stop.is_requested()
    }

    /// Refuses what no request may be now, however sound it is.
    #[inline(never)]
    fn refuse_now<'l>(&mut self, at: &mut LineAt<'_>, id: &[u8]) -> Option<Handled<'l>> {
        if id.is_empty() && !at.is_ordered() {
            let text = "every request needs field \"id\" while replies may overtake one another";
            return Some(self.fail(at, id, Code::BadRequest, text));
        }
        if self.facts.stop.is_requested() {
            let text = "the server is stopping; connect again later";
            return Some(self.fail(at, id, Code::ShuttingDown, text));
        }
        None
    }

    /// Sends a request on one key to the group that owns it.
    #[inline]
    fn send_one_key<'l>(
        &mut self,
        at: &mut LineAt<'_>,
        id: &'l [u8],
        deadline: Millis,
        record: &Record<'_>,
    ) -> Handled<'l> {
        let class = if record.op.is_logged() { Class::SingleWrite } else { Class::SingleRead };
        if !at.admits(class) {
            return Handled::Hold(class);
        }
        let hash = hash_of(record.key);
        let group = self.topology.group_of_hashed(record.key, hash);
        if let Some(session) = &record.session
            && self.pairs.is_elsewhere(session.client, session.seq, group)
        {
            return self.fail(at, id, Code::Conflict, SEQ_REUSED);
        }
        if self.cluster.is_some()
            && let Some(handled) = self.send_apart(at, (id, deadline), class, group, record)
        {
            return handled;
        }
        let way = &mut self.ways[group.0 as usize];
        if !way.offer(client_token(at), hash, deadline, |out| record.encode(out)) {
            return Handled::HoldForRoom;
        }
        self.counters.sent += 1;
        Handled::Taken { class, id }
    }

    /// In a cluster: a request on one key that does not go to the leader, since it may be answered from this node's replica
    /// or its client wants to go to the leader itself.
    fn send_apart<'l>(
        &mut self,
        at: &mut LineAt<'_>,
        (id, deadline): (&'l [u8], Millis),
        class: Class,
        group: GroupId,
        record: &Record<'_>,
    ) -> Option<Handled<'l>> {
        let way = &mut self.ways[group.0 as usize];
        if record.has(flag::LOCAL) {
            let token = client_token(at);
            let hash = hash_of(record.key);
            let taken = way.offer_local(token, hash, deadline, false, |out| record.encode(out))?;
            if !taken {
                return Some(Handled::HoldForRoom);
            }
            self.counters.sent += 1;
            return Some(Handled::Taken { class, id });
        }
        if at.flags() & answers::CONNECTION_REDIRECT == 0 {
            return None;
        }
        let Target::There(node) = way.target() else { return None };
        let (_, address) = self.cluster.as_ref()?.nodes.name_of(node)?;
        self.counters.redirects += 1;
        Some(self.answer(at, id, ReplyKind::Error, |out| {
            answers::write_not_leader(out, group, &address);
        }))
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
    #[inline]
    fn line<'l>(&mut self, at: &mut LineAt<'_>, line: &'l [u8]) -> Handled<'l> {
        let Some(request) = request::key_request(line, &self.settings.limits) else {
            return self.other_line(at, line);
        };
        if self.may_refuse_now(at, request.id)
            && let Some(refused) = self.refuse_now(at, request.id)
        {
            return refused;
        }
        let record = encode::key_record(&request);
        let timeout_ms = request.timeout_ms().unwrap_or(self.key_timeout_ms);
        let deadline = Millis(at.now().0 + u64::from(timeout_ms));
        self.send_one_key(at, request.id, deadline, &record)
    }

    fn flush(&mut self) {
        for way in &mut self.ways {
            way.flush();
        }
    }

    fn poll(&mut self, sink: &mut ReplySink<'_>) -> bool {
        self.bring_replies(sink)
    }

    fn has_work(&mut self) -> bool {
        self.ways.iter().any(Way::has_replies)
    }

    fn next_deadline(&self, now: Millis) -> Option<Millis> {
        Router::next_deadline(self, now)
    }
}

/// The token of the line at hand.
#[inline]
fn client_token(at: &LineAt<'_>) -> Token {
    let token = at.token();
    assert!(calls::is_plain(token), "the front leaves the two uppermost bits of its tokens to the router");
    token
}
