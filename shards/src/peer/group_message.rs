//! Messages between groups whose leaders live on different nodes: steps of transactions.
//!
//! | field | bytes |
//! |---|---|
//! | group that says it | 4 |
//! | group that shall hear it | 4 |
//! | kind | 1 |
//! | transaction (none in what concerns members and nodes) | 16 |
//! | what the kind has, in the order of its fields | |
//!
//! Integers are little-endian; flags are 0 or 1; the last field of a kind with bytes takes the rest of the payload. Kinds
//! are append-only, and a kind's fields never change.

use super::PayloadRefused;
use crate::command::record::{Malformed, take_u8, take_u32, take_u64};
use crate::ids::{GroupId, Millis, ReplicaId, Version};
use crate::meta::NodeAddress;
use crate::placement::{Report, Step};
use crate::txn::message::{GroupMessage, Message, push_version, take_version};
use crate::txn::{Kind, TxnId, take_flag};

const PREPARE: u8 = 1;
const PREPARED: u8 = 2;
const REFUSED: u8 = 3;
const FINISH: u8 = 4;
const FINISHED: u8 = 5;
const ASK: u8 = 6;
const REPORT: u8 = 7;
const STEP: u8 = 8;
const LOST: u8 = 9;
const MOVED: u8 = 10;

/// Appends a message.
pub fn encode_group(message: &GroupMessage, out: &mut Vec<u8>) {
    out.extend_from_slice(&message.from.0.to_le_bytes());
    out.extend_from_slice(&message.to.0.to_le_bytes());
    let begin = |out: &mut Vec<u8>, kind: u8, txn: &TxnId| {
        out.push(kind);
        txn.encode(out);
    };
    match &message.body {
        Message::Prepare { txn, attempt, wait, kind, debug, items, deadline } => {
            begin(out, PREPARE, txn);
            out.extend_from_slice(&attempt.to_le_bytes());
            out.extend_from_slice(&[u8::from(*wait), *kind as u8, u8::from(*debug)]);
            out.extend_from_slice(&deadline.0.to_le_bytes());
            out.extend_from_slice(items);
        }
        Message::Prepared { txn, attempt, place, count, values } => {
            begin(out, PREPARED, txn);
            out.extend_from_slice(&attempt.to_le_bytes());
            push_version(out, *place);
            out.extend_from_slice(&count.to_le_bytes());
            out.extend_from_slice(values);
        }
        Message::Refused { txn, attempt } => {
            begin(out, REFUSED, txn);
            out.extend_from_slice(&attempt.to_le_bytes());
        }
        Message::Finish { txn, commit, attempt } => {
            begin(out, FINISH, txn);
            out.push(u8::from(commit.is_some()));
            push_version(out, commit.unwrap_or_default());
            out.extend_from_slice(&attempt.to_le_bytes());
        }
        Message::Finished { txn, attempt } => {
            begin(out, FINISHED, txn);
            out.extend_from_slice(&attempt.to_le_bytes());
        }
        Message::Ask { txn } => begin(out, ASK, txn),
        Message::Report(report) => {
            out.push(REPORT);
            report.encode(out);
        }
        Message::Member(step) => {
            out.push(STEP);
            step.encode(out);
        }
        Message::Lost(replica) => {
            out.push(LOST);
            out.extend_from_slice(&replica.0.to_le_bytes());
        }
        Message::Moved(address) => {
            out.push(MOVED);
            address.encode(out);
        }
    }
}

/// Reads a message.
///
/// # Errors
/// When the bytes are none, or name a group that does not exist among `groups` many.
pub fn decode_group(payload: &[u8], groups: u32) -> Result<GroupMessage, PayloadRefused> {
    let message = read(payload).map_err(|malformed| PayloadRefused(malformed.0.to_owned()))?;
    if message.from.0 >= groups || message.to.0 >= groups {
        return Err("a message of or for a group that does not exist".into());
    }
    Ok(message)
}

