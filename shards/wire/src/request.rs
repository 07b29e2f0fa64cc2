//! One request line in, one [`Request`] or [`Refusal`] out.
//!
//! Everything borrows from the line: keys are unescaped only when they hold a backslash, values stay the bytes that came.
//! [`parse`] first tries one pass over the common shapes of GET, SET, DELETE, EXISTS and INCR ([`key_request`]); whatever that
//! does not recognise goes through [`general`], which the table in [`crate::commands`] drives and which words the
//! refusals. Both give the same result where both give one. Nothing here panics on any input, and work is linear in the
//! line (batches: times the logarithm of their items).

mod admin;
mod batch;
mod data;
mod fast;
mod fields;
mod filter;
mod general;
mod refusal;
mod search;

pub use admin::{AddNode, Hello, TransferLeader};
pub use batch::{BulkDelete, BulkGet, BulkSet, Item};
pub use data::{
    Condition, Consistency, Delete, DeletePrefix, Durability, Expire, Get, Incr, KeyRead, Persist, Scan,
    Session, Set,
};
pub use fast::{KeyCommand, KeyRequest};
pub use filter::{Bound, Filter, Test};
pub use refusal::Refusal;
pub use search::{
    CreateIndex, DropIndex, Fusion, HybridSearch, IndexKind, Metric, Model, Order, QueryIndex, Search,
    SemanticQuery, SemanticSearch,
};

use crate::commands::{self, CommandSpec};
use crate::limits::Limits;
use std::borrow::Cow;

/// One well-formed request.
#[derive(Clone, Debug, PartialEq)]
pub struct Request<'a> {
    /// The JSON token, a string or an integer, that the reply repeats byte for byte.
    pub id: Option<&'a [u8]>,
    /// How long the client waits; its command's default applies without it.
    pub timeout_ms: Option<u32>,
    /// What is asked.
    pub command: Command<'a>,
}

/// Every command of the protocol.
#[derive(Clone, Debug, PartialEq)]
#[allow(
    missing_docs,
    reason = "the variants are the commands, which `commands::COMMANDS` and the payloads describe"
)]
pub enum Command<'a> {
    Ping,
    Hello(Hello<'a>),
    Set(Set<'a>),
    Get(Get<'a>),
    Delete(Delete<'a>),
    Exists(KeyRead<'a>),
    Incr(Incr<'a>),
    BulkSet(BulkSet<'a>),
    BulkGet(BulkGet<'a>),
    BulkDelete(BulkDelete<'a>),
    Expire(Expire<'a>),
    Ttl(KeyRead<'a>),
    Persist(Persist<'a>),
    Scan(Scan<'a>),
    DeletePrefix(DeletePrefix<'a>),
    Search(Box<Search<'a>>),
    SemanticSearch(Box<SemanticSearch<'a>>),
    HybridSearch(Box<HybridSearch<'a>>),
    CreateIndex(CreateIndex<'a>),
    QueryIndex(Box<QueryIndex<'a>>),
    ListIndexes,
    DropIndex(DropIndex<'a>),
    Info,
    Cluster,
    Snapshot,
    AddNode(AddNode<'a>),
    /// The node's id.
    RemoveNode(Cow<'a, str>),
    TransferLeader(TransferLeader<'a>),
    Balance,
    Shutdown,
}

impl Command<'_> {
    /// The command's name as the table writes it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Ping => "PING",
            Self::Hello(_) => "HELLO",
            Self::Set(_) => "SET",
            Self::Get(_) => "GET",
            Self::Delete(_) => "DELETE",
            Self::Exists(_) => "EXISTS",
            Self::Incr(_) => "INCR",
            Self::BulkSet(_) => "BULK_SET",
            Self::BulkGet(_) => "BULK_GET",
            Self::BulkDelete(_) => "BULK_DELETE",
            Self::Expire(_) => "EXPIRE",
            Self::Ttl(_) => "TTL",
            Self::Persist(_) => "PERSIST",
            Self::Scan(_) => "SCAN",
            Self::DeletePrefix(_) => "DELETE_PREFIX",
            Self::Search(_) => "SEARCH",
            Self::SemanticSearch(_) => "SEMANTIC_SEARCH",
            Self::HybridSearch(_) => "HYBRID_SEARCH",
            Self::CreateIndex(_) => "CREATE_INDEX",
            Self::QueryIndex(_) => "QUERY_INDEX",
            Self::ListIndexes => "LIST_INDEXES",
            Self::DropIndex(_) => "DROP_INDEX",
            Self::Info => "INFO",
            Self::Cluster => "CLUSTER",
            Self::Snapshot => "SNAPSHOT",
            Self::AddNode(_) => "ADD_NODE",
            Self::RemoveNode(_) => "REMOVE_NODE",
            Self::TransferLeader(_) => "TRANSFER_LEADER",
            Self::Balance => "BALANCE",
            Self::Shutdown => "SHUTDOWN",
        }
    }

    /// The command's line in the table: class, default deadline, fields. A search by name: not for every request.
    pub fn spec(&self) -> &'static CommandSpec {
        commands::find(self.name()).expect("every command is in the table")
    }
}

/// Reads one request line, given without its newline. White space around the object, a carriage return included, is
/// ignored. A line over `line_bytes_max` is refused unread, with [`Refusal::close`] set.
pub fn parse<'a>(line: &'a [u8], limits: &Limits) -> Result<Request<'a>, Refusal<'a>> {
    match key_request(line, limits) {
        Some(request) => Ok(request.whole()),
        None => parse_any(line, limits),
    }
}

/// As [`parse`] where it is quick: a request on one key of a common shape. Nothing for every other line, which says nothing
/// of whether [`parse_any`] takes it.
#[inline]
pub fn key_request<'a>(line: &'a [u8], limits: &Limits) -> Option<KeyRequest<'a>> {
    if line.len() > limits.line_bytes_max { None } else { fast::parse(line, limits) }
}

/// As [`parse`] for a line that [`key_request`] did not take: gives the same without trying that first.
pub fn parse_any<'a>(line: &'a [u8], limits: &Limits) -> Result<Request<'a>, Refusal<'a>> {
    if line.len() > limits.line_bytes_max {
        return Err(Refusal::line_too_long(limits));
    }
    general::parse(line, limits)
}

#[cfg(test)]
mod tests;
