//! What a shard wants done: the only way out. The driver performs it, in the order of the fields' documents.

use crate::batch::{ReplyBatch, RequestBatch};
use crate::consensus::group::Append;
use crate::ids::Sequence;
use crate::snapshot::{Chunk, Footer};
use crate::txn::message::GroupMessage;

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
    }

    /// The reply batch of a router.
    pub fn replies_to(&mut self, router: u8) -> &mut ReplyBatch {
        let number = usize::from(router);
        if self.replies.len() <= number {
            self.replies.resize_with(number + 1, ReplyBatch::default);
        }
        &mut self.replies[number]
    }
}
