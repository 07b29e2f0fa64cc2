//! The handshake: the first frame each way on every connection between nodes.
//!
//! Who dials says who it is, whom it means and what the connection is for; who accepts says who it is, and welcomes or
//! refuses by name. The session of all later frames is drawn by who accepts; the echo of the dialler's own number keeps a
//! recorded welcome from being believed. The archives here never change: a later protocol is found by the range of
//! versions that both give.

use super::PayloadRefused;
use super::meta_codec::NAME_BYTES_MAX;
use crate::ids::{GroupId, NodeNumber};
use crate::log::payload::{PayloadBuffer, aligned, encode};
use rkyv::rancor;
use rkyv::{Archive, Serialize};
use std::fmt;

/// The oldest protocol between nodes that this code speaks.
pub const PROTOCOL_MIN: u16 = 1;
/// The newest.
pub const PROTOCOL_MAX: u16 = 1;
/// The longest text of a refusal in bytes.
const TEXT_BYTES_MAX: usize = 1024;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Raft messages of this group, and messages between groups, from who dials.
    Raft(GroupId),
    /// Batches of requests from who dials, and their replies.
    Forward,
    /// Bytes of this group's snapshot, for who dials.
    Snapshot(GroupId),
    /// What who dials knows of the cluster.
    Control,
    /// What nodes say before they are a cluster.
    Founding,
}

/// Who a node is.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq, Default)]
pub struct Card {
    /// The id that its operator gave it.
    pub id: String,
    /// Its number; 0 before it has one.
    pub number: u16,
    /// Drawn when its data directory was made.
    pub incarnation: u128,
    /// Number of its shards.
    pub shards: u32,
    /// Host that it listens on for clients.
    pub host: String,
    /// Port for clients.
    pub port: u16,
    /// Port for nodes.
    pub cluster_port: u16,
}

/// What who dials says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The protocols that it speaks: oldest and newest.
    pub protocols: (u16, u16),
    /// Its cluster; 0 before it has one.
    pub cluster: u128,
    /// Who it is.
    pub card: Card,
    /// Whom it means to talk to; 0 when it does not know.
    pub to: NodeNumber,
    /// What about.
    pub purpose: Purpose,
    /// The lower half is drawn for this connection, the upper half for the life of the process: see [`Hello::life`].
    pub nonce: u64,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The protocol to be spoken; 0 with a refusal.
    pub protocol: u16,
    /// The cluster of who accepts; 0 before it has one.
    pub cluster: u128,
    /// Who that is.
    pub card: Card,
    /// In every later frame of the connection.
    pub session: u64,
    /// The nonce of the hello.
    pub echo: u64,
    /// Why not, if so.
    pub refusal: Option<Refusal>,
}

/// Why a connection is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The kind of reason.
    pub code: RefusalCode,
    /// One sentence for the log of who dialled.
    pub text: String,
}

/// Kinds of refusals; append-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RefusalCode {
    /// No protocol in common.
    Protocol = 1,
    /// Another cluster.
    Cluster = 2,
    /// The meta state has no such node, or not yet.
    UnknownNode = 3,
    /// The number belongs to another id.
    WrongId = 4,
    /// The id is known under another incarnation: a blank disk under an old name.
    WrongIncarnation = 5,
    /// The node that was meant is not this one.
    NotMe = 6,
    /// Not ready, too many connections, or nothing of the kind here; later perhaps.
    NotNow = 7,
    /// It makes no sense: a group that does not exist, a node that talks to itself.
    Nonsense = 8,
    /// Another process of the same node is connected: a copy of a data directory runs beside its original.
    Twice = 9,
    /// The node was taken out of the cluster for good.
    Removed = 10,
}

