//! INFO and CLUSTER: what every shard says of itself, put together.
//!
//! The router gives the members that it knows itself; the shards' own objects are passed on as they came.

use super::answers::{Answers, Collected};
use super::{Call, Gather, Step};
use crate::batch::ReplyKind;
use crate::command::record::{Malformed, Op, Record, flag};
use crate::gather::topology::Topology;
use crate::ids::NodeNumber;
use serde::Deserialize;
use strand_wire::json::push_string;
use strand_wire::reply::push_unsigned;

/// What is made of the shards' answers.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Shape {
    /// INFO: the sum of the keys, and each shard's object.
    Info,
    /// CLUSTER: each group with its leader.
    Cluster { names: Vec<(NodeNumber, String)>, leaders: Vec<NodeNumber> },
}

/// See the module's head.
#[derive(Debug)]
pub struct Info {
    shape: Shape,
    head: Vec<u8>,
    answers: Answers,
}

/// What is read of a shard's object.
#[derive(Default, Deserialize)]
struct Figures {
    #[serde(default)]
    keys: u64,
    #[serde(default)]
    memory_bytes: u64,
    term: u64,
    commit_index: u64,
    applied_index: u64,
    /// What a leader knows of the copies of its group.
    #[serde(default)]
    replicas: Vec<Replica>,
}

/// One copy of a group, as its leader sees it.
#[derive(Deserialize)]
struct Replica {
    node: u16,
    /// Last index that it is known to have.
    match_index: u64,
    /// Last index that it said it has applied, if it said so.
    #[serde(default)]
    applied_index: Option<u64>,
    /// Entries that it lacks or has not applied.
    lag: u64,
    /// Whether it votes; one that does not is being filled.
    #[serde(default = "votes")]
    voter: bool,
    /// Whether it was heard of lately.
    #[serde(default = "votes")]
    active: bool,
}

fn votes() -> bool {
    true
}

impl Info {
    /// INFO: the figures of this node's shards. `head` are the members that the result begins with, without braces.
    pub fn figures(topology: &Topology, head: Vec<u8>) -> (Gather, Step) {
        let record = Record { flags: flag::LOCAL, ..Record::plain(Op::Info, &[], &[]) };
        Self::start(topology, Shape::Info, head, &record)
    }

    /// CLUSTER: each group as its leader sees it. `names` are the nodes' ids by number, `leaders` the groups' by number.
    pub fn groups(
        topology: &Topology,
        head: Vec<u8>,
        names: Vec<(NodeNumber, String)>,
        leaders: Vec<NodeNumber>,
    ) -> (Gather, Step) {
        let shape = Shape::Cluster { names, leaders };
        Self::start(topology, shape, head, &Record::plain(Op::Members, &[], &[]))
    }

    fn start(topology: &Topology, shape: Shape, head: Vec<u8>, record: &Record<'_>) -> (Gather, Step) {
        let calls = (0u16..).zip(topology.each());
        let calls = calls.map(|(number, group)| Call::new(number, group, record));
        let gather = Self { shape, head, answers: Answers::new(topology.groups()) };
        (Gather::Info(gather), Step::Calls(calls.collect()))
    }

    /// A group that cannot answer (nobody leads it, or this node has no copy of it) is told with what is known: an empty
    /// answer stands for it.
    pub(super) fn part(&mut self, number: u16, kind: ReplyKind, body: &[u8]) -> Result<Step, Malformed> {
        // An empty answer stands for an error.
        let (kind, body) = if kind == ReplyKind::Error { (ReplyKind::Part, &[][..]) } else { (kind, body) };
        match self.answers.take(number, kind, body, self.head.len())? {
            Collected::Step(step) => Ok(step),
            Collected::All(answers) => self.finish(&answers),
        }
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.head.len() + self.answers.bytes()
    }

