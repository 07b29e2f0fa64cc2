//! Where clients come in: the listening sockets, what each service is made of, and the threads of routers.
//!
//! With `router.mode = "thread"` each router has a thread and a socket on the common port. With `"inline"` each shard's thread
//! has a service of its own, on the common port and on a port of the shard's own that HELLO tells; there is no other router.

use super::{BACKLOG, Server, lost, settings};
use crate::doorbell::Doorbell;
use crate::fatal::{self, Fatal};
use crate::front::{Early, Listeners};
use crate::links::{self, RouterLink, ShardLink};
use crate::router::{ClusterParts, ServerFacts};
use crate::service::{NoHost, Service, ServiceParts};
use crate::sys;
use crate::tuning::{RouterMode, Tuning};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

/// Services of one server at most: a shard numbers its routers with a byte, and in a cluster the thread that forwards is one more.
const SERVICES_MAX: usize = 255;
/// Requests that a service may at least have under way at a shard, however many services there are.
const OUTSTANDING_MIN: usize = 1024;

/// The listening sockets of a server, bound before its threads start so that a taken port fails early.
pub(super) struct Entrance {
    /// Of each service.
    pub(super) listeners: Vec<Listeners>,
    /// The first address that clients reach.
    pub(super) address: String,
    /// The port of each shard's own thread; empty without inline services.
    pub(super) shard_ports: Vec<u16>,
}

/// What one shard's thread needs to serve clients.
pub(super) struct InlineParts {
    pub(super) service: ServiceParts,
    /// Opens when every shard is ready.
    pub(super) gate: Arc<AtomicBool>,
    /// Dropped when the service has ended.
    pub(super) end: Sender<()>,
}

/// The services of a server once they run.
pub(super) enum Serving {
    Threads(Vec<std::thread::JoinHandle<()>>),
    /// Says an error when the last service has ended.
    Inline(Receiver<()>),
}

impl Serving {
    /// Waits until the last client is gone after a stop.
    pub(super) fn wait(self) -> Result<(), Fatal> {
        match self {
            Serving::Threads(threads) => {
                threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| lost("router")))
            }
            Serving::Inline(ends) => {
                // Nothing is ever sent: the last sender's end is the news.
                let _ = ends.recv();
                Ok(())
            }
        }
    }
}

impl Server {
    /// Binds the common port for every service, and in inline mode each shard's own; `early` says what becomes of clients who
    /// come while the shards recover.
    pub(super) fn listen(&self, services: usize, early: Early) -> Result<Entrance, Fatal> {
        if services > SERVICES_MAX {
            return Err(Fatal::Configuration(format!(
                "router.mode = \"inline\" serves at most {SERVICES_MAX} shards, and this directory has {services}: use \
                 \"thread\"."
            )));
        }
        let server = &self.tuning.server;
        let address = format!("{}:{}", server.host, server.port);
        let failed = |source| Fatal::Listen { address: address.clone(), source };
        let resolved: Vec<SocketAddr> =
            (server.host.as_str(), server.port).to_socket_addrs().map_err(failed)?.collect();
        let mut listeners = Listeners::bind_for(services, &resolved, BACKLOG, early).map_err(failed)?;
        let mut shard_ports = Vec::new();
        if self.tuning.router.mode == RouterMode::Inline {
            for (number, listeners) in listeners.iter_mut().enumerate() {
                let port = self.shard_port(number)?;
                let bound = Listeners::bind_own(&resolved, port, BACKLOG, early);
                let (own, port) = bound.map_err(|source| Fatal::Listen {
                    address: format!("{}:{port} (the port of shard {number})", server.host),
                    source,
                })?;
                listeners.extend(own);
                shard_ports.push(port);
            }
        }
        let first = listeners.first().and_then(|bound| bound.addresses().ok()?.first().copied());
        let address = first.map_or(address, |bound| bound.to_string());
        Ok(Entrance { listeners, address, shard_ports })
    }

    /// The port that a shard's own thread is to listen on; 0 for any.
    fn shard_port(&self, number: usize) -> Result<u16, Fatal> {
        let first = self.tuning.router.shard_port;
        if first == 0 {
            return Ok(0);
        }
        let port = u16::try_from(number).ok().and_then(|number| first.checked_add(number));
        port.ok_or_else(|| {
            Fatal::Configuration(format!(
                "router.shard_port = {first} leaves no port for shard {number}: give a lower one, or 0."
            ))
        })
    }

