//! Whether this node belongs to a cluster, and its way into one: before any shard starts.
//!
//! A node is in a cluster when its data directory says so, when it is told of peers, or when it is given a cluster port (then
//! others can be added to it). A first start with peers waits here until the cluster is founded. What is settled here is
//! durable before the rest of the server sees it.

use crate::clock::{self, Clock};
use crate::disk::data_dir::{self, DataDirError, DataMeta};
use crate::doorbell::Doorbell;
use crate::fatal::{self, Fatal};
use crate::links::{self, RouterLink, ShardLink};
use crate::peer::cluster_file::{self, ClusterFile, Membership};
use crate::peer::control;
use crate::peer::counters::PeerCounters;
use crate::peer::dial;
use crate::peer::forward::{Dial, Forward, ForwardParts, PeerStream};
use crate::peer::founding::{self, Wish, file_failed};
use crate::peer::hub::{Hub, News, ShardDoor};
use crate::peer::listener;
use crate::peer::raft_links::RaftLinks;
use crate::peer::station::{Standing, Station};
use crate::router::ServerFacts;
use crate::tuning::peers::{self, CLUSTER_PORT_OFFSET};
use crate::tuning::{Tuning, WalSync};
use shards::ids::{GroupId, NodeNumber};
use shards::index::set::IndexSettings;
use shards::peer::founding::Status;
use shards::peer::hello::{Card, Purpose};
use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Time at the end for requests of other nodes that are under way, in microseconds.
const FORWARD_LINGER_US: u64 = 1_000_000;

/// What came of it.
pub(super) enum Settled {
    /// A node that is alone and has no cluster port.
    Alone,
    /// A member of a cluster.
    Member(Box<Member>),
    /// It was asked to stop while it waited.
    Stopped,
}

/// A member before its threads run.
pub(super) struct Member {
    /// What the data directory says.
    pub(super) file: ClusterFile,
    card: Card,
    counters: Arc<PeerCounters>,
    cluster_port: ClusterPort,
}

/// The cluster port: bound, or already answered at since the founding.
enum ClusterPort {
    Bound(Vec<TcpListener>),
    Open(Arc<Station>),
}

/// What the threads of a member need of the cluster.
pub(super) struct Joined {
    /// Shared by all of them.
    pub(super) hub: Arc<Hub>,
    /// The other ends of the shards' doors, by shard.
    pub(super) inboxes: Vec<Receiver<News>>,
    /// Where to put the facts that INFO tells, once they are made.
    pub(super) facts: Arc<OnceLock<Arc<ServerFacts>>>,
}

/// Finds out what this node is, and waits for its cluster where there is one to come.
pub(super) fn settle(
    tuning: &Tuning,
    shards: u32,
    is_stopped: impl FnMut() -> bool,
) -> Result<Settled, Fatal> {
    let path = tuning.data_dir();
    let failed = |error: DataDirError| super::directory_failed(&path, error);
    let stored = if path.exists() { read(&path)? } else { None };
    let is_member = stored.as_ref().is_some_and(|file| file.membership.is_some());
    if stored.is_none() && tuning.cluster.peers.is_empty() && tuning.cluster.port == 0 {
        return Ok(Settled::Alone);
    }
    if tuning.wal.sync != WalSync::Always {
        return Err(Fatal::Configuration(format!(
            "wal.sync = \"{}\" is not allowed in a cluster: a replica may not forget what it acknowledged. Use \"always\".",
            tuning.wal.sync
        )));
    }
    let held = data_dir::hold(&path).map_err(failed)?;
    // What another process wrote before the lock was had counts.
    let stored = read(&path)?;
    let made = data_dir::look(&path).map_err(failed)?;
    let settled = match (stored, made) {
        (Some(file), made) if is_member => resume(tuning, &path, file, made.as_ref()),
        (stored, None) => first_start(tuning, &path, stored, shards, is_stopped),
        (_, Some(made)) => open_up(tuning, &path, &made),
    };
    drop(held);
    settled
}

