//! What travels between a router and a shard: requests and replies in batches, one allocation for many of them.
//!
//! Both are plain containers that are filled, sent, drained and sent back to be filled again. A request is the binary
//! command that the log also holds (`command::record`), so the shard copies it and never sees JSON syntax again.

use crate::ids::{GroupId, KeyHash, Millis, NodeNumber, Token};
use std::sync::Arc;

/// Requests from one router to one shard.
#[derive(Debug, Default)]
pub struct RequestBatch {
    /// The command records, one after another.
    pub bytes: Vec<u8>,
    /// One head a request, in arrival order.
    pub heads: Vec<RequestHead>,
    /// The group that they are for.
    pub group: GroupId,
    /// The node that is believed to lead it, for a batch that goes to another node; unused on the way to a shard.
    pub node: NodeNumber,
    /// Which stream of requests this batch belongs to, among those that come over one link: 0 from a router of this
    /// process, one for each router of another node behind a peer link.
    pub origin: u16,
    /// The sender's view of who leads, counted up whenever it changes its mind. A shard that has refused a batch of a
    /// stream as not leading refuses every later one of the same or an older view, so that a refused request is never
    /// overtaken by one that came behind it.
    pub view: u32,
}

/// Where one request stands in its batch.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead {
    /// Echoed in the reply.
    pub token: Token,
    /// Hash of the key, for commands that have one; 0 otherwise.
    pub hash: KeyHash,
    /// When the client stops waiting.
    pub deadline: Millis,
    /// First byte of the command record in [`RequestBatch::bytes`].
    pub start: u32,
    /// Length of the record in bytes.
    pub length: u32,
}

/// Replies from one shard to one router, in the order in which they were decided.
#[derive(Debug, Default)]
pub struct ReplyBatch {
    /// Reply bodies, one after another.
    pub bytes: Vec<u8>,
    /// One head a reply.
    pub heads: Vec<ReplyHead>,
    /// Large values, shared with the state instead of copied.
    pub shared: Vec<Arc<[u8]>>,
}

/// What kind of body a reply has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyKind {
    /// Success with the result `"OK"`; no body.
    Ok,
    /// Success; the body is JSON members without braces, such as `"result":1` or `"version":"0-1","result":null`.
    Success,
    /// Failure; the body is JSON members such as `"code":"CONFLICT","error":"...","retry":"never"`.
    Error,
    /// An answer to a gathering router, in the engine's own encoding; never sent to a client as it is.
    Part,
    /// The request was not proposed, since this replica does not lead; it may be sent elsewhere. The body is the leader's
    /// replica u64 (0: not known), the term u64, the request's key hash u64 and deadline u64, and its record; never sent to
    /// a client as it is.
    NotLeader,
}

/// Where one reply stands in its batch.
#[derive(Clone, Copy, Debug)]
pub struct ReplyHead {
    /// The token of the request.
    pub token: Token,
    /// How to read the body.
    pub kind: ReplyKind,
    /// First byte of the body in [`ReplyBatch::bytes`].
    pub start: u32,
    /// Length of the body in bytes.
    pub length: u32,
    /// Position in [`ReplyBatch::shared`] of a value that follows the body's bytes, or [`NOT_SHARED`].
    pub shared: u32,
}

/// [`ReplyHead::shared`] of a reply whose body is all in the batch.
pub const NOT_SHARED: u32 = u32::MAX;

impl RequestBatch {
    /// Empties the batch and keeps its memory, up to `keep_bytes` of it.
    pub fn clear(&mut self, keep_bytes: usize) {
        self.bytes.clear();
        self.bytes.shrink_to(keep_bytes);
        self.heads.clear();
    }

    /// The command record of one of this batch's requests.
    pub fn record(&self, head: &RequestHead) -> &[u8] {
        &self.bytes[head.start as usize..][..head.length as usize]
    }
}

impl ReplyBatch {
    /// Empties the batch and keeps its memory, up to `keep_bytes` of it.
    pub fn clear(&mut self, keep_bytes: usize) {
        self.bytes.clear();
        self.bytes.shrink_to(keep_bytes);
        self.heads.clear();
        self.shared.clear();
    }

    /// The body of one of this batch's replies, without the shared value that may follow it.
    pub fn body(&self, head: &ReplyHead) -> &[u8] {
        &self.bytes[head.start as usize..][..head.length as usize]
    }

    /// Adds a reply whose body `write` appends.
    pub fn push(&mut self, token: Token, kind: ReplyKind, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        write(&mut self.bytes);
        let length = self.bytes.len() - start;
        let (start, length) = (narrow(start), narrow(length));
        self.heads.push(ReplyHead { token, kind, start, length, shared: NOT_SHARED });
    }

    /// Adds a reply whose body is what `write` appends and then `value`.
    pub fn push_shared(&mut self, token: Token, value: Arc<[u8]>, write: impl FnOnce(&mut Vec<u8>)) {
        self.push(token, ReplyKind::Success, write);
        let position = narrow(self.shared.len());
        self.shared.push(value);
        if let Some(head) = self.heads.last_mut() {
            head.shared = position;
        }
    }
}

/// Batches are flushed long before 4 GiB, so their offsets fit 32 bits.
fn narrow(offset: usize) -> u32 {
    u32::try_from(offset).expect("a batch stays below 4 GiB")
}
