//! The first start of a node in a cluster: it waits for the nodes it was told of, and either founds the cluster with them
//! or is taken into one that stands already.
//!
//! A blank node asks every listed peer again and again what it sees. Once all see the same, the one with the lowest id draws
//! the cluster's id and stores the first meta state; the others are given it, because they stand in it with their
//! incarnations. Each stores before it goes on. So a crash at any point leaves either blank nodes that ask again, or a
//! stored state that is handed to those who ask. A node that no list of founders had is given the meta state when
//! ADD_NODE has put it there. The rules are `shards::peer::founding`; this file asks, waits and stores.

use super::cluster_file::{self, ClusterFile, ClusterFileError, Membership};
use super::dial::{self, DialError};
use super::socket::{Talk, TalkError};
use super::station::{Standing, Station};
use super::whereabouts::reached_at;
use crate::clock::{self, Clock};
use crate::fatal::Fatal;
use crate::tuning::peers::Peer;
use shards::ids::NodeNumber;
use shards::log::payload::PayloadBuffer;
use shards::meta::{Meta, Node};
use shards::peer::founding::{Agreement, Seen, Status, agreement, first_meta};
use shards::peer::frame::{Kind, PAYLOAD_BYTES_MAX};
use shards::peer::hello::{Card, Purpose, RefusalCode};
use shards::peer::meta_codec::{decode_meta, encode_meta};
use std::collections::BTreeSet;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Pause between two rounds of questions.
const ROUND_PAUSE: Duration = Duration::from_millis(150);
/// Time between two log lines that say for whom this node waits.
const TELL_EVERY_MS: u64 = 5000;
/// Longest wait for an answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);
/// How long a node that cannot agree goes on answering, so that the others hear why too.
const LINGER: Duration = Duration::from_secs(2);

/// What the operator said about the cluster to be.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Who this node is; its number is 0.
    pub card: Card,
    /// The other nodes.
    pub peers: Vec<Peer>,
    /// Copies of each group.
    pub replicas: u16,
    /// Whether this node shall lead.
    pub is_primary: bool,
    /// Whether the number of shards was stated, so that a cluster with another one is refused.
    pub is_shards_stated: bool,
}

/// Answers one who asks about founding.
///
/// # Errors
/// Why the connection ended early.
pub fn serve(
    mut talk: Talk,
    caller: &Card,
    address: Option<IpAddr>,
    standing: &Standing,
) -> Result<(), TalkError> {
    talk.receive(&[Kind::FoundingStatus], ANSWERED_WITHIN, |_, payload, scratch| {
        Status::decode(payload, scratch)
    })?;
    let mut payload = PayloadBuffer::new();
    match standing {
        Standing::Blank(_, status) => status.encode(&mut payload),
        Standing::Member(hub) => {
            let meta = hub.nodes.meta();
            if meta.node_by_id(&caller.id).is_some_and(|node| node.incarnation == caller.incarnation) {
                return offer(&mut talk, &meta, hub.first_meta().as_deref());
            }
            if let Some(address) = address {
                hub.nodes.note_candidate(Node {
                    id: caller.id.clone(),
                    incarnation: caller.incarnation,
                    host: reached_at(&caller.host, address),
                    port: caller.port,
                    cluster_port: caller.cluster_port,
                    ..Node::default()
                });
            }
            Status { cluster: hub.cluster, ..Status::default() }.encode(&mut payload);
        }
    }
    talk.send(Kind::FoundingStatus, &payload, ANSWERED_WITHIN)
}

fn offer(talk: &mut Talk, newest: &Meta, first: Option<&Meta>) -> Result<(), TalkError> {
    let mut payload = PayloadBuffer::new();
    encode_meta(newest, &mut payload);
    talk.send(Kind::FoundingOffer, &payload, ANSWERED_WITHIN)?;
    payload.clear();
    if let Some(first) = first {
        encode_meta(first, &mut payload);
    }
    talk.send(Kind::FoundingOffer, &payload, ANSWERED_WITHIN)
}

