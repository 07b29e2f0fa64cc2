//! What nodes say before they are a cluster, and the rules by which one of them founds it.
//!
//! Every node tells what it sees: itself and the listed peers it has reached. When all see the same, each other's names
//! and incarnations included, and each is blank, the one with the lowest id makes the first meta state and stores it. From
//! then on whoever asks it, and stands in that state with the right incarnation, gets it. A crash at any point leaves
//! blank nodes that ask again, or a stored state that is handed out again.

use super::PayloadRefused;
use super::meta_codec::NAME_BYTES_MAX;
use crate::ids::{NodeNumber, ReplicaId};
use crate::log::payload::{PayloadBuffer, aligned, encode};
use crate::meta::{GroupPlacement, Meta, Node, NodeState};
use rkyv::rancor;
use rkyv::{Archive, Serialize};

/// The most nodes that found a cluster together.
pub const FOUNDERS_MAX: usize = 64;

/// A blank node as another one sees it.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq, Default)]
pub struct Seen {
    /// Its id.
    pub id: String,
    /// Its incarnation.
    pub incarnation: u128,
    /// Host under which it was reached.
    pub host: String,
    /// Port for clients.
    pub port: u16,
    /// Port for nodes.
    pub cluster_port: u16,
}

/// What a node without a cluster says of itself and what it sees.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq, Default)]
pub struct Status {
    /// Itself and every listed peer that it has reached, by id.
    pub seen: Vec<Seen>,
    /// Listed peers that it has not reached.
    pub missing: u16,
    /// Number of its shards.
    pub shards: u32,
    /// Copies of each group that its operator asked for.
    pub replicas: u16,
    /// Whether its operator wants it to lead.
    pub is_primary: bool,
    /// Its cluster, for a node that has one: then the rest is empty, and it does not know who asks.
    pub cluster: u128,
}

impl Status {
    /// Replaces the contents of `out`.
    pub fn encode(&self, out: &mut PayloadBuffer) {
        encode(self, out);
    }

    /// Reads what [`Status::encode`] writes.
    ///
    /// # Errors
    /// When the bytes are none, or name more nodes than may found a cluster.
    pub fn decode(payload: &[u8], scratch: &mut PayloadBuffer) -> Result<Self, PayloadRefused> {
        let read = rkyv::access::<ArchivedStatus, rancor::Error>(aligned(payload, scratch))?;
        if read.seen.len() > FOUNDERS_MAX {
            return Err("more founders than there may be".into());
        }
        let mut seen = Vec::with_capacity(read.seen.len());
        for node in read.seen.iter() {
            let names = [node.id.as_str(), node.host.as_str()];
            if names.iter().any(|name| name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control)) {
                return Err("a name that is none".into());
            }
            seen.push(Seen {
                id: node.id.as_str().to_owned(),
                incarnation: node.incarnation.to_native(),
                host: node.host.as_str().to_owned(),
                port: node.port.to_native(),
                cluster_port: node.cluster_port.to_native(),
            });
        }
        Ok(Self {
            seen,
            missing: read.missing.to_native(),
            shards: read.shards.to_native(),
            replicas: read.replicas.to_native(),
            is_primary: read.is_primary,
            cluster: read.cluster.to_native(),
        })
    }
}

/// Where founding stands, by what this node and the others say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// Someone is not reached yet, by this node or by the one named.
    Waiting(Option<String>),
    /// They will not agree; the text says about what.
    Differs(String),
    /// All see the same.
    Agreed,
}

/// Compares what this node sees with what every other says; `mine.seen` has all of them, and `others` one status for
/// each of them but this node, with its id.
pub fn agreement(me: &str, mine: &Status, others: &[(String, Status)]) -> Agreement {
    if mine.missing > 0 || others.len() + 1 < mine.seen.len() {
        return Agreement::Waiting(None);
    }
    if let Some(text) = doubled(me, mine) {
        return Agreement::Differs(text);
    }
    let names = |status: &Status| {
        status.seen.iter().map(|node| (node.id.clone(), node.incarnation)).collect::<Vec<_>>()
    };
    let ids = |status: &Status| {
        format!("[{}]", status.seen.iter().map(|node| node.id.as_str()).collect::<Vec<_>>().join(", "))
    };
    let mut waiting = None;
    for (id, theirs) in others {
        let differs = |what: &str, here: String, there: String| {
            Agreement::Differs(format!("{what} differ: {here} at {me}, {there} at {id}"))
        };
        if theirs.shards != mine.shards {
            let text = differs("the numbers of shards", mine.shards.to_string(), theirs.shards.to_string());
            return with_hint(text, "give all of them the same --shards");
        }
        if theirs.replicas != mine.replicas {
            let text = differs(
                "the settings cluster.replicas",
                mine.replicas.to_string(),
                theirs.replicas.to_string(),
            );
            return with_hint(text, "give all of them the same");
        }
        if theirs.missing > 0 {
            waiting = Some(id.clone());
        } else if ids(theirs) == ids(mine) && names(theirs) != names(mine) {
            // A node came back with a blank disk under another incarnation, and one of the two has not asked it since. It will.
            waiting = Some(id.clone());
        } else if names(theirs) != names(mine) {
            let text = differs("the lists of nodes", ids(mine), ids(theirs));
            return with_hint(text, "every --peers lists all the other nodes");
        }
    }
    let mut primaries: Vec<&str> =
        others.iter().filter(|(_, status)| status.is_primary).map(|(id, _)| id.as_str()).collect();
    primaries.extend(mine.is_primary.then_some(me));
    if let [first, second, ..] = primaries[..] {
        return Agreement::Differs(format!(
            "both {first} and {second} were started with --primary: give it to one"
        ));
    }
    match waiting {
        Some(id) => Agreement::Waiting(Some(id)),
        None => Agreement::Agreed,
    }
}

