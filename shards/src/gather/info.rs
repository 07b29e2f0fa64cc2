//! INFO and CLUSTER: what every shard says of itself, put together.
//!
//! The router gives the members that it knows itself; the shards' own objects are passed on as they came.

use super::answers::{Answers, Collected};
use super::{Call, Gather, Step};
use crate::batch::ReplyKind;
use crate::command::record::{Malformed, Op, Record};
use crate::gather::topology::Topology;
use serde::Deserialize;
use strand_wire::json::push_string;
use strand_wire::reply::push_unsigned;

/// What is made of the shards' answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// INFO: the sum of the keys, and each shard's object.
    Info,
    /// CLUSTER: each group with its leader.
    Cluster,
}

/// See the module's head.
#[derive(Debug)]
pub struct Info {
    shape: Shape,
    head: Vec<u8>,
    node: String,
    answers: Answers,
}

/// What is read of a shard's object.
#[derive(Deserialize)]
struct Figures {
    keys: u64,
    memory_bytes: u64,
    term: u64,
    commit_index: u64,
    applied_index: u64,
}

impl Info {
    /// Begins. `head` are the members that the result begins with, without braces; `node` is this node's id.
    pub fn start(topology: &Topology, shape: Shape, head: Vec<u8>, node: &str) -> (Gather, Step) {
        let calls = (0u16..).zip(topology.each());
        let calls = calls.map(|(number, group)| Call::new(number, group, &Record::plain(Op::Info, &[], &[])));
        let gather = Self { shape, head, node: node.to_owned(), answers: Answers::new(topology.groups()) };
        (Gather::Info(gather), Step::Calls(calls.collect()))
    }

    pub(super) fn part(&mut self, number: u16, kind: ReplyKind, body: &[u8]) -> Result<Step, Malformed> {
        match self.answers.take(number, kind, body, self.head.len())? {
            Collected::Step(step) => Ok(step),
            Collected::All(answers) => self.finish(&answers),
        }
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.head.len() + self.answers.bytes()
    }

    fn finish(&self, answers: &[Vec<u8>]) -> Result<Step, Malformed> {
        let read = |answer: &Vec<u8>| serde_json::from_slice::<Figures>(answer);
        let figures = answers.iter().map(read).collect::<Result<Vec<_>, _>>();
        let figures = figures.map_err(|_| Malformed("it is no object with a shard's figures"))?;
        let mut out = b"\"result\":{".to_vec();
        out.extend_from_slice(&self.head);
        out.push(b',');
        match self.shape {
            Shape::Info => write_info(&mut out, answers, &figures),
            Shape::Cluster => self.write_groups(&mut out, &figures),
        }
        out.push(b'}');
        Ok(Step::success(out))
    }

    fn write_groups(&self, out: &mut Vec<u8>, figures: &[Figures]) {
        out.extend_from_slice(b"\"groups\":[");
        for (group, figures) in figures.iter().enumerate() {
            if group > 0 {
                out.push(b',');
            }
            out.extend_from_slice(b"{\"group\":");
            push_unsigned(out, group as u64);
            out.extend_from_slice(b",\"leader\":");
            push_string(out, &self.node);
            out.extend_from_slice(b",\"replicas\":[");
            push_string(out, &self.node);
            out.push(b']');
            let lag = figures.commit_index.saturating_sub(figures.applied_index);
            let numbers = [
                ("term", figures.term),
                ("commit_index", figures.commit_index),
                ("applied_index", figures.applied_index),
                ("lag", lag),
            ];
            for (name, number) in numbers {
                out.push(b',');
                push_member(out, name, number);
            }
            out.push(b'}');
        }
        out.push(b']');
    }
}

fn write_info(out: &mut Vec<u8>, answers: &[Vec<u8>], figures: &[Figures]) {
    push_member(out, "keys", figures.iter().map(|figures| figures.keys).sum());
    out.push(b',');
    push_member(out, "keys_memory_bytes", figures.iter().map(|figures| figures.memory_bytes).sum());
    out.extend_from_slice(b",\"shards\":[");
    out.extend_from_slice(&answers.join(&b','));
    out.push(b']');
}

fn push_member(out: &mut Vec<u8>, name: &str, number: u64) {
    push_string(out, name);
    out.push(b':');
    push_unsigned(out, number);
}