impl RefusalCode {
    fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Protocol,
            2 => Self::Cluster,
            3 => Self::UnknownNode,
            4 => Self::WrongId,
            5 => Self::WrongIncarnation,
            6 => Self::NotMe,
            7 => Self::NotNow,
            8 => Self::Nonsense,
            9 => Self::Twice,
            10 => Self::Removed,
            _ => return None,
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[derive(Archive, Serialize)]
struct HelloV1 {
    protocol_min: u16,
    protocol_max: u16,
    cluster: u128,
    card: Card,
    to: u16,
    purpose: u8,
    group: u32,
    nonce: u64,
}

#[derive(Archive, Serialize)]
struct WelcomeV1 {
    protocol: u16,
    cluster: u128,
    card: Card,
    session: u64,
    echo: u64,
    /// 0 for a welcome.
    refusal: u8,
    text: String,
}

impl Hello {
    /// What tells one process of a node from another.
    pub fn life(&self) -> u32 {
        (self.nonce >> 32) as u32
    }

    /// Replaces the contents of `out` with the hello.
    pub fn encode(&self, out: &mut PayloadBuffer) {
        let (purpose, group) = match self.purpose {
            Purpose::Raft(group) => (1, group.0),
            Purpose::Forward => (2, 0),
            Purpose::Snapshot(group) => (3, group.0),
            Purpose::Control => (4, 0),
            Purpose::Founding => (5, 0),
        };
        let written = HelloV1 {
            protocol_min: self.protocols.0,
            protocol_max: self.protocols.1,
            cluster: self.cluster,
            card: self.card.clone(),
            to: self.to.0,
            purpose,
            group,
            nonce: self.nonce,
        };
        encode(&written, out);
    }

    /// Reads a hello.
    ///
    /// # Errors
    /// When the bytes are none.
    pub fn decode(payload: &[u8], scratch: &mut PayloadBuffer) -> Result<Self, PayloadRefused> {
        let read = rkyv::access::<ArchivedHelloV1, rancor::Error>(aligned(payload, scratch))?;
        let group = GroupId(read.group.to_native());
        let purpose = match read.purpose {
            1 => Purpose::Raft(group),
            2 => Purpose::Forward,
            3 => Purpose::Snapshot(group),
            4 => Purpose::Control,
            5 => Purpose::Founding,
            _ => return Err("a connection of unknown purpose".into()),
        };
        Ok(Self {
            protocols: (read.protocol_min.to_native(), read.protocol_max.to_native()),
            cluster: read.cluster.to_native(),
            card: card_of(&read.card)?,
            to: NodeNumber(read.to.to_native()),
            purpose,
            nonce: read.nonce.to_native(),
        })
    }

    /// The newest protocol that both speak.
    pub fn common_protocol(&self) -> Option<u16> {
        let newest = self.protocols.1.min(PROTOCOL_MAX);
        (newest >= self.protocols.0.max(PROTOCOL_MIN)).then_some(newest)
    }
}

impl Welcome {
    /// Replaces the contents of `out` with the welcome.
    pub fn encode(&self, out: &mut PayloadBuffer) {
        let mut text = self.refusal.as_ref().map_or_else(String::new, |refusal| refusal.text.clone());
        while text.len() > TEXT_BYTES_MAX {
            text.pop();
        }
        let written = WelcomeV1 {
            protocol: self.protocol,
            cluster: self.cluster,
            card: self.card.clone(),
            session: self.session,
            echo: self.echo,
            refusal: self.refusal.as_ref().map_or(0, |refusal| refusal.code as u8),
            text,
        };
        encode(&written, out);
    }

    /// Reads a welcome.
    ///
    /// # Errors
    /// When the bytes are none.
    pub fn decode(payload: &[u8], scratch: &mut PayloadBuffer) -> Result<Self, PayloadRefused> {
        let read = rkyv::access::<ArchivedWelcomeV1, rancor::Error>(aligned(payload, scratch))?;
        let refusal = match read.refusal {
            0 => None,
            number => {
                let code = RefusalCode::from_number(number).unwrap_or(RefusalCode::NotNow);
                Some(Refusal { code, text: printable(read.text.as_str()) })
            }
        };
        Ok(Self {
            protocol: read.protocol.to_native(),
            cluster: read.cluster.to_native(),
            card: card_of(&read.card)?,
            session: read.session.to_native(),
            echo: read.echo.to_native(),
            refusal,
        })
    }
}

/// A stranger's text as it may stand in a log line.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TEXT_BYTES_MAX).collect()
}

