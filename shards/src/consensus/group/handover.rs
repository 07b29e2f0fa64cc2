//! What a leader knows of those who might lead after it, so that leadership is not offered to who cannot take it.
//!
//! While leadership is handed over nothing is proposed, and raft-rs waits a whole lease before it gives up. A process that
//! stops gives its groups away and is alive for a while, and the balancer, which wants them even, would at once offer them back:
//! each offer would cost every writer that lease. So who has just handed over is left alone for as long as a stop may take,
//! a replica whose link broke until it is heard again, and an offer that is not taken is withdrawn after a few ticks.
//!
//! Must not: refuse a voter for good. What is kept here is an opinion; elections do not ask for it.

use super::Group;
use raft::prelude::{Message, MessageType};

/// Ticks in which a voter takes leadership: a round trip and the sync of its vote, many times over.
const TAKEN_WITHIN_TICKS: u64 = 4;
/// Ticks for which leadership is not offered to who gave it away or did not take it: longer than a process that stops stays.
const LEFT_ALONE_TICKS: u64 = 60;

/// Ticks for which a newer term may be known before a leader stands back: longer than an election takes.
const OUTDATED_TICKS: u64 = 60;

impl Group {
    /// Whether a voter would take leadership, as far as this replica knows.
    pub(super) fn would_lead(&self, replica: u64) -> bool {
        self.heard.is_fit(replica, self.ticks)
    }

    /// Notes a message of another replica. One that hands leadership over has a reason to.
    pub(super) fn note_word(&mut self, message: &Message) {
        self.heard.note(message.from, self.ticks);
        self.note_settled(message);
        if message.get_msg_type() == MessageType::MsgTimeoutNow {
            self.heard.note_unfit(message.from, self.ticks + LEFT_ALONE_TICKS);
        }
    }

    /// Takes note that this node knows of a newer term than the one in which this replica leads.
    ///
    /// Mostly an election is under way. But whoever was in that term may be gone: taken out of the group, or with its disk. The
    /// nodes go by the newest term when they look for a leader, so they would find none for as long as this one leads on: it
    /// stands back, and the next election is in a newer term still.
    pub fn outdated_by(&mut self, term: u64) {
        if !self.is_leader() || term <= self.term() {
            self.outdated_since = None;
            return;
        }
        let since = *self.outdated_since.get_or_insert(self.ticks);
        if self.ticks - since >= OUTDATED_TICKS {
            self.outdated_since = None;
            self.node.raft.become_follower(term, raft::INVALID_ID);
            self.steady_election_timeout();
        }
    }

