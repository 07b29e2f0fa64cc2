//! What the threads of this room share: who this node is, what it knows of the others, and the doors of its shards.
//!
//! Cold: locks here are taken by the control threads, by dials and by commands that describe the cluster, never for a
//! message or a request. The meta state is stored durably before anybody hears that this node has it, and only the newest
//! counts.

use super::cluster_file::{self, ClusterFile, Membership};
use super::counters::{PeerCounters, count};
use super::forward::PeerStream;
use super::nodes::Nodes;
use super::socket::Socket;
use super::view::ClusterView;
use super::whereabouts::Whereabouts;
use crate::clock::Clock;
use crate::disk::replica_dir;
use crate::doorbell::Doorbell;
use crate::fatal::{self, Fatal};
use shards::ids::{GroupId, Millis, NodeNumber, ReplicaId};
use shards::meta::{Meta, NodeState};
use shards::peer::hello::{Card, Purpose};
use shards::shard::image::Founding;
use shards::txn::message::{GroupMessage, Message};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// News that may wait at a shard: a few for each node and each change of the meta state.
const NEWS_MAX: usize = 4096;

/// So long a removed node stays, so that whoever had it removed hears that it is done.
const REMOVED_STAYS_MS: u64 = 1000;
/// Time between two looks at whether leadership is handed over.
const RESIGN_LOOK: Duration = Duration::from_millis(5);

/// A replica that this node has, by the meta state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appointment {
    /// The replica.
    pub replica: ReplicaId,
    /// How its log begins.
    pub founding: Founding,
    /// Whether it should lead.
    pub is_preferred: bool,
}

/// What helper threads bring to a shard's thread.
#[derive(Debug)]
pub enum News {
    /// Another node has made a raft connection to this shard.
    Arrived(Socket),
    /// A connection that this shard asked for, or why there is none.
    Dialled(NodeNumber, Result<Socket, String>),
    /// Another replica leads a group.
    Leader(GroupId),
    /// The cluster's meta state is newer.
    Meta(Arc<Meta>),
    /// The process wants to stop by this time: hand leadership over.
    Resign(Millis),
    /// The snapshot at this index is in its file, durable and checked, or why not.
    Pulled(u64, Result<(), String>),
    /// To be said to the leader of the group that it is for.
    Say(GroupMessage),
}

/// Where news for a shard are handed in.
#[derive(Clone, Debug)]
pub struct ShardDoor {
    news: SyncSender<News>,
    bell: Arc<Doorbell>,
}

impl ShardDoor {
    /// A door and where its shard takes the news out.
    pub fn new(bell: Arc<Doorbell>) -> (Self, Receiver<News>) {
        let (news, inbox) = sync_channel(NEWS_MAX);
        (Self { news, bell }, inbox)
    }

    /// Hands news in and wakes the shard; false when it has too many already, or is gone.
    pub fn hand_in(&self, news: News) -> bool {
        let handed = match self.news.try_send(news) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        };
        self.bell.ring();
        handed
    }
}

/// What is asked of the thread that speaks to one node.
pub enum Task {
    /// Make a connection for this purpose and give it to whoever asked.
    Dial(Purpose, Box<dyn FnOnce(Result<Socket, String>) + Send>),
    /// Say now what is new.
    Speak,
}

/// Something that concerns every node.
pub enum Notice {
    /// Group 0 has changed the meta state.
    Meta(Arc<Meta>),
    /// A group of this node has another leader.
    Leader,
}

/// See the module's head.
pub struct Hub {
    /// This node.
    pub me: NodeNumber,
    /// Its cluster.
    pub cluster: u128,
    /// What it says of itself.
    pub card: Card,
    /// The meta state and who was heard when.
    pub nodes: Arc<Nodes>,
    /// Who leads what.
    pub view: Arc<ClusterView>,
    /// Figures.
    pub counters: Arc<PeerCounters>,
    /// The clock of `nodes`.
    pub clock: Clock,
    directory: PathBuf,
    whereabouts: Whereabouts,
    /// The address from which this node speaks to others.
    seen_from: Mutex<Option<IpAddr>>,
    /// Directories of replicas that were damaged and set aside.
    set_aside: Mutex<Vec<String>>,
    stored: Mutex<ClusterFile>,
    doors: Vec<ShardDoor>,
    forward_door: Mutex<Option<(Sender<PeerStream>, Arc<Doorbell>)>>,
    workers: Mutex<BTreeMap<NodeNumber, Sender<Task>>>,
    /// Where nodes were last heard to be, when that differs from the meta state: host and cluster port.
    addresses: Mutex<BTreeMap<NodeNumber, (String, u16)>>,
    /// Version of the meta state that each node said it has.
    versions: Mutex<BTreeMap<NodeNumber, u64>>,
    notices: Sender<Notice>,
    is_stopping: AtomicBool,
    /// When a member first said that this node was removed, and how the process stops then.
    removed_at: OnceLock<Millis>,
    stop: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { me, cluster, .. } = self;
        f.debug_struct("Hub").field("me", me).field("cluster", cluster).finish_non_exhaustive()
    }
}

