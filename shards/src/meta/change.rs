//! Changes of the meta state: what an entry of group 0's log may do to it, and their bytes there.
//!
//! A change that the state refuses changes nothing and says why; the same change again changes nothing. So every replica
//! of group 0 comes to the same state, and whoever asks twice is safe. A planner's change names the version that it was
//! planned on and is void on any other.

use super::{GroupPlacement, Meta, Node, NodeState};
use crate::command::record::{Malformed, take, take_u8, take_u16, take_u32, take_u64};
use crate::ids::{GroupId, NodeNumber, ReplicaId};
use crate::log::payload::PayloadBuffer;
use crate::peer::meta_codec::{NAME_BYTES_MAX, NODES_MAX, decode_meta, encode_meta};

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaChange {
    /// The state that the cluster was founded with; void once there is one.
    Found(Box<Meta>),
    /// A new node, to hold its share. Its number is given here.
    AddNode(Node),
    /// The node's replicas go elsewhere, then it is gone.
    RemoveNode(NodeNumber),
    /// Nothing names the node any more: it is gone. Said by the planner.
    Gone {
        /// The node.
        node: NodeNumber,
        /// Version of the state that this was planned on.
        planned_on: u64,
    },
    /// Where a group's replicas should be. Said by the planner.
    Place {
        /// The group.
        group: GroupId,
        /// Its new placement.
        placement: GroupPlacement,
        /// Version of the state that this was planned on.
        planned_on: u64,
    },
    /// Where a node is reached now, as it says itself.
    Address(NodeAddress),
    /// This node, or none (0), is the preferred leader of every group.
    Primary(NodeNumber),
    /// This node should lead one group.
    Prefer {
        /// The group.
        group: GroupId,
        /// The node, which has a replica of it.
        node: NodeNumber,
    },
    /// The log of this replica is lost: its node gets a new one, which is filled and then takes its place. The lost one never
    /// speaks again, so for its group it is as a voter on a dead machine.
    Replace {
        /// The group.
        group: GroupId,
        /// The replica that is no more.
        lost: ReplicaId,
    },
    /// The majority is lost, and one node goes on alone with what it has, as another cluster. Said offline, by an operator.
    Survive {
        /// The node.
        node: NodeNumber,
        /// Of its new data directory.
        incarnation: u128,
        /// The new cluster's id.
        cluster: u128,
        /// Its replica of each group.
        replicas: Vec<ReplicaId>,
    },
}

/// Where clients and nodes reach a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    /// The node.
    pub node: NodeNumber,
    /// Its host.
    pub host: String,
    /// Port for clients.
    pub port: u16,
    /// Port for nodes.
    pub cluster_port: u16,
}

/// With fewer copies the others are no majority without the lost one, so nobody could take its place.
pub const REPLACEABLE_COPIES_MIN: usize = 3;

/// What a change came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaChanged {
    /// The state is another, of the next version.
    Yes,
    /// It was so already, or the plan was out of date.
    No,
    /// It cannot be: one sentence that says why and what to do.
    Refused(String),
}

impl Meta {
    /// Applies a change.
    pub fn change(&mut self, change: &MetaChange) -> MetaChanged {
        let changed = match change {
            MetaChange::Found(_) if self.version > 0 => MetaChanged::No,
            MetaChange::Found(meta) => {
                self.clone_from(meta);
                MetaChanged::Yes
            }
            MetaChange::AddNode(node) => self.add_node(node),
            MetaChange::RemoveNode(node) => self.remove_node(*node),
            MetaChange::Gone { node, planned_on } => self.forget_node(*node, *planned_on),
            MetaChange::Place { group, placement, planned_on } => self.place(*group, placement, *planned_on),
            MetaChange::Address(address) => self.set_address(address),
            MetaChange::Primary(node) => self.set_primary(*node),
            MetaChange::Prefer { group, node } => self.prefer(*group, *node),
            MetaChange::Replace { group, lost } => self.replace(*group, *lost),
            MetaChange::Survive { node, incarnation, cluster, replicas } => {
                self.survive(*node, *incarnation, *cluster, replicas)
            }
        };
        if changed == MetaChanged::Yes {
            self.version += 1;
        }
        changed
    }

