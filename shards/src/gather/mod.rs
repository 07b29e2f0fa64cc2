//! Commands that need several answers from shards, as state machines: one file per gather.
//!
//! A router starts a gather, sends the calls that it asks for, brings each answer back by its number and passes the
//! result on. A gather decides and never performs: it knows no link, no client and no clock, and the same answers in the
//! same order give the same result. An error of a shard ends it with that error (SNAPSHOT waits for all first). Calls of
//! one gather that are under way together have different numbers; an answer with any other number is a defect.
//!
//! Bounds: a result is at most [`RESULT_BYTES_MAX`]; what a gather holds is told by [`Gather::held_bytes`], so that its
//! router can bound the sum.

mod answers;
pub mod bulk_get;
pub mod catalog;
pub mod cursor;
pub mod delete_prefix;
pub mod info;
pub mod list_indexes;
pub mod members;
pub mod parts;
pub mod query_index;
pub mod scan;
pub mod search;
mod search_parts;
pub mod snapshot;
pub mod topology;

use crate::batch::ReplyKind;
use crate::command::answer;
use crate::command::record::{Malformed, Record};
use crate::ids::GroupId;
use strand_wire::code::Code;
use strand_wire::reply::push_unsigned;

/// Longest result of one gather, in bytes; a longer one is refused with TOO_LARGE.
pub const RESULT_BYTES_MAX: usize = 64 << 20;

/// One request to one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Names the call among those of its gather that are under way; given back with its answer.
    pub number: u16,
    /// Whom it is for.
    pub group: GroupId,
    /// The encoded record.
    pub record: Vec<u8>,
}

/// What a gather wants next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The answers that are still under way.
    Wait,
    /// These calls; their answers follow.
    Calls(Vec<Call>),
    /// Nothing more: the reply to the client. Answers still under way are of no more use.
    Done {
        /// [`ReplyKind::Ok`], [`ReplyKind::Success`] or [`ReplyKind::Error`].
        kind: ReplyKind,
        /// The reply's members.
        members: Vec<u8>,
    },
}

/// Every gather.
#[derive(Debug)]
#[allow(missing_docs, reason = "the variants are the gathers, which their files describe")]
pub enum Gather {
    BulkGet(bulk_get::BulkGet),
    Scan(scan::Scan),
    DeletePrefix(delete_prefix::DeletePrefix),
    Info(info::Info),
    Snapshot(snapshot::Snapshot),
    /// A change of the cluster's members or leaders.
    Members(members::Members),
    Search(Box<search::Search>),
    QueryIndex(Box<query_index::QueryIndex>),
    ListIndexes(list_indexes::ListIndexes),
    CatalogChange(catalog::CatalogChange),
}

impl Gather {
    /// The answer to the call of this number.
    pub fn part(&mut self, number: u16, kind: ReplyKind, body: &[u8]) -> Step {
        let step = match self {
            Self::BulkGet(gather) => gather.part(number, kind, body),
            Self::Scan(gather) => gather.part(kind, body),
            Self::DeletePrefix(gather) => gather.part(number, kind, body),
            Self::Info(gather) => gather.part(number, kind, body),
            Self::Snapshot(gather) => Ok(gather.part(number, kind, body)),
            Self::Members(_) => members::Members::part(kind, body),
            Self::Search(gather) => gather.part(number, kind, body),
            Self::QueryIndex(gather) => gather.part(number, kind, body),
            Self::ListIndexes(gather) => gather.part(kind, body),
            Self::CatalogChange(gather) => gather.part(kind, body),
        };
        step.unwrap_or_else(|malformed| {
            let text = format!("a shard's answer cannot be read: {}", malformed.0);
            Step::failed(Code::Internal, &text)
        })
    }

    /// Whether it changes nothing, so that it may be given up and begun again.
    pub fn is_read(&self) -> bool {
        match self {
            Self::BulkGet(_)
            | Self::Scan(_)
            | Self::Info(_)
            | Self::Search(_)
            | Self::QueryIndex(_)
            | Self::ListIndexes(_) => true,
            Self::DeletePrefix(_) | Self::Snapshot(_) | Self::CatalogChange(_) | Self::Members(_) => false,
        }
    }

    /// Bytes that it holds for its client, about.
    pub fn held_bytes(&self) -> usize {
        match self {
            Self::BulkGet(gather) => gather.held_bytes(),
            Self::Scan(gather) => gather.held_bytes(),
            Self::Info(gather) => gather.held_bytes(),
            Self::Search(gather) => gather.held_bytes(),
            Self::QueryIndex(gather) => gather.held_bytes(),
            Self::DeletePrefix(_)
            | Self::Snapshot(_)
            | Self::ListIndexes(_)
            | Self::CatalogChange(_)
            | Self::Members(_) => 0,
        }
    }
}

impl Call {
    fn new(number: u16, group: GroupId, record: &Record<'_>) -> Self {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        Self { number, group, record: bytes }
    }
}

impl Step {
    /// The end with an error.
    pub fn failed(code: Code, text: &str) -> Self {
        let mut members = Vec::new();
        answer::error(&mut members, code, text);
        Self::Done { kind: ReplyKind::Error, members }
    }

    /// The end with members that tell of success.
    fn success(members: Vec<u8>) -> Self {
        if members.len() > RESULT_BYTES_MAX {
            return Self::too_large();
        }
        Self::Done { kind: ReplyKind::Success, members }
    }

    /// The end because of the bound on results.
    fn too_large() -> Self {
        let mut members = Vec::new();
        write_too_large(&mut members);
        Self::Done { kind: ReplyKind::Error, members }
    }

    /// The end with what a shard answered.
    fn passed_on(kind: ReplyKind, members: &[u8]) -> Self {
        Self::Done { kind, members: members.to_vec() }
    }
}

/// Appends the members of the error for a result over [`RESULT_BYTES_MAX`].
pub fn write_too_large(out: &mut Vec<u8>) {
    let text = format!(
        "the result is larger than {} MiB; ask for fewer keys at a time, or without values",
        RESULT_BYTES_MAX >> 20
    );
    answer::error(out, Code::TooLarge, &text);
    out.extend_from_slice(b",\"limit\":");
    push_unsigned(out, RESULT_BYTES_MAX as u64);
}

/// The text of a key.
fn text_of(key: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(key).map_err(|_| Malformed("a key that is no UTF-8"))
}

/// For answers that are neither a part nor an error.
const NO_PART: Malformed = Malformed("it is a client's reply and no part");

#[cfg(test)]
mod history_tests;
#[cfg(test)]
mod search_tests;
#[cfg(test)]
mod tests;
