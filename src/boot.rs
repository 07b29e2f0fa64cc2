//! Starts a server and ends it in good order: cores, preflight, data directory, threads, signals.
//!
//! Shards recover in their own threads, all at once; clients' ports are bound before (a taken port fails early) and
//! served after every shard is ready. Decides nothing about data. Whatever a thread dies of ends the whole process.

mod clients;
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
use crate::driver::{self, Clients, Seat, SnapshotFiles, Stage};
use crate::fatal::{self, Fatal};
use crate::front::Early;
use crate::links::{self, RouterLink, ShardMesh};
use crate::peer::hub::{Hub, News};
use crate::preflight;
use crate::router::{ClusterParts, RouterBoard, ServerFacts, StopHandle};
use crate::service::Service;
use crate::sys;
use crate::tuning::cores::{self, Deal};
use crate::tuning::relations::line_beyond_segment;
use crate::tuning::{RouterMode, Tuning, WalSync};
use clients::{Entrance, InlineParts, Serving};
use cluster::{Joined, Member, Settled};
use glommio::{LocalExecutorBuilder, Placement};
use recover::Made;
use shards::ids::{GroupId, ReplicaId};
use shards::index::set::IndexSettings;
use shards::txn::message::GroupMessage;
use std::io;
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
    demand_room_for_lines(&tuning, &directory)?;
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

/// What one shard thread gets.
struct ShardParts {
    number: u32,
    bell: Arc<Doorbell>,
    routers: Vec<RouterLink>,
    mesh: ShardMesh<GroupMessage>,
    files: Option<FileWorker>,
    /// In a cluster: what its threads share, and where news for this shard come out.
    peers: Option<(Arc<Hub>, Receiver<News>)>,
    /// In inline mode: the clients that the thread serves.
    clients: Option<InlineParts>,
}

