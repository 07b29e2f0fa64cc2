//! Starts a server and ends it in good order: cores, preflight, data directory, threads, signals.
//!
//! Shards recover in their own threads, all at once; clients are listened for before (a taken port fails early) and
//! served after every shard is ready. Decides nothing about data. Whatever a thread dies of ends the whole process.

mod cluster;
mod models;
mod recover;
mod settings;
pub mod survive;

use crate::clock::{self, Clock};
use crate::disk::data_dir::{DataDir, DataDirError, DataMeta};
use crate::disk::segment::SegmentPool;
use crate::disk::worker::{FileWorker, Wake, start_file_worker};
use crate::doorbell::Doorbell;
use crate::driver::{self, Seat, SnapshotFiles, Stage};
use crate::fatal::{self, Fatal};
use crate::front::{Front, Listeners, Wait};
use crate::links::{self, RouterLink, ShardLink, ShardMesh};
use crate::peer::hub::{Hub, News};
use crate::preflight;
use crate::router::{ClusterParts, Router, ServerFacts, StopHandle};
use crate::sys;
use crate::tuning::cores::{self, Deal};
use crate::tuning::{Tuning, WalSync};
use cluster::{Joined, Member, Settled};
use glommio::{LocalExecutorBuilder, Placement};
use recover::Made;
use shards::gather::topology::Topology;
use shards::ids::{GroupId, ReplicaId};
use shards::index::set::IndexSettings;
use shards::txn::message::GroupMessage;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// Messages of transactions on the way from one shard to another, before they wait at their sender.
const MESH_SLOTS: usize = 1024;
/// Messages that may wait at a sender: a few for each request that routers may admit.
const MESH_OVERFLOW_MAX: usize = 1 << 22;
/// Time for other nodes to take leadership over before the server stops without that.
const RESIGN_WITHIN: Duration = Duration::from_secs(3);
/// Connections that wait to be accepted.
const BACKLOG: u32 = 4096;
/// The executor's preempt timer, which must not fire: a shard's loop is the only future and never suspends, and the timer
/// makes the executor sleep for ever when it fires before the loop's first poll (decision 12).
const PREEMPT_NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Runs a server with this configuration until it is asked to stop.
///
/// # Errors
/// The reason for which it could not start or had to stop.
pub fn serve(tuning: Tuning) -> Result<(), Fatal> {
    let mut signals = Signals::take()?;
    let available =
        sys::available_cores().map_err(|source| Fatal::Start { thread: "main".to_owned(), source })?;
    let told = |error: cores::DealError| Fatal::Configuration(error.to_string());
    let usable = cores::usable(&available, &tuning.cores.allowed).map_err(told)?;
    let shards_wanted = cores::shards_of_new_directory(tuning.server.shards, &tuning.cores, &usable);
    preflight::demand(&tuning, shards_wanted)?;
    let indexes = models::load(&tuning)?;
    let member = match cluster::settle(&tuning, shards_wanted, || signals.came())? {
        Settled::Stopped => return Ok(()),
        Settled::Alone => None,
        Settled::Member(member) => Some(member),
    };
    let directory = Arc::new(open_directory(&tuning, shards_wanted, member.as_deref())?);
    let shards = directory.meta().shards;
    if shards != shards_wanted {
        preflight::demand(&tuning, shards)?;
    }
    let deal = cores::deal(&usable, shards, &tuning.cores, &tuning.router).map_err(told)?;
    let server = Server { tuning: Arc::new(tuning), indexes, directory, deal };
    server.run(signals, member)
}

struct Server {
    tuning: Arc<Tuning>,
    indexes: IndexSettings,
    directory: Arc<DataDir>,
    deal: Deal,
}

/// What one router thread gets.
struct RouterParts {
    number: usize,
    links: Vec<ShardLink>,
    bell: Arc<Doorbell>,
    listeners: Listeners,
    /// In a cluster: who leads, and the links to the thread that forwards.
    cluster: Option<ClusterParts>,
}

/// What one shard thread gets.
struct ShardParts {
    number: u32,
    bell: Arc<Doorbell>,
    routers: Vec<RouterLink>,
    mesh: ShardMesh<GroupMessage>,
    files: Option<FileWorker>,
    /// In a cluster: what its threads share, and where news for this shard come out.
    peers: Option<(Arc<Hub>, Receiver<News>)>,
}

