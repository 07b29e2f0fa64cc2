//! ADD_NODE, REMOVE_NODE, TRANSFER_LEADER and BALANCE: one change of the meta state, asked of group 0.

use super::{Call, Gather, Step};
use crate::batch::ReplyKind;
use crate::command::record::{Malformed, Op, Record};
use crate::ids::GroupId;
use crate::meta::MetaChange;

/// See the module's head.
#[derive(Debug)]
pub struct Members;

impl Members {
    /// Begins.
    pub fn start(change: &MetaChange) -> (Gather, Step) {
        let mut value = Vec::new();
        change.encode(&mut value);
        let call = Call::new(0, GroupId(0), &Record::plain(Op::MetaChange, &[], &value));
        (Gather::Members(Self), Step::Calls(vec![call]))
    }

    pub(super) fn part(kind: ReplyKind, body: &[u8]) -> Result<Step, Malformed> {
        match kind {
            ReplyKind::Ok | ReplyKind::Error => Ok(Step::passed_on(kind, body)),
            _ => Err(Malformed("a change of the members is answered with OK or an error")),
        }
    }
}
