//! Raft messages between replicas of one group, in a frozen format of our own: never the crate's protobuf.
//!
//! A snapshot message carries metadata only; its bytes go over a connection of their own. Messages that raft-rs only
//! gives to itself (a tick, a proposal, a report about a peer) do not travel: they are not encoded, and refused when a
//! stranger sends one. A changed format becomes `RaftMessageV2` and a frame kind of its own.

use super::PayloadRefused;
use crate::log::payload::{ConfigurationV1, EntryV1, PayloadBuffer, aligned, encode};
use crate::shard::image::{conf_state, configuration, entry_kind, entry_type};
pub use raft::prelude::Message as RaftMessage;
use raft::prelude::{Entry, Message, MessageType, SnapshotMetadata};
use rkyv::rancor;
use rkyv::with::InlineAsBox;
use rkyv::{Archive, Serialize};
use smallvec::SmallVec;

/// One message of raft-rs.
#[derive(Archive, Serialize, Clone, Copy, Debug)]
pub struct RaftMessageV1<'a> {
    /// See [`kind_of`].
    kind: u8,
    to: u64,
    from: u64,
    term: u64,
    log_term: u64,
    index: u64,
    commit: u64,
    commit_term: u64,
    request_snapshot: u64,
    reject: bool,
    reject_hint: u64,
    priority: i64,
    #[rkyv(with = InlineAsBox)]
    context: &'a [u8],
    #[rkyv(with = InlineAsBox)]
    entries: &'a [EntryV1<'a>],
    snapshot: Option<SnapshotV1<'a>>,
}

/// What a snapshot message says of the snapshot.
#[derive(Archive, Serialize, Clone, Copy, Debug)]
pub struct SnapshotV1<'a> {
    index: u64,
    term: u64,
    configuration: ConfigurationV1<'a>,
}