fn read(path: &Path) -> Result<Option<ClusterFile>, Fatal> {
    cluster_file::read(path).map_err(|error| file_failed(path, error))
}

/// A member that was one before.
fn resume(
    tuning: &Tuning,
    path: &Path,
    file: ClusterFile,
    made: Option<&DataMeta>,
) -> Result<Settled, Fatal> {
    let membership = file.membership.as_ref().expect("the caller looked");
    let mismatch =
        |text: String| Fatal::DirectoryMismatch(format!("The data directory {}: {text}", path.display()));
    if made
        .is_some_and(|made| made.cluster != membership.meta.cluster || made.incarnation != file.incarnation)
    {
        return Err(mismatch(
            "its files strand.meta and cluster belong to different nodes; restore them together.".to_owned(),
        ));
    }
    let known = membership.meta.nodes.iter().find(|node| node.number == membership.me);
    let known = known.expect("the file was checked to have this node");
    if known.id != tuning.server.id {
        let asked = &tuning.server.id;
        return Err(mismatch(format!(
            "it belongs to node {:?}, not {asked:?}: start with --id {}.",
            known.id, known.id
        )));
    }
    let port = match tuning.cluster.port {
        0 if tuning.server.port == known.port => known.cluster_port,
        _ => wished_port(tuning)?,
    };
    let card = Card {
        number: membership.me.0,
        incarnation: file.incarnation,
        shards: membership.meta.groups.len() as u32,
        ..card(tuning, port, 0)
    };
    let bound = listener::bind(&tuning.server.host, port)?;
    tracing::info!(
        cluster = %format_args!("{:032x}", membership.meta.cluster),
        number = membership.me.0,
        cluster_port = port,
        "a member of a cluster"
    );
    let cluster_port = ClusterPort::Bound(bound);
    Ok(Settled::Member(Box::new(Member { file, card, counters: Arc::default(), cluster_port })))
}

/// A blank node: it founds a cluster with others, or one of itself alone.
fn first_start(
    tuning: &Tuning,
    path: &Path,
    stored: Option<ClusterFile>,
    shards: u32,
    is_stopped: impl FnMut() -> bool,
) -> Result<Settled, Fatal> {
    if stored.is_some() && tuning.cluster.peers.is_empty() {
        return Err(Fatal::Configuration(format!(
            "The first start of this node was not finished: give it the same --peers again, or remove {}.",
            path.display()
        )));
    }
    let blank = match stored {
        Some(blank) => blank,
        None => {
            let (incarnation, log_key) = (clock::random_u128(), clock::random_u64());
            let blank = ClusterFile { incarnation, log_key, membership: None };
            cluster_file::write(path, &blank).map_err(|error| file_failed(path, error))?;
            blank
        }
    };
    let port = wished_port(tuning)?;
    let card = Card { incarnation: blank.incarnation, ..card(tuning, port, shards) };
    let wish = wish(tuning, card.clone());
    let bound = listener::bind(&tuning.server.host, port)?;
    let counters: Arc<PeerCounters> = Arc::default();
    if wish.peers.is_empty() {
        let file = founding::found_alone(path, &blank, clock::random_u128(), false, &wish)?;
        return Ok(member(file, card, counters, ClusterPort::Bound(bound)));
    }
    // What others hear before the first round is over: nothing is seen yet, and the rest is as it stays.
    let status = Status {
        missing: wish.peers.len() as u16,
        shards: card.shards,
        replicas: wish.replicas,
        is_primary: wish.is_primary,
        ..Status::default()
    };
    let station = Station::new(Standing::Blank(card.clone(), status), Arc::clone(&counters));
    listener::start(bound, &station)?;
    match founding::become_member(path, &blank, &wish, &station, is_stopped)? {
        Some(file) => Ok(member(file, card, counters, ClusterPort::Open(station))),
        None => Ok(Settled::Stopped),
    }
}

