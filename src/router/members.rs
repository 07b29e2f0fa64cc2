//! What ADD_NODE, REMOVE_NODE, TRANSFER_LEADER and BALANCE ask of group 0: names of nodes turned into numbers.
//!
//! A node is added in two steps that may come in any order: it is started with `--peers` that name a member, and asks there
//! until somebody adds it here. So only a node that runs, is blank and was reached can be added.

use crate::peer::nodes::Nodes;
use crate::tuning::peers;
use shards::ids::{GroupId, NodeNumber};
use shards::meta::{Meta, MetaChange, Node};
use strand_wire::request::{AddNode, Command, TransferLeader};

/// The change of the meta state that a command means; or one sentence that says why there is none.
pub(super) fn change(nodes: &Nodes, command: &Command<'_>) -> Result<MetaChange, String> {
    let meta = nodes.meta();
    match command {
        Command::AddNode(add) => added(nodes, &meta, add),
        Command::RemoveNode(id) => Ok(MetaChange::RemoveNode(named(&meta, id)?.number)),
        Command::TransferLeader(TransferLeader { node, shard: None }) => {
            Ok(MetaChange::Primary(named(&meta, node)?.number))
        }
        Command::TransferLeader(TransferLeader { node, shard: Some(shard) }) => {
            if *shard as usize >= meta.groups.len() {
                return Err(format!(
                    "there is no shard {shard}; they are numbered from 0 to {}",
                    meta.groups.len() - 1
                ));
            }
            Ok(MetaChange::Prefer { group: GroupId(*shard), node: named(&meta, node)?.number })
        }
        // Evenness is what group 0 plans by itself; only a node that should lead everything stands against it.
        Command::Balance => Ok(MetaChange::Primary(NodeNumber(0))),
        _ => unreachable!("only commands on the members come here"),
    }
}

fn named<'m>(meta: &'m Meta, id: &str) -> Result<&'m Node, String> {
    meta.node_by_id(id).ok_or_else(|| {
        let known: Vec<&str> = meta
            .nodes
            .iter()
            .filter(|node| meta.node(node.number).is_some())
            .map(|node| node.id.as_str())
            .collect();
        format!("there is no node {id:?}; the nodes are {}", known.join(", "))
    })
}

fn added(nodes: &Nodes, meta: &Meta, add: &AddNode<'_>) -> Result<MetaChange, String> {
    let (id, place) = match (&add.address, add.node.contains(':')) {
        (Some(address), _) => (Some(add.node.to_string()), Some(address.as_ref())),
        (None, true) => (None, Some(add.node.as_ref())),
        (None, false) => (Some(add.node.to_string()), None),
    };
    let peer = place.map(peers::parse).transpose().map_err(|error| error.to_string())?;
    let id = id.or_else(|| peer.as_ref().and_then(|peer| peer.id.clone()));
    let fits = |node: &Node| {
        id.as_ref().is_none_or(|id| *id == node.id)
            && peer
                .as_ref()
                .is_none_or(|peer| (peer.port, peer.cluster_port) == (node.port, node.cluster_port))
    };
    if let Some(mut node) = nodes.candidate(fits) {
        if let Some(peer) = &peer {
            let (host, _) = peer.host_by(|_| true);
            if id.as_deref() != Some(host) {
                host.clone_into(&mut node.host);
            }
        }
        return Ok(MetaChange::AddNode(node));
    }
    match id.as_deref().and_then(|id| meta.node_by_id(id)) {
        Some(member) => Ok(MetaChange::AddNode(member.clone())),
        None => Err(format!(
            "no blank node {} has asked this one to be a member; start it with --peers that name this node, and send \
             ADD_NODE to a node that it names",
            add.node
        )),
    }
}