impl Server {
    fn run(self, signals: Signals, member: Option<Box<Member>>) -> Result<(), Fatal> {
        let shards = self.directory.meta().shards as usize;
        let routers = self.deal.routers.len();
        let listeners = self.listen(routers)?;
        let address = listeners.first().and_then(|bound| bound.addresses().ok()?.first().copied());
        let address = address.map_or_else(|| self.address(), |bound| bound.to_string());

        let bells = |count: usize| -> Result<Vec<_>, Fatal> {
            let made = (0..count).map(|_| Doorbell::new()).collect::<io::Result<Vec<_>>>();
            made.map_err(|source| Fatal::Start { thread: "doorbell".to_owned(), source })
        };
        let (shard_bells, router_bells) = (bells(shards)?, bells(routers)?);
        let joined = member
            .map(|member| member.join(&self.tuning, self.directory.path(), &shard_bells))
            .transpose()?;
        let (hub, inboxes, peer_facts) = match joined {
            Some(Joined { hub, inboxes, facts }) => (Some(hub), inboxes, Some(facts)),
            None => (None, Vec::new(), None),
        };
        let mut inboxes = inboxes.into_iter();
        let stop = StopHandle::new(router_bells.iter().chain(&shard_bells).cloned().collect());
        if let Some(hub) = hub.clone() {
            stop.precede(move || hub.resign(RESIGN_WITHIN));
        }
        let shards_stop = Arc::new(AtomicBool::new(false));
        let forward_bell = hub.as_ref().map(|_| bells(1)).transpose()?.and_then(|mut made| made.pop());
        // The thread that forwards is one more router to the shards, the last.
        let ringers: Vec<Arc<Doorbell>> = router_bells.iter().chain(&forward_bell).cloned().collect();
        let (shard_links, mut router_links) = self.links(&shard_bells, &ringers);
        let (mut cluster_parts, forward) = match hub.as_ref().zip(forward_bell) {
            Some((hub, bell)) => {
                let to_shards = router_links.pop().expect("the last is the forward thread's");
                let outstanding_max = self.tuning.router.outstanding_per_shard_max as usize;
                let (at_routers, far_ends) =
                    cluster::forward_links(shards, outstanding_max, &router_bells, &bell);
                let forward_stop = Arc::new(AtomicBool::new(false));
                let thread = cluster::spawn_forward(
                    hub,
                    far_ends,
                    to_shards,
                    Arc::clone(&bell),
                    Arc::clone(&forward_stop),
                )?;
                let parts = at_routers.into_iter().map(|links| {
                    Some(ClusterParts { view: Arc::clone(&hub.view), nodes: Arc::clone(&hub.nodes), links })
                });
                (parts.collect(), Some((thread, bell, forward_stop)))
            }
            None => (Vec::new(), None),
        };
        cluster_parts.resize_with(routers, || None);
        let meshes = links::mesh::<GroupMessage>(&shard_bells, MESH_SLOTS, MESH_OVERFLOW_MAX);
        let pool = SegmentPool::start(shards, None)
            .map_err(|source| Fatal::Start { thread: "segments".to_owned(), source })?;
        let workers = self.file_workers(&shard_bells)?;

        let (told, ready) = channel();
        let mut shard_threads = Vec::new();
        let parts = shard_bells.iter().zip(shard_links).zip(meshes).zip(workers);
        for (number, (((bell, routers), mesh), files)) in parts.enumerate() {
            let number = number as u32;
            let peers = hub.clone().zip(inboxes.next());
            let parts = ShardParts { number, bell: Arc::clone(bell), routers, mesh, files, peers };
            shard_threads.push(self.spawn_shard(parts, &pool, told.clone(), Arc::clone(&shards_stop))?);
        }
        drop(told);
        await_shards(&ready, shards)?;

        let facts = Arc::new(ServerFacts {
            node_id: self.directory.meta().node_id.clone(),
            address: address.clone(),
            started: Clock::start().now(),
            extra: std::sync::Mutex::new(String::new()),
            stop: Arc::clone(&stop),
        });
        if let Some(told) = &peer_facts {
            // Set once, here.
            let _ = told.set(Arc::clone(&facts));
        }
        let mut router_threads = Vec::new();
        let parts = router_links.into_iter().zip(&router_bells).zip(listeners).zip(cluster_parts).enumerate();
        for (number, (((links, bell), listeners), cluster)) in parts {
            let parts = RouterParts { number, links, bell: Arc::clone(bell), listeners, cluster };
            router_threads.push(self.spawn_router(parts, Arc::clone(&facts))?);
        }
        tracing::info!(%address, shards, routers, data_dir = %self.directory.path().display(), "serving");

        signals.watch(Arc::clone(&stop), self.tuning.timeouts.drain_s)?;
        for thread in router_threads {
            thread.join().map_err(|_| lost("router"))?;
        }
        if let Some((thread, bell, forward_stop)) = forward {
            forward_stop.store(true, Ordering::Release);
            bell.ring();
            thread.join().map_err(|_| lost("forward"))?;
        }
        shards_stop.store(true, Ordering::Release);
        for bell in &shard_bells {
            bell.ring();
        }
        for thread in shard_threads {
            thread.join().map_err(|_| lost("shard"))?;
        }
        if let Some(hub) = hub {
            hub.stop();
        }
        tracing::info!("stopped in good order");
        Ok(())
    }