impl Hub {
    /// The hub of a member. `stored` is what the data directory says.
    ///
    /// # Panics
    /// When `stored` has no membership: a blank node has no hub.
    pub fn new(
        directory: PathBuf,
        stored: ClusterFile,
        card: Card,
        advertised: String,
        doors: Vec<ShardDoor>,
        counters: Arc<PeerCounters>,
        notices: Sender<Notice>,
    ) -> Arc<Self> {
        let membership = stored.membership.clone().expect("only a member has a hub");
        let Membership { me, meta, .. } = membership;
        let Card { host, port, cluster_port, .. } = card.clone();
        let set_aside = replica_dir::list_set_aside(&directory);
        let groups = meta.groups.len();
        for door in &doors {
            door.hand_in(News::Meta(Arc::clone(&meta)));
        }
        Arc::new(Self {
            me,
            cluster: meta.cluster,
            card,
            view: ClusterView::new(me, groups),
            nodes: Nodes::new(meta),
            counters,
            clock: Clock::start(),
            directory,
            whereabouts: Whereabouts { advertised, host, port, cluster_port },
            seen_from: Mutex::new(None),
            set_aside: Mutex::new(set_aside),
            stored: Mutex::new(stored),
            doors,
            forward_door: Mutex::new(None),
            workers: Mutex::new(BTreeMap::new()),
            addresses: Mutex::new(BTreeMap::new()),
            versions: Mutex::new(BTreeMap::new()),
            notices,
            is_stopping: AtomicBool::new(false),
            removed_at: OnceLock::new(),
            stop: OnceLock::new(),
        })
    }

    /// Number of groups.
    pub fn groups(&self) -> u32 {
        self.view.groups() as u32
    }

    /// The door of a group's shard.
    pub fn door(&self, group: GroupId) -> &ShardDoor {
        &self.doors[group.0 as usize]
    }

    /// This node's replica of a group by the meta state.
    pub fn appointment(&self, group: GroupId) -> Option<Appointment> {
        let meta = self.nodes.meta();
        let replica = meta.replica_on(group, self.me)?;
        let stored = lock(&self.stored);
        let membership = stored.membership.as_ref().expect("only a member has a hub");
        let is_preferred =
            meta.groups.get(group.0 as usize).is_some_and(|placement| placement.preferred == replica);
        Some(Appointment { replica, founding: membership.founding(group, replica), is_preferred })
    }

    /// The replica that a start finds here: the one of the meta state, or else one whose files stand here. The meta state
    /// says what is wished for; a replica on its way out has its vote until the group's configuration has changed, and the
    /// others may need it.
    ///
    /// # Errors
    /// When the group's directory cannot be read.
    pub fn found_at_start(&self, group: GroupId) -> std::io::Result<Option<Appointment>> {
        if let Some(appointment) = self.appointment(group) {
            return Ok(Some(appointment));
        }
        let Some(held) = replica_dir::held(&self.shard_path(group))? else { return Ok(None) };
        let replica = ReplicaId::new(held, self.me);
        let stored = lock(&self.stored);
        let founding = stored.membership.as_ref().expect("only a member has a hub").founding(group, replica);
        // A directory that names no replica is the first one's, or nobody's on a node that came later.
        let is_first = matches!(founding, Founding::Alone | Founding::Voter { .. });
        Ok((held > 0 || is_first).then_some(Appointment { replica, founding, is_preferred: false }))
    }

    /// Has this done when the node turns out to have been removed from its cluster.
    pub fn when_removed(&self, stop: impl Fn() + Send + Sync + 'static) {
        // A second one would be a defect of the start, and the first goes on to hold.
        let _ = self.stop.set(Box::new(stop));
    }

