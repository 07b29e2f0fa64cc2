//! Forwarded requests and their replies as payloads of peer frames. The frame has version, cluster, session and checksums.
//!
//! | requests | bytes | field |
//! |---|---|---|
//! | 0 | 4 | serial of the batch, rising by one with each on its connection, wrapping |
//! | 4 | 2 | number of the router that sent it |
//! | 6 | 2 | zero |
//! | 8 | 4 | group |
//! | 12 | 4 | the router's view of the group |
//! | 16 | 4 | number of requests; without any it asks for a sign of life |
//! | 20 | 16 each | hash of the key u64, time left in ms u32, length of the record u32 |
//! | | | the records, one after another |
//!
//! | each reply | bytes | field |
//! |---|---|---|
//! | 0 | 4 | serial of its batch |
//! | 4 | 4 | place of its request in the batch |
//! | 8 | 1 | kind, see [`kind_number`] |
//! | 9 | 3 | zero |
//! | 12 | 4 | length of the body |
//! | 16 | 4 | bytes at the end of the body that are one large value |
//! | 20 | | the body; of a refusal only the leader's replica u64 and the term u64 |
//!
//! Integers are little-endian. Time is given as what is left of it, since the nodes' clocks differ. Readers check every
//! length and number; what they cannot read ends the connection.

use shards::batch::{ReplyKind, RequestBatch};
use shards::ids::{GroupId, KeyHash, Millis, ReplicaId};

/// Bytes of a batch before its requests' heads.
const BATCH_HEAD_BYTES: usize = 20;
/// Bytes of a request's head.
const REQUEST_HEAD_BYTES: usize = 16;
/// Bytes of a reply before its body.
pub(super) const REPLY_HEAD_BYTES: usize = 20;
/// Most requests of one batch: the bits of a request's place in the tokens of the thread that forwards.
pub(super) const REQUESTS_MAX: usize = 1 << 20;

/// The payload is none of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unreadable(pub(super) &'static str);

/// A batch of requests, borrowed from its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Requests<'a> {
    pub(super) serial: u32,
    pub(super) router: u16,
    pub(super) group: GroupId,
    pub(super) view: u32,
    heads: &'a [u8],
    records: &'a [u8],
}

/// One request's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WireHead {
    pub(super) hash: KeyHash,
    pub(super) left_ms: u32,
    pub(super) length: u32,
}

/// Appends the payload of a batch.
pub(super) fn encode_requests(
    out: &mut Vec<u8>,
    serial: u32,
    router: u16,
    batch: &RequestBatch,
    now: Millis,
) {
    out.extend_from_slice(&serial.to_le_bytes());
    out.extend_from_slice(&u32::from(router).to_le_bytes());
    out.extend_from_slice(&batch.group.0.to_le_bytes());
    out.extend_from_slice(&batch.view.to_le_bytes());
    assert!(batch.heads.len() <= REQUESTS_MAX, "the credits of a link are fewer");
    out.extend_from_slice(&(batch.heads.len() as u32).to_le_bytes());
    for head in &batch.heads {
        let left_ms = u32::try_from(head.deadline.0.saturating_sub(now.0)).unwrap_or(u32::MAX);
        let mut bytes = [0; REQUEST_HEAD_BYTES];
        bytes[..8].copy_from_slice(&head.hash.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&left_ms.to_le_bytes());
        bytes[12..].copy_from_slice(&head.length.to_le_bytes());
        out.extend_from_slice(&bytes);
    }
    for head in &batch.heads {
        out.extend_from_slice(batch.record(head));
    }
}

/// Reads the payload of a batch.
pub(super) fn decode_requests(payload: &[u8]) -> Result<Requests<'_>, Unreadable> {
    let (head, rest) =
        payload.split_at_checked(BATCH_HEAD_BYTES).ok_or(Unreadable("a batch is too short"))?;
    let router = u16::try_from(u32_at(head, 4)).map_err(|_| Unreadable("a batch's router is no number"))?;
    let count = u32_at(head, 16) as usize;
    if count > REQUESTS_MAX {
        return Err(Unreadable("a batch has too many requests"));
    }
    let (heads, records) = rest
        .split_at_checked(count * REQUEST_HEAD_BYTES)
        .ok_or(Unreadable("a batch has fewer heads than it says"))?;
    let requests = Requests {
        serial: u32_at(head, 0),
        router,
        group: GroupId(u32_at(head, 8)),
        view: u32_at(head, 12),
        heads,
        records,
    };
    let length: u64 = (0..count).map(|place| u64::from(requests.head(place).length)).sum();
    if length != records.len() as u64 {
        return Err(Unreadable("a batch's records are not as long as it says"));
    }
    Ok(requests)
}