    fn address(&self) -> String {
        let server = &self.tuning.server;
        format!("{}:{}", server.host, server.port)
    }

    /// The listening sockets, shared by all routers: the kernel hands each connection to one.
    fn listen(&self, routers: usize) -> Result<Vec<Listeners>, Fatal> {
        let address = self.address();
        let failed = |source| Fatal::Listen { address: address.clone(), source };
        let server = &self.tuning.server;
        let resolved: Vec<SocketAddr> =
            (server.host.as_str(), server.port).to_socket_addrs().map_err(failed)?.collect();
        let bound = Listeners::bind(&resolved, BACKLOG).map_err(failed)?;
        bound.split(routers).map_err(failed)
    }

    #[allow(clippy::type_complexity, reason = "the two ends of every link, by their owners")]
    fn links(
        &self,
        shard_bells: &[Arc<Doorbell>],
        router_bells: &[Arc<Doorbell>],
    ) -> (Vec<Vec<RouterLink>>, Vec<Vec<ShardLink>>) {
        let outstanding_max = self.tuning.router.outstanding_per_shard_max as usize;
        let mut at_shards: Vec<Vec<RouterLink>> = shard_bells.iter().map(|_| Vec::new()).collect();
        let mut at_routers = Vec::new();
        for router_bell in router_bells {
            let mut ends = Vec::new();
            for (shard_bell, at_shard) in shard_bells.iter().zip(&mut at_shards) {
                let (router_end, shard_end) =
                    links::link(outstanding_max, Arc::clone(router_bell), Arc::clone(shard_bell));
                ends.push(router_end);
                at_shard.push(shard_end);
            }
            at_routers.push(ends);
        }
        (at_shards, at_routers)
    }

    fn file_workers(&self, bells: &[Arc<Doorbell>]) -> Result<Vec<Option<FileWorker>>, Fatal> {
        if self.tuning.wal.sync == WalSync::Off {
            return Ok(bells.iter().map(|_| None).collect());
        }
        let ends = bells
            .iter()
            .enumerate()
            .map(|(number, bell)| (self.directory.shard_path(number as u32), waker(bell)));
        let workers = start_file_worker(ends.collect())
            .map_err(|source| Fatal::Start { thread: "snapshots".to_owned(), source })?;
        Ok(workers.into_iter().map(Some).collect())
    }

