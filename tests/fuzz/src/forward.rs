//! The bytes of forwarded requests, from the server's room for them, and what must hold of them.

#[path = "../../../src/peer/forward/codec.rs"]
mod codec;

use crate::engine::class_of;
use codec::{Reply, Unreadable};
use shards::batch::{ReplyKind, RequestBatch, RequestHead};
use shards::ids::{GroupId, KeyHash, Millis, Token};
use xxhash_rust::xxh3::xxh3_64;

/// Judges the payload of a batch of requests: how it behaves, or how it was refused.
pub(crate) fn judge_requests(payload: &[u8]) -> Result<[u64; 2], u64> {
    let requests = codec::decode_requests(payload).map_err(|Unreadable(text)| xxh3_64(text.as_bytes()))?;
    let lengths: u64 = (0..requests.count()).map(|at| u64::from(requests.head(at).length)).sum();
    assert_eq!(lengths, requests.records().len() as u64, "records are as long as their heads say");
    Ok([class_of(requests.count()), class_of(requests.records().len())])
}

/// Judges the payload of replies.
pub(crate) fn judge_replies(mut payload: &[u8]) -> Result<[u64; 2], u64> {
    let mut count = 0;
    while !payload.is_empty() {
        let before = payload.len();
        let reply = Reply::take(&mut payload).map_err(|Unreadable(text)| xxh3_64(text.as_bytes()))?;
        assert!(payload.len() < before, "a reply takes bytes");
        assert!(reply.body.len() + reply.shared.len() < before, "no more bytes than came");
        if reply.kind == ReplyKind::NotLeader {
            // Read or refused, without a panic.
            let _ = reply.refusal();
        }
        count += 1;
    }
    Ok([class_of(count), 1])
}

/// A batch of two requests.
pub(crate) fn requests() -> Vec<u8> {
    let mut batch = RequestBatch { group: GroupId(1), ..RequestBatch::default() };
    batch.bytes = b"recordone".to_vec();
    let head = RequestHead { token: Token(1), hash: KeyHash(5), deadline: Millis(90), start: 0, length: 6 };
    batch.heads = vec![head, RequestHead { start: 6, length: 3, ..head }];
    let mut out = Vec::new();
    codec::encode_requests(&mut out, 1, 0, &batch, Millis(50));
    out
}

/// Two replies.
pub(crate) fn replies() -> Vec<u8> {
    let mut out = Vec::new();
    let reply = |kind, body, shared| Reply { serial: 1, place: 0, kind, body, shared };
    reply(ReplyKind::Success, b"\"result\":1", b"shared").encode(&mut out);
    reply(ReplyKind::NotLeader, &[7; 16], b"").encode(&mut out);
    out
}
