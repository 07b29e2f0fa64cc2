//! A router of a simulated machine: request lines to batches for shards, answers back to clients.
//!
//! Smaller than the server's and equal where it counts: lines go through the wire crate's parser, records through the
//! engine's encoder, commands over several shards through the engine's gathers. Every line gets one answer.

use shards::batch::{NOT_SHARED, NotLeader, ReplyBatch, ReplyKind, RequestBatch, RequestHead};
use shards::command::encode;
use shards::command::record::{Op, Record};
use shards::gather::bulk_get::BulkGet;
use shards::gather::catalog::{CatalogChange, Change};
use shards::gather::delete_prefix::DeletePrefix;
use shards::gather::list_indexes::ListIndexes;
use shards::gather::query_index::QueryIndex;
use shards::gather::scan::Scan;
use shards::gather::search::{Ask as SearchAsk, Scoring, Search};
use shards::gather::snapshot::Snapshot;
use shards::gather::topology::Topology;
use shards::gather::{Call, Gather, Step};
use shards::ids::{GroupId, KeyHash, Millis, ReplicaId, Token, hash_of};
use shards::index::analyze::AnalyzerKind;
use shards::index::set::{IndexDefinition, IndexKind};
use shards::index::vector::Metric;
use shards::meta::MetaChange;
use shards::txn::Kind;
use std::collections::BTreeMap;
use strand_wire::limits::Limits;
use strand_wire::request::{self, Command};

/// Marks the token of a gather's call.
const CALL_BIT: u64 = 1 << 63;
/// As the server's router: shards judge a call so much later than the router judges its gather.
const CALL_GRACE_MS: u64 = 250;

/// How long a change of the cluster may take.
const META_TIMEOUT_MS: u64 = 2_000;

/// Names a request of a client in the whole simulation.
pub type AskId = u64;

/// An answer to a client.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Whose.
    pub ask: AskId,
    /// How to read it.
    pub kind: ReplyKind,
    /// JSON members.
    pub members: Vec<u8>,
}

/// A request at a shard.
struct Sent {
    group: GroupId,
    deadline: Millis,
    /// Which machine has it; none while it waits in a batch.
    target: Option<usize>,
    is_logged: bool,
}

/// A gateway that is sure of nothing waits so much longer than its client.
const ANSWER_GRACE_MS: u64 = 1000;

struct Running {
    ask: AskId,
    deadline: Millis,
    gather: Gather,
}

/// See the module's head.
pub struct Router {
    topology: Topology,
    limits: Limits,
    open: Vec<RequestBatch>,
    gathers: BTreeMap<u32, Running>,
    next_gather: u32,
    /// Requests at shards that are not answered.
    pending: BTreeMap<u64, Sent>,
    /// Requests that were refused as not leading and wait to be sent again.
    refused: Vec<(GroupId, Token, KeyHash, Millis, Vec<u8>)>,
    /// This machine.
    home: usize,
    next_view: u32,
    /// Answers ready to leave.
    pub answers: Vec<Answer>,
}

impl Router {
    /// A router over so many groups.
    pub fn new(groups: u32, home: usize, life: u32) -> Self {
        Self {
            topology: Topology::even(groups as u16),
            limits: Limits::default(),
            open: (0..groups).map(|_| RequestBatch::default()).collect(),
            gathers: BTreeMap::new(),
            // Answers to an earlier process of this machine name none of this one's gathers.
            next_gather: (life & 0x3ff) << 21,
            pending: BTreeMap::new(),
            refused: Vec::new(),
            home,
            next_view: 0,
            answers: Vec::new(),
        }
    }

