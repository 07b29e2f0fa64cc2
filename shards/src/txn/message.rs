//! What groups say to one another about a transaction, and the log payloads of its steps.
//!
//! Between groups of one process messages travel as they are; between nodes the peer links encode them. Messages of one
//! pair of groups keep their order. Payload layouts are part of the storage format.

use super::{Kind, TxnId, take_flag};
use crate::command::record::{Malformed, take, take_u8, take_u16, take_u32, take_u64};
use crate::ids::{GroupId, Millis, ReplicaId, Version};
use crate::meta::NodeAddress;
use crate::placement::{Report, Step};

/// A message with its sender and receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMessage {
    /// The group that says it.
    pub from: GroupId,
    /// The group that shall hear it.
    pub to: GroupId,
    /// What is said.
    pub body: Message,
}

/// [`Message::Finish::attempt`] once a transaction is decided.
pub const LAST_TRY: u32 = u32::MAX;

/// One step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Coordinator to participant: lock these keys and hold these values.
    Prepare {
        /// The transaction.
        txn: TxnId,
        /// Rises with each try.
        attempt: u32,
        /// Wait for locks until the deadline, instead of refusing.
        wait: bool,
        /// What is done with the items.
        kind: Kind,
        /// The debug fault mode was asked for.
        debug: bool,
        /// Keys and values of this participant.
        items: Vec<u8>,
        /// When the client stops waiting.
        deadline: Millis,
    },
    /// Participant to coordinator: locked.
    Prepared {
        /// The transaction.
        txn: TxnId,
        /// The try that this answers.
        attempt: u32,
        /// Version of the PREPARE.
        place: Version,
        /// Keys set, or keys found for a delete.
        count: i64,
        /// For reads: keys and values as items; an absent key has an empty value.
        values: Vec<u8>,
    },
    /// Participant to coordinator: some key is locked by another transaction, or the deadline has passed.
    Refused {
        /// The transaction.
        txn: TxnId,
        /// The try that this answers.
        attempt: u32,
    },
    /// Coordinator to participant: apply the intents of `place`, or drop what there is.
    Finish {
        /// The transaction.
        txn: TxnId,
        /// The version of the PREPARE to apply; `None` drops.
        commit: Option<Version>,
        /// The try that is over, and with it those before; [`LAST_TRY`] when the transaction is decided. A word about an
        /// earlier try, come late, must not touch what a later one has locked.
        attempt: u32,
    },
    /// Participant to coordinator: no intent of this try or of one before it is left.
    Finished {
        /// The transaction.
        txn: TxnId,
        /// The try of the FINISH that this answers.
        attempt: u32,
    },
    /// Participant to coordinator: what became of it?
    Ask {
        /// The transaction.
        txn: TxnId,
    },
    /// A group's leader to group 0: how the group is.
    Report(Box<Report>),
    /// Group 0's leader to a group's leader: take this step towards the placement.
    Member(Step),
    /// A node whose replica of the sending group has lost its log, to group 0: give it another one.
    Lost(ReplicaId),
    /// A node to group 0: this is where it is reached.
    Moved(Box<NodeAddress>),
}

impl Message {
    /// Whether it prepares this transaction, in this try or one before it.
    pub fn is_prepare_of(&self, of: TxnId, upto: u32) -> bool {
        matches!(self, Self::Prepare { txn, attempt, .. } if *txn == of && *attempt <= upto)
    }
}

/// Payload of `TxnOpen`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// What is done.
    pub kind: Kind,
    /// Hash of the whole request, to recognise its retry.
    pub fingerprint: u64,
    /// Every group that takes part, ascending.
    pub participants: Vec<GroupId>,
}

/// Payload of `TxnPrepare`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepare<'a> {
    /// The transaction.
    pub txn: TxnId,
    /// The try.
    pub attempt: u32,
    /// What is done.
    pub kind: Kind,
    /// Keys and values.
    pub items: &'a [u8],
}

/// Payload of `TxnDecide`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decide {
    /// The transaction.
    pub txn: TxnId,
    /// Commit or abort.
    pub commit: bool,
    /// The number that the client is told.
    pub result: i64,
    /// The PREPARE of each participant that counts.
    pub prepares: Vec<(GroupId, Version)>,
}

/// Payload of `TxnFinish`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finish {
    /// The transaction.
    pub txn: TxnId,
    /// The PREPARE to apply; `None` drops.
    pub commit: Option<Version>,
}

/// Payload of `TxnStart`: what a router asks of the coordinator. Never logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start<'a> {
    /// What is done.
    pub kind: Kind,
    /// The items of each participant, ascending by group.
    pub parts: Vec<(GroupId, &'a [u8])>,
}

impl Open {
    /// Appends the payload.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.kind as u8);
        out.extend_from_slice(&self.fingerprint.to_le_bytes());
        push_count(out, self.participants.len());
        for group in &self.participants {
            out.extend_from_slice(&group.0.to_le_bytes());
        }
    }

    /// Reads the payload.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, Malformed> {
        let rest = &mut bytes;
        let kind = Kind::from_number(take_u8(rest)?)?;
        let fingerprint = take_u64(rest)?;
        let count = take_u16(rest)?;
        let participants = (0..count).map(|_| take_u32(rest).map(GroupId)).collect::<Result<Vec<_>, _>>()?;
        ended(rest)?;
        Ok(Self { kind, fingerprint, participants })
    }
}

