//! Members and leadership of a group: changes proposed, followers watched, leadership handed over.
//!
//! One change at a time, and none that would lose the quorum. What applies a committed change is with the group's other
//! entries.

use super::{ConsensusError, Group};
use crate::consensus::membership::{MemberChange, conf_change};
use crate::consensus::progress::{Follower, FollowerState, MemberRefusal, check};
use crate::ids::ReplicaId;
use raft::prelude::ConfChangeV2;
use raft::{ProgressState, SnapshotStatus, StateRole};

/// Ticks without progress after which a snapshot counts as lost and the follower is asked again where it stands.
const SNAPSHOT_STALLED_TICKS: u64 = 100;
impl Group {
    /// Proposes a change of the members, if it is safe and none is under way; the index of its entry.
    pub fn change_members(&mut self, changes: &[MemberChange]) -> Result<u64, MemberRefusal> {
        if !self.may_propose() {
            return Err(MemberRefusal::NotLeader);
        }
        if self.is_changing_members() {
            return Err(MemberRefusal::Busy);
        }
        check(changes, self.replica(), self.conf_state(), self.last_index(), &self.followers())?;
        self.propose_change(conf_change(changes)).map_err(|_| MemberRefusal::Busy)
    }

    /// Whether a change of members is proposed and not applied, or a joint configuration not left.
    pub fn is_changing_members(&self) -> bool {
        self.node.raft.has_pending_conf() || !self.conf_state().voters_outgoing.is_empty()
    }

    /// Whether the leader of the current term was heard lately, or is this replica.
    pub fn hears_a_leader(&self) -> bool {
        let leader = self.leader().0;
        self.is_leader() || (leader != 0 && self.heard.is_active(leader, self.ticks))
    }

    /// Begins to hand leadership over to a voter. It is given up when the other one does not take it in time.
    pub fn transfer(&mut self, to: ReplicaId) -> Result<(), MemberRefusal> {
        if !self.is_leader() {
            return Err(MemberRefusal::NotLeader);
        }
        if to == self.replica() || !self.conf_state().voters.contains(&to.0) {
            return Err(MemberRefusal::NoMember(to));
        }
        if !self.heard.is_active(to.0, self.ticks) || !self.would_lead(to.0) {
            return Err(MemberRefusal::Silent(to));
        }
        self.node.transfer_leader(to.0);
        Ok(())
    }

    /// Whether leadership is being handed over.
    pub fn is_transferring(&self) -> bool {
        self.node.raft.lead_transferee.is_some()
    }

    /// Hands leadership over to the voter that has most of the log, if there is one; and stands for election no more.
    pub fn resign(&mut self) {
        self.is_resigned = true;
        if !self.is_leader() || self.is_transferring() {
            return;
        }
        let followers = self.followers();
        let last = self.last_index();
        let fit = followers.iter().filter(|one| {
            one.is_voter && one.is_active && one.replica != self.replica() && one.keeps_up(last)
        });
        if let Some(best) = fit.max_by_key(|one| (self.would_lead(one.replica.0), one.matched, one.replica)) {
            self.node.transfer_leader(best.replica.0);
        }
    }

    /// Stands for election again after a resignation that came to nothing.
    pub fn withdraw_resignation(&mut self) {
        self.is_resigned = false;
    }

    /// What this replica is in its group now.
    pub fn role_name(&self) -> &'static str {
        match self.node.raft.state {
            StateRole::Leader => "leader",
            StateRole::Candidate | StateRole::PreCandidate => "candidate",
            StateRole::Follower if self.is_voter() => "follower",
            StateRole::Follower => "learner",
        }
    }

    /// Every member as this leader sees it, by replica; empty when it does not lead.
    pub fn followers(&self) -> Vec<Follower> {
        if !self.is_leader() {
            return Vec::new();
        }
        let (raft, conf_state) = (&self.node.raft, self.conf_state());
        let follower = |(id, progress): (&u64, &raft::Progress)| Follower {
            replica: ReplicaId(*id),
            is_voter: conf_state.voters.contains(id) || conf_state.voters_outgoing.contains(id),
            matched: progress.matched,
            applied: if *id == raft.id { Some(self.own_applied()) } else { self.heard.applied(*id) },
            state: match progress.state {
                ProgressState::Probe => FollowerState::Probing,
                ProgressState::Replicate => FollowerState::Replicating,
                ProgressState::Snapshot => FollowerState::Snapshot,
            },
            is_active: *id == raft.id || self.heard.is_active(*id, self.ticks),
        };
        let mut followers: Vec<Follower> = raft.prs().iter().map(follower).collect();
        followers.sort_by_key(|follower| follower.replica);
        followers
    }

    /// A leader that has just applied its own removal leads no more. raft-rs would go on, and panics when it then counts what
    /// this replica, or another, has made durable.
    pub(super) fn step_down_if_removed(&mut self) {
        let raft = &mut self.node.raft;
        if raft.state == StateRole::Leader && raft.prs().get(raft.id).is_none() {
            let term = raft.term;
            raft.become_follower(term, raft::INVALID_ID);
        }
    }

    fn propose_change(&mut self, change: ConfChangeV2) -> Result<u64, ConsensusError> {
        self.node.propose_conf_change(Vec::new(), change)?;
        Ok(self.last_index())
    }

    /// raft-rs leaves a joint configuration by itself, unless the leader changed at the wrong moment.
    pub(super) fn leave_joint(&mut self) {
        let conf_state = self.conf_state();
        let is_joint = !conf_state.voters_outgoing.is_empty() && conf_state.auto_leave;
        if is_joint && self.may_propose() && !self.node.raft.has_pending_conf() {
            // Refused or lost, it is proposed again at a later tick.
            let _ = self.propose_change(ConfChangeV2::default());
        }
    }

    /// A follower that waits for a snapshot and does not move is asked again where it stands; raft-rs would wait for ever.
    pub(super) fn fail_stalled_snapshots(&mut self) {
        let ticks = self.ticks;
        let mut lost = Vec::new();
        let before = std::mem::take(&mut self.stalled);
        for follower in self.followers() {
            if follower.state != FollowerState::Snapshot {
                continue;
            }
            let id = follower.replica.0;
            let known =
                before.iter().find(|(known, _, matched)| *known == id && *matched == follower.matched);
            let since = known.map_or(ticks, |(_, since, _)| *since);
            if ticks - since >= SNAPSHOT_STALLED_TICKS {
                lost.push(id);
            } else {
                self.stalled.push((id, since, follower.matched));
            }
        }
        self.stalled.sort_unstable();
        for id in lost {
            self.node.report_snapshot(id, SnapshotStatus::Failure);
        }
    }
}
