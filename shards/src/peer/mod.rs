//! What nodes say to one another, as bytes: frames, the handshake, and the payloads of every kind.
//!
//! Sans-IO: `src/peer` moves these bytes over sockets, the simulator over its own network. Everything that comes from a
//! peer is checked before it is believed: lengths against bounds, checksums, archives by checked access, numbers by the
//! rules of what they stand for. Nothing here panics on what a stranger sends, and nothing is allocated by a length that
//! was not checked. The byte maps stand in docs/PEERS.md.
//!
//! | file | duty |
//! |---|---|
//! | `frame` | the frame around every payload, and taking a stream of them apart |
//! | `hello` | the first frame each way: who talks to whom, about what |
//! | `raft_message` | raft messages of a group |
//! | `group_message` | steps of transactions between groups |
//! | `meta_codec` | the meta state, for links, logs and files |
//! | `gossip` | what a control link says: versions, leaders, the meta state |
//! | `founding` | what nodes say before they are a cluster |
//! | `pull` | asking for a snapshot, and its chunks |

pub mod founding;
pub mod frame;
pub mod gossip;
pub mod group_message;
pub mod hello;
pub mod meta_codec;
pub mod pull;
pub mod raft_message;

/// Why a payload was refused: its checksum was right, so other code wrote it, or a stranger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PayloadRefused(pub String);

impl std::fmt::Display for PayloadRefused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the payload cannot be read: {}", self.0)
    }
}

impl std::error::Error for PayloadRefused {}

impl From<rkyv::rancor::Error> for PayloadRefused {
    fn from(error: rkyv::rancor::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<&str> for PayloadRefused {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// Bytes as hexadecimal digits, for golden tests.
#[cfg(test)]
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
