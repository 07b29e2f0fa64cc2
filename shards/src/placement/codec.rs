//! Reports and steps as bytes, on links between nodes. Little-endian; a list is its length u16 and its items.

use super::{Progress, Report, Step};
use crate::command::record::{Malformed, take_u8, take_u16, take_u64};
use crate::consensus::membership::MemberChange;
use crate::ids::ReplicaId;
use crate::txn::take_flag;

/// Most replicas that a list names: far beyond any group.
const REPLICAS_MAX: u16 = 256;

impl Report {
    /// Appends the report.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for number in [self.term, self.leader.0, self.commit] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.push(u8::from(self.is_changing));
        for list in [&self.voters, &self.learners] {
            push_count(out, list.len());
            list.iter().for_each(|replica| out.extend_from_slice(&replica.0.to_le_bytes()));
        }
        push_count(out, self.progress.len());
        for progress in &self.progress {
            out.extend_from_slice(&progress.replica.0.to_le_bytes());
            out.extend_from_slice(&progress.matched.to_le_bytes());
            out.push(u8::from(progress.is_active));
        }
    }

    /// Reads all of what [`Report::encode`] wrote.
    pub fn decode(rest: &mut &[u8]) -> Result<Self, Malformed> {
        let (term, leader, commit) = (take_u64(rest)?, ReplicaId(take_u64(rest)?), take_u64(rest)?);
        let is_changing = take_flag(rest)?;
        let (voters, learners) = (take_replicas(rest)?, take_replicas(rest)?);
        let progress = (0..take_count(rest)?)
            .map(|_| {
                let (replica, matched) = (ReplicaId(take_u64(rest)?), take_u64(rest)?);
                Ok(Progress { replica, matched, is_active: take_flag(rest)? })
            })
            .collect::<Result<_, Malformed>>()?;
        ended(rest)?;
        Ok(Self { term, leader, commit, is_changing, voters, learners, progress })
    }
}

impl Step {
    /// Appends the step.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Transfer(to) => {
                out.push(0);
                out.extend_from_slice(&to.0.to_le_bytes());
            }
            Self::Change(changes) => {
                out.push(1);
                push_count(out, changes.len());
                for change in changes {
                    out.push(match change {
                        MemberChange::AddLearner(_) => 0,
                        MemberChange::Promote(_) => 1,
                        MemberChange::Remove(_) => 2,
                    });
                    out.extend_from_slice(&change.replica().0.to_le_bytes());
                }
            }
        }
    }

    /// Reads all of what [`Step::encode`] wrote.
    pub fn decode(rest: &mut &[u8]) -> Result<Self, Malformed> {
        let step = match take_u8(rest)? {
            0 => Self::Transfer(ReplicaId(take_u64(rest)?)),
            1 => {
                let change = |rest: &mut &[u8]| {
                    let kind = take_u8(rest)?;
                    let replica = ReplicaId(take_u64(rest)?);
                    match kind {
                        0 => Ok(MemberChange::AddLearner(replica)),
                        1 => Ok(MemberChange::Promote(replica)),
                        2 => Ok(MemberChange::Remove(replica)),
                        _ => Err(Malformed("a change of members of unknown kind")),
                    }
                };
                Self::Change((0..take_count(rest)?).map(|_| change(rest)).collect::<Result<_, _>>()?)
            }
            _ => return Err(Malformed("a step of unknown kind")),
        };
        ended(rest)?;
        Ok(step)
    }
}

fn push_count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&u16::try_from(count).expect("a group has few members").to_le_bytes());
}

fn take_count(rest: &mut &[u8]) -> Result<u16, Malformed> {
    let count = take_u16(rest)?;
    if count <= REPLICAS_MAX { Ok(count) } else { Err(Malformed("a list that is too long")) }
}

fn take_replicas(rest: &mut &[u8]) -> Result<Vec<ReplicaId>, Malformed> {
    (0..take_count(rest)?).map(|_| take_u64(rest).map(ReplicaId)).collect()
}

fn ended(rest: &[u8]) -> Result<(), Malformed> {
    if rest.is_empty() { Ok(()) } else { Err(Malformed("bytes after a report or step")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn reports_and_steps_survive_their_bytes() {
        let (one, two) = (ReplicaId(1), ReplicaId(0x1_0002));
        let progress = vec![Progress { replica: two, matched: 8, is_active: true }];
        let report = Report {
            term: 3,
            leader: one,
            commit: 9,
            is_changing: true,
            voters: vec![one],
            learners: vec![two],
            progress,
        };
        let mut bytes = Vec::new();
        report.encode(&mut bytes);
        let golden = concat!(
            "0300000000000000 0100000000000000 0900000000000000 01 0100 0100000000000000 0100 0200010000000000",
            "0100 0200010000000000 0800000000000000 01"
        );
        assert_eq!(hex(&bytes), golden.replace(' ', ""));
        assert_eq!(Report::decode(&mut &bytes[..]), Ok(report));
        for length in 0..bytes.len() {
            assert!(Report::decode(&mut &bytes[..length]).is_err());
        }
        let steps = [
            (Step::Transfer(two), "00 0200010000000000"),
            (
                Step::Change(vec![
                    MemberChange::AddLearner(one),
                    MemberChange::Promote(two),
                    MemberChange::Remove(one),
                ]),
                "01 0300 00 0100000000000000 01 0200010000000000 02 0100000000000000",
            ),
        ];
        for (step, golden) in steps {
            let mut bytes = Vec::new();
            step.encode(&mut bytes);
            assert_eq!(hex(&bytes), golden.replace(' ', ""));
            assert_eq!(Step::decode(&mut &bytes[..]), Ok(step));
            for length in 0..bytes.len() {
                assert!(Step::decode(&mut &bytes[..length]).is_err());
            }
        }
    }
}