    /// Requests that one of so many services may have under way at one shard. Inline services, which are as many as shards,
    /// share the bound of one router, or the rings between all of them would grow with the square of the shards.
    pub(super) fn outstanding_max(&self, services: usize) -> usize {
        let outstanding_max = self.tuning.router.outstanding_per_shard_max as usize;
        match self.tuning.router.mode {
            RouterMode::Thread => outstanding_max,
            RouterMode::Inline => (outstanding_max / services).max(OUTSTANDING_MIN),
        }
    }

    /// A link from every service to every shard: the shards' ends by shard, and the services' ends by service.
    #[allow(clippy::type_complexity, reason = "the two ends of every link, by their owners")]
    pub(super) fn links(
        &self,
        shard_bells: &[Arc<Doorbell>],
        service_bells: &[Arc<Doorbell>],
    ) -> (Vec<Vec<RouterLink>>, Vec<Vec<ShardLink>>) {
        let outstanding_max = self.outstanding_max(shard_bells.len());
        let mut at_shards: Vec<Vec<RouterLink>> = shard_bells.iter().map(|_| Vec::new()).collect();
        let mut at_services = Vec::new();
        for service_bell in service_bells {
            let mut ends = Vec::new();
            for (shard_bell, at_shard) in shard_bells.iter().zip(&mut at_shards) {
                let (service_end, shard_end) =
                    links::link(outstanding_max, Arc::clone(service_bell), Arc::clone(shard_bell));
                ends.push(service_end);
                at_shard.push(shard_end);
            }
            at_services.push(ends);
        }
        (at_shards, at_services)
    }

    /// Puts together what each service needs.
    pub(super) fn services(
        &self,
        links: Vec<Vec<ShardLink>>,
        bells: &[Arc<Doorbell>],
        listeners: Vec<Listeners>,
        cluster: Vec<Option<ClusterParts>>,
        facts: &Arc<ServerFacts>,
    ) -> Vec<ServiceParts> {
        let clients: Arc<AtomicUsize> = Arc::default();
        let parts = links.into_iter().zip(bells).zip(listeners).zip(cluster).enumerate();
        let service = |(number, (((links, bell), listeners), cluster))| ServiceParts {
            number,
            links,
            bell: Arc::clone(bell),
            listeners,
            clients: Arc::clone(&clients),
            cluster,
            facts: Arc::clone(facts),
        };
        parts.map(service).collect()
    }

    /// Starts a thread for each router, once every shard serves.
    pub(super) fn spawn_routers(&self, services: Vec<ServiceParts>) -> Result<Serving, Fatal> {
        let shards = self.directory.meta().shards;
        let threads = services.into_iter().map(|service| {
            let name = format!("router-{}", service.number);
            let core = self.deal.routers[service.number];
            let (tuning, thread) = (Arc::clone(&self.tuning), name.clone());
            let run = move || {
                if let Some(core) = core
                    && let Err(error) = sys::pin_to_core(core)
                {
                    tracing::warn!(core, "{thread} is not pinned: {error}");
                }
                if let Err(reason) = run_router(service, &tuning, shards, &thread) {
                    fatal::exit(&reason);
                }
            };
            let spawned = std::thread::Builder::new().name(name.clone()).spawn(run);
            spawned.map_err(|source| Fatal::Start { thread: name, source })
        });
        threads.collect::<Result<_, _>>().map(Serving::Threads)
    }
}

/// Hands out what each shard's thread needs to serve clients, the gate that lets them in, and what tells of the end.
pub(super) fn inline_services(
    services: Vec<ServiceParts>,
) -> (Vec<InlineParts>, Arc<AtomicBool>, Receiver<()>) {
    let gate = Arc::new(AtomicBool::new(false));
    let (end, ends) = channel();
    let part = |service| InlineParts { service, gate: Arc::clone(&gate), end: end.clone() };
    let parts = services.into_iter().map(part).collect();
    (parts, gate, ends)
}

/// Lets clients in.
pub(super) fn open_gate(gate: &AtomicBool, bells: &[Arc<Doorbell>]) {
    gate.store(true, Ordering::Release);
    for bell in bells {
        bell.ring();
    }
}

/// Serves clients until the server is asked to stop and every reply has left.
fn run_router(parts: ServiceParts, tuning: &Tuning, shards: u32, thread: &str) -> Result<(), Fatal> {
    let failed = |source: std::io::Error| Fatal::ThreadLost {
        thread: thread.to_owned(),
        detail: format!("its io_uring failed: {source}"),
    };
    let mut service = Service::open(parts, settings::service(tuning, shards)).map_err(failed)?;
    while service.turn(&mut NoHost, settings::ROUTER_SLEEP_MS).map_err(failed)? {}
    Ok(())
}
