//! A shard's side towards other nodes: what it sends, hears, pulls and tells them.
//!
//! Performs the effects of a cluster: raft messages and messages between groups leave with one write a link and turn, a
//! role becomes the view that routers look at, a wish for a snapshot becomes a pull, whose file is then loaded here piece by
//! piece, beside the shard's other duties. Never decides who leads or what is true.

use crate::doorbell::Doorbell;
use crate::links::ShardMesh;
use crate::peer::hub::{Appointment, Notice};
use crate::peer::raft_links::RaftLinks;
use crate::peer::snapshots::{Pull, PullSettings};
use shards::effect::{Effects, SnapshotFetch};
use shards::event::Event;
use shards::ids::{GroupId, NodeNumber, ReplicaId};
use shards::index::set::IndexSettings;
use shards::shard::image::SnapshotIntake;
use shards::state::SessionLimits;
use shards::storage::snapshots::snapshot_file_name;
use shards::txn::message::{GroupMessage, Message};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// Bytes of a pulled snapshot that are loaded in one turn: well below a millisecond's worth.
const LOAD_BYTES: usize = 64 << 10;

/// See the module's head.
pub struct PeerSide {
    group: GroupId,
    links: RaftLinks,
    pull_settings: PullSettings,
    intake_settings: IntakeSettings,
    pull: Option<Pull>,
    loading: Option<Loading>,
    relayed: Vec<GroupMessage>,
}

/// What a pulled snapshot is loaded with.
#[derive(Clone, Copy, Debug)]
pub struct IntakeSettings {
    /// Limits of retry sessions.
    pub sessions: SessionLimits,
    /// What the operator says about indexes.
    pub indexes: IndexSettings,
}

/// A pulled snapshot on its way into memory.
struct Loading {
    index: u64,
    file: File,
    intake: SnapshotIntake,
    buffer: Vec<u8>,
}

impl PeerSide {
    /// The side of a group's shard.
    pub fn new(
        group: GroupId,
        links: RaftLinks,
        pull_settings: PullSettings,
        intake_settings: IntakeSettings,
    ) -> Self {
        Self { group, links, pull_settings, intake_settings, pull: None, loading: None, relayed: Vec::new() }
    }

    /// This node's replica of the group by the meta state.
    pub fn appointment(&self) -> Option<Appointment> {
        self.links.hub().appointment(self.group)
    }

    /// The replica that a start finds here.
    ///
    /// # Errors
    /// When the shard's directory cannot be read.
    pub fn found_at_start(&self) -> std::io::Result<Option<Appointment>> {
        self.links.hub().found_at_start(self.group)
    }

    /// The newest meta state that this node knows.
    pub(super) fn meta(&self) -> std::sync::Arc<shards::meta::Meta> {
        self.links.hub().nodes.meta()
    }

    /// Where the shard's files lie.
    pub(super) fn shard_path(&self) -> std::path::PathBuf {
        self.links.hub().shard_path(self.group)
    }

    /// From now on messages for this replica are for the engine; 0 for none.
    pub fn serve_replica(&mut self, replica: ReplicaId) {
        self.links.serve_replica(replica);
        if replica.0 == 0 {
            (self.pull, self.loading) = (None, None);
        }
    }

    /// Tells group 0 that this node's replica of the group has lost its log. To be said again until there is another one.
    pub(super) fn tell_lost(&mut self, lost: ReplicaId, mesh: &mut ShardMesh<GroupMessage>) {
        let message = GroupMessage { from: self.group, to: GroupId(0), body: Message::Lost(lost) };
        // Said to this very shard, it concerns nobody: the leader of a group has not lost its log.
        let mut events = Vec::new();
        self.links.say(message, &mut events, &mut self.relayed);
        for message in self.relayed.drain(..) {
            mesh.send(message.to.0 as usize, Box::new(message));
        }
        mesh.flush();
        self.links.flush();
    }

    /// Notes that the directory of a damaged replica was renamed.
    pub fn was_set_aside(&self, name: String) {
        self.links.hub().was_set_aside(name);
    }

    /// Copies that the group has by the meta state.
    pub fn copies(&self) -> usize {
        let meta = self.links.hub().nodes.meta();
        meta.groups.get(self.group.0 as usize).map_or(0, |placement| placement.replicas.len())
    }