/// A node that was alone becomes a cluster of one, so that others can be added.
fn open_up(tuning: &Tuning, path: &Path, made: &DataMeta) -> Result<Settled, Fatal> {
    if !tuning.cluster.peers.is_empty() {
        return Err(Fatal::DirectoryMismatch(format!(
            "The data directory {} belongs to a node that ran alone, so it cannot found a cluster with others. Start it with \
             --cluster-port and without --peers and add the others with ADD_NODE, or give another --data-dir.",
            path.display()
        )));
    }
    let port = wished_port(tuning)?;
    let card = Card { incarnation: made.incarnation, ..card(tuning, port, made.shards) };
    let bound = listener::bind(&tuning.server.host, port)?;
    let blank = ClusterFile { incarnation: made.incarnation, log_key: made.log_key, membership: None };
    let file = founding::found_alone(path, &blank, made.cluster, true, &wish(tuning, card.clone()))?;
    Ok(member(file, card, Arc::default(), ClusterPort::Bound(bound)))
}

fn member(file: ClusterFile, card: Card, counters: Arc<PeerCounters>, cluster_port: ClusterPort) -> Settled {
    let membership = file.membership.as_ref().expect("it was just given one");
    let card = Card { number: membership.me.0, shards: membership.meta.groups.len() as u32, ..card };
    Settled::Member(Box::new(Member { file, card, counters, cluster_port }))
}

fn wish(tuning: &Tuning, card: Card) -> Wish {
    let parsed = tuning.cluster.peers.iter().map(|entry| peers::parse(entry));
    Wish {
        card,
        peers: parsed.collect::<Result<_, _>>().expect("the configuration was checked"),
        replicas: tuning.cluster.replicas,
        is_primary: tuning.cluster.primary,
        is_shards_stated: tuning.server.shards != 0,
    }
}

fn card(tuning: &Tuning, cluster_port: u16, shards: u32) -> Card {
    let (server, advertised) = (&tuning.server, &tuning.cluster.advertise);
    Card {
        id: server.id.clone(),
        host: if advertised.is_empty() { server.host.clone() } else { advertised.clone() },
        port: server.port,
        cluster_port,
        shards,
        ..Card::default()
    }
}

fn wished_port(tuning: &Tuning) -> Result<u16, Fatal> {
    match tuning.cluster.port {
        0 => tuning.server.port.checked_add(CLUSTER_PORT_OFFSET).ok_or_else(|| {
            Fatal::Configuration("server.port plus 1000 is no port: give --cluster-port.".to_owned())
        }),
        port => Ok(port),
    }
}

impl Member {
    /// What the data directory is made as, if it is not made yet.
    pub(super) fn data_meta(&self, tuning: &Tuning) -> DataMeta {
        let Membership { meta, .. } = self.file.membership.as_ref().expect("a member has its place");
        DataMeta {
            cluster: meta.cluster,
            incarnation: self.file.incarnation,
            log_key: self.file.log_key,
            node_id: tuning.server.id.clone(),
            shards: meta.groups.len() as u32,
            segment_bytes: u64::from(tuning.wal.segment_mib) << 20,
        }
    }

    /// Starts the threads that speak to other nodes and lets them in.
    pub(super) fn join(
        self,
        tuning: &Tuning,
        directory: &Path,
        shard_bells: &[Arc<Doorbell>],
    ) -> Result<Joined, Fatal> {
        let Member { file, card, counters, cluster_port } = self;
        let (doors, inboxes) = shard_bells.iter().map(|bell| ShardDoor::new(Arc::clone(bell))).unzip();
        let (notices, noticed) = control::notices();
        let advertised = tuning.cluster.advertise.clone();
        let path = directory.to_path_buf();
        let hub = Hub::new(path, file, card, advertised, doors, Arc::clone(&counters), notices);
        let facts = Arc::new(OnceLock::new());
        control::start(&hub, noticed, Arc::clone(&facts))?;
        match cluster_port {
            ClusterPort::Open(station) => station.becomes(Standing::Member(Arc::clone(&hub))),
            ClusterPort::Bound(listeners) => {
                listener::start(listeners, &Station::new(Standing::Member(Arc::clone(&hub)), counters))?;
            }
        }
        Ok(Joined { hub, inboxes, facts })
    }
}

