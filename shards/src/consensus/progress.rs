//! What a leader knows of each follower, and whether a change of members may be proposed.
//!
//! A replica counts as active when it was heard within [`ACTIVE_TICKS`]; raft-rs's own mark is reset every election time and
//! so says too little. A change is refused, with the reason, when it would leave the group without an active majority.

use super::election::LEASE_TICKS;
use super::membership::MemberChange;
use crate::ids::ReplicaId;
use raft::prelude::ConfState;

/// Ticks after which a silent replica no longer counts as active.
pub const ACTIVE_TICKS: u64 = 2 * LEASE_TICKS as u64;
/// A learner that misses more entries than this is not promoted.
pub const BEHIND_MAX: u64 = 1024;

/// How entries go to a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FollowerState {
    /// The leader looks for the place where the logs part.
    Probing,
    /// Entries are streamed.
    Replicating,
    /// It needs a snapshot, or has not told yet that it has it.
    Snapshot,
}

/// One member of the group as its leader sees it; the leader itself included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follower {
    /// Which replica.
    pub replica: ReplicaId,
    /// Whether it has a vote, in the present or the outgoing configuration.
    pub is_voter: bool,
    /// Index up to which its durable log is known to agree.
    pub matched: u64,
    /// What it has applied, as it said last; `None` before it has said so.
    pub applied: Option<Applied>,
    /// How entries go to it.
    pub state: FollowerState,
    /// Whether it was heard lately.
    pub is_active: bool,
}

/// How far a replica has applied its log, at one moment of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Index of the last entry that it has applied.
    pub index: u64,
    /// Index of the last entry that it knew to be committed.
    pub commit: u64,
    /// Index of the last entry that it would know to be committed after a restart.
    pub kept: u64,
}

impl Follower {
    /// Entries up to `index` that it has not in its log, and those that it has and has not applied. What is in its log and not
    /// yet known there to be committed does not count: that is how every entry is for a moment.
    pub fn lag(&self, index: u64) -> u64 {
        let unapplied = |applied: Applied| applied.commit.min(self.matched).saturating_sub(applied.index);
        index.saturating_sub(self.matched) + self.applied.map_or(0, unapplied)
    }

    /// Whether it has everything or is being sent what is new. raft-rs goes on probing a follower that has everything until
    /// there is something new.
    pub fn keeps_up(&self, last_index: u64) -> bool {
        self.state == FollowerState::Replicating || self.matched == last_index
    }
}

/// Why a change of members or of the leader is not begun. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberRefusal {
    /// This replica does not lead, or has not applied everything from before its term.
    NotLeader,
    /// Another change is under way.
    Busy,
    /// The change is empty, or names a replica twice.
    Malformed,
    /// It is no member, or none of the kind that the change needs.
    NoMember(ReplicaId),
    /// It is a member already.
    Member(ReplicaId),
    /// It leads: leadership goes to another one first.
    Leads(ReplicaId),
    /// It was not heard lately.
    Silent(ReplicaId),
    /// It misses so many entries that its vote would hold writes up.
    Behind(ReplicaId, u64),
    /// Fewer voters than this would be active, and this many are needed.
    NoQuorum {
        /// Voters heard lately, after the change.
        active: usize,
        /// A majority of them.
        needed: usize,
    },
}

impl std::fmt::Display for MemberRefusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = |replica: &ReplicaId| format!("the replica on node {}", replica.node());
        match self {
            Self::NotLeader => f.write_str("this replica does not lead the group"),
            Self::Busy => f.write_str("another change of the group's members is under way"),
            Self::Malformed => f.write_str("the change names no replica, or one of them twice"),
            Self::NoMember(replica) => write!(f, "{} is no member that can be changed so", place(replica)),
            Self::Member(replica) => write!(f, "{} is a member already", place(replica)),
            Self::Leads(replica) => write!(f, "{} leads; transfer leadership first", place(replica)),
            Self::Silent(replica) => write!(f, "{} does not answer", place(replica)),
            Self::Behind(replica, entries) => write!(f, "{} is {entries} entries behind", place(replica)),
            Self::NoQuorum { active, needed } => {
                write!(f, "only {active} voters would be reachable and {needed} are needed")
            }
        }
    }
}