impl<'a> Prepare<'a> {
    /// Appends the payload.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.txn.encode(out);
        out.extend_from_slice(&self.attempt.to_le_bytes());
        out.push(self.kind as u8);
        out.extend_from_slice(self.items);
    }

    /// Reads the payload.
    pub fn decode(mut bytes: &'a [u8]) -> Result<Self, Malformed> {
        let rest = &mut bytes;
        let txn = TxnId::decode(rest)?;
        let attempt = take_u32(rest)?;
        let kind = Kind::from_number(take_u8(rest)?)?;
        Ok(Self { txn, attempt, kind, items: rest })
    }
}

impl Decide {
    /// Appends the payload.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.txn.encode(out);
        out.push(u8::from(self.commit));
        out.extend_from_slice(&self.result.to_le_bytes());
        push_count(out, self.prepares.len());
        for (group, place) in &self.prepares {
            out.extend_from_slice(&group.0.to_le_bytes());
            push_version(out, *place);
        }
    }

    /// Reads the payload.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, Malformed> {
        let rest = &mut bytes;
        let txn = TxnId::decode(rest)?;
        let commit = take_flag(rest)?;
        let result = take_u64(rest)? as i64;
        let count = take_u16(rest)?;
        let prepares = (0..count)
            .map(|_| Ok((GroupId(take_u32(rest)?), take_version(rest)?)))
            .collect::<Result<Vec<_>, Malformed>>()?;
        ended(rest)?;
        Ok(Self { txn, commit, result, prepares })
    }
}

impl Finish {
    /// Appends the payload.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.txn.encode(out);
        out.push(u8::from(self.commit.is_some()));
        push_version(out, self.commit.unwrap_or_default());
    }

    /// Reads the payload.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, Malformed> {
        let rest = &mut bytes;
        let txn = TxnId::decode(rest)?;
        let commit = take_flag(rest)?;
        let place = take_version(rest)?;
        ended(rest)?;
        Ok(Self { txn, commit: commit.then_some(place) })
    }
}

impl<'a> Start<'a> {
    /// Appends the payload.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.kind as u8);
        push_count(out, self.parts.len());
        for (group, items) in &self.parts {
            out.extend_from_slice(&group.0.to_le_bytes());
            let length = u32::try_from(items.len()).expect("a request line is below 4 GiB");
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(items);
        }
    }

    /// Reads the payload.
    pub fn decode(mut bytes: &'a [u8]) -> Result<Self, Malformed> {
        let rest = &mut bytes;
        let kind = Kind::from_number(take_u8(rest)?)?;
        let count = take_u16(rest)?;
        let mut parts = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let group = GroupId(take_u32(rest)?);
            let length = take_u32(rest)? as usize;
            parts.push((group, take(rest, length)?));
        }
        ended(rest)?;
        if parts.is_empty() || !parts.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(Malformed("participants are missing or out of order"));
        }
        Ok(Self { kind, parts })
    }
}

/// Appends a version.
pub(crate) fn push_version(out: &mut Vec<u8>, version: Version) {
    out.extend_from_slice(&version.epoch.to_le_bytes());
    out.extend_from_slice(&version.place.to_le_bytes());
}

/// Reads a version.
pub(crate) fn take_version(rest: &mut &[u8]) -> Result<Version, Malformed> {
    Ok(Version { epoch: take_u32(rest)?, place: take_u64(rest)? })
}

fn push_count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&u16::try_from(count).expect("at most 4,096 groups").to_le_bytes());
}

fn ended(rest: &[u8]) -> Result<(), Malformed> {
    if rest.is_empty() { Ok(()) } else { Err(Malformed("bytes after the payload")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_survive() {
        let txn = TxnId { group: GroupId(3), opened: Version::new(1, 88, 2) };
        let place = Version::new(2, 90, 1);
        let mut bytes = Vec::new();
        let open = Open { kind: Kind::Delete, fingerprint: 7, participants: vec![GroupId(3), GroupId(5)] };
        open.encode(&mut bytes);
        assert_eq!(Open::decode(&bytes), Ok(open));
        assert!(Open::decode(&bytes[..bytes.len() - 1]).is_err());

        bytes.clear();
        let prepare = Prepare { txn, attempt: 2, kind: Kind::Set, items: b"items" };
        prepare.encode(&mut bytes);
        assert_eq!(Prepare::decode(&bytes), Ok(prepare));

        bytes.clear();
        let decide = Decide { txn, commit: true, result: -4, prepares: vec![(GroupId(5), place)] };
        decide.encode(&mut bytes);
        assert_eq!(Decide::decode(&bytes), Ok(decide));

        for commit in [None, Some(place)] {
            bytes.clear();
            let finish = Finish { txn, commit };
            finish.encode(&mut bytes);
            assert_eq!(Finish::decode(&bytes), Ok(finish));
        }

        bytes.clear();
        let start = Start { kind: Kind::Read, parts: vec![(GroupId(0), b"a"), (GroupId(2), b"")] };
        start.encode(&mut bytes);
        assert_eq!(Start::decode(&bytes), Ok(start));
        let golden = "03020000000000010000006102000000 00000000";
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, golden.replace(' ', ""));
    }
}