    /// Takes a line from a client.
    pub fn line(&mut self, now: Millis, ask: AskId, line: &str) {
        assert!(ask & CALL_BIT == 0, "a client's token leaves the uppermost bit");
        let limits = self.limits.clone();
        let request = match request::parse(line.as_bytes(), &limits) {
            Ok(request) => request,
            Err(refusal) => panic!("a workload wrote a line that is no request: {line}: {}", refusal.message),
        };
        let timeout_ms = request.timeout_ms.unwrap_or_else(|| request.command.spec().timeout_ms);
        let deadline = Millis(now.0 + u64::from(timeout_ms));
        if let Some(record) = encode::one_key(&request.command) {
            let hash = hash_of(record.key);
            let group = self.topology.group_of_hashed(record.key, hash);
            return self.push(group, Token(ask), hash, deadline, |out| record.encode(out));
        }
        match &request.command {
            Command::BulkSet(bulk) => {
                let entries = bulk.items.iter().map(|(key, value)| (&**key, *value));
                let parts = encode::split(&self.topology, entries);
                self.many(ask, deadline, Kind::Set, &parts, bulk.debug, bulk.session.as_ref());
            }
            Command::BulkDelete(bulk) => {
                let parts = encode::split(&self.topology, bulk.keys.iter().map(|key| (&**key, &[][..])));
                self.many(ask, deadline, Kind::Delete, &parts, false, bulk.session.as_ref());
            }
            Command::BulkGet(bulk) => {
                let parts = BulkGet::split(&self.topology, bulk);
                self.gather(ask, deadline, |topology| BulkGet::start(topology, bulk, parts));
            }
            Command::Scan(scan) => self.gather(ask, deadline, |topology| Scan::start(topology, scan)),
            Command::DeletePrefix(delete) => {
                self.gather(ask, deadline, |topology| DeletePrefix::start(topology, delete));
            }
            Command::Snapshot => self.gather(ask, deadline, Snapshot::start),
            Command::ListIndexes => self.gather(ask, deadline, ListIndexes::start),
            Command::QueryIndex(query) => {
                self.gather(ask, deadline, |topology| QueryIndex::start(topology, query));
            }
            Command::Search(search) => {
                let limit = u32::try_from(search.offset + search.top_k).expect("workloads ask for little");
                let wanted = SearchAsk {
                    scoring: Scoring::Bm25,
                    limit,
                    with_values: search.with_values,
                    highlight: search.highlight,
                    query: search.query.to_string(),
                    fields: search.fields.iter().map(ToString::to_string).collect(),
                    filter: search.filter_token.unwrap_or_default().to_vec(),
                };
                self.gather(ask, deadline, |topology| {
                    Search::start(topology, wanted, search.offset, search.top_k, 0)
                });
            }
            Command::CreateIndex(create) => {
                let kind = match create.kind {
                    request::IndexKind::Value => IndexKind::Value,
                    request::IndexKind::Text => IndexKind::Text { analyzer: AnalyzerKind::default() },
                    request::IndexKind::Vector => IndexKind::Vector {
                        dimensions: create.dim.unwrap_or(0) as usize,
                        metric: match create.metric.unwrap_or_default() {
                            request::Metric::Cosine => Metric::Cosine,
                            request::Metric::Dot => Metric::Dot,
                            request::Metric::L2 => Metric::L2,
                        },
                    },
                };
                let change = Change::Define(IndexDefinition { path: create.field.to_string(), kind });
                self.gather(ask, deadline, |topology| CatalogChange::start(topology, &change));
            }
            Command::DropIndex(drop) => {
                let change = Change::Drop { path: drop.field.to_string(), kind: drop.kind };
                self.gather(ask, deadline, |topology| CatalogChange::start(topology, &change));
            }
            other => panic!("no workload asks for {}", other.name()),
        }
    }

    /// Asks group 0 for a change of the cluster, as ADD_NODE and REMOVE_NODE do. Who asks does not wait for the answer.
    pub fn change_meta(&mut self, now: Millis, ask: AskId, change: &MetaChange) {
        let mut value = Vec::new();
        change.encode(&mut value);
        let deadline = Millis(now.0 + META_TIMEOUT_MS);
        let record = Record::plain(Op::MetaChange, &[], &value);
        self.push(GroupId(0), Token(ask), KeyHash(0), deadline, |out| record.encode(out));
    }

    fn many(
        &mut self,
        ask: AskId,
        deadline: Millis,
        kind: Kind,
        parts: &[(GroupId, Vec<u8>)],
        debug: bool,
        session: Option<&request::Session<'_>>,
    ) {
        let (lowest, _) = parts.first().expect("workloads name keys");
        self.push(*lowest, Token(ask), KeyHash(0), deadline, |out| {
            encode::many_keys(kind, parts, debug, session, out);
        });
    }

    fn gather(&mut self, ask: AskId, deadline: Millis, start: impl FnOnce(&Topology) -> (Gather, Step)) {
        let (gather, step) = start(&self.topology);
        let id = self.next_gather;
        self.next_gather = (self.next_gather + 1) & 0x7fff_ffff;
        self.gathers.insert(id, Running { ask, deadline, gather });
        self.go_on(id, step);
    }

    fn go_on(&mut self, id: u32, step: Step) {
        match step {
            Step::Wait => {}
            Step::Calls(calls) => {
                let deadline = Millis(self.gathers[&id].deadline.0 + CALL_GRACE_MS);
                for Call { number, group, record } in calls {
                    let token = Token(CALL_BIT | u64::from(id) << 16 | u64::from(number));
                    self.push(group, token, KeyHash(0), deadline, |out| out.extend_from_slice(&record));
                }
            }
            Step::Done { kind, members } => {
                let running = self.gathers.remove(&id).expect("a gather ends once");
                self.answers.push(Answer { ask: running.ask, kind, members });
            }
        }
    }

    fn push(
        &mut self,
        group: GroupId,
        token: Token,
        hash: KeyHash,
        deadline: Millis,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let batch = &mut self.open[group.0 as usize];
        let start = batch.bytes.len() as u32;
        write(&mut batch.bytes);
        let length = batch.bytes.len() as u32 - start;
        let op = Record::decode(&batch.bytes[start as usize..]).map(|record| record.op);
        let is_logged = op.is_ok_and(|op| op.is_logged()) || op.is_ok_and(changes_something);
        self.pending.insert(token.0, Sent { group, deadline, target: None, is_logged });
        batch.heads.push(RequestHead { token, hash, deadline, start, length });
    }