    fn add_node(&mut self, node: &Node) -> MetaChanged {
        if self.nodes.len() >= NODES_MAX {
            return MetaChanged::Refused(format!("a cluster has had {NODES_MAX} nodes at most"));
        }
        if let Some(known) = self.node_by_id(&node.id) {
            if known.incarnation == node.incarnation {
                return MetaChanged::No;
            }
            return MetaChanged::Refused(format!(
                "there is a node {:?} with another data directory; remove it first, or give the new one another id",
                node.id
            ));
        }
        if self.nodes.iter().any(|known| known.incarnation == node.incarnation) {
            return MetaChanged::Refused(format!(
                "the data directory of {:?} was a member before; empty it and add the node under a new id",
                node.id
            ));
        }
        let number = NodeNumber(self.next_node);
        self.next_node += 1;
        self.nodes.push(Node { number, state: NodeState::Member, is_primary: false, ..node.clone() });
        MetaChanged::Yes
    }

    fn remove_node(&mut self, number: NodeNumber) -> MetaChanged {
        let members = self.nodes.iter().filter(|node| node.state == NodeState::Member).count();
        let Some(node) = self.nodes.iter_mut().find(|node| node.number == number) else {
            return MetaChanged::Refused(format!("there is no node number {number}"));
        };
        match node.state {
            NodeState::Leaving | NodeState::Gone => MetaChanged::No,
            NodeState::Member if members == 1 => MetaChanged::Refused(format!(
                "{:?} is the last node; there is nobody to take its data",
                node.id
            )),
            NodeState::Member => {
                node.state = NodeState::Leaving;
                node.is_primary = false;
                MetaChanged::Yes
            }
        }
    }

    fn forget_node(&mut self, number: NodeNumber, planned_on: u64) -> MetaChanged {
        let is_named =
            self.groups.iter().any(|placement| placement.replicas.iter().any(|held| held.node() == number));
        match self.nodes.iter_mut().find(|node| node.number == number) {
            Some(node) if planned_on == self.version && !is_named && node.state == NodeState::Leaving => {
                node.state = NodeState::Gone;
                MetaChanged::Yes
            }
            _ => MetaChanged::No,
        }
    }

    fn place(&mut self, group: GroupId, placement: &GroupPlacement, planned_on: u64) -> MetaChanged {
        let is_new = |replica: &ReplicaId| replica.number() >= self.next_replica;
        let added = placement.replicas.iter().any(is_new);
        match self.groups.get_mut(group.0 as usize) {
            Some(known) if planned_on == self.version && known != placement => {
                known.clone_from(placement);
                // One number for all that a change adds: their nodes differ.
                self.next_replica += u64::from(added);
                MetaChanged::Yes
            }
            _ => MetaChanged::No,
        }
    }

    fn set_address(&mut self, address: &NodeAddress) -> MetaChanged {
        let NodeAddress { node: number, host, port, cluster_port } = address;
        let is_sound = (1..=NAME_BYTES_MAX).contains(&host.len()) && *port != 0 && *cluster_port != 0;
        let known =
            self.nodes.iter_mut().find(|node| node.number == *number && node.state != NodeState::Gone);
        match known.filter(|_| is_sound) {
            Some(node) if (&node.host, node.port, node.cluster_port) != (host, *port, *cluster_port) => {
                node.host.clone_from(host);
                (node.port, node.cluster_port) = (*port, *cluster_port);
                MetaChanged::Yes
            }
            _ => MetaChanged::No,
        }
    }

    fn replace(&mut self, group: GroupId, lost: ReplicaId) -> MetaChanged {
        let new = ReplicaId::new(self.next_replica, lost.node());
        let Some(placement) = self.groups.get_mut(group.0 as usize) else { return MetaChanged::No };
        if placement.replicas.len() < REPLACEABLE_COPIES_MIN {
            return MetaChanged::No;
        }
        let Some(held) = placement.replicas.iter_mut().find(|held| **held == lost) else {
            return MetaChanged::No;
        };
        *held = new;
        if placement.preferred == lost {
            placement.preferred = new;
        }
        self.next_replica += 1;
        MetaChanged::Yes
    }