    fn spawn_shard(
        &self,
        parts: ShardParts,
        pool: &SegmentPool,
        told: Sender<Result<(), Fatal>>,
        stop: Arc<AtomicBool>,
    ) -> Result<glommio::ExecutorJoinHandle<()>, Fatal> {
        let number = parts.number;
        let core = self.deal.shards[number as usize];
        let placement = core.map_or(Placement::Unbound, |core| Placement::Fixed(core as usize));
        let (tuning, indexes) = (Arc::clone(&self.tuning), self.indexes);
        let directory = Arc::clone(&self.directory);
        let shape = directory.log_shape(number);
        let pool = pool.clone();
        let shard = &tuning.shard;
        let builder = LocalExecutorBuilder::new(placement)
            .name(&format!("shard-{number}"))
            .preempt_timer(PREEMPT_NEVER)
            .io_memory((shard.io_memory_kib as usize) << 10);
        let started = builder.spawn(move || async move {
            let ShardParts { number, bell, routers, mesh, files, peers } = parts;
            let settings = settings::driver(&tuning);
            let peers = peers
                .map(|(hub, inbox)| cluster::peer_side(&hub, &tuning, indexes, number, inbox))
                .transpose();
            let peers = match peers {
                Ok(peers) => peers,
                Err(reason) => return drop(told.send(Err(reason))),
            };
            let (group, clock) = (GroupId(number), Clock::start());
            let lost = ReplicaId(0);
            let seat = Box::new(Seat { number, group, routers, mesh, bell, clock, settings, peers, lost });
            let mut first_files = Some(SnapshotFiles::new(files));
            let mut appoint = |seat: Box<Seat>, files: Option<SnapshotFiles>| {
                let files = files.or_else(|| first_files.take()).expect("a replica that went gave them back");
                let wake = waker(&seat.bell);
                let segments = pool.handle(&directory.shard_path(number), shape.segment_bytes, wake);
                match recover::driver(&tuning, indexes, &directory, seat, segments, files)? {
                    Made::Driver(mut driver) => driver.start().map(|()| Stage::Serving(driver)),
                    Made::SetAside(seat, files) => {
                        first_files = Some(*files);
                        Ok(Stage::Vacant(seat))
                    }
                }
            };
            let is_vacant = seat.peers.as_ref().is_some_and(|peers| peers.appointment().is_none());
            let made = if is_vacant { Ok(Stage::Vacant(seat)) } else { appoint(seat, None) };
            let stage = match made {
                Ok(stage) => stage,
                Err(reason) => return drop(told.send(Err(reason))),
            };
            if told.send(Ok(())).is_err() {
                return;
            }
            drop(told);
            if let Err(reason) = driver::run(stage, move || stop.load(Ordering::Acquire), appoint).await {
                fatal::exit(&reason);
            }
        });
        started.map_err(|error| Fatal::Start {
            thread: format!("shard {number}"),
            source: io::Error::other(error.to_string()),
        })
    }

    fn spawn_router(
        &self,
        parts: RouterParts,
        facts: Arc<ServerFacts>,
    ) -> Result<std::thread::JoinHandle<()>, Fatal> {
        let name = format!("router-{}", parts.number);
        let core = self.deal.routers[parts.number];
        let tuning = Arc::clone(&self.tuning);
        let thread = name.clone();
        let run = move || {
            if let Some(core) = core
                && let Err(error) = sys::pin_to_core(core)
            {
                tracing::warn!(core, "{thread} is not pinned: {error}");
            }
            if let Err(reason) = run_router(parts, &tuning, facts, &thread) {
                fatal::exit(&reason);
            }
        };
        let spawned = std::thread::Builder::new().name(name.clone()).spawn(run);
        spawned.map_err(|source| Fatal::Start { thread: name, source })
    }
}

/// Serves clients until the server is asked to stop and every reply has left.
fn run_router(
    parts: RouterParts,
    tuning: &Tuning,
    facts: Arc<ServerFacts>,
    thread: &str,
) -> Result<(), Fatal> {
    let RouterParts { links, bell, listeners, cluster, .. } = parts;
    let clock = Clock::start();
    let failed = |source: io::Error| Fatal::ThreadLost {
        thread: thread.to_owned(),
        detail: format!("its io_uring failed: {source}"),
    };
    let stop = Arc::clone(&facts.stop);
    let mut front =
        Front::open(settings::front(tuning), listeners, bell, move || clock.now()).map_err(failed)?;
    let groups = u16::try_from(links.len()).expect("at most 256 shards");
    let topology = Topology::even(groups);
    let mut router = Router::new(links, topology, settings::router(tuning), facts, move || clock.now());
    if let Some(cluster) = cluster {
        router.join(cluster);
    }
    let spin_us = u64::from(tuning.router.spin_us);
    let mut idle_since_us = None;
    while !stop.is_requested() {
        let wait = match idle_since_us {
            Some(since) if clock.elapsed_us() - since < spin_us => Wait::No,
            _ if spin_us > 0 && idle_since_us.is_none() => Wait::No,
            _ => {
                let now = clock.now();
                let longest = shards::ids::Millis(now.0 + settings::ROUTER_SLEEP_MS);
                Wait::Until(router.next_deadline(now).map_or(longest, |soon| soon.min(longest)))
            }
        };
        let turn = front.turn(&mut router, wait).map_err(failed)?;
        idle_since_us = turn.is_idle().then(|| idle_since_us.unwrap_or_else(|| clock.elapsed_us()));
    }
    front.stop_accepting();
    let deadline_us = clock.elapsed_us() + u64::from(tuning.timeouts.drain_s) * 1_000_000;
    while clock.elapsed_us() < deadline_us && !(front.is_drained() && router.is_quiet()) {
        let wait = Wait::Until(shards::ids::Millis(clock.now().0 + settings::DRAIN_STEP_MS));
        front.turn(&mut router, wait).map_err(failed)?;
    }
    front.close_all();
    let linger_us = clock.elapsed_us() + settings::LINGER_MS * 1000;
    while front.connections() > 0 && clock.elapsed_us() < linger_us {
        let wait = Wait::Until(shards::ids::Millis(clock.now().0 + settings::DRAIN_STEP_MS));
        front.turn(&mut router, wait).map_err(failed)?;
    }
    Ok(())
}