    /// The batches that have gathered, with their groups; `target` says which machine gets a group's.
    pub fn take_batches(&mut self, target: impl Fn(GroupId) -> usize) -> Vec<(GroupId, Box<RequestBatch>)> {
        let mut taken = Vec::new();
        for (number, open) in self.open.iter_mut().enumerate() {
            if open.heads.is_empty() {
                continue;
            }
            let group = GroupId(number as u32);
            let mut batch = std::mem::take(open);
            // Every batch is a word of its own: what was refused once may be sent again at any time.
            self.next_view += 1;
            (batch.group, batch.view) = (group, self.next_view);
            for head in &batch.heads {
                if let Some(sent) = self.pending.get_mut(&head.token.0) {
                    sent.target = Some(target(group));
                }
            }
            taken.push((group, Box::new(batch)));
        }
        taken
    }

    /// Takes a shard's replies. Tells which leaders were named: group, term, machine.
    pub fn replies(&mut self, batch: &ReplyBatch) -> Vec<(GroupId, u64, ReplicaId)> {
        let mut named = Vec::new();
        for head in &batch.heads {
            // What was given up is answered to nobody.
            let Some(sent) = self.pending.remove(&head.token.0) else { continue };
            let mut body = batch.body(head).to_vec();
            if head.shared != NOT_SHARED {
                body.extend_from_slice(&batch.shared[head.shared as usize]);
            }
            if head.kind == ReplyKind::NotLeader {
                let refused = NotLeader::decode(&body).expect("the engine's own bytes");
                named.push((sent.group, refused.term, refused.leader));
                let (hash, deadline) = (refused.hash, refused.deadline);
                self.refused.push((sent.group, head.token, hash, deadline, refused.record.to_vec()));
                continue;
            }
            self.answer(head.token, head.kind, body);
        }
        named
    }

    fn answer(&mut self, token: Token, kind: ReplyKind, body: Vec<u8>) {
        if token.0 & CALL_BIT == 0 {
            assert!(kind != ReplyKind::Part, "a client's request is not answered with a part");
            return self.answers.push(Answer { ask: token.0, kind, members: body });
        }
        let id = (token.0 >> 16) as u32 & 0x7fff_ffff;
        if let Some(running) = self.gathers.get_mut(&id) {
            let step = running.gather.part(token.0 as u16, kind, &body);
            self.go_on(id, step);
        }
    }

    /// Gives up a request that nobody may answer any more.
    fn give_up(&mut self, token: u64) {
        let Some(sent) = self.pending.remove(&token) else { return };
        let unknown = if sent.is_logged { ",\"outcome\":\"unknown\"" } else { "" };
        let members = format!("\"code\":\"TIMEOUT\",\"error\":\"no answer from the group\"{unknown}");
        self.answer(Token(token), ReplyKind::Error, members.into_bytes());
    }

    /// A machine is gone, and with it what it had.
    pub fn link_broke(&mut self, machine: usize) {
        if machine == self.home {
            return;
        }
        let lost: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, sent)| sent.target == Some(machine))
            .map(|(token, _)| *token)
            .collect();
        lost.into_iter().for_each(|token| self.give_up(token));
    }

    /// Sends again what was refused as not leading.
    pub fn send_refused(&mut self, now: Millis) {
        for (group, token, hash, deadline, record) in std::mem::take(&mut self.refused) {
            if deadline > now {
                self.push(group, token, hash, deadline, |out| out.extend_from_slice(&record));
            } else {
                let members = b"\"code\":\"NO_QUORUM\",\"error\":\"nobody leads\"".to_vec();
                self.answer(token, ReplyKind::Error, members);
            }
        }
    }

    /// Requests at shards that are not answered.
    pub fn outstanding(&self) -> usize {
        self.pending.len() + self.refused.len()
    }

    /// Ends the gathers whose clients have stopped waiting.
    pub fn end_late(&mut self, now: Millis) {
        let late = self.pending.iter().filter(|(_, sent)| sent.deadline.0 + ANSWER_GRACE_MS <= now.0);
        let late: Vec<u64> =
            late.filter(|(_, sent)| sent.target != Some(self.home)).map(|(token, _)| *token).collect();
        late.into_iter().for_each(|token| self.give_up(token));
        let late: Vec<u32> =
            self.gathers.iter().filter(|(_, running)| running.deadline <= now).map(|(id, _)| *id).collect();
        for id in late {
            let running = self.gathers.remove(&id).expect("just found");
            let unknown = if running.gather.is_read() { "" } else { ",\"outcome\":\"unknown\"" };
            let members = format!("\"code\":\"TIMEOUT\",\"error\":\"late\"{unknown}").into_bytes();
            self.answers.push(Answer { ask: running.ask, kind: ReplyKind::Error, members });
        }
    }

    /// Gathers under way.
    pub fn gathers(&self) -> usize {
        self.gathers.len()
    }
}

/// Whether a request that is no log entry itself brings about some.
fn changes_something(op: Op) -> bool {
    matches!(op, Op::TxnStart | Op::DeletePrefix | Op::CatalogChange)
}
