//! What happens to a shard: the only way in.

use crate::batch::RequestBatch;
use crate::ids::Sequence;
use crate::txn::message::GroupMessage;

/// Something that happened outside.
#[derive(Debug)]
pub enum Event {
    /// Requests from a router, named by its number.
    Requests {
        /// Which router; its replies go back there.
        router: u8,
        /// The requests; the batch comes back in the effects to be filled again.
        batch: Box<RequestBatch>,
    },
    /// Another group says something about a transaction.
    Message(GroupMessage),
    /// Every batch of the log up to this one is durable.
    Durable(Sequence),
    /// Whether the log has room for writes of clients.
    LogRoom(bool),
    /// Bytes of a snapshot have reached the file.
    SnapshotWritten {
        /// How many bytes since the last such event.
        bytes: u64,
    },
    /// The snapshot under way has been read back.
    SnapshotVerified(Result<SnapshotFound, String>),
    /// Clients are not served any more: what is under way is finished, nothing new is begun.
    Drain,
}

/// What reading a snapshot back found in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFound {
    /// Index of the last entry that it holds.
    pub index: u64,
    /// Number of records.
    pub records: u64,
    /// Digest over the records.
    pub digest: u64,
}
