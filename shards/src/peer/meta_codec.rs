//! The meta state as bytes: on links, in group 0's log, in a data directory.
//!
//! One frozen archive for all three. What is read is checked as a whole: numbers that are never 0, that rise, that name
//! one another; so nobody who holds a [`Meta`] has to ask again.

use super::PayloadRefused;
use crate::ids::{NodeNumber, ReplicaId, SLOTS};
use crate::log::payload::{PayloadBuffer, aligned, encode};
use crate::meta::{GroupPlacement, Meta, Node, NodeState};
use rkyv::rancor;
use rkyv::{Archive, Serialize};

/// The most nodes, those that are gone included.
pub const NODES_MAX: usize = 1024;
/// The longest id or host in bytes.
pub const NAME_BYTES_MAX: usize = 256;

/// [`Meta`] in its frozen form.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct MetaV1 {
    version: u64,
    cluster: u128,
    replicas: u16,
    nodes: Vec<NodeV1>,
    groups: Vec<PlacementV1>,
    next_node: u16,
    next_replica: u64,
}

/// One node of it.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct NodeV1 {
    number: u16,
    id: String,
    incarnation: u128,
    host: String,
    port: u16,
    cluster_port: u16,
    /// 0 member, 1 leaving, 2 gone.
    state: u8,
    is_primary: bool,
}

/// Where one group's replicas should be.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct PlacementV1 {
    replicas: Vec<u64>,
    preferred: u64,
}

impl From<&Meta> for MetaV1 {
    fn from(meta: &Meta) -> Self {
        let node = |node: &Node| NodeV1 {
            number: node.number.0,
            id: node.id.clone(),
            incarnation: node.incarnation,
            host: node.host.clone(),
            port: node.port,
            cluster_port: node.cluster_port,
            state: match node.state {
                NodeState::Member => 0,
                NodeState::Leaving => 1,
                NodeState::Gone => 2,
            },
            is_primary: node.is_primary,
        };
        let placement = |placement: &GroupPlacement| PlacementV1 {
            replicas: placement.replicas.iter().map(|replica| replica.0).collect(),
            preferred: placement.preferred.0,
        };
        Self {
            version: meta.version,
            cluster: meta.cluster,
            replicas: meta.replicas,
            nodes: meta.nodes.iter().map(node).collect(),
            groups: meta.groups.iter().map(placement).collect(),
            next_node: meta.next_node,
            next_replica: meta.next_replica,
        }
    }
}

/// Replaces the contents of `out` with the meta state.
pub fn encode_meta(meta: &Meta, out: &mut PayloadBuffer) {
    encode(&MetaV1::from(meta), out);
}

/// Reads a meta state.
///
/// # Errors
/// When the bytes are no archive, or what they say contradicts itself.
pub fn decode_meta(payload: &[u8], scratch: &mut PayloadBuffer) -> Result<Meta, PayloadRefused> {
    let read = rkyv::access::<ArchivedMetaV1, rancor::Error>(aligned(payload, scratch))?;
    meta_of(read)
}

/// The meta state in an archive.
///
/// # Errors
/// When what it says contradicts itself.
pub fn meta_of(read: &ArchivedMetaV1) -> Result<Meta, PayloadRefused> {
    if read.nodes.len() > NODES_MAX || read.groups.len() > usize::from(SLOTS) {
        return Err("a meta state with more nodes or groups than there can be".into());
    }
    let mut meta = Meta {
        version: read.version.to_native(),
        cluster: read.cluster.to_native(),
        replicas: read.replicas.to_native(),
        nodes: Vec::with_capacity(read.nodes.len()),
        groups: Vec::with_capacity(read.groups.len()),
        next_node: read.next_node.to_native(),
        next_replica: read.next_replica.to_native(),
    };
    for node in read.nodes.iter() {
        meta.nodes.push(Node {
            number: NodeNumber(node.number.to_native()),
            id: node.id.as_str().to_owned(),
            incarnation: node.incarnation.to_native(),
            host: node.host.as_str().to_owned(),
            port: node.port.to_native(),
            cluster_port: node.cluster_port.to_native(),
            state: match node.state {
                0 => NodeState::Member,
                1 => NodeState::Leaving,
                2 => NodeState::Gone,
                _ => return Err("a node in an unknown state".into()),
            },
            is_primary: node.is_primary,
        });
    }
    for placement in read.groups.iter() {
        meta.groups.push(GroupPlacement {
            replicas: placement.replicas.iter().map(|replica| ReplicaId(replica.to_native())).collect(),
            preferred: ReplicaId(placement.preferred.to_native()),
        });
    }
    check(&meta)?;
    Ok(meta)
}

