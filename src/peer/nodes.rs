//! Who the nodes are, as this node knows it: the newest meta state heard of, and when each node was last heard.
//!
//! Written by the control link and by group 0's shard, read by routers for commands that describe the cluster and for
//! redirects; never on the way of an ordinary request. Decides nothing.

use shards::ids::{Millis, NodeNumber};
use shards::meta::{Meta, Node};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// See the module's head.
#[derive(Debug, Default)]
pub struct Nodes {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    meta: Arc<Meta>,
    heard: BTreeMap<NodeNumber, Millis>,
    /// Which life of its process each node's control links belong to, and how many there are.
    lives: BTreeMap<NodeNumber, (u32, usize)>,
    /// Blank nodes that asked to be members, by id.
    candidates: BTreeMap<String, Node>,
}

/// A process that was not heard for so long may be replaced by another one of its node: a lost machine breaks no link.
const LIFE_SILENT_MS: u64 = 1000;
/// Candidates remembered at most.
const CANDIDATES_MAX: usize = 64;

impl Nodes {
    /// What the data directory says.
    pub fn new(meta: Arc<Meta>) -> Arc<Self> {
        Arc::new(Self { known: Mutex::new(Known { meta, ..Known::default() }) })
    }

    /// The newest meta state.
    pub fn meta(&self) -> Arc<Meta> {
        Arc::clone(&self.lock().meta)
    }

    /// Takes a newer meta state over; whether it was newer.
    pub fn learn(&self, meta: &Arc<Meta>) -> bool {
        let mut known = self.lock();
        let is_newer = meta.version > known.meta.version;
        if is_newer {
            known.meta = Arc::clone(meta);
        }
        is_newer
    }

    /// Remembers a blank node that asked to be a member; ADD_NODE makes it one.
    pub fn note_candidate(&self, node: Node) {
        let mut known = self.lock();
        if known.candidates.len() < CANDIDATES_MAX || known.candidates.contains_key(&node.id) {
            known.candidates.insert(node.id.clone(), node);
        }
    }

    /// A blank node that asked to be a member and fits: by its id, or by its ports.
    pub fn candidate(&self, fits: impl Fn(&Node) -> bool) -> Option<Node> {
        self.lock().candidates.values().find(|node| fits(node)).cloned()
    }

    /// Notes that a node was heard at this time of this machine.
    pub fn heard(&self, node: NodeNumber, now: Millis) {
        self.lock().heard.insert(node, now);
    }

    /// A node's process of this life has a control link to this one.
    pub fn life_begins(&self, node: NodeNumber, life: u32) {
        let mut known = self.lock();
        let links = known.lives.get(&node).filter(|(known, _)| *known == life).map_or(0, |(_, links)| *links);
        known.lives.insert(node, (life, links + 1));
    }

    /// That link has ended.
    pub fn life_ends(&self, node: NodeNumber, life: u32) {
        let mut known = self.lock();
        match known.lives.get_mut(&node) {
            Some((known_life, links)) if *known_life == life && *links > 1 => *links -= 1,
            Some((known_life, _)) if *known_life == life => drop(known.lives.remove(&node)),
            _ => {}
        }
    }

    /// Whether another life of a node's process than this one is connected and was heard lately.
    pub fn has_another_life(&self, node: NodeNumber, life: u32, now: Millis) -> bool {
        let known = self.lock();
        let is_heard = known.heard.get(&node).is_some_and(|heard| now.0 < heard.0 + LIFE_SILENT_MS);
        is_heard && known.lives.get(&node).is_some_and(|(connected, _)| *connected != life)
    }

    /// When a node was last heard; `None` if never.
    pub fn last_heard(&self, node: NodeNumber) -> Option<Millis> {
        self.lock().heard.get(&node).copied()
    }

    /// A node's id and the `HOST:PORT` at which clients reach it.
    pub fn name_of(&self, node: NodeNumber) -> Option<(String, String)> {
        let known = self.lock();
        known.meta.node(node).map(|node| (node.id.clone(), address_of(node)))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // A poisoned lock only means that its writer panicked between two values, each of which is whole.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The `HOST:PORT` at which clients reach a node.
pub fn address_of(node: &Node) -> String {
    if node.host.contains(':') {
        format!("[{}]:{}", node.host, node.port)
    } else {
        format!("{}:{}", node.host, node.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_meta_state_stays() {
        let named = |version, host: &str| {
            let node = Node {
                number: NodeNumber(2),
                id: "b".to_owned(),
                host: host.to_owned(),
                port: 8001,
                ..Node::default()
            };
            Arc::new(Meta { version, nodes: vec![node], ..Meta::default() })
        };
        let nodes = Nodes::new(named(3, "h"));
        assert!(!nodes.learn(&named(3, "x")) && !nodes.learn(&named(2, "x")));
        assert_eq!(nodes.name_of(NodeNumber(2)), Some(("b".to_owned(), "h:8001".to_owned())));
        assert!(nodes.learn(&named(4, "::1")));
        assert_eq!(nodes.name_of(NodeNumber(2)).map(|(_, address)| address), Some("[::1]:8001".to_owned()));
        assert_eq!(nodes.name_of(NodeNumber(1)), None);
        assert_eq!(nodes.last_heard(NodeNumber(2)), None);
        nodes.heard(NodeNumber(2), Millis(9));
        assert_eq!(nodes.last_heard(NodeNumber(2)), Some(Millis(9)));
    }
}