/// Whether the changes may be proposed by `leader` in this configuration, with what is known of each member.
pub fn check(
    changes: &[MemberChange],
    leader: ReplicaId,
    conf_state: &ConfState,
    last_index: u64,
    followers: &[Follower],
) -> Result<(), MemberRefusal> {
    let is_repeated = |at: usize| changes[..at].iter().any(|one| one.replica() == changes[at].replica());
    if changes.is_empty() || (0..changes.len()).any(is_repeated) {
        return Err(MemberRefusal::Malformed);
    }
    let known = |replica: ReplicaId| followers.iter().find(|follower| follower.replica == replica);
    let mut voters = conf_state.voters.clone();
    for change in changes {
        let replica = change.replica();
        match change {
            MemberChange::AddLearner(_) if replica.0 == 0 => return Err(MemberRefusal::Malformed),
            MemberChange::AddLearner(_) if known(replica).is_some() => {
                return Err(MemberRefusal::Member(replica));
            }
            MemberChange::AddLearner(_) => {}
            MemberChange::Promote(_) => {
                let learner = known(replica).filter(|_| conf_state.learners.contains(&replica.0));
                let learner = learner.ok_or(MemberRefusal::NoMember(replica))?;
                if !learner.is_active {
                    return Err(MemberRefusal::Silent(replica));
                }
                let behind = last_index.saturating_sub(learner.matched);
                if behind > BEHIND_MAX || !learner.keeps_up(last_index) {
                    return Err(MemberRefusal::Behind(replica, behind));
                }
                voters.push(replica.0);
            }
            MemberChange::Remove(_) if replica == leader => return Err(MemberRefusal::Leads(replica)),
            MemberChange::Remove(_) if known(replica).is_none() => {
                return Err(MemberRefusal::NoMember(replica));
            }
            MemberChange::Remove(_) => voters.retain(|voter| *voter != replica.0),
        }
    }
    for list in [&conf_state.voters, &voters] {
        let active = list.iter().filter(|id| known(ReplicaId(**id)).is_some_and(|one| one.is_active)).count();
        let needed = list.len() / 2 + 1;
        if active < needed {
            return Err(MemberRefusal::NoQuorum { active, needed });
        }
    }
    Ok(())
}

/// Who was heard when, by ticks, and who is not given leadership now.
#[derive(Debug, Default)]
pub(super) struct Heard {
    last: Vec<(u64, u64)>,
    /// What replicas have applied, as they said last.
    applied: Vec<(u64, Applied)>,
    /// Replicas that would not take leadership, and until which tick; [`UNTIL_HEARD`] for one whose link broke.
    unfit: Vec<(u64, u64)>,
    /// To whom leadership is being handed over, and since which tick.
    pub(super) handing: Option<(u64, u64)>,
}

/// Ends with the next word of the replica instead of at a tick.
pub(super) const UNTIL_HEARD: u64 = u64::MAX;

/// Replicas remembered; a group has far fewer members, and what is forgotten is heard again.
const HEARD_MAX: usize = 64;

impl Heard {
    /// Notes a word of a replica.
    pub(super) fn note(&mut self, replica: u64, tick: u64) {
        if !self.unfit.is_empty() {
            self.unfit.retain(|(id, until)| *id != replica || *until != UNTIL_HEARD);
        }
        match self.last.iter_mut().find(|(id, _)| *id == replica) {
            Some(known) => known.1 = tick,
            None => {
                if self.last.len() >= HEARD_MAX {
                    self.last.remove(0);
                }
                self.last.push((replica, tick));
            }
        }
    }

    /// Notes what a replica has applied.
    pub(super) fn note_applied(&mut self, replica: u64, applied: Applied) {
        match self.applied.iter_mut().find(|(id, _)| *id == replica) {
            Some(known) => known.1 = applied,
            None => {
                if self.applied.len() >= HEARD_MAX {
                    self.applied.remove(0);
                }
                self.applied.push((replica, applied));
            }
        }
    }

    /// What a replica has applied, as it said last.
    pub(super) fn applied(&self, replica: u64) -> Option<Applied> {
        self.applied.iter().find(|(id, _)| *id == replica).map(|(_, applied)| *applied)
    }

