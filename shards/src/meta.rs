//! What every node knows of the cluster: its nodes, and where each group's replicas should be.
//!
//! Group 0 owns this state: it changes only by entries of its log, each change raises `version`, and every node keeps the
//! newest it has heard of in its data directory. It is the wish; the configuration in a group's own log is the truth
//! about who votes. Numbers of nodes and replicas rise and are never given twice.

mod change;

pub use change::{MetaChange, MetaChanged, NodeAddress, REPLACEABLE_COPIES_MIN};

use crate::ids::{GroupId, NodeNumber, ReplicaId};

/// The cluster as group 0 has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Rises by one with each change; 0 for a node that is alone.
    pub version: u64,
    /// The cluster's random id, in every frame and every log.
    pub cluster: u128,
    /// Copies that each group should have.
    pub replicas: u16,
    /// Nodes by number, those that left included until nothing names them.
    pub nodes: Vec<Node>,
    /// Where each group's replicas should be, by group.
    pub groups: Vec<GroupPlacement>,
    /// The number that the next node gets.
    pub next_node: u16,
    /// The number that the next replica gets, in any group; the first replicas have number 0.
    pub next_replica: u64,
}

/// One node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub number: NodeNumber,
    /// The id that its operator gave it.
    pub id: String,
    /// Drawn when its data directory was made: a blank disk under an old id is another node.
    pub incarnation: u128,
    /// Host at which nodes and clients reach it.
    pub host: String,
    /// Port for clients.
    pub port: u16,
    /// Port for nodes.
    pub cluster_port: u16,
    /// Whether it should hold replicas.
    pub state: NodeState,
    /// Whether it is the preferred leader of every group (`--primary`).
    pub is_primary: bool,
}

/// What is meant to become of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeState {
    /// It holds its share.
    #[default]
    Member,
    /// Its replicas are on their way to others.
    Leaving,
    /// It holds nothing and is not spoken to.
    Gone,
}

/// The replicas of one group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupPlacement {
    /// Replicas that should be voters.
    pub replicas: Vec<ReplicaId>,
    /// Which of them should lead; 0 for none in particular.
    pub preferred: ReplicaId,
}

impl Meta {
    /// The node with a number, unless it is gone.
    pub fn node(&self, number: NodeNumber) -> Option<&Node> {
        self.nodes.iter().find(|node| node.number == number && node.state != NodeState::Gone)
    }

    /// The node with an id, unless it is gone.
    pub fn node_by_id(&self, id: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.id == id && node.state != NodeState::Gone)
    }

    /// This node's replica of a group, if it should have one.
    pub fn replica_on(&self, group: GroupId, node: NodeNumber) -> Option<ReplicaId> {
        let placement = self.groups.get(group.0 as usize)?;
        placement.replicas.iter().copied().find(|replica| replica.node() == node)
    }
}
