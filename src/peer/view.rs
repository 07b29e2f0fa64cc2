//! Who leads each group, as this node knows it: written by shards and by the control link, read by routers.
//!
//! One word a group, so that a router's look is one relaxed load. A newer term wins; within a term a known leader wins
//! over an unknown one. Never decides anything: a router that acts on an old view is refused by the shard and asks again.

use shards::effect::Role;
use shards::ids::{GroupId, NodeNumber};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The leaders of all groups.
#[derive(Debug)]
pub struct ClusterView {
    me: NodeNumber,
    /// Term in the upper 48 bits, the leader's node in the lower 16.
    leaders: Box<[AtomicU64]>,
}

/// What is known of one group's leader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leader {
    /// The term in which it leads.
    pub term: u64,
    /// Its node; 0 while none is known.
    pub node: NodeNumber,
}

impl ClusterView {
    /// A view in which nobody leads anything.
    pub fn new(me: NodeNumber, groups: usize) -> Arc<Self> {
        Arc::new(Self { me, leaders: (0..groups).map(|_| AtomicU64::new(0)).collect() })
    }

    /// This node.
    pub fn me(&self) -> NodeNumber {
        self.me
    }

    /// Number of groups.
    pub fn groups(&self) -> usize {
        self.leaders.len()
    }

    /// Who leads a group.
    #[inline]
    pub fn leader(&self, group: GroupId) -> Leader {
        let word = self.leaders[group.0 as usize].load(Ordering::Relaxed);
        Leader { term: word >> 16, node: NodeNumber(word as u16) }
    }

    /// Takes over what a replica of this node or a peer says of a group; whether that was news.
    pub fn learn(&self, group: GroupId, heard: Leader) -> bool {
        let word = heard.term << 16 | u64::from(heard.node.0);
        let taken =
            self.leaders[group.0 as usize].fetch_update(Ordering::Relaxed, Ordering::Relaxed, |known| {
                let is_newer = heard.term > known >> 16 || (heard.term == known >> 16 && known as u16 == 0);
                (is_newer && word != known).then_some(word)
            });
        taken.is_ok()
    }

    /// As [`ClusterView::learn`], from a replica's own role: a leader that does not serve yet is not told.
    pub fn learn_role(&self, group: GroupId, role: &Role) -> bool {
        let leader = role.leader.node();
        let is_known = leader != self.me || role.is_serving;
        self.learn(group, Leader { term: role.term, node: if is_known { leader } else { NodeNumber(0) } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_term_wins_and_an_old_one_is_ignored() {
        let view = ClusterView::new(NodeNumber(1), 2);
        let group = GroupId(1);
        let leader = |term, node| Leader { term, node: NodeNumber(node) };
        assert!(view.learn(group, leader(3, 2)));
        assert!(!view.learn(group, leader(2, 3)) && !view.learn(group, leader(3, 0)));
        assert_eq!(view.leader(group), leader(3, 2));
        assert!(view.learn(group, leader(4, 0)), "an election is under way");
        assert!(view.learn(group, leader(4, 1)));
        assert_eq!((view.leader(group), view.leader(GroupId(0))), (leader(4, 1), leader(0, 0)));
    }
}