    /// A replica is not given leadership until this tick.
    pub(super) fn note_unfit(&mut self, replica: u64, until: u64) {
        self.unfit.retain(|(id, _)| *id != replica);
        if self.unfit.len() >= HEARD_MAX {
            self.unfit.remove(0);
        }
        self.unfit.push((replica, until));
    }

    /// Whether a replica would take leadership, as far as is known.
    pub(super) fn is_fit(&self, replica: u64, tick: u64) -> bool {
        !self.unfit.iter().any(|(id, until)| *id == replica && tick < *until)
    }

    /// Whether a replica was heard lately.
    pub(super) fn is_active(&self, replica: u64, tick: u64) -> bool {
        self.last.iter().any(|(id, at)| *id == replica && tick - at <= ACTIVE_TICKS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_changes(changes: &[MemberChange], active: [bool; 4]) -> Result<(), MemberRefusal> {
        let conf_state = ConfState { voters: vec![1, 2, 3], learners: vec![4], ..ConfState::default() };
        let follower = |id: u64| Follower {
            replica: ReplicaId(id),
            is_voter: id < 4,
            matched: 1000,
            applied: None,
            state: FollowerState::Replicating,
            is_active: active[id as usize - 1],
        };
        check(changes, ReplicaId(1), &conf_state, 1500, &[1, 2, 3, 4].map(follower))
    }

    #[test]
    fn what_would_lose_the_quorum_is_refused() {
        let (promote, remove) = (MemberChange::Promote(ReplicaId(4)), MemberChange::Remove(ReplicaId(3)));
        assert_eq!(check_changes(&[promote], [true; 4]), Ok(()));
        assert_eq!(check_changes(&[promote, remove], [true, true, false, true]), Ok(()));
        assert_eq!(
            check_changes(&[MemberChange::Remove(ReplicaId(2))], [true, true, false, true]),
            Err(MemberRefusal::NoQuorum { active: 1, needed: 2 }),
            "of replicas 1 and 3 only one is there"
        );
        let lost = check_changes(&[remove], [true, false, false, true]);
        assert_eq!(lost, Err(MemberRefusal::NoQuorum { active: 1, needed: 2 }));
        assert_eq!(
            check_changes(&[promote], [true, true, true, false]),
            Err(MemberRefusal::Silent(ReplicaId(4)))
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let all = [true; 4];
        assert_eq!(check_changes(&[], all), Err(MemberRefusal::Malformed));
        let twice = [MemberChange::Promote(ReplicaId(4)), MemberChange::Remove(ReplicaId(4))];
        assert_eq!(check_changes(&twice, all), Err(MemberRefusal::Malformed));
        let leader = ReplicaId(1);
        assert_eq!(check_changes(&[MemberChange::Remove(leader)], all), Err(MemberRefusal::Leads(leader)));
        let voter = ReplicaId(2);
        assert_eq!(check_changes(&[MemberChange::Promote(voter)], all), Err(MemberRefusal::NoMember(voter)));
        assert_eq!(check_changes(&[MemberChange::AddLearner(voter)], all), Err(MemberRefusal::Member(voter)));
        let learner = |matched, state| Follower {
            replica: ReplicaId(4),
            is_voter: false,
            matched,
            applied: Some(Applied { index: 6, commit: 9, kept: 6 }),
            state,
            is_active: true,
        };
        let behind = learner(8, FollowerState::Replicating);
        assert_eq!(
            (behind.lag(9), behind.lag(7)),
            (3, 2),
            "one is not in its log, two are and are not applied"
        );
        assert!(learner(9, FollowerState::Probing).keeps_up(9), "there is nothing new to be sent");
        assert!(!learner(8, FollowerState::Probing).keeps_up(9));
        assert!(!learner(8, FollowerState::Snapshot).keeps_up(9));
        let stranger = ReplicaId(9);
        assert_eq!(
            check_changes(&[MemberChange::Remove(stranger)], all),
            Err(MemberRefusal::NoMember(stranger))
        );
        assert_eq!(check_changes(&[MemberChange::AddLearner(stranger)], all), Ok(()));
    }
}
