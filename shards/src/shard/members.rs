//! Members and leadership of the group, as the balancer and the operator change them.

use super::Shard;
use crate::consensus::membership::MemberChange;
use crate::consensus::progress::{Applied, Follower, FollowerState, MemberRefusal};
use crate::ids::{Millis, ReplicaId};

/// The index of what a replica has applied, as JSON.
pub(super) fn number_or_null(applied: Option<Applied>) -> String {
    applied.map_or_else(|| "null".to_owned(), |applied| applied.index.to_string())
}

impl Shard {
    /// Proposes a change of the members, in one entry: one change simply, several through a joint configuration. Refused,
    /// with nothing done, unless this replica leads, no other change is under way, and an active majority remains.
    /// Returns the entry's index: the change holds on a replica that has applied it.
    pub fn change_members(&mut self, changes: &[MemberChange]) -> Result<u64, MemberRefusal> {
        if !self.is_ready {
            return Err(MemberRefusal::NotLeader);
        }
        self.group.change_members(changes)
    }

    /// Whether the group has let this replica go: it was told of its removal by one that has applied it, or had no vote and
    /// has applied its removal itself.
    pub fn is_dismissed(&self) -> bool {
        self.group.is_dismissed()
    }

    /// Whether this replica may be given up when it hears of no leader for long: only if it never had a vote, as far as it
    /// knows. One that votes asks for votes when it hears nothing, one that has left asks whether it may go, and both are told
    /// of their removal by those who have applied it; until then the others may need its vote and its log, however long it
    /// hears nothing.
    pub fn may_be_forgotten(&self) -> bool {
        !self.group.is_voter() && !self.group.has_left_with_a_vote()
    }

    /// Whether the leader of the group was heard lately.
    pub fn hears_a_leader(&self) -> bool {
        self.group.hears_a_leader()
    }

    /// Whether a change of members is under way.
    pub fn is_changing_members(&self) -> bool {
        self.group.is_changing_members()
    }

    /// Begins to hand leadership over to a voter that is active. Meanwhile nothing is proposed; what gathers goes back as
    /// not leading when the other one has taken over, and is proposed after all when it has not within an election time.
    pub fn transfer(&mut self, to: ReplicaId) -> Result<(), MemberRefusal> {
        if !self.is_ready {
            return Err(MemberRefusal::NotLeader);
        }
        self.group.transfer(to)
    }

    /// Every member as this leader sees it, by replica, itself included; empty when it does not lead.
    pub fn progress(&self) -> Vec<Follower> {
        self.group.followers()
    }

    /// What a leader knows of each other member, as the members of a JSON array; nothing on a replica that does not lead.
    pub(super) fn followers_json(&self) -> String {
        let last = self.group.last_index();
        let others = self.group.followers().into_iter().filter(|one| one.replica != self.group.replica());
        let follower = |one: Follower| {
            let state = match one.state {
                FollowerState::Probing => "probing",
                FollowerState::Replicating => "replicating",
                FollowerState::Snapshot => "snapshot",
            };
            format!(
                "{{\"node\":{},\"voter\":{},\"active\":{},\"state\":\"{state}\",\"match_index\":{},\"applied_index\":{},\"lag\":{}}}",
                one.replica.node(),
                one.is_voter,
                one.is_active,
                one.matched,
                number_or_null(one.applied),
                one.lag(last)
            )
        };
        others.map(follower).collect::<Vec<_>>().join(",")
    }

    /// Hands leadership over while there is somebody to take it, until this time.
    pub(super) fn resign(&mut self, until: Millis) {
        self.standing.resigns_until = Some(until);
        self.group.resign();
    }

    /// Goes on with what a resignation began.
    pub(super) fn tick_resignation(&mut self) {
        match self.standing.resigns_until {
            Some(until) if until <= self.now => {
                self.standing.resigns_until = None;
                self.group.withdraw_resignation();
            }
            Some(_) => self.group.resign(),
            None => {}
        }
    }
}