    fn survive(
        &mut self,
        number: NodeNumber,
        incarnation: u128,
        cluster: u128,
        replicas: &[ReplicaId],
    ) -> MetaChanged {
        if self.cluster == cluster {
            return MetaChanged::No;
        }
        let are_its = replicas.iter().all(|replica| replica.node() == number);
        if cluster == 0 || replicas.len() != self.groups.len() || !are_its || self.node(number).is_none() {
            return MetaChanged::Refused("the node that is to go on is none that could".to_owned());
        }
        for node in &mut self.nodes {
            if node.number == number {
                (node.incarnation, node.state) = (incarnation, NodeState::Member);
            } else {
                (node.state, node.is_primary) = (NodeState::Gone, false);
            }
        }
        for (placement, &replica) in self.groups.iter_mut().zip(replicas) {
            *placement = GroupPlacement { replicas: vec![replica], preferred: replica };
            self.next_replica = self.next_replica.max(replica.number() + 1);
        }
        self.cluster = cluster;
        MetaChanged::Yes
    }

    fn prefer(&mut self, group: GroupId, node: NodeNumber) -> MetaChanged {
        let Some(placement) = self.groups.get_mut(group.0 as usize) else {
            return MetaChanged::Refused(format!("there is no group {group}"));
        };
        let Some(replica) = placement.replicas.iter().copied().find(|held| held.node() == node) else {
            let text = format!("group {group} has no copy on that node; CLUSTER shows which nodes have one");
            return MetaChanged::Refused(text);
        };
        if placement.preferred == replica {
            return MetaChanged::No;
        }
        placement.preferred = replica;
        MetaChanged::Yes
    }

    fn set_primary(&mut self, number: NodeNumber) -> MetaChanged {
        if number != NodeNumber(0) && self.node(number).is_none() {
            return MetaChanged::Refused(format!("there is no node number {number}"));
        }
        let was: Vec<bool> = self.nodes.iter().map(|node| node.is_primary).collect();
        for node in &mut self.nodes {
            node.is_primary = node.number == number;
        }
        if self.nodes.iter().map(|node| node.is_primary).eq(was) { MetaChanged::No } else { MetaChanged::Yes }
    }
}