    fn finish(&self, answers: &[Vec<u8>]) -> Result<Step, Malformed> {
        let read = |answer: &Vec<u8>| match answer.as_slice() {
            [] => Ok(None),
            object => serde_json::from_slice::<Figures>(object).map(Some),
        };
        let figures = answers.iter().map(read).collect::<Result<Vec<_>, _>>();
        let figures = figures.map_err(|_| Malformed("it is no object with a shard's figures"))?;
        let mut out = b"\"result\":{".to_vec();
        out.extend_from_slice(&self.head);
        out.push(b',');
        match &self.shape {
            Shape::Info => write_info(&mut out, answers, &figures),
            Shape::Cluster { names, leaders } => write_groups(&mut out, &figures, names, leaders),
        }
        out.push(b'}');
        Ok(Step::success(out))
    }
}

fn write_groups(
    out: &mut Vec<u8>,
    figures: &[Option<Figures>],
    names: &[(NodeNumber, String)],
    leaders: &[NodeNumber],
) {
    out.extend_from_slice(b"\"groups\":[");
    for (group, (figures, leader)) in figures.iter().zip(leaders).enumerate() {
        if group > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"group\":");
        push_unsigned(out, group as u64);
        out.extend_from_slice(b",\"leader\":");
        match figures {
            Some(figures) => write_group(out, figures, names, *leader),
            None => out.extend_from_slice(b"null"),
        }
        out.push(b'}');
    }
    out.push(b']');
}

/// The leader's name and what it says of its group.
fn write_group(out: &mut Vec<u8>, figures: &Figures, names: &[(NodeNumber, String)], leader: NodeNumber) {
    push_name(out, names, leader);
    out.extend_from_slice(b",\"replicas\":[");
    // A leader that names no copies is alone.
    let alone = [Replica {
        node: leader.0,
        match_index: figures.commit_index,
        applied_index: Some(figures.applied_index),
        lag: figures.commit_index.saturating_sub(figures.applied_index),
        voter: true,
        active: true,
    }];
    let replicas = if figures.replicas.is_empty() { &alone[..] } else { &figures.replicas[..] };
    for (number, replica) in replicas.iter().enumerate() {
        if number > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"node\":");
        push_name(out, names, NodeNumber(replica.node));
        let role: &[u8] = if replica.voter { b"voter" } else { b"learner" };
        out.extend_from_slice(b",\"role\":\"");
        out.extend_from_slice(role);
        out.extend_from_slice(b"\",");
        let active: &[u8] = if replica.active { b"\"active\":true," } else { b"\"active\":false," };
        out.extend_from_slice(active);
        push_member(out, "match_index", replica.match_index);
        out.push(b',');
        match replica.applied_index {
            Some(applied) => push_member(out, "applied_index", applied),
            None => out.extend_from_slice(b"\"applied_index\":null"),
        }
        out.push(b',');
        push_member(out, "lag", replica.lag);
        out.push(b'}');
    }
    out.push(b']');
    let numbers = [
        ("term", figures.term),
        ("commit_index", figures.commit_index),
        ("applied_index", figures.applied_index),
        ("lag", replicas.iter().map(|replica| replica.lag).max().unwrap_or(0)),
    ];
    for (name, number) in numbers {
        out.push(b',');
        push_member(out, name, number);
    }
}

fn push_name(out: &mut Vec<u8>, names: &[(NodeNumber, String)], node: NodeNumber) {
    match names.iter().find(|(number, _)| *number == node) {
        Some((_, name)) => push_string(out, name),
        None => out.extend_from_slice(b"null"),
    }
}

fn write_info(out: &mut Vec<u8>, answers: &[Vec<u8>], figures: &[Option<Figures>]) {
    let present = || figures.iter().flatten();
    push_member(out, "keys", present().map(|figures| figures.keys).sum());
    out.push(b',');
    push_member(out, "keys_memory_bytes", present().map(|figures| figures.memory_bytes).sum());
    out.extend_from_slice(b",\"shards\":[");
    for (number, answer) in answers.iter().enumerate() {
        if number > 0 {
            out.push(b',');
        }
        // A shard without a copy of its group has no figures.
        out.extend_from_slice(if answer.is_empty() { b"null" } else { answer });
    }
    out.push(b']');
}

fn push_member(out: &mut Vec<u8>, name: &str, number: u64) {
    push_string(out, name);
    out.push(b':');
    push_unsigned(out, number);
}
