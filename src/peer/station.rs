//! What a node is to those who knock at its cluster port: blank, or a member of its cluster; and whom it lets in.
//!
//! The rules by which a hello is welcomed or refused stand here, without a socket. Everybody is refused by name: another
//! cluster, an unknown number, an id under another number, a blank disk under an old name. Nothing that a hello says changes
//! anything here.

use super::counters::PeerCounters;
use super::hub::Hub;
use super::nodes::Nodes;
use crate::clock::Clock;
use shards::ids::{Millis, NodeNumber};
use shards::meta::{Meta, NodeState};
use shards::peer::founding::Status;
use shards::peer::hello::{Card, Hello, PROTOCOL_MAX, PROTOCOL_MIN, Purpose, Refusal, RefusalCode};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What this node is now.
#[derive(Clone, Debug)]
pub enum Standing {
    /// It has no cluster yet: this is what it says of itself.
    Blank(Card, Status),
    /// It belongs to one.
    Member(Arc<Hub>),
}

/// The same refusal is told in the log at most so often: who is refused keeps calling.
const TOLD_EVERY_MS: u64 = 10_000;
/// Different refusals remembered for that.
const TOLD_MAX: usize = 64;

/// The standing, shared by the founding and the listener.
#[derive(Debug)]
pub struct Station {
    standing: Mutex<Standing>,
    /// Refusals and when they were told last, by this clock.
    told: Mutex<BTreeMap<String, Millis>>,
    clock: Clock,
    /// Figures about connections, from the first one on.
    pub counters: Arc<PeerCounters>,
}

impl Station {
    /// A station in this standing.
    pub fn new(standing: Standing, counters: Arc<PeerCounters>) -> Arc<Self> {
        Arc::new(Self {
            standing: Mutex::new(standing),
            told: Mutex::default(),
            clock: Clock::start(),
            counters,
        })
    }

    /// Whether a refusal is to be told in the log now; it then counts as told.
    pub fn may_tell(&self, text: &str) -> bool {
        let now = self.clock.now();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|_, last| now.0 < last.0 + TOLD_EVERY_MS);
        if told.contains_key(text) || told.len() >= TOLD_MAX {
            return false;
        }
        told.insert(text.to_owned(), now);
        true
    }

    /// What this node is now.
    pub fn standing(&self) -> Standing {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on it is something else.
    pub fn becomes(&self, standing: Standing) {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = standing;
    }
}

/// Judges a hello to a blank node, which speaks about founding only.
///
/// # Errors
/// Why it is refused.
pub fn judge_blank(me: &Card, hello: &Hello) -> Result<(), Refusal> {
    judge_protocol(hello)?;
    if hello.purpose != Purpose::Founding {
        return refuse(RefusalCode::NotNow, format!("node {} has no cluster yet", me.id));
    }
    Ok(())
}

/// Judges a hello to the member `me` of a cluster.
///
/// # Errors
/// Why it is refused.
pub fn judge_member(meta: &Meta, me: NodeNumber, hello: &Hello) -> Result<(), Refusal> {
    judge_protocol(hello)?;
    if hello.purpose == Purpose::Founding && hello.cluster == 0 {
        return judge_candidate(meta, &hello.card);
    }
    if hello.cluster != meta.cluster {
        let (theirs, ours) = (hello.cluster, meta.cluster);
        return refuse(
            RefusalCode::Cluster,
            format!("node {} is of cluster {theirs:032x}, this one of {ours:032x}", hello.card.id),
        );
    }
    judge_node(meta, &hello.card)?;
    if hello.to != me || NodeNumber(hello.card.number) == me {
        let meant = hello.to.0;
        return refuse(RefusalCode::NotMe, format!("node {meant} was meant, and this is node {}", me.0));
    }
    if let Purpose::Raft(group) | Purpose::Snapshot(group) = hello.purpose
        && group.0 as usize >= meta.groups.len()
    {
        return refuse(RefusalCode::Nonsense, format!("there is no group {group}"));
    }
    if hello.card.shards as usize != meta.groups.len() {
        let text = format!(
            "node {} has {} shards, the cluster {} groups",
            hello.card.id,
            hello.card.shards,
            meta.groups.len()
        );
        return refuse(RefusalCode::Nonsense, text);
    }
    Ok(())
}

