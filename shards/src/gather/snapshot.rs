//! SNAPSHOT: every shard writes one; the answer waits for all of them, and is "OK" or the error of the lowest group that
//! failed.

use super::{Call, Gather, Step};
use crate::batch::ReplyKind;
use crate::command::record::{Op, Record};
use crate::gather::topology::Topology;

/// See the module's head.
#[derive(Debug)]
pub struct Snapshot {
    left: usize,
    /// The lowest group that failed, and its error.
    failed: Option<(u16, Vec<u8>)>,
}

impl Snapshot {
    /// Begins.
    pub fn start(topology: &Topology) -> (Gather, Step) {
        let calls = (0u16..).zip(topology.each());
        let calls =
            calls.map(|(number, group)| Call::new(number, group, &Record::plain(Op::Snapshot, &[], &[])));
        let gather = Self { left: topology.groups(), failed: None };
        (Gather::Snapshot(gather), Step::Calls(calls.collect()))
    }

    pub(super) fn part(&mut self, number: u16, kind: ReplyKind, body: &[u8]) -> Step {
        assert!(self.left > 0, "each group answers once");
        self.left -= 1;
        let is_lower = self.failed.as_ref().is_none_or(|(group, _)| number < *group);
        if kind == ReplyKind::Error && is_lower {
            self.failed = Some((number, body.to_vec()));
        }
        match self.failed.take() {
            failed if self.left > 0 => {
                self.failed = failed;
                Step::Wait
            }
            Some((_, members)) => Step::Done { kind: ReplyKind::Error, members },
            None => Step::Done { kind: ReplyKind::Ok, members: Vec::new() },
        }
    }
}
