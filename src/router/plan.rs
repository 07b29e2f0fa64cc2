//! Every command that is not on one key: what it needs of those before it on its connection, and how it is run.
//!
//! A line that must wait is refused before anything was done for it, since it is parsed and planned again.

use super::answers;
use super::calls::GatherId;
use super::members;
use super::search;
use super::way::Waiting;
use super::{Asked, Router, client_token};
use crate::front::{Class, Handled, LineAt};
use shards::batch::ReplyKind;
use shards::command::answer::SEQ_REUSED;
use shards::command::encode;
use shards::command::record::{Op, Record, flag};
use shards::gather::bulk_get::BulkGet;
use shards::gather::catalog::CatalogChange;
use shards::gather::delete_prefix::{DeletePrefix, KEEPER};
use shards::gather::info::Info;
use shards::gather::list_indexes::ListIndexes;
use shards::gather::members::Members;
use shards::gather::query_index::QueryIndex;
use shards::gather::scan::Scan;
use shards::gather::search::Search;
use shards::gather::snapshot::Snapshot;
use shards::gather::topology::Topology;
use shards::gather::{Call, Gather, Step};
use shards::ids::{GroupId, KeyHash, Millis};
use shards::txn::Kind;
use strand_wire::code::Code;
use strand_wire::request::{Command, Request, Session};

/// Why `"debug": true` is refused.
pub(super) const NO_FAULTS: &str =
    "injected faults are switched off on this server (debug.faults); leave out \"debug\"";

/// Why commands on the membership are refused.
const ALONE: &str =
    "this node runs alone and has no members to change; start nodes with --peers for a cluster";

/// Shards judge the deadline of a gather's call so much later than the router judges the gather's, so that the client
/// hears of the command and not of one of its calls.
pub(super) const CALL_GRACE_MS: u64 = 250;

/// How long CLUSTER waits for the figures of a group.
const CLUSTER_MS_MAX: u64 = 2500;

/// A write on several keys, split by group.
struct ManyKeys<'r> {
    kind: Kind,
    parts: Vec<(GroupId, Vec<u8>)>,
    debug: bool,
    session: Option<&'r Session<'r>>,
}

