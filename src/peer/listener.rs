//! The cluster port: accepts, lets every caller say who it is, and hands each connection to its owner.
//!
//! One thread accepts; a caller gets a thread of its own until it is known, for a bounded time, and no more than
//! [`GREETINGS_MAX`] of them at once, so that strangers can take neither memory nor the thread. Raft connections go to
//! their shard, forward connections to the forward thread; control links and snapshots are served where they are.

use super::control;
use super::counters::count;
use super::founding;
use super::hub::{Hub, News};
use super::snapshots;
use super::socket::{Talk, TalkError};
use super::station::{Standing, Station, judge_blank, judge_life, judge_member};
use super::whereabouts::reached_at;
use crate::clock;
use crate::fatal::Fatal;
use shards::ids::NodeNumber;
use shards::log::payload::PayloadBuffer;
use shards::peer::frame::{HANDSHAKE_BYTES_MAX, Kind, PAYLOAD_BYTES_MAX};
use shards::peer::hello::{Card, Hello, Purpose, Refusal, RefusalCode, Welcome};
use shards::peer::pull::PIECE_BYTES_MAX;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Callers that have not said who they are, at once; further ones are closed.
const GREETINGS_MAX: usize = 64;
/// Time for a caller to say who it is.
const GREETED_WITHIN: Duration = Duration::from_secs(2);
/// Pause after an accept that failed, as when the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Stack of a thread that serves one connection.
const STACK_BYTES: usize = 512 << 10;

/// Binds the cluster port.
///
/// # Errors
/// When it is taken, or the host is not this machine's.
pub fn bind(host: &str, port: u16) -> Result<Vec<TcpListener>, Fatal> {
    let failed = |source| Fatal::Listen { address: format!("{host}:{port} (the cluster port)"), source };
    let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs().map_err(failed)?.collect();
    addresses.iter().map(crate::front::bind_patiently).collect::<io::Result<_>>().map_err(failed)
}

/// Starts the threads that accept on these sockets, for as long as the process lives.
///
/// # Errors
/// When no thread can be started.
pub fn start(listeners: Vec<TcpListener>, station: &Arc<Station>) -> Result<(), Fatal> {
    let greetings = Arc::new(AtomicUsize::new(0));
    for listener in listeners {
        let (station, greetings) = (Arc::clone(station), Arc::clone(&greetings));
        let run = move || accept(&listener, &station, &greetings);
        let spawned = std::thread::Builder::new().name("peers".to_owned()).spawn(run);
        spawned.map_err(|source| Fatal::Start { thread: "peers".to_owned(), source })?;
    }
    Ok(())
}

fn accept(listener: &TcpListener, station: &Arc<Station>, greetings: &Arc<AtomicUsize>) {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("the cluster port cannot accept: {error}");
                std::thread::sleep(ACCEPT_PAUSE);
                continue;
            }
        };
        count(&station.counters.accepted);
        if greetings.fetch_add(1, Ordering::AcqRel) >= GREETINGS_MAX {
            greetings.fetch_sub(1, Ordering::AcqRel);
            count(&station.counters.overflowed);
            continue;
        }
        let (station, held) = (Arc::clone(station), Held(Arc::clone(greetings)));
        let run = move || serve(stream, &station, held);
        let spawned =
            std::thread::Builder::new().name("caller".to_owned()).stack_size(STACK_BYTES).spawn(run);
        if let Err(error) = spawned {
            tracing::warn!("no thread for a connection on the cluster port: {error}");
        }
    }
}

/// A place among those who have not said who they are; given back when they have, or are gone.
struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn serve(stream: TcpStream, station: &Station, held: Held) {
    let address = stream.peer_addr().ok().map(|address| address.ip());
    let standing = station.standing();
    let greeted = greet(stream, station, &standing);
    drop(held);
    let (talk, hello) = match greeted {
        Ok(Some(greeted)) => greeted,
        Ok(None) => return,
        Err(error) => {
            if matches!(error, TalkError::Io(_)) {
                count(&station.counters.silent);
            }
            return note(station, address, &error);
        }
    };
    let node = NodeNumber(hello.card.number);
    let served = match (hello.purpose, standing) {
        (Purpose::Founding, standing) => founding::serve(talk, &hello.card, address, &standing),
        (Purpose::Control, Standing::Member(hub)) => {
            seen_at(&hub, &hello.card, address);
            hub.nodes.life_begins(node, hello.life());
            let served = control::serve(talk, node, &hub);
            hub.nodes.life_ends(node, hello.life());
            served
        }
        (Purpose::Snapshot(group), Standing::Member(hub)) => snapshots::serve(talk, group, &hub),
        (Purpose::Raft(group), Standing::Member(hub)) => {
            hub.door(group).hand_in(News::Arrived(talk.into_socket(node)));
            Ok(())
        }
        (Purpose::Forward, Standing::Member(hub)) => {
            hub.hand_forward(talk.into_socket(node).into());
            Ok(())
        }
        (_, Standing::Blank(..)) => unreachable!("a blank node welcomes founders only"),
    };
    if let Err(error) = served {
        note(station, address, &error);
    }
}

