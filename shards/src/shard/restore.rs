//! A snapshot of another replica in place of a log that was cut there.
//!
//! raft's snapshot message tells only index, term and members. It is held while the file is fetched; when that is on this
//! node's disk, durable and checked, its content takes the place of the state and raft restores from the metadata of what
//! was really fetched, which may be newer. The log then begins anew behind it, and nothing is acknowledged before that
//! is durable. Whatever waited on the old state is answered first.

use super::image::SnapshotImage;
use super::outbox::reply_failure;
use super::{Shard, ShardFault, searches};
use crate::command::answer::Failure;
use crate::consensus::storage::{SnapshotOffer, is_member};
use crate::effect::{Effects, SnapshotEffect, SnapshotFetch};
use crate::ids::{NodeNumber, ReplicaId};
use raft::prelude::{Message, MessageType};

/// A snapshot on its way here.
#[derive(Debug)]
pub(super) struct Fetching {
    /// Whose.
    node: NodeNumber,
    /// Index of the last entry in it, at least.
    index: u64,
    /// What it holds, once it is here.
    image: Option<Box<SnapshotImage>>,
}

impl Shard {
    /// Another replica of this group says something.
    pub(super) fn hear_raft(&mut self, message: Message, effects: &mut Effects) -> Result<(), ShardFault> {
        if message.get_msg_type() == MessageType::MsgSnapshot {
            let metadata = message.get_snapshot().get_metadata();
            let (index, term) = (metadata.index, metadata.term);
            if index > self.group.commit_index() && !self.group.has_entry(index, term) {
                self.wish_for_snapshot(ReplicaId(message.from).node(), index, effects);
                return Ok(());
            }
        }
        self.group.step(message)?;
        self.follow_role(effects);
        Ok(())
    }

    fn wish_for_snapshot(&mut self, node: NodeNumber, index: u64, effects: &mut Effects) {
        if self.fetching.as_ref().is_some_and(|fetching| fetching.node == node || fetching.image.is_some()) {
            // It is on its way, or here and about to be restored.
            return;
        }
        self.fetching = Some(Fetching { node, index, image: None });
        effects.fetch = Some(SnapshotFetch { node, index });
    }

    /// The snapshot is here, or it could not be had: then the leader says again that one is needed.
    pub(super) fn snapshot_fetched(
        &mut self,
        index: u64,
        image: Result<Box<SnapshotImage>, String>,
        effects: &mut Effects,
    ) -> Result<(), ShardFault> {
        let Some(fetching) = &mut self.fetching else { return Ok(()) };
        match image {
            Ok(image) if image.applied_index == index && index >= fetching.index => {
                fetching.image = Some(image);
                self.restore_fetched(effects)
            }
            Ok(_) | Err(_) => {
                self.fetching = None;
                self.counters.fetches_failed += 1;
                Ok(())
            }
        }
    }

    /// Restores from the snapshot that is here, as soon as this replica follows a leader.
    pub(super) fn restore_fetched(&mut self, effects: &mut Effects) -> Result<(), ShardFault> {
        let Some(image) = self.fetching.as_mut().and_then(|fetching| fetching.image.take()) else {
            return Ok(());
        };
        let leader = self.group.leader();
        let (index, term) = (image.applied_index, image.applied_term);
        let is_of_use = index > self.group.commit_index()
            && !self.group.has_entry(index, term)
            && image.members.as_ref().is_some_and(|members| is_member(members, self.group.replica().0));
        if !is_of_use || leader == self.group.replica() {
            self.fetching = None;
            return Ok(());
        }
        if leader == ReplicaId(0) {
            // raft takes a snapshot only from a leader; a later tick tries again.
            self.fetching.as_mut().expect("it was there just now").image = Some(image);
            return Ok(());
        }
        self.fetching = None;
        let mut message = Message { from: leader.0, to: self.group.replica().0, ..Message::default() };
        message.set_msg_type(MessageType::MsgSnapshot);
        message.term = self.group.term();
        let metadata = message.mut_snapshot().mut_metadata();
        (metadata.index, metadata.term) = (index, term);
        *metadata.mut_conf_state() = image.members.clone().unwrap_or_default();
        self.group.step(message)?;
        assert!(self.group.is_restoring(index), "raft restores from a snapshot that is newer than its log");
        self.follow_role(effects);
        self.take_over(*image, effects);
        Ok(())
    }

    /// The snapshot's content takes the place of the state.
    fn take_over(&mut self, image: SnapshotImage, effects: &mut Effects) {
        self.forget_proposed(effects);
        self.forget_transactions(effects);
        if self.snapshots.is_running() {
            self.abort_snapshot();
            effects.snapshot.push(SnapshotEffect::Drop);
        }
        let (settings, replica) = (self.config.indexes, self.group.replica());
        let searches =
            searches::Searches::restored(image.catalog, image.indexes, settings, self.now, replica);
        let before = std::mem::replace(&mut self.searches, searches);
        for (router, token) in before.into_waiting() {
            reply_failure(effects, router, token, Failure::Timeout { unknown: false });
        }
        self.cluster.take_over(image.meta);
        self.state = image.state;
        self.state.keys.set_limits(self.config.tables);
        self.txns = image.txns;
        self.rebuild_locks();
        (self.applied, self.applying) = (image.applied_index, image.applied_index);
        self.applied_term = image.applied_term;
        self.stamp = self.stamp.max(image.stamp);
        self.stamp_applied = image.stamp;
        self.epoch = self.epoch.max(image.epoch);
        self.expiry = super::expiry::Expiry::default();
        self.snapshots.fetched(image.applied_index, self.now);
        self.group.offer_snapshot(SnapshotOffer {
            index: image.applied_index,
            term: image.applied_term,
            conf_state: image.members.unwrap_or_default(),
        });
        self.counters.restores += 1;
    }
}