/// What a helper thread calls when it has done something for a shard.
fn waker(bell: &Arc<Doorbell>) -> Wake {
    let bell = Arc::clone(bell);
    Arc::new(move || {
        bell.ring();
    })
}

fn lost(thread: &str) -> Fatal {
    Fatal::ThreadLost { thread: thread.to_owned(), detail: "it ended without a word".to_owned() }
}

/// Waits until every shard serves, or one says why it cannot.
fn await_shards(ready: &Receiver<Result<(), Fatal>>, shards: usize) -> Result<(), Fatal> {
    for _ in 0..shards {
        ready.recv().map_err(|_| lost("shard"))??;
    }
    Ok(())
}

fn open_directory(tuning: &Tuning, shards: u32, member: Option<&Member>) -> Result<DataDir, Fatal> {
    let path = tuning.data_dir();
    let asked = (tuning.server.shards > 0).then_some(tuning.server.shards);
    let alone = || DataMeta {
        cluster: clock::random_u128(),
        incarnation: clock::random_u128(),
        log_key: clock::random_u64(),
        node_id: tuning.server.id.clone(),
        shards,
        segment_bytes: u64::from(tuning.wal.segment_mib) << 20,
    };
    let fresh = || member.map_or_else(alone, |member| member.data_meta(tuning));
    let directory = DataDir::open(&path, Some(&tuning.server.id), asked, fresh)
        .map_err(|error| directory_failed(&path, error))?;
    if tuning.wal.sync == WalSync::Off {
        recover::refuse_kept_data(tuning, &directory)?;
    }
    Ok(directory)
}

fn directory_failed(path: &Path, error: DataDirError) -> Fatal {
    let text = error.to_string();
    match error {
        DataDirError::InUse(..) => Fatal::DirectoryLocked(text),
        DataDirError::Io(path, source) => Fatal::Directory { path, source },
        DataDirError::Damaged(_) | DataDirError::NotEmpty(_) => {
            Fatal::DirectoryDamaged(path.to_path_buf(), text)
        }
        _ => Fatal::DirectoryMismatch(text),
    }
}

/// The signals that end the server.
struct Signals(signal_hook::iterator::Signals);

impl Signals {
    /// Takes them over; before any thread is started.
    fn take() -> Result<Self, Fatal> {
        let taken =
            signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT]);
        taken.map(Self).map_err(|source| Fatal::Start { thread: "signals".to_owned(), source })
    }

    /// Whether one has come: for those who wait before anybody watches.
    fn came(&mut self) -> bool {
        self.0.pending().next().is_some()
    }

    /// Watches for them in a thread of its own: the first asks for the stop, the second ends the process at once.
    fn watch(mut self, stop: Arc<StopHandle>, drain_s: u32) -> Result<(), Fatal> {
        let run = move || {
            let mut asked = false;
            for _ in self.0.forever() {
                if asked {
                    fatal::exit(&Fatal::Interrupted);
                }
                asked = true;
                tracing::info!(drain_s, "asked to stop: finishing what is under way");
                stop.request();
            }
        };
        let spawned = std::thread::Builder::new().name("signals".to_owned()).spawn(run);
        spawned.map(drop).map_err(|source| Fatal::Start { thread: "signals".to_owned(), source })
    }
}
