//! What one replica has when the majority of its group is lost, and going on alone with it. Offline only.
//!
//! This breaks Raft's promise on purpose: entries that the lost replicas acknowledged and this one never got are gone, and
//! entries of which nobody knows whether they were committed become so. Who calls this says so to an operator first. The
//! group that comes of it must be told apart from the old one by its cluster id, so that a replica that was thought lost can
//! never speak to it.

use super::{Shard, ShardImage};
use crate::ids::{NodeNumber, ReplicaId};
use crate::meta::Meta;
use raft::prelude::{ConfState, EntryType};

/// What a replica has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remains {
    /// Which replica.
    pub replica: ReplicaId,
    /// Nodes of the voters as of its snapshot.
    pub voters: Vec<NodeNumber>,
    /// The newest term that it has heard of.
    pub term: u64,
    /// Index of the last entry in its snapshot.
    pub snapshot_index: u64,
    /// Highest index that it knows to be committed.
    pub commit_index: u64,
    /// Index of its last entry.
    pub last_index: u64,
}

impl ShardImage {
    /// What the replica has.
    pub fn remains(&self) -> Remains {
        let group = &self.group;
        let voters = group.conf_state.voters.iter().map(|voter| ReplicaId(*voter).node()).collect();
        Remains {
            replica: ReplicaId(group.replica),
            voters,
            term: group.hard_state.term,
            snapshot_index: group.snapshot_index,
            commit_index: group.hard_state.commit.max(group.snapshot_index),
            last_index: group.entries.last().map_or(group.snapshot_index, |entry| entry.index),
        }
    }

    /// The replica becomes the only voter of its group, with everything that its log has. Changes of members in the log are
    /// void: they are about replicas that are no more. Versions given from now on have this epoch.
    pub fn go_on_alone(&mut self, epoch: u32) {
        let group = &mut self.group;
        group.conf_state = ConfState { voters: vec![group.replica], ..ConfState::default() };
        for entry in group.entries.iter_mut().filter(|entry| entry.entry_type != EntryType::EntryNormal) {
            entry.entry_type = EntryType::EntryNormal;
            entry.data.clear();
        }
        self.offer = None;
        self.epoch = self.epoch.max(epoch);
    }
}

impl Shard {
    /// The cluster's meta state as of the last applied entry; version 0 in every group but 0, and before the cluster was founded.
    pub fn meta(&self) -> &Meta {
        self.cluster.state()
    }
}