impl<'a> Requests<'a> {
    /// Number of requests.
    pub(super) fn count(&self) -> usize {
        self.heads.len() / REQUEST_HEAD_BYTES
    }

    /// The head of the request at this place.
    pub(super) fn head(&self, place: usize) -> WireHead {
        let head = &self.heads[place * REQUEST_HEAD_BYTES..][..REQUEST_HEAD_BYTES];
        WireHead { hash: KeyHash(u64_at(head, 0)), left_ms: u32_at(head, 8), length: u32_at(head, 12) }
    }

    /// All records, one after another.
    pub(super) fn records(&self) -> &'a [u8] {
        self.records
    }
}

/// One reply, borrowed from its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reply<'a> {
    pub(super) serial: u32,
    pub(super) place: u32,
    pub(super) kind: ReplyKind,
    /// Without the large value.
    pub(super) body: &'a [u8],
    /// A large value behind the body; empty for none.
    pub(super) shared: &'a [u8],
}

impl<'a> Reply<'a> {
    /// Appends the reply.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let body = match self.kind {
            // The record stays with who sent it, and the rest stands in its own heads.
            ReplyKind::NotLeader => self.body.get(..REFUSAL_BYTES).unwrap_or_default(),
            _ => self.body,
        };
        let length = u32::try_from(body.len() + self.shared.len()).expect("a reply is far below 4 GiB");
        let mut head = [0; REPLY_HEAD_BYTES];
        head[..4].copy_from_slice(&self.serial.to_le_bytes());
        head[4..8].copy_from_slice(&self.place.to_le_bytes());
        head[8] = kind_number(self.kind);
        head[12..16].copy_from_slice(&length.to_le_bytes());
        head[16..].copy_from_slice(&(self.shared.len() as u32).to_le_bytes());
        out.extend_from_slice(&head);
        out.extend_from_slice(body);
        out.extend_from_slice(self.shared);
    }

    /// Reads the next reply off the front.
    pub(super) fn take(rest: &mut &'a [u8]) -> Result<Self, Unreadable> {
        let (head, tail) =
            rest.split_at_checked(REPLY_HEAD_BYTES).ok_or(Unreadable("a reply is too short"))?;
        let (length, shared) = (u32_at(head, 12) as usize, u32_at(head, 16) as usize);
        let (body, tail) =
            tail.split_at_checked(length).ok_or(Unreadable("a reply is not as long as it says"))?;
        let split =
            length.checked_sub(shared).ok_or(Unreadable("a reply's value is longer than the reply"))?;
        let (body, shared) = body.split_at(split);
        let kind = kind_of(head[8]).ok_or(Unreadable("a reply of an unknown kind"))?;
        *rest = tail;
        Ok(Self { serial: u32_at(head, 0), place: u32_at(head, 4), kind, body, shared })
    }

    /// The leader and term of a refusal.
    pub(super) fn refusal(&self) -> Result<(ReplicaId, u64), Unreadable> {
        if self.body.len() != REFUSAL_BYTES {
            return Err(Unreadable("a refusal of another length"));
        }
        Ok((ReplicaId(u64_at(self.body, 0)), u64_at(self.body, 8)))
    }
}

/// Bytes of a refusal between nodes.
const REFUSAL_BYTES: usize = 16;

/// The number of a kind of reply; append-only.
fn kind_number(kind: ReplyKind) -> u8 {
    match kind {
        ReplyKind::Ok => 0,
        ReplyKind::Success => 1,
        ReplyKind::Error => 2,
        ReplyKind::Part => 3,
        ReplyKind::NotLeader => 4,
        ReplyKind::StalePart => 5,
    }
}

