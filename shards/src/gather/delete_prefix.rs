//! DELETE_PREFIX: in slices, on all groups at once.
//!
//! With a session group 0 is first asked whether it remembers the reply, and at the end told to: its answer to that is the
//! client's reply. A retry after an unknown outcome goes on where the first try stood and counts what was left.

use super::{Call, Gather, NO_PART, Step, parts};
use crate::batch::ReplyKind;
use crate::command::record::{Malformed, Op, Record, Session};
use crate::gather::topology::Topology;
use crate::ids::GroupId;
use strand_wire::reply::push_unsigned;
use strand_wire::request;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Tells the fingerprints of this command from those of others: "delprefx".
const FINGERPRINT_SEED: u64 = u64::from_le_bytes(*b"delprefx");
/// The group that remembers replies of commands over all groups.
pub const KEEPER: GroupId = GroupId(0);
/// First byte of what `Remember` stores for a success.
const REMEMBER_SUCCESS: u8 = 0;

/// See the module's head.
#[derive(Debug)]
pub struct DeletePrefix {
    prefix: Vec<u8>,
    session: Option<OwnedSession>,
    phase: Phase,
    groups: u16,
    /// Groups that still have slices to go.
    left: u16,
    deleted: u64,
}

#[derive(Debug)]
struct OwnedSession {
    client: Vec<u8>,
    seq: u64,
    acked: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Recall,
    Slices,
    Remember,
}

impl DeletePrefix {
    /// Begins.
    pub fn start(topology: &Topology, request: &request::DeletePrefix<'_>) -> (Gather, Step) {
        let groups = u16::try_from(topology.groups()).expect("at most 4,096 groups");
        let session = request.session.as_ref().map(|session| OwnedSession {
            client: session.client.as_bytes().to_vec(),
            seq: session.seq,
            acked: session.acked.unwrap_or(0),
        });
        let phase = if session.is_some() { Phase::Recall } else { Phase::Slices };
        let prefix = request.prefix.as_bytes().to_vec();
        let gather = Self { prefix, session, phase, groups, left: groups, deleted: 0 };
        let step = if phase == Phase::Recall { gather.to_keeper(Op::Recall, &[]) } else { gather.begin() };
        (Gather::DeletePrefix(gather), step)
    }

    pub(super) fn part(&mut self, number: u16, kind: ReplyKind, body: &[u8]) -> Result<Step, Malformed> {
        match (self.phase, kind) {
            // What was remembered, now or before, is the reply; and an error always is.
            (_, ReplyKind::Error) | (Phase::Recall | Phase::Remember, ReplyKind::Ok | ReplyKind::Success) => {
                Ok(Step::passed_on(kind, body))
            }
            (Phase::Recall, ReplyKind::Part) => {
                self.phase = Phase::Slices;
                Ok(self.begin())
            }
            (Phase::Slices, ReplyKind::Part) => self.slice(number, body),
            (_, ReplyKind::NotLeader | ReplyKind::StalePart)
            | (Phase::Slices, ReplyKind::Ok | ReplyKind::Success)
            | (Phase::Remember, ReplyKind::Part) => Err(NO_PART),
        }
    }

    fn begin(&self) -> Step {
        Step::Calls((0..self.groups).map(|group| self.call(group, &[])).collect())
    }

    /// A slice of one group, whose number is the call's.
    fn call(&self, group: u16, cursor: &[u8]) -> Call {
        Call::new(group, GroupId(u32::from(group)), &Record::plain(Op::DeletePrefix, &self.prefix, cursor))
    }

    fn slice(&mut self, number: u16, body: &[u8]) -> Result<Step, Malformed> {
        let (count, cursor) = parts::slice(body)?;
        self.deleted += count;
        if let Some(cursor) = cursor {
            return Ok(Step::Calls(vec![self.call(number, cursor)]));
        }
        self.left = self.left.checked_sub(1).ok_or(Malformed("it came twice"))?;
        if self.left > 0 {
            return Ok(Step::Wait);
        }
        let mut value = vec![REMEMBER_SUCCESS];
        value.extend_from_slice(b"\"result\":");
        push_unsigned(&mut value, self.deleted);
        if self.session.is_none() {
            return Ok(Step::success(value.split_off(1)));
        }
        self.phase = Phase::Remember;
        Ok(self.to_keeper(Op::Remember, &value))
    }

    fn to_keeper(&self, op: Op, value: &[u8]) -> Step {
        let session = self.session.as_ref();
        let session = session.map(|s| Session { client: &s.client, seq: s.seq, acked: s.acked });
        let argument = Some(xxh3_64_with_seed(&self.prefix, FINGERPRINT_SEED));
        let record = Record { argument, session, ..Record::plain(op, &[], value) };
        Step::Calls(vec![Call::new(0, KEEPER, &record)])
    }
}