/// What a peer answered.
enum Answer {
    /// It is blank too.
    Blank(Card, Status),
    /// It is a member of this cluster, which does not know this node.
    Elsewhere(Card, u128),
    /// It is a member of a cluster that this node belongs to: its newest meta state, and its first.
    Offer(Meta, Option<Meta>),
}

/// Waits until this blank node is a member of a cluster, and stores that; `None` when `is_stopped` said so before.
///
/// # Errors
/// When the nodes will never agree, one of them refuses this node, or the disk refuses.
pub fn become_member(
    directory: &Path,
    blank: &ClusterFile,
    wish: &Wish,
    station: &Station,
    mut is_stopped: impl FnMut() -> bool,
) -> Result<Option<ClusterFile>, Fatal> {
    let mut waiting = Waiting { wish, clock: Clock::start(), next_told_ms: 0, told: String::new() };
    loop {
        if is_stopped() {
            return Ok(None);
        }
        let round = waiting.ask_all()?;
        if let Some((meta, first)) = round.offer {
            return accept(directory, blank, wish, meta, first).map(Some);
        }
        let mine = waiting.status(&round);
        station.becomes(Standing::Blank(wish.card.clone(), mine.clone()));
        if !round.members.is_empty() {
            waiting.tell(&format!(
                "the nodes {} belong to a cluster already: waiting until this one is added there (ADD_NODE)",
                round.members.join(", ")
            ));
        } else {
            let others: Vec<(String, Status)> =
                round.blank.iter().map(|(card, _, status)| (card.id.clone(), status.clone())).collect();
            match agreement(&wish.card.id, &mine, &others) {
                Agreement::Agreed if mine.seen[0].id == wish.card.id => {
                    return found(directory, blank, wish, &mine, &others).map(Some);
                }
                Agreement::Agreed => {
                    waiting.tell(&format!("all nodes agree: {} founds the cluster", mine.seen[0].id));
                }
                Agreement::Waiting(None) => {
                    waiting.tell(&format!("waiting for {}", round.missing.join(", ")));
                }
                Agreement::Waiting(Some(id)) => {
                    waiting.tell(&format!("waiting until {id} has reached all the others"));
                }
                Agreement::Differs(text) => {
                    // The others shall hear it too, and not wait for a node that is gone.
                    std::thread::sleep(LINGER);
                    return Err(Fatal::Configuration(format!("The nodes cannot found a cluster: {text}.")));
                }
            }
        }
        std::thread::sleep(ROUND_PAUSE);
    }
}

/// What one round of questions came to.
#[derive(Default)]
struct Round {
    /// Blank peers, the host under which each was reached, and what it sees.
    blank: Vec<(Card, String, Status)>,
    /// Ids of peers that are in a cluster without this node.
    members: Vec<String>,
    /// Peers that did not answer, and why.
    missing: Vec<String>,
    offer: Option<(Meta, Option<Meta>)>,
}

struct Waiting<'a> {
    wish: &'a Wish,
    clock: Clock,
    next_told_ms: u64,
    told: String,
}