fn kind_of(number: u8) -> Option<ReplyKind> {
    let kinds = [
        ReplyKind::Ok,
        ReplyKind::Success,
        ReplyKind::Error,
        ReplyKind::Part,
        ReplyKind::NotLeader,
        ReplyKind::StalePart,
    ];
    kinds.get(usize::from(number)).copied()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes[at..].first_chunk().expect("the length was checked");
    u32::from_le_bytes(*bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes[at..].first_chunk().expect("the length was checked");
    u64::from_le_bytes(*bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shards::batch::RequestHead;
    use shards::ids::{NodeNumber, Token};

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn batch() -> RequestBatch {
        let mut batch = RequestBatch { group: GroupId(3), view: 7, ..RequestBatch::default() };
        for (number, record) in [&b"first"[..], b"", b"third"].into_iter().enumerate() {
            let start = batch.bytes.len() as u32;
            batch.bytes.extend_from_slice(record);
            batch.heads.push(RequestHead {
                token: Token(number as u64),
                hash: KeyHash(number as u64 + 16),
                deadline: Millis(1000 * number as u64),
                start,
                length: record.len() as u32,
            });
        }
        batch
    }

    #[test]
    fn batches_survive_their_bytes() {
        let mut bytes = Vec::new();
        encode_requests(&mut bytes, 9, 2, &batch(), Millis(500));
        let golden = "0900000002000000030000000700000003000000\
            10000000000000000000000005000000110000000000000\
            0f40100000000000012000000000000\
            00dc05000005000000\
            66697273747468697264";
        assert_eq!(hex(&bytes), golden.replace(' ', ""));
        let read = decode_requests(&bytes).unwrap();
        assert_eq!((read.serial, read.router, read.group, read.view), (9, 2, GroupId(3), 7));
        assert_eq!((read.count(), read.records()), (3, &b"firstthird"[..]));
        let left: Vec<u32> = (0..3).map(|place| read.head(place).left_ms).collect();
        assert_eq!(left, [0, 500, 1500], "what is over has no time left");
        assert_eq!(read.head(2).hash, KeyHash(18));
        for end in 0..bytes.len() {
            assert!(decode_requests(&bytes[..end]).is_err(), "cut at {end}");
        }
        bytes.push(0);
        assert!(decode_requests(&bytes).is_err());
        bytes.pop();
        bytes[19] = 0xff;
        assert!(decode_requests(&bytes).is_err(), "more requests than any batch has");
    }

    #[test]
    fn replies_survive_their_bytes() {
        let refusal = shards::batch::NotLeader {
            leader: ReplicaId::new(1, NodeNumber(2)),
            term: 5,
            hash: KeyHash(0),
            deadline: Millis(0),
            record: b"x",
        };
        let mut refused = Vec::new();
        refusal.encode(&mut refused);
        let of = |place, kind, body, shared| Reply { serial: 9, place, kind, body, shared };
        let replies = [
            of(0, ReplyKind::Ok, &b""[..], &b""[..]),
            of(1, ReplyKind::Success, b"\"result\":", b"\"large\""),
            of(2, ReplyKind::Error, b"no", b""),
            of(3, ReplyKind::Part, b"part", b""),
            of(4, ReplyKind::StalePart, b"index and part", b""),
            of(5, ReplyKind::NotLeader, &refused, b""),
        ];
        let mut bytes = Vec::new();
        for reply in &replies {
            reply.encode(&mut bytes);
        }
        let mut rest = bytes.as_slice();
        for reply in &replies[..5] {
            assert_eq!(&Reply::take(&mut rest).unwrap(), reply);
        }
        let back = Reply::take(&mut rest).unwrap();
        assert_eq!(back.refusal(), Ok((refusal.leader, 5)));
        assert!(rest.is_empty() && replies[2].refusal().is_err());
        assert_eq!(hex(&bytes[..20]), "0900000000000000000000000000000000000000");
        assert_eq!(hex(&bytes[20..40]), "0900000001000000010000001000000007000000");
        for end in 0..36 {
            let mut cut = &bytes[20..20 + end];
            assert!(Reply::take(&mut cut).is_err(), "cut at {end}");
        }
        for (at, wrong) in [(28, 6), (36, 17)] {
            let mut damaged = bytes.clone();
            damaged[at] = wrong;
            assert!(Reply::take(&mut &damaged[20..]).is_err(), "byte {at}");
        }
    }
}