/// Judges whether a member's process is the one that is in the cluster already: a copy of a data directory that runs beside
/// its original could vote twice.
///
/// # Errors
/// Why it is refused.
pub fn judge_life(nodes: &Nodes, hello: &Hello, now: Millis) -> Result<(), Refusal> {
    let number = NodeNumber(hello.card.number);
    if hello.purpose == Purpose::Founding || !nodes.has_another_life(number, hello.life(), now) {
        return Ok(());
    }
    let known = nodes.name_of(number).map_or_else(String::new, |(_, address)| format!(" at {address}"));
    refuse(
        RefusalCode::Twice,
        format!(
            "node {} runs already{known}: a copy of its data directory must not run beside it, since it would vote twice",
            hello.card.id
        ),
    )
}

/// A blank node may ask whether it is a member; not under the name of one that has another disk.
fn judge_candidate(meta: &Meta, card: &Card) -> Result<(), Refusal> {
    match meta.node_by_id(&card.id) {
        Some(known) if known.incarnation != card.incarnation => refuse(
            RefusalCode::WrongIncarnation,
            format!(
                "node {} is a member of cluster {:032x} with another data directory: a blank disk under an old name must not \
                 vote. Start it with its old data directory, or remove that node and add this one under a new --id",
                card.id, meta.cluster
            ),
        ),
        _ => Ok(()),
    }
}

fn judge_node(meta: &Meta, card: &Card) -> Result<(), Refusal> {
    let number = NodeNumber(card.number);
    let Some(known) = meta.nodes.iter().find(|node| node.number == number) else {
        return refuse(
            RefusalCode::UnknownNode,
            format!("node number {} is not known here, or not yet", number.0),
        );
    };
    if known.id != card.id {
        let text = format!("node number {} is {}, and {} claims it", number.0, known.id, card.id);
        return refuse(RefusalCode::WrongId, text);
    }
    if known.incarnation != card.incarnation {
        return refuse(
            RefusalCode::WrongIncarnation,
            format!("node {} is known with another data directory: a blank disk under an old name", card.id),
        );
    }
    if known.state == NodeState::Gone {
        return refuse(RefusalCode::Removed, format!("node {} was removed from the cluster", card.id));
    }
    Ok(())
}

fn judge_protocol(hello: &Hello) -> Result<(), Refusal> {
    if hello.common_protocol().is_some() {
        return Ok(());
    }
    let (oldest, newest) = hello.protocols;
    let text = format!(
        "node {} speaks the protocols {oldest} to {newest}, this one {PROTOCOL_MIN} to {PROTOCOL_MAX}: upgrade the older one",
        hello.card.id
    );
    refuse(RefusalCode::Protocol, text)
}