/// A shard's side towards other nodes.
pub(super) fn peer_side(
    hub: &Arc<Hub>,
    tuning: &Tuning,
    indexes: IndexSettings,
    number: u32,
    inbox: Receiver<News>,
) -> Result<crate::driver::PeerSide, Fatal> {
    let group = GroupId(number);
    let links = RaftLinks::new(Arc::clone(hub), group, inbox)
        .map_err(|source| Fatal::Start { thread: format!("the links of shard {number}"), source })?;
    let pull = crate::peer::snapshots::PullSettings {
        identity: shards::shard::image::ImageIdentity { cluster: hub.cluster, shard: number, group },
        bytes_per_s_max: u64::from(tuning.cluster.snapshot_mib_per_s_max) << 20,
    };
    let intake = crate::driver::IntakeSettings { sessions: super::settings::sessions(tuning), indexes };
    Ok(crate::driver::PeerSide::new(group, links, pull, intake))
}

/// Dials for the thread that forwards; called on its helper threads.
struct ForwardDial(Arc<Hub>);

impl Dial for ForwardDial {
    fn dial(&self, node: NodeNumber) -> io::Result<PeerStream> {
        let made = dial::member(&self.0, node, Purpose::Forward);
        made.map(|talk| talk.into_socket(node).into()).map_err(|error| io::Error::other(error.to_string()))
    }
}

/// The links from every router to the thread that forwards, one a group: the routers' ends and that thread's.
#[allow(clippy::type_complexity, reason = "the two ends of every link, by their owners")]
pub(super) fn forward_links(
    groups: usize,
    outstanding_max: usize,
    router_bells: &[Arc<Doorbell>],
    bell: &Arc<Doorbell>,
) -> (Vec<Vec<ShardLink>>, Vec<Vec<RouterLink>>) {
    let of_router = |router_bell: &Arc<Doorbell>| {
        let link = |_| links::link(outstanding_max, Arc::clone(router_bell), Arc::clone(bell));
        (0..groups).map(link).unzip()
    };
    router_bells.iter().map(of_router).unzip()
}

/// Starts the thread that forwards. It goes on until `stop` says so, and then for a moment, until nothing is under way.
pub(super) fn spawn_forward(
    hub: &Arc<Hub>,
    routers: Vec<Vec<RouterLink>>,
    shards: Vec<ShardLink>,
    bell: Arc<Doorbell>,
    stop: Arc<AtomicBool>,
) -> Result<std::thread::JoinHandle<()>, Fatal> {
    let accepted = hub.forward_sockets(Arc::clone(&bell));
    let dial = Arc::new(ForwardDial(Arc::clone(hub)));
    let parts = ForwardParts { routers, shards, bell, dial, accepted };
    let run = move || {
        let ran = Forward::new(parts).and_then(|mut forward| {
            forward.run(|| stop.load(Ordering::Acquire))?;
            let clock = Clock::start();
            while !forward.is_quiet() && clock.elapsed_us() < FORWARD_LINGER_US {
                if !forward.turn()? {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            Ok(())
        });
        if let Err(error) = ran {
            let detail = format!("its sockets cannot be waited for: {error}");
            fatal::exit(&Fatal::ThreadLost { thread: "forward".to_owned(), detail });
        }
    };
    let spawned = std::thread::Builder::new().name("forward".to_owned()).spawn(run);
    spawned.map_err(|source| Fatal::Start { thread: "forward".to_owned(), source })
}