    /// Takes what came from other nodes: events for the engine, and messages for other groups of this node.
    pub(super) fn gather(&mut self, events: &mut Vec<Event>, mesh: &mut ShardMesh<GroupMessage>) {
        self.links.receive(events, &mut self.relayed);
        for message in self.relayed.drain(..) {
            mesh.send(message.to.0 as usize, Box::new(message));
        }
        mesh.flush();
        if let Some((index, result)) = self.links.take_pulled() {
            self.pulled(index, result, events);
        }
        if let Some(loading) = &mut self.loading
            && let Some(image) = loading.go_on().transpose()
        {
            let index = loading.index;
            self.loading = None;
            events.push(Event::SnapshotFetched { index, image });
        }
    }

    /// The newest term of its group that this node knows of.
    pub(super) fn known_term(&self) -> u64 {
        self.links.hub().view.leader(self.group).term
    }

    /// Performs what concerns other nodes. Messages for groups that this node leads go by the mesh.
    pub(super) fn perform(&mut self, effects: &mut Effects, mesh: &mut ShardMesh<GroupMessage>) {
        for message in effects.raft.drain(..) {
            self.links.send_raft(message);
        }
        if let Some(role) = effects.role.take()
            && self.links.hub().view.learn_role(self.group, &role)
        {
            self.links.hub().notice(Notice::Leader);
            if self.links.hub().view.leader(self.group).node.0 != 0 {
                self.links.hub().leader_changed(self.group);
            }
        }
        let (view, me) = (&self.links.hub().view, self.links.hub().me);
        let (view, me) = (std::sync::Arc::clone(view), me);
        for message in effects.messages.drain(..) {
            match view.leader(message.to).node {
                // Nobody is known to lead it; its sender says it again.
                NodeNumber(0) => {}
                node if node == me => mesh.send(message.to.0 as usize, Box::new(message)),
                node => self.links.send_group(node, message),
            }
        }
        self.links.flush();
        if let Some(meta) = effects.meta.take() {
            self.links.hub().notice(Notice::Meta(meta));
        }
        if let Some(wish) = effects.fetch.take() {
            self.fetch(wish);
        }
    }

    /// Whether the engine has something to hear that no file descriptor tells of.
    pub(super) fn has_work(&self) -> bool {
        self.loading.is_some() || self.links.has_events()
    }

    /// Readable when a link has something.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.links.fd()
    }

    /// Sleeps until the bell is rung, a link has something, or the time is over.
    pub(super) fn wait(&self, bell: &Doorbell, at_most: Duration) -> io::Result<bool> {
        bell.wait_beside(self.links.fd(), at_most)
    }

    fn fetch(&mut self, wish: SnapshotFetch) {
        let is_loading = self.loading.as_ref().is_some_and(|loading| loading.index >= wish.index);
        if is_loading || self.pull.as_ref().is_some_and(|pull| pull.serves(&wish)) {
            return;
        }
        tracing::info!(shard = self.group.0, from = wish.node.0, index = wish.index, "pulling a snapshot");
        // One that was under way is given up by being dropped.
        self.pull = Pull::start(self.links.hub(), self.group, wish, self.pull_settings.clone())
            .inspect_err(|error| {
                tracing::error!(shard = self.group.0, "no thread to pull a snapshot: {error}");
            })
            .ok();
    }

    fn pulled(&mut self, index: u64, result: Result<(), String>, events: &mut Vec<Event>) {
        self.pull = None;
        let path = self.links.hub().shard_path(self.group).join(snapshot_file_name(index));
        let opened =
            result.and_then(|()| File::open(&path).map_err(|error| format!("{}: {error}", path.display())));
        match opened {
            Ok(file) => {
                let IntakeSettings { sessions, indexes } = self.intake_settings;
                let intake = SnapshotIntake::new(self.pull_settings.identity, sessions).with_indexes(indexes);
                self.loading = Some(Loading { index, file, intake, buffer: vec![0; LOAD_BYTES] });
            }
            Err(text) => events.push(Event::SnapshotFetched { index, image: Err(text) }),
        }
    }
}

impl Loading {
    /// Loads the next piece; the whole at the end. The file was checked before, so a failure is the disk's.
    fn go_on(&mut self) -> Result<Option<Box<shards::shard::image::SnapshotImage>>, String> {
        let read = self.file.read(&mut self.buffer).map_err(|error| error.to_string())?;
        if read > 0 {
            self.intake.feed(&self.buffer[..read]).map_err(|error| error.to_string())?;
            return Ok(None);
        }
        let identity = self.intake.identity();
        let empty = SnapshotIntake::new(identity, SessionLimits::default());
        let whole = std::mem::replace(&mut self.intake, empty);
        whole.finish().map(|image| Some(Box::new(image))).map_err(|error| error.to_string())
    }
}