    /// A member refuses this node because it was removed, which is for good. Nobody tells it any more who leads, so requests that
    /// it took would wait in vain: its clients are better off elsewhere.
    pub fn was_removed(&self, text: &str) {
        let now = self.clock.now();
        let since = self.removed_at.get_or_init(|| {
            tracing::error!("{text}: it stops. Its data directory is of no more use");
            now
        });
        if let (Some(stop), true) = (self.stop.get(), now.0 >= since.0 + REMOVED_STAYS_MS) {
            stop();
        }
    }

    /// Asks every shard to hand its leadership over until this time, and waits until none leads or the time is over.
    pub fn resign(&self, within: Duration) {
        let by = Millis(self.clock.now().0 + within.as_millis() as u64);
        for door in &self.doors {
            door.hand_in(News::Resign(by));
        }
        let has_others = |group: GroupId| {
            self.nodes
                .meta()
                .groups
                .get(group.0 as usize)
                .is_some_and(|placement| placement.replicas.len() > 1)
        };
        let leads = |group: &GroupId| self.view.leader(*group).node == self.me && has_others(*group);
        while self.clock.now() < by && (0..self.groups()).map(GroupId).any(|group| leads(&group)) {
            std::thread::sleep(RESIGN_LOOK);
        }
    }

    /// The first meta state, if this node was there.
    pub fn first_meta(&self) -> Option<Arc<Meta>> {
        lock(&self.stored).membership.as_ref().and_then(|membership| membership.first.clone())
    }

    /// Where a group's shard keeps its files.
    pub fn shard_path(&self, group: GroupId) -> PathBuf {
        crate::disk::data_dir::shard_path(&self.directory, group.0)
    }

    /// From now on forward connections of other nodes go to this receiver, whose owner has this bell.
    pub fn forward_sockets(&self, bell: Arc<Doorbell>) -> Receiver<PeerStream> {
        let (door, sockets) = std::sync::mpsc::channel();
        *lock(&self.forward_door) = Some((door, bell));
        sockets
    }

    /// Hands a forward connection to its owner; it is closed when there is none yet.
    pub fn hand_forward(&self, stream: PeerStream) {
        if let Some((door, bell)) = &*lock(&self.forward_door) {
            // The owner ends only when the server does.
            let _ = door.send(stream);
            bell.ring();
        }
    }

    /// Asks for a connection to a node; `reply` is called from another thread, and at once when the node is not known.
    pub fn dial(
        &self,
        node: NodeNumber,
        purpose: Purpose,
        reply: impl FnOnce(Result<Socket, String>) + Send + 'static,
    ) {
        let worker = lock(&self.workers).get(&node).cloned();
        let Some(worker) = worker else { return reply(Err("no such node is known".to_owned())) };
        if let Err(refused) = worker.send(Task::Dial(purpose, Box::new(reply)))
            && let Task::Dial(_, reply) = refused.0
        {
            reply(Err("the server stops".to_owned()));
        }
    }

    /// Asks for a raft connection from a group's shard to a node; it comes in as news.
    pub fn dial_raft(&self, node: NodeNumber, group: GroupId) {
        let door = self.door(group).clone();
        self.dial(node, Purpose::Raft(group), move |result| {
            if !door.hand_in(News::Dialled(node, result)) {
                tracing::warn!(
                    shard = group.0,
                    "a connection was not taken: the shard has too much to look at"
                );
            }
        });
    }

    /// Says something that concerns every node; never blocks.
    pub fn notice(&self, notice: Notice) {
        // Nobody listens any more when the server stops.
        let _ = self.notices.send(notice);
    }

    /// Tells the shards that another replica leads a group. A shard with too much to look at goes without: it says again
    /// what finds no answer.
    pub fn leader_changed(&self, group: GroupId) {
        for door in &self.doors {
            door.hand_in(News::Leader(group));
        }
    }

    /// Has the threads that speak to other nodes say now what is new.
    pub fn speak(&self) {
        for worker in lock(&self.workers).values() {
            // A worker that ended has nobody to speak to.
            let _ = worker.send(Task::Speak);
        }
    }