fn check(meta: &Meta) -> Result<(), PayloadRefused> {
    let refuse =
        |text: &str| Err(PayloadRefused(format!("the meta state of version {}: {text}", meta.version)));
    if meta.cluster == 0 || meta.version == 0 || meta.replicas == 0 {
        return refuse("its cluster, its version or its number of replicas is 0");
    }
    if meta.groups.is_empty() {
        return refuse("it has no groups");
    }
    for (at, node) in meta.nodes.iter().enumerate() {
        let is_named = |name: &str| (1..=NAME_BYTES_MAX).contains(&name.len());
        if !is_named(&node.id) || !is_named(&node.host) {
            return refuse("a node without an id or a host");
        }
        if node.number.0 == 0 || node.number.0 >= meta.next_node {
            return refuse("a node's number was never given");
        }
        if meta.nodes[..at].iter().any(|other| other.number == node.number) {
            return refuse("two nodes with one number");
        }
    }
    for placement in &meta.groups {
        for (at, replica) in placement.replicas.iter().enumerate() {
            if meta.nodes.iter().all(|node| node.number != replica.node()) {
                return refuse("a replica on a node that there is not");
            }
            if replica.number() >= meta.next_replica.max(1) || placement.replicas[..at].contains(replica) {
                return refuse("a replica that was never given, or twice");
            }
        }
        if placement.preferred.0 != 0 && !placement.replicas.contains(&placement.preferred) {
            return refuse("a preferred leader that is no replica");
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) fn example() -> Meta {
    let node = |number: u16| Node {
        number: NodeNumber(number),
        id: format!("n{number}"),
        incarnation: u128::from(number) << 64 | 5,
        host: "127.0.0.1".into(),
        port: 8000 + number,
        cluster_port: 9000 + number,
        state: if number == 3 { NodeState::Leaving } else { NodeState::Member },
        is_primary: number == 1,
    };
    let replicas = vec![ReplicaId::new(0, NodeNumber(1)), ReplicaId::new(0, NodeNumber(2))];
    Meta {
        version: 4,
        cluster: 0xabcd << 80,
        replicas: 2,
        nodes: (1..=3).map(node).collect(),
        groups: vec![
            GroupPlacement { preferred: replicas[1], replicas },
            GroupPlacement { replicas: vec![ReplicaId::new(1, NodeNumber(3))], preferred: ReplicaId(0) },
        ],
        next_node: 4,
        next_replica: 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::hex;
    use proptest::prelude::*;

    fn bytes(meta: &Meta) -> PayloadBuffer {
        let mut bytes = PayloadBuffer::new();
        encode_meta(meta, &mut bytes);
        bytes
    }

    #[test]
    fn a_meta_state_survives() {
        let meta = example();
        assert_eq!(decode_meta(&bytes(&meta), &mut PayloadBuffer::new()), Ok(meta));
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(hex(&bytes(&example())), include_str!("golden_meta_v1.hex").trim());
    }

    #[test]
    fn contradictions_are_refused() {
        let check = |break_it: fn(&mut Meta)| {
            let mut meta = example();
            break_it(&mut meta);
            assert!(decode_meta(&bytes(&meta), &mut PayloadBuffer::new()).is_err(), "{meta:?}");
        };
        check(|meta| meta.cluster = 0);
        check(|meta| meta.version = 0);
        check(|meta| meta.groups.clear());
        check(|meta| meta.nodes[0].number = NodeNumber(2));
        check(|meta| meta.next_node = 3);
        check(|meta| meta.nodes[1].id.clear());
        check(|meta| meta.nodes[1].host = "x".repeat(NAME_BYTES_MAX + 1));
        check(|meta| drop(meta.nodes.remove(0)));
        check(|meta| meta.next_replica = 1);
        check(|meta| meta.groups[1].preferred = ReplicaId(1));
        check(|meta| meta.groups[0].replicas[1] = ReplicaId(1));
    }

    proptest! {
        #[test]
        fn nothing_a_stranger_writes_panics(flip in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>()) {
            let mut bytes = bytes(&example());
            let mut scratch = PayloadBuffer::new();
            let _ = decode_meta(&bytes[..cut.index(bytes.len())], &mut scratch);
            let bit = flip.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let _ = decode_meta(&bytes, &mut scratch);
        }
    }
}