fn card_of(read: &ArchivedCard) -> Result<Card, PayloadRefused> {
    let (id, host) = (read.id.as_str(), read.host.as_str());
    let is_plain = |text: &str| text.len() <= NAME_BYTES_MAX && !text.chars().any(char::is_control);
    if id.is_empty() || !is_plain(id) || !is_plain(host) {
        return Err("a node without a proper id or host".into());
    }
    Ok(Card {
        id: id.to_owned(),
        number: read.number.to_native(),
        incarnation: read.incarnation.to_native(),
        shards: read.shards.to_native(),
        host: host.to_owned(),
        port: read.port.to_native(),
        cluster_port: read.cluster_port.to_native(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::hex;
    use proptest::prelude::*;

    fn card() -> Card {
        Card {
            id: "n1".into(),
            number: 1,
            incarnation: 3,
            shards: 2,
            host: "h".into(),
            port: 8000,
            cluster_port: 9000,
        }
    }

    fn hello(purpose: Purpose) -> Hello {
        Hello { protocols: (1, 2), cluster: 5, card: card(), to: NodeNumber(2), purpose, nonce: 77 }
    }

    fn bytes_of(purpose: Purpose) -> PayloadBuffer {
        let mut bytes = PayloadBuffer::new();
        hello(purpose).encode(&mut bytes);
        bytes
    }

    #[test]
    fn both_sides_survive() {
        let group = GroupId(4);
        let mut scratch = PayloadBuffer::new();
        for purpose in [
            Purpose::Raft(group),
            Purpose::Forward,
            Purpose::Snapshot(group),
            Purpose::Control,
            Purpose::Founding,
        ] {
            assert_eq!(Hello::decode(&bytes_of(purpose), &mut scratch), Ok(hello(purpose)));
        }
        for code in (1..=10).filter_map(RefusalCode::from_number) {
            let refusal = Some(Refusal { code, text: "because".into() });
            let welcome = Welcome { protocol: 1, cluster: 5, card: card(), session: 9, echo: 77, refusal };
            let mut bytes = PayloadBuffer::new();
            welcome.encode(&mut bytes);
            assert_eq!(Welcome::decode(&bytes, &mut scratch), Ok(welcome));
        }
    }

    #[test]
    fn versions_meet_in_the_newest_common_one() {
        let with = |protocols| Hello { protocols, ..hello(Purpose::Control) }.common_protocol();
        assert_eq!((with((1, 1)), with((1, 9)), with((0, 0)), with((2, 3))), (Some(1), Some(1), None, None));
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(hex(&bytes_of(Purpose::Raft(GroupId(4)))), include_str!("golden_hello_v1.hex").trim());
        let mut bytes = PayloadBuffer::new();
        Welcome { protocol: 1, cluster: 5, card: card(), session: 9, echo: 77, refusal: None }
            .encode(&mut bytes);
        assert_eq!(hex(&bytes), include_str!("golden_welcome_v1.hex").trim());
    }

    proptest! {
        #[test]
        fn nothing_a_stranger_writes_panics(flip in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>()) {
            let mut bytes = bytes_of(Purpose::Raft(GroupId(4)));
            let mut scratch = PayloadBuffer::new();
            let _ = Hello::decode(&bytes[..cut.index(bytes.len())], &mut scratch);
            let bit = flip.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let _ = Hello::decode(&bytes, &mut scratch);
            let _ = Welcome::decode(&bytes, &mut scratch);
        }
    }
}