impl Waiting<'_> {
    /// Says what this node waits for: when that changed, and every few seconds.
    fn tell(&mut self, text: &str) {
        let now_ms = self.clock.elapsed_us() / 1000;
        if self.told == text && now_ms < self.next_told_ms {
            return;
        }
        tracing::info!(node = %self.wish.card.id, "first start: {text}");
        text.clone_into(&mut self.told);
        self.next_told_ms = now_ms + TELL_EVERY_MS;
    }

    fn ask_all(&self) -> Result<Round, Fatal> {
        let mut round = Round::default();
        for peer in &self.wish.peers {
            let (host, port) = (host_of(peer), peer.cluster_port);
            let name = match &peer.id {
                Some(id) => format!("{id} at {host}:{port}"),
                None => format!("{host}:{port}"),
            };
            match self.ask(&host, port) {
                Ok(Answer::Blank(card, status)) => {
                    check_name(peer, &card, &name)?;
                    round.blank.push((card, host, status));
                }
                Ok(Answer::Elsewhere(card, cluster)) => {
                    check_name(peer, &card, &name)?;
                    round.members.push(format!("{} (cluster {cluster:032x})", card.id));
                }
                Ok(Answer::Offer(meta, first)) => {
                    round.offer = Some((meta, first));
                    return Ok(round);
                }
                Err(DialError::Refused(refusal)) if is_final(refusal.code) => {
                    return Err(Fatal::DirectoryMismatch(format!("{name} refuses this node: {refusal}.")));
                }
                Err(error) => round.missing.push(format!("{name} ({error})")),
            }
        }
        Ok(round)
    }

    fn ask(&self, host: &str, port: u16) -> Result<Answer, DialError> {
        let card = &self.wish.card;
        let (mut talk, welcome) =
            dial::greet((host, port), 0, card, NodeNumber(0), Purpose::Founding, PAYLOAD_BYTES_MAX >> 6)?;
        let mut payload = PayloadBuffer::new();
        // Only that it asks counts; what this node sees it says when it is asked.
        Status { shards: card.shards, ..Status::default() }.encode(&mut payload);
        talk.send(Kind::FoundingStatus, &payload, ANSWERED_WITHIN)?;
        let kinds = [Kind::FoundingStatus, Kind::FoundingOffer];
        let first = talk.receive(&kinds, ANSWERED_WITHIN, |kind, payload, scratch| match kind {
            Kind::FoundingOffer => decode_meta(payload, scratch).map(Err),
            _ => Status::decode(payload, scratch).map(Ok),
        })?;
        match first {
            Ok(status) if status.cluster != 0 => Ok(Answer::Elsewhere(welcome.card, status.cluster)),
            Ok(status) => Ok(Answer::Blank(welcome.card, status)),
            Err(newest) => {
                let first =
                    talk.receive(&[Kind::FoundingOffer], ANSWERED_WITHIN, |_, payload, scratch| {
                        if payload.is_empty() { Ok(None) } else { decode_meta(payload, scratch).map(Some) }
                    })?;
                Ok(Answer::Offer(newest, first))
            }
        }
    }

    fn status(&self, round: &Round) -> Status {
        let seen = |card: &Card, host: &str| Seen {
            id: card.id.clone(),
            incarnation: card.incarnation,
            host: host.to_owned(),
            port: card.port,
            cluster_port: card.cluster_port,
        };
        let mut all: Vec<Seen> = round.blank.iter().map(|(card, host, _)| seen(card, host)).collect();
        all.push(seen(&self.wish.card, &self.wish.card.host));
        all.sort_by(|left, right| left.id.cmp(&right.id));
        Status {
            seen: all,
            missing: round.missing.len() as u16,
            shards: self.wish.card.shards,
            replicas: self.wish.replicas,
            is_primary: self.wish.is_primary,
            cluster: 0,
        }
    }
}

/// The host at which a peer is asked.
fn host_of(peer: &Peer) -> String {
    let (host, is_assumed) = peer.host_by(|name| (name, peer.cluster_port).to_socket_addrs().is_ok());
    if is_assumed {
        tracing::debug!(peer = ?peer.id, "no such host: it is taken to be this machine");
    }
    host.to_owned()
}

/// Refusals that waiting does not change.
fn is_final(code: RefusalCode) -> bool {
    matches!(code, RefusalCode::WrongIncarnation | RefusalCode::Cluster | RefusalCode::Protocol)
}

fn check_name(peer: &Peer, card: &Card, name: &str) -> Result<(), Fatal> {
    match &peer.id {
        Some(id) if *id != card.id => Err(Fatal::Configuration(format!(
            "The node at {name} calls itself {}: correct --peers here or --id there.",
            card.id
        ))),
        _ => Ok(()),
    }
}