/// Counts why a connection ended, and says it where somebody did wrong.
fn note(station: &Station, address: Option<IpAddr>, error: &TalkError) {
    let from = address.map_or_else(|| "somebody".to_owned(), |address| address.to_string());
    match error {
        TalkError::Io(_) => return,
        TalkError::Frame(error) => station.counters.frame_error(error),
        TalkError::Payload(_) | TalkError::Unexpected(_) => count(&station.counters.bad_payloads),
    }
    // At debug: a stranger who keeps calling must not fill the log; the figures tell.
    tracing::debug!(%from, "a connection on the cluster port was closed: {error}");
}

/// Hears a hello and answers it; `None` when its sender is refused, which is counted and told here.
fn greet(
    stream: TcpStream,
    station: &Station,
    standing: &Standing,
) -> Result<Option<(Talk, Hello)>, TalkError> {
    let (cluster, card) = match standing {
        Standing::Blank(card, _) => (0, card),
        Standing::Member(hub) => (hub.cluster, &hub.card),
    };
    let mut talk = Talk::begin(stream, cluster)?;
    let hello =
        talk.receive(&[Kind::Hello], GREETED_WITHIN, |_, payload, scratch| Hello::decode(payload, scratch))?;
    let judged = match standing {
        Standing::Blank(card, _) => judge_blank(card, &hello),
        Standing::Member(hub) => judge_member(&hub.nodes.meta(), hub.me, &hello)
            .and_then(|()| judge_life(&hub.nodes, &hello, hub.clock.now())),
    };
    let session = clock::random_u64();
    answer(&mut talk, cluster, card, &hello, session, judged.as_ref().err())?;
    if let Err(refusal) = judged {
        station.counters.refusal(refusal.code);
        let text = &refusal.text;
        if refusal.code != RefusalCode::NotNow && station.may_tell(text) {
            tracing::warn!(from = %talk.address(), "a connection on the cluster port was refused: {text}");
        }
        return Ok(None);
    }
    count(&station.counters.welcomed);
    let (cluster, payload_bytes_max) = match hello.purpose {
        Purpose::Founding => (0, PAYLOAD_BYTES_MAX >> 6),
        Purpose::Snapshot(_) => (cluster, HANDSHAKE_BYTES_MAX),
        Purpose::Control => (cluster, PIECE_BYTES_MAX as usize * 16),
        Purpose::Raft(_) | Purpose::Forward => (cluster, PAYLOAD_BYTES_MAX),
    };
    talk.begin_session(cluster, session, payload_bytes_max);
    Ok(Some((talk, hello)))
}

fn answer(
    talk: &mut Talk,
    cluster: u128,
    card: &Card,
    hello: &Hello,
    session: u64,
    refusal: Option<&Refusal>,
) -> Result<(), TalkError> {
    let protocol = hello.common_protocol().unwrap_or(0);
    let refusal = refusal.cloned();
    let welcome = Welcome { protocol, cluster, card: card.clone(), session, echo: hello.nonce, refusal };
    let mut payload = PayloadBuffer::new();
    welcome.encode(&mut payload);
    talk.send(Kind::Welcome, &payload, GREETED_WITHIN)
}

/// Takes over where a member says it is, or was seen, when that is not where the meta state says.
fn seen_at(hub: &Hub, card: &Card, address: Option<IpAddr>) {
    let (node, Some(address)) = (NodeNumber(card.number), address) else { return };
    let meta = hub.nodes.meta();
    let Some(known) = meta.node(node) else { return };
    let said = reached_at(&card.host, address);
    let addresses = |host: &str| {
        let found = (host, 0).to_socket_addrs().into_iter().flatten();
        found.map(|address| address.ip()).collect::<Vec<IpAddr>>()
    };
    let is_known = said == known.host || {
        let known = addresses(&known.host);
        addresses(&said).iter().any(|address| known.contains(address))
    };
    let host = if is_known { known.host.clone() } else { said };
    hub.moved(node, &host, card.cluster_port);
}