impl Server {
    fn run(self, signals: Signals, member: Option<Box<Member>>) -> Result<(), Fatal> {
        let shards = self.directory.meta().shards as usize;
        let is_inline = self.tuning.router.mode == RouterMode::Inline;
        let services = if is_inline { shards } else { self.deal.routers.len() };
        // In a cluster another node serves them meanwhile.
        let early = if member.is_some() { Early::IsRefused } else { Early::Waits };
        let Entrance { listeners, address, shard_ports } = self.listen(services, early)?;

        let bells = |count: usize| -> Result<Vec<_>, Fatal> {
            let made = (0..count).map(|_| Doorbell::new()).collect::<io::Result<Vec<_>>>();
            made.map_err(|source| Fatal::Start { thread: "doorbell".to_owned(), source })
        };
        let shard_bells = bells(shards)?;
        // A service inside a shard's thread is woken like the shard.
        let service_bells = if is_inline { shard_bells.clone() } else { bells(services)? };
        let joined = member
            .map(|member| member.join(&self.tuning, self.directory.path(), &shard_bells))
            .transpose()?;
        let (hub, inboxes, peer_facts) = match joined {
            Some(Joined { hub, inboxes, facts }) => (Some(hub), inboxes, Some(facts)),
            None => (None, Vec::new(), None),
        };
        let mut inboxes = inboxes.into_iter();
        let stop = StopHandle::new(service_bells.iter().chain(&shard_bells).cloned().collect());
        if let Some(hub) = hub.clone() {
            let removed = Arc::clone(&stop);
            hub.when_removed(move || removed.request());
            stop.precede(move || hub.resign(RESIGN_WITHIN));
        }
        let shards_stop = Arc::new(AtomicBool::new(false));
        let forward_bell = hub.as_ref().map(|_| bells(1)).transpose()?.and_then(|mut made| made.pop());
        // The thread that forwards is one more router to the shards, the last.
        let ringers: Vec<Arc<Doorbell>> = service_bells.iter().chain(&forward_bell).cloned().collect();
        let (shard_links, mut service_links) = self.links(&shard_bells, &ringers);
        let (mut cluster_parts, forward) = match hub.as_ref().zip(forward_bell) {
            Some((hub, bell)) => {
                let to_shards = service_links.pop().expect("the last is the forward thread's");
                let outstanding_max = self.outstanding_max(shards);
                let (at_routers, far_ends) =
                    cluster::forward_links(shards, outstanding_max, &service_bells, &bell);
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
        cluster_parts.resize_with(services, || None);
        let facts = Arc::new(ServerFacts {
            node_id: self.directory.meta().node_id.clone(),
            address: address.clone(),
            started: Clock::start().now(),
            extra: std::sync::Mutex::new(String::new()),
            shard_ports,
            routers: RouterBoard::new(services),
            stop: Arc::clone(&stop),
        });
        let parts = self.services(service_links, &service_bells, listeners, cluster_parts, &facts);
        let (inline, beside) = if is_inline { (parts, Vec::new()) } else { (Vec::new(), parts) };
        let (inline, gate, ends) = clients::inline_services(inline);
        let meshes = links::mesh::<GroupMessage>(&shard_bells, MESH_SLOTS, MESH_OVERFLOW_MAX);
        let pool = SegmentPool::start(shards, None)
            .map_err(|source| Fatal::Start { thread: "segments".to_owned(), source })?;
        let workers = self.file_workers(&shard_bells)?;

        let (told, ready) = channel();
        let mut shard_threads = Vec::new();
        let mut inline = inline.into_iter();
        let parts = shard_bells.iter().zip(shard_links).zip(meshes).zip(workers);
        for (number, (((bell, routers), mesh), files)) in parts.enumerate() {
            let number = number as u32;
            let peers = hub.clone().zip(inboxes.next());
            let (bell, clients) = (Arc::clone(bell), inline.next());
            let parts = ShardParts { number, bell, routers, mesh, files, peers, clients };
            shard_threads.push(self.spawn_shard(parts, &pool, told.clone(), Arc::clone(&shards_stop))?);
        }
        drop(told);
        await_shards(&ready, shards)?;

        if let Some(told) = &peer_facts {
            // Set once, here.
            let _ = told.set(facts);
        }
        let serving = if is_inline { Serving::Inline(ends) } else { self.spawn_routers(beside)? };
        clients::open_gate(&gate, &shard_bells);
        let mode = self.tuning.router.mode;
        tracing::info!(%address, shards, services, %mode, data_dir = %self.directory.path().display(), "serving");

        signals.watch(Arc::clone(&stop), self.tuning.timeouts.drain_s)?;
        serving.wait()?;
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
        let (shape, shards) = (directory.log_shape(number), directory.meta().shards);
        let pool = pool.clone();
        let shard = &tuning.shard;
        let builder = LocalExecutorBuilder::new(placement)
            .name(&format!("shard-{number}"))
            .preempt_timer(PREEMPT_NEVER)
            .io_memory((shard.io_memory_kib as usize) << 10);
        let started = builder.spawn(move || async move {
            let ShardParts { number, bell, routers, mesh, files, peers, clients } = parts;
            let clients = clients.map(|InlineParts { service, gate, end }| {
                let settings = settings::service(&tuning, shards);
                Box::new(Clients::new(number, gate, Box::new(|| Service::open(service, settings)), end))
            });
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
            let seat = Seat { number, group, routers, mesh, bell, clock, settings, peers, lost, clients };
            let seat = Box::new(seat);
            let mut first_files = Some(SnapshotFiles::new(files));
            let mut appoint = |seat: Box<Seat>, files: Option<SnapshotFiles>| {
                let files = files.or_else(|| first_files.take()).expect("a replica that went gave them back");
                let wake = waker(&seat.bell);
                let segments = pool.handle(&directory.shard_path(number), shape.segment_bytes, wake);
                match recover::driver(&tuning, indexes, &directory, seat, segments, files)? {
                    Made::Driver(mut driver) => driver.start().map(|()| Stage::Serving(driver)),
                    Made::Vacant(seat, files) => {
                        first_files = Some(*files);
                        Ok(Stage::Vacant(seat))
                    }
                }
            };
            let stage = match appoint(seat, None) {
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

/// A directory keeps the segments that it was made with, whatever the configuration says now.
fn demand_room_for_lines(tuning: &Tuning, directory: &DataDir) -> Result<(), Fatal> {
    let segment_bytes = directory.meta().segment_bytes;
    let Some(told) = line_beyond_segment(tuning, segment_bytes) else { return Ok(()) };
    Err(Fatal::Configuration(format!(
        "data directory {} was made with wal.segment_mib = {}, which cannot change: {told}. Lower limits.line_bytes_max or \
         limits.batch_items_max, or move the data to a new directory.",
        directory.path().display(),
        segment_bytes >> 20
    )))
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
