//! What travels between a router and a shard: requests and replies in batches, one allocation for many of them.
//!
//! Both are plain containers that are filled, sent, drained and sent back to be filled again. A request is the binary
//! command that the log also holds (`command::record`), so the shard copies it and never sees JSON syntax again.

use crate::command::record::{Malformed, take_u64};
use crate::ids::{GroupId, KeyHash, Millis, NodeNumber, ReplicaId, Token};
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
    /// As [`ReplyKind::Part`], from a replica that does not lead, for a read that may be stale: the replica's applied index
    /// u64, then what stands in a part.
    StalePart,
}

/// A request that comes back since it was not proposed: the body of [`ReplyKind::NotLeader`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotLeader<'a> {
    /// Who leads, as far as this replica knows; 0 for nobody.
    pub leader: ReplicaId,
    /// The term of which it knows that.
    pub term: u64,
    /// The request's key hash.
    pub hash: KeyHash,
    /// When the client stops waiting.
    pub deadline: Millis,
    /// The request's record.
    pub record: &'a [u8],
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
        if self.bytes.capacity() > keep_bytes {
            self.bytes.shrink_to(keep_bytes);
        }
        self.heads.clear();
    }

    /// The command record of one of this batch's requests.
    #[inline]
    pub fn record(&self, head: &RequestHead) -> &[u8] {
        &self.bytes[head.start as usize..][..head.length as usize]
    }
}

impl ReplyBatch {
    /// Empties the batch and keeps its memory, up to `keep_bytes` of it.
    pub fn clear(&mut self, keep_bytes: usize) {
        self.bytes.clear();
        if self.bytes.capacity() > keep_bytes {
            self.bytes.shrink_to(keep_bytes);
        }
        self.heads.clear();
        self.shared.clear();
    }

    /// The body of one of this batch's replies, without the shared value that may follow it.
    #[inline]
    pub fn body(&self, head: &ReplyHead) -> &[u8] {
        &self.bytes[head.start as usize..][..head.length as usize]
    }

    /// Adds a reply whose body `write` appends.
    #[inline]
    pub fn push(&mut self, token: Token, kind: ReplyKind, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        write(&mut self.bytes);
        let length = self.bytes.len() - start;
        let (start, length) = (narrow(start), narrow(length));
        self.heads.push(ReplyHead { token, kind, start, length, shared: NOT_SHARED });
    }

    /// Adds the replies of another batch behind those of this one, and empties it.
    pub fn append(&mut self, other: &mut Self) {
        if self.heads.is_empty() {
            std::mem::swap(self, other);
            return other.clear(usize::MAX);
        }
        let (bytes, shared) = (narrow(self.bytes.len()), narrow(self.shared.len()));
        narrow(self.bytes.len() + other.bytes.len());
        self.bytes.append(&mut other.bytes);
        self.shared.append(&mut other.shared);
        self.heads.extend(other.heads.drain(..).map(|head| ReplyHead {
            start: head.start + bytes,
            shared: if head.shared == NOT_SHARED { NOT_SHARED } else { head.shared + shared },
            ..head
        }));
    }

    /// Gives a request back.
    pub fn push_not_leader(&mut self, token: Token, refused: &NotLeader<'_>) {
        self.push(token, ReplyKind::NotLeader, |out| refused.encode(out));
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

impl<'a> NotLeader<'a> {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for number in [self.leader.0, self.term, self.hash.0, self.deadline.0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(self.record);
    }

    /// Reads the body.
    pub fn decode(mut bytes: &'a [u8]) -> Result<Self, Malformed> {
        let rest = &mut bytes;
        let (leader, term) = (ReplicaId(take_u64(rest)?), take_u64(rest)?);
        let (hash, deadline) = (KeyHash(take_u64(rest)?), Millis(take_u64(rest)?));
        Ok(Self { leader, term, hash, deadline, record: rest })
    }
}

/// Batches are flushed long before 4 GiB, so their offsets fit 32 bits.
fn narrow(offset: usize) -> u32 {
    u32::try_from(offset).expect("a batch stays below 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_put_together() {
        let texts = |batch: &ReplyBatch| -> Vec<String> {
            let text = |head: &ReplyHead| {
                let shared = batch.shared.get(head.shared as usize).map_or(&[][..], |value| value);
                String::from_utf8([batch.body(head), shared].concat()).unwrap()
            };
            batch.heads.iter().map(text).collect()
        };
        let make = |name: &str| {
            let mut batch = ReplyBatch::default();
            batch.push(Token(1), ReplyKind::Success, |out| out.extend_from_slice(name.as_bytes()));
            batch.push_shared(Token(2), name.as_bytes().into(), |out| out.push(b'='));
            batch
        };
        let (mut all, mut more) = (ReplyBatch::default(), make("b"));
        all.append(&mut make("a"));
        all.append(&mut more);
        assert_eq!(texts(&all), ["a", "=a", "b", "=b"]);
        assert!(more.heads.is_empty() && more.bytes.is_empty() && more.shared.is_empty());
    }

    #[test]
    fn refused_requests_survive_their_bytes() {
        let (leader, hash) = (ReplicaId(0x3_0002), KeyHash(7));
        let refused = NotLeader { leader, term: 9, hash, deadline: Millis(5), record: b"record" };
        let mut bytes = Vec::new();
        refused.encode(&mut bytes);
        assert_eq!(NotLeader::decode(&bytes), Ok(refused));
        assert!(NotLeader::decode(&bytes[..31]).is_err());
        let golden = "02000300000000000900000000000000070000000000000005000000000000007265636f7264";
        assert_eq!(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), golden);
    }
}
