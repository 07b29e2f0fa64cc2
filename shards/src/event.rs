//! What happens to a shard: the only way in.

use crate::batch::RequestBatch;
use crate::ids::{GroupId, Millis, ReplicaId, Sequence};
use crate::meta::Meta;
use crate::shard::image::SnapshotImage;
use crate::txn::message::GroupMessage;
use raft::prelude::Message as RaftMessage;
use std::sync::Arc;

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
    /// Figures of the log's disk, to be told by INFO.
    Disk(DiskFigures),
    /// How long the shard's turns took.
    Turns(TurnFigures),
    /// Bytes of a snapshot have reached the file.
    SnapshotWritten {
        /// How many bytes since the last such event.
        bytes: u64,
    },
    /// The snapshot under way was synced, read back, found equal and put in place; or it was not, for this reason.
    SnapshotFinished(Result<(), String>),
    /// Another replica of this group says something. It was checked: this group, this replica, a known sender.
    Raft(Box<RaftMessage>),
    /// What was sent to this replica may be lost: its link broke or is full.
    Unreachable(ReplicaId),
    /// The snapshot that [`crate::effect::Effects::fetch`] asked for is in its file, durable and checked, and this is its
    /// content; or it could not be had, for this reason.
    SnapshotFetched {
        /// Index of the last entry in it.
        index: u64,
        /// Its content.
        image: Result<Box<SnapshotImage>, String>,
    },
    /// Another replica leads this group now, as far as this node knows: what was said to the one before may be lost.
    Leader(GroupId),
    /// This node knows of a newer term of the group than this leader's. To be said at every tick for as long as it is so.
    Term(u64),
    /// The cluster's meta state is newer than this shard knew.
    Meta(Arc<Meta>),
    /// Hand leadership over if there is someone to take it: the process wants to stop by this time.
    Resign(Millis),
}

/// Figures of one shard's log, counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskFigures {
    /// Batches appended.
    pub batches: u64,
    /// Writes submitted.
    pub writes: u64,
    /// Syncs submitted.
    pub syncs: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Segments begun.
    pub segments: u64,
    /// Bytes of the segments that hold the live log.
    pub live_bytes: u64,
    /// Median time from handing a batch to the log until it is durable, over the last 10 to 20 s, in microseconds.
    pub commit_p50_us: u64,
    /// What 99 of 100 batches stayed below.
    pub commit_p99_us: u64,
    /// Batches that these two figures are of; 0 when none became durable, and then they are 0 too.
    pub commits_measured: u64,
}

/// How long the turns of one shard took that had something to do, over the last 10 to 20 s: nobody else is served on the
/// shard meanwhile. Time by the clock, with what the system took of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TurnFigures {
    /// The median, in microseconds.
    pub p50_us: u64,
    /// 99 of 100 stayed below.
    pub p99_us: u64,
    /// 999 of 1,000 stayed below.
    pub p999_us: u64,
    /// The longest one.
    pub longest_us: u64,
    /// Turns that these figures are of; 0 when there was none, and then they are 0 too.
    pub measured: u64,
}