impl Router {
    /// Runs a command that is not on one key.
    pub(super) fn plan<'l>(
        &mut self,
        at: &mut LineAt<'_>,
        request: &Request<'l>,
        line_bytes: usize,
    ) -> Handled<'l> {
        let id = request.id.unwrap_or_default();
        let timeout_ms = request.timeout_ms.unwrap_or_else(|| request.command.spec().timeout_ms);
        let deadline = Millis(at.now().0 + u64::from(timeout_ms));
        let asked = Asked { id, deadline, line_bytes };
        match &request.command {
            Command::Ping => {
                self.answer(at, id, ReplyKind::Success, |out| out.extend_from_slice(b"\"result\":\"PONG\""))
            }
            Command::Hello(hello) => self.hello(at, &asked, hello),
            Command::BulkSet(bulk) => {
                if bulk.debug && !self.settings.debug_faults {
                    return self.fail(at, id, Code::Forbidden, NO_FAULTS);
                }
                let entries = bulk.items.iter().map(|(key, value)| (&**key, *value));
                let parts = encode::split(&self.topology, entries);
                let session = bulk.session.as_ref();
                self.many_keys(at, &asked, &ManyKeys { kind: Kind::Set, parts, debug: bulk.debug, session })
            }
            Command::BulkDelete(bulk) => {
                let entries = bulk.keys.iter().map(|key| (&**key, &[][..]));
                let parts = encode::split(&self.topology, entries);
                let session = bulk.session.as_ref();
                self.many_keys(at, &asked, &ManyKeys { kind: Kind::Delete, parts, debug: false, session })
            }
            Command::BulkGet(bulk) => {
                let parts = BulkGet::split(&self.topology, bulk);
                let class = if parts.len() > 1 { Class::ScatterRead } else { Class::SingleRead };
                self.gather(at, &asked, class, |topology| BulkGet::start(topology, bulk, parts))
            }
            Command::Scan(scan) => {
                self.gather(at, &asked, Class::ScatterRead, |topology| Scan::start(topology, scan))
            }
            Command::DeletePrefix(delete) => {
                if delete.session.as_ref().is_some_and(|session| self.is_elsewhere(session, KEEPER)) {
                    return self.fail(at, id, Code::Conflict, SEQ_REUSED);
                }
                let class = barrier(at);
                self.gather(at, &asked, class, |topology| DeletePrefix::start(topology, delete))
            }
            Command::Info => {
                let head = self.info_head(at.now());
                self.gather(at, &asked, Class::ScatterRead, |topology| Info::figures(topology, head))
            }
            Command::Cluster => {
                let mut head = Vec::new();
                self.write_nodes(&mut head, at.now());
                let (names, leaders) = (self.node_names(), self.leaders());
                // A group without a leader must not hide the others for long.
                let deadline = asked.deadline.min(Millis(at.now().0 + CLUSTER_MS_MAX));
                let asked = Asked { deadline, ..asked };
                self.gather(at, &asked, Class::ScatterRead, |topology| {
                    Info::groups(topology, head, names, leaders)
                })
            }
            Command::Snapshot => {
                let class = barrier(at);
                self.gather(at, &asked, class, Snapshot::start)
            }
            Command::AddNode(_) | Command::RemoveNode(_) | Command::TransferLeader(_) | Command::Balance => {
                let Some(cluster) = &self.cluster else {
                    return self.fail(at, id, Code::UnsupportedInMode, ALONE);
                };
                match members::change(&cluster.nodes, &request.command) {
                    Ok(change) => {
                        let class = barrier(at);
                        self.gather(at, &asked, class, |_| Members::start(&change))
                    }
                    Err(text) => self.fail(at, id, Code::BadRequest, &text),
                }
            }
            Command::Shutdown => {
                self.facts.stop.request();
                self.answer(at, id, ReplyKind::Ok, |_| {})
            }
            Command::Search(_)
            | Command::SemanticSearch(_)
            | Command::HybridSearch(_)
            | Command::CreateIndex(_)
            | Command::QueryIndex(_)
            | Command::ListIndexes
            | Command::DropIndex(_) => self.search_commands(at, &asked, &request.command),
            Command::Set(_)
            | Command::Get(_)
            | Command::Delete(_)
            | Command::Exists(_)
            | Command::Incr(_)
            | Command::Expire(_)
            | Command::Ttl(_)
            | Command::Persist(_) => unreachable!("commands on one key have a record of their own"),
        }
    }

    /// The commands of the index engine: the one place where they are told apart.
    fn search_commands<'l>(
        &mut self,
        at: &mut LineAt<'_>,
        asked: &Asked<'l>,
        command: &Command<'_>,
    ) -> Handled<'l> {
        match search::plan(command) {
            Ok(search::Plan::Search { ask, offset, top_k, flags }) => {
                self.gather(at, asked, Class::ScatterRead, |topology| {
                    Search::start(topology, ask, offset, top_k, flags)
                })
            }
            Ok(search::Plan::Query(query)) => {
                self.gather(at, asked, Class::ScatterRead, |topology| QueryIndex::start(topology, query))
            }
            Ok(search::Plan::List) => self.gather(at, asked, Class::ScatterRead, ListIndexes::start),
            Ok(search::Plan::Change(change)) => {
                let class = barrier(at);
                self.gather(at, asked, class, |topology| CatalogChange::start(topology, &change))
            }
            Err((code, text)) => self.fail(at, asked.id, code, &text),
        }
    }

    /// HELLO: waits for everything before it, then sets the connection up anew.
    fn hello<'l>(
        &mut self,
        at: &mut LineAt<'_>,
        asked: &Asked<'l>,
        hello: &strand_wire::request::Hello<'_>,
    ) -> Handled<'l> {
        if !at.admits(Class::Barrier) {
            return Handled::Hold(Class::Barrier);
        }
        at.set_flags(if hello.redirect { answers::CONNECTION_REDIRECT } else { 0 });
        at.set_ordered(hello.ordered);
        self.counters.answered_alone += 1;
        at.answer_with(ReplyKind::Success, asked.id, |out| self.write_hello(out));
        Handled::Answered
    }

    /// A write on several keys: a command of one group, or a transaction that its lowest group runs.
    fn many_keys<'l>(&mut self, at: &mut LineAt<'_>, asked: &Asked<'l>, write: &ManyKeys<'_>) -> Handled<'l> {
        let class = if write.parts.len() > 1 { barrier(at) } else { Class::SingleWrite };
        if !at.admits(class) {
            return Handled::Hold(class);
        }
        let Some((lowest, _)) = write.parts.first() else {
            return self
                .answer(at, asked.id, ReplyKind::Success, |out| out.extend_from_slice(b"\"result\":0"));
        };
        if write.session.is_some_and(|session| self.is_elsewhere(session, *lowest)) {
            return self.fail(at, asked.id, Code::Conflict, SEQ_REUSED);
        }
        let way = &mut self.ways[lowest.0 as usize];
        let is_taken = way.offer(client_token(at), KeyHash(0), asked.deadline, |out| {
            encode::many_keys(write.kind, &write.parts, write.debug, write.session, out);
        });
        if !is_taken {
            return Handled::HoldForRoom;
        }
        self.counters.sent += 1;
        Handled::Taken { class, id: asked.id }
    }

    /// Whether a numbered write went to another group before.
    fn is_elsewhere(&mut self, session: &Session<'_>, group: GroupId) -> bool {
        self.pairs.is_elsewhere(session.client.as_bytes(), session.seq, group)
    }

    /// Begins a gather, unless the line must wait.
    fn gather<'l>(
        &mut self,
        at: &mut LineAt<'_>,
        asked: &Asked<'l>,
        class: Class,
        start: impl FnOnce(&Topology) -> (Gather, Step),
    ) -> Handled<'l> {
        if !at.admits(class) {
            return Handled::Hold(class);
        }
        if !self.gathers.has_room(asked.line_bytes) {
            return Handled::HoldForRoom;
        }
        let (gather, step) = start(&self.topology);
        let calls = match step {
            Step::Calls(calls) => calls,
            Step::Done { kind, members } => {
                return self.answer(at, asked.id, kind, |out| out.extend_from_slice(&members));
            }
            Step::Wait => unreachable!("a gather begins with calls, or ends"),
        };
        let id = self.gathers.insert(client_token(at), asked.deadline, gather);
        self.counters.gathers += 1;
        self.send_calls(id, asked.deadline, calls);
        Handled::Taken { class, id: asked.id }
    }

    /// Sends the calls of a gather, or has them wait for room.
    pub(super) fn send_calls(&mut self, id: GatherId, deadline: Millis, calls: Vec<Call>) {
        let deadline = Millis(deadline.0 + CALL_GRACE_MS);
        self.counters.calls += calls.len() as u64;
        for call in calls {
            let token = id.token(call.number);
            let way = &mut self.ways[call.group.0 as usize];
            let write = |out: &mut Vec<u8>| out.extend_from_slice(&call.record);
            let is_local = Record::flags_of(&call.record) & flag::LOCAL != 0;
            let is_info = call.record.first() == Some(&(Op::Info as u8));
            let taken =
                if is_local { way.offer_local(token, KeyHash(0), deadline, is_info, write) } else { None };
            if taken == Some(true) || way.offer(token, KeyHash(0), deadline, write) {
                continue;
            }
            // Bounded: a gather has at most one call under way for each of its numbers.
            way.wait(Waiting { token, hash: KeyHash(0), deadline, record: call.record });
        }
    }
}

/// The class of a write that several shards take part in: on a connection without order, where a barrier would stop
/// everything, an ordinary write.
fn barrier(at: &LineAt<'_>) -> Class {
    if at.is_ordered() { Class::Barrier } else { Class::SingleWrite }
}
