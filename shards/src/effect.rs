//! What a shard wants done: the only way out. The driver performs it, in the order of the fields' documents.

use crate::batch::{ReplyBatch, RequestBatch};
use crate::consensus::group::Append;
use crate::ids::{NodeNumber, ReplicaId, Sequence};
use crate::meta::Meta;
use crate::snapshot::{Chunk, Footer};
use crate::txn::message::GroupMessage;
use raft::prelude::Message as RaftMessage;
use std::sync::Arc;

/// Everything that one step wants done. The driver empties and reuses it.
#[derive(Debug, Default)]
pub struct Effects {
    /// Batches for the log, in order. They leave first.
    pub appends: Vec<Append>,
    /// Someone waits for the sync although the floor does not: sync now.
    pub sync_now: bool,
    /// Replies, by the number of the router.
    pub replies: Vec<ReplyBatch>,
    /// Messages to other groups, in order.
    pub messages: Vec<GroupMessage>,
    /// Work on the snapshot file, in order.
    pub snapshot: Vec<SnapshotEffect>,
    /// No batch of the log up to this one is needed any more.
    pub cut: Option<Sequence>,
    /// Emptied request batches, for their routers.
    pub returned: Vec<(u8, Box<RequestBatch>)>,
    /// Messages to other replicas of this group; to be sent now, in order, each to `ReplicaId(to).node()`. The engine holds
    /// back what must wait for a sync. Any of them may be lost.
    pub raft: Vec<RaftMessage>,
    /// Who leads, whenever that changed: for the view that routers look at.
    pub role: Option<Role>,
    /// A snapshot to be fetched from another replica's node, in place of an earlier wish.
    pub fetch: Option<SnapshotFetch>,
    /// The meta state changed here (group 0 only): to be stored and told to every node.
    pub meta: Option<Arc<Meta>>,
}

/// What a replica knows of its group's leader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Role {
    /// The current term.
    pub term: u64,
    /// The leader of that term; 0 while none is known.
    pub leader: ReplicaId,
    /// This replica leads and has applied everything from before its term.
    pub is_serving: bool,
}

/// A snapshot that this replica needs, since the log it would need is cut elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotFetch {
    /// Whose snapshot.
    pub node: NodeNumber,
    /// Index of the last entry in it, at least; a newer one is as good.
    pub index: u64,
}

/// One step in the writing of a snapshot file.
#[derive(Clone, Debug)]
pub enum SnapshotEffect {
    /// Start a new file for the state at this index; an unfinished one is dropped.
    Begin {
        /// Index of the last entry in the snapshot.
        index: u64,
    },
    /// Append these bytes to the file.
    Write(Chunk),
    /// Sync the file, read it back, compare what is in it with these sums from the state; if they are equal give the file
    /// its name and drop older ones, if not remove it.
    Finish(Footer),
    /// Give up and remove the file.
    Drop,
}

impl Effects {
    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.appends.is_empty()
            && !self.sync_now
            && self.replies.iter().all(|batch| batch.heads.is_empty())
            && self.messages.is_empty()
            && self.snapshot.is_empty()
            && self.cut.is_none()
            && self.returned.is_empty()
            && self.raft.is_empty()
            && self.role.is_none()
            && self.fetch.is_none()
            && self.meta.is_none()
    }

    /// The reply batch of a router.
    #[inline]
    pub fn replies_to(&mut self, router: u8) -> &mut ReplyBatch {
        let number = usize::from(router);
        if self.replies.len() <= number {
            self.replies.resize_with(number + 1, ReplyBatch::default);
        }
        &mut self.replies[number]
    }
}