/// Replaces the contents of `out` with a message; false for one that does not travel.
pub fn encode_raft(message: &Message, out: &mut PayloadBuffer) -> bool {
    let Some(kind) = kind_of(message.msg_type) else { return false };
    let entries: SmallVec<[EntryV1<'_>; 8]> = message
        .entries
        .iter()
        .map(|entry| {
            assert!(
                entry.context.is_empty(),
                "the engine gives entries no context: the log has no place for it"
            );
            EntryV1 {
                term: entry.term,
                index: entry.index,
                kind: entry_kind(entry.entry_type),
                data: &entry.data,
            }
        })
        .collect();
    let snapshot = message.snapshot.as_ref().map(|snapshot| {
        let metadata = snapshot.get_metadata();
        SnapshotV1 {
            index: metadata.index,
            term: metadata.term,
            configuration: configuration(metadata.get_conf_state()),
        }
    });
    let written = RaftMessageV1 {
        kind,
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        commit: message.commit,
        commit_term: message.commit_term,
        request_snapshot: message.request_snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        priority: message.priority,
        context: &message.context,
        entries: &entries,
        snapshot,
    };
    encode(&written, out);
    true
}

/// Reads a message. `scratch` is used only when the payload is not 16-aligned.
///
/// # Errors
/// When the bytes are no archive, or a message that does not travel.
pub fn decode_raft(payload: &[u8], scratch: &mut PayloadBuffer) -> Result<Message, PayloadRefused> {
    let read = rkyv::access::<ArchivedRaftMessageV1<'_>, rancor::Error>(aligned(payload, scratch))?;
    let mut message = Message {
        msg_type: type_of(read.kind).ok_or("a raft message of unknown kind")?,
        to: read.to.to_native(),
        from: read.from.to_native(),
        term: read.term.to_native(),
        log_term: read.log_term.to_native(),
        index: read.index.to_native(),
        commit: read.commit.to_native(),
        commit_term: read.commit_term.to_native(),
        request_snapshot: read.request_snapshot.to_native(),
        reject: read.reject,
        reject_hint: read.reject_hint.to_native(),
        priority: read.priority.to_native(),
        ..Message::default()
    };
    if message.to == 0 || message.from == 0 {
        return Err("a raft message without sender or receiver".into());
    }
    // Checked access lets no two entries share bytes; should that ever change, memory is still bounded by the frame.
    let data_bytes = read.entries.iter().map(|entry| entry.data.len()).sum::<usize>();
    if data_bytes + read.context.len() > payload.len() {
        return Err("a raft message whose parts overlap".into());
    }
    if !read.context.is_empty() {
        message.context = read.context.to_vec().into();
    }
    let mut entries = Vec::with_capacity(read.entries.len());
    for entry in read.entries.iter() {
        entries.push(Entry {
            term: entry.term.to_native(),
            index: entry.index.to_native(),
            entry_type: entry_type(entry.kind).map_err(PayloadRefused)?,
            data: entry.data.to_vec().into(),
            ..Entry::default()
        });
    }
    message.entries = entries.into();
    if let Some(snapshot) = read.snapshot.as_ref() {
        let mut metadata = SnapshotMetadata {
            index: snapshot.index.to_native(),
            term: snapshot.term.to_native(),
            ..SnapshotMetadata::default()
        };
        metadata.set_conf_state(conf_state(&snapshot.configuration));
        message.mut_snapshot().set_metadata(metadata);
    }
    check(&message)?;
    Ok(message)
}

/// Refuses what raft-rs would take for a defect of this program and panic about.
fn check(message: &Message) -> Result<(), PayloadRefused> {
    let is_append = message.msg_type == MessageType::MsgAppend;
    let may_have_entries =
        is_append || matches!(message.msg_type, MessageType::MsgReadIndex | MessageType::MsgReadIndexResp);
    if !message.entries.is_empty() && !may_have_entries {
        return Err("a raft message with entries that it cannot have".into());
    }
    if is_append {
        let mut before = (message.index, message.log_term);
        for entry in message.entries.iter() {
            if Some(entry.index) != before.0.checked_add(1)
                || entry.term < before.1
                || entry.term > message.term
            {
                return Err("entries of an append that do not follow one another".into());
            }
            before = (entry.index, entry.term);
        }
    }
    if message.msg_type == MessageType::MsgReadIndex && message.entries.len() != 1 {
        return Err("a read index without its context".into());
    }
    if (message.msg_type == MessageType::MsgSnapshot) != message.snapshot.is_some() {
        return Err("a snapshot where there is none, or none where there is one".into());
    }
    Ok(())
}

/// The number of a message's type in our format; none for what does not travel.
fn kind_of(message_type: MessageType) -> Option<u8> {
    Some(match message_type {
        MessageType::MsgAppend => 1,
        MessageType::MsgAppendResponse => 2,
        MessageType::MsgRequestVote => 3,
        MessageType::MsgRequestVoteResponse => 4,
        MessageType::MsgSnapshot => 5,
        MessageType::MsgHeartbeat => 6,
        MessageType::MsgHeartbeatResponse => 7,
        MessageType::MsgTransferLeader => 8,
        MessageType::MsgTimeoutNow => 9,
        MessageType::MsgReadIndex => 10,
        MessageType::MsgReadIndexResp => 11,
        MessageType::MsgRequestPreVote => 12,
        MessageType::MsgRequestPreVoteResponse => 13,
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgPropose
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum => return None,
    })
}

fn type_of(kind: u8) -> Option<MessageType> {
    Some(match kind {
        1 => MessageType::MsgAppend,
        2 => MessageType::MsgAppendResponse,
        3 => MessageType::MsgRequestVote,
        4 => MessageType::MsgRequestVoteResponse,
        5 => MessageType::MsgSnapshot,
        6 => MessageType::MsgHeartbeat,
        7 => MessageType::MsgHeartbeatResponse,
        8 => MessageType::MsgTransferLeader,
        9 => MessageType::MsgTimeoutNow,
        10 => MessageType::MsgReadIndex,
        11 => MessageType::MsgReadIndexResp,
        12 => MessageType::MsgRequestPreVote,
        13 => MessageType::MsgRequestPreVoteResponse,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::hex;
    use proptest::prelude::*;
    use raft::prelude::{ConfState, EntryType};

    fn append(data: &[&[u8]]) -> Message {
        let entries: Vec<Entry> = data
            .iter()
            .enumerate()
            .map(|(at, data)| Entry {
                term: 3,
                index: 8 + at as u64,
                data: data.to_vec().into(),
                ..Entry::default()
            })
            .collect();
        Message {
            msg_type: MessageType::MsgAppend,
            to: 2,
            from: 65537,
            term: 3,
            log_term: 3,
            index: 7,
            commit: 6,
            commit_term: 3,
            entries: entries.into(),
            ..Message::default()
        }
    }

    fn round(message: &Message) -> Message {
        let mut bytes = PayloadBuffer::new();
        assert!(encode_raft(message, &mut bytes));
        let mut shifted = vec![0];
        shifted.extend_from_slice(&bytes);
        let unaligned = decode_raft(&shifted[1..], &mut PayloadBuffer::new()).unwrap();
        assert_eq!(unaligned, decode_raft(&bytes, &mut PayloadBuffer::new()).unwrap());
        unaligned
    }

    #[test]
    fn every_kind_survives() {
        for kind in 0..=20 {
            let Some(msg_type) = type_of(kind) else { continue };
            assert_eq!(kind_of(msg_type), Some(kind));
            let mut message = Message {
                msg_type,
                to: 2,
                from: 1,
                term: 4,
                log_term: 3,
                index: 9,
                commit: 5,
                commit_term: 2,
                request_snapshot: 6,
                reject: true,
                reject_hint: 8,
                priority: -1,
                context: b"context".to_vec().into(),
                ..Message::default()
            };
            if msg_type == MessageType::MsgReadIndex {
                message.entries = vec![Entry { data: b"read".to_vec().into(), ..Entry::default() }].into();
            }
            if msg_type == MessageType::MsgSnapshot {
                let metadata = message.mut_snapshot().mut_metadata();
                (metadata.index, metadata.term) = (100, 3);
                metadata.set_conf_state(ConfState {
                    voters: vec![1, 2],
                    learners: vec![3],
                    voters_outgoing: vec![4],
                    learners_next: vec![5],
                    auto_leave: true,
                    ..ConfState::default()
                });
            }
            assert_eq!(round(&message), message);
        }
    }

    #[test]
    fn entries_survive_with_their_types() {
        let mut message = append(&[b"one", b"", &[7; 100_000]]);
        message.entries[1].entry_type = EntryType::EntryConfChangeV2;
        assert_eq!(round(&message), message);
    }

    #[test]
    fn what_raft_gives_to_itself_does_not_travel() {
        let mut bytes = PayloadBuffer::new();
        for msg_type in [MessageType::MsgHup, MessageType::MsgPropose, MessageType::MsgUnreachable] {
            assert!(!encode_raft(&Message { msg_type, ..Message::default() }, &mut bytes));
        }
    }

    #[test]
    fn what_would_make_raft_panic_is_refused() {
        let mut scratch = PayloadBuffer::new();
        let mut refused = |message: &Message| {
            let mut bytes = PayloadBuffer::new();
            assert!(encode_raft(message, &mut bytes));
            decode_raft(&bytes, &mut scratch).is_err()
        };
        let mut gap = append(&[b"a", b"b"]);
        gap.entries[1].index = 11;
        let mut newer = append(&[b"a"]);
        newer.entries[0].term = 4;
        let nobody = Message { from: 0, ..append(&[]) };
        let heartbeat = Message { msg_type: MessageType::MsgHeartbeat, ..append(&[b"a"]) };
        let empty = Message { msg_type: MessageType::MsgSnapshot, ..append(&[]) };
        for message in [gap, newer, nobody, heartbeat, empty] {
            assert!(refused(&message), "{message:?}");
        }
        assert!(!refused(&append(&[b"a"])));
    }

    #[test]
    fn golden_bytes() {
        let mut bytes = PayloadBuffer::new();
        encode_raft(&append(&[b"abc"]), &mut bytes);
        assert_eq!(hex(&bytes), include_str!("golden_raft_message_v1.hex").trim());
    }

    proptest! {
        #[test]
        fn nothing_a_stranger_writes_panics(
            data in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..5),
            bit in any::<prop::sample::Index>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let data: Vec<&[u8]> = data.iter().map(|data| &data[..]).collect();
            let mut bytes = PayloadBuffer::new();
            encode_raft(&append(&data), &mut bytes);
            let mut scratch = PayloadBuffer::new();
            let _ = decode_raft(&bytes[..cut.index(bytes.len())], &mut scratch);
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(message) = decode_raft(&bytes, &mut scratch) {
                prop_assert!(message.entries.iter().map(|entry| entry.data.len()).sum::<usize>() <= bytes.len());
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let _ = decode_raft(&bytes, &mut PayloadBuffer::new());
        }
    }
}