fn refuse(code: RefusalCode, text: String) -> Result<(), Refusal> {
    Err(Refusal { code, text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use shards::ids::GroupId;
    use shards::meta::{GroupPlacement, Node};

    fn meta() -> Meta {
        let node = |number: u16| Node {
            number: NodeNumber(number),
            id: format!("n{number}"),
            incarnation: u128::from(number),
            state: if number == 3 { NodeState::Gone } else { NodeState::Member },
            ..Node::default()
        };
        Meta {
            version: 1,
            cluster: 7,
            nodes: (1..=3).map(node).collect(),
            groups: vec![GroupPlacement::default()],
            ..Meta::default()
        }
    }

    fn hello() -> Hello {
        let card = Card { id: "n2".into(), number: 2, incarnation: 2, shards: 1, ..Card::default() };
        let purpose = Purpose::Raft(GroupId(0));
        Hello { protocols: (1, 1), cluster: 7, card, to: NodeNumber(1), purpose, nonce: 0 }
    }

    #[test]
    fn everybody_is_refused_by_name() {
        let judged = |change: fn(&mut Hello)| {
            let mut hello = hello();
            change(&mut hello);
            judge_member(&meta(), NodeNumber(1), &hello).map_err(|refusal| refusal.code)
        };
        assert_eq!(judged(|_| {}), Ok(()));
        assert_eq!(judged(|hello| hello.protocols = (2, 3)), Err(RefusalCode::Protocol));
        assert_eq!(judged(|hello| hello.cluster = 8), Err(RefusalCode::Cluster));
        assert_eq!(judged(|hello| hello.cluster = 0), Err(RefusalCode::Cluster));
        assert_eq!(judged(|hello| hello.card.number = 9), Err(RefusalCode::UnknownNode));
        assert_eq!(judged(|hello| hello.card.id = "n9".into()), Err(RefusalCode::WrongId));
        assert_eq!(judged(|hello| hello.card.incarnation = 9), Err(RefusalCode::WrongIncarnation));
        assert_eq!(judged(|hello| hello.to = NodeNumber(2)), Err(RefusalCode::NotMe));
        assert_eq!(judged(|hello| hello.purpose = Purpose::Raft(GroupId(1))), Err(RefusalCode::Nonsense));
        assert_eq!(judged(|hello| hello.card.shards = 2), Err(RefusalCode::Nonsense));
        let gone = |hello: &mut Hello| {
            hello.card = Card { id: "n3".into(), number: 3, incarnation: 3, ..Card::default() }
        };
        assert_eq!(judged(gone), Err(RefusalCode::Removed));
        let founding = |hello: &mut Hello| (hello.cluster, hello.purpose) = (0, Purpose::Founding);
        assert_eq!(judged(founding), Ok(()));
        let blank = |hello: &mut Hello| {
            (hello.cluster, hello.purpose, hello.card.incarnation) = (0, Purpose::Founding, 9);
        };
        assert_eq!(judged(blank), Err(RefusalCode::WrongIncarnation));
    }

    #[test]
    fn a_second_process_of_a_member_is_refused_while_the_first_is_heard() {
        let nodes = Nodes::new(Arc::new(meta()));
        let judged = |life: u32, now| {
            let hello = Hello { nonce: u64::from(life) << 32 | 5, ..hello() };
            judge_life(&nodes, &hello, Millis(now)).map_err(|refusal| refusal.code)
        };
        assert_eq!(judged(1, 0), Ok(()), "nobody has said who runs");
        nodes.life_begins(NodeNumber(2), 1);
        nodes.heard(NodeNumber(2), Millis(1000));
        assert_eq!((judged(1, 1500), judged(2, 1500)), (Ok(()), Err(RefusalCode::Twice)));
        assert_eq!(judged(2, 5000), Ok(()), "the first is silent");
        nodes.life_ends(NodeNumber(2), 9);
        assert_eq!(judged(2, 1500), Err(RefusalCode::Twice), "another one's end");
        nodes.life_begins(NodeNumber(2), 1);
        nodes.life_ends(NodeNumber(2), 1);
        assert_eq!(judged(2, 1500), Err(RefusalCode::Twice), "it has another link");
        nodes.life_ends(NodeNumber(2), 1);
        assert_eq!(judged(2, 1500), Ok(()), "the first has closed its link");
    }

    #[test]
    fn the_same_refusal_is_told_once_in_a_while() {
        let station = Station::new(Standing::Blank(Card::default(), Status::default()), Arc::default());
        assert!(station.may_tell("a") && !station.may_tell("a") && station.may_tell("b"));
        for number in 0..2 * TOLD_MAX {
            station.may_tell(&number.to_string());
        }
        assert!(!station.may_tell("c"), "what is remembered is bounded");
    }

    #[test]
    fn a_blank_node_speaks_of_founding_only() {
        let me = Card { id: "n1".into(), ..Card::default() };
        assert_eq!(judge_blank(&me, &hello()).map_err(|refusal| refusal.code), Err(RefusalCode::NotNow));
        let founding = Hello { purpose: Purpose::Founding, ..hello() };
        assert_eq!(judge_blank(&me, &founding), Ok(()));
    }
}