fn read(mut payload: &[u8]) -> Result<GroupMessage, Malformed> {
    let rest = &mut payload;
    let (from, to) = (GroupId(take_u32(rest)?), GroupId(take_u32(rest)?));
    let kind = take_u8(rest)?;
    match kind {
        REPORT => {
            let body = Message::Report(Box::new(Report::decode(rest)?));
            return Ok(GroupMessage { from, to, body });
        }
        STEP => return Ok(GroupMessage { from, to, body: Message::Member(Step::decode(rest)?) }),
        LOST | MOVED => {
            let body = match kind {
                LOST => Message::Lost(ReplicaId(take_u64(rest)?)),
                _ => Message::Moved(Box::new(NodeAddress::decode(rest)?)),
            };
            return ended(rest).map(|()| GroupMessage { from, to, body });
        }
        _ => {}
    }
    let txn = TxnId::decode(rest)?;
    let body = match kind {
        PREPARE => {
            let attempt = take_u32(rest)?;
            let wait = take_flag(rest)?;
            let kind = Kind::from_number(take_u8(rest)?)?;
            let debug = take_flag(rest)?;
            let deadline = Millis(take_u64(rest)?);
            Message::Prepare {
                txn,
                attempt,
                wait,
                kind,
                debug,
                items: std::mem::take(rest).to_vec(),
                deadline,
            }
        }
        PREPARED => {
            let attempt = take_u32(rest)?;
            let place = take_version(rest)?;
            let count = take_u64(rest)? as i64;
            Message::Prepared { txn, attempt, place, count, values: std::mem::take(rest).to_vec() }
        }
        REFUSED => Message::Refused { txn, attempt: take_u32(rest)? },
        FINISH => {
            let has_commit = take_flag(rest)?;
            let place: Version = take_version(rest)?;
            Message::Finish { txn, commit: has_commit.then_some(place), attempt: take_u32(rest)? }
        }
        FINISHED => Message::Finished { txn, attempt: take_u32(rest)? },
        ASK => Message::Ask { txn },
        _ => return Err(Malformed("a message between groups of unknown kind")),
    };
    ended(rest).map(|()| GroupMessage { from, to, body })
}

fn ended(rest: &[u8]) -> Result<(), Malformed> {
    if rest.is_empty() { Ok(()) } else { Err(Malformed("bytes after a message between groups")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NodeNumber;
    use crate::peer::hex;
    use crate::txn::message::LAST_TRY;
    use proptest::prelude::*;

    fn examples() -> Vec<GroupMessage> {
        let txn = TxnId { group: GroupId(3), opened: Version::new(1, 88, 2) };
        let place = Version::new(2, 90, 1);
        let bodies = vec![
            Message::Prepare {
                txn,
                attempt: 2,
                wait: true,
                kind: Kind::Set,
                debug: false,
                items: b"items".to_vec(),
                deadline: Millis(77),
            },
            Message::Prepared { txn, attempt: 2, place, count: -1, values: b"values".to_vec() },
            Message::Refused { txn, attempt: 3 },
            Message::Finish { txn, commit: Some(place), attempt: LAST_TRY },
            Message::Finish { txn, commit: None, attempt: 2 },
            Message::Finished { txn, attempt: 2 },
            Message::Ask { txn },
            Message::Lost(ReplicaId::new(3, NodeNumber(2))),
            Message::Moved(Box::new(NodeAddress {
                node: NodeNumber(2),
                host: "h".to_owned(),
                port: 8000,
                cluster_port: 9000,
            })),
        ];
        bodies.into_iter().map(|body| GroupMessage { from: GroupId(3), to: GroupId(5), body }).collect()
    }

    #[test]
    fn every_kind_survives() {
        for message in examples() {
            let mut bytes = Vec::new();
            encode_group(&message, &mut bytes);
            assert_eq!(decode_group(&bytes, 6), Ok(message.clone()));
            assert!(decode_group(&bytes, 5).is_err(), "the group does not exist");
            if !matches!(message.body, Message::Prepare { .. } | Message::Prepared { .. }) {
                bytes.push(0);
                assert!(decode_group(&bytes, 6).is_err(), "bytes behind it");
            }
        }
    }

    #[test]
    fn golden_bytes() {
        let mut bytes = Vec::new();
        encode_group(&examples()[0], &mut bytes);
        let golden = concat!(
            "03000000",
            "05000000",
            "01",
            "03000000",
            "01000000",
            "0260010000000000",
            "02000000",
            "01",
            "01",
            "00",
            "4d00000000000000",
            "6974656d73"
        );
        assert_eq!(hex(&bytes), golden);
        let golden = [
            concat!("03000000", "05000000", "09", "0200030000000000"),
            concat!("03000000", "05000000", "0a", "0200", "010068", "401f", "2823"),
        ];
        for (at, golden) in golden.into_iter().enumerate() {
            bytes.clear();
            encode_group(&examples()[7 + at], &mut bytes);
            assert_eq!(hex(&bytes), golden);
        }
    }

    proptest! {
        #[test]
        fn nothing_a_stranger_writes_panics(
            which in 0..9_usize,
            flip in any::<prop::sample::Index>(),
            cut in any::<prop::sample::Index>(),
            random in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut bytes = Vec::new();
            encode_group(&examples()[which], &mut bytes);
            let _ = decode_group(&bytes[..cut.index(bytes.len())], 6);
            let bit = flip.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let _ = decode_group(&bytes, 6);
            let _ = decode_group(&random, 6);
        }
    }
}