impl MetaChange {
    /// Appends the change.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Found(meta) => {
                let mut bytes = PayloadBuffer::new();
                encode_meta(meta, &mut bytes);
                out.push(0);
                out.extend_from_slice(&bytes);
            }
            Self::AddNode(node) => {
                out.push(1);
                out.extend_from_slice(&node.incarnation.to_le_bytes());
                push_text(out, &node.id);
                push_address(out, &node.host, node.port, node.cluster_port);
            }
            Self::RemoveNode(node) => push_number(out, 2, *node),
            Self::Gone { node, planned_on } => {
                push_number(out, 3, *node);
                out.extend_from_slice(&planned_on.to_le_bytes());
            }
            Self::Place { group, placement, planned_on } => {
                out.push(4);
                out.extend_from_slice(&planned_on.to_le_bytes());
                out.extend_from_slice(&group.0.to_le_bytes());
                out.extend_from_slice(&placement.preferred.0.to_le_bytes());
                for replica in &placement.replicas {
                    out.extend_from_slice(&replica.0.to_le_bytes());
                }
            }
            Self::Address(address) => {
                out.push(5);
                address.encode(out);
            }
            Self::Primary(node) => push_number(out, 6, *node),
            Self::Prefer { group, node } => {
                push_number(out, 7, *node);
                out.extend_from_slice(&group.0.to_le_bytes());
            }
            Self::Replace { group, lost } => {
                out.push(8);
                out.extend_from_slice(&group.0.to_le_bytes());
                out.extend_from_slice(&lost.0.to_le_bytes());
            }
            Self::Survive { node, incarnation, cluster, replicas } => {
                push_number(out, 9, *node);
                out.extend_from_slice(&incarnation.to_le_bytes());
                out.extend_from_slice(&cluster.to_le_bytes());
                for replica in replicas {
                    out.extend_from_slice(&replica.0.to_le_bytes());
                }
            }
        }
    }

    /// Reads all of what [`MetaChange::encode`] wrote.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, Malformed> {
        let rest = &mut bytes;
        let change = match take_u8(rest)? {
            0 => {
                let meta = decode_meta(std::mem::take(rest), &mut PayloadBuffer::new());
                Self::Found(Box::new(meta.map_err(|_| Malformed("a meta state that cannot be read"))?))
            }
            1 => {
                let incarnation = take_u128(rest)?;
                let id = take_text(rest)?;
                let (host, port, cluster_port) = take_address(rest)?;
                Self::AddNode(Node { id, incarnation, host, port, cluster_port, ..Node::default() })
            }
            2 => Self::RemoveNode(NodeNumber(take_u16(rest)?)),
            3 => Self::Gone { node: NodeNumber(take_u16(rest)?), planned_on: take_u64(rest)? },
            4 => {
                let planned_on = take_u64(rest)?;
                let group = GroupId(take_u32(rest)?);
                let preferred = ReplicaId(take_u64(rest)?);
                let replicas = take_replicas(rest)?;
                Self::Place { group, placement: GroupPlacement { replicas, preferred }, planned_on }
            }
            5 => Self::Address(NodeAddress::decode(rest)?),
            6 => Self::Primary(NodeNumber(take_u16(rest)?)),
            7 => Self::Prefer { node: NodeNumber(take_u16(rest)?), group: GroupId(take_u32(rest)?) },
            8 => Self::Replace { group: GroupId(take_u32(rest)?), lost: ReplicaId(take_u64(rest)?) },
            9 => {
                let node = NodeNumber(take_u16(rest)?);
                let (incarnation, cluster) = (take_u128(rest)?, take_u128(rest)?);
                Self::Survive { node, incarnation, cluster, replicas: take_replicas(rest)? }
            }
            _ => return Err(Malformed("an unknown change of the meta state")),
        };
        if rest.is_empty() { Ok(change) } else { Err(Malformed("bytes after a change of the meta state")) }
    }
}

impl NodeAddress {
    /// Appends the address.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.node.0.to_le_bytes());
        push_address(out, &self.host, self.port, self.cluster_port);
    }

    /// Reads what [`NodeAddress::encode`] wrote, from the front of `rest`.
    pub fn decode(rest: &mut &[u8]) -> Result<Self, Malformed> {
        let node = NodeNumber(take_u16(rest)?);
        let (host, port, cluster_port) = take_address(rest)?;
        Ok(Self { node, host, port, cluster_port })
    }
}

fn push_number(out: &mut Vec<u8>, kind: u8, node: NodeNumber) {
    out.push(kind);
    out.extend_from_slice(&node.0.to_le_bytes());
}

fn take_u128(rest: &mut &[u8]) -> Result<u128, Malformed> {
    Ok(u128::from_le_bytes(take(rest, 16)?.try_into().expect("16 bytes were taken")))
}

/// All that is left.
fn take_replicas(rest: &mut &[u8]) -> Result<Vec<ReplicaId>, Malformed> {
    let mut replicas = Vec::new();
    while !rest.is_empty() {
        replicas.push(ReplicaId(take_u64(rest)?));
    }
    Ok(replicas)
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&u16::try_from(text.len()).expect("an id or host is short").to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn push_address(out: &mut Vec<u8>, host: &str, port: u16, cluster_port: u16) {
    push_text(out, host);
    out.extend_from_slice(&port.to_le_bytes());
    out.extend_from_slice(&cluster_port.to_le_bytes());
}

fn take_text(rest: &mut &[u8]) -> Result<String, Malformed> {
    let length = usize::from(take_u16(rest)?);
    String::from_utf8(take(rest, length)?.to_vec()).map_err(|_| Malformed("a text that is no UTF-8"))
}

fn take_address(rest: &mut &[u8]) -> Result<(String, u16, u16), Malformed> {
    Ok((take_text(rest)?, take_u16(rest)?, take_u16(rest)?))
}

#[cfg(test)]
mod tests;