fn with_hint(agreement: Agreement, hint: &str) -> Agreement {
    match agreement {
        Agreement::Differs(text) => Agreement::Differs(format!("{text}; {hint}")),
        other => other,
    }
}

/// Two entries of the list that are one node, or two nodes of one name.
fn doubled(me: &str, mine: &Status) -> Option<String> {
    for (at, node) in mine.seen.iter().enumerate() {
        for other in &mine.seen[..at] {
            if other.incarnation == node.incarnation {
                return Some(format!("{me} lists {} twice, or itself", node.id));
            }
            if other.id == node.id {
                return Some(format!(
                    "two nodes call themselves {}, at {}:{} and {}:{}: give each its own --id",
                    node.id, other.host, other.cluster_port, node.host, node.cluster_port
                ));
            }
        }
    }
    None
}

/// The first meta state of a cluster, once all agree. `mine.seen` is sorted by id; `own_host` is the host at which the
/// others reach this node.
///
/// Nodes are numbered from 1 in the order of their ids. Group `g` has its replicas on the nodes from `g` on, around the
/// list, and prefers the first of them as leader, so that replicas and leaders are even; with a primary, that node has a
/// replica of every group and is preferred by all.
pub fn first_meta(cluster: u128, mine: &Status, primary: Option<&str>) -> Meta {
    let count = mine.seen.len();
    assert!((1..=FOUNDERS_MAX).contains(&count) && mine.shards > 0, "someone founds something");
    let number_at = |at: usize| NodeNumber(at as u16 + 1);
    let nodes = mine.seen.iter().enumerate().map(|(at, seen)| Node {
        number: number_at(at),
        id: seen.id.clone(),
        incarnation: seen.incarnation,
        host: seen.host.clone(),
        port: seen.port,
        cluster_port: seen.cluster_port,
        state: NodeState::Member,
        is_primary: primary == Some(seen.id.as_str()),
    });
    let nodes: Vec<Node> = nodes.collect();
    let copies = usize::from(mine.replicas.max(1)).min(count);
    let first = nodes.iter().position(|node| node.is_primary);
    let placement = |group: usize| {
        let others: Vec<usize> = (0..count).filter(|at| Some(*at) != first).collect();
        let turning = (0..others.len()).map(|step| others[(group + step) % others.len()]);
        let chosen = first.into_iter().chain(turning).take(copies);
        let replicas: Vec<ReplicaId> = chosen.map(|at| ReplicaId::new(0, number_at(at))).collect();
        GroupPlacement { preferred: replicas[0], replicas }
    };
    Meta {
        version: 1,
        cluster,
        replicas: mine.replicas.max(1),
        groups: (0..mine.shards as usize).map(placement).collect(),
        next_node: count as u16 + 1,
        next_replica: 1,
        nodes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::hex;
    use proptest::prelude::*;

    fn status(ids: &[&str]) -> Status {
        let seen = ids.iter().enumerate().map(|(at, id)| Seen {
            id: (*id).into(),
            incarnation: u128::from(id.as_bytes()[id.len() - 1]) + 1,
            host: "127.0.0.1".into(),
            port: 8000 + at as u16,
            cluster_port: 9000 + at as u16,
        });
        Status { seen: seen.collect(), missing: 0, shards: 4, replicas: 3, is_primary: false, cluster: 0 }
    }

    fn others(status: &Status, ids: &[&str]) -> Vec<(String, Status)> {
        ids.iter().map(|id| ((*id).to_owned(), status.clone())).collect()
    }

    #[test]
    fn a_status_survives() {
        let mut bytes = PayloadBuffer::new();
        status(&["n1", "n2"]).encode(&mut bytes);
        assert_eq!(Status::decode(&bytes, &mut PayloadBuffer::new()), Ok(status(&["n1", "n2"])));
        bytes.clear();
        status(&["n1"]).encode(&mut bytes);
        assert_eq!(hex(&bytes), include_str!("golden_founding_status.hex").trim());
    }

    #[test]
    fn nodes_agree_when_all_see_the_same() {
        let all = status(&["a", "b", "c"]);
        assert_eq!(agreement("a", &all, &others(&all, &["b", "c"])), Agreement::Agreed);
        let partly = Status { missing: 1, ..status(&["a", "b"]) };
        assert_eq!(agreement("a", &partly, &others(&all, &["b"])), Agreement::Waiting(None));
        let mut theirs = others(&all, &["b", "c"]);
        theirs[1].1 = Status { missing: 1, ..status(&["b", "c"]) };
        assert_eq!(agreement("a", &all, &theirs), Agreement::Waiting(Some("c".into())));
    }

    /// `a` lost its disk while they were waiting; `c` has not asked it since and tells its old incarnation. That is no reason
    /// to end for good.
    #[test]
    fn an_old_view_of_a_node_that_came_back_blank_is_waited_out() {
        let all = status(&["a", "b", "c"]);
        let mut theirs = others(&all, &["b", "c"]);
        theirs[1].1.seen[0].incarnation = 999;
        assert_eq!(agreement("a", &all, &theirs), Agreement::Waiting(Some("c".into())));
    }

    fn check_differs(change: impl Fn(&mut Status, &mut Vec<(String, Status)>), told: &str) {
        let mut all = status(&["a", "b", "c"]);
        let mut theirs = others(&all, &["b", "c"]);
        change(&mut all, &mut theirs);
        let Agreement::Differs(text) = agreement("a", &all, &theirs) else { panic!("they agree") };
        assert!(text.contains(told), "{text}");
    }

    #[test]
    fn what_differs_is_named() {
        check_differs(|_, theirs| theirs[0].1.shards = 8, "4 at a, 8 at b");
        check_differs(|_, theirs| theirs[1].1.replicas = 5, "3 at a, 5 at c");
        check_differs(|_, theirs| theirs[1].1 = status(&["a", "c"]), "[a, b, c] at a, [a, c] at c");
        check_differs(|mine, _| mine.seen[2].id = "b".into(), "call themselves b");
        check_differs(|mine, _| mine.seen[1].incarnation = mine.seen[0].incarnation, "twice");
        check_differs(
            |mine, theirs| {
                mine.is_primary = true;
                theirs[1].1.is_primary = true;
            },
            "both c and a",
        );
    }

    #[test]
    fn replicas_and_leaders_are_even() {
        for (nodes, copies, shards) in [(3, 3, 6), (5, 3, 10), (2, 3, 2), (1, 1, 4), (4, 2, 8)] {
            let ids: Vec<String> = (0..nodes).map(|at| format!("n{at}")).collect();
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            let mine = Status { shards, replicas: copies, ..status(&ids) };
            let meta = first_meta(9, &mine, None);
            let held = |node: u16| {
                meta.groups.iter().filter(|g| g.replicas.iter().any(|r| r.node().0 == node)).count()
            };
            let led = |node: u16| meta.groups.iter().filter(|g| g.preferred.node().0 == node).count();
            let even = |count: fn(u16) -> u16, of: &dyn Fn(u16) -> usize| {
                let all: Vec<usize> = (1..=nodes as u16).map(|node| of(count(node))).collect();
                all.iter().max().unwrap() - all.iter().min().unwrap() <= 1
            };
            assert!(even(|node| node, &held) && even(|node| node, &led), "{meta:?}");
            assert!(meta.groups.iter().all(|g| g.replicas.len() == usize::from(copies).min(nodes)));
        }
    }

    #[test]
    fn a_primary_is_preferred_by_every_group() {
        let mine = Status { replicas: 2, shards: 6, ..status(&["a", "b", "c", "d"]) };
        let meta = first_meta(9, &mine, Some("c"));
        let primary = ReplicaId::new(0, NodeNumber(3));
        assert!(meta.groups.iter().all(|g| g.preferred == primary && g.replicas.len() == 2));
        let on_a =
            meta.groups.iter().filter(|g| g.replicas.contains(&ReplicaId::new(0, NodeNumber(1)))).count();
        assert_eq!(on_a, 2);
        assert!(meta.nodes[2].is_primary && !meta.nodes[0].is_primary);
    }

    proptest! {
        #[test]
        fn nothing_a_stranger_writes_panics(flip in any::<prop::sample::Index>()) {
            let mut bytes = PayloadBuffer::new();
            status(&["n1", "n2"]).encode(&mut bytes);
            let bit = flip.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let _ = Status::decode(&bytes, &mut PayloadBuffer::new());
        }
    }
}
