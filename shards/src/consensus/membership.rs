//! Changes of a group's members, and the bytes of configurations.
//!
//! raft-rs writes a change as protobuf into an entry. Bytes that came from a peer are never decoded with the crate's decoder,
//! so this file reads that one message itself, strictly: what it does not know is an error. A configuration stands in
//! snapshots and in the log's reset marker in a layout of our own:
//!
//! | bytes | field |
//! |---|---|
//! | 1 | format, 1 |
//! | 1 | whether a joint configuration is left by itself |
//! | 2 + 8n, four times | number of ids and ids: voters, learners, outgoing voters, next learners |
//!
//! All numbers are little endian. This file decides nothing about who may join ([`super::progress`] does).

use crate::command::record::{Malformed, take_u8, take_u16, take_u64};
use crate::ids::ReplicaId;
use raft::prelude::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState};

/// Most members in one list of a configuration.
const MEMBERS_MAX: usize = 256;
/// The layout of a configuration.
const FORMAT: u8 = 1;

/// One change of the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// A new replica, which follows without a vote.
    AddLearner(ReplicaId),
    /// A learner gets a vote.
    Promote(ReplicaId),
    /// A replica leaves.
    Remove(ReplicaId),
}

impl MemberChange {
    /// The replica that it is about.
    pub fn replica(self) -> ReplicaId {
        match self {
            Self::AddLearner(replica) | Self::Promote(replica) | Self::Remove(replica) => replica,
        }
    }
}

/// The changes as raft-rs wants them: one by itself simply, several through a joint configuration that is left by itself.
pub fn conf_change(changes: &[MemberChange]) -> ConfChangeV2 {
    let mut change = ConfChangeV2::default();
    change.set_transition(ConfChangeTransition::Auto);
    for one in changes {
        let kind = match one {
            MemberChange::AddLearner(_) => ConfChangeType::AddLearnerNode,
            MemberChange::Promote(_) => ConfChangeType::AddNode,
            MemberChange::Remove(_) => ConfChangeType::RemoveNode,
        };
        let mut single = ConfChangeSingle::default();
        single.set_change_type(kind);
        single.node_id = one.replica().0;
        change.mut_changes().push(single);
    }
    change
}

/// Reads the data of an entry that changes members; nothing at all means to leave the joint configuration.
pub fn decode_change(mut bytes: &[u8]) -> Result<ConfChangeV2, Malformed> {
    let mut change = ConfChangeV2::default();
    while !bytes.is_empty() {
        match varint(&mut bytes)? {
            // Field 1, a number: the transition.
            0x08 => change.set_transition(match varint(&mut bytes)? {
                0 => ConfChangeTransition::Auto,
                1 => ConfChangeTransition::Implicit,
                2 => ConfChangeTransition::Explicit,
                _ => return Err(Malformed("an unknown way to change members")),
            }),
            // Field 2, a message: one change.
            0x12 => {
                let length = usize::try_from(varint(&mut bytes)?).unwrap_or(usize::MAX);
                let (single, rest) =
                    bytes.split_at_checked(length).ok_or(Malformed("a change of members ends too early"))?;
                bytes = rest;
                if change.changes.len() >= MEMBERS_MAX {
                    return Err(Malformed("too many changes of members at once"));
                }
                change.mut_changes().push(decode_single(single)?);
            }
            _ => return Err(Malformed("an unknown field in a change of members")),
        }
    }
    Ok(change)
}

fn decode_single(mut bytes: &[u8]) -> Result<ConfChangeSingle, Malformed> {
    let mut single = ConfChangeSingle::default();
    while !bytes.is_empty() {
        match varint(&mut bytes)? {
            0x08 => single.set_change_type(match varint(&mut bytes)? {
                0 => ConfChangeType::AddNode,
                1 => ConfChangeType::RemoveNode,
                2 => ConfChangeType::AddLearnerNode,
                _ => return Err(Malformed("an unknown kind of change of members")),
            }),
            0x10 => single.node_id = varint(&mut bytes)?,
            _ => return Err(Malformed("an unknown field in a change of one member")),
        }
    }
    if single.node_id == 0 {
        return Err(Malformed("a change of no member"));
    }
    Ok(single)
}

