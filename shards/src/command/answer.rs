//! What a command came to, and the JSON members that say so to a client.
//!
//! Members stand without braces; the router adds status and id. Nothing here decides anything.

use crate::batch::ReplyKind;
use crate::ids::{Millis, Version};
use std::io::Write as _;
use strand_wire::code::{Code, Retry};

/// The result of a write, the same on every replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// `"OK"`.
    Ok,
    /// `"OK"` with the version that was written.
    Written(Version),
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Integer(i64),
    /// Members made elsewhere; the kind says whether they tell of success.
    Members(ReplyKind, Vec<u8>),
    /// Nothing changed.
    Failed(Failure),
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The condition was not met; the record's version, if there is a record.
    Conflict(Option<Version>),
    /// The value is no integer.
    WrongType,
    /// The sum is beyond 64 bits.
    Overflow,
    /// The sequence number was used for another request.
    SeqReused,
    /// The reply of this sequence number is remembered no longer.
    SeqExpired,
    /// The table of remembered replies is full.
    SessionsFull,
    /// No answer in time; whether it may still apply.
    Timeout {
        /// The command may have been, or may yet be, applied.
        unknown: bool,
    },
    /// The log has no space.
    DiskFull,
    /// The command fits no batch of the log, which holds so many bytes.
    TooLarge(u64),
    /// The memory bound is reached.
    OutOfMemory,
    /// Too much is waiting for the same thing.
    Overloaded(&'static str),
    /// This replica does not lead the group.
    NotLeader,
    /// This replica led when the request came, and could not make sure that it still leads.
    NoQuorum,
    /// The server is stopping.
    ShuttingDown,
    /// No index of this kind on this field.
    NoSuchIndex(String),
    /// The field has an index of this kind with another definition.
    IndexExists(String),
    /// The request asks for something that cannot be.
    BadRequest(String),
    /// A defect of this program; the text says what was seen.
    Internal(String),
    /// The mode that the server runs in cannot do this.
    UnsupportedInMode(&'static str),
}

/// What is said of a pair of client and seq that belongs to another request.
pub const SEQ_REUSED: &str =
    "this client and seq named another request before; use a higher seq for a new request";

/// Appends the members of an outcome and says how to read them.
pub fn write(outcome: &Outcome, out: &mut Vec<u8>) -> ReplyKind {
    match outcome {
        Outcome::Ok => return ReplyKind::Ok,
        Outcome::Written(version) => {
            write_version(out, *version);
            out.extend_from_slice(br#","result":"OK""#);
        }
        Outcome::Bool(true) => out.extend_from_slice(br#""result":true"#),
        Outcome::Bool(false) => out.extend_from_slice(br#""result":false"#),
        Outcome::Integer(number) => {
            out.extend_from_slice(br#""result":"#);
            out.extend_from_slice(itoa::Buffer::new().format(*number).as_bytes());
        }
        Outcome::Members(kind, members) => {
            out.extend_from_slice(members);
            return *kind;
        }
        Outcome::Failed(failure) => {
            write_failure(failure, out);
            return ReplyKind::Error;
        }
    }
    ReplyKind::Success
}

/// Appends `"result":` and the token.
pub fn write_token(out: &mut Vec<u8>, token: &[u8]) {
    out.extend_from_slice(br#""result":"#);
    out.extend_from_slice(token);
}

/// Appends the members for a key that is absent.
pub fn write_absent(out: &mut Vec<u8>) {
    out.extend_from_slice(br#""result":null,"found":false"#);
}

/// Appends `"version":"..."`.
pub fn write_version(out: &mut Vec<u8>, version: Version) {
    write!(out, "\"version\":\"{version}\"").expect("a vector takes every byte");
}

/// Appends the members that say that a read may be stale, and as of which index.
pub fn write_stale(out: &mut Vec<u8>, applied_index: u64) {
    write!(out, "\"stale\":true,\"applied_index\":{applied_index}").expect("a vector takes every byte");
}

/// The remaining time to live in ms as the TTL command tells it.
pub fn ttl_result(expires_at: Option<Millis>, now: Millis) -> i64 {
    match expires_at {
        None => -1,
        Some(at) => i64::try_from(at.0.saturating_sub(now.0)).unwrap_or(i64::MAX),
    }
}

fn write_failure(failure: &Failure, out: &mut Vec<u8>) {
    match failure {
        Failure::Conflict(version) => {
            let text = "the condition is not met; read the key again and decide anew";
            error(out, Code::Conflict, text);
            match version {
                Some(version) => {
                    out.push(b',');
                    write_version(out, *version);
                }
                None => out.extend_from_slice(br#","version":null"#),
            }
        }
        Failure::WrongType => {
            error(
                out,
                Code::WrongType,
                "the value is no integer, so nothing can be added to it; SET it to an integer first",
            );
        }
        Failure::Overflow => {
            error(out, Code::Overflow, "the sum is beyond 64 bits; the value is unchanged");
        }
        Failure::SeqReused => {
            error(out, Code::Conflict, SEQ_REUSED);
        }
        Failure::SeqExpired => {
            let text =
                "the reply of this seq is remembered no longer; read the keys to see what became of it";
            error(out, Code::SeqExpired, text);
        }
        Failure::SessionsFull => {
            let text =
                "too many clients are remembered for retries; try again later or leave out client and seq";
            error(out, Code::Overloaded, text);
        }
        Failure::Timeout { unknown: true } => {
            let text = "no answer in time, or the leader changed meanwhile; the write may still apply, so retry with the same client and seq";
            error(out, Code::Timeout, text);
            out.extend_from_slice(br#","outcome":"unknown""#);
        }
        Failure::Timeout { unknown: false } => {
            // Told apart from an unknown outcome: this command never reached the log.
            let text = "no answer in time; nothing was applied, so try again";
            strand_wire::reply::push_error(out, Code::Timeout, text, Retry::Safe);
            out.extend_from_slice(br#","outcome":"not applied""#);
        }
        Failure::DiskFull => {
            error(out, Code::DiskFull, "the log has no space; free disk space, reads go on meanwhile");
        }
        Failure::TooLarge(limit) => {
            let text = "the command fits no batch of the log; split it, or make a data directory with larger wal.segment_mib";
            error(out, Code::TooLarge, text);
            out.extend_from_slice(format!(",\"limit\":{limit}").as_bytes());
        }
        Failure::OutOfMemory => {
            error(out, Code::OutOfMemory, "the memory bound is reached; delete keys or raise memory.max_mib");
        }
        Failure::Overloaded(text) => error(out, Code::Overloaded, text),
        Failure::NotLeader => {
            error(out, Code::NotLeader, "this node does not lead the key's group; ask the leader");
        }
        Failure::NoQuorum => {
            let text =
                "a majority of the group's replicas did not answer in time; nothing was read, so try again";
            error(out, Code::NoQuorum, text);
        }
        Failure::ShuttingDown => {
            error(out, Code::ShuttingDown, "the server is stopping; connect again later");
        }
        Failure::NoSuchIndex(text) => error(out, Code::NoSuchIndex, text),
        Failure::IndexExists(text) => error(out, Code::IndexExists, text),
        Failure::BadRequest(text) => error(out, Code::BadRequest, text),
        Failure::Internal(text) => error(out, Code::Internal, text),
        Failure::UnsupportedInMode(text) => error(out, Code::UnsupportedInMode, text),
    }
}

/// Appends the members of a failure.
pub fn error(out: &mut Vec<u8>, code: Code, text: &str) {
    out.extend_from_slice(br#""code":""#);
    out.extend_from_slice(code.as_str().as_bytes());
    out.extend_from_slice(br#"","error":"#);
    strand_wire::json::push_string(out, text);
    out.extend_from_slice(br#","retry":""#);
    out.extend_from_slice(code.retry().as_str().as_bytes());
    out.push(b'"');
}