    /// Takes a newer meta state over: stored, told to the shards, told on. Blocks for the disk; whether it was newer.
    pub fn learn_meta(&self, meta: &Arc<Meta>) -> bool {
        let mut stored = lock(&self.stored);
        let membership = stored.membership.as_mut().expect("only a member has a hub");
        if meta.version <= membership.meta.version || meta.cluster != self.cluster {
            return false;
        }
        if meta.groups.len() != self.view.groups() || meta.nodes.iter().all(|node| node.number != self.me) {
            tracing::error!(
                version = meta.version,
                "a meta state that is not of this cluster's shape: not taken over"
            );
            return false;
        }
        membership.meta = Arc::clone(meta);
        if let Err(error) = cluster_file::write(&self.directory, &stored) {
            // What this node would say it knows would be forgotten by a restart.
            fatal::exit(&Fatal::Directory {
                path: self.directory.clone(),
                source: std::io::Error::other(error.to_string()),
            });
        }
        drop(stored);
        tracing::info!(version = meta.version, nodes = meta.nodes.len(), "the cluster's meta state changed");
        self.nodes.learn(meta);
        for door in &self.doors {
            door.hand_in(News::Meta(Arc::clone(meta)));
        }
        true
    }

    /// The nodes to speak to: all that are not gone, but this one.
    pub fn others(&self) -> Vec<NodeNumber> {
        let meta = self.nodes.meta();
        let others = meta.nodes.iter().filter(|node| node.state != NodeState::Gone && node.number != self.me);
        others.map(|node| node.number).collect()
    }

    /// Where a node's cluster port is, as last heard.
    pub fn address_of(&self, node: NodeNumber) -> Option<(String, u16)> {
        let meta = self.nodes.meta();
        let known = meta.node(node)?;
        let heard = lock(&self.addresses).get(&node).cloned();
        Some(heard.unwrap_or_else(|| (known.host.clone(), known.cluster_port)))
    }

    /// Notes where a node says it is; the host is the one that it was seen at.
    pub fn moved(&self, node: NodeNumber, host: &str, cluster_port: u16) {
        let meta = self.nodes.meta();
        let is_as_known =
            meta.node(node).is_some_and(|known| known.host == host && known.cluster_port == cluster_port);
        let heard = (host.to_owned(), cluster_port);
        let mut addresses = lock(&self.addresses);
        if is_as_known {
            addresses.remove(&node);
        } else if addresses.get(&node) != Some(&heard) {
            tracing::info!(node = node.0, host, cluster_port, "a node is at another address now");
            addresses.insert(node, heard);
        }
    }

    /// A node does not listen where it was heard to be, and is where the meta state says.
    pub fn is_not_there(&self, node: NodeNumber, heard: &(String, u16)) {
        let mut addresses = lock(&self.addresses);
        if addresses.get(&node) == Some(heard) {
            addresses.remove(&node);
        }
    }

    /// Notes the address from which this node speaks to others.
    pub fn speaks_from(&self, address: IpAddr) {
        *lock(&self.seen_from) = Some(address);
    }

    /// Tells group 0 where this node is reached, if the meta state says otherwise. To be said again until it does not.
    pub fn tell_whereabouts(&self) {
        let meta = self.nodes.meta();
        let seen_from = *lock(&self.seen_from);
        let news = meta.node(self.me).and_then(|known| self.whereabouts.news(known, seen_from));
        if let Some(address) = news {
            let body = Message::Moved(Box::new(address));
            // A shard that has too much to look at hears it the next time.
            self.door(GroupId(0)).hand_in(News::Say(GroupMessage { from: GroupId(0), to: GroupId(0), body }));
        }
    }

    /// Notes that a damaged replica's directory now has this name.
    pub fn was_set_aside(&self, name: String) {
        lock(&self.set_aside).push(name);
    }

    /// Directories of damaged replicas, for INFO.
    pub fn set_aside(&self) -> Vec<String> {
        lock(&self.set_aside).clone()
    }

    /// Notes which meta state a node has; it was heard just now.
    pub fn heard(&self, node: NodeNumber, meta_version: u64) {
        self.nodes.heard(node, self.clock.now());
        lock(&self.versions).insert(node, meta_version);
    }

    /// Whether a node is known to have an older meta state than this one, or never said.
    pub fn is_behind(&self, node: NodeNumber, version: u64) -> bool {
        lock(&self.versions).get(&node).is_none_or(|theirs| *theirs < version)
    }

    /// The threads that speak to other nodes, to be kept in step with the meta state.
    pub(super) fn workers(&self) -> MutexGuard<'_, BTreeMap<NodeNumber, Sender<Task>>> {
        lock(&self.workers)
    }

    /// Ends the threads of this room: those that speak to others at once, those that listen at their next frame.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Release);
        lock(&self.workers).clear();
    }

    /// Whether the server stops.
    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    /// Counts a message that was dropped.
    pub fn dropped(&self) {
        count(&self.counters.dropped);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panicking thread leaves is whole: every change is one insertion. The panic itself ends the process.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
