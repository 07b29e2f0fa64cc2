//! Making a connection to another node: resolve, connect, say who we are, and believe nobody who is not who was meant.
//!
//! Blocks, each step with a bound of its own; called from threads that may wait and never from a shard's.

use super::hub::Hub;
use super::socket::{Talk, TalkError};
use crate::clock;
use shards::ids::NodeNumber;
use shards::meta::Node;
use shards::peer::frame::{Kind, PAYLOAD_BYTES_MAX};
use shards::peer::hello::{Card, Hello, PROTOCOL_MAX, PROTOCOL_MIN, Purpose, Refusal, Welcome};
use std::fmt;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::OnceLock;
use std::time::Duration;

/// Longest wait for a connection: a node that is there answers within a fraction of it.
const CONNECT_WITHIN: Duration = Duration::from_millis(500);
/// Longest wait for an answer to the hello, which its reader answers at once.
const GREETED_WITHIN: Duration = Duration::from_millis(1000);

/// Why there is no connection.
#[derive(Debug)]
pub enum DialError {
    /// Nobody answers there, or not as a node does.
    Unreachable(String),
    /// The other side refuses this node.
    Refused(Refusal),
    /// Somebody else than was meant answers there.
    Stranger(String),
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(text) | Self::Stranger(text) => f.write_str(text),
            Self::Refused(refusal) => write!(f, "refused: {refusal}"),
        }
    }
}

impl From<TalkError> for DialError {
    fn from(error: TalkError) -> Self {
        Self::Unreachable(error.to_string())
    }
}

/// Connects to a host and exchanges hello and welcome. The session's frames may carry `payload_bytes_max`.
///
/// # Errors
/// When nobody is there, or this node is refused.
pub fn greet(
    (host, port): (&str, u16),
    cluster: u128,
    card: &Card,
    to: NodeNumber,
    purpose: Purpose,
    payload_bytes_max: usize,
) -> Result<(Talk, Welcome), DialError> {
    let mut talk = Talk::begin(connect(host, port)?, cluster).map_err(TalkError::from)?;
    let nonce = u64::from(life()) << 32 | clock::random_u64() & u64::from(u32::MAX);
    let hello =
        Hello { protocols: (PROTOCOL_MIN, PROTOCOL_MAX), cluster, card: card.clone(), to, purpose, nonce };
    let mut payload = shards::log::payload::PayloadBuffer::new();
    hello.encode(&mut payload);
    talk.send(Kind::Hello, &payload, GREETED_WITHIN)?;
    let mut welcome = talk
        .receive(&[Kind::Welcome], GREETED_WITHIN, |_, payload, scratch| Welcome::decode(payload, scratch))?;
    if welcome.echo != nonce {
        return Err(DialError::Stranger("the welcome belongs to another hello".to_owned()));
    }
    if let Some(refusal) = welcome.refusal.take() {
        return Err(DialError::Refused(refusal));
    }
    let cluster = if purpose == Purpose::Founding { 0 } else { cluster };
    talk.begin_session(cluster, welcome.session, payload_bytes_max);
    Ok((talk, welcome))
}

/// Connects to a member of this node's cluster: where it was heard to be, and if it is not there, where the meta state says. A
/// machine may speak from an address at which it does not listen.
///
/// # Errors
/// When it cannot be reached, refuses this node, or is not who the meta state says.
pub fn member(hub: &Hub, node: NodeNumber, purpose: Purpose) -> Result<Talk, DialError> {
    let meta = hub.nodes.meta();
    let unknown = || DialError::Unreachable("no such node is known".to_owned());
    let known = meta.node(node).ok_or_else(unknown)?;
    let heard = hub.address_of(node).ok_or_else(unknown)?;
    let told = (known.host.clone(), known.cluster_port);
    let made = member_at(hub, known, heard.clone(), purpose);
    if heard == told || !matches!(made, Err(DialError::Unreachable(_) | DialError::Stranger(_))) {
        return made;
    }
    let made = member_at(hub, known, told, purpose);
    if made.is_ok() {
        hub.is_not_there(node, &heard);
    }
    made
}

fn member_at(
    hub: &Hub,
    known: &Node,
    (host, port): (String, u16),
    purpose: Purpose,
) -> Result<Talk, DialError> {
    let node = known.number;
    let (talk, welcome) = greet((&host, port), hub.cluster, &hub.card, node, purpose, PAYLOAD_BYTES_MAX)?;
    let is_meant = welcome.cluster == hub.cluster
        && welcome.card.number == node.0
        && welcome.card.incarnation == known.incarnation
        && welcome.card.id == known.id;
    if !is_meant {
        let found = welcome.card.id;
        return Err(DialError::Stranger(format!("{host}:{port} is {found}, and {} was meant", known.id)));
    }
    Ok(talk)
}

/// Drawn once in the life of this process.
fn life() -> u32 {
    static LIFE: OnceLock<u32> = OnceLock::new();
    *LIFE.get_or_init(|| clock::random_u64() as u32)
}

fn connect(host: &str, port: u16) -> Result<TcpStream, DialError> {
    let unreachable = |error: std::io::Error| DialError::Unreachable(error.to_string());
    let mut last = DialError::Unreachable("the name has no address".to_owned());
    for address in (host, port).to_socket_addrs().map_err(unreachable)? {
        match TcpStream::connect_timeout(&address, CONNECT_WITHIN) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = unreachable(error),
        }
    }
    Err(last)
}
