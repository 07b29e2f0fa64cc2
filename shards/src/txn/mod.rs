//! Transactions over several groups: two-phase commit in which every step is a log entry of some group.
//!
//! - The coordinator is the lowest participating group. Its OPEN entry names the transaction: (group, epoch, place).
//! - A participant's PREPARE entry installs intents: its keys are locked, the new values wait beside them.
//! - The coordinator's DECIDE entry is the commit point. It lists the place of each participant's PREPARE that counts.
//! - A participant's FINISH entry applies the intents of that place, or drops them.
//! - When every participant has finished, FORGET removes the record. An unknown transaction is an aborted one.
//!
//! [`state`] is what every replica holds, [`coordinator`] and [`locks`] what only a leader knows and a new leader builds
//! anew. No step is sent on before the entry behind it is durable; the shard sees to that.

pub mod coordinator;
pub mod locks;
pub mod message;
pub mod state;

use crate::command::record::{Malformed, take_u8, take_u32, take_u64};
use crate::ids::{GroupId, Version};

/// Names a transaction: its coordinator and the version of its OPEN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxnId {
    /// The coordinator.
    pub group: GroupId,
    /// Version that the OPEN command got.
    pub opened: Version,
}

/// What a transaction does with its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Store values.
    Set = 1,
    /// Remove keys.
    Delete = 2,
    /// Read values under locks, change nothing.
    Read = 3,
}

impl Kind {
    /// The kind with this number.
    pub fn from_number(number: u8) -> Result<Self, Malformed> {
        match number {
            1 => Ok(Self::Set),
            2 => Ok(Self::Delete),
            3 => Ok(Self::Read),
            _ => Err(Malformed("unknown kind of transaction")),
        }
    }
}

impl TxnId {
    /// Appends the 16 bytes of the id.
    pub fn encode(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.group.0.to_le_bytes());
        out.extend_from_slice(&self.opened.epoch.to_le_bytes());
        out.extend_from_slice(&self.opened.place.to_le_bytes());
    }

    /// Reads what [`TxnId::encode`] writes off the front.
    pub fn decode(rest: &mut &[u8]) -> Result<Self, Malformed> {
        let group = GroupId(take_u32(rest)?);
        let opened = Version { epoch: take_u32(rest)?, place: take_u64(rest)? };
        Ok(Self { group, opened })
    }
}

/// Reads a flag byte that is 0 or 1.
pub(crate) fn take_flag(rest: &mut &[u8]) -> Result<bool, Malformed> {
    match take_u8(rest)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed("a flag that is neither 0 nor 1")),
    }
}