/// Founds the cluster: its id is drawn, and the first meta state stored.
fn found(
    directory: &Path,
    blank: &ClusterFile,
    wish: &Wish,
    mine: &Status,
    others: &[(String, Status)],
) -> Result<ClusterFile, Fatal> {
    let mut mine = mine.clone();
    // The others know best under which host this node is reached.
    let known =
        others.first().and_then(|(_, status)| status.seen.iter().find(|seen| seen.id == wish.card.id));
    if let (Some(known), Some(me)) = (known, mine.seen.iter_mut().find(|seen| seen.id == wish.card.id)) {
        me.host.clone_from(&known.host);
    }
    let mut primaries: BTreeSet<&str> =
        others.iter().filter(|(_, status)| status.is_primary).map(|(id, _)| id.as_str()).collect();
    if mine.is_primary {
        primaries.insert(&wish.card.id);
    }
    let meta = Arc::new(first_meta(clock::random_u128(), &mine, primaries.first().copied()));
    tracing::info!(
        cluster = %format_args!("{:032x}", meta.cluster),
        nodes = meta.nodes.len(),
        groups = meta.groups.len(),
        replicas = meta.replicas,
        "founding the cluster"
    );
    let me = meta.node_by_id(&wish.card.id).map(|node| node.number).expect("the founder sees itself");
    store(directory, blank, Membership { me, meta: Arc::clone(&meta), first: Some(meta), began_alone: false })
}

/// Makes a cluster of one: this node, which holds what it held when it ran alone, if it did.
///
/// # Errors
/// When the disk refuses.
pub fn found_alone(
    directory: &Path,
    blank: &ClusterFile,
    cluster: u128,
    began_alone: bool,
    wish: &Wish,
) -> Result<ClusterFile, Fatal> {
    let card = &wish.card;
    let me = Seen {
        id: card.id.clone(),
        incarnation: card.incarnation,
        host: card.host.clone(),
        port: card.port,
        cluster_port: card.cluster_port,
    };
    let status = Status { seen: vec![me], shards: card.shards, replicas: wish.replicas, ..Status::default() };
    let meta = Arc::new(first_meta(cluster, &status, None));
    tracing::info!(cluster = %format_args!("{cluster:032x}"), "this node is a cluster of one; others can be added to it");
    let me = NodeNumber(1);
    store(directory, blank, Membership { me, meta: Arc::clone(&meta), first: Some(meta), began_alone })
}

/// Takes a place in a cluster that stands.
fn accept(
    directory: &Path,
    blank: &ClusterFile,
    wish: &Wish,
    meta: Meta,
    first: Option<Meta>,
) -> Result<ClusterFile, Fatal> {
    let card = &wish.card;
    let known = meta.node_by_id(&card.id).filter(|node| node.incarnation == card.incarnation);
    let Some(me) = known.map(|node| node.number) else {
        return Err(Fatal::Configuration(format!(
            "A cluster offers a place to node {} that does not name this data directory; nothing was taken over.",
            card.id
        )));
    };
    if wish.is_shards_stated && meta.groups.len() != card.shards as usize {
        return Err(Fatal::Configuration(format!(
            "The cluster has {} groups and --shards asks for {}: leave --shards away, or give the cluster's number.",
            meta.groups.len(),
            card.shards
        )));
    }
    let was_there =
        |first: &Meta| first.cluster == meta.cluster && first.nodes.iter().any(|node| node.number == me);
    let first = first.filter(was_there).map(Arc::new);
    tracing::info!(
        cluster = %format_args!("{:032x}", meta.cluster),
        number = me.0,
        version = meta.version,
        "this node has its place in the cluster"
    );
    store(directory, blank, Membership { me, meta: Arc::new(meta), first, began_alone: false })
}

fn store(directory: &Path, blank: &ClusterFile, membership: Membership) -> Result<ClusterFile, Fatal> {
    let file = ClusterFile { membership: Some(membership), ..*blank };
    cluster_file::write(directory, &file).map_err(|error| file_failed(directory, error))?;
    Ok(file)
}

/// What a failure of the file `cluster` means for the server.
pub fn file_failed(directory: &Path, error: ClusterFileError) -> Fatal {
    let path = directory.to_path_buf();
    match error {
        ClusterFileError::Io(source) => Fatal::Directory { path, source },
        ClusterFileError::Damaged(_) => Fatal::DirectoryDamaged(path, error.to_string()),
        ClusterFileError::NewerFormat(_) => {
            Fatal::DirectoryMismatch(format!("{}: {error}; start it with the newer version.", path.display()))
        }
    }
}