/// A base-128 number of protobuf, at most ten bytes.
fn varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take_u8(bytes)?;
        number |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Malformed("a number of more than ten bytes"))
}

/// Appends a configuration.
pub fn encode_members(conf_state: &ConfState, out: &mut Vec<u8>) {
    out.push(FORMAT);
    out.push(u8::from(conf_state.auto_leave));
    let ConfState { voters, learners, voters_outgoing, learners_next, .. } = conf_state;
    for list in [voters, learners, voters_outgoing, learners_next] {
        assert!(list.len() <= MEMBERS_MAX, "a group has few members");
        out.extend_from_slice(&(list.len() as u16).to_le_bytes());
        for id in list {
            out.extend_from_slice(&id.to_le_bytes());
        }
    }
}

/// Reads what [`encode_members`] wrote.
pub fn decode_members(mut bytes: &[u8]) -> Result<ConfState, Malformed> {
    let rest = &mut bytes;
    if take_u8(rest)? != FORMAT {
        return Err(Malformed("a configuration of an unknown format"));
    }
    let auto_leave = match take_u8(rest)? {
        0 => false,
        1 => true,
        _ => return Err(Malformed("a flag that is neither 0 nor 1")),
    };
    let mut list = || -> Result<Vec<u64>, Malformed> {
        let count = usize::from(take_u16(rest)?);
        if count > MEMBERS_MAX {
            return Err(Malformed("a configuration with too many members"));
        }
        (0..count).map(|_| take_u64(rest)).collect()
    };
    let (voters, learners, voters_outgoing, learners_next) = (list()?, list()?, list()?, list()?);
    if !bytes.is_empty() {
        return Err(Malformed("bytes after a configuration"));
    }
    Ok(ConfState { voters, learners, voters_outgoing, learners_next, auto_leave, ..ConfState::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NodeNumber;

    /// What raft-rs itself writes is read in `group`'s tests; here stand the bytes.
    #[test]
    fn golden_changes() {
        let replica = |number, node| ReplicaId::new(number, NodeNumber(node));
        let changes = [MemberChange::Promote(replica(3, 4)), MemberChange::Remove(replica(0, 1))];
        let bytes = [0x12, 4, 0x10, 0x84, 0x80, 0x0c, 0x12, 4, 0x08, 1, 0x10, 1];
        assert_eq!(decode_change(&bytes), Ok(conf_change(&changes)));
        assert_eq!(decode_change(&[]), Ok(ConfChangeV2::default()));
        for end in 1..bytes.len() {
            let cut = decode_change(&bytes[..end]);
            assert!(cut.is_err() || end == 6, "cut at {end}");
        }
        assert!(decode_change(&[0x1b]).is_err(), "groups are not part of it");
        assert!(decode_change(&[0x12, 0xff, 0xff, 0xff, 0x0f]).is_err());
        assert!(
            decode_change(&[0x08, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1]).is_err()
        );
    }

    #[test]
    fn configurations_survive_their_bytes() {
        let conf_state = ConfState {
            voters: vec![1, 2],
            learners: vec![0x1_0003],
            voters_outgoing: vec![1],
            auto_leave: true,
            ..ConfState::default()
        };
        let mut bytes = Vec::new();
        encode_members(&conf_state, &mut bytes);
        assert_eq!(decode_members(&bytes), Ok(conf_state));
        for end in 0..bytes.len() {
            assert!(decode_members(&bytes[..end]).is_err());
        }
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let golden =
            "0101 0200 0100000000000000 0200000000000000 0100 0300010000000000 0100 0100000000000000 0000";
        assert_eq!(hex, golden.replace(' ', ""));
        assert!(decode_members(&[&bytes[..], &[0]].concat()).is_err());
    }
}