    /// Withdraws an offer of leadership that was not taken. Call once a tick on a leader.
    pub(super) fn watch_handover(&mut self) {
        let Some(to) = self.node.raft.lead_transferee else {
            self.heard.handing = None;
            return;
        };
        match self.heard.handing {
            Some((known, since)) if known == to => {
                if self.ticks - since >= TAKEN_WITHIN_TICKS {
                    self.node.raft.abort_leader_transfer();
                    self.heard.handing = None;
                    self.heard.note_unfit(to, self.ticks + LEFT_ALONE_TICKS);
                }
            }
            _ => self.heard.handing = Some((to, self.ticks)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Collected, GroupConfig, Restored};
    use super::*;
    use crate::consensus::progress::MemberRefusal;
    use crate::ids::{GroupId, ReplicaId};
    use raft::prelude::ConfState;

    fn replica(id: u64) -> Group {
        let conf_state = ConfState { voters: vec![1, 2, 3], ..ConfState::default() };
        let restored = Restored { replica: id, conf_state, ..Restored::default() };
        let config = GroupConfig {
            group: GroupId(0),
            wait_for_sync: true,
            retained_bytes_max: 1 << 20,
            batch_bytes_max: 1 << 20,
        };
        Group::restore(restored, config).unwrap()
    }

    /// Carries messages until nobody has any; those of `lost` go nowhere.
    fn settle(group: &mut [Group], lost: &[u64]) {
        loop {
            let (mut messages, mut has_written) = (Vec::new(), false);
            for one in group.iter_mut() {
                let mut out = Collected::default();
                one.collect(&mut out);
                if let Some(last) = out.appends.last() {
                    has_written = true;
                    one.durable(last.sequence);
                }
                if let Some(last) = out.committed.last() {
                    one.applied(last.index);
                }
                messages.append(&mut out.messages);
            }
            // What was written lets further messages go.
            if messages.is_empty() && !has_written {
                return;
            }
            for message in messages {
                if !lost.contains(&message.to) && !lost.contains(&message.from) {
                    let to = message.to as usize - 1;
                    group[to].step(message).unwrap();
                }
            }
        }
    }

    /// Seed 10476 of the simulator: a term that only a replica had that was gone by then.
    #[test]
    fn a_leader_that_nobody_finds_for_a_newer_term_stands_for_one() {
        let mut group = led_by_the_first();
        group[0].outdated_by(7);
        tick(&mut group, OUTDATED_TICKS - 1, &[]);
        group[0].outdated_by(7);
        assert!(group[0].is_leader() && group[0].term() == 1, "an election may be under way");
        group[0].outdated_by(1);
        tick(&mut group, 1, &[]);
        group[0].outdated_by(7);
        assert!(group[0].is_leader(), "that was over in between");
        tick(&mut group, OUTDATED_TICKS, &[]);
        group[0].outdated_by(7);
        assert!(!group[0].is_leader());
        tick(&mut group, 60, &[]);
        assert_eq!(group.iter().filter(|one| one.is_leader()).count(), 1);
        assert!(group.iter().all(|one| one.term() > 7));
    }

    fn led_by_the_first() -> Vec<Group> {
        let mut group: Vec<Group> = (1..=3).map(replica).collect();
        group[0].campaign().unwrap();
        settle(&mut group, &[]);
        assert!(group[0].is_leader());
        group
    }

    fn tick(group: &mut [Group], ticks: u64, lost: &[u64]) {
        for _ in 0..ticks {
            group.iter_mut().for_each(Group::tick);
            settle(group, lost);
        }
    }

    #[test]
    fn an_offer_that_is_not_taken_is_withdrawn_soon_and_not_made_again() {
        let mut group = led_by_the_first();
        tick(&mut group, 2, &[]);
        // Its process stops: it is heard, and stands for election no more.
        group[1].resign();
        group[0].transfer(ReplicaId(2)).unwrap();
        settle(&mut group, &[]);
        assert!(!group[0].may_propose());
        tick(&mut group, TAKEN_WITHIN_TICKS + 1, &[]);
        assert!(group[0].may_propose(), "writers wait no longer");
        assert_eq!(group[0].transfer(ReplicaId(2)), Err(MemberRefusal::Silent(ReplicaId(2))));
        group[1].withdraw_resignation();
        tick(&mut group, LEFT_ALONE_TICKS + 1, &[]);
        group[0].transfer(ReplicaId(2)).unwrap();
        settle(&mut group, &[]);
        assert!(group[1].is_leader(), "it is left alone for a while only");
    }

    #[test]
    fn who_has_handed_over_is_left_alone() {
        let mut group = led_by_the_first();
        tick(&mut group, 2, &[]);
        group[0].resign();
        settle(&mut group, &[]);
        let heir = if group[1].is_leader() { 1 } else { 2 };
        assert!(group[heir].is_leader());
        tick(&mut group, 2, &[]);
        assert_eq!(group[heir].transfer(ReplicaId(1)), Err(MemberRefusal::Silent(ReplicaId(1))));
        // The third may lead, and the heir may hand over to it at once.
        let third = 3 - heir;
        group[heir].transfer(ReplicaId(third as u64 + 1)).unwrap();
        settle(&mut group, &[]);
        assert!(group[third].is_leader());
    }

    #[test]
    fn a_replica_whose_link_broke_is_offered_nothing_until_it_is_heard() {
        let mut group = led_by_the_first();
        tick(&mut group, 2, &[]);
        group[0].unreachable(ReplicaId(3));
        assert_eq!(group[0].transfer(ReplicaId(3)), Err(MemberRefusal::Silent(ReplicaId(3))));
        tick(&mut group, 4, &[3]);
        assert_eq!(group[0].transfer(ReplicaId(3)), Err(MemberRefusal::Silent(ReplicaId(3))));
        tick(&mut group, 4, &[]);
        assert_eq!(group[0].transfer(ReplicaId(3)), Ok(()));
    }
}
